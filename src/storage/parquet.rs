//! How Parquet files are written, everywhere the same.
//!
//! parquet 59 checks page checksums when it reads but does not write them, so every file's SHA-256 is kept
//! beside its name, in the commit or manifest that names it.

use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::basic::{Compression, Encoding, ZstdLevel};
use ::parquet::errors::ParquetError;
use ::parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use ::parquet::schema::types::ColumnPath;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use bytes::Bytes;
use object_store::path::Path;

use super::{Created, Storage, StorageError, sha256_hex};

/// Rows of a row group at most: the unit in which readers split and skip.
pub const ROW_GROUP_ROWS_MAX: usize = 512 * 1024;

/// A file that was written and synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Object name, relative to the storage root.
    pub path: Path,
    pub rows: u64,
    pub bytes: u64,
    /// Of the whole file, 64 hexadecimal digits.
    pub sha256: String,
}

/// An encoded file that is still in memory.
#[derive(Debug, Clone)]
pub struct EncodedFile {
    pub bytes: Bytes,
    pub rows: u64,
    /// Of `bytes`, 64 hexadecimal digits.
    pub sha256: String,
}

/// The settings of every file: zstd 1 (best size for its speed), statistics per page; dictionaries but for instants,
/// offsets and the like, which hardly repeat: their differences are small and cheaper to write than to look up.
pub fn writer_properties(schema: &Schema) -> WriterProperties {
    let builder = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap_or_default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_bloom_filter_enabled(false)
        .set_created_by(concat!("viewledger ", env!("CARGO_PKG_VERSION")).to_owned());
    let is_long = |field: &&FieldRef| matches!(field.data_type(), DataType::Int64 | DataType::Timestamp(..));
    let by_differences = |builder: WriterPropertiesBuilder, field: &FieldRef| {
        let column = ColumnPath::from(vec![field.name().clone()]);
        builder
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED)
    };
    schema.fields().iter().filter(is_long).fold(builder, by_differences).build()
}

/// Encodes batches into one file in memory as they arrive. CPU only; does no I/O.
pub struct ParquetSink {
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
}

impl ParquetSink {
    pub fn new(schema: &SchemaRef) -> Result<Self, ParquetError> {
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(writer_properties(schema)))?;
        Ok(Self { writer, rows: 0 })
    }

    pub fn append(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        self.writer.write(batch)?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Size so far, buffered pages included: an estimate of the finished file's size.
    pub fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn finish(self) -> Result<EncodedFile, ParquetError> {
        let bytes = Bytes::from(self.writer.into_inner()?);
        let sha256 = sha256_hex(&bytes);
        Ok(EncodedFile { bytes, rows: self.rows, sha256 })
    }
}

impl std::fmt::Debug for ParquetSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetSink").field("rows", &self.rows).field("bytes", &self.bytes()).finish()
    }
}

/// Encodes `batches` and creates the file at `path`.
pub async fn write_parquet(
    storage: &Storage,
    path: &Path,
    schema: &SchemaRef,
    batches: &[RecordBatch],
) -> Result<WrittenFile, StorageError> {
    let encode = || {
        let mut sink = ParquetSink::new(schema)?;
        batches.iter().try_for_each(|batch| sink.append(batch))?;
        sink.finish()
    };
    let encoded = encode().map_err(|source| StorageError::Encode { path: path.to_string(), source })?;
    put_encoded(storage, path, &encoded).await
}

/// Creates the file at `path`. Doing it again with the same bytes is not an error.
pub async fn put_encoded(storage: &Storage, path: &Path, file: &EncodedFile) -> Result<WrittenFile, StorageError> {
    match storage.create(path, file.bytes.clone()).await? {
        Created::New | Created::MineAlready => Ok(WrittenFile {
            path: path.clone(),
            rows: file.rows,
            bytes: file.bytes.len() as u64,
            sha256: file.sha256.clone(),
        }),
        Created::Taken => Err(StorageError::Damaged {
            path: path.to_string(),
            reason: "a file with this unique name and other content exists already".to_owned(),
        }),
    }
}

/// Reads a file whole and compares its SHA-256. The error names the file.
pub async fn verify_file(storage: &Storage, path: &Path, sha256: &str) -> Result<(), StorageError> {
    let damaged = |reason: &str| StorageError::Damaged { path: path.to_string(), reason: reason.to_owned() };
    let bytes = storage.read(path).await?.ok_or_else(|| damaged("it is missing"))?;
    if sha256_hex(&bytes) == sha256 { Ok(()) } else { Err(damaged("its content does not match its SHA-256")) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use arrow::array::Int64Array;
    use arrow::datatypes::Field;

    #[tokio::test]
    async fn what_is_written_is_read_and_a_flipped_bit_is_found() {
        let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let batch =
            RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from_iter_values(0..1000))])
                .unwrap();
        let path = Path::from("f.parquet");
        let batches = [batch.clone(), batch];
        let written = write_parquet(&storage, &path, &schema, &batches).await.unwrap();
        assert_eq!(written.rows, 2000);
        assert_eq!(write_parquet(&storage, &path, &schema, &batches).await.unwrap(), written);
        let bytes = storage.read(&path).await.unwrap().unwrap();
        assert_eq!(bytes.len() as u64, written.bytes);
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap();
        assert!(reader.metadata().file_metadata().created_by().unwrap().starts_with("viewledger"));
        let rows: usize = reader.build().unwrap().map(|batch| batch.unwrap().num_rows()).sum();
        assert_eq!(rows, 2000);
        verify_file(&storage, &path, &written.sha256).await.unwrap();
        let mut bad = bytes.to_vec();
        bad[40] ^= 0x10;
        storage.overwrite(&path, bad.into()).await.unwrap();
        let error = verify_file(&storage, &path, &written.sha256).await.unwrap_err();
        assert!(error.to_string().contains("f.parquet"), "{error}");
        assert!(write_parquet(&storage, &path, &schema, &batches).await.is_err());
    }
}
