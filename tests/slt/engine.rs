//! A connection over which statements are sent in one of the protocols, with values as text. The types of columns are those that
//! Postgres wire tells.

use std::fmt::Write as _;

use tokio_postgres::types::{FromSql, Kind, Type};
use tokio_postgres::{Client, SimpleQueryMessage, Statement};

use crate::flight;
use crate::server::Ask;

/// How statements are sent, and in which format values come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// As text.
    Simple,
    /// Prepared, and in binary.
    Extended,
    /// Over Arrow Flight SQL.
    Flight,
}

pub struct Session {
    client: Client,
    flight: flight::Client,
    protocol: Protocol,
}

/// SQLSTATE and message.
fn told(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{}: {}", db.code().code(), db.message()),
        None => format!("{error:?}"),
    }
}

impl Session {
    pub async fn connect(ask: Ask, protocol: Protocol) -> Result<Self, String> {
        Ok(Self { client: ask.connect().await?, flight: flight::connect(&ask).await?, protocol })
    }

    /// A letter for each column, and the rows as text; the error with its SQLSTATE in front.
    pub async fn run(&self, sql: &str) -> Result<(String, Vec<Vec<String>>), String> {
        // Also in the simple protocol, which tells the types in a form that its client does not pass on.
        let statement = match self.client.prepare(sql).await {
            Ok(statement) => statement,
            Err(error) => {
                let told = told(&error);
                return Err(self
                    .over_flight(sql, &[])
                    .await
                    .map_or_else(|error| alike(told, &error), |_| format!("no error over Flight SQL of {sql}")));
            }
        };
        let types: Vec<&Type> = statement.columns().iter().map(|column| column.type_()).collect();
        let rows = match self.protocol {
            Protocol::Simple => self.simple(sql, &statement).await,
            Protocol::Extended => self.extended(&statement).await,
            Protocol::Flight => {
                let letters = types.iter().map(|kind| letter(kind)).collect();
                return match self.over_flight(sql, &types).await {
                    Ok(rows) => Ok((letters, rows)),
                    // The answers in files are those of Postgres wire.
                    Err(error) => Err(match self.client.simple_query(sql).await {
                        Err(expected) => alike(told(&expected), &error),
                        Ok(_) => error,
                    }),
                };
            }
        };
        let letters = statement.columns().iter().map(|column| letter(column.type_())).collect();
        Ok((letters, rows.map_err(|error| told(&error))?))
    }

    async fn over_flight(&self, sql: &str, types: &[&Type]) -> Result<Vec<Vec<String>>, String> {
        let rows = flight::rows(&mut self.flight.clone(), sql).await?;
        let texts = |row: Vec<Option<String>>| {
            row.iter().zip(types).map(|(value, kind)| shown(value.as_deref(), kind)).collect()
        };
        Ok(rows.into_iter().map(texts).collect())
    }

    async fn simple(&self, sql: &str, statement: &Statement) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
        let mut rows = Vec::new();
        for message in self.client.simple_query(sql).await? {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let types = statement.columns().iter().map(|column| column.type_());
            rows.push(types.enumerate().map(|(index, kind)| shown(row.get(index), kind)).collect());
        }
        Ok(rows)
    }

    async fn extended(&self, statement: &Statement) -> Result<Vec<Vec<String>>, tokio_postgres::Error> {
        let mut rows = Vec::new();
        for row in self.client.query(statement, &[]).await? {
            let types = statement.columns().iter().map(|column| column.type_());
            let texts = types.enumerate().map(|(index, kind)| {
                let value: Option<Text> = row.get(index);
                shown(value.as_ref().map(|text| text.0.as_str()), kind)
            });
            rows.push(texts.collect());
        }
        Ok(rows)
    }
}

/// What Postgres wire said, when Flight SQL gives the same SQLSTATE.
fn alike(told: String, over_flight: &str) -> String {
    let state = told.split(':').next().unwrap_or_default();
    if over_flight.contains(&format!("(SQLSTATE {state})")) {
        told
    } else {
        format!("{told}, and over Flight SQL {over_flight}")
    }
}

fn letter(kind: &Type) -> char {
    match *kind {
        Type::INT2 | Type::INT4 | Type::INT8 => 'I',
        Type::FLOAT4 | Type::FLOAT8 => 'R',
        Type::NUMERIC => 'N',
        Type::BOOL => 'B',
        Type::TEXT | Type::VARCHAR => 'T',
        _ => '?',
    }
}

fn shown(text: Option<&str>, kind: &Type) -> String {
    match text {
        None => "NULL".to_owned(),
        Some("") => "(empty)".to_owned(),
        // Floats are added in the order in which rows come: the last digits follow it.
        Some(text) if matches!(*kind, Type::FLOAT4 | Type::FLOAT8) => match text.parse::<f64>() {
            Ok(value) => rounded(value),
            Err(_) => text.to_owned(),
        },
        // The server's text has six digits of a second always, its binary format as many as there are.
        Some(text) if matches!(*kind, Type::TIMESTAMPTZ | Type::TIMESTAMPTZ_ARRAY | Type::TIMESTAMP) => {
            text.replace(".000000", "")
        }
        // Nought in binary has lost its digits after the point.
        Some(text) if *kind == Type::NUMERIC && text.chars().all(|c| matches!(c, '0' | '.' | '-')) => {
            "0".to_owned()
        }
        Some(text) => text.to_owned(),
    }
}

/// To ten digits.
fn rounded(value: f64) -> String {
    let rounded: f64 = format!("{value:.9e}").parse().unwrap();
    rounded.to_string()
}

/// A value in binary as the text that PostgreSQL would give for it.
struct Text(String);

impl<'a> FromSql<'a> for Text {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        text(kind, raw).map(Text)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn text(kind: &Type, raw: &[u8]) -> Result<String, Box<dyn std::error::Error + Sync + Send>> {
    if let Kind::Array(item) = kind.kind() {
        let items: Vec<Option<Text>> = FromSql::from_sql(kind, raw)?;
        let items = items.into_iter().map(|value| value.map_or("NULL".to_owned(), |value| value.0));
        let quoted = |value: String| match value.is_empty() || value.contains([',', ' ', '"']) {
            true if item == &Type::TEXT => format!("{value:?}"),
            _ => value,
        };
        let items = items.map(quoted);
        return Ok(format!("{{{}}}", items.collect::<Vec<_>>().join(",")));
    }
    Ok(match *kind {
        Type::BOOL => if bool::from_sql(kind, raw)? { "t" } else { "f" }.to_owned(),
        Type::INT2 => i16::from_sql(kind, raw)?.to_string(),
        Type::INT4 => i32::from_sql(kind, raw)?.to_string(),
        Type::OID | Type::REGCLASS | Type::REGTYPE | Type::REGPROC | Type::REGNAMESPACE | Type::REGROLE => {
            u32::from_be_bytes(raw.try_into()?).to_string()
        }
        Type::INT8 => i64::from_sql(kind, raw)?.to_string(),
        Type::FLOAT4 => f32::from_sql(kind, raw)?.to_string(),
        Type::FLOAT8 => f64::from_sql(kind, raw)?.to_string(),
        Type::NUMERIC => numeric(raw)?,
        Type::DATE => {
            let days = i32::from_be_bytes(raw.try_into()?);
            let epoch = chrono::NaiveDate::from_ymd_opt(2000, 1, 1).unwrap();
            (epoch + chrono::Duration::days(days.into())).to_string()
        }
        Type::TIMESTAMPTZ | Type::TIMESTAMP => {
            let micros = i64::from_be_bytes(raw.try_into()?) + 946_684_800_000_000;
            let at = chrono::DateTime::from_timestamp_micros(micros).unwrap();
            let zone = if *kind == Type::TIMESTAMPTZ { "+00" } else { "" };
            format!("{}{zone}", at.format("%Y-%m-%d %H:%M:%S%.6f"))
        }
        Type::BYTEA => raw.iter().fold("\\x".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        }),
        // Of kinds that no answer in the files has.
        _ => String::from_utf8_lossy(raw).into_owned(),
    })
}

/// The wire's numeric: groups of four digits, the weight of the first, sign and digits after the point.
fn numeric(raw: &[u8]) -> Result<String, Box<dyn std::error::Error + Sync + Send>> {
    let words: Vec<i16> = raw.chunks_exact(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect();
    let [_, weight, sign, scale, groups @ ..] = words.as_slice() else { return Err("a short numeric".into()) };
    let group = |index: i32| usize::try_from(index).ok().and_then(|index| groups.get(index)).copied().unwrap_or(0);
    let weight = i32::from(*weight);
    let whole: String = (0..=weight.max(0)).map(|at| format!("{:04}", group(at + weight.min(0)))).collect();
    let after = (usize::try_from(*scale)?).div_ceil(4);
    let fraction: String = (1..=i32::try_from(after)?).map(|at| format!("{:04}", group(weight + at))).collect();
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if *sign == 0x4000 { "-" } else { "" };
    let point = if *scale == 0 { "" } else { "." };
    Ok(format!("{sign}{whole}{point}{}", &fraction[..usize::try_from(*scale)?]))
}
