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
use object_store::prefix::PrefixStore;
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

use super::log::tagged_file;
use super::{ArchiveError, ArchiveFile};
use crate::storage::paths::ArchivePaths;
use crate::storage::{Storage, StorageError};

/// A checkpoint is written every so many versions, so that opening reads at most about as many entries.
pub(super) const CHECKPOINT_EVERY: u64 = 100;

/// The first `metaData` action of a table with these columns.
pub(super) fn new_metadata(schema: &Schema, at_millis: i64) -> Result<Value, ArchiveError> {
    Ok(json!({
        "id": Uuid::new_v4().to_string(),
        "format": {"provider": "parquet", "options": {}},
        "schemaString": schema_string(&delta_schema(schema)?)?,
        "partitionColumns": [],
        "configuration": {
            "delta.appendOnly": "true",
            "delta.checkpointInterval": CHECKPOINT_EVERY.to_string(),
            // Old entries are evidence; nothing deletes them.
            "delta.enableExpiredLogCleanup": "false",
            "delta.logRetentionDuration": "interval 520 weeks",
        },
        "createdTime": at_millis,
    }))
}

/// The `metaData` action that adds the columns of `schema` which the table lacks; None when it lacks none.
/// Columns that are no longer declared stay.
pub(super) fn evolved_metadata(
    stream: &str,
    metadata: &Value,
    schema: &Schema,
) -> Result<Option<Value>, ArchiveError> {
    let unreadable = |reason: String| ArchiveError::Schema { stream: stream.to_owned(), reason };
    let stored = metadata.get("schemaString").and_then(Value::as_str).unwrap_or_default();
    let stored: StructType = serde_json::from_str(stored).map_err(|error| unreadable(error.to_string()))?;
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
    if fields.len() == stored.fields().count() {
        return Ok(None);
    }
    let evolved = StructType::try_new(fields).map_err(|error| unreadable(error.to_string()))?;
    let mut metadata = metadata.clone();
    if let Some(object) = metadata.as_object_mut() {
        object.insert("schemaString".to_owned(), schema_string(&evolved)?.into());
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

/// The files and the `metaData` action at a version that has a checkpoint.
pub(super) async fn table_at(
    storage: &Storage,
    paths: &ArchivePaths,
    version: u64,
) -> Result<(Vec<ArchiveFile>, Value), ArchiveError> {
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
    Ok((files, metadata))
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
