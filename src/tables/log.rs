//! The versions of all tables in storage, and whose turn it is to make the next.
//!
//! A commit is one document that says which version every table has from then on, so that several tables change in one
//! step. Its number is that of the versions that it makes.
//!
//! | step | after a crash behind it |
//! |---|---|
//! | the files with all rows of each table that changed are written and synced | orphans that nobody names |
//! | commit n+1 is created, unless it exists | the new versions are there at the next start |
//! | the versions are swapped in memory | the same |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::array::{RecordBatch, new_null_array};
use datafusion::arrow::compute::concat_batches;
use object_store::path::Path;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::transaction::{Changed, Transaction};
use super::{Contents, TableRules, Tables, Version, WriteError};
use crate::catalog::Fault;
use crate::runtime::Clock;
use crate::storage::manifest::ManifestLog;
use crate::storage::parquet::{EncodedFile, ParquetSink, put_encoded, read_verified};
use crate::storage::{Created, Storage, StorageError, paths};

/// Commits that are told of in SQL; all stay in storage.
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

/// Which version every table has from a commit on, also those that are not declared any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    pub tables: BTreeMap<String, Version>,
}

/// The one writer of all tables.
#[derive(Debug)]
pub struct TableLog {
    rules: BTreeMap<String, Arc<TableRules>>,
    storage: Storage,
    commits: ManifestLog<Commit>,
    bytes_max: usize,
    clock: Arc<dyn Clock>,
    head: Arc<Mutex<Head>>,
}

#[derive(Debug)]
struct Head {
    current: State,
    /// Of which it is not known whether its commit was created.
    undecided: Option<State>,
}

/// What a commit left.
#[derive(Debug, Clone)]
struct State {
    number: u64,
    commit: Commit,
    tables: Tables,
}

impl TableLog {
    /// Reads the newest version of each table. Changes nothing.
    pub async fn open(
        storage: &Storage,
        rules: &BTreeMap<String, Arc<TableRules>>,
        bytes_max: usize,
        clock: Arc<dyn Clock>,
    ) -> Result<(Arc<Self>, Tables), OpenError> {
        let commits = log(storage);
        let (number, commit) = commits.latest().await?.unwrap_or_default();
        let mut histories: BTreeMap<&str, Vec<Arc<Version>>> = BTreeMap::new();
        for older in number.saturating_sub(HISTORY_MAX - 1).max(1)..=number {
            let Some(made) = commits.read(older).await? else { continue };
            for (table, version) in made.tables.into_iter().filter(|(_, version)| version.number == older) {
                if let Some((table, _)) = rules.get_key_value(&table) {
                    histories.entry(table).or_default().push(Arc::new(version));
                }
            }
        }
        let mut tables = Tables::default();
        for (table, rules) in rules {
            let version = Arc::new(commit.tables.get(table).cloned().unwrap_or_else(Version::none));
            let rows = read(storage, rules, &version).await?;
            let history = Arc::new(histories.remove(table.as_str()).unwrap_or_default());
            tables = tables.with(Arc::new(Contents { rules: Arc::clone(rules), version, rows, history }));
        }
        let current = State { number, commit, tables: tables.clone() };
        let head = Arc::new(Mutex::new(Head { current, undecided: None }));
        let (rules, storage) = (rules.clone(), storage.clone());
        Ok((Arc::new(Self { rules, storage, commits, bytes_max, clock, head }), tables))
    }

    pub fn has(&self, table: &str) -> bool {
        self.rules.contains_key(table)
    }

    /// How large a table may become.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// The rows of an older version, in the columns that the table has now.
    pub async fn at(&self, table: &str, number: u64) -> Result<RecordBatch, OpenError> {
        let missing = || OpenError::NoVersion { table: table.to_owned(), number };
        let rules = self.rules.get(table).ok_or_else(missing)?;
        let made = |commit: Commit| commit.tables.get(table).filter(|version| version.number == number).cloned();
        let version = match number {
            0 => Some(Version::none()),
            number => self.commits.read(number).await?.and_then(made),
        };
        read(&self.storage, rules, &version.ok_or_else(missing)?).await
    }

    /// Waits until nobody else changes a table, and keeps it so. What became of a commit that was not answered is shown
    /// to readers through `publish`.
    ///
    /// # Errors
    /// When it cannot be found out what became of it.
    pub async fn turn(self: &Arc<Self>, publish: impl FnOnce(&Tables)) -> Result<Turn, WriteError> {
        let mut head = Arc::clone(&self.head).lock_owned().await;
        if let Some(undecided) = head.undecided.clone() {
            match self.commits.read(undecided.number).await? {
                Some(commit) if commit == undecided.commit => {
                    publish(&undecided.tables);
                    head.current = undecided;
                }
                Some(_) => return Err(WriteError::Fenced { number: undecided.number }),
                None => {}
            }
            head.undecided = None;
        }
        Ok(Turn { log: Arc::clone(self), head })
    }
}

fn log(storage: &Storage) -> ManifestLog<Commit> {
    ManifestLog::new(storage, paths::table_commits())
}

/// Where what is stored of the tables does not fit their declaration. Changes nothing.
pub async fn faults(storage: &Storage, rules: &BTreeMap<String, Arc<TableRules>>) -> Result<Vec<Fault>, OpenError> {
    let (_, commit) = log(storage).latest().await?.unwrap_or_default();
    let mut faults = Vec::new();
    for (table, version) in &commit.tables {
        let Some(rules) = rules.get(table) else { continue };
        match read(storage, rules, version).await {
            Ok(_) => {}
            Err(OpenError::Unfit(fault)) => faults.push(fault),
            Err(error) => return Err(error),
        }
    }
    Ok(faults)
}

/// Every version of `table`, oldest first.
pub async fn versions(storage: &Storage, table: &str) -> Result<Vec<Version>, StorageError> {
    let commits = log(storage);
    let newest = commits.latest().await?.map_or(0, |(number, _)| number);
    let mut found = Vec::new();
    for number in 1..=newest {
        let made = commits.read(number).await?.and_then(|commit| commit.tables.get(table).cloned());
        found.extend(made.filter(|version| version.number == number));
    }
    Ok(found)
}

/// The right to change tables once.
#[derive(Debug)]
pub struct Turn {
    log: Arc<TableLog>,
    head: OwnedMutexGuard<Head>,
}

impl Turn {
    /// What will be changed.
    pub fn tables(&self) -> &Tables {
        &self.head.current.tables
    }

    /// Makes the next version of each table that `transaction` changed, all in one step, and shows them to readers
    /// through `publish`. Must be carried out to its end once it has begun.
    ///
    /// # Errors
    /// [`WriteError::Conflict`] when one of the tables that it changed or is in `read` was changed since it began.
    pub async fn commit(
        mut self,
        transaction: Transaction,
        read: &BTreeSet<String>,
        user: &str,
        publish: impl FnOnce(&Tables),
    ) -> Result<(), WriteError> {
        let (base, changed) = transaction.into_parts();
        let number_in = |tables: &Tables, table: &str| tables.get(table).map(|contents| contents.version.number);
        if let Some(table) = changed
            .keys()
            .chain(read)
            .find(|table| number_in(&base, table) != number_in(&self.head.current.tables, table))
        {
            return Err(WriteError::Conflict { table: table.clone() });
        }
        if changed.is_empty() {
            return Ok(());
        }
        let log = Arc::clone(&self.log);
        let mut next = self.head.current.clone();
        next.number += 1;
        for (table, Changed { rules, rows, statement, touched }) in changed {
            let Some(before) = self.head.current.tables.get(&table) else { return Err(WriteError::Unknown(table)) };
            let (encoded, of) = (rows.clone(), Arc::clone(&rules));
            let file = tokio::task::spawn_blocking(move || encode(&of, &encoded)).await;
            let file = file.map_err(|_| WriteError::Panicked { table: table.clone() })??;
            let path = paths::table_file(&table, next.number);
            let written = put_encoded(&log.storage, &path, &file).await?;
            let version = Arc::new(Version {
                number: next.number,
                changed_at: log.clock.now(),
                changed_by: user.to_owned(),
                change: statement,
                changed_rows: touched,
                rows: written.rows,
                path: written.path.to_string(),
                bytes: written.bytes,
                sha256: written.sha256,
            });
            next.commit.tables.insert(table, Version::clone(&version));
            next.tables = next.tables.with(Arc::new(before.next(version, rows)));
        }
        match log.commits.create(next.number, &next.commit).await {
            Ok(Created::New | Created::MineAlready) => {}
            Ok(Created::Taken) => return Err(WriteError::Fenced { number: next.number }),
            Err(source) => {
                self.head.undecided = Some(next);
                return Err(WriteError::Undecided { source: Box::new(source) });
            }
        }
        publish(&next.tables);
        self.head.current = next;
        Ok(())
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

fn encode(rules: &TableRules, rows: &RecordBatch) -> Result<EncodedFile, WriteError> {
    let encode = || {
        let mut sink = ParquetSink::new(&rows.schema())?;
        sink.append(rows)?;
        sink.finish()
    };
    encode().map_err(|error| rules.compute(error))
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
