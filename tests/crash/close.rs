//! The close of a month, killed at random moments: it is whole or not there, and done again it comes to the same bytes.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::broker::{TOPIC, TOPICS, TestBroker};
use crate::psql::Psql;
use crate::server::{Death, Life, Reader, Site, copy_dir, number};
use crate::{TURN, truth};

const PERIOD: &str = "2026-10";
const EVENTS: &str = "20000";
/// What a close writes, and in which order it is looked at.
const WRITTEN: [(&str, &str); 5] = [
    ("runs", "period"),
    ("run_frontiers", "stream, partition"),
    ("statements", "statement_id"),
    ("statement_lines", "statement_id, line"),
    ("ledger", "entry, account"),
];
/// Every video has an owner, every tenth owner is paid in yen, and one country has a rate of its own.
const TERMS: &str = "
INSERT INTO billing.currencies VALUES ('USD', 100, 0.01), ('JPY', 1, 1);
INSERT INTO videos SELECT video_id, 'o' || right(video_id, 1), '2020-01-01', NULL, now(), 'x'
FROM video_views;
INSERT INTO billing.payees SELECT DISTINCT owner_id, CASE WHEN owner_id LIKE '%7' THEN 'JPY' ELSE 'USD' END FROM videos;
INSERT INTO billing.scope_values VALUES ('country', 'DE');
INSERT INTO billing.rates VALUES
 ('usd', 'default', '', 'USD', 0.0012345, '2020-01-01', NULL, now(), 'carl', 'dora'),
 ('de', 'country', 'DE', 'USD', 0.0033, '2020-01-01', NULL, now(), 'carl', 'dora'),
 ('jpy', 'default', '', 'JPY', 0.155, '2020-01-01', NULL, now(), 'carl', 'dora')";

/// All that a close wrote, but for when, by which generation and which files; none for each table that it did not write.
async fn written(reader: &Reader) -> Vec<Vec<String>> {
    let mut tables = Vec::new();
    for (table, order) in WRITTEN {
        let rows = reader.rows(&format!("SELECT * FROM billing.{table} ORDER BY {order}")).await.unwrap();
        let told = |column: &str| !["as_of", "generation", "archive_version"].contains(&column);
        let text = |row: &tokio_postgres::SimpleQueryRow| {
            let cells = row.columns().iter().enumerate().filter(|(_, column)| told(column.name()));
            cells.map(|(at, _)| row.get(at).unwrap_or("-")).collect::<Vec<_>>().join("|")
        };
        tables.push(rows.iter().map(text).collect());
    }
    tables
}

async fn close(reader: &Reader) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/billing/close.sql");
    let script = std::fs::read_to_string(&script).unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut psql = Psql::new(reader.client(), out.path(), &[("period", PERIOD)]);
    let ran = psql.run(&script).await;
    ran.map(|()| psql.shown.clone()).map_err(|error| format!("{}{error}", psql.shown))
}

async fn ready(site: &mut Site) -> (Life, Reader) {
    let mut life = site.spawn();
    let reader = life.wait_ready_as("billing").await.unwrap_or_else(|Death(what)| panic!("{what}"));
    (life, reader)
}

fn killed(life: Life) {
    life.kill().unwrap_or_else(|Death(what)| panic!("{what}"));
}

/// A server with a month of views, and with all terms of their payment.
async fn month(dir: &Path, broker: &TestBroker) -> Site {
    let truth = dir.join("truth.csv");
    let made = Command::new(env!("CARGO_BIN_EXE_viewledger"))
        .args(["generate", "--brokers", &broker.bootstrap(), "--events", EVENTS, "--seed", "7"])
        .args(["--profile", concat!(env!("CARGO_MANIFEST_DIR"), "/sql/load/video_views.toml")])
        .args(["--start-time", "2026-10-15T00:00:00Z", "--truth"])
        .arg(&truth)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let expected = truth::read(&[truth], TOPIC).counted;
    let mut site = Site::prepare(dir, &broker.bootstrap(), None);
    let (life, reader) = ready(&mut site).await;
    let began = Instant::now();
    loop {
        let rows = reader.rows("SELECT sum(total_views) AS sum FROM video_views").await.unwrap();
        if number(&rows[0], "sum") == expected {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "{} of {expected} are counted",
            number(&rows[0], "sum")
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    reader.client().batch_execute(TERMS).await.unwrap();
    reader.rows("REFRESH MATERIALIZED VIEW billable_views").await.unwrap();
    killed(life);
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_is_killed_is_whole_or_not_there() {
    let _turn = TURN.lock().await;
    let set = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (crashes, seed) = (set("CLOSE_CRASHES").unwrap_or(6), set("SEED").unwrap_or_else(rand::random));
    let dir = tempfile::Builder::new().prefix("viewledger-close-").tempdir().unwrap();
    let broker = TestBroker::start(dir.path()).await;
    broker.recreate_topics(&TOPICS).await;
    let mut site = month(dir.path(), &broker).await;
    let open = dir.path().join("open");
    copy_dir(&site.data_dir(), &open);

    let (life, reader) = ready(&mut site).await;
    let began = Instant::now();
    let shown = close(&reader).await.unwrap_or_else(|error| panic!("{error}"));
    let took = began.elapsed();
    let whole = written(&reader).await;
    assert!(whole.iter().all(|rows| !rows.is_empty()), "{shown}");
    killed(life);

    let mut moments = StdRng::seed_from_u64(seed);
    let mut ends = [0, 0];
    for crash in 0..crashes {
        std::fs::remove_dir_all(site.data_dir()).unwrap();
        copy_dir(&open, &site.data_dir());
        let (life, reader) = ready(&mut site).await;
        // Most of the time is for computing; what is written is written at the end.
        let share = if crash % 2 == 0 { moments.random_range(0.0..1.1) } else { moments.random_range(0.8..1.1) };
        let told = tokio::time::timeout(took.mul_f64(share), close(&reader)).await;
        killed(life);
        let (life, reader) = ready(&mut site).await;
        let found = written(&reader).await;
        match found.iter().any(|rows| !rows.is_empty()) {
            true => assert_eq!(found, whole, "SEED={seed}: a part of a close is there"),
            false => assert!(!matches!(told, Ok(Ok(_))), "SEED={seed}: a close that was told of is lost"),
        }
        ends[usize::from(found == whole)] += 1;
        close(&reader).await.unwrap_or_else(|error| panic!("SEED={seed}: {error}"));
        assert_eq!(written(&reader).await, whole, "SEED={seed}: done again, it comes to something else");
        let quality = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'quality'";
        for view in reader.rows(quality).await.unwrap() {
            let view = view.get(0).unwrap();
            let rows = reader.rows(&format!("SELECT * FROM quality.{view}")).await.unwrap();
            assert!(rows.is_empty(), "SEED={seed}: quality.{view} has {} rows", rows.len());
        }
        killed(life);
    }
    println!("close in {took:?}; of {crashes} that were killed, {} were not there and {} whole", ends[0], ends[1]);
}
