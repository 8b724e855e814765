//! The broker under the test: the embedded one, or a real Kafka where `VIEWLEDGER_TEST_KAFKA` names it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use viewledger::demo::broker::{Broker, BrokerConfig};
use viewledger::runtime::{Health, Shutdown};

/// The topic under load.
pub(crate) const TOPIC: &str = "video-views";
/// All declared streams need their topic.
pub(crate) const TOPICS: [(&str, i32); 3] = [(TOPIC, 6), ("ad-views", 1), ("user-sessions", 1)];

/// Set by `tests/kafka/with-kafka.sh` to `host:port`.
const REAL_KAFKA: &str = "VIEWLEDGER_TEST_KAFKA";
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) enum TestBroker {
    Embedded { broker: Broker, shutdown: Shutdown },
    Kafka { bootstrap: String },
}

impl TestBroker {
    /// The real Kafka if one is named, else an embedded broker whose files live in `dir`.
    pub(crate) async fn start(dir: &Path) -> TestBroker {
        if let Ok(bootstrap) = std::env::var(REAL_KAFKA) {
            return TestBroker::Kafka { bootstrap };
        }
        let shutdown = Shutdown::default();
        let config = BrokerConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            data_dir: dir.join("broker"),
            auto_create_partitions: None,
        };
        let broker = Broker::start(config, Health::default(), shutdown.clone())
            .await
            .expect("the embedded broker starts in an empty directory");
        TestBroker::Embedded { broker, shutdown }
    }

    pub(crate) fn bootstrap(&self) -> String {
        match self {
            TestBroker::Embedded { broker, .. } => broker.bootstrap().to_string(),
            TestBroker::Kafka { bootstrap } => bootstrap.clone(),
        }
    }

    /// Creates each (topic, partitions) anew: a real Kafka may hold one of that name from an earlier test.
    pub(crate) async fn recreate_topics(&self, topics: &[(&str, i32)]) {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", self.bootstrap())
            .create()
            .expect("a client needs only a bootstrap address");
        let options = AdminOptions::new().operation_timeout(Some(PATIENCE)).request_timeout(Some(PATIENCE));
        if let TestBroker::Kafka { .. } = self {
            let names: Vec<&str> = topics.iter().map(|(name, _)| *name).collect();
            for outcome in admin.delete_topics(&names, &options).await.expect("the broker answers") {
                match outcome {
                    Ok(_) | Err((_, RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                    Err((topic, code)) => panic!("cannot delete topic {topic}: {code}"),
                }
            }
        }
        for (name, partitions) in topics {
            create(&admin, &options, name, *partitions).await;
        }
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        if let TestBroker::Embedded { shutdown, .. } = self {
            shutdown.trigger();
        }
    }
}

/// Creates one topic. Kafka deletes in the background, so a topic of the same name may exist for a moment more.
async fn create(admin: &AdminClient<DefaultClientContext>, options: &AdminOptions, name: &str, partitions: i32) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let mut outcomes = admin.create_topics([&topic], options).await.expect("the broker answers");
        match outcomes.pop().expect("one outcome for one topic") {
            Ok(_) => return,
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err((topic, code)) => panic!("cannot create topic {topic}: {code}"),
        }
    }
}
