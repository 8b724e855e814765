//! What was passed and where it went, per partition, and the rules an epoch must keep to be committed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Kind, RowCounts};
use crate::position::{Epoch, PartitionId, StreamFrontier};

/// Totals of one partition since its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LedgerRow {
    /// Offsets passed.
    pub passed: u64,
    /// Records that count.
    pub events: u64,
    /// Records whose key was seen before.
    pub duplicates: u64,
    /// Records that broke a rule.
    pub quarantined: u64,
    /// Offsets that never held a record for us: control records, aborted transactions, compaction.
    pub gaps: u64,
}

impl LedgerRow {
    /// Conservation: every offset passed went somewhere.
    pub fn balances(&self) -> bool {
        [self.events, self.duplicates, self.quarantined, self.gaps]
            .iter()
            .try_fold(0u64, |sum, part| sum.checked_add(*part))
            == Some(self.passed)
    }

    /// True when no total lies below `earlier`.
    pub fn covers(&self, earlier: &LedgerRow) -> bool {
        self.passed >= earlier.passed
            && self.events >= earlier.events
            && self.duplicates >= earlier.duplicates
            && self.quarantined >= earlier.quarantined
            && self.gaps >= earlier.gaps
    }

    pub fn records(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Event => self.events,
            Kind::Duplicate => self.duplicates,
            Kind::Quarantined => self.quarantined,
        }
    }
}

/// The totals of every partition of a stream.
pub type Ledger = BTreeMap<PartitionId, LedgerRow>;

/// Records of one kind over all partitions.
pub fn records(ledger: &Ledger, kind: Kind) -> u64 {
    ledger.values().map(|row| row.records(kind)).sum()
}

/// Where the archive stands: what the newest commit said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    pub epoch: Epoch,
    pub frontier: StreamFrontier,
    pub ledger: Ledger,
}

/// Why an epoch must not be committed on top of a standing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it moves from {stored} to {offered}: the topic is another one")]
    OtherTopic { stored: String, offered: String },
    #[error("its frontier of partition {partition} goes back from {stored} to {offered}")]
    FrontierBack { partition: PartitionId, stored: i64, offered: i64 },
    #[error("its ledger of partition {partition} does not balance: {row:?}")]
    Unbalanced { partition: PartitionId, row: LedgerRow },
    #[error("its ledger of partition {partition} goes back from {stored:?} to {offered:?}")]
    LedgerBack { partition: PartitionId, stored: LedgerRow, offered: LedgerRow },
    #[error("its ledger counts {counted} new records of kind {kind}, its files hold {held}")]
    RowsDiffer { kind: Kind, counted: u64, held: u64 },
}

/// Decides whether an epoch with `rows` may move the archive from `stored` to `offered`.
pub fn check_advance(stored: &Standing, offered: &Standing, rows: RowCounts) -> Result<(), Refusal> {
    let named = |frontier: &StreamFrontier| {
        frontier.topic.as_ref().map_or_else(|| "no topic".to_owned(), ToString::to_string)
    };
    if stored.frontier.topic.is_some() && stored.frontier.topic != offered.frontier.topic {
        let (stored, offered) = (named(&stored.frontier), named(&offered.frontier));
        return Err(Refusal::OtherTopic { stored, offered });
    }
    for (partition, offset) in &stored.frontier.next {
        let to = offered.frontier.position(*partition);
        if to < *offset {
            return Err(Refusal::FrontierBack { partition: *partition, stored: offset.0, offered: to.0 });
        }
    }
    for (partition, row) in &offered.ledger {
        if !row.balances() {
            return Err(Refusal::Unbalanced { partition: *partition, row: *row });
        }
    }
    for (partition, stored) in &stored.ledger {
        let offered = offered.ledger.get(partition).copied().unwrap_or_default();
        if !offered.covers(stored) {
            return Err(Refusal::LedgerBack { partition: *partition, stored: *stored, offered });
        }
    }
    for kind in Kind::ALL {
        let counted = records(&offered.ledger, kind) - records(&stored.ledger, kind);
        let held = rows.of(kind);
        if counted != held {
            return Err(Refusal::RowsDiffer { kind, counted, held });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::position::{Offset, TopicIdentity};

    fn standing(topic: &str, next: i64, row: LedgerRow) -> Standing {
        Standing {
            epoch: Epoch(1),
            frontier: StreamFrontier {
                topic: Some(TopicIdentity { cluster_id: "c".into(), topic_id: topic.into() }),
                next: [(PartitionId(0), Offset(next))].into(),
            },
            ledger: [(PartitionId(0), row)].into(),
        }
    }

    fn row(passed: u64, events: u64, duplicates: u64, quarantined: u64, gaps: u64) -> LedgerRow {
        LedgerRow { passed, events, duplicates, quarantined, gaps }
    }

    #[test]
    fn each_rule_refuses_what_breaks_it() {
        let stored = standing("t", 10, row(10, 6, 2, 1, 1));
        let rows = |events, duplicates, quarantined| RowCounts { events, duplicates, quarantined };
        let refusal = |offered: Standing, counts| check_advance(&stored, &offered, counts).unwrap_err();
        let good = standing("t", 12, row(12, 7, 3, 1, 1));
        assert_eq!(check_advance(&stored, &good, rows(1, 1, 0)), Ok(()));
        assert_eq!(check_advance(&Standing::default(), &good, rows(7, 3, 1)), Ok(()));

        let other = standing("u", 12, row(12, 7, 3, 1, 1));
        assert!(matches!(refusal(other, rows(1, 1, 0)), Refusal::OtherTopic { .. }));
        let back = standing("t", 9, row(12, 7, 3, 1, 1));
        assert!(matches!(refusal(back, rows(1, 1, 0)), Refusal::FrontierBack { stored: 10, offered: 9, .. }));
        let mut lost_partition = good.clone();
        lost_partition.frontier.next.clear();
        assert!(matches!(refusal(lost_partition, rows(1, 1, 0)), Refusal::FrontierBack { offered: 0, .. }));
        let unbalanced = standing("t", 12, row(12, 7, 2, 1, 1));
        assert!(matches!(refusal(unbalanced, rows(1, 0, 0)), Refusal::Unbalanced { .. }));
        let shrunk = standing("t", 12, row(12, 9, 1, 1, 1));
        assert!(matches!(refusal(shrunk, rows(3, 0, 0)), Refusal::LedgerBack { .. }));
        let mut forgotten = good.clone();
        forgotten.ledger.clear();
        assert!(matches!(refusal(forgotten, rows(0, 0, 0)), Refusal::LedgerBack { .. }));
        assert!(matches!(refusal(good, rows(2, 1, 0)), Refusal::RowsDiffer { counted: 1, held: 2, .. }));
    }

    #[test]
    fn a_sum_beyond_u64_does_not_balance() {
        assert!(!row(1, u64::MAX, 2, 0, 0).balances());
    }
}
