//! `viewledger serve`: the server on your Kafka.

use std::process::ExitCode;

use super::{Common, end_on_signal, io_runtime, log_to_stderr};
use crate::app::listen;
use crate::runtime::{Health, Shutdown};

/// Read Kafka, keep the archive, refresh the views and answer SQL.
///
/// After a crash, start it again: it goes on where the archive's last commit ends. At SIGHUP it reads the files in `sql/`
/// again and follows what changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger serve --config viewledger.toml
  VIEWLEDGER_KAFKA_BROKERS=kafka-1:9092,kafka-2:9092 viewledger serve --data-dir /var/lib/viewledger
  psql -h 127.0.0.1 -p 5433 -U analyst -d viewledger")]
pub struct Args {
    #[command(flatten)]
    common: Common,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    log_to_stderr(&config);
    io_runtime()?.block_on(async {
        let shutdown = Shutdown::default();
        end_on_signal(&shutdown, &Health::default());
        let ready = |at: listen::Addresses| {
            tracing::info!(postgres = %at.pg, flight = %at.flight, http = %at.http, "ready");
        };
        listen::serve(config, shutdown, ready).await
    })?;
    Ok(ExitCode::SUCCESS)
}
