//! Changes of tables that are made together: each sees those before it, and others see all of them at once or none.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;

use super::change::{Applied, Change, applied};
use super::{Contents, TableRules, Tables, WriteError};

/// Changes that nobody else sees yet, over the tables as they were when it began.
#[derive(Debug)]
pub struct Transaction {
    base: Tables,
    changed: BTreeMap<String, Changed>,
    bytes_max: usize,
}

/// What became of one table.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) rules: Arc<TableRules>,
    pub(super) rows: RecordBatch,
    /// The kinds of the statements that made it, such as `INSERT, UPDATE`.
    pub(super) statement: String,
    /// Rows that they inserted, updated and deleted.
    pub(super) touched: u64,
}

impl Transaction {
    pub fn over(tables: Tables, bytes_max: usize) -> Self {
        Self { base: tables, changed: BTreeMap::new(), bytes_max }
    }

    /// Changes a table; returns how many rows were touched. After an error it is as it was.
    ///
    /// # Errors
    /// When the rows would not keep what is declared, or would be too many.
    pub async fn apply(&mut self, table: &str, change: Change, statement: &str) -> Result<u64, WriteError> {
        let unknown = || WriteError::Unknown(table.to_owned());
        let base = self.base.get(table).ok_or_else(unknown)?;
        let rules = Arc::clone(&base.rules);
        let before = self.changed.get(table).map_or_else(|| base.rows.clone(), |changed| changed.rows.clone());
        let (of, bytes_max) = (Arc::clone(&rules), self.bytes_max);
        let made = tokio::task::spawn_blocking(move || bounded(&of, &before, change, bytes_max)).await;
        let Applied { rows, count } = made.map_err(|_| WriteError::Panicked { table: table.to_owned() })??;
        let count = count as u64;
        if count > 0 {
            match self.changed.get_mut(table) {
                Some(changed) => {
                    changed.rows = rows;
                    changed.touched += count;
                    if !changed.statement.split(", ").any(|known| known == statement) {
                        changed.statement = format!("{}, {statement}", changed.statement);
                    }
                }
                None => {
                    let changed = Changed { rules, rows, statement: statement.to_owned(), touched: count };
                    self.changed.insert(table.to_owned(), changed);
                }
            }
        }
        Ok(count)
    }

    /// The tables as its next statement sees them.
    pub fn tables(&self) -> Tables {
        let changed = self.changed.iter().filter_map(|(table, changed)| {
            let before = self.base.get(table)?;
            Some(Contents { rows: changed.rows.clone(), ..Contents::clone(before) })
        });
        changed.fold(self.base.clone(), |tables, contents| tables.with(Arc::new(contents)))
    }

    /// The tables that were changed.
    pub fn changed(&self) -> impl Iterator<Item = &String> {
        self.changed.keys()
    }

    pub(super) fn into_parts(self) -> (Tables, BTreeMap<String, Changed>) {
        (self.base, self.changed)
    }
}

fn bounded(
    rules: &TableRules,
    before: &RecordBatch,
    change: Change,
    bytes_max: usize,
) -> Result<Applied, WriteError> {
    let applied = applied(rules, before, change)?;
    let bytes = applied.rows.get_array_memory_size();
    // A table that is too large since the setting was lowered may shrink.
    if bytes > bytes_max && bytes > before.get_array_memory_size() {
        return Err(WriteError::TooLarge { table: rules.name(), bytes, max: bytes_max });
    }
    Ok(applied)
}
