//! The schema `system`: what the program knows about itself, at the snapshot of the query.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    UInt32Array, UInt64Array,
};
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::Result;

use super::census::Census;
use super::certificate::{Certificate, json};
use super::reconcile::history::{Finding, History, Outcome};
use super::refreshes::Refreshes;
use super::snapshot::{Snapshot, StreamSnapshot};
use crate::archive::compact::Damaged;
use crate::archive::keep::{FileState, Unneeded};
use crate::archive::{ArchiveFile, Kind};
use crate::audit::sealer::Seals;
use crate::batch::Generation;
use crate::batch::shelf::Shelf;
use crate::catalog::version;
use crate::kafka::status::IntakeStatus;
use crate::metrics::WorkOutcome;
use crate::runtime::{Clock, Health, Micros, SystemClock};
use crate::tables::log::TableLog;
use crate::tables::{Contents, Version};

/// What system tables tell beside the snapshot.
#[derive(Debug)]
pub struct Surroundings {
    pub status: IntakeStatus,
    pub health: Health,
    pub clock: Arc<dyn Clock>,
    /// Name, value and the file or default it comes from are public; secrets are not settings.
    pub settings: Vec<(String, String)>,
    pub shelf: Arc<Shelf>,
    pub history: Arc<History>,
    pub refreshes: Arc<Refreshes>,
    /// What lies in the archive's folders beside its files.
    pub census: Arc<Census>,
    /// Older versions of the reference tables.
    pub tables: Option<Arc<TableLog>>,
    pub seals: Arc<Seals>,
}

impl Surroundings {
    /// Of a process that has not begun: for the columns of the tables.
    pub fn none() -> Self {
        Self {
            status: IntakeStatus::default(),
            health: Health::default(),
            clock: Arc::new(SystemClock),
            settings: Vec::new(),
            shelf: Arc::new(Shelf::new(1)),
            history: Arc::new(History::new(1)),
            refreshes: Arc::default(),
            census: Arc::default(),
            tables: None,
            seals: Arc::default(),
        }
    }
}

/// Names of the tables, and what a row is.
pub const TABLES: [(&str, &str); 14] = [
    ("streams", "One row per stream: its topic, identity and records so far."),
    ("partitions", "One row per Kafka partition: how far it is read, how far behind, and why not."),
    ("snapshot", "What this query reads: one row per stream, with what is missing in it."),
    ("generations", "The generations that can be read: one row per stream, with the epoch it ends at."),
    ("refreshes", "One row per refresh of this process, the one that runs among them."),
    ("reconciliation", "One row per view and refresh, and one per group on which batch and speed differ."),
    ("views", "One row per view: its batch states in the current generation."),
    ("view_versions", "One row per definition that a view has or had, and whether it is kept up to date."),
    ("tables", "One row per reference table: its version in what this query reads, and who made it."),
    (
        "table_versions",
        "One row per version of a reference table, of the last hundred: who changed what, and when.",
    ),
    ("freshness", "One row per stream: the age of the newest record that is counted."),
    ("conservation", "One row per partition: offsets passed = counted + duplicate + quarantined + gaps."),
    ("files", "One row per file in the archive's folders: live, retired by compaction, or an orphan."),
    ("settings", "One row per setting."),
];

pub fn table(
    name: &str,
    snapshot: &Snapshot,
    as_of: Option<&Generation>,
    around: &Surroundings,
) -> Result<Option<Arc<dyn TableProvider>>> {
    let columns = match name {
        "streams" => streams(snapshot),
        "partitions" => partitions(snapshot, around),
        "snapshot" => pinned(&Certificate::of(snapshot, as_of, &around.status), snapshot.moment.at),
        "generations" => generations(snapshot, around),
        "refreshes" => refreshes(around),
        "reconciliation" => reconciliation(around),
        "views" => views(snapshot),
        "view_versions" => view_versions(snapshot),
        "tables" => tables(snapshot),
        "table_versions" => table_versions(snapshot),
        "freshness" => freshness(snapshot, around),
        "conservation" => conservation(snapshot),
        "files" => files(snapshot, around),
        "settings" => settings(around),
        _ => return Ok(None),
    };
    of_columns(columns).map(Some)
}

pub(super) type Columns = Vec<(&'static str, ArrayRef)>;

pub(super) fn of_columns(columns: Columns) -> Result<Arc<dyn TableProvider>> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, c)| Field::new(*name, c.data_type().clone(), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, column)| column).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), arrays)?;
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]])?))
}

/// Whether these columns of a table tell of more than the snapshot, so that they are others at another time.
pub(super) fn tells_of_the_present<'a>(table: &str, mut columns: impl Iterator<Item = &'a str>) -> bool {
    match table {
        "streams" | "views" | "view_versions" | "tables" | "table_versions" | "conservation" => false,
        "snapshot" => columns.any(|column| ["lag", "complete", "missing"].contains(&column)),
        // Also how many rows there are.
        _ => true,
    }
}

/// Turns rows into columns: one line a column, so that name, type and value stand together.
macro_rules! columns {
    ($rows:expr, $($name:literal: $array:ident = $value:expr),+ $(,)?) => {{
        let rows: Vec<_> = $rows;
        vec![$(($name, Arc::new(rows.iter().map($value).collect::<$array>()) as ArrayRef)),+]
    }};
}
pub(super) use columns;

pub(super) fn instant(column: TimestampMicrosecondArray) -> ArrayRef {
    Arc::new(column.with_timezone("UTC"))
}

fn stream_rows(snapshot: &Snapshot) -> Vec<(&String, &StreamSnapshot)> {
    snapshot.streams.iter().collect()
}

fn streams(snapshot: &Snapshot) -> Columns {
    let topic = |name: &str| snapshot.names.streams.get(name).map(|stream| stream.topic.clone());
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

fn partitions(snapshot: &Snapshot, around: &Surroundings) -> Columns {
    let known = around.status.partitions();
    let rows: Vec<_> = known
        .iter()
        .flat_map(|(stream, partitions)| partitions.iter().map(move |(id, status)| (stream, *id, status)))
        .map(|(stream, id, status)| {
            let counted = snapshot.streams.get(stream).map(|s| s.end.position(id).0);
            (stream, id, status, counted)
        })
        .collect();
    let topic = |name: &str| snapshot.names.streams.get(name).map(|stream| stream.topic.clone());
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

fn pinned(certificate: &Certificate, at: Micros) -> Columns {
    let rows: Vec<_> = certificate.streams.iter().collect();
    let changed = rows.iter().map(|_| Some(at)).collect();
    let mut columns: Columns = columns!(rows,
        "generation": UInt64Array = |_| Some(certificate.generation.0),
        "as_of": BooleanArray = |_| Some(certificate.as_of),
        "stream": StringArray = |(name, _)| Some(name.as_str()),
        "frontier": StringArray = |(_, s)| Some(json(&s.frontier)),
        "delta_end": StringArray = |(_, s)| Some(json(&s.end)),
        "archive_epoch": UInt64Array = |(_, s)| Some(s.archive_epoch.0),
        "archive_version": UInt64Array = |(_, s)| Some(s.archive_version),
        "lag": StringArray = |(_, s)| Some(json(&s.lag)),
        "complete": BooleanArray = |(_, s)| Some(s.is_complete()),
        "missing": StringArray = |(_, s)| (!s.is_complete()).then(|| s.missing.join("; ")),
    );
    columns.insert(2, ("changed_at", instant(changed)));
    columns
}

fn generations(snapshot: &Snapshot, around: &Surroundings) -> Columns {
    let readable = around.shelf.readable();
    let rows: Vec<_> =
        readable.iter().flat_map(|g| g.epochs.iter().map(move |(name, epoch)| (g, name, epoch))).collect();
    let created = rows.iter().map(|(g, ..)| Some(g.created_at)).collect();
    let mut columns: Columns = columns!(rows,
        "generation": UInt64Array = |(g, ..)| Some(g.id.0),
        "stream": StringArray = |(_, stream, _)| Some(stream.as_str()),
        "epoch": UInt64Array = |(.., epoch)| Some(epoch.0),
        "frontier": StringArray = |(g, stream, _)| g.frontier.0.get(*stream).map(|frontier| json(&frontier.next)),
        "engine_version": StringArray = |(g, ..)| Some(g.engine_version.as_str()),
        "current": BooleanArray = |(g, ..)| Some(g.id == snapshot.generation.id),
    );
    columns.insert(1, ("created_at", instant(created)));
    columns
}

fn refreshes(around: &Surroundings) -> Columns {
    let all = around.refreshes.all();
    let begun = all.iter().map(|refresh| Some(refresh.asked.at)).collect();
    let ended = all.iter().map(|refresh| refresh.ended.as_ref().map(|ended| ended.at)).collect();
    let mut columns: Columns = columns!(all.iter().collect(),
        "state": StringArray = |r| Some(match r.ended.as_ref().map(|ended| ended.outcome) {
            None if r.published.is_some() => "comparing",
            None => "running",
            Some(WorkOutcome::Done) => "done",
            Some(WorkOutcome::Failed) => "failed",
            Some(WorkOutcome::Cancelled) => "cancelled",
        }),
        "generation": UInt64Array = |r| r.published.or(r.ended.as_ref().map(|ended| ended.generation)).map(|id| id.0),
        "full_views": StringArray = |r| {
            let views: Vec<&str> = r.asked.full.iter().map(|view| version::unbound_instance(view)).collect();
            (!views.is_empty()).then(|| views.join(", "))
        },
        "view": StringArray = |r| r.progress.view.as_deref().map(version::unbound_instance),
        "views_done": UInt64Array = |r| Some(r.progress.views_done),
        "rows_done": UInt64Array = |r| Some(r.progress.rows_done),
        "rows": UInt64Array = |r| Some(r.progress.rows),
        "bytes_read": UInt64Array = |r| Some(r.progress.bytes_read),
        "error": StringArray = |r| r.ended.as_ref().and_then(|ended| ended.error.clone()),
    );
    columns.insert(0, ("begun_at", instant(begun)));
    columns.insert(1, ("ended_at", instant(ended)));
    columns
}

fn reconciliation(around: &Surroundings) -> Columns {
    let findings = around.history.findings();
    let at = findings.iter().map(|found| Some(found.subject.at)).collect();
    let difference = |found: &Finding| match &found.outcome {
        Outcome::Differs(difference) => Some(difference.clone()),
        _ => None,
    };
    let counts = |found: &Finding| match &found.outcome {
        Outcome::Compared { groups, differing, .. } => Some((*groups, *differing)),
        _ => None,
    };
    let mut columns: Columns = columns!(findings.iter().collect(),
        "generation": UInt64Array = |f| Some(f.subject.generation.0),
        "view": StringArray = |f| Some(f.subject.view.as_str()),
        "after_epoch": UInt64Array = |f| Some(f.subject.after.0),
        "to_epoch": UInt64Array = |f| Some(f.subject.to.0),
        "restored_to_epoch": UInt64Array = |f| Some(f.subject.restored_to.0),
        "groups": UInt64Array = |f| counts(f).map(|(groups, _)| groups),
        "differing": UInt64Array = |f| counts(f).map(|(_, differing)| differing),
        "group_key": StringArray = |f| difference(f).map(|d| d.group),
        "batch": StringArray = |f| difference(f).and_then(|d| d.batch),
        "speed": StringArray = |f| difference(f).and_then(|d| d.speed),
        "not_compared": StringArray = |f| match &f.outcome {
            Outcome::Compared { not_compared, .. } if !not_compared.is_empty() => Some(not_compared.join(", ")),
            _ => None,
        },
        "error": StringArray = |f| match &f.outcome {
            Outcome::Failed(reason) => Some(reason.as_str()),
            _ => None,
        },
    );
    columns.insert(1, ("at", instant(at)));
    columns
}

fn views(snapshot: &Snapshot) -> Columns {
    let names = &snapshot.names;
    let rows: Vec<_> = names
        .view_names()
        .into_iter()
        .filter_map(|name| names.view(&name).map(|(instance, input)| (name, instance, input)))
        .map(|(name, instance, input)| (name, input, snapshot.generation.views.get(instance)))
        .collect();
    columns!(rows,
        "view": StringArray = |(name, ..)| Some(name.as_str()),
        "stream": StringArray = |(_, input, _)| Some(input.stream.name.as_str()),
        "fingerprint": StringArray = |(_, input, _)| Some(input.view.fingerprint()),
        "tables": StringArray = |(_, input, _)| {
            let tables: Vec<String> =
                input.tables.iter().map(|(table, bound)| format!("{table} {}", bound.version)).collect();
            (!tables.is_empty()).then(|| tables.join(", "))
        },
        "batch_runs": UInt64Array = |(.., states)| Some(states.map_or(0, |s| s.runs.len() as u64)),
        "batch_rows": UInt64Array = |(.., states)| Some(states.map_or(0, |s| s.runs.iter().map(|r| r.rows).sum())),
        "batch_bytes": UInt64Array = |(.., states)| Some(states.map_or(0, |s| s.runs.iter().map(|r| r.bytes).sum())),
    )
}

fn view_versions(snapshot: &Snapshot) -> Columns {
    let names = &snapshot.names;
    let rows: Vec<_> = names
        .versions
        .iter()
        .flat_map(|(view, history)| history.versions.iter().map(move |(number, v)| (view, history, *number, v)))
        .collect();
    let created = rows.iter().map(|(.., version)| Some(version.created_at)).collect();
    let kept =
        |view: &str, number| version::find_instance(&names.views, &version::instance(view, number)).is_some();
    let mut columns: Columns = columns!(rows,
        "view": StringArray = |(view, ..)| Some(view.as_str()),
        "version": UInt32Array = |(_, _, number, _)| Some(*number),
        "state": StringArray = |(_, history, number, _)| Some(history.state(*number).name()),
        "readable": BooleanArray = |(view, history, number, _)| {
            Some(history.kept().any(|kept| kept == *number) && kept(view, *number))
        },
        "in_file": BooleanArray = |(_, history, number, _)| Some(history.file == Some(*number)),
        "created_by": StringArray = |(.., version)| Some(version.created_by.as_str()),
        "statement": StringArray = |(.., version)| Some(version.statement.as_str()),
    );
    columns.insert(5, ("created_at", instant(created)));
    columns
}

fn tables(snapshot: &Snapshot) -> Columns {
    let rows: Vec<_> = snapshot.tables.iter().collect();
    let changed = |version: &Version| (version.number > 0).then_some(version.changed_at);
    let changed_at = rows.iter().map(|(_, contents)| changed(&contents.version)).collect();
    let mut columns: Columns = columns!(rows,
        "table": StringArray = |(name, _)| Some(name.as_str()),
        "version": UInt64Array = |(_, contents)| Some(contents.version.number),
        "rows": UInt64Array = |(_, contents)| Some(contents.rows.num_rows() as u64),
        "bytes": UInt64Array = |(_, contents)| Some(contents.rows.get_array_memory_size() as u64),
        "changed_by": StringArray = |(_, contents)| {
            (contents.version.number > 0).then(|| contents.version.changed_by.clone())
        },
    );
    columns.insert(4, ("changed_at", instant(changed_at)));
    columns
}

fn table_versions(snapshot: &Snapshot) -> Columns {
    let history = |(name, contents)| -> Vec<(String, Arc<Version>)> {
        let (name, contents): (&String, &Arc<Contents>) = (name, contents);
        contents.history.iter().map(|version| (name.clone(), Arc::clone(version))).collect()
    };
    let rows: Vec<_> = snapshot.tables.iter().flat_map(history).collect();
    let changed_at = rows.iter().map(|(_, version)| Some(version.changed_at)).collect();
    let mut columns: Columns = columns!(rows,
        "table": StringArray = |(name, _)| Some(name.as_str()),
        "version": UInt64Array = |(_, version)| Some(version.number),
        "changed_by": StringArray = |(_, version)| Some(version.changed_by.as_str()),
        "change": StringArray = |(_, version)| Some(version.change.as_str()),
        "changed_rows": UInt64Array = |(_, version)| Some(version.changed_rows),
        "rows": UInt64Array = |(_, version)| Some(version.rows),
        "path": StringArray = |(_, version)| Some(version.path.as_str()),
        "sha256": StringArray = |(_, version)| Some(version.sha256.as_str()),
    );
    columns.insert(2, ("changed_at", instant(changed_at)));
    columns
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

/// A file of the archive, or one that lies beside them.
enum FileRow<'a> {
    Live(&'a ArchiveFile),
    Other(&'a Unneeded),
}

fn files(snapshot: &Snapshot, around: &Surroundings) -> Columns {
    let others = around.census.unneeded();
    let damaged: Damaged = snapshot.streams.keys().flat_map(|name| around.census.damaged(name)).collect();
    let named: HashSet<&str> =
        snapshot.streams.values().flat_map(|s| s.archive.files.iter().map(|file| file.path.as_ref())).collect();
    let live = snapshot
        .streams
        .iter()
        .flat_map(|(name, s)| s.archive.files.iter().map(move |file| (name, FileRow::Live(file.as_ref()))));
    // Upkeep looked at another moment: what this snapshot names is live.
    let beside = others
        .iter()
        .filter(|(_, other)| !named.contains(other.file.path.as_ref()))
        .map(|(name, other)| (name, FileRow::Other(other)));
    let of_live = |row: &FileRow<'_>| match row {
        FileRow::Live(file) => Some((file.kind.name(), file.rows, file.first.0, file.epoch.0, file.sha256.clone())),
        FileRow::Other(_) => None,
    };
    columns!(live.chain(beside).collect(),
        "stream": StringArray = |(name, _)| Some(name.as_str()),
        "path": StringArray = |(_, row)| Some(match row {
            FileRow::Live(file) => file.path.to_string(),
            FileRow::Other(other) => other.file.path.to_string(),
        }),
        "state": StringArray = |(_, row)| Some(match row {
            FileRow::Live(_) => FileState::Live.name(),
            FileRow::Other(other) => other.state.name(),
        }),
        "kind": StringArray = |(_, row)| of_live(row).map(|(kind, ..)| kind),
        "first_epoch": UInt64Array = |(_, row)| of_live(row).map(|(_, _, first, ..)| first),
        "epoch": UInt64Array = |(_, row)| of_live(row).map(|(_, _, _, epoch, _)| epoch),
        "rows": UInt64Array = |(_, row)| of_live(row).map(|(_, rows, ..)| rows),
        "bytes": UInt64Array = |(_, row)| Some(match row {
            FileRow::Live(file) => file.bytes,
            FileRow::Other(other) => other.file.bytes,
        }),
        "sha256": StringArray = |(_, row)| of_live(row).map(|(.., sha256)| sha256),
        "fault": StringArray = |(_, row)| match row {
            FileRow::Live(file) => damaged.get(file.path.as_ref()).cloned(),
            FileRow::Other(_) => None,
        },
    )
}

fn settings(around: &Surroundings) -> Columns {
    columns!(around.settings.iter().collect(),
        "name": StringArray = |(name, _)| Some(name.as_str()),
        "value": StringArray = |(_, value)| Some(value.as_str()),
    )
}
