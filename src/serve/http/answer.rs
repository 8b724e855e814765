//! From an outcome to a response: the first piece is made before a status is given, the rest is sent as it comes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use futures::stream;
use parking_lot::Mutex;

use super::format::{Extent, Pieces, Writer};
use super::negotiate::{Coding, Format};
use super::problem::Problem;
use crate::serve::Certificate;
use crate::serve::error::QueryError;
use crate::serve::session::{Encode, Rows, Stop};

const GENERATION: HeaderName = HeaderName::from_static("viewledger-generation");
const COMPLETE: HeaderName = HeaderName::from_static("viewledger-complete");
/// What else an answer depends on.
const VARY: &str = "accept, accept-encoding, authorization";

/// In what an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) format: Format,
    pub(super) coding: Coding,
}

/// Writes the rows of a result on the query runtime, in pieces that are cut by `pieces`.
pub(super) fn encode(
    schema: &SchemaRef,
    shape: Shape,
    pieces: Pieces,
    patience: Duration,
) -> Result<Encode<Bytes>, QueryError> {
    let writer = Writer::new(schema, shape.format, Extent::Any, shape.coding)?;
    let writer = Arc::new(Mutex::new(writer.cut(pieces)));
    let ends = Arc::clone(&writer);
    let encode = Encode::new(usize::MAX, move |batch| writer.lock().write(&batch));
    Ok(encode.ending(move || ends.lock().end()).patient_for(patience))
}

/// All of a small result.
pub(super) fn whole(
    schema: &SchemaRef,
    batch: &RecordBatch,
    extent: Extent,
    shape: Shape,
) -> Result<Bytes, QueryError> {
    let mut writer = Writer::new(schema, shape.format, extent, shape.coding)?;
    let mut bytes = writer.write(batch)?.to_vec();
    bytes.extend_from_slice(&writer.end()?);
    Ok(bytes.into())
}

/// The body of a result whose rows are still coming. What is `kept`, the session among it, is held until the last.
///
/// # Errors
/// What went wrong before there was anything to send.
pub(super) async fn streamed<K: Send + 'static>(
    mut rows: Rows<Bytes>,
    mut stop: Stop,
    kept: K,
) -> Result<Body, Problem> {
    let mut first = stop.race(rows.next()).await?.transpose()?;
    // Compressors and row groups may keep the first rows back.
    while first.as_ref().is_some_and(Bytes::is_empty) {
        first = stop.race(rows.next()).await?.transpose()?;
    }
    let Some(first) = first else { return Ok(Body::empty()) };
    let rest = stream::unfold(Some((Some(first), rows, stop, kept)), async |state| {
        let (first, mut rows, mut stop, kept) = state?;
        if let Some(bytes) = first {
            return Some((Ok(bytes), Some((None, rows, stop, kept))));
        }
        match stop.race(rows.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(bytes))) => Some((Ok(bytes), Some((None, rows, stop, kept)))),
            // The connection breaks off, so that nobody takes what came for all.
            Ok(Some(Err(error))) | Err(error) => {
                tracing::debug!(%error, "an answer broke off");
                Some((Err(error), None))
            }
        }
    });
    Ok(Body::from_stream(rest))
}

/// A response of rows, in `shape`.
pub(super) fn response(body: impl Into<Body>, shape: Shape) -> Response {
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(shape.format.content_type()));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::VARY, HeaderValue::from_static(VARY));
    if shape.coding != Coding::Identity {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(shape.coding.name()));
    }
    response
}

/// With the certificate of what was read.
pub(super) fn certified(mut response: Response, certificate: Option<&Certificate>) -> Response {
    if let Some(certificate) = certificate {
        response.headers_mut().extend(certificate_headers(certificate));
    }
    response
}

pub(super) fn certificate_headers(certificate: &Certificate) -> [(HeaderName, HeaderValue); 2] {
    let complete = if certificate.complete { "true" } else { "false" };
    [(GENERATION, HeaderValue::from(certificate.generation)), (COMPLETE, HeaderValue::from_static(complete))]
}
