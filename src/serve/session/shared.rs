//! One run for all who ask the same at the same time, as the viewers of a dashboard do.
//!
//! ```text
//! asked  ─►  waits with all who ask the same  ─►  the run before has ended: a snapshot is pinned, the query runs once
//! ```
//! Who asks while the same is being answered waits for the next run of it, and is in time until that begins. So all that was
//! committed before somebody asked is in the answer, as if each had run alone, and a question is run by one at a time however
//! many ask it. Shared are questions of one user, outside of transactions, whose answer is small and the same for every
//! session; what turns out not to be so goes on as a run of one who asked, and the others run their own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::CatalogProvider;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::sql::sqlparser::ast;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;

use super::by_key::same_types;
use super::planning::Planner;
use super::policy::Rights;
use super::run::{Few, Planned, Work, few};
use super::statement::Query;
use super::transaction::{Pending, Pinned, Transaction};
use super::{Session, functions};
use crate::metrics::WorkOutcome;
use crate::serve::access_log::entry::Entry;
use crate::serve::error::QueryError;

/// What is asked. The same question has the same answer in one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    user: String,
    default_schema: String,
    statement: Arc<ast::Statement>,
    parameters: Vec<ScalarValue>,
}

/// The questions that are being answered.
#[derive(Debug, Default)]
pub(super) struct Questions(Mutex<HashMap<Question, Runs>>);

/// The runs of one question, while somebody waits for them.
#[derive(Debug, Default)]
struct Runs {
    /// Of the run that goes on.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// That which begins then.
    next: Option<WeakShared<Run>>,
}

type Run = BoxFuture<'static, Result<Arc<Ran>, QueryError>>;

/// What a run came to.
enum Ran {
    Rows {
        batch: RecordBatch,
        pinned: Arc<dyn CatalogProvider>,
    },
    /// Not for all. Whoever takes it goes on with it.
    Alone(Mutex<Option<Box<Planned>>>),
}

/// What one who asked has of it.
#[derive(Debug)]
pub(super) enum Answer {
    Rows(RecordBatch),
    /// To go on with.
    Run(Box<Planned>),
    /// Another one goes on with it.
    None,
}

impl Questions {
    /// The next run of a question, which is `run` unless there is one that has not begun.
    fn join(self: &Arc<Self>, question: Question, run: impl FnOnce() -> Run) -> Shared<Run> {
        let mut asked = self.0.lock();
        let runs = asked.entry(question.clone()).or_default();
        if let Some(next) = runs.next.as_ref().and_then(WeakShared::upgrade) {
            return next;
        }
        let (questions, turn, run) = (Arc::clone(self), Arc::clone(&runs.turn), run());
        let next = async move {
            let _turn = turn.lock_owned().await;
            let _begun = Begun::of(questions, question);
            run.await
        };
        let next = next.boxed().shared();
        runs.next = next.downgrade();
        next
    }
}

/// A run that has begun, until it ends or nobody waits for it any more.
struct Begun {
    questions: Arc<Questions>,
    question: Question,
}

impl Begun {
    fn of(questions: Arc<Questions>, question: Question) -> Self {
        if let Some(runs) = questions.0.lock().get_mut(&question) {
            runs.next = None;
        }
        Self { questions, question }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut asked = self.questions.0.lock();
        let waited_for = |runs: &Runs| runs.next.as_ref().is_some_and(|next| next.upgrade().is_some());
        if asked.get(&self.question).is_some_and(|runs| !waited_for(runs)) {
            asked.remove(&self.question);
        }
    }
}

impl Session {
    /// The transaction that was begun is for one query, which may read a later snapshot than was pinned before it.
    pub fn ask_once(&mut self) {
        if let Transaction::Open { alone, .. } = &mut self.transaction {
            *alone = true;
        }
    }

    /// Whether what is read may be of a later moment than when it was asked.
    fn reads_as_it_comes(&self) -> bool {
        let bound = match &self.transaction {
            Transaction::None => false,
            Transaction::Open { pending: Pending::None, alone, .. } => !alone,
            Transaction::Open { .. } => true,
        };
        !bound && self.settings.as_of().is_none()
    }

    /// The answer of a run that others share, with the columns that were `promised`.
    pub(super) async fn share(
        &mut self,
        query: &Query,
        parameters: Option<&ParamValues>,
        promised: Option<&SchemaRef>,
        entry: &mut Entry,
    ) -> Result<Answer, QueryError> {
        if query.tag != "SELECT" || query.catalog || !self.reads_as_it_comes() {
            return Ok(Answer::None);
        }
        let parameters = match parameters {
            None => Vec::new(),
            Some(ParamValues::List(values)) => values.iter().map(|value| value.value.clone()).collect(),
            Some(ParamValues::Map(_)) => return Ok(Answer::None),
        };
        let question = Question {
            user: self.identity.user.clone(),
            default_schema: self.settings.default_schema(),
            statement: Arc::clone(&query.ast),
            parameters: parameters.clone(),
        };
        let began = Instant::now();
        let run = self.service.questions.join(question, || self.run_of(query, parameters));
        let metrics = &self.service.metrics;
        let ran = run.await.inspect_err(|_| metrics.query(WorkOutcome::Failed, began.elapsed()))?;
        match ran.as_ref() {
            Ran::Alone(planned) => Ok(planned.lock().take().map_or(Answer::None, Answer::Run)),
            Ran::Rows { batch, pinned } => {
                let schema = promised.cloned().unwrap_or_else(|| batch.schema());
                if !same_types(&batch.schema(), &schema) {
                    return Ok(Answer::None);
                }
                metrics.shared(began.elapsed());
                entry.reads(self.service.database.generation(pinned.as_ref()));
                if let Transaction::Open { pinned: own, .. } = &mut self.transaction {
                    *own = Some(Pinned { as_of: None, catalog: Arc::clone(pinned) });
                }
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                let rows = RecordBatch::try_new_with_options(schema, batch.columns().to_vec(), &options);
                rows.map(Answer::Rows).map_err(|error| QueryError::internal(error.to_string()))
            }
        }
    }

    /// A run of a question, which reads what is there when it begins.
    fn run_of(&self, query: &Query, parameters: Vec<ScalarValue>) -> Run {
        let (place, query) = (Arc::clone(&self.place), query.clone());
        // As it is now, whatever the session sets later.
        let planner = Planner { settings: Arc::new(self.settings.fork()), ..self.planner() };
        let parameters = (!parameters.is_empty()).then(|| ParamValues::from(parameters));
        let run = async move {
            let turn = place.turn().await?;
            let database = &planner.service.database;
            let pinned = database.pin()?;
            let rights = Rights::of(database.as_ref(), &planner.identity.user)?;
            let planned = planner.plan(rights, pinned, &query, parameters).await?;
            let planned = Planned { turn: Some(turn), ..planned };
            if !is_for_all(&planned.plan)? {
                return Ok(Arc::new(Ran::Alone(Mutex::new(Some(Box::new(planned))))));
            }
            let pinned = Arc::clone(&planned.pinned);
            let few = Work::start(&planner.service.queries, few(Arc::clone(&planner.service.metrics), planned))
                .finish()
                .await??;
            Ok(Arc::new(match few {
                Few::All(batch) => Ran::Rows { batch, pinned },
                Few::Some(planned) => Ran::Alone(Mutex::new(Some(planned))),
            }))
        };
        run.boxed()
    }
}

/// Whether a query has the same answer for every session, and changes none.
fn is_for_all(plan: &LogicalPlan) -> Result<bool, QueryError> {
    let mut same = true;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            same &= !expr.exists(|part| {
                Ok(match part {
                    Expr::ScalarFunction(call) => {
                        call.func.signature().volatility == Volatility::Volatile
                            || functions::is_of_a_session(&call.func)
                    }
                    _ => false,
                })
            })?;
            Ok(if same { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
        })
    })?;
    Ok(same)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;
    use tokio::sync::Semaphore;

    use super::*;

    fn question(sql: &str) -> Question {
        let statement = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0);
        Question {
            user: "ana".to_owned(),
            default_schema: "public".to_owned(),
            statement: Arc::new(statement),
            parameters: vec![ScalarValue::from(1_i64)],
        }
    }

    /// Runs that end when they are let.
    struct Bench {
        questions: Arc<Questions>,
        begun: Arc<AtomicUsize>,
        ends: Arc<Semaphore>,
    }

    impl Bench {
        fn new() -> Self {
            Self { questions: Arc::default(), begun: Arc::default(), ends: Arc::new(Semaphore::new(0)) }
        }

        /// Asks, and waits for the answer in a task of its own.
        fn ask(&self, sql: &str) -> tokio::task::JoinHandle<Arc<Ran>> {
            let (begun, ends) = (Arc::clone(&self.begun), Arc::clone(&self.ends));
            let run = self.questions.join(question(sql), move || {
                async move {
                    begun.fetch_add(1, Ordering::SeqCst);
                    ends.acquire().await.unwrap().forget();
                    Ok(Arc::new(Ran::Alone(Mutex::new(None))))
                }
                .boxed()
            });
            tokio::spawn(async move { run.await.unwrap() })
        }

        async fn begun(&self) -> usize {
            // All tasks are of one thread.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            self.begun.load(Ordering::SeqCst)
        }
    }

    #[tokio::test]
    async fn who_asks_while_a_run_goes_on_waits_for_the_next_with_all_others() {
        let bench = Bench::new();
        let first = bench.ask("SELECT 1");
        assert_eq!(bench.begun().await, 1);
        let others = [bench.ask("SELECT 1"), bench.ask("select  1"), bench.ask("SELECT 1")];
        let another = bench.ask("SELECT 2");
        assert_eq!(bench.begun().await, 2, "another question runs beside it; the same waits");
        bench.ends.add_permits(1);
        let first = first.await.unwrap();
        assert_eq!(bench.begun().await, 3, "one run for the three");
        bench.ends.add_permits(2);
        let answers = futures::future::join_all(others).await;
        for answer in &answers {
            let answer = answer.as_ref().unwrap();
            assert!(Arc::ptr_eq(answer, answers[0].as_ref().unwrap()), "they have the same answer");
            assert!(!Arc::ptr_eq(answer, &first), "which began after they asked");
        }
        another.await.unwrap();
        assert!(bench.questions.0.lock().is_empty(), "nothing is kept of what nobody waits for");
    }

    #[tokio::test]
    async fn a_run_that_nobody_waits_for_any_more_holds_up_nobody() {
        let bench = Bench::new();
        let first = bench.ask("SELECT 1");
        assert_eq!(bench.begun().await, 1);
        let second = bench.ask("SELECT 1");
        assert_eq!(bench.begun().await, 1);
        first.abort();
        assert_eq!(bench.begun().await, 2, "the first was given up, and the second does not wait for its end");
        bench.ends.add_permits(1);
        second.await.unwrap();
        assert!(bench.questions.0.lock().is_empty());
    }
}
