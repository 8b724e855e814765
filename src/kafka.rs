//! Records in: one poll loop reads every partition from a given frontier, a decode stage turns JSON into Arrow,
//! and a [`Sink`] takes the micro-batches. Only `kafka/` (and the demo's broker and load) names a Kafka client.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::BooleanArray;
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::record_batch::RecordBatch;

use crate::catalog::stream::{CompiledCheck, Stream};
use crate::position::{Offset, PartitionId, StreamFrontier, TopicIdentity};
use crate::runtime::Micros;

pub mod columns;
pub mod consumer;
pub mod decode;
mod instant;
pub mod status;
pub mod topics;
mod watch;

/// One stream to read, and where to go on.
#[derive(Debug, Clone)]
pub struct Source {
    pub stream: Arc<Stream>,
    pub checks: Vec<CompiledCheck>,
    pub frontier: StreamFrontier,
}

/// Records of one stream between two positions of its partitions, as they came, in offset order per partition.
#[derive(Debug, Default)]
pub struct RawBatch {
    /// Which of the sources.
    pub source: usize,
    /// The topic the records were read from.
    pub topic: Option<TopicIdentity>,
    /// All payloads one after the other.
    pub bytes: Vec<u8>,
    pub records: Vec<RawRecord>,
    /// Per partition that moved, the next offset to read. It can move without a record: control records and
    /// aborted transactions take offsets too.
    pub positions: BTreeMap<PartitionId, Offset>,
}

/// One record of a [`RawBatch`].
#[derive(Debug, Clone)]
pub struct RawRecord {
    pub partition: PartitionId,
    pub offset: Offset,
    /// The record's own time stamp, set by producer or broker.
    pub produced_at: Option<Micros>,
    /// Range of the payload in `bytes`; None is a record without a value.
    pub payload: Option<std::ops::Range<usize>>,
}

impl RawBatch {
    /// Empties it and keeps its room for another batch: large buffers that come and go cost the system more than
    /// filling them costs us.
    pub fn clear(&mut self) {
        let Self { source: _, topic, bytes, records, positions } = self;
        *topic = None;
        bytes.clear();
        records.clear();
        positions.clear();
    }

    pub fn payload(&self, record: &RawRecord) -> Option<&[u8]> {
        record.payload.clone().and_then(|range| self.bytes.get(range))
    }
}

/// A [`RawBatch`] after decoding: every record is either sound or, with a reason, in `rejects`.
#[derive(Debug)]
pub struct Decoded {
    pub source: usize,
    pub topic: Option<TopicIdentity>,
    /// Records with the right types, with [`Stream::record_schema`], in the order of arrival.
    pub records: RecordBatch,
    /// Which of `records` are sound; None means all. The others fail a check and are in `rejects` too: they are taken
    /// out together with the duplicates, for that copies every column.
    pub sound: Option<BooleanArray>,
    /// With [`crate::catalog::stream::quarantine_schema`], in the order of arrival.
    pub rejects: RecordBatch,
    pub positions: BTreeMap<PartitionId, Offset>,
    /// Bytes of all payloads.
    pub payload_bytes: usize,
}

impl Decoded {
    /// The records that keep every check.
    pub fn sound_records(&self) -> RecordBatch {
        match &self.sound {
            None => self.records.clone(),
            Some(sound) => filter_record_batch(&self.records, sound).expect("the mask has one value a record"),
        }
    }
}

/// Takes micro-batches in order. Blocking inside is how a full pipeline slows the poll loop down.
pub trait Sink: Send {
    fn accept(&mut self, batch: Decoded) -> Result<(), SinkError>;
    /// Called when nothing arrived for a while, so that time-based work is done.
    fn idle(&mut self) -> Result<(), SinkError>;
    /// Called once, when everything that was read has come and nothing more will.
    fn end(&mut self) -> Result<(), SinkError>;
}

/// The sink cannot go on; the pipeline stops and the process says why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);
