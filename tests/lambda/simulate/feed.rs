//! The Kafka side of a simulation: topics that are written to and change, and what of them is read.

use std::sync::Arc;

use rand::Rng;
use rand::rngs::StdRng;
use viewledger::kafka::topics::{Judgement, judge};
use viewledger::position::{PartitionId, StreamFrontier};
use viewledger::runtime::Clock;

use super::{STREAMS, World};
use crate::audit::{Event, Positions};
use crate::model::Truth;
use crate::records::{FLAWS, Flaw, Record};
use crate::source::{Entry, Topic, fetch};

/// Work that waits for a committer makes intake wait, as its bounded queue does.
const BACKLOG_MAX: usize = 24;

/// A topic with the stream that reads it.
pub(super) struct Feed {
    pub(super) topic: Topic,
    pub(super) truth: Truth,
    /// The first topic's identity is kept; another one is never read.
    pub(super) refused: bool,
    /// Partitions whose log lost what was read of them.
    pub(super) truncated: Vec<PartitionId>,
}

impl World<'_> {
    pub(super) fn write(&mut self, source: usize) {
        for _ in 0..self.rng.random_range(1..8) {
            let entry = match self.rng.random_ratio(1, 12) {
                true => Entry::Nothing,
                false => Entry::Record(Arc::new(random_record(&mut self.rng))),
            };
            let feed = &mut self.feeds[source];
            let partition = self.rng.random_range(0..feed.topic.partitions());
            // What is written after a truncation stands at offsets that were counted already: nobody can tell.
            if !feed.truncated.contains(&PartitionId(i32::try_from(partition).unwrap())) {
                feed.topic.write(partition, entry);
            }
        }
    }

    /// Where each partition is read on; as the topic watch decides it.
    pub(super) fn readable(&self, source: usize) -> Option<Positions> {
        let feed = &self.feeds[source];
        let process = self.process.as_ref()?;
        let topic = process.frontiers[source].topic.clone().or_else(|| {
            let began = !feed.truth.next.is_empty() || feed.refused;
            began.then(|| Topic::new(&format!("{}-1", STREAMS[source]), 0).identity().clone())
        });
        let stored = StreamFrontier { topic, next: feed.truth.next.clone() };
        match judge(&stored, &feed.topic.facts()) {
            Judgement::Refuse(_) => None,
            Judgement::Read { start, .. } => {
                Some(start.into_iter().filter(|(partition, _)| !feed.truncated.contains(partition)).collect())
            }
        }
    }

    pub(super) fn deliver(&mut self, source: usize) -> Result<(), String> {
        if self.process()?.backlog() > BACKLOG_MAX {
            return Ok(());
        }
        let Some(mut next) = self.readable(source) else { return Ok(()) };
        let (now, rng, feed) = (self.clock.now(), &mut self.rng, &mut self.feeds[source]);
        let entries = rng.random_range(1..12);
        let Some(fetched) = fetch(&feed.topic, source, &mut next, entries, |open| rng.random_range(0..open), now)
        else {
            return Ok(());
        };
        let to = fetched.raw.positions.clone();
        let from =
            feed.truth.next.clone().into_iter().filter(|(partition, _)| to.contains_key(partition)).collect();
        feed.truth.take(fetched.records, &to);
        self.log.push(Event::Delivered { pid: self.pid, source, from, to });
        self.process()?.deliver(fetched.raw).map_err(|error| format!("deliver: {error}"))
    }

    pub(super) fn change_topic(&mut self, source: usize) -> Result<(), String> {
        let what = self.rng.random_range(0..10);
        let feed = &mut self.feeds[source];
        let partition = self.rng.random_range(0..feed.topic.partitions());
        let id = PartitionId(i32::try_from(partition).unwrap());
        let entries = self.rng.random_range(1..6);
        match what {
            0..4 => feed.topic.add_partition(),
            4..7 => feed.topic.forget(partition, entries),
            7..9 => {
                feed.topic.truncate(partition, entries);
                if feed.topic.end(id) < feed.truth.next.get(&id).copied().unwrap_or_default() {
                    feed.truncated.push(id);
                }
            }
            _ => {
                let partitions = feed.topic.partitions();
                feed.topic = Topic::new(&format!("{}-2", STREAMS[source]), partitions);
                feed.refused = true;
            }
        }
        self.log.push(Event::Around(format!("topic {source} changes: {what}, partition {partition}, {entries}")));
        Ok(())
    }
}

fn random_record(rng: &mut StdRng) -> Record {
    let late = rng.random_ratio(1, 10);
    Record {
        id: rng.random_range(0..40),
        page: rng.random_range(0..3),
        who: rng.random_ratio(3, 4).then(|| rng.random_range(0..4)),
        minute: if late { rng.random_range(-3_000_000..-1_000) } else { rng.random_range(-200..200) },
        ms: rng.random_ratio(9, 10).then(|| if rng.random_ratio(1, 6) { 0 } else { rng.random_range(0..=1000) }),
        cents: rng.random_ratio(4, 5).then(|| rng.random_range(-900..900)),
        quarters: rng.random_ratio(4, 5).then(|| rng.random_range(-40..40)),
        ok: rng.random_ratio(4, 5).then(|| rng.random()),
        tags: rng.random_ratio(2, 3).then(|| (0..rng.random_range(0..3)).map(|_| rng.random_range(0..3)).collect()),
        flaw: if rng.random_ratio(1, 8) { FLAWS[rng.random_range(0..FLAWS.len())] } else { Flaw::Nothing },
    }
}
