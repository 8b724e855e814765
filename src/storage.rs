//! The one root under which everything durable lives: a local directory or a bucket of an object store.
//!
//! Everything is an immutable object that is created once. [`Storage::create`] is the only primitive on
//! which commits are built: of several writers exactly one gets [`Created::New`], and a writer whose answer
//! was lost finds out by comparing what is stored (apache/arrow-rs-object-store#852).

use std::fmt;
use std::io;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use url::Url;

pub mod blocks;
pub mod local;
pub mod lock;
pub mod manifest;
pub mod merging;
pub mod parquet;
pub mod paths;
pub mod probe;
pub mod scan;
mod verified;

#[cfg(test)]
pub mod faults;

use local::DurableFileSystem;

/// Handle to the storage root; cloning shares it.
#[derive(Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    location: Arc<str>,
    local_dir: Option<Arc<FsPath>>,
}

/// What a conditional create found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The object did not exist and now does, with our bytes.
    New,
    /// The object exists with exactly our bytes: an earlier attempt succeeded although its answer was lost.
    MineAlready,
    /// The object exists with other bytes: somebody else was first.
    Taken,
}

/// Why storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("storage location \"{location}\" is not usable: {reason}")]
    Location { location: String, reason: String },
    #[error("cannot write to data directory {}: make it writable or choose another one", dir.display())]
    Directory { dir: PathBuf, source: io::Error },
    #[error(
        "another viewledger process (pid {pid}) uses {}; stop it or choose another data directory",
        dir.display()
    )]
    Locked { dir: PathBuf, pid: String },
    #[error("cannot {action} {path}")]
    Object { action: &'static str, path: String, source: object_store::Error },
    #[error("{path} is damaged: {reason}; restore it from a copy, it is not rebuilt by itself")]
    Damaged { path: String, reason: String },
    #[error("cannot encode {path}")]
    Encode { path: String, source: ::parquet::errors::ParquetError },
}

impl StorageError {
    /// True for failures that may pass by themselves (disk full, store unreachable): the same call may be
    /// made again. False for those after which memory and disk may disagree, for example a failed fsync:
    /// the process must end and read again what is stored.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Object { source, .. } => passes(source),
            Self::Location { .. }
            | Self::Directory { .. }
            | Self::Locked { .. }
            | Self::Damaged { .. }
            | Self::Encode { .. } => false,
        }
    }

    /// True when the object that was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Object { source: object_store::Error::NotFound { .. }, .. })
    }
}

/// Whether a failure of the store may pass without anybody changing the configuration or the data.
pub fn passes(error: &object_store::Error) -> bool {
    use object_store::Error;
    match error {
        Error::Generic { .. } | Error::JoinError { .. } => io_cause(error).is_none_or(io_passes),
        // A conditional create lost a race that left no object, as S3 reports with status 409.
        Error::AlreadyExists { .. } | Error::Precondition { .. } => true,
        _ => false,
    }
}

fn io_cause(error: &object_store::Error) -> Option<&io::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = current.source();
    }
    None
}

fn io_passes(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    error.raw_os_error() != Some(EIO)
        && !matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

impl Storage {
    /// Opens a storage root. `location` is a directory (created when absent) or a URL (`file://`, `s3://`,
    /// `gs://`, `az://`, `https://`, `memory:///`); `options` are object_store's keys, such as
    /// `aws_access_key_id`.
    pub fn open(location: &str, options: impl Iterator<Item = (String, String)>) -> Result<Self, StorageError> {
        let unusable = |reason: String| StorageError::Location { location: location.to_owned(), reason };
        if !location.contains("://") {
            return Self::open_directory(FsPath::new(location));
        }
        let url = Url::parse(location).map_err(|error| unusable(error.to_string()))?;
        if url.scheme() == "file" {
            let path = url.to_file_path().map_err(|()| unusable("not an absolute path".to_owned()))?;
            return Self::open_directory(&path);
        }
        let (store, prefix) =
            object_store::parse_url_opts(&url, options).map_err(|error| unusable(error.to_string()))?;
        let store: Arc<dyn ObjectStore> = Arc::from(store);
        let store = if prefix.as_ref().is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) };
        Ok(Self { store, location: location.into(), local_dir: None })
    }

    /// As [`Storage::open`], where there is storage already: a directory is neither made nor probed, and may be read-only.
    pub fn open_existing(
        location: &str,
        options: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, StorageError> {
        let path = match location.strip_prefix("file://") {
            Some(path) => path,
            None if location.contains("://") => return Self::open(location, options),
            None => location,
        };
        let unusable = |reason: String| StorageError::Location { location: location.to_owned(), reason };
        let dir = std::fs::canonicalize(path).map_err(|error| unusable(error.to_string()))?;
        let store = DurableFileSystem::new(&dir).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { store: Arc::new(store), location: dir.display().to_string().into(), local_dir: Some(dir.into()) })
    }

    fn open_directory(dir: &FsPath) -> Result<Self, StorageError> {
        let refused = |source| StorageError::Directory { dir: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(refused)?;
        let dir = std::fs::canonicalize(dir).map_err(refused)?;
        let probe = dir.join(format!(".writable-{}", std::process::id()));
        std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)).map_err(refused)?;
        let store = DurableFileSystem::new(&dir).map_err(|error| StorageError::Location {
            location: dir.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Self { store: Arc::new(store), location: dir.display().to_string().into(), local_dir: Some(dir.into()) })
    }

    /// A storage root over a store that already exists, for example one that injects faults.
    pub fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, location: "custom store".into(), local_dir: None }
    }

    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// Under which URL the store is registered in DataFusion. It is a name of our own, so that registering
    /// it never opens the machine's other files to SQL.
    pub fn url(&self) -> &'static Url {
        scan::registration_url()
    }

    /// The directory, when storage is local.
    pub fn local_dir(&self) -> Option<&FsPath> {
        self.local_dir.as_deref()
    }

    /// Removes what writes that a crash cut short left in a local directory, and says how many there were.
    /// The lock proves that nobody else is writing.
    pub fn sweep(&self, _held: &lock::ProcessLock) -> Result<usize, StorageError> {
        match self.local_dir() {
            Some(dir) => {
                local::sweep(dir).map_err(|source| StorageError::Directory { dir: dir.to_owned(), source })
            }
            None => Ok(0),
        }
    }

    /// Creates an object unless it exists. A failure is reported only when the object is certainly absent
    /// or nothing can be said; a lost answer is resolved by reading what is stored.
    pub async fn create(&self, path: &Path, bytes: Bytes) -> Result<Created, StorageError> {
        let mode = PutOptions::from(PutMode::Create);
        let Err(refusal) = self.store.put_opts(path, bytes.clone().into(), mode).await else {
            return Ok(Created::New);
        };
        match self.read(path).await {
            Ok(Some(stored)) if stored == bytes => Ok(Created::MineAlready),
            Ok(Some(_)) => Ok(Created::Taken),
            Err(unread) if matches!(refusal, object_store::Error::AlreadyExists { .. }) => Err(unread),
            Ok(None) | Err(_) => Err(object_error("create", path, refusal)),
        }
    }

    /// Writes an object whose loss or staleness does no harm, such as a hint.
    pub async fn overwrite(&self, path: &Path, bytes: Bytes) -> Result<(), StorageError> {
        let written = self.store.put(path, bytes.into()).await;
        written.map(|_| ()).map_err(|source| object_error("write", path, source))
    }

    /// The bytes of an object; None when it does not exist.
    pub async fn read(&self, path: &Path) -> Result<Option<Bytes>, StorageError> {
        let body = match self.store.get(path).await {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        match body {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(object_error("read", path, source)),
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({})", self.location)
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.location)
    }
}

pub(crate) fn object_error(action: &'static str, path: &Path, source: object_store::Error) -> StorageError {
    StorageError::Object { action, path: path.to_string(), source }
}

/// SHA-256 as 64 hexadecimal digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    format!("{:x}", Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::faults::{Fault, FaultyStore};
    use super::*;
    use futures::TryStreamExt;

    /// Every backend must pass this; a new one is added by one line in a test below.
    async fn conforms(storage: &Storage) {
        let a = Path::from("conformance/a");
        let nested = Path::from("conformance/deep/er/b");
        assert_eq!(storage.read(&a).await.unwrap(), None);
        assert_eq!(storage.create(&a, Bytes::from_static(b"one")).await.unwrap(), Created::New);
        assert_eq!(storage.create(&a, Bytes::from_static(b"one")).await.unwrap(), Created::MineAlready);
        assert_eq!(storage.create(&a, Bytes::from_static(b"two")).await.unwrap(), Created::Taken);
        assert_eq!(storage.read(&a).await.unwrap().unwrap(), "one");
        assert_eq!(storage.create(&nested, Bytes::from_static(b"")).await.unwrap(), Created::New);
        storage.overwrite(&a, Bytes::from_static(b"three")).await.unwrap();
        assert_eq!(storage.store().get_range(&a, 1..3).await.unwrap(), "hr");

        let listed: Vec<_> = storage.store().list(Some(&Path::from("conformance"))).try_collect().await.unwrap();
        let names: Vec<_> = listed.iter().map(|meta| meta.location.to_string()).collect();
        assert_eq!(names, ["conformance/a", "conformance/deep/er/b"], "listings are sorted");

        let big = Bytes::from(vec![7u8; 12 << 20]);
        let mut upload = storage.store().put_multipart(&Path::from("conformance/big")).await.unwrap();
        for start in (0..big.len()).step_by(6 << 20) {
            let part = big.slice(start..(start + (6 << 20)).min(big.len()));
            upload.put_part(part.into()).await.unwrap();
        }
        upload.complete().await.unwrap();
        assert_eq!(storage.read(&Path::from("conformance/big")).await.unwrap().unwrap(), big);

        storage.store().delete(&a).await.unwrap();
        assert_eq!(storage.read(&a).await.unwrap(), None);

        let racers = (0..8).map(|n| {
            let storage = storage.clone();
            async move {
                storage.create(&Path::from("conformance/race"), Bytes::from(n.to_string())).await.unwrap()
            }
        });
        let outcomes = futures::future::join_all(racers).await;
        assert_eq!(outcomes.iter().filter(|outcome| **outcome == Created::New).count(), 1);
    }

    #[tokio::test]
    async fn memory_conforms() {
        conforms(&Storage::open("memory:///", std::iter::empty()).unwrap()).await;
    }

    #[tokio::test]
    async fn local_directory_conforms() {
        let dir = tempfile::tempdir().unwrap();
        let location = dir.path().join("new/data");
        conforms(&Storage::open(location.to_str().unwrap(), std::iter::empty()).unwrap()).await;
        let leftovers: Vec<_> = walk(&location).filter(|path| path.contains('#')).collect();
        assert_eq!(leftovers, Vec::<String>::new(), "staging files were left behind");
    }

    #[tokio::test]
    async fn what_a_crash_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path().to_str().unwrap(), std::iter::empty()).unwrap();
        storage.create(&Path::from("a/b"), Bytes::from_static(b"x")).await.unwrap();
        std::fs::write(dir.path().join("a/b#123"), b"half").unwrap();
        let held = lock::ProcessLock::acquire(dir.path()).unwrap();
        assert_eq!(storage.sweep(&held).unwrap(), 1);
        assert_eq!(storage.sweep(&held).unwrap(), 0);
        assert!(storage.read(&Path::from("a/b")).await.unwrap().is_some());
    }

    fn walk(dir: &FsPath) -> Box<dyn Iterator<Item = String>> {
        Box::new(std::fs::read_dir(dir).unwrap().flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path) } else { Box::new(std::iter::once(path.display().to_string())) }
        }))
    }

    #[tokio::test]
    async fn prefixed_memory_conforms() {
        let store = PrefixStore::new(object_store::memory::InMemory::new(), "some/prefix");
        conforms(&Storage::over(Arc::new(store))).await;
    }

    #[test]
    fn an_unwritable_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        let error = Storage::open(file.join("data").to_str().unwrap(), std::iter::empty()).unwrap_err();
        assert!(error.to_string().contains("file/data"), "{error}");
    }

    #[test]
    fn an_unknown_scheme_is_named() {
        let error = Storage::open("gopher://host/x", std::iter::empty()).unwrap_err();
        assert!(error.to_string().contains("gopher://host/x"), "{error}");
    }

    #[tokio::test]
    async fn a_lost_answer_is_recognised_as_ours() {
        let faulty = FaultyStore::in_memory();
        let storage = faulty.storage();
        faulty.fail_write(0, Fault::AfterWrite);
        let path = Path::from("x");
        assert_eq!(storage.create(&path, Bytes::from_static(b"a")).await.unwrap(), Created::MineAlready);
        faulty.fail_write(0, Fault::DiskFull);
        let error = storage.create(&Path::from("y"), Bytes::from_static(b"a")).await.unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains('y'), "{error}");
        faulty.fail_write(0, Fault::Eio);
        assert!(!storage.create(&Path::from("y"), Bytes::from_static(b"a")).await.unwrap_err().is_retryable());
        assert_eq!(storage.create(&Path::from("y"), Bytes::from_static(b"a")).await.unwrap(), Created::New);
    }
}
