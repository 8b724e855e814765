//! A bucket that is shared by processes, and what each process experiences of it: failures before and after a write,
//! answers that are lost, operations that hang, and its own death between any two of them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::Semaphore;

/// What the bucket promises. Each is switched off by a negative control.
#[derive(Debug, Clone, Copy)]
pub struct Promises {
    /// A write that was answered survives a crash.
    pub durable: bool,
    /// Of several creates of one name one succeeds.
    pub exclusive: bool,
}

/// The bucket itself.
#[derive(Debug)]
pub struct Bucket {
    objects: InMemory,
    promises: Promises,
    /// Answered, and lost should the power fail now: the name, and what stood there before.
    unsynced: Mutex<Vec<(Path, Option<Bytes>)>>,
}

impl Bucket {
    pub fn new(promises: Promises) -> Arc<Self> {
        Arc::new(Self { objects: InMemory::new(), promises, unsynced: Mutex::default() })
    }

    /// The power fails: of what was never synced, the newest is gone, and of the rest anything may be.
    pub async fn lose_power(&self, rng: &mut StdRng) {
        let mut unsynced = std::mem::take(&mut *self.unsynced.lock());
        let mut certain = true;
        while let Some((path, before)) = unsynced.pop() {
            if certain || rng.random_bool(0.5) {
                match before {
                    None => self.objects.delete(&path).await.unwrap(),
                    Some(bytes) => drop(self.objects.put(&path, bytes.into()).await.unwrap()),
                }
            }
            certain = false;
        }
    }

    async fn write(&self, location: &Path, payload: PutPayload, mut opts: PutOptions) -> Result<PutResult> {
        if !self.promises.exclusive {
            opts.mode = PutMode::Overwrite;
        }
        if !self.promises.durable {
            let before = match self.objects.get(location).await {
                Ok(found) => Some(found.bytes().await?),
                Err(_) => None,
            };
            let result = self.objects.put_opts(location, payload, opts).await?;
            self.unsynced.lock().push((location.clone(), before));
            return Ok(result);
        }
        self.objects.put_opts(location, payload, opts).await
    }
}

/// How often what goes wrong, of a thousand operations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    pub disk_full: u32,
    pub lost_answer: u32,
    pub broken_disk: u32,
    pub failed_read: u32,
}

/// What becomes of one write.
enum WriteFate {
    Passes,
    Refused(std::io::Error),
    AnswerLost,
    DiesBefore,
    DiesAfter,
}

#[derive(Debug)]
struct Luck {
    rng: StdRng,
    weather: Weather,
    /// Writes until the process dies, and whether that one still happens.
    dies: Option<(usize, bool)>,
}

/// The bucket as one process has it.
pub struct Access {
    bucket: Arc<Bucket>,
    luck: Mutex<Luck>,
    dead: AtomicBool,
    /// Operations of the archive's writer, and those of refreshes.
    archive: Gate,
    batch: Gate,
}

impl Access {
    pub fn new(bucket: &Arc<Bucket>, rng: StdRng, weather: Weather) -> Arc<Self> {
        Arc::new(Self {
            bucket: Arc::clone(bucket),
            luck: Mutex::new(Luck { rng, weather, dies: None }),
            dead: AtomicBool::new(false),
            archive: Gate::default(),
            batch: Gate::default(),
        })
    }

    pub fn set_weather(&self, weather: Weather) {
        self.luck.lock().weather = weather;
    }

    /// The process dies at a write: after `writes` others, and before or after it happened.
    pub fn die_at(&self, writes: usize, after: bool) {
        self.luck.lock().dies = Some((writes, after));
    }

    pub fn die(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.open_gates();
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub fn gate(&self, lane: Lane) -> &Gate {
        match lane {
            Lane::Archive => &self.archive,
            Lane::Batch => &self.batch,
        }
    }

    pub fn open_gates(&self) {
        self.archive.open();
        self.batch.open();
    }

    async fn pass(&self, location: &Path) -> Result<()> {
        let lane = if location.as_ref().starts_with("archive") { Lane::Archive } else { Lane::Batch };
        self.gate(lane).pass().await;
        if self.is_dead() { Err(killed()) } else { Ok(()) }
    }

    fn write_fate(&self) -> WriteFate {
        let mut luck = self.luck.lock();
        match &mut luck.dies {
            Some((0, after)) => return if *after { WriteFate::DiesAfter } else { WriteFate::DiesBefore },
            Some((writes, _)) => *writes -= 1,
            None => {}
        }
        let Weather { disk_full, lost_answer, broken_disk, .. } = luck.weather;
        let drawn = luck.rng.random_range(0..1000);
        if drawn < disk_full {
            WriteFate::Refused(std::io::ErrorKind::StorageFull.into())
        } else if drawn < disk_full + lost_answer {
            WriteFate::AnswerLost
        } else if drawn < disk_full + lost_answer + broken_disk {
            WriteFate::Refused(std::io::Error::from_raw_os_error(5))
        } else {
            WriteFate::Passes
        }
    }

    fn read_fails(&self) -> bool {
        let mut luck = self.luck.lock();
        let failed_read = luck.weather.failed_read;
        failed_read > 0 && luck.rng.random_range(0..1000) < failed_read
    }
}

/// Which operations a gate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Archive,
    Batch,
}

/// Lets operations pass, all or a given number.
#[derive(Debug)]
pub struct Gate {
    closed: AtomicBool,
    permits: Semaphore,
    waiting: AtomicUsize,
}

impl Default for Gate {
    fn default() -> Self {
        Self { closed: AtomicBool::new(false), permits: Semaphore::new(0), waiting: AtomicUsize::new(0) }
    }
}

impl Gate {
    pub fn close(&self) {
        self.permits.forget_permits(usize::MAX >> 4);
        self.closed.store(true, Ordering::SeqCst);
    }

    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.permits.add_permits(self.waiting());
    }

    pub fn admit(&self, operations: usize) {
        self.permits.add_permits(operations);
    }

    /// True when something waits that nobody has admitted.
    pub fn holds(&self) -> bool {
        self.waiting() > 0 && self.permits.available_permits() == 0
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    async fn pass(&self) {
        if self.closed.load(Ordering::SeqCst) {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            self.permits.acquire().await.expect("it is never closed for good").forget();
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn failure(source: std::io::Error) -> Error {
    Error::Generic { store: "bucket", source: Box::new(source) }
}

fn killed() -> Error {
    failure(std::io::Error::other("the process was killed"))
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access")
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access")
    }
}

#[async_trait]
impl ObjectStore for Access {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.pass(location).await?;
        match self.write_fate() {
            WriteFate::Passes => self.bucket.write(location, payload, opts).await,
            WriteFate::Refused(error) => Err(failure(error)),
            WriteFate::AnswerLost => {
                self.bucket.write(location, payload, opts).await?;
                Err(failure(std::io::ErrorKind::TimedOut.into()))
            }
            WriteFate::DiesBefore => {
                self.die();
                Err(killed())
            }
            WriteFate::DiesAfter => {
                let _ = self.bucket.write(location, payload, opts).await;
                self.die();
                Err(killed())
            }
        }
    }

    async fn put_multipart_opts(&self, to: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.pass(to).await?;
        self.bucket.objects.put_multipart_opts(to, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.pass(location).await?;
        if self.read_fails() {
            return Err(failure(std::io::ErrorKind::TimedOut.into()));
        }
        self.bucket.objects.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.is_dead() {
            true => futures::stream::iter([Err(killed())]).boxed(),
            false => self.bucket.objects.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.is_dead() || self.read_fails() {
            true => futures::stream::iter([Err(failure(std::io::ErrorKind::TimedOut.into()))]).boxed(),
            false => self.bucket.objects.list(prefix),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.bucket.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.pass(to).await?;
        self.bucket.objects.copy_opts(from, to, options).await
    }
}
