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

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StructArray, new_null_array};
use datafusion::arrow::compute::{and, cast, filter, interleave, is_not_null, prep_null_mask_filter};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::common::{DFSchema, ScalarValue, internal_datafusion_err, internal_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{AggregateFunction, NullTreatment};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, Expr, ExprSchemable, GroupsAccumulator, Signature,
    Volatility,
};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::aggregate::utils::ordering_fields;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};

/// One call of an aggregate function in a view, with all that its accumulators need to know.
///
/// States outlive the plan they were made in, so nothing here refers to that plan: arguments are constants or
/// numbered slots, which makes the state type the same in every plan. Equality covers every field, else the
/// optimiser would take two different aggregates over the same column for one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Inner {
    function: Arc<AggregateUDF>,
    slots: SchemaRef,
    args: Vec<Arc<dyn PhysicalExpr>>,
    arg_fields: Vec<FieldRef>,
    order_bys: Vec<PhysicalSortExpr>,
    ignore_nulls: bool,
    is_distinct: bool,
    return_field: FieldRef,
    state_fields: Vec<FieldRef>,
    layout: Layout,
}

/// How the state fields of a function become one column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Layout {
    /// The state is the value so far, as of `count` or `max`: stored as it is.
    Plain,
    /// Anything else: a struct of the state fields.
    Struct,
}

impl Inner {
    /// Bakes in one call over rows of `input`, and tries out that its state can be made, merged and finished.
    pub(super) fn try_new(call: &AggregateFunction, input: &DFSchema) -> Result<Self> {
        let params = &call.params;
        let mut slots = Slots::default();
        let mut args = Vec::with_capacity(params.args.len());
        let mut arg_fields = Vec::with_capacity(params.args.len());
        for arg in &params.args {
            let field = arg.to_field(input)?.1;
            args.push(match constant(arg, &field, input) {
                Some(value) => Arc::new(Literal::new(value)),
                None => slots.column(arg, &field),
            });
            arg_fields.push(field);
        }
        let mut order_bys = Vec::with_capacity(params.order_by.len());
        let mut order_types = Vec::with_capacity(params.order_by.len());
        for sort in &params.order_by {
            let field = sort.expr.to_field(input)?.1;
            order_types.push(field.data_type().clone());
            let options =
                datafusion::arrow::compute::SortOptions { descending: !sort.asc, nulls_first: sort.nulls_first };
            order_bys.push(PhysicalSortExpr { expr: slots.column(&sort.expr, &field), options });
        }
        let return_field = call.func.return_field(&arg_fields)?;
        let state_fields = call.func.state_fields(StateFieldsArgs {
            name: "",
            input_fields: &arg_fields,
            return_field: Arc::clone(&return_field),
            ordering_fields: &ordering_fields(&order_bys, &order_types),
            is_distinct: params.distinct,
        })?;
        let layout = match state_fields.as_slice() {
            [only] if only.data_type() == return_field.data_type() => Layout::Plain,
            _ => Layout::Struct,
        };
        let inner = Self {
            function: Arc::clone(&call.func),
            slots: slots.schema(),
            args,
            arg_fields,
            order_bys,
            ignore_nulls: params.null_treatment == Some(NullTreatment::IgnoreNulls),
            is_distinct: params.distinct,
            return_field,
            state_fields: named_apart(&state_fields),
            layout,
        };
        inner.rehearse()?;
        Ok(inner)
    }

    /// The column of a stored state.
    pub(super) fn state_field(&self, name: &str) -> Field {
        Field::new(name, self.state_type(), self.state_nullable())
    }

    /// True when a reader without this engine can make nothing of the state.
    pub(super) fn is_opaque(&self) -> bool {
        self.layout == Layout::Struct
    }

    fn state_type(&self) -> DataType {
        match (self.layout, self.state_fields.as_slice()) {
            (Layout::Plain, [only]) => only.data_type().clone(),
            _ => DataType::Struct(Fields::from(self.state_fields.clone())),
        }
    }

    fn state_nullable(&self) -> bool {
        match self.layout {
            Layout::Plain => self.state_fields.iter().any(|field| field.is_nullable()),
            Layout::Struct => false,
        }
    }

    fn accumulator_args(&self) -> AccumulatorArgs<'_> {
        AccumulatorArgs {
            return_field: Arc::clone(&self.return_field),
            schema: &self.slots,
            ignore_nulls: self.ignore_nulls,
            order_bys: &self.order_bys,
            is_reversed: false,
            name: self.function.name(),
            is_distinct: self.is_distinct,
            exprs: &self.args,
            expr_fields: &self.arg_fields,
        }
    }

    /// Makes an empty state, merges it and finishes it, so that a function that cannot do so is refused when the
    /// view is defined and not when its first batch is read.
    fn rehearse(&self) -> Result<()> {
        let state = self.function.accumulator(self.accumulator_args())?.state()?;
        let arrays = state.iter().map(ScalarValue::to_array).collect::<Result<Vec<_>>>()?;
        let unpacked = self.unpack(&self.pack(arrays)?)?;
        let mut merged = self.function.accumulator(self.accumulator_args())?;
        merged.merge_batch(&unpacked)?;
        merged.evaluate()?;
        Ok(())
    }

    fn pack(&self, states: Vec<ArrayRef>) -> Result<ArrayRef> {
        if states.len() != self.state_fields.len() {
            return internal_err!(
                "{} gave {} state columns and had declared {}",
                self.function.name(),
                states.len(),
                self.state_fields.len()
            );
        }
        let mut columns = Vec::with_capacity(states.len());
        for (state, field) in states.into_iter().zip(&self.state_fields) {
            columns.push(match state.data_type() == field.data_type() {
                true => state,
                false => cast(&state, field.data_type())?,
            });
        }
        match self.layout {
            Layout::Plain => columns.pop().ok_or_else(|| internal_datafusion_err!("a plain state has one column")),
            Layout::Struct => {
                Ok(Arc::new(StructArray::try_new(Fields::from(self.state_fields.clone()), columns, None)?))
            }
        }
    }

    fn unpack(&self, packed: &ArrayRef) -> Result<Vec<ArrayRef>> {
        match self.layout {
            Layout::Plain => Ok(vec![Arc::clone(packed)]),
            Layout::Struct => match packed.as_struct_opt() {
                Some(packed) if packed.num_columns() == self.state_fields.len() => Ok(packed.columns().to_vec()),
                _ => internal_err!(
                    "a state of {} is stored as {}, expected {}",
                    self.function.name(),
                    packed.data_type(),
                    self.state_type()
                ),
            },
        }
    }

    /// Which rows hold a state; none means all. A null where no state is ever null stands for a missing row (as
    /// of an outer join), and accumulators are not made for it: `count` would panic.
    fn present(&self, packed: &ArrayRef, wanted: Option<&BooleanArray>) -> Result<Option<BooleanArray>> {
        let held = match packed.null_count() > 0 && !self.state_nullable() {
            true => Some(is_not_null(packed)?),
            false => None,
        };
        Ok(match (held, wanted.map(without_nulls)) {
            (None, wanted) => wanted,
            (held, None) => held,
            (Some(held), Some(wanted)) => Some(and(&held, &wanted)?),
        })
    }
}

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
        let distinct = if inner.is_distinct { "-Distinct" } else { "" };
        let suffix = match kind {
            Kind::State => "State",
            Kind::Combine => "Combine",
            Kind::Merge => "Merge",
        };
        Arc::new(AggregateUDF::new_from_impl(Self {
            kind,
            name: format!("{}{distinct}-{suffix}", inner.function.name()),
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
            Kind::Merge => self.inner.return_field.data_type().clone(),
        })
    }

    fn return_field(&self, _: &[FieldRef]) -> Result<FieldRef> {
        Ok(match self.kind {
            Kind::State | Kind::Combine => Arc::new(self.inner.state_field(&self.name)),
            Kind::Merge => Arc::clone(&self.inner.return_field),
        })
    }

    fn is_nullable(&self) -> bool {
        match self.kind {
            Kind::State | Kind::Combine => self.inner.state_nullable(),
            Kind::Merge => self.inner.return_field.is_nullable(),
        }
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        match self.kind {
            Kind::State | Kind::Combine => ScalarValue::try_from(data_type),
            Kind::Merge => self.inner.function.default_value(data_type),
        }
    }

    fn accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let accumulator = self.inner.function.accumulator(self.inner.accumulator_args())?;
        Ok(Box::new(Row { kind: self.kind, inner: Arc::clone(&self.inner), accumulator }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let named = |field: &FieldRef| {
            Arc::new(field.as_ref().clone().with_name(format!("{}[{}]", args.name, field.name())))
        };
        Ok(self.inner.state_fields.iter().map(named).collect())
    }

    fn groups_accumulator_supported(&self, _: AccumulatorArgs) -> bool {
        self.inner.function.groups_accumulator_supported(self.inner.accumulator_args())
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let groups = self.inner.function.create_groups_accumulator(self.inner.accumulator_args())?;
        Ok(Box::new(Groups { kind: self.kind, inner: Arc::clone(&self.inner), groups }))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        match self.kind {
            Kind::State => self.inner.function.order_sensitivity(),
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
        let function = self.inner.function.as_ref().clone().with_beneficial_ordering(beneficial_ordering)?;
        Ok(function.map(|function| {
            let inner = Inner { function: Arc::new(function), ..self.inner.as_ref().clone() };
            let combinator: Arc<dyn AggregateUDFImpl> =
                Arc::new(Self { inner: Arc::new(inner), ..self.as_ref().clone() });
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
        let order_fields = self.inner.order_bys.iter().map(|sort| sort.expr.return_field(&self.inner.slots));
        let mut nothing = Vec::new();
        for field in self.inner.arg_fields.iter().cloned().map(Ok).chain(order_fields) {
            nothing.push(new_null_array(field?.data_type(), 1));
        }
        let empty = self.states_of_rows(&nothing, Some(&BooleanArray::from(vec![false])))?;
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
        let mut fresh = self.inner.function.create_groups_accumulator(self.inner.accumulator_args())?;
        fresh.update_batch(values, &each, wanted, rows)?;
        fresh.state(EmitTo::All)
    }
}

/// Numbers the arguments and sort keys that are not constant. Equal expressions share a slot, since functions
/// compare them: `array_agg(DISTINCT x ORDER BY x)` asks that its key is its argument.
#[derive(Debug, Default)]
struct Slots {
    exprs: Vec<Expr>,
    fields: Vec<FieldRef>,
}

impl Slots {
    fn column(&mut self, expr: &Expr, field: &FieldRef) -> Arc<dyn PhysicalExpr> {
        let slot = self.exprs.iter().position(|seen| seen == expr).unwrap_or_else(|| {
            self.exprs.push(expr.clone());
            self.fields.push(Arc::new(field.as_ref().clone().with_name(slot_name(self.fields.len()))));
            self.exprs.len() - 1
        });
        Arc::new(Column::new(&slot_name(slot), slot))
    }

    fn schema(self) -> SchemaRef {
        Arc::new(Schema::new(self.fields))
    }
}

fn slot_name(slot: usize) -> String {
    format!("input{slot}")
}

fn constant(expr: &Expr, field: &Field, input: &DFSchema) -> Option<ScalarValue> {
    if !expr.column_refs().is_empty() {
        return None;
    }
    let context = SimplifyContext::builder().with_schema(Arc::new(input.clone())).build();
    match ExprSimplifier::new(context).simplify(expr.clone()).ok()?.unalias() {
        Expr::Literal(value, _) if value.data_type() == *field.data_type() => Some(value),
        _ => None,
    }
}

/// DataFusion calls a state field `name[part]`; only the part is stored, and parts of one state are told apart.
fn named_apart(fields: &[FieldRef]) -> Vec<FieldRef> {
    let mut named: Vec<FieldRef> = Vec::with_capacity(fields.len());
    for field in fields {
        let part = match field.name().split_once('[') {
            Some((_, part)) => part.strip_suffix(']').unwrap_or(part).replace(' ', "_"),
            None => field.name().clone(),
        };
        let mut name = part.clone();
        let mut number = 2;
        while named.iter().any(|seen| seen.name() == &name) {
            name = format!("{part}_{number}");
            number += 1;
        }
        named.push(Arc::new(field.as_ref().clone().with_name(name)));
    }
    named
}

fn only(values: &[ArrayRef]) -> Result<&ArrayRef> {
    values.first().ok_or_else(|| internal_datafusion_err!("a merge takes one column of states"))
}

fn without_nulls(mask: &BooleanArray) -> BooleanArray {
    if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() }
}
