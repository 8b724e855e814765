//! A small Kafka broker inside the process, for `viewledger demo` and for tests. Not for production: one node, no
//! replication, no authentication, no fsync, nothing is ever expired.
//!
//! It speaks enough of Kafka's protocol for the usual clients: topics with ids, produce (idempotent and
//! transactional), fetch, offsets, consumer groups, and the administration of these. What it stores survives
//! `kill -9`. It listens on loopback only. Unlike a mock it is exact: a fetch returns the batch that holds the
//! asked offset, watermarks are true, aborted records stay invisible to readers of committed data; the same
//! conformance tests run against it and against Apache Kafka.
//!
//! Architecture Invariant: record batches are stored and sent as the client made them. Only the base offset and
//! the leader epoch are written by the broker, and no record is decoded but to answer a look-up by time.
//!
//! | file | what |
//! |---|---|
//! | `<dir>/cluster.json` | the cluster id |
//! | `<dir>/topics/<topic id>/topic.json` | name, number of partitions, settings |
//! | `<dir>/topics/<topic id>/<partition>.log` | record batches, back to back |
//! | `<dir>/topics/<topic id>/<partition>.json` | log start, leader epoch |
//! | `<dir>/transactions.json`, `groups.json` | producer ids and open transactions; committed group offsets |

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub use self::disk::DiskError;
use self::faults::Faults;
use self::node::Node;
pub use self::topics::TopicError;
use crate::runtime::{self, Health, Shutdown};

mod admin;
mod batch;
mod cluster;
mod connection;
mod disk;
mod dispatch;
pub mod faults;
mod fetch;
mod groups;
mod log;
mod membership;
mod node;
mod offsets;
mod produce;
mod producers;
mod rounds;
mod scan;
mod shape;
mod supported;
mod topics;
mod transacting;
mod transactions;
mod wire;

const CONNECTIONS_MAX: usize = 256;
/// How often transactions are checked for their timeout.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before the port is asked for again, or after the system refused a connection.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Where the broker listens and keeps its data.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// Must be a loopback address; port 0 takes any free port.
    pub listen: SocketAddr,
    pub data_dir: PathBuf,
    /// Partitions of a topic that is created by its first use; `None` creates none.
    pub auto_create_partitions: Option<i32>,
}

/// Why the broker did not start or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("the demo broker has no authentication and listens on loopback only, not on {0}; use 127.0.0.1")]
    NotLoopback(SocketAddr),
    #[error("cannot listen on {address}; choose another port")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("another broker uses {path}; stop it or choose another directory", path = .0.display())]
    InUse(PathBuf),
    #[error("the broker's data directory cannot be used")]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error("topic {topic} partition {partition} does not exist")]
    UnknownPartition { topic: String, partition: i32 },
    #[error("the runtime is stopping")]
    Stopping,
}

/// A running broker. It stops with the [`Shutdown`] it was given, not when this handle is dropped.
#[derive(Debug)]
pub struct Broker {
    node: Arc<Node>,
    address: SocketAddr,
    running: watch::Receiver<usize>,
}

impl Broker {
    /// Opens the data directory, or makes it, and listens.
    pub async fn start(config: BrokerConfig, health: Health, shutdown: Shutdown) -> Result<Self, BrokerError> {
        if !config.listen.ip().is_loopback() {
            return Err(BrokerError::NotLoopback(config.listen));
        }
        let BrokerConfig { listen, data_dir, auto_create_partitions } = config;
        let opened = tokio::task::spawn_blocking(move || {
            let lock = lock(&data_dir)?;
            Ok::<_, BrokerError>((lock, Node::open(&data_dir, auto_create_partitions)?))
        });
        let (lock, node) = opened.await.map_err(|_| BrokerError::Stopping)??;
        let refused = |source| BrokerError::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        node.listens_at(address);
        let node = Arc::new(node);
        let running = node.running_count();
        let keeper = Keeper { node: Arc::clone(&node), health, shutdown };
        tracing::info!(%address, cluster = node.cluster_id, "demo broker is listening");
        let expiry = keeper.clone();
        keeper.spawn("broker-transactions", async move { expiry.expire_transactions().await });
        let acceptor = keeper.clone();
        keeper.spawn("broker-accept", async move {
            acceptor.accept(listener, address).await;
            acceptor.until_last().await;
            drop(lock);
        });
        Ok(Self { node, address, running })
    }

    /// What clients take as `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    pub fn cluster_id(&self) -> &str {
        &self.node.cluster_id
    }

    /// Creates a topic unless one of that name exists, whatever its number of partitions.
    pub async fn create_topic(&self, name: &str, partitions: i32) -> Result<(), BrokerError> {
        match self.node.topics.create(name, partitions, BTreeMap::new()) {
            Ok(_) | Err(TopicError::Refused { reason: ResponseError::TopicAlreadyExists, .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Loses the batch that holds `offset` and all after it, and begins a new leader epoch, as an unclean election
    /// does. Returns the new end of the partition.
    pub async fn lose_from(&self, topic: &str, partition: i32, offset: i64) -> Result<i64, BrokerError> {
        let log = self
            .node
            .topics
            .named(topic)
            .and_then(|topic| topic.partition(partition))
            .ok_or_else(|| BrokerError::UnknownPartition { topic: topic.to_owned(), partition })?;
        let lost = log.lock().lose_from(offset);
        self.node.log_changed();
        Ok(lost?)
    }

    /// Switches for tests.
    pub fn faults(&self) -> &Faults {
        &self.node.faults
    }

    /// Completes when, after shutdown, all connections are closed and the data directory is free again.
    pub async fn stopped(mut self) {
        // An error means that the last task is gone, which is what we wait for.
        let _ = self.running.wait_for(|running| *running == 0).await;
    }
}

/// What the broker's own tasks share.
#[derive(Debug, Clone)]
struct Keeper {
    node: Arc<Node>,
    health: Health,
    shutdown: Shutdown,
}

impl Keeper {
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let running = self.node.running();
        runtime::spawn(name, &self.health, async move {
            task.await;
            drop(running);
        });
    }

    async fn accept(&self, listener: TcpListener, address: SocketAddr) {
        let mut listener = listener;
        loop {
            tokio::select! {
                () = self.shutdown.wait() => return,
                () = self.node.faults.until_refusing() => {
                    // Only a closed port makes the system refuse.
                    drop(listener);
                    tokio::select! {
                        () = self.shutdown.wait() => return,
                        bound = self.listen_again(address) => listener = bound,
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.admit(stream, peer),
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                },
            }
        }
    }

    async fn listen_again(&self, address: SocketAddr) -> TcpListener {
        self.node.faults.until_not_refusing().await;
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => return listener,
                Err(error) => {
                    tracing::warn!(%address, %error, "cannot listen again yet");
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        if *self.node.running_count().borrow() >= CONNECTIONS_MAX {
            tracing::warn!(%peer, max = CONNECTIONS_MAX, "turning away a connection: there are too many");
            return;
        }
        let (node, shutdown) = (Arc::clone(&self.node), self.shutdown.clone());
        self.spawn("broker-connection", connection::serve(node, stream, peer, shutdown));
    }

    async fn expire_transactions(&self) {
        loop {
            tokio::select! {
                () = self.shutdown.wait() => return,
                () = tokio::time::sleep(EXPIRY_INTERVAL) => {}
            }
            let expired = self.node.coordinator.lock().abort_expired(self.node.parts());
            match expired {
                Ok(0) => {}
                Ok(_) => self.node.log_changed(),
                Err(error) => tracing::error!(?error, "a transaction that timed out was not aborted"),
            }
        }
    }

    /// Waits until only the caller's own task runs, and nothing is being written.
    async fn until_last(&self) {
        let mut running = self.node.running_count();
        let _ = running.wait_for(|running| *running <= 1).await;
    }
}

/// Two brokers on one directory would write over each other. The system frees the lock of a killed process.
fn lock(data_dir: &Path) -> Result<File, BrokerError> {
    fs::create_dir_all(data_dir).map_err(DiskError::io("create", data_dir))?;
    let path = data_dir.join("broker.lock");
    let file = File::create(&path).map_err(DiskError::io("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(BrokerError::InUse(data_dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(DiskError::io("lock", &path)(error).into()),
    }
}
