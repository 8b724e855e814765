//! Values as JSON, and as text for CSV.
//!
//! | type | JSON |
//! |---|---|
//! | integers up to 2^53 - 1, either way | number |
//! | greater ones | string, since a double would round them |
//! | floats | number; NaN and infinities, which JSON has not, are strings |
//! | decimals | string with all digits |
//! | instants, days, times | string as in ISO 8601; instants with a zone end in Z |
//! | bytes | string, `\x` and hexadecimal digits, as in PostgreSQL |
//! | arrays, structs | array, object |

use std::fmt::Write as _;
use std::ops::Range;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Float64Array, OffsetSizeTrait, StringArray,
    StringViewArray,
};
use datafusion::arrow::datatypes::{DataType, FieldRef, Float32Type, Float64Type};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::serve::error::{QueryError, SqlState};

/// Integers that a double holds have so many digits, or one more.
const SAFE_DIGITS: usize = 15;
/// The greatest integer up to which a double holds all.
const SAFE_MAX: u128 = (1 << 53) - 1;

/// The values of one column, ready to be written.
pub(super) struct Cells<'a> {
    array: &'a dyn Array,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Null,
    Boolean(&'a BooleanArray),
    Integer(ArrayFormatter<'a>),
    Float32(&'a Float32Array),
    Float64(&'a Float64Array),
    Text(&'a StringArray),
    TextView(&'a StringViewArray),
    Bytes,
    /// Decimals, instants and whatever else is shown as text.
    Shown(ArrayFormatter<'a>),
    List(Box<Cells<'a>>),
    /// Names as JSON, with the colon.
    Struct(Vec<(String, Cells<'a>)>),
}

impl<'a> Cells<'a> {
    pub(super) fn of(array: &'a dyn Array) -> Result<Self, QueryError> {
        let shown = || ArrayFormatter::try_new(array, &SHOWN).map_err(|error| unwritable(&error));
        let kind = match array.data_type() {
            DataType::Null => Kind::Null,
            DataType::Boolean => Kind::Boolean(array.as_boolean()),
            data_type if data_type.is_integer() => Kind::Integer(shown()?),
            DataType::Float32 => Kind::Float32(array.as_primitive::<Float32Type>()),
            DataType::Float64 => Kind::Float64(array.as_primitive::<Float64Type>()),
            DataType::Utf8 => Kind::Text(array.as_string::<i32>()),
            DataType::Utf8View => Kind::TextView(array.as_string_view()),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                Kind::Bytes
            }
            DataType::List(_) => Kind::List(Box::new(Self::of(array.as_list::<i32>().values().as_ref())?)),
            DataType::LargeList(_) => Kind::List(Box::new(Self::of(array.as_list::<i64>().values().as_ref())?)),
            DataType::FixedSizeList(..) => {
                Kind::List(Box::new(Self::of(array.as_fixed_size_list().values().as_ref())?))
            }
            DataType::Struct(fields) => {
                let columns = fields.iter().zip(array.as_struct().columns());
                let cells = |(field, column): (&FieldRef, &'a ArrayRef)| {
                    Ok((named(field.name()), Self::of(column.as_ref())?))
                };
                Kind::Struct(columns.map(cells).collect::<Result<_, QueryError>>()?)
            }
            _ => Kind::Shown(shown()?),
        };
        Ok(Self { array, kind })
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        matches!(self.kind, Kind::Null) || self.array.is_null(row)
    }

    pub(super) fn json(&self, row: usize, out: &mut String) -> Result<(), QueryError> {
        if self.is_null(row) {
            out.push_str("null");
            return Ok(());
        }
        match &self.kind {
            Kind::Integer(_) => {
                let start = out.len();
                self.text(row, out)?;
                if out.get(start..).is_some_and(is_too_great) {
                    out.insert(start, '"');
                    out.push('"');
                }
            }
            Kind::Float32(values) if !values.value(row).is_finite() => {
                quoted(endless(values.value(row).into()), out)
            }
            Kind::Float64(values) if !values.value(row).is_finite() => quoted(endless(values.value(row)), out),
            Kind::Text(values) => quoted(values.value(row), out),
            Kind::TextView(values) => quoted(values.value(row), out),
            Kind::Bytes | Kind::Shown(_) => {
                let mut text = String::new();
                self.text(row, &mut text)?;
                quoted(&text, out);
            }
            Kind::Null
            | Kind::Boolean(_)
            | Kind::Float32(_)
            | Kind::Float64(_)
            | Kind::List(_)
            | Kind::Struct(_) => {
                self.text(row, out)?;
            }
        }
        Ok(())
    }

    /// The value without quotes; of arrays and structs their JSON. Nothing for NULL.
    pub(super) fn text(&self, row: usize, out: &mut String) -> Result<(), QueryError> {
        if self.is_null(row) {
            return Ok(());
        }
        match &self.kind {
            Kind::Null => {}
            Kind::Boolean(values) => out.push_str(if values.value(row) { "true" } else { "false" }),
            Kind::Integer(shown) | Kind::Shown(shown) => {
                shown.value(row).write(out).map_err(|error| unwritable(&error))?;
            }
            Kind::Float32(values) => float32(values.value(row), out),
            Kind::Float64(values) => float64(values.value(row), out),
            Kind::Text(values) => out.push_str(values.value(row)),
            Kind::TextView(values) => out.push_str(values.value(row)),
            Kind::Bytes => {
                out.push_str("\\x");
                for byte in bytes(self.array, row) {
                    // Writing into a String cannot fail.
                    let _ = write!(out, "{byte:02x}");
                }
            }
            Kind::List(values) => {
                out.push('[');
                for (index, at) in items(self.array, row).enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    values.json(at, out)?;
                }
                out.push(']');
            }
            Kind::Struct(fields) => object(fields.iter().map(|(name, cells)| (name.as_str(), cells)), row, out)?,
        }
        Ok(())
    }
}

/// One object of the values that columns have in a row.
pub(super) fn object<'a, 'b: 'a>(
    columns: impl Iterator<Item = (&'a str, &'a Cells<'b>)>,
    row: usize,
    out: &mut String,
) -> Result<(), QueryError> {
    out.push('{');
    for (index, (name, cells)) in columns.enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(name);
        cells.json(row, out)?;
    }
    out.push('}');
    Ok(())
}

/// A name as JSON has it before a value.
pub(super) fn named(name: &str) -> String {
    let mut text = String::new();
    quoted(name, &mut text);
    text.push(':');
    text
}

/// Values that cannot be shown are an error, never text about one.
const SHOWN: FormatOptions<'static> = FormatOptions::new().with_display_error(false);

fn quoted(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

fn is_too_great(digits: &str) -> bool {
    let digits = digits.trim_start_matches('-');
    digits.len() > SAFE_DIGITS && digits.parse::<u128>().map_or(true, |number| number > SAFE_MAX)
}

/// The shortest digits that mean this number.
fn float64(number: f64, out: &mut String) {
    match serde_json::Number::from_f64(number) {
        Some(digits) => out.push_str(&digits.to_string()),
        None => out.push_str(endless(number)),
    }
}

fn float32(number: f32, out: &mut String) {
    match number.is_finite() {
        true => out.push_str(&format!("{number:?}")),
        false => out.push_str(endless(number.into())),
    }
}

fn endless(number: f64) -> &'static str {
    match number {
        number if number.is_nan() => "NaN",
        number if number > 0.0 => "Infinity",
        _ => "-Infinity",
    }
}

fn bytes(array: &dyn Array, row: usize) -> &[u8] {
    match array.data_type() {
        DataType::LargeBinary => array.as_binary::<i64>().value(row),
        DataType::BinaryView => array.as_binary_view().value(row),
        DataType::FixedSizeBinary(_) => array.as_fixed_size_binary().value(row),
        _ => array.as_binary::<i32>().value(row),
    }
}

/// Where the items of a list lie among the values of all lists.
fn items(array: &dyn Array, row: usize) -> Range<usize> {
    match array.data_type() {
        DataType::FixedSizeList(_, length) => {
            let start = usize::try_from(array.as_fixed_size_list().value_offset(row)).unwrap_or_default();
            start..start + usize::try_from(*length).unwrap_or_default()
        }
        DataType::LargeList(_) => offsets(array.as_list::<i64>().value_offsets(), row),
        _ => offsets(array.as_list::<i32>().value_offsets(), row),
    }
}

fn offsets<O: OffsetSizeTrait>(offsets: &[O], row: usize) -> Range<usize> {
    let at = |row: usize| offsets.get(row).map_or(0, |offset| offset.as_usize());
    at(row)..at(row + 1)
}

fn unwritable(error: &ArrowError) -> QueryError {
    QueryError::new(SqlState::NUMERIC_OUT_OF_RANGE, format!("a value cannot be written: {error}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use datafusion::arrow::array::{
        ArrayRef, BinaryArray, Date32Array, Decimal128Array, Int64Array, ListArray, StructArray,
        TimestampMicrosecondArray, UInt64Array,
    };
    use datafusion::arrow::datatypes::{Field, Int64Type};

    use super::*;

    fn json(array: ArrayRef) -> Vec<String> {
        let cells = Cells::of(array.as_ref()).unwrap();
        let value = |row| {
            let mut out = String::new();
            cells.json(row, &mut out).unwrap();
            out
        };
        (0..array.len()).map(value).collect()
    }

    #[test]
    fn numbers_that_a_double_would_round_are_strings() {
        let safe = (1_i64 << 53) - 1;
        let numbers =
            Int64Array::from(vec![Some(0), Some(safe), Some(-safe), Some(safe + 1), Some(i64::MIN), None]);
        let expected = [
            "0",
            "9007199254740991",
            "-9007199254740991",
            "\"9007199254740992\"",
            "\"-9223372036854775808\"",
            "null",
        ];
        assert_eq!(json(Arc::new(numbers)), expected);
        assert_eq!(json(Arc::new(UInt64Array::from(vec![u64::MAX]))), ["\"18446744073709551615\""]);
        let money = Decimal128Array::from(vec![1_230, -5]).with_precision_and_scale(18, 3).unwrap();
        assert_eq!(json(Arc::new(money)), ["\"1.230\"", "\"-0.005\""]);
        let floats = Float64Array::from(vec![0.1, -0.0, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
        assert_eq!(json(Arc::new(floats)), ["0.1", "-0.0", "1e+300", "\"NaN\"", "\"Infinity\"", "\"-Infinity\""]);
        assert_eq!(json(Arc::new(Float32Array::from(vec![0.1]))), ["0.1"]);
    }

    #[test]
    fn texts_instants_bytes_and_nested_values() {
        assert_eq!(json(Arc::new(StringArray::from(vec!["a\"b\\\n\u{1}é"]))), ["\"a\\\"b\\\\\\n\\u0001é\""]);
        let at = TimestampMicrosecondArray::from(vec![1_769_860_800_000_000, 1_769_860_800_123_456])
            .with_timezone("UTC");
        assert_eq!(json(Arc::new(at)), ["\"2026-01-31T12:00:00Z\"", "\"2026-01-31T12:00:00.123456Z\""]);
        assert_eq!(json(Arc::new(Date32Array::from(vec![20_484]))), ["\"2026-01-31\""]);
        assert_eq!(json(Arc::new(BinaryArray::from(vec![&[0_u8, 255][..]]))), ["\"\\\\x00ff\""]);
        let list =
            ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None, Some(vec![])]);
        assert_eq!(json(Arc::new(list)), ["[1,null]", "null", "[]"]);
        let inner = StructArray::from(vec![
            (Arc::new(Field::new("a", DataType::Int64, true)), Arc::new(Int64Array::from(vec![7])) as ArrayRef),
            (Arc::new(Field::new("b\"", DataType::Utf8, true)), Arc::new(StringArray::from(vec!["x"])) as ArrayRef),
        ]);
        assert_eq!(json(Arc::new(inner)), ["{\"a\":7,\"b\\\"\":\"x\"}"]);
    }
}
