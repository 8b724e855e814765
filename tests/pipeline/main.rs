//! The pipeline as a whole, from a record in Kafka to an answer over Postgres wire, on good and on bad days.
//!
//! Every scenario starts the embedded broker and the real server on directories of its own, writes records with the
//! usual client, and asks in SQL until the answer is right or a deadline passes. Nothing waits for a fixed time.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod access_log;
mod audit;
mod billing;
mod brokers;
mod by_key;
mod damage;
mod definitions;
mod disk;
mod escapes;
mod evolution;
mod flight;
mod fraud;
mod fuzz;
mod http;
mod joins;
mod kafka;
mod keeping;
mod loads;
mod partitions;
mod processes;
mod psql;
mod questions;
mod random;
mod reconcile;
mod records;
mod refreshes;
mod reload;
mod roles;
mod server;
mod shared;
mod snapshots;
mod tables;
mod tls;
mod transactions;
mod versions;
mod world;
mod zombie;
