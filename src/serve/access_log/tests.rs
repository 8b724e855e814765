#![allow(clippy::unwrap_used)]
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::prelude::SessionContext;

use super::*;
use crate::runtime::ManualClock;
use crate::serve::auth::Protocol;

const DAY: Duration = Duration::from_secs(86_400);
const BOUNDS: Bounds = Bounds { days: 3, bytes: 1 << 20, queue: 10 };

fn record(clock: &ManualClock, weight: Weight, statement: &str) -> Record {
    let origin = Origin { address: None, protocol: Protocol::Postgres, tls: true };
    let mut record = Record::of(clock.now(), Event::Statement, weight, "ana".into(), origin);
    record.statement = Some(statement.into());
    record.rows = Some(3);
    record
}

fn opened(dir: &Path, bounds: Bounds, clock: &Arc<ManualClock>) -> Arc<AccessLog> {
    let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
    AccessLog::open(dir, bounds, shared, Arc::new(Metrics::new()), &Health::default()).unwrap()
}

async fn rows(log: &AccessLog, sql: &str) -> Vec<String> {
    let context = SessionContext::new();
    context.register_table("log", log.table().unwrap()).unwrap();
    let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
    let cells = |batch: &datafusion::arrow::record_batch::RecordBatch, row| {
        let cells = batch.columns().iter().map(|column| array_value_to_string(column, row).unwrap());
        cells.collect::<Vec<_>>().join("|")
    };
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| cells(batch, row))).collect()
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(1_767_225_600_123_456))
}

#[tokio::test]
async fn what_was_noted_is_read_and_survives_a_restart() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let log = opened(dir.path(), BOUNDS, &clock);
    assert_eq!(rows(&log, "SELECT * FROM log").await, [""; 0]);
    log.note(record(&clock, Weight::Passing, "SELECT 1"));
    log.keep(record(&clock, Weight::Kept, "ALTER ROLE a PASSWORD 'secret'")).await;
    let all = "SELECT at, event, role, protocol, tls, statement, sqlstate, rows FROM log ORDER BY statement";
    let expected = [
        "2026-01-01T00:00:00.123456Z|statement|ana|postgres|true|ALTER ROLE a PASSWORD '***'||3",
        "2026-01-01T00:00:00.123456Z|statement|ana|postgres|true|SELECT 1||3",
    ];
    drop(log);
    // A crash has cut the last line off.
    let cut = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    for path in cut {
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"at\":\"2026-");
        std::fs::write(path, text).unwrap();
    }
    let log = opened(dir.path(), BOUNDS, &clock);
    assert_eq!(rows(&log, all).await, expected);
    log.keep(record(&clock, Weight::Kept, "TRUNCATE t")).await;
    assert_eq!(rows(&log, "SELECT count(*) FROM log").await, ["3"]);
    let files =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    assert!(!files.collect::<String>().contains("secret"));
}

#[tokio::test]
async fn old_days_go_and_reads_never_push_changes_out() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let log = opened(dir.path(), Bounds { bytes: 16 << 10, queue: 100_000, ..BOUNDS }, &clock);
    log.keep(record(&clock, Weight::Kept, "TRUNCATE t")).await;
    for _ in 0..10_000 {
        log.note(record(&clock, Weight::Passing, "SELECT 1"));
    }
    log.keep(record(&clock, Weight::Kept, "DELETE FROM t")).await;
    let counted = "SELECT statement, count(*) < 100 FROM log GROUP BY 1 ORDER BY 1";
    assert_eq!(rows(&log, counted).await, ["DELETE FROM t|true", "SELECT 1|true", "TRUNCATE t|true"]);
    clock.advance(DAY * 5);
    log.keep(record(&clock, Weight::Kept, "INSERT INTO t")).await;
    assert_eq!(rows(&log, "SELECT statement FROM log WHERE statement <> 'SELECT 1'").await, ["INSERT INTO t"]);
}

#[tokio::test]
async fn while_it_cannot_be_written_nothing_may_be_changed_and_reads_go_on() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), clock());
    let path = dir.path().join("access");
    let log = opened(&path, BOUNDS, &clock);
    log.ready().await.unwrap();
    std::fs::remove_dir_all(&path).unwrap();
    log.note(record(&clock, Weight::Kept, "first"));
    let deadline = Instant::now() + Duration::from_secs(10);
    let refused = loop {
        match log.ready().await {
            Err(error) => break error,
            Ok(()) => assert!(Instant::now() < deadline, "it goes on without its directory"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(refused.state, SqlState::IO);
    for _ in 0..100 {
        log.note(record(&clock, Weight::Passing, "SELECT 1"));
    }
    assert!(log.metrics.access_log_dropped.get() >= 80);
    std::fs::create_dir_all(&path).unwrap();
    log.keep(record(&clock, Weight::Kept, "second")).await;
    log.ready().await.unwrap();
    let kept = "SELECT statement FROM log WHERE statement <> 'SELECT 1' ORDER BY 1";
    assert_eq!(rows(&log, kept).await, ["first", "second"]);
}
