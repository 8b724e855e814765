//! Keeps the generations that can be read, and deletes what nobody needs any more.

use std::collections::BTreeSet;
use std::sync::Arc;

use object_store::ObjectStoreExt;
use object_store::path::Path;

use super::Refresher;
use crate::batch::Generation;
use crate::batch::attempt::Attempt;
use crate::batch::gc::{self, Needed, Retired};
use crate::batch::publish::Look;
use crate::storage::StorageError;

impl Refresher {
    /// Puts the generations of earlier processes on the shelf, those whose files are all there.
    pub(super) async fn fill_shelf(&self, latest: &Arc<Generation>) -> Result<(), StorageError> {
        if latest.id.0 == 0 {
            return Ok(());
        }
        let files = self.generations.view_files().await?;
        for older in self.generations.before(latest.id, self.means.generations_max.saturating_sub(1)).await? {
            let older = Arc::new(older);
            match gc::files([&older]).difference(&files).next() {
                None => drop(self.legacy.shelf.add(older)),
                Some(missing) => {
                    let generation = older.id.0;
                    tracing::debug!(generation, missing, "an old generation cannot be read any more");
                }
            }
        }
        drop(self.legacy.shelf.add(Arc::clone(latest)));
        Ok(())
    }

    /// Puts the newest generation on the shelf; those that make room are collected once nobody reads them.
    pub(super) fn shelve(&self, retired: &mut Retired, next: &Arc<Generation>) {
        for old in self.legacy.shelf.add(Arc::clone(next)) {
            retired.retire(&old);
        }
    }

    /// Deletes files of retired generations without readers, and those of `written` that no generation names.
    pub(super) async fn collect(
        &self,
        retired: &mut Retired,
        current: &Generation,
        written: impl Iterator<Item = String>,
    ) {
        let (read, dead) = retired.sorted();
        let needed = self.needed(current, read);
        // Manifests first: what they name then is an orphan, which the next start finds, whenever we crash.
        self.collect_manifests(Look::JustFreed).await;
        self.delete(needed.garbage(dead.into_iter().chain(written))).await;
    }

    /// Deletes what earlier processes left: orphans of crashed attempts, and generations beyond the limit.
    pub(super) async fn sweep(&self, current: &Generation) {
        if current.id.0 == 0 {
            return;
        }
        match self.generations.view_files().await {
            Ok(files) => {
                let needed = self.needed(current, BTreeSet::new());
                self.collect_manifests(Look::Everywhere).await;
                let garbage = needed.garbage(files);
                if !garbage.is_empty() {
                    tracing::info!(files = garbage.len(), "deleting files of batch views that nobody needs");
                }
                self.delete(garbage).await;
            }
            Err(error) => tracing::warn!(%error, "files of batch views not listed: none is collected for now"),
        }
    }

    /// Deletes what an attempt wrote that was not published.
    pub(super) async fn discard(&self, attempt: &Attempt) {
        self.delete(attempt.written()).await;
    }

    fn needed(&self, current: &Generation, read: BTreeSet<String>) -> Needed {
        Needed { current: current.id, kept: gc::files(self.legacy.shelf.readable().iter()), read }
    }

    async fn collect_manifests(&self, look: Look) {
        let Some(oldest) = self.legacy.shelf.readable().first().map(|generation| generation.id) else { return };
        if let Err(error) = self.generations.collect(oldest, look).await {
            tracing::warn!(%error, "manifest of an old generation not deleted");
        }
    }

    async fn delete(&self, files: Vec<String>) {
        for file in files {
            match self.means.storage.store().delete(&Path::from(file.as_str())).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                // The next start finds it.
                Err(error) => tracing::warn!(file, %error, "file of batch views not deleted"),
            }
        }
    }
}
