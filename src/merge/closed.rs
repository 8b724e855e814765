//! What could be read at an older moment, for who computes again what was written then: records below a frontier, and
//! tables at chosen versions. There are no views: nothing is taken from what was computed before.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::common::{Result, TableReference};
use datafusion::prelude::SessionContext;

use super::catalog::below;
use super::ordinary::with_schema;
use super::provider::in_memory;
use crate::archive::{ArchiveSnapshot, Kind};
use crate::catalog::schema_and_table;
use crate::catalog::stream::Stream;
use crate::engine::Engine;
use crate::position::{Epoch, StreamFrontier};

/// Records and tables of one moment.
pub struct Past {
    session: SessionContext,
}

impl fmt::Debug for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Past").finish_non_exhaustive()
    }
}

impl Past {
    pub fn new(engine: &Engine) -> Self {
        Self { session: engine.session() }
    }

    /// The records of a stream that were counted below `frontier`, in the schema `raw`.
    ///
    /// # Errors
    /// What DataFusion says of the table.
    pub fn add_records(&self, stream: &Stream, archive: &ArchiveSnapshot, frontier: &StreamFrontier) -> Result<()> {
        let records = archive.records(stream, Kind::Event, Epoch::default());
        self.add("raw", &stream.name, below(frontier, Arc::new(records))?)
    }

    /// A reference table.
    ///
    /// # Errors
    /// What DataFusion says of the table.
    pub fn add_table(&self, name: &str, rows: RecordBatch) -> Result<()> {
        let (schema, table) = schema_and_table(name);
        self.add(schema, table, in_memory(&rows.schema(), [rows])?)
    }

    fn add(&self, schema: &str, table: &str, rows: Arc<dyn TableProvider>) -> Result<()> {
        with_schema(&self.session, schema)?;
        self.session.register_table(TableReference::partial(schema, table), rows).map(drop)
    }

    /// The rows of a query.
    ///
    /// # Errors
    /// When it cannot be planned, or fails.
    pub async fn rows(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        self.session.sql(sql).await?.collect().await
    }
}
