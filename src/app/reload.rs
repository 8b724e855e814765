//! Follows files in `sql/` that were changed, while the process answers.
//!
//! Views are followed within what is open: a query that is new in its file is computed beside the one that is read,
//! and takes its place in one step. A stream or a table that changed touches everything from the decoder to the delta,
//! so all of it is opened anew beside what is read:
//!
//! 1. everything is planned and held against what is stored; with a fault nothing happens;
//! 2. running refreshes and changes of tables end, and none begins;
//! 3. intake ends: what it had read is committed;
//! 4. archives, delta and keys are opened under the new declarations, and intake begins;
//! 5. once that has counted everything that was counted before, readers turn to it, in one step.
//!
//! Until the last step readers have the old snapshot, whole and pinned: what they see stands still for as long as a start
//! takes, and goes on without a gap.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::database::Merged;
use super::{Core, Declared, Running, declare_catalog, evolution_faults, lines};
use crate::catalog::{Catalog, loader};
use crate::merge::snapshot::Snapshot;
use crate::runtime::Shutdown;
use crate::serve::DefineError;

/// How often it is looked whether intake has come as far as the one before.
const GLANCE: Duration = Duration::from_millis(10);

/// What is open, and fed.
#[derive(Debug)]
pub struct Live {
    pub core: Core,
    pub running: Running,
}

/// What is open afterwards, and whether it is as the files say; an error when neither that nor what was open before could
/// be opened: then the process has to start again.
pub type Followed = Result<(Live, Result<(), DefineError>)>;

/// Reads the files again and follows what changed. `process` is the whole's signal to end.
pub async fn follow_files(live: Live, merged: &Merged, process: &Shutdown) -> Followed {
    let before = live.core.definitions.declared.load_full();
    let wanted = match wanted(&live.core, &before).await {
        Ok(Some(wanted)) => wanted,
        Ok(None) => return Ok((live, Ok(()))),
        Err(error) => return Ok((live, Err(error))),
    };
    let same = |a: &Catalog, b: &Catalog| a.streams == b.streams && a.tables == b.tables;
    if same(&wanted.catalog, &before.catalog) {
        let same = |a: &Catalog, b: &Catalog| {
            a.views == b.views
                && a.ordinary == b.ordinary
                && a.functions == b.functions
                && a.endpoints == b.endpoints
        };
        if same(&wanted.catalog, &before.catalog) {
            // Roles alone: there is nothing to compute, and whoever asks next is held against them.
            live.core.definitions.declared.store(wanted);
            return Ok((live, Ok(())));
        }
        let followed = live.core.definitions.follow(wanted).await;
        return Ok((live, followed));
    }
    // With the views as they were first: new ones may take long to compute, and intake need not wait for them.
    let catalog = Catalog {
        streams: wanted.catalog.streams.clone(),
        tables: wanted.catalog.tables.clone(),
        ..before.catalog.clone()
    };
    let first = declare_catalog(&live.core.engine, catalog).await.map_or_else(|_| Arc::clone(&wanted), Arc::new);
    match exchange(live, first, merged, process).await {
        Ok((live, Ok(()))) if !Arc::ptr_eq(&live.core.declared, &wanted) => {
            let followed = live.core.definitions.follow(wanted).await;
            Ok((live, followed))
        }
        other => other,
    }
}

/// What the files declare now; None when it is what is declared already.
async fn wanted(core: &Core, before: &Declared) -> Result<Option<Arc<Declared>>, DefineError> {
    let invalid = |faults: Vec<_>| DefineError::Invalid(lines(&faults));
    let catalog = loader::load(&core.config.sql.dir).map_err(invalid)?;
    if catalog == before.catalog {
        return Ok(None);
    }
    let declared = declare_catalog(&core.engine, catalog).await.map_err(invalid)?;
    let faults = evolution_faults(core.storage(), &declared).await;
    let faults = faults.map_err(|error| DefineError::Failed(format!("{error:#}")))?;
    if faults.is_empty() { Ok(Some(Arc::new(declared))) } else { Err(invalid(faults)) }
}

async fn exchange(live: Live, declared: Arc<Declared>, merged: &Merged, process: &Shutdown) -> Followed {
    let Live { core, running } = live;
    tracing::info!("streams or tables changed in their files: opening them anew");
    let began = core.clock.instant();
    // Held to the end: nobody changes what is being opened.
    let _definitions = core.definitions.turn.lock().await;
    let _tables = core.references.pause().await;
    let refreshes = core.refresher.pause().await;
    core.shutdown.trigger();
    drop(refreshes);
    tokio::task::spawn_blocking(move || running.join()).await.context("intake did not end in order")?;
    let (next, result) = match reopen(&core, declared, process).await {
        Ok(live) => (live, Ok(())),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot open what is declared now; going back");
            let failed = DefineError::Failed(format!("{error:#}"));
            (reopen(&core, core.definitions.declared.load_full(), process).await?, Err(failed))
        }
    };
    let counted = core.cell.load();
    while !covers(&next.core.cell.load(), &counted) {
        tokio::select! {
            () = tokio::time::sleep(GLANCE) => {}
            () = next.core.shutdown.wait() => break,
        }
    }
    merged.turn_to(&next.core);
    tracing::info!(took = ?core.clock.instant().duration_since(began), "opened anew");
    Ok((next, result))
}

async fn reopen(core: &Core, declared: Arc<Declared>, process: &Shutdown) -> Result<Live> {
    let mut core = core.reopen(declared, process.of_part()).await.context("cannot open anew")?;
    let running = core.start_intake().await?;
    Ok(Live { core, running })
}

/// Whether `now` has counted all that `before` had of the streams that both have.
fn covers(now: &Snapshot, before: &Snapshot) -> bool {
    before.streams.iter().all(|(name, stream)| now.streams.get(name).is_none_or(|now| now.end.covers(&stream.end)))
}
