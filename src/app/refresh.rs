//! Runs refreshes one at a time: on schedule, on demand, or because the delta outgrew its budget.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio::sync::{Mutex, Notify};

use crate::archive::ArchiveSnapshot;
use crate::batch::Generation;
use crate::batch::gc::Retired;
use crate::batch::publish::Generations;
use crate::batch::run::{Progress, RefreshError, RefreshInput, Workshop};
use crate::engine::Engine;
use crate::merge::catalog::Names;
use crate::merge::snapshot::SnapshotCell;
use crate::metrics::{Metrics, WorkOutcome};
use crate::position::GenerationId;
use crate::runtime::{Clock, Health, Shutdown};
use crate::storage::Storage;

/// How far batch work gives way to queries and intake (see `nice(2)`).
const NICENESS: i32 = 10;

/// Makes and publishes generations.
#[derive(Debug)]
pub struct Refresher {
    engine: Arc<Engine>,
    threads: usize,
    storage: Storage,
    generations: Generations,
    names: Arc<Names>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    /// Held by the refresh that runs.
    running: Mutex<Retired>,
    wanted: Arc<Notify>,
    /// Batch work has threads of its own, at low priority. None once it was shut down.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Refresher {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct LogProgress;

impl Progress for LogProgress {
    fn view_begins(&self, view: &str, rows: u64) {
        tracing::info!(view, rows, "computing batch states");
    }

    fn states_written(&self, view: &str, rows: u64) {
        tracing::info!(view, rows, "batch states written");
    }
}

impl Refresher {
    pub fn new(
        engine: Arc<Engine>,
        threads: usize,
        storage: Storage,
        names: Arc<Names>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Result<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("refresh")
            .on_thread_start(|| {
                // SAFETY: changes the priority of the calling thread alone; failure leaves it as it is.
                unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
            })
            .enable_all()
            .build()
            .context("cannot start the threads for batch work")?;
        Ok(Arc::new(Self {
            engine,
            threads,
            generations: Generations::new(&storage),
            storage,
            names,
            clock,
            metrics,
            shutdown,
            running: Mutex::default(),
            wanted: Arc::default(),
            runtime: Some(runtime),
        }))
    }

    /// Runs further batch work on the same threads, until it ends or this does.
    pub fn spawn(
        &self,
        name: &'static str,
        health: &Health,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Option<tokio::task::JoinHandle<()>> {
        let _entered = self.runtime.as_ref()?.enter();
        Some(crate::runtime::spawn(name, health, work))
    }

    /// The engine for batch work.
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// Notify it to ask for a refresh before its time.
    pub fn wanted(&self) -> Arc<Notify> {
        Arc::clone(&self.wanted)
    }

    /// The generation to start with: `latest`, or a new one when a view is missing in it or was changed.
    pub async fn complete(
        self: &Arc<Self>,
        latest: Generation,
        archives: &BTreeMap<String, Arc<ArchiveSnapshot>>,
    ) -> Result<Generation> {
        let stale = |name: &String| {
            let fingerprint = self.names.views.get(name).map(|input| input.view.fingerprint());
            latest.views.get(name).map(|view| &view.fingerprint) != fingerprint.as_ref()
        };
        let begun = archives.values().any(|archive| archive.epoch.0 > 0);
        if !begun || !self.names.views.keys().any(stale) {
            return Ok(latest);
        }
        tracing::info!("a view is new or changed: computing it from the archive");
        Ok(self.publish(Arc::new(latest), archives.clone(), Vec::new()).await?)
    }

    /// Makes the next generation up to the newest archive commits and publishes it to readers; `full` names views
    /// to compute from the whole archive.
    ///
    /// It is carried out to its end even if the caller stops waiting: a generation that is published, but that no
    /// reader of this process was told of, would fence the next one.
    pub async fn refresh(
        self: &Arc<Self>,
        cell: &Arc<SnapshotCell>,
        full: Vec<String>,
    ) -> Result<GenerationId, RefreshError> {
        let (me, cell) = (Arc::clone(self), Arc::clone(cell));
        self.carry_out(async move { me.next_generation(&cell, full).await }).await
    }

    async fn next_generation(
        self: &Arc<Self>,
        cell: &SnapshotCell,
        full: Vec<String>,
    ) -> Result<GenerationId, RefreshError> {
        let mut retired = self.running.lock().await;
        let began = Instant::now();
        // From here on the delta keeps a boundary where the next generation will end.
        let mut cut = BTreeMap::new();
        cell.update(|snapshot| {
            for (name, stream) in &mut snapshot.streams {
                stream.delta = Arc::new(stream.delta.held(Some(stream.archive.epoch)));
                cut.insert(name.clone(), Arc::clone(&stream.archive));
            }
        });
        let current = Arc::clone(&cell.load().generation);
        let result = self.publish(Arc::clone(&current), cut.clone(), full).await;
        let outcome = match &result {
            Ok(_) => WorkOutcome::Done,
            Err(RefreshError::Cancelled) => WorkOutcome::Cancelled,
            Err(_) => WorkOutcome::Failed,
        };
        self.metrics.refresh(outcome, began.elapsed());
        let next = match result {
            Ok(next) => Arc::new(next),
            Err(error) => {
                cell.update(|snapshot| {
                    for stream in snapshot.streams.values_mut() {
                        stream.delta = Arc::new(stream.delta.held(None));
                    }
                });
                return Err(error);
            }
        };
        cell.update(|snapshot| {
            snapshot.generation = Arc::clone(&next);
            for (name, stream) in &mut snapshot.streams {
                stream.delta = Arc::new(stream.delta.cut(next.epoch(name)));
            }
        });
        self.metrics.generation.set(i64::try_from(next.id.0).unwrap_or(i64::MAX));
        tracing::info!(generation = next.id.0, took = ?began.elapsed(), "generation published");
        retired.replaced(&current);
        drop(current);
        for file in retired.collect(&next) {
            if let Err(error) = self.storage.store().delete(&Path::from(file.as_str())).await {
                tracing::warn!(file, %error, "file of an old generation not deleted");
            }
        }
        Ok(next.id)
    }

    async fn publish(
        self: &Arc<Self>,
        current: Arc<Generation>,
        archives: BTreeMap<String, Arc<ArchiveSnapshot>>,
        full: Vec<String>,
    ) -> Result<Generation, RefreshError> {
        let me = Arc::clone(self);
        let work = async move {
            let workshop = Workshop {
                engine: &me.engine,
                threads: me.threads,
                storage: &me.storage,
                clock: me.clock.as_ref(),
                shutdown: &me.shutdown,
            };
            let input =
                RefreshInput { current: &current, archives: &archives, views: &me.names.views, full: &full };
            let next = workshop.make(input, &LogProgress).await?;
            me.generations.publish(&next).await?;
            Ok(next)
        };
        self.carry_out(work).await
    }

    /// Runs `work` on the threads for batch work.
    async fn carry_out<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, RefreshError>> + Send + 'static,
    ) -> Result<T, RefreshError> {
        let runtime = self.runtime.as_ref().ok_or(RefreshError::Cancelled)?;
        match runtime.spawn(work).await {
            Ok(result) => result,
            Err(ended) if ended.is_panic() => Err(RefreshError::Panicked),
            Err(_) => Err(RefreshError::Cancelled),
        }
    }

    /// Refreshes every `interval`, and whenever it is wanted, until shutdown.
    pub async fn schedule(self: Arc<Self>, cell: Arc<SnapshotCell>, interval: Duration, health: Health) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.wanted.notified() => {}
                () = self.shutdown.wait() => return,
            }
            match self.refresh(&cell, Vec::new()).await {
                Ok(_) | Err(RefreshError::Cancelled) => {}
                Err(RefreshError::Fenced(generation)) => {
                    health.poison("refresh", RefreshError::Fenced(generation));
                    self.shutdown.trigger();
                }
                Err(RefreshError::Panicked) => health.poison("refresh", RefreshError::Panicked),
                // The old generation still answers, exactly; the next try may do better.
                Err(error) => tracing::error!(error = crate::runtime::chain(&error), "refresh failed"),
            }
        }
    }
}
