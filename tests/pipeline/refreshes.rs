//! Refreshes while records come in: one query, one snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::kafka::TOPIC;
use crate::server::{Ask, rows};
use crate::world::{World, click, clicks, eventually};

/// How often generations are swapped; `SWAPS` sets another number.
fn swaps() -> usize {
    std::env::var("SWAPS").ok().and_then(|swaps| swaps.parse().ok()).unwrap_or(40)
}

/// More than this would only make the test slower.
const RECORDS_MAX: usize = 15_000;

/// Sums of the three views and the number of records, in one query.
const COUNTS: &str = "SELECT (SELECT sum(total) FROM pages), (SELECT sum(total) FROM page_hours), \
                      (SELECT count(*) FROM raw.clicks)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_never_go_back_and_always_agree_while_generations_change() {
    let world = World::new(3).await;
    let server = world.serve().await;
    world.kafka.write(clicks("first", 0, 1));
    server.until("SELECT count(*) FROM raw.clicks", &["1"]).await;

    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicUsize::new(1));
    let writing = {
        let (stop, written, writer) = (Arc::clone(&stop), Arc::clone(&written), world.kafka.writer(&[]));
        std::thread::spawn(move || {
            use rdkafka::producer::Producer;
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) && number < RECORDS_MAX {
                for _ in 0..50 {
                    let value = click(&format!("w-{number}"), ["a", "b", "c"][number % 3], 10);
                    let partition = i32::try_from(number % 3).unwrap();
                    crate::kafka::send(&writer, TOPIC, partition, value.as_deref());
                    number += 1;
                }
                writer.flush(crate::world::PATIENCE).unwrap();
                written.store(number + 1, Ordering::SeqCst);
            }
        })
    };
    let watching = tokio::spawn(watch(*server, Arc::clone(&stop)));

    let client = server.connect().await.unwrap();
    for _ in 0..swaps() {
        rows(&client, "REFRESH MATERIALIZED VIEW pages").await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    tokio::task::spawn_blocking(move || writing.join().unwrap()).await.unwrap();
    let answers = watching.await.unwrap();
    assert!(answers >= swaps() / 2, "only {answers} answers were compared");
    let generation: usize = server.one("SELECT max(generation) FROM system.generations").await.parse().unwrap();
    assert!(generation >= swaps(), "generation {generation}");
    let all = written.load(Ordering::SeqCst).to_string();
    server.until(COUNTS, &[format!("{all}|{all}|{all}")]).await;
    server.assert_equivalent().await;
    server.stop().await;
}

/// Asks again and again; returns how often.
async fn watch(ask: Ask, stop: Arc<AtomicBool>) -> usize {
    let client = ask.connect().await.unwrap();
    let (mut answers, mut last) = (0, 0_u64);
    while !stop.load(Ordering::SeqCst) {
        let row = rows(&client, COUNTS).await.unwrap().remove(0);
        let counts: Vec<u64> = row.split('|').map(|count| count.parse().unwrap()).collect();
        assert!(counts.iter().all(|count| *count == counts[0]), "one query, several snapshots: {row}");
        assert!(counts[0] >= last, "counts went back from {last} to {row}");
        last = counts[0];
        answers += 1;
    }
    answers
}

/// All wait for their turn, none fails, and none loses what came before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refreshes_at_the_same_time_take_turns() {
    let world = World::new(2).await;
    let server = world.serve().await;
    world.kafka.write(clicks("r", 0, 300));
    server.until_passed(300).await;
    server.until_archived().await;
    let ask = *server;
    let asked = (0..6).map(|n| {
        let sql = match n % 3 {
            0 => "REFRESH MATERIALIZED VIEW pages",
            1 => "REFRESH MATERIALIZED VIEW visitors WITH FULL DATA",
            _ => "REFRESH MATERIALIZED VIEW page_hours WITH FULL DATA",
        };
        tokio::spawn(async move { ask.try_rows(sql).await })
    });
    for refresh in asked.collect::<Vec<_>>() {
        refresh.await.unwrap().unwrap();
    }
    assert_eq!(server.one("SELECT sum(total) FROM batch.pages").await, "300");
    assert_eq!(server.one("SELECT max(generation) FROM system.generations").await, "6");
    server.assert_equivalent().await;
    let refused = server.try_rows("REFRESH MATERIALIZED VIEW nothing").await.unwrap_err();
    assert!(refused.contains("nothing"), "{refused}");
    server.stop().await;
}

/// Whoever asked for a refresh may go away at any moment of it: nothing is left of it, and the next one goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_nobody_waits_for_leaves_nothing_and_does_not_fence_the_next() {
    let mut world = World::new(1).await;
    world.set("VIEWLEDGER_REFRESH_GENERATIONS_KEEP", "1");
    let server = world.serve().await;
    world.kafka.write(clicks("first", 0, 2_000));
    server.until_passed(2_000).await;
    server.until_archived().await;
    let mut given_up = 0;
    for milliseconds in 1..=60 {
        let client = server.connect().await.unwrap();
        rows(&client, &format!("SET statement_timeout = {milliseconds}")).await.unwrap();
        let full = "REFRESH MATERIALIZED VIEW pages WITH FULL DATA";
        given_up += usize::from(rows(&client, full).await.is_err());
    }
    assert!(given_up > 0, "every refresh was faster than its timeout");
    let cancelled =
        "SELECT count(*) > 0 FROM system.refreshes WHERE state = 'cancelled' AND error LIKE '%cancelled%'";
    assert_eq!(server.one(cancelled).await, "t", "no refresh was stopped while it ran");
    world.kafka.write(clicks("second", 0, 100));
    server.until_passed(2_100).await;
    server.until_archived().await;
    server.refresh().await;
    assert_eq!(server.one("SELECT sum(total) FROM batch.pages").await, "2100");
    assert_eq!(server.get("/healthz").await.unwrap().0, 200);
    server.assert_equivalent().await;
    let named = server.one("SELECT sum(batch_runs) FROM system.views").await;
    assert_eq!(world.batch_files().to_string(), named, "files are left that no generation names");
    server.stop().await;
    let server = world.serve().await;
    assert_eq!(server.one("SELECT sum(total) FROM batch.pages").await, "2100");
    server.stop().await;
}

/// Intake waits when the delta is over its budget, and the refresh that it asks for lets it go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delta_over_its_budget_drops_nothing() {
    let mut world = World::new(2).await;
    world.set("VIEWLEDGER_DELTA_BYTES_MAX", "64KiB");
    world.set("VIEWLEDGER_INGEST_MICRO_BATCH_ROWS_MAX", "500");
    let server = world.serve().await;
    world.kafka.write(clicks("much", 0, 5_000).into_iter().chain(clicks("more", 1, 5_000)));
    server.until(COUNTS, &["10000|10000|10000"]).await;
    eventually("a refresh was asked for", async || {
        let generation = server.one("SELECT coalesce(max(generation), 0) FROM system.generations").await;
        if generation == "0" { Err(generation) } else { Ok(()) }
    })
    .await;
    server.assert_equivalent().await;
    server.stop().await;
}
