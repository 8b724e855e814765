//! A stream whose declaration changes: what may change, and how older files are read under the new one.
//!
//! Records never change. A field that nobody had declared lies in `_extra`; once it is declared, older files give its
//! value from there. What a file's column would have held and what `_extra` holds never overlap: a record was decoded
//! under one declaration.
//!
//! | change | |
//! |---|---|
//! | a new nullable column | read from `_extra` in older files, where the value fits; otherwise NULL |
//! | a new column that is NOT NULL | refused: older records may lack it |
//! | another type | refused |
//! | another key, none, or a first one | refused: what is a duplicate was decided by it |
//! | a column that is declared no more | its values stay in the files; later ones go to `_extra`; both are read again when it is declared again |
//! | another rule, event time, comment | for records to come |

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column as ColumnExpr;
use serde::de::DeserializeSeed;
use serde_json::value::RawValue;

use super::{Archive, ArchiveError, ArchiveSnapshot, Kind, commit, load};
use crate::catalog::Fault;
use crate::catalog::stream::{ColumnType, EXTRA, Stream};
use crate::kafka::columns::{ColumnBuilder, Slot, ValueSeed};
use crate::position::Epoch;
use crate::runtime::Clock;
use crate::storage::Storage;
use crate::storage::paths::ArchivePaths;
use crate::storage::scan::{AbsentColumns, ParquetTable};

/// What an archive says of the declaration that it was written under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) epoch: Epoch,
    /// Names and types, as the table holds them.
    pub(super) columns: Vec<(String, String)>,
    /// Name of the key, empty when there is none; None when the archive does not say.
    pub(super) key: Option<String>,
}

/// Why a stream's archive cannot be gone on with under its declaration; empty when it can. Changes nothing.
pub async fn faults(storage: &Storage, stream: &Stream) -> Result<Vec<Fault>, ArchiveError> {
    let Some(state) = load::load(storage, &ArchivePaths::new(&stream.name)).await? else { return Ok(Vec::new()) };
    let written = Written {
        epoch: state.standing.epoch,
        columns: commit::stored_columns(&stream.name, &state.metadata)?,
        key: commit::stored_key(&state.metadata),
    };
    Ok(judge(stream, &written, &commit::declared_columns(&stream.archive_schema())?))
}

/// `declared` are the columns of `stream` as its table would hold them.
fn judge(stream: &Stream, written: &Written, declared: &[(String, String)]) -> Vec<Fault> {
    let (file, line) = stream.declared_at.rsplit_once(':').unwrap_or((stream.declared_at.as_str(), "0"));
    let whole = (line.parse().unwrap_or_default(), 1);
    let fault = |(line, column): (u64, u64), reason| Fault { file: file.to_owned(), line, column, reason };
    let name = &stream.name;
    let mut faults = Vec::new();
    for (index, column) in stream.columns.iter().enumerate() {
        let place = stream.places.get(index).copied().unwrap_or(whole);
        let type_in = |columns: &[(String, String)]| {
            columns.iter().find(|(known, _)| *known == column.name).map(|(_, data_type)| data_type.clone())
        };
        match (type_in(&written.columns), type_in(declared)) {
            (Some(stored), Some(now)) if stored != now => faults.push(fault(
                place,
                format!(
                    "column {} of stream {name} is archived as {stored} and declared as {now} now; archived records do \
                     not change: declare the type it had and convert it in views, or have producers send the new type \
                     in a field with another name",
                    column.name
                ),
            )),
            (None, _) if column.required && written.epoch > Epoch::default() => faults.push(fault(
                place,
                format!(
                    "column {} of stream {name} is new and NOT NULL, but archived records may lack it: leave NOT NULL \
                     out; CHECK ({} IS NOT NULL) sets records without it aside from now on",
                    column.name, column.name
                ),
            )),
            _ => {}
        }
    }
    let key = key_of(stream);
    if let Some(stored) = written.key.as_ref().filter(|stored| **stored != key)
        && written.epoch > Epoch::default()
    {
        let named = |key: &str| if key.is_empty() { "no key".to_owned() } else { format!("the key {key}") };
        let place = stream.key.and_then(|index| stream.places.get(index)).copied().unwrap_or(whole);
        faults.push(fault(
            place,
            format!(
                "stream {name} is archived with {} and declared with {} now; which records are duplicates was decided \
                 by it: keep it, or declare a stream with another name, which reads its topic from the beginning",
                named(stored),
                named(&key)
            ),
        ));
    }
    faults
}

fn key_of(stream: &Stream) -> String {
    stream.key.and_then(|key| stream.columns.get(key)).map(|column| column.name.clone()).unwrap_or_default()
}

impl Archive {
    /// As [`Archive::open_at`] for a declared stream, whose key the table then knows. Ask [`faults`] before.
    pub async fn open_stream(
        storage: &Storage,
        stream: &Stream,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ArchiveError> {
        let key = key_of(stream);
        Self::open_table(storage, &stream.name, stream.archive_schema(), Some(&key), clock).await
    }
}

impl ArchiveSnapshot {
    /// The records of one kind in epochs after `after`, with the columns of the stream's declaration.
    pub fn records(&self, stream: &Stream, kind: Kind, after: Epoch) -> ParquetTable {
        let columns = stream.columns.iter().map(|column| (column.name.clone(), column.kind.clone())).collect();
        self.table(stream.record_schema(), kind, after).filled(Arc::new(Undeclared { columns }))
    }
}

/// Finds the columns that a file lacks among the undeclared fields of its records.
#[derive(Debug)]
struct Undeclared {
    columns: Vec<(String, ColumnType)>,
}

impl AbsentColumns for Undeclared {
    fn value(&self, column: &str, file: &Schema) -> Option<Arc<dyn PhysicalExpr>> {
        let (name, kind) = self.columns.iter().find(|(name, _)| name == column)?;
        let extra: Arc<dyn PhysicalExpr> = Arc::new(ColumnExpr::new(EXTRA, file.index_of(EXTRA).ok()?));
        Some(Arc::new(ExtraField { extra, name: name.clone(), kind: kind.clone() }))
    }
}

/// The value of one field of the JSON object in `_extra`, read as a column of the stream; NULL where it does not fit.
#[derive(Debug, Clone)]
struct ExtraField {
    extra: Arc<dyn PhysicalExpr>,
    name: String,
    kind: ColumnType,
}

impl ExtraField {
    fn column(&self, extra: &ArrayRef) -> Result<ArrayRef> {
        let Some(texts) = extra.as_string_opt::<i32>() else {
            return exec_err!("{EXTRA} is {}, not text", extra.data_type());
        };
        let mut builder = ColumnBuilder::new(&self.kind, texts.len());
        for text in texts {
            let raw = text.and_then(|text| field(text, &self.name));
            let slot = raw.and_then(|raw| value(raw, &self.kind)).unwrap_or(Slot::Null);
            builder.append(&slot);
        }
        Ok(builder.finish())
    }
}

/// The text of a field of a JSON object; of fields with one name the last.
fn field<'t>(object: &'t str, name: &str) -> Option<&'t RawValue> {
    type Fields<'t> = std::collections::BTreeMap<std::borrow::Cow<'t, str>, &'t RawValue>;
    let fields: Fields<'t> = serde_json::from_str(object).ok()?;
    fields.get(name).copied()
}

fn value<'t>(raw: &'t RawValue, kind: &ColumnType) -> Option<Slot<'t>> {
    let mut json = serde_json::Deserializer::from_str(raw.get());
    ValueSeed(kind).deserialize(&mut json).ok()
}

impl fmt::Display for ExtraField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->'{}'", self.extra, self.name)
    }
}

impl PartialEq for ExtraField {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.kind == other.kind && self.extra.eq(&other.extra)
    }
}

impl Eq for ExtraField {}

impl Hash for ExtraField {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.extra.hash(state);
    }
}

impl PhysicalExpr for ExtraField {
    fn data_type(&self, _input: &Schema) -> Result<DataType> {
        Ok(self.kind.data_type())
    }

    fn nullable(&self, _input: &Schema) -> Result<bool> {
        Ok(true)
    }

    fn return_field(&self, _input: &Schema) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(&self.name, self.kind.data_type(), true)))
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let extra = self.extra.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(ColumnarValue::Array(self.column(&extra)?))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.extra]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        match children.pop() {
            Some(extra) if children.is_empty() => Ok(Arc::new(Self { extra, ..self.as_ref().clone() })),
            _ => exec_err!("a field of {EXTRA} has one input"),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::StringArray;

    use super::*;
    use crate::catalog::ddl::{self, Definition};

    fn stream(columns: &str) -> Stream {
        let text = format!("CREATE STREAM s (\n{columns}\n) WITH (topic = 't')");
        match ddl::parse("s.sql", &text).unwrap().remove(0) {
            Definition::Stream(stream) => stream,
            other => panic!("{other:?}"),
        }
    }

    fn written(stream: &Stream, epoch: u64) -> Written {
        let columns = commit::declared_columns(&stream.archive_schema()).unwrap();
        Written { epoch: Epoch(epoch), columns, key: Some(key_of(stream)) }
    }

    /// What is said of a stream declared first as `before`, then as `after`.
    fn said(before: &str, epoch: u64, after: &str) -> Vec<String> {
        let after = stream(after);
        let declared = commit::declared_columns(&after.archive_schema()).unwrap();
        judge(&after, &written(&stream(before), epoch), &declared).iter().map(ToString::to_string).collect()
    }

    const BEFORE: &str = "id TEXT PRIMARY KEY,\nn INTEGER,\ntags STRUCT<a TEXT>[]";

    #[test]
    fn what_may_change() {
        for after in [
            BEFORE,
            "id TEXT PRIMARY KEY,\nn INTEGER,\ntags STRUCT<a TEXT>[],\nnew TEXT,\nat TIMESTAMPTZ",
            "new TEXT,\ntags STRUCT<a TEXT>[],\nn INTEGER NOT NULL CHECK (n > 0),\nid TEXT PRIMARY KEY",
            "id TEXT PRIMARY KEY",
        ] {
            assert_eq!(said(BEFORE, 5, after), [""; 0], "{after}");
        }
    }

    #[test]
    fn what_may_not_change_is_named_with_its_place() {
        for (after, at, words) in [
            ("id TEXT PRIMARY KEY,\nn BIGINT", "s.sql:3:1: column n", "integer"),
            ("id TEXT PRIMARY KEY,\nn TEXT", "s.sql:3:1: column n", "integer"),
            ("id TEXT PRIMARY KEY,\n  tags STRUCT<a TEXT, b TEXT>[]", "s.sql:3:3: column tags", "archived as"),
            ("id TEXT PRIMARY KEY,\nnew TEXT NOT NULL", "s.sql:3:1: column new", "CHECK (new IS NOT NULL)"),
            ("id TEXT,\nn INTEGER", "s.sql:1:1: stream s", "the key id and declared with no key"),
            ("id TEXT,\nn INTEGER PRIMARY KEY", "s.sql:3:1: stream s", "the key id and declared with the key n"),
        ] {
            let said = said(BEFORE, 5, after);
            assert_eq!(said.len(), 1, "{after}: {said:?}");
            assert!(said[0].starts_with(at) && said[0].contains(words), "{after}: {said:?}");
        }
        assert!(said("id TEXT", 5, "id TEXT PRIMARY KEY")[0].contains("no key and declared with the key id"));
        let all = said(BEFORE, 5, "id TEXT,\nn TEXT,\nnew TEXT NOT NULL");
        assert_eq!(all.len(), 3, "all at once: {all:?}");
    }

    #[test]
    fn before_the_first_record_key_and_rules_are_free() {
        assert_eq!(said(BEFORE, 0, "id TEXT,\nn INTEGER,\nnew TEXT NOT NULL PRIMARY KEY"), [""; 0]);
    }

    #[test]
    fn an_archive_that_does_not_say_its_key_is_believed() {
        let after = stream("id TEXT");
        let written = Written { key: None, ..written(&stream("id TEXT PRIMARY KEY"), 5) };
        let declared = commit::declared_columns(&after.archive_schema()).unwrap();
        assert_eq!(judge(&after, &written, &declared), []);
    }

    #[test]
    fn fields_are_read_as_the_decoder_reads_them() {
        let extra: ArrayRef = Arc::new(StringArray::from(vec![
            Some(r#"{"n":5,"t":"a\"b","u":"6BA7B810-9DAD-11D1-80B4-00C04FD430C8","o":{"a":"x","z":1}}"#),
            Some(r#"{"n":"5","t":7,"u":"none","o":[1]}"#),
            Some(r#"{"n":null}"#),
            Some(r#"{"other":{"n":1}}"#),
            None,
            Some(r#"{"n":99999999999,"t":"","n":8}"#),
        ]));
        let read = |name: &str, kind: ColumnType| {
            let field = ExtraField { extra: Arc::new(ColumnExpr::new(EXTRA, 0)), name: name.into(), kind };
            let column = field.column(&extra).unwrap();
            assert_eq!(column.data_type(), &field.kind.data_type());
            let cell = |row| arrow::util::display::array_value_to_string(&column, row).unwrap();
            (0..column.len())
                .map(|row| if column.is_null(row) { "-".into() } else { cell(row) })
                .collect::<Vec<_>>()
        };
        assert_eq!(read("n", ColumnType::Int32), ["5", "-", "-", "-", "-", "8"]);
        assert_eq!(read("t", ColumnType::Text), ["a\"b", "-", "-", "-", "-", ""]);
        let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        assert_eq!(read("u", ColumnType::Uuid), [uuid, "-", "-", "-", "-", "-"]);
        let object = match stream("o STRUCT<a TEXT>").columns.remove(0).kind {
            object @ ColumnType::Struct(_) => object,
            other => panic!("{other:?}"),
        };
        assert_eq!(read("o", object), ["{a: x}", "-", "-", "-", "-", "-"]);
    }
}
