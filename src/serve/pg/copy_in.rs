//! `COPY ... FROM STDIN` over the wire: what a client sends between our CopyInResponse and its CopyDone.
//!
//! | it was begun by | an error | the end |
//! |---|---|---|
//! | a simple query | pgwire sends it and is ready; what the client still sends is passed over | pgwire is ready |
//! | a simple query in a transaction | the same, done here, as pgwire's own end says that no transaction is open | ready, done here |
//! | Execute | pgwire sends it and waits for Sync | Sync |

use std::fmt::Debug;

use async_trait::async_trait;
use futures::{Sink, SinkExt};
use pgwire::api::copy::CopyHandler;
use pgwire::api::query::send_ready_for_query;
use pgwire::api::{ClientInfo, PgWireConnectionState};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyFail, CopyInResponse};
use pgwire::messages::response::TransactionStatus;

use super::checks::{check_status, complete};
use super::query::{Queries, connection};
use super::startup::Connection;
use super::wire;
use crate::serve::error::{QueryError, SqlState};
use crate::serve::session::Stop;
use crate::serve::session::copy::from::{CopyIn, Loading};
use crate::serve::session::statement::Statement;

/// Who tells the client that it may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    Simple,
    Extended,
}

/// A load on its way.
#[derive(Debug)]
pub(super) struct Copying {
    copy: CopyIn,
    loading: Loading,
    stop: Stop,
    /// Errors and the end are told here.
    by_hand: bool,
}

impl Queries {
    /// Asks the client for rows.
    pub(super) async fn copy_in<C>(
        &self,
        client: &mut C,
        connection: &Connection,
        (statement, copy): (&Statement, &CopyIn),
        begun: Begun,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        check_status(client.transaction_status(), statement)?;
        let session = connection.session.lock().await;
        let mut stop = session.stop(statement);
        let begin = session.begin_copy(statement, copy);
        let loading = stop.race(begin).await.and_then(|begun| begun).map_err(wire)?;
        drop(session);
        let format = i16::from(loading.is_binary());
        let formats = vec![format; loading.columns()];
        let columns = i16::try_from(loading.columns()).unwrap_or(i16::MAX);
        let by_hand = begun == Begun::Simple && client.transaction_status() != TransactionStatus::Idle;
        *self.copying.lock().await = Some(Copying { copy: copy.clone(), loading, stop, by_hand });
        client.set_state(PgWireConnectionState::CopyInProgress(by_hand || begun == Begun::Extended));
        let response = CopyInResponse::new(format as i8, columns, formats);
        client.send(PgWireBackendMessage::CopyInResponse(response)).await?;
        Ok(())
    }

    async fn take_data<C: ClientInfo + Sync>(&self, client: &C, data: &[u8]) -> Result<(), (bool, PgWireError)> {
        let mut copying = self.copying.lock().await;
        let Some(Copying { copy, loading, mut stop, by_hand }) = copying.take() else { return Ok(()) };
        let connection = connection(client).map_err(|error| (by_hand, error))?;
        let session = connection.session.lock().await;
        let taken = stop.race(session.continue_copy(loading, data)).await.and_then(|taken| taken);
        let loading = taken.map_err(|error| (by_hand, wire(error)))?;
        *copying = Some(Copying { copy, loading, stop, by_hand });
        Ok(())
    }

    /// Tells of an error and goes on, as pgwire does elsewhere.
    async fn fail_by_hand<C>(&self, client: &mut C, error: PgWireError) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let told: ErrorInfo = error.into();
        self.feed(client, PgWireBackendMessage::ErrorResponse(told.into())).await?;
        let status = client.transaction_status().to_error_state();
        client.set_transaction_status(status);
        self.go_on(client).await
    }

    async fn go_on<C>(&self, client: &mut C) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        client.set_state(PgWireConnectionState::ReadyForQuery);
        let connection = connection(client)?;
        self.await_next(client, &connection).await;
        let status = client.transaction_status();
        send_ready_for_query(client, status).await
    }
}

#[async_trait]
impl CopyHandler for Queries {
    async fn on_copy_data<C>(&self, client: &mut C, data: CopyData) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match self.take_data(client, &data.data).await {
            Ok(()) => Ok(()),
            Err((true, error)) => self.fail_by_hand(client, error).await,
            Err((false, error)) => Err(error),
        }
    }

    async fn on_copy_done<C>(&self, client: &mut C, _: CopyDone) -> PgWireResult<()>
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let copying = self.copying.lock().await.take();
        let Some(Copying { copy, loading, mut stop, by_hand }) = copying else {
            return Err(wire(QueryError::new(SqlState::PROTOCOL_VIOLATION, "there is no COPY to end")));
        };
        let connection = connection(client)?;
        let mut session = connection.session.lock().await;
        let done = stop.race(session.end_copy(&copy, loading)).await.and_then(|done| done);
        drop(session);
        match done {
            Ok(rows) => {
                let rows = usize::try_from(rows).unwrap_or(usize::MAX);
                self.feed(client, complete("COPY", Some(rows))).await?;
                client.set_state(PgWireConnectionState::ReadyForQuery);
                if by_hand { self.go_on(client).await } else { Ok(()) }
            }
            Err(error) if by_hand => self.fail_by_hand(client, wire(error)).await,
            Err(error) => Err(wire(error)),
        }
    }

    async fn on_copy_fail<C>(&self, _: &mut C, fail: CopyFail) -> PgWireError
    where
        C: ClientInfo + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let message = format!("COPY from stdin failed: {}", fail.message);
        let copying = self.copying.lock().await.take();
        let by_hand = copying.as_ref().is_some_and(|copying| copying.by_hand);
        if let Some(copying) = copying {
            copying.loading.give_up(SqlState::CANCELLED);
        }
        // pgwire would wait for a Sync that does not come: the transaction ends with its connection.
        if by_hand {
            super::fatal(SqlState::CANCELLED, message)
        } else {
            wire(QueryError::new(SqlState::CANCELLED, message))
        }
    }
}
