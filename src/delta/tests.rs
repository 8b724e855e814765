#![allow(clippy::unwrap_used)]
use datafusion::arrow::array::Int64Array;
use datafusion::arrow::datatypes::{DataType, Field, Schema};

use super::*;

fn batch(values: &[i64]) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("n", DataType::Int64, false)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(Int64Array::from(values.to_vec()))]).unwrap()
}

fn fold(delta: &Delta, values: &[i64]) -> Delta {
    delta.fold(batch(values), batch(&[]), batch(&[]), vec![("v".into(), batch(values))])
}

fn held_rows(delta: &Delta) -> Vec<usize> {
    delta.states("v").iter().map(RecordBatch::num_rows).collect()
}

#[test]
fn a_cut_drops_what_the_generation_holds_and_keeps_the_rest() {
    let start = Delta::restored(Epoch(3), Epoch(4), [("v".to_owned(), batch(&[1, 2, 3]))].into());
    let delta = fold(&fold(&start, &[4, 5]).sealed(), &[6]);
    assert_eq!(held_rows(&delta), [3, 2, 1]);
    let delta = delta.archived(Epoch(5));
    assert_eq!(delta.tail(Epoch(5)).count(), 1);
    assert_eq!(held_rows(&delta.held(Some(Epoch(5))).cut(Epoch(5))), [1]);
    assert_eq!(held_rows(&delta), [3, 2, 1], "the old snapshot still sees everything");
}

#[test]
fn runs_are_combined_within_their_zone_only() {
    let mut delta = Delta::restored(Epoch(0), Epoch(0), BTreeMap::new());
    for n in 0..10 {
        delta = fold(&delta, &[n]);
    }
    delta = delta.sealed().archived(Epoch(1)).held(Some(Epoch(1)));
    for n in 0..10 {
        delta = fold(&delta, &[n]);
    }
    assert!(delta.due().is_empty(), "neither side of the cut has too many");
    for n in 0..10 {
        delta = fold(&delta, &[n]);
    }
    let due = delta.due();
    assert_eq!(due.len(), 1);
    assert!(due[0].runs.iter().all(|run| run.first == Epoch(2)));
    let combined = delta.replaced(&due[0], batch(&[7]));
    assert_eq!(held_rows(&combined).len(), 30 - FAN_IN + 1);
    // The generation was published while we combined: the runs are gone, and must not come back.
    let sealed = delta.sealed().archived(Epoch(2)).cut(Epoch(2));
    assert!(held_rows(&sealed.replaced(&due[0], batch(&[7]))).is_empty());
}

#[test]
fn small_runs_are_combined_soon_and_large_ones_when_they_are_very_many() {
    let runs = |rows: &[usize]| rows.iter().map(|rows| (Zone::Committed, *rows)).collect::<Vec<_>>();
    assert_eq!(choose(&runs(&[10; SMALL_RUNS_MAX])), None);
    assert_eq!(choose(&runs(&[10; SMALL_RUNS_MAX + 1])), Some(0..FAN_IN));
    assert_eq!(choose(&runs(&[LARGE_ROWS; RUNS_MAX])), None);
    assert_eq!(choose(&runs(&[LARGE_ROWS; RUNS_MAX + 1])), Some(0..FAN_IN));
    let mixed = [&[LARGE_ROWS; 20][..], &[10; SMALL_RUNS_MAX + 1]].concat();
    assert_eq!(choose(&runs(&mixed)), Some(20..20 + FAN_IN), "the large ones are left alone");
}

#[test]
#[should_panic(expected = "cannot be cut after epoch 4")]
fn a_run_across_the_cut_is_a_defect() {
    let delta = Delta::restored(Epoch(3), Epoch(5), [("v".to_owned(), batch(&[1]))].into());
    let _ = delta.cut(Epoch(4));
}
