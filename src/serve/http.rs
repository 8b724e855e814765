//! The HTTP adapter: statements (`POST /sql`), the endpoints of `sql/api`, what they are (`GET /openapi.json`), the console,
//! and for operators health, readiness and metrics.
//!
//! Only this file and `http/` name axum and hyper. A result is encoded on the query runtime, a piece at a time; what a slow
//! client does not take holds the query back, and a client that goes away ends it.
//!
//! Architecture invariant: no page of another site can have a browser run a statement here. `guard` refuses such requests,
//! and `POST /sql` takes only content types that a browser does not send elsewhere without asking first.

mod answer;
mod body;
mod connection;
mod console;
mod endpoints;
mod format;
mod guard;
mod json;
mod line;
mod negotiate;
mod openapi;
mod operations;
mod problem;
mod sql;
mod user;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use axum::Router;
use axum::http::HeaderMap;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::endpoints::Kept;
use self::problem::Problem;
use super::auth::{Origin, Protocol};
use super::error::{QueryError, SqlState};
use super::session::statement::SetScope;
use super::session::{QueryService, Session};
use super::tls::sockets::{Peer, Sockets};
use super::{Database, ServeError};
use crate::runtime::{Health, Shutdown};

/// Set to the `statement_timeout` of one request, such as `500ms` or `1min`.
const TIMEOUT_HEADER: &str = "viewledger-statement-timeout";

/// Who did not say who they are, where nobody has to prove it.
const ANONYMOUS: &str = "analyst";

/// Answers until `shutdown`; then what is being answered may end.
pub async fn serve_http(
    sockets: Sockets,
    service: Arc<QueryService>,
    shutdown: Shutdown,
    health: Health,
) -> Result<(), ServeError> {
    let limits = service.limits().clone();
    let desk = Arc::new(Desk {
        sessions: Arc::new(Semaphore::new(limits.connections_max)),
        numbers: AtomicI32::new(0),
        kept: Mutex::default(),
        watchers: Arc::new(Semaphore::new(console::WATCHERS_MAX)),
        health: health.clone(),
        shutdown: shutdown.clone(),
        service,
    });
    let guarded = Router::new()
        .route("/sql", post(sql::answer))
        .route("/openapi.json", get(openapi::answer))
        .route("/snapshot", get(operations::snapshot))
        .route("/", get(console::page))
        .route("/pulse", get(console::pulse))
        .fallback(endpoints::answer)
        .layer(from_fn_with_state(guard::Names::of(sockets.address()), guard::check));
    let routes = Router::new()
        .route("/healthz", get(operations::healthz))
        .route("/readyz", get(operations::readyz))
        .route("/metrics", get(operations::print_metrics))
        .merge(guarded)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .with_state(desk);
    connection::serve(sockets, routes, &limits, shutdown, health).await;
    Ok(())
}

/// What all requests share.
#[derive(Debug)]
struct Desk {
    service: Arc<QueryService>,
    /// One for each session there may be.
    sessions: Arc<Semaphore>,
    /// The last number given to a session.
    numbers: AtomicI32,
    /// The statements of endpoints, by route.
    kept: Mutex<HashMap<String, Kept>>,
    /// One for each that watches the present.
    watchers: Arc<Semaphore>,
    health: Health,
    shutdown: Shutdown,
}

impl Desk {
    fn database(&self) -> &Arc<dyn Database> {
        self.service.database()
    }

    /// A session for one request, and the right to have it.
    async fn connect(&self, headers: &HeaderMap, peer: Peer) -> Result<(Session, OwnedSemaphorePermit), Problem> {
        let origin = Origin { address: Some(peer.address), protocol: Protocol::Http, tls: peer.tls };
        let gate = self.service.gate();
        gate.admit(origin)?;
        let known = match user::of(headers)? {
            None => gate.trusted(ANONYMOUS)?,
            Some((user, password)) => gate.check_password(&user, &password, origin).await?,
        };
        let client = gate.enter(known, origin)?;
        let permit = Arc::clone(&self.sessions).try_acquire_owned().map_err(|_| {
            let most = self.service.limits().connections_max;
            let message = format!("too many requests: {most} are being answered already");
            QueryError::new(SqlState::TOO_MANY_CONNECTIONS, message)
        })?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let session = self.service.connect(client, number);
        if let Some(timeout) = headers.get(TIMEOUT_HEADER) {
            let text = timeout.to_str().map_err(|_| {
                QueryError::new(
                    SqlState::INVALID_PARAMETER,
                    format!("{TIMEOUT_HEADER} is not a time such as 500ms"),
                )
            })?;
            session.settings().set("statement_timeout", Some(text), SetScope::Session)?;
        }
        Ok((session, permit))
    }
}
