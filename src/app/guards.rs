//! Switches for tests that show that the suite goes red without a guard. Never for use: they lose or double
//! records on purpose, and say so.

/// Which guards are on.
#[derive(Debug, Clone, Copy)]
pub struct Guards {
    pub dedup: bool,
    pub stored_frontier: bool,
    /// The delta holds what the records say.
    pub true_delta: bool,
}

impl Guards {
    /// All on, unless `VIEWLEDGER_UNSAFE_TEST` names some: `no-dedup`, `no-frontier`, `skew-delta`.
    pub fn from_env() -> Self {
        let switched_off = std::env::var("VIEWLEDGER_UNSAFE_TEST").unwrap_or_default();
        let off = |name: &str| switched_off.split(',').any(|given| given == name);
        if !switched_off.is_empty() {
            tracing::error!(switched_off, "VIEWLEDGER_UNSAFE_TEST is set: counts WILL be wrong; for tests only");
        }
        Self { dedup: !off("no-dedup"), stored_frontier: !off("no-frontier"), true_delta: !off("skew-delta") }
    }
}
