//! Running a plan off the I/O threads: a bounded stream of results that a client can stop at any moment.

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::CatalogProvider;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinHandle;

use super::portions::Portions;
use crate::metrics::{Metrics, WorkOutcome};
use crate::serve::access_log::entry::Entry;
use crate::serve::error::{QueryError, SqlState};

/// A result of more rows, or of more bytes, is not held as a whole.
const FEW_ROWS: usize = 4096;
const FEW_BYTES: usize = 1 << 20;

/// Rows that are encoded, sent and cancelled as one.
pub const ROWS_PER_PIECE: usize = 1024;

/// Turns pieces of a result into what the adapter sends. Runs on the query runtime.
pub struct Encode<T> {
    rows_per_piece: usize,
    patience: Option<Duration>,
    work: Box<dyn FnMut(RecordBatch) -> Result<T, QueryError> + Send>,
    end: Option<End<T>>,
}

/// Makes what comes behind the last row.
type End<T> = Box<dyn FnOnce() -> Result<T, QueryError> + Send>;

impl<T: 'static> Encode<T> {
    /// `work` gets at most so many rows at once.
    pub fn new(
        rows_per_piece: usize,
        work: impl FnMut(RecordBatch) -> Result<T, QueryError> + Send + 'static,
    ) -> Self {
        Self { rows_per_piece: rows_per_piece.max(1), patience: None, work: Box::new(work), end: None }
    }

    /// Gives the statement up when nobody takes a piece for so long.
    #[must_use]
    pub fn patient_for(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    /// Sends what `end` makes once the last row was sent, and where there is none.
    #[must_use]
    pub fn ending(self, end: impl FnOnce() -> Result<T, QueryError> + Send + 'static) -> Self {
        Self { end: Some(Box::new(end)), ..self }
    }

    /// As this, of what `change` makes of each piece.
    pub(super) fn after(
        self,
        mut change: impl FnMut(RecordBatch) -> Result<RecordBatch, QueryError> + Send + 'static,
    ) -> Self {
        let Self { rows_per_piece, patience, mut work, end } = self;
        Self { rows_per_piece, patience, work: Box::new(move |batch| work(change(batch)?)), end }
    }
}

impl<T> std::fmt::Debug for Encode<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encode").field("rows_per_piece", &self.rows_per_piece).finish_non_exhaustive()
    }
}

/// A plan that is ready to run, with everything it needs to stay alive.
#[derive(Debug)]
pub struct Planned {
    pub(super) plan: LogicalPlan,
    pub(super) state: SessionState,
    /// The snapshot; released when the last row was produced or the statement stopped.
    pub(super) pinned: Arc<dyn CatalogProvider>,
    /// Told how it ends.
    pub(super) entry: Entry,
    /// The right to run.
    pub(super) turn: Option<OwnedSemaphorePermit>,
    /// Its rows, where it runs already.
    pub(super) begun: Option<Begun>,
}

/// The rows of a plan that runs.
pub(super) struct Begun(SendableRecordBatchStream);

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Begun")
    }
}

/// What ends a statement early: its client, or its timeout. One per execution.
#[derive(Debug)]
pub struct Stop {
    cancelled: watch::Receiver<u64>,
    deadline: Option<tokio::time::Instant>,
}

impl Stop {
    /// Sees cancellations from now on.
    pub fn new(cancels: &watch::Sender<u64>, timeout: Option<Duration>) -> Self {
        let deadline = timeout.map(|timeout| tokio::time::Instant::now() + timeout);
        Self { cancelled: cancels.subscribe(), deadline }
    }

    /// The outcome of `work`, or why it was stopped; then `work` is dropped.
    pub async fn race<T>(&mut self, work: impl Future<Output = T>) -> Result<T, QueryError> {
        tokio::pin!(work);
        self.check()?;
        // Much work is done at once: it needs no timer, and nobody to wake it.
        if let Poll::Ready(done) = futures::poll!(work.as_mut()) {
            return Ok(done);
        }
        let deadline = self.deadline;
        tokio::select! {
            biased;
            // Both branches go on forever when they cannot happen: no sender, no deadline.
            changed = self.cancelled.changed() => match changed {
                Ok(()) => Err(QueryError::cancelled()),
                Err(_) => Err(QueryError::cancelled()),
            },
            () = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => Err(QueryError::timed_out()),
            done = work => Ok(done),
        }
    }

    /// Why there is to be no more work, now.
    fn check(&self) -> Result<(), QueryError> {
        if self.cancelled.has_changed().unwrap_or(true) {
            return Err(QueryError::cancelled());
        }
        match self.deadline {
            Some(at) if tokio::time::Instant::now() >= at => Err(QueryError::timed_out()),
            _ => Ok(()),
        }
    }
}

/// The results of a running statement. Dropping it stops the work.
#[derive(Debug)]
pub struct Rows<T> {
    pieces: mpsc::Receiver<Piece<T>>,
    _work: Work<()>,
}

#[derive(Debug)]
enum Piece<T> {
    Rows(T),
    Failed(QueryError),
    End,
}

impl<T> Rows<T> {
    /// The next piece; None after the last. An error ends it.
    pub async fn next(&mut self) -> Option<Result<T, QueryError>> {
        match self.pieces.recv().await {
            Some(Piece::Rows(rows)) => Some(Ok(rows)),
            Some(Piece::Failed(error)) => Some(Err(error)),
            Some(Piece::End) => None,
            // The task ended without saying so.
            None => Some(Err(QueryError::internal("the query's worker panicked; the server's log says where"))),
        }
    }
}

/// A task of the query runtime that ends when its owner does.
#[derive(Debug)]
pub(super) struct Work<T>(JoinHandle<T>);

impl<T: Send + 'static> Work<T> {
    pub(super) fn start(queries: &Handle, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(queries.spawn(work))
    }

    pub(super) async fn finish(mut self) -> Result<T, QueryError> {
        (&mut self.0).await.map_err(|error| {
            tracing::error!(%error, "a query's worker panicked");
            QueryError::internal("the query's worker panicked; the server's log says where")
        })
    }
}

impl<T> Drop for Work<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts `planned` on the query runtime. At most `buffered` pieces wait for a slow client.
pub(super) fn run<T: Send + 'static>(
    queries: &Handle,
    metrics: &Arc<Metrics>,
    mut planned: Planned,
    buffered: usize,
    mut encode: Encode<T>,
) -> Rows<T> {
    let (sender, pieces) = mpsc::channel(buffered.max(1));
    let metrics = Arc::clone(metrics);
    let (entry, turn) = (planned.entry.take(), planned.turn.take());
    let work = Work::start(queries, async move {
        let mut running = Running::new(metrics, entry, turn);
        let last = match produce(planned, &sender, &mut encode, &mut running.rows).await {
            Ok(()) => {
                running.outcome = WorkOutcome::Done;
                running.state = None;
                Piece::End
            }
            Err(error) => {
                running.outcome = WorkOutcome::Failed;
                running.state = Some(error.state);
                if error.state == SqlState::INTERNAL {
                    tracing::error!(%error, "a query failed for a reason that is not the client's");
                }
                Piece::Failed(error)
            }
        };
        drop(running);
        // A client that went away hears nothing.
        let _ = sender.send(last).await;
    });
    Rows { pieces, _work: work }
}

async fn started(plan: &LogicalPlan, state: &SessionState) -> Result<SendableRecordBatchStream, QueryError> {
    let physical = interruptible(state.create_physical_plan(plan).await?)?;
    Ok(execute_stream(physical, state.task_ctx())?)
}

/// The rows of a query that has few.
pub(super) enum Few {
    All(RecordBatch),
    /// There are more than are kept here.
    Some(Box<Planned>),
}

/// Runs `planned` and keeps its rows in memory, if there are few.
pub(super) async fn few(metrics: Arc<Metrics>, mut planned: Planned) -> Result<Few, QueryError> {
    let _counted = Counted::begin(metrics);
    let mut rest = started(&planned.plan, &planned.state).await?;
    let schema = rest.schema();
    let (mut rows, mut bytes, mut batches) = (0, 0, Vec::new());
    while let Some(batch) = rest.next().await.transpose()? {
        rows += batch.num_rows();
        bytes += batch.get_array_memory_size();
        batches.push(batch);
        if rows > FEW_ROWS || bytes > FEW_BYTES {
            let all = futures::stream::iter(batches.into_iter().map(Ok)).chain(rest);
            planned.begun = Some(Begun(Box::pin(RecordBatchStreamAdapter::new(schema, all))));
            return Ok(Few::Some(Box::new(planned)));
        }
    }
    let all = concat_batches(&schema, &batches).map_err(|error| QueryError::internal(error.to_string()))?;
    Ok(Few::All(all))
}

async fn produce<T>(
    planned: Planned,
    sender: &mpsc::Sender<Piece<T>>,
    encode: &mut Encode<T>,
    produced: &mut u64,
) -> Result<(), QueryError> {
    let Planned { plan, state, pinned, begun, .. } = planned;
    let mut batches = match begun {
        Some(Begun(batches)) => batches,
        None => started(&plan, &state).await?,
    };
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        let mut start = 0;
        while start < batch.num_rows() {
            let rows = encode.rows_per_piece.min(batch.num_rows() - start);
            let piece = (encode.work)(batch.slice(start, rows))?;
            send(sender, piece, encode.patience).await?;
            start += rows;
            *produced += rows as u64;
        }
    }
    if let Some(end) = encode.end.take() {
        send(sender, end()?, encode.patience).await?;
    }
    drop(pinned);
    Ok(())
}

async fn send<T>(sender: &mpsc::Sender<Piece<T>>, piece: T, patience: Option<Duration>) -> Result<(), QueryError> {
    let sent = sender.send(Piece::Rows(piece));
    let sent = match patience {
        Some(patience) => tokio::time::timeout(patience, sent).await,
        None => Ok(sent.await),
    };
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(QueryError::cancelled()),
        Err(_) => Err(QueryError::timed_out().detail("the client did not read its result")),
    }
}

/// Lets operators that make many rows from few give way between batches. The engine's own rule watches only
/// the sources, so a join whose inputs are in memory would not notice that its query was stopped
/// (datafusion#19358).
fn interruptible(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>, QueryError> {
    let wrapped = plan.transform_up(|node| {
        let node = match node.children().as_slice() {
            [build, probe] if node.name() == "NestedLoopJoinExec" => {
                let children = vec![Arc::clone(build), Portions::of(Arc::clone(probe))];
                replace_children_if_necessary(Arc::clone(&node), children)?
            }
            _ => node,
        };
        let multiplies = node.children().len() > 1 || node.name() == "UnnestExec";
        Ok(if multiplies {
            Transformed::yes(Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>)
        } else {
            Transformed::no(node)
        })
    })?;
    Ok(wrapped.data)
}

/// Counts a statement while it runs.
struct Counted(Arc<Metrics>);

impl Counted {
    fn begin(metrics: Arc<Metrics>) -> Self {
        metrics.queries_running.inc();
        Self(metrics)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.queries_running.dec();
    }
}

/// Counts a statement while it runs and says how it ended, also when its task is dropped.
struct Running {
    counted: Counted,
    started: Instant,
    outcome: WorkOutcome,
    rows: u64,
    state: Option<SqlState>,
    entry: Entry,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Running {
    fn new(metrics: Arc<Metrics>, entry: Entry, turn: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            counted: Counted::begin(metrics),
            started: Instant::now(),
            outcome: WorkOutcome::Cancelled,
            rows: 0,
            state: Some(SqlState::CANCELLED),
            entry,
            _turn: turn,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.counted.0.query(self.outcome, self.started.elapsed());
        self.entry.take().end(Some(self.rows), self.state);
    }
}
