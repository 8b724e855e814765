//! Queries that join rows of several views by key, or add small tables to them: optimised once, over what is looked up.
//!
//! The optimizer itself says by which key each view is read: it moves the conditions on keys, and those that follow from
//! them through the equalities of a join, down to the tables. A query that reads a view without such a condition, or uses
//! a parameter elsewhere than in conditions on one table, is left to the general path.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, MemTable, Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ExprSchema, JoinType, ParamValues, internal_datafusion_err};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{
    BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator, TableProviderFilterPushDown, TableScan, TableType,
    Volatility,
};
use datafusion::physical_plan::ExecutionPlan;

use super::lookup::{Lookup, Values, Wanted};
use super::runs::Points;
use super::{Current, Expression, StatesOf, present, states_under};
use crate::engine::merger::{Merger, filtered};
use crate::engine::reused::{Reused, Vacant, session};
use crate::merge::snapshot::Snapshot;

/// A join of lookups may have as many rows as their rows multiplied; with more, it runs where it can be stopped.
const ROWS_MAX: usize = 1 << 13;

/// A plan of so many expressions and nodes is run at once, where it is asked for.
const PARTS_MAX: usize = 500;

/// A query for few keys of several views.
pub struct JoinedQuery {
    seats: Vec<Seated>,
    plan: Reused,
    schema: SchemaRef,
    brief: bool,
    known: Current,
}

/// What is read in one place of the plan.
struct Seated {
    source: Source,
    /// What its rows must be like.
    condition: Option<Expression>,
}

enum Source {
    Lookup(Lookup),
    Table(SmallTable),
    /// The optimizer found that it is not needed.
    Unused,
}

/// A table that is in memory.
struct SmallTable {
    schema: String,
    name: String,
    columns: SchemaRef,
}

impl Seated {
    fn table(&self) -> Option<(&str, &str)> {
        match &self.source {
            Source::Lookup(lookup) => Some(lookup.table()),
            Source::Table(table) => Some((&table.schema, &table.name)),
            Source::Unused => None,
        }
    }

    /// The rows that are read; None when they are not at hand.
    async fn rows(
        &self,
        pinned: &dyn CatalogProvider,
        snapshot: &Snapshot,
        values: &Values<'_>,
    ) -> Result<Option<Vec<RecordBatch>>> {
        let rows = match &self.source {
            Source::Unused => Some(Vec::new()),
            Source::Lookup(lookup) => lookup.rows(snapshot, values)?.map(|rows| vec![rows]),
            Source::Table(table) => table.rows(pinned).await?,
        };
        let (Some(rows), Some(condition)) = (&rows, &self.condition) else { return Ok(rows) };
        let condition = condition.with(values)?;
        rows.iter().map(|rows| filtered(rows, &condition)).collect::<Result<_>>().map(Some)
    }
}

impl fmt::Debug for JoinedQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinedQuery").field("tables", &self.tables()).finish_non_exhaustive()
    }
}

impl JoinedQuery {
    pub(super) async fn of(points: &Arc<Points>, plan: &LogicalPlan, state: &SessionState) -> Result<Option<Self>> {
        let views = views_in(plan)?;
        if views.is_empty() {
            return Ok(None);
        }
        let mut mergers = BTreeMap::new();
        for view in &views {
            let Some(merger) = points.merger(view).await? else { return Ok(None) };
            mergers.insert(view.instance.clone(), merger);
        }
        let default_schema = &state.config_options().catalog.default_schema;
        let Some(seated) = Seating::of(plan, default_schema)? else { return Ok(None) };
        let state = session(points.engine());
        let mut optimized = state.optimize(&seated.plan)?;
        let followed = with_keys_that_follow(optimized)?;
        optimized = if followed.transformed { state.optimize(&followed.data)? } else { followed.data };
        let Some(seats) = seated.seats(points, &mergers, &optimized)? else { return Ok(None) };
        let schema = Arc::clone(optimized.schema().inner());
        let brief = parts_of(&optimized)? <= PARTS_MAX;
        let plan = Reused::of_optimized(&state, &optimized).await?;
        Ok(Some(Self { seats, plan, schema, brief, known: Current::default() }))
    }

    pub(super) fn tables(&self) -> Vec<(&str, &str)> {
        self.seats.iter().filter_map(Seated::table).collect()
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(super) fn is_of(&self, snapshot: &Snapshot) -> bool {
        let is_of = |seat: &Seated| match &seat.source {
            Source::Lookup(lookup) => lookup.is_of(snapshot),
            Source::Table(_) | Source::Unused => true,
        };
        self.known.knows(snapshot, || self.seats.iter().all(is_of))
    }

    /// Whether an answer is so little work that it need not be made elsewhere than it is asked for.
    pub fn is_brief(&self) -> bool {
        self.brief
    }

    /// Answers from what is pinned. None leaves it to the general path: the definitions are others than those that the
    /// query was planned with, there is no index yet, or there are too many rows.
    ///
    /// # Errors
    /// Those that the general path gives for an expression that fails.
    pub async fn answer(
        &self,
        pinned: &dyn CatalogProvider,
        parameters: Option<&ParamValues>,
    ) -> Result<Option<RecordBatch>> {
        let Some(snapshot) = present(pinned).filter(|snapshot| self.is_of(snapshot)) else { return Ok(None) };
        let values = Values(parameters);
        let mut filled = Vec::with_capacity(self.seats.len());
        for seat in &self.seats {
            let Some(rows) = seat.rows(pinned, snapshot, &values).await? else { return Ok(None) };
            filled.push([rows]);
        }
        let count = |rows: &[Vec<RecordBatch>; 1]| rows.iter().flatten().map(RecordBatch::num_rows).sum::<usize>();
        let most = filled.iter().map(count).fold(1_usize, |most, rows| most.saturating_mul(rows.max(1)));
        if most > ROWS_MAX {
            return Ok(None);
        }
        let batches = self.plan.run(|seat| match filled.get(seat.number()) {
            Some(rows) => seat.filled(rows),
            None => Err(internal_datafusion_err!("nothing was looked up for a table")),
        });
        Ok(Some(concat_batches(&self.schema, &batches.await?)?))
    }
}

impl SmallTable {
    /// The table as it is pinned; None when it is another one now.
    async fn rows(&self, pinned: &dyn CatalogProvider) -> Result<Option<Vec<RecordBatch>>> {
        let Some(schema) = pinned.schema(&self.schema) else { return Ok(None) };
        let Some(table) = schema.table(&self.name).await? else { return Ok(None) };
        let Some(table) = in_memory(table.as_ref()).filter(|table| table.schema() == self.columns) else {
            return Ok(None);
        };
        let mut rows = Vec::new();
        for part in &table.batches {
            rows.extend(part.read().await.iter().cloned());
        }
        Ok(Some(rows))
    }
}

fn in_memory(table: &dyn TableProvider) -> Option<&MemTable> {
    let table: &dyn Any = table;
    table.downcast_ref()
}

/// The views that a query reads itself; none when it reads something else that is a plan.
fn views_in(plan: &LogicalPlan) -> Result<Vec<StatesOf>> {
    let mut views = Vec::new();
    let mut others = false;
    plan.apply_with_subqueries(|node| {
        let LogicalPlan::SubqueryAlias(alias) = node else { return Ok(TreeNodeRecursion::Continue) };
        match (states_under(&alias.input), alias.input.as_ref()) {
            (Some(of), _) => {
                views.push(of);
                return Ok(TreeNodeRecursion::Jump);
            }
            (None, LogicalPlan::SubqueryAlias(_) | LogicalPlan::TableScan(_)) => {}
            // What is below may be another view, with rights of its own.
            (None, _) => others = true,
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(if others { Vec::new() } else { views })
}

/// A plan in which each table is a place to be filled.
struct Seating {
    plan: LogicalPlan,
    /// What each place is for.
    wanted: Vec<Asked>,
}

enum Asked {
    View(StatesOf),
    Table { schema: String, name: String, columns: SchemaRef },
}

impl Seating {
    fn of(plan: &LogicalPlan, default_schema: &str) -> Result<Option<Self>> {
        let mut wanted = Vec::new();
        let mut others = false;
        let seated = plan.clone().transform_down_with_subqueries(|node| {
            let (name, source) = match &node {
                LogicalPlan::SubqueryAlias(alias) => {
                    let Some(of) = states_under(&alias.input) else { return Ok(Transformed::no(node)) };
                    let vacant = Vacant { number: wanted.len(), columns: Arc::clone(alias.schema.inner()) };
                    wanted.push(Asked::View(of));
                    (alias.alias.clone(), Place(vacant))
                }
                LogicalPlan::TableScan(scan) => {
                    let table = source_as_provider(&scan.source)?;
                    if in_memory(table.as_ref()).is_none() {
                        others = true;
                        return Ok(Transformed::no(node));
                    }
                    let columns = table.schema();
                    let vacant = Vacant { number: wanted.len(), columns: Arc::clone(&columns) };
                    let schema = scan.table_name.schema().unwrap_or(default_schema).to_owned();
                    wanted.push(Asked::Table { schema, name: scan.table_name.table().to_owned(), columns });
                    (scan.table_name.clone(), Place(vacant))
                }
                _ => return Ok(Transformed::no(node)),
            };
            let scan = LogicalPlanBuilder::scan(name, provider_as_source(Arc::new(source)), None)?.build()?;
            Ok(Transformed::new(scan, true, TreeNodeRecursion::Jump))
        })?;
        others = others || !is_repeatable(&seated.data)?;
        Ok((!others).then_some(Self { plan: seated.data, wanted }))
    }

    /// How each place is filled when the plan is `optimized`; None when that cannot be said.
    fn seats(
        self,
        points: &Arc<Points>,
        mergers: &BTreeMap<String, Arc<Merger>>,
        optimized: &LogicalPlan,
    ) -> Result<Option<Vec<Seated>>> {
        let mut wanted: Vec<Option<Asked>> = self.wanted.into_iter().map(Some).collect();
        let unused = || Seated { source: Source::Unused, condition: None };
        let mut seats: Vec<Seated> = wanted.iter().map(|_| unused()).collect();
        let mut answerable = true;
        optimized.apply_with_subqueries(|node| {
            match node {
                LogicalPlan::TableScan(scan) => {
                    let number = number_of(scan)?;
                    // Each has its place once.
                    let asked =
                        number.and_then(|number| wanted.get_mut(number)?.take().map(|asked| (number, asked)));
                    let seat = match asked {
                        Some((number, asked)) => seat_of(asked, scan, points, mergers)?
                            .and_then(|seat| Some((seats.get_mut(number)?, seat))),
                        None => None,
                    };
                    match seat {
                        Some((place, seat)) => *place = seat,
                        None => answerable = false,
                    }
                }
                other => {
                    other.apply_expressions(|expr| {
                        answerable &= !expr.exists(|part| Ok(matches!(part, Expr::Placeholder(_))))?;
                        Ok(TreeNodeRecursion::Continue)
                    })?;
                }
            }
            Ok(if answerable { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        })?;
        let looks_up = seats.iter().any(|seat| matches!(seat.source, Source::Lookup(_)));
        Ok((answerable && looks_up).then_some(seats))
    }
}

fn seat_of(
    asked: Asked,
    scan: &TableScan,
    points: &Arc<Points>,
    mergers: &BTreeMap<String, Arc<Merger>>,
) -> Result<Option<Seated>> {
    let columns = scan.source.schema();
    let schema = Arc::new(DFSchema::try_from(Arc::clone(&columns))?);
    let filters: Vec<Expr> = scan.filters.iter().cloned().map(unnormalize_col).collect();
    let of = match asked {
        Asked::Table { schema: in_schema, name, columns } => {
            let source = Source::Table(SmallTable { schema: in_schema, name, columns });
            let condition =
                conjunction(filters).map(|condition| Expression::of(&condition, &schema)).transpose()?;
            return Ok(Some(Seated { source, condition }));
        }
        Asked::View(of) => of,
    };
    let Some(merger) = mergers.get(&of.instance) else { return Ok(None) };
    let Some(wanted) = Wanted::among(&filters.iter().collect::<Vec<_>>(), &schema, merger) else { return Ok(None) };
    let condition = match wanted.by_value {
        true => None,
        false => conjunction(filters).map(|condition| Expression::of(&condition, &schema)).transpose()?,
    };
    let merger = match &scan.projection {
        Some(projection) => {
            let mut read: BTreeSet<usize> = projection.iter().copied().collect();
            if let Some(condition) = &condition {
                condition.reads(&mut read);
            }
            Arc::new(merger.only(&read))
        }
        None => Arc::clone(merger),
    };
    let lookup = Lookup::of(points, of, merger, wanted);
    Ok(lookup.map(|lookup| Seated { source: Source::Lookup(lookup), condition }))
}

/// With the condition on the right side of each LEFT JOIN that follows from one on its left: where `a.key = $1`, only rows
/// with `b.key = $1` can meet `b.key = a.key`. DataFusion infers it for inner joins only.
fn with_keys_that_follow(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Join(mut join) if join.join_type == JoinType::Left => {
            let known = equalities(&join.left)?;
            let follow = join.on.iter().filter_map(|(left, right)| match (left, right) {
                (Expr::Column(left), Expr::Column(right)) => {
                    let (_, value) = known.iter().find(|(column, _)| column == left)?;
                    let same =
                        join.left.schema().data_type(left).ok()? == join.right.schema().data_type(right).ok()?;
                    same.then(|| Expr::Column(right.clone()).eq(value.clone()))
                }
                _ => None,
            });
            let Some(condition) = conjunction(follow) else { return Ok(Transformed::no(LogicalPlan::Join(join))) };
            let right = LogicalPlanBuilder::from(join.right.as_ref().clone()).filter(condition)?.build()?;
            join.right = Arc::new(right);
            Ok(Transformed::yes(LogicalPlan::Join(join)))
        }
        node => Ok(Transformed::no(node)),
    })
}

/// Columns that have one value in all rows of `plan`, as far as that is plain to see.
fn equalities(plan: &LogicalPlan) -> Result<Vec<(Column, Expr)>> {
    let of_condition = |condition: &Expr| match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => match (left.as_ref(), right.as_ref()) {
            (Expr::Column(column), value) | (value, Expr::Column(column)) if !value.any_column_refs() => {
                Some((column.clone(), value.clone()))
            }
            _ => None,
        },
        _ => None,
    };
    Ok(match plan {
        LogicalPlan::TableScan(scan) => {
            let parts = scan.filters.iter().flat_map(split_conjunction);
            let known = parts.filter_map(of_condition);
            // One that is not shown cannot be compared with above.
            known.filter(|(column, _)| scan.projected_schema.has_column(column)).collect()
        }
        LogicalPlan::Filter(filter) => {
            let mut known = equalities(&filter.input)?;
            known.extend(split_conjunction(&filter.predicate).into_iter().filter_map(of_condition));
            known
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let known = equalities(&alias.input)?.into_iter();
            let renamed = known.filter_map(|(column, value)| {
                let at = alias.input.schema().maybe_index_of_column(&column)?;
                Some((alias.schema.columns().swap_remove(at), value))
            });
            renamed.collect()
        }
        LogicalPlan::Projection(projection) => {
            let known = equalities(&projection.input)?;
            let shown = projection.expr.iter().zip(projection.schema.columns());
            let kept = shown.filter_map(|(expr, shown)| {
                let Expr::Column(column) = expr.clone().unalias() else { return None };
                known.iter().find(|(known, _)| *known == column).map(|(_, value)| (shown, value.clone()))
            });
            kept.collect()
        }
        LogicalPlan::Sort(sort) => equalities(&sort.input)?,
        LogicalPlan::Limit(limit) => equalities(&limit.input)?,
        LogicalPlan::Join(join) if join.join_type == JoinType::Left => equalities(&join.left)?,
        LogicalPlan::Join(join) if join.join_type == JoinType::Inner => {
            [equalities(&join.left)?, equalities(&join.right)?].concat()
        }
        _ => Vec::new(),
    })
}

/// The number of the place that a table of an optimised plan stands for.
fn number_of(scan: &TableScan) -> Result<Option<usize>> {
    let table = source_as_provider(&scan.source)?;
    let table: &dyn Any = table.as_ref();
    Ok(table.downcast_ref::<Place>().map(|Place(vacant)| vacant.number))
}

/// How many nodes and expressions a plan has.
fn parts_of(plan: &LogicalPlan) -> Result<usize> {
    let mut parts = 0;
    plan.apply_with_subqueries(|node| {
        parts += 1;
        node.apply_expressions(|expr| {
            expr.apply(|_| {
                parts += 1;
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(parts)
}

/// Whether a plan gives the same for the same rows, whenever and for whomever it runs.
fn is_repeatable(plan: &LogicalPlan) -> Result<bool> {
    let mut repeatable = true;
    plan.apply_with_subqueries(|node| {
        repeatable &= !matches!(
            node,
            LogicalPlan::Extension(_)
                | LogicalPlan::Dml(_)
                | LogicalPlan::Ddl(_)
                | LogicalPlan::Copy(_)
                | LogicalPlan::Statement(_)
                | LogicalPlan::Explain(_)
                | LogicalPlan::Analyze(_)
                | LogicalPlan::RecursiveQuery(_)
        );
        node.apply_expressions(|expr| {
            repeatable &= !expr.exists(|part| {
                Ok(match part {
                    Expr::ScalarFunction(call) => call.func.signature().volatility != Volatility::Immutable,
                    Expr::Placeholder(parameter) => parameter.field.is_none(),
                    // As a join, it would give as many rows as it has.
                    Expr::ScalarSubquery(query) => query.subquery.max_rows() != Some(1),
                    _ => false,
                })
            })?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(repeatable)
}

/// A table of the plan, to be filled with rows that meet what the query asks of it.
#[derive(Debug)]
struct Place(Vacant);

#[async_trait]
impl TableProvider for Place {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let supports = |filter: &&Expr| match super::is_plain(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(supports).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.0.scan(state, projection, filters, limit).await
    }
}
