//! Fetch: stored batches go out as they are.
//!
//! A fetch first plans what it may read (cheap, under the logs' locks), waits for more if that is too little,
//! then reads without holding anything.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{FetchRequest, FetchResponse, TopicName};
use tokio::time::Instant;
use uuid::Uuid;

use super::log::{Bounds, Section};
use super::node::Node;
use super::offsets::check_leader_epoch;
use super::producers::Aborted;
use super::topics::Topic;
use super::wire::{Envelope, RequestError, off_runtime};

/// Most that one answer carries, whatever the client allows.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Reads up to this size are done on the runtime: moving them elsewhere would cost more.
const INLINE_BYTES_MAX: u64 = 64 * 1024;
const WAIT_MAX: Duration = Duration::from_secs(300);
/// Isolation level of a reader of committed data.
const READ_COMMITTED: i8 = 1;

/// Answers with whole batches, at once when there are any, else when there are or the client's wait is over.
pub(super) async fn fetch(
    node: &Arc<Node>,
    request: FetchRequest,
    envelope: &Envelope,
) -> Result<Bytes, RequestError> {
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(WAIT_MAX);
    let deadline = Instant::now() + wait;
    let bytes_min = u64::try_from(request.min_bytes).unwrap_or(0);
    let mut changes = node.log_changes();
    let plan = loop {
        changes.borrow_and_update();
        let plan = Plan::of(node, &request);
        if plan.has_errors || plan.bytes >= bytes_min {
            break plan;
        }
        match tokio::time::timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => break plan,
        }
    };
    if plan.bytes <= INLINE_BYTES_MAX {
        return plan.answer(envelope);
    }
    let envelope = *envelope;
    off_runtime(move || plan.answer(&envelope)).await?
}

#[derive(Debug)]
struct Plan {
    topics: Vec<PlannedTopic>,
    /// Bytes that could be read now.
    bytes: u64,
    bytes_max: u64,
    has_errors: bool,
    isolation_level: i8,
}

#[derive(Debug)]
struct PlannedTopic {
    name: TopicName,
    id: Uuid,
    partitions: Vec<(i32, Result<Readable, i16>)>,
}

#[derive(Debug)]
struct Readable {
    bounds: Bounds,
    section: Option<Section>,
    aborted: Vec<Aborted>,
    bytes_max: u64,
}

impl Plan {
    fn of(node: &Node, request: &FetchRequest) -> Self {
        let topics: Vec<_> =
            request.topics.iter().map(|asked| planned_topic(node, asked, request.isolation_level)).collect();
        let outcomes = || topics.iter().flat_map(|topic| &topic.partitions).map(|(_, outcome)| outcome);
        let bytes = outcomes().flatten().map(Readable::bytes).sum();
        let has_errors = outcomes().any(Result::is_err);
        let bytes_max = u64::try_from(request.max_bytes).unwrap_or(0).min(ANSWER_BYTES_MAX);
        Self { topics, bytes, bytes_max, has_errors, isolation_level: request.isolation_level }
    }

    fn answer(self, envelope: &Envelope) -> Result<Bytes, RequestError> {
        let isolation_level = self.isolation_level;
        let mut left = Allowance { bytes: self.bytes_max, is_untouched: true };
        let responses = self
            .topics
            .into_iter()
            .map(|topic| {
                let partitions = topic
                    .partitions
                    .into_iter()
                    .map(|(number, outcome)| {
                        let data = PartitionData::default().with_partition_index(number);
                        match outcome.and_then(|readable| readable.read(&mut left, isolation_level, &data)) {
                            Ok(read) => read,
                            Err(code) => unreadable(data, code),
                        }
                    })
                    .collect();
                FetchableTopicResponse::default()
                    .with_topic(topic.name)
                    .with_topic_id(topic.id)
                    .with_partitions(partitions)
            })
            .collect();
        envelope.encode::<FetchRequest>(&FetchResponse::default().with_responses(responses))
    }
}

/// What an answer may still carry.
#[derive(Debug)]
struct Allowance {
    bytes: u64,
    /// Nothing was read yet, so the next batch goes out whatever its size.
    is_untouched: bool,
}

impl Readable {
    fn bytes(&self) -> u64 {
        self.section.as_ref().map_or(0, |section| section.bytes(self.bytes_max))
    }

    fn read(self, left: &mut Allowance, isolation_level: i8, data: &PartitionData) -> Result<PartitionData, i16> {
        let bytes_max = self.bytes_max.min(left.bytes);
        let section =
            self.section.as_ref().filter(|section| left.is_untouched || section.first_batch_bytes() <= bytes_max);
        let (records, end) = match section {
            None => (Bytes::new(), i64::MIN),
            Some(section) => section.read(bytes_max).map_err(|error| {
                tracing::error!(%error, "stored records could not be read");
                ResponseError::KafkaStorageError.code()
            })?,
        };
        if !records.is_empty() {
            left.is_untouched = false;
            left.bytes = left.bytes.saturating_sub(records.len() as u64);
        }
        let aborted = (isolation_level == READ_COMMITTED).then(|| {
            let within = self.aborted.iter().filter(|aborted| aborted.first_offset < end);
            within.map(aborted_transaction).collect()
        });
        Ok(data
            .clone()
            .with_high_watermark(self.bounds.end)
            .with_last_stable_offset(self.bounds.last_stable)
            .with_log_start_offset(self.bounds.start)
            .with_aborted_transactions(aborted)
            .with_records(Some(records)))
    }
}

fn planned_topic(node: &Node, asked: &FetchTopic, isolation_level: i8) -> PlannedTopic {
    // Since version 13 a topic is asked for by id, so that a recreated one is not taken for the old.
    let (topic, missing) = match asked.topic_id.is_nil() {
        true => (node.topics.named(&asked.topic), ResponseError::UnknownTopicOrPartition),
        false => (node.topics.identified(asked.topic_id), ResponseError::UnknownTopicId),
    };
    let partitions = asked
        .partitions
        .iter()
        .map(|partition| {
            let topic = topic.as_deref().ok_or(missing.code());
            (partition.partition, topic.and_then(|topic| readable(topic, partition, isolation_level)))
        })
        .collect();
    PlannedTopic { name: asked.topic.clone(), id: asked.topic_id, partitions }
}

fn readable(topic: &Topic, asked: &FetchPartition, isolation_level: i8) -> Result<Readable, i16> {
    let log = topic.partition(asked.partition).ok_or(ResponseError::UnknownTopicOrPartition.code())?;
    let log = log.lock();
    let bounds = log.bounds();
    check_leader_epoch(asked.current_leader_epoch, &bounds)?;
    if asked.fetch_offset < bounds.start || asked.fetch_offset > bounds.end {
        return Err(ResponseError::OffsetOutOfRange.code());
    }
    let stop = match isolation_level {
        READ_COMMITTED => bounds.last_stable,
        _ => bounds.end,
    };
    let section = log.section(asked.fetch_offset, stop).map_err(|error| {
        tracing::error!(topic = topic.name, partition = asked.partition, %error, "a fetch failed");
        ResponseError::KafkaStorageError.code()
    })?;
    let aborted = match (&section, isolation_level) {
        (Some(_), READ_COMMITTED) => log.aborted_between(asked.fetch_offset, stop),
        _ => Vec::new(),
    };
    let bytes_max = u64::try_from(asked.partition_max_bytes).unwrap_or(0);
    Ok(Readable { bounds, section, aborted, bytes_max })
}

fn unreadable(data: PartitionData, code: i16) -> PartitionData {
    data.with_error_code(code)
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1)
        .with_records(Some(Bytes::new()))
}

fn aborted_transaction(aborted: &Aborted) -> AbortedTransaction {
    AbortedTransaction::default()
        .with_producer_id(aborted.producer_id.into())
        .with_first_offset(aborted.first_offset)
}
