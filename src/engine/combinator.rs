//! `-State`, `-Combine` and `-Merge`: an aggregate function cut at the point between its two phases.
//!
//! After ClickHouse's combinators of the same names. Nothing is aggregated here: DataFusion's own accumulators do
//! the work, row by row or for all groups at once, and only what goes in and what comes out differs:
//!
//! | combinator | takes | gives |
//! |---|---|---|
//! | `X-State(args)` | rows | state |
//! | `X-Combine(state)` | states | state |
//! | `X-Merge(state)` | states | value |

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray};
use datafusion::arrow::compute::{cast, filter, interleave};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{ScalarValue, internal_datafusion_err};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};

use crate::engine::inner::Inner;

/// The three ways to call an [`Inner`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    State,
    Combine,
    Merge,
}

/// An [`Inner`] as a function that a plan can call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Combinator {
    kind: Kind,
    inner: Arc<Inner>,
    name: String,
    signature: Signature,
}

impl Combinator {
    pub(super) fn udaf(kind: Kind, inner: &Arc<Inner>) -> Arc<AggregateUDF> {
        // DISTINCT is baked in and not said to the optimiser, which would rewrite it to two aggregates; so the
        // name says it, else two columns of one plan could have the same name.
        let distinct = if inner.is_distinct() { "-Distinct" } else { "" };
        let suffix = match kind {
            Kind::State => "State",
            Kind::Combine => "Combine",
            Kind::Merge => "Merge",
        };
        Arc::new(AggregateUDF::new_from_impl(Self {
            kind,
            name: format!("{}{distinct}-{suffix}", inner.function().name()),
            inner: Arc::clone(inner),
            signature: Signature::user_defined(Volatility::Immutable),
        }))
    }
}

impl AggregateUDFImpl for Combinator {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(arg_types.to_vec())
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::State | Kind::Combine => self.inner.state_type(),
            Kind::Merge => self.inner.return_field().data_type().clone(),
        })
    }

    fn return_field(&self, _: &[FieldRef]) -> Result<FieldRef> {
        Ok(match self.kind {
            Kind::State | Kind::Combine => Arc::new(self.inner.state_field(&self.name)),
            Kind::Merge => Arc::clone(self.inner.return_field()),
        })
    }

    fn is_nullable(&self) -> bool {
        match self.kind {
            Kind::State | Kind::Combine => self.inner.state_nullable(),
            Kind::Merge => self.inner.return_field().is_nullable(),
        }
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        match self.kind {
            Kind::State | Kind::Combine => ScalarValue::try_from(data_type),
            Kind::Merge => self.inner.function().default_value(data_type),
        }
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let accumulator = self.inner.accumulator()?;
        Ok(Box::new(Row { kind: self.kind, inner: Arc::clone(&self.inner), accumulator }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let named = |field: &FieldRef| {
            Arc::new(field.as_ref().clone().with_name(format!("{}[{}]", args.name, field.name())))
        };
        Ok(self.inner.state_fields().iter().map(named).collect())
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        self.inner.has_groups()
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let groups = self.inner.groups()?;
        Ok(Box::new(Groups { kind: self.kind, inner: Arc::clone(&self.inner), groups }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        match self.kind {
            Kind::State => self.inner.function().order_sensitivity(),
            // A state carries its own order.
            Kind::Combine | Kind::Merge => AggregateOrderSensitivity::Insensitive,
        }
    }

    fn with_beneficial_ordering(
        self: Arc<Self>,
        beneficial_ordering: bool,
    ) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        if self.kind != Kind::State {
            return Ok(None);
        }
        let function = self.inner.function().as_ref().clone().with_beneficial_ordering(beneficial_ordering)?;
        Ok(function.map(|function| {
            let inner = Arc::new(self.inner.by(function));
            let combinator: Arc<dyn AggregateUDFImpl> = Arc::new(Self { inner, ..self.as_ref().clone() });
            combinator
        }))
    }
}

/// One group, a row at a time.
#[derive(Debug)]
struct Row {
    kind: Kind,
    inner: Arc<Inner>,
    accumulator: Box<dyn Accumulator>,
}

impl Accumulator for Row {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        if self.kind == Kind::State {
            return self.accumulator.update_batch(values);
        }
        let packed = only(values)?;
        let packed = match self.inner.present(packed, None)? {
            None => Arc::clone(packed),
            Some(present) => filter(packed, &present)?,
        };
        self.accumulator.merge_batch(&self.inner.unpack(&packed)?)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.accumulator.merge_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.accumulator.state()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.kind == Kind::Merge {
            return self.accumulator.evaluate();
        }
        let state = self.accumulator.state()?;
        let arrays = state.iter().map(ScalarValue::to_array).collect::<Result<Vec<_>>>()?;
        ScalarValue::try_from_array(&self.inner.pack(arrays)?, 0)
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.accumulator.size()
    }
}

/// All groups at once, in columns.
struct Groups {
    kind: Kind,
    inner: Arc<Inner>,
    groups: Box<dyn GroupsAccumulator>,
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        if self.kind == Kind::State {
            return self.groups.update_batch(values, group_indices, opt_filter, total_num_groups);
        }
        let packed = only(values)?;
        let Some(present) = self.inner.present(packed, opt_filter)? else {
            return self.groups.merge_batch(&self.inner.unpack(packed)?, group_indices, total_num_groups);
        };
        let kept: Vec<usize> =
            group_indices.iter().zip(present.values()).filter_map(|(group, kept)| kept.then_some(*group)).collect();
        let states = self.inner.unpack(&filter(packed, &present)?)?;
        self.groups.merge_batch(&states, &kept, total_num_groups)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        match self.kind {
            Kind::State | Kind::Combine => self.inner.pack(self.groups.state(emit_to)?),
            Kind::Merge => self.groups.evaluate(emit_to),
        }
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.groups.state(emit_to)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], total_num_groups: usize) -> Result<()> {
        self.groups.merge_batch(values, group_indices, total_num_groups)
    }

    fn convert_to_state(&self, values: &[ArrayRef], opt_filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        if self.kind == Kind::State {
            return match values {
                [_] => self.groups.convert_to_state(values, opt_filter),
                // Of several columns functions take the wrong ones here: percentile_cont of DataFusion 55 panics.
                _ => self.states_of_rows(values, opt_filter),
            };
        }
        let packed = only(values)?;
        let states = self.inner.unpack(packed)?;
        let Some(present) = self.inner.present(packed, opt_filter)? else {
            return Ok(states);
        };
        // A row without a state is the state of no row at all, which only the function itself can say.
        let empty = self.states_of_rows(&self.inner.null_row()?, Some(&BooleanArray::from(vec![false])))?;
        let picks: Vec<(usize, usize)> =
            present.values().iter().enumerate().map(|(row, held)| if held { (0, row) } else { (1, 0) }).collect();
        let chosen = states.iter().zip(&empty).map(|(state, empty)| {
            let empty = match empty.data_type() == state.data_type() {
                true => Arc::clone(empty),
                false => cast(empty, state.data_type())?,
            };
            Ok(interleave(&[state.as_ref(), empty.as_ref()], &picks)?)
        });
        chosen.collect()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.groups.size()
    }
}

impl Groups {
    /// Each row as a group of its own.
    fn states_of_rows(&self, values: &[ArrayRef], wanted: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |column| column.len());
        let each: Vec<usize> = (0..rows).collect();
        let mut fresh = self.inner.groups()?;
        fresh.update_batch(values, &each, wanted, rows)?;
        fresh.state(EmitTo::All)
    }
}

fn only(values: &[ArrayRef]) -> Result<&ArrayRef> {
    values.first().ok_or_else(|| internal_datafusion_err!("a merge takes one column of states"))
}
