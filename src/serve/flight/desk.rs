//! What clients have left here between two requests: sessions, transactions, prepared statements, and results that wait
//! for their ticket. Everything is named by a random handle, bounded in number, and let go when nobody asks for it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use arrow_flight::sql::{Any, TicketStatementQuery};
use arrow_flight::{CancelStatus, FlightInfo};
use bytes::Bytes;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::CatalogProvider;
use datafusion::common::{ParamValues, ScalarValue};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tonic::Status;
use uuid::Uuid;

use super::answer::{Batches, as_they_are, batches, no_rows, refusal};
use super::asker::{Asker, Authorization};
use crate::serve::Database;
use crate::serve::auth::{Gate, Origin};
use crate::serve::error::{QueryError, SqlState};
use crate::serve::session::statement::Statement;
use crate::serve::session::{Encode, Outcome, Prepared, QueryService, ROWS_PER_PIECE, Session};
use crate::serve::values::checked_cast;

/// How long a result waits for its ticket: it holds a snapshot.
const TICKET_PATIENCE: Duration = Duration::from_secs(60);
/// How long a session or a prepared statement is kept that nobody uses.
const SESSION_PATIENCE: Duration = Duration::from_secs(3600);
/// Prepared statements and results that wait, for each session there may be.
const LEFT_PER_SESSION: usize = 10;
/// Who did not say who they are.
const ANONYMOUS: &str = "anonymous";

type SharedSession = Arc<AsyncMutex<Session>>;

/// Who makes a request.
#[derive(Debug)]
pub(super) struct Caller {
    session: SharedSession,
    standing: Standing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// The session ends with the request.
    Passing,
    /// It has a token.
    Known,
    /// It has begun the transaction of this name.
    Transacting(Bytes),
}

impl Caller {
    /// What a query of it would read.
    pub(super) async fn catalog(&self) -> Result<Arc<dyn CatalogProvider>, QueryError> {
        self.session.lock().await.catalog()
    }

    /// The session for a statement: one of its own, that pins one snapshot from here to the last row, unless the
    /// statement is about the session itself.
    async fn session_for(&self, statement: &Statement) -> Result<SharedSession, QueryError> {
        match statement {
            Statement::Begin { .. } | Statement::Commit | Statement::Rollback | Statement::Savepoint(_) => Err(
                QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, "a transaction is not begun or ended by SQL here")
                    .hint("use the transactions of Flight SQL: in ADBC, autocommit off and commit()"),
            ),
            _ if matches!(self.standing, Standing::Transacting(_)) => Ok(Arc::clone(&self.session)),
            Statement::Set { .. } | Statement::Reset(_) | Statement::Discard { .. } => match self.standing {
                Standing::Passing => Err(QueryError::new(
                    SqlState::PREREQUISITE,
                    "there is no session in which this setting would last",
                )
                .hint("connect with a user name: the handshake begins a session")),
                _ => Ok(Arc::clone(&self.session)),
            },
            _ => {
                let mut session = self.session.lock().await.fork();
                if matches!(statement, Statement::Query(_) | Statement::Show(_)) {
                    session.execute(&Statement::Begin { read_only: true }, None, None, |_| Ok(unused())).await?;
                }
                Ok(Arc::new(AsyncMutex::new(session)))
            }
        }
    }
}

/// For statements without rows.
fn unused() -> crate::serve::session::Encode<RecordBatch> {
    as_they_are(TICKET_PATIENCE)
}

/// A statement that is to be executed once, and what it was promised to give.
#[derive(Debug, Clone)]
pub(super) struct Order {
    session: SharedSession,
    prepared: Prepared,
    values: Option<ParamValues>,
    /// Of the snapshot that a query reads.
    pub(super) certificate: Option<String>,
}

impl Order {
    pub(super) fn schema(&self) -> SchemaRef {
        self.prepared.schema.clone().unwrap_or_else(no_rows)
    }
}

/// A prepared statement.
#[derive(Debug)]
struct Kept {
    caller: Caller,
    statement: Statement,
    prepared: Prepared,
    /// What it was bound to last.
    bound: Mutex<Vec<RecordBatch>>,
}

/// All that was left here.
pub(super) struct Desk {
    service: Arc<QueryService>,
    /// The last number given to a session.
    numbers: AtomicI32,
    sessions: Store<SharedSession>,
    transactions: Store<SharedSession>,
    prepared: Store<Arc<Kept>>,
    orders: Store<Order>,
    /// Results that are being fetched.
    running: Arc<Mutex<HashMap<Bytes, watch::Sender<u64>>>>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Desk {
    pub(super) fn new(service: Arc<QueryService>) -> Self {
        let limits = service.limits();
        let (sessions, idle) = (limits.connections_max, limits.idle_in_transaction_timeout);
        Self {
            numbers: AtomicI32::new(0),
            sessions: Store::new("sessions", sessions, SESSION_PATIENCE),
            transactions: Store::new("transactions", sessions, idle),
            prepared: Store::new("prepared statements", sessions * LEFT_PER_SESSION, SESSION_PATIENCE),
            orders: Store::new("results that wait for their ticket", sessions * LEFT_PER_SESSION, TICKET_PATIENCE),
            running: Arc::default(),
            service,
        }
    }

    pub(super) fn gate(&self) -> &Arc<Gate> {
        self.service.gate()
    }

    pub(super) fn database(&self) -> &Arc<dyn Database> {
        self.service.database()
    }

    /// Lets go of what nobody asked for.
    pub(super) fn sweep(&self, now: Instant) {
        self.orders.sweep(now);
        self.prepared.sweep(now);
        self.transactions.sweep(now);
        self.sessions.sweep(now);
    }

    /// A token for whoever `authorization: Basic ...` names.
    pub(super) async fn welcome(&self, asker: Asker) -> Result<String, Status> {
        let (user, password) = match asker.authorization? {
            Authorization::User { user, password } => (user, password),
            _ => return Err(Status::unauthenticated("a handshake needs authorization: Basic user:password")),
        };
        let token = Uuid::new_v4().to_string();
        let session = self.connect(&user, &password, asker.origin).await?;
        session.lock().await.arrive();
        self.sessions.put_as(token.clone().into(), session).map_err(super::refusal)?;
        tracing::debug!(user, "a Flight SQL client shook hands");
        Ok(token)
    }

    async fn connect(&self, user: &str, password: &str, origin: Origin) -> Result<SharedSession, Status> {
        let gate = self.service.gate();
        let known = gate.check_password(user, password, origin).await.map_err(super::refusal)?;
        let client = gate.enter(known, origin).map_err(super::refusal)?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(AsyncMutex::new(self.service.connect(client, number))))
    }

    /// Who asks, in this transaction.
    pub(super) async fn caller(&self, asker: Asker, transaction: Option<&[u8]>) -> Result<Caller, Status> {
        if let Some(id) = transaction.filter(|id| !id.is_empty()) {
            let session = self.transactions.get(id).ok_or_else(no_transaction)?;
            return Ok(Caller { session, standing: Standing::Transacting(Bytes::copy_from_slice(id)) });
        }
        let (session, standing) = match asker.authorization? {
            Authorization::None => (self.connect(ANONYMOUS, "", asker.origin).await?, Standing::Passing),
            Authorization::User { user, password } => {
                (self.connect(&user, &password, asker.origin).await?, Standing::Passing)
            }
            Authorization::Token(token) => {
                let gone = || Status::unauthenticated("this token is not known, or nobody used it for too long");
                (self.sessions.get(token.as_bytes()).ok_or_else(gone)?, Standing::Known)
            }
        };
        Ok(Caller { session, standing })
    }

    async fn read(&self, caller: &Caller, sql: &str) -> Result<Statement, QueryError> {
        let mut statements = caller.session.lock().await.parse(sql).await?;
        match (statements.pop(), statements.is_empty()) {
            (Some(statement), true) => Ok(statement),
            (None, _) => Err(QueryError::new(SqlState::SYNTAX, "there is no statement in the text")),
            _ => Err(QueryError::new(SqlState::SYNTAX, "a flight has one statement, and the text has several")),
        }
    }

    /// Plans a statement, and pins what it will read.
    pub(super) async fn order(&self, caller: &Caller, sql: &str) -> Result<Order, QueryError> {
        let statement = self.read(caller, sql).await?;
        self.order_statement(caller, statement, None).await
    }

    async fn order_statement(
        &self,
        caller: &Caller,
        statement: Statement,
        values: Option<ParamValues>,
    ) -> Result<Order, QueryError> {
        let session = caller.session_for(&statement).await?;
        let mut open = session.lock().await;
        let mut stop = open.stop(&statement);
        let prepared = stop.race(open.prepare(statement)).await??;
        if values.is_none() && !prepared.parameters.is_empty() {
            return Err(unbound(prepared.parameters.len()));
        }
        let certificate = match prepared.statement {
            Statement::Query(_) => Some(open.certificate()?),
            _ => None,
        };
        drop(open);
        Ok(Order { session, prepared, values, certificate })
    }

    /// Has `order` wait for its ticket.
    pub(super) fn leave(&self, order: Order) -> Result<Bytes, Status> {
        self.orders.put(order).map_err(super::refusal)
    }

    /// Executes what waits for this ticket; it is given out once.
    pub(super) async fn fetch(&self, ticket: &Bytes) -> Result<Batches, QueryError> {
        let gone = || {
            QueryError::new(SqlState::UNKNOWN_STATEMENT, "nothing waits for this ticket")
                .detail("a result is fetched once, and kept for a minute")
        };
        let order = self.orders.take(ticket).ok_or_else(gone)?;
        let running = Running::new(&self.running, ticket, order.session.lock().await.cancels());
        let schema = order.prepared.schema.clone();
        let (outcome, stop) = self.execute(order).await?;
        let Batches { schema: found, batches } = batches(outcome, stop, running);
        Ok(Batches { schema: schema.unwrap_or(found), batches })
    }

    async fn execute(
        &self,
        order: Order,
    ) -> Result<(Outcome<RecordBatch>, crate::serve::session::Stop), QueryError> {
        let Order { session, prepared, values, .. } = order;
        let patience = self.service.limits().write_timeout;
        let mut session = session.lock().await;
        let mut stop = session.stop(&prepared.statement);
        let work = session.execute(&prepared.statement, values, Some(&prepared), |_| Ok(as_they_are(patience)));
        let outcome = stop.race(work).await??;
        Ok((outcome, stop))
    }

    /// Executes a statement that gives no rows; how many it touched.
    pub(super) async fn carry_out(&self, order: Order) -> Result<i64, QueryError> {
        match self.execute(order).await?.0 {
            Outcome::Changed { rows, .. } => Ok(i64::try_from(rows).unwrap_or(i64::MAX)),
            Outcome::Rows { .. } | Outcome::Table { .. } => Err(QueryError::new(
                SqlState::WRONG_OBJECT_TYPE,
                "this statement gives rows, and was sent as an update",
            )
            .hint("send it as a query")),
            _ => Ok(0),
        }
    }

    pub(super) async fn prepare(&self, caller: &Caller, sql: &str) -> Result<(Bytes, Prepared), QueryError> {
        let statement = self.read(caller, sql).await?;
        let caller = Caller { session: Arc::clone(&caller.session), standing: caller.standing.clone() };
        let session = caller.session_for(&statement).await?;
        let prepared = session.lock().await.prepare(statement.clone()).await?;
        let kept = Kept { caller, statement, prepared: prepared.clone(), bound: Mutex::default() };
        Ok((self.prepared.put(Arc::new(kept))?, prepared))
    }

    pub(super) fn forget(&self, handle: &[u8]) {
        drop(self.prepared.take(handle));
    }

    fn kept(&self, handle: &[u8]) -> Result<Arc<Kept>, QueryError> {
        self.prepared.get(handle).ok_or_else(|| {
            QueryError::new(
                SqlState::UNKNOWN_STATEMENT,
                "this prepared statement is closed, or nobody used it for too long",
            )
        })
    }

    /// Whether there is such a prepared statement.
    pub(super) fn knows(&self, handle: &[u8]) -> Result<(), QueryError> {
        self.kept(handle).map(drop)
    }

    /// The values that the next execution takes.
    pub(super) fn bind(&self, handle: &[u8], values: Vec<RecordBatch>) -> Result<(), QueryError> {
        *self.kept(handle)?.bound.lock() = values;
        Ok(())
    }

    pub(super) async fn order_prepared(&self, handle: &[u8]) -> Result<Order, QueryError> {
        let kept = self.kept(handle)?;
        let bound = kept.bound.lock().clone();
        let mut rows = kept.rows(&bound)?;
        let values = rows.pop().flatten();
        if !rows.is_empty() {
            return Err(QueryError::new(
                SqlState::FEATURE_NOT_SUPPORTED,
                "a query is bound to one row of parameters",
            ));
        }
        self.order_statement(&self.present(&kept.caller).await, kept.statement.clone(), values).await
    }

    /// Who prepared a statement, as they are now: the statement outlives the transaction in which it was prepared.
    async fn present(&self, caller: &Caller) -> Caller {
        let (session, standing) = match &caller.standing {
            Standing::Transacting(id) if self.transactions.get(id).is_none() => {
                (Arc::new(AsyncMutex::new(caller.session.lock().await.fork())), Standing::Known)
            }
            standing => (Arc::clone(&caller.session), standing.clone()),
        };
        Caller { session, standing }
    }

    /// Executes the statement for each row of parameters; how many rows that touched.
    pub(super) async fn carry_out_prepared(
        &self,
        handle: &[u8],
        values: Vec<RecordBatch>,
    ) -> Result<i64, QueryError> {
        let kept = self.kept(handle)?;
        // Some clients send them with the update, others have bound them before.
        let values = if values.is_empty() { kept.bound.lock().clone() } else { values };
        let mut touched = 0;
        for values in kept.rows(&values)? {
            let caller = self.present(&kept.caller).await;
            let order = self.order_statement(&caller, kept.statement.clone(), values).await?;
            touched += self.carry_out(order).await?;
        }
        Ok(touched)
    }

    /// A transaction of the caller: all its queries read what the first one does.
    pub(super) async fn begin(&self, caller: &Caller) -> Result<Bytes, QueryError> {
        let mut session = caller.session.lock().await.fork();
        session.execute(&Statement::Begin { read_only: false }, None, None, |_| Ok(unused())).await?;
        self.transactions.put(Arc::new(AsyncMutex::new(session)))
    }

    pub(super) async fn end(&self, transaction: &[u8], by: &Statement) -> Result<(), Status> {
        let session = self.transactions.take(transaction).ok_or_else(no_transaction)?;
        let nothing = |_: &SchemaRef| Ok(Encode::new(ROWS_PER_PIECE, |_| Ok(())));
        let ended = session.lock().await.execute(by, None, None, nothing).await;
        ended.map(drop).map_err(refusal)
    }

    /// Stops what the tickets of `info` stand for.
    pub(super) fn cancel(&self, info: &FlightInfo) -> CancelStatus {
        let tickets = info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref());
        let handles = tickets.filter_map(|ticket| {
            let any = Any::decode(ticket.ticket.clone()).ok()?;
            any.unpack::<TicketStatementQuery>().ok().flatten().map(|ticket| ticket.statement_handle)
        });
        let mut status = CancelStatus::NotCancellable;
        for handle in handles {
            if self.orders.take(&handle).is_some() {
                status = CancelStatus::Cancelled;
            } else if let Some(cancels) = self.running.lock().get(&handle) {
                cancels.send_modify(|count| *count += 1);
                status = CancelStatus::Cancelled;
            }
        }
        status
    }
}

impl Kept {
    /// The values for each execution: none when there are no parameters.
    fn rows(&self, bound: &[RecordBatch]) -> Result<Vec<Option<ParamValues>>, QueryError> {
        let wanted = self.prepared.parameters.len();
        if wanted == 0 {
            return Ok(vec![None]);
        }
        let mut rows = Vec::new();
        for batch in bound {
            if batch.num_columns() != wanted {
                let message =
                    format!("{} parameters were bound, and the statement has {wanted}", batch.num_columns());
                return Err(QueryError::new(SqlState::PROTOCOL_VIOLATION, message));
            }
            let columns = batch.columns().iter().zip(&self.prepared.parameters);
            let columns = columns.map(|(column, known)| match known {
                Some(known) if known != column.data_type() => checked_cast(column, known),
                _ => Ok(Arc::clone(column)),
            });
            let columns: Vec<_> = columns.collect::<Result<_, _>>()?;
            for row in 0..batch.num_rows() {
                let values = columns.iter().map(|column| ScalarValue::try_from_array(column, row));
                let values: Vec<ScalarValue> = values.collect::<Result<_, _>>()?;
                rows.push(Some(ParamValues::from(values)));
            }
        }
        if rows.is_empty() { Err(unbound(wanted)) } else { Ok(rows) }
    }
}

fn no_transaction() -> Status {
    Status::not_found("there is no such transaction: it has ended, or nobody used it for too long")
}

fn unbound(parameters: usize) -> QueryError {
    let message = format!("{parameters} parameters are to be bound first");
    QueryError::new(SqlState::PROTOCOL_VIOLATION, message).hint("prepare the statement and bind a row of values")
}

/// A result that is being fetched, so that a cancellation finds it.
struct Running {
    all: Arc<Mutex<HashMap<Bytes, watch::Sender<u64>>>>,
    ticket: Bytes,
}

impl Running {
    fn new(
        all: &Arc<Mutex<HashMap<Bytes, watch::Sender<u64>>>>,
        ticket: &Bytes,
        cancels: watch::Sender<u64>,
    ) -> Self {
        all.lock().insert(ticket.clone(), cancels);
        Self { all: Arc::clone(all), ticket: ticket.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.all.lock().remove(&self.ticket);
    }
}

/// Things of one kind by their handles.
struct Store<T> {
    what: &'static str,
    max: usize,
    /// How long a thing stays that nobody asks for.
    patience: Duration,
    things: Mutex<HashMap<Bytes, (T, Instant)>>,
}

impl<T: Clone> Store<T> {
    fn new(what: &'static str, max: usize, patience: Duration) -> Self {
        Self { what, max, patience, things: Mutex::default() }
    }

    fn put(&self, thing: T) -> Result<Bytes, QueryError> {
        let handle = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
        self.put_as(handle.clone(), thing)?;
        Ok(handle)
    }

    fn put_as(&self, handle: Bytes, thing: T) -> Result<(), QueryError> {
        let mut things = self.things.lock();
        if things.len() >= self.max {
            let message = format!("there are {} {} already, and no more are kept", things.len(), self.what);
            return Err(QueryError::new(SqlState::TOO_MANY_CONNECTIONS, message));
        }
        things.insert(handle, (thing, Instant::now()));
        Ok(())
    }

    fn get(&self, handle: &[u8]) -> Option<T> {
        let mut things = self.things.lock();
        let (thing, used) = things.get_mut(handle)?;
        *used = Instant::now();
        Some(thing.clone())
    }

    fn take(&self, handle: &[u8]) -> Option<T> {
        self.things.lock().remove(handle).map(|(thing, _)| thing)
    }

    fn sweep(&self, now: Instant) {
        self.things.lock().retain(|_, (_, used)| now.saturating_duration_since(*used) < self.patience);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_nobody_asks_for_is_let_go_and_no_more_is_kept_than_may_be() {
        let store = Store::new("things", 2, Duration::from_secs(10));
        let (a, b) = (store.put("a").unwrap(), store.put("b").unwrap());
        assert_eq!(store.put("c").unwrap_err().state, SqlState::TOO_MANY_CONNECTIONS);
        let now = Instant::now();
        store.sweep(now + Duration::from_secs(9));
        assert_eq!((store.get(&a), store.take(&b), store.take(&b)), (Some("a"), Some("b"), None));
        store.sweep(now + Duration::from_secs(60));
        assert_eq!(store.get(&a), None);
        assert!(store.put("d").is_ok());
    }
}
