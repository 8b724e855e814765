//! The refresh that runs and the last ones before it, for `system.refreshes`.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::batch::attempt::{Attempt, Progress};
use crate::metrics::WorkOutcome;
use crate::position::GenerationId;
use crate::runtime::Micros;

/// Refreshes that are remembered.
const REMEMBERED_MAX: usize = 100;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub at: Micros,
    /// Views to compute from the whole archive.
    pub full: Vec<String>,
}

/// One refresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refresh {
    pub asked: Asked,
    pub progress: Progress,
    /// The generation that readers have of it; it is compared from then on.
    pub published: Option<GenerationId>,
    /// None while it runs.
    pub ended: Option<Ended>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub at: Micros,
    /// What it made, or would have made.
    pub generation: GenerationId,
    pub outcome: WorkOutcome,
    pub error: Option<String>,
}

/// Refreshes of this process.
#[derive(Debug, Default)]
pub struct Refreshes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    ended: VecDeque<Refresh>,
}

#[derive(Debug)]
struct Running {
    asked: Asked,
    attempt: Arc<Attempt>,
    published: Option<GenerationId>,
}

impl Refreshes {
    pub fn begin(&self, asked: Asked, attempt: &Arc<Attempt>) {
        self.0.lock().running = Some(Running { asked, attempt: Arc::clone(attempt), published: None });
    }

    pub fn published(&self, generation: GenerationId) {
        if let Some(running) = &mut self.0.lock().running {
            running.published = Some(generation);
        }
    }

    pub fn end(&self, generation: GenerationId, outcome: WorkOutcome, at: Micros, error: Option<String>) {
        let mut state = self.0.lock();
        let Some(Running { asked, attempt, published }) = state.running.take() else { return };
        let ended = Some(Ended { at, generation, outcome, error });
        state.ended.push_back(Refresh { asked, progress: attempt.progress(), published, ended });
        let excess = state.ended.len().saturating_sub(REMEMBERED_MAX);
        state.ended.drain(..excess);
    }

    /// Oldest first; the one that runs is the last.
    pub fn all(&self) -> Vec<Refresh> {
        let state = self.0.lock();
        let running = state.running.iter().map(|running| Refresh {
            asked: running.asked.clone(),
            progress: running.attempt.progress(),
            published: running.published,
            ended: None,
        });
        state.ended.iter().cloned().chain(running).collect()
    }
}
