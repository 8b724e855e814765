//! The records of the profiles in `sql/load`, and a small run against librdkafka's mock cluster.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::mocking::MockCluster;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

use crate::demo::broker::{Broker, BrokerConfig};
use crate::demo::load::generator::{Destination, Generator, Kind, Timeline};
use crate::demo::load::profile::{Profile, ProfileError, Variety};
use crate::demo::load::{LoadConfig, LoadError, LoadReport, Transactions, run};
use crate::runtime::{Health, Shutdown};

const START: i64 = 1_767_225_600_000_000;

fn shipped(name: &str) -> Profile {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sql/load").join(name);
    Profile::from_file(&path).unwrap()
}

fn fixed() -> Timeline {
    Timeline::Fixed { start: START, step: Duration::from_millis(1) }
}

/// A record that outlives the next.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    payload: Vec<u8>,
    key: Option<Vec<u8>>,
    destination: Destination,
    kind: Kind,
    variety: Option<Variety>,
    id: String,
    values: Vec<String>,
}

impl Kept {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.payload).unwrap()
    }
}

fn draw(profile: &Profile, seed: u64, records: usize) -> Vec<Kept> {
    let mut generator = Generator::new(profile, seed, fixed());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (0..records)
        .map(|_| {
            let record = generator.next_record();
            Kept {
                payload: record.payload.to_vec(),
                key: record.key.map(<[u8]>::to_vec),
                destination: record.destination,
                kind: record.truth.kind,
                variety: record.truth.variety,
                id: text(record.truth.id()),
                values: record.truth.values().map(text).collect(),
            }
        })
        .collect()
}

#[track_caller]
fn near(share: f64, expected: f64, records: usize) {
    // Five standard deviations of a binomial: one false alarm in two million runs, and the seed is fixed.
    let tolerance = 5.0 * (expected * (1.0 - expected) / records as f64).sqrt();
    assert!((share - expected).abs() <= tolerance, "share {share}, expected {expected} +- {tolerance}");
}

#[test]
fn one_seed_draws_the_same_records_and_another_one_others() {
    let profile = shipped("video_views.toml");
    let first = draw(&profile, 7, 20_000);
    assert!(first == draw(&profile, 7, 20_000));
    let ids = |records: &[Kept]| records.iter().map(|kept| kept.id.clone()).collect::<BTreeSet<_>>();
    let (ours, others) = (ids(&first), ids(&draw(&profile, 8, 20_000)));
    // The empty id of unreadable records is in both.
    assert!(ours.intersection(&others).filter(|id| !id.is_empty()).count() == 0);
}

#[test]
fn profiles_of_one_run_do_not_share_ids() {
    let ids = |name| draw(&shipped(name), 7, 1_000).into_iter().map(|kept| kept.id).collect::<BTreeSet<_>>();
    let (views, ads) = (ids("video_views.toml"), ids("ad_views.toml"));
    assert_eq!(views.intersection(&ads).filter(|id| !id.is_empty()).count(), 0);
}

#[test]
fn kinds_come_near_their_shares() {
    let records = 100_000;
    let profile = shipped("video_views.toml");
    let drawn = draw(&profile, 1, records);
    let share = |kind| drawn.iter().filter(|kept| kept.kind == kind).count() as f64 / records as f64;
    // The shares are those of the first sendings; copies come on top.
    let firsts = 1.0 - share(Kind::Duplicate);
    near(share(Kind::Late) / firsts, profile.late.share, records);
    near(share(Kind::Undeclared) / firsts, profile.undeclared.share, records);
    near(share(Kind::Malformed) / firsts, profile.malformed.share, records);
    let ordinary = share(Kind::Event) + share(Kind::Late) + share(Kind::Undeclared);
    // Copies that are due after the last record are not seen: up to half of them at this length.
    let copied = share(Kind::Duplicate) / ordinary;
    assert!((0.7..=1.1).contains(&(copied / profile.duplicates.share)), "{copied} are sent again");
}

#[test]
fn values_follow_their_distributions() {
    let records = 100_000;
    let drawn = draw(&shipped("video_views.toml"), 2, records);
    let events: Vec<Value> = drawn.iter().filter(|kept| kept.kind == Kind::Event).map(Kept::json).collect();
    let share = |holds: &dyn Fn(&Value) -> bool| {
        events.iter().filter(|event| holds(event)).count() as f64 / events.len() as f64
    };
    near(share(&|event| event["device_type"] == "mobile"), 0.52, events.len());
    near(share(&|event| event["revenue_eligible"] == true), 0.7, events.len());
    near(share(&|event| event["ad_views"].as_array().unwrap().is_empty()), 0.88, events.len());
    near(share(&|event| event.get("referrer").is_none()), 0.03, events.len());
    near(share(&|event| event.get("referrer").is_some_and(Value::is_null)), 0.05, events.len());
    near(share(&|event| event["view_duration"].is_null()), 0.005, events.len());
    near(share(&|event| event["view_duration"].as_i64().is_some_and(|seconds| seconds < 95)), 0.4975, events.len());
    let harmonic: f64 = (1..=200_000).map(|rank| f64::from(rank).powf(-1.05)).sum();
    near(share(&|event| event["video_id"] == "vid-0"), 1.0 / harmonic, events.len());
    near(share(&|event| event["video_id"] == "vid-1"), 2_f64.powf(-1.05) / harmonic, events.len());

    let bytes: usize = drawn.iter().filter(|kept| kept.kind == Kind::Event).map(|kept| kept.payload.len()).sum();
    let mean = bytes as f64 / events.len() as f64;
    assert!((270.0..370.0).contains(&mean), "an event has {mean} bytes on average");
}

#[test]
fn a_user_has_one_country_and_a_session_one_user() {
    let mut countries: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut sessions = 0;
    let records = draw(&shipped("video_views.toml"), 3, 100_000);
    for event in records.iter().filter(|kept| kept.kind == Kind::Event).map(Kept::json) {
        let user = event["user_id"].as_str().unwrap().to_owned();
        if let Some(country) = event["geo_location"].as_str() {
            countries.entry(user.clone()).or_default().insert(country.to_owned());
        }
        if let Some(session) = event["session_id"].as_str() {
            users.entry(session.to_owned()).or_default().insert(user);
            sessions += 1;
        }
    }
    assert!(countries.values().all(|of_user| of_user.len() == 1));
    assert!(countries.values().flatten().collect::<BTreeSet<_>>().len() > 10);
    assert!(users.values().all(|of_session| of_session.len() == 1));
    assert!(users.len() < sessions, "no session has two events");
}

#[test]
fn every_sound_record_is_json_of_the_declared_types() {
    for name in ["video_views.toml", "ad_views.toml", "user_sessions.toml"] {
        let profile = shipped(name);
        for kept in draw(&profile, 4, 30_000).iter().filter(|kept| kept.kind != Kind::Malformed) {
            let event = kept.json();
            assert!(is_sound(&event, &profile), "{name}: {event}");
            let undeclared = profile.undeclared.names.iter().filter(|name| event.get(name).is_some()).count();
            match kept.kind {
                Kind::Undeclared => assert_eq!(undeclared, 1, "{event}"),
                Kind::Event | Kind::Late => assert_eq!(undeclared, 0, "{event}"),
                _ => {}
            }
            assert_eq!(event[&profile.identity], kept.id.as_str());
            for (field, value) in profile.truth_fields.iter().zip(&kept.values) {
                match &event[field] {
                    Value::String(text) => assert_eq!(text, value),
                    Value::Null => assert_eq!("", value),
                    other => assert_eq!(&other.to_string(), value),
                }
            }
        }
    }
}

/// Independent of the generator: the rules that the streams in `sql/streams` state for these fields.
fn is_sound(event: &Value, profile: &Profile) -> bool {
    profile.fields.iter().all(|field| match event.get(&field.name) {
        None | Some(Value::Null) => !field.required,
        Some(value) => match field.name.as_str() {
            "event_id" => {
                let text = value.as_str().unwrap_or_default();
                text.len() == 36 && text.chars().filter(|c| *c == '-').count() == 4
            }
            "timestamp" => value
                .as_str()
                .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok())
                .is_some_and(|at| (1_104_537_600_000_000..START + 86_400_000_000).contains(&at.timestamp_micros())),
            "view_duration" => value.as_i64().is_some_and(|seconds| (0..=86_400).contains(&seconds)),
            "duration" => value.as_i64().is_some_and(|seconds| (0..=3_600).contains(&seconds)),
            "completed" | "revenue_eligible" => value.is_boolean(),
            "ad_views" => value.as_array().is_some_and(|ads| ads.iter().all(|ad| ad["ad_id"].is_string())),
            "revenue" => value.as_str().is_some_and(|text| text.parse::<f64>().is_ok()),
            _ => value.is_string(),
        },
    })
}

/// A profile that draws malformed records of one variety only.
fn only(variety: &str) -> Profile {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sql/load/video_views.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once("[malformed]").unwrap();
    let (_, fields) = rest.split_once("[[field]]").unwrap();
    let malformed = format!("[malformed]\nshare = 1.0\nhuge_bytes = 5000\nvarieties = {{ {variety} = 1 }}\n");
    let head = head.replace("share = 0.01", "share = 0.0").replace("share = 0.005", "share = 0.0");
    Profile::parse(&format!("{head}{malformed}[[field]]{fields}"), &path).unwrap()
}

/// Draws records of one variety and checks each of them.
fn malformed(variety: &str, breaks: impl Fn(&Kept) -> bool) {
    let records = draw(&only(variety), 5, 2_000);
    for kept in &records {
        assert_eq!(kept.kind, Kind::Malformed);
        assert_eq!(kept.variety.map(Variety::as_str), Some(variety));
        assert!(breaks(kept), "{variety}: {}", String::from_utf8_lossy(&kept.payload));
        assert!(kept.values.iter().all(String::is_empty), "truth of a malformed record: {:?}", kept.values);
    }
}

#[test]
fn broken_json_does_not_parse() {
    malformed("broken_json", |kept| serde_json::from_slice::<Value>(&kept.payload).is_err() && kept.id.is_empty());
}

#[test]
fn invalid_utf8_is_json_but_for_its_bytes() {
    malformed("invalid_utf8", |kept| {
        let mended = String::from_utf8_lossy(&kept.payload);
        std::str::from_utf8(&kept.payload).is_err() && serde_json::from_str::<Value>(&mended).is_ok()
    });
}

#[test]
fn missing_key_lacks_exactly_one_required_field() {
    let profile = only("missing_key");
    malformed("missing_key", |kept| {
        let event = kept.json();
        let missing = profile.fields.iter().filter(|field| field.required && event.get(&field.name).is_none());
        missing.count() == 1
    });
}

#[test]
fn wrong_type_breaks_the_type_of_one_field() {
    let profile = only("wrong_type");
    malformed("wrong_type", |kept| {
        let event = kept.json();
        let required = profile.fields.iter().filter(|field| field.required);
        !is_sound(&event, &profile) && required.into_iter().all(|field| event.get(&field.name).is_some())
    });
}

#[test]
fn out_of_range_is_an_integer_that_the_rule_refuses() {
    malformed("out_of_range", |kept| {
        let seconds = kept.json()["view_duration"].as_i64().unwrap();
        !(0..=86_400).contains(&seconds) && !kept.id.is_empty()
    });
}

#[test]
fn null_id_has_no_identity() {
    malformed("null_id", |kept| kept.json()["event_id"].is_null() && kept.id.is_empty());
}

#[test]
fn future_and_ancient_times_lie_far_away() {
    let year = |kept: &Kept| -> i32 { kept.json()["timestamp"].as_str().unwrap()[..4].parse().unwrap() };
    malformed("future_time", |kept| (2045..2097).contains(&year(kept)));
    malformed("ancient_time", |kept| (1970..2001).contains(&year(kept)));
}

#[test]
fn huge_records_have_the_size_and_are_no_json() {
    malformed("huge", |kept| {
        kept.payload.len() == 5_000 && serde_json::from_slice::<Value>(&kept.payload).is_err()
    });
}

#[test]
fn copies_repeat_an_earlier_record_byte_for_byte() {
    let mut sent: BTreeMap<String, Kept> = BTreeMap::new();
    let mut copies = 0;
    let mut elsewhere = 0;
    for kept in draw(&shipped("video_views.toml"), 6, 100_000) {
        if kept.kind == Kind::Duplicate {
            let original = sent.get(&kept.id).expect("the original came first");
            assert_eq!(original.payload, kept.payload);
            assert_eq!(original.key, kept.key);
            copies += 1;
            elsewhere += usize::from(kept.destination != original.destination);
        } else if kept.kind != Kind::Malformed {
            assert!(sent.insert(kept.id.clone(), kept).is_none(), "an id was drawn twice");
        }
    }
    assert!(copies > 500);
    near(elsewhere as f64 / copies as f64, 0.3, copies);
}

#[test]
fn late_records_lie_between_the_bounds_of_the_profile() {
    let profile = shipped("video_views.toml");
    let mut generator = Generator::new(&profile, 9, fixed());
    let mut late = 0;
    for number in 0..50_000_i64 {
        let record = generator.next_record();
        let kind = record.truth.kind;
        if kind != Kind::Late && kind != Kind::Event {
            continue;
        }
        let event: Value = serde_json::from_slice(record.payload).unwrap();
        let at = chrono::DateTime::parse_from_rfc3339(event["timestamp"].as_str().unwrap()).unwrap();
        let behind = START + number * 1_000 - at.timestamp_micros();
        let bounds = if kind == Kind::Late { 120_000_000..=259_200_001_000 } else { 0..=2_001_000 };
        assert!(bounds.contains(&behind), "{kind:?} lies {behind} microseconds behind");
        late += usize::from(kind == Kind::Late);
    }
    assert!(late > 300);
}

#[test]
fn profile_errors_name_the_file_and_the_key() {
    let sound = r#"
        topic = "clicks"
        identity = "id"
        truth_fields = ["page"]
        [[field]]
        name = "id"
        required = true
        value = { kind = "uuid" }
        [[field]]
        name = "page"
        value = { kind = "uniform", prefix = "p", n = 10 }
    "#;
    let path = Path::new("clicks.toml");
    Profile::parse(sound, path).unwrap();
    let cases = [
        ("n = 10", "n = 0", "field page: value: n must lie"),
        ("identity = \"id\"", "identity = \"page\"", "identity: must name a required field of kind uuid"),
        ("identity = \"id\"", "identity = \"no\"", "identity: there is no field no"),
        ("\"page\"]", "\"pages\"]", "truth_fields: there is no field pages"),
        ("prefix = \"p\"", "prefix = \"p\\\"\"", "must not hold quotes"),
        ("name = \"page\"", "name = \"id\"", "field id: is described twice"),
        ("[[field]]", "[late]\nshare = 1.5\n[[field]]", "late.share: must lie between 0 and 1"),
        ("[[field]]", "[undeclared]\nshare = 0.1\nnames = []\n[[field]]", "undeclared.names: must name"),
        ("[[field]]", "[late]\nfrom = \"5\"\n[[field]]", "\"5\" is not a duration"),
        ("kind = \"uuid\"", "kind = \"uiud\"", "unknown variant `uiud`"),
        ("required = true", "requiered = true", "unknown field `requiered`"),
        (
            "[[field]]",
            "[malformed]\nshare = 0.1\nvarieties = { out_of_range = 1 }\n[[field]]",
            "malformed.varieties.out_of_range: no field of this profile can break that rule",
        ),
        (
            "kind = \"uniform\", prefix = \"p\", n = 10",
            "kind = \"session\", prefix = \"s\", of = \"id\", events = 2.0",
            "field page: of: must name an earlier zipf or uniform field",
        ),
    ];
    for (from, to, expected) in cases {
        assert!(sound.contains(from), "{from}");
        let error = Profile::parse(&sound.replacen(from, to, 1), path).unwrap_err();
        let mut text = error.to_string();
        if let ProfileError::Parse { source, .. } = &error {
            text = format!("{text}: {source}");
        }
        assert!(text.contains("clicks.toml") && text.contains(expected), "{text}\nexpected: {expected}");
    }
    let missing = Profile::from_file(Path::new("no/such.toml")).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read the profile no/such.toml");
}

/// One line of a truth file, by the names of its header.
fn read_truth(path: &Path) -> Vec<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    lines
        .map(|line| {
            let cells: Vec<&str> = line.split(',').collect();
            assert_eq!(cells.len(), names.len(), "{line}");
            names.iter().zip(cells).map(|(name, cell)| ((*name).to_owned(), cell.to_owned())).collect()
        })
        .collect()
}

/// What the topic shows to a reader: payloads by partition and offset.
fn consume(brokers: &str, topic: &str, partitions: i32, isolation: &str) -> BTreeMap<(i32, i64), Vec<u8>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .create()
        .unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut records = BTreeMap::new();
    let mut open: BTreeSet<i32> = (0..partitions).collect();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !open.is_empty() {
        assert!(Instant::now() < deadline, "partitions {open:?} never ended");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                records.insert((message.partition(), message.offset()), message.payload().unwrap().to_vec());
            }
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => {
                open.remove(&partition);
            }
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    records
}

fn small_load(cluster_brokers: &str, directory: &Path) -> LoadConfig {
    let mut config = LoadConfig::new(cluster_brokers, vec![shipped("video_views.toml")], 11);
    config.records = Some(5_000);
    config.truth = Some(directory.join("truth.csv"));
    config
}

/// The truth file holds exactly what a consumer reads, and says the same about it.
fn assert_truth_is_the_topic(config: &LoadConfig, report: &LoadReport) {
    let topic = config.profiles.first().unwrap().topic();
    // The mock cluster knows no aborted records: it shows them all.
    let read = consume(&config.brokers, topic, 4, "read_uncommitted");
    let truth = read_truth(config.truth.as_deref().unwrap());
    assert_eq!(truth.len(), read.len());
    let mut lines = BTreeSet::new();
    assert_eq!(report.acknowledged(), read.len() as u64);
    assert_eq!((report.refused(), report.in_flight), (0, 0));
    for line in &truth {
        assert_eq!(line["topic"], topic);
        let at = (line["partition"].parse().unwrap(), line["offset"].parse().unwrap());
        assert!(lines.insert(at), "two lines for {at:?}");
        let payload = read.get(&at).unwrap_or_else(|| panic!("nothing lies at {at:?}"));
        let kind = if line["kind"] == "aborted" { &line["detail"] } else { &line["kind"] };
        if kind == "malformed" {
            continue;
        }
        let event: Value = serde_json::from_slice(payload).unwrap();
        for (column, field) in [("id", "event_id"), ("video_id", "video_id"), ("timestamp", "timestamp")] {
            assert_eq!(event[field], line[column].as_str());
        }
    }
}

#[test]
fn the_truth_file_is_what_a_consumer_reads() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("video-views", 4, 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = small_load(&cluster.bootstrap_servers(), directory.path());
    let report = run(&config, &Shutdown::default(), |_| {}).unwrap();
    assert_eq!(report.sent, 5_000);
    assert_truth_is_the_topic(&config, &report);
    let kinds: BTreeSet<_> = report.topics["video-views"].acknowledged.keys().copied().collect();
    let expected = [Kind::Event, Kind::Duplicate, Kind::Late, Kind::Malformed, Kind::Undeclared];
    assert_eq!(kinds, expected.into_iter().collect());
}

#[test]
fn aborted_transactions_are_marked_in_the_truth() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("video-views", 4, 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut config = small_load(&cluster.bootstrap_servers(), directory.path());
    config.transactions = Some(Transactions { records: 250, abort_share: 0.5 });
    let report = run(&config, &Shutdown::default(), |_| {}).unwrap();
    assert_truth_is_the_topic(&config, &report);
    let aborted = report.topics["video-views"].acknowledged[&Kind::Aborted];
    assert!(aborted > 0 && aborted < 5_000, "{aborted}");
    assert_eq!(aborted % 250, 0, "a transaction is aborted as a whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_reader_sees_all_but_the_aborted_records() {
    let directory = tempfile::tempdir().unwrap();
    let broker = BrokerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        data_dir: directory.path().join("broker"),
        auto_create_partitions: None,
    };
    let (health, shutdown) = (Health::default(), Shutdown::default());
    let broker = Broker::start(broker, health.clone(), shutdown.clone()).await.unwrap();
    let mut config = small_load(&broker.bootstrap(), directory.path());
    config.partitions = 3;
    config.transactions = Some(Transactions { records: 250, abort_share: 0.4 });

    let (sent, read) = tokio::task::spawn_blocking(move || {
        let report = run(&config, &Shutdown::default(), |_| {}).unwrap();
        assert_eq!(report.acknowledged(), 5_000);
        let read = consume(&config.brokers, "video-views", 3, "read_committed");
        (read_truth(config.truth.as_deref().unwrap()), read)
    })
    .await
    .unwrap();

    let place =
        |line: &BTreeMap<String, String>| (line["partition"].parse().unwrap(), line["offset"].parse().unwrap());
    let (aborted, committed): (Vec<_>, Vec<_>) = sent.iter().partition(|line| line["kind"] == "aborted");
    assert!(!aborted.is_empty() && !committed.is_empty());
    let committed: BTreeSet<(i32, i64)> = committed.into_iter().map(place).collect();
    assert_eq!(committed, read.keys().copied().collect());
    shutdown.trigger();
    broker.stopped().await;
    assert_eq!(health.failures(), Vec::<String>::new());
}

#[test]
fn a_load_goes_on_when_the_broker_comes_back() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("video-views", 4, 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut config = small_load(&cluster.bootstrap_servers(), directory.path());
    config.rate = Some(5_000.0);
    let mut seen = Vec::new();
    let report = run(&config, &Shutdown::default(), |report| {
        match seen.len() {
            0 => cluster.broker_down(1).unwrap(),
            3 => cluster.broker_up(1).unwrap(),
            _ => {}
        }
        seen.push(report.acknowledged());
    })
    .unwrap();
    assert!(seen[2] == seen[3] && seen[3] < 5_000, "the broker was never away: {seen:?}");
    assert_eq!(report.sent, 5_000);
    assert_truth_is_the_topic(&config, &report);
}

#[test]
fn shutdown_leaves_a_whole_truth_file() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("video-views", 4, 1).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut config = small_load(&cluster.bootstrap_servers(), directory.path());
    (config.records, config.rate) = (None, Some(2_000.0));
    let shutdown = Shutdown::default();
    let report = run(&config, &shutdown, |report| {
        if report.acknowledged() >= 500 {
            shutdown.trigger();
        }
    })
    .unwrap();
    assert!(report.acknowledged() >= 500);
    assert_truth_is_the_topic(&config, &report);
}

#[test]
fn brokers_that_never_answer_are_an_error_that_names_them() {
    let mut config = LoadConfig::new("127.0.0.1:1", vec![shipped("ad_views.toml")], 1);
    config.connect_timeout = Duration::ZERO;
    let error = run(&config, &Shutdown::default(), |_| {}).unwrap_err();
    assert!(matches!(error, LoadError::Unreachable { .. }));
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}
