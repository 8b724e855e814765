//! Tables made of several parts: batch runs and delta runs, archive files and the tail.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use super::point::StatesOf;
use crate::storage::scan::fitted_columns;

/// The rows of all parts, which have the same columns.
#[derive(Debug)]
pub struct UnionTable {
    schema: SchemaRef,
    parts: Vec<Arc<dyn TableProvider>>,
    states: Option<StatesOf>,
}

impl UnionTable {
    pub fn new(schema: SchemaRef, parts: Vec<Arc<dyn TableProvider>>) -> Self {
        Self { schema, parts, states: None }
    }

    /// The states of a view, which can be found by key too.
    pub fn of_states(states: StatesOf, parts: Vec<Arc<dyn TableProvider>>) -> Self {
        Self { schema: states.view.state_schema(), parts, states: Some(states) }
    }

    pub fn states(&self) -> Option<&StatesOf> {
        self.states.as_ref()
    }
}

#[async_trait]
impl TableProvider for UnionTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Parts may use filters to read less; the rows are filtered again above.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut plans = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            plans.push(part.scan(state, projection, filters, limit).await?);
        }
        match plans.len() {
            0 => plan_err!("a table without parts"),
            1 => Ok(plans.remove(0)),
            _ => UnionExec::try_new(plans),
        }
    }
}

/// A table that is a plan over the snapshot's parts; the query's own filters are pushed into it.
#[derive(Debug)]
pub struct PlanTable {
    plan: LogicalPlan,
    schema: SchemaRef,
    /// Of an ordinary view: its query.
    definition: Option<String>,
}

impl PlanTable {
    pub fn new(plan: LogicalPlan) -> Self {
        Self { schema: Arc::clone(plan.schema().inner()), plan, definition: None }
    }

    /// An ordinary view, which shows as one.
    pub fn ordinary(plan: LogicalPlan, definition: String) -> Self {
        Self { definition: Some(definition), ..Self::new(plan) }
    }
}

#[async_trait]
impl TableProvider for PlanTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Readers are not to care that a merged view is computed: it shows as a table.
    fn table_type(&self) -> TableType {
        if self.definition.is_some() { TableType::View } else { TableType::Base }
    }

    fn get_table_definition(&self) -> Option<&str> {
        self.definition.as_deref()
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        Some(Cow::Borrowed(&self.plan))
    }

    /// Not reached by SQL: the plan is put in the place of the scan before.
    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut plan = LogicalPlanBuilder::from(self.plan.clone());
        if let Some(columns) = projection {
            plan = plan.select(columns.iter().copied())?;
        }
        state.create_physical_plan(&plan.limit(0, limit)?.build()?).await
    }
}

/// A table of batches in memory; columns that a batch lacks read as NULL.
pub fn in_memory(
    schema: &SchemaRef,
    batches: impl IntoIterator<Item = RecordBatch>,
) -> Result<Arc<dyn TableProvider>> {
    let mut fitted = Vec::new();
    for batch in batches {
        let columns = fitted_columns(schema, &batch);
        fitted.push(RecordBatch::try_new(Arc::clone(schema), columns)?);
    }
    Ok(Arc::new(MemTable::try_new(Arc::clone(schema), vec![fitted])?))
}
