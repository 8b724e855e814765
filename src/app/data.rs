//! Whether every file that commits and manifests name is what was written.

use anyhow::{Context, Result};
use object_store::path::Path;

use super::Declared;
use crate::archive::Archive;
use crate::batch::publish::Generations;
use crate::runtime::chain;
use crate::storage::Storage;
use crate::storage::parquet::verify_file;
use crate::tables::log;

/// What was read, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Inspection {
    pub files: usize,
    pub bytes: u64,
    /// Each names its file.
    pub faults: Vec<String>,
}

/// Reads every file of the archives, of the newest generation and of all versions of tables, and compares its SHA-256.
///
/// # Errors
/// When a log or a manifest cannot be read: then it is not known which files there are.
pub async fn inspect(storage: &Storage, declared: &Declared) -> Result<Inspection> {
    let mut inspection = Inspection::default();
    for stream in declared.catalog.streams.keys() {
        let archive = Archive::peek(storage, stream).await.with_context(|| format!("archive of {stream}"))?;
        for file in archive.iter().flat_map(|archive| archive.files.iter()) {
            inspection.add(storage, &file.path, file.bytes, &file.sha256).await;
        }
    }
    let generation = Generations::new(storage).latest().await.context("newest generation")?;
    for run in generation.views.values().flat_map(|view| &view.runs) {
        inspection.add(storage, &Path::from(run.path.as_str()), run.bytes, &run.sha256).await;
    }
    for table in declared.tables.keys() {
        for version in log::versions(storage, table).await.with_context(|| format!("versions of table {table}"))? {
            inspection.add(storage, &Path::from(version.path.as_str()), version.bytes, &version.sha256).await;
        }
    }
    Ok(inspection)
}

impl Inspection {
    async fn add(&mut self, storage: &Storage, path: &Path, bytes: u64, sha256: &str) {
        self.files += 1;
        self.bytes += bytes;
        if let Err(error) = verify_file(storage, path, sha256).await {
            self.faults.push(chain(&error));
        }
    }
}
