//! The log of what happened in a simulation, and the invariants that it must keep. Knows nothing of how it came about.
//!
//! | invariant | kept when |
//! |---|---|
//! | truth of offsets | a process reads on exactly where the epoch ended at which it opened |
//! | durable first | no process opens behind an epoch of which was said that it is committed |
//! | one swap | generations are numbered without a gap, and no reader sees one before the last |
//! | cut | in every snapshot the delta begins where the generation ends, for all streams |
//! | conservation | offsets passed = counted + duplicate + quarantined + gaps, and no offset is passed twice |
//! | fencing | who was succeeded by another commits nothing after that |
//! | equivalence, complete or error | every answer is right, or an error that the bucket caused |

use std::collections::{BTreeMap, BTreeSet};

use viewledger::archive::ledger::Ledger;
use viewledger::position::{Epoch, GenerationId, Offset, PartitionId};

pub type Positions = BTreeMap<PartitionId, Offset>;

/// Number of a process, in the order of opening.
pub type Pid = usize;

/// One thing that happened. Streams are told by their index.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Opened {
        pid: Pid,
        generation: GenerationId,
        streams: Vec<OpenedStream>,
    },
    NotOpened {
        reason: String,
    },
    Delivered {
        pid: Pid,
        source: usize,
        from: Positions,
        to: Positions,
    },
    Sealed {
        pid: Pid,
        source: usize,
        epoch: Epoch,
        next: Positions,
    },
    Committed {
        pid: Pid,
        source: usize,
        epoch: Epoch,
    },
    Published {
        pid: Pid,
        generation: GenerationId,
    },
    Seen {
        pid: Pid,
        generation: GenerationId,
        streams: Vec<SeenStream>,
    },
    /// None: the answer was right; else why it failed, and whether the bucket had failed.
    Answered {
        pid: Pid,
        failed: Option<String>,
        bucket_failed: bool,
    },
    /// Something of the process ended, as it may.
    Ended {
        pid: Pid,
        what: String,
    },
    /// What happened around the processes.
    Around(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct OpenedStream {
    pub epoch: Epoch,
    pub reads_on: Positions,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SeenStream {
    /// Where the generation ends and where the delta begins.
    pub generation: Epoch,
    pub base: Epoch,
    pub archived: Epoch,
    pub end: Positions,
    pub books: Ledger,
}

/// What one process has done so far.
#[derive(Debug, Clone, Default)]
struct Life {
    generation: GenerationId,
    streams: Vec<Standing>,
}

#[derive(Debug, Clone, Default)]
struct Standing {
    next: Positions,
    /// Where each epoch ended, its own and those that it found.
    ends: BTreeMap<Epoch, Positions>,
    committed: Epoch,
}

/// Reads the log once and says what it breaks.
#[derive(Debug, Default)]
pub struct Audit {
    lives: BTreeMap<Pid, Life>,
    newest: Option<Pid>,
    published: GenerationId,
    /// Found by a process that opened, before the one that published them said so: its answer was lost, or it was
    /// stopped.
    unannounced: BTreeSet<GenerationId>,
}

impl Audit {
    pub fn of(log: &[Event]) -> Result<(), String> {
        let mut audit = Self::default();
        for (at, event) in log.iter().enumerate() {
            audit.follow(event).map_err(|reason| format!("event {at}, {event:?}: {reason}"))?;
        }
        Ok(())
    }

    fn follow(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::Opened { pid, generation, streams } => self.opened(*pid, *generation, streams),
            Event::NotOpened { reason } => match reason.contains("is damaged") || reason.contains("are missing") {
                true => Err("durable first: what was committed is gone".to_owned()),
                false => Ok(()),
            },
            Event::Delivered { pid, source, from, to } => {
                let standing = self.standing(*pid, *source);
                for (partition, to) in to {
                    let at = standing.next.get(partition).copied();
                    if from.get(partition).copied() != at || at.is_some_and(|at| *to < at) {
                        return Err(format!("conservation: partition {partition} stood at {at:?}"));
                    }
                }
                standing.next.extend(to.iter().map(|(partition, to)| (*partition, *to)));
                Ok(())
            }
            Event::Sealed { pid, source, epoch, next } => {
                let standing = self.standing(*pid, *source);
                if standing.next != *next {
                    return Err(format!("it was read to {:?}", standing.next));
                }
                standing.ends.insert(*epoch, next.clone());
                Ok(())
            }
            Event::Committed { pid, source, epoch } => self.committed(*pid, *source, *epoch),
            Event::Published { pid: _, generation } => {
                if self.unannounced.remove(generation) {
                    return Ok(());
                }
                if *generation != self.published.next() {
                    return Err(format!("one swap: generation {} was published before", self.published));
                }
                self.published = *generation;
                Ok(())
            }
            Event::Seen { pid, generation, streams } => self.seen(*pid, *generation, streams),
            Event::Answered { failed: Some(reason), bucket_failed: false, .. } => {
                Err(format!("equivalence, or complete or error: {reason}"))
            }
            Event::Answered { .. } | Event::Ended { .. } | Event::Around(_) => Ok(()),
        }
    }

    fn opened(&mut self, pid: Pid, generation: GenerationId, streams: &[OpenedStream]) -> Result<(), String> {
        let before = self.newest.and_then(|newest| self.lives.get(&newest)).cloned().unwrap_or_default();
        let mut life = Life { generation, streams: Vec::new() };
        for (source, found) in streams.iter().enumerate() {
            let mut standing = before.streams.get(source).cloned().unwrap_or_default();
            if found.epoch < standing.committed {
                return Err(format!("durable first: epoch {} was committed", standing.committed));
            }
            standing.ends.retain(|epoch, _| *epoch <= found.epoch);
            let end = standing.ends.get(&found.epoch).cloned().unwrap_or_default();
            if found.epoch.0 != standing.ends.len() as u64 || end != found.reads_on {
                return Err(format!("truth of offsets: epoch {} ended at {end:?}", found.epoch));
            }
            standing.next = end;
            standing.committed = found.epoch;
            life.streams.push(standing);
        }
        if generation > self.published {
            self.unannounced.insert(generation);
        }
        if generation < self.published || generation > self.published.next() {
            return Err(format!("one swap: generation {} was the last", self.published));
        }
        self.published = generation;
        self.lives.insert(pid, life);
        self.newest = Some(pid);
        Ok(())
    }

    fn committed(&mut self, pid: Pid, source: usize, epoch: Epoch) -> Result<(), String> {
        let end = self.standing(pid, source).ends.get(&epoch).cloned();
        let newest = self.newest.unwrap_or(pid);
        if pid != newest && self.standing(newest, source).ends.get(&epoch) != end.as_ref() {
            return Err(format!("fencing: process {newest} had taken over"));
        }
        let standing = self.standing(pid, source);
        if end.is_none() || epoch < standing.committed {
            return Err(format!("durable first: epoch {} was committed last", standing.committed));
        }
        standing.committed = epoch;
        Ok(())
    }

    fn seen(&mut self, pid: Pid, generation: GenerationId, streams: &[SeenStream]) -> Result<(), String> {
        let known = self.published;
        let Some(life) = self.lives.get_mut(&pid) else { return Err("it never opened".to_owned()) };
        if generation < life.generation || generation > known {
            return Err(format!("one swap: generation {} was seen, and {known} published", life.generation));
        }
        life.generation = generation;
        for (seen, standing) in streams.iter().zip(&life.streams) {
            if seen.base != seen.generation || seen.archived < seen.base {
                return Err("cut: the delta does not begin where the generation ends".to_owned());
            }
            if seen.end != standing.next {
                return Err(format!("conservation: it was read to {:?}", standing.next));
            }
            for (partition, row) in &seen.books {
                let passed = seen.end.get(partition).map_or(0, |end| end.0.unsigned_abs());
                if row.events + row.duplicates + row.quarantined + row.gaps != row.passed || row.passed != passed {
                    return Err(format!("conservation: partition {partition} passed {passed} offsets"));
                }
            }
        }
        Ok(())
    }

    fn standing(&mut self, pid: Pid, source: usize) -> &mut Standing {
        let streams = &mut self.lives.entry(pid).or_default().streams;
        if streams.len() <= source {
            streams.resize_with(source + 1, Standing::default);
        }
        &mut streams[source]
    }
}
