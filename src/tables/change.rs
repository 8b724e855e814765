//! What a statement makes of a table's rows. No I/O.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt64Array, new_empty_array,
};
use datafusion::arrow::compute::{cast, concat, filter_record_batch, interleave, take_record_batch};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::arrow::error::ArrowError;

use super::{TableRules, WriteError};
use crate::storage::scan::ROW_COLUMN;

/// What is to become of a table.
#[derive(Debug)]
pub enum Change {
    /// Rows with the columns of the table.
    Insert {
        rows: Vec<RecordBatch>,
        conflict: OnConflict,
    },
    /// Rows with the columns of the table, and `_row`, the number of the row that they replace.
    Update(Vec<RecordBatch>),
    /// Rows with `_row`, the number of the row that goes.
    Delete(Vec<RecordBatch>),
    Truncate,
}

impl Change {
    fn touches_present_rows(&self) -> bool {
        !matches!(self, Self::Insert { conflict: OnConflict::Fail | OnConflict::Skip(_), .. })
    }
}

/// What becomes of an inserted row whose key is there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnConflict {
    Fail,
    /// The row is left out. The columns are those that the statement names as the key, if it does.
    Skip(Option<Vec<String>>),
    /// The row that is there takes over these columns.
    Update {
        key: Vec<String>,
        columns: Vec<String>,
    },
}

/// A table after a change.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) rows: RecordBatch,
    /// How many rows were inserted, updated or deleted.
    pub(super) count: usize,
}

pub(super) fn applied(rules: &TableRules, before: &RecordBatch, change: Change) -> Result<Applied, WriteError> {
    if rules.table.append_only && change.touches_present_rows() {
        return Err(WriteError::AppendOnly(rules.name()));
    }
    match change {
        Change::Truncate => Ok(Applied { rows: RecordBatch::new_empty(before.schema()), count: before.num_rows() }),
        Change::Delete(rows) => {
            let gone: HashSet<usize> = numbers(rules, &rows)?.into_iter().collect();
            let kept: BooleanArray = (0..before.num_rows()).map(|row| Some(!gone.contains(&row))).collect();
            let rows = filter_record_batch(before, &kept).map_err(|error| rules.compute(error))?;
            Ok(Applied { rows, count: gone.len() })
        }
        Change::Update(rows) => {
            let mut patch = Patch::of(rules, before, fresh(rules, &rows)?);
            for (row, number) in numbers(rules, &rows)?.into_iter().enumerate() {
                if let Some(replaced) = patch.replaced.get_mut(number) {
                    *replaced = Some(row);
                }
            }
            patch.applied()
        }
        Change::Insert { rows, conflict } => {
            let mut patch = Patch::of(rules, before, fresh(rules, &rows)?);
            match conflict {
                OnConflict::Fail => patch.appended = (0..patch.fresh.num_rows()).collect(),
                OnConflict::Skip(key) => patch.insert(key.as_deref(), Conflicts::Skip)?,
                OnConflict::Update { key, columns } => {
                    patch.columns = rules.indices(&columns)?;
                    patch.insert(Some(&key), Conflicts::Replace)?;
                }
            }
            patch.applied()
        }
    }
}

impl TableRules {
    fn indices(&self, columns: &[String]) -> Result<HashSet<usize>, WriteError> {
        let index = |column: &String| {
            let found = self.table.columns.iter().position(|known| known.name == *column);
            found.ok_or_else(|| WriteError::NoSuchColumn { table: self.name(), column: column.clone() })
        };
        columns.iter().map(index).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conflicts {
    Skip,
    Replace,
}

/// Rows to be laid over a table.
struct Patch<'a> {
    rules: &'a TableRules,
    before: &'a RecordBatch,
    fresh: RecordBatch,
    /// For each row of `before`, the row of `fresh` that replaces it ...
    replaced: Vec<Option<usize>>,
    /// ... in these columns.
    columns: HashSet<usize>,
    /// Rows of `fresh` that come behind.
    appended: Vec<usize>,
}

impl<'a> Patch<'a> {
    fn of(rules: &'a TableRules, before: &'a RecordBatch, fresh: RecordBatch) -> Self {
        let columns = (0..rules.table.columns.len()).collect();
        Self { rules, before, fresh, replaced: vec![None; before.num_rows()], columns, appended: Vec::new() }
    }

    /// Puts each fresh row behind the others, or where its key is.
    fn insert(&mut self, key: Option<&[String]>, conflicts: Conflicts) -> Result<(), WriteError> {
        let names = self.rules.table.key_names();
        let same = |named: &[String]| {
            named.len() == names.len() && names.iter().all(|name| named.iter().any(|named| named == name))
        };
        if let Some(named) = key.filter(|named| names.is_empty() || !same(named)) {
            return Err(WriteError::NoSuchKey { key: named.join(", ") });
        }
        let (Some(known), Some(keys)) = (self.rules.keys(self.before)?, self.rules.keys(&self.fresh)?) else {
            self.appended = (0..self.fresh.num_rows()).collect();
            return Ok(());
        };
        let known: HashMap<_, _> = known.into_iter().enumerate().map(|(row, key)| (key, row)).collect();
        let mut seen = HashSet::new();
        for (row, key) in keys.into_iter().enumerate() {
            let there = known.get(&key).copied();
            if !seen.insert(key) {
                if conflicts == Conflicts::Replace {
                    return Err(WriteError::Twice { key: self.rules.key_text(&self.fresh, row)? });
                }
                continue;
            }
            match (there, conflicts) {
                (None, _) => self.appended.push(row),
                (Some(_), Conflicts::Skip) => {}
                (Some(there), Conflicts::Replace) => {
                    if let Some(replaced) = self.replaced.get_mut(there) {
                        *replaced = Some(row);
                    }
                }
            }
        }
        Ok(())
    }

    /// The rows with the patch, which keep the rules.
    fn applied(self) -> Result<Applied, WriteError> {
        let Self { rules, before, fresh, replaced, columns, appended } = self;
        let mut made: Vec<ArrayRef> = Vec::with_capacity(before.num_columns());
        for (index, (old, new)) in before.columns().iter().zip(fresh.columns()).enumerate() {
            let row = |(row, by): (usize, &Option<usize>)| match by {
                Some(by) if columns.contains(&index) => (1, *by),
                _ => (0, row),
            };
            let rows: Vec<(usize, usize)> =
                replaced.iter().enumerate().map(row).chain(appended.iter().map(|row| (1, *row))).collect();
            made.push(interleave(&[old.as_ref(), new.as_ref()], &rows).map_err(|error| rules.compute(error))?);
        }
        let rows = RecordBatch::try_new(rules.unchecked_schema(), made).map_err(|error| rules.compute(error))?;
        let changed = replaced.iter().enumerate().filter(|(_, by)| by.is_some()).map(|(row, _)| row);
        let touched: UInt64Array =
            changed.chain(replaced.len()..rows.num_rows()).map(|row| Some(row as u64)).collect();
        rules.each_row(&take_record_batch(&rows, &touched).map_err(|error| rules.compute(error))?)?;
        rules.all_rows(&rows)?;
        let rows = RecordBatch::try_new(rules.table.schema(), rows.columns().to_vec());
        Ok(Applied { rows: rows.map_err(|error| rules.compute(error))?, count: touched.len() })
    }
}

/// The rows in one batch with the columns of the table, which may break its rules still.
fn fresh(rules: &TableRules, batches: &[RecordBatch]) -> Result<RecordBatch, WriteError> {
    let schema = rules.unchecked_schema();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let missing = || WriteError::NoSuchColumn { table: rules.name(), column: field.name().clone() };
        let mut parts = Vec::with_capacity(batches.len());
        for batch in batches {
            let values = batch.column_by_name(field.name()).ok_or_else(missing)?;
            parts.push(cast(values, field.data_type()).map_err(|error| rules.compute(error))?);
        }
        columns.push(match parts.as_slice() {
            [] => new_empty_array(field.data_type()),
            parts => {
                let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
                concat(&parts).map_err(|error| rules.compute(error))?
            }
        });
    }
    RecordBatch::try_new(schema, rules.canonical(columns)?).map_err(|error| rules.compute(error))
}

/// The numbers of the rows that are meant.
fn numbers(rules: &TableRules, batches: &[RecordBatch]) -> Result<Vec<usize>, WriteError> {
    let mut numbers = Vec::new();
    for batch in batches {
        let missing = || WriteError::NoSuchColumn { table: rules.name(), column: ROW_COLUMN.to_owned() };
        let column = batch.column_by_name(ROW_COLUMN).and_then(|column| column.as_primitive_opt::<Int64Type>());
        numbers.extend(column.ok_or_else(missing)?.values().iter().filter_map(|row| usize::try_from(*row).ok()));
    }
    Ok(numbers)
}

/// `rows` with their numbers behind, in a column `_row`.
///
/// # Errors
/// When there are two columns of this name, which no declaration allows.
pub fn numbered(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(ROW_COLUMN, DataType::Int64, false)));
    let count = i64::try_from(rows.num_rows()).unwrap_or(i64::MAX);
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..count));
    let columns = rows.columns().iter().cloned().chain([numbers]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
