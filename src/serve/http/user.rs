//! Who makes a request.

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::problem::Problem;

/// Who did not say who they are.
const ANONYMOUS: &str = "analyst";

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The user of the session that answers a request with these headers. The password is not looked at yet.
pub(super) fn of(headers: &HeaderMap) -> Result<String, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(ANONYMOUS.to_owned()) };
    let refused = |reason: &str| Problem::new(StatusCode::UNAUTHORIZED, format!("authorization: {reason}"));
    let value = value.to_str().map_err(|_| refused("it is neither Basic nor Bearer"))?;
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    if scheme.eq_ignore_ascii_case("bearer") {
        return Err(refused("this server gives out no tokens; use Basic, with a user name"));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(refused("it is neither Basic nor Bearer"));
    }
    let decoded = BASE64.decode(rest.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let user = decoded.and_then(|text| text.split_once(':').map(|(user, _)| user.to_owned()));
    user.filter(|user| !user.is_empty()).ok_or_else(|| refused("Basic has no user name in it"))
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
        assert_eq!(of(&HeaderMap::new()).unwrap(), "analyst");
        assert_eq!(read("Basic YW5hOnNlY3JldA==").unwrap(), "ana");
        assert_eq!(read("basic YW5hOng").unwrap(), "ana");
        for wrong in ["", "Basic", "Basic !", "Basic Og==", "Basic OnB3", "Digest x", "Bearer x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
