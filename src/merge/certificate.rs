//! The completeness certificate: what a snapshot holds, how far Kafka reaches, and what is missing between them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::snapshot::Snapshot;
use crate::batch::Generation;
use crate::batch::shelf::instant;
use crate::kafka::status::{IntakeStatus, PartitionStatus};
use crate::position::{Epoch, GenerationId, Offset, PartitionId, StreamFrontier};

/// What one snapshot is made of and lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Certificate {
    pub generation: GenerationId,
    /// When the generation was made.
    pub made_at: String,
    /// True when it was chosen by `viewledger.as_of`: then nothing after its frontier is read.
    pub as_of: bool,
    /// True when every record that Kafka is known to hold is counted.
    pub complete: bool,
    /// What is missing, one sentence each; empty when complete.
    pub missing: Vec<String>,
    pub streams: BTreeMap<String, StreamCertificate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamCertificate {
    /// Per partition, where the batch views end: everything below is in them.
    pub frontier: BTreeMap<PartitionId, Offset>,
    /// Per partition, where the delta ends: everything below is counted.
    pub end: BTreeMap<PartitionId, Offset>,
    pub archive_version: u64,
    pub archive_epoch: Epoch,
    /// Per partition, records in Kafka that are not counted; null where it is not known how far it reaches.
    pub lag: BTreeMap<PartitionId, Option<i64>>,
    pub missing: Vec<String>,
}

impl Certificate {
    pub fn of(snapshot: &Snapshot, as_of: Option<&Generation>, status: &IntakeStatus) -> Self {
        let generation = as_of.unwrap_or(&snapshot.generation);
        let known = status.partitions();
        let streams: BTreeMap<String, StreamCertificate> = snapshot
            .names
            .streams
            .keys()
            .filter_map(|name| {
                let stream = snapshot.streams.get(name)?;
                let frontier = generation.frontier.0.get(name).cloned().unwrap_or_default();
                let end = if as_of.is_some() { &frontier } else { stream.end.as_ref() };
                let (lag, mut missing) = missing(end, &stream.end, known.get(name));
                if !stream.whole {
                    missing.push("what came since the generation is being computed".to_owned());
                }
                let certificate = StreamCertificate {
                    end: end.next.clone(),
                    frontier: frontier.next,
                    archive_version: stream.archive.version,
                    archive_epoch: stream.archive.epoch,
                    lag,
                    missing,
                };
                Some((name.clone(), certificate))
            })
            .collect();
        let missing: Vec<String> = streams
            .iter()
            .flat_map(|(name, stream)| stream.missing.iter().map(move |what| format!("stream {name}: {what}")))
            .collect();
        Self {
            generation: generation.id,
            made_at: instant(generation.created_at),
            as_of: as_of.is_some(),
            complete: missing.is_empty(),
            missing,
            streams,
        }
    }

    pub fn json(&self) -> String {
        json(self)
    }
}

impl StreamCertificate {
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("numbers, texts and maps with such keys can be written as JSON")
}

type Lag = BTreeMap<PartitionId, Option<i64>>;

/// Per partition the distance from `end`, and sentences on what is not counted. A partition reaches as far as Kafka was
/// last heard to, and at least to where it was `read`.
fn missing(
    end: &StreamFrontier,
    read: &StreamFrontier,
    known: Option<&BTreeMap<PartitionId, PartitionStatus>>,
) -> (Lag, Vec<String>) {
    let Some(known) = known.filter(|known| !known.is_empty()) else {
        return (Lag::new(), vec!["its topic was not read yet".to_owned()]);
    };
    let mut lag = Lag::new();
    let mut sentences = Vec::new();
    for (id, status) in known {
        let behind = status.end.map(|heard| (heard.max(read.position(*id)).0 - end.position(*id).0).max(0));
        lag.insert(*id, behind);
        if let Some(reason) = &status.halted {
            sentences.push(format!("partition {id} is not read: {reason}"));
        }
        match behind {
            None => sentences.push(format!("partition {id}: how far it reaches is not known yet")),
            Some(0) => {}
            Some(records) => sentences.push(format!("partition {id}: {records} offsets are not counted")),
        }
    }
    (lag, sentences)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(end: Option<i64>, halted: Option<&str>) -> PartitionStatus {
        PartitionStatus { position: Offset(0), end: end.map(Offset), halted: halted.map(str::to_owned) }
    }

    #[test]
    fn what_is_missing_is_said_for_each_partition() {
        let mut end = StreamFrontier::default();
        end.advance(PartitionId(0), Offset(10));
        end.advance(PartitionId(1), Offset(7));
        let known = [
            (PartitionId(0), status(Some(10), None)),
            (PartitionId(1), status(Some(9), Some("offset 7 is gone"))),
            (PartitionId(2), status(None, None)),
        ];
        let (lag, sentences) = missing(&end, &end, Some(&known.into()));
        assert_eq!(lag.into_values().collect::<Vec<_>>(), [Some(0), Some(2), None]);
        let told = [
            "partition 1 is not read: offset 7 is gone",
            "partition 1: 2 offsets are not counted",
            "partition 2: how far it reaches is not known yet",
        ];
        assert_eq!(sentences, told);
        let complete = BTreeMap::from([(PartitionId(0), status(Some(10), None))]);
        assert!(missing(&end, &end, Some(&complete)).1.is_empty());
        // Of an older generation, with more read since than the broker was last heard to hold.
        let mut read = end.clone();
        read.advance(PartitionId(0), Offset(13));
        assert_eq!(missing(&end, &read, Some(&complete)).1, ["partition 0: 3 offsets are not counted"]);
        for unread in [None, Some(&BTreeMap::new())] {
            assert_eq!(missing(&end, &end, unread).1, ["its topic was not read yet"]);
        }
    }
}
