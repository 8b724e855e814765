//! What came since the current generation, in memory: partial states of every view, and the records that no
//! archive commit holds yet.
//!
//! A [`Delta`] never changes; every step returns the next one and shares all that stays. So a reader that holds
//! one sees exactly one moment, and the writer never waits for readers.
//!
//! | run | may be combined with |
//! |---|---|
//! | of the open epoch | runs of the same epoch |
//! | of committed epochs | runs of other committed epochs, on the same side of a running refresh's cut |
//!
//! so that every epoch a generation may end at stays a boundary between runs.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::error::Result;

use crate::engine::keys::KeyIndex;
use crate::position::Epoch;

pub mod fold;

/// More small runs than this in one zone are combined.
const SMALL_RUNS_MAX: usize = 12;
/// More runs than this in one zone are combined, whatever their size.
const RUNS_MAX: usize = 64;
/// A run with so many rows costs a reader hardly more than the same rows in another run, and to combine it much.
const LARGE_ROWS: usize = 32 * 1024;
/// How many adjacent runs are combined at once: those with the fewest rows together.
const FAN_IN: usize = 8;

/// The delta of one stream at one moment.
#[derive(Debug, Clone)]
pub struct Delta {
    /// The generation holds everything up to and including this epoch.
    base: Epoch,
    /// The epoch that is being filled.
    open: Epoch,
    /// Epochs up to here are in the archive.
    committed: Epoch,
    /// A refresh that is running will cut here.
    hold: Option<Epoch>,
    /// Epochs up to here were computed from the archive at a start, not from the records as they came.
    restored: Epoch,
    /// By view, in order of epochs.
    runs: BTreeMap<String, Vec<Run>>,
    /// In order of arrival.
    tail: Vec<Arc<Tail>>,
}

/// Partial states of one view over some micro-batches.
#[derive(Debug, Clone)]
pub struct Run {
    pub first: Epoch,
    pub last: Epoch,
    pub states: Arc<RecordBatch>,
    /// Made when it is first asked for.
    keys: Arc<OnceLock<KeyIndex>>,
}

impl Run {
    pub fn new(first: Epoch, last: Epoch, states: RecordBatch) -> Self {
        Self { first, last, states: Arc::new(states), keys: Arc::default() }
    }

    /// Where the rows of each value of the first column are.
    pub fn keys(&self) -> Result<&KeyIndex> {
        if let Some(keys) = self.keys.get() {
            return Ok(keys);
        }
        // Two readers may both make it; they make the same.
        let keys = KeyIndex::of(self.states.column(0))?;
        Ok(self.keys.get_or_init(|| keys))
    }
}

/// One micro-batch that no archive commit holds yet.
#[derive(Debug)]
pub struct Tail {
    pub epoch: Epoch,
    pub events: RecordBatch,
    pub duplicates: RecordBatch,
    pub rejects: RecordBatch,
}

/// Runs of one view to be replaced by their combination.
#[derive(Debug, Clone)]
pub struct Combine {
    pub view: String,
    pub runs: Vec<Run>,
}

impl Delta {
    /// The delta after a generation that holds everything up to `base`, with `runs` made from the archive's
    /// epochs after it, up to `committed`.
    pub fn restored(base: Epoch, committed: Epoch, states: BTreeMap<String, RecordBatch>) -> Self {
        let run = |states: RecordBatch| Run::new(base.next(), committed, states);
        let runs = states
            .into_iter()
            .map(|(view, states)| (view, if states.num_rows() == 0 { vec![] } else { vec![run(states)] }))
            .collect();
        Self { base, open: committed.next(), committed, hold: None, restored: committed, runs, tail: Vec::new() }
    }

    pub fn base(&self) -> Epoch {
        self.base
    }

    /// The epoch that is being filled.
    pub fn open(&self) -> Epoch {
        self.open
    }

    /// States of epochs up to here stem from the archive, as those of batch views do.
    pub fn restored_to(&self) -> Epoch {
        self.restored
    }

    /// Adds one micro-batch with its states, by view.
    #[must_use]
    pub fn fold(
        &self,
        events: RecordBatch,
        duplicates: RecordBatch,
        rejects: RecordBatch,
        states: Vec<(String, RecordBatch)>,
    ) -> Self {
        let mut next = self.clone();
        for (view, states) in states.into_iter().filter(|(_, states)| states.num_rows() > 0) {
            next.runs.entry(view).or_default().push(Run::new(self.open, self.open, states));
        }
        next.tail.push(Arc::new(Tail { epoch: self.open, events, duplicates, rejects }));
        next
    }

    /// Closes the open epoch; what comes next belongs to the one after it.
    #[must_use]
    pub fn sealed(&self) -> Self {
        Self { open: self.open.next(), ..self.clone() }
    }

    /// The archive holds everything up to `epoch`: its records need not be kept here any more.
    #[must_use]
    pub fn archived(&self, epoch: Epoch) -> Self {
        let mut next = self.clone();
        next.committed = epoch;
        next.tail.retain(|tail| tail.epoch > epoch);
        next
    }

    /// A refresh begins that will cut after `epoch`, or has ended (None): runs are not combined across it.
    #[must_use]
    pub fn held(&self, epoch: Option<Epoch>) -> Self {
        Self { hold: epoch, ..self.clone() }
    }

    /// A generation holds everything up to `epoch`.
    ///
    /// # Panics
    /// When a run lies on both sides of the cut: the answer would count records twice or not at all.
    #[must_use]
    pub fn cut(&self, epoch: Epoch) -> Self {
        let mut next = self.clone();
        next.base = epoch;
        next.hold = None;
        for (view, runs) in &mut next.runs {
            runs.retain(|run| {
                assert!(
                    run.last <= epoch || run.first > epoch,
                    "view {view}: states of epochs {} to {} cannot be cut after epoch {epoch}",
                    run.first,
                    run.last
                );
                run.first > epoch
            });
        }
        next
    }

    /// Only the states of views that `keep` names.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> Self {
        let mut next = self.clone();
        next.runs.retain(|view, _| keep(view));
        next
    }

    /// Partial states of `view` over everything in the delta; several batches may hold the same group.
    pub fn states(&self, view: &str) -> Vec<RecordBatch> {
        self.runs.get(view).into_iter().flatten().map(|run| run.states.as_ref().clone()).collect()
    }

    /// As [`Self::states`], with what their keys are found by.
    pub fn runs(&self, view: &str) -> &[Run] {
        self.runs.get(view).map(Vec::as_slice).unwrap_or_default()
    }

    /// The states alone, for whoever holds them longer than the records are needed.
    #[must_use]
    pub fn without_tail(&self) -> Self {
        Self { tail: Vec::new(), ..self.clone() }
    }

    /// Partial states of `view` that leave the delta when it is cut after `epoch`.
    pub fn leaving(&self, view: &str, epoch: Epoch) -> Vec<RecordBatch> {
        let runs = self.runs.get(view).into_iter().flatten().filter(|run| run.last <= epoch);
        runs.map(|run| run.states.as_ref().clone()).collect()
    }

    /// The micro-batches that are not in the archive's epoch `archived` yet.
    pub fn tail(&self, archived: Epoch) -> impl Iterator<Item = &Tail> {
        self.tail.iter().map(AsRef::as_ref).filter(move |tail| tail.epoch > archived)
    }

    /// Bytes of all states and of the tail.
    pub fn bytes(&self) -> usize {
        let states: usize = self.runs.values().flatten().map(|run| run.states.get_array_memory_size()).sum();
        let tail: usize = self.tail.iter().map(|tail| tail.events.get_array_memory_size()).sum();
        states + tail
    }

    /// What should be combined now, so that readers find few runs.
    pub fn due(&self) -> Vec<Combine> {
        self.runs
            .iter()
            .filter_map(|(view, runs)| {
                let rows: Vec<(Zone, usize)> =
                    runs.iter().map(|run| (self.zone(run), run.states.num_rows())).collect();
                let chosen = choose(&rows)?;
                Some(Combine { view: view.clone(), runs: runs.get(chosen)?.to_vec() })
            })
            .collect()
    }

    /// Puts `states` in the place of the runs they were combined from; when those are gone (a generation was
    /// published meanwhile) nothing changes.
    #[must_use]
    pub fn replaced(&self, combine: &Combine, states: RecordBatch) -> Self {
        let mut next = self.clone();
        let (Some(runs), Some(first), Some(last)) =
            (next.runs.get_mut(&combine.view), combine.runs.first(), combine.runs.last())
        else {
            return next;
        };
        let same = |a: &Run, b: &Run| Arc::ptr_eq(&a.states, &b.states);
        let Some(start) = runs.iter().position(|run| same(run, first)) else { return next };
        let end = start + combine.runs.len();
        let intact =
            runs.get(start..end).is_some_and(|found| found.iter().zip(&combine.runs).all(|(a, b)| same(a, b)));
        // A refresh that began meanwhile may have drawn its cut through them.
        let cuttable = self.hold.is_none_or(|hold| last.last <= hold || first.first > hold);
        if intact && cuttable {
            runs.splice(start..end, [Run::new(first.first, last.last, states)]);
        }
        next
    }

    fn zone(&self, run: &Run) -> Zone {
        match self.hold {
            Some(hold) if run.last <= hold => Zone::Leaving,
            _ if run.last <= self.committed => Zone::Committed,
            _ => Zone::Open(run.last),
        }
    }
}

/// Runs of different zones are never combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    Leaving,
    Committed,
    Open(Epoch),
}

/// In the first zone with too many runs, the adjacent ones with the fewest rows together.
fn choose(runs: &[(Zone, usize)]) -> Option<Range<usize>> {
    let mut start = 0;
    for zone in runs.chunk_by(|a, b| a.0 == b.0) {
        let small = zone.iter().filter(|(_, rows)| *rows < LARGE_ROWS).count();
        if small > SMALL_RUNS_MAX || zone.len() > RUNS_MAX {
            let cheapest = zone
                .windows(FAN_IN)
                .enumerate()
                .min_by_key(|(_, window)| window.iter().map(|(_, rows)| rows).sum::<usize>());
            return cheapest.map(|(at, _)| start + at..start + at + FAN_IN);
        }
        start += zone.len();
    }
    None
}

#[cfg(test)]
mod tests;
