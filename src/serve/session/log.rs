//! What a session tells the access log.

use std::sync::Arc;

use super::Session;
use crate::serve::access_log::entry::{Entry, Visit};
use crate::serve::access_log::{Event, Record, Weight};

impl Session {
    /// Has the access log tell of the session; it ends with the last of its forks.
    pub fn arrive(&mut self) {
        if let Some(log) = self.service.gate.log() {
            let visit = Visit::begin(log, &self.role, self.origin, self.identity.backend, self.application());
            self.visit = Some(Arc::new(visit));
        }
    }

    fn application(&self) -> String {
        self.settings.show("application_name").map(|(_, name)| name).unwrap_or_default()
    }

    /// A statement that begins, for the access log.
    pub(super) fn entry(&self, statement: Arc<str>, weight: Weight) -> Entry {
        Entry::begin(self.service.gate.log(), |at| Record {
            session: Some(self.identity.backend),
            application: self.application(),
            statement: Some(statement),
            ..Record::of(at, Event::Statement, weight, Arc::clone(&self.role), self.origin)
        })
    }
}
