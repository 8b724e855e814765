//! SQL and its answers, in `tests/slt/*.slt`: every aggregate, every kind of view, every schema.
//!
//! The same files run over Postgres wire in the simple and in the extended protocol and over Arrow Flight SQL, against servers that hold the same
//! records, duplicates, late and malformed ones among them, cut at different frontiers:
//!
//! | stage | where the records are |
//! |---|---|
//! | `delta` | all in memory |
//! | `batch` | all in a generation |
//! | `split` | in three generations one after the other, and the rest in memory |
//!
//! and `split` once more after a restart, which computes from the archive again what was in memory.
//!
//! Each stage must give the answers that stand in the files, so they all give the same. `onlyif` and `skipif` take the
//! names of stages. `SLT_UPDATE=1` writes what the stage `delta` answers into the files: read the difference.
//!
//! The files have the format of sqllogictest, of which `slt/script.rs` reads what they use. The crate of that name turns on
//! features of crates that the program uses too, so that all of them would be built twice.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::path::{Path, PathBuf};

use crate::engine::{Protocol, Session};
use crate::kafka::{Kafka, ToWrite};
use crate::script::Script;
use crate::server::Server;
use crate::world::World;

#[path = "slt/engine.rs"]
mod engine;
#[path = "slt/flight.rs"]
mod flight;
#[allow(dead_code)]
#[path = "pipeline/kafka.rs"]
mod kafka;
#[path = "slt/refused.rs"]
mod refused;
#[path = "slt/script.rs"]
mod script;
#[allow(dead_code)]
#[path = "pipeline/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "pipeline/world.rs"]
mod world;

const TOPIC: &str = "events";
const PARTITIONS: i32 = 3;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt")
}

/// The files of `tests/slt/<folder>` that end so, in order.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    assert!(!files.is_empty(), "no .{extension} in {}", folder.display());
    files
}

/// The records, in the parts between which the stages cut. A line is a partition and a record.
fn parts() -> Vec<Vec<ToWrite>> {
    let text = std::fs::read_to_string(folder().join("records.txt")).unwrap();
    let mut parts = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with("---") {
            parts.push(Vec::new());
            continue;
        }
        let (partition, record) = line.split_once(' ').unwrap();
        let record = (record != "tombstone").then(|| record.as_bytes().to_vec());
        parts.last_mut().unwrap().push((partition.parse().unwrap(), record));
    }
    parts
}

fn ends(kafka: &Kafka) -> i64 {
    (0..PARTITIONS).map(|partition| kafka.end(TOPIC, partition)).sum()
}

async fn until_passed(server: &Server, offsets: i64) {
    let sql = "SELECT coalesce(sum(passed), 0) FROM system.conservation";
    server.until(sql, &[offsets.to_string()]).await;
}

async fn until_archived(server: &Server) {
    let sql = "SELECT (SELECT count(*) FROM raw.events WHERE _file IS NULL) \
               + (SELECT count(*) FROM raw.events_duplicates WHERE _file IS NULL) \
               + (SELECT count(*) FROM quarantine.events WHERE _file IS NULL)";
    server.until(sql, &["0"]).await;
}

async fn refresh(server: &Server) {
    until_archived(server).await;
    server.rows("REFRESH MATERIALIZED VIEW totals").await;
}

/// A server of its own over the one topic.
async fn serve(world: &mut World, stage: &str) -> Server {
    let dir = world.path(stage);
    std::fs::create_dir_all(&dir).unwrap();
    world.use_data_dir(&dir);
    world.serve().await
}

/// Runs every file; what failed.
async fn run(server: &Server, stage: &str, protocol: Protocol) -> Vec<String> {
    let mut failures = Vec::new();
    for file in files(&folder(), "slt") {
        let session = Session::connect(**server, protocol).await.unwrap();
        for failure in Script::read(&file).run(&session, stage).await {
            failures.push(format!("{stage}, {protocol:?}: {failure}"));
        }
    }
    failures
}

async fn run_all(server: &Server, stage: &str) -> Vec<String> {
    let (simple, extended, flight) = tokio::join!(
        run(server, stage, Protocol::Simple),
        run(server, stage, Protocol::Extended),
        run(server, stage, Protocol::Flight)
    );
    [simple, extended, flight].concat()
}

async fn update(server: &Server, stage: &str) {
    for file in files(&folder(), "slt") {
        let session = Session::connect(**server, Protocol::Simple).await.unwrap();
        let updated = Script::read(&file).updated(&session, stage).await;
        std::fs::write(&file, updated).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_the_same_however_the_records_are_cut() {
    let mut world = World::bare().await;
    world.set("VIEWLEDGER_SQL_DIR", folder().join("sql").display().to_string());
    world.kafka.create_topic(TOPIC, PARTITIONS).await;
    let parts = parts();
    assert_eq!(parts.len(), 4);

    let split = serve(&mut world, "split").await;
    for (number, part) in parts.into_iter().enumerate() {
        if number > 0 {
            refresh(&split).await;
        }
        world.kafka.write_to(TOPIC, part);
        until_passed(&split, ends(&world.kafka)).await;
    }
    assert_eq!(split.one("SELECT max(generation) FROM system.generations").await, "3");
    let (delta, batch) = (serve(&mut world, "delta").await, serve(&mut world, "batch").await);
    for server in [&delta, &batch] {
        until_passed(server, ends(&world.kafka)).await;
    }
    refresh(&batch).await;
    if std::env::var_os("SLT_UPDATE").is_some() {
        // Last the stage that most of it is for.
        update(&split, "split").await;
        update(&batch, "batch").await;
        update(&delta, "delta").await;
    }

    let (a, b, c) = tokio::join!(run_all(&delta, "delta"), run_all(&batch, "batch"), run_all(&split, "split"));
    let mut failures = [a, b, c].concat();
    delta.stop().await;
    batch.stop().await;
    until_archived(&split).await;
    split.stop().await;
    let restarted = serve(&mut world, "split").await;
    until_passed(&restarted, ends(&world.kafka)).await;
    assert_eq!(restarted.one("SELECT max(generation) FROM system.generations").await, "3");
    failures.extend(
        run(&restarted, "split", Protocol::Simple).await.iter().map(|failure| format!("restarted: {failure}")),
    );
    restarted.stop().await;
    assert!(failures.is_empty(), "{} answers are wrong\n{}", failures.len(), failures.join("\n\n"));
}
