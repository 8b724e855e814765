//! The schema `system`: what the program knows about itself, at the snapshot of the query.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    UInt64Array,
};
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::Result;

use super::catalog::Names;
use super::snapshot::{Snapshot, StreamSnapshot};
use crate::archive::Kind;
use crate::kafka::status::IntakeStatus;
use crate::runtime::{Clock, Health, Micros, SystemClock};

/// What system tables tell beside the snapshot.
#[derive(Debug)]
pub struct Surroundings {
    pub status: IntakeStatus,
    pub health: Health,
    pub clock: Arc<dyn Clock>,
    /// Name, value and the file or default it comes from are public; secrets are not settings.
    pub settings: Vec<(String, String)>,
}

impl Surroundings {
    /// Of a process that has not begun: for the columns of the tables.
    pub fn none() -> Self {
        Self {
            status: IntakeStatus::default(),
            health: Health::default(),
            clock: Arc::new(SystemClock),
            settings: Vec::new(),
        }
    }
}

/// Names of the tables, and what a row is.
pub const TABLES: [(&str, &str); 8] = [
    ("streams", "One row per stream: its topic, identity and records so far."),
    ("partitions", "One row per Kafka partition: how far it is read, how far behind, and why not."),
    ("generations", "The generation that answers: one row per stream, with the epoch it ends at."),
    ("views", "One row per view: its batch states in the current generation."),
    ("freshness", "One row per stream: the age of the newest record that is counted."),
    ("conservation", "One row per partition: offsets passed = counted + duplicate + quarantined + gaps."),
    ("files", "One row per file of the archive."),
    ("settings", "One row per setting."),
];

pub fn table(
    name: &str,
    snapshot: &Snapshot,
    names: &Names,
    around: &Surroundings,
) -> Result<Option<Arc<dyn TableProvider>>> {
    let columns = match name {
        "streams" => streams(snapshot, names),
        "partitions" => partitions(snapshot, names, around),
        "generations" => generations(snapshot),
        "views" => views(snapshot, names),
        "freshness" => freshness(snapshot, around),
        "conservation" => conservation(snapshot),
        "files" => files(snapshot),
        "settings" => settings(around),
        _ => return Ok(None),
    };
    let fields: Vec<Field> =
        columns.iter().map(|(name, c)| Field::new(*name, c.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, column)| column).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
    Ok(Some(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?)))
}

type Columns = Vec<(&'static str, ArrayRef)>;

/// Turns rows into columns: one line a column, so that name, type and value stand together.
macro_rules! columns {
    ($rows:expr, $($name:literal: $array:ident = $value:expr),+ $(,)?) => {{
        let rows: Vec<_> = $rows;
        vec![$(($name, Arc::new(rows.iter().map($value).collect::<$array>()) as ArrayRef)),+]
    }};
}

fn instant(column: TimestampMicrosecondArray) -> ArrayRef {
    Arc::new(column.with_timezone("UTC"))
}

fn stream_rows(snapshot: &Snapshot) -> Vec<(&String, &StreamSnapshot)> {
    snapshot.streams.iter().collect()
}

fn streams(snapshot: &Snapshot, names: &Names) -> Columns {
    let topic = |name: &str| names.streams.get(name).map(|stream| stream.topic.clone());
    columns!(stream_rows(snapshot),
        "stream": StringArray = |(name, _)| Some(name.as_str()),
        "topic": StringArray = |(name, _)| topic(name),
        "cluster_id": StringArray = |(_, s)| s.end.topic.as_ref().map(|t| t.cluster_id.clone()),
        "topic_id": StringArray = |(_, s)| s.end.topic.as_ref().map(|t| t.topic_id.clone()),
        "archive_epoch": UInt64Array = |(_, s)| Some(s.archive.epoch.0),
        "archive_version": UInt64Array = |(_, s)| Some(s.archive.version),
        "archived_events": UInt64Array = |(_, s)| Some(s.archive.rows.of(Kind::Event)),
        "archived_duplicates": UInt64Array = |(_, s)| Some(s.archive.rows.of(Kind::Duplicate)),
        "archived_quarantined": UInt64Array = |(_, s)| Some(s.archive.rows.of(Kind::Quarantined)),
        "delta_bytes": UInt64Array = |(_, s)| Some(s.delta.bytes() as u64),
    )
}

fn partitions(snapshot: &Snapshot, names: &Names, around: &Surroundings) -> Columns {
    let known = around.status.partitions();
    let rows: Vec<_> = known
        .iter()
        .flat_map(|(stream, partitions)| partitions.iter().map(move |(id, status)| (stream, *id, status)))
        .map(|(stream, id, status)| {
            let counted = snapshot.streams.get(stream).map(|s| s.end.position(id).0);
            (stream, id, status, counted)
        })
        .collect();
    let topic = |name: &str| names.streams.get(name).map(|stream| stream.topic.clone());
    columns!(rows,
        "stream": StringArray = |(stream, ..)| Some(stream.as_str()),
        "topic": StringArray = |(stream, ..)| topic(stream),
        "partition": Int32Array = |(_, id, ..)| Some(id.0),
        "position": Int64Array = |(_, _, _, counted)| *counted,
        "end_offset": Int64Array = |(_, _, status, _)| status.end.map(|end| end.0),
        "lag": Int64Array = |(_, _, status, counted)| Some((status.end?.0 - (*counted)?).max(0)),
        "reading": BooleanArray = |(_, _, status, _)| Some(status.halted.is_none()),
        "reason": StringArray = |(_, _, status, _)| status.halted.clone(),
    )
}

fn generations(snapshot: &Snapshot) -> Columns {
    let generation = &snapshot.generation;
    let rows: Vec<_> = generation.epochs.iter().collect();
    let mut columns: Columns = columns!(rows,
        "generation": UInt64Array = |_| Some(generation.id.0),
        "stream": StringArray = |(stream, _)| Some(stream.as_str()),
        "epoch": UInt64Array = |(_, epoch)| Some(epoch.0),
        "frontier": StringArray = |(stream, _)| {
            generation.frontier.0.get(*stream).and_then(|f| serde_json::to_string(&f.next).ok())
        },
        "engine_version": StringArray = |_| Some(generation.engine_version.clone()),
    );
    let created = generation.epochs.iter().map(|_| Some(generation.created_at)).collect();
    columns.insert(1, ("created_at", instant(created)));
    columns
}

fn views(snapshot: &Snapshot, names: &Names) -> Columns {
    let rows: Vec<_> =
        names.views.iter().map(|(name, input)| (name, input, snapshot.generation.views.get(name))).collect();
    columns!(rows,
        "view": StringArray = |(name, ..)| Some(name.as_str()),
        "stream": StringArray = |(_, input, _)| Some(input.stream.name.as_str()),
        "fingerprint": StringArray = |(_, input, _)| Some(input.view.fingerprint()),
        "batch_runs": UInt64Array = |(.., states)| Some(states.map_or(0, |s| s.runs.len() as u64)),
        "batch_rows": UInt64Array = |(.., states)| Some(states.map_or(0, |s| s.runs.iter().map(|r| r.rows).sum())),
        "batch_bytes": UInt64Array = |(.., states)| Some(states.map_or(0, |s| s.runs.iter().map(|r| r.bytes).sum())),
    )
}

fn freshness(snapshot: &Snapshot, around: &Surroundings) -> Columns {
    let known = around.status.partitions();
    let now = around.clock.now();
    let created = snapshot.generation.created_at;
    let seconds = |from: Micros| (now - from) / 1_000_000;
    columns!(stream_rows(snapshot),
        "stream": StringArray = |(name, _)| Some(name.as_str()),
        "lag": Int64Array = |(name, s)| known.get(*name).map(|partitions| {
            partitions.iter().filter_map(|(id, p)| Some((p.end?.0 - s.end.position(*id).0).max(0))).sum::<i64>()
        }),
        "complete": BooleanArray = |(name, s)| known.get(*name).map(|partitions| {
            partitions.iter().all(|(id, p)| p.halted.is_none() && p.end.is_some_and(|end| s.end.position(*id) >= end))
        }),
        "batch_age_seconds": Int64Array = |_| (created > 0).then(|| seconds(created)),
    )
}

fn conservation(snapshot: &Snapshot) -> Columns {
    let rows: Vec<_> = snapshot
        .streams
        .iter()
        .flat_map(|(name, s)| s.ledger.iter().map(move |(id, row)| (name, *id, *row)))
        .collect();
    columns!(rows,
        "stream": StringArray = |(name, ..)| Some(name.as_str()),
        "partition": Int32Array = |(_, id, _)| Some(id.0),
        "passed": UInt64Array = |(.., row)| Some(row.passed),
        "counted": UInt64Array = |(.., row)| Some(row.events),
        "duplicate": UInt64Array = |(.., row)| Some(row.duplicates),
        "quarantined": UInt64Array = |(.., row)| Some(row.quarantined),
        "gaps": UInt64Array = |(.., row)| Some(row.gaps),
        "balances": BooleanArray = |(.., row)| Some(row.balances()),
    )
}

fn files(snapshot: &Snapshot) -> Columns {
    let rows: Vec<_> = snapshot
        .streams
        .iter()
        .flat_map(|(name, s)| s.archive.files.iter().map(move |file| (name, file)))
        .collect();
    columns!(rows,
        "stream": StringArray = |(name, _)| Some(name.as_str()),
        "path": StringArray = |(_, file)| Some(file.path.to_string()),
        "kind": StringArray = |(_, file)| Some(file.kind.name()),
        "epoch": UInt64Array = |(_, file)| Some(file.epoch.0),
        "rows": UInt64Array = |(_, file)| Some(file.rows),
        "bytes": UInt64Array = |(_, file)| Some(file.bytes),
        "sha256": StringArray = |(_, file)| Some(file.sha256.clone()),
    )
}

fn settings(around: &Surroundings) -> Columns {
    columns!(around.settings.iter().collect(),
        "name": StringArray = |(name, _)| Some(name.as_str()),
        "value": StringArray = |(_, value)| Some(value.as_str()),
    )
}
