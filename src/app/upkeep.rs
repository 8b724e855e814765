//! Keeps the archive's house while it serves: puts small files together, and removes what nobody needs any more.
//!
//! One task for all streams, one piece of work at a time, on the threads for batch work. It decides nothing about the
//! log: the committer of a stream makes every commit, so epochs and rewrites follow each other in one order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use object_store::ObjectStoreExt;
use tokio::sync::oneshot;

use crate::archive::compact::{self, CompactError, Damaged, Workbench};
use crate::archive::keep::{Fate, classify};
use crate::archive::rewrite::{self, Rewrite};
use crate::archive::{ArchiveError, ArchiveSnapshot};
use crate::catalog::stream::Stream;
use crate::config;
use crate::engine::Engine;
use crate::ingest::committer::{Chore, Work};
use crate::merge::census::Census;
use crate::merge::snapshot::SnapshotCell;
use crate::runtime::{Clock, Shutdown, chain};
use crate::storage::{Storage, StorageError};

/// What upkeep works with.
pub struct Upkeep {
    pub engine: Arc<Engine>,
    pub storage: Storage,
    pub streams: BTreeMap<String, Arc<Stream>>,
    pub committers: BTreeMap<String, SyncSender<Work>>,
    pub cell: Arc<SnapshotCell>,
    pub census: Arc<Census>,
    pub clock: Arc<dyn Clock>,
    pub shutdown: Shutdown,
    pub settings: config::Archive,
}

impl std::fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upkeep").field("streams", &self.streams.keys()).finish_non_exhaustive()
    }
}

/// Why a round of upkeep of a stream ended early; the next one tries again.
#[derive(Debug, thiserror::Error)]
enum UpkeepError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Compact(#[from] CompactError),
    #[error("its committer has stopped")]
    Stopped,
}

impl Upkeep {
    /// A round now and one every `archive.upkeep_interval`, until shutdown. Holds a sender of each committer, so it
    /// must end before they do.
    pub async fn run(self) {
        loop {
            for (name, stream) in &self.streams {
                match self.round(name, stream).await {
                    Ok(()) | Err(UpkeepError::Compact(CompactError::Cancelled) | UpkeepError::Stopped) => {}
                    Err(error) => tracing::error!(stream = name, error = chain(&error), "upkeep failed"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.settings.upkeep_interval) => {}
                () = self.shutdown.wait() => return,
            }
        }
    }

    async fn round(&self, name: &str, stream: &Stream) -> Result<(), UpkeepError> {
        self.collect(name).await?;
        let mut damaged = self.still_damaged(name).await;
        let done = self.compact(name, stream, &mut damaged).await;
        self.census.set_damaged(name, damaged);
        done
    }

    /// Of the files that were found damaged, those that nobody restored.
    async fn still_damaged(&self, name: &str) -> Damaged {
        let snapshot = self.cell.load();
        let mut still = Damaged::new();
        for (path, reason) in self.census.damaged(name) {
            let files = snapshot.streams.get(name).map(|stream| &stream.archive.files);
            let file = files.and_then(|files| files.iter().find(|file| file.path.as_ref() == path));
            if let Some(file) = file
                && file.verify(&self.storage).await.is_err()
            {
                still.insert(path, reason);
            }
        }
        still
    }

    /// Puts files together until none are due. Damaged ones are noted and stepped around.
    async fn compact(&self, name: &str, stream: &Stream, damaged: &mut Damaged) -> Result<(), UpkeepError> {
        let target = u64::try_from(self.settings.compact_bytes_target).unwrap_or(u64::MAX);
        while !self.shutdown.is_triggered() {
            let snapshot = self.cell.load();
            let Some(state) = snapshot.streams.get(name) else { return Ok(()) };
            let below = snapshot.generation.epoch(name);
            let Some(files) = compact::due(&state.archive, below, target, damaged) else { return Ok(()) };
            drop(snapshot);
            let bench =
                Workbench { engine: &self.engine, storage: &self.storage, stream, shutdown: &self.shutdown };
            let rewrite = match bench.put_together(files).await {
                Err(CompactError::Storage(StorageError::Damaged { path, reason })) => {
                    tracing::error!(stream = name, path, reason, "archive file is damaged; restore it from a copy");
                    damaged.insert(path, reason);
                    continue;
                }
                done => done?,
            };
            let (files, rows, bytes) = (rewrite.files(), rewrite.rows(), rewrite.bytes());
            self.committed(name, rewrite).await?;
            tracing::info!(stream = name, files, rows, bytes, "archive files put together");
        }
        Ok(())
    }

    /// Classifies every file of a stream's table, then deletes what may go.
    async fn collect(&self, name: &str) -> Result<(), UpkeepError> {
        // The listing first: what is committed after it is not in it. Then the log, which also tells whether this
        // process still is the writer: one that was fenced deletes nothing.
        let listed = rewrite::list(&self.storage, name).await?;
        let snapshot = self.caught_up(name).await?;
        let unneeded = classify(listed, &snapshot, self.clock.now(), self.settings.retention);
        drop(snapshot);
        let (doomed, kept): (Vec<_>, Vec<_>) = unneeded.into_iter().partition(|file| file.fate == Fate::Delete);
        self.census.set_unneeded(name, kept);
        for doomed in doomed {
            let (path, state) = (&doomed.file.path, doomed.state.name());
            match self.storage.store().delete(path).await {
                Ok(()) => tracing::debug!(%path, state, "archive file deleted"),
                Err(error) => tracing::warn!(%path, state, %error, "archive file not deleted"),
            }
        }
        Ok(())
    }

    async fn committed(&self, name: &str, rewrite: Rewrite) -> Result<Arc<ArchiveSnapshot>, UpkeepError> {
        self.ask(name, |answer| Work::Chore(Chore::Rewrite(rewrite), answer)).await
    }

    async fn caught_up(&self, name: &str) -> Result<Arc<ArchiveSnapshot>, UpkeepError> {
        self.ask(name, |answer| Work::Chore(Chore::CatchUp, answer)).await
    }

    async fn ask(
        &self,
        name: &str,
        work: impl FnOnce(oneshot::Sender<Result<Arc<ArchiveSnapshot>, ArchiveError>>) -> Work,
    ) -> Result<Arc<ArchiveSnapshot>, UpkeepError> {
        let committer = self.committers.get(name).ok_or(UpkeepError::Stopped)?;
        let (answer, answered) = oneshot::channel();
        let (committer, work) = (committer.clone(), work(answer));
        // It waits its turn among those that wait for a place in the queue: one that asks again and again is never
        // served while intake fills every place at once.
        let sent = tokio::task::spawn_blocking(move || committer.send(work).is_ok()).await;
        if !matches!(sent, Ok(true)) {
            return Err(UpkeepError::Stopped);
        }
        Ok(answered.await.map_err(|_| UpkeepError::Stopped)??)
    }
}
