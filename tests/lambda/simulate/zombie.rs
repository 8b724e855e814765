//! Two writers at once: one is stopped in the middle of a commit and goes on after another has taken over.

use std::time::Duration;

use rand::Rng;
use viewledger::batch::run::RefreshError;

use super::{World, plain};
use crate::audit::{Event, Pid};
use crate::bucket::{Lane, Weather};
use crate::process::{Commit, Process, Refresh};

/// A process that was stopped, and goes on after another has taken over.
pub(super) struct Zombie {
    pub(super) pid: Pid,
    pub(super) process: Process,
}

impl World<'_> {
    /// The process is stopped in the middle of a commit, and another one takes over.
    pub(super) fn make_zombie(&mut self, source: usize) -> Result<(), String> {
        self.write(source);
        self.deliver(source)?;
        self.seal()?;
        let operations = self.rng.random_range(0..6);
        let gate = self.process()?.access.gate(Lane::Archive);
        gate.close();
        gate.admit(operations);
        self.commit(source)?;
        let Some(process) = self.process.take() else { return Ok(()) };
        if process.access.is_dead() {
            self.process = Some(process);
            return Ok(());
        }
        for lane in [Lane::Archive, Lane::Batch] {
            process.access.gate(lane).close();
        }
        self.log.push(Event::Ended { pid: self.pid, what: "frozen".to_owned() });
        self.zombie = Some(Zombie { pid: self.pid, process });
        self.open()
    }

    /// It goes on as if nothing had been. What it still writes must count for nothing.
    pub(super) fn wake_zombie(&mut self) -> Result<(), String> {
        let Some(Zombie { pid, mut process }) = self.zombie.take() else { return Ok(()) };
        // Two generations that hold nothing and were made in one instant would be the same one.
        self.clock.advance(Duration::from_millis(1));
        process.access.open_gates();
        process.access.set_weather(Weather::default());
        let runtime = &self.stage.runtime;
        for source in 0..self.feeds.len() {
            for _ in 0..4 {
                match process.commit(runtime, source) {
                    Commit::Idle => break,
                    Commit::Done(epoch) => self.log.push(Event::Committed { pid, source, epoch }),
                    Commit::Fatal(error) => {
                        self.log.push(Event::Ended { pid, what: plain(format!("zombie: {error}")) });
                        break;
                    }
                    Commit::Hangs | Commit::Failed => {}
                    Commit::Panicked => return Err("a zombie's commit panicked".to_owned()),
                }
            }
        }
        match process.refresh(runtime, Vec::new()) {
            Refresh::Ended(Ok(generation)) => {
                self.rivalled = true;
                self.log.push(Event::Published { pid, generation });
            }
            Refresh::Ended(Err(RefreshError::Panicked)) => return Err("a zombie's refresh panicked".to_owned()),
            Refresh::Ended(Err(error)) => {
                self.log.push(Event::Ended { pid, what: plain(format!("zombie: {error}")) })
            }
            Refresh::Hangs => {}
        }
        process.kill(runtime);
        Ok(())
    }
}
