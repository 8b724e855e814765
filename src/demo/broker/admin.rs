//! Answers to administrators: topics, their partitions and their settings.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::CreatableTopicResult;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as IncrementalResponse;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, CreatePartitionsRequest, CreatePartitionsResponse,
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse, DescribeConfigsRequest,
    DescribeConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::node::Node;
use super::topics::{Topic, TopicError};

/// Kinds of things that have settings.
const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;
/// Where a setting comes from.
const SOURCE_TOPIC: i8 = 1;
const SOURCE_DEFAULT: i8 = 5;
const TYPE_STRING: i8 = 2;
/// Kinds of incremental change.
const CHANGE_SET: i8 = 0;
const CHANGE_DELETE: i8 = 1;

/// Used when a client leaves the number of partitions to the broker.
const DEFAULT_PARTITIONS: i32 = 1;

/// What holds for a topic unless it says otherwise. Nothing is deleted by age or size.
const TOPIC_DEFAULTS: &[(&str, &str)] = &[
    ("cleanup.policy", "delete"),
    ("compression.type", "producer"),
    ("max.message.bytes", "104857600"),
    ("message.timestamp.type", "CreateTime"),
    ("min.insync.replicas", "1"),
    ("retention.bytes", "-1"),
    ("retention.ms", "-1"),
];

pub(super) fn create_topics(node: &Arc<Node>, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let validate_only = request.validate_only;
    let topics = request
        .topics
        .into_iter()
        .map(|asked| {
            let partitions = partitions_of(&asked);
            let configs = asked
                .configs
                .iter()
                .filter_map(|config| Some((config.name.to_string(), config.value.as_ref()?.to_string())))
                .collect();
            let created = match validate_only {
                true => node.topics.validate(&asked.name, partitions).map(|()| Uuid::nil()),
                false => node.topics.create(&asked.name, partitions, configs).map(|topic| topic.id),
            };
            let answer = CreatableTopicResult::default().with_name(asked.name);
            match created {
                Ok(id) => answer.with_topic_id(id).with_num_partitions(partitions).with_replication_factor(1),
                Err(error) => answer.with_error_code(error.code()).with_error_message(Some(message(&error))),
            }
        })
        .collect();
    CreateTopicsResponse::default().with_topics(topics)
}

fn partitions_of(asked: &CreatableTopic) -> i32 {
    match asked.num_partitions {
        -1 if asked.assignments.is_empty() => DEFAULT_PARTITIONS,
        -1 => i32::try_from(asked.assignments.len()).unwrap_or(i32::MAX),
        given => given,
    }
}

pub(super) fn delete_topics(node: &Arc<Node>, request: DeleteTopicsRequest) -> DeleteTopicsResponse {
    let by_name = request.topic_names.into_iter().map(|name| (Some(name), Uuid::nil()));
    let by_state = request.topics.into_iter().map(|topic| (topic.name, topic.topic_id));
    let responses = by_name
        .chain(by_state)
        .map(|(name, id)| {
            let topic = match &name {
                Some(name) => node.topics.named(name).ok_or(ResponseError::UnknownTopicOrPartition.code()),
                None => node.topics.identified(id).ok_or(ResponseError::UnknownTopicId.code()),
            };
            let answer = DeletableTopicResult::default();
            match topic.and_then(|topic| delete(node, &topic).map(|()| topic)) {
                Ok(topic) => answer
                    .with_name(Some(TopicName(StrBytes::from_string(topic.name.clone()))))
                    .with_topic_id(topic.id),
                Err(code) => answer.with_name(name).with_topic_id(id).with_error_code(code),
            }
        })
        .collect();
    // Whoever waits for records of a deleted topic must be told.
    node.log_changed();
    DeleteTopicsResponse::default().with_responses(responses)
}

fn delete(node: &Node, topic: &Topic) -> Result<(), i16> {
    node.topics.delete(topic).map_err(|error| error.code())?;
    node.groups.forget_topic(&topic.name).map_err(|error| {
        tracing::error!(topic = topic.name, %error, "group offsets of a deleted topic were not removed");
        ResponseError::KafkaStorageError.code()
    })
}

pub(super) fn create_partitions(node: &Arc<Node>, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let validate_only = request.validate_only;
    let results = request
        .topics
        .into_iter()
        .map(|asked| {
            let answer = CreatePartitionsTopicResult::default();
            match grow(node, &asked, validate_only) {
                Ok(()) => answer.with_name(asked.name),
                Err(error) => answer
                    .with_name(asked.name)
                    .with_error_code(error.code())
                    .with_error_message(Some(message(&error))),
            }
        })
        .collect();
    CreatePartitionsResponse::default().with_results(results)
}

fn grow(node: &Node, asked: &CreatePartitionsTopic, validate_only: bool) -> Result<(), TopicError> {
    let topic = node
        .topics
        .named(&asked.name)
        .ok_or_else(|| TopicError::refused(&asked.name, ResponseError::UnknownTopicOrPartition))?;
    match validate_only {
        true => Ok(()),
        false => topic.grow(asked.count),
    }
}

pub(super) fn describe_configs(node: &Arc<Node>, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let results = request
        .resources
        .into_iter()
        .map(|asked| {
            let settings = settings_of(node, &asked);
            let answer = DescribeConfigsResult::default()
                .with_resource_type(asked.resource_type)
                .with_resource_name(asked.resource_name);
            match settings {
                Err(reason) => answer.with_error_code(reason.code()),
                Ok(settings) => {
                    let wanted = |name: &str| {
                        asked
                            .configuration_keys
                            .as_ref()
                            .is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
                    };
                    let configs = settings.into_iter().filter(|(name, _)| wanted(name)).map(setting).collect();
                    answer.with_configs(configs)
                }
            }
        })
        .collect();
    DescribeConfigsResponse::default().with_results(results)
}

/// Name to value and source.
type Settings = BTreeMap<String, (String, i8)>;

fn settings_of(node: &Node, asked: &DescribeConfigsResource) -> Result<Settings, ResponseError> {
    match asked.resource_type {
        RESOURCE_TOPIC => {
            let topic = node.topics.named(&asked.resource_name).ok_or(ResponseError::UnknownTopicOrPartition)?;
            let defaults = TOPIC_DEFAULTS
                .iter()
                .map(|(name, value)| ((*name).to_owned(), ((*value).to_owned(), SOURCE_DEFAULT)));
            let given = topic.configs().into_iter().map(|(name, value)| (name, (value, SOURCE_TOPIC)));
            Ok(defaults.chain(given).collect())
        }
        RESOURCE_BROKER => Ok(Settings::new()),
        _ => Err(ResponseError::InvalidRequest),
    }
}

fn setting((name, (value, source)): (String, (String, i8))) -> DescribeConfigsResourceResult {
    DescribeConfigsResourceResult::default()
        .with_name(StrBytes::from_string(name))
        .with_value(Some(StrBytes::from_string(value)))
        .with_config_source(source)
        .with_config_type(TYPE_STRING)
}

/// The older way: what is not named goes back to its default.
pub(super) fn alter_configs(node: &Arc<Node>, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let validate_only = request.validate_only;
    let responses = request
        .resources
        .into_iter()
        .map(|asked| {
            let given: Vec<_> = asked
                .configs
                .iter()
                .map(|config| (config.name.to_string(), config.value.as_ref().map(ToString::to_string)))
                .collect();
            let changed = configurable(node, asked.resource_type, &asked.resource_name).and_then(|topic| {
                let dropped = topic.configs().into_keys().map(|name| (name, None));
                let changes = dropped.chain(given).collect();
                apply(&topic, changes, validate_only)
            });
            AlterConfigsResourceResponse::default()
                .with_error_code(changed.err().unwrap_or(0))
                .with_resource_type(asked.resource_type)
                .with_resource_name(asked.resource_name)
        })
        .collect();
    AlterConfigsResponse::default().with_responses(responses)
}

pub(super) fn incremental_alter_configs(
    node: &Arc<Node>,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let validate_only = request.validate_only;
    let responses = request
        .resources
        .into_iter()
        .map(|asked| {
            let changes: Result<Vec<_>, i16> = asked
                .configs
                .iter()
                .map(|config| match config.config_operation {
                    CHANGE_SET => Ok((config.name.to_string(), config.value.as_ref().map(ToString::to_string))),
                    CHANGE_DELETE => Ok((config.name.to_string(), None)),
                    _ => Err(ResponseError::InvalidConfig.code()),
                })
                .collect();
            let changed = configurable(node, asked.resource_type, &asked.resource_name)
                .and_then(|topic| apply(&topic, changes?, validate_only));
            IncrementalResponse::default()
                .with_error_code(changed.err().unwrap_or(0))
                .with_resource_type(asked.resource_type)
                .with_resource_name(asked.resource_name)
        })
        .collect();
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

fn configurable(node: &Node, resource_type: i8, name: &str) -> Result<Arc<Topic>, i16> {
    match resource_type {
        RESOURCE_TOPIC => node.topics.named(name).ok_or(ResponseError::UnknownTopicOrPartition.code()),
        _ => Err(ResponseError::InvalidRequest.code()),
    }
}

fn apply(topic: &Topic, changes: Vec<(String, Option<String>)>, validate_only: bool) -> Result<(), i16> {
    match validate_only {
        true => Ok(()),
        false => topic.set_configs(changes).map_err(|error| error.code()),
    }
}

fn message(error: &TopicError) -> StrBytes {
    StrBytes::from_string(error.to_string())
}
