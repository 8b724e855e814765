//! Catalogs, schemas, tables, keys and types, as Flight SQL asks for them.

use std::sync::Arc;

use arrow_flight::sql::metadata::{
    GetCatalogsBuilder, SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{
    CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTables, CommandGetXdbcTypeInfo,
    Nullable, Searchable, SqlInfo, SqlSupportedCaseSensitivity, SqlSupportedTransaction,
    SqlTransactionIsolationLevel, XdbcDataType,
};
use datafusion::arrow::array::{ArrayRef, Int32Array, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::CatalogProvider;
use datafusion::logical_expr::TableType;
use tonic::Status;

use crate::serve::error::QueryError;
use crate::serve::{DATABASE, Database};

const TABLE: &str = "TABLE";
const VIEW: &str = "VIEW";

fn told(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

pub(super) fn catalogs() -> Result<RecordBatch, Status> {
    let mut builder = GetCatalogsBuilder::new();
    builder.append(DATABASE);
    builder.build().map_err(told)
}

pub(super) fn schemas(query: CommandGetDbSchemas, catalog: &dyn CatalogProvider) -> Result<RecordBatch, Status> {
    let mut builder = query.into_builder();
    catalog.schema_names().iter().for_each(|schema| builder.append(DATABASE, schema));
    builder.build().map_err(told)
}

pub(super) async fn tables(query: CommandGetTables, catalog: &dyn CatalogProvider) -> Result<RecordBatch, Status> {
    let mut builder = query.into_builder();
    for name in catalog.schema_names() {
        let Some(schema) = catalog.schema(&name) else { continue };
        for table in schema.table_names() {
            let found = schema.table(&table).await;
            let found = found.map_err(|error| super::refusal(QueryError::of(&error)))?;
            let Some(found) = found else { continue };
            let kind = if found.table_type() == TableType::View { VIEW } else { TABLE };
            builder.append(DATABASE, &name, &table, kind, &found.schema()).map_err(told)?;
        }
    }
    builder.build().map_err(told)
}

pub(super) fn table_types() -> Result<RecordBatch, Status> {
    let types: ArrayRef = Arc::new(StringArray::from(vec![TABLE, VIEW]));
    let schema = Schema::new(vec![Field::new("table_type", DataType::Utf8, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![types]).map_err(told)
}

pub(super) fn sql_info(query: CommandGetSqlInfo) -> Result<RecordBatch, Status> {
    query.into_builder(&about()?).build().map_err(told)
}

fn about() -> Result<SqlInfoData, Status> {
    let mut about = SqlInfoDataBuilder::new();
    about.append(SqlInfo::FlightSqlServerName, "Viewledger");
    about.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    about.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    about.append(SqlInfo::FlightSqlServerReadOnly, false);
    about.append(SqlInfo::FlightSqlServerSql, true);
    about.append(SqlInfo::FlightSqlServerSubstrait, false);
    about.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::Transaction as i32);
    about.append(SqlInfo::FlightSqlServerCancel, true);
    about.append(SqlInfo::FlightSqlServerBulkIngestion, false);
    about.append(SqlInfo::SqlDdlCatalog, false);
    about.append(SqlInfo::SqlDdlSchema, false);
    about.append(SqlInfo::SqlDdlTable, false);
    about.append(SqlInfo::SqlIdentifierCase, SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32);
    about.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    about.append(
        SqlInfo::SqlQuotedIdentifierCase,
        SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32,
    );
    about.append(SqlInfo::SqlAllTablesAreSelectable, true);
    about.append(SqlInfo::SqlTransactionsSupported, true);
    about.append(
        SqlInfo::SqlDefaultTransactionIsolation,
        SqlTransactionIsolationLevel::SqlTransactionRepeatableRead as i32,
    );
    about.append(SqlInfo::SqlCatalogTerm, "database");
    about.append(SqlInfo::SqlSchemaTerm, "schema");
    about.append(SqlInfo::SqlSupportsTableCorrelationNames, true);
    about.append(SqlInfo::SqlSupportsExpressionsInOrderBy, true);
    about.append(SqlInfo::SqlSupportsOrderByUnrelated, true);
    about.build().map_err(told)
}

pub(super) fn types(query: CommandGetXdbcTypeInfo) -> Result<RecordBatch, Status> {
    query.into_builder(&all_types()?).build().map_err(told)
}

/// The types that columns of SQL have here, by their names in PostgreSQL.
fn all_types() -> Result<XdbcTypeInfoData, Status> {
    let quoted = || Some("'".to_owned());
    let exact = |name: &str, data_type, digits| XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type,
        column_size: Some(digits),
        nullable: Nullable::NullabilityNullable,
        searchable: Searchable::Full,
        unsigned_attribute: Some(false),
        num_prec_radix: Some(10),
        sql_data_type: data_type,
        ..XdbcTypeInfo::default()
    };
    let text = |name: &str, data_type, size| XdbcTypeInfo {
        literal_prefix: quoted(),
        literal_suffix: quoted(),
        case_sensitive: true,
        unsigned_attribute: None,
        num_prec_radix: None,
        column_size: size,
        ..exact(name, data_type, 0)
    };
    let mut types = XdbcTypeInfoDataBuilder::new();
    for info in [
        text("bool", XdbcDataType::XdbcBit, Some(1)),
        exact("int2", XdbcDataType::XdbcSmallint, 5),
        exact("int4", XdbcDataType::XdbcInteger, 10),
        exact("int8", XdbcDataType::XdbcBigint, 19),
        exact("float4", XdbcDataType::XdbcReal, 7),
        exact("float8", XdbcDataType::XdbcDouble, 15),
        XdbcTypeInfo { fixed_prec_scale: false, ..exact("numeric", XdbcDataType::XdbcDecimal, 38) },
        text("text", XdbcDataType::XdbcVarchar, None),
        text("bytea", XdbcDataType::XdbcVarbinary, None),
        text("date", XdbcDataType::XdbcDate, Some(10)),
        text("timestamptz", XdbcDataType::XdbcTimestamp, Some(32)),
    ] {
        types.append(info);
    }
    types.build().map_err(told)
}

pub(super) fn primary_key_schema() -> SchemaRef {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    Arc::new(Schema::new(vec![
        text("catalog_name", true),
        text("db_schema_name", true),
        text("table_name", false),
        text("column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("key_name", true),
    ]))
}

/// One row a column of the key.
pub(super) fn primary_keys(query: &CommandGetPrimaryKeys, database: &dyn Database) -> Result<RecordBatch, Status> {
    let schema = query.db_schema.as_deref().unwrap_or("public");
    let here = query.catalog.as_deref().is_none_or(|catalog| catalog == DATABASE);
    let columns = if here { database.primary_key(schema, &query.table) } else { Vec::new() };
    let count = columns.len();
    let same = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; count])) };
    let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values((1..).take(count)));
    let columns = vec![
        same(DATABASE),
        same(schema),
        same(&query.table),
        Arc::new(StringArray::from(columns)) as ArrayRef,
        numbers,
        same(&format!("{}_pkey", query.table)),
    ];
    RecordBatch::try_new(primary_key_schema(), columns).map_err(told)
}

/// Tables do not refer to each other.
pub(super) fn foreign_key_schema() -> SchemaRef {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let rule = |name: &str| Field::new(name, DataType::UInt8, false);
    Arc::new(Schema::new(vec![
        text("pk_catalog_name", true),
        text("pk_db_schema_name", true),
        text("pk_table_name", false),
        text("pk_column_name", false),
        text("fk_catalog_name", true),
        text("fk_db_schema_name", true),
        text("fk_table_name", false),
        text("fk_column_name", false),
        Field::new("key_sequence", DataType::Int32, false),
        text("fk_key_name", true),
        text("pk_key_name", true),
        rule("update_rule"),
        rule("delete_rule"),
    ]))
}
