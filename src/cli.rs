//! The command line: one file a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check found a fault.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::runtime::{Health, Shutdown, spawn};
use crate::storage::Storage;

pub mod check;
pub mod demo;
pub mod doctor;
pub mod generate;
pub mod health;
pub mod password;
pub mod prove;
pub mod refresh;
pub mod seal;
pub mod serve;
pub mod verify;

/// Exit code when a check found a fault.
const FAULT: u8 = 3;

/// Counts views people are paid for: Kafka in, exact merged SQL views out.
#[derive(Debug, Parser)]
#[command(name = "viewledger", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Serve(serve::Args),
    Generate(generate::Args),
    Refresh(refresh::Args),
    Check(check::Args),
    Doctor(doctor::Args),
    Health(health::Args),
    Verify(verify::Args),
    Seal(seal::Args),
    Prove(prove::Args),
    Password(password::Args),
}

/// Parses the arguments, runs the command and reports its failure on standard error.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Refresh(args) => refresh::run(args),
        Command::Check(args) => check::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Health(args) => health::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Seal(args) => seal::run(args),
        Command::Prove(args) => prove::run(args),
        Command::Password(args) => password::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("viewledger: {error:#}");
        ExitCode::FAILURE
    })
}

/// Settings that every command takes as flags too.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Settings; see viewledger.example.toml for every key and its default
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory for data, lock and spill files [default: ./data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Directory with streams/*.sql and views/*.sql [default: ./sql]
    #[arg(long, value_name = "DIR")]
    sql_dir: Option<PathBuf>,
    /// Port of the Postgres wire [default: 5433]
    #[arg(long, value_name = "PORT")]
    pg_port: Option<u16>,
    /// Port of HTTP: statements, endpoints, health and metrics [default: 8080]
    #[arg(long, value_name = "PORT")]
    http_port: Option<u16>,
    /// Port of Arrow Flight SQL [default: 50051]
    #[arg(long, value_name = "PORT")]
    flight_port: Option<u16>,
}

impl Common {
    /// Defaults < file < environment < flags.
    fn load(&self) -> anyhow::Result<Config> {
        let mut config = Config::load(self.config.as_deref(), std::env::vars())?;
        if let Some(dir) = &self.data_dir {
            config.storage.data_dir.clone_from(dir);
        }
        if let Some(dir) = &self.sql_dir {
            config.sql.dir.clone_from(dir);
        }
        config.server.pg_port = self.pg_port.unwrap_or(config.server.pg_port);
        config.server.http_port = self.http_port.unwrap_or(config.server.http_port);
        config.server.flight_port = self.flight_port.unwrap_or(config.server.flight_port);
        Ok(config)
    }
}

/// Writes the log to standard error, as the settings say; `RUST_LOG` wins.
fn log_to_stderr(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .or_else(|_| tracing_subscriber::EnvFilter::try_new(&config.log.level))
        .unwrap_or_default();
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // Another subscriber may be there already; then it is the one to use.
    let _ = if config.log.format == "json" { log.json().try_init() } else { log.try_init() };
}

/// The storage of `config`, which must be there.
fn existing_storage(config: &Config) -> anyhow::Result<Storage> {
    Ok(Storage::open_existing(&config.storage.location(), config.storage.options.clone().into_iter())?)
}

/// Triggers `shutdown` on Ctrl-C and SIGTERM. A second signal ends the process at once: nothing can be lost by it.
fn end_on_signal(shutdown: &Shutdown, health: &Health) {
    let shutdown = shutdown.clone();
    spawn("signals", health, async move {
        signal().await;
        eprintln!("ending; once more to end at once");
        shutdown.trigger();
        signal().await;
        std::process::exit(1);
    });
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        },
        Err(_) => {
            let _ = tokio::signal::ctrl_c().await;
        }
    }
}

/// The runtime of listeners and storage. Queries and batch work have threads of their own.
fn io_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("io").enable_all().build()
}
