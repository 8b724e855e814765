//! The checker: compares what readers see with the truth. Pure, so that it can be tested without a server.

use std::collections::BTreeMap;

use crate::truth::{Expected, Tally};

/// What readers see at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    pub(crate) total: i64,
    pub(crate) videos: BTreeMap<String, Tally>,
    pub(crate) quarantined: i64,
    pub(crate) ledger: Vec<LedgerRow>,
}

/// One partition of `system.conservation`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LedgerRow {
    pub(crate) partition: i32,
    pub(crate) passed: i64,
    pub(crate) counted: i64,
    pub(crate) duplicates: i64,
    pub(crate) quarantined: i64,
    pub(crate) gaps: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Violation {
    /// An answer that is not the truth.
    Count { what: String, expected: i64, seen: i64 },
    /// A row of the ledger whose sides differ.
    Unbalanced(LedgerRow),
    /// Durable counts fell over a kill.
    Backwards { before: i64, after: i64 },
    /// The two halves did not add up to the merged view within one query.
    Halves { merged: i64, batch: i64, speed: i64 },
    /// The server ended by itself, panicked, or did not come up.
    Died(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Exact,
    /// Less than the truth, which may be only the way there.
    Behind(Vec<Violation>),
    /// More than the truth, or out of balance: no waiting makes it right.
    Wrong(Vec<Violation>),
}

pub(crate) fn judge(expected: &Expected, answers: &Answers) -> Verdict {
    let mut differences = Differences::default();
    differences.compare("count(*)", expected.counted, answers.total);
    differences.compare("quarantined records", expected.quarantined, answers.quarantined);
    compare_videos(&mut differences, expected, answers);
    compare_ledger(&mut differences, expected, answers);
    match differences {
        Differences { above, below } if above.is_empty() && below.is_empty() => Verdict::Exact,
        Differences { above, below } if above.is_empty() => Verdict::Behind(below),
        Differences { above, .. } => Verdict::Wrong(above),
    }
}

#[derive(Default)]
struct Differences {
    above: Vec<Violation>,
    below: Vec<Violation>,
}

impl Differences {
    fn compare(&mut self, what: impl Into<String>, expected: i64, seen: i64) {
        let side = match seen.cmp(&expected) {
            std::cmp::Ordering::Equal => return,
            std::cmp::Ordering::Less => &mut self.below,
            std::cmp::Ordering::Greater => &mut self.above,
        };
        side.push(Violation::Count { what: what.into(), expected, seen });
    }
}

fn compare_videos(differences: &mut Differences, expected: &Expected, answers: &Answers) {
    let nothing = Tally::default();
    for key in expected.videos.keys().chain(answers.videos.keys().filter(|key| !expected.videos.contains_key(*key)))
    {
        let want = expected.videos.get(key).unwrap_or(&nothing);
        let seen = answers.videos.get(key).unwrap_or(&nothing);
        differences.compare(format!("total_views of {key}"), want.views, seen.views);
        differences.compare(format!("revenue_views of {key}"), want.revenue_views, seen.revenue_views);
        differences.compare(format!("watch_seconds of {key}"), want.watch_seconds, seen.watch_seconds);
    }
}

fn compare_ledger(differences: &mut Differences, expected: &Expected, answers: &Answers) {
    let sum = |of: fn(&LedgerRow) -> i64| answers.ledger.iter().map(of).sum::<i64>();
    differences.compare("counted in the ledger", expected.counted, sum(|row| row.counted));
    differences.compare("duplicates in the ledger", expected.duplicates, sum(|row| row.duplicates));
    differences.compare("quarantined in the ledger", expected.quarantined, sum(|row| row.quarantined));
    for row in &answers.ledger {
        if row.passed != row.counted + row.duplicates + row.quarantined + row.gaps {
            differences.above.push(Violation::Unbalanced(*row));
        }
    }
    for (partition, extent) in &expected.partitions {
        let row = answers.ledger.iter().find(|row| row.partition == *partition).copied().unwrap_or_default();
        differences.compare(format!("records of partition {partition}"), extent.records, row.passed - row.gaps);
        // Control records behind the last one may or may not have been passed.
        differences.compare(
            format!("offsets passed in partition {partition}"),
            extent.end,
            row.passed.min(extent.end),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::truth::Extent;

    fn truth() -> Expected {
        Expected {
            videos: BTreeMap::from([("v".into(), Tally { views: 3, revenue_views: 1, watch_seconds: 9 })]),
            partitions: BTreeMap::from([(0, Extent { records: 5, end: 7 })]),
            counted: 3,
            duplicates: 1,
            quarantined: 1,
            aborted: 2,
        }
    }

    fn exact() -> Answers {
        let row = LedgerRow { partition: 0, passed: 8, counted: 3, duplicates: 1, quarantined: 1, gaps: 3 };
        Answers { total: 3, videos: truth().videos, quarantined: 1, ledger: vec![row] }
    }

    #[test]
    fn the_truth_is_exact() {
        assert_eq!(judge(&truth(), &exact()), Verdict::Exact);
    }

    #[test]
    fn every_way_to_be_wrong_is_seen() {
        type Change = fn(&mut Answers);
        let too_much: &[Change] = &[
            |a| a.total += 1,
            |a| a.quarantined += 1,
            |a| a.videos.get_mut("v").unwrap().views += 1,
            |a| a.videos.get_mut("v").unwrap().revenue_views += 1,
            |a| a.videos.get_mut("v").unwrap().watch_seconds += 1,
            |a| a.videos.extend([("w".into(), Tally { views: 1, ..Tally::default() })]),
            |a| a.ledger[0].passed += 1,
            |a| a.ledger[0].gaps -= 1,
            |a| (a.ledger[0].duplicates, a.ledger[0].passed) = (2, 9),
        ];
        let too_little: &[Change] = &[
            |a| a.total -= 1,
            |a| a.quarantined -= 1,
            |a| a.videos.get_mut("v").unwrap().views -= 1,
            |a| a.videos.clear(),
            |a| a.ledger.clear(),
            |a| (a.ledger[0].counted, a.ledger[0].passed) = (2, 7),
        ];
        for (number, change) in too_much.iter().enumerate() {
            let mut answers = exact();
            change(&mut answers);
            assert!(matches!(judge(&truth(), &answers), Verdict::Wrong(_)), "too much {number}");
        }
        for (number, change) in too_little.iter().enumerate() {
            let mut answers = exact();
            change(&mut answers);
            assert!(matches!(judge(&truth(), &answers), Verdict::Behind(_)), "too little {number}");
        }
    }
}
