//! `approx_percentile_cont` and `approx_median` by a sketch whose answer does not follow the cut.
//!
//! DataFusion's t-digest merges centroids as they come, so the same records give other answers when they are cut
//! otherwise. Here values are counted in fixed buckets, as in HdrHistogram (Tene) and DDSketch (Masson et al., VLDB
//! 2019): merging adds counts, so any cut and any order give the same state, byte for byte. A bucket is the sign, the
//! exponent and the first eight bits of the mantissa of a float: no logarithm, so no platform differs.
//!
//! | value | answer |
//! |---|---|
//! | whole numbers up to 512 | exact |
//! | other values | less than 0.4% nearer to zero |
//! | values between -1e-9 and 1e-9 | 0 |
//! | the least and the greatest | exact |
//!
//! Memory is 12 bytes a bucket in use: 256 buckets for each power of two that the values span.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int32Array, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int32Type, UInt64Type};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{ScalarValue, internal_datafusion_err, plan_err};
use datafusion::error::Result;
use datafusion::functions_aggregate::approx_percentile_cont::ApproxPercentileCont;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, TypeSignature, Volatility};
use datafusion::physical_expr::expressions::Literal;

/// Bits of a float's mantissa that are not looked at: 52 less the eight that tell buckets apart.
const DROPPED_BITS: u32 = 44;
/// Magnitudes below are counted as zero.
const LEAST: f64 = 1e-9;
/// The bucket of what is not a number, after all numbers.
const NOT_A_NUMBER: i32 = i32::MAX;

/// What takes the place of DataFusion's functions of the same names.
pub(super) fn functions() -> Vec<Arc<AggregateUDF>> {
    let cont = ApproxPercentileCont::new().signature().clone();
    let median = Signature::coercible(first_coercion(&cont), Volatility::Immutable);
    [("approx_percentile_cont", cont, Of::Argument), ("approx_median", median, Of::Median)]
        .map(|(name, signature, of)| Arc::new(AggregateUDF::new_from_impl(Quantile { name, signature, of })))
        .into()
}

/// The coercion of the values: any number as a float.
fn first_coercion(signature: &Signature) -> Vec<datafusion::logical_expr::Coercion> {
    match &signature.type_signature {
        TypeSignature::OneOf(forms) => match forms.first() {
            Some(TypeSignature::Coercible(arguments)) => arguments.iter().take(1).cloned().collect(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Which quantile a function gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Of {
    /// The one its second argument says.
    Argument,
    Median,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Quantile {
    name: &'static str,
    signature: Signature,
    of: Of,
}

impl Quantile {
    fn wanted(&self, args: &AccumulatorArgs) -> Result<f64> {
        if self.of == Of::Median {
            return Ok(0.5);
        }
        let literal = args.exprs.get(1).and_then(|expr| expr.downcast_ref::<Literal>());
        let wanted = match literal.map(Literal::value) {
            Some(ScalarValue::Float64(Some(wanted))) if (0.0..=1.0).contains(wanted) => *wanted,
            _ => return plan_err!("{} takes a constant between 0 and 1 as its percentile", self.name),
        };
        let descending = args.order_bys.first().is_some_and(|sort| sort.options.descending);
        Ok(if descending { 1.0 - wanted } else { wanted })
    }
}

impl AggregateUDFImpl for Quantile {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        if arg_types.len() > 2 {
            return plan_err!("{} takes no number of centroids: its sketch is within 0.4% always", self.name);
        }
        Ok(DataType::Float64)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return plan_err!("{} does not take DISTINCT: use percentile_cont or median", self.name);
        }
        Ok(Box::new(Sketch { wanted: self.wanted(&args)?, ..Sketch::default() }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let list = |name: &str, item: DataType| {
            Field::new_list(format_state_name(args.name, name), Field::new_list_field(item, true), false)
        };
        Ok(vec![
            Arc::new(list("buckets", DataType::Int32)),
            Arc::new(list("counts", DataType::UInt64)),
            Arc::new(Field::new(format_state_name(args.name, "least"), DataType::Float64, true)),
            Arc::new(Field::new(format_state_name(args.name, "greatest"), DataType::Float64, true)),
        ])
    }

    fn supports_within_group_clause(&self) -> bool {
        self.of == Of::Argument
    }

    /// The order says which end is counted from, not in which order rows must come.
    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// How many values fell into each bucket.
#[derive(Debug, Default)]
struct Sketch {
    wanted: f64,
    counts: BTreeMap<i32, u64>,
    least: Option<f64>,
    greatest: Option<f64>,
}

/// Buckets are ordered as their values are.
fn bucket(value: f64) -> i32 {
    if value.is_nan() {
        return NOT_A_NUMBER;
    }
    if value.abs() < LEAST {
        return 0;
    }
    // 20 bits are left of 64.
    let magnitude = i32::try_from(value.abs().to_bits() >> DROPPED_BITS).unwrap_or(NOT_A_NUMBER - 1);
    if value < 0.0 { -magnitude } else { magnitude }
}

/// The value in a bucket that is nearest to zero.
fn value_of(bucket: i32) -> f64 {
    if bucket == NOT_A_NUMBER {
        return f64::NAN;
    }
    let magnitude = f64::from_bits(u64::from(bucket.unsigned_abs()) << DROPPED_BITS);
    if bucket < 0 { -magnitude } else { magnitude }
}

impl Sketch {
    fn bounds(&mut self, least: Option<f64>, greatest: Option<f64>) {
        let (mine, other) = (self.least.or(least), least.or(self.least));
        self.least = mine.zip(other).map(|(a, b)| if b.total_cmp(&a).is_lt() { b } else { a });
        let (mine, other) = (self.greatest.or(greatest), greatest.or(self.greatest));
        self.greatest = mine.zip(other).map(|(a, b)| if b.total_cmp(&a).is_gt() { b } else { a });
    }

    /// The value at a rank, from 0, of `total` values.
    fn at(&self, rank: u64, total: u64) -> Option<f64> {
        let (least, greatest) = (self.least?, self.greatest?);
        if rank == 0 {
            return Some(least);
        }
        if rank + 1 >= total {
            return Some(greatest);
        }
        let mut below = 0;
        let found = self.counts.iter().find(|(_, count)| {
            below += **count;
            below > rank
        });
        found.map(|(bucket, _)| value_of(*bucket).clamp(least, greatest))
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "ranks are whole, not negative, and below the number of values"
    )]
    fn quantile(&self) -> Option<f64> {
        let total: u64 = self.counts.values().sum();
        let rank = self.wanted * (total.checked_sub(1)?) as f64;
        let (low, part) = (rank.floor(), rank.fract());
        let from = self.at(low as u64, total)?;
        if part == 0.0 {
            return Some(from);
        }
        let to = self.at(low as u64 + 1, total)?;
        Some(from + (to - from) * part)
    }
}

impl Accumulator for Sketch {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let column = values.first().ok_or_else(|| internal_datafusion_err!("a quantile of no column"))?;
        let column = datafusion::arrow::compute::cast(column, &DataType::Float64)?;
        for value in column.as_primitive::<Float64Type>().iter().flatten() {
            *self.counts.entry(bucket(value)).or_default() += 1;
            self.bounds(Some(value), Some(value));
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let [buckets, counts, least, greatest] = states else {
            return Err(internal_datafusion_err!("a sketch has four columns, not {}", states.len()));
        };
        let (buckets, counts) = (buckets.as_list::<i32>(), counts.as_list::<i32>());
        let (least, greatest) = (least.as_primitive::<Float64Type>(), greatest.as_primitive::<Float64Type>());
        for (row, (buckets, counts)) in buckets.iter().zip(counts.iter()).enumerate() {
            let (Some(buckets), Some(counts)) = (buckets, counts) else { continue };
            let pairs = buckets.as_primitive::<Int32Type>().iter().zip(counts.as_primitive::<UInt64Type>());
            for (bucket, count) in pairs {
                let (Some(bucket), Some(count)) = (bucket, count) else { continue };
                *self.counts.entry(bucket).or_default() += count;
            }
            let held =
                |column: &datafusion::arrow::array::Float64Array| column.is_valid(row).then(|| column.value(row));
            self.bounds(held(least), held(greatest));
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let list = |values: ArrayRef| SingleRowListArrayBuilder::new(values).build_list_scalar();
        Ok(vec![
            list(Arc::new(self.counts.keys().copied().collect::<Int32Array>())),
            list(Arc::new(self.counts.values().copied().collect::<UInt64Array>())),
            ScalarValue::Float64(self.least),
            ScalarValue::Float64(self.greatest),
        ])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(self.quantile()))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.counts.len() * 16
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use datafusion::arrow::array::Float64Array;

    use super::*;

    fn sketch(values: impl IntoIterator<Item = f64>, wanted: f64) -> Sketch {
        let mut sketch = Sketch { wanted, ..Sketch::default() };
        let values: ArrayRef = Arc::new(Float64Array::from_iter_values(values));
        sketch.update_batch(&[values]).unwrap();
        sketch
    }

    #[test]
    fn buckets_keep_the_order_and_are_narrow() {
        let mut last = i32::MIN;
        for value in [-1e300, -5.5, -5.4, -1e-3, 0.0, 1e-12, 1e-3, 0.5, 1.0, 5.4, 5.5, 1e300, f64::INFINITY] {
            let (found, shown) = (bucket(value), value_of(bucket(value)));
            assert!(found >= last, "{value}");
            assert!(
                value.abs() < LEAST || (value - shown).abs() <= value.abs() / 256.0 || shown == value,
                "{value}"
            );
            last = found;
        }
        for whole in 0..=512_i32 {
            assert_eq!(value_of(bucket(f64::from(whole))), f64::from(whole));
        }
    }

    #[test]
    fn quantiles_are_within_the_promise() {
        let values: Vec<f64> = (1..=10_000_u32).map(|n| f64::from(n) * 3.7).collect();
        for wanted in [0.0, 0.1, 0.5, 0.95, 0.999, 1.0] {
            let found = sketch(values.iter().copied(), wanted).quantile().unwrap();
            let exact = 3.7 + wanted * 9_999.0 * 3.7;
            assert!((found - exact).abs() <= exact * 0.0045, "{wanted}: {found} for {exact}");
        }
        assert_eq!(sketch([1.0, 2.0, 3.0, 4.0], 0.5).quantile(), Some(2.5));
        assert_eq!(sketch([], 0.5).quantile(), None);
    }

    #[test]
    fn any_cut_gives_the_same_state() {
        let values: Vec<f64> = (0..1_000_u32).map(|n| f64::from(n * 7_919 % 5_003) - 900.5).collect();
        let whole = sketch(values.iter().copied(), 0.5).state().unwrap();
        for cut in [0, 1, 333, 999] {
            let mut merged = Sketch { wanted: 0.5, ..Sketch::default() };
            for piece in [&values[cut..], &values[..cut]] {
                let state = sketch(piece.iter().copied(), 0.5).state().unwrap();
                let arrays: Vec<ArrayRef> = state.iter().map(|value| value.to_array().unwrap()).collect();
                merged.merge_batch(&arrays).unwrap();
            }
            assert_eq!(merged.state().unwrap(), whole, "cut at {cut}");
        }
    }
}
