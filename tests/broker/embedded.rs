//! What only the embedded broker can show: faults on demand, and restarts on the same directory.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kafka_protocol::messages::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use kafka_protocol::messages::{ApiVersionsRequest, OffsetForLeaderEpochRequest};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::Producer;
use rdkafka::{Offset, TopicPartitionList};
use viewledger::demo::broker::faults::{Availability, Dropped};
use viewledger::demo::broker::{Broker, BrokerConfig, BrokerError};
use viewledger::runtime::{Health, Shutdown};

use crate::client::{
    COMMITTED, PATIENCE, Settings, UNCOMMITTED, Writer, config, create_topic, produce, read_all, read_to_end,
    reader, unique, watermarks,
};
use crate::raw::{Raw, topic_name};

/// A broker on a directory of its own, on a free port.
pub struct Running {
    pub broker: Broker,
    directory: tempfile::TempDir,
    health: Health,
    shutdown: Shutdown,
}

impl Running {
    pub async fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap()).await
    }

    async fn on(directory: tempfile::TempDir) -> Self {
        Self::at(directory, 0).await
    }

    async fn at(directory: tempfile::TempDir, port: u16) -> Self {
        let (health, shutdown) = (Health::default(), Shutdown::default());
        let config = config_on(directory.path(), port);
        let broker = Broker::start(config, health.clone(), shutdown.clone()).await.unwrap();
        Self { broker, directory, health, shutdown }
    }

    /// Stops the broker and checks that nothing of it broke.
    pub async fn stop(self) -> tempfile::TempDir {
        self.shutdown.trigger();
        tokio::time::timeout(PATIENCE, self.broker.stopped()).await.expect("the broker does not stop");
        assert_eq!(self.health.failures(), Vec::<String>::new());
        self.directory
    }

    async fn restarted(self) -> Self {
        Self::on(self.stop().await).await
    }

    fn bootstrap(&self) -> String {
        self.broker.bootstrap()
    }

    async fn log_file(&self, topic: &str, partition: i32) -> PathBuf {
        let id = Raw::connect(&self.bootstrap()).await.topic(topic).await.topic_id;
        self.directory.path().join("topics").join(id.to_string()).join(format!("{partition}.log"))
    }
}

pub fn config_on(directory: &Path, port: u16) -> BrokerConfig {
    BrokerConfig {
        listen: SocketAddr::from(([127, 0, 0, 1], port)),
        data_dir: directory.to_owned(),
        auto_create_partitions: None,
    }
}

fn numbers(records: Vec<(i64, u64)>) -> Vec<u64> {
    records.into_iter().map(|(_, number)| number).collect()
}

/// Retries are quick, so that dropped answers are met within a test's patience.
const IDEMPOTENT: Settings = &[("enable.idempotence", "true"), ("retry.backoff.ms", "10"), ("linger.ms", "0")];
const NOT_IDEMPOTENT: Settings = &[("enable.idempotence", "false"), ("retry.backoff.ms", "10"), ("linger.ms", "0")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotent_producer_writes_once_when_answers_are_lost() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "lost-answers", 1).await;
    running.broker.faults().drop_answers(Dropped::Produce, 5);
    produce(&running.bootstrap(), &topic, 0, 0..1_000, IDEMPOTENT);
    assert_eq!(running.broker.faults().answers_to_drop(Dropped::Produce), 0, "no answer was dropped");
    let read = read_all(&running.bootstrap(), &topic, 0, COMMITTED);
    assert_eq!(read, (0..1_000).zip(0..1_000).collect::<Vec<_>>());
    running.stop().await;
}

/// The control of the test above: without sequence numbers the same fault makes duplicates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_producer_writes_twice_when_answers_are_lost() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "duplicates", 1).await;
    running.broker.faults().drop_answers(Dropped::Produce, 5);
    produce(&running.bootstrap(), &topic, 0, 0..1_000, NOT_IDEMPOTENT);
    let mut read = numbers(read_all(&running.bootstrap(), &topic, 0, COMMITTED));
    assert!(read.len() > 1_000, "{} records", read.len());
    read.sort_unstable();
    read.dedup();
    assert_eq!(read, (0..1_000).collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_fetch_answers_are_fetched_again() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "lost-fetches", 1).await;
    produce(&running.bootstrap(), &topic, 0, 0..1_000, &[]);
    running.broker.faults().drop_answers(Dropped::Fetch, 2);
    let settings: Settings = &[("reconnect.backoff.ms", "10"), ("reconnect.backoff.max.ms", "50")];
    let read = read_all(&running.bootstrap(), &topic, 0, settings);
    assert_eq!(running.broker.faults().answers_to_drop(Dropped::Fetch), 0, "no answer was dropped");
    assert_eq!(read, (0..1_000).zip(0..1_000).collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "kept", 2).await;
    produce(&running.bootstrap(), &topic, 0, 0..500, &[]);
    let mut below = TopicPartitionList::new();
    below.add_partition_offset(&topic, 0, Offset::Offset(123)).unwrap();
    crate::client::admin(&running.bootstrap()).delete_records(&below, &crate::client::patient()).await.unwrap();
    let group = unique("group");
    let mut position = TopicPartitionList::new();
    position.add_partition_offset(&topic, 0, Offset::Offset(200)).unwrap();
    in_group(&running.bootstrap(), &group).commit(&position, CommitMode::Sync).unwrap();
    let writer_name = unique("writer");
    let writer = transactional(&running.bootstrap(), &writer_name);
    in_transaction(&writer, &topic, 1, 0..5);
    writer.producer.abort_transaction(PATIENCE).unwrap();
    in_transaction(&writer, &topic, 1, 5..10);
    writer.producer.commit_transaction(PATIENCE).unwrap();
    drop(writer);
    let before = Raw::connect(&running.bootstrap()).await.metadata().await;

    let running = running.restarted().await;
    let after = Raw::connect(&running.bootstrap()).await.metadata().await;
    assert_eq!(after.cluster_id, before.cluster_id);
    assert_eq!(after.topics, before.topics, "ids, partitions and leader epochs");
    assert_eq!(watermarks(&running.bootstrap(), &topic, 0), (123, 500));
    let read = read_all(&running.bootstrap(), &topic, 0, COMMITTED);
    assert_eq!(read, (123..500).zip(123..500).collect::<Vec<_>>());
    let transacted = read_all(&running.bootstrap(), &topic, 1, COMMITTED);
    assert_eq!(transacted, (6..11).zip(5..10).collect::<Vec<_>>());
    let committed = in_group(&running.bootstrap(), &group).committed_offsets(position, PATIENCE).unwrap();
    assert_eq!(committed.elements()[0].offset(), Offset::Offset(200));
    assert_eq!(produce(&running.bootstrap(), &topic, 0, 500..501, &[]), vec![(500, 500)]);
    running.stop().await;
}

/// Stopping in good order cuts requests off too; none may be half done or done twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_load_lose_and_repeat_nothing() {
    const RESTARTS: u64 = 3;
    let mut running = Running::new().await;
    let bootstrap = running.bootstrap();
    let port = bootstrap.parse::<SocketAddr>().unwrap().port();
    let topic = create_topic(&bootstrap, "load", 1).await;
    let settings: Settings = &[
        ("enable.idempotence", "true"),
        ("retry.backoff.ms", "10"),
        ("reconnect.backoff.ms", "10"),
        ("reconnect.backoff.max.ms", "50"),
        ("queue.buffering.max.messages", "20000"),
    ];
    let stop = Arc::new(AtomicBool::new(false));
    let writing = {
        let (bootstrap, topic, stop) = (bootstrap.clone(), topic.clone(), Arc::clone(&stop));
        tokio::task::spawn_blocking(move || {
            let writer = Writer::new(&bootstrap, settings);
            let mut next = 0;
            while !stop.load(Ordering::SeqCst) {
                writer.send(&topic, 0, next);
                next += 1;
            }
            assert_eq!(writer.flush().len(), usize::try_from(next).unwrap());
            next
        })
    };
    for _ in 0..RESTARTS {
        running = Running::at(running.stop().await, port).await;
        let reached = watermarks(&bootstrap, &topic, 0).1;
        let deadline = Instant::now() + PATIENCE;
        while watermarks(&bootstrap, &topic, 0).1 == reached {
            assert!(Instant::now() < deadline, "nothing is written after a restart");
        }
    }
    stop.store(true, Ordering::SeqCst);
    let written = writing.await.unwrap();
    let read = read_all(&bootstrap, &topic, 0, COMMITTED);
    assert_eq!(read.len(), usize::try_from(written).unwrap());
    assert!(read.into_iter().eq((0..).zip(0..written)), "records are lost, repeated or out of order");
    running.stop().await;
}

fn in_group(bootstrap: &str, group: &str) -> BaseConsumer {
    let mut config = config(bootstrap, &[]);
    config.set("group.id", group).create().unwrap()
}

fn transactional(bootstrap: &str, name: &str) -> Writer {
    let mut config = config(bootstrap, &[("linger.ms", "5")]);
    config.set("transactional.id", name);
    let writer = Writer::of(&config);
    writer.producer.init_transactions(PATIENCE).unwrap();
    writer
}

fn in_transaction(writer: &Writer, topic: &str, partition: i32, numbers: std::ops::Range<u64>) {
    writer.producer.begin_transaction().unwrap();
    for number in numbers {
        writer.send(topic, partition, number);
    }
    writer.flush();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_left_open_by_a_restart_is_aborted_by_its_successor() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "left-open", 1).await;
    let name = unique("writer");
    let writer = transactional(&running.bootstrap(), &name);
    in_transaction(&writer, &topic, 0, 0..5);
    let running = running.restarted().await;
    produce(&running.bootstrap(), &topic, 0, 5..8, &[]);
    assert_eq!(read_all(&running.bootstrap(), &topic, 0, COMMITTED), vec![], "still open");
    let successor = transactional(&running.bootstrap(), &name);
    assert_eq!(numbers(read_all(&running.bootstrap(), &topic, 0, COMMITTED)), vec![5, 6, 7]);
    drop((writer, successor));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_transaction_times_out() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "silent", 1).await;
    let mut config = config(&running.bootstrap(), &[("linger.ms", "5"), ("transaction.timeout.ms", "1000")]);
    config.set("message.timeout.ms", "1000").set("transactional.id", unique("writer"));
    let writer = Writer::of(&config);
    writer.producer.init_transactions(PATIENCE).unwrap();
    in_transaction(&writer, &topic, 0, 0..5);
    produce(&running.bootstrap(), &topic, 0, 5..8, &[]);
    let deadline = Instant::now() + PATIENCE;
    while numbers(read_all(&running.bootstrap(), &topic, 0, COMMITTED)) != [5, 6, 7] {
        assert!(Instant::now() < deadline, "the transaction stays open");
    }
    assert!(writer.producer.commit_transaction(PATIENCE).is_err(), "the silent producer was not fenced");
    drop(writer);
    running.stop().await;
}

/// What a process killed in the middle of a write leaves behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_was_cut_off_is_dropped() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "cut-off", 1).await;
    produce(&running.bootstrap(), &topic, 0, 0..100, &[]);
    let path = running.log_file(&topic, 0).await;
    let mut running = running;
    for kept in [1, 12, 60, 61, 100] {
        let directory = running.stop().await;
        let whole = std::fs::read(&path).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&whole[..kept]).unwrap();
        running = Running::on(directory).await;
        assert_eq!(watermarks(&running.bootstrap(), &topic, 0), (0, 100), "{kept} bytes of a batch");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), u64::try_from(whole.len()).unwrap());
    }
    assert_eq!(produce(&running.bootstrap(), &topic, 0, 100..101, &[]), vec![(100, 100)]);
    assert_eq!(numbers(read_all(&running.bootstrap(), &topic, 0, COMMITTED)), (0..101).collect::<Vec<_>>());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_tail_is_seen_as_a_truncation() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "truncated", 1).await;
    for number in 0..20 {
        produce(&running.bootstrap(), &topic, 0, number..number + 1, &[]);
    }
    let quick: Settings = &[("topic.metadata.refresh.interval.ms", "200"), ("isolation.level", "read_committed")];
    let consumer = reader(&running.bootstrap(), &topic, 0, Offset::Beginning, quick);
    assert_eq!(read_to_end(&consumer).unwrap().len(), 20);

    assert_eq!(running.broker.lose_from(&topic, 0, 12).await.unwrap(), 12);
    assert_eq!(watermarks(&running.bootstrap(), &topic, 0), (0, 12));
    // The offsets are given again, to other records: only the leader epoch tells.
    for number in 100..130 {
        produce(&running.bootstrap(), &topic, 0, number..number + 1, &[]);
    }
    let mut raw = Raw::connect(&running.bootstrap()).await;
    assert_eq!(raw.topic(&topic).await.partitions[0].leader_epoch, 1);
    assert_eq!(epoch_end(&mut raw, &topic, 0).await, (0, 12));
    assert_eq!(epoch_end(&mut raw, &topic, 1).await, (1, 42));
    // The client says that the position has no valid place any more, as for an offset out of range.
    let deadline = Instant::now() + PATIENCE;
    loop {
        match consumer.poll(Duration::from_millis(50)) {
            Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => break,
            Some(Ok(message)) => panic!("record {} of another history", crate::client::number(&message)),
            _ => assert!(Instant::now() < deadline, "the truncation is not noticed"),
        }
    }
    let read = numbers(read_all(&running.bootstrap(), &topic, 0, UNCOMMITTED));
    assert_eq!(read, (0..12).chain(100..130).collect::<Vec<_>>());

    let running = running.restarted().await;
    let mut raw = Raw::connect(&running.bootstrap()).await;
    assert_eq!(epoch_end(&mut raw, &topic, 0).await, (0, 12), "epochs are read back from the log");
    running.stop().await;
}

async fn epoch_end(raw: &mut Raw, topic: &str, epoch: i32) -> (i32, i64) {
    let partition = OffsetForLeaderPartition::default().with_current_leader_epoch(-1).with_leader_epoch(epoch);
    let topic = OffsetForLeaderTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]);
    let request = OffsetForLeaderEpochRequest::default().with_replica_id((-1).into()).with_topics(vec![topic]);
    let answer = raw.ask(4, &request).await;
    let partition = &answer.topics[0].partitions[0];
    assert_eq!(partition.error_code, 0);
    (partition.leader_epoch, partition.end_offset)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_broker_answers_nothing_until_it_serves_again() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "stalled", 1).await;
    let mut raw = Raw::connect(&running.bootstrap()).await;
    raw.topic(&topic).await;
    running.broker.faults().set_availability(Availability::Stalled);
    assert!(tokio::time::timeout(Duration::from_millis(300), raw.topic(&topic)).await.is_err());
    let writer = Writer::new(&running.bootstrap(), &[]);
    writer.send(&topic, 0, 0);
    running.broker.faults().set_availability(Availability::Serving);
    assert_eq!(writer.flush(), vec![(0, 0)]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_broker_closes_its_port_and_opens_it_again() {
    let running = Running::new().await;
    let topic = create_topic(&running.bootstrap(), "refused", 1).await;
    let mut raw = Raw::connect(&running.bootstrap()).await;
    running.broker.faults().set_availability(Availability::Refusing);
    assert!(tokio::time::timeout(PATIENCE, raw.is_closed()).await.unwrap(), "open connections are cut");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match tokio::net::TcpStream::connect(running.bootstrap()).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => break,
            _ => assert!(Instant::now() < deadline, "connections are not refused"),
        }
    }
    running.broker.faults().set_availability(Availability::Serving);
    produce(&running.bootstrap(), &topic, 0, 0..10, &[]);
    assert_eq!(read_all(&running.bootstrap(), &topic, 0, COMMITTED).len(), 10);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_closes_that_connection_only() {
    let running = Running::new().await;
    let garbage: [&[u8]; 8] = [
        b"",
        b"\0\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\x03\0\x0c\0\0\0\0\xff\xff\0\x05",
        b"\0\x00\0\x63\0\0\0\0\xff\xff",
        // Lists of four thousand million topics: nobody may reserve memory for them.
        b"\0\x03\0\x0c\0\0\0\0\xff\xff\0\xff\xff\xff\xff\x0f",
        b"\0\x03\0\x01\0\0\0\0\xff\xff\x7f\xff\xff\xff",
        b"\x7f\xff\0\x00\0\0\0\0\xff\xff",
    ];
    for frame in garbage {
        let mut raw = Raw::connect(&running.bootstrap()).await;
        raw.send_frame(frame).await;
        assert!(tokio::time::timeout(PATIENCE, raw.is_closed()).await.unwrap(), "{frame:?}");
    }
    let mut raw = Raw::connect(&running.bootstrap()).await;
    let known = raw.ask(3, &ApiVersionsRequest::default()).await;
    assert!(known.api_keys.len() > 20);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_from_the_future_is_told_what_is_known() {
    let running = Running::new().await;
    let mut raw = Raw::connect(&running.bootstrap()).await;
    // Kind 18, version 99: answered in version 0 with error 35.
    raw.send_frame(b"\0\x12\0\x63\0\0\0\x07\xff\xff").await;
    let answer = raw.receive::<ApiVersionsRequest>(0).await;
    assert_eq!(answer.error_code, 35);
    assert!(answer.api_keys.len() > 20);
    running.stop().await;
}

#[tokio::test]
async fn only_loopback_is_listened_on() {
    let directory = tempfile::tempdir().unwrap();
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let config = BrokerConfig { listen: everywhere, ..config_on(directory.path(), 0) };
    let refused = Broker::start(config, Health::default(), Shutdown::default()).await;
    assert!(matches!(refused, Err(BrokerError::NotLoopback(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_belongs_to_one_broker() {
    let running = Running::new().await;
    let config = config_on(running.directory.path(), 0);
    let second = Broker::start(config, Health::default(), Shutdown::default()).await;
    assert!(matches!(second, Err(BrokerError::InUse(_))));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_created_once_by_hand_and_on_first_use_when_allowed() {
    let (directory, health, shutdown) = (tempfile::tempdir().unwrap(), Health::default(), Shutdown::default());
    let config = BrokerConfig { auto_create_partitions: Some(3), ..config_on(directory.path(), 0) };
    let broker = Broker::start(config, health, shutdown.clone()).await.unwrap();
    broker.create_topic("by-hand", 2).await.unwrap();
    let mut raw = Raw::connect(&broker.bootstrap()).await;
    let first = raw.topic("by-hand").await;
    broker.create_topic("by-hand", 5).await.unwrap();
    assert_eq!(raw.topic("by-hand").await, first);
    produce(&broker.bootstrap(), "by-use", 2, 0..10, &[]);
    assert_eq!(raw.topic("by-use").await.partitions.len(), 3);
    assert!(broker.create_topic("no/such name", 1).await.is_err());
    shutdown.trigger();
    broker.stopped().await;
}
