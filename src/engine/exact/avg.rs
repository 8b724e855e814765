//! `avg`.

use std::marker::PhantomData;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, ArrowPrimitiveType, Decimal128Array};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::error::Result;
use datafusion::functions_aggregate::average::Avg as Floating;
use datafusion::functions_aggregate::sum::Sum as Wrapping;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, GroupsAccumulator, ReversedUDAF, Signature, Volatility,
};

use super::groups::{AvgGroups, mean};
use super::sum::{Distinct, argument, summed_type};
use super::{DIGITS_MAX, Widen, added, primitive};

/// `avg`: of integers the exact sum, divided once.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Avg {
    signature: Signature,
    /// For what is not an integer.
    floating: Floating,
}

impl Avg {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable), floating: Floating::new() }
    }
}

fn sum_type() -> DataType {
    DataType::Decimal128(DIGITS_MAX, 0)
}

impl AggregateUDFImpl for Avg {
    fn name(&self) -> &str {
        "avg"
    }

    fn aliases(&self) -> &[String] {
        self.floating.aliases()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        Ok(vec![match summed_type(self.name(), arg_types)? {
            DataType::Int32 => DataType::Int64,
            other => other,
        }])
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.floating.return_type(arg_types)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match (argument(&args)?, args.is_distinct) {
            (DataType::Int64, false) => Ok(Box::new(Row::<Int64Type>::new())),
            (DataType::UInt64, false) => Ok(Box::new(Row::<UInt64Type>::new())),
            (DataType::Int64 | DataType::UInt64, true) => {
                let collected = argument(&args)?.clone();
                let return_field = Arc::new(Field::new(args.name, collected.clone(), true));
                let values = Wrapping::new().accumulator(AccumulatorArgs { return_field, ..args })?;
                let return_type = collected.clone();
                Ok(Box::new(DistinctMean(Distinct { values, collected, return_type })))
            }
            _ => self.floating.accumulator(args),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        match args.input_fields.first().map(|field| field.data_type()) {
            Some(DataType::Int64 | DataType::UInt64) if !args.is_distinct => Ok(vec![
                Arc::new(Field::new(format_state_name(args.name, "count"), DataType::UInt64, false)),
                Arc::new(Field::new(format_state_name(args.name, "sum"), sum_type(), true)),
            ]),
            Some(values @ (DataType::Int64 | DataType::UInt64)) => {
                let values = Field::new_list_field(values.clone(), true);
                Ok(vec![Arc::new(Field::new_list(format_state_name(args.name, "avg distinct"), values, false))])
            }
            _ => self.floating.state_fields(args),
        }
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.floating.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        match argument(&args)? {
            DataType::Int64 => Ok(Box::new(AvgGroups::<Int64Type>::new(sum_type()))),
            DataType::UInt64 => Ok(Box::new(AvgGroups::<UInt64Type>::new(sum_type()))),
            _ => self.floating.create_groups_accumulator(args),
        }
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match argument(&args)? {
            DataType::Int64 | DataType::UInt64 => self.accumulator(args),
            _ => self.floating.create_sliding_accumulator(args),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// The mean of one group.
#[derive(Debug)]
struct Row<I> {
    sum: i128,
    count: u64,
    types: PhantomData<fn(I)>,
}

impl<I> Row<I> {
    fn new() -> Self {
        Self { sum: 0, count: 0, types: PhantomData }
    }
}

impl<I> Accumulator for Row<I>
where
    I: ArrowPrimitiveType + std::fmt::Debug,
    I::Native: Widen<i128>,
{
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in primitive::<I>(values)?.iter().flatten() {
            self.sum = added(self.sum, value.widen())?;
            self.count += 1;
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let counts = primitive::<UInt64Type>(states)?;
        let sums = primitive::<Decimal128Type>(states.get(1..).unwrap_or_default())?;
        for (count, sum) in counts.iter().zip(sums.iter()) {
            self.count = added(self.count, count.unwrap_or_default())?;
            self.sum = added(self.sum, sum.unwrap_or_default())?;
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in primitive::<I>(values)?.iter().flatten() {
            self.sum -= value.widen();
            self.count = self.count.saturating_sub(1);
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let sum = (self.count > 0).then_some(self.sum);
        Ok(vec![ScalarValue::UInt64(Some(self.count)), ScalarValue::Decimal128(sum, DIGITS_MAX, 0)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(mean(self.sum, self.count)))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// The mean of the different values of one group.
#[derive(Debug)]
struct DistinctMean(Distinct);

impl Accumulator for DistinctMean {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update_batch(values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.merge_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.0.state()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let values = cast(&self.0.collected()?, &sum_type())?;
        let values: &Decimal128Array = primitive::<Decimal128Type>(std::slice::from_ref(&values))?;
        let sum = values.iter().flatten().try_fold(0, added)?;
        Ok(ScalarValue::Float64(mean(sum, (values.len() - values.null_count()) as u64)))
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}
