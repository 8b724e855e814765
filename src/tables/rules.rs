//! What every row of a table must keep.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::cast::as_boolean_array;
use datafusion::error::DataFusionError;
use uuid::Uuid;

use super::{TableRules, WriteError};
use crate::catalog::stream::ColumnType;

impl TableRules {
    pub(super) fn name(&self) -> String {
        self.table.name.clone()
    }

    /// The columns of the table, of which any may be NULL: for rows that were not looked at yet.
    pub(super) fn unchecked_schema(&self) -> SchemaRef {
        let field = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
        Arc::new(Schema::new(self.table.schema().fields().iter().map(field).collect::<Vec<_>>()))
    }

    pub(super) fn compute(&self, source: impl Into<DataFusionError>) -> WriteError {
        WriteError::Compute { table: self.name(), source: source.into() }
    }

    /// NOT NULL and CHECK, which each row keeps by itself.
    pub(super) fn each_row(&self, rows: &RecordBatch) -> Result<(), WriteError> {
        let columns = self.table.columns.iter().zip(rows.columns());
        if let Some((column, _)) =
            columns.clone().find(|(column, values)| column.required && values.null_count() > 0)
        {
            return Err(WriteError::Null { table: self.name(), column: column.name.clone() });
        }
        for check in &self.checks {
            let value = check.expr.evaluate(rows).and_then(|value| value.into_array(rows.num_rows()));
            let value = value.map_err(|error| self.compute(error))?;
            let kept = as_boolean_array(&value).map_err(|error| self.compute(error))?;
            // NULL passes, as in standard SQL.
            if let Some(row) = kept.iter().position(|kept| kept == Some(false)) {
                let row = shown(rows.columns(), row).map_err(|error| self.compute(error))?;
                return Err(WriteError::Check { table: self.name(), check: check.name.clone(), row });
            }
        }
        Ok(())
    }

    /// PRIMARY KEY, which the rows keep together.
    pub(super) fn all_rows(&self, rows: &RecordBatch) -> Result<(), WriteError> {
        let Some(keys) = self.keys(rows)? else { return Ok(()) };
        let mut seen = HashMap::with_capacity(keys.len());
        for (row, key) in keys.into_iter().enumerate() {
            if seen.insert(key, row).is_some() {
                return Err(WriteError::Duplicate { table: self.name(), key: self.key_text(rows, row)? });
            }
        }
        Ok(())
    }

    /// The key of each row; None when the table has none.
    pub(super) fn keys(&self, rows: &RecordBatch) -> Result<Option<Vec<OwnedRow>>, WriteError> {
        if self.table.key.is_empty() {
            return Ok(None);
        }
        let columns = self.key_columns(rows);
        let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
        let made = RowConverter::new(fields).and_then(|converter| converter.convert_columns(&columns));
        let made = made.map_err(|error| self.compute(error))?;
        Ok(Some(made.iter().map(|row| row.owned()).collect()))
    }

    /// As Postgres shows it: `(a, b)=(1, 2)`.
    pub(super) fn key_text(&self, rows: &RecordBatch, row: usize) -> Result<String, WriteError> {
        let values = shown(&self.key_columns(rows), row).map_err(|error| self.compute(error))?;
        Ok(format!("({})={values}", self.table.key_names().join(", ")))
    }

    fn key_columns(&self, rows: &RecordBatch) -> Vec<ArrayRef> {
        self.table.key.iter().filter_map(|index| rows.columns().get(*index)).cloned().collect()
    }

    /// UUIDs in their one text, by which they are compared; all other columns as they are.
    pub(super) fn canonical(&self, columns: Vec<ArrayRef>) -> Result<Vec<ArrayRef>, WriteError> {
        let one = |(values, kind): (ArrayRef, &ColumnType)| match (kind, values.as_string_opt::<i32>()) {
            (ColumnType::Uuid, Some(texts)) => {
                let parsed = texts.iter().map(|text| text.map(canonical).transpose());
                parsed.collect::<Result<StringArray, _>>().map(|texts| Arc::new(texts) as ArrayRef)
            }
            _ => Ok(values),
        };
        columns.into_iter().zip(self.table.columns.iter().map(|column| &column.kind)).map(one).collect()
    }
}

fn canonical(text: &str) -> Result<String, WriteError> {
    let parsed = Uuid::parse_str(text.trim()).map_err(|_| WriteError::NotAUuid(text.to_owned()))?;
    Ok(parsed.hyphenated().to_string())
}

/// `(a, 1, null)`
fn shown(columns: &[ArrayRef], row: usize) -> Result<String, ArrowError> {
    let options = FormatOptions::default().with_null("null");
    let texts = columns
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).map(|formatter| formatter.value(row).to_string()));
    Ok(format!("({})", texts.collect::<Result<Vec<_>, _>>()?.join(", ")))
}
