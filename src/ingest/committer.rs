//! The epoch committer: encodes records as they come and commits sealed epochs, one thread a stream.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use datafusion::arrow::record_batch::RecordBatch;
use tokio::sync::oneshot;

use crate::archive::ledger::Ledger;
use crate::archive::rewrite::Rewrite;
use crate::archive::writer::{EncodedEpoch, EpochWriter};
use crate::archive::{Archive, ArchiveError, ArchiveSnapshot, Kind};
use crate::merge::snapshot::SnapshotCell;
use crate::metrics::{Metrics, StreamLabel, WorkOutcome};
use crate::position::StreamFrontier;
use crate::runtime::{Clock, Health, Shutdown, chain};

/// What the committer is told, in order.
#[derive(Debug)]
pub enum Work {
    Append(Kind, RecordBatch),
    /// The epoch ends here: commit it.
    Seal(StreamFrontier, Ledger),
    /// Something that leaves the records as they are; whoever asked is told how it went.
    Chore(Chore, oneshot::Sender<Result<Arc<ArchiveSnapshot>, ArchiveError>>),
}

/// What the writer of the archive does between two epochs.
#[derive(Debug)]
pub enum Chore {
    /// Make sure that nobody else writes.
    CatchUp,
    /// Put a larger file in the place of small ones.
    Rewrite(Rewrite),
}

/// How a try to commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    Committed,
    /// It may pass by itself: try the same epoch again.
    Failed,
}

/// Commits the epochs of one stream.
#[derive(Debug)]
pub struct Committer {
    pub stream: String,
    pub archive: Archive,
    /// The epoch that is being filled; begun with what comes first.
    pub open: Option<EpochWriter>,
    pub cell: Arc<SnapshotCell>,
    pub metrics: Arc<Metrics>,
    pub health: Health,
    pub shutdown: Shutdown,
    pub clock: Arc<dyn Clock>,
    pub retry_interval: Duration,
    /// Where the archive does its I/O.
    pub io: tokio::runtime::Handle,
}

impl Committer {
    /// Works until the sender is gone. An error from which it cannot recover poisons health and ends the
    /// process: going on would lose records or count them twice.
    pub fn run(mut self, work: &Receiver<Work>) {
        if let Err(error) = self.serve(work) {
            self.health.poison("archive", format!("stream {}: {}", self.stream, chain(&error)));
            self.shutdown.trigger();
        }
        self.io.block_on(self.archive.settle());
    }

    fn serve(&mut self, work: &Receiver<Work>) -> Result<(), ArchiveError> {
        while let Ok(next) = work.recv() {
            let Some(epoch) = self.take(next)? else { continue };
            // Meanwhile the queue behind fills, intake waits, and reads go on.
            while self.io.clone().block_on(self.attempt(&epoch))? == Attempt::Failed {
                if self.sleep() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// An error from which the archive recovers goes to whoever asked; it is for them to try again.
    fn chore(
        &mut self,
        chore: Chore,
        answer: oneshot::Sender<Result<Arc<ArchiveSnapshot>, ArchiveError>>,
    ) -> Result<(), ArchiveError> {
        let answered = match self.io.clone().block_on(self.carry_out(&chore)) {
            Ok(snapshot) => answer.send(Ok(snapshot)),
            Err(error) if error.is_retryable() || matches!(error, ArchiveError::Rewrite { .. }) => {
                answer.send(Err(error))
            }
            Err(error) => return Err(error),
        };
        // Who asked may have gone; the archive stands as it stands.
        drop(answered);
        Ok(())
    }

    /// Does it, and shows readers what the archive is then.
    pub async fn carry_out(&mut self, chore: &Chore) -> Result<Arc<ArchiveSnapshot>, ArchiveError> {
        let snapshot = match chore {
            Chore::CatchUp => self.archive.catch_up().await?,
            Chore::Rewrite(rewrite) => self.archive.rewrite(rewrite).await?,
        };
        self.cell.update_stream(&self.stream, |stream| stream.archive = Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// Encodes what came. An epoch that ended here must be committed before anything else is taken.
    pub fn take(&mut self, work: Work) -> Result<Option<EncodedEpoch>, ArchiveError> {
        match work {
            Work::Append(kind, records) => {
                self.open.get_or_insert_with(|| self.archive.begin()).append_records(kind, &records)?;
                Ok(None)
            }
            Work::Seal(frontier, ledger) => {
                let writer = self.open.take().unwrap_or_else(|| self.archive.begin());
                writer.finish(frontier, ledger).map(Some)
            }
            Work::Chore(chore, answer) => self.chore(chore, answer).map(|()| None),
        }
    }

    /// Tries once to commit `epoch`, and shows it to readers when it is. An error is one from which nobody recovers.
    pub async fn attempt(&mut self, epoch: &EncodedEpoch) -> Result<Attempt, ArchiveError> {
        let began = self.clock.instant();
        match self.archive.commit(epoch).await {
            Ok(snapshot) => {
                self.measure(epoch, self.clock.instant().duration_since(began));
                self.cell.update_stream(&self.stream, |stream| {
                    stream.delta = Arc::new(stream.delta.archived(snapshot.epoch));
                    stream.archive = snapshot;
                });
                Ok(Attempt::Committed)
            }
            Err(error) if error.is_retryable() => {
                let stream = &self.stream;
                tracing::error!(stream, error = chain(&error), "commit failed; intake waits, will try again");
                let took = self.clock.instant().duration_since(began);
                self.metrics.archive_commit(&self.stream, WorkOutcome::Failed, took);
                Ok(Attempt::Failed)
            }
            Err(error) => Err(error),
        }
    }

    /// True when the process is ending.
    fn sleep(&self) -> bool {
        let until = self.clock.instant() + self.retry_interval;
        while self.clock.instant() < until {
            if self.shutdown.is_triggered() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    fn measure(&self, epoch: &EncodedEpoch, took: Duration) {
        self.metrics.archive_commit(&self.stream, WorkOutcome::Done, took);
        let stream = StreamLabel { stream: self.stream.clone() };
        self.metrics.archive_bytes.get_or_create(&stream).inc_by(epoch.bytes() as u64);
    }
}
