//! Sums that cannot wrap: `sum` and `avg` of integers and decimals.
//!
//! DataFusion adds BIGINT with wrap-around and averages integers as floats, so that a sum too large is a wrong
//! number without notice and a mean depends on the order of its rows. These take the place of its functions:
//!
//! | argument | a sum is kept as | and given as |
//! |---|---|---|
//! | INTEGER and narrower | BIGINT | BIGINT |
//! | BIGINT | DECIMAL(38, 0) | BIGINT |
//! | DECIMAL(p, s), p up to 28 | DECIMAL(p + 10, s) | the same |
//! | DECIMAL(p, s), p beyond 28 | DECIMAL(76, s) | DECIMAL(38, s) |
//!
//! What is kept holds every sum of less than 2^32 rows (10^10 of decimals) whatever their values, so folding and
//! combining states do not fail: only the one who asks for a sum that does not fit its type is told so.
//! Floats, durations and intervals are left to DataFusion.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray};
use datafusion::arrow::datatypes::{
    ArrowNativeTypeOp, DECIMAL256_MAX_PRECISION, DataType, Decimal128Type, Decimal256Type, DecimalType, Int64Type,
    UInt64Type, i256,
};
use datafusion::arrow::error::ArrowError;
use datafusion::common::internal_datafusion_err;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::AggregateUDF;

mod avg;
mod groups;
mod sum;

/// What takes the place of DataFusion's functions of the same names.
pub(super) fn functions() -> Vec<Arc<AggregateUDF>> {
    vec![
        Arc::new(AggregateUDF::new_from_impl(sum::Sum::new())),
        Arc::new(AggregateUDF::new_from_impl(avg::Avg::new())),
    ]
}

/// How a sum is kept, by the type of what is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// INTEGER in BIGINT.
    Integer,
    /// BIGINT in DECIMAL(38, 0).
    Big,
    /// Unsigned BIGINT in DECIMAL(38, 0).
    Unsigned,
    /// Decimals with room for ten digits more.
    Decimal,
    /// Decimals that need a wider type.
    Wide,
    /// Decimals of the widest type there is; a sum beyond it is an error.
    Widest,
    /// Not ours.
    Foreign,
}

/// Digits that a decimal type has beyond those of its rows: room for 10^10 rows.
const HEADROOM_DIGITS: u8 = 10;
/// Digits of DECIMAL in 128 bits.
const DIGITS_MAX: u8 = 38;

impl Held {
    fn of(argument: &DataType) -> Self {
        match argument {
            DataType::Int32 => Self::Integer,
            DataType::Int64 => Self::Big,
            DataType::UInt64 => Self::Unsigned,
            DataType::Decimal128(precision, _) if *precision <= DIGITS_MAX - HEADROOM_DIGITS => Self::Decimal,
            DataType::Decimal128(..) => Self::Wide,
            DataType::Decimal256(..) => Self::Widest,
            _ => Self::Foreign,
        }
    }

    /// The type of a partial sum, or none when it is not ours.
    fn state_type(argument: &DataType) -> Option<DataType> {
        Some(match (Self::of(argument), argument) {
            (Self::Integer, _) => DataType::Int64,
            (Self::Big | Self::Unsigned, _) => DataType::Decimal128(DIGITS_MAX, 0),
            (Self::Decimal, DataType::Decimal128(precision, scale)) => {
                DataType::Decimal128(precision + HEADROOM_DIGITS, *scale)
            }
            (_, DataType::Decimal128(_, scale) | DataType::Decimal256(_, scale)) => {
                DataType::Decimal256(DECIMAL256_MAX_PRECISION, *scale)
            }
            _ => return None,
        })
    }
}

/// Runs `$make` with the types of what is added (`I`), kept (`S`) and given (`R`).
macro_rules! typed {
    ($held:expr, $make:ident, $foreign:expr, $($arg:expr),*) => {
        match $held {
            Held::Integer => $make::<Int32Type, Int64Type, Int64Type>($($arg),*),
            Held::Big => $make::<Int64Type, Decimal128Type, Int64Type>($($arg),*),
            Held::Unsigned => $make::<UInt64Type, Decimal128Type, UInt64Type>($($arg),*),
            Held::Decimal => $make::<Decimal128Type, Decimal128Type, Decimal128Type>($($arg),*),
            Held::Wide => $make::<Decimal128Type, Decimal256Type, Decimal128Type>($($arg),*),
            Held::Widest => $make::<Decimal256Type, Decimal256Type, Decimal256Type>($($arg),*),
            Held::Foreign => $foreign,
        }
    };
}
use typed;

/// A number as a wider one.
trait Widen<S> {
    fn widen(self) -> S;
}

/// A number as a narrower one, where it fits.
trait Narrow<R> {
    fn narrow(self) -> Option<R>;
}

macro_rules! widen {
    ($($from:ty => $to:ty),+ $(,)?) => {
        $(impl Widen<$to> for $from {
            fn widen(self) -> $to {
                self.into()
            }
        })+
    };
}

widen!(i32 => i64, i64 => i64, i64 => i128, u64 => i128, i128 => i128, i256 => i256);

impl Widen<i256> for i128 {
    fn widen(self) -> i256 {
        i256::from_i128(self)
    }
}

macro_rules! narrow {
    ($($from:ty => $to:ty),+ $(,)?) => {
        $(impl Narrow<$to> for $from {
            fn narrow(self) -> Option<$to> {
                self.try_into().ok()
            }
        })+
    };
}

narrow!(i64 => i64, i128 => i64, i128 => u64, i128 => i128, i256 => i256);

impl Narrow<i128> for i256 {
    fn narrow(self) -> Option<i128> {
        self.to_i128()
    }
}

/// Whether a value has no more digits than its type.
trait Digits: ArrowPrimitiveType + std::fmt::Debug {
    fn fits(value: Self::Native, data_type: &DataType) -> bool;
}

impl Digits for Int64Type {
    fn fits(_: i64, _: &DataType) -> bool {
        true
    }
}

impl Digits for UInt64Type {
    fn fits(_: u64, _: &DataType) -> bool {
        true
    }
}

impl Digits for Decimal128Type {
    fn fits(value: i128, data_type: &DataType) -> bool {
        matches!(data_type, DataType::Decimal128(precision, _) if Self::is_valid_decimal_precision(value, *precision))
    }
}

impl Digits for Decimal256Type {
    fn fits(value: i256, data_type: &DataType) -> bool {
        matches!(data_type, DataType::Decimal256(precision, _) if Self::is_valid_decimal_precision(value, *precision))
    }
}

/// `total + more`, or the error that says so.
fn added<N: ArrowNativeTypeOp>(total: N, more: N) -> Result<N> {
    total.add_checked(more).map_err(|_| overflow(&format!("{total:?} and {more:?}"), "any type for sums"))
}

/// A kept sum as the type it is given in.
fn given<S: ArrowPrimitiveType, R: Digits>(sum: S::Native, data_type: &DataType) -> Result<R::Native>
where
    S::Native: Narrow<R::Native>,
{
    let narrow: Option<R::Native> = sum.narrow();
    narrow.filter(|value| R::fits(*value, data_type)).ok_or_else(|| {
        let shown = match data_type {
            DataType::Int64 => "BIGINT".to_owned(),
            DataType::UInt64 => "unsigned BIGINT".to_owned(),
            DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
                format!("DECIMAL({precision}, {scale})")
            }
            other => other.to_string(),
        };
        overflow(&format!("{sum:?}"), &shown)
    })
}

fn overflow(sum: &str, data_type: &str) -> DataFusionError {
    let hint = if data_type.contains("BIGINT") { "; sum it as DECIMAL: sum(...::DECIMAL(38, 0))" } else { "" };
    let text = format!("a sum of {sum} does not fit {data_type}{hint}");
    DataFusionError::ArrowError(Box::new(ArrowError::ArithmeticOverflow(text)), None)
}

fn primitive<T: ArrowPrimitiveType>(columns: &[ArrayRef]) -> Result<&PrimitiveArray<T>> {
    let column = columns.first().ok_or_else(|| internal_datafusion_err!("a sum takes one column"))?;
    column.as_primitive_opt::<T>().ok_or_else(|| {
        internal_datafusion_err!("a sum of {} was given a column of {}", T::DATA_TYPE, column.data_type())
    })
}

/// `DISTINCT` of INTEGER is kept as BIGINT, which DataFusion collects.
fn collected_type(argument: &DataType) -> &DataType {
    match argument {
        DataType::Int32 => &DataType::Int64,
        other => other,
    }
}
