//! `array_agg_limit(x, n ORDER BY ...)`: the first `n` values in an order, as an array.
//!
//! `array_agg` keeps a value of every row, so what a view would have to keep grows without end. This keeps `n`.

use std::cmp::Ordering;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::{SortColumn, SortOptions, lexsort_to_indices};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::utils::compare_rows;
use datafusion::common::{ScalarValue, internal_datafusion_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Signature, Volatility};
use datafusion::physical_expr::expressions::Literal;

/// Longer arrays are no summaries.
const LIMIT_MAX: i64 = 10_000;

/// `array_agg_limit(x, n ORDER BY ...)`.
///
/// NULLs are kept, as by `array_agg`; of no rows it is NULL. `n` is a constant from 1 to 10,000. Rows with equal keys
/// come in any order: a materialized view continues the keys with the record's coordinates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ArrayAggLimit {
    signature: Signature,
}

impl ArrayAggLimit {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

fn list_of(item: &DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item.clone(), true)))
}

impl AggregateUDFImpl for ArrayAggLimit {
    fn name(&self) -> &str {
        "array_agg_limit"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        match arg_types {
            [value, limit] if limit.is_integer() => Ok(vec![value.clone(), DataType::Int64]),
            _ => plan_err!("array_agg_limit takes a value and a number: array_agg_limit(x, 10 ORDER BY y)"),
        }
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        match arg_types.first() {
            Some(item) => Ok(list_of(item)),
            None => plan_err!("array_agg_limit takes a value and a number"),
        }
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return plan_err!("array_agg_limit does not take DISTINCT");
        }
        let limit = args.exprs.get(1).and_then(|expr| expr.downcast_ref::<Literal>()).map(Literal::value);
        let limit = match limit {
            Some(ScalarValue::Int64(Some(limit))) if (1..=LIMIT_MAX).contains(limit) => {
                usize::try_from(*limit).ok()
            }
            _ => None,
        };
        let Some(limit) = limit else {
            return plan_err!("array_agg_limit takes a constant from 1 to {LIMIT_MAX} as its number of values");
        };
        let mut key_types = Vec::with_capacity(args.order_bys.len());
        for sort in args.order_bys {
            let key_type = sort.expr.data_type(args.schema)?;
            if key_type.is_nested() {
                return plan_err!("array_agg_limit cannot be ordered by a {key_type}");
            }
            key_types.push(key_type);
        }
        let item = args.expr_fields.first().map(|field| field.data_type().clone());
        Ok(Box::new(First {
            limit,
            options: args.order_bys.iter().map(|sort| sort.options).collect(),
            key_types,
            item: item.ok_or_else(|| internal_datafusion_err!("array_agg_limit without argument"))?,
            rows: Vec::new(),
        }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let list = |name: &str, item: &DataType| -> FieldRef {
            Arc::new(Field::new(format_state_name(args.name, name), list_of(item), false))
        };
        let Some(item) = args.input_fields.first() else {
            return plan_err!("array_agg_limit takes a value and a number");
        };
        let mut fields = vec![list("values", item.data_type())];
        for (number, key) in args.ordering_fields.iter().enumerate() {
            fields.push(list(&format!("key{}", number + 1), key.data_type()));
        }
        Ok(fields)
    }

    /// Rows may come as they do; they are sorted here.
    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Beneficial
    }

    fn with_beneficial_ordering(self: Arc<Self>, _: bool) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        Ok(Some(self))
    }
}

/// The first rows so far, in order.
#[derive(Debug)]
struct First {
    limit: usize,
    options: Vec<SortOptions>,
    key_types: Vec<DataType>,
    item: DataType,
    /// Keys, and the value.
    rows: Vec<(Vec<ScalarValue>, ScalarValue)>,
}

impl First {
    fn take(&mut self, value: &ArrayRef, keys: &[ArrayRef], row: usize) -> Result<()> {
        let keys = keys.iter().map(|key| ScalarValue::try_from_array(key, row)).collect::<Result<_>>()?;
        self.rows.push((keys, ScalarValue::try_from_array(value, row)?));
        Ok(())
    }

    fn keep_first(&mut self) {
        // Keys of one call have one type each, so they can always be compared.
        let options = &self.options;
        self.rows.sort_by(|(a, _), (b, _)| compare_rows(a, b, options).unwrap_or(Ordering::Equal));
        self.rows.truncate(self.limit);
    }

    fn list<'a>(items: impl Iterator<Item = &'a ScalarValue>, item: &DataType) -> ScalarValue {
        let items: Vec<ScalarValue> = items.cloned().collect();
        ScalarValue::List(ScalarValue::new_list_nullable(&items, item))
    }
}

impl Accumulator for First {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (Some(value), keys) = (values.first(), values.get(2..).unwrap_or_default()) else {
            return Err(internal_datafusion_err!("array_agg_limit of no column"));
        };
        let count = value.len().min(self.limit);
        if keys.is_empty() {
            (0..count).try_for_each(|row| self.take(value, keys, row))?;
        } else {
            let columns: Vec<SortColumn> = keys
                .iter()
                .zip(&self.options)
                .map(|(key, options)| SortColumn { values: Arc::clone(key), options: Some(*options) })
                .collect();
            for row in lexsort_to_indices(&columns, Some(count))?.values() {
                self.take(value, keys, *row as usize)?;
            }
        }
        self.keep_first();
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let Some((values, keys)) = states.split_first() else { return Ok(()) };
        for state in 0..values.len() {
            if values.is_null(state) {
                continue;
            }
            let held = values.as_list::<i32>().value(state);
            let keys: Vec<ArrayRef> = keys.iter().map(|key| key.as_list::<i32>().value(state)).collect();
            (0..held.len()).try_for_each(|row| self.take(&held, &keys, row))?;
        }
        self.keep_first();
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let mut state = vec![Self::list(self.rows.iter().map(|(_, value)| value), &self.item)];
        for (number, key_type) in self.key_types.iter().enumerate() {
            state.push(Self::list(self.rows.iter().filter_map(|(keys, _)| keys.get(number)), key_type));
        }
        Ok(state)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.rows.is_empty() {
            return ScalarValue::try_from(list_of(&self.item));
        }
        Ok(Self::list(self.rows.iter().map(|(_, value)| value), &self.item))
    }

    fn size(&self) -> usize {
        let rows =
            self.rows.iter().map(|(keys, value)| keys.iter().map(ScalarValue::size).sum::<usize>() + value.size());
        size_of_val(self) + rows.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::SessionContext;

    use super::*;

    async fn asked(sql: &str) -> String {
        let context = SessionContext::new();
        context.register_udaf(ArrayAggLimit::new().into());
        let batches = async { context.sql(sql).await?.collect().await }.await;
        match batches {
            Ok(batches) => datafusion::arrow::util::pretty::pretty_format_batches(&batches)
                .map_or_else(|error| error.to_string(), |text| text.to_string()),
            Err(error) => error.strip_backtrace(),
        }
    }

    #[tokio::test]
    async fn the_first_in_order_are_kept() {
        let rows = "(VALUES (1, 'a', 3), (2, 'b', 1), (3, 'a', 2), (4, 'a', NULL), (5, 'a', 2)) AS t(id, k, n)";
        let sql = format!(
            "SELECT array_agg_limit(id, 2 ORDER BY n DESC NULLS LAST, id) AS a, array_agg_limit(id, 9 ORDER BY id DESC) AS b, \
             array_agg_limit(k, 1 ORDER BY id) FILTER (WHERE n > 9) AS c FROM {rows}"
        );
        let found = asked(&sql).await;
        assert!(found.contains("| [1, 3] | [5, 4, 3, 2, 1] |   |"), "{found}");
    }

    #[tokio::test]
    async fn what_it_cannot_do_is_refused() {
        for (sql, reason) in [
            (
                "SELECT array_agg_limit(x, 0 ORDER BY x) FROM (VALUES (1)) AS t(x)",
                "takes a constant from 1 to 10000",
            ),
            (
                "SELECT array_agg_limit(x, x ORDER BY x) FROM (VALUES (1)) AS t(x)",
                "takes a constant from 1 to 10000",
            ),
            ("SELECT array_agg_limit(1)", "takes a value and a number"),
            (
                "SELECT array_agg_limit(DISTINCT x, 1 ORDER BY x) FROM (VALUES (1)) AS t(x)",
                "does not take DISTINCT",
            ),
        ] {
            let found = asked(sql).await;
            assert!(found.contains(reason), "{sql}: {found}");
        }
    }
}
