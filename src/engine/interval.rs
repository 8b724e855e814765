//! Intervals of days and hours added to instants in UTC, without the calendar.
//!
//! `at + INTERVAL '1 day'` takes each instant apart, looks up its zone's offset and puts it together again, some
//! 100 ns a row. In UTC a day always has 24 hours, so the interval is one duration, which is an addition.

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::{Expr, ExprSchemable, Operator};

const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

/// `expr` with every interval that is added to or taken from an instant in UTC as a duration, where it is one.
pub(super) fn as_durations(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    let rewritten = expr.transform_up(|expr| {
        let Expr::BinaryExpr(mut binary) = expr else { return Ok(Transformed::no(expr)) };
        if matches!(binary.op, Operator::Plus | Operator::Minus)
            && is_utc(&binary.left.get_type(schema)?)
            && let Some(micros) = micros(&binary.right)
        {
            *binary.right = Expr::Literal(ScalarValue::DurationMicrosecond(Some(micros)), None);
            return Ok(Transformed::yes(Expr::BinaryExpr(binary)));
        }
        Ok(Transformed::no(Expr::BinaryExpr(binary)))
    });
    Ok(rewritten?.data)
}

fn is_utc(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(TimeUnit::Microsecond, Some(zone)) if zone.as_ref() == "UTC")
}

/// The length of an interval without months, in whole microseconds.
fn micros(expr: &Expr) -> Option<i64> {
    let Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(interval)), _) = expr else { return None };
    if interval.months != 0 || interval.nanoseconds % 1000 != 0 {
        return None;
    }
    i64::from(interval.days).checked_mul(DAY_MICROS)?.checked_add(interval.nanoseconds / 1000)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use datafusion::arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
    use datafusion::arrow::datatypes::{Field, Schema};
    use datafusion::prelude::SessionContext;

    use super::*;

    #[test]
    fn a_duration_gives_what_the_interval_gives() {
        let zone: DataType = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let schema = Arc::new(Schema::new(vec![Field::new("at", zone, true)]));
        let instants: TimestampMicrosecondArray =
            [Some(-1), None, Some(0), Some(951_868_799_999_999), Some(1_769_860_800_123_456)].into_iter().collect();
        let column: ArrayRef = Arc::new(instants.with_timezone("UTC"));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap();
        let schema = DFSchema::try_from(schema).unwrap();
        let session = SessionContext::new();
        let evaluate = |expr: &Expr| {
            let expr = session.create_physical_expr(expr.clone(), &schema).unwrap();
            expr.evaluate(&batch).unwrap().into_array(batch.num_rows()).unwrap()
        };
        for (sql, changes) in [
            ("at + INTERVAL '1 day'", true),
            ("at - INTERVAL '36 hours 1 minute'", true),
            ("at + INTERVAL '-2 days'", true),
            ("at + INTERVAL '1 month'", false),
        ] {
            let expr = session.parse_sql_expr(sql, &schema).unwrap();
            let rewritten = as_durations(expr.clone(), &schema).unwrap();
            assert_eq!(rewritten != expr, changes, "{sql}");
            assert_eq!(&evaluate(&rewritten), &evaluate(&expr), "{sql}");
        }
    }
}
