//! Checks the shape of a request before it is decoded.
//!
//! The codec reserves memory for as many elements as a list claims to have, so four wrong bytes could end the
//! process. Here every list is walked first: a count is believed only when its elements are there.

use bytes::Buf;

/// A part of a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// So many bytes.
    Fixed(usize),
    /// Text with a two-byte length, or a compact one in newer versions; may be null.
    Text,
    /// Bytes with a four-byte length, or a compact one in newer versions; may be null.
    Blob,
    /// A list of plain values; may be null.
    List(&'static Shape),
    /// A list of structures; may be null.
    Structs(&'static [Field]),
}

/// A part with the versions that have it, first and last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field(pub(super) Shape, pub(super) i16, pub(super) i16);

/// A part of every version.
pub(super) const fn always(shape: Shape) -> Field {
    Field(shape, 0, i16::MAX)
}

pub(super) const fn since(version: i16, shape: Shape) -> Field {
    Field(shape, version, i16::MAX)
}

pub(super) const fn until(version: i16, shape: Shape) -> Field {
    Field(shape, 0, version)
}

/// The request ends before its shape does, or has a length that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a length or a count does not fit the bytes that follow")]
pub(super) struct Misshapen;

/// How lengths are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Fixed,
    /// Variable lengths, and tagged fields after every structure.
    Compact,
}

/// Walks over a structure and returns what follows it.
pub(super) fn walk<'a>(
    fields: &[Field],
    version: i16,
    encoding: Encoding,
    from: &'a [u8],
) -> Result<&'a [u8], Misshapen> {
    let mut rest = from;
    for Field(shape, first, last) in fields {
        if (*first..=*last).contains(&version) {
            rest = walk_one(shape, version, encoding, rest)?;
        }
    }
    match encoding {
        Encoding::Fixed => Ok(rest),
        Encoding::Compact => walk_tagged(rest),
    }
}

fn walk_one<'a>(shape: &Shape, version: i16, encoding: Encoding, from: &'a [u8]) -> Result<&'a [u8], Misshapen> {
    match shape {
        Shape::Fixed(bytes) => skip(from, *bytes),
        Shape::Text => {
            let (length, rest) = match encoding {
                Encoding::Compact => compact_length(from)?,
                Encoding::Fixed => {
                    let mut rest = from;
                    let length = rest.try_get_i16().map_err(|_| Misshapen)?;
                    (nullable(length.into())?, rest)
                }
            };
            skip(rest, length)
        }
        Shape::Blob => {
            let (length, rest) = length(encoding, from)?;
            skip(rest, length)
        }
        Shape::List(element) => {
            let (count, mut rest) = length(encoding, from)?;
            for _ in 0..count {
                rest = walk_one(element, version, encoding, rest)?;
            }
            Ok(rest)
        }
        Shape::Structs(fields) => {
            let (count, mut rest) = length(encoding, from)?;
            for _ in 0..count {
                rest = walk(fields, version, encoding, rest)?;
            }
            Ok(rest)
        }
    }
}

fn walk_tagged(from: &[u8]) -> Result<&[u8], Misshapen> {
    let (count, mut rest) = variable(from)?;
    for _ in 0..count {
        let (_tag, after_tag) = variable(rest)?;
        let (bytes, after_size) = variable(after_tag)?;
        rest = skip(after_size, bytes)?;
    }
    Ok(rest)
}

/// Length of a blob or a list; 0 for null.
fn length(encoding: Encoding, from: &[u8]) -> Result<(usize, &[u8]), Misshapen> {
    match encoding {
        Encoding::Compact => compact_length(from),
        Encoding::Fixed => {
            let mut rest = from;
            let length = rest.try_get_i32().map_err(|_| Misshapen)?;
            Ok((nullable(length.into())?, rest))
        }
    }
}

/// Compact lengths are one more than the length; 0 stands for null.
fn compact_length(from: &[u8]) -> Result<(usize, &[u8]), Misshapen> {
    let (length, rest) = variable(from)?;
    Ok((length.saturating_sub(1), rest))
}

fn nullable(length: i64) -> Result<usize, Misshapen> {
    match length {
        -1 => Ok(0),
        length => usize::try_from(length).map_err(|_| Misshapen),
    }
}

/// An unsigned number of seven bits a byte, at most 32 bits.
fn variable(from: &[u8]) -> Result<(usize, &[u8]), Misshapen> {
    let mut rest = from;
    let mut value = 0u64;
    for shift in [0, 7, 14, 21, 28] {
        let byte = rest.try_get_u8().map_err(|_| Misshapen)?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((usize::try_from(value).map_err(|_| Misshapen)?, rest));
        }
    }
    Err(Misshapen)
}

fn skip(from: &[u8], bytes: usize) -> Result<&[u8], Misshapen> {
    from.get(bytes..).ok_or(Misshapen)
}
