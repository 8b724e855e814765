//! Reference tables of the process: opened with it, changed by sessions, one swap in the snapshot for each commit.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::CatalogProvider;
use datafusion::common::DataFusionError;

use crate::merge::catalog::PinnedCatalog;
use crate::merge::snapshot::SnapshotCell;
use crate::runtime::{Health, Shutdown, spawn};
use crate::serve::{ChangedRows, TableChanges};
use crate::tables::change::Change;
use crate::tables::log::{TableLog, Turn};
use crate::tables::transaction::Transaction;
use crate::tables::{Tables, WriteError};

/// The tables that sessions change.
#[derive(Debug)]
pub struct References {
    pub log: Arc<TableLog>,
    pub cell: Arc<SnapshotCell>,
    pub health: Health,
    pub shutdown: Shutdown,
}

impl References {
    /// Begins changes. Those over what was pinned are held against what was committed since when they are committed; without
    /// it nobody else changes a table meanwhile, and they begin over what `present` gives.
    pub async fn begin(
        self: &Arc<Self>,
        pinned: Option<PinnedCatalog>,
        present: impl FnOnce() -> PinnedCatalog,
    ) -> Result<Box<dyn TableChanges>, WriteError> {
        let (turn, pinned) = match pinned {
            Some(pinned) => (None, pinned),
            None => (Some(self.turn().await?), present()),
        };
        let transaction = Transaction::over(pinned.tables().clone(), self.log.bytes_max());
        Ok(Box::new(Changes { references: Arc::clone(self), turn, transaction, pinned }))
    }

    async fn turn(&self) -> Result<Turn, WriteError> {
        let turn = self.log.turn(|adopted| self.publish(adopted)).await.map_err(|error| self.told(error))?;
        if self.shutdown.is_triggered() { Err(WriteError::Ended) } else { Ok(turn) }
    }

    /// Waits for the changes that are being committed. Nobody commits another one while the answer is held.
    pub async fn pause(&self) -> Option<Turn> {
        // Where it is not known what became of a change, whoever opens the tables next finds out.
        self.log.turn(|adopted| self.publish(adopted)).await.ok()
    }

    /// The tables of `pinned` for planning a statement that changes `table`.
    pub fn pinned_for(
        &self,
        pinned: &PinnedCatalog,
        table: &str,
        rows: ChangedRows,
    ) -> Result<Arc<dyn CatalogProvider>, WriteError> {
        match (self.log.has(table), rows) {
            (false, _) => Err(self.unknown(table)),
            (true, ChangedRows::New) => Ok(Arc::new(pinned.clone())),
            (true, ChangedRows::Present) => Ok(Arc::new(pinned.clone().numbering(table))),
        }
    }

    /// Why there is no reference table of this name.
    pub fn unknown(&self, table: &str) -> WriteError {
        let names = Arc::clone(&self.cell.load().names);
        match names.view(table).is_some() || names.ordinary.contains_key(table) {
            true => WriteError::NotATable(table.to_owned()),
            false => WriteError::Unknown(table.to_owned()),
        }
    }

    fn publish(&self, tables: &Tables) {
        self.cell.update(|snapshot| snapshot.tables = Arc::new(tables.clone()));
    }

    /// Who was fenced must not go on.
    fn told(&self, error: WriteError) -> WriteError {
        if let WriteError::Fenced { .. } = error {
            self.health.poison("tables", &error);
            self.shutdown.trigger();
        }
        error
    }
}

/// Changes that were begun, over one pinned snapshot.
#[derive(Debug)]
struct Changes {
    references: Arc<References>,
    /// Held from the beginning by a statement that is a transaction of its own.
    turn: Option<Turn>,
    transaction: Transaction,
    pinned: PinnedCatalog,
}

#[async_trait]
impl TableChanges for Changes {
    fn pinned(&self) -> Arc<dyn CatalogProvider> {
        Arc::new(self.pinned.clone())
    }

    fn pinned_for(&self, table: &str, rows: ChangedRows) -> Result<Arc<dyn CatalogProvider>, WriteError> {
        self.references.pinned_for(&self.pinned, table, rows)
    }

    fn bytes_max(&self) -> usize {
        self.references.log.bytes_max()
    }

    async fn apply(&mut self, table: &str, change: Change, statement: &'static str) -> Result<u64, WriteError> {
        let touched = self.transaction.apply(table, change, statement).await?;
        if touched > 0 {
            self.pinned = self.pinned.with_tables(self.transaction.tables());
        }
        Ok(touched)
    }

    fn enforced(&self) -> Result<Vec<String>, DataFusionError> {
        self.pinned.enforced_over(&self.transaction.changed().cloned().collect())
    }

    async fn commit(self: Box<Self>, user: &str) -> Result<(), WriteError> {
        let Self { references, turn, transaction, pinned } = *self;
        let (tell, told) = tokio::sync::oneshot::channel();
        let (user, health, asked) = (user.to_owned(), references.health.clone(), pinned.asked());
        let table = transaction.changed().cloned().collect::<Vec<_>>().join(", ");
        // In a task of its own: a client that goes away must not leave a version that no reader was told of.
        let work = async move {
            let commit = async {
                let turn = match turn {
                    Some(turn) => turn,
                    None => references.turn().await?,
                };
                turn.commit(transaction, &asked, &user, |tables| references.publish(tables)).await
            };
            let made = commit.await.map_err(|error| references.told(error));
            // Nobody may be waiting any more.
            drop(tell.send(made));
        };
        drop(spawn("table change", &health, work));
        told.await.unwrap_or(Err(WriteError::Panicked { table }))
    }
}
