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
    let declared = declared(&sql()).await.unwrap_or_else(|faults| panic!("{faults:#?}"));
    let public: Vec<&String> = declared.names.ordinary.keys().filter(|name| !name.contains('.')).collect();
    assert_eq!(public, ["country_earnings", "country_share", "top_videos"]);
    let silent: Vec<_> = declared.catalog.ordinary.values().filter(|view| view.comment.is_none()).collect();
    assert!(silent.is_empty(), "no comment says what a row is: {silent:?}");
}

#[tokio::test]
async fn every_view_can_be_kept_as_a_lambda_view() {
    let catalog = catalog();
    assert_eq!(catalog.views.len(), 8);
    let planner = planner(&catalog);
    for (name, view) in &catalog.views {
        assert!(view.comment.is_some(), "{name} does not say what a row is");
        planner.view(&view.name, view).await.unwrap_or_else(|fault| panic!("{fault:?}"));
    }
    let video_views = &catalog.views["video_views"];
    assert_eq!(video_views.refresh_every, RefreshEvery::Interval(Duration::from_secs(3_600)));
}

async fn declared(sql: &Path) -> Result<viewledger::app::Declared, Vec<viewledger::catalog::Fault>> {
    let settings = [("VIEWLEDGER_SQL_DIR".to_owned(), sql.display().to_string())];
    let config = viewledger::config::Config::load(None, settings).unwrap();
    let planning = EngineConfig { threads: 1, memory_bytes_max: 64 << 20, spill_dir: None, batch_rows: 8_192 };
    viewledger::app::declare(&config, &Engine::new(planning).unwrap()).await
}

#[tokio::test]
async fn every_endpoint_is_declared_without_a_fault_and_has_a_tag() {
    let declared = declared(&sql()).await.unwrap_or_else(|faults| panic!("{faults:#?}"));
    let endpoints = &declared.names.endpoints;
    let routes: Vec<&String> = endpoints.keys().collect();
    let (panels, api): (Vec<&String>, Vec<_>) =
        routes.into_iter().partition(|route| route.starts_with("/console/"));
    assert_eq!(api, ["/videos", "/videos/{video_id}/revenue", "/videos/{video_id}/views"]);
    assert_eq!(panels, ["/console/ads", "/console/countries", "/console/top-videos", "/console/views-by-hour"]);
    for (route, endpoint) in endpoints {
        // The last day is another one at each moment.
        assert_eq!(endpoint.varies.is_some(), route == "/console/views-by-hour", "{route}");
    }
    let views = &endpoints["/videos/{video_id}/views"];
    let columns: Vec<&String> = views.schema.fields().iter().map(|field| field.name()).collect();
    assert_eq!(columns, ["video_id", "total_views", "batch_views", "realtime_views", "as_of"]);
}

/// A directory with what is shipped and one more endpoint, which answers `query`.
fn with_endpoint(root: &Path, returns: &str, query: &str) {
    for folder in ["streams", "tables", "views"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
        for file in std::fs::read_dir(sql().join(folder)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), root.join(folder).join(file.file_name())).unwrap();
        }
    }
    std::fs::create_dir_all(root.join("api")).unwrap();
    let header = format!("-- GET /case\n-- about: A case.\n-- returns: {returns}\n");
    std::fs::write(root.join("api/case.sql"), header + query).unwrap();
}

/// A tag is given where the snapshot alone decides about the bytes, and nowhere else.
#[tokio::test]
async fn a_tag_is_refused_to_what_may_be_answered_in_two_ways() {
    let root = tempfile::tempdir().unwrap();
    for (returns, query, why) in [
        ("rows", "SELECT video_id, total_views FROM video_views ORDER BY total_views DESC LIMIT 5", ""),
        ("rows", "SELECT geo_location, sum(total_views) AS n FROM country_device_daily GROUP BY 1 ORDER BY 1", ""),
        ("rows", "SELECT video_id, quality FROM raw.video_views ORDER BY 1", ""),
        ("row", "SELECT count(*) AS n, sum(rate) AS rates FROM country_rates", ""),
        ("row", "SELECT generation FROM system.snapshot WHERE stream = 'ad_views'", ""),
        ("rows", "SELECT geo_location, earnings FROM country_earnings ORDER BY 1", ""),
        ("row", "SELECT now() AS at", "now"),
        ("row", "SELECT random() AS x FROM video_views", "random"),
        ("row", "SELECT max(lag) AS lag FROM system.snapshot", "tells of the present"),
        ("row", "SELECT count(*) AS n FROM system.refreshes", "tells of the present"),
        ("row", "SELECT video_id FROM video_views LIMIT 1", "order"),
        ("row", "SELECT max(mean_duration) AS x FROM video_views", "float"),
        ("row", "SELECT mean_duration > 1 AS x FROM video_views", "float"),
        ("row", "SELECT avg(view_duration) AS x FROM raw.video_views", "float"),
        ("row", "SELECT count(*) AS n FROM (SELECT video_id FROM video_views LIMIT 5)", "other rows"),
        ("row", "(SELECT video_id FROM video_views LIMIT 1)", "other rows"),
        ("row", "SELECT first_value(user_id) AS x FROM raw.video_views", "first_value"),
        (
            "rows",
            "SELECT row_number() OVER (ORDER BY total_views) AS n FROM video_views ORDER BY 1",
            "order of rows",
        ),
        ("rows", "SELECT video_id, ad_views FROM raw.video_views ORDER BY 1", "one order"),
        ("rows", "SELECT video_id FROM top_videos ORDER BY 1", "view top_videos"),
    ] {
        with_endpoint(root.path(), returns, query);
        let declared = declared(root.path()).await.unwrap_or_else(|faults| panic!("{query}: {faults:#?}"));
        let varies = declared.names.endpoints["/case"].varies.clone();
        match why {
            "" => assert_eq!(varies, None, "{query}"),
            why => assert!(varies.as_ref().is_some_and(|varies| varies.contains(why)), "{query}: {varies:?}"),
        }
    }
    for (query, told) in [
        ("SELECT nothing FROM video_views", "case.sql:4:8: "),
        (
            "SELECT a.video_id, b.video_id FROM video_views AS a JOIN video_views AS b ON a.video_id = b.video_id",
            "case.sql:4:1: the answer has two columns video_id",
        ),
        ("SELECT m.video_id FROM video_views AS m ORDER BY m.nothing", "case.sql:4:"),
        ("SELECT * FROM nowhere", "case.sql:4:15: "),
        ("SELECT video_id + 1 AS x FROM video_views", "case.sql:4:"),
    ] {
        with_endpoint(root.path(), "row", query);
        let faults = declared(root.path()).await.err().unwrap_or_default();
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert!(faults.len() == 1 && faults[0].contains(told), "{query}: {faults:?}");
    }
}
