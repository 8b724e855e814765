//! Continuous reconciliation: batch against speed after each refresh, and that it sees a delta that is wrong.

use crate::processes::Process;
use crate::world::{World, clicks};

const SUMS: &str = "SELECT view, differing, error FROM system.reconciliation WHERE group_key IS NULL \
                    AND generation = (SELECT max(generation) FROM system.reconciliation) ORDER BY view";
const ALL_EQUAL: [&str; 3] = ["page_hours|0|-", "pages|0|-", "visitors|0|-"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refresh_is_reconciled_also_after_a_restart() {
    let world = World::new(2).await;
    let server = world.serve().await;
    world.kafka.write(clicks("first", 0, 500).into_iter().chain(clicks("first", 1, 20)));
    server.until_passed(520).await;
    server.until_archived().await;
    server.refresh().await;
    assert_eq!(server.rows(SUMS).await, ALL_EQUAL);
    let groups =
        "SELECT groups, after_epoch < to_epoch, restored_to_epoch FROM system.reconciliation WHERE view = 'pages'";
    assert_eq!(server.one(groups).await, "3|t|0");
    server.refresh_fully().await;
    let full = "SELECT view, groups, differing, after_epoch FROM system.reconciliation WHERE generation = 2";
    assert_eq!(server.rows(full).await, ["pages|3|0|0"], "only what was computed is compared");
    world.kafka.write(clicks("second", 0, 100));
    server.until_passed(620).await;
    server.until_archived().await;
    server.stop().await;

    // The delta was read back from the archive, and then goes on with what comes.
    let server = world.serve().await;
    world.kafka.write(clicks("third", 1, 100));
    server.until_passed(720).await;
    server.until_archived().await;
    server.refresh().await;
    assert_eq!(server.rows(SUMS).await, ALL_EQUAL);
    let restored = "SELECT restored_to_epoch > after_epoch, restored_to_epoch < to_epoch FROM system.reconciliation \
                    WHERE view = 'pages'";
    assert_eq!(server.one(restored).await, "t|t");
    let (_, metrics) = server.get("/metrics").await.unwrap();
    assert!(metrics.contains(r#"reconciled_groups_total{view="pages",outcome="equal"} 3"#), "{metrics}");
    assert!(metrics.contains("reconciliations_failed_total 0"), "{metrics}");
    assert_eq!(server.get("/healthz").await.unwrap().0, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_bounded() {
    let mut world = World::new(1).await;
    world.set("VIEWLEDGER_REFRESH_RECONCILIATIONS_KEEP", "4");
    let server = world.serve().await;
    for round in 1..=3 {
        world.kafka.write(clicks(&format!("r{round}"), 0, 10));
        server.until_passed(round * 10).await;
        server.until_archived().await;
        server.refresh().await;
    }
    assert_eq!(server.one("SELECT count(*), max(generation) FROM system.reconciliation").await, "4|3");
    server.stop().await;
}

/// The control: with a delta that loses groups on purpose everything that should tell, tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_skewed_delta_is_a_row_a_metric_an_error_and_bad_health() {
    let mut world = World::new(1).await;
    world.set("VIEWLEDGER_UNSAFE_TEST", "skew-delta");
    let process = Process::start(&world).await;
    world.kafka.write(clicks("p", 0, 90));
    process.until_passed(90).await;
    process.until_archived().await;
    process.refresh().await;
    let differing =
        "SELECT sum(differing) > 0 FROM system.reconciliation WHERE view = 'pages' AND group_key IS NULL";
    assert_eq!(process.one(differing).await, "t");
    let rows = process
        .rows("SELECT group_key, batch, speed FROM system.reconciliation WHERE view = 'pages' AND group_key IS NOT NULL")
        .await;
    assert!(rows.iter().all(|row| row.starts_with(r#"{"page":""#) && row.contains(r#""total":"#)), "{rows:?}");
    assert!(!rows.is_empty());
    let (_, metrics) = process.get("/metrics").await.unwrap();
    let metric = metrics
        .lines()
        .find_map(|line| line.strip_prefix(r#"reconciled_groups_total{view="pages",outcome="differing"} "#));
    assert_ne!(metric.unwrap(), "0");
    process.until_http("/healthz", 503, "groups differ between batch and speed").await;
    let log = process.log();
    assert!(log.lines().any(|line| line.contains("ERROR") && line.contains("groups differ")), "{log}");
    // What batch computed is right.
    assert_eq!(process.one("SELECT sum(total) FROM batch.pages").await, "90");
}
