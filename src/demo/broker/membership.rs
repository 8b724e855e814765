//! Answers to members of consumer groups (the classic protocol), and their commits.
//!
//! The rules are in [`super::rounds`]; here they meet the wire and the waiting.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, OffsetCommitRequest, OffsetCommitResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::groups::Committed;
use super::node::Node;
use super::rounds::{Group, Joined, Joining, Synced};

const GROUPS_MAX: usize = 1_000;
const PROTOCOLS_MAX: usize = 32;
const TIMEOUT_MAX: Duration = Duration::from_secs(1_800);

/// The groups that have, or had, members. They are not kept over a restart: members join again.
#[derive(Debug, Default)]
pub(super) struct Memberships {
    groups: Mutex<std::collections::HashMap<String, Arc<Shared>>>,
}

#[derive(Debug, Default)]
struct Shared {
    group: Mutex<Group>,
    changed: watch::Sender<()>,
}

impl Memberships {
    fn of(&self, name: &str) -> Option<Arc<Shared>> {
        self.groups.lock().get(name).cloned()
    }

    fn of_or_new(&self, name: &str) -> Result<Arc<Shared>, ResponseError> {
        if name.is_empty() {
            return Err(ResponseError::InvalidGroupId);
        }
        let mut groups = self.groups.lock();
        if !groups.contains_key(name) && groups.len() >= GROUPS_MAX {
            groups.retain(|_, shared| !shared.group.lock().is_empty());
            if groups.len() >= GROUPS_MAX {
                return Err(ResponseError::GroupMaxSizeReached);
            }
        }
        Ok(Arc::clone(groups.entry(name.to_owned()).or_default()))
    }
}

/// Answers when the round of joining is over.
pub(super) async fn join(node: &Arc<Node>, request: JoinGroupRequest) -> JoinGroupResponse {
    match joined(node, request).await {
        Ok(joined) => {
            let members = joined.members.into_iter().map(|(id, metadata)| {
                JoinGroupResponseMember::default().with_member_id(StrBytes::from_string(id)).with_metadata(metadata)
            });
            JoinGroupResponse::default()
                .with_generation_id(joined.generation)
                .with_protocol_name(Some(StrBytes::from_string(joined.protocol)))
                .with_leader(StrBytes::from_string(joined.leader))
                .with_member_id(StrBytes::from_string(joined.member))
                .with_members(members.collect())
        }
        Err((reason, member)) => JoinGroupResponse::default()
            .with_error_code(reason.code())
            .with_generation_id(-1)
            .with_protocol_name(Some(StrBytes::new()))
            .with_member_id(member),
    }
}

async fn joined(node: &Arc<Node>, request: JoinGroupRequest) -> Result<Joined, (ResponseError, StrBytes)> {
    let failed = |reason: ResponseError| (reason, request.member_id.clone());
    if request.protocols.is_empty() || request.protocols.len() > PROTOCOLS_MAX {
        return Err(failed(ResponseError::InconsistentGroupProtocol));
    }
    let shared = node.memberships.of_or_new(&request.group_id).map_err(failed)?;
    let session_timeout = timeout(request.session_timeout_ms);
    let rebalance_timeout = match request.rebalance_timeout_ms {
        ..=0 => session_timeout,
        given => timeout(given),
    };
    let mut changes = shared.changed.subscribe();
    let joining = Joining {
        member: request.member_id.to_string(),
        protocol_type: request.protocol_type.to_string(),
        protocols: request.protocols.iter().map(|known| (known.name.to_string(), known.metadata.clone())).collect(),
        session_timeout,
        rebalance_timeout,
    };
    let member = shared.group.lock().join(joining, Instant::now()).map_err(failed)?;
    shared.changed.send_replace(());
    loop {
        changes.borrow_and_update();
        let looked = shared.group.lock().joined(&member, Instant::now()).map_err(failed)?;
        let deadline = match looked {
            Ok(joined) => {
                shared.changed.send_replace(());
                return Ok(joined);
            }
            Err(deadline) => deadline,
        };
        let _ = tokio::time::timeout_at(deadline, changes.changed()).await;
    }
}

/// Answers when the leader has sent the assignments.
pub(super) async fn sync(node: &Arc<Node>, request: SyncGroupRequest) -> SyncGroupResponse {
    match synced(node, request).await {
        Ok(assignment) => SyncGroupResponse::default().with_assignment(assignment),
        Err(reason) => SyncGroupResponse::default().with_error_code(reason.code()),
    }
}

async fn synced(node: &Arc<Node>, request: SyncGroupRequest) -> Result<Bytes, ResponseError> {
    let shared = node.memberships.of(&request.group_id).ok_or(ResponseError::UnknownMemberId)?;
    let mut changes = shared.changed.subscribe();
    let assignments = request
        .assignments
        .into_iter()
        .map(|assigned| (assigned.member_id.to_string(), assigned.assignment))
        .collect::<Vec<_>>();
    shared.group.lock().assign(&request.member_id, request.generation_id, assignments, Instant::now())?;
    shared.changed.send_replace(());
    loop {
        changes.borrow_and_update();
        let looked = shared.group.lock().synced(&request.member_id, request.generation_id)?;
        match looked {
            Synced::Assigned(assignment) => return Ok(assignment),
            Synced::WaitUntil(deadline) => {
                if tokio::time::timeout_at(deadline, changes.changed()).await.is_err() {
                    return Err(ResponseError::RebalanceInProgress);
                }
            }
        }
    }
}

pub(super) fn heartbeat(node: &Arc<Node>, request: HeartbeatRequest) -> HeartbeatResponse {
    let alive = node.memberships.of(&request.group_id).ok_or(ResponseError::UnknownMemberId).and_then(|shared| {
        let alive = shared.group.lock().heartbeat(&request.member_id, request.generation_id, Instant::now());
        shared.changed.send_replace(());
        alive
    });
    HeartbeatResponse::default().with_error_code(alive.err().map_or(0, |reason| reason.code()))
}

pub(super) fn leave(node: &Arc<Node>, request: LeaveGroupRequest, version: i16) -> LeaveGroupResponse {
    let shared = node.memberships.of(&request.group_id);
    let left = |member: &str| match &shared {
        None => ResponseError::UnknownMemberId.code(),
        Some(shared) => {
            let left = shared.group.lock().leave(member, Instant::now());
            shared.changed.send_replace(());
            left.err().map_or(0, |reason| reason.code())
        }
    };
    if version < 3 {
        return LeaveGroupResponse::default().with_error_code(left(&request.member_id));
    }
    let members = request.members.into_iter().map(|leaving| {
        let code = left(&leaving.member_id);
        MemberResponse::default()
            .with_member_id(leaving.member_id)
            .with_group_instance_id(leaving.group_instance_id)
            .with_error_code(code)
    });
    LeaveGroupResponse::default().with_members(members.collect())
}

/// Commits of a consumer that assigns partitions itself are taken as long as its group has no members.
pub(super) fn commit(node: &Arc<Node>, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let may_commit = match node.memberships.of(&request.group_id) {
        None if request.generation_id_or_member_epoch < 0 => Ok(()),
        None => Err(ResponseError::UnknownMemberId),
        Some(shared) => {
            let (member, generation) = (&request.member_id, request.generation_id_or_member_epoch);
            shared.group.lock().may_commit(member, generation, Instant::now())
        }
    };
    let mut accepted = Vec::new();
    let mut topics: Vec<_> = request
        .topics
        .into_iter()
        .map(|topic| {
            let partitions = topic.partitions.into_iter().map(|asked| {
                let number = asked.partition_index;
                let committed = may_commit.and_then(|()| checked(node, &request.group_id, &topic.name, asked)).map(
                    |committed| {
                        let group = request.group_id.to_string();
                        accepted.push((group, topic.name.to_string(), number, committed));
                    },
                );
                OffsetCommitResponsePartition::default()
                    .with_partition_index(number)
                    .with_error_code(committed.err().map_or(0, |reason| reason.code()))
            });
            let partitions = partitions.collect();
            OffsetCommitResponseTopic::default().with_name(topic.name).with_partitions(partitions)
        })
        .collect();
    if let Err(error) = node.groups.commit_all(&accepted) {
        tracing::error!(group = request.group_id.as_str(), %error, "group offsets were not stored");
        for partition in topics.iter_mut().flat_map(|topic| &mut topic.partitions) {
            partition.error_code = ResponseError::CoordinatorNotAvailable.code();
        }
    }
    OffsetCommitResponse::default().with_topics(topics)
}

fn checked(
    node: &Node,
    group: &str,
    topic: &str,
    asked: OffsetCommitRequestPartition,
) -> Result<Committed, ResponseError> {
    let known = node.topics.named(topic).and_then(|topic| topic.partition(asked.partition_index));
    known.ok_or(ResponseError::UnknownTopicOrPartition)?;
    let committed = Committed {
        offset: asked.committed_offset,
        leader_epoch: asked.committed_leader_epoch,
        metadata: asked.committed_metadata.map_or_else(String::new, |metadata| metadata.to_string()),
    };
    node.groups.may_commit(group, &committed)?;
    Ok(committed)
}

fn timeout(ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0)).min(TIMEOUT_MAX)
}
