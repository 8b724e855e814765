//! A stream: one Kafka topic, declared as a table.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use datafusion::physical_expr::PhysicalExpr;

/// Columns that every record has beside the declared ones.
pub const EXTRA: &str = "_extra";
pub const TOPIC: &str = "_topic";
pub const PARTITION: &str = "_partition";
pub const OFFSET: &str = "_offset";
pub const PRODUCED_AT: &str = "_produced_at";
pub const INGESTED_AT: &str = "_ingested_at";
/// Columns that only the archive's files have.
pub const KIND: &str = "_kind";
pub const REASON: &str = "_reason";
pub const RAW: &str = "_raw";

/// One Kafka topic and the rules its records must keep.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    pub name: String,
    pub topic: String,
    pub columns: Vec<Column>,
    /// Index of the column that identifies a record; a second record with the same value is a duplicate.
    pub key: Option<usize>,
    /// Index of the column that says when it happened.
    pub event_time: Option<usize>,
    pub checks: Vec<Check>,
    /// What a row is, from the comment above the statement.
    pub comment: Option<String>,
    /// Line and column of each of `columns` in its file.
    pub places: Vec<(u64, u64)>,
    /// The file and line of its declaration, for messages.
    pub declared_at: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    pub name: String,
    pub kind: ColumnType,
    pub required: bool,
}

/// How a JSON value is read.
#[derive(Debug, Clone, PartialEq)]
pub enum ColumnType {
    Text,
    /// Kept as canonical lower-case text, so that every tool that opens the archive can read it.
    Uuid,
    Boolean,
    Int32,
    Int64,
    Float64,
    Decimal {
        precision: u8,
        scale: i8,
    },
    /// An ISO-8601 instant with an offset, kept as UTC microseconds.
    Timestamp,
    Date,
    List(Box<ColumnType>),
    Struct(Vec<Column>),
}

/// A rule on a record: it is rejected when `sql` is false; unknown (NULL) passes, as in standard SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: String,
    pub sql: String,
    pub line: u64,
    pub column: u64,
}

/// A [`Check`] that was planned and is ready to run on decoded records.
#[derive(Debug, Clone)]
pub struct CompiledCheck {
    pub name: String,
    pub sql: String,
    pub expr: Arc<dyn PhysicalExpr>,
}

impl ColumnType {
    pub fn data_type(&self) -> DataType {
        match self {
            Self::Text | Self::Uuid => DataType::Utf8,
            Self::Boolean => DataType::Boolean,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::Float64 => DataType::Float64,
            Self::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Date => DataType::Date32,
            Self::List(item) => DataType::List(Arc::new(Field::new("element", item.data_type(), true))),
            Self::Struct(columns) => DataType::Struct(fields(columns)),
        }
    }
}

/// Nested fields are nullable for the tools that read the archive; rules are kept by the decoder.
fn fields(columns: &[Column]) -> Fields {
    columns.iter().map(|c| Field::new(&c.name, c.kind.data_type(), true)).collect()
}

impl Stream {
    /// Declared columns, undeclared fields as JSON text in `_extra`, then the record's coordinates.
    /// The schema of every decoded batch and of `raw.<stream>` (which adds `_file` and `_row`).
    pub fn record_schema(&self) -> SchemaRef {
        let mut all: Vec<Field> = fields(&self.columns).iter().map(|f| f.as_ref().clone()).collect();
        all.push(Field::new(EXTRA, DataType::Utf8, true));
        all.extend(coordinates());
        Arc::new(Schema::new(all))
    }

    /// What the archive's files hold: the record, and for a rejected one the reason and its bytes.
    pub fn archive_schema(&self) -> SchemaRef {
        let mut all: Vec<Field> = self.record_schema().fields().iter().map(|f| f.as_ref().clone()).collect();
        all.push(Field::new(KIND, DataType::Utf8, true));
        all.push(Field::new(REASON, DataType::Utf8, true));
        all.push(Field::new(RAW, DataType::Binary, true));
        Arc::new(Schema::new(all))
    }
}

fn coordinates() -> Vec<Field> {
    vec![
        Field::new(TOPIC, DataType::Utf8, true),
        Field::new(PARTITION, DataType::Int32, true),
        Field::new(OFFSET, DataType::Int64, true),
        Field::new(PRODUCED_AT, ColumnType::Timestamp.data_type(), true),
        Field::new(INGESTED_AT, ColumnType::Timestamp.data_type(), true),
    ]
}

/// A rejected record: where it was, why it was rejected, and its bytes as they came.
pub fn quarantine_schema() -> SchemaRef {
    let mut all = coordinates();
    all.push(Field::new(REASON, DataType::Utf8, true));
    all.push(Field::new(RAW, DataType::Binary, true));
    Arc::new(Schema::new(all))
}
