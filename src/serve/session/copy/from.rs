//! `COPY ... FROM STDIN`: rows that a client sends, into a reference table, all of them or none.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{FieldRef, SchemaRef};
use datafusion::sql::sqlparser::ast::{self, CopySource, CopyTarget};
use datafusion::sql::sqlparser::parser::Parser;

use super::binary::Tuples;
use super::columns::{Columns, Input};
use super::lines::Lines;
use super::{CopyFormat, Forced, Given};
use crate::catalog::ddl::normalize;
use crate::catalog::schema_and_table;
use crate::serve::ChangedRows;
use crate::serve::access_log::Weight;
use crate::serve::access_log::entry::Entry;
use crate::serve::error::{QueryError, SqlState};
use crate::serve::session::Session;
use crate::serve::session::run::{ROWS_PER_PIECE, Work};
use crate::serve::session::statement::{Query, Statement};
use crate::serve::session::write::Write;
use crate::tables::WriteError;
use crate::tables::change::{Change, OnConflict};

const TAG: &str = "COPY FROM";
/// Bytes that are read as one, so that small messages do not each change threads.
const BYTES_PER_PIECE: usize = 64 << 10;

/// Where rows go, and how they are written.
#[derive(Debug, Clone)]
pub struct CopyIn {
    /// The INSERT that it amounts to; its rows come later.
    pub write: Write,
    /// As they come; all of the table where none are named.
    columns: Vec<String>,
    format: CopyFormat,
}

/// A load that has begun.
#[derive(Debug)]
pub struct Loading {
    reader: Box<Reader>,
    pending: Vec<u8>,
    entry: Entry,
    columns: usize,
    is_binary: bool,
}

#[derive(Debug)]
struct Reader {
    source: Source,
    columns: Columns,
    rows: Vec<RecordBatch>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
enum Source {
    Lines(Lines),
    Tuples(Tuples),
}

impl CopyIn {
    /// Reads a statement that the parser found to be COPY FROM; `query` wraps what it amounts to.
    pub(in crate::serve::session) fn read(
        statement: ast::Statement,
        query: impl FnOnce(ast::Statement) -> Query,
    ) -> Result<Self, QueryError> {
        let ast::Statement::Copy { source, target, options, legacy_options, .. } = statement else {
            return Err(QueryError::internal("not a COPY"));
        };
        if target != CopyTarget::Stdin {
            return Err(QueryError::refused("COPY from anything but STDIN"));
        }
        let CopySource::Table { table_name, columns } = source else {
            return Err(QueryError::new(SqlState::SYNTAX, "COPY FROM takes a table"));
        };
        let format = Given::of(options, legacy_options)?.format()?;
        if matches!(&format, CopyFormat::Csv { force, .. } if *force != Forced::Columns(Vec::new())) {
            return Err(QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, "COPY force quote is of COPY TO"));
        }
        let text = format!("INSERT INTO {table_name} VALUES (NULL)");
        let insert = Parser::new(&crate::serve::session::dialect::Postgres)
            .try_with_sql(&text)
            .and_then(|mut parser| parser.parse_statement())
            .map_err(|error| QueryError::new(SqlState::SYNTAX, format!("COPY {table_name}: {error}")))?;
        let write = Write::read(insert, |ast, _| Query { tag: TAG, ..query(ast.as_ref().clone()) })?;
        Ok(Self { write, columns: columns.iter().map(normalize).collect(), format })
    }

    /// The columns that come, of a table with this schema.
    fn incoming(&self, table: &str, schema: &SchemaRef) -> Result<Vec<FieldRef>, QueryError> {
        if self.columns.is_empty() {
            return Ok(schema.fields().iter().cloned().collect());
        }
        let mut found: Vec<FieldRef> = Vec::with_capacity(self.columns.len());
        for name in &self.columns {
            let Some((_, field)) = schema.fields().find(name) else {
                return Err(WriteError::NoSuchColumn { table: table.to_owned(), column: name.clone() }.into());
            };
            if found.iter().any(|known| known.name() == name) {
                let message = format!("column \"{name}\" specified more than once");
                return Err(QueryError::new(SqlState::DUPLICATE_COLUMN, message));
            }
            found.push(Arc::clone(field));
        }
        Ok(found)
    }
}

impl Loading {
    /// How many columns each row has.
    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn is_binary(&self) -> bool {
        self.is_binary
    }

    /// The client or the server gave it up.
    pub fn give_up(self, state: SqlState) {
        self.entry.end(None, Some(state));
    }
}

impl Session {
    /// Begins a load: whoever may not do it is told before anything is sent.
    pub async fn begin_copy(&self, statement: &Statement, copy: &CopyIn) -> Result<Loading, QueryError> {
        let entry = self.entry(statement.text(), Weight::Kept);
        let begun = match entry.ready().await {
            Ok(()) => self.reader(copy).await,
            Err(error) => Err(error),
        };
        match begun {
            Ok(reader) => {
                let (columns, is_binary) = (reader.columns.len(), copy.format == CopyFormat::Binary);
                Ok(Loading { reader: Box::new(reader), pending: Vec::new(), entry, columns, is_binary })
            }
            Err(error) => {
                entry.end(None, Some(error.state));
                Err(error)
            }
        }
    }

    /// Whether a load could begin: told when it is prepared, as in PostgreSQL, for clients rely on it.
    pub(in crate::serve::session) async fn check_copy(&self, copy: &CopyIn) -> Result<(), QueryError> {
        self.reader(copy).await.map(drop)
    }

    async fn reader(&self, copy: &CopyIn) -> Result<Reader, QueryError> {
        let table = copy.write.table(&self.settings().default_schema())?;
        self.refuse_write(TAG)?;
        self.permit_write(&copy.write, &table)?;
        // Its turn comes once all rows are here: a slow client keeps nobody waiting.
        let pinned = self.service.database.pin_to_change(&table, ChangedRows::New)?;
        let bytes_max = self.service.database.change_tables(Some(Arc::clone(&pinned))).await?.bytes_max();
        let unknown = || WriteError::Unknown(table.clone());
        let (schema, name) = schema_and_table(&table);
        let provider = pinned.schema(schema).ok_or_else(unknown)?.table(name).await?.ok_or_else(unknown)?;
        let schema = provider.schema();
        let columns = Columns::new(&table, &schema, copy.incoming(&table, &schema)?)?;
        let source = match &copy.format {
            CopyFormat::Binary => Source::Tuples(Tuples::new(bytes_max)),
            format => Source::Lines(Lines::new(format.clone(), bytes_max)),
        };
        Ok(Reader { source, columns, rows: Vec::new(), bytes: 0, bytes_max })
    }

    /// Takes what the client sent next.
    pub async fn continue_copy(&self, mut loading: Loading, data: &[u8]) -> Result<Loading, QueryError> {
        loading.pending.extend_from_slice(data);
        if loading.pending.len() < BYTES_PER_PIECE {
            return Ok(loading);
        }
        self.read_pending(loading).await
    }

    /// The client has sent everything: changes the table. Returns how many rows were added.
    pub async fn end_copy(&mut self, copy: &CopyIn, loading: Loading) -> Result<u64, QueryError> {
        let Loading { reader, entry, .. } = self.read_pending(loading).await?;
        let done = match reader.finish() {
            Ok(rows) => self.insert_rows(&copy.write, rows).await,
            Err(error) => Err(error),
        };
        let (rows, state) = match &done {
            Ok(rows) => (Some(*rows), None),
            Err(error) => (None, Some(error.state)),
        };
        entry.end_durably(rows, state).await;
        done
    }

    async fn read_pending(&self, loading: Loading) -> Result<Loading, QueryError> {
        let Loading { mut reader, pending, entry, columns, is_binary } = loading;
        let work = async move { reader.feed(&pending).map(|()| reader) };
        let read = Work::start(&self.service.queries, work).finish().await.and_then(|read| read);
        match read {
            Ok(reader) => Ok(Loading { reader, pending: Vec::new(), entry, columns, is_binary }),
            Err(error) => {
                entry.end(None, Some(error.state));
                Err(error)
            }
        }
    }

    /// Adds rows that have the columns of the table; returns how many.
    async fn insert_rows(&mut self, write: &Write, rows: Vec<RecordBatch>) -> Result<u64, QueryError> {
        let table = write.table(&self.settings().default_schema())?;
        let place = Arc::clone(&self.place);
        let _turn = place.turn().await?;
        let changes = self.begin_changes().await?;
        self.apply(changes, &table, Change::Insert { rows, conflict: OnConflict::Fail }, TAG).await
    }
}

impl Reader {
    fn feed(&mut self, data: &[u8]) -> Result<(), QueryError> {
        match &mut self.source {
            Source::Lines(lines) => lines.append(data),
            Source::Tuples(tuples) => tuples.append(data),
        }
        self.drain(Input::Open)
    }

    fn finish(mut self) -> Result<Vec<RecordBatch>, QueryError> {
        self.drain(Input::Ended)?;
        self.take()?;
        Ok(self.rows)
    }

    /// Reads every row that is here whole.
    fn drain(&mut self, input: Input) -> Result<(), QueryError> {
        loop {
            let next = match &mut self.source {
                Source::Lines(lines) => lines.next(&self.columns, input),
                Source::Tuples(tuples) => tuples.next(&self.columns, input),
            };
            match next {
                Ok(Some(row)) => {
                    self.columns.push(row);
                    if self.columns.rows() >= ROWS_PER_PIECE {
                        self.take()?;
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    // What is wrong in an earlier line is told first.
                    self.take()?;
                    return Err(error);
                }
            }
        }
    }

    fn take(&mut self) -> Result<(), QueryError> {
        let batch = self.columns.take()?;
        let sizes = batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0));
        self.bytes += sizes.sum::<usize>();
        if self.bytes > self.bytes_max {
            let table = self.columns.table().to_owned();
            return Err(WriteError::TooLarge { table, bytes: self.bytes, max: self.bytes_max }.into());
        }
        self.rows.push(batch);
        Ok(())
    }
}
