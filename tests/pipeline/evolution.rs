//! A stream whose declaration changes between two starts.

use crate::world::{CLICKS, World, clicks, view_sql};

/// A record with a field that the stream does not declare at first.
fn with_device(id: &str, device: &str) -> (i32, Option<Vec<u8>>) {
    let text = format!(r#"{{"id":"{id}","page":"a","at":"2026-01-31T12:00:00Z","ms":1,"device":{device}}}"#);
    (0, Some(text.into_bytes()))
}

fn declared_with(line: &str) -> String {
    CLICKS.replace("    ms   INTEGER,\n", &format!("    ms   INTEGER,\n    {line},\n"))
}

const DEVICES: &str = "SELECT device, count(*) AS total FROM raw.clicks GROUP BY device";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_column_is_read_from_the_undeclared_fields_of_older_records() {
    let mut world = World::new(2).await;
    world.set("VIEWLEDGER_ARCHIVE_UPKEEP_INTERVAL", "100ms");
    let server = world.serve().await;
    // In the generation, in files that are put together.
    for n in 0..10 {
        world.kafka.write([with_device(&format!("tv-{n}"), r#""tv""#), with_device(&format!("none-{n}"), "null")]);
        server.until_passed((n + 1) * 2).await;
        server.until_archived().await;
    }
    server.refresh().await;
    server.until("SELECT count(*) FROM system.files WHERE state = 'live' AND kind = 'event'", &["1"]).await;
    // Archived after the generation: read back into the delta at the start.
    world.kafka.write([
        with_device("phone", r#""phone""#),
        with_device("number", "7"),
        with_device("tv-0", r#""tv""#),
    ]);
    world.kafka.write(clicks("plain", 1, 3));
    server.until_passed(26).await;
    server.until_archived().await;
    let before = server.answers().await;
    server.stop().await;

    world.write_sql("streams/clicks.sql", &declared_with("device TEXT"));
    world.write_sql("views/devices.sql", &view_sql("devices", DEVICES));
    let server = world.serve().await;
    assert_eq!(server.answers().await, before, "nothing else changed");
    let devices = "SELECT * FROM devices ORDER BY device NULLS LAST";
    // Ten are null, one is a number where text belongs, three never had it.
    assert_eq!(server.rows(devices).await, ["phone|1", "tv|10", "-|14"]);
    assert_eq!(server.rows(&format!("{DEVICES} ORDER BY device NULLS LAST")).await, ["phone|1", "tv|10", "-|14"]);
    assert_eq!(server.one("SELECT count(*) FROM raw.clicks WHERE device = 'tv'").await, "10");
    assert_eq!(server.one("SELECT device FROM raw.clicks_duplicates").await, "tv");

    // New records have the column; both halves go on, and files of both kinds are put together apart.
    for n in 0..10 {
        world.kafka.write([with_device(&format!("new-{n}"), r#""watch""#)]);
        server.until_passed(26 + n + 1).await;
        server.until_archived().await;
    }
    let expected = ["phone|1", "tv|10", "watch|10", "-|14"];
    assert_eq!(server.rows(devices).await, expected);
    server.refresh().await;
    assert_eq!(server.rows(devices).await, expected);
    let live = "SELECT count(*) < 6 FROM system.files WHERE state = 'live' AND kind = 'event'";
    server.until(live, &["t"]).await;
    server.rows("REFRESH MATERIALIZED VIEW devices WITH FULL DATA").await;
    assert_eq!(server.rows("SELECT * FROM batch.devices ORDER BY device NULLS LAST").await, expected);
    assert_eq!(server.rows(&format!("{DEVICES} ORDER BY device NULLS LAST")).await, expected);
    server.stop().await;

    // Declared no more: what came with the column keeps it, what comes goes to the undeclared fields.
    world.write_sql("streams/clicks.sql", CLICKS);
    world.remove_sql("views/devices.sql");
    let server = world.serve().await;
    let unknown = server.try_rows("SELECT device FROM raw.clicks").await.unwrap_err();
    assert!(unknown.contains("device"), "{unknown}");
    world.kafka.write([with_device("between", r#""radio""#)]);
    server.until_passed(37).await;
    server.until_archived().await;
    server.stop().await;
    // And again: every record that ever said it says it.
    world.write_sql("streams/clicks.sql", &declared_with("device TEXT"));
    world.write_sql("views/devices.sql", &view_sql("devices", DEVICES));
    let server = world.serve().await;
    let expected = ["phone|1", "radio|1", "tv|10", "watch|10", "-|14"];
    assert_eq!(server.rows(devices).await, expected);
    assert_eq!(server.rows(&format!("{DEVICES} ORDER BY device NULLS LAST")).await, expected);
    server.assert_equivalent().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_change_is_refused_at_start() {
    let world = World::new(1).await;
    let server = world.serve().await;
    world.kafka.write(clicks("c", 0, 3));
    server.until_passed(3).await;
    server.until_archived().await;
    server.stop().await;
    for (definition, words) in [
        (CLICKS.replace("ms   INTEGER", "ms   BIGINT"), "clicks.sql:7:5: column ms"),
        (declared_with("device TEXT NOT NULL"), "clicks.sql:8:5: column device"),
        (CLICKS.replace(" PRIMARY KEY", ""), "clicks.sql:2:1: stream clicks"),
    ] {
        world.write_sql("streams/clicks.sql", &definition);
        let refused = format!("{:#}", world.try_serve().await.err().unwrap());
        assert!(refused.contains(words), "{refused}");
    }
    world.write_sql("streams/clicks.sql", CLICKS);
    let server = world.serve().await;
    assert_eq!(server.one("SELECT count(*) FROM raw.clicks").await, "3");
    server.stop().await;
}
