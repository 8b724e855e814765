#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use arrow::array::{
    ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::Int64Type;
use object_store::ObjectStoreExt;

use super::*;
use crate::archive::keep::RetiredFiles;
use crate::archive::ledger::{Ledger, LedgerRow};
use crate::archive::{Archive, ArchiveError, RowCounts};
use crate::catalog::ddl::{self, Definition};
use crate::engine::EngineConfig;
use crate::position::{Offset, PartitionId, StreamFrontier, TopicIdentity};
use crate::storage::faults::{Fault, FaultyStore};
use crate::storage::paths::data_file_name;

const EPOCHS: u64 = 12;
/// Of each epoch; one of them is a duplicate.
const OFFSETS: i64 = 10;
const DAY: i64 = 86_400_000_000;

fn stream() -> Stream {
    let text = "CREATE STREAM clicks (id TEXT PRIMARY KEY, at TIMESTAMPTZ) \
                WITH (topic = 'clicks', format = 'json', event_time = 'at')";
    match ddl::parse("clicks.sql", text).unwrap().remove(0) {
        Definition::Stream(stream) => stream,
        other => panic!("{other:?}"),
    }
}

fn engine(storage: &Storage) -> Arc<Engine> {
    let config = EngineConfig { threads: 2, memory_bytes_max: 64 << 20, spill_dir: None, batch_rows: 1024 };
    let engine = Engine::new(config).unwrap();
    engine.register_store(storage.url(), storage.store());
    engine
}

/// Keys in an order of their own, and events of three days mixed.
fn records(offsets: std::ops::Range<i64>) -> RecordBatch {
    let id = |offset: i64| format!("id-{:03}", (offset * 37) % 1000);
    let at = TimestampMicrosecondArray::from_iter_values(offsets.clone().map(|offset| (offset % 3) * DAY + offset));
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(StringArray::from_iter_values(offsets.clone().map(id)))),
        ("at", Arc::new(at.with_timezone("UTC"))),
        (PARTITION, Arc::new(Int32Array::from_iter_values(offsets.clone().map(|_| 0)))),
        (OFFSET, Arc::new(Int64Array::from_iter_values(offsets))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

async fn commit(archive: &mut Archive) -> Arc<ArchiveSnapshot> {
    let from = archive.snapshot().frontier.position(PartitionId(0)).0;
    let to = from + OFFSETS;
    let mut writer = archive.begin();
    writer.append_records(Kind::Event, &records(from..to - 1)).unwrap();
    writer.append_records(Kind::Duplicate, &records(to - 1..to)).unwrap();
    let frontier = StreamFrontier {
        topic: Some(TopicIdentity { cluster_id: "c".into(), topic_id: "t".into() }),
        next: [(PartitionId(0), Offset(to))].into(),
    };
    let tens = u64::try_from(to / OFFSETS).unwrap();
    let row = LedgerRow { passed: tens * 10, events: tens * 9, duplicates: tens, ..LedgerRow::default() };
    let ledger: Ledger = [(PartitionId(0), row)].into();
    let epoch = writer.finish(frontier, ledger).unwrap();
    archive.commit(&epoch).await.unwrap()
}

/// An archive of [`EPOCHS`] epochs.
async fn filled(storage: &Storage) -> Archive {
    let mut archive = Archive::open(storage, "clicks", stream().archive_schema()).await.unwrap();
    for _ in 0..EPOCHS {
        commit(&mut archive).await;
    }
    archive
}

async fn put_together(storage: &Storage, files: Vec<Arc<ArchiveFile>>) -> Result<Rewrite, CompactError> {
    let (engine, shutdown) = (engine(storage), Shutdown::default());
    let bench = Workbench { engine: &engine, storage, stream: &stream(), shutdown: &shutdown };
    bench.put_together(files).await
}

/// All of the small files of events, and a target that they do not reach.
fn due_events(archive: &Archive, below: u64) -> Vec<Arc<ArchiveFile>> {
    due(&archive.snapshot(), Epoch(below), 1 << 20, &Damaged::new()).unwrap()
}

async fn offsets(storage: &Storage, snapshot: &ArchiveSnapshot, kind: Kind) -> BTreeSet<i64> {
    let table = Arc::new(snapshot.table(stream().archive_schema(), kind, Epoch(0)));
    let plan = LogicalPlanBuilder::scan("t", provider_as_source(table), None).unwrap();
    let plan = plan.project([ident(OFFSET)]).unwrap().build().unwrap();
    let mut offsets = BTreeSet::new();
    for batch in engine(storage).collect(plan, 2).await.unwrap() {
        let values = batch.column(0).as_primitive::<Int64Type>();
        assert!(values.iter().flatten().all(|offset| offsets.insert(offset)), "an offset came twice");
    }
    offsets
}

fn expected(kind: Kind, epochs: u64) -> BTreeSet<i64> {
    let last = i64::try_from(epochs).unwrap() * OFFSETS;
    let duplicate = |offset: &i64| offset % OFFSETS == OFFSETS - 1;
    (0..last).filter(|offset| duplicate(offset) == (kind == Kind::Duplicate)).collect()
}

fn memory() -> Storage {
    Storage::open("memory:///", std::iter::empty()).unwrap()
}

fn of_size(epoch: u64, bytes: u64) -> Arc<ArchiveFile> {
    let name = data_file_name("events", Epoch(epoch), "n");
    Arc::new(ArchiveFile {
        path: ArchivePaths::new("s").data_file(&name),
        name,
        kind: Kind::Event,
        rows: 1,
        bytes,
        first: Epoch(epoch),
        epoch: Epoch(epoch),
        columns: None,
        sha256: String::new(),
        blocks: None,
    })
}

fn snapshot(files: Vec<Arc<ArchiveFile>>) -> ArchiveSnapshot {
    ArchiveSnapshot {
        table: "t".to_owned(),
        epoch: Epoch(1000),
        version: 1000,
        frontier: StreamFrontier::default(),
        ledger: Ledger::new(),
        files: files.into(),
        retired: RetiredFiles::default(),
        rows: RowCounts::default(),
    }
}

/// The epochs of the files that are due, of files with these sizes in epochs 1, 2, ...
fn due_of(sizes: &[u64], below: u64) -> Vec<u64> {
    let files = sizes.iter().zip(1..).map(|(bytes, epoch)| of_size(epoch, *bytes)).collect();
    let due = due(&snapshot(files), Epoch(below), 100, &Damaged::new()).unwrap_or_default();
    due.iter().map(|file| file.epoch.0).collect()
}

#[test]
fn what_is_due() {
    assert_eq!(due_of(&[], 9), [0; 0]);
    assert_eq!(due_of(&[1; 7], 9), [0; 0], "too few and too small");
    assert_eq!(due_of(&[1; 8], 9), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(due_of(&[1; 8], 7), [0; 0], "the eighth is not in the generation yet");
    assert_eq!(due_of(&[30, 30], 9), [1, 2], "few, but together half of the target");
    assert_eq!(due_of(&[51, 30, 30], 9), [2, 3], "a large one is left alone");
    assert_eq!(due_of(&[1, 1, 90, 1, 1], 9), [0; 0], "and is not stepped over");
    assert_eq!(due_of(&[40, 1, 1, 1, 1, 1, 1, 1], 9), [0; 0], "a file at least doubles");
    assert_eq!(due_of(&[40, 1, 1, 1, 1, 1, 1, 1, 1], 9), [2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(due_of(&[40, 40, 40], 9), [1, 2], "the target is not exceeded");
}

#[test]
fn files_with_other_columns_are_not_mixed() {
    let mut files: Vec<_> = (1..=16).map(|epoch| of_size(epoch, 1)).collect();
    for file in &mut files[4..] {
        Arc::get_mut(file).unwrap().columns = Some("new".to_owned());
    }
    let due = due(&snapshot(files), Epoch(16), 100, &Damaged::new()).unwrap();
    assert_eq!(due.iter().map(|file| file.epoch.0).collect::<Vec<_>>(), (5..=16).collect::<Vec<_>>());
}

#[test]
fn a_damaged_file_is_stepped_around() {
    let files: Vec<_> = (1..=20).map(|epoch| of_size(epoch, 1)).collect();
    let damaged = [(files[3].path.to_string(), "it is missing".to_owned())].into();
    let due = due(&snapshot(files), Epoch(20), 100, &damaged).unwrap();
    assert_eq!(due.iter().map(|file| file.epoch.0).collect::<Vec<_>>(), (5..=20).collect::<Vec<_>>());
}

/// Over many epochs, how often a byte is written again, and how many files there are.
#[test]
fn the_work_is_logarithmic_and_files_are_few() {
    let mut files: Vec<Arc<ArchiveFile>> = Vec::new();
    let (mut rewritten, epochs) = (0, 4000);
    for epoch in 1..=epochs {
        files.push(of_size(epoch, 10));
        while let Some(chosen) = due(&snapshot(files.clone()), Epoch(epoch), 10_000, &Damaged::new()) {
            let (first, last) = (chosen[0].first, chosen[chosen.len() - 1].epoch);
            let bytes = chosen.iter().map(|file| file.bytes).sum::<u64>();
            rewritten += bytes;
            assert!(bytes <= 10_000);
            files.retain(|file| file.epoch < first || file.epoch > last);
            let mut file = Arc::unwrap_or_clone(of_size(last.0, bytes));
            file.first = first;
            files.push(Arc::new(file));
            files.sort_by_key(|file| file.epoch);
        }
    }
    assert!(files.len() < 40, "{} files", files.len());
    assert!(rewritten < 6 * 10 * epochs, "each byte was written {} times", rewritten / (10 * epochs));
    assert_eq!(files.iter().map(|file| file.bytes).sum::<u64>(), 10 * epochs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_put_together_and_hold_the_same_records() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path().to_str().unwrap(), std::iter::empty()).unwrap();
    let mut archive = filled(&storage).await;
    let before = archive.snapshot();
    for kind in [Kind::Event, Kind::Duplicate] {
        let files = due(&archive.snapshot(), Epoch(EPOCHS - 2), 1 << 20, &Damaged::new()).unwrap();
        assert_eq!((files.len(), files[0].kind), (10, kind));
        let rewrite = put_together(&storage, files).await.unwrap();
        let after = archive.rewrite(&rewrite).await.unwrap();
        assert_eq!((after.epoch, &after.frontier, &after.ledger), (before.epoch, &before.frontier, &before.ledger));
        assert_eq!(after.rows, before.rows);
    }
    assert_eq!(due(&archive.snapshot(), Epoch(EPOCHS - 2), 1 << 20, &Damaged::new()), None);
    let after = archive.snapshot();
    assert_eq!((before.files.len(), after.files.len(), after.retired.iter().count()), (24, 6, 20));
    for snapshot in [&before, &after] {
        for kind in [Kind::Event, Kind::Duplicate] {
            assert_eq!(offsets(&storage, snapshot, kind).await, expected(kind, EPOCHS), "{kind}");
        }
        for file in snapshot.files.iter() {
            file.verify(&storage).await.unwrap();
        }
    }
    let later: Vec<_> = after.files_in(Kind::Event, Epoch(EPOCHS - 2)).map(|file| file.epoch.0).collect();
    assert_eq!(later, [EPOCHS - 1, EPOCHS], "what a refresh has yet to read is found by epoch");
    assert!(after.cuts_at(Epoch(EPOCHS - 2)) && !after.cuts_at(Epoch(3)) && after.cuts_at(Epoch(0)));

    // Epochs go on, and another process finds the same.
    let newest = commit(&mut archive).await;
    let reopened = Archive::peek(&storage, "clicks").await.unwrap().unwrap();
    assert_eq!(reopened, *newest);
    assert_eq!(offsets(&storage, &reopened, Kind::Event).await, expected(Kind::Event, EPOCHS + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_lie_by_day_and_key() {
    let storage = memory();
    let archive = filled(&storage).await;
    let rewrite = put_together(&storage, due_events(&archive, EPOCHS)).await.unwrap();
    let bytes = storage.read(&rewrite.file.path).await.unwrap().unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
    let mut keys = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let ids = batch.column_by_name("id").unwrap().as_string::<i32>();
        let at = batch.column_by_name("at").unwrap();
        let at = at.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
        keys.extend(at.iter().flatten().zip(ids).map(|(at, id)| (at / DAY, id.unwrap().to_owned())));
    }
    assert_eq!(keys.len(), 108);
    assert!(keys.is_sorted(), "{keys:?}");
    assert_eq!(keys.iter().map(|(day, _)| day).collect::<BTreeSet<_>>().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_not_there_is_told_by_the_bloom_filter() {
    let storage = memory();
    let mut archive = filled(&storage).await;
    let rewrite = put_together(&storage, due_events(&archive, EPOCHS)).await.unwrap();
    let snapshot = archive.rewrite(&rewrite).await.unwrap();
    let context = engine(&storage).session();
    let table = snapshot.table(stream().record_schema(), Kind::Event, Epoch(0));
    context.register_table("clicks", Arc::new(table)).unwrap();
    for (id, rows, pruned) in [("id-037", 1, "1 total → 1 matched"), ("id-037x", 0, "1 total → 0 matched")] {
        let sql = format!("EXPLAIN ANALYZE SELECT _offset FROM clicks WHERE id = '{id}'");
        let batches = context.sql(&sql).await.unwrap().collect().await.unwrap();
        let text = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
        assert!(text.contains(&format!("row_groups_pruned_bloom_filter={pruned}")), "{id}: {text}");
        let sql = format!("SELECT _offset FROM clicks WHERE id = '{id}'");
        let found = context.sql(&sql).await.unwrap().collect().await.unwrap();
        assert_eq!(found.iter().map(RecordBatch::num_rows).sum::<usize>(), rows);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_any_two_writes_nothing_is_lost() {
    let mut files_seen = BTreeSet::new();
    for after in 0..3 {
        let faulty = FaultyStore::in_memory();
        let mut archive = filled(&faulty.storage()).await;
        archive.settle().await;
        faulty.fail_write(after, Fault::Killed);
        let outcome = match put_together(&faulty.storage(), due_events(&archive, EPOCHS)).await {
            Ok(rewrite) => archive.rewrite(&rewrite).await.map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        // One data file, one entry.
        assert_eq!(outcome.is_ok(), after == 2, "{outcome:?}");
        let inner = faulty.without_faults();
        let mut reopened = Archive::open(&inner, "clicks", stream().archive_schema()).await.unwrap();
        let snapshot = reopened.snapshot();
        files_seen.insert(snapshot.files.len());
        assert_eq!(offsets(&inner, &snapshot, Kind::Event).await, expected(Kind::Event, EPOCHS));
        commit(&mut reopened).await;
        let rewrite = put_together(&inner, due_events(&reopened, EPOCHS + 1)).await.unwrap();
        let snapshot = reopened.rewrite(&rewrite).await.unwrap();
        assert_eq!(offsets(&inner, &snapshot, Kind::Event).await, expected(Kind::Event, EPOCHS + 1));
    }
    assert_eq!(files_seen, [13, 24].into());
}

/// Neither the rewrite nor who stands behind it may take its own entry for another writer's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_whose_answer_was_lost_is_found_by_the_next_commit() {
    for next in ["epoch", "rewrite", "catch up"] {
        let faulty = FaultyStore::in_memory();
        let storage = faulty.storage();
        let mut archive = filled(&storage).await;
        archive.settle().await;
        let rewrite = put_together(&storage, due_events(&archive, EPOCHS)).await.unwrap();
        faulty.fail_write(0, Fault::Unanswered);
        let error = archive.rewrite(&rewrite).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        match next {
            "epoch" => drop(commit(&mut archive).await),
            "rewrite" => drop(archive.rewrite(&rewrite).await.unwrap()),
            _ => drop(archive.catch_up().await.unwrap()),
        }
        let epochs = EPOCHS + u64::from(next == "epoch");
        let snapshot = archive.snapshot();
        assert_eq!(snapshot.files_in(Kind::Event, Epoch(0)).count(), if next == "epoch" { 2 } else { 1 });
        assert_eq!(offsets(&storage, &snapshot, Kind::Event).await, expected(Kind::Event, epochs));
        assert_eq!(Archive::peek(&storage, "clicks").await.unwrap().unwrap(), *snapshot);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_was_fenced_rewrites_and_deletes_nothing() {
    let storage = memory();
    let mut zombie = filled(&storage).await;
    let rewrite = put_together(&storage, due_events(&zombie, EPOCHS)).await.unwrap();
    let second = Archive::open(&storage, "clicks", stream().archive_schema()).await.unwrap();
    assert!(matches!(zombie.catch_up().await, Err(ArchiveError::Fenced { .. })));
    assert!(matches!(zombie.rewrite(&rewrite).await, Err(ArchiveError::Fenced { .. })));
    assert_eq!(Archive::peek(&storage, "clicks").await.unwrap().unwrap(), *second.snapshot());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewrite_that_does_not_fit_is_refused_before_anything_is_written() {
    let storage = memory();
    let mut archive = filled(&storage).await;
    let all = due_events(&archive, EPOCHS);
    let good = put_together(&storage, all.clone()).await.unwrap();
    let gap = all.iter().enumerate().filter(|(at, _)| *at != 5).map(|(_, file)| Arc::clone(file)).collect();
    let with_gap = put_together(&storage, gap).await.unwrap();
    let with_rows = |rows| Rewrite {
        nonce: "n".into(),
        replaced: all.clone(),
        file: ArchiveFile { rows, ..good.file.clone() },
    };
    let before = archive.snapshot();
    for bad in [with_gap, with_rows(107), with_rows(109)] {
        assert!(matches!(archive.rewrite(&bad).await, Err(ArchiveError::Rewrite { .. })));
    }
    assert_eq!(*archive.snapshot(), *before);
    archive.rewrite(&good).await.unwrap();
    let again = archive.rewrite(&good).await.unwrap_err().to_string();
    assert!(again.contains("not in the table any more"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_or_missing_file_is_named_and_not_carried_on() {
    let storage = memory();
    let archive = filled(&storage).await;
    let files = due_events(&archive, EPOCHS);
    let path = files[3].path.clone();
    let good = storage.read(&path).await.unwrap().unwrap();
    let mut flipped = good.to_vec();
    flipped[good.len() / 3] ^= 0x10;
    storage.overwrite(&path, flipped.into()).await.unwrap();
    let error = put_together(&storage, files.clone()).await.unwrap_err().to_string();
    assert!(error.contains(path.as_ref()) && error.contains("SHA-256"), "{error}");
    storage.store().delete(&path).await.unwrap();
    let error = put_together(&storage, files.clone()).await.unwrap_err().to_string();
    assert!(error.contains(path.as_ref()) && error.contains("missing"), "{error}");
    storage.overwrite(&path, good).await.unwrap();
    put_together(&storage, files).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_knows_what_was_replaced() {
    let storage = memory();
    let mut archive = filled(&storage).await;
    let rewrite = put_together(&storage, due_events(&archive, EPOCHS)).await.unwrap();
    archive.rewrite(&rewrite).await.unwrap();
    while archive.snapshot().version < 110 {
        commit(&mut archive).await;
        archive.settle().await;
    }
    let paths = ArchivePaths::new("clicks");
    assert!(storage.read(&paths.last_checkpoint()).await.unwrap().is_some(), "no checkpoint was written");
    // The checkpoint stands for the older entries: they are not read.
    storage.overwrite(&paths.log_entry(5), bytes::Bytes::from_static(b"garbage")).await.unwrap();
    let reopened = Archive::peek(&storage, "clicks").await.unwrap().unwrap();
    assert_eq!(reopened, *archive.snapshot());
    assert_eq!(reopened.retired.iter().count(), usize::try_from(EPOCHS).unwrap());
    assert!(reopened.retired.iter().all(|file| file.at_millis > 0 && file.bytes > 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_stops_the_work() {
    let storage = memory();
    let archive = filled(&storage).await;
    let (engine, shutdown) = (engine(&storage), Shutdown::default());
    shutdown.trigger();
    let bench = Workbench { engine: &engine, storage: &storage, stream: &stream(), shutdown: &shutdown };
    let outcome = bench.put_together(due_events(&archive, EPOCHS)).await;
    assert!(matches!(outcome, Err(CompactError::Cancelled)));
}

/// Columns of every kind, and a file that was put together as one of several.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_put_together_is_put_together_again_whatever_its_columns() {
    let text = "CREATE STREAM clicks (id UUID PRIMARY KEY, at TIMESTAMPTZ, n INTEGER, big BIGINT, x DOUBLE PRECISION, \
                price DECIMAL(18, 6), day DATE, ok BOOLEAN, tags STRUCT<a TEXT, m DECIMAL(9, 2)>[]) \
                WITH (topic = 'clicks', event_time = 'at')";
    let Definition::Stream(stream) = ddl::parse("clicks.sql", text).unwrap().remove(0) else { panic!("a stream") };
    let storage = memory();
    let mut archive = Archive::open(&storage, "clicks", stream.archive_schema()).await.unwrap();
    let (engine, shutdown) = (engine(&storage), Shutdown::default());
    let bench = Workbench { engine: &engine, storage: &storage, stream: &stream, shutdown: &shutdown };
    for epoch in 0..4_i64 {
        let lines: String = (0..3)
            .map(|n| {
                format!(
                    r#"{{"id":"0-{n}-{epoch}","at":"2026-01-0{}T00:00:00Z","n":{n},"big":{n},"x":0.5,"price":1.25,
                        "day":"2026-01-01","ok":true,"tags":[{{"a":"t","m":2.5}},null],"_partition":0,"_offset":{}}}
                       {{"id":"1-{n}-{epoch}","tags":null,"_partition":1,"_offset":{}}}"#,
                    n + 1,
                    epoch * 3 + n,
                    epoch * 3 + n
                )
            })
            .collect();
        let schema = stream.record_schema();
        let reader = arrow::json::ReaderBuilder::new(schema).build(std::io::Cursor::new(lines)).unwrap();
        let mut writer = archive.begin();
        for batch in reader {
            writer.append_records(Kind::Event, &batch.unwrap()).unwrap();
        }
        let counted = u64::try_from(epoch + 1).unwrap() * 3;
        let row = LedgerRow { passed: counted, events: counted, ..LedgerRow::default() };
        let next = Offset((epoch + 1) * 3);
        let frontier = StreamFrontier { topic: None, next: [0, 1].map(|p| (PartitionId(p), next)).into() };
        let epoch = writer.finish(frontier, [0, 1].map(|p| (PartitionId(p), row)).into()).unwrap();
        archive.commit(&epoch).await.unwrap();
    }
    for (from, to) in [(0, 2), (1, 3), (0, 2)] {
        let files = archive.snapshot().files.get(from..to).unwrap().to_vec();
        let rewrite = bench.put_together(files).await.unwrap();
        archive.rewrite(&rewrite).await.unwrap();
    }
    let snapshot = archive.snapshot();
    let [file] = snapshot.files.as_ref() else { panic!("{:?}", snapshot.files) };
    assert_eq!((file.first, file.epoch, file.rows), (Epoch(1), Epoch(4), 24));
    let context = engine.session();
    let table = snapshot.table(stream.record_schema(), Kind::Event, Epoch(0));
    context.register_table("clicks", Arc::new(table)).unwrap();
    let sql = "SELECT count(*), count(DISTINCT id), sum(price), sum(n), count(tags), max(tags[1]['m']), min(day), \
               count(DISTINCT _partition * 100 + _offset) FROM clicks";
    let found = context.sql(sql).await.unwrap().collect().await.unwrap();
    let cells: Vec<String> = found[0]
        .columns()
        .iter()
        .map(|column| arrow::util::display::array_value_to_string(column, 0).unwrap())
        .collect();
    assert_eq!(cells, ["24", "24", "15.000000", "12", "12", "2.50", "2026-01-01", "24"]);
}
