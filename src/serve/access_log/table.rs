//! The log as a table: its files are read line by line when a query asks for them.

use std::fs::File;
use std::io::{BufReader, Read};
use std::sync::Arc;

use arrow::json::ReaderBuilder;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use futures::stream;

use super::files::Written;

const BATCH_ROWS: usize = 8192;

fn schema() -> SchemaRef {
    let field = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
    Arc::new(Schema::new(vec![
        field("at", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())), false),
        field("event", DataType::Utf8, false),
        field("role", DataType::Utf8, false),
        field("address", DataType::Utf8, true),
        field("application", DataType::Utf8, true),
        field("protocol", DataType::Utf8, false),
        field("tls", DataType::Boolean, false),
        field("session", DataType::Int32, true),
        field("statement", DataType::Utf8, true),
        field("sqlstate", DataType::Utf8, true),
        field("rows", DataType::UInt64, true),
        field("micros", DataType::UInt64, true),
        field("generation", DataType::UInt64, true),
    ]))
}

/// The whole lines of these files.
pub(super) fn over(files: Vec<Written>) -> Result<Arc<dyn TableProvider>> {
    let schema = schema();
    let part = |file| Arc::new(Part { schema: Arc::clone(&schema), file }) as Arc<dyn PartitionStream>;
    // Without files there is one part without rows: an engine wants at least one.
    let parts = match files.is_empty() {
        true => vec![part(None)],
        false => files.into_iter().map(|file| part(Some(file))).collect(),
    };
    Ok(Arc::new(StreamingTable::try_new(schema, parts)?))
}

#[derive(Debug)]
struct Part {
    schema: SchemaRef,
    file: Option<Written>,
}

impl PartitionStream for Part {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let schema = Arc::clone(&self.schema);
        let opened = self.file.as_ref().map(|file| File::open(&file.path).map(|open| open.take(file.bytes)));
        let batches: stream::BoxStream<'static, Result<_>> = match opened {
            None => Box::pin(stream::empty()),
            // It was let go since the query was planned.
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => Box::pin(stream::empty()),
            Some(Err(error)) => Box::pin(stream::iter([Err(DataFusionError::IoError(error))])),
            Some(Ok(lines)) => {
                let reader = ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(BATCH_ROWS);
                match reader.build(BufReader::new(lines)) {
                    Ok(reader) => Box::pin(stream::iter(reader.map(|batch| batch.map_err(Into::into)))),
                    Err(error) => Box::pin(stream::iter([Err(error.into())])),
                }
            }
        };
        Box::pin(RecordBatchStreamAdapter::new(schema, batches))
    }
}
