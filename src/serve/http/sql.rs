//! `POST /sql`: one statement, and its rows or what it did.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::answer::{Shape, certified, encode, response, streamed, whole};
use super::format::{Extent, Pieces};
use super::negotiate::{coding, format};
use super::problem::Problem;
use super::{Desk, body};
use crate::serve::error::{QueryError, SqlState};
use crate::serve::session::statement::Statement;
use crate::serve::session::{Outcome, Session};
use crate::serve::tls::sockets::Peer;

/// What may stand behind the `?`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Named {
    format: Option<String>,
}

pub(super) async fn answer(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    named: Result<Query<Named>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let Query(named) = named.map_err(|error| {
        Problem::new(error.status(), format!("what stands behind the ? is not understood: {}", error.body_text()))
    })?;
    let format = format(&headers, named.format.as_deref())?;
    let shape = Shape { format, coding: coding(&headers, format) };
    let limits = desk.service.limits();
    let (mut session, permit) = desk.connect(&headers, peer).await?;
    let order = body::read(&headers, body, limits).await?;
    let statement = one(&session, &order.sql).await?;
    refuse_lasting(&statement)?;
    let reads = matches!(statement, Statement::Query(_) | Statement::Show(_));
    if reads {
        begin(&mut session).await?;
    }
    let mut stop = session.stop(&statement);
    let prepared = stop.race(session.prepare(statement)).await??;
    let values = order.values(&prepared.parameters)?;
    let patience = limits.write_timeout;
    let work = session.execute(&prepared.statement, values, Some(&prepared), |schema| {
        encode(schema, shape, Pieces::AsTheyCome, patience)
    });
    let outcome = stop.race(work).await??;
    let certificate = match reads {
        true => desk.database().certificate(session.catalog()?.as_ref()),
        false => None,
    };
    let answered = match outcome {
        Outcome::Rows { rows, .. } => response(streamed(rows, stop, (session, permit)).await?, shape),
        Outcome::Table { batch, .. } => response(whole(&batch.schema(), &batch, Extent::Any, shape)?, shape),
        Outcome::Changed { rows, tag } => done(&json!({ "command": tag, "rows": rows })),
        Outcome::Done(tag) | Outcome::Set(tag) | Outcome::Ended(tag) | Outcome::Forget { tag, .. } => {
            done(&json!({ "command": tag }))
        }
        Outcome::Began => done(&json!({ "command": "BEGIN" })),
    };
    let mut answered = certified(answered, certificate.as_ref());
    answered.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answered)
}

/// From here on the session reads one snapshot: that which is pinned, or a later one that its query is answered from.
pub(super) async fn begin(session: &mut Session) -> Result<(), QueryError> {
    let unused = |_: &_| Err(QueryError::internal("BEGIN gives no rows"));
    session.execute::<Bytes, _>(&Statement::Begin { read_only: true }, None, None, unused).await?;
    session.ask_once();
    Ok(())
}

async fn one(session: &Session, sql: &str) -> Result<Statement, QueryError> {
    let mut statements = session.parse(sql).await?;
    match (statements.pop(), statements.is_empty()) {
        (Some(statement), true) => Ok(statement),
        (None, _) => Err(QueryError::new(SqlState::SYNTAX, "there is no statement in the text")),
        _ => Err(QueryError::new(SqlState::SYNTAX, "a request has one statement, and the text has several")),
    }
}

/// A session ends with its request: what would outlive it makes no sense here.
fn refuse_lasting(statement: &Statement) -> Result<(), QueryError> {
    let unsupported = |message: &str| QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, message);
    match statement {
        Statement::Set { .. } | Statement::Reset(_) | Statement::Discard { .. } | Statement::Deallocate(_) => {
            Err(QueryError::new(SqlState::PREREQUISITE, "there is no session in which this would last")
                .hint("a statement_timeout is set for one request, by the header viewledger-statement-timeout"))
        }
        Statement::Begin { .. } | Statement::Commit | Statement::Rollback | Statement::Savepoint(_) => {
            Err(unsupported("a request is a transaction of its own")
                .hint("to read more of one snapshot, use Postgres wire or Flight SQL"))
        }
        Statement::Copy(_) => {
            Err(unsupported("COPY is of Postgres wire").hint("send the SELECT, and accept: text/csv"))
        }
        Statement::CopyIn(_) => Err(unsupported("COPY is of Postgres wire").hint("send an INSERT")),
        Statement::Cursor(_) => Err(unsupported("a cursor is of Postgres wire")),
        _ => Ok(()),
    }
}

/// Of what has no rows.
fn done(what: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], format!("{what}\n")).into_response()
}
