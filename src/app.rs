//! The composition root: opens every part in order, wires them together, and answers for the whole.
//!
//! Opening, in order: the process lock, the catalog, the archives (whose commits say where Kafka is read on),
//! the newest generation, the batch views that it lacks, the delta between it and the archive, the key index.
//! Only then is intake started, and the listeners last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;

use crate::archive::{Archive, ArchiveSnapshot, dedup, evolve};
use crate::audit::sealer::Seals;
use crate::catalog::stream::CompiledCheck;
use crate::catalog::version::{self, Histories};
use crate::catalog::{Catalog, Fault, loader};
use crate::config::Config;
use crate::delta::Delta;
use crate::engine::planner::Planner;
use crate::engine::{Engine, EngineConfig};
use crate::ingest::committer::{Committer, Work};
use crate::ingest::roster::Roster;
use crate::ingest::{Dedup, Ingest, Limits, Shared, StreamIntake};
use crate::kafka::Source;
use crate::kafka::consumer::{self, Intake};
use crate::kafka::status::IntakeStatus;
use crate::merge::catalog::Names;
use crate::merge::census::Census;
use crate::merge::point::Points;
use crate::merge::snapshot::{Moment, Snapshot, SnapshotCell, StreamSnapshot};
use crate::metrics::Metrics;
use crate::position::StreamFrontier;
use crate::runtime::{Clock, Health, Micros, Shutdown, SystemClock, spawn_thread};
use crate::storage::Storage;
use crate::storage::lock::ProcessLock;
use crate::tables::TableRules;
use crate::tables::log::{self, TableLog};

pub mod bindings;
pub mod data;
pub mod database;
pub mod definitions;
mod gauges;
pub mod guards;
pub mod listen;
pub mod recompute;
pub mod refresh;
pub mod reload;
pub mod restore;
pub mod security;
pub mod tables;
pub mod upkeep;

use definitions::Definitions;
use guards::Guards;
use refresh::{Cut, Legacy, Means, Refresher, Workers};
use tables::References;
use upkeep::Upkeep;

/// Rows of one record batch inside a query.
const BATCH_ROWS: usize = 8192;
/// Epoch work that may wait for a committer.
const COMMITTER_QUEUE: usize = 16;

/// What was declared in `sql/`, planned.
#[derive(Debug)]
pub struct Declared {
    /// As if there had never been another version of a view.
    pub names: Arc<Names>,
    /// By stream name.
    pub checks: BTreeMap<String, Vec<CompiledCheck>>,
    /// By table name.
    pub tables: BTreeMap<String, Arc<TableRules>>,
    pub catalog: Catalog,
}

/// Reads and plans everything in `sql.dir`; all faults at once.
pub async fn declare(config: &Config, engine: &Engine) -> Result<Declared, Vec<Fault>> {
    declare_catalog(engine, loader::load(&config.sql.dir)?).await
}

/// Plans everything in `catalog`; all faults at once.
async fn declare_catalog(engine: &Engine, catalog: Catalog) -> Result<Declared, Vec<Fault>> {
    let planner = Planner::new(engine, &catalog).map_err(|error| vec![loader::whole_catalog(&error)])?;
    let mut faults = Vec::new();
    let mut checks = BTreeMap::new();
    for (name, stream) in &catalog.streams {
        match planner.checks(stream) {
            Ok(compiled) => drop(checks.insert(name.clone(), compiled)),
            Err(fault) => faults.push(fault),
        }
    }
    let mut tables = BTreeMap::new();
    for (name, table) in &catalog.tables {
        match planner.table_checks(table) {
            Ok(checks) => {
                let rules = TableRules { table: Arc::clone(table), checks };
                drop(tables.insert(name.clone(), Arc::new(rules)));
            }
            Err(fault) => faults.push(fault),
        }
    }
    let versions = version::with_files(Histories::new(), &catalog.views, SystemClock.now());
    let names = match definitions::plan(engine, &catalog, versions).await {
        Ok(names) => names,
        Err(found) => return Err(faults.into_iter().chain(found).collect()),
    };
    faults.extend(definitions::grant_faults(&catalog.roles, &names).await);
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(Declared { names: Arc::new(names), checks, tables, catalog })
}

/// What there is to read when the newest generation knew `histories` of the views.
async fn with_history(
    engine: &Engine,
    declared: &Declared,
    histories: &Histories,
    now: Micros,
) -> Result<Arc<Names>> {
    let versions = version::with_files(histories.clone(), &declared.catalog.views, now);
    if versions == declared.names.versions {
        return Ok(Arc::clone(&declared.names));
    }
    let planned = definitions::plan(engine, &declared.catalog, versions).await;
    planned.map(Arc::new).map_err(|faults| anyhow::anyhow!("{}", lines(&faults)))
}

fn lines(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// What changed in the declaration of a stream or table, and must not: what is stored was written under another one.
/// Changes nothing.
pub async fn evolution_faults(storage: &Storage, declared: &Declared) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for stream in declared.names.streams.values() {
        faults.extend(evolve::faults(storage, stream).await.context("cannot read the archives")?);
    }
    faults.extend(log::faults(storage, &declared.tables).await?);
    Ok(faults)
}

/// An engine for queries or, with the settings of `[refresh]`, for batch work.
pub fn engine(threads: usize, memory_bytes_max: usize, config: &Config) -> Result<Arc<Engine>> {
    let spill_dir = Some(config.storage.data_dir.join("spill"));
    Engine::new(EngineConfig { threads, memory_bytes_max, spill_dir, batch_rows: BATCH_ROWS })
        .context("cannot set up the query engine")
}

/// An engine that plans and runs nothing.
pub fn planning_engine(config: &Config) -> Result<Arc<Engine>> {
    engine(1, config.query.memory_bytes_max, config)
}

/// What the parts stand on: where they store, what time it is, what they compute with.
#[derive(Debug)]
pub struct Ground {
    pub storage: Storage,
    pub clock: Arc<dyn Clock>,
    /// For queries and intake, and for batch work; both read `storage`.
    pub engine: Arc<Engine>,
    pub batch_engine: Arc<Engine>,
    pub workers: Workers,
    pub declared: Arc<Declared>,
    pub guards: Guards,
    pub metrics: Arc<Metrics>,
    pub health: Health,
    /// Of what was open before in this process.
    pub legacy: Option<Legacy>,
}

impl Ground {
    /// The machine: its clock, threads, files and environment.
    async fn of_machine(config: &Config, lock: &ProcessLock) -> Result<Self> {
        let guards = Guards::from_env();
        let storage = Storage::open(&config.storage.location(), config.storage.options.clone().into_iter())?;
        storage.sweep(lock)?;
        let engine = engine(config.query.threads, config.query.memory_bytes_max, config)?;
        let batch_engine = self::engine(config.refresh.threads, config.refresh.memory_bytes_max, config)?;
        for engine in [&engine, &batch_engine] {
            engine.register_store(storage.url(), storage.store());
        }
        let declared = declare(config, &engine).await.map_err(|faults| anyhow::anyhow!("{}", lines(&faults)))?;
        Ok(Self {
            storage,
            clock: Arc::new(SystemClock),
            engine,
            batch_engine,
            workers: Workers::start(config.refresh.threads)?,
            declared: Arc::new(declared),
            guards,
            metrics: Arc::new(Metrics::new()),
            health: Health::default(),
            legacy: None,
        })
    }
}

/// Everything that is open before intake starts.
#[derive(Debug)]
pub struct Core {
    pub config: Arc<Config>,
    pub engine: Arc<Engine>,
    /// What it was opened with.
    pub declared: Arc<Declared>,
    pub cell: Arc<SnapshotCell>,
    pub refresher: Arc<Refresher>,
    pub definitions: Arc<Definitions>,
    pub references: Arc<References>,
    roster: Arc<Roster>,
    /// What lies in the archive's folders beside its files.
    pub census: Arc<Census>,
    /// On the archive, for SQL.
    pub seals: Arc<Seals>,
    pub status: IntakeStatus,
    pub metrics: Arc<Metrics>,
    pub clock: Arc<dyn Clock>,
    pub health: Health,
    pub shutdown: Shutdown,
    storage: Storage,
    /// By stream name; moved to the committers when intake starts.
    archives: BTreeMap<String, Archive>,
    guards: Guards,
    /// None when nobody else can reach the storage.
    lock: Option<Arc<ProcessLock>>,
}

impl Core {
    /// Opens everything on the data directory of `config`. Batch views that are missing are computed here.
    pub async fn open(config: Config, shutdown: Shutdown) -> Result<Self> {
        let core = Self::begin(config, shutdown).await?;
        core.restore().await?;
        Ok(core)
    }

    /// As [`Core::open`], on another ground than the machine: the caller makes sure that what must be alone is.
    pub async fn open_on(ground: Ground, config: Config, shutdown: Shutdown) -> Result<Self> {
        let core = Self::begin_on(ground, Arc::new(config), shutdown).await?;
        core.restore().await?;
        Ok(core)
    }

    /// Opens everything anew within the process, as `declared` says; what queries compute with goes on. This one must
    /// have ended but for its readers: no intake, and no refresh.
    pub async fn reopen(&self, declared: Arc<Declared>, shutdown: Shutdown) -> Result<Self> {
        let ground = Ground {
            storage: self.storage.clone(),
            clock: Arc::clone(&self.clock),
            engine: Arc::clone(&self.engine),
            batch_engine: self.refresher.engine(),
            workers: Workers::start(self.config.refresh.threads)?,
            declared,
            guards: self.guards,
            metrics: Arc::clone(&self.metrics),
            health: self.health.clone(),
            legacy: Some(self.refresher.legacy()),
        };
        let core = Self::begin_on(ground, Arc::clone(&self.config), shutdown).await?;
        let core = Self { lock: self.lock.clone(), seals: Arc::clone(&self.seals), ..core };
        core.restore().await?;
        Ok(core)
    }

    /// As [`Core::open`], without the delta: batch views can be read, and what needs more is refused until
    /// [`Core::restore`].
    pub async fn begin(config: Config, shutdown: Shutdown) -> Result<Self> {
        let lock = ProcessLock::acquire(&config.storage.data_dir)?;
        let ground = Ground::of_machine(&config, &lock).await?;
        Ok(Self { lock: Some(Arc::new(lock)), ..Self::begin_on(ground, Arc::new(config), shutdown).await? })
    }

    async fn begin_on(ground: Ground, config: Arc<Config>, shutdown: Shutdown) -> Result<Self> {
        let Ground { storage, clock, engine, batch_engine, workers, declared, guards, metrics, health, legacy } =
            ground;
        let faults = evolution_faults(&storage, &declared).await?;
        anyhow::ensure!(faults.is_empty(), "{}", lines(&faults));
        let mut archives = BTreeMap::new();
        for (name, stream) in &declared.names.streams {
            let archive = Archive::open_stream(&storage, stream, Arc::clone(&clock)).await;
            archives.insert(name.clone(), archive.with_context(|| format!("cannot open the archive of {name}"))?);
        }
        let snapshots: BTreeMap<String, Arc<ArchiveSnapshot>> =
            archives.iter().map(|(name, archive)| (name.clone(), archive.snapshot())).collect();
        let roster = Arc::new(Roster::default());
        let keep = &config.refresh;
        let legacy = legacy.unwrap_or_else(|| Legacy::new(keep.generations_keep, keep.reconciliations_keep));
        let points = Points::new(Arc::clone(&batch_engine), workers.tasks(), config.query.index_bytes_max);
        let means = Means {
            points,
            engine: batch_engine,
            workers,
            storage: storage.clone(),
            roster: Arc::clone(&roster),
            clock: Arc::clone(&clock),
            metrics: Arc::clone(&metrics),
            health: health.clone(),
            shutdown: shutdown.clone(),
            generations_max: keep.generations_keep,
            cut: if guards.cut { Cut::On } else { Cut::OffForTest },
        };
        let refresher = Refresher::new(means, legacy);
        let latest = refresher.latest().await?;
        let names = with_history(&engine, &declared, &latest.versions, clock.now()).await?;
        let bytes_max = config.tables.bytes_max;
        let (log, tables) = TableLog::open(&storage, &declared.tables, bytes_max, Arc::clone(&clock))
            .await
            .context("cannot read a table")?;
        let names = bindings::as_made(&names, &latest, &log, &tables).await.context("cannot read a table")?;
        let (generation, names) = refresher.begin(latest, names, tables.versions(), &snapshots).await?;

        let mut streams = BTreeMap::new();
        for (name, archive) in snapshots {
            let below = generation.frontier.0.get(&name).cloned().unwrap_or_default();
            anyhow::ensure!(
                archive.epoch >= generation.epoch(&name) && archive.frontier.covers(&below),
                "the archive of {name} ends at epoch {}, but generation {} was made from epoch {}: commits are missing \
                 from its log; restore them from a copy before starting",
                archive.epoch,
                generation.id,
                generation.epoch(&name)
            );
            anyhow::ensure!(
                archive.cuts_at(generation.epoch(&name)),
                "generation {} ends at epoch {} of {name}, and the archive's files were put together past it: a newer \
                 generation is missing; restore it from a copy, or remove the folders generations and views to have all \
                 views computed anew",
                generation.id,
                generation.epoch(&name)
            );
            let delta = Arc::new(Delta::restored(generation.epoch(&name), archive.epoch, BTreeMap::new()));
            let end = Arc::new(archive.frontier.clone());
            let ledger = Arc::new(archive.ledger.clone());
            streams.insert(name, StreamSnapshot { archive, delta, whole: false, end, ledger });
        }
        let moment = Moment::default();
        let first = Snapshot { generation, names, tables: Arc::new(tables), streams, moment };
        let cell = Arc::new(SnapshotCell::new(first, Arc::clone(&clock)));
        let references =
            References { log, cell: Arc::clone(&cell), health: health.clone(), shutdown: shutdown.clone() };
        let definitions = Definitions {
            engine: Arc::clone(&engine),
            declared: ArcSwap::new(Arc::clone(&declared)),
            cell: Arc::clone(&cell),
            refresher: Arc::clone(&refresher),
            clock: Arc::clone(&clock),
            turn: tokio::sync::Mutex::default(),
        };
        Ok(Self {
            config,
            engine,
            declared,
            cell,
            refresher,
            definitions: Arc::new(definitions),
            references: Arc::new(references),
            roster,
            census: Arc::default(),
            seals: Arc::default(),
            status: IntakeStatus::default(),
            metrics,
            clock,
            health,
            shutdown,
            storage,
            archives,
            guards,
            lock: None,
        })
    }

    /// Computes the delta of every stream from what the archive holds beyond the generation. No refresh runs meanwhile.
    pub async fn restore(&self) -> Result<()> {
        let began = self.clock.instant();
        let _no_refresh = self.refresher.pause().await;
        let before = self.cell.load();
        let mut names = Arc::clone(&before.names);
        for (name, part) in &before.streams {
            let delta = restore::delta(&self.engine, names, name, &part.archive, part.delta.base());
            let (delta, readable) = tokio::select! {
                restored = delta => restored?,
                () = self.shutdown.wait() => return Ok(()),
            };
            names = readable;
            self.cell.update(|snapshot| {
                snapshot.names = Arc::clone(&names);
                if let Some(stream) = snapshot.streams.get_mut(name) {
                    (stream.delta, stream.whole) = (Arc::new(delta), true);
                }
            });
        }
        self.roster.want(refresh::entries(&names, None));
        tracing::info!(took = ?self.clock.instant().duration_since(began), "delta restored");
        Ok(())
    }

    /// Starts reading Kafka. Ends with shutdown; then [`Intake::join`] it.
    pub async fn start_intake(&mut self) -> Result<Running> {
        let Wired { sources, sink, committers, chores } = self.wire_intake().await?;
        let around = consumer::Surroundings {
            clock: Arc::clone(&self.clock),
            health: self.health.clone(),
            shutdown: self.shutdown.clone(),
            status: self.status.clone(),
        };
        let committers = committers
            .into_iter()
            .map(|(committer, work)| spawn_thread("committer", &self.health, move || committer.run(&work)))
            .collect();
        let intake = Intake::start(&self.config.kafka, &self.config.ingest, sources, Box::new(sink), around)?;
        Ok(Running { intake, committers, upkeep: self.upkeep(chores) })
    }

    /// Everything of intake but the threads that drive it. Done once.
    pub async fn wire_intake(&mut self) -> Result<Wired> {
        let mut sources = Vec::new();
        let mut streams = Vec::new();
        let mut committers = Vec::new();
        let mut chores = BTreeMap::new();
        for (name, stream) in &self.declared.names.streams {
            let archive = self.archives.remove(name).context("intake is started once")?;
            let snapshot = archive.snapshot();
            let (sender, work) = sync_channel(COMMITTER_QUEUE);
            chores.insert(name.clone(), sender.clone());
            let committer = Committer {
                stream: name.clone(),
                archive,
                open: None,
                cell: Arc::clone(&self.cell),
                metrics: Arc::clone(&self.metrics),
                health: self.health.clone(),
                shutdown: self.shutdown.clone(),
                clock: Arc::clone(&self.clock),
                retry_interval: self.config.archive.retry_interval,
                io: tokio::runtime::Handle::current(),
            };
            committers.push((committer, work));
            let (frontier, ledger) = match self.guards.stored_frontier {
                true => (snapshot.frontier.clone(), snapshot.ledger.clone()),
                false => (StreamFrontier::default(), BTreeMap::new()),
            };
            let files = dedup::Files {
                dir: self.config.storage.data_dir.join("keys").join(name),
                table: snapshot.table.clone(),
                keys_max: self.config.ingest.keys_in_memory_max,
                health: self.health.clone(),
                shutdown: self.shutdown.clone(),
            };
            let keys = restore::keys(&self.engine, stream, &snapshot, files).await?;
            streams.push(StreamIntake {
                stream: Arc::clone(stream),
                keys,
                frontier: frontier.clone(),
                ledger,
                committer: sender,
            });
            let checks = self.declared.checks.get(name).cloned().unwrap_or_default();
            sources.push(Source { stream: Arc::clone(stream), checks, frontier });
        }
        let limits = Limits {
            commit_interval: self.config.archive.commit_interval,
            commit_bytes_max: self.config.archive.commit_bytes_max,
            delta_bytes_max: self.config.delta.bytes_max,
        };
        let shared = Shared {
            engine: Arc::clone(&self.engine),
            cell: Arc::clone(&self.cell),
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
            shutdown: self.shutdown.clone(),
            roster: Arc::clone(&self.roster),
            refresh_wanted: self.refresher.wanted(),
        };
        let dedup = if self.guards.dedup { Dedup::On } else { Dedup::OffForTest };
        let sink = Ingest::new(streams, limits, dedup, shared).context("cannot start intake")?;
        let sink = if self.guards.true_delta { sink } else { sink.skewed_for_test() };
        Ok(Wired { sources, sink, committers, chores })
    }

    fn upkeep(&self, committers: BTreeMap<String, SyncSender<Work>>) -> tokio::task::JoinHandle<()> {
        let upkeep = Upkeep {
            engine: self.refresher.engine(),
            storage: self.storage.clone(),
            streams: self.declared.names.streams.clone(),
            committers,
            cell: Arc::clone(&self.cell),
            census: Arc::clone(&self.census),
            clock: Arc::clone(&self.clock),
            shutdown: self.shutdown.clone(),
            settings: self.config.archive.clone(),
        };
        self.refresher.spawn("upkeep", &self.health, upkeep.run())
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }
}

/// Intake before its threads are started.
#[derive(Debug)]
pub struct Wired {
    /// In the order in which `sink` knows them.
    pub sources: Vec<Source>,
    pub sink: Ingest,
    /// With what each is told.
    pub committers: Vec<(Committer, Receiver<Work>)>,
    /// By stream, where upkeep hands in what its committer is to do.
    pub chores: BTreeMap<String, SyncSender<Work>>,
}

/// The threads of intake.
#[derive(Debug)]
pub struct Running {
    intake: Intake,
    committers: Vec<std::thread::JoinHandle<()>>,
    /// Runs on the refresher's threads; it ends when the process does, before the committers.
    upkeep: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Waits for the threads to end, which they do after shutdown was triggered.
    pub fn join(self) {
        self.intake.join();
        // It has a sender of each committer, which end when nobody can send to them any more.
        drop(futures::executor::block_on(self.upkeep));
        for committer in self.committers {
            // A panic has poisoned health already.
            drop(committer.join());
        }
    }
}
