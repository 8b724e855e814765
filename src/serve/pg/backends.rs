//! The open sessions: how many there may be, and whom a cancel request means.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use pgwire::api::cancel::CancelHandler;
use pgwire::api::{ClientInfo, PidSecretKeyGenerator, RandomPidSecretKeyGenerator};
use pgwire::messages::cancel::CancelRequest;
use pgwire::messages::startup::SecretKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Names a session to a cancel request: its number and its secret.
type Key = (i32, Bytes);

/// Every open session of one listener.
#[derive(Debug)]
pub(super) struct Backends {
    numbers: RandomPidSecretKeyGenerator,
    room: Arc<Semaphore>,
    reserved: usize,
    open: Mutex<HashMap<Key, watch::Sender<u64>>>,
}

/// On which places a session has a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    Ordinary,
    Reserved,
}

/// A session's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    backends: Arc<Backends>,
    key: Key,
    _permit: OwnedSemaphorePermit,
}

impl Backends {
    /// The last `reserved` places are for some.
    pub(super) fn new(connections_max: usize, reserved: usize) -> Self {
        Self {
            numbers: RandomPidSecretKeyGenerator::default(),
            room: Arc::new(Semaphore::new(connections_max)),
            reserved,
            open: Mutex::new(HashMap::new()),
        }
    }

    /// Room for one more session, or why there is none.
    pub(super) fn room(&self, claim: Claim) -> Result<OwnedSemaphorePermit, &'static str> {
        if claim == Claim::Ordinary && (1..=self.reserved).contains(&self.room.available_permits()) {
            return Err("remaining connection slots are reserved for roles with privileges of the \
                        \"pg_use_reserved_connections\" role");
        }
        Arc::clone(&self.room).try_acquire_owned().map_err(|_| "sorry, too many clients already")
    }

    /// A number and a secret for a new session.
    pub(super) fn number(&self, client: &dyn ClientInfo) -> (i32, SecretKey) {
        self.numbers.generate(client)
    }

    /// Lets cancel requests find the session until the place is dropped.
    pub(super) fn open(
        self: &Arc<Self>,
        number: i32,
        secret: &SecretKey,
        cancels: watch::Sender<u64>,
        permit: OwnedSemaphorePermit,
    ) -> Place {
        let key = (number, secret.to_bytes());
        self.open.lock().insert(key.clone(), cancels);
        Place { backends: Arc::clone(self), key, _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.backends.open.lock().remove(&self.key);
    }
}

/// Answers cancel requests.
#[derive(Debug)]
pub(super) struct Cancels(pub(super) Arc<Backends>);

#[async_trait]
impl CancelHandler for Cancels {
    async fn on_cancel_request(&self, request: CancelRequest) {
        let key = (request.pid, request.secret_key.to_bytes());
        if let Some(cancels) = self.0.open.lock().get(&key) {
            cancels.send_modify(|count| *count += 1);
        }
    }
}
