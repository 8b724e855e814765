//! One entry of the table's log: its text, and the state that entries add up to. Pure; does no I/O.
//!
//! An entry is a Delta Lake commit: a JSON action per line. The first line's `commitInfo` carries our record:
//! the epoch, the frontier and the ledger after it. The record also holds
//!
//! | field | finds |
//! |---|---|
//! | `sha256` over the record and all other lines | a bit flip in this entry |
//! | `previous`, the SHA-256 of the entry before | an entry that was exchanged |
//! | `digest` over all files of the table | a checkpoint that lost or changed a file |

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::keep::{RetiredFile, RetiredFiles};
use super::ledger::{Ledger, Standing};
use super::{ArchiveFile, Kind};
use crate::config;
use crate::position::{Epoch, StreamFrontier};
use crate::storage::blocks::BlockDigests;
use crate::storage::paths::ArchivePaths;
use crate::storage::sha256_hex;

/// Application id of our `txn` actions; their version is the epoch.
const APPLICATION: &str = "viewledger";
/// Of [`Record`]; another one is refused, never guessed. Entries that rewrite files have the second.
const FORMATS: [u32; 2] = [1, 2];
/// How long removed files are remembered, as the table's own setting `delta.deletedFileRetentionDuration` says to
/// others and to checkpoints. No setting of ours may keep them longer.
pub(super) const REMEMBERED: Duration = config::RETENTION_MAX;

/// What a commit of ours says about the archive after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    /// Tells whose commit it is when the answer was lost.
    pub(super) nonce: String,
    pub(super) epoch: Epoch,
    frontier: StreamFrontier,
    ledger: Ledger,
    digest: String,
    previous: String,
}

/// What a new entry does besides moving the standing.
#[derive(Debug, Default)]
pub(super) struct Change {
    pub(super) files: Vec<ArchiveFile>,
    /// Names of files whose records are in `files` now.
    pub(super) replaced: Vec<(String, u64)>,
    /// The table's new `metaData` action.
    pub(super) metadata: Option<Value>,
}

/// An entry that was read.
#[derive(Debug)]
pub(super) struct Entry {
    sha256: String,
    /// None when another program wrote the entry.
    pub(super) record: Option<Record>,
    files: Vec<ArchiveFile>,
    removed: Vec<Remove>,
    metadata: Option<Value>,
    /// What the entry does to data that only we may do, or that we do not know.
    foreign: Option<String>,
}

/// What the log adds up to at one version.
#[derive(Debug, Clone)]
pub(super) struct TableState {
    pub(super) version: u64,
    pub(super) standing: Standing,
    /// By epoch, ascending.
    pub(super) files: Vec<Arc<ArchiveFile>>,
    /// Files that a rewrite replaced, for as long as they are remembered.
    pub(super) retired: RetiredFiles,
    pub(super) metadata: Value,
    entry_sha256: String,
    digest: FileDigest,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, rename = "commitInfo")]
    commit_info: Option<CommitInfo<'a>>,
    add: Option<Add>,
    remove: Option<Remove>,
    #[serde(rename = "metaData")]
    metadata: Option<Value>,
    protocol: Option<Value>,
}

#[derive(Deserialize)]
struct CommitInfo<'a> {
    #[serde(borrow)]
    viewledger: Option<Sealed<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    sha256: String,
    #[serde(borrow)]
    record: &'a RawValue,
}

#[derive(Debug, Deserialize)]
struct Remove {
    path: String,
    #[serde(rename = "deletionTimestamp")]
    at_millis: Option<i64>,
}

#[derive(Deserialize)]
struct Add {
    path: String,
    size: u64,
    tags: Option<HashMap<String, Option<String>>>,
}

/// The text of the entry after `state` that moves it to `standing`.
pub(super) fn encode(
    state: Option<&TableState>,
    standing: &Standing,
    nonce: &str,
    change: &Change,
    at_millis: i64,
) -> serde_json::Result<Bytes> {
    let mut digest = state.map_or_else(FileDigest::default, |state| state.digest);
    change.files.iter().for_each(|file| digest.toggle(file));
    let replaced: HashSet<&str> = change.replaced.iter().map(|(name, _)| name.as_str()).collect();
    let files = state.iter().flat_map(|state| &state.files);
    files.filter(|file| replaced.contains(file.name.as_str())).for_each(|file| digest.toggle(file));
    let [plain, rewriting] = FORMATS;
    let record = serde_json::value::to_raw_value(&Record {
        format: if change.replaced.is_empty() { plain } else { rewriting },
        nonce: nonce.to_owned(),
        epoch: standing.epoch,
        frontier: standing.frontier.clone(),
        ledger: standing.ledger.clone(),
        digest: digest.hex(),
        previous: state.map(|state| state.entry_sha256.clone()).unwrap_or_default(),
    })?;
    let mut actions = Vec::new();
    if state.is_none() {
        actions.push(json!({"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}));
    }
    actions.extend(change.metadata.iter().map(|metadata| json!({ "metaData": metadata })));
    let txn = json!({"appId": APPLICATION, "version": standing.epoch.0, "lastUpdated": at_millis});
    actions.push(json!({ "txn": txn }));
    actions.extend(change.replaced.iter().map(|(name, bytes)| remove_action(name, *bytes, at_millis)));
    let adds = if change.replaced.is_empty() { Adds::Records } else { Adds::SameRecords };
    actions.extend(change.files.iter().map(|file| add_action(file, adds, at_millis)));
    let actions: Vec<String> = actions.iter().map(Value::to_string).collect();
    let actions = actions.join("\n");
    let sealed = Sealed { sha256: seal(record.get(), &actions), record: &record };
    // Assembled as text: the digest covers the record's exact bytes.
    let operation = match adds {
        Adds::Records => r#""WRITE","operationParameters":{"mode":"Append"},"isBlindAppend":true"#,
        Adds::SameRecords => r#""OPTIMIZE","operationParameters":{},"isBlindAppend":false"#,
    };
    let text = format!(
        "{{\"commitInfo\":{{\"timestamp\":{at_millis},\"operation\":{operation},\"engineInfo\":\"viewledger {}\",\
         \"viewledger\":{}}}}}\n{actions}\n",
        env!("CARGO_PKG_VERSION"),
        serde_json::to_string(&sealed)?,
    );
    Ok(text.into())
}

fn seal(record: &str, actions: &str) -> String {
    sha256_hex(format!("{record}\n{actions}").as_bytes())
}

/// Whether the files that an entry adds hold records that the table did not have.
#[derive(Debug, Clone, Copy)]
enum Adds {
    Records,
    SameRecords,
}

fn add_action(file: &ArchiveFile, adds: Adds, at_millis: i64) -> Value {
    let mut tags = json!({
        "kind": file.kind.name(),
        "epoch": file.epoch.to_string(),
        "rows": file.rows.to_string(),
        "sha256": file.sha256,
    });
    if file.first != file.epoch {
        tags["first_epoch"] = file.first.to_string().into();
    }
    if let Some(columns) = &file.columns {
        tags["columns"] = columns.as_str().into();
    }
    if let Some(blocks) = &file.blocks {
        tags["blocks"] = blocks.to_string().into();
    }
    json!({"add": {
        "path": file.name,
        "partitionValues": {},
        "size": file.bytes,
        "modificationTime": at_millis,
        "dataChange": matches!(adds, Adds::Records),
        "stats": json!({"numRecords": file.rows}).to_string(),
        "tags": tags,
    }})
}

fn remove_action(name: &str, bytes: u64, at_millis: i64) -> Value {
    json!({"remove": {
        "path": name,
        "deletionTimestamp": at_millis,
        "dataChange": false,
        "extendedFileMetadata": true,
        "partitionValues": {},
        "size": bytes,
    }})
}

/// Reads an entry. The error says what is wrong with it; the caller names the object.
pub(super) fn decode(bytes: &[u8], paths: &ArchivePaths) -> Result<Entry, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let mut entry = Entry {
        sha256: sha256_hex(bytes),
        record: None,
        files: vec![],
        removed: vec![],
        metadata: None,
        foreign: None,
    };
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let line: Line<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if let Some(sealed) = line.commit_info.and_then(|info| info.viewledger) {
            entry.record = Some(open_sealed(&sealed, text)?);
        }
        if let Some(add) = line.add {
            match tagged_file(paths, &add.path, add.size, |tag| add.tags.as_ref()?.get(tag)?.clone()) {
                Some(file) => entry.files.push(file),
                None => entry.foreign = Some(format!("it adds {}", add.path)),
            }
        }
        if let Some(remove) = line.remove {
            entry.foreign = Some("it removes files".to_owned());
            entry.removed.push(remove);
        }
        if line.protocol.is_some() {
            entry.foreign.get_or_insert_with(|| "it changes the protocol".to_owned());
        }
        entry.metadata = line.metadata.or(entry.metadata);
    }
    if entry.record.is_none() && (!entry.files.is_empty() || entry.metadata.is_some()) {
        entry.foreign.get_or_insert_with(|| "it changes the table".to_owned());
    }
    Ok(entry)
}

fn open_sealed(sealed: &Sealed<'_>, text: &str) -> Result<Record, String> {
    let actions = text.split_once('\n').map_or("", |(_, actions)| actions);
    let actions = actions.strip_suffix('\n').ok_or("its end is missing")?;
    if seal(sealed.record.get(), actions) != sealed.sha256 {
        return Err("its content does not match its SHA-256".to_owned());
    }
    let record: Record = serde_json::from_str(sealed.record.get()).map_err(|error| error.to_string())?;
    if !FORMATS.contains(&record.format) {
        let [oldest, newest] = FORMATS;
        return Err(format!("it has format {}, this program knows {oldest} to {newest}", record.format));
    }
    Ok(record)
}

/// A file of ours from an add action; None when its tags are not ours.
pub(super) fn tagged_file(
    paths: &ArchivePaths,
    name: &str,
    bytes: u64,
    tag: impl Fn(&str) -> Option<String>,
) -> Option<ArchiveFile> {
    let epoch = Epoch(tag("epoch")?.parse().ok()?);
    let first = match tag("first_epoch") {
        Some(first) => Epoch(first.parse().ok()?),
        None => epoch,
    };
    Some(ArchiveFile {
        path: paths.data_file(name),
        name: name.to_owned(),
        kind: Kind::named(&tag("kind")?)?,
        rows: tag("rows")?.parse().ok()?,
        bytes,
        first,
        epoch,
        columns: tag("columns"),
        sha256: tag("sha256")?,
        blocks: match tag("blocks") {
            Some(blocks) => Some(BlockDigests::parse(&blocks)?),
            None => None,
        },
    })
}

/// Who made the entry that stands where ours should.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Winner {
    /// Our own attempt, whose answer was lost.
    Us,
    /// Another process of ours.
    Writer(Epoch),
    /// Another program, which changed nothing of ours.
    Harmless,
    /// Another program, which did what it must not.
    Foreign(String),
}

impl Entry {
    pub(super) fn winner(&self, nonce: &str) -> Winner {
        match (&self.record, &self.foreign) {
            (Some(record), _) if record.nonce == nonce => Winner::Us,
            (Some(record), _) => Winner::Writer(record.epoch),
            (None, Some(what)) => Winner::Foreign(what.clone()),
            (None, None) => Winner::Harmless,
        }
    }
}

impl TableState {
    /// The state of the table's first entry.
    pub(super) fn first(entry: Entry) -> Result<Self, String> {
        let metadata = entry.metadata.clone().ok_or("it has no schema")?;
        let mut state = Self {
            version: 0,
            standing: Standing::default(),
            files: Vec::new(),
            retired: RetiredFiles::default(),
            metadata,
            entry_sha256: String::new(),
            digest: FileDigest::default(),
        };
        if entry.record.is_none() {
            return Err("it was not written by viewledger; give the stream another name".to_owned());
        }
        state.fold(entry)?;
        Ok(state)
    }

    /// The state at a checkpoint. `entry` is the one of `version`, `record` the newest of ours at or below it.
    pub(super) fn at_checkpoint(
        version: u64,
        entry: &Entry,
        record: &Record,
        table: CheckpointTable,
    ) -> Result<Self, String> {
        let CheckpointTable { files, retired, metadata } = table;
        let mut files: Vec<Arc<ArchiveFile>> = files.into_iter().map(Arc::new).collect();
        put_in_order(&mut files);
        let mut digest = FileDigest::default();
        files.iter().for_each(|file| digest.toggle(file));
        if digest.hex() != record.digest {
            return Err("its files are not those of the commit it stands for".to_owned());
        }
        Ok(Self {
            version,
            standing: record.standing(),
            files,
            retired: RetiredFiles::new(retired),
            metadata,
            entry_sha256: entry.sha256.clone(),
            digest,
        })
    }

    /// Applies the entry of the next version.
    pub(super) fn apply(&mut self, entry: Entry) -> Result<(), String> {
        self.version += 1;
        self.fold(entry)
    }

    fn fold(&mut self, entry: Entry) -> Result<(), String> {
        match entry.record {
            Some(record) => {
                if record.previous != self.entry_sha256 {
                    return Err("it does not follow the entry before it, which was exchanged".to_owned());
                }
                if !entry.removed.is_empty() {
                    self.retire(&entry.removed, &entry.files)?;
                }
                for file in entry.files {
                    self.digest.toggle(&file);
                    self.files.push(Arc::new(file));
                }
                if !entry.removed.is_empty() {
                    put_in_order(&mut self.files);
                }
                if self.digest.hex() != record.digest {
                    return Err("the files up to it are not those that it was written for".to_owned());
                }
                self.standing = record.standing();
            }
            None => {
                if let Some(what) = entry.foreign {
                    return Err(format!("another program wrote it and {what}; the archive has one writer"));
                }
            }
        }
        if let Some(metadata) = entry.metadata {
            self.metadata = metadata;
        }
        self.entry_sha256 = entry.sha256;
        Ok(())
    }
}

impl TableState {
    /// Takes the files out that a rewrite replaced. What it puts in their place holds as many records.
    fn retire(&mut self, removed: &[Remove], added: &[ArchiveFile]) -> Result<(), String> {
        let mut balance = [0_i128; Kind::ALL.len()];
        let mut retired: Vec<RetiredFile> = Vec::with_capacity(removed.len());
        let named: HashMap<&str, &Remove> = removed.iter().map(|r| (r.path.as_str(), r)).collect();
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.files).into_iter().partition(|file| named.contains_key(file.name.as_str()));
        self.files = kept;
        if gone.len() != removed.len() {
            return Err("it replaces files that the table does not have".to_owned());
        }
        for file in &gone {
            self.digest.toggle(file);
            balance[file.kind.index()] -= i128::from(file.rows);
            let at_millis = named.get(file.name.as_str()).and_then(|remove| remove.at_millis).unwrap_or_default();
            retired.push(RetiredFile::of(file, at_millis));
        }
        added.iter().for_each(|file| balance[file.kind.index()] += i128::from(file.rows));
        if balance.iter().any(|rows| *rows != 0) {
            return Err("the files that it puts in the place of others hold more or fewer records".to_owned());
        }
        self.retired = self.retired.with(retired);
        Ok(())
    }
}

/// Sorts files as snapshots hold them.
fn put_in_order(files: &mut [Arc<ArchiveFile>]) {
    files.sort_by(|a, b| (a.epoch, a.kind, &a.name).cmp(&(b.epoch, b.kind, &b.name)));
}

/// What a checkpoint holds of a table.
#[derive(Debug, Default)]
pub(super) struct CheckpointTable {
    pub(super) files: Vec<ArchiveFile>,
    pub(super) retired: Vec<RetiredFile>,
    pub(super) metadata: Value,
}

impl Record {
    fn standing(&self) -> Standing {
        Standing { epoch: self.epoch, frontier: self.frontier.clone(), ledger: self.ledger.clone() }
    }
}

/// An order-free digest of a set of files: the exclusive or of each one's SHA-256. It finds damage, it does
/// not resist a forger; seals do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct FileDigest([u8; 32]);

impl FileDigest {
    fn toggle(&mut self, file: &ArchiveFile) {
        let ArchiveFile { path: _, name, kind, rows, bytes, first, epoch, columns, sha256, blocks } = file;
        let mut text = format!("{name}|{}|{rows}|{bytes}|{epoch}|{sha256}", kind.name());
        // What older files lack adds nothing to their digest.
        if first != epoch {
            text.push_str(&format!("|first {first}"));
        }
        if let Some(columns) = columns {
            text.push_str(&format!("|columns {columns}"));
        }
        if let Some(blocks) = blocks {
            text.push_str(&format!("|blocks {blocks}"));
        }
        for (mine, theirs) in self.0.iter_mut().zip(Sha256::digest(text.as_bytes())) {
            *mine ^= theirs;
        }
    }

    fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests;
