//! `information_schema` as the SQL standard and PostgreSQL lay it out. The engine's own names Arrow's types and counts columns
//! from 0, which is not what clients of PostgreSQL read.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray, new_null_array};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{CatalogProvider, MemTable, SchemaProvider, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::Result;

use crate::serve::{DATABASE, Database};

pub(super) const INFORMATION_SCHEMA: &str = "information_schema";

/// The tables, with the columns of each; those that end with `#` are numbers.
const TABLES: &[(&str, &[&str])] = &[
    ("schemata", &["catalog_name", "schema_name", "schema_owner"]),
    ("tables", &["table_catalog", "table_schema", "table_name", "table_type", "is_insertable_into", "is_typed"]),
    ("views", &["table_catalog", "table_schema", "table_name", "view_definition", "check_option", "is_updatable"]),
    (
        "columns",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position#",
            "column_default",
            "is_nullable",
            "data_type",
            "character_maximum_length#",
            "character_octet_length#",
            "numeric_precision#",
            "numeric_precision_radix#",
            "numeric_scale#",
            "datetime_precision#",
            "interval_type",
            "character_set_name",
            "collation_name",
            "domain_schema",
            "domain_name",
            "udt_catalog",
            "udt_schema",
            "udt_name",
            "is_identity",
            "identity_generation",
            "is_generated",
            "generation_expression",
            "is_updatable",
        ],
    ),
    (
        "table_constraints",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "constraint_type",
            "is_deferrable",
            "initially_deferred",
            "enforced",
        ],
    ),
    (
        "key_column_usage",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "ordinal_position#",
            "position_in_unique_constraint#",
        ],
    ),
    (
        "constraint_column_usage",
        &[
            "table_catalog",
            "table_schema",
            "table_name",
            "column_name",
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
        ],
    ),
    (
        "referential_constraints",
        &[
            "constraint_catalog",
            "constraint_schema",
            "constraint_name",
            "unique_constraint_catalog",
            "unique_constraint_schema",
            "unique_constraint_name",
            "match_option",
            "update_rule",
            "delete_rule",
        ],
    ),
    ("check_constraints", &["constraint_catalog", "constraint_schema", "constraint_name", "check_clause"]),
    ("character_sets", &["character_set_name", "character_repertoire", "form_of_use"]),
    (
        "routines",
        &["specific_schema", "specific_name", "routine_schema", "routine_name", "routine_type", "data_type"],
    ),
    ("parameters", &["specific_schema", "specific_name", "ordinal_position#", "parameter_name", "data_type"]),
    ("sequences", &["sequence_catalog", "sequence_schema", "sequence_name", "data_type"]),
    ("triggers", &["trigger_schema", "trigger_name", "event_object_schema", "event_object_table"]),
];

/// A row: what is not said of a column is NULL.
type Row = Vec<(&'static str, Value)>;

#[derive(Debug, Clone)]
enum Value {
    Text(String),
    Number(i32),
}

fn text(value: impl Into<String>) -> Value {
    Value::Text(value.into())
}

fn database() -> Value {
    text(DATABASE)
}

/// Describes `catalog`.
pub(super) struct InformationSchema {
    pub(super) catalog: Arc<dyn CatalogProvider>,
    pub(super) database: Arc<dyn Database>,
}

impl fmt::Debug for InformationSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InformationSchema").finish_non_exhaustive()
    }
}

#[async_trait]
impl SchemaProvider for InformationSchema {
    fn table_names(&self) -> Vec<String> {
        TABLES.iter().map(|(name, _)| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some((_, columns)) = TABLES.iter().find(|(known, _)| *known == name) else { return Ok(None) };
        let rows = match name {
            "schemata" => self.schemata(),
            "tables" => self.tables().await?,
            "views" => self.views().await?,
            "columns" => self.columns().await?,
            "table_constraints" => self.keys().iter().map(Key::constraint).collect(),
            "key_column_usage" => self.keys().iter().flat_map(|key| key.columns(true)).collect(),
            "constraint_column_usage" => self.keys().iter().flat_map(|key| key.columns(false)).collect(),
            "character_sets" => vec![vec![
                ("character_set_name", text("UTF8")),
                ("character_repertoire", text("UCS")),
                ("form_of_use", text("UTF8")),
            ]],
            _ => Vec::new(),
        };
        let batch = batch(columns, &rows)?;
        Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>> {
        Ok(self.table_exist(name).then_some(TableType::View))
    }

    fn table_exist(&self, name: &str) -> bool {
        TABLES.iter().any(|(known, _)| *known == name)
    }
}

impl InformationSchema {
    /// Every table of the snapshot, with its schema.
    fn all(&self) -> Vec<(String, Arc<dyn SchemaProvider>, String)> {
        let names = self.catalog.schema_names().into_iter();
        let schemas = names.filter_map(|name| self.catalog.schema(&name).map(|schema| (name, schema)));
        schemas
            .flat_map(|(name, schema)| {
                let tables = schema.table_names();
                tables.into_iter().map(move |table| (name.clone(), Arc::clone(&schema), table))
            })
            .collect()
    }

    fn schemata(&self) -> Vec<Row> {
        let names = self.catalog.schema_names().into_iter().chain([INFORMATION_SCHEMA.to_owned()]);
        names
            .map(|name| {
                vec![("catalog_name", database()), ("schema_name", text(name)), ("schema_owner", text(DATABASE))]
            })
            .collect()
    }

    async fn tables(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (schema, provider, table) in self.all() {
            let kind = match provider.table_type(&table).await? {
                Some(TableType::View) => "VIEW",
                Some(TableType::Temporary) => "LOCAL TEMPORARY",
                Some(TableType::Base) => "BASE TABLE",
                None => continue,
            };
            let mut row = of_table(&schema, &table);
            row.push(("table_type", text(kind)));
            row.push(("is_insertable_into", text("NO")));
            row.push(("is_typed", text("NO")));
            rows.push(row);
        }
        for (table, _) in TABLES {
            let mut row = of_table(INFORMATION_SCHEMA, table);
            row.push(("table_type", text("VIEW")));
            rows.push(row);
        }
        Ok(rows)
    }

    async fn views(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (schema, provider, table) in self.all() {
            if provider.table_type(&table).await? == Some(TableType::View) {
                let mut row = of_table(&schema, &table);
                row.push(("check_option", text("NONE")));
                row.push(("is_updatable", text("NO")));
                rows.push(row);
            }
        }
        Ok(rows)
    }

    async fn columns(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (schema, provider, table) in self.all() {
            let Some(found) = provider.table(&table).await? else { continue };
            let fields = found.schema();
            rows.extend(fields.fields().iter().zip(1..).map(|(field, at)| column(&schema, &table, field, at)));
        }
        Ok(rows)
    }

    /// The primary keys.
    fn keys(&self) -> Vec<Key> {
        let key = |(schema, _, table): (String, _, String)| {
            let columns = self.database.primary_key(&schema, &table);
            (!columns.is_empty()).then_some(Key { schema, table, columns })
        };
        self.all().into_iter().filter_map(key).collect()
    }
}

struct Key {
    schema: String,
    table: String,
    columns: Vec<String>,
}

impl Key {
    fn row(&self) -> Row {
        let mut row = of_table(&self.schema, &self.table);
        row.push(("constraint_catalog", database()));
        row.push(("constraint_schema", text(&self.schema)));
        row.push(("constraint_name", text(format!("{}_pkey", self.table))));
        row
    }

    fn constraint(&self) -> Row {
        let mut row = self.row();
        row.push(("constraint_type", text("PRIMARY KEY")));
        row.push(("is_deferrable", text("NO")));
        row.push(("initially_deferred", text("NO")));
        row.push(("enforced", text("YES")));
        row
    }

    fn columns(&self, numbered: bool) -> Vec<Row> {
        let row = |(name, position): (&String, i32)| {
            let mut row = self.row();
            row.push(("column_name", text(name)));
            if numbered {
                row.push(("ordinal_position", Value::Number(position)));
            }
            row
        };
        self.columns.iter().zip(1..).map(row).collect()
    }
}

fn of_table(schema: &str, table: &str) -> Row {
    vec![("table_catalog", database()), ("table_schema", text(schema)), ("table_name", text(table))]
}

fn column(schema: &str, table: &str, field: &Field, position: i32) -> Row {
    let told = Told::of(field.data_type());
    let mut row = of_table(schema, table);
    row.extend([
        ("column_name", text(field.name())),
        ("ordinal_position", Value::Number(position)),
        ("is_nullable", text(if field.is_nullable() { "YES" } else { "NO" })),
        ("data_type", text(told.name)),
        ("udt_catalog", database()),
        ("udt_schema", text("pg_catalog")),
        ("udt_name", text(told.internal)),
        ("is_identity", text("NO")),
        ("is_generated", text("NEVER")),
        ("is_updatable", text("NO")),
    ]);
    if let Some((precision, radix, scale)) = told.numeric {
        row.push(("numeric_precision", Value::Number(precision)));
        row.push(("numeric_precision_radix", Value::Number(radix)));
        row.extend(scale.map(|scale| ("numeric_scale", Value::Number(scale))));
    }
    row.extend(told.fraction.map(|digits| ("datetime_precision", Value::Number(digits))));
    row
}

/// A type as PostgreSQL tells it: as a client sees values of it over the wire.
struct Told {
    name: &'static str,
    internal: String,
    /// Precision, in which base, and scale where it is exact.
    numeric: Option<(i32, i32, Option<i32>)>,
    /// Digits of a second.
    fraction: Option<i32>,
}

impl Told {
    fn of(data_type: &DataType) -> Self {
        let plain =
            |name, internal: &str| Self { name, internal: internal.to_owned(), numeric: None, fraction: None };
        let whole = |name, internal, bits| Self { numeric: Some((bits, 2, Some(0))), ..plain(name, internal) };
        let float = |name, internal, bits| Self { numeric: Some((bits, 2, None)), ..plain(name, internal) };
        let time = |name, internal| Self { fraction: Some(6), ..plain(name, internal) };
        match data_type {
            DataType::Boolean => plain("boolean", "bool"),
            DataType::Int8 | DataType::UInt8 | DataType::Int16 => whole("smallint", "int2", 16),
            DataType::UInt16 | DataType::Int32 => whole("integer", "int4", 32),
            DataType::UInt32 | DataType::Int64 | DataType::UInt64 => whole("bigint", "int8", 64),
            DataType::Float16 | DataType::Float32 => float("real", "float4", 24),
            DataType::Float64 => float("double precision", "float8", 53),
            DataType::Decimal32(precision, scale)
            | DataType::Decimal64(precision, scale)
            | DataType::Decimal128(precision, scale)
            | DataType::Decimal256(precision, scale) => Self {
                numeric: Some((i32::from(*precision), 10, Some(i32::from(*scale)))),
                ..plain("numeric", "numeric")
            },
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                plain("bytea", "bytea")
            }
            DataType::Date32 | DataType::Date64 => Self { fraction: Some(0), ..plain("date", "date") },
            DataType::Time32(_) | DataType::Time64(_) => time("time without time zone", "time"),
            DataType::Timestamp(_, None) => time("timestamp without time zone", "timestamp"),
            DataType::Timestamp(_, Some(_)) => time("timestamp with time zone", "timestamptz"),
            DataType::Interval(_) | DataType::Duration(_) => time("interval", "interval"),
            DataType::Dictionary(_, value) => Self::of(value),
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)
                if !item.data_type().is_nested() =>
            {
                plain("ARRAY", &format!("_{}", Self::of(item.data_type()).internal))
            }
            nested if nested.is_nested() => plain("json", "json"),
            _ => plain("text", "text"),
        }
    }
}

fn batch(columns: &[&'static str], rows: &[Row]) -> Result<RecordBatch> {
    let mut fields = Vec::with_capacity(columns.len());
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns.len());
    for column in columns {
        let (name, is_number) = match column.strip_suffix('#') {
            Some(name) => (name, true),
            None => (*column, false),
        };
        let values = rows.iter().map(|row| row.iter().find(|(known, _)| *known == name).map(|(_, value)| value));
        let data_type = if is_number { DataType::Int32 } else { DataType::Utf8 };
        arrays.push(match data_type {
            _ if rows.is_empty() => new_null_array(&data_type, 0),
            DataType::Int32 => Arc::new(Int32Array::from_iter(values.map(|value| match value {
                Some(Value::Number(number)) => Some(*number),
                _ => None,
            }))),
            _ => Arc::new(StringArray::from_iter(values.map(|value| match value {
                Some(Value::Text(text)) => Some(text.as_str()),
                _ => None,
            }))),
        });
        fields.push(Field::new(name, data_type, true));
    }
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    Ok(RecordBatch::try_new(schema, arrays)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_told_as_postgresql_does() {
        let list = |item| DataType::List(Arc::new(Field::new("item", item, true)));
        for (data_type, name, internal) in [
            (DataType::Utf8, "text", "text"),
            (DataType::UInt64, "bigint", "int8"),
            (DataType::Decimal128(18, 9), "numeric", "numeric"),
            (DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), "text", "text"),
            (list(DataType::Utf8), "ARRAY", "_text"),
            (list(list(DataType::Utf8)), "json", "json"),
            (DataType::Struct(Vec::<Field>::new().into()), "json", "json"),
        ] {
            let told = Told::of(&data_type);
            assert_eq!((told.name, told.internal.as_str()), (name, internal), "{data_type}");
        }
        assert_eq!(Told::of(&DataType::Decimal128(18, 9)).numeric, Some((18, 10, Some(9))));
    }
}
