//! Settings: the defaults in `viewledger.example.toml` < a file < the environment < flags.
//!
//! The example file is the list of known keys. A key that is not in it is an error that names the nearest one,
//! because a misspelt limit that is silently ignored is found only when it is needed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

const DEFAULTS: &str = include_str!("../viewledger.example.toml");
const ENV_PREFIX: &str = "VIEWLEDGER_";
/// A variable that begins so holds the password of a role.
const PASSWORD_PREFIX: &str = "VIEWLEDGER_PASSWORD_";
/// As long as the log of a table remembers the files that were replaced in it.
pub const RETENTION_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read config file {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin} is not valid TOML: {message}")]
    Syntax { origin: String, message: String },
    #[error("{origin}: unknown key {key}{}", nearest.as_ref().map(|n| format!("; did you mean {n}?")).unwrap_or_default())]
    UnknownKey { origin: String, key: String, nearest: Option<String> },
    #[error("{origin}: {key} must be {expected}, not {found}")]
    WrongType { origin: String, key: String, expected: &'static str, found: String },
    #[error("invalid settings: {0}")]
    Invalid(String),
}

#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    pub server: Server,
    pub storage: StorageConfig,
    pub sql: Sql,
    pub kafka: Kafka,
    pub ingest: Ingest,
    pub archive: Archive,
    pub delta: Delta,
    pub tables: Tables,
    pub audit: Audit,
    pub refresh: Refresh,
    pub query: Query,
    pub auth: Auth,
    pub tls: Tls,
    pub log: Log,
    /// Passwords in the environment, by the name of the role in capital letters.
    #[serde(skip)]
    pub passwords: BTreeMap<String, Secret>,
    /// Every setting but those of free tables, as `system.settings` shows them.
    #[serde(skip)]
    settings: Vec<(String, String)>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Server {
    pub bind: IpAddr,
    pub pg_port: u16,
    pub http_port: u16,
    pub flight_port: u16,
    pub connections_max: usize,
    pub connections_reserved: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub struct StorageConfig {
    pub data_dir: PathBuf,
    pub location: String,
    pub options: BTreeMap<String, String>,
}

impl StorageConfig {
    /// Path or URL of the object storage that holds archive, views and generations.
    pub fn location(&self) -> String {
        match self.location.as_str() {
            "" => self.data_dir.to_string_lossy().into_owned(),
            location => location.to_owned(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Sql {
    pub dir: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Kafka {
    pub brokers: String,
    pub group_id: String,
    #[serde(deserialize_with = "duration")]
    pub metadata_interval: Duration,
    pub options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Ingest {
    #[serde(deserialize_with = "duration")]
    pub micro_batch_interval: Duration,
    pub micro_batch_rows_max: usize,
    pub queue_batches_max: usize,
    #[serde(deserialize_with = "size")]
    pub record_bytes_max: usize,
    pub keys_in_memory_max: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Archive {
    #[serde(deserialize_with = "duration")]
    pub commit_interval: Duration,
    #[serde(deserialize_with = "size")]
    pub commit_bytes_max: usize,
    #[serde(deserialize_with = "duration")]
    pub retry_interval: Duration,
    #[serde(deserialize_with = "size")]
    pub compact_bytes_target: usize,
    #[serde(deserialize_with = "duration")]
    pub upkeep_interval: Duration,
    #[serde(deserialize_with = "duration")]
    pub retention: Duration,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Delta {
    #[serde(deserialize_with = "size")]
    pub bytes_max: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Tables {
    #[serde(deserialize_with = "size")]
    pub bytes_max: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Audit {
    key_file: PathBuf,
    #[serde(deserialize_with = "duration")]
    pub seal_interval: Duration,
    pub access_log: bool,
    pub access_log_days: u32,
    #[serde(deserialize_with = "size")]
    pub access_log_bytes_max: usize,
    pub access_log_queue_max: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Refresh {
    #[serde(deserialize_with = "duration")]
    pub interval_max: Duration,
    pub threads: usize,
    #[serde(deserialize_with = "size")]
    pub memory_bytes_max: usize,
    pub generations_keep: usize,
    pub reconciliations_keep: usize,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Query {
    pub threads: usize,
    #[serde(deserialize_with = "size")]
    pub memory_bytes_max: usize,
    #[serde(deserialize_with = "size")]
    pub index_bytes_max: usize,
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    pub running_per_role_max: usize,
    pub waiting_per_role_max: usize,
    #[serde(deserialize_with = "duration")]
    pub waiting_timeout: Duration,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Auth {
    pub method: String,
    pub passwords_file: PathBuf,
    pub allow_plain: bool,
}

impl Auth {
    /// Whether clients have to prove who they are.
    pub fn asks_for_passwords(&self) -> bool {
        self.method == "scram"
    }

    /// None where there is none.
    pub fn passwords_file(&self) -> Option<&Path> {
        (!self.passwords_file.as_os_str().is_empty()).then_some(self.passwords_file.as_path())
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub required: bool,
}

impl Tls {
    /// Certificate and key; None without TLS.
    pub fn files(&self) -> Option<(&Path, &Path)> {
        (!self.certificate.as_os_str().is_empty()).then_some((self.certificate.as_path(), self.key.as_path()))
    }
}

/// What no log and no answer may show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(...)")
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Log {
    pub format: String,
    pub level: String,
}

impl Config {
    /// The defaults, overridden by `file` and by the variables of `env` that begin with `VIEWLEDGER_`.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let mut settings = parse(DEFAULTS, "the built-in defaults")?;
        let known = known_keys(&settings);
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            let origin = path.display().to_string();
            overlay(&mut settings, parse(&text, &origin)?, "", &origin, &known)?;
        }
        let mut passwords = BTreeMap::new();
        for (name, text) in env {
            if let Some(role) = name.strip_prefix(PASSWORD_PREFIX) {
                passwords.insert(role.to_owned(), Secret(text));
                continue;
            }
            apply_env(&mut settings, &known, &name, &text)?;
        }
        let public = public(&settings);
        let mut config: Config = Value::Table(settings)
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError::Invalid(error.message().to_owned()))?;
        config.validate()?;
        config.settings = public;
        config.passwords = passwords;
        Ok(config)
    }

    /// Names and values of all settings but those of clients and stores, which may hold secrets.
    pub fn public_settings(&self) -> Vec<(String, String)> {
        self.settings.clone()
    }

    /// Where the key lies that signs seals.
    pub fn seal_key_file(&self) -> PathBuf {
        match self.audit.key_file.as_os_str().is_empty() {
            true => self.storage.data_dir.join("seal-key.pem"),
            false => self.audit.key_file.clone(),
        }
    }

    /// The defaults alone.
    pub fn defaults() -> Config {
        Self::load(None, []).expect("the built-in defaults are valid; a test loads them")
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("ingest.micro_batch_rows_max", self.ingest.micro_batch_rows_max),
            ("ingest.queue_batches_max", self.ingest.queue_batches_max),
            ("ingest.keys_in_memory_max", self.ingest.keys_in_memory_max),
            ("refresh.threads", self.refresh.threads),
            ("refresh.generations_keep", self.refresh.generations_keep),
            ("refresh.reconciliations_keep", self.refresh.reconciliations_keep),
            ("query.threads", self.query.threads),
            ("query.running_per_role_max", self.query.running_per_role_max),
            ("audit.access_log_queue_max", self.audit.access_log_queue_max),
            ("server.connections_max", self.server.connections_max),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(ConfigError::Invalid(format!("{key} must be at least 1")));
            }
        }
        if self.server.connections_reserved >= self.server.connections_max {
            return Err(ConfigError::Invalid(
                "server.connections_reserved must be less than server.connections_max".to_owned(),
            ));
        }
        let [certificate, key] = [&self.tls.certificate, &self.tls.key].map(|path| path.as_os_str().is_empty());
        if certificate != key {
            return Err(ConfigError::Invalid(
                "tls.certificate and tls.key are set together or not at all".to_owned(),
            ));
        }
        if self.tls.required && certificate {
            return Err(ConfigError::Invalid("tls.required needs tls.certificate and tls.key".to_owned()));
        }
        if !["trust", "scram"].contains(&self.auth.method.as_str()) {
            let method = &self.auth.method;
            return Err(ConfigError::Invalid(format!("auth.method must be trust or scram, not {method}")));
        }
        if self.archive.retention > RETENTION_MAX {
            return Err(ConfigError::Invalid(
                "archive.retention must be at most 24h: the archive's log remembers replaced files no longer"
                    .to_owned(),
            ));
        }
        for key in ["auto.offset.reset", "isolation.level", "enable.auto.commit", "group.id"] {
            if self.kafka.options.contains_key(key) {
                return Err(ConfigError::Invalid(format!(
                    "kafka.options may not set {key}: exactness depends on it"
                )));
            }
        }
        match self.log.format.as_str() {
            "text" | "json" => Ok(()),
            other => Err(ConfigError::Invalid(format!("log.format must be text or json, not {other}"))),
        }
    }
}

fn parse(text: &str, origin: &str) -> Result<Table, ConfigError> {
    text.parse::<Table>()
        .map_err(|error| ConfigError::Syntax { origin: origin.to_owned(), message: error.to_string() })
}

/// Dotted paths of all leaves, and of the tables whose keys are free.
fn known_keys(defaults: &Table) -> Vec<String> {
    let mut keys = Vec::new();
    for (section, value) in defaults {
        let Value::Table(table) = value else { continue };
        keys.extend(table.keys().map(|key| format!("{section}.{key}")));
    }
    keys
}

/// Dotted names and values; free tables are left out, for they may hold secrets.
fn public(settings: &Table) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    settings
        .iter()
        .filter_map(|(section, value)| Some((section, value.as_table()?)))
        .flat_map(|(section, table)| table.iter().map(move |(key, value)| (section, key, value)))
        .filter(|(.., value)| !value.is_table())
        .map(|(section, key, value)| (format!("{section}.{key}"), text(value)))
        .collect()
}

/// Lays `over` on `base`, key by key; a table that is empty in the defaults takes any key with a text value.
fn overlay(base: &mut Table, over: Table, prefix: &str, origin: &str, known: &[String]) -> Result<(), ConfigError> {
    let free_keys = !prefix.is_empty() && base.is_empty();
    for (key, value) in over {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match (base.get_mut(&key), value) {
            (None, Value::String(text)) if free_keys => {
                base.insert(key, Value::String(text));
            }
            (None, value) if free_keys => return Err(wrong_type(origin, &path, "a string", &value)),
            (None, _) => return Err(unknown_key(origin, &path, known)),
            (Some(Value::Table(inner)), Value::Table(over)) => overlay(inner, over, &path, origin, known)?,
            (Some(slot), value) if slot.same_type(&value) => *slot = value,
            (Some(slot), value) => return Err(wrong_type(origin, &path, type_name(slot), &value)),
        }
    }
    Ok(())
}

fn apply_env(settings: &mut Table, known: &[String], name: &str, text: &str) -> Result<(), ConfigError> {
    let Some(rest) = name.strip_prefix(ENV_PREFIX) else { return Ok(()) };
    let origin = "environment";
    let Some(path) = known.iter().find(|key| key.replace('.', "_").to_uppercase() == rest) else {
        let section = rest.split('_').next().unwrap_or_default().to_lowercase();
        if settings.contains_key(&section) {
            let nearest = nearest(&rest.to_lowercase().replacen('_', ".", 1), known)
                .map(|key| format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase()));
            return Err(ConfigError::UnknownKey { origin: origin.into(), key: name.to_owned(), nearest });
        }
        return Ok(());
    };
    let (section, key) = path.split_once('.').expect("known keys have a section");
    let slot =
        settings.get_mut(section).and_then(|table| table.get_mut(key)).expect("known keys are in the defaults");
    let value = match slot {
        Value::Integer(_) => text.parse().ok().map(Value::Integer),
        Value::Boolean(_) => text.parse().ok().map(Value::Boolean),
        Value::String(_) => Some(Value::String(text.to_owned())),
        _ => None,
    };
    match value {
        Some(value) => *slot = value,
        None => return Err(wrong_type(origin, name, type_name(slot), &Value::String(text.to_owned()))),
    }
    Ok(())
}

fn nearest(key: &str, known: &[String]) -> Option<String> {
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    known
        .iter()
        .map(|candidate| {
            let whole = strsim::jaro_winkler(key, candidate);
            let leaf = strsim::jaro_winkler(&last(key), &last(candidate));
            (whole + leaf, candidate)
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(similarity, _)| *similarity > 1.4)
        .map(|(_, candidate)| candidate.clone())
}

fn unknown_key(origin: &str, key: &str, known: &[String]) -> ConfigError {
    ConfigError::UnknownKey { origin: origin.to_owned(), key: key.to_owned(), nearest: nearest(key, known) }
}

fn wrong_type(origin: &str, key: &str, expected: &'static str, found: &Value) -> ConfigError {
    ConfigError::WrongType {
        origin: origin.to_owned(),
        key: key.to_owned(),
        expected,
        found: format!("{} {found}", found.type_str()),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Integer(_) => "a whole number",
        Value::Boolean(_) => "true or false",
        Value::Table(_) => "a table",
        _ => "a string",
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "{text:?} is not a duration; write it like \"250ms\", \"30s\" or \"1 hour\""
        ))
    })
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_size(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is not a size; write it like \"64MiB\" or \"2GiB\""))
    })
}

/// Reads "250ms", "30s", "15 min", "1 hour", "2 days"; None when it is not a positive whole number with a unit.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let millis = match unit {
        "ms" | "millisecond" | "milliseconds" => 1,
        "s" | "sec" | "second" | "seconds" => 1_000,
        "m" | "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        _ => return None,
    };
    (number > 0).then_some(())?;
    number.checked_mul(millis).map(Duration::from_millis)
}

/// Reads "512KiB", "64MiB", "2GiB" or a plain number of bytes.
pub fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = number_and_unit(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    usize::try_from(number.checked_mul(factor)?).ok()
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    Some((number.parse().ok()?, unit.trim()))
}

#[cfg(test)]
mod tests;
