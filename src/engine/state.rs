//! One definition, three plans: a view split at its aggregate.
//!
//! ```text
//! state    raw rows -> partial states   batch refresh, and every micro-batch of the delta
//! combine  states   -> states           incremental refresh, compaction
//! merge    states   -> final columns    queries
//! ```
//! For any way to cut the rows into pieces and any order to combine them in, `merge` of the states of the pieces is
//! the view's query over all rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{Column, DataFusionError, TableReference, plan_err};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::expr::{AggregateFunction, AggregateFunctionParams};
use datafusion::logical_expr::{
    Aggregate, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Projection, TableScan,
};
use datafusion::optimizer::analyzer::Analyzer;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::catalog::{DEFAULT_SCHEMA, qualified};
use crate::engine::Engine;
use crate::engine::billable;
use crate::engine::combinator::{Combinator, Kind};
use crate::engine::inner::Inner;
use crate::engine::reused::{Reused, Vacant};
use crate::engine::split::{Cut, call, finish, read_from};
use crate::engine::ties::Carried;
use crate::engine::unbound;

/// Raised when the columns or bytes of a state change meaning. Stored states of another version are rebuilt from
/// the archive, never guessed at.
pub const STATE_ENCODING_VERSION: u32 = 1;

/// Name the stored states have in plans.
const STATES: &str = "states";

/// Why a query cannot be a materialized view, and what to do instead.
#[derive(Debug, Error)]
pub enum ViewError {
    #[error("view {view} has no aggregate, add GROUP BY, or make it an ordinary view with CREATE VIEW")]
    NoAggregate { view: String },
    #[error(
        "view {view} aggregates an aggregate, which cannot be merged from parts: make the inner one the \
         materialized view and the outer one an ordinary view over it"
    )]
    NestedAggregate { view: String },
    #[error("view {view} has ORDER BY or LIMIT: leave it out, and write it in an ordinary view over this one")]
    Ordered { view: String },
    #[error("view {view} has a window function: leave it out, and write it in an ordinary view over this one")]
    Window { view: String },
    #[error("view {view} has SELECT DISTINCT: write GROUP BY with the same columns")]
    Distinct { view: String },
    #[error(
        "view {view} has UNION, INTERSECT or EXCEPT: make one materialized view of each part, and an ordinary view \
         that puts them together"
    )]
    SetOperation { view: String },
    #[error("view {view} has GROUPING SETS, ROLLUP or CUBE: make one materialized view of each grouping")]
    GroupingSets { view: String },
    #[error("view {view} joins after its aggregate: write the join in an ordinary view over this one")]
    JoinAfterAggregate { view: String },
    #[error("view {view} reads no stream: name one table of the schema raw in FROM")]
    NoStream { view: String },
    #[error(
        "view {view} reads the streams {streams}: make one materialized view of each, and an ordinary view that \
         joins them"
    )]
    ManyStreams { view: String, streams: String },
    #[error(
        "view {view} reads the stream {stream} more than once, so that pieces of it cannot be counted apart: write \
         the comparison as an ordinary view over materialized views"
    )]
    StreamTwice { view: String, stream: String },
    #[error("view {view} reads its stream in a subquery: name the stream in FROM")]
    StreamInSubquery { view: String },
    #[error(
        "view {view} keeps rows of a reference table that match no record ({join} join): put the stream on the \
         side that is kept, or write the join in an ordinary view over this one"
    )]
    OuterJoin { view: String, join: String },
    #[error(
        "view {view} uses {what}, which has another value each time the view is computed: use a column of the \
         stream, or write the condition in an ordinary view over this one"
    )]
    Unrepeatable { view: String, what: String },
    #[error(
        "view {view} uses {function} of rows without an order, which has no one right answer: write \
         {function}(... ORDER BY ...), or for any_value use min or first_value(... ORDER BY ...)"
    )]
    OrderDependent { view: String, function: String },
    #[error(
        "view {view} uses {function}, whose state grows with every record: write array_agg_limit(x, 100 ORDER BY ...), \
         and for a text array_to_string of it"
    )]
    Unbounded { view: String, function: String },
    #[error("view {view} uses {function}, whose answer follows the way its records are cut: write {instead}")]
    CutDependent { view: String, function: String, instead: &'static str },
    #[error(
        "view {view} is billable, but its {what} is {why}: use exact numbers (integers, DECIMAL, count(DISTINCT ...)), \
         or leave billable out"
    )]
    NotBillable { view: String, what: String, why: String },
    #[error("view {view} uses {function}, whose partial states cannot be merged: use another aggregate")]
    NotMergeable { view: String, function: String, source: DataFusionError },
    #[error("view {view} has {what}, which a materialized view cannot hold: write it in an ordinary view over it")]
    Unsupported { view: String, what: String },
    #[error("view {view} finds no column {column} in its stored states: rebuild it from the archive")]
    StateColumn { view: String, column: String },
    #[error("view {view} cannot be planned")]
    Plan { view: String, source: DataFusionError },
}

impl ViewError {
    pub(super) fn plan(view: &str, source: DataFusionError) -> Self {
        Self::Plan { view: view.to_owned(), source }
    }
}

/// One aggregate of a view, as it is before expressions over it and HAVING.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// Of its column in [`LambdaView::state_schema`] and in the rows of [`LambdaView::values_plan`].
    pub name: String,
    /// As the view's SQL calls it, for example `count`.
    pub function: String,
    pub data_type: DataType,
}

/// The rows of a reference table that a view is computed with.
#[derive(Debug, Clone)]
pub struct TableRows {
    pub rows: RecordBatch,
    /// The same for the same rows.
    pub digest: String,
}

/// A view split at its aggregate.
#[derive(Debug, Clone)]
pub struct LambdaView {
    name: String,
    stream: TableReference,
    /// The reference tables whose rows it is given when it is bound.
    tables: BTreeSet<String>,
    /// By table, the digest of the rows that it is bound to.
    bound: BTreeMap<String, String>,
    query: LogicalPlan,
    aggregate: Aggregate,
    /// What the aggregate reads, with all that its calls are ordered by ...
    unbound: LogicalPlan,
    /// ... and with the rows of reference tables.
    input: LogicalPlan,
    calls: Vec<AggregateFunction>,
    inners: Vec<Arc<Inner>>,
    state_schema: SchemaRef,
    final_schema: SchemaRef,
    reused: Arc<Plans>,
}

/// A plan with the columns that it reads, from when it is first needed.
type Kept = Option<(SchemaRef, Arc<Reused>)>;

/// Plans of one view that run again and again.
#[derive(Debug, Default)]
struct Plans {
    of_records: Mutex<Kept>,
    of_states: Mutex<Kept>,
}

impl LambdaView {
    /// Splits the plan of a view's SELECT, analysed or not, but not optimised: the optimiser rewrites aggregates
    /// into others, and the states stored would follow its moods.
    ///
    /// The plan reads one table of the schema `raw`, which is the stream; all other tables are reference tables.
    ///
    /// # Errors
    /// When the view's states could not be merged to what its query gives; see [`ViewError`].
    pub fn split(name: &str, query: LogicalPlan) -> Result<Self, ViewError> {
        let query = Analyzer::new()
            .execute_and_check(query, &ConfigOptions::default(), |_, _| {})
            .map_err(|source| ViewError::plan(name, source))?;
        let Cut { stream, aggregate, names } = Cut::find(name, &query)?;
        let plan = |source| ViewError::plan(name, source);
        let written = aggregate.aggr_expr.iter().map(|expr| call(name, expr)).collect::<Result<Vec<_>, _>>()?;
        let carried = Carried::up(&aggregate.input, written.iter().copied()).map_err(plan)?;
        let mut calls = Vec::with_capacity(written.len());
        let mut inners = Vec::with_capacity(written.len());
        for call in written {
            let call = carried.ordered(call);
            let inner = Inner::try_new(&call, carried.input.schema()).map_err(|source| {
                ViewError::NotMergeable { view: name.to_owned(), function: call.func.name().to_owned(), source }
            })?;
            inners.push(Arc::new(inner));
            calls.push(call);
        }
        let mut names = names.into_iter();
        let mut fields = Vec::with_capacity(aggregate.schema.fields().len());
        for (field, name) in aggregate.schema.fields().iter().zip(names.by_ref().take(aggregate.group_expr.len())) {
            fields.push(Field::new(name, field.data_type().clone(), field.is_nullable()));
        }
        fields.extend(inners.iter().zip(names).map(|(inner, name)| inner.state_field(&name)));
        let mut tables = BTreeSet::new();
        let found = |scan: &TableScan| tables.extend([table_of(scan)]);
        unbound::each_unbound(&carried.input, found).map_err(plan)?;
        Ok(Self {
            name: name.to_owned(),
            stream,
            tables,
            bound: BTreeMap::new(),
            unbound: carried.input.clone(),
            final_schema: Arc::clone(query.schema().inner()),
            query,
            aggregate,
            input: carried.input,
            calls,
            inners,
            state_schema: Arc::new(Schema::new(fields)),
            reused: Arc::default(),
        })
    }

    /// The name given to [`Self::split`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The one stream that is read, as `raw.<stream>`.
    pub fn stream(&self) -> &TableReference {
        &self.stream
    }

    /// The reference tables that are read. A view that reads some is computed only once it is [`Self::bound`].
    pub fn tables(&self) -> &BTreeSet<String> {
        &self.tables
    }

    /// The view under the name `name`, computed with these rows of the tables that it reads.
    ///
    /// # Errors
    /// When a table is missing, or has not the columns that the view was planned on.
    pub fn bound(&self, name: &str, tables: &BTreeMap<String, TableRows>) -> Result<Self, ViewError> {
        let rows = |scan: &TableScan| match tables.get(&table_of(scan)) {
            Some(table) => Ok(table.rows.clone()),
            None => plan_err!("table '{}' not found", scan.table_name),
        };
        let input = unbound::bound(&self.unbound, rows).map_err(|source| ViewError::plan(&self.name, source))?;
        let digests = tables.iter().filter(|(table, _)| self.tables.contains(*table));
        let bound = digests.map(|(table, rows)| (table.clone(), rows.digest.clone())).collect();
        Ok(Self { name: name.to_owned(), bound, input, reused: Arc::default(), ..self.clone() })
    }

    /// How many columns of [`Self::state_schema`], from the first, are the group key.
    pub fn group_columns(&self) -> usize {
        self.aggregate.group_expr.len()
    }

    /// The columns of the finished view that are its group key, as far as it shows them.
    pub fn key_columns(&self) -> Vec<String> {
        let fields = self.state_schema.fields().iter().take(self.group_columns());
        let shown = fields.filter(|field| self.final_schema.field_with_name(field.name()).is_ok());
        shown.map(|field| field.name().clone()).collect()
    }

    /// The group key, then one column for each aggregate: its value where that is its state, as of `count`, else
    /// a struct. Named as in the view where it shows a column as it is.
    pub fn state_schema(&self) -> SchemaRef {
        Arc::clone(&self.state_schema)
    }

    /// The columns of the finished view, those of its query.
    pub fn final_schema(&self) -> SchemaRef {
        Arc::clone(&self.final_schema)
    }

    /// Raw rows to partial states. `records` has the columns of the stream, or at least those the view reads.
    ///
    /// # Errors
    /// When a column that the view reads is missing in `records` or cannot be cast to its type.
    pub fn state_plan(&self, records: Arc<dyn TableProvider>) -> Result<LogicalPlan, ViewError> {
        let input = read_from(&self.name, &self.input, records)?;
        let mut states = Vec::with_capacity(self.inners.len());
        for (inner, call) in self.inners.iter().zip(&self.calls) {
            let AggregateFunctionParams { args, filter, order_by, null_treatment, distinct: _ } =
                call.params.clone();
            let state = Combinator::udaf(Kind::State, inner);
            let state = AggregateFunction::new_udf(state, args, false, filter, order_by, null_treatment);
            states.push(Expr::AggregateFunction(state));
        }
        self.aggregated(input, self.aggregate.group_expr.clone(), states).and_then(|plan| self.as_states(plan))
    }

    /// As [`Self::state_plan`], for micro-batches with these columns: optimised once.
    ///
    /// # Errors
    /// As [`Self::state_plan`], and what DataFusion says when it optimises.
    pub async fn micro_batch_plan(&self, engine: &Engine, columns: SchemaRef) -> Result<Arc<Reused>, ViewError> {
        self.once(engine, &self.reused.of_records, columns, |records| self.state_plan(records)).await
    }

    /// As [`Self::combine_plan`], for runs of the delta: optimised once.
    ///
    /// # Errors
    /// What DataFusion says when it optimises.
    pub async fn runs_plan(&self, engine: &Engine) -> Result<Arc<Reused>, ViewError> {
        self.once(engine, &self.reused.of_states, self.state_schema(), |states| self.combine_plan(states)).await
    }

    async fn once(
        &self,
        engine: &Engine,
        kept: &Mutex<Kept>,
        columns: SchemaRef,
        plan: impl FnOnce(Arc<dyn TableProvider>) -> Result<LogicalPlan, ViewError>,
    ) -> Result<Arc<Reused>, ViewError> {
        if let Some((_, known)) = kept.lock().as_ref().filter(|(known, _)| *known == columns) {
            return Ok(Arc::clone(known));
        }
        let plan = plan(Arc::new(Vacant { number: 0, columns: Arc::clone(&columns) }))?;
        let plan = Reused::new(engine, plan).await;
        let plan = Arc::new(plan.map_err(|source| ViewError::plan(&self.name, source))?);
        *kept.lock() = Some((columns, Arc::clone(&plan)));
        Ok(plan)
    }

    /// States to states, one row for each group key.
    ///
    /// # Errors
    /// When `states` has not the columns of [`Self::state_schema`].
    pub fn combine_plan(&self, states: Arc<dyn TableProvider>) -> Result<LogicalPlan, ViewError> {
        let (scan, keys, calls) = self.calls(Kind::Combine, states)?;
        self.aggregated(scan, keys, calls).and_then(|plan| self.as_states(plan))
    }

    /// States to the finished view: HAVING and expressions over aggregates are applied.
    ///
    /// # Errors
    /// When `states` has not the columns of [`Self::state_schema`].
    pub fn merge_plan(&self, states: Arc<dyn TableProvider>) -> Result<LogicalPlan, ViewError> {
        let (scan, keys, calls) = self.calls(Kind::Merge, states)?;
        let merged = self.aggregated(scan, keys, calls)?;
        // The finishing part names the columns of the aggregate that it was planned on.
        let renamed = merged.schema().columns().into_iter().zip(self.aggregate.schema.iter());
        let renamed = renamed
            .map(|(column, (table, field))| Expr::Column(column).alias_qualified(table.cloned(), field.name()))
            .collect();
        let merged = self.projected(merged, renamed)?;
        finish(&self.name, &self.query, merged)
    }

    /// States to the value of every aggregate, one row for each group key: nothing is left out by HAVING, nothing
    /// computed further. The columns are named as in [`Self::state_schema`].
    ///
    /// # Errors
    /// When `states` has not the columns of [`Self::state_schema`].
    pub fn values_plan(&self, states: Arc<dyn TableProvider>) -> Result<LogicalPlan, ViewError> {
        let (scan, keys, calls) = self.calls(Kind::Merge, states)?;
        self.aggregated(scan, keys, calls).and_then(|plan| self.as_states(plan))
    }

    /// The aggregates, in the order of their columns.
    pub fn values(&self) -> Vec<Value> {
        let fields = self.state_schema.fields().iter().skip(self.group_columns());
        let value = |(field, inner): (&FieldRef, &Arc<Inner>)| Value {
            name: field.name().clone(),
            function: inner.function().name().to_owned(),
            data_type: inner.return_field().data_type().clone(),
        };
        fields.zip(&self.inners).map(value).collect()
    }

    /// Ok when every number of the view is exact: neither a float nor an approximation takes part in any of them.
    ///
    /// # Errors
    /// [`ViewError::NotBillable`] with the column's name and why it is not.
    pub fn refuse_unless_exact(&self) -> Result<(), ViewError> {
        billable::inexact(&self.query).map_or(Ok(()), |found| {
            Err(ViewError::NotBillable { view: self.name.clone(), what: found.what, why: found.why })
        })
    }

    /// Hex SHA-256 of what the states depend on. States with another fingerprint are rebuilt, never read.
    ///
    /// Includes the version of DataFusion where a state is not simply a value, since the layout of sketches is
    /// its own business; and the digests of the tables that the view is bound to.
    pub fn fingerprint(&self) -> String {
        self.fingerprint_over(&self.bound)
    }

    /// As [`Self::fingerprint`], bound to other rows, by the digests of their tables.
    pub fn fingerprint_over(&self, tables: &BTreeMap<String, String>) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("encoding {STATE_ENCODING_VERSION}\n"));
        if self.inners.iter().any(|inner| inner.is_opaque()) {
            hash.update(format!("datafusion {}\n", datafusion::DATAFUSION_VERSION));
        }
        hash.update(self.query.display_indent().to_string());
        for field in self.state_schema.fields().iter().chain(self.final_schema.fields()) {
            hash.update(format!("\n{} {} {}", field.name(), field.data_type(), field.is_nullable()));
        }
        for (table, digest) in tables {
            hash.update(format!("\ntable {table} {digest}"));
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The scan of stored states, its keys, and a call of each aggregate over its state.
    fn calls(
        &self,
        kind: Kind,
        states: Arc<dyn TableProvider>,
    ) -> Result<(LogicalPlan, Vec<Expr>, Vec<Expr>), ViewError> {
        let scan = self.scan(states)?;
        let mut columns = scan.schema().columns().into_iter().map(Expr::Column);
        let keys = columns.by_ref().take(self.group_columns()).collect();
        let calls = self.inners.iter().zip(columns).map(|(inner, state)| {
            let combinator = Combinator::udaf(kind, inner);
            Expr::AggregateFunction(AggregateFunction::new_udf(combinator, vec![state], false, None, vec![], None))
        });
        let calls = calls.collect();
        Ok((scan, keys, calls))
    }

    /// Reads the columns of the state schema, in its order and of its types: files may come back with other text
    /// types than they were written with.
    fn scan(&self, states: Arc<dyn TableProvider>) -> Result<LogicalPlan, ViewError> {
        let plan = |source| ViewError::plan(&self.name, source);
        let scan = LogicalPlanBuilder::scan(STATES, provider_as_source(states), None)
            .and_then(LogicalPlanBuilder::build)
            .map_err(plan)?;
        let mut columns = Vec::with_capacity(self.state_schema.fields().len());
        for field in self.state_schema.fields() {
            let Some((table, found)) = scan.schema().iter().find(|(_, found)| found.name() == field.name()) else {
                return Err(ViewError::StateColumn { view: self.name.clone(), column: field.name().clone() });
            };
            let column = Expr::Column(Column::from((table, found)));
            columns.push(match found.data_type() == field.data_type() {
                true => column,
                false => column
                    .cast_to(field.data_type(), scan.schema().as_ref())
                    .map_err(plan)?
                    .alias_qualified(table.cloned(), field.name()),
            });
        }
        self.projected(scan, columns)
    }

    fn aggregated(&self, input: LogicalPlan, keys: Vec<Expr>, calls: Vec<Expr>) -> Result<LogicalPlan, ViewError> {
        Aggregate::try_new(Arc::new(input), keys, calls)
            .map(LogicalPlan::Aggregate)
            .map_err(|source| ViewError::plan(&self.name, source))
    }

    fn as_states(&self, aggregated: LogicalPlan) -> Result<LogicalPlan, ViewError> {
        let columns = aggregated.schema().columns().into_iter().zip(self.state_schema.fields());
        let columns = columns.map(|(column, field)| Expr::Column(column).alias(field.name())).collect();
        self.projected(aggregated, columns)
    }

    fn projected(&self, input: LogicalPlan, columns: Vec<Expr>) -> Result<LogicalPlan, ViewError> {
        Projection::try_new(columns, Arc::new(input))
            .map(LogicalPlan::Projection)
            .map_err(|source| ViewError::plan(&self.name, source))
    }
}

/// The one name of the table that is scanned.
fn table_of(scan: &TableScan) -> String {
    qualified(scan.table_name.schema().unwrap_or(DEFAULT_SCHEMA), scan.table_name.table())
}
