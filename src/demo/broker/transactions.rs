//! The coordinator: hands out producer ids and carries transactions from their first partition to their markers.
//!
//! | state | written before | a restart then |
//! |---|---|---|
//! | ongoing | the first record of the transaction is accepted | leaves it open until it ends or times out |
//! | ending | the first marker | writes the missing markers |
//! | ended | the answer to the client | has nothing to do |

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::batch::Marker;
use super::disk::{self, DiskError};
use super::groups::{Committed, Groups};
use super::producers::Outcome;
use super::topics::Topics;

/// Same as Kafka's `transaction.max.timeout.ms`.
const TIMEOUT_MAX_MS: i32 = 900_000;
const TRANSACTIONAL_IDS_MAX: usize = 10_000;

/// Who a producer is: an older epoch of the same id has been fenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProducerIdentity {
    pub(super) id: i64,
    pub(super) epoch: i16,
}

/// Callers hold it behind a mutex, which orders a transaction's appends before its markers.
#[derive(Debug)]
pub(super) struct Coordinator {
    path: PathBuf,
    ledger: Ledger,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Ledger {
    next_producer_id: i64,
    transactions: BTreeMap<String, Transaction>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Transaction {
    producer: ProducerIdentity,
    timeout_ms: i32,
    state: State,
    /// Milliseconds since 1970 of the first partition.
    started_at: i64,
    partitions: BTreeSet<(String, i32)>,
    /// Group offsets that become visible with the commit.
    offsets: Vec<(String, String, i32, Committed)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Idle,
    Ongoing,
    EndingCommit,
    EndingAbort,
    Committed,
    Aborted,
}

/// What ending a transaction touches.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) topics: &'a Topics,
    pub(super) groups: &'a Groups,
    /// Milliseconds since 1970.
    pub(super) now: i64,
}

/// Why the coordinator did not do what it was asked.
#[derive(Debug)]
pub(super) enum CoordinatorError {
    Refused(ResponseError),
    Disk(DiskError),
}

impl From<DiskError> for CoordinatorError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<ResponseError> for CoordinatorError {
    fn from(reason: ResponseError) -> Self {
        Self::Refused(reason)
    }
}

impl CoordinatorError {
    pub(super) fn code(&self) -> i16 {
        match self {
            Self::Refused(reason) => reason.code(),
            Self::Disk(error) => {
                tracing::error!(%error, "the transaction ledger could not be kept");
                ResponseError::CoordinatorNotAvailable.code()
            }
        }
    }
}

impl Coordinator {
    /// Opens the ledger and ends the transactions that a killed process was ending.
    pub(super) fn open(path: PathBuf, parts: Parts<'_>) -> Result<Self, DiskError> {
        let ledger: Ledger = disk::read(&path)?.unwrap_or_default();
        let mut coordinator = Self { path, ledger };
        for transaction in coordinator.ledger.transactions.values_mut() {
            match transaction.state {
                State::EndingCommit => transaction.write_markers(Outcome::Commit, parts)?,
                State::EndingAbort => transaction.write_markers(Outcome::Abort, parts)?,
                State::Idle | State::Ongoing | State::Committed | State::Aborted => continue,
            }
        }
        coordinator.keep()?;
        Ok(coordinator)
    }

    /// A new identity for a producer without transactions.
    pub(super) fn new_producer(&mut self) -> Result<ProducerIdentity, CoordinatorError> {
        let id = self.ledger.next_producer_id;
        self.ledger.next_producer_id = id.saturating_add(1);
        self.keep()?;
        Ok(ProducerIdentity { id, epoch: 0 })
    }

    /// The identity for `name`, with everyone who used it before fenced and their open transaction aborted.
    /// `current` is what the producer believes it is, if it recovers from an error.
    pub(super) fn init(
        &mut self,
        name: &str,
        timeout_ms: i32,
        current: Option<ProducerIdentity>,
        parts: Parts<'_>,
    ) -> Result<ProducerIdentity, CoordinatorError> {
        if name.is_empty() {
            return Err(ResponseError::InvalidRequest.into());
        }
        if !(1..=TIMEOUT_MAX_MS).contains(&timeout_ms) {
            return Err(ResponseError::InvalidTransactionTimeout.into());
        }
        let Some(known) = self.ledger.transactions.get_mut(name) else {
            if self.ledger.transactions.len() >= TRANSACTIONAL_IDS_MAX {
                return Err(ResponseError::PolicyViolation.into());
            }
            let producer = self.new_producer()?;
            self.ledger.transactions.insert(name.to_owned(), Transaction::new(producer, timeout_ms));
            self.keep()?;
            return Ok(producer);
        };
        if current.is_some_and(|current| current != known.producer) {
            return Err(ResponseError::ProducerFenced.into());
        }
        let exhausted = known.producer.epoch == i16::MAX;
        known.producer.epoch = known.producer.epoch.saturating_add(1);
        known.timeout_ms = timeout_ms;
        // The markers carry the new epoch, which fences the old producer in every partition too.
        match known.state {
            State::Ongoing | State::EndingAbort => self.end_ongoing(name, Outcome::Abort, parts)?,
            State::EndingCommit => self.end_ongoing(name, Outcome::Commit, parts)?,
            State::Idle | State::Committed | State::Aborted => {}
        }
        let fresh = match exhausted {
            true => Some(self.new_producer()?),
            false => None,
        };
        let known = self.ledger.transactions.get_mut(name).ok_or(ResponseError::UnknownServerError)?;
        if let Some(fresh) = fresh {
            known.producer = fresh;
        }
        known.state = State::Idle;
        let producer = known.producer;
        self.keep()?;
        Ok(producer)
    }

    /// Makes a partition part of the transaction of `name`, which begins with its first.
    pub(super) fn add_partition(
        &mut self,
        name: &str,
        producer: ProducerIdentity,
        partition: (Uuid, i32),
        now: i64,
    ) -> Result<(), CoordinatorError> {
        let transaction = self.of(name, producer)?;
        transaction.begin(now);
        if transaction.partitions.insert((partition.0.to_string(), partition.1)) {
            self.keep()?;
        }
        Ok(())
    }

    /// Begins the transaction of `name` if it has not begun: group offsets are about to be added.
    pub(super) fn begin(
        &mut self,
        name: &str,
        producer: ProducerIdentity,
        now: i64,
    ) -> Result<(), CoordinatorError> {
        self.of(name, producer)?.begin(now);
        self.keep()?;
        Ok(())
    }

    /// Keeps group offsets until the transaction commits.
    pub(super) fn add_offset(
        &mut self,
        name: &str,
        producer: ProducerIdentity,
        group: &str,
        (topic, partition, committed): (String, i32, Committed),
    ) -> Result<(), CoordinatorError> {
        let transaction = self.of(name, producer)?;
        if transaction.state != State::Ongoing {
            return Err(ResponseError::InvalidTxnState.into());
        }
        transaction.offsets.push((group.to_owned(), topic, partition, committed));
        self.keep()?;
        Ok(())
    }

    /// Whether this producer may write transactional records to the partition now.
    pub(super) fn may_write(
        &self,
        name: &str,
        producer: ProducerIdentity,
        partition: (Uuid, i32),
    ) -> Result<(), ResponseError> {
        let transaction = self.ledger.transactions.get(name).ok_or(ResponseError::InvalidProducerIdMapping)?;
        transaction.check(producer)?;
        let added = transaction.partitions.contains(&(partition.0.to_string(), partition.1));
        match transaction.state == State::Ongoing && added {
            true => Ok(()),
            false => Err(ResponseError::InvalidTxnState),
        }
    }

    /// Ends the transaction of `name`. Asking again for the outcome it had is not an error: the first answer may
    /// have been lost.
    pub(super) fn end(
        &mut self,
        name: &str,
        producer: ProducerIdentity,
        outcome: Outcome,
        parts: Parts<'_>,
    ) -> Result<(), CoordinatorError> {
        match (self.of(name, producer)?.state, outcome) {
            (State::Ongoing, _) => self.end_ongoing(name, outcome, parts),
            (State::Committed, Outcome::Commit) | (State::Aborted, Outcome::Abort) => Ok(()),
            (State::EndingCommit, Outcome::Commit) | (State::EndingAbort, Outcome::Abort) => {
                self.end_ongoing(name, outcome, parts)
            }
            _ => Err(ResponseError::InvalidTxnState.into()),
        }
    }

    /// Aborts transactions whose producer went silent for longer than it said it might, and fences it.
    /// Returns how many there were.
    pub(super) fn abort_expired(&mut self, parts: Parts<'_>) -> Result<usize, CoordinatorError> {
        let expired: Vec<String> = self
            .ledger
            .transactions
            .iter()
            .filter(|(_, transaction)| transaction.is_expired(parts.now))
            .map(|(name, _)| name.clone())
            .collect();
        let count = expired.len();
        for name in expired {
            if let Some(transaction) = self.ledger.transactions.get_mut(&name) {
                transaction.producer.epoch = transaction.producer.epoch.saturating_add(1);
            }
            tracing::info!(transactional_id = name, "aborting a transaction that timed out");
            self.end_ongoing(&name, Outcome::Abort, parts)?;
        }
        Ok(count)
    }

    fn end_ongoing(&mut self, name: &str, outcome: Outcome, parts: Parts<'_>) -> Result<(), CoordinatorError> {
        if let Some(transaction) = self.ledger.transactions.get_mut(name) {
            transaction.state = match outcome {
                Outcome::Commit => State::EndingCommit,
                Outcome::Abort => State::EndingAbort,
            };
        }
        self.keep()?;
        if let Some(transaction) = self.ledger.transactions.get_mut(name) {
            transaction.write_markers(outcome, parts)?;
        }
        self.keep()?;
        Ok(())
    }

    fn of(&mut self, name: &str, producer: ProducerIdentity) -> Result<&mut Transaction, CoordinatorError> {
        let transaction = self.ledger.transactions.get_mut(name).ok_or(ResponseError::InvalidProducerIdMapping)?;
        transaction.check(producer)?;
        Ok(transaction)
    }

    fn keep(&self) -> Result<(), DiskError> {
        disk::write(&self.path, &self.ledger)
    }
}

impl Transaction {
    fn new(producer: ProducerIdentity, timeout_ms: i32) -> Self {
        Self {
            producer,
            timeout_ms,
            state: State::Idle,
            started_at: 0,
            partitions: BTreeSet::new(),
            offsets: Vec::new(),
        }
    }

    fn begin(&mut self, now: i64) {
        if self.state != State::Ongoing {
            self.state = State::Ongoing;
            self.started_at = now;
        }
    }

    fn check(&self, producer: ProducerIdentity) -> Result<(), ResponseError> {
        if self.producer.id != producer.id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        match self.producer.epoch == producer.epoch {
            true => Ok(()),
            false => Err(ResponseError::ProducerFenced),
        }
    }

    fn is_expired(&self, now: i64) -> bool {
        self.state == State::Ongoing && now.saturating_sub(self.started_at) > i64::from(self.timeout_ms)
    }

    fn write_markers(&mut self, outcome: Outcome, parts: Parts<'_>) -> Result<(), DiskError> {
        let ProducerIdentity { id, epoch } = self.producer;
        let marker = Marker { producer_id: id, producer_epoch: epoch, outcome, timestamp: parts.now };
        for (topic, partition) in &self.partitions {
            // A topic that was deleted meanwhile took its part of the transaction with it.
            let topic = Uuid::parse_str(topic).ok().and_then(|id| parts.topics.identified(id));
            if let Some(log) = topic.and_then(|topic| topic.partition(*partition)) {
                log.lock().end_transaction(&marker)?;
            }
        }
        if outcome == Outcome::Commit {
            parts.groups.commit_all(&self.offsets)?;
        }
        self.partitions.clear();
        self.offsets.clear();
        self.state = match outcome {
            Outcome::Commit => State::Committed,
            Outcome::Abort => State::Aborted,
        };
        Ok(())
    }
}
