//! The only file that names deltalake: schemas as Delta knows them, and checkpoints.
//!
//! Commits themselves are not made through deltalake's own transaction code. It reloads the table after each
//! commit, retries conflicts by itself and lets a writer with a fresh snapshot repeat an epoch; an entry of
//! ours is one conditional create at exactly the next version, whose text we hold in our hands.

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::kernel::{Action, StructField, StructType};
use deltalake_core::logstore::{StorageConfig, default_logstore};
use deltalake_core::{DeltaTable, DeltaTableError, checkpoints};
use futures::TryStreamExt;
use object_store::prefix::PrefixStore;
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

use super::ArchiveError;
use super::keep::RetiredFile;
use super::log::{self, CheckpointTable, tagged_file};
use crate::storage::paths::ArchivePaths;
use crate::storage::{Storage, StorageError};

/// A checkpoint is written every so many versions, so that opening reads at most about as many entries.
pub(super) const CHECKPOINT_EVERY: u64 = 100;

/// Setting of the table that names the stream's key.
const KEY: &str = "viewledger.key";

/// The first `metaData` action of a table with these columns.
pub(super) fn new_metadata(schema: &Schema, key: Option<&str>, at_millis: i64) -> Result<Value, ArchiveError> {
    let mut metadata = json!({
        "id": Uuid::new_v4().to_string(),
        "format": {"provider": "parquet", "options": {}},
        "schemaString": schema_string(&delta_schema(schema)?)?,
        "partitionColumns": [],
        "configuration": {
            "delta.appendOnly": "true",
            "delta.checkpointInterval": CHECKPOINT_EVERY.to_string(),
            // As long as we remember what compaction replaced.
            "delta.deletedFileRetentionDuration": format!("interval {} seconds", log::REMEMBERED.as_secs()),
            // Old entries are evidence; nothing deletes them.
            "delta.enableExpiredLogCleanup": "false",
            "delta.logRetentionDuration": "interval 520 weeks",
        },
        "createdTime": at_millis,
    });
    if let Some(key) = key {
        note_key(&mut metadata, key);
    }
    Ok(metadata)
}

/// Name of the stream's key, empty when it has none; None when the table does not say.
pub(super) fn stored_key(metadata: &Value) -> Option<String> {
    metadata.get("configuration")?.get(KEY)?.as_str().map(ToOwned::to_owned)
}

fn note_key(metadata: &mut Value, key: &str) {
    if let Some(settings) = metadata.get_mut("configuration").and_then(Value::as_object_mut) {
        settings.insert(KEY.to_owned(), key.into());
    }
}

/// Names and types of the table's columns.
pub(super) fn stored_columns(stream: &str, metadata: &Value) -> Result<Vec<(String, String)>, ArchiveError> {
    stored_schema(stream, metadata).map(|schema| names_and_types(&schema))
}

/// Names and types that the table's columns would have.
pub(super) fn declared_columns(schema: &Schema) -> Result<Vec<(String, String)>, ArchiveError> {
    delta_schema(schema).map(|schema| names_and_types(&schema))
}

fn names_and_types(schema: &StructType) -> Vec<(String, String)> {
    schema.fields().map(|field| (field.name().clone(), field.data_type().to_string())).collect()
}

fn stored_schema(stream: &str, metadata: &Value) -> Result<StructType, ArchiveError> {
    let stored = metadata.get("schemaString").and_then(Value::as_str).unwrap_or_default();
    serde_json::from_str(stored)
        .map_err(|error| ArchiveError::Schema { stream: stream.to_owned(), reason: error.to_string() })
}

/// The `metaData` action that adds the columns of `schema` which the table lacks, and the key when the table says
/// another or none; None when nothing is new. Columns that are no longer declared stay.
pub(super) fn evolved_metadata(
    stream: &str,
    metadata: &Value,
    schema: &Schema,
    key: Option<&str>,
) -> Result<Option<Value>, ArchiveError> {
    let unreadable = |reason: String| ArchiveError::Schema { stream: stream.to_owned(), reason };
    let stored = stored_schema(stream, metadata)?;
    let mut fields: Vec<StructField> = stored.fields().cloned().collect();
    let declared = delta_schema(schema)?;
    for field in declared.fields() {
        match stored.field(field.name()) {
            None => fields.push(field.clone()),
            Some(known) if known.data_type() == field.data_type() => {}
            Some(known) => {
                return Err(ArchiveError::ColumnChanged {
                    stream: stream.to_owned(),
                    column: field.name().clone(),
                    stored: known.data_type().to_string(),
                    declared: field.data_type().to_string(),
                });
            }
        }
    }
    // Whether it may be another one was judged before; see `evolve`.
    let other_key = key.filter(|key| stored_key(metadata).as_deref() != Some(key));
    if fields.len() == stored.fields().count() && other_key.is_none() {
        return Ok(None);
    }
    let evolved = StructType::try_new(fields).map_err(|error| unreadable(error.to_string()))?;
    let mut metadata = metadata.clone();
    if let Some(object) = metadata.as_object_mut() {
        object.insert("schemaString".to_owned(), schema_string(&evolved)?.into());
    }
    if let Some(key) = other_key {
        note_key(&mut metadata, key);
    }
    Ok(Some(metadata))
}

fn schema_string(schema: &StructType) -> Result<String, ArchiveError> {
    serde_json::to_string(schema).map_err(|source| ArchiveError::Json { source })
}

/// Delta's names of the types. Every column may be null there: older files lack newer columns.
fn delta_schema(schema: &Schema) -> Result<StructType, ArchiveError> {
    let mut fields = Vec::new();
    for field in schema.fields() {
        let unsupported = |reason: String| ArchiveError::UnsupportedColumn {
            column: field.name().clone(),
            data_type: field.data_type().to_string(),
            reason,
        };
        let relaxed = relaxed(field);
        let converted: Result<StructField, _> = relaxed.as_ref().try_into_kernel();
        fields.push(converted.map_err(|error| unsupported(error.to_string()))?);
    }
    StructType::try_new(fields).map_err(|error| ArchiveError::UnsupportedColumn {
        column: "(all)".to_owned(),
        data_type: "struct".to_owned(),
        reason: error.to_string(),
    })
}

fn relaxed(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::List(item) => DataType::List(relaxed(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(relaxed).collect::<Fields>()),
        other => other.clone(),
    };
    Arc::new(Field::new(field.name(), data_type, true))
}

/// What the table holds at a version that has a checkpoint.
pub(super) async fn table_at(
    storage: &Storage,
    paths: &ArchivePaths,
    version: u64,
) -> Result<CheckpointTable, ArchiveError> {
    let failed = |source| delta_error("read the checkpoint of", paths, source);
    let mut table = delta_table(storage, paths);
    table.load_version(version).await.map_err(failed)?;
    let state = table.snapshot().map_err(failed)?;
    let metadata = serde_json::to_value(Action::Metadata(state.metadata().clone()))
        .map_err(|source| ArchiveError::Json { source })?;
    let metadata = metadata.get("metaData").cloned().unwrap_or_default();
    let mut files = Vec::new();
    for view in state.log_data().iter() {
        #[expect(deprecated, reason = "the tags of an add action have no other accessor")]
        let add = view.add_action();
        let bytes = u64::try_from(add.size).unwrap_or_default();
        let file = tagged_file(paths, &add.path, bytes, |tag| add.tags.as_ref()?.get(tag)?.clone());
        files.push(file.ok_or_else(|| StorageError::Damaged {
            path: paths.data_file(&add.path).to_string(),
            reason: "another program added it; the archive has one writer".to_owned(),
        })?);
    }
    let mut tombstones = state.all_tombstones(table.log_store().as_ref());
    let mut retired = Vec::new();
    while let Some(tombstone) = tombstones.try_next().await.map_err(failed)? {
        let bytes = tombstone.size().and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
        let at_millis = tombstone.deletion_timestamp().unwrap_or_default();
        retired.push(RetiredFile::remembered(tombstone.path().into_owned(), bytes, at_millis));
    }
    Ok(CheckpointTable { files, retired, metadata })
}

/// Writes a checkpoint of `version`.
pub(super) async fn write_checkpoint(
    storage: &Storage,
    paths: &ArchivePaths,
    version: u64,
) -> Result<(), ArchiveError> {
    let failed = |source| delta_error("write a checkpoint of", paths, source);
    let mut table = delta_table(storage, paths);
    table.load_version(version).await.map_err(failed)?;
    checkpoints::create_checkpoint(&table, None).await.map_err(failed)
}

/// The table as deltalake sees it. The URL is a name only; its path leads to the table within our store.
fn delta_table(storage: &Storage, paths: &ArchivePaths) -> DeltaTable {
    let mut url = storage.url().clone();
    url.set_path(&format!("/{}/", paths.root()));
    let prefixed = Arc::new(PrefixStore::new(storage.store(), paths.root().clone()));
    DeltaTable::new(default_logstore(prefixed, storage.store(), &url, &StorageConfig::default()))
}

fn delta_error(action: &'static str, paths: &ArchivePaths, source: DeltaTableError) -> ArchiveError {
    ArchiveError::Delta { action, table: paths.root().to_string(), source: Box::new(source) }
}
