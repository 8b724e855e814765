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

/// The coordinates under names that no view uses.
const CARRIED: [&str; 2] = ["_tie_partition", "_tie_offset"];

/// The input of an aggregate with the coordinates of its records, and what they are called there.
#[derive(Debug, Clone)]
pub(super) struct Carried {
    pub(super) input: LogicalPlan,
    /// None when the stream has no coordinates.
    coordinates: Option<[Column; 2]>,
    /// Whether one record may give several rows.
    multiplied: bool,
}

impl Carried {
    /// Carries the coordinates from the stream of a row-by-row `input` up to its root.
    pub(super) fn up(input: &LogicalPlan) -> Result<Self> {
        Ok(match carry(input)? {
            Some(carried) => carried,
            None => Self { input: input.clone(), coordinates: None, multiplied: false },
        })
    }

    /// The call with an order that has no ties.
    pub(super) fn ordered(&self, call: &AggregateFunction) -> Result<AggregateFunction> {
        let mut call = call.clone();
        let Some(coordinates) = &self.coordinates else { return Ok(call) };
        let follows = follows_order(call.func.name());
        let params = &mut call.params;
        // The keys of DISTINCT are its arguments: values that tie are one.
        if !follows || params.order_by.is_empty() || params.distinct {
            return Ok(call);
        }
        let columns = coordinates.iter().cloned().map(Expr::Column);
        let value = params.args.first().filter(|_| self.multiplied).cloned();
        let value = value.filter(|value| is_flat(value, self.input.schema()));
        for key in columns.chain(value) {
            if !params.order_by.iter().any(|sort| sort.expr == key) {
                params.order_by.push(key.sort(true, false));
            }
        }
        Ok(call)
    }
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
            }))
        }
        LogicalPlan::Projection(projection) => {
            let Some(below) = carry(&projection.input)? else { return Ok(None) };
            let Some(columns) = below.coordinates else { return Ok(None) };
            let mut exprs = projection.expr.clone();
            exprs.extend(columns.into_iter().zip(CARRIED).map(|(column, name)| Expr::Column(column).alias(name)));
            let projected = Projection::try_new(exprs, Arc::new(below.input))?;
            Ok(Some(Carried {
                input: LogicalPlan::Projection(projected),
                coordinates: Some(CARRIED.map(Column::new_unqualified)),
                multiplied: below.multiplied,
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
            found = below.coordinates.map(|coordinates| (coordinates, below.multiplied));
            break;
        }
    }
    let Some((coordinates, multiplied)) = found else { return Ok(None) };
    let input = plan.with_new_exprs(plan.expressions(), inputs)?;
    let coordinates = match plan {
        LogicalPlan::SubqueryAlias(alias) => {
            coordinates.map(|column| Column::new(Some(alias.alias.clone()), column.name))
        }
        _ => coordinates,
    };
    let multiplied = multiplied || matches!(plan, LogicalPlan::Unnest(_) | LogicalPlan::Join(_));
    Ok(Some(Carried { input, coordinates: Some(coordinates), multiplied }))
}
