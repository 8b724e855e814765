//! Rows for a nested loop join, few enough at once that its query can be stopped between them.
//!
//! The engine's join compares a whole batch with all rows of its other side before it gives way, unless pairs match: with
//! some thousands of rows on each side that takes seconds. How many rows are too many depends on the other side and on
//! the condition, so that the time itself decides.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, internal_err};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties};
use futures::{Stream, StreamExt};

/// So long the join may work before it gives way.
const STRETCH: Duration = Duration::from_millis(20);
const ROWS_AT_FIRST: usize = 16;
const ROWS_MAX: usize = 8192;

/// Gives what `input` gives, in portions that are joined in about [`STRETCH`].
#[derive(Debug)]
pub(super) struct Portions {
    input: Arc<dyn ExecutionPlan>,
}

impl Portions {
    pub(super) fn of(input: Arc<dyn ExecutionPlan>) -> Arc<dyn ExecutionPlan> {
        Arc::new(Self { input })
    }
}

impl DisplayAs for Portions {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Portions")
    }
}

impl ExecutionPlan for Portions {
    fn name(&self) -> &'static str {
        "Portions"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match <[_; 1]>::try_from(children) {
            Ok([input]) => Ok(Self::of(input)),
            Err(children) => internal_err!("Portions has one child, not {}", children.len()),
        }
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        Ok(Box::pin(Portioned { input, batch: None, rows: ROWS_AT_FIRST, given: None, gave_way: Instant::now() }))
    }
}

struct Portioned {
    input: SendableRecordBatchStream,
    /// What is left of the batch that came last.
    batch: Option<RecordBatch>,
    /// Of the next portion.
    rows: usize,
    /// When the portion that is being joined was given.
    given: Option<Instant>,
    gave_way: Instant,
}

impl Portioned {
    /// After a portion that took `took`.
    fn adapt(&mut self, took: Duration) {
        self.rows = match () {
            () if took > STRETCH => self.rows / 2,
            () if took < STRETCH / 4 => self.rows * 2,
            () => self.rows,
        }
        .clamp(1, ROWS_MAX);
    }

    fn portion(&mut self) -> Option<RecordBatch> {
        let batch = self.batch.take()?;
        if batch.num_rows() > self.rows {
            self.batch = Some(batch.slice(self.rows, batch.num_rows() - self.rows));
        }
        Some(batch.slice(0, self.rows.min(batch.num_rows())))
    }
}

impl Stream for Portioned {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(given) = self.given.take() {
            self.adapt(given.elapsed());
        }
        if self.gave_way.elapsed() > STRETCH {
            self.gave_way = Instant::now();
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.batch.is_none() {
            match self.input.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(batch))) => self.batch = Some(batch),
                other => return other,
            }
        }
        self.given = Some(Instant::now());
        Poll::Ready(self.portion().map(Ok))
    }
}

impl RecordBatchStream for Portioned {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use datafusion::arrow::array::Int32Array;
    use datafusion::arrow::datatypes::{DataType, Field, Schema};
    use datafusion::datasource::memory::MemorySourceConfig;
    use datafusion::physical_plan::collect;

    use super::*;

    fn numbers(rows: i32) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int32, false)]));
        RecordBatch::try_new(schema, vec![Arc::new(Int32Array::from_iter_values(0..rows))]).unwrap()
    }

    #[tokio::test]
    async fn portions_are_the_rows_in_order() {
        let batches = [numbers(1000), numbers(0), numbers(1), numbers(100_000)];
        let input = MemorySourceConfig::try_new_exec(&[batches.to_vec()], batches[0].schema(), None).unwrap();
        let portions = collect(Portions::of(input), Arc::default()).await.unwrap();
        let schema = batches[0].schema();
        let joined =
            |batches: &[RecordBatch]| datafusion::arrow::compute::concat_batches(&schema, batches).unwrap();
        assert_eq!(joined(&portions), joined(&batches));
        assert!(portions.iter().all(|portion| portion.num_rows() <= ROWS_MAX));
        assert_eq!(portions[0].num_rows(), ROWS_AT_FIRST);
    }

    #[tokio::test]
    async fn a_portion_that_took_long_is_followed_by_a_smaller_one() {
        let input = MemorySourceConfig::try_new_exec(&[vec![numbers(1000)]], numbers(0).schema(), None).unwrap();
        let mut portions = Portions::of(input).execute(0, Arc::default()).unwrap();
        let mut rows = Vec::new();
        for pause in [STRETCH * 2, STRETCH * 2, Duration::ZERO] {
            rows.push(portions.next().await.unwrap().unwrap().num_rows());
            std::thread::sleep(pause);
        }
        assert_eq!(rows, [16, 8, 4]);
    }
}
