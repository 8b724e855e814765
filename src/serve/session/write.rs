//! INSERT, UPDATE, DELETE and TRUNCATE of reference tables, as far as the engine does not know them itself.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::ParamValues;
use datafusion::sql::sqlparser::ast::{
    self, Assignment, AssignmentTarget, ConflictTarget, Expr, FromTable, ObjectName, OnConflictAction, OnInsert,
    TableFactor, TableObject, TableWithJoins,
};

use super::Session;
use super::run::{self, Encode, Planned, ROWS_PER_PIECE, Rows};
use super::settings::AS_OF;
use super::statement::Query;
use crate::catalog::ddl::normalize;
use crate::catalog::{RESERVED_SCHEMAS, qualified};
use crate::serve::ChangedRows;
use crate::serve::error::{QueryError, SqlState};
use crate::tables::WriteError;
use crate::tables::change::{Change, OnConflict};

/// A statement that changes a reference table.
#[derive(Debug, Clone)]
pub struct Write {
    /// What the planner sees: without ON CONFLICT, which it does not know. Its tag is the statement's.
    pub query: Query,
    pub kind: WriteKind,
    /// None where the session's own schema is meant.
    schema: Option<String>,
    table: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteKind {
    Insert(OnConflict),
    Update,
    Delete,
    Truncate,
}

impl Write {
    /// Reads a parsed statement of one of the four kinds; `query` makes what the planner sees of it and of its tag.
    pub(super) fn read(
        mut statement: ast::Statement,
        query: impl FnOnce(Arc<ast::Statement>, &'static str) -> Query,
    ) -> Result<Self, QueryError> {
        use ast::Statement as S;
        let (name, kind, tag) = match &mut statement {
            S::Insert(insert) => {
                insert_of(insert).map(|(name, conflict)| (name, WriteKind::Insert(conflict), "INSERT"))
            }
            S::Update(update) => {
                if update.assignments.iter().any(|set| target(set).is_some_and(|column| column.starts_with('_'))) {
                    return Err(QueryError::new(SqlState::UNDEFINED_COLUMN, "no column of a table begins with _"));
                }
                if update.limit.is_some() || !update.order_by.is_empty() {
                    return Err(unsupported("UPDATE with ORDER BY or LIMIT"));
                }
                plain(&update.table).map(|name| (name, WriteKind::Update, "UPDATE"))
            }
            S::Delete(delete) => {
                if delete.limit.is_some() {
                    return Err(unsupported("DELETE with LIMIT"));
                }
                match &delete.from {
                    FromTable::WithFromKeyword(tables) | FromTable::WithoutKeyword(tables) => {
                        match tables.as_slice() {
                            [table] => plain(table).map(|name| (name, WriteKind::Delete, "DELETE")),
                            _ => Err(unsupported("DELETE from several tables")),
                        }
                    }
                }
            }
            S::Truncate(truncate) => match truncate.table_names.as_slice() {
                [table] => Ok((table.name.clone(), WriteKind::Truncate, "TRUNCATE TABLE")),
                _ => Err(unsupported("TRUNCATE of several tables")),
            },
            _ => Err(QueryError::internal("not a statement that changes a table")),
        }?;
        let (schema, table) = match name.0.iter().filter_map(|part| part.as_ident()).collect::<Vec<_>>().as_slice()
        {
            [table] => (None, normalize(table)),
            [schema, table] | [_, schema, table] => (Some(normalize(schema)), normalize(table)),
            _ => return Err(QueryError::new(SqlState::SYNTAX, format!("{name} is not a table's name"))),
        };
        Ok(Self { query: query(Arc::new(statement), tag), kind, schema, table })
    }

    /// The table that is meant when the session looks up names in `default_schema`.
    pub fn table(&self, default_schema: &str) -> Result<String, QueryError> {
        let schema = self.schema.as_deref().unwrap_or(default_schema);
        match RESERVED_SCHEMAS.contains(&schema) {
            true => Err(QueryError::refused(&format!("{} of {schema}.{}", self.query.tag, self.table))),
            false => Ok(qualified(schema, &self.table)),
        }
    }

    pub fn rows(&self) -> ChangedRows {
        match self.kind {
            WriteKind::Insert(_) => ChangedRows::New,
            WriteKind::Update | WriteKind::Delete | WriteKind::Truncate => ChangedRows::Present,
        }
    }
}

/// The table, and what becomes of conflicts, which are taken out of the statement.
fn insert_of(insert: &mut ast::Insert) -> Result<(ObjectName, OnConflict), QueryError> {
    if insert.returning.is_some() {
        return Err(unsupported("RETURNING"));
    }
    if insert.overwrite || insert.replace_into || insert.or.is_some() {
        return Err(unsupported("INSERT that replaces rows").hint("INSERT ... ON CONFLICT (key) DO UPDATE SET ..."));
    }
    if insert.source.is_none() {
        return Err(unsupported("INSERT without VALUES or SELECT"));
    }
    let TableObject::TableName(name) = &insert.table else {
        return Err(unsupported("INSERT into something else than a table"));
    };
    let name = name.clone();
    let conflict = match insert.on.take() {
        None => OnConflict::Fail,
        Some(OnInsert::OnConflict(conflict)) => on_conflict(conflict)?,
        Some(_) => return Err(unsupported("ON DUPLICATE KEY UPDATE").hint("ON CONFLICT (key) DO UPDATE SET ...")),
    };
    Ok((name, conflict))
}

fn on_conflict(conflict: ast::OnConflict) -> Result<OnConflict, QueryError> {
    let key = match conflict.conflict_target {
        None => None,
        Some(ConflictTarget::Columns(columns)) => Some(columns.iter().map(normalize).collect::<Vec<_>>()),
        Some(ConflictTarget::OnConstraint(_)) => {
            return Err(unsupported("ON CONFLICT ON CONSTRAINT").hint("name the columns of the key"));
        }
    };
    match (conflict.action, key) {
        (OnConflictAction::DoNothing, key) => Ok(OnConflict::Skip(key)),
        (OnConflictAction::DoUpdate(_), None) => Err(QueryError::new(
            SqlState::SYNTAX,
            "ON CONFLICT DO UPDATE requires the columns of the key: ON CONFLICT (key) DO UPDATE SET ...",
        )),
        (OnConflictAction::DoUpdate(update), Some(key)) => {
            let columns = update.assignments.iter().map(taken_over).collect::<Option<Vec<_>>>();
            match columns.filter(|_| update.selection.is_none()) {
                Some(columns) => Ok(OnConflict::Update { key, columns }),
                None => Err(unsupported("ON CONFLICT DO UPDATE with anything but SET column = EXCLUDED.column")),
            }
        }
    }
}

/// The column of `column = EXCLUDED.column`.
fn taken_over(set: &Assignment) -> Option<String> {
    let column = target(set)?;
    match &set.value {
        Expr::CompoundIdentifier(parts) => match parts.as_slice() {
            [excluded, value] if normalize(excluded) == "excluded" && normalize(value) == column => Some(column),
            _ => None,
        },
        _ => None,
    }
}

fn target(set: &Assignment) -> Option<String> {
    match &set.target {
        AssignmentTarget::ColumnName(name) => name.0.last().and_then(|part| part.as_ident()).map(normalize),
        AssignmentTarget::Tuple(_) => None,
    }
}

fn plain(table: &TableWithJoins) -> Result<ObjectName, QueryError> {
    match &table.relation {
        TableFactor::Table { name, .. } if table.joins.is_empty() => Ok(name.clone()),
        _ => Err(unsupported("changing rows of a join")),
    }
}

fn unsupported(what: &str) -> QueryError {
    QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, format!("{what} is not supported"))
}

impl Session {
    /// Changes a reference table; returns how many rows were touched.
    pub(super) async fn write(
        &mut self,
        write: &Write,
        parameters: Option<ParamValues>,
    ) -> Result<u64, QueryError> {
        let tag = write.query.tag;
        let table = write.table(&self.settings.default_schema())?;
        self.refuse_write(tag)?;
        self.permit_write(write, &table)?;
        // That there is no such table is told before anybody waits.
        drop(self.service.database.pin_to_change(&table, write.rows())?);
        let place = Arc::clone(&self.place);
        let _turn = place.turn().await?;
        let changes = self.begin_changes().await?;
        let rows = match write.kind {
            WriteKind::Truncate => Vec::new(),
            _ => {
                let pinned = changes.pinned_for(&table, write.rows())?;
                let planned = self.plan_over(pinned, &write.query, parameters).await?;
                collected(self.start(planned), &table, changes.bytes_max()).await?
            }
        };
        let change = match &write.kind {
            WriteKind::Insert(conflict) => Change::Insert { rows, conflict: conflict.clone() },
            WriteKind::Update => Change::Update(rows),
            WriteKind::Delete => Change::Delete(rows),
            WriteKind::Truncate => Change::Truncate,
        };
        self.apply(changes, &table, change, tag).await
    }

    pub(super) fn start(&self, planned: Planned) -> Rows<RecordBatch> {
        let service = &self.service;
        let all: Encode<RecordBatch> = Encode::new(ROWS_PER_PIECE, Ok);
        run::run(&service.queries, &service.metrics, planned, service.limits.pieces_buffered, all)
    }

    pub(super) fn refuse_write(&self, tag: &str) -> Result<(), QueryError> {
        let read_only = |why: String| Err(QueryError::new(SqlState::READ_ONLY_TRANSACTION, why));
        if self.settings.read_only() {
            return read_only(format!("cannot execute {tag} in a read-only transaction"));
        }
        if self.settings.as_of().is_some() {
            return read_only(format!("cannot execute {tag} while {AS_OF} reads an older generation"));
        }
        Ok(())
    }
}

/// All rows, unless they are more than the table may hold.
async fn collected(mut rows: Rows<RecordBatch>, table: &str, max: usize) -> Result<Vec<RecordBatch>, QueryError> {
    let (mut all, mut bytes) = (Vec::new(), 0);
    while let Some(piece) = rows.next().await {
        let piece = piece?;
        let sizes = piece.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0));
        bytes += sizes.sum::<usize>();
        if bytes > max {
            return Err(WriteError::TooLarge { table: table.to_owned(), bytes, max }.into());
        }
        all.push(piece);
    }
    Ok(all)
}
