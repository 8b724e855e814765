//! What a refresh has to do, decided from what is there. No I/O.

use super::{RunFile, ViewStates};
use crate::position::Epoch;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(rows: u64) -> RunFile {
        RunFile { path: format!("r{rows}"), rows, bytes: 1, sha256: String::new(), blocks: None }
    }

    #[test]
    fn a_view_is_kept_extended_or_rebuilt() {
        let view = ViewStates { fingerprint: "f".into(), ..ViewStates::of(vec![file(3)]) };
        let plan =
            |fingerprint, scope, from, to| view_plan(Some(&view), fingerprint, scope, Epoch(from), Epoch(to));
        let rebuild = ViewPlan::Compute { after: Epoch(0), runs: vec![] };
        assert_eq!(plan("f", Scope::New, 4, 4), ViewPlan::Keep(vec![file(3)]));
        assert_eq!(plan("f", Scope::New, 4, 6), ViewPlan::Compute { after: Epoch(4), runs: vec![file(3)] });
        assert_eq!(plan("g", Scope::New, 4, 4), rebuild);
        assert_eq!(plan("f", Scope::Full, 4, 4), rebuild);
        assert_eq!(view_plan(None, "f", Scope::New, Epoch(4), Epoch(6)), rebuild);
    }
}
