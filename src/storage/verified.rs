//! A view of the store through which only bytes come that are what was written.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::blocks::{BLOCK_BYTES, BlockDigests};
use super::scan::ScanFile;

const STORE: &str = "verified files";

/// Reads the files it knows in whole blocks and checks each against its digest. Other files it reads as they are.
#[derive(Debug)]
pub(super) struct VerifiedStore {
    inner: Arc<dyn ObjectStore>,
    files: HashMap<Path, Known>,
}

#[derive(Debug, Clone)]
struct Known {
    bytes: u64,
    blocks: BlockDigests,
}

/// Bytes are not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{path} is damaged between bytes {} and {}; restore it from a copy, it is not rebuilt by itself", at.start, at.end)]
struct Damage {
    path: Path,
    at: Range<u64>,
}

impl VerifiedStore {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, files: &[ScanFile]) -> Self {
        let known = |file: &ScanFile| {
            let blocks = file.blocks.clone()?;
            Some((file.path.clone(), Known { bytes: file.bytes, blocks }))
        };
        Self { inner, files: files.iter().filter_map(known).collect() }
    }
}

impl Known {
    /// The blocks around `range`.
    fn around(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.min(self.bytes).next_multiple_of(BLOCK_BYTES).min(self.bytes);
        range.start / BLOCK_BYTES * BLOCK_BYTES..end
    }

    fn check(&self, path: &Path, blocks: &Range<u64>, bytes: &Bytes) -> Result<()> {
        let damage = |at| Error::Generic { store: STORE, source: Box::new(Damage { path: path.clone(), at }) };
        if bytes.len() as u64 != blocks.end - blocks.start {
            return Err(damage(blocks.start + bytes.len() as u64..blocks.end));
        }
        match self.blocks.damaged(blocks.start / BLOCK_BYTES, bytes) {
            None => Ok(()),
            Some(block) => {
                let start = block * BLOCK_BYTES;
                Err(damage(start..(start + BLOCK_BYTES).min(self.bytes)))
            }
        }
    }

    fn range(&self, asked: Option<&GetRange>) -> Range<u64> {
        match asked {
            None => 0..self.bytes,
            Some(GetRange::Bounded(range)) => range.start..range.end.min(self.bytes),
            Some(GetRange::Offset(start)) => *start..self.bytes,
            Some(GetRange::Suffix(length)) => self.bytes.saturating_sub(*length)..self.bytes,
        }
    }
}

/// `range` of a piece of a file that begins at `start`.
fn part(piece: &Bytes, start: u64, range: &Range<u64>) -> Bytes {
    let within = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX).min(piece.len());
    piece.slice(within(range.start)..within(range.end))
}

/// Ranges of blocks, put together where they touch.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

impl fmt::Display for VerifiedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verified({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for VerifiedStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Some(known) = self.files.get(location).filter(|_| !options.head) else {
            return self.inner.get_opts(location, options).await;
        };
        let range = known.range(options.range.as_ref());
        let blocks = known.around(&range);
        if range.is_empty() || blocks.is_empty() {
            return self.inner.get_opts(location, options).await;
        }
        let options = GetOptions { range: Some(GetRange::Bounded(blocks.clone())), ..options };
        let found = self.inner.get_opts(location, options).await?;
        let (meta, attributes) = (found.meta.clone(), found.attributes.clone());
        let bytes = found.bytes().await?;
        known.check(location, &blocks, &bytes)?;
        let bytes = part(&bytes, blocks.start, &range);
        let payload = GetResultPayload::Stream(stream::once(async move { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let Some(known) = self.files.get(location) else {
            return self.inner.get_ranges(location, ranges).await;
        };
        let blocks = joined(ranges.iter().map(|range| known.around(range)).collect());
        let pieces = self.inner.get_ranges(location, &blocks).await?;
        for (blocks, piece) in blocks.iter().zip(&pieces) {
            known.check(location, blocks, piece)?;
        }
        let piece_of = |range: &Range<u64>| {
            let at = blocks.partition_point(|blocks| blocks.start <= range.start).saturating_sub(1);
            let (blocks, piece) = (blocks.get(at)?, pieces.get(at)?);
            Some(part(piece, blocks.start, range))
        };
        Ok(ranges.iter().map(|range| piece_of(range).unwrap_or_default()).collect())
    }

    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use object_store::ObjectStoreExt;

    use super::*;
    use crate::storage::Storage;

    /// A file of three and a half blocks, and the store that knows it.
    async fn stored() -> (Storage, Path, Vec<u8>, VerifiedStore) {
        let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
        let path = Path::from("dir/file");
        let bytes: Vec<u8> = (0..BLOCK_BYTES * 7 / 2).map(|n| (n * 17 % 253) as u8).collect();
        storage.create(&path, bytes.clone().into()).await.unwrap();
        let blocks = Some(BlockDigests::of(&bytes));
        let file = ScanFile { path: path.clone(), bytes: bytes.len() as u64, rows: 0, blocks };
        let store = VerifiedStore::new(storage.store(), &[file]);
        (storage, path, bytes, store)
    }

    fn ranges(len: u64) -> Vec<Range<u64>> {
        let b = BLOCK_BYTES;
        vec![0..1, 5..b, b - 1..b + 1, b..2 * b, 0..len, 3 * b + 7..len, len - 1..len, 10..20, 2 * b + 1..2 * b + 2]
    }

    #[tokio::test]
    async fn every_range_is_what_it_is_in_the_store() {
        let (_storage, path, bytes, store) = stored().await;
        let ranges = ranges(bytes.len() as u64);
        let expected: Vec<&[u8]> = ranges.iter().map(|r| &bytes[r.start as usize..r.end as usize]).collect();
        assert_eq!(store.get_ranges(&path, &ranges).await.unwrap(), expected);
        for (range, expected) in ranges.iter().zip(&expected) {
            assert_eq!(store.get_range(&path, range.clone()).await.unwrap(), expected, "{range:?}");
        }
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), bytes);
        let suffix = GetOptions { range: Some(GetRange::Suffix(9)), ..GetOptions::default() };
        let found = store.get_opts(&path, suffix).await.unwrap();
        assert_eq!(found.bytes().await.unwrap(), bytes[bytes.len() - 9..]);
    }

    #[tokio::test]
    async fn damage_is_found_by_whoever_reads_its_block_and_by_nobody_else() {
        let (storage, path, bytes, store) = stored().await;
        for at in [0, BLOCK_BYTES, bytes.len() as u64 - 1] {
            let mut bad = bytes.clone();
            bad[at as usize] ^= 0x80;
            storage.overwrite(&path, bad.into()).await.unwrap();
            for range in ranges(bytes.len() as u64) {
                let touched = range.start / BLOCK_BYTES..=(range.end - 1) / BLOCK_BYTES;
                let one = store.get_range(&path, range.clone()).await;
                let many = store.get_ranges(&path, std::slice::from_ref(&range)).await;
                let hit = touched.contains(&(at / BLOCK_BYTES));
                assert_eq!((one.is_err(), many.is_err()), (hit, hit), "byte {at}, range {range:?}");
                if let Err(error) = one {
                    assert!(format!("{error:?}").contains("dir/file"), "{error:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_short_or_missing_file_is_an_error() {
        let (storage, path, bytes, store) = stored().await;
        storage.overwrite(&path, Bytes::from(bytes[..bytes.len() - 1].to_vec())).await.unwrap();
        let end = bytes.len() as u64;
        assert!(store.get_range(&path, end - 5..end).await.is_err());
        assert!(store.get_ranges(&path, &[0..5, end - 5..end]).await.is_err());
        storage.store().delete(&path).await.unwrap();
        assert!(store.get_range(&path, 0..1).await.is_err());
    }
}
