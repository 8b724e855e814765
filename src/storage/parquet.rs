//! How Parquet files are written, everywhere the same.
//!
//! parquet 59 checks page checksums when it reads but does not write them, so every file's SHA-256 and the digests of
//! its blocks are kept beside its name, in the commit or manifest that names it.

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

use super::blocks::BlockDigests;
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
    pub blocks: BlockDigests,
}

/// An encoded file that is still in memory.
#[derive(Debug, Clone)]
pub struct EncodedFile {
    pub bytes: Bytes,
    pub rows: u64,
    /// Of `bytes`, 64 hexadecimal digits.
    pub sha256: String,
    pub blocks: BlockDigests,
}

/// How often a Bloom filter may say of a key that it could be there although it is not.
const KEY_FILTER_ERRORS: f64 = 0.01;

/// The settings of every file: zstd 1 (best size for its speed).
///
/// Instants, offsets and the like hardly repeat: their differences are small and cheaper to write than a dictionary.
/// They have statistics per page. Texts have none: rows are in order of arrival or of a hash, so that every page holds
/// texts from the whole range, and nothing could be skipped by them.
pub fn writer_properties(schema: &Schema) -> WriterProperties {
    common_properties(schema).build()
}

/// With a Bloom filter and statistics on the column `key`, by which readers skip the row groups and pages that do not hold
/// one.
fn keyed_properties(schema: &Schema, key: &str) -> WriterProperties {
    let column = ColumnPath::from(vec![key.to_owned()]);
    common_properties(schema)
        .set_column_statistics_enabled(column.clone(), EnabledStatistics::Page)
        .set_column_bloom_filter_fpp(column, KEY_FILTER_ERRORS)
        .build()
}

fn common_properties(schema: &Schema) -> WriterPropertiesBuilder {
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
    let builder = schema.fields().iter().filter(is_long).fold(builder, by_differences);
    let is_text = |field: &&FieldRef| matches!(field.data_type(), DataType::Utf8 | DataType::Binary);
    let without_statistics = |builder: WriterPropertiesBuilder, field: &FieldRef| {
        let column = ColumnPath::from(vec![field.name().clone()]);
        builder.set_column_statistics_enabled(column, EnabledStatistics::None)
    };
    schema.fields().iter().filter(is_text).fold(builder, without_statistics)
}

/// Encodes batches into one file in memory as they arrive. CPU only; does no I/O.
pub struct ParquetSink {
    writer: ArrowWriter<Vec<u8>>,
    rows: u64,
}

impl ParquetSink {
    pub fn new(schema: &SchemaRef) -> Result<Self, ParquetError> {
        Self::with_properties(schema, writer_properties(schema))
    }

    /// With a Bloom filter on the column `key`.
    pub fn keyed(schema: &SchemaRef, key: &str) -> Result<Self, ParquetError> {
        Self::with_properties(schema, keyed_properties(schema, key))
    }

    fn with_properties(schema: &SchemaRef, properties: WriterProperties) -> Result<Self, ParquetError> {
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(properties))?;
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
        let (sha256, blocks) = (sha256_hex(&bytes), BlockDigests::of(&bytes));
        Ok(EncodedFile { bytes, rows: self.rows, sha256, blocks })
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
            blocks: file.blocks.clone(),
        }),
        Created::Taken => Err(StorageError::Damaged {
            path: path.to_string(),
            reason: "a file with this unique name and other content exists already".to_owned(),
        }),
    }
}

/// Reads a file whole and compares its SHA-256. The error names the file.
pub async fn verify_file(storage: &Storage, path: &Path, sha256: &str) -> Result<(), StorageError> {
    read_verified(storage, path, sha256).await.map(drop)
}

/// As [`verify_file`], with the bytes.
pub async fn read_verified(storage: &Storage, path: &Path, sha256: &str) -> Result<Bytes, StorageError> {
    let damaged = |reason: &str| StorageError::Damaged { path: path.to_string(), reason: reason.to_owned() };
    let bytes = storage.read(path).await?.ok_or_else(|| damaged("it is missing"))?;
    if sha256_hex(&bytes) == sha256 { Ok(bytes) } else { Err(damaged("its content does not match its SHA-256")) }
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
