//! Two processes on one storage: whoever opened last writes, the other finds out and stops.

use std::time::Duration;

use crate::processes::Process;
use crate::world::{World, clicks};

/// Seconds for which the first process is stopped while the second works; `STOPPED` sets another number.
fn stopped() -> u64 {
    std::env::var("STOPPED").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_wakes_up_after_another_took_over_is_fenced() {
    let mut world = World::new(2).await;
    let shared = world.path("shared").display().to_string();
    world.set("VIEWLEDGER_STORAGE_LOCATION", shared);
    let zombie = Process::start(&world).await;
    world.kafka.write(clicks("before", 0, 300));
    zombie.until_passed(300).await;
    zombie.until_archived().await;
    zombie.refresh().await;
    // It has records that it has not committed when it stops.
    world.kafka.write(clicks("during", 1, 200));
    zombie.until_passed(500).await;
    zombie.signal(libc::SIGSTOP);

    world.use_data_dir(&world.path("other"));
    let second = Process::start(&world).await;
    second.until_passed(500).await;
    second.until_archived().await;
    second.refresh().await;
    second.refresh().await;
    world.kafka.write(clicks("after", 0, 100));
    second.until_passed(600).await;

    tokio::time::sleep(Duration::from_secs(stopped())).await;
    zombie.signal(libc::SIGCONT);
    // More records, so that it has something to commit in any case.
    world.kafka.write(clicks("later", 1, 50));
    let log = zombie.log_path();
    let ended = tokio::task::spawn_blocking(move || zombie.end()).await.unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(log.contains("fenced"), "{log}");

    second.until_passed(650).await;
    second.until_archived().await;
    let totals = "SELECT (SELECT sum(total) FROM pages) AS pages, (SELECT count(*) FROM raw.clicks) AS raw, \
                  (SELECT count(DISTINCT id) FROM raw.clicks) AS ids, \
                  (SELECT count(*) FROM raw.clicks_duplicates) AS duplicates";
    assert_eq!(second.one(totals).await, "650|650|650|0");
    second.refresh().await;
    assert_eq!(second.one(totals).await, "650|650|650|0");
    second.assert_equivalent().await;
    assert_eq!(second.get("/healthz").await.unwrap().0, 200);
    second.signal(libc::SIGTERM);
    assert_eq!(second.end().code(), Some(0));
}
