//! What the statements of one transaction read and change together.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::Field;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::CatalogProvider;

use super::policy::Rights;
use super::run::Rows;
use super::settings::AS_OF;
use super::statement::Statement;
use super::{Outcome, Session};
use crate::catalog::schema_and_table;
use crate::serve::TableChanges;
use crate::serve::error::{QueryError, SqlState};
use crate::tables::change::Change;

#[derive(Debug)]
pub(super) enum Transaction {
    None,
    Open {
        /// By its first statement.
        pinned: Option<Pinned>,
        pending: Pending,
        /// It has one query, which may read a later snapshot than the first.
        alone: bool,
    },
}

/// What a transaction has changed.
#[derive(Debug)]
pub(super) enum Pending {
    None,
    Changes(Box<dyn TableChanges>),
    /// A change failed or was cancelled: it cannot be committed.
    Failed,
}

/// What all statements of a transaction read.
#[derive(Debug, Clone)]
pub(super) struct Pinned {
    /// The value of `viewledger.as_of` by which it was chosen.
    pub(super) as_of: Option<String>,
    pub(super) catalog: Arc<dyn CatalogProvider>,
}

impl Session {
    pub(super) fn end<T>(&mut self, tag: &'static str) -> Outcome<T> {
        self.transaction = Transaction::None;
        self.cursors.retain(|_, cursor| cursor.hold);
        self.settings.end_transaction();
        Outcome::Ended(tag)
    }

    pub(super) fn pin(&mut self) -> Result<Arc<dyn CatalogProvider>, QueryError> {
        let as_of = self.settings.as_of();
        if let Transaction::Open { pinned: Some(pinned), .. } = &self.transaction {
            if pinned.as_of == as_of {
                return Ok(Arc::clone(&pinned.catalog));
            }
            // PostgreSQL: active_sql_transaction.
            let message = format!("{AS_OF} cannot be changed after the first query of a transaction");
            return Err(QueryError::new(SqlState("25001"), message)
                .hint("a transaction reads one snapshot: COMMIT, then SET, then BEGIN the next"));
        }
        let database = &self.service.database;
        let catalog = as_of.as_deref().map_or_else(|| database.pin(), |at| database.pin_as_of(at))?;
        if let Transaction::Open { pinned, .. } = &mut self.transaction {
            *pinned = Some(Pinned { as_of, catalog: Arc::clone(&catalog) });
        }
        Ok(catalog)
    }

    /// Ends the transaction, and commits what it has changed.
    pub(super) async fn end_with_changes<T>(&mut self) -> Result<Outcome<T>, QueryError> {
        let ended = std::mem::replace(&mut self.transaction, Transaction::None);
        let outcome = self.end("COMMIT");
        match ended {
            Transaction::Open { pending: Pending::Changes(changes), .. } => self.commit(changes).await?,
            Transaction::Open { pending: Pending::Failed, .. } => return Err(QueryError::in_failed_transaction()),
            _ => {}
        }
        Ok(outcome)
    }

    /// The changes of this transaction so far, or of a statement that is one by itself. Until they are applied, the
    /// transaction cannot be committed.
    pub(super) async fn begin_changes(&mut self) -> Result<Box<dyn TableChanges>, QueryError> {
        if !self.in_transaction() {
            return Ok(self.service.database.change_tables(None).await?);
        }
        let pinned = self.pin()?;
        let Transaction::Open { pending, .. } = &mut self.transaction else {
            return Err(QueryError::internal("no transaction"));
        };
        match std::mem::replace(pending, Pending::Failed) {
            Pending::Failed => Err(QueryError::in_failed_transaction()),
            Pending::Changes(changes) => Ok(changes),
            Pending::None => Ok(self.service.database.change_tables(Some(pinned)).await?),
        }
    }

    /// Adds a change, and commits it where no transaction is open.
    pub(super) async fn apply(
        &mut self,
        mut changes: Box<dyn TableChanges>,
        table: &str,
        change: Change,
        tag: &'static str,
    ) -> Result<u64, QueryError> {
        let touched = changes.apply(table, change, tag).await?;
        match &mut self.transaction {
            Transaction::Open { pinned, pending, .. } => {
                if let Some(pinned) = pinned {
                    pinned.catalog = changes.pinned();
                }
                *pending = Pending::Changes(changes);
            }
            Transaction::None => self.commit(changes).await?,
        }
        tracing::info!(
            table,
            statement = tag,
            rows = touched,
            user = self.identity.user,
            "reference table changed"
        );
        Ok(touched)
    }

    /// Commits changes that leave every enforced view without rows.
    async fn commit(&self, changes: Box<dyn TableChanges>) -> Result<(), QueryError> {
        let mut broken: Vec<(String, String)> = Vec::new();
        for view in changes.enforced()? {
            let (schema, table) = schema_and_table(&view);
            let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
            let sql = format!("SELECT * FROM {}.{} LIMIT 1", quoted(schema), quoted(table));
            let Some(Statement::Query(query)) = self.service.parser.parse(&sql)?.pop() else {
                return Err(QueryError::internal("not a query"));
            };
            let planned = self.plan_as(Rights::all(), changes.pinned(), &query, None).await?;
            if let Some(row) = first_row(self.start(planned)).await? {
                broken.push((view, row));
            }
        }
        let Some((view, row)) = broken.first() else {
            return Ok(changes.commit(&self.identity.user).await?);
        };
        let (schema, table) = schema_and_table(view);
        let about = self.service.database.comment(schema, table).unwrap_or_default();
        let others: Vec<&str> = broken.iter().skip(1).map(|(view, _)| view.as_str()).collect();
        let others = if others.is_empty() { String::new() } else { format!("; so has {}", others.join(", ")) };
        let message = format!("{view} must have no rows, and would have {row}{others}: nothing was changed");
        Err(QueryError::new(SqlState::CHECK_VIOLATION, message).hint(about))
    }
}

/// The first row of a result, as text.
async fn first_row(mut rows: Rows<RecordBatch>) -> Result<Option<String>, QueryError> {
    while let Some(piece) = rows.next().await {
        let piece = piece?;
        if piece.num_rows() > 0 {
            let options = FormatOptions::default().with_null("null");
            let shown = |error: ArrowError| QueryError::internal(error.to_string());
            let value = |(field, column): (&Arc<Field>, &ArrayRef)| {
                let text = ArrayFormatter::try_new(column.as_ref(), &options).map_err(shown)?;
                Ok(format!("{} = {}", field.name(), text.value(0)))
            };
            let schema = piece.schema();
            let values = schema.fields().iter().zip(piece.columns()).map(value);
            return Ok(Some(format!("({})", values.collect::<Result<Vec<_>, QueryError>>()?.join(", "))));
        }
    }
    Ok(None)
}
