//! Whether a client still takes part: it must speak, or read, before a deadline.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Shared by the parts of one connection; its conversation ends when the client is lost.
#[derive(Debug)]
pub(super) struct Presence(watch::Sender<Expected>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Nothing: the client may be idle, or the server is at work.
    Whenever,
    SpeaksBy(Instant),
    /// It did not read its result in time.
    Gone,
}

impl Default for Presence {
    fn default() -> Self {
        Self(watch::Sender::new(Expected::Whenever))
    }
}

impl Presence {
    /// The client must send its next message within `patience`; None waits for ever.
    pub(super) fn expect_until(&self, patience: Option<Duration>) {
        let expected = match patience {
            Some(patience) => Expected::SpeaksBy(Instant::now() + patience),
            None => Expected::Whenever,
        };
        self.0.send_if_modified(|now| {
            let changes = *now != expected && *now != Expected::Gone;
            if changes {
                *now = expected;
            }
            changes
        });
    }

    /// Ends the conversation.
    pub(super) fn gone(&self) {
        self.0.send_replace(Expected::Gone);
    }

    /// Completes, with the reason, when the client is lost.
    pub(super) async fn lost(&self) -> &'static str {
        let mut changes = self.0.subscribe();
        loop {
            let expected = *changes.borrow_and_update();
            let late = async {
                match expected {
                    Expected::SpeaksBy(deadline) => tokio::time::sleep_until(deadline).await,
                    _ => std::future::pending().await,
                }
            };
            if expected == Expected::Gone {
                return "it did not read its result in time";
            }
            tokio::select! {
                () = late => return "it was silent for too long, at start-up or inside a transaction",
                // The sender lives in self.
                _ = changes.changed() => {}
            }
        }
    }
}
