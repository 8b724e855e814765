//! Sums and counts of all groups at once, in columns.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, Float64Array, PrimitiveArray, UInt64Array,
};
use datafusion::arrow::buffer::{BooleanBuffer, NullBuffer};
use datafusion::arrow::datatypes::{ArrowNativeTypeOp, DataType, Decimal128Type, UInt64Type};
use datafusion::common::internal_datafusion_err;
use datafusion::error::{DataFusionError, Result};
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
        let failed = each(primitive::<T>(values)?, groups, wanted, |group, value| {
            let (sum, seen) = (self.sums.get_mut(group)?, self.seen.get_mut(group)?);
            *sum = sum.add_checked(value.widen()).ok()?;
            *seen = true;
            Some(())
        });
        failed.map_or(Ok(()), |(group, value)| Err(not_added(self.sums.get(group).copied(), value.widen())))
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
    /// Both of a group side by side, for a row needs both.
    parts: Vec<(i128, u64)>,
    state_type: DataType,
    types: PhantomData<fn(I)>,
}

impl<I> AvgGroups<I> {
    pub(super) fn new(state_type: DataType) -> Self {
        Self { parts: Vec::new(), state_type, types: PhantomData }
    }

    fn add(&mut self, group: usize, sum: i128, count: u64) -> Option<()> {
        let (old_sum, old_count) = self.parts.get_mut(group)?;
        (*old_sum, *old_count) = (old_sum.checked_add(sum)?, old_count.checked_add(count)?);
        Some(())
    }

    fn not_added(&self, group: usize, sum: i128) -> DataFusionError {
        not_added(self.parts.get(group).map(|(sum, _)| *sum), sum)
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
        self.parts.resize(count, (0, 0));
        let failed =
            each(primitive::<I>(values)?, groups, wanted, |group, value| self.add(group, value.widen(), 1));
        failed.map_or(Ok(()), |(group, value)| Err(self.not_added(group, value.widen())))
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], count: usize) -> Result<()> {
        self.parts.resize(count, (0, 0));
        let (numbers, sums) = (primitive::<UInt64Type>(states)?, states.get(1..).unwrap_or_default());
        let failed = each(primitive::<Decimal128Type>(sums)?, groups, None, |group, sum| self.add(group, sum, 0));
        if let Some((group, sum)) = failed {
            return Err(self.not_added(group, sum));
        }
        let failed = each(numbers, groups, None, |group, number| self.add(group, 0, number));
        failed.map_or(Ok(()), |(group, number)| Err(self.not_added(group, number.into())))
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let parts = emit_to.take_needed(&mut self.parts);
        let means: Float64Array = parts.into_iter().map(|(sum, count)| mean(sum, count)).collect();
        Ok(Arc::new(means))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, counts): (Vec<i128>, Vec<u64>) = emit_to.take_needed(&mut self.parts).into_iter().unzip();
        let seen = NullBuffer::new(counts.iter().map(|count| *count > 0).collect());
        let sums = emitted::<Decimal128Type, Decimal128Type>(sums, seen, &self.state_type)?;
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
        size_of_val(self) + self.parts.capacity() * size_of::<(i128, u64)>()
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

/// Calls `add` with the group and the value of each row that is wanted and not null, until it says None; then returns
/// them. An error would cost each row more than its addition.
fn each<T: ArrowPrimitiveType>(
    values: &PrimitiveArray<T>,
    groups: &[usize],
    wanted: Option<&BooleanArray>,
    mut add: impl FnMut(usize, T::Native) -> Option<()>,
) -> Option<(usize, T::Native)> {
    let wanted = wanted.map(|wanted| match wanted.nulls() {
        None => wanted.values().clone(),
        Some(nulls) => wanted.values() & nulls.inner(),
    });
    let held = match (values.nulls(), wanted) {
        (Some(nulls), Some(wanted)) => Some(nulls.inner() & &wanted),
        (nulls, wanted) => nulls.map(|nulls| nulls.inner().clone()).or(wanted),
    };
    let mut add_all = |rows: Range<usize>| {
        let values = values.values().get(rows.clone()).unwrap_or_default();
        let mut rows = groups.get(rows).unwrap_or_default().iter().zip(values);
        rows.find(|(group, value)| add(**group, **value).is_none()).map(|(group, value)| (*group, *value))
    };
    match held {
        None => add_all(0..values.len()),
        Some(held) => held.set_slices().find_map(|(from, to)| add_all(from..to)),
    }
}

/// Why `value` could not be added to the sum of its group.
#[cold]
fn not_added<N: ArrowNativeTypeOp>(sum: Option<N>, value: N) -> DataFusionError {
    match sum.map(|sum| added(sum, value)) {
        Some(Err(error)) => error,
        _ => internal_datafusion_err!("a row of a group that is not there, or one row too many"),
    }
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
