//! Records drawn from a profile: the same ones for the same seed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::demo::load::break_rules::{self, Breach, Rules};
use crate::demo::load::profile::{Profile, Variety};
use crate::demo::load::sample::{Column, Moment, Written};
use crate::demo::load::{json, sample};
use crate::runtime::{Clock, Micros};

/// Copies that wait for their turn at most; beyond, records are not sent again.
const PENDING_MAX: usize = 100_000;

/// When the records are made.
#[derive(Debug, Clone)]
pub enum Timeline {
    /// Now.
    Wall(Arc<dyn Clock>),
    /// From `start` on, one step a record: the payloads then depend on the seed alone.
    Fixed { start: Micros, step: Duration },
}

/// What a record is, as the truth file says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An ordinary record.
    Event,
    /// A record that was sent before, byte for byte.
    Duplicate,
    /// An ordinary record whose event time lies well before it was sent.
    Late,
    /// A record that breaks a rule.
    Malformed,
    /// An ordinary record with a field that nobody declared.
    Undeclared,
    /// A record of a transaction that was aborted. Given by the producer, never by the generator.
    Aborted,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Event, Self::Duplicate, Self::Late, Self::Malformed, Self::Undeclared, Self::Aborted];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Duplicate => "duplicate",
            Self::Late => "late",
            Self::Malformed => "malformed",
            Self::Undeclared => "undeclared",
            Self::Aborted => "aborted",
        }
    }
}

/// Where a record goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The partition that Kafka's partitioner gives its key.
    Key,
    /// This number modulo the number of partitions.
    Slot(u32),
}

/// One record, borrowed from the generator until the next is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub key: Option<&'a [u8]>,
    pub payload: &'a [u8],
    pub destination: Destination,
    pub truth: Truth<'a>,
}

/// What a checker must know about a record.
#[derive(Debug, Clone, Copy)]
pub struct Truth<'a> {
    pub kind: Kind,
    /// The broken rule of a malformed record.
    pub variety: Option<Variety>,
    drawn: &'a Drawn,
}

impl<'a> Truth<'a> {
    /// The identity as written; empty when the record has none or is not whole.
    pub fn id(&self) -> &'a [u8] {
        self.drawn.text(self.drawn.id)
    }

    /// The values of the profile's truth fields as written, without quotes; empty for null or absent.
    pub fn values(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let drawn = self.drawn;
        drawn.truth.iter().map(|span| drawn.text(*span))
    }
}

/// Draws records from one profile.
#[derive(Debug)]
pub struct Generator {
    rng: SmallRng,
    timeline: Timeline,
    columns: Vec<Column>,
    roles: Vec<Role>,
    shares: Shares,
    rules: Rules,
    undeclared: Vec<String>,
    moment: Moment,
    current: Drawn,
    /// Copies by the number of the record that they replace, and a serial.
    pending: BTreeMap<(u64, u64), Again>,
    number: u64,
}

/// A record as bytes, and where in them its parts lie.
#[derive(Debug, Default, Clone)]
struct Drawn {
    payload: Vec<u8>,
    id: Span,
    key: Span,
    truth: Vec<Span>,
    slot: u32,
}

/// Half-open range of bytes in a payload; empty for nothing.
#[derive(Debug, Default, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

/// What a column is used for beside the payload.
#[derive(Debug, Default, Clone, Copy)]
struct Role {
    identity: bool,
    key: bool,
    truth: Option<usize>,
}

#[derive(Debug)]
struct Shares {
    malformed: f64,
    late: f64,
    late_from: f64,
    /// Natural logarithm of the latest by the earliest.
    late_spread: f64,
    undeclared: f64,
    duplicates: f64,
    at_once: f64,
    within: f64,
    elsewhere: f64,
}

#[derive(Debug)]
struct Again {
    drawn: Drawn,
    elsewhere: Option<u32>,
}

impl Generator {
    pub fn new(profile: &Profile, seed: u64, timeline: Timeline) -> Self {
        let columns = Column::all(profile);
        let roles = profile
            .fields
            .iter()
            .map(|field| Role {
                identity: field.name == profile.identity,
                key: profile.partition_key.as_ref() == Some(&field.name),
                truth: profile.truth_fields.iter().position(|name| *name == field.name),
            })
            .collect();
        let (late, duplicates) = (&profile.late, &profile.duplicates);
        Self {
            // Profiles of one run share a seed and must not share their ids.
            rng: SmallRng::seed_from_u64(seed ^ sample::salt(std::iter::once(&profile.topic))),
            timeline,
            moment: Moment { now: 0, late_by: None, keys: vec![0; columns.len()] },
            columns,
            roles,
            shares: Shares {
                malformed: profile.malformed.share,
                late: late.share,
                late_from: late.from.as_secs_f64() * 1e6,
                late_spread: (late.to.as_secs_f64() / late.from.as_secs_f64()).ln(),
                undeclared: profile.undeclared.share,
                duplicates: duplicates.share,
                at_once: duplicates.at_once,
                within: f64::from(duplicates.within),
                elsewhere: duplicates.elsewhere,
            },
            rules: Rules::new(profile),
            undeclared: profile.undeclared.names.clone(),
            current: Drawn { truth: vec![Span::default(); profile.truth_fields.len()], ..Drawn::default() },
            pending: BTreeMap::new(),
            number: 0,
        }
    }

    /// The next record. Never ends.
    pub fn next_record(&mut self) -> Record<'_> {
        let due = self.pending.first_entry().filter(|entry| entry.key().0 <= self.number);
        let copy = due.map(std::collections::btree_map::OccupiedEntry::remove);
        self.number += 1;
        let (kind, variety, elsewhere) = match copy {
            Some(copy) => {
                self.current = copy.drawn;
                (Kind::Duplicate, None, copy.elsewhere)
            }
            None => {
                let (kind, variety) = self.draw();
                (kind, variety, None)
            }
        };
        let drawn = &self.current;
        let key = drawn.text(drawn.key);
        let destination = match elsewhere {
            Some(slot) => Destination::Slot(slot),
            None if key.is_empty() => Destination::Slot(drawn.slot),
            None => Destination::Key,
        };
        Record {
            key: (!key.is_empty()).then_some(key),
            payload: &drawn.payload,
            destination,
            truth: Truth { kind, variety, drawn },
        }
    }

    /// Draws a new record into `current` and decides whether it will be sent again.
    fn draw(&mut self) -> (Kind, Option<Variety>) {
        self.moment.now = match &self.timeline {
            Timeline::Wall(clock) => clock.now(),
            Timeline::Fixed { start, step } => {
                let records = i64::try_from(self.number).unwrap_or(i64::MAX);
                start.saturating_add(records.saturating_mul(i64::try_from(step.as_micros()).unwrap_or(0)))
            }
        };
        self.moment.late_by = None;
        #[expect(clippy::cast_possible_truncation, reason = "only its remainder matters")]
        let slot = self.number as u32;
        self.current.slot = slot;

        let shares = &self.shares;
        let draw: f64 = self.rng.random();
        if draw < shares.malformed {
            let variety = self.rules.pick(self.rng.random());
            self.draw_malformed(variety);
            return (Kind::Malformed, Some(variety));
        }
        let kind = if draw < shares.malformed + shares.late {
            let behind = shares.late_from * (shares.late_spread * self.rng.random::<f64>()).exp();
            #[expect(clippy::cast_possible_truncation, reason = "checked: at most 100 years")]
            let behind = behind as Micros;
            self.moment.late_by = Some(behind);
            Kind::Late
        } else if draw < shares.malformed + shares.late + shares.undeclared {
            Kind::Undeclared
        } else {
            Kind::Event
        };
        self.write(None);
        if kind == Kind::Undeclared {
            self.add_undeclared();
        }
        self.current.payload.push(b'}');
        self.schedule_copy();
        (kind, None)
    }

    /// Writes all fields of a record but its closing brace; the breach replaces the value of one of them.
    fn write(&mut self, breach: Option<&Breach>) {
        let drawn = &mut self.current;
        drawn.payload.clear();
        drawn.payload.push(b'{');
        drawn.id = Span::default();
        drawn.key = Span::default();
        drawn.truth.fill(Span::default());
        for (at, (column, role)) in self.columns.iter_mut().zip(&self.roles).enumerate() {
            let before = drawn.payload.len();
            if before > 1 {
                drawn.payload.push(b',');
            }
            let label = drawn.payload.len() + column.label().len();
            let written = match breach.filter(|breach| breach.column == at) {
                None => column.write(&mut drawn.payload, &mut self.rng, &mut self.moment, at),
                Some(Breach { value: None, .. }) => Written::Absent,
                Some(Breach { value: Some(value), .. }) => {
                    drawn.payload.extend_from_slice(column.label());
                    drawn.payload.extend_from_slice(value);
                    Written::Null
                }
            };
            match written {
                Written::Absent => drawn.payload.truncate(before),
                Written::Null => {}
                Written::Value => drawn.note(*role, label),
            }
        }
    }

    fn draw_malformed(&mut self, variety: Variety) {
        let breach = self.rules.breach(variety, self.moment.now, &mut self.rng);
        self.write(breach.as_ref());
        self.current.payload.push(b'}');
        if self.rules.spoils_the_whole(variety) {
            // What stands in a text that is not JSON is nobody's identity, key or value.
            self.current.id = Span::default();
        }
        self.current.key = Span::default();
        self.current.truth.fill(Span::default());
        break_rules::spoil(&mut self.current.payload, variety, self.rules.huge_bytes(), &mut self.rng);
    }

    fn add_undeclared(&mut self) {
        let out = &mut self.current.payload;
        let Some(name) = self.undeclared.get(self.rng.random_range(0..self.undeclared.len())) else { return };
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        let value = self.rng.random_range(0..100_000_u32);
        match value % 3 {
            0 => json::unsigned(out, u64::from(value)),
            1 => {
                out.extend_from_slice(b"\"build ");
                json::unsigned(out, u64::from(value));
                out.push(b'"');
            }
            _ => {
                out.extend_from_slice(b"{\"arm\":");
                json::unsigned(out, u64::from(value));
                out.extend_from_slice(b",\"on\":true}");
            }
        }
    }

    fn schedule_copy(&mut self) {
        let shares = &self.shares;
        if shares.duplicates == 0.0 || self.rng.random::<f64>() >= shares.duplicates {
            return;
        }
        let records_later = if self.rng.random::<f64>() < shares.at_once {
            0
        } else {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most `within`")]
            let records = (shares.within.ln() * self.rng.random::<f64>()).exp() as u64;
            records
        };
        let elsewhere = if self.rng.random::<f64>() < shares.elsewhere { Some(self.rng.random()) } else { None };
        if self.pending.len() < PENDING_MAX {
            let copy = Again { drawn: self.current.clone(), elsewhere };
            self.pending.insert((self.number + records_later, self.number), copy);
        }
    }
}

impl Drawn {
    /// Remembers where the value lies that was just written from `start` on.
    fn note(&mut self, role: Role, start: usize) {
        let end = self.payload.len();
        let quoted = self.payload.get(start) == Some(&b'"');
        let span = if quoted { Span { start: start + 1, end: end - 1 } } else { Span { start, end } };
        if role.identity {
            self.id = span;
        }
        if role.key {
            self.key = span;
        }
        if let Some(slot) = role.truth.and_then(|position| self.truth.get_mut(position)) {
            *slot = span;
        }
    }

    fn text(&self, span: Span) -> &[u8] {
        self.payload.get(span.start..span.end).unwrap_or_default()
    }
}
