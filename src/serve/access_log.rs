//! Who connected, who was turned away, and who ran what: kept as lines of JSON in the data directory, and read as
//! `audit.access_log`.
//!
//! | | kept for sure | may be left out, and is counted |
//! |---|---|---|
//! | what | connections, refusals, changes, statements that a right was missing for | reads |
//! | before the answer | on the disk, where something was changed | no |
//! | when the queue is full | waited for | dropped |
//!
//! One thread writes; whoever runs a statement only puts a record into a queue. Reads are gathered there for some
//! milliseconds, so that they are written many at once.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datafusion::catalog::TableProvider;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

pub mod entry;
mod files;
mod redact;
mod table;

use self::files::Files;
use super::auth::Origin;
use super::error::{QueryError, SqlState};
use crate::metrics::Metrics;
use crate::runtime::{Clock, Health, Micros, chain, spawn_thread};

/// How long a write that failed waits before it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long a change waits for the log to be written again.
const READY_PATIENCE: Duration = Duration::from_secs(2);
/// How long a change waits for its record to be on the disk.
const DURABLE_PATIENCE: Duration = Duration::from_secs(5);
/// How long reads may wait for others, to be written with them: waking the thread costs more than a lookup by key.
const GATHERING: Duration = Duration::from_millis(5);
/// Records that are written as one.
const WRITTEN_AT_ONCE: usize = 4096;

/// What is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Connected,
    Refused,
    Statement,
    Disconnected,
}

impl Event {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Refused => "refused",
            Self::Statement => "statement",
            Self::Disconnected => "disconnected",
        }
    }
}

/// Whether a record may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    Passing,
    Kept,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Record {
    pub at: Micros,
    pub event: Event,
    pub weight: Weight,
    pub role: Arc<str>,
    pub origin: Origin,
    pub application: String,
    pub session: Option<i32>,
    pub statement: Option<Arc<str>>,
    /// None where it was done.
    pub state: Option<SqlState>,
    pub rows: Option<u64>,
    pub took: Option<Duration>,
    pub generation: Option<u64>,
}

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub days: u32,
    /// Half of it for reads, half for everything else: neither can push the other out.
    pub bytes: u64,
    /// Records that wait to be written.
    pub queue: usize,
}

/// The log. Dropping the last handle ends its thread, after it has written what waits.
#[derive(Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
    files: Arc<Mutex<Vec<files::Written>>>,
    clock: Arc<dyn Clock>,
    queue_max: usize,
    metrics: Arc<Metrics>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(Record, Option<oneshot::Sender<()>>)>,
    ended: bool,
    /// Whether something is in it that is not to wait for more.
    due: bool,
    /// Whether the thread sleeps until there is something.
    asleep: bool,
    /// Why nothing can be written at the moment.
    failing: Option<String>,
}

impl AccessLog {
    /// Opens the log in `dir`, which it makes.
    pub fn open(
        dir: &Path,
        bounds: Bounds,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        health: &Health,
    ) -> std::io::Result<Arc<Self>> {
        let shared: Arc<Shared> = Arc::default();
        let files = Files::open(dir, bounds, clock.now())?;
        let written = files.written();
        let thread = spawn_thread("access log", health, {
            let (shared, metrics) = (Arc::clone(&shared), Arc::clone(&metrics));
            move || write(&shared, files, &metrics)
        });
        Ok(Arc::new(Self {
            shared,
            files: written,
            clock,
            queue_max: bounds.queue,
            metrics,
            thread: Mutex::new(Some(thread)),
        }))
    }

    pub fn now(&self) -> Micros {
        self.clock.now()
    }

    /// Puts a record into the queue; a passing one is dropped where it is full.
    pub fn note(&self, record: Record) {
        self.put(record, None);
    }

    /// As [`AccessLog::note`], and waits until the record is on the disk.
    pub async fn keep(&self, record: Record) {
        let (tell, told) = oneshot::channel();
        self.put(record, Some(tell));
        // What was done cannot be undone: the thread goes on trying, and the log of the process says so.
        if !matches!(tokio::time::timeout(DURABLE_PATIENCE, told).await, Ok(Ok(()))) {
            tracing::error!("a change was made, and its record in the access log is not on the disk yet");
        }
    }

    /// Before something is changed: the log must be able to say so, and have room.
    pub async fn ready(&self) -> Result<(), QueryError> {
        let patience = tokio::time::sleep(READY_PATIENCE);
        tokio::pin!(patience);
        loop {
            let emptied = self.shared.emptied.notified();
            let failing = {
                let queue = self.shared.queue.lock();
                match &queue.failing {
                    None if queue.waiting.len() < self.queue_max => return Ok(()),
                    failing => failing.clone(),
                }
            };
            tokio::select! {
                () = emptied => {}
                () = &mut patience, if failing.is_some() => {
                    let why = failing.unwrap_or_default();
                    let message = format!("the access log cannot be written, so nothing may be changed: {why}");
                    return Err(QueryError::new(SqlState::IO, message));
                }
            }
        }
    }

    /// What has been written, as a table.
    pub fn table(&self) -> datafusion::error::Result<Arc<dyn TableProvider>> {
        table::over(self.files.lock().clone())
    }

    fn put(&self, record: Record, tell: Option<oneshot::Sender<()>>) {
        let mut queue = self.shared.queue.lock();
        if record.weight == Weight::Passing && queue.waiting.len() >= self.queue_max {
            self.metrics.access_log_dropped.inc();
            return;
        }
        queue.due |= record.weight == Weight::Kept || queue.waiting.len() >= self.queue_max / 2;
        queue.waiting.push_back((record, tell));
        let wake = queue.due || std::mem::take(&mut queue.asleep);
        drop(queue);
        if wake {
            self.shared.filled.notify_one();
        }
    }

    /// Ends the thread, once all that waits was written.
    fn end(&self) {
        self.shared.queue.lock().ended = true;
        self.shared.filled.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            // A panic has poisoned health already.
            drop(thread.join());
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.end();
    }
}

/// Writes what comes, until the end.
fn write(shared: &Shared, mut files: Files, metrics: &Metrics) {
    loop {
        let (batch, ended): (Vec<_>, bool) = {
            let mut queue = shared.queue.lock();
            let gathered = Instant::now() + GATHERING;
            while !queue.due && !queue.ended {
                if shared.filled.wait_until(&mut queue, gathered).timed_out() {
                    break;
                }
            }
            while queue.waiting.is_empty() && !queue.ended {
                queue.asleep = true;
                shared.filled.wait(&mut queue);
            }
            queue.asleep = false;
            let count = queue.waiting.len().min(WRITTEN_AT_ONCE);
            let batch = queue.waiting.drain(..count).collect();
            queue.due = !queue.waiting.is_empty();
            (batch, queue.ended)
        };
        if batch.is_empty() {
            return;
        }
        let (mut records, tells): (Vec<Record>, Vec<_>) = batch.into_iter().unzip();
        while let Err(error) = files.append(&mut records) {
            let why = chain(&error);
            tracing::error!(error = why, "the access log cannot be written");
            metrics.access_log_failed.inc();
            let mut queue = shared.queue.lock();
            queue.failing = Some(why);
            if ended || queue.ended {
                return;
            }
            let until = Instant::now() + RETRY_INTERVAL;
            while !queue.ended && !shared.filled.wait_until(&mut queue, until).timed_out() {}
        }
        shared.queue.lock().failing = None;
        shared.emptied.notify_waiters();
        for tell in tells.into_iter().flatten() {
            // Who waited may have gone.
            let _ = tell.send(());
        }
    }
}

#[cfg(test)]
mod tests;
