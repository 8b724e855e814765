//! HTTP for applications: statements in every format, the endpoints of `sql/api`, and what goes wrong.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow::ipc::reader::StreamReader;
use arrow::util::display::array_value_to_string;
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::server::{Ask, Server};
use crate::world::{PATIENCE, World, clicks, eventually};

const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b";
const SERIES: &str = "SELECT n FROM generate_series(1, 300000) AS t(n)";
const FORMATS: [&str; 5] = ["json", "ndjson", "csv", "arrow", "parquet"];

const PAGE: &str = "\
-- GET /pages/{page}/clicks
-- about: How often one page was clicked.
-- path page TEXT: the page
-- returns: row
SELECT m.page,
       m.total,
       coalesce(b.total, 0) AS batch,
       coalesce(s.total, 0) AS speed,
       (SELECT max(changed_at) FROM system.snapshot) AS as_of
FROM   pages AS m
LEFT   JOIN batch.pages AS b ON b.page = m.page
LEFT   JOIN speed.pages AS s ON s.page = m.page
WHERE  m.page = $page
";

const PAGES: &str = "\
-- GET /pages
-- about: The pages that were clicked most.
-- query limit BIGINT BETWEEN 1 AND 100 DEFAULT 10: at most so many
-- query after TIMESTAMPTZ DEFAULT NULL: those of them that were clicked after it
-- query rate DECIMAL(18, 9) DEFAULT 0.001: what a click brings
-- returns: rows
SELECT p.page, p.total, p.total * $rate AS due
FROM   pages AS p
WHERE  $after IS NULL OR EXISTS (SELECT 1 FROM page_hours AS h WHERE h.page = p.page AND h.last_at > $after)
ORDER  BY p.total DESC
LIMIT  $limit
";

/// What came back, with the names of its headers in lower case.
#[derive(Debug)]
pub struct Answer {
    code: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    /// Whether the body came to its end.
    whole: bool,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let code = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        let headers: BTreeMap<String, String> = lines.filter_map(header).collect();
        let mut rest = &bytes[end + 4..];
        if !headers.contains_key("transfer-encoding") {
            let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
            return Self { code, headers, whole: rest.len() == length, body: rest.to_vec() };
        }
        let mut body = Vec::new();
        while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
            let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
            rest = &rest[line + 2..];
            if length == 0 {
                return Self { code, headers, body, whole: true };
            }
            body.extend_from_slice(&rest[..length.min(rest.len())]);
            rest = rest.get(length + 2..).unwrap_or_default();
        }
        Self { code, headers, body, whole: false }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The values of all rows as text, whatever they are written in.
    fn rows(&self) -> Vec<String> {
        assert!((self.code, self.whole) == (200, true), "{} {}", self.code, String::from_utf8_lossy(&self.body));
        let kind = self.header("content-type");
        if kind == "application/json" {
            return serde_json::from_slice::<Vec<Members>>(&self.body).unwrap().iter().map(Members::line).collect();
        }
        if kind == "application/x-ndjson" {
            return self.text().lines().map(|line| serde_json::from_str::<Members>(line).unwrap().line()).collect();
        }
        if kind.starts_with("text/csv") {
            let line = |line: &str| {
                line.split(',').map(|v| if v.is_empty() { "-" } else { v }).collect::<Vec<_>>().join("|")
            };
            return self.text().lines().skip(1).map(line).collect();
        }
        self.batches().iter().flat_map(lines).collect()
    }

    fn batches(&self) -> Vec<RecordBatch> {
        match self.header("content-type") {
            "application/vnd.apache.arrow.stream" => {
                StreamReader::try_new(self.body.as_slice(), None).unwrap().map(Result::unwrap).collect()
            }
            "application/vnd.apache.parquet" => {
                let bytes = Bytes::from(self.body.clone());
                let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
                reader.map(Result::unwrap).collect()
            }
            other => panic!("{other} has no batches"),
        }
    }

    fn sqlstate(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.code, "{problem}");
        assert!(problem["message"].is_string() && problem["title"].is_string(), "{problem}");
        problem["sqlstate"].as_str().unwrap_or_default().to_owned()
    }
}

/// An object, in the order in which it was written.
struct Members(Vec<(String, Value)>);

impl Members {
    fn line(&self) -> String {
        let text = |(_, value): &(String, Value)| match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        self.0.iter().map(text).collect::<Vec<_>>().join("|")
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

fn lines(batch: &RecordBatch) -> Vec<String> {
    let cell = |column: &ArrayRef, row| match column.is_null(row) {
        true => "-".to_owned(),
        false => array_value_to_string(column, row).unwrap(),
    };
    let line = |row| batch.columns().iter().map(|column| cell(column, row)).collect::<Vec<_>>().join("|");
    (0..batch.num_rows()).map(line).collect()
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let mut bytes = (text + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

impl Ask {
    async fn send(&self, request: &[u8]) -> Answer {
        let exchange = async {
            let mut stream = TcpStream::connect(self.at.http).await.unwrap();
            stream.write_all(request).await.unwrap();
            let mut bytes = Vec::new();
            // A connection that breaks off has given what it has given.
            drop(stream.read_to_end(&mut bytes).await);
            bytes
        };
        Answer::parse(&tokio::time::timeout(PATIENCE, exchange).await.expect("no answer in time"))
    }

    async fn fetch(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(&request("GET", path, headers, b"")).await
    }

    /// The statement, with these headers and the content type of SQL.
    pub async fn sql(&self, sql: &str, headers: &[(&str, &str)]) -> Answer {
        let headers: Vec<_> = headers.iter().copied().chain([("Content-Type", "application/sql")]).collect();
        self.send(&request("POST", "/sql", &headers, sql.as_bytes())).await
    }

    async fn sql_as(&self, sql: &str, format: &str) -> Answer {
        let path = format!("/sql?format={format}");
        self.send(&request("POST", &path, &[("Content-Type", "application/sql")], sql.as_bytes())).await
    }

    async fn order(&self, order: Value) -> Answer {
        let body = order.to_string();
        self.send(&request("POST", "/sql", &[("Content-Type", "application/json")], body.as_bytes())).await
    }
}

/// Waits until the snapshot stands still.
async fn until_quiet(server: &Server, path: &str) {
    server.until_archived().await;
    eventually("the snapshot stands still", async || {
        let before = server.fetch(path, &[]).await.header("etag").to_owned();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let after = server.fetch(path, &[]).await.header("etag").to_owned();
        if before == after { Ok(()) } else { Err(format!("{before} became {after}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_format_says_what_postgres_wire_says() {
    let world = World::new(2).await;
    let server = world.serve_filled().await;
    for sql in [
        "SELECT page, total, spent FROM pages ORDER BY page",
        "SELECT id, who, ms, _partition, _offset FROM raw.clicks ORDER BY id",
        "SELECT sum(total) AS total FROM batch.pages",
        "SELECT 1 AS one WHERE false",
        "SHOW server_version",
    ] {
        let expected = server.rows(sql).await;
        for format in FORMATS {
            let answer = server.sql_as(sql, format).await;
            assert_eq!(answer.rows(), expected, "{format}: {sql}");
            assert_eq!(answer.header("cache-control"), "no-store");
            assert_eq!(
                (answer.header("viewledger-generation"), answer.header("viewledger-complete")),
                ("1", "true")
            );
        }
    }
    assert_eq!(server.sql("SELECT 1 AS one", &[("Accept", "text/csv")]).await.text(), "one\n1\n");
    assert_eq!(server.sql("SELECT 1 AS one WHERE false", &[]).await.text(), "[]\n");
    assert_eq!(server.sql("SELECT 1 AS one WHERE false", &[("Accept", "text/csv")]).await.text(), "one\n");
    assert_eq!(
        server.sql("SELECT '' AS a, NULL AS b, 'x,\"y' AS c", &[("Accept", "text/csv")]).await.text(),
        "a,b,c\n\"\",,\"x,\"\"y\"\n"
    );
    let values = "SELECT 9007199254740993 AS big, CAST('1.50' AS DECIMAL(10, 2)) AS money, 0.5::float8 AS half, true AS yes, \
                  TIMESTAMPTZ '2026-01-31T12:00:00Z' AS at, ARRAY[1, NULL] AS list, NULL AS nothing";
    let expected = json!([{
        "big": "9007199254740993", "money": "1.50", "half": 0.5, "yes": true, "at": "2026-01-31T12:00:00Z",
        "list": [1, null], "nothing": null,
    }]);
    assert_eq!(server.sql(values, &[]).await.json(), expected);

    // Many rows, in many pieces, also compressed.
    for format in FORMATS {
        let plain = server.sql_as(SERIES, format).await;
        let sum = match format {
            "arrow" | "parquet" => plain
                .batches()
                .iter()
                .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
                .sum(),
            _ => plain.rows().iter().map(|row| row.parse::<i64>().unwrap()).sum::<i64>(),
        };
        assert_eq!(sum, 300_000 * 300_001 / 2, "{format}");
        assert_eq!(plain.header("content-encoding"), "");
    }
    let plain = server.sql(SERIES, &[]).await.body;
    let gzip = server.sql(SERIES, &[("Accept-Encoding", "gzip, br")]).await;
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(gzip.body.as_slice()).read_to_end(&mut text).unwrap();
    assert!(text == plain && gzip.header("content-encoding") == "gzip" && gzip.body.len() < plain.len() / 2);
    let zstd = server.sql(SERIES, &[("Accept-Encoding", "gzip, zstd")]).await;
    assert!(zstd::decode_all(zstd.body.as_slice()).unwrap() == plain && zstd.header("content-encoding") == "zstd");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_take_parameters_and_change_what_a_session_may() {
    let world = World::new(2).await;
    world.write_sql("tables/names.sql", "CREATE TABLE names (page TEXT PRIMARY KEY, rank BIGINT);");
    let server = world.serve_filled().await;
    let asked =
        json!({ "sql": "SELECT page, total FROM pages WHERE page = $1 AND total >= $2", "parameters": ["a", 1] });
    assert_eq!(server.order(asked).await.rows(), ["a|3"]);
    let inserted = json!({ "sql": "INSERT INTO names VALUES ($1, $2)", "parameters": ["a", 7] });
    assert_eq!(server.order(inserted).await.json(), json!({ "command": "INSERT", "rows": 1 }));
    let inserted = json!({ "sql": "INSERT INTO names VALUES ($1, $2)", "parameters": ["b", null] });
    assert_eq!(server.order(inserted).await.json(), json!({ "command": "INSERT", "rows": 1 }));
    assert_eq!(server.rows("SELECT * FROM names ORDER BY page").await, ["a|7", "b|-"]);
    let again = server.sql("INSERT INTO names VALUES ('a', 1)", &[]).await;
    assert_eq!((again.code, again.sqlstate().as_str()), (409, "23505"));
    let refreshed = server.sql("REFRESH MATERIALIZED VIEW pages", &[]).await;
    assert_eq!(refreshed.json(), json!({ "command": "REFRESH MATERIALIZED VIEW" }));
    let user = server.sql("SELECT session_user AS who", &[("Authorization", "Basic YW5hOg==")]).await;
    assert_eq!(user.json(), json!([{ "who": "ana" }]));
    assert_eq!(server.sql("SELECT session_user AS who", &[]).await.json(), json!([{ "who": "analyst" }]));

    for (order, code, state) in [
        (json!({ "sql": "SELECT $1::bigint", "parameters": ["many"] }), 400, "22003"),
        (json!({ "sql": "SELECT $1::bigint" }), 400, "08P01"),
        (json!({ "sql": "SELECT 1", "parameters": [1] }), 400, "08P01"),
        (json!({ "sql": "SELECT $1::text", "parameters": [[1]] }), 400, "42804"),
        (json!({ "query": "SELECT 1" }), 400, ""),
        (json!(["SELECT 1"]), 400, ""),
    ] {
        let answer = server.order(order.clone()).await;
        assert_eq!((answer.code, answer.sqlstate().as_str()), (code, state), "{order}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_as_a_problem() {
    let world = World::new(2).await;
    let server = world.serve_filled().await;
    for (sql, code, state) in [
        ("SELEC 1", 400, "42601"),
        ("SELECT nothing FROM pages", 400, "42703"),
        ("SELECT * FROM nowhere", 400, "42P01"),
        ("SELECT 1 / 0", 400, "22012"),
        ("SELECT 1; SELECT 2", 400, "42601"),
        ("  ", 400, "42601"),
        ("SELECT count(*), count(ms) FROM raw.clicks", 400, "42701"),
        ("COPY pages TO '/tmp/x'", 403, "42501"),
        ("COPY pages TO STDOUT", 400, "0A000"),
        ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'", 403, "42501"),
        ("BEGIN", 400, "0A000"),
        ("SET statement_timeout = '1s'", 409, "55000"),
        ("DECLARE c CURSOR FOR SELECT 1", 400, "0A000"),
        ("SHOW nothing", 400, "42704"),
    ] {
        let answer = server.sql(sql, &[]).await;
        assert_eq!((answer.code, answer.sqlstate().as_str()), (code, state), "{sql}: {}", answer.text());
    }
    assert_eq!(server.sql("SELECT nothing FROM pages", &[]).await.json()["position"], 8);
    let timed_out = server.sql(ENDLESS, &[("Viewledger-Statement-Timeout", "200ms")]).await;
    assert_eq!((timed_out.code, timed_out.sqlstate().as_str()), (504, "57014"));
    let wrong = server.sql("SELECT 1", &[("Viewledger-Statement-Timeout", "soon")]).await;
    assert_eq!((wrong.code, wrong.sqlstate().as_str()), (400, "22023"));
    let long = format!("SELECT 1 -- {}", "x".repeat(1 << 20));
    assert_eq!(server.sql(&long, &[]).await.code, 413);
    let announced = [("Content-Type", "application/sql"), ("Content-Length", "3000000")];
    assert_eq!(server.send(&request("POST", "/sql", &announced, b"")).await.code, 413);

    let post = |headers: &[(&str, &str)]| request("POST", "/sql", headers, b"SELECT 1");
    let sql = ("Content-Type", "application/sql");
    for (request, code) in [
        (post(&[]), 415),
        (post(&[("Content-Type", "text/plain")]), 415),
        (post(&[("Content-Type", "application/x-www-form-urlencoded")]), 415),
        (post(&[sql, ("Accept", "image/png")]), 406),
        (post(&[sql, ("Origin", "http://evil.example")]), 403),
        (post(&[sql, ("Origin", "null")]), 403),
        (post(&[sql, ("Sec-Fetch-Site", "cross-site")]), 403),
        (post(&[sql, ("Authorization", "Bearer x")]), 401),
        (request("GET", "/sql", &[], b""), 405),
        (request("DELETE", "/metrics", &[], b""), 405),
        (request("GET", "/nowhere", &[], b""), 404),
        (request("POST", "/sql?format=xml", &[sql], b"SELECT 1"), 400),
        (request("POST", "/sql?nothing=1", &[sql], b"SELECT 1"), 400),
    ] {
        let answer = server.send(&request).await;
        answer.sqlstate();
        assert_eq!(answer.code, code, "{}", String::from_utf8_lossy(&request));
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }
    let rebound = b"POST /sql HTTP/1.1\r\nHost: evil.example\r\nContent-Type: application/sql\r\nContent-Length: 8\r\nConnection: close\r\n\r\nSELECT 1";
    assert_eq!(server.send(rebound).await.code, 421);
    let own = format!("http://{}", "localhost");
    assert_eq!(server.sql("SELECT 1 AS one", &[("Origin", &own)]).await.rows(), ["1"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_off_is_not_taken_for_whole_and_who_goes_away_stops_the_query() {
    let mut world = World::new(2).await;
    world.set("VIEWLEDGER_SERVER_CONNECTIONS_MAX", "1");
    world.set("VIEWLEDGER_SERVER_CONNECTIONS_RESERVED", "0");
    let server = world.serve().await;
    for format in FORMATS {
        let answer =
            server.sql_as("SELECT n, 1 / (n - 290000) AS x FROM generate_series(1, 300000) AS t(n)", format).await;
        assert!(answer.code == 200 && !answer.whole, "{format}: {} {}", answer.code, answer.whole);
    }
    let running = |n: u64| format!("queries_running {n}");
    server.until_http("/metrics", 200, &running(0)).await;

    // One that gives nothing yet, and one whose rows nobody takes.
    for sql in [
        ENDLESS,
        "SELECT a.value AS a, b.value AS b FROM generate_series(1, 1000000) a, generate_series(1, 1000) b",
    ] {
        let mut stream = TcpStream::connect(server.at.http).await.unwrap();
        let asked = request("POST", "/sql", &[("Content-Type", "application/sql")], sql.as_bytes());
        stream.write_all(&asked).await.unwrap();
        server.until_http("/metrics", 200, &running(1)).await;
        let full = server.sql("SELECT 1", &[]).await;
        assert_eq!((full.code, full.sqlstate().as_str(), full.header("retry-after")), (503, "53300", "1"));
        drop(stream);
        let began = Instant::now();
        server.until_http("/metrics", 200, &running(0)).await;
        assert!(began.elapsed() < Duration::from_secs(10), "{sql}");
        eventually("there is room again", async || match server.sql("SELECT 1", &[]).await {
            answer if answer.code == 200 => Ok(()),
            answer => Err(format!("{answer:?}")),
        })
        .await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_answer_by_their_declared_types() {
    let world = World::new(2).await;
    world.write_sql("api/page.sql", PAGE);
    world.write_sql("api/pages.sql", PAGES);
    let server = world.serve_filled().await;
    let page = server.fetch("/pages/a/clicks", &[]).await;
    let body = page.json();
    assert_eq!(
        (&body["page"], &body["total"], &body["batch"], &body["speed"]),
        (&json!("a"), &json!(3), &json!(2), &json!(1))
    );
    assert!(body["as_of"].as_str().unwrap().ends_with('Z'), "{body}");
    assert_eq!((page.header("cache-control"), page.header("viewledger-generation")), ("no-cache", "1"));
    let nothing = server.fetch("/pages/nowhere/clicks", &[]).await;
    assert_eq!((nothing.code, nothing.sqlstate().as_str(), nothing.header("etag")), (404, "", ""));
    assert_eq!(server.fetch("/pages/a'%20OR%201=1--/clicks", &[]).await.code, 404);

    assert_eq!(server.fetch("/pages", &[]).await.rows(), ["a|3|0.003000000", "b|3|0.003000000", "c|3|0.003000000"]);
    for format in FORMATS {
        let answer = server.fetch(&format!("/pages?limit=2&rate=0.5&format={format}"), &[]).await;
        assert_eq!(answer.rows(), ["a|3|1.500000000", "b|3|1.500000000"], "{format}");
    }
    assert_eq!(server.fetch("/pages?after=2026-01-31T11:59:59Z", &[("Accept", "text/csv")]).await.rows().len(), 3);
    assert_eq!(server.fetch("/pages?after=2026-01-31T13:00:00%2B01:00", &[]).await.text(), "[]\n");
    for (query, parameter, words) in [
        ("limit=0", "limit", "must be from 1 to 100, not 0"),
        ("limit=x", "limit", "must be an integer of 64 bits"),
        ("limit=1&limit=2", "limit", "is given twice"),
        ("rate=0.0000000001", "rate", "must be a decimal"),
        ("after=yesterday", "after", "must be an instant"),
        ("size=3", "size", "is not known; there are limit, after, rate, format"),
        ("format=xml", "format", "must be one of json"),
    ] {
        let answer = server.fetch(&format!("/pages?{query}"), &[]).await;
        assert_eq!(answer.code, 400, "{query}");
        answer.sqlstate();
        let problem = answer.json();
        assert_eq!(problem["parameter"], parameter, "{problem}");
        assert!(problem["message"].as_str().unwrap().contains(words), "{problem}");
    }
    let wrong = server.send(&request("POST", "/pages", &[("Content-Type", "application/json")], b"{}")).await;
    assert_eq!((wrong.code, wrong.header("allow")), (405, "GET, HEAD"));
    until_quiet(&server, "/pages/a/clicks").await;
    let head = server.send(&request("HEAD", "/pages/a/clicks", &[], b"")).await;
    assert_eq!(
        (head.code, head.body.len(), head.header("etag")),
        (200, 0, server.fetch("/pages/a/clicks", &[]).await.header("etag"))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_stands_for_the_answer_of_its_snapshot() {
    let world = World::new(2).await;
    world.write_sql("api/page.sql", PAGE);
    world.write_sql("api/pages.sql", PAGES);
    let now = "-- GET /now\n-- about: The time.\n-- returns: row\nSELECT now() AS now, count(*) AS clicks FROM raw.clicks";
    world.write_sql("api/now.sql", now);
    let server = world.serve_filled().await;
    until_quiet(&server, "/pages").await;
    for path in ["/pages/a/clicks", "/pages", "/pages?format=parquet", "/pages?format=arrow&limit=1"] {
        let first = server.fetch(path, &[]).await;
        let tag = first.header("etag").to_owned();
        assert!(tag.starts_with('"') && tag.len() > 40, "{path}: {tag:?}");
        let again = server.fetch(path, &[("If-None-Match", "\"other\"")]).await;
        assert_eq!((again.header("etag") == tag, again.body == first.body), (true, true), "{path}");
        let unchanged = server.fetch(path, &[("If-None-Match", &tag)]).await;
        assert_eq!(
            (unchanged.code, unchanged.body.len(), unchanged.header("etag")),
            (304, 0, tag.as_str()),
            "{path}"
        );
        assert_eq!(unchanged.header("cache-control"), "no-cache");
    }
    let tag = server.fetch("/pages", &[]).await.header("etag").to_owned();
    let csv = server.fetch("/pages", &[("Accept", "text/csv")]).await;
    assert_ne!(csv.header("etag"), tag, "another format is another answer");
    assert_eq!(server.fetch("/now", &[]).await.header("etag"), "", "it is another answer each time");
    world.kafka.write(clicks("c", 0, 1));
    server.until_passed(10).await;
    let after = server.fetch("/pages", &[("If-None-Match", &tag)]).await;
    assert_eq!(after.code, 200);
    assert_eq!(after.rows()[0], "a|4|0.004000000");
    server.stop().await;

    // The same offsets, in another process: nobody is told that nothing changed.
    let server = world.serve().await;
    server.until("SELECT sum(total) FROM pages", &["10"]).await;
    assert_eq!(server.fetch("/pages", &[("If-None-Match", after.header("etag"))]).await.code, 200);
    server.stop().await;
}

/// Every `$ref` of `value` leads somewhere in `document`.
fn assert_resolved(value: &Value, document: &Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            members.values().for_each(|member| assert_resolved(member, document));
        }
        Value::Array(items) => items.iter().for_each(|item| assert_resolved(item, document)),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_document_describes_what_there_is_and_follows_changed_files() {
    let world = World::new(1).await;
    world.write_sql("api/page.sql", PAGE);
    world.write_sql("api/pages.sql", PAGES);
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 3));
    server.until_passed(3).await;
    server.until_archived().await;
    let document = server.fetch("/openapi.json", &[]).await.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_resolved(&document, &document);
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths, ["/pages", "/pages/{page}/clicks", "/sql"]);
    let operation = &document["paths"]["/pages"]["get"];
    let limit = &operation["parameters"][0];
    assert_eq!(
        (&limit["name"], &limit["in"], &limit["required"], &limit["schema"]),
        (
            &json!("limit"),
            &json!("query"),
            &json!(false),
            &json!({
                "type": "integer", "format": "int64", "minimum": 1, "maximum": 100, "default": 10
            })
        )
    );
    let schema = operation.pointer("/responses/200/content/application~1json/schema").unwrap();
    let described: Vec<&String> = schema["items"]["properties"].as_object().unwrap().keys().collect();
    let row = &server.fetch("/pages", &[]).await.json()[0];
    assert_eq!(described, row.as_object().unwrap().keys().collect::<Vec<_>>());
    assert_eq!(document["paths"]["/pages/{page}/clicks"]["get"]["parameters"][0]["required"], true);

    // A fault changes nothing; another route is followed; a view that an endpoint reads stays.
    let reload = "SELECT pg_reload_conf()";
    world.write_sql("api/pages.sql", &PAGES.replace("p.total DESC", "p.totl DESC"));
    let refused = server.try_rows(reload).await.unwrap_err();
    assert!(refused.contains("pages.sql:") && refused.contains("totl"), "{refused}");
    assert_eq!(server.fetch("/pages", &[]).await.rows().len(), 3);
    world.write_sql(
        "api/pages.sql",
        &PAGES.replace("GET /pages", "GET /{all}").replace("-- query limit", "-- path all TEXT: x\n-- query limit"),
    );
    let refused = server.try_rows(reload).await.unwrap_err();
    assert!(refused.contains("parameter all is declared and not used"), "{refused}");
    world.write_sql("api/pages.sql", &PAGES.replace("GET /pages", "GET /most").replace("DEFAULT 10", "DEFAULT 1"));
    server.one(reload).await;
    assert_eq!(server.fetch("/pages", &[]).await.code, 404);
    assert_eq!(server.fetch("/most", &[]).await.rows(), ["a|1|0.001000000"]);
    world.remove_sql("api/pages.sql");
    server.one(reload).await;
    assert_eq!(server.fetch("/most", &[]).await.code, 404);
    assert_eq!(server.fetch("/pages/a/clicks", &[]).await.json()["total"], 1);
    server.stop().await;
}

fn view(n: usize) -> (i32, Option<Vec<u8>>) {
    let video = n % 3;
    let text = format!(
        "{{\"event_id\":\"00000000-0000-4000-8000-{n:012}\",\"video_id\":\"v{video}\",\"user_id\":\"u\",\
         \"timestamp\":\"2026-01-31T12:00:00Z\",\"view_duration\":7,\"revenue_eligible\":{}}}",
        n.is_multiple_of(2)
    );
    (0, Some(text.into_bytes()))
}

/// Asks until it is told to end: batch and speed are the total, in every answer, and no answer is less than the one before.
async fn watch(ask: Ask, ends: Arc<AtomicBool>, asked: Arc<AtomicUsize>) {
    let mut least = 0;
    while !ends.load(Ordering::Relaxed) {
        let answer = ask.fetch("/videos/v0/views", &[]).await;
        if answer.code == 404 && least == 0 {
            continue;
        }
        let body = answer.json();
        let number = |name: &str| body[name].as_u64().unwrap_or_else(|| panic!("{body}"));
        let total = number("total_views");
        assert_eq!(number("batch_views") + number("realtime_views"), total, "{body}");
        assert!(total >= least, "the count went back from {least}: {body}");
        least = total;
        asked.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_shipped_endpoints_add_up_while_records_come() {
    let mut world = World::bare().await;
    let sql = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    world.set("VIEWLEDGER_SQL_DIR", sql.display().to_string());
    for topic in ["video-views", "ad-views", "user-sessions"] {
        world.kafka.create_topic(topic, 1).await;
    }
    let server = world.serve().await;
    let (ends, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let watching = tokio::spawn(watch(*server, Arc::clone(&ends), Arc::clone(&asked)));
    for round in 0..4 {
        world.kafka.write_to("video-views", (round * 300..(round + 1) * 300).map(view));
        server.until("SELECT sum(total_views) FROM video_views", &[((round + 1) * 300).to_string()]).await;
        // A refresh takes what the archive holds.
        server.until("SELECT count(*) FROM raw.video_views WHERE _file IS NULL", &["0"]).await;
        if round < 3 {
            let operator = server.connect_as("operator").await.unwrap();
            operator.batch_execute("REFRESH MATERIALIZED VIEW video_views").await.unwrap();
        }
        // It has to have been asked in each round, however fast the round was.
        let enough = 3 * (round + 1);
        eventually("the endpoint is watched", async || match asked.load(Ordering::Relaxed) {
            times if times >= enough => Ok(()),
            times if watching.is_finished() => panic!("the watch ended after {times} answers"),
            times => Err(format!("{times} answers")),
        })
        .await;
    }
    ends.store(true, Ordering::Relaxed);
    watching.await.unwrap();
    assert!(asked.load(Ordering::Relaxed) > 10);

    let views = server.fetch("/videos/v1/views", &[]).await.json();
    assert_eq!((&views["total_views"], &views["realtime_views"]), (&json!(400), &json!(100)), "{views}");
    let written = server.fetch("/videos/v1/views", &[]).await;
    let members: Members = serde_json::from_slice(&written.body).unwrap();
    let members: Vec<&str> = members.0.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(members, ["video_id", "total_views", "batch_views", "realtime_views", "as_of"]);
    let revenue = server.fetch("/videos/v1/revenue", &[]).await.json();
    let expected = (&json!(200), &json!("0.001000000"), &json!("0.200000000"));
    assert_eq!((&revenue["eligible_views"], &revenue["rate"], &revenue["revenue"]), expected, "{revenue}");
    let videos = server.fetch("/videos?limit=2", &[]).await;
    assert_eq!(videos.rows().len(), 2);
    for path in ["/videos/v1/views", "/videos/v1/revenue", "/videos"] {
        assert_ne!(server.fetch(path, &[]).await.header("etag"), "", "{path}");
    }
    assert_eq!(server.fetch("/videos/nothing/views", &[]).await.code, 404);
    server.stop().await;
}
