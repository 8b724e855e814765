//! The only place of the generator that speaks to Kafka: an idempotent producer whose delivery reports become
//! the truth.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::util::Timeout;

use crate::demo::load::generator::{Destination, Record};
use crate::demo::load::truth::{Line, TruthError, TruthFile};
use crate::demo::load::{LoadConfig, LoadError, LoadReport};
use crate::runtime::Shutdown;

/// Records between the generator and the brokers at most.
const QUEUE_RECORDS_MAX: &str = "200000";
/// The same in kilobytes; the smaller bound holds.
const QUEUE_KILOBYTES_MAX: &str = "262144";
/// The largest record that is handed to a broker, which may refuse it all the same.
const RECORD_BYTES_MAX: &str = "110000000";
/// How long one call to the brokers may take before it is tried again.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A connected producer and what it was told.
pub(super) struct Wire {
    producer: ThreadedProducer<Acks>,
    topics: Vec<Topic>,
    acks: Acks,
}

/// How a record was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Queued,
    /// The queue is full; try again.
    Full,
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Commit,
    Abort,
}

#[derive(Debug)]
struct Topic {
    name: String,
    partitions: u32,
}

/// What the delivery reports said so far. Cloning shares it.
#[derive(Clone)]
struct Acks(Arc<Mutex<Told>>);

struct Told {
    truth: Option<TruthFile>,
    report: LoadReport,
    /// Lines of the open transaction; `None` without transactions.
    held: Option<Vec<(Line, i32, i64)>>,
    failure: Option<LoadError>,
}

impl Wire {
    /// Connects, creates the topics that are missing, and learns the partitions of each. Waits for the brokers
    /// up to the configured time.
    pub(super) fn connect(
        config: &LoadConfig,
        truth: Option<TruthFile>,
        shutdown: &Shutdown,
    ) -> Result<Self, LoadError> {
        let told = Told {
            truth,
            report: LoadReport::new(&config.profiles),
            held: config.transactions.map(|_| Vec::new()),
            failure: None,
        };
        let acks = Acks(Arc::new(Mutex::new(told)));
        let producer: ThreadedProducer<Acks> = settings(config)
            .create_with_context(acks.clone())
            .map_err(|source| LoadError::Client { source: Box::new(source) })?;
        let mut wire = Self { producer, topics: Vec::new(), acks };
        let deadline = Instant::now() + config.connect_timeout;
        let names: Vec<&str> = config.profiles.iter().map(|profile| profile.topic()).collect();
        wire.create_missing(config, &names, deadline, shutdown)?;
        for name in names {
            let partitions = wire.partitions(config, name, deadline, shutdown)?;
            wire.topics.push(Topic { name: name.to_owned(), partitions });
        }
        if config.transactions.is_some() {
            until(config, deadline, shutdown, || wire.producer.init_transactions(CALL_TIMEOUT))?;
        }
        Ok(wire)
    }

    fn create_missing(
        &self,
        config: &LoadConfig,
        names: &[&str],
        deadline: Instant,
        shutdown: &Shutdown,
    ) -> Result<(), LoadError> {
        // Asking for all topics, not by name: some brokers create what is asked for by name.
        let metadata =
            until(config, deadline, shutdown, || self.producer.client().fetch_metadata(None, CALL_TIMEOUT))?;
        let missing: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !metadata.topics().iter().any(|topic| topic.name() == *name))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &config.brokers)
            .create()
            .map_err(|source| LoadError::Client { source: Box::new(source) })?;
        let new: Vec<NewTopic<'_>> = missing
            .iter()
            .map(|name| NewTopic::new(name, config.partitions, TopicReplication::Fixed(config.replication)))
            .collect();
        let options = AdminOptions::new().operation_timeout(Some(CALL_TIMEOUT));
        let results =
            until(config, deadline, shutdown, || futures::executor::block_on(admin.create_topics(&new, &options)))?;
        for result in results {
            match result {
                Ok(topic) => tracing::info!(topic, partitions = config.partitions, "topic created"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(LoadError::CreateTopic { topic, code: code.to_string() }),
            }
        }
        Ok(())
    }

    fn partitions(
        &self,
        config: &LoadConfig,
        name: &str,
        deadline: Instant,
        shutdown: &Shutdown,
    ) -> Result<u32, LoadError> {
        // A topic that was just created may be unknown to the broker that is asked.
        until(config, deadline, shutdown, || {
            let metadata = self.producer.client().fetch_metadata(Some(name), CALL_TIMEOUT)?;
            let topic = metadata.topics().iter().find(|topic| topic.name() == name);
            let count = topic.map_or(0, |topic| topic.partitions().len());
            match u32::try_from(count) {
                Ok(0) | Err(_) => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition)),
                Ok(count) => Ok(count),
            }
        })
    }

    /// Queues a record of the profile at position `line.profile`. The line is written once it is acknowledged.
    pub(super) fn send(&self, record: &Record<'_>, line: &mut Option<Box<Line>>) -> Result<Sent, LoadError> {
        let Some(boxed) = line.take() else { return Ok(Sent::Queued) };
        let Some(topic) = self.topics.get(boxed.profile) else { return Ok(Sent::Queued) };
        let mut message = BaseRecord::with_opaque_to(&topic.name, boxed).payload(record.payload);
        if let Some(key) = record.key {
            message = message.key(key);
        }
        if let Destination::Slot(slot) = record.destination {
            message = message.partition(i32::try_from(slot % topic.partitions).unwrap_or_default());
        }
        match self.producer.send::<[u8], [u8]>(message) {
            Ok(()) => Ok(Sent::Queued),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), message)) => {
                *line = Some(message.delivery_opaque);
                Ok(Sent::Full)
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), message)) => {
                self.acks.0.lock().report.refuse(message.delivery_opaque.profile);
                Ok(Sent::Queued)
            }
            Err((source, _)) => Err(LoadError::Send { topic: topic.name.clone(), source: Box::new(source) }),
        }
    }

    /// Records that were queued and of which nothing is known yet.
    pub(super) fn in_flight(&self) -> u64 {
        u64::try_from(self.producer.in_flight_count()).unwrap_or_default()
    }

    pub(super) fn begin(&self) -> Result<(), LoadError> {
        self.producer.begin_transaction().map_err(transaction)
    }

    /// Waits until every record of the transaction is written, then ends it. Only then its lines count.
    pub(super) fn end(&self, ending: Ending, timeout: Duration) -> Result<(), LoadError> {
        // An abort would purge what is still queued; an aborted record that was never written tests nothing.
        self.producer.flush(timeout).map_err(transaction)?;
        let deadline = Instant::now() + timeout;
        let mut ending = ending;
        loop {
            let result = match ending {
                Ending::Commit => self.producer.commit_transaction(CALL_TIMEOUT),
                Ending::Abort => self.producer.abort_transaction(CALL_TIMEOUT),
            };
            match result {
                Ok(()) => break,
                Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => ending = Ending::Abort,
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
                Err(error) => return Err(transaction(error)),
            }
        }
        self.acks.0.lock().settle(ending);
        Ok(())
    }

    /// Waits for the reports of all queued records, up to the timeout.
    pub(super) fn flush(&self, timeout: Duration) {
        if let Err(error) = self.producer.flush(Timeout::After(timeout)) {
            tracing::warn!(%error, unknown = self.in_flight(), "not every record was acknowledged in time");
        }
    }

    /// Hands the truth so far to the operating system, and says what is known.
    pub(super) fn checkpoint(&self) -> Result<LoadReport, LoadError> {
        let mut told = self.acks.0.lock();
        if let Some(failure) = told.failure.take() {
            return Err(failure);
        }
        if let Some(truth) = &mut told.truth {
            truth.flush()?;
        }
        Ok(told.report.clone())
    }

    /// What is known, without touching the file.
    pub(super) fn report(&self) -> Result<LoadReport, LoadError> {
        let mut told = self.acks.0.lock();
        told.failure.take().map_or_else(|| Ok(told.report.clone()), Err)
    }
}

impl Told {
    fn acknowledge(&mut self, line: &Line, partition: i32, offset: i64) {
        self.report.acknowledge(line.profile, line.kind);
        let written = match &mut self.truth {
            Some(truth) => truth.write(line, partition, offset),
            None => Ok(()),
        };
        if let Err(error) = written {
            self.fail(error);
        }
    }

    /// Writes the lines of the transaction that just ended.
    fn settle(&mut self, ending: Ending) {
        let lines = self.held.as_mut().map(std::mem::take).unwrap_or_default();
        for (mut line, partition, offset) in lines {
            if ending == Ending::Abort {
                line.aborted();
            }
            self.acknowledge(&line, partition, offset);
        }
    }

    fn fail(&mut self, error: TruthError) {
        self.failure.get_or_insert(LoadError::Truth(error));
    }
}

impl ClientContext for Acks {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka client reports");
    }
}

impl ProducerContext for Acks {
    type DeliveryOpaque = Box<Line>;

    fn delivery(&self, result: &DeliveryResult<'_>, line: Box<Line>) {
        let mut told = self.0.lock();
        match result {
            Ok(message) => {
                let (partition, offset) = (message.partition(), message.offset());
                match &mut told.held {
                    Some(held) => held.push((*line, partition, offset)),
                    None => told.acknowledge(&line, partition, offset),
                }
            }
            Err((error, _)) => {
                if told.report.refused() == 0 {
                    tracing::warn!(%error, "a record was not acknowledged; more of them are only counted");
                }
                told.report.refuse(line.profile);
            }
        }
    }
}

fn settings(config: &LoadConfig) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", "viewledger-generate")
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "5")
        .set("batch.size", "1000000")
        .set("compression.type", config.compression.as_str())
        .set("queue.buffering.max.messages", QUEUE_RECORDS_MAX)
        .set("queue.buffering.max.kbytes", QUEUE_KILOBYTES_MAX)
        .set("message.max.bytes", RECORD_BYTES_MAX)
        .set("reconnect.backoff.max.ms", "2000");
    if config.transactions.is_some() {
        // Named after the seed: two generators with one seed fence each other, others do not.
        settings
            .set("transactional.id", format!("viewledger-generate-{}", config.seed))
            .set("transaction.timeout.ms", "600000");
    } else {
        // Zero waits for ever: what was queued is sent once the brokers are back.
        settings.set("message.timeout.ms", "0");
    }
    settings
}

/// Calls again until it succeeds, the deadline passes or the process ends.
fn until<T>(
    config: &LoadConfig,
    deadline: Instant,
    shutdown: &Shutdown,
    mut call: impl FnMut() -> Result<T, KafkaError>,
) -> Result<T, LoadError> {
    loop {
        match call() {
            Ok(value) => return Ok(value),
            Err(source) if shutdown.is_triggered() || Instant::now() >= deadline => {
                return Err(LoadError::Unreachable { brokers: config.brokers.clone(), source: Box::new(source) });
            }
            Err(error) => {
                tracing::warn!(brokers = config.brokers, %error, "brokers do not answer yet");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

fn transaction(source: KafkaError) -> LoadError {
    LoadError::Transaction { source: Box::new(source) }
}
