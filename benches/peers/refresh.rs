//! Full refresh of `video_views` over an archive, beside DuckDB with the same SQL on the same files.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use viewledger::app::Core;
use viewledger::archive::Kind;
use viewledger::config::Config;
use viewledger::position::Epoch;
use viewledger::runtime::Shutdown;

use crate::process::{median, setting, work_dir};
use crate::records::{STREAM, sql_dir};

const VIEW: &str = "video_views";
const DUCKDB: &str = "duckdb==2.0.0";

pub fn run() -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(measure())
}

async fn measure() -> Result<()> {
    let events: u64 = setting("EVENTS", 20_000_000);
    let pairs: usize = setting("PAIRS", 3);
    let python = python()?;
    let mut config = Config::defaults();
    config.storage.data_dir = work_dir(&format!("refresh-{events}"));
    config.sql.dir = sql_dir();
    config.refresh.threads = 2;
    std::fs::create_dir_all(&config.storage.data_dir)?;
    crate::fill::archive(&config, events).await?;
    let data_dir = config.storage.data_dir.clone();
    eprintln!("opening; the first time this computes all views");
    let core = Core::open(config, Shutdown::default()).await?;
    let archive = core
        .cell
        .load()
        .streams
        .get(STREAM)
        .map(|stream| std::sync::Arc::clone(&stream.archive))
        .context("no archive")?;
    let files: Vec<PathBuf> =
        archive.files_in(Kind::Event, Epoch(0)).map(|file| data_dir.join(file.path.as_ref())).collect();

    println!(
        "full refresh of {VIEW} over {} events in {} files, DuckDB in turn, 2 threads each",
        archive.rows.events,
        files.len()
    );
    // Once unmeasured, so that the page cache is the same for both.
    duckdb(&python, VIEW, &files)?;
    let mut ratios = Vec::new();
    for pair in 1..=pairs {
        let Peer { seconds: peer, total, .. } = duckdb(&python, VIEW, &files)?;
        ensure!(total == archive.rows.events, "DuckDB counts {total}");
        let began = Instant::now();
        core.refresher.refresh(&core.cell, vec![VIEW.to_owned()]).await?;
        let ours = began.elapsed().as_secs_f64();
        // The comparison goes on behind the answer; the next turn of the peer must not share the cores with it.
        drop(core.refresher.pause().await);
        let settled = began.elapsed().as_secs_f64();
        println!(
            "pair {pair}: DuckDB {peer:.2} s, refresh {ours:.2} s (compared after {settled:.2} s), ratio {:.2}",
            ours / peer
        );
        ratios.push(ours / peer);
    }
    println!("median ratio {:.2}", median(&ratios));
    Ok(())
}

/// What DuckDB needed.
pub struct Peer {
    pub seconds: f64,
    /// How many records it counted.
    pub total: u64,
    pub memory_peak: u64,
}

/// The SQL of `view` over `files`, at the priority that a refresh has.
pub fn duckdb(python: &Path, view: &str, files: &[PathBuf]) -> Result<Peer> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/duckdb_views.py");
    let output =
        Command::new("nice").args(["-n", "10"]).arg(python).arg(script).args([view, "2"]).args(files).output()?;
    ensure!(output.status.success(), "DuckDB failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let mut fields = text.split_whitespace();
    let mut field = || fields.next().with_context(|| format!("DuckDB said: {text}"));
    let (seconds, total, _groups) = (field()?.parse()?, field()?.parse()?, field()?);
    Ok(Peer { seconds, total, memory_peak: field()?.parse()? })
}

/// A Python with DuckDB: a virtual environment among the benches' data.
pub fn python() -> Result<PathBuf> {
    let venv = work_dir("venv");
    let python = venv.join("bin/python");
    if !python.exists() {
        let made = Command::new("python3").args(["-m", "venv"]).arg(&venv).status()?;
        ensure!(made.success(), "cannot make a virtual environment; is python3-venv installed?");
    }
    let has = Command::new(&python).args(["-c", "import duckdb"]).status()?;
    if !has.success() {
        let installed = Command::new(&python).args(["-m", "pip", "install", "--quiet", DUCKDB]).status()?;
        ensure!(installed.success(), "cannot install {DUCKDB}");
    }
    Ok(python)
}
