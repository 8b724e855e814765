//! Bytes to rows, in PostgreSQL's text format or as CSV.

use super::CopyFormat;
use super::columns::{Columns, Input, Row};
use crate::serve::error::{QueryError, SqlState};

/// Ends the data, to clients that cannot say so otherwise.
const END: &[u8] = b"\\.";

/// What came and was not read yet.
#[derive(Debug)]
pub(super) struct Lines {
    format: CopyFormat,
    rest: Vec<u8>,
    /// Where the next line begins in `rest`.
    start: usize,
    /// How far the search for its end has come, ...
    scanned: usize,
    /// ... and whether that is within quotes, ...
    quoted: bool,
    /// ... or behind an escape.
    escaped: bool,
    /// Lines that were read.
    number: u64,
    header: bool,
    ended: bool,
    bytes_max: usize,
}

impl Lines {
    pub(super) fn new(format: CopyFormat, bytes_max: usize) -> Self {
        let header =
            matches!(&format, CopyFormat::Text { header: true, .. } | CopyFormat::Csv { header: true, .. });
        Self {
            format,
            rest: Vec::new(),
            start: 0,
            scanned: 0,
            quoted: false,
            escaped: false,
            number: 0,
            header,
            ended: false,
            bytes_max,
        }
    }

    pub(super) fn append(&mut self, data: &[u8]) {
        self.rest.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        if !self.ended {
            self.rest.extend_from_slice(data);
        }
    }

    /// The next row that is here whole.
    pub(super) fn next(&mut self, columns: &Columns, input: Input) -> Result<Option<Row>, QueryError> {
        loop {
            if self.ended {
                return Ok(None);
            }
            let Some(end) = self.end_of_line(input) else {
                if self.rest.len() - self.start > self.bytes_max {
                    let message = format!("a line is longer than {} bytes", self.bytes_max);
                    return Err(columns.bad_row(self.number + 1, SqlState::PROGRAM_LIMIT, message));
                }
                return Ok(None);
            };
            let whole = self.rest.get(self.start..end).unwrap_or_default();
            self.number += whole.iter().filter(|byte| **byte == b'\n').count().max(1) as u64;
            self.start = end;
            let unterminated = std::mem::take(&mut self.quoted);
            let line = whole.strip_suffix(b"\n").unwrap_or(whole);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line == END {
                self.ended = true;
                continue;
            }
            if unterminated {
                return Err(columns.bad_line(self.number, line, "unterminated CSV quoted field"));
            }
            if std::mem::take(&mut self.header) {
                continue;
            }
            return row(&self.format, columns, self.number, line).map(Some);
        }
    }

    /// Behind the end of the line that begins at `start`; None where it is not here.
    fn end_of_line(&mut self, input: Input) -> Option<usize> {
        while let Some(byte) = self.rest.get(self.scanned).copied() {
            self.scanned += 1;
            if std::mem::take(&mut self.escaped) {
                continue;
            }
            match &self.format {
                CopyFormat::Csv { quote, escape, .. } => {
                    let (quote, escape) = (*quote as u8, *escape as u8);
                    if self.quoted && escape != quote && byte == escape {
                        self.escaped = true;
                    } else if byte == quote {
                        self.quoted = !self.quoted;
                    } else if byte == b'\n' && !self.quoted {
                        return Some(self.scanned);
                    }
                }
                _ if byte == b'\\' => self.escaped = true,
                _ if byte == b'\n' => return Some(self.scanned),
                _ => {}
            }
        }
        (input == Input::Ended && self.scanned > self.start).then_some(self.scanned)
    }
}

fn row(format: &CopyFormat, columns: &Columns, number: u64, line: &[u8]) -> Result<Row, QueryError> {
    let raw = match format {
        CopyFormat::Csv { delimiter, null, quote, escape, .. } => {
            quoted(line, *delimiter as u8, null.as_bytes(), *quote as u8, *escape as u8)
        }
        CopyFormat::Text { delimiter, null, .. } => escaped(line, *delimiter as u8, null.as_bytes()),
        CopyFormat::Binary => return Err(QueryError::internal("a binary file has no lines")),
    };
    if raw.len() > columns.len() {
        return Err(columns.bad_line(number, line, "extra data after last expected column"));
    }
    if let Some(missing) = columns.fields().get(raw.len()) {
        return Err(columns.bad_line(number, line, format!("missing data for column \"{}\"", missing.name())));
    }
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes).map_err(|error| {
            let byte = error.as_bytes().get(error.utf8_error().valid_up_to()).copied().unwrap_or_default();
            let message = format!("invalid byte sequence for encoding \"UTF8\": 0x{byte:02x}");
            columns.bad_row(number, SqlState::CHARACTER_NOT_IN_REPERTOIRE, message)
        })
    };
    let values = raw.into_iter().map(|value| value.map(text).transpose()).collect::<Result<_, _>>()?;
    Ok(Row { line: number, values })
}

/// The values of a line of text.
fn escaped(line: &[u8], delimiter: u8, null: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut values = Vec::new();
    let (mut value, mut start, mut at) = (Vec::new(), 0, 0);
    loop {
        let byte = line.get(at).copied();
        at += 1;
        match byte {
            Some(b'\\') if at < line.len() => {
                let (meant, taken) = escape(line.get(at..).unwrap_or_default());
                value.push(meant);
                at += taken;
            }
            Some(byte) if byte != delimiter => value.push(byte),
            end => {
                // NULL is told from what stands there, not from what it means.
                let raw = line.get(start..at - 1).unwrap_or_default();
                let value = std::mem::take(&mut value);
                values.push((raw != null).then_some(value));
                start = at;
                if end.is_none() {
                    return values;
                }
            }
        }
    }
}

/// The byte that is meant by what stands behind a backslash, and how many bytes that takes.
fn escape(behind: &[u8]) -> (u8, usize) {
    let number = |digits: &[u8], radix: u32| {
        let text = std::str::from_utf8(digits).unwrap_or_default();
        u32::from_str_radix(text, radix).unwrap_or_default().to_le_bytes()[0]
    };
    let run = |from: usize, most: usize, radix: u32| {
        let digits = behind.get(from..).unwrap_or_default().iter().take(most);
        digits.take_while(|byte| char::from(**byte).is_digit(radix)).count()
    };
    match behind.first().copied() {
        Some(b'b') => (0x08, 1),
        Some(b'f') => (0x0c, 1),
        Some(b'n') => (b'\n', 1),
        Some(b'r') => (b'\r', 1),
        Some(b't') => (b'\t', 1),
        Some(b'v') => (0x0b, 1),
        Some(b'x') if run(1, 2, 16) > 0 => {
            let count = run(1, 2, 16);
            (number(behind.get(1..=count).unwrap_or_default(), 16), count + 1)
        }
        Some(b'0'..=b'7') => {
            let count = run(0, 3, 8);
            (number(behind.get(..count).unwrap_or_default(), 8), count)
        }
        Some(byte) => (byte, 1),
        None => (b'\\', 0),
    }
}

/// The values of a line of CSV.
fn quoted(line: &[u8], delimiter: u8, null: &[u8], quote: u8, escape: u8) -> Vec<Option<Vec<u8>>> {
    let mut values = Vec::new();
    let (mut value, mut within, mut was_quoted) = (Vec::new(), false, false);
    let mut bytes = line.iter().copied().peekable();
    loop {
        match bytes.next() {
            Some(byte)
                if within && byte == escape && bytes.peek().is_some_and(|next| [quote, escape].contains(next)) =>
            {
                value.extend(bytes.next());
            }
            Some(byte) if byte == quote => {
                within = !within;
                was_quoted = true;
            }
            Some(byte) if within || byte != delimiter => value.push(byte),
            end => {
                let value = std::mem::take(&mut value);
                values.push((std::mem::take(&mut was_quoted) || value != null).then_some(value));
                if end.is_none() {
                    return values;
                }
            }
        }
    }
}
