//! Records as almost every producer writes them, read in a third of the time serde takes.
//!
//! What this reads, serde reads to the same values; a test compares them. Of everything else (an escape, a field that is
//! undeclared or comes twice, another type, broken JSON) it says None, and serde finds out what it is.

use std::borrow::Cow;

use serde::de::DeserializeSeed;

use crate::catalog::stream::{Column, ColumnType};
use crate::kafka::columns::{Slot, ValueSeed, parse_decimal};
use crate::kafka::instant::parse_micros;

/// Digits of a whole number that fit into 64 bits whatever they are.
const DIGITS_MAX: usize = 18;

/// Whether the names of `columns` stand in JSON as they are. Only then may they be looked for in it.
pub(super) fn can_read(columns: &[Column]) -> bool {
    columns.iter().all(|column| {
        let is_plain = column.name.bytes().all(|byte| !matches!(byte, b'"' | b'\\' | 0..0x20));
        is_plain && are_plain_inside(&column.kind)
    })
}

fn are_plain_inside(kind: &ColumnType) -> bool {
    match kind {
        ColumnType::List(item) => are_plain_inside(item),
        ColumnType::Struct(columns) => can_read(columns),
        _ => true,
    }
}

/// Reads one record into `slots`, one a column.
pub(super) fn row<'a>(text: &'a str, columns: &[Column], slots: &mut Vec<Slot<'a>>) -> Option<()> {
    slots.clear();
    slots.resize(columns.len(), Slot::Absent);
    let mut cursor = Cursor { text, at: 0 };
    cursor.space();
    cursor.object(columns, slots)?;
    cursor.space();
    (cursor.at == text.len()).then_some(())
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a [u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    fn byte(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.at += 1)
    }

    fn word<const N: usize>(&mut self, wanted: &[u8; N]) -> Option<()> {
        (self.rest().first_chunk()? == wanted).then(|| self.at += N)
    }

    /// Takes a comma (false) or `end` (true), with the space around it.
    fn is_last(&mut self, end: u8) -> Option<bool> {
        self.space();
        let found = self.peek()?;
        self.at += 1;
        self.space();
        (found == b',' || found == end).then_some(found == end)
    }

    fn object(&mut self, columns: &[Column], slots: &mut [Slot<'a>]) -> Option<()> {
        self.byte(b'{')?;
        self.space();
        if self.byte(b'}').is_some() {
            return Some(());
        }
        // Producers write fields in the same order again and again: look at the next column first.
        let mut guess = 0;
        loop {
            let index = match columns.get(guess) {
                Some(column) if self.key(&column.name).is_some() => guess,
                _ => {
                    let key = self.string()?;
                    columns.iter().position(|column| column.name == key)?
                }
            };
            let (column, slot) = (columns.get(index)?, slots.get_mut(index)?);
            if !matches!(slot, Slot::Absent) {
                return None;
            }
            self.space();
            self.byte(b':')?;
            self.space();
            *slot = self.value(&column.kind)?;
            guess = index + 1;
            if self.is_last(b'}')? {
                return Some(());
            }
        }
    }

    fn list(&mut self, item: &ColumnType) -> Option<Slot<'a>> {
        self.byte(b'[')?;
        self.space();
        let mut items = Vec::new();
        if self.byte(b']').is_some() {
            return Some(Slot::List(items));
        }
        loop {
            items.push(self.value(item)?);
            if self.is_last(b']')? {
                return Some(Slot::List(items));
            }
        }
    }

    fn value(&mut self, kind: &ColumnType) -> Option<Slot<'a>> {
        if self.peek()? == b'n' {
            return self.word(b"null").map(|()| Slot::Null);
        }
        match kind {
            ColumnType::Text => self.string().map(|text| Slot::Text(Cow::Borrowed(text))),
            // As it is kept.
            ColumnType::Uuid => {
                let text = self.string()?;
                is_canonical_uuid(text.as_bytes()).then_some(Slot::Text(Cow::Borrowed(text)))
            }
            ColumnType::Boolean => match self.peek()? {
                b't' => self.word(b"true").map(|()| Slot::Bool(true)),
                _ => self.word(b"false").map(|()| Slot::Bool(false)),
            },
            ColumnType::Int32 => {
                let number = self.integer()?;
                i32::try_from(number).is_ok().then_some(Slot::Int(number))
            }
            ColumnType::Int64 => self.integer().map(Slot::Int),
            ColumnType::Decimal { precision, scale } => {
                let text = if self.peek()? == b'"' { self.string()? } else { self.number()? };
                parse_decimal(text, *precision, *scale).map(Slot::Decimal)
            }
            ColumnType::Timestamp => parse_micros(self.string()?).map(Slot::Micros),
            ColumnType::Float64 => by_serde(kind, self.number()?),
            ColumnType::Date => {
                let from = self.at;
                self.string()?;
                by_serde(kind, self.text.get(from..self.at)?)
            }
            ColumnType::List(item) => self.list(item),
            ColumnType::Struct(columns) => {
                let mut slots = vec![Slot::Absent; columns.len()];
                self.object(columns, &mut slots).map(|()| Slot::Struct(slots))
            }
        }
    }

    /// This name in quotes.
    fn key(&mut self, name: &str) -> Option<()> {
        let rest = self.rest().strip_prefix(b"\"")?;
        let end = name.len();
        let found =
            rest.get(..end).is_some_and(|key| are_equal(key, name.as_bytes())) && rest.get(end) == Some(&b'"');
        found.then(|| self.at += end + 2)
    }

    /// A text without escapes.
    fn string(&mut self) -> Option<&'a str> {
        self.byte(b'"')?;
        let length = plain_length(self.rest())?;
        let text = self.text.get(self.at..self.at + length)?;
        self.at += length + 1;
        Some(text)
    }

    fn digits(&mut self) -> usize {
        let digits = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        digits
    }

    /// A whole number; whoever goes on behind it finds a fraction or an exponent and gives up.
    fn integer(&mut self) -> Option<i64> {
        let negative = self.byte(b'-').is_some();
        let digits = self.rest();
        let digits = digits.get(..self.digits())?;
        match digits {
            [] | [b'0', _, ..] => return None,
            // Minus zero is a float.
            [b'0'] if negative => return None,
            _ if digits.len() > DIGITS_MAX => return None,
            _ => {}
        }
        let number = digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'));
        Some(if negative { -number } else { number })
    }

    /// The text of a number without an exponent.
    fn number(&mut self) -> Option<&'a str> {
        let from = self.at;
        let _ = self.byte(b'-');
        let begins_with = self.peek()?;
        let whole = self.digits();
        if whole == 0 || (whole > 1 && begins_with == b'0') {
            return None;
        }
        if self.byte(b'.').is_some() && self.digits() == 0 {
            return None;
        }
        self.text.get(from..self.at)
    }
}

/// What serde makes of the text of one value.
fn by_serde<'a>(kind: &ColumnType, text: &'a str) -> Option<Slot<'a>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = ValueSeed(kind).deserialize(&mut json).ok()?;
    json.end().ok().map(|()| value)
}

/// Bytes up to the closing quote; None when an escape or a control character comes first. Looks at eight at once.
fn plain_length(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    const HIGHS: u64 = ONES * 0x80;
    let (words, tail) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // The highest bit of a byte that is zero. Above it there may be false ones, and only the first counts.
        let is_zero = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes & HIGHS;
        let quote = is_zero(word ^ (ONES * u64::from(b'"')));
        let escape = is_zero(word ^ (ONES * u64::from(b'\\')));
        let control = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let found = quote | escape | control;
        if found != 0 {
            let first = found.trailing_zeros();
            return (quote & (0xFF << (first - 7)) != 0).then_some(at * 8 + first as usize / 8);
        }
    }
    let end = tail.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
    (tail.get(end) == Some(&b'"')).then_some(words.len() * 8 + end)
}

/// As `==`, which calls a function for the few bytes of a name.
fn are_equal(a: &[u8], b: &[u8]) -> bool {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let word = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
    a.len() == b.len()
        && a_tail.len() == b_tail.len()
        && a.iter().zip(b).all(|(a, b)| word(a) == word(b))
        && a_tail.iter().zip(b_tail).all(|(a, b)| a == b)
}

/// Lower case, with hyphens.
fn is_canonical_uuid(text: &[u8]) -> bool {
    let Ok(text) = <&[u8; 36]>::try_from(text) else { return false };
    let hyphens = [8, 13, 18, 23].into_iter().all(|at| text.get(at) == Some(&b'-'));
    // Counted, not looked for: that is done for many bytes at once.
    let digits = text.iter().map(|byte| u8::from(matches!(byte, b'0'..=b'9' | b'a'..=b'f'))).sum::<u8>();
    hyphens && digits == 32
}

#[cfg(test)]
mod tests;
