//! A prepared statement of one client, with what its results are sent by.

use std::sync::Arc;

use parking_lot::Mutex;
use pgwire::api::portal::Format;
use pgwire::error::PgWireResult;

use super::encode::RowEncoder;
use crate::serve::session::Prepared;

/// What a client has prepared.
#[derive(Debug)]
pub(super) struct Described {
    pub(super) prepared: Arc<Prepared>,
    /// For the formats that were asked for last: clients ask for the same again and again.
    encoder: Mutex<Option<(Format, Arc<RowEncoder>)>>,
}

impl Described {
    pub(super) fn new(prepared: Arc<Prepared>) -> Self {
        Self { prepared, encoder: Mutex::new(None) }
    }

    /// The encoder of the result that was promised; None of a statement without one.
    pub(super) fn encoder(&self, format: &Format) -> PgWireResult<Option<Arc<RowEncoder>>> {
        let Some(schema) = &self.prepared.schema else { return Ok(None) };
        let mut last = self.encoder.lock();
        if let Some((_, encoder)) = last.as_ref().filter(|(known, _)| same(known, format)) {
            return Ok(Some(Arc::clone(encoder)));
        }
        let encoder = Arc::new(RowEncoder::new(schema, format)?);
        *last = Some((format.clone(), Arc::clone(&encoder)));
        Ok(Some(encoder))
    }
}

fn same(one: &Format, other: &Format) -> bool {
    match (one, other) {
        (Format::UnifiedText, Format::UnifiedText) | (Format::UnifiedBinary, Format::UnifiedBinary) => true,
        (Format::Individual(one), Format::Individual(other)) => one == other,
        _ => false,
    }
}
