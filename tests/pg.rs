//! The Postgres wire adapter against real clients: tokio-postgres in both protocols, and psql where it is.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Float64Array, Int64Array, ListArray,
    RecordBatch, StringArray, StructArray, TimestampMicrosecondArray, UInt64Array,
};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::catalog::{CatalogProvider, MemTable, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use viewledger::metrics::Metrics;
use viewledger::runtime::{Health, Shutdown};
use viewledger::serve::auth::{Exposure, Protocol};
use viewledger::serve::session::{QueryService, query_runtime};
use viewledger::serve::tls::sockets::Sockets;
use viewledger::serve::{Database, Endpoint, Limits, Readiness, RefreshError, RefreshScope, ServeError, http, pg};

/// Five schemas over memory; every pin sees one more row in `public.ticks`.
#[derive(Debug)]
struct Fixture {
    pins: AtomicI64,
    fixed: Arc<MemoryCatalogProvider>,
}

impl Fixture {
    fn new() -> Self {
        let fixed = MemoryCatalogProvider::new();
        for schema in ["public", "batch", "speed", "raw", "system"] {
            fixed.register_schema(schema, Arc::new(MemorySchemaProvider::new())).unwrap();
        }
        let table = |schema: &str, name: &str, batch: RecordBatch| {
            let table = MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap();
            fixed.schema(schema).unwrap().register_table(name.into(), Arc::new(table)).unwrap();
        };
        table("public", "sales", sales());
        table("batch", "sales", sales());
        table("public", "kinds", kinds());
        let wide =
            RecordBatch::try_from_iter([("n", Arc::new(Int64Array::from_iter_values(0..20_000)) as ArrayRef)]);
        table("raw", "numbers", wide.unwrap());
        Self { pins: AtomicI64::new(0), fixed: Arc::new(fixed) }
    }
}

fn sales() -> RecordBatch {
    RecordBatch::try_from_iter([
        ("item_id", Arc::new(StringArray::from(vec!["apple", "pear", "plum"])) as ArrayRef),
        ("total", Arc::new(Int64Array::from(vec![10, 20, 30]))),
        ("mean", Arc::new(Float64Array::from(vec![Some(1.5), None, Some(0.1)]))),
    ])
    .unwrap()
}

/// One row of every type that a view can have.
fn kinds() -> RecordBatch {
    let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None, Some(3)])]);
    let inner = StructArray::from(vec![
        (Arc::new(Field::new("a", DataType::Int64, true)), Arc::new(Int64Array::from(vec![7])) as ArrayRef),
        (Arc::new(Field::new("b", DataType::Utf8, true)), Arc::new(StringArray::from(vec!["x\"y"])) as ArrayRef),
    ]);
    let big = Decimal128Array::from(vec![99_999_999_999_999_999_999_999_999_999_999_999_i128])
        .with_precision_and_scale(38, 4)
        .unwrap();
    let at = TimestampMicrosecondArray::from(vec![1_700_000_000_123_456]).with_timezone("UTC");
    let id = FixedSizeBinaryArray::try_from_iter([vec![0xab_u8, 0xcd]].into_iter()).unwrap();
    RecordBatch::try_from_iter([
        ("flag", Arc::new(BooleanArray::from(vec![true])) as ArrayRef),
        ("at", Arc::new(at)),
        ("money", Arc::new(big)),
        ("members", Arc::new(list)),
        ("pair", Arc::new(inner)),
        ("viewers", Arc::new(UInt64Array::from(vec![42]))),
        ("id", Arc::new(id)),
    ])
    .unwrap()
}

#[async_trait]
impl Database for Fixture {
    fn pin(&self) -> Result<Arc<dyn CatalogProvider>, ServeError> {
        let pins = self.pins.fetch_add(1, Ordering::SeqCst) + 1;
        let pinned = MemoryCatalogProvider::new();
        for schema in self.fixed.schema_names() {
            if schema != "public" {
                pinned.register_schema(&schema, self.fixed.schema(&schema).unwrap()).unwrap();
            }
        }
        let public = MemorySchemaProvider::new();
        for name in ["sales", "kinds"] {
            let table = futures::executor::block_on(self.fixed.schema("public").unwrap().table(name)).unwrap();
            public.register_table(name.into(), table.unwrap()).unwrap();
        }
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(1..=pins));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap();
        let ticks = MemTable::try_new(schema, vec![vec![batch]]).unwrap();
        public.register_table("ticks".into(), Arc::new(ticks)).unwrap();
        pinned.register_schema("public", Arc::new(public)).unwrap();
        Ok(Arc::new(pinned))
    }

    fn session(&self) -> SessionContext {
        SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2))
    }

    async fn refresh(&self, view: Option<&str>, _scope: RefreshScope) -> Result<String, RefreshError> {
        match view {
            Some("sales") | None => Ok("7".into()),
            Some("kinds") => Err(RefreshError::Refused("quality gate is red".into())),
            Some(other) => Err(RefreshError::UnknownView(other.into())),
        }
    }

    fn comment(&self, schema: &str, table: &str) -> Option<String> {
        (schema == "public" && table == "sales").then(|| "what was sold".to_owned())
    }

    fn readiness(&self) -> Readiness {
        Readiness { ready: false, reasons: vec!["broker is away".into()] }
    }
}

/// A running server; it ends with the test.
struct Server {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    queries: Option<tokio::runtime::Runtime>,
}

impl Server {
    async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let queries = query_runtime(2).unwrap();
        let metrics = Arc::new(Metrics::new());
        let fixture = Arc::new(Fixture::new());
        let service = QueryService::new(fixture, limits, queries.handle().clone(), Arc::clone(&metrics)).unwrap();
        let listener = pg::listen("127.0.0.1:0".parse().unwrap(), Exposure::Loopback).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::default();
        tokio::spawn(pg::serve_pg(listener, service, shutdown.clone(), Health::default()));
        Self { address, metrics, shutdown, queries: Some(queries) }
    }

    fn url(&self) -> String {
        format!("host=127.0.0.1 port={} user=ada dbname=viewledger", self.address.port())
    }

    async fn connect(&self) -> Client {
        self.connect_with("").await
    }

    async fn connect_with(&self, more: &str) -> Client {
        let (client, connection) = tokio_postgres::connect(&format!("{} {more}", self.url()), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// What psql prints; None where psql is not installed.
    fn psql(&self, commands: &[&str]) -> Option<(String, String)> {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-h", "127.0.0.1", "-p", &self.address.port().to_string(), "-U", "ada", "viewledger"]);
        for command in commands {
            psql.args(["-c", command]);
        }
        match psql.output() {
            Ok(output) => {
                Some((String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap()))
            }
            Err(_) => {
                println!("skipped: no psql");
                None
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.trigger();
        if let Some(queries) = self.queries.take() {
            queries.shutdown_background();
        }
    }
}

async fn texts(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|index| row.get(index).map(str::to_owned)).collect())
        }
        _ => None,
    });
    rows.collect()
}

async fn text(client: &Client, sql: &str) -> String {
    texts(client, sql).await.remove(0).remove(0).unwrap_or_else(|| "NULL".into())
}

async fn failure(client: &Client, sql: &str) -> (String, String) {
    match client.simple_query(sql).await {
        Ok(_) => panic!("{sql} succeeded"),
        Err(error) => {
            let db = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}"));
            (db.code().code().to_owned(), db.message().to_owned())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn simple_queries_answer_in_text() {
    let server = Server::start().await;
    let client = server.connect().await;
    let rows = texts(&client, "SELECT item_id, total, mean FROM sales ORDER BY total DESC; SELECT 1 + 1").await;
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0], [Some("plum".into()), Some("30".into()), Some("0.1".into())]);
    assert_eq!(rows[1][2], None);
    assert_eq!(rows[3], [Some("2".into())]);
    assert!(text(&client, "SELECT version()").await.starts_with("PostgreSQL 16"));
    assert_eq!(text(&client, "SELECT current_database()").await, "viewledger");
    assert_eq!(text(&client, "SELECT current_user").await, "ada");
    assert_eq!(text(&client, "SELECT count(*) FROM batch.sales").await, "3");
    let kinds = texts(&client, "SELECT * FROM kinds").await.remove(0);
    let expected = [
        "t",
        "2023-11-14 22:13:20.123456+00",
        "9999999999999999999999999999999.9999",
        "{1,NULL,3}",
        r#"{"a":7,"b":"x\"y"}"#,
        "42",
        r"\xabcd",
    ];
    assert_eq!(kinds.iter().map(|value| value.as_deref().unwrap()).collect::<Vec<_>>(), expected);
    let named =
        client.prepare("SELECT count(*), sum(total), 1 + 1, 5::bigint, total AS t FROM sales GROUP BY total");
    let named = named.await.unwrap();
    let names: Vec<&str> = named.columns().iter().map(|column| column.name()).collect();
    assert_eq!(names, ["count", "sum", "?column?", "int8", "t"]);
    let plan = texts(&client, "EXPLAIN SELECT total FROM sales WHERE total > 5").await;
    assert!(plan.iter().any(|line| line[0].as_deref().unwrap().contains("total")), "{plan:?}");
    assert!(!texts(&client, "EXPLAIN ANALYZE SELECT count(*) FROM sales").await.is_empty());
    assert!(client.simple_query("").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_have_types_and_parameters() {
    let server = Server::start().await;
    let client = server.connect().await;
    let statement = client
        .prepare("SELECT item_id, total, mean, total > $2 AS big FROM sales WHERE item_id = $1")
        .await
        .unwrap();
    assert_eq!(statement.params(), [Type::TEXT, Type::INT8]);
    let types: Vec<&Type> = statement.columns().iter().map(|column| column.type_()).collect();
    assert_eq!(types, [&Type::TEXT, &Type::INT8, &Type::FLOAT8, &Type::BOOL]);
    for (item, total) in [("apple", 10_i64), ("plum", 30)] {
        let row = client.query_one(&statement, &[&item, &15_i64]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), item);
        assert_eq!(row.get::<_, i64>(1), total);
        assert_eq!(row.get::<_, bool>(3), total > 15);
    }
    let row = client.query_one("SELECT count(*), avg(total), sum(total) FROM sales", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 3);
    assert!((row.get::<_, f64>(1) - 20.0).abs() < 1e-9);
    let row = client.query_one("SELECT flag, at, members, viewers, id, pair FROM kinds", &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));
    let at: std::time::SystemTime = row.get(1);
    assert_eq!(at.duration_since(std::time::UNIX_EPOCH).unwrap().as_micros(), 1_700_000_000_123_456);
    assert_eq!(row.get::<_, Vec<Option<i64>>>(2), [Some(1), None, Some(3)]);
    assert_eq!(row.get::<_, i64>(3), 42);
    assert_eq!(row.get::<_, Vec<u8>>(4), [0xab, 0xcd]);
    assert_eq!(row.columns()[5].type_(), &Type::JSON);
    let row = client.query_one("SELECT $1::int + 1, $2", &[&41_i32, &"free"]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 42);
    assert_eq!(row.get::<_, &str>(1), "free");
    let rows = client.query("SELECT n FROM raw.numbers ORDER BY n LIMIT $1", &[&3_i64]).await.unwrap();
    assert_eq!(rows.len(), 3);
    assert!(client.query_one("SELECT nothing FROM sales WHERE total = $1", &[&1_i64]).await.is_err());
    assert_eq!(client.query("SHOW server_version_num", &[]).await.unwrap()[0].get::<_, &str>(0), "160006");
}

/// All that a COPY sends.
async fn copied(client: &Client, sql: &str) -> Vec<u8> {
    let pieces = client.copy_out(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let pieces: Vec<_> = pieces.try_collect().await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    pieces.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_gives_rows_as_text_csv_and_binary() {
    let server = Server::start().await;
    let client = server.connect().await;
    for (sql, expected) in [
        ("COPY sales TO STDOUT", "apple\t10\t1.5\npear\t20\t\\N\nplum\t30\t0.1\n"),
        ("COPY sales (total, item_id) TO STDOUT WITH (DELIMITER '|')", "10|apple\n20|pear\n30|plum\n"),
        (
            "COPY (SELECT total AS t, mean FROM sales ORDER BY t DESC) TO STDOUT (FORMAT csv, HEADER)",
            "t,mean\n30,0.1\n20,\n10,1.5\n",
        ),
        ("COPY (SELECT mean FROM sales) TO STDOUT (FORMAT csv, NULL '-')", "1.5\n-\n0.1\n"),
        (
            "COPY batch.sales TO STDOUT WITH CSV HEADER DELIMITER ';'",
            "item_id;total;mean\napple;10;1.5\npear;20;\nplum;30;0.1\n",
        ),
        (
            "COPY (SELECT 'say \"hi\", ' || chr(10) AS a, '' AS b, NULL AS c, 'x' AS d) TO STDOUT \
             (FORMAT csv, FORCE_QUOTE (d))",
            "\"say \"\"hi\"\", \n\",\"\",,\"x\"\n",
        ),
        ("COPY (SELECT 'a' || chr(9) || 'b\\c' || chr(10) || 'd' AS a) TO STDOUT", "a\\tb\\\\c\\nd\n"),
        ("COPY (SELECT '\\.' AS a) TO STDOUT (FORMAT csv)", "\"\\.\"\n"),
        ("COPY (SELECT 1 WHERE false) TO STDOUT", ""),
    ] {
        assert_eq!(String::from_utf8(copied(&client, sql).await).unwrap(), expected, "{sql}");
    }
    let binary =
        copied(&client, "COPY (SELECT 7::bigint AS n, NULL::text AS t, 'ab' AS s) TO STDOUT (FORMAT binary)").await;
    let expected =
        b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x03\0\0\0\x08\0\0\0\0\0\0\0\x07\xff\xff\xff\xff\0\0\0\x02ab\xff\xff";
    assert_eq!(binary, expected);
    // Many pieces.
    let numbers = String::from_utf8(copied(&client, "COPY raw.numbers TO STDOUT").await).unwrap();
    assert_eq!(numbers.lines().map(|line| line.parse::<u64>().unwrap()).sum::<u64>(), (0..20_000).sum::<u64>());
    // An error in the midst ends it, and the session goes on; and so it does in the simple protocol.
    let failing = client.copy_out("COPY (SELECT 1 / (n - 15000) FROM raw.numbers) TO STDOUT").await.unwrap();
    let error = failing.try_collect::<Vec<_>>().await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    assert_eq!(text(&client, "SELECT 1").await, "1");
    assert_eq!(failure(&client, "COPY (SELECT missing FROM sales) TO STDOUT").await.0, "42703");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parameter_may_be_an_array_without_saying_so() {
    let server = Server::start().await;
    let client = server.connect().await;
    let sql = "SELECT count(*) FROM raw.numbers WHERE n = ANY($1)";
    let statement = client.prepare(sql).await.unwrap();
    assert_eq!(statement.params(), [Type::INT8_ARRAY]);
    let row = client.query_one(&statement, &[&vec![1_i64, 3, -5]]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn cursors_give_rows_in_portions_until_their_transaction_ends() {
    let server = Server::start().await;
    let client = server.connect().await;
    let numbers = async |sql: &str| -> Vec<i64> {
        let rows = texts(&client, sql).await;
        rows.into_iter().map(|row| row[0].as_ref().unwrap().parse().unwrap()).collect()
    };
    assert_eq!(failure(&client, "DECLARE c CURSOR FOR SELECT 1").await.0, "25P01");
    client.batch_execute("BEGIN").await.unwrap();
    client
        .batch_execute("DECLARE \"C 1\" NO SCROLL CURSOR FOR SELECT n FROM raw.numbers ORDER BY n")
        .await
        .unwrap();
    assert_eq!(numbers("FETCH 3 FROM \"C 1\"").await, [0, 1, 2]);
    assert_eq!(numbers("FETCH NEXT FROM \"C 1\"").await, [3]);
    assert_eq!(numbers("FETCH \"C 1\"").await, [4]);
    assert_eq!(client.execute("MOVE FORWARD 10000 IN \"C 1\"", &[]).await.unwrap(), 10_000);
    assert_eq!(numbers("FETCH FORWARD 2 IN \"C 1\"").await, [10_005, 10_006]);
    // In the extended protocol too, whose client asks for the columns first.
    let row = client.query_one("FETCH 1 FROM \"C 1\"", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 10_007);
    assert_eq!(numbers("FETCH ALL FROM \"C 1\"").await.len(), 20_000 - 10_008);
    assert_eq!(numbers("FETCH 5 FROM \"C 1\"").await, [0_i64; 0]);
    // Of one snapshot with the rest of the transaction, and with parameters.
    let declare = client.prepare("DECLARE t CURSOR FOR SELECT max(n) + $1::bigint FROM ticks").await.unwrap();
    let before = numbers("SELECT max(n) FROM ticks").await;
    client.execute(&declare, &[&100_i64]).await.unwrap();
    assert_eq!(numbers("FETCH ALL t").await, [before[0] + 100]);
    client
        .batch_execute("CLOSE t; DECLARE h CURSOR WITH HOLD FOR SELECT n FROM raw.numbers ORDER BY n; COMMIT")
        .await
        .unwrap();
    assert_eq!(failure(&client, "FETCH 1 FROM \"C 1\"").await.0, "34000");
    assert_eq!(numbers("FETCH 2 FROM h").await, [0, 1]);
    client.batch_execute("CLOSE ALL").await.unwrap();
    for (sql, code) in [
        ("FETCH 1 FROM h", "34000"),
        ("CLOSE h", "34000"),
        ("FETCH BACKWARD 1 FROM h", "42601"),
        ("DECLARE h CURSOR WITH HOLD FOR DELETE FROM sales", "42601"),
        ("DECLARE h CURSOR WITH HOLD FOR SELECT missing FROM sales", "42703"),
        ("DECLARE h BINARY CURSOR FOR SELECT 1", "42601"),
        ("DECLARE h CURSOR", "42601"),
    ] {
        assert_eq!(failure(&client, sql).await.0, code, "{sql}");
    }
    client.batch_execute("DECLARE f CURSOR WITH HOLD FOR SELECT 1 / (n - 2) FROM raw.numbers").await.unwrap();
    assert_eq!(failure(&client, "FETCH ALL FROM f").await.0, "22012");
    assert_eq!(failure(&client, "DECLARE f CURSOR WITH HOLD FOR SELECT 1").await.0, "42P03");
    assert_eq!(text(&client, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn portals_give_rows_in_portions() {
    let server = Server::start().await;
    let mut client = server.connect().await;
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SELECT n FROM raw.numbers ORDER BY n", &[]).await.unwrap();
    let first = transaction.query_portal(&portal, 7).await.unwrap();
    let second = transaction.query_portal(&portal, 7).await.unwrap();
    assert_eq!((first.len(), second[0].get::<_, i64>(0)), (7, 7));
    let rest = transaction.query_portal(&portal, 0).await.unwrap();
    assert_eq!(rest.len(), 20_000 - 14);
    transaction.commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_carry_their_sqlstate() {
    let server = Server::start().await;
    let client = server.connect().await;
    for (sql, code) in [
        ("SELEC 1", "42601"),
        ("SELECT * FROM missing", "42P01"),
        ("SELECT * FROM nowhere.sales", "42P01"),
        ("SELECT missing FROM sales", "42703"),
        ("SELECT missing(1)", "42883"),
        ("SELECT total FROM sales a JOIN batch.sales b ON a.item_id = b.item_id", "42702"),
        ("SELECT total + item_id FROM sales WHERE total = ARRAY[1]", "42804"),
        ("SELECT item_id, sum(total) FROM sales", "42803"),
        ("SELECT 1 / 0", "22012"),
        ("SELECT total / 0 FROM sales", "22012"),
        ("SELECT 'abc'::int", "22P02"),
        ("SELECT item_id::bigint FROM sales", "22P02"),
        ("SELECT (total * 1000000000)::int FROM sales", "22003"),
        ("SET no_such_thing = 1", "42704"),
        ("SHOW no_such_thing", "42704"),
        ("REFRESH MATERIALIZED VIEW nothing", "42P01"),
        ("REFRESH MATERIALIZED VIEW kinds", "55000"),
        ("SELECT", "42601"),
        ("COPY sales TO STDOUT (FORMAT parquet)", "22023"),
        ("COPY sales TO STDOUT (FORMAT binary, HEADER)", "22023"),
        ("COPY sales TO STDOUT (FORMAT csv, DELIMITER '\"')", "22023"),
        ("COPY nothing TO STDOUT", "42P01"),
        ("COPY sales FROM STDIN", "42P01"),
    ] {
        let (found, message) = failure(&client, sql).await;
        assert_eq!(found, code, "{sql}: {message}");
    }
    let error = client.simple_query("SELECT total,\n  missing FROM sales").await.unwrap_err();
    let position = error.as_db_error().unwrap().position().cloned();
    assert_eq!(position, Some(tokio_postgres::error::ErrorPosition::Original(17)));
    client.simple_query("REFRESH MATERIALIZED VIEW sales").await.unwrap();
    let wrong = client.query("SELECT total FROM sales WHERE total = $1::bigint", &[&"x"]).await;
    assert!(wrong.is_err());
    assert_eq!(text(&client, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_writes_and_no_file_is_touched() {
    let server = Server::start().await;
    let client = server.connect().await;
    let directory = tempfile::tempdir().unwrap();
    let target = directory.path().join("stolen.csv");
    let secret = directory.path().join("secret.csv");
    std::fs::write(&secret, "a,b\n1,2\n").unwrap();
    let (target_text, secret_text) = (target.display(), secret.display());
    for sql in [
        format!("COPY (SELECT 1) TO '{target_text}'"),
        format!("COPY sales TO '{target_text}' STORED AS CSV"),
        format!("EXPLAIN ANALYZE COPY (SELECT 1) TO '{target_text}'"),
        format!("COPY sales FROM '{secret_text}'"),
        format!("CREATE EXTERNAL TABLE s STORED AS CSV LOCATION '{secret_text}'"),
        format!("SELECT * FROM '{secret_text}'"),
        "CREATE TABLE t AS SELECT 1".into(),
        "SELECT 1 AS a INTO t".into(),
        "INSERT INTO sales VALUES ('x', 1, 2)".into(),
        "WITH x AS (INSERT INTO sales VALUES ('x', 1, 2) RETURNING 1) SELECT * FROM x".into(),
        "UPDATE sales SET total = 0".into(),
        "DELETE FROM sales".into(),
        "DROP TABLE sales".into(),
        "CREATE SCHEMA s".into(),
        "SET datafusion.catalog.location = '/'".into(),
    ] {
        let (code, message) = failure(&client, &sql).await;
        assert!(["42501", "0A000", "42601", "42704", "42P01"].contains(&code.as_str()), "{sql}: {code} {message}");
        assert!(sql.starts_with("SET") || client.prepare(&sql).await.is_err(), "{sql} can be prepared");
    }
    assert!(!target.exists());
    assert_eq!(text(&client, "SELECT count(*) FROM sales").await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_reads_one_snapshot() {
    let server = Server::start().await;
    let client = server.connect().await;
    let count = "SELECT count(*) FROM ticks";
    let (before, after) = (text(&client, count).await, text(&client, count).await);
    assert_ne!(before, after, "each statement pins its own snapshot");
    client.simple_query("BEGIN READ ONLY").await.unwrap();
    let first = text(&client, count).await;
    let other = server.connect().await;
    text(&other, count).await;
    assert_eq!(text(&client, count).await, first);
    assert_eq!(client.query_one(count, &[]).await.unwrap().get::<_, i64>(0).to_string(), first);
    client.simple_query("SAVEPOINT s; RELEASE s").await.unwrap();
    client.simple_query("COMMIT").await.unwrap();
    assert_ne!(text(&client, count).await, first);

    client.simple_query("BEGIN").await.unwrap();
    assert_eq!(failure(&client, "SELECT 1 / 0").await.0, "22012");
    assert_eq!(failure(&client, "SELECT 1").await.0, "25P02");
    client.simple_query("ROLLBACK").await.unwrap();
    assert_eq!(text(&client, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_belong_to_their_session() {
    let server = Server::start().await;
    let client = server.connect_with("options='-c statement_timeout=7s' application_name=test").await;
    assert_eq!(text(&client, "SHOW statement_timeout").await, "7s");
    assert_eq!(text(&client, "SELECT current_setting('application_name')").await, "test");
    client.simple_query("SET statement_timeout = '90s'; SET search_path TO batch, public").await.unwrap();
    assert_eq!(text(&client, "SHOW statement_timeout").await, "90s");
    assert_eq!(text(&client, "SELECT current_schema()").await, "batch");
    let other = server.connect().await;
    assert_eq!(text(&other, "SHOW search_path").await, "\"$user\", public");
    client.simple_query("BEGIN; SET LOCAL statement_timeout = 5; ROLLBACK").await.unwrap();
    assert_eq!(text(&client, "SHOW statement_timeout").await, "90s");
    client.simple_query("DISCARD ALL").await.unwrap();
    assert_eq!(text(&client, "SHOW statement_timeout").await, "7s");
    assert_eq!(failure(&client, "SET timezone TO 'Asia/Tokyo'").await.0, "22023");
    client
        .simple_query("SET timezone TO 'UTC'; SET datestyle TO ISO; SET client_encoding TO 'UTF8'")
        .await
        .unwrap();
    let wrong = tokio_postgres::connect(&format!("{} options='-c nonsense=1'", server.url()), NoTls).await;
    assert!(wrong.is_err());
}

/// Rows enough for minutes of work on any machine.
const ENDLESS: &str =
    "SELECT sum(a.n * b.n % 7) FROM raw.numbers a CROSS JOIN raw.numbers b CROSS JOIN raw.numbers c";
const ENDLESS_ROWS: &str = "SELECT a.n FROM raw.numbers a CROSS JOIN raw.numbers b CROSS JOIN raw.numbers c";

/// Billions of pairs and not one row.
const ENDLESS_NOTHING: &str = "SELECT count(*) FROM raw.numbers a JOIN raw.numbers b ON a.n + b.n < 0 \
                               JOIN raw.numbers c ON b.n * c.n < a.n - 100000";

/// So many pairs for each batch that the join does not end with one for seconds.
const ENDLESS_COMPARISONS: &str = "SELECT count(*) FROM raw.numbers a, raw.numbers b, raw.numbers c, raw.numbers d \
                                   WHERE a.n + b.n + c.n + d.n = -1";

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_request_stops_the_work() {
    let server = Server::start().await;
    for sql in [ENDLESS, ENDLESS_ROWS, ENDLESS_NOTHING, ENDLESS_COMPARISONS] {
        let client = server.connect().await;
        let token = client.cancel_token();
        let running = tokio::spawn(async move {
            let error = client.simple_query(sql).await.map(drop).unwrap_err();
            (client, error.code().cloned())
        });
        until("the query runs", || server.metrics.queries_running.get() == 1).await;
        // Until what is joined was read, and the joining goes on.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let asked = Instant::now();
        token.cancel_query(NoTls).await.unwrap();
        let (client, code) = running.await.unwrap();
        assert_eq!(code.unwrap().code(), "57014", "{sql}");
        until("the work stops", || server.metrics.queries_running.get() == 0).await;
        assert!(asked.elapsed() < Duration::from_secs(1), "{sql}: stopped after {:?}", asked.elapsed());
        assert_eq!(text(&client, "SELECT 1").await, "1");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statement_timeout_covers_work_and_streaming() {
    let server = Server::start().await;
    let client = server.connect().await;
    client.simple_query("SET statement_timeout = 300").await.unwrap();
    for sql in [ENDLESS, ENDLESS_ROWS] {
        let started = Instant::now();
        let (code, message) = failure(&client, sql).await;
        assert_eq!(code, "57014", "{message}");
        assert!(message.contains("statement timeout"), "{message}");
        assert!(started.elapsed() < Duration::from_millis(1300), "{:?}", started.elapsed());
    }
    let prepared = client.query(ENDLESS, &[]).await.unwrap_err();
    assert_eq!(prepared.code().unwrap().code(), "57014");
    let stopped = Instant::now();
    until("the work stops", || server.metrics.queries_running.get() == 0).await;
    assert!(stopped.elapsed() < Duration::from_secs(1), "{:?}", stopped.elapsed());
    assert_eq!(text(&client, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_query_along() {
    let server = Server::start().await;
    let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
    let socket = tokio::spawn(connection);
    let _running = tokio::spawn(async move { client.simple_query(ENDLESS_ROWS).await.map(drop) });
    until("the query runs", || server.metrics.queries_running.get() == 1).await;
    socket.abort();
    until("the work stops", || server.metrics.queries_running.get() == 0).await;
    until("the session ends", || server.metrics.pg_connections.get() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_statements_do_not_end_the_process() {
    let server = Server::start().await;
    let client = server.connect().await;
    let chain = |terms: usize, joint: &str| format!("SELECT {}", vec!["1"; terms].join(joint));
    assert_eq!(text(&client, &chain(450, " + ")).await, "450");
    for terms in [2_000, 20_000] {
        assert_eq!(failure(&client, &chain(terms, " + ")).await.0, "54001");
        let ors = format!("SELECT * FROM sales WHERE {}", vec!["total = 1"; terms].join(" OR "));
        assert_eq!(failure(&client, &ors).await.0, "54001");
    }
    let ors = format!("SELECT count(*) FROM sales WHERE {}", vec!["total = 10"; 240].join(" OR "));
    assert_eq!(text(&client, &ors).await, "1");
    let calls = format!("SELECT {}1{}", "abs(".repeat(50), ")".repeat(50));
    assert_eq!(text(&client, &calls).await, "1");
    let mut list = String::from("SELECT count(*) FROM sales WHERE total IN (0");
    for n in 1..20_000 {
        write!(list, ", {n}").unwrap();
    }
    assert_eq!(text(&client, &(list + ")")).await, "3");
    let unions = vec!["SELECT 1"; 200].join(" UNION ALL ");
    assert_eq!(texts(&client, &unions).await.len(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_session_too_many_is_told_so() {
    let server = Server::with(Limits { connections_max: 2, ..Limits::default() }).await;
    let (first, _second) = (server.connect().await, server.connect().await);
    let third = tokio_postgres::connect(&server.url(), NoTls).await.map(drop).unwrap_err();
    assert_eq!(third.code().unwrap().code(), "53300");
    drop(first);
    until("room again", || server.metrics.pg_connections.get() == 1).await;
    assert_eq!(text(&server.connect().await, "SELECT 1").await, "1");
    let elsewhere = server.url().replace("dbname=viewledger", "dbname=other");
    let wrong = tokio_postgres::connect(&elsewhere, NoTls).await.map(drop).unwrap_err();
    assert_eq!(wrong.code().unwrap().code(), "3D000");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_say_what_is_wrong() {
    let server = Server::start().await;
    let taken = pg::listen(server.address, Exposure::Loopback).await.unwrap_err().to_string();
    assert!(taken.contains(&server.address.port().to_string()), "{taken}");
    assert!(taken.contains("server.pg_port") && taken.contains("--pg-port"), "{taken}");
    let open = pg::listen("0.0.0.0:0".parse().unwrap(), Exposure::Loopback).await.unwrap_err().to_string();
    assert!(open.contains("loopback"), "{open}");
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_describes_the_catalog() {
    let server = Server::start().await;
    let Some((tables, errors)) = server.psql(&[r"\dt"]) else { return };
    assert_eq!(errors, "");
    assert!(tables.contains("sales") && tables.contains("kinds"), "{tables}");
    assert!(!tables.contains("numbers") && !tables.contains("pg_class"), "{tables}");
    for (command, expected) in [
        (r"\dt *.*", vec!["raw", "numbers", "batch"]),
        (r"\dt batch.*", vec!["batch", "sales"]),
        (r"\d sales", vec!["item_id", "text", "total", "bigint", "mean", "double precision"]),
        (r"\d batch.sales", vec!["Table \"batch.sales\"", "total"]),
        (r"\d kinds", vec!["timestamp with time zone", "numeric", "boolean"]),
        (r"\d+ sales", vec!["item_id", "bigint"]),
        (r"\dt+", vec!["sales", "what was sold"]),
        (r"\dn+", vec!["public"]),
        (r"\l+", vec!["viewledger"]),
        (r"\dn", vec!["public", "speed", "system"]),
        (r"\dv", vec![]),
        (r"\d", vec!["sales"]),
        (r"\l", vec!["viewledger", "UTF-8"]),
        (r"\df", vec![]),
        (r"\du", vec![]),
        (r"\dm", vec![]),
        (r"\di", vec![]),
        (r"\conninfo", vec!["viewledger", "ada"]),
        (r"\encoding", vec![]),
        ("SELECT * FROM sales ORDER BY total", vec!["apple", "(3 rows)"]),
        ("SELECT now() > '2020-01-01'", vec!["t"]),
    ] {
        let (output, errors) = server.psql(&[command]).unwrap();
        assert_eq!(errors.replace("Did not find any relations.\n", ""), "", "{command}");
        for word in expected {
            assert!(output.contains(word), "{command} does not show {word}:\n{output}");
        }
    }
    let (timed, errors) = server.psql(&[r"\timing", r"\x", "SELECT total FROM sales WHERE total = 10"]).unwrap();
    assert!(timed.contains("total | 10") && timed.contains("Time:"), "{timed}{errors}");
    let (_, errors) = server.psql(&["SELECT total, missing FROM sales"]).unwrap();
    assert!(errors.contains("column \"missing\" does not exist") && errors.contains('^'), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_reports_health_readiness_and_metrics() {
    let (metrics, health, shutdown) = (Arc::new(Metrics::new()), Health::default(), Shutdown::default());
    let listener = Endpoint::http("127.0.0.1:0".parse().unwrap()).listen().await.unwrap();
    let address = listener.local_addr().unwrap();
    let taken = Endpoint::http(address).listen().await.unwrap_err().to_string();
    assert!(taken.contains("server.http_port"), "{taken}");
    let database = Arc::new(Fixture::new());
    let queries = tokio::runtime::Handle::current();
    let service = QueryService::new(database, Limits::default(), queries, Arc::clone(&metrics)).unwrap();
    let sockets = Sockets::of(listener, None, Protocol::Http, &health, shutdown.clone());
    tokio::spawn(http::serve_http(sockets, service, shutdown.clone(), health.clone()));
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    let ready = get(address, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("broker is away"), "{ready}");
    metrics.generation.set(9);
    assert!(get(address, "/metrics").await.contains("generation 9"));
    health.poison("archive", "disk is gone");
    let failed = get(address, "/healthz").await;
    assert!(failed.starts_with("HTTP/1.1 503") && failed.contains("disk is gone"), "{failed}");
    shutdown.trigger();
}

async fn get(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
