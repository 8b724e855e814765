//! Micro-batches into partial states, by the same plans that batch views are made with.

use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::error::DataFusionError;

use super::Combine;
use crate::engine::Engine;
use crate::engine::state::{LambdaView, ViewError};

#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    #[error("view {view}: cannot compute partial states: {source}")]
    Compute { view: String, source: DataFusionError },
    #[error(transparent)]
    Plan(#[from] ViewError),
}

/// The states of `view` over `records`, one row a group.
pub async fn states(engine: &Engine, view: &LambdaView, records: &RecordBatch) -> Result<RecordBatch, FoldError> {
    let failed = |source| FoldError::Compute { view: view.name().to_owned(), source };
    let plan = view.micro_batch_plan(engine, records.schema()).await?;
    let batches = plan.run_over(vec![records.clone()]).await.map_err(failed)?;
    concat_batches(&view.state_schema(), &batches).map_err(|error| failed(error.into()))
}

/// The states of several runs as one, one row a group.
pub async fn combined(engine: &Engine, view: &LambdaView, combine: &Combine) -> Result<RecordBatch, FoldError> {
    let failed = |source| FoldError::Compute { view: view.name().to_owned(), source };
    let runs = combine.runs.iter().map(|run| run.states.as_ref().clone()).collect();
    let batches = view.runs_plan(engine).await?.run_over(runs).await.map_err(failed)?;
    concat_batches(&view.state_schema(), &batches).map_err(|error| failed(error.into()))
}
