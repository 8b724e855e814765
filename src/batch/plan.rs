//! What a refresh has to do, decided from what is there. No I/O.

use super::{RunFile, ViewStates};
use crate::position::Epoch;

/// A run is combined with its predecessor while that has fewer rows than this many times its own.
const GROWTH: u64 = 4;
/// More runs than this cost readers more than combining costs the refresh.
const RUNS_MAX: usize = 6;

/// Whether a refresh goes on from the runs that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Only what is new; a view whose definition changed is still computed from everything.
    New,
    /// Everything, from the archive.
    Full,
}

/// What to do for one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewPlan {
    /// Nothing new: the runs stay as they are.
    Keep(Vec<RunFile>),
    /// Compute states over the archive's epochs after `after`, and put them behind `runs`.
    Compute { after: Epoch, runs: Vec<RunFile> },
}

/// `from` and `to` are the archive epochs of the current generation and of the next one.
pub fn view_plan(
    current: Option<&ViewStates>,
    fingerprint: &str,
    scope: Scope,
    from: Epoch,
    to: Epoch,
) -> ViewPlan {
    match current {
        Some(view) if view.fingerprint == fingerprint && scope == Scope::New => {
            if from == to {
                ViewPlan::Keep(view.runs.clone())
            } else {
                ViewPlan::Compute { after: from, runs: view.runs.clone() }
            }
        }
        _ => ViewPlan::Compute { after: Epoch::default(), runs: Vec::new() },
    }
}

/// How many of the newest runs should become one; below 2 means none.
pub fn runs_to_combine(rows: &[u64]) -> usize {
    let mut sum = 0_u64;
    let mut count = 0;
    for (index, rows_of_run) in rows.iter().rev().enumerate() {
        let many_left = rows.len() - index > RUNS_MAX;
        if index > 0 && *rows_of_run >= sum.saturating_mul(GROWTH) && !many_left {
            break;
        }
        sum = sum.saturating_add(*rows_of_run);
        count = index + 1;
    }
    if count >= 2 { count } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(rows: u64) -> RunFile {
        RunFile { path: format!("r{rows}"), rows, bytes: 1, sha256: String::new(), blocks: None }
    }

    #[test]
    fn a_view_is_kept_extended_or_rebuilt() {
        let view = ViewStates { fingerprint: "f".into(), runs: vec![file(3)] };
        let plan =
            |fingerprint, scope, from, to| view_plan(Some(&view), fingerprint, scope, Epoch(from), Epoch(to));
        let rebuild = ViewPlan::Compute { after: Epoch(0), runs: vec![] };
        assert_eq!(plan("f", Scope::New, 4, 4), ViewPlan::Keep(vec![file(3)]));
        assert_eq!(plan("f", Scope::New, 4, 6), ViewPlan::Compute { after: Epoch(4), runs: vec![file(3)] });
        assert_eq!(plan("g", Scope::New, 4, 4), rebuild);
        assert_eq!(plan("f", Scope::Full, 4, 4), rebuild);
        assert_eq!(view_plan(None, "f", Scope::New, Epoch(4), Epoch(6)), rebuild);
    }

    #[test]
    fn small_runs_are_combined_and_large_ones_left_alone() {
        assert_eq!(runs_to_combine(&[]), 0);
        assert_eq!(runs_to_combine(&[10]), 0);
        assert_eq!(runs_to_combine(&[1000, 10]), 0);
        assert_eq!(runs_to_combine(&[30, 10]), 2);
        assert_eq!(runs_to_combine(&[1000, 30, 10]), 2);
        assert_eq!(runs_to_combine(&[100, 30, 10]), 3);
        assert_eq!(runs_to_combine(&[100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100]), 0);
    }

    #[test]
    fn the_number_of_runs_stays_bounded_and_the_work_logarithmic() {
        let mut runs: Vec<u64> = Vec::new();
        let mut rewritten = 0;
        for _ in 0..10_000 {
            runs.push(1);
            let combine = runs_to_combine(&runs);
            if combine > 0 {
                let tail = runs.split_off(runs.len() - combine);
                rewritten += tail.iter().sum::<u64>();
                runs.push(tail.iter().sum());
            }
            assert!(runs.len() <= RUNS_MAX + 1, "{runs:?}");
        }
        assert!(rewritten < 10_000 * 14, "{rewritten}");
    }
}
