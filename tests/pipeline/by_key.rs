//! Lookups by key: the answer of the index is the answer of the planner, in the same snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::server::{Ask, Server};
use crate::world::{World, click, clicks, eventually};

/// Statements with the values of `$1`, all of which are texts.
const LOOKUPS: [(&str, &[&str]); 29] = [
    ("SELECT * FROM pages WHERE page = $1", &["a", "b", "nowhere", ""]),
    ("SELECT total, spent / total AS mine, page FROM pages WHERE $1 = page", &["a", "c"]),
    ("SELECT p.total AS t FROM pages p WHERE p.page IN ($1, 'b', 'b', NULL)", &["a", "b", "x"]),
    ("SELECT * FROM pages WHERE page = $1 AND total > 1", &["a", "d"]),
    ("SELECT * FROM pages WHERE page IN ('a', 'b') AND page = $1", &["a", "c"]),
    ("SELECT page, total FROM pages WHERE page = $1 OR page = 'c' ORDER BY total DESC, page LIMIT 1", &["a", "b"]),
    ("SELECT upper(page) AS up, mean, visitors FROM batch.pages WHERE page = $1", &["a", "d", "e"]),
    ("SELECT * FROM speed.pages WHERE page = $1", &["a", "d", "e"]),
    ("SELECT hour, total FROM page_hours WHERE page = $1 ORDER BY hour DESC LIMIT 5 OFFSET 1", &["a", "b"]),
    ("SELECT * FROM page_hours WHERE page = $1 AND hour = TIMESTAMPTZ '2026-01-31T12:00:00Z'", &["a", "d"]),
    ("SELECT count(*) FROM pages WHERE page = $1", &["a", "x"]),
    (
        "SELECT p.page, q.total FROM pages p JOIN batch.pages q ON p.page = q.page WHERE p.page = $1",
        &["a", "d", "x"],
    ),
    (
        "SELECT m.page, m.total, coalesce(b.total, 0) AS batch, coalesce(s.total, 0) AS speed, \
         (SELECT max(changed_at) FROM system.snapshot) AS as_of FROM pages m \
         LEFT JOIN batch.pages b ON b.page = m.page LEFT JOIN speed.pages s ON s.page = m.page WHERE m.page = $1",
        &["a", "d", "x"],
    ),
    (
        "SELECT h.hour, h.total, p.total AS of FROM page_hours h JOIN pages p USING (page) WHERE h.page = $1 \
         ORDER BY h.hour DESC LIMIT 3",
        &["a", "d", "x"],
    ),
    ("SELECT p.page, n.sort FROM pages p LEFT JOIN sorts n ON n.page = p.page WHERE p.page = $1", &["a", "c", "x"]),
    (
        "SELECT n.sort, sum(p.total) AS t FROM pages p JOIN sorts n ON n.page = p.page WHERE p.page = $1 GROUP BY n.sort",
        &["a", "c"],
    ),
    (
        "SELECT page, total FROM pages WHERE page = $1 UNION ALL SELECT page, total FROM speed.pages WHERE page = $1",
        &["a", "d"],
    ),
    ("SELECT total FROM pages WHERE page = $1 AND total > (SELECT min(priority) FROM sorts)", &["a", "d"]),
    (
        "SELECT p.page, s.total FROM pages p LEFT JOIN (speed.pages s JOIN sorts n ON n.page = s.page) ON s.page = p.page \
         WHERE p.page = $1 AND p.total > 1",
        &["a", "c", "d", "x"],
    ),
    (
        "SELECT p.page, q.total FROM pages p JOIN page_hours q ON p.page = q.page WHERE p.page IN ($1, 'b')",
        &["a", "b", "x"],
    ),
    (
        "SELECT p.total, b.total AS b FROM pages p LEFT JOIN batch.pages b ON b.page = p.page AND b.total > 2 WHERE p.page = $1",
        &["a", "d"],
    ),
    // These are left to the planner.
    ("SELECT * FROM pages WHERE page = $1 AND total = (SELECT max(total) FROM pages)", &["a", "b"]),
    (
        "SELECT p.page, q.total FROM pages p LEFT JOIN pages q ON q.total = p.total WHERE p.page = $1 ORDER BY 1, 2",
        &["a"],
    ),
    (
        "SELECT q.page, p.total FROM pages p RIGHT JOIN batch.pages q ON q.page = p.page AND p.page = $1",
        &["a", "x"],
    ),
    (
        "SELECT p.page, b.total, $1 AS asked FROM pages p JOIN batch.pages b ON b.page = p.page WHERE p.page = $1",
        &["a"],
    ),
    ("SELECT * FROM pages WHERE page = (SELECT max(page) FROM pages WHERE page <= $1)", &["b"]),
    ("SELECT * FROM pages WHERE page > $1 ORDER BY page", &["a"]),
    ("SELECT * FROM pages WHERE NOT page = $1 ORDER BY page", &["a"]),
    ("SELECT page FROM (SELECT page, total FROM pages WHERE page = $1) x WHERE total > 0", &["a", "x"]),
];
/// Who look up at once while records come.
const READERS: usize = 4;

/// So many of them, from the first, are answered by key.
const BY_KEY: usize = 21;

fn texts(messages: Vec<SimpleQueryMessage>) -> Vec<String> {
    let line = |message| match message {
        SimpleQueryMessage::Row(row) => {
            let cells = (0..row.len()).map(|cell| row.get(cell).unwrap_or("-").to_owned());
            Some(cells.collect::<Vec<_>>().join("|"))
        }
        _ => None,
    };
    messages.into_iter().filter_map(line).collect()
}

/// The number of statements that were answered by key so far.
async fn answered_by_key(ask: &Ask) -> usize {
    let (_, text) = ask.get("/metrics").await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("queries_by_key_total "));
    line.unwrap_or_else(|| panic!("no such metric:\n{text}")).parse().unwrap()
}

/// The rows of a prepared statement, shown as a simple query shows them.
async fn looked_up(client: &Client, sql: &str, value: &str) -> Vec<String> {
    let statement =
        client.prepare_typed(sql, &[Type::TEXT]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let parameters: [&(dyn ToSql + Sync); 1] = [&value];
    let rows = client.query(&statement, &parameters).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| (0..row.len()).map(|cell| shown(row, cell)).collect::<Vec<_>>().join("|")).collect()
}

fn shown(row: &tokio_postgres::Row, cell: usize) -> String {
    let text = match *row.columns()[cell].type_() {
        Type::INT8 => row.get::<_, Option<i64>>(cell).map(|value| value.to_string()),
        Type::INT4 => row.get::<_, Option<i32>>(cell).map(|value| value.to_string()),
        Type::FLOAT8 => row.get::<_, Option<f64>>(cell).map(|value| format!("{value:?}")),
        Type::TIMESTAMPTZ => row
            .get::<_, Option<std::time::SystemTime>>(cell)
            .map(|at| chrono::DateTime::<chrono::Utc>::from(at).format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()),
        Type::NUMERIC => row.get::<_, Option<Digits>>(cell).map(|digits| digits.0),
        _ => row.get::<_, Option<String>>(cell),
    };
    text.unwrap_or_else(|| "-".to_owned())
}

/// A numeric in the text that simple queries show.
struct Digits(String);

impl<'a> tokio_postgres::types::FromSql<'a> for Digits {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let word = |at: usize| i16::from_be_bytes([raw[2 * at], raw[2 * at + 1]]);
        let (groups, weight, negative, scale) = (word(0), word(1), word(2) != 0, word(3));
        let digit = |place: i16| match weight - place {
            at if (0..groups).contains(&at) => word(4 + usize::try_from(at).unwrap()),
            _ => 0,
        };
        let whole: String = (0..=weight.max(0)).rev().map(|place| format!("{:04}", digit(place))).collect();
        let fraction: String = (1..=4 + scale / 4).map(|place| format!("{:04}", digit(-place))).collect();
        let whole = whole.trim_start_matches('0');
        let mut text = if whole.is_empty() { "0".to_owned() } else { whole.to_owned() };
        if scale > 0 {
            text = format!("{text}.{}", &fraction[..usize::try_from(scale).unwrap()]);
        }
        Ok(Self(if negative { format!("-{text}") } else { text }))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::NUMERIC
    }
}

/// Every lookup gives what the planner gives for the same values, in one snapshot. Returns how many were asked.
async fn compare(ask: &Ask, lookups: &[(&str, &[&str])]) -> usize {
    let client = ask.connect().await.unwrap();
    let mut asked = 0;
    client.batch_execute("BEGIN").await.unwrap();
    for (sql, values) in lookups {
        for value in *values {
            let found = looked_up(&client, sql, value).await;
            let planned = texts(client.simple_query(&sql.replace("$1", &format!("'{value}'"))).await.unwrap());
            let (mut found, mut planned) = (found, planned);
            if !sql.contains("ORDER BY") {
                found.sort();
                planned.sort();
            }
            assert_eq!(found, planned, "{sql} with {value}");
            asked += 1;
        }
    }
    client.batch_execute("COMMIT").await.unwrap();
    asked
}

/// Asks until the index is there: the first lookup only calls for it.
async fn until_indexed(ask: &Ask) {
    let client = ask.connect().await.unwrap();
    let began = Instant::now();
    for table in ["pages", "page_hours"] {
        let sql = format!("SELECT page FROM {table} WHERE page = $1");
        loop {
            let before = answered_by_key(ask).await;
            looked_up(&client, &sql, "a").await;
            if answered_by_key(ask).await > before {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{table} is not looked up by key");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn filled(world: &World) -> Server {
    world
        .write_sql("tables/sorts.sql", "CREATE TABLE sorts (page TEXT PRIMARY KEY, sort TEXT, priority BIGINT);\n");
    let server = world.serve().await;
    world.kafka.write(clicks("first", 0, 9));
    server.until_passed(9).await;
    server.until_archived().await;
    server.refresh().await;
    server.rows("INSERT INTO sorts VALUES ('a', 'first', 1), ('b', 'second', 2), ('d', 'last', 9)").await;
    world.kafka.write(clicks("second", 1, 6));
    world.kafka.write(vec![(1, click("d-1", "d", 600))]);
    server.until_passed(16).await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lookup_by_key_is_what_the_planner_gives() {
    let world = World::new(2).await;
    let server = filled(&world).await;
    until_indexed(&server).await;
    let mut wrong = Vec::new();
    for (number, lookup) in LOOKUPS.iter().enumerate() {
        let before = answered_by_key(&server).await;
        let asked = compare(&server, &[*lookup]).await;
        let expected = if number < BY_KEY { asked } else { 0 };
        let by_key = answered_by_key(&server).await - before;
        if by_key != expected {
            wrong.push(format!("{by_key} of {asked} are answered by key: {}", lookup.0));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lookups_agree_with_the_planner_while_records_and_generations_come() {
    let world = World::new(2).await;
    let server = filled(&world).await;
    until_indexed(&server).await;
    let ask = *server;
    let before = answered_by_key(&ask).await;
    let in_one: usize = LOOKUPS[..BY_KEY].iter().map(|(_, values)| values.len()).sum();
    let (done, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    // Several at once: runs of one plan must not see each other's rows.
    let reader = || {
        let (done, asked) = (Arc::clone(&done), Arc::clone(&asked));
        async move {
            while !done.load(Ordering::Relaxed) {
                asked.fetch_add(compare(&ask, &LOOKUPS[..BY_KEY]).await, Ordering::Relaxed);
            }
        }
    };
    let readers: Vec<_> = (0..READERS).map(|_| tokio::spawn(reader())).collect();
    for round in 0..8 {
        world.kafka.write(clicks(&format!("round-{round}"), i32::from(round % 2 == 1), 30));
        server.until_passed(16 + 30 * (round + 1)).await;
        if round % 2 == 0 {
            server.until_archived().await;
            server.refresh().await;
        }
        // All of them in each round, however fast the round was.
        let enough = (round + 1) * in_one + 1;
        eventually("lookups are made", async || match asked.load(Ordering::Relaxed) {
            lookups if lookups >= enough => Ok(()),
            lookups if readers.iter().any(|reader| reader.is_finished()) => {
                panic!("the reader ended after {lookups} lookups")
            }
            lookups => Err(format!("{lookups} lookups")),
        })
        .await;
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    let asked = asked.load(Ordering::Relaxed);
    let planned = asked - (answered_by_key(&ask).await - before);
    // A transaction that outlives its generation: four were published.
    assert!(planned <= 4 * READERS * in_one, "{planned} of {asked} lookups were left to the planner");
    assert!(asked > 8 * in_one, "{asked} lookups are too few to tell");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_lookup_follows_a_view_that_is_replaced() {
    let world = World::new(2).await;
    let server = filled(&world).await;
    until_indexed(&server).await;
    let client = server.connect().await.unwrap();
    let statement = client.prepare("SELECT total FROM pages WHERE page = $1").await.unwrap();
    let total = async || client.query_one(&statement, &[&"a"]).await.unwrap().get::<_, i64>(0);
    assert_eq!(total().await, 5);
    server
        .rows(
            "CREATE OR REPLACE MATERIALIZED VIEW pages AS SELECT page, 10 * count(*) AS total FROM raw.clicks \
             GROUP BY page",
        )
        .await;
    server.rows("ALTER MATERIALIZED VIEW pages SET (version = 2)").await;
    assert_eq!(total().await, 50, "the new version answers");
    client.batch_execute("SET viewledger.as_of = '1'").await.unwrap();
    let old = client.query("SELECT total FROM pages WHERE page = $1", &[&"a"]).await.unwrap();
    assert_eq!(old[0].get::<_, i64>(0), 3, "an old generation is read as it was");
}

/// A message of the wire protocol.
fn message(kind: &[u8], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [kind, &length, body].concat()
}

/// The kinds of the messages that come, up to so many.
async fn kinds(stream: &mut TcpStream, count: usize) -> String {
    let mut kinds = String::new();
    while kinds.len() < count {
        kinds.push(char::from(stream.read_u8().await.unwrap()));
        let length = usize::try_from(stream.read_u32().await.unwrap()).unwrap();
        stream.read_exact(&mut vec![0; length - 4]).await.unwrap();
        if kinds.ends_with('Z') {
            break;
        }
    }
    kinds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_described_comes_with_a_flush_or_a_sync() {
    let world = World::new(2).await;
    let server = filled(&world).await;
    let mut stream = TcpStream::connect(server.at.pg).await.unwrap();
    let startup = [&196_608_u32.to_be_bytes()[..], b"user\0tests\0database\0viewledger\0\0"].concat();
    stream.write_all(&message(b"", &startup)).await.unwrap();
    assert!(kinds(&mut stream, usize::MAX).await.ends_with('Z'));
    let parse = |sql: &str| message(b"P", &[b"\0", sql.as_bytes(), b"\0\0\0"].concat());
    let flushed = [parse("SELECT total FROM pages WHERE page = $1"), message(b"D", b"S\0"), message(b"H", b"")];
    let bound = message(b"B", b"\0\0\0\0\0\x01\0\0\0\x01a\0\0");
    let synced = [bound, message(b"D", b"P\0"), message(b"E", b"\0\0\0\0\0"), message(b"S", b"")];
    let silent = [parse("BEGIN"), message(b"D", b"S\0"), message(b"S", b"")];
    for (sent, answered) in [(flushed.concat(), "1tT"), (synced.concat(), "2TDCZ"), (silent.concat(), "1tnZ")] {
        stream.write_all(&sent).await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(30), kinds(&mut stream, answered.len())).await;
        assert_eq!(told.expect("it is answered"), answered);
    }
}
