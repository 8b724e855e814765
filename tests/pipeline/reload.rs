//! Files in `sql/` that change while the process answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::processes::Process;
use crate::server::{Ask, rows};
use crate::world::{CLICKS, VIEWS, World, click, clicks, eventually, view_sql};

const RELOAD: &str = "SELECT pg_reload_conf()";
const DEVICES: &str = "SELECT device, count(*) AS total FROM raw.clicks GROUP BY device";

fn with_column(line: &str) -> String {
    CLICKS.replace("    ms   INTEGER,\n", &format!("    ms   INTEGER,\n    {line},\n"))
}

/// Every other record has a field that the stream does not declare at first.
fn record(n: usize) -> (i32, Option<Vec<u8>>) {
    let device = if n.is_multiple_of(2) { r#","device":"tv""# } else { "" };
    let text = format!(r#"{{"id":"r-{n}","page":"p{}","at":"2026-01-31T12:00:00Z","ms":1{device}}}"#, n % 5);
    (i32::try_from(n % 2).unwrap(), Some(text.into_bytes()))
}

/// Counts in a loop until it is told to end; no answer may be an error, or less than the one before.
async fn watch(ask: Ask, ends: Arc<AtomicBool>) -> usize {
    let client = ask.connect().await.unwrap();
    let (mut least, mut asked) = (0, 0);
    while !ends.load(Ordering::Relaxed) {
        let answer = rows(&client, "SELECT coalesce(sum(total), 0) FROM pages").await.unwrap();
        let count: u64 = answer[0].parse().unwrap();
        assert!(count >= least, "the count went back from {least} to {count}");
        (least, asked) = (count, asked + 1);
    }
    asked
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_column_is_added_while_records_come_and_queries_are_answered() {
    let mut world = World::new(2).await;
    world.set("VIEWLEDGER_REFRESH_GENERATIONS_KEEP", "1");
    let world = Arc::new(world);
    let server = world.serve().await;
    let (ends, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let watching = tokio::spawn(watch(*server, Arc::clone(&ends)));
    let writing = {
        let (world, ends, written) = (Arc::clone(&world), Arc::clone(&ends), Arc::clone(&written));
        tokio::task::spawn_blocking(move || {
            while !ends.load(Ordering::Relaxed) {
                let from = written.load(Ordering::Relaxed);
                world.kafka.write((from..from + 20).map(record));
                written.store(from + 20, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        })
    };
    server.until("SELECT count(*) > 200 FROM raw.clicks", &["t"]).await;
    server.refresh().await;
    // A transaction keeps its snapshot whatever becomes of the process's parts.
    let client = server.connect().await.unwrap();
    rows(&client, "BEGIN READ ONLY").await.unwrap();
    let everything = "SELECT page, total, slow, spent FROM pages ORDER BY page";
    let pinned = rows(&client, everything).await.unwrap();

    world.write_sql("streams/clicks.sql", &with_column("device TEXT"));
    world.write_sql("views/devices.sql", &view_sql("devices", DEVICES));
    assert_eq!(server.one(RELOAD).await, "t");
    let tell = "SELECT count(*) > 0 FROM devices WHERE device = 'tv'";
    assert_eq!(server.one(tell).await, "t", "what came before lies among the undeclared fields");
    let seen: usize = server.one("SELECT count(*) FROM raw.clicks").await.parse().unwrap();
    server.until(&format!("SELECT count(*) > {} FROM raw.clicks", seen + 200), &["t"]).await;
    server.refresh().await;
    server.refresh().await;
    assert_eq!(rows(&client, everything).await.unwrap(), pinned, "its files are still there");
    rows(&client, "COMMIT").await.unwrap();

    // And once more, with nothing to follow and with a column that goes again.
    assert_eq!(server.one(RELOAD).await, "t");
    world.write_sql("streams/clicks.sql", CLICKS);
    world.remove_sql("views/devices.sql");
    assert_eq!(server.one(RELOAD).await, "t");
    let gone = server.try_rows("SELECT device FROM raw.clicks").await.unwrap_err();
    assert!(gone.contains("device"), "{gone}");
    ends.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    assert!(watching.await.unwrap() > 10);
    let written = written.load(Ordering::Relaxed);
    server.until_passed(written).await;
    assert_eq!(server.one("SELECT sum(total) FROM pages").await, written.to_string());
    server.assert_equivalent().await;
    server.until_ready().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_fault_everything_stays_as_it_was() {
    let world = World::new(1).await;
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 3));
    server.until_passed(3).await;
    server.until_archived().await;
    let view = |query: &str| view_sql("pages", query);
    for (file, text, words) in [
        ("streams/clicks.sql", CLICKS.replace("ms   INTEGER", "ms   BIGINT"), "clicks.sql:7:5: column ms"),
        ("streams/clicks.sql", CLICKS.replace(" PRIMARY KEY", ""), "clicks.sql:2:1: stream clicks"),
        ("streams/clicks.sql", CLICKS.replace("page TEXT", "page TEXTURE"), "clicks.sql:4:"),
        ("views/pages.sql", view("SELECT pagge, count(*) FROM raw.clicks GROUP BY pagge"), "pages.sql:1:"),
        ("views/pages.sql", "CREATE MATERIALIZED VIEW pages AS SELECT".to_owned(), "pages.sql:1:"),
    ] {
        let before = std::fs::read_to_string(world.path("sql").join(file)).unwrap();
        world.write_sql(file, &text);
        let refused = server.try_rows(RELOAD).await.unwrap_err();
        assert!(refused.contains(words), "{words}: {refused}");
        world.write_sql(file, &before);
    }
    let refused = server.try_rows("ALTER STREAM clicks ADD COLUMN device TEXT").await.unwrap_err();
    assert!(refused.contains("change the file, then SELECT pg_reload_conf()"), "{refused}");
    world.kafka.write(clicks("b", 0, 3));
    server.until_passed(6).await;
    server.assert_equivalent().await;
    assert_eq!(server.one("SELECT count(*) FROM system.view_versions").await, VIEWS.len().to_string());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_tables_and_streams_come_and_go() {
    let world = World::new(1).await;
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 6));
    server.until_passed(6).await;
    server.until_archived().await;
    server.refresh().await;

    // A view's query, and an ordinary view: intake goes on meanwhile.
    let fast = "SELECT page, count(*) AS total, count(*) FILTER (WHERE ms > 5) AS slow, sum(ms) AS spent, \
                avg(ms) AS mean, approx_distinct(who) AS visitors FROM raw.clicks GROUP BY page";
    world.write_sql("views/pages.sql", &view_sql("pages", fast));
    world.write_sql("views/all.sql", "CREATE VIEW all_pages AS SELECT sum(slow) AS slow FROM pages;");
    server.one(RELOAD).await;
    assert_eq!(server.one("SELECT slow FROM all_pages").await, "6");
    let standing = "SELECT version, state FROM system.view_versions WHERE view = 'pages' ORDER BY version";
    assert_eq!(server.rows(standing).await, ["1|standby", "2|current"]);
    assert_eq!(server.one("SELECT sum(slow) FROM \"pages@1\"").await, "0");

    // A table, and a view that joins it.
    world.write_sql("tables/names.sql", "CREATE TABLE names (page TEXT PRIMARY KEY, name TEXT);");
    server.one(RELOAD).await;
    server.rows("INSERT INTO names VALUES ('a', 'Alpha')").await;
    let named =
        "SELECT n.name, count(*) AS total FROM raw.clicks c JOIN names n ON n.page = c.page GROUP BY n.name";
    world.write_sql("views/named.sql", &view_sql("named", named));
    server.one(RELOAD).await;
    assert_eq!(server.one("SELECT * FROM named").await, "Alpha|2");
    assert_eq!(server.one("SELECT name FROM names").await, "Alpha", "its rows are still there");

    // A stream with its topic.
    world.kafka.create_topic("likes", 1).await;
    let likes = "CREATE STREAM likes (id TEXT PRIMARY KEY, page TEXT, at TIMESTAMPTZ NOT NULL) \
                 WITH (topic = 'likes', event_time = 'at');";
    world.write_sql("streams/likes.sql", likes);
    let query = "SELECT page, count(*) AS total FROM raw.likes GROUP BY page";
    world.write_sql("views/liked.sql", &view_sql("liked", query));
    server.one(RELOAD).await;
    world.kafka.write_to("likes", [(0, click("x", "a", 1))]);
    server.until("SELECT * FROM liked", &["a|1"]).await;
    world.kafka.write(clicks("b", 0, 3));
    server.until_passed(9).await;
    server.until("SELECT sum(total) FROM pages", &["9"]).await;
    assert_eq!(server.one("SELECT * FROM named").await, "Alpha|3");

    // All of it goes again, and the archive of the stream stays.
    for file in ["streams/likes.sql", "views/liked.sql", "views/named.sql", "tables/names.sql", "views/all.sql"] {
        world.remove_sql(file);
    }
    server.one(RELOAD).await;
    for gone in ["SELECT * FROM liked", "SELECT * FROM named", "SELECT * FROM names", "SELECT * FROM raw.likes"] {
        assert!(server.try_rows(gone).await.is_err(), "{gone}");
    }
    assert!(world.path("data/archive/likes").exists());
    world.kafka.write(clicks("c", 0, 3));
    server.until_passed(12).await;
    server.until("SELECT sum(total) FROM pages", &["12"]).await;
    server.refresh().await;
    server.stop().await;
    // A start sees what the process saw.
    let server = world.serve().await;
    assert_eq!(server.one("SELECT sum(total), sum(slow) FROM pages").await, "12|12");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_read_again_at_sighup() {
    let world = World::new(1).await;
    let process = Process::start(&world).await;
    world.write_sql("streams/clicks.sql", &with_column("device TEXT"));
    process.signal(libc::SIGHUP);
    process.until("SELECT count(device) FROM raw.clicks", &["0"]).await;
    world.write_sql("streams/clicks.sql", "CREATE STREAM");
    process.signal(libc::SIGHUP);
    eventually("the fault is told", async || {
        let log = process.log();
        let told = log.contains("definitions stay as they were") && log.contains("clicks.sql:1:");
        if told { Ok(()) } else { Err(log) }
    })
    .await;
    world.kafka.write(clicks("a", 0, 3));
    process.until_passed(3).await;
}
