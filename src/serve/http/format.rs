//! Writes the rows of one result in one format, a piece at a time.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::BatchCoalescer;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::ipc::writer::StreamWriter;
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as PageCompression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::json::{Cells, named, object};
use super::negotiate::{Coding, Format};
use crate::serve::error::{QueryError, SqlState};

/// A row group of Parquet is held until it is whole.
const ROW_GROUP_ROWS_MAX: usize = 64 * 1024;
const ROW_GROUP_BYTES_MAX: usize = 8 << 20;
/// Rows that are written as one where they are cut evenly.
const EVEN_ROWS: usize = 4096;
/// Quick, for answers that are made while the client waits.
const ZSTD_LEVEL: i32 = 1;

/// How many rows an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// JSON has one object.
    One,
    /// JSON has an array of objects.
    Any,
}

/// Where rows are cut that are written as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pieces {
    /// A client sees rows when they come.
    AsTheyCome,
    /// The same rows are the same bytes, however they came.
    Even,
}

/// One answer as bytes.
pub(super) struct Writer {
    schema: SchemaRef,
    /// Cuts the rows evenly.
    even: Option<BatchCoalescer>,
    rows: Rows,
    coder: Coder,
}

impl Writer {
    /// # Errors
    /// When the format cannot hold such rows.
    pub(super) fn new(
        schema: &SchemaRef,
        format: Format,
        extent: Extent,
        coding: Coding,
    ) -> Result<Self, QueryError> {
        let (rows, coder) = (Rows::new(schema, format, extent)?, Coder::new(coding)?);
        Ok(Self { schema: Arc::clone(schema), even: None, rows, coder })
    }

    pub(super) fn cut(self, pieces: Pieces) -> Self {
        let even = (pieces == Pieces::Even).then(|| BatchCoalescer::new(Arc::clone(&self.schema), EVEN_ROWS));
        Self { even, ..self }
    }

    /// All bytes that can be sent once these rows are written.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<Bytes, QueryError> {
        let batch = called(batch, &self.schema)?;
        let Self { even: Some(even), rows, coder, .. } = self else { return self.piece(&batch) };
        even.push_batch(batch)?;
        let mut sent = Vec::new();
        while let Some(batch) = even.next_completed_batch() {
            let mut out = Vec::new();
            rows.write(&batch, &mut out)?;
            sent.extend_from_slice(&coder.push(out)?);
        }
        Ok(sent.into())
    }

    fn piece(&mut self, batch: &RecordBatch) -> Result<Bytes, QueryError> {
        let mut out = Vec::new();
        self.rows.write(batch, &mut out)?;
        self.coder.push(out)
    }

    /// What comes behind the last row.
    pub(super) fn end(&mut self) -> Result<Bytes, QueryError> {
        let mut out = Vec::new();
        if let Some(even) = &mut self.even {
            even.finish_buffered_batch()?;
            while let Some(batch) = even.next_completed_batch() {
                self.rows.write(&batch, &mut out)?;
            }
        }
        self.rows.end(&mut out)?;
        self.coder.end(out)
    }
}

/// The batch with the names that the client is told.
fn called(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, QueryError> {
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &rows)
        .map_err(|error| QueryError::internal(format!("the rows are not as they were planned: {error}")))
}

enum Rows {
    Json {
        names: Vec<String>,
        extent: Extent,
        begun: bool,
    },
    Ndjson {
        names: Vec<String>,
    },
    Csv {
        /// The line of names, until it is written.
        header: Vec<u8>,
    },
    Arrow(Box<StreamWriter<Vec<u8>>>),
    /// None once it has ended.
    Parquet(Option<Box<ArrowWriter<Vec<u8>>>>),
}

impl Rows {
    fn new(schema: &SchemaRef, format: Format, extent: Extent) -> Result<Self, QueryError> {
        let failed = |error: &dyn std::fmt::Display| {
            let message = format!("the result cannot be written as {}: {error}", format.name());
            QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, message)
        };
        Ok(match format {
            Format::Json => Self::Json { names: names(schema)?, extent, begun: false },
            Format::Ndjson => Self::Ndjson { names: names(schema)? },
            Format::Csv => Self::Csv { header: csv_header(schema) },
            Format::Arrow => {
                let writer = StreamWriter::try_new(Vec::new(), schema).map_err(|error| failed(&error))?;
                Self::Arrow(Box::new(writer))
            }
            Format::Parquet => {
                let level = ZstdLevel::try_new(ZSTD_LEVEL).map_err(|error| failed(&error))?;
                let properties = WriterProperties::builder()
                    .set_compression(PageCompression::ZSTD(level))
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
                    .build();
                let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(properties));
                Self::Parquet(Some(Box::new(writer.map_err(|error| failed(&error))?)))
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
        match self {
            Self::Json { names, extent, begun } => {
                let mut text = String::new();
                each_row(batch, names, |row| {
                    match (*extent, std::mem::replace(begun, true)) {
                        (Extent::One, _) => {}
                        (Extent::Any, false) => text.push('['),
                        (Extent::Any, true) => text.push_str(",\n"),
                    }
                    row(&mut text)
                })?;
                out.extend_from_slice(text.as_bytes());
            }
            Self::Ndjson { names } => {
                let mut text = String::new();
                each_row(batch, names, |row| {
                    row(&mut text)?;
                    text.push('\n');
                    Ok(())
                })?;
                out.extend_from_slice(text.as_bytes());
            }
            Self::Csv { header } => {
                out.append(header);
                csv_lines(batch, out)?;
            }
            Self::Arrow(writer) => {
                writer.write(batch)?;
                out.append(writer.get_mut());
            }
            Self::Parquet(Some(writer)) => {
                writer.write(batch).map_err(|error| QueryError::internal(error.to_string()))?;
                if writer.in_progress_size() > ROW_GROUP_BYTES_MAX {
                    writer.flush().map_err(|error| QueryError::internal(error.to_string()))?;
                }
                out.append(writer.inner_mut());
            }
            Self::Parquet(None) => return Err(QueryError::internal("rows came behind the end")),
        }
        Ok(())
    }

    fn end(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        match self {
            Self::Json { extent: Extent::One, .. } => out.push(b'\n'),
            Self::Json { begun: true, .. } => out.extend_from_slice(b"]\n"),
            Self::Json { begun: false, .. } => out.extend_from_slice(b"[]\n"),
            Self::Ndjson { .. } => {}
            Self::Csv { header } => out.append(header),
            Self::Arrow(writer) => {
                writer.finish()?;
                out.append(writer.get_mut());
            }
            Self::Parquet(writer) => {
                let Some(writer) = writer.take() else { return Ok(()) };
                let rest = writer.into_inner().map_err(|error| QueryError::internal(error.to_string()))?;
                out.extend(rest);
            }
        }
        Ok(())
    }
}

/// Names of the members of an object, which has each but once.
fn names(schema: &SchemaRef) -> Result<Vec<String>, QueryError> {
    let mut seen = BTreeSet::new();
    match schema.fields().iter().find(|field| !seen.insert(field.name())) {
        Some(twice) => {
            let message =
                format!("two columns are called {}, and an object of JSON has each name once", twice.name());
            Err(QueryError::new(SqlState::DUPLICATE_COLUMN, message).hint("name them apart with AS"))
        }
        None => Ok(schema.fields().iter().map(|field| named(field.name())).collect()),
    }
}

/// Calls `each` with what writes a row, for every row.
fn each_row(
    batch: &RecordBatch,
    names: &[String],
    mut each: impl FnMut(&dyn Fn(&mut String) -> Result<(), QueryError>) -> Result<(), QueryError>,
) -> Result<(), QueryError> {
    let cells = batch.columns().iter().map(|column| Cells::of(column.as_ref())).collect::<Result<Vec<_>, _>>()?;
    for row in 0..batch.num_rows() {
        each(&|out| object(names.iter().map(String::as_str).zip(&cells), row, out))?;
    }
    Ok(())
}

fn csv_header(schema: &SchemaRef) -> Vec<u8> {
    let mut line = Vec::new();
    for (index, field) in schema.fields().iter().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        csv_value(field.name(), &mut line);
    }
    line.push(b'\n');
    line
}

/// NULL is nothing, an empty text two quotes, as in PostgreSQL.
fn csv_lines(batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError> {
    let cells = batch.columns().iter().map(|column| Cells::of(column.as_ref())).collect::<Result<Vec<_>, _>>()?;
    let mut text = String::new();
    for row in 0..batch.num_rows() {
        for (index, cells) in cells.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            if cells.is_null(row) {
                continue;
            }
            text.clear();
            cells.text(row, &mut text)?;
            csv_value(&text, out);
        }
        out.push(b'\n');
    }
    Ok(())
}

fn csv_value(text: &str, out: &mut Vec<u8>) {
    if !text.is_empty() && !text.contains([',', '"', '\n', '\r']) {
        return out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
    out.extend_from_slice(text.replace('"', "\"\"").as_bytes());
    out.push(b'"');
}

/// Makes bytes fewer on their way.
enum Coder {
    Identity,
    /// None once it has ended.
    Gzip(Option<GzEncoder<Vec<u8>>>),
    Zstd(Option<zstd::stream::write::Encoder<'static, Vec<u8>>>),
}

impl Coder {
    fn new(coding: Coding) -> Result<Self, QueryError> {
        Ok(match coding {
            Coding::Identity => Self::Identity,
            Coding::Gzip => Self::Gzip(Some(GzEncoder::new(Vec::new(), Compression::fast()))),
            Coding::Zstd => {
                let encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL).map_err(uncoded)?;
                Self::Zstd(Some(encoder))
            }
        })
    }

    /// Everything up to here is in what is returned: a client sees rows when they come.
    fn push(&mut self, bytes: Vec<u8>) -> Result<Bytes, QueryError> {
        let coded = match self {
            Self::Identity => bytes,
            Self::Gzip(Some(encoder)) => {
                encoder.write_all(&bytes).and_then(|()| encoder.flush()).map_err(uncoded)?;
                std::mem::take(encoder.get_mut())
            }
            Self::Zstd(Some(encoder)) => {
                encoder.write_all(&bytes).and_then(|()| encoder.flush()).map_err(uncoded)?;
                std::mem::take(encoder.get_mut())
            }
            Self::Gzip(None) | Self::Zstd(None) => return Err(QueryError::internal("bytes came behind the end")),
        };
        Ok(coded.into())
    }

    fn end(&mut self, bytes: Vec<u8>) -> Result<Bytes, QueryError> {
        let coded = match self {
            Self::Identity => bytes,
            Self::Gzip(encoder) => match encoder.take() {
                Some(mut encoder) => {
                    encoder.write_all(&bytes).map_err(uncoded)?;
                    encoder.finish().map_err(uncoded)?
                }
                None => Vec::new(),
            },
            Self::Zstd(encoder) => match encoder.take() {
                Some(mut encoder) => {
                    encoder.write_all(&bytes).map_err(uncoded)?;
                    encoder.finish().map_err(uncoded)?
                }
                None => Vec::new(),
            },
        };
        Ok(coded.into())
    }
}

fn uncoded(error: std::io::Error) -> QueryError {
    QueryError::internal(format!("the answer cannot be compressed: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use datafusion::arrow::array::{ArrayRef, Int64Array, StringArray};
    use datafusion::arrow::datatypes::Schema;

    use super::*;

    const ROWS: i64 = 10_000;

    fn rows() -> RecordBatch {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter((0..ROWS).map(|n| (n % 7 != 0).then_some(n))));
        let texts: ArrayRef =
            Arc::new(StringArray::from_iter_values((0..ROWS).map(|n| format!("text {}", n % 11))));
        RecordBatch::try_from_iter([("n", numbers), ("t", texts)]).unwrap()
    }

    /// All bytes of the rows, which come in slices of so many.
    fn bytes(slice: usize, format: Format, coding: Coding, pieces: Pieces) -> Vec<u8> {
        let all = rows();
        let mut writer = Writer::new(&all.schema(), format, Extent::Any, coding).unwrap().cut(pieces);
        let mut bytes = Vec::new();
        for start in (0..all.num_rows()).step_by(slice) {
            let length = slice.min(all.num_rows() - start);
            bytes.extend_from_slice(&writer.write(&all.slice(start, length)).unwrap());
        }
        bytes.extend_from_slice(&writer.end().unwrap());
        bytes
    }

    #[test]
    fn the_same_rows_are_the_same_bytes_however_they_came() {
        for format in Format::all() {
            for coding in [Coding::Identity, Coding::Gzip, Coding::Zstd] {
                let one = bytes(10_000, format, coding, Pieces::Even);
                for slice in [7, 999, 4096, 8192] {
                    assert!(bytes(slice, format, coding, Pieces::Even) == one, "{format:?} {coding:?} {slice}");
                }
            }
        }
        // The control: what is sent as it comes tells how it came.
        for (format, coding) in [(Format::Arrow, Coding::Identity), (Format::Json, Coding::Gzip)] {
            let cut = |slice| bytes(slice, format, coding, Pieces::AsTheyCome);
            assert!(cut(999) != cut(10_000), "{format:?} {coding:?}");
        }
    }

    #[test]
    fn a_result_without_rows_is_whole() {
        let empty = RecordBatch::new_empty(rows().schema());
        for (format, expected) in [(Format::Json, "[]\n"), (Format::Ndjson, ""), (Format::Csv, "n,t\n")] {
            let mut writer = Writer::new(&empty.schema(), format, Extent::Any, Coding::Identity).unwrap();
            assert_eq!(writer.end().unwrap(), expected.as_bytes(), "{format:?}");
        }
        let field = rows().schema().field(0).clone();
        let twice: SchemaRef = Arc::new(Schema::new(vec![field.clone(), field]));
        assert!(Writer::new(&twice, Format::Json, Extent::Any, Coding::Identity).is_err());
        assert!(Writer::new(&twice, Format::Csv, Extent::Any, Coding::Identity).is_ok());
    }
}
