//! The requests this broker understands, with their versions and shapes.

use kafka_protocol::messages::ApiKey;

use super::shape::Shape::{Blob, Fixed, List, Structs, Text};
use super::shape::{Field, Shape, always, since, until};

const BYTE: Shape = Fixed(1);
const SHORT: Shape = Fixed(2);
const INT: Shape = Fixed(4);
const LONG: Shape = Fixed(8);
const UUID: Shape = Fixed(16);

/// A request kind, its versions, and what it is made of.
#[derive(Debug)]
pub(super) struct Supported {
    pub(super) key: ApiKey,
    pub(super) first: i16,
    pub(super) last: i16,
    pub(super) fields: &'static [Field],
}

/// What is known of a request kind.
pub(super) fn supported(key: ApiKey) -> Option<&'static Supported> {
    SUPPORTED.iter().find(|known| known.key == key)
}

const fn known(key: ApiKey, first: i16, last: i16, fields: &'static [Field]) -> Supported {
    Supported { key, first, last, fields }
}

/// Partition numbers by topic name.
const TOPIC_PARTITIONS: &[Field] = &[always(Text), always(List(&INT))];
/// Name and value of a setting.
const SETTING: &[Field] = &[always(Text), always(Text)];

/// Where Kafka knows more versions, the missing ones need what a single node lacks (fetch 17) or change the
/// transaction protocol (produce 12, end of transaction 5); clients fall back.
pub(super) const SUPPORTED: &[Supported] = &[
    known(
        ApiKey::Produce,
        3,
        11,
        &[
            always(Text),
            always(SHORT),
            always(INT),
            always(Structs(&[always(Text), always(Structs(&[always(INT), always(Blob)]))])),
        ],
    ),
    known(
        ApiKey::Fetch,
        4,
        16,
        &[
            until(14, INT),
            always(INT),
            always(INT),
            always(INT),
            always(BYTE),
            since(7, INT),
            since(7, INT),
            always(Structs(&[
                until(12, Text),
                since(13, UUID),
                always(Structs(&[
                    always(INT),
                    since(9, INT),
                    always(LONG),
                    since(12, INT),
                    since(5, LONG),
                    always(INT),
                ])),
            ])),
            since(7, Structs(&[until(12, Text), since(13, UUID), always(List(&INT))])),
            since(11, Text),
        ],
    ),
    known(
        ApiKey::ListOffsets,
        1,
        7,
        &[
            always(INT),
            since(2, BYTE),
            always(Structs(&[always(Text), always(Structs(&[always(INT), since(4, INT), always(LONG)]))])),
        ],
    ),
    known(
        ApiKey::Metadata,
        1,
        12,
        &[always(Structs(&[since(10, UUID), always(Text)])), since(4, BYTE), Field(BYTE, 8, 10), since(8, BYTE)],
    ),
    known(
        ApiKey::OffsetCommit,
        2,
        9,
        &[
            always(Text),
            always(INT),
            always(Text),
            since(7, Text),
            until(4, LONG),
            always(Structs(&[
                always(Text),
                always(Structs(&[always(INT), always(LONG), since(6, INT), always(Text)])),
            ])),
        ],
    ),
    known(
        ApiKey::OffsetFetch,
        1,
        9,
        &[
            until(7, Text),
            until(7, Structs(TOPIC_PARTITIONS)),
            since(8, Structs(&[always(Text), since(9, Text), since(9, INT), always(Structs(TOPIC_PARTITIONS))])),
            since(7, BYTE),
        ],
    ),
    known(ApiKey::FindCoordinator, 0, 4, &[until(3, Text), since(1, BYTE), since(4, List(&Text))]),
    known(
        ApiKey::JoinGroup,
        0,
        6,
        &[
            always(Text),
            always(INT),
            since(1, INT),
            always(Text),
            since(5, Text),
            always(Text),
            always(Structs(&[always(Text), always(Blob)])),
        ],
    ),
    known(ApiKey::Heartbeat, 0, 4, &[always(Text), always(INT), always(Text), since(3, Text)]),
    known(
        ApiKey::LeaveGroup,
        0,
        4,
        &[always(Text), until(2, Text), since(3, Structs(&[always(Text), always(Text)]))],
    ),
    known(
        ApiKey::SyncGroup,
        0,
        4,
        &[always(Text), always(INT), always(Text), since(3, Text), always(Structs(&[always(Text), always(Blob)]))],
    ),
    known(ApiKey::ApiVersions, 0, 4, &[since(3, Text), since(3, Text)]),
    known(
        ApiKey::CreateTopics,
        2,
        7,
        &[
            always(Structs(&[
                always(Text),
                always(INT),
                always(SHORT),
                always(Structs(&[always(INT), always(List(&INT))])),
                always(Structs(SETTING)),
            ])),
            always(INT),
            always(BYTE),
        ],
    ),
    known(
        ApiKey::DeleteTopics,
        1,
        6,
        &[since(6, Structs(&[always(Text), always(UUID)])), until(5, List(&Text)), always(INT)],
    ),
    known(
        ApiKey::DeleteRecords,
        0,
        2,
        &[always(Structs(&[always(Text), always(Structs(&[always(INT), always(LONG)]))])), always(INT)],
    ),
    known(ApiKey::InitProducerId, 0, 4, &[always(Text), always(INT), since(3, LONG), since(3, SHORT)]),
    known(
        ApiKey::OffsetForLeaderEpoch,
        2,
        4,
        &[
            since(3, INT),
            always(Structs(&[always(Text), always(Structs(&[always(INT), always(INT), always(INT)]))])),
        ],
    ),
    known(
        ApiKey::AddPartitionsToTxn,
        0,
        3,
        &[always(Text), always(LONG), always(SHORT), always(Structs(TOPIC_PARTITIONS))],
    ),
    known(ApiKey::AddOffsetsToTxn, 0, 3, &[always(Text), always(LONG), always(SHORT), always(Text)]),
    known(ApiKey::EndTxn, 0, 3, &[always(Text), always(LONG), always(SHORT), always(BYTE)]),
    known(
        ApiKey::TxnOffsetCommit,
        0,
        3,
        &[
            always(Text),
            always(Text),
            always(LONG),
            always(SHORT),
            since(3, INT),
            since(3, Text),
            since(3, Text),
            always(Structs(&[
                always(Text),
                always(Structs(&[always(INT), always(LONG), since(2, INT), always(Text)])),
            ])),
        ],
    ),
    known(
        ApiKey::DescribeConfigs,
        1,
        4,
        &[always(Structs(&[always(BYTE), always(Text), always(List(&Text))])), always(BYTE), since(3, BYTE)],
    ),
    known(
        ApiKey::AlterConfigs,
        0,
        2,
        &[always(Structs(&[always(BYTE), always(Text), always(Structs(SETTING))])), always(BYTE)],
    ),
    known(
        ApiKey::IncrementalAlterConfigs,
        0,
        1,
        &[
            always(Structs(&[
                always(BYTE),
                always(Text),
                always(Structs(&[always(Text), always(BYTE), always(Text)])),
            ])),
            always(BYTE),
        ],
    ),
    known(
        ApiKey::CreatePartitions,
        0,
        3,
        &[
            always(Structs(&[always(Text), always(INT), always(Structs(&[always(List(&INT))]))])),
            always(INT),
            always(BYTE),
        ],
    ),
    known(ApiKey::DescribeCluster, 0, 1, &[always(BYTE), since(1, BYTE)]),
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::messages::*;
    use kafka_protocol::messages::{
        add_partitions_to_txn_request as add_partitions, alter_configs_request as alter,
        create_partitions_request as grow, create_topics_request as create,
        delete_records_request as delete_records, delete_topics_request as delete,
        describe_configs_request as describe, fetch_request as fetch,
        incremental_alter_configs_request as incremental, join_group_request as join, leave_group_request as leave,
        list_offsets_request as list, metadata_request as metadata, offset_commit_request as commit,
        offset_fetch_request as fetch_offsets, offset_for_leader_epoch_request as epoch,
        produce_request as produce, sync_group_request as sync, txn_offset_commit_request as txn_commit,
    };
    use kafka_protocol::protocol::{Request, StrBytes};

    use super::super::shape::{Encoding, walk};
    use super::*;

    /// Checks that the shape covers a request exactly, and that no shorter piece of it passes.
    fn covers<R: Request>(make: impl Fn(i16) -> R) {
        let Supported { first, last, fields, .. } = supported(ApiKey::try_from(R::KEY).unwrap()).unwrap();
        for version in *first..=*last {
            let mut bytes = BytesMut::new();
            make(version).encode(&mut bytes, version).unwrap();
            let encoding = match R::header_version(version) {
                2 => Encoding::Compact,
                _ => Encoding::Fixed,
            };
            let rest = walk(fields, version, encoding, &bytes).unwrap();
            assert_eq!(rest.len(), 0, "kind {} version {version}", R::KEY);
            for shorter in 0..bytes.len() {
                assert!(walk(fields, version, encoding, &bytes[..shorter]).is_err(), "{} {version}", R::KEY);
            }
        }
    }

    fn text() -> StrBytes {
        StrBytes::from_static_str("four")
    }

    #[test]
    fn shapes_cover_requests_for_records_and_offsets() {
        let partition = produce::PartitionProduceData::default().with_records(Some(vec![1, 2, 3].into()));
        let topic = produce::TopicProduceData::default().with_partition_data(vec![partition; 2]);
        covers(|_| ProduceRequest::default().with_topic_data(vec![topic.clone(); 2]));
        let topic = fetch::FetchTopic::default().with_partitions(vec![fetch::FetchPartition::default(); 2]);
        let forgotten = fetch::ForgottenTopic::default().with_partitions(vec![1, 2]);
        covers(|version| {
            let request = FetchRequest::default().with_topics(vec![topic.clone(); 2]);
            match version {
                7.. => request.with_forgotten_topics_data(vec![forgotten.clone(); 2]),
                _ => request,
            }
        });
        let topic =
            list::ListOffsetsTopic::default().with_partitions(vec![list::ListOffsetsPartition::default(); 2]);
        covers(|_| ListOffsetsRequest::default().with_topics(vec![topic.clone(); 2]));
        let topic = delete_records::DeleteRecordsTopic::default()
            .with_partitions(vec![delete_records::DeleteRecordsPartition::default(); 2]);
        covers(|_| DeleteRecordsRequest::default().with_topics(vec![topic.clone(); 2]));
        let topic = epoch::OffsetForLeaderTopic::default()
            .with_partitions(vec![epoch::OffsetForLeaderPartition::default()]);
        covers(|_| OffsetForLeaderEpochRequest::default().with_topics(vec![topic.clone(); 2]));
    }

    #[test]
    fn shapes_cover_requests_of_groups() {
        let topic = commit::OffsetCommitRequestTopic::default()
            .with_partitions(vec![commit::OffsetCommitRequestPartition::default(); 2]);
        covers(|_| OffsetCommitRequest::default().with_topics(vec![topic.clone(); 2]));
        let topic = fetch_offsets::OffsetFetchRequestTopic::default().with_partition_indexes(vec![1, 2]);
        let topics = fetch_offsets::OffsetFetchRequestTopics::default().with_partition_indexes(vec![1, 2]);
        let group = fetch_offsets::OffsetFetchRequestGroup::default().with_topics(Some(vec![topics; 2]));
        covers(|version| match version {
            8.. => OffsetFetchRequest::default().with_groups(vec![group.clone(); 2]),
            _ => OffsetFetchRequest::default().with_topics(Some(vec![topic.clone(); 2])),
        });
        covers(|version| match version {
            4.. => FindCoordinatorRequest::default().with_coordinator_keys(vec![text(); 2]),
            _ => FindCoordinatorRequest::default().with_key(text()),
        });
        let protocol = join::JoinGroupRequestProtocol::default().with_metadata(vec![1, 2].into());
        covers(|_| JoinGroupRequest::default().with_protocols(vec![protocol.clone(); 2]));
        let assignment = sync::SyncGroupRequestAssignment::default().with_assignment(vec![1, 2].into());
        covers(|_| SyncGroupRequest::default().with_assignments(vec![assignment.clone(); 2]));
        covers(|_| HeartbeatRequest::default());
        covers(|version| match version {
            3.. => LeaveGroupRequest::default().with_members(vec![leave::MemberIdentity::default(); 2]),
            _ => LeaveGroupRequest::default().with_member_id(text()),
        });
    }

    #[test]
    fn shapes_cover_requests_of_producers() {
        covers(|_| InitProducerIdRequest::default());
        let topic = add_partitions::AddPartitionsToTxnTopic::default().with_partitions(vec![1, 2]);
        covers(|_| AddPartitionsToTxnRequest::default().with_v3_and_below_topics(vec![topic.clone(); 2]));
        covers(|_| AddOffsetsToTxnRequest::default());
        covers(|_| EndTxnRequest::default());
        let topic = txn_commit::TxnOffsetCommitRequestTopic::default()
            .with_partitions(vec![txn_commit::TxnOffsetCommitRequestPartition::default(); 2]);
        covers(|_| TxnOffsetCommitRequest::default().with_topics(vec![topic.clone(); 2]));
    }

    #[test]
    fn shapes_cover_requests_of_administrators() {
        covers(|_| ApiVersionsRequest::default());
        covers(|_| DescribeClusterRequest::default());
        let topic = metadata::MetadataRequestTopic::default().with_name(Some(TopicName(text())));
        covers(|_| MetadataRequest::default().with_topics(Some(vec![topic.clone(); 2])));
        covers(|_| MetadataRequest::default().with_topics(None));
        let assignment =
            create::CreatableReplicaAssignment::default().with_broker_ids(vec![BrokerId(1), BrokerId(2)]);
        let topic = create::CreatableTopic::default()
            .with_assignments(vec![assignment; 2])
            .with_configs(vec![create::CreatableTopicConfig::default(); 2]);
        covers(|_| CreateTopicsRequest::default().with_topics(vec![topic.clone(); 2]));
        covers(|version| match version {
            6.. => DeleteTopicsRequest::default().with_topics(vec![delete::DeleteTopicState::default(); 2]),
            _ => DeleteTopicsRequest::default().with_topic_names(vec![TopicName(text()); 2]),
        });
        let assignment = grow::CreatePartitionsAssignment::default().with_broker_ids(vec![BrokerId(1)]);
        let topic = grow::CreatePartitionsTopic::default().with_assignments(Some(vec![assignment; 2]));
        covers(|_| CreatePartitionsRequest::default().with_topics(vec![topic.clone(); 2]));
        let resource = describe::DescribeConfigsResource::default().with_configuration_keys(Some(vec![text(); 2]));
        covers(|_| DescribeConfigsRequest::default().with_resources(vec![resource.clone(); 2]));
        let resource =
            alter::AlterConfigsResource::default().with_configs(vec![alter::AlterableConfig::default(); 2]);
        covers(|_| AlterConfigsRequest::default().with_resources(vec![resource.clone(); 2]));
        let resource = incremental::AlterConfigsResource::default()
            .with_configs(vec![incremental::AlterableConfig::default(); 2]);
        covers(|_| IncrementalAlterConfigsRequest::default().with_resources(vec![resource.clone(); 2]));
    }
}
