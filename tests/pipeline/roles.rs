//! Roles in `sql/roles`: who may connect, what each may do over every protocol, and passwords.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arrow_flight::sql::CommandGetPrimaryKeys;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use tonic::transport::{Channel, Endpoint};
use viewledger::catalog::verifier::Verifier;
use viewledger::serve::auth::passwords::new_verifier;
use viewledger::serve::auth::scram;

use crate::server::{Ask, rows};
use crate::world::{World, clicks};

const RATES: &str = "CREATE TABLE rates (page TEXT PRIMARY KEY, rate BIGINT);\n";

const ROLES: &str = "\
CREATE ROLE reader LOGIN CONNECTION LIMIT 2;
GRANT SELECT ON pages, batch.pages TO reader;
CREATE ROLE rater LOGIN;
GRANT reader TO rater;
GRANT SELECT, INSERT ON rates TO rater;
CREATE ROLE analyst LOGIN;
GRANT SELECT ON ALL TABLES IN SCHEMA public, raw, system, quarantine TO analyst;
GRANT ALL ON ALL TABLES IN SCHEMA public TO analyst;
GRANT EXECUTE ON FUNCTION pg_reload_conf() TO analyst;
CREATE ROLE definer LOGIN;
GRANT CREATE ON SCHEMA public TO definer;
GRANT SELECT ON raw.clicks TO definer;
CREATE ROLE nobody;
";

async fn world() -> World {
    let world = World::new(1).await;
    world.write_sql("tables/rates.sql", RATES);
    world.write_sql(
        "views/rated.sql",
        "CREATE VIEW rated AS SELECT p.page FROM pages p JOIN rates r USING (page);\n",
    );
    world.write_sql("roles/all.sql", ROLES);
    world
}

async fn connect_with(ask: &Ask, more: &str) -> Result<Client, tokio_postgres::Error> {
    let config = format!("host=127.0.0.1 port={} dbname=viewledger {more}", ask.at.pg.port());
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn connect_as(ask: &Ask, user: &str) -> Client {
    connect_with(ask, &format!("user={user}")).await.unwrap()
}

/// SQLSTATE and message of a refusal.
fn told(error: &tokio_postgres::Error) -> (String, String) {
    let told = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    (told.code().code().to_owned(), format!("{}; {}", told.message(), told.hint().unwrap_or_default()))
}

async fn denied(client: &Client, sql: &str, words: &str) {
    for (protocol, result) in
        [("simple", client.simple_query(sql).await.map(drop)), ("extended", client.query(sql, &[]).await.map(drop))]
    {
        let (state, message) = told(&result.err().unwrap_or_else(|| panic!("{protocol}: {sql} is let through")));
        assert_eq!(state, "42501", "{protocol}: {sql}: {message}");
        assert!(message.contains(words), "{protocol}: {sql}: {message}");
    }
}

async fn flight(ask: &Ask) -> FlightSqlServiceClient<Channel> {
    let channel = Endpoint::new(format!("http://{}", ask.at.flight)).unwrap().connect().await.unwrap();
    FlightSqlServiceClient::new(channel)
}

async fn fetched(client: &mut FlightSqlServiceClient<Channel>, sql: &str) -> Result<usize, String> {
    let info = client.execute(sql.to_owned(), None).await.map_err(|error| error.to_string())?;
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let batches = client.do_get(ticket).await.map_err(|error| error.to_string())?;
    let batches: Vec<_> = batches.try_collect().await.map_err(|error| error.to_string())?;
    Ok(batches.iter().map(|batch| batch.num_rows()).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_what_it_was_granted_and_no_more() {
    let world = world().await;
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 6));
    server.until_passed(6).await;
    server.refresh().await;

    for (user, words) in
        [("stranger", "connect as one of: analyst, definer, rater, reader"), ("nobody", "not permitted to log in")]
    {
        let (state, message) = told(&connect_with(&server, &format!("user={user}")).await.err().unwrap());
        assert_eq!(state, "28000", "{message}");
        assert!(message.contains(words), "{message}");
    }

    let reader = connect_as(&server, "reader").await;
    for sql in [
        "SELECT page, total FROM pages ORDER BY page",
        "SELECT v.total FROM viewledger.public.pages v WHERE v.page IN (SELECT page FROM batch.pages)",
        "WITH pages AS (SELECT * FROM pages) SELECT count(*) FROM pages",
        "WITH RECURSIVE rates AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM rates WHERE n < 3) SELECT * FROM rates",
        "SELECT * FROM \"pages@1\"",
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_name = 'rates'",
        "SELECT relname FROM pg_catalog.pg_class WHERE relname = 'rates'",
        "SELECT * FROM generate_series(1, 3)",
        "EXPLAIN SELECT * FROM pages",
        "SHOW viewledger.snapshot",
    ] {
        assert!(rows(&reader, sql).await.is_ok(), "{sql}: {:?}", rows(&reader, sql).await);
    }
    let copied: Vec<_> = reader.copy_out("COPY pages TO STDOUT").await.unwrap().try_collect().await.unwrap();
    assert_eq!(copied.len(), 3);
    let shown = rows(&reader, "SELECT relname FROM pg_catalog.pg_class WHERE relname IN ('rates', 'clicks')").await;
    assert!(shown.unwrap().len() >= 2, "what may not be read is seen to be there");

    for (sql, words) in [
        ("SELECT * FROM rates", "permission denied for table rates; GRANT SELECT ON public.rates TO reader"),
        ("SELECT * FROM rated", "permission denied for table rated"),
        ("SELECT 1 FROM raw.clicks WHERE false", "permission denied for table clicks"),
        ("SELECT (SELECT count(*) FROM raw.clicks)", "permission denied for table clicks"),
        (
            "SELECT * FROM pages WHERE EXISTS (SELECT 1 FROM system.settings)",
            "permission denied for table settings",
        ),
        ("WITH c AS (SELECT * FROM speed.pages) SELECT 1", "permission denied for table pages"),
        ("SELECT 1 UNION ALL SELECT total FROM speed.pages", "GRANT SELECT ON speed.pages TO reader"),
        ("WITH rates AS (SELECT * FROM rates) SELECT * FROM rates", "permission denied for table rates"),
        ("EXPLAIN SELECT * FROM rates", "permission denied for table rates"),
        ("EXPLAIN ANALYZE SELECT * FROM rates", "permission denied for table rates"),
        ("COPY rates TO STDOUT", "permission denied for table rates"),
        ("COPY (SELECT * FROM rates) TO STDOUT", "permission denied for table rates"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT * FROM rates", "permission denied for table rates"),
        ("INSERT INTO rates VALUES ('a', 1)", "permission denied for table rates; GRANT INSERT"),
        ("UPDATE rates SET rate = 2", "permission denied for table rates"),
        ("DELETE FROM rates", "permission denied for table rates"),
        ("TRUNCATE rates", "permission denied for table rates; GRANT TRUNCATE"),
        (
            "REFRESH MATERIALIZED VIEW pages",
            "permission denied for table pages; GRANT MAINTAIN ON public.pages TO reader",
        ),
        (
            "CREATE MATERIALIZED VIEW mine AS SELECT page, count(*) AS n FROM raw.clicks GROUP BY page",
            "permission denied for schema public",
        ),
        ("ALTER MATERIALIZED VIEW pages SET (version = 1)", "permission denied for schema public"),
        (
            "DROP MATERIALIZED VIEW pages",
            "permission denied for schema public; GRANT CREATE ON SCHEMA public TO reader",
        ),
        ("SELECT pg_reload_conf()", "permission denied for function pg_reload_conf"),
        ("SELECT * FROM view_diff('visitors', 1, 2)", "permission denied for table visitors"),
    ] {
        denied(&reader, sql, words).await;
    }
    reader.batch_execute("SET search_path = speed").await.unwrap();
    denied(&reader, "SELECT * FROM pages", "GRANT SELECT ON speed.pages TO reader").await;
    reader.batch_execute("RESET search_path; BEGIN; SELECT * FROM pages").await.unwrap();
    let inside = reader.simple_query("SELECT * FROM rates").await.unwrap_err();
    assert_eq!(told(&inside).0, "42501");
    reader.batch_execute("ROLLBACK").await.unwrap();
    // As in PostgreSQL, what does not exist is told as such.
    assert_eq!(told(&reader.simple_query("SELECT * FROM nowhere").await.unwrap_err()).0, "42P01");
    assert_eq!(told(&reader.simple_query("INSERT INTO nowhere VALUES (1)").await.unwrap_err()).0, "42P01");
    assert_eq!(told(&reader.simple_query("REFRESH MATERIALIZED VIEW nowhere").await.unwrap_err()).0, "42P01");

    let second = connect_as(&server, "reader").await;
    let (state, message) = told(&connect_with(&server, "user=reader").await.err().unwrap());
    assert_eq!(state, "53300", "{message}");
    drop(second);

    let rater = connect_as(&server, "rater").await;
    rater
        .batch_execute("INSERT INTO rates VALUES ('a', 1); INSERT INTO rates SELECT page || 'x', rate FROM rates")
        .await
        .unwrap();
    assert_eq!(rows(&rater, "SELECT count(*) FROM rates").await.unwrap(), ["2"]);
    let upsert = "INSERT INTO rates VALUES ('a', 2) ON CONFLICT (page) DO UPDATE SET rate = excluded.rate";
    denied(&rater, upsert, "GRANT UPDATE ON public.rates TO rater").await;
    denied(&rater, "INSERT INTO rates SELECT id, 1 FROM raw.clicks", "permission denied for table clicks").await;

    let definer = connect_as(&server, "definer").await;
    let view = "CREATE MATERIALIZED VIEW by_who AS SELECT who, count(*) AS n FROM raw.clicks GROUP BY who";
    definer.batch_execute(view).await.unwrap();
    let view = "CREATE MATERIALIZED VIEW sly AS SELECT c.page, max(r.rate) AS n FROM raw.clicks c JOIN rates r USING (page) GROUP BY c.page";
    denied(&definer, view, "permission denied for table rates").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_bind_over_flight_too_and_follow_changed_files() {
    let world = world().await;
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 6));
    server.until_passed(6).await;

    let mut stranger = flight(&server).await;
    let refused = fetched(&mut stranger, "SELECT 1").await.unwrap_err();
    assert!(
        refused.contains("role \\\"anonymous\\\" does not exist")
            || refused.contains("role \"anonymous\" does not exist"),
        "{refused}"
    );
    assert!(stranger.handshake("nobody", "").await.is_err());
    let mut client = flight(&server).await;
    client.handshake("reader", "").await.unwrap();
    assert_eq!(fetched(&mut client, "SELECT page FROM pages").await.unwrap(), 3);
    for sql in [
        "SELECT * FROM rates",
        "SELECT 1 FROM raw.clicks",
        "EXPLAIN SELECT * FROM rates",
        "SELECT pg_reload_conf()",
        "REFRESH MATERIALIZED VIEW pages",
    ] {
        let refused = fetched(&mut client, sql).await.unwrap_err();
        assert!(
            refused.contains("permission denied for") && refused.contains("SQLSTATE 42501"),
            "{sql}: {refused}"
        );
    }
    assert!(client.prepare("SELECT * FROM rates".into(), None).await.is_err());
    let update =
        client.execute_update("INSERT INTO rates VALUES ('a', 1)".into(), None).await.unwrap_err().to_string();
    assert!(update.contains("permission denied for table rates"), "{update}");

    let reader = connect_as(&server, "reader").await;
    denied(&reader, "SELECT * FROM rates", "permission denied").await;
    world.write_sql("roles/more.sql", "GRANT SELECT ON rates TO reader;\n");
    let generations = server.one("SELECT count(DISTINCT generation) FROM system.generations").await;
    server.rows("SELECT pg_reload_conf()").await;
    assert_eq!(
        rows(&reader, "SELECT count(*) FROM rates").await.unwrap(),
        ["0"],
        "a session that was open sees it"
    );
    assert_eq!(fetched(&mut client, "SELECT * FROM rates").await.unwrap(), 0);
    world.remove_sql("roles/more.sql");
    server.rows("SELECT pg_reload_conf()").await;
    denied(&reader, "SELECT * FROM rates", "permission denied").await;
    assert_eq!(server.one("SELECT count(DISTINCT generation) FROM system.generations").await, generations);

    world.write_sql("roles/more.sql", "GRANT SELECT ON nowhere TO reader;\n");
    let fault = server.try_rows("SELECT pg_reload_conf()").await.unwrap_err();
    assert!(fault.contains("more.sql:1:1: relation") && fault.contains("nowhere"), "{fault}");
    world.write_sql("roles/more.sql", "CREATE ROLE spy LOGIN PASSWORD 'plain';\n");
    let fault = server.try_rows("SELECT pg_reload_conf()").await.unwrap_err();
    assert!(fault.contains("viewledger password") && !fault.contains("plain"), "{fault}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_asked_for_over_every_protocol() {
    let mut world = world().await;
    world.remove_sql("roles/all.sql");
    let verifier = new_verifier("of the file");
    let declared = ROLES
        .replace("CREATE ROLE reader LOGIN", &format!("CREATE ROLE reader LOGIN PASSWORD '{}'", verifier.reveal()));
    world.write_sql("roles/all.sql", &declared.replace("CONNECTION LIMIT 2", ""));
    world.set("VIEWLEDGER_AUTH_METHOD", "scram");
    world.set("VIEWLEDGER_PASSWORD_ANALYST", "of the environment");
    let passwords = world.path("passwords");
    std::fs::write(&passwords, "rater:of the mount\n").unwrap();
    world.set("VIEWLEDGER_AUTH_PASSWORDS_FILE", passwords.display().to_string());
    let server = world.serve().await;

    for (user, password) in
        [("reader", "of the file"), ("analyst", "of the environment"), ("rater", "of the mount")]
    {
        let client = connect_with(&server, &format!("user={user} password='{password}'")).await.unwrap();
        assert_eq!(rows(&client, "SELECT session_user").await.unwrap(), [user]);
    }
    let began = Instant::now();
    for user in ["reader", "definer", "stranger"] {
        let error = connect_with(&server, &format!("user={user} password=wrong")).await.err().unwrap();
        assert_eq!(error.code(), Some(&SqlState::INVALID_PASSWORD), "{user}: {error:?}");
        assert_eq!(told(&error).1, format!("password authentication failed for user \"{user}\"; "));
    }
    assert!(began.elapsed() > Duration::from_millis(1200), "failures are answered ever later");
    let (_, metrics) = server.get("/metrics").await.unwrap();
    assert!(metrics.contains("authentications_failed_total 3"), "{metrics}");

    let mut client = flight(&server).await;
    let wrong = client.handshake("reader", "wrong").await.unwrap_err().to_string();
    assert!(wrong.contains("password authentication failed for user"), "{wrong}");
    let none = fetched(&mut flight(&server).await, "SELECT 1").await.unwrap_err();
    assert!(none.contains("password authentication failed for user"), "{none}");
    let keys = CommandGetPrimaryKeys { catalog: None, db_schema: None, table: "rates".to_owned() };
    let info = client.get_primary_keys(keys).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    assert!(client.do_get(ticket).await.is_err(), "names are told to nobody");
    client.handshake("reader", "of the file").await.unwrap();
    assert_eq!(fetched(&mut client, "SELECT session_user").await.unwrap(), 1);

    let analyst = connect_with(&server, "user=analyst password='of the environment'").await.unwrap();
    let settings = rows(&analyst, "SELECT * FROM system.settings").await.unwrap().join("\n");
    assert!(settings.contains("auth.method|scram") && !settings.contains("of the"), "{settings}");
    std::fs::write(&passwords, "rater:another\n").unwrap();
    rows(&analyst, "SELECT pg_reload_conf()").await.unwrap();
    assert!(connect_with(&server, "user=rater password=another").await.is_ok());
    assert!(connect_with(&server, "user=rater password='of the mount'").await.is_err());
    std::fs::write(&passwords, "no line at all\n").unwrap();
    let (_, message) = told(&analyst.simple_query("SELECT pg_reload_conf()").await.unwrap_err());
    assert!(message.contains("passwords:1: expected role:password") && !message.contains("no line"), "{message}");
    assert!(connect_with(&server, "user=rater password=another").await.is_ok(), "as it was");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_nobody_could_use_or_everybody_does_not_start() {
    let mut world = world().await;
    world.set("VIEWLEDGER_AUTH_METHOD", "scram");
    let error = format!("{:#}", world.try_serve().await.err().unwrap());
    assert!(error.contains("nobody could connect"), "{error}");
    world.set("VIEWLEDGER_AUTH_METHOD", "trust");
    world.set("VIEWLEDGER_AUTH_ALLOW_PLAIN", "true");
    world.set("VIEWLEDGER_SERVER_BIND", "0.0.0.0");
    let error = format!("{:#}", world.try_serve().await.err().unwrap());
    assert!(error.contains("only a loopback address is allowed") && error.contains("auth.method"), "{error}");
    world.set("VIEWLEDGER_AUTH_METHOD", "scram");
    world.set("VIEWLEDGER_PASSWORD_READER", "x");
    world.serve().await.stop().await;
}

#[test]
fn the_command_makes_the_verifier_of_a_password() {
    let made = |password: &[u8]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_viewledger"));
        command.arg("password").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(password).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = made(b"sec ret\n");
    let verifier: Verifier = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(scram::matches("sec ret", &verifier) && !scram::matches("sec ret\n", &verifier));
    let empty = made(b"\n");
    assert_eq!(empty.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&empty.stderr).contains("the password is empty"));
}
