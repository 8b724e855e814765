//! Transactions that change several tables: their own view of them, what others see, conflicts, and views that must have no rows.

use tokio_postgres::Client;

use crate::world::World;

const SHOP: &str = "\
CREATE TABLE shop.orders (number BIGINT PRIMARY KEY, total BIGINT NOT NULL) WITH (append_only = 'true');
CREATE TABLE shop.lines (number BIGINT, item TEXT, price BIGINT NOT NULL, PRIMARY KEY (number, item));
CREATE TABLE notes (page TEXT PRIMARY KEY, note TEXT);
";

const SOUND: &str = "\
-- One row is an order whose lines are not its total.
CREATE VIEW shop.unequal WITH (enforced = 'true') AS
SELECT o.number, o.total, l.total AS lines FROM shop.orders AS o
LEFT JOIN (SELECT number, sum(price) AS total FROM shop.lines GROUP BY number) AS l ON l.number = o.number
WHERE o.total IS DISTINCT FROM l.total;
";

async fn shop() -> World {
    let world = World::new(1).await;
    world.write_sql("tables/shop.sql", SHOP);
    world.write_sql("quality/shop.sql", SOUND);
    world
}

async fn refused(client: &Client, sql: &str, state: &str, words: &str) {
    let error = client.batch_execute(sql).await.unwrap_err();
    let told = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}"));
    assert_eq!(told.code().code(), state, "{sql}: {told}");
    assert!(told.message().contains(words), "{sql}: {told}");
}

async fn count(client: &Client, table: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_seen_whole_or_not_at_all() {
    let world = shop().await;
    let server = world.serve().await;
    let (client, other) = (server.connect().await.unwrap(), server.connect().await.unwrap());
    client.batch_execute("BEGIN; INSERT INTO shop.orders VALUES (1, 30)").await.unwrap();
    client.batch_execute("INSERT INTO shop.lines VALUES (1, 'a', 10)").await.unwrap();
    client.execute("INSERT INTO shop.lines SELECT number, 'b', total - 10 FROM shop.orders", &[]).await.unwrap();
    client.batch_execute("UPDATE shop.lines SET price = price + 0 WHERE item = 'a'").await.unwrap();
    assert_eq!((count(&client, "shop.orders").await, count(&client, "shop.lines").await), (1, 2));
    assert_eq!(count(&client, "shop.unequal").await, 0, "views see the changes too");
    assert_eq!((count(&other, "shop.orders").await, count(&other, "shop.lines").await), (0, 0));
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!((count(&other, "shop.orders").await, count(&other, "shop.lines").await), (1, 2));
    let versions = "SELECT \"table\", version, rows FROM system.tables WHERE version > 0 ORDER BY 1";
    assert_eq!(server.rows(versions).await, ["shop.lines|1|2", "shop.orders|1|1"], "one commit");

    client.batch_execute("BEGIN; DELETE FROM shop.lines; ROLLBACK").await.unwrap();
    assert_eq!(count(&client, "shop.lines").await, 2);
    // A statement that fails takes the whole transaction with it, whatever the client says then.
    refused(
        &client,
        "BEGIN; INSERT INTO notes VALUES ('a', 'x'); INSERT INTO notes VALUES ('a', 'y')",
        "23505",
        "notes",
    )
    .await;
    client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(count(&client, "notes").await, 0);
    // A client that goes away leaves nothing.
    other.batch_execute("BEGIN; INSERT INTO notes VALUES ('gone', NULL)").await.unwrap();
    drop(other);
    assert_eq!(count(&client, "notes").await, 0);
    client.batch_execute("INSERT INTO notes VALUES ('a', 'z')").await.unwrap();

    server.stop().await;
    let server = world.serve().await;
    assert_eq!(server.rows("SELECT number, sum(price) FROM shop.lines GROUP BY number").await, ["1|30"]);
    assert_eq!(server.rows("SELECT note FROM notes").await, ["z"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_break_an_enforced_view_is_refused_at_its_commit() {
    let world = shop().await;
    let server = world.serve().await;
    let client = server.connect().await.unwrap();
    let told = "shop.unequal must have no rows, and would have (number = 1, total = 30, lines = null)";
    refused(&client, "INSERT INTO shop.orders VALUES (1, 30)", "23514", told).await;
    client.batch_execute("BEGIN; INSERT INTO shop.orders VALUES (1, 30)").await.unwrap();
    refused(&client, "COMMIT", "23514", told).await;
    assert_eq!(count(&client, "shop.orders").await, 0, "the transaction has ended");
    client
        .batch_execute(
            "BEGIN; INSERT INTO shop.orders VALUES (1, 30); INSERT INTO shop.lines VALUES (1, 'a', 30); COMMIT",
        )
        .await
        .unwrap();
    refused(&client, "DELETE FROM shop.lines", "23514", "lines = null").await;
    refused(&client, "DELETE FROM shop.orders", "42809", "rows are only ever added").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_transactions_over_the_same_tables_the_first_wins() {
    let world = shop().await;
    let server = world.serve().await;
    let (first, second) = (server.connect().await.unwrap(), server.connect().await.unwrap());
    first.batch_execute("INSERT INTO notes VALUES ('a', '1')").await.unwrap();
    second.batch_execute("BEGIN; INSERT INTO shop.lines SELECT 7, note, 0 FROM notes").await.unwrap();
    first.batch_execute("UPDATE notes SET note = '2'").await.unwrap();
    refused(&second, "COMMIT", "40001", "table notes was changed by another transaction").await;
    assert_eq!(count(&second, "shop.lines").await, 0);
    // What it did not read may change.
    second.batch_execute("BEGIN; INSERT INTO shop.lines VALUES (7, 'a', 0)").await.unwrap();
    first.batch_execute("UPDATE notes SET note = '3'").await.unwrap();
    second.batch_execute("COMMIT").await.unwrap();
    assert_eq!(count(&second, "shop.lines").await, 1);
}
