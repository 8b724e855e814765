//! Materialized views that read reference tables: a change of a table counts from the next generation on, and batch and
//! speed never differ in which version they hold.

use crate::server::{Ask, Server};
use crate::world::{World, clicks, difference, view_sql};

const TABLES: &str = "\
CREATE TABLE excluded (id TEXT PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE rates (
    page       TEXT,
    valid_from TIMESTAMPTZ,
    valid_to   TIMESTAMPTZ,
    rate       DECIMAL(18, 9) NOT NULL,
    PRIMARY KEY (page, valid_from)
);
";

const VALID: &str = "SELECT page, count(*) AS total FROM raw.clicks c \
                     WHERE NOT EXISTS (SELECT 1 FROM excluded e WHERE e.id = c.id) GROUP BY page";
/// At the rate of the moment when it happened.
const DUE: &str = "SELECT c.page, count(*) AS total, sum(r.rate) AS due FROM raw.clicks c JOIN rates r ON r.page = c.page \
                   AND c.at >= r.valid_from AND (r.valid_to IS NULL OR c.at < r.valid_to) GROUP BY c.page";

async fn joined() -> World {
    let world = World::new(2).await;
    world.write_sql("tables/all.sql", TABLES);
    world.write_sql("views/valid.sql", &view_sql("valid", VALID));
    world.write_sql("views/due.sql", &view_sql("due", DUE));
    world
}

async fn assert_equal(server: &Ask) {
    for (view, query) in [("valid", VALID), ("due", DUE)] {
        assert_eq!(server.rows(&difference(view, query)).await, Vec::<String>::new(), "view {view}");
    }
    server.assert_equivalent().await;
}

async fn halves(server: &Ask) -> String {
    server
        .one(
            "SELECT (SELECT sum(total) FROM batch.valid), (SELECT sum(total) FROM speed.valid), \
             (SELECT sum(total) FROM valid)",
        )
        .await
}

async fn bound(server: &Server) -> Vec<String> {
    server.rows("SELECT view, \"tables\" FROM system.views WHERE \"tables\" IS NOT NULL ORDER BY 1").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_counts_from_the_next_generation_on() {
    let world = joined().await;
    let server = world.serve().await;
    server
        .rows("INSERT INTO rates VALUES ('a', '2020-01-01', '2026-01-01', 5), ('a', '2026-01-01', NULL, 2)")
        .await;
    server.rows("INSERT INTO rates VALUES ('b', '2020-01-01', NULL, 1)").await;
    world.kafka.write(clicks("x", 0, 30));
    server.until_passed(30).await;
    server.until_archived().await;
    // Bound at the start: to nothing.
    assert_eq!(bound(&server).await, ["due|rates 0", "valid|excluded 0"]);
    assert_eq!(server.rows("SELECT * FROM due").await, Vec::<String>::new());
    server.refresh().await;
    assert_eq!(bound(&server).await, ["due|rates 2", "valid|excluded 0"]);
    assert_eq!(server.rows("SELECT * FROM due ORDER BY 1").await, ["a|10|20.000000000", "b|10|10.000000000"]);
    assert_equal(&server).await;

    // What comes is computed with the version of the generation, until the next.
    server.rows("INSERT INTO excluded VALUES ('x-0', 'robot'), ('y-1', 'robot')").await;
    world.kafka.write(clicks("y", 1, 6));
    server.until_passed(36).await;
    assert_eq!(halves(&server).await, "30|6|36");
    server.until_archived().await;
    server.refresh().await;
    assert_eq!(bound(&server).await, ["due|rates 2", "valid|excluded 3"]);
    assert_eq!(halves(&server).await, "34|-|34");
    world.kafka.write(clicks("z", 1, 3));
    server.until_passed(39).await;
    assert_eq!(halves(&server).await, "34|3|37");
    assert_equal(&server).await;
    let differing = "SELECT count(*) FROM system.reconciliation WHERE differing > 0 OR error IS NOT NULL";
    assert_eq!(server.one(differing).await, "0");

    // A restart holds what it held, whatever the tables have become meanwhile.
    server.until_archived().await;
    server.rows("DELETE FROM excluded WHERE id = 'x-0'").await;
    server.stop().await;
    let server = world.serve().await;
    assert_eq!(bound(&server).await, ["due|rates 2", "valid|excluded 3"]);
    assert_eq!(halves(&server).await, "34|3|37");
    server.refresh().await;
    assert_eq!(bound(&server).await, ["due|rates 2", "valid|excluded 4"]);
    assert_eq!(halves(&server).await, "38|-|38");
    assert_equal(&server).await;

    // Older generations answer with the tables that they were made with.
    let client = server.connect().await.unwrap();
    let as_of = async |generation: u64, sql: &str| {
        crate::server::rows(&client, &format!("SET viewledger.as_of = '{generation}'")).await.unwrap();
        crate::server::rows(&client, sql).await.unwrap()
    };
    for (generation, valid, excluded) in [(1, "30", "0"), (2, "34", "2"), (3, "38", "1")] {
        assert_eq!(as_of(generation, "SELECT sum(total) FROM valid").await, [valid], "generation {generation}");
        assert_eq!(as_of(generation, "SELECT count(*) FROM excluded").await, [excluded], "generation {generation}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_and_tables_change_beside_each_other() {
    let world = joined().await;
    let server = world.serve().await;
    world.kafka.write(clicks("x", 0, 30));
    server.until_passed(30).await;
    server.until_archived().await;
    server.refresh().await;
    server.rows("INSERT INTO excluded VALUES ('x-1', 'robot')").await;
    let second = VALID.replace("count(*) AS total", "count(*) AS total, max(c.id) AS last_id");
    server.rows(&format!("CREATE OR REPLACE MATERIALIZED VIEW valid AS {second}")).await;
    // The new version has the newest rows, the one that is read what it had.
    assert_eq!(bound(&server).await, ["due|rates 0", "valid|excluded 0", "valid@2|excluded 1"]);
    assert_eq!(server.one("SELECT sum(total) FROM \"valid@2\"").await, "29");
    assert_eq!(server.one("SELECT sum(total) FROM valid").await, "30");
    server.refresh().await;
    assert_eq!(bound(&server).await, ["due|rates 0", "valid|excluded 1", "valid@2|excluded 1"]);
    let totals = "SELECT (SELECT sum(total) FROM valid), (SELECT sum(total) FROM \"valid@2\")";
    assert_eq!(server.one(totals).await, "29|29");
    server.rows("ALTER MATERIALIZED VIEW valid SET (version = 2)").await;
    assert_eq!(server.rows(&difference("valid", &second)).await, Vec::<String>::new());
    server.rows("UPDATE excluded SET id = 'x-2'").await;
    world.kafka.write(clicks("y", 1, 3));
    server.until_passed(33).await;
    server.until_archived().await;
    server.refresh().await;
    assert_eq!(server.rows(&difference("valid", &second)).await, Vec::<String>::new());
    assert_eq!(server.one("SELECT sum(total) FROM valid").await, "32");
    let reader = "CREATE MATERIALIZED VIEW excluded AS SELECT page, count(*) AS n FROM raw.clicks GROUP BY page";
    let taken = server.try_rows(reader).await.unwrap_err();
    assert!(taken.contains("42P07") || taken.contains("already exists"), "{taken}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_with_which_a_view_cannot_be_computed_hold_up_nothing_else() {
    let world = World::new(1).await;
    world.write_sql("tables/t.sql", "CREATE TABLE weights (page TEXT PRIMARY KEY, weight BIGINT NOT NULL);\n");
    let query = "SELECT c.page, sum(100 / w.weight) AS weighed FROM raw.clicks c JOIN weights w USING (page) GROUP BY c.page";
    world.write_sql("views/weighed.sql", &view_sql("weighed", query));
    let server = world.serve().await;
    server.rows("INSERT INTO weights VALUES ('a', 10)").await;
    world.kafka.write(clicks("x", 0, 6));
    server.until_passed(6).await;
    server.until_archived().await;
    server.refresh().await;
    assert_eq!(server.rows("SELECT * FROM weighed").await, ["a|20"]);
    server.rows("UPDATE weights SET weight = 0").await;
    world.kafka.write(clicks("y", 0, 3));
    server.until_passed(9).await;
    server.until_archived().await;
    server.refresh().await;
    assert_eq!(bound(&server).await, ["weighed|weights 1"], "it keeps what it can be computed with");
    assert_eq!(server.rows("SELECT * FROM weighed").await, ["a|30"]);
    assert_eq!(server.one("SELECT max(generation) FROM system.generations").await, "2");
    server.rows("UPDATE weights SET weight = 5").await;
    server.refresh().await;
    assert_eq!(server.rows("SELECT * FROM weighed").await, ["a|60"]);
    server.assert_equivalent().await;
    server.stop().await;
}
