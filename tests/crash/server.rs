//! The real `viewledger serve` process: its configuration, its lives, and what it answers.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

/// Commits and refreshes come so often that kills hit them.
const COMMIT_INTERVAL: &str = "200ms";
const REFRESH_EVERY: &str = "1 second";
const UP_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A guard of exactness that a negative control switches off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    Dedup,
    Frontier,
}

impl Guard {
    fn switch(self) -> &'static str {
        match self {
            Guard::Dedup => "no-dedup",
            Guard::Frontier => "no-frontier",
        }
    }
}

/// The files and ports that all lives of one server share.
#[derive(Debug)]
pub(crate) struct Site {
    dir: PathBuf,
    pub(crate) pg_port: u16,
    http_port: u16,
    pub(crate) flight_port: u16,
    without: Option<Guard>,
    lives: u32,
}

impl Site {
    /// Writes the configuration and a copy of `sql/` that refreshes every second.
    pub(crate) fn prepare(dir: &Path, brokers: &str, without: Option<Guard>) -> Site {
        copy_sql(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sql"), &dir.join("sql"));
        let [pg_port, http_port, flight_port] = [free_port(), free_port(), free_port()];
        let site = Site { dir: dir.to_owned(), pg_port, http_port, flight_port, without, lives: 0 };
        std::fs::write(site.config_file(), site.config(brokers)).expect("the test directory is writable");
        site
    }

    /// The one place that knows the names of settings.
    fn config(&self, brokers: &str) -> String {
        let Site { pg_port, http_port, flight_port, .. } = self;
        let (data, sql) = (self.data_dir().display().to_string(), self.dir.join("sql").display().to_string());
        format!(
            "[server]\npg_port = {pg_port}\nhttp_port = {http_port}\nflight_port = {flight_port}\n\
             [storage]\ndata_dir = {data:?}\n\
             [sql]\ndir = {sql:?}\n\
             [kafka]\nbrokers = {brokers:?}\n\
             [archive]\ncommit_interval = {COMMIT_INTERVAL:?}\nupkeep_interval = \"200ms\"\nretention = \"5s\"\n"
        )
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("viewledger.toml")
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Commits of the loaded stream's archive that are still listed.
    pub(crate) fn commits(&self) -> usize {
        json_files(&self.data_dir().join("archive/video_views/_delta_log"))
    }

    /// Published generations whose manifests are still there.
    pub(crate) fn generations(&self) -> usize {
        json_files(&self.data_dir().join("generations"))
    }

    /// Starts the process; it is not ready yet.
    pub(crate) fn spawn(&mut self) -> Life {
        self.lives += 1;
        let log_path = self.dir.join(format!("serve-{}.log", self.lives));
        let log = File::create(&log_path).expect("the test directory is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_viewledger"));
        command.arg("serve").arg("--config").arg(self.config_file()).stdin(Stdio::null());
        command.env("NO_COLOR", "1");
        command.stdout(log.try_clone().expect("a file handle can be shared")).stderr(log);
        if let Some(guard) = self.without {
            command.env("VIEWLEDGER_UNSAFE_TEST", guard.switch());
        }
        let child = command.spawn().expect("cargo built the binary");
        Life { child, log_path, pg_port: self.pg_port, http_port: self.http_port }
    }
}

/// The server did not do what a running server does: what happened, with the end of its log.
#[derive(Debug)]
pub(crate) struct Death(pub(crate) String);

/// One process, from spawn to SIGKILL.
#[derive(Debug)]
pub(crate) struct Life {
    child: Child,
    log_path: PathBuf,
    pg_port: u16,
    http_port: u16,
}

impl Life {
    /// Waits for `/readyz` and connects as psql would.
    pub(crate) async fn wait_ready(&mut self) -> Result<Reader, Death> {
        self.wait_ready_as("operator").await
    }

    /// The same, in another role.
    pub(crate) async fn wait_ready_as(&mut self, role: &str) -> Result<Reader, Death> {
        let deadline = Instant::now() + UP_WITHIN;
        while !self.is_ready().await {
            self.check_alive()?;
            if Instant::now() > deadline {
                return Err(self.death("was not ready in time"));
            }
            tokio::time::sleep(POLL).await;
        }
        let params = format!("host=127.0.0.1 port={} user={role} dbname=viewledger", self.pg_port);
        let (client, connection) = tokio_postgres::connect(&params, NoTls)
            .await
            .map_err(|error| self.death(&format!("was ready but took no connection: {error}")))?;
        tokio::spawn(connection);
        Ok(Reader { client })
    }

    /// A server ends only when it is killed.
    pub(crate) fn check_alive(&mut self) -> Result<(), Death> {
        match self.child.try_wait().expect("the process is ours") {
            None => Ok(()),
            Some(status) => Err(self.death(&format!("ended by itself with {status}"))),
        }
    }

    /// Kills the process with SIGKILL, and tells whether it had ended, panicked or given up a part before.
    pub(crate) fn kill(mut self) -> Result<(), Death> {
        let alive = self.check_alive();
        self.end();
        alive?;
        match self.failure() {
            None => Ok(()),
            Some(_) => Err(self.death("had given up a part")),
        }
    }

    /// The first panic or failure for good in its log, with the lines after it, where the message of a panic stands.
    fn failure(&self) -> Option<String> {
        let log = std::fs::read_to_string(&self.log_path).unwrap_or_default();
        let signs = ["panicked at", "part failed for good"];
        let at = log.lines().position(|line| signs.iter().any(|sign| line.contains(sign)))?;
        Some(log.lines().skip(at).take(4).collect::<Vec<_>>().join("; "))
    }

    pub(crate) fn death(&self, what: &str) -> Death {
        let log = std::fs::read_to_string(&self.log_path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(20)..].join("\n  ");
        // It may have gone on for long after that.
        let failure = self.failure().map(|failure| format!(" ({failure})")).unwrap_or_default();
        Death(format!("{what}{failure}; {} ends with:\n  {tail}", self.log_path.display()))
    }

    async fn is_ready(&self) -> bool {
        let ask = async {
            let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.http_port)).await?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<bool, std::io::Error>(answer.starts_with(b"HTTP/1.1 200"))
        };
        matches!(tokio::time::timeout(Duration::from_secs(5), ask).await, Ok(Ok(true)))
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end();
    }
}

/// A connection over the Postgres wire.
pub(crate) struct Reader {
    client: Client,
}

impl Reader {
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) async fn rows(&self, sql: &str) -> Result<Vec<SimpleQueryRow>, tokio_postgres::Error> {
        let messages = self.client.simple_query(sql).await?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .collect())
    }
}

/// A whole number out of an answer; an absent sum is zero.
pub(crate) fn number(row: &SimpleQueryRow, column: &str) -> i64 {
    match row.try_get(column) {
        Ok(None) => 0,
        Ok(Some(text)) => text.parse().unwrap_or_else(|_| panic!("{column} is {text:?}, not a whole number")),
        Err(_) => {
            let names: Vec<&str> = row.columns().iter().map(|column| column.name()).collect();
            panic!("no column {column} in the answer, only {}", names.join(", "))
        }
    }
}

/// A port below those the kernel gives out by itself: a client of the broker must not get it between two lives.
fn free_port() -> u16 {
    loop {
        let port = rand::random_range(10_000..20_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

fn json_files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().extension().is_some_and(|e| e == "json")))
        .count()
}

fn copy_sql(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the test directory is writable");
    for entry in std::fs::read_dir(from).expect("the repository has sql/") {
        let path = entry.expect("sql/ can be listed").path();
        let copy = to.join(path.file_name().expect("a listed path has a name"));
        if path.is_dir() {
            copy_sql(&path, &copy);
        } else {
            let text = std::fs::read_to_string(&path).expect("files in sql/ are text");
            std::fs::write(copy, refresh_often(&text)).expect("the test directory is writable");
        }
    }
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the test directory is writable");
    for entry in std::fs::read_dir(from).expect("a directory is copied") {
        let path = entry.expect("it can be listed").path();
        let copy = to.join(path.file_name().expect("a listed path has a name"));
        match path.is_dir() {
            true => copy_dir(&path, &copy),
            false => drop(std::fs::copy(&path, copy).expect("the test directory is writable")),
        }
    }
}

/// Replaces the value of every `refresh_every = '...'`.
fn refresh_often(sql: &str) -> String {
    let mut parts = sql.split("refresh_every");
    let mut changed = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut pieces = part.splitn(3, '\'');
        match (pieces.next(), pieces.next(), pieces.next()) {
            (Some(equals), Some(_), Some(rest)) if equals.trim() == "=" => {
                changed.push_str(&format!("refresh_every = '{REFRESH_EVERY}'{rest}"));
            }
            _ => changed.push_str(&format!("refresh_every{part}")),
        }
    }
    changed
}

#[test]
fn refresh_interval_is_replaced_wherever_it_is_set() {
    let sql = "-- refresh_every, see below\nWITH (a = 'b', refresh_every='1 hour') AS SELECT 'x'; WITH (refresh_every = '2 s')";
    let expected = "-- refresh_every, see below\nWITH (a = 'b', refresh_every = '1 second') AS SELECT 'x'; WITH (refresh_every = '1 second')";
    assert_eq!(refresh_often(sql), expected);
}
