//! Brings memory back from the archive after a start: the delta since the generation, and the key index.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use datafusion::arrow::compute::concat_batches;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{LogicalPlanBuilder, ident};
use futures::TryStreamExt;

use crate::archive::dedup::{ArchivedKeys, Files, KeyIndex};
use crate::archive::{ArchiveSnapshot, Kind};
use crate::catalog::stream::Stream;
use crate::delta::Delta;
use crate::engine::Engine;
use crate::merge::catalog::Names;
use crate::position::Epoch;
use crate::runtime::chain;

/// Threads for work that the start waits for: nothing else runs yet.
const THREADS: usize = 2;

/// The delta of one stream from the epochs after `base`, which the generation does not hold. Returns what there is to
/// read in it: a version on standby that cannot be computed is left out.
pub async fn delta(
    engine: &Engine,
    mut names: Arc<Names>,
    stream: &str,
    archive: &ArchiveSnapshot,
    base: Epoch,
) -> Result<(Delta, Arc<Names>)> {
    let mut states = BTreeMap::new();
    if archive.files_in(Kind::Event, base).next().is_some() {
        let all = Arc::clone(&names);
        for (name, input) in all.views.iter().filter(|(_, input)| input.stream.name == stream) {
            let records = archive.records(&input.stream, Kind::Event, base);
            let plan = input.view.state_plan(Arc::new(records))?;
            match engine.collect(plan, THREADS).await {
                Ok(batches) => {
                    drop(states.insert(name.clone(), concat_batches(&input.view.state_schema(), &batches)?))
                }
                Err(error) if all.is_current(name) => {
                    return Err(error).with_context(|| format!("cannot restore view {name}"));
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::error!(view = name, error, "a version on standby cannot be computed: it is given up");
                    names = Arc::new(names.without(name));
                }
            }
        }
    }
    Ok((Delta::restored(base, archive.epoch, states), names))
}

/// The keys of every record that counts: from the files of an earlier process, and for newer epochs, as many at once as
/// stay in memory, from the archive.
pub async fn keys(engine: &Engine, stream: &Stream, archive: &ArchiveSnapshot, files: Files) -> Result<KeyIndex> {
    let Some(column) = stream.key.and_then(|key| stream.columns.get(key)) else { return Ok(KeyIndex::default()) };
    let keys_max = files.keys_max as u64;
    let mut index = KeyIndex::open(files, archive.epoch)?;
    let mut reached = index.covered();
    while let Some(range) = archive.events_after(reached, keys_max) {
        let mut keys = ArchivedKeys::new(range.rows, range.overlap);
        reached = range.through;
        let plan = LogicalPlanBuilder::scan(
            "archive",
            provider_as_source(Arc::new(range.table(stream.record_schema()))),
            None,
        )?
        .project([ident(&column.name)])?
        .build()?;
        let mut batches = engine.stream(plan, THREADS).await?;
        while let Some(batch) =
            batches.try_next().await.with_context(|| format!("cannot read the keys of {}", stream.name))?
        {
            keys.add(batch.column(0))?;
        }
        index.restore(keys)?;
        index.sealed(reached);
        index.tend(archive.epoch)?;
    }
    index.settle(archive.epoch)?;
    Ok(index)
}
