//! `pg_settings` with the settings of the session that asks, and `pg_locks`, which is empty, beside the system tables that are
//! the same for everybody.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray, new_null_array};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::catalog::{MemTable, SchemaProvider, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::Result;

use crate::serve::session::settings::Settings;

const PG_SETTINGS: &str = "pg_settings";
const PG_LOCKS: &str = "pg_locks";
/// What PostgreSQL was compiled with, and drivers ask for.
const COMPILED: &[(&str, &str)] = &[("block_size", "8192"), ("max_function_args", "100"), ("max_index_keys", "32")];

/// `tables` with the settings as they are now.
pub(super) fn with_settings(tables: Arc<dyn SchemaProvider>, settings: &Settings) -> Arc<dyn SchemaProvider> {
    let own = settings.all().into_iter().map(|(name, value)| (name.to_owned(), value));
    let compiled = COMPILED.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Arc::new(WithSettings { tables, settings: own.chain(compiled).collect() })
}

#[derive(Debug)]
struct WithSettings {
    tables: Arc<dyn SchemaProvider>,
    settings: Vec<(String, String)>,
}

impl WithSettings {
    fn pg_settings(&self) -> Result<Arc<dyn TableProvider>> {
        let texts = [
            "name",
            "setting",
            "unit",
            "category",
            "short_desc",
            "extra_desc",
            "context",
            "vartype",
            "source",
            "min_val",
            "max_val",
            "enumvals",
            "boot_val",
            "reset_val",
            "sourcefile",
        ];
        let mut fields: Vec<Field> = texts.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
        fields.push(Field::new("sourceline", DataType::Int32, true));
        fields.push(Field::new("pending_restart", DataType::Boolean, true));
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(self.settings.iter().map(|(name, _)| name)));
        let values: ArrayRef =
            Arc::new(StringArray::from_iter_values(self.settings.iter().map(|(_, value)| value)));
        let columns = fields.iter().map(|field| match field.name().as_str() {
            "name" => Arc::clone(&names),
            "setting" => Arc::clone(&values),
            _ => new_null_array(field.data_type(), self.settings.len()),
        });
        let columns = columns.collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
    }
}

/// Readers hold none, and who changes tables waits for nobody.
fn pg_locks() -> Result<Arc<dyn TableProvider>> {
    let texts = ["locktype", "mode", "virtualtransaction", "virtualxid"].map(|name| (name, DataType::Utf8));
    let numbers = ["database", "relation", "pid"].map(|name| (name, DataType::Int32));
    let others = [("transactionid", DataType::Int64), ("granted", DataType::Boolean)];
    let fields = texts.into_iter().chain(numbers).chain(others);
    let fields: Vec<Field> = fields.map(|(name, data_type)| Field::new(name, data_type, true)).collect();
    Ok(Arc::new(MemTable::try_new(Arc::new(Schema::new(fields)), vec![vec![]])?))
}

#[async_trait]
impl SchemaProvider for WithSettings {
    fn table_names(&self) -> Vec<String> {
        self.tables.table_names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        match name {
            PG_SETTINGS => self.pg_settings().map(Some),
            PG_LOCKS => pg_locks().map(Some),
            _ => self.tables.table(name).await,
        }
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        if name == PG_LOCKS {
            return Ok(Some(TableType::View));
        }
        self.tables.table_type(name).await
    }

    fn table_exist(&self, name: &str) -> bool {
        name == PG_LOCKS || self.tables.table_exist(name)
    }
}
