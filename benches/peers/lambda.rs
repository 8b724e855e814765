//! What refreshes, the delta and a restart cost: by video and hour beside DuckDB, with the keys told apart, with 1% of
//! new records, over ten times the history, and what queries feel of it.
//!
//! Every step of ours runs in a process of its own, so that its memory is its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use viewledger::app::{Core, restore};
use viewledger::archive::{Kind, dedup};
use viewledger::config::Config;
use viewledger::runtime::Shutdown;

use crate::fill;
use crate::process::{Server, median, memory_peak, quantile, setting, work_dir};
use crate::records::{STREAM, sql_dir};
use crate::refresh::{Peer, duckdb, python};

const VIEW: &str = "video_views_hourly";
/// Nothing listens there: reads go on without a broker.
const NO_BROKER: &str = "127.0.0.1:9";
/// Queries of each kind, at least.
const QUERIES: usize = 500;

pub fn run() -> Result<()> {
    runtime()?.block_on(measure())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

async fn measure() -> Result<()> {
    let events: u64 = setting("EVENTS", 20_000_000);
    let pairs: usize = setting("PAIRS", 3);
    let scratch = work_dir("lambda");
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch)?;
    let large = copied(&filled(events).await?, &scratch.join("large"))?;
    let small = copied(&filled(events / 10).await?, &scratch.join("small"))?;
    // All views, so that the next steps find a generation.
    child("new", &large)?;
    child("new", &small)?;

    beside_duckdb(&large, pairs)?;
    incremental(&large, &small, events / 100, pairs).await?;
    latency(&large).await?;
    delta(&scratch, events / 2).await
}

/// A directory with so many events, kept between runs.
async fn filled(events: u64) -> Result<PathBuf> {
    let data_dir = work_dir(&format!("refresh-{events}"));
    std::fs::create_dir_all(&data_dir)?;
    fill::archive(&config(&data_dir), events).await?;
    Ok(data_dir)
}

fn config(data_dir: &Path) -> Config {
    let mut config = Config::defaults();
    config.storage.data_dir = data_dir.to_owned();
    config.sql.dir = sql_dir();
    config.refresh.threads = 2;
    config
}

/// By hard links: no file of ours is changed after it was written.
fn copied(from: &Path, to: &Path) -> Result<PathBuf> {
    let done = Command::new("cp").arg("-al").arg(from).arg(to).status()?;
    ensure!(done.success(), "cannot copy {}", from.display());
    Ok(to.to_owned())
}

fn child(step: &str, data_dir: &Path) -> Result<Value> {
    let output = Command::new(std::env::current_exe()?).args(["lambda", step]).arg(data_dir).output()?;
    ensure!(output.status.success(), "{step} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn number(told: &Value, name: &str) -> Result<f64> {
    told[name].as_f64().with_context(|| format!("no {name} in {told}"))
}

/// One step over `data_dir`; prints what it found.
pub fn step(step: &str, data_dir: &Path) -> Result<()> {
    let told = runtime()?.block_on(async {
        let config = config(data_dir);
        let began = Instant::now();
        let core = Core::open(config, Shutdown::default()).await?;
        let opened = began.elapsed().as_secs_f64();
        let snapshot = core.cell.load();
        let part = snapshot.streams.get(STREAM).context("no archive")?;
        let stream = snapshot.names.streams.get(STREAM).context("no stream")?;
        let keys_dir = tempfile::tempdir_in(data_dir)?;
        let began = Instant::now();
        let mut told = match step {
            "keys" | "keys and full" => {
                let files = dedup::Files {
                    dir: keys_dir.path().to_owned(),
                    table: part.archive.table.clone(),
                    keys_max: core.config.ingest.keys_in_memory_max,
                    health: core.health.clone(),
                    shutdown: core.shutdown.clone(),
                };
                drop(restore::keys(&core.engine, stream, &part.archive, files).await?);
                if step == "keys and full" {
                    core.refresher.refresh(&core.cell, vec![VIEW.to_owned()]).await?;
                }
                json!({})
            }
            "full" => {
                core.refresher.refresh(&core.cell, vec![VIEW.to_owned()]).await?;
                json!({})
            }
            "full of all" => {
                core.refresher.refresh(&core.cell, snapshot.names.views.keys().cloned().collect()).await?;
                json!({})
            }
            "new" => {
                core.refresher.refresh(&core.cell, Vec::new()).await?;
                json!({})
            }
            "open" => {
                let groups =
                    |view: &String| part.delta.states(view).iter().map(|run| run.num_rows()).sum::<usize>();
                let groups: usize = snapshot.names.views.keys().map(groups).sum();
                let rows: u64 = part.archive.files_in(Kind::Event, part.delta.base()).map(|file| file.rows).sum();
                json!({ "bytes": part.delta.bytes(), "groups": groups, "events": rows })
            }
            other => anyhow::bail!("no step {other}"),
        };
        told["seconds"] = json!(began.elapsed().as_secs_f64());
        told["opened"] = json!(opened);
        told["memory_peak"] = json!(memory_peak("self")?);
        anyhow::Ok(told)
    })?;
    println!("{told}");
    Ok(())
}

/// Full refresh by video and hour, and the same with every key told apart anew.
fn beside_duckdb(data_dir: &Path, pairs: usize) -> Result<()> {
    let python = python()?;
    let files = |folder: &str| -> Result<Vec<PathBuf>> {
        let dir = data_dir.join("archive").join(STREAM).join(folder);
        Ok(std::fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<_>>()?)
    };
    let (events, mut all) = (files("events")?, files("duplicates")?);
    all.extend(events.iter().cloned());
    duckdb(&python, VIEW, &events)?;
    let cases = [
        (VIEW, "full", &events, "by video and hour"),
        ("video_views_hourly_once", "keys and full", &all, "by video and hour, each key once"),
    ];
    for (view, step, files, what) in cases {
        let (mut ratios, mut memory) = (Vec::new(), Vec::new());
        for pair in 1..=pairs {
            let Peer { seconds, total, memory_peak } = duckdb(&python, view, files)?;
            let ours = child(step, data_dir)?;
            let (took, peak) = (number(&ours, "seconds")?, number(&ours, "memory_peak")?);
            println!(
                "pair {pair}, {what}: DuckDB {seconds:.2} s and {} MiB for {total} records, refresh {took:.2} s and {} MiB",
                memory_peak >> 20,
                peak as u64 >> 20
            );
            ratios.push(took / seconds);
            memory.push(peak / memory_peak as f64);
        }
        println!("{what}: median ratio {:.2} of time, {:.2} of peak memory", median(&ratios), median(&memory));
    }
    Ok(())
}

/// A refresh of all views with 1% of new records, against one in full, and over a tenth of the history.
async fn incremental(large: &Path, small: &Path, new: u64, rounds: usize) -> Result<()> {
    let (mut shares, mut growth) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let seed = 1000 + round as u64;
        fill::append(&config(large), seed, new).await?;
        fill::append(&config(small), seed, new).await?;
        let (some, little) = (number(&child("new", large)?, "seconds")?, number(&child("new", small)?, "seconds")?);
        let full = number(&child("full of all", large)?, "seconds")?;
        println!(
            "round {round}: {new} new records {some:.2} s, in full {full:.2} s; over a tenth of the history {little:.2} s"
        );
        shares.push(some / full);
        growth.push(some / little);
    }
    println!(
        "1% new records: {:.3} of a full refresh; with ten times the history {:.2} times as long",
        median(&shares),
        median(&growth)
    );
    Ok(())
}

/// What a query by key takes alone, and while everything is computed in full.
async fn latency(data_dir: &Path) -> Result<()> {
    let mut server = Server::start(NO_BROKER, data_dir)?;
    let (asking, refreshing) = (server.connect().await?, server.connect().await?);
    refreshing.batch_execute("SET statement_timeout = 0").await?;
    let rows = asking.query("SELECT video_id FROM video_views ORDER BY total_views DESC LIMIT 100", &[]).await?;
    let keys: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let select = asking.prepare("SELECT total_views FROM video_views WHERE video_id = $1").await?;
    let mut next = keys.iter().cycle();
    let mut ask = async || -> Result<f64> {
        let key = next.next().context("no videos")?;
        let began = Instant::now();
        ensure!(asking.query(&select, &[key]).await?.len() == 1, "{key} is gone");
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    let mut alone = Vec::new();
    for _ in 0..QUERIES {
        alone.push(ask().await?);
    }
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let refresh = tokio::spawn({
        let done = std::sync::Arc::clone(&done);
        async move {
            let refreshed = refreshing.batch_execute("REFRESH MATERIALIZED VIEW video_views WITH FULL DATA").await;
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            refreshed
        }
    });
    let mut during = Vec::new();
    while !done.load(std::sync::atomic::Ordering::Relaxed) {
        during.push(ask().await?);
    }
    refresh.await??;
    for (what, times) in [("alone", &alone), ("during a full refresh", &during)] {
        println!(
            "query by key {what}: p50 {:.1} ms, p99 {:.1} ms, {} queries",
            quantile(times, 0.5),
            quantile(times, 0.99),
            times.len()
        );
    }
    println!("ratio of p99 {:.2}", quantile(&during, 0.99) / quantile(&alone, 0.99));
    Ok(())
}

/// A delta of so many events: what it takes in memory, and how long a start needs for it.
async fn delta(scratch: &Path, events: u64) -> Result<()> {
    let base = work_dir(&format!("delta-{events}"));
    if !base.join("generations").exists() {
        std::fs::create_dir_all(&base)?;
        fill::archive(&config(&base), 100_000).await?;
        child("new", &base)?;
        fill::append(&config(&base), 21, events).await?;
    }
    let data_dir = copied(&base, &scratch.join("delta"))?;
    let told = child("open", &data_dir)?;
    let (bytes, groups) = (number(&told, "bytes")?, number(&told, "groups")?);
    let events = number(&told, "events")?;
    println!(
        "delta of {events} events: {:.1} bytes an event, {:.0} bytes a group ({groups} groups of all views); restored in \
         {:.2} s, peak memory {} MiB",
        bytes / events,
        bytes / groups,
        number(&told, "opened")?,
        number(&told, "memory_peak")? as u64 >> 20
    );
    println!("index of its keys from the archive: {:.2} s", number(&child("keys", &data_dir)?, "seconds")?);
    for start in ["first", "after kill -9"] {
        let began = Instant::now();
        let mut server = Server::start(NO_BROKER, &data_dir)?;
        let client = server.connect().await?;
        let batch = "SELECT sum(total_views)::bigint FROM batch.video_views";
        let batch: i64 = client.query_one(batch, &[]).await?.get(0);
        let first = began.elapsed().as_secs_f64();
        // Refused until the delta is there.
        let total: i64 = loop {
            match client.query_one("SELECT sum(total_views)::bigint FROM video_views", &[]).await {
                Ok(row) => break row.get(0),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let whole = began.elapsed().as_secs_f64();
        println!(
            "start, {start}: batch views after {first:.2} s with {batch}, whole after {whole:.2} s with {total} records"
        );
        tokio::time::sleep(Duration::from_secs(3)).await;
        // Killed when dropped.
    }
    Ok(())
}
