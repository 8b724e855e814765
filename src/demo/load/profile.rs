//! Profiles: TOML files that say which records a load consists of.
//!
//! A profile names a topic and describes, field by field, how the values of its records are distributed. It is
//! the only place that knows the business; the generator knows distributions. A profile that loads is sound:
//! everything the generator relies on is checked here, and an error names the file and the key.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::config::parse_duration;

/// Keys of one field at most; a table of this size costs a few dozen megabytes and well under a second.
const KEYS_MAX: u32 = 10_000_000;
/// At most a century, so that an instant minus it stays within the years that can be written.
const DURATION_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("cannot read the profile {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("profile {} is not valid", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("profile {}: {key}: {reason}", path.display())]
    Invalid { path: PathBuf, key: String, reason: String },
}

/// A checked profile.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    #[serde(skip)]
    path: PathBuf,
    pub(super) topic: String,
    /// How often this profile is drawn when several are mixed, relative to the others.
    #[serde(default = "one")]
    pub(super) weight: f64,
    /// The field that identifies a record: a required `uuid`.
    pub(super) identity: String,
    /// The field whose value is the Kafka key; without it records go to the partitions in turn, without a key.
    pub(super) partition_key: Option<String>,
    /// Fields that the truth file holds beside the identity.
    #[serde(default)]
    pub(super) truth_fields: Vec<String>,
    #[serde(default)]
    pub(super) duplicates: Duplicates,
    #[serde(default)]
    pub(super) late: Late,
    #[serde(default)]
    pub(super) undeclared: Undeclared,
    #[serde(default)]
    pub(super) malformed: Malformed,
    #[serde(rename = "field")]
    pub(super) fields: Vec<Field>,
}

/// Records that are sent a second time, byte for byte.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Duplicates {
    /// Share of the ordinary records that are sent again.
    pub(super) share: f64,
    /// Share of the copies that follow their original at once.
    pub(super) at_once: f64,
    /// The other copies come up to this many records later, evenly on a logarithmic scale.
    pub(super) within: u32,
    /// Share of the copies that go to a partition chosen at random.
    pub(super) elsewhere: f64,
}

impl Default for Duplicates {
    fn default() -> Self {
        Self { share: 0.0, at_once: 0.3, within: 50_000, elsewhere: 0.3 }
    }
}

/// Records whose event time lies well before they are sent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Late {
    pub(super) share: f64,
    #[serde(deserialize_with = "duration")]
    pub(super) from: Duration,
    #[serde(deserialize_with = "duration")]
    pub(super) to: Duration,
}

impl Default for Late {
    fn default() -> Self {
        Self { share: 0.0, from: Duration::from_secs(120), to: Duration::from_secs(3 * 86_400) }
    }
}

/// Records that carry one field more than anybody declared.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Undeclared {
    pub(super) share: f64,
    /// Names of such fields; one is drawn a record.
    pub(super) names: Vec<String>,
}

/// Records that break a rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Malformed {
    pub(super) share: f64,
    /// Which rule, by weight.
    pub(super) varieties: BTreeMap<Variety, f64>,
    /// Size of a record of variety `huge`, in bytes.
    pub(super) huge_bytes: u32,
}

impl Default for Malformed {
    fn default() -> Self {
        Self { share: 0.0, varieties: BTreeMap::new(), huge_bytes: 200_000 }
    }
}

/// The rule that a malformed record breaks. Exactly one each, and never one that a lenient reader might mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variety {
    /// The JSON text ends too early.
    BrokenJson,
    /// A required text holds bytes that are not UTF-8.
    InvalidUtf8,
    /// A required field is absent.
    MissingKey,
    /// A value is of another JSON type, or a text that is no value of the type.
    WrongType,
    /// An integer lies outside its `valid` range.
    OutOfRange,
    /// The identity is null.
    NullId,
    /// The event time lies 20 to 70 years ahead.
    FutureTime,
    /// The event time lies between 1971 and 2000.
    AncientTime,
    /// A text of `huge_bytes` that never ends: as long as it is, and not JSON either, so that it is rejected
    /// whatever the limit on the size of a record.
    Huge,
}

impl Variety {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BrokenJson => "broken_json",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::MissingKey => "missing_key",
            Self::WrongType => "wrong_type",
            Self::OutOfRange => "out_of_range",
            Self::NullId => "null_id",
            Self::FutureTime => "future_time",
            Self::AncientTime => "ancient_time",
            Self::Huge => "huge",
        }
    }
}

/// One field of a record, or of the structs of a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Field {
    pub(super) name: String,
    /// A record without it breaks a rule.
    #[serde(default)]
    pub(super) required: bool,
    /// Share of records where the value is null.
    #[serde(default)]
    pub(super) null: f64,
    /// Share of records without the field.
    #[serde(default)]
    pub(super) absent: f64,
    pub(super) value: Value,
}

/// How the value of a field is drawn.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Value {
    /// A random UUID (version 4).
    Uuid,
    /// Text: the prefix and a number below `n`; number k is drawn proportionally to 1 / (k + 1)^exponent.
    Zipf { prefix: String, n: u32, exponent: f64 },
    /// Text: the prefix and a number below `n`, each as likely.
    Uniform { prefix: String, n: u32 },
    /// Text that stays the same for about `events` records of the same value of the field `of`.
    Session { prefix: String, of: String, events: f64 },
    /// ISO-8601 instant in UTC: now minus up to `jitter`, or minus the lateness of a late record.
    EventTime {
        #[serde(deserialize_with = "duration")]
        jitter: Duration,
    },
    /// Integer, log-normally distributed around the median and clamped. `valid` is the range of the rule.
    Lognormal { median: f64, sigma: f64, min: i64, max: i64, valid: Option<[i64; 2]> },
    /// Integer between the two, both inclusive. `valid` is the range of the rule.
    Integer { min: i64, max: i64, valid: Option<[i64; 2]> },
    /// A decimal between the two with `scale` digits, written as text so that no reader rounds it.
    Decimal { min: f64, max: f64, scale: u8 },
    /// One of the texts, by weight; with `of`, the same one for each value of that field.
    Choice { values: BTreeMap<String, f64>, of: Option<String> },
    /// True with this probability.
    Bool { probability: f64 },
    /// A list of structs; `length` holds the weights of the lengths 0, 1, 2, ...
    List { length: Vec<f64>, item: Vec<Field> },
}

impl Profile {
    /// Reads and checks a profile.
    pub fn from_file(path: &Path) -> Result<Self, ProfileError> {
        let text =
            fs::read_to_string(path).map_err(|source| ProfileError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a profile; `path` is for messages only.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ProfileError> {
        let mut profile: Self = toml::from_str(text)
            .map_err(|source| ProfileError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        profile.path = path.to_owned();
        profile.check().map_err(|Fault { key, reason }| profile.invalid(key, reason))?;
        Ok(profile)
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Names of the fields that the truth file holds beside the identity.
    pub fn truth_fields(&self) -> &[String] {
        &self.truth_fields
    }

    /// The same profile with another field as Kafka key.
    pub fn with_partition_key(mut self, field: &str) -> Result<Self, ProfileError> {
        self.partition_key = Some(field.to_owned());
        self.check_references().map_err(|Fault { key, reason }| self.invalid(key, reason))?;
        Ok(self)
    }

    pub(super) fn position(&self, field: &str) -> Option<usize> {
        self.fields.iter().position(|candidate| candidate.name == field)
    }

    fn invalid(&self, key: String, reason: String) -> ProfileError {
        ProfileError::Invalid { path: self.path.clone(), key, reason }
    }

    fn check(&self) -> Result<(), Fault> {
        ensure(!self.topic.is_empty(), "topic", "must not be empty")?;
        ensure(self.weight > 0.0 && self.weight.is_finite(), "weight", "must be above 0")?;
        for (key, value) in [
            ("duplicates.share", self.duplicates.share),
            ("duplicates.at_once", self.duplicates.at_once),
            ("duplicates.elsewhere", self.duplicates.elsewhere),
            ("late.share", self.late.share),
            ("undeclared.share", self.undeclared.share),
            ("malformed.share", self.malformed.share),
        ] {
            share(key, value)?;
        }
        let special = self.late.share + self.undeclared.share + self.malformed.share;
        ensure(special <= 1.0, "late, undeclared, malformed", "the shares add up to more than 1")?;
        ensure(self.duplicates.within >= 1, "duplicates.within", "must be at least 1")?;
        let late = &self.late;
        ensure(
            !late.from.is_zero() && late.from <= late.to,
            "late.from",
            "must be above zero and not above late.to",
        )?;
        fields("field", &self.fields, Place::Record)?;
        self.check_references()?;
        self.check_undeclared()?;
        self.check_malformed()
    }

    fn check_references(&self) -> Result<(), Fault> {
        let identity = self.named("identity", &self.identity)?;
        ensure(
            matches!(identity.value, Value::Uuid) && identity.required,
            "identity",
            "must name a required field of kind uuid",
        )?;
        if let Some(name) = &self.partition_key {
            let field = self.named("partition_key", name)?;
            ensure(!matches!(field.value, Value::List { .. }), "partition_key", "must not name a list")?;
        }
        for name in &self.truth_fields {
            self.named("truth_fields", name)?;
        }
        for (position, field) in self.fields.iter().enumerate() {
            let of = match &field.value {
                Value::Session { of, .. } => of,
                Value::Choice { of: Some(of), .. } => of,
                _ => continue,
            };
            let owner = self.fields.iter().take(position).find(|candidate| candidate.name == *of);
            let is_key =
                owner.is_some_and(|owner| matches!(owner.value, Value::Zipf { .. } | Value::Uniform { .. }));
            ensure(is_key, format!("field {}: of", field.name), "must name an earlier zipf or uniform field")?;
        }
        Ok(())
    }

    fn check_undeclared(&self) -> Result<(), Fault> {
        ensure(
            self.undeclared.share == 0.0 || !self.undeclared.names.is_empty(),
            "undeclared.names",
            "must name at least one field",
        )?;
        for name in &self.undeclared.names {
            text("undeclared.names", name)?;
            ensure(self.position(name).is_none(), "undeclared.names", format!("{name} is a declared field"))?;
        }
        Ok(())
    }

    fn check_malformed(&self) -> Result<(), Fault> {
        let malformed = &self.malformed;
        ensure(
            malformed.share == 0.0 || malformed.varieties.values().sum::<f64>() > 0.0,
            "malformed.varieties",
            "must give at least one variety a weight",
        )?;
        ensure(
            (1_000..=100_000_000).contains(&malformed.huge_bytes),
            "malformed.huge_bytes",
            "must lie between 1000 and 100000000",
        )?;
        for (variety, weight) in &malformed.varieties {
            let key = format!("malformed.varieties.{}", variety.as_str());
            ensure(*weight >= 0.0 && weight.is_finite(), &key, "must not be negative")?;
            let possible = match variety {
                Variety::OutOfRange => self.fields.iter().any(|field| field.value.valid_range().is_some()),
                Variety::FutureTime | Variety::AncientTime => {
                    self.fields.iter().any(|field| matches!(field.value, Value::EventTime { .. }))
                }
                Variety::WrongType => self.fields.iter().any(|field| field.value.wrong_literal().is_some()),
                Variety::InvalidUtf8 => {
                    self.fields.iter().any(|field| field.required && field.value.is_free_text())
                }
                Variety::BrokenJson | Variety::MissingKey | Variety::NullId | Variety::Huge => true,
            };
            ensure(possible, &key, "no field of this profile can break that rule")?;
        }
        Ok(())
    }

    fn named(&self, key: &str, name: &str) -> Result<&Field, Fault> {
        self.fields
            .iter()
            .find(|field| field.name == name)
            .ok_or_else(|| Fault { key: key.to_owned(), reason: format!("there is no field {name}") })
    }
}

impl Value {
    /// The range that the rule on an integer allows, when there is one.
    pub(super) fn valid_range(&self) -> Option<[i64; 2]> {
        match self {
            Self::Lognormal { valid, .. } | Self::Integer { valid, .. } => *valid,
            _ => None,
        }
    }

    /// A JSON value that can by no leniency be read as a value of this kind.
    pub(super) fn wrong_literal(&self) -> Option<&'static [u8]> {
        match self {
            Self::Lognormal { .. } | Self::Integer { .. } => Some(br#""many""#),
            Self::Decimal { .. } => Some(br#""plenty""#),
            Self::Bool { .. } => Some(br#""perhaps""#),
            Self::EventTime { .. } => Some(br#""yesterday""#),
            Self::Uuid => Some(br#""nobody""#),
            Self::List { .. } => Some(b"true"),
            Self::Zipf { .. } | Self::Uniform { .. } | Self::Session { .. } | Self::Choice { .. } => None,
        }
    }

    /// True for text of which any UTF-8 would be a value.
    pub(super) fn is_free_text(&self) -> bool {
        matches!(self, Self::Zipf { .. } | Self::Uniform { .. } | Self::Session { .. } | Self::Choice { .. })
    }

    fn check(&self, key: &str, place: Place) -> Result<(), Fault> {
        let of_record = place == Place::Record;
        match self {
            Self::Uuid => Ok(()),
            Self::Zipf { prefix, n, exponent } => {
                text(key, prefix)?;
                ensure((1..=KEYS_MAX).contains(n), key, format!("n must lie between 1 and {KEYS_MAX}"))?;
                ensure((0.0..=10.0).contains(exponent), key, "exponent must lie between 0 and 10")
            }
            Self::Uniform { prefix, n } => {
                text(key, prefix)?;
                ensure((1..=KEYS_MAX).contains(n), key, format!("n must lie between 1 and {KEYS_MAX}"))
            }
            Self::Session { prefix, events, .. } => {
                text(key, prefix)?;
                ensure(of_record, key, "a session cannot be inside a list")?;
                ensure(*events >= 1.0, key, "events must be at least 1")
            }
            Self::EventTime { .. } => ensure(of_record, key, "an event time cannot be inside a list"),
            Self::Lognormal { median, sigma, min, max, valid } => {
                ensure(*median > 0.0 && median.is_finite(), key, "median must be above 0")?;
                ensure((0.0..=10.0).contains(sigma), key, "sigma must lie between 0 and 10")?;
                range(key, [*min, *max], *valid)
            }
            Self::Integer { min, max, valid } => range(key, [*min, *max], *valid),
            Self::Decimal { min, max, scale } => {
                ensure(*scale <= 9, key, "scale must not be above 9")?;
                ensure(*min >= 0.0 && min <= max && *max <= 1e9, key, "must have 0 <= min <= max <= 1e9")
            }
            Self::Choice { values, of } => {
                ensure(of.is_none() || of_record, key, "of cannot be used inside a list")?;
                values.keys().try_for_each(|value| text(key, value))?;
                weights(key, values.values())
            }
            Self::Bool { probability } => share(key, *probability),
            Self::List { length, item } => {
                ensure(of_record, key, "a list cannot be inside a list")?;
                ensure(length.len() <= 1_000, key, "length must not have more than 1000 weights")?;
                weights(key, length.iter())?;
                fields(&format!("{key}.item"), item, Place::Item)
            }
        }
    }
}

/// What is wrong, before the file is known.
struct Fault {
    key: String,
    reason: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Record,
    Item,
}

fn ensure(holds: bool, key: impl Into<String>, reason: impl Into<String>) -> Result<(), Fault> {
    if holds { Ok(()) } else { Err(Fault { key: key.into(), reason: reason.into() }) }
}

fn fields(key: &str, all: &[Field], place: Place) -> Result<(), Fault> {
    ensure(!all.is_empty(), key, "must describe at least one field")?;
    for (position, field) in all.iter().enumerate() {
        let key = format!("{key} {}", field.name);
        text(&key, &field.name)?;
        ensure(!field.name.is_empty(), &key, "must have a name")?;
        let again = all.iter().take(position).any(|earlier| earlier.name == field.name);
        ensure(!again, &key, "is described twice")?;
        share(format!("{key}: null"), field.null)?;
        share(format!("{key}: absent"), field.absent)?;
        ensure(field.null + field.absent <= 1.0, &key, "null and absent add up to more than 1")?;
        ensure(
            !field.required || field.null + field.absent == 0.0,
            &key,
            "a required field cannot be null or absent",
        )?;
        field.value.check(&format!("{key}: value"), place)?;
    }
    Ok(())
}

fn share(key: impl Into<String>, value: f64) -> Result<(), Fault> {
    ensure((0.0..=1.0).contains(&value), key, "must lie between 0 and 1")
}

/// Texts are written into JSON as they are, so what JSON would escape is refused.
fn text(key: impl Into<String>, value: &str) -> Result<(), Fault> {
    let plain = !value.chars().any(|c| c == '"' || c == '\\' || c.is_control());
    ensure(plain, key, "must not hold quotes, backslashes or control characters")
}

fn weights<'a>(key: &str, all: impl Iterator<Item = &'a f64>) -> Result<(), Fault> {
    let mut sum = 0.0;
    for weight in all {
        ensure(*weight >= 0.0 && weight.is_finite(), key, "a weight must not be negative")?;
        sum += weight;
    }
    ensure(sum > 0.0, key, "at least one weight must be above 0")
}

fn range(key: &str, [min, max]: [i64; 2], valid: Option<[i64; 2]>) -> Result<(), Fault> {
    const FAR: i64 = 1 << 52;
    ensure(-FAR <= min && min <= max && max <= FAR, key, "must have min <= max, both exact in JSON")?;
    let Some([low, high]) = valid else { return Ok(()) };
    let inside = -FAR < low && low <= min && max <= high && high < FAR;
    ensure(inside, key, "valid must hold min and max")
}

fn one() -> f64 {
    1.0
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).filter(|duration| *duration <= DURATION_MAX).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is not a duration of at most 100 years; write it like \"30s\""))
    })
}
