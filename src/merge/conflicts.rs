//! Records that came with the key of another one, and with another content: the first that was archived counts, and
//! these are what somebody has to look at.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::{Column, JoinType, Result, TableReference};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, Operator, binary_expr};

use super::provider::PlanTable;
use crate::catalog::stream::{EXTRA, OFFSET, PARTITION, Stream};

/// Tables of such records: `raw.<stream>` with this ending.
pub(super) const CONFLICTS: &str = "_conflicts";

/// Coordinates of the record that counts: their name there, here, and their type.
const COUNTED: [(&str, &str, DataType); 2] =
    [(PARTITION, "_counted_partition", DataType::Int32), (OFFSET, "_counted_offset", DataType::Int64)];

/// The columns of [`conflicts`] where those of the records are `columns`.
pub(super) fn with_counted(columns: &SchemaRef) -> SchemaRef {
    let counted = COUNTED.map(|(_, name, data_type)| Field::new(name, data_type, true));
    let fields = columns.fields().iter().map(|field| field.as_ref().clone());
    Arc::new(Schema::new(fields.chain(counted).collect::<Vec<_>>()))
}

/// Of `duplicates` those that differ from the one of `events` with the same key in what the producer wrote; with the
/// coordinates of that one as `_counted_partition` and `_counted_offset`. None when the stream has no key.
pub(super) fn conflicts(
    stream: &Stream,
    events: Arc<dyn TableProvider>,
    duplicates: Arc<dyn TableProvider>,
) -> Result<Option<Arc<dyn TableProvider>>> {
    let Some(key) = stream.key.and_then(|key| stream.columns.get(key)) else { return Ok(None) };
    let (late, counted) = (TableReference::bare("late"), TableReference::bare("counted"));
    let of = |table: &TableReference, name: &str| Column::new(Some(table.clone()), name);
    let mut kept: Vec<Expr> =
        duplicates.schema().fields().iter().map(|field| Expr::Column(of(&late, field.name()))).collect();
    kept.extend(COUNTED.map(|(name, shown, _)| Expr::Column(of(&counted, name)).alias(shown)));
    let written = stream.columns.iter().map(|column| column.name.as_str()).chain([EXTRA]);
    let differs = written
        .filter(|name| *name != key.name)
        .map(|name| {
            let (theirs, ours) = (Expr::Column(of(&late, name)), Expr::Column(of(&counted, name)));
            binary_expr(theirs, Operator::IsDistinctFrom, ours)
        })
        .reduce(Expr::or);
    let events = LogicalPlanBuilder::scan(counted.clone(), provider_as_source(events), None)?.build()?;
    // The few are on the left, from which a hash join builds its table.
    let plan = LogicalPlanBuilder::scan(late.clone(), provider_as_source(duplicates), None)?
        .join(events, JoinType::Inner, (vec![of(&late, &key.name)], vec![of(&counted, &key.name)]), differs)?
        .project(kept)?
        .build()?;
    Ok(Some(Arc::new(PlanTable::new(plan))))
}
