//! The generations that can be read: the newest, and some before it for `viewledger.as_of`.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat, Utc};

use super::Generation;
use crate::position::GenerationId;
use crate::runtime::Micros;

/// Which generation a reader asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AsOf {
    Generation(GenerationId),
    /// The newest one that had been made by then.
    Instant(Micros),
}

/// Why it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReadable {
    #[error(
        "\"{0}\" is neither a generation nor an instant: write a number from system.generations, or an instant such \
         as 2026-01-31T12:00:00Z"
    )]
    NotUnderstood(String),
    #[error("there is no generation {wanted} to read; {there_is}")]
    NoGeneration { wanted: GenerationId, there_is: Readable },
    #[error("no generation that can be read is as old as {wanted}; {there_is}")]
    TooOld { wanted: String, there_is: Readable },
}

/// What there is to read, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readable {
    Nothing,
    /// The oldest with its time, and the newest.
    From {
        oldest: GenerationId,
        since: String,
        newest: GenerationId,
    },
}

impl fmt::Display for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("none was published yet"),
            Self::From { oldest, since, newest } => {
                write!(f, "there are generations {oldest} (of {since}) to {newest}, see system.generations")
            }
        }
    }
}

impl AsOf {
    /// Reads a number, an instant, or a date (its first moment); without a zone it is UTC.
    pub fn parse(text: &str) -> Result<Self, NotReadable> {
        let text = text.trim();
        if let Ok(number) = text.parse() {
            return Ok(Self::Generation(GenerationId(number)));
        }
        let zoned = ["%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z"];
        let plain = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
        let zoned =
            || zoned.iter().find_map(|form| DateTime::parse_from_str(text, form).ok()).map(|at| at.to_utc());
        let naive = || plain.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
        let date = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
        DateTime::parse_from_rfc3339(text)
            .ok()
            .map(|at| at.to_utc())
            .or_else(zoned)
            .or_else(|| naive().or_else(date).map(|at| at.and_utc()))
            .map(|at| Self::Instant(at.timestamp_micros()))
            .ok_or_else(|| NotReadable::NotUnderstood(text.to_owned()))
    }
}

/// Text of an instant, for messages and answers.
pub fn instant(at: Micros) -> String {
    let at = DateTime::<Utc>::from_timestamp_micros(at).unwrap_or_default();
    at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// The generations that can be read.
#[derive(Debug)]
pub struct Shelf {
    /// Oldest first.
    generations: ArcSwap<Vec<Arc<Generation>>>,
    generations_max: usize,
}

impl Shelf {
    /// Keeps the newest and at most `generations_max - 1` before it.
    pub fn new(generations_max: usize) -> Self {
        Self { generations: ArcSwap::default(), generations_max: generations_max.max(1) }
    }

    /// Oldest first; the last one is the newest.
    pub fn readable(&self) -> Arc<Vec<Arc<Generation>>> {
        self.generations.load_full()
    }

    /// Adds the newest; returns those that made room. There is one caller at a time: the refresh that runs.
    pub fn add(&self, next: Arc<Generation>) -> Vec<Arc<Generation>> {
        let mut generations = self.readable().as_ref().clone();
        generations.push(next);
        let excess = generations.len().saturating_sub(self.generations_max);
        let old = generations.drain(..excess).collect();
        self.generations.store(Arc::new(generations));
        old
    }

    pub fn find(&self, wanted: AsOf) -> Result<Arc<Generation>, NotReadable> {
        let all = self.readable();
        let found = match wanted {
            AsOf::Generation(id) => all.iter().find(|generation| generation.id == id),
            AsOf::Instant(at) => all.iter().rev().find(|generation| generation.created_at <= at),
        };
        found.map(Arc::clone).ok_or_else(|| {
            let there_is = match (all.first(), all.last()) {
                (Some(oldest), Some(newest)) => {
                    let since = instant(oldest.created_at);
                    Readable::From { oldest: oldest.id, since, newest: newest.id }
                }
                _ => Readable::Nothing,
            };
            match wanted {
                AsOf::Generation(wanted) => NotReadable::NoGeneration { wanted, there_is },
                AsOf::Instant(at) => NotReadable::TooOld { wanted: instant(at), there_is },
            }
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: Micros = 1_000_000;

    fn shelf() -> Shelf {
        let shelf = Shelf::new(3);
        for id in 1..=5 {
            let created_at = i64::try_from(id).unwrap() * 10 * SECOND;
            let made = Arc::new(Generation { id: GenerationId(id), created_at, ..Generation::empty() });
            let old: Vec<u64> = shelf.add(made).iter().map(|generation| generation.id.0).collect();
            assert_eq!(old, if id > 3 { vec![id - 3] } else { vec![] });
        }
        shelf
    }

    #[test]
    fn instants_and_numbers_are_read() {
        let at = |text: &str| AsOf::parse(text);
        let noon =
            Ok(AsOf::Instant(DateTime::parse_from_rfc3339("2026-01-31T12:00:00Z").unwrap().timestamp_micros()));
        assert_eq!(at(" 12 "), Ok(AsOf::Generation(GenerationId(12))));
        for text in [
            "2026-01-31T12:00:00Z",
            "2026-01-31 12:00:00",
            "2026-01-31 12:00",
            "2026-01-31T13:00:00+01:00",
            "2026-01-31 13:00:00+01",
            "2026-01-31 12:00:00.000+00",
        ] {
            assert_eq!(at(text), noon, "{text}");
        }
        assert!(matches!(at("2026-01-31"), Ok(AsOf::Instant(_))));
        for text in ["yesterday", "-1", "2026-02-30", "1.5"] {
            assert!(matches!(at(text), Err(NotReadable::NotUnderstood(_))), "{text}");
        }
    }

    #[test]
    fn the_generation_of_a_moment_is_the_newest_made_by_then() {
        let shelf = shelf();
        let found = |wanted| shelf.find(wanted).map(|generation| generation.id.0);
        assert_eq!(found(AsOf::Generation(GenerationId(4))), Ok(4));
        assert_eq!(found(AsOf::Instant(30 * SECOND)), Ok(3));
        assert_eq!(found(AsOf::Instant(49 * SECOND)), Ok(4));
        assert_eq!(found(AsOf::Instant(i64::MAX)), Ok(5));
    }

    #[test]
    fn what_is_not_there_is_told_with_what_is() {
        let shelf = shelf();
        let error = shelf.find(AsOf::Generation(GenerationId(2))).unwrap_err().to_string();
        assert!(
            error.contains("no generation 2") && error.contains("generations 3 (of 1970-01-01T00:00:30Z) to 5"),
            "{error}"
        );
        let error = shelf.find(AsOf::Instant(29 * SECOND)).unwrap_err().to_string();
        assert!(error.contains("as old as 1970-01-01T00:00:29Z") && error.contains("3 (of"), "{error}");
        let error = Shelf::new(1).find(AsOf::Generation(GenerationId(1))).unwrap_err().to_string();
        assert!(error.contains("none was published yet"), "{error}");
    }
}
