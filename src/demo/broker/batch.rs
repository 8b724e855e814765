//! The record batch as the log sees it: a 61-byte header and opaque bytes.
//!
//! Records are never decoded on the way in or out. The checksum of a batch covers what follows it, so the two
//! fields a broker assigns (base offset, leader epoch) can be rewritten without touching it.

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::records::{
    Compression, NO_SEQUENCE, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

use super::producers::Outcome;

/// Bytes of a batch before its first record.
pub(super) const HEADER_BYTES: usize = 61;
/// Bytes of a batch that its length field does not count: base offset and the field itself.
const PREFIX_BYTES: usize = 12;
/// Bytes that are rewritten on append: base offset, length, leader epoch.
pub(super) const REWRITTEN_BYTES: usize = 16;
/// The only batch format this broker stores; clients older than Kafka 0.11 are refused.
const MAGIC: i8 = 2;

const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// What the log needs to know of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) base_offset: i64,
    /// Length of the whole batch, header included.
    pub(super) bytes: usize,
    pub(super) leader_epoch: i32,
    pub(super) attributes: i16,
    pub(super) last_offset_delta: i32,
    pub(super) max_timestamp: i64,
    pub(super) producer_id: i64,
    pub(super) producer_epoch: i16,
    pub(super) base_sequence: i32,
    pub(super) records: i32,
}

impl BatchHeader {
    /// Reads a header; `None` when the bytes are too few or cannot be one.
    pub(super) fn parse(mut from: &[u8]) -> Option<Self> {
        if from.len() < HEADER_BYTES {
            return None;
        }
        let base_offset = from.get_i64();
        let bytes = usize::try_from(from.get_i32()).ok()?.checked_add(PREFIX_BYTES)?;
        let leader_epoch = from.get_i32();
        let magic = from.get_i8();
        let _crc = from.get_u32();
        let header = Self {
            base_offset,
            bytes,
            leader_epoch,
            attributes: from.get_i16(),
            last_offset_delta: from.get_i32(),
            max_timestamp: {
                let _first_timestamp = from.get_i64();
                from.get_i64()
            },
            producer_id: from.get_i64(),
            producer_epoch: from.get_i16(),
            base_sequence: from.get_i32(),
            records: from.get_i32(),
        };
        (magic == MAGIC && bytes >= HEADER_BYTES && base_offset >= 0 && header.last_offset_delta >= 0)
            .then_some(header)
    }

    /// First offset after this batch.
    pub(super) fn next_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta)).saturating_add(1)
    }

    pub(super) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub(super) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Sequence number of the last record; numbers wrap to 0 after `i32::MAX`.
    pub(super) fn last_sequence(&self) -> i32 {
        let last = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        i32::try_from(last % (i64::from(i32::MAX) + 1)).unwrap_or(0)
    }
}

/// The leading bytes of a batch with the fields that the broker assigns.
pub(super) fn rewritten_prefix(header: &BatchHeader) -> [u8; REWRITTEN_BYTES] {
    let mut prefix = [0; REWRITTEN_BYTES];
    let length = i32::try_from(header.bytes.saturating_sub(PREFIX_BYTES)).unwrap_or(i32::MAX);
    let fields = header.base_offset.to_be_bytes().into_iter().chain(length.to_be_bytes());
    for (byte, value) in prefix.iter_mut().zip(fields.chain(header.leader_epoch.to_be_bytes())) {
        *byte = value;
    }
    prefix
}

/// Where a transaction ends in one partition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marker {
    pub(super) producer_id: i64,
    pub(super) producer_epoch: i16,
    pub(super) outcome: Outcome,
    /// Milliseconds since 1970.
    pub(super) timestamp: i64,
}

impl Marker {
    /// The control batch of this marker; its base offset is assigned by the append.
    pub(super) fn encode(&self) -> Option<Bytes> {
        let kind: i16 = match self.outcome {
            Outcome::Abort => 0,
            Outcome::Commit => 1,
        };
        let key = [0i16.to_be_bytes(), kind.to_be_bytes()].concat();
        // Version 0, coordinator epoch 0: there is only ever one coordinator.
        let value = [0i16.to_be_bytes().as_slice(), 0i32.to_be_bytes().as_slice()].concat();
        let record = Record {
            transactional: true,
            control: true,
            delete_horizon: false,
            partition_leader_epoch: 0,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            timestamp_type: TimestampType::Creation,
            offset: 0,
            sequence: NO_SEQUENCE,
            timestamp: self.timestamp,
            key: Some(key.into()),
            value: Some(value.into()),
            headers: Default::default(),
        };
        let mut batch = BytesMut::new();
        let options = RecordEncodeOptions { version: MAGIC, compression: Compression::None };
        RecordBatchEncoder::encode(&mut batch, [&record], &options).ok()?;
        Some(batch.freeze())
    }
}

/// How a stored control batch ended its transaction; `None` for control batches of another kind.
pub(super) fn marker_outcome(mut batch: Bytes) -> Option<Outcome> {
    let decoded = RecordBatchDecoder::decode(&mut batch).ok()?;
    let mut key = decoded.records.first()?.key.clone()?;
    let _version = key.try_get_i16().ok()?;
    match key.try_get_i16().ok()? {
        0 => Some(Outcome::Abort),
        1 => Some(Outcome::Commit),
        _ => None,
    }
}

/// Offset and timestamp of the first record of a batch that is at or after `timestamp`, from `start` on.
///
/// This is the one place that decompresses: a look-up by time must name a record, not a batch.
pub(super) fn first_at_or_after(mut batch: Bytes, timestamp: i64, start: i64) -> Option<(i64, i64)> {
    let decoded = RecordBatchDecoder::decode(&mut batch).ok()?;
    decoded
        .records
        .iter()
        .find(|record| record.timestamp >= timestamp && record.offset >= start)
        .map(|record| (record.offset, record.timestamp))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_survives_encoding_with_its_offset_rewritten() {
        for outcome in [Outcome::Abort, Outcome::Commit] {
            let marker = Marker { producer_id: 7, producer_epoch: 3, outcome, timestamp: 1_000 };
            let encoded = marker.encode().unwrap();
            let mut header = BatchHeader::parse(&encoded).unwrap();
            assert!(header.is_control() && header.is_transactional());
            assert_eq!((header.producer_id, header.producer_epoch, header.records), (7, 3, 1));
            assert_eq!(header.bytes, encoded.len());

            header.base_offset = 41;
            header.leader_epoch = 5;
            let mut stored = BytesMut::from(rewritten_prefix(&header).as_slice());
            stored.extend_from_slice(&encoded[REWRITTEN_BYTES..]);
            assert_eq!(BatchHeader::parse(&stored).unwrap(), header);
            // The decoder checks the checksum, so this also shows that the rewrite left it valid.
            assert_eq!(marker_outcome(stored.freeze()), Some(outcome));
        }
    }

    #[test]
    fn sequences_wrap_after_the_largest_number() {
        let marker =
            Marker { producer_id: 1, producer_epoch: 0, outcome: Outcome::Commit, timestamp: 0 }.encode().unwrap();
        let header = BatchHeader::parse(&marker).unwrap();
        let wrapped = BatchHeader { base_sequence: i32::MAX, last_offset_delta: 2, ..header };
        assert_eq!(wrapped.last_sequence(), 1);
        assert_eq!(BatchHeader { base_sequence: 5, last_offset_delta: 2, ..header }.last_sequence(), 7);
    }

    #[test]
    fn bytes_that_are_no_batch_are_not_read_as_one() {
        assert_eq!(BatchHeader::parse(&[0; HEADER_BYTES - 1]), None);
        assert_eq!(BatchHeader::parse(&[0; HEADER_BYTES]), None, "magic 0");
        assert_eq!(BatchHeader::parse(&[0xff; HEADER_BYTES]), None);
    }
}
