//! What the repository ships in `sql/` fits together: every view can be kept as a lambda view, and the ingest accepts
//! exactly the records that the generator means to be sound.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{AsArray, RecordBatch};
use datafusion::arrow::datatypes::Int64Type;
use viewledger::catalog::role::Privilege;
use viewledger::catalog::schedule::RefreshEvery;
use viewledger::catalog::stream::{EXTRA, OFFSET, REASON};
use viewledger::catalog::{Catalog, loader};
use viewledger::demo::load::generator::{Generator, Kind, Timeline};
use viewledger::demo::load::profile::{Profile, Variety};
use viewledger::engine::planner::Planner;
use viewledger::engine::{Engine, EngineConfig};
use viewledger::kafka::decode::Decoder;
use viewledger::kafka::{Decoded, RawBatch, RawRecord};
use viewledger::position::{Offset, PartitionId};

const START: i64 = 1_767_225_600_000_000;
const RECORDS: usize = 60_000;

fn sql() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sql")
}

fn catalog() -> Catalog {
    loader::load(&sql()).unwrap_or_else(|faults| panic!("{faults:#?}"))
}

/// A record as the generator meant it.
struct Meant {
    kind: Kind,
    variety: Option<Variety>,
    text: String,
}

/// `RECORDS` records of the profile, at the offsets 0, 1, 2, ... of one partition, and what each is.
fn generated(profile: &Profile) -> (RawBatch, Vec<Meant>) {
    let timeline = Timeline::Fixed { start: START, step: Duration::from_millis(1) };
    let mut generator = Generator::new(profile, 5, timeline);
    let mut batch = RawBatch::default();
    let mut meant = Vec::new();
    for number in 0..RECORDS {
        let record = generator.next_record();
        let begin = batch.bytes.len();
        batch.bytes.extend_from_slice(record.payload);
        batch.records.push(RawRecord {
            partition: PartitionId(0),
            offset: Offset(number as i64),
            produced_at: Some(START + number as i64 * 1_000),
            payload: Some(begin..batch.bytes.len()),
        });
        let (kind, variety) = (record.truth.kind, record.truth.variety);
        meant.push(Meant { kind, variety, text: String::from_utf8_lossy(record.payload).into_owned() });
    }
    (batch, meant)
}

fn planner(catalog: &Catalog) -> Planner {
    let config = EngineConfig { threads: 2, memory_bytes_max: 64 << 20, spill_dir: None, batch_rows: 8_192 };
    Planner::new(&Engine::new(config).unwrap(), catalog).unwrap()
}

fn offsets(batch: &RecordBatch) -> Vec<usize> {
    let column = batch.column_by_name(OFFSET).unwrap().as_primitive::<Int64Type>();
    column.values().iter().map(|offset| usize::try_from(*offset).unwrap()).collect()
}

fn ingested(catalog: &Catalog, stream: &str, mut batch: RawBatch) -> Decoded {
    let stream = &catalog.streams[stream];
    let checks = planner(catalog).checks(stream).unwrap();
    let decoder = Decoder::new(Arc::clone(stream), checks, 16 << 20);
    decoder.decode(&mut batch, START).unwrap()
}

#[test]
fn ingest_rejects_exactly_the_malformed_records() {
    let catalog = catalog();
    for name in ["video_views", "ad_views", "user_sessions"] {
        let profile = Profile::from_file(&sql().join(format!("load/{name}.toml"))).unwrap();
        let stream = &catalog.streams[name];
        assert_eq!(stream.topic, profile.topic());
        let (batch, meant) = generated(&profile);
        let decoded = ingested(&catalog, name, batch);

        let reasons = decoded.rejects.column_by_name(REASON).unwrap().as_string::<i32>();
        let mut rejected = BTreeMap::new();
        for (row, offset) in offsets(&decoded.rejects).into_iter().enumerate() {
            let Meant { kind, text, .. } = &meant[offset];
            assert_eq!(*kind, Kind::Malformed, "{name}: {text} was rejected: {}", reasons.value(row));
            rejected.insert(offset, reasons.value(row).to_owned());
        }
        for (offset, Meant { kind, variety, text }) in meant.iter().enumerate() {
            let was = rejected.contains_key(&offset);
            assert_eq!(was, *kind == Kind::Malformed, "{name}: {kind:?} {variety:?} {text}");
        }
        assert!(rejected.len() > RECORDS / 2_000, "{name}: only {} malformed", rejected.len());

        let extra = decoded.records.column_by_name(EXTRA).unwrap();
        let undeclared = meant.iter().filter(|meant| meant.kind == Kind::Undeclared).count();
        assert!(undeclared > 0);
        assert!(extra.len() - extra.null_count() >= undeclared, "{name}: undeclared fields were dropped");
    }
}

#[test]
fn each_variety_is_rejected_for_the_rule_it_breaks() {
    let catalog = catalog();
    let path = sql().join("load/video_views.toml");
    let shipped = std::fs::read_to_string(&path).unwrap();
    let text = shipped.replacen("[malformed]\nshare = 0.001\nhuge_bytes = 200_000", "[malformed]\nshare = 0.2", 1);
    assert_ne!(text, shipped);
    let profile = Profile::parse(&text.replace("huge = 1", "huge = 0"), &path).unwrap();
    let (batch, meant) = generated(&profile);
    let decoded = ingested(&catalog, "video_views", batch);
    let reasons = decoded.rejects.column_by_name(REASON).unwrap().as_string::<i32>();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (row, offset) in offsets(&decoded.rejects).into_iter().enumerate() {
        let variety = meant[offset].variety.unwrap().as_str();
        let expected = match variety {
            "invalid_utf8" => "not UTF-8",
            "missing_key" | "null_id" => "required",
            "out_of_range" => "duration_within_a_day",
            "future_time" => "not_from_the_future",
            "ancient_time" => "not_ancient",
            "wrong_type" => "field ",
            _ => "",
        };
        let reason = reasons.value(row);
        assert!(reason.contains(expected), "{variety}: {reason}");
        *seen.entry(variety).or_default() += 1;
    }
    assert_eq!(seen.len(), 8, "{seen:?}");
}

#[test]
fn each_role_may_what_its_file_says() {
    let roles = catalog().roles;
    let names: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
    assert_eq!(names, ["analyst", "auditor", "billing", "operator"]);
    let may = |privilege, schema, table| -> Vec<&str> {
        roles.iter().filter(|role| role.may(privilege, schema, table)).map(|role| role.name.as_str()).collect()
    };
    for schema in ["public", "batch", "speed", "raw", "quarantine", "system"] {
        assert_eq!(may(Privilege::Select, schema, "anything"), names, "{schema}");
    }
    assert_eq!(may(Privilege::Select, "audit", "access_log"), ["auditor"]);
    assert_eq!(may(Privilege::Maintain, "public", "video_views"), ["operator"]);
    for privilege in [Privilege::Insert, Privilege::Update, Privilege::Delete] {
        assert_eq!(may(privilege, "public", "country_rates"), ["billing"]);
        assert_eq!(may(privilege, "public", "video_views"), [""; 0]);
    }
    let operators = roles.iter().filter(|role| role.has_reserved_connections());
    assert_eq!(operators.map(|role| role.name.as_str()).collect::<Vec<_>>(), ["operator"]);
    assert!(roles.iter().all(|role| role.login && role.verifier.is_none()), "no password is shipped");
}

/// Planned as the server plans them, ordinary ones over the others.
#[tokio::test]
async fn every_view_is_declared_without_a_fault() {
    let settings = [("VIEWLEDGER_SQL_DIR".to_owned(), sql().display().to_string())];
    let config = viewledger::config::Config::load(None, settings).unwrap();
    let planning = EngineConfig { threads: 1, memory_bytes_max: 64 << 20, spill_dir: None, batch_rows: 8_192 };
    let declared = viewledger::app::declare(&config, &Engine::new(planning).unwrap()).await;
    let declared = declared.unwrap_or_else(|faults| panic!("{faults:#?}"));
    let ordinary: Vec<&String> = declared.names.ordinary.keys().collect();
    assert_eq!(ordinary, ["country_earnings", "country_share", "top_videos"]);
    assert!(declared.catalog.ordinary.values().all(|view| view.comment.is_some()));
}

#[tokio::test]
async fn every_view_can_be_kept_as_a_lambda_view() {
    let catalog = catalog();
    assert_eq!(catalog.views.len(), 6);
    let planner = planner(&catalog);
    for (name, view) in &catalog.views {
        assert!(view.comment.is_some(), "{name} does not say what a row is");
        planner.view(&view.name, view).await.unwrap_or_else(|fault| panic!("{fault:?}"));
    }
    let video_views = &catalog.views["video_views"];
    assert_eq!(video_views.refresh_every, RefreshEvery::Interval(Duration::from_secs(3_600)));
}
