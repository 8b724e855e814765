//! The embedded broker with the usual client, reduced to what scenarios do with it.

use std::net::SocketAddr;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::{Offset, TopicPartitionList};
use viewledger::demo::broker::{Broker, BrokerConfig};
use viewledger::runtime::{Health, Shutdown};

use crate::world::{PATIENCE, eventually};

/// The topic of the stream `clicks`.
pub const TOPIC: &str = "clicks";

/// A record to be written: partition and value; without a value it is a tombstone.
pub type ToWrite = (i32, Option<Vec<u8>>);

/// A running broker on a directory of its own.
pub struct Kafka {
    pub broker: Broker,
    shutdown: Shutdown,
    _dir: tempfile::TempDir,
}

impl Kafka {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shutdown = Shutdown::default();
        let config = BrokerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: dir.path().to_owned(),
            auto_create_partitions: None,
        };
        let broker = Broker::start(config, Health::default(), shutdown.clone()).await.unwrap();
        Self { broker, shutdown, _dir: dir }
    }

    pub fn bootstrap(&self) -> String {
        self.broker.bootstrap()
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.bootstrap())
            .set("message.max.bytes", "20000000")
            .set("reconnect.backoff.max.ms", "200")
            .set("linger.ms", "1");
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    /// Creates the topic; waits while one of that name is still being deleted.
    pub async fn create_topic(&self, name: &str, partitions: i32) {
        eventually(&format!("topic {name} is created"), async || {
            let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
            match self.admin().create_topics([&topic], &patient()).await.unwrap().remove(0) {
                Ok(_) => Ok(()),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => Err("it exists".into()),
                Err(error) => panic!("topic {name} was not created: {error:?}"),
            }
        })
        .await;
    }

    pub async fn delete_topic(&self, name: &str) {
        self.admin().delete_topics(&[name], &patient()).await.unwrap().remove(0).unwrap();
    }

    pub async fn add_partitions(&self, name: &str, count: usize) {
        let partitions = NewPartitions::new(name, count);
        self.admin().create_partitions([&partitions], &patient()).await.unwrap().remove(0).unwrap();
    }

    /// What retention does: records below `offset` are gone.
    pub async fn delete_records(&self, name: &str, partition: i32, offset: i64) {
        let mut below = TopicPartitionList::new();
        below.add_partition_offset(name, partition, Offset::Offset(offset)).unwrap();
        self.admin().delete_records(&below, &patient()).await.unwrap();
    }

    /// The end of the partition's log: the next offset to be written.
    pub fn end(&self, name: &str, partition: i32) -> i64 {
        let consumer: BaseConsumer = self.client().create().unwrap();
        consumer.fetch_watermarks(name, partition, PATIENCE).unwrap().1
    }

    /// Writes records to [`TOPIC`] in this order; they are acknowledged when it returns.
    pub fn write(&self, records: impl IntoIterator<Item = ToWrite>) {
        self.write_to(TOPIC, records);
    }

    /// As [`Kafka::write`], to any topic.
    pub fn write_to(&self, topic: &str, records: impl IntoIterator<Item = ToWrite>) {
        let writer = self.writer(&[]);
        records.into_iter().for_each(|(partition, value)| send(&writer, topic, partition, value.as_deref()));
        writer.flush(PATIENCE).unwrap();
    }

    pub fn writer(&self, settings: &[(&str, &str)]) -> BaseProducer<Delivered> {
        let mut config = self.client();
        settings.iter().for_each(|(key, value)| {
            config.set(*key, *value);
        });
        config.create_with_context(Delivered).unwrap()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

fn patient() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE))
}

/// Sees to it that every record was acknowledged, or purged with its transaction.
pub struct Delivered;

impl ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, delivery: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = delivery
            && error.rdkafka_error_code() != Some(RDKafkaErrorCode::PurgeQueue)
        {
            panic!("a record for partition {} was not acknowledged: {error}", message.partition());
        }
    }
}

pub fn send(writer: &BaseProducer<Delivered>, topic: &str, partition: i32, value: Option<&[u8]>) {
    let mut record = BaseRecord::<(), [u8]>::to(topic).partition(partition);
    if let Some(value) = value {
        record = record.payload(value);
    }
    loop {
        match writer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                writer.poll(Duration::from_millis(10));
                record = again;
            }
            Err((error, _)) => panic!("a record was not queued: {error}"),
        }
    }
}
