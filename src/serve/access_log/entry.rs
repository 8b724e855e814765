//! What a session tells the log: that it came and went, and one record for each statement.

use std::sync::Arc;
use std::time::Instant;

use super::{AccessLog, Event, Record, Weight};
use crate::runtime::Micros;
use crate::serve::auth::Origin;
use crate::serve::error::{QueryError, SqlState};

/// A session, as the log sees it.
#[derive(Debug)]
pub struct Visit {
    log: Arc<AccessLog>,
    role: Arc<str>,
    origin: Origin,
    session: i32,
    application: String,
}

impl Visit {
    /// Notes that a client has come; that it went is noted when this is dropped.
    pub fn begin(log: &Arc<AccessLog>, role: &str, origin: Origin, session: i32, application: String) -> Self {
        let visit = Self { log: Arc::clone(log), role: role.into(), origin, session, application };
        visit.note(Event::Connected, Weight::Kept);
        visit
    }

    fn note(&self, event: Event, weight: Weight) {
        let mut record = Record::of(self.log.now(), event, weight, Arc::clone(&self.role), self.origin);
        record.session = Some(self.session);
        record.application.clone_from(&self.application);
        self.log.note(record);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.note(Event::Disconnected, Weight::Passing);
    }
}

impl Record {
    pub fn of(at: Micros, event: Event, weight: Weight, role: Arc<str>, origin: Origin) -> Self {
        Self {
            at,
            event,
            weight,
            role,
            origin,
            application: String::new(),
            session: None,
            statement: None,
            state: None,
            rows: None,
            took: None,
            generation: None,
        }
    }
}

/// A statement that has begun. One that is dropped before it was ended is told of as cancelled.
#[derive(Debug, Default)]
pub struct Entry(Option<Box<Open>>);

#[derive(Debug)]
struct Open {
    log: Arc<AccessLog>,
    record: Record,
    began: Instant,
}

impl Entry {
    /// None where there is no log.
    pub fn begin(log: Option<&Arc<AccessLog>>, record: impl FnOnce(Micros) -> Record) -> Self {
        Self(
            log.map(|log| {
                Box::new(Open { log: Arc::clone(log), record: record(log.now()), began: Instant::now() })
            }),
        )
    }

    /// Of something that changes what others see: it begins only once the log has room for it.
    pub async fn ready(&self) -> Result<(), QueryError> {
        match &self.0 {
            Some(open) if open.record.weight == Weight::Kept => open.log.ready().await,
            _ => Ok(()),
        }
    }

    pub fn reads(&mut self, generation: Option<u64>) {
        if let Some(open) = &mut self.0 {
            open.record.generation = generation;
        }
    }

    /// The statement goes on elsewhere, and is told of there.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// Nothing is told.
    pub fn forget(mut self) {
        drop(self.0.take());
    }

    /// Tells how it ended.
    pub fn end(mut self, rows: Option<u64>, state: Option<SqlState>) {
        if let Some(open) = self.0.take() {
            let Open { log, record, began } = *open;
            log.note(ended(record, began, rows, state));
        }
    }

    /// As [`Entry::end`]; of a change once it is on the disk.
    pub async fn end_durably(mut self, rows: Option<u64>, state: Option<SqlState>) {
        if let Some(open) = self.0.take() {
            let Open { log, record, began } = *open;
            let record = ended(record, began, rows, state);
            match record.weight {
                Weight::Kept if state.is_none() => log.keep(record).await,
                _ => log.note(record),
            }
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            let Open { log, record, began } = *open;
            log.note(ended(record, began, None, Some(SqlState::CANCELLED)));
        }
    }
}

/// What a right was missing for is kept, whatever it was.
fn ended(record: Record, began: Instant, rows: Option<u64>, state: Option<SqlState>) -> Record {
    let denied = state.is_some_and(|state| state == SqlState::INSUFFICIENT_PRIVILEGE || state.0.starts_with("28"));
    let weight = if denied { Weight::Kept } else { record.weight };
    Record { weight, rows, state, took: Some(began.elapsed()), ..record }
}
