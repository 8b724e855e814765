//! A local directory whose writes survive a power loss.
//!
//! object_store's own `LocalFileSystem` never calls fsync, and a name could reach the disk before its bytes
//! do: after a power loss a commit would name a short file. Here an object is written to a staging file,
//! synced, given its name by a hard link (create) or a rename (overwrite), and then its directory is synced.
//! Staging names end in `#<digits>`, which `LocalFileSystem` hides from listings.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

const STORE: &str = "local directory";

/// See the module's description. Reads and listings are `LocalFileSystem`'s.
#[derive(Debug, Clone)]
pub struct DurableFileSystem {
    inner: Arc<LocalFileSystem>,
}

impl DurableFileSystem {
    pub fn new(dir: &FsPath) -> Result<Self> {
        Ok(Self { inner: Arc::new(LocalFileSystem::new_with_prefix(dir)?) })
    }
}

impl fmt::Display for DurableFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Durable{}", self.inner)
    }
}

#[derive(Debug, Clone, Copy)]
enum Naming {
    Create,
    Overwrite,
}

#[async_trait]
impl ObjectStore for DurableFileSystem {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let naming = match opts.mode {
            PutMode::Create => Naming::Create,
            PutMode::Overwrite => Naming::Overwrite,
            PutMode::Update(_) => {
                return Err(Error::NotImplemented {
                    operation: "conditional overwrite".into(),
                    implementer: self.to_string(),
                });
            }
        };
        let path = self.inner.path_to_filesystem(location)?;
        blocking(move || put(&path, &payload, naming)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = self.inner.path_to_filesystem(location)?;
        Ok(Box::new(BufferedUpload { path, parts: Vec::new() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        sorted(self.inner.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        sorted(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// Keeps the parts in memory and writes them as one object at the end. Only Delta checkpoints come this way,
/// and they are small.
#[derive(Debug)]
struct BufferedUpload {
    path: PathBuf,
    parts: Vec<PutPayload>,
}

#[async_trait]
impl MultipartUpload for BufferedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.push(data);
        futures::future::ready(Ok(())).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let payload: PutPayload =
            std::mem::take(&mut self.parts).iter().flat_map(|part| part.iter().cloned()).collect();
        let path = self.path.clone();
        blocking(move || put(&path, &payload, Naming::Overwrite)).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}

/// Listings are in the order of names, as those of object stores are; Delta readers rely on it.
fn sorted(listing: BoxStream<'static, Result<ObjectMeta>>) -> BoxStream<'static, Result<ObjectMeta>> {
    let collected = listing.try_collect::<Vec<_>>().map(|listed| match listed {
        Ok(mut listed) => {
            listed.sort_by(|a, b| a.location.cmp(&b.location));
            stream::iter(listed.into_iter().map(Ok)).boxed()
        }
        Err(error) => stream::iter([Err(error)]).boxed(),
    });
    collected.flatten_stream().boxed()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await?,
        Err(_) => work(),
    }
}

fn put(path: &FsPath, payload: &PutPayload, naming: Naming) -> Result<PutResult> {
    let dir = path.parent().ok_or_else(|| failed(path, io::Error::from(io::ErrorKind::InvalidInput)))?;
    ensure_dir(dir).map_err(|source| failed(dir, source))?;
    let staging = staging_path(path);
    let named = write_synced(&staging, payload).and_then(|()| match naming {
        Naming::Create => fs::hard_link(&staging, path),
        Naming::Overwrite => fs::rename(&staging, path),
    });
    match (naming, &named) {
        (Naming::Overwrite, Ok(())) => {}
        // Best effort: a staging file that stays is invisible and is overwritten by nobody.
        _ => drop(fs::remove_file(&staging)),
    }
    match named {
        Ok(()) => sync_dir(dir).map_err(|source| failed(dir, source))?,
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::AlreadyExists { path: path.display().to_string(), source: source.into() });
        }
        Err(source) => return Err(failed(path, source)),
    }
    Ok(PutResult { e_tag: None, version: None })
}

/// Removes staging files below `dir`. Only for a directory that nobody is writing to.
pub(super) fn sweep(dir: &FsPath) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            removed += sweep(&path)?;
        } else if is_staging(&path) {
            fs::remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_staging(path: &FsPath) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.rsplit_once('#')
        .is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn staging_path(path: &FsPath) -> PathBuf {
    let mut staging = path.as_os_str().to_owned();
    staging.push(format!("#{}", rand::random::<u64>()));
    staging.into()
}

fn write_synced(staging: &FsPath, payload: &PutPayload) -> io::Result<()> {
    let mut file = File::create_new(staging)?;
    for chunk in payload {
        file.write_all(chunk)?;
    }
    file.sync_all()
}

/// Creates `dir` and makes each new directory's name durable in its parent.
fn ensure_dir(dir: &FsPath) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        ensure_dir(parent)?;
        match fs::create_dir(dir) {
            Ok(()) => sync_dir(parent)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn sync_dir(dir: &FsPath) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// An I/O error that names the file and keeps the cause, so that a full disk can be told from a broken one.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
struct FileError {
    path: PathBuf,
    source: io::Error,
}

fn failed(path: &FsPath, source: io::Error) -> Error {
    Error::Generic { store: STORE, source: Box::new(FileError { path: path.to_owned(), source }) }
}
