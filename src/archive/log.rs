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

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::ledger::{Ledger, Standing};
use super::{ArchiveFile, Kind};
use crate::position::{Epoch, StreamFrontier};
use crate::storage::paths::ArchivePaths;
use crate::storage::sha256_hex;

/// Application id of our `txn` actions; their version is the epoch.
const APPLICATION: &str = "viewledger";
/// Of [`Record`]; another one is refused, never guessed.
const FORMAT: u32 = 1;

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
    pub(super) metadata: Value,
    entry_sha256: String,
    digest: FileDigest,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, rename = "commitInfo")]
    commit_info: Option<CommitInfo<'a>>,
    add: Option<Add>,
    remove: Option<Value>,
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

#[derive(Deserialize)]
struct Add {
    path: String,
    size: u64,
    tags: Option<std::collections::HashMap<String, Option<String>>>,
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
    let record = serde_json::value::to_raw_value(&Record {
        format: FORMAT,
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
    actions.extend(change.files.iter().map(|file| add_action(file, at_millis)));
    let actions: Vec<String> = actions.iter().map(Value::to_string).collect();
    let actions = actions.join("\n");
    let sealed = Sealed { sha256: seal(record.get(), &actions), record: &record };
    // Assembled as text: the digest covers the record's exact bytes.
    let text = format!(
        "{{\"commitInfo\":{{\"timestamp\":{at_millis},\"operation\":\"WRITE\",\"operationParameters\":{{\"mode\":\
         \"Append\"}},\"isBlindAppend\":true,\"engineInfo\":\"viewledger {}\",\"viewledger\":{}}}}}\n{actions}\n",
        env!("CARGO_PKG_VERSION"),
        serde_json::to_string(&sealed)?,
    );
    Ok(text.into())
}

fn seal(record: &str, actions: &str) -> String {
    sha256_hex(format!("{record}\n{actions}").as_bytes())
}

fn add_action(file: &ArchiveFile, at_millis: i64) -> Value {
    json!({"add": {
        "path": file.name,
        "partitionValues": {},
        "size": file.bytes,
        "modificationTime": at_millis,
        "dataChange": true,
        "stats": json!({"numRecords": file.rows}).to_string(),
        "tags": {
            "kind": file.kind.name(),
            "epoch": file.epoch.to_string(),
            "rows": file.rows.to_string(),
            "sha256": file.sha256,
        },
    }})
}

/// Reads an entry. The error says what is wrong with it; the caller names the object.
pub(super) fn decode(bytes: &[u8], paths: &ArchivePaths) -> Result<Entry, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let mut entry =
        Entry { sha256: sha256_hex(bytes), record: None, files: Vec::new(), metadata: None, foreign: None };
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
        if line.remove.is_some() {
            entry.foreign = Some("it removes files".to_owned());
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
    if record.format != FORMAT {
        return Err(format!("it has format {}, this program knows {FORMAT}", record.format));
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
    Some(ArchiveFile {
        path: paths.data_file(name),
        name: name.to_owned(),
        kind: Kind::named(&tag("kind")?)?,
        rows: tag("rows")?.parse().ok()?,
        bytes,
        epoch: Epoch(tag("epoch")?.parse().ok()?),
        sha256: tag("sha256")?,
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
        mut files: Vec<ArchiveFile>,
        metadata: Value,
    ) -> Result<Self, String> {
        files.sort_by_key(|file| (file.epoch, file.kind));
        let mut digest = FileDigest::default();
        files.iter().for_each(|file| digest.toggle(file));
        if digest.hex() != record.digest {
            return Err("its files are not those of the commit it stands for".to_owned());
        }
        Ok(Self {
            version,
            standing: record.standing(),
            files: files.into_iter().map(Arc::new).collect(),
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
                for file in entry.files {
                    self.digest.toggle(&file);
                    self.files.push(Arc::new(file));
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
        let ArchiveFile { path: _, name, kind, rows, bytes, epoch, sha256 } = file;
        let text = format!("{name}|{}|{rows}|{bytes}|{epoch}|{sha256}", kind.name());
        for (mine, theirs) in self.0.iter_mut().zip(Sha256::digest(text.as_bytes())) {
            *mine ^= theirs;
        }
    }

    fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::storage::paths::data_file_name;

    fn file(epoch: u64) -> ArchiveFile {
        let name = data_file_name("events", Epoch(epoch), "n");
        ArchiveFile {
            path: ArchivePaths::new("s").data_file(&name),
            name,
            kind: Kind::Event,
            rows: 3,
            bytes: 99,
            epoch: Epoch(epoch),
            sha256: "ab".into(),
        }
    }

    fn standing(epoch: u64) -> Standing {
        Standing { epoch: Epoch(epoch), ..Standing::default() }
    }

    fn decoded(bytes: &[u8]) -> Entry {
        decode(bytes, &ArchivePaths::new("s")).unwrap()
    }

    fn started() -> (TableState, Bytes) {
        let change = Change { metadata: Some(json!({"id": "x"})), ..Change::default() };
        let bytes = encode(None, &standing(0), "a", &change, 5).unwrap();
        (TableState::first(decoded(&bytes)).unwrap(), bytes)
    }

    fn next(state: &TableState, nonce: &str) -> Bytes {
        let epoch = state.standing.epoch.0 + 1;
        let change = Change { files: vec![file(epoch)], metadata: None };
        encode(Some(state), &standing(epoch), nonce, &change, 5).unwrap()
    }

    #[test]
    fn entries_add_up() {
        let (mut state, _) = started();
        for n in 1..=3 {
            let bytes = next(&state, "b");
            state.apply(decoded(&bytes)).unwrap();
            assert_eq!((state.version, state.standing.epoch), (n, Epoch(n)));
        }
        assert_eq!(state.files.iter().map(|file| file.epoch.0).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(*state.files[2], file(3));
    }

    #[test]
    fn every_flipped_bit_of_what_matters_is_found() {
        let (state, _) = started();
        let good = next(&state, "b");
        let covered = std::str::from_utf8(&good).unwrap().find("\"sha256\"").unwrap();
        for position in covered..good.len() {
            let mut bad = good.to_vec();
            bad[position] ^= 0x01;
            let outcome = decode(&bad, &ArchivePaths::new("s")).and_then(|entry| state.clone().apply(entry));
            assert!(outcome.is_err(), "a flip at byte {position} of {} went unnoticed", good.len());
        }
    }

    #[test]
    fn an_exchanged_entry_breaks_the_chain() {
        let (state, _) = started();
        let (first, other) = (next(&state, "b"), next(&state, "c"));
        let mut one = state.clone();
        one.apply(decoded(&first)).unwrap();
        let second = next(&one, "d");
        let mut exchanged = state;
        exchanged.apply(decoded(&other)).unwrap();
        assert!(exchanged.apply(decoded(&second)).unwrap_err().contains("exchanged"));
    }

    #[test]
    fn the_winner_is_known_by_its_nonce() {
        let (mut state, _) = started();
        let entry = decoded(&next(&state, "b"));
        assert_eq!(entry.winner("b"), Winner::Us);
        assert_eq!(entry.winner("z"), Winner::Writer(Epoch(1)));
        let vacuum = decoded(b"{\"commitInfo\":{\"operation\":\"VACUUM END\"}}\n");
        assert_eq!(vacuum.winner("b"), Winner::Harmless);
        state.apply(vacuum).unwrap();
        let optimize =
            b"{\"commitInfo\":{}}\n{\"remove\":{\"path\":\"x\"}}\n{\"add\":{\"path\":\"y\",\"size\":1}}\n";
        assert!(matches!(decoded(optimize).winner("b"), Winner::Foreign(_)));
        assert!(state.apply(decoded(optimize)).unwrap_err().contains("one writer"));
    }

    #[test]
    fn a_checkpoint_that_lost_a_file_is_found() {
        let (mut state, _) = started();
        let bytes = next(&state, "b");
        state.apply(decoded(&bytes)).unwrap();
        let entry = decoded(&bytes);
        let record = entry.record.clone().unwrap();
        assert!(TableState::at_checkpoint(1, &entry, &record, vec![file(1)], json!({})).is_ok());
        assert!(TableState::at_checkpoint(1, &entry, &record, vec![], json!({})).is_err());
        let changed = ArchiveFile { rows: 4, ..file(1) };
        assert!(TableState::at_checkpoint(1, &entry, &record, vec![changed], json!({})).is_err());
    }
}
