//! The by-key path: a query for few keys of one view, answered from an index without the planner.
//!
//! ```text
//! Limit, Sort, Projection, Filter     the query's own, in any order; its expressions are DataFusion's
//!   Filter: key = ... or key IN (...) says which rows of the states are looked at
//!     the view                        its states of those keys, from batch runs and delta, merged by a `Merger`
//! ```
//! The whole filter is applied to what was found, so the index may find too much, never too little: the answer is the
//! general path's. A filter that asks for one key and nothing else is applied to the states, where there is less of it.
//! What is not of this form, or is not ready, is left to the general path.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use datafusion::arrow::array::{Array, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::{
    SortColumn, SortOptions, interleave_record_batch, lexsort_to_indices, take_record_batch,
};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::catalog::CatalogProvider;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DFSchemaRef, ParamValues, ScalarValue, plan_datafusion_err, plan_err};
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::expr::{InList, Placeholder};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    BinaryExpr, Cast, ColumnarValue, Expr, LogicalPlan, Operator, SortExpr, Volatility,
};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::catalog::{Names, PinnedCatalog};
use super::provider::UnionTable;
use super::snapshot::Snapshot;
use crate::engine::keys::key_hashes;
use crate::engine::merger::{Merger, evaluated, filtered};
use crate::engine::state::LambdaView;

mod runs;

use runs::Found;
pub use runs::Points;

/// Rows of states that are looked at here; more are left to the general path, which runs elsewhere and can be stopped.
const ROWS_MAX: usize = 4096;

/// States of one group that are merged where they lie; more are brought together first.
const PIECES_MAX: usize = 8;

/// The half of a view that a table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Both,
    Batch,
    Speed,
}

/// The states that a table shows, merged.
#[derive(Debug, Clone)]
pub struct StatesOf {
    /// What readers call the view.
    pub called: String,
    pub instance: String,
    pub view: Arc<LambdaView>,
    pub half: Half,
}

/// A query for few keys of one view.
pub struct PointQuery {
    points: Arc<Points>,
    of: StatesOf,
    merger: Arc<Merger>,
    key_type: DataType,
    keys: Vec<Expr>,
    /// Whether the query asks for the states of one key, and for all of them: they are then found by its value.
    by_value: bool,
    /// Where the definitions were last found to be those that the query was planned with.
    known: ArcSwapOption<Names>,
    /// Each reads what the one before gives, the first of them the view.
    steps: Vec<Step>,
}

enum Step {
    Filter(Expression),
    Project { columns: Vec<Expression>, schema: SchemaRef },
    Sort { by: Vec<(Expression, SortOptions)>, fetch: Option<usize> },
    Limit { skip: Option<Expression>, fetch: Option<Expression> },
}

/// An expression, planned as far as it can be without the values of parameters.
enum Expression {
    Ready(Arc<dyn PhysicalExpr>),
    Open(Expr, DFSchemaRef),
}

impl fmt::Debug for PointQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PointQuery")
            .field("view", &self.of.called)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl PointQuery {
    /// The query for which `plan` was made, with parameters yet to be given; None when it is not for few keys of one view.
    pub async fn of(points: &Arc<Points>, plan: &LogicalPlan, state: &SessionState) -> Result<Option<Self>> {
        if form_of(plan).is_none() {
            return Ok(None);
        }
        // Compared values then have the types of the columns they are compared with.
        let plan = state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {})?;
        let Some(Form { nodes, of }) = form_of(&plan) else { return Ok(None) };
        let Some(merger) = points.merger(&of).await? else { return Ok(None) };
        let mut keys = None;
        let mut by_value = false;
        let mut steps = Vec::new();
        for node in nodes.iter().rev() {
            let Some(step) = Step::of(node)? else { return Ok(None) };
            if keys.is_none() {
                let LogicalPlan::Filter(filter) = node else { return Ok(None) };
                let schema = filter.input.schema();
                let is_key = |expr: &Expr| leads(expr, schema, &merger);
                keys = split_conjunction(&filter.predicate).into_iter().find_map(|part| wanted(part, &is_key));
                if keys.is_none() {
                    return Ok(None);
                }
                by_value = is_equality(&filter.predicate);
                if by_value {
                    continue;
                }
            }
            steps.push(step);
        }
        let key_type = of.view.state_schema().field(0).data_type().clone();
        let Some(keys) = keys.filter(|_| hashes_as_it_compares(&key_type)) else { return Ok(None) };
        let (points, known) = (Arc::clone(points), ArcSwapOption::empty());
        let merger = match columns_read(&steps) {
            Some(read) => Arc::new(merger.only(&read)),
            None => merger,
        };
        Ok(Some(Self { points, of, merger, key_type, keys, by_value, known, steps }))
    }

    /// Schema and name of the one table that is read.
    pub fn table(&self) -> (&'static str, &str) {
        let schema = match self.of.half {
            Half::Both => "public",
            Half::Batch => "batch",
            Half::Speed => "speed",
        };
        (schema, &self.of.called)
    }

    /// The columns of the answer.
    pub fn schema(&self) -> &SchemaRef {
        let last = self.steps.iter().rev().find_map(|step| match step {
            Step::Project { schema, .. } => Some(schema),
            _ => None,
        });
        last.unwrap_or_else(|| self.merger.schema())
    }

    /// Whether `pinned` has the definitions that the query was planned with.
    pub fn is_current(&self, pinned: &dyn CatalogProvider) -> bool {
        present(pinned).is_some_and(|snapshot| self.is_of(snapshot))
    }

    fn is_of(&self, snapshot: &Snapshot) -> bool {
        if self.known.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, &snapshot.names)) {
            return true;
        }
        let found = snapshot.names.view(&self.of.called).is_some_and(|(instance, input)| {
            *instance == self.of.instance && Arc::ptr_eq(&input.view, &self.of.view)
        });
        if found {
            self.known.store(Some(Arc::clone(&snapshot.names)));
        }
        found
    }

    /// Answers from what is pinned. None leaves it to the general path: the definitions are others than those that the query
    /// was planned with, there is no index yet, or there are too many rows.
    ///
    /// # Errors
    /// Those that the general path gives for an expression that fails.
    pub fn answer(
        &self,
        pinned: &dyn CatalogProvider,
        parameters: Option<&ParamValues>,
    ) -> Result<Option<RecordBatch>> {
        let Some(snapshot) = present(pinned).filter(|snapshot| self.is_of(snapshot)) else { return Ok(None) };
        let values = Values(parameters);
        let Some(keys) = self.wanted(&values)? else { return Ok(None) };
        let Some(found) = self.found(snapshot, &keys_hashed(&keys)?)? else { return Ok(None) };
        let mut rows = match keys.as_slice() {
            [key] if self.by_value => self.merged(&found.of(key)?)?,
            _ => self.merged(&found)?,
        };
        for step in &self.steps {
            rows = step.applied(rows, &values)?;
        }
        Ok(Some(rows))
    }

    /// The states with these hashes; None when they are not at hand, or too many.
    fn found(&self, snapshot: &Snapshot, hashes: &[u64]) -> Result<Option<Found>> {
        let mut found = Found::default();
        if self.of.half != Half::Speed {
            let runs = snapshot.generation.views.get(&self.of.instance).map(|states| states.runs.as_slice());
            if !self.points.find(&self.of, runs.unwrap_or_default(), hashes, &mut found) {
                return Ok(None);
            }
        }
        if self.of.half != Half::Batch {
            let stream = snapshot.streams.get(self.of.view.stream().table()).filter(|stream| stream.whole);
            let Some(stream) = stream else { return Ok(None) };
            for run in stream.delta.runs(&self.of.instance) {
                found.look(&run.states, run.keys()?, hashes);
            }
        }
        Ok((found.rows.len() <= ROWS_MAX).then_some(found))
    }

    fn merged(&self, found: &Found) -> Result<RecordBatch> {
        if self.by_value && self.merger.has_one_key() && found.rows.len() <= PIECES_MAX {
            return self.merger.merge_one(found.pieces());
        }
        let states = match found.rows.is_empty() {
            true => RecordBatch::new_empty(self.of.view.state_schema()),
            false => {
                interleave_record_batch(&found.batches.iter().map(AsRef::as_ref).collect::<Vec<_>>(), &found.rows)?
            }
        };
        self.merger.merge(states)
    }

    /// The keys that are looked for, none of which is NULL; None when they cannot be told without the planner.
    fn wanted(&self, values: &Values<'_>) -> Result<Option<Vec<ScalarValue>>> {
        let mut keys = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            let Some(value) = values.constant(key)? else { return Ok(None) };
            // Nothing equals NULL.
            if !value.is_null() {
                keys.push(if value.data_type() == self.key_type {
                    value
                } else {
                    value.cast_to(&self.key_type)?
                });
            }
        }
        Ok(Some(keys))
    }
}

/// What keys are looked up by, each once.
fn keys_hashed(keys: &[ScalarValue]) -> Result<Vec<u64>> {
    match keys {
        [] => Ok(Vec::new()),
        [key] => key_hashes(&key.to_array()?),
        keys => {
            let mut hashes = key_hashes(&ScalarValue::iter_to_array(keys.iter().cloned())?)?;
            hashes.sort_unstable();
            hashes.dedup_by_key(|hash| *hash >> 32);
            Ok(hashes)
        }
    }
}

/// What is pinned, unless it is something else than the present.
fn present(pinned: &dyn CatalogProvider) -> Option<&Snapshot> {
    let pinned: &dyn Any = pinned;
    pinned.downcast_ref::<PinnedCatalog>()?.present()
}

/// A plan of the form that is answered here.
struct Form<'a> {
    /// From the top.
    nodes: Vec<&'a LogicalPlan>,
    of: StatesOf,
}

fn form_of(plan: &LogicalPlan) -> Option<Form<'_>> {
    let mut nodes = Vec::new();
    let mut plan = plan;
    loop {
        plan = match plan {
            LogicalPlan::Projection(projection) => {
                nodes.push(plan);
                &projection.input
            }
            LogicalPlan::Filter(filter) => {
                nodes.push(plan);
                &filter.input
            }
            LogicalPlan::Sort(sort) => {
                nodes.push(plan);
                &sort.input
            }
            LogicalPlan::Limit(limit) => {
                nodes.push(plan);
                &limit.input
            }
            // A table that is a plan stands under its own name, and may have another one in the query.
            LogicalPlan::SubqueryAlias(alias) => match (states_under(&alias.input), alias.input.as_ref()) {
                (Some(of), _) => return Some(Form { nodes, of }),
                (None, named @ LogicalPlan::SubqueryAlias(_)) => named,
                // What is below may be another view, with rights of its own.
                (None, _) => return None,
            },
            _ => return None,
        }
    }
}

/// The states that `plan` merges, when it is the merge plan of a view and nothing more.
fn states_under(plan: &LogicalPlan) -> Option<StatesOf> {
    let mut of = None;
    let walked = plan.apply(|node| {
        Ok(match node {
            LogicalPlan::SubqueryAlias(_) => TreeNodeRecursion::Stop,
            LogicalPlan::TableScan(scan) => {
                let table = source_as_provider(&scan.source)?;
                let table: &dyn Any = table.as_ref();
                of = table.downcast_ref::<UnionTable>().and_then(UnionTable::states).cloned();
                TreeNodeRecursion::Stop
            }
            _ => TreeNodeRecursion::Continue,
        })
    });
    of.filter(|_| walked.is_ok())
}

/// Whether an expression is the first column of the key, as it is or as another type of text.
fn leads(expr: &Expr, schema: &DFSchema, merger: &Merger) -> bool {
    match expr {
        Expr::Column(column) => schema.maybe_index_of_column(column).is_some_and(|index| merger.is_leading(index)),
        Expr::Cast(Cast { expr, field }) => {
            let textual = |data_type: &DataType| match data_type {
                DataType::Dictionary(_, value) => value.is_string(),
                other => other.is_string(),
            };
            let inner = schema.as_arrow();
            let from = match expr.as_ref() {
                Expr::Column(column) => {
                    schema.maybe_index_of_column(column).map(|index| inner.field(index).data_type())
                }
                _ => None,
            };
            from.is_some_and(textual) && textual(field.data_type()) && leads(expr, schema, merger)
        }
        _ => false,
    }
}

/// The values that `part` of a condition allows for the key; None when it is not about it.
fn wanted(part: &Expr, is_key: &dyn Fn(&Expr) -> bool) -> Option<Vec<Expr>> {
    let fixed = |expr: &Expr| !expr.any_column_refs();
    match part {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => match (is_key(left), is_key(right)) {
            (true, _) if fixed(right) => Some(vec![right.as_ref().clone()]),
            (_, true) if fixed(left) => Some(vec![left.as_ref().clone()]),
            _ => None,
        },
        Expr::InList(InList { expr, list, negated: false }) if is_key(expr) && list.iter().all(fixed) => {
            Some(list.clone())
        }
        // A short list of constants is planned as alternatives.
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut values = wanted(left, is_key)?;
            values.extend(wanted(right, is_key)?);
            Some(values)
        }
        _ => None,
    }
}

/// Whether a condition that is about the key says nothing but which one it is.
fn is_equality(condition: &Expr) -> bool {
    matches!(condition, Expr::BinaryExpr(BinaryExpr { op: Operator::Eq, .. }))
}

/// Whether values of a type that are equal have the same bits.
fn hashes_as_it_compares(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => hashes_as_it_compares(value),
        other => {
            other.is_integer()
                || other.is_string()
                || other.is_temporal() && !matches!(other, DataType::Interval(_))
                || matches!(
                    other,
                    DataType::Boolean | DataType::Decimal128(..) | DataType::Binary | DataType::FixedSizeBinary(_)
                )
        }
    }
}

impl Step {
    /// What a node does; None when that is more than can be done here.
    fn of(node: &LogicalPlan) -> Result<Option<Self>> {
        let plain = node.expressions().iter().all(is_plain);
        Ok(match node {
            _ if !plain => None,
            LogicalPlan::Filter(filter) => {
                Some(Self::Filter(Expression::of(&filter.predicate, filter.input.schema())?))
            }
            LogicalPlan::Projection(projection) => {
                let input = projection.input.schema();
                let columns = projection.expr.iter().map(|column| Expression::of(column, input));
                let schema = Arc::clone(projection.schema.inner());
                Some(Self::Project { columns: columns.collect::<Result<_>>()?, schema })
            }
            LogicalPlan::Sort(sort) => {
                let by = sort.expr.iter().map(|SortExpr { expr, asc, nulls_first }| {
                    let options = SortOptions { descending: !asc, nulls_first: *nulls_first };
                    Ok((Expression::of(expr, sort.input.schema())?, options))
                });
                Some(Self::Sort { by: by.collect::<Result<_>>()?, fetch: sort.fetch })
            }
            LogicalPlan::Limit(limit) => {
                let bound = |bound: &Option<Box<Expr>>| {
                    bound.as_ref().map(|bound| Expression::of(bound, limit.input.schema())).transpose()
                };
                Some(Self::Limit { skip: bound(&limit.skip)?, fetch: bound(&limit.fetch)? })
            }
            _ => None,
        })
    }

    fn applied(&self, rows: RecordBatch, values: &Values<'_>) -> Result<RecordBatch> {
        match self {
            Self::Filter(condition) => filtered(&rows, &condition.with(values)?),
            Self::Project { columns, schema } => {
                let columns = columns.iter().map(|column| column.with(values)).collect::<Result<Vec<_>>>()?;
                let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
                let columns = evaluated(&columns, &rows)?;
                Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
            }
            Self::Sort { by, fetch } => {
                let mut columns = Vec::with_capacity(by.len());
                for (column, options) in by {
                    let values = column.with(values)?.evaluate(&rows)?.into_array(rows.num_rows())?;
                    columns.push(SortColumn { values, options: Some(*options) });
                }
                let order = lexsort_to_indices(&columns, *fetch)?;
                Ok(take_record_batch(&rows, &order)?)
            }
            Self::Limit { skip, fetch } => {
                let bound = |bound: &Option<Expression>| -> Result<Option<usize>> {
                    let Some(bound) = bound else { return Ok(None) };
                    let value = bound.with(values)?.evaluate(&rows.slice(0, 0))?;
                    let value = match value {
                        ColumnarValue::Scalar(value) => value.cast_to(&DataType::Int64)?,
                        ColumnarValue::Array(_) => ScalarValue::Int64(None),
                    };
                    match value {
                        ScalarValue::Int64(Some(rows)) => usize::try_from(rows)
                            .map(Some)
                            .map_err(|_| plan_datafusion_err!("LIMIT and OFFSET must not be negative")),
                        _ => Ok(None),
                    }
                };
                let start = bound(skip)?.unwrap_or(0).min(rows.num_rows());
                let length = bound(fetch)?.unwrap_or(usize::MAX).min(rows.num_rows() - start);
                Ok(rows.slice(start, length))
            }
        }
    }
}

/// Whether an expression can be evaluated on its own: it asks no table, no session and no clock.
fn is_plain(expr: &Expr) -> bool {
    let mut plain = true;
    let _ = expr.apply(|part| {
        plain &= match part {
            Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::OuterReferenceColumn(..) => {
                false
            }
            Expr::AggregateFunction(_) | Expr::WindowFunction(_) | Expr::Unnest(_) | Expr::GroupingSet(_) => false,
            Expr::ScalarFunction(call) => call.func.signature().volatility == Volatility::Immutable,
            Expr::Placeholder(Placeholder { field, .. }) => field.is_some(),
            _ => true,
        };
        Ok(if plain { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    plain
}

/// The columns of the view that are read; None when all of them are.
fn columns_read(steps: &[Step]) -> Option<BTreeSet<usize>> {
    let mut read = BTreeSet::new();
    for step in steps {
        match step {
            Step::Filter(condition) => condition.reads(&mut read),
            Step::Sort { by, .. } => by.iter().for_each(|(column, _)| column.reads(&mut read)),
            Step::Limit { .. } => {}
            Step::Project { columns, .. } => {
                columns.iter().for_each(|column| column.reads(&mut read));
                return Some(read);
            }
        }
    }
    None
}

impl Expression {
    /// Adds the columns that it needs.
    fn reads(&self, read: &mut BTreeSet<usize>) {
        match self {
            Self::Ready(planned) => read.extend(collect_columns(planned).into_iter().map(|column| column.index())),
            Self::Open(expr, schema) => {
                read.extend(
                    expr.column_refs().into_iter().filter_map(|column| schema.maybe_index_of_column(column)),
                );
            }
        }
    }

    fn of(expr: &Expr, schema: &DFSchemaRef) -> Result<Self> {
        let open = expr.exists(|part| Ok(matches!(part, Expr::Placeholder(_))))?;
        Ok(match open {
            true => Self::Open(expr.clone(), Arc::clone(schema)),
            false => Self::Ready(planned(expr, schema)?),
        })
    }

    fn with(&self, values: &Values<'_>) -> Result<Arc<dyn PhysicalExpr>> {
        match self {
            Self::Ready(planned) => Ok(Arc::clone(planned)),
            Self::Open(expr, schema) => planned(&values.put_into(expr)?, schema),
        }
    }
}

fn planned(expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
    create_physical_expr(expr, schema, &ExecutionProps::new(), &PhysicalPlanningContext::default())
}

/// The values of parameters.
struct Values<'a>(Option<&'a ParamValues>);

impl Values<'_> {
    /// The value of a parameter, of the type that it was planned with.
    fn of(&self, parameter: &Placeholder) -> Result<ScalarValue> {
        let Some(values) = self.0 else {
            return plan_err!("there is no value for parameter {}", parameter.id);
        };
        let value = values.get_placeholders_with_values(&parameter.id)?.value;
        match &parameter.field {
            Some(field) if *field.data_type() != value.data_type() => value.cast_to(field.data_type()),
            _ => Ok(value),
        }
    }

    fn put_into(&self, expr: &Expr) -> Result<Expr> {
        let put = expr.clone().transform(|part| match &part {
            Expr::Placeholder(parameter) => Ok(Transformed::yes(Expr::Literal(self.of(parameter)?, None))),
            _ => Ok(Transformed::no(part)),
        })?;
        Ok(put.data)
    }

    /// What an expression over no column is; None when it is more than one value.
    fn constant(&self, expr: &Expr) -> Result<Option<ScalarValue>> {
        Ok(match expr {
            Expr::Literal(value, _) => Some(value.clone()),
            Expr::Placeholder(parameter) => Some(self.of(parameter)?),
            other => {
                let nothing = DFSchema::empty();
                let row = RecordBatchOptions::new().with_row_count(Some(1));
                let row = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &row)?;
                let value = planned(&self.put_into(other)?, &nothing)?.evaluate(&row)?.into_array(1)?;
                (value.len() == 1).then(|| ScalarValue::try_from_array(&value, 0)).transpose()?
            }
        })
    }
}
