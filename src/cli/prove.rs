//! `viewledger prove`: the proof that one record was in the archive when it was sealed.

use std::process::ExitCode;

use super::{Common, FAULT, existing_storage, io_runtime, log_to_stderr};
use crate::audit::AuditError;
use crate::audit::prove::prove;

/// Print the proof that a record is in the archive, as JSON.
///
/// Whoever has it and the public key needs nothing else: docs/verify_proof.py checks it with Python alone.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger prove --stream video_views --partition 3 --offset 4711 > proof.json
  python3 docs/verify_proof.py --key $PUBLIC_KEY proof.json")]
pub struct Args {
    #[arg(long, value_name = "NAME")]
    stream: String,
    #[arg(long, value_name = "N")]
    partition: i32,
    #[arg(long, value_name = "N")]
    offset: i64,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    log_to_stderr(&config);
    let storage = existing_storage(&config)?;
    match io_runtime()?.block_on(prove(&storage, &args.stream, args.partition, args.offset)) {
        Ok(proof) => {
            println!("{}", serde_json::to_string_pretty(&proof)?);
            Ok(ExitCode::SUCCESS)
        }
        Err(AuditError::Diverges(fault)) => {
            eprintln!("{fault}");
            Ok(ExitCode::from(FAULT))
        }
        Err(error) => Err(error.into()),
    }
}
