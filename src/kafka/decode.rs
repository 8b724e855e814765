//! Raw records into columns: a record that breaks a rule is set aside with the reason, and nothing else is.

use std::borrow::Cow;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, BinaryBuilder, BooleanArray, Int32Builder, Int64Builder, RecordBatch, StringBuilder,
    TimestampMicrosecondBuilder,
};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::columns::{ColumnBuilder, Slot, field_value};
use super::{Decoded, RawBatch, RawRecord};
use crate::catalog::stream::{Column, ColumnType, CompiledCheck, Stream, quarantine_schema};
use crate::runtime::Micros;

mod usual;

/// Decodes the records of one stream.
#[derive(Debug)]
pub struct Decoder {
    stream: Arc<Stream>,
    checks: Vec<CompiledCheck>,
    record_bytes_max: usize,
    schema: SchemaRef,
    quarantine: SchemaRef,
    /// Records may be read in their usual form first.
    usual: bool,
}

/// A check that is not a condition is a fault of the DDL, not of a record.
#[derive(Debug, thiserror::Error)]
#[error("stream {stream}: check {check} is neither true nor false")]
pub struct DecodeError {
    stream: String,
    check: String,
}

fn fails(check: &CompiledCheck) -> String {
    format!("check {} fails: {}", check.name, check.sql)
}

impl Decoder {
    pub fn new(stream: Arc<Stream>, checks: Vec<CompiledCheck>, record_bytes_max: usize) -> Self {
        let schema = stream.record_schema();
        let usual = usual::can_read(&stream.columns);
        Self { stream, checks, record_bytes_max, schema, quarantine: quarantine_schema(), usual }
    }

    /// Decodes `batch`. Every record of it ends up in `records`, in `rejects`, or, where it has the right types but
    /// fails a check, in both and outside `sound`. Takes topic and positions out of `batch`.
    pub fn decode(&self, batch: &mut RawBatch, now: Micros) -> Result<Decoded, DecodeError> {
        let (topic, positions) = (batch.topic.take(), std::mem::take(&mut batch.positions));
        let (mut columns, accepted, mut rejected) = self.typed(batch);
        columns.extend(self.coordinates(&accepted, now));
        let records = RecordBatch::try_new(Arc::clone(&self.schema), columns)
            .expect("builders were made from the schema and grew together");
        let sound = self.apply_checks(&records, &accepted, &mut rejected)?;
        // Rejects by checks come after rejects by type; put them back into the order of arrival.
        rejected.sort_by_key(|(record, _)| (record.partition, record.offset));
        let rejects = self.rejects(batch, &rejected, now);
        Ok(Decoded {
            source: batch.source,
            records,
            sound,
            rejects,
            payload_bytes: batch.bytes.len(),
            topic,
            positions,
        })
    }

    /// The declared columns and undeclared fields of all records that have the right types; which these are; the
    /// others, and why.
    fn typed<'a>(&self, batch: &'a RawBatch) -> (Vec<ArrayRef>, Vec<&'a RawRecord>, Vec<Rejected<'a>>) {
        let mut builders: Vec<ColumnBuilder> =
            self.stream.columns.iter().map(|c| ColumnBuilder::new(&c.kind, batch.records.len())).collect();
        let mut extra = StringBuilder::new();
        let mut accepted: Vec<&RawRecord> = Vec::with_capacity(batch.records.len());
        let mut rejected: Vec<Rejected<'_>> = Vec::new();
        let mut slots: Vec<Slot<'_>> = Vec::with_capacity(self.stream.columns.len());
        for record in &batch.records {
            match self.row(batch.payload(record), &mut slots) {
                Ok(undeclared) => {
                    builders.iter_mut().zip(&slots).for_each(|(builder, slot)| builder.append(slot));
                    extra.append_option(undeclared);
                    accepted.push(record);
                }
                Err(reason) => rejected.push((record, reason)),
            }
        }
        let mut columns: Vec<ArrayRef> = builders.into_iter().map(ColumnBuilder::finish).collect();
        columns.push(Arc::new(extra.finish()));
        (columns, accepted, rejected)
    }

    /// Reads one record into `slots`, one a column, and returns its undeclared fields as a JSON object.
    fn row<'a>(&self, payload: Option<&'a [u8]>, slots: &mut Vec<Slot<'a>>) -> Result<Option<String>, String> {
        let bytes = payload.ok_or("the record has no value")?;
        if bytes.len() > self.record_bytes_max {
            let (have, max) = (bytes.len(), self.record_bytes_max);
            return Err(format!("the record has {have} bytes, more than ingest.record_bytes_max {max}"));
        }
        let text = simdutf8::compat::from_utf8(bytes).map_err(|error| format!("not UTF-8: {error}"))?;
        let usual = if self.usual { usual::row(text, &self.stream.columns, slots) } else { None };
        let undeclared = match usual {
            Some(()) => None,
            None => by_serde(text, &self.stream.columns, slots).map_err(|error| error.to_string())?,
        };
        for (column, slot) in self.stream.columns.iter().zip(slots.iter()) {
            if column.required && slot.is_null() {
                let state = if *slot == Slot::Null { "null" } else { "missing" };
                return Err(format!("field {}: required, but {state}", column.name));
            }
        }
        Ok(undeclared)
    }

    /// Which records keep every check; None when all do.
    fn apply_checks<'a>(
        &self,
        records: &RecordBatch,
        accepted: &[&'a RawRecord],
        rejected: &mut Vec<Rejected<'a>>,
    ) -> Result<Option<BooleanArray>, DecodeError> {
        let mut keep = vec![true; accepted.len()];
        for check in &self.checks {
            let verdicts = self.verdicts(check, records)?;
            if verdicts.as_ref().is_ok_and(|passes| passes.true_count() + passes.null_count() == passes.len()) {
                continue;
            }
            for (row, (keep, record)) in keep.iter_mut().zip(accepted).enumerate().filter(|(_, (keep, _))| **keep) {
                let refused = match &verdicts {
                    Ok(passes) => (passes.is_valid(row) && !passes.value(row)).then(|| fails(check)),
                    // An expression can fail on a value, such as a division by zero: one record must not stop others.
                    Err(_) => match self.verdicts(check, &records.slice(row, 1))? {
                        Ok(passes) => (passes.is_valid(0) && !passes.value(0)).then(|| fails(check)),
                        Err(error) => Some(format!("check {} cannot be evaluated: {error}", check.name)),
                    },
                };
                if let Some(reason) = refused {
                    *keep = false;
                    rejected.push((record, reason));
                }
            }
        }
        Ok(keep.contains(&false).then(|| BooleanArray::from(keep)))
    }

    /// Whether each record passes; or why the expression fails on one of them.
    fn verdicts(
        &self,
        check: &CompiledCheck,
        records: &RecordBatch,
    ) -> Result<Result<BooleanArray, DataFusionError>, DecodeError> {
        let value = check.expr.evaluate(records).and_then(|value| value.into_array(records.num_rows()));
        let value = match value {
            Ok(value) => value,
            Err(error) => return Ok(Err(error)),
        };
        match value.as_any().downcast_ref::<BooleanArray>() {
            Some(passes) => Ok(Ok(passes.clone())),
            None => Err(DecodeError { stream: self.stream.name.clone(), check: check.name.clone() }),
        }
    }

    fn coordinates(&self, records: &[&RawRecord], now: Micros) -> Vec<ArrayRef> {
        let rows = records.len();
        let zone = ColumnType::Timestamp.data_type();
        let mut topic = StringBuilder::with_capacity(rows, rows * self.stream.topic.len());
        let mut partition = Int32Builder::with_capacity(rows);
        let mut offset = Int64Builder::with_capacity(rows);
        let mut produced_at = TimestampMicrosecondBuilder::with_capacity(rows).with_data_type(zone.clone());
        let mut ingested_at = TimestampMicrosecondBuilder::with_capacity(rows).with_data_type(zone);
        for record in records {
            topic.append_value(&self.stream.topic);
            partition.append_value(record.partition.0);
            offset.append_value(record.offset.0);
            produced_at.append_option(record.produced_at);
            ingested_at.append_value(now);
        }
        vec![
            Arc::new(topic.finish()),
            Arc::new(partition.finish()),
            Arc::new(offset.finish()),
            Arc::new(produced_at.finish()),
            Arc::new(ingested_at.finish()),
        ]
    }

    fn rejects(&self, batch: &RawBatch, rejected: &[Rejected<'_>], now: Micros) -> RecordBatch {
        let records: Vec<&RawRecord> = rejected.iter().map(|(record, _)| *record).collect();
        let mut columns = self.coordinates(&records, now);
        let mut reasons = StringBuilder::new();
        let mut raw = BinaryBuilder::new();
        for (record, reason) in rejected {
            reasons.append_value(reason);
            raw.append_option(batch.payload(record));
        }
        columns.push(Arc::new(reasons.finish()));
        columns.push(Arc::new(raw.finish()));
        RecordBatch::try_new(Arc::clone(&self.quarantine), columns).expect("the columns are those of the schema")
    }
}

/// Reads any record, and says what is wrong with one that is none.
fn by_serde<'a>(
    text: &'a str,
    columns: &[Column],
    slots: &mut Vec<Slot<'a>>,
) -> Result<Option<String>, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    let undeclared = RowSeed { columns, slots }.deserialize(&mut json)?;
    json.end().map(|()| undeclared)
}

/// A record that is set aside, and why.
type Rejected<'a> = (&'a RawRecord, String);

/// Reads a JSON object into one slot a column; its undeclared fields come back as a JSON object.
struct RowSeed<'c, 'v, 'de> {
    columns: &'c [Column],
    /// Used again for each record.
    slots: &'v mut Vec<Slot<'de>>,
}

impl<'de> DeserializeSeed<'de> for RowSeed<'_, '_, 'de> {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_, '_, 'de> {
    type Value = Option<String>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Self { columns, slots } = self;
        slots.clear();
        slots.resize(columns.len(), Slot::Absent);
        let mut extra: Option<String> = None;
        // Producers write fields in the same order again and again: look at the next column first.
        let mut guess = 0;
        while let Some(key) = map.next_key_seed(KeySeed)? {
            let found = match columns.get(guess) {
                Some(column) if column.name == key => Some(guess),
                _ => columns.iter().position(|column| column.name == key),
            };
            let Some((index, (column, slot))) = found.and_then(|i| Some((i, (columns.get(i)?, slots.get_mut(i)?))))
            else {
                let value: &RawValue = map.next_value()?;
                add_extra(&mut extra, &key, value.get());
                continue;
            };
            if !matches!(slot, Slot::Absent) {
                return Err(A::Error::custom(format!("field {key}: appears twice")));
            }
            *slot = field_value(&mut map, column)?;
            guess = index + 1;
        }
        if let Some(extra) = &mut extra {
            extra.push('}');
        }
        Ok(extra)
    }
}

fn add_extra(extra: &mut Option<String>, key: &str, value: &str) {
    let text = match extra {
        None => extra.insert("{".to_owned()),
        Some(text) => {
            text.push(',');
            text
        }
    };
    text.push_str(&serde_json::Value::String(key.to_owned()).to_string());
    text.push(':');
    text.push_str(value);
}

/// Reads a key without copying it where it has no escapes.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a field name")
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(value.to_owned()))
    }
}

#[cfg(test)]
mod tests;
