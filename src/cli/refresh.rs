//! `viewledger refresh`: makes the next generation, in the running server or, when none runs, right here.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};

use super::{Common, end_on_signal, io_runtime, log_to_stderr};
use crate::app::Core;
use crate::config::Config;
use crate::runtime::{Health, Shutdown};
use crate::storage::lock::ProcessLock;

/// Make the next generation of batch views, up to the newest archive commit.
///
/// All views stand at one frontier, so all are brought up to date. A server that runs on the data directory does it;
/// when none runs, this command does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger refresh
  viewledger refresh clicks_daily --full")]
pub struct Args {
    /// The view to compute anew with --full; without it, every view
    view: Option<String>,
    /// Compute from the whole archive, not only from what is new
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    log_to_stderr(&config);
    let began = Instant::now();
    let free = ProcessLock::acquire(&config.storage.data_dir).map(drop);
    let generation = io_runtime()?.block_on(async {
        match free {
            Ok(()) => here(config, &args).await,
            Err(_) => in_server(&config, &args).await,
        }
    })?;
    println!("generation {generation} published in {:.1} s", began.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

async fn here(config: Config, args: &Args) -> anyhow::Result<String> {
    let shutdown = Shutdown::default();
    end_on_signal(&shutdown, &Health::default());
    let core = Core::open(config, shutdown).await?;
    let views = &core.declared.names.views;
    let full = match &args.view {
        Some(view) if !views.contains_key(view) => bail!("no view {view}; there are {}", names(views.keys())),
        Some(view) if args.full => vec![view.clone()],
        None if args.full => views.keys().cloned().collect(),
        _ => Vec::new(),
    };
    Ok(core.refresher.refresh(&core.cell, full).await?.to_string())
}

fn names<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(String::as_str).collect::<Vec<_>>().join(", ")
}

async fn in_server(config: &Config, args: &Args) -> anyhow::Result<String> {
    let mut client = tokio_postgres::Config::new();
    client.host(config.server.bind.to_string()).port(config.server.pg_port).user("operator").dbname("viewledger");
    let (client, connection) = client.connect(tokio_postgres::NoTls).await.with_context(|| {
        format!(
            "a server holds {}, but does not answer at port {}; give its --pg-port",
            config.storage.data_dir.display(),
            config.server.pg_port
        )
    })?;
    tokio::spawn(connection);
    let text = |row: &tokio_postgres::Row| row.get::<_, String>(0);
    let all = client.query("SELECT view FROM system.views ORDER BY view", &[]).await?;
    let views: Vec<String> = match &args.view {
        Some(view) => vec![view.clone()],
        None if args.full => all.iter().map(text).collect(),
        None => all.iter().map(text).take(1).collect(),
    };
    let data = if args.full { " WITH FULL DATA" } else { "" };
    for view in views {
        let quoted = view.replace('"', "\"\"");
        client.batch_execute(&format!("REFRESH MATERIALIZED VIEW \"{quoted}\"{data}")).await?;
    }
    let row = client.query_one("SELECT max(generation)::bigint FROM system.generations", &[]).await?;
    Ok(row.get::<_, i64>(0).to_string())
}
