//! Keeps pages of other sites out.
//!
//! A browser sends requests for any page to any address, this machine's too. A page of another site gives itself away by
//! `Origin` or `Sec-Fetch-Site`; one whose own name was made to point at this machine (DNS rebinding) by its `Host`.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;

/// By which names the server may be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// Those of this machine to itself.
    Loopback,
    /// It can be reached from elsewhere, under names that it does not know.
    Any,
}

impl Names {
    /// Of a server that listens on `address`.
    pub(super) fn of(address: Option<SocketAddr>) -> Self {
        match address {
            Some(address) if !address.ip().is_loopback() => Self::Any,
            _ => Self::Loopback,
        }
    }
}

pub(super) async fn check(State(names): State<Names>, request: Request, next: Next) -> Response {
    match refusal(names, request.headers()) {
        None => next.run(request).await,
        Some(problem) => problem.into_response(),
    }
}

fn refusal(names: Names, headers: &HeaderMap) -> Option<Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    // A browser always says which host it means; so does everything else that speaks HTTP/1.1.
    let host = text(header::HOST);
    if names == Names::Loopback
        && let Some(host) = host
        && !is_loopback(host)
    {
        let message = format!("this server listens on a loopback address, and is not called {host:?}");
        return Some(Problem::new(StatusCode::MISDIRECTED_REQUEST, message).hint("use localhost or 127.0.0.1"));
    }
    let same = |origin: &str| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority.is_some_and(|authority| host.is_some_and(|host| host.eq_ignore_ascii_case(authority)))
    };
    let elsewhere = text(header::ORIGIN).is_some_and(|origin| !same(origin))
        || text(header::HeaderName::from_static("sec-fetch-site")).is_some_and(|site| site == "cross-site");
    elsewhere.then(|| Problem::new(StatusCode::FORBIDDEN, "a page of another site may not ask here"))
}

fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let name = name.strip_suffix('.').unwrap_or(&name);
    match name.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refused(names: Names, lines: &[(&'static str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.insert(*name, value.parse().unwrap());
        }
        refusal(names, &headers).is_some()
    }

    #[test]
    fn other_names_and_other_sites_are_refused() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080", "app.localhost"] {
            assert!(!refused(Names::Loopback, &[("host", host)]), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1:8080", "[::2]", "a b", ""] {
            assert!(refused(Names::Loopback, &[("host", host)]), "{host}");
        }
        assert!(!refused(Names::Any, &[("host", "views.example")]));
        assert!(!refused(Names::Loopback, &[]));
        let host = ("host", "localhost:8080");
        assert!(!refused(Names::Loopback, &[host, ("origin", "http://localhost:8080")]));
        for origin in ["http://evil.example", "http://localhost:9090", "null", ""] {
            assert!(refused(Names::Loopback, &[host, ("origin", origin)]), "{origin}");
        }
        assert!(refused(Names::Any, &[("host", "views.example"), ("origin", "https://evil.example")]));
        assert!(refused(Names::Loopback, &[host, ("sec-fetch-site", "cross-site")]));
        assert!(!refused(Names::Loopback, &[host, ("sec-fetch-site", "same-origin")]));
    }
}
