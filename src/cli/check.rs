//! `viewledger check`: parses and plans everything, changes nothing.

use std::process::ExitCode;

use super::{Common, FAULT, io_runtime};
use crate::app;

/// Check the settings, and parse and plan every file in sql/; change nothing.
///
/// Every fault is one line on standard error: FILE:LINE:COLUMN: REASON. Exit code 3 when there is one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger check
  viewledger check --config viewledger.toml --sql-dir ./sql")]
pub struct Args {
    #[command(flatten)]
    common: Common,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = match args.common.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error:#}");
            return Ok(ExitCode::from(FAULT));
        }
    };
    let engine = app::planning_engine(&config)?;
    match io_runtime()?.block_on(app::declare(&config, &engine)) {
        Ok(declared) => {
            let catalog = &declared.catalog;
            let (streams, views) = (catalog.streams.len(), catalog.views.len() + catalog.ordinary.len());
            println!("{}: {streams} streams and {views} views are in order", config.sql.dir.display());
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => {
            faults.iter().for_each(|fault| eprintln!("{fault}"));
            Ok(ExitCode::from(FAULT))
        }
    }
}
