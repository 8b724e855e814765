//! From a statement's outcome to what a flight carries, and from its failure to a gRPC status.

use std::sync::Arc;
use std::time::Duration;

use arrow_flight::error::FlightError;
use arrow_flight::{IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::arrow::ipc::writer::IpcWriteOptions;
use datafusion::arrow::record_batch::RecordBatch;
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Code, Status};

use crate::serve::error::QueryError;
use crate::serve::session::{Encode, Outcome, Rows, Stop};

/// The rows of a result, and what keeps them coming.
pub(super) struct Batches {
    pub(super) schema: SchemaRef,
    pub(super) batches: BoxStream<'static, Result<RecordBatch, FlightError>>,
}

/// The batches of the engine as they are; a statement whose client reads none for so long is given up.
pub(super) fn as_they_are(patience: Duration) -> Encode<RecordBatch> {
    Encode::new(usize::MAX, Ok).patient_for(patience)
}

/// The schema of what has no rows.
pub(super) fn no_rows() -> SchemaRef {
    Arc::new(Schema::empty())
}

/// What is fetched of an outcome. `kept` lives as long as the rows come.
pub(super) fn batches<K: Send + 'static>(outcome: Outcome<RecordBatch>, stop: Stop, kept: K) -> Batches {
    match outcome {
        Outcome::Rows { schema, rows, .. } => {
            let batches = stream::unfold(Some((rows, stop, kept)), step).boxed();
            Batches { schema, batches }
        }
        Outcome::Table { batch, .. } => {
            Batches { schema: batch.schema(), batches: stream::iter([Ok(batch)]).boxed() }
        }
        _ => Batches { schema: no_rows(), batches: stream::empty().boxed() },
    }
}

type Step<K> = (Rows<RecordBatch>, Stop, K);

/// The next batch; nothing after an error.
async fn step<K>(state: Option<Step<K>>) -> Option<(Result<RecordBatch, FlightError>, Option<Step<K>>)> {
    let (mut rows, mut stop, kept) = state?;
    match stop.race(rows.next()).await {
        Ok(None) => None,
        Ok(Some(Ok(batch))) => Some((Ok(batch), Some((rows, stop, kept)))),
        Ok(Some(Err(error))) | Err(error) => Some((Err(FlightError::Tonic(Box::new(refusal(error)))), None)),
    }
}

/// One field a parameter, named as it is written. Text where the statement does not say.
pub(super) fn parameter_schema(parameters: &[Option<DataType>]) -> Schema {
    let field = |(index, known): (usize, &Option<DataType>)| {
        Field::new(format!("${}", index + 1), known.clone().unwrap_or(DataType::Utf8), true)
    };
    Schema::new(parameters.iter().enumerate().map(field).collect::<Vec<_>>())
}

pub(super) fn schema_bytes(schema: &Schema) -> Result<Bytes, Status> {
    let message: Result<IpcMessage, _> = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into();
    message.map(|IpcMessage(bytes)| bytes).map_err(|error| Status::internal(error.to_string()))
}

/// What the client is told: the message with its detail and hint, and the SQLSTATE.
pub(super) fn refusal(error: QueryError) -> Status {
    let QueryError { state, message, detail, hint, position, context: _ } = error;
    let mut text = message;
    for more in [detail, hint].into_iter().flatten() {
        text.push_str("; ");
        text.push_str(&more);
    }
    if let Some(position) = position {
        text.push_str(&format!(", at character {position}"));
    }
    text.push_str(&format!(" (SQLSTATE {})", state.0));
    Status::new(code(state.0), text)
}

/// By the class of the SQLSTATE, its first two characters, where the code itself does not say more.
fn code(state: &str) -> Code {
    match (state, state.get(..2).unwrap_or_default()) {
        ("42501", _) => Code::PermissionDenied,
        ("42P01" | "42704" | "26000" | "3F000" | "3D000", _) => Code::NotFound,
        ("57014", _) => Code::Cancelled,
        (_, "0A") => Code::Unimplemented,
        (_, "28") => Code::Unauthenticated,
        (_, "53") => Code::ResourceExhausted,
        (_, "57") => Code::Unavailable,
        (_, "25" | "55" | "2B") => Code::FailedPrecondition,
        (_, "08" | "21" | "22" | "23" | "42" | "54") => Code::InvalidArgument,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::error::SqlState;

    #[test]
    fn a_refusal_says_all_that_is_known() {
        let error = QueryError::new(SqlState::UNDEFINED_TABLE, "no t").detail("there is u").hint("ask u");
        let status = refusal(error);
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "no t; there is u; ask u (SQLSTATE 42P01)");
        assert_eq!(refusal(QueryError::refused("COPY")).code(), Code::PermissionDenied);
        assert_eq!(refusal(QueryError::cancelled()).code(), Code::Cancelled);
        assert_eq!(refusal(QueryError::internal("x")).code(), Code::Internal);
    }
}
