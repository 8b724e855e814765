//! `sum`.

use std::marker::PhantomData;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, ArrowPrimitiveType};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{
    ArrowNativeTypeOp, DataType, Decimal128Type, Decimal256Type, Field, FieldRef, Int32Type, Int64Type, UInt64Type,
};
use datafusion::common::{ScalarValue, internal_datafusion_err, not_impl_err, plan_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::sum::Sum as Wrapping;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, GroupsAccumulator, ReversedUDAF, Signature, Volatility,
};

use super::groups::SumGroups;
use super::{Digits, Held, Narrow, Widen, added, collected_type, given, primitive, typed};

/// `sum`, exact or an error.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Sum {
    signature: Signature,
    /// For what is not ours.
    wrapping: Wrapping,
}

impl Sum {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable), wrapping: Wrapping::new() }
    }
}

/// The type a number is summed as.
pub(super) fn summed_type(function: &str, arg_types: &[DataType]) -> Result<DataType> {
    let [argument] = arg_types else {
        return plan_err!("{function} takes one argument, but {} are given", arg_types.len());
    };
    Ok(match argument {
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 | DataType::Int64 | DataType::Null => DataType::Int64,
        DataType::UInt64 => DataType::UInt64,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => DataType::Float64,
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            DataType::Decimal128(*precision, *scale)
        }
        DataType::Decimal128(..) | DataType::Decimal256(..) | DataType::Duration(_) | DataType::Interval(_) => {
            argument.clone()
        }
        DataType::Dictionary(_, value) => summed_type(function, std::slice::from_ref(value.as_ref()))?,
        other => return plan_err!("No function matches {function}({other}): it takes a number"),
    })
}

impl AggregateUDFImpl for Sum {
    fn name(&self) -> &str {
        "sum"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(vec![summed_type(self.name(), arg_types)?])
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types {
            [DataType::Int32] => Ok(DataType::Int64),
            _ => self.wrapping.return_type(arg_types),
        }
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let held = held(&args)?;
        if args.is_distinct && held != Held::Foreign {
            return distinct(&self.wrapping, args);
        }
        typed!(held, row, self.wrapping.accumulator(args), &args)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let argument = args.input_fields.first().map(|field| field.data_type());
        match argument.and_then(Held::state_type) {
            Some(state_type) if !args.is_distinct => {
                Ok(vec![Arc::new(Field::new(format_state_name(args.name, "sum"), state_type, true))])
            }
            _ => self.wrapping.state_fields(args),
        }
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.wrapping.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        typed!(held(&args)?, all, self.wrapping.create_groups_accumulator(args), &args)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let held = held(&args)?;
        if args.is_distinct && held != Held::Foreign {
            return not_impl_err!("sum(DISTINCT ...) over a window that moves is not supported");
        }
        typed!(held, row, self.wrapping.create_sliding_accumulator(args), &args)
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

fn held(args: &AccumulatorArgs) -> Result<Held> {
    Ok(Held::of(argument(args)?))
}

pub(super) fn argument<'a>(args: &'a AccumulatorArgs) -> Result<&'a DataType> {
    let field = args.expr_fields.first();
    field.map(|field| field.data_type()).ok_or_else(|| internal_datafusion_err!("{} without argument", args.name))
}

fn state_type(args: &AccumulatorArgs) -> Result<DataType> {
    Held::state_type(argument(args)?).ok_or_else(|| internal_datafusion_err!("no exact sum of {}", args.name))
}

fn row<I, S, R>(args: &AccumulatorArgs) -> Result<Box<dyn Accumulator>>
where
    I: ArrowPrimitiveType + std::fmt::Debug,
    S: Digits,
    R: Digits,
    I::Native: Widen<S::Native>,
    S::Native: Widen<S::Native> + Narrow<S::Native> + Narrow<R::Native>,
{
    Ok(Box::new(Row::<I, S, R>::new(state_type(args)?, args.return_type().clone())))
}

fn all<I, S, R>(args: &AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>>
where
    I: ArrowPrimitiveType + std::fmt::Debug,
    S: Digits + Send,
    R: Digits,
    I::Native: Widen<S::Native>,
    S::Native: Widen<S::Native> + Narrow<S::Native> + Narrow<R::Native>,
{
    Ok(Box::new(SumGroups::<I, S, R>::new(state_type(args)?, args.return_type().clone())))
}

/// The sum of one group.
#[derive(Debug)]
pub(super) struct Row<I, S: ArrowPrimitiveType, R> {
    sum: S::Native,
    /// Values that are not null and still in the window.
    count: u64,
    state_type: DataType,
    return_type: DataType,
    types: PhantomData<fn(I) -> R>,
}

impl<I, S: ArrowPrimitiveType, R> Row<I, S, R> {
    pub(super) fn new(state_type: DataType, return_type: DataType) -> Self {
        Self { sum: S::Native::ZERO, count: 0, state_type, return_type, types: PhantomData }
    }

    fn add<T: ArrowPrimitiveType>(&mut self, values: &[ArrayRef]) -> Result<()>
    where
        T::Native: Widen<S::Native>,
    {
        for value in primitive::<T>(values)?.iter().flatten() {
            self.sum = added(self.sum, value.widen())?;
            self.count += 1;
        }
        Ok(())
    }

    fn scalar<T: Digits>(&self, data_type: &DataType) -> Result<ScalarValue>
    where
        S::Native: Narrow<T::Native>,
    {
        let value = (self.count > 0).then(|| given::<S, T>(self.sum, data_type)).transpose()?;
        ScalarValue::new_primitive::<T>(value, data_type)
    }
}

impl<I, S, R> Accumulator for Row<I, S, R>
where
    I: ArrowPrimitiveType + std::fmt::Debug,
    S: Digits,
    R: Digits,
    I::Native: Widen<S::Native>,
    S::Native: Widen<S::Native> + Narrow<S::Native> + Narrow<R::Native>,
{
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.add::<I>(values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.add::<S>(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in primitive::<I>(values)?.iter().flatten() {
            self.sum = self.sum.sub_checked(value.widen())?;
            self.count = self.count.saturating_sub(1);
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.scalar::<S>(&self.state_type)?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.scalar::<R>(&self.return_type)
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

fn distinct(wrapping: &Wrapping, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
    let collected = collected_type(argument(&args)?).clone();
    let return_type = args.return_type().clone();
    // DataFusion keeps decimals in the type of the sum.
    let collected = if collected.is_decimal() { return_type.clone() } else { collected };
    let values = wrapping.accumulator(args)?;
    Ok(Box::new(Distinct { values, collected, return_type }))
}

/// The sum of the different values of one group: DataFusion collects them, and they are added here.
#[derive(Debug)]
pub(super) struct Distinct {
    pub(super) values: Box<dyn Accumulator>,
    /// The type of the collected values.
    pub(super) collected: DataType,
    pub(super) return_type: DataType,
}

impl Distinct {
    /// The values, each once.
    pub(super) fn collected(&mut self) -> Result<ArrayRef> {
        match self.values.state()?.as_slice() {
            [ScalarValue::List(list)] if !list.is_empty() => Ok(list.value(0)),
            other => Err(internal_datafusion_err!("a list of different values is expected, not {other:?}")),
        }
    }
}

impl Accumulator for Distinct {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = values.iter().map(|column| match column.data_type() == &self.collected {
            true => Ok(Arc::clone(column)),
            false => cast(column, &self.collected),
        });
        self.values.update_batch(&values.collect::<std::result::Result<Vec<_>, _>>()?)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.values.merge_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.values.state()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let values = self.collected()?;
        let state_type = Held::state_type(values.data_type())
            .ok_or_else(|| internal_datafusion_err!("no exact sum of {}", values.data_type()))?;
        let return_type = self.return_type.clone();
        let mut sum = typed!(
            Held::of(values.data_type()),
            fresh,
            return not_impl_err!("sum(DISTINCT ...) of {}", values.data_type()),
            state_type,
            return_type
        );
        sum.update_batch(&[values])?;
        sum.evaluate()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.size()
    }
}

fn fresh<I, S, R>(state_type: DataType, return_type: DataType) -> Box<dyn Accumulator>
where
    I: ArrowPrimitiveType + std::fmt::Debug,
    S: Digits,
    R: Digits,
    I::Native: Widen<S::Native>,
    S::Native: Widen<S::Native> + Narrow<S::Native> + Narrow<R::Native>,
{
    Box::new(Row::<I, S, R>::new(state_type, return_type))
}
