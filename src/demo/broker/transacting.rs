//! Answers to producers with transactions, and to idempotent ones.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    EndTxnRequest, EndTxnResponse, InitProducerIdRequest, InitProducerIdResponse, TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
};

use super::groups::Committed;
use super::node::{Node, now_ms};
use super::producers::Outcome;
use super::transactions::{CoordinatorError, ProducerIdentity};

pub(super) fn init(node: &Arc<Node>, request: InitProducerIdRequest) -> InitProducerIdResponse {
    let mut coordinator = node.coordinator.lock();
    let current = ProducerIdentity { id: request.producer_id.0, epoch: request.producer_epoch };
    let given = match &request.transactional_id {
        None => coordinator.new_producer(),
        Some(name) => {
            let current = (current.id >= 0).then_some(current);
            coordinator.init(name, request.transaction_timeout_ms, current, node.parts())
        }
    };
    node.log_changed();
    match given {
        Ok(producer) => InitProducerIdResponse::default()
            .with_producer_id(producer.id.into())
            .with_producer_epoch(producer.epoch),
        Err(error) => InitProducerIdResponse::default()
            .with_error_code(error.code())
            .with_producer_id((-1).into())
            .with_producer_epoch(-1),
    }
}

/// All partitions become part of the transaction, or none.
pub(super) fn add_partitions(node: &Arc<Node>, request: AddPartitionsToTxnRequest) -> AddPartitionsToTxnResponse {
    let name = &request.v3_and_below_transactional_id;
    let producer =
        ProducerIdentity { id: request.v3_and_below_producer_id.0, epoch: request.v3_and_below_producer_epoch };
    let known = |topic: &str, partition: i32| {
        node.topics.named(topic).filter(|topic| topic.partition(partition).is_some()).map(|topic| topic.id)
    };
    let topics = &request.v3_and_below_topics;
    let all_known =
        topics.iter().all(|topic| topic.partitions.iter().all(|number| known(&topic.name, *number).is_some()));
    let mut coordinator = node.coordinator.lock();
    let results = topics.iter().map(|topic| {
        let results = topic.partitions.iter().map(|number| {
            let code = match known(&topic.name, *number) {
                None => ResponseError::UnknownTopicOrPartition.code(),
                Some(_) if !all_known => ResponseError::OperationNotAttempted.code(),
                Some(id) => code(coordinator.add_partition(name, producer, (id, *number), now_ms())),
            };
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*number)
                .with_partition_error_code(code)
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(results.collect())
    });
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(results.collect())
}

pub(super) fn add_offsets(node: &Arc<Node>, request: AddOffsetsToTxnRequest) -> AddOffsetsToTxnResponse {
    let producer = ProducerIdentity { id: request.producer_id.0, epoch: request.producer_epoch };
    let begun = node.coordinator.lock().begin(&request.transactional_id, producer, now_ms());
    AddOffsetsToTxnResponse::default().with_error_code(code(begun))
}

pub(super) fn commit_offsets(node: &Arc<Node>, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
    let producer = ProducerIdentity { id: request.producer_id.0, epoch: request.producer_epoch };
    let mut coordinator = node.coordinator.lock();
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|asked| {
            let committed = Committed {
                offset: asked.committed_offset,
                leader_epoch: asked.committed_leader_epoch,
                metadata: asked.committed_metadata.as_ref().map_or_else(String::new, ToString::to_string),
            };
            let added =
                node.groups.may_commit(&request.group_id, &committed).map_err(CoordinatorError::Refused).and_then(
                    |()| {
                        let offset = (topic.name.to_string(), asked.partition_index, committed);
                        coordinator.add_offset(&request.transactional_id, producer, &request.group_id, offset)
                    },
                );
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(asked.partition_index)
                .with_error_code(code(added))
        });
        TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}

pub(super) fn end(node: &Arc<Node>, request: EndTxnRequest) -> EndTxnResponse {
    let producer = ProducerIdentity { id: request.producer_id.0, epoch: request.producer_epoch };
    let outcome = match request.committed {
        true => Outcome::Commit,
        false => Outcome::Abort,
    };
    let ended = node.coordinator.lock().end(&request.transactional_id, producer, outcome, node.parts());
    node.log_changed();
    EndTxnResponse::default().with_error_code(code(ended))
}

fn code(done: Result<(), CoordinatorError>) -> i16 {
    done.err().map_or(0, |error| error.code())
}
