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

/// `SIMULATION_SEEDS` sets another number of seeds, `SIMULATION_SEED` runs that one alone.
#[test]
fn every_seed_keeps_every_invariant() {
    let stage = Stage::new();
    let seeds: Vec<u64> = match number("SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => kept().chain(0..number("SIMULATION_SEEDS").unwrap_or(500)).collect(),
    };
    for seed in seeds {
        let Outcome { log, verdict } = simulate(&stage, seed, Without::Nothing);
        if let Err(reason) = verdict {
            let history: Vec<String> = log.iter().map(|event| format!("{event:?}")).collect();
            panic!(
                "seed {seed}: {reason}\n\nhistory:\n{}\n\nadd {seed} to tests/lambda/simulation.seeds",
                history.join("\n")
            );
        }
    }
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

fn goes_red(without: Without) {
    let stage = Stage::new();
    // What is asserted by the program itself counts too; its message is not a failure of this test.
    std::panic::set_hook(Box::new(|_| {}));
    let found = (0..CONTROL_SEEDS)
        .find_map(|seed| simulate(&stage, seed, without).verdict.err().map(|reason| (seed, reason)));
    let _ = std::panic::take_hook();
    let (seed, reason) = found.unwrap_or_else(|| panic!("without {without:?} nothing went wrong"));
    println!("without {without:?} seed {seed} says: {reason}");
}

#[test]
fn it_goes_red_without_each_guard() {
    for without in [Without::Cut, Without::Dedup, Without::Fencing, Without::Sync, Without::StoredFrontier] {
        goes_red(without);
    }
}
