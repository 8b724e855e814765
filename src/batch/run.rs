//! Carries a refresh out: partial states from the archive's new epochs, combined with what was there.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use futures::StreamExt;

use super::attempt::Attempt;
use super::plan::{Scope, ViewPlan, view_plan};
use super::{BoundTable, Generation, RunFile, ViewStates};
use crate::archive::{ArchiveSnapshot, Kind};
use crate::catalog::stream::Stream;
use crate::catalog::version::Histories;
use crate::catalog::view::View;
use crate::engine::Engine;
use crate::engine::state::{LambdaView, ViewError};
use crate::position::{Epoch, GenerationId};
use crate::runtime::{Clock, Shutdown};
use crate::storage::merging::runs_to_merge;
use crate::storage::parquet::{ParquetSink, put_encoded};
use crate::storage::{Storage, StorageError, paths};

/// A version of a view with the stream it reads.
#[derive(Debug, Clone)]
pub struct ViewInput {
    /// Its name is that of the instance.
    pub view: Arc<LambdaView>,
    pub stream: Arc<Stream>,
    pub declared: Arc<View>,
    /// The reference tables that it is computed with.
    pub tables: BTreeMap<String, BoundTable>,
}

/// Everything a refresh reads.
#[derive(Debug)]
pub struct RefreshInput<'a> {
    pub current: &'a Generation,
    /// By stream name: where the next generation ends.
    pub archives: &'a BTreeMap<String, Arc<ArchiveSnapshot>>,
    /// By instance.
    pub views: &'a BTreeMap<String, ViewInput>,
    pub versions: &'a Histories,
    /// The versions of all reference tables.
    pub tables: BTreeMap<String, u64>,
    /// Views to compute from the whole archive.
    pub full: &'a [String],
}

#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    #[error("view {view}: {source}")]
    Compute { view: String, source: DataFusionError },
    #[error(transparent)]
    Plan(#[from] ViewError),
    #[error("view {view}: cannot encode states")]
    Encode { view: String, source: parquet::errors::ParquetError },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("generation {0} was published by another process; this one is fenced and must stop")]
    Fenced(GenerationId),
    #[error("the refresh was cancelled; nothing was published and nothing is left of it")]
    Cancelled,
    #[error("view {view} cannot take a record that came meanwhile: {reason}; nothing was published")]
    Unfit { view: String, reason: String },
    #[error("the refresh panicked: an invariant does not hold; the log says which")]
    Panicked,
}

/// Where and with what a refresh computes.
#[derive(Debug)]
pub struct Workshop<'a> {
    pub engine: &'a Engine,
    pub threads: usize,
    pub storage: &'a Storage,
    pub clock: &'a dyn Clock,
    pub shutdown: &'a Shutdown,
    pub attempt: &'a Attempt,
}

/// The next generation before it is published.
#[derive(Debug)]
pub struct Made {
    pub generation: Generation,
    /// By view, what was computed from the archive.
    pub fresh: BTreeMap<String, Fresh>,
}

/// States of one view that were computed from the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fresh {
    /// They hold the records of epochs after this.
    pub after: Epoch,
    /// None when there were no records. The generation may name a file that it was combined into instead.
    pub run: Option<RunFile>,
}

impl Workshop<'_> {
    /// Writes the files of the next generation and returns its manifest; nothing is published yet.
    pub async fn make(&self, input: RefreshInput<'_>) -> Result<Made, RefreshError> {
        let mut next = Generation {
            id: input.current.id.next(),
            created_at: self.clock.now(),
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            versions: input.versions.clone(),
            tables: input.tables.clone(),
            ..Generation::empty()
        };
        for (stream, archive) in input.archives {
            next.frontier.0.insert(stream.clone(), archive.frontier.clone());
            next.epochs.insert(stream.clone(), archive.epoch);
        }
        let mut plans = Vec::with_capacity(input.views.len());
        for (name, ViewInput { view, stream, tables, .. }) in input.views {
            let Some(archive) = input.archives.get(&stream.name) else { continue };
            let scope = if input.full.contains(name) { Scope::Full } else { Scope::New };
            let from = input.current.epoch(&stream.name);
            let fingerprint = view.fingerprint();
            let plan = view_plan(input.current.views.get(name), &fingerprint, scope, from, archive.epoch);
            let rows: u64 = match &plan {
                ViewPlan::Keep(_) => 0,
                ViewPlan::Compute { after, .. } => {
                    archive.files_in(Kind::Event, *after).map(|file| file.rows).sum()
                }
            };
            let tables = tables.clone();
            plans.push((name, view, stream, archive, (fingerprint, tables), plan, rows));
        }
        self.attempt.expects(plans.iter().map(|(.., rows)| rows).sum());
        let mut fresh = BTreeMap::new();
        for (name, view, stream, archive, (fingerprint, tables), plan, rows) in plans {
            self.check()?;
            let runs = match plan {
                ViewPlan::Keep(runs) => runs,
                ViewPlan::Compute { after, mut runs } => {
                    tracing::debug!(view = name, rows, "computing batch states");
                    self.attempt.begins(name, rows);
                    let mut run = None;
                    if rows > 0 {
                        let made = self.new_run(view, stream, archive, after, next.id).await?;
                        runs.push(made.clone());
                        run = Some(made);
                        self.combine(view, &mut runs, next.id).await?;
                    }
                    self.attempt.ends();
                    fresh.insert(name.clone(), Fresh { after, run });
                    let groups: u64 = runs.iter().map(|run| run.rows).sum();
                    tracing::info!(view = name, rows, groups, runs = runs.len(), "batch states written");
                    runs
                }
            };
            next.views.insert(name.clone(), ViewStates { fingerprint, runs, tables });
        }
        Ok(Made { generation: next, fresh })
    }

    /// An error once the process is ending or the attempt was cancelled.
    fn check(&self) -> Result<(), RefreshError> {
        match self.shutdown.is_triggered() || self.attempt.is_cancelled() {
            true => Err(RefreshError::Cancelled),
            false => Ok(()),
        }
    }

    async fn new_run(
        &self,
        view: &LambdaView,
        stream: &Stream,
        archive: &ArchiveSnapshot,
        after: Epoch,
        id: GenerationId,
    ) -> Result<RunFile, RefreshError> {
        let records = archive.records(stream, Kind::Event, after);
        let plan = view.state_plan(Arc::new(records))?;
        self.write(view, plan, id, 0).await
    }

    async fn combine(
        &self,
        view: &LambdaView,
        runs: &mut Vec<RunFile>,
        id: GenerationId,
    ) -> Result<(), RefreshError> {
        let rows: Vec<u64> = runs.iter().map(|run| run.rows).collect();
        let count = runs_to_merge(&rows);
        if count == 0 {
            return Ok(());
        }
        let newest = runs.split_off(runs.len() - count);
        let table: Arc<dyn TableProvider> = Arc::new(ViewStates::of(newest).table(view.state_schema()));
        let plan = view.combine_plan(table)?;
        runs.push(self.write(view, plan, id, 1).await?);
        Ok(())
    }

    /// Runs `plan` and writes what it gives as one file.
    async fn write(
        &self,
        view: &LambdaView,
        plan: LogicalPlan,
        id: GenerationId,
        run: usize,
    ) -> Result<RunFile, RefreshError> {
        let compute = |source| RefreshError::Compute { view: view.name().to_owned(), source };
        let encode = |source| RefreshError::Encode { view: view.name().to_owned(), source };
        let (physical, mut batches) = self.engine.start(plan, self.threads).await.map_err(compute)?;
        self.attempt.runs(&physical);
        let mut sink = ParquetSink::new(&view.state_schema()).map_err(encode)?;
        loop {
            // Grouping reads everything before it gives the first row, so the stop must not wait for that.
            let next = tokio::select! {
                biased;
                () = self.attempt.cancelled() => return Err(RefreshError::Cancelled),
                () = self.shutdown.wait() => return Err(RefreshError::Cancelled),
                next = batches.next() => next,
            };
            let Some(batch) = next else { break };
            sink.append(&batch.map_err(compute)?).map_err(encode)?;
        }
        let encoded = sink.finish().map_err(encode)?;
        let path = paths::view_file(view.name(), id, run);
        self.attempt.writes(&path);
        let file = put_encoded(self.storage, &path, &encoded).await?;
        Ok(RunFile {
            path: file.path.to_string(),
            rows: file.rows,
            bytes: file.bytes,
            sha256: file.sha256,
            blocks: Some(file.blocks.to_string()),
        })
    }
}
