//! Columns: the fields of a profile, made ready to draw a value in a few nanoseconds.

use rand::Rng;
use rand::distr::Distribution;
use rand::rngs::SmallRng;
use rand_distr::LogNormal;
use rand_distr::weighted::WeightedAliasIndex;

use crate::demo::load::json;
use crate::demo::load::profile::{Field, Profile, Value};
use crate::runtime::Micros;

/// A field and how to draw its value.
#[derive(Debug)]
pub(super) struct Column {
    /// `"name":`, as it stands in the record.
    label: Vec<u8>,
    null: f64,
    absent: f64,
    sampler: Sampler,
}

/// What one record has in common.
#[derive(Debug)]
pub(super) struct Moment {
    /// When the record is made.
    pub(super) now: Micros,
    /// How far its event time lies behind, for a late record.
    pub(super) late_by: Option<Micros>,
    /// The key that each column drew, for the columns that depend on another.
    pub(super) keys: Vec<u32>,
}

/// What a column wrote into the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    Value,
    Null,
    Absent,
}

#[derive(Debug)]
enum Sampler {
    Uuid,
    Zipf { prefix: Vec<u8>, numbers: WeightedAliasIndex<f64> },
    Uniform { prefix: Vec<u8>, n: u32 },
    Session { prefix: Vec<u8>, of: usize, end: f64, serials: Vec<u32> },
    EventTime { jitter: Micros },
    Lognormal { distribution: LogNormal<f64>, min: f64, max: f64 },
    Integer { min: i64, max: i64 },
    Decimal { min: u64, max: u64, scale: u8 },
    Choice { texts: Vec<Vec<u8>>, weights: Cumulative, of: Option<Owner> },
    Bool { probability: f64 },
    List { length: Cumulative, item: Vec<Column> },
}

/// The column whose key decides, and a salt so that two columns of one owner do not agree.
#[derive(Debug, Clone, Copy)]
struct Owner {
    column: usize,
    salt: u64,
}

impl Column {
    /// The columns of a checked profile, in the order of its fields.
    pub(super) fn all(profile: &Profile) -> Vec<Self> {
        profile.fields.iter().map(|field| Self::new(field, profile)).collect()
    }

    fn new(field: &Field, profile: &Profile) -> Self {
        Self {
            label: format!("\"{}\":", field.name).into_bytes(),
            null: field.null,
            absent: field.absent,
            sampler: Sampler::new(&field.value, profile),
        }
    }

    pub(super) fn label(&self) -> &[u8] {
        &self.label
    }

    /// Appends the label and a value, or null, or nothing at all.
    pub(super) fn write(
        &mut self,
        out: &mut Vec<u8>,
        rng: &mut SmallRng,
        moment: &mut Moment,
        at: usize,
    ) -> Written {
        if self.null + self.absent > 0.0 {
            let draw: f64 = rng.random();
            if draw < self.absent {
                return Written::Absent;
            }
            if draw < self.absent + self.null {
                out.extend_from_slice(&self.label);
                out.extend_from_slice(b"null");
                return Written::Null;
            }
        }
        out.extend_from_slice(&self.label);
        self.sampler.write(out, rng, moment, at);
        Written::Value
    }
}

impl Sampler {
    fn new(value: &Value, profile: &Profile) -> Self {
        let column = |name: &str| profile.position(name).expect("a checked profile has the field");
        match value {
            Value::Uuid => Self::Uuid,
            Value::Zipf { prefix, n, exponent } => {
                let weights = (1..=*n).map(|rank| f64::from(rank).powf(-exponent)).collect();
                let numbers = WeightedAliasIndex::new(weights).expect("checked: the weights are positive");
                Self::Zipf { prefix: prefix.clone().into_bytes(), numbers }
            }
            Value::Uniform { prefix, n } => Self::Uniform { prefix: prefix.clone().into_bytes(), n: *n },
            Value::Session { prefix, of, events } => {
                let of = column(of);
                let keys = match profile.fields.get(of).map(|field| &field.value) {
                    Some(Value::Zipf { n, .. } | Value::Uniform { n, .. }) => *n,
                    _ => unreachable!("checked: a session belongs to a key"),
                };
                let serials = vec![0; usize::try_from(keys).expect("checked: at most ten million")];
                Self::Session { prefix: prefix.clone().into_bytes(), of, end: events.recip(), serials }
            }
            Value::EventTime { jitter } => Self::EventTime {
                jitter: Micros::try_from(jitter.as_micros()).expect("checked: at most 100 years"),
            },
            Value::Lognormal { median, sigma, min, max, .. } => Self::Lognormal {
                distribution: LogNormal::new(median.ln(), *sigma).expect("checked: sigma is in range"),
                min: exact(*min),
                max: exact(*max),
            },
            Value::Integer { min, max, .. } => Self::Integer { min: *min, max: *max },
            Value::Decimal { min, max, scale } => {
                let one = 10_f64.powi(i32::from(*scale));
                Self::Decimal { min: rounded(min * one), max: rounded(max * one), scale: *scale }
            }
            Value::Choice { values, of } => Self::Choice {
                texts: values.keys().map(|text| text.clone().into_bytes()).collect(),
                weights: Cumulative::new(values.values().copied()),
                of: of.as_deref().map(|of| Owner { column: column(of), salt: salt(values.keys()) }),
            },
            Value::Bool { probability } => Self::Bool { probability: *probability },
            Value::List { length, item } => Self::List {
                length: Cumulative::new(length.iter().copied()),
                item: item.iter().map(|field| Column::new(field, profile)).collect(),
            },
        }
    }

    fn write(&mut self, out: &mut Vec<u8>, rng: &mut SmallRng, moment: &mut Moment, at: usize) {
        match self {
            Self::Uuid => {
                out.push(b'"');
                json::uuid(out, rng.random(), rng.random());
                out.push(b'"');
            }
            Self::Zipf { prefix, numbers } => {
                let number = u32::try_from(numbers.sample(rng)).expect("checked: at most ten million");
                key(out, prefix, number, moment, at);
            }
            Self::Uniform { prefix, n } => key(out, prefix, rng.random_range(0..*n), moment, at),
            Self::Session { prefix, of, end, serials } => {
                let owner = moment.keys.get(*of).copied().unwrap_or_default();
                let slot = usize::try_from(owner).ok().and_then(|owner| serials.get_mut(owner));
                let serial = slot.expect("a session is kept for every key of its owner");
                if rng.random::<f64>() < *end {
                    *serial = serial.wrapping_add(1);
                }
                out.push(b'"');
                out.extend_from_slice(prefix);
                json::unsigned(out, u64::from(owner));
                out.push(b'-');
                json::unsigned(out, u64::from(*serial));
                out.push(b'"');
            }
            Self::EventTime { jitter } => {
                let behind = match moment.late_by {
                    Some(late_by) => late_by,
                    None => rng.random_range(0..=*jitter),
                };
                out.push(b'"');
                json::instant(out, moment.now - behind);
                out.push(b'"');
            }
            Self::Lognormal { distribution, min, max } => {
                let value = distribution.sample(rng).round().clamp(*min, *max);
                #[expect(clippy::cast_possible_truncation, reason = "clamped to integers below 2^52")]
                json::integer(out, value as i64);
            }
            Self::Integer { min, max } => json::integer(out, rng.random_range(*min..=*max)),
            Self::Decimal { min, max, scale } => {
                out.push(b'"');
                json::decimal(out, rng.random_range(*min..=*max), *scale);
                out.push(b'"');
            }
            Self::Choice { texts, weights, of } => {
                let draw = match of {
                    Some(owner) => {
                        let key = moment.keys.get(owner.column).copied().unwrap_or_default();
                        unit(mixed(u64::from(key) ^ owner.salt))
                    }
                    None => rng.random(),
                };
                out.push(b'"');
                out.extend_from_slice(texts.get(weights.pick(draw)).map_or(b"", Vec::as_slice));
                out.push(b'"');
            }
            Self::Bool { probability } => {
                let value: &[u8] = if rng.random::<f64>() < *probability { b"true" } else { b"false" };
                out.extend_from_slice(value);
            }
            Self::List { length, item } => {
                let length = length.pick(rng.random());
                list(out, rng, moment, length, item);
            }
        }
    }
}

/// Weights added up, to find the entry of a number in [0, 1) by a short scan.
#[derive(Debug)]
pub(super) struct Cumulative(Vec<f64>);

impl Cumulative {
    /// `weights` must hold at least one above zero.
    pub(super) fn new(weights: impl Iterator<Item = f64>) -> Self {
        let mut sum = 0.0;
        let mut bounds: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        for bound in &mut bounds {
            *bound /= sum;
        }
        Self(bounds)
    }

    pub(super) fn pick(&self, draw: f64) -> usize {
        let above = self.0.iter().position(|bound| draw < *bound);
        // Rounding may leave the last bound a hair below one; the last entry that has a weight takes the rest.
        above.unwrap_or_else(|| {
            let last = self.0.last().copied().unwrap_or_default();
            self.0.iter().position(|bound| *bound >= last).unwrap_or_default()
        })
    }
}

fn key(out: &mut Vec<u8>, prefix: &[u8], number: u32, moment: &mut Moment, at: usize) {
    if let Some(slot) = moment.keys.get_mut(at) {
        *slot = number;
    }
    out.push(b'"');
    out.extend_from_slice(prefix);
    json::unsigned(out, u64::from(number));
    out.push(b'"');
}

fn list(out: &mut Vec<u8>, rng: &mut SmallRng, moment: &mut Moment, length: usize, item: &mut [Column]) {
    out.push(b'[');
    for position in 0..length {
        if position > 0 {
            out.push(b',');
        }
        out.push(b'{');
        let start = out.len();
        for column in item.iter_mut() {
            let before = out.len();
            if before > start {
                out.push(b',');
            }
            // Keys inside a list are nobody's owner: they must not overwrite those of the record.
            if column.write(out, rng, moment, usize::MAX) == Written::Absent {
                out.truncate(before);
            }
        }
        out.push(b'}');
    }
    out.push(b']');
}

/// Spreads the bits of a number (the finaliser of SplitMix64).
pub(super) fn mixed(value: u64) -> u64 {
    let mut bits = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A hash of texts that is the same in every run (FNV-1a), unlike the standard library's.
pub(super) fn salt<'a>(texts: impl Iterator<Item = &'a String>) -> u64 {
    texts
        .flat_map(|text| text.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[expect(clippy::cast_precision_loss, reason = "53 bits are kept, and f64 holds 53")]
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[expect(clippy::cast_precision_loss, reason = "checked: within 2^52")]
fn exact(value: i64) -> f64 {
    value as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked: 0 to 1e18")]
fn rounded(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cumulative_never_picks_an_entry_without_weight() {
        let weights = Cumulative::new([0.0, 1.0, 3.0, 0.0].into_iter());
        assert_eq!(weights.pick(0.0), 1);
        assert_eq!(weights.pick(0.2499), 1);
        assert_eq!(weights.pick(0.25), 2);
        assert_eq!(weights.pick(1.0), 2);
    }
}
