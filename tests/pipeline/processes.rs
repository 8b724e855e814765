//! The real program: what it refuses, what it says, how it ends.

use std::fs::File;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Instant;

use viewledger::app::listen::Addresses;

use crate::server::Ask;
use crate::world::{CLICKS, PATIENCE, VIEWS, World, clicks, eventually, view_sql};

/// `viewledger serve` as a process.
pub struct Process {
    child: Child,
    ask: Ask,
    log: PathBuf,
}

impl Deref for Process {
    type Target = Ask;

    fn deref(&self) -> &Ask {
        &self.ask
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(world: &World, name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_viewledger"));
    command.arg(name).envs(&world.settings).env("VIEWLEDGER_LOG_FORMAT", "json").stdin(Stdio::null());
    command.env_remove("RUST_LOG");
    command
}

fn output(world: &World, name: &str) -> Output {
    command(world, name).output().unwrap()
}

/// Exit code and standard error of a program that must end by itself.
fn refused(world: &World, name: &str) -> (i32, String) {
    let output = output(world, name);
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

impl Process {
    pub async fn start(world: &World) -> Self {
        let log = world.path(&format!("log-{}", uuid::Uuid::new_v4()));
        let path = log.clone();
        let mut child =
            command(world, "serve").stderr(File::create(&log).unwrap()).stdout(Stdio::null()).spawn().unwrap();
        let mut at = None;
        eventually("the process is ready", async || {
            let text = std::fs::read_to_string(&log).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "the process ended: {text}");
            at = text.lines().find_map(addresses);
            at.map(drop).ok_or(text)
        })
        .await;
        Self { child, ask: Ask { at: at.unwrap() }, log: path }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log_path(&self) -> PathBuf {
        self.log.clone()
    }

    /// What it has written to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// How often threads whose name begins so were woken up.
    pub fn wakeups(&self, name: &str) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let of = |task: std::io::Result<std::fs::DirEntry>| {
            // A thread may end meanwhile.
            let path = task.ok()?.path();
            let named = std::fs::read_to_string(path.join("comm")).ok()?.starts_with(name);
            let status = std::fs::read_to_string(path.join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            named.then(|| line.trim().parse::<u64>().ok())?
        };
        tasks.filter_map(of).sum()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: sends a signal to a child of this process that was not waited for yet.
        assert_eq!(unsafe { libc::kill(i32::try_from(self.child.id()).unwrap(), signal) }, 0);
    }

    /// Waits until it has ended by itself.
    pub fn end(mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// From the line of the log that says where the server is.
fn addresses(line: &str) -> Option<Addresses> {
    let entry: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = entry.get("fields")?;
    let address = |name: &str| fields.get(name)?.as_str()?.parse().ok();
    Some(Addresses { pg: address("postgres")?, flight: address("flight")?, http: address("http")? })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_and_a_killed_process_answer_the_same_afterwards() {
    let world = World::new(3).await;
    let process = Process::start(&world).await;
    let records: Vec<_> = clicks("p", 0, 100).into_iter().chain(clicks("p", 1, 100)).chain([(2, None)]).collect();
    world.kafka.write(records.clone());
    process.until_passed(records.len()).await;
    let before = process.answers().await;
    process.signal(libc::SIGTERM);
    assert_eq!(process.end().code(), Some(0));

    let process = Process::start(&world).await;
    process.until_passed(records.len()).await;
    assert_eq!(process.answers().await, before);
    process.refresh().await;
    world.kafka.write(clicks("more", 2, 500));
    process.until_passed(records.len() + 500).await;
    let before = process.answers().await;
    process.signal(libc::SIGKILL);
    assert_eq!(process.end().code(), None);

    let process = Process::start(&world).await;
    process.until_passed(records.len() + 500).await;
    assert_eq!(process.answers().await, before);
    process.assert_equivalent().await;
    process.signal(libc::SIGINT);
    assert_eq!(process.end().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_on_the_directory_is_told_who_holds_it() {
    let world = World::new(1).await;
    let first = Process::start(&world).await;
    world.kafka.write(clicks("p", 0, 10));
    first.until_passed(10).await;
    let (code, said) = refused(&world, "serve");
    assert_eq!(code, 1, "{said}");
    let named = [world.settings["VIEWLEDGER_STORAGE_DATA_DIR"].clone(), format!("pid {}", first.child.id())];
    assert!(named.iter().all(|part| said.contains(part)), "{said}");
    assert_eq!(first.one("SELECT count(*) FROM raw.clicks").await, "10", "the first is unhurt");
    assert_eq!(first.get("/healthz").await.unwrap().0, 200);
}

/// Neither while a server runs nor without one does anything stop `refresh`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refresh_works_in_the_server_and_without_one() {
    let mut world = World::new(1).await;
    let server = Process::start(&world).await;
    world.kafka.write(clicks("p", 0, 10));
    server.until_passed(10).await;
    server.until_archived().await;
    world.set("VIEWLEDGER_SERVER_PG_PORT", server.at.pg.port().to_string());
    let run = output(&world, "refresh");
    assert!(run.status.success(), "{run:?}");
    assert!(String::from_utf8_lossy(&run.stdout).contains("generation 1 published"), "{run:?}");
    assert_eq!(server.one("SELECT sum(total) FROM batch.pages").await, "10");
    world.kafka.write(clicks("q", 0, 10));
    server.until_passed(20).await;
    server.until_archived().await;
    server.signal(libc::SIGTERM);
    assert_eq!(server.end().code(), Some(0));

    let run = output(&world, "refresh");
    assert!(run.status.success(), "{run:?}");
    world.set("VIEWLEDGER_SERVER_PG_PORT", "0");
    let server = Process::start(&world).await;
    assert_eq!(
        server.one("SELECT (SELECT sum(total) FROM batch.pages), (SELECT count(*) FROM speed.pages)").await,
        "20|0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taken_ports_are_named_with_the_setting_to_change() {
    let mut world = World::new(1).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (variable, key) in [
        ("VIEWLEDGER_SERVER_PG_PORT", "server.pg_port"),
        ("VIEWLEDGER_SERVER_FLIGHT_PORT", "server.flight_port"),
        ("VIEWLEDGER_SERVER_HTTP_PORT", "server.http_port"),
    ] {
        let before = world.settings.insert(variable, port.clone()).unwrap();
        let (code, said) = refused(&world, "serve");
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&format!("port {port} is taken")) && said.contains(key), "{said}");
        world.settings.insert(variable, before);
    }
}

/// A directory below a file can not be made, whoever asks: a test may run as root, whom no permission stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_can_not_be_written_is_named() {
    let mut world = World::new(1).await;
    std::fs::write(world.path("file"), "").unwrap();
    let dir = world.path("file").join("data");
    world.use_data_dir(&dir);
    let (code, said) = refused(&world, "serve");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&dir.display().to_string()), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_is_not_there_yet_is_made() {
    let mut world = World::new(1).await;
    world.use_data_dir(&world.path("some/where/new"));
    let process = Process::start(&world).await;
    assert_eq!(process.one("SELECT count(*) FROM pages").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_setting_is_refused_with_the_nearest_known_one() {
    let world = World::new(1).await;
    let file = world.path("viewledger.toml");
    std::fs::write(&file, "[archive]\ncommit_intervall = \"1s\"\n").unwrap();
    for (name, expected) in [("serve", 1), ("check", 3)] {
        let run = command(&world, name).arg("--config").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert_eq!(run.status.code(), Some(expected), "{name}: {said}");
        for part in ["viewledger.toml", "archive.commit_intervall", "archive.commit_interval?"] {
            assert!(said.contains(part), "{name}: {part} is not in {said}");
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Broken {
    file: &'static str,
    /// This part of what the file holds ...
    part: &'static str,
    /// ... is replaced by this,
    by: &'static str,
    /// which must be found at LINE:COLUMN
    place: &'static str,
    /// for this reason.
    reason: &'static str,
}

const STREAM: &str = "streams/clicks.sql";
const VIEW: &str = "views/pages.sql";

#[rustfmt::skip]
const BROKEN: [Broken; 12] = [
    Broken { file: STREAM, part: "TEXT NOT NULL,", by: "TEXT NOT,", place: "4:15", reason: "found: NOT" },
    Broken { file: STREAM, part: "INTEGER", by: "MONEY", place: "7:5", reason: "type MONEY is not understood" },
    Broken { file: STREAM, part: "ms BETWEEN 0 AND 1000", by: "ms + 1", place: "8:29", reason: "must be true or false" },
    Broken { file: STREAM, part: "ms BETWEEN 0 AND 1000", by: "mms > 1", place: "8:29", reason: "No field named mms" },
    Broken { file: VIEW, part: "GROUP BY page", by: "GROUP page", place: "2:17", reason: "found GROUP" },
    Broken { file: VIEW, part: "sum(ms)", by: "sum(mms)", place: "1:", reason: "No field named mms" },
    Broken { file: VIEW, part: "GROUP BY page", by: "GROUP BY paige", place: "2:26", reason: "No field named paige" },
    Broken { file: VIEW, part: "raw.clicks", by: "raw.cliks", place: "2:6", reason: "cliks' not found" },
    Broken { file: VIEW, part: "GROUP BY page", by: "GROUP BY page ORDER BY page", place: "1:1", reason: "has ORDER BY" },
    Broken { file: VIEW, part: "sum(ms)", by: "rank() OVER (ORDER BY sum(ms))", place: "1:1", reason: "window function" },
    Broken {
        file: VIEW,
        part: "FROM raw.clicks",
        by: "FROM (SELECT c.page, c.ms, c.who FROM raw.clicks c JOIN raw.others o ON c.id = o.id) j",
        place: "1:1",
        reason: "streams clicks, others",
    },
    Broken { file: VIEW, part: "'1 hour'", by: "'soon'", place: "1:", reason: "is not a duration" },
];

/// FILE:LINE:COLUMN: REASON, one line a fault, exit code 3; and `serve` refuses the same files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_definitions_are_found_with_their_place_and_reason() {
    let world = World::new(1).await;
    let others = CLICKS.replace("clicks", "others");
    world.write_sql("streams/others.sql", &others);
    let sound = output(&world, "check");
    assert!(sound.status.success(), "{sound:?}");
    let files = [("streams/clicks.sql", CLICKS.to_owned()), ("views/pages.sql", pages())];
    for broken in BROKEN {
        for (file, text) in &files {
            world.write_sql(file, text);
        }
        let (_, text) = files.iter().find(|(file, _)| *file == broken.file).unwrap();
        assert!(text.contains(broken.part), "{broken:?}");
        world.write_sql(broken.file, &text.replacen(broken.part, broken.by, 1));
        let (code, said) = refused(&world, "check");
        assert_eq!(code, 3, "{broken:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{broken:?}: {said}");
        let path: PathBuf = world.path("sql").join(broken.file);
        let start = format!("{}:{}", path.display(), broken.place);
        let line = said.lines().find(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("{broken:?}: nothing begins with {start} in {said}"));
        let place: Vec<&str> = line[path.display().to_string().len()..].splitn(4, ':').collect();
        assert!(place[1].parse::<u32>().is_ok() && place[2].parse::<u32>().is_ok(), "{broken:?}: {line}");
        assert!(place[3].contains(broken.reason), "{broken:?}: {line}");
    }
    let (code, said) = refused(&world, "serve");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("pages.sql"), "{said}");
}

fn pages() -> String {
    let (name, query) = VIEWS[0];
    // On lines of its own, so that a place means something.
    view_sql(name, &query.replace(" FROM raw.clicks", "\nFROM raw.clicks"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_faults_are_told_at_once() {
    let world = World::new(1).await;
    world.write_sql("streams/clicks.sql", &CLICKS.replace("ms BETWEEN 0 AND 1000", "ms + 1"));
    world.write_sql("views/pages.sql", &pages().replace("sum(ms)", "sum(mms)"));
    world.write_sql("views/visitors.sql", &view_sql("visitors", "SELECT who FROM raw.clicks"));
    let (code, said) = refused(&world, "check");
    assert_eq!(code, 3, "{said}");
    for file in ["streams/clicks.sql", "views/pages.sql", "views/visitors.sql"] {
        assert!(said.lines().any(|line| line.contains(file)), "{file} is not in {said}");
    }
}
