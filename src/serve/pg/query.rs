//! The two query protocols over one session.
//!
//! | message | here |
//! |---|---|
//! | Query | each statement in turn: run, send its rows as they come, then the next |
//! | Parse | one statement, planned once for the types of its parameters and results |
//! | Bind | values checked for number and format |
//! | Execute | started at the first, continued by the next; never more rows in memory than a few pieces |
//! | Copy | what COPY FROM STDIN brings, see `copy_in` |
//! | Sync | outside a transaction it closes every portal |

use std::fmt::Debug;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow_pg::datatypes::df::deserialize_parameters;
use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::ParamValues;
use futures::{Sink, SinkExt, StreamExt, TryFutureExt, stream};
use pgwire::api::portal::{Format, Portal, PortalExecutionState};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler, send_ready_for_query};
use pgwire::api::results::{
    DescribePortalResponse, DescribeResponse, DescribeStatementResponse, FieldInfo, QueryResponse, Response,
};
use pgwire::api::stmt::{QueryParser, StoredStatement};
use pgwire::api::store::{Entry, PortalStore};
use pgwire::api::{ClientInfo, ClientPortalStore, DEFAULT_NAME, PgWireConnectionState, Type};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::data::{DataRow, NoData, ParameterDescription, RowDescription};
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Describe, Execute, Parse, ParseComplete, PortalSuspended,
    Sync as SyncMessage, TARGET_TYPE_BYTE_PORTAL, TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::{EmptyQueryResponse, ReadyForQuery, TransactionStatus};
use pgwire::messages::simplequery::Query;

use super::checks::{
    bind_violation, check_bind, check_prepared, check_status, complete, forget, report, undescribable, unknown,
};
use super::copy_in::{Begun, Copying};
use super::described::Described;
use super::encode::{RowEncoder, describe, parameter_type};
use super::presence::Presence;
use super::startup::Connection;
use super::wire;
use crate::serve::error::{QueryError, SqlState};
use crate::serve::session::statement::Statement;
use crate::serve::session::{Encode, Outcome, QueryService, ROWS_PER_PIECE, Rows, Stop};

/// Speaks both protocols for one connection.
#[derive(Debug)]
pub(super) struct Queries {
    write_timeout: Duration,
    presence: Arc<Presence>,
    /// The COPY FROM STDIN that is under way.
    pub(super) copying: tokio::sync::Mutex<Option<Copying>>,
}

/// What a statement's execution answers, before any row was sent.
enum Started {
    Rows {
        infos: Arc<Vec<FieldInfo>>,
        rows: RowStream,
        tag: &'static str,
    },
    /// All rows, which were at hand.
    Table {
        infos: Arc<Vec<FieldInfo>>,
        rows: Vec<DataRow>,
        tag: &'static str,
    },
    Done {
        tag: &'static str,
        rows: Option<usize>,
        status: Option<TransactionStatus>,
    },
}

type RowStream = std::pin::Pin<Box<dyn stream::Stream<Item = PgWireResult<DataRow>> + Send>>;

impl Queries {
    pub(super) fn new(service: &QueryService, presence: Arc<Presence>) -> Self {
        Self { write_timeout: service.limits().write_timeout, presence, copying: tokio::sync::Mutex::default() }
    }

    /// Inside a transaction a client holds a snapshot, so it may not be silent for ever.
    pub(super) async fn await_next<C: ClientInfo>(&self, client: &C, connection: &Connection) {
        let patience = match client.transaction_status() {
            TransactionStatus::Idle => None,
            _ => connection.session.lock().await.settings().idle_in_transaction_timeout(),
        };
        self.presence.expect_until(patience);
    }

    async fn start<C>(
        &self,
        client: &mut C,
        connection: &Connection,
        statement: &Statement,
        bound: Bound<'_>,
        stop: &mut Stop,
    ) -> PgWireResult<Started>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let mut session = connection.session.lock().await;
        check_status(client.transaction_status(), statement)?;
        let failed = client.transaction_status() == TransactionStatus::Error;
        // As PostgreSQL: a failed transaction cannot be committed.
        let statement = match statement {
            Statement::Commit if failed => &Statement::Rollback,
            statement => statement,
        };
        let format = bound.format;
        let mut infos = Arc::new(Vec::new());
        let described = &mut infos;
        let encoder = |schema: &SchemaRef| -> Result<Encode<Vec<DataRow>>, QueryError> {
            let encoder = RowEncoder::new(schema, format).map_err(undescribable)?;
            *described = Arc::clone(encoder.infos());
            Ok(Encode::new(ROWS_PER_PIECE, move |batch| encoder.encode(&batch)))
        };
        let prepared = bound.described.map(|described| described.prepared.as_ref());
        let work = session.execute(statement, bound.parameters, prepared, encoder);
        let outcome = stop.race(work).await.and_then(|done| done);
        if outcome.is_err() && matches!(statement, Statement::Commit) {
            // What could not be committed is rolled back.
            client.set_transaction_status(TransactionStatus::Idle);
        }
        let outcome = outcome.map_err(wire)?;
        Ok(match outcome {
            Outcome::Rows { rows, tag, .. } => Started::Rows { infos, rows: row_stream(rows), tag },
            Outcome::Table { batch, tag } => {
                let promised = prepared.and_then(|prepared| prepared.schema.as_ref());
                let encoder = match bound.described {
                    Some(described) if promised == Some(&batch.schema()) => described.encoder(format)?,
                    _ => None,
                };
                let encoder = encoder.map_or_else(|| RowEncoder::new(&batch.schema(), format).map(Arc::new), Ok)?;
                let rows = encoder.encode(&batch).map_err(wire)?;
                Started::Table { infos: Arc::clone(encoder.infos()), rows, tag }
            }
            Outcome::Done(tag) => {
                let rolled_back = failed && tag == "ROLLBACK";
                Started::Done { tag, rows: None, status: rolled_back.then_some(TransactionStatus::Transaction) }
            }
            Outcome::Changed { rows, tag } => {
                Started::Done { tag, rows: Some(usize::try_from(rows).unwrap_or(usize::MAX)), status: None }
            }
            Outcome::Began => {
                Started::Done { tag: "BEGIN", rows: None, status: Some(TransactionStatus::Transaction) }
            }
            Outcome::Ended(tag) => Started::Done { tag, rows: None, status: Some(TransactionStatus::Idle) },
            Outcome::Forget { name, tag } => {
                forget(client, connection, name.as_deref())?;
                Started::Done { tag, rows: None, status: None }
            }
            Outcome::Set(tag) => {
                report(client, &session, statement).await?;
                Started::Done { tag, rows: None, status: None }
            }
        })
    }

    /// Sends up to `limit` rows (all when zero). True when the result has ended.
    async fn pump<C>(
        &self,
        client: &mut C,
        rows: &mut RowStream,
        limit: usize,
        stop: &mut Stop,
    ) -> PgWireResult<(usize, bool)>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let mut sent = 0;
        while limit == 0 || sent < limit {
            match stop.race(rows.next()).await.map_err(wire)? {
                Some(row) => {
                    self.feed(client, PgWireBackendMessage::DataRow(row?)).await?;
                    sent += 1;
                }
                None => return Ok((sent, true)),
            }
        }
        Ok((sent, false))
    }

    /// All rows of a result that was at hand, and its end.
    async fn hand_over<C>(&self, client: &mut C, rows: Vec<DataRow>, tag: &'static str) -> PgWireResult<()>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let sent = rows.len();
        for row in rows {
            self.feed(client, PgWireBackendMessage::DataRow(row)).await?;
        }
        self.feed(client, complete(tag, Some(sent))).await
    }

    /// Hands a message to the socket's buffer; a client that does not read for too long is dropped.
    pub(super) async fn feed<C>(&self, client: &mut C, message: PgWireBackendMessage) -> PgWireResult<()>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let mut feeding = client.feed(message).map_err(PgWireError::from);
        // There is room nearly always, and then no need of a timer.
        if let Poll::Ready(fed) = futures::poll!(&mut feeding) {
            return fed;
        }
        let fed = tokio::time::timeout(self.write_timeout, feeding).await;
        match fed {
            Ok(fed) => fed,
            Err(_) => {
                // Even the error could not be sent; the conversation ends from outside.
                self.presence.gone();
                std::future::pending().await
            }
        }
    }
}

/// What an execution is bound to.
struct Bound<'a> {
    parameters: Option<ParamValues>,
    described: Option<&'a Described>,
    format: &'a Format,
}

#[async_trait]
impl SimpleQueryHandler for Queries {
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let connection = connection(client)?;
        client.set_state(PgWireConnectionState::QueryInProgress);
        self.presence.expect_until(None);
        let statements = connection.session.lock().await.parse(&query.query).await.map_err(wire)?;
        if statements.is_empty() {
            self.feed(client, PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
        }
        for (index, statement) in statements.iter().enumerate() {
            if let Statement::CopyIn(copy) = statement {
                if index + 1 < statements.len() {
                    let message = "COPY FROM STDIN must be the last statement of its message";
                    return Err(wire(QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, message)));
                }
                return self.copy_in(client, &connection, (statement, copy), Begun::Simple).await;
            }
            let mut stop = connection.session.lock().await.stop(statement);
            if let Statement::Copy(copy) = statement {
                self.copy_out(client, &connection, statement, copy, None, &mut stop).await?;
                continue;
            }
            let bound = Bound { parameters: None, described: None, format: &Format::UnifiedText };
            match self.start(client, &connection, statement, bound, &mut stop).await? {
                Started::Rows { infos, mut rows, tag } => {
                    self.feed(client, row_description(&infos)).await?;
                    let (sent, _) = self.pump(client, &mut rows, 0, &mut stop).await?;
                    self.feed(client, complete(tag, Some(sent))).await?;
                }
                Started::Table { infos, rows, tag } => {
                    self.feed(client, row_description(&infos)).await?;
                    self.hand_over(client, rows, tag).await?;
                }
                Started::Done { tag, rows, status } => {
                    self.feed(client, complete(tag, rows)).await?;
                    if let Some(status) = status {
                        client.set_transaction_status(status);
                    }
                }
            }
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        let status = client.transaction_status();
        self.await_next(client, &connection).await;
        send_ready_for_query(client, status).await
    }

    async fn do_query<C>(&self, _: &mut C, _: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(wire(QueryError::internal("simple queries are answered statement by statement")))
    }
}

#[async_trait]
impl ExtendedQueryHandler for Queries {
    type Statement = Arc<Described>;
    type QueryParser = Preparing;

    fn query_parser(&self) -> Arc<Self::QueryParser> {
        Arc::new(Preparing)
    }

    async fn on_parse<C>(&self, client: &mut C, message: Parse) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        let connection = connection(client)?;
        check_prepared(&connection, &name)?;
        self.presence.expect_until(None);
        match StoredStatement::parse(client, &message, self.query_parser()).await? {
            Some(statement) => client.portal_store().put_statement(Arc::new(statement)),
            None => client.portal_store().put_empty_statement(&name),
        }
        connection.prepared.lock().insert(name);
        self.feed(client, PgWireBackendMessage::ParseComplete(ParseComplete::new())).await
    }

    async fn on_bind<C>(&self, client: &mut C, message: Bind) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.statement_name.as_deref().unwrap_or(DEFAULT_NAME);
        match client.portal_store().get_statement(name) {
            Some(Entry::Value(stored)) => {
                check_bind(&message, &stored)?;
                let portal = Portal::try_new(&message, stored)?;
                client.portal_store().put_portal(Arc::new(portal));
            }
            Some(Entry::Empty) if message.parameters.is_empty() => {
                client.portal_store().put_empty_portal(message.portal_name.as_deref().unwrap_or(DEFAULT_NAME));
            }
            Some(Entry::Empty) => return Err(bind_violation("an empty statement takes no parameters")),
            None => return Err(unknown("prepared statement", name)),
        }
        self.feed(client, PgWireBackendMessage::BindComplete(BindComplete::new())).await
    }

    async fn on_execute<C>(&self, client: &mut C, message: Execute) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let connection = connection(client)?;
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let portal = match client.portal_store().get_portal(name) {
            Some(Entry::Value(portal)) => portal,
            Some(Entry::Empty) => {
                let empty = PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new());
                return self.feed(client, empty).await;
            }
            None => return Err(unknown("portal", name)),
        };
        client.set_state(PgWireConnectionState::QueryInProgress);
        self.presence.expect_until(None);
        let described = &portal.statement.statement;
        let prepared = &described.prepared;
        let mut stop = connection.session.lock().await.stop(&prepared.statement);
        let state = portal.state();
        let mut state = state.lock().await;
        let limit = usize::try_from(message.max_rows).unwrap_or(0);
        if matches!(*state, PortalExecutionState::Initial) {
            let types: Vec<Option<&DataType>> = prepared.parameters.iter().map(Option::as_ref).collect();
            let parameters = match portal.parameter_len() {
                0 => None,
                _ => Some(deserialize_parameters(&portal, &types)?),
            };
            if let Statement::CopyIn(copy) = &prepared.statement {
                *state = PortalExecutionState::Finished;
                return self.copy_in(client, &connection, (&prepared.statement, copy), Begun::Extended).await;
            }
            if let Statement::Copy(copy) = &prepared.statement {
                *state = PortalExecutionState::Finished;
                self.copy_out(client, &connection, &prepared.statement, copy, parameters, &mut stop).await?;
                client.set_state(PgWireConnectionState::ReadyForQuery);
                return Ok(());
            }
            let bound = Bound { parameters, described: Some(described), format: &portal.result_column_format };
            match self.start(client, &connection, &prepared.statement, bound, &mut stop).await? {
                Started::Rows { infos, rows, tag } => {
                    let mut response = QueryResponse::new(infos, rows);
                    response.set_command_tag(tag);
                    *state = PortalExecutionState::Suspended(response);
                }
                Started::Table { rows, tag, .. } if limit == 0 || rows.len() < limit => {
                    *state = PortalExecutionState::Finished;
                    self.hand_over(client, rows, tag).await?;
                    client.set_state(PgWireConnectionState::ReadyForQuery);
                    return Ok(());
                }
                Started::Table { infos, rows, tag } => {
                    let mut response = QueryResponse::new(infos, stream::iter(rows.into_iter().map(Ok)));
                    response.set_command_tag(tag);
                    *state = PortalExecutionState::Suspended(response);
                }
                Started::Done { tag, rows, status } => {
                    *state = PortalExecutionState::Finished;
                    self.feed(client, complete(tag, rows)).await?;
                    if let Some(status) = status {
                        client.set_transaction_status(status);
                    }
                    client.set_state(PgWireConnectionState::ReadyForQuery);
                    return Ok(());
                }
            }
        }
        if let PortalExecutionState::Suspended(response) = &mut *state {
            let tag = response.command_tag().to_owned();
            match self.pump(client, response.data_rows(), limit, &mut stop).await {
                Ok((sent, true)) => {
                    *state = PortalExecutionState::Finished;
                    self.feed(client, complete(&tag, Some(sent))).await?;
                }
                Ok((_, false)) => {
                    self.feed(client, PgWireBackendMessage::PortalSuspended(PortalSuspended::new())).await?;
                }
                Err(error) => {
                    // Dropping the rows stops the work.
                    *state = PortalExecutionState::Finished;
                    return Err(error);
                }
            }
        } else {
            self.feed(client, complete("SELECT", Some(0))).await?;
        }
        client.set_state(PgWireConnectionState::ReadyForQuery);
        Ok(())
    }

    async fn on_sync<C>(&self, client: &mut C, _: SyncMessage) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let status = client.transaction_status();
        if status == TransactionStatus::Idle {
            client.portal_store().clear_portals();
        }
        self.await_next(client, &*connection(client)?).await;
        client.send(PgWireBackendMessage::ReadyForQuery(ReadyForQuery::new(status))).await?;
        Ok(())
    }

    async fn on_close<C>(&self, client: &mut C, message: Close) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => {
                connection(client)?.prepared.lock().remove(name);
                client.portal_store().rm_statement(name);
            }
            TARGET_TYPE_BYTE_PORTAL => client.portal_store().rm_portal(name),
            other => return Err(PgWireError::InvalidTargetType(other)),
        }
        self.feed(client, PgWireBackendMessage::CloseComplete(CloseComplete::new())).await
    }

    /// A cursor of SQL is described like a portal. What is answered waits for Sync or Flush, as in PostgreSQL: a write to
    /// the socket costs more than a lookup.
    async fn on_describe<C>(&self, client: &mut C, message: Describe) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let name = message.name.as_deref().unwrap_or(DEFAULT_NAME);
        let fields = match message.target_type {
            TARGET_TYPE_BYTE_STATEMENT => {
                let described = match client.portal_store().get_statement(name) {
                    Some(Entry::Value(stored)) => self.do_describe_statement(client, &stored).await?,
                    Some(Entry::Empty) => DescribeStatementResponse::no_data(),
                    None => return Err(PgWireError::StatementNotFound(name.to_owned())),
                };
                let types = described.parameters().unwrap_or_default().iter().map(Type::oid).collect();
                let parameters = PgWireBackendMessage::ParameterDescription(ParameterDescription::new(types));
                self.feed(client, parameters).await?;
                Arc::new(described.fields().to_vec())
            }
            TARGET_TYPE_BYTE_PORTAL => match client.portal_store().get_portal(name) {
                Some(Entry::Value(portal)) => {
                    let encoder = portal.statement.statement.encoder(&portal.result_column_format)?;
                    encoder.map(|encoder| Arc::clone(encoder.infos())).unwrap_or_default()
                }
                Some(Entry::Empty) => Arc::default(),
                None => {
                    let schema = connection(client)?.session.lock().await.cursor_schema(name);
                    let schema = schema.ok_or_else(|| PgWireError::PortalNotFound(name.to_owned()))?;
                    Arc::new(describe(&schema, &Format::UnifiedText)?)
                }
            },
            other => return Err(PgWireError::InvalidTargetType(other)),
        };
        let answer = match fields.is_empty() {
            true => PgWireBackendMessage::NoData(NoData::new()),
            false => row_description(&fields),
        };
        self.feed(client, answer).await
    }

    async fn do_describe_statement<C>(
        &self,
        _: &mut C,
        target: &StoredStatement<Self::Statement>,
    ) -> PgWireResult<DescribeStatementResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let prepared = &target.statement.prepared;
        let parameters = prepared.parameters.iter().enumerate().map(|(index, found)| {
            let declared = target.parameter_types.get(index).cloned().flatten();
            declared.filter(|declared| *declared != Type::UNKNOWN).unwrap_or_else(|| parameter_type(found.as_ref()))
        });
        let fields = match &prepared.schema {
            Some(schema) => describe(schema, &Format::UnifiedText)?,
            None => Vec::new(),
        };
        Ok(DescribeStatementResponse::new(parameters.collect(), fields))
    }

    async fn do_describe_portal<C>(
        &self,
        _: &mut C,
        target: &Portal<Self::Statement>,
    ) -> PgWireResult<DescribePortalResponse>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match target.statement.statement.encoder(&target.result_column_format)? {
            Some(encoder) => Ok(DescribePortalResponse::new(encoder.infos().to_vec())),
            None => Ok(DescribePortalResponse::no_data()),
        }
    }

    async fn do_query<C>(&self, _: &mut C, _: &Portal<Self::Statement>, _: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(wire(QueryError::internal("portals are executed row by row")))
    }
}

/// The Parse message: one statement, planned for its types.
#[derive(Debug)]
pub(super) struct Preparing;

#[async_trait]
impl QueryParser for Preparing {
    type Statement = Arc<Described>;

    async fn parse_sql<C>(&self, client: &C, sql: &str, _: &[Option<Type>]) -> PgWireResult<Option<Self::Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let connection = connection(client)?;
        let mut session = connection.session.lock().await;
        if let Some(known) = session.known(sql) {
            check_status(client.transaction_status(), &known.statement)?;
            return Ok(Some(Arc::new(Described::new(known))));
        }
        let mut statements = session.parse(sql).await.map_err(wire)?.into_iter();
        let Some(statement) = statements.next() else { return Ok(None) };
        if statements.next().is_some() {
            return Err(wire(QueryError::new(
                SqlState::SYNTAX,
                "cannot insert multiple commands into a prepared statement",
            )));
        }
        check_status(client.transaction_status(), &statement)?;
        let mut stop = session.stop(&statement);
        let prepared = stop.race(session.prepare(statement)).await.and_then(|done| done).map_err(wire)?;
        let prepared = Arc::new(prepared);
        session.keep(sql, &prepared);
        Ok(Some(Arc::new(Described::new(prepared))))
    }

    fn get_parameter_types(&self, statement: &Self::Statement) -> PgWireResult<Vec<Type>> {
        Ok(statement.prepared.parameters.iter().map(|found| parameter_type(found.as_ref())).collect())
    }

    fn get_result_schema(
        &self,
        statement: &Self::Statement,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        match &statement.prepared.schema {
            Some(schema) => describe(schema, format.unwrap_or(&Format::UnifiedText)),
            None => Ok(Vec::new()),
        }
    }
}

fn row_description(infos: &[FieldInfo]) -> PgWireBackendMessage {
    PgWireBackendMessage::RowDescription(RowDescription::new(infos.iter().map(Into::into).collect()))
}

pub(super) fn connection<C: ClientInfo>(client: &C) -> PgWireResult<Arc<Connection>> {
    let open = client.session_extensions().get::<Connection>();
    open.ok_or_else(|| super::fatal(SqlState::PROTOCOL_VIOLATION, "a query came before the start-up message"))
}

/// Pieces of rows to single rows.
fn row_stream(rows: Rows<Vec<DataRow>>) -> RowStream {
    let pieces = stream::unfold(rows, |mut rows| async move { rows.next().await.map(|piece| (piece, rows)) });
    Box::pin(pieces.flat_map(|piece| {
        let rows: Vec<PgWireResult<DataRow>> = match piece {
            Ok(rows) => rows.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(wire(error))],
        };
        stream::iter(rows)
    }))
}
