//! Reference tables of the process: opened with it, changed by sessions, one swap in the snapshot each.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use datafusion::catalog::CatalogProvider;

use super::Declared;
use crate::catalog::Fault;
use crate::merge::snapshot::SnapshotCell;
use crate::runtime::{Clock, Health, Shutdown, SystemClock, spawn};
use crate::serve::TableTurn;
use crate::storage::Storage;
use crate::tables::change::Change;
use crate::tables::log::{OpenError, TableLog, Turn};
use crate::tables::{Contents, Tables, WriteError};

/// What has to fit nothing.
const UNBOUNDED: usize = usize::MAX;

/// Reads the newest version of every table.
pub async fn open(
    storage: &Storage,
    declared: &Declared,
    bytes_max: usize,
    clock: &Arc<dyn Clock>,
) -> Result<(BTreeMap<String, Arc<TableLog>>, Tables), OpenError> {
    let (mut logs, mut tables) = (BTreeMap::new(), Tables::default());
    for (name, rules) in &declared.tables {
        let (log, contents) = TableLog::open(storage, Arc::clone(rules), bytes_max, Arc::clone(clock)).await?;
        logs.insert(name.clone(), log);
        tables = tables.with(contents);
    }
    Ok((logs, tables))
}

/// Where what is stored of a table does not fit what is declared. Changes nothing.
pub async fn faults(storage: &Storage, declared: &Declared) -> Result<Vec<Fault>, OpenError> {
    let mut faults = Vec::new();
    for rules in declared.tables.values() {
        match TableLog::open(storage, Arc::clone(rules), UNBOUNDED, Arc::new(SystemClock)).await {
            Ok(_) => {}
            Err(OpenError::Unfit(fault)) => faults.push(fault),
            Err(error) => return Err(error),
        }
    }
    Ok(faults)
}

/// The tables that sessions change.
#[derive(Debug)]
pub struct References {
    pub logs: BTreeMap<String, Arc<TableLog>>,
    pub cell: Arc<SnapshotCell>,
    pub health: Health,
    pub shutdown: Shutdown,
}

impl References {
    /// Waits for the turn to change `table`; `pin` makes the catalog that the change is computed from.
    pub async fn turn(
        self: &Arc<Self>,
        table: &str,
        pin: impl FnOnce() -> Arc<dyn CatalogProvider>,
    ) -> Result<Box<dyn TableTurn>, WriteError> {
        let Some(log) = self.logs.get(table) else { return Err(self.unknown(table)) };
        let turn = log.turn(|adopted| self.publish(adopted)).await.map_err(|error| self.told(error))?;
        if self.shutdown.is_triggered() {
            return Err(WriteError::Ended { table: table.to_owned() });
        }
        Ok(Box::new(OpenTurn { turn, pinned: pin(), references: Arc::clone(self) }))
    }

    /// Waits for the changes that are being made. Nobody begins another one while the answer is held.
    pub async fn pause(self: &Arc<Self>) -> Vec<Turn> {
        let mut turns = Vec::new();
        for log in self.logs.values() {
            // Where it is not known what became of a change, whoever opens the table next finds out.
            turns.extend(log.turn(|adopted| self.publish(adopted)).await);
        }
        turns
    }

    /// Why there is no reference table of this name.
    pub fn unknown(&self, table: &str) -> WriteError {
        let names = Arc::clone(&self.cell.load().names);
        match names.view(table).is_some() || names.ordinary.contains_key(table) {
            true => WriteError::NotATable(table.to_owned()),
            false => WriteError::Unknown(table.to_owned()),
        }
    }

    fn publish(&self, contents: &Arc<Contents>) {
        self.cell.update(|snapshot| snapshot.tables = Arc::new(snapshot.tables.with(Arc::clone(contents))));
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

struct OpenTurn {
    turn: Turn,
    pinned: Arc<dyn CatalogProvider>,
    references: Arc<References>,
}

#[async_trait]
impl TableTurn for OpenTurn {
    fn pinned(&self) -> Arc<dyn CatalogProvider> {
        Arc::clone(&self.pinned)
    }

    fn bytes_max(&self) -> usize {
        self.turn.bytes_max()
    }

    async fn commit(
        self: Box<Self>,
        change: Change,
        statement: &'static str,
        user: &str,
    ) -> Result<u64, WriteError> {
        let Self { turn, references, .. } = *self;
        let table = turn.contents().rules.table.name.clone();
        let (tell, told) = tokio::sync::oneshot::channel();
        let (user, health) = (user.to_owned(), references.health.clone());
        // In a task of its own: a client that goes away must not leave a version that no reader was told of.
        let work = async move {
            let made = turn.commit(change, statement, &user, |contents| references.publish(contents)).await;
            let made = made.map_err(|error| references.told(error));
            // Nobody may be waiting any more.
            drop(tell.send(made));
        };
        drop(spawn("table change", &health, work));
        told.await.unwrap_or(Err(WriteError::Panicked { table }))
    }
}
