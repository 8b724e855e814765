//! `viewledger generate`: produces a load with a known truth.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use rand::Rng;

use crate::config::parse_duration;
use crate::demo::load::generator::Timeline;
use crate::demo::load::profile::Profile;
use crate::demo::load::{self, Compression, LoadConfig, LoadReport, Transactions};
use crate::runtime::{Clock, Health, Micros, Shutdown, SystemClock, spawn_thread};

/// Without a terminal, a line of progress is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The time between two records when times are fixed and no rate is given.
const DEFAULT_STEP: Duration = Duration::from_micros(100);

const TEMPLATES: [&str; 3] = [
    "{bar:40} {human_pos}/{human_len} records, {eta} left; {msg}",
    "{bar:40} {pos}/{len} s; {msg}",
    "{spinner} {elapsed}; {msg}",
];

/// Produce a realistic load to Kafka and write down the truth about it.
///
/// What the records look like is said by profiles. Topics that do not exist are created. Ctrl-C ends the load
/// in good order: what was queued is sent, and the truth file holds all that was acknowledged.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger generate --events 100000
      a hundred thousand records of all profiles in ./sql/load to the Kafka at 127.0.0.1:9092
  viewledger generate --rate 20000 --duration 5m --truth truth.csv
      20,000 records a second for five minutes, and a file of what was acknowledged
  viewledger generate --profile sql/load/video_views.toml --events 5000000 --seed 1
      one topic, at full speed, the same ids in every run
  viewledger generate --rate 1000 --transactional --abort-share 0.2
      in transactions, of which one in five is aborted")]
pub struct Args {
    /// Kafka bootstrap servers, separated by commas
    #[arg(long, default_value = "127.0.0.1:9092", env = "VIEWLEDGER_KAFKA_BROKERS")]
    brokers: String,
    /// A profile; may be given several times. Default: every file in SQL_DIR/load
    #[arg(long = "profile", value_name = "FILE")]
    profiles: Vec<PathBuf>,
    /// Where sql/ lies
    #[arg(long, value_name = "DIR", default_value = "./sql")]
    sql_dir: PathBuf,
    /// Records of all profiles together, duplicates included; without it, no end
    #[arg(long, value_name = "N")]
    events: Option<u64>,
    /// Records a second; without it, as fast as the brokers take them
    #[arg(long, value_name = "EV/S", value_parser = positive)]
    rate: Option<f64>,
    /// Stop after this time: seconds, or such as 5m
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// Same seed, same records, but for their times. Default: a new one, which is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Begin the times of the records here instead of now, such as 2026-11-01T00:00:00Z; one step a record
    #[arg(long, value_name = "INSTANT")]
    start_time: Option<String>,
    /// Write what was acknowledged to this file, as CSV
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Partitions of a topic that does not exist yet
    #[arg(long, value_name = "N_PARTITIONS", default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..))]
    create_topics: i32,
    /// Replicas of a topic that does not exist yet
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    replication: i32,
    /// Produce in transactions
    #[arg(long)]
    transactional: bool,
    /// Records a transaction
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "transactional", value_parser = clap::value_parser!(u64).range(1..))]
    transaction_size: u64,
    /// Share of the transactions that are aborted
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, requires = "transactional", value_parser = share)]
    abort_share: f64,
    /// The field whose value is the Kafka key. Default: what each profile says
    #[arg(long, value_name = "FIELD")]
    partition_key: Option<String>,
    /// Compression of the batches
    #[arg(long, value_enum, default_value_t = Compression::None)]
    compression: Compression,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let bar = progress_bar(&args);
    if bar.is_none() {
        // Another subscriber may be there already; then it is the one to use.
        let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).try_init();
    }
    let config = config(&args)?;
    let topics: Vec<&str> = config.profiles.iter().map(Profile::topic).collect();
    eprintln!("generating to {} at {}, seed {}", topics.join(", "), config.brokers, config.seed);

    let shutdown = Shutdown::default();
    end_on_signal(&shutdown);
    let mut logged_at = Instant::now();
    let report = load::run(&config, &shutdown, |report| match &bar {
        Some(bar) => show(bar, &config, report),
        None if logged_at.elapsed() >= LOG_INTERVAL => {
            logged_at = Instant::now();
            tracing::info!(sent = report.sent, acknowledged = report.acknowledged(), "generating");
        }
        None => {}
    })?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    println!("{report}");
    let whole = report.refused() == 0 && report.in_flight == 0;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn config(args: &Args) -> anyhow::Result<LoadConfig> {
    let mut profiles = Vec::new();
    for path in profile_files(args)? {
        let mut profile = Profile::from_file(&path)?;
        if let Some(field) = &args.partition_key {
            profile = profile.with_partition_key(field)?;
        }
        profiles.push(profile);
    }
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::rng().random::<u32>()));
    let mut config = LoadConfig::new(&args.brokers, profiles, seed);
    if let Some(start) = &args.start_time {
        let step = args.rate.map_or(DEFAULT_STEP, |rate| Duration::from_secs_f64(rate.recip()));
        config.timeline = Timeline::Fixed { start: instant(start)?, step };
    }
    config.records = args.events;
    config.rate = args.rate;
    config.duration = args.duration;
    config.truth.clone_from(&args.truth);
    config.partitions = args.create_topics;
    config.replication = args.replication;
    config.compression = args.compression;
    config.transactions = args
        .transactional
        .then_some(Transactions { records: args.transaction_size, abort_share: args.abort_share });
    Ok(config)
}

fn profile_files(args: &Args) -> anyhow::Result<Vec<PathBuf>> {
    if !args.profiles.is_empty() {
        return Ok(args.profiles.clone());
    }
    let directory = args.sql_dir.join("load");
    let entries = std::fs::read_dir(&directory).with_context(|| {
        format!("cannot read the profiles in {}; give --profile or --sql-dir", directory.display())
    })?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    ensure!(!files.is_empty(), "no .toml profile in {}; give --profile or --sql-dir", directory.display());
    // The order decides who draws what from the seed, and must not depend on the file system.
    files.sort();
    Ok(files)
}

/// An RFC 3339 instant that has passed: records from the future would be rejected.
fn instant(text: &str) -> anyhow::Result<Micros> {
    let at = chrono::DateTime::parse_from_rfc3339(text)
        .with_context(|| format!("--start-time {text} is no instant such as 2026-11-01T00:00:00Z"))?
        .timestamp_micros();
    if at > SystemClock.now() {
        bail!("--start-time {text} lies in the future; its records would be rejected");
    }
    Ok(at)
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number > 0.0 && number.is_finite() { Ok(number) } else { Err("must be above 0".to_owned()) }
}

fn time(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
    seconds.or_else(|| parse_duration(text)).ok_or_else(|| "write it like 90, 90s or 5m".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("must lie between 0 and 1".to_owned()) }
}

/// A bar of records when their number is known, else of seconds, else a spinner; none without a terminal.
fn progress_bar(args: &Args) -> Option<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return None;
    }
    let length = args.events.or(args.duration.map(|duration| duration.as_secs()));
    let [of_records, of_seconds, endless] = TEMPLATES;
    let template = match (args.events, args.duration) {
        (Some(_), _) => of_records,
        (None, Some(_)) => of_seconds,
        (None, None) => endless,
    };
    let style = ProgressStyle::with_template(template).expect("the templates are tested");
    let bar = length.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    Some(bar.with_style(style))
}

fn show(bar: &ProgressBar, config: &LoadConfig, report: &LoadReport) {
    if config.records.is_some() || config.duration.is_none() {
        bar.set_position(report.acknowledged());
    } else {
        bar.set_position(report.elapsed.as_secs());
    }
    bar.set_message(format!("{} acknowledged, {} in flight", report.acknowledged(), report.in_flight));
}

/// The first Ctrl-C or SIGTERM ends the load in good order, the second at once.
fn end_on_signal(shutdown: &Shutdown) {
    let (shutdown, health) = (shutdown.clone(), Health::default());
    spawn_thread("signals", &health.clone(), move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else {
            return health.poison("signals", "no runtime; end the load with SIGKILL");
        };
        runtime.block_on(async {
            if signalled().await.is_ok() {
                eprintln!("ending: waiting for acknowledgements; once more to end at once");
                shutdown.trigger();
                if signalled().await.is_ok() {
                    std::process::exit(1);
                }
            }
        });
    });
}

async fn signalled() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn configured(flags: &[&str]) -> anyhow::Result<LoadConfig> {
        let sql = concat!(env!("CARGO_MANIFEST_DIR"), "/sql");
        let line = ["generate", "--sql-dir", sql].into_iter().chain(flags.iter().copied());
        config(&Line::try_parse_from(line)?.args)
    }

    #[test]
    fn all_profiles_of_the_directory_are_the_default() {
        let config = configured(&[]).unwrap();
        let topics: Vec<_> = config.profiles.iter().map(Profile::topic).collect();
        assert_eq!(topics, ["ad-views", "user-sessions", "video-views"]);
        assert_eq!((config.partitions, config.records, config.truth), (12, None, None));
    }

    #[test]
    fn flags_reach_the_load() {
        let flags = ["--events", "7", "--duration", "90", "--seed", "3", "--transactional", "--abort-share", "0.5"];
        let config = configured(&flags).unwrap();
        assert_eq!((config.records, config.seed), (Some(7), 3));
        assert_eq!(config.duration, Some(Duration::from_secs(90)));
        assert_eq!(config.transactions.map(|of| (of.records, of.abort_share)), Some((1000, 0.5)));
        let duration = configured(&["--duration", "5m"]).unwrap().duration;
        assert_eq!(duration, Some(Duration::from_secs(300)));
    }

    #[test]
    fn wrong_flags_say_what_is_wrong() {
        for (flags, expected) in [
            (["--rate", "0"], "must be above 0"),
            (["--abort-share", "2"], "must lie between 0 and 1"),
            (["--abort-share", "0.5"], "--transactional"),
            (["--duration", "soon"], "write it like 90"),
            (["--start-time", "2999-01-01T00:00:00Z"], "lies in the future"),
            (["--partition-key", "nothing"], "there is no field nothing"),
        ] {
            let error = format!("{:#}", configured(&flags).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn every_template_of_the_bar_is_valid() {
        for template in TEMPLATES {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
