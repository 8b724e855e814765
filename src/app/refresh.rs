//! Runs refreshes one at a time: on schedule, on demand, or because the delta outgrew its budget.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};

use super::bindings;
use crate::archive::ArchiveSnapshot;
use crate::batch::Generation;
use crate::batch::attempt::Attempt;
use crate::batch::gc::Retired;
use crate::batch::publish::Generations;
use crate::batch::run::{Made, RefreshError, ViewInput};
use crate::batch::shelf::Shelf;
use crate::catalog::schedule::due;
use crate::catalog::version;
use crate::delta::Delta;
use crate::engine::Engine;
use crate::ingest::roster::{Entry, Roster};
use crate::merge::catalog::Names;
use crate::merge::point::Points;
use crate::merge::reconcile::history::History;
use crate::merge::refreshes::{Asked, Refreshes};
use crate::merge::snapshot::{Snapshot, SnapshotCell};
use crate::metrics::{Metrics, WorkOutcome};
use crate::position::GenerationId;
use crate::runtime::{Clock, Health, Micros, Shutdown};
use crate::storage::Storage;

mod publish;
mod reconcile;
mod tidy;

use publish::Sources;

/// How far batch work gives way to queries and intake (see `nice(2)`).
const NICENESS: i32 = 10;

/// How long the schedule sleeps before it looks at the clock again.
const NAP: Duration = Duration::from_secs(10);

/// How often it is looked whether intake has followed.
const GLANCE: Duration = Duration::from_millis(5);

/// What a refresher works with.
#[derive(Debug)]
pub struct Means {
    pub engine: Arc<Engine>,
    pub workers: Workers,
    pub storage: Storage,
    /// What intake computes.
    pub roster: Arc<Roster>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<Metrics>,
    pub health: Health,
    pub shutdown: Shutdown,
    /// Generations that can be read, the newest among them.
    pub generations_max: usize,
    /// What looks keys up in generations.
    pub points: Arc<Points>,
    pub cut: Cut,
}

/// What a refresher leaves to the next one of the same process.
#[derive(Debug, Clone)]
pub struct Legacy {
    shelf: Arc<Shelf>,
    history: Arc<History>,
    refreshes: Arc<Refreshes>,
    /// Held by the refresh that runs, until what it gave was compared.
    running: Arc<Mutex<Retired>>,
}

impl Legacy {
    /// Nothing yet. Keeps `generations_max` generations, the newest among them, and as many rows of
    /// `system.reconciliation` as the other says.
    pub fn new(generations_max: usize, reconciliations_max: usize) -> Self {
        Self {
            shelf: Arc::new(Shelf::new(generations_max)),
            history: Arc::new(History::new(reconciliations_max)),
            refreshes: Arc::default(),
            running: Arc::default(),
        }
    }
}

/// Makes and publishes generations.
#[derive(Debug)]
pub struct Refresher {
    means: Means,
    generations: Generations,
    legacy: Legacy,
    /// Files of attempts of which it is not known whether they were published.
    undecided: parking_lot::Mutex<Vec<String>>,
    wanted: Arc<Notify>,
    /// The views that there are have changed, and with them when they are due.
    rescheduled: Notify,
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

impl Workers {
    pub fn tasks(&self) -> tokio::runtime::Handle {
        self.tasks.clone()
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

/// What the next generation is to be.
struct Order {
    /// Views to compute from the whole archive.
    full: Vec<String>,
    /// What there is to read from then on; None leaves it as it is.
    names: Option<Arc<Names>>,
    tables: Binding,
}

/// Which versions of reference tables views are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binding {
    Newest,
    /// Those that they have.
    Kept,
}

/// What intake is to compute, so that all of `names` can be read, and soon those of `next`.
pub(super) fn entries(names: &Names, next: Option<&Names>) -> Vec<Entry> {
    let new =
        next.into_iter().flat_map(|next| &next.views).filter(|(instance, _)| !names.views.contains_key(*instance));
    let all = names.views.iter().chain(new);
    all.map(|(instance, input)| Entry { input: input.clone(), required: names.is_current(instance) }).collect()
}

/// What the delta holds when the cut is drawn; it is compared with what the archive gives.
type Leaving = BTreeMap<String, Delta>;

/// A refresh that readers have and that was not compared yet.
struct Published {
    next: Arc<Generation>,
    made: Made,
    current: Arc<Generation>,
    leaving: Leaving,
    names: Arc<Names>,
    /// Versions that were not there before.
    new: BTreeSet<String>,
    attempt: Arc<Attempt>,
}

impl Refresher {
    pub fn new(means: Means, legacy: Legacy) -> Arc<Self> {
        Arc::new(Self {
            generations: Generations::new(&means.storage),
            legacy,
            undecided: parking_lot::Mutex::default(),
            wanted: Arc::default(),
            rescheduled: Notify::new(),
            means,
        })
    }

    /// For the refresher that takes over from this one.
    pub fn legacy(&self) -> Legacy {
        self.legacy.clone()
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

    /// What looks keys up in the generations that this makes.
    pub fn points(&self) -> Arc<Points> {
        Arc::clone(&self.means.points)
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
        Arc::clone(&self.legacy.shelf)
    }

    /// What reconciliation found.
    pub fn history(&self) -> Arc<History> {
        Arc::clone(&self.legacy.history)
    }

    /// The refresh that runs, and those before it.
    pub fn refreshes(&self) -> Arc<Refreshes> {
        Arc::clone(&self.legacy.refreshes)
    }

    /// The newest generation.
    pub async fn latest(&self) -> Result<Arc<Generation>> {
        let latest = self.generations.latest().await.context("cannot read the newest generation")?;
        // The one that earlier readers of this process hold: by that it is known whether somebody reads it.
        let held = self.legacy.shelf.readable().iter().find(|held| ***held == latest).cloned();
        Ok(held.unwrap_or_else(|| Arc::new(latest)))
    }

    /// The generation to start with: `latest`, or a new one when it lacks a view of `names` or holds other states of it.
    /// Those before it are put on the shelf, and what nobody needs is deleted. Returns what there is to read in it: a
    /// version on standby that cannot be computed is left out.
    pub async fn begin(
        self: &Arc<Self>,
        latest: Arc<Generation>,
        names: Arc<Names>,
        tables: BTreeMap<String, u64>,
        archives: &BTreeMap<String, Arc<ArchiveSnapshot>>,
    ) -> Result<(Arc<Generation>, Arc<Names>)> {
        let begins = self.legacy.shelf.readable().is_empty();
        if begins {
            self.fill_shelf(&latest).await.context("cannot read the generations that are kept")?;
        }
        let complete = self.complete(Arc::clone(&latest), names, tables, archives).await;
        let (first, names) = complete.context("cannot compute missing batch views")?;
        if first.id != latest.id {
            let mut retired = self.legacy.running.lock().await;
            self.shelve(&mut retired, &first);
        }
        if begins {
            self.sweep(&first).await;
        }
        Ok((first, names))
    }

    async fn complete(
        self: &Arc<Self>,
        latest: Arc<Generation>,
        names: Arc<Names>,
        tables: BTreeMap<String, u64>,
        archives: &BTreeMap<String, Arc<ArchiveSnapshot>>,
    ) -> Result<(Arc<Generation>, Arc<Names>)> {
        let stale = |(instance, input): (&String, &ViewInput)| {
            latest.views.get(instance).is_none_or(|states| states.fingerprint != input.view.fingerprint())
        };
        let begun = archives.values().any(|archive| archive.epoch.0 > 0);
        if !begun || !names.views.iter().any(stale) {
            return Ok((latest, names));
        }
        tracing::info!("a view is new or changed: computing it from the archive");
        let attempt = Arc::new(Attempt::default());
        let _stop = StopWithCaller(Arc::clone(&attempt));
        let (me, archives) = (Arc::clone(self), archives.clone());
        let work = async move {
            let new = BTreeSet::new();
            let sources = Sources { tables, new: &new, archives: &archives, full: &[] };
            me.publish(&latest, names, sources, &attempt).await
        };
        let (made, names) = self.carry_out(work).await?;
        Ok((Arc::new(made.generation), names))
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
        let order = Order { full: full.clone(), names: None, tables: Binding::Newest };
        match self.advance(cell, order).await {
            // With what its tables hold now: all others must not wait until somebody changes that.
            Err(RefreshError::Compute { view, source: _ } | RefreshError::Unfit { view, reason: _ })
                if !cell.load().names.views.contains_key(&view) =>
            {
                let view = version::unbound_instance(&view);
                tracing::error!(
                    view,
                    "it cannot be computed with its tables as they are now: it keeps the old ones"
                );
                self.advance(cell, Order { full, names: None, tables: Binding::Kept }).await
            }
            made => made,
        }
    }

    /// As [`Refresher::refresh`], with `names` in the place of what there is to read: a version that is new in them is
    /// computed from the whole archive, while those that were there go on answering. When nothing is new in them,
    /// nothing is computed.
    ///
    /// `names` are made from those of the current snapshot; the caller sees to it that there is one caller at a time.
    pub async fn rename(
        self: &Arc<Self>,
        cell: &Arc<SnapshotCell>,
        names: Arc<Names>,
    ) -> Result<GenerationId, RefreshError> {
        let made = self.advance(cell, Order { full: Vec::new(), names: Some(names), tables: Binding::Kept }).await;
        self.rescheduled.notify_one();
        made
    }

    async fn advance(
        self: &Arc<Self>,
        cell: &Arc<SnapshotCell>,
        order: Order,
    ) -> Result<GenerationId, RefreshError> {
        let attempt = Arc::new(Attempt::default());
        let _stop = StopWithCaller(Arc::clone(&attempt));
        let (me, cell) = (Arc::clone(self), Arc::clone(cell));
        let result = self.carry_out(async move { me.next_generation(&cell, order, &attempt).await }).await;
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
        order: Order,
        attempt: &Arc<Attempt>,
    ) -> Result<GenerationId, RefreshError> {
        let mut running = Arc::clone(&self.legacy.running).lock_owned().await;
        if attempt.is_cancelled() || self.means.shutdown.is_triggered() {
            return Err(RefreshError::Cancelled);
        }
        let began = Instant::now();
        let asked = Asked { at: self.means.clock.now(), full: order.full.clone() };
        self.legacy.refreshes.begin(asked, attempt);
        let (before, tables) = {
            let snapshot = cell.load();
            (Arc::clone(&snapshot.names), Arc::clone(&snapshot.tables))
        };
        let names = match (&order.names, order.tables) {
            (Some(names), _) => Arc::clone(names),
            (None, Binding::Kept) => Arc::clone(&before),
            (None, Binding::Newest) => bindings::to_newest(&before, &tables),
        };
        let tables = tables.versions();
        let new: BTreeSet<String> =
            names.views.keys().filter(|instance| !before.views.contains_key(*instance)).cloned().collect();
        let enlisted = if new.is_empty() { Ok(()) } else { self.enlist(cell, &names, attempt).await };
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
        let result = match enlisted {
            Ok(()) if order.names.is_some() && new.is_empty() => self.publish_names(&current, names, tables).await,
            Ok(()) => {
                let sources = Sources { tables, new: &new, archives: &archives, full: &order.full };
                self.publish(&current, names, sources, attempt).await
            }
            Err(error) => Err(error),
        };
        let outcome = match &result {
            Ok(_) => WorkOutcome::Done,
            Err(RefreshError::Cancelled) => WorkOutcome::Cancelled,
            Err(_) => WorkOutcome::Failed,
        };
        self.means.metrics.refresh(outcome, began.elapsed());
        let (made, names) = match result {
            Ok(made) => made,
            Err(error) => {
                self.means.roster.want(entries(&cell.load().names, None));
                cell.update(|snapshot| {
                    for stream in snapshot.streams.values_mut() {
                        stream.delta = Arc::new(stream.delta.held(None));
                    }
                });
                let generation = current.id.next();
                self.legacy.refreshes.end(
                    generation,
                    outcome,
                    self.means.clock.now(),
                    Some(crate::runtime::chain(&error)),
                );
                return Err(error);
            }
        };
        let next = Arc::new(made.generation.clone());
        self.means.points.prepare(&next, &names).await;
        let claimed = self.means.cut.applied(&next, &cell.load());
        cell.update(|snapshot| {
            let mut next = Names::clone(&names);
            // What intake gave up meanwhile is not whole, whether readers could see it already or not.
            let seen = before.views.keys().filter(|instance| !snapshot.names.views.contains_key(*instance));
            for instance in self.means.roster.given_up().keys().chain(seen) {
                next = next.without(instance);
            }
            snapshot.generation = Arc::clone(&claimed);
            for (name, stream) in &mut snapshot.streams {
                let delta = stream.delta.cut(claimed.epoch(name)).only(|view| next.views.contains_key(view));
                stream.delta = Arc::new(delta);
            }
            snapshot.names = Arc::new(next);
        });
        let names = Arc::clone(&cell.load().names);
        self.means.roster.want(entries(&names, None));
        self.means.metrics.generation.set(i64::try_from(next.id.0).unwrap_or(i64::MAX));
        tracing::info!(generation = next.id.0, took = ?began.elapsed(), "generation published");
        self.means.points.forget_all_but(&next);
        self.shelve(&mut running, &next);
        self.legacy.refreshes.published(next.id);
        // Readers have it; only now its two computations are compared, and nobody needs to wait for that.
        let (me, id, attempt) = (Arc::clone(self), next.id, Arc::clone(attempt));
        let rest = async move {
            me.finish(running, Published { next, made, current, leaving, names, new, attempt }).await
        };
        drop(self.spawn("reconciliation", &self.means.health, rest));
        Ok(id)
    }

    /// Compares what was published, and lets go of what nobody needs any more. When the process ends, the comparison does.
    async fn finish(&self, mut running: OwnedMutexGuard<Retired>, published: Published) {
        let Published { next, made, current, leaving, names, new, attempt } = published;
        tokio::select! {
            () = self.reconcile(&current, &made, &leaving, &names, &new) => {}
            () = self.means.shutdown.wait() => tracing::warn!(generation = next.id.0, "batch and speed not compared"),
        }
        drop((current, leaving));
        let undecided = std::mem::take(&mut *self.undecided.lock());
        self.collect(&mut running, &next, attempt.written().into_iter().chain(undecided)).await;
        self.legacy.refreshes.end(next.id, WorkOutcome::Done, self.means.clock.now(), None);
    }

    /// Waits until no refresh runs and the last one was compared; none begins while the answer is held.
    pub async fn pause(&self) -> impl Drop + use<> {
        Arc::clone(&self.legacy.running).lock_owned().await
    }

    /// Has intake compute the new views of `names` too, beside those there are, and waits until the archive holds every
    /// epoch for which it does not.
    async fn enlist(&self, cell: &SnapshotCell, names: &Names, attempt: &Attempt) -> Result<(), RefreshError> {
        let serial = self.means.roster.want(entries(&cell.load().names, Some(names)));
        loop {
            if attempt.is_cancelled() || self.means.shutdown.is_triggered() {
                return Err(RefreshError::Cancelled);
            }
            if let Some(from) = self.means.roster.taken(serial) {
                let snapshot = cell.load();
                let archived = |stream: &String| snapshot.streams.get(stream).map(|stream| stream.archive.epoch);
                if from.iter().all(|(stream, from)| archived(stream).is_none_or(|epoch| epoch.next() >= *from)) {
                    return Ok(());
                }
            }
            tokio::time::sleep(GLANCE).await;
        }
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

    /// Refreshes when a view is due, `interval_max` after the last time and whenever it is wanted, until shutdown.
    pub async fn keep_schedule(self: Arc<Self>, cell: Arc<SnapshotCell>, interval_max: Duration) {
        loop {
            let names = Arc::clone(&cell.load().names);
            let views = names.views.values().map(|input| &input.declared.refresh_every);
            let due = due(views, self.means.clock.now(), interval_max);
            drop(names);
            tokio::select! {
                () = self.rescheduled.notified() => continue,
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
