//! Continuous reconciliation: what a refresh computed from the archive against what the delta held for exactly the
//! same epochs.
//!
//! Both sides become one row a group with the value of every aggregate, sorted by group; then they are walked side by
//! side, so that the memory needed does not grow with the number of groups (sorting and grouping spill).
//!
//! | value | compared |
//! |---|---|
//! | whole numbers, decimals, texts, instants, lists of them, sketches of distinct values | exactly |
//! | floating-point sums, means, medians | within 1e-9 of the larger, for their last digits depend on the order |
//! | variances and correlations | within 1e-6 |
//! | percentiles from a digest | not: the digest depends on the order; they are named in the result |

use std::cmp::Ordering;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Float64Type, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder};
use futures::TryStreamExt;

use crate::engine::Engine;
use crate::engine::state::{LambdaView, Value, ViewError};

pub mod history;

/// Differing groups that are told in full; all are counted.
const DIFFERENCES_MAX: usize = 100;

/// What two computations of the same groups gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// On either side.
    pub groups: u64,
    pub differing: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
    /// Aggregates that have no value that could be compared.
    pub not_compared: Vec<String>,
}

/// A group on which the two sides do not agree; None where a side does not have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The group key, as JSON.
    pub group: String,
    /// The values, as JSON.
    pub batch: Option<String>,
    pub speed: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("cannot compare batch and speed")]
    Compute(#[from] DataFusionError),
    #[error("cannot compare batch and speed")]
    Arrow(#[from] ArrowError),
    #[error(transparent)]
    Plan(#[from] ViewError),
}

/// Compares partial states of `view` that stand for the same records.
///
/// # Errors
/// When one side cannot be computed: memory, a damaged file.
pub async fn compare(
    engine: &Engine,
    threads: usize,
    view: &LambdaView,
    batch: Arc<dyn TableProvider>,
    speed: Arc<dyn TableProvider>,
) -> Result<Comparison, ReconcileError> {
    let layout = Arc::new(Layout::of(view)?);
    let mut batch = Cursor::open(engine, threads, view, &layout, batch).await?;
    let mut speed = Cursor::open(engine, threads, view, &layout, speed).await?;
    let mut found = Comparison { not_compared: layout.not_compared.clone(), ..Comparison::default() };
    loop {
        let order = match (batch.at(), speed.at()) {
            (None, None) => return Ok(found),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(batch), Some(speed)) => batch.group_order(speed),
        };
        let both = order == Ordering::Equal;
        let (left, right) = (batch.at().filter(|_| order.is_le()), speed.at().filter(|_| order.is_ge()));
        let equal = both && left.zip(right).is_some_and(|(left, right)| left.same_values(right, &layout));
        found.groups += 1;
        if !equal {
            found.differing += 1;
            if found.differences.len() < DIFFERENCES_MAX
                && let Some(either) = left.or(right)
            {
                let json = |at: At<'_>| at.json(layout.keys_end..usize::MAX);
                let (batch, speed) = (left.map(json).transpose()?, right.map(json).transpose()?);
                found.differences.push(Difference { group: either.json(0..layout.keys_end)?, batch, speed });
            }
        }
        if order.is_le() {
            batch.advance().await?;
        }
        if order.is_ge() {
            speed.advance().await?;
        }
    }
}

/// Which columns are compared, and how.
#[derive(Debug)]
struct Layout {
    /// Columns before it are the group key.
    keys_end: usize,
    keys: RowConverter,
    exact: RowConverter,
    exact_columns: Vec<usize>,
    /// Column and tolerance.
    close_columns: Vec<(usize, f64)>,
    not_compared: Vec<String>,
}

/// How two values of one aggregate are compared.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Match {
    Exact,
    Within(f64),
    Never,
}

fn matching(value: &Value) -> Match {
    let function = value.function.as_str();
    let spread = ["var", "stddev", "covar", "corr", "regr"].iter().any(|start| function.starts_with(start));
    match value.data_type {
        DataType::Float16 | DataType::Float32 | DataType::Float64 if spread => Match::Within(1e-6),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => Match::Within(1e-9),
        _ if RowConverter::supports_fields(&[SortField::new(value.data_type.clone())]) => Match::Exact,
        _ => Match::Never,
    }
}

/// The relative error of single precision is larger than what its sums may differ by.
fn close(a: Option<f64>, b: Option<f64>, tolerance: f64) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * a.abs().max(b.abs()).max(1.0)
        }
        _ => false,
    }
}

impl Layout {
    fn of(view: &LambdaView) -> Result<Self, ReconcileError> {
        let keys_end = view.group_columns();
        let schema = view.state_schema();
        let keys = schema.fields().iter().take(keys_end).map(|field| SortField::new(field.data_type().clone()));
        let (mut exact, mut exact_columns) = (Vec::new(), Vec::new());
        let (mut close_columns, mut not_compared) = (Vec::new(), Vec::new());
        for (column, value) in (keys_end..).zip(view.values()) {
            match matching(&value) {
                Match::Exact => {
                    exact.push(SortField::new(value.data_type));
                    exact_columns.push(column);
                }
                Match::Within(tolerance) => close_columns.push((column, tolerance)),
                Match::Never => not_compared.push(value.name),
            }
        }
        Ok(Self {
            keys_end,
            keys: RowConverter::new(keys.collect())?,
            exact: RowConverter::new(exact)?,
            exact_columns,
            close_columns,
            not_compared,
        })
    }
}

/// One side, in the order of its groups.
struct Cursor {
    batches: SendableRecordBatchStream,
    layout: Arc<Layout>,
    piece: Option<Piece>,
    row: usize,
}

/// Some rows of a side, ready to be compared.
struct Piece {
    batch: RecordBatch,
    /// None where there are no such columns.
    keys: Option<Rows>,
    exact: Option<Rows>,
    close: Vec<Float64Array>,
}

/// One group of one side.
#[derive(Clone, Copy)]
struct At<'a> {
    piece: &'a Piece,
    row: usize,
}

impl Cursor {
    async fn open(
        engine: &Engine,
        threads: usize,
        view: &LambdaView,
        layout: &Arc<Layout>,
        states: Arc<dyn TableProvider>,
    ) -> Result<Self, ReconcileError> {
        let plan = view.values_plan(states)?;
        let keys = plan.schema().columns().into_iter().take(layout.keys_end);
        let keys: Vec<_> = keys.map(|key| Expr::Column(key).sort(true, true)).collect();
        let plan = match keys.is_empty() {
            true => plan,
            false => LogicalPlanBuilder::from(plan).sort(keys)?.build()?,
        };
        let batches = engine.stream(plan, threads).await?;
        let mut cursor = Self { batches, layout: Arc::clone(layout), piece: None, row: 0 };
        cursor.next_piece().await?;
        Ok(cursor)
    }

    fn at(&self) -> Option<At<'_>> {
        self.piece.as_ref().map(|piece| At { piece, row: self.row })
    }

    async fn advance(&mut self) -> Result<(), ReconcileError> {
        self.row += 1;
        match &self.piece {
            Some(piece) if self.row < piece.batch.num_rows() => Ok(()),
            _ => self.next_piece().await,
        }
    }

    async fn next_piece(&mut self) -> Result<(), ReconcileError> {
        self.row = 0;
        self.piece = loop {
            match self.batches.try_next().await? {
                None => break None,
                Some(batch) if batch.num_rows() == 0 => {}
                Some(batch) => break Some(Piece::of(batch, &self.layout)?),
            }
        };
        Ok(())
    }
}

impl Piece {
    fn of(batch: RecordBatch, layout: &Layout) -> Result<Self, ReconcileError> {
        let columns = |wanted: &[usize]| -> Vec<ArrayRef> {
            wanted.iter().filter_map(|column| batch.columns().get(*column)).map(Arc::clone).collect()
        };
        let keys: Vec<usize> = (0..layout.keys_end).collect();
        let rows = |converter: &RowConverter, wanted: &[usize]| match wanted {
            [] => Ok(None),
            wanted => converter.convert_columns(&columns(wanted)).map(Some),
        };
        let (keys, exact) = (rows(&layout.keys, &keys)?, rows(&layout.exact, &layout.exact_columns)?);
        let mut close = Vec::with_capacity(layout.close_columns.len());
        for column in columns(&layout.close_columns.iter().map(|(column, _)| *column).collect::<Vec<_>>()) {
            close.push(cast(&column, &DataType::Float64)?.as_primitive::<Float64Type>().clone());
        }
        Ok(Self { batch, keys, exact, close })
    }
}

impl At<'_> {
    fn group_order(self, other: At<'_>) -> Ordering {
        match (&self.piece.keys, &other.piece.keys) {
            (Some(keys), Some(others)) => keys.row(self.row).cmp(&others.row(other.row)),
            _ => Ordering::Equal,
        }
    }

    fn same_values(self, other: At<'_>, layout: &Layout) -> bool {
        let exact = match (&self.piece.exact, &other.piece.exact) {
            (Some(values), Some(others)) => values.row(self.row) == others.row(other.row),
            _ => true,
        };
        let value = |column: &Float64Array, row: usize| column.is_valid(row).then(|| column.value(row));
        let pairs = self.piece.close.iter().zip(&other.piece.close).zip(&layout.close_columns);
        exact
            && pairs
                .into_iter()
                .all(|((a, b), (_, tolerance))| close(value(a, self.row), value(b, other.row), *tolerance))
    }

    /// Some columns of the group as a JSON object.
    fn json(self, columns: std::ops::Range<usize>) -> Result<String, ReconcileError> {
        let schema: &Schema = self.piece.batch.schema_ref();
        let options = FormatOptions::default();
        let mut object = serde_json::Map::new();
        for (index, (field, column)) in schema.fields().iter().zip(self.piece.batch.columns()).enumerate() {
            if columns.contains(&index) {
                let text = ArrayFormatter::try_new(column, &options)?.value(self.row).to_string();
                let value = match column.data_type() {
                    _ if column.is_null(self.row) => serde_json::Value::Null,
                    DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => text.into(),
                    _ => serde_json::from_str(&text).unwrap_or_else(|_| text.into()),
                };
                object.insert(field.name().clone(), value);
            }
        }
        Ok(serde_json::Value::Object(object).to_string())
    }
}

#[cfg(test)]
mod tests;
