//! Batch views: partial states of every view over everything below a frontier, in Parquet, published as
//! generations.
//!
//! A view's states lie in *runs*. A refresh computes one new run from the archive's new epochs and combines it
//! with its predecessors as long as they are not much larger, so the work follows what is new: the logarithmic
//! method (Bentley and Saxe, 1980), as in log-structured merge trees.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::catalog::version::Histories;
use crate::position::{Epoch, Frontier, GenerationId};
use crate::runtime::Micros;
use crate::storage::blocks::BlockDigests;
use crate::storage::scan::{ParquetTable, ScanFile};

pub mod attempt;
pub mod gc;
pub mod plan;
pub mod publish;
pub mod run;
pub mod shelf;

/// One atomically published set of batch views, all at one frontier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    pub id: GenerationId,
    pub created_at: Micros,
    /// The program that made it.
    pub engine_version: String,
    /// What the views hold: everything below.
    pub frontier: Frontier,
    /// By stream, the newest archive epoch that the views hold.
    pub epochs: BTreeMap<String, Epoch>,
    /// By instance, see [`crate::catalog::version`].
    pub views: BTreeMap<String, ViewStates>,
    /// The versions of all reference tables when it was made.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, u64>,
    /// What the names of views stand for in it, and every definition there ever was; older manifests do not have them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub versions: Histories,
}

/// The batch half of one view.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewStates {
    /// Of the definition and the encoding of its states: states of another are rebuilt, never read.
    pub fingerprint: String,
    /// Oldest first; several runs may hold the same group.
    pub runs: Vec<RunFile>,
    /// The reference tables that they were computed with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<String, BoundTable>,
}

/// The version of a reference table that states were computed with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundTable {
    pub version: u64,
    /// The same for the same rows.
    pub digest: String,
}

/// One file of partial states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
    pub sha256: String,
    /// By which every read is checked; older manifests do not have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<String>,
}

impl Generation {
    /// The generation before the first: nothing counted.
    pub fn empty() -> Self {
        Self {
            id: GenerationId::default(),
            created_at: 0,
            engine_version: env!("CARGO_PKG_VERSION").to_owned(),
            frontier: Frontier::default(),
            epochs: BTreeMap::new(),
            views: BTreeMap::new(),
            tables: BTreeMap::new(),
            versions: Histories::new(),
        }
    }

    pub fn epoch(&self, stream: &str) -> Epoch {
        self.epochs.get(stream).copied().unwrap_or_default()
    }
}

impl ViewStates {
    /// Of states alone, which are in no manifest.
    pub fn of(runs: Vec<RunFile>) -> Self {
        Self { fingerprint: String::new(), runs, tables: BTreeMap::new() }
    }

    /// By table, the digest of the rows that they were computed with.
    pub fn digests(&self) -> BTreeMap<String, String> {
        self.tables.iter().map(|(table, bound)| (table.clone(), bound.digest.clone())).collect()
    }

    /// The states as a table with the columns of the view's state schema.
    pub fn table(&self, schema: SchemaRef) -> ParquetTable {
        let files: Vec<ScanFile> = self.runs.iter().map(RunFile::scan_file).collect();
        ParquetTable::new(schema, files)
    }
}

impl RunFile {
    pub fn scan_file(&self) -> ScanFile {
        let blocks = self.blocks.as_deref().and_then(BlockDigests::parse);
        ScanFile { path: Path::from(self.path.as_str()), bytes: self.bytes, rows: self.rows, blocks }
    }
}

/// Generations whose files may be in use: readers hold the `Arc`.
pub type GenerationRef = Arc<Generation>;
