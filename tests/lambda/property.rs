//! Random views over random records under random schedules: after every step each view is its query over the records.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use viewledger::app::Declared;
use viewledger::app::guards::Guards;
use viewledger::kafka::topics::{Judgement, judge};
use viewledger::merge::snapshot::Snapshot;
use viewledger::position::Epoch;
use viewledger::runtime::{Clock, ManualClock};

use crate::bucket::{Access, Bucket, Lane, Promises, Weather};
use crate::check::{Depth, Oracle, Verdict, ViewText, check};
use crate::model::{Truth, Unfit};
use crate::process::{COMMIT_INTERVAL, Commit, Process, Refresh, Stage, Start};
use crate::records::{FLAWS, Flaw, NOON, Record, stream_sql};
use crate::seeds::{WORKERS, on_workers};
use crate::source::{Entry, Topic, fetch};
use crate::views::{Shape, view_sql};

const PARTITIONS: usize = 2;
const STREAM: &str = "clicks";
/// How many views there are to choose from: planning one takes as long as everything else of a case.
const VIEWS: u64 = 250;

#[derive(Debug, Clone)]
enum Step {
    /// Writes to the topic, and reads all but the newest few of each partition.
    Write {
        entries: Vec<(u8, Entry)>,
        left: u8,
    },
    /// Ends the open epoch.
    Seal,
    /// Commits what was sealed.
    Commit,
    Refresh,
    RefreshFully,
    /// Puts files of the archive together.
    Compact,
    /// Begins a refresh, or lets the running one do this many operations on the bucket.
    RefreshPartly(u8),
    Crash,
    /// The process will die at the write after these, before or after it happened.
    CrashAtWrite(u8, bool),
    /// One micro-batch a record, so many that the delta combines its runs.
    Drip(Vec<Record>),
}

fn record() -> impl Strategy<Value = Record> {
    let maybe = proptest::option::of::<std::ops::Range<i32>>;
    let ms = prop_oneof![1 => Just(None), 2 => Just(Some(0)), 8 => (0..=1000).prop_map(Some)];
    let minute = prop_oneof![8 => -200..200, 1 => -3_000_000..-1_000];
    let flaw = prop_oneof![9 => Just(Flaw::Nothing), 1 => prop::sample::select(FLAWS.to_vec())];
    let tags = prop::option::of(prop::collection::vec(0..3_u8, 0..3));
    let quarters = prop::option::of(-40..40_i16);
    (
        (0..24_u8, 0..3_u8, prop::option::of(0..4_u8), minute),
        (ms, maybe(-900..900), quarters),
        any::<Option<bool>>(),
        tags,
        flaw,
    )
        .prop_map(|((id, page, who, minute), (ms, cents, quarters), ok, tags, flaw)| Record {
            id,
            page,
            who,
            minute,
            ms,
            cents,
            quarters,
            ok,
            tags,
            flaw,
        })
}

fn step() -> impl Strategy<Value = Step> {
    let entry = prop_oneof![
        12 => record().prop_map(|record| Entry::Record(Arc::new(record))),
        1 => Just(Entry::Nothing),
    ];
    let entries = prop::collection::vec((any::<u8>(), entry), 1..10);
    let step = prop_oneof![
        6 => (entries, prop_oneof![2 => Just(0), 1 => 0..3_u8]).prop_map(|(entries, left)| Step::Write { entries, left }),
        2 => Just(Step::Seal),
        3 => Just(Step::Commit),
        2 => Just(Step::Refresh),
        1 => Just(Step::RefreshFully),
        1 => Just(Step::Compact),
        2 => (0..4_u8).prop_map(Step::RefreshPartly),
        1 => Just(Step::Crash),
        1 => (0..6_u8, any::<bool>()).prop_map(|(writes, after)| Step::CrashAtWrite(writes, after)),
    ];
    // Rare: it takes as long as a whole case.
    prop_oneof![40 => step, 1 => prop::collection::vec(record(), 14..16).prop_map(Step::Drip)]
}

/// `SCHEDULE_CASES` sets another number of cases. Seeds that failed are kept in `tests/lambda/property.seeds`, and are
/// run first.
#[test]
fn merged_views_are_their_queries_at_every_step_of_any_schedule() {
    let cases = std::env::var("SCHEDULE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(2_000);
    on_workers(|_| explore(cases / WORKERS));
}

fn explore(cases: u32) {
    let config = Config {
        cases,
        max_shrink_iters: 300,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/lambda/property.seeds"))),
        ..Config::default()
    };
    let stage = Stage::new();
    let schedules = (0..VIEWS, prop::collection::vec(step(), 1..8));
    let definitions = RefCell::new(BTreeMap::new());
    TestRunner::new(config)
        .run(&schedules, |(view, steps)| {
            let mut known = definitions.borrow_mut();
            let definition = known.entry(view).or_insert_with(|| Definition::of(&stage, view));
            carry_out(&stage, definition, steps).map_err(TestCaseError::fail)
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// A view of its own for each number, planned once.
struct Definition {
    declared: Arc<Declared>,
    view: ViewText,
    unfit: Option<Unfit>,
}

impl Definition {
    fn of(stage: &Stage, seed: u64) -> Self {
        let shape = Shape::random(&mut StdRng::seed_from_u64(seed));
        Self::with(stage, shape.query(STREAM), shape.unfit())
    }

    fn with(stage: &Stage, query: String, unfit: Option<Unfit>) -> Self {
        let name = "v".to_owned();
        let files = [
            ("streams/clicks.sql".to_owned(), stream_sql(STREAM)),
            ("views/v.sql".to_owned(), view_sql(&name, &query)),
        ];
        let declared = stage.declare(&files).unwrap();
        let oracle = Arc::new(Oracle::new(stage, &declared.names.streams[STREAM], &query));
        Self { declared, view: ViewText { name, source: 0, query, oracle }, unfit }
    }
}

/// Of two records with one key in one micro-batch the first cannot be counted: then the second must be.
#[test]
fn a_record_that_no_view_can_be_computed_with_does_not_use_up_its_key() {
    let stage = Stage::new();
    let query = "SELECT page, count(*) AS n, sum(1000 / ms) AS c FROM raw.clicks GROUP BY page";
    let definition = Definition::with(&stage, query.to_owned(), Some(|record| record.ms == Some(0)));
    let record = |id, ms| {
        let (who, cents, quarters, ok, tags) = (None, None, None, None, None);
        let record =
            Record { id, page: 0, who, minute: 0, ms: Some(ms), cents, quarters, ok, tags, flaw: Flaw::Nothing };
        (0, Entry::Record(Arc::new(record)))
    };
    let write = |entries: &[(u8, i32)]| Step::Write {
        entries: entries.iter().map(|(id, ms)| record(*id, *ms)).collect(),
        left: 0,
    };
    let steps = vec![
        write(&[(1, 0), (1, 0), (2, 10), (1, 5), (1, 7)]),
        write(&[(3, 0), (1, 0)]),
        write(&[(3, 4), (2, 1)]),
        Step::Commit,
        Step::Refresh,
        write(&[(4, 0), (4, 9)]),
        Step::Crash,
    ];
    carry_out(&stage, &definition, steps).unwrap();
}

struct Case<'s> {
    stage: &'s Stage,
    bucket: Arc<Bucket>,
    clock: Arc<ManualClock>,
    declared: Arc<Declared>,
    views: Vec<ViewText>,
    topic: Topic,
    process: Option<Process>,
    truth: Truth,
    /// The newest epoch of which the program said that it is committed.
    acknowledged: Epoch,
    /// The snapshot that was compared last.
    compared: Option<Arc<Snapshot>>,
    rng: StdRng,
}

fn carry_out(stage: &Stage, definition: &Definition, steps: Vec<Step>) -> Result<(), String> {
    let mut case = Case {
        stage,
        bucket: Bucket::new(Promises { durable: true, exclusive: true }),
        clock: Arc::new(ManualClock::at(NOON)),
        declared: Arc::clone(&definition.declared),
        views: vec![definition.view.clone()],
        topic: Topic::new("t", PARTITIONS),
        process: None,
        truth: Truth::new(definition.unfit),
        acknowledged: Epoch(0),
        compared: None,
        rng: StdRng::seed_from_u64(0),
    };
    case.open()?;
    let mut history = vec![definition.view.query.clone()];
    for step in steps {
        history.push(format!("{step:?}"));
        case.step(step).map_err(|reason| format!("{reason}\nafter\n{}", history.join("\n")))?;
    }
    case.process.take().into_iter().for_each(|process| process.kill(&stage.runtime));
    Ok(())
}

impl Case<'_> {
    fn open(&mut self) -> Result<(), String> {
        let access = || Access::new(&self.bucket, StdRng::seed_from_u64(0), Weather::default());
        let (access, reads) = (access(), access());
        let guards = Guards::all_on();
        let (stage, declared, clock) = (self.stage, &self.declared, &self.clock);
        let process = Process::open(Start { stage, declared, clock, guards, access, reads })
            .map_err(|error| format!("cannot open: {error:#}"))?;
        let epoch = process.epoch(0);
        let sealed = Epoch(self.truth.seals.len() as u64);
        if epoch < self.acknowledged || epoch > sealed {
            let acknowledged = self.acknowledged;
            return Err(format!("opened at epoch {epoch}: {acknowledged} was acknowledged, {sealed} sealed"));
        }
        self.truth = self.truth.cut_back(epoch);
        if process.frontiers[0].next != self.truth.next {
            let (stored, next) = (&process.frontiers[0].next, &self.truth.next);
            return Err(format!("reads on at {stored:?} after a crash, but epoch {epoch} ended at {next:?}"));
        }
        self.process = Some(process);
        Ok(())
    }

    fn crash(&mut self) -> Result<(), String> {
        self.process.take().into_iter().for_each(|process| process.kill(&self.stage.runtime));
        self.open()
    }

    fn step(&mut self, step: Step) -> Result<(), String> {
        let mut depth = Depth::Merged;
        match step {
            Step::Write { entries, left } => {
                for (partition, entry) in entries {
                    self.topic.write(partition.into(), entry);
                }
                self.read(left)?;
            }
            Step::Drip(records) => {
                for (n, record) in records.into_iter().enumerate() {
                    self.topic.write(n, Entry::Record(Arc::new(record)));
                    self.read(0)?;
                }
            }
            Step::Seal => self.seal()?,
            Step::Commit => {
                self.seal()?;
                self.commit()?;
            }
            Step::Refresh | Step::RefreshFully => {
                let full = if matches!(step, Step::RefreshFully) { vec!["v".to_owned()] } else { vec![] };
                self.process()?.access.open_gates();
                self.refresh(full)?;
                depth = Depth::Everything;
            }
            Step::Compact => {
                let stage = self.stage;
                while !self.process()?.access.is_dead() {
                    match self.process()?.compact(&stage.runtime, 0) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err(_) if self.process()?.access.is_dead() => break,
                        Err(error) => return Err(format!("compact: {error}")),
                    }
                }
                depth = Depth::Everything;
            }
            Step::RefreshPartly(operations) => {
                let gate = self.process()?.access.gate(Lane::Batch);
                gate.close();
                gate.admit(operations.into());
                self.refresh(vec![])?;
            }
            Step::Crash => {
                self.crash()?;
                depth = Depth::Everything;
            }
            Step::CrashAtWrite(writes, after) => self.process()?.access.die_at(writes.into(), after),
        }
        if self.process()?.access.is_dead() {
            self.crash()?;
        }
        self.check(depth)
    }

    fn process(&mut self) -> Result<&mut Process, String> {
        self.process.as_mut().ok_or_else(|| "no process".to_owned())
    }

    fn read(&mut self, left: u8) -> Result<(), String> {
        let stored = self.process()?.frontiers[0].clone();
        let Judgement::Read { start, halt } = judge(&stored, &self.topic.facts()) else {
            return Err("the topic is refused".to_owned());
        };
        if !halt.is_empty() {
            return Err(format!("halted: {halt:?}"));
        }
        let mut next: BTreeMap<_, _> = start
            .into_iter()
            .map(|(partition, from)| (partition, self.truth.next.get(&partition).copied().unwrap_or(from)))
            .collect();
        let most = next.iter().map(|(p, from)| self.topic.end(*p).0 - from.0).max().unwrap_or(0);
        let entries = usize::try_from(most - i64::from(left)).unwrap_or(0);
        let now = self.clock.now();
        let rng = &mut self.rng;
        let Some(fetched) = fetch(&self.topic, 0, &mut next, entries, |open| rng.random_range(0..open), now) else {
            return Ok(());
        };
        let positions = fetched.raw.positions.clone();
        self.process()?.deliver(fetched.raw).map_err(|error| format!("deliver: {error}"))?;
        self.truth.take(fetched.records, &positions);
        Ok(())
    }

    /// Time passes, so that the open epoch is sealed; an epoch that holds nothing is none.
    fn seal(&mut self) -> Result<(), String> {
        self.clock.advance(COMMIT_INTERVAL);
        let sealed = self.truth.seals.last().map_or(Default::default(), |seal| seal.next.clone());
        if sealed != self.truth.next {
            self.truth.seal();
        }
        self.process()?.idle().map_err(|error| format!("idle: {error}"))
    }

    fn commit(&mut self) -> Result<(), String> {
        loop {
            let stage = self.stage;
            match self.process()?.commit(&stage.runtime, 0) {
                Commit::Done(epoch) => self.acknowledged = epoch,
                Commit::Idle => return Ok(()),
                _ if self.process()?.access.is_dead() => return Ok(()),
                other => return Err(format!("commit: {other:?}")),
            }
        }
    }

    fn refresh(&mut self, full: Vec<String>) -> Result<(), String> {
        let stage = self.stage;
        match self.process()?.refresh(&stage.runtime, full) {
            Refresh::Hangs | Refresh::Ended(Ok(_)) => Ok(()),
            _ if self.process()?.access.is_dead() => Ok(()),
            Refresh::Ended(Err(error)) => Err(format!("refresh: {error}")),
        }
    }

    fn check(&mut self, depth: Depth) -> Result<(), String> {
        let Some(process) = &self.process else { return Ok(()) };
        let snapshot = process.core.cell.load();
        if depth == Depth::Merged && self.compared.as_ref().is_some_and(|last| Arc::ptr_eq(last, &snapshot)) {
            return Ok(());
        }
        self.compared = Some(snapshot);
        check(self.stage, process, std::slice::from_ref(&self.truth), &self.views, depth).map_err(|verdict| {
            match verdict {
                Verdict::Wrong(reason) => reason,
                Verdict::Error(reason) => format!("a query failed: {reason}"),
            }
        })
    }
}
