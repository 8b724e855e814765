//! Arrow Flight SQL, with the client of arrow-flight; other clients are in `tests/clients`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    ActionCancelQueryRequest, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo,
    ProstMessageExt, SqlInfo,
};
use arrow_flight::{Action, FlightInfo};
use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::arrow::util::display::array_value_to_string;
use futures::TryStreamExt;
use prost::Message;
use tonic::transport::{Channel, Endpoint};

use crate::server::Ask;
use crate::world::{VIEWS, World, clicks, difference};

type Client = FlightSqlServiceClient<Channel>;

async fn connect(ask: &Ask) -> Client {
    let channel = Endpoint::new(format!("http://{}", ask.at.flight)).unwrap().connect().await.unwrap();
    FlightSqlServiceClient::new(channel)
}

/// One text a row, its values with `|` between them.
fn texts(batches: &[RecordBatch]) -> Vec<String> {
    let cell = |column: &ArrayRef, row| match column.is_null(row) {
        true => "-".to_owned(),
        false => array_value_to_string(column, row).unwrap(),
    };
    let lines = |batch: &RecordBatch| {
        let line = |row| batch.columns().iter().map(|column| cell(column, row)).collect::<Vec<_>>().join("|");
        (0..batch.num_rows()).map(line).collect::<Vec<_>>()
    };
    batches.iter().flat_map(lines).collect()
}

async fn fetch(client: &mut Client, info: FlightInfo) -> Result<Vec<RecordBatch>, String> {
    let mut all = Vec::new();
    for endpoint in info.endpoint {
        let stream = client.do_get(endpoint.ticket.unwrap()).await.map_err(|error| error.to_string())?;
        all.extend(stream.try_collect::<Vec<_>>().await.map_err(|error| error.to_string())?);
    }
    Ok(all)
}

async fn try_rows(client: &mut Client, sql: &str) -> Result<Vec<String>, String> {
    let info = client.execute(sql.to_owned(), None).await.map_err(|error| error.to_string())?;
    fetch(client, info).await.map(|batches| texts(&batches))
}

async fn rows(client: &mut Client, sql: &str) -> Vec<String> {
    try_rows(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

fn refused<T>(result: Result<T, FlightError>) -> String {
    result.err().expect("it should be refused").to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_are_answered_as_over_postgres_wire() {
    let world = World::new(2).await;
    let server = world.serve_filled().await;
    let mut client = connect(&server).await;
    for sql in [
        "SELECT page, total, spent FROM pages ORDER BY page",
        "SELECT sum(total) FROM batch.pages",
        "SELECT id, ms, _partition, _offset FROM raw.clicks ORDER BY id",
        "SELECT count(*) FROM quarantine.clicks",
        "SHOW server_version",
        "SELECT 1 WHERE false",
    ] {
        assert_eq!(rows(&mut client, sql).await, server.rows(sql).await, "{sql}");
    }
    for (view, query) in VIEWS {
        assert_eq!(rows(&mut client, &difference(view, query)).await, Vec::<String>::new(), "view {view}");
    }
    let explained = rows(&mut client, "EXPLAIN SELECT count(*) FROM pages").await;
    assert!(explained.iter().any(|line| line.contains("AggregateExec")), "{explained:?}");
    // Described before it is fetched, also when there is no row.
    let info = client.execute("SELECT page, total FROM pages WHERE false".into(), None).await.unwrap();
    let certificate: serde_json::Value = serde_json::from_slice(&info.app_metadata).unwrap();
    assert_eq!((&certificate["generation"], &certificate["complete"]), (&1.into(), &true.into()), "{certificate}");
    let schema = info.clone().try_decode_schema().unwrap();
    assert_eq!(schema.field(0).data_type(), &DataType::Utf8);
    assert_eq!(schema.field(1).data_type(), &DataType::Int64);
    assert_eq!(texts(&fetch(&mut client, info.clone()).await.unwrap()), Vec::<String>::new());
    let again = fetch(&mut client, info).await.unwrap_err();
    assert!(again.contains("nothing waits for this ticket"), "{again}");

    for (sql, words) in [
        ("SELECT nothing FROM pages", "SQLSTATE 42703"),
        ("SELECT * FROM nowhere", "SQLSTATE 42P01"),
        ("SELEC 1", "SQLSTATE 42601"),
        ("SELECT 1; SELECT 2", "a flight has one statement"),
        ("", "there is no statement"),
        ("COPY pages TO '/tmp/x'", "SQLSTATE 42501"),
        ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'", "SQLSTATE 42501"),
        ("SELECT 1 / 0", "SQLSTATE 22012"),
        ("BEGIN", "transactions of Flight SQL"),
        ("SET statement_timeout = '1s'", "connect with a user name"),
        ("SELECT $1 + 1", "parameter"),
    ] {
        let said = try_rows(&mut client, sql).await.unwrap_err();
        assert!(said.contains(words), "{sql}: {said}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_begins_a_session_and_a_transaction_holds_a_snapshot() {
    let world = World::new(2).await;
    let server = world.serve_filled().await;
    let mut client = connect(&server).await;
    client.handshake("ana", "secret").await.unwrap();
    assert_eq!(rows(&mut client, "SELECT session_user").await, ["ana"]);
    assert_eq!(rows(&mut client, "SET viewledger.as_of = '1'").await, Vec::<String>::new());
    assert_eq!(rows(&mut client, "SELECT sum(total) FROM pages").await, ["6"]);
    rows(&mut client, "RESET viewledger.as_of").await;
    assert_eq!(rows(&mut client, "SELECT sum(total) FROM pages").await, ["9"]);

    let transaction = client.begin_transaction().await.unwrap();
    let count = async |client: &mut Client, transaction: Option<_>| {
        let info = client.execute("SELECT sum(total) FROM pages".into(), transaction).await.unwrap();
        texts(&fetch(client, info).await.unwrap()).remove(0)
    };
    assert_eq!(count(&mut client, Some(transaction.clone())).await, "9");
    // A flight that was described before reads what it was described over.
    let described = client.execute("SELECT sum(total) FROM pages".into(), None).await.unwrap();
    world.kafka.write(clicks("c", 0, 3));
    server.until_passed(12).await;
    server.refresh().await;
    assert_eq!(count(&mut client, None).await, "12");
    assert_eq!(count(&mut client, Some(transaction.clone())).await, "9");
    assert_eq!(texts(&fetch(&mut client, described).await.unwrap()), ["9"]);
    let sum = "SELECT sum(total) FROM pages".to_owned();
    let mut prepared = client.prepare(sum, Some(transaction.clone())).await.unwrap();
    let info = prepared.execute().await.unwrap();
    assert_eq!(texts(&fetch(&mut client, info).await.unwrap()), ["9"]);
    client.end_transaction(transaction.clone(), arrow_flight::sql::EndTransaction::Commit).await.unwrap();
    let info = prepared.execute().await.unwrap();
    assert_eq!(texts(&fetch(&mut client, info).await.unwrap()), ["12"], "it outlives its transaction");
    let ended = refused(client.execute("SELECT 1".into(), Some(transaction)).await);
    assert!(ended.contains("there is no such transaction"), "{ended}");

    client.set_token("nobody".into());
    let unknown = refused(client.execute("SELECT 1".into(), None).await);
    assert!(unknown.contains("this token is not known"), "{unknown}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_take_parameters_and_updates_tell_how_many() {
    let world = World::new(2).await;
    world.write_sql("tables/names.sql", "CREATE TABLE names (page TEXT PRIMARY KEY, rank BIGINT);");
    let server = world.serve_filled().await;
    let mut client = connect(&server).await;
    let sql = "SELECT total FROM pages WHERE page = $1 AND total > $2";
    let mut prepared = client.prepare(sql.into(), None).await.unwrap();
    assert_eq!(prepared.dataset_schema().unwrap().field(0).name(), "total");
    let parameters = prepared.parameter_schema().unwrap().clone();
    assert_eq!(parameters.fields().len(), 2);
    let unbound = refused(prepared.execute().await);
    assert!(unbound.contains("2 parameters are to be bound first"), "{unbound}");
    for (page, least, expected) in [("a", 0, vec!["3"]), ("b", 0, vec!["3"]), ("a", 3, vec![]), ("z", 0, vec![])] {
        let page: ArrayRef = Arc::new(StringArray::from(vec![page]));
        // Of another type than the column: it is cast.
        let least: ArrayRef = Arc::new(datafusion::arrow::array::Int32Array::from(vec![least]));
        prepared.set_parameters(RecordBatch::try_from_iter([("1", page), ("2", least)]).unwrap()).unwrap();
        let info = prepared.execute().await.unwrap();
        assert_eq!(texts(&fetch(&mut client, info).await.unwrap()), expected);
    }
    let page: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let wrong: ArrayRef = Arc::new(StringArray::from(vec!["many"]));
    prepared.set_parameters(RecordBatch::try_from_iter([("1", page), ("2", wrong)]).unwrap()).unwrap();
    let unfit = refused(prepared.execute().await);
    assert!(unfit.contains("a value does not fit its type"), "never NULL instead: {unfit}");
    prepared.close().await.unwrap();

    assert_eq!(client.execute_update("INSERT INTO names VALUES ('a', 1), ('b', 2)".into(), None).await.unwrap(), 2);
    let mut insert = client.prepare("INSERT INTO names VALUES ($1, $2)".into(), None).await.unwrap();
    let pages: ArrayRef = Arc::new(StringArray::from(vec!["c", "d", "e"]));
    let ranks: ArrayRef = Arc::new(Int64Array::from(vec![Some(3), None, Some(5)]));
    insert.set_parameters(RecordBatch::try_from_iter([("1", pages), ("2", ranks)]).unwrap()).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 3);
    assert_eq!(rows(&mut client, "SELECT * FROM names ORDER BY page").await, ["a|1", "b|2", "c|3", "d|-", "e|5"]);
    let twice = refused(client.execute_update("INSERT INTO names VALUES ('a', 9)".into(), None).await);
    assert!(twice.contains("SQLSTATE 23505"), "{twice}");
    assert_eq!(client.execute_update("REFRESH MATERIALIZED VIEW pages".into(), None).await.unwrap(), 0);
    let wrong = refused(client.execute_update("SELECT 1".into(), None).await);
    assert!(wrong.contains("send it as a query"), "{wrong}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_describes_what_there_is() {
    let world = World::new(2).await;
    world.write_sql("tables/names.sql", "CREATE TABLE names (page TEXT, rank BIGINT, PRIMARY KEY (rank, page));");
    let server = world.serve_filled().await;
    let mut client = connect(&server).await;
    let info = client.get_catalogs().await.unwrap();
    assert_eq!(texts(&fetch(&mut client, info).await.unwrap()), ["viewledger"]);
    let info = client.get_db_schemas(CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: None }).await;
    let schemas = texts(&fetch(&mut client, info.unwrap()).await.unwrap());
    for schema in ["batch", "public", "quarantine", "raw", "speed", "system"] {
        assert!(schemas.contains(&format!("viewledger|{schema}")), "{schemas:?}");
    }
    let tables = |schema: &str, include_schema| CommandGetTables {
        catalog: None,
        db_schema_filter_pattern: Some(schema.to_owned()),
        table_name_filter_pattern: Some("%".to_owned()),
        table_types: Vec::new(),
        include_schema,
    };
    let info = client.get_tables(tables("public", false)).await.unwrap();
    let found = texts(&fetch(&mut client, info).await.unwrap());
    assert!(found.iter().any(|line| line.starts_with("viewledger|public|pages|")), "{found:?}");
    let info = client.get_tables(tables("%", true)).await.unwrap();
    let all = fetch(&mut client, info).await.unwrap();
    assert!(all.iter().map(RecordBatch::num_rows).sum::<usize>() > 20);
    for (schema, table, expected) in [
        ("public", "names", vec!["rank|1", "page|2"]),
        ("public", "page_hours", vec!["page|1", "hour|2"]),
        ("raw", "clicks", vec!["id|1"]),
        ("public", "nowhere", vec![]),
    ] {
        let keys =
            CommandGetPrimaryKeys { catalog: None, db_schema: Some(schema.to_owned()), table: table.to_owned() };
        let info = client.get_primary_keys(keys).await.unwrap();
        let found = texts(&fetch(&mut client, info).await.unwrap());
        let expected: Vec<String> = expected.iter().map(|key| format!("{key}|{table}_pkey")).collect();
        let found: Vec<_> = found.iter().map(|line| line.splitn(4, '|').nth(3).unwrap().to_owned()).collect();
        assert_eq!(found, expected, "{schema}.{table}");
    }
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName, SqlInfo::FlightSqlServerTransaction]).await;
    assert_eq!(fetch(&mut client, info.unwrap()).await.unwrap()[0].num_rows(), 2);
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    assert_eq!(fetch(&mut client, info).await.unwrap()[0].num_rows(), 11);
    let info = client.get_table_types().await.unwrap();
    assert_eq!(texts(&fetch(&mut client, info).await.unwrap()), ["TABLE", "VIEW"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_result_is_cancelled_and_a_large_one_is_whole() {
    let world = World::new(2).await;
    let server = world.serve_filled().await;
    let mut client = connect(&server).await;
    // Far too many rows to be made: 10^12.
    let endless = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b";
    let info = client.execute(endless.into(), None).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let mut fetching = connect(&server).await;
    let running = tokio::spawn(async move {
        let stream = fetching.do_get(ticket).await?;
        stream.try_collect::<Vec<_>>().await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    let asked = ActionCancelQueryRequest { info: info.encode_to_vec().into() }.as_any().encode_to_vec();
    let action = Action::new("CancelQuery", asked);
    client.inner_mut().do_action(action).await.unwrap();
    let said = running.await.unwrap().unwrap_err().to_string();
    assert!(said.contains("SQLSTATE 57014"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(5));

    let info = client.execute("SELECT n FROM generate_series(1, 300000) AS t(n)".into(), None).await.unwrap();
    let batches = fetch(&mut client, info).await.unwrap();
    let sum: i64 = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values()).sum();
    assert_eq!(sum, 300_000 * 300_001 / 2);
    server.stop().await;
}
