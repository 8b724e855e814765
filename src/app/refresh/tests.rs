#![allow(clippy::unwrap_used)]
use datafusion::arrow::array::{ArrayRef, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::compute::{concat_batches, lexsort_to_indices, take_record_batch};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;

use super::*;
use crate::app::{self, Declared, restore};
use crate::archive::ledger::LedgerRow;
use crate::archive::{Archive, Kind};
use crate::batch::shelf::AsOf;
use crate::config::Config;
use crate::delta::fold;
use crate::merge::point::Points;
use crate::merge::reconcile::history::Outcome;
use crate::merge::snapshot::{Moment, Snapshot, StreamSnapshot};
use crate::position::{Epoch, Offset, PartitionId, StreamFrontier, TopicIdentity};
use crate::runtime::SystemClock;
use crate::storage::faults::{Fault, FaultyStore};
use crate::storage::paths;
use crate::storage::scan::fitted_columns;

const STREAM: &str = "CREATE STREAM clicks (id TEXT PRIMARY KEY, page TEXT, ms BIGINT, price DECIMAL(18, 4)) \
                      WITH (topic = 'clicks');";
/// Sketches, whole numbers and decimals, whose states do not depend on the order of records.
const PAGES: &str = "CREATE MATERIALIZED VIEW pages AS SELECT page, count(*) AS total, count(ms) AS timed, \
                     sum(ms) AS spent, sum(price) AS money, avg(price) AS mean, min(ms) AS lo, max(price) AS hi, \
                     approx_distinct(id) AS ids, bool_and(ms > 3) AS slow FROM raw.clicks GROUP BY page;";
const ALL: &str = "CREATE MATERIALIZED VIEW everything AS SELECT count(*) AS total, approx_distinct(ms) AS some \
                   FROM raw.clicks;";

/// A refresher and what it works on, without Kafka.
struct Stage {
    faulty: Arc<FaultyStore>,
    engine: Arc<Engine>,
    declared: Declared,
    archive: Archive,
    cell: Arc<SnapshotCell>,
    refresher: Arc<Refresher>,
    health: Health,
    _sql: tempfile::TempDir,
}

/// A process that starts on `faulty`; it keeps so many generations.
async fn stage(faulty: Arc<FaultyStore>, generations_max: usize) -> Stage {
    let sql = tempfile::tempdir().unwrap();
    for (file, text) in [("streams/clicks.sql", STREAM), ("views/pages.sql", PAGES), ("views/all.sql", ALL)] {
        let path = sql.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let dir = ("VIEWLEDGER_SQL_DIR".to_owned(), sql.path().display().to_string());
    let spill = ("VIEWLEDGER_STORAGE_DATA_DIR".to_owned(), sql.path().display().to_string());
    let config = Config::load(None, [dir, spill]).unwrap();
    let engine = app::engine(2, 256 << 20, &config).unwrap();
    let storage = faulty.storage();
    engine.register_store(storage.url(), storage.store());
    let declared = app::declare(&config, &engine).await.unwrap();
    let stream = &declared.names.streams["clicks"];
    let archive = Archive::open(&storage, "clicks", stream.archive_schema()).await.unwrap();
    let health = Health::default();
    let workers = Workers::start(2).unwrap();
    let means = Means {
        points: Points::new(Arc::clone(&engine), workers.tasks(), 0),
        engine: Arc::clone(&engine),
        workers,
        storage: storage.clone(),
        roster: Arc::default(),
        clock: Arc::new(SystemClock),
        metrics: Arc::default(),
        health: health.clone(),
        shutdown: Shutdown::default(),
        generations_max,
        cut: Cut::On,
    };
    let refresher = Refresher::new(means, Legacy::new(generations_max, 1000));
    let snapshot = archive.snapshot();
    let latest = refresher.latest().await.unwrap();
    let archives = [("clicks".to_owned(), Arc::clone(&snapshot))].into();
    let (generation, names) =
        refresher.begin(latest, Arc::clone(&declared.names), BTreeMap::new(), &archives).await.unwrap();
    let base = generation.epoch("clicks");
    let (delta, names) = restore::delta(&engine, names, "clicks", &snapshot, base).await.unwrap();
    let part = StreamSnapshot {
        delta: Arc::new(delta),
        whole: true,
        end: Arc::new(snapshot.frontier.clone()),
        ledger: Arc::new(snapshot.ledger.clone()),
        archive: snapshot,
    };
    let streams = [("clicks".to_owned(), part)].into();
    let moment = Moment::default();
    let first = Snapshot { generation, names, tables: Arc::default(), streams, moment };
    let cell = Arc::new(SnapshotCell::new(first, Arc::new(SystemClock)));
    Stage { faulty, engine, declared, archive, cell, refresher, health, _sql: sql }
}

async fn new_stage() -> Stage {
    stage(FaultyStore::in_memory(), 3).await
}

fn number(id: GenerationId) -> u64 {
    id.0
}

impl Stage {
    fn storage(&self) -> Storage {
        self.faulty.storage()
    }

    /// Commits `count` records and puts them into the delta, as ingest does.
    async fn write(&mut self, count: i64) {
        let from = self.archive.snapshot().frontier.position(PartitionId(0)).0;
        let records = self.records(from..from + count);
        let mut states = Vec::new();
        for (name, input) in &self.declared.names.views {
            states.push((name.clone(), fold::states(&self.engine, &input.view, &records).await.unwrap()));
        }
        let mut writer = self.archive.begin();
        writer.append_records(Kind::Event, &records).unwrap();
        let to = from + count;
        let frontier = StreamFrontier {
            topic: Some(TopicIdentity { cluster_id: "c".into(), topic_id: "t".into() }),
            next: [(PartitionId(0), Offset(to))].into(),
        };
        let all = u64::try_from(to).unwrap();
        let row = LedgerRow { passed: all, events: all, ..LedgerRow::default() };
        let epoch = writer.finish(frontier.clone(), [(PartitionId(0), row)].into()).unwrap();
        let snapshot = self.archive.commit(&epoch).await.unwrap();
        self.cell.update_stream("clicks", |stream| {
            let none = records.slice(0, 0);
            let delta = stream.delta.fold(records, none.clone(), none, states).sealed().archived(snapshot.epoch);
            stream.delta = Arc::new(delta);
            stream.end = Arc::new(frontier);
            stream.ledger = Arc::new(snapshot.ledger.clone());
            stream.archive = snapshot;
        });
        // Nothing else writes from here on, so that faults hit what they are meant for.
        self.archive.settle().await;
    }

    fn records(&self, offsets: std::ops::Range<i64>) -> RecordBatch {
        let texts = |prefix: &str, modulo: i64| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(offsets.clone().map(|n| format!("{prefix}{}", n * 7 % modulo))))
        };
        let prices = Decimal128Array::from_iter_values(offsets.clone().map(|n| i128::from(n * 31 % 997)));
        let partial = RecordBatch::try_from_iter([
            ("id", texts("id", 1_000_003)),
            ("page", texts("p", 400)),
            (
                "ms",
                Arc::new(offsets.clone().map(|n| (n % 5 != 0).then_some(n % 17)).collect::<Int64Array>())
                    as ArrayRef,
            ),
            ("price", Arc::new(prices.with_precision_and_scale(18, 4).unwrap())),
            ("_partition", Arc::new(Int32Array::from_iter_values(offsets.clone().map(|_| 0)))),
            ("_offset", Arc::new(Int64Array::from_iter_values(offsets.clone()))),
        ]);
        let schema = self.declared.names.streams["clicks"].record_schema();
        let columns = fitted_columns(&schema, &partial.unwrap());
        RecordBatch::try_new(schema, columns).unwrap()
    }

    async fn refresh(&self, full: &[&str]) -> Result<u64, RefreshError> {
        let full = full.iter().map(|view| (*view).to_owned()).collect();
        let made = self.refresher.refresh(&self.cell, full).await.map(number);
        drop(self.refresher.pause().await);
        made
    }

    /// Names of all files of batch views in storage.
    async fn files(&self) -> BTreeMap<String, u64> {
        let store = self.faulty.without_faults().store();
        let listed: Vec<_> = store.list(Some(&paths::views())).try_collect().await.unwrap();
        listed.into_iter().map(|meta| (meta.location.to_string(), meta.size)).collect()
    }

    /// Exactly the files that generations on the shelf name are there.
    async fn assert_tidy(&self) {
        let kept = crate::batch::gc::files(self.refresher.shelf().readable().iter());
        assert_eq!(self.files().await.into_keys().collect::<Vec<_>>(), kept.into_iter().collect::<Vec<_>>());
    }

    /// The states of a view, one row a group, sorted.
    async fn states(&self, view: &str) -> RecordBatch {
        let generation = Arc::clone(&self.cell.load().generation);
        let input = &self.declared.names.views[view];
        let table = generation.views[view].table(input.view.state_schema());
        let plan = input.view.combine_plan(Arc::new(table)).unwrap();
        let batches = self.engine.collect(plan, 1).await.unwrap();
        let whole = concat_batches(&input.view.state_schema(), &batches).unwrap();
        let keys: Vec<_> = whole.columns().iter().take(input.view.group_columns()).collect();
        if keys.is_empty() {
            return whole;
        }
        let sort = |values: &&ArrayRef| datafusion::arrow::compute::SortColumn {
            values: Arc::clone(values),
            options: None,
        };
        let order = lexsort_to_indices(&keys.iter().map(sort).collect::<Vec<_>>(), None).unwrap();
        take_record_batch(&whole, &order).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incremental_and_full_give_the_same_states_byte_for_byte() {
    let mut stage = new_stage().await;
    for count in [2000, 3, 40, 1, 9, 20] {
        stage.write(count).await;
        stage.refresh(&[]).await.unwrap();
    }
    assert!(stage.cell.load().generation.views["pages"].runs.len() > 1, "it was not incremental");
    let incremental = [stage.states("pages").await, stage.states("everything").await];
    stage.refresh(&["pages", "everything"]).await.unwrap();
    assert_eq!(stage.cell.load().generation.views["pages"].runs.len(), 1);
    for (view, incremental) in ["pages", "everything"].into_iter().zip(incremental) {
        let full = stage.states(view).await;
        assert!(full.num_rows() > 0);
        for (index, field) in full.schema().fields().iter().enumerate() {
            assert_eq!(
                full.column(index).to_data(),
                incremental.column(index).to_data(),
                "{view}.{}",
                field.name()
            );
        }
    }
    // The refresh in full was compared with what stood for the same records before.
    let findings = stage.refresher.history().findings();
    assert!(findings.iter().any(|found| found.subject.generation.0 == 7 && found.subject.after == Epoch(0)));
    assert_all_equal(&stage, 14);
}

/// Every comparison was made and found nothing.
fn assert_all_equal(stage: &Stage, comparisons: usize) {
    let findings = stage.refresher.history().findings();
    assert_eq!(findings.len(), comparisons);
    for found in findings {
        match &found.outcome {
            Outcome::Compared { groups, differing: 0, not_compared } if *groups > 0 && not_compared.is_empty() => {}
            other => panic!("{:?}: {other:?}", found.subject),
        }
    }
    assert_eq!(stage.health.failures(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_delta_is_found_told_and_counted() {
    let mut stage = new_stage().await;
    stage.write(100).await;
    stage.cell.update_stream("clicks", |stream| {
        let delta = &stream.delta;
        let mut states: BTreeMap<String, RecordBatch> = BTreeMap::new();
        for view in ["pages", "everything"] {
            let [whole] = delta.leaving(view, Epoch(1)).try_into().unwrap();
            // A group of one view is lost.
            let rows = if view == "pages" { whole.num_rows() - 1 } else { whole.num_rows() };
            states.insert(view.into(), whole.slice(0, rows));
        }
        stream.delta = Arc::new(Delta::restored(Epoch(0), Epoch(1), states));
    });
    stage.refresh(&[]).await.unwrap();
    let findings = stage.refresher.history().findings();
    let [all, sum, difference] = findings.as_slice() else { panic!("{findings:?}") };
    assert!(matches!(all.outcome, Outcome::Compared { groups: 1, differing: 0, .. }), "{all:?}");
    assert!(matches!(sum.outcome, Outcome::Compared { groups: 100, differing: 1, .. }), "{sum:?}");
    let Outcome::Differs(difference) = &difference.outcome else { panic!("{difference:?}") };
    assert!(
        difference.speed.is_none() && difference.batch.as_ref().unwrap().contains("\"total\""),
        "{difference:?}"
    );
    let failures = stage.health.failures();
    assert!(
        failures[0].contains("1 of 100 groups differ") && failures[0].contains(&difference.group),
        "{failures:?}"
    );
    let metrics = stage.refresher.means.metrics.encode();
    for line in [
        r#"reconciled_groups_total{view="pages",outcome="differing"} 1"#,
        r#"reconciled_groups_total{view="pages",outcome="equal"} 99"#,
        r#"reconciled_groups_total{view="everything",outcome="differing"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    // The batch path is right, and the delta is gone with the cut.
    stage.write(50).await;
    stage.refresh(&[]).await.unwrap();
    assert_eq!(stage.health.failures().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_fails_anywhere_leaves_nothing_and_the_next_one_succeeds() {
    let mut stage = new_stage().await;
    stage.write(300).await;
    stage.refresh(&[]).await.unwrap();
    stage.write(100).await;
    let mut failed = 0;
    loop {
        stage.faulty.fail_write(failed, Fault::DiskFull);
        let before = stage.files().await;
        match stage.refresh(&[]).await {
            Err(error) => {
                // Whether a manifest was written is not known, so what it names is not deleted yet.
                if !crate::runtime::chain(&error).contains("generations/") {
                    assert_eq!(stage.files().await, before, "after a failure at write {failed}: {error}");
                }
                failed += 1;
            }
            Ok(_) => break,
        }
        assert!(failed < 20, "it never succeeds");
    }
    // Runs of two views, their combination, the manifest: more writes than one can fail.
    assert!(failed >= 3, "only {failed} writes failed");
    stage.faulty.fail_write(usize::MAX / 2, Fault::DiskFull);
    stage.assert_tidy().await;
    stage.write(10).await;
    assert_eq!(stage.refresh(&[]).await.unwrap(), 3);
    assert_all_equal(&stage, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_refresh_leaves_nothing_wherever_it_is_cancelled() {
    let mut stage = new_stage().await;
    stage.write(300).await;
    stage.refresh(&[]).await.unwrap();
    stage.write(100).await;
    let (before, archives) = (stage.files().await, archives(&stage));
    let current = Arc::clone(&stage.cell.load().generation);
    let mut cancelled = 0;
    for write in 0.. {
        let attempt = Arc::new(Attempt::default());
        let stop = Arc::clone(&attempt);
        stage.faulty.at_write(write, move || stop.cancel());
        let (names, new) = (Arc::clone(&stage.cell.load().names), BTreeSet::new());
        let sources = Sources { tables: BTreeMap::new(), new: &new, archives: &archives, full: &[] };
        match stage.refresher.publish(&current, names, sources, &attempt).await {
            Err(RefreshError::Cancelled) => {
                cancelled += 1;
                assert_eq!(stage.files().await, before, "cancelled at write {write}");
            }
            // The manifest is the last write: then it is too late, and it is carried out.
            Ok((made, _)) => {
                assert_eq!(made.generation.id, GenerationId(2));
                break;
            }
            Err(other) => panic!("{other}"),
        }
        assert!(write < 20, "it never succeeds");
    }
    assert!(cancelled >= 2, "cancelled {cancelled} times");
}

/// The comparison reads what was published; the answer does not wait for it, and the next refresh does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_answers_when_it_is_published_and_the_next_one_waits_for_the_comparison() {
    let mut stage = new_stage().await;
    stage.write(300).await;
    // The manifest is the third write, behind a file of each view.
    let faulty = Arc::clone(&stage.faulty);
    stage.faulty.at_write(2, move || faulty.hold_reads(Some(paths::views())));
    assert_eq!(stage.refresher.refresh(&stage.cell, Vec::new()).await.unwrap(), GenerationId(1));
    assert_eq!(stage.cell.load().generation.id, GenerationId(1));
    assert_eq!(stage.refresher.shelf().readable().len(), 1, "it cannot be chosen");
    assert_eq!(stage.refresher.history().findings().len(), 0, "the comparison cannot have read anything");
    let states = |stage: &Stage| -> Vec<(Option<GenerationId>, bool)> {
        let all = stage.refresher.refreshes().all();
        all.iter().map(|refresh| (refresh.published, refresh.ended.is_some())).collect()
    };
    assert_eq!(states(&stage), [(Some(GenerationId(1)), false)]);
    let next = tokio::spawn({
        let (refresher, cell) = (Arc::clone(&stage.refresher), Arc::clone(&stage.cell));
        async move { refresher.refresh(&cell, Vec::new()).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(states(&stage).len(), 1, "the next one has begun");
    stage.faulty.hold_reads(None);
    assert_eq!(next.await.unwrap().unwrap(), GenerationId(2));
    drop(stage.refresher.pause().await);
    assert_all_equal(&stage, 2);
    stage.assert_tidy().await;
}

/// A process that ends does not wait for a comparison, and nothing goes on behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_stops_when_the_process_ends() {
    let mut stage = new_stage().await;
    stage.write(300).await;
    let faulty = Arc::clone(&stage.faulty);
    stage.faulty.at_write(2, move || faulty.hold_reads(Some(paths::views())));
    stage.refresher.refresh(&stage.cell, Vec::new()).await.unwrap();
    stage.refresher.means.shutdown.trigger();
    drop(stage.refresher.pause().await);
    assert_eq!(stage.refresher.history().findings().len(), 0);
    assert_eq!(stage.health.failures(), Vec::<String>::new());
    stage.faulty.hold_reads(None);
    stage.assert_tidy().await;
}

fn archives(stage: &Stage) -> BTreeMap<String, Arc<ArchiveSnapshot>> {
    [("clicks".to_owned(), stage.archive.snapshot())].into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_generations_stay_readable_up_to_the_limit_and_as_long_as_they_are_read() {
    let mut stage = new_stage().await;
    let mut read = None;
    for round in 1..=8 {
        stage.write(50).await;
        assert_eq!(stage.refresh(&[]).await.unwrap(), round);
        if round == 2 {
            read = Some(Arc::clone(&stage.cell.load().generation));
        }
    }
    let shelf = stage.refresher.shelf();
    let readable: Vec<u64> = shelf.readable().iter().map(|generation| generation.id.0).collect();
    assert_eq!(readable, [6, 7, 8]);
    assert!(shelf.find(AsOf::Generation(GenerationId(2))).is_err());
    let files = stage.files().await;
    let pinned = read.take().unwrap();
    for file in crate::batch::gc::files([&pinned]) {
        assert!(files.contains_key(&file), "{file} is read and gone");
    }
    drop(pinned);
    stage.write(1).await;
    stage.refresh(&[]).await.unwrap();
    stage.assert_tidy().await;

    // An attempt that crashed has left a file; another process is writing the next generation.
    let orphan = paths::view_file("pages", GenerationId(9), 0);
    let ahead = paths::view_file("pages", GenerationId(10), 0);
    for path in [&orphan, &ahead] {
        stage.storage().overwrite(path, "x".into()).await.unwrap();
    }
    let stage = self::stage(Arc::clone(&stage.faulty), 2).await;
    let readable: Vec<u64> = stage.refresher.shelf().readable().iter().map(|generation| generation.id.0).collect();
    assert_eq!(readable, [8, 9], "the new limit holds");
    let files = stage.files().await;
    assert!(!files.contains_key(orphan.as_ref()) && files.contains_key(ahead.as_ref()), "{files:?}");
    stage.storage().store().delete(&ahead).await.unwrap();
    stage.assert_tidy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresher_that_slept_is_fenced_however_long_it_slept() {
    let mut sleeper = new_stage().await;
    sleeper.write(40).await;
    sleeper.refresh(&[]).await.unwrap();
    let mut awake = stage(Arc::clone(&sleeper.faulty), 3).await;
    // So many that the manifest that comes next for the sleeper was collected.
    for _ in 0..70 {
        awake.refresh(&[]).await.unwrap();
    }
    let log = Generations::new(&awake.storage());
    assert_eq!(log.before(GenerationId(4), 3).await.unwrap().len(), 0, "generations 1 to 3 are still there");
    let fenced = sleeper.refresh(&[]).await.unwrap_err();
    assert!(fenced.to_string().contains("fenced"), "{fenced}");
    assert!(sleeper.health.failures()[0].contains("fenced"));
    awake.write(5).await;
    awake.refresh(&[]).await.unwrap();
    awake.assert_tidy().await;
    assert_eq!(log.latest().await.unwrap().id, awake.cell.load().generation.id);
    assert_eq!(awake.states("everything").await.num_rows(), 1);
    assert_eq!(awake.health.failures(), Vec::<String>::new());
}
