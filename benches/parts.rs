//! The parts of the ingest path, each alone: decode, key index, fold, combine, Parquet. Rows a second.
#![allow(clippy::unwrap_used, unreachable_pub, missing_debug_implementations)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use datafusion::arrow::array::{Array, ArrayRef, StringArray};
use datafusion::arrow::record_batch::RecordBatch;
use viewledger::app::{Declared, planning_engine};
use viewledger::archive::dedup::KeyIndex;
use viewledger::config::Config;
use viewledger::delta::{Combine, Run, fold};
use viewledger::kafka::RawBatch;
use viewledger::position::{Epoch, Offset};
use viewledger::storage::parquet::ParquetSink;

#[path = "common/records.rs"]
#[allow(dead_code, reason = "shared with the other benches")]
mod records;

use records::{PARTITIONS, Records, STREAM, declared, decoder};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A whole micro-batch.
const ROWS: usize = 65_536;
const NOW: i64 = 1_793_500_000_000_000;

struct Bench {
    config: Config,
    declared: Declared,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::defaults();
    config.storage.data_dir = dir.path().to_owned();
    config.sql.dir = records::sql_dir();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let declared = runtime.block_on(declared(&config));
    Bench { config, declared, runtime, _dir: dir }
}

fn copy(batch: &RawBatch) -> RawBatch {
    RawBatch {
        source: batch.source,
        topic: batch.topic.clone(),
        bytes: batch.bytes.clone(),
        records: batch.records.clone(),
        positions: batch.positions.clone(),
    }
}

fn decoded(bench: &Bench, records: &mut Records) -> RecordBatch {
    decoder(&bench.declared, &bench.config).decode(&mut records.batch(ROWS), NOW).unwrap().sound_records()
}

fn parts(criterion: &mut Criterion) {
    let bench = bench();
    let mut records = Records::after(1, vec![Offset(0); PARTITIONS as usize]);
    let mut group = criterion.benchmark_group("parts");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.sample_size(10).measurement_time(Duration::from_secs(4)).warm_up_time(Duration::from_secs(1));

    let raw = records.batch(ROWS);
    let decoder = decoder(&bench.declared, &bench.config);
    group.bench_function("decode", |b| {
        b.iter_batched(
            || copy(&raw),
            |mut raw| black_box(decoder.decode(&mut raw, NOW).unwrap()),
            BatchSize::LargeInput,
        );
    });

    let batch = decoded(&bench, &mut records);
    let stream = Arc::clone(bench.declared.names.streams.get(STREAM).unwrap());
    let key = stream.key.unwrap();
    group.bench_function("key index", |b| {
        // An index that already holds some millions, so that look-ups miss the cache as they do in life.
        let mut index = KeyIndex::default();
        let mut serial = 0_u128;
        let mut fresh = |rows: usize| -> ArrayRef {
            let keys = (0..rows).map(|_| {
                serial += 1;
                let spread = serial.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
                uuid::Uuid::from_u128(spread).to_string()
            });
            Arc::new(StringArray::from_iter_values(keys))
        };
        for _ in 0..64 {
            index.insert(&fresh(ROWS), None).unwrap();
        }
        b.iter_batched(
            || fresh(ROWS),
            |keys| black_box(index.insert(&keys, None).unwrap().len()),
            BatchSize::LargeInput,
        );
    });
    assert!(batch.column(key).len() > ROWS / 2);

    let engine = planning_engine(&bench.config).unwrap();
    for input in bench.declared.names.views.values().filter(|input| input.stream.name == STREAM) {
        let view = &input.view;
        group.bench_function(format!("fold {}", view.name()), |b| {
            b.iter(|| black_box(bench.runtime.block_on(fold::states(&engine, view, &batch)).unwrap()));
        });
    }
    let few = batch.slice(0, 1000);
    for input in bench.declared.names.views.values().filter(|input| input.stream.name == STREAM) {
        let view = &input.view;
        group.throughput(Throughput::Elements(few.num_rows() as u64));
        group.bench_function(format!("fold of 1000 rows {}", view.name()), |b| {
            b.iter(|| black_box(bench.runtime.block_on(fold::states(&engine, view, &few)).unwrap()));
        });
    }

    for input in bench.declared.names.views.values().filter(|input| input.stream.name == STREAM) {
        let view = &input.view;
        let mut rows = 0;
        let runs: Vec<Run> = (0..8)
            .map(|_| {
                let batch = decoded(&bench, &mut records);
                let states = bench.runtime.block_on(fold::states(&engine, view, &batch)).unwrap();
                rows += states.num_rows();
                Run::new(Epoch(1), Epoch(1), states)
            })
            .collect();
        let combine = Combine { view: view.name().to_owned(), runs };
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(format!("combine 8 runs {}", view.name()), |b| {
            b.iter(|| black_box(bench.runtime.block_on(fold::combined(&engine, view, &combine)).unwrap()));
        });
    }

    group.throughput(Throughput::Elements(batch.num_rows() as u64));
    group.bench_function("parquet", |b| {
        b.iter(|| {
            let mut sink = ParquetSink::new(&batch.schema()).unwrap();
            sink.append(&batch).unwrap();
            black_box(sink.finish().unwrap())
        });
    });
    group.finish();
}

criterion_group!(benches, parts);
criterion_main!(benches);
