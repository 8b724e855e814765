//! Surgery on logical plans: where a view's query is cut, and why some cannot be.
//!
//! A view is one chain: finishing nodes (projections, HAVING) over one aggregate over an input part that reads one
//! stream. Cutting it is right only if every row of the input part comes from exactly one record of the stream:
//! then the aggregate of all records is the merge of the aggregates of any pieces of them. So what lies between
//! the aggregate and the stream must pass rows on one by one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, JoinType, TableReference};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{
    Aggregate, Distinct, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, TableScan, Volatility,
};

use crate::engine::state::ViewError;

/// Schema of the streams: a scan of a table in it is what a view is computed from.
const STREAM_SCHEMA: &str = "raw";

/// What these give follows the order of rows, which no cut keeps; with ORDER BY it follows the data alone.
const ORDER_DEPENDENT: [&str; 5] = ["array_agg", "array_agg_limit", "first_value", "last_value", "string_agg"];

/// These keep a value of every record, and none of them has to.
const UNBOUNDED: [&str; 2] = ["array_agg", "string_agg"];

/// These merge, but not to one answer; and what does.
const CUT_DEPENDENT: [(&str, &str); 2] = [
    ("approx_percentile_cont_with_weight", "approx_percentile_cont or percentile_cont"),
    ("nth_value", "(array_agg_limit(x, n ORDER BY ...))[n]"),
];

/// A query that may be cut, and where.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) stream: TableReference,
    pub(super) aggregate: Aggregate,
    /// For each column of the aggregate the name it is stored under.
    pub(super) names: Vec<String>,
}

impl Cut {
    /// Finds the cut of an analysed, unoptimised query.
    pub(super) fn find(view: &str, query: &LogicalPlan) -> Result<Self, ViewError> {
        refuse_unrepeatable(view, query)?;
        let (aggregate, aliases) = find_aggregate(view, query)?;
        if aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_))) {
            return Err(ViewError::GroupingSets { view: view.to_owned() });
        }
        let stream = find_stream(view, query)?;
        refuse_unless_row_by_row(view, &aggregate.input)?;
        for expr in &aggregate.aggr_expr {
            refuse_function(view, call(view, expr)?)?;
        }
        let names = stored_names(aggregate, &aliases);
        Ok(Self { stream, aggregate: aggregate.clone(), names })
    }
}

/// The function call of one aggregate expression.
pub(super) fn call<'a>(view: &str, expr: &'a Expr) -> Result<&'a AggregateFunction, ViewError> {
    match expr {
        Expr::AggregateFunction(call) => Ok(call),
        Expr::Alias(alias) => call(view, &alias.expr),
        other => Err(ViewError::Unsupported { view: view.to_owned(), what: format!("the aggregate {other}") }),
    }
}

/// The input part, reading `records` in place of the stream.
pub(super) fn read_from(
    view: &str,
    input: &LogicalPlan,
    records: Arc<dyn TableProvider>,
) -> Result<LogicalPlan, ViewError> {
    let replanted = input.clone().transform_up(|node| match node {
        LogicalPlan::TableScan(scan) if is_stream(&scan.table_name) => {
            Ok(Transformed::yes(scan_instead(&scan, Arc::clone(&records))?))
        }
        // Nullability may differ from the table the view was planned on.
        node => Ok(Transformed::yes(node.recompute_schema()?)),
    });
    Ok(replanted.map_err(|source| ViewError::plan(view, source))?.data)
}

/// The finishing part over `merged`, which has the columns of the aggregate that it stands for.
pub(super) fn finish(view: &str, query: &LogicalPlan, merged: LogicalPlan) -> Result<LogicalPlan, ViewError> {
    if matches!(query, LogicalPlan::Aggregate(_)) {
        return Ok(merged);
    }
    let [input] = query.inputs()[..] else {
        return Err(unsupported(view, query));
    };
    let input = finish(view, input, merged)?;
    query.with_new_exprs(query.expressions(), vec![input]).map_err(|source| ViewError::plan(view, source))
}

fn scan_instead(scan: &TableScan, records: Arc<dyn TableProvider>) -> Result<LogicalPlan, DataFusionError> {
    let table = &scan.table_name;
    let mut plan = LogicalPlanBuilder::scan(table.clone(), provider_as_source(records), None)?;
    for predicate in &scan.filters {
        plan = plan.filter(predicate.clone())?;
    }
    let columns = columns_as(&plan, table, scan.projected_schema.as_ref())?;
    if let Some(columns) = columns {
        plan = plan.project(columns)?;
    }
    plan.build()
}

/// A projection to the columns of `wanted`, or none where they are there already, with the same types. Columns
/// that are missing are left out: should the view need one, planning says which.
fn columns_as(
    plan: &LogicalPlanBuilder,
    table: &TableReference,
    wanted: &DFSchema,
) -> Result<Option<Vec<Expr>>, DataFusionError> {
    let mut columns = Vec::with_capacity(wanted.fields().len());
    let mut casts = false;
    for field in wanted.fields() {
        let Ok(found) = plan.schema().field_with_qualified_name(table, field.name()) else {
            continue;
        };
        let column = Expr::Column(Column::new(Some(table.clone()), field.name()));
        if found.data_type() == field.data_type() {
            columns.push(column);
        } else {
            casts = true;
            let cast = column.cast_to(field.data_type(), plan.schema().as_ref())?;
            columns.push(cast.alias_qualified(Some(table.clone()), field.name()));
        }
    }
    Ok(casts.then_some(columns))
}

/// Goes down from the root to the aggregate, and collects what the projection right above it calls its columns.
fn find_aggregate<'a>(
    view: &str,
    query: &'a LogicalPlan,
) -> Result<(&'a Aggregate, HashMap<Column, String>), ViewError> {
    let mut aliases = HashMap::new();
    let mut node = query;
    loop {
        node = match node {
            LogicalPlan::Aggregate(aggregate) => return Ok((aggregate, aliases)),
            LogicalPlan::Projection(projection) => {
                aliases = aliases_of(&projection.expr);
                &projection.input
            }
            LogicalPlan::Filter(filter) => &filter.input,
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::TableScan(_) | LogicalPlan::EmptyRelation(_) | LogicalPlan::Values(_) => {
                return Err(ViewError::NoAggregate { view: view.to_owned() });
            }
            LogicalPlan::Join(join) if !has_aggregate(&join.left) && !has_aggregate(&join.right) => {
                return Err(ViewError::NoAggregate { view: view.to_owned() });
            }
            other => return Err(unsupported(view, other)),
        };
    }
}

fn has_aggregate(plan: &LogicalPlan) -> bool {
    let is_one = |node: &LogicalPlan| Ok(matches!(node, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_)));
    plan.exists(is_one).expect("the closure has no error")
}

fn aliases_of(exprs: &[Expr]) -> HashMap<Column, String> {
    let mut aliases = HashMap::new();
    for expr in exprs {
        // An alias may hold another: count(*) is planned as count(1) AS "count(*)".
        let mut named = expr;
        while let Expr::Alias(alias) = named {
            named = &alias.expr;
        }
        if let (Expr::Alias(alias), Expr::Column(column)) = (expr, named) {
            aliases.entry(column.clone()).or_insert_with(|| alias.name.clone());
        }
    }
    aliases
}

fn stored_names(aggregate: &Aggregate, aliases: &HashMap<Column, String>) -> Vec<String> {
    let mut taken = HashSet::new();
    let exprs = aggregate.group_expr.iter().chain(&aggregate.aggr_expr);
    let mut names = Vec::with_capacity(aggregate.schema.fields().len());
    for (column, expr) in aggregate.schema.columns().into_iter().zip(exprs) {
        let name = match aliases.get(&column) {
            Some(alias) => alias.clone(),
            None => unqualified(expr),
        };
        let mut unique = name.clone();
        let mut number = 2;
        while !taken.insert(unique.clone()) {
            unique = format!("{name}_{number}");
            number += 1;
        }
        names.push(unique);
    }
    names
}

fn unqualified(expr: &Expr) -> String {
    let bare = expr.clone().transform_up(|expr| match expr {
        Expr::Column(column) => Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name)))),
        other => Ok(Transformed::no(other)),
    });
    bare.expect("the closure has no error").data.schema_name().to_string()
}

/// True when a function gives another answer for another order of the same rows.
pub(super) fn follows_order(function: &str) -> bool {
    ORDER_DEPENDENT.contains(&function)
}

pub(super) fn is_stream(table: &TableReference) -> bool {
    table.schema() == Some(STREAM_SCHEMA)
}

fn find_stream(view: &str, query: &LogicalPlan) -> Result<TableReference, ViewError> {
    let mut scans = Vec::new();
    query
        .apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node
                && is_stream(&scan.table_name)
            {
                scans.push(scan.table_name.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .expect("the closure has no error");
    let streams: BTreeSet<&str> = scans.iter().map(TableReference::table).collect();
    if streams.len() > 1 {
        let streams = streams.into_iter().collect::<Vec<_>>().join(", ");
        return Err(ViewError::ManyStreams { view: view.to_owned(), streams });
    }
    match scans.as_slice() {
        [] => Err(ViewError::NoStream { view: view.to_owned() }),
        [stream] => Ok(stream.clone()),
        [stream, ..] => Err(ViewError::StreamTwice { view: view.to_owned(), stream: stream.table().to_owned() }),
    }
}

fn reads_stream(plan: &LogicalPlan) -> bool {
    let is_one =
        |node: &LogicalPlan| Ok(matches!(node, LogicalPlan::TableScan(scan) if is_stream(&scan.table_name)));
    plan.exists(is_one).expect("the closure has no error")
}

fn refuse_unless_row_by_row(view: &str, input: &LogicalPlan) -> Result<(), ViewError> {
    let mut node = input;
    loop {
        node = match node {
            LogicalPlan::TableScan(scan) if is_stream(&scan.table_name) && scan.fetch.is_none() => return Ok(()),
            LogicalPlan::Projection(projection) => &projection.input,
            LogicalPlan::Filter(filter) => &filter.input,
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::Unnest(unnest) => &unnest.input,
            LogicalPlan::Join(join) => {
                let (side, keeps_rows) = if reads_stream(&join.left) {
                    (&join.left, keeps_left(join.join_type))
                } else {
                    (&join.right, keeps_left(join.join_type.swap()))
                };
                if !reads_stream(side) {
                    return Err(ViewError::StreamInSubquery { view: view.to_owned() });
                }
                if !keeps_rows {
                    let join = join.join_type.to_string().to_lowercase();
                    return Err(ViewError::OuterJoin { view: view.to_owned(), join });
                }
                side
            }
            LogicalPlan::Aggregate(_) => return Err(ViewError::NestedAggregate { view: view.to_owned() }),
            LogicalPlan::TableScan(_) | LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_) => {
                return Err(ViewError::StreamInSubquery { view: view.to_owned() });
            }
            other => return Err(unsupported(view, other)),
        };
    }
}

/// True when each row of the join comes from one row of its left side. A right or full join also gives the rows
/// of the right side that found no partner, and in each piece others find none.
fn keeps_left(join: JoinType) -> bool {
    matches!(join, JoinType::Inner | JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark)
}

fn refuse_unrepeatable(view: &str, query: &LogicalPlan) -> Result<(), ViewError> {
    let mut refused = None;
    let mut look = |expr: &Expr| {
        let found = match expr {
            Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                format!("{}()", call.func.name())
            }
            Expr::AggregateFunction(call) if call.func.signature().volatility != Volatility::Immutable => {
                format!("{}()", call.func.name())
            }
            Expr::Placeholder(placeholder) => format!("the parameter {}", placeholder.id),
            Expr::ScalarVariable(_, names) => format!("the variable {}", names.join(".")),
            _ => return Ok(TreeNodeRecursion::Continue),
        };
        refused = Some(found);
        Ok(TreeNodeRecursion::Stop)
    };
    query
        .apply_with_subqueries(|node| node.apply_expressions(|expr| expr.apply(&mut look)))
        .expect("the closure has no error");
    match refused {
        Some(what) => Err(ViewError::Unrepeatable { view: view.to_owned(), what }),
        None => Ok(()),
    }
}

fn refuse_function(view: &str, call: &AggregateFunction) -> Result<(), ViewError> {
    let view = view.to_owned();
    let function = call.func.name().to_owned();
    let name = function.as_str();
    if UNBOUNDED.contains(&name) {
        return Err(ViewError::Unbounded { view, function });
    }
    if let Some((_, instead)) = CUT_DEPENDENT.iter().find(|(dependent, _)| *dependent == name) {
        return Err(ViewError::CutDependent { view, function, instead });
    }
    if name == "any_value" || follows_order(name) && call.params.order_by.is_empty() {
        return Err(ViewError::OrderDependent { view, function });
    }
    if name == "grouping" {
        return Err(ViewError::GroupingSets { view });
    }
    Ok(())
}

fn unsupported(view: &str, node: &LogicalPlan) -> ViewError {
    let view = view.to_owned();
    match node {
        LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => ViewError::Ordered { view },
        LogicalPlan::TableScan(_) => ViewError::Ordered { view },
        LogicalPlan::Window(_) => ViewError::Window { view },
        LogicalPlan::Distinct(Distinct::All(_) | Distinct::On(_)) => ViewError::Distinct { view },
        LogicalPlan::Union(_) => ViewError::SetOperation { view },
        LogicalPlan::Join(join) if is_set_operation(&join.left) => ViewError::SetOperation { view },
        LogicalPlan::Join(_) => ViewError::JoinAfterAggregate { view },
        other => {
            let text = other.display().to_string();
            let what = text.split(':').next().unwrap_or_default().to_lowercase();
            ViewError::Unsupported { view, what }
        }
    }
}

/// INTERSECT and EXCEPT are planned as a join of a DISTINCT.
fn is_set_operation(left: &LogicalPlan) -> bool {
    matches!(left, LogicalPlan::Distinct(_))
        || matches!(left, LogicalPlan::SubqueryAlias(alias) if matches!(alias.input.as_ref(), LogicalPlan::Distinct(_)))
}
