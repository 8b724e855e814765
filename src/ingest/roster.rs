//! Which views intake computes, and since when: a refresh adds and removes versions while records come in.
//!
//! A version that is added begins with an epoch: intake seals the open one first. The refresh that wants it waits until
//! the archive holds all epochs before, and computes those from there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::batch::run::ViewInput;
use crate::position::Epoch;

/// A view that intake computes.
#[derive(Debug, Clone)]
pub struct Entry {
    pub input: ViewInput,
    /// A record that such a view cannot take goes to quarantine. Of the others, the view is given up: what is tried out
    /// must not decide about records.
    pub required: bool,
}

/// Shared by the refresh, which wants views, and intake, which computes them.
#[derive(Debug, Default)]
pub struct Roster {
    /// Counts the changes.
    serial: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    wanted: Vec<Entry>,
    /// By stream that intake reads: which change it has followed, and the first epoch that it computes all views for.
    taken: BTreeMap<String, (u64, Epoch)>,
    /// By instance, why intake gave it up.
    given_up: BTreeMap<String, String>,
}

impl Roster {
    /// Asks for exactly these views; returns the number of the change.
    pub fn want(&self, views: Vec<Entry>) -> u64 {
        let mut state = self.state.lock();
        state.wanted = views;
        state.given_up.clear();
        self.serial.fetch_add(1, Ordering::Release) + 1
    }

    /// From the first epoch on which every stream has views that were wanted by change `serial`; None while one of them
    /// has not followed it.
    pub fn taken(&self, serial: u64) -> Option<BTreeMap<String, Epoch>> {
        let state = self.state.lock();
        let followed =
            |(stream, (at, from)): (&String, &(u64, Epoch))| (*at >= serial).then(|| (stream.clone(), *from));
        state.taken.iter().map(followed).collect()
    }

    /// What intake gave up since the last change, and why.
    pub fn given_up(&self) -> BTreeMap<String, String> {
        self.state.lock().given_up.clone()
    }

    /// For intake: the views that are wanted, when that changed after `serial`.
    pub(super) fn newer(&self, serial: u64) -> Option<(u64, Vec<Entry>)> {
        if self.serial.load(Ordering::Acquire) == serial {
            return None;
        }
        let state = self.state.lock();
        Some((self.serial.load(Ordering::Acquire), state.wanted.clone()))
    }

    pub(super) fn take(&self, stream: &str, serial: u64, from: Epoch) {
        self.state.lock().taken.insert(stream.to_owned(), (serial, from));
    }

    pub(super) fn give_up(&self, instance: &str, reason: &str) {
        self.state.lock().given_up.insert(instance.to_owned(), reason.to_owned());
    }
}
