//! Plans that are optimised once and run on other rows each time: a micro-batch, or the runs of a delta, are small, and to
//! plan for them anew costs more than to compute them.
//!
//! The one source of such a plan is [`Vacant`] until it runs. Each run is made of fresh nodes, by DataFusion's own way to run
//! a recursive query's plan again ([`ExecutionPlan::reset_state`]), so that no run sees another's state.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err, project_schema};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties, collect,
};

use super::Engine;

/// Rows that are given when a plan runs.
#[derive(Debug)]
pub(super) struct Vacant {
    pub(super) columns: SchemaRef,
}

/// A plan that reads [`Vacant`].
#[derive(Debug)]
pub struct Reused {
    columns: SchemaRef,
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
}

impl Reused {
    /// Optimises `plan`, which reads one [`Vacant`] with these columns, for one thread.
    pub(super) async fn new(engine: &Engine, columns: SchemaRef, plan: LogicalPlan) -> Result<Self> {
        let session = engine.session_with_threads(1);
        let plan = session.state().create_physical_plan(&plan).await?;
        Ok(Self { columns, plan, context: session.task_ctx() })
    }

    /// The columns that rows must have.
    pub(super) fn columns(&self) -> &SchemaRef {
        &self.columns
    }

    /// Runs the plan on `rows`, in their order, and keeps all of its answer in memory.
    ///
    /// # Errors
    /// What DataFusion says of its execution.
    pub async fn run(&self, rows: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let rows = [rows];
        let fresh = Arc::clone(&self.plan).transform_up(|node| match node.downcast_ref::<Seat>() {
            Some(seat) => {
                let columns = Arc::clone(&self.columns);
                let filled = MemorySourceConfig::try_new_exec(&rows, columns, seat.projection.clone())?;
                Ok(Transformed::yes(filled as Arc<dyn ExecutionPlan>))
            }
            None => Ok(Transformed::yes(node.reset_state()?)),
        })?;
        collect(fresh.data, Arc::clone(&self.context)).await
    }
}

#[async_trait]
impl TableProvider for Vacant {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.columns)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = project_schema(&self.columns, projection)?;
        let properties = PlanProperties::new(
            EquivalenceProperties::new(columns),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(Seat { projection: projection.cloned(), properties: Arc::new(properties) }))
    }
}

/// Where the rows will be. Running it is an error: it must not pass for an empty table.
#[derive(Debug)]
struct Seat {
    projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl DisplayAs for Seat {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seat")
    }
}

impl ExecutionPlan for Seat {
    fn name(&self) -> &'static str {
        "Seat"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("a plan that is reused was not given its rows")
    }
}
