//! `viewledger check`: parses and plans everything, changes nothing.

use std::process::ExitCode;

use super::{Common, FAULT, io_runtime};
use crate::app::data::{self, Inspection};
use crate::app::{self, Declared, recompute};
use crate::catalog::Fault;
use crate::config::Config;
use crate::runtime::chain;
use crate::storage::Storage;

/// Check the settings, parse and plan every file in sql/, and compare streams and tables with what is stored; change
/// nothing.
///
/// Every fault is one line on standard error: FILE:LINE:COLUMN: REASON. Exit code 3 when there is one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger check
  viewledger check --config viewledger.toml --sql-dir ./sql
  viewledger check --data")]
pub struct Args {
    /// Also read every file of the archives, the newest generation and the tables, and compare it with its SHA-256
    #[arg(long)]
    data: bool,
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
    let runtime = io_runtime()?;
    let declared = runtime.block_on(app::declare(&config, &engine)).and_then(|declared| {
        let mut faults = runtime.block_on(recompute::faults(&config, &engine, &declared));
        faults.extend(runtime.block_on(compare(&config, &declared)));
        if faults.is_empty() { Ok(declared) } else { Err(faults) }
    });
    match declared {
        Ok(declared) => {
            let catalog = &declared.catalog;
            let (streams, tables) = (catalog.streams.len(), catalog.tables.len());
            let views = catalog.views.len() + catalog.ordinary.len();
            let endpoints = catalog.endpoints.len();
            let roles = match catalog.roles.iter().count() {
                0 => "no roles, so that everybody may do everything".to_owned(),
                roles => format!("{roles} roles"),
            };
            println!(
                "{}: {streams} streams, {tables} tables, {views} views and {endpoints} endpoints are in order; {roles}",
                config.sql.dir.display()
            );
            if args.data { runtime.block_on(inspect(&config, &declared)) } else { Ok(ExitCode::SUCCESS) }
        }
        Err(faults) => {
            faults.iter().for_each(|fault| eprintln!("{fault}"));
            Ok(ExitCode::from(FAULT))
        }
    }
}

async fn inspect(config: &Config, declared: &Declared) -> anyhow::Result<ExitCode> {
    let storage = Storage::open(&config.storage.location(), config.storage.options.clone().into_iter())?;
    let Inspection { files, bytes, faults } = data::inspect(&storage, declared).await?;
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    println!("{storage}: {files} files with {bytes} bytes were read, {} are damaged", faults.len());
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAULT) })
}

/// Holds the declarations against the archives that there are.
async fn compare(config: &Config, declared: &Declared) -> Vec<Fault> {
    let location = config.storage.location();
    let absent = !location.contains("://") && !std::path::Path::new(&location).exists();
    if absent {
        return Vec::new();
    }
    let compared = match Storage::open(&location, config.storage.options.clone().into_iter()) {
        Ok(storage) => app::evolution_faults(&storage, declared).await,
        Err(error) => Err(error.into()),
    };
    compared.unwrap_or_else(|error| {
        // Definitions are checked where the archive is out of reach, too.
        eprintln!("note: not compared with the archive at {location}: {}", chain(error.as_ref()));
        Vec::new()
    })
}
