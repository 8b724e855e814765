//! What the query service reads: the newest snapshot as a catalog, and the refresh on demand.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, TableFunctionImpl};
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use tokio::sync::{mpsc, oneshot};

use super::Core;
use super::definitions::Definitions;
use super::refresh::Refresher;
use super::tables::References;
use crate::batch;
use crate::batch::shelf::AsOf;
use crate::catalog::function::Functions;
use crate::catalog::qualified;
use crate::catalog::role::Roles;
use crate::engine::Engine;
use crate::kafka::status::IntakeStatus;
use crate::merge::audit;
use crate::merge::catalog::PinnedCatalog;
use crate::merge::certificate;
use crate::merge::diff::ViewDiff;
use crate::merge::endpoints::PlannedEndpoint;
use crate::merge::point::ByKey;
use crate::merge::pulse::Pulse;
use crate::merge::snapshot::SnapshotCell;
use crate::merge::system::{self, Surroundings};
use crate::runtime::Health;
use crate::serve::{
    Certificate, ChangedRows, Database, DefineError, Readiness, RefreshError, RefreshScope, ServeError,
    TableChanges, ViewChange,
};
use crate::tables::WriteError;

/// The process as a [`Database`], whatever is open in it at the time.
pub struct Merged {
    open: ArcSwap<Open>,
    /// Where files in `sql/` are asked to be read again; None when nobody does.
    reloads: Option<mpsc::Sender<Reload>>,
}

/// Asks for files to be read again; who asks is told how it went.
pub type Reload = oneshot::Sender<Result<(), DefineError>>;

/// What is open.
struct Open {
    engine: Arc<Engine>,
    cell: Arc<SnapshotCell>,
    refresher: Arc<Refresher>,
    definitions: Arc<Definitions>,
    references: Arc<References>,
    status: IntakeStatus,
    health: Health,
    around: Arc<Surroundings>,
}

impl fmt::Debug for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Merged").finish_non_exhaustive()
    }
}

impl Merged {
    pub fn new(core: &Core) -> Self {
        Self { open: ArcSwap::from_pointee(Open::of(core)), reloads: None }
    }

    /// Sends requests to read files again to `reloads`.
    #[must_use]
    pub fn reloading(self, reloads: mpsc::Sender<Reload>) -> Self {
        Self { reloads: Some(reloads), ..self }
    }

    /// From now on `core` is read. What was pinned before stays as it is.
    pub fn turn_to(&self, core: &Core) {
        self.open.store(Arc::new(Open::of(core)));
    }

    fn present(&self) -> PinnedCatalog {
        self.open.load().present()
    }
}

impl Open {
    fn of(core: &Core) -> Self {
        let around = Surroundings {
            status: core.status.clone(),
            health: core.health.clone(),
            clock: Arc::clone(&core.clock),
            settings: core.config.public_settings(),
            shelf: core.refresher.shelf(),
            history: core.refresher.history(),
            refreshes: core.refresher.refreshes(),
            census: Arc::clone(&core.census),
            tables: Some(Arc::clone(&core.references.log)),
            seals: Arc::clone(&core.seals),
        };
        Self {
            engine: Arc::clone(&core.engine),
            cell: Arc::clone(&core.cell),
            refresher: Arc::clone(&core.refresher),
            definitions: Arc::clone(&core.definitions),
            references: Arc::clone(&core.references),
            status: core.status.clone(),
            health: core.health.clone(),
            around: Arc::new(around),
        }
    }

    fn present(&self) -> PinnedCatalog {
        PinnedCatalog::new(self.cell.load(), Arc::clone(&self.around))
    }
}

#[async_trait]
impl Database for Merged {
    fn pin(&self) -> Result<Arc<dyn CatalogProvider>, ServeError> {
        Ok(Arc::new(self.present()))
    }

    fn pin_as_of(&self, at: &str) -> Result<Arc<dyn CatalogProvider>, ServeError> {
        let open = self.open.load();
        let found = AsOf::parse(at).and_then(|wanted| open.around.shelf.find(wanted));
        let generation = found.map_err(|error| ServeError::AsOf(error.to_string()))?;
        Ok(Arc::new(open.present().as_of(generation)))
    }

    fn roles(&self) -> Option<Arc<Roles>> {
        let roles = Arc::clone(&self.open.load().definitions.declared.load().catalog.roles);
        (!roles.is_empty()).then_some(roles)
    }

    fn certificate(&self, pinned: &dyn CatalogProvider) -> Option<Certificate> {
        let pinned: &dyn Any = pinned;
        let certificate = pinned.downcast_ref::<PinnedCatalog>()?.certificate();
        Some(Certificate {
            generation: certificate.generation.0,
            complete: certificate.complete,
            json: certificate.json(),
        })
    }

    fn pulse(&self) -> Option<String> {
        let open = self.open.load();
        let now = open.around.clock.now();
        let pulse = Pulse::of(&open.cell.load(), &open.status, &open.health, now);
        Some(certificate::json(&pulse))
    }

    async fn by_key(&self, plan: &LogicalPlan, state: &SessionState) -> Option<Arc<ByKey>> {
        let points = self.open.load().refresher.points();
        match ByKey::of(&points, plan, state).await {
            Ok(query) => query.map(Arc::new),
            Err(error) => {
                tracing::debug!(%error, "a query is left to the general path");
                None
            }
        }
    }

    fn functions(&self, pinned: &dyn CatalogProvider) -> Arc<Functions> {
        let pinned: &dyn Any = pinned;
        pinned.downcast_ref::<PinnedCatalog>().map(|pinned| Arc::clone(pinned.functions())).unwrap_or_default()
    }

    fn identity(&self, pinned: &dyn CatalogProvider) -> Option<String> {
        let pinned: &dyn Any = pinned;
        pinned.downcast_ref::<PinnedCatalog>()?.identity()
    }

    fn endpoints(&self, pinned: &dyn CatalogProvider) -> Vec<Arc<PlannedEndpoint>> {
        let pinned: &dyn Any = pinned;
        let pinned = pinned.downcast_ref::<PinnedCatalog>();
        pinned.map(|pinned| pinned.endpoints().values().cloned().collect()).unwrap_or_default()
    }

    fn generation(&self, pinned: &dyn CatalogProvider) -> Option<u64> {
        let pinned: &dyn Any = pinned;
        pinned.downcast_ref::<PinnedCatalog>().map(|pinned| pinned.generation().0)
    }

    fn session(&self) -> SessionContext {
        self.open.load().engine.session()
    }

    async fn refresh(&self, view: Option<&str>, scope: RefreshScope) -> Result<String, RefreshError> {
        let open = self.open.load_full();
        let names = Arc::clone(&open.cell.load().names);
        let named: Vec<String> = match view {
            Some(view) => match names.view(view) {
                None => return Err(RefreshError::UnknownView(view.to_owned())),
                Some((instance, _)) => vec![instance.clone()],
            },
            None => names.views.keys().cloned().collect(),
        };
        let full = match scope {
            RefreshScope::New => Vec::new(),
            RefreshScope::Full => named,
        };
        match open.refresher.refresh(&open.cell, full).await {
            Ok(generation) => Ok(generation.to_string()),
            Err(error @ batch::run::RefreshError::Fenced(_)) => Err(RefreshError::Refused(error.to_string())),
            Err(batch::run::RefreshError::Cancelled) => Err(RefreshError::Cancelled),
            Err(error) => Err(RefreshError::Failed(crate::runtime::chain(&error))),
        }
    }

    async fn change_view(&self, change: &ViewChange, user: &str) -> Result<(), DefineError> {
        let definitions = Arc::clone(&self.open.load().definitions);
        definitions.change(change, user).await
    }

    async fn reload(&self) -> Result<(), DefineError> {
        let (tell, told) = oneshot::channel();
        let nobody = || DefineError::Failed("the process does not read files again, or is ending".to_owned());
        let reloads = self.reloads.as_ref().ok_or_else(nobody)?;
        reloads.send(tell).await.map_err(|_| nobody())?;
        told.await.unwrap_or_else(|_| Err(nobody()))
    }

    fn pin_to_change(&self, table: &str, rows: ChangedRows) -> Result<Arc<dyn CatalogProvider>, WriteError> {
        let open = self.open.load();
        open.references.pinned_for(&open.present(), table, rows)
    }

    async fn change_tables(
        &self,
        pinned: Option<Arc<dyn CatalogProvider>>,
    ) -> Result<Box<dyn TableChanges>, WriteError> {
        let open = self.open.load_full();
        let pinned = pinned.and_then(|pinned| {
            let pinned: &dyn Any = pinned.as_ref();
            pinned.downcast_ref::<PinnedCatalog>().cloned()
        });
        open.references.begin(pinned, || open.present()).await
    }

    fn table_functions(&self, pinned: &dyn CatalogProvider) -> Vec<(String, Arc<dyn TableFunctionImpl>)> {
        let pinned: &dyn Any = pinned;
        let Some(pinned) = pinned.downcast_ref::<PinnedCatalog>() else { return Vec::new() };
        vec![(ViewDiff::NAME.to_owned(), Arc::new(ViewDiff::over(pinned)))]
    }

    fn comment(&self, schema: &str, table: &str) -> Option<String> {
        let open = self.open.load();
        let declared = open.definitions.declared.load();
        let name = qualified(schema, table);
        if let Some(table) = declared.catalog.tables.get(&name) {
            return table.comment.clone();
        }
        if let Some(view) = declared.catalog.ordinary.get(&name) {
            return view.comment.clone();
        }
        match schema {
            "public" | "batch" | "speed" => {
                let names = Arc::clone(&open.cell.load().names);
                names.view(table)?.1.declared.comment.clone()
            }
            "raw" | "quarantine" => declared.names.streams.get(table)?.comment.clone(),
            "system" => system::TABLES.iter().find(|(name, _)| *name == table).map(|(_, text)| (*text).to_owned()),
            "audit" => audit::TABLES.iter().find(|(name, _)| *name == table).map(|(_, text)| (*text).to_owned()),
            _ => None,
        }
    }

    fn primary_key(&self, schema: &str, table: &str) -> Vec<String> {
        let names = Arc::clone(&self.open.load().cell.load().names);
        if let Some(table) = names.tables.get(&qualified(schema, table)) {
            return table.key_names().into_iter().map(str::to_owned).collect();
        }
        match schema {
            "public" | "batch" | "speed" => {
                names.view(table).map(|(_, input)| input.view.key_columns()).unwrap_or_default()
            }
            "raw" => {
                let key = names.streams.get(table).and_then(|stream| stream.columns.get(stream.key?));
                key.map(|column| column.name.clone()).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Reads are answered in any case; this tells whether they are complete and will stay so.
    fn readiness(&self) -> Readiness {
        let open = self.open.load();
        let mut reasons = open.health.failures();
        reasons.extend(open.status.complaints());
        let known = open.status.partitions();
        let declared = open.definitions.declared.load();
        let unread = declared.names.streams.keys().filter(|stream| !known.contains_key(*stream));
        reasons.extend(unread.map(|stream| format!("stream {stream}: its topic was not read yet")));
        let snapshot = open.cell.load();
        let restoring = snapshot.streams.iter().filter(|(_, stream)| !stream.whole);
        reasons.extend(restoring.map(|(name, _)| format!("stream {name}: its delta is being computed")));
        Readiness { ready: reasons.is_empty(), reasons }
    }
}
