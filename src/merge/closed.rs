//! What could be read at an older moment, for who computes again what was written then: records below a frontier, and
//! tables at chosen versions. There are no views: nothing is taken from what was computed before.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::common::config::ConfigOptions;
use datafusion::common::{DataFusionError, Result, TableReference, plan_datafusion_err};
use datafusion::optimizer::analyzer::Analyzer;
use datafusion::prelude::SessionContext;

use super::catalog::{Names, below, declared_tables};
use super::ordinary::{register, with_schema};
use super::provider::in_memory;
use crate::archive::{ArchiveSnapshot, Kind};
use crate::catalog::closed::ClosedPeriods;
use crate::catalog::stream::Stream;
use crate::catalog::{Fault, qualified, schema_and_table};
use crate::engine::{CATALOG, Engine};
use crate::position::{Epoch, StreamFrontier};

/// Records and tables of one moment.
pub struct Past {
    session: SessionContext,
}

/// What cannot be planned of `files` over the records and tables of `names`; all faults at once.
pub async fn faults(engine: &Engine, files: &[ClosedPeriods], names: &Names) -> Vec<Fault> {
    let broken = |file: &str, error: DataFusionError| Fault {
        file: file.to_owned(),
        line: 1,
        column: 1,
        reason: error.strip_backtrace(),
    };
    let session = engine.session();
    let declared = match declared_tables(names).await {
        Ok(declared) => declared,
        Err(error) => return vec![broken(CATALOG, error)],
    };
    for (schema, table, columns) in declared {
        let name = qualified(&schema, &table);
        let read = (schema == "raw" && names.streams.contains_key(&table)) || names.tables.contains_key(&name);
        if read && let Err(error) = register(&session, &name, columns) {
            return vec![broken(CATALOG, error)];
        }
    }
    let mut faults = Vec::new();
    for file in files {
        for table in [&file.closed_by, &file.frontier] {
            if !names.tables.contains_key(table) {
                faults
                    .push(broken(&file.file, plan_datafusion_err!("its header names {table}, which is no table")));
            }
        }
        let state = session.state();
        let sql = match file.query("period") {
            Ok(sql) => sql,
            Err(reason) => {
                faults.push(broken(&file.file, DataFusionError::Plan(reason)));
                continue;
            }
        };
        let check = |plan| Analyzer::new().execute_and_check(plan, &ConfigOptions::default(), |_, _| {});
        if let Err(error) = state.create_logical_plan(&sql).await.and_then(check) {
            faults.push(broken(&file.file, error));
        }
    }
    faults
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
