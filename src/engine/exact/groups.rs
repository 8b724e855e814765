//! Sums and counts of all groups at once, in columns.

use std::marker::PhantomData;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, Float64Array, PrimitiveArray, UInt64Array,
};
use datafusion::arrow::buffer::{BooleanBuffer, NullBuffer};
use datafusion::arrow::datatypes::{ArrowNativeTypeOp, DataType, Decimal128Type, UInt64Type};
use datafusion::common::internal_datafusion_err;
use datafusion::error::Result;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};

use super::{Digits, Narrow, Widen, added, given, primitive};

/// Sums of `I`, kept as `S`, given as `R`.
#[derive(Debug)]
pub(super) struct SumGroups<I, S: ArrowPrimitiveType, R> {
    sums: Vec<S::Native>,
    /// Groups with a value that is not null.
    seen: Vec<bool>,
    state_type: DataType,
    return_type: DataType,
    types: PhantomData<fn(I) -> R>,
}

impl<I, S: ArrowPrimitiveType, R> SumGroups<I, S, R> {
    pub(super) fn new(state_type: DataType, return_type: DataType) -> Self {
        Self { sums: Vec::new(), seen: Vec::new(), state_type, return_type, types: PhantomData }
    }

    fn add<T: ArrowPrimitiveType>(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        wanted: Option<&BooleanArray>,
        count: usize,
    ) -> Result<()>
    where
        T::Native: Widen<S::Native>,
    {
        self.sums.resize(count, S::Native::ZERO);
        self.seen.resize(count, false);
        each(primitive::<T>(values)?, groups, wanted, |group, value| {
            let (Some(sum), Some(seen)) = (self.sums.get_mut(group), self.seen.get_mut(group)) else {
                return Err(internal_datafusion_err!("group {group} of {count}"));
            };
            *sum = added(*sum, value.widen())?;
            *seen = true;
            Ok(())
        })
    }

    fn take(&mut self, emit_to: EmitTo) -> (Vec<S::Native>, NullBuffer) {
        let seen = emit_to.take_needed(&mut self.seen);
        (emit_to.take_needed(&mut self.sums), NullBuffer::new(BooleanBuffer::from(seen)))
    }
}

impl<I, S, R> GroupsAccumulator for SumGroups<I, S, R>
where
    I: ArrowPrimitiveType,
    S: Digits + Send,
    R: Digits,
    I::Native: Widen<S::Native>,
    S::Native: Widen<S::Native> + Narrow<S::Native> + Narrow<R::Native>,
{
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        wanted: Option<&BooleanArray>,
        count: usize,
    ) -> Result<()> {
        self.add::<I>(values, groups, wanted, count)
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.add::<S>(values, groups, None, count)
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (sums, seen) = self.take(emit_to);
        emitted::<S, R>(sums, seen, &self.return_type)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, seen) = self.take(emit_to);
        Ok(vec![emitted::<S, S>(sums, seen, &self.state_type)?])
    }

    fn convert_to_state(&self, values: &[ArrayRef], wanted: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = primitive::<I>(values)?;
        let widened: PrimitiveArray<S> = (0..values.len())
            .map(|row| (values.is_valid(row) && is_wanted(wanted, row)).then(|| values.value(row).widen()))
            .collect();
        Ok(vec![Arc::new(widened.with_data_type(self.state_type.clone()))])
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.sums.capacity() * size_of::<S::Native>() + self.seen.capacity()
    }
}

/// Means of integers: their number and their sum.
#[derive(Debug)]
pub(super) struct AvgGroups<I> {
    sums: Vec<i128>,
    counts: Vec<u64>,
    state_type: DataType,
    types: PhantomData<fn(I)>,
}

impl<I> AvgGroups<I> {
    pub(super) fn new(state_type: DataType) -> Self {
        Self { sums: Vec::new(), counts: Vec::new(), state_type, types: PhantomData }
    }

    fn grow(&mut self, count: usize) {
        self.sums.resize(count, 0);
        self.counts.resize(count, 0);
    }
}

impl<I> GroupsAccumulator for AvgGroups<I>
where
    I: ArrowPrimitiveType,
    I::Native: Widen<i128>,
{
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        wanted: Option<&BooleanArray>,
        count: usize,
    ) -> Result<()> {
        self.grow(count);
        each(primitive::<I>(values)?, groups, wanted, |group, value| {
            let (Some(sum), Some(number)) = (self.sums.get_mut(group), self.counts.get_mut(group)) else {
                return Err(internal_datafusion_err!("group {group} of {count}"));
            };
            *sum = added(*sum, value.widen())?;
            *number += 1;
            Ok(())
        })
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.grow(count);
        let (numbers, sums) = (primitive::<UInt64Type>(states)?, states.get(1..).unwrap_or_default());
        each(primitive::<Decimal128Type>(sums)?, groups, None, |group, value| {
            self.sums.get_mut(group).map_or_else(
                || Err(internal_datafusion_err!("group {group} of {count}")),
                |sum| added(*sum, value).map(|total| *sum = total),
            )
        })?;
        each(numbers, groups, None, |group, value| {
            self.counts.get_mut(group).map_or_else(
                || Err(internal_datafusion_err!("group {group} of {count}")),
                |number| added(*number, value).map(|total| *number = total),
            )
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let sums = emit_to.take_needed(&mut self.sums);
        let counts = emit_to.take_needed(&mut self.counts);
        let means: Float64Array = sums.into_iter().zip(counts).map(|(sum, count)| mean(sum, count)).collect();
        Ok(Arc::new(means))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let counts = emit_to.take_needed(&mut self.counts);
        let seen = NullBuffer::new(counts.iter().map(|count| *count > 0).collect());
        let sums =
            emitted::<Decimal128Type, Decimal128Type>(emit_to.take_needed(&mut self.sums), seen, &self.state_type)?;
        Ok(vec![Arc::new(UInt64Array::from(counts)), sums])
    }

    fn convert_to_state(&self, values: &[ArrayRef], wanted: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = primitive::<I>(values)?;
        let held = |row: &usize| values.is_valid(*row) && is_wanted(wanted, *row);
        let counts: UInt64Array = (0..values.len()).map(|row| Some(u64::from(held(&row)))).collect();
        let sums: PrimitiveArray<Decimal128Type> =
            (0..values.len()).map(|row| held(&row).then(|| values.value(row).widen())).collect();
        Ok(vec![Arc::new(counts), Arc::new(sums.with_data_type(self.state_type.clone()))])
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.sums.capacity() * size_of::<i128>() + self.counts.capacity() * size_of::<u64>()
    }
}

/// One division of two exact numbers: the same for every order and cut of the rows.
#[expect(clippy::cast_precision_loss, reason = "a mean is a float")]
pub(super) fn mean(sum: i128, count: u64) -> Option<f64> {
    (count > 0).then(|| sum as f64 / count as f64)
}

fn is_wanted(wanted: Option<&BooleanArray>, row: usize) -> bool {
    wanted.is_none_or(|wanted| wanted.is_valid(row) && wanted.value(row))
}

/// Calls `add` with the group and the value of each row that is wanted and not null.
fn each<T: ArrowPrimitiveType>(
    values: &PrimitiveArray<T>,
    groups: &[usize],
    wanted: Option<&BooleanArray>,
    mut add: impl FnMut(usize, T::Native) -> Result<()>,
) -> Result<()> {
    if values.null_count() == 0 && wanted.is_none() {
        return values.values().iter().zip(groups).try_for_each(|(value, group)| add(*group, *value));
    }
    for (row, (value, group)) in values.iter().zip(groups).enumerate() {
        if let Some(value) = value.filter(|_| is_wanted(wanted, row)) {
            add(*group, value)?;
        }
    }
    Ok(())
}

fn emitted<S: ArrowPrimitiveType, R: Digits>(
    sums: Vec<S::Native>,
    seen: NullBuffer,
    data_type: &DataType,
) -> Result<ArrayRef>
where
    S::Native: Narrow<R::Native>,
{
    let values = sums.into_iter().map(|sum| given::<S, R>(sum, data_type)).collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(PrimitiveArray::<R>::new(values.into(), Some(seen)).with_data_type(data_type.clone())))
}
