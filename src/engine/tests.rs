#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef, TimeUnit};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::{MemTable, MemorySchemaProvider, TableProvider};
use datafusion::prelude::SessionContext;

use super::*;
use crate::engine::state::{LambdaView, ViewError};

mod merge;
mod refuse;
mod session;

fn engine() -> Arc<Engine> {
    // Few rows a batch, so that small tables make many batches.
    Engine::new(EngineConfig { threads: 3, memory_bytes_max: 256 << 20, spill_dir: None, batch_rows: 7 }).unwrap()
}

fn events_schema() -> SchemaRef {
    let tag = Arc::new(Field::new_list_field(DataType::Utf8, true));
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("k", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
        Field::new("d", DataType::Decimal128(18, 2), true),
        Field::new("f", DataType::Float64, true),
        Field::new("b", DataType::Boolean, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("tags", DataType::List(tag), true),
        Field::new("_partition", DataType::Int32, true),
        Field::new("_offset", DataType::Int64, true),
    ]))
}

fn mem(schema: SchemaRef, partitions: Vec<Vec<RecordBatch>>) -> Arc<dyn TableProvider> {
    let partitions = if partitions.is_empty() { vec![vec![]] } else { partitions };
    Arc::new(MemTable::try_new(schema, partitions).unwrap())
}

/// A session that knows the streams `raw.events` (of `rows`) and `raw.others`, and the reference table `names`.
fn session_with(engine: &Engine, rows: Vec<RecordBatch>) -> SessionContext {
    let ctx = engine.session();
    let raw = Arc::new(MemorySchemaProvider::new());
    ctx.catalog(CATALOG).unwrap().register_schema("raw", raw).unwrap();
    ctx.register_table("raw.events", mem(events_schema(), vec![rows])).unwrap();
    ctx.register_table("raw.others", mem(events_schema(), vec![])).unwrap();
    let names = Schema::new(vec![Field::new("k", DataType::Utf8, true), Field::new("label", DataType::Utf8, true)]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["a", "b", "b", "z"])),
        Arc::new(StringArray::from(vec!["first", "second", "twice", "never"])),
    ];
    let names = RecordBatch::try_new(Arc::new(names), columns).unwrap();
    ctx.register_batch("names", names).unwrap();
    ctx
}

async fn plan(ctx: &SessionContext, sql: &str) -> LogicalPlan {
    ctx.state().create_logical_plan(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// Rows as text in one order; floats to nine digits, since their sums follow the order of rows.
fn rows_of(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let cells = batch.columns().iter().map(|column| match column.data_type() {
                DataType::Float64 if column.is_valid(row) => {
                    let value = column.as_primitive::<Float64Type>().value(row);
                    format!("{:.8e}", if value == 0.0 { 0.0 } else { value })
                }
                _ => ArrayFormatter::try_new(column, &options).unwrap().value(row).to_string(),
            });
            rows.push(cells.collect::<Vec<_>>().join(" | "));
        }
    }
    rows.sort();
    rows
}
