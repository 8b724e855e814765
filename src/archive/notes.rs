//! What is written beside the commits, which need none of it: the newest epoch, by which a lost end of the log is
//! noticed, and checkpoints, by which it is read faster.

use super::{Archive, commit};
use crate::runtime::{Health, spawn};

impl Archive {
    /// Notes the newest epoch and, every so many versions, writes a checkpoint: both beside the commits, which
    /// need neither, and one task at a time.
    pub(super) fn begin_upkeep(&mut self) {
        let (storage, paths, stream) = (self.storage.clone(), self.paths.clone(), self.stream.clone());
        let (version, epoch) = (self.state.version, self.snapshot.epoch);
        let due = version >= self.checkpoint + commit::CHECKPOINT_EVERY;
        if due {
            self.checkpoint = version;
        }
        // A failure only makes the next start slower or less wary, so it does not poison the process.
        let health = Health::default();
        self.upkeep = Some(spawn("archive-upkeep", &health, async move {
            if let Err(error) = storage.overwrite(&paths.witness(), epoch.to_string().into()).await {
                tracing::warn!(stream, %error, "newest epoch not noted");
            }
            if due {
                match commit::write_checkpoint(&storage, &paths, version).await {
                    Ok(()) => tracing::debug!(stream, version, "checkpoint written"),
                    Err(error) => tracing::warn!(stream, version, ?error, "checkpoint not written"),
                }
            }
        }));
    }

    /// Ends the work beside the commits in good order; for shutdown.
    pub async fn settle(&mut self) {
        let busy = self.upkeep.take();
        if let Some(task) = busy {
            // The task reports its own failure.
            let _ = task.await;
        }
        // Commits that came while it was busy are not noted yet.
        self.begin_upkeep();
        if let Some(task) = self.upkeep.take() {
            let _ = task.await;
        }
    }
}
