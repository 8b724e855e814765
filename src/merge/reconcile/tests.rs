#![allow(clippy::unwrap_used)]
use datafusion::arrow::array::{Decimal128Array, Int64Array, StringArray};
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::Field;
use datafusion::catalog::{MemTable, MemorySchemaProvider};

use super::*;
use crate::engine::{CATALOG, EngineConfig};
use crate::merge::provider::in_memory;

const VIEW: &str = "SELECT k, count(*) AS rows, sum(n) AS total, sum(d) AS money, sum(f) AS weight, \
                    approx_distinct(n) AS some, approx_median(f) AS mid FROM raw.events GROUP BY k \
                    HAVING count(*) > 1000";

fn engine() -> Arc<Engine> {
    // Few rows a batch, so that pieces end at other rows on the two sides.
    Engine::new(EngineConfig { threads: 2, memory_bytes_max: 64 << 20, spill_dir: None, batch_rows: 7 }).unwrap()
}

fn records(rows: std::ops::Range<i64>) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
        Field::new("d", DataType::Decimal128(18, 2), true),
        Field::new("f", DataType::Float64, true),
    ]));
    let key = |n: i64| (n % 23 != 0).then(|| format!("k{}", n % 23));
    let decimals = rows.clone().map(i128::from).collect::<Decimal128Array>().with_precision_and_scale(18, 2);
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let floats = rows.clone().map(|n| Some(n as f64 / 7.0)).collect::<Float64Array>();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(rows.clone().map(key).collect::<StringArray>()),
        Arc::new(rows.map(Some).collect::<Int64Array>()),
        Arc::new(decimals.unwrap()),
        Arc::new(floats),
    ];
    RecordBatch::try_new(schema, columns).unwrap()
}

async fn view(engine: &Engine, sql: &str) -> LambdaView {
    let context = engine.session();
    context.catalog(CATALOG).unwrap().register_schema("raw", Arc::new(MemorySchemaProvider::new())).unwrap();
    let table = MemTable::try_new(records(0..0).schema(), vec![vec![]]).unwrap();
    context.register_table("raw.events", Arc::new(table)).unwrap();
    LambdaView::split("v", context.state().create_logical_plan(sql).await.unwrap()).unwrap()
}

async fn states(engine: &Engine, view: &LambdaView, rows: std::ops::Range<i64>) -> RecordBatch {
    let table = in_memory(&records(0..0).schema(), [records(rows)]).unwrap();
    let batches = engine.collect(view.state_plan(table).unwrap(), 1).await.unwrap();
    concat_batches(&view.state_schema(), &batches).unwrap()
}

async fn compared(engine: &Engine, view: &LambdaView, batch: &[RecordBatch], speed: &[RecordBatch]) -> Comparison {
    let table = |states: &[RecordBatch]| in_memory(&view.state_schema(), states.iter().cloned()).unwrap();
    compare(engine, 2, view, table(batch), table(speed)).await.unwrap()
}

#[tokio::test]
async fn the_same_records_cut_differently_are_equal_and_having_hides_nothing() {
    let engine = engine();
    let view = view(&engine, VIEW).await;
    let whole = states(&engine, &view, 0..100).await;
    let pieces = [states(&engine, &view, 60..100).await, states(&engine, &view, 0..60).await];
    let found = compared(&engine, &view, &[whole], &pieces).await;
    assert_eq!((found.groups, found.differing, found.differences.len()), (23, 0, 0));
    assert!(found.not_compared.is_empty(), "{:?}", found.not_compared);
}

#[tokio::test]
async fn one_record_more_is_found_and_named_on_either_side() {
    let engine = engine();
    let view = view(&engine, VIEW).await;
    let (less, more) = (states(&engine, &view, 0..99).await, states(&engine, &view, 0..100).await);
    for (batch, speed) in [(&less, &more), (&more, &less)] {
        let found = compared(&engine, &view, std::slice::from_ref(batch), std::slice::from_ref(speed)).await;
        assert_eq!((found.groups, found.differing), (23, 1));
        let told = &found.differences[0];
        assert_eq!(told.group, r#"{"k":"k7"}"#);
        let (Some(batch), Some(speed)) = (&told.batch, &told.speed) else { panic!("{told:?}") };
        assert_ne!(batch, speed);
        assert!(batch.contains(r#""rows":"#) && batch.contains(r#""money":"#), "{batch}");
    }
}

#[tokio::test]
async fn a_group_that_one_side_lacks_is_a_difference_also_the_one_without_a_key() {
    let engine = engine();
    let view = view(&engine, VIEW).await;
    let all = states(&engine, &view, 0..23).await;
    for missing in [0, 11, 22] {
        let rest = [all.slice(0, missing), all.slice(missing + 1, 22 - missing)];
        let found = compared(&engine, &view, std::slice::from_ref(&all), &rest).await;
        assert_eq!((found.groups, found.differing), (23, 1), "{found:?}");
        assert!(found.differences[0].speed.is_none() && found.differences[0].batch.is_some());
        let found = compared(&engine, &view, &rest, std::slice::from_ref(&all)).await;
        assert!(found.differences[0].batch.is_none() && found.differences[0].speed.is_some());
    }
    let nothing = compared(&engine, &view, &[], std::slice::from_ref(&all)).await;
    assert_eq!((nothing.groups, nothing.differing), (23, 23));
}

#[tokio::test]
async fn a_view_without_groups_and_one_without_aggregates_are_compared_too() {
    let engine = engine();
    let one = view(&engine, "SELECT count(*) AS rows FROM raw.events").await;
    let (less, more) = (states(&engine, &one, 0..9).await, states(&engine, &one, 0..10).await);
    let found = compared(&engine, &one, std::slice::from_ref(&more), &[less.clone(), less.clone()]).await;
    assert_eq!((found.groups, found.differing), (1, 1));
    assert_eq!(
        compared(&engine, &one, std::slice::from_ref(&less), std::slice::from_ref(&less)).await.differing,
        0
    );
    let keys = view(&engine, "SELECT k FROM raw.events GROUP BY k").await;
    let (less, more) = (states(&engine, &keys, 0..9).await, states(&engine, &keys, 0..10).await);
    let found = compared(&engine, &keys, &[more], &[less]).await;
    assert_eq!((found.groups, found.differing), (10, 1));
}

#[test]
fn floats_may_differ_in_their_last_digits_only() {
    let within = |a, b| close(Some(a), Some(b), 1e-9);
    assert!(within(0.1 + 0.2, 0.3) && within(f64::NAN, f64::NAN) && within(f64::INFINITY, f64::INFINITY));
    assert!(!within(1.0, 1.000_001) && !within(1e12, 1e12 + 1e4) && !within(f64::NAN, 0.0));
    assert!(close(None, None, 1e-9) && !close(None, Some(0.0), 1e-9));
}
