//! Small files of committed epochs into large ones.
//!
//! A record lies in the file of its epoch until compaction takes it into a larger one. Each time it does, the file at
//! least doubles, so a record is written again only about log n times; a file of half the target size is left alone.
//! Only epochs that the current generation holds are put together: what a refresh has yet to read is found by epoch.
//!
//! Within a file, records are sorted by the day of the event and then by the key. So a range of days skips row
//! groups, a key is in one page of one row group, and the Bloom filter on it spares the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use bytes::Bytes;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, SortExpr, cast, ident};
use futures::TryStreamExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use uuid::Uuid;

use super::content::Content;
use super::rewrite::Rewrite;
use super::writer::columns_digest;
use super::{ArchiveFile, ArchiveSnapshot, Kind};
use crate::catalog::stream::{OFFSET, PARTITION, Stream};
use crate::engine::Engine;
use crate::position::Epoch;
use crate::runtime::Shutdown;
use crate::storage::parquet::{EncodedFile, ParquetSink, put_encoded, read_verified};
use crate::storage::paths::{self, ArchivePaths};
use crate::storage::scan::{ParquetTable, ScanFile};
use crate::storage::{Storage, StorageError};

/// So many small files are worth a rewrite even if together they are small.
const FILES_MIN: usize = 8;
/// Files put together at once at most: each is a line of the log.
const FILES_MAX: usize = 1024;

/// Object names of files that cannot be read, and why.
pub type Damaged = BTreeMap<String, String>;

/// The next files to put together: all of one kind with the same columns, side by side, from epochs up to `below`, and
/// none that is damaged. `target_bytes` is what a file shall have.
pub fn due(
    snapshot: &ArchiveSnapshot,
    below: Epoch,
    target_bytes: u64,
    damaged: &Damaged,
) -> Option<Vec<Arc<ArchiveFile>>> {
    Kind::ALL.into_iter().find_map(|kind| {
        let files: Vec<&Arc<ArchiveFile>> =
            snapshot.files.iter().filter(|file| file.kind == kind && file.epoch <= below).collect();
        let small =
            |file: &ArchiveFile| file.bytes <= target_bytes / 2 && !damaged.contains_key(file.path.as_ref());
        files
            .chunk_by(|a, b| small(a) && small(b) && a.columns == b.columns)
            .find_map(|run| window(run, target_bytes))
            .map(|run| run.iter().map(|file| Arc::clone(file)).collect())
    })
}

/// The oldest part of a run of small files that is worth a rewrite.
fn window<'a>(run: &'a [&'a Arc<ArchiveFile>], target_bytes: u64) -> Option<&'a [&'a Arc<ArchiveFile>]> {
    for start in 0..run.len() {
        let rest = run.get(start..)?;
        let (mut count, mut sum, mut largest) = (0, 0_u64, 0_u64);
        for file in rest.iter().take(FILES_MAX) {
            if sum + file.bytes > target_bytes {
                break;
            }
            (count, sum, largest) = (count + 1, sum + file.bytes, largest.max(file.bytes));
        }
        let enough = count >= FILES_MIN || sum >= target_bytes / 2;
        if count >= 2 && enough && largest <= sum / 2 {
            return rest.get(..count);
        }
    }
    None
}

/// Where and with what files are put together.
#[derive(Debug)]
pub struct Workbench<'a> {
    pub engine: &'a Engine,
    pub storage: &'a Storage,
    pub stream: &'a Stream,
    pub shutdown: &'a Shutdown,
}

/// Why files were not put together; the table is as it was.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{path} cannot be read")]
    Decode { path: String, source: parquet::errors::ParquetError },
    #[error("records of {path} cannot be compared")]
    Compare { path: String, source: arrow::error::ArrowError },
    #[error("{path} has other columns than its commit says")]
    Columns { path: String },
    #[error("records cannot be sorted")]
    Sort(#[from] datafusion::error::DataFusionError),
    #[error("the new file cannot be encoded")]
    Encode(#[from] parquet::errors::ParquetError),
    #[error("the new file does not hold the records of the old ones: {before} became {after}; nothing was changed")]
    Differs { before: String, after: String },
    #[error("no file was given")]
    Nothing,
    #[error("the process is ending")]
    Cancelled,
}

impl Workbench<'_> {
    /// Writes one file with the records of `files`, proves that it holds them all, and names nothing yet.
    pub async fn put_together(&self, files: Vec<Arc<ArchiveFile>>) -> Result<Rewrite, CompactError> {
        let (Some(oldest), Some(newest)) = (files.first(), files.last()) else { return Err(CompactError::Nothing) };
        let (schema, before) = self.read(&files).await?;
        let encoded = self.sorted(&schema, &files).await?;
        let mut after = Content::default();
        self.add_content(&mut after, encoded.bytes.clone(), "the new file")?;
        if before != after {
            let (before, after) = (format!("{before:?}"), format!("{after:?}"));
            return Err(CompactError::Differs { before, after });
        }
        let nonce = Uuid::new_v4().simple().to_string();
        let name = paths::data_file_name(newest.kind.folder(), newest.epoch, &nonce);
        let path = ArchivePaths::new(&self.stream.name).data_file(&name);
        put_encoded(self.storage, &path, &encoded).await?;
        let file = ArchiveFile {
            path,
            name,
            kind: newest.kind,
            rows: encoded.rows,
            bytes: encoded.bytes.len() as u64,
            first: oldest.first,
            epoch: newest.epoch,
            columns: Some(columns_digest(&schema)),
            sha256: encoded.sha256,
            blocks: Some(encoded.blocks),
        };
        Ok(Rewrite { nonce, replaced: files, file })
    }

    /// Reads every file whole, against its SHA-256: what is damaged is not carried on.
    async fn read(&self, files: &[Arc<ArchiveFile>]) -> Result<(SchemaRef, Content), CompactError> {
        let mut content = Content::default();
        let mut schema: Option<SchemaRef> = None;
        for file in files {
            let bytes = read_verified(self.storage, &file.path, &file.sha256).await?;
            let found = self.add_content(&mut content, bytes, file.path.as_ref())?;
            if *schema.get_or_insert_with(|| Arc::clone(&found)) != found {
                return Err(CompactError::Columns { path: file.path.to_string() });
            }
        }
        let partitions = &content.partitions;
        tracing::trace!(rows = content.rows, ?partitions, "records to put together");
        schema.map(|schema| (schema, content)).ok_or(CompactError::Nothing)
    }

    /// The records of `files` as one file. What does not fit into memory is sorted on disk.
    async fn sorted(&self, schema: &SchemaRef, files: &[Arc<ArchiveFile>]) -> Result<EncodedFile, CompactError> {
        let scanned: Vec<ScanFile> = files.iter().map(|file| file.scan_file()).collect();
        let table = Arc::new(ParquetTable::new(Arc::clone(schema), scanned));
        let plan = LogicalPlanBuilder::scan("archive", provider_as_source(table), None)?
            .sort(order(self.stream, schema))?
            .build()?;
        let mut batches = self.engine.stream(plan, 1).await?;
        let mut sink = match key(self.stream, schema) {
            Some(key) => ParquetSink::keyed(schema, key)?,
            None => ParquetSink::new(schema)?,
        };
        while let Some(batch) = batches.try_next().await? {
            self.go_on()?;
            sink.append(&batch)?;
        }
        Ok(sink.finish()?)
    }

    /// Adds the records of a whole file, and says which columns it has.
    fn add_content(&self, content: &mut Content, file: Bytes, path: &str) -> Result<SchemaRef, CompactError> {
        let unreadable = |source| CompactError::Decode { path: path.to_owned(), source };
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(unreadable)?;
        let schema = Arc::clone(reader.schema());
        for batch in reader.build().map_err(unreadable)? {
            self.go_on()?;
            let added = batch.and_then(|batch| content.add(&batch));
            added.map_err(|source| CompactError::Compare { path: path.to_owned(), source })?;
        }
        Ok(schema)
    }

    /// Asked for every batch: the process does not end before this does.
    fn go_on(&self) -> Result<(), CompactError> {
        if self.shutdown.is_triggered() { Err(CompactError::Cancelled) } else { Ok(()) }
    }
}

/// The name of the stream's key, when the files have it.
fn key<'a>(stream: &'a Stream, schema: &SchemaRef) -> Option<&'a str> {
    let key = stream.columns.get(stream.key?)?.name.as_str();
    schema.column_with_name(key).map(|_| key)
}

/// By day of the event, then key, then place in Kafka, so that the order is the same whoever makes it.
fn order(stream: &Stream, schema: &SchemaRef) -> Vec<SortExpr> {
    let there = |name: &&str| schema.column_with_name(name).is_some();
    let event_time = stream.event_time.and_then(|at| stream.columns.get(at)).map(|column| column.name.as_str());
    let day: Option<Expr> = event_time.filter(there).map(|name| cast(ident(name), DataType::Date32));
    let rest = key(stream, schema).into_iter().chain([PARTITION, OFFSET]).filter(there).map(ident);
    day.into_iter().chain(rest).map(|expr| expr.sort(true, true)).collect()
}

#[cfg(test)]
mod tests;
