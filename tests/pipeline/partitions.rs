//! What happens to topics and partitions under a reader: recreated, trimmed, truncated, grown, not there yet.

use rdkafka::producer::Producer;

use crate::kafka::{TOPIC, send};
use crate::world::{PATIENCE, World, click, clicks, eventually};

const TOTALS: &str = "SELECT (SELECT count(*) FROM raw.clicks), (SELECT sum(total) FROM pages)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_not_there_is_waited_for() {
    let world = World::without_topic().await;
    let server = world.serve().await;
    server.until_http("/readyz", 503, "stream clicks: topic clicks").await;
    assert_eq!(server.one("SELECT count(*) FROM pages").await, "0");
    world.kafka.create_topic(TOPIC, 2).await;
    world.kafka.write(clicks("late", 1, 20));
    server.until(TOTALS, &["20|20"]).await;
    server.until_ready().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_partitions_are_read_from_their_start() {
    let world = World::new(1).await;
    let server = world.serve().await;
    world.kafka.write(clicks("one", 0, 10));
    server.until(TOTALS, &["10|10"]).await;
    world.kafka.add_partitions(TOPIC, 3).await;
    world.kafka.write(clicks("two", 1, 10).into_iter().chain(clicks("three", 2, 10)));
    server.until(TOTALS, &["30|30"]).await;
    let partitions = "SELECT partition, position, lag, reading FROM system.partitions ORDER BY partition";
    server.until(partitions, &["0|10|0|t", "1|10|0|t", "2|10|0|t"]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_is_refused_by_a_running_server_and_after_a_restart() {
    recreated(World::new(2).await).await;
}

/// The client itself must notice when nobody looks at the topics meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_topic_is_refused_between_two_looks() {
    let mut world = World::new(2).await;
    world.set("VIEWLEDGER_KAFKA_METADATA_INTERVAL", "1h");
    recreated(world).await;
}

/// The new topic is long enough that the old positions would fit into it.
async fn recreated(world: World) {
    let server = world.serve().await;
    world.kafka.write(clicks("old", 0, 50).into_iter().chain(clicks("old-too", 1, 50)));
    server.until(TOTALS, &["100|100"]).await;
    server.until_archived().await;
    world.kafka.delete_topic(TOPIC).await;
    world.kafka.create_topic(TOPIC, 2).await;
    world.kafka.write(clicks("new", 0, 200).into_iter().chain(clicks("new-too", 1, 200)));
    server.until_http("/readyz", 503, "created anew").await;
    assert_eq!(server.one(TOTALS).await, "100|100");
    assert_eq!(server.one("SELECT count(*) FROM raw.clicks WHERE id LIKE 'new%'").await, "0");
    let partitions = "SELECT bool_or(reading), bool_and(reason LIKE '%created anew%') FROM system.partitions";
    assert_eq!(server.one(partitions).await, "f|t");
    server.stop().await;

    let server = world.serve().await;
    server.until_http("/readyz", 503, "created anew").await;
    assert_eq!(server.one(TOTALS).await, "100|100", "reads go on");
    assert_eq!(server.one("SELECT sum(passed) FROM system.conservation").await, "100");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retention_gap_halts_its_partition_alone() {
    let world = World::new(2).await;
    let server = world.serve().await;
    world.kafka.write(clicks("zero", 0, 10).into_iter().chain(clicks("one", 1, 10)));
    server.until(TOTALS, &["20|20"]).await;
    server.until_archived().await;
    server.stop().await;

    world.kafka.write(clicks("lost", 0, 10).into_iter().chain(clicks("kept", 1, 10)));
    world.kafka.delete_records(TOPIC, 0, 15).await;
    let server = world.serve().await;
    server.until(TOTALS, &["30|30"]).await;
    let partitions = "SELECT partition, position, reading, coalesce(reason, '') LIKE 'offsets 10 to 14 are gone%' \
                      FROM system.partitions ORDER BY partition";
    server.until(partitions, &["0|10|f|t", "1|20|t|f"]).await;
    server.until_http("/readyz", 503, "stream clicks partition 0: offsets 10 to 14 are gone").await;
    world.kafka.write(clicks("zero-again", 0, 5).into_iter().chain(clicks("one-again", 1, 5)));
    server.until(TOTALS, &["35|35"]).await;
    assert_eq!(
        server.one("SELECT count(*) FROM raw.clicks WHERE _partition = 0").await,
        "10",
        "nothing is skipped"
    );
    server.until("SELECT complete FROM system.freshness", &["f"]).await;
    server.stop().await;
}

/// What an unclean election does; afterwards the log grows beyond the old position with other records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_log_halts_its_partition_and_is_never_read_again_from_the_start() {
    let world = World::new(2).await;
    let server = world.serve().await;
    // One batch each, so that the log can be cut between any two.
    for n in 0..10 {
        world.kafka.write(clicks(&format!("zero-{n}"), 0, 1));
    }
    world.kafka.write(clicks("one", 1, 10));
    server.until(TOTALS, &["20|20"]).await;
    assert_eq!(world.kafka.broker.lose_from(TOPIC, 0, 5).await.unwrap(), 5);
    let halted = "SELECT partition, position, reading, coalesce(reason, '') LIKE '%the log ends at 5%truncated%' \
                  FROM system.partitions ORDER BY partition";
    server.until(halted, &["0|10|f|t", "1|10|t|f"]).await;
    server.until_http("/readyz", 503, "truncated").await;
    world.kafka.write(clicks("other", 0, 20).into_iter().chain(clicks("more", 1, 10)));
    server.until("SELECT count(*) FROM raw.clicks WHERE _partition = 1", &["20"]).await;
    // Many looks later it still stands.
    let looks = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while std::time::Instant::now() < looks {
        assert_eq!(server.one("SELECT count(*) FROM raw.clicks WHERE id LIKE 'other%'").await, "0");
        assert_eq!(server.rows(halted).await, ["0|10|f|t", "1|20|t|f"]);
    }
    assert_eq!(server.get("/healthz").await.unwrap().0, 200);
    assert_eq!(server.one(TOTALS).await, "30|30");
    server.assert_equivalent().await;
    server.stop().await;
}

/// Aborted records and control records take offsets and are no records: lag reaches 0 all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_leave_gaps_that_are_counted_as_such() {
    let world = World::new(2).await;
    let server = world.serve().await;
    let writer = world.kafka.writer(&[("transactional.id", "t")]);
    writer.init_transactions(PATIENCE).unwrap();
    let write = |prefix: &str, count: usize| {
        writer.begin_transaction().unwrap();
        for n in 0..count {
            let value = click(&format!("{prefix}-{n}"), "a", 1);
            send(&writer, TOPIC, 0, value.as_deref());
        }
        writer.flush(PATIENCE).unwrap();
    };
    let gaps = "SELECT passed, counted, gaps, balances FROM system.conservation WHERE partition = 0";
    let lag = "SELECT sum(lag) FROM system.partitions";

    write("committed", 5);
    writer.commit_transaction(PATIENCE).unwrap();
    server.until(gaps, &["6|5|1|t"]).await;
    write("aborted", 7);
    writer.abort_transaction(PATIENCE).unwrap();
    assert_eq!(world.kafka.end(TOPIC, 0), 14);
    server.until(gaps, &["14|5|9|t"]).await;
    server.until(lag, &["0"]).await;
    server.until("SELECT complete FROM system.freshness", &["t"]).await;

    // Open: nothing of it is seen, and it is not called a lag that could be read.
    write("open", 3);
    assert_eq!(server.one(TOTALS).await, "5|5");
    writer.commit_transaction(PATIENCE).unwrap();
    server.until(TOTALS, &["8|8"]).await;
    server.until(gaps, &["18|8|10|t"]).await;

    // A marker behind the last record, while the other partition keeps the reader busy.
    write("aborted-too", 2);
    writer.abort_transaction(PATIENCE).unwrap();
    let mut number = 0;
    eventually("the marker is passed under load", async || {
        number += 1;
        world.kafka.write(clicks(&format!("busy-{number}"), 1, 500));
        match server.one(gaps).await {
            row if row == "21|8|13|t" => Ok(()),
            row => Err(row),
        }
    })
    .await;
    server.until_archived().await;
    server.stop().await;

    let server = world.serve().await;
    server.until(gaps, &["21|8|13|t"]).await;
    server.until(lag, &["0"]).await;
    assert_eq!(server.one("SELECT count(*) FROM raw.clicks WHERE id LIKE 'aborted%'").await, "0");
    server.stop().await;
}
