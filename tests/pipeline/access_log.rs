//! `audit.access_log`, and how many may be connected and ask at once.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::server::rows;
use crate::world::{World, clicks, eventually};

const ROLES: &str = "\
CREATE ROLE analyst LOGIN;
GRANT SELECT ON ALL TABLES IN SCHEMA public, raw, system TO analyst;
CREATE ROLE billing LOGIN;
GRANT analyst TO billing;
GRANT ALL ON rates TO billing;
CREATE ROLE auditor LOGIN;
GRANT SELECT ON ALL TABLES IN SCHEMA audit TO auditor;
CREATE ROLE operator LOGIN;
GRANT analyst, pg_use_reserved_connections TO operator;
";

async fn world() -> World {
    let world = World::new(1).await;
    world.write_sql("tables/rates.sql", "CREATE TABLE rates (page TEXT PRIMARY KEY, rate BIGINT);\n");
    world.write_sql("roles/all.sql", ROLES);
    world
}

/// Asks until the log answers this.
async fn until(auditor: &Client, sql: &str, expected: &[&str]) {
    eventually(&format!("{sql} answers {expected:?}"), async || match rows(auditor, sql).await {
        Ok(found) if found == expected => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_tells_who_came_and_who_did_what_and_outlives_the_process() {
    let world = world().await;
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 6));
    server.until_passed(6).await;
    let (analyst, billing) =
        (server.connect_as("analyst").await.unwrap(), server.connect_as("billing").await.unwrap());
    let auditor = server.connect_as("auditor").await.unwrap();
    assert!(server.connect_as("stranger").await.is_err());
    rows(&analyst, "SELECT page FROM pages WHERE page <> 'log'").await.unwrap();
    analyst.query("SELECT total FROM pages WHERE page = $1", &[&"a"]).await.unwrap();
    assert!(rows(&analyst, "INSERT INTO rates VALUES ('log', 1)").await.is_err());
    assert!(rows(&analyst, "SELECT 1 / 0 AS log").await.is_err());
    assert!(rows(&analyst, "COPY pages TO '/tmp/log'").await.is_err());
    assert!(rows(&analyst, "ALTER ROLE analyst PASSWORD 'log-secret'").await.is_err());
    rows(&billing, "INSERT INTO rates VALUES ('log', 1), ('x', 2)").await.unwrap();

    let told = "SELECT role, statement, sqlstate, rows FROM audit.access_log \
                WHERE event = 'statement' AND (statement LIKE '%log%' OR statement LIKE '%$1%') AND role <> 'auditor' \
                AND statement NOT LIKE '%access_log%' ORDER BY at";
    let expected = [
        "analyst|SELECT page FROM pages WHERE page <> 'log'|-|3",
        "analyst|SELECT total FROM pages WHERE page = $1|-|1",
        "analyst|INSERT INTO rates VALUES ('log', 1)|42501|-",
        "analyst|SELECT 1 / 0 AS log|22012|-",
        "analyst|COPY pages TO '/tmp/log'|42501|-",
        "billing|INSERT INTO rates VALUES ('log', 1), ('x', 2)|-|2",
    ];
    until(&auditor, told, &expected).await;
    let hidden = "SELECT statement, sqlstate FROM audit.access_log WHERE statement LIKE 'ALTER ROLE%'";
    until(&auditor, hidden, &["ALTER ROLE analyst PASSWORD '***'|42501"]).await;
    let came = "SELECT event, role, application, protocol, tls, sqlstate, address LIKE '127.0.0.1:%' FROM audit.access_log \
                WHERE event <> 'statement' AND role IN ('billing', 'stranger') ORDER BY role";
    until(&auditor, came, &["connected|billing|tests|postgres|f|-|t", "refused|stranger|-|postgres|f|28000|t"])
        .await;
    let read = "SELECT count(*) FROM audit.access_log WHERE generation >= 0 AND micros > 0 AND statement LIKE 'SELECT page%'";
    until(&auditor, read, &["1"]).await;
    assert!(rows(&analyst, "SELECT * FROM audit.access_log").await.is_err());
    let listed =
        rows(&auditor, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'audit'").await;
    assert!(listed.unwrap().contains(&"access_log".to_owned()));

    // A change is on the disk before it is answered, so that the end of the process takes nothing of it.
    drop((analyst, billing));
    server.stop().await;
    let server = world.serve().await;
    let auditor = server.connect_as("auditor").await.unwrap();
    until(&auditor, told, &expected).await;
    let went = "SELECT count(*) > 0 FROM audit.access_log WHERE event = 'disconnected' AND role = 'billing'";
    until(&auditor, went, &["t"]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_find_a_connection_and_overload_is_told_at_once() {
    let mut world = world().await;
    world.set("VIEWLEDGER_SERVER_CONNECTIONS_MAX", "3");
    world.set("VIEWLEDGER_SERVER_CONNECTIONS_RESERVED", "1");
    world.set("VIEWLEDGER_QUERY_RUNNING_PER_ROLE_MAX", "1");
    world.set("VIEWLEDGER_QUERY_WAITING_TIMEOUT", "200ms");
    let server = world.serve().await;
    let (first, second) =
        (server.connect_as("analyst").await.unwrap(), server.connect_as("analyst").await.unwrap());
    let refused = server.connect_as("analyst").await.err().unwrap();
    let told = refused.as_db_error().unwrap();
    assert_eq!(told.code().code(), "53300");
    assert!(told.message().contains("pg_use_reserved_connections"), "{told}");
    let operator = server.connect_as("operator").await.unwrap();
    assert_eq!(server.connect_as("operator").await.err().unwrap().code().unwrap().code(), "53300");

    // A cursor that is not read to its end is a query that runs.
    first.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT * FROM generate_series(1, 100000000)").await.unwrap();
    let began = Instant::now();
    let refused = second.simple_query("SELECT 1").await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "53000");
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(rows(&operator, "SELECT 1").await.unwrap(), ["1"], "other roles are not held up");
    first.batch_execute("COMMIT").await.unwrap();
    eventually("there is room again", async || rows(&second, "SELECT 1").await.map(drop)).await;
    server.stop().await;
}
