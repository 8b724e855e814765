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
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::{SortColumn, SortOptions, lexsort_to_indices, take_record_batch};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::CatalogProvider;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchemaRef, ParamValues, ScalarValue, plan_datafusion_err};
use datafusion::datasource::source_as_provider;
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{ColumnarValue, Expr, LogicalPlan, SortExpr, Volatility};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::utils::collect_columns;

use super::catalog::{Names, PinnedCatalog};
use super::provider::UnionTable;
use super::snapshot::Snapshot;
use crate::engine::merger::{evaluated, filtered};
use crate::engine::state::LambdaView;

mod joined;
mod lookup;
mod runs;

pub use joined::JoinedQuery;
use lookup::{Lookup, Values, Wanted, planned};
pub use runs::Points;

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

/// A query that is answered by key.
#[derive(Debug)]
pub enum ByKey {
    /// Of one view.
    One(PointQuery),
    /// Of several; runs plans.
    Joined(Arc<JoinedQuery>),
}

impl ByKey {
    /// The query for which `plan` was made, with parameters yet to be given; None when it is not for few keys of views.
    ///
    /// # Errors
    /// What DataFusion says of the plan.
    pub async fn of(points: &Arc<Points>, plan: &LogicalPlan, state: &SessionState) -> Result<Option<Self>> {
        if let Some(one) = PointQuery::of(points, plan, state).await? {
            return Ok(Some(Self::One(one)));
        }
        Ok(JoinedQuery::of(points, plan, state).await?.map(|joined| Self::Joined(Arc::new(joined))))
    }

    /// Schema and name of each table that is read.
    pub fn tables(&self) -> Vec<(&str, &str)> {
        match self {
            Self::One(query) => vec![query.lookup.table()],
            Self::Joined(query) => query.tables(),
        }
    }

    /// The columns of the answer.
    pub fn schema(&self) -> &SchemaRef {
        match self {
            Self::One(query) => query.schema(),
            Self::Joined(query) => query.schema(),
        }
    }

    /// Whether `pinned` has the definitions that the query was planned with.
    pub fn is_current(&self, pinned: &dyn CatalogProvider) -> bool {
        present(pinned).is_some_and(|snapshot| match self {
            Self::One(query) => query.is_of(snapshot),
            Self::Joined(query) => query.is_of(snapshot),
        })
    }
}

/// The definitions that were last found to be those that a query was planned with.
#[derive(Debug, Default)]
struct Current(ArcSwapOption<Names>);

impl Current {
    fn knows(&self, snapshot: &Snapshot, is_of: impl FnOnce() -> bool) -> bool {
        if self.0.load().as_ref().is_some_and(|known| Arc::ptr_eq(known, &snapshot.names)) {
            return true;
        }
        let found = is_of();
        if found {
            self.0.store(Some(Arc::clone(&snapshot.names)));
        }
        found
    }
}

/// A query for few keys of one view.
pub struct PointQuery {
    lookup: Lookup,
    known: Current,
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
            .field("view", &self.lookup.of.called)
            .field("keys", &self.lookup.keys())
            .finish_non_exhaustive()
    }
}

impl PointQuery {
    async fn of(points: &Arc<Points>, plan: &LogicalPlan, state: &SessionState) -> Result<Option<Self>> {
        if form_of(plan).is_none() {
            return Ok(None);
        }
        // Compared values then have the types of the columns they are compared with.
        let plan = state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {})?;
        let Some(Form { nodes, of }) = form_of(&plan) else { return Ok(None) };
        let Some(merger) = points.merger(&of).await? else { return Ok(None) };
        let mut wanted = None;
        let mut steps = Vec::new();
        for node in nodes.iter().rev() {
            let Some(step) = Step::of(node)? else { return Ok(None) };
            if wanted.is_none() {
                let LogicalPlan::Filter(filter) = node else { return Ok(None) };
                let parts = split_conjunction(&filter.predicate);
                let Some(found) = Wanted::among(&parts, filter.input.schema(), &merger) else { return Ok(None) };
                let by_value = found.by_value;
                wanted = Some(found);
                if by_value {
                    continue;
                }
            }
            steps.push(step);
        }
        let Some(wanted) = wanted else { return Ok(None) };
        let merger = match columns_read(&steps) {
            Some(read) => Arc::new(merger.only(&read)),
            None => merger,
        };
        let lookup = Lookup::of(points, of, merger, wanted);
        Ok(lookup.map(|lookup| Self { lookup, known: Current::default(), steps }))
    }

    fn is_of(&self, snapshot: &Snapshot) -> bool {
        self.known.knows(snapshot, || self.lookup.is_of(snapshot))
    }

    fn schema(&self) -> &SchemaRef {
        let last = self.steps.iter().rev().find_map(|step| match step {
            Step::Project { schema, .. } => Some(schema),
            _ => None,
        });
        last.unwrap_or_else(|| self.lookup.merger.schema())
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
        let Some(mut rows) = self.lookup.rows(snapshot, &values)? else { return Ok(None) };
        for step in &self.steps {
            rows = step.applied(rows, &values)?;
        }
        Ok(Some(rows))
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
