//! `COPY ... TO STDOUT` over the wire: rows as lines of text, as CSV, or as PostgreSQL's binary file.
//!
//! As PostgreSQL does, each row is a message of its own, and the header of a binary file stands before the first: clients rely on
//! that.

use std::fmt::Debug;

use bytes::{BufMut, Bytes, BytesMut};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::ParamValues;
use futures::Sink;
use pgwire::api::portal::Format;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::copy::{CopyData, CopyDone, CopyOutResponse};
use pgwire::messages::data::DataRow;

use super::checks::{check_status, complete, undescribable};
use super::encode::RowEncoder;
use super::query::Queries;
use super::startup::Connection;
use super::wire;
use crate::serve::error::QueryError;
use crate::serve::session::copy::{Copy, CopyFormat, Forced};
use crate::serve::session::statement::Statement;
use crate::serve::session::{Encode, Outcome, ROWS_PER_PIECE, Stop};

/// Signature, flags, and the length of an extension that is not there.
const BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const BINARY_TRAILER: i16 = -1;

impl Queries {
    /// Sends the whole result; a client cannot ask for a part of it.
    pub(super) async fn copy_out<C>(
        &self,
        client: &mut C,
        connection: &Connection,
        statement: &Statement,
        copy: &Copy,
        parameters: Option<ParamValues>,
        stop: &mut Stop,
    ) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let mut session = connection.session.lock().await;
        check_status(client.transaction_status(), statement)?;
        let (mut header, mut columns) = (BytesMut::new(), 0);
        let encoder = |schema: &SchemaRef| -> Result<Encode<Vec<Bytes>>, QueryError> {
            let writer = CopyWriter::new(schema, copy.format.clone())?;
            columns = schema.fields().len();
            writer.begin(&mut header);
            Ok(Encode::new(ROWS_PER_PIECE, move |batch| writer.lines(&batch)))
        };
        let work = session.execute(statement, parameters, None, encoder);
        let outcome = stop.race(work).await.and_then(|done| done).map_err(wire)?;
        drop(session);
        let Outcome::Rows { mut rows, .. } = outcome else {
            return Err(wire(QueryError::internal("COPY gave no rows")));
        };
        let format = i16::from(copy.format == CopyFormat::Binary);
        let columns = i16::try_from(columns).unwrap_or(i16::MAX);
        let formats = vec![format; usize::try_from(columns).unwrap_or_default()];
        let response = CopyOutResponse::new(format as i8, columns, formats);
        self.feed(client, PgWireBackendMessage::CopyOutResponse(response)).await?;
        let is_binary = copy.format == CopyFormat::Binary;
        if !is_binary && !header.is_empty() {
            let names = header.split().freeze();
            self.feed(client, PgWireBackendMessage::CopyData(CopyData::new(names))).await?;
        }
        let mut sent = 0;
        while let Some(piece) = stop.race(rows.next()).await.map_err(wire)? {
            for line in piece.map_err(wire)? {
                let line = behind(&mut header, line);
                self.feed(client, PgWireBackendMessage::CopyData(CopyData::new(line))).await?;
                sent += 1;
            }
        }
        if is_binary {
            let trailer = behind(&mut header, Bytes::copy_from_slice(&BINARY_TRAILER.to_be_bytes()));
            self.feed(client, PgWireBackendMessage::CopyData(CopyData::new(trailer))).await?;
        }
        self.feed(client, PgWireBackendMessage::CopyDone(CopyDone::new())).await?;
        self.feed(client, complete("COPY", Some(sent))).await
    }
}

/// `line` with what is left of the header before it.
fn behind(header: &mut BytesMut, line: Bytes) -> Bytes {
    if header.is_empty() {
        return line;
    }
    let mut first = header.split();
    first.put_slice(&line);
    first.freeze()
}

/// Writes rows in one format.
#[derive(Debug)]
struct CopyWriter {
    encoder: RowEncoder,
    format: CopyFormat,
    names: Vec<String>,
}

impl CopyWriter {
    fn new(schema: &SchemaRef, format: CopyFormat) -> Result<Self, QueryError> {
        let wire_format = match format {
            CopyFormat::Binary => Format::UnifiedBinary,
            _ => Format::UnifiedText,
        };
        let encoder = RowEncoder::new(schema, &wire_format).map_err(undescribable)?;
        let names = schema.fields().iter().map(|field| field.name().clone()).collect();
        Ok(Self { encoder, format, names })
    }

    /// What comes before the first row.
    fn begin(&self, out: &mut BytesMut) {
        match &self.format {
            CopyFormat::Binary => out.put_slice(BINARY_HEADER),
            CopyFormat::Text { header: true, .. } | CopyFormat::Csv { header: true, .. } => {
                let names = self.names.iter().map(|name| Some(name.as_bytes()));
                self.line(names, out);
            }
            _ => {}
        }
    }

    fn lines(&self, batch: &RecordBatch) -> Result<Vec<Bytes>, QueryError> {
        let mut out = BytesMut::new();
        let rows = self.encoder.encode(batch)?;
        let line = |row: DataRow| {
            if self.format == CopyFormat::Binary {
                out.put_i16(row.field_count);
                out.put_slice(&row.data);
            } else {
                self.line(fields(&row), &mut out);
            }
            out.split().freeze()
        };
        Ok(rows.into_iter().map(line).collect())
    }

    /// One line of text or CSV.
    fn line<'a>(&self, values: impl Iterator<Item = Option<&'a [u8]>>, out: &mut BytesMut) {
        for (index, value) in values.enumerate() {
            match &self.format {
                CopyFormat::Text { delimiter, null, .. } => {
                    if index > 0 {
                        out.put_u8(*delimiter as u8);
                    }
                    match value {
                        None => out.put_slice(null.as_bytes()),
                        Some(value) => escaped(value, *delimiter as u8, out),
                    }
                }
                CopyFormat::Csv { delimiter, null, quote, escape, force, .. } => {
                    if index > 0 {
                        out.put_u8(*delimiter as u8);
                    }
                    let forced = match force {
                        Forced::All => true,
                        Forced::Columns(columns) => {
                            self.names.get(index).is_some_and(|name| columns.contains(name))
                        }
                    };
                    let special = [*delimiter as u8, *quote as u8, *escape as u8, b'\n', b'\r'];
                    match value {
                        None => out.put_slice(null.as_bytes()),
                        Some(value)
                            if forced
                                || value == null.as_bytes()
                                // The end of data to older readers.
                                || (self.names.len() == 1 && value == b"\\.")
                                || value.iter().any(|byte| special.contains(byte)) =>
                        {
                            quoted(value, *quote as u8, *escape as u8, out);
                        }
                        Some(value) => out.put_slice(value),
                    }
                }
                CopyFormat::Binary => {}
            }
        }
        out.put_u8(b'\n');
    }
}

/// The values of a row as the wire has them: a length, or -1 for NULL, then so many bytes.
fn fields(row: &DataRow) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest: &[u8] = &row.data;
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => {
                rest = behind;
                Some(None)
            }
            Ok(length) => {
                let (value, behind) = behind.split_at_checked(length)?;
                rest = behind;
                Some(Some(value))
            }
        }
    })
}

fn escaped(value: &[u8], delimiter: u8, out: &mut BytesMut) {
    for byte in value {
        let letter = match byte {
            b'\\' => b'\\',
            0x08 => b'b',
            0x0c => b'f',
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            0x0b => b'v',
            byte if *byte == delimiter => delimiter,
            byte => {
                out.put_u8(*byte);
                continue;
            }
        };
        out.put_slice(&[b'\\', letter]);
    }
}

fn quoted(value: &[u8], quote: u8, escape: u8, out: &mut BytesMut) {
    out.put_u8(quote);
    for byte in value {
        if *byte == quote || *byte == escape {
            out.put_u8(escape);
        }
        out.put_u8(*byte);
    }
    out.put_u8(quote);
}
