//! The query service and its adapters: Postgres wire, Arrow Flight SQL and HTTP.
//!
//! One [`session::QueryService`] parses, checks and runs statements; an adapter only speaks its protocol.
//! What is read comes from a [`Database`], which the composition root implements over the merge room.
//!
//! Where roles are declared, each table that a statement names is held against what its role was granted.
//!
//! Architecture invariant: a client can never name a file, a URL or a table that the pinned catalog does not
//! hold. Statements are allowed by a list, first over the parsed statement, then over its logical plan.

pub mod access_log;
pub mod auth;
pub mod error;
pub mod flight;
pub mod http;
pub mod pg;
pub mod session;
pub mod tls;
mod values;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, TableFunctionImpl};
use datafusion::common::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use tokio::net::TcpListener;

use self::auth::Exposure;
use crate::catalog::function::Functions;
use crate::catalog::role::Roles;
use crate::merge::endpoints::PlannedEndpoint;
use crate::merge::point::ByKey;
use crate::tables::WriteError;
use crate::tables::change::Change;

/// The one database that a server offers; also the name of its catalog.
pub const DATABASE: &str = "viewledger";

/// Schemas that the query service has beside those of a [`Database`].
pub const SERVED_SCHEMAS: [&str; 3] = ["pg_catalog", "information_schema", "audit"];

/// What queries read, and the little that they may change.
#[async_trait]
pub trait Database: Send + Sync + fmt::Debug + 'static {
    /// The catalog of one pinned snapshot, with its schemas. Called once per statement, or once per
    /// transaction: everything the statement reads comes from what is returned here. Must be cheap.
    fn pin(&self) -> Result<Arc<dyn CatalogProvider>, ServeError>;

    /// As [`Database::pin`], of an older generation, named by its number or by an instant.
    fn pin_as_of(&self, at: &str) -> Result<Arc<dyn CatalogProvider>, ServeError> {
        Err(ServeError::AsOf(format!("no generation {at} is kept here")))
    }

    /// Who may do what; None where no roles are declared, and everybody may everything. Called once per statement.
    fn roles(&self) -> Option<Arc<Roles>> {
        None
    }

    /// What a catalog that was pinned here holds, and what is missing in it.
    fn certificate(&self, _pinned: &dyn CatalogProvider) -> Option<Certificate> {
        None
    }

    /// The present in few numbers, as JSON; None where nobody watches. Must be cheap.
    fn pulse(&self) -> Option<String> {
        None
    }

    /// The query of `plan`, when it can be answered by key without planning it again.
    async fn by_key(&self, _plan: &LogicalPlan, _state: &SessionState) -> Option<Arc<ByKey>> {
        None
    }

    /// Functions that stand for queries, in a catalog that was pinned here.
    fn functions(&self, _pinned: &dyn CatalogProvider) -> Arc<Functions> {
        Arc::default()
    }

    /// A name that only the snapshot of a catalog that was pinned here has, in this process and any other.
    fn identity(&self, _pinned: &dyn CatalogProvider) -> Option<String> {
        None
    }

    /// The endpoints of HTTP that go with a catalog that was pinned here.
    fn endpoints(&self, _pinned: &dyn CatalogProvider) -> Vec<Arc<PlannedEndpoint>> {
        Vec::new()
    }

    /// The number of the generation that a catalog which was pinned here reads. Must be cheap.
    fn generation(&self, _pinned: &dyn CatalogProvider) -> Option<u64> {
        None
    }

    /// A session with every function, limit and optimizer rule. Taken once, as the template of all sessions.
    fn session(&self) -> SessionContext;

    /// Makes and publishes the next generation of all views, for all stand at one frontier. With
    /// [`RefreshScope::Full`], `view` (or every view) is computed from the whole archive. Returns its number as text.
    async fn refresh(&self, view: Option<&str>, scope: RefreshScope) -> Result<String, RefreshError>;

    /// Carries out a statement on materialized views; what it did is in everything that is pinned afterwards.
    async fn change_view(&self, _change: &ViewChange, _user: &str) -> Result<(), DefineError> {
        Err(DefineError::Needed("views cannot be changed here".to_owned()))
    }

    /// Reads the definitions in files again and follows what changed. What is asked meanwhile is answered as before.
    async fn reload(&self) -> Result<(), DefineError> {
        Err(DefineError::Failed("there are no files to read again here".to_owned()))
    }

    /// The present, for planning a statement that changes `table`.
    fn pin_to_change(&self, table: &str, _rows: ChangedRows) -> Result<Arc<dyn CatalogProvider>, WriteError> {
        Err(WriteError::Unknown(table.to_owned()))
    }

    /// Begins changes of reference tables over a catalog that was pinned here; without one, over the present, and then
    /// nobody else changes a table until they are committed or dropped.
    async fn change_tables(
        &self,
        _pinned: Option<Arc<dyn CatalogProvider>>,
    ) -> Result<Box<dyn TableChanges>, WriteError> {
        Err(WriteError::Ended)
    }

    /// Functions that give tables, over a catalog that was pinned here, by name. The first argument of each is the name of
    /// the view in `public` that it reads.
    fn table_functions(&self, _pinned: &dyn CatalogProvider) -> Vec<(String, Arc<dyn TableFunctionImpl>)> {
        Vec::new()
    }

    /// What the definition of a table says about it.
    fn comment(&self, schema: &str, table: &str) -> Option<String>;

    /// The columns by which each row of a table is told from all others, in order; none when nothing is declared.
    fn primary_key(&self, _schema: &str, _table: &str) -> Vec<String> {
        Vec::new()
    }

    /// Whether queries would be answered from complete and fresh enough data.
    fn readiness(&self) -> Readiness;
}

/// The right to change one reference table once; nobody else changes it until this is dropped.
/// Changes of reference tables that were begun: seen by nobody else before they are committed, and dropped without a trace.
#[async_trait]
pub trait TableChanges: Send + Sync + std::fmt::Debug {
    /// What a statement that comes after them reads.
    fn pinned(&self) -> Arc<dyn CatalogProvider>;

    /// The same, for a statement that changes `table`.
    fn pinned_for(&self, table: &str, rows: ChangedRows) -> Result<Arc<dyn CatalogProvider>, WriteError>;

    /// Bytes that one table may have.
    fn bytes_max(&self) -> usize;

    /// Makes one more change; returns how many rows it touched. After an error they are as they were.
    async fn apply(&mut self, table: &str, change: Change, statement: &'static str) -> Result<u64, WriteError>;

    /// The ordinary views, by name, that must have no rows before what was changed can be committed.
    fn enforced(&self) -> Result<Vec<String>, DataFusionError>;

    /// Commits all of them in one step, whether anybody waits for it or not; they are in everything that is pinned
    /// afterwards.
    async fn commit(self: Box<Self>, user: &str) -> Result<(), WriteError>;
}

/// Which rows of a reference table a statement is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangedRows {
    New,
    /// They show their numbers, in a column `_row`.
    Present,
}

/// From where a refresh goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshScope {
    /// From the current generation: only what is new.
    New,
    /// From nothing: the whole archive.
    Full,
}

/// A statement on materialized views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewChange {
    /// `CREATE [OR REPLACE] MATERIALIZED VIEW`: the statement as it was written.
    Create { statement: String, replace: bool },
    /// `ALTER MATERIALIZED VIEW view SET (version = n)`.
    Promote { view: String, version: u32 },
    /// `DROP MATERIALIZED VIEW view`, or `"view@n"`.
    Drop { view: String },
}

/// Why definitions stay as they were.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DefineError {
    #[error("{kind} \"{name}\" already exists")]
    Exists { kind: &'static str, name: String },
    #[error("materialized view \"{0}\" does not exist")]
    Unknown(String),
    #[error("materialized view \"{view}\" has no version {version}; there are {there_are}")]
    UnknownVersion { view: String, version: u32, there_are: String },
    /// The definition cannot be used; names the line and column in the statement.
    #[error("{0}")]
    Invalid(String),
    /// Something else needs what would go.
    #[error("{0}")]
    Needed(String),
    #[error("nothing was changed: {0}")]
    Failed(String),
    #[error("cancelled: nothing was changed")]
    Cancelled,
}

/// The completeness certificate of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    pub generation: u64,
    /// Whether every record that Kafka is known to hold is counted.
    pub complete: bool,
    /// All of it, with positions, lag and what is missing.
    pub json: String,
}

/// The answer of `/readyz`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    pub ready: bool,
    /// Why not, or what a reader should know; shown as they are.
    pub reasons: Vec<String>,
}

/// Why a refresh published nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RefreshError {
    #[error("materialized view \"{0}\" does not exist")]
    UnknownView(String),
    /// A gate of the data's quality is red, or the process may not publish.
    #[error("refresh refused: {0}")]
    Refused(String),
    #[error("refresh failed: {0}")]
    Failed(String),
    #[error("refresh cancelled: nothing was published")]
    Cancelled,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("port {port} is taken by another process: stop it, or choose another with `{key}` or `{flag}`")]
    PortTaken { port: u16, key: &'static str, flag: &'static str },
    #[error(
        "refusing to listen for clients on {address}: only a loopback address is allowed where clients are not \
         authenticated over TLS; set `auth.method` to \"scram\", and `tls.certificate` and `tls.key` (or \
         `auth.allow_plain` to true on a network that you trust), or `server.bind` to 127.0.0.1"
    )]
    NotLoopback { address: SocketAddr },
    #[error("cannot listen on {address} (`{key}`, `{flag}`)")]
    Bind { address: SocketAddr, key: &'static str, flag: &'static str, source: std::io::Error },
    /// There is nothing complete to read yet.
    #[error("no snapshot to read: {0}")]
    Unavailable(String),
    /// The generation that a session asks for cannot be read.
    #[error("viewledger.as_of: {0}")]
    AsOf(String),
    #[error("cannot prepare the session catalog")]
    Catalog(#[source] Box<datafusion::error::DataFusionError>),
}

/// What bounds a session and a statement.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sessions at once; one more is told SQLSTATE 53300.
    pub connections_max: usize,
    /// How many of them are kept for roles that have reserved connections.
    pub connections_reserved: usize,
    /// Bytes of one message's SQL text.
    pub sql_bytes_max: usize,
    /// Operators in one chain (`a + b + c ...`), joins or set operations in one query. Deeper trees
    /// overflow stacks in recursive code.
    pub depth_max: usize,
    /// The `statement_timeout` of a new session; zero means none.
    pub statement_timeout: Duration,
    /// How long a client may take to send its startup message.
    pub startup_timeout: Duration,
    /// How long a client may refuse to read its result before it is dropped.
    pub write_timeout: Duration,
    /// How long a session may hold a transaction open without a statement.
    pub idle_in_transaction_timeout: Duration,
    /// Encoded pieces of a result (at most [`session::ROWS_PER_PIECE`] rows each) that wait for the client.
    pub pieces_buffered: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 200,
            connections_reserved: 3,
            sql_bytes_max: 1 << 20,
            depth_max: 500,
            statement_timeout: Duration::from_secs(300),
            startup_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
            idle_in_transaction_timeout: Duration::from_secs(600),
            pieces_buffered: 4,
        }
    }
}

/// A configurable listening address, so that an error can say what to change.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// The config key of the port.
    pub key: &'static str,
    /// The command-line flag of the port.
    pub flag: &'static str,
}

impl Endpoint {
    pub fn pg(address: SocketAddr) -> Self {
        Self { address, key: "server.pg_port", flag: "--pg-port" }
    }

    pub fn http(address: SocketAddr) -> Self {
        Self { address, key: "server.http_port", flag: "--http-port" }
    }

    pub fn flight(address: SocketAddr) -> Self {
        Self { address, key: "server.flight_port", flag: "--flight-port" }
    }

    /// Opens the socket where clients of this kind may come from, or says which setting to change.
    pub async fn listen_for(self, exposure: Exposure) -> Result<TcpListener, ServeError> {
        match exposure {
            Exposure::Loopback if !self.address.ip().is_loopback() => {
                Err(ServeError::NotLoopback { address: self.address })
            }
            _ => self.listen().await,
        }
    }

    /// Opens the socket, or says which setting to change.
    pub async fn listen(self) -> Result<TcpListener, ServeError> {
        let Self { address, key, flag } = self;
        TcpListener::bind(address).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::AddrInUse => ServeError::PortTaken { port: address.port(), key, flag },
            _ => ServeError::Bind { address, key, flag, source },
        })
    }
}
