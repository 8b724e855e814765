//! A parameter of an endpoint, and what its text means.

use std::sync::Arc;

use chrono::{DateTime, Datelike, NaiveDate};
use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::FormatOptions;
use datafusion::common::ScalarValue;
use uuid::Uuid;

use crate::catalog::stream::ColumnType;

/// Days from the year 1 to 1970.
const EPOCH_DAYS: i32 = 719_163;

#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub place: Place,
    pub kind: ColumnType,
    /// The least and the greatest value, both among those that may be given; of integers.
    pub between: Option<(i64, i64)>,
    pub default: Option<Fallback>,
    /// What it means.
    pub about: String,
    /// Line and column of its declaration.
    pub at: (u64, u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Path,
    Query,
}

/// What stands for a parameter that is not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fallback {
    Null,
    Text(String),
}

impl Parameter {
    /// With bounds and a default, each of which is NULL where it is none.
    ///
    /// # Errors
    /// Why they do not fit.
    pub fn bounded(
        mut self,
        between: Option<(Option<String>, Option<String>)>,
        default: Option<Option<String>>,
    ) -> Result<Self, String> {
        if matches!(self.kind, ColumnType::List(_) | ColumnType::Struct(_)) {
            return Err("a parameter is no array and no struct".to_owned());
        }
        if let Some((least, greatest)) = between {
            if !matches!(self.kind, ColumnType::Int32 | ColumnType::Int64) {
                return Err("BETWEEN is for INTEGER and BIGINT".to_owned());
            }
            let number = |text: Option<String>| text.and_then(|text| text.parse::<i64>().ok());
            self.between = match (number(least), number(greatest)) {
                (Some(least), Some(greatest)) if least <= greatest => Some((least, greatest)),
                _ => return Err("BETWEEN takes two integers, the smaller one first".to_owned()),
            };
        }
        if let Some(default) = default {
            if self.place == Place::Path {
                return Err("a parameter of the route is always given: it has no DEFAULT".to_owned());
            }
            if let Some(text) = &default {
                self.value(text).map_err(|reason| format!("DEFAULT {reason}"))?;
            }
            self.default = Some(default.map_or(Fallback::Null, Fallback::Text));
        }
        Ok(self)
    }

    /// What stands for it when it is not given; none when it has to be.
    pub fn absent(&self) -> Option<Result<ScalarValue, String>> {
        self.default.as_ref().map(|default| match default {
            Fallback::Null => {
                ScalarValue::try_from(&self.kind.data_type()).map_err(|error| error.strip_backtrace())
            }
            Fallback::Text(text) => self.value(text),
        })
    }

    /// # Errors
    /// Why `text` is no value of its type.
    pub fn value(&self, text: &str) -> Result<ScalarValue, String> {
        let must = |what: &str| format!("must be {what}, not {text:?}");
        let value = match &self.kind {
            ColumnType::Text => ScalarValue::from(text),
            ColumnType::Uuid => ScalarValue::from(Uuid::parse_str(text).map_err(|_| must("a UUID"))?.to_string()),
            ColumnType::Boolean => match text {
                "true" => ScalarValue::from(true),
                "false" => ScalarValue::from(false),
                _ => return Err(must("true or false")),
            },
            ColumnType::Int32 => ScalarValue::from(text.parse::<i32>().map_err(|_| must("an integer of 32 bits"))?),
            ColumnType::Int64 => ScalarValue::from(text.parse::<i64>().map_err(|_| must("an integer of 64 bits"))?),
            ColumnType::Float64 => {
                let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
                ScalarValue::from(number.ok_or_else(|| must("a number"))?)
            }
            ColumnType::Decimal { precision, scale } => {
                decimal(text, &self.kind.data_type(), *scale).ok_or_else(|| {
                    must(&format!("a decimal with at most {precision} digits, {scale} of them behind the point"))
                })?
            }
            ColumnType::Timestamp => {
                let instant = DateTime::parse_from_rfc3339(text);
                let instant =
                    instant.map_err(|_| must("an instant such as 2026-01-31T12:00:00Z (a + is written %2B)"))?;
                ScalarValue::TimestampMicrosecond(Some(instant.timestamp_micros()), Some("UTC".into()))
            }
            ColumnType::Date => {
                let day =
                    NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| must("a day such as 2026-01-31"))?;
                ScalarValue::Date32(Some(day.num_days_from_ce() - EPOCH_DAYS))
            }
            ColumnType::List(_) | ColumnType::Struct(_) => return Err("is of a type that has no text".to_owned()),
        };
        let number = match value {
            ScalarValue::Int32(Some(number)) => Some(i64::from(number)),
            ScalarValue::Int64(number) => number,
            _ => None,
        };
        match (self.between, number) {
            (Some((least, greatest)), Some(number)) if number < least || number > greatest => {
                Err(format!("must be from {least} to {greatest}, not {number}"))
            }
            _ => Ok(value),
        }
    }

    /// The name of its type in SQL.
    pub fn sql_type(&self) -> String {
        match &self.kind {
            ColumnType::Text => "TEXT".to_owned(),
            ColumnType::Uuid => "UUID".to_owned(),
            ColumnType::Boolean => "BOOLEAN".to_owned(),
            ColumnType::Int32 => "INTEGER".to_owned(),
            ColumnType::Int64 => "BIGINT".to_owned(),
            ColumnType::Float64 => "DOUBLE PRECISION".to_owned(),
            ColumnType::Decimal { precision, scale } => format!("DECIMAL({precision}, {scale})"),
            ColumnType::Timestamp => "TIMESTAMPTZ".to_owned(),
            ColumnType::Date => "DATE".to_owned(),
            ColumnType::List(_) | ColumnType::Struct(_) => "nested".to_owned(),
        }
    }
}

/// Digits with a sign and a point, none of which is cut off.
fn decimal(text: &str, target: &DataType, scale: i8) -> Option<ScalarValue> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, behind) = digits.split_once('.').unwrap_or((digits, "0"));
    let all = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all(whole) || !all(behind) || behind.trim_end_matches('0').len() > usize::try_from(scale).ok()? {
        return None;
    }
    let column: ArrayRef = Arc::new(StringArray::from(vec![text]));
    let options = CastOptions { safe: false, format_options: FormatOptions::default() };
    let cast = cast_with_options(&column, target, &options).ok()?;
    ScalarValue::try_from_array(&cast, 0).ok().filter(|value| !value.is_null())
}
