//! Ordinary views: queries over merged views, streams, system tables and each other.
//!
//! They are planned once, against the columns of what they read, so that a fault is told before anything runs. A
//! query that reads one gets that plan over the tables of its own snapshot: an ordinary view sees the same moment
//! as everything else in the query.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, MemorySchemaProvider, TableProvider};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, TableReference, plan_err};
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::optimizer::analyzer::Analyzer;
use datafusion::prelude::SessionContext;

use super::catalog::{Names, declared_tables};
use super::provider::PlanTable;
use crate::catalog::view::OrdinaryView;
use crate::catalog::{Fault, qualified, schema_and_table};
use crate::engine::planner::Declared;
use crate::engine::unbound::{Unbound, is_unbound};
use crate::engine::{CATALOG, DEFAULT_SCHEMA, Engine};

/// An ordinary view, planned.
#[derive(Debug)]
pub struct PlannedView {
    plan: LogicalPlan,
    /// Whether it must have no rows after each change of a table that it reads.
    enforced: bool,
    /// Its query, as readers of the catalog see it.
    definition: String,
}

/// Plans `views` over what `names` has; all faults at once.
///
/// A view that reads one with a fault is not planned, and is not a fault of its own.
pub async fn plan_all(
    engine: &Engine,
    views: &BTreeMap<String, Arc<OrdinaryView>>,
    names: &Names,
) -> Result<BTreeMap<String, Arc<PlannedView>>, Vec<Fault>> {
    let broken = |error: DataFusionError| {
        vec![Fault { file: CATALOG.to_owned(), line: 0, column: 0, reason: error.strip_backtrace() }]
    };
    let session = session(engine, names).await.map_err(broken)?;
    let mut reads = BTreeMap::new();
    for (name, view) in views {
        reads.insert(name.as_str(), read_by(&session, view, views).map_err(broken)?);
    }
    let mut planned = BTreeMap::new();
    let mut faults = in_circles(views, &reads);
    let mut failed: BTreeSet<&str> =
        views.keys().map(String::as_str).filter(|name| reaches(name, name, &reads)).collect();
    let mut waiting: BTreeSet<&str> =
        views.keys().map(String::as_str).filter(|name| !failed.contains(name)).collect();
    while let Some(name) = waiting
        .iter()
        .copied()
        .find(|name| reads.get(name).is_some_and(|read| read.iter().all(|read| !waiting.contains(read.as_str()))))
    {
        waiting.remove(name);
        let (Some(view), Some(read)) = (views.get(name), reads.get(name)) else { continue };
        if read.iter().any(|read| failed.contains(read.as_str())) {
            failed.insert(name);
            continue;
        }
        let declared = Declared { file: &view.file, line: view.line, query: &view.query };
        match plan(&session, view, &declared).await {
            Ok(view) => drop(planned.insert(name.to_owned(), Arc::new(view))),
            Err(fault) => {
                failed.insert(name);
                faults.push(fault);
            }
        }
    }
    if faults.is_empty() { Ok(planned) } else { Err(faults) }
}

/// A session that knows the columns of every table, and no rows.
pub(super) async fn session(engine: &Engine, names: &Names) -> Result<SessionContext> {
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(DEFAULT_SCHEMA, Arc::new(MemorySchemaProvider::new()))?;
    let session = engine.session();
    session.register_catalog(CATALOG, Arc::new(catalog));
    for (schema, table, columns) in declared_tables(names).await? {
        register(&session, &qualified(&schema, &table), columns)?;
    }
    Ok(session)
}

/// Makes the columns of a table or view known by its [`qualified`] name.
pub(super) fn register(session: &SessionContext, name: &str, columns: SchemaRef) -> Result<()> {
    let (schema, table) = schema_and_table(name);
    with_schema(session, schema)?;
    session.register_table(TableReference::partial(schema, table), Arc::new(Unbound { columns })).map(drop)
}

/// Makes a schema, unless there is one.
pub(super) fn with_schema(session: &SessionContext, schema: &str) -> Result<()> {
    if let Some(catalog) = session.catalog(CATALOG)
        && catalog.schema(schema).is_none()
    {
        catalog.register_schema(schema, Arc::new(MemorySchemaProvider::new()))?;
    }
    Ok(())
}

/// The ordinary views that `view` reads itself.
fn read_by(
    session: &SessionContext,
    view: &OrdinaryView,
    views: &BTreeMap<String, Arc<OrdinaryView>>,
) -> Result<BTreeSet<String>> {
    let declared = Declared { file: &view.file, line: view.line, query: &view.query };
    let tables = session.state().resolve_table_references(&declared.statement())?;
    let name = |table: &TableReference| qualified(table.schema().unwrap_or(DEFAULT_SCHEMA), table.table());
    Ok(tables.iter().map(name).filter(|name| views.contains_key(name)).collect())
}

/// A fault for each view that is defined by itself.
fn in_circles(views: &BTreeMap<String, Arc<OrdinaryView>>, reads: &BTreeMap<&str, BTreeSet<String>>) -> Vec<Fault> {
    let circular = views.values().filter(|view| reaches(&view.name, &view.name, reads));
    circular
        .map(|view| {
            let through: Vec<&str> =
                reads.get(view.name.as_str()).into_iter().flatten().map(String::as_str).collect();
            let through: Vec<&str> =
                through.into_iter().filter(|read| *read == view.name || reaches(read, &view.name, reads)).collect();
            let reason = format!(
                "view {} is defined by itself: it reads {}; let one of them read materialized views only",
                view.name,
                through.join(", ")
            );
            Fault { file: view.file.clone(), line: view.line, column: 1, reason }
        })
        .collect()
}

/// Whether what `from` reads, directly or not, has `to` in it.
fn reaches(from: &str, to: &str, reads: &BTreeMap<&str, BTreeSet<String>>) -> bool {
    let mut seen = BTreeSet::new();
    let mut next = vec![from];
    while let Some(name) = next.pop() {
        for read in reads.get(name).into_iter().flatten() {
            if read == to {
                return true;
            }
            if seen.insert(read.as_str()) {
                next.push(read);
            }
        }
    }
    false
}

/// Plans one view and makes its columns known to those that read it.
async fn plan(
    session: &SessionContext,
    view: &OrdinaryView,
    declared: &Declared<'_>,
) -> Result<PlannedView, Fault> {
    let fault = |error: DataFusionError| declared.fault(&error);
    let plan = session.state().statement_to_plan(declared.statement()).await.map_err(fault)?;
    // Types are checked here, and again in each query.
    Analyzer::new().execute_and_check(plan.clone(), &ConfigOptions::default(), |_, _| {}).map_err(fault)?;
    let parameters = plan.get_parameter_names().map_err(fault)?;
    if let Some(parameter) = parameters.iter().min() {
        return Err(
            declared.fault_at_start(format!("view {} has the parameter {parameter}: write a constant", view.name))
        );
    }
    let columns = Arc::clone(plan.schema().inner());
    let mut seen = BTreeSet::new();
    if let Some(twice) = columns.fields().iter().find(|field| !seen.insert(field.name())) {
        let reason = format!("view {} has two columns {}: name them apart with AS", view.name, twice.name());
        return Err(declared.fault_at_start(reason));
    }
    register(session, &view.name, columns).map_err(fault)?;
    Ok(PlannedView { plan, enforced: view.enforced, definition: view.query.to_string() })
}

impl PlannedView {
    pub(super) fn columns(&self) -> SchemaRef {
        Arc::clone(self.plan.schema().inner())
    }

    pub fn enforced(&self) -> bool {
        self.enforced
    }

    /// Names of the tables and views that it reads itself, as [`qualified`].
    pub fn reads(&self) -> Result<BTreeSet<String>> {
        let name = |table: &TableReference| qualified(table.schema().unwrap_or(DEFAULT_SCHEMA), table.table());
        Ok(self.scanned()?.iter().map(name).collect())
    }

    fn scanned(&self) -> Result<BTreeSet<TableReference>> {
        let mut tables = BTreeSet::new();
        self.plan.apply_with_subqueries(|node| {
            if let LogicalPlan::TableScan(scan) = node
                && is_unbound(scan)?
            {
                tables.insert(scan.table_name.clone());
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(tables)
    }

    /// Over tables that are known by their columns.
    pub(super) fn plan(&self) -> &LogicalPlan {
        &self.plan
    }

    /// The view over the tables of `catalog`.
    ///
    /// # Errors
    /// When a table that it reads cannot be read there.
    pub async fn over(&self, catalog: &dyn CatalogProvider) -> Result<Arc<dyn TableProvider>> {
        let mut providers = HashMap::new();
        for table in self.scanned()? {
            let schema = catalog.schema(table.schema().unwrap_or(DEFAULT_SCHEMA));
            let provider = match schema {
                Some(schema) => schema.table(table.table()).await?,
                None => None,
            };
            match provider {
                Some(provider) => drop(providers.insert(table, provider)),
                None => return plan_err!("table '{table}' not found"),
            }
        }
        let replanted = self.plan.clone().transform_up_with_subqueries(|node| match node {
            LogicalPlan::TableScan(scan) => match providers.get(&scan.table_name) {
                Some(provider) => {
                    let source = provider_as_source(Arc::clone(provider));
                    let scan = LogicalPlanBuilder::scan(scan.table_name.clone(), source, None)?.build()?;
                    Ok(Transformed::yes(scan))
                }
                None => Ok(Transformed::no(LogicalPlan::TableScan(scan))),
            },
            node => Ok(Transformed::no(node)),
        })?;
        Ok(Arc::new(PlanTable::ordinary(replanted.data, self.definition.clone())))
    }
}
