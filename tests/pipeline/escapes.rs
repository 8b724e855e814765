//! Every attempt in `tests/escapes.txt`, as every shipped role, over every protocol; and, seen from outside, which files the process
//! opened meanwhile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::TryStreamExt;
use tokio_postgres::{Client, NoTls};
use tonic::transport::Endpoint;

use crate::processes::Process;
use crate::server::{Ask, rows};
use crate::world::{World, eventually};

const ROLES: [&str; 4] = ["analyst", "billing", "auditor", "operator"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// SQLSTATE and statement.
fn attempts() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(repository().join("tests/escapes.txt")).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap()).map(|(code, sql)| (code.to_owned(), sql.to_owned())).collect()
}

fn copy(world: &World, folder: &str) {
    for entry in std::fs::read_dir(repository().join("sql").join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        world.write_sql(&format!("{folder}/{name}"), &std::fs::read_to_string(&path).unwrap());
    }
}

/// What the repository ships, on a process of its own.
async fn shipped() -> World {
    let world = World::bare().await;
    ["streams", "tables", "views", "quality", "roles"].iter().for_each(|folder| copy(&world, folder));
    for topic in ["video-views", "ad-views", "user-sessions"] {
        world.kafka.create_topic(topic, 1).await;
    }
    world
}

async fn connect_as(ask: &Ask, user: &str) -> Client {
    let config = format!("host=127.0.0.1 port={} dbname=viewledger user={user}", ask.at.pg.port());
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// By what each protocol refuses `sql`; nothing where it is let through.
async fn refusals(ask: &Ask, role: &str, sql: &str) -> [(&'static str, String); 3] {
    let client = connect_as(ask, role).await;
    let state = |result: Result<(), tokio_postgres::Error>| {
        let error = result.err().and_then(|error| error.code().map(|code| code.code().to_owned()));
        error.unwrap_or_else(|| "nothing".to_owned())
    };
    let simple = state(client.simple_query(sql).await.map(drop));
    let extended = state(client.query(sql, &[]).await.map(drop));
    let channel = Endpoint::new(format!("http://{}", ask.at.flight)).unwrap().connect().await.unwrap();
    let mut flight = FlightSqlServiceClient::new(channel);
    flight.handshake(role, "").await.unwrap();
    let told = match flight.execute(sql.to_owned(), None).await {
        Err(error) => Some(error.to_string()),
        // What gives no rows is carried out when it is fetched, and some refusals come with the first row.
        Ok(info) => match flight.do_get(info.endpoint[0].ticket.clone().unwrap()).await {
            Err(error) => Some(error.to_string()),
            Ok(rows) => rows.try_collect::<Vec<_>>().await.err().map(|error| error.to_string()),
        },
    };
    let told = told.unwrap_or_default();
    let by_flight =
        told.split_once("SQLSTATE ").and_then(|(_, rest)| rest.get(..5)).unwrap_or("nothing").to_owned();
    [("simple", simple), ("extended", extended), ("flight", by_flight)]
}

/// What a process opens, starts or deletes, written down by strace.
struct Trace {
    strace: Child,
    path: PathBuf,
}

impl Drop for Trace {
    fn drop(&mut self) {
        // SAFETY: asks a child of this process, which was not waited for yet, to let go of the other and end.
        unsafe { libc::kill(i32::try_from(self.strace.id()).unwrap(), libc::SIGINT) };
        let _ = self.strace.wait();
    }
}

impl Trace {
    /// None, with the reason printed, where there is no strace or it may not look.
    async fn of(process: &Process, world: &World, auditor: &Client) -> Option<Self> {
        let path = world.path("trace");
        let calls = "trace=open,openat,openat2,creat,execve,execveat,unlink,unlinkat,rename,renameat2,mkdir,mkdirat,symlinkat";
        let strace = Command::new("strace")
            .args([
                "-f",
                "-qq",
                "-s",
                "512",
                "-e",
                calls,
                "-o",
                path.to_str().unwrap(),
                "-p",
                &process.id().to_string(),
            ])
            .stderr(Stdio::null())
            .spawn();
        let Ok(strace) = strace else {
            println!("skipped: no strace");
            return None;
        };
        let mut trace = Self { strace, path };
        for _ in 0..500 {
            if trace.strace.try_wait().unwrap().is_some() {
                println!("skipped: strace may not look at other processes");
                return None;
            }
            rows(auditor, "SELECT count(*) FROM audit.access_log").await.unwrap();
            if trace.files().iter().any(|file| file.contains("/access/")) {
                return Some(trace);
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("nothing is seen of a query that reads files");
    }

    /// The paths in all calls so far.
    fn files(&self) -> BTreeSet<String> {
        let text = std::fs::read_to_string(&self.path).unwrap_or_default();
        let quoted = |line: &str| Some(line.split_once('"')?.1.split_once('"')?.0.to_owned());
        text.lines().filter_map(quoted).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attempt_to_leave_the_catalog_succeeds() {
    let world = shipped().await;
    let process = Process::start(&world).await;
    let auditor = connect_as(&process, "auditor").await;
    let trace = Trace::of(&process, &world, &auditor).await;
    let attempts = attempts();
    assert!(attempts.len() > 60);
    let mut wrong = Vec::new();
    for (code, sql) in &attempts {
        for role in ROLES {
            for (protocol, found) in refusals(&process, role, sql).await {
                if found != *code {
                    wrong.push(format!("{role} by {protocol}: {found} instead of {code}: {sql}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // Each was told of. What is only a wrong name is no matter of rights, and may be left out.
    let denied = attempts.iter().filter(|(code, _)| code == "42501").count() * ROLES.len() * 3;
    let counted =
        "SELECT count(*) >= {n} FROM audit.access_log WHERE sqlstate = '42501'".replace("{n}", &denied.to_string());
    eventually("all refusals are in the log", async || match rows(&auditor, &counted).await?.as_slice() {
        [all] if all == "t" => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    if let Some(trace) = trace {
        let data = world.path("data").display().to_string();
        let elsewhere: Vec<String> = trace
            .files()
            .into_iter()
            .filter(|file| !file.starts_with(&data))
            // The allocator and the runtime look at the machine, never at a name that a client says.
            .filter(|file| !["/proc/", "/sys/"].iter().any(|folder| file.starts_with(folder)))
            .collect();
        assert!(elsewhere.is_empty(), "opened beyond the data directory: {elsewhere:?}");
    }
    assert!(!Path::new("/tmp/escape").exists() && !Path::new("/tmp/escape.parquet").exists());
}
