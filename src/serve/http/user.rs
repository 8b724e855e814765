//! Who makes a request.

use axum::http::{HeaderMap, StatusCode, header};

use super::problem::Problem;
use crate::serve::auth;

/// The user and the password that a request names, if it does.
pub(super) fn of(headers: &HeaderMap) -> Result<Option<(String, String)>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let refused = |reason: &str| Problem::new(StatusCode::UNAUTHORIZED, format!("authorization: {reason}"));
    let value = value.to_str().unwrap_or_default();
    if value.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer")) {
        return Err(refused("this server gives out no tokens; use Basic, with a user name"));
    }
    auth::basic(value).map(Some).ok_or_else(|| refused("it is not Basic with a user name in it"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_user_is_read_or_refused() {
        let read = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            of(&headers)
        };
        let said = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(of(&HeaderMap::new()).unwrap(), None);
        assert_eq!(read("Basic YW5hOnNlY3JldA==").unwrap(), said("ana", "secret"));
        assert_eq!(read("basic YW5hOng").unwrap(), said("ana", "x"));
        for wrong in ["", "Basic", "Basic !", "Basic Og==", "Basic OnB3", "Digest x", "Bearer x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
