//! Rows of a view by key: prepared lookups of pgbench, beside PostgreSQL with the same rows and an index.
//!
//! Our views are written to meanwhile, by a load that goes through Kafka; PostgreSQL's table is not.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio_postgres::{Client, NoTls};
use viewledger::runtime::Shutdown;

use crate::ingest::{STREAM, VIEWS};
use crate::process::{Server, broker, free_port, median, program, setting, sql_of, work_dir};
use crate::records::sql_dir;

/// Of both tables, and what the lookup gives.
const COLUMNS: &str = "video_id, total_views, revenue_views, watch_seconds, viewers";

pub fn run() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(measure())
}

async fn measure() -> Result<()> {
    let videos: u64 = setting("VIDEOS", 1_000_000);
    let events: u64 = setting("EVENTS", 3_000_000);
    let rate: u64 = setting("RATE", 5_000);
    let pairs: usize = setting("PAIRS", 3);
    let seconds: u64 = setting("SECONDS", 15);
    let clients: usize = setting("CLIENTS", 8);
    let dir = work_dir("by-key");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(dir.join("data"))?;
    let profile = profile(&dir, videos)?;
    let shutdown = Shutdown::default();
    let broker = broker(dir.join("broker"), &shutdown).await?;
    let sql = sql_of(STREAM, &VIEWS.map(|(view, _)| view))?;
    let mut server = Server::start_with(&broker.bootstrap(), &dir.join("data"), &sql)?;
    let client = server.connect().await?;
    let made = generate(&broker.bootstrap(), &profile).args(["--events", &events.to_string()]).status()?;
    ensure!(made.success(), "the events cannot be made");
    until_passed(&client, events).await?;
    client.batch_execute("REFRESH MATERIALIZED VIEW video_views").await?;

    let peer = Postgres::start(&dir.join("postgres")).await?;
    peer.fill(server.pg_port())?;
    let rows = same_answers(&client, &peer.connect().await?, videos).await?;
    let script = dir.join("lookup.sql");
    std::fs::write(
        &script,
        format!("\\set id random(0, {})\nSELECT {COLUMNS} FROM video_views WHERE video_id = :id;\n", videos - 1),
    )?;
    let bench = |port: u16| pgbench(port, &script, clients, seconds);
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    println!("lookups by key, {rows} videos, pgbench -M prepared with {clients} clients for {seconds} s each:");
    for _ in 0..pairs {
        let other = bench(peer.port)?;
        let mut load = generate(&broker.bootstrap(), &profile).args(["--rate", &rate.to_string()]).spawn()?;
        std::thread::sleep(Duration::from_secs(2));
        let own = bench(server.pg_port());
        let _ = load.kill();
        let _ = load.wait();
        let own = own?;
        println!(
            "  viewledger {:.0}/s ({:.2} ms), PostgreSQL {:.0}/s ({:.2} ms): {:.3}",
            own.rate,
            own.latency,
            other.rate,
            other.latency,
            own.rate / other.rate
        );
        ratios.push(own.rate / other.rate);
        ours.push(own.rate);
        theirs.push(other.rate);
    }
    println!(
        "  median {:.3}; viewledger {:.0}/s with {rate} events/s coming in, PostgreSQL {:.0}/s; server's peak memory {} MiB",
        median(&ratios),
        median(&ours),
        median(&theirs),
        server.memory_peak()? >> 20
    );
    println!("  server's threads: {:?}", server.thread_seconds()?.into_iter().take(6).collect::<Vec<_>>());
    drop((peer, server));
    shutdown.trigger();
    broker.stopped().await;
    Ok(())
}

/// The shipped profile with so many videos, each as likely as the other, whose ids are numbers: pgbench draws no others.
fn profile(dir: &Path, videos: u64) -> Result<PathBuf> {
    let shipped = std::fs::read_to_string(sql_dir().join("load/video_views.toml"))?;
    let drawn = r#"value = { kind = "zipf", prefix = "vid-", n = 200_000, exponent = 1.05 }"#;
    ensure!(shipped.contains(drawn), "the shipped profile draws videos in another way");
    let path = dir.join("video_views.toml");
    let uniform = format!(r#"value = {{ kind = "uniform", prefix = "", n = {videos} }}"#);
    std::fs::write(&path, shipped.replace(drawn, &uniform))?;
    Ok(path)
}

fn generate(brokers: &str, profile: &Path) -> Command {
    let mut command = Command::new(program());
    command.args(["generate", "--brokers", brokers, "--profile"]).arg(profile);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

async fn until_passed(client: &Client, events: u64) -> Result<()> {
    let began = Instant::now();
    loop {
        let sql = "SELECT coalesce(sum(passed), 0)::bigint FROM system.conservation WHERE stream = 'video_views'";
        let passed: i64 = client.query_one(sql, &[]).await?.get(0);
        if passed.unsigned_abs() >= events {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(300), "{passed} of {events} events after 300 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A thousand lookups give the same rows on both sides; returns how many rows there are.
async fn same_answers(ours: &Client, theirs: &Client, videos: u64) -> Result<i64> {
    let sql = format!("SELECT {COLUMNS} FROM video_views WHERE video_id = $1");
    let (own, other) = (ours.prepare(&sql).await?, theirs.prepare(&sql).await?);
    for id in (0..videos).step_by((videos / 1000).max(1) as usize) {
        let id = id.to_string();
        let row = |rows: Vec<tokio_postgres::Row>| {
            rows.first().map(|row| (row.get::<_, i64>(1), row.get::<_, i64>(2), row.get::<_, i64>(4)))
        };
        let (own, other) = (row(ours.query(&own, &[&id]).await?), row(theirs.query(&other, &[&id]).await?));
        ensure!(own == other, "video {id}: {own:?} here, {other:?} in PostgreSQL");
    }
    Ok(theirs.query_one("SELECT count(*) FROM video_views", &[]).await?.get(0))
}

struct Measured {
    /// Transactions a second.
    rate: f64,
    /// Milliseconds, on average.
    latency: f64,
}

fn pgbench(port: u16, script: &Path, clients: usize, seconds: u64) -> Result<Measured> {
    let output = Command::new("pgbench")
        .args(["-n", "-M", "prepared", "-j", "2", "-h", "127.0.0.1", "-U", "analyst"])
        .args(["-p", &port.to_string(), "-c", &clients.to_string(), "-T", &seconds.to_string(), "-f"])
        .arg(script)
        .arg("viewledger")
        .output()
        .context("pgbench is needed: it comes with PostgreSQL")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
    let figure = |name: &str| -> Result<f64> {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .with_context(|| format!("no {name} in {text}"))?;
        Ok(line.split_whitespace().next().context("no figure")?.parse()?)
    };
    Ok(Measured { rate: figure("tps = ")?, latency: figure("latency average = ")? })
}

/// A PostgreSQL server with its default settings, but for buffers that hold the whole table.
struct Postgres {
    child: Child,
    port: u16,
}

impl Postgres {
    async fn start(dir: &Path) -> Result<Self> {
        let port = free_port()?;
        std::fs::create_dir_all(dir)?;
        let owner = owner()?;
        std::os::unix::fs::chown(dir, owner.map(|(user, _)| user), owner.map(|(_, group)| group))?;
        let made = as_owner("initdb", owner)
            .args(["-U", "analyst", "--auth=trust", "--locale=C", "--encoding=UTF8", "-D"])
            .arg(dir)
            .stdout(Stdio::null())
            .status()
            .context("initdb is needed: it comes with PostgreSQL, in its own folder")?;
        ensure!(made.success(), "initdb failed");
        let child = as_owner("postgres", owner)
            .arg("-D")
            .arg(dir)
            .args(["-p", &port.to_string(), "-c", "shared_buffers=1GB", "-c", "listen_addresses=127.0.0.1", "-k"])
            .arg(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Self { child, port };
        let began = Instant::now();
        loop {
            match server.connect_to("postgres").await {
                Ok(client) => {
                    client.batch_execute("CREATE DATABASE viewledger").await?;
                    return Ok(server);
                }
                Err(error) => {
                    ensure!(began.elapsed() < Duration::from_secs(30), "PostgreSQL does not answer: {error}")
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn connect(&self) -> Result<Client> {
        self.connect_to("viewledger").await
    }

    async fn connect_to(&self, database: &str) -> Result<Client> {
        let address = format!("host=127.0.0.1 port={} user=analyst dbname={database}", self.port);
        let (client, connection) = tokio_postgres::connect(&address, NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The rows that the view has now.
    fn fill(&self, from: u16) -> Result<()> {
        let table = "CREATE TABLE video_views (video_id text PRIMARY KEY, total_views bigint, revenue_views bigint, \
                     watch_seconds numeric, viewers bigint)";
        let psql =
            |port: u16| format!("psql -X -q -v ON_ERROR_STOP=1 -h 127.0.0.1 -U analyst -d viewledger -p {port}");
        let (ours, theirs) = (psql(from), psql(self.port));
        let script = format!(
            "set -e -o pipefail; {theirs} -c '{table}'; \
             {ours} -c 'COPY (SELECT {COLUMNS} FROM video_views) TO STDOUT' | {theirs} -c 'COPY video_views FROM STDIN'; \
             {theirs} -c 'VACUUM ANALYZE video_views'"
        );
        ensure!(Command::new("bash").args(["-c", &script]).status()?.success(), "the rows cannot be copied");
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// PostgreSQL does not run as root: then its own user, and its group.
fn owner() -> Result<Option<(u32, u32)>> {
    let id = |flag: &str, user: &str| -> Result<u32> {
        let output = Command::new("id").args([flag, user]).output()?;
        String::from_utf8(output.stdout)?.trim().parse().with_context(|| format!("there is no user {user}"))
    };
    let me = String::from_utf8(Command::new("id").arg("-u").output()?.stdout)?;
    if me.trim() != "0" { Ok(None) } else { Ok(Some((id("-u", "postgres")?, id("-g", "postgres")?))) }
}

fn as_owner(program: &str, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}
