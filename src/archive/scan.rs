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

/// Files with the records that count of some epochs.
#[derive(Debug)]
pub struct EventFiles {
    files: Vec<ScanFile>,
    /// They end with this epoch.
    pub through: Epoch,
    pub rows: u64,
    /// Records of earlier epochs are among them.
    pub overlap: bool,
}

impl EventFiles {
    pub fn table(self, schema: SchemaRef) -> ParquetTable {
        ParquetTable::new(schema, self.files)
    }
}

impl ArchiveSnapshot {
    /// The next files with records that count after `after`: as many as hold `rows_max`, and all others with records of
    /// the same epochs. Where `after` lies within a file, records from before it are among them. None when there are
    /// no more.
    pub fn events_after(&self, after: Epoch, rows_max: u64) -> Option<EventFiles> {
        let mut taken = EventFiles { files: Vec::new(), through: after, rows: 0, overlap: false };
        let mut left: Vec<&ArchiveFile> = self.files.iter().map(AsRef::as_ref).collect();
        left.retain(|file| file.kind == Kind::Event && file.epoch > after);
        left.sort_by_key(|file| file.first);
        for file in left {
            if taken.rows >= rows_max && file.first > taken.through {
                return Some(taken);
            }
            taken.rows += file.rows;
            taken.overlap |= file.first <= after;
            taken.through = taken.through.max(file.epoch);
            taken.files.push(file.scan_file());
        }
        taken.through = self.epoch;
        (!taken.files.is_empty()).then_some(taken)
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
