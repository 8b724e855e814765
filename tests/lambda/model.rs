//! The truth: what must have become of every record that was read, kept beside the program and without its help.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use viewledger::archive::ledger::{Ledger, LedgerRow};
use viewledger::position::{Epoch, Offset, PartitionId};

use crate::records::{Placed, Record};

/// What must become of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Counted,
    Duplicate,
    Quarantined,
}

/// Which records the views of the stream cannot be computed with, though they break no rule of the stream.
pub type Unfit = fn(&Record) -> bool;

/// Everything that one process, and those before it up to what they committed, have read of one stream.
#[derive(Debug, Clone)]
pub struct Truth {
    unfit: Option<Unfit>,
    /// In the order of reading.
    read: Vec<(Placed, Fate)>,
    /// The ids of the counted ones.
    seen: BTreeSet<u8>,
    pub next: BTreeMap<PartitionId, Offset>,
    /// What stood where an epoch was sealed; the first is epoch 1.
    pub seals: Vec<Seal>,
}

/// Where an epoch ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Seal {
    /// How many records had been read.
    pub read: usize,
    pub next: BTreeMap<PartitionId, Offset>,
}

impl Truth {
    pub fn new(unfit: Option<Unfit>) -> Self {
        Self { unfit, read: Vec::new(), seen: BTreeSet::new(), next: BTreeMap::new(), seals: Vec::new() }
    }

    /// One micro-batch: its records in the order of reading, and where its partitions now stand.
    pub fn take(&mut self, records: Vec<Placed>, next: &BTreeMap<PartitionId, Offset>) {
        for placed in records {
            let fate = self.fate(&placed.record);
            self.read.push((placed, fate));
        }
        self.next.extend(next.iter().map(|(partition, offset)| (*partition, *offset)));
    }

    fn fate(&mut self, record: &Arc<Record>) -> Fate {
        if !record.is_sound() {
            Fate::Quarantined
        } else if self.seen.contains(&record.id) {
            Fate::Duplicate
        } else if self.unfit.is_some_and(|unfit| unfit(record)) {
            Fate::Quarantined
        } else {
            self.seen.insert(record.id);
            Fate::Counted
        }
    }

    pub fn seal(&mut self) {
        self.seals.push(Seal { read: self.read.len(), next: self.next.clone() });
    }

    /// What another process finds when this one is gone: everything up to `epoch`, and nothing else.
    #[must_use]
    pub fn cut_back(&self, epoch: Epoch) -> Self {
        let epochs = usize::try_from(epoch.0).unwrap();
        let seals: Vec<Seal> = self.seals[..epochs].to_vec();
        let read = self.read[..seals.last().map_or(0, |seal| seal.read)].to_vec();
        let counted = read.iter().filter(|(_, fate)| *fate == Fate::Counted);
        Self {
            unfit: self.unfit,
            seen: counted.map(|(placed, _)| placed.record.id).collect(),
            next: seals.last().map(|seal| seal.next.clone()).unwrap_or_default(),
            read,
            seals,
        }
    }

    /// How many records had been read when `epoch` ended.
    pub fn read_in(&self, epoch: Epoch) -> usize {
        usize::try_from(epoch.0).unwrap().checked_sub(1).map_or(0, |index| self.seals[index].read)
    }

    pub fn read(&self) -> usize {
        self.read.len()
    }

    /// The records of one fate among those that were read as `range` says.
    pub fn records(&self, fate: Fate, range: std::ops::Range<usize>) -> Vec<Placed> {
        self.read[range].iter().filter(|(_, f)| *f == fate).map(|(placed, _)| placed.clone()).collect()
    }

    /// The books that must be kept.
    pub fn ledger(&self) -> Ledger {
        let mut ledger: Ledger = self
            .next
            .iter()
            .map(|(partition, next)| {
                (*partition, LedgerRow { passed: next.0.unsigned_abs(), ..LedgerRow::default() })
            })
            .collect();
        for (placed, fate) in &self.read {
            let row = ledger.entry(placed.partition).or_default();
            match fate {
                Fate::Counted => row.events += 1,
                Fate::Duplicate => row.duplicates += 1,
                Fate::Quarantined => row.quarantined += 1,
            }
        }
        for row in ledger.values_mut() {
            row.gaps = row.passed - row.events - row.duplicates - row.quarantined;
        }
        ledger
    }
}
