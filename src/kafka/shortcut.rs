//! The short way to read a record: what producers write nearly always, and nothing else.
//!
//! Compact JSON with declared fields only, text without escapes, whole numbers, times in UTC. For everything
//! else, good or bad, [`Shortcut::read`] says that it does not know, and the long way decides. So it never
//! rejects, never names a reason, and need not know all of JSON.
//!
//! Architecture Invariant: where the short way gives values, the long way gives the same ones.

use std::borrow::Cow;

use uuid::Uuid;

use super::columns::{Slot, parse_decimal};
use crate::catalog::stream::{Column, ColumnType};

const LOW_BITS: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
/// Every whole number of so many digits fits an `i64`.
const DIGITS_MAX: usize = 18;

/// Reads one record.
#[derive(Debug)]
pub(super) struct Shortcut<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Shortcut<'a> {
    /// Fills `slots`, one a column and all absent before. None when the long way must decide; then `slots` hold
    /// anything.
    pub(super) fn read(text: &'a str, columns: &[Column], slots: &mut [Slot<'a>]) -> Option<()> {
        let mut shortcut = Self { text, at: 0 };
        shortcut.byte(b'{')?;
        shortcut.fields(columns, slots)?;
        (shortcut.at == text.len()).then_some(())
    }

    /// The fields of an object up to and with its closing brace.
    fn fields(&mut self, columns: &[Column], slots: &mut [Slot<'a>]) -> Option<()> {
        if self.peek()? == b'}' {
            return self.byte(b'}');
        }
        // Producers write fields in the same order again and again: look at the next column first.
        let mut guess = 0;
        loop {
            let key = self.string()?;
            self.byte(b':')?;
            let index = match columns.get(guess) {
                Some(column) if column.name == key => guess,
                _ => columns.iter().position(|column| column.name == key)?,
            };
            let slot = slots.get_mut(index)?;
            if *slot != Slot::Absent {
                return None;
            }
            *slot = self.value(&columns.get(index)?.kind)?;
            guess = index + 1;
            match self.peek()? {
                b',' => self.at += 1,
                _ => return self.byte(b'}'),
            }
        }
    }

    fn value(&mut self, kind: &ColumnType) -> Option<Slot<'a>> {
        match (self.peek()?, kind) {
            (b'n', _) => self.word("null", Slot::Null),
            (b'"', ColumnType::Text) => Some(Slot::Text(Cow::Borrowed(self.string()?))),
            (b'"', ColumnType::Uuid) => Uuid::try_parse(self.string()?).ok().map(Slot::Uuid),
            (b'"', ColumnType::Timestamp) => utc_micros(self.string()?.as_bytes()).map(Slot::Micros),
            (b'"', ColumnType::Decimal { precision, scale }) => {
                parse_decimal(self.string()?, *precision, *scale).map(Slot::Decimal)
            }
            (b't', ColumnType::Boolean) => self.word("true", Slot::Bool(true)),
            (b'f', ColumnType::Boolean) => self.word("false", Slot::Bool(false)),
            (_, ColumnType::Int64) => self.integer().map(Slot::Int),
            (_, ColumnType::Int32) => self.integer().filter(|value| i32::try_from(*value).is_ok()).map(Slot::Int),
            (b'[', ColumnType::List(item)) => self.list(item),
            (b'{', ColumnType::Struct(columns)) => {
                self.at += 1;
                let mut slots = vec![Slot::Absent; columns.len()];
                self.fields(columns, &mut slots)?;
                Some(Slot::Struct(slots))
            }
            _ => None,
        }
    }

    fn list(&mut self, item: &ColumnType) -> Option<Slot<'a>> {
        self.byte(b'[')?;
        let mut items = Vec::new();
        if self.peek()? == b']' {
            self.at += 1;
            return Some(Slot::List(items));
        }
        loop {
            items.push(self.value(item)?);
            match self.peek()? {
                b',' => self.at += 1,
                _ => {
                    self.byte(b']')?;
                    return Some(Slot::List(items));
                }
            }
        }
    }

    /// The text between two quotes; None when it has escapes or control characters.
    fn string(&mut self) -> Option<&'a str> {
        self.byte(b'"')?;
        let from = self.at;
        let rest = self.text.as_bytes().get(from..)?;
        let end = from + plain_length(rest);
        if self.text.as_bytes().get(end) != Some(&b'"') {
            return None;
        }
        self.at = end + 1;
        // The bytes at both ends are ASCII, so these are boundaries of characters.
        self.text.get(from..end)
    }

    /// A whole number without sign tricks: no leading zero, no `-0`, few enough digits.
    fn integer(&mut self) -> Option<i64> {
        let negative = self.peek()? == b'-';
        let from = self.at + usize::from(negative);
        let digits = self.text.as_bytes().get(from..)?;
        let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let digits = digits.get(..length)?;
        if length == 0 || length > DIGITS_MAX || (digits.first() == Some(&b'0') && (length > 1 || negative)) {
            return None;
        }
        self.at = from + length;
        // A fraction or an exponent is the long way's matter; the caller sees that no comma follows.
        let value = digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
        Some(if negative { -value } else { value })
    }

    fn word(&mut self, word: &str, value: Slot<'a>) -> Option<Slot<'a>> {
        let end = self.at + word.len();
        if self.text.as_bytes().get(self.at..end)? != word.as_bytes() {
            return None;
        }
        self.at = end;
        Some(value)
    }

    fn byte(&mut self, byte: u8) -> Option<()> {
        if self.peek()? != byte {
            return None;
        }
        self.at += 1;
        Some(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }
}

/// Bytes before the first quote, backslash or control character; eight at a time.
fn plain_length(bytes: &[u8]) -> usize {
    let mut length = 0;
    for chunk in bytes.chunks_exact(8) {
        let word = chunk.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte));
        let zero = |word: u64| word.wrapping_sub(LOW_BITS) & !word;
        let control = word.wrapping_sub(LOW_BITS * 0x20) & !word;
        let quote = zero(word ^ (LOW_BITS * u64::from(b'"')));
        let backslash = zero(word ^ (LOW_BITS * u64::from(b'\\')));
        // Above the first hit a borrow may set bits that mean nothing; the first one is true.
        let hits = (control | quote | backslash) & HIGH_BITS;
        if hits != 0 {
            return length + hits.trailing_zeros() as usize / 8;
        }
        length += 8;
    }
    let rest = bytes.get(length..).unwrap_or_default();
    length + rest.iter().take_while(|byte| **byte >= 0x20 && **byte != b'"' && **byte != b'\\').count()
}

/// Microseconds of `2026-01-31T12:00:00.123456Z` from 1970 on; None for any other way to write an instant.
fn utc_micros(text: &[u8]) -> Option<i64> {
    let number = |from: usize, to: usize| {
        text.get(from..to)?
            .iter()
            .try_fold(0, |value: i64, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| text.get(*at) != Some(mark)) || text.last() != Some(&b'Z') {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || day < 1 || day > days_of_month || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let fraction = match text.len() {
        20 => 0,
        // A point and one to six digits.
        22..=27 if text.get(19) == Some(&b'.') => {
            let digits = text.len() - 21;
            (digits..6).fold(number(20, 20 + digits)?, |value, _| value * 10)
        }
        _ => return None,
    };
    // Days of the civil calendar, counted from March (Hinnant, "chrono-compatible low-level date algorithms").
    let (shifted_year, shifted_month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (shifted_year / 400, shifted_year % 400);
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + fraction)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn instants_are_read_as_chrono_reads_them() {
        for text in [
            "1970-01-01T00:00:00Z",
            "2000-02-29T23:59:59.5Z",
            "2026-01-31T12:00:00.123456Z",
            "2026-12-31T12:00:00.000001Z",
            "2100-03-01T00:00:00.12Z",
            "9999-12-31T23:59:59.999999Z",
        ] {
            let expected = chrono::DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros();
            assert_eq!(utc_micros(text.as_bytes()), Some(expected), "{text}");
        }
        for text in [
            "2026-02-29T00:00:00Z",
            "2026-01-31T12:00:00+01:00",
            "2026-01-31 12:00:00Z",
            "2026-01-31T12:00:00.Z",
            "2026-13-01T00:00:00Z",
            "2026-01-31T12:00:60Z",
            "2026-01-31T12:00:00.1234567Z",
            "",
            "Z",
        ] {
            assert_eq!(utc_micros(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_day_is_counted_as_chrono_counts_it(micros in 0_i64..253_402_300_800_000_000) {
            let text = chrono::DateTime::from_timestamp_micros(micros).unwrap()
                .to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            prop_assert_eq!(utc_micros(text.as_bytes()), Some(micros));
        }

        #[test]
        fn plain_text_ends_where_a_slow_look_says(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let slow = bytes.iter().take_while(|byte| **byte >= 0x20 && **byte != b'"' && **byte != b'\\').count();
            prop_assert_eq!(plain_length(&bytes), slow);
        }
    }
}
