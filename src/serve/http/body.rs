//! The statement that a request carries.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{ParamValues, ScalarValue};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::problem::Problem;
use crate::serve::Limits;
use crate::serve::error::{QueryError, SqlState};
use crate::serve::values::checked_cast;

/// A statement and the values of its parameters, as they were sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    pub(super) sql: String,
    #[serde(default)]
    parameters: Vec<Box<RawValue>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sql,
    Json,
}

/// Reads the body, which may take as long as a client may take to begin a session.
pub(super) async fn read(headers: &HeaderMap, body: Body, limits: &Limits) -> Result<Order, Problem> {
    let kind = kind(headers)?;
    // JSON has escapes, and parameters beside the text.
    let bytes_max = limits.sql_bytes_max.saturating_mul(2);
    let too_long =
        || Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is longer than {bytes_max} bytes"));
    // Told before it is sent, where the client says how long it is.
    let said = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|length| length > bytes_max) {
        return Err(too_long());
    }
    let read = tokio::time::timeout(limits.startup_timeout, to_bytes(body, bytes_max)).await;
    let read = read.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?;
    let bytes = read.map_err(|error| {
        let limit =
            std::error::Error::source(&error).is_some_and(|source| source.to_string().contains("length limit"));
        let unread = || Problem::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {error}"));
        if limit { too_long() } else { unread() }
    })?;
    order(kind, &bytes)
}

fn order(kind: Kind, bytes: &Bytes) -> Result<Order, Problem> {
    let wrong = |message: String| Problem::new(StatusCode::BAD_REQUEST, message);
    match kind {
        Kind::Sql => {
            let sql =
                std::str::from_utf8(bytes).map_err(|error| wrong(format!("the body is not UTF-8: {error}")))?;
            Ok(Order { sql: sql.to_owned(), parameters: Vec::new() })
        }
        Kind::Json => {
            let unexpected = |what: &dyn std::fmt::Display| {
                wrong(format!("the body is not as expected: {what}"))
                    .hint("write {\"sql\": \"SELECT ... $1\", \"parameters\": [\"...\"]}")
            };
            // An array would be taken for the members in their order.
            match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
                Some(b'{') => serde_json::from_slice(bytes).map_err(|error| unexpected(&error)),
                _ => Err(unexpected(&"it is no object")),
            }
        }
    }
}

/// Types that a browser does not send to another site without asking it first.
fn kind(headers: &HeaderMap) -> Result<Kind, Problem> {
    let refused = |message: String| {
        Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
            .hint("say content-type: application/sql for a statement, or application/json for {\"sql\": ..., \"parameters\": [...]}")
    };
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(refused("the body has no content-type".to_owned()));
    };
    let value = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let mut parts = value.split(';').map(str::trim);
    let kind = match parts.next() {
        Some("application/sql") => Kind::Sql,
        Some("application/json") => Kind::Json,
        Some("text/plain") => {
            let why = "text/plain is what any page may send to any server: it is not taken for a statement";
            return Err(refused(why.to_owned()));
        }
        other => return Err(refused(format!("content-type {} is not understood", other.unwrap_or_default()))),
    };
    let charset = parts.find_map(|part| part.strip_prefix("charset=")).map(|charset| charset.trim_matches('"'));
    match charset {
        None | Some("utf-8" | "utf8" | "us-ascii") => Ok(kind),
        Some(other) => Err(refused(format!("charset {other} is not understood: write UTF-8"))),
    }
}

impl Order {
    /// The values for parameters of these types; None where the statement does not say which.
    pub(super) fn values(&self, wanted: &[Option<DataType>]) -> Result<Option<ParamValues>, QueryError> {
        if wanted.len() != self.parameters.len() {
            let message =
                format!("{} parameters are given, and the statement has {}", self.parameters.len(), wanted.len());
            return Err(QueryError::new(SqlState::PROTOCOL_VIOLATION, message)
                .hint("send them as JSON: {\"sql\": \"SELECT ... $1\", \"parameters\": [\"...\"]}"));
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        let values = self.parameters.iter().zip(wanted).enumerate().map(|(index, (given, wanted))| {
            value(given, wanted.as_ref()).map_err(|error| QueryError {
                message: format!("parameter ${}: {}", index + 1, error.message),
                ..error
            })
        });
        Ok(Some(ParamValues::from(values.collect::<Result<Vec<ScalarValue>, _>>()?)))
    }
}

/// By its digits, not by a double that stands for them.
fn value(given: &RawValue, wanted: Option<&DataType>) -> Result<ScalarValue, QueryError> {
    let written = given.get();
    let (text, own) = match serde_json::from_str(written) {
        Ok(serde_json::Value::Null) => {
            return Ok(ScalarValue::try_from(wanted.unwrap_or(&DataType::Utf8))?);
        }
        Ok(serde_json::Value::String(text)) => (text, DataType::Utf8),
        Ok(serde_json::Value::Bool(_)) => (written.to_owned(), DataType::Boolean),
        Ok(serde_json::Value::Number(number)) if number.is_i64() => (written.to_owned(), DataType::Int64),
        Ok(serde_json::Value::Number(_)) => (written.to_owned(), DataType::Float64),
        _ => {
            let message = "a value is a string, a number, true, false or null";
            return Err(QueryError::new(SqlState::DATATYPE_MISMATCH, message));
        }
    };
    let column: ArrayRef = Arc::new(StringArray::from(vec![text]));
    let cast = checked_cast(&column, wanted.unwrap_or(&own))?;
    Ok(ScalarValue::try_from_array(&cast, 0)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
        headers
    }

    #[test]
    fn what_any_page_may_send_is_not_taken() {
        assert_eq!(kind(&headers("Application/SQL; charset=UTF-8")).unwrap(), Kind::Sql);
        assert_eq!(kind(&headers("application/json")).unwrap(), Kind::Json);
        for wrong in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/sql; charset=latin1",
            "",
        ] {
            assert!(kind(&headers(wrong)).is_err(), "{wrong}");
        }
        assert!(kind(&HeaderMap::new()).is_err());
    }

    #[test]
    fn parameters_get_the_types_of_the_statement() {
        let body = Bytes::from(
            r#"{"sql": "x", "parameters": ["a", 7, 12345678901234567.25, true, null, 9007199254740993]}"#,
        );
        let order = order(Kind::Json, &body).unwrap();
        let decimal = DataType::Decimal128(20, 2);
        let wanted =
            [Some(DataType::Utf8), Some(DataType::Int32), Some(decimal), None, Some(DataType::Int64), None];
        let Some(ParamValues::List(values)) = order.values(&wanted).unwrap() else { panic!("no values") };
        let values: Vec<String> = values.iter().map(|value| format!("{:?}", value.value)).collect();
        let expected = [
            "Utf8(\"a\")",
            "Int32(7)",
            "Decimal128(12345678901234567.25,20,2)",
            "Boolean(true)",
            "Int64(NULL)",
            "Int64(9007199254740993)",
        ];
        assert_eq!(values, expected);
        assert!(order.values(&[]).unwrap_err().message.contains("6 parameters are given"));
        let unfit = |body: &str, wanted: DataType| {
            let order = super::order(Kind::Json, &Bytes::from(body.to_owned())).unwrap();
            order.values(&[Some(wanted)]).unwrap_err().message
        };
        let said = unfit(r#"{"sql": "x", "parameters": ["many"]}"#, DataType::Int64);
        assert!(said.starts_with("parameter $1: a value does not fit"), "{said}");
        assert!(unfit(r#"{"sql": "x", "parameters": [[1]]}"#, DataType::Int64).contains("a value is a string"));
        for wrong in [r#"{"sql": 1}"#, r#"["SELECT 1"]"#, r#"{"query": "x"}"#, "SELECT 1", ""] {
            assert!(super::order(Kind::Json, &Bytes::from(wrong)).is_err(), "{wrong}");
        }
    }
}
