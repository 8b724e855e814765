//! Requests and answers as bytes.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request};

use super::shape::{self, Encoding};
use super::supported::supported;

/// Requests with this header or a newer one write lengths compactly.
const COMPACT_SINCE_HEADER: i16 = 2;

/// Why a connection is closed instead of answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    #[error("a frame of {announced} bytes was announced; is the client speaking Kafka's protocol")]
    FrameLength { announced: i32 },
    #[error("request of kind {key} version {version} is not known to this broker")]
    Unknown { key: i16, version: i16 },
    #[error("request of kind {key} version {version} is malformed: {reason}")]
    Malformed { key: i16, version: i16, reason: String },
    #[error("the answer to a request of kind {key} version {version} cannot be encoded: {reason}")]
    Unanswerable { key: i16, version: i16, reason: String },
    #[error("the broker is stopping")]
    Stopping,
}

/// Which message a frame holds, and which question an answer belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope {
    pub(super) key: i16,
    pub(super) version: i16,
    pub(super) correlation_id: i32,
}

impl Envelope {
    /// Takes header and body of a request off a frame.
    pub(super) fn decode<R: Request>(&self, frame: &mut Bytes) -> Result<R, RequestError> {
        let header_version = R::header_version(self.version);
        RequestHeader::decode(frame, header_version).map_err(|error| self.malformed(error))?;
        let encoding = match header_version {
            COMPACT_SINCE_HEADER.. => Encoding::Compact,
            _ => Encoding::Fixed,
        };
        let fields = ApiKey::try_from(R::KEY).ok().and_then(supported).map_or(&[][..], |known| known.fields);
        shape::walk(fields, self.version, encoding, frame).map_err(|error| self.malformed(error))?;
        R::decode(frame, self.version).map_err(|error| self.malformed(error))
    }

    fn malformed(&self, reason: impl ToString) -> RequestError {
        RequestError::Malformed { key: self.key, version: self.version, reason: reason.to_string() }
    }

    /// The frame of an answer.
    pub(super) fn encode<R: Request>(&self, response: &R::Response) -> Result<Bytes, RequestError> {
        self.encode_as::<R::Response>(response, self.version)
    }

    /// The frame of an answer in another version than was asked.
    pub(super) fn encode_as<A>(&self, response: &A, version: i16) -> Result<Bytes, RequestError>
    where
        A: Encodable + HeaderVersion,
    {
        let unanswerable =
            |reason: String| RequestError::Unanswerable { key: self.key, version: self.version, reason };
        let header = ResponseHeader::default().with_correlation_id(self.correlation_id);
        let header_version = A::header_version(version);
        let bytes = header
            .compute_size(header_version)
            .and_then(|header_bytes| Ok(header_bytes + response.compute_size(version)?))
            .map_err(|error| unanswerable(error.to_string()))?;
        let length = i32::try_from(bytes).map_err(|error| unanswerable(error.to_string()))?;
        let mut frame = BytesMut::with_capacity(bytes + size_of::<i32>());
        frame.put_i32(length);
        header
            .encode(&mut frame, header_version)
            .and_then(|()| response.encode(&mut frame, version))
            .map_err(|error| unanswerable(error.to_string()))?;
        Ok(frame.freeze())
    }
}

/// Does work with much reading or writing where it does not hold up other connections. A panic goes on in the
/// caller, whose task reports it.
pub(super) async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RequestError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => RequestError::Stopping,
    })
}
