//! A running server and its archive, read by other people's clients: python deltalake, pyarrow and DuckDB open the archive;
//! ADBC, pyarrow.flight, polars, psycopg, asyncpg, SQLAlchemy, pandas, psql, pgjdbc and node-postgres ask the server.
//!
//! Skipped, with the reason printed, only where they cannot be installed (`tests/clients/*.sh`).
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

// What the crash test uses to run a real server under a load with a known truth.
#[allow(dead_code)]
#[path = "crash/answers.rs"]
mod answers;
#[allow(dead_code)]
#[path = "crash/broker.rs"]
mod broker;
#[allow(dead_code)]
#[path = "crash/load.rs"]
mod load;
#[allow(dead_code)]
#[path = "crash/server.rs"]
mod server;
#[allow(dead_code)]
#[path = "crash/settle.rs"]
mod settle;
#[allow(dead_code)]
#[path = "crash/truth.rs"]
mod truth;
#[allow(dead_code)]
#[path = "crash/verdict.rs"]
mod verdict;

use answers::STREAM;
use broker::{TOPIC, TOPICS, TestBroker};
use load::{Load, LoadPlan};
use server::{Reader, Site};
use settle::settle;
use truth::Expected;

/// What `python.sh` exits with where pip cannot install.
const NOT_POSSIBLE_HERE: i32 = 77;

#[test]
fn the_checker_sees_a_spoilt_archive() {
    let Some(python) = python() else { return };
    run(python, &[script("test_check_archive.py").as_path()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_clients_read_archive_and_views_and_agree() {
    let Some(python) = python() else { return };
    let dir = tempfile::Builder::new().prefix("viewledger-clients-").tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    broker.recreate_topics(&TOPICS).await;
    let plan = LoadPlan {
        bootstrap: broker.bootstrap(),
        events_per_second: 2_000,
        run: Duration::from_secs(5),
        seed: rand::random::<u32>().into(),
    };
    let mut site = Site::prepare(dir.path(), &broker.bootstrap(), None);
    let mut life = site.spawn();
    // Before the load, so that it is committed bit by bit, in files enough to be put together.
    let reader = life.wait_ready().await.unwrap_or_else(|server::Death(what)| panic!("{what}"));
    let mut load = Load::start(plan, dir.path());
    let expected = truth::read(load.wait().await, TOPIC);
    settle(&mut life, &expected).await.unwrap_or_else(|violations| panic!("{violations:#?}"));

    // A refresh first commits all that was read to the archive.
    reader.rows("REFRESH MATERIALIZED VIEW video_views").await.unwrap();
    until_compacted(&reader).await;
    let answers = dir.path().join("answers.csv");
    write_answers(&reader, &answers).await;
    let expected_file = dir.path().join("expected.json");
    std::fs::write(&expected_file, expected_json(&expected, &answers)).unwrap();
    run(python, &[&script("check_archive.py"), &site.data_dir(), &expected_file]);
    let [postgres, flight] = [site.pg_port, site.flight_port].map(|port| PathBuf::from(port.to_string()));
    run(python, &[&script("read_views.py"), &postgres, &flight]);
    run(python, &[&script("read_tools.py"), &postgres]);
    ask_by_others(&site.pg_port.to_string());
}

/// Clients that are no Python, each where it can be had.
fn ask_by_others(port: &str) {
    let psql = Command::new(script("psql.sh")).arg(port).output().unwrap();
    if psql.status.code() == Some(NOT_POSSIBLE_HERE) {
        println!("skipped: {}", String::from_utf8_lossy(&psql.stderr).trim());
    } else {
        told("psql", &psql);
    }
    if let Some(modules) = installed("node.sh") {
        let reader = script("read_views.mjs");
        told("node", &Command::new("node").arg(reader).arg(port).arg(modules).output().unwrap());
    }
    if let Some(jars) = installed("java.sh") {
        let classes = format!("{0}:{0}/*", jars.display());
        told("java", &Command::new("java").args(["-cp", &classes, "ReadViews", port]).output().unwrap());
    }
}

/// Other readers shall find files that took others in, and those gone from the log.
async fn until_compacted(reader: &Reader) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let sql = format!("SELECT path FROM system.files WHERE stream = '{STREAM}' AND first_epoch < epoch");
    while reader.rows(&sql).await.unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "no files were put together");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The server's merged view, as it answers over the Postgres wire.
async fn write_answers(reader: &Reader, path: &Path) {
    let rows = reader.rows("SELECT video_id, total_views FROM video_views").await.unwrap();
    let lines = rows.iter().map(|row| format!("{},{}\n", row.get(0).unwrap(), row.get(1).unwrap()));
    std::fs::write(path, lines.collect::<String>()).unwrap();
}

fn expected_json(expected: &Expected, answers: &Path) -> String {
    let partitions: serde_json::Map<String, serde_json::Value> = expected
        .partitions
        .iter()
        .map(|(id, extent)| (id.to_string(), serde_json::json!({ "records": extent.records, "end": extent.end })))
        .collect();
    serde_json::json!({
        "stream": STREAM,
        "kinds": {
            "event": expected.counted,
            "duplicate": expected.duplicates,
            "quarantined": expected.quarantined,
        },
        "partitions": partitions,
        "answers": answers,
        "key": "video_id",
    })
    .to_string()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// A Python that has the readers; None, with the reason printed, where pip cannot install them.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(|| installed("python.sh")).as_deref()
}

/// What a script prints that installs a client; None, with the reason printed, where it cannot.
fn installed(name: &str) -> Option<PathBuf> {
    let output = Command::new(script(name)).output().unwrap();
    let reason = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())),
        Some(NOT_POSSIBLE_HERE) => {
            println!("skipped: {name} cannot install its clients: {}", reason.trim());
            None
        }
        _ => panic!("{name} failed: {reason}"),
    }
}

fn run(python: &Path, arguments: &[&Path]) {
    let output = Command::new(python).arg("-B").args(arguments).output().unwrap();
    told(&arguments[0].display().to_string(), &output);
}

fn told(what: &str, output: &std::process::Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}:\n{said}{complained}");
    println!("{}", said.trim());
}
