//! `viewledger seal`: signs what the archive is now, and copies seals for others to keep.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use super::{Common, FAULT, existing_storage, io_runtime, log_to_stderr};
use crate::audit::AuditError;
use crate::audit::export::{Exported, export};
use crate::audit::key::SigningKey;
use crate::audit::seal::Seal;
use crate::audit::sealer::{Sealer, Sealing};
use crate::config::Config;
use crate::runtime::SystemClock;
use crate::storage::Storage;

/// Sign what the archive is now. A server that runs on the data directory goes on; it makes seals by itself, too.
///
/// A seal proves something against those who keep the archive only where they cannot reach it: copy seals elsewhere.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger seal
  viewledger seal --export /mnt/auditor/seals
  viewledger seal --export-only /mnt/auditor/seals")]
pub struct Args {
    /// Then copy all seals into this directory that are not there yet
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Make no seal, and need no key: only copy
    #[arg(long, value_name = "DIR", conflicts_with = "export")]
    export_only: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    log_to_stderr(&config);
    io_runtime()?.block_on(async {
        let done = match &args.export_only {
            Some(dir) => copy(&existing_storage(&config)?, dir).await,
            None => make(&config, args.export.as_ref()).await?,
        };
        match done {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(AuditError::Diverges(fault)) => {
                eprintln!("{fault}");
                Ok(ExitCode::from(FAULT))
            }
            Err(error) => Err(error.into()),
        }
    })
}

async fn make(config: &Config, dir: Option<&PathBuf>) -> anyhow::Result<Result<(), AuditError>> {
    let storage = existing_storage(config)?;
    let key = SigningKey::open_or_create(&config.seal_key_file())?;
    println!("public key {}", key.public());
    let sealer = Sealer { storage: storage.clone(), key, clock: Arc::new(SystemClock) };
    match sealer.seal().await {
        Ok(Sealing::Made(seal)) => show(&seal),
        Ok(Sealing::NothingNew(Some(seal))) => println!("nothing new since seal {}", seal.statement.seal),
        Ok(Sealing::NothingNew(None)) => println!("there is nothing to seal"),
        Err(error) => return Ok(Err(error)),
    }
    match dir {
        Some(dir) => Ok(copy(&storage, dir).await),
        None => Ok(Ok(())),
    }
}

fn show(seal: &Seal) {
    println!("seal {}", seal.statement.seal);
    for (stream, sealed) in &seal.statement.streams {
        println!("  {stream}: {} records in {} epochs, root {}", sealed.records, sealed.epochs, sealed.root);
    }
}

async fn copy(storage: &Storage, dir: &Path) -> Result<(), AuditError> {
    let Exported { written, kept } = export(storage, dir).await?;
    println!("{}: {written} seals copied, {kept} were there", dir.display());
    Ok(())
}
