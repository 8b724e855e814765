//! `date_trunc`, without the calendar where there is no need of one.
//!
//! DataFusion 55 takes every time zone for one with daylight saving, UTC too: it takes each instant apart, looks up
//! the offset and puts it together again, some 100 ns a row. Streams keep instants in UTC, where hours and days
//! have one length, which it knows for instants without a zone. So the zone is taken off and put back.

use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::{
    ArrowTimestampType, DataType, FieldRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use datafusion::common::cast::as_primitive_array;
use datafusion::error::Result;
use datafusion::functions::datetime::date_trunc::DateTruncFunc;
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// The function in place of DataFusion's.
pub(super) fn date_trunc() -> Arc<ScalarUDF> {
    Arc::new(ScalarUDF::new_from_impl(DateTrunc { inner: DateTruncFunc::new() }))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DateTrunc {
    inner: DateTruncFunc,
}

impl ScalarUDFImpl for DateTrunc {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let zone = args.args.get(1).and_then(utc_array);
        let (Some((unit, zone)), Some(ColumnarValue::Array(array))) = (zone, args.args.get_mut(1)) else {
            return self.inner.invoke_with_args(args);
        };
        *array = with_zone(array, unit, None)?;
        match self.inner.invoke_with_args(args)? {
            ColumnarValue::Array(array) => Ok(ColumnarValue::Array(with_zone(&array, unit, Some(zone))?)),
            scalar @ ColumnarValue::Scalar(_) => Ok(scalar),
        }
    }

    fn output_ordering(&self, input: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(input)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}

/// The unit and the name of the zone when `value` is a column of instants in UTC.
fn utc_array(value: &ColumnarValue) -> Option<(TimeUnit, Arc<str>)> {
    match value {
        ColumnarValue::Array(array) => match array.data_type() {
            DataType::Timestamp(unit, Some(zone)) if matches!(zone.as_ref(), "UTC" | "+00:00" | "Z") => {
                Some((*unit, Arc::clone(zone)))
            }
            _ => None,
        },
        ColumnarValue::Scalar(_) => None,
    }
}

/// The same numbers with another zone.
fn with_zone(array: &ArrayRef, unit: TimeUnit, zone: Option<Arc<str>>) -> Result<ArrayRef> {
    fn of<T: ArrowTimestampType>(array: &ArrayRef, zone: Option<Arc<str>>) -> Result<ArrayRef> {
        Ok(Arc::new(as_primitive_array::<T>(array)?.clone().with_timezone_opt(zone)))
    }
    match unit {
        TimeUnit::Second => of::<TimestampSecondType>(array, zone),
        TimeUnit::Millisecond => of::<TimestampMillisecondType>(array, zone),
        TimeUnit::Microsecond => of::<TimestampMicrosecondType>(array, zone),
        TimeUnit::Nanosecond => of::<TimestampNanosecondType>(array, zone),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use datafusion::arrow::array::TimestampMicrosecondArray;
    use datafusion::arrow::datatypes::Field;
    use datafusion::common::ScalarValue;
    use datafusion::config::ConfigOptions;

    use super::*;

    fn truncated(function: &dyn ScalarUDFImpl, to: &str, zone: &str) -> ArrayRef {
        let instants: TimestampMicrosecondArray =
            [Some(-1), None, Some(0), Some(951_868_799_999_999), Some(1_769_860_800_123_456)].into_iter().collect();
        let instants: ArrayRef = Arc::new(instants.with_timezone(zone));
        let field = Arc::new(Field::new("at", instants.data_type().clone(), true));
        let text = Arc::new(Field::new("to", DataType::Utf8, false));
        let arguments = ScalarFunctionArgs {
            number_rows: instants.len(),
            args: vec![ColumnarValue::Scalar(ScalarValue::from(to)), ColumnarValue::Array(instants)],
            arg_fields: vec![text, Arc::clone(&field)],
            return_field: field,
            config_options: Arc::new(ConfigOptions::default()),
        };
        function.invoke_with_args(arguments).unwrap().into_array(5).unwrap()
    }

    #[test]
    fn it_gives_what_datafusion_gives() {
        let (ours, theirs) = (DateTrunc { inner: DateTruncFunc::new() }, DateTruncFunc::new());
        for zone in ["UTC", "+00:00", "Europe/Zurich"] {
            for to in ["second", "minute", "hour", "day", "week", "month", "quarter", "year"] {
                let expected = truncated(&theirs, to, zone);
                assert_eq!(&truncated(&ours, to, zone), &expected, "{to} {zone}");
            }
        }
    }
}
