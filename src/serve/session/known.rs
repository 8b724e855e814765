//! Statements that were prepared before, in whatever session: clients send the same text again and again, many of them
//! without keeping what they prepared.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::catalog::CatalogProvider;
use parking_lot::RwLock;

use super::Prepared;

/// More texts than this are forgotten together; those that are used come back at once.
const TEXTS_MAX: usize = 1024;
/// A longer text is not kept.
const BYTES_MAX: usize = 8192;

/// By default schema and text. Only lookups by key: their plans outlive snapshots, and say when they are outdated.
#[derive(Debug, Default)]
pub(super) struct Known(RwLock<HashMap<String, Texts>>);

type Texts = HashMap<Arc<str>, Arc<Prepared>>;

impl Known {
    pub(super) fn get(&self, schema: &str, sql: &str, pinned: &dyn CatalogProvider) -> Option<Arc<Prepared>> {
        let known = self.0.read();
        let prepared = known.get(schema)?.get(sql)?;
        let current = prepared.by_key.as_ref().is_some_and(|query| query.is_current(pinned));
        current.then(|| Arc::clone(prepared))
    }

    pub(super) fn keep(&self, schema: &str, sql: &str, prepared: &Arc<Prepared>) {
        if prepared.by_key.is_none() || sql.len() > BYTES_MAX {
            return;
        }
        let mut known = self.0.write();
        if known.values().map(Texts::len).sum::<usize>() >= TEXTS_MAX {
            known.clear();
        }
        known.entry(schema.to_owned()).or_default().insert(sql.into(), Arc::clone(prepared));
    }
}
