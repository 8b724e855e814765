//! PostgreSQL's own catalog beside ours: `pg_catalog`, and the functions that clients call about it.
//!
//! Its tables are made by datafusion-pg-catalog from the names in a catalog. One instance serves all
//! sessions, so that the object ids that a client asks for and then asks about stay the same.

mod information;
mod own;

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionState;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::SessionContext;
use datafusion_pg_catalog::pg_catalog::context::{PgCatalogContextProvider, Role};
use datafusion_pg_catalog::setup_pg_catalog;
use parking_lot::RwLock;

use self::information::{INFORMATION_SCHEMA, InformationSchema};
use super::functions;
use super::policy::{Named, Rights};
use super::settings::Settings;
use crate::serve::access_log::AccessLog;
use crate::serve::{DATABASE, Database};

const PG_CATALOG: &str = "pg_catalog";
const AUDIT: &str = "audit";
const ACCESS_LOG: &str = "access_log";

/// The parts of the catalog that belong to no snapshot.
#[derive(Debug)]
pub(super) struct System {
    live: Arc<LiveCatalog>,
}

impl System {
    /// Makes the system catalog, and the session template that knows its functions.
    pub(super) fn new(database: Arc<dyn Database>, log: Option<Arc<AccessLog>>) -> Result<(Self, SessionState)> {
        let live = Arc::new(LiveCatalog {
            database: Arc::clone(&database),
            log,
            latest: RwLock::new(None),
            pg_catalog: OnceLock::new(),
        });
        let own: SessionState = database.session().state_ref().read().clone();
        let mut config = own.config().clone().with_information_schema(false);
        let options = config.options_mut();
        DATABASE.clone_into(&mut options.catalog.default_catalog);
        "public".clone_into(&mut options.catalog.default_schema);
        options.sql_parser.collect_spans = true;
        options.sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
        options.execution.time_zone = Some("+00:00".to_owned());
        let state = SessionStateBuilder::new_from_existing(own)
            .with_config(config)
            .with_catalog_list(Arc::new(Catalogs(Arc::clone(&live) as Arc<dyn CatalogProvider>)))
            .build();
        let context = SessionContext::new_with_state(state);
        let roles = Roles(Arc::clone(&live.database));
        setup_pg_catalog(&context, DATABASE, roles).map_err(|error| *error)?;
        functions::register_fixed(&context);
        let template = context.state_ref().read().clone();
        Ok((Self { live }, template))
    }

    /// The catalog of one statement: a pinned snapshot and the system tables. With it, which of its tables are asked for.
    pub(super) fn over(
        &self,
        pinned: &Arc<dyn CatalogProvider>,
        rights: &Rights,
        settings: &Settings,
    ) -> (Arc<dyn CatalogProviderList>, Arc<Named>) {
        // The system tables describe what the last statement saw, without keeping it alive.
        *self.live.latest.write() = Some(Arc::downgrade(pinned));
        let log = self.live.log.clone();
        let pg_catalog = self.pg_catalog().map(|tables| own::with_settings(tables, settings));
        let database = Arc::clone(&self.live.database);
        let whole = PinnedCatalog { pinned: Arc::clone(pinned), pg_catalog, log, database };
        let (whole, named) = rights.watch(Arc::new(whole));
        (Arc::new(Catalogs(whole)), named)
    }

    pub(super) fn pg_catalog(&self) -> Option<Arc<dyn SchemaProvider>> {
        self.live.pg_catalog.get().cloned()
    }
}

/// A list of exactly one catalog, which nobody can add to.
#[derive(Debug)]
struct Catalogs(Arc<dyn CatalogProvider>);

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![DATABASE.to_owned()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == DATABASE).then(|| Arc::clone(&self.0))
    }
}

/// One snapshot's schemas, `pg_catalog` and `information_schema`.
#[derive(Debug, Clone)]
struct PinnedCatalog {
    pinned: Arc<dyn CatalogProvider>,
    pg_catalog: Option<Arc<dyn SchemaProvider>>,
    log: Option<Arc<AccessLog>>,
    database: Arc<dyn Database>,
}

impl CatalogProvider for PinnedCatalog {
    fn schema_names(&self) -> Vec<String> {
        with_system(self.pinned.schema_names(), self.log.is_some())
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name {
            PG_CATALOG => self.pg_catalog.clone(),
            INFORMATION_SCHEMA => {
                let catalog = Arc::new(self.clone());
                Some(Arc::new(InformationSchema { catalog, database: Arc::clone(&self.database) }))
            }
            AUDIT => audit(self.pinned.schema(name), self.log.as_ref()),
            _ => self.pinned.schema(name),
        }
    }
}

/// What the system tables describe: the snapshot of the newest statement, or a fresh one.
struct LiveCatalog {
    database: Arc<dyn Database>,
    log: Option<Arc<AccessLog>>,
    latest: RwLock<Option<Weak<dyn CatalogProvider>>>,
    pg_catalog: OnceLock<Arc<dyn SchemaProvider>>,
}

impl fmt::Debug for LiveCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The system tables hold this catalog, so printing them would never end.
        f.debug_struct("LiveCatalog").field("database", &self.database).finish_non_exhaustive()
    }
}

impl LiveCatalog {
    fn current(&self) -> Option<Arc<dyn CatalogProvider>> {
        let latest = self.latest.read().as_ref().and_then(Weak::upgrade);
        latest.or_else(|| self.database.pin().ok())
    }
}

impl CatalogProvider for LiveCatalog {
    fn schema_names(&self) -> Vec<String> {
        let own = self.current().map(|catalog| catalog.schema_names()).unwrap_or_default();
        with_system(own, self.log.is_some())
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        match name {
            PG_CATALOG => self
                .pg_catalog
                .get()
                .map(|inner| Arc::new(SystemTables(Arc::clone(inner))) as Arc<dyn SchemaProvider>),
            AUDIT => audit(self.current()?.schema(name), self.log.as_ref()),
            _ => self.current()?.schema(name),
        }
    }

    fn register_schema(
        &self,
        name: &str,
        schema: Arc<dyn SchemaProvider>,
    ) -> Result<Option<Arc<dyn SchemaProvider>>> {
        if name != PG_CATALOG || self.pg_catalog.set(schema).is_err() {
            return Err(DataFusionError::Plan(format!("schema {name} cannot be registered")));
        }
        Ok(None)
    }
}

fn with_system(mut names: Vec<String>, logs: bool) -> Vec<String> {
    names.retain(|name| name != PG_CATALOG && name != INFORMATION_SCHEMA);
    if logs && !names.iter().any(|name| name == AUDIT) {
        names.push(AUDIT.to_owned());
    }
    names.sort();
    names.push(PG_CATALOG.to_owned());
    names
}

/// What the database has in `audit`, and the access log.
fn audit(own: Option<Arc<dyn SchemaProvider>>, log: Option<&Arc<AccessLog>>) -> Option<Arc<dyn SchemaProvider>> {
    match log {
        Some(log) => Some(Arc::new(Audit { own, log: Arc::clone(log) })),
        None => own,
    }
}

#[derive(Debug)]
struct Audit {
    own: Option<Arc<dyn SchemaProvider>>,
    log: Arc<AccessLog>,
}

#[async_trait]
impl SchemaProvider for Audit {
    fn table_names(&self) -> Vec<String> {
        let own = self.own.as_ref().map(|own| own.table_names()).unwrap_or_default();
        own.into_iter().chain([ACCESS_LOG.to_owned()]).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match &self.own {
            _ if name == ACCESS_LOG => self.log.table().map(Some),
            Some(own) => own.table(name).await,
            None => Ok(None),
        }
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        match &self.own {
            Some(own) if name != ACCESS_LOG => own.table_type(name).await,
            _ => Ok(self.table_exist(name).then_some(TableType::Base)),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        name == ACCESS_LOG || self.own.as_ref().is_some_and(|own| own.table_exist(name))
    }
}

/// `pg_catalog` as it lists itself, with the kinds of its relations.
#[derive(Debug)]
struct SystemTables(Arc<dyn SchemaProvider>);

#[async_trait]
impl SchemaProvider for SystemTables {
    fn table_names(&self) -> Vec<String> {
        self.0.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        self.0.table(name).await
    }

    async fn table_type(&self, _: &str) -> Result<Option<TableType>> {
        Ok(Some(TableType::Base))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.table_exist(name)
    }
}

/// The roles that are declared; without any, everybody is the same reader.
#[derive(Debug, Clone)]
struct Roles(Arc<dyn Database>);

#[async_trait]
impl PgCatalogContextProvider for Roles {
    async fn roles(&self) -> Vec<String> {
        match self.0.roles() {
            Some(roles) => roles.iter().map(|role| role.name.clone()).collect(),
            None => vec![DATABASE.to_owned()],
        }
    }

    async fn role(&self, name: &str) -> Option<Role> {
        let declared = match self.0.roles() {
            Some(roles) => Some(Arc::clone(roles.get(name)?)),
            None => None,
        };
        Some(Role {
            name: name.to_owned(),
            is_superuser: false,
            can_login: declared.as_ref().is_none_or(|role| role.login),
            can_create_db: false,
            can_create_role: false,
            can_create_user: false,
            can_replication: false,
            grants: Vec::new(),
            inherited_roles: declared.map(|role| role.member_of.iter().cloned().collect()).unwrap_or_default(),
        })
    }
}
