//! Bytes that nobody means, on every door: the start-up packet, the framing of messages, SQL, tickets of Flight, and what HTTP is
//! asked. Nothing may panic, and the server answers afterwards as before.
//!
//! Each target takes sound input, changes it at random and sends it, for `FUZZ_SECONDS` (2); `SEED=n` repeats the inputs of a run.
//! By hand: `FUZZ_SECONDS=600 cargo test --test pipeline fuzz -- --nocapture`.

use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use arrow_flight::Ticket;
use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use crate::server::{Ask, Server};
use crate::world::World;

/// Panics of anything but tests, with what was sent last.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            let file = info.location().map(|location| location.file()).unwrap_or_default();
            // pgwire reads beyond the end of a message whose lengths lie; the conversation ends there, and the client is told.
            let unreadable = file.contains("/bytes-") || file.contains("/pgwire-");
            if !file.starts_with("tests/") && !unreadable {
                PANICS.lock().unwrap().push(info.to_string());
            }
            usual(info);
        }));
    });
}

/// Sound inputs, and a way to spoil them.
struct Fuzz {
    random: StdRng,
    until: Instant,
    inputs: u64,
    last: Vec<u8>,
}

impl Fuzz {
    fn new(target: &str) -> Self {
        watch_for_panics();
        let set = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
        let seed = set("SEED").unwrap_or_else(rand::random);
        println!("{target}: SEED={seed}");
        let until = Instant::now() + Duration::from_secs(set("FUZZ_SECONDS").unwrap_or(2));
        Self { random: StdRng::seed_from_u64(seed), until, inputs: 0, last: Vec::new() }
    }

    /// The next input, until the time is up or something has panicked.
    fn next(&mut self, sound: &[Vec<u8>]) -> Option<Vec<u8>> {
        if Instant::now() >= self.until || !PANICS.lock().unwrap().is_empty() {
            return None;
        }
        let mut bytes = sound.choose(&mut self.random).unwrap().clone();
        for _ in 0..self.random.random_range(0..4) {
            self.spoil(&mut bytes, sound);
        }
        self.inputs += 1;
        self.last.clone_from(&bytes);
        Some(bytes)
    }

    fn spoil(&mut self, bytes: &mut Vec<u8>, sound: &[Vec<u8>]) {
        let random = &mut self.random;
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..16)).min(bytes.len());
        match random.random_range(0..8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 => drop(bytes.splice(at..at, [random.random::<u8>()])),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            4 => bytes.truncate(at),
            // Lengths and counts that lie.
            5 if at + 4 <= bytes.len() => {
                let number: i32 = *[0, 1, -1, 4, 255, 65_536, i32::MAX, i32::MIN].choose(random).unwrap();
                bytes[at..at + 4].copy_from_slice(&number.to_be_bytes());
            }
            6 => {
                let other = sound.choose(random).unwrap();
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => drop(bytes.splice(
                at..at,
                [b"'", b"\"", b"\0", b"(", b"%", b"\xff", b"-", b"$"].choose(random).unwrap().iter().copied(),
            )),
        }
    }

    /// No panic, and the server is what it was.
    async fn ended(self, target: &str, ask: &Ask) {
        println!("{target}: {} inputs", self.inputs);
        let panics = PANICS.lock().unwrap().clone();
        assert!(panics.is_empty(), "{target}: {panics:#?}\nlast sent: {}", self.last.escape_ascii());
        assert_eq!(ask.one("SELECT sum(total) FROM pages").await, "9");
        let (code, _) = ask.get("/readyz").await.unwrap();
        assert_eq!(code, 200);
        assert!(self.inputs > 0);
    }
}

fn message(kind: &[u8], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [kind, &length, body].concat()
}

fn startup(body: &str) -> Vec<u8> {
    message(b"", &[&196_608_u32.to_be_bytes()[..], body.as_bytes()].concat())
}

/// Sends, half-closes, and reads what comes.
async fn send(address: std::net::SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        // It may hang up before it has read everything.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Some(answer)
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer, or the end of the connection")
}

/// Statements of the repository's own tests.
fn statements() -> Vec<Vec<u8>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut found = Vec::new();
    for file in std::fs::read_dir(root.join("slt")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "slt") {
            let text = std::fs::read_to_string(path).unwrap();
            let queries = text.split("\n\n").filter_map(|block| {
                let (head, body) = block.trim_start().split_once('\n')?;
                head.starts_with("query").then(|| body.split("\n----").next().unwrap_or_default().to_owned())
            });
            found.extend(queries.map(String::into_bytes));
        }
    }
    let escapes = std::fs::read_to_string(root.join("escapes.txt")).unwrap();
    let lines = escapes.lines().filter(|line| !line.starts_with('#'));
    found.extend(lines.filter_map(|line| Some(line.split_once(' ')?.1.as_bytes().to_vec())));
    let own = [
        "SELECT page, total, mean FROM pages WHERE page IN ('a', 'b') ORDER BY total DESC LIMIT 3",
        "SELECT p.page, h.hour FROM pages p LEFT JOIN page_hours h USING (page) WHERE p.page = 'a'",
        "DECLARE c CURSOR FOR SELECT * FROM raw.clicks; FETCH 3 FROM c; CLOSE c",
        "BEGIN; SET LOCAL statement_timeout = '1s'; SHOW viewledger.snapshot; COMMIT",
        "COPY (SELECT * FROM pages) TO STDOUT (FORMAT csv, HEADER, DELIMITER ';')",
        "EXPLAIN ANALYZE SELECT page, sum(total) OVER (PARTITION BY page) FROM page_hours GROUP BY page, total",
    ];
    found.extend(own.iter().map(|sql| sql.as_bytes().to_vec()));
    assert!(found.len() > 100, "{} statements", found.len());
    found
}

async fn filled(world: &World) -> Server {
    let server = world.serve_filled().await;
    server.until("SELECT sum(total) FROM pages", &["9"]).await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_up_packets() {
    let world = World::new(2).await;
    let server = filled(&world).await;
    let sound = [
        startup("user\0tests\0database\0viewledger\0application_name\0fuzz\0options\0-c statement_timeout=5s\0\0"),
        startup("user\0tests\0client_encoding\0UTF8\0DateStyle\0ISO\0TimeZone\0Europe/Berlin\0\0"),
        message(b"", &80_877_103_u32.to_be_bytes()),
        message(b"", &80_877_104_u32.to_be_bytes()),
        message(b"", &[&80_877_102_u32.to_be_bytes()[..], &[0; 8]].concat()),
        [startup("user\0tests\0\0"), message(b"p", b"SCRAM-SHA-256\0\0\0\0\x04n,,n")].concat(),
    ];
    let mut fuzz = Fuzz::new("start-up packets");
    while let Some(bytes) = fuzz.next(&sound) {
        send(server.at.pg, &bytes).await;
    }
    fuzz.ended("start-up packets", &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages() {
    let world = World::new(2).await;
    let server = filled(&world).await;
    let parse = |sql: &str| message(b"P", &[b"s\0", sql.as_bytes(), b"\0\0\x01\0\0\0\x19"].concat());
    let bind = |value: &[u8], format: &[u8]| {
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        message(b"B", &[&b"p\0s\0\0\x01"[..], format, b"\0\x01", &length, value, b"\0\x01\0\x01"].concat())
    };
    let ended = [message(b"S", b""), message(b"X", b"")].concat();
    let sound: Vec<Vec<u8>> = [
        [
            parse("SELECT total, mean FROM pages WHERE page = $1"),
            message(b"D", b"Ss\0"),
            bind(b"a", b"\0\0"),
            message(b"E", b"p\0\0\0\0\x05"),
        ]
        .concat(),
        [
            parse("SELECT $1::numeric + 1"),
            bind(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 7], b"\0\x01"),
            message(b"E", b"p\0\0\0\0\0"),
            message(b"C", b"Pp\0"),
        ]
        .concat(),
        [
            parse("SELECT * FROM page_hours WHERE hour > $1::timestamptz"),
            bind(&[0; 8], b"\0\x01"),
            message(b"D", b"Pp\0"),
            message(b"H", b""),
        ]
        .concat(),
        [
            message(b"Q", b"COPY (SELECT 1) TO STDOUT (FORMAT binary)\0"),
            message(b"d", b"1\t2\n"),
            message(b"c", b""),
            message(b"f", b"no\0"),
        ]
        .concat(),
        [message(b"Q", b"SELECT 1; SELECT * FROM pages\0"), message(b"F", b"\0\0\0\x01\0\0\0\0\0\0")].concat(),
    ]
    .into_iter()
    .map(|messages| [messages, ended.clone()].concat())
    .collect();
    let opening = startup("user\0tests\0database\0viewledger\0\0");
    // A value of 21 million bytes that are not there.
    let lying = message(b"B", b"p\0s\0\0\0\0\x01\x01\x45\0\0a");
    let told = send(server.at.pg, &[opening.clone(), parse("SELECT $1"), lying].concat()).await.unwrap();
    assert!(told.windows(6).any(|six| six == b"C08P01"), "{}", told.escape_ascii());
    let mut fuzz = Fuzz::new("messages");
    while let Some(bytes) = fuzz.next(&sound) {
        send(server.at.pg, &[opening.clone(), bytes].concat()).await;
    }
    fuzz.ended("messages", &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql() {
    let world = World::new(2).await;
    let server = filled(&world).await;
    let sound = statements();
    let mut fuzz = Fuzz::new("SQL");
    let mut client = None;
    while let Some(bytes) = fuzz.next(&sound) {
        let Ok(text) = String::from_utf8(bytes) else { continue };
        if text.contains('\0') {
            continue;
        }
        if client.is_none() {
            let fresh = server.connect().await.unwrap();
            fresh.batch_execute("SET statement_timeout = '500ms'").await.unwrap();
            client = Some(fresh);
        }
        let asked = client.as_ref().unwrap();
        let simple = fuzz.random.random_bool(0.5);
        let ask = async {
            match simple {
                true => drop(asked.simple_query(&text).await),
                false => drop(asked.query(text.as_str(), &[]).await),
            }
            drop(asked.batch_execute("ROLLBACK").await);
        };
        tokio::time::timeout(PATIENCE, ask).await.unwrap_or_else(|_| panic!("no answer to {text}"));
        if asked.is_closed() {
            client = None;
        }
    }
    fuzz.ended("SQL", &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_of_flight() {
    let world = World::new(2).await;
    let server = filled(&world).await;
    let channel = Endpoint::new(format!("http://{}", server.at.flight)).unwrap().connect().await.unwrap();
    let mut flight = FlightSqlServiceClient::new(channel.clone());
    let mut sound = vec![b"anything".to_vec(), Vec::new()];
    for sql in ["SELECT * FROM pages", "SELECT 1 AS one"] {
        let info = flight.execute(sql.to_owned(), None).await.unwrap();
        sound.push(info.endpoint[0].ticket.clone().unwrap().ticket.to_vec());
    }
    for info in [flight.get_catalogs().await.unwrap(), flight.get_table_types().await.unwrap()] {
        sound.push(info.endpoint[0].ticket.clone().unwrap().ticket.to_vec());
    }
    let mut fuzz = Fuzz::new("tickets of Flight");
    while let Some(bytes) = fuzz.next(&sound) {
        let get = async {
            if let Ok(rows) = flight.do_get(Ticket { ticket: bytes.into() }).await {
                drop(rows.try_collect::<Vec<_>>().await);
            }
        };
        tokio::time::timeout(PATIENCE, get).await.expect("an answer");
    }
    fuzz.ended("tickets of Flight", &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_http_is_asked() {
    let world = World::new(2).await;
    world.write_sql(
        "api/page.sql",
        "-- GET /pages/{page}\n-- about: One page.\n-- path page TEXT: the page\n-- query rate DECIMAL(18, 9) DEFAULT 0.001: a rate\n\
         -- query after TIMESTAMPTZ DEFAULT NULL: a time\n-- query limit BIGINT BETWEEN 1 AND 9 DEFAULT 5: so many\n-- returns: rows\n\
         SELECT page, total * $rate AS due FROM pages WHERE page = $page AND ($after IS NULL OR $after < TIMESTAMPTZ '2030-01-01T00:00:00Z') \
         ORDER BY page LIMIT $limit\n",
    );
    let server = filled(&world).await;
    let get = |path: &str, headers: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n").into_bytes()
    };
    let post = |kind: &str, body: &str| {
        let length = body.len();
        format!("POST /sql?format=csv HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
            .into_bytes()
    };
    let sound = [
        get("/pages/a?rate=0.5&after=2026-01-01T00:00:00Z&limit=3", "Accept: application/json;q=0.5, text/csv\r\n"),
        get(
            "/pages/%41%2f?limit=9&format=arrow",
            "If-None-Match: \"a-1-json\"\r\nAccept-Encoding: gzip, zstd;q=0\r\n",
        ),
        get("/pages/b?rate=-1e3&after=infinity", "Authorization: Basic dGVzdHM6eA==\r\n"),
        get("/openapi.json", ""),
        get("/snapshot", "viewledger-statement-timeout: 500ms\r\n"),
        post("application/sql", "SELECT * FROM pages"),
        post("application/json", r#"{"sql": "SELECT $1::bigint + $2", "parameters": [1, "2"]}"#),
    ];
    let mut fuzz = Fuzz::new("what HTTP is asked");
    let worked = AtomicBool::new(false);
    while let Some(bytes) = fuzz.next(&sound) {
        if let Some(answer) = send(server.at.http, &bytes).await {
            worked.fetch_or(answer.starts_with(b"HTTP/1.1 200"), Ordering::Relaxed);
            assert!(!answer.starts_with(b"HTTP/1.1 500"), "{}\n{}", bytes.escape_ascii(), answer.escape_ascii());
        }
    }
    assert!(worked.load(Ordering::Relaxed), "some of them are answered");
    fuzz.ended("what HTTP is asked", &server).await;
}
