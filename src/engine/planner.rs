//! Plans what the catalog declares: views into their three plans, checks into expressions.
//!
//! Faults point at the file, line and column of the declaration.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::catalog::{
    CatalogProvider, MemTable, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::common::{DFSchema, DataFusionError, Result, SchemaError, TableReference};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::interval::as_durations;
use super::state::{LambdaView, TableRows, ViewError};
use super::unbound::Unbound;
use super::{CATALOG, DEFAULT_SCHEMA, Engine};
use crate::catalog::stream::{Check, CompiledCheck, Stream};
use crate::catalog::table::Table;
use crate::catalog::view::View;
use crate::catalog::{Catalog, Fault, schema_and_table};

/// Plans against the streams of one catalog.
pub struct Planner {
    session: SessionContext,
    /// No rows of each reference table.
    empty: BTreeMap<String, TableRows>,
}

impl std::fmt::Debug for Planner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planner").finish_non_exhaustive()
    }
}

impl Planner {
    /// Knows every stream of `catalog` as `raw.<stream>`, and every reference table, without data.
    ///
    /// # Errors
    /// When a table cannot be registered.
    pub fn new(engine: &Engine, catalog: &Catalog) -> Result<Self> {
        let raw = MemorySchemaProvider::new();
        for stream in catalog.streams.values() {
            let table = MemTable::try_new(stream.record_schema(), vec![vec![]])?;
            raw.register_table(stream.name.clone(), Arc::new(table))?;
        }
        let provider: Arc<dyn CatalogProvider> = Arc::new(MemoryCatalogProvider::new());
        provider.register_schema("raw", Arc::new(raw))?;
        provider.register_schema(DEFAULT_SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
        let session = engine.session();
        session.register_catalog(CATALOG, Arc::clone(&provider));
        let mut empty = BTreeMap::new();
        for (name, table) in &catalog.tables {
            let columns = table.schema();
            let rows = RecordBatch::new_empty(Arc::clone(&columns));
            empty.insert(name.clone(), TableRows { rows, digest: String::new() });
            let (schema, table) = schema_and_table(name);
            if provider.schema(schema).is_none() {
                provider.register_schema(schema, Arc::new(MemorySchemaProvider::new()))?;
            }
            session.register_table(TableReference::partial(schema, table), Arc::new(Unbound { columns }))?;
        }
        Ok(Self { session, empty })
    }

    /// The three plans of `view`, which is called `name` in them.
    ///
    /// # Errors
    /// When its query cannot be planned, or not be computed in parts.
    pub async fn view(&self, name: &str, view: &View) -> Result<LambdaView, Fault> {
        let declared = Declared { file: &view.file, line: view.line, query: &view.query };
        let plan = self
            .session
            .state()
            .statement_to_plan(declared.statement())
            .await
            .map_err(|error| declared.fault(&error))?;
        let refused = |error: ViewError| match &error {
            ViewError::Plan { source, .. } => declared.fault(source),
            _ => declared.fault_at_start(error.to_string()),
        };
        let split = LambdaView::split(name, plan).map_err(refused)?;
        if view.billable {
            split.refuse_unless_exact().map_err(refused)?;
        }
        self.rehearse(&split).await.map_err(|error| match error {
            ViewError::Plan { source, .. } => declared.fault(&source),
            other => declared.fault_at_start(other.to_string()),
        })?;
        Ok(split)
    }

    /// Plans all that a view is computed with, on nothing: what the optimiser stumbles over is a fault of the
    /// definition, and not of every record that comes.
    async fn rehearse(&self, view: &LambdaView) -> Result<(), ViewError> {
        let failed = |source| ViewError::plan(view.name(), source);
        let records = self.session.table_provider(view.stream().clone()).await.map_err(failed)?;
        let states = MemTable::try_new(view.state_schema(), vec![vec![]]).map_err(failed)?;
        let states: Arc<dyn TableProvider> = Arc::new(states);
        let view = view.bound(view.name(), &self.empty)?;
        let plans = [view.state_plan(records)?, view.combine_plan(Arc::clone(&states))?, view.merge_plan(states)?];
        for plan in plans {
            self.session.state().create_physical_plan(&plan).await.map_err(failed)?;
        }
        Ok(())
    }

    /// The checks of `stream`, ready to run on its records.
    ///
    /// # Errors
    /// When a check is not a boolean expression over the record's columns.
    pub fn checks(&self, stream: &Stream) -> Result<Vec<CompiledCheck>, Fault> {
        let file = stream.declared_at.rsplit_once(':').map_or(stream.declared_at.as_str(), |(file, _)| file);
        let schema = stream.record_schema();
        stream.checks.iter().map(|check| self.check(file, &schema, check)).collect()
    }

    /// The checks of `table`, ready to run on its rows.
    ///
    /// # Errors
    /// When a check is not a boolean expression over the table's columns.
    pub fn table_checks(&self, table: &Table) -> Result<Vec<CompiledCheck>, Fault> {
        let schema = table.schema();
        table.checks.iter().map(|check| self.check(&table.file, &schema, check)).collect()
    }

    fn check(&self, file: &str, columns: &SchemaRef, check: &Check) -> Result<CompiledCheck, Fault> {
        let fault = |reason: String| Fault {
            file: file.to_owned(),
            line: check.line,
            column: check.column,
            reason: format!("check {}: {reason}", check.name),
        };
        let compile = || -> Result<_> {
            let schema = DFSchema::try_from(Arc::clone(columns))?;
            let expr = self.session.parse_sql_expr(&check.sql, &schema)?;
            self.session.create_physical_expr(as_durations(expr, &schema)?, &schema)
        };
        let expr = compile().map_err(|error| fault(reason(&error)))?;
        match expr.data_type(columns) {
            Ok(DataType::Boolean) => Ok(CompiledCheck { name: check.name.clone(), sql: check.sql.clone(), expr }),
            Ok(other) => Err(fault(format!("must be true or false, but is {other}"))),
            Err(error) => Err(fault(reason(&error))),
        }
    }
}

/// The query of a view, and where it was declared.
#[derive(Debug, Clone, Copy)]
pub struct Declared<'a> {
    pub file: &'a str,
    /// Where the statement begins.
    pub line: u64,
    pub query: &'a ast::Query,
}

impl Declared<'_> {
    pub fn statement(&self) -> Statement {
        Statement::Statement(Box::new(ast::Statement::Query(Box::new(self.query.clone()))))
    }

    /// What the planner says of the query, at the place it speaks of.
    pub fn fault(&self, error: &DataFusionError) -> Fault {
        let (line, column) = match error.diagnostic().and_then(|d| d.span) {
            Some(span) => (span.start.line, span.start.column),
            None => unknown_name(self.query, error).unwrap_or((self.line, 1)),
        };
        Fault { file: self.file.to_owned(), line, column, reason: reason(error) }
    }

    pub fn fault_at_start(&self, reason: String) -> Fault {
        Fault { file: self.file.to_owned(), line: self.line, column: 1, reason }
    }
}

/// Where the column stands that is not known. DataFusion does not say it of every clause.
fn unknown_name(query: &ast::Query, error: &DataFusionError) -> Option<(u64, u64)> {
    let DataFusionError::SchemaError(error, _) = error.find_root() else { return None };
    let SchemaError::FieldNotFound { field, .. } = error.as_ref() else { return None };
    let found = ast::visit_expressions(query, |expr| {
        let last = match expr {
            ast::Expr::Identifier(ident) => Some(ident),
            ast::Expr::CompoundIdentifier(idents) => idents.last(),
            _ => None,
        };
        match last {
            Some(ident) if ident.value.eq_ignore_ascii_case(&field.name) => ControlFlow::Break(ident.span.start),
            _ => ControlFlow::Continue(()),
        }
    });
    found.break_value().map(|at| (at.line, at.column))
}

/// What DataFusion says, without the words around it.
fn reason(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    let text = text.strip_prefix("Error during planning: ").unwrap_or(&text);
    text.strip_prefix("Schema error: ").unwrap_or(text).trim_end_matches('.').to_owned()
}
