//! The rules by which the members of a group agree: rounds of joining, then one assignment from the leader.
//!
//! | phase | members wait for | it ends when |
//! |---|---|---|
//! | empty | nothing | someone joins |
//! | joining | the others | all have joined again, or the round's deadline: the missing are dropped |
//! | syncing | the leader's assignment | the leader sends it |
//! | stable | nothing | someone joins, leaves or falls silent |

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use tokio::time::Instant;
use uuid::Uuid;

const MEMBERS_MAX: usize = 1_000;

/// One consumer group. Time is given by the caller.
#[derive(Debug, Default)]
pub(super) struct Group {
    phase: Phase,
    generation: i32,
    protocol_type: String,
    protocol: String,
    leader: String,
    members: BTreeMap<String, Member>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Empty,
    Joining {
        deadline: Instant,
    },
    Syncing,
    Stable,
}

#[derive(Debug)]
struct Member {
    protocols: Vec<(String, Bytes)>,
    session_timeout: Duration,
    rebalance_timeout: Duration,
    assignment: Bytes,
    has_joined: bool,
    seen_at: Instant,
}

/// A member's wish to take part in the next round.
#[derive(Debug)]
pub(super) struct Joining {
    /// Empty for a newcomer, who is given a name.
    pub(super) member: String,
    pub(super) protocol_type: String,
    pub(super) protocols: Vec<(String, Bytes)>,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
}

/// The result of a round for one member.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Joined {
    pub(super) member: String,
    pub(super) leader: String,
    pub(super) generation: i32,
    pub(super) protocol: String,
    /// Everyone with their metadata, for the leader only.
    pub(super) members: Vec<(String, Bytes)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Synced {
    Assigned(Bytes),
    WaitUntil(Instant),
}

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Takes a member into the next round and returns its name.
    pub(super) fn join(&mut self, joining: Joining, now: Instant) -> Result<String, ResponseError> {
        self.drop_silent(now);
        let name = match joining.member.is_empty() {
            true if self.members.len() >= MEMBERS_MAX => return Err(ResponseError::GroupMaxSizeReached),
            true => format!("member-{}", Uuid::new_v4()),
            false if !self.members.contains_key(&joining.member) => return Err(ResponseError::UnknownMemberId),
            false => joining.member,
        };
        let others = || self.members.iter().filter(|(known, _)| **known != name).map(|(_, member)| member);
        let speaks = |member: &Member| {
            member.protocols.iter().any(|(known, _)| joining.protocols.iter().any(|(name, _)| name == known))
        };
        let is_alone = others().next().is_none();
        if !is_alone && (self.protocol_type != joining.protocol_type || !others().all(speaks)) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        self.protocol_type = joining.protocol_type;
        let member = Member {
            protocols: joining.protocols,
            session_timeout: joining.session_timeout,
            rebalance_timeout: joining.rebalance_timeout,
            assignment: Bytes::new(),
            has_joined: true,
            seen_at: now,
        };
        self.members.insert(name.clone(), member);
        match self.phase {
            Phase::Joining { .. } => {}
            Phase::Empty | Phase::Syncing | Phase::Stable => {
                self.begin_round(now);
                if let Some(member) = self.members.get_mut(&name) {
                    member.has_joined = true;
                }
            }
        }
        Ok(name)
    }

    /// The result of the round, or until when to wait for it.
    pub(super) fn joined(&mut self, name: &str, now: Instant) -> Result<Result<Joined, Instant>, ResponseError> {
        if let Phase::Joining { deadline } = self.phase {
            if now < deadline && !self.members.values().all(|member| member.has_joined) {
                return Ok(Err(deadline));
            }
            self.end_round(now)?;
        }
        let member = self.members.get_mut(name).ok_or(ResponseError::UnknownMemberId)?;
        member.seen_at = now;
        let members = match self.leader == name {
            true => {
                self.members.iter().map(|(name, member)| (name.clone(), member.speaks(&self.protocol))).collect()
            }
            false => Vec::new(),
        };
        Ok(Ok(Joined {
            member: name.to_owned(),
            leader: self.leader.clone(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            members,
        }))
    }

    /// Takes the leader's assignments; from others there are none to take.
    pub(super) fn assign(
        &mut self,
        name: &str,
        generation: i32,
        assignments: Vec<(String, Bytes)>,
        now: Instant,
    ) -> Result<(), ResponseError> {
        self.check(name, generation, now)?;
        if self.phase != Phase::Syncing || self.leader != name {
            return Ok(());
        }
        for (name, assignment) in assignments {
            if let Some(member) = self.members.get_mut(&name) {
                member.assignment = assignment;
            }
        }
        self.phase = Phase::Stable;
        Ok(())
    }

    pub(super) fn synced(&self, name: &str, generation: i32) -> Result<Synced, ResponseError> {
        let member = self.members.get(name).ok_or(ResponseError::UnknownMemberId)?;
        match self.phase {
            Phase::Stable if self.generation == generation => Ok(Synced::Assigned(member.assignment.clone())),
            Phase::Syncing if self.generation == generation => {
                Ok(Synced::WaitUntil(member.seen_at + member.rebalance_timeout))
            }
            _ => Err(ResponseError::RebalanceInProgress),
        }
    }

    pub(super) fn heartbeat(&mut self, name: &str, generation: i32, now: Instant) -> Result<(), ResponseError> {
        self.check(name, generation, now)?;
        self.drop_silent(now);
        match self.phase {
            Phase::Joining { .. } => Err(ResponseError::RebalanceInProgress),
            Phase::Empty | Phase::Syncing | Phase::Stable => Ok(()),
        }
    }

    pub(super) fn leave(&mut self, name: &str, now: Instant) -> Result<(), ResponseError> {
        self.members.remove(name).ok_or(ResponseError::UnknownMemberId)?;
        self.begin_round(now);
        Ok(())
    }

    /// Whether a commit of this member is to be believed. A commit without membership needs an empty group.
    pub(super) fn may_commit(&mut self, name: &str, generation: i32, now: Instant) -> Result<(), ResponseError> {
        self.drop_silent(now);
        match generation < 0 && self.members.is_empty() {
            true => Ok(()),
            false => self.check(name, generation, now),
        }
    }

    fn check(&mut self, name: &str, generation: i32, now: Instant) -> Result<(), ResponseError> {
        let member = self.members.get_mut(name).ok_or(ResponseError::UnknownMemberId)?;
        member.seen_at = now;
        match self.generation == generation {
            true => Ok(()),
            false => Err(ResponseError::IllegalGeneration),
        }
    }

    /// Everyone has to join again; with nobody left the group is empty.
    fn begin_round(&mut self, now: Instant) {
        for member in self.members.values_mut() {
            member.has_joined &= matches!(self.phase, Phase::Joining { .. });
        }
        let patience = self.members.values().map(|member| member.rebalance_timeout).max();
        self.phase = match (patience, self.phase) {
            (None, _) => Phase::Empty,
            (Some(_), Phase::Joining { deadline }) => Phase::Joining { deadline },
            (Some(patience), _) => Phase::Joining { deadline: now + patience },
        };
    }

    fn end_round(&mut self, now: Instant) -> Result<(), ResponseError> {
        self.members.retain(|_, member| member.has_joined);
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        if !self.members.contains_key(&self.leader) {
            self.leader = self.members.keys().next().cloned().unwrap_or_default();
        }
        // The first of the leader's protocols that everyone speaks; joining made sure that there is one.
        let leader = self.members.get(&self.leader).ok_or(ResponseError::UnknownMemberId)?;
        let common = leader.protocols.iter().map(|(name, _)| name).find(|name| {
            self.members.values().all(|member| member.protocols.iter().any(|(known, _)| known == *name))
        });
        self.protocol = common.ok_or(ResponseError::InconsistentGroupProtocol)?.clone();
        for member in self.members.values_mut() {
            member.seen_at = now;
            member.assignment = Bytes::new();
        }
        self.phase = Phase::Syncing;
        Ok(())
    }

    /// Those who wait for a round to end are not silent: they cannot speak before it does.
    fn drop_silent(&mut self, now: Instant) {
        let waits = matches!(self.phase, Phase::Joining { .. });
        let before = self.members.len();
        self.members.retain(|_, member| {
            (waits && member.has_joined) || now.saturating_duration_since(member.seen_at) <= member.session_timeout
        });
        if self.members.len() < before {
            self.begin_round(now);
        }
    }
}

impl Member {
    fn speaks(&self, protocol: &str) -> Bytes {
        let known = self.protocols.iter().find(|(name, _)| name == protocol);
        known.map_or_else(Bytes::new, |(_, metadata)| metadata.clone())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(10);

    fn joining(member: &str) -> Joining {
        Joining {
            member: member.to_owned(),
            protocol_type: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), Bytes::from_static(b"topics"))],
            session_timeout: SESSION,
            rebalance_timeout: SESSION,
        }
    }

    #[test]
    fn a_newcomer_makes_the_others_join_again() {
        let (mut group, now) = (Group::default(), Instant::now());
        let first = group.join(joining(""), now).unwrap();
        let alone = group.joined(&first, now).unwrap().unwrap();
        assert_eq!((alone.generation, alone.members.len()), (1, 1));
        group.assign(&first, 1, vec![(first.clone(), Bytes::from_static(b"all"))], now).unwrap();
        assert_eq!(group.synced(&first, 1).unwrap(), Synced::Assigned(Bytes::from_static(b"all")));

        let second = group.join(joining(""), now).unwrap();
        assert!(group.joined(&second, now).unwrap().is_err(), "the first has not joined again");
        assert_eq!(group.heartbeat(&first, 1, now), Err(ResponseError::RebalanceInProgress));
        group.join(joining(&first), now).unwrap();
        let led = group.joined(&first, now).unwrap().unwrap();
        let followed = group.joined(&second, now).unwrap().unwrap();
        assert_eq!((led.generation, led.members.len()), (2, 2));
        assert_eq!((followed.generation, followed.members.len()), (2, 0));
        assert_eq!(group.heartbeat(&second, 1, now), Err(ResponseError::IllegalGeneration));
    }

    #[test]
    fn a_silent_member_is_dropped_and_its_commits_refused() {
        let (mut group, now) = (Group::default(), Instant::now());
        let member = group.join(joining(""), now).unwrap();
        group.joined(&member, now).unwrap().unwrap();
        assert_eq!(group.may_commit("", -1, now), Err(ResponseError::UnknownMemberId));
        let later = now + SESSION + Duration::from_millis(1);
        assert_eq!(group.may_commit("", -1, later), Ok(()));
        assert_eq!(group.may_commit(&member, 1, later), Err(ResponseError::UnknownMemberId));
    }
}
