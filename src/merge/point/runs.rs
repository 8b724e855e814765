//! Batch states in memory, with what their keys are found by.
//!
//! A run is read when a key of its view is first asked for, by a thread of batch work; until then, and when all of a
//! view's states do not fit, its queries take the general path. Files never change, so what was read stays true. The
//! runs of a new generation are read before readers see it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::common::ScalarValue;
use datafusion::datasource::provider_as_source;
use datafusion::error::Result;
use datafusion::logical_expr::LogicalPlanBuilder;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;

use super::StatesOf;
use crate::batch::{Generation, RunFile, ViewStates};
use crate::engine::Engine;
use crate::engine::keys::KeyIndex;
use crate::engine::merger::Merger;
use crate::engine::state::LambdaView;
use crate::merge::catalog::Names;

/// How much larger states are in memory than in their files, before one has been read.
const EXPANSION: u64 = 4;

/// What by-key queries are answered with, beside the delta.
#[derive(Debug)]
pub struct Points {
    engine: Arc<Engine>,
    /// Where runs are read.
    tasks: Handle,
    bytes_max: usize,
    /// By instance; none where the view cannot be read by key.
    mergers: Mutex<BTreeMap<String, MergerOf>>,
    views: RwLock<BTreeMap<String, Arc<View>>>,
    /// Instances whose runs are being read.
    reading: Mutex<BTreeSet<String>>,
}

/// What was made for this definition of a view.
type MergerOf = (Weak<LambdaView>, Option<Arc<Merger>>);

/// The runs of one view, by the names of their files.
#[derive(Debug, Default)]
struct View {
    runs: BTreeMap<String, Arc<Indexed>>,
}

#[derive(Debug)]
struct Indexed {
    states: Arc<RecordBatch>,
    keys: KeyIndex,
}

impl Indexed {
    fn bytes(&self) -> usize {
        self.states.get_array_memory_size() + self.keys.bytes()
    }
}

/// Rows of states that were found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub batches: Vec<Arc<RecordBatch>>,
    /// Which batch, and which row of it.
    pub rows: Vec<(usize, usize)>,
}

impl Found {
    pub(super) fn look(&mut self, states: &Arc<RecordBatch>, keys: &KeyIndex, hashes: &[u64]) {
        let (batch, before) = (self.batches.len(), self.rows.len());
        for hash in hashes {
            self.rows.extend(keys.rows(*hash).map(|row| (batch, row)));
        }
        if self.rows.len() > before {
            self.batches.push(Arc::clone(states));
        }
    }

    /// Those whose first column is `key`: an index goes by hash.
    pub(super) fn of(mut self, key: &ScalarValue) -> Result<Self> {
        let mut kept = Vec::with_capacity(self.rows.len());
        for (batch, row) in self.rows {
            if let Some(states) = self.batches.get(batch)
                && key.eq_array(states.column(0), row)?
            {
                kept.push((batch, row));
            }
        }
        self.rows = kept;
        Ok(self)
    }

    /// Each row alone.
    pub(super) fn pieces(&self) -> impl Iterator<Item = RecordBatch> {
        self.rows.iter().filter_map(|(batch, row)| self.batches.get(*batch).map(|states| states.slice(*row, 1)))
    }
}

impl Points {
    /// Keeps at most `bytes_max` bytes of batch states and of their index; reads them on `tasks`.
    pub fn new(engine: Arc<Engine>, tasks: Handle, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            engine,
            tasks,
            bytes_max,
            mergers: Mutex::default(),
            views: RwLock::default(),
            reading: Mutex::default(),
        })
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What finishes the states of a view; None when it cannot be read by key.
    pub(super) async fn merger(&self, of: &StatesOf) -> Result<Option<Arc<Merger>>> {
        if let Some((view, merger)) = self.mergers.lock().get(&of.instance)
            && std::ptr::eq(view.as_ptr(), Arc::as_ptr(&of.view))
        {
            return Ok(merger.clone());
        }
        let merger = Merger::of(&self.engine, &of.view).await?.map(Arc::new);
        self.mergers.lock().insert(of.instance.clone(), (Arc::downgrade(&of.view), merger.clone()));
        Ok(merger)
    }

    /// Adds the rows of `runs` with these hashes; false when the runs are not all at hand, and may be later.
    pub(super) fn find(
        self: &Arc<Self>,
        of: &StatesOf,
        runs: &[RunFile],
        hashes: &[u64],
        found: &mut Found,
    ) -> bool {
        if runs.is_empty() {
            return true;
        }
        let view = self.views.read().get(&of.instance).cloned().unwrap_or_default();
        for run in runs {
            match view.runs.get(&run.path) {
                Some(run) => found.look(&run.states, &run.keys, hashes),
                None => {
                    self.read_soon(of, runs);
                    return false;
                }
            }
        }
        true
    }

    fn read_soon(self: &Arc<Self>, of: &StatesOf, runs: &[RunFile]) {
        if self.room_for(&of.instance, runs).is_none() || !self.reading.lock().insert(of.instance.clone()) {
            return;
        }
        let (me, of, runs) = (Arc::clone(self), of.clone(), runs.to_vec());
        drop(self.tasks.spawn(async move {
            let read = me.read(&of.instance, &of.view, &runs).await;
            if let Err(error) = read {
                tracing::warn!(view = of.called, %error, "keys cannot be indexed: lookups take the general path");
            }
            me.reading.lock().remove(&of.instance);
        }));
    }

    /// Reads the runs of `next` for those views that are looked up by key, before readers see them.
    pub async fn prepare(&self, next: &Generation, names: &Names) {
        let known: Vec<String> = self.views.read().keys().cloned().collect();
        for instance in known {
            let (Some(states), Some(input)) = (next.views.get(&instance), names.views.get(&instance)) else {
                self.views.write().remove(&instance);
                continue;
            };
            if self.room_for(&instance, &states.runs).is_none() {
                continue;
            }
            if let Err(error) = self.read(&instance, &input.view, &states.runs).await {
                tracing::warn!(view = instance, %error, "keys cannot be indexed: lookups take the general path");
            }
        }
    }

    /// Lets go of the runs that are not in `current` any more.
    pub fn forget_all_but(&self, current: &Generation) {
        let mut views = self.views.write();
        for (instance, view) in views.iter_mut() {
            let live = current.views.get(instance).map(|states| states.runs.as_slice()).unwrap_or_default();
            let is_live = |path: &String| live.iter().any(|run| run.path == *path);
            if !view.runs.keys().all(is_live) {
                let kept = view.runs.iter().filter(|(path, _)| is_live(path));
                *view = Arc::new(View { runs: kept.map(|(path, run)| (path.clone(), Arc::clone(run))).collect() });
            }
        }
    }

    /// Bytes that there are for runs beside those of other views; None when `runs` will hardly fit in there.
    fn room_for(&self, instance: &str, runs: &[RunFile]) -> Option<usize> {
        let views = self.views.read();
        let others: usize =
            views.iter().filter(|(other, _)| *other != instance).map(|(_, view)| view.bytes()).sum();
        let room = self.bytes_max.saturating_sub(others);
        let at_hand = views.get(instance);
        let expected: u64 = runs
            .iter()
            .map(|run| match at_hand.and_then(|view| view.runs.get(&run.path)) {
                Some(run) => run.bytes() as u64,
                None => run.bytes.saturating_mul(EXPANSION),
            })
            .sum();
        usize::try_from(expected).is_ok_and(|expected| expected <= room).then_some(room)
    }

    /// Reads what is not at hand of `runs`, and keeps it beside what is.
    async fn read(&self, instance: &str, view: &LambdaView, runs: &[RunFile]) -> Result<()> {
        let schema = view.state_schema();
        for run in runs {
            let at_hand = self.views.read().get(instance).is_some_and(|view| view.runs.contains_key(&run.path));
            if at_hand {
                continue;
            }
            let table = Arc::new(ViewStates::of(vec![run.clone()]).table(Arc::clone(&schema)));
            let plan = LogicalPlanBuilder::scan("states", provider_as_source(table), None)?;
            let batches = self.engine.collect(plan.build()?, 1).await?;
            let states = Arc::new(concat_batches(&schema, &batches)?);
            drop(batches);
            let keys = KeyIndex::of(states.column(0))?;
            let run_read = Arc::new(Indexed { states, keys });
            let Some(room) = self.room_for(instance, &[]).filter(|room| run_read.bytes() <= *room) else {
                continue;
            };
            let mut views = self.views.write();
            let entry = views.entry(instance.to_owned()).or_default();
            let mut runs = entry.runs.clone();
            runs.insert(run.path.clone(), run_read);
            let next = View { runs };
            if next.bytes() > room {
                continue;
            }
            *entry = Arc::new(next);
        }
        Ok(())
    }
}

impl View {
    fn bytes(&self) -> usize {
        self.runs.values().map(|run| run.bytes()).sum()
    }
}
