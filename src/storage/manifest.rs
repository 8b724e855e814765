//! Numbered JSON documents, each created once: the log by which generations are published.
//!
//! Document n is `<dir>/<20 digits of n>.json` and holds its own SHA-256, so that a damaged one is an error
//! that names it, never a guess. Which is the newest is found by number: a listing or a hint only tells where
//! to begin looking, because listings may be stale.
//!
//! Old documents may be deleted, and the newest must be found by number all the same: so every [`WAYMARK`]th one
//! stays for good, and all from the last of them before the oldest that is needed. Whoever walks by number and
//! finds a gap goes on at the next waymark.

use std::fmt;
use std::marker::PhantomData;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Created, Storage, StorageError, object_error, paths, sha256_hex};

/// Documents whose number is a multiple of this are never deleted.
pub const WAYMARK: u64 = 64;

/// Those of `present` that may be deleted when `oldest` is the oldest that is needed.
pub fn collectable(oldest: u64, present: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let floor = oldest / WAYMARK * WAYMARK;
    present.into_iter().filter(|number| *number < floor && number % WAYMARK != 0).collect()
}

/// A directory of numbered documents of type `T`.
pub struct ManifestLog<T> {
    storage: Storage,
    dir: Path,
    _documents: PhantomData<fn() -> T>,
}

/// How a document lies on disk: the digest covers the exact text of the body.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    sha256: String,
    #[serde(borrow)]
    body: &'a RawValue,
}

impl<T: Serialize + DeserializeOwned> ManifestLog<T> {
    pub fn new(storage: &Storage, dir: Path) -> Self {
        Self { storage: storage.clone(), dir, _documents: PhantomData }
    }

    /// Creates document `number` unless it exists.
    pub async fn create(&self, number: u64, document: &T) -> Result<Created, StorageError> {
        let path = self.path(number);
        let bytes = encode(document).map_err(|error| damaged(&path, format!("cannot be encoded: {error}")))?;
        let created = self.storage.create(&path, bytes).await?;
        if created != Created::Taken {
            // A lost or late hint costs a listing, nothing else.
            if let Err(error) = self.storage.overwrite(&self.hint_path(), number.to_string().into()).await {
                tracing::debug!(%path, %error, "hint not written");
            }
        }
        Ok(created)
    }

    /// Document `number`; None when it does not exist.
    pub async fn read(&self, number: u64) -> Result<Option<T>, StorageError> {
        let path = self.path(number);
        match self.storage.read(&path).await? {
            Some(bytes) => decode(&bytes).map(Some).map_err(|reason| damaged(&path, reason)),
            None => Ok(None),
        }
    }

    /// The newest document and its number; None when there is none.
    pub async fn latest(&self) -> Result<Option<(u64, T)>, StorageError> {
        let hint = self.hint().await;
        let listed = self.listed().await;
        let known = match (hint, listed) {
            (Ok(hint), Ok(listed)) => hint.max(listed),
            (Ok(Some(hint)), Err(_)) => Some(hint),
            (Err(_), Ok(listed)) => listed,
            (_, Err(error)) => return Err(error),
        };
        let begin = match known {
            Some(number) if self.read(number).await?.is_some() => number,
            // It may have been collected meanwhile; the waymarks lead to what came after it.
            _ => 0,
        };
        let number = self.newest_from(begin).await?;
        if let Some(known) = known.filter(|known| *known > number) {
            return Err(damaged(&self.path(known), "it was there and is missing now".to_owned()));
        }
        if number == 0 {
            return Ok(None);
        }
        let document = self.read(number).await?;
        document.map_or_else(
            || Err(damaged(&self.path(number), "it was there and is missing now".to_owned())),
            |document| Ok(Some((number, document))),
        )
    }

    /// Number of the newest document at or after `number`, which exists or is 0.
    pub async fn newest_from(&self, number: u64) -> Result<u64, StorageError> {
        let mut newest = number;
        loop {
            let waymark = (newest / WAYMARK + 1) * WAYMARK;
            newest = if self.read(newest + 1).await?.is_some() {
                newest + 1
            } else if self.read(waymark).await?.is_some() {
                waymark
            } else {
                return Ok(newest);
            };
        }
    }

    /// The numbers of all documents, as listed.
    pub async fn numbers(&self) -> Result<Vec<u64>, StorageError> {
        let listed = self.storage.store();
        let found = listed
            .list(Some(&self.dir))
            .try_filter_map(|meta| async move { Ok(meta.location.filename().and_then(paths::numbered_json)) });
        found.try_collect().await.map_err(|source| object_error("list", &self.dir, source))
    }

    /// Deletes document `number`; that it is gone already is no fault. See [`collectable`].
    pub async fn delete(&self, number: u64) -> Result<(), StorageError> {
        let path = self.path(number);
        match self.storage.store().delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(object_error("delete", &path, source)),
        }
    }

    async fn hint(&self) -> Result<Option<u64>, StorageError> {
        let bytes = self.storage.read(&self.hint_path()).await?;
        Ok(bytes.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.trim().parse().ok()))
    }

    async fn listed(&self) -> Result<Option<u64>, StorageError> {
        Ok(self.numbers().await?.into_iter().max())
    }

    fn path(&self, number: u64) -> Path {
        self.dir.clone().join(format!("{}.json", paths::padded(number)))
    }

    fn hint_path(&self) -> Path {
        self.dir.clone().join("_newest")
    }
}

impl<T> fmt::Debug for ManifestLog<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ManifestLog({}/{})", self.storage, self.dir)
    }
}

fn damaged(path: &Path, reason: String) -> StorageError {
    StorageError::Damaged { path: path.to_string(), reason }
}

fn encode<T: Serialize>(document: &T) -> serde_json::Result<Bytes> {
    let body = serde_json::value::to_raw_value(document)?;
    let envelope = Envelope { sha256: sha256_hex(body.get().as_bytes()), body: &body };
    let mut bytes = serde_json::to_vec(&envelope)?;
    bytes.push(b'\n');
    Ok(bytes.into())
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if sha256_hex(envelope.body.get().as_bytes()) != envelope.sha256 {
        return Err("its content does not match its SHA-256".to_owned());
    }
    serde_json::from_str(envelope.body.get()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::faults::{Fault, FaultyStore};
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Document {
        text: String,
    }

    fn document(text: &str) -> Document {
        Document { text: text.to_owned() }
    }

    fn log(storage: &Storage) -> ManifestLog<Document> {
        ManifestLog::new(storage, Path::from("log"))
    }

    #[tokio::test]
    async fn the_first_creator_wins_and_latest_follows() {
        let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
        let log = log(&storage);
        assert_eq!(log.latest().await.unwrap(), None);
        for n in 1..=12 {
            assert_eq!(log.create(n, &document(&n.to_string())).await.unwrap(), Created::New);
        }
        assert_eq!(log.create(12, &document("12")).await.unwrap(), Created::MineAlready);
        assert_eq!(log.create(12, &document("other")).await.unwrap(), Created::Taken);
        assert_eq!(log.latest().await.unwrap(), Some((12, document("12"))));
        assert_eq!(log.read(3).await.unwrap(), Some(document("3")));
        assert_eq!(log.read(13).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_stale_or_failing_listing_hides_nothing() {
        let faulty = FaultyStore::in_memory();
        let storage = faulty.storage();
        let log = log(&storage);
        for n in 1..=3 {
            log.create(n, &document("x")).await.unwrap();
        }
        // Neither the hint nor the listing knows of 4 and 5.
        let hint = storage.read(&log.hint_path()).await.unwrap().unwrap();
        faulty.freeze_listing().await;
        for n in 4..=5 {
            log.create(n, &document("y")).await.unwrap();
        }
        storage.overwrite(&log.hint_path(), hint).await.unwrap();
        assert_eq!(log.latest().await.unwrap().unwrap().0, 5);
        faulty.break_listing();
        assert_eq!(log.latest().await.unwrap().unwrap().0, 5);
        storage.overwrite(&log.hint_path(), Bytes::from_static(b"garbage")).await.unwrap();
        assert!(log.latest().await.is_err(), "with no hint and no listing nothing is known");
    }

    #[tokio::test]
    async fn every_flipped_bit_is_found_and_the_file_named() {
        let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
        let log = log(&storage);
        log.create(1, &document("money")).await.unwrap();
        let path = log.path(1);
        let good = storage.read(&path).await.unwrap().unwrap();
        for position in 0..good.len() - 1 {
            let mut bad = good.to_vec();
            bad[position] ^= 0x01;
            storage.overwrite(&path, bad.into()).await.unwrap();
            let error = log.latest().await.unwrap_err().to_string();
            assert!(error.contains("log/00000000000000000001.json"), "byte {position}: {error}");
        }
    }

    #[tokio::test]
    async fn a_vanished_newest_document_is_an_error() {
        let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
        let log = log(&storage);
        log.create(1, &document("a")).await.unwrap();
        log.create(2, &document("b")).await.unwrap();
        storage.store().delete(&log.path(2)).await.unwrap();
        let error = log.latest().await.unwrap_err().to_string();
        assert!(error.contains("00000000000000000002.json"), "{error}");
    }

    #[test]
    fn waymarks_and_what_follows_the_last_of_them_stay() {
        assert_eq!(collectable(63, 1..100), Vec::<u64>::new());
        assert_eq!(collectable(64, 1..100), (1..64).collect::<Vec<_>>());
        let freed = collectable(200, 1..300);
        assert!(freed.iter().all(|number| *number < 192 && number % 64 != 0));
        assert_eq!(freed.len(), 191 - 2);
    }

    #[tokio::test]
    async fn the_newest_is_found_by_number_after_old_ones_were_deleted() {
        let faulty = FaultyStore::in_memory();
        let storage = faulty.storage();
        let log = log(&storage);
        let stale = Bytes::from_static(b"7");
        for n in 1..=300 {
            log.create(n, &document("x")).await.unwrap();
            if n == 7 {
                faulty.freeze_listing().await;
            }
        }
        for number in collectable(277, 1..=300) {
            log.delete(number).await.unwrap();
        }
        assert_eq!(log.read(7).await.unwrap(), None);
        // Neither the hint nor the listing knows of anything that is still there.
        storage.overwrite(&log.hint_path(), stale).await.unwrap();
        assert_eq!(log.latest().await.unwrap().unwrap().0, 300);
        for number in [0, 6, 64, 100, 255, 256, 299, 300] {
            assert_eq!(log.newest_from(number).await.unwrap(), 300, "from {number}");
        }
        // A writer that slept since generation 6 gets the number, and learns that it is not the newest.
        assert_eq!(log.create(7, &document("late")).await.unwrap(), Created::New);
        assert_eq!(log.newest_from(7).await.unwrap(), 300);
    }

    #[tokio::test]
    async fn a_full_disk_may_be_tried_again() {
        let faulty = FaultyStore::in_memory();
        let log = log(&faulty.storage());
        faulty.fail_write(0, Fault::DiskFull);
        assert!(log.create(1, &document("a")).await.unwrap_err().is_retryable());
        assert_eq!(log.create(1, &document("a")).await.unwrap(), Created::New);
    }
}
