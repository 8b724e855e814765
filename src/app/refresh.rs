//! Runs refreshes one at a time: on schedule, on demand, or because the delta outgrew its budget.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use crate::archive::ArchiveSnapshot;
use crate::batch::Generation;
use crate::batch::attempt::Attempt;
use crate::batch::gc::Retired;
use crate::batch::publish::Generations;
use crate::batch::run::{Made, RefreshError, RefreshInput, Workshop};
use crate::batch::shelf::Shelf;
use crate::catalog::schedule::{RefreshEvery, due};
use crate::delta::Delta;
use crate::engine::Engine;
use crate::merge::catalog::Names;
use crate::merge::reconcile::history::History;
use crate::merge::refreshes::{Asked, Refreshes};
use crate::merge::snapshot::{Snapshot, SnapshotCell};
use crate::metrics::{Metrics, WorkOutcome};
use crate::position::GenerationId;
use crate::runtime::{Clock, Health, Micros, Shutdown};
use crate::storage::Storage;

mod reconcile;
mod tidy;

/// How far batch work gives way to queries and intake (see `nice(2)`).
const NICENESS: i32 = 10;

/// How long the schedule sleeps before it looks at the clock again.
const NAP: Duration = Duration::from_secs(10);

/// When views are refreshed.
#[derive(Debug, Clone)]
pub struct Schedule {
    pub views: Vec<RefreshEvery>,
    /// Longest time between two refreshes.
    pub interval_max: Duration,
}

/// What a refresher works with.
#[derive(Debug)]
pub struct Means {
    pub engine: Arc<Engine>,
    pub workers: Workers,
    pub storage: Storage,
    pub names: Arc<Names>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<Metrics>,
    pub health: Health,
    pub shutdown: Shutdown,
    /// Generations that can be read, the newest among them.
    pub generations_max: usize,
    /// Rows that `system.reconciliation` holds.
    pub reconciliations_max: usize,
    pub cut: Cut,
}

/// Makes and publishes generations.
#[derive(Debug)]
pub struct Refresher {
    means: Means,
    generations: Generations,
    shelf: Arc<Shelf>,
    history: Arc<History>,
    refreshes: Arc<Refreshes>,
    /// Held by the refresh that runs, until what it gave was compared.
    running: Arc<Mutex<Retired>>,
    /// Files of attempts of which it is not known whether they were published.
    undecided: parking_lot::Mutex<Vec<String>>,
    wanted: Arc<Notify>,
}

/// A guard that a test may switch off, to see the suite go red without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The delta goes on exactly where the generation ends.
    On,
    /// Where the archive ends by then, which is later.
    OffForTest,
}

impl Cut {
    /// The generation that readers are told of.
    fn applied(self, next: &Arc<Generation>, snapshot: &Snapshot) -> Arc<Generation> {
        match self {
            Self::On => Arc::clone(next),
            Self::OffForTest => {
                let epochs = snapshot.streams.iter().map(|(name, stream)| (name.clone(), stream.archive.epoch));
                Arc::new(Generation { epochs: epochs.collect(), ..Generation::clone(next) })
            }
        }
    }
}

/// The threads that batch work runs on.
#[derive(Debug)]
pub struct Workers {
    /// How many a query of batch work may use.
    threads: usize,
    tasks: tokio::runtime::Handle,
    /// None when the threads are somebody else's, or were shut down.
    own: Option<tokio::runtime::Runtime>,
}

impl Workers {
    /// Threads of their own, at low priority.
    pub fn start(threads: usize) -> Result<Self> {
        let own = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("refresh")
            .on_thread_start(|| {
                // SAFETY: changes the priority of the calling thread alone; failure leaves it as it is.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
            })
            .enable_all()
            .build()
            .context("cannot start the threads for batch work")?;
        Ok(Self { threads, tasks: own.handle().clone(), own: Some(own) })
    }

    /// The one thread of `tasks`, which has other work too: then one seed gives one order of everything.
    pub fn of(tasks: tokio::runtime::Handle) -> Self {
        Self { threads: 1, tasks, own: None }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.own.take() {
            runtime.shutdown_background();
        }
    }
}

/// Stops an attempt when nobody waits for it any more.
struct StopWithCaller(Arc<Attempt>);

impl Drop for StopWithCaller {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// What the delta holds when the cut is drawn; it is compared with what the archive gives.
type Leaving = BTreeMap<String, Delta>;

/// A refresh that readers have and that was not compared yet.
struct Published {
    next: Arc<Generation>,
    made: Made,
    current: Arc<Generation>,
    leaving: Leaving,
    attempt: Arc<Attempt>,
}

impl Refresher {
    pub fn new(means: Means) -> Arc<Self> {
        Arc::new(Self {
            generations: Generations::new(&means.storage),
            shelf: Arc::new(Shelf::new(means.generations_max)),
            history: Arc::new(History::new(means.reconciliations_max)),
            refreshes: Arc::default(),
            running: Arc::default(),
            undecided: parking_lot::Mutex::default(),
            wanted: Arc::default(),
            means,
        })
    }

    /// Runs further batch work on the same threads, until it ends or this does.
    pub fn spawn(
        &self,
        name: &'static str,
        health: &Health,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        let _entered = self.means.workers.tasks.enter();
        crate::runtime::spawn(name, health, work)
    }

    /// The engine for batch work.
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.means.engine)
    }

    /// Notify it to ask for a refresh before its time.
    pub fn wanted(&self) -> Arc<Notify> {
        Arc::clone(&self.wanted)
    }

    /// The generations that can be read.
    pub fn shelf(&self) -> Arc<Shelf> {
        Arc::clone(&self.shelf)
    }

    /// What reconciliation found.
    pub fn history(&self) -> Arc<History> {
        Arc::clone(&self.history)
    }

    /// The refresh that runs, and those before it.
    pub fn refreshes(&self) -> Arc<Refreshes> {
        Arc::clone(&self.refreshes)
    }

    /// The generation to start with: the newest, or a new one when a view is missing in it or was changed. Those
    /// before it are put on the shelf, and what nobody needs is deleted.
    pub async fn begin(
        self: &Arc<Self>,
        archives: &BTreeMap<String, Arc<ArchiveSnapshot>>,
    ) -> Result<Arc<Generation>> {
        let latest = self.generations.latest().await.context("cannot read the newest generation")?;
        let latest = Arc::new(latest);
        self.fill_shelf(&latest).await.context("cannot read the generations that are kept")?;
        let first =
            self.complete(Arc::clone(&latest), archives).await.context("cannot compute missing batch views")?;
        if first.id != latest.id {
            let mut retired = self.running.lock().await;
            self.shelve(&mut retired, &first);
        }
        self.sweep(&first).await;
        Ok(first)
    }

    async fn complete(
        self: &Arc<Self>,
        latest: Arc<Generation>,
        archives: &BTreeMap<String, Arc<ArchiveSnapshot>>,
    ) -> Result<Arc<Generation>> {
        let stale = |name: &String| {
            let fingerprint = self.means.names.views.get(name).map(|input| input.view.fingerprint());
            latest.views.get(name).map(|view| &view.fingerprint) != fingerprint.as_ref()
        };
        let begun = archives.values().any(|archive| archive.epoch.0 > 0);
        if !begun || !self.means.names.views.keys().any(stale) {
            return Ok(latest);
        }
        tracing::info!("a view is new or changed: computing it from the archive");
        let attempt = Arc::new(Attempt::default());
        let _stop = StopWithCaller(Arc::clone(&attempt));
        let (me, archives) = (Arc::clone(self), archives.clone());
        let made = self.carry_out(async move { me.publish(&latest, &archives, &[], &attempt).await }).await?;
        Ok(Arc::new(made.generation))
    }

    /// Makes the next generation up to the newest archive commits and publishes it to readers; `full` names views
    /// to compute from the whole archive. Batch and speed are compared behind the answer; the next refresh waits for that.
    ///
    /// When the caller stops waiting, the attempt is cancelled and its files are deleted; but once publication has
    /// begun it is carried out to its end, for a generation that is published, but that no reader of this process
    /// was told of, would fence the next one.
    pub async fn refresh(
        self: &Arc<Self>,
        cell: &Arc<SnapshotCell>,
        full: Vec<String>,
    ) -> Result<GenerationId, RefreshError> {
        let attempt = Arc::new(Attempt::default());
        let _stop = StopWithCaller(Arc::clone(&attempt));
        let (me, cell) = (Arc::clone(self), Arc::clone(cell));
        let result = self.carry_out(async move { me.next_generation(&cell, full, &attempt).await }).await;
        if let Err(error @ (RefreshError::Fenced(_) | RefreshError::Panicked)) = &result {
            self.means.health.poison("refresh", error);
        }
        if matches!(result, Err(RefreshError::Fenced(_))) {
            self.means.shutdown.trigger();
        }
        result
    }

    async fn next_generation(
        self: &Arc<Self>,
        cell: &SnapshotCell,
        full: Vec<String>,
        attempt: &Arc<Attempt>,
    ) -> Result<GenerationId, RefreshError> {
        let running = Arc::clone(&self.running).lock_owned().await;
        if attempt.is_cancelled() {
            return Err(RefreshError::Cancelled);
        }
        let began = Instant::now();
        let asked = Asked { at: self.means.clock.now(), full: full.clone() };
        self.refreshes.begin(asked, attempt);
        // From here on the delta keeps a boundary where the next generation will end.
        let (mut archives, mut leaving) = (BTreeMap::new(), Leaving::new());
        cell.update(|snapshot| {
            for (name, stream) in &mut snapshot.streams {
                stream.delta = Arc::new(stream.delta.held(Some(stream.archive.epoch)));
                archives.insert(name.clone(), Arc::clone(&stream.archive));
                leaving.insert(name.clone(), stream.delta.without_tail());
            }
        });
        let current = Arc::clone(&cell.load().generation);
        let result = self.publish(&current, &archives, &full, attempt).await;
        let outcome = match &result {
            Ok(_) => WorkOutcome::Done,
            Err(RefreshError::Cancelled) => WorkOutcome::Cancelled,
            Err(_) => WorkOutcome::Failed,
        };
        self.means.metrics.refresh(outcome, began.elapsed());
        let made = match result {
            Ok(made) => made,
            Err(error) => {
                cell.update(|snapshot| {
                    for stream in snapshot.streams.values_mut() {
                        stream.delta = Arc::new(stream.delta.held(None));
                    }
                });
                let generation = current.id.next();
                self.refreshes.end(
                    generation,
                    outcome,
                    self.means.clock.now(),
                    Some(crate::runtime::chain(&error)),
                );
                return Err(error);
            }
        };
        let next = Arc::new(made.generation.clone());
        let claimed = self.means.cut.applied(&next, &cell.load());
        cell.update(|snapshot| {
            snapshot.generation = Arc::clone(&claimed);
            for (name, stream) in &mut snapshot.streams {
                stream.delta = Arc::new(stream.delta.cut(claimed.epoch(name)));
            }
        });
        self.means.metrics.generation.set(i64::try_from(next.id.0).unwrap_or(i64::MAX));
        tracing::info!(generation = next.id.0, took = ?began.elapsed(), "generation published");
        self.refreshes.published(next.id);
        // Readers have it; only now its two computations are compared, and nobody needs to wait for that.
        let (me, id, attempt) = (Arc::clone(self), next.id, Arc::clone(attempt));
        let rest = async move { me.finish(running, Published { next, made, current, leaving, attempt }).await };
        drop(self.spawn("reconciliation", &self.means.health, rest));
        Ok(id)
    }

    /// Compares what was published, and lets go of what nobody needs any more. When the process ends, the comparison does.
    async fn finish(&self, mut running: OwnedMutexGuard<Retired>, published: Published) {
        let Published { next, made, current, leaving, attempt } = published;
        tokio::select! {
            () = self.reconcile(&current, &made, &leaving) => {}
            () = self.means.shutdown.wait() => tracing::warn!(generation = next.id.0, "batch and speed not compared"),
        }
        self.shelve(&mut running, &next);
        drop((current, leaving));
        let undecided = std::mem::take(&mut *self.undecided.lock());
        self.collect(&mut running, &next, attempt.written().into_iter().chain(undecided)).await;
        self.refreshes.end(next.id, WorkOutcome::Done, self.means.clock.now(), None);
    }

    /// Waits until no refresh runs and the last one was compared.
    pub async fn settled(&self) {
        drop(self.running.lock().await);
    }

    /// Makes the files of the next generation and publishes it. What a failed attempt wrote is deleted.
    async fn publish(
        &self,
        current: &Generation,
        archives: &BTreeMap<String, Arc<ArchiveSnapshot>>,
        full: &[String],
        attempt: &Attempt,
    ) -> Result<Made, RefreshError> {
        let workshop = Workshop {
            engine: &self.means.engine,
            threads: self.means.workers.threads,
            storage: &self.means.storage,
            clock: self.means.clock.as_ref(),
            shutdown: &self.means.shutdown,
            attempt,
        };
        let input = RefreshInput { current, archives, views: &self.means.names.views, full };
        let result = match workshop.make(input).await {
            Ok(_) if attempt.is_cancelled() => Err(RefreshError::Cancelled),
            Ok(made) => match self.generations.publish(&made.generation).await {
                Ok(()) => return Ok(made),
                Err(fenced @ RefreshError::Fenced(_)) => Err(fenced),
                // Whether it is published is not known: its files stay until another generation has that number.
                Err(unknown) => {
                    self.undecided.lock().extend(attempt.written());
                    return Err(unknown);
                }
            },
            Err(error) => Err(error),
        };
        self.discard(attempt).await;
        result
    }

    /// Runs `work` on the threads for batch work.
    async fn carry_out<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RefreshError>> + Send + 'static,
    ) -> Result<T, RefreshError> {
        match self.means.workers.tasks.spawn(work).await {
            Ok(result) => result,
            Err(ended) if ended.is_panic() => Err(RefreshError::Panicked),
            Err(_) => Err(RefreshError::Cancelled),
        }
    }

    /// Refreshes when `schedule` says so, and whenever it is wanted, until shutdown.
    pub async fn keep_to(self: Arc<Self>, cell: Arc<SnapshotCell>, schedule: Schedule) {
        loop {
            let due = due(schedule.views.iter(), self.means.clock.now(), schedule.interval_max);
            tokio::select! {
                () = self.sleep_until(due) => {}
                () = self.wanted.notified() => {}
                () = self.means.shutdown.wait() => return,
            }
            match self.refresh(&cell, Vec::new()).await {
                // The last two were told, and end the process or its health.
                Ok(_) | Err(RefreshError::Cancelled | RefreshError::Fenced(_) | RefreshError::Panicked) => {}
                // The old generation still answers, exactly; the next try may do better.
                Err(error) => tracing::error!(error = crate::runtime::chain(&error), "refresh failed"),
            }
        }
    }
    async fn sleep_until(&self, due: Micros) {
        loop {
            let left = due.saturating_sub(self.means.clock.now());
            match u64::try_from(left) {
                Err(_) | Ok(0) => return,
                // In short sleeps, so that a clock that was set is noticed.
                Ok(left) => tokio::time::sleep(Duration::from_micros(left).min(NAP)).await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
