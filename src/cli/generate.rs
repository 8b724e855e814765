//! `viewledger generate`: produces a load with a known truth (in work).

use std::process::ExitCode;

/// Produce a realistic load to Kafka and write down the truth about it.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
