//! PostgreSQL's binary file to rows. Values become the texts that they mean, so that all formats are read alike.

use chrono::{DateTime, Days, NaiveDate, TimeDelta};
use datafusion::arrow::datatypes::DataType;

use super::columns::{Columns, Input, Row};
use crate::serve::error::{QueryError, SqlState};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
/// Flags, and the length of an extension, behind the signature.
const HEADER_BYTES: usize = 8;
/// 2000-01-01, from which PostgreSQL counts, in seconds of Unix.
const EPOCH_SECONDS: i64 = 946_684_800;

/// What came and was not read yet.
#[derive(Debug)]
pub(super) struct Tuples {
    rest: Vec<u8>,
    at: usize,
    begun: bool,
    ended: bool,
    number: u64,
    bytes_max: usize,
}

impl Tuples {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { rest: Vec::new(), at: 0, begun: false, ended: false, number: 0, bytes_max }
    }

    pub(super) fn append(&mut self, data: &[u8]) {
        self.rest.drain(..self.at);
        self.at = 0;
        if !self.ended {
            self.rest.extend_from_slice(data);
        }
    }

    /// The next row that is here whole.
    pub(super) fn next(&mut self, columns: &Columns, input: Input) -> Result<Option<Row>, QueryError> {
        if self.ended {
            return Ok(None);
        }
        let mut cursor = Cursor(self.rest.get(self.at..).unwrap_or_default());
        let line = self.number + 1;
        let bad = |message: String| columns.bad_row(line, SqlState::BAD_COPY_FILE, message);
        if !self.begun && !cursor.0.iter().zip(SIGNATURE).all(|(byte, signature)| byte == signature) {
            return Err(bad("COPY file signature not recognized".to_owned()));
        }
        let found = match self.begun.then_some(()).or_else(|| cursor.header()) {
            Some(()) => tuple(&mut cursor, columns, &bad)?,
            None => None,
        };
        match found {
            Some(Tuple::End) => {
                self.ended = true;
                Ok(None)
            }
            Some(Tuple::Values(values)) => {
                self.begun = true;
                self.at = self.rest.len() - cursor.0.len();
                self.number = line;
                let values = values.into_iter().zip(columns.fields());
                let values = values.map(|(value, field)| match value {
                    None => Ok(None),
                    Some(value) => text(value, field.data_type()).map(Some).ok_or_else(|| {
                        let message = format!("incorrect binary data format in column \"{}\"", field.name());
                        columns.bad_row(line, SqlState::INVALID_BINARY, message)
                    }),
                });
                let values = values.collect::<Result<_, _>>()?;
                Ok(Some(Row { line, values }))
            }
            None if input == Input::Ended => Err(bad("unexpected EOF in COPY data".to_owned())),
            None if self.rest.len() - self.at > self.bytes_max => Err(columns.bad_row(
                line,
                SqlState::PROGRAM_LIMIT,
                format!("a row is longer than {} bytes", self.bytes_max),
            )),
            None => Ok(None),
        }
    }
}

enum Tuple {
    End,
    Values(Vec<Option<Vec<u8>>>),
}

/// The tuple at the cursor; None where it is not here whole.
fn tuple(
    cursor: &mut Cursor<'_>,
    columns: &Columns,
    bad: &impl Fn(String) -> QueryError,
) -> Result<Option<Tuple>, QueryError> {
    let Some(count) = cursor.array().map(i16::from_be_bytes) else { return Ok(None) };
    if count == -1 {
        return Ok(Some(Tuple::End));
    }
    if usize::try_from(count) != Ok(columns.len()) {
        return Err(bad(format!("row field count is {count}, expected {}", columns.len())));
    }
    let mut values = Vec::with_capacity(columns.len());
    for _ in columns.fields() {
        let Some(length) = cursor.array().map(i32::from_be_bytes) else { return Ok(None) };
        values.push(match usize::try_from(length) {
            Err(_) if length == -1 => None,
            Err(_) => return Err(bad("invalid field size".to_owned())),
            Ok(length) => match cursor.take(length) {
                Some(value) => Some(value.to_vec()),
                None => return Ok(None),
            },
        });
    }
    Ok(Some(Tuple::Values(values)))
}

/// Bytes of which less and less is left.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// Steps over what stands before the first tuple, whatever it is.
    fn header(&mut self) -> Option<()> {
        self.take(SIGNATURE.len() + HEADER_BYTES - 4)?;
        let extension = self.array().map(u32::from_be_bytes)?;
        self.take(usize::try_from(extension).ok()?).map(drop)
    }
}

/// What a value means; None where it is none of its type.
fn text(value: Vec<u8>, data_type: &DataType) -> Option<String> {
    let mut cursor = Cursor(&value);
    let found = match data_type {
        DataType::Boolean => match cursor.array::<1>()? {
            [0] => "false".to_owned(),
            [_] => "true".to_owned(),
        },
        DataType::Int16 => i16::from_be_bytes(cursor.array()?).to_string(),
        DataType::Int32 => i32::from_be_bytes(cursor.array()?).to_string(),
        DataType::Int64 => i64::from_be_bytes(cursor.array()?).to_string(),
        DataType::Float32 => f32::from_be_bytes(cursor.array()?).to_string(),
        DataType::Float64 => f64::from_be_bytes(cursor.array()?).to_string(),
        DataType::Timestamp(..) => {
            let since = TimeDelta::microseconds(i64::from_be_bytes(cursor.array()?));
            let at = DateTime::from_timestamp(EPOCH_SECONDS, 0)?.checked_add_signed(since)?;
            at.format("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string()
        }
        DataType::Date32 => {
            let (first, days) = (NaiveDate::from_ymd_opt(2000, 1, 1)?, i32::from_be_bytes(cursor.array()?));
            let away = Days::new(u64::from(days.unsigned_abs()));
            if days < 0 { first.checked_sub_days(away) } else { first.checked_add_days(away) }?.to_string()
        }
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            numeric(&mut cursor)?
        }
        _ => return String::from_utf8(value).ok(),
    };
    cursor.0.is_empty().then_some(found)
}

/// Digits to the base of ten thousand, the first of which stands for `10000 ^ weight`.
fn numeric(cursor: &mut Cursor<'_>) -> Option<String> {
    let count = u16::from_be_bytes(cursor.array()?);
    let weight = i32::from(i16::from_be_bytes(cursor.array()?));
    let sign = u16::from_be_bytes(cursor.array()?);
    let scale = usize::from(u16::from_be_bytes(cursor.array()?));
    let mut digits = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        digits.push(u16::from_be_bytes(cursor.array()?));
    }
    let digit = |place: i32| {
        let index = usize::try_from(weight - place).ok();
        index.and_then(|index| digits.get(index)).copied().unwrap_or_default()
    };
    let mut found = match sign {
        0x0000 => String::new(),
        0x4000 => "-".to_owned(),
        // NaN and the infinities, which no column here holds.
        _ => return None,
    };
    let whole: String = (0..=weight.max(0)).rev().map(|place| format!("{:04}", digit(place))).collect();
    let significant = whole.trim_start_matches('0');
    found.push_str(if significant.is_empty() { "0" } else { significant });
    let places = i32::try_from(scale.div_ceil(4)).ok()?;
    let fraction: String = (1..=places).map(|place| format!("{:04}", digit(-place))).collect();
    if scale > 0 {
        found.push('.');
        found.push_str(fraction.get(..scale)?);
    }
    Some(found)
}
