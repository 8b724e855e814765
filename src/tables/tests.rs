#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;

use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use datafusion::arrow::datatypes::Int64Type;

use super::change::{Change, OnConflict, numbered};
use super::log::{OpenError, TableLog, versions};
use super::transaction::Transaction;
use super::*;
use crate::catalog::Catalog;
use crate::catalog::ddl::{self, Definition};
use crate::engine::planner::Planner;
use crate::engine::{Engine, EngineConfig};
use crate::runtime::SystemClock;
use crate::storage::Storage;
use crate::storage::faults::{Fault, FaultyStore};

const PRICES: &str = "CREATE TABLE prices (item TEXT, price BIGINT NOT NULL, note TEXT, PRIMARY KEY (item),\n\
                      CONSTRAINT not_negative CHECK (price >= 0))";

fn rules(sql: &str) -> Arc<TableRules> {
    let Some(Definition::Table(table)) = ddl::parse("t.sql", sql).unwrap().pop() else { panic!("not a table") };
    let config = EngineConfig { threads: 1, memory_bytes_max: 1 << 20, spill_dir: None, batch_rows: 8192 };
    let planner = Planner::new(&Engine::new(config).unwrap(), &Catalog::default()).unwrap();
    let checks = planner.table_checks(&table).unwrap();
    Arc::new(TableRules { table: Arc::new(table), checks })
}

async fn open_all(
    storage: &Storage,
    sqls: &[&str],
    bytes_max: usize,
) -> Result<(Arc<TableLog>, Tables), OpenError> {
    let rules = sqls.iter().map(|sql| rules(sql)).map(|rules| (rules.table.name.clone(), rules)).collect();
    TableLog::open(storage, &rules, bytes_max, Arc::new(SystemClock)).await
}

/// The log, and its one table.
async fn open(storage: &Storage, sql: &str) -> Result<(Arc<TableLog>, Arc<Contents>), OpenError> {
    let (log, tables) = open_all(storage, &[sql], 1 << 20).await?;
    let (_, contents) = tables.iter().next().unwrap();
    Ok((log, Arc::clone(contents)))
}

/// Item, price and note.
type Row<'a> = (Option<&'a str>, i64, Option<&'a str>);

fn batch(rows: &[Row<'_>]) -> RecordBatch {
    let texts = |text: fn(&Row<'_>) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(text).collect::<StringArray>())
    };
    RecordBatch::try_from_iter_with_nullable([
        ("item", texts(|row| row.0.map(str::to_owned)), true),
        ("price", Arc::new(rows.iter().map(|row| Some(row.1)).collect::<Int64Array>()), true),
        ("note", texts(|row| row.2.map(str::to_owned)), true),
    ])
    .unwrap()
}

fn insert(rows: &[(&str, i64)]) -> Change {
    let rows: Vec<_> = rows.iter().map(|(item, price)| (Some(*item), *price, None)).collect();
    Change::Insert { rows: vec![batch(&rows)], conflict: OnConflict::Fail }
}

async fn begin(log: &Arc<TableLog>) -> Transaction {
    Transaction::over(log.turn(|_| {}).await.unwrap().tables().clone(), log.bytes_max())
}

async fn end(log: &Arc<TableLog>, transaction: Transaction, read: &[&str]) -> Result<(), WriteError> {
    let read = read.iter().map(|table| (*table).to_owned()).collect();
    log.turn(|_| {}).await?.commit(transaction, &read, "analyst", |_| {}).await
}

/// One change of the first table, committed.
async fn commit(log: &Arc<TableLog>, change: Change) -> Result<u64, WriteError> {
    let turn = log.turn(|_| {}).await?;
    let mut transaction = Transaction::over(turn.tables().clone(), log.bytes_max());
    let (table, _) = turn.tables().iter().next().unwrap();
    let touched = transaction.apply(table, change, "INSERT").await?;
    turn.commit(transaction, &BTreeSet::new(), "analyst", |_| {}).await?;
    Ok(touched)
}

fn rows<'a>(tables: &'a Tables, table: &str) -> &'a RecordBatch {
    &tables.get(table).unwrap().rows
}

/// `item=price:note ...`
fn shown(rows: &RecordBatch) -> String {
    let (items, notes) = (rows.column(0).as_string::<i32>(), rows.column(2).as_string::<i32>());
    let prices = rows.column(1).as_primitive::<Int64Type>();
    let one = |((item, price), note): ((Option<&str>, &i64), Option<&str>)| {
        format!("{}={price}{}", item.unwrap_or("-"), note.map(|note| format!(":{note}")).unwrap_or_default())
    };
    items.iter().zip(prices.values()).zip(notes.iter()).map(one).collect::<Vec<_>>().join(" ")
}

async fn now(log: &Arc<TableLog>) -> String {
    shown(&log.turn(|_| {}).await.unwrap().tables().iter().next().unwrap().1.rows)
}

#[tokio::test]
async fn every_version_is_there_after_a_restart_and_by_number() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (log, empty) = open(&storage, PRICES).await.unwrap();
    assert_eq!((empty.version.number, empty.rows.num_rows()), (0, 0));
    let mut seen = Vec::new();
    let turn = log.turn(|_| {}).await.unwrap();
    let mut first = Transaction::over(turn.tables().clone(), log.bytes_max());
    assert_eq!(first.apply("prices", insert(&[("pear", 2), ("plum", 3)]), "INSERT").await.unwrap(), 2);
    turn.commit(first, &BTreeSet::new(), "ann", |next| seen.push(next.clone())).await.unwrap();
    assert_eq!(seen.iter().map(|next| shown(rows(next, "prices"))).collect::<Vec<_>>(), ["pear=2 plum=3"]);
    assert_eq!(commit(&log, insert(&[])).await.unwrap(), 0, "nothing changed, no version");
    assert_eq!(commit(&log, insert(&[("fig", 9)])).await.unwrap(), 1);
    assert_eq!(commit(&log, Change::Truncate).await.unwrap(), 3);

    let (log, contents) = open(&storage, PRICES).await.unwrap();
    assert_eq!((contents.version.number, contents.rows.num_rows()), (3, 0));
    let history: Vec<_> =
        contents.history.iter().map(|v| (v.number, v.changed_by.as_str(), v.changed_rows, v.rows)).collect();
    assert_eq!(history, [(1, "ann", 2, 2), (2, "analyst", 1, 3), (3, "analyst", 3, 0)]);
    assert_eq!(shown(&log.at("prices", 2).await.unwrap()), "pear=2 plum=3 fig=9");
    assert_eq!(shown(&log.at("prices", 0).await.unwrap()), "");
    assert!(matches!(log.at("prices", 4).await, Err(OpenError::NoVersion { number: 4, .. })));
    assert_eq!(commit(&log, insert(&[("fig", 1)])).await.unwrap(), 1);
    assert_eq!(now(&log).await, "fig=1");
}

#[tokio::test]
async fn rows_that_break_a_rule_change_nothing() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (log, _) = open(&storage, PRICES).await.unwrap();
    commit(&log, insert(&[("pear", 2)])).await.unwrap();
    for (rows, told) in [
        (
            vec![(Some("fig"), 1, None), (Some("plum"), -1, None)],
            "check constraint \"not_negative\": (plum, -1, null)",
        ),
        (vec![(Some("fig"), 1, None), (None, 1, None)], "null value in column \"item\""),
        (vec![(Some("fig"), 1, None), (Some("pear"), 1, None)], "\"prices_pkey\": (item)=(pear)"),
        (vec![(Some("fig"), 1, None), (Some("fig"), 2, None)], "\"prices_pkey\": (item)=(fig)"),
    ] {
        let change = Change::Insert { rows: vec![batch(&rows)], conflict: OnConflict::Fail };
        let error = commit(&log, change).await.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    assert_eq!(now(&log).await, "pear=2");
    assert_eq!(versions(&storage, "prices").await.unwrap().len(), 1);
}

#[tokio::test]
async fn rows_are_updated_deleted_and_inserted_over_each_other() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (log, _) = open(&storage, PRICES).await.unwrap();
    commit(&log, insert(&[("pear", 2), ("plum", 3), ("fig", 4)])).await.unwrap();
    let numbered = numbered(rows(log.turn(|_| {}).await.unwrap().tables(), "prices")).unwrap();
    let swapped = RecordBatch::try_from_iter([
        ("item", Arc::new(StringArray::from(vec!["plum", "pear"])) as ArrayRef),
        ("price", Arc::new(Int64Array::from(vec![20, 30])) as ArrayRef),
        ("note", Arc::new(StringArray::from(vec![Some("was pear"), None])) as ArrayRef),
        ("_row", Arc::new(Int64Array::from(vec![0, 1])) as ArrayRef),
    ]);
    assert_eq!(commit(&log, Change::Update(vec![swapped.unwrap()])).await.unwrap(), 2, "keys may change places");
    assert_eq!(now(&log).await, "plum=20:was pear pear=30 fig=4");
    assert_eq!(commit(&log, Change::Delete(vec![numbered.slice(1, 1)])).await.unwrap(), 1);
    assert_eq!(now(&log).await, "plum=20:was pear fig=4");

    let over = |conflict| Change::Insert {
        rows: vec![batch(&[(Some("fig"), 5, Some("new")), (Some("kiwi"), 6, None)])],
        conflict,
    };
    let key = || vec!["item".to_owned()];
    let wrong = OnConflict::Skip(Some(vec!["price".to_owned()]));
    assert!(matches!(commit(&log, over(wrong)).await, Err(WriteError::NoSuchKey { .. })));
    assert_eq!(commit(&log, over(OnConflict::Skip(Some(key())))).await.unwrap(), 1);
    assert_eq!(now(&log).await, "plum=20:was pear fig=4 kiwi=6");
    let update = OnConflict::Update { key: key(), columns: vec!["note".to_owned()] };
    assert_eq!(commit(&log, over(update.clone())).await.unwrap(), 2);
    assert_eq!(now(&log).await, "plum=20:was pear fig=4:new kiwi=6", "only the columns that were named");
    let twice =
        Change::Insert { rows: vec![batch(&[(Some("fig"), 5, None), (Some("fig"), 6, None)])], conflict: update };
    assert!(matches!(commit(&log, twice).await, Err(WriteError::Twice { .. })));
}

#[tokio::test]
async fn who_comes_second_is_fenced() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (first, _) = open(&storage, PRICES).await.unwrap();
    let (second, _) = open(&storage, PRICES).await.unwrap();
    commit(&first, insert(&[("pear", 2)])).await.unwrap();
    let error = commit(&second, insert(&[("plum", 3)])).await.unwrap_err();
    assert!(matches!(error, WriteError::Fenced { number: 1 }), "{error}");
    let (_, contents) = open(&storage, PRICES).await.unwrap();
    assert_eq!(shown(&contents.rows), "pear=2");
}

#[tokio::test]
async fn what_storage_did_not_answer_is_found_out_by_the_next_change() {
    for (fault, expected) in [(Fault::Unanswered, "pear=2 plum=3"), (Fault::DiskFull, "plum=3")] {
        let faulty = FaultyStore::in_memory();
        let (log, _) = open(&faulty.storage(), PRICES).await.unwrap();
        // The file is written first, the manifest second.
        faulty.fail_write(1, fault);
        let error = commit(&log, insert(&[("pear", 2)])).await.unwrap_err();
        assert!(matches!(error, WriteError::Undecided { .. }), "{error}");
        let mut adopted = 0;
        drop(log.turn(|_| adopted += 1).await.unwrap());
        commit(&log, insert(&[("plum", 3)])).await.unwrap();
        assert_eq!((now(&log).await.as_str(), adopted > 0), (expected, fault == Fault::Unanswered));
        let (_, contents) = open(&faulty.storage(), PRICES).await.unwrap();
        assert_eq!(shown(&contents.rows), expected);
    }
}

#[tokio::test]
async fn a_damaged_or_lost_file_is_named() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (log, _) = open(&storage, PRICES).await.unwrap();
    commit(&log, insert(&[("pear", 2)])).await.unwrap();
    let path = versions(&storage, "prices").await.unwrap()[0].path.clone();
    let path = object_store::path::Path::from(path.as_str());
    let mut bytes = storage.read(&path).await.unwrap().unwrap().to_vec();
    bytes[60] ^= 1;
    storage.overwrite(&path, bytes.into()).await.unwrap();
    let error = open(&storage, PRICES).await.unwrap_err().to_string();
    assert!(error.contains(path.as_ref()) && error.contains("SHA-256"), "{error}");
    object_store::ObjectStoreExt::delete(&storage.store(), &path).await.unwrap();
    let error = open(&storage, PRICES).await.unwrap_err().to_string();
    assert!(error.contains(path.as_ref()) && error.contains("missing"), "{error}");
}

#[tokio::test]
async fn a_table_stays_within_its_limit() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (log, _) = open_all(&storage, &[PRICES], 1000).await.unwrap();
    let many: Vec<String> = (0..100).map(|n| format!("item {n}")).collect();
    let items: Vec<(&str, i64)> = many.iter().map(|item| (item.as_str(), 1)).collect();
    let error = commit(&log, insert(&items)).await.unwrap_err().to_string();
    assert!(error.contains("`tables.bytes_max` is 1000"), "{error}");
    assert_eq!(commit(&log, insert(&items[..2])).await.unwrap(), 2);
}

#[tokio::test]
async fn a_declaration_may_gain_and_lose_columns_but_not_contradict_the_rows() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (log, _) = open(&storage, PRICES).await.unwrap();
    commit(&log, insert(&[("pear", 2), ("plum", 2)])).await.unwrap();
    let wider = "CREATE TABLE prices (note TEXT, price BIGINT, currency TEXT)";
    let (_, contents) = open(&storage, wider).await.unwrap();
    assert_eq!(contents.rows.num_columns(), 3);
    assert_eq!(contents.rows.column(2).null_count(), 2);
    for (sql, told) in [
        (
            "CREATE TABLE prices (\n  price TEXT)",
            "t.sql:2:3: column price of table prices is Int64 in its version 1",
        ),
        ("CREATE TABLE prices (price BIGINT CHECK (price > 2))", "t.sql:1:1: the rows of table prices (version 1)"),
        ("CREATE TABLE prices (price BIGINT PRIMARY KEY)", "t.sql:1:1: the rows of table prices (version 1)"),
        ("CREATE TABLE prices (price BIGINT, since DATE NOT NULL)", "null value in column \"since\""),
    ] {
        let error = open(&storage, sql).await.unwrap_err();
        assert!(matches!(error, OpenError::Unfit(_)) && error.to_string().contains(told), "{error}");
    }
}

#[tokio::test]
async fn identifiers_have_one_text() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (log, _) = open(&storage, "CREATE TABLE ids (id UUID PRIMARY KEY)").await.unwrap();
    let ids = |texts: Vec<&str>| {
        let column: ArrayRef = Arc::new(StringArray::from(texts));
        let rows = vec![RecordBatch::try_from_iter([("id", column)]).unwrap()];
        Change::Insert { rows, conflict: OnConflict::Fail }
    };
    let upper = "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11";
    commit(&log, ids(vec![upper])).await.unwrap();
    let again = commit(&log, ids(vec![&upper.to_lowercase()])).await.unwrap_err();
    assert!(matches!(again, WriteError::Duplicate { .. }), "{again}");
    assert!(matches!(commit(&log, ids(vec!["x"])).await, Err(WriteError::NotAUuid(_))));
}

const STOCKS: &str =
    "CREATE TABLE shop.stocks (item TEXT PRIMARY KEY, price BIGINT, note TEXT) WITH (append_only = 'true')";

#[tokio::test]
async fn several_tables_change_in_one_step_or_not_at_all() {
    let faulty = FaultyStore::in_memory();
    let open = || async { open_all(&faulty.storage(), &[PRICES, STOCKS], 1 << 20).await.unwrap() };
    let (log, _) = open().await;
    let mut both = begin(&log).await;
    both.apply("prices", insert(&[("pear", 2)]), "INSERT").await.unwrap();
    both.apply("shop.stocks", insert(&[("pear", 70)]), "INSERT").await.unwrap();
    let broken = both.apply("prices", insert(&[("pear", 3)]), "INSERT").await;
    assert!(matches!(broken, Err(WriteError::Duplicate { .. })), "it sees its own changes");
    both.apply("prices", insert(&[("fig", 4)]), "INSERT").await.unwrap();
    assert_eq!(shown(rows(&both.tables(), "prices")), "pear=2 fig=4", "a change that failed left nothing");
    assert_eq!(shown(rows(log.turn(|_| {}).await.unwrap().tables(), "prices")), "", "nobody else sees it");
    end(&log, both, &[]).await.unwrap();
    let after = |tables: &Tables| (shown(rows(tables, "prices")), shown(rows(tables, "shop.stocks")));
    let expected = ("pear=2 fig=4".to_owned(), "pear=70".to_owned());
    assert_eq!(after(log.turn(|_| {}).await.unwrap().tables()), expected);
    assert_eq!(after(&open().await.1), expected);

    // The two files are written first, the commit third: whichever fails, a reader finds both tables as they were.
    for (nth, fault) in [(0, Fault::DiskFull), (1, Fault::DiskFull), (2, Fault::DiskFull)] {
        let (log, _) = open().await;
        let mut both = begin(&log).await;
        both.apply("prices", insert(&[("kiwi", 5)]), "INSERT").await.unwrap();
        both.apply("shop.stocks", insert(&[("kiwi", 5)]), "INSERT").await.unwrap();
        faulty.fail_write(nth, fault);
        end(&log, both, &[]).await.unwrap_err();
        assert_eq!(after(log.turn(|_| {}).await.unwrap().tables()), expected);
        assert_eq!(after(&open().await.1), expected);
    }
}

#[tokio::test]
async fn the_first_to_commit_wins() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (log, _) = open_all(&storage, &[PRICES, STOCKS], 1 << 20).await.unwrap();
    let add = |item: &'static str| insert(&[(item, 1)]);
    // What a transaction changes or reads must be as it was when it began; the rest may have changed.
    for (changes, reads, wins) in
        [("prices", &[][..], false), ("shop.stocks", &["prices"][..], false), ("shop.stocks", &[][..], true)]
    {
        let mut late = begin(&log).await;
        late.apply(changes, add("late"), "INSERT").await.unwrap();
        let mut first = begin(&log).await;
        first.apply("prices", Change::Truncate, "TRUNCATE TABLE").await.unwrap();
        first.apply("prices", add("first"), "INSERT").await.unwrap();
        end(&log, first, &[]).await.unwrap();
        let ended = end(&log, late, reads).await;
        assert_eq!(ended.is_ok(), wins);
        assert!(wins || matches!(ended, Err(WriteError::Conflict { ref table }) if table == "prices"));
    }
}

#[tokio::test]
async fn rows_are_only_added_where_it_is_declared() {
    let storage = Storage::open("memory:///", std::iter::empty()).unwrap();
    let (log, _) = open_all(&storage, &[STOCKS], 1 << 20).await.unwrap();
    assert_eq!(commit(&log, insert(&[("pear", 2)])).await.unwrap(), 1);
    let same = numbered(rows(log.turn(|_| {}).await.unwrap().tables(), "shop.stocks")).unwrap();
    let over = OnConflict::Update { key: vec!["item".to_owned()], columns: vec!["price".to_owned()] };
    let over = Change::Insert { rows: vec![same.clone()], conflict: over };
    for change in [Change::Truncate, Change::Delete(vec![same.clone()]), Change::Update(vec![same.clone()]), over] {
        assert!(matches!(commit(&log, change).await, Err(WriteError::AppendOnly(_))));
    }
    let skip = Change::Insert { rows: vec![same], conflict: OnConflict::Skip(None) };
    assert_eq!(commit(&log, skip).await.unwrap(), 0);
}
