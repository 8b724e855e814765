//! Functions of the business, one a file.
//!
//! What is listed here can be called by name from every session: views, quality checks, billing and ad-hoc queries.

use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

mod array_agg_limit;
pub mod error;
mod money;
mod multiset_digest;

/// Functions of one row.
pub fn scalar_functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        Arc::new(ScalarUDF::new_from_impl(error::Raise::new())),
        Arc::new(ScalarUDF::new_from_impl(money::Arithmetic::add())),
        Arc::new(ScalarUDF::new_from_impl(money::Arithmetic::multiply())),
        Arc::new(ScalarUDF::new_from_impl(money::RoundHalfEven::new())),
        Arc::new(ScalarUDF::new_from_impl(money::Allocate::new())),
    ]
}

/// Functions of many rows. What they keep between their two phases (`state`, `merge_batch`) is what a
/// materialized view stores, so a change of it needs a new name or a rebuild.
pub fn aggregate_functions() -> Vec<Arc<AggregateUDF>> {
    vec![
        Arc::new(AggregateUDF::new_from_impl(array_agg_limit::ArrayAggLimit::new())),
        Arc::new(AggregateUDF::new_from_impl(multiset_digest::MultisetDigest::new())),
    ]
}
