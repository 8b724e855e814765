//! Answers about the cluster as a whole: a single node that leads and coordinates everything.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    DescribeClusterRequest, DescribeClusterResponse, FindCoordinatorRequest, FindCoordinatorResponse,
    MetadataRequest, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::node::{NODE_ID, Node};
use super::topics::{Topic, TopicError};

/// The value that stands for "not asked" in fields of authorized operations.
const OPERATIONS_NOT_ASKED: i32 = i32::MIN;
/// Read, write, create, delete, alter, describe, describe and alter configs: there is no authorization here.
const ALL_TOPIC_OPERATIONS: i32 = 0b0000_1101_1111_1000;

pub(super) fn metadata(node: &Arc<Node>, request: MetadataRequest) -> MetadataResponse {
    let operations = match request.include_topic_authorized_operations {
        true => ALL_TOPIC_OPERATIONS,
        false => OPERATIONS_NOT_ASKED,
    };
    let describe = |topic: &Topic| described(topic, operations);
    let topics = match request.topics {
        None => node.topics.all().iter().map(|topic| describe(topic)).collect(),
        Some(asked) => asked
            .into_iter()
            .map(|asked| match find_or_create(node, &asked, request.allow_auto_topic_creation) {
                Ok(topic) => describe(&topic),
                Err(code) => MetadataResponseTopic::default()
                    .with_error_code(code)
                    .with_name(asked.name)
                    .with_topic_id(asked.topic_id)
                    .with_topic_authorized_operations(OPERATIONS_NOT_ASKED),
            })
            .collect(),
    };
    let broker =
        MetadataResponseBroker::default().with_node_id(NODE_ID).with_host(node.host()).with_port(node.port());
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(StrBytes::from_string(node.cluster_id.clone())))
        .with_controller_id(NODE_ID)
        .with_cluster_authorized_operations(OPERATIONS_NOT_ASKED)
        .with_topics(topics)
}

pub(super) fn describe_cluster(node: &Arc<Node>, _request: DescribeClusterRequest) -> DescribeClusterResponse {
    let broker =
        DescribeClusterBroker::default().with_broker_id(NODE_ID).with_host(node.host()).with_port(node.port());
    DescribeClusterResponse::default()
        .with_cluster_id(StrBytes::from_string(node.cluster_id.clone()))
        .with_controller_id(NODE_ID)
        .with_endpoint_type(1)
        .with_cluster_authorized_operations(OPERATIONS_NOT_ASKED)
        .with_brokers(vec![broker])
}

pub(super) fn find_coordinator(
    node: &Arc<Node>,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    if version < 4 {
        return FindCoordinatorResponse::default()
            .with_node_id(NODE_ID)
            .with_host(node.host())
            .with_port(node.port());
    }
    let coordinators = request
        .coordinator_keys
        .into_iter()
        .map(|key| {
            Coordinator::default().with_key(key).with_node_id(NODE_ID).with_host(node.host()).with_port(node.port())
        })
        .collect();
    FindCoordinatorResponse::default().with_coordinators(coordinators)
}

fn find_or_create(node: &Arc<Node>, asked: &MetadataRequestTopic, may_create: bool) -> Result<Arc<Topic>, i16> {
    let Some(name) = &asked.name else {
        return node.topics.identified(asked.topic_id).ok_or(ResponseError::UnknownTopicId.code());
    };
    if let Some(topic) = node.topics.named(name) {
        return Ok(topic);
    }
    let Some(partitions) = node.auto_create_partitions.filter(|_| may_create) else {
        return Err(ResponseError::UnknownTopicOrPartition.code());
    };
    let created = node.topics.create(name, partitions, BTreeMap::new());
    // Another connection may have been quicker.
    created.or_else(|error| node.topics.named(name).ok_or_else(|| refusal(&error)))
}

fn refusal(error: &TopicError) -> i16 {
    tracing::warn!(%error, "a topic was not created on its first use");
    error.code()
}

fn described(topic: &Topic, operations: i32) -> MetadataResponseTopic {
    let partitions = topic
        .partitions()
        .iter()
        .zip(0..)
        .map(|(log, number)| {
            MetadataResponsePartition::default()
                .with_partition_index(number)
                .with_leader_id(NODE_ID)
                .with_leader_epoch(log.lock().bounds().leader_epoch)
                .with_replica_nodes(vec![NODE_ID])
                .with_isr_nodes(vec![NODE_ID])
        })
        .collect();
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_string(topic.name.clone()))))
        .with_topic_id(topic.id)
        .with_topic_authorized_operations(operations)
        .with_partitions(partitions)
}
