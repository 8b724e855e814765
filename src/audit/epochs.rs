//! What the records of epochs hash to, read from the files that hold them now.
//!
//! A record belongs to the epoch whose stretch of its partition has its offset; so the tree of an epoch is the same
//! before and after compaction. Its leaves are the epoch's records in order of partition and offset, of all kinds. The
//! leaf of the epoch in the tree of the stream is a line of JSON, see [`EpochLeaf`].

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;

use arrow::array::{Array, AsArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Int32Type, Int64Type};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use super::log::{Chain, Commit, DUPLICATE, DataFile, EVENT, KINDS, Stretch};
use super::merkle::{self, NodeHash};
use super::record::{Values, columns_text};
use super::{AuditError, Divergence, Place};
use crate::position::PartitionId;
use crate::storage::Storage;

const PARTITION: &str = "_partition";
const OFFSET: &str = "_offset";
const KIND: &str = "_kind";
/// Rows that are decoded at once.
const BATCH_ROWS: usize = 8192;

/// An epoch in the tree of its stream. The bytes of the leaf are this as JSON without spaces, fields in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochLeaf {
    pub stream: String,
    pub epoch: u64,
    /// The entry of the log that made it, and its SHA-256: it holds frontier, ledger, and the files' SHA-256.
    pub version: u64,
    pub commit: NodeHash,
    /// The SHA-256 of the text that names the columns of its records; of the empty text when there are none.
    pub columns: NodeHash,
    pub records: u64,
    /// Of the tree of its records.
    pub root: NodeHash,
}

impl EpochLeaf {
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers are always JSON")
    }

    pub fn hash(&self) -> NodeHash {
        merkle::leaf(self.text().as_bytes())
    }
}

/// Epochs whose records share files, side by side, and these files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub files: Vec<DataFile>,
    /// Within the commits of the chain.
    pub commits: Range<usize>,
}

impl Group {
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Cuts a chain where no file lies across. Files that end before its first commit are left out.
pub fn groups(chain: &Chain) -> Vec<Group> {
    let Some(oldest) = chain.commits.first().map(|commit| commit.epoch) else { return Vec::new() };
    let index = |epoch: u64| usize::try_from(epoch.saturating_sub(oldest)).unwrap_or(usize::MAX);
    let mut files = chain.files.iter().filter(|file| file.epoch >= oldest).peekable();
    let mut groups = Vec::new();
    let mut at = 0;
    while at < chain.commits.len() {
        let mut group = Group { files: Vec::new(), commits: at..at + 1 };
        while let Some(file) = files.next_if(|file| index(file.first) < group.commits.end) {
            group.commits.end = group.commits.end.max(index(file.epoch) + 1).min(chain.commits.len());
            group.files.push(file.clone());
        }
        at = group.commits.end;
        groups.push(group);
    }
    groups
}

/// A group with the bytes of its files; None for one that is missing.
#[derive(Debug)]
pub struct Loaded {
    pub group: Group,
    bytes: Vec<Option<Bytes>>,
}

impl Loaded {
    fn files(&self) -> impl Iterator<Item = (&DataFile, Option<&Bytes>)> {
        self.group.files.iter().zip(self.bytes.iter().map(Option::as_ref))
    }

    /// The first file that is not there.
    pub fn missing(&self) -> Option<&DataFile> {
        self.files().find(|(_, bytes)| bytes.is_none()).map(|(file, _)| file)
    }
}

/// Fetches the files of a group.
pub async fn load(storage: &Storage, group: Group) -> Result<Loaded, AuditError> {
    let mut bytes = Vec::with_capacity(group.files.len());
    for file in &group.files {
        bytes.push(storage.read(&file.path).await?);
    }
    Ok(Loaded { group, bytes })
}

/// What was read of a group.
#[derive(Debug)]
pub struct Read {
    /// One for each commit of the group.
    pub epochs: Vec<EpochLeaf>,
    pub faults: Vec<Divergence>,
    pub records: u64,
    /// Hashes of the keys of records that count, and of duplicates.
    pub keys: [Vec<u64>; 2],
}

/// Hashes every record of a group and holds it against its commits. CPU only.
pub fn digest(chain: &Chain, loaded: &Loaded) -> Read {
    Reader::new(chain, &loaded.group, None).all(loaded).0
}

/// A record in the tree of its epoch.
#[derive(Debug)]
pub struct Opened {
    /// Of all records of the epoch, in order.
    pub leaves: Vec<NodeHash>,
    /// Of the record among them.
    pub index: usize,
    pub columns: String,
    pub record: Vec<u8>,
    pub epoch: EpochLeaf,
}

/// As [`digest`], with the record at `offset` of `partition`; None when there is none.
pub fn open(chain: &Chain, loaded: &Loaded, partition: i32, offset: i64) -> Result<Option<Opened>, Divergence> {
    let wanted = (partition, offset);
    let (read, records, found) = Reader::new(chain, &loaded.group, Some(wanted)).all(loaded);
    if let Some(fault) = read.faults.into_iter().next() {
        return Err(fault);
    }
    let place = records.iter().find(|record| (record.partition, record.offset) == wanted);
    let (Some(place), Some((columns, record))) = (place, found) else { return Ok(None) };
    let of_epoch = || records.iter().filter(|record| record.commit == place.commit);
    let index = of_epoch().take_while(|record| (record.partition, record.offset) != wanted).count();
    let leaves = of_epoch().map(|record| record.leaf).collect();
    let epoch = read.epochs.into_iter().nth(place.commit as usize);
    Ok(epoch.map(|epoch| Opened { leaves, index, columns, record, epoch }))
}

/// A key, and where it stands.
#[derive(Debug)]
pub struct Keyed {
    pub key: Vec<u8>,
    pub place: Place,
}

/// The records of a kind whose keys have one of these hashes.
pub fn with_keys(chain: &Chain, loaded: &Loaded, kind: usize, wanted: &HashSet<u64>) -> Vec<Keyed> {
    let mut found = Vec::new();
    let mut reader = Reader::new(chain, &loaded.group, None);
    for (file, bytes) in loaded.files().filter(|(file, _)| file.kind == kind) {
        let Some(bytes) = bytes else { continue };
        // What cannot be read was told of before.
        drop(reader.batches(file, bytes.clone(), |reader, first_row, batch, _| {
            let (Some(coordinates), Some(key)) = (Coordinates::of(batch), reader.key(file, batch)) else {
                return Ok(());
            };
            for row in 0..batch.num_rows() {
                let mut bytes = Vec::new();
                if wanted.contains(&key_hash(&key, row, &mut bytes))
                    && let Some(at) = coordinates.at(row)
                {
                    let place = reader.row_place(file, first_row + row, at);
                    found.push(Keyed { key: bytes, place });
                }
            }
            Ok(())
        }));
    }
    found
}

/// The bytes of a key stay in `bytes`.
fn key_hash(key: &Values, row: usize, bytes: &mut Vec<u8>) -> u64 {
    bytes.clear();
    key.write(row, bytes);
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// A record, as its leaf in the tree of its epoch.
#[derive(Debug, Clone, Copy)]
struct Located {
    /// Within the group.
    commit: u32,
    partition: i32,
    offset: i64,
    kind: u8,
    /// Within the group.
    file: u32,
    row: u32,
    leaf: NodeHash,
}

/// The columns of a batch by which records are told apart.
struct Coordinates {
    partition: Int32Array,
    offset: Int64Array,
    kind: StringArray,
}

impl Coordinates {
    fn of(batch: &RecordBatch) -> Option<Self> {
        Some(Self {
            partition: batch.column_by_name(PARTITION)?.as_primitive_opt::<Int32Type>()?.clone(),
            offset: batch.column_by_name(OFFSET)?.as_primitive_opt::<Int64Type>()?.clone(),
            kind: batch.column_by_name(KIND)?.as_string_opt::<i32>()?.clone(),
        })
    }

    fn at(&self, row: usize) -> Option<(i32, i64)> {
        let known = self.partition.is_valid(row) && self.offset.is_valid(row);
        known.then(|| (self.partition.value(row), self.offset.value(row)))
    }
}

/// Which epoch an offset belongs to.
enum Belongs {
    /// To this commit of the group.
    To(usize),
    /// To an epoch from before what is looked at.
    Earlier,
    Nowhere,
}

/// Of the record that is wanted: the columns of its file, and its canonical bytes.
type Found = (String, Vec<u8>);

/// The columns of a file, and their digest.
type Columns<'a> = (&'a str, NodeHash);

struct Reader<'a> {
    chain: &'a Chain,
    group: &'a Group,
    commits: &'a [Commit],
    /// By partition, ascending: stretches of commits of the group.
    stretches: HashMap<i32, Vec<(Stretch, usize)>>,
    records: Vec<Located>,
    faults: Vec<Divergence>,
    keys: [Vec<u64>; 2],
    /// By commit of the group.
    columns: Vec<Option<NodeHash>>,
    /// A file could not be read whole, so that records are missing for sure.
    unreadable: bool,
    wanted: Option<(i32, i64)>,
    found: Option<Found>,
}

impl<'a> Reader<'a> {
    fn new(chain: &'a Chain, group: &'a Group, wanted: Option<(i32, i64)>) -> Self {
        let commits = chain.commits.get(group.commits.clone()).unwrap_or_default();
        let mut stretches: HashMap<i32, Vec<(Stretch, usize)>> = HashMap::new();
        for (index, commit) in commits.iter().enumerate() {
            for stretch in &commit.stretches {
                stretches.entry(stretch.partition).or_default().push((*stretch, index));
            }
        }
        Self {
            chain,
            group,
            commits,
            stretches,
            records: Vec::new(),
            faults: Vec::new(),
            keys: [Vec::new(), Vec::new()],
            columns: vec![None; commits.len()],
            unreadable: false,
            wanted,
            found: None,
        }
    }

    /// Reads every file. The records are in the order of the tree.
    fn all(mut self, loaded: &Loaded) -> (Read, Vec<Located>, Option<Found>) {
        for (index, (file, bytes)) in loaded.files().enumerate() {
            match bytes {
                None => {
                    self.unreadable = true;
                    self.fault(self.place(file), "the file is missing");
                }
                Some(bytes) => self.file(index, file, bytes),
            }
        }
        let mut records = std::mem::take(&mut self.records);
        records.sort_unstable_by_key(|record| (record.commit, record.partition, record.offset));
        let mut epochs = Vec::with_capacity(self.commits.len());
        let mut of_commits = records.chunk_by(|a, b| a.commit == b.commit).peekable();
        for (index, commit) in self.commits.iter().enumerate() {
            let here = |records: &&[Located]| records.first().is_some_and(|record| record.commit as usize == index);
            let records = of_commits.next_if(here).unwrap_or_default();
            if !self.unreadable {
                let differences = self.differences(commit, records);
                self.faults.extend(differences);
            }
            let mut peaks = merkle::Peaks::default();
            records.iter().for_each(|record| peaks.push(record.leaf));
            epochs.push(EpochLeaf {
                stream: self.chain.stream.clone(),
                epoch: commit.epoch,
                version: commit.version,
                commit: commit.sha256,
                columns: self.columns.get(index).copied().flatten().unwrap_or_else(|| NodeHash::of(&[])),
                records: peaks.size(),
                root: peaks.root(),
            });
        }
        let read = Read { epochs, faults: self.faults, records: records.len() as u64, keys: self.keys };
        (read, records, self.found)
    }

    fn fault(&mut self, place: Place, what: impl Into<String>) {
        self.faults.push(Divergence::at(place, what));
    }

    fn place(&self, file: &DataFile) -> Place {
        let commit = self.commits.iter().find(|commit| commit.epoch == file.epoch);
        Place {
            version: commit.map(|commit| commit.version),
            epoch: Some(file.epoch),
            file: Some(file.path.to_string()),
            ..Place::stream(&self.chain.stream)
        }
    }

    fn row_place(&self, file: &DataFile, row: usize, (partition, offset): (i32, i64)) -> Place {
        let row = Some(row as u64);
        Place { row, partition: Some(partition), offset: Some(offset), ..self.place(file) }
    }

    fn file(&mut self, index: usize, file: &DataFile, bytes: &Bytes) {
        if NodeHash::of(bytes) != file.sha256 {
            self.fault(self.place(file), "the file does not match the SHA-256 in its commit");
        }
        // Its records may tell more precisely what happened to it.
        let read = self.batches(file, bytes.clone(), |reader, first_row, batch, columns| {
            reader.batch(index, file, first_row, batch, columns)
        });
        if let Err(what) = read {
            self.unreadable = true;
            self.fault(self.place(file), what);
        }
    }

    fn batches(
        &mut self,
        file: &DataFile,
        bytes: Bytes,
        mut each: impl FnMut(&mut Self, usize, &RecordBatch, Columns<'_>) -> Result<(), String>,
    ) -> Result<(), String> {
        let unreadable = |error: &dyn std::fmt::Display| format!("the file is not readable: {error}");
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|error| unreadable(&error))?;
        let columns = columns_text(reader.schema())?;
        let digest = NodeHash::of(columns.as_bytes());
        let reader = reader.with_batch_size(BATCH_ROWS).build().map_err(|error| unreadable(&error))?;
        let mut rows = 0;
        for batch in reader {
            let batch = batch.map_err(|error| unreadable(&error))?;
            each(self, rows, &batch, (&columns, digest))?;
            rows += batch.num_rows();
        }
        if rows as u64 != file.rows {
            self.fault(self.place(file), format!("the file holds {rows} records, its commit says {}", file.rows));
        }
        Ok(())
    }

    fn batch(
        &mut self,
        index: usize,
        file: &DataFile,
        first_row: usize,
        batch: &RecordBatch,
        (columns, columns_digest): Columns<'_>,
    ) -> Result<(), String> {
        let coordinates = Coordinates::of(batch).ok_or("the file lacks the columns of records")?;
        let values: Vec<Values> =
            batch.columns().iter().map(Values::of).collect::<Option<_>>().ok_or("a column has no bytes")?;
        let key = self.key(file, batch);
        let mut bytes = Vec::new();
        for row in 0..batch.num_rows() {
            let row_in_file = first_row + row;
            let Some((partition, offset)) = coordinates.at(row) else {
                return Err(format!("row {row_in_file} says no partition and offset"));
            };
            let commit = match self.belongs(file, partition, offset) {
                Belongs::To(commit) => commit,
                Belongs::Earlier => continue,
                Belongs::Nowhere => {
                    let place = self.row_place(file, row_in_file, (partition, offset));
                    self.fault(place, "the record belongs to no epoch of the file");
                    continue;
                }
            };
            let epoch = self.commits.get(commit).map_or(0, |commit| commit.epoch);
            let kind = coordinates.kind.is_valid(row).then(|| coordinates.kind.value(row));
            if epoch < file.first || epoch > file.epoch || KINDS.get(file.kind).copied() != kind {
                let place = self.row_place(file, row_in_file, (partition, offset));
                let kind = kind.unwrap_or("unknown");
                self.fault(
                    place,
                    format!("a record of kind {kind} and epoch {epoch} does not belong into the file"),
                );
            }
            match self.columns.get_mut(commit) {
                Some(known @ None) => *known = Some(columns_digest),
                Some(Some(known)) if *known != columns_digest => {
                    return Err(format!("the file has other columns than another one of epoch {epoch}"));
                }
                _ => {}
            }
            if let (Some(key), Some(keys)) = (&key, self.keys.get_mut(file.kind)) {
                keys.push(key_hash(key, row, &mut bytes));
            }
            bytes.clear();
            values.iter().for_each(|column| column.write(row, &mut bytes));
            if self.wanted == Some((partition, offset)) {
                self.found = Some((columns.to_owned(), bytes.clone()));
            }
            self.records.push(Located {
                commit: u32::try_from(commit).unwrap_or(u32::MAX),
                partition,
                offset,
                kind: u8::try_from(file.kind).unwrap_or(u8::MAX),
                file: u32::try_from(index).unwrap_or(u32::MAX),
                row: u32::try_from(row_in_file).unwrap_or(u32::MAX),
                leaf: merkle::leaf(&bytes),
            });
        }
        Ok(())
    }

    /// The keys of a batch, where duplicates are told by them.
    fn key(&self, file: &DataFile, batch: &RecordBatch) -> Option<Values> {
        let key = self.chain.key.as_deref().filter(|_| file.kind == EVENT || file.kind == DUPLICATE)?;
        Values::of(batch.column_by_name(key)?)
    }

    fn belongs(&self, file: &DataFile, partition: i32, offset: i64) -> Belongs {
        let stretches = self.stretches.get(&partition).map(Vec::as_slice).unwrap_or_default();
        let after = stretches.partition_point(|(stretch, _)| stretch.to <= offset);
        match stretches.get(after) {
            Some((stretch, commit)) if stretch.from <= offset => return Belongs::To(*commit),
            _ => {}
        }
        let begins = match stretches.first() {
            Some((first, _)) => first.from,
            None => self.chain.head.frontier.position(PartitionId(partition)).0,
        };
        let reaches_back = self.commits.first().is_some_and(|commit| file.first < commit.epoch);
        if reaches_back && offset < begins { Belongs::Earlier } else { Belongs::Nowhere }
    }

    /// Where the records of an epoch are not those that its commit counts.
    fn differences(&self, commit: &Commit, records: &[Located]) -> Vec<Divergence> {
        let mut faults = Vec::new();
        for pair in records.windows(2) {
            let [first, second] = pair else { continue };
            if (first.partition, first.offset) == (second.partition, second.offset) {
                let what =
                    format!("the offset is archived twice, also in row {} of {}", first.row, self.name(first));
                faults.push(Divergence::at(self.located(commit, second), what));
            }
        }
        if !faults.is_empty() {
            return faults;
        }
        let mut rest = records;
        for stretch in &commit.stretches {
            let count = rest.iter().take_while(|record| record.partition == stretch.partition).count();
            let (records, after) = rest.split_at(count);
            rest = after;
            faults.extend(self.difference(commit, stretch, records));
        }
        faults
    }

    fn difference(&self, commit: &Commit, stretch: &Stretch, records: &[Located]) -> Option<Divergence> {
        let mut found = [0_u64; KINDS.len()];
        for record in records {
            if let Some(count) = found.get_mut(usize::from(record.kind)) {
                *count += 1;
            }
        }
        let differs = |kind: &usize| found.get(*kind) != stretch.counts.get(*kind);
        let kind = (0..KINDS.len()).find(differs)?;
        let offsets = stretch.from..;
        let absent = offsets.zip(records.iter().map(|record| record.offset).chain([stretch.to]));
        let absent = absent.into_iter().find(|(offset, record)| offset != record).map(|(offset, _)| offset);
        let holds = self
            .group
            .files
            .iter()
            .find(|file| file.kind == kind && file.first <= commit.epoch && commit.epoch <= file.epoch);
        let place = Place {
            file: holds.map(|file| file.path.to_string()),
            partition: Some(stretch.partition),
            offset: absent.filter(|offset| *offset < stretch.to),
            ..commit.place(&self.chain.stream)
        };
        let [events, duplicates, quarantined] = found;
        let what = format!(
            "offsets {} to {} hold {events} events, {duplicates} duplicates and {quarantined} quarantined records; the              ledger counts {:?}, and {} gaps",
            stretch.from,
            stretch.to,
            stretch.counts,
            stretch.gaps()
        );
        Some(Divergence::at(place, what))
    }

    fn name(&self, record: &Located) -> &str {
        let file = self.group.files.get(record.file as usize);
        file.map(|file| file.path.as_ref()).unwrap_or_default()
    }

    fn located(&self, commit: &Commit, record: &Located) -> Place {
        Place {
            file: Some(self.name(record).to_owned()),
            row: Some(u64::from(record.row)),
            partition: Some(record.partition),
            offset: Some(record.offset),
            ..commit.place(&self.chain.stream)
        }
    }
}
