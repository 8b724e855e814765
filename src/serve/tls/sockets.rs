//! Connections of one port, with TLS or without, as their first byte tells.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::server::TlsStream;

use super::Tls;
use crate::runtime::{Health, Shutdown, spawn};
use crate::serve::auth::Protocol;

/// How long a client may take until TLS is agreed on.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// Clients with which it is being agreed on.
const HANDSHAKES_MAX: usize = 256;
/// Connections that wait to be taken up.
const WAITING_MAX: usize = 64;
/// With which every conversation by TLS begins.
const TLS_HANDSHAKE: u8 = 0x16;

/// A client's connection.
#[derive(Debug)]
pub struct Socket {
    peer: SocketAddr,
    line: Line,
}

/// Whence a connection comes.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub address: SocketAddr,
    pub tls: bool,
}

#[derive(Debug)]
enum Line {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Socket {
    pub fn peer(&self) -> Peer {
        Peer { address: self.peer, tls: matches!(self.line, Line::Tls(_)) }
    }
}

/// The connections of a port as they come.
#[derive(Debug)]
pub struct Sockets {
    local: Option<SocketAddr>,
    ready: mpsc::Receiver<Socket>,
}

impl Sockets {
    /// Accepts until `shutdown`.
    pub fn of(
        listener: TcpListener,
        tls: Option<Arc<Tls>>,
        protocol: Protocol,
        health: &Health,
        shutdown: Shutdown,
    ) -> Self {
        let local = listener.local_addr().ok();
        let (sender, ready) = mpsc::channel(WAITING_MAX);
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let tasks = health.clone();
        spawn("sockets", health, async move {
            loop {
                let accepted = tokio::select! {
                    () = shutdown.wait() => return,
                    accepted = listener.accept() => accepted,
                };
                let (stream, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, or the client went away: the listener itself lives on.
                        tracing::warn!(%error, protocol = protocol.name(), "cannot accept a client");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                // Answers are written whole.
                let _ = stream.set_nodelay(true);
                let Some(tls) = &tls else {
                    if sender.send(Socket { peer, line: Line::Plain(stream) }).await.is_err() {
                        return;
                    }
                    continue;
                };
                let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else { continue };
                let (tls, sender) = (Arc::clone(tls), sender.clone());
                spawn("tls handshake", &tasks, async move {
                    match tokio::time::timeout(HANDSHAKE_PATIENCE, agreed(stream, peer, &tls, protocol)).await {
                        Ok(Ok(line)) => drop(sender.send(Socket { peer, line }).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "a client was not connected"),
                        Err(_) => tracing::debug!(%peer, "a client was silent for too long"),
                    }
                    drop(permit);
                });
            }
        });
        Self { local, ready }
    }

    /// Where clients are listened to.
    pub fn address(&self) -> Option<SocketAddr> {
        self.local
    }

    /// The next connection; None after the end.
    pub async fn next(&mut self) -> Option<Socket> {
        self.ready.recv().await
    }
}

async fn agreed(stream: TcpStream, peer: SocketAddr, tls: &Tls, protocol: Protocol) -> io::Result<Line> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    if first == [TLS_HANDSHAKE] {
        return Ok(Line::Tls(Box::new(tls.current().acceptor(protocol).accept(stream).await?)));
    }
    match tls.admits_plain(peer.ip()) {
        true => Ok(Line::Plain(stream)),
        false => Err(io::Error::other("it came without TLS, which `tls.required` or its address rules out")),
    }
}

macro_rules! either {
    ($self:ident, $socket:ident => $call:expr) => {
        match &mut $self.get_mut().line {
            Line::Plain(stream) => {
                let $socket = Pin::new(stream);
                $call
            }
            Line::Tls(stream) => {
                let $socket = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, socket => socket.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, socket => socket.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, socket => socket.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.line {
            Line::Plain(stream) => stream.is_write_vectored(),
            Line::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
