//! Lookups by key in a session: found when a statement is prepared, answered when it is executed.
//!
//! What was prepared is known to all sessions: clients send the same text again and again, many of them without keeping
//! what they prepared.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::CatalogProvider;
use datafusion::common::ParamValues;
use parking_lot::RwLock;

use super::policy::Rights;
use super::run::{Planned, Work};
use super::{Prepared, Session};
use crate::merge::point::ByKey;
use crate::serve::access_log::entry::Entry;
use crate::serve::error::QueryError;

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

impl Session {
    /// What was prepared of this text before, by anybody, and would be prepared again.
    pub fn known(&mut self, sql: &str) -> Option<Arc<Prepared>> {
        let pinned = self.pin().ok()?;
        self.service.known.get(&self.settings.default_schema(), sql, pinned.as_ref())
    }

    /// Keeps what was prepared of a text, where it serves others.
    pub fn keep(&self, sql: &str, prepared: &Arc<Prepared>) {
        self.service.known.keep(&self.settings.default_schema(), sql, prepared);
    }

    /// How a planned query is answered by key; None when it is not for few keys of views.
    pub(super) async fn by_key(&self, planned: Planned) -> Result<Option<Arc<ByKey>>, QueryError> {
        let database = Arc::clone(&self.service.database);
        let work = async move { database.by_key(&planned.plan, &planned.state).await };
        Work::start(&self.service.queries, work).finish().await
    }

    /// The answer by key, of the schema that was described; None when the general path is to give it.
    pub(super) async fn look_up(
        &mut self,
        prepared: &Prepared,
        parameters: Option<&ParamValues>,
        entry: &mut Entry,
    ) -> Result<Option<RecordBatch>, QueryError> {
        let (Some(query), Some(schema)) = (&prepared.by_key, &prepared.schema) else { return Ok(None) };
        if !same_types(query.schema(), schema) {
            return Ok(None);
        }
        // The general path tells what is missing, and whether there is another right.
        let rights = Rights::of(self.service.database.as_ref(), &self.identity.user)?;
        if query.tables().into_iter().any(|(schema, table)| rights.select(schema, table).is_err()) {
            return Ok(None);
        }
        let began = Instant::now();
        let pinned = self.pin()?;
        entry.reads(self.service.database.generation(pinned.as_ref()));
        let rows = match query.as_ref() {
            ByKey::One(query) => query.answer(pinned.as_ref(), parameters)?,
            ByKey::Joined(query) if query.is_brief() => query.answer(pinned.as_ref(), parameters).await?,
            ByKey::Joined(query) => {
                let (query, parameters) = (Arc::clone(query), parameters.cloned());
                let work = async move { query.answer(pinned.as_ref(), parameters.as_ref()).await };
                Work::start(&self.service.queries, work).finish().await??
            }
        };
        let Some(rows) = rows else { return Ok(None) };
        self.service.metrics.by_key(began.elapsed());
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(schema), rows.columns().to_vec(), &options);
        rows.map(Some).map_err(|error| QueryError::internal(error.to_string()))
    }
}

/// Whether two results have columns of the same types, whatever their names.
pub(super) fn same_types(one: &SchemaRef, other: &SchemaRef) -> bool {
    let (one, other) = (one.fields(), other.fields());
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.data_type() == other.data_type())
}
