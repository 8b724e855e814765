//! Whether a client is still there while its statement runs, which sends nothing that could fail.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use tokio::net::TcpStream;

/// How often it is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

#[cfg(target_os = "linux")]
const CLOSED: libc::c_short = libc::POLLRDHUP;
#[cfg(not(target_os = "linux"))]
const CLOSED: libc::c_short = libc::POLLHUP;

/// A second handle to the client's socket, only to ask whether the client has closed it.
#[derive(Debug)]
pub(super) struct Line(Option<OwnedFd>);

impl Line {
    pub(super) fn of(socket: &TcpStream) -> Self {
        // Without a handle the client is believed to be there.
        Self(socket.as_fd().try_clone_to_owned().ok())
    }

    /// Completes once the client has closed the connection; what it asked for is then of no use to anybody.
    pub(super) async fn until_cut(&self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if self.0.as_ref().is_some_and(closed) {
                return;
            }
        }
    }

    /// Sends what nobody else can send any more, if there is room for it at once.
    pub(super) fn tell(&self, bytes: &[u8]) {
        let Some(socket) = &self.0 else { return };
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the bytes are read, all of them are there, and the descriptor is open for as long as `socket` lives.
        unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    }
}

fn closed(socket: &OwnedFd) -> bool {
    let mut asked = libc::pollfd { fd: socket.as_raw_fd(), events: CLOSED, revents: 0 };
    // SAFETY: one descriptor, which is open for as long as `socket` lives, and no waiting.
    let answered = unsafe { libc::poll(&raw mut asked, 1, 0) };
    answered == 1 && asked.revents & (CLOSED | libc::POLLHUP | libc::POLLERR) != 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_client_that_hangs_up_is_noticed_and_one_that_only_waits_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        let line = Line::of(&served);
        assert!(!closed(line.0.as_ref().unwrap()));
        drop(client);
        tokio::time::timeout(Duration::from_secs(10), line.until_cut()).await.unwrap();
    }
}
