//! The seeds that CI runs, the ones that failed once, and the controls that show that the suite can fail.

use crate::process::Stage;
use crate::simulate::{Outcome, Without, simulate};

/// Seeds that failed once.
const KEPT: &str = include_str!("simulation.seeds");
/// Of each control; far fewer are needed.
const CONTROL_SEEDS: u64 = 400;

fn kept() -> impl Iterator<Item = u64> {
    KEPT.lines().filter_map(|line| {
        let seed = line.split('#').next().unwrap_or_default().trim();
        (!seed.is_empty()).then(|| seed.parse().unwrap())
    })
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// As many as CI has processors.
pub const WORKERS: u32 = 2;

/// Does the same work on several threads, each of which is told its number.
pub fn on_workers(work: impl Fn(u32) + Sync) {
    let work = &work;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(move || work(worker))).collect();
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// `SIMULATION_SEEDS` sets another number of seeds, `SIMULATION_SEED` runs that one alone.
#[test]
fn every_seed_keeps_every_invariant() {
    let seeds: Vec<u64> = match number("SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => kept().chain(0..number("SIMULATION_SEEDS").unwrap_or(500)).collect(),
    };
    on_workers(|worker| {
        let stage = Stage::new();
        for seed in seeds.iter().skip(worker as usize).step_by(WORKERS as usize) {
            let Outcome { log, verdict } = simulate(&stage, *seed, Without::Nothing);
            if let Err(reason) = verdict {
                let history: Vec<String> = log.iter().map(|event| format!("{event:?}")).collect();
                let history = history.join("\n");
                panic!("{history}\n\nseed {seed}: {reason}\n\nkeep it in tests/lambda/simulation.seeds");
            }
        }
    });
}

#[test]
fn a_seed_gives_one_history() {
    let stage = Stage::new();
    for seed in 0..6 {
        let once = simulate(&stage, seed, Without::Nothing).log;
        let again = simulate(&stage, seed, Without::Nothing).log;
        assert_eq!(once, again, "seed {seed}");
    }
}

/// Runs seeds without a guard until one is found wrong, which must be for one of `reasons`.
fn goes_red(without: Without, reasons: &[&str]) {
    let stage = Stage::new();
    let found = (0..CONTROL_SEEDS)
        .find_map(|seed| simulate(&stage, seed, without).verdict.err().map(|reason| (seed, reason)));
    let (seed, found) = found.unwrap_or_else(|| panic!("without {without:?} nothing went wrong"));
    println!("without {without:?} seed {seed} says: {found}");
    let expected = reasons.iter().any(|reason| found.contains(reason));
    assert!(expected, "without {without:?} seed {seed} goes red, but not for {reasons:?}: {found}");
}

#[test]
fn it_goes_red_without_each_guard() {
    // Records between the cut of the batch views and that of the delta are in neither.
    goes_red(Without::Cut, &["equivalence"]);
    goes_red(Without::Dedup, &["equivalence"]);
    // Who was succeeded overwrites what its successor has committed.
    goes_red(Without::Fencing, &["fencing", "durable first", "one swap"]);
    goes_red(Without::Sync, &["durable first"]);
    goes_red(Without::StoredFrontier, &["truth of offsets"]);
}
