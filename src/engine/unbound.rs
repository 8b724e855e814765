//! Tables that are known by their columns when a query is planned, and whose rows it is given later.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{Result, internal_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableScan, TableType};
use datafusion::physical_plan::ExecutionPlan;

/// The columns of a table. Reading it is an error: a scan that was not bound must not pass for one of an empty table.
#[derive(Debug)]
pub struct Unbound {
    pub columns: SchemaRef,
}

#[async_trait]
impl TableProvider for Unbound {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.columns)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _: &dyn Session,
        _: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        internal_err!("a table was not bound to its rows")
    }
}

/// Whether `scan` still wants its rows.
pub fn is_unbound(scan: &TableScan) -> Result<bool> {
    Ok(source_as_provider(&scan.source)?.is::<Unbound>())
}

/// Calls `found` for every table of `plan`, subqueries included, that still wants its rows.
pub(super) fn each_unbound(plan: &LogicalPlan, mut found: impl FnMut(&TableScan)) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && is_unbound(scan)?
        {
            found(scan);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// `plan` with the rows that `rows` has of each table that still wants some.
pub fn bound(plan: &LogicalPlan, rows: impl Fn(&TableScan) -> Result<RecordBatch>) -> Result<LogicalPlan> {
    let bound = plan.clone().transform_up_with_subqueries(|node| match node {
        LogicalPlan::TableScan(scan) if is_unbound(&scan)? => {
            let rows = rows(&scan)?;
            let table = MemTable::try_new(rows.schema(), vec![vec![rows]])?;
            let source = provider_as_source(Arc::new(table));
            Ok(Transformed::yes(LogicalPlanBuilder::scan(scan.table_name, source, None)?.build()?))
        }
        node => Ok(Transformed::no(node)),
    })?;
    Ok(bound.data)
}
