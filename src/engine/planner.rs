//! Plans what the catalog declares: views into their three plans, checks into expressions.
//!
//! Faults point at the file, line and column of the declaration.

use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::catalog::{CatalogProvider, MemTable, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider};
use datafusion::common::{DFSchema, DataFusionError, Result, SchemaError};
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast;

use super::interval::as_durations;
use super::state::{LambdaView, ViewError};
use super::{CATALOG, DEFAULT_SCHEMA, Engine};
use crate::catalog::stream::{Check, CompiledCheck, Stream};
use crate::catalog::view::View;
use crate::catalog::{Catalog, Fault};

/// Plans against the streams of one catalog.
pub struct Planner {
    session: SessionContext,
}

impl std::fmt::Debug for Planner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Planner").finish_non_exhaustive()
    }
}

impl Planner {
    /// Knows every stream of `catalog` as `raw.<stream>`, without data.
    ///
    /// # Errors
    /// When a table cannot be registered.
    pub fn new(engine: &Engine, catalog: &Catalog) -> Result<Self> {
        let raw = MemorySchemaProvider::new();
        for stream in catalog.streams.values() {
            let table = MemTable::try_new(stream.record_schema(), vec![vec![]])?;
            raw.register_table(stream.name.clone(), Arc::new(table))?;
        }
        let provider = MemoryCatalogProvider::new();
        provider.register_schema("raw", Arc::new(raw))?;
        provider.register_schema(DEFAULT_SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
        let session = engine.session();
        session.register_catalog(CATALOG, Arc::new(provider));
        Ok(Self { session })
    }

    /// The three plans of `view`.
    ///
    /// # Errors
    /// When its query cannot be planned, or not be computed in parts.
    pub async fn view(&self, view: &View) -> Result<LambdaView, Fault> {
        let place = |error: &DataFusionError| match error.diagnostic().and_then(|d| d.span) {
            Some(span) => (span.start.line, span.start.column),
            None => unknown_name(&view.query, error).unwrap_or((view.line, 1)),
        };
        let fault = |(line, column), reason: String| Fault { file: view.file.clone(), line, column, reason };
        let query = ast::Statement::Query(view.query.clone());
        let plan = self
            .session
            .state()
            .statement_to_plan(Statement::Statement(Box::new(query)))
            .await
            .map_err(|error| fault(place(&error), reason(&error)))?;
        LambdaView::split(&view.name, plan).map_err(|error| match &error {
            ViewError::Plan { source, .. } => fault(place(source), reason(source)),
            _ => fault((view.line, 1), error.to_string()),
        })
    }

    /// The checks of `stream`, ready to run on its records.
    ///
    /// # Errors
    /// When a check is not a boolean expression over the record's columns.
    pub fn checks(&self, stream: &Stream) -> Result<Vec<CompiledCheck>, Fault> {
        stream.checks.iter().map(|check| self.check(stream, check)).collect()
    }

    fn check(&self, stream: &Stream, check: &Check) -> Result<CompiledCheck, Fault> {
        let file = stream.declared_at.rsplit_once(':').map_or(stream.declared_at.as_str(), |(file, _)| file);
        let fault = |reason: String| Fault {
            file: file.to_owned(),
            line: check.line,
            column: check.column,
            reason: format!("check {}: {reason}", check.name),
        };
        let compile = || -> Result<_> {
            let schema = DFSchema::try_from(stream.record_schema())?;
            let expr = self.session.parse_sql_expr(&check.sql, &schema)?;
            self.session.create_physical_expr(as_durations(expr, &schema)?, &schema)
        };
        let expr = compile().map_err(|error| fault(reason(&error)))?;
        match expr.data_type(&stream.record_schema()) {
            Ok(datafusion::arrow::datatypes::DataType::Boolean) => {
                Ok(CompiledCheck { name: check.name.clone(), sql: check.sql.clone(), expr })
            }
            Ok(other) => Err(fault(format!("must be true or false, but is {other}"))),
            Err(error) => Err(fault(reason(&error))),
        }
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
