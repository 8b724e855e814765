//! The topics of the broker: a directory each, named by the topic's id, so that a topic deleted and created
//! again shares nothing with its predecessor but the name.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kafka_protocol::ResponseError;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::disk::{self, DiskError};
use super::log::PartitionLog;

/// Every partition keeps a file open.
const PARTITIONS_PER_TOPIC_MAX: i32 = 1_000;
const TOPICS_MAX: usize = 1_000;
const NAME_BYTES_MAX: usize = 249;

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) id: Uuid,
    pub(super) name: String,
    directory: PathBuf,
    partitions: RwLock<Vec<Arc<Mutex<PartitionLog>>>>,
    configs: Mutex<BTreeMap<String, String>>,
}

/// What is on disk about a topic.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    name: String,
    partitions: i32,
    configs: BTreeMap<String, String>,
}

/// A topic operation that was not done.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error("topic {name}: {reason}")]
    Refused { name: String, reason: ResponseError },
    #[error("topic {name} could not be stored")]
    Disk { name: String, source: DiskError },
}

impl TopicError {
    pub(super) fn refused(name: &str, reason: ResponseError) -> Self {
        Self::Refused { name: name.to_owned(), reason }
    }

    fn disk(name: &str) -> impl FnOnce(DiskError) -> Self {
        let name = name.to_owned();
        move |source| Self::Disk { name, source }
    }

    /// What a client is told.
    pub(super) fn code(&self) -> i16 {
        match self {
            Self::Refused { reason, .. } => reason.code(),
            Self::Disk { .. } => ResponseError::KafkaStorageError.code(),
        }
    }
}

impl Topic {
    pub(super) fn partition(&self, partition: i32) -> Option<Arc<Mutex<PartitionLog>>> {
        self.partitions.read().get(usize::try_from(partition).ok()?).cloned()
    }

    /// All partitions; the place in the list is the number.
    pub(super) fn partitions(&self) -> Vec<Arc<Mutex<PartitionLog>>> {
        self.partitions.read().clone()
    }

    /// Settings that were given explicitly.
    pub(super) fn configs(&self) -> BTreeMap<String, String> {
        self.configs.lock().clone()
    }

    /// Changes settings; `None` removes one.
    pub(super) fn set_configs(&self, changes: Vec<(String, Option<String>)>) -> Result<(), TopicError> {
        let mut configs = self.configs.lock();
        let mut changed = configs.clone();
        for (key, value) in changes {
            match value {
                Some(value) => changed.insert(key, value),
                None => changed.remove(&key),
            };
        }
        self.describe(self.partitions.read().len(), &changed)?;
        *configs = changed;
        Ok(())
    }

    /// Adds partitions up to `total`.
    pub(super) fn grow(&self, total: i32) -> Result<(), TopicError> {
        let configs = self.configs.lock();
        let mut partitions = self.partitions.write();
        let current = partitions.len();
        let wanted = usize::try_from(total).unwrap_or(0);
        if wanted <= current || total > PARTITIONS_PER_TOPIC_MAX {
            return Err(TopicError::refused(&self.name, ResponseError::InvalidPartitions));
        }
        let added = (current..wanted)
            .map(|partition| open_partition(&self.directory, partition))
            .collect::<Result<Vec<_>, _>>()
            .map_err(TopicError::disk(&self.name))?;
        self.describe(wanted, &configs)?;
        partitions.extend(added);
        Ok(())
    }

    fn describe(&self, partitions: usize, configs: &BTreeMap<String, String>) -> Result<(), TopicError> {
        let description = Description {
            name: self.name.clone(),
            partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
            configs: configs.clone(),
        };
        disk::write(&description_path(&self.directory), &description).map_err(TopicError::disk(&self.name))
    }
}

/// All topics, by name and by id.
#[derive(Debug)]
pub(super) struct Topics {
    root: PathBuf,
    all: RwLock<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    by_name: BTreeMap<String, Arc<Topic>>,
    by_id: HashMap<Uuid, Arc<Topic>>,
}

impl Topics {
    /// Opens every topic below `root` and removes what a killed process left half made or half deleted.
    pub(super) fn open(root: PathBuf) -> Result<Self, DiskError> {
        fs::create_dir_all(&root).map_err(DiskError::io("create", &root))?;
        let mut registry = Registry::default();
        for entry in fs::read_dir(&root).map_err(DiskError::io("list", &root))? {
            let directory = entry.map_err(DiskError::io("list", &root))?.path();
            let id = directory.file_name().and_then(|name| Uuid::parse_str(name.to_str()?).ok());
            let Some(id) = id else {
                fs::remove_dir_all(&directory).map_err(DiskError::io("remove", &directory))?;
                continue;
            };
            if let Some(topic) = open_topic(id, directory)? {
                registry.insert(Arc::new(topic));
            }
        }
        Ok(Self { root, all: RwLock::new(registry) })
    }

    pub(super) fn named(&self, name: &str) -> Option<Arc<Topic>> {
        self.all.read().by_name.get(name).cloned()
    }

    pub(super) fn identified(&self, id: Uuid) -> Option<Arc<Topic>> {
        self.all.read().by_id.get(&id).cloned()
    }

    /// In order of their names.
    pub(super) fn all(&self) -> Vec<Arc<Topic>> {
        self.all.read().by_name.values().cloned().collect()
    }

    pub(super) fn create(
        &self,
        name: &str,
        partitions: i32,
        configs: BTreeMap<String, String>,
    ) -> Result<Arc<Topic>, TopicError> {
        let mut all = self.all.write();
        if all.by_name.contains_key(name) {
            return Err(TopicError::refused(name, ResponseError::TopicAlreadyExists));
        }
        may_create(name, partitions)?;
        if all.by_name.len() >= TOPICS_MAX {
            return Err(TopicError::refused(name, ResponseError::PolicyViolation));
        }
        let id = Uuid::new_v4();
        let directory = self.root.join(id.to_string());
        // Named aside until it is whole: the rename is what creates the topic.
        let staged = self.root.join(format!("{id}.new"));
        fs::create_dir(&staged).map_err(DiskError::io("create", &staged)).map_err(TopicError::disk(name))?;
        let description = Description { name: name.to_owned(), partitions, configs };
        disk::write(&description_path(&staged), &description)
            .and_then(|()| fs::rename(&staged, &directory).map_err(DiskError::io("rename", &staged)))
            .map_err(TopicError::disk(name))?;
        let opened = open_topic(id, directory.clone()).map_err(TopicError::disk(name))?;
        let topic = Arc::new(opened.expect("the description was written above"));
        all.insert(Arc::clone(&topic));
        Ok(topic)
    }

    /// Checks what [`Topics::create`] would check, and does nothing.
    pub(super) fn validate(&self, name: &str, partitions: i32) -> Result<(), TopicError> {
        match self.named(name) {
            Some(_) => Err(TopicError::refused(name, ResponseError::TopicAlreadyExists)),
            None => may_create(name, partitions),
        }
    }

    pub(super) fn delete(&self, topic: &Topic) -> Result<(), TopicError> {
        let mut all = self.all.write();
        if all.by_id.remove(&topic.id).is_none() {
            return Err(TopicError::refused(&topic.name, ResponseError::UnknownTopicOrPartition));
        }
        all.by_name.remove(&topic.name);
        let doomed = topic.directory.with_extension("deleted");
        fs::rename(&topic.directory, &doomed)
            .and_then(|()| fs::remove_dir_all(&doomed))
            .map_err(DiskError::io("remove", &topic.directory))
            .map_err(TopicError::disk(&topic.name))
    }
}

impl Registry {
    fn insert(&mut self, topic: Arc<Topic>) {
        self.by_id.insert(topic.id, Arc::clone(&topic));
        self.by_name.insert(topic.name.clone(), topic);
    }
}

fn may_create(name: &str, partitions: i32) -> Result<(), TopicError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let named = !name.is_empty() && name.len() <= NAME_BYTES_MAX && name != "." && name != "..";
    if !named || !name.bytes().all(legal) {
        return Err(TopicError::refused(name, ResponseError::InvalidTopicException));
    }
    if !(1..=PARTITIONS_PER_TOPIC_MAX).contains(&partitions) {
        return Err(TopicError::refused(name, ResponseError::InvalidPartitions));
    }
    Ok(())
}

fn open_topic(id: Uuid, directory: PathBuf) -> Result<Option<Topic>, DiskError> {
    let Some(description) = disk::read::<Description>(&description_path(&directory))? else {
        return Ok(None);
    };
    let partitions = (0..usize::try_from(description.partitions).unwrap_or(0))
        .map(|partition| open_partition(&directory, partition))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Topic {
        id,
        name: description.name,
        directory,
        partitions: RwLock::new(partitions),
        configs: Mutex::new(description.configs),
    }))
}

fn open_partition(directory: &Path, partition: usize) -> Result<Arc<Mutex<PartitionLog>>, DiskError> {
    let log = PartitionLog::open(directory.join(format!("{partition}.log")))?;
    Ok(Arc::new(Mutex::new(log)))
}

fn description_path(directory: &Path) -> PathBuf {
    directory.join("topic.json")
}
