//! The archive as a table for SQL, and the check that its files are what was committed.

use arrow::datatypes::SchemaRef;

use super::{ArchiveError, ArchiveFile, ArchiveSnapshot, Kind};
use crate::catalog::stream::quarantine_schema;
use crate::position::Epoch;
use crate::storage::Storage;
use crate::storage::parquet::verify_file;
use crate::storage::scan::{ParquetTable, ScanFile};

impl ArchiveSnapshot {
    /// The records of one kind in epochs after `after` as a table with the columns of `schema`. A file that
    /// is missing or short fails the query that needs it; opening the archive does not ask for each file.
    ///
    /// The columns of a stream come through [`ArchiveSnapshot::records`], which knows older declarations.
    pub(super) fn table(&self, schema: SchemaRef, kind: Kind, after: Epoch) -> ParquetTable {
        let files: Vec<ScanFile> = self.files_in(kind, after).map(ArchiveFile::scan_file).collect();
        ParquetTable::new(schema, files)
    }

    /// The rejected records in epochs after `after`.
    pub fn rejects(&self, after: Epoch) -> ParquetTable {
        self.table(quarantine_schema(), Kind::Quarantined, after)
    }
}

impl ArchiveFile {
    pub fn scan_file(&self) -> ScanFile {
        ScanFile { path: self.path.clone(), bytes: self.bytes, rows: self.rows, blocks: self.blocks.clone() }
    }

    /// Reads the whole file and compares its SHA-256 with the commit's. Whoever uses the file for money does
    /// this first: a damaged page may decode to wrong values without an error.
    pub async fn verify(&self, storage: &Storage) -> Result<(), ArchiveError> {
        Ok(verify_file(storage, &self.path, &self.sha256).await?)
    }
}
