//! Brokers that are away: reads go on, the state says so, and reading goes on by itself afterwards.

use std::time::{Duration, Instant};

use viewledger::demo::broker::faults::Availability;

use crate::processes::Process;
use crate::world::{World, clicks};

const TOTALS: &str = "SELECT (SELECT count(*) FROM raw.clicks), (SELECT sum(total) FROM pages)";

async fn away_and_back(how: Availability) {
    let world = World::new(2).await;
    let server = world.serve().await;
    world.kafka.write(clicks("before", 0, 40));
    server.until(TOTALS, &["40|40"]).await;
    server.until_ready().await;

    world.kafka.broker.faults().set_availability(how);
    server.until_http("/readyz", 503, "broker").await;
    // It keeps saying so, and answers meanwhile.
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        let (code, body) = server.get("/readyz").await.unwrap();
        assert_eq!(code, 503, "{how:?}: {body}");
        assert_eq!(server.one(TOTALS).await, "40|40");
    }
    assert_eq!(server.one("SELECT complete FROM system.freshness").await, "f");
    assert_eq!(
        server.one("SELECT count(*) FROM system.partitions WHERE NOT reading AND reason LIKE '%broker%'").await,
        "2"
    );
    assert_eq!(server.get("/healthz").await.unwrap().0, 200, "the process itself is well");
    server.refresh().await;

    world.kafka.broker.faults().set_availability(Availability::Serving);
    world.kafka.write(clicks("after", 1, 60));
    server.until(TOTALS, &["100|100"]).await;
    server.until_ready().await;
    server.until("SELECT lag, complete FROM system.freshness", &["0|t"]).await;
    assert_eq!(server.one("SELECT bool_and(reading) FROM system.partitions").await, "t");
    server.assert_equivalent().await;
    server.stop().await;
}

/// A client that waits for its broker does not keep threads busy with it: connecting without a pause, they would wake each
/// other up thousands of times a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_are_away_are_not_stormed() {
    const SECONDS: u64 = 3;
    let world = World::new(2).await;
    let process = Process::start(&world).await;
    process.until_ready().await;
    world.kafka.broker.faults().set_availability(Availability::Refusing);
    process.until_http("/readyz", 503, "broker").await;
    let before = process.wakeups("rdk:");
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let woken = process.wakeups("rdk:").saturating_sub(before);
    assert!(woken < 500 * SECONDS, "the client's threads were woken {woken} times in {SECONDS} s");
    world.kafka.broker.faults().set_availability(Availability::Serving);
    process.until_ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_refuse_connections() {
    away_and_back(Availability::Refusing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_do_not_answer() {
    away_and_back(Availability::Stalled).await;
}

/// The start does not wait for Kafka: what is archived is answered, and reading begins when brokers come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_and_an_end_without_brokers() {
    let world = World::new(1).await;
    let server = world.serve().await;
    world.kafka.write(clicks("before", 0, 10));
    server.until(TOTALS, &["10|10"]).await;
    server.until_archived().await;
    server.stop().await;

    for how in [Availability::Refusing, Availability::Stalled] {
        world.kafka.broker.faults().set_availability(how);
        let server = world.serve().await;
        assert_eq!(server.one(TOTALS).await, "10|10", "{how:?}");
        server.until_http("/readyz", 503, "clicks").await;
        let asked = Instant::now();
        server.stop().await;
        assert!(asked.elapsed() < Duration::from_secs(20), "{how:?}: the end took {:?}", asked.elapsed());
    }

    let server = world.serve().await;
    server.until_http("/readyz", 503, "clicks").await;
    world.kafka.broker.faults().set_availability(Availability::Serving);
    world.kafka.write(clicks("after", 0, 10));
    server.until(TOTALS, &["20|20"]).await;
    server.until_ready().await;
    server.stop().await;
}
