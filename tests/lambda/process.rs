//! One process, made of the program's own parts and driven by hand: no thread, no real time, no Kafka client.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use viewledger::app::guards::Guards;
use viewledger::app::refresh::Workers;
use viewledger::app::{Core, Declared, Ground, Wired, declare};
use viewledger::archive::ArchiveError;
use viewledger::archive::compact::{self, Damaged, Workbench};
use viewledger::archive::writer::EncodedEpoch;
use viewledger::batch::run::RefreshError;
use viewledger::config::Config;
use viewledger::engine::{Engine, EngineConfig};
use viewledger::ingest::Ingest;
use viewledger::ingest::committer::{Attempt, Chore, Committer, Work};
use viewledger::kafka::decode::Decoder;
use viewledger::kafka::{RawBatch, Sink, SinkError};
use viewledger::position::{Epoch, GenerationId, StreamFrontier};
use viewledger::runtime::{Clock, Health, ManualClock, Shutdown};
use viewledger::storage::Storage;

use crate::bucket::{Access, Gate, Lane};

/// How long an epoch stays open, by the clock that is moved by hand.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Small, so that two files are enough to be put together.
const COMPACT_BYTES: u64 = 16 << 10;

/// What all processes of one thread share, because making it takes long.
pub struct Stage {
    pub runtime: Runtime,
    /// For what a process keeps beside the bucket.
    data: tempfile::TempDir,
    pub engine: Arc<Engine>,
}

impl Stage {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let config = EngineConfig { threads: 1, memory_bytes_max: 1 << 30, spill_dir: None, batch_rows: 8192 };
        Self { runtime, data: tempfile::tempdir().unwrap(), engine: Engine::new(config).unwrap() }
    }

    /// Reads definitions as the program does, from files.
    pub fn declare(&self, files: &[(String, String)]) -> Result<Arc<Declared>, String> {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["streams", "views"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let config = self.config(dir.path());
        let declared = self.runtime.block_on(declare(&config, &self.engine));
        declared.map(Arc::new).map_err(|faults| {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            format!("{}\n{files:?}", faults.join("\n"))
        })
    }

    fn config(&self, sql: &Path) -> Config {
        let mut config = Config::defaults();
        config.sql.dir = sql.to_owned();
        config.storage.data_dir = self.data.path().to_owned();
        config.archive.commit_interval = COMMIT_INTERVAL;
        config
    }
}

/// What a process is started with.
pub struct Start<'a> {
    pub stage: &'a Stage,
    pub declared: &'a Arc<Declared>,
    pub clock: &'a Arc<ManualClock>,
    pub guards: Guards,
    /// What the process itself does with the bucket, and what its queries do.
    pub access: Arc<Access>,
    pub reads: Arc<Access>,
}

/// Intake of one stream.
struct Lines {
    pub name: String,
    decoder: Decoder,
    /// Away while a try to commit is under way.
    committer: Option<Committer>,
    work: Receiver<Work>,
    queue: VecDeque<Work>,
    /// Ended, and not committed yet.
    sealed: Option<EncodedEpoch>,
    attempt: Option<JoinHandle<Tried>>,
}

type Tried = (Committer, EncodedEpoch, Result<Attempt, ArchiveError>);

/// What a step towards a commit came to.
#[derive(Debug)]
pub enum Commit {
    /// No epoch has ended.
    Idle,
    /// An operation on the bucket hangs.
    Hangs,
    Done(Epoch),
    /// To be tried again.
    Failed,
    /// The process must end.
    Fatal(ArchiveError),
    Panicked,
}

/// What a step of a refresh came to.
#[derive(Debug)]
pub enum Refresh {
    Hangs,
    Ended(Result<GenerationId, RefreshError>),
}

pub struct Process {
    pub core: Core,
    pub access: Arc<Access>,
    pub reads: Arc<Access>,
    /// Where each stream is read on, as the archive says.
    pub frontiers: Vec<StreamFrontier>,
    sink: Ingest,
    lines: Vec<Lines>,
    refresh: Option<JoinHandle<Result<GenerationId, RefreshError>>>,
}

impl Process {
    pub fn open(start: Start<'_>) -> Result<Self> {
        let Start { stage, declared, clock, guards, access, reads } = start;
        let store: Arc<dyn object_store::ObjectStore> = Arc::<Access>::clone(&access);
        let storage = Storage::over(store);
        stage.engine.register_store(storage.url(), Arc::<Access>::clone(&reads));
        let clock: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
        let ground = Ground {
            storage,
            clock,
            engine: Arc::clone(&stage.engine),
            batch_engine: Arc::clone(&stage.engine),
            workers: Workers::of(stage.runtime.handle().clone()),
            declared: Arc::clone(declared),
            guards,
            metrics: Arc::default(),
            health: Health::default(),
            legacy: None,
        };
        let config = stage.config(Path::new("nowhere"));
        let record_bytes_max = config.ingest.record_bytes_max;
        let opened = stage.runtime.block_on(async {
            let mut core = Core::open_on(ground, config, Shutdown::default()).await?;
            let wired = core.wire_intake().await.context("intake")?;
            anyhow::Ok((core, wired))
        });
        let (core, Wired { sources, sink, committers, .. }) = opened?;
        let frontiers = sources.iter().map(|source| source.frontier.clone()).collect();
        let lines = sources
            .into_iter()
            .zip(committers)
            .map(|(source, (committer, work))| Lines {
                name: source.stream.name.clone(),
                decoder: Decoder::new(source.stream, source.checks, record_bytes_max),
                committer: Some(committer),
                work,
                queue: VecDeque::new(),
                sealed: None,
                attempt: None,
            })
            .collect();
        Ok(Self { core, access, reads, frontiers, sink, lines, refresh: None })
    }

    /// A micro-batch comes in: decoded, decided, and told to the committer.
    pub fn deliver(&mut self, mut batch: RawBatch) -> Result<(), SinkError> {
        let now = self.core.clock.now();
        let Some(line) = self.lines.get(batch.source) else { return Ok(()) };
        let decoded = line.decoder.decode(&mut batch, now).map_err(|error| SinkError(error.to_string()))?;
        self.sink.accept(decoded)?;
        self.drain();
        Ok(())
    }

    /// Nothing came for a while.
    pub fn idle(&mut self) -> Result<(), SinkError> {
        self.sink.idle()?;
        self.drain();
        Ok(())
    }

    fn drain(&mut self) {
        for line in &mut self.lines {
            line.queue.extend(line.work.try_iter());
        }
    }

    /// How many steps committers are behind.
    pub fn backlog(&self) -> usize {
        self.lines.iter().map(|line| line.queue.len() + usize::from(line.sealed.is_some())).sum()
    }

    pub fn epoch(&self, source: usize) -> Epoch {
        let snapshot = self.core.cell.load();
        snapshot.streams[&self.lines[source].name].archive.epoch
    }

    /// Takes what waits until an epoch ends, and tries to commit that one.
    pub fn commit(&mut self, runtime: &Runtime, source: usize) -> Commit {
        let access = Arc::clone(&self.access);
        let line = &mut self.lines[source];
        if line.attempt.is_none() {
            while line.sealed.is_none() {
                let Some(work) = line.queue.pop_front() else { return Commit::Idle };
                match line.committer.as_mut().expect("no try is under way").take(work) {
                    Ok(sealed) => line.sealed = sealed,
                    Err(error) => return Commit::Fatal(error),
                }
            }
            let (Some(mut committer), Some(epoch)) = (line.committer.take(), line.sealed.take()) else {
                return Commit::Panicked;
            };
            line.attempt = Some(runtime.spawn(async move {
                let tried = committer.attempt(&epoch).await;
                (committer, epoch, tried)
            }));
        }
        let Some(attempt) = line.attempt.take() else { return Commit::Panicked };
        if !pump(runtime, &attempt, access.gate(Lane::Archive)) {
            line.attempt = Some(attempt);
            return Commit::Hangs;
        }
        let Ok((committer, epoch, tried)) = runtime.block_on(attempt) else { return Commit::Panicked };
        line.committer = Some(committer);
        match tried {
            Ok(Attempt::Committed) => Commit::Done(epoch.epoch()),
            Ok(Attempt::Failed) => {
                line.sealed = Some(epoch);
                Commit::Failed
            }
            Err(error) => Commit::Fatal(error),
        }
    }

    /// Puts the next small files of the archive together, unless a commit is under way; false when none are due.
    pub fn compact(&mut self, runtime: &Runtime, source: usize) -> Result<bool, String> {
        let line = &mut self.lines[source];
        let (core, Some(mut committer)) = (&self.core, line.committer.take()) else { return Ok(false) };
        let snapshot = core.cell.load();
        let below = snapshot.generation.epoch(&line.name);
        let due = compact::due(&snapshot.streams[&line.name].archive, below, COMPACT_BYTES, &Damaged::new());
        let stream = Arc::clone(&snapshot.names.streams[&line.name]);
        let (storage, engine, shutdown) = (core.storage(), &core.engine, &core.shutdown);
        let done = runtime.block_on(async {
            let Some(files) = due else { return Ok(false) };
            let bench = Workbench { engine, storage, stream: &stream, shutdown };
            let rewrite = bench.put_together(files).await.map_err(|error| error.to_string())?;
            committer.carry_out(&Chore::Rewrite(rewrite)).await.map_err(|error| error.to_string())?;
            Ok(true)
        });
        line.committer = Some(committer);
        done
    }

    /// Begins a refresh, or goes on with the one that was begun.
    pub fn refresh(&mut self, runtime: &Runtime, full: Vec<String>) -> Refresh {
        let refresh = self.refresh.take().unwrap_or_else(|| {
            let (refresher, cell) = (Arc::clone(&self.core.refresher), Arc::clone(&self.core.cell));
            runtime.spawn(async move {
                let made = refresher.refresh(&cell, full).await;
                drop(refresher.pause().await);
                made
            })
        });
        if !pump(runtime, &refresh, self.access.gate(Lane::Batch)) {
            self.refresh = Some(refresh);
            return Refresh::Hangs;
        }
        Refresh::Ended(runtime.block_on(refresh).unwrap_or(Err(RefreshError::Panicked)))
    }

    /// True when a refresh has ended, and nobody has asked how.
    pub fn has_refreshed(&self) -> bool {
        self.refresh.as_ref().is_some_and(JoinHandle::is_finished)
    }

    pub fn refreshes(&self) -> bool {
        self.refresh.is_some()
    }

    /// The process is gone, whatever it was doing.
    pub fn kill(self, runtime: &Runtime) {
        self.access.die();
        for attempt in self.lines.iter().filter_map(|line| line.attempt.as_ref()) {
            attempt.abort();
        }
        if let Some(refresh) = &self.refresh {
            refresh.abort();
        }
        // What was spawned ends here: it finds the bucket gone.
        runtime.block_on(async {
            for _ in 0..64 {
                tokio::task::yield_now().await;
            }
        });
    }
}

/// Runs everything until `task` is done (true) or hangs at `gate`.
fn pump<T>(runtime: &Runtime, task: &JoinHandle<T>, gate: &Gate) -> bool {
    runtime.block_on(async {
        let mut hangs = 0;
        while !task.is_finished() {
            hangs = if gate.holds() { hangs + 1 } else { 0 };
            if hangs > 8 {
                return false;
            }
            tokio::task::yield_now().await;
        }
        true
    })
}
