//! Generations in storage: the numbered manifests whose conditional creation is the one moment of publication.

use super::Generation;
use super::run::RefreshError;
use crate::storage::manifest::ManifestLog;
use crate::storage::{Created, Storage, StorageError, paths};

/// The published generations.
#[derive(Debug)]
pub struct Generations {
    log: ManifestLog<Generation>,
}

impl Generations {
    pub fn new(storage: &Storage) -> Self {
        Self { log: ManifestLog::new(storage, paths::generations()) }
    }

    /// The newest generation; the empty one when nothing was published yet.
    pub async fn latest(&self) -> Result<Generation, StorageError> {
        Ok(self.log.latest().await?.map_or_else(Generation::empty, |(_, generation)| generation))
    }

    /// Makes `generation` the newest, unless another process was first.
    pub async fn publish(&self, generation: &Generation) -> Result<(), RefreshError> {
        match self.log.create(generation.id.0, generation).await? {
            Created::New | Created::MineAlready => Ok(()),
            Created::Taken => Err(RefreshError::Fenced(generation.id)),
        }
    }
}
