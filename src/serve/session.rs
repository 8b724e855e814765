//! The query service: sessions that parse, check, plan and run statements for any adapter.
//!
//! Planning and execution happen on the query runtime; the adapter's threads only move bytes. A statement
//! pins one snapshot when it is planned and holds it until its last row; inside a transaction all share one.

mod by_key;
pub mod copy;
pub mod cursor;
mod dialect;
mod escape;
pub mod functions;
mod guard;
mod log;
mod names;
mod planning;
mod policy;
mod portions;
mod psql;
mod run;
mod settings;
mod shared;
pub mod statement;
mod system;
mod transaction;
pub mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::CatalogProvider;
use datafusion::common::ParamValues;
use datafusion::execution::SessionState;
use tokio::runtime::Handle;
use tokio::sync::watch;

use self::by_key::Known;
use self::copy::Copy;
use self::cursor::{Cursor, CursorStatement};
use self::functions::Identity;
use self::planning::{keep_promise, parameter_types};
use self::run::Work;
pub use self::run::{Encode, Planned, ROWS_PER_PIECE, Rows, Stop};
use self::settings::{AS_OF, READ_ONLY};
pub use self::settings::{SERVER_VERSION, Settings};
use self::shared::{Answer, Questions};
use self::statement::{Query, SetScope, Statement, StatementParser};
use self::system::System;
use self::transaction::{Pending, Transaction};
use self::write::WriteKind;
use super::access_log::Weight;
use super::access_log::entry::{Entry, Visit};
use super::auth::passwords::Passwords;
use super::auth::{Client, Gate, Method, Origin, Place};
use super::error::{QueryError, SqlState};
use super::{Database, DefineError, Limits, ServeError, ViewChange};
use crate::merge::point::ByKey;
use crate::metrics::Metrics;

/// What `SHOW` answers with the certificate of the snapshot.
const SNAPSHOT: &str = "viewledger.snapshot";

/// Serves statements of one [`Database`] to any number of sessions.
#[derive(Debug)]
pub struct QueryService {
    database: Arc<dyn Database>,
    template: SessionState,
    system: System,
    parser: StatementParser,
    known: Known,
    questions: Arc<Questions>,
    limits: Limits,
    gate: Arc<Gate>,
    queries: Handle,
    metrics: Arc<Metrics>,
}

impl QueryService {
    /// `queries` is the runtime for planning and execution; see [`query_runtime`]. Clients are taken to be who they say.
    pub fn new(
        database: Arc<dyn Database>,
        limits: Limits,
        queries: Handle,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, ServeError> {
        let gate = Gate::new(Arc::clone(&database), Method::Trust, Passwords::default(), Arc::clone(&metrics));
        Self::guarded(database, limits, queries, metrics, Arc::new(gate))
    }

    /// As [`QueryService::new`], with clients that are let in by `gate`.
    pub fn guarded(
        database: Arc<dyn Database>,
        limits: Limits,
        queries: Handle,
        metrics: Arc<Metrics>,
        gate: Arc<Gate>,
    ) -> Result<Arc<Self>, ServeError> {
        let (system, template) = System::new(Arc::clone(&database), gate.log().cloned())
            .map_err(|error| ServeError::Catalog(Box::new(error)))?;
        let parser = StatementParser::new(&limits);
        let known = Known::default();
        let questions = Arc::default();
        Ok(Arc::new(Self { database, template, system, parser, known, questions, limits, gate, queries, metrics }))
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub fn database(&self) -> &Arc<dyn Database> {
        &self.database
    }

    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Reads passwords and the definitions in files again. With a fault in either, it stays as it was.
    pub async fn reload(&self) -> Result<(), DefineError> {
        self.gate.reload()?;
        self.database.reload().await
    }

    /// A new session of a client that was let in; `backend` is its number.
    pub fn connect(self: &Arc<Self>, client: Client, backend: i32) -> Session {
        let Client { user, origin, place } = client;
        Session {
            service: Arc::clone(self),
            settings: Arc::new(Settings::new(&user, &self.limits)),
            role: user.as_str().into(),
            identity: Identity { user, backend },
            origin,
            place: Arc::new(place),
            visit: None,
            cancels: watch::Sender::new(0),
            transaction: Transaction::None,
            cursors: BTreeMap::new(),
        }
    }
}

/// A runtime for planning and execution, whose stacks bear the deepest statement that is let through.
pub fn query_runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads.max(1))
        .thread_name("query")
        // Reserved, not used: recursion over plans is deep, and deeper without optimization.
        .thread_stack_size(64 << 20)
        .enable_all()
        .build()
}

/// One client's state.
#[derive(Debug)]
pub struct Session {
    service: Arc<QueryService>,
    settings: Arc<Settings>,
    identity: Identity,
    cancels: watch::Sender<u64>,
    transaction: Transaction,
    cursors: BTreeMap<String, Cursor>,
    /// As the access log names it.
    role: Arc<str>,
    origin: Origin,
    /// One of its role's connections.
    place: Arc<Place>,
    /// Told of when it begins and when it ends.
    visit: Option<Arc<Visit>>,
}

/// A statement after its parse, ready to be executed any number of times.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub statement: Statement,
    /// Columns of the result, when there is one.
    pub schema: Option<SchemaRef>,
    /// Types of `$1`, `$2`, ...; None where the statement does not say.
    pub parameters: Vec<Option<DataType>>,
    /// How it is answered when it asks for few keys of views.
    pub(super) by_key: Option<Arc<ByKey>>,
}

/// What executing a statement gives.
#[derive(Debug)]
pub enum Outcome<T> {
    Rows {
        schema: SchemaRef,
        rows: Rows<T>,
        tag: &'static str,
    },
    /// A small result that was at hand.
    Table {
        batch: RecordBatch,
        tag: &'static str,
    },
    Done(&'static str),
    /// So many rows of a reference table were changed.
    Changed {
        rows: u64,
        tag: &'static str,
    },
    Began,
    /// `COMMIT` or `ROLLBACK`; holds the tag.
    Ended(&'static str),
    /// The adapter forgets prepared statements: one, or all.
    Forget {
        name: Option<String>,
        tag: &'static str,
    },
    /// Settings changed; the adapter reports those that it promised to.
    Set(&'static str),
}

impl Session {
    /// The statements of one message.
    pub async fn parse(&self, sql: &str) -> Result<Vec<Statement>, QueryError> {
        let parsed = self.parse_message(sql).await;
        parsed.inspect_err(|error| self.entry(sql.into(), Weight::Passing).end(None, Some(error.state)))
    }

    async fn parse_message(&self, sql: &str) -> Result<Vec<Statement>, QueryError> {
        // A short text takes microseconds; a long one leaves the I/O thread.
        if sql.len() <= 4096 {
            return self.service.parser.parse(sql);
        }
        let (service, sql) = (Arc::clone(&self.service), sql.to_owned());
        Work::start(&self.service.queries, async move { service.parser.parse(&sql) }).finish().await?
    }

    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    pub fn user(&self) -> &str {
        &self.identity.user
    }

    /// Where a cancel request goes.
    pub fn cancels(&self) -> watch::Sender<u64> {
        self.cancels.clone()
    }

    /// The limits of the statement that begins now. What computes views takes as long as it takes, unless the session
    /// has set a limit itself.
    pub fn stop(&self, statement: &Statement) -> Stop {
        let timeout = match statement {
            Statement::Refresh(..) | Statement::Define(_) | Statement::Reload => {
                self.settings.own_statement_timeout()
            }
            _ => self.settings.statement_timeout(),
        };
        Stop::new(&self.cancels, timeout)
    }

    pub fn in_transaction(&self) -> bool {
        matches!(self.transaction, Transaction::Open { .. })
    }

    /// Finds the types of a statement's parameters and results.
    pub async fn prepare(&mut self, statement: Statement) -> Result<Prepared, QueryError> {
        let entry = self.entry(statement.text(), Weight::Passing);
        let prepared = self.describe(statement).await;
        match &prepared {
            // Told of when it is executed.
            Ok(_) => entry.forget(),
            Err(error) => entry.end(None, Some(error.state)),
        }
        prepared
    }

    async fn describe(&mut self, statement: Statement) -> Result<Prepared, QueryError> {
        let mut by_key = None;
        let (schema, parameters) = match &statement {
            Statement::Query(query) => {
                let planned = self.plan(query, None).await?;
                let schema = shown_schema(query, Arc::new(planned.plan.schema().as_arrow().clone()));
                let parameters = parameter_types(query, &planned.plan)?;
                if query.tag == "SELECT" && !query.catalog {
                    by_key = self.by_key(planned).await?;
                }
                (Some(schema), parameters)
            }
            Statement::Copy(Copy { query, .. }) => {
                let planned = self.plan(query, None).await?;
                (None, parameter_types(query, &planned.plan)?)
            }
            Statement::Cursor(CursorStatement::Declare { query, .. }) => {
                let planned = self.plan(query, None).await?;
                (None, parameter_types(query, &planned.plan)?)
            }
            Statement::Cursor(CursorStatement::Fetch { name, silent: false, .. }) => {
                (self.cursor_schema(name), Vec::new())
            }
            Statement::CopyIn(copy) => {
                self.check_copy(copy).await?;
                (None, Vec::new())
            }
            Statement::Show(name) => (Some(show_schema(name.as_deref())), Vec::new()),
            Statement::Reload => (Some(reloaded()?.schema()), Vec::new()),
            Statement::Write(write) if write.kind != WriteKind::Truncate => {
                let table = write.table(&self.settings.default_schema())?;
                self.permit_write(write, &table)?;
                let pinned = self.service.database.pin_to_change(&table, write.rows())?;
                let planned = self.plan_over(pinned, &write.query, None).await?;
                (None, parameter_types(&write.query, &planned.plan)?)
            }
            _ => (None, Vec::new()),
        };
        Ok(Prepared { statement, schema, parameters, by_key })
    }

    /// Runs a statement. The result of one that was `prepared` has the columns that were described then. `encode` makes
    /// the encoder for the result's schema.
    pub async fn execute<T, F>(
        &mut self,
        statement: &Statement,
        parameters: Option<ParamValues>,
        prepared: Option<&Prepared>,
        encode: F,
    ) -> Result<Outcome<T>, QueryError>
    where
        T: Send + 'static,
        F: FnOnce(&SchemaRef) -> Result<Encode<T>, QueryError>,
    {
        let weight = if statement.changes() { Weight::Kept } else { Weight::Passing };
        let mut entry = self.entry(statement.text(), weight);
        let done = match entry.ready().await {
            Ok(()) => self.carry_out(statement, (parameters, prepared), encode, &mut entry).await,
            Err(error) => Err(error),
        };
        let (rows, state) = match &done {
            Ok(Outcome::Changed { rows, .. }) => (Some(*rows), None),
            Ok(Outcome::Table { batch, .. }) => (Some(batch.num_rows() as u64), None),
            Ok(_) => (None, None),
            Err(error) => (None, Some(error.state)),
        };
        entry.end_durably(rows, state).await;
        done
    }

    async fn carry_out<T, F>(
        &mut self,
        statement: &Statement,
        (parameters, prepared): (Option<ParamValues>, Option<&Prepared>),
        encode: F,
        entry: &mut Entry,
    ) -> Result<Outcome<T>, QueryError>
    where
        T: Send + 'static,
        F: FnOnce(&SchemaRef) -> Result<Encode<T>, QueryError>,
    {
        if let Some(prepared) = prepared
            && let Some(batch) = self.look_up(prepared, parameters.as_ref(), entry).await?
        {
            return Ok(Outcome::Table { batch, tag: "SELECT" });
        }
        match statement {
            Statement::Query(query) | Statement::Copy(Copy { query, .. }) => {
                let promised = prepared.and_then(|prepared| prepared.schema.as_ref());
                let shared = match statement {
                    Statement::Query(_) => self.share(query, parameters.as_ref(), promised, entry).await?,
                    _ => Answer::None,
                };
                let planned = match shared {
                    Answer::Rows(batch) => return Ok(Outcome::Table { batch, tag: "SELECT" }),
                    Answer::Run(planned) => *planned,
                    Answer::None => {
                        let turn = Some(self.place.turn().await?);
                        Planned { turn, ..self.plan(query, parameters).await? }
                    }
                };
                let mut planned = match promised {
                    Some(promised) if query.tag == "SELECT" => keep_promise(planned, promised)?,
                    _ => planned,
                };
                let schema = shown_schema(query, Arc::new(planned.plan.schema().as_arrow().clone()));
                let encode = encode(&schema)?;
                let encode =
                    if query.tag == "EXPLAIN" { encode.after(|batch| explain_lines(&batch)) } else { encode };
                let service = &self.service;
                let buffered = service.limits.pieces_buffered;
                entry.reads(service.database.generation(planned.pinned.as_ref()));
                planned.entry = entry.take();
                let rows = run::run(&service.queries, &service.metrics, planned, buffered, encode);
                Ok(Outcome::Rows { schema, rows, tag: query.tag })
            }
            Statement::Write(write) => {
                Ok(Outcome::Changed { rows: self.write(write, parameters).await?, tag: write.query.tag })
            }
            Statement::Cursor(cursor) => self.on_cursor(cursor, parameters).await,
            other => self.execute_small(other).await,
        }
    }

    async fn execute_small<T>(&mut self, statement: &Statement) -> Result<Outcome<T>, QueryError> {
        Ok(match statement {
            // Handled by the caller, which knows how to encode rows.
            Statement::Query(_) | Statement::Copy(_) | Statement::Cursor(_) | Statement::Write(_) => {
                return Err(QueryError::internal("not a small statement"));
            }
            Statement::CopyIn(_) => return Err(copy_elsewhere()),
            Statement::Show(name) => Outcome::Table { batch: self.show(name.as_deref())?, tag: "SHOW" },
            Statement::Set { name, value, scope } => {
                if name == AS_OF
                    && let Some(at) = value.as_deref().filter(|at| !at.is_empty())
                {
                    // Told now, not by the next query.
                    drop(self.service.database.pin_as_of(at)?);
                }
                if *scope == SetScope::Session || self.in_transaction() {
                    self.settings.set(name, value.as_deref(), *scope)?;
                }
                Outcome::Set("SET")
            }
            Statement::Reset(Some(name)) => {
                self.settings.set(name, None, SetScope::Session)?;
                Outcome::Set("RESET")
            }
            Statement::Reset(None) => {
                self.settings.reset_all();
                Outcome::Set("RESET")
            }
            Statement::Begin { read_only } => {
                if !self.in_transaction() {
                    self.transaction = Transaction::Open { pinned: None, pending: Pending::None, alone: false };
                }
                if *read_only {
                    self.settings.set(READ_ONLY, Some("on"), SetScope::Local)?;
                }
                Outcome::Began
            }
            Statement::Commit => self.end_with_changes().await?,
            Statement::Rollback => self.end("ROLLBACK"),
            Statement::Savepoint(tag) if self.in_transaction() => Outcome::Done(tag),
            Statement::Savepoint(tag) => {
                let message = format!("{tag} can only be used in transaction blocks");
                return Err(QueryError::new(SqlState("25P01"), message));
            }
            Statement::Refresh(view, scope) => {
                self.permit_refresh(view)?;
                let generation = self.service.database.refresh(Some(view), *scope).await?;
                tracing::info!(view, generation, user = self.identity.user, "refreshed on a client's request");
                Outcome::Done("REFRESH MATERIALIZED VIEW")
            }
            Statement::Define(change) => {
                if self.in_transaction() {
                    let message = format!("{} cannot run inside a transaction block", tag(change));
                    return Err(QueryError::new(SqlState("25001"), message));
                }
                self.rights()?.define(change)?;
                self.service.database.change_view(change, &self.identity.user).await?;
                Outcome::Done(tag(change))
            }
            Statement::Reload => {
                self.rights()?.execute("pg_reload_conf")?;
                self.service.reload().await?;
                tracing::info!(user = self.identity.user, "definitions read again on a client's request");
                Outcome::Table { batch: reloaded()?, tag: "SELECT" }
            }
            Statement::Deallocate(name) => Outcome::Forget { name: name.clone(), tag: "DEALLOCATE" },
            Statement::Discard { all: true } => {
                self.settings.reset_all();
                self.cursors.clear();
                Outcome::Forget { name: None, tag: "DISCARD ALL" }
            }
            Statement::Discard { all: false } => Outcome::Done("DISCARD"),
            Statement::Ignored(tag) => Outcome::Done(tag),
        })
    }

    /// A session of the same user with the same settings, outside any transaction.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            service: Arc::clone(&self.service),
            settings: Arc::new(self.settings.fork()),
            identity: self.identity.clone(),
            cancels: watch::Sender::new(0),
            transaction: Transaction::None,
            cursors: BTreeMap::new(),
            role: Arc::clone(&self.role),
            origin: self.origin,
            place: Arc::clone(&self.place),
            visit: self.visit.clone(),
        }
    }

    /// The catalog that a query which came now would read.
    pub fn catalog(&mut self) -> Result<Arc<dyn CatalogProvider>, QueryError> {
        self.pin()
    }

    /// What a query that came now would read, and what is missing in it.
    pub fn certificate(&mut self) -> Result<String, QueryError> {
        let pinned = self.pin()?;
        let certificate = self.service.database.certificate(pinned.as_ref());
        certificate.map(|certificate| certificate.json).ok_or_else(|| QueryError::refused("SHOW of the snapshot"))
    }

    fn show(&mut self, name: Option<&str>) -> Result<RecordBatch, QueryError> {
        let schema = show_schema(name);
        let columns: Vec<Vec<String>> = match name {
            Some(name) if name == SNAPSHOT => vec![vec![self.certificate()?]],
            Some(name) => vec![vec![self.settings.show(name)?.1]],
            None => {
                let all = self.settings.all();
                let (names, values) = all.into_iter().map(|(name, value)| (name.to_owned(), value)).unzip();
                vec![names, values]
            }
        };
        let arrays = columns.into_iter().map(|values| Arc::new(StringArray::from(values)) as _).collect();
        RecordBatch::try_new(schema, arrays).map_err(|error| QueryError::internal(error.to_string()))
    }
}

fn copy_elsewhere() -> QueryError {
    QueryError::new(SqlState::FEATURE_NOT_SUPPORTED, "COPY FROM STDIN is of Postgres wire")
        .hint("elsewhere, INSERT adds rows")
}

fn tag(change: &ViewChange) -> &'static str {
    match change {
        ViewChange::Create { .. } => "CREATE MATERIALIZED VIEW",
        ViewChange::Promote { .. } => "ALTER MATERIALIZED VIEW",
        ViewChange::Drop { .. } => "DROP MATERIALIZED VIEW",
    }
}

fn show_schema(name: Option<&str>) -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(match name {
        Some(name) => Schema::new(vec![text(name)]),
        None => Schema::new(vec![text("name"), text("setting")]),
    })
}

/// What `SELECT pg_reload_conf()` gives.
fn reloaded() -> Result<RecordBatch, QueryError> {
    let done: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
    RecordBatch::try_from_iter([("pg_reload_conf", done)]).map_err(|error| QueryError::internal(error.to_string()))
}

/// What the client sees of a query's own schema.
fn shown_schema(query: &Query, schema: SchemaRef) -> SchemaRef {
    if query.tag == "EXPLAIN" {
        return Arc::new(Schema::new(vec![Field::new("QUERY PLAN", DataType::Utf8, false)]));
    }
    let names = names::shown_names(&query.ast);
    if names.len() != schema.fields().len() || names.iter().all(Option::is_none) {
        return schema;
    }
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .zip(names)
        .map(|(field, name)| match name {
            Some(name) => field.as_ref().clone().with_name(name),
            None => field.as_ref().clone(),
        })
        .collect();
    Arc::new(Schema::new(fields))
}

/// A row for each line of a plan, as PostgreSQL shows plans.
fn explain_lines(batch: &RecordBatch) -> Result<RecordBatch, QueryError> {
    let text = |index: usize| -> Result<StringArray, QueryError> {
        let column =
            cast(batch.column(index), &DataType::Utf8).map_err(|error| QueryError::internal(error.to_string()))?;
        Ok(column.as_string::<i32>().clone())
    };
    let (kinds, plans) = (text(0)?, text(1)?);
    let mut lines = Vec::new();
    for (kind, plan) in kinds.iter().zip(plans.iter()) {
        lines.push(kind.unwrap_or_default().to_owned());
        lines.extend(plan.unwrap_or_default().lines().map(|line| format!("  {line}")));
    }
    let schema = Arc::new(Schema::new(vec![Field::new("QUERY PLAN", DataType::Utf8, false)]));
    RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(lines))])
        .map_err(|error| QueryError::internal(error.to_string()))
}
