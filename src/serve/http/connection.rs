//! Sockets: how many there may be, how long they may be silent, and how they end.

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use futures::FutureExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;

use super::line::Line;
use crate::runtime::{Health, Shutdown, spawn};
use crate::serve::Limits;
use crate::serve::tls::sockets::{Socket, Sockets};

/// Sockets beyond the sessions: health checks, and clients that are told there is no room.
const SPARE_SOCKETS: usize = 64;
/// How long a connection may be kept without a request, and how long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a request's head, and of an answer that waits to be written.
const BUFFER_BYTES: usize = 64 << 10;
/// Header fields of a request.
const HEADERS_MAX: usize = 100;
/// How long answers that have begun may take when the process ends.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// Answers by `routes` until `shutdown`; then no request is taken any more, and what is being answered may end.
pub(super) async fn serve(
    mut connections: Sockets,
    routes: Router,
    limits: &Limits,
    shutdown: Shutdown,
    health: Health,
) {
    let most = limits.connections_max.saturating_add(SPARE_SOCKETS).min(Semaphore::MAX_PERMITS);
    let sockets = Arc::new(Semaphore::new(most));
    loop {
        let socket = tokio::select! {
            () = shutdown.wait() => break,
            socket = connections.next() => match socket {
                Some(socket) => socket,
                None => break,
            },
        };
        let Ok(permit) = Arc::clone(&sockets).try_acquire_owned() else { continue };
        let (routes, stop, patience) = (routes.clone(), shutdown.clone(), limits.write_timeout);
        spawn("http connection", &health, async move {
            converse(socket, routes, patience, stop).await;
            drop(permit);
        });
    }
    let all = u32::try_from(most).unwrap_or(u32::MAX);
    if tokio::time::timeout(END_PATIENCE, sockets.acquire_many(all)).await.is_err() {
        tracing::info!("HTTP answers were cut off at the end of the process");
    }
}

/// One client, from its first byte to its last.
async fn converse(socket: Socket, routes: Router, patience: Duration, stop: Shutdown) {
    let peer = socket.peer();
    // What answers a request may ask whence it came.
    let routes = routes.layer(Extension(peer));
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(Line::new(socket, patience)), TowerToHyperService::new(routes));
    // A client's bytes must not bring the process into doubt, so its panic ends here.
    let conversation = async move {
        tokio::pin!(conversation);
        tokio::select! {
            ended = conversation.as_mut() => ended,
            () = stop.wait() => {
                conversation.as_mut().graceful_shutdown();
                conversation.await
            }
        }
    };
    match std::panic::AssertUnwindSafe(conversation).catch_unwind().await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(peer = %peer.address, %error, "an HTTP client went away"),
        Err(_) => tracing::error!(peer = %peer.address, "the conversation with an HTTP client panicked"),
    }
}
