//! The command line: one file a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check found a fault.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod generate;

/// Counts views people are paid for: Kafka in, exact merged SQL views out.
#[derive(Debug, Parser)]
#[command(name = "viewledger", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Generate(generate::Args),
}

/// Parses the arguments, runs the command and reports its failure on standard error.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Generate(args) => generate::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("viewledger: {error:#}");
        ExitCode::FAILURE
    })
}
