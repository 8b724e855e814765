//! Records of every kind, from Kafka to the answer.

use crate::kafka::ToWrite;
use crate::world::{CLICKS, VIEWS, World, click, clicks, difference};

/// What must become of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Counted,
    Duplicate,
    /// Set aside with a reason that holds this.
    Quarantined(&'static str),
}
use Fate::{Counted, Duplicate, Quarantined};

const AT: &str = r#""at":"2026-01-31T12:00:00Z""#;

/// Values with AT in the place of a sound time, in the order in which they are written to one partition.
const RECORDS: [(&[u8], Fate); 28] = [
    (br#"{"id":"1","page":"a","who":"x",AT,"ms":10}"#, Counted),
    (br#"{"id":"2","page":"a","who":"y",AT,"ms":900}"#, Counted),
    (br#"{"id":"3","page":"b","who":"x",AT,"ms":null}"#, Counted),
    (br#"{"id":"4","page":"b",AT}"#, Counted),
    // The same key is the same record, whatever else it says.
    (br#"{"id":"1","page":"a","who":"x",AT,"ms":10}"#, Duplicate),
    (br#"{"id":"2","page":"z",AT,"ms":1}"#, Duplicate),
    // A record that is set aside does not use up its key.
    (br#"{"id":"5","page":"a",AT,"ms":1001}"#, Quarantined("quick")),
    (br#"{"id":"5","page":"a",AT,"ms":1000}"#, Counted),
    (br#"{"id":"6","page":"a",AT,"ms":-1}"#, Quarantined("quick")),
    // Undeclared fields are kept.
    (br#"{"id":"7","page":"b",AT,"ms":5,"colour":"red","deep":{"n":[1,2]}}"#, Counted),
    // Bad JSON.
    (b"", Quarantined("EOF")),
    (b"nonsense", Quarantined("expected")),
    (br#"{"id":"8","page":"a","#, Quarantined("EOF")),
    (br#"{"id":"8","page":"a",AT} {}"#, Quarantined("trailing")),
    (br#"[1,2]"#, Quarantined("a JSON object")),
    (b"{\"id\":\"8\",\"page\":\"\xff\xfe\",AT}", Quarantined("not UTF-8")),
    // Wrong types.
    (br#"{"id":8,"page":"a",AT}"#, Quarantined("field id")),
    (br#"{"id":"8","page":"a",AT,"ms":"10"}"#, Quarantined("field ms")),
    (br#"{"id":"8","page":"a",AT,"ms":1.5}"#, Quarantined("field ms")),
    (br#"{"id":"8","page":"a",AT,"ms":3000000000}"#, Quarantined("field ms")),
    (br#"{"id":"8","page":"a","at":"yesterday"}"#, Quarantined("field at")),
    // Missing keys.
    (br#"{"page":"a",AT}"#, Quarantined("field id: required, but missing")),
    (br#"{"id":"8","page":null,AT}"#, Quarantined("field page: required, but null")),
    // Times that nobody can have meant.
    (br#"{"id":"8","page":"a","at":"2999-01-01T00:00:00Z"}"#, Quarantined("field at")),
    (br#"{"id":"8","page":"a","at":"2200-01-01T00:00:00Z"}"#, Quarantined("not_from_the_future")),
    (br#"{"id":"8","page":"a","at":"1970-01-01T00:00:00Z"}"#, Quarantined("not_ancient")),
    // Late, but sound.
    (br#"{"id":"9","page":"c","who":"x","at":"2006-02-03T04:05:06+01:00","ms":7}"#, Counted),
    (br#"{"id":"10","page":"c",AT,"ms":8}"#, Counted),
];

fn value(template: &[u8]) -> Vec<u8> {
    match template.windows(2).position(|pair| pair == b"AT") {
        Some(place) => [&template[..place], AT.as_bytes(), &template[place + 2..]].concat(),
        None => template.to_vec(),
    }
}

/// The table above on partition 1, and on partition 2 a tombstone and a record of 10 MB.
fn every_kind() -> Vec<ToWrite> {
    let mut records: Vec<ToWrite> = RECORDS.iter().map(|(template, _)| (1, Some(value(template)))).collect();
    let huge = format!(r#"{{"id":"11","page":"a",{AT},"who":"{}"}}"#, "x".repeat(10_000_000));
    records.extend([(2, None), (2, Some(huge.into_bytes())), (2, click("12", "c", 9))]);
    records
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_goes_where_it_belongs() {
    let world = World::new(3).await;
    let server = world.serve().await;
    let records = every_kind();
    world.kafka.write(records.clone());
    server.until_passed(records.len()).await;

    let count = |fate: fn(&Fate) -> bool| RECORDS.iter().filter(|(_, found)| fate(found)).count();
    let counted = count(|fate| *fate == Counted) + 1;
    let duplicates = count(|fate| *fate == Duplicate);
    let quarantined = count(|fate| matches!(fate, Quarantined(_))) + 2;

    // Where each went, by its coordinates.
    let placed = server
        .rows(
            "SELECT _offset, 'counted' FROM raw.clicks WHERE _partition = 1 \
             UNION ALL SELECT _offset, 'duplicate' FROM raw.clicks_duplicates WHERE _partition = 1 \
             UNION ALL SELECT _offset, 'quarantined' FROM quarantine.clicks WHERE _partition = 1 ORDER BY 1",
        )
        .await;
    let expected: Vec<String> = (0..)
        .zip(RECORDS)
        .map(|(offset, (_, fate))| match fate {
            Counted => format!("{offset}|counted"),
            Duplicate => format!("{offset}|duplicate"),
            Quarantined(_) => format!("{offset}|quarantined"),
        })
        .collect();
    assert_eq!(placed, expected);

    // The reason, the raw bytes, the coordinates.
    let rows = server
        .rows(
            "SELECT _topic, _partition, _offset, encode(_raw, 'hex'), _produced_at IS NULL, _ingested_at IS NULL, \
             _reason FROM quarantine.clicks WHERE _partition = 1 ORDER BY _offset",
        )
        .await;
    let broken = (0..).zip(RECORDS).filter_map(|(offset, (template, fate))| match fate {
        Quarantined(reason) => Some((offset, template, reason)),
        _ => None,
    });
    let broken: Vec<(i64, &[u8], &str)> = broken.collect();
    assert_eq!(rows.len(), broken.len());
    for (row, (offset, template, reason)) in rows.iter().zip(broken) {
        let start = format!("clicks|1|{offset}|{}|f|f|", hex(&value(template)));
        let found = row.strip_prefix(&start).unwrap_or_else(|| panic!("{row} does not begin with {start}"));
        assert!(found.contains(reason), "offset {offset}: {found:?} does not name {reason:?}");
    }
    let rest = "SELECT _offset, length(encode(_raw, 'hex')) / 2, _reason FROM quarantine.clicks WHERE _partition = 2 ORDER BY 1";
    let rest = server.rows(rest).await;
    assert_eq!(rest[0], "0|-|the record has no value");
    assert!(rest[1].starts_with("1|100000") && rest[1].contains("ingest.record_bytes_max 1048576"), "{rest:?}");
    assert_eq!(rest.len(), 2);

    let extra = server.one("SELECT _extra FROM raw.clicks WHERE id = '7'").await;
    assert_eq!(extra, r#"{"colour":"red","deep":{"n":[1,2]}}"#);
    server.until("SELECT count(*) FROM raw.clicks WHERE _extra IS NOT NULL", &["1"]).await;

    // The answer, told by hand.
    let pages = "SELECT page, total, slow, spent, visitors FROM pages ORDER BY page";
    let told = ["a|3|2|1910|2", "b|3|0|5|1", "c|3|0|24|1"];
    assert_eq!(server.rows(pages).await, told);
    server.assert_equivalent().await;

    // Books and figures.
    let books = "SELECT sum(passed), sum(counted), sum(duplicate), sum(quarantined), sum(gaps), bool_and(balances) \
                 FROM system.conservation";
    // Of two records with one key and another content, the second is shown beside the one that counts.
    let conflicts = "SELECT id, page, who, ms, _partition, _offset, _counted_partition, _counted_offset \
                     FROM raw.clicks_conflicts";
    assert_eq!(server.rows(conflicts).await, ["2|z|-|1|1|5|1|1"]);

    let balance = format!("{}|{counted}|{duplicates}|{quarantined}|0|t", records.len());
    assert_eq!(server.one(books).await, balance);
    let lag = "SELECT sum(lag), bool_and(reading), count(reason) FROM system.partitions";
    server.until(lag, &["0|t|0"]).await;
    server.until("SELECT lag, complete FROM system.freshness", &["0|t"]).await;
    let (_, metrics) = server.get("/metrics").await.unwrap();
    for (outcome, number) in [("counted", counted), ("duplicate", duplicates), ("quarantined", quarantined)] {
        let line = format!(r#"view_events_total{{stream="clicks",outcome="{outcome}"}} {number}"#);
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
    server.until_ready().await;

    // Merged = batch + speed, row by row; a refresh moves everything to batch and changes no answer.
    let halves = "SELECT page, sum(total), sum(spent) FROM (SELECT page, total, spent FROM batch.pages UNION ALL \
                  SELECT page, total, spent FROM speed.pages) h GROUP BY page ORDER BY page";
    let merged = "SELECT page, total, spent FROM pages ORDER BY page";
    let before = server.answers().await;
    assert_eq!(server.one("SELECT count(*) FROM batch.pages").await, "0");
    assert_eq!(server.rows(halves).await, server.rows(merged).await);
    server.until_archived().await;
    server.refresh().await;
    assert_eq!(server.answers().await, before);
    assert_eq!(server.one("SELECT count(*) FROM speed.pages").await, "0");
    assert_eq!(
        server.rows("SELECT page, total, spent FROM batch.pages ORDER BY page").await,
        server.rows(merged).await
    );
    world.kafka.write([(0, click("13", "a", 1)), (0, click("14", "d", 2))]);
    server.until("SELECT page, total FROM speed.pages ORDER BY page", &["a|1", "d|1"]).await;
    assert_eq!(server.rows(halves).await, server.rows(merged).await);
    assert_eq!(server.rows("SELECT total FROM pages WHERE page IN ('a', 'd') ORDER BY page").await, ["4", "1"]);
    server.stop().await;
}

/// An expression may fail on a value; the record is set aside for it, and nothing stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_fails_on_a_value_stops_nothing() {
    let world = World::new(1).await;
    world.write_sql("streams/clicks.sql", &CLICKS.replace("ms BETWEEN 0 AND 1000", "10 / ms > 0"));
    let server = world.serve().await;
    world.kafka.write([5, 0, 20, 10, 0, 1].iter().zip(0..).map(|(ms, id)| (0, click(&format!("{id}"), "a", *ms))));
    server.until_passed(6).await;
    let reasons = "SELECT _offset, split_part(_reason, ':', 1) FROM quarantine.clicks ORDER BY _offset";
    let wanted = ["1|check quick cannot be evaluated", "2|check quick fails", "4|check quick cannot be evaluated"];
    assert_eq!(server.rows(reasons).await, wanted);
    assert_eq!(server.rows("SELECT page, total, spent FROM pages").await, ["a|3|16"]);
    server.until_ready().await;
    server.stop().await;
}

/// So may an expression of a view. The record counts in no view then, and its key is free for a sound one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_a_view_cannot_take_stops_nothing() {
    let world = World::new(1).await;
    world.write_sql(
        "views/pace.sql",
        "CREATE MATERIALIZED VIEW pace AS SELECT page, sum(100 / ms) AS pace FROM raw.clicks GROUP BY page;",
    );
    let server = world.serve().await;
    world.kafka.write([10, 0, 20, 0].iter().zip(0..).map(|(ms, id)| (0, click(&format!("{id}"), "a", *ms))));
    server.until_passed(4).await;
    world.kafka.write([(0, click("1", "a", 50))]);
    server.until_passed(5).await;
    let reasons =
        "SELECT _offset, _reason LIKE 'view pace: %ivide by zero%' FROM quarantine.clicks ORDER BY _offset";
    assert_eq!(server.rows(reasons).await, ["1|t", "3|t"]);
    assert_eq!(server.rows("SELECT page, pace FROM pace").await, ["a|17"]);
    assert_eq!(server.rows("SELECT page, total FROM pages").await, ["a|3"]);
    server.until_ready().await;
    server.stop().await;
    let server = world.serve().await;
    server.until_passed(5).await;
    assert_eq!(server.rows("SELECT page, pace FROM pace").await, ["a|17"]);
    assert_eq!(server.rows("SELECT count(*) FROM quarantine.clicks").await, ["2"]);
    server.stop().await;
}

/// Twice in one batch, in another batch, in another epoch, behind a refresh, after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_is_counted_once_however_late_it_comes() {
    let world = World::new(2).await;
    let server = world.serve().await;
    let originals = clicks("d", 0, 30);
    world.kafka.write(originals.iter().chain(&originals).cloned());
    server.until_passed(60).await;
    let elsewhere: Vec<_> = originals.iter().map(|(_, value)| (1, value.clone())).collect();
    world.kafka.write(elsewhere.clone());
    server.until_passed(90).await;
    server.until_archived().await;
    world.kafka.write(elsewhere.clone());
    server.until_passed(120).await;
    server.until_archived().await;
    server.refresh().await;
    world.kafka.write(originals.clone());
    server.until_passed(150).await;
    server.stop().await;

    let server = world.serve().await;
    world.kafka.write(elsewhere);
    server.until_passed(180).await;
    assert_eq!(
        server.one("SELECT (SELECT sum(total) FROM pages), (SELECT count(*) FROM raw.clicks)").await,
        "30|30"
    );
    assert_eq!(server.one("SELECT count(*) FROM raw.clicks_duplicates").await, "150");
    let books = "SELECT sum(counted), sum(duplicate), sum(gaps), bool_and(balances) FROM system.conservation";
    assert_eq!(server.one(books).await, "30|150|0|t");
    server.assert_equivalent().await;
    server.stop().await;
}

/// A restart answers the same, whether or not everything was archived or refreshed before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_changes_no_answer() {
    let world = World::new(3).await;
    let server = world.serve().await;
    let records = every_kind();
    world.kafka.write(records.clone());
    server.until_passed(records.len()).await;
    let before = server.answers().await;
    assert!(before.len() > 40, "{before:#?}");
    server.stop().await;

    let server = world.serve().await;
    server.until_passed(records.len()).await;
    assert_eq!(server.answers().await, before, "read again from Kafka, or from the archive");
    server.until_archived().await;
    server.stop().await;

    let server = world.serve().await;
    assert_eq!(server.answers().await, before, "from the archive alone, at once");
    server.refresh().await;
    server.stop().await;

    let server = world.serve().await;
    assert_eq!(server.answers().await, before, "from the batch views");
    assert_eq!(server.one("SELECT count(*) FROM speed.pages").await, "0");
    server.stop().await;
}

/// The control of every use of [`difference`]: a view that is wrong by one row, or by one in a count, is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_difference_would_be_seen() {
    let world = World::new(1).await;
    let server = world.serve().await;
    world.kafka.write(clicks("x", 0, 9));
    server.until_passed(9).await;
    for (view, query) in VIEWS {
        let wrong_rows = format!("{query} HAVING count(*) < 3");
        if view == "pages" {
            assert_eq!(server.rows(&difference(view, &wrong_rows)).await.len(), 3, "rows that the records lack");
        }
        let wrong_counts = query.replace("count(*) AS total", "count(*) + 1 AS total");
        assert_ne!(wrong_counts, query);
        let rows = server.rows(&difference(view, &wrong_counts)).await.len();
        assert_eq!(rows, if view == "visitors" { 0 } else { 6 }, "{view}");
    }
    server.stop().await;
}
