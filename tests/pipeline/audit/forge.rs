//! What somebody who can write to the data directory may do to it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{Int32Type, Int64Type};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use viewledger::audit::key::SigningKey;
use viewledger::audit::seal::{SealDocument, Statement};

pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries
        .filter(|path| path.is_file() && path.file_name().unwrap().to_str().unwrap().starts_with("00000"))
        .collect();
    paths.sort();
    paths
}

/// A file of a folder, by the order of names.
pub fn numbered(dir: &Path, folder: &str, index: usize) -> PathBuf {
    files(&dir.join(folder)).swap_remove(index)
}

pub fn last(dir: &Path, folder: &str) -> PathBuf {
    files(&dir.join(folder)).pop().unwrap()
}

pub fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x01;
    std::fs::write(path, bytes).unwrap();
}

pub fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// A file that took the place of another one.
pub struct Forged {
    pub rows: usize,
    pub bytes: u64,
    pub sha256: String,
}

fn read(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let schema = Arc::clone(reader.schema());
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema, &batches).unwrap()
}

fn rewrite(path: &Path, change: impl FnOnce(RecordBatch) -> RecordBatch) -> Forged {
    let batch = change(read(path));
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    let bytes = writer.into_inner().unwrap();
    std::fs::write(path, &bytes).unwrap();
    Forged { rows: batch.num_rows(), bytes: bytes.len() as u64, sha256: sha256(&bytes) }
}

pub fn drop_row(path: &Path, row: usize) -> Forged {
    rewrite(path, |batch| {
        let parts = [batch.slice(0, row), batch.slice(row + 1, batch.num_rows() - row - 1)];
        concat_batches(batch.schema_ref(), &parts).unwrap()
    })
}

/// Its first row once more, at the end.
pub fn append_row(path: &Path) -> Forged {
    rewrite(path, |batch| concat_batches(batch.schema_ref(), &[batch.clone(), batch.slice(0, 1)]).unwrap())
}

/// Gives a row another id.
pub fn rename_row(path: &Path, row: usize, id: &str) -> Forged {
    rewrite(path, |batch| {
        let ids = batch.column(0).as_any().downcast_ref::<StringArray>().unwrap();
        let new = |n: usize| if n == row { Some(id) } else { ids.is_valid(n).then(|| ids.value(n)) };
        let column: ArrayRef = Arc::new((0..ids.len()).map(new).collect::<StringArray>());
        let columns = std::iter::once(column).chain(batch.columns()[1..].iter().cloned()).collect();
        RecordBatch::try_new(batch.schema(), columns).unwrap()
    })
}

/// Partition and offset of the rows of a file.
pub fn coordinates(path: &Path) -> Vec<(i32, i64)> {
    let batch = read(path);
    let partitions = batch.column_by_name("_partition").unwrap().as_primitive::<Int32Type>();
    let offsets = batch.column_by_name("_offset").unwrap().as_primitive::<Int64Type>();
    partitions.values().iter().copied().zip(offsets.values().iter().copied()).collect()
}

/// Removes an early event of partition 0 that no duplicate is one of, and has commits and ledger say that it never was.
pub fn drop_event(dir: &Path) {
    let single = |(partition, offset): &(i32, i64)| *partition == 0 && *offset >= 2;
    let first = |path: &Path| coordinates(path).iter().position(single);
    let events = files(&dir.join("archive/clicks/events"));
    let (path, row) = events.iter().find_map(|path| Some((path, first(path)?))).unwrap();
    with_commit(dir, path, |path| drop_row(path, row));
    move_to_gaps(dir, 1);
}

/// Changes a file of events, the commit that names it, and every commit after it.
pub fn with_commit(dir: &Path, path: &Path, change: impl FnOnce(&Path) -> Forged) {
    // Files of one epoch have the same name in the folders of all kinds.
    let name = format!("events/{}", path.file_name().unwrap().to_str().unwrap());
    let forged = change(path);
    for entry in Entry::all(dir) {
        let mut entry = Entry::read(&entry);
        let mut adds = entry.actions.iter_mut().filter_map(|action| action.get_mut("add"));
        let Some(add) = adds.find(|add| add["path"] == name.as_str()) else { continue };
        add["size"] = forged.bytes.into();
        add["tags"]["rows"] = forged.rows.to_string().into();
        add["tags"]["sha256"] = forged.sha256.clone().into();
        entry.write();
    }
    Entry::rechain(dir);
}

/// Has the ledger say that so many events of partition 0 never were, from the first epoch on.
fn move_to_gaps(dir: &Path, count: u64) {
    for path in Entry::all(dir) {
        let mut entry = Entry::read(&path);
        let row = &mut entry.first["commitInfo"]["viewledger"]["record"]["ledger"]["0"];
        if row.is_object() {
            row["events"] = (row["events"].as_u64().unwrap() - count).into();
            row["gaps"] = (row["gaps"].as_u64().unwrap() + count).into();
            entry.write();
        }
    }
    Entry::rechain(dir);
}

/// A commit, taken apart.
pub struct Entry {
    path: PathBuf,
    first: Value,
    actions: Vec<Value>,
}

impl Entry {
    pub fn all(dir: &Path) -> Vec<PathBuf> {
        let log = files(&dir.join("archive/clicks/_delta_log"));
        log.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
    }

    pub fn count(dir: &Path) -> usize {
        Self::all(dir).len()
    }

    pub fn path(dir: &Path, version: usize) -> PathBuf {
        Self::all(dir).swap_remove(version)
    }

    /// Leaves the first `count` alone.
    pub fn cut(dir: &Path, count: usize) {
        Self::all(dir).iter().skip(count).for_each(|path| std::fs::remove_file(path).unwrap());
    }

    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        Self { path: path.to_owned(), first: lines.next().unwrap(), actions: lines.collect() }
    }

    /// With its own SHA-256 put right.
    fn write(mut self) {
        let actions: Vec<String> = self.actions.iter().map(Value::to_string).collect();
        let actions = actions.join("\n");
        let ours = &mut self.first["commitInfo"]["viewledger"];
        ours["sha256"] = sha256(format!("{}\n{actions}", ours["record"]).as_bytes()).into();
        std::fs::write(&self.path, format!("{}\n{actions}\n", self.first)).unwrap();
    }

    pub fn edit(dir: &Path, version: usize, change: impl FnOnce(&mut Value)) {
        let mut entry = Self::read(&Self::path(dir, version));
        change(&mut entry.first["commitInfo"]["viewledger"]["record"]);
        entry.write();
    }

    /// Has every entry follow the one before it.
    pub fn rechain(dir: &Path) {
        let mut previous = String::new();
        for path in Self::all(dir) {
            let mut entry = Self::read(&path);
            let named = &mut entry.first["commitInfo"]["viewledger"]["record"]["previous"];
            // What still follows stays as it is, to the byte.
            if named.as_str() != Some(&previous) {
                *named = previous.into();
                entry.write();
            }
            previous = sha256(&std::fs::read(&path).unwrap());
        }
    }
}

/// The manifest of the generation that the first seal holds.
pub fn sealed_generation(dir: &Path) -> PathBuf {
    let seal: SealDocument =
        serde_json::from_slice(&std::fs::read(numbered(dir, "audit/seals", 0)).unwrap()).unwrap();
    let statement: Statement = serde_json::from_str(&seal.statement).unwrap();
    dir.join(format!("generations/{:020}.json", statement.generation))
}

/// Changes a text in a manifest, and the SHA-256 that it holds over itself.
pub fn manifest(path: &Path, pointer: &str) {
    let mut envelope: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let field = envelope["body"].pointer_mut(pointer).unwrap();
    assert!(field.is_string());
    *field = "forged".into();
    envelope["sha256"] = sha256(envelope["body"].to_string().as_bytes()).into();
    std::fs::write(path, envelope.to_string()).unwrap();
}

/// Makes every seal anew with another key, each following the one before.
pub fn resign(dir: &Path) {
    let key_file = dir.join("seal-key.pem");
    std::fs::remove_file(&key_file).unwrap();
    let key = SigningKey::open_or_create(&key_file).unwrap();
    let mut previous = None;
    for path in files(&dir.join("audit/seals")) {
        let old: SealDocument = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let mut statement: Statement = serde_json::from_str(&old.statement).unwrap();
        statement.previous = previous;
        let signed = SealDocument::sign(&statement, &key).unwrap();
        let new = SealDocument { epochs: old.epochs, peaks: old.peaks, ..signed };
        previous = Some(new.sha256());
        std::fs::write(&path, serde_json::to_vec(&new).unwrap()).unwrap();
    }
}
