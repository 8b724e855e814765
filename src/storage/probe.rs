//! Whether storage does what commits depend on, tried with an object of no meaning.

use bytes::Bytes;
use object_store::ObjectStoreExt;

use super::{Created, Storage, StorageError, object_error, paths};
use crate::runtime::Micros;

/// What storage did with the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Whether the second of two creations was refused: without that, two writers overwrite each other's commits.
    pub creates_once: bool,
    /// When the object was made, by the clock of the store.
    pub made_at: Micros,
}

/// Creates an object, tries to create it again with other bytes, and deletes it.
///
/// # Errors
/// When it cannot be written, read or deleted.
pub async fn probe(storage: &Storage) -> Result<Probe, StorageError> {
    let path = paths::probe();
    storage.create(&path, Bytes::from_static(b"first")).await?;
    let second = storage.create(&path, Bytes::from_static(b"second")).await;
    let stored = storage.read(&path).await;
    let made = storage.store.head(&path).await.map_err(|source| object_error("look at", &path, source));
    storage.store.delete(&path).await.map_err(|source| object_error("delete", &path, source))?;
    let untouched = stored?.is_some_and(|bytes| bytes.as_ref() == b"first");
    Ok(Probe {
        creates_once: second? == Created::Taken && untouched,
        made_at: made?.last_modified.timestamp_micros(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use futures::StreamExt;
    use object_store::ObjectStore;
    use object_store::memory::InMemory;

    use super::*;
    use crate::storage::faults::{Fault, FaultyStore};

    #[tokio::test]
    async fn a_sound_store_is_told_as_such_and_left_empty() {
        let dir = tempfile::tempdir().unwrap();
        let local = Storage::open(&dir.path().display().to_string(), std::iter::empty()).unwrap();
        for storage in [local, Storage::over(Arc::new(InMemory::new()))] {
            let probe = probe(&storage).await.unwrap();
            assert!(probe.creates_once && probe.made_at > 1_700_000_000_000_000, "{probe:?}");
            assert_eq!(storage.store().list(None).count().await, 0);
        }
    }

    #[tokio::test]
    async fn a_store_that_overwrites_is_found() {
        let store = FaultyStore::in_memory();
        store.fail_write(1, Fault::Overwriting);
        assert!(!probe(&store.storage()).await.unwrap().creates_once);
    }
}
