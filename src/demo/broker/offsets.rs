//! Answers about offsets: where partitions begin and end, what happened to a leader epoch, what groups committed.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{
    DeleteRecordsRequest, DeleteRecordsResponse, ListOffsetsRequest, ListOffsetsResponse, OffsetFetchRequest,
    OffsetFetchResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::disk::DiskError;
use super::groups::Committed;
use super::log::Bounds;
use super::node::Node;

/// Timestamps that ask for a place instead of a time.
const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
/// Isolation level of a reader of committed data.
const READ_COMMITTED: i8 = 1;
/// Means "to the end" in DeleteRecords.
const TO_THE_END: i64 = -1;

/// Refuses a client whose idea of who leads is older or newer than this node's; -1 has none.
pub(super) fn check_leader_epoch(asked: i32, bounds: &Bounds) -> Result<(), i16> {
    match asked {
        asked if asked < 0 || asked == bounds.leader_epoch => Ok(()),
        asked if asked < bounds.leader_epoch => Err(ResponseError::FencedLeaderEpoch.code()),
        _ => Err(ResponseError::UnknownLeaderEpoch.code()),
    }
}

pub(super) fn list(node: &Arc<Node>, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let isolation_level = request.isolation_level;
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .map(|asked| {
                    let answer =
                        ListOffsetsPartitionResponse::default().with_partition_index(asked.partition_index);
                    match list_one(node, &topic.name, asked, isolation_level) {
                        Ok((offset, timestamp, epoch)) => {
                            answer.with_offset(offset).with_timestamp(timestamp).with_leader_epoch(epoch)
                        }
                        Err(code) => answer.with_error_code(code),
                    }
                })
                .collect();
            ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions)
        })
        .collect();
    ListOffsetsResponse::default().with_topics(topics)
}

fn list_one(
    node: &Node,
    topic: &TopicName,
    asked: &ListOffsetsPartition,
    isolation_level: i8,
) -> Result<(i64, i64, i32), i16> {
    let log = node
        .topics
        .named(topic)
        .and_then(|topic| topic.partition(asked.partition_index))
        .ok_or(ResponseError::UnknownTopicOrPartition.code())?;
    let log = log.lock();
    let bounds = log.bounds();
    check_leader_epoch(asked.current_leader_epoch, &bounds)?;
    let end = match isolation_level {
        READ_COMMITTED => bounds.last_stable,
        _ => bounds.end,
    };
    match asked.timestamp {
        LATEST => Ok((end, -1, bounds.leader_epoch)),
        EARLIEST => Ok((bounds.start, -1, bounds.leader_epoch)),
        timestamp => {
            let timestamp = match timestamp {
                MAX_TIMESTAMP => log.max_timestamp(),
                0.. => timestamp,
                _ => return Err(ResponseError::InvalidRequest.code()),
            };
            let found = log.offset_at(timestamp).map_err(|error| unreadable(topic, &error))?;
            let found = found.filter(|(offset, _)| *offset < end);
            Ok(found.map_or((-1, -1, -1), |(offset, at)| (offset, at, bounds.leader_epoch)))
        }
    }
}

pub(super) fn delete_records(node: &Arc<Node>, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic
                .partitions
                .iter()
                .map(|asked| {
                    let answer =
                        DeleteRecordsPartitionResult::default().with_partition_index(asked.partition_index);
                    match delete_below(node, &topic.name, asked.partition_index, asked.offset) {
                        Ok(start) => answer.with_low_watermark(start),
                        Err(code) => answer.with_low_watermark(-1).with_error_code(code),
                    }
                })
                .collect();
            DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions)
        })
        .collect();
    DeleteRecordsResponse::default().with_topics(topics)
}

fn delete_below(node: &Node, topic: &TopicName, partition: i32, offset: i64) -> Result<i64, i16> {
    let log = node
        .topics
        .named(topic)
        .and_then(|topic| topic.partition(partition))
        .ok_or(ResponseError::UnknownTopicOrPartition.code())?;
    let mut log = log.lock();
    let end = log.bounds().end;
    let below = match offset {
        TO_THE_END => end,
        offset if (0..=end).contains(&offset) => offset,
        _ => return Err(ResponseError::OffsetOutOfRange.code()),
    };
    log.delete_below(below).map_err(|error| unreadable(topic, &error))
}

pub(super) fn for_leader_epoch(
    node: &Arc<Node>,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topics = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic.partitions.iter().map(|asked| epoch_end(node, &topic.topic, asked)).collect();
            OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions)
        })
        .collect();
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

fn epoch_end(node: &Node, topic: &TopicName, asked: &OffsetForLeaderPartition) -> EpochEndOffset {
    let answer = EpochEndOffset::default().with_partition(asked.partition);
    let log = node.topics.named(topic).and_then(|topic| topic.partition(asked.partition));
    let Some(log) = log else {
        return answer.with_error_code(ResponseError::UnknownTopicOrPartition.code());
    };
    let log = log.lock();
    if let Err(code) = check_leader_epoch(asked.current_leader_epoch, &log.bounds()) {
        return answer.with_error_code(code);
    }
    match log.epoch_end(asked.leader_epoch) {
        Some((epoch, end)) => answer.with_leader_epoch(epoch).with_end_offset(end),
        None => answer,
    }
}

/// Answers for one group (up to version 7) or several.
pub(super) fn fetch_committed(node: &Arc<Node>, request: OffsetFetchRequest, version: i16) -> OffsetFetchResponse {
    if version < 8 {
        let asked = request.topics.map(|topics| {
            topics.into_iter().map(|topic| (topic.name.to_string(), topic.partition_indexes)).collect()
        });
        let topics = committed(node, &request.group_id, asked).into_iter().map(|(name, partitions)| {
            let partitions = partitions.into_iter().map(|(number, found)| {
                OffsetFetchResponsePartition::default()
                    .with_partition_index(number)
                    .with_committed_offset(found.offset)
                    .with_committed_leader_epoch(found.leader_epoch)
                    .with_metadata(Some(StrBytes::from_string(found.metadata)))
            });
            OffsetFetchResponseTopic::default()
                .with_name(TopicName(StrBytes::from_string(name)))
                .with_partitions(partitions.collect())
        });
        return OffsetFetchResponse::default().with_topics(topics.collect());
    }
    let groups = request.groups.into_iter().map(|group| {
        let asked = group.topics.map(|topics| {
            topics.into_iter().map(|topic| (topic.name.to_string(), topic.partition_indexes)).collect()
        });
        let topics = committed(node, &group.group_id, asked).into_iter().map(|(name, partitions)| {
            let partitions = partitions.into_iter().map(|(number, found)| {
                OffsetFetchResponsePartitions::default()
                    .with_partition_index(number)
                    .with_committed_offset(found.offset)
                    .with_committed_leader_epoch(found.leader_epoch)
                    .with_metadata(Some(StrBytes::from_string(found.metadata)))
            });
            OffsetFetchResponseTopics::default()
                .with_name(TopicName(StrBytes::from_string(name)))
                .with_partitions(partitions.collect())
        });
        OffsetFetchResponseGroup::default().with_topics(topics.collect()).with_group_id(group.group_id)
    });
    OffsetFetchResponse::default().with_groups(groups.collect())
}

type CommittedTopics = Vec<(String, Vec<(i32, Committed)>)>;

/// What `group` committed for the asked partitions, or for all it knows; offset -1 where it has nothing.
fn committed(node: &Node, group: &str, asked: Option<Vec<(String, Vec<i32>)>>) -> CommittedTopics {
    let nothing = || Committed { offset: -1, leader_epoch: -1, metadata: String::new() };
    asked
        .unwrap_or_else(|| node.groups.fetch_all(group))
        .into_iter()
        .map(|(topic, partitions)| {
            let partitions = partitions
                .into_iter()
                .map(|number| (number, node.groups.fetch(group, &topic, number).unwrap_or_else(nothing)))
                .collect();
            (topic, partitions)
        })
        .collect()
}

fn unreadable(topic: &TopicName, error: &DiskError) -> i16 {
    tracing::error!(topic = topic.as_str(), %error, "a partition could not be read");
    ResponseError::KafkaStorageError.code()
}
