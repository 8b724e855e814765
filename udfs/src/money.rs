//! Arithmetic of money: exact, or an error that says so (SQLSTATE 22003); never wrapped around, never a float.
//!
//! | function | gives |
//! |---|---|
//! | `money_mul(a, b)` | the exact product; its scale is the sum of both scales |
//! | `money_add(a, b)` | the exact sum; its scale is the larger one |
//! | `round_half_even(x, scale)` | `x` with `scale` digits behind the point; a half goes to the even digit |
//! | `money_allocate(total, weights)` | `total` in parts that add up to it, by largest remainder |
//!
//! Arguments are decimals or integers; any other type is refused when the query is planned. Every decimal that is given has
//! 38 digits, the most that 128 bits hold.
//!
//! Amounts are added up exactly, rounded once, and the rounded total is allocated to the lines that it is made of:
//! `money_allocate(round_half_even(sum(exact), 2), array_agg(exact ORDER BY line))`. Each part is its share rounded
//! down in the scale of the total; what is left goes to the largest remainders, a unit each, ties to the earlier line.

use std::cmp::Reverse;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, ListArray};
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::datatypes::{DataType, Decimal128Type, Field, i256};
use datafusion::arrow::error::ArrowError;
use datafusion::common::{ScalarValue, exec_err, internal_datafusion_err, plan_err};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

/// Digits of a decimal.
const DIGITS_MAX: u8 = 38;
/// Digits of a 64-bit integer.
const INTEGER_DIGITS: u8 = 20;
/// The first number with too many digits.
const LIMIT: i128 = 10_i128.pow(DIGITS_MAX as u32);

/// A decimal of `digits` of this value; the error is one of SQLSTATE 22003.
fn fits(value: Option<i128>, what: &str) -> Result<i128> {
    value.filter(|value| value.unsigned_abs() < LIMIT.unsigned_abs()).ok_or_else(|| {
        let text = format!("{what} does not fit a decimal of {DIGITS_MAX} digits");
        DataFusionError::ArrowError(Box::new(ArrowError::ArithmeticOverflow(text)), None)
    })
}

/// The decimal type that an argument is taken as.
fn decimal(function: &str, data_type: &DataType) -> Result<DataType> {
    match data_type {
        DataType::Decimal128(..) => Ok(data_type.clone()),
        DataType::Null => Ok(DataType::Decimal128(DIGITS_MAX, 0)),
        integer if integer.is_integer() => Ok(DataType::Decimal128(INTEGER_DIGITS, 0)),
        other => plan_err!("{function} takes decimals, not {other}: cast it, x::decimal(18, 9)"),
    }
}

fn scale_of(data_type: &DataType) -> Result<i8> {
    match data_type {
        DataType::Decimal128(_, scale) => Ok(*scale),
        other => Err(internal_datafusion_err!("{other} is not a decimal")),
    }
}

fn ten_to(power: u32) -> Option<i128> {
    10_i128.checked_pow(power)
}

/// Arguments as arrays of decimals of the same length.
fn columns(args: &ScalarFunctionArgs) -> Result<Vec<Decimal128Array>> {
    let decimals = |array: ArrayRef| array.as_primitive_opt::<Decimal128Type>().cloned();
    let arrays = ColumnarValue::values_to_arrays(&args.args)?;
    let taken: Option<Vec<_>> = arrays.into_iter().map(decimals).collect();
    taken.ok_or_else(|| internal_datafusion_err!("an argument is not a decimal"))
}

fn of_values(values: Vec<Option<i128>>, scale: i8) -> Result<ColumnarValue> {
    let array = Decimal128Array::from(values).with_precision_and_scale(DIGITS_MAX, scale)?;
    Ok(ColumnarValue::Array(Arc::new(array)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Operation {
    Add,
    Multiply,
}

/// `money_add` and `money_mul`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Arithmetic {
    operation: Operation,
    signature: Signature,
}

impl Arithmetic {
    pub(crate) fn add() -> Self {
        Self { operation: Operation::Add, signature: Signature::user_defined(Volatility::Immutable) }
    }

    pub(crate) fn multiply() -> Self {
        Self { operation: Operation::Multiply, signature: Signature::user_defined(Volatility::Immutable) }
    }

    /// Scale of the result.
    fn scale(&self, left: i8, right: i8) -> Result<i8> {
        match self.operation {
            Operation::Add => Ok(left.max(right)),
            Operation::Multiply => match left.checked_add(right) {
                Some(scale) if scale.unsigned_abs() <= DIGITS_MAX => Ok(scale),
                _ => plan_err!(
                    "money_mul of scales {left} and {right} needs more than {DIGITS_MAX} digits behind the point: cast one"
                ),
            },
        }
    }

    fn apply(&self, left: (i128, i8), right: (i128, i8)) -> Option<i128> {
        match self.operation {
            Operation::Multiply => left.0.checked_mul(right.0),
            Operation::Add => {
                let scale = left.1.max(right.1);
                let wide = |(value, own): (i128, i8)| {
                    let missing = u32::try_from(i32::from(scale) - i32::from(own)).ok()?;
                    if value == 0 { Some(0) } else { value.checked_mul(ten_to(missing)?) }
                };
                wide(left)?.checked_add(wide(right)?)
            }
        }
    }
}

impl ScalarUDFImpl for Arithmetic {
    fn name(&self) -> &str {
        match self.operation {
            Operation::Add => "money_add",
            Operation::Multiply => "money_mul",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [left, right] => Ok(vec![decimal(self.name(), left)?, decimal(self.name(), right)?]),
            _ => plan_err!("{} takes two decimals", self.name()),
        }
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types {
            [left, right] => Ok(DataType::Decimal128(DIGITS_MAX, self.scale(scale_of(left)?, scale_of(right)?)?)),
            _ => plan_err!("{} takes two decimals", self.name()),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns = columns(&args)?;
        let [left, right] = columns.as_slice() else { return plan_err!("{} takes two decimals", self.name()) };
        let (of_left, of_right) = (left.scale(), right.scale());
        let what = format!("a result of {}", self.name());
        let value = |(left, right): (Option<i128>, Option<i128>)| match (left, right) {
            (Some(left), Some(right)) => fits(self.apply((left, of_left), (right, of_right)), &what).map(Some),
            _ => Ok(None),
        };
        let values = left.iter().zip(right.iter()).map(value).collect::<Result<_>>()?;
        of_values(values, self.scale(of_left, of_right)?)
    }
}

/// `value / 10^digits`, a half to the even neighbour.
fn halves_to_even(value: i128, digits: u32) -> i128 {
    // Whatever is divided by so much is less than a half.
    let Some(divisor) = ten_to(digits) else { return 0 };
    let (whole, rest) = (value / divisor, (value % divisor).unsigned_abs());
    let half = divisor.unsigned_abs() / 2;
    let away = match rest.cmp(&half) {
        _ if digits == 0 => false,
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => whole % 2 != 0,
        std::cmp::Ordering::Greater => true,
    };
    if away { whole + value.signum() } else { whole }
}

/// `round_half_even(x, scale)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct RoundHalfEven {
    signature: Signature,
}

impl RoundHalfEven {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for RoundHalfEven {
    fn name(&self) -> &str {
        "round_half_even"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [value, scale] if scale.is_integer() => Ok(vec![decimal(self.name(), value)?, DataType::Int64]),
            _ => plan_err!("round_half_even takes a decimal and a number of digits: round_half_even(x, 2)"),
        }
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Err(internal_datafusion_err!("the type of round_half_even follows from its second argument"))
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<Arc<Field>> {
        let scale = match args.scalar_arguments.get(1).copied().flatten() {
            Some(ScalarValue::Int64(Some(scale))) => i8::try_from(*scale).ok(),
            _ => None,
        };
        match scale.filter(|scale| (0..=DIGITS_MAX.cast_signed()).contains(scale)) {
            Some(scale) => Ok(Arc::new(Field::new(self.name(), DataType::Decimal128(DIGITS_MAX, scale), true))),
            None => plan_err!("round_half_even takes a constant from 0 to {DIGITS_MAX} as its number of digits"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let to = scale_of(args.return_field.data_type())?;
        let value =
            args.args.first().ok_or_else(|| internal_datafusion_err!("round_half_even without argument"))?;
        let array = value.to_array(args.number_rows)?;
        let decimals = array.as_primitive_opt::<Decimal128Type>();
        let decimals = decimals.ok_or_else(|| internal_datafusion_err!("round_half_even takes a decimal"))?;
        let from = decimals.scale();
        let rounded = |value: i128| match u32::try_from(i32::from(from) - i32::from(to)) {
            Ok(digits) => Some(halves_to_even(value, digits)),
            Err(_) if value == 0 => Some(0),
            Err(_) => ten_to(u32::from(to.abs_diff(from))).and_then(|factor| value.checked_mul(factor)),
        };
        let value = |value: Option<i128>| value.map(|value| fits(rounded(value), "a rounded amount")).transpose();
        of_values(decimals.iter().map(value).collect::<Result<_>>()?, to)
    }
}

/// Parts of `total` in proportion to `weights`, which add up to it; None when all weights are 0 and the total is not.
fn allocated(total: i128, weights: &[i128]) -> Option<Vec<i128>> {
    let sum = weights.iter().fold(i256::ZERO, |sum, weight| sum.wrapping_add(i256::from_i128(*weight)));
    if sum == i256::ZERO {
        return (total == 0).then(|| vec![0; weights.len()]);
    }
    // 2^127 * 2^127 fits; so does the sum of as many weights as a list can hold.
    let (size, sign) = (i256::from_i128(total).wrapping_abs(), total.signum());
    let mut parts = Vec::with_capacity(weights.len());
    let mut remainders = Vec::with_capacity(weights.len());
    let mut left = size;
    for (line, weight) in weights.iter().enumerate() {
        let share = size.wrapping_mul(i256::from_i128(*weight));
        let (whole, remainder) = (share.checked_div(sum)?, share.checked_rem(sum)?);
        left = left.wrapping_sub(whole);
        parts.push(whole.to_i128()?);
        remainders.push((Reverse(remainder), line));
    }
    remainders.sort_unstable();
    for (_, line) in remainders.into_iter().take(left.to_i128().and_then(|left| usize::try_from(left).ok())?) {
        *parts.get_mut(line)? += 1;
    }
    Some(parts.into_iter().map(|part| part * sign).collect())
}

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

/// `money_allocate(total, weights)`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Allocate {
    signature: Signature,
}

impl Allocate {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }

    fn weights(&self, weights: &dyn Array) -> Result<Vec<i128>> {
        let weights = weights.as_primitive_opt::<Decimal128Type>();
        let weights = weights.ok_or_else(|| internal_datafusion_err!("weights are not decimals"))?;
        if weights.iter().any(|weight| weight.is_none_or(|weight| weight < 0)) {
            return exec_err!("money_allocate: a weight is NULL or less than 0; no line can have such a share");
        }
        Ok(weights.values().to_vec())
    }
}

impl ScalarUDFImpl for Allocate {
    fn name(&self) -> &str {
        "money_allocate"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [total, DataType::List(item) | DataType::LargeList(item)] => {
                Ok(vec![decimal(self.name(), total)?, list_of(decimal(self.name(), item.data_type())?)])
            }
            _ => plan_err!(
                "money_allocate takes a total and a list of weights: money_allocate(total, array_agg(x ORDER BY line))"
            ),
        }
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types.first() {
            Some(total) => Ok(list_of(DataType::Decimal128(DIGITS_MAX, scale_of(total)?))),
            None => plan_err!("money_allocate takes a total and a list of weights"),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&args.args)?;
        let [totals, lists] = arrays.as_slice() else { return plan_err!("money_allocate takes two arguments") };
        let (Some(totals), Some(lists)) = (totals.as_primitive_opt::<Decimal128Type>(), lists.as_list_opt::<i32>())
        else {
            return Err(internal_datafusion_err!("money_allocate takes a decimal and a list"));
        };
        let (mut parts, mut lengths, mut valid) = (Vec::new(), Vec::new(), Vec::new());
        for (total, weights) in totals.iter().zip(lists.iter()) {
            let (Some(total), Some(weights)) = (total, weights) else {
                lengths.push(0);
                valid.push(false);
                continue;
            };
            let Some(allocated) = allocated(total, &self.weights(&weights)?) else {
                return exec_err!("money_allocate: all weights are 0, and the total is not");
            };
            lengths.push(allocated.len());
            valid.push(true);
            parts.extend(allocated);
        }
        let items = Decimal128Array::from(parts).with_precision_and_scale(DIGITS_MAX, totals.scale())?;
        let field = Arc::new(Field::new_list_field(items.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths(lengths);
        let list = ListArray::try_new(field, offsets, Arc::new(items), Some(NullBuffer::from(valid)))?;
        Ok(ColumnarValue::Array(Arc::new(list)))
    }
}

#[cfg(test)]
mod tests;
