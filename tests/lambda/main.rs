//! The lambda core at every moment: views, records, schedules and faults are random, the parts are the program's own,
//! and everything runs on one thread in an order that a seed gives.
#![allow(clippy::unwrap_used, unreachable_pub)]

mod audit;
mod bucket;
mod check;
mod model;
mod process;
mod property;
mod records;
mod seeds;
mod simulate;
mod source;
mod views;
