//! The console: one page that shows the present, and `GET /pulse`, by which it learns of it.
//!
//! The page asks for everything else as any client does: `POST /sql`, and the endpoints below `/console/`, which are files in
//! `sql/console`. It needs nothing from elsewhere, and its policy allows nothing else.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::stream;
use ring::digest;

use super::Desk;
use super::problem::Problem;

const PAGE: &str = include_str!("console/page.html");

/// How often the present is told.
const INTERVAL: Duration = Duration::from_secs(1);

/// Watchers at once: none of them proves who it is.
pub(super) const WATCHERS_MAX: usize = 64;

const FIXED: [(HeaderName, &str); 5] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CACHE_CONTROL, "no-cache"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
];

pub(super) async fn page() -> Response {
    let policy = HeaderValue::try_from(policy(PAGE)).expect("base64 and words can stand in a header");
    (FIXED, [(header::CONTENT_SECURITY_POLICY, policy)], PAGE).into_response()
}

/// Script and style are those of the page and no others; it talks to nobody but this server.
fn policy(page: &str) -> String {
    let digest = |element: &str| {
        let text = between(page, element).unwrap_or_default();
        STANDARD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest("script"),
        digest("style")
    )
}

/// What stands within the first element of this name.
fn between<'a>(page: &'a str, element: &str) -> Option<&'a str> {
    let (_, rest) = page.split_once(&format!("<{element}>"))?;
    rest.split_once(&format!("</{element}>")).map(|(text, _)| text)
}

/// The present, every second, as server-sent events.
pub(super) async fn pulse(State(desk): State<Arc<Desk>>) -> Result<Response, Problem> {
    let watcher = Arc::clone(&desk.watchers).try_acquire_owned().map_err(|_| {
        let message = format!("too many watch already: {WATCHERS_MAX}");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })?;
    let shutdown = desk.shutdown.clone();
    let events = stream::unfold((desk, watcher, Duration::ZERO), move |(desk, watcher, wait)| {
        let shutdown = shutdown.clone();
        async move {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.wait() => return None,
            }
            let event = Event::default().data(desk.database().pulse()?);
            Some((Ok::<_, Infallible>(event), (desk, watcher, INTERVAL)))
        }
    });
    let mut response = Sse::new(events).into_response();
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for element in ["script", "style"] {
            assert!(between(PAGE, element).unwrap().len() > 100, "{element}");
            assert_eq!(
                PAGE.matches(&format!("<{element}")).count(),
                1,
                "one {element}, whose digest is in the policy"
            );
        }
        for outside in ["src=", "@import", "url(", "https:", " style=", " onclick=", "innerHTML", "eval("] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
    }

    #[test]
    fn the_policy_names_script_and_style() {
        let policy = policy("<style>a</style><script>b</script>");
        // echo -n b | openssl dgst -sha256 -binary | base64
        assert!(policy.contains("script-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0='"), "{policy}");
        assert!(policy.contains("style-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='"), "{policy}");
        assert_ne!(super::policy("<style>a</style><script>c</script>"), policy);
    }
}
