//! Tables made of several parts: batch runs and delta runs, archive files and the tail.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;

use crate::storage::scan::fitted_columns;

/// The rows of all parts, which have the same columns.
#[derive(Debug)]
pub struct UnionTable {
    schema: SchemaRef,
    parts: Vec<Arc<dyn TableProvider>>,
}

impl UnionTable {
    pub fn new(schema: SchemaRef, parts: Vec<Arc<dyn TableProvider>>) -> Self {
        Self { schema, parts }
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

/// A table of batches in memory; columns that a batch lacks read as NULL.
pub fn in_memory(schema: &SchemaRef, batches: impl IntoIterator<Item = RecordBatch>) -> Result<Arc<dyn TableProvider>> {
    let mut fitted = Vec::new();
    for batch in batches {
        let columns = fitted_columns(schema, &batch);
        fitted.push(RecordBatch::try_new(Arc::clone(schema), columns)?);
    }
    Ok(Arc::new(MemTable::try_new(Arc::clone(schema), vec![fitted])?))
}
