//! What is said and checked between the messages of a conversation: completions, states, bindings, prepared statements.

use std::sync::Arc;

use futures::{Sink, SinkExt};
use pgwire::api::results::Tag;
use pgwire::api::stmt::StoredStatement;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientPortalStore, DEFAULT_NAME};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::extendedquery::Bind;
use pgwire::messages::response::{CommandComplete, TransactionStatus};
use pgwire::messages::startup::ParameterStatus;

use super::described::Described;
use super::startup::Connection;
use super::wire;
use crate::serve::error::{QueryError, SqlState};
use crate::serve::session::Session;
use crate::serve::session::statement::Statement;

/// Prepared statements of one session.
const PREPARED_MAX: usize = 10_000;

pub(super) fn complete(tag: &str, rows: Option<usize>) -> PgWireBackendMessage {
    let tag = match (tag, rows) {
        ("SELECT" | "UPDATE" | "DELETE" | "COPY" | "FETCH" | "MOVE", Some(rows)) => Tag::new(tag).with_rows(rows),
        // Where a row's identifier stood once.
        ("INSERT", Some(rows)) => Tag::new(tag).with_oid(0).with_rows(rows),
        _ => Tag::new(tag),
    };
    PgWireBackendMessage::CommandComplete(CommandComplete::from(tag))
}

/// After an error in a transaction only its end is listened to.
pub(super) fn check_status(status: TransactionStatus, statement: &Statement) -> PgWireResult<()> {
    let ends = matches!(statement, Statement::Commit | Statement::Rollback | Statement::Savepoint("ROLLBACK"));
    if status == TransactionStatus::Error && !ends {
        return Err(wire(QueryError::new(
            SqlState::IN_FAILED_TRANSACTION,
            "current transaction is aborted, commands ignored until end of transaction block",
        )));
    }
    Ok(())
}

/// As many values as parameters, as many formats as values; pgwire would index past them.
pub(super) fn check_bind(bind: &Bind, stored: &StoredStatement<Arc<Described>>) -> PgWireResult<()> {
    let prepared = &stored.statement.prepared;
    let (given, wanted) = (bind.parameters.len(), prepared.parameters.len());
    if given != wanted {
        return Err(bind_violation(&format!(
            "bind message supplies {given} parameters, but the prepared statement requires {wanted}"
        )));
    }
    let formats = bind.parameter_format_codes.len();
    if formats > 1 && formats != given {
        return Err(bind_violation(&format!(
            "bind message has {formats} parameter formats but {given} parameters"
        )));
    }
    let columns = prepared.schema.as_ref().map_or(0, |schema| schema.fields().len());
    let formats = bind.result_column_format_codes.len();
    if formats > 1 && formats != columns {
        return Err(bind_violation(&format!(
            "bind message has {formats} result formats but the query has {columns} columns"
        )));
    }
    Ok(())
}

pub(super) fn bind_violation(message: &str) -> PgWireError {
    wire(QueryError::new(SqlState::PROTOCOL_VIOLATION, message))
}

pub(super) fn unknown(what: &str, name: &str) -> PgWireError {
    let name = if name == DEFAULT_NAME { "" } else { name };
    wire(QueryError::new(SqlState::UNKNOWN_STATEMENT, format!("{what} \"{name}\" does not exist")))
}

pub(super) fn undescribable(error: PgWireError) -> QueryError {
    QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, format!("a column's type cannot be sent: {error}"))
}

/// A client cannot fill the memory with statements that it never closes.
pub(super) fn check_prepared(connection: &Connection, name: &str) -> PgWireResult<()> {
    let prepared = connection.prepared.lock();
    if prepared.len() >= PREPARED_MAX && !prepared.contains(name) {
        let message = format!("more than {PREPARED_MAX} prepared statements in one session");
        return Err(wire(QueryError::new(SqlState::PROGRAM_LIMIT, message).hint("DEALLOCATE some of them")));
    }
    Ok(())
}

/// Drops prepared statements of the extended protocol, as `DEALLOCATE` does in PostgreSQL.
pub(super) fn forget<C>(client: &C, connection: &Connection, name: Option<&str>) -> PgWireResult<()>
where
    C: ClientPortalStore,
    C::PortalStore: PortalStore,
{
    let mut prepared = connection.prepared.lock();
    match name {
        Some(name) => {
            if client.portal_store().get_statement(name).is_none() {
                return Err(unknown("prepared statement", name));
            }
            prepared.remove(name);
            client.portal_store().rm_statement(name);
        }
        None => {
            for name in std::mem::take(&mut *prepared) {
                client.portal_store().rm_statement(&name);
            }
            client.portal_store().clear_portals();
        }
    }
    Ok(())
}

/// Tells the client of changed settings that it was told before.
pub(super) async fn report<C>(client: &mut C, session: &Session, statement: &Statement) -> PgWireResult<()>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let changed = match statement {
        Statement::Set { name, .. } | Statement::Reset(Some(name)) => Some(name.as_str()),
        _ => None,
    };
    for (name, value) in session.settings().reported() {
        if changed.is_none_or(|changed| changed.eq_ignore_ascii_case(name)) {
            let status = ParameterStatus::new(name.to_owned(), value);
            client.feed(PgWireBackendMessage::ParameterStatus(status)).await?;
        }
    }
    Ok(())
}
