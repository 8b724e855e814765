//! What the query service reads: the newest snapshot as a catalog, and the refresh on demand.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, TableFunctionImpl};
use datafusion::prelude::SessionContext;

use super::definitions::Definitions;
use super::refresh::Refresher;
use super::tables::References;
use super::{Core, Declared};
use crate::batch;
use crate::batch::shelf::AsOf;
use crate::engine::Engine;
use crate::kafka::status::IntakeStatus;
use crate::merge::catalog::PinnedCatalog;
use crate::merge::diff::ViewDiff;
use crate::merge::snapshot::SnapshotCell;
use crate::merge::system::{self, Surroundings};
use crate::runtime::Health;
use crate::serve::{
    Certificate, ChangedRows, Database, DefineError, Readiness, RefreshError, RefreshScope, ServeError, TableTurn,
    ViewChange,
};
use crate::tables::WriteError;

/// The process as a [`Database`].
pub struct Merged {
    engine: Arc<Engine>,
    declared: Arc<Declared>,
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
        let around = Surroundings {
            status: core.status.clone(),
            health: core.health.clone(),
            clock: Arc::clone(&core.clock),
            settings: core.config.public_settings(),
            shelf: core.refresher.shelf(),
            history: core.refresher.history(),
            refreshes: core.refresher.refreshes(),
            census: Arc::clone(&core.census),
            tables: core.references.logs.clone(),
        };
        Self {
            engine: Arc::clone(&core.engine),
            declared: Arc::clone(&core.declared),
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

    fn present_to_change(&self, table: &str, rows: ChangedRows) -> Arc<dyn CatalogProvider> {
        match rows {
            ChangedRows::New => Arc::new(self.present()),
            ChangedRows::Present => Arc::new(self.present().numbering(table)),
        }
    }
}

#[async_trait]
impl Database for Merged {
    fn pin(&self) -> Result<Arc<dyn CatalogProvider>, ServeError> {
        Ok(Arc::new(self.present()))
    }

    fn pin_as_of(&self, at: &str) -> Result<Arc<dyn CatalogProvider>, ServeError> {
        let found = AsOf::parse(at).and_then(|wanted| self.around.shelf.find(wanted));
        let generation = found.map_err(|error| ServeError::AsOf(error.to_string()))?;
        Ok(Arc::new(self.present().as_of(generation)))
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

    fn session(&self) -> SessionContext {
        self.engine.session()
    }

    async fn refresh(&self, view: Option<&str>, scope: RefreshScope) -> Result<String, RefreshError> {
        let names = Arc::clone(&self.cell.load().names);
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
        match self.refresher.refresh(&self.cell, full).await {
            Ok(generation) => Ok(generation.to_string()),
            Err(error @ batch::run::RefreshError::Fenced(_)) => Err(RefreshError::Refused(error.to_string())),
            Err(batch::run::RefreshError::Cancelled) => Err(RefreshError::Cancelled),
            Err(error) => Err(RefreshError::Failed(crate::runtime::chain(&error))),
        }
    }

    async fn change_view(&self, change: &ViewChange, user: &str) -> Result<(), DefineError> {
        self.definitions.change(change, user).await
    }

    fn pin_to_change(&self, table: &str, rows: ChangedRows) -> Result<Arc<dyn CatalogProvider>, WriteError> {
        match self.references.logs.contains_key(table) {
            true => Ok(self.present_to_change(table, rows)),
            false => Err(self.references.unknown(table)),
        }
    }

    async fn change_table(&self, table: &str, rows: ChangedRows) -> Result<Box<dyn TableTurn>, WriteError> {
        self.references.turn(table, || self.present_to_change(table, rows)).await
    }

    fn table_functions(&self, pinned: &dyn CatalogProvider) -> Vec<(String, Arc<dyn TableFunctionImpl>)> {
        let pinned: &dyn Any = pinned;
        let Some(pinned) = pinned.downcast_ref::<PinnedCatalog>() else { return Vec::new() };
        vec![(ViewDiff::NAME.to_owned(), Arc::new(ViewDiff::over(pinned)))]
    }

    fn comment(&self, schema: &str, table: &str) -> Option<String> {
        match schema {
            "public" | "batch" | "speed" => {
                let catalog = &self.declared.catalog;
                let ordinary = || catalog.ordinary.get(table).filter(|_| schema == "public");
                let reference = || catalog.tables.get(table).filter(|_| schema == "public");
                let names = Arc::clone(&self.cell.load().names);
                let kept = names.view(table).map(|(_, input)| input.declared.comment.clone());
                kept.or_else(|| ordinary().map(|view| view.comment.clone()))
                    .or_else(|| reference().map(|table| table.comment.clone()))?
            }
            "raw" | "quarantine" => self.declared.names.streams.get(table)?.comment.clone(),
            "system" => system::TABLES.iter().find(|(name, _)| *name == table).map(|(_, text)| (*text).to_owned()),
            _ => None,
        }
    }

    /// Reads are answered in any case; this tells whether they are complete and will stay so.
    fn readiness(&self) -> Readiness {
        let mut reasons = self.health.failures();
        reasons.extend(self.status.complaints());
        let known = self.status.partitions();
        let unread = self.declared.names.streams.keys().filter(|stream| !known.contains_key(*stream));
        reasons.extend(unread.map(|stream| format!("stream {stream}: its topic was not read yet")));
        let snapshot = self.cell.load();
        let restoring = snapshot.streams.iter().filter(|(_, stream)| !stream.whole);
        reasons.extend(restoring.map(|(name, _)| format!("stream {name}: its delta is being computed")));
        Readiness { ready: reasons.is_empty(), reasons }
    }
}
