//! The usual client, reduced to what the suite asks of it. Nothing here waits without a deadline.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// Settings on top of the defaults.
pub type Settings = &'static [(&'static str, &'static str)];

pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

pub fn config(bootstrap: &str, settings: Settings) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    for (key, value) in settings {
        config.set(*key, *value);
    }
    config
}

pub fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    config(bootstrap, &[]).create().unwrap()
}

pub fn patient() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

/// A new topic, ready for use.
pub async fn create_topic(bootstrap: &str, prefix: &str, partitions: i32) -> String {
    let name = unique(prefix);
    create_named(bootstrap, &name, partitions, &[]).await;
    name
}

/// Keeps trying while a topic of this name is still being deleted.
pub async fn create_named(bootstrap: &str, name: &str, partitions: i32, settings: Settings) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        match admin(bootstrap).create_topics([&topic], &patient()).await.unwrap().remove(0) {
            Ok(_) => return,
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) if Instant::now() < deadline => {}
            Err(error) => panic!("topic {name} was not created: {error:?}"),
        }
    }
}

/// What became of each record: its number and offset.
#[derive(Clone, Default)]
pub struct Deliveries(Arc<Mutex<Vec<(u64, i64)>>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, delivery: &DeliveryResult<'_>, (): ()) {
        match delivery {
            Ok(message) => self.0.lock().unwrap().push((number(message), message.offset())),
            // Aborting a transaction purges what was not sent; nothing else may fail.
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::PurgeQueue), _)) => {}
            Err((error, _)) => panic!("a record was not delivered: {error}"),
        }
    }
}

pub struct Writer {
    pub producer: BaseProducer<Deliveries>,
    deliveries: Deliveries,
}

impl Writer {
    pub fn new(bootstrap: &str, settings: Settings) -> Self {
        let mut config = config(bootstrap, settings);
        if config.get("linger.ms").is_none() {
            config.set("linger.ms", "20");
        }
        Self::of(&config)
    }

    pub fn of(config: &ClientConfig) -> Self {
        let deliveries = Deliveries::default();
        let producer = config.create_with_context(deliveries.clone()).unwrap();
        Self { producer, deliveries }
    }

    pub fn send(&self, topic: &str, partition: i32, number: u64) {
        self.send_at(topic, partition, number, None);
    }

    pub fn send_at(&self, topic: &str, partition: i32, number: u64, timestamp: Option<i64>) {
        let payload = format!("{number:0>40}");
        let mut record = BaseRecord::<(), _>::to(topic).partition(partition).payload(&payload);
        if let Some(timestamp) = timestamp {
            record = record.timestamp(timestamp);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.producer.send(record) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    assert!(Instant::now() < deadline, "the queue stays full");
                    self.producer.poll(Duration::from_millis(10));
                    record = again;
                }
                Err((error, _)) => panic!("a record was not queued: {error}"),
            }
        }
    }

    /// How many records were delivered since the last flush.
    pub fn delivered(&self) -> usize {
        self.deliveries.0.lock().unwrap().len()
    }

    /// Number and offset of every record delivered since the last call.
    pub fn flush(&self) -> Vec<(u64, i64)> {
        self.producer.flush(PATIENCE).unwrap();
        std::mem::take(&mut self.deliveries.0.lock().unwrap())
    }
}

/// Writes records with these numbers; returns them with their offsets.
pub fn produce(
    bootstrap: &str,
    topic: &str,
    partition: i32,
    numbers: std::ops::Range<u64>,
    settings: Settings,
) -> Vec<(u64, i64)> {
    let writer = Writer::new(bootstrap, settings);
    for number in numbers {
        writer.send(topic, partition, number);
    }
    writer.flush()
}

pub fn number(message: &impl Message) -> u64 {
    message.payload_view::<str>().unwrap().unwrap().parse().unwrap()
}

pub const COMMITTED: Settings = &[("isolation.level", "read_committed")];
pub const UNCOMMITTED: Settings = &[("isolation.level", "read_uncommitted")];

/// A consumer of one partition from `from` on, which never resets its position by itself.
pub fn reader(bootstrap: &str, topic: &str, partition: i32, from: Offset, settings: Settings) -> BaseConsumer {
    let mut config = config(bootstrap, settings);
    config
        .set("group.id", unique("reader"))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, from).unwrap();
    consumer.assign(&assignment).unwrap();
    consumer
}

/// Reads to the end of the partition: (offset, number) in order.
pub fn read_to_end(consumer: &BaseConsumer) -> Result<Vec<(i64, u64)>, KafkaError> {
    let deadline = Instant::now() + PATIENCE;
    let mut records = Vec::new();
    loop {
        assert!(Instant::now() < deadline, "the end was not reached; {} records so far", records.len());
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => records.push((message.offset(), number(&message))),
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(records),
            Some(Err(error)) if is_passing(&error) => {}
            Some(Err(error)) => return Err(error),
            None => {}
        }
    }
}

/// Errors that the client reports and gets over by itself.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}

/// Reads a whole partition from its start.
pub fn read_all(bootstrap: &str, topic: &str, partition: i32, settings: Settings) -> Vec<(i64, u64)> {
    read_to_end(&reader(bootstrap, topic, partition, Offset::Beginning, settings)).unwrap()
}

pub fn position(consumer: &BaseConsumer) -> Offset {
    consumer.position().unwrap().elements().first().unwrap().offset()
}

pub fn watermarks(bootstrap: &str, topic: &str, partition: i32) -> (i64, i64) {
    let consumer: BaseConsumer = config(bootstrap, &[]).create().unwrap();
    consumer.fetch_watermarks(topic, partition, PATIENCE).unwrap()
}
