//! `viewledger doctor`: whether this machine, its storage and its Kafka are fit to run on, and what to do where not.

mod findings;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;

use self::findings::{Finding, Found};
use super::{Common, FAULT, io_runtime};
use crate::app::security::Security;
use crate::app::{self, Declared};
use crate::archive::Archive;
use crate::config::Config;
use crate::kafka::topics::{self, Judgement, TopicError, TopicFacts, judge};
use crate::position::StreamFrontier;
use crate::runtime::{Clock, SystemClock, chain, machine};
use crate::serve::{Endpoint, flight, pg};
use crate::storage::lock::ProcessLock;
use crate::storage::{Storage, StorageError, probe};

/// Look at settings, definitions, disk, memory, clock, ports, storage and Kafka, and say what to do where something is wrong.
///
/// It writes one object of no meaning into the storage and deletes it; nothing else is changed. A server may run meanwhile.
/// Exit code 3 when something keeps a server from running, or its answers from being right.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger doctor
  viewledger doctor --config /etc/viewledger/viewledger.toml")]
pub struct Args {
    #[command(flatten)]
    common: Common,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut found = Found::default();
    match args.common.load() {
        Ok(config) => {
            found.add("settings", Finding::Fine("every key is known, every value is of its kind".to_owned()));
            examine(&config, &mut found)?;
        }
        Err(error) => found.add("settings", Finding::Fault(format!("{error:#}"))),
    }
    print!("{found}");
    Ok(if found.faults() == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAULT) })
}

fn examine(config: &Config, found: &mut Found) -> anyhow::Result<()> {
    let runtime = io_runtime()?;
    let runs = data_directory(config, found);
    runtime.block_on(access(config, runs, found));
    if let Some(disk) = machine::disk(&config.storage.data_dir) {
        found.add("disk", findings::disk(disk));
    }
    found.add("files", findings::files(machine::files_max(), config.server.connections_max));
    found.add("memory", findings::memory(machine::memory_bytes(), wanted_memory(config)));
    found.add("clock", findings::clock(machine::clock()));
    let storage = runtime.block_on(stored(config, found));
    let declared = match app::planning_engine(config) {
        Ok(engine) => runtime.block_on(app::declare(config, &engine)),
        Err(error) => {
            found.add("definitions", Finding::Fault(format!("{error:#}")));
            return Ok(());
        }
    };
    match declared {
        Ok(declared) => {
            let dir = config.sql.dir.display();
            found.add("definitions", Finding::Fine(format!("everything in {dir} can be planned")));
            runtime.block_on(kafka(config, &declared, storage.as_ref(), found));
        }
        Err(faults) => {
            faults.iter().for_each(|fault| found.add("definitions", Finding::Fault(fault.to_string())));
        }
    }
    Ok(())
}

/// Certificate and passwords, and whether the ports can be listened on with them.
async fn access(config: &Config, runs: bool, found: &mut Found) {
    let security = match Security::load(config) {
        Ok(security) => security,
        Err(error) => return found.add("access", Finding::Fault(format!("{error:#}"))),
    };
    let asks =
        if config.auth.asks_for_passwords() { "asks for passwords" } else { "takes clients to be who they say" };
    found.add("access", Finding::Fine(format!("listens on {}, {asks}", config.server.bind)));
    if runs {
        return;
    }
    let (exposure, server) = (security.exposure(), &config.server);
    let at = |port| SocketAddr::new(server.bind, port);
    let listeners = [
        pg::listen(at(server.pg_port), exposure).await,
        flight::listen(at(server.flight_port), exposure).await,
        Endpoint::http(at(server.http_port)).listen_for(exposure).await,
    ];
    for error in listeners.into_iter().filter_map(Result::err) {
        found.add("ports", Finding::Fault(chain(&error)));
    }
}

/// Whether a server runs on it.
fn data_directory(config: &Config, found: &mut Found) -> bool {
    let dir = config.storage.data_dir.display();
    match ProcessLock::acquire(&config.storage.data_dir) {
        Ok(_) => found.add("data directory", Finding::Fine(format!("{dir} can be written to, and nobody uses it"))),
        Err(StorageError::Locked { pid, .. }) => {
            found.add("data directory", Finding::Fine(format!("{dir} is used by the server with pid {pid}")));
            return true;
        }
        Err(error) => found.add("data directory", Finding::Fault(chain(&error))),
    }
    false
}

/// What the settings let the process take, by name.
fn wanted_memory(config: &Config) -> BTreeMap<&'static str, u64> {
    /// The most that a key takes in memory.
    const KEY_BYTES: usize = 34;
    let keys = config.ingest.keys_in_memory_max.saturating_mul(KEY_BYTES);
    [
        ("delta.bytes_max", config.delta.bytes_max),
        ("query.memory_bytes_max", config.query.memory_bytes_max),
        ("query.index_bytes_max", config.query.index_bytes_max),
        ("refresh.memory_bytes_max", config.refresh.memory_bytes_max),
        ("ingest.keys_in_memory_max", keys),
    ]
    .map(|(name, bytes)| (name, bytes as u64))
    .into()
}

/// Tries storage; None where it cannot be used.
async fn stored(config: &Config, found: &mut Found) -> Option<Storage> {
    let location = config.storage.location();
    let storage = match Storage::open(&location, config.storage.options.clone().into_iter()) {
        Ok(storage) => storage,
        Err(error) => {
            found.add("storage", Finding::Fault(chain(&error)));
            return None;
        }
    };
    match probe::probe(&storage).await {
        Ok(tried) => {
            found.add("storage", findings::storage(&location, tried.creates_once));
            found.add("clock", findings::skew(tried.made_at - SystemClock.now()));
            tried.creates_once.then_some(storage)
        }
        Err(error) => {
            let what = format!("{}; look at storage.location, storage.options and the credentials", chain(&error));
            found.add("storage", Finding::Fault(what));
            None
        }
    }
}

async fn kafka(config: &Config, declared: &Declared, storage: Option<&Storage>, found: &mut Found) {
    // Before Kafka is asked: a server that runs moves both, and the archive never passes the log.
    let mut stored = BTreeMap::new();
    for name in declared.catalog.streams.keys() {
        match frontier(name, storage).await {
            Ok(frontier) => drop(stored.insert(name, frontier)),
            Err(finding) => found.add("kafka", finding),
        }
    }
    let topics: Vec<String> = declared.catalog.streams.values().map(|stream| stream.topic.clone()).collect();
    let kafka = config.kafka.clone();
    let looked = tokio::task::spawn_blocking(move || topics::look(&kafka, topics)).await;
    let facts = match looked {
        Ok(Ok(facts)) => facts,
        Ok(Err(error)) => return found.add("kafka", Finding::Fault(format!("{error}; look at kafka.options"))),
        Err(error) => return found.add("kafka", Finding::Fault(error.to_string())),
    };
    for (name, stream) in &declared.catalog.streams {
        let finding = match facts.get(&stream.topic) {
            None => continue,
            Some(Err(TopicError::Unreachable(reason))) => Finding::Fault(format!(
                "{reason}; look at kafka.brokers ({}) and kafka.options, and whether the brokers run",
                config.kafka.brokers
            )),
            Some(Err(error @ TopicError::Missing(_))) => {
                Finding::Fault(format!("stream {name}: {error}; create topic {}", stream.topic))
            }
            Some(Ok(facts)) => match stored.get(name) {
                Some(frontier) => position(name, &stream.topic, facts, frontier),
                None => continue,
            },
        };
        found.add("kafka", finding);
    }
}

/// Where the archive of a stream ends.
async fn frontier(stream: &str, storage: Option<&Storage>) -> Result<StreamFrontier, Finding> {
    let Some(storage) = storage else { return Ok(StreamFrontier::default()) };
    match Archive::peek(storage, stream).await {
        Ok(archive) => Ok(archive.map(|archive| archive.frontier.clone()).unwrap_or_default()),
        Err(error) => {
            Err(Finding::Fault(format!("stream {stream}: its archive cannot be read: {}", chain(&error))))
        }
    }
}

/// Whether reading can go on where the archive ends.
fn position(stream: &str, topic: &str, facts: &TopicFacts, frontier: &StreamFrontier) -> Finding {
    match judge(frontier, facts) {
        Judgement::Refuse(reason) => Finding::Fault(format!("stream {stream}: {reason}")),
        Judgement::Read { start, halt } => match halt.iter().next() {
            Some((partition, reason)) => Finding::Fault(format!("stream {stream} partition {partition}: {reason}")),
            None => Finding::Fine(format!("topic {topic}: {} partitions can be read", start.len())),
        },
    }
}
