//! Malformed records: which rule one breaks, and how.

use rand::Rng;
use rand::rngs::SmallRng;

use crate::demo::load::json;
use crate::demo::load::profile::{Profile, Value, Variety};
use crate::demo::load::sample::Cumulative;
use crate::runtime::Micros;

const YEAR: Micros = 31_557_600_000_000;

/// What can be broken in the records of one profile.
#[derive(Debug)]
pub(super) struct Rules {
    varieties: Vec<Variety>,
    weights: Option<Cumulative>,
    identity: usize,
    required: Vec<usize>,
    required_texts: Vec<usize>,
    typed: Vec<(usize, &'static [u8])>,
    ranges: Vec<(usize, [i64; 2])>,
    event_times: Vec<usize>,
    huge_bytes: usize,
}

/// The value that stands in one column instead of a drawn one; `None` leaves the column out.
#[derive(Debug)]
pub(super) struct Breach {
    pub(super) column: usize,
    pub(super) value: Option<Vec<u8>>,
}

impl Rules {
    pub(super) fn new(profile: &Profile) -> Self {
        let malformed = &profile.malformed;
        let fields = || profile.fields.iter().enumerate();
        Self {
            varieties: malformed.varieties.keys().copied().collect(),
            weights: (malformed.share > 0.0).then(|| Cumulative::new(malformed.varieties.values().copied())),
            identity: profile.position(&profile.identity).expect("a checked profile has its identity"),
            required: fields().filter(|(_, field)| field.required).map(|(at, _)| at).collect(),
            required_texts: fields()
                .filter(|(_, field)| field.required && field.value.is_free_text())
                .map(|(at, _)| at)
                .collect(),
            typed: fields().filter_map(|(at, field)| Some((at, field.value.wrong_literal()?))).collect(),
            ranges: fields().filter_map(|(at, field)| Some((at, field.value.valid_range()?))).collect(),
            event_times: fields()
                .filter(|(_, field)| matches!(field.value, Value::EventTime { .. }))
                .map(|(at, _)| at)
                .collect(),
            huge_bytes: usize::try_from(malformed.huge_bytes).expect("checked: at most 100 MB"),
        }
    }

    /// The variety of a number in [0, 1).
    pub(super) fn pick(&self, draw: f64) -> Variety {
        let at = self.weights.as_ref().map_or(0, |weights| weights.pick(draw));
        self.varieties.get(at).copied().unwrap_or(Variety::BrokenJson)
    }

    pub(super) fn huge_bytes(&self) -> usize {
        self.huge_bytes
    }

    /// True when the record is no JSON at all, so that not even its identity can be read.
    pub(super) fn spoils_the_whole(&self, variety: Variety) -> bool {
        matches!(variety, Variety::BrokenJson | Variety::InvalidUtf8 | Variety::Huge)
    }

    /// The one value that is wrong; `None` for the varieties that [`spoil`] makes.
    pub(super) fn breach(&self, variety: Variety, now: Micros, rng: &mut SmallRng) -> Option<Breach> {
        match variety {
            Variety::BrokenJson | Variety::Huge => None,
            Variety::InvalidUtf8 => {
                Some(Breach { column: any(&self.required_texts, rng)?, value: Some(b"\"\xc3\x28\xff\"".into()) })
            }
            Variety::MissingKey => Some(Breach { column: any(&self.required, rng)?, value: None }),
            Variety::WrongType => {
                let (column, literal) = any(&self.typed, rng)?;
                Some(Breach { column, value: Some(literal.to_vec()) })
            }
            Variety::OutOfRange => {
                let (column, [low, high]) = any(&self.ranges, rng)?;
                let beyond = rng.random_range(1..=1_000_000);
                let value = if rng.random() { low - beyond } else { high + beyond };
                let mut text = Vec::new();
                json::integer(&mut text, value);
                Some(Breach { column, value: Some(text) })
            }
            Variety::NullId => Some(Breach { column: self.identity, value: Some(b"null".to_vec()) }),
            Variety::FutureTime => {
                let at = now + rng.random_range(20 * YEAR..70 * YEAR);
                Some(Breach { column: any(&self.event_times, rng)?, value: Some(quoted(at)) })
            }
            Variety::AncientTime => {
                let at = rng.random_range(YEAR..30 * YEAR);
                Some(Breach { column: any(&self.event_times, rng)?, value: Some(quoted(at)) })
            }
        }
    }
}

/// Breaks the finished text of a record, for the varieties where no single value is wrong.
pub(super) fn spoil(payload: &mut Vec<u8>, variety: Variety, huge_bytes: usize, rng: &mut SmallRng) {
    match variety {
        // An object is whole only with its last brace, so every proper prefix is broken.
        Variety::BrokenJson => payload.truncate(rng.random_range(1..payload.len().max(2))),
        Variety::Huge => {
            payload.pop();
            payload.extend_from_slice(b",\"padding\":\"");
            payload.resize(huge_bytes.max(payload.len()), b'x');
        }
        _ => {}
    }
}

fn any<T: Copy>(all: &[T], rng: &mut SmallRng) -> Option<T> {
    if all.is_empty() { None } else { all.get(rng.random_range(0..all.len())).copied() }
}

fn quoted(at: Micros) -> Vec<u8> {
    let mut text = vec![b'"'];
    json::instant(&mut text, at);
    text.push(b'"');
    text
}
