//! Encodes the records of one epoch. CPU only; nothing touches storage before the commit.

use std::iter::repeat_n;
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use uuid::Uuid;

use super::ledger::{Ledger, Standing};
use super::{ArchiveError, Kind, RowCounts};
use crate::catalog::stream::KIND;
use crate::position::{Epoch, StreamFrontier};
use crate::storage::parquet::{EncodedFile, ParquetSink};
use crate::storage::paths;
use crate::storage::scan::fitted_columns;
use crate::storage::sha256_hex;

/// Collects the records of the epoch after the one it was begun at.
#[derive(Debug)]
pub struct EpochWriter {
    schema: SchemaRef,
    epoch: Epoch,
    sinks: [Option<ParquetSink>; Kind::ALL.len()],
}

/// An epoch that is ready to be committed. The same value may be committed again after a failure: its files
/// keep their names, and its nonce tells whether an attempt whose answer was lost had succeeded.
#[derive(Debug, Clone)]
pub struct EncodedEpoch {
    pub(super) nonce: String,
    pub(super) offered: Standing,
    /// Which columns its files have.
    pub(super) columns: String,
    pub(super) files: Vec<EpochFile>,
}

#[derive(Debug, Clone)]
pub(super) struct EpochFile {
    pub(super) kind: Kind,
    /// Within the table, as the commit holds it.
    pub(super) name: String,
    pub(super) file: EncodedFile,
}

impl EpochWriter {
    pub(super) fn new(schema: SchemaRef, epoch: Epoch) -> Self {
        Self { schema, epoch, sinks: Default::default() }
    }

    /// Adds records of one kind that have some of the archive's columns: the others are NULL, and the column
    /// `_kind` says the kind.
    pub fn append_records(&mut self, kind: Kind, records: &RecordBatch) -> Result<(), ArchiveError> {
        let mut columns = fitted_columns(&self.schema, records);
        if let Some(column) = self.schema.index_of(KIND).ok().and_then(|index| columns.get_mut(index)) {
            *column = Arc::new(StringArray::from_iter_values(repeat_n(kind.name(), records.num_rows())));
        }
        let batch = RecordBatch::try_new(self.schema(), columns)
            .map_err(|error| ArchiveError::Encode { source: error.into() })?;
        self.append(kind, &batch)
    }

    /// Adds records of one kind. The batch has the archive's columns, in its order.
    pub fn append(&mut self, kind: Kind, batch: &RecordBatch) -> Result<(), ArchiveError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        self.check_columns(batch)?;
        let slot = &mut self.sinks[kind.index()];
        let sink = match slot {
            Some(sink) => sink,
            None => slot.insert(ParquetSink::new(&self.schema)?),
        };
        sink.append(batch)?;
        Ok(())
    }

    fn check_columns(&self, batch: &RecordBatch) -> Result<(), ArchiveError> {
        let found = batch.schema_ref().fields();
        for (index, field) in self.schema.fields().iter().enumerate() {
            let same = |other: &FieldRef| other.name() == field.name() && other.data_type() == field.data_type();
            if !found.get(index).is_some_and(same) {
                return Err(ArchiveError::BatchColumn {
                    column: field.name().clone(),
                    expected: field.data_type().to_string(),
                    found: found.get(index).map_or_else(|| "nothing".to_owned(), ToString::to_string),
                });
            }
        }
        Ok(())
    }

    /// Estimated size of the files so far.
    pub fn bytes(&self) -> usize {
        self.sinks.iter().flatten().map(ParquetSink::bytes).sum()
    }

    pub fn rows(&self) -> u64 {
        self.sinks.iter().flatten().map(ParquetSink::rows).sum()
    }

    /// Closes the files. `frontier` and `ledger` are those after this epoch.
    pub fn finish(self, frontier: StreamFrontier, ledger: Ledger) -> Result<EncodedEpoch, ArchiveError> {
        let nonce = Uuid::new_v4().simple().to_string();
        let mut files = Vec::new();
        for (kind, sink) in Kind::ALL.into_iter().zip(self.sinks) {
            if let Some(sink) = sink {
                let name = paths::data_file_name(kind.folder(), self.epoch, &nonce);
                files.push(EpochFile { kind, name, file: sink.finish()? });
            }
        }
        let columns = columns_digest(&self.schema);
        Ok(EncodedEpoch { nonce, offered: Standing { epoch: self.epoch, frontier, ledger }, columns, files })
    }

    /// The columns every appended batch must have.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

/// Names and types of columns, in short.
pub(super) fn columns_digest(schema: &Schema) -> String {
    let fields = schema.fields().iter().map(|field| format!("{} {}\n", field.name(), field.data_type()));
    let mut digest = sha256_hex(fields.collect::<String>().as_bytes());
    digest.truncate(16);
    digest
}

impl EncodedEpoch {
    pub fn epoch(&self) -> Epoch {
        self.offered.epoch
    }

    pub fn frontier(&self) -> &StreamFrontier {
        &self.offered.frontier
    }

    pub fn ledger(&self) -> &Ledger {
        &self.offered.ledger
    }

    pub fn rows(&self) -> RowCounts {
        let mut rows = RowCounts::default();
        for file in &self.files {
            rows.add(file.kind, file.file.rows);
        }
        rows
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.file.bytes.len()).sum()
    }
}
