//! Committed group offsets. Viewledger writes them for monitoring tools and never reads them back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kafka_protocol::ResponseError;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::disk::{self, DiskError};

const GROUPS_MAX: usize = 10_000;
/// Same as Kafka's `offset.metadata.max.bytes`.
const METADATA_BYTES_MAX: usize = 4096;

/// Where a group stands in one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Committed {
    pub(super) offset: i64,
    pub(super) leader_epoch: i32,
    pub(super) metadata: String,
}

type Offsets = BTreeMap<String, BTreeMap<i32, Committed>>;

#[derive(Debug)]
pub(super) struct Groups {
    path: PathBuf,
    committed: Mutex<BTreeMap<String, Offsets>>,
}

impl Groups {
    pub(super) fn open(path: PathBuf) -> Result<Self, DiskError> {
        let committed = disk::read(&path)?.unwrap_or_default();
        Ok(Self { path, committed: Mutex::new(committed) })
    }

    /// Checks a commit without storing it.
    pub(super) fn may_commit(&self, group: &str, committed: &Committed) -> Result<(), ResponseError> {
        if committed.metadata.len() > METADATA_BYTES_MAX {
            return Err(ResponseError::OffsetMetadataTooLarge);
        }
        let all = self.committed.lock();
        match all.len() >= GROUPS_MAX && !all.contains_key(group) {
            true => Err(ResponseError::PolicyViolation),
            false => Ok(()),
        }
    }

    /// Stores (group, topic, partition, offset) tuples in one write.
    pub(super) fn commit_all(&self, commits: &[(String, String, i32, Committed)]) -> Result<(), DiskError> {
        if commits.is_empty() {
            return Ok(());
        }
        let mut all = self.committed.lock();
        for (group, topic, partition, committed) in commits {
            let topics = all.entry(group.clone()).or_default();
            topics.entry(topic.clone()).or_default().insert(*partition, committed.clone());
        }
        disk::write(&self.path, &*all)
    }

    pub(super) fn fetch(&self, group: &str, topic: &str, partition: i32) -> Option<Committed> {
        self.committed.lock().get(group)?.get(topic)?.get(&partition).cloned()
    }

    /// Every offset of a group.
    pub(super) fn fetch_all(&self, group: &str) -> Vec<(String, Vec<i32>)> {
        let all = self.committed.lock();
        let topics = all.get(group).into_iter().flatten();
        topics.map(|(topic, partitions)| (topic.clone(), partitions.keys().copied().collect())).collect()
    }

    /// Forgets a deleted topic, so that its successor does not inherit positions.
    pub(super) fn forget_topic(&self, topic: &str) -> Result<(), DiskError> {
        let mut all = self.committed.lock();
        let mut found = false;
        for topics in all.values_mut() {
            found |= topics.remove(topic).is_some();
        }
        match found {
            true => disk::write(&self.path, &*all),
            false => Ok(()),
        }
    }
}
