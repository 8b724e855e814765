//! The load generator: records of a known distribution to Kafka, and a file of what was acknowledged.
//!
//! What the records look like is said by profiles (`sql/load/*.toml`, see [`profile`]); this room knows
//! distributions only. The same profiles and seed draw the same records, but for their times, which follow
//! the clock unless [`generator::Timeline::Fixed`] fixes them.
//!
//! # The truth file
//! CSV (RFC 4180, UTF-8, one header line), one line for each record that the brokers acknowledged, in the
//! order of the acknowledgements:
//!
//! | column | meaning |
//! |---|---|
//! | `topic`, `partition`, `offset` | where the record lies |
//! | `kind` | `event`, `duplicate`, `late`, `malformed`, `undeclared` or `aborted` |
//! | `detail` | the broken rule of a malformed record ([`profile::Variety`]); the kind that an aborted record would have had; else empty |
//! | `id` | the identity; empty when a malformed record has none that can be read |
//! | one a truth field | its value as text; empty for null, for absent, and for malformed records |
//!
//! The truth fields are those of all profiles of the run, each name once. What must be counted are the distinct
//! ids among the kinds `event`, `duplicate`, `late` and `undeclared`: a duplicate repeats its original byte for
//! byte, and counts in its stead when the original was aborted or never acknowledged. Every `malformed` record
//! breaks a rule; every `aborted` one is invisible to a reader of committed records.
//!
//! The file is buffered, handed to the operating system each second and at the end. It holds every acknowledged
//! record when [`run`] returns, also on failure or shutdown. A generator that is killed leaves out up to the
//! last second, and perhaps half a line at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::demo::load::generator::{Generator, Kind, Timeline};
use crate::demo::load::pace::{Pace, Step};
use crate::demo::load::produce::{Ending, Sent, Wire};
use crate::demo::load::profile::Profile;
use crate::demo::load::sample::Cumulative;
use crate::demo::load::truth::{Layout, Line, TruthError, TruthFile};
use crate::runtime::{Shutdown, SystemClock};

mod break_rules;
pub mod generator;
mod json;
mod pace;
mod produce;
pub mod profile;
mod sample;
pub mod truth;

#[cfg(test)]
mod tests;

const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// A transaction is ended after this time although it is not full, so that its records become readable.
const TRANSACTION_AGE_MAX: Duration = Duration::from_secs(1);

/// What to produce, and where.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Kafka bootstrap servers, separated by commas.
    pub brokers: String,
    /// At least one; several are mixed by their weights.
    pub profiles: Vec<Profile>,
    pub seed: u64,
    pub timeline: Timeline,
    /// Records of all profiles together, duplicates included; `None` for no end.
    pub records: Option<u64>,
    /// Records a second; `None` for as fast as possible.
    pub rate: Option<f64>,
    pub duration: Option<Duration>,
    pub truth: Option<PathBuf>,
    /// Partitions of a topic that does not exist yet.
    pub partitions: i32,
    /// Replicas of a topic that does not exist yet.
    pub replication: i32,
    pub transactions: Option<Transactions>,
    pub compression: Compression,
    /// How long to wait for brokers that do not answer at the start. Later the wait has no end.
    pub connect_timeout: Duration,
    /// How long to wait at the end for what is not acknowledged yet.
    pub flush_timeout: Duration,
}

impl LoadConfig {
    /// An endless load at full speed, without a truth file.
    pub fn new(brokers: impl Into<String>, profiles: Vec<Profile>, seed: u64) -> Self {
        Self {
            brokers: brokers.into(),
            profiles,
            seed,
            timeline: Timeline::Wall(Arc::new(SystemClock)),
            records: None,
            rate: None,
            duration: None,
            truth: None,
            partitions: 12,
            replication: 1,
            transactions: None,
            compression: Compression::None,
            connect_timeout: Duration::from_secs(60),
            flush_timeout: Duration::from_secs(30),
        }
    }
}

/// Produce in transactions.
#[derive(Debug, Clone, Copy)]
pub struct Transactions {
    /// Records a transaction at most.
    pub records: u64,
    /// Share of the transactions that are aborted.
    pub abort_share: f64,
}

/// Compression of the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Lz4,
    Snappy,
    Zstd,
}

impl Compression {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Snappy => "snappy",
            Self::Zstd => "zstd",
        }
    }
}

/// What a run has done so far, or did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadReport {
    /// Records handed to the producer.
    pub sent: u64,
    /// Records of which nothing is known: neither acknowledged nor refused.
    pub in_flight: u64,
    pub elapsed: Duration,
    /// Per topic.
    pub topics: BTreeMap<String, TopicReport>,
    names: Vec<String>,
}

/// What became of the records of one topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicReport {
    /// Acknowledged records by kind. Those of an open transaction are not among them yet.
    pub acknowledged: BTreeMap<Kind, u64>,
    /// Records that the brokers refused.
    pub refused: u64,
}

impl LoadReport {
    fn new(profiles: &[Profile]) -> Self {
        let names: Vec<String> = profiles.iter().map(|profile| profile.topic().to_owned()).collect();
        let topics = names.iter().map(|name| (name.clone(), TopicReport::default())).collect();
        Self { topics, names, ..Self::default() }
    }

    pub fn acknowledged(&self) -> u64 {
        self.topics.values().flat_map(|topic| topic.acknowledged.values()).sum()
    }

    pub fn refused(&self) -> u64 {
        self.topics.values().map(|topic| topic.refused).sum()
    }

    fn acknowledge(&mut self, profile: usize, kind: Kind) {
        if let Some(topic) = self.topic(profile) {
            *topic.acknowledged.entry(kind).or_default() += 1;
        }
    }

    fn refuse(&mut self, profile: usize) {
        if let Some(topic) = self.topic(profile) {
            topic.refused += 1;
        }
    }

    fn topic(&mut self, profile: usize) -> Option<&mut TopicReport> {
        self.names.get(profile).and_then(|name| self.topics.get_mut(name))
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "a rate to look at")]
        let rate = self.acknowledged() as f64 / self.elapsed.as_secs_f64().max(0.001);
        write!(f, "{} acknowledged in {:.1} s ({rate:.0}/s)", self.acknowledged(), self.elapsed.as_secs_f64())?;
        for (name, topic) in &self.topics {
            write!(f, "; {name}:")?;
            for (kind, records) in &topic.acknowledged {
                write!(f, " {records} {}", kind.as_str())?;
            }
            if topic.refused > 0 {
                write!(f, " {} refused", topic.refused)?;
            }
        }
        if self.in_flight > 0 { write!(f, "; {} unknown", self.in_flight) } else { Ok(()) }
    }
}

/// An error of the Kafka client; only one file knows its type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("a load needs at least one profile")]
    NoProfile,
    #[error("cannot set up a kafka client; check the list of brokers")]
    Client { source: BoxError },
    #[error("no broker answers at {brokers}; start one or give its address with --brokers")]
    Unreachable { brokers: String, source: BoxError },
    #[error("cannot create the topic {topic}: {code}")]
    CreateTopic { topic: String, code: String },
    #[error("cannot send to the topic {topic}")]
    Send { topic: String, source: BoxError },
    #[error("the transaction could not be ended; what it held is not in the truth file")]
    Transaction { source: BoxError },
    #[error(transparent)]
    Truth(#[from] TruthError),
}

/// Produces until the records or the time are used up, or the process ends. Blocks: give it a thread of its own.
///
/// `on_progress` is called a few times a second. When this returns, also with an error, the truth file holds
/// every record whose acknowledgement arrived.
pub fn run(
    config: &LoadConfig,
    shutdown: &Shutdown,
    mut on_progress: impl FnMut(&LoadReport),
) -> Result<LoadReport, LoadError> {
    if config.profiles.is_empty() {
        return Err(LoadError::NoProfile);
    }
    let layout = Layout::new(&config.profiles);
    let truth =
        config.truth.as_deref().map(|path| TruthFile::create(path, &layout, &config.profiles)).transpose()?;
    let wire = Wire::connect(config, truth, shutdown)?;
    let mut run = Run {
        config,
        shutdown,
        layout: config.truth.is_some().then_some(layout),
        mix: Mix::new(config),
        transaction: None,
        log: Log { began: Instant::now(), sent: 0, progress_at: Instant::now(), checkpoint_at: Instant::now() },
        wire,
    };
    let produced = run.produce(&mut on_progress);
    let ended = produced.and_then(|()| run.end_transaction());
    run.wire.flush(config.flush_timeout);
    let report = run.wire.checkpoint().map(|report| run.log.complete(report, &run.wire));
    ended?;
    let report = report?;
    on_progress(&report);
    Ok(report)
}

struct Run<'a> {
    config: &'a LoadConfig,
    shutdown: &'a Shutdown,
    /// None without a truth file: then lines are not worth making.
    layout: Option<Layout>,
    mix: Mix,
    transaction: Option<OpenTransaction>,
    log: Log,
    wire: Wire,
}

struct OpenTransaction {
    began: Instant,
    records: u64,
}

impl Run<'_> {
    fn produce(&mut self, on_progress: &mut impl FnMut(&LoadReport)) -> Result<(), LoadError> {
        let mut pace = Pace::new(self.config.rate, self.config.records, self.config.duration);
        while !self.shutdown.is_triggered() {
            match pace.step(self.log.began.elapsed(), self.log.sent) {
                Step::Done => return Ok(()),
                Step::Wait(pause) => std::thread::sleep(pause),
                Step::Send(records) => {
                    for _ in 0..records {
                        self.send_one(on_progress)?;
                    }
                }
            }
            self.end_due_transaction()?;
            self.log.tell(&self.wire, on_progress)?;
        }
        Ok(())
    }

    fn send_one(&mut self, on_progress: &mut impl FnMut(&LoadReport)) -> Result<(), LoadError> {
        self.begin_transaction()?;
        let profile = self.mix.pick();
        let Some(generator) = self.mix.generators.get_mut(profile) else { return Ok(()) };
        let record = generator.next_record();
        let line = match &self.layout {
            Some(layout) => layout.line(profile, &record.truth),
            None => Line::bare(profile, &record.truth),
        };
        let mut line = Some(Box::new(line));
        while self.wire.send(&record, &mut line)? == Sent::Full {
            // A full queue is the normal state at full speed, and also that of a broker which is away.
            if self.shutdown.is_triggered() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
            self.log.tell(&self.wire, on_progress)?;
        }
        self.log.sent += 1;
        match &mut self.transaction {
            Some(open) => {
                open.records += 1;
                self.end_due_transaction()
            }
            None => Ok(()),
        }
    }

    fn begin_transaction(&mut self) -> Result<(), LoadError> {
        if self.config.transactions.is_some() && self.transaction.is_none() {
            self.wire.begin()?;
            self.transaction = Some(OpenTransaction { began: Instant::now(), records: 0 });
        }
        Ok(())
    }

    fn end_due_transaction(&mut self) -> Result<(), LoadError> {
        let (Some(transactions), Some(open)) = (self.config.transactions, &self.transaction) else {
            return Ok(());
        };
        let due = open.records >= transactions.records || open.began.elapsed() >= TRANSACTION_AGE_MAX;
        if due { self.end_transaction() } else { Ok(()) }
    }

    fn end_transaction(&mut self) -> Result<(), LoadError> {
        let (Some(transactions), Some(_)) = (self.config.transactions, self.transaction.take()) else {
            return Ok(());
        };
        let abort = self.mix.rng.random::<f64>() < transactions.abort_share;
        self.wire.end(if abort { Ending::Abort } else { Ending::Commit }, self.config.flush_timeout)
    }
}

/// When what was told last.
struct Log {
    began: Instant,
    sent: u64,
    progress_at: Instant,
    checkpoint_at: Instant,
}

impl Log {
    fn tell(&mut self, wire: &Wire, on_progress: &mut impl FnMut(&LoadReport)) -> Result<(), LoadError> {
        if self.progress_at.elapsed() < PROGRESS_INTERVAL {
            return Ok(());
        }
        self.progress_at = Instant::now();
        let report = if self.checkpoint_at.elapsed() >= CHECKPOINT_INTERVAL {
            self.checkpoint_at = Instant::now();
            wire.checkpoint()?
        } else {
            wire.report()?
        };
        on_progress(&self.complete(report, wire));
        Ok(())
    }

    fn complete(&self, mut report: LoadReport, wire: &Wire) -> LoadReport {
        report.sent = self.sent;
        report.in_flight = wire.in_flight();
        report.elapsed = self.began.elapsed();
        report
    }
}

/// Draws which profile makes the next record.
struct Mix {
    rng: SmallRng,
    weights: Cumulative,
    generators: Vec<Generator>,
}

impl Mix {
    fn new(config: &LoadConfig) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(config.seed),
            weights: Cumulative::new(config.profiles.iter().map(|profile| profile.weight)),
            generators: config
                .profiles
                .iter()
                .map(|profile| Generator::new(profile, config.seed, config.timeline.clone()))
                .collect(),
        }
    }

    fn pick(&mut self) -> usize {
        if self.generators.len() == 1 { 0 } else { self.weights.pick(self.rng.random()) }
    }
}
