//! `viewledger demo`: broker, load and server in one process.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::{Common, end_on_signal, io_runtime, log_to_stderr};
use crate::app::listen::{self, Addresses};
use crate::catalog::loader;
use crate::config::Config;
use crate::demo::broker::{Broker, BrokerConfig};
use crate::demo::load::profile::Profile;
use crate::demo::load::{self, LoadConfig};
use crate::runtime::{Health, Shutdown, spawn_thread};

const PARTITIONS: i32 = 12;
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);

/// Try it: an embedded broker, a realistic load and the server, in one process.
///
/// Everything stays in the data directory; start it again on the same one and it goes on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger demo
  viewledger demo --rate 20000 --data-dir /tmp/viewledger
  psql -h 127.0.0.1 -p 5433 -U analyst -d viewledger")]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Records produced a second, over all topics
    #[arg(long, value_name = "EV/S", default_value_t = 2000.0)]
    rate: f64,
    /// Port of the embedded broker; 0 takes any free port
    #[arg(long, value_name = "PORT", default_value_t = 9092)]
    broker_port: u16,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut config = args.common.load()?;
    config.refresh.interval_max = REFRESH_INTERVAL;
    // A newcomer reads the screen, not a log.
    if std::env::var_os("RUST_LOG").is_none() && config.log.level == "info" {
        config.log.level = "warn,librdkafka=off,viewledger::demo=error".to_owned();
    }
    log_to_stderr(&config);
    io_runtime()?.block_on(demo(config, &args))?;
    Ok(ExitCode::SUCCESS)
}

async fn demo(mut config: Config, args: &Args) -> anyhow::Result<()> {
    // The broker ends last: load and server say goodbye to it.
    let (health, shutdown, broker_end) = (Health::default(), Shutdown::default(), Shutdown::default());
    end_on_signal(&shutdown, &health);
    eprintln!("viewledger demo: data in {}", config.storage.data_dir.display());
    let broker = Broker::start(
        BrokerConfig {
            listen: (Ipv4Addr::LOCALHOST, args.broker_port).into(),
            data_dir: config.storage.data_dir.join("broker"),
            auto_create_partitions: None,
        },
        health.clone(),
        broker_end.clone(),
    )
    .await
    .context("cannot start the embedded broker")?;
    let catalog = loader::load(&config.sql.dir).map_err(|faults| {
        anyhow::anyhow!("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })?;
    for stream in catalog.streams.values() {
        broker.create_topic(&stream.topic, PARTITIONS).await?;
    }
    config.kafka.brokers = broker.bootstrap();

    let mut load = LoadConfig::new(broker.bootstrap(), profiles(&config)?, rand::random());
    load.rate = Some(args.rate);
    let stop = shutdown.clone();
    let generator = spawn_thread("load", &health, move || {
        if let Err(error) = load::run(&load, &stop, |_| {}) {
            tracing::error!(error = crate::runtime::chain(&error), "the load has ended");
        }
    });
    let brokers = broker.bootstrap();
    let rate = args.rate;
    let served = listen::serve(config, shutdown.clone(), move |at| greet(at, &brokers, rate)).await;
    shutdown.trigger();
    tokio::task::spawn_blocking(move || drop(generator.join())).await?;
    broker_end.trigger();
    broker.stopped().await;
    served
}

fn profiles(config: &Config) -> anyhow::Result<Vec<Profile>> {
    let dir = config.sql.dir.join("load");
    let entries = std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    files.iter().map(|file| Ok(Profile::from_file(file)?)).collect()
}

fn greet(at: Addresses, brokers: &str, rate: f64) {
    let (host, port) = (at.pg.ip(), at.pg.port());
    let broker = format!("{brokers} (embedded, {rate} records a second)");
    println!(
        "\n  Kafka     {broker}\n  Postgres  {host}:{port}\n  Flight    grpc://{}\n  \
         HTTP      http://{}/  the console; /videos  /openapi.json  /readyz  /metrics\n\n\
         Ask it:\n  \
         psql -h {host} -p {port} -U analyst -d viewledger\n    \
         \\dt *.*                                  what there is\n    \
         SELECT * FROM system.freshness;          how far behind\n    \
         SELECT * FROM system.conservation;       where every offset went\n\n\
         Ctrl-C ends it; the data stays.",
        at.flight, at.http
    );
}
