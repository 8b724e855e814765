//! The state that all connections share.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use kafka_protocol::messages::BrokerId;
use kafka_protocol::protocol::StrBytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::disk::{self, DiskError};
use super::faults::Faults;
use super::groups::Groups;
use super::membership::Memberships;
use super::topics::Topics;
use super::transactions::{Coordinator, Parts};
use crate::runtime::{Clock, SystemClock};

/// The only broker of its cluster.
pub(super) const NODE_ID: BrokerId = BrokerId(1);

#[derive(Debug)]
pub(super) struct Node {
    pub(super) cluster_id: String,
    pub(super) topics: Topics,
    pub(super) groups: Groups,
    pub(super) memberships: Memberships,
    pub(super) coordinator: Mutex<Coordinator>,
    pub(super) faults: Arc<Faults>,
    pub(super) auto_create_partitions: Option<i32>,
    /// Changes whenever a log does: waiting fetches look again.
    logs_changed: watch::Sender<()>,
    /// How much is being done: tasks, and writes that outlive the task that asked for them.
    running: Arc<watch::Sender<usize>>,
    address: OnceLock<SocketAddr>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    cluster_id: String,
}

impl Node {
    /// Opens the data directory, or makes a new cluster of it.
    pub(super) fn open(directory: &Path, auto_create_partitions: Option<i32>) -> Result<Self, DiskError> {
        let identity_path = directory.join("cluster.json");
        let identity = match disk::read(&identity_path)? {
            Some(identity) => identity,
            None => {
                let identity = Identity { cluster_id: Uuid::new_v4().simple().to_string() };
                disk::write(&identity_path, &identity)?;
                identity
            }
        };
        let topics = Topics::open(directory.join("topics"))?;
        let groups = Groups::open(directory.join("groups.json"))?;
        let parts = Parts { topics: &topics, groups: &groups, now: now_ms() };
        let coordinator = Coordinator::open(directory.join("transactions.json"), parts)?;
        Ok(Self {
            cluster_id: identity.cluster_id,
            topics,
            groups,
            memberships: Memberships::default(),
            coordinator: Mutex::new(coordinator),
            faults: Arc::default(),
            auto_create_partitions,
            logs_changed: watch::Sender::new(()),
            running: Arc::new(watch::Sender::new(0)),
            address: OnceLock::new(),
        })
    }

    /// Where clients find this node; set once the port is known.
    pub(super) fn listens_at(&self, address: SocketAddr) {
        let _ = self.address.set(address);
    }

    pub(super) fn host(&self) -> StrBytes {
        let host = self.address.get().map_or_else(String::new, |address| address.ip().to_string());
        StrBytes::from_string(host)
    }

    pub(super) fn port(&self) -> i32 {
        self.address.get().map_or(0, |address| i32::from(address.port()))
    }

    /// What the end of a transaction touches, at this moment.
    pub(super) fn parts(&self) -> Parts<'_> {
        Parts { topics: &self.topics, groups: &self.groups, now: now_ms() }
    }

    /// Marks a piece of work for as long as the mark lives. The data directory is free only when there is none.
    pub(super) fn running(&self) -> Running {
        self.running.send_modify(|running| *running += 1);
        Running(Arc::clone(&self.running))
    }

    /// How many marks there are, and will be.
    pub(super) fn running_count(&self) -> watch::Receiver<usize> {
        self.running.subscribe()
    }

    /// Wakes waiting fetches.
    pub(super) fn log_changed(&self) {
        self.logs_changed.send_replace(());
    }

    /// A receiver that sees every later change.
    pub(super) fn log_changes(&self) -> watch::Receiver<()> {
        self.logs_changed.subscribe()
    }
}

/// A mark that something runs, even if it panics.
#[derive(Debug)]
pub(super) struct Running(Arc<watch::Sender<usize>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running = running.saturating_sub(1));
    }
}

/// Milliseconds since 1970, as Kafka counts.
pub(super) fn now_ms() -> i64 {
    SystemClock.now() / 1_000
}
