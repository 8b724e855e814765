//! A file of sorted keys, and what of it is kept in memory to ask it rarely.
//!
//! ```text
//! "VLKEYS01" | SHA-256 of the table's name | first epoch | last epoch | number of keys
//!            | keys, 16 bytes each, ascending | SHA-256 of all before
//! ```
//! Numbers are big-endian u64. A file is a copy of what the archive says: one that is damaged, or belongs to other
//! epochs, is thrown away and made again, never repaired.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parquet::bloom_filter::Sbbf;
use sha2::{Digest, Sha256};

use crate::position::Epoch;

const MAGIC: &[u8; 8] = b"VLKEYS01";
const HEADER_BYTES: u64 = 64;
const KEY_BYTES: usize = 16;
const DIGEST_BYTES: u64 = 32;
const BUFFER_BYTES: usize = 1 << 18;
/// Keys that are read at once: one page of a disk.
const PAGE_KEYS: usize = 256;
/// Keys of one filter: so many that a filter of 1 MiB errs once in a hundred times.
const FILTER_KEYS: usize = 3360 * PAGE_KEYS;
const FILTER_ERRS: f64 = 0.01;

/// The keys of some epochs, ascending, in a file that never changes.
#[derive(Debug)]
pub(super) struct KeyRun {
    file: File,
    path: PathBuf,
    pub(super) first: Epoch,
    pub(super) last: Epoch,
    keys: u64,
    /// The first key of each page.
    pages: Vec<u128>,
    /// One for each [`FILTER_KEYS`] keys.
    filters: Vec<Sbbf>,
}

/// Whose keys a file holds, and how many.
#[derive(Debug, Clone, Copy)]
pub(super) struct RunOf<'a> {
    /// Names the archive's table.
    pub(super) table: &'a str,
    pub(super) first: Epoch,
    pub(super) last: Epoch,
    pub(super) count: u64,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Damaged(&'static str),
}

impl KeyRun {
    /// Writes `keys`, which ascend, and opens the file.
    pub(super) fn write(
        path: PathBuf,
        of: RunOf<'_>,
        keys: impl Iterator<Item = io::Result<u128>>,
    ) -> io::Result<Self> {
        let RunOf { table, first, last, count } = of;
        let partial = path.with_extension("partial");
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, Hashed::new(File::create(&partial)?));
        out.write_all(MAGIC)?;
        out.write_all(&Sha256::digest(table))?;
        for number in [first.0, last.0, count] {
            out.write_all(&number.to_be_bytes())?;
        }
        let mut index = Index::default();
        for key in keys {
            let key = key?;
            index.push(key);
            out.write_all(&key.to_be_bytes())?;
        }
        if index.keys != count {
            return Err(io::Error::other(format!("{} keys where {count} were announced", index.keys)));
        }
        let Hashed { inner: mut file, hash } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.write_all(&hash.finalize())?;
        file.sync_all()?;
        std::fs::rename(&partial, &path)?;
        Ok(index.over(File::open(&path)?, path, (first, last)))
    }

    /// Opens a file that was written before, and reads all of it to see that it is whole.
    pub(super) fn open(path: PathBuf, table: &str) -> Result<Self, RunError> {
        let file = File::open(&path)?;
        let bytes = file.metadata()?.len();
        let content = Hashed::new((&file).take(bytes.saturating_sub(DIGEST_BYTES)));
        let mut input = BufReader::with_capacity(BUFFER_BYTES, content);
        let (mut magic, mut owner) = ([0; MAGIC.len()], [0; DIGEST_BYTES as usize]);
        input.read_exact(&mut magic)?;
        input.read_exact(&mut owner)?;
        let (first, last, count) = (number(&mut input)?, number(&mut input)?, number(&mut input)?);
        let expected =
            count.checked_mul(KEY_BYTES as u64).and_then(|keys| keys.checked_add(HEADER_BYTES + DIGEST_BYTES));
        if &magic != MAGIC || expected != Some(bytes) {
            return Err(RunError::Damaged("it is not a whole file of keys"));
        }
        if owner != *Sha256::digest(table) {
            return Err(RunError::Damaged("it belongs to another archive"));
        }
        let mut index = Index::default();
        let mut key = [0; KEY_BYTES];
        for _ in 0..count {
            input.read_exact(&mut key)?;
            if !index.push(u128::from_be_bytes(key)) {
                return Err(RunError::Damaged("its keys do not ascend"));
            }
        }
        let hash = input.into_inner().hash;
        let mut digest = [0; DIGEST_BYTES as usize];
        file.read_exact_at(&mut digest, bytes - DIGEST_BYTES)?;
        if digest != *hash.finalize() {
            return Err(RunError::Damaged("its content does not match its SHA-256"));
        }
        Ok(index.over(file, path, (Epoch(first), Epoch(last))))
    }

    pub(super) fn len(&self) -> u64 {
        self.keys
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn contains(&self, key: u128) -> io::Result<bool> {
        let Some(page) = self.pages.partition_point(|first| *first <= key).checked_sub(1) else { return Ok(false) };
        let filter = self.filters.get(page * PAGE_KEYS / FILTER_KEYS);
        if !filter.is_some_and(|filter| filter.check(key.to_be_bytes().as_slice())) {
            return Ok(false);
        }
        let mut page_bytes = [0; PAGE_KEYS * KEY_BYTES];
        let from = page as u64 * PAGE_KEYS as u64;
        let held = usize::try_from((self.keys - from).min(PAGE_KEYS as u64)).unwrap_or(PAGE_KEYS) * KEY_BYTES;
        let (found, _) = page_bytes.split_at_mut(held);
        self.file.read_exact_at(found, HEADER_BYTES + from * KEY_BYTES as u64)?;
        let (keys, _) = found.as_chunks::<KEY_BYTES>();
        Ok(keys.binary_search_by(|found| u128::from_be_bytes(*found).cmp(&key)).is_ok())
    }

    /// All keys, ascending.
    pub(super) fn keys(&self) -> io::Result<impl Iterator<Item = io::Result<u128>>> {
        let mut input = BufReader::with_capacity(BUFFER_BYTES, File::open(&self.path)?);
        io::copy(&mut Read::by_ref(&mut input).take(HEADER_BYTES), &mut io::sink())?;
        Ok((0..self.keys).map(move |_| {
            let mut key = [0; KEY_BYTES];
            input.read_exact(&mut key).map(|()| u128::from_be_bytes(key))
        }))
    }
}

/// Two ascending sequences as one.
pub(super) fn merged(
    a: impl Iterator<Item = io::Result<u128>>,
    b: impl Iterator<Item = io::Result<u128>>,
) -> impl Iterator<Item = io::Result<u128>> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    std::iter::from_fn(move || match (a.peek(), b.peek()) {
        (Some(Ok(left)), Some(Ok(right))) if left <= right => a.next(),
        (Some(Err(_)), _) | (Some(_), None) => a.next(),
        _ => b.next(),
    })
}

/// What is kept in memory of the keys of a file.
#[derive(Default)]
struct Index {
    keys: u64,
    newest: Option<u128>,
    pages: Vec<u128>,
    filters: Vec<Sbbf>,
}

impl Index {
    /// False when `key` is not above the one before.
    fn push(&mut self, key: u128) -> bool {
        if self.keys.is_multiple_of(PAGE_KEYS as u64) {
            self.pages.push(key);
        }
        if self.keys.is_multiple_of(FILTER_KEYS as u64) {
            let filter = Sbbf::new_with_ndv_fpp(FILTER_KEYS as u64, FILTER_ERRS);
            self.filters.push(filter.expect("the share lies between 0 and 1"));
        }
        if let Some(filter) = self.filters.last_mut() {
            filter.insert(key.to_be_bytes().as_slice());
        }
        self.keys += 1;
        self.newest.replace(key).is_none_or(|before| before < key)
    }

    fn over(self, file: File, path: PathBuf, (first, last): (Epoch, Epoch)) -> KeyRun {
        let Self { keys, pages, filters, .. } = self;
        KeyRun { file, path, first, last, keys, pages, filters }
    }
}

/// Hashes what passes.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash.update(bytes.get(..read).unwrap_or_default());
        Ok(read)
    }
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }
}

fn number(input: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(dir: &Path, name: &str, keys: &[u128]) -> KeyRun {
        let of = RunOf { table: "t", first: Epoch(1), last: Epoch(2), count: keys.len() as u64 };
        KeyRun::write(dir.join(name), of, keys.iter().copied().map(Ok)).unwrap()
    }

    #[test]
    fn it_holds_its_keys_and_no_others_before_and_after_it_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        for count in [0, 1, 255, 256, 257, 2000] {
            let keys: Vec<u128> = (0..count).map(|n| ((n + 1) * 0x1_0000_0001) << 60).collect();
            let written = write(dir.path(), "k.keys", &keys);
            let opened = KeyRun::open(written.path().to_owned(), "t").unwrap();
            for run in [&written, &opened] {
                assert_eq!((run.len(), run.first, run.last), (count as u64, Epoch(1), Epoch(2)));
                assert!(keys.iter().all(|key| run.contains(*key).unwrap()));
                assert!(keys.iter().all(|key| !run.contains(key + 1).unwrap()));
                assert!(!run.contains(0).unwrap() && !run.contains(u128::MAX).unwrap());
                assert_eq!(run.keys().unwrap().map(Result::unwrap).collect::<Vec<_>>(), keys);
            }
        }
    }

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "k.keys", &[1, 5, 9]).path().to_owned();
        let whole = std::fs::read(&path).unwrap();
        assert!(KeyRun::open(path.clone(), "t").is_ok() && KeyRun::open(path.clone(), "u").is_err());
        for byte in 0..whole.len() {
            let mut bad = whole.clone();
            bad[byte] ^= 4;
            std::fs::write(&path, &bad).unwrap();
            assert!(KeyRun::open(path.clone(), "t").is_err(), "byte {byte}");
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(KeyRun::open(path.clone(), "t").is_err(), "cut to {length}");
        }
    }

    #[test]
    fn two_are_merged_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (write(dir.path(), "a.keys", &[1, 4, 9]), write(dir.path(), "b.keys", &[2, 3, 10, 11]));
        let both: Vec<u128> = merged(a.keys().unwrap(), b.keys().unwrap()).map(Result::unwrap).collect();
        assert_eq!(both, [1, 2, 3, 4, 9, 10, 11]);
    }
}
