//! The whole pipeline under one seed: topics that change, a bucket that fails, processes that die, freeze and are
//! succeeded, and a clock that is moved by hand. What happens is written down, and audited afterwards.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use viewledger::app::Declared;
use viewledger::app::guards::Guards;
use viewledger::batch::run::RefreshError;
use viewledger::runtime::ManualClock;

use crate::audit::{Audit, Event, OpenedStream, Pid, Positions, SeenStream};
use crate::bucket::{Access, Bucket, Lane, Promises, Weather};
use crate::check::{Depth, Oracle, Verdict, ViewText, check};
use crate::model::Truth;
use crate::process::{COMMIT_INTERVAL, Commit, Process, Refresh, Stage, Start};
use crate::records::{NOON, stream_sql};
use crate::source::Topic;
use crate::views::{Shape, view_sql};

mod ending;
mod feed;
mod zombie;

use feed::Feed;
use zombie::Zombie;

const STREAMS: [&str; 2] = ["clicks", "taps"];
/// How often a process may fail to start in bad weather, before it clears up.
const OPENINGS_MAX: usize = 6;

const STORM: Weather = Weather { disk_full: 40, lost_answer: 60, broken_disk: 6, failed_read: 20 };

/// A guard that is switched off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    Nothing,
    Cut,
    Dedup,
    Fencing,
    Sync,
    StoredFrontier,
}

impl Without {
    fn guards(self) -> Guards {
        Guards {
            dedup: self != Self::Dedup,
            stored_frontier: self != Self::StoredFrontier,
            cut: self != Self::Cut,
            true_delta: true,
        }
    }

    fn promises(self) -> Promises {
        Promises { durable: self != Self::Sync, exclusive: self != Self::Fencing }
    }
}

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    pub log: Vec<Event>,
    pub verdict: Result<(), String>,
}

/// Runs one seed to its end, or to where something is wrong.
pub fn simulate(stage: &Stage, seed: u64, without: Without) -> Outcome {
    let mut world = World::new(stage, seed, without);
    let carried = catch_unwind(AssertUnwindSafe(|| world.carry_out()));
    let carried = carried.unwrap_or_else(|panic| {
        let reason = panic.downcast_ref::<String>().cloned();
        let reason = reason.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panicked: {}", reason.unwrap_or_default()))
    });
    // What is wrong is told by the log where it can be, since that says which invariant it breaks.
    let verdict = Audit::of(&world.log).and(carried);
    let log = std::mem::take(&mut world.log);
    for process in [world.zombie.take().map(|zombie| zombie.process), world.process.take()].into_iter().flatten() {
        let _ = catch_unwind(AssertUnwindSafe(|| process.kill(&stage.runtime)));
    }
    Outcome { log, verdict }
}

struct World<'s> {
    stage: &'s Stage,
    without: Without,
    rng: StdRng,
    bucket: Arc<Bucket>,
    clock: Arc<ManualClock>,
    declared: Arc<Declared>,
    views: Vec<ViewText>,
    feeds: Vec<Feed>,
    pid: Pid,
    process: Option<Process>,
    zombie: Option<Zombie>,
    /// Another process, or an answer that was lost, may have published what ours is about to, and may have deleted what
    /// the generation before it needed.
    rivalled: bool,
    weather: Weather,
    /// Nothing new goes wrong any more.
    ending: bool,
    log: Vec<Event>,
}

impl<'s> World<'s> {
    fn new(stage: &'s Stage, seed: u64, without: Without) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let streams = if rng.random_ratio(1, 3) { 2 } else { 1 };
        let mut files = Vec::new();
        let mut texts = Vec::new();
        let mut feeds = Vec::new();
        for (source, stream) in STREAMS.iter().take(streams).enumerate() {
            let shape = Shape::random(&mut rng);
            let (name, query) = (format!("v_{stream}"), shape.query(stream));
            files.push((format!("streams/{stream}.sql"), stream_sql(stream)));
            files.push((format!("views/{name}.sql"), view_sql(&name, &query)));
            texts.push((name, source, query));
            let topic = Topic::new(&format!("{stream}-1"), rng.random_range(1..=3));
            feeds.push(Feed { topic, truth: Truth::new(shape.unfit()), refused: false, truncated: Vec::new() });
        }
        let declared = stage.declare(&files).expect("the definitions are sound");
        let weather = if rng.random_ratio(1, 2) { STORM } else { Weather::default() };
        let log = vec![Event::Around(format!("views {texts:?}"))];
        let views = texts
            .into_iter()
            .map(|(name, source, query)| {
                let oracle = Oracle::new(stage, &declared.names.streams[STREAMS[source]], &query);
                ViewText { name, source, query, oracle: Arc::new(oracle) }
            })
            .collect();
        Self {
            stage,
            without,
            bucket: Bucket::new(without.promises()),
            clock: Arc::new(ManualClock::at(NOON)),
            declared,
            views,
            feeds,
            pid: 0,
            process: None,
            zombie: None,
            rivalled: false,
            weather,
            ending: false,
            log,
            rng,
        }
    }

    fn carry_out(&mut self) -> Result<(), String> {
        self.open()?;
        for _ in 0..self.rng.random_range(8..28) {
            self.turn()?;
            if self.process()?.has_refreshed() {
                self.refresh()?;
            }
            if self.process()?.access.is_dead() {
                self.crash()?;
            }
            self.look();
        }
        self.end()
    }

    /// One thing happens.
    fn turn(&mut self) -> Result<(), String> {
        self.clock.advance(Duration::from_millis(1));
        let source = self.rng.random_range(0..self.feeds.len());
        match self.rng.random_range(0..100) {
            0..28 => {
                self.write(source);
                self.deliver(source)
            }
            28..36 => self.seal(),
            36..54 => self.commit(source),
            54..68 => self.refresh(),
            68..76 => self.move_a_gate(),
            76..84 => self.answer(Depth::Merged),
            84..88 => self.change_topic(source),
            88..91 => self.crash(),
            91..95 => {
                let (writes, after) = (self.rng.random_range(0..8), self.rng.random());
                self.log.push(Event::Around(format!("the process dies after {writes} writes, {after}")));
                self.process()?.access.die_at(writes, after);
                Ok(())
            }
            _ if self.zombie.is_some() => self.wake_zombie(),
            _ => self.make_zombie(source),
        }
    }

    fn process(&mut self) -> Result<&mut Process, String> {
        self.process.as_mut().ok_or_else(|| "no process".to_owned())
    }

    fn access(&mut self) -> Arc<Access> {
        Access::new(&self.bucket, StdRng::seed_from_u64(self.rng.random()), self.weather)
    }

    /// Starts a process, trying again in bad weather.
    fn open(&mut self) -> Result<(), String> {
        for opening in 0.. {
            if opening == OPENINGS_MAX {
                self.weather = Weather::default();
            }
            let (access, reads) = (self.access(), self.access());
            reads.set_weather(Weather { failed_read: 0, ..Weather::default() });
            if !self.ending && self.rng.random_ratio(1, 20) {
                access.die_at(self.rng.random_range(0..3), self.rng.random());
            }
            let (stage, declared, clock, guards) = (self.stage, &self.declared, &self.clock, self.without.guards());
            let start = Start { stage, declared, clock, guards, access: Arc::clone(&access), reads };
            match Process::open(start) {
                Ok(process) => return self.opened(process),
                Err(error) => {
                    let reason = plain(format!("{error:#}"));
                    self.log.push(Event::NotOpened { reason: reason.clone() });
                    if self.weather.disk_full == 0 && !access.is_dead() {
                        return Err(format!("it does not open in fair weather: {reason}"));
                    }
                    access.die();
                    self.bucket_loses_power();
                }
            }
        }
        Ok(())
    }

    fn opened(&mut self, process: Process) -> Result<(), String> {
        self.pid += 1;
        let streams = (0..self.feeds.len())
            .map(|source| OpenedStream {
                epoch: process.epoch(source),
                reads_on: process.frontiers[source].next.clone(),
            })
            .collect();
        let generation = process.core.cell.load().generation.id;
        self.log.push(Event::Opened { pid: self.pid, generation, streams });
        for (source, feed) in self.feeds.iter_mut().enumerate() {
            let epoch = process.epoch(source);
            if epoch.0 > feed.truth.seals.len() as u64 {
                return Err(format!("stream {source} opens at epoch {epoch}, which was never sealed"));
            }
            feed.truth = feed.truth.cut_back(epoch);
        }
        self.rivalled = self.zombie.is_some();
        self.process = Some(process);
        Ok(())
    }

    fn bucket_loses_power(&mut self) {
        let (bucket, rng) = (Arc::clone(&self.bucket), &mut self.rng);
        self.stage.runtime.block_on(bucket.lose_power(rng));
    }

    fn crash(&mut self) -> Result<(), String> {
        self.log.push(Event::Ended { pid: self.pid, what: "crash".to_owned() });
        self.process.take().into_iter().for_each(|process| process.kill(&self.stage.runtime));
        self.bucket_loses_power();
        self.open()
    }

    /// Time passes, and what is open is sealed.
    fn seal(&mut self) -> Result<(), String> {
        self.clock.advance(COMMIT_INTERVAL);
        for (source, feed) in self.feeds.iter_mut().enumerate() {
            let sealed = feed.truth.seals.last().map_or(Positions::new(), |seal| seal.next.clone());
            if sealed != feed.truth.next {
                feed.truth.seal();
                let epoch = viewledger::position::Epoch(feed.truth.seals.len() as u64);
                self.log.push(Event::Sealed { pid: self.pid, source, epoch, next: feed.truth.next.clone() });
            }
        }
        self.process()?.idle().map_err(|error| format!("idle: {error}"))
    }

    fn commit(&mut self, source: usize) -> Result<(), String> {
        let (stage, pid) = (self.stage, self.pid);
        if !self.ending {
            let operations = self.rng.random_range(0..5);
            self.process()?.access.gate(Lane::Archive).admit(operations);
        }
        match self.process()?.commit(&stage.runtime, source) {
            Commit::Idle | Commit::Hangs => Ok(()),
            Commit::Failed => {
                self.log.push(Event::Ended { pid, what: "commit failed, to be tried again".to_owned() });
                Ok(())
            }
            Commit::Done(epoch) => {
                self.log.push(Event::Committed { pid, source, epoch });
                Ok(())
            }
            Commit::Fatal(error) if error.to_string().starts_with("fenced") => {
                Err(format!("the newest writer is fenced: {error}"))
            }
            Commit::Fatal(error) if self.weather.broken_disk > 0 || self.process()?.access.is_dead() => {
                self.log.push(Event::Ended { pid, what: plain(format!("commit: {error}")) });
                self.crash()
            }
            Commit::Fatal(error) => Err(format!("commit: {error:?}")),
            Commit::Panicked => Err("a commit panicked".to_owned()),
        }
    }

    fn refresh(&mut self) -> Result<(), String> {
        let full = match self.rng.random_ratio(1, 4) {
            true => self.views.iter().map(|view| view.name.clone()).collect(),
            false => Vec::new(),
        };
        let (stage, pid) = (self.stage, self.pid);
        if !self.ending {
            // Half of them take several turns, in which anything else may happen.
            let (slow, operations) = (self.rng.random(), self.rng.random_range(0..4));
            let process = self.process()?;
            let gate = process.access.gate(Lane::Batch);
            if slow && !process.refreshes() {
                gate.close();
            }
            gate.admit(operations);
        }
        match self.process()?.refresh(&stage.runtime, full) {
            Refresh::Hangs => Ok(()),
            Refresh::Ended(Ok(generation)) => {
                self.log.push(Event::Published { pid, generation });
                Ok(())
            }
            Refresh::Ended(Err(RefreshError::Panicked)) => Err("a refresh panicked".to_owned()),
            Refresh::Ended(Err(error)) if self.rivalled => {
                self.log.push(Event::Ended { pid, what: plain(format!("refresh: {error}")) });
                self.crash()
            }
            Refresh::Ended(Err(error)) if self.weather.disk_full > 0 || self.process()?.access.is_dead() => {
                self.rivalled = true;
                self.log.push(Event::Ended { pid, what: plain(format!("refresh: {error}")) });
                Ok(())
            }
            Refresh::Ended(Err(error)) => Err(format!("refresh: {error:?}")),
        }
    }

    fn move_a_gate(&mut self) -> Result<(), String> {
        let lane = if self.rng.random() { Lane::Archive } else { Lane::Batch };
        let (closes, admits) = (self.rng.random_ratio(2, 3), self.rng.random_range(0..6));
        let gate = self.process()?.access.gate(lane);
        if closes {
            gate.close();
            gate.admit(admits);
        } else {
            gate.open();
        }
        Ok(())
    }

    fn answer(&mut self, depth: Depth) -> Result<(), String> {
        let bucket_fails = self.weather.failed_read > 0 && self.rng.random();
        let pid = self.pid;
        let process = self.process()?;
        process
            .reads
            .set_weather(Weather { failed_read: if bucket_fails { 300 } else { 0 }, ..Weather::default() });
        let truths: Vec<Truth> = self.feeds.iter().map(|feed| feed.truth.clone()).collect();
        let process = self.process.as_ref().ok_or("no process")?;
        let verdict = check(self.stage, process, &truths, &self.views, depth);
        process.reads.set_weather(Weather::default());
        let (failed, excused) = match verdict {
            Ok(()) => (None, false),
            Err(Verdict::Error(reason)) => (Some(plain(reason)), bucket_fails || self.rivalled),
            Err(Verdict::Wrong(reason)) => (Some(plain(reason)), false),
        };
        let wrong = failed.clone().filter(|_| !excused);
        let helpless = failed.is_some() && !bucket_fails;
        self.log.push(Event::Answered { pid, failed, bucket_failed: excused });
        match wrong {
            Some(reason) => Err(reason),
            // Another process has published and tidied up: this one must start again to see it.
            None if helpless => self.crash(),
            None => Ok(()),
        }
    }

    /// Notes what a reader would see now.
    fn look(&mut self) {
        let Some(process) = &self.process else { return };
        let snapshot = process.core.cell.load();
        let streams = process.core.declared.names.streams.keys();
        let streams = streams
            .map(|name| {
                let stream = &snapshot.streams[name];
                SeenStream {
                    generation: snapshot.generation.epoch(name),
                    base: stream.delta.base(),
                    archived: stream.archive.epoch,
                    end: stream.end.next.clone(),
                    books: stream.ledger.as_ref().clone(),
                }
            })
            .collect();
        self.log.push(Event::Seen { pid: self.pid, generation: snapshot.generation.id, streams });
    }
}

/// Without the random parts of file names: one seed gives one log.
fn plain(text: String) -> String {
    let mut plain = String::with_capacity(text.len());
    for word in text.split_inclusive(|c: char| !c.is_ascii_hexdigit()) {
        let digits = word.trim_end_matches(|c: char| !c.is_ascii_hexdigit());
        if digits.len() == 32 {
            plain.push_str("(random)");
            plain.push_str(&word[digits.len()..]);
        } else {
            plain.push_str(word);
        }
    }
    plain
}
