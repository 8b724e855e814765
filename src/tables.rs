//! Reference tables: small tables that people keep by hand, each an immutable value in memory.
//!
//! A [`transaction::Transaction`] makes the next *version* of each table that it changes: their files, then one numbered
//! commit by one conditional create, then one swap in memory. Whoever holds [`Tables`] sees one version of each
//! throughout. Files and commits of old versions stay: they are evidence of what was known when.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use serde::{Deserialize, Serialize};

use crate::catalog::stream::CompiledCheck;
use crate::catalog::table::Table;
use crate::runtime::Micros;
use crate::storage::StorageError;

pub mod change;
pub mod log;
mod rules;
pub mod transaction;

/// A table as it is declared, with its checks ready to run.
#[derive(Debug)]
pub struct TableRules {
    pub table: Arc<Table>,
    pub checks: Vec<CompiledCheck>,
}

/// One version of a table, as commits tell of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// That of the commit that made it: 1, 2, 3, ... over all tables. 0 is a table before its first change.
    pub number: u64,
    pub changed_at: Micros,
    pub changed_by: String,
    /// The kinds of the statements that made it, such as `INSERT, UPDATE`, and how many rows they touched.
    pub change: String,
    pub changed_rows: u64,
    pub rows: u64,
    /// The Parquet file with all rows.
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
}

/// A table at one version.
#[derive(Debug, Clone)]
pub struct Contents {
    pub rules: Arc<TableRules>,
    pub version: Arc<Version>,
    pub rows: RecordBatch,
    /// The newest versions, oldest first; the last is `version`.
    pub history: Arc<Vec<Arc<Version>>>,
}

/// Every table at one version each.
#[derive(Debug, Clone, Default)]
pub struct Tables(BTreeMap<String, Arc<Contents>>);

impl Tables {
    pub fn get(&self, table: &str) -> Option<&Arc<Contents>> {
        self.0.get(table)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Arc<Contents>)> {
        self.0.iter()
    }

    /// The version of each.
    pub fn versions(&self) -> BTreeMap<String, u64> {
        self.0.iter().map(|(table, contents)| (table.clone(), contents.version.number)).collect()
    }

    /// These with another version of one table.
    #[must_use]
    pub fn with(&self, contents: Arc<Contents>) -> Self {
        let mut next = self.clone();
        next.0.insert(contents.rules.table.name.clone(), contents);
        next
    }
}

impl Contents {
    /// The same for the same rows.
    pub fn digest(&self) -> String {
        self.version.digest()
    }
}

impl Version {
    /// The same for the same rows.
    pub fn digest(&self) -> String {
        if self.rows == 0 { "empty".to_owned() } else { self.sha256.clone() }
    }

    fn none() -> Self {
        Self {
            number: 0,
            changed_at: 0,
            changed_by: String::new(),
            change: String::new(),
            changed_rows: 0,
            rows: 0,
            path: String::new(),
            bytes: 0,
            sha256: String::new(),
        }
    }
}

/// Why a table stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("relation \"{0}\" does not exist")]
    Unknown(String),
    #[error("\"{0}\" is not a reference table, and only those take INSERT, UPDATE, DELETE and TRUNCATE")]
    NotATable(String),
    #[error("null value in column \"{column}\" of relation \"{table}\" violates not-null constraint")]
    Null { table: String, column: String },
    #[error("new row for relation \"{table}\" violates check constraint \"{check}\": {row}")]
    Check { table: String, check: String, row: String },
    #[error("duplicate key value violates unique constraint \"{table}_pkey\": {key}")]
    Duplicate { table: String, key: String },
    #[error("ON CONFLICT DO UPDATE cannot affect row a second time: {key}")]
    Twice { key: String },
    #[error("there is no unique constraint matching the ON CONFLICT specification: {key}")]
    NoSuchKey { key: String },
    #[error("column \"{column}\" of relation \"{table}\" does not exist")]
    NoSuchColumn { table: String, column: String },
    #[error("invalid input syntax for type uuid: \"{0}\"")]
    NotAUuid(String),
    #[error(
        "table {table} would take {bytes} bytes, and `tables.bytes_max` is {max}: raise it, or keep what is so large \
         in a stream"
    )]
    TooLarge { table: String, bytes: usize, max: usize },
    #[error(
        "UPDATE, DELETE, TRUNCATE and ON CONFLICT DO UPDATE are refused on table {0}: rows are only ever added to it"
    )]
    AppendOnly(String),
    #[error("could not serialize access: table {table} was changed by another transaction since this one began")]
    Conflict { table: String },
    #[error("commit {number} of tables was made by another process; this one is fenced and must stop")]
    Fenced { number: u64 },
    #[error("nothing was changed: definitions were read again meanwhile, or the process ends; try again")]
    Ended,
    #[error("it is not known whether the change was committed: look before you try again")]
    Undecided { source: Box<StorageError> },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("cannot compute the change of table {table}")]
    Compute { table: String, source: DataFusionError },
    #[error("the change of table {table} panicked: the log says where")]
    Panicked { table: String },
}

#[cfg(test)]
mod tests;
