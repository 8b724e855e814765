//! Reference tables over the wire: statements, refusals, snapshots, and what a restart finds.

use std::sync::Arc;

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::world::World;

const PRICES: &str = "\
-- One row is the price of one page.
CREATE TABLE prices (
    page     TEXT PRIMARY KEY,
    price    DECIMAL(18, 4) NOT NULL,
    since    TIMESTAMPTZ,
    CONSTRAINT not_negative CHECK (price >= 0)
);
";

async fn priced() -> World {
    let world = World::new(1).await;
    world.write_sql("tables/prices.sql", PRICES);
    world.write_sql(
        "views/dear.sql",
        "CREATE VIEW dear AS SELECT page FROM prices WHERE price > 10 ORDER BY page;\n",
    );
    world
}

/// How many rows the statement says that it touched.
async fn touched(client: &Client, sql: &str) -> u64 {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    match messages.as_slice() {
        [SimpleQueryMessage::CommandComplete(rows)] => *rows,
        other => panic!("{sql}: {other:?}"),
    }
}

async fn refused(client: &Client, sql: &str, state: &str, words: &str) {
    let error = client.simple_query(sql).await.unwrap_err();
    let told = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}"));
    assert!(told.code().code().starts_with(state), "{sql}: {told}");
    assert!(told.message().contains(words), "{sql}: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_change_tables_and_a_restart_finds_them_changed() {
    let world = priced().await;
    let server = world.serve().await;
    let client = server.connect().await.unwrap();
    assert_eq!(touched(&client, "INSERT INTO prices VALUES ('a', 1.5, '2026-01-01'), ('b', 20, NULL)").await, 2);
    assert_eq!(
        touched(&client, "INSERT INTO public.prices (price, page) SELECT price + 1, page || '2' FROM prices").await,
        2
    );
    assert_eq!(
        touched(&client, "UPDATE prices SET price = price * 2, since = now() WHERE page LIKE 'b%'").await,
        2
    );
    assert_eq!(
        touched(&client, "DELETE FROM prices WHERE page IN (SELECT page FROM prices WHERE price = 2.5)").await,
        1
    );
    assert_eq!(touched(&client, "INSERT INTO prices VALUES ('a', 9, NULL) ON CONFLICT DO NOTHING").await, 0);
    let upsert =
        "INSERT INTO prices (page, price) VALUES ('a', 9) ON CONFLICT (page) DO UPDATE SET price = EXCLUDED.price";
    assert_eq!(touched(&client, upsert).await, 1);
    let all = "SELECT page, price, since FROM prices WHERE page = 'a' UNION ALL SELECT page, price, NULL FROM prices \
               WHERE page <> 'a' ORDER BY 1";
    let rows = ["a|9.0000|2026-01-01 00:00:00.000000+00", "b|40.0000|-", "b2|42.0000|-"];
    assert_eq!(server.rows(all).await, rows);
    assert_eq!(server.rows("SELECT * FROM dear").await, ["b", "b2"], "an ordinary view reads it");
    let versions = "SELECT version, change, changed_rows, rows, changed_by FROM system.table_versions ORDER BY 1";
    let history = server.rows(versions).await;
    assert_eq!(
        history,
        [
            "1|INSERT|2|2|analyst",
            "2|INSERT|2|4|analyst",
            "3|UPDATE|2|4|analyst",
            "4|DELETE|1|3|analyst",
            "5|INSERT|1|3|analyst"
        ]
    );
    assert_eq!(server.rows("SELECT \"table\", version, rows FROM system.tables").await, ["prices|5|3"]);
    let listed = "SELECT table_type FROM information_schema.tables WHERE table_name = 'prices'";
    assert_eq!(server.rows(listed).await, ["BASE TABLE"]);
    let told = "SELECT obj_description(c.oid, 'pg_class') FROM pg_catalog.pg_class c WHERE c.relname = 'prices'";
    assert_eq!(server.rows(told).await, ["One row is the price of one page."]);
    drop(client);
    server.stop().await;

    let server = world.serve().await;
    assert_eq!(server.rows(all).await, rows);
    assert_eq!(server.rows(versions).await, history);
    let client = server.connect().await.unwrap();
    assert_eq!(touched(&client, "TRUNCATE prices").await, 0, "its tag has no number");
    assert_eq!(server.one("SELECT count(*) FROM prices").await, "0");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_by_its_code_and_changes_nothing() {
    let world = priced().await;
    let server = world.serve().await;
    let client = server.connect().await.unwrap();
    touched(&client, "INSERT INTO prices VALUES ('a', 1, NULL)").await;
    for (sql, state, words) in [
        ("INSERT INTO prices (page) VALUES ('b')", "23502", "column \"price\""),
        (
            "INSERT INTO prices VALUES ('b', 1, NULL), ('c', -1, NULL)",
            "23514",
            "\"not_negative\": (c, -1.0000, null)",
        ),
        ("INSERT INTO prices VALUES ('b', 1, NULL), ('a', 2, NULL)", "23505", "\"prices_pkey\": (page)=(a)"),
        ("UPDATE prices SET price = -price", "23514", "not_negative"),
        ("UPDATE prices SET page = NULL", "23502", "column \"page\""),
        ("INSERT INTO prices VALUES ('b', 'much', NULL)", "22P02", "much"),
        ("INSERT INTO prices (page, cost) VALUES ('b', 1)", "42703", "cost"),
        ("INSERT INTO prices VALUES ('b', 1, NULL) RETURNING page", "0A000", "RETURNING"),
        ("INSERT INTO prices VALUES ('b', 1, NULL) ON CONFLICT (price) DO NOTHING", "42P10", "price"),
        ("DELETE FROM nothing", "42P01", "nothing"),
        ("DELETE FROM pages", "42809", "\"pages\" is not a reference table"),
        ("UPDATE dear SET page = 'x'", "42809", "\"dear\" is not a reference table"),
        ("DELETE FROM raw.clicks", "42501", "raw.clicks"),
        ("INSERT INTO system.settings VALUES ('a', 'b')", "42501", "system.settings"),
        ("INSERT INTO prices VALUES ('b', 1, 'soon')", "22", "soon"),
        ("INSERT INTO prices VALUES ('b', 123456789012345678, NULL)", "22003", "too large"),
        ("MERGE INTO prices USING pages ON true WHEN MATCHED THEN DELETE", "42501", "MERGE"),
    ] {
        refused(&client, sql, state, words).await;
    }
    for (sql, state, words) in [
        ("BEGIN READ ONLY; DELETE FROM prices", "25006", "DELETE in a read-only transaction"),
        ("ROLLBACK; SET default_transaction_read_only = on; TRUNCATE prices", "25006", "read-only"),
    ] {
        refused(&client, sql, state, words).await;
    }
    touched(&client, "RESET default_transaction_read_only").await;
    assert_eq!(server.rows("SELECT page, price FROM prices").await, ["a|1.0000"]);
    assert_eq!(server.one("SELECT max(version) FROM system.table_versions").await, "1");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_bound_and_a_transaction_reads_one_version() {
    let world = priced().await;
    let server = world.serve().await;
    let (reader, writer) = (server.connect().await.unwrap(), server.connect().await.unwrap());
    let insert = writer
        .prepare("INSERT INTO prices (page, price, since) VALUES ($1, CAST($2 AS DOUBLE PRECISION), $3)")
        .await
        .unwrap();
    let since = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
    assert_eq!(writer.execute(&insert, &[&"a", &2.5_f64, &Some(since)]).await.unwrap(), 1);
    assert_eq!(writer.execute(&insert, &[&"b", &3.0_f64, &None::<std::time::SystemTime>]).await.unwrap(), 1);
    reader.batch_execute("BEGIN").await.unwrap();
    assert_eq!(reader.query("SELECT 1 FROM prices", &[]).await.unwrap().len(), 2);
    assert_eq!(writer.execute("UPDATE prices SET since = NULL WHERE page = $1", &[&"a"]).await.unwrap(), 1);
    assert_eq!(
        writer.execute("DELETE FROM prices WHERE page = $1 OR since > $2", &[&"b", &since]).await.unwrap(),
        1
    );
    assert_eq!(
        reader.query("SELECT 1 FROM prices", &[]).await.unwrap().len(),
        2,
        "a transaction reads one version"
    );
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(reader.query("SELECT 1 FROM prices", &[]).await.unwrap().len(), 1);
    assert_eq!(server.rows("SELECT page, price, since FROM prices").await, ["a|2.5000|-"]);

    // Writers wait for each other: nobody's rows are lost.
    let writer = Arc::new(writer);
    let writers = (0..8).map(|n| {
        let ask = *server;
        tokio::spawn(async move {
            let client = ask.connect().await.unwrap();
            touched(&client, &format!("INSERT INTO prices SELECT 'page {n}', count(*), NULL FROM prices")).await
        })
    });
    for done in futures::future::join_all(writers).await {
        assert_eq!(done.unwrap(), 1);
    }
    let seen = "SELECT count(DISTINCT price) FROM prices WHERE page LIKE 'page %'";
    assert_eq!(server.one(seen).await, "8", "each saw those before it");
    drop(writer);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declaration_that_the_rows_do_not_keep_is_refused_at_the_start() {
    let world = priced().await;
    let server = world.serve().await;
    server.rows("INSERT INTO prices VALUES ('a', 1, NULL)").await;
    server.stop().await;
    world.write_sql("tables/prices.sql", &PRICES.replace("price >= 0", "price > 1"));
    let error = format!("{:#}", world.try_serve().await.err().unwrap());
    assert!(error.contains("prices.sql:2:1:") && error.contains("not_negative"), "{error}");
    world.write_sql("tables/prices.sql", &PRICES.replace("since    TIMESTAMPTZ", "note TEXT"));
    let server = world.serve().await;
    assert_eq!(server.rows("SELECT page, note FROM prices").await, ["a|-"]);
    server.stop().await;
}
