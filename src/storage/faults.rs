//! A store that fails on demand, for tests of what must survive it.

#![allow(clippy::unwrap_used)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use super::Storage;

/// What goes wrong at a chosen write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The write does not happen; no space is left.
    DiskFull,
    /// The write does not happen; the device is broken.
    Eio,
    /// The write happens, but the answer is lost.
    AfterWrite,
    /// The write happens, the answer is lost, and so is that to the next question.
    Unanswered,
    /// The write happens although it was to happen only where there is nothing.
    Overwriting,
    /// The process is gone: this and every later write does not happen.
    Killed,
}

#[derive(Debug, Default)]
enum Listing {
    #[default]
    True,
    Frozen(Vec<ObjectMeta>),
    Broken,
}

/// What is called at a chosen write.
struct Hook(usize, Box<dyn FnOnce() + Send>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hook({})", self.0)
    }
}

/// Counts writes and fails the one that was chosen.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    writes: AtomicUsize,
    reads: AtomicUsize,
    plan: Mutex<Option<(usize, Fault)>>,
    hook: Mutex<Option<Hook>>,
    deaf: AtomicBool,
    held: Mutex<Option<Path>>,
    listing: Mutex<Listing>,
}

impl FaultyStore {
    pub fn over(inner: Arc<dyn ObjectStore>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            writes: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            plan: Mutex::new(None),
            hook: Mutex::new(None),
            deaf: AtomicBool::new(false),
            held: Mutex::new(None),
            listing: Mutex::new(Listing::True),
        })
    }

    pub fn in_memory() -> Arc<Self> {
        Self::over(Arc::new(InMemory::new()))
    }

    /// Lets `after` further writes pass and fails the next one.
    pub fn fail_write(&self, after: usize, fault: Fault) {
        *self.plan.lock() = Some((self.writes.load(Ordering::SeqCst) + after, fault));
    }

    /// Lets `after` further writes pass and calls `hook` just before the next one, which then happens.
    pub fn at_write(&self, after: usize, hook: impl FnOnce() + Send + 'static) {
        *self.hook.lock() = Some(Hook(self.writes.load(Ordering::SeqCst) + after, Box::new(hook)));
    }

    pub fn storage(self: &Arc<Self>) -> Storage {
        let store: Arc<Self> = Arc::clone(self);
        Storage::over(store)
    }

    /// What another process sees.
    pub fn without_faults(&self) -> Storage {
        Storage::over(Arc::clone(&self.inner))
    }

    /// From now on reads below `prefix` wait, until none is named.
    pub fn hold_reads(&self, prefix: Option<Path>) {
        *self.held.lock() = prefix;
    }

    /// Reads seen so far.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    /// Writes seen so far.
    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    /// From now on listings show what existed now.
    pub async fn freeze_listing(&self) {
        let seen = self.inner.list(None).map(|meta| meta.unwrap()).collect().await;
        *self.listing.lock() = Listing::Frozen(seen);
    }

    pub fn break_listing(&self) {
        *self.listing.lock() = Listing::Broken;
    }

    fn next_fault(&self) -> Option<Fault> {
        let write = self.writes.fetch_add(1, Ordering::SeqCst);
        if let Some(Hook(_, call)) = self.hook.lock().take_if(|hook| hook.0 == write) {
            call();
        }
        let mut plan = self.plan.lock();
        match *plan {
            Some((at, Fault::Killed)) if write >= at => Some(Fault::Killed),
            Some((at, fault)) if write == at => {
                *plan = None;
                Some(fault)
            }
            _ => None,
        }
    }
}

fn failure(source: std::io::Error) -> Error {
    Error::Generic { store: "faulty", source: Box::new(source) }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        match self.next_fault() {
            None => self.inner.put_opts(location, payload, opts).await,
            Some(Fault::DiskFull) => Err(failure(std::io::ErrorKind::StorageFull.into())),
            Some(Fault::Eio) => Err(failure(std::io::Error::from_raw_os_error(5))),
            Some(Fault::Killed) => Err(failure(std::io::Error::other("the process was killed"))),
            Some(Fault::Overwriting) => self.inner.put(location, payload).await,
            Some(fault @ (Fault::AfterWrite | Fault::Unanswered)) => {
                self.deaf.store(fault == Fault::Unanswered, Ordering::SeqCst);
                self.inner.put_opts(location, payload, opts).await?;
                Err(failure(std::io::ErrorKind::TimedOut.into()))
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        while self.held.lock().as_ref().is_some_and(|held| location.prefix_matches(held)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if self.deaf.swap(false, Ordering::SeqCst) {
            return Err(failure(std::io::ErrorKind::TimedOut.into()));
        }
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match &*self.listing.lock() {
            Listing::True => self.inner.list(prefix),
            Listing::Broken => stream::iter([Err(failure(std::io::ErrorKind::TimedOut.into()))]).boxed(),
            Listing::Frozen(seen) => {
                let prefix = prefix.cloned().unwrap_or_default();
                let shown: Vec<_> =
                    seen.iter().filter(|meta| meta.location.prefix_matches(&prefix)).cloned().map(Ok).collect();
                stream::iter(shown).boxed()
            }
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
