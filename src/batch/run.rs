//! Carries a refresh out: partial states from the archive's new epochs, combined with what was there.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::LogicalPlan;
use futures::StreamExt;

use super::plan::{Scope, ViewPlan, runs_to_combine, view_plan};
use super::{Generation, RunFile, ViewStates};
use crate::archive::{ArchiveSnapshot, Kind};
use crate::catalog::stream::Stream;
use crate::engine::Engine;
use crate::engine::state::{LambdaView, ViewError};
use crate::position::{Epoch, GenerationId};
use crate::runtime::{Clock, Shutdown};
use crate::storage::parquet::{ParquetSink, put_encoded};
use crate::storage::{Storage, StorageError, paths};

/// A view with the stream it reads.
#[derive(Debug, Clone)]
pub struct ViewInput {
    pub view: Arc<LambdaView>,
    pub stream: Arc<Stream>,
}

/// Everything a refresh reads.
#[derive(Debug)]
pub struct RefreshInput<'a> {
    pub current: &'a Generation,
    /// By stream name: where the next generation ends.
    pub archives: &'a BTreeMap<String, Arc<ArchiveSnapshot>>,
    /// By view name.
    pub views: &'a BTreeMap<String, ViewInput>,
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
    #[error("the process is ending")]
    Cancelled,
    #[error("the refresh panicked: an invariant does not hold; the log says which")]
    Panicked,
}

/// Told while a refresh runs.
pub trait Progress: Send + Sync {
    fn view_begins(&self, view: &str, rows: u64);
    fn states_written(&self, view: &str, rows: u64);
}

/// Where and with what a refresh computes.
#[derive(Debug)]
pub struct Workshop<'a> {
    pub engine: &'a Engine,
    pub threads: usize,
    pub storage: &'a Storage,
    pub clock: &'a dyn Clock,
    pub shutdown: &'a Shutdown,
}

impl Workshop<'_> {
    /// Writes the files of the next generation and returns its manifest; nothing is published yet.
    pub async fn make(&self, input: RefreshInput<'_>, progress: &dyn Progress) -> Result<Generation, RefreshError> {
        let id = input.current.id.next();
        let mut next = Generation {
            id,
            created_at: self.clock.now(),
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Generation::empty()
        };
        for (stream, archive) in input.archives {
            next.frontier.0.insert(stream.clone(), archive.frontier.clone());
            next.epochs.insert(stream.clone(), archive.epoch);
        }
        for (name, ViewInput { view, stream }) in input.views {
            let Some(archive) = input.archives.get(&stream.name) else { continue };
            let scope = if input.full.contains(name) { Scope::Full } else { Scope::New };
            let from = input.current.epoch(&stream.name);
            let fingerprint = view.fingerprint();
            let plan = view_plan(input.current.views.get(name), &fingerprint, scope, from, archive.epoch);
            let runs = match plan {
                ViewPlan::Keep(runs) => runs,
                ViewPlan::Compute { after, mut runs } => {
                    let rows = archive.files_in(Kind::Event, after).map(|file| file.rows).sum();
                    progress.view_begins(name, rows);
                    if rows > 0 {
                        runs.push(self.new_run(view, stream, archive, after, id).await?);
                        self.combine(view, &mut runs, id).await?;
                    }
                    progress.states_written(name, runs.iter().map(|run| run.rows).sum());
                    runs
                }
            };
            next.views.insert(name.clone(), ViewStates { fingerprint, runs });
        }
        Ok(next)
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
        let count = runs_to_combine(&rows);
        if count == 0 {
            return Ok(());
        }
        let newest = runs.split_off(runs.len() - count);
        let table: Arc<dyn TableProvider> =
            Arc::new(ViewStates { fingerprint: String::new(), runs: newest }.table(view.state_schema()));
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
        let mut batches = self.engine.stream(plan, self.threads).await.map_err(compute)?;
        let mut sink = ParquetSink::new(&view.state_schema()).map_err(encode)?;
        while let Some(batch) = batches.next().await {
            if self.shutdown.is_triggered() {
                return Err(RefreshError::Cancelled);
            }
            sink.append(&batch.map_err(compute)?).map_err(encode)?;
        }
        let encoded = sink.finish().map_err(encode)?;
        let file = put_encoded(self.storage, &paths::view_file(view.name(), id, run), &encoded).await?;
        Ok(RunFile {
            path: file.path.to_string(),
            rows: file.rows,
            bytes: file.bytes,
            sha256: file.sha256,
            blocks: Some(file.blocks.to_string()),
        })
    }
}
