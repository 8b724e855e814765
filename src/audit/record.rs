//! A record as bytes, the same whoever computes them: the leaves of the tree.
//!
//! The bytes are those of the record's columns, in the order of the file, one after the other:
//!
//! | value | bytes |
//! |---|---|
//! | NULL | `00` |
//! | any other | `01`, then as its type says; numbers are big-endian, in two's complement |
//! | `boolean` | one, `00` or `01` |
//! | `int32`, `date` (days since 1970-01-01) | 4 |
//! | `int64`, `timestamp` (microseconds since 1970-01-01T00:00:00Z) | 8 |
//! | `float64` | 8, IEEE 754 |
//! | `decimal(p,s)` | 16, the unscaled number |
//! | `text` (UTF-8), `bytes` | 4 for the length, then these |
//! | `list<t>` | 4 for the length, then each item as a value |
//! | `struct<...>` | each field as a value |
//!
//! Which columns these are is said once an epoch, as JSON without spaces: `[["id","text"],["_offset","int64"]]`. Files of
//! one epoch have the same columns, and compaction puts no others together.

use std::fmt::Write as _;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array,
    ListArray, StringArray, StructArray,
};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float64Type, Int32Type, Int64Type, Schema, TimeUnit,
    TimestampMicrosecondType,
};

/// Columns as the tree knows them; the error names the first one that has no bytes.
pub fn columns_text(schema: &Schema) -> Result<String, String> {
    let named = |field: &Field| {
        let kind = type_name(field.data_type());
        kind.map(|kind| (field.name().clone(), kind))
            .ok_or_else(|| format!("column {} has type {}, which has no bytes", field.name(), field.data_type()))
    };
    let columns: Vec<(String, String)> =
        schema.fields().iter().map(|field| named(field)).collect::<Result<_, _>>()?;
    serde_json::to_string(&columns).map_err(|error| error.to_string())
}

fn type_name(data_type: &DataType) -> Option<String> {
    Some(match data_type {
        DataType::Utf8 => "text".to_owned(),
        DataType::Binary => "bytes".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int32 => "int32".to_owned(),
        DataType::Int64 => "int64".to_owned(),
        DataType::Float64 => "float64".to_owned(),
        DataType::Date32 => "date".to_owned(),
        DataType::Timestamp(TimeUnit::Microsecond, _) => "timestamp".to_owned(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::List(item) => format!("list<{}>", type_name(item.data_type())?),
        DataType::Struct(fields) => {
            let mut text = "struct<".to_owned();
            for (index, field) in fields.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                // A name may hold any character; quoted, it can be taken for nothing else.
                let name = serde_json::to_string(field.name()).ok()?;
                write!(text, "{comma}{name} {}", type_name(field.data_type())?).ok()?;
            }
            text + ">"
        }
        _ => return None,
    })
}

/// A column whose values can be written.
#[derive(Debug)]
pub struct Values(Kind);

#[derive(Debug)]
enum Kind {
    Text(StringArray),
    Bytes(BinaryArray),
    Boolean(BooleanArray),
    Int32(Int32Array),
    Int64(Int64Array),
    Float64(Float64Array),
    Decimal(Decimal128Array),
    List(ListArray, Box<Values>),
    Struct(StructArray, Vec<Values>),
}

impl Values {
    /// None when the type has no bytes.
    pub fn of(column: &ArrayRef) -> Option<Self> {
        Some(Self(match column.data_type() {
            DataType::Utf8 => Kind::Text(column.as_string_opt()?.clone()),
            DataType::Binary => Kind::Bytes(column.as_binary_opt()?.clone()),
            DataType::Boolean => Kind::Boolean(column.as_boolean_opt()?.clone()),
            DataType::Int32 => Kind::Int32(column.as_primitive_opt::<Int32Type>()?.clone()),
            DataType::Date32 => Kind::Int32(column.as_primitive_opt::<Date32Type>()?.reinterpret_cast()),
            DataType::Int64 => Kind::Int64(column.as_primitive_opt::<Int64Type>()?.clone()),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                Kind::Int64(column.as_primitive_opt::<TimestampMicrosecondType>()?.reinterpret_cast())
            }
            DataType::Float64 => Kind::Float64(column.as_primitive_opt::<Float64Type>()?.clone()),
            DataType::Decimal128(..) => Kind::Decimal(column.as_primitive_opt::<Decimal128Type>()?.clone()),
            DataType::List(_) => {
                let lists = column.as_list_opt::<i32>()?.clone();
                let items = Self::of(lists.values())?;
                Kind::List(lists, Box::new(items))
            }
            DataType::Struct(_) => {
                let rows = column.as_struct_opt()?.clone();
                let fields = rows.columns().iter().map(Self::of).collect::<Option<_>>()?;
                Kind::Struct(rows, fields)
            }
            _ => return None,
        }))
    }

    fn is_null(&self, row: usize) -> bool {
        match &self.0 {
            Kind::Text(column) => column.is_null(row),
            Kind::Bytes(column) => column.is_null(row),
            Kind::Boolean(column) => column.is_null(row),
            Kind::Int32(column) => column.is_null(row),
            Kind::Int64(column) => column.is_null(row),
            Kind::Float64(column) => column.is_null(row),
            Kind::Decimal(column) => column.is_null(row),
            Kind::List(column, _) => column.is_null(row),
            Kind::Struct(column, _) => column.is_null(row),
        }
    }

    /// Adds the bytes of one value. `row` lies within the column.
    pub fn write(&self, row: usize, bytes: &mut Vec<u8>) {
        if self.is_null(row) {
            bytes.push(0);
            return;
        }
        bytes.push(1);
        match &self.0 {
            Kind::Text(column) => write_bytes(column.value(row).as_bytes(), bytes),
            Kind::Bytes(column) => write_bytes(column.value(row), bytes),
            Kind::Boolean(column) => bytes.push(u8::from(column.value(row))),
            Kind::Int32(column) => bytes.extend(column.value(row).to_be_bytes()),
            Kind::Int64(column) => bytes.extend(column.value(row).to_be_bytes()),
            Kind::Float64(column) => bytes.extend(column.value(row).to_bits().to_be_bytes()),
            Kind::Decimal(column) => bytes.extend(column.value(row).to_be_bytes()),
            Kind::List(column, items) => {
                let from = column.value_offsets().get(row).copied().unwrap_or_default();
                let count = column.value_length(row);
                bytes.extend(count.to_be_bytes());
                // Offsets of an array are never negative.
                (from..from + count).for_each(|item| items.write(usize::try_from(item).unwrap_or_default(), bytes));
            }
            Kind::Struct(_, fields) => fields.iter().for_each(|field| field.write(row, bytes)),
        }
    }
}

/// No value of Parquet is longer than 2 GB.
fn write_bytes(value: &[u8], bytes: &mut Vec<u8>) {
    bytes.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(value);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{Date32Array, TimestampMicrosecondArray};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Fields;

    use super::super::merkle::to_hex;
    use super::*;

    fn written(column: ArrayRef) -> Vec<String> {
        let values = Values::of(&column).unwrap();
        let row = |row| {
            let mut bytes = Vec::new();
            values.write(row, &mut bytes);
            to_hex(&bytes)
        };
        (0..column.len()).map(row).collect()
    }

    #[test]
    fn every_type_has_its_bytes() {
        let check = |column: ArrayRef, expected: &[&str]| assert_eq!(written(column), expected);
        check(
            Arc::new(StringArray::from(vec![Some("ab"), Some(""), None])),
            &["01000000026162", "0100000000", "00"],
        );
        check(Arc::new(BinaryArray::from(vec![Some(&b"\0\xff"[..])])), &["010000000200ff"]);
        check(Arc::new(BooleanArray::from(vec![true, false])), &["0101", "0100"]);
        check(Arc::new(Int32Array::from(vec![-2])), &["01fffffffe"]);
        check(Arc::new(Date32Array::from(vec![1])), &["0100000001"]);
        check(Arc::new(Int64Array::from(vec![258])), &["010000000000000102"]);
        check(Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC")), &["010000000000000001"]);
        check(Arc::new(Float64Array::from(vec![-0.5])), &["01bfe0000000000000"]);
        let decimal = Decimal128Array::from(vec![-1]).with_precision_and_scale(18, 9).unwrap();
        check(Arc::new(decimal), &["01ffffffffffffffffffffffffffffffff"]);
    }

    #[test]
    fn lists_and_structs_are_written_from_within() {
        let items: ArrayRef = Arc::new(Int32Array::from(vec![Some(7), None, Some(9)]));
        let item = Arc::new(Field::new("element", DataType::Int32, true));
        let lists = ListArray::new(item, OffsetBuffer::from_lengths([2, 0, 1]), items, None);
        let sliced: ArrayRef = Arc::new(lists.slice(1, 2));
        assert_eq!(written(Arc::new(lists)), ["0100000002010000000700", "0100000000", "01000000010100000009"]);
        assert_eq!(written(sliced), ["0100000000", "01000000010100000009"]);
        let fields: Fields =
            vec![Field::new("a", DataType::Boolean, true), Field::new("b", DataType::Utf8, true)].into();
        let columns: Vec<ArrayRef> =
            vec![Arc::new(BooleanArray::from(vec![None, Some(true)])), Arc::new(StringArray::from(vec!["x", "y"]))];
        let rows = StructArray::new(fields, columns, Some(vec![true, false].into()));
        assert_eq!(written(Arc::new(rows)), ["010001000000 0178".replace(' ', ""), "00".to_owned()]);
    }

    #[test]
    fn columns_are_named_with_their_types() {
        let inner: Fields = vec![Field::new("a,\"b", DataType::Date32, true)].into();
        let schema = Schema::new(vec![
            Field::new("id", DataType::Utf8, true),
            Field::new("due", DataType::Decimal128(18, 9), true),
            Field::new("at", DataType::List(Arc::new(Field::new("element", DataType::Struct(inner), true))), true),
        ]);
        let expected = r#"[["id","text"],["due","decimal(18,9)"],["at","list<struct<\"a,\\\"b\" date>>"]]"#;
        assert_eq!(columns_text(&schema).unwrap(), expected);
        let schema = Schema::new(vec![Field::new("n", DataType::UInt8, true)]);
        assert!(columns_text(&schema).unwrap_err().contains("column n"));
    }
}
