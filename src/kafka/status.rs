//! What intake knows about itself: shared with `/readyz`, `/metrics` and `system.partitions`.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::position::{Offset, PartitionId};

/// One partition as intake sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionStatus {
    /// The next offset to read.
    pub position: Offset,
    /// Where the readable part of the log ended when it was last looked at.
    pub end: Option<Offset>,
    /// None while it is read; otherwise why it is not, and what to do.
    pub halted: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By stream name.
    partitions: BTreeMap<String, BTreeMap<PartitionId, PartitionStatus>>,
    /// By stream name: why a whole stream is not read.
    streams: BTreeMap<String, String>,
    unreachable: BTreeMap<Witness, String>,
}

/// Who says whether brokers can be reached. Each takes back only what it said itself: a connection may stand
/// while nothing is answered on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Witness {
    /// The client's connections.
    Connections,
    /// Answers to questions about topics.
    Answers,
}

/// The shared state; cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct IntakeStatus(Arc<RwLock<Inner>>);

impl IntakeStatus {
    /// By stream; a partition is halted too when its stream or all brokers are.
    pub fn partitions(&self) -> BTreeMap<String, BTreeMap<PartitionId, PartitionStatus>> {
        let inner = self.0.read();
        let mut known = inner.partitions.clone();
        for (stream, partitions) in &mut known {
            let Some(reason) = inner.streams.get(stream).or_else(|| inner.unreachable.values().next()) else {
                continue;
            };
            for status in partitions.values_mut() {
                status.halted.get_or_insert_with(|| reason.clone());
            }
        }
        known
    }

    /// Everything that keeps intake from being complete, one sentence each.
    pub fn complaints(&self) -> Vec<String> {
        let inner = self.0.read();
        let mut complaints: Vec<String> = inner.unreachable.values().take(1).cloned().collect();
        complaints.extend(inner.streams.iter().map(|(stream, reason)| format!("stream {stream}: {reason}")));
        for (stream, partitions) in &inner.partitions {
            let halted = partitions.iter().filter_map(|(id, status)| Some((id, status.halted.as_ref()?)));
            complaints.extend(halted.map(|(id, reason)| format!("stream {stream} partition {id}: {reason}")));
        }
        complaints
    }

    pub(super) fn reading(&self, stream: &str, partition: PartitionId, position: Offset, end: Offset) {
        let status = PartitionStatus { position, end: Some(end), halted: None };
        self.0.write().partitions.entry(stream.to_owned()).or_default().insert(partition, status);
    }

    pub(super) fn moved(&self, stream: &str, partition: PartitionId, position: Offset) {
        self.update(stream, partition, |status| status.position = position);
    }

    pub(super) fn end(&self, stream: &str, partition: PartitionId, end: Offset) {
        self.update(stream, partition, |status| status.end = Some(end));
    }

    pub(super) fn halt(&self, stream: &str, partition: PartitionId, position: Offset, reason: String) {
        let mut inner = self.0.write();
        let partitions = inner.partitions.entry(stream.to_owned()).or_default();
        let status = partitions.entry(partition).or_insert(PartitionStatus { position, end: None, halted: None });
        if status.halted.as_ref() != Some(&reason) {
            tracing::error!(stream, %partition, %position, %reason, "partition is not read");
            status.halted = Some(reason);
        }
    }

    /// Sets or clears what keeps a whole stream from being read.
    pub(super) fn stream(&self, stream: &str, reason: Option<String>) {
        let mut inner = self.0.write();
        match reason {
            None => drop(inner.streams.remove(stream)),
            Some(reason) => {
                if inner.streams.get(stream) != Some(&reason) {
                    tracing::warn!(stream, %reason, "stream is not read");
                }
                inner.streams.insert(stream.to_owned(), reason);
            }
        }
    }

    /// Sets or clears what `witness` says about why no broker can be reached.
    pub(super) fn unreachable(&self, witness: Witness, reason: Option<String>) {
        let mut inner = self.0.write();
        let before = !inner.unreachable.is_empty();
        match reason {
            Some(reason) => {
                if !before {
                    tracing::warn!(%reason, "kafka cannot be reached; reads go on");
                }
                inner.unreachable.insert(witness, reason);
            }
            None => drop(inner.unreachable.remove(&witness)),
        }
        if before && inner.unreachable.is_empty() {
            tracing::info!("kafka is reachable again");
        }
    }

    fn update(&self, stream: &str, partition: PartitionId, change: impl FnOnce(&mut PartitionStatus)) {
        let mut inner = self.0.write();
        if let Some(status) = inner.partitions.get_mut(stream).and_then(|p| p.get_mut(&partition)) {
            change(status);
        }
    }
}
