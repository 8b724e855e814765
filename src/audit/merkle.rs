//! The Merkle tree of Certificate Transparency (RFC 6962, RFC 9162 section 2.1): roots, and proofs that something is in a
//! tree or that a tree grew out of another.
//!
//! A leaf is `SHA256(0x00 || bytes)`, a node `SHA256(0x01 || left || right)`, the root of no leaves `SHA256()`. The left
//! half of a tree is the largest power of two of leaves that is smaller than the tree, so that a tree that grows keeps
//! its complete parts. [`Peaks`] are these parts: all that is needed to go on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A SHA-256, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NodeHash(pub [u8; 32]);

impl NodeHash {
    /// The plain SHA-256 of bytes that are in no tree, such as a file.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for NodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<NodeHash> for String {
    fn from(hash: NodeHash) -> Self {
        hash.to_string()
    }
}

impl FromStr for NodeHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = from_hex(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| format!("\"{text}\" is not a SHA-256 of 64 hexadecimal digits"))
    }
}

impl TryFrom<String> for NodeHash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Bytes from pairs of hexadecimal digits; None when the text is something else.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.len().is_multiple_of(2).then(|| digits.chunks(2))?;
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.map(|pair| Some(digit(*pair.first()?)? * 16 + digit(*pair.last()?)?)).collect()
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn leaf(bytes: &[u8]) -> NodeHash {
    NodeHash(Sha256::new().chain_update([0]).chain_update(bytes).finalize().into())
}

fn node(left: &NodeHash, right: &NodeHash) -> NodeHash {
    NodeHash(Sha256::new().chain_update([1]).chain_update(left.0).chain_update(right.0).finalize().into())
}

/// The complete subtrees of a tree, largest first: one for each bit of its size.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peaks {
    size: u64,
    hashes: Vec<NodeHash>,
}

impl Peaks {
    /// Of a tree of `size` leaves; None when they are not as many as such a tree has.
    pub fn new(size: u64, hashes: Vec<NodeHash>) -> Option<Self> {
        (hashes.len() == size.count_ones() as usize).then_some(Self { size, hashes })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn hashes(&self) -> &[NodeHash] {
        &self.hashes
    }

    pub fn push(&mut self, leaf: NodeHash) {
        let mut whole = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.hashes.pop() {
                whole = node(&left, &whole);
            }
        }
        self.hashes.push(whole);
        self.size += 1;
    }

    pub fn root(&self) -> NodeHash {
        let mut peaks = self.hashes.iter().rev();
        let Some(last) = peaks.next() else { return NodeHash::of(&[]) };
        peaks.fold(*last, |right, left| node(left, &right))
    }
}

pub fn root(leaves: &[NodeHash]) -> NodeHash {
    let mut peaks = Peaks::default();
    leaves.iter().for_each(|leaf| peaks.push(*leaf));
    peaks.root()
}

/// Leaves of the left half of a tree of `size` leaves, which are two or more.
fn split(size: usize) -> usize {
    size.next_power_of_two() / 2
}

/// The path from leaf `index` to the root, lowest first; None when there is no such leaf.
pub fn inclusion(leaves: &[NodeHash], index: usize) -> Option<Vec<NodeHash>> {
    if index >= leaves.len() {
        return None;
    }
    let (mut path, mut rest, mut index) = (Vec::new(), leaves, index);
    while rest.len() > 1 {
        let (left, right) = rest.split_at(split(rest.len()));
        if index < left.len() {
            path.push(root(right));
            rest = left;
        } else {
            path.push(root(left));
            index -= left.len();
            rest = right;
        }
    }
    path.reverse();
    Some(path)
}

/// Whether `path` leads from `leaf`, the one with number `index` of `size`, to `root` (RFC 9162, 2.1.3.2).
pub fn is_included(leaf: NodeHash, index: u64, size: u64, path: &[NodeHash], root: NodeHash) -> bool {
    if index >= size {
        return false;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            hash = node(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && hash == root
}

/// Shows that the tree of `older` with the leaves `added` to it begins with the tree of `older`. Empty when either holds
/// nothing.
pub fn consistency(older: &Peaks, added: &[NodeHash]) -> Vec<NodeHash> {
    let mut path = Vec::new();
    let mut old = usize::try_from(older.size).unwrap_or(usize::MAX);
    let (mut new, mut peaks, mut whole) = (added, older.hashes.iter(), true);
    if old == 0 {
        return path;
    }
    while !new.is_empty() {
        let left = split(old + new.len());
        if old <= left {
            let (near, far) = new.split_at(left - old);
            path.push(root(far));
            new = near;
        } else {
            // The left half is complete, and so one of the older tree's own subtrees.
            path.extend(peaks.next());
            (old, whole) = (old - left, false);
        }
    }
    // The verifier knows the older root, when this part is all of it.
    if !whole {
        path.extend(peaks.next());
    }
    path.reverse();
    path
}

/// A tree, as far as who verifies knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TreeHead {
    pub size: u64,
    pub root: NodeHash,
}

/// Whether `path` shows that `newer` begins with `older` (RFC 9162, 2.1.4.2).
pub fn is_consistent(older: TreeHead, newer: TreeHead, path: &[NodeHash]) -> bool {
    if older.size == newer.size {
        return path.is_empty() && older.root == newer.root;
    }
    if older.size > newer.size {
        return false;
    }
    if older.size == 0 {
        return path.is_empty() && older.root == NodeHash::of(&[]);
    }
    let (mut at, mut last) = (older.size - 1, newer.size - 1);
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let mut path = path.iter().copied();
    let first = if older.size.is_power_of_two() { Some(older.root) } else { path.next() };
    let Some(first) = first else { return false };
    let (mut old, mut new) = (first, first);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            (old, new) = (node(&sibling, &old), node(&sibling, &new));
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            new = node(&new, &sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && old == older.root && new == newer.root
}

#[cfg(test)]
mod tests;
