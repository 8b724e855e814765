//! The epoch committer: encodes records as they come and commits sealed epochs, one thread a stream.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use datafusion::arrow::record_batch::RecordBatch;
use tokio::sync::oneshot;

use crate::archive::ledger::Ledger;
use crate::archive::rewrite::Rewrite;
use crate::archive::writer::EncodedEpoch;
use crate::archive::{Archive, ArchiveError, ArchiveSnapshot, Kind};
use crate::merge::snapshot::SnapshotCell;
use crate::metrics::{Metrics, StreamLabel, WorkOutcome};
use crate::position::StreamFrontier;
use crate::runtime::{Health, Shutdown, chain};

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

/// Commits the epochs of one stream.
#[derive(Debug)]
pub struct Committer {
    pub stream: String,
    pub archive: Archive,
    pub cell: Arc<SnapshotCell>,
    pub metrics: Arc<Metrics>,
    pub health: Health,
    pub shutdown: Shutdown,
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
        let mut writer = self.archive.begin();
        while let Ok(next) = work.recv() {
            match next {
                Work::Append(kind, records) => writer.append_records(kind, &records)?,
                Work::Seal(frontier, ledger) => {
                    let began = Instant::now();
                    let epoch = writer.finish(frontier, ledger)?;
                    let Some(snapshot) = self.commit(&epoch)? else { return Ok(()) };
                    self.measure(&epoch, began.elapsed());
                    self.cell.update_stream(&self.stream, |stream| {
                        stream.delta = Arc::new(stream.delta.archived(snapshot.epoch));
                        stream.archive = snapshot;
                    });
                    writer = self.archive.begin();
                }
                Work::Chore(chore, answer) => self.chore(chore, answer)?,
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
        let done = self.io.block_on(async {
            match &chore {
                Chore::CatchUp => self.archive.catch_up().await,
                Chore::Rewrite(rewrite) => self.archive.rewrite(rewrite).await,
            }
        });
        let answered = match done {
            Ok(snapshot) => {
                self.cell.update_stream(&self.stream, |stream| stream.archive = Arc::clone(&snapshot));
                answer.send(Ok(snapshot))
            }
            Err(error) if error.is_retryable() || matches!(error, ArchiveError::Rewrite { .. }) => {
                answer.send(Err(error))
            }
            Err(error) => return Err(error),
        };
        // Who asked may have gone; the archive stands as it stands.
        drop(answered);
        Ok(())
    }

    /// Tries until it is committed; None when the process ends before that. Meanwhile the queue behind fills,
    /// intake waits, and reads go on.
    fn commit(&mut self, epoch: &EncodedEpoch) -> Result<Option<Arc<ArchiveSnapshot>>, ArchiveError> {
        loop {
            let began = Instant::now();
            match self.io.block_on(self.archive.commit(epoch)) {
                Ok(snapshot) => return Ok(Some(snapshot)),
                Err(error) if error.is_retryable() => {
                    let stream = &self.stream;
                    tracing::error!(stream, error = chain(&error), "commit failed; intake waits, will try again");
                    self.metrics.archive_commit(&self.stream, WorkOutcome::Failed, began.elapsed());
                    if self.sleep() {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// True when the process is ending.
    fn sleep(&self) -> bool {
        let until = Instant::now() + self.retry_interval;
        while Instant::now() < until {
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
