//! Produce: every batch goes to its partition's log as it came.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::batch::BatchHeader;
use super::log::{AppendError, Appended, PartitionLog};
use super::node::Node;
use super::topics::Topic;
use super::transactions::ProducerIdentity;
use super::wire::{RequestError, off_runtime};

/// Requests up to this size are written on the runtime: moving them elsewhere would cost more.
const INLINE_BYTES_MAX: usize = 64 * 1024;

/// Appends the request's batches; no answer when the client wants none (acks = 0).
pub(super) async fn produce(
    node: &Arc<Node>,
    request: ProduceRequest,
) -> Result<Option<ProduceResponse>, RequestError> {
    let wants_answer = request.acks != 0;
    let bytes: usize = request
        .topic_data
        .iter()
        .flat_map(|topic| &topic.partition_data)
        .map(|partition| partition.records.as_ref().map_or(0, Bytes::len))
        .sum();
    let response = match bytes <= INLINE_BYTES_MAX {
        true => append_all(node, request),
        false => {
            let node = Arc::clone(node);
            // The write goes on if the connection ends meanwhile; nobody may take over the directory before it does.
            let running = node.running();
            let append = move || {
                let response = append_all(&node, request);
                drop(running);
                response
            };
            off_runtime(append).await?
        }
    };
    Ok(wants_answer.then_some(response))
}

fn append_all(node: &Node, request: ProduceRequest) -> ProduceResponse {
    let transaction = request.transactional_id.as_ref().map(|id| id.as_str());
    let acks = request.acks;
    let responses = request
        .topic_data
        .into_iter()
        .map(|of_topic| {
            let topic = node.topics.named(&of_topic.name);
            let partitions = of_topic
                .partition_data
                .into_iter()
                .map(|data| {
                    let appended = match acks {
                        -1..=1 => append(node, topic.as_deref(), &data, transaction),
                        _ => Err(ResponseError::InvalidRequiredAcks.code()),
                    };
                    answer(data.index, appended)
                })
                .collect();
            TopicProduceResponse::default().with_name(of_topic.name).with_partition_responses(partitions)
        })
        .collect();
    node.log_changed();
    ProduceResponse::default().with_responses(responses)
}

fn append(
    node: &Node,
    topic: Option<&Topic>,
    data: &PartitionProduceData,
    transaction: Option<&str>,
) -> Result<Appended, i16> {
    let topic = topic.ok_or(ResponseError::UnknownTopicOrPartition.code())?;
    let log = topic.partition(data.index).ok_or(ResponseError::UnknownTopicOrPartition.code())?;
    let records = data.records.as_ref().ok_or(ResponseError::InvalidRecord.code())?;
    let header = BatchHeader::parse(records).ok_or(ResponseError::CorruptMessage.code())?;
    let append = |log: &mut PartitionLog| {
        log.append(records).map_err(|error| match error {
            AppendError::Refused(reason) => reason.code(),
            AppendError::Disk(error) => {
                tracing::error!(topic = topic.name, partition = data.index, %error, "records were not stored");
                ResponseError::KafkaStorageError.code()
            }
        })
    };
    if !header.is_transactional() {
        return append(&mut log.lock());
    }
    // Held over the append, so that no marker can slip in between the check and the records.
    let coordinator = node.coordinator.lock();
    let producer = ProducerIdentity { id: header.producer_id, epoch: header.producer_epoch };
    let name = transaction.ok_or(ResponseError::InvalidTxnState.code())?;
    coordinator.may_write(name, producer, (topic.id, data.index)).map_err(|reason| reason.code())?;
    append(&mut log.lock())
}

fn answer(partition: i32, appended: Result<Appended, i16>) -> PartitionProduceResponse {
    let response = PartitionProduceResponse::default().with_index(partition).with_log_append_time_ms(-1);
    match appended {
        Ok(Appended { base_offset, start_offset }) => {
            response.with_base_offset(base_offset).with_log_start_offset(start_offset)
        }
        Err(code) => response.with_error_code(code).with_base_offset(-1).with_log_start_offset(-1),
    }
}
