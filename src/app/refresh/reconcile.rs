//! After each refresh: is what it computed from the archive what the delta had held?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::TableProvider;

use super::{Leaving, Refresher};
use crate::batch::run::{Fresh, Made, ViewInput};
use crate::batch::{Generation, ViewStates};
use crate::catalog::version;
use crate::merge::catalog::Names;
use crate::merge::provider::{UnionTable, in_memory};
use crate::merge::reconcile::history::Subject;
use crate::merge::reconcile::{Comparison, ReconcileError, compare};
use crate::metrics::Reconciled;
use crate::runtime::chain;

impl Refresher {
    /// Compares, for every view that was computed, the states from the archive with those that stood for the same
    /// records before: the delta's, and for a view that was computed in full those of the generation `before` too.
    /// Views that are `new` have nothing to be compared with.
    pub(super) async fn reconcile(
        &self,
        before: &Generation,
        made: &Made,
        leaving: &Leaving,
        names: &Names,
        new: &BTreeSet<String>,
    ) {
        let began = Instant::now();
        for (name, fresh) in &made.fresh {
            let Some(input) = names.views.get(name).filter(|_| !new.contains(name)) else { continue };
            let Some(delta) = leaving.get(&input.stream.name) else { continue };
            let in_full = fresh.after != delta.base();
            let same = |view: &&ViewStates| view.fingerprint == input.view.fingerprint();
            let base = before.views.get(name).filter(same);
            // Neither has one whose states have changed.
            if in_full && base.is_none() {
                continue;
            }
            let subject = Subject {
                generation: made.generation.id,
                at: self.means.clock.now(),
                view: version::unbound_instance(name).to_owned(),
                after: fresh.after,
                to: made.generation.epoch(&input.stream.name),
                restored_to: delta.restored_to(),
            };
            let leaving = delta.leaving(name, subject.to);
            let result = self.compared(input, fresh, base.filter(|_| in_full), leaving).await;
            self.note(&subject, result);
        }
        tracing::debug!(generation = made.generation.id.0, took = ?began.elapsed(), "batch and speed compared");
    }

    async fn compared(
        &self,
        ViewInput { view, .. }: &ViewInput,
        fresh: &Fresh,
        base: Option<&ViewStates>,
        leaving: Vec<RecordBatch>,
    ) -> Result<Comparison, ReconcileError> {
        let schema = view.state_schema();
        let fresh = ViewStates::of(fresh.run.iter().cloned().collect());
        let mut speed = vec![in_memory(&schema, leaving)?];
        speed.extend(base.map(|base| Arc::new(base.table(Arc::clone(&schema))) as Arc<dyn TableProvider>));
        let speed = Arc::new(UnionTable::new(Arc::clone(&schema), speed));
        compare(&self.means.engine, self.means.workers.threads, view, Arc::new(fresh.table(schema)), speed).await
    }

    fn note(&self, subject: &Subject, result: Result<Comparison, ReconcileError>) {
        let (view, metrics) = (subject.view.as_str(), &self.means.metrics);
        match &result {
            Ok(found) => {
                metrics.reconciled(view, Reconciled::Equal, found.groups - found.differing);
                metrics.reconciled(view, Reconciled::Differing, found.differing);
                if let Some(first) = found.differences.first() {
                    // It tells the log too.
                    self.means.health.poison(
                        "reconciliation",
                        format!(
                            "view {view}, generation {}: {} of {} groups differ between batch and speed over the \
                             epochs after {} up to {}; {} has {} in batch and {} in speed; more in \
                             system.reconciliation; a restart computes both from the archive",
                            subject.generation,
                            found.differing,
                            found.groups,
                            subject.after,
                            subject.to,
                            first.group,
                            first.batch.as_deref().unwrap_or("nothing"),
                            first.speed.as_deref().unwrap_or("nothing"),
                        ),
                    );
                }
            }
            Err(error) => {
                metrics.reconciliations_failed.inc();
                tracing::error!(view, error = chain(error), "batch and speed could not be compared");
            }
        }
        self.legacy.history.note(subject, result.map_err(|error| chain(&error)));
    }
}
