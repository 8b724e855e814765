//! `viewledger demo` as a process, and how it is asked.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub const BINARY: &str = env!("CARGO_BIN_EXE_viewledger");
/// What takes longer than this has failed.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// One demo at a time: each wants most of a core of an unoptimised build.
static TURN: Mutex<()> = Mutex::new(());

pub struct Demo {
    child: Child,
    _turn: MutexGuard<'static, ()>,
    pub http_port: u16,
    pub pg_port: u16,
    pub broker_port: u16,
    data_dir: PathBuf,
    settings: Vec<(String, String)>,
}

impl Demo {
    /// On `dir/data`, with settings by their names in the environment.
    pub fn start(dir: &Path, settings: &[(&str, &str)]) -> Self {
        Self::start_with(dir, settings, &[])
    }

    /// With further arguments.
    pub fn start_with(dir: &Path, settings: &[(&str, &str)], arguments: &[&str]) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let [http_port, pg_port, flight_port, broker_port] = free_ports();
        let data_dir = dir.join("data");
        let log = File::create(dir.join("demo.log")).unwrap();
        let mut command = command(settings);
        command.args(["demo", "--rate", "100", "--data-dir"]).arg(&data_dir).args(arguments);
        for (flag, port) in [
            ("--http-port", http_port),
            ("--pg-port", pg_port),
            ("--flight-port", flight_port),
            ("--broker-port", broker_port),
        ] {
            command.arg(flag).arg(port.to_string());
        }
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut demo = Self { child, _turn: turn, http_port, pg_port, broker_port, data_dir, settings };
        let log = dir.join("demo.log");
        until("the demo is ready", || {
            if let Some(status) = demo.child.try_wait().unwrap() {
                panic!("the demo ended with {status}: {}", std::fs::read_to_string(&log).unwrap());
            }
            demo.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        });
        demo
    }

    /// Until there is a generation with records, records beyond it, and quarantined ones.
    pub fn until_refreshed(&self) {
        let fresh = "SELECT (SELECT count(*) FROM speed.video_views) > 0 AND (SELECT count(*) FROM speed.ad_performance) > 0 AS there";
        let rejected = "SELECT count(*) > 0 AS there FROM quarantine.video_views";
        let refreshed = "SELECT (SELECT count(*) FROM batch.video_views) > 0 \
                         AND (SELECT count(*) FROM system.refreshes WHERE state = 'done') > 0 AS there";
        until("records come", || self.sql(rejected).contains("true"));
        self.sql("REFRESH MATERIALIZED VIEW video_views");
        until("there is a generation", || self.sql(refreshed).contains("true"));
        until("there is more than that", || self.sql(fresh).contains("true"));
    }

    /// The answer to a statement, as JSON.
    pub fn sql(&self, sql: &str) -> String {
        let head = "content-type: application/sql\r\nauthorization: Basic b3BlcmF0b3I6eA==\r\n";
        let length = sql.len();
        self.http(&format!("POST /sql HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{sql}"))
            .and_then(|answer| answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()))
            .unwrap_or_default()
    }

    pub fn get(&self, path: &str) -> Option<String> {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
    }

    fn http(&self, request: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// A command with the same settings and data directory.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let settings: Vec<(&str, &str)> =
            self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut command = command(&settings);
        command.env("VIEWLEDGER_KAFKA_BROKERS", format!("127.0.0.1:{}", self.broker_port));
        command.args(arguments).arg("--data-dir").arg(&self.data_dir);
        command.arg("--http-port").arg(self.http_port.to_string());
        command.output().unwrap()
    }

    /// Ends it in good order.
    pub fn stop(mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(asked.success());
        until("the demo ends", || self.child.try_wait().unwrap().is_some());
    }

    /// As a power failure would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `viewledger` in the repository, with nothing of this process' own settings.
pub fn command(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(BINARY);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VIEWLEDGER_")) {
        command.env_remove(name);
    }
    command.envs(settings.iter().copied());
    command
}

pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What a command printed, both streams, and its exit code.
pub fn said(output: &Output) -> (i32, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

fn free_ports<const N: usize>() -> [u16; N] {
    // Held until all are chosen, so that they differ.
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
