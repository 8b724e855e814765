//! One partition: an append-only file of record batches and what is known about them.
//!
//! The file holds batches back to back, exactly as they are sent to readers. Everything else (the sparse index,
//! producer state, leader epochs) is rebuilt from batch headers on open; a batch that was cut off by a killed
//! process is dropped, as no producer was ever told that it was stored. Two facts that no batch carries, the log
//! start and the leader epoch, are in a small file beside it.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};

use super::batch::{self, BatchHeader, HEADER_BYTES, Marker, REWRITTEN_BYTES};
use super::disk::{self, DiskError};
use super::producers::{Aborted, Producers, Verdict};
use super::scan::Scan;

/// Bytes of log between two entries of the index: what a look-up may have to walk.
const INDEX_INTERVAL: u64 = 16 * 1024;

/// A partition's log. Callers hold it behind a mutex; appends are ordered by it.
#[derive(Debug)]
pub(super) struct PartitionLog {
    path: PathBuf,
    file: Arc<File>,
    end_position: u64,
    end_offset: i64,
    facts: Facts,
    /// Ascending by offset and by position.
    index: Vec<IndexEntry>,
    max_timestamp: i64,
    /// (epoch, first offset in it), ascending.
    epochs: Vec<(i32, i64)>,
    producers: Producers,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Facts {
    start_offset: i64,
    leader_epoch: i32,
}

#[derive(Debug, Clone, Copy)]
struct IndexEntry {
    offset: i64,
    position: u64,
    /// Greatest timestamp of all batches before this one.
    max_timestamp_before: i64,
}

/// Where a partition begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) start: i64,
    /// One past the last stored offset: with one replica, the high watermark.
    pub(super) end: i64,
    /// Readers of committed data stop here.
    pub(super) last_stable: i64,
    pub(super) leader_epoch: i32,
}

/// Stored bytes to be read without holding the log: whole batches from the one that holds the asked offset.
#[derive(Debug)]
pub(super) struct Section {
    file: Arc<File>,
    position: u64,
    /// Bytes up to the offset at which the reader must stop.
    available: u64,
    first_batch_bytes: u64,
}

/// A batch that is now in the log, or was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Appended {
    pub(super) base_offset: i64,
    pub(super) start_offset: i64,
}

impl PartitionLog {
    /// Opens or creates the log at `path`, reading every batch header.
    pub(super) fn open(path: PathBuf) -> Result<Self, DiskError> {
        let facts = disk::read(&facts_path(&path))?.unwrap_or_default();
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(DiskError::io("open", &path))?;
        let mut log = Self {
            path,
            file: Arc::new(file),
            end_position: 0,
            end_offset: 0,
            facts,
            index: Vec::new(),
            max_timestamp: -1,
            epochs: Vec::new(),
            producers: Producers::default(),
        };
        log.rebuild()?;
        Ok(log)
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            start: self.facts.start_offset,
            end: self.end_offset,
            last_stable: self.producers.first_open().unwrap_or(self.end_offset),
            leader_epoch: self.facts.leader_epoch,
        }
    }

    /// Appends one batch of a client. A retry of a stored batch is answered with its first base offset.
    pub(super) fn append(&mut self, records: &Bytes) -> Result<Appended, AppendError> {
        let header = BatchHeader::parse(records).ok_or(AppendError::Refused(ResponseError::CorruptMessage))?;
        // One batch a request, as Kafka demands since this format: sequence checks stay all or nothing.
        if header.bytes != records.len() || header.records != header.last_offset_delta.saturating_add(1) {
            return Err(AppendError::Refused(ResponseError::InvalidRecord));
        }
        if header.is_control() || (header.producer_id >= 0 && header.base_sequence < 0) {
            return Err(AppendError::Refused(ResponseError::InvalidRecord));
        }
        let start_offset = self.facts.start_offset;
        match self.producers.judge(&header).map_err(AppendError::Refused)? {
            Verdict::Duplicate(base_offset) => Ok(Appended { base_offset, start_offset }),
            Verdict::Append => {
                let stored = self.write(header, records).map_err(AppendError::Disk)?;
                self.producers.appended(&stored);
                Ok(Appended { base_offset: stored.base_offset, start_offset })
            }
        }
    }

    /// Ends the open transaction of the marker's producer; nothing happens when it has none here.
    pub(super) fn end_transaction(&mut self, marker: &Marker) -> Result<(), DiskError> {
        if !self.producers.has_open_transaction(marker.producer_id) {
            return Ok(());
        }
        let batch = marker.encode().expect("a control batch of one small record can be encoded");
        let header = BatchHeader::parse(&batch).expect("the encoder writes a header this module reads");
        let stored = self.write(header, &batch)?;
        self.producers.ended(&stored, marker.outcome, stored.base_offset);
        Ok(())
    }

    /// Finds the stored batches from the one that holds `offset` up to `stop`; `None` when there are none.
    /// `offset` must be within the bounds.
    pub(super) fn section(&self, offset: i64, stop: i64) -> Result<Option<Section>, DiskError> {
        if offset >= stop {
            return Ok(None);
        }
        let Some((position, first)) = self.find(offset)? else {
            return Ok(None);
        };
        let stop_position = match stop >= self.end_offset {
            true => self.end_position,
            false => self.find(stop)?.map_or(self.end_position, |(position, _)| position),
        };
        Ok(Some(Section {
            file: Arc::clone(&self.file),
            position,
            available: stop_position.saturating_sub(position),
            first_batch_bytes: first.bytes as u64,
        }))
    }

    /// Aborted transactions that a reader of `[from, to)` must filter out.
    pub(super) fn aborted_between(&self, from: i64, to: i64) -> Vec<Aborted> {
        self.producers.aborted_between(from, to)
    }

    /// First offset, with its timestamp, of a record at or after `timestamp` (milliseconds).
    pub(super) fn offset_at(&self, timestamp: i64) -> Result<Option<(i64, i64)>, DiskError> {
        if self.max_timestamp < timestamp {
            return Ok(None);
        }
        let later = self.index.partition_point(|entry| entry.max_timestamp_before < timestamp);
        let mut position = later.checked_sub(1).and_then(|n| self.index.get(n)).map_or(0, |entry| entry.position);
        while position < self.end_position {
            let header = self.header_at(position)?;
            if header.max_timestamp >= timestamp && header.next_offset() > self.facts.start_offset {
                let mut bytes = vec![0; header.bytes];
                self.file.read_exact_at(&mut bytes, position).map_err(DiskError::io("read", &self.path))?;
                let found = batch::first_at_or_after(bytes.into(), timestamp, self.facts.start_offset);
                if found.is_some() {
                    return Ok(found);
                }
            }
            position += header.bytes as u64;
        }
        Ok(None)
    }

    /// Greatest timestamp of any batch (milliseconds); -1 when there is none.
    pub(super) fn max_timestamp(&self) -> i64 {
        self.max_timestamp
    }

    /// Makes every offset below `offset` unreadable; returns the new log start. Never moves backwards.
    pub(super) fn delete_below(&mut self, offset: i64) -> Result<i64, DiskError> {
        if offset > self.facts.start_offset {
            let facts = Facts { start_offset: offset, ..self.facts };
            disk::write(&facts_path(&self.path), &facts)?;
            self.facts = facts;
        }
        Ok(self.facts.start_offset)
    }

    /// Drops the batch that holds `offset` and everything after it, and begins a new leader epoch: what readers
    /// see after an unclean election. Returns the new end.
    pub(super) fn lose_from(&mut self, offset: i64) -> Result<i64, DiskError> {
        let position = match offset < self.end_offset {
            true => self.find(offset)?.map_or(self.end_position, |(position, _)| position),
            false => self.end_position,
        };
        let facts = Facts { leader_epoch: self.facts.leader_epoch.saturating_add(1), ..self.facts };
        disk::write(&facts_path(&self.path), &facts)?;
        self.file.set_len(position).map_err(DiskError::io("truncate", &self.path))?;
        self.facts = facts;
        self.rebuild()?;
        Ok(self.end_offset)
    }

    /// The last offset of the newest epoch up to `epoch`, as (that epoch, one past its last offset).
    pub(super) fn epoch_end(&self, epoch: i32) -> Option<(i32, i64)> {
        let after = self.epochs.partition_point(|(known, _)| *known <= epoch);
        let (found, _) = after.checked_sub(1).and_then(|n| self.epochs.get(n))?;
        let end = self.epochs.get(after).map_or(self.end_offset, |(_, start)| *start);
        Some((*found, end))
    }

    fn write(&mut self, client: BatchHeader, batch: &Bytes) -> Result<BatchHeader, DiskError> {
        let stored = BatchHeader { base_offset: self.end_offset, leader_epoch: self.facts.leader_epoch, ..client };
        let prefix = batch::rewritten_prefix(&stored);
        let body = batch.get(REWRITTEN_BYTES..).unwrap_or_default();
        if let Err(error) = write_all(&self.file, &prefix, body) {
            // Half a batch at the end would stop every later reader: take it back before anyone appends.
            let _ = self.file.set_len(self.end_position);
            return Err(DiskError::io("append to", &self.path)(error));
        }
        self.note(&stored, self.end_position);
        Ok(stored)
    }

    /// Takes a batch that lies at `position` into the index and moves the end behind it.
    fn note(&mut self, stored: &BatchHeader, position: u64) {
        let due = self.index.last().is_none_or(|last| position - last.position >= INDEX_INTERVAL);
        if due {
            self.index.push(IndexEntry {
                offset: stored.base_offset,
                position,
                max_timestamp_before: self.max_timestamp,
            });
        }
        if self.epochs.last().is_none_or(|(epoch, _)| *epoch < stored.leader_epoch) {
            self.epochs.push((stored.leader_epoch, stored.base_offset));
        }
        self.max_timestamp = self.max_timestamp.max(stored.max_timestamp);
        self.end_offset = stored.next_offset();
        self.end_position = position + stored.bytes as u64;
    }

    fn rebuild(&mut self) -> Result<(), DiskError> {
        self.index.clear();
        self.epochs.clear();
        self.producers = Producers::default();
        (self.end_position, self.end_offset, self.max_timestamp) = (0, 0, -1);
        let file = Arc::clone(&self.file);
        let mut scan = Scan::new(&file).map_err(DiskError::io("read", &self.path))?;
        while let Some((position, header)) = scan.next().map_err(DiskError::io("read", &self.path))? {
            if header.base_offset < self.end_offset {
                break;
            }
            self.note(&header, position);
            if header.is_control() {
                let mut batch = vec![0; header.bytes];
                file.read_exact_at(&mut batch, position).map_err(DiskError::io("read", &self.path))?;
                if let Some(outcome) = batch::marker_outcome(batch.into()) {
                    self.producers.ended(&header, outcome, header.base_offset);
                }
            } else {
                self.producers.appended(&header);
            }
        }
        let length = file.metadata().map_err(DiskError::io("read", &self.path))?.len();
        if length > self.end_position {
            let lost = length - self.end_position;
            tracing::warn!(path = %self.path.display(), bytes = lost, "dropping an incomplete batch at the end");
            file.set_len(self.end_position).map_err(DiskError::io("truncate", &self.path))?;
        }
        // A log that lost everything below its start goes on from there, as offsets are never given twice.
        self.end_offset = self.end_offset.max(self.facts.start_offset);
        if self.epochs.last().is_none_or(|(epoch, _)| *epoch < self.facts.leader_epoch) {
            self.epochs.push((self.facts.leader_epoch, self.end_offset));
        }
        Ok(())
    }

    /// Position and header of the batch that holds `offset`, or of the first after it.
    fn find(&self, offset: i64) -> Result<Option<(u64, BatchHeader)>, DiskError> {
        let after = self.index.partition_point(|entry| entry.offset <= offset);
        let mut position = after.checked_sub(1).and_then(|n| self.index.get(n)).map_or(0, |entry| entry.position);
        while position < self.end_position {
            let header = self.header_at(position)?;
            if header.next_offset() > offset {
                return Ok(Some((position, header)));
            }
            position += header.bytes as u64;
        }
        Ok(None)
    }

    fn header_at(&self, position: u64) -> Result<BatchHeader, DiskError> {
        let mut bytes = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut bytes, position).map_err(DiskError::io("read", &self.path))?;
        BatchHeader::parse(&bytes)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no batch where the index says one is"))
            .map_err(DiskError::io("read", &self.path))
    }
}

impl Section {
    /// Bytes that a read of at most `bytes_max` would return.
    pub(super) fn bytes(&self, bytes_max: u64) -> u64 {
        self.available.min(bytes_max)
    }

    pub(super) fn first_batch_bytes(&self) -> u64 {
        self.first_batch_bytes
    }

    /// Reads whole batches, at most `bytes_max` bytes of them. The first batch is read even when it is larger:
    /// a reader with too small a limit must still get on. Returns the offset after the last batch too.
    pub(super) fn read(&self, bytes_max: u64) -> io::Result<(Bytes, i64)> {
        let wanted = self.bytes(bytes_max.max(self.first_batch_bytes));
        let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, self.position)?;
        let (whole, next_offset) = whole_batches(&bytes);
        bytes.truncate(whole);
        Ok((bytes.into(), next_offset))
    }
}

/// Why a batch was not appended.
#[derive(Debug)]
pub(super) enum AppendError {
    Refused(ResponseError),
    Disk(DiskError),
}

/// Length of the whole batches at the front of `bytes`, and the offset after them.
fn whole_batches(bytes: &[u8]) -> (usize, i64) {
    let (mut end, mut next_offset) = (0, 0);
    while let Some(header) = bytes.get(end..).and_then(BatchHeader::parse) {
        let next = end + header.bytes;
        if next > bytes.len() {
            break;
        }
        (end, next_offset) = (next, header.next_offset());
    }
    (end, next_offset)
}

fn write_all(mut file: &File, prefix: &[u8], body: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(prefix), IoSlice::new(body)];
    let mut left: &mut [IoSlice<'_>] = &mut slices;
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn facts_path(log: &Path) -> PathBuf {
    log.with_extension("json")
}
