//! Records as the tests make them: with known values and a known fate, as JSON for the decoder and, made without it,
//! as columns for the oracle.

use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch,
    StringArray, StringBuilder, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field};
use viewledger::catalog::stream::Stream;
use viewledger::position::{Offset, PartitionId};
use viewledger::runtime::Micros;

/// 2026-01-31T12:00:00Z.
pub const NOON: Micros = 1_769_860_800_000_000;
const MINUTE: Micros = 60_000_000;

/// The declaration of a stream with a column of every kind that views use.
pub fn stream_sql(name: &str) -> String {
    format!(
        "CREATE STREAM {name} (
            id TEXT PRIMARY KEY,
            page TEXT NOT NULL,
            who TEXT,
            at TIMESTAMPTZ NOT NULL,
            ms INTEGER,
            cents DECIMAL(12, 2),
            share DOUBLE PRECISION,
            ok BOOLEAN,
            tags TEXT[],
            CONSTRAINT quick CHECK (ms BETWEEN 0 AND 1000)
        ) WITH (topic = 'topic-{name}', format = 'json', event_time = 'at');\n"
    )
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    Nothing,
    NoValue,
    CutShort,
    NotUtf8,
    NoPage,
    WordForNumber,
    TooSlow,
}

pub const FLAWS: [Flaw; 6] =
    [Flaw::NoValue, Flaw::CutShort, Flaw::NotUtf8, Flaw::NoPage, Flaw::WordForNumber, Flaw::TooSlow];

/// One record of one stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub id: u8,
    pub page: u8,
    pub who: Option<u8>,
    /// Minutes from noon; far below zero is late.
    pub minute: i32,
    pub ms: Option<i32>,
    pub cents: Option<i32>,
    /// In quarters, so that sums of floats are exact in any order.
    pub quarters: Option<i16>,
    pub ok: Option<bool>,
    pub tags: Option<Vec<u8>>,
    pub flaw: Flaw,
}

impl Record {
    pub fn is_sound(&self) -> bool {
        self.flaw == Flaw::Nothing
    }

    fn at(&self) -> Micros {
        NOON + Micros::from(self.minute) * MINUTE
    }

    /// The value as a producer writes it; None is a record without one.
    pub fn payload(&self) -> Option<Vec<u8>> {
        let or_null = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
        let at = DateTime::from_timestamp_micros(self.at()).unwrap().to_rfc3339_opts(SecondsFormat::Secs, true);
        let ms = match self.flaw {
            Flaw::TooSlow => "1001".to_owned(),
            Flaw::WordForNumber => "\"ten\"".to_owned(),
            _ => or_null(self.ms.map(|ms| ms.to_string())),
        };
        let page = if self.flaw == Flaw::NoPage { "null".to_owned() } else { format!("\"p{}\"", self.page) };
        let tags = self.tags.as_ref().map(|tags| {
            let tags: Vec<String> = tags.iter().map(|tag| format!("\"t{tag}\"")).collect();
            format!("[{}]", tags.join(","))
        });
        let mut text = format!(
            r#"{{"id":"{}","page":{page},"who":{},"at":"{at}","ms":{ms},"cents":{},"share":{},"ok":{},"tags":{}}}"#,
            self.id,
            or_null(self.who.map(|who| format!("\"w{who}\""))),
            or_null(self.cents.map(|cents| format!("{:.2}", f64::from(cents) / 100.0))),
            or_null(self.quarters.map(|quarters| format!("{:?}", f64::from(quarters) / 4.0))),
            or_null(self.ok.map(|ok| ok.to_string())),
            or_null(tags),
        )
        .into_bytes();
        match self.flaw {
            Flaw::NoValue => return None,
            Flaw::CutShort => text.truncate(text.len() - 1),
            Flaw::NotUtf8 => text.extend([0xff, 0xfe]),
            _ => {}
        }
        Some(text)
    }
}

/// A record where it lies, and when it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    pub record: Arc<Record>,
    pub partition: PartitionId,
    pub offset: Offset,
    pub produced_at: Micros,
    pub ingested_at: Micros,
}

/// The columns that `raw.<stream>` must have for these records, made without the decoder.
pub fn columns(stream: &Stream, records: &[Placed]) -> RecordBatch {
    fn texts<'a>(values: impl Iterator<Item = Option<String>> + 'a) -> ArrayRef {
        Arc::new(values.collect::<StringArray>())
    }
    let each = || records.iter().map(|placed| placed.record.as_ref());
    let instants = |values: Vec<Micros>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
    };
    let cents = Decimal128Array::from_iter(each().map(|r| r.cents.map(i128::from)));
    let element = Field::new("element", DataType::Utf8, true);
    let mut tags = ListBuilder::new(StringBuilder::new()).with_field(element);
    for record in each() {
        for tag in record.tags.iter().flatten() {
            tags.values().append_value(format!("t{tag}"));
        }
        tags.append(record.tags.is_some());
    }
    let columns: Vec<ArrayRef> = vec![
        texts(each().map(|r| Some(r.id.to_string()))),
        texts(each().map(|r| Some(format!("p{}", r.page)))),
        texts(each().map(|r| r.who.map(|who| format!("w{who}")))),
        instants(each().map(Record::at).collect()),
        Arc::new(Int32Array::from_iter(each().map(|r| r.ms))),
        Arc::new(cents.with_precision_and_scale(12, 2).unwrap()),
        Arc::new(Float64Array::from_iter(each().map(|r| r.quarters.map(|q| f64::from(q) / 4.0)))),
        Arc::new(BooleanArray::from_iter(each().map(|r| r.ok))),
        Arc::new(tags.finish()),
        texts(each().map(|_| None)),
        texts(each().map(|_| Some(stream.topic.clone()))),
        Arc::new(Int32Array::from_iter_values(records.iter().map(|placed| placed.partition.0))),
        Arc::new(Int64Array::from_iter_values(records.iter().map(|placed| placed.offset.0))),
        instants(records.iter().map(|placed| placed.produced_at).collect()),
        instants(records.iter().map(|placed| placed.ingested_at).collect()),
    ];
    RecordBatch::try_new(stream.record_schema(), columns).unwrap()
}
