//! Which requests this broker understands, and who answers them.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};
use kafka_protocol::protocol::Request;

use super::faults::Dropped;
use super::node::Node;
use super::supported::{SUPPORTED, supported};
use super::wire::{Envelope, RequestError};
use super::{admin, cluster, fetch, membership, offsets, produce, transacting};

/// What happens on the connection after a request.
#[derive(Debug)]
pub(super) enum Answer {
    Send(Bytes),
    /// The client asked for no answer.
    Nothing,
    /// Close without an answer.
    Hang,
}

/// Carries out the request in `frame`.
pub(super) async fn answer(node: &Arc<Node>, mut frame: Bytes) -> Result<Answer, RequestError> {
    let envelope = open(&frame)?;
    let Envelope { key, version, .. } = envelope;
    let Some(known) = ApiKey::try_from(key).ok().and_then(supported) else {
        return Err(RequestError::Unknown { key, version });
    };
    let api = known.key;
    let speaks_version = (known.first..=known.last).contains(&version);
    if api == ApiKey::ApiVersions {
        return api_versions(&envelope, speaks_version).map(Answer::Send);
    }
    if !speaks_version {
        return Err(RequestError::Unknown { key, version });
    }
    let frame = &mut frame;
    match api {
        ApiKey::Produce => {
            let request = envelope.decode(frame)?;
            let response = produce::produce(node, request).await?;
            match response {
                _ if node.faults.drops(Dropped::Produce) => Ok(Answer::Hang),
                Some(response) => {
                    envelope.encode::<kafka_protocol::messages::ProduceRequest>(&response).map(Answer::Send)
                }
                None => Ok(Answer::Nothing),
            }
        }
        ApiKey::Fetch => {
            let request = envelope.decode(frame)?;
            let answer = fetch::fetch(node, request, &envelope).await?;
            match node.faults.drops(Dropped::Fetch) {
                true => Ok(Answer::Hang),
                false => Ok(Answer::Send(answer)),
            }
        }
        ApiKey::JoinGroup => {
            let request = envelope.decode(frame)?;
            let response = membership::join(node, request).await;
            envelope.encode::<kafka_protocol::messages::JoinGroupRequest>(&response).map(Answer::Send)
        }
        ApiKey::SyncGroup => {
            let request = envelope.decode(frame)?;
            let response = membership::sync(node, request).await;
            envelope.encode::<kafka_protocol::messages::SyncGroupRequest>(&response).map(Answer::Send)
        }
        _ => answer_at_once(node, api, &envelope, frame).map(Answer::Send),
    }
}

fn answer_at_once(
    node: &Arc<Node>,
    api: ApiKey,
    envelope: &Envelope,
    frame: &mut Bytes,
) -> Result<Bytes, RequestError> {
    match api {
        ApiKey::Metadata => with(envelope, frame, |request| cluster::metadata(node, request)),
        ApiKey::DescribeCluster => with(envelope, frame, |request| cluster::describe_cluster(node, request)),
        ApiKey::FindCoordinator => {
            with(envelope, frame, |request| cluster::find_coordinator(node, request, envelope.version))
        }
        ApiKey::CreateTopics => with(envelope, frame, |request| admin::create_topics(node, request)),
        ApiKey::DeleteTopics => with(envelope, frame, |request| admin::delete_topics(node, request)),
        ApiKey::CreatePartitions => with(envelope, frame, |request| admin::create_partitions(node, request)),
        ApiKey::DescribeConfigs => with(envelope, frame, |request| admin::describe_configs(node, request)),
        ApiKey::AlterConfigs => with(envelope, frame, |request| admin::alter_configs(node, request)),
        ApiKey::IncrementalAlterConfigs => {
            with(envelope, frame, |request| admin::incremental_alter_configs(node, request))
        }
        ApiKey::DeleteRecords => with(envelope, frame, |request| offsets::delete_records(node, request)),
        ApiKey::ListOffsets => with(envelope, frame, |request| offsets::list(node, request)),
        ApiKey::OffsetForLeaderEpoch => with(envelope, frame, |request| offsets::for_leader_epoch(node, request)),
        ApiKey::OffsetCommit => with(envelope, frame, |request| membership::commit(node, request)),
        ApiKey::OffsetFetch => {
            with(envelope, frame, |request| offsets::fetch_committed(node, request, envelope.version))
        }
        ApiKey::Heartbeat => with(envelope, frame, |request| membership::heartbeat(node, request)),
        ApiKey::LeaveGroup => with(envelope, frame, |request| membership::leave(node, request, envelope.version)),
        ApiKey::InitProducerId => with(envelope, frame, |request| transacting::init(node, request)),
        ApiKey::AddPartitionsToTxn => with(envelope, frame, |request| transacting::add_partitions(node, request)),
        ApiKey::AddOffsetsToTxn => with(envelope, frame, |request| transacting::add_offsets(node, request)),
        ApiKey::TxnOffsetCommit => with(envelope, frame, |request| transacting::commit_offsets(node, request)),
        ApiKey::EndTxn => with(envelope, frame, |request| transacting::end(node, request)),
        _ => Err(RequestError::Unknown { key: envelope.key, version: envelope.version }),
    }
}

fn with<R: Request>(
    envelope: &Envelope,
    frame: &mut Bytes,
    answer: impl FnOnce(R) -> R::Response,
) -> Result<Bytes, RequestError> {
    let request = envelope.decode(frame)?;
    envelope.encode::<R>(&answer(request))
}

/// The first eight bytes of every request, in every version.
fn open(frame: &Bytes) -> Result<Envelope, RequestError> {
    let mut start = frame.as_ref();
    let mut fields = || {
        let (key, version) = (start.try_get_i16()?, start.try_get_i16()?);
        Ok::<_, bytes::TryGetError>(Envelope { key, version, correlation_id: start.try_get_i32()? })
    };
    fields().map_err(|error| RequestError::Malformed { key: -1, version: -1, reason: error.to_string() })
}

/// A client that asks in a version from the future is answered in version 0, from which it can go on.
fn api_versions(envelope: &Envelope, known: bool) -> Result<Bytes, RequestError> {
    let api_keys = SUPPORTED
        .iter()
        .map(|known| {
            let version = ApiVersion::default().with_api_key(known.key as i16);
            version.with_min_version(known.first).with_max_version(known.last)
        })
        .collect();
    let response = ApiVersionsResponse::default().with_api_keys(api_keys);
    match known {
        true => envelope.encode::<ApiVersionsRequest>(&response),
        false => {
            let response = response.with_error_code(ResponseError::UnsupportedVersion.code());
            envelope.encode_as(&response, 0)
        }
    }
}
