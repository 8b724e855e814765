//! The log of a stream's table, read by a code path of its own: whether its entries follow each other, and what each
//! epoch says that it added.
//!
//! Each entry names the SHA-256 of the one before, and holds one over itself; so the entries are a chain, and a seal on
//! the newest one is a seal on all.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::merkle::NodeHash;
use super::{AuditError, Divergence, Place};
use crate::position::{Offset, PartitionId, StreamFrontier};
use crate::storage::paths::{self, ArchivePaths};
use crate::storage::{Storage, object_error};

/// Entries that are fetched at once.
const WINDOW: usize = 32;

/// What became of records: an index into counts.
pub const KINDS: [&str; 3] = ["event", "duplicate", "quarantined"];
pub const EVENT: usize = 0;
pub const DUPLICATE: usize = 1;

/// A data file that an entry adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Within the table.
    pub name: String,
    pub path: Path,
    /// Index into [`KINDS`].
    pub kind: usize,
    pub rows: u64,
    pub bytes: u64,
    pub first: u64,
    pub epoch: u64,
    pub sha256: NodeHash,
}

/// Totals of one partition since its beginning, as commits hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct LedgerRow {
    pub passed: u64,
    pub events: u64,
    pub duplicates: u64,
    pub quarantined: u64,
    pub gaps: u64,
}

impl LedgerRow {
    fn counts(&self) -> [u64; 3] {
        [self.events, self.duplicates, self.quarantined]
    }
}

/// What one epoch says of one partition: half-open offsets, and how many records of each kind lie in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    pub partition: i32,
    pub from: i64,
    pub to: i64,
    pub counts: [u64; 3],
}

impl Stretch {
    pub fn records(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Offsets that held no record.
    pub fn gaps(&self) -> u64 {
        self.to.abs_diff(self.from).saturating_sub(self.records())
    }
}

/// The entry that made an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    pub epoch: u64,
    pub version: u64,
    /// Of the entry.
    pub sha256: NodeHash,
    /// By partition, those that moved.
    pub stretches: Box<[Stretch]>,
}

impl Commit {
    pub fn records(&self) -> u64 {
        self.stretches.iter().map(Stretch::records).sum()
    }

    pub fn place(&self, stream: &str) -> Place {
        Place { version: Some(self.version), epoch: Some(self.epoch), ..Place::stream(stream) }
    }
}

/// Where a log ends: what the next entry must follow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// Of the newest entry of ours; None before the first.
    pub version: Option<u64>,
    pub sha256: Option<NodeHash>,
    pub epoch: u64,
    pub frontier: StreamFrontier,
    pub ledger: BTreeMap<PartitionId, LedgerRow>,
}

/// A log, or a part of it.
#[derive(Debug, Clone)]
pub struct Chain {
    pub stream: String,
    pub head: Head,
    /// The epochs that were read, ascending.
    pub commits: Vec<Commit>,
    /// What holds their records now, by first epoch.
    pub files: Vec<DataFile>,
    /// Files that later entries replaced, with the version that did.
    pub replaced: HashMap<String, u64>,
    /// The column by which duplicates are told.
    pub key: Option<String>,
    /// By version, those that were read: SHA-256 of every entry.
    pub entries: Vec<NodeHash>,
    /// It was read from its beginning, so that every file is known.
    whole: bool,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, rename = "commitInfo")]
    commit_info: Option<CommitInfo<'a>>,
    add: Option<Add>,
    remove: Option<Remove>,
    #[serde(rename = "metaData")]
    metadata: Option<Value>,
}

#[derive(Deserialize)]
struct CommitInfo<'a> {
    #[serde(borrow)]
    viewledger: Option<Digested<'a>>,
}

#[derive(Deserialize)]
struct Digested<'a> {
    sha256: String,
    #[serde(borrow)]
    record: &'a RawValue,
}

#[derive(Deserialize)]
struct Record {
    epoch: u64,
    frontier: StreamFrontier,
    ledger: BTreeMap<PartitionId, LedgerRow>,
    previous: String,
}

#[derive(Deserialize)]
struct Remove {
    path: String,
}

#[derive(Deserialize)]
struct Add {
    path: String,
    size: u64,
    tags: Option<HashMap<String, Option<String>>>,
}

struct Entry {
    version: u64,
    sha256: NodeHash,
    /// None when another program wrote the entry.
    record: Option<Record>,
    adds: Vec<DataFile>,
    removes: Vec<String>,
    metadata: Option<Value>,
}

/// Names of the streams that have an archive.
pub async fn streams(storage: &Storage) -> Result<Vec<String>, AuditError> {
    folders(storage, &paths::archives()).await
}

/// Names of the folders in `root`, ascending.
pub(super) async fn folders(storage: &Storage, root: &Path) -> Result<Vec<String>, AuditError> {
    let listed = storage.store().list_with_delimiter(Some(root)).await;
    let listed = listed.map_err(|source| object_error("list", root, source))?;
    let mut names: Vec<String> =
        listed.common_prefixes.iter().filter_map(|path| Some(path.filename()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// The whole log of a stream.
pub async fn read(storage: &Storage, stream: &str) -> Result<Chain, AuditError> {
    read_on(storage, stream, None).await
}

/// The log behind an entry of ours, which must be what a seal says it is.
pub async fn read_after(
    storage: &Storage,
    stream: &str,
    version: u64,
    sha256: NodeHash,
) -> Result<Chain, AuditError> {
    read_on(storage, stream, Some((version, sha256))).await
}

async fn read_on(storage: &Storage, stream: &str, sealed: Option<(u64, NodeHash)>) -> Result<Chain, AuditError> {
    let paths = ArchivePaths::new(stream);
    let mut chain = Chain {
        stream: stream.to_owned(),
        head: Head::default(),
        commits: Vec::new(),
        files: Vec::new(),
        replaced: HashMap::new(),
        key: None,
        entries: Vec::new(),
        whole: sealed.is_none(),
    };
    let from = match sealed {
        Some((version, sha256)) => {
            chain.begin(&paths, version, storage.read(&paths.log_entry(version)).await?, sha256)?;
            version + 1
        }
        None => 0,
    };
    let mut entries = stream::iter(from..)
        .map(|version| {
            let path = paths.log_entry(version);
            async move { storage.read(&path).await.map(|bytes| (version, bytes)) }
        })
        .buffered(WINDOW);
    while let Some((version, bytes)) = entries.try_next().await? {
        let Some(bytes) = bytes else {
            contradict(storage, &paths, stream, version).await?;
            break;
        };
        chain.apply(decode(&paths, stream, version, &bytes)?)?;
    }
    witness(storage, &paths, &chain).await?;
    chain.files.sort_by(|a, b| (a.first, a.kind, &a.name).cmp(&(b.first, b.kind, &b.name)));
    Ok(chain)
}

/// Looks for entries behind the first that is absent.
async fn contradict(storage: &Storage, paths: &ArchivePaths, stream: &str, absent: u64) -> Result<(), AuditError> {
    let log = paths.log();
    let listed: Vec<u64> = storage
        .store()
        .list(Some(&log))
        .try_filter_map(|meta| async move { Ok(meta.location.filename().and_then(paths::numbered_json)) })
        .try_collect()
        .await
        .map_err(|source| object_error("list", &log, source))?;
    // One that was created since is no evidence, so it is asked for once more.
    let later = listed.iter().any(|version| *version > absent);
    if later && storage.read(&paths.log_entry(absent)).await?.is_none() {
        return Err(at(stream, absent, "the entry is missing, although later ones are there"));
    }
    Ok(())
}

/// The newest epoch is noted beside the log, too.
async fn witness(storage: &Storage, paths: &ArchivePaths, chain: &Chain) -> Result<(), AuditError> {
    let noted = storage.read(&paths.witness()).await?;
    let noted = noted.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.trim().parse::<u64>().ok());
    match noted {
        // It is read after the log: epochs that came meanwhile have an entry behind it.
        Some(epoch) if epoch > chain.head.epoch => {
            let next = chain.head.version.map_or(0, |version| version + 1);
            match storage.read(&paths.log_entry(next)).await? {
                Some(_) => Ok(()),
                None => {
                    let what =
                        format!("the log ends with epoch {}, but epoch {epoch} was committed", chain.head.epoch);
                    Err(at(&chain.stream, next, what))
                }
            }
        }
        _ => Ok(()),
    }
}

fn at(stream: &str, version: u64, what: impl Into<String>) -> AuditError {
    Divergence::at(Place { version: Some(version), ..Place::stream(stream) }, what).into()
}

impl Chain {
    /// Takes up the chain at an entry that a seal names.
    fn begin(
        &mut self,
        paths: &ArchivePaths,
        version: u64,
        bytes: Option<Bytes>,
        sha256: NodeHash,
    ) -> Result<(), AuditError> {
        let stream = self.stream.clone();
        let bytes = bytes.ok_or_else(|| at(&stream, version, "the entry is missing, and a seal names it"))?;
        let entry = decode(paths, &stream, version, &bytes)?;
        if entry.sha256 != sha256 {
            return Err(at(&stream, version, "the entry is not the one that was sealed"));
        }
        let Some(record) = entry.record else {
            return Err(at(&stream, version, "another program wrote the entry that a seal names"));
        };
        self.head = Head {
            version: Some(version),
            sha256: Some(sha256),
            epoch: record.epoch,
            frontier: record.frontier,
            ledger: record.ledger,
        };
        Ok(())
    }

    fn apply(&mut self, entry: Entry) -> Result<(), AuditError> {
        let (version, stream) = (entry.version, self.stream.clone());
        let diverges = |what: String| at(&stream, version, what);
        if let Some(record) = entry.record {
            let previous = self.head.sha256.map(|hash| hash.to_string()).unwrap_or_default();
            if record.previous != previous {
                return Err(diverges(
                    "the entry does not follow the one before it, which was exchanged".to_owned(),
                ));
            }
            self.retire(&entry.removes, &entry.adds, version).map_err(&diverges)?;
            if record.epoch == self.head.epoch + 1 && entry.removes.is_empty() {
                let stretches = self.stretches(&record).map_err(&diverges)?;
                if entry.adds.iter().any(|file| file.epoch != record.epoch || file.first != record.epoch) {
                    return Err(diverges(format!("it adds files of other epochs than {}", record.epoch)));
                }
                let commit = Commit { epoch: record.epoch, version, sha256: entry.sha256, stretches };
                balance(&commit, &entry.adds).map_err(&diverges)?;
                self.commits.push(commit);
            } else if record.epoch != self.head.epoch
                || record.frontier != self.head.frontier
                || record.ledger != self.head.ledger
            {
                return Err(diverges(format!("it goes from epoch {} to {}", self.head.epoch, record.epoch)));
            } else if entry.removes.is_empty() && !entry.adds.is_empty() {
                return Err(diverges("it adds files without an epoch".to_owned()));
            }
            self.files.extend(entry.adds);
            self.head.version = Some(version);
            (self.head.epoch, self.head.frontier, self.head.ledger) =
                (record.epoch, record.frontier, record.ledger);
        } else if !entry.adds.is_empty() || !entry.removes.is_empty() {
            return Err(diverges("another program wrote the entry, and it changes files".to_owned()));
        }
        if let Some(metadata) = &entry.metadata {
            let key = metadata.get("configuration").and_then(|settings| settings.get("viewledger.key"));
            self.key = key.and_then(Value::as_str).filter(|key| !key.is_empty()).map(str::to_owned);
        }
        self.head.sha256 = Some(entry.sha256);
        self.entries.push(entry.sha256);
        Ok(())
    }

    /// Takes replaced files out. What takes their place must say that it holds as many records of the same kinds and
    /// epochs; whether it does is found out when it is read. A part of a log does not know the files from before it.
    fn retire(&mut self, removed: &[String], added: &[DataFile], version: u64) -> Result<(), String> {
        if removed.is_empty() {
            return Ok(());
        }
        let removed: BTreeSet<&str> = removed.iter().map(String::as_str).collect();
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.files).into_iter().partition(|file| removed.contains(file.name.as_str()));
        self.files = kept;
        if self.whole && gone.len() != removed.len() {
            return Err("it replaces files that the table does not have".to_owned());
        }
        if gone.len() == removed.len() {
            let rows = |files: &[DataFile], kind| -> u64 {
                files.iter().filter(|file| file.kind == kind).map(|file| file.rows).sum()
            };
            if (0..KINDS.len()).any(|kind| rows(&gone, kind) != rows(added, kind)) {
                return Err("the files that it puts in the place of others hold more or fewer records".to_owned());
            }
        }
        self.replaced.extend(removed.iter().map(|name| ((*name).to_owned(), version)));
        Ok(())
    }

    /// What `record` adds to the head, by partition.
    fn stretches(&self, record: &Record) -> Result<Box<[Stretch]>, String> {
        let head = &self.head;
        if head.frontier.topic.is_some() && head.frontier.topic != record.frontier.topic {
            return Err("its topic is another one".to_owned());
        }
        let partitions: BTreeSet<PartitionId> = head
            .frontier
            .next
            .keys()
            .chain(record.frontier.next.keys())
            .chain(head.ledger.keys())
            .chain(record.ledger.keys())
            .copied()
            .collect();
        let mut stretches = Vec::new();
        for partition in partitions {
            let (Offset(from), Offset(to)) =
                (head.frontier.position(partition), record.frontier.position(partition));
            let before = head.ledger.get(&partition).copied().unwrap_or_default();
            let after = record.ledger.get(&partition).copied().unwrap_or_default();
            let goes_back = || format!("partition {partition} goes back, at offset {from}");
            let moved = u64::try_from(to - from).map_err(|_| goes_back())?;
            let passed = after.passed.checked_sub(before.passed).ok_or_else(goes_back)?;
            let gaps = after.gaps.checked_sub(before.gaps).ok_or_else(goes_back)?;
            let mut counts = [0; 3];
            for (count, (before, after)) in counts.iter_mut().zip(before.counts().into_iter().zip(after.counts())) {
                *count = after.checked_sub(before).ok_or_else(goes_back)?;
            }
            let accounted = counts.iter().try_fold(gaps, |sum, count| sum.checked_add(*count));
            if passed != moved || accounted != Some(passed) {
                return Err(format!(
                    "the ledger of partition {partition} does not balance: offsets {from} to {to}, {passed} passed, \
                     {counts:?} records and {gaps} gaps"
                ));
            }
            if moved > 0 {
                stretches.push(Stretch { partition: partition.0, from, to, counts });
            }
        }
        Ok(stretches.into())
    }
}

/// The files of an epoch hold as many records as its ledger counts.
fn balance(commit: &Commit, files: &[DataFile]) -> Result<(), String> {
    for (kind, name) in KINDS.iter().enumerate() {
        let counted: u64 = commit.stretches.iter().filter_map(|stretch| stretch.counts.get(kind)).sum();
        let held: u64 = files.iter().filter(|file| file.kind == kind).map(|file| file.rows).sum();
        if counted != held {
            return Err(format!("its ledger counts {counted} records of kind {name}, its files hold {held}"));
        }
    }
    Ok(())
}

fn decode(paths: &ArchivePaths, stream: &str, version: u64, bytes: &[u8]) -> Result<Entry, AuditError> {
    entry_of(paths, version, bytes).map_err(|what| at(stream, version, what))
}

fn entry_of(paths: &ArchivePaths, version: u64, bytes: &[u8]) -> Result<Entry, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("the entry is not readable: {error}");
    let text = std::str::from_utf8(bytes).map_err(|error| unreadable(&error))?;
    let sha256 = NodeHash::of(bytes);
    let mut entry = Entry { version, sha256, record: None, adds: vec![], removes: vec![], metadata: None };
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let line: Line<'_> = serde_json::from_str(line).map_err(|error| unreadable(&error))?;
        if let Some(digested) = line.commit_info.and_then(|info| info.viewledger) {
            let actions = text.split_once('\n').map_or("", |(_, actions)| actions);
            let actions = actions.strip_suffix('\n').unwrap_or(actions);
            let covered = format!("{}\n{actions}", digested.record.get());
            if NodeHash::of(covered.as_bytes()).to_string() != digested.sha256 {
                return Err("the entry does not match its own SHA-256".to_owned());
            }
            let record = serde_json::from_str(digested.record.get()).map_err(|error| unreadable(&error))?;
            entry.record = Some(record);
        }
        if let Some(add) = line.add {
            let path = add.path.clone();
            let file = data_file(paths, add).ok_or_else(|| format!("it adds {path} without saying what it is"))?;
            entry.adds.push(file);
        }
        entry.removes.extend(line.remove.map(|remove| remove.path));
        entry.metadata = line.metadata.or(entry.metadata);
    }
    Ok(entry)
}

fn data_file(paths: &ArchivePaths, add: Add) -> Option<DataFile> {
    let tags = add.tags?;
    let tag = |name: &str| tags.get(name)?.as_deref();
    let epoch = tag("epoch")?.parse().ok()?;
    Some(DataFile {
        path: paths.data_file(&add.path),
        kind: KINDS.iter().position(|kind| tag("kind") == Some(*kind))?,
        rows: tag("rows")?.parse().ok()?,
        bytes: add.size,
        first: tag("first_epoch").map_or(Some(epoch), |first| first.parse().ok())?,
        epoch,
        sha256: tag("sha256")?.parse().ok()?,
        name: add.path,
    })
}
