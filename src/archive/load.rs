//! Reads the log back. The truth is found by number: from the newest checkpoint, or from the beginning, every
//! entry is read until one is absent. A listing is only ever used to contradict.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectMeta;

use super::keep::ListedFile;
use super::log::{self, Entry, TableState};
use super::{ArchiveError, Kind, commit};
use crate::storage::paths::{self, ArchivePaths};
use crate::storage::{Storage, StorageError, object_error};

/// Entries that are fetched at once.
const WINDOW: u64 = 32;

/// The table's newest state; None when there is no table.
pub(super) async fn load(storage: &Storage, paths: &ArchivePaths) -> Result<Option<TableState>, ArchiveError> {
    let checkpoint = match checkpoint_hint(storage, paths).await? {
        Some(version) => match from_checkpoint(storage, paths, version).await {
            Ok(state) => Some(state),
            Err(error) => {
                // A checkpoint only repeats the log, so the log itself is read instead.
                tracing::warn!(table = %paths.root(), version, error = %chain(&error), "checkpoint not usable");
                None
            }
        },
        None => None,
    };
    let mut state = replay(storage, paths, checkpoint).await?;
    loop {
        let sound = contradict(storage, paths, state.as_ref()).await;
        // Its writer may have gone on meanwhile, when it is read beside one.
        let end = state.as_ref().map_or(0, |state| state.version + 1);
        if sound.is_ok() || storage.read(&paths.log_entry(end)).await?.is_none() {
            return sound.map(|()| state);
        }
        state = replay(storage, paths, state).await?;
    }
}

/// The entry of `version`; None when there is none yet.
pub(super) async fn entry(
    storage: &Storage,
    paths: &ArchivePaths,
    version: u64,
) -> Result<Option<Entry>, ArchiveError> {
    match storage.read(&paths.log_entry(version)).await? {
        Some(bytes) => decode(paths, version, &bytes).map(Some),
        None => Ok(None),
    }
}

/// The state after an entry that was just written on top of `state`.
pub(super) fn follow(
    paths: &ArchivePaths,
    state: Option<TableState>,
    bytes: &Bytes,
) -> Result<TableState, ArchiveError> {
    let version = state.as_ref().map_or(0, |state| state.version + 1);
    let entry = decode(paths, version, bytes)?;
    let refused = |reason| damaged(paths, version, reason);
    match state {
        None => TableState::first(entry).map_err(refused),
        Some(mut state) => state.apply(entry).map(|()| state).map_err(refused),
    }
}

fn decode(paths: &ArchivePaths, version: u64, bytes: &Bytes) -> Result<Entry, ArchiveError> {
    log::decode(bytes, paths).map_err(|reason| damaged(paths, version, reason))
}

fn damaged(paths: &ArchivePaths, version: u64, reason: impl Into<String>) -> ArchiveError {
    StorageError::Damaged { path: paths.log_entry(version).to_string(), reason: reason.into() }.into()
}

async fn checkpoint_hint(storage: &Storage, paths: &ArchivePaths) -> Result<Option<u64>, ArchiveError> {
    #[derive(serde::Deserialize)]
    struct Hint {
        version: u64,
    }
    let bytes = storage.read(&paths.last_checkpoint()).await?;
    // A damaged hint is as good as none: the log is read from its beginning.
    Ok(bytes.and_then(|bytes| serde_json::from_slice::<Hint>(&bytes).ok()).map(|hint| hint.version))
}

async fn from_checkpoint(
    storage: &Storage,
    paths: &ArchivePaths,
    version: u64,
) -> Result<TableState, ArchiveError> {
    let missing = |version| damaged(paths, version, "it is missing");
    let table = commit::table_at(storage, paths, version).await?;
    let newest = entry(storage, paths, version).await?.ok_or_else(|| missing(version))?;
    let mut record = newest.record.clone();
    let mut below = version;
    while record.is_none() {
        below = below.checked_sub(1).ok_or_else(|| damaged(paths, 0, "it is not ours"))?;
        record = entry(storage, paths, below).await?.ok_or_else(|| missing(below))?.record;
    }
    let record = record.ok_or_else(|| missing(version))?;
    TableState::at_checkpoint(version, &newest, &record, table).map_err(|reason| damaged(paths, version, reason))
}

/// Every data file that is there, whether a commit names it or not.
pub(super) async fn list_files(storage: &Storage, paths: &ArchivePaths) -> Result<Vec<ListedFile>, ArchiveError> {
    let mut files = Vec::new();
    for kind in Kind::ALL {
        let folder = paths.data_file(kind.folder());
        let listed: Vec<ObjectMeta> = storage
            .store()
            .list(Some(&folder))
            .try_collect()
            .await
            .map_err(|source| object_error("list", &folder, source))?;
        files.extend(listed.into_iter().filter_map(|meta| {
            let name = format!("{}/{}", kind.folder(), meta.location.filename()?);
            let modified_at = meta.last_modified.timestamp_micros();
            Some(ListedFile { path: meta.location, name, bytes: meta.size, modified_at })
        }));
    }
    Ok(files)
}

async fn replay(
    storage: &Storage,
    paths: &ArchivePaths,
    mut state: Option<TableState>,
) -> Result<Option<TableState>, ArchiveError> {
    'windows: loop {
        let from = state.as_ref().map_or(0, |state| state.version + 1);
        let window: Vec<Option<Bytes>> = stream::iter(from..from + WINDOW)
            .map(|version| async move { storage.read(&paths.log_entry(version)).await })
            .buffered(WINDOW as usize)
            .try_collect()
            .await?;
        for (version, bytes) in (from..).zip(&window) {
            let Some(bytes) = bytes else {
                let beyond = window.iter().skip(usize::try_from(version - from).unwrap_or(0));
                if beyond.flatten().next().is_none() {
                    return Ok(state);
                }
                // Entries are fetched at once: this one may have come after it was asked for.
                if storage.read(&paths.log_entry(version)).await?.is_none() {
                    return Err(damaged(paths, version, "it is missing, although later ones exist"));
                }
                continue 'windows;
            };
            state = Some(follow(paths, state.take(), bytes)?);
        }
    }
}

/// Looks for evidence that the log once held more than what was found by number.
async fn contradict(
    storage: &Storage,
    paths: &ArchivePaths,
    state: Option<&TableState>,
) -> Result<(), ArchiveError> {
    let end = state.map_or(0, |state| state.version + 1);
    let log = paths.log();
    let store = storage.store();
    let listed: Vec<u64> = store
        .list(Some(&log))
        .try_filter_map(|meta| async move { Ok(meta.location.filename().and_then(paths::numbered_json)) })
        .try_collect()
        .await
        .map_err(|source| object_error("list", &log, source))?;
    if listed.iter().any(|version| *version >= end) {
        return Err(damaged(paths, end, "it is missing, although later ones exist"));
    }
    let listed: std::collections::HashSet<u64> = listed.into_iter().collect();
    for version in (0..end).filter(|version| !listed.contains(version)) {
        // The listing may be stale, so the object itself is asked.
        if storage.read(&paths.log_entry(version)).await?.is_none() {
            return Err(damaged(paths, version, "it is missing, although later ones exist"));
        }
    }
    let witness = storage.read(&paths.witness()).await?;
    let witness = witness.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.trim().parse::<u64>().ok());
    let epoch = state.map_or(0, |state| state.standing.epoch.0);
    if let Some(witness) = witness.filter(|witness| *witness > epoch) {
        let reason = format!("epoch {witness} was committed, the log ends with epoch {epoch}");
        return Err(damaged(paths, end, reason));
    }
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
