//! The master dataset: every record of a stream, immutable, as a Delta Lake table whose commits carry the
//! frontier.
//!
//! One epoch is one commit:
//!
//! | step | if the process dies after it |
//! |---|---|
//! | data files are written and synced, under names of this attempt only | nobody names them: ignored |
//! | the log entry of exactly the next version is created conditionally | the epoch is committed |
//! | beside the commits, the newest epoch is noted and checkpoints are written | nothing is lost |
//!
//! Frontier, ledger and files are read back from the log alone. Opening claims the table by an entry of its
//! own, so that a writer which is still alive somewhere finds its next version taken and stops: of several
//! writers the one that opened last wins.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use futures::future::try_join_all;
use object_store::path::Path;
use serde_json::Value;
use tokio::task::JoinHandle;
use uuid::Uuid;

pub mod commit;
pub mod compact;
mod content;
pub mod dedup;
pub mod evolve;
pub mod keep;
pub mod ledger;
mod load;
mod log;
mod notes;
pub mod rewrite;
pub mod scan;
pub mod writer;

#[cfg(test)]
mod tests;

use keep::RetiredFiles;
use ledger::{Ledger, Refusal, Standing, check_advance};
use log::{Change, TableState, Winner};
use writer::{EncodedEpoch, EpochWriter};

use crate::position::{Epoch, StreamFrontier};
use crate::runtime::{Clock, SystemClock};
use crate::storage::blocks::BlockDigests;
use crate::storage::parquet::put_encoded;
use crate::storage::paths::ArchivePaths;
use crate::storage::{Created, Storage, StorageError};

/// How often another program's harmless entries are stepped over before giving up for this time.
const STEPS_MAX: usize = 16;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// It counts.
    Event,
    /// Its key was seen before.
    Duplicate,
    /// It broke a rule.
    Quarantined,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Event, Kind::Duplicate, Kind::Quarantined];

    /// As the column `_kind` holds it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Duplicate => "duplicate",
            Self::Quarantined => "quarantined",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Event => "events",
            Self::Duplicate => "duplicates",
            Self::Quarantined => "quarantine",
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Records by what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowCounts {
    pub events: u64,
    pub duplicates: u64,
    pub quarantined: u64,
}

impl RowCounts {
    pub fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Event => self.events,
            Kind::Duplicate => self.duplicates,
            Kind::Quarantined => self.quarantined,
        }
    }

    fn add(&mut self, kind: Kind, rows: u64) {
        match kind {
            Kind::Event => self.events += rows,
            Kind::Duplicate => self.duplicates += rows,
            Kind::Quarantined => self.quarantined += rows,
        }
    }
}

/// A data file of the archive; it never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveFile {
    /// Object name, relative to the storage root.
    pub path: Path,
    /// Within the table, as the commit holds it.
    pub name: String,
    /// Of all its rows.
    pub kind: Kind,
    pub rows: u64,
    pub bytes: u64,
    /// The oldest epoch whose records it holds; `epoch`, unless it was put together from several files.
    pub first: Epoch,
    /// The newest epoch whose records it holds.
    pub epoch: Epoch,
    /// Which columns it has, as a digest; files with the same ones may be put together.
    pub columns: Option<String>,
    /// Of the whole file, 64 hexadecimal digits.
    pub sha256: String,
    /// By which every read is checked; older files do not have them.
    pub blocks: Option<BlockDigests>,
}

/// The archive of one stream at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSnapshot {
    /// Names the table: another one in the same place has another.
    pub table: String,
    pub epoch: Epoch,
    /// Of the Delta Lake table.
    pub version: u64,
    pub frontier: StreamFrontier,
    pub ledger: Ledger,
    /// By epoch, ascending.
    pub files: Arc<[Arc<ArchiveFile>]>,
    /// What was replaced by larger files and is still remembered.
    pub retired: RetiredFiles,
    pub rows: RowCounts,
}

impl ArchiveSnapshot {
    fn of(state: &TableState) -> Self {
        let mut rows = RowCounts::default();
        state.files.iter().for_each(|file| rows.add(file.kind, file.rows));
        Self {
            table: state.metadata.get("id").and_then(Value::as_str).unwrap_or_default().to_owned(),
            epoch: state.standing.epoch,
            version: state.version,
            frontier: state.standing.frontier.clone(),
            ledger: state.standing.ledger.clone(),
            files: state.files.as_slice().into(),
            retired: state.retired.clone(),
            rows,
        }
    }

    /// The files of one kind with the records of epochs after `after`.
    ///
    /// # Panics
    /// When `after` lies within a file: records would be counted twice. See [`Self::cuts_at`].
    pub fn files_in(&self, kind: Kind, after: Epoch) -> impl Iterator<Item = &ArchiveFile> {
        let from = self.files.partition_point(|file| file.epoch <= after);
        let later = self.files.iter().skip(from).map(AsRef::as_ref).filter(move |file| file.kind == kind);
        later.inspect(move |file| {
            let (name, first, last) = (&file.name, file.first, file.epoch);
            assert!(first > after, "{name} holds epochs {first} to {last} and cannot be cut after epoch {after}");
        })
    }

    /// Whether `after` is a boundary between files. Every epoch from that of the current generation on is one.
    pub fn cuts_at(&self, after: Epoch) -> bool {
        !self.files.iter().any(|file| file.first <= after && after < file.epoch)
    }
}

/// Why the archive could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("fenced: another writer of stream {stream} has committed epoch {epoch}; this process must stop")]
    Fenced { stream: String, epoch: Epoch },
    #[error("other programs keep writing to the archive of stream {stream}; stop them")]
    Crowded { stream: String },
    #[error("stream {stream}: files cannot be put together: {reason}")]
    Rewrite { stream: String, reason: String },
    #[error("epoch {epoch} of stream {stream} is refused: {refusal}")]
    Refused { stream: String, epoch: Epoch, refusal: Refusal },
    #[error(
        "column {column} of stream {stream} is archived as {stored} and is now declared as {declared}; \
         declare the type it had"
    )]
    ColumnChanged { stream: String, column: String, stored: String, declared: String },
    #[error("column {column} has type {data_type}, which cannot be archived: {reason}")]
    UnsupportedColumn { column: String, data_type: String, reason: String },
    #[error("records do not fit the archive: where column {column} of type {expected} belongs stands {found}")]
    BatchColumn { column: String, expected: String, found: String },
    #[error("schema of the archive of stream {stream} is not readable: {reason}")]
    Schema { stream: String, reason: String },
    #[error("records do not fit the columns of the archive")]
    Encode { source: parquet::errors::ParquetError },
    #[error("commit cannot be written as JSON")]
    Json { source: serde_json::Error },
    #[error("cannot {action} {table}")]
    Delta { action: &'static str, table: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl ArchiveError {
    /// True when the same call may be made again with the same epoch: the disk was full or the store was
    /// not reachable.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Storage(error) => error.is_retryable(),
            Self::Crowded { .. } => true,
            _ => false,
        }
    }
}

impl From<parquet::errors::ParquetError> for ArchiveError {
    fn from(source: parquet::errors::ParquetError) -> Self {
        Self::Encode { source }
    }
}

/// The single writer of one stream's table.
pub struct Archive {
    storage: Storage,
    stream: String,
    paths: ArchivePaths,
    schema: SchemaRef,
    clock: Arc<dyn Clock>,
    state: TableState,
    snapshot: Arc<ArchiveSnapshot>,
    /// Nonce of the newest epoch that we committed.
    newest_nonce: String,
    /// Nonce of a rewrite of ours that failed, but may stand in the log: no other writer made it.
    unanswered: Option<String>,
    /// Version of the newest checkpoint that was begun.
    checkpoint: u64,
    /// The one task that works beside the commits.
    upkeep: Option<JoinHandle<()>>,
}

impl Archive {
    /// Opens the table of `stream` for writing, creating it when it is absent, and fences every earlier
    /// writer. Columns of `schema` that the table lacks are added to it.
    pub async fn open(storage: &Storage, stream: &str, schema: SchemaRef) -> Result<Self, ArchiveError> {
        Self::open_at(storage, stream, schema, Arc::new(SystemClock)).await
    }

    /// [`Archive::open`] with a clock; commits are stamped by it, nothing depends on it.
    pub async fn open_at(
        storage: &Storage,
        stream: &str,
        schema: SchemaRef,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ArchiveError> {
        Self::open_table(storage, stream, schema, None, clock).await
    }

    /// `key` is what the table shall say of the stream's key, unless it says something already.
    async fn open_table(
        storage: &Storage,
        stream: &str,
        schema: SchemaRef,
        key: Option<&str>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ArchiveError> {
        let paths = ArchivePaths::new(stream);
        let found = load::load(storage, &paths).await?;
        let at_millis = clock.now() / 1000;
        let metadata = match &found {
            None => Some(commit::new_metadata(&schema, key, at_millis)?),
            Some(state) => commit::evolved_metadata(stream, &state.metadata, &schema, key)?,
        };
        let nonce = Uuid::new_v4().simple().to_string();
        let standing = found.as_ref().map(|state| state.standing.clone()).unwrap_or_default();
        let change = Change { metadata, ..Change::default() };
        let entry = log::encode(found.as_ref(), &standing, &nonce, &change, at_millis)
            .map_err(|source| ArchiveError::Json { source })?;
        let version = found.as_ref().map_or(0, |state| state.version + 1);
        if storage.create(&paths.log_entry(version), entry.clone()).await? == Created::Taken {
            return Err(ArchiveError::Fenced { stream: stream.to_owned(), epoch: standing.epoch });
        }
        let state = load::follow(&paths, found, &entry)?;
        let snapshot = Arc::new(ArchiveSnapshot::of(&state));
        let (storage, stream) = (storage.clone(), stream.to_owned());
        Ok(Self {
            storage,
            stream,
            paths,
            schema,
            clock,
            state,
            snapshot,
            newest_nonce: nonce,
            unanswered: None,
            checkpoint: version / commit::CHECKPOINT_EVERY * commit::CHECKPOINT_EVERY,
            upkeep: None,
        })
    }

    /// The newest commit of `stream` without opening it for writing; None when it has no archive.
    pub async fn peek(storage: &Storage, stream: &str) -> Result<Option<ArchiveSnapshot>, ArchiveError> {
        let state = load::load(storage, &ArchivePaths::new(stream)).await?;
        Ok(state.as_ref().map(ArchiveSnapshot::of))
    }

    pub fn snapshot(&self) -> Arc<ArchiveSnapshot> {
        Arc::clone(&self.snapshot)
    }

    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Begins the next epoch. Nothing happens on storage before [`Archive::commit`].
    pub fn begin(&self) -> EpochWriter {
        EpochWriter::new(self.schema(), self.snapshot.epoch.next())
    }

    /// Commits an epoch, exactly once however often it is called with the same value. An epoch that holds
    /// nothing and moves nothing makes no commit.
    ///
    /// After an error for which [`ArchiveError::is_retryable`] holds, the same epoch may be committed again.
    /// After any other error the process must end.
    pub async fn commit(&mut self, epoch: &EncodedEpoch) -> Result<Arc<ArchiveSnapshot>, ArchiveError> {
        let offered = &epoch.offered;
        if offered.epoch == self.snapshot.epoch && epoch.nonce == self.newest_nonce {
            return Ok(self.snapshot());
        }
        if offered.epoch != self.snapshot.epoch.next() {
            return Err(self.fenced(self.snapshot.epoch));
        }
        if epoch.files.is_empty()
            && offered.frontier == self.snapshot.frontier
            && offered.ledger == self.snapshot.ledger
        {
            return Ok(self.snapshot());
        }
        check_advance(&self.state.standing, offered, epoch.rows()).map_err(|refusal| ArchiveError::Refused {
            stream: self.stream.clone(),
            epoch: offered.epoch,
            refusal,
        })?;
        for _ in 0..STEPS_MAX {
            if self.step_over(&epoch.nonce).await? == Step::Committed
                || self.create_epoch(epoch).await? != Created::Taken
            {
                self.newest_nonce.clone_from(&epoch.nonce);
                return Ok(self.adopt());
            }
        }
        Err(ArchiveError::Crowded { stream: self.stream.clone() })
    }

    /// Reads what stands at the next version, before anything is written by the attempt with this nonce.
    async fn step_over(&mut self, nonce: &str) -> Result<Step, ArchiveError> {
        loop {
            let version = self.state.version + 1;
            let Some(entry) = load::entry(&self.storage, &self.paths, version).await? else {
                return Ok(Step::Free);
            };
            let winner = entry.winner(nonce);
            let earlier = self.unanswered.as_deref().is_some_and(|nonce| entry.winner(nonce) == Winner::Us);
            if let Winner::Writer(theirs) = winner
                && !earlier
            {
                return Err(self.fenced(theirs));
            }
            let path = self.paths.log_entry(version).to_string();
            self.state.apply(entry).map_err(|reason| StorageError::Damaged { path, reason })?;
            if winner == Winner::Us {
                return Ok(Step::Committed);
            }
        }
    }

    async fn create_epoch(&mut self, epoch: &EncodedEpoch) -> Result<Created, ArchiveError> {
        let files: Vec<ArchiveFile> = epoch
            .files
            .iter()
            .map(|file| ArchiveFile {
                path: self.paths.data_file(&file.name),
                name: file.name.clone(),
                kind: file.kind,
                rows: file.file.rows,
                bytes: file.file.bytes.len() as u64,
                first: epoch.offered.epoch,
                epoch: epoch.offered.epoch,
                columns: Some(epoch.columns.clone()),
                sha256: file.file.sha256.clone(),
                blocks: Some(file.file.blocks.clone()),
            })
            .collect();
        let written = files.iter().zip(&epoch.files);
        try_join_all(written.map(|(file, encoded)| put_encoded(&self.storage, &file.path, &encoded.file))).await?;
        let change = Change { files, ..Change::default() };
        self.create_entry(&epoch.offered, &epoch.nonce, &change).await
    }

    /// Creates the entry of the next version, and applies it unless another one stands there.
    async fn create_entry(
        &mut self,
        standing: &Standing,
        nonce: &str,
        change: &Change,
    ) -> Result<Created, ArchiveError> {
        let at_millis = self.clock.now() / 1000;
        let entry = log::encode(Some(&self.state), standing, nonce, change, at_millis)
            .map_err(|source| ArchiveError::Json { source })?;
        let path = self.paths.log_entry(self.state.version + 1);
        let created = self.storage.create(&path, entry.clone()).await?;
        if created != Created::Taken {
            let written = log::decode(&entry, &self.paths).and_then(|entry| self.state.apply(entry));
            written.map_err(|reason| StorageError::Damaged { path: path.to_string(), reason })?;
        }
        Ok(created)
    }

    /// Takes the state that the log now has for ours.
    fn adopt(&mut self) -> Arc<ArchiveSnapshot> {
        self.snapshot = Arc::new(ArchiveSnapshot::of(&self.state));
        if self.upkeep.as_ref().is_none_or(JoinHandle::is_finished) {
            self.begin_upkeep();
        }
        self.snapshot()
    }

    fn fenced(&self, epoch: Epoch) -> ArchiveError {
        ArchiveError::Fenced { stream: self.stream.clone(), epoch }
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Archive({}, epoch {}, version {})", self.stream, self.snapshot.epoch, self.state.version)
    }
}

/// What was found at the next version.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nothing: it may be created.
    Free,
    /// Our own entry, whose answer was lost.
    Committed,
}
