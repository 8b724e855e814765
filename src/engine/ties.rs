//! One right answer among ties: what depends on an order is ordered by the record's coordinates last.
//!
//! `first_value(x ORDER BY at)` of two records with the same `at` would be whichever is met first, and which one
//! that is follows the cut. So the keys of every such call are continued with `_partition` and `_offset`, which no
//! two records share, and where a record gives several rows (`unnest`) with the value itself.

use std::sync::Arc;

use datafusion::common::{Column, DFSchema};
use datafusion::error::Result;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Projection};

use super::split::{follows_order, is_stream};
use crate::catalog::stream::{OFFSET, PARTITION};

/// The input of an aggregate with the coordinates of its records, and what they are called there.
#[derive(Debug, Clone)]
pub(super) struct Carried {
    pub(super) input: LogicalPlan,
    /// None when the stream has no coordinates.
    coordinates: Option<[Column; 2]>,
    /// Whether one record may give several rows.
    multiplied: bool,
    /// Projections that they were carried through.
    depth: usize,
}

/// What the coordinates are called above `depth` projections: names that no view uses, and other ones at every depth,
/// for the optimiser puts projections together.
fn carried_names(depth: usize) -> [String; 2] {
    [format!("_tie{depth}_partition"), format!("_tie{depth}_offset")]
}

impl Carried {
    /// Carries the coordinates from the stream of a row-by-row `input` up to its root, where one of `calls` wants
    /// them.
    pub(super) fn up<'a>(
        input: &LogicalPlan,
        mut calls: impl Iterator<Item = &'a AggregateFunction>,
    ) -> Result<Self> {
        let carried = if calls.any(has_ties) { carry(input)? } else { None };
        Ok(carried.unwrap_or_else(|| Self { input: input.clone(), coordinates: None, multiplied: false, depth: 0 }))
    }

    /// The call with an order that has no ties.
    pub(super) fn ordered(&self, call: &AggregateFunction) -> AggregateFunction {
        let mut ordered = call.clone();
        if let Some(coordinates) = self.coordinates.as_ref().filter(|_| has_ties(call)) {
            let columns = coordinates.iter().cloned().map(Expr::Column);
            let value = call.params.args.first().filter(|_| self.multiplied);
            let value = value.filter(|value| is_flat(value, self.input.schema())).cloned();
            for key in columns.chain(value) {
                if !call.params.order_by.iter().any(|sort| sort.expr == key) {
                    ordered.params.order_by.push(key.sort(true, false));
                }
            }
        }
        ordered
    }
}

/// Whether an order may leave open which row comes first. The keys of DISTINCT are its arguments: there values that
/// tie are one.
fn has_ties(call: &AggregateFunction) -> bool {
    follows_order(call.func.name()) && !call.params.order_by.is_empty() && !call.params.distinct
}

fn is_flat(value: &Expr, schema: &DFSchema) -> bool {
    value.get_type(schema).is_ok_and(|data_type| !data_type.is_nested())
}

fn carry(plan: &LogicalPlan) -> Result<Option<Carried>> {
    match plan {
        LogicalPlan::TableScan(scan) if is_stream(&scan.table_name) => {
            let column = |name: &str| {
                let found = scan.projected_schema.field_with_qualified_name(&scan.table_name, name);
                found.ok().map(|_| Column::new(Some(scan.table_name.clone()), name))
            };
            Ok(column(PARTITION).zip(column(OFFSET)).map(|(partition, offset)| Carried {
                input: plan.clone(),
                coordinates: Some([partition, offset]),
                multiplied: false,
                depth: 0,
            }))
        }
        LogicalPlan::Projection(projection) => {
            let Some(below) = carry(&projection.input)? else { return Ok(None) };
            let Some(columns) = below.coordinates else { return Ok(None) };
            let (depth, names) = (below.depth + 1, carried_names(below.depth + 1));
            let mut exprs = projection.expr.clone();
            exprs.extend(columns.into_iter().zip(&names).map(|(column, name)| Expr::Column(column).alias(name)));
            let projected = Projection::try_new(exprs, Arc::new(below.input))?;
            Ok(Some(Carried {
                input: LogicalPlan::Projection(projected),
                coordinates: Some(names.map(Column::new_unqualified)),
                multiplied: below.multiplied,
                depth,
            }))
        }
        LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Unnest(_) | LogicalPlan::Join(_) => {
            through(plan)
        }
        _ => Ok(None),
    }
}

/// Through a node that keeps the columns of the input that has the stream.
fn through(plan: &LogicalPlan) -> Result<Option<Carried>> {
    let mut inputs: Vec<LogicalPlan> = plan.inputs().into_iter().cloned().collect();
    let mut found = None;
    for input in &mut inputs {
        if let Some(below) = carry(input)? {
            *input = below.input;
            found = below.coordinates.map(|coordinates| (coordinates, below.multiplied, below.depth));
            break;
        }
    }
    let Some((coordinates, multiplied, depth)) = found else { return Ok(None) };
    let input = plan.with_new_exprs(plan.expressions(), inputs)?;
    let coordinates = match plan {
        LogicalPlan::SubqueryAlias(alias) => {
            coordinates.map(|column| Column::new(Some(alias.alias.clone()), column.name))
        }
        _ => coordinates,
    };
    let multiplied = multiplied || matches!(plan, LogicalPlan::Unnest(_) | LogicalPlan::Join(_));
    Ok(Some(Carried { input, coordinates: Some(coordinates), multiplied, depth }))
}
