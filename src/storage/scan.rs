//! A DataFusion table over an explicit list of Parquet files.
//!
//! The list comes from a commit or a manifest, so planning does no I/O: sizes and row counts are known,
//! nothing is listed, and footers are cached by the session's runtime, because files never change.

use std::fmt;
use std::sync::{Arc, LazyLock};

use ::parquet::arrow::RowNumber;
use arrow::array::{ArrayRef, RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::config::TableParquetOptions;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result, ScalarValue, Statistics};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{
    FileGroup, FileGroupPartitioner, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column};
use datafusion::physical_expr::projection::{ProjectionExpr, ProjectionExprs};
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use object_store::ObjectMeta;
use object_store::path::Path;
use url::Url;

use super::blocks::BlockDigests;
use super::verified::VerifiedStore;

/// Name of the column that holds the object name of the file a row was read from.
pub const FILE_COLUMN: &str = "_file";
/// Name of the column that holds a row's position in its file; the first is 0.
pub const ROW_COLUMN: &str = "_row";

/// How much of a file's end is fetched at once, so that footer and page index usually come in one read.
const FOOTER_HINT_BYTES: usize = 64 * 1024;

/// Under which URL every storage root is registered in DataFusion.
pub(crate) fn registration_url() -> &'static Url {
    static REGISTERED: LazyLock<Url> =
        LazyLock::new(|| Url::parse("viewledger://storage/").expect("the text is a URL"));
    &REGISTERED
}

/// The columns of `batch` in the order of `schema`; those it lacks are NULL.
pub fn fitted_columns(schema: &Schema, batch: &RecordBatch) -> Vec<ArrayRef> {
    schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => Arc::clone(column),
            None => new_null_array(field.data_type(), batch.num_rows()),
        })
        .collect()
}

/// A file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanFile {
    /// Object name, relative to the storage root.
    pub path: Path,
    pub bytes: u64,
    pub rows: u64,
    /// By which every read is checked; older commits do not have them.
    pub blocks: Option<BlockDigests>,
}

/// Where the value of a column comes from in files that lack it.
pub trait AbsentColumns: fmt::Debug + Send + Sync {
    /// An expression over the columns of `file`; None for NULL.
    fn value(&self, column: &str, file: &Schema) -> Option<Arc<dyn PhysicalExpr>>;
}

/// The files of one snapshot as a table. Columns that a file lacks read as NULL, unless [`AbsentColumns`] say more.
#[derive(Debug)]
pub struct ParquetTable {
    absent: Option<Arc<dyn AbsentColumns>>,
    files: Arc<[ScanFile]>,
    file_schema: SchemaRef,
    schema: SchemaRef,
}

impl ParquetTable {
    /// A table with the columns of `file_schema`. The session must have storage registered under
    /// [`super::Storage::url`].
    pub fn new(file_schema: SchemaRef, files: impl Into<Arc<[ScanFile]>>) -> Self {
        Self { absent: None, files: files.into(), schema: Arc::clone(&file_schema), file_schema }
    }

    /// Gives columns that a file lacks a value.
    pub fn filled(self, absent: Arc<dyn AbsentColumns>) -> Self {
        Self { absent: Some(absent), ..self }
    }

    /// Adds the columns `_file` and `_row`, by which a row is found again. They cost nothing unless asked for.
    pub fn with_origin(self) -> Self {
        let origin: [FieldRef; 2] = [file_field(), Arc::new(Field::new(ROW_COLUMN, DataType::Int64, true))];
        let fields: Fields = self.file_schema.fields().iter().cloned().chain(origin).collect();
        Self { schema: Arc::new(Schema::new(fields)), ..self }
    }

    pub fn files(&self) -> &[ScanFile] {
        &self.files
    }

    fn has_origin(&self) -> bool {
        self.schema.fields().len() > self.file_schema.fields().len()
    }

    fn row_index(&self) -> usize {
        self.file_schema.fields().len() + 1
    }

    /// The reader's view: `_file` is a constant per file, `_row` is counted by the Parquet reader, which
    /// knows of skipped row groups and pages.
    fn reader_schema(&self, projection: Option<&Vec<usize>>) -> TableSchema {
        let mut builder = TableSchema::builder(Arc::clone(&self.file_schema));
        if self.has_origin() {
            builder = builder.with_table_partition_cols(vec![file_field()]);
            if projection.is_none_or(|columns| columns.contains(&self.row_index())) {
                let row: FieldRef =
                    Arc::new(Field::new(ROW_COLUMN, DataType::Int64, true).with_extension_type(RowNumber));
                builder = builder.with_virtual_columns(vec![row]);
            }
        }
        builder.build()
    }

    fn file_groups(&self, state: &dyn Session) -> Vec<FileGroup> {
        let files: Vec<_> = self.files.iter().map(|file| self.partitioned(file)).collect();
        let config = state.config();
        let partitions = config.target_partitions().max(1);
        let whole = vec![FileGroup::new(files)];
        FileGroupPartitioner::new()
            .with_target_partitions(partitions)
            .with_repartition_file_min_size(config.options().optimizer.repartition_file_min_size)
            .repartition_file_groups(&whole)
            .unwrap_or_else(|| whole.into_iter().flat_map(|group| group.split_files(partitions)).collect())
    }

    fn partitioned(&self, file: &ScanFile) -> PartitionedFile {
        let meta = ObjectMeta {
            location: file.path.clone(),
            // Files never change, so their age does not matter; the cache of footers compares it.
            last_modified: DateTime::<Utc>::UNIX_EPOCH,
            size: file.bytes,
            e_tag: None,
            version: None,
        };
        let mut partitioned = PartitionedFile::new_from_meta(meta);
        if self.has_origin() {
            partitioned = partitioned.with_partition_values(vec![ScalarValue::from(file.path.as_ref())]);
        }
        partitioned
    }

    fn statistics(&self, reader_schema: &TableSchema) -> Statistics {
        let rows = self.files.iter().map(|file| file.rows).sum::<u64>();
        let mut statistics = Statistics::new_unknown(reader_schema.table_schema());
        if let Ok(rows) = usize::try_from(rows) {
            statistics.num_rows = Precision::Exact(rows);
        }
        statistics
    }
}

/// Puts the values of absent columns in their place, and leaves the rest to DataFusion.
#[derive(Debug)]
struct Filling(Arc<dyn AbsentColumns>);

#[derive(Debug)]
struct FileFilling {
    absent: Arc<dyn AbsentColumns>,
    file: SchemaRef,
    rest: Arc<dyn PhysicalExprAdapter>,
}

impl PhysicalExprAdapterFactory for Filling {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let rest = DefaultPhysicalExprAdapterFactory.create(table, Arc::clone(&file))?;
        Ok(Arc::new(FileFilling { absent: Arc::clone(&self.0), file, rest }))
    }
}

impl PhysicalExprAdapter for FileFilling {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        let filled = expr.transform(|expr| {
            let absent = expr.downcast_ref::<Column>().filter(|column| self.file.index_of(column.name()).is_err());
            Ok(match absent.and_then(|column| self.absent.value(column.name(), &self.file)) {
                Some(value) => Transformed::yes(value),
                None => Transformed::no(expr),
            })
        })?;
        self.rest.rewrite(filled.data)
    }
}

fn file_field() -> FieldRef {
    Arc::new(Field::new(FILE_COLUMN, DataType::Utf8, true))
}

/// The columns to read. `_row` is cast to itself, which takes off the mark by which the reader knows it: SQL
/// shall see an ordinary column.
fn projected(reader_schema: &TableSchema, projection: Option<&Vec<usize>>) -> ProjectionExprs {
    let fields = reader_schema.table_schema().fields();
    let all: Vec<usize> = (0..fields.len()).collect();
    let columns = projection.unwrap_or(&all).iter().filter_map(|index| Some((*index, fields.get(*index)?)));
    ProjectionExprs::new(columns.map(|(index, field)| {
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(field.name(), index));
        let expr: Arc<dyn PhysicalExpr> = match field.name() == ROW_COLUMN && !field.metadata().is_empty() {
            false => column,
            true => Arc::new(CastExpr::new_with_target_field(column, plain(field), None)),
        };
        ProjectionExpr::new(expr, field.name().clone())
    }))
}

fn plain(field: &FieldRef) -> FieldRef {
    Arc::new(field.as_ref().clone().with_metadata(std::collections::HashMap::new()))
}

fn mentions_row(filter: &Expr) -> bool {
    filter.column_refs().iter().any(|column| column.name == ROW_COLUMN)
}

#[async_trait]
impl TableProvider for ParquetTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Statistics prune row groups and pages; the rows that remain are filtered above the scan.
        let skips = |filter: &&Expr| match mentions_row(filter) {
            true => TableProviderFilterPushDown::Unsupported,
            false => TableProviderFilterPushDown::Inexact,
        };
        Ok(filters.iter().map(skips).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if self.files.is_empty() {
            let schema = match projection {
                Some(columns) => Arc::new(self.schema.project(columns)?),
                None => self.schema(),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let url = ObjectStoreUrl::parse(registration_url())?;
        let runtime = state.runtime_env();
        let store = VerifiedStore::new(runtime.object_store(&url)?, &self.files);
        let readers =
            CachedParquetFileReaderFactory::new(Arc::new(store), runtime.cache_manager.get_file_metadata_cache());
        let options = TableParquetOptions {
            global: state.config().options().execution.parquet.clone(),
            ..TableParquetOptions::default()
        };
        let reader_schema = self.reader_schema(projection);
        let statistics = self.statistics(&reader_schema);
        let prunable = conjunction(filters.iter().filter(|filter| !mentions_row(filter)).cloned());
        let mut source = ParquetSource::new(reader_schema.clone())
            .with_table_parquet_options(options)
            .with_metadata_size_hint(FOOTER_HINT_BYTES)
            .with_parquet_file_reader_factory(Arc::new(readers));
        if let Some(predicate) = prunable {
            let columns = DFSchema::try_from(Arc::clone(reader_schema.schema_without_virtual_columns()))?;
            source = source.with_predicate(state.create_physical_expr(predicate, &columns)?);
        }
        let source = source
            .try_pushdown_projection(&projected(&reader_schema, projection))?
            .unwrap_or_else(|| Arc::new(source));
        let config = FileScanConfigBuilder::new(url, source)
            .with_file_groups(self.file_groups(state))
            .with_statistics(statistics)
            .with_limit(limit)
            .with_expr_adapter(self.absent.as_ref().map(|absent| {
                let filling: Arc<dyn PhysicalExprAdapterFactory> = Arc::new(Filling(Arc::clone(absent)));
                filling
            }))
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

impl fmt::Display for ParquetTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Parquet files", self.files.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Storage;
    use super::super::faults::FaultyStore;
    use super::super::parquet::write_parquet;
    use super::*;
    use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
    use datafusion::prelude::{SessionConfig, SessionContext};

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("n", DataType::Int64, true),
            Field::new("text", DataType::Utf8, true),
        ]))
    }

    /// Files with 700,000 rows (two row groups), 3 rows, and 1,000 rows without the column `text`.
    async fn files(storage: &Storage) -> Vec<ScanFile> {
        let mut files = Vec::new();
        for (name, from, to) in [("big", 0, 700_000), ("tiny", 700_000, 700_003), ("old", 700_003, 701_003)] {
            let numbers: Arc<dyn Array> = Arc::new(Int64Array::from_iter_values(from..to));
            let texts: Arc<dyn Array> =
                Arc::new(StringArray::from_iter_values((from..to).map(|n| format!("text {n}"))));
            let (schema, columns) = match name {
                "old" => (Arc::new(schema().project(&[0]).unwrap()), vec![numbers]),
                _ => (schema(), vec![numbers, texts]),
            };
            let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
            let path = Path::from(format!("dir/{name}.parquet"));
            let written = write_parquet(storage, &path, &schema, &[batch]).await.unwrap();
            files.push(ScanFile { path, bytes: written.bytes, rows: written.rows, blocks: Some(written.blocks) });
        }
        files
    }

    /// A session that splits even small files, with the table `t`.
    async fn context(storage: &Storage) -> SessionContext {
        let mut config = SessionConfig::new().with_target_partitions(4);
        config.options_mut().optimizer.repartition_file_min_size = 1;
        let context = SessionContext::new_with_config(config);
        context.register_object_store(storage.url(), storage.store());
        let table = ParquetTable::new(schema(), files(storage).await).with_origin();
        context.register_table("t", Arc::new(table)).unwrap();
        context
    }

    async fn answer(context: &SessionContext, sql: &str) -> String {
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        let mut rows = Vec::new();
        for batch in batches {
            for row in 0..batch.num_rows() {
                let cells = batch
                    .columns()
                    .iter()
                    .map(|column| arrow::util::display::array_value_to_string(column, row).unwrap());
                rows.push(cells.collect::<Vec<_>>().join("|"));
            }
        }
        rows.join("\n")
    }

    #[tokio::test]
    async fn all_rows_are_there_and_missing_columns_are_null() {
        let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
        let context = context(&storage).await;
        let counted = answer(&context, "SELECT count(*), sum(n), count(text) FROM t").await;
        assert_eq!(counted, format!("701003|{}|700003", (0..701_003i64).sum::<i64>()));
        assert_eq!(answer(&context, "SELECT count(*) FROM t").await, "701003");
        assert_eq!(answer(&context, "SELECT n FROM t WHERE text IS NULL ORDER BY n LIMIT 1").await, "700003");
        assert_eq!(answer(&context, "SELECT count(*) FROM (SELECT n FROM t LIMIT 7)").await, "7");
    }

    #[tokio::test]
    async fn pruning_loses_no_row_and_keeps_row_numbers() {
        let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
        let context = context(&storage).await;
        for n in [0, 524_287, 524_288, 699_999] {
            let sql = format!("SELECT _file, _row, n, text FROM t WHERE n = {n}");
            assert_eq!(answer(&context, &sql).await, format!("dir/big.parquet|{n}|{n}|text {n}"));
        }
        for sql in [
            "SELECT _file, _row, n FROM t WHERE _row = 2 AND n > 100 ORDER BY n",
            "SELECT _file, _row, n FROM t WHERE _row = 2 AND _file <> 'dir/big.parquet' ORDER BY n",
        ] {
            assert_eq!(answer(&context, sql).await, "dir/tiny.parquet|2|700002\ndir/old.parquet|2|700005");
        }
        // Every row can be found again by where it came from.
        let wrong = "SELECT count(*) FROM t WHERE _row <> n - CASE _file WHEN 'dir/big.parquet' THEN 0 \
                     WHEN 'dir/tiny.parquet' THEN 700000 ELSE 700003 END";
        assert_eq!(answer(&context, wrong).await, "0");
        assert_eq!(answer(&context, "SELECT count(DISTINCT _file), max(_row) FROM t").await, "3|699999");
        let explained = answer(&context, "EXPLAIN ANALYZE SELECT n FROM t WHERE n = 600000").await;
        assert!(explained.contains("row_groups_pruned_statistics="), "{explained}");
        assert!(explained.contains("file_groups={4 groups"), "{explained}");
    }

    #[tokio::test]
    async fn filters_that_the_session_pushes_down_are_right_too() {
        let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
        let context = context(&storage).await;
        answer(&context, "SET datafusion.execution.parquet.pushdown_filters = true").await;
        let sql = "SELECT _file, _row, n FROM t WHERE n % 350000 = 3 AND _row >= 0 ORDER BY n";
        assert_eq!(
            answer(&context, sql).await,
            "dir/big.parquet|3|3\ndir/big.parquet|350003|350003\ndir/old.parquet|0|700003"
        );
    }

    #[tokio::test]
    async fn footers_are_read_once_and_planning_reads_nothing() {
        let faulty = FaultyStore::in_memory();
        let storage = faulty.storage();
        let context = context(&storage).await;
        let begun = faulty.reads();
        answer(&context, "EXPLAIN SELECT n FROM t WHERE n = 5").await;
        answer(&context, "SELECT count(*) FROM t").await;
        assert_eq!(faulty.reads(), begun, "sizes and row counts are known");
        let sql = "SELECT count(*) FROM t WHERE n < 0";
        answer(&context, sql).await;
        let first = faulty.reads() - begun;
        assert!(first >= 3, "each of the three footers is read: {first}");
        answer(&context, sql).await;
        assert_eq!(faulty.reads() - begun, first, "statistics in cached footers rule out every row");
    }

    #[tokio::test]
    async fn an_empty_list_is_an_empty_table() {
        let context = SessionContext::new();
        let table = ParquetTable::new(schema(), Vec::new()).with_origin();
        context.register_table("t", Arc::new(table)).unwrap();
        assert_eq!(answer(&context, "SELECT count(*), max(_file) FROM t").await, "0|");
    }
}
