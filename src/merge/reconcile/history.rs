//! What reconciliation found, for `system.reconciliation`: the newest results, up to a bound.

use std::collections::VecDeque;

use parking_lot::Mutex;

use super::{Comparison, Difference};
use crate::position::{Epoch, GenerationId};
use crate::runtime::Micros;

/// One view at one refresh: what was compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The generation that the refresh made.
    pub generation: GenerationId,
    pub at: Micros,
    pub view: String,
    /// Records of epochs after this ...
    pub after: Epoch,
    /// ... and up to this.
    pub to: Epoch,
    /// What the delta held of epochs up to here it had read from the archive at a start, as the batch path does.
    pub restored_to: Epoch,
}

/// A row of `system.reconciliation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub subject: Subject,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Sums up one view; followed by a row for each difference.
    Compared {
        groups: u64,
        differing: u64,
        not_compared: Vec<String>,
    },
    Differs(Difference),
    /// The comparison could not be made; this is why.
    Failed(String),
}

/// The newest findings.
#[derive(Debug)]
pub struct History {
    findings: Mutex<VecDeque<Finding>>,
    rows_max: usize,
}

impl History {
    pub fn new(rows_max: usize) -> Self {
        Self { findings: Mutex::default(), rows_max }
    }

    /// Adds the result of one comparison; the oldest rows make room.
    pub fn note(&self, subject: &Subject, result: Result<Comparison, String>) {
        let mut outcomes = Vec::new();
        match result {
            Err(reason) => outcomes.push(Outcome::Failed(reason)),
            Ok(Comparison { groups, differing, differences, not_compared }) => {
                outcomes.push(Outcome::Compared { groups, differing, not_compared });
                outcomes.extend(differences.into_iter().map(Outcome::Differs));
            }
        }
        let mut findings = self.findings.lock();
        findings.extend(outcomes.into_iter().map(|outcome| Finding { subject: subject.clone(), outcome }));
        let excess = findings.len().saturating_sub(self.rows_max);
        findings.drain(..excess);
    }

    /// Oldest first.
    pub fn findings(&self) -> Vec<Finding> {
        self.findings.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_rows_make_room() {
        let history = History::new(3);
        for generation in 1..=3 {
            let subject = Subject {
                generation: GenerationId(generation),
                at: 0,
                view: "v".into(),
                after: Epoch(0),
                to: Epoch(1),
                restored_to: Epoch(0),
            };
            let difference = Difference { group: "{}".into(), batch: None, speed: Some("{}".into()) };
            let found =
                Comparison { groups: 1, differing: 1, differences: vec![difference], ..Comparison::default() };
            history.note(&subject, if generation == 3 { Err("no memory".into()) } else { Ok(found) });
        }
        let kept: Vec<u64> = history.findings().iter().map(|found| found.subject.generation.0).collect();
        assert_eq!(kept, [2, 2, 3]);
        assert!(matches!(history.findings()[2].outcome, Outcome::Failed(_)));
    }
}
