//! Views that change between two starts are computed anew from the archive.

use crate::world::{World, clicks, view_sql};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_a_new_and_a_removed_view() {
    let world = World::new(2).await;
    let server = world.serve().await;
    world.kafka.write(clicks("c", 0, 30).into_iter().chain(clicks("d", 1, 30)));
    server.until_passed(60).await;
    server.until_archived().await;
    server.refresh().await;
    // Archived and in the delta, but not in the generation.
    world.kafka.write(clicks("e", 0, 30));
    server.until_passed(90).await;
    server.until_archived().await;
    server.stop().await;

    let changed = "SELECT page, count(*) * 10 AS total, sum(ms) + 1 AS spent FROM raw.clicks GROUP BY page";
    let added = "SELECT _partition, count(*) AS total, min(id) AS first_id FROM raw.clicks GROUP BY _partition";
    world.write_sql("views/pages.sql", &view_sql("pages", changed));
    world.write_sql("views/by_partition.sql", &view_sql("by_partition", added));
    world.remove_sql("views/visitors.sql");
    let server = world.serve().await;
    let pages = "SELECT * FROM pages ORDER BY page";
    assert_eq!(server.rows(pages).await, ["a|300|301", "b|300|301", "c|300|301"]);
    let partitions = "SELECT * FROM by_partition ORDER BY _partition";
    assert_eq!(server.rows(partitions).await, ["0|60|c-0", "1|30|d-0"]);
    assert_eq!(server.rows("SELECT * FROM batch.by_partition ORDER BY _partition").await, ["0|60|c-0", "1|30|d-0"]);
    let missing = server.try_rows("SELECT * FROM visitors").await.unwrap_err();
    assert!(missing.contains("visitors"), "{missing}");
    assert_eq!(server.one("SELECT sum(total) FROM page_hours").await, "90");

    // Both halves go on with the new definition.
    world.kafka.write(clicks("f", 1, 3));
    server.until(pages, &["a|310|311", "b|310|311", "c|310|311"]).await;
    server.until_archived().await;
    server.refresh().await;
    assert_eq!(server.rows(pages).await, ["a|310|311", "b|310|311", "c|310|311"]);
    assert_eq!(server.rows(partitions).await, ["0|60|c-0", "1|33|d-0"]);
    server.stop().await;

    // And back again, to a definition of which older states may still lie around.
    let world_views = crate::world::VIEWS;
    world.write_sql("views/pages.sql", &view_sql(world_views[0].0, world_views[0].1));
    world.write_sql("views/visitors.sql", &view_sql(world_views[2].0, world_views[2].1));
    let server = world.serve().await;
    assert_eq!(
        server.rows("SELECT page, total, spent FROM pages ORDER BY page").await,
        ["a|31|310", "b|31|310", "c|31|310"]
    );
    server.assert_equivalent().await;
    server.stop().await;
}
