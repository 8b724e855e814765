//! Switches that make the broker misbehave the way brokers do. Tests throw them; `demo` never does.
//!
//! Three more faults need no switch: a retention gap is DeleteRecords, a recreated topic is DeleteTopics and
//! CreateTopics, and a log truncated by an unclean election is [`super::Broker::lose_from`].

use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;

/// Whether clients get through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Availability {
    #[default]
    Serving,
    /// Connections are accepted and requests are read, but nothing is answered until the broker serves again.
    Stalled,
    /// The port is closed: connections are cut and new ones are refused by the system.
    Refusing,
}

/// The switches of one broker.
#[derive(Debug, Default)]
pub struct Faults {
    availability: watch::Sender<Availability>,
    produce_answers_to_drop: AtomicU32,
    fetch_answers_to_drop: AtomicU32,
}

/// Requests whose answers can be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    Produce,
    Fetch,
}

impl Faults {
    /// Takes effect on open connections too.
    pub fn set_availability(&self, availability: Availability) {
        self.availability.send_replace(availability);
    }

    pub fn availability(&self) -> Availability {
        *self.availability.borrow()
    }

    /// The next `count` requests of this kind are carried out, but their connections are closed instead of
    /// answered: the client cannot know what happened.
    pub fn drop_answers(&self, of: Dropped, count: u32) {
        self.counter(of).store(count, Ordering::SeqCst);
    }

    /// How many answers are still to be dropped.
    pub fn answers_to_drop(&self, of: Dropped) -> u32 {
        self.counter(of).load(Ordering::SeqCst)
    }

    /// Uses up one dropped answer; true when this one must be dropped.
    pub(super) fn drops(&self, of: Dropped) -> bool {
        let one_less = |left: u32| left.checked_sub(1);
        self.counter(of).fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less).is_ok()
    }

    /// Waits while the broker is stalled.
    pub(super) async fn until_not_stalled(&self) {
        self.until(|now| now != Availability::Stalled).await;
    }

    pub(super) async fn until_refusing(&self) {
        self.until(|now| now == Availability::Refusing).await;
    }

    pub(super) async fn until_not_refusing(&self) {
        self.until(|now| now != Availability::Refusing).await;
    }

    async fn until(&self, wanted: impl Fn(Availability) -> bool) {
        let mut changes = self.availability.subscribe();
        // The sender lives in self, so the channel cannot close while we wait.
        let _ = changes.wait_for(|now| wanted(*now)).await;
    }

    fn counter(&self, of: Dropped) -> &AtomicU32 {
        match of {
            Dropped::Produce => &self.produce_answers_to_drop,
            Dropped::Fetch => &self.fetch_answers_to_drop,
        }
    }
}
