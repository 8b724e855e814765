//! Makes seals: reads what came since the last one, and signs what the archive is now.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use parking_lot::Mutex;

use super::epochs::{self, EpochLeaf, Read};
use super::key::SigningKey;
use super::log::{self, Chain};
use super::merkle::Peaks;
use super::seal::{self, Seal, SealDocument, SealedStream, Statement};
use super::{AuditError, Divergence, Place};
use crate::position::{Offset, PartitionId, StreamFrontier};
use crate::runtime::{Clock, Shutdown, chain};
use crate::storage::{Created, Storage, paths};

/// Epochs of a stream that one seal takes, about; a long archive that was never sealed takes several.
const EPOCHS_MAX: usize = 20_000;
/// How often another process may be first before this one gives up.
const ATTEMPTS_MAX: usize = 5;
/// Seals that SQL shows; all stay in storage.
const SHOWN_MAX: usize = 10_000;
/// Seals that are fetched at once.
const WINDOW: usize = 32;

/// The newest seals, for SQL.
#[derive(Debug, Default)]
pub struct Seals {
    /// Oldest first.
    newest: Mutex<VecDeque<Arc<Seal>>>,
}

impl Seals {
    /// Oldest first.
    pub fn all(&self) -> Vec<Arc<Seal>> {
        self.newest.lock().iter().cloned().collect()
    }

    pub fn newest(&self) -> Option<Arc<Seal>> {
        self.newest.lock().back().cloned()
    }

    fn last(&self) -> u64 {
        self.newest().map_or(0, |seal| seal.statement.seal)
    }

    /// Takes up what was sealed since, also by other processes.
    pub async fn catch_up(&self, storage: &Storage) -> Result<(), AuditError> {
        let Some(newest) = seal::newest(storage).await? else { return Ok(()) };
        let newest = newest.statement.seal;
        let from = (self.last() + 1).max((newest + 1).saturating_sub(SHOWN_MAX as u64));
        let mut seals = stream::iter(from..=newest).map(|number| seal::stored(storage, number)).buffered(WINDOW);
        while let Some(seal) = seals.try_next().await? {
            let mut known = self.newest.lock();
            known.extend(seal.map(Arc::new));
            let over = known.len().saturating_sub(SHOWN_MAX);
            known.drain(..over);
        }
        Ok(())
    }
}

/// What came of an attempt to seal.
#[derive(Debug)]
pub enum Sealing {
    Made(Box<Seal>),
    /// Nothing came since this seal; None when there is nothing at all.
    NothingNew(Option<Box<Seal>>),
}

/// Whether a seal took everything that there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    All,
    Part,
}

/// Signs what is stored.
#[derive(Debug)]
pub struct Sealer {
    pub storage: Storage,
    pub key: SigningKey,
    pub clock: Arc<dyn Clock>,
}

/// What is new in a stream.
struct Grown {
    sealed: SealedStream,
    peaks: Peaks,
    leaves: Vec<EpochLeaf>,
    reach: Reach,
}

impl Sealer {
    /// A seal every `interval`, for as long as the process runs. It goes on after a failure: who watches sees the age of the
    /// newest seal.
    pub async fn run(self, seals: Arc<Seals>, interval: Duration, shutdown: Shutdown) {
        if let Err(error) = seals.catch_up(&self.storage).await {
            tracing::error!(error = chain(&error), "seals cannot be read");
        }
        let age = seals.all().last().map(|seal| self.clock.now().saturating_sub(seal.statement.sealed_at));
        let age = age.map_or(interval, |age| Duration::from_micros(u64::try_from(age).unwrap_or_default()));
        let mut wait = interval.saturating_sub(age);
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.wait() => return,
            }
            wait = interval;
            let sealed = tokio::select! {
                sealed = self.seal() => sealed,
                // What was begun names nothing yet.
                () = shutdown.wait() => return,
            };
            match sealed {
                Ok(Sealing::Made(seal)) => {
                    tracing::info!(seal = seal.statement.seal, streams = seal.statement.streams.len(), "sealed");
                }
                Ok(Sealing::NothingNew(_)) => {}
                Err(error) => tracing::error!(error = chain(&error), "not sealed"),
            }
            if let Err(error) = seals.catch_up(&self.storage).await {
                tracing::error!(error = chain(&error), "seals cannot be read");
            }
        }
    }

    /// Seals everything that is committed. An archive that is not what its commits say is not sealed.
    pub async fn seal(&self) -> Result<Sealing, AuditError> {
        let mut made = None;
        for _ in 0..ATTEMPTS_MAX {
            let before = seal::newest(&self.storage).await?;
            match self.attempt(before.as_ref()).await? {
                Attempt::Nothing => {
                    return Ok(made.map_or(Sealing::NothingNew(before.map(Box::new)), Sealing::Made));
                }
                Attempt::Made(seal, Reach::All) => return Ok(Sealing::Made(seal)),
                // Another one goes on from there.
                Attempt::Made(seal, Reach::Part) => made = Some(seal),
                Attempt::Taken => {}
            }
        }
        made.map(Sealing::Made).ok_or(AuditError::Crowded)
    }

    async fn attempt(&self, before: Option<&Seal>) -> Result<Attempt, AuditError> {
        let first = Statement::before_the_first();
        let last = before.map_or(&first, |seal| &seal.statement);
        let mut next = Statement {
            seal: last.seal + 1,
            previous: before.map(|seal| seal.document.sha256()),
            sealed_at: self.clock.now(),
            manifests: BTreeMap::new(),
            ..last.clone()
        };
        let (mut peaks, mut leaves, mut reach) = (BTreeMap::new(), String::new(), Reach::All);
        // One that was sealed and is gone is no reason to seal without it.
        let streams: BTreeSet<String> =
            log::streams(&self.storage).await?.into_iter().chain(last.streams.keys().cloned()).collect();
        for name in streams {
            let known = before.map(|seal| seal.peaks(&name)).transpose()?.unwrap_or_default();
            let Some(grown) = self.grown(&name, last.streams.get(&name), known).await? else { continue };
            for leaf in &grown.leaves {
                leaves.push_str(&leaf.text());
                leaves.push('\n');
            }
            if grown.reach == Reach::Part {
                reach = Reach::Part;
            }
            peaks.insert(name.clone(), grown.peaks.hashes().to_vec());
            next.streams.insert(name, grown.sealed);
        }
        self.add_manifests(last, &mut next).await?;
        // A generation says nothing that the records do not say.
        if leaves.is_empty() && next.tables == last.tables {
            return Ok(Attempt::Nothing);
        }
        let mut document = SealDocument::sign(&next, &self.key)?;
        document.peaks = peaks;
        let path = paths::seal_epochs(next.seal);
        if !leaves.is_empty() {
            self.storage.create(&path, leaves.into()).await?;
            document.epochs = Some(path.to_string());
        }
        let bytes = serde_json::to_vec(&document)?;
        match self.storage.create(&paths::seal(next.seal), bytes.into()).await? {
            Created::New | Created::MineAlready => {
                Ok(Attempt::Made(Box::new(Seal { statement: next, document }), reach))
            }
            Created::Taken => {
                // Nobody names it; that it stays would do no harm.
                drop(self.storage.store().delete(&path).await);
                Ok(Attempt::Taken)
            }
        }
    }

    /// A stream with the epochs that came since; None when there is no epoch at all.
    async fn grown(
        &self,
        name: &str,
        before: Option<&SealedStream>,
        mut peaks: Peaks,
    ) -> Result<Option<Grown>, AuditError> {
        let log = match before {
            Some(sealed) => log::read_after(&self.storage, name, sealed.version, sealed.commit).await?,
            None => log::read(&self.storage, name).await?,
        };
        let (mut leaves, mut reach) = (Vec::new(), Reach::All);
        let log = Arc::new(log);
        for group in epochs::groups(&log) {
            if leaves.len() >= EPOCHS_MAX {
                reach = Reach::Part;
                break;
            }
            let loaded = epochs::load(&self.storage, group).await?;
            let chain = Arc::clone(&log);
            // It ends soon after it was begun, so that nobody has to wait for it.
            let read = tokio::task::spawn_blocking(move || epochs::digest(&chain, &loaded)).await;
            let Read { epochs, faults, .. } = read.map_err(|_| AuditError::Died)?;
            if let Some(fault) = faults.into_iter().next() {
                return Err(fault.into());
            }
            leaves.extend(epochs);
        }
        leaves.iter().for_each(|leaf| peaks.push(leaf.hash()));
        let records =
            before.map_or(0, |sealed| sealed.records) + leaves.iter().map(|leaf| leaf.records).sum::<u64>();
        let Some(last) = leaves.last() else {
            return Ok(before.cloned().map(|sealed| Grown { sealed, peaks, leaves, reach }));
        };
        if last.epoch != peaks.size() {
            let what =
                format!("its tree has {} leaves, and the newest is that of epoch {}", peaks.size(), last.epoch);
            return Err(Divergence::at(Place::stream(name), what).into());
        }
        let sealed = SealedStream {
            epochs: peaks.size(),
            root: peaks.root(),
            records,
            version: last.version,
            commit: last.commit,
            frontier: frontier(&log, before, leaves.len()),
        };
        Ok(Some(Grown { sealed, peaks, leaves, reach }))
    }

    async fn add_manifests(&self, last: &Statement, next: &mut Statement) -> Result<(), AuditError> {
        let dir = paths::generations();
        let newest = seal::manifest_numbers(&self.storage, &dir).await?.last().copied().unwrap_or_default();
        if newest > last.generation
            && let Some(manifest) = seal::manifest(&self.storage, &dir, newest).await?
        {
            next.manifests.insert(manifest.path.to_string(), manifest.sha256);
            next.generation = newest;
        }
        let dir = paths::table_commits();
        let numbers = seal::manifest_numbers(&self.storage, &dir).await?;
        for number in numbers.into_iter().filter(|number| *number > last.tables) {
            let Some(manifest) = seal::manifest(&self.storage, &dir, number).await? else { continue };
            next.manifests.insert(manifest.path.to_string(), manifest.sha256);
            next.tables = number;
        }
        Ok(())
    }
}

enum Attempt {
    Made(Box<Seal>, Reach),
    Nothing,
    /// Another process made this seal.
    Taken,
}

/// Where the first `count` commits of a log end.
fn frontier(log: &Chain, before: Option<&SealedStream>, count: usize) -> StreamFrontier {
    let mut frontier = before.map(|sealed| sealed.frontier.clone()).unwrap_or_default();
    frontier.topic.clone_from(&log.head.frontier.topic);
    for stretch in log.commits.iter().take(count).flat_map(|commit| commit.stretches.iter()) {
        frontier.next.insert(PartitionId(stretch.partition), Offset(stretch.to));
    }
    frontier
}
