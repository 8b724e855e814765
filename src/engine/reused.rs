//! Plans that are optimised once and run on other rows each time: a micro-batch, or the runs of a delta, are small, and to
//! plan for them anew costs more than to compute them.
//!
//! What such a plan reads is [`Vacant`] until it runs. Each run is made of fresh nodes, by DataFusion's own way to run a
//! recursive query's plan again ([`ExecutionPlan::reset_state`]), so that no run sees another's state, also while both run.
//! That holds for what a node keeps itself. What DataFusion hands from one node to another beside the rows is shared by all
//! copies: dynamic filters, without which is planned here, and the results of scalar subqueries, which take turns.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, internal_err, project_schema};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, TableType};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::scalar_subquery::ScalarSubqueryExec;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties, collect,
};
use tokio::sync::Mutex;

use super::Engine;

/// Rows that are given when a plan runs.
#[derive(Debug)]
pub struct Vacant {
    /// Which of those that the plan reads.
    pub number: usize,
    pub columns: SchemaRef,
}

/// A plan that reads what is [`Vacant`].
#[derive(Debug)]
pub struct Reused {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    /// Of runs that would see each other's state.
    turns: Option<Mutex<()>>,
}

impl Reused {
    /// Optimises `plan` for one thread.
    pub(super) async fn new(engine: &Engine, plan: LogicalPlan) -> Result<Self> {
        let mut state = session(engine);
        // As a join, a subquery of several rows would give as many, and be no error.
        state.config_mut().options_mut().optimizer.enable_physical_uncorrelated_scalar_subquery = true;
        Self::of_optimized(&state, &state.optimize(&plan)?).await
    }

    /// Of a plan that `state`, which is a [`session`], has optimised.
    ///
    /// # Errors
    /// What DataFusion says when it chooses operators.
    pub async fn of_optimized(state: &SessionState, plan: &LogicalPlan) -> Result<Self> {
        let plan = state.query_planner().create_physical_plan(plan, state).await?;
        let shares = plan.exists(|node| Ok(node.is::<ScalarSubqueryExec>()))?;
        Ok(Self { plan, context: state.task_ctx(), turns: shares.then(Mutex::default) })
    }

    /// Runs the plan and keeps all of its answer in memory. `fill` says what is read in the place of each [`Vacant`].
    ///
    /// # Errors
    /// Those of `fill`, and what DataFusion says of the execution.
    pub async fn run(&self, fill: impl Fn(&Seat) -> Result<Arc<dyn ExecutionPlan>>) -> Result<Vec<RecordBatch>> {
        let _turn = match &self.turns {
            Some(turns) => Some(turns.lock().await),
            None => None,
        };
        let fresh = Arc::clone(&self.plan).transform_up(|node| match node.downcast_ref::<Seat>() {
            Some(seat) => Ok(Transformed::yes(fill(seat)?)),
            None => Ok(Transformed::yes(node.reset_state()?)),
        })?;
        collect(fresh.data, Arc::clone(&self.context)).await
    }

    /// As [`Self::run`], of a plan whose every source is `rows`, in their order.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn run_over(&self, rows: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let rows = [rows];
        self.run(|seat| seat.filled(&rows)).await
    }
}

/// Plans for one thread, and so that copies of a plan can run side by side: scalar subqueries are joins, which is right for
/// those that have one row at most.
pub fn session(engine: &Engine) -> SessionState {
    let mut state = engine.session_with_threads(1).state();
    let optimizer = &mut state.config_mut().options_mut().optimizer;
    optimizer.enable_physical_uncorrelated_scalar_subquery = false;
    optimizer.enable_dynamic_filter_pushdown = false;
    optimizer.enable_topk_dynamic_filter_pushdown = false;
    optimizer.enable_join_dynamic_filter_pushdown = false;
    optimizer.enable_aggregate_dynamic_filter_pushdown = false;
    state
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
        Ok(Arc::new(Seat {
            number: self.number,
            columns: Arc::clone(&self.columns),
            projection: projection.cloned(),
            properties: Arc::new(properties),
        }))
    }
}

/// Where the rows will be. Running it is an error: it must not pass for an empty table.
#[derive(Debug)]
pub struct Seat {
    number: usize,
    columns: SchemaRef,
    projection: Option<Vec<usize>>,
    properties: Arc<PlanProperties>,
}

impl Seat {
    /// That of the [`Vacant`].
    pub fn number(&self) -> usize {
        self.number
    }

    /// Partitions of rows with all columns of the [`Vacant`], of which those are read that are wanted here.
    ///
    /// # Errors
    /// When the rows have other columns.
    pub fn filled(&self, rows: &[Vec<RecordBatch>]) -> Result<Arc<dyn ExecutionPlan>> {
        let columns = Arc::clone(&self.columns);
        Ok(MemorySourceConfig::try_new_exec(rows, columns, self.projection.clone())?)
    }
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
