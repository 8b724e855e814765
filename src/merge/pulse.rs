//! What the present is, in few numbers: for whoever watches.

use std::collections::BTreeMap;

use serde::Serialize;

use super::certificate::Certificate;
use super::snapshot::{Snapshot, StreamSnapshot};
use crate::archive::ledger::LedgerRow;
use crate::batch::shelf::instant;
use crate::kafka::status::IntakeStatus;
use crate::position::{GenerationId, PartitionId};
use crate::runtime::{Health, Micros};

/// Sentences that are told; `GET /snapshot` has all.
const SENTENCES_MAX: usize = 20;

/// One snapshot, and how far it is behind.
#[derive(Debug, Serialize)]
pub struct Pulse {
    /// When it was taken.
    pub at: String,
    pub generation: GenerationId,
    /// When the generation was made.
    pub made_at: String,
    pub complete: bool,
    /// What is missing, one sentence each.
    pub missing: Vec<String>,
    /// Parts of the process that failed for good.
    pub failures: Vec<String>,
    pub streams: BTreeMap<String, StreamPulse>,
}

#[derive(Debug, Serialize)]
pub struct StreamPulse {
    #[serde(flatten)]
    pub ledger: LedgerRow,
    /// Whether offsets passed are what became of them, in every partition.
    pub balances: bool,
    /// Per partition, records in Kafka that are not counted; null where it is not known how far it reaches.
    pub lag: BTreeMap<PartitionId, Option<i64>>,
    pub archive_epoch: u64,
    pub delta_bytes: usize,
}

impl Pulse {
    pub fn of(snapshot: &Snapshot, status: &IntakeStatus, health: &Health, now: Micros) -> Self {
        let Certificate { generation, made_at, complete, mut missing, mut streams, .. } =
            Certificate::of(snapshot, None, status);
        missing.truncate(SENTENCES_MAX);
        let streams = snapshot
            .streams
            .iter()
            .map(|(name, stream)| {
                let lag = streams.remove(name).map(|certificate| certificate.lag).unwrap_or_default();
                (name.clone(), StreamPulse::of(stream, lag))
            })
            .collect();
        Self { at: instant(now), generation, made_at, complete, missing, failures: health.failures(), streams }
    }
}

impl StreamPulse {
    fn of(stream: &StreamSnapshot, lag: BTreeMap<PartitionId, Option<i64>>) -> Self {
        let mut ledger = LedgerRow::default();
        for row in stream.ledger.values() {
            ledger.passed += row.passed;
            ledger.events += row.events;
            ledger.duplicates += row.duplicates;
            ledger.quarantined += row.quarantined;
            ledger.gaps += row.gaps;
        }
        Self {
            ledger,
            balances: stream.ledger.values().all(LedgerRow::balances),
            lag,
            archive_epoch: stream.archive.epoch.0,
            delta_bytes: stream.delta.bytes(),
        }
    }
}
