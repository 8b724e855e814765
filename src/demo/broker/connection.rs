//! One client's connection: frames in, frames out, in order, one at a time as Kafka does it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dispatch::{self, Answer};
use super::node::Node;
use super::wire::RequestError;
use crate::runtime::Shutdown;

/// Same as Kafka's `socket.request.max.bytes`.
const REQUEST_BYTES_MAX: usize = 100 * 1024 * 1024;
/// Memory reserved on a client's word alone; more is reserved as its bytes arrive.
const RESERVED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Serves until the client leaves, misbehaves, or the broker stops.
pub(super) async fn serve(node: Arc<Node>, stream: TcpStream, peer: SocketAddr, shutdown: Shutdown) {
    let served = tokio::select! {
        served = exchange(&node, stream) => served,
        () = node.faults.until_refusing() => Ok(()),
        () = shutdown.wait() => Ok(()),
    };
    match served {
        Ok(()) => {}
        Err(ConnectionError::Io(error)) => tracing::debug!(%peer, %error, "connection lost"),
        Err(ConnectionError::Request(error)) => tracing::warn!(%peer, %error, "closing a connection"),
    }
}

#[derive(Debug)]
enum ConnectionError {
    Io(io::Error),
    Request(RequestError),
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

async fn exchange(node: &Arc<Node>, mut stream: TcpStream) -> Result<(), ConnectionError> {
    stream.set_nodelay(true)?;
    while let Some(frame) = read_frame(&mut stream).await? {
        let answer = dispatch::answer(node, frame).await.map_err(ConnectionError::Request)?;
        node.faults.until_not_stalled().await;
        match answer {
            Answer::Send(frame) => stream.write_all(&frame).await?,
            Answer::Nothing => {}
            Answer::Hang => return Ok(()),
        }
    }
    Ok(())
}

async fn read_frame(stream: &mut TcpStream) -> Result<Option<Bytes>, ConnectionError> {
    let mut length = [0; 4];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let announced = length.as_slice().get_i32();
    let length = usize::try_from(announced)
        .ok()
        .filter(|length| *length <= REQUEST_BYTES_MAX)
        .ok_or(ConnectionError::Request(RequestError::FrameLength { announced }))?;
    let mut frame = BytesMut::with_capacity(length.min(RESERVED_BYTES_MAX));
    while frame.len() < length {
        let missing = length - frame.len();
        if frame.len() == frame.capacity() {
            frame.reserve(missing.min(RESERVED_BYTES_MAX));
        }
        if stream.read_buf(&mut (&mut frame).limit(missing)).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok(Some(frame.freeze()))
}
