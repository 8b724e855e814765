//! A reference table: small, kept by hand, read beside the views.

use std::sync::Arc;

use datafusion::arrow::datatypes::{Field, Schema, SchemaRef};

use super::stream::{Check, Column};

/// A table and the rules its rows must keep.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// As [`super::qualified`].
    pub name: String,
    /// Rows are only ever added.
    pub append_only: bool,
    pub columns: Vec<Column>,
    /// Indices of the columns that identify a row together; none when rows may be equal.
    pub key: Vec<usize>,
    pub checks: Vec<Check>,
    /// What a row is, from the comment above the statement.
    pub comment: Option<String>,
    /// Line and column of each of `columns` in the file.
    pub places: Vec<(u64, u64)>,
    pub file: String,
    pub line: u64,
}

impl Table {
    pub fn schema(&self) -> SchemaRef {
        let field = |column: &Column| Field::new(&column.name, column.kind.data_type(), !column.required);
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }

    /// The names of the key's columns.
    pub fn key_names(&self) -> Vec<&str> {
        self.key.iter().filter_map(|index| self.columns.get(*index)).map(|column| column.name.as_str()).collect()
    }
}
