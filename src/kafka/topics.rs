//! Watches the topics: who they are, which partitions they have, and whether the stored positions still fit.
//!
//! A name is not an identity: a topic that was deleted and created again starts at offset 0 under the same name,
//! and its records would be taken for known ones. So every look compares cluster id and topic id with those of
//! the archive. What to do is decided by [`judge`], which does no I/O.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka_sys as sys;

use super::consumer::client_config;
use crate::config;
use crate::position::{Offset, PartitionId, StreamFrontier, TopicIdentity};

const TIMEOUT: Duration = Duration::from_secs(5);

/// A topic as the brokers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFacts {
    pub identity: TopicIdentity,
    /// Per partition the first offset that is still there, and the end of what a committed reader may read.
    pub partitions: BTreeMap<PartitionId, (Offset, Offset)>,
    pub compacted: bool,
}

/// What is to be done about one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing of the stream may be read.
    Refuse(String),
    Read {
        start: BTreeMap<PartitionId, Offset>,
        halt: BTreeMap<PartitionId, String>,
    },
}

/// Compares what the archive says with what the brokers say.
pub fn judge(stored: &StreamFrontier, facts: &TopicFacts) -> Judgement {
    if let Some(known) = &stored.topic
        && *known != facts.identity
    {
        return Judgement::Refuse(format!(
            "the topic was created anew or belongs to another cluster: the archive was filled from {known}, the \
             brokers now offer {}; reading it would mix two logs. Point the stream at the old topic, or archive \
             the new one under another stream name",
            facts.identity
        ));
    }
    if facts.compacted {
        return Judgement::Refuse(
            "the topic is compacted (cleanup.policy), so it forgets records; use delete".into(),
        );
    }
    let mut start = BTreeMap::new();
    let mut halt = BTreeMap::new();
    for (partition, (first, end)) in &facts.partitions {
        match stored.next.get(partition) {
            // Never read before: begin with what is there.
            None => drop(start.insert(*partition, *first)),
            Some(position) if position < first => {
                let reason = format!(
                    "offsets {position} to {} are gone from the log (retention): they can not be counted any more",
                    first.0 - 1
                );
                halt.insert(*partition, reason);
            }
            Some(position) if position > end => {
                let reason = format!(
                    "the archive holds records up to offset {position}, but the log ends at {end}: it was truncated"
                );
                halt.insert(*partition, reason);
            }
            Some(position) => drop(start.insert(*partition, *position)),
        }
    }
    for partition in stored.next.keys().filter(|p| !facts.partitions.contains_key(p)) {
        halt.insert(*partition, "the partition is gone from the topic".into());
    }
    Judgement::Read { start, halt }
}

/// Asks about each topic once, from outside of intake. Blocks for some seconds at most a topic.
///
/// # Errors
/// When the settings of the client are not good.
pub fn look(
    kafka: &config::Kafka,
    topics: impl IntoIterator<Item = String>,
) -> Result<BTreeMap<String, Result<TopicFacts, TopicError>>, rdkafka::error::KafkaError> {
    let mut client = client_config(kafka);
    // What it logs is of no use to who asks once.
    client.remove("debug").set_log_level(RDKafkaLogLevel::Emerg);
    let reader = TopicReader::new(&client)?;
    let mut facts = BTreeMap::new();
    for topic in topics {
        let found = reader.facts(&topic);
        let gone = matches!(found, Err(TopicError::Unreachable(_)));
        facts.insert(topic, found);
        if gone {
            break;
        }
    }
    Ok(facts)
}

/// Asks the brokers. Every call blocks for some seconds at most.
pub(super) struct TopicReader {
    admin: AdminClient<DefaultClientContext>,
}

#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error("{0}")]
    Missing(String),
    #[error("no broker answers: {0}")]
    Unreachable(String),
}

impl TopicReader {
    pub(super) fn new(config: &ClientConfig) -> Result<Self, rdkafka::error::KafkaError> {
        Ok(Self { admin: config.create()? })
    }

    /// Everything [`judge`] needs to know about `topic`.
    pub(super) fn facts(&self, topic: &str) -> Result<TopicFacts, TopicError> {
        let client = self.admin.inner();
        let cluster_id = client
            .fetch_cluster_id(TIMEOUT)
            .ok_or_else(|| TopicError::Unreachable("the cluster id is not known".into()))?;
        self.require_broker()?;
        let (topic_id, partition_ids) = self.describe(topic)?;
        let mut partitions = BTreeMap::new();
        for partition in partition_ids {
            let (first, end) = client
                .fetch_watermarks(topic, partition.0, TIMEOUT)
                .map_err(|error| TopicError::Unreachable(format!("{topic} partition {partition}: {error}")))?;
            partitions.insert(partition, (Offset(first), Offset(end)));
        }
        let identity = TopicIdentity { cluster_id, topic_id };
        Ok(TopicFacts { identity, partitions, compacted: self.compacted(topic) })
    }

    /// A broker that does not tell its configuration (no right to ask) is taken at its word that it keeps records.
    fn compacted(&self, topic: &str) -> bool {
        let resource = ResourceSpecifier::Topic(topic);
        let options = AdminOptions::new().request_timeout(Some(TIMEOUT));
        let request = self.admin.describe_configs([&resource], &options);
        let Ok(answers) = futures::executor::block_on(request) else { return false };
        answers.into_iter().flatten().any(|resource| {
            resource.get("cleanup.policy").and_then(|e| e.value.as_deref()).is_some_and(|v| v.contains("compact"))
        })
    }

    /// Waits until a broker answers. To be asked before any request of the admin client: one that finds no broker connects
    /// again and again without a pause, hundreds of times a second, for as long as it waits.
    fn require_broker(&self) -> Result<(), TopicError> {
        let client = self.admin.inner().native_ptr();
        let timeout = i32::try_from(TIMEOUT.as_millis()).expect("a few seconds");
        let mut metadata = std::ptr::null();
        // SAFETY: `client` lives as long as `self`; no topic is named, so that none is created; what is returned is
        // destroyed at once.
        let error = unsafe {
            let error = sys::rd_kafka_metadata(client, 0, std::ptr::null_mut(), &raw mut metadata, timeout);
            if !metadata.is_null() {
                sys::rd_kafka_metadata_destroy(metadata);
            }
            error
        };
        match error {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            error => Err(TopicError::Unreachable(RDKafkaErrorCode::from(error).to_string())),
        }
    }

    /// Topic id and partitions. The Rust client has no call for the id, so this asks librdkafka itself.
    fn describe(&self, topic: &str) -> Result<(String, Vec<PartitionId>), TopicError> {
        let name =
            CString::new(topic).map_err(|_| TopicError::Missing("the topic's name holds a zero byte".into()))?;
        let client = self.admin.inner().native_ptr();
        let timeout = i32::try_from(TIMEOUT.as_millis()).expect("a few seconds");
        // SAFETY: `client` lives as long as `self`; queue, options, collection and event are made here, used only
        // here and destroyed below; all strings are copied before the event is destroyed.
        unsafe {
            let queue = sys::rd_kafka_queue_new(client);
            let mut names = [name.as_ptr()];
            let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
            let options =
                sys::rd_kafka_AdminOptions_new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
            let mut error_text = [0; 256];
            sys::rd_kafka_AdminOptions_set_request_timeout(
                options,
                timeout,
                error_text.as_mut_ptr(),
                error_text.len(),
            );
            sys::rd_kafka_DescribeTopics(client, topics, options, queue);
            let event = sys::rd_kafka_queue_poll(queue, timeout + 1000);
            let answer = if event.is_null() {
                Err(TopicError::Unreachable(format!("no answer about topic {topic} within {timeout} ms")))
            } else {
                read_description(event, topic)
            };
            if !event.is_null() {
                sys::rd_kafka_event_destroy(event);
            }
            sys::rd_kafka_AdminOptions_destroy(options);
            sys::rd_kafka_TopicCollection_destroy(topics);
            sys::rd_kafka_queue_destroy(queue);
            answer
        }
    }
}

/// # Safety
/// `event` is a live event returned by `rd_kafka_queue_poll`.
unsafe fn read_description(
    event: *mut sys::rd_kafka_event_t,
    topic: &str,
) -> Result<(String, Vec<PartitionId>), TopicError> {
    let text = |ptr: *const std::ffi::c_char| {
        if ptr.is_null() {
            return String::new();
        }
        // SAFETY: librdkafka returns zero-terminated strings that live as long as the event.
        unsafe { CStr::from_ptr(ptr) }.to_string_lossy().into_owned()
    };
    // SAFETY: see above; every pointer is checked for null before it is followed.
    unsafe {
        if sys::rd_kafka_event_error(event) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(TopicError::Unreachable(text(sys::rd_kafka_event_error_string(event))));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0;
        let descriptions = if result.is_null() {
            std::ptr::null_mut()
        } else {
            sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count)
        };
        if descriptions.is_null() || count == 0 {
            return Err(TopicError::Missing(format!("topic {topic} was not described")));
        }
        let description = *descriptions;
        let error = sys::rd_kafka_TopicDescription_error(description);
        if !error.is_null()
            && sys::rd_kafka_error_code(error) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            return Err(TopicError::Missing(format!("topic {topic}: {}", text(sys::rd_kafka_error_string(error)))));
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(description);
        let topic_id = if id.is_null() { String::new() } else { text(sys::rd_kafka_Uuid_base64str(id)) };
        if topic_id.is_empty() {
            return Err(TopicError::Missing(format!(
                "topic {topic}: the brokers give no topic id; Kafka 2.8 or newer is needed"
            )));
        }
        let mut count = 0;
        let partitions = sys::rd_kafka_TopicDescription_partitions(description, &raw mut count);
        let partitions = if partitions.is_null() { &[] } else { std::slice::from_raw_parts(partitions, count) };
        let ids = partitions.iter().map(|p| PartitionId(sys::rd_kafka_TopicPartitionInfo_partition(*p))).collect();
        Ok((topic_id, ids))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(topic_id: &str) -> TopicIdentity {
        TopicIdentity { cluster_id: "c".into(), topic_id: topic_id.into() }
    }

    fn stored(next: &[(i32, i64)]) -> StreamFrontier {
        StreamFrontier {
            topic: Some(identity("t")),
            next: next.iter().map(|(p, o)| (PartitionId(*p), Offset(*o))).collect(),
        }
    }

    fn facts(partitions: &[(i32, i64, i64)]) -> TopicFacts {
        TopicFacts {
            identity: identity("t"),
            partitions: partitions.iter().map(|(p, a, b)| (PartitionId(*p), (Offset(*a), Offset(*b)))).collect(),
            compacted: false,
        }
    }

    fn halted(judgement: &Judgement) -> Vec<(i32, &str)> {
        match judgement {
            Judgement::Read { halt, .. } => halt.iter().map(|(p, reason)| (p.0, reason.as_str())).collect(),
            Judgement::Refuse(reason) => vec![(-1, reason)],
        }
    }

    #[test]
    fn goes_on_at_the_stored_position_and_begins_new_partitions_at_their_first_record() {
        let start = [(PartitionId(0), Offset(5)), (PartitionId(1), Offset(3))].into();
        let judgement = judge(&stored(&[(0, 5)]), &facts(&[(0, 0, 9), (1, 3, 8)]));
        assert_eq!(judgement, Judgement::Read { start, halt: BTreeMap::new() });
    }

    #[test]
    fn halts_a_partition_whose_log_lost_records() {
        let judgement = judge(&stored(&[(0, 5)]), &facts(&[(0, 7, 9)]));
        assert!(halted(&judgement)[0].1.starts_with("offsets 5 to 6 are gone"), "{judgement:?}");
        let judgement = judge(&stored(&[(0, 5)]), &facts(&[(0, 0, 4)]));
        assert!(halted(&judgement)[0].1.contains("the log ends at 4"), "{judgement:?}");
        let judgement = judge(&stored(&[(0, 5), (1, 2)]), &facts(&[(0, 0, 9)]));
        assert_eq!(halted(&judgement), [(1, "the partition is gone from the topic")]);
    }

    #[test]
    fn refuses_another_topic_of_the_same_name_and_a_compacted_one() {
        let other = TopicFacts { identity: identity("u"), ..facts(&[(0, 0, 9)]) };
        assert!(matches!(judge(&stored(&[(0, 5)]), &other), Judgement::Refuse(_)));
        let compacted = TopicFacts { compacted: true, ..facts(&[(0, 0, 9)]) };
        assert!(matches!(judge(&StreamFrontier::default(), &compacted), Judgement::Refuse(_)));
    }
}
