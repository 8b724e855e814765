//! Arrow results to rows of the protocol: arrow-pg encodes, and what it cannot is first made into what it can.

use std::sync::Arc;

use arrow_pg::datatypes::{PG_OID_ALIAS_KEY, field_into_pg_type};
use arrow_pg::encoder::encode_value;
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, StringBuilder};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use pgwire::api::Type;
use pgwire::api::portal::Format;
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::data::DataRow;

use crate::serve::error::{QueryError, SqlState};
use crate::serve::values::checked_cast;

/// How one column is brought to the wire.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    AsIs,
    Cast(DataType),
    /// Decimals as their exact digits, whatever their precision.
    Digits,
    /// Nested values as JSON text.
    Json,
}

/// The encoder of one result.
#[derive(Debug)]
pub(super) struct RowEncoder {
    infos: Arc<Vec<FieldInfo>>,
    shapes: Vec<Shape>,
    fields: Vec<FieldRef>,
}

/// The description of a result's columns.
pub(super) fn describe(schema: &SchemaRef, format: &Format) -> PgWireResult<Vec<FieldInfo>> {
    let fields = schema.fields().iter().enumerate();
    fields.map(|(index, field)| info(field, format_of(format, index))).collect()
}

/// The type of a parameter whose type the planner found; text when it did not.
pub(super) fn parameter_type(data_type: Option<&DataType>) -> Type {
    let Some(data_type) = data_type else { return Type::TEXT };
    let field = Arc::new(Field::new("parameter", data_type.clone(), true));
    wire_type(&field, FieldFormat::Text).unwrap_or(Type::TEXT)
}

/// pgwire panics on an index that the client did not send a format for.
fn format_of(format: &Format, index: usize) -> FieldFormat {
    match format {
        Format::Individual(codes) => codes.get(index).map_or(FieldFormat::Text, |code| FieldFormat::from(*code)),
        unified => unified.format_for(index),
    }
}

fn info(field: &FieldRef, format: FieldFormat) -> PgWireResult<FieldInfo> {
    let pg_type = wire_type(field, format)?;
    let size = match pg_type {
        Type::BOOL | Type::CHAR => 1,
        Type::INT2 => 2,
        Type::INT4 | Type::FLOAT4 | Type::DATE | Type::OID => 4,
        Type::INT8 | Type::FLOAT8 | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::TIME => 8,
        Type::INTERVAL => 16,
        _ => -1,
    };
    Ok(FieldInfo::new(field.name().clone(), None, None, pg_type, format).with_type_size(size))
}

fn wire_type(field: &FieldRef, format: FieldFormat) -> PgWireResult<Type> {
    match shape(field.data_type(), format) {
        Shape::AsIs if field.data_type() == &DataType::Null => Ok(Type::TEXT),
        // Columns of the catalog say which of PostgreSQL's numbers of objects they are. A cast takes the number and leaves
        // what was said of it, and where there are names in the place of numbers it is not true.
        Shape::AsIs if field.data_type() != &DataType::Int32 && field.metadata().contains_key(PG_OID_ALIAS_KEY) => {
            field_into_pg_type(&Arc::new(Field::new(field.name(), field.data_type().clone(), true)))
        }
        Shape::AsIs => field_into_pg_type(field),
        Shape::Cast(target) => field_into_pg_type(&Arc::new(Field::new(field.name(), target, true))),
        Shape::Digits => Ok(Type::NUMERIC),
        Shape::Json => Ok(Type::JSON),
    }
}

fn shape(data_type: &DataType, format: FieldFormat) -> Shape {
    match data_type {
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..)
            if format == FieldFormat::Text =>
        {
            Shape::Digits
        }
        DataType::Decimal32(_, scale) | DataType::Decimal64(_, scale) | DataType::Decimal256(_, scale) => {
            Shape::Cast(DataType::Decimal128(38, *scale))
        }
        // Counts and ranks are unsigned to the engine, and bigint to every client.
        DataType::UInt64 => Shape::Cast(DataType::Int64),
        DataType::Float16 => Shape::Cast(DataType::Float32),
        DataType::Int8 => Shape::Cast(DataType::Int16),
        DataType::FixedSizeBinary(_) => Shape::Cast(DataType::Binary),
        DataType::Dictionary(_, value) if shape(value, format) == Shape::AsIs => {
            Shape::Cast(value.as_ref().clone())
        }
        DataType::Dictionary(..) | DataType::RunEndEncoded(..) => Shape::Cast(DataType::Utf8),
        DataType::Struct(_) | DataType::Map(..) | DataType::Union(..) => Shape::Json,
        DataType::ListView(item) | DataType::LargeListView(item) => Shape::Cast(DataType::List(Arc::clone(item))),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            match item.data_type() {
                DataType::Null => Shape::AsIs,
                inner if inner.is_nested() => Shape::Json,
                DataType::UInt64 => {
                    Shape::Cast(DataType::List(Arc::new(Field::new("item", DataType::Int64, true))))
                }
                inner if matches!(shape(inner, FieldFormat::Binary), Shape::AsIs) => Shape::AsIs,
                _ => Shape::Json,
            }
        }
        _ => Shape::AsIs,
    }
}

impl RowEncoder {
    pub(super) fn new(schema: &SchemaRef, format: &Format) -> PgWireResult<Self> {
        let infos = describe(schema, format)?;
        let shapes: Vec<Shape> = schema
            .fields()
            .iter()
            .zip(&infos)
            .map(|(field, info)| shape(field.data_type(), info.format()))
            .collect();
        let fields = schema
            .fields()
            .iter()
            .zip(&shapes)
            .map(|(field, shape)| match shape {
                Shape::AsIs => Arc::clone(field),
                Shape::Cast(target) => Arc::new(Field::new(field.name(), target.clone(), true)),
                Shape::Digits | Shape::Json => Arc::new(Field::new(field.name(), DataType::Utf8, true)),
            })
            .collect();
        Ok(Self { infos: Arc::new(infos), shapes, fields })
    }

    pub(super) fn infos(&self) -> &Arc<Vec<FieldInfo>> {
        &self.infos
    }

    /// The rows of one piece of the result.
    pub(super) fn encode(&self, batch: &RecordBatch) -> Result<Vec<DataRow>, QueryError> {
        if batch.num_columns() != self.shapes.len() {
            return Err(QueryError::internal("a result has other columns than its description"));
        }
        let columns: Vec<ArrayRef> = batch
            .columns()
            .iter()
            .zip(self.shapes.iter().zip(&self.fields))
            .map(|(column, (shape, field))| match shape {
                // The engine does not always keep its own promise about types.
                Shape::AsIs if column.data_type() != field.data_type() => checked_cast(column, field.data_type()),
                shape => shaped(column, shape),
            })
            .collect::<Result<_, _>>()?;
        let mut encoder = DataRowEncoder::new(Arc::clone(&self.infos));
        let mut rows = Vec::with_capacity(batch.num_rows());
        for row in 0..batch.num_rows() {
            for ((column, field), info) in columns.iter().zip(&self.fields).zip(self.infos.iter()) {
                let encoded = if column.is_null(row) {
                    encoder.encode_field_with_type_and_format(
                        &None::<i8>,
                        info.datatype(),
                        info.format(),
                        info.format_options(),
                    )
                } else {
                    encode_value(&mut encoder, column, row, field, info)
                };
                encoded.map_err(|error| unencodable(info.name(), error))?;
            }
            rows.push(encoder.take_row());
        }
        Ok(rows)
    }
}

fn unencodable(column: &str, error: PgWireError) -> QueryError {
    match error {
        PgWireError::UserError(info) if info.code == "22003" => {
            QueryError::new(SqlState::NUMERIC_OUT_OF_RANGE, format!("column \"{column}\": {}", info.message))
                .hint("ask for the text format, or cast the column to text")
        }
        other => QueryError::internal(format!("cannot encode column \"{column}\": {other}")),
    }
}

fn shaped(column: &ArrayRef, shape: &Shape) -> Result<ArrayRef, QueryError> {
    match shape {
        Shape::AsIs => Ok(Arc::clone(column)),
        Shape::Digits => checked_cast(column, &DataType::Utf8),
        Shape::Cast(target) => checked_cast(column, target),
        Shape::Json => json(column),
    }
}

/// Each value as JSON text.
fn json(column: &ArrayRef) -> Result<ArrayRef, QueryError> {
    use arrow::json::writer::{LineDelimited, WriterBuilder};
    let failed = |error: datafusion::arrow::error::ArrowError| QueryError::internal(error.to_string());
    let schema = Arc::new(Schema::new(vec![Field::new("v", column.data_type().clone(), true)]));
    let batch = RecordBatch::try_new(schema, vec![Arc::clone(column)]).map_err(failed)?;
    let mut text = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut text);
    writer.write(&batch).map_err(failed)?;
    writer.finish().map_err(failed)?;
    drop(writer);
    let text = String::from_utf8(text).map_err(|error| QueryError::internal(error.to_string()))?;
    let mut values = StringBuilder::new();
    for (row, line) in text.lines().enumerate() {
        let value = line.strip_prefix("{\"v\":").and_then(|line| line.strip_suffix('}'));
        values.append_option(value.filter(|_| !column.is_null(row)));
    }
    Ok(Arc::new(values.finish()))
}
