//! `viewledger verify`: whether anything in the archive was changed, lost or added.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{Common, FAULT, existing_storage, io_runtime, log_to_stderr};
use crate::app::recompute::{Recomputed, recompute};
use crate::audit::key::{PublicKey, SigningKey};
use crate::audit::verify::{Meter, Report, Scope, StreamReport, exported, verify};

/// Read the whole archive and hold it against its commits and seals; change nothing.
///
/// It checks the SHA-256 of every file, the chain of commits, offsets without gap or overlap, the ledger, that no key
/// counts twice, the roots of all seals and their signatures, and manifests. A server may run meanwhile. Exit code 3 when
/// something was changed, lost or added; the first line says where.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  viewledger verify
  viewledger verify --seals /mnt/auditor/seals --public-key $PUBLIC_KEY
  viewledger verify --stream video_views --json report.json
  viewledger verify --period 2026-10
      that each statement of the month is what its records, rates and verdicts come to")]
pub struct Args {
    /// Verify every stream; this is so when none is named
    #[arg(long, conflicts_with = "stream")]
    all: bool,
    /// Verify this stream alone; may be given several times
    #[arg(long, value_name = "NAME")]
    stream: Vec<String>,
    /// Also compute a closed period again from its records, and hold what was written then against it
    #[arg(long, value_name = "P", conflicts_with = "statement")]
    period: Option<String>,
    /// The same of one statement, such as 2026-10/ann/USD
    #[arg(long, value_name = "S")]
    statement: Option<String>,
    /// Also hold the archive against copies of seals that were kept elsewhere
    #[arg(long, value_name = "DIR")]
    seals: Option<PathBuf>,
    /// Whose seals are good, 64 hexadecimal digits; may be given several times. Otherwise the key file's, or whoever
    /// signed the first seal
    #[arg(long, value_name = "HEX")]
    public_key: Vec<String>,
    /// Write the report to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Files that are read at once
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    common: Common,
}

const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const TELL_INTERVAL: Duration = Duration::from_secs(5);
const BAR: &str = "verifying {wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {msg}, {eta} left";
/// Divergences that are printed; all are in the JSON.
const SHOWN_MAX: usize = 20;

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = args.common.load()?;
    log_to_stderr(&config);
    let storage = existing_storage(&config)?;
    let (copies, faults) = args.seals.as_deref().map(exported).transpose()?.unwrap_or_default();
    let mut keys = args.public_key.iter().map(|text| PublicKey::parse(text)).collect::<Result<Vec<_>, _>>()?;
    if keys.is_empty() && copies.is_empty() {
        // Whoever verifies on another machine does not have it.
        keys.extend(SigningKey::open(&config.seal_key_file()).ok().map(|key| key.public()));
    }
    let threads = args.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let scope = Scope { streams: args.stream.iter().cloned().collect(), keys, exported: copies, threads };
    let (meter, began) = (Arc::new(Meter::default()), Instant::now());
    let mut report = io_runtime()?.block_on(async {
        let work = verify(&storage, scope, &meter);
        tokio::pin!(work);
        let mut shown = Shown::default();
        loop {
            tokio::select! {
                report = &mut work => return report,
                () = tokio::time::sleep(LOOK_INTERVAL) => shown.show(&meter),
            }
        }
    })?;
    report.divergences.splice(0..0, faults);
    // Records that are not what they were are named by what is above; here they are taken as they are.
    let statement = args.statement.as_deref();
    let period = args.period.as_deref().or(statement.and_then(|statement| statement.split('/').next()));
    let recomputed = match period {
        Some(period) => io_runtime()?.block_on(recompute(&config, &storage, period, statement))?,
        None => Vec::new(),
    };
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&Whole { archive: &report, periods: &recomputed })?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    recomputed.iter().for_each(tell_period);
    tell(&report, began.elapsed());
    let sound = report.divergences.is_empty() && recomputed.iter().all(|period| period.divergences.is_empty());
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(FAULT) })
}

/// All that was found, as JSON.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    archive: &'a Report,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    periods: &'a [Recomputed],
}

fn tell_period(recomputed: &Recomputed) {
    let Recomputed { period, file, offsets, tables, divergences } = recomputed;
    for fault in divergences.iter().take(SHOWN_MAX) {
        println!("{period}: {fault}");
    }
    let more = divergences.len().saturating_sub(SHOWN_MAX);
    if more > 0 {
        println!("{period}: and {more} more");
    }
    let read: Vec<String> = offsets.iter().map(|(stream, below)| format!("{below} offsets of {stream}")).collect();
    let verdict = match divergences.len() {
        0 => "it comes to what was written".to_owned(),
        count => format!("{count} divergences"),
    };
    println!("{period}: computed by {file} from {} and {} tables: {verdict}", read.join(", "), tables.len());
}

fn tell(report: &Report, took: Duration) {
    for fault in report.divergences.iter().take(SHOWN_MAX) {
        println!("{fault}");
    }
    let more = report.divergences.len().saturating_sub(SHOWN_MAX);
    if more > 0 {
        println!("and {more} more");
    }
    for (name, stream) in &report.streams {
        let StreamReport { epochs, records, files, sealed_epochs, sealed_records, gaps } = stream;
        println!(
            "{name}: {records} records in {epochs} epochs and {files} files, {gaps} gaps; sealed are {sealed_records} \
             records in {sealed_epochs} epochs"
        );
    }
    match (report.first_sealed_at.and_then(instant), report.last_sealed_at.and_then(instant)) {
        (Some(first), Some(last)) => println!("{} seals, from {first} to {last}", report.seals),
        _ => println!("no seals: nothing proves what is older than this moment"),
    }
    let whose = if report.keys_given { "given" } else { "as the first seal says; give the one you trust" };
    report.keys.iter().for_each(|key| println!("public key {key}, {whose}"));
    #[expect(clippy::cast_precision_loss, reason = "shown to people")]
    let speed = report.bytes as f64 / 1e6 / took.as_secs_f64().max(1e-3);
    println!("{} bytes in {:.1} s, {speed:.0} MB/s", report.bytes, took.as_secs_f64());
    match report.divergences.len() {
        0 => println!("verified: nothing was changed, lost or added"),
        count => println!("{count} divergences"),
    }
}

fn instant(micros: i64) -> Option<String> {
    chrono::DateTime::from_timestamp_micros(micros).map(|at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// Progress: a bar on a terminal, now and then a line of the log elsewhere.
#[derive(Default)]
struct Shown {
    bar: Option<ProgressBar>,
    told: Option<Instant>,
}

impl Shown {
    fn show(&mut self, meter: &Meter) {
        let [bytes, bytes_total, records] =
            [&meter.bytes, &meter.bytes_total, &meter.records].map(|counter| counter.load(Ordering::Relaxed));
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| {
                let style = ProgressStyle::with_template(BAR).expect("the template is tested");
                ProgressBar::new(bytes_total).with_style(style)
            });
            bar.set_length(bytes_total);
            bar.set_position(bytes);
            bar.set_message(format!("{records} records"));
        } else if self.told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            self.told = Some(Instant::now());
            tracing::info!(bytes, bytes_total, records, "verifying");
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_template_of_the_bar_is_valid() {
        ProgressStyle::with_template(BAR).unwrap();
    }
}
