//! The versions of one table in storage, and whose turn it is to make the next.
//!
//! | step | after a crash behind it |
//! |---|---|
//! | the file with all rows is written and synced | an orphan that nobody names |
//! | manifest n+1 is created, unless it exists | the new version is there at the next start |
//! | the version is swapped in memory | the same |

use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, new_null_array};
use datafusion::arrow::compute::concat_batches;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::change::{Applied, Change, applied};
use super::{Contents, TableRules, Version, WriteError};
use crate::catalog::Fault;
use crate::runtime::Clock;
use crate::storage::manifest::ManifestLog;
use crate::storage::parquet::{EncodedFile, ParquetSink, put_encoded, read_verified};
use crate::storage::{Created, Storage, StorageError, paths};

/// Versions that are told of in SQL; all stay in storage.
const HISTORY_MAX: u64 = 100;

/// Why a table cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("table {table} has no version {number}")]
    NoVersion { table: String, number: u64 },
    /// What is stored does not fit the declaration.
    #[error(transparent)]
    Unfit(Fault),
}

/// The one writer of a table.
#[derive(Debug)]
pub struct TableLog {
    rules: Arc<TableRules>,
    storage: Storage,
    versions: ManifestLog<Version>,
    bytes_max: usize,
    clock: Arc<dyn Clock>,
    head: Arc<Mutex<Head>>,
}

#[derive(Debug)]
struct Head {
    current: Arc<Contents>,
    /// A version of which it is not known whether its manifest was created.
    undecided: Option<Arc<Contents>>,
}

impl TableLog {
    /// Reads the newest version. Changes nothing.
    pub async fn open(
        storage: &Storage,
        rules: Arc<TableRules>,
        bytes_max: usize,
        clock: Arc<dyn Clock>,
    ) -> Result<(Arc<Self>, Arc<Contents>), OpenError> {
        let versions: ManifestLog<Version> = ManifestLog::new(storage, paths::table_versions(&rules.table.name));
        let newest = versions.latest().await?.map_or_else(Version::none, |(_, version)| version);
        let newest = Arc::new(newest);
        let mut history = Vec::new();
        for number in newest.number.saturating_sub(HISTORY_MAX - 1).max(1)..newest.number {
            history.extend(versions.read(number).await?.map(Arc::new));
        }
        if newest.number > 0 {
            history.push(Arc::clone(&newest));
        }
        let rows = read(storage, &rules, &newest).await?;
        let current = Contents { rules: Arc::clone(&rules), version: newest, rows, history: Arc::new(history) };
        let current = Arc::new(current);
        let head = Arc::new(Mutex::new(Head { current: Arc::clone(&current), undecided: None }));
        Ok((Arc::new(Self { rules, storage: storage.clone(), versions, bytes_max, clock, head }), current))
    }

    /// The rows of an older version, in the columns that the table has now.
    pub async fn at(&self, number: u64) -> Result<RecordBatch, OpenError> {
        let version = match number {
            0 => Some(Version::none()),
            number => self.versions.read(number).await?,
        };
        let missing = || OpenError::NoVersion { table: self.rules.name(), number };
        read(&self.storage, &self.rules, &version.ok_or_else(missing)?).await
    }

    /// Waits until nobody else changes the table, and keeps it so.
    ///
    /// # Errors
    /// When it cannot be found out what became of the change before.
    pub async fn turn(self: &Arc<Self>, seen: impl FnOnce(&Arc<Contents>)) -> Result<Turn, WriteError> {
        let mut head = Arc::clone(&self.head).lock_owned().await;
        if let Some(undecided) = head.undecided.clone() {
            match self.versions.read(undecided.version.number).await? {
                Some(version) if version == *undecided.version => {
                    head.current = Arc::clone(&undecided);
                    seen(&undecided);
                }
                Some(version) => {
                    return Err(WriteError::Fenced { table: self.rules.name(), version: version.number });
                }
                None => {}
            }
            head.undecided = None;
        }
        Ok(Turn { log: Arc::clone(self), head })
    }
}

/// Every version of `table`, oldest first, as the manifests tell of them.
pub async fn versions(storage: &Storage, table: &str) -> Result<Vec<Version>, StorageError> {
    let log: ManifestLog<Version> = ManifestLog::new(storage, paths::table_versions(table));
    let newest = log.latest().await?.map_or(0, |(number, _)| number);
    let mut found = Vec::new();
    for number in 1..=newest {
        found.extend(log.read(number).await?);
    }
    Ok(found)
}

/// The right to change a table once.
#[derive(Debug)]
pub struct Turn {
    log: Arc<TableLog>,
    head: OwnedMutexGuard<Head>,
}

impl Turn {
    /// What will be changed.
    pub fn contents(&self) -> &Arc<Contents> {
        &self.head.current
    }

    pub fn bytes_max(&self) -> usize {
        self.log.bytes_max
    }

    /// Makes the next version and shows it to readers through `publish`. Returns how many rows were touched; when that is
    /// none, there is no new version. Must be carried out to its end once it has begun.
    pub async fn commit(
        mut self,
        change: Change,
        statement: &str,
        user: &str,
        publish: impl FnOnce(&Arc<Contents>),
    ) -> Result<u64, WriteError> {
        let log = Arc::clone(&self.log);
        let (rules, before) = (Arc::clone(&log.rules), Arc::clone(&self.head.current));
        let bytes_max = log.bytes_max;
        let prepared = tokio::task::spawn_blocking(move || prepare(&rules, &before.rows, change, bytes_max));
        let panicked = |_| WriteError::Panicked { table: log.rules.name() };
        let (Applied { rows, count }, file) = prepared.await.map_err(panicked)??;
        let count = count as u64;
        if count == 0 {
            return Ok(0);
        }
        let number = self.head.current.version.number + 1;
        let path = paths::table_file(&log.rules.table.name, number);
        let written = put_encoded(&log.storage, &path, &file).await?;
        let version = Arc::new(Version {
            number,
            changed_at: log.clock.now(),
            changed_by: user.to_owned(),
            change: statement.to_owned(),
            changed_rows: count,
            rows: written.rows,
            path: written.path.to_string(),
            bytes: written.bytes,
            sha256: written.sha256,
        });
        let next = Arc::new(self.head.current.next(version, rows));
        match log.versions.create(number, &next.version).await {
            Ok(Created::New | Created::MineAlready) => {}
            Ok(Created::Taken) => return Err(WriteError::Fenced { table: log.rules.name(), version: number }),
            Err(source) => {
                self.head.undecided = Some(next);
                return Err(WriteError::Undecided { table: log.rules.name(), source: Box::new(source) });
            }
        }
        self.head.current = Arc::clone(&next);
        publish(&next);
        Ok(count)
    }
}

impl Contents {
    fn next(&self, version: Arc<Version>, rows: RecordBatch) -> Self {
        let mut history = self.history.as_ref().clone();
        history.push(Arc::clone(&version));
        let excess = history.len().saturating_sub(usize::try_from(HISTORY_MAX).unwrap_or(usize::MAX));
        drop(history.drain(..excess));
        Self { rules: Arc::clone(&self.rules), version, rows, history: Arc::new(history) }
    }
}

fn prepare(
    rules: &TableRules,
    before: &RecordBatch,
    change: Change,
    bytes_max: usize,
) -> Result<(Applied, EncodedFile), WriteError> {
    let applied = applied(rules, before, change)?;
    let bytes = applied.rows.get_array_memory_size();
    // A table that is too large since the setting was lowered may shrink.
    if bytes > bytes_max && bytes > before.get_array_memory_size() {
        return Err(WriteError::TooLarge { table: rules.name(), bytes, max: bytes_max });
    }
    let encode = || {
        let mut sink = ParquetSink::new(&applied.rows.schema())?;
        sink.append(&applied.rows)?;
        sink.finish()
    };
    let file = encode().map_err(|error| rules.compute(error))?;
    Ok((applied, file))
}

/// The rows of a version in the columns that are declared now, whose rules they keep.
async fn read(storage: &Storage, rules: &TableRules, version: &Version) -> Result<RecordBatch, OpenError> {
    if version.number == 0 {
        return Ok(RecordBatch::new_empty(rules.table.schema()));
    }
    let path = Path::from(version.path.as_str());
    let bytes = read_verified(storage, &path, &version.sha256).await?;
    let decode = || -> Result<RecordBatch, parquet::errors::ParquetError> {
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
        let schema = Arc::clone(reader.schema());
        let batches = reader.build()?.collect::<Result<Vec<_>, _>>()?;
        Ok(concat_batches(&schema, &batches)?)
    };
    let stored = decode()
        .map_err(|error| StorageError::Damaged { path: version.path.clone(), reason: error.to_string() })?;
    fitted(rules, version.number, &stored).map_err(OpenError::Unfit)
}

/// What was stored under another declaration: new columns are NULL, those that are not declared are left out.
fn fitted(rules: &TableRules, number: u64, stored: &RecordBatch) -> Result<RecordBatch, Fault> {
    let table = &rules.table;
    let fault =
        |(line, column): (u64, u64), reason: String| Fault { file: table.file.clone(), line, column, reason };
    let schema = rules.unchecked_schema();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (field, place) in schema.fields().iter().zip(&table.places) {
        columns.push(match stored.column_by_name(field.name()) {
            None => new_null_array(field.data_type(), stored.num_rows()),
            Some(values) if values.data_type() == field.data_type() => Arc::clone(values),
            Some(values) => {
                let reason = format!(
                    "column {} of table {} is {} in its version {number}, and {} here: put the type back, and add a \
                     column of another name, which UPDATE fills",
                    field.name(),
                    table.name,
                    values.data_type(),
                    field.data_type()
                );
                return Err(fault(*place, reason));
            }
        });
    }
    let broken = |error: &dyn std::fmt::Display| {
        let reason = format!(
            "the rows of table {} (version {number}) do not keep what is declared: {error}: put the declaration back, \
             change the rows, then declare it",
            table.name
        );
        fault((table.line, 1), reason)
    };
    let rows = RecordBatch::try_new(schema, columns).map_err(|error| broken(&error))?;
    rules.each_row(&rows).and_then(|()| rules.all_rows(&rows)).map_err(|error| broken(&error))?;
    RecordBatch::try_new(table.schema(), rows.columns().to_vec()).map_err(|error| broken(&error))
}
