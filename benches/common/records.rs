//! Records of the shipped profile as the poll loop would hand them on, without a broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use viewledger::app::{Declared, declare, planning_engine};
use viewledger::config::Config;
use viewledger::demo::load::generator::{Destination, Generator, Timeline};
use viewledger::demo::load::profile::Profile;
use viewledger::kafka::decode::Decoder;
use viewledger::kafka::{RawBatch, RawRecord};
use viewledger::position::{Offset, PartitionId};

pub const STREAM: &str = "video_views";
pub const PARTITIONS: u32 = 12;

/// 2026-11-01T00:00:00Z; one record each 100 microseconds from then on.
const START: i64 = 1_793_491_200_000_000;
const STEP: Duration = Duration::from_micros(100);

pub fn sql_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("sql")
}

pub fn profile() -> Profile {
    Profile::from_file(&sql_dir().join("load/video_views.toml")).expect("the shipped profile is valid")
}

/// The shipped streams and views, planned.
pub async fn declared(config: &Config) -> Declared {
    let engine = planning_engine(config).expect("an engine");
    declare(config, &engine).await.expect("the shipped SQL is valid")
}

pub fn decoder(declared: &Declared, config: &Config) -> Decoder {
    let stream = declared.names.streams.get(STREAM).expect("a shipped stream");
    let checks = declared.checks.get(STREAM).cloned().unwrap_or_default();
    Decoder::new(std::sync::Arc::clone(stream), checks, config.ingest.record_bytes_max)
}

/// Draws micro-batches; the same ones for the same seed.
#[derive(Debug)]
pub struct Records {
    generator: Generator,
    drawn: i64,
    next: Vec<Offset>,
}

impl Records {
    /// As if those below `next`, an offset a partition, had been drawn before.
    pub fn after(seed: u64, next: Vec<Offset>) -> Self {
        let drawn: i64 = next.iter().map(|offset| offset.0).sum();
        let timeline = Timeline::Fixed { start: START + drawn * STEP.as_micros() as i64, step: STEP };
        Self { generator: Generator::new(&profile(), seed, timeline), drawn, next }
    }

    pub fn batch(&mut self, rows: usize) -> RawBatch {
        let mut batch = RawBatch::default();
        for _ in 0..rows {
            self.drawn += 1;
            let record = self.generator.next_record();
            let slot = match (record.destination, record.key) {
                (Destination::Slot(slot), _) => slot,
                // Any even spread will do.
                (Destination::Key, key) => key
                    .unwrap_or_default()
                    .iter()
                    .fold(7, |hash: u32, byte| hash.wrapping_mul(31) + u32::from(*byte)),
            } % PARTITIONS;
            let next = &mut self.next[slot as usize];
            let partition = PartitionId(slot as i32);
            let from = batch.bytes.len();
            batch.bytes.extend_from_slice(record.payload);
            batch.records.push(RawRecord {
                partition,
                offset: *next,
                produced_at: Some(START + self.drawn * STEP.as_micros() as i64),
                payload: Some(from..batch.bytes.len()),
            });
            *next = next.next();
            batch.positions.insert(partition, *next);
        }
        batch
    }
}
