//! Topics in memory: partitions of records and of offsets that hold none, that grow, are cut at either end, and are
//! created anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use viewledger::kafka::topics::TopicFacts;
use viewledger::kafka::{RawBatch, RawRecord};
use viewledger::position::{Offset, PartitionId, TopicIdentity};
use viewledger::runtime::Micros;

use crate::records::{Placed, Record};

/// What takes an offset.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    Record(Arc<Record>),
    /// A control record, or one of an aborted transaction: nobody sees it.
    Nothing,
}

/// One topic.
#[derive(Debug, Clone)]
pub struct Topic {
    identity: TopicIdentity,
    partitions: Vec<Log>,
}

#[derive(Debug, Clone, Default)]
struct Log {
    first: i64,
    entries: Vec<Entry>,
}

impl Log {
    fn end(&self) -> i64 {
        self.first + i64::try_from(self.entries.len()).unwrap()
    }
}

impl Topic {
    pub fn new(id: &str, partitions: usize) -> Self {
        let identity = TopicIdentity { cluster_id: "cluster".into(), topic_id: id.to_owned() };
        Self { identity, partitions: vec![Log::default(); partitions] }
    }

    pub fn identity(&self) -> &TopicIdentity {
        &self.identity
    }

    pub fn partitions(&self) -> usize {
        self.partitions.len()
    }

    pub fn add_partition(&mut self) {
        self.partitions.push(Log::default());
    }

    pub fn write(&mut self, partition: usize, entry: Entry) {
        let index = partition % self.partitions.len();
        self.partitions[index].entries.push(entry);
    }

    /// Forgets the oldest entries, as retention does.
    pub fn forget(&mut self, partition: usize, entries: usize) {
        let log = &mut self.partitions[partition];
        let gone = entries.min(log.entries.len());
        log.entries.drain(..gone);
        log.first += i64::try_from(gone).unwrap();
    }

    /// Loses the newest entries, as an unclean election does.
    pub fn truncate(&mut self, partition: usize, entries: usize) {
        let log = &mut self.partitions[partition];
        log.entries.truncate(log.entries.len().saturating_sub(entries));
    }

    pub fn end(&self, partition: PartitionId) -> Offset {
        let index = usize::try_from(partition.0).unwrap();
        Offset(self.partitions.get(index).map_or(0, Log::end))
    }

    /// What a look at the topic finds.
    pub fn facts(&self) -> TopicFacts {
        let ids = (0..).map(PartitionId);
        let ends = self.partitions.iter().map(|log| (Offset(log.first), Offset(log.end())));
        TopicFacts { identity: self.identity.clone(), partitions: ids.zip(ends).collect(), compacted: false }
    }

    /// The entries of one partition from `from` on, with their offsets.
    fn after(&self, partition: PartitionId, from: Offset) -> impl Iterator<Item = (Offset, &Entry)> {
        let log = &self.partitions[usize::try_from(partition.0).unwrap()];
        let skipped = usize::try_from(from.0 - log.first).unwrap();
        (from.0..).map(Offset).zip(log.entries.iter().skip(skipped))
    }
}

/// A micro-batch, and the same records for the truth.
#[derive(Debug)]
pub struct Fetched {
    pub raw: RawBatch,
    pub records: Vec<Placed>,
}

/// Reads at most `entries` from each partition of `next`, in turns as `turns` says, and moves `next`.
pub fn fetch(
    topic: &Topic,
    source: usize,
    next: &mut BTreeMap<PartitionId, Offset>,
    entries: usize,
    mut turns: impl FnMut(usize) -> usize,
    now: Micros,
) -> Option<Fetched> {
    let mut open: Vec<_> = next.iter().map(|(id, from)| (*id, topic.after(*id, *from).take(entries))).collect();
    let mut fetched = Fetched {
        raw: RawBatch { source, topic: Some(topic.identity.clone()), ..RawBatch::default() },
        records: Vec::new(),
    };
    while !open.is_empty() {
        let turn = turns(open.len());
        let (partition, entries) = &mut open[turn];
        let Some((offset, entry)) = entries.next() else {
            drop(open.swap_remove(turn));
            continue;
        };
        fetched.raw.positions.insert(*partition, offset.next());
        if let Entry::Record(record) = entry {
            let produced_at = now - 1_000;
            let from = fetched.raw.bytes.len();
            let payload = record.payload();
            fetched.raw.bytes.extend(payload.as_deref().unwrap_or_default());
            let payload = payload.map(|_| from..fetched.raw.bytes.len());
            let partition = *partition;
            fetched.raw.records.push(RawRecord { partition, offset, produced_at: Some(produced_at), payload });
            let record = Arc::clone(record);
            fetched.records.push(Placed { record, partition, offset, produced_at, ingested_at: now });
        }
    }
    next.extend(fetched.raw.positions.iter().map(|(partition, offset)| (*partition, *offset)));
    (!fetched.raw.positions.is_empty()).then_some(fetched)
}
