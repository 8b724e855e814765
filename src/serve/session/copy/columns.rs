//! Rows of texts to columns with the types of a table.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, StringArray, new_null_array};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::arrow::util::display::FormatOptions;

use crate::serve::error::{QueryError, SqlState};
use crate::tables::WriteError;

/// Characters of a value or a line that an error shows.
const SHOWN: usize = 100;

/// Whether more comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Input {
    Open,
    Ended,
}

/// One row that has no types yet.
#[derive(Debug)]
pub(super) struct Row {
    /// The line in which it ends, from 1.
    pub(super) line: u64,
    pub(super) values: Vec<Option<String>>,
}

/// Rows that wait to become a batch with all the columns of their table.
#[derive(Debug)]
pub(super) struct Columns {
    table: String,
    /// All of the table.
    all: SchemaRef,
    /// Those that come.
    fields: Vec<FieldRef>,
    values: Vec<Vec<Option<String>>>,
    lines: Vec<u64>,
}

/// The first value of a column that is wrong.
struct Fault {
    row: usize,
    error: Box<QueryError>,
}

impl Columns {
    pub(super) fn new(table: &str, all: &SchemaRef, fields: Vec<FieldRef>) -> Result<Self, QueryError> {
        if let Some(nested) = fields.iter().find(|field| field.data_type().is_nested()) {
            let message =
                format!("COPY FROM STDIN into column \"{}\", a list or a row, is not supported", nested.name());
            return Err(QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, message).hint("use INSERT"));
        }
        let values = vec![Vec::new(); fields.len()];
        Ok(Self { table: table.to_owned(), all: Arc::clone(all), fields, values, lines: Vec::new() })
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    pub(super) fn len(&self) -> usize {
        self.fields.len()
    }

    pub(super) fn fields(&self) -> &[FieldRef] {
        &self.fields
    }

    /// Rows that wait.
    pub(super) fn rows(&self) -> usize {
        self.lines.len()
    }

    /// A row with as many values as columns come.
    pub(super) fn push(&mut self, row: Row) {
        self.lines.push(row.line);
        for (column, value) in self.values.iter_mut().zip(row.values) {
            column.push(value);
        }
    }

    /// The rows that wait, or what is wrong with the first that is.
    pub(super) fn take(&mut self) -> Result<RecordBatch, QueryError> {
        let lines = std::mem::take(&mut self.lines);
        let mut made: Vec<(&FieldRef, ArrayRef)> = Vec::with_capacity(self.fields.len());
        let mut first: Option<Fault> = None;
        for (field, values) in self.fields.iter().zip(&mut self.values) {
            match column(&self.table, field, std::mem::take(values), &lines)? {
                Ok(column) => made.push((field, column)),
                Err(fault) if first.as_ref().is_none_or(|first| fault.row < first.row) => first = Some(fault),
                Err(_) => {}
            }
        }
        if let Some(fault) = first {
            return Err(*fault.error);
        }
        let mut columns = Vec::with_capacity(self.all.fields().len());
        for field in self.all.fields() {
            let came = made.iter().find(|(known, _)| known.name() == field.name());
            columns.push(match came {
                Some((_, column)) => Arc::clone(column),
                None if field.is_nullable() => new_null_array(field.data_type(), lines.len()),
                None => match lines.first() {
                    Some(line) => return Err(null(&self.table, field.name()).context(place(&self.table, *line))),
                    None => new_null_array(field.data_type(), 0),
                },
            });
        }
        let fields: Vec<Field> =
            self.all.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// An error about a whole line.
    pub(super) fn bad_line(&self, line: u64, text: &[u8], message: impl Into<String>) -> QueryError {
        let shown = shown(&String::from_utf8_lossy(text));
        let place = place(&self.table, line);
        QueryError::new(SqlState::BAD_COPY_FILE, message).context(format!("{place}: \"{shown}\""))
    }

    /// An error about a line that cannot be shown.
    pub(super) fn bad_row(&self, line: u64, state: SqlState, message: impl Into<String>) -> QueryError {
        QueryError::new(state, message).context(place(&self.table, line))
    }
}

fn place(table: &str, line: u64) -> String {
    format!("COPY {table}, line {line}")
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn null(table: &str, column: &str) -> QueryError {
    WriteError::Null { table: table.to_owned(), column: column.to_owned() }.into()
}

/// One column, or its first fault.
fn column(
    table: &str,
    field: &FieldRef,
    values: Vec<Option<String>>,
    lines: &[u64],
) -> Result<Result<ArrayRef, Fault>, QueryError> {
    let place = |row: usize| place(table, lines.get(row).copied().unwrap_or_default());
    if !field.is_nullable()
        && let Some(row) = values.iter().position(Option::is_none)
    {
        let place = format!("{}, column {}: null input", place(row), field.name());
        return Ok(Err(Fault { row, error: Box::new(null(table, field.name()).context(place)) }));
    }
    let texts: StringArray = values.iter().map(|value| value.as_deref().map(|text| input(field, text))).collect();
    let texts: ArrayRef = Arc::new(texts);
    let options = CastOptions { safe: true, format_options: FormatOptions::default() };
    let made = cast_with_options(&texts, field.data_type(), &options)?;
    let Some(row) = (0..made.len()).find(|row| made.is_null(*row) && texts.is_valid(*row)) else {
        return Ok(Ok(made));
    };
    let text = values.into_iter().nth(row).flatten().unwrap_or_default();
    let place = format!("{}, column {}: \"{}\"", place(row), field.name(), shown(&text));
    Ok(Err(Fault { row, error: Box::new(wrong(field.data_type(), &text).context(place)) }))
}

/// What the engine shall read. White space around anything but text is nothing, as in PostgreSQL.
fn input<'a>(field: &Field, text: &'a str) -> &'a str {
    match field.data_type() {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => text,
        DataType::Boolean => match text.trim().to_ascii_lowercase().as_str() {
            "t" | "tr" | "tru" | "true" | "y" | "ye" | "yes" | "on" | "1" => "true",
            "f" | "fa" | "fal" | "fals" | "false" | "n" | "no" | "of" | "off" | "0" => "false",
            _ => "neither",
        },
        _ => text.trim(),
    }
}

/// In PostgreSQL's words.
fn wrong(data_type: &DataType, text: &str) -> QueryError {
    let is_number = text.trim().parse::<f64>().is_ok_and(f64::is_finite);
    let (name, state) = match data_type {
        DataType::Boolean => ("boolean", SqlState::INVALID_TEXT),
        DataType::Int16 => ("smallint", SqlState::INVALID_TEXT),
        DataType::Int32 => ("integer", SqlState::INVALID_TEXT),
        DataType::Int64 => ("bigint", SqlState::INVALID_TEXT),
        DataType::Float32 => ("real", SqlState::INVALID_TEXT),
        DataType::Float64 => ("double precision", SqlState::INVALID_TEXT),
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            ("numeric", SqlState::INVALID_TEXT)
        }
        DataType::Date32 | DataType::Date64 => ("date", SqlState::INVALID_DATETIME),
        DataType::Timestamp(_, Some(_)) => ("timestamp with time zone", SqlState::INVALID_DATETIME),
        DataType::Timestamp(_, None) => ("timestamp", SqlState::INVALID_DATETIME),
        _ => ("this column", SqlState::INVALID_TEXT),
    };
    match data_type {
        DataType::Int16 | DataType::Int32 | DataType::Int64 if text.trim().parse::<i128>().is_ok() => {
            QueryError::new(
                SqlState::NUMERIC_OUT_OF_RANGE,
                format!("value \"{text}\" is out of range for type {name}"),
            )
        }
        _ if name == "numeric" && is_number => {
            QueryError::new(SqlState::NUMERIC_OUT_OF_RANGE, "numeric field overflow")
        }
        _ => QueryError::new(state, format!("invalid input syntax for type {name}: \"{}\"", shown(text))),
    }
}
