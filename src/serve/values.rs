//! Values on their way between a client's types and the engine's.

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::display::FormatOptions;

use super::error::{QueryError, SqlState};

/// A value that does not fit is an error, never NULL.
pub(super) fn checked_cast(column: &ArrayRef, target: &DataType) -> Result<ArrayRef, QueryError> {
    let options = CastOptions { safe: false, format_options: FormatOptions::default() };
    cast_with_options(column, target, &options).map_err(|error| {
        QueryError::new(SqlState::NUMERIC_OUT_OF_RANGE, format!("a value does not fit its type: {error}"))
    })
}
