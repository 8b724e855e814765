//! What a view that money is paid by must not have: floats and approximations.
//!
//! Every expression of the view is looked at, from the stream up. What a float or an approximate aggregate takes part
//! in is followed to the columns of the view, so that the refusal can name them; where it decides which rows count
//! (WHERE, HAVING, a join), that is named instead.

use std::collections::HashMap;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan};

/// Something that is not exact.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inexact {
    /// "column viewers", "condition".
    pub(super) what: String,
    /// "approximate (approx_distinct)", "a float".
    pub(super) why: String,
}

/// The columns of a node that are not exact, and why.
type Tainted = HashMap<Column, String>;

/// The first thing in `query` that is not exact.
pub(super) fn inexact(query: &LogicalPlan) -> Option<Inexact> {
    let tainted = match tainted(query) {
        Ok(tainted) => tainted,
        Err(condition) => return Some(condition),
    };
    query.schema().iter().zip(query.schema().columns()).find_map(|((_, field), column)| {
        let why = match field.data_type().is_floating() {
            true => Some("a float".to_owned()),
            false => tainted.get(&column).cloned(),
        };
        why.map(|why| Inexact { what: format!("column {}", field.name()), why })
    })
}

fn tainted(plan: &LogicalPlan) -> Result<Tainted, Inexact> {
    let mut below = Tainted::new();
    let mut schema = DFSchema::empty();
    for input in plan.inputs() {
        below.extend(tainted(input)?);
        // Names are told apart by their tables, as the planner has seen to.
        schema = schema.join(input.schema()).unwrap_or(schema);
    }
    let named = |exprs: &[Expr]| {
        let columns = plan.schema().columns().into_iter().zip(exprs);
        columns.filter_map(|(column, expr)| Some((column, why(expr, &below, &schema)?))).collect()
    };
    match plan {
        LogicalPlan::Projection(projection) => Ok(named(&projection.expr)),
        LogicalPlan::Aggregate(aggregate) => {
            Ok(named(&[aggregate.group_expr.clone(), aggregate.aggr_expr.clone()].concat()))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let requalified =
                |(column, why): (Column, String)| (Column::new(Some(alias.alias.clone()), column.name), why);
            Ok(below.into_iter().map(requalified).collect())
        }
        _ => match plan.expressions().iter().find_map(|expr| why(expr, &below, &schema)) {
            Some(why) if !matches!(plan, LogicalPlan::Unnest(_)) => Err(Inexact { what: "condition".into(), why }),
            _ => Ok(below),
        },
    }
}

/// Why `expr` is not exact; none when it is.
fn why(expr: &Expr, below: &Tainted, schema: &DFSchema) -> Option<String> {
    let mut found = None;
    let looked = expr.apply(|expr| {
        found = match expr {
            Expr::AggregateFunction(call) if call.func.name().starts_with("approx_") => {
                Some(format!("approximate ({})", call.func.name()))
            }
            Expr::Column(column) => below.get(column).cloned(),
            _ => None,
        };
        if found.is_none() && expr.get_type(schema).is_ok_and(|data_type| data_type.is_floating()) {
            found = Some("computed from a float".to_owned());
        }
        Ok(if found.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    looked.expect("the closure has no error");
    found
}
