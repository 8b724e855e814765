//! Ingest of a pre-filled topic, to archived and queryable, beside a bare rdkafka consumer of the same topic.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio_postgres::Client;
use viewledger::config::Config;
use viewledger::demo::load::{self, LoadConfig};
use viewledger::kafka::consumer::client_config;
use viewledger::runtime::Shutdown;

use crate::TOPIC;
use crate::process::{Server, broker, median, setting, sql_of, work_dir};
use crate::records::{PARTITIONS, profile};

pub const STREAM: &str = "video_views";
pub const VIEWS: [(&str, &str); 4] = [
    ("video_views", "total_views"),
    ("video_views_hourly", "total_views"),
    ("country_device_daily", "total_views"),
    ("user_daily", "total_views"),
];

pub fn run() -> Result<()> {
    let events: u64 = setting("EVENTS", 5_000_000);
    let pairs: usize = setting("PAIRS", 3);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let shutdown = Shutdown::default();
    let broker = runtime.block_on(broker(work_dir(&format!("ingest-{events}")).join("broker"), &shutdown))?;
    let brokers = broker.bootstrap();
    prefill(&brokers, events)?;

    println!("ingest of {events} events from {PARTITIONS} partitions, a bare consumer and the server in turn");
    let mut ratios = Vec::new();
    for pair in 1..=pairs {
        let bare = bare_rate(&brokers)?;
        let served = runtime.block_on(served(&brokers, events))?;
        let ratio = served.rate / bare;
        println!(
            "pair {pair}: bare {:.0}/s, server {:.0}/s, ratio {ratio:.3}, server's peak memory {} MiB",
            bare,
            served.rate,
            served.memory_peak >> 20
        );
        println!("  CPU seconds by thread: {}", served.threads);
        ratios.push(ratio);
    }
    println!("median ratio {:.3}", median(&ratios));
    shutdown.trigger();
    runtime.block_on(broker.stopped());
    Ok(())
}

/// Fills the topic unless an earlier run has.
fn prefill(brokers: &str, events: u64) -> Result<()> {
    let consumer: BaseConsumer = client(brokers).create()?;
    if total(&consumer)? >= events {
        return Ok(());
    }
    ensure!(total(&consumer)? == 0, "the topic is half filled; delete {}", work_dir("").display());
    let mut config = LoadConfig::new(brokers, vec![profile()], 1);
    config.records = Some(events);
    let report = load::run(&config, &Shutdown::default(), |_| {})?;
    println!("prefill: {report}");
    ensure!(report.acknowledged() == events, "the topic is not filled");
    Ok(())
}

fn client(brokers: &str) -> rdkafka::ClientConfig {
    let mut kafka = Config::defaults().kafka;
    brokers.clone_into(&mut kafka.brokers);
    client_config(&kafka)
}

fn total(consumer: &BaseConsumer) -> Result<u64> {
    let mut total = 0;
    for partition in 0..PARTITIONS as i32 {
        let (low, high) = consumer.fetch_watermarks(TOPIC, partition, Duration::from_secs(10))?;
        total += u64::try_from(high - low)?;
    }
    Ok(total)
}

/// The peer, in this process: reads the topic to its end and counts.
pub fn bare(brokers: &str) -> Result<()> {
    let consumer: BaseConsumer = client(brokers).create()?;
    let total = total(&consumer)?;
    let began = Instant::now();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS as i32 {
        assignment.add_partition_offset(TOPIC, partition, Offset::Offset(0))?;
    }
    consumer.assign(&assignment)?;
    let (mut records, mut bytes) = (0, 0);
    while records < total {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            records += 1;
            bytes += message?.payload().map_or(0, <[u8]>::len);
        }
    }
    println!("{records} {bytes} {}", began.elapsed().as_secs_f64());
    Ok(())
}

/// Records a second of the peer, in a process of its own.
fn bare_rate(brokers: &str) -> Result<f64> {
    let output = Command::new(std::env::current_exe()?).args(["bare", brokers]).output()?;
    ensure!(output.status.success(), "the bare consumer failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let fields: Vec<f64> = text.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    ensure!(fields.len() == 3, "the bare consumer said: {text}");
    Ok(fields[0] / fields[2])
}

struct Served {
    rate: f64,
    memory_peak: u64,
    threads: String,
}

/// From the start of the process, on an empty data directory, until everything is archived and queryable.
async fn served(brokers: &str, events: u64) -> Result<Served> {
    let data_dir = work_dir("ingest-data");
    let _ = std::fs::remove_dir_all(&data_dir);
    std::fs::create_dir_all(&data_dir)?;
    let began = Instant::now();
    let mut server = Server::start_with(brokers, &data_dir, &sql_of(STREAM, &VIEWS.map(|(view, _)| view))?)?;
    let client = server.connect().await?;
    loop {
        let passed =
            number(&client, "SELECT sum(passed)::bigint FROM system.conservation WHERE stream = 'video_views'");
        let archived = "SELECT (archived_events + archived_duplicates + archived_quarantined)::bigint \
                        FROM system.streams WHERE stream = 'video_views'";
        if passed.await? == events && number(&client, archived).await? == events {
            break;
        }
        ensure!(began.elapsed() < Duration::from_secs(900), "not finished after 15 minutes");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let threads: Vec<String> = server
        .thread_seconds()?
        .into_iter()
        .take(9)
        .map(|(name, seconds)| format!("{name} {seconds:.1}"))
        .collect();
    let counted =
        number(&client, "SELECT sum(counted)::bigint FROM system.conservation WHERE stream = 'video_views'")
            .await?;
    for (view, column) in VIEWS {
        let sum = number(&client, &format!("SELECT sum({column})::bigint FROM {view}")).await?;
        ensure!(sum == counted, "view {view} counts {sum}, the ledger {counted}");
    }
    let records = number(&client, "SELECT count(*) FROM raw.video_views").await?;
    ensure!(records == counted, "raw.video_views holds {records}, the ledger {counted}");
    Ok(Served { rate: events as f64 / seconds, memory_peak: server.memory_peak()?, threads: threads.join(", ") })
}

async fn number(client: &Client, sql: &str) -> Result<u64> {
    let row = client.query_one(sql, &[]).await.with_context(|| sql.to_owned())?;
    Ok(row.get::<_, Option<i64>>(0).unwrap_or_default().try_into()?)
}
