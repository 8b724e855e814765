//! The merge plan of a view for the states of few groups, without the planner and its streams.
//!
//! The plan is made once, by DataFusion, and taken apart: its expressions and accumulators are then called on the states
//! at hand. So a row that is found by its key is finished by the same code as a row of the whole view.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::MemTable;
use datafusion::common::ScalarValue;
use datafusion::common::cast::as_boolean_array;
use datafusion::error::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::group_values::new_group_values;
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;

use super::Engine;
use super::state::LambdaView;

/// Finishes the states of few groups of one view.
#[derive(Debug, Clone)]
pub struct Merger {
    /// From the states to what the aggregate reads.
    before: Vec<Step>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    key_schema: SchemaRef,
    /// Whether the key is one column, of the same type before and after.
    one_key: bool,
    calls: Vec<Call>,
    merged: SchemaRef,
    /// From the aggregate to the columns of the view.
    after: Vec<Step>,
    shown: SchemaRef,
    /// The columns of the view that are the first column of its key.
    leading: Vec<usize>,
}

#[derive(Debug, Clone)]
struct Call {
    function: Arc<AggregateFunctionExpr>,
    arguments: Vec<Arc<dyn PhysicalExpr>>,
    in_groups: bool,
    /// False where nobody asks for its value: NULL stands for it.
    wanted: bool,
}

impl Call {
    fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>> {
        match self.in_groups {
            true => self.function.create_groups_accumulator(),
            false => {
                let function = Arc::clone(&self.function);
                Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
            }
        }
    }

    fn nothing(&self, groups: usize) -> ArrayRef {
        new_null_array(self.function.field().data_type(), groups)
    }
}

/// What a plan does to each row.
#[derive(Debug, Clone)]
enum Step {
    Project { columns: Vec<Arc<dyn PhysicalExpr>>, schema: SchemaRef },
    Filter { condition: Arc<dyn PhysicalExpr>, columns: Option<Vec<usize>> },
}

impl Merger {
    /// None when the view has no key, or its plan has a form that is not taken apart here.
    ///
    /// # Errors
    /// When the view cannot be planned.
    pub async fn of(engine: &Engine, view: &LambdaView) -> Result<Option<Self>> {
        let states = view.state_schema();
        let nothing = MemTable::try_new(Arc::clone(&states), vec![vec![]])?;
        let plan = view
            .merge_plan(Arc::new(nothing))
            .map_err(|error| datafusion::error::DataFusionError::External(Box::new(error)))?;
        let plan = engine.session_with_threads(1).state().create_physical_plan(&plan).await?;
        Ok(Self::taken_apart(plan.as_ref(), &states))
    }

    fn taken_apart(plan: &dyn ExecutionPlan, states: &SchemaRef) -> Option<Self> {
        let shown = plan.schema();
        let (after, aggregate) = steps_down(plan)?;
        let aggregate = (aggregate as &dyn Any).downcast_ref::<AggregateExec>()?;
        let whole = matches!(aggregate.mode(), AggregateMode::Single | AggregateMode::SinglePartitioned);
        let grouping = aggregate.group_expr();
        let plain = grouping.is_single() && !grouping.is_empty() && aggregate.limit_options().is_none();
        if !whole || !plain || aggregate.filter_expr().iter().any(Option::is_some) {
            return None;
        }
        let (mut before, leaf) = steps_down(aggregate.input().as_ref())?;
        if !leaf.children().is_empty() {
            return None;
        }
        // The scan may have been told to give fewer columns, or in another order.
        if leaf.schema() != *states {
            let given = leaf.schema();
            let column = |name: &String| {
                let index = states.index_of(name).ok()?;
                Some(Arc::new(Column::new(name, index)) as Arc<dyn PhysicalExpr>)
            };
            let columns = given.fields().iter().map(|field| column(field.name())).collect::<Option<_>>()?;
            before.insert(0, Step::Project { columns, schema: given });
        }
        let calls = aggregate.aggr_expr().iter().map(|function| Call {
            function: Arc::clone(function),
            arguments: function.expressions(),
            in_groups: function.groups_accumulator_supported(),
            wanted: true,
        });
        let leading = (0..shown.fields().len()).filter(|column| stems_from(*column, &after) == Some(0)).collect();
        let (keys, input) = (grouping.input_exprs(), aggregate.input().schema());
        let key_schema = grouping.group_schema(&input).ok()?;
        let one_key = match (keys.as_slice(), key_schema.fields().as_ref()) {
            ([key], [field]) => key.data_type(&input).is_ok_and(|data_type| data_type == *field.data_type()),
            _ => false,
        };
        Some(Self {
            keys,
            key_schema,
            one_key,
            calls: calls.collect(),
            merged: aggregate.schema(),
            before,
            after,
            shown,
            leading,
        })
    }

    /// The columns that [`Self::merge`] gives.
    pub fn schema(&self) -> &SchemaRef {
        &self.shown
    }

    /// Whether a column of the view is the first column of its key, as it is.
    pub fn is_leading(&self, column: usize) -> bool {
        self.leading.contains(&column)
    }

    /// States, several of which may be of one group, to rows of the view.
    ///
    /// # Errors
    /// When an expression of the view fails on them.
    pub fn merge(&self, states: RecordBatch) -> Result<RecordBatch> {
        let input = applied(&self.before, states)?;
        if input.num_rows() == 0 {
            return Ok(RecordBatch::new_empty(Arc::clone(&self.shown)));
        }
        let mut groups = new_group_values(Arc::clone(&self.key_schema), &GroupOrdering::None)?;
        let mut group_of = Vec::with_capacity(input.num_rows());
        groups.intern(&evaluated(&self.keys, &input)?, &mut group_of)?;
        let count = groups.len();
        let mut columns = groups.emit(EmitTo::All)?;
        for call in &self.calls {
            columns.push(match call.wanted {
                true => {
                    let mut accumulator = call.accumulator()?;
                    accumulator.update_batch(&evaluated(&call.arguments, &input)?, &group_of, None, count)?;
                    accumulator.evaluate(EmitTo::All)?
                }
                false => call.nothing(count),
            });
        }
        applied(&self.after, RecordBatch::try_new(Arc::clone(&self.merged), columns)?)
    }

    /// As this one, with NULL in the columns that are not in `shown`, and without the work for them.
    #[must_use]
    pub fn only(&self, shown: &BTreeSet<usize>) -> Self {
        let mut needed = shown.clone();
        let mut after = Vec::with_capacity(self.after.len());
        for step in self.after.iter().rev() {
            needed = match step {
                Step::Project { columns, schema } => {
                    let fields = schema.fields().iter().enumerate();
                    let kept = columns.iter().zip(fields).map(|(column, (at, field))| match needed.contains(&at) {
                        true => Ok(Arc::clone(column)),
                        false => {
                            ScalarValue::try_from(field.data_type()).map(|null| Arc::new(Literal::new(null)) as _)
                        }
                    });
                    let Ok(columns) = kept.collect::<Result<Vec<Arc<dyn PhysicalExpr>>>>() else {
                        return self.clone();
                    };
                    let read = columns.iter().flat_map(collect_columns).map(|column| column.index()).collect();
                    after.push(Step::Project { columns, schema: nullable(schema) });
                    read
                }
                Step::Filter { condition, columns } => {
                    let through = needed.iter().filter_map(|at| match columns {
                        Some(columns) => columns.get(*at).copied(),
                        None => Some(*at),
                    });
                    let read = collect_columns(condition).into_iter().map(|column| column.index());
                    after.push(step.clone());
                    through.chain(read).collect()
                }
            };
        }
        after.reverse();
        let mut calls = self.calls.clone();
        for (at, call) in calls.iter_mut().enumerate() {
            call.wanted = needed.contains(&(self.keys.len() + at));
        }
        Self { calls, after, merged: nullable(&self.merged), shown: nullable(&self.shown), ..self.clone() }
    }

    /// Whether states with the same value in their first column are of one group.
    pub fn has_one_key(&self) -> bool {
        self.one_key
    }

    /// As [`Self::merge`], of states that are all of one group, in pieces.
    ///
    /// # Errors
    /// When an expression of the view fails on them.
    pub fn merge_one(&self, pieces: impl IntoIterator<Item = RecordBatch>) -> Result<RecordBatch> {
        let mut inputs = Vec::new();
        for piece in pieces {
            inputs.push(applied(&self.before, piece)?);
        }
        inputs.retain(|input| input.num_rows() > 0);
        let Some(first) = inputs.first() else { return Ok(RecordBatch::new_empty(Arc::clone(&self.shown))) };
        let keys = evaluated(&self.keys, first)?;
        let mut columns: Vec<ArrayRef> = keys.iter().map(|key| key.slice(0, 1)).collect();
        let most = inputs.iter().map(RecordBatch::num_rows).max().unwrap_or(0);
        let group_of = vec![0; most];
        for call in &self.calls {
            if !call.wanted {
                columns.push(call.nothing(1));
                continue;
            }
            let mut accumulator = call.accumulator()?;
            for input in &inputs {
                let group_of = group_of.get(..input.num_rows()).unwrap_or_default();
                accumulator.update_batch(&evaluated(&call.arguments, input)?, group_of, None, 1)?;
            }
            columns.push(accumulator.evaluate(EmitTo::All)?);
        }
        applied(&self.after, RecordBatch::try_new(Arc::clone(&self.merged), columns)?)
    }
}

fn nullable(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

/// What stands between `plan` and the next node that is more than a step, that node's own work first; and that node.
fn steps_down(plan: &dyn ExecutionPlan) -> Option<(Vec<Step>, &dyn ExecutionPlan)> {
    let mut steps = Vec::new();
    let mut plan = plan;
    loop {
        let node: &dyn Any = plan;
        if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
            let columns = projection.expr().iter().map(|column| Arc::clone(&column.expr)).collect();
            steps.push(Step::Project { columns, schema: plan.schema() });
        } else if let Some(filter) = node.downcast_ref::<FilterExec>() {
            let columns = filter.projection().as_ref().map(|columns| columns.iter().copied().collect());
            steps.push(Step::Filter { condition: Arc::clone(filter.predicate()), columns });
        } else if !["CooperativeExec", "CoalescePartitionsExec", "CoalesceBatchesExec", "RepartitionExec"]
            .contains(&plan.name())
        {
            steps.reverse();
            return Some((steps, plan));
        }
        plan = plan.children().first().copied()?.as_ref();
    }
}

/// The column below `steps` that is shown, as it is, as `column` above them.
fn stems_from(column: usize, steps: &[Step]) -> Option<usize> {
    steps.iter().rev().try_fold(column, |column, step| match step {
        Step::Project { columns, .. } => {
            let shown: &dyn Any = columns.get(column)?.as_ref();
            shown.downcast_ref::<Column>().map(Column::index)
        }
        Step::Filter { columns: Some(columns), .. } => columns.get(column).copied(),
        Step::Filter { columns: None, .. } => Some(column),
    })
}

fn applied(steps: &[Step], batch: RecordBatch) -> Result<RecordBatch> {
    steps.iter().try_fold(batch, |batch, step| match step {
        Step::Project { columns, schema } => {
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let columns = evaluated(columns, &batch)?;
            Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
        }
        Step::Filter { condition, columns } => {
            let kept = filtered(&batch, condition)?;
            columns.as_ref().map_or(Ok(kept.clone()), |columns| Ok(kept.project(columns)?))
        }
    })
}

/// The rows for which `condition` is true.
pub fn filtered(batch: &RecordBatch, condition: &Arc<dyn PhysicalExpr>) -> Result<RecordBatch> {
    let kept = condition.evaluate(batch)?.into_array(batch.num_rows())?;
    Ok(filter_record_batch(batch, as_boolean_array(&kept)?)?)
}

/// What each expression gives for `batch`.
pub fn evaluated(columns: &[Arc<dyn PhysicalExpr>], batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
    columns.iter().map(|column| column.evaluate(batch)?.into_array(batch.num_rows())).collect()
}
