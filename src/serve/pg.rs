//! The Postgres wire adapter: sockets, start-up, the two query protocols, cancel requests.
//!
//! Only this file and `pg/` name pgwire. Encoding of values is arrow-pg's; every message handler that
//! touches a query is ours, because pgwire's own buffer whole results and lose cancellation.

mod backends;
mod checks;
mod copy;
mod copy_in;
mod described;
mod encode;
mod line;
mod presence;
mod query;
mod startup;

use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt;
use pgwire::api::{ClientInfo, ErrorHandler, PgWireServerHandlers};
use pgwire::error::{ErrorInfo, PgWireError};
use tokio::net::{TcpListener, TcpStream};

use self::backends::{Backends, Cancels};
use self::line::Line;
use self::presence::Presence;
use self::query::Queries;
use self::startup::Startup;
use super::auth::{Exposure, Protocol};
use super::error::{QueryError, SqlState};
use super::session::QueryService;
use super::tls::Loaded;
use super::{Endpoint, ServeError};
use crate::runtime::{Health, Shutdown, spawn};

/// Sockets beyond the sessions: start-ups, cancel requests, clients that are told there is no room.
const SPARE_SOCKETS: usize = 64;

/// Opens the Postgres port.
pub async fn listen(address: SocketAddr, exposure: Exposure) -> Result<TcpListener, ServeError> {
    Endpoint::pg(address).listen_for(exposure).await
}

/// Answers Postgres clients until `shutdown`.
pub async fn serve_pg(
    listener: TcpListener,
    service: Arc<QueryService>,
    shutdown: Shutdown,
    health: Health,
) -> Result<(), ServeError> {
    let limits = service.limits();
    let backends = Arc::new(Backends::new(limits.connections_max, limits.connections_reserved));
    let sockets = Arc::new(tokio::sync::Semaphore::new(service.limits().connections_max + SPARE_SOCKETS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.wait() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                // Out of file descriptors, or the client went away: the listener itself lives on.
                tracing::warn!(%error, "cannot accept a Postgres client");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&sockets).try_acquire_owned() else {
            service.metrics().pg_connections_refused.inc();
            continue;
        };
        let tls = service.gate().tls().map(|tls| tls.current());
        let acceptor = tls.as_ref().map(|tls| tls.acceptor(Protocol::Postgres));
        let parts = Arc::new(Parts::new(Arc::clone(&service), Arc::clone(&backends), tls));
        let stop = shutdown.clone();
        spawn("pg connection", &health, async move {
            tokio::select! {
                () = stop.wait() => {}
                () = converse(socket, acceptor, parts) => {}
            }
            drop(permit);
        });
    }
}

/// What a client is told whose message cannot be read, before it is hung up on.
const UNREADABLE: &[u8] = b"E\0\0\0\x39SFATAL\0VFATAL\0C08P01\0Minvalid message of the client\0\0";

/// One client, from its first byte to its last.
async fn converse(socket: TcpStream, acceptor: Option<pgwire::tokio::TlsAcceptor>, parts: Arc<Parts>) {
    let startup_timeout = parts.startup.service.limits().startup_timeout;
    let presence = Arc::clone(&parts.presence);
    presence.expect_until(Some(startup_timeout));
    let peer = socket.peer_addr().ok();
    let line = Line::of(&socket);
    let plain = acceptor.is_none();
    let conversation = pgwire::tokio::process_socket(socket, acceptor, parts);
    // A client's bytes must not bring the process into doubt, so its panic ends here: pgwire trusts the lengths within a message.
    let conversation = std::panic::AssertUnwindSafe(conversation).catch_unwind();
    tokio::pin!(conversation);
    tokio::select! {
        why = presence.lost() => tracing::info!(?peer, why, "dropping a Postgres client"),
        () = line.until_cut() => tracing::debug!(?peer, "a Postgres client hung up"),
        ended = &mut conversation => match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(?peer, %error, "a Postgres client went away"),
            Err(_) => {
                tracing::error!(?peer, "a Postgres client sent a message that cannot be read, or its conversation panicked");
                if plain {
                    line.tell(UNREADABLE);
                }
            }
        },
    }
}

/// What pgwire asks for, made for each connection.
#[derive(Debug)]
struct Parts {
    presence: Arc<Presence>,
    startup: Arc<Startup>,
    queries: Arc<Queries>,
    cancels: Arc<Cancels>,
}

impl Parts {
    fn new(service: Arc<QueryService>, backends: Arc<Backends>, tls: Option<Arc<Loaded>>) -> Self {
        let presence = Arc::new(Presence::default());
        Self {
            cancels: Arc::new(Cancels(Arc::clone(&backends))),
            queries: Arc::new(Queries::new(&service, Arc::clone(&presence))),
            startup: Arc::new(Startup::new(service, backends, Arc::clone(&presence), tls)),
            presence,
        }
    }
}

impl PgWireServerHandlers for Parts {
    fn simple_query_handler(&self) -> Arc<impl pgwire::api::query::SimpleQueryHandler> {
        Arc::clone(&self.queries)
    }

    fn extended_query_handler(&self) -> Arc<impl pgwire::api::query::ExtendedQueryHandler> {
        Arc::clone(&self.queries)
    }

    fn copy_handler(&self) -> Arc<impl pgwire::api::copy::CopyHandler> {
        Arc::clone(&self.queries)
    }

    fn startup_handler(&self) -> Arc<impl pgwire::api::auth::StartupHandler> {
        Arc::clone(&self.startup)
    }

    fn error_handler(&self) -> Arc<impl ErrorHandler> {
        Arc::new(Told)
    }

    fn cancel_handler(&self) -> Arc<impl pgwire::api::cancel::CancelHandler> {
        Arc::clone(&self.cancels)
    }
}

/// Logs the failures that are not the client's.
#[derive(Debug)]
struct Told;

impl ErrorHandler for Told {
    fn on_error<C: ClientInfo>(&self, client: &C, error: &mut PgWireError) {
        if let PgWireError::ApiError(inner) = error {
            tracing::error!(client = %client.socket_addr(), error = %inner, "the wire adapter failed");
        }
    }
}

/// A failed statement in the protocol's words.
fn wire(error: QueryError) -> PgWireError {
    let mut info = ErrorInfo::new("ERROR".to_owned(), error.state.0.to_owned(), error.message);
    info.severity_nonlocalized = Some("ERROR".to_owned());
    info.detail = error.detail;
    info.hint = error.hint;
    info.position = error.position.map(|position| position.to_string());
    info.where_context = error.context.map(String::from);
    PgWireError::UserError(Box::new(info))
}

/// A client that is not let in, in the protocol's words.
fn turned_away(error: QueryError) -> PgWireError {
    let mut info = ErrorInfo::new("FATAL".to_owned(), error.state.0.to_owned(), error.message);
    info.severity_nonlocalized = Some("FATAL".to_owned());
    info.detail = error.detail;
    info.hint = error.hint;
    PgWireError::UserError(Box::new(info))
}

/// An error that ends the connection.
fn fatal(state: SqlState, message: impl Into<String>) -> PgWireError {
    let mut info = ErrorInfo::new("FATAL".to_owned(), state.0.to_owned(), message.into());
    info.severity_nonlocalized = Some("FATAL".to_owned());
    PgWireError::UserError(Box::new(info))
}
