//! The whole program beside its peers, in one run: ratios, not absolute figures.
//!
//! ```sh
//! cargo bench --bench peers -- ingest      # beside a bare rdkafka consumer
//! cargo bench --bench peers -- freshness   # acknowledged -> visible
//! cargo bench --bench peers -- refresh     # beside DuckDB
//! cargo bench --bench peers -- lambda      # what a refresh, a delta and a restart cost
//! cargo bench --bench peers -- by_key      # beside PostgreSQL
//! ```
//! What they need and what they measure stands in `benches/README.md`.
#![allow(clippy::unwrap_used, unreachable_pub, missing_debug_implementations)]

/// The topic of the shipped profile.
const TOPIC: &str = "video-views";

mod by_key;
mod fill;
mod freshness;
mod ingest;
mod lambda;
mod process;
#[path = "../common/records.rs"]
mod records;
mod refresh;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds a flag of its own.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["ingest"] => ingest::run(),
        ["freshness"] => freshness::run(),
        ["refresh"] => refresh::run(),
        ["lambda"] => lambda::run(),
        ["by_key"] => by_key::run(),
        // A step of `lambda`, in a process of its own, whose memory is its own.
        ["lambda", step, data_dir] => lambda::step(step, data_dir.as_ref()),
        // The peer of `ingest`, in a process of its own.
        ["bare", brokers] => ingest::bare(brokers),
        [] => {
            ingest::run()?;
            freshness::run()?;
            refresh::run()?;
            lambda::run()?;
            by_key::run()
        }
        other => anyhow::bail!("{other:?}: choose of ingest, freshness, refresh, lambda, by_key"),
    }
}
