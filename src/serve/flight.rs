//! The Arrow Flight SQL adapter: statements, prepared statements, transactions and metadata over gRPC.
//!
//! Only this file and `flight/` name arrow-flight and tonic. A result is planned and its snapshot pinned when its flight is
//! described; the batches that the ticket then fetches are those of the engine, without another encoding.
//!
//! A client without a handshake is a session of its own at each request. One that shook hands holds a bearer token, and its
//! `SET`s last.

mod answer;
mod asker;
mod desk;
mod metadata;

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::server::{FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionBeginTransactionRequest, ActionBeginTransactionResult, ActionCancelQueryRequest, ActionCancelQueryResult,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    ActionEndTransactionRequest, CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas,
    CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes,
    CommandGetTables, CommandGetXdbcTypeInfo, CommandPreparedStatementQuery, CommandPreparedStatementUpdate,
    CommandStatementQuery, CommandStatementUpdate, DoPutPreparedStatementResult, EndTransaction, ProstMessageExt,
    SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightDescriptor, FlightEndpoint,
    FlightInfo, HandshakeRequest, HandshakeResponse, Result as ActionResult, Ticket,
};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::record_batch::RecordBatch;
use futures::{Stream, TryStreamExt, stream};
use prost::Message;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use self::answer::{Batches, no_rows, refusal, schema_bytes};
use self::asker::Asker;
use self::desk::{Caller, Desk, Order};
use super::auth::{Exposure, Protocol};
use super::session::QueryService;
use super::session::statement::Statement;
use super::tls::sockets::Sockets;
use super::{Endpoint, ServeError};
use crate::runtime::{Health, Shutdown, spawn};

/// How often what clients have left behind is looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How often a silent connection is asked whether its client is still there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Opens the Flight port.
pub async fn listen(address: std::net::SocketAddr, exposure: Exposure) -> Result<TcpListener, ServeError> {
    Endpoint::flight(address).listen_for(exposure).await
}

/// Answers Flight SQL clients until `shutdown`.
pub async fn serve_flight(
    listener: TcpListener,
    service: Arc<QueryService>,
    shutdown: Shutdown,
    health: Health,
) -> Result<(), ServeError> {
    let address = listener.local_addr().unwrap_or_else(|_| std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    let desk = Arc::new(Desk::new(service));
    let (swept, ends) = (Arc::clone(&desk), shutdown.clone());
    spawn("flight sweep", &health, async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_INTERVAL) => swept.sweep(Instant::now()),
                () = ends.wait() => return,
            }
        }
    });
    let tls = desk.gate().tls().cloned();
    let flights = FlightServiceServer::new(Flights { desk });
    let sockets = Sockets::of(listener, tls, Protocol::Flight, &health, shutdown.clone());
    let incoming = stream::unfold(sockets, |mut sockets| async move {
        sockets.next().await.map(|socket| (Ok::<_, std::io::Error>(socket), sockets))
    });
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .add_service(flights)
        .serve_with_incoming(incoming);
    tokio::select! {
        // Clients may hold a connection open for ever, so its end is not waited for.
        () = shutdown.wait() => Ok(()),
        served = serving => served.map_err(|source| {
            let Endpoint { key, flag, .. } = Endpoint::flight(address);
            ServeError::Bind { address, key, flag, source: std::io::Error::other(source) }
        }),
    }
}

/// The service that tonic drives.
#[derive(Debug)]
struct Flights {
    desk: Arc<Desk>,
}

type FlightStream = <Flights as FlightService>::DoGetStream;
type Answer<T> = Result<Response<T>, Status>;

impl Flights {
    async fn caller(&self, asker: Asker, transaction: Option<&[u8]>) -> Result<Caller, Status> {
        self.desk.caller(asker, transaction).await
    }

    /// Describes the flight of `order`, whose result waits for its ticket.
    async fn describe(&self, order: Order, descriptor: FlightDescriptor) -> Answer<FlightInfo> {
        let certificate = order.certificate.clone();
        let schema = order.schema();
        let handle = self.desk.leave(order)?;
        let ticket = TicketStatementQuery { statement_handle: handle };
        let info = flight(&schema, ticket.as_any().encode_to_vec(), descriptor)?;
        Ok(Response::new(info.with_app_metadata(certificate.unwrap_or_default())))
    }
}

/// One endpoint, at this server.
fn flight(schema: &Schema, ticket: Vec<u8>, descriptor: FlightDescriptor) -> Result<FlightInfo, Status> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
    let info = FlightInfo::new().try_with_schema(schema).map_err(|error| Status::internal(error.to_string()))?;
    Ok(info.with_endpoint(endpoint).with_descriptor(descriptor).with_ordered(true))
}

/// Dictionaries stay dictionaries.
fn encoded(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
) -> Response<FlightStream> {
    let encoder = FlightDataEncoderBuilder::new()
        .with_schema(schema)
        .with_dictionary_handling(DictionaryHandling::Resend)
        .build(batches);
    Response::new(Box::pin(encoder.map_err(Status::from)))
}

fn one(batch: Result<RecordBatch, Status>) -> Answer<FlightStream> {
    let batch = batch?;
    Ok(encoded(batch.schema(), stream::iter([Ok(batch)])))
}

/// What a client sends with a request: parameters.
async fn sent(request: Request<PeekableFlightDataStream>) -> Result<Vec<RecordBatch>, Status> {
    // The first message was looked at already, and is still there; it may hold nothing but the command.
    let messages = request.into_inner().into_peekable();
    let data =
        messages.try_filter(|data| std::future::ready(!data.data_header.is_empty())).map_err(FlightError::from);
    let batches = FlightRecordBatchStream::new_from_flight_data(data).try_collect().await;
    batches.map_err(|error| Status::invalid_argument(format!("the parameters cannot be read: {error}")))
}

#[tonic::async_trait]
impl FlightSqlService for Flights {
    type FlightService = Self;

    /// Takes `authorization: Basic ...` and answers with a bearer token, which names a session.
    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Answer<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>> {
        let token = self.desk.welcome(Asker::of(&request)).await?;
        let answer = HandshakeResponse { protocol_version: 0, payload: token.clone().into() };
        let mut response: Response<Pin<Box<dyn Stream<Item = _> + Send>>> =
            Response::new(Box::pin(stream::iter([Ok(answer)])));
        let bearer = format!("Bearer {token}");
        let value = bearer.parse().map_err(|_| Status::internal("a token is not a header's value"))?;
        response.metadata_mut().insert("authorization", value);
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let caller = self.caller(Asker::of(&request), query.transaction_id.as_deref()).await?;
        let order = self.desk.order(&caller, &query.query).await.map_err(refusal)?;
        self.describe(order, request.into_inner()).await
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let order = self.desk.order_prepared(&query.prepared_statement_handle).await.map_err(refusal)?;
        self.describe(order, request.into_inner()).await
    }

    async fn do_get_statement(&self, ticket: TicketStatementQuery, _: Request<Ticket>) -> Answer<FlightStream> {
        let Batches { schema, batches } = self.desk.fetch(&ticket.statement_handle).await.map_err(refusal)?;
        Ok(encoded(schema, batches))
    }

    async fn do_put_statement_update(
        &self,
        update: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let caller = self.caller(Asker::of(&request), update.transaction_id.as_deref()).await?;
        let order = self.desk.order(&caller, &update.query).await.map_err(refusal)?;
        self.desk.carry_out(order).await.map_err(refusal)
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let caller = self.caller(Asker::of(&request), query.transaction_id.as_deref()).await?;
        let (handle, prepared) = self.desk.prepare(&caller, &query.query).await.map_err(refusal)?;
        let parameters = answer::parameter_schema(&prepared.parameters);
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle,
            dataset_schema: schema_bytes(&prepared.schema.unwrap_or_else(no_rows))?,
            parameter_schema: schema_bytes(&parameters)?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        _: Request<Action>,
    ) -> Result<(), Status> {
        self.desk.forget(&query.prepared_statement_handle);
        Ok(())
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let handle = query.prepared_statement_handle;
        // Before anything is read of who sends it.
        self.desk.knows(&handle).map_err(refusal)?;
        self.desk.bind(&handle, sent(request).await?).map_err(refusal)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    async fn do_put_prepared_statement_update(
        &self,
        query: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let handle = query.prepared_statement_handle;
        self.desk.knows(&handle).map_err(refusal)?;
        self.desk.carry_out_prepared(&handle, sent(request).await?).await.map_err(refusal)
    }

    async fn do_action_begin_transaction(
        &self,
        _: ActionBeginTransactionRequest,
        request: Request<Action>,
    ) -> Result<ActionBeginTransactionResult, Status> {
        let caller = self.caller(Asker::of(&request), None).await?;
        let transaction_id = self.desk.begin(&caller).await.map_err(refusal)?;
        Ok(ActionBeginTransactionResult { transaction_id })
    }

    async fn do_action_end_transaction(
        &self,
        query: ActionEndTransactionRequest,
        _: Request<Action>,
    ) -> Result<(), Status> {
        match EndTransaction::try_from(query.action) {
            Ok(EndTransaction::Commit) => self.desk.end(&query.transaction_id, &Statement::Commit).await,
            Ok(EndTransaction::Rollback) => self.desk.end(&query.transaction_id, &Statement::Rollback).await,
            _ => Err(Status::invalid_argument("a transaction is ended by commit or by rollback")),
        }
    }

    async fn do_action_cancel_query(
        &self,
        query: ActionCancelQueryRequest,
        _: Request<Action>,
    ) -> Result<ActionCancelQueryResult, Status> {
        let info = FlightInfo::decode(query.info).map_err(|error| Status::invalid_argument(error.to_string()))?;
        // The numbers of both messages are the same.
        Ok(ActionCancelQueryResult { result: self.desk.cancel(&info) as i32 })
    }

    async fn do_action_fallback(
        &self,
        request: Request<Action>,
    ) -> Answer<<Self as FlightService>::DoActionStream> {
        let Action { r#type, body } = request.into_inner();
        if r#type != "CancelFlightInfo" {
            return Err(Status::unimplemented(format!("action {type} is not there", type = r#type)));
        }
        let asked = CancelFlightInfoRequest::decode(body);
        let asked = asked.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let status = asked.info.map_or(CancelStatus::Unspecified, |info| self.desk.cancel(&info));
        let result = CancelFlightInfoResult { status: status as i32 }.encode_to_vec();
        Ok(Response::new(Box::pin(stream::iter([Ok(ActionResult { body: result.into() })]))))
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&query.into_builder().schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_catalogs(&self, _: CommandGetCatalogs, _: Request<Ticket>) -> Answer<FlightStream> {
        one(metadata::catalogs())
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&query.into_builder().schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_schemas(&self, query: CommandGetDbSchemas, request: Request<Ticket>) -> Answer<FlightStream> {
        let catalog = self.caller(Asker::of(&request), None).await?.catalog().await.map_err(refusal)?;
        one(metadata::schemas(query, catalog.as_ref()))
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&query.into_builder().schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_tables(&self, query: CommandGetTables, request: Request<Ticket>) -> Answer<FlightStream> {
        let catalog = self.caller(Asker::of(&request), None).await?.catalog().await.map_err(refusal)?;
        one(metadata::tables(query, catalog.as_ref()).await)
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&metadata::table_types()?.schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_table_types(&self, _: CommandGetTableTypes, _: Request<Ticket>) -> Answer<FlightStream> {
        one(metadata::table_types())
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&metadata::sql_info(query)?.schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _: Request<Ticket>) -> Answer<FlightStream> {
        one(metadata::sql_info(query))
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&metadata::types(query)?.schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        _: Request<Ticket>,
    ) -> Answer<FlightStream> {
        one(metadata::types(query))
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&metadata::primary_key_schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<Ticket>,
    ) -> Answer<FlightStream> {
        self.caller(Asker::of(&request), None).await?;
        one(metadata::primary_keys(&query, self.desk.database().as_ref()))
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&metadata::foreign_key_schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_exported_keys(&self, _: CommandGetExportedKeys, _: Request<Ticket>) -> Answer<FlightStream> {
        one(Ok(RecordBatch::new_empty(metadata::foreign_key_schema())))
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&metadata::foreign_key_schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_imported_keys(&self, _: CommandGetImportedKeys, _: Request<Ticket>) -> Answer<FlightStream> {
        one(Ok(RecordBatch::new_empty(metadata::foreign_key_schema())))
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let ticket = query.as_any().encode_to_vec();
        flight(&metadata::foreign_key_schema(), ticket, request.into_inner()).map(Response::new)
    }

    async fn do_get_cross_reference(
        &self,
        _: CommandGetCrossReference,
        _: Request<Ticket>,
    ) -> Answer<FlightStream> {
        one(Ok(RecordBatch::new_empty(metadata::foreign_key_schema())))
    }

    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}
