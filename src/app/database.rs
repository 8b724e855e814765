//! What the query service reads: the newest snapshot as a catalog, and the refresh on demand.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::CatalogProvider;
use datafusion::prelude::SessionContext;

use super::refresh::Refresher;
use super::{Core, Declared};
use crate::batch;
use crate::batch::shelf::AsOf;
use crate::engine::Engine;
use crate::kafka::status::IntakeStatus;
use crate::merge::catalog::PinnedCatalog;
use crate::merge::snapshot::SnapshotCell;
use crate::merge::system::{self, Surroundings};
use crate::runtime::Health;
use crate::serve::{Certificate, Database, Readiness, RefreshError, RefreshScope, ServeError};

/// The process as a [`Database`].
pub struct Merged {
    engine: Arc<Engine>,
    declared: Arc<Declared>,
    cell: Arc<SnapshotCell>,
    refresher: Arc<Refresher>,
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
        };
        Self {
            engine: Arc::clone(&core.engine),
            declared: Arc::clone(&core.declared),
            cell: Arc::clone(&core.cell),
            refresher: Arc::clone(&core.refresher),
            status: core.status.clone(),
            health: core.health.clone(),
            around: Arc::new(around),
        }
    }

    fn present(&self) -> PinnedCatalog {
        PinnedCatalog::new(self.cell.load(), Arc::clone(&self.declared.names), Arc::clone(&self.around))
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
        let views = &self.declared.names.views;
        let named: Vec<String> = match view {
            Some(view) if !views.contains_key(view) => return Err(RefreshError::UnknownView(view.to_owned())),
            Some(view) => vec![view.to_owned()],
            None => views.keys().cloned().collect(),
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

    fn comment(&self, schema: &str, table: &str) -> Option<String> {
        match schema {
            "public" | "batch" | "speed" => {
                let catalog = &self.declared.catalog;
                let ordinary = || catalog.ordinary.get(table).filter(|_| schema == "public");
                let kept = catalog.views.get(table).map(|view| &view.comment);
                kept.or_else(|| ordinary().map(|view| &view.comment))?.clone()
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
        Readiness { ready: reasons.is_empty(), reasons }
    }
}
