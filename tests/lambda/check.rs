//! Compares what a process answers with one-shot SQL over the records that the truth holds.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Float64Type, SchemaRef};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{
    CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::SessionContext;
use parking_lot::Mutex;
use viewledger::app::database::Merged;
use viewledger::catalog::stream::Stream;
use viewledger::engine::{CATALOG, DEFAULT_SCHEMA};
use viewledger::serve::Database;

use crate::model::{Fate, Truth};
use crate::process::{Process, Stage};
use crate::records::{Placed, columns};

/// A view, as the tests know it.
#[derive(Debug, Clone)]
pub struct ViewText {
    pub name: String,
    /// Index of the stream it reads.
    pub source: usize,
    pub query: String,
    pub oracle: Arc<Oracle>,
}

/// The query of a view in one piece, over the records that it is given. Planned once: that takes longest.
#[derive(Debug)]
pub struct Oracle {
    plan: Arc<dyn ExecutionPlan>,
    input: Arc<Input>,
}

/// The records that are in `raw.<stream>` at the moment.
#[derive(Debug)]
struct Input {
    schema: SchemaRef,
    records: Mutex<RecordBatch>,
}

impl PartitionStream for Input {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let records = futures::stream::iter([Ok(self.records.lock().clone())]);
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), records))
    }
}

impl Oracle {
    pub fn new(stage: &Stage, stream: &Stream, query: &str) -> Self {
        let schema = stream.record_schema();
        let records = Mutex::new(RecordBatch::new_empty(Arc::clone(&schema)));
        let input = Arc::new(Input { schema, records });
        let partition: Arc<dyn PartitionStream> = Arc::<Input>::clone(&input);
        let table = StreamingTable::try_new(stream.record_schema(), vec![partition]).unwrap();
        let session = session_over(stage, &stream.name, Arc::new(table));
        // It sums sums, whose decimals are wider than HAVING was planned for: such a query fails (DataFusion 55).
        assert!(session.remove_optimizer_rule("single_distinct_aggregation_to_group_by"));
        let plan = stage.runtime.block_on(async {
            let plan = session.sql(query).await.unwrap();
            plan.create_physical_plan().await.unwrap()
        });
        Self { plan, input }
    }

    fn rows(&self, stage: &Stage, records: RecordBatch) -> Result<Rows, Verdict> {
        *self.input.records.lock() = records;
        let plan = reset_plan_states(Arc::clone(&self.plan)).unwrap();
        let rows = stage.runtime.block_on(collect(plan, stage.engine.session().task_ctx()));
        rows.map(|rows| Rows::of(&rows)).map_err(|error| Verdict::Wrong(format!("the oracle fails: {error}")))
    }
}

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The merged views, the books and the cut.
    Merged,
    /// Also batch and speed by themselves, and the records of every fate.
    Everything,
}

/// Why an answer cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The query failed. Allowed when the bucket failed it, and never allowed otherwise.
    Error(String),
    /// It answered, and the answer is wrong.
    Wrong(String),
}

/// Compares everything that `process` answers about its newest snapshot.
pub fn check(
    stage: &Stage,
    process: &Process,
    truths: &[Truth],
    views: &[ViewText],
    depth: Depth,
) -> Result<(), Verdict> {
    let snapshot = process.core.cell.load();
    let wrong = |reason: String| Err(Verdict::Wrong(reason));
    if let Some(violation) = snapshot.violation() {
        return wrong(violation);
    }
    let database = Merged::new(&process.core);
    let session = database.session();
    session.register_catalog(CATALOG, database.pin().map_err(|error| Verdict::Error(error.to_string()))?);
    let streams: Vec<_> = process.core.declared.names.streams.values().cloned().collect();
    for (stream, truth) in streams.iter().zip(truths) {
        let part = &snapshot.streams[&stream.name];
        let (books, kept) = (part.ledger.as_ref(), truth.ledger());
        if *books != kept {
            return wrong(format!(
                "stream {}: the books say {books:?}, but what was read is {kept:?}",
                stream.name
            ));
        }
        if part.end.next != truth.next {
            let (end, next) = (&part.end.next, &truth.next);
            return wrong(format!(
                "stream {}: the delta ends at {end:?}, but it was read to {next:?}",
                stream.name
            ));
        }
        if depth == Depth::Everything {
            for (fate, table) in [
                (Fate::Counted, format!("raw.{}", stream.name)),
                (Fate::Duplicate, format!("raw.{}_duplicates", stream.name)),
                (Fate::Quarantined, format!("quarantine.{}", stream.name)),
            ] {
                let sql = format!("SELECT _partition, _offset FROM {table}");
                let found = Rows::of(&run(stage, &session, &sql)?);
                let wanted = Rows::of_coordinates(&truth.records(fate, 0..truth.read()));
                found.differ(&wanted).map_or(Ok(()), |how| wrong(format!("{table}: {how}")))?;
            }
        }
    }
    for view in views {
        let (truth, stream) = (&truths[view.source], &streams[view.source]);
        let cut = truth.read_in(snapshot.generation.epoch(&stream.name));
        let oracle =
            |range: Range<usize>| view.oracle.rows(stage, columns(stream, &truth.records(Fate::Counted, range)));
        let compare = |schema: &str, range: Range<usize>| {
            let table = format!("{schema}.{}", view.name);
            let found = Rows::of(&run(stage, &session, &format!("SELECT * FROM {table}"))?);
            let how = found.differ(&oracle(range)?);
            how.map_or(Ok(()), |how| wrong(format!("{table}, which is {}: {how}", view.query)))
        };
        compare("public", 0..truth.read())?;
        if depth == Depth::Everything {
            compare("batch", 0..cut)?;
            compare("speed", cut..truth.read())?;
        }
    }
    Ok(())
}

fn run(stage: &Stage, session: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>, Verdict> {
    let failed = |error: datafusion::error::DataFusionError| Verdict::Error(format!("{sql}: {error}"));
    stage.runtime.block_on(async { session.sql(sql).await.map_err(failed)?.collect().await.map_err(failed) })
}

/// A session in which `raw.<stream>` is this table, and nothing else exists.
fn session_over(stage: &Stage, stream: &str, table: Arc<dyn TableProvider>) -> SessionContext {
    let raw = MemorySchemaProvider::new();
    raw.register_table(stream.to_owned(), table).unwrap();
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema("raw", Arc::new(raw)).unwrap();
    catalog.register_schema(DEFAULT_SCHEMA, Arc::new(MemorySchemaProvider::new())).unwrap();
    let session = stage.engine.session();
    session.register_catalog(CATALOG, Arc::new(catalog));
    session
}

/// Rows in an order of their own: what is exact as text, and floats apart.
#[derive(Debug, Clone, PartialEq)]
struct Rows(Vec<(String, Vec<Option<f64>>)>);

impl Rows {
    fn of(batches: &[RecordBatch]) -> Self {
        let options = FormatOptions::default().with_null("NULL");
        let mut rows = Vec::new();
        for batch in batches {
            let is_float = |column: &&Arc<dyn Array>| column.data_type() == &DataType::Float64;
            let (floats, exact): (Vec<_>, Vec<_>) = batch.columns().iter().partition(is_float);
            let exact: Vec<_> =
                exact.into_iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
            for row in 0..batch.num_rows() {
                let cells: Vec<String> = exact.iter().map(|column| column.value(row).to_string()).collect();
                let floats = floats
                    .iter()
                    .map(|column| column.as_primitive::<Float64Type>())
                    .map(|column| column.is_valid(row).then(|| column.value(row)));
                rows.push((cells.join(" | "), floats.collect()));
            }
        }
        Self(rows).sorted()
    }

    fn of_coordinates(records: &[Placed]) -> Self {
        let row = |placed: &Placed| (format!("{} | {}", placed.partition, placed.offset), Vec::new());
        Self(records.iter().map(row).collect()).sorted()
    }

    fn sorted(mut self) -> Self {
        self.0.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.partial_cmp(&b.1).unwrap_or(Ordering::Equal)));
        self
    }

    /// How the rows differ; None when they are the same.
    fn differ(&self, wanted: &Self) -> Option<String> {
        let same = self.0.len() == wanted.0.len()
            && self.0.iter().zip(&wanted.0).all(|(a, b)| {
                a.0 == b.0 && a.1.len() == b.1.len() && a.1.iter().zip(&b.1).all(|(a, b)| near(*a, *b))
            });
        (!same).then(|| format!("\n  answered {:?}\n  instead of {:?}", self.0, wanted.0))
    }
}

/// Deviations are computed from states that depend on the cut in their last digits; nothing else does.
fn near(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0) || (a.is_nan() && b.is_nan()),
        (a, b) => a == b,
    }
}
