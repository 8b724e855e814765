//! Where a reader stands in Kafka: offsets, partitions, and the frontier that cuts batch from stream.
//!
//! A [`Frontier`] is a vector: for every stream the identity of its topic (cluster id and topic id, never
//! the name alone) and, per partition, the next offset to read. Everything below it is inside, everything at
//! or above it is outside. Two processes that agree on a frontier agree on exactly which records were counted.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Position of one record in a partition; the first is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl Offset {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a partition within its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub i32);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of an archive commit of one stream; the empty archive stands at epoch 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of one atomically published set of batch views; 0 is the empty generation before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GenerationId(pub u64);

impl GenerationId {
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which topic of which cluster. A topic that was deleted and created again has another id, so its offsets
/// are never mistaken for the old ones (apache/iceberg#16360).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TopicIdentity {
    pub cluster_id: String,
    pub topic_id: String,
}

impl fmt::Display for TopicIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cluster {} topic id {}", self.cluster_id, self.topic_id)
    }
}

/// The part of a frontier that belongs to one stream: per partition the next offset to read.
/// A partition that is absent stands at its beginning, offset 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StreamFrontier {
    /// None until the stream was first connected to its topic.
    pub topic: Option<TopicIdentity>,
    pub next: BTreeMap<PartitionId, Offset>,
}

impl StreamFrontier {
    pub fn position(&self, partition: PartitionId) -> Offset {
        self.next.get(&partition).copied().unwrap_or_default()
    }

    /// Moves one partition forward.
    ///
    /// # Panics
    /// When `to` lies below the current position: a frontier never goes back.
    pub fn advance(&mut self, partition: PartitionId, to: Offset) {
        let at = self.next.entry(partition).or_default();
        assert!(*at <= to, "frontier of partition {partition} would go back from {at} to {to}");
        *at = to;
    }

    /// True when every partition of `earlier` stands at or below its position here, in the same topic.
    pub fn covers(&self, earlier: &StreamFrontier) -> bool {
        let same_topic = earlier.topic.is_none() || earlier.topic == self.topic;
        same_topic && earlier.next.iter().all(|(partition, offset)| self.position(*partition) >= *offset)
    }
}

/// Names of streams to their part of the frontier: one vector for all views of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Frontier(pub BTreeMap<String, StreamFrontier>);

#[cfg(test)]
mod tests {
    use super::*;

    fn frontier(topic: &str, next: &[(i32, i64)]) -> StreamFrontier {
        StreamFrontier {
            topic: Some(TopicIdentity { cluster_id: "c".into(), topic_id: topic.into() }),
            next: next.iter().map(|(p, o)| (PartitionId(*p), Offset(*o))).collect(),
        }
    }

    #[test]
    fn covers_compares_every_partition_of_the_same_topic() {
        assert!(frontier("t", &[(0, 5), (1, 7)]).covers(&frontier("t", &[(0, 5)])));
        assert!(!frontier("t", &[(0, 5)]).covers(&frontier("t", &[(0, 5), (1, 1)])));
        assert!(!frontier("t", &[(0, 5)]).covers(&frontier("u", &[(0, 1)])));
        assert!(frontier("t", &[]).covers(&StreamFrontier::default()));
    }

    #[test]
    #[should_panic(expected = "would go back from 5 to 4")]
    fn advance_refuses_to_go_back() {
        frontier("t", &[(0, 5)]).advance(PartitionId(0), Offset(4));
    }
}
