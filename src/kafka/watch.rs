//! The topic watch: looks at the topics of all sources now and then, and tells the poll loop which partitions to read
//! and which to stop.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::Source;
use super::consumer::Surroundings;
use super::status::{IntakeStatus, Witness};
use super::topics::{Judgement, TopicError, TopicReader, judge};
use crate::position::{Offset, PartitionId, TopicIdentity};

/// What the topic watch tells the poll loop.
pub(super) enum TopicEvent {
    Read { source: usize, identity: TopicIdentity, start: BTreeMap<PartitionId, Offset> },
    Stop { source: usize, partitions: Vec<PartitionId> },
}

/// How a look at a topic ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Read,
    Missing,
    NoAnswer,
}

pub(super) struct TopicWatch {
    pub(super) reader: TopicReader,
    pub(super) sources: Vec<Source>,
    pub(super) interval: Duration,
    /// Per source the partitions handed to the poll loop, with their first position.
    pub(super) known: Vec<BTreeMap<PartitionId, Offset>>,
    /// Per source the partitions whose log ended before what was read of them. What is written there afterwards
    /// stands at offsets that are counted already, so they stay halted, however long the log grows again.
    pub(super) lost: Vec<BTreeMap<PartitionId, String>>,
    pub(super) events: Sender<TopicEvent>,
}

impl TopicWatch {
    pub(super) fn run(mut self, rechecks: &Receiver<()>, around: &Surroundings) {
        while !around.shutdown.is_triggered() {
            let complete = self.look_at_all(around);
            // Until all topics are found, look often: a newcomer creates them while we wait.
            let wait = if complete { self.interval } else { Duration::from_millis(500) };
            let until = Instant::now() + wait;
            while Instant::now() < until && !around.shutdown.is_triggered() {
                match rechecks.recv_timeout(Duration::from_millis(100)) {
                    Ok(()) => break,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    }

    /// True when every topic could be read. Each question that gets no answer takes seconds: so the first is enough.
    fn look_at_all(&mut self, around: &Surroundings) -> bool {
        let mut complete = true;
        for source in 0..self.sources.len() {
            if around.shutdown.is_triggered() {
                return false;
            }
            match self.look(source, &around.status) {
                Look::Read => {}
                Look::Missing => complete = false,
                Look::NoAnswer => return false,
            }
        }
        complete
    }

    fn look(&mut self, source: usize, status: &IntakeStatus) -> Look {
        let (Some(known), Some(lost), Some(entry)) =
            (self.known.get_mut(source), self.lost.get_mut(source), self.sources.get_mut(source))
        else {
            return Look::Read;
        };
        let stream = entry.stream.name.as_str();
        // Taken before the brokers are asked: what was reached by then must lie within what they answer.
        let mut reached = entry.frontier.clone();
        for (partition, seen) in status.partitions().get(stream).into_iter().flatten() {
            reached.next.insert(*partition, seen.position);
        }
        let facts = match self.reader.facts(&entry.stream.topic) {
            Ok(facts) => facts,
            Err(TopicError::Missing(reason)) => {
                status.unreachable(Witness::Answers, None);
                status.stream(stream, Some(reason));
                return Look::Missing;
            }
            Err(error) => {
                status.unreachable(Witness::Answers, Some(error.to_string()));
                return Look::NoAnswer;
            }
        };
        status.unreachable(Witness::Answers, None);
        match judge(&reached, &facts) {
            Judgement::Refuse(reason) => {
                status.stream(stream, Some(reason));
                let partitions: Vec<_> = std::mem::take(known).into_keys().collect();
                if !partitions.is_empty() {
                    // A send fails only when the poll loop has ended with the process.
                    let _ = self.events.send(TopicEvent::Stop { source, partitions });
                }
            }
            Judgement::Read { start, halt } => {
                status.stream(stream, None);
                entry.frontier.topic.get_or_insert_with(|| facts.identity.clone());
                for (partition, reason) in &halt {
                    if facts.partitions.get(partition).is_none_or(|(_, end)| *end < reached.position(*partition)) {
                        lost.entry(*partition).or_insert_with(|| reason.clone());
                    }
                }
                for (partition, reason) in
                    halt.into_iter().filter(|(p, _)| !lost.contains_key(p)).chain(lost.clone())
                {
                    status.halt(stream, partition, reached.position(partition), reason);
                    if known.remove(&partition).is_some() {
                        let _ = self.events.send(TopicEvent::Stop { source, partitions: vec![partition] });
                    }
                }
                let fresh: BTreeMap<_, _> =
                    start.into_iter().filter(|(p, _)| !known.contains_key(p) && !lost.contains_key(p)).collect();
                for (partition, position) in &fresh {
                    let end = facts.partitions.get(partition).map_or(*position, |(_, end)| *end);
                    status.reading(stream, *partition, *position, end);
                    known.insert(*partition, *position);
                }
                if !fresh.is_empty() {
                    let _ = self.events.send(TopicEvent::Read { source, identity: facts.identity, start: fresh });
                }
            }
        }
        Look::Read
    }
}
