//! Kills the real server with SIGKILL at random moments under load, and counts afterwards.
//!
//! Every acknowledged event of the truth file must be counted exactly once, in total and per video, and the
//! ledger must balance. Some of the load comes in transactions, of which some are aborted. `CRASHES=500` kills more
//! often, and the close of a month `CLOSE_CRASHES` times; `SEED=n` repeats the moments of a failure. With `VIEWLEDGER_TEST_KAFKA=host:port` the input comes from
//! a real Kafka, else from the embedded broker.
#![allow(clippy::unwrap_used, unreachable_pub)]

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

#[path = "crash/answers.rs"]
mod answers;
#[path = "crash/broker.rs"]
mod broker;
#[path = "crash/close.rs"]
mod close;
#[path = "crash/load.rs"]
mod load;
#[path = "pipeline/psql.rs"]
mod psql;
#[path = "crash/server.rs"]
mod server;
#[path = "crash/settle.rs"]
mod settle;
#[path = "crash/truth.rs"]
mod truth;
#[path = "crash/verdict.rs"]
mod verdict;

use answers::Halves;
use broker::{TOPIC, TOPICS, TestBroker};
use load::{Load, LoadPlan};
use server::{Death, Guard, Life, Site};
use settle::{query_failed, settle};
use truth::Expected;
use verdict::Violation;

const EVENTS_PER_SECOND: u32 = 1_500;
/// One wrong view has one for each of its rows.
const VIOLATIONS_TOLD: usize = 20;

/// Name of the largest sum of the view that any reader saw.
const PEAK: &str = "sum(total_views) at some moment";

/// Two cores and, with a real Kafka, one set of topics: the tests take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_event_is_counted_exactly_once() {
    let _turn = TURN.lock().await;
    let violations = Trial::new("CRASHES", 10, None).run().await;
    assert!(violations.is_empty(), "{violations:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_dedup_the_checker_sees_too_many() {
    let _turn = TURN.lock().await;
    let violations = Trial::new("CONTROL_CRASHES", 3, Some(Guard::Dedup)).run().await;
    let too_many = |violation: &Violation| match violation {
        Violation::Count { expected, seen, .. } => seen > expected,
        _ => false,
    };
    assert!(violations.iter().any(too_many), "the checker missed that dedup was off: {violations:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_stored_frontier_the_checker_sees_it() {
    let _turn = TURN.lock().await;
    let violations = Trial::new("CONTROL_CRASHES", 5, Some(Guard::Frontier)).run().await;
    // The program's own guards may see it before any reader: the archive refuses a ledger that goes back, and the
    // snapshot one whose archive is ahead of it.
    let seen = |violation: &Violation| match violation {
        Violation::Count { .. } | Violation::Unbalanced(_) | Violation::Backwards { .. } => true,
        Violation::Died(what) => ["is refused: its ledger", "the archive is ahead of the delta's end"]
            .iter()
            .any(|guard| what.contains(guard)),
        Violation::Halves { .. } => false,
    };
    assert!(violations.iter().any(seen), "the checker missed that the frontier was off: {violations:#?}");
}

/// When to kill a server.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after the process was started: in the middle of recovery.
    AfterSpawn(Duration),
    /// So long after it was ready: in the middle of commits and refreshes.
    AfterReady(Duration),
}

/// One course of the test: a fresh broker's topics, a fresh data directory, a load and some kills.
struct Trial {
    seed: u64,
    crashes: u32,
    without: Option<Guard>,
    dir: Option<tempfile::TempDir>,
    /// What batch views held when last seen: published generations are durable.
    published: i64,
    /// The most that a reader ever saw.
    peak: i64,
    lives_ready: u32,
}

impl Trial {
    fn new(crashes_variable: &str, crashes: u32, without: Option<Guard>) -> Trial {
        let number = |name: &str| {
            std::env::var(name)
                .ok()
                .map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is no number")))
        };
        Trial {
            seed: number("SEED").unwrap_or_else(rand::random),
            crashes: number(crashes_variable).map_or(crashes, |n| u32::try_from(n).unwrap()),
            without,
            dir: Some(tempfile::Builder::new().prefix("viewledger-crash-").tempdir().unwrap()),
            published: 0,
            peak: 0,
            lives_ready: 0,
        }
    }

    async fn run(&mut self) -> Vec<Violation> {
        let mut violations = self.kill_and_count().await.err().unwrap_or_default();
        if violations.len() > VIOLATIONS_TOLD {
            println!("{} violations, of which the first {VIOLATIONS_TOLD} are told", violations.len());
            violations.truncate(VIOLATIONS_TOLD);
        }
        if self.without.is_none() && !violations.is_empty() {
            self.keep_evidence();
        }
        violations
    }

    async fn kill_and_count(&mut self) -> Result<(), Vec<Violation>> {
        let dir = self.dir.as_ref().expect("the directory is given away only at the end").path().to_owned();
        let broker = TestBroker::start(&dir).await;
        broker.recreate_topics(&TOPICS).await;
        let mut site = Site::prepare(&dir, &broker.bootstrap(), self.without);
        let plan = LoadPlan {
            bootstrap: broker.bootstrap(),
            events_per_second: EVENTS_PER_SECOND,
            run: Duration::from_secs(5),
            // Not the seed itself, as the runs of one load take consecutive seeds and trials shall not share any.
            seed: self.seed.wrapping_mul(1_000_003) >> 16,
        };
        let mut load = Load::start(plan, &dir);
        let mut moments = StdRng::seed_from_u64(self.seed);
        for _ in 0..self.crashes {
            load.keep_going();
            self.live_until(&mut site, moment(&mut moments)).await.map_err(|violation| vec![violation])?;
        }
        let expected = self.count(&mut site, &mut load).await?;
        assert_worth_checking(&expected);
        println!(
            "seed {}: {} kills, {} lives got ready, {} commits, {} generations; \
             {} events, {} duplicates, {} malformed, {} aborted",
            self.seed,
            self.crashes,
            self.lives_ready,
            site.commits(),
            site.generations(),
            expected.counted,
            expected.duplicates,
            expected.quarantined,
            expected.aborted,
        );
        Ok(())
    }

    /// One life: starts the server, reads from it while it lives, kills it at `moment`.
    async fn live_until(&mut self, site: &mut Site, moment: Moment) -> Result<(), Violation> {
        let mut life = site.spawn();
        match moment {
            Moment::AfterSpawn(delay) => {
                if let Ok(outcome) = tokio::time::timeout(delay, self.watch(&mut life, None)).await {
                    outcome?;
                }
            }
            Moment::AfterReady(delay) => self.watch(&mut life, Some(delay)).await?,
        }
        life.kill().map_err(|Death(what)| Violation::Died(what))
    }

    /// Reads without pause, once the server is ready, for `time` or until cancelled.
    async fn watch(&mut self, life: &mut Life, time: Option<Duration>) -> Result<(), Violation> {
        let reader = life.wait_ready().await.map_err(|Death(what)| Violation::Died(what))?;
        self.lives_ready += 1;
        let end = time.map(|time| Instant::now() + time);
        loop {
            let look = Halves::read(&reader);
            let halves = match end {
                None => look.await,
                Some(end) => match tokio::time::timeout_at(end, look).await {
                    Ok(halves) => halves,
                    Err(_) => return Ok(()),
                },
            };
            let halves = halves.map_err(|error| query_failed(life, &error))?;
            halves.add_up()?;
            if halves.batch < self.published {
                return Err(Violation::Backwards { before: self.published, after: halves.batch });
            }
            self.published = halves.batch;
            self.peak = self.peak.max(halves.merged);
        }
    }

    /// Counts when everything has arrived, again after a refresh, and again after one more life.
    ///
    /// Each life gets fresh records: they come behind all that it might wrongly read a second time, so that the
    /// answers cannot be exact before that has happened.
    async fn count(&mut self, site: &mut Site, load: &mut Load) -> Result<Expected, Vec<Violation>> {
        let mut expected = Expected::default();
        for refresh in [Some("REFRESH MATERIALIZED VIEW video_views"), None] {
            load.keep_going();
            let mut life = site.spawn();
            expected = truth::read(load.wait().await, TOPIC);
            settle(&mut life, &expected).await?;
            if let Some(sql) = refresh {
                let reader = life.wait_ready().await.map_err(|Death(what)| vec![Violation::Died(what)])?;
                reader.rows(sql).await.map_err(|error| vec![query_failed(&life, &error)])?;
                settle(&mut life, &expected).await?;
            }
            life.kill().map_err(|Death(what)| vec![Violation::Died(what)])?;
        }
        if self.peak > expected.counted {
            return Err(vec![Violation::Count { what: PEAK.into(), expected: expected.counted, seen: self.peak }]);
        }
        Ok(expected)
    }

    /// Keeps the directory of a failure and tells how to come back to it.
    fn keep_evidence(&mut self) {
        if let Some(dir) = self.dir.take() {
            eprintln!("logs, truth and data are kept in {}", dir.keep().display());
        }
        eprintln!("to repeat the same moments: SEED={} CRASHES={}", self.seed, self.crashes);
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_evidence();
        }
    }
}

fn moment(random: &mut StdRng) -> Moment {
    if random.random_ratio(1, 4) {
        Moment::AfterSpawn(Duration::from_millis(random.random_range(10..1_500)))
    } else {
        Moment::AfterReady(Duration::from_millis(random.random_range(0..2_000)))
    }
}

/// A load without the awkward records would let a server without guards pass.
fn assert_worth_checking(expected: &Expected) {
    let Expected { counted, duplicates, quarantined, aborted, .. } = *expected;
    let all = [counted, duplicates, quarantined, aborted];
    assert!(all.iter().all(|number| *number > 0), "(counted, duplicates, quarantined, aborted) = {all:?}");
}
