//! Processes under test: started, asked over Postgres wire, weighed, ended.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio_postgres::{Client, NoTls};
use viewledger::demo::broker::{Broker, BrokerConfig};
use viewledger::runtime::{Health, Shutdown};

use crate::records::sql_dir;

/// Where the benches keep their data between runs.
pub fn work_dir(name: &str) -> PathBuf {
    let root = std::env::var_os("VIEWLEDGER_BENCH_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-data"), PathBuf::from);
    root.join(name)
}

/// A directory with one stream and some of its views, of those that are shipped.
pub fn sql_of(stream: &str, views: &[&str]) -> Result<PathBuf> {
    let dir = work_dir("sql");
    let _ = std::fs::remove_dir_all(&dir);
    let views = views.iter().map(|view| format!("views/{view}.sql"));
    for file in views.chain([format!("streams/{stream}.sql")]) {
        let copy = dir.join(&file);
        std::fs::create_dir_all(copy.parent().context("a file of a folder")?)?;
        std::fs::copy(sql_dir().join(&file), &copy).with_context(|| file.clone())?;
    }
    Ok(dir)
}

/// A number from the environment, else its default.
pub fn setting<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("VIEWLEDGER_BIN")
        .map_or_else(|| option_env!("CARGO_BIN_EXE_viewledger").unwrap_or("viewledger").into(), PathBuf::from)
}

/// The embedded broker, in this process, with the topics of all shipped streams.
pub async fn broker(data_dir: PathBuf, shutdown: &Shutdown) -> Result<Broker> {
    let config = BrokerConfig { listen: (Ipv4Addr::LOCALHOST, 0).into(), data_dir, auto_create_partitions: None };
    let broker = Broker::start(config, Health::default(), shutdown.clone()).await?;
    for topic in ["video-views", "ad-views", "user-sessions"] {
        broker.create_topic(topic, 12).await?;
    }
    Ok(broker)
}

/// `viewledger serve` in a process of its own; killed when dropped.
pub struct Server {
    child: Child,
    pg_port: u16,
}

impl Server {
    /// With the shipped definitions.
    pub fn start(brokers: &str, data_dir: &Path) -> Result<Self> {
        Self::start_with(brokers, data_dir, &sql_dir())
    }

    pub fn start_with(brokers: &str, data_dir: &Path, sql: &Path) -> Result<Self> {
        let pg_port = free_port()?;
        let log = std::fs::File::create(data_dir.with_extension("log"))?;
        let child = Command::new(program())
            .arg("serve")
            .arg("--data-dir")
            .arg(data_dir)
            .arg("--sql-dir")
            .arg(sql)
            .args([
                "--pg-port",
                &pg_port.to_string(),
                "--http-port",
                &free_port()?.to_string(),
                "--flight-port",
                "0",
            ])
            .env("VIEWLEDGER_KAFKA_BROKERS", brokers)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start the server")?;
        Ok(Self { child, pg_port })
    }

    pub async fn connect(&mut self) -> Result<Client> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server has ended with {status}");
            }
            let address = format!("host=127.0.0.1 port={} user=operator dbname=viewledger", self.pg_port);
            match tokio_postgres::connect(&address, NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return Ok(client);
                }
                Err(error) if began.elapsed() > Duration::from_secs(60) => {
                    bail!("the server does not answer: {error}")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    pub fn pg_port(&self) -> u16 {
        self.pg_port
    }

    /// Largest resident memory so far, in bytes.
    pub fn memory_peak(&self) -> Result<u64> {
        memory_peak(&self.child.id().to_string())
    }

    /// CPU seconds by the name of the threads, most first.
    pub fn thread_seconds(&self) -> Result<Vec<(String, f64)>> {
        let mut seconds: BTreeMap<String, f64> = BTreeMap::new();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
            let (Some(open), Some(close)) = (stat.find('('), stat.rfind(')')) else { continue };
            let fields: Vec<&str> = stat[close + 1..].split_whitespace().collect();
            let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
            *seconds.entry(stat[open + 1..close].to_owned()).or_default() += ticks / 100.0;
        }
        let mut seconds: Vec<_> = seconds.into_iter().collect();
        seconds.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(seconds)
    }
}

/// The same of any process; `self` is this one.
pub fn memory_peak(process: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The middle value; of an even number, the lower of the two in the middle.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1;
    sorted[at]
}
