//! Few keys of one view, looked up in its batch states and in its delta.

use std::sync::Arc;

use datafusion::arrow::array::{Array, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::interleave_record_batch;
use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, ParamValues, ScalarValue, plan_err};
use datafusion::error::Result;
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::expr::{InList, Placeholder};
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{BinaryExpr, Cast, Expr, Operator};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::runs::{Found, Points};
use super::{Half, StatesOf};
use crate::engine::keys::key_hashes;
use crate::engine::merger::Merger;
use crate::merge::snapshot::Snapshot;

/// Rows of states that are looked at here; more are left to the general path, which runs elsewhere and can be stopped.
const ROWS_MAX: usize = 4096;

/// States of one group that are merged where they lie; more are brought together first.
const PIECES_MAX: usize = 8;

/// What is looked up in one view.
pub(super) struct Lookup {
    pub(super) points: Arc<Points>,
    pub(super) of: StatesOf,
    pub(super) merger: Arc<Merger>,
    /// What the key is compared with.
    keys: Vec<Expr>,
    key_type: DataType,
    /// Whether one key is asked for, and nothing else of it: its states are then found by its value.
    by_value: bool,
}

impl Lookup {
    /// Of the keys that `wanted` names; None when they cannot be found by hash.
    pub(super) fn of(points: &Arc<Points>, of: StatesOf, merger: Arc<Merger>, wanted: Wanted) -> Option<Self> {
        let key_type = of.view.state_schema().field(0).data_type().clone();
        let Wanted { keys, by_value } = wanted;
        hashes_as_it_compares(&key_type).then(|| Self {
            points: Arc::clone(points),
            of,
            merger,
            keys,
            key_type,
            by_value,
        })
    }

    pub(super) fn keys(&self) -> &[Expr] {
        &self.keys
    }

    /// Schema and name of the table that is read.
    pub(super) fn table(&self) -> (&'static str, &str) {
        let schema = match self.of.half {
            Half::Both => "public",
            Half::Batch => "batch",
            Half::Speed => "speed",
        };
        (schema, &self.of.called)
    }

    /// Whether `snapshot` has the view by the definition that the lookup was made for.
    pub(super) fn is_of(&self, snapshot: &Snapshot) -> bool {
        snapshot.names.view(&self.of.called).is_some_and(|(instance, input)| {
            *instance == self.of.instance && Arc::ptr_eq(&input.view, &self.of.view)
        })
    }

    /// The rows of the view with these keys, perhaps among others if there are several; None when they are not at hand, or
    /// made of too many.
    pub(super) fn rows(&self, snapshot: &Snapshot, values: &Values<'_>) -> Result<Option<RecordBatch>> {
        let Some(keys) = self.wanted(values)? else { return Ok(None) };
        let Some(found) = self.found(snapshot, &keys_hashed(&keys)?)? else { return Ok(None) };
        match keys.as_slice() {
            [key] if self.by_value => self.merged(&found.of(key)?).map(Some),
            _ => self.merged(&found).map(Some),
        }
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

/// The keys that a condition asks for.
pub(super) struct Wanted {
    pub(super) keys: Vec<Expr>,
    pub(super) by_value: bool,
}

impl Wanted {
    /// What one of the `parts` of a condition says about the key of the view that `merger` finishes; None when none says
    /// which keys there may be.
    pub(super) fn among(parts: &[&Expr], schema: &DFSchema, merger: &Merger) -> Option<Self> {
        let is_key = |expr: &Expr| leads(expr, schema, merger);
        let keys = parts.iter().find_map(|part| wanted(part, &is_key))?;
        let by_value = matches!(parts, [Expr::BinaryExpr(BinaryExpr { op: Operator::Eq, .. })]);
        Some(Self { keys, by_value })
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

pub(super) fn planned(expr: &Expr, schema: &DFSchema) -> Result<Arc<dyn PhysicalExpr>> {
    create_physical_expr(expr, schema, &ExecutionProps::new(), &PhysicalPlanningContext::default())
}

/// The values of parameters.
pub(super) struct Values<'a>(pub(super) Option<&'a ParamValues>);

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

    pub(super) fn put_into(&self, expr: &Expr) -> Result<Expr> {
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
