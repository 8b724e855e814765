//! Settings of one session, as `SET`, `SHOW`, `RESET` and `current_setting` see them.
//!
//! A setting that clients send from habit is kept and shown even where it changes nothing; one that would
//! promise what this server does not do is refused. Unknown names are an error, as in PostgreSQL.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::RwLock;

use super::statement::SetScope;
use crate::serve::Limits;
use crate::serve::error::{QueryError, SqlState};

/// The version that clients are told; they choose their catalog queries by it.
pub const SERVER_VERSION: &str = concat!("16.6 (viewledger ", env!("CARGO_PKG_VERSION"), ")");

/// Name of the setting that chooses an older generation.
pub(super) const AS_OF: &str = "viewledger.as_of";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Cannot be set.
    ReadOnly,
    Text,
    /// A number of milliseconds, or text such as `5s` or `2min`.
    Timeout,
    Flag,
    /// Only values that mean what the server does anyway.
    OneOf(&'static [&'static str]),
    Integer(i64, i64),
}

struct Known {
    /// As shown; looked up without regard to case.
    name: &'static str,
    default: &'static str,
    kind: Kind,
}

/// Whether the transaction may change nothing.
pub(super) const READ_ONLY: &str = "transaction_read_only";

const fn known(name: &'static str, default: &'static str, kind: Kind) -> Known {
    Known { name, default, kind }
}

const UTC: Kind = Kind::OneOf(&["utc", "etc/utc", "gmt", "z", "0", "+00", "+00:00", "00:00", "uct", "zulu"]);
const ENCODINGS: Kind = Kind::OneOf(&["utf8", "utf-8", "unicode", "sql_ascii"]);

static KNOWN: &[Known] = &[
    known("application_name", "", Kind::Text),
    known("bytea_output", "hex", Kind::OneOf(&["hex"])),
    known("check_function_bodies", "on", Kind::Flag),
    known("client_encoding", "UTF8", ENCODINGS),
    known("client_min_messages", "notice", Kind::Text),
    known("constraint_exclusion", "partition", Kind::Text),
    known("DateStyle", "ISO, MDY", Kind::Text),
    known("default_table_access_method", "heap", Kind::Text),
    known("default_tablespace", "", Kind::Text),
    known("default_transaction_isolation", "repeatable read", Kind::Text),
    known("default_transaction_read_only", "off", Kind::Flag),
    known("extra_float_digits", "1", Kind::Integer(-15, 3)),
    known("idle_in_transaction_session_timeout", "0", Kind::Timeout),
    known("idle_session_timeout", "0", Kind::Timeout),
    known("in_hot_standby", "off", Kind::ReadOnly),
    known("integer_datetimes", "on", Kind::ReadOnly),
    known("IntervalStyle", "postgres", Kind::OneOf(&["postgres"])),
    known("is_superuser", "off", Kind::ReadOnly),
    known("jit", "off", Kind::Flag),
    known("lc_collate", "C", Kind::ReadOnly),
    known("lc_ctype", "C.UTF-8", Kind::ReadOnly),
    known("lc_messages", "C", Kind::Text),
    known("lc_monetary", "C", Kind::Text),
    known("lc_numeric", "C", Kind::Text),
    known("lc_time", "C", Kind::Text),
    known("lock_timeout", "0", Kind::Timeout),
    known("max_identifier_length", "63", Kind::ReadOnly),
    known("row_security", "on", Kind::Flag),
    known("search_path", "\"$user\", public", Kind::Text),
    known("server_encoding", "UTF8", Kind::ReadOnly),
    known("server_version", SERVER_VERSION, Kind::ReadOnly),
    known("server_version_num", "160006", Kind::ReadOnly),
    known("session_authorization", "", Kind::ReadOnly),
    known("standard_conforming_strings", "on", Kind::OneOf(&["on", "true", "1", "yes"])),
    known("statement_timeout", "0", Kind::Timeout),
    known("synchronize_seqscans", "on", Kind::Flag),
    known("TimeZone", "UTC", UTC),
    known("transaction_isolation", "repeatable read", Kind::Text),
    known(READ_ONLY, "off", Kind::Flag),
    known("transaction_timeout", "0", Kind::Timeout),
    known(AS_OF, "", Kind::Text),
    known("work_mem", "4MB", Kind::Text),
];

/// Settings whose changes a client is told of, without asking.
const REPORTED: &[&str] = &[
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "search_path",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
];

/// The settings of one session.
#[derive(Debug)]
pub struct Settings(RwLock<Values>);

#[derive(Debug, Clone)]
struct Values {
    defaults: BTreeMap<&'static str, String>,
    changed: BTreeMap<&'static str, String>,
    /// What `SET LOCAL` hid, to restore at the end of the transaction.
    hidden: Vec<(&'static str, Option<String>)>,
}

impl Settings {
    pub fn new(user: &str, limits: &Limits) -> Self {
        let mut defaults: BTreeMap<&'static str, String> = BTreeMap::new();
        defaults.insert("session_authorization", user.to_owned());
        defaults.insert("statement_timeout", show_timeout(limits.statement_timeout));
        defaults.insert("idle_in_transaction_session_timeout", show_timeout(limits.idle_in_transaction_timeout));
        Self(RwLock::new(Values { defaults, changed: BTreeMap::new(), hidden: Vec::new() }))
    }

    /// The same values, to be changed apart.
    pub fn fork(&self) -> Self {
        Self(RwLock::new(self.0.read().clone()))
    }

    /// The canonical name and the value.
    pub fn show(&self, name: &str) -> Result<(&'static str, String), QueryError> {
        let known = find(name)?;
        Ok((known.name, self.0.read().value(known)))
    }

    /// Every setting with its value.
    pub fn all(&self) -> Vec<(&'static str, String)> {
        let values = self.0.read();
        KNOWN.iter().map(|known| (known.name, values.value(known))).collect()
    }

    /// What the client is told at start-up, and again when one of them changes.
    pub fn reported(&self) -> Vec<(&'static str, String)> {
        self.all().into_iter().filter(|(name, _)| REPORTED.contains(name)).collect()
    }

    /// Sets one, or its default when `value` is None.
    pub fn set(&self, name: &str, value: Option<&str>, scope: SetScope) -> Result<(), QueryError> {
        let known = find(name)?;
        let value = value.map(|value| check(known, value)).transpose()?;
        if value.is_none() && known.kind == Kind::ReadOnly {
            return Err(read_only(known));
        }
        let mut values = self.0.write();
        if scope == SetScope::Local {
            let before = values.changed.get(known.name).cloned();
            values.hidden.push((known.name, before));
        }
        match value {
            Some(value) => values.changed.insert(known.name, value),
            None => values.changed.remove(known.name),
        };
        Ok(())
    }

    /// A start-up parameter, which becomes what `RESET` restores.
    pub fn set_default(&self, name: &str, value: &str) -> Result<(), QueryError> {
        let known = find(name)?;
        let value = match check(known, value) {
            Ok(value) => value,
            // Drivers send their machine's zone unasked. Results carry their offset, so UTC stays right, and
            // the report of `TimeZone` tells the driver.
            Err(_) if known.name == "TimeZone" => return Ok(()),
            Err(error) => return Err(error),
        };
        self.0.write().defaults.insert(known.name, value);
        Ok(())
    }

    pub fn reset_all(&self) {
        let mut values = self.0.write();
        values.changed.clear();
        values.hidden.clear();
    }

    /// Undoes `SET LOCAL`.
    pub fn end_transaction(&self) {
        let mut values = self.0.write();
        while let Some((name, before)) = values.hidden.pop() {
            match before {
                Some(value) => values.changed.insert(name, value),
                None => values.changed.remove(name),
            };
        }
    }

    /// None means no limit.
    pub fn statement_timeout(&self) -> Option<Duration> {
        self.timeout("statement_timeout")
    }

    /// The same, of a session that has set it.
    pub fn own_statement_timeout(&self) -> Option<Duration> {
        let own = self.0.read().changed.contains_key("statement_timeout");
        own.then(|| self.statement_timeout()).flatten()
    }

    pub fn idle_in_transaction_timeout(&self) -> Option<Duration> {
        self.timeout("idle_in_transaction_session_timeout")
    }

    /// The schema of a table that is named without one.
    pub fn default_schema(&self) -> String {
        let (_, path) = self.show("search_path").expect("search_path is a known setting");
        let unquoted = |part: &str| part.trim().trim_matches('"').to_owned();
        let first = path.split(',').map(unquoted).find(|part| !part.is_empty() && part != "$user");
        first.unwrap_or_else(|| "public".to_owned())
    }

    /// The generation to read instead of the present, by number or instant.
    pub fn as_of(&self) -> Option<String> {
        let values = self.0.read();
        let at = values.text(find(AS_OF).expect("it is a known setting"));
        (!at.is_empty()).then(|| at.to_owned())
    }

    /// Whether the client has asked that nothing be changed.
    pub fn read_only(&self) -> bool {
        [READ_ONLY, "default_transaction_read_only"]
            .iter()
            .any(|name| self.show(name).is_ok_and(|(_, on)| on == "on"))
    }

    fn timeout(&self, name: &str) -> Option<Duration> {
        let known = find(name).ok()?;
        parse_timeout(self.0.read().text(known)).filter(|timeout| !timeout.is_zero())
    }
}

impl Values {
    fn text(&self, known: &Known) -> &str {
        let set = self.changed.get(known.name).or_else(|| self.defaults.get(known.name));
        set.map_or(known.default, String::as_str)
    }

    fn value(&self, known: &Known) -> String {
        self.text(known).to_owned()
    }
}

fn find(name: &str) -> Result<&'static Known, QueryError> {
    KNOWN.iter().find(|known| known.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        QueryError::new(SqlState::UNDEFINED_SETTING, format!("unrecognized configuration parameter \"{name}\""))
    })
}

fn read_only(known: &Known) -> QueryError {
    // PostgreSQL: cant_change_runtime_param.
    QueryError::new(SqlState("55P02"), format!("parameter \"{}\" cannot be changed", known.name))
}

fn check(known: &Known, value: &str) -> Result<String, QueryError> {
    let invalid = || {
        QueryError::new(
            SqlState::INVALID_PARAMETER,
            format!("invalid value for parameter \"{}\": \"{value}\"", known.name),
        )
    };
    match known.kind {
        Kind::ReadOnly => Err(read_only(known)),
        Kind::Text => Ok(value.to_owned()),
        Kind::Timeout => parse_timeout(value).map(show_timeout).ok_or_else(invalid),
        Kind::Flag => match value.to_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Ok("on".to_owned()),
            "off" | "false" | "no" | "0" => Ok("off".to_owned()),
            _ => Err(invalid()),
        },
        Kind::Integer(min, max) => match value.trim().parse::<i64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number.to_string()),
            _ => Err(invalid()),
        },
        Kind::OneOf(values) => {
            // Some clients quote them.
            if values.contains(&value.trim_matches('\'').to_lowercase().as_str()) {
                Ok(known.default.to_owned())
            } else {
                Err(invalid().hint(format!("this server only knows {}", known.default)))
            }
        }
    }
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit.trim() {
        "" | "ms" => number,
        "us" => number / 1000,
        "s" => number.checked_mul(1000)?,
        "min" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        "d" => number.checked_mul(86_400_000)?,
        _ => return None,
    };
    // PostgreSQL keeps 32 bits.
    (millis <= i32::MAX as u64).then(|| Duration::from_millis(millis))
}

fn show_timeout(timeout: Duration) -> String {
    let millis = timeout.as_millis();
    match millis {
        0 => "0".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}min", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn settings() -> Settings {
        Settings::new("ada", &Limits::default())
    }

    #[test]
    fn timeouts_read_units_and_show_them() {
        let settings = settings();
        settings.set("Statement_Timeout", Some("1500"), SetScope::Session).unwrap();
        assert_eq!(settings.show("statement_timeout").unwrap().1, "1500ms");
        settings.set("statement_timeout", Some("2min"), SetScope::Session).unwrap();
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(120)));
        assert_eq!(settings.own_statement_timeout(), Some(Duration::from_secs(120)));
        settings.set("statement_timeout", Some("0"), SetScope::Session).unwrap();
        assert_eq!(settings.statement_timeout(), None);
        settings.set("statement_timeout", None, SetScope::Session).unwrap();
        assert_eq!((settings.statement_timeout().is_some(), settings.own_statement_timeout()), (true, None));
        let error = settings.set("statement_timeout", Some("soon"), SetScope::Session).unwrap_err();
        assert_eq!(error.state.0, "22023");
    }

    #[test]
    fn unknown_and_fixed_settings_are_refused() {
        let settings = settings();
        assert_eq!(settings.show("foo").unwrap_err().state.0, "42704");
        assert_eq!(settings.set("foo", Some("1"), SetScope::Session).unwrap_err().state.0, "42704");
        assert_eq!(settings.set("server_version", Some("9"), SetScope::Session).unwrap_err().state.0, "55P02");
        assert_eq!(settings.set("timezone", Some("Asia/Tokyo"), SetScope::Session).unwrap_err().state.0, "22023");
        settings.set_default("TimeZone", "Asia/Tokyo").unwrap();
        assert_eq!(settings.show("timezone").unwrap(), ("TimeZone", "UTC".to_owned()));
    }

    #[test]
    fn local_changes_end_with_the_transaction() {
        let settings = settings();
        settings.set("search_path", Some("speed"), SetScope::Session).unwrap();
        settings.set("search_path", Some("batch, public"), SetScope::Local).unwrap();
        assert_eq!(settings.default_schema(), "batch");
        settings.end_transaction();
        assert_eq!(settings.default_schema(), "speed");
        settings.reset_all();
        assert_eq!(settings.default_schema(), "public");
    }
}
