//! Viewledger counts views people are paid for.
//!
//! Kafka delivers events, an immutable archive keeps every one, batch views are computed from it by SQL, an
//! in-memory delta holds what came since, and readers see both merged as ordinary tables. The engine knows
//! streams, views and offsets; what is counted is defined in `sql/` and `udfs/`.
//!
//! Imports point from a room to the rooms above it in this list, or to the base
//! (`config`, `runtime`, `position`, `metrics`); `tests/rooms.rs` enforces it.

pub mod config;
pub mod metrics;
pub mod position;
pub mod runtime;

pub mod storage;

pub mod audit;

pub mod catalog;

pub mod engine;

pub mod tables;

pub mod kafka;

pub mod archive;

pub mod delta;

pub mod batch;

pub mod merge;

pub mod ingest;

pub mod serve;

pub mod demo;

pub mod app;
pub mod cli;
