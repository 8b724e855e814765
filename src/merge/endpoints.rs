//! Endpoints of HTTP, planned over what there is to read: so a fault is told when the definitions are read, and the type of
//! each answer is known before there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{ParamValues, Result, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::optimizer::analyzer::Analyzer;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, OrderByExpr, OrderByKind, OrderByOptions, Query, Value};

use super::catalog::Names;
use super::repeatable::Limited;
use super::{ordinary, repeatable};
use crate::catalog::Fault;
use crate::catalog::endpoint::parameter::Parameter;
use crate::catalog::endpoint::{Endpoint, Returns};
use crate::engine::planner::Declared;
use crate::engine::unbound;
use crate::engine::{CATALOG, Engine};

/// An endpoint, and what its query gives.
#[derive(Debug)]
pub struct PlannedEndpoint {
    pub declared: Arc<Endpoint>,
    /// The query as sessions are given it, with `$1`, `$2`, ... for its parameters.
    pub sql: String,
    pub schema: SchemaRef,
    /// Why two answers from one snapshot may differ; none when they are equal to the byte.
    pub varies: Option<String>,
}

/// Plans `endpoints` over what `names` has; all faults at once.
pub async fn plan_all(
    engine: &Engine,
    endpoints: &BTreeMap<String, Arc<Endpoint>>,
    names: &Names,
) -> Result<BTreeMap<String, Arc<PlannedEndpoint>>, Vec<Fault>> {
    if endpoints.is_empty() {
        return Ok(BTreeMap::new());
    }
    let session = session(engine, names).await.map_err(|error| {
        vec![Fault { file: CATALOG.to_owned(), line: 0, column: 0, reason: error.strip_backtrace() }]
    })?;
    let mut planned = BTreeMap::new();
    let mut faults = Vec::new();
    for (route, endpoint) in endpoints {
        match plan(&session, names, endpoint).await {
            Ok(endpoint) => drop(planned.insert(route.clone(), Arc::new(endpoint))),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(planned) } else { Err(faults) }
}

/// Knows the columns of everything that can be read.
pub(super) async fn session(engine: &Engine, names: &Names) -> Result<SessionContext> {
    let session = ordinary::session(engine, names).await?;
    for (name, view) in &names.ordinary {
        ordinary::register(&session, name, view.columns())?;
    }
    Ok(session)
}

async fn plan(session: &SessionContext, names: &Names, endpoint: &Arc<Endpoint>) -> Result<PlannedEndpoint, Fault> {
    let (columns, _) = typed(session, endpoint, &endpoint.query).await?;
    let declared = Declared { file: &endpoint.file, line: endpoint.line, query: &endpoint.query };
    let mut seen = BTreeSet::new();
    if let Some(twice) = columns.fields().iter().find(|field| !seen.insert(field.name())) {
        let reason = format!("the answer has two columns {}: name them apart with AS", twice.name());
        return Err(declared.fault_at_start(reason));
    }
    let (query, order) = in_whole_order(endpoint, &columns);
    let (schema, plan) = typed(session, endpoint, &query).await?;
    rehearse(session, endpoint, &plan).await.map_err(|error| declared.fault(&error))?;
    let optimized = session.state().optimize(&plan).map_err(|error| declared.fault(&error))?;
    let varies = match order {
        Order::Whole => repeatable::why_not(&session.state(), &plan, &optimized, limited(&query), names),
        Order::Open => Some("its rows cannot be put in one order".to_owned()),
    };
    Ok(PlannedEndpoint { declared: Arc::clone(endpoint), sql: query.to_string(), schema, varies })
}

/// Plans the query to its end, over tables without rows: not every fault is told before.
async fn rehearse(session: &SessionContext, endpoint: &Endpoint, plan: &LogicalPlan) -> Result<()> {
    let value = |parameter: &Parameter| match parameter.absent() {
        Some(Ok(value)) => Ok(value),
        _ => ScalarValue::try_from(&parameter.kind.data_type()),
    };
    let values = endpoint.parameters.iter().map(value).collect::<Result<Vec<_>>>()?;
    let plan = match values.is_empty() {
        true => plan.clone(),
        false => plan.clone().with_param_values(ParamValues::from(values))?,
    };
    let plan = unbound::bound(&plan, |scan| Ok(RecordBatch::new_empty(scan.source.schema())))?;
    session.state().create_physical_plan(&plan).await.map(drop)
}

/// The plan of `query` for parameters of the declared types, with its columns.
async fn typed(
    session: &SessionContext,
    endpoint: &Endpoint,
    query: &Query,
) -> Result<(SchemaRef, LogicalPlan), Fault> {
    let declared = Declared { file: &endpoint.file, line: endpoint.line, query };
    let fault = |error| declared.fault(&error);
    let plan = session.state().statement_to_plan(declared.statement()).await.map_err(fault)?;
    let plan = with_types(plan, endpoint).map_err(fault)?;
    // Types are checked here, and again in each query.
    let checked = Analyzer::new().execute_and_check(plan.clone(), &ConfigOptions::default(), |_, _| {});
    let checked = checked.map_err(fault)?;
    Ok((Arc::clone(checked.schema().inner()), plan))
}

/// The parameters of `plan` get their declared types, whatever the planner thought of them.
fn with_types(plan: LogicalPlan, endpoint: &Endpoint) -> Result<LogicalPlan> {
    let declared: BTreeMap<String, DataType> = endpoint
        .parameters
        .iter()
        .enumerate()
        .map(|(index, parameter)| (format!("${}", index + 1), parameter.kind.data_type()))
        .collect();
    let typed = plan.transform_up_with_subqueries(|plan| {
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let typed = expr.transform_up(|expr| match expr {
                Expr::Placeholder(Placeholder { id, .. }) if declared.contains_key(&id) => {
                    let field = declared.get(&id).map(|known| Arc::new(Field::new(&id, known.clone(), true)));
                    Ok(Transformed::yes(Expr::Placeholder(Placeholder { id, field })))
                }
                other => Ok(Transformed::no(other)),
            })?;
            Ok(typed.update_data(|expr| name.restore(expr)))
        })?
        .map_data(LogicalPlan::recompute_schema)
    })?;
    Ok(typed.data)
}

fn limited(query: &Query) -> Limited {
    match query.limit_clause.is_some() || query.fetch.is_some() {
        true => Limited::AsAWhole,
        false => Limited::Not,
    }
}

/// Whether the order of the rows is the same each time.
enum Order {
    Whole,
    Open,
}

/// Rows that ORDER BY holds for equal come in the order of all their columns: then LIMIT keeps the same ones each time.
fn in_whole_order(endpoint: &Endpoint, columns: &SchemaRef) -> (Box<Query>, Order) {
    let mut query = endpoint.query.clone();
    let limited = limited(&query);
    let Some(order) = query.order_by.as_mut() else {
        return match (endpoint.returns, limited) {
            (Returns::Row, Limited::Not) => (query, Order::Whole),
            _ => (query, Order::Open),
        };
    };
    let OrderByKind::Expressions(by) = &mut order.kind else { return (query, Order::Open) };
    if columns.fields().iter().any(|field| field.data_type().is_nested()) {
        return (query, Order::Open);
    }
    by.extend((1..=columns.fields().len()).map(|column| OrderByExpr {
        expr: SqlExpr::Value(Value::Number(column.to_string(), false).into()),
        options: OrderByOptions::default(),
        with_fill: None,
    }));
    (query, Order::Whole)
}
