//! The only place that makes a DataFusion session, and the split of a view into three plans.
//!
//! All sessions share one [`RuntimeEnv`]: one memory pool, one place to spill, one cache of file footers, one set
//! of object stores. Tables are not shared: every session starts with an empty catalog, into which the caller
//! registers the tables of its own snapshot, so no query can ever see half of one snapshot and half of another.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider,
};
use datafusion::common::config::Dialect;
use datafusion::dataframe::DataFrame;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use object_store::ObjectStore;
use url::Url;

mod billable;
mod checked;
mod combinator;
mod date_trunc;
mod exact;
mod inner;
mod interval;
pub mod keys;
pub mod merger;
pub mod planner;
mod quantile;
pub mod reused;
mod split;
pub mod state;
mod ties;
pub mod unbound;

/// Name of the catalog that every session has; Postgres clients see it as the database.
pub const CATALOG: &str = "viewledger";

pub use crate::catalog::DEFAULT_SCHEMA;

/// How many memory consumers an out-of-memory error names.
const TOP_CONSUMERS: NonZeroUsize = NonZeroUsize::new(5).expect("5 is not zero");

/// Limits of all queries together.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Partitions a query is cut into when its session does not say otherwise.
    pub threads: usize,
    /// Memory of all running queries; what can spill does, what cannot fails with `ResourcesExhausted`.
    pub memory_bytes_max: usize,
    /// Where sorts and aggregates spill; none means the temporary directory of the system.
    pub spill_dir: Option<PathBuf>,
    /// Rows of one record batch.
    pub batch_rows: usize,
}

/// Makes sessions. Cheap to share, never replaced while the process lives.
#[derive(Debug)]
pub struct Engine {
    template: SessionState,
}

impl Engine {
    /// # Errors
    /// When the spill directory cannot be made, or a function of the business cannot be registered.
    pub fn new(config: EngineConfig) -> Result<Arc<Self>> {
        let session = session_config(&config);
        let mut builder = SessionStateBuilder::new()
            .with_config(session)
            .with_runtime_env(runtime_env(&config)?)
            .with_default_features();
        let functions = builder.scalar_functions().get_or_insert_default();
        functions.push(date_trunc::date_trunc());
        functions.extend(viewledger_udfs::scalar_functions());
        let aggregates = builder.aggregate_functions().get_or_insert_default();
        aggregates.extend(exact::functions());
        aggregates.extend(quantile::functions());
        aggregates.extend(viewledger_udfs::aggregate_functions());
        builder.expr_planners().get_or_insert_default().insert(0, Arc::new(checked::CheckedArithmetic::new()));
        Ok(Arc::new(Self { template: builder.build() }))
    }

    /// A session with an empty catalog of its own and everything else shared.
    pub fn session(&self) -> SessionContext {
        self.session_of(self.template.clone())
    }

    /// As [`Self::session`], with another number of partitions.
    pub fn session_with_threads(&self, threads: usize) -> SessionContext {
        let mut state = self.template.clone();
        state.config_mut().options_mut().execution.target_partitions = threads.max(1);
        self.session_of(state)
    }

    /// Makes every session, also those already open, read `url` through `store`.
    pub fn register_store(&self, url: &Url, store: Arc<dyn ObjectStore>) {
        self.template.runtime_env().register_object_store(url, store);
    }

    /// What all sessions share; for metrics of memory and spill.
    pub fn runtime_env(&self) -> &Arc<RuntimeEnv> {
        self.template.runtime_env()
    }

    /// Optimises and runs a plan, and keeps all of its answer in memory.
    ///
    /// # Errors
    /// What DataFusion says of the plan or of its execution.
    pub async fn collect(&self, plan: LogicalPlan, threads: usize) -> Result<Vec<RecordBatch>> {
        self.frame(plan, threads).collect().await
    }

    /// Optimises and starts a plan; batches come as they are pulled.
    ///
    /// # Errors
    /// What DataFusion says of the plan; errors of its execution come through the stream.
    pub async fn stream(&self, plan: LogicalPlan, threads: usize) -> Result<SendableRecordBatchStream> {
        self.frame(plan, threads).execute_stream().await
    }

    /// As [`Self::stream`], together with the running plan, whose metrics tell how far it is.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub async fn start(
        &self,
        plan: LogicalPlan,
        threads: usize,
    ) -> Result<(Arc<dyn ExecutionPlan>, SendableRecordBatchStream)> {
        let frame = self.frame(plan, threads);
        let context = Arc::new(frame.task_ctx());
        let physical = frame.create_physical_plan().await?;
        let batches = execute_stream(Arc::clone(&physical), context)?;
        Ok((physical, batches))
    }

    fn frame(&self, plan: LogicalPlan, threads: usize) -> DataFrame {
        DataFrame::new(self.session_with_threads(threads).state(), plan)
    }

    fn session_of(&self, mut state: SessionState) -> SessionContext {
        state.register_catalog_list(empty_catalog());
        SessionContext::new_with_state(state)
    }
}

fn empty_catalog() -> Arc<dyn CatalogProviderList> {
    let catalog = MemoryCatalogProvider::new();
    catalog
        .register_schema(DEFAULT_SCHEMA, Arc::new(MemorySchemaProvider::new()))
        .expect("a memory catalog takes every schema");
    let list = MemoryCatalogProviderList::new();
    list.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
    Arc::new(list)
}

fn session_config(config: &EngineConfig) -> SessionConfig {
    let mut session = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, DEFAULT_SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true)
        .with_target_partitions(config.threads.max(1))
        .with_batch_size(config.batch_rows.max(1))
        .with_collect_statistics(false);
    let options = session.options_mut();
    options.sql_parser.dialect = Dialect::PostgreSQL;
    // Else 0.06 is a float, and money with it.
    options.sql_parser.parse_float_as_decimal = true;
    // Errors then say where in the text they are.
    options.sql_parser.collect_spans = true;
    // One type of text in files, in memory and in plans: states of the two halves then never need a cast.
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.schema_force_view_types = false;
    session
}

fn runtime_env(config: &EngineConfig) -> Result<Arc<RuntimeEnv>> {
    let disk = match &config.spill_dir {
        None => DiskManagerMode::OsTmpDirectory,
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(|error| {
                DataFusionError::IoError(std::io::Error::new(
                    error.kind(),
                    format!("cannot make the spill directory {}, check its rights: {error}", dir.display()),
                ))
            })?;
            DiskManagerMode::Directories(vec![dir.clone()])
        }
    };
    // Fair: one query that sorts a lot spills before it starves the others.
    let pool = TrackConsumersPool::new(FairSpillPool::new(config.memory_bytes_max), TOP_CONSUMERS);
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(pool))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(disk))
        .build_arc()
}

#[cfg(test)]
mod tests;
