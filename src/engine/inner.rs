//! One aggregate function call of a view, torn from the plan it was written in, and its state as one column.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StructArray, new_null_array};
use datafusion::arrow::compute::{SortOptions, and, cast, is_not_null, prep_null_mask_filter};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::common::{DFSchema, ScalarValue, internal_datafusion_err, internal_err};
use datafusion::error::Result;
use datafusion::logical_expr::expr::{AggregateFunction, NullTreatment};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Accumulator, AggregateUDF, Expr, ExprSchemable, GroupsAccumulator};
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
            let options = SortOptions { descending: !sort.asc, nulls_first: sort.nulls_first };
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
            // As of `sum`, which is kept in a wider type than it is given in.
            [only] if only.data_type().is_numeric() && return_field.data_type().is_numeric() => Layout::Plain,
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

    pub(super) fn state_type(&self) -> DataType {
        match (self.layout, self.state_fields.as_slice()) {
            (Layout::Plain, [only]) => only.data_type().clone(),
            _ => DataType::Struct(Fields::from(self.state_fields.clone())),
        }
    }

    pub(super) fn state_nullable(&self) -> bool {
        match self.layout {
            Layout::Plain => self.state_fields.iter().any(|field| field.is_nullable()),
            Layout::Struct => false,
        }
    }

    pub(super) fn function(&self) -> &Arc<AggregateUDF> {
        &self.function
    }

    /// The same call by a variant of its function.
    pub(super) fn by(&self, function: AggregateUDF) -> Self {
        Self { function: Arc::new(function), ..self.clone() }
    }

    pub(super) fn is_distinct(&self) -> bool {
        self.is_distinct
    }

    pub(super) fn return_field(&self) -> &FieldRef {
        &self.return_field
    }

    pub(super) fn state_fields(&self) -> &[FieldRef] {
        &self.state_fields
    }

    pub(super) fn accumulator(&self) -> Result<Box<dyn Accumulator>> {
        self.function.accumulator(self.accumulator_args())
    }

    pub(super) fn has_groups(&self) -> bool {
        self.function.groups_accumulator_supported(self.accumulator_args())
    }

    pub(super) fn groups(&self) -> Result<Box<dyn GroupsAccumulator>> {
        self.function.create_groups_accumulator(self.accumulator_args())
    }

    /// One row of nulls, with the columns an accumulator is given: arguments, then sort keys.
    pub(super) fn null_row(&self) -> Result<Vec<ArrayRef>> {
        let mut row: Vec<ArrayRef> =
            self.arg_fields.iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        for sort in &self.order_bys {
            row.push(new_null_array(&sort.expr.data_type(&self.slots)?, 1));
        }
        Ok(row)
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
        let state = self.accumulator()?.state()?;
        let arrays = state.iter().map(ScalarValue::to_array).collect::<Result<Vec<_>>>()?;
        let unpacked = self.unpack(&self.pack(arrays)?)?;
        let mut merged = self.accumulator()?;
        merged.merge_batch(&unpacked)?;
        merged.evaluate()?;
        Ok(())
    }

    pub(super) fn pack(&self, states: Vec<ArrayRef>) -> Result<ArrayRef> {
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

    pub(super) fn unpack(&self, packed: &ArrayRef) -> Result<Vec<ArrayRef>> {
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
    pub(super) fn present(&self, packed: &ArrayRef, wanted: Option<&BooleanArray>) -> Result<Option<BooleanArray>> {
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

fn without_nulls(mask: &BooleanArray) -> BooleanArray {
    if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() }
}
