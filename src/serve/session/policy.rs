//! What the role of a session may do: each table that its statement names is held against what the role was granted.
//!
//! Names are noted where the planner finds tables by them, which is the only way to a table: views are put in the place of
//! their names before there is a plan. Whoever may read a view needs no right on what the view reads, as in PostgreSQL.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DataFusionError, Result as PlanResult, ScalarValue, TableReference};
use datafusion::datasource::TableType;
use datafusion::logical_expr::Expr;
use datafusion::sql::parser::Statement as PlannerStatement;
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast;
use parking_lot::Mutex;

use super::Session;
use super::statement::Query;
use super::write::{Write, WriteKind};
use crate::catalog::ddl::{self, Definition};
use crate::catalog::role::{Privilege, Role};
use crate::catalog::schema_and_table;
use crate::catalog::version;
use crate::serve::auth::unknown_role;
use crate::serve::error::{QueryError, SqlState};
use crate::serve::{DATABASE, Database, ViewChange};
use crate::tables::change::OnConflict;

/// Where views and reference tables are.
const PUBLIC: &str = "public";

/// What a session may do; anything where no roles are declared.
#[derive(Debug, Clone)]
pub(super) struct Rights(Option<Arc<Role>>);

impl Rights {
    /// Of the server itself.
    pub(super) fn all() -> Self {
        Self(None)
    }

    /// Looked up for each statement: roles may have changed since the session began.
    pub(super) fn of(database: &dyn Database, user: &str) -> Result<Self, QueryError> {
        match database.roles() {
            None => Ok(Self(None)),
            Some(roles) => match roles.get(user) {
                Some(role) => Ok(Self(Some(Arc::clone(role)))),
                None => Err(unknown_role(user)),
            },
        }
    }

    /// Notes the tables that a statement names, where they matter.
    pub(super) fn watch(&self, catalog: Arc<dyn CatalogProvider>) -> (Arc<dyn CatalogProvider>, Arc<Named>) {
        let named = Arc::default();
        match &self.0 {
            None => (catalog, named),
            Some(_) => (Arc::new(Watched { catalog, named: Arc::clone(&named) }), named),
        }
    }

    /// Whether rows of a table may be read.
    pub(super) fn select(&self, schema: &str, table: &str) -> Result<(), QueryError> {
        self.needs(Privilege::Select, schema, table)
    }

    /// Whether all that was noted while `query` was planned may be read.
    pub(super) fn read(&self, query: &Query, named: &Named, default_schema: &str) -> Result<(), QueryError> {
        if self.0.is_none() {
            return Ok(());
        }
        // The table that an INSERT names is found too, and not read.
        let read = match query.ast.as_ref() {
            ast::Statement::Insert(ast::Insert { source: Some(source), .. }) => {
                Some(references(source, default_schema)?)
            }
            _ => None,
        };
        let named = named.0.lock();
        let mut read = named.iter().filter(|name| read.as_ref().is_none_or(|read| read.contains(*name)));
        read.try_for_each(|(schema, table)| self.select(schema, table))
    }

    pub(super) fn change(&self, write: &Write, table: &str) -> Result<(), QueryError> {
        let privileges: &[Privilege] = match &write.kind {
            WriteKind::Insert(OnConflict::Update { .. }) => &[Privilege::Insert, Privilege::Update],
            WriteKind::Insert(_) => &[Privilege::Insert],
            WriteKind::Update => &[Privilege::Update],
            WriteKind::Delete => &[Privilege::Delete],
            WriteKind::Truncate => &[Privilege::Truncate],
        };
        let (schema, table) = schema_and_table(table);
        privileges.iter().try_for_each(|privilege| self.needs(*privilege, schema, table))
    }

    pub(super) fn refresh(&self, view: &str) -> Result<(), QueryError> {
        self.needs(Privilege::Maintain, PUBLIC, view)
    }

    /// Whether a view may be defined: who defines one sees what it reads.
    pub(super) fn define(&self, change: &ViewChange) -> Result<(), QueryError> {
        let Some(role) = &self.0 else { return Ok(()) };
        if !role.may_create_in(PUBLIC) {
            let hint = format!("GRANT CREATE ON SCHEMA {PUBLIC} TO {}", role.name);
            return Err(denied("schema", PUBLIC, &hint));
        }
        let ViewChange::Create { statement, .. } = change else { return Ok(()) };
        // What cannot be read as a view is refused by whoever defines it.
        let definitions = ddl::parse("statement", statement).unwrap_or_default();
        for definition in definitions {
            let Definition::View(view) = definition else { continue };
            for (schema, table) in references(&view.query, PUBLIC)? {
                self.select(&schema, &table)?;
            }
        }
        Ok(())
    }

    pub(super) fn execute(&self, function: &str) -> Result<(), QueryError> {
        match &self.0 {
            Some(role) if !role.may_execute(function) => {
                let hint = format!("GRANT EXECUTE ON FUNCTION {function}() TO {}", role.name);
                Err(denied("function", function, &hint))
            }
            _ => Ok(()),
        }
    }

    /// A function that reads the view which its first argument names.
    pub(super) fn guarded(&self, function: Arc<dyn TableFunctionImpl>) -> Arc<dyn TableFunctionImpl> {
        match &self.0 {
            None => function,
            Some(_) => Arc::new(Guarded { rights: self.clone(), function }),
        }
    }

    fn needs(&self, privilege: Privilege, schema: &str, table: &str) -> Result<(), QueryError> {
        match &self.0 {
            Some(role) if !may(role, privilege, schema, table) => {
                let hint = format!("GRANT {} ON {schema}.{table} TO {}", privilege.name(), role.name);
                Err(denied("table", table, &hint))
            }
            _ => Ok(()),
        }
    }
}

/// A version `v@2` is read and refreshed with the right on `v`; no other name has that mark in it.
fn may(role: &Role, privilege: Privilege, schema: &str, table: &str) -> bool {
    let (view, _) = version::parse_versioned(table).unwrap_or((table, 0));
    role.may(privilege, schema, view)
}

/// In PostgreSQL's words.
fn denied(kind: &str, name: &str, grant: &str) -> QueryError {
    QueryError::new(SqlState::INSUFFICIENT_PRIVILEGE, format!("permission denied for {kind} {name}"))
        .hint(format!("{grant}, in a file in sql/roles, gives the right"))
}

impl Session {
    /// What the session may do now.
    pub(super) fn rights(&self) -> Result<Rights, QueryError> {
        Rights::of(self.service.database.as_ref(), &self.identity.user)
    }

    /// Whether the session may change the table. That it does not exist is told first, as in PostgreSQL.
    pub(super) fn permit_write(&self, write: &Write, table: &str) -> Result<(), QueryError> {
        self.rights()?.change(write, table).map_err(|denied| {
            match self.service.database.pin_to_change(table, write.rows()) {
                // In other schemas there are tables that nobody can change, which are not told from none.
                Err(error) if schema_and_table(table).0 == PUBLIC => error.into(),
                _ => denied,
            }
        })
    }

    /// Whether the session may refresh the view.
    pub(super) fn permit_refresh(&self, view: &str) -> Result<(), QueryError> {
        self.rights()?.refresh(view).or_else(|denied| {
            let there = self.service.database.pin()?.schema(PUBLIC).is_some_and(|schema| schema.table_exist(view));
            if there { Err(denied) } else { Ok(()) }
        })
    }
}

/// Schema and table of everything that a query names.
fn references(query: &ast::Query, default_schema: &str) -> Result<BTreeSet<(String, String)>, QueryError> {
    let statement = PlannerStatement::Statement(Box::new(ast::Statement::Query(Box::new(query.clone()))));
    let (tables, _) = resolve_table_references(&statement, true)?;
    let resolved = |table: TableReference| {
        let table = table.resolve(DATABASE, default_schema);
        (table.schema.to_string(), table.table.to_string())
    };
    Ok(tables.into_iter().map(resolved).collect())
}

/// The tables that a statement names.
#[derive(Debug, Default)]
pub(super) struct Named(Mutex<BTreeSet<(String, String)>>);

/// A catalog that notes which of its tables are asked for.
#[derive(Debug)]
struct Watched {
    catalog: Arc<dyn CatalogProvider>,
    named: Arc<Named>,
}

impl CatalogProvider for Watched {
    fn schema_names(&self) -> Vec<String> {
        self.catalog.schema_names()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let schema = self.catalog.schema(name)?;
        Some(Arc::new(WatchedSchema { name: name.to_owned(), schema, named: Arc::clone(&self.named) }))
    }
}

#[derive(Debug)]
struct WatchedSchema {
    name: String,
    schema: Arc<dyn SchemaProvider>,
    named: Arc<Named>,
}

#[async_trait]
impl SchemaProvider for WatchedSchema {
    fn table_names(&self) -> Vec<String> {
        self.schema.table_names()
    }

    async fn table(&self, name: &str) -> PlanResult<Option<Arc<dyn TableProvider>>> {
        let found = self.schema.table(name).await?;
        if found.is_some() {
            self.named.0.lock().insert((self.name.clone(), name.to_owned()));
        }
        Ok(found)
    }

    async fn table_type(&self, name: &str) -> PlanResult<Option<TableType>> {
        self.schema.table_type(name).await
    }

    fn table_exist(&self, name: &str) -> bool {
        self.schema.table_exist(name)
    }
}

#[derive(Debug)]
struct Guarded {
    rights: Rights,
    function: Arc<dyn TableFunctionImpl>,
}

impl TableFunctionImpl for Guarded {
    fn call_with_args(&self, args: TableFunctionArgs<'_, '_>) -> PlanResult<Arc<dyn TableProvider>> {
        let first = args.exprs().first();
        if let Some(Expr::Literal(ScalarValue::Utf8(Some(view)) | ScalarValue::Utf8View(Some(view)), _)) = first {
            self.rights.select(PUBLIC, view).map_err(|error| DataFusionError::External(Box::new(error)))?;
        }
        self.function.call_with_args(args)
    }
}
