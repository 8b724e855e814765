//! What a micro-batch adds to every view; a record with which a view can not be computed is set aside.
//!
//! An expression of a view may fail on a value that no rule forbids, such as a division by zero. Such a record must
//! neither stop the stream for good nor be counted in one view and not in another: it goes to quarantine, with the
//! view and the reason, before anything of it is counted or archived.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use datafusion::arrow::compute::{concat_batches, filter_record_batch, not};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::error::ArrowError;

use super::roster::Entry;
use crate::archive::dedup::{KeyError, KeyIndex};
use crate::batch::run::ViewInput;
use crate::catalog::stream::{REASON, quarantine_schema};
use crate::delta::fold::{self, FoldError};
use crate::engine::Engine;
use crate::runtime::chain;
use crate::storage::scan::fitted_columns;

/// A micro-batch after every view took it.
#[derive(Debug)]
pub(super) struct Settled {
    /// The records that count.
    pub events: RecordBatch,
    /// By view, their partial states.
    pub states: Vec<(String, RecordBatch)>,
    /// Records that a view cannot be computed with: the columns of a record, and the reason.
    pub failed: Option<RecordBatch>,
    /// Views that are not required and cannot be computed with these records, by their names; and the reason.
    pub given_up: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SettleError {
    #[error(transparent)]
    Fold(#[from] FoldError),
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Computes the states of `views` over `events`, without the records for which that fails in a view that is required. These do not use up their
/// key, the column that `keys` names: of the `duplicates` that have it, the first counts instead. Returns what is left
/// of them.
pub(super) async fn settle(
    engine: &Engine,
    views: &[Entry],
    keys: Option<(usize, &mut KeyIndex)>,
    events: RecordBatch,
    mut duplicates: RecordBatch,
) -> Result<(Settled, RecordBatch), SettleError> {
    let mut settled = settle_events(engine, views, events).await?;
    let Some((key, keys)) = keys else { return Ok((settled, duplicates)) };
    let mut failed = settled.failed.clone();
    while let Some(unfit) = failed {
        keys.remove(unfit.column(key))?;
        let again = keys.insert(duplicates.column(key), None)?;
        if again.true_count() == 0 {
            break;
        }
        let more = settle_events(engine, views, filter_record_batch(&duplicates, &again)?).await?;
        duplicates = filter_record_batch(&duplicates, &not(&again)?)?;
        failed = more.failed.clone();
        settled = settled.and(more)?;
    }
    Ok((settled, duplicates))
}

impl Settled {
    /// Both; a view then has states of each.
    fn and(mut self, more: Self) -> Result<Self, ArrowError> {
        self.states.extend(more.states);
        let both = |a: &RecordBatch, b: &RecordBatch| concat_batches(a.schema_ref(), [a, b]);
        let failed = match (&self.failed, &more.failed) {
            (Some(failed), Some(more)) => Some(both(failed, more)?),
            (failed, more) => failed.as_ref().or(more.as_ref()).cloned(),
        };
        self.given_up.extend(more.given_up);
        Ok(Self { events: both(&self.events, &more.events)?, states: self.states, failed, given_up: self.given_up })
    }
}

async fn settle_events(engine: &Engine, views: &[Entry], events: RecordBatch) -> Result<Settled, SettleError> {
    if let Ok(states) = states(engine, views, &events).await {
        return Ok(Settled { events, states, failed: None, given_up: BTreeMap::new() });
    }
    let (required, others): (Vec<Entry>, Vec<Entry>) = views.iter().cloned().partition(|entry| entry.required);
    let reasons = failing(engine, &required, &events).await;
    let keep: BooleanArray = reasons.iter().map(|reason| Some(reason.is_none())).collect();
    let good = filter_record_batch(&events, &keep)?;
    // When no single record is to blame (a sum that overflows), the error stays one.
    let mut computed = states(engine, &required, &good).await?;
    let mut given_up = BTreeMap::new();
    for other in others {
        match states(engine, std::slice::from_ref(&other), &good).await {
            Ok(states) => computed.extend(states),
            Err(error) => drop(given_up.insert(other.input.view.name().to_owned(), chain(&error))),
        }
    }
    let failed = with_reasons(&events, &reasons)?;
    let failed = (failed.num_rows() > 0).then_some(failed);
    Ok(Settled { events: good, states: computed, failed, given_up })
}

/// `rejects` with `failed` behind them, in the columns of quarantine.
pub(super) fn add_rejects(rejects: &RecordBatch, failed: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = quarantine_schema();
    let fitted = RecordBatch::try_new(Arc::clone(&schema), fitted_columns(&schema, failed))?;
    concat_batches(&schema, [rejects, &fitted])
}

async fn states(
    engine: &Engine,
    views: &[Entry],
    events: &RecordBatch,
) -> Result<Vec<(String, RecordBatch)>, FoldError> {
    let mut all = Vec::with_capacity(views.len());
    if events.num_rows() > 0 {
        for Entry { input: ViewInput { view, .. }, .. } in views {
            all.push((view.name().to_owned(), fold::states(engine, view, events).await?));
        }
    }
    Ok(all)
}

/// Per record why it fails on its own, found by halving: few records fail, and each costs a few computations.
async fn failing(engine: &Engine, views: &[Entry], events: &RecordBatch) -> Vec<Option<String>> {
    let mut reasons = vec![None; events.num_rows()];
    let mut open = vec![(0, events.num_rows())];
    while let Some((start, rows)) = open.pop() {
        let Err(error) = states(engine, views, &events.slice(start, rows)).await else { continue };
        if rows > 1 {
            let half = rows / 2;
            open.push((start, half));
            open.push((start + half, rows - half));
        } else if let Some(reason) = reasons.get_mut(start) {
            *reason = Some(error.to_string());
        }
    }
    reasons
}

fn with_reasons(events: &RecordBatch, reasons: &[Option<String>]) -> Result<RecordBatch, ArrowError> {
    let fails: BooleanArray = reasons.iter().map(|reason| Some(reason.is_some())).collect();
    let records = filter_record_batch(events, &fails)?;
    let reasons: ArrayRef =
        Arc::new(reasons.iter().flatten().map(|reason| Some(reason.as_str())).collect::<StringArray>());
    let mut fields: Vec<_> = records.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(REASON, DataType::Utf8, true)));
    let columns = records.columns().iter().cloned().chain([reasons]).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}
