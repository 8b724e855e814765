//! What a client is told when its request fails: a problem document (RFC 9457) with the SQLSTATE.

use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::serve::ServeError;
use crate::serve::error::QueryError;

/// Seconds after which what is full or begins may be asked again.
const RETRY_AFTER: &str = "1";
/// What is asked of who did not say who they are.
const CHALLENGE: &str = "Basic realm=\"viewledger\", charset=\"UTF-8\"";

/// Why a request has no answer.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    /// Methods that the route takes.
    allow: Option<&'static str>,
    /// Apart, because it is large and most answers are none of it.
    document: Box<Document>,
}

/// The members of a problem document, in the order in which they are written.
#[derive(Debug, Serialize)]
struct Document {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlstate: Option<&'static str>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// Character in the statement, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    /// The parameter of an endpoint that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<String>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let document = Document {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            sqlstate: None,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            parameter: None,
        };
        Self { status, allow: None, document: Box::new(document) }
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.document.hint = Some(hint.into());
        self
    }

    /// About a parameter of an endpoint.
    pub(super) fn parameter(name: &str, reason: impl std::fmt::Display) -> Self {
        let mut problem = Self::new(StatusCode::BAD_REQUEST, format!("parameter {name} {reason}"));
        problem.document.sqlstate = Some("22023");
        problem.document.parameter = Some(name.to_owned());
        problem
    }

    pub(super) fn wrong_method(allow: &'static str) -> Self {
        let message = format!("this route takes {allow} alone");
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message) }
    }
}

/// A method that a route of the server itself does not take.
pub(super) async fn method_not_allowed(_: Method, uri: Uri) -> Problem {
    Problem::wrong_method(if uri.path() == "/sql" { "POST" } else { "GET, HEAD" })
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        let status = status(&error);
        let mut problem = Self::new(status, error.message);
        problem.document.sqlstate = Some(error.state.0);
        problem.document.detail = error.detail;
        problem.document.hint = error.hint;
        problem.document.position = error.position;
        problem
    }
}

impl From<ServeError> for Problem {
    fn from(error: ServeError) -> Self {
        QueryError::from(error).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.document).expect("texts and numbers can be written as JSON");
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(allow) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(CHALLENGE));
        }
        response
    }
}

/// By the class of the SQLSTATE, its first two characters, where the code itself does not say more.
fn status(error: &QueryError) -> StatusCode {
    let state = error.state.0;
    match (state, state.get(..2).unwrap_or_default()) {
        ("42501", _) => StatusCode::FORBIDDEN,
        ("57014", _) if error.message == QueryError::timed_out().message => StatusCode::GATEWAY_TIMEOUT,
        ("54000", _) => StatusCode::PAYLOAD_TOO_LARGE,
        (_, "28") => StatusCode::UNAUTHORIZED,
        (_, "53" | "57") => StatusCode::SERVICE_UNAVAILABLE,
        (_, "23" | "25" | "2B" | "55") => StatusCode::CONFLICT,
        (_, "08" | "0A" | "21" | "22" | "24" | "26" | "34" | "3D" | "3F" | "42" | "54") => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::error::SqlState;

    #[test]
    fn a_status_follows_from_the_sqlstate() {
        let of = |state| status(&QueryError::new(state, "x")).as_u16();
        assert_eq!(of(SqlState::SYNTAX), 400);
        assert_eq!(of(SqlState::UNDEFINED_TABLE), 400);
        assert_eq!(of(SqlState::INSUFFICIENT_PRIVILEGE), 403);
        assert_eq!(of(SqlState::CANNOT_CONNECT_NOW), 503);
        assert_eq!(of(SqlState::TOO_MANY_CONNECTIONS), 503);
        assert_eq!(of(SqlState::PROGRAM_LIMIT), 413);
        assert_eq!(of(SqlState::UNIQUE_VIOLATION), 409);
        assert_eq!(of(SqlState::INTERNAL), 500);
        assert_eq!(status(&QueryError::timed_out()).as_u16(), 504);
        assert_eq!(status(&QueryError::cancelled()).as_u16(), 503);
    }
}
