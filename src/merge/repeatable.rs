//! Whether a query answers the same bytes whenever it is asked of the same snapshot: then the snapshot's name can stand for
//! the answer.
//!
//! What is known to do so is listed; everything else is taken not to. Views are exact however their records are cut, so that
//! what is left is time, chance, floats (whose last digits follow the order of adding), and rows without an order.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan, Volatility, WindowFunctionDefinition};

use super::catalog::Names;
use super::system::tells_of_the_present;
use crate::catalog::qualified;
use crate::engine::DEFAULT_SCHEMA;

/// Aggregates that do not depend on the order of rows.
const AGGREGATES: [&str; 8] = ["count", "sum", "avg", "min", "max", "bool_and", "bool_or", "approx_distinct"];

/// Whether the answer is cut, after it was put in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limited {
    AsAWhole,
    Not,
}

/// Why two answers may differ; none when they are equal. The rows of `plan` are taken to be in an order that leaves
/// nothing open; `optimized` is the same plan, which reads no column that it does not use.
pub(super) fn why_not(
    state: &SessionState,
    plan: &LogicalPlan,
    optimized: &LogicalPlan,
    limits: Limited,
    names: &Names,
) -> Option<String> {
    let below = match plan {
        LogicalPlan::Limit(limit) if limits == Limited::AsAWhole => limit.input.as_ref(),
        plan => plan,
    };
    let why = each(below, node);
    why.or_else(|| each(optimized, scan)).or_else(|| each_view(state, optimized, names))
}

fn each(plan: &LogicalPlan, why: impl Fn(&LogicalPlan) -> Option<String>) -> Option<String> {
    let mut found = None;
    let looked = plan.apply_with_subqueries(|node| {
        found = why(node);
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    match looked {
        Ok(_) => found,
        Err(error) => Some(error.strip_backtrace()),
    }
}

fn node(node: &LogicalPlan) -> Option<String> {
    let known = matches!(
        node,
        LogicalPlan::Projection(_)
            | LogicalPlan::Filter(_)
            | LogicalPlan::Aggregate(_)
            | LogicalPlan::Window(_)
            | LogicalPlan::Sort(_)
            | LogicalPlan::Join(_)
            | LogicalPlan::Repartition(_)
            | LogicalPlan::Union(_)
            | LogicalPlan::TableScan(_)
            | LogicalPlan::EmptyRelation(_)
            | LogicalPlan::Subquery(_)
            | LogicalPlan::SubqueryAlias(_)
            | LogicalPlan::Values(_)
            | LogicalPlan::Unnest(_)
            | LogicalPlan::Distinct(Distinct::All(_))
    );
    if !known {
        return Some(format!("{} may choose other rows each time", node.display()));
    }
    // A window shows the columns of its input, too.
    let made = match node {
        LogicalPlan::Aggregate(_) => Some(0),
        LogicalPlan::Window(window) => Some(window.input.schema().fields().len()),
        _ => None,
    };
    if made.is_some_and(|first| node.schema().fields().iter().skip(first).any(|f| f.data_type().is_floating())) {
        return Some("it aggregates to or by floats".to_owned());
    }
    node.expressions().iter().find_map(|expr| {
        let mut found = None;
        let looked = expr.apply(|expr| {
            found = call(expr);
            Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        });
        match looked {
            Ok(_) => found,
            Err(error) => Some(error.strip_backtrace()),
        }
    })
}

fn call(expr: &Expr) -> Option<String> {
    let (name, fine) = match expr {
        Expr::ScalarFunction(call) => (call.name(), call.func.signature().volatility == Volatility::Immutable),
        Expr::AggregateFunction(call) => (call.func.name(), AGGREGATES.contains(&call.func.name())),
        Expr::WindowFunction(call) => {
            let name = call.fun.name();
            let aggregate = matches!(call.fun, WindowFunctionDefinition::AggregateUDF(_));
            return match aggregate && AGGREGATES.contains(&name) && call.params.order_by.is_empty() {
                true => None,
                false => Some(format!("{name} may depend on the order of rows")),
            };
        }
        _ => return None,
    };
    (!fine).then(|| format!("{name} may give another value each time"))
}

/// Tables that tell of the present, and columns of views that may be sums of floats.
fn scan(node: &LogicalPlan) -> Option<String> {
    let LogicalPlan::TableScan(scan) = node else { return None };
    let (schema, table) = (scan.table_name.schema().unwrap_or(DEFAULT_SCHEMA), scan.table_name.table());
    let columns = || scan.projected_schema.fields().iter();
    match schema {
        "system" if tells_of_the_present(table, columns().map(|field| field.name().as_str())) => {
            Some(format!("system.{table} tells of the present"))
        }
        "audit" => Some(format!("audit.{table} tells of the present")),
        "public" | "batch" | "speed" => {
            let float = columns().find(|field| field.data_type().is_floating())?;
            Some(format!("{} of {table} is a float", float.name()))
        }
        _ => None,
    }
}

/// The same of the ordinary views that are read, which are tables to the plan.
fn each_view(state: &SessionState, optimized: &LogicalPlan, names: &Names) -> Option<String> {
    each(optimized, |node| {
        let LogicalPlan::TableScan(scan) = node else { return None };
        let schema = scan.table_name.schema().unwrap_or(DEFAULT_SCHEMA);
        let view = names.ordinary.get(&qualified(schema, scan.table_name.table()))?;
        match state.optimize(view.plan()) {
            Ok(optimized) => each(view.plan(), self::node)
                .or_else(|| each(&optimized, self::scan))
                .or_else(|| each_view(state, &optimized, names))
                .map(|why| format!("view {}: {why}", scan.table_name.table())),
            Err(error) => Some(error.strip_backtrace()),
        }
    })
}
