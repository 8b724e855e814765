//! One attempt at a generation: what it wrote, how far it is, and whether somebody wants it to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::physical_plan::ExecutionPlan;
use object_store::path::Path;
use parking_lot::Mutex;

use crate::runtime::Shutdown;

/// Shared by the work and by whoever watches or stops it.
#[derive(Debug, Default)]
pub struct Attempt {
    cancel: Shutdown,
    written: Mutex<Vec<String>>,
    /// Records of all views together, those of finished views, and what is being computed.
    rows: AtomicU64,
    rows_done: AtomicU64,
    bytes_done: AtomicU64,
    views_done: AtomicU64,
    working: Mutex<Option<Working>>,
}

#[derive(Debug)]
struct Working {
    view: String,
    rows: u64,
    /// Its scans know how many records they have read.
    plan: Option<Arc<dyn ExecutionPlan>>,
}

/// How far an attempt is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The view that is being computed.
    pub view: Option<String>,
    pub views_done: u64,
    /// Records read so far, and those to read.
    pub rows_done: u64,
    pub rows: u64,
    /// Bytes of files read so far.
    pub bytes_read: u64,
}

impl Attempt {
    /// Asks the work to stop. Once publication has begun it is carried out all the same.
    pub fn cancel(&self) {
        self.cancel.trigger();
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_triggered()
    }

    /// Completes once [`Attempt::cancel`] was called.
    pub async fn cancelled(&self) {
        self.cancel.wait().await;
    }

    /// Object names of all files that were begun, also of those that no generation names.
    pub fn written(&self) -> Vec<String> {
        self.written.lock().clone()
    }

    /// Notes a file before its first byte is written, so that none is forgotten.
    pub(super) fn writes(&self, path: &Path) {
        self.written.lock().push(path.to_string());
    }

    pub(super) fn expects(&self, rows: u64) {
        self.rows.store(rows, Ordering::Relaxed);
    }

    pub(super) fn begins(&self, view: &str, rows: u64) {
        *self.working.lock() = Some(Working { view: view.to_owned(), rows, plan: None });
    }

    pub(super) fn runs(&self, plan: &Arc<dyn ExecutionPlan>) {
        if let Some(working) = self.working.lock().as_mut() {
            let before = working.plan.replace(Arc::clone(plan));
            self.bytes_done.fetch_add(before.as_ref().map_or(0, bytes_read), Ordering::Relaxed);
        }
    }

    pub(super) fn ends(&self) {
        if let Some(working) = self.working.lock().take() {
            self.rows_done.fetch_add(working.rows, Ordering::Relaxed);
            self.bytes_done.fetch_add(working.plan.as_ref().map_or(0, bytes_read), Ordering::Relaxed);
            self.views_done.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn progress(&self) -> Progress {
        let working = self.working.lock();
        let now = working.as_ref().map_or(0, |working| match &working.plan {
            Some(plan) => rows_read(plan).min(working.rows),
            None => 0,
        });
        Progress {
            view: working.as_ref().map(|working| working.view.clone()),
            views_done: self.views_done.load(Ordering::Relaxed),
            rows_done: self.rows_done.load(Ordering::Relaxed) + now,
            rows: self.rows.load(Ordering::Relaxed),
            bytes_read: self.bytes_done.load(Ordering::Relaxed)
                + working.as_ref().and_then(|working| working.plan.as_ref()).map_or(0, bytes_read),
        }
    }
}

/// What the leaves of a running plan have read from files so far.
fn bytes_read(plan: &Arc<dyn ExecutionPlan>) -> u64 {
    let children = plan.children();
    if children.is_empty() {
        let scanned = plan.metrics().and_then(|metrics| metrics.sum_by_name("bytes_scanned"));
        return scanned.map_or(0, |bytes| bytes.as_usize() as u64);
    }
    children.into_iter().map(bytes_read).sum()
}

/// What the leaves of a running plan have given so far.
fn rows_read(plan: &Arc<dyn ExecutionPlan>) -> u64 {
    let children = plan.children();
    if children.is_empty() {
        return plan.metrics().and_then(|metrics| metrics.output_rows()).map_or(0, |rows| rows as u64);
    }
    children.into_iter().map(rows_read).sum()
}
