#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, StructBuilder,
    new_null_array,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use datafusion::prelude::SessionContext;
use object_store::ObjectStoreExt;

use super::ledger::LedgerRow;
use super::*;
use crate::position::{Offset, PartitionId, TopicIdentity};
use crate::storage::faults::{Fault, FaultyStore};
use crate::storage::scan::ParquetTable;

const STREAM: &str = "clicks";

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Utf8, true),
        Field::new("_partition", DataType::Int32, true),
        Field::new("_offset", DataType::Int64, true),
        Field::new("_kind", DataType::Utf8, true),
    ]))
}

fn batch(kind: Kind, offsets: std::ops::Range<i64>) -> RecordBatch {
    let ids = StringArray::from_iter_values(offsets.clone().map(|offset| format!("id-{offset}")));
    let kinds = StringArray::from_iter_values(offsets.clone().map(|_| kind.name()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids),
        Arc::new(Int32Array::from_iter_values(offsets.clone().map(|_| 0))),
        Arc::new(Int64Array::from_iter_values(offsets)),
        Arc::new(kinds),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn frontier(topic: &str, next: i64) -> StreamFrontier {
    StreamFrontier {
        topic: Some(TopicIdentity { cluster_id: "c".into(), topic_id: topic.into() }),
        next: [(PartitionId(0), Offset(next))].into(),
    }
}

/// An epoch of four offsets: two events, a duplicate, a quarantined record.
fn epoch_on(archive: &Archive) -> EncodedEpoch {
    let from = archive.snapshot().frontier.position(PartitionId(0)).0;
    let mut writer = archive.begin();
    writer.append(Kind::Event, &batch(Kind::Event, from..from + 2)).unwrap();
    writer.append(Kind::Duplicate, &batch(Kind::Duplicate, from + 2..from + 3)).unwrap();
    writer.append(Kind::Quarantined, &batch(Kind::Quarantined, from + 3..from + 4)).unwrap();
    let fours = u64::try_from(from / 4 + 1).unwrap();
    writer.finish(frontier("t", from + 4), ledger(fours)).unwrap()
}

fn ledger(fours: u64) -> Ledger {
    let row = LedgerRow { passed: fours * 4, events: fours * 2, duplicates: fours, quarantined: fours, gaps: 0 };
    [(PartitionId(0), row)].into()
}

async fn open(storage: &Storage) -> Archive {
    Archive::open(storage, STREAM, schema()).await.unwrap()
}

fn memory() -> Storage {
    Storage::open("memory:///", std::iter::empty()).unwrap()
}

async fn offsets(storage: &Storage, snapshot: &ArchiveSnapshot, kind: Kind) -> BTreeSet<i64> {
    let context = SessionContext::new();
    context.register_object_store(storage.url(), storage.store());
    context.register_table("t", Arc::new(snapshot.table(schema(), kind, Epoch(0)))).unwrap();
    let found = context.sql("SELECT _offset, _kind FROM t").await.unwrap().collect().await.unwrap();
    let mut offsets = BTreeSet::new();
    for batch in found {
        let values = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
        assert!(values.iter().flatten().all(|offset| offsets.insert(offset)), "an offset came twice");
    }
    offsets
}

#[tokio::test]
async fn many_commits_are_read_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    for storage in [memory(), Storage::open(dir.path().to_str().unwrap(), std::iter::empty()).unwrap()] {
        let mut archive = open(&storage).await;
        assert_eq!(archive.snapshot().epoch, Epoch(0));
        for n in 1..=20 {
            let snapshot = archive.commit(&epoch_on(&archive)).await.unwrap();
            assert_eq!(
                (snapshot.epoch, snapshot.frontier.position(PartitionId(0))),
                (Epoch(n), Offset(4 * n as i64))
            );
        }
        let before = archive.snapshot();
        let after = open(&storage).await.snapshot();
        assert_eq!(ArchiveSnapshot { version: before.version, ..(*after).clone() }, *before);
        assert_eq!(after.version, before.version + 1, "opening claims the table by an entry");
        assert_eq!(after.rows, RowCounts { events: 40, duplicates: 20, quarantined: 20 });
        let expected: BTreeSet<i64> = (0..80).filter(|offset| offset % 4 < 2).collect();
        assert_eq!(offsets(&storage, &after, Kind::Event).await, expected);
        assert_eq!(
            after.files_in(Kind::Duplicate, Epoch(18)).map(|file| file.epoch.0).collect::<Vec<_>>(),
            [19, 20]
        );
        for file in after.files.iter() {
            file.verify(&storage).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_log_is_read_while_it_grows() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path().to_str().unwrap(), std::iter::empty()).unwrap();
    let mut archive = open(&storage).await;
    let reading = storage.clone();
    let reader = tokio::spawn(async move {
        let (mut newest, mut reads) = (0, 0);
        while newest < 100 {
            let found = Archive::peek(&reading, STREAM).await.unwrap().unwrap();
            assert!(found.epoch.0 >= newest, "epoch {} after {newest}", found.epoch);
            (newest, reads) = (found.epoch.0, reads + 1);
        }
        reads
    });
    for _ in 0..100 {
        archive.commit(&epoch_on(&archive)).await.unwrap();
    }
    assert!(reader.await.unwrap() > 3, "it was not read while it grew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_are_written_and_used() {
    let storage = memory();
    let mut archive = open(&storage).await;
    for _ in 0..250 {
        archive.commit(&epoch_on(&archive)).await.unwrap();
        archive.settle().await;
    }
    let before = archive.snapshot();
    let paths = ArchivePaths::new(STREAM);
    let hint = storage.read(&paths.last_checkpoint()).await.unwrap().expect("a checkpoint is noted");
    assert!(std::str::from_utf8(&hint).unwrap().contains("\"version\":200"), "{hint:?}");
    // The checkpoint stands for the entries below it: a damaged one of those is not even read...
    let old = paths.log_entry(150);
    let entry = storage.read(&old).await.unwrap().unwrap();
    storage.overwrite(&old, bytes::Bytes::from_static(b"garbage")).await.unwrap();
    let after = Archive::peek(&storage, STREAM).await.unwrap().unwrap();
    assert_eq!(after, *before);
    // ...but is when the checkpoint itself is damaged.
    let checkpoint = paths.log().join("00000000000000000200.checkpoint.parquet");
    let good = storage.read(&checkpoint).await.unwrap().unwrap();
    storage.overwrite(&checkpoint, good.slice(0..good.len() / 2)).await.unwrap();
    let error = Archive::peek(&storage, STREAM).await.unwrap_err().to_string();
    assert!(error.contains("00000000000000000150.json"), "{error}");
    storage.overwrite(&old, entry).await.unwrap();
    assert_eq!(Archive::peek(&storage, STREAM).await.unwrap().unwrap(), *before);
}

#[tokio::test]
async fn killed_between_any_two_writes_the_state_is_before_or_after() {
    let mut outcomes = BTreeSet::new();
    for after in 0.. {
        let faulty = FaultyStore::in_memory();
        let storage = faulty.storage();
        let mut archive = open(&storage).await;
        archive.commit(&epoch_on(&archive)).await.unwrap();
        archive.settle().await;
        let (writes, epoch) = (faulty.writes(), epoch_on(&archive));
        faulty.fail_write(after, Fault::Killed);
        let outcome = archive.commit(&epoch).await;
        archive.settle().await;
        let survived = faulty.writes() - writes <= after;
        // What another process finds.
        let inner = faulty.without_faults();
        let mut reopened = open(&inner).await;
        let snapshot = reopened.snapshot();
        assert!([1, 2].contains(&snapshot.epoch.0));
        assert_eq!(snapshot.ledger, ledger(snapshot.epoch.0));
        assert_eq!(snapshot.frontier, frontier("t", 4 * snapshot.epoch.0 as i64));
        assert_eq!(offsets(&inner, &snapshot, Kind::Event).await.len() as u64, 2 * snapshot.epoch.0);
        assert_eq!(outcome.is_ok(), snapshot.epoch.0 == 2, "{outcome:?}");
        outcomes.insert(snapshot.epoch.0);
        // It goes on as if nothing had been.
        reopened.commit(&epoch_on(&reopened)).await.unwrap();
        if survived {
            break;
        }
    }
    assert_eq!(outcomes, [1, 2].into());
}

#[tokio::test]
async fn opening_survives_being_killed_at_any_write() {
    for after in 0..2 {
        let faulty = FaultyStore::in_memory();
        faulty.fail_write(after, Fault::Killed);
        let opened = Archive::open(&faulty.storage(), STREAM, schema()).await;
        assert_eq!(opened.is_ok(), after == 1);
        assert_eq!(open(&faulty.without_faults()).await.snapshot().epoch, Epoch(0));
    }
}

#[tokio::test]
async fn the_writer_that_opened_last_wins() {
    let storage = memory();
    let mut zombie = open(&storage).await;
    zombie.commit(&epoch_on(&zombie)).await.unwrap();
    let late = epoch_on(&zombie);
    let mut second = open(&storage).await;
    let error = zombie.commit(&late).await.unwrap_err();
    assert!(matches!(error, ArchiveError::Fenced { .. }) && !error.is_retryable(), "{error}");
    assert!(error.to_string().starts_with("fenced: "), "{error}");
    second.commit(&epoch_on(&second)).await.unwrap();
    assert!(matches!(zombie.commit(&late).await, Err(ArchiveError::Fenced { .. })), "it stays fenced");

    // A fresh view of the table does not help an epoch that was begun on an older one.
    let mut third = open(&storage).await;
    assert!(matches!(third.commit(&late).await, Err(ArchiveError::Fenced { .. })));
    assert_eq!(third.snapshot().epoch, Epoch(2));
    third.commit(&epoch_on(&third)).await.unwrap();
}

#[tokio::test]
async fn two_that_open_at_once_do_not_both_write() {
    let storage = memory();
    drop(open(&storage).await);
    let (a, b) = tokio::join!(Archive::open(&storage, STREAM, schema()), Archive::open(&storage, STREAM, schema()));
    let mut committed = 0;
    for archive in [a, b].into_iter().flatten() {
        let mut archive = archive;
        let epoch = epoch_on(&archive);
        committed += usize::from(archive.commit(&epoch).await.is_ok());
    }
    assert_eq!(committed, 1);
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused_before_anything_is_written() {
    let faulty = FaultyStore::in_memory();
    let storage = faulty.storage();
    let mut archive = open(&storage).await;
    archive.commit(&epoch_on(&archive)).await.unwrap();
    archive.settle().await;
    let writes = faulty.writes();
    let refused = |frontier, ledger| archive.begin().finish(frontier, ledger).unwrap();
    let cases = [
        refused(frontier("t", 3), ledger(1)),
        refused(frontier("other", 8), ledger(1)),
        refused(frontier("t", 8), Ledger::new()),
        refused(frontier("t", 8), ledger(2)),
    ];
    for case in cases {
        let error = archive.commit(&case).await.unwrap_err();
        assert!(matches!(error, ArchiveError::Refused { .. }), "{error}");
    }
    let unchanged = archive.begin().finish(frontier("t", 4), ledger(1)).unwrap();
    assert_eq!(archive.commit(&unchanged).await.unwrap().epoch, Epoch(1));
    assert_eq!(faulty.writes(), writes);
}

#[tokio::test]
async fn a_lost_answer_is_recognised_as_ours() {
    // Writes of a commit: three data files, then the entry.
    for at in 0..4 {
        let faulty = FaultyStore::in_memory();
        let mut archive = open(&faulty.storage()).await;
        faulty.fail_write(at, Fault::AfterWrite);
        let snapshot = archive.commit(&epoch_on(&archive)).await.unwrap();
        assert_eq!((snapshot.epoch, snapshot.files.len()), (Epoch(1), 3));
        archive.commit(&epoch_on(&archive)).await.unwrap();
        assert_eq!(
            *Archive::peek(&faulty.without_faults(), STREAM)
                .await
                .unwrap()
                .unwrap()
                .frontier
                .next
                .get(&PartitionId(0))
                .unwrap(),
            Offset(8)
        );
    }
}

#[tokio::test]
async fn a_full_disk_is_retried_with_the_same_epoch() {
    for at in 0..4 {
        let faulty = FaultyStore::in_memory();
        let storage = faulty.storage();
        let mut archive = open(&storage).await;
        let epoch = epoch_on(&archive);
        faulty.fail_write(at, Fault::DiskFull);
        let error = archive.commit(&epoch).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        let snapshot = archive.commit(&epoch).await.unwrap();
        archive.settle().await;
        assert_eq!(snapshot.epoch, Epoch(1));
        assert_eq!(archive.commit(&epoch).await.unwrap(), snapshot, "again is no second commit");
        assert_eq!(offsets(&storage, &snapshot, Kind::Event).await, [0, 1].into());
        faulty.fail_write(at, Fault::Eio);
        assert!(!archive.commit(&epoch_on(&archive)).await.unwrap_err().is_retryable());
    }
}

#[tokio::test]
async fn a_damaged_or_missing_entry_stops_the_start_and_is_named() {
    let storage = memory();
    let mut archive = open(&storage).await;
    for _ in 0..4 {
        archive.commit(&epoch_on(&archive)).await.unwrap();
    }
    archive.settle().await;
    let paths = ArchivePaths::new(STREAM);
    let store = storage.store();
    for version in 0..=4 {
        let path = paths.log_entry(version);
        let good = storage.read(&path).await.unwrap().unwrap();
        store.delete(&path).await.unwrap();
        let error = Archive::open(&storage, STREAM, schema()).await.unwrap_err().to_string();
        assert!(error.contains(path.as_ref()), "removed {path}: {error}");
        let mut bad = good.to_vec();
        let middle = bad.len() / 2;
        bad[middle] ^= 0x04;
        storage.overwrite(&path, bad.into()).await.unwrap();
        let error = Archive::open(&storage, STREAM, schema()).await.unwrap_err().to_string();
        assert!(error.contains(path.as_ref()), "flipped {path}: {error}");
        storage.overwrite(&path, good).await.unwrap();
    }
    assert_eq!(open(&storage).await.snapshot().epoch, Epoch(4));
}

#[tokio::test]
async fn a_lost_or_damaged_data_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path().to_str().unwrap(), std::iter::empty()).unwrap();
    let mut archive = open(&storage).await;
    archive.commit(&epoch_on(&archive)).await.unwrap();
    let snapshot = archive.commit(&epoch_on(&archive)).await.unwrap();
    let file = snapshot.files_in(Kind::Event, Epoch(1)).next().unwrap();
    let good = storage.read(&file.path).await.unwrap().unwrap();
    let mut flipped = good.to_vec();
    flipped[good.len() / 3] ^= 1;
    storage.overwrite(&file.path, flipped.into()).await.unwrap();
    assert!(file.verify(&storage).await.unwrap_err().to_string().contains(&file.name));
    for bad in [Some(good.slice(0..good.len() - 9)), None] {
        match bad {
            Some(bad) => storage.overwrite(&file.path, bad).await.unwrap(),
            None => storage.store().delete(&file.path).await.unwrap(),
        }
        let context = SessionContext::new();
        context.register_object_store(storage.url(), storage.store());
        context.register_table("t", Arc::new(snapshot.table(schema(), Kind::Event, Epoch(0)))).unwrap();
        let outcome = context.sql("SELECT sum(_offset) FROM t").await.unwrap().collect().await;
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(&file.name), "{error}");
    }
}

/// What the query answers when the file has these bytes, or its error.
async fn answer(storage: &Storage, file: &ArchiveFile, bytes: Vec<u8>) -> Result<String, String> {
    storage.overwrite(&file.path, bytes.into()).await.unwrap();
    let context = SessionContext::new();
    context.register_object_store(storage.url(), storage.store());
    let table = ParquetTable::new(schema(), vec![file.scan_file()]);
    context.register_table("t", Arc::new(table)).unwrap();
    let sql = "SELECT sum(_offset), count(id), max(id), min(_kind), sum(_partition) FROM t";
    let found = context.sql(sql).await.unwrap().collect().await.map_err(|error| error.to_string())?;
    Ok(arrow::util::pretty::pretty_format_batches(&found).unwrap().to_string())
}

/// Every bit that is read is checked. The same flips without the digests of the blocks give wrong answers and no error.
#[tokio::test]
async fn no_flipped_bit_of_a_data_file_changes_an_answer() {
    let storage = memory();
    let mut archive = open(&storage).await;
    let mut writer = archive.begin();
    writer.append(Kind::Event, &batch(Kind::Event, 0..500)).unwrap();
    let row = LedgerRow { passed: 500, events: 500, ..LedgerRow::default() };
    let epoch = writer.finish(frontier("t", 500), [(PartitionId(0), row)].into()).unwrap();
    let snapshot = archive.commit(&epoch).await.unwrap();
    let file = snapshot.files_in(Kind::Event, Epoch(0)).next().unwrap();
    let good = storage.read(&file.path).await.unwrap().unwrap();
    let right = answer(&storage, file, good.to_vec()).await.unwrap();
    let unchecked = ArchiveFile { blocks: None, ..file.clone() };
    let mut silently_wrong = 0;
    for at in (0..good.len()).step_by(7) {
        let mut bad = good.to_vec();
        bad[at] ^= 1 << (at % 8);
        let error = answer(&storage, file, bad.clone()).await.unwrap_err();
        assert!(error.contains(&file.name) && error.contains("damaged"), "byte {at}: {error}");
        // A reader may also panic on such bytes; that is not what is counted here.
        let outcome = tokio::spawn({
            let (storage, unchecked) = (storage.clone(), unchecked.clone());
            async move { answer(&storage, &unchecked, bad).await }
        });
        silently_wrong += usize::from(outcome.await.is_ok_and(|answer| answer.is_ok_and(|answer| answer != right)));
    }
    assert!(silently_wrong > 0, "the check guards against nothing");
    assert_eq!(answer(&storage, file, good.to_vec()).await.unwrap(), right);
}

#[tokio::test]
async fn columns_are_added_and_never_changed() {
    let storage = memory();
    let mut archive = open(&storage).await;
    archive.commit(&epoch_on(&archive)).await.unwrap();
    let item: Fields = vec![Field::new("name", DataType::Utf8, true)].into();
    let mut fields: Vec<Field> = schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.extend([
        Field::new("flag", DataType::Boolean, true),
        Field::new("score", DataType::Float64, true),
        Field::new("day", DataType::Date32, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("amount", DataType::Decimal128(18, 6), true),
        Field::new("_raw", DataType::Binary, true),
        Field::new("tags", DataType::new_list(DataType::Struct(item.clone()), true), true),
        Field::new("place", DataType::Struct(item.clone()), true),
    ]);
    let wider: SchemaRef = Arc::new(Schema::new(fields));
    let mut archive = Archive::open(&storage, STREAM, Arc::clone(&wider)).await.unwrap();
    let mut writer = archive.begin();
    let narrow = batch(Kind::Event, 4..5);
    let mut columns: Vec<ArrayRef> = narrow.columns().to_vec();
    for field in wider.fields().iter().skip(columns.len()) {
        columns.push(match field.name().as_str() {
            "tags" => {
                let mut list = ListBuilder::new(StructBuilder::from_fields(item.clone(), 1));
                list.values().field_builder::<StringBuilder>(0).unwrap().append_value("x");
                list.values().append(true);
                list.append(true);
                Arc::new(list.finish())
            }
            _ => new_null_array(field.data_type(), 1),
        });
    }
    writer.append(Kind::Event, &RecordBatch::try_new(Arc::clone(&wider), columns).unwrap()).unwrap();
    let mut ledger = ledger(1);
    let row = ledger.get_mut(&PartitionId(0)).unwrap();
    (row.passed, row.events) = (row.passed + 1, row.events + 1);
    let epoch = writer.finish(frontier("t", 5), ledger).unwrap();
    let snapshot = archive.commit(&epoch).await.unwrap();

    let context = SessionContext::new();
    context.register_object_store(storage.url(), storage.store());
    context.register_table("t", Arc::new(snapshot.table(wider, Kind::Event, Epoch(0)))).unwrap();
    let found = context.sql("SELECT count(*), count(flag), count(tags) FROM t").await.unwrap();
    let found = arrow::util::pretty::pretty_format_batches(&found.collect().await.unwrap()).unwrap().to_string();
    assert!(found.contains("| 3        | 0             | 1             |"), "{found}");

    // An older declaration may come back: the table keeps the columns.
    let archive = open(&storage).await;
    assert_eq!(archive.snapshot().epoch, Epoch(2));
    let changed = Arc::new(Schema::new(vec![Field::new("_offset", DataType::Utf8, true)]));
    let error = Archive::open(&storage, STREAM, changed).await.unwrap_err().to_string();
    assert!(error.contains("_offset") && error.contains("long") && error.contains("string"), "{error}");
}

#[tokio::test]
async fn a_batch_with_other_columns_is_refused() {
    let storage = memory();
    let archive = open(&storage).await;
    let good = batch(Kind::Event, 0..1);
    for bad in [good.project(&[0, 1, 2]).unwrap(), good.project(&[0, 2, 1, 3]).unwrap()] {
        let error = archive.begin().append(Kind::Event, &bad).unwrap_err().to_string();
        assert!(error.contains("_offset") || error.contains("_kind"), "{error}");
    }
}

#[tokio::test]
async fn entries_of_other_programs_are_stepped_over_or_refused() {
    let storage = memory();
    let mut archive = open(&storage).await;
    archive.commit(&epoch_on(&archive)).await.unwrap();
    let paths = ArchivePaths::new(STREAM);
    let vacuum = b"{\"commitInfo\":{\"operation\":\"VACUUM END\"}}\n";
    storage.create(&paths.log_entry(2), bytes::Bytes::from_static(vacuum)).await.unwrap();
    let snapshot = archive.commit(&epoch_on(&archive)).await.unwrap();
    assert_eq!((snapshot.epoch, snapshot.version), (Epoch(2), 3));
    let mut archive = open(&storage).await;
    let delete = b"{\"commitInfo\":{}}\n{\"remove\":{\"path\":\"events/x\",\"dataChange\":true}}\n";
    storage.create(&paths.log_entry(5), bytes::Bytes::from_static(delete)).await.unwrap();
    let error = archive.commit(&epoch_on(&archive)).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("one writer"), "{error}");
    assert!(Archive::open(&storage, STREAM, schema()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_does_not_grow_with_the_log() {
    let storage = memory();
    let mut archive = open(&storage).await;
    let mut bytes = Vec::new();
    for _ in 0..310 {
        let version = archive.commit(&epoch_on(&archive)).await.unwrap().version;
        let entry = storage.read(&archive.paths.log_entry(version)).await.unwrap().unwrap();
        bytes.push(entry.len());
    }
    archive.settle().await;
    let (early, late) = (bytes[..50].iter().max().unwrap(), bytes[260..].iter().max().unwrap());
    assert!(late * 10 < early * 11, "{early} bytes grew to {late}");
}
