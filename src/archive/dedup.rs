//! Which records were counted already: the exact index of a stream's primary keys.
//!
//! A key enters the index together with its record, and the record's archive commit makes both durable; after a
//! crash the index is rebuilt from the archive, so no key is ever claimed for a record that was lost
//! (openmeter#5118). Each key is kept as 16 bytes: a UUID as it is, any other key as the first half of its
//! SHA-256.
//!
//! | where keys are | which | memory |
//! |---|---|---|
//! | a hash table | those of the newest epochs, up to `ingest.keys_in_memory_max` | 17 to 34 bytes a key |
//! | frozen hash tables | those on their way into a file | the same |
//! | sorted files in the data directory | all others | 1.3 bytes a key |
//!
//! A file is asked only where its filter does not rule the key out (1 in 100 for a new key), and then for one page. It
//! holds keys of committed epochs alone, so a start may use it; what is missing is read from the archive. Files are
//! merged as batch views are, so that there are few.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use datafusion::arrow::datatypes::{DataType, Int32Type, Int64Type};
use hashbrown::HashTable;
use sha2::{Digest, Sha256};

use crate::position::Epoch;
use crate::runtime::{Health, Shutdown, spawn_thread};
use crate::storage::merging::runs_to_merge;

mod run;

use run::{KeyRun, RunOf, merged};

/// How long a file that could not be written is left before it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Frozen tables beyond which intake has to wait for the files.
const FROZEN_MAX: usize = 2;
const EXTENSION: &str = "keys";

/// The keys of one stream.
#[derive(Debug, Default)]
pub struct KeyIndex {
    recent: HashTable<u128>,
    /// Everything up to here left `recent`.
    frozen_through: Epoch,
    frozen: VecDeque<Arc<Frozen>>,
    /// Oldest first; each goes on where the one before ends.
    runs: Vec<Arc<KeyRun>>,
    files: Option<Files>,
    job: Option<Job>,
}

/// Where an index keeps what does not stay in memory.
#[derive(Debug, Clone)]
pub struct Files {
    pub dir: PathBuf,
    /// Names the archive's table whose keys they are.
    pub table: String,
    /// Keys that stay in memory.
    pub keys_max: usize,
    pub health: Health,
    pub shutdown: Shutdown,
}

/// Keys of some epochs that change no more.
#[derive(Debug)]
struct Frozen {
    keys: HashTable<u128>,
    first: Epoch,
    last: Epoch,
}

/// A file that is being written.
#[derive(Debug)]
struct Job {
    work: Work,
    done: Receiver<io::Result<KeyRun>>,
    /// After a failure, when to try again.
    retry_at: Option<Instant>,
}

#[derive(Debug, Clone)]
enum Work {
    Write(Arc<Frozen>),
    Merge(Vec<Arc<KeyRun>>),
}

/// Keys of records of the archive, among which no two are the same, in the order of their places in a hash table:
/// put in as they come, each would miss the cache.
#[derive(Debug)]
pub struct ArchivedKeys {
    /// Each has the keys of one section of the table.
    sections: Vec<Vec<u128>>,
    /// Of the table, less one.
    places: u64,
    section_bits: u32,
    overlap: bool,
}

/// Sections of a table at most: so many that one of 10 million keys fits into a cache of the second level.
const SECTIONS_MAX: u64 = 256;

/// Why keys could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("a primary key of type {0} cannot be indexed")]
    Type(DataType),
    #[error(
        "cannot read {path}, which holds primary keys: {source}; the archive is whole, so remove it and start again"
    )]
    File { path: String, source: io::Error },
    #[error("cannot keep primary keys in {path}: {source}")]
    Directory { path: String, source: io::Error },
}

impl KeyIndex {
    /// The index with the files of an earlier process that belong to the table and to epochs up to `committed`. Others
    /// are removed.
    pub fn open(files: Files, committed: Epoch) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Directory { path: files.dir.display().to_string(), source };
        std::fs::create_dir_all(&files.dir).map_err(failed)?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&files.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_whole = path.extension().is_some_and(|extension| extension == EXTENSION);
            match is_whole.then(|| KeyRun::open(path.clone(), &files.table)) {
                Some(Ok(run)) => found.push(run),
                Some(Err(error)) => {
                    tracing::warn!(path = %path.display(), %error, "file of keys thrown away; it is made again");
                    remove(&path);
                }
                None => remove(&path),
            }
        }
        let (kept, others) = chain(found, committed);
        others.iter().for_each(|run| remove(run.path()));
        let frozen_through = kept.last().map_or(Epoch::default(), |run| run.last);
        let runs = kept.into_iter().map(Arc::new).collect();
        let (recent, frozen) = (HashTable::new(), VecDeque::new());
        Ok(Self { recent, frozen_through, frozen, runs, files: Some(files), job: None })
    }

    /// The files hold the keys of all epochs up to this one.
    pub fn covered(&self) -> Epoch {
        self.frozen_through
    }

    pub fn len(&self) -> u64 {
        let frozen = self.frozen.iter().map(|frozen| frozen.keys.len() as u64);
        self.recent.len() as u64 + frozen.chain(self.runs.iter().map(|run| run.len())).sum::<u64>()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes keys back whose record turned out not to count: a sound record with the same key still may. They were
    /// added since the newest epoch was sealed.
    pub fn remove(&mut self, column: &ArrayRef) -> Result<(), KeyError> {
        for key in keys(column)?.into_iter().flatten() {
            if let Ok(found) = self.recent.find_entry(mix(&key), |other| *other == key) {
                found.remove();
            }
        }
        Ok(())
    }

    /// Adds keys whose records the archive holds.
    pub fn restore(&mut self, keys: ArchivedKeys) -> Result<(), KeyError> {
        let count = keys.sections.iter().map(Vec::len).sum();
        self.recent.reserve(count, mix);
        for key in keys.sections.into_iter().flatten() {
            if keys.overlap {
                self.insert_one(key)?;
            } else {
                self.recent.entry(mix(&key), |other| *other == key, mix).or_insert(key);
            }
        }
        Ok(())
    }

    /// Adds the key of every row of `column` that is `sound`; None means that all are. True marks the rows whose key
    /// was not there before; of equal keys within the column the first is new. NULL is new always: it identifies
    /// nothing.
    pub fn insert(&mut self, column: &ArrayRef, sound: Option<&BooleanArray>) -> Result<BooleanArray, KeyError> {
        self.recent.reserve(column.len(), mix);
        let keys = keys(column)?.into_iter().enumerate();
        let is_new = |(row, key): (usize, Option<u128>)| match key {
            _ if !sound.is_none_or(|sound| sound.value(row)) => Ok(Some(false)),
            None => Ok(Some(true)),
            Some(key) => self.insert_one(key).map(Some),
        };
        keys.map(is_new).collect()
    }

    fn insert_one(&mut self, key: u128) -> Result<bool, KeyError> {
        let hash = mix(&key);
        let Self { recent, frozen, runs, .. } = self;
        match recent.entry(hash, |other| *other == key, mix) {
            hashbrown::hash_table::Entry::Occupied(_) => Ok(false),
            hashbrown::hash_table::Entry::Vacant(slot) => {
                if frozen.iter().any(|frozen| frozen.keys.find(hash, |other| *other == key).is_some()) {
                    return Ok(false);
                }
                for run in runs.iter() {
                    let found = run.contains(key).map_err(|source| unreadable(run, source))?;
                    if found {
                        return Ok(false);
                    }
                }
                slot.insert(key);
                Ok(true)
            }
        }
    }

    /// What was added so far belongs to epochs up to `epoch`, what comes next to later ones.
    pub fn sealed(&mut self, epoch: Epoch) {
        let Some(files) = &self.files else { return };
        if self.recent.len() >= files.keys_max {
            let keys = std::mem::take(&mut self.recent);
            self.frozen.push_back(Arc::new(Frozen { keys, first: self.frozen_through.next(), last: epoch }));
            self.frozen_through = epoch;
        }
    }

    /// Moves keys of epochs up to `committed` into files, beside the caller's work. Waits only while more than a few
    /// tables are on their way. To be called now and then.
    pub fn tend(&mut self, committed: Epoch) -> Result<(), KeyError> {
        loop {
            self.collect()?;
            if self.job.is_none()
                && let Some(work) = self.due(committed)
            {
                self.begin(work);
            }
            let can_leave = self.frozen.front().is_some_and(|frozen| frozen.last <= committed);
            if self.frozen.len() <= FROZEN_MAX || !can_leave || self.is_ending() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As [`KeyIndex::tend`], until nothing is due: for a start, when nothing else is to do.
    pub fn settle(&mut self, committed: Epoch) -> Result<(), KeyError> {
        loop {
            self.tend(committed)?;
            if self.job.is_none() || self.is_ending() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_ending(&self) -> bool {
        self.files.as_ref().is_some_and(|files| files.shutdown.is_triggered())
    }

    fn due(&self, committed: Epoch) -> Option<Work> {
        if let Some(frozen) = self.frozen.front().filter(|frozen| frozen.last <= committed) {
            return Some(Work::Write(Arc::clone(frozen)));
        }
        let keys: Vec<u64> = self.runs.iter().map(|run| run.len()).collect();
        let count = runs_to_merge(&keys);
        let newest = self.runs.len().checked_sub(count).and_then(|from| self.runs.get(from..)).unwrap_or_default();
        // Two at a time: the work behind the newest begins again as soon as this is done.
        let pair = newest.get(newest.len().checked_sub(2)?..)?;
        Some(Work::Merge(pair.to_vec()))
    }

    fn begin(&mut self, work: Work) {
        let Some(files) = &self.files else { return };
        let (sender, done) = sync_channel(1);
        let (place, task) = (files.clone(), work.clone());
        drop(spawn_thread("keys", &files.health, move || drop(sender.send(task.carry_out(&place)))));
        self.job = Some(Job { work, done, retry_at: None });
    }

    /// Takes the file that was finished, if any, in the place of what it was made from.
    fn collect(&mut self) -> Result<(), KeyError> {
        let (Some(job), Some(files)) = (&mut self.job, &self.files) else { return Ok(()) };
        if let Some(at) = job.retry_at {
            if Instant::now() >= at {
                self.job = None;
            }
            return Ok(());
        }
        match job.done.try_recv() {
            Err(TryRecvError::Empty) => {}
            Ok(Ok(run)) => {
                match &job.work {
                    Work::Write(_) => drop(self.frozen.pop_front()),
                    Work::Merge(merged) => {
                        self.runs.truncate(self.runs.len().saturating_sub(merged.len()));
                        merged.iter().for_each(|run| remove(run.path()));
                    }
                }
                self.runs.push(Arc::new(run));
                self.job = None;
            }
            Ok(Err(error)) => {
                let dir = files.dir.display();
                tracing::error!(%dir, %error, "keys stay in memory: their file cannot be written, will try again");
                job.retry_at = Some(Instant::now() + RETRY_INTERVAL);
            }
            Err(TryRecvError::Disconnected) => {
                let source = io::Error::other("writing a file of keys panicked");
                return Err(KeyError::Directory { path: files.dir.display().to_string(), source });
            }
        }
        Ok(())
    }
}

impl Drop for KeyIndex {
    /// Whoever opens the directory next must be alone in it.
    fn drop(&mut self) {
        if let Some(job) = self.job.take().filter(|job| job.retry_at.is_none()) {
            drop(job.done.recv());
        }
    }
}

impl ArchivedKeys {
    /// For `rows` records, some of which, if `overlap`, an index may know already.
    pub fn new(rows: u64, overlap: bool) -> Self {
        let places = rows.saturating_mul(8).div_ceil(7).next_power_of_two();
        let sections = places.min(SECTIONS_MAX);
        let section_bits = places.ilog2() - sections.ilog2();
        Self { sections: (0..sections).map(|_| Vec::new()).collect(), places: places - 1, section_bits, overlap }
    }

    pub fn add(&mut self, column: &ArrayRef) -> Result<(), KeyError> {
        for key in keys(column)?.into_iter().flatten() {
            let section = (mix(&key) & self.places) >> self.section_bits;
            if let Some(section) = self.sections.get_mut(section as usize) {
                section.push(key);
            }
        }
        Ok(())
    }
}

impl Work {
    fn carry_out(&self, files: &Files) -> io::Result<KeyRun> {
        let name = |first: Epoch, last: Epoch| format!("{:020}-{:020}.{EXTENSION}", first.0, last.0);
        let owner = |first, last, count| {
            (files.dir.join(name(first, last)), RunOf { table: &files.table, first, last, count })
        };
        match self {
            Self::Write(frozen) => {
                let mut keys: Vec<u128> = frozen.keys.iter().copied().collect();
                keys.sort_unstable();
                let (path, of) = owner(frozen.first, frozen.last, keys.len() as u64);
                KeyRun::write(path, of, until(&files.shutdown, keys.into_iter().map(Ok)))
            }
            Self::Merge(runs) => match runs.as_slice() {
                [older, newer] => {
                    let (path, of) = owner(older.first, newer.last, older.len() + newer.len());
                    KeyRun::write(path, of, until(&files.shutdown, merged(older.keys()?, newer.keys()?)))
                }
                _ => Err(io::Error::other("files of keys are merged in pairs")),
            },
        }
    }
}

/// `keys`, with an error once the process is ending: a file is not worth waiting for then.
fn until(
    shutdown: &Shutdown,
    keys: impl Iterator<Item = io::Result<u128>>,
) -> impl Iterator<Item = io::Result<u128>> {
    let ends = |n: usize| n.is_multiple_of(1 << 16) && shutdown.is_triggered();
    keys.enumerate().map(move |(n, key)| if ends(n) { Err(io::Error::other("the process is ending")) } else { key })
}

/// The files that go on from each other from the first epoch to at most `committed`; and the others. An epoch that is not
/// committed may be made again with other records.
fn chain(mut found: Vec<KeyRun>, committed: Epoch) -> (Vec<KeyRun>, Vec<KeyRun>) {
    // Where two begin at the same epoch the longer one was merged from the other.
    found.sort_by_key(|run| (run.first, std::cmp::Reverse(run.last)));
    let (mut kept, mut others) = (Vec::new(), Vec::new());
    let mut through = Epoch::default();
    for run in found {
        if run.first == through.next() && run.last <= committed {
            through = run.last;
            kept.push(run);
        } else {
            others.push(run);
        }
    }
    (kept, others)
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "file of keys not removed");
    }
}

fn unreadable(run: &KeyRun, source: io::Error) -> KeyError {
    KeyError::File { path: run.path().display().to_string(), source }
}

fn keys(column: &ArrayRef) -> Result<Vec<Option<u128>>, KeyError> {
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().map(|v| v.map(text_key)).collect(),
        DataType::Utf8View => column.as_string_view().iter().map(|v| v.map(text_key)).collect(),
        DataType::Int64 => column.as_primitive::<Int64Type>().iter().map(|v| v.map(integer_key)).collect(),
        DataType::Int32 => {
            column.as_primitive::<Int32Type>().iter().map(|v| v.map(|v| integer_key(i64::from(v)))).collect()
        }
        other => return Err(KeyError::Type(other.clone())),
    })
}

/// Keys are UUIDs or digests; time-ordered UUIDs still share their high bits, so fold and multiply.
fn mix(key: &u128) -> u64 {
    let folded = (key >> 64) as u64 ^ (*key as u64).rotate_left(32);
    folded.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(26) ^ folded
}

fn text_key(text: &str) -> u128 {
    match uuid::Uuid::try_parse(text) {
        Ok(uuid) => uuid.as_u128(),
        Err(_) => digest_key(text.as_bytes()),
    }
}

fn integer_key(value: i64) -> u128 {
    digest_key(&value.to_be_bytes())
}

fn digest_key(bytes: &[u8]) -> u128 {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    digest.iter().take(16).fold(0, |key, byte| (key << 8) | u128::from(*byte))
}

#[cfg(test)]
mod tests;
