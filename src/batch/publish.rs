//! Generations in storage: the numbered manifests whose conditional creation is the one moment of publication.

use std::collections::BTreeSet;

use futures::TryStreamExt;

use super::Generation;
use super::run::RefreshError;
use crate::position::GenerationId;
use crate::storage::manifest::{ManifestLog, collectable};
use crate::storage::{Created, Storage, StorageError, object_error, paths};

/// The published generations.
#[derive(Debug)]
pub struct Generations {
    log: ManifestLog<Generation>,
    storage: Storage,
}

impl Generations {
    pub fn new(storage: &Storage) -> Self {
        Self { log: ManifestLog::new(storage, paths::generations()), storage: storage.clone() }
    }

    /// The newest generation; the empty one when nothing was published yet.
    pub async fn latest(&self) -> Result<Generation, StorageError> {
        Ok(self.log.latest().await?.map_or_else(Generation::empty, |(_, generation)| generation))
    }

    /// Those before `latest` that there are, at most `count`; oldest first.
    pub async fn before(&self, latest: GenerationId, count: usize) -> Result<Vec<Generation>, StorageError> {
        let mut found = Vec::new();
        let first = latest.0.saturating_sub(count as u64).max(1);
        for number in first..latest.0 {
            // One that was collected is no fault.
            found.extend(self.log.read(number).await?);
        }
        Ok(found)
    }

    /// Makes `generation` the newest, unless another process was first. The number of a generation that was
    /// collected is free again, so a process that slept meanwhile finds out afterwards that it is not the newest.
    pub async fn publish(&self, generation: &Generation) -> Result<(), RefreshError> {
        let number = generation.id.0;
        match self.log.create(number, generation).await? {
            Created::New | Created::MineAlready if self.log.newest_from(number).await? == number => Ok(()),
            Created::New | Created::MineAlready | Created::Taken => Err(RefreshError::Fenced(generation.id)),
        }
    }

    /// Deletes manifests that nobody needs once `oldest` is the oldest generation to be read. `all` looks for those
    /// that an earlier process has left, else only those that became free with the last refresh are looked at.
    pub async fn collect(&self, oldest: GenerationId, look: Look) -> Result<(), StorageError> {
        let present = match look {
            Look::Everywhere => self.log.numbers().await?,
            Look::JustFreed => (oldest.0.saturating_sub(2 * crate::storage::manifest::WAYMARK)..oldest.0).collect(),
        };
        for number in collectable(oldest.0, present) {
            self.log.delete(number).await?;
        }
        Ok(())
    }

    /// Every file of batch views that lies in storage.
    pub async fn view_files(&self) -> Result<BTreeSet<String>, StorageError> {
        let root = paths::views();
        let store = self.storage.store();
        let listed = store.list(Some(&root)).map_ok(|meta| meta.location.to_string());
        listed.try_collect().await.map_err(|source| object_error("list", &root, source))
    }
}

/// Where manifests are looked for that can be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    Everywhere,
    JustFreed,
}
