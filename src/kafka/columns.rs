//! JSON values into Arrow builders, column by column.

use std::borrow::Cow;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int32Builder, Int64Builder,
    ListArray, NullBufferBuilder, OffsetBufferBuilder, StringBuilder, StructArray, TimestampMicrosecondBuilder,
};
use datafusion::arrow::datatypes::{DataType, Field};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::instant::parse_micros;
use crate::catalog::stream::{Column, ColumnType};

/// One decoded value, borrowed from the payload where it can be.
#[derive(Debug, Clone, PartialEq)]
pub enum Slot<'a> {
    Absent,
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Decimal(i128),
    Micros(i64),
    Days(i32),
    Uuid(Uuid),
    Text(Cow<'a, str>),
    List(Vec<Slot<'a>>),
    Struct(Vec<Slot<'a>>),
}

impl Slot<'_> {
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Absent | Self::Null)
    }
}

impl ColumnType {
    fn expected(&self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Uuid => "a UUID",
            Self::Boolean => "true or false",
            Self::Int32 | Self::Int64 => "a whole number in range",
            Self::Float64 => "a number",
            Self::Decimal { .. } => "a decimal number that fits without rounding",
            Self::Timestamp => {
                "an ISO-8601 instant with an offset (years 1678 to 2261), such as 2026-01-31T12:00:00Z"
            }
            Self::Date => "an ISO-8601 date, such as 2026-01-31",
            Self::List(_) => "an array",
            Self::Struct(_) => "an object",
        }
    }
}

/// Reads one JSON value as the given type; `null` is allowed here, NOT NULL is the caller's matter.
#[derive(Debug, Clone, Copy)]
pub struct ValueSeed<'t>(pub &'t ColumnType);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Slot<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        match self.0 {
            // A decimal keeps all its digits only as text.
            ColumnType::Decimal { precision, scale } => {
                let raw = <&RawValue as serde::Deserialize>::deserialize(deserializer)?.get();
                if raw == "null" {
                    return Ok(Slot::Null);
                }
                parse_decimal(raw.trim_matches('"'), *precision, *scale)
                    .map(Slot::Decimal)
                    .ok_or_else(|| D::Error::custom(format!("{raw} is not {}", self.0.expected())))
            }
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Slot<'de>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.expected())
    }

    fn visit_unit<E: Error>(self) -> Result<Slot<'de>, E> {
        Ok(Slot::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Slot<'de>, E> {
        match self.0 {
            ColumnType::Boolean => Ok(Slot::Bool(value)),
            _ => Err(E::invalid_type(Unexpected::Bool(value), &self)),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Slot<'de>, E> {
        match self.0 {
            ColumnType::Int64 => Ok(Slot::Int(value)),
            ColumnType::Int32 if i32::try_from(value).is_ok() => Ok(Slot::Int(value)),
            ColumnType::Int32 => Err(E::invalid_value(Unexpected::Signed(value), &self)),
            #[expect(clippy::cast_precision_loss, reason = "a JSON number in a float column")]
            ColumnType::Float64 => Ok(Slot::Float(value as f64)),
            _ => Err(E::invalid_type(Unexpected::Signed(value), &self)),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Slot<'de>, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.visit_f64(value as f64),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Slot<'de>, E> {
        match self.0 {
            ColumnType::Float64 => Ok(Slot::Float(value)),
            _ => Err(E::invalid_type(Unexpected::Float(value), &self)),
        }
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Slot<'de>, E> {
        match self.0 {
            ColumnType::Text => Ok(Slot::Text(Cow::Borrowed(value))),
            _ => self.visit_str(value),
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Slot<'de>, E> {
        let slot = match self.0 {
            ColumnType::Text => Some(Slot::Text(Cow::Owned(value.to_owned()))),
            ColumnType::Uuid => Uuid::try_parse(value).ok().map(Slot::Uuid),
            ColumnType::Timestamp => parse_micros(value).map(Slot::Micros),
            ColumnType::Date => value.parse::<chrono::NaiveDate>().ok().map(|date| {
                let days = date.signed_duration_since(chrono::NaiveDate::default()).num_days();
                Slot::Days(i32::try_from(days).unwrap_or_default())
            }),
            _ => return Err(E::invalid_type(Unexpected::Str(value), &self)),
        };
        slot.ok_or_else(|| E::invalid_value(Unexpected::Str(value), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Slot<'de>, A::Error> {
        let ColumnType::List(item) = self.0 else {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self));
        };
        let mut items = Vec::new();
        while let Some(value) = seq.next_element_seed(ValueSeed(item))? {
            items.push(value);
        }
        Ok(Slot::List(items))
    }

    /// Undeclared fields of a nested object are not kept apart: the whole record still is, in Kafka's bytes,
    /// only when it is rejected; declare what you need.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Slot<'de>, A::Error> {
        let ColumnType::Struct(columns) = self.0 else {
            return Err(A::Error::invalid_type(Unexpected::Map, &self));
        };
        let mut slots = vec![Slot::Absent; columns.len()];
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match columns
                .iter()
                .position(|c| c.name == key)
                .and_then(|i| Some((columns.get(i)?, slots.get_mut(i)?)))
            {
                Some((column, slot)) => *slot = field_value(&mut map, column)?,
                None => drop(map.next_value::<serde::de::IgnoredAny>()?),
            }
        }
        Ok(Slot::Struct(slots))
    }
}

/// Reads the value of `column`; an error names the field.
pub fn field_value<'de, A: MapAccess<'de>>(map: &mut A, column: &Column) -> Result<Slot<'de>, A::Error> {
    map.next_value_seed(ValueSeed(&column.kind))
        .map_err(|error| A::Error::custom(format!("field {}: {error}", column.name)))
}

/// Reads `12.5` as 12500 at scale 3; None when digits would be lost or the precision is exceeded.
pub(super) fn parse_decimal(text: &str, precision: u8, scale: i8) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fraction = fraction.trim_end_matches('0');
    let scale = usize::try_from(scale).ok()?;
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || fraction.len() > scale {
        return None;
    }
    let mut value: i128 = whole.parse().ok()?;
    for digit in fraction.bytes().chain(std::iter::repeat(b'0')).take(scale) {
        value = value.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    let limit = 10_i128.checked_pow(u32::from(precision))?;
    (value < limit).then_some(if negative { -value } else { value })
}

/// Grows one column.
#[derive(Debug)]
pub enum ColumnBuilder {
    Text(StringBuilder),
    Boolean(BooleanBuilder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Float64(Float64Builder),
    Decimal(Decimal128Builder),
    Timestamp(TimestampMicrosecondBuilder),
    Date(Date32Builder),
    List {
        item: Box<ColumnBuilder>,
        data_type: DataType,
        offsets: OffsetBufferBuilder<i32>,
        nulls: NullBufferBuilder,
    },
    Struct {
        columns: Vec<ColumnBuilder>,
        data_type: DataType,
        nulls: NullBufferBuilder,
    },
}

impl ColumnBuilder {
    pub fn new(kind: &ColumnType, rows: usize) -> Self {
        match kind {
            ColumnType::Text => Self::Text(StringBuilder::with_capacity(rows, rows * 12)),
            ColumnType::Uuid => Self::Text(StringBuilder::with_capacity(rows, rows * 36)),
            ColumnType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            ColumnType::Int32 => Self::Int32(Int32Builder::with_capacity(rows)),
            ColumnType::Int64 => Self::Int64(Int64Builder::with_capacity(rows)),
            ColumnType::Float64 => Self::Float64(Float64Builder::with_capacity(rows)),
            ColumnType::Decimal { .. } => {
                Self::Decimal(Decimal128Builder::with_capacity(rows).with_data_type(kind.data_type()))
            }
            ColumnType::Timestamp => {
                Self::Timestamp(TimestampMicrosecondBuilder::with_capacity(rows).with_data_type(kind.data_type()))
            }
            ColumnType::Date => Self::Date(Date32Builder::with_capacity(rows)),
            ColumnType::List(item) => Self::List {
                item: Box::new(Self::new(item, 0)),
                data_type: kind.data_type(),
                offsets: OffsetBufferBuilder::new(rows),
                nulls: NullBufferBuilder::new(rows),
            },
            ColumnType::Struct(columns) => Self::Struct {
                columns: columns.iter().map(|c| Self::new(&c.kind, rows)).collect(),
                data_type: kind.data_type(),
                nulls: NullBufferBuilder::new(rows),
            },
        }
    }

    /// Appends one value. The decoder made the slot for this column's type; anything else becomes NULL.
    pub fn append(&mut self, slot: &Slot<'_>) {
        match (self, slot) {
            (Self::Text(b), Slot::Text(v)) => b.append_value(v),
            (Self::Text(b), Slot::Uuid(v)) => {
                b.append_value(v.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()));
            }
            (Self::Boolean(b), Slot::Bool(v)) => b.append_value(*v),
            (Self::Int32(b), Slot::Int(v)) => b.append_option(i32::try_from(*v).ok()),
            (Self::Int64(b), Slot::Int(v)) => b.append_value(*v),
            (Self::Float64(b), Slot::Float(v)) => b.append_value(*v),
            (Self::Decimal(b), Slot::Decimal(v)) => b.append_value(*v),
            (Self::Timestamp(b), Slot::Micros(v)) => b.append_value(*v),
            (Self::Date(b), Slot::Days(v)) => b.append_value(*v),
            (Self::List { item, offsets, nulls, .. }, Slot::List(values)) => {
                values.iter().for_each(|value| item.append(value));
                offsets.push_length(values.len());
                nulls.append_non_null();
            }
            (Self::Struct { columns, nulls, .. }, Slot::Struct(values)) => {
                columns.iter_mut().zip(values).for_each(|(column, value)| column.append(value));
                nulls.append_non_null();
            }
            (builder, _) => builder.append_null(),
        }
    }

    fn append_null(&mut self) {
        match self {
            Self::Text(b) => b.append_null(),
            Self::Boolean(b) => b.append_null(),
            Self::Int32(b) => b.append_null(),
            Self::Int64(b) => b.append_null(),
            Self::Float64(b) => b.append_null(),
            Self::Decimal(b) => b.append_null(),
            Self::Timestamp(b) => b.append_null(),
            Self::Date(b) => b.append_null(),
            Self::List { offsets, nulls, .. } => {
                offsets.push_length(0);
                nulls.append_null();
            }
            Self::Struct { columns, nulls, .. } => {
                columns.iter_mut().for_each(Self::append_null);
                nulls.append_null();
            }
        }
    }

    pub fn finish(self) -> ArrayRef {
        match self {
            Self::Text(mut b) => Arc::new(b.finish()),
            Self::Boolean(mut b) => Arc::new(b.finish()),
            Self::Int32(mut b) => Arc::new(b.finish()),
            Self::Int64(mut b) => Arc::new(b.finish()),
            Self::Float64(mut b) => Arc::new(b.finish()),
            Self::Decimal(mut b) => Arc::new(b.finish()),
            Self::Timestamp(mut b) => Arc::new(b.finish()),
            Self::Date(mut b) => Arc::new(b.finish()),
            Self::List { item, data_type, offsets, mut nulls } => {
                let field = match data_type {
                    DataType::List(field) => field,
                    other => Arc::new(Field::new("element", other, true)),
                };
                Arc::new(ListArray::new(field, offsets.finish(), item.finish(), nulls.finish()))
            }
            Self::Struct { columns, data_type, mut nulls } => {
                let fields = match data_type {
                    DataType::Struct(fields) => fields,
                    _ => unreachable!("a struct builder is made for a struct type"),
                };
                let arrays = columns.into_iter().map(Self::finish).collect();
                Arc::new(StructArray::new(fields, arrays, nulls.finish()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact_or_refused() {
        assert_eq!(parse_decimal("12.5", 18, 3), Some(12_500));
        assert_eq!(parse_decimal("-0.001", 18, 3), Some(-1));
        assert_eq!(parse_decimal("0.0010", 18, 3), Some(1));
        assert_eq!(parse_decimal("0.0001", 18, 3), None);
        assert_eq!(parse_decimal("1000", 3, 0), None);
        assert_eq!(parse_decimal("1e3", 18, 3), None);
        assert_eq!(parse_decimal("", 18, 3), None);
    }
}
