//! `viewledger refresh`: makes the next generation, in the running server or, when none runs, right here.

use std::fmt::Display;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::{Common, end_on_signal, io_runtime, log_to_stderr, signal};
use crate::app::Core;
use crate::batch::attempt::Progress;
use crate::config::Config;
use crate::runtime::{Health, Shutdown};
use crate::storage::lock::ProcessLock;

/// Make the next generation of batch views, up to the newest archive commit.
///
/// All views stand at one frontier, so all are brought up to date. A server that runs on the data directory does it;
/// when none runs, this command does. Ctrl-C cancels it and leaves nothing behind.
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

/// How often progress is looked at, and told where there is no terminal.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const TELL_INTERVAL: Duration = Duration::from_secs(5);
const BAR: &str = "{prefix} {wide_bar} {human_pos} of {human_len} records, {msg} read, {per_sec}, {eta} left";

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    log_to_stderr(&config);
    let began = Instant::now();
    let free = ProcessLock::acquire(&config.storage.data_dir).map(drop);
    let tell = |generation: &dyn Display| {
        println!("generation {generation} published in {:.1} s", began.elapsed().as_secs_f64());
    };
    io_runtime()?.block_on(async {
        match free {
            Ok(()) => here(config, &args, tell).await,
            Err(_) => in_server(&config, &args).await.map(|generation| tell(&generation)),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn here(config: Config, args: &Args, tell: impl Fn(&dyn Display)) -> anyhow::Result<()> {
    let shutdown = Shutdown::default();
    end_on_signal(&shutdown, &Health::default());
    let core = Core::open(config, shutdown).await?;
    let names = Arc::clone(&core.cell.load().names);
    let full = match &args.view {
        Some(view) => match names.view(view) {
            None => bail!("no view {view}; there are {}", names.view_names().join(", ")),
            Some((instance, _)) if args.full => vec![instance.clone()],
            Some(_) => Vec::new(),
        },
        None if args.full => names.views.keys().cloned().collect(),
        None => Vec::new(),
    };
    drop(names);
    let mut shown = Shown::default();
    let refresh = core.refresher.refresh(&core.cell, full);
    tokio::pin!(refresh);
    loop {
        tokio::select! {
            made = &mut refresh => {
                drop(shown);
                tell(&made?);
                // What was published is compared before the process ends.
                drop(core.refresher.pause().await);
                return Ok(());
            }
            () = tokio::time::sleep(LOOK_INTERVAL) => {
                if let Some(running) = core.refresher.refreshes().all().pop().filter(|last| last.ended.is_none()) {
                    let Progress { view, rows_done, rows, bytes_read, .. } = running.progress;
                    shown.show(view.as_deref(), rows_done, rows, bytes_read);
                }
            }
        }
    }
}

/// Has the server do it, and shows how far it is. Ctrl-C cancels it there.
async fn in_server(config: &Config, args: &Args) -> anyhow::Result<String> {
    let (client, watcher) = (connect(config).await?, connect(config).await?);
    // It may take as long as it takes.
    client.batch_execute("SET statement_timeout = 0").await?;
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
        let refresh = format!("REFRESH MATERIALIZED VIEW \"{quoted}\"{data}");
        tokio::select! {
            done = client.batch_execute(&refresh) => done?,
            // Goes on until the other branches end it.
            () = watch(&watcher) => {}
            () = signal() => {
                client.cancel_token().cancel_query(tokio_postgres::NoTls).await?;
                bail!("cancelled: nothing was published");
            }
        }
    }
    let row = client.query_one("SELECT max(generation)::bigint FROM system.generations", &[]).await?;
    Ok(row.get::<_, i64>(0).to_string())
}

async fn connect(config: &Config) -> anyhow::Result<tokio_postgres::Client> {
    let mut client = tokio_postgres::Config::new();
    client.host(config.server.bind.to_string()).port(config.server.pg_port).user("operator").dbname("viewledger");
    if let Some(password) = config.passwords.get("OPERATOR") {
        client.password(password.reveal());
    }
    let (client, connection) = client.connect(tokio_postgres::NoTls).await.with_context(|| {
        format!(
            "a server holds {}, but does not answer at port {}; give its --pg-port",
            config.storage.data_dir.display(),
            config.server.pg_port
        )
    })?;
    tokio::spawn(connection);
    Ok(client)
}

/// Shows how far the running refresh is, for as long as it is polled.
async fn watch(client: &tokio_postgres::Client) {
    let sql = "SELECT view, rows_done::bigint, rows::bigint, bytes_read::bigint FROM system.refreshes WHERE state = 'running'";
    let mut shown = Shown::default();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        // That it cannot be shown is no reason to fail.
        let Ok(Some(row)) = client.query_opt(sql, &[]).await else { continue };
        let count =
            |column: usize| row.get::<_, Option<i64>>(column).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        shown.show(row.get::<_, Option<String>>(0).as_deref(), count(1), count(2), count(3));
    }
}

/// Progress: a bar on a terminal, now and then a line of the log elsewhere.
#[derive(Default)]
struct Shown {
    bar: Option<ProgressBar>,
    told: Option<Instant>,
}

impl Shown {
    fn show(&mut self, view: Option<&str>, rows_done: u64, rows: u64, bytes_read: u64) {
        let view = view.unwrap_or("publishing");
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template(BAR).expect("the template is tested");
                ProgressBar::new(rows).with_style(style)
            });
            bar.set_length(rows);
            bar.set_position(rows_done);
            bar.set_prefix(view.to_owned());
            bar.set_message(HumanBytes(bytes_read).to_string());
        } else if self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            self.told = Some(Instant::now());
            tracing::info!(view, rows_done, rows, bytes_read, "refreshing");
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_template_of_the_bar_is_valid() {
        ProgressStyle::with_template(BAR).unwrap();
    }
}
