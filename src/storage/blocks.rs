//! Digests of a file's blocks, so that whoever reads a part of it knows that it is what was written.
//!
//! Pages carry no checksum of their own (see [`super::parquet`]), and a flipped bit can decode to another value without
//! an error. The SHA-256 of a whole file tells only who reads all of it; these tell everybody, for the bytes they read.

use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// Bytes of a block. A reader of one page reads the blocks around it, so they are about the size of a page.
pub const BLOCK_BYTES: u64 = 64 * 1024;
/// Hexadecimal digits of one block's digest.
const DIGITS: usize = 8;

/// The first half of the first quarter of each block's SHA-256: it finds damage, it does not resist a forger.
#[derive(Clone, PartialEq, Eq)]
pub struct BlockDigests(Arc<[u32]>);

impl BlockDigests {
    pub fn of(file: &[u8]) -> Self {
        Self(file.chunks(BLOCK_BYTES as usize).map(digest).collect())
    }

    /// As [`fmt::Display`] wrote them; None when it is not that.
    pub fn parse(text: &str) -> Option<Self> {
        if !text.is_ascii() || !text.len().is_multiple_of(DIGITS) {
            return None;
        }
        let digits = text.as_bytes().chunks(DIGITS).map(|digits| std::str::from_utf8(digits).ok());
        digits.map(|digits| u32::from_str_radix(digits?, 16).ok()).collect::<Option<_>>().map(Self)
    }

    /// The first block that is not what was written. `bytes` begin with block `first` and hold whole blocks, the last
    /// of the file excepted.
    pub fn damaged(&self, first: u64, bytes: &[u8]) -> Option<u64> {
        let known = |block: u64| usize::try_from(block).ok().and_then(|block| self.0.get(block)).copied();
        (first..).zip(bytes.chunks(BLOCK_BYTES as usize)).find_map(|(block, bytes)| {
            let sound = known(block) == Some(digest(bytes));
            (!sound).then_some(block)
        })
    }
}

fn digest(block: &[u8]) -> u32 {
    let digest: [u8; 32] = Sha256::digest(block).into();
    let [a, b, c, d, ..] = digest;
    u32::from_be_bytes([a, b, c, d])
}

impl fmt::Display for BlockDigests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|digest| write!(f, "{digest:08x}"))
    }
}

impl fmt::Debug for BlockDigests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockDigests({} blocks)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(len: u64) -> Vec<u8> {
        (0..len).map(|n| (n * 31 % 251) as u8).collect()
    }

    #[test]
    fn they_are_read_as_they_were_written() {
        for len in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES] {
            let digests = BlockDigests::of(&file(len));
            let text = digests.to_string();
            assert_eq!(text.len() as u64, len.div_ceil(BLOCK_BYTES) * DIGITS as u64);
            assert_eq!(BlockDigests::parse(&text), Some(digests));
        }
        for bad in ["0123", "0123456g", "01234567 ", "0123456ä"] {
            assert_eq!(BlockDigests::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn damage_is_found_in_its_block() {
        let good = file(3 * BLOCK_BYTES + 10);
        let digests = BlockDigests::of(&good);
        assert_eq!(digests.damaged(0, &good), None);
        assert_eq!(digests.damaged(2, &good[2 * BLOCK_BYTES as usize..]), None);
        for at in [0, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 9] {
            let mut bad = good.clone();
            bad[at as usize] ^= 1;
            assert_eq!(digests.damaged(0, &bad), Some(at / BLOCK_BYTES));
        }
        assert_eq!(digests.damaged(1, &good), Some(1), "the bytes of another block");
        assert_eq!(digests.damaged(0, &good[..good.len() - 1]), Some(3), "a short end");
        let mut longer = good;
        longer.resize(4 * BLOCK_BYTES as usize + 1, 0);
        assert_eq!(digests.damaged(0, &longer), Some(3));
        assert_eq!(digests.damaged(4, b"x"), Some(4), "no such block");
    }
}
