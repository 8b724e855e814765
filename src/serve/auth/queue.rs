//! How many queries of a role run at once. One more waits a moment, and is then told so: nobody waits for long without an
//! answer, and no role takes all there is from the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::serve::error::{QueryError, SqlState};

/// The same for every role.
#[derive(Debug, Clone, Copy)]
pub struct QueueBounds {
    pub running_max: usize,
    pub waiting_max: usize,
    /// How long a query waits.
    pub patience: Duration,
}

impl Default for QueueBounds {
    fn default() -> Self {
        Self { running_max: 200, waiting_max: 1000, patience: Duration::from_millis(800) }
    }
}

/// The queries of one role.
#[derive(Debug)]
pub struct Queue {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    bounds: QueueBounds,
}

impl Queue {
    pub fn new(bounds: QueueBounds) -> Self {
        Self { running: Arc::new(Semaphore::new(bounds.running_max)), waiting: AtomicUsize::new(0), bounds }
    }

    /// The right to run until it is dropped.
    pub async fn enter(&self, role: &str) -> Result<OwnedSemaphorePermit, QueryError> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(permit);
        }
        let waiting = Waiting::begin(&self.waiting);
        if waiting.before >= self.bounds.waiting_max {
            return Err(self.overloaded(role));
        }
        match tokio::time::timeout(self.bounds.patience, Arc::clone(&self.running).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(self.overloaded(role)),
        }
    }

    fn overloaded(&self, role: &str) -> QueryError {
        let message =
            format!("too many queries of role \"{role}\" at once: {} are running", self.bounds.running_max);
        QueryError::new(SqlState::INSUFFICIENT_RESOURCES, message)
            .hint("try again; or raise `query.running_per_role_max`")
    }
}

/// Counted among those that wait, until it is dropped.
struct Waiting<'a> {
    all: &'a AtomicUsize,
    before: usize,
}

impl<'a> Waiting<'a> {
    fn begin(all: &'a AtomicUsize) -> Self {
        Self { all, before: all.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn one_more_waits_and_then_is_told() {
        let bounds = QueueBounds { running_max: 1, waiting_max: 1, patience: Duration::from_millis(200) };
        let queue = Arc::new(Queue::new(bounds));
        let first = queue.enter("ana").await.unwrap();
        let refused = queue.enter("ana").await.unwrap_err();
        assert_eq!(refused.state, SqlState("53000"));
        let waits = tokio::spawn({
            let queue = Arc::clone(&queue);
            async move { queue.enter("ana").await.map(drop) }
        });
        tokio::task::yield_now().await;
        let began = std::time::Instant::now();
        assert!(queue.enter("ana").await.is_err(), "there is no room to wait");
        assert!(began.elapsed() < Duration::from_millis(90));
        drop(first);
        assert!(waits.await.unwrap().is_ok());
        assert_eq!(queue.waiting.load(Ordering::Relaxed), 0);
    }
}
