//! The poll loop: reads all partitions of all sources from their frontiers and hands on micro-batches.
//!
//! | thread | does | waits for |
//! |---|---|---|
//! | `kafka-topics` | looks at topics every `kafka.metadata_interval` | the brokers |
//! | `kafka-poll` | polls, checks every offset, gathers records | the decode queue |
//! | `decode` | JSON to Arrow | the sink's queue |
//! | `ingest` | runs the [`Sink`] | whatever the sink waits for |
//!
//! Kafka's group offsets are written for monitoring tools and never read: the frontier comes from the archive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Message, TopicPartitionList};

use super::decode::Decoder;
use super::status::{IntakeStatus, Witness};
use super::topics::TopicReader;
use super::watch::{TopicEvent, TopicWatch};
use super::{Decoded, RawBatch, RawRecord, Sink, Source};
use crate::config;
use crate::position::{Offset, PartitionId, TopicIdentity};
use crate::runtime::{Clock, Health, Shutdown, spawn_thread};

/// How long an idle loop sleeps before it looks around.
const POLL: Duration = Duration::from_millis(10);
/// Records after which the loop looks for shutdown and for what the topic watch says.
const TURN: usize = 256;
/// How often positions are compared when nothing arrives: control records move them without a record.
const POSITION_INTERVAL: Duration = Duration::from_millis(500);
/// How often a busy loop looks around.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What the pipeline needs beside its settings.
#[derive(Debug, Clone)]
pub struct Surroundings {
    pub clock: Arc<dyn Clock>,
    pub health: Health,
    pub shutdown: Shutdown,
    pub status: IntakeStatus,
}

/// The running pipeline.
#[derive(Debug)]
pub struct Intake {
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot set up the kafka client: {source}")]
pub struct ConsumerError {
    #[source]
    source: KafkaError,
}

impl Intake {
    /// Starts reading `sources`; records come to `sink` until shutdown.
    pub fn start(
        kafka: &config::Kafka,
        ingest: &config::Ingest,
        sources: Vec<Source>,
        sink: Box<dyn Sink>,
        around: Surroundings,
    ) -> Result<Intake, ConsumerError> {
        let client = client_config(kafka);
        let setup = |source| ConsumerError { source };
        let ids = Arc::<TopicIds>::default();
        let consumer = client.create_with_context(Context {
            status: around.status.clone(),
            sources: names(&sources),
            ids: Arc::clone(&ids),
        });
        let consumer: BaseConsumer<Context> = consumer.map_err(setup)?;
        let reader = TopicReader::new(&client).map_err(setup)?;

        let (events, judged) = channel();
        let (recheck, rechecks) = sync_channel(1);
        let (raw, decoding) = sync_channel(ingest.queue_batches_max);
        let (decoded, sinking) = sync_channel(ingest.queue_batches_max);
        let (emptied, empty) = sync_channel(ingest.queue_batches_max);
        let decoders = sources
            .iter()
            .map(|s| Decoder::new(Arc::clone(&s.stream), s.checks.clone(), ingest.record_bytes_max))
            .collect::<Vec<_>>();
        let watch = TopicWatch {
            reader,
            sources: sources.clone(),
            interval: kafka.metadata_interval,
            known: vec![BTreeMap::new(); sources.len()],
            lost: vec![BTreeMap::new(); sources.len()],
            events,
        };
        let poll = PollLoop {
            consumer,
            sources,
            batches: Vec::new(),
            next: BTreeMap::new(),
            left: BTreeMap::new(),
            identities: BTreeMap::new(),
            ids,
            out: raw,
            empty,
            recheck,
            batch_rows_max: ingest.micro_batch_rows_max,
            batch_interval: ingest.micro_batch_interval,
            position_checked: Instant::now(),
            looked: Instant::now(),
        };
        let health = &around.health;
        let threads = vec![
            spawn_thread("kafka-topics", health, with(&around, move |a| watch.run(&rechecks, a))),
            spawn_thread("kafka-poll", health, with(&around, move |a| poll.run(&judged, a))),
            spawn_thread(
                "decode",
                health,
                with(&around, move |a| decode_loop(&decoders, &decoding, (&decoded, &emptied), a)),
            ),
            spawn_thread("ingest", health, with(&around, move |a| sink_loop(sink, &sinking, a))),
        ];
        Ok(Intake { threads })
    }

    /// Waits until every thread has ended; they do after shutdown was triggered.
    pub fn join(self) {
        for thread in self.threads {
            // A panic has poisoned health already.
            drop(thread.join());
        }
    }
}

fn with<F: FnOnce(&Surroundings) + Send + 'static>(
    around: &Surroundings,
    work: F,
) -> impl FnOnce() + Send + 'static {
    let around = around.clone();
    move || work(&around)
}

fn names(sources: &[Source]) -> BTreeMap<String, String> {
    sources.iter().map(|s| (s.stream.topic.clone(), s.stream.name.clone())).collect()
}

/// The settings of the client; the benches read with the same ones.
pub fn client_config(kafka: &config::Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    // Defaults that a user may override.
    client
        .set("client.id", "viewledger")
        .set("fetch.wait.max.ms", "20")
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.queue.backoff.ms", "10")
        .set("queued.min.messages", "200000")
        .set("queued.max.messages.kbytes", "131072")
        .set("reconnect.backoff.max.ms", "2000")
        .set("socket.keepalive.enable", "true")
        .set("socket.timeout.ms", "30000");
    for (key, value) in &kafka.options {
        client.set(key, value);
    }
    // What exactness depends on.
    client
        .set("bootstrap.servers", &kafka.brokers)
        .set("group.id", &kafka.group_id)
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("check.crcs", "true")
        .set("statistics.interval.ms", "1000")
        .set_log_level(RDKafkaLogLevel::Debug);
    // Tells of topics that were created anew; see `TopicIds`.
    let debug = client.get("debug").map_or_else(|| "metadata".to_owned(), |asked| format!("{asked},metadata"));
    client.set("debug", debug);
    client
}

/// By topic the id under which the consumer fetches it now.
///
/// librdkafka follows a name: when a topic is deleted and created anew it goes on fetching at the old offset, from the
/// new log, and says so nowhere but in its debug log. It logs on the thread that changes the id and before it does,
/// so every record of the new log is polled after `changed` was set.
#[derive(Debug, Default)]
struct TopicIds {
    changed: AtomicBool,
    latest: Mutex<BTreeMap<String, String>>,
}

impl TopicIds {
    fn heard(&self, message: &str) {
        if let Some((topic, id)) = changed_id(message) {
            self.latest.lock().insert(topic.to_owned(), id.to_owned());
            self.changed.store(true, Ordering::Release);
        }
    }
}

/// Topic and new id, from librdkafka's "Topic x changed id from a to b".
fn changed_id(message: &str) -> Option<(&str, &str)> {
    let (_, message) = message.split_once("Topic ")?;
    let (topic, ids) = message.split_once(" changed id from ")?;
    let (_, id) = ids.rsplit_once(" to ")?;
    Some((topic, id.trim()))
}

/// Receives librdkafka's statistics, errors and log.
struct Context {
    status: IntakeStatus,
    /// Topic to stream.
    sources: BTreeMap<String, String>,
    ids: Arc<TopicIds>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.ids.heard(message);
        match level {
            RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::trace!(facility, message, "kafka client");
            }
            _ => tracing::warn!(facility, message, "kafka client"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        for (topic, facts) in &statistics.topics {
            let Some(stream) = self.sources.get(topic) else { continue };
            for partition in facts.partitions.values().filter(|p| p.partition >= 0 && p.ls_offset >= 0) {
                self.status.end(stream, PartitionId(partition.partition), Offset(partition.ls_offset));
            }
        }
        let mut brokers = statistics.brokers.values().filter(|b| b.nodeid >= 0).peekable();
        if brokers.peek().is_some() {
            let any_up = brokers.any(|b| b.state == "UP");
            self.status.unreachable(Witness::Connections, (!any_up).then(|| "no broker is connected".to_owned()));
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                self.status.unreachable(Witness::Connections, Some(reason.to_owned()))
            }
            _ => tracing::warn!(%error, reason, "kafka client"),
        }
    }
}

impl ConsumerContext for Context {}

struct PollLoop {
    consumer: BaseConsumer<Context>,
    sources: Vec<Source>,
    /// The micro-batch being gathered per source, with the time of its first record.
    batches: Vec<(RawBatch, Instant)>,
    /// The next offset expected per source and partition.
    next: BTreeMap<(usize, PartitionId), Offset>,
    /// Where partitions stood when they were stopped: nothing before it is read again.
    left: BTreeMap<(usize, PartitionId), Offset>,
    identities: BTreeMap<usize, TopicIdentity>,
    ids: Arc<TopicIds>,
    out: SyncSender<RawBatch>,
    /// Batches whose room may be used again.
    empty: Receiver<RawBatch>,
    recheck: SyncSender<()>,
    batch_rows_max: usize,
    batch_interval: Duration,
    position_checked: Instant,
    looked: Instant,
}

/// The next stage has ended; so must this one.
struct Closed;

/// Whether the client had more.
enum Polled {
    Record,
    Nothing,
}

impl PollLoop {
    fn run(mut self, judged: &Receiver<TopicEvent>, around: &Surroundings) {
        self.batches = (0..self.sources.len()).map(|_| (RawBatch::default(), Instant::now())).collect();
        while !around.shutdown.is_triggered() {
            while let Ok(event) = judged.try_recv() {
                self.apply(event, &around.status);
            }
            // What is not about a record is done once for many.
            for _ in 0..TURN {
                match self.step(&around.status) {
                    Ok(Polled::Record) => {}
                    Ok(Polled::Nothing) => break,
                    Err(Closed) => return,
                }
            }
        }
    }

    fn step(&mut self, status: &IntakeStatus) -> Result<Polled, Closed> {
        // Waiting asks the clock; most of the time there is no need to wait.
        match self.consumer.poll(Duration::ZERO).or_else(|| self.consumer.poll(POLL)) {
            None => {
                self.compare_positions();
                self.flush_due(status)?;
                Ok(Polled::Nothing)
            }
            Some(Err(error)) => {
                self.failed(&error, status);
                self.flush_due(status)?;
                Ok(Polled::Nothing)
            }
            Some(Ok(message)) => {
                if self.ids.changed.load(Ordering::Acquire) {
                    for source in self.recreated(status) {
                        let left = self.next.extract_if(.., |(of, _), _| *of == source);
                        self.left.extend(left);
                    }
                }
                // The client measures and checks the name at each call.
                let topic = message.topic();
                let Some(source) = self.sources.iter().position(|s| s.stream.topic == topic) else {
                    return Ok(Polled::Record);
                };
                let record = Incoming::new(&message);
                // A partition that was stopped may still have records in the client's queue, and a seek may be
                // answered with records before it: neither belongs to us.
                match self.next.get_mut(&(source, record.partition)) {
                    Some(expected) if record.offset >= *expected => *expected = record.offset.next(),
                    _ => return Ok(Polled::Record),
                }
                let Some((batch, since)) = self.batches.get_mut(source) else { return Ok(Polled::Record) };
                if batch.positions.is_empty() {
                    *since = Instant::now();
                }
                record.add_to(batch);
                let rows = batch.records.len();
                if rows >= self.batch_rows_max {
                    self.flush(source, status)?;
                }
                // The clock is asked once for many records.
                if rows % 256 == 0 && self.looked.elapsed() >= LOOK_INTERVAL {
                    self.looked = Instant::now();
                    // A stream that is busy must not keep the others waiting.
                    self.compare_positions();
                    self.flush_due(status)?;
                }
                Ok(Polled::Record)
            }
        }
    }

    fn apply(&mut self, event: TopicEvent, status: &IntakeStatus) {
        let (source, list, adds) = match &event {
            TopicEvent::Read { source, identity, start } => {
                self.identities.insert(*source, identity.clone());
                (*source, start.iter().map(|(p, o)| (*p, Some(*o))).collect::<Vec<_>>(), true)
            }
            TopicEvent::Stop { source, partitions } => {
                (*source, partitions.iter().map(|p| (*p, None)).collect::<Vec<_>>(), false)
            }
        };
        let Some(stream) = self.sources.get(source).map(|s| Arc::clone(&s.stream)) else { return };
        self.ids.changed.store(true, Ordering::Release);
        let mut assignment = TopicPartitionList::new();
        for (partition, start) in &list {
            let key = (source, *partition);
            let start = start.map(|start| self.left.remove(&key).map_or(start, |left| start.max(left)));
            let offset = start.map_or(rdkafka::Offset::Invalid, |o| rdkafka::Offset::Offset(o.0));
            // Fails only for offsets below zero, which a frontier never holds.
            let _ = assignment.add_partition_offset(&stream.topic, partition.0, offset);
            match start {
                Some(start) => {
                    self.next.insert(key, start);
                }
                None => {
                    if let Some(reached) = self.next.remove(&key) {
                        self.left.insert(key, reached);
                    }
                }
            }
        }
        let result = match adds {
            true => self.consumer.incremental_assign(&assignment),
            false => self.consumer.incremental_unassign(&assignment),
        };
        match result {
            Ok(()) => {
                tracing::info!(
                    stream = stream.name,
                    partitions = list.len(),
                    adds,
                    "partitions assigned or stopped"
                );
            }
            Err(error) => {
                for (partition, start) in list {
                    let reason = format!("cannot be assigned: {error}");
                    status.halt(&stream.name, partition, start.unwrap_or_default(), reason);
                }
            }
        }
    }

    /// Sources whose topic is not the one we were told to read any more; the watch finds out the same and says more.
    fn recreated(&self, status: &IntakeStatus) -> Vec<usize> {
        self.ids.changed.store(false, Ordering::Release);
        let latest = self.ids.latest.lock();
        let mut recreated = Vec::new();
        for (source, entry) in self.sources.iter().enumerate() {
            let (Some(now), Some(told)) = (latest.get(&entry.stream.topic), self.identities.get(&source)) else {
                continue;
            };
            if *now != told.topic_id && self.next.keys().any(|(of, _)| *of == source) {
                status.stream(&entry.stream.name, Some("the topic was created anew; looking at it".into()));
                let _ = self.recheck.try_send(());
                recreated.push(source);
            }
        }
        recreated
    }

    fn failed(&mut self, error: &KafkaError, status: &IntakeStatus) {
        match error.rdkafka_error_code() {
            // The watch finds out which partition it is, and stops it by name.
            Some(
                RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation,
            ) => {
                tracing::error!(%error, "an offset is out of range; looking at all partitions");
                let _ = self.recheck.try_send(());
            }
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure) => {
                status.unreachable(Witness::Connections, Some(error.to_string()));
            }
            _ => tracing::warn!(%error, "kafka poll"),
        }
    }

    /// Moves past offsets that hold no record: control records and aborted transactions.
    fn compare_positions(&mut self) {
        if self.position_checked.elapsed() < POSITION_INTERVAL {
            return;
        }
        self.position_checked = Instant::now();
        let Ok(positions) = self.consumer.position() else { return };
        for element in positions.elements() {
            let rdkafka::Offset::Offset(position) = element.offset() else { continue };
            let (position, partition) = (Offset(position), PartitionId(element.partition()));
            let Some(source) = self.sources.iter().position(|s| s.stream.topic == element.topic()) else {
                continue;
            };
            let Some(expected) = self.next.get_mut(&(source, partition)) else { continue };
            if position > *expected {
                *expected = position;
                if let Some((batch, since)) = self.batches.get_mut(source) {
                    if batch.positions.is_empty() {
                        *since = Instant::now();
                    }
                    batch.positions.insert(partition, position);
                }
            }
        }
        self.commit_for_monitoring();
    }

    /// Tells Kafka how far we are, so that its own tools show a lag. Nobody reads it back.
    fn commit_for_monitoring(&self) {
        let mut list = TopicPartitionList::new();
        for ((source, partition), next) in &self.next {
            if let Some(entry) = self.sources.get(*source) {
                let _ =
                    list.add_partition_offset(&entry.stream.topic, partition.0, rdkafka::Offset::Offset(next.0));
            }
        }
        if list.count() > 0 {
            let _ = self.consumer.commit(&list, rdkafka::consumer::CommitMode::Async);
        }
    }

    fn flush_due(&mut self, status: &IntakeStatus) -> Result<(), Closed> {
        let due: Vec<usize> = self
            .batches
            .iter()
            .enumerate()
            .filter(|(_, (batch, since))| !batch.positions.is_empty() && since.elapsed() >= self.batch_interval)
            .map(|(source, _)| source)
            .collect();
        due.into_iter().try_for_each(|source| self.flush(source, status))
    }

    fn flush(&mut self, source: usize, status: &IntakeStatus) -> Result<(), Closed> {
        let Some((slot, _)) = self.batches.get_mut(source) else { return Ok(()) };
        // The next one will be about as large; growing to that size would copy it many times.
        let (bytes, records) = (slot.bytes.len(), slot.records.len());
        let next = self.empty.try_recv().unwrap_or_else(|_| RawBatch {
            bytes: Vec::with_capacity(bytes + bytes / 8),
            records: Vec::with_capacity((records + records / 8).min(self.batch_rows_max)),
            ..RawBatch::default()
        });
        let mut batch = std::mem::replace(slot, next);
        batch.source = source;
        batch.topic = self.identities.get(&source).cloned();
        if let Some(entry) = self.sources.get(source) {
            for (partition, position) in &batch.positions {
                status.moved(&entry.stream.name, *partition, *position);
            }
        }
        self.out.send(batch).map_err(|_| Closed)
    }
}

/// The parts of a message that are kept.
struct Incoming<'m> {
    partition: PartitionId,
    offset: Offset,
    produced_at: Option<i64>,
    payload: Option<&'m [u8]>,
}

impl<'m> Incoming<'m> {
    fn new(message: &'m BorrowedMessage<'_>) -> Self {
        Self {
            partition: PartitionId(message.partition()),
            offset: Offset(message.offset()),
            produced_at: message.timestamp().to_millis().map(|ms| ms.saturating_mul(1000)),
            payload: message.payload(),
        }
    }

    fn add_to(self, batch: &mut RawBatch) {
        let from = batch.bytes.len();
        batch.bytes.extend_from_slice(self.payload.unwrap_or_default());
        batch.records.push(RawRecord {
            partition: self.partition,
            offset: self.offset,
            produced_at: self.produced_at,
            payload: self.payload.map(|_| from..batch.bytes.len()),
        });
        batch.positions.insert(self.partition, self.offset.next());
    }
}

fn decode_loop(
    decoders: &[Decoder],
    input: &Receiver<RawBatch>,
    (output, emptied): (&SyncSender<Decoded>, &SyncSender<RawBatch>),
    around: &Surroundings,
) {
    for mut batch in input {
        let Some(decoder) = decoders.get(batch.source) else { continue };
        match decoder.decode(&mut batch, around.clock.now()) {
            Ok(decoded) => {
                batch.clear();
                // Where there are enough already, this one goes.
                let _ = emptied.try_send(batch);
                if output.send(decoded).is_err() {
                    return;
                }
            }
            Err(error) => {
                around.health.poison("decode", error);
                return;
            }
        }
    }
}

fn sink_loop(mut sink: Box<dyn Sink>, input: &Receiver<Decoded>, around: &Surroundings) {
    loop {
        let result = match input.recv_timeout(Duration::from_millis(20)) {
            Ok(batch) => sink.accept(batch),
            Err(RecvTimeoutError::Timeout) => sink.idle(),
            Err(RecvTimeoutError::Disconnected) => {
                if let Err(error) = sink.end() {
                    tracing::warn!(%error, "what was read last is not archived: the next start reads it again");
                }
                return;
            }
        };
        if let Err(error) = result {
            if !around.shutdown.is_triggered() {
                around.health.poison("ingest", error);
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_tells_the_new_id_of_a_topic() {
        let message = "[thrd:main]: Topic clicks changed id from AAAAAAAAAAAAAAAAAAAAAA to 4bGx3-q1TQ2W";
        assert_eq!(changed_id(message), Some(("clicks", "4bGx3-q1TQ2W")));
        assert_eq!(changed_id("[thrd:main]: Topic clicks partition 0 Leader 1 Epoch 0"), None);
    }
}
