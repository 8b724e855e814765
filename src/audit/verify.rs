//! Reads everything anew and holds it against the commits and the seals. Writes nothing.
//!
//! In this order, which is the order of what is found: the seals, those that were exported, then stream by stream the log,
//! and epoch by epoch the files, their records and the roots that were sealed; keys that count twice; manifests.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path as FsPath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use super::epochs::{self, EpochLeaf, Loaded, Read};
use super::key::PublicKey;
use super::log::{self, Chain, DUPLICATE, EVENT};
use super::merkle::{Peaks, is_consistent};
use super::seal::{self, Seal, Statement};
use super::{AuditError, Divergence, Place};
use crate::storage::{Storage, paths};

mod manifests;

/// How often a stream is read anew because compaction took files away meanwhile.
const ATTEMPTS_MAX: usize = 3;

/// What is to be verified, and with what.
#[derive(Debug, Default)]
pub struct Scope {
    /// Empty for all.
    pub streams: BTreeSet<String>,
    /// Whose seals are good; empty for whoever signed the first one.
    pub keys: Vec<PublicKey>,
    /// Seals that were kept elsewhere, by number.
    pub exported: BTreeMap<u64, Seal>,
    /// Files that are read at once, each on a thread.
    pub threads: usize,
}

/// How far it is, for who watches.
#[derive(Debug, Default)]
pub struct Meter {
    pub bytes: AtomicU64,
    pub bytes_total: AtomicU64,
    pub records: AtomicU64,
}

impl Meter {
    fn add(&self, loaded: &Loaded, read: &Read) {
        self.bytes.fetch_add(loaded.group.bytes(), Ordering::Relaxed);
        self.records.fetch_add(read.records, Ordering::Relaxed);
    }
}

/// What was verified of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StreamReport {
    pub epochs: u64,
    pub records: u64,
    pub files: u64,
    /// Epochs that the newest seal holds, and that seal; what lies behind is held by its commits alone.
    pub sealed_epochs: u64,
    pub sealed_records: u64,
    /// Offsets that held no record, as the ledger says.
    pub gaps: u64,
}

/// What was verified, and what is wrong.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub streams: BTreeMap<String, StreamReport>,
    pub seals: u64,
    /// When the first and the newest seal were made, in microseconds since 1970.
    pub first_sealed_at: Option<i64>,
    pub last_sealed_at: Option<i64>,
    pub exported_seals: u64,
    /// With which the seals were checked, and whether it was given or taken from the seals themselves.
    pub keys: Vec<PublicKey>,
    pub keys_given: bool,
    pub manifests: u64,
    pub bytes: u64,
    /// The first one first.
    pub divergences: Vec<Divergence>,
}

/// Reads the exported seals in a directory.
pub fn exported(dir: &FsPath) -> Result<(BTreeMap<u64, Seal>, Vec<Divergence>), AuditError> {
    let failed = |source| AuditError::File { action: "read", path: dir.to_owned(), source };
    let (mut seals, mut faults) = (BTreeMap::new(), Vec::new());
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(number) = name.and_then(paths::numbered_json) else { continue };
        let bytes = std::fs::read(&path).map_err(|source| AuditError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        match Seal::read(&bytes, number) {
            Ok(seal) => drop(seals.insert(number, seal)),
            Err(fault) => {
                let place = Place { file: Some(path.display().to_string()), ..*fault.place };
                faults.push(Divergence::at(place, fault.what));
            }
        }
    }
    if seals.is_empty() && faults.is_empty() {
        return Err(AuditError::Unknown(format!("there are no seals in {}", dir.display())));
    }
    faults.sort_by_key(|fault| fault.place.seal);
    Ok((seals, faults))
}

/// Verifies everything in `scope`.
///
/// # Errors
/// When something cannot be read for a reason that says nothing of the archive. What is wrong is in the report.
pub async fn verify(storage: &Storage, scope: Scope, meter: &Arc<Meter>) -> Result<Report, AuditError> {
    let mut report = Report { keys_given: !scope.keys.is_empty(), ..Report::default() };
    // Seals first: what they hold is in the logs that are read after them.
    let sealed = Sealed::read(storage, &scope, &mut report).await?;
    let mut names: BTreeSet<String> = log::streams(storage).await?.into_iter().collect();
    names.extend(sealed.newest().iter().flat_map(|statement| statement.streams.keys().cloned()));
    if let Some(unknown) = scope.streams.iter().find(|name| !names.contains(*name)) {
        let names = names.iter().cloned().collect::<Vec<_>>().join(", ");
        return Err(AuditError::Unknown(format!("no archive of stream {unknown}; there are {names}")));
    }
    names.retain(|name| scope.streams.is_empty() || scope.streams.contains(name));
    let mut chains = BTreeMap::new();
    for name in names {
        match log::read(storage, &name).await {
            Ok(chain) => {
                let bytes: u64 = chain.files.iter().map(|file| file.bytes).sum();
                meter.bytes_total.fetch_add(bytes, Ordering::Relaxed);
                chains.insert(name, chain);
            }
            Err(AuditError::Diverges(fault)) => report.divergences.push(fault),
            Err(error) => return Err(error),
        }
    }
    for (name, chain) in chains {
        let verified = Stream { storage, sealed: &sealed, threads: scope.threads.max(1), meter };
        let (stream, faults) = verified.verify(chain).await?;
        report.streams.insert(name, stream);
        report.divergences.extend(faults);
    }
    if scope.streams.is_empty() {
        manifests::verify(storage, &sealed.statements, &mut report).await?;
    }
    report.bytes += meter.bytes.load(Ordering::Relaxed);
    Ok(report)
}

/// What seals say, as far as they can be believed.
struct Sealed {
    /// Ascending; those that are stored, and exported ones that are not.
    statements: Vec<Statement>,
    /// By stream, the leaves that are stored, as far as they add up to the roots that are signed.
    leaves: BTreeMap<String, Vec<EpochLeaf>>,
}

impl Sealed {
    fn newest(&self) -> Option<&Statement> {
        self.statements.last()
    }

    async fn read(storage: &Storage, scope: &Scope, report: &mut Report) -> Result<Self, AuditError> {
        let faults = &mut report.divergences;
        let mut stored = BTreeMap::new();
        let last = seal::numbers(storage).await?.last().copied().unwrap_or_default();
        for number in 1..=last {
            match seal::stored(storage, number).await {
                Ok(Some(seal)) => drop(stored.insert(number, seal)),
                Ok(None) => {
                    faults
                        .push(Divergence::at(Place::seal(number), "it is missing, although later ones are there"));
                }
                Err(AuditError::Diverges(fault)) => faults.push(fault),
                Err(error) => return Err(error),
            }
        }
        let first = scope.exported.values().chain(stored.values()).next();
        report.keys = match scope.keys.as_slice() {
            [] => first.map(|seal| seal.document.public_key.clone()).into_iter().collect(),
            given => given.to_vec(),
        };
        for (number, seal) in stored.iter().chain(&scope.exported) {
            if !report.keys.contains(&seal.document.public_key) {
                let what = format!("it was signed with another key, {}", seal.document.public_key);
                faults.push(Divergence::at(Place::seal(*number), what));
            }
        }
        for (number, seal) in &scope.exported {
            let what = match stored.get(number) {
                Some(kept) if kept.document.statement == seal.document.statement => continue,
                Some(_) => "it is not the seal that was exported under this number",
                None => "it was exported and is missing now",
            };
            faults.push(Divergence::at(Place::seal(*number), what));
        }
        faults.extend(unchained(&stored));
        faults.extend(unchained(&scope.exported));
        (report.seals, report.exported_seals) = (stored.len() as u64, scope.exported.len() as u64);
        let times = || stored.values().map(|seal| seal.statement.sealed_at);
        (report.first_sealed_at, report.last_sealed_at) = (times().min(), times().max());
        let leaves = believed_leaves(storage, &stored, faults).await?;
        // What was exported counts also where the seal here was exchanged.
        let mut statements: Vec<Statement> =
            scope.exported.values().chain(stored.values()).map(|seal| seal.statement.clone()).collect();
        statements.sort_by_key(|statement| statement.seal);
        statements.dedup();
        Ok(Self { statements, leaves })
    }

    /// By size of the tree of a stream, the seals that say what it was then.
    fn of(&self, stream: &str) -> BTreeMap<u64, Vec<&Statement>> {
        let mut by_size: BTreeMap<u64, Vec<&Statement>> = BTreeMap::new();
        for statement in &self.statements {
            if let Some(sealed) = statement.streams.get(stream) {
                by_size.entry(sealed.epochs).or_default().push(statement);
            }
        }
        by_size
    }
}

/// Where a seal does not follow the one before it.
fn unchained(seals: &BTreeMap<u64, Seal>) -> Vec<Divergence> {
    let mut faults = Vec::new();
    for (number, seal) in seals {
        let diverges = |what: &str| Divergence::at(Place::seal(*number), what);
        if *number == 1 && seal.statement.previous.is_some() {
            faults.push(diverges("it names a seal before it, and is the first"));
        }
        let Some(before) = seals.get(&(number - 1)) else { continue };
        if seal.statement.previous != Some(before.document.sha256()) {
            faults.push(diverges("it does not follow the seal before it, which was exchanged"));
        }
        for (stream, sealed) in &before.statement.streams {
            let Some(grown) = seal.statement.streams.get(stream) else {
                faults.push(diverges("it leaves out a stream that the seal before it holds"));
                continue;
            };
            if let Some(path) = seal.document.consistency.get(stream)
                && !is_consistent(sealed.head(), grown.head(), path)
            {
                let place = Place { stream: Some(stream.clone()), ..Place::seal(*number) };
                faults.push(Divergence::at(place, "its tree does not begin with the tree of the seal before it"));
            }
        }
    }
    faults
}

/// The leaves that are stored, as far as they add up to the roots that are signed.
async fn believed_leaves(
    storage: &Storage,
    stored: &BTreeMap<u64, Seal>,
    faults: &mut Vec<Divergence>,
) -> Result<BTreeMap<String, Vec<EpochLeaf>>, AuditError> {
    let (mut all, mut peaks): (BTreeMap<String, Vec<EpochLeaf>>, BTreeMap<String, Peaks>) = Default::default();
    for (number, seal) in stored {
        let added = match seal::leaves_of(storage, seal).await {
            Ok(added) => added,
            Err(AuditError::Diverges(fault)) => {
                faults.push(fault);
                return Ok(all);
            }
            Err(error) => return Err(error),
        };
        for leaf in &added {
            peaks.entry(leaf.stream.clone()).or_default().push(leaf.hash());
        }
        for (stream, sealed) in &seal.statement.streams {
            let grown = peaks.get(stream).cloned().unwrap_or_default();
            let place = || Place {
                stream: Some(stream.clone()),
                file: seal.document.epochs.clone(),
                ..Place::seal(*number)
            };
            if (grown.size(), grown.root()) != (sealed.epochs, sealed.root) {
                faults.push(Divergence::at(place(), "its leaves do not add up to the root that is signed"));
                return Ok(all);
            }
            if let Err(fault) = seal.peaks(stream) {
                faults.push(fault);
            }
        }
        for leaf in added {
            all.entry(leaf.stream.clone()).or_default().push(leaf);
        }
    }
    Ok(all)
}

/// Verifies one stream.
struct Stream<'a> {
    storage: &'a Storage,
    sealed: &'a Sealed,
    threads: usize,
    meter: &'a Arc<Meter>,
}

/// A file was put into another one and deleted since the log was read.
struct Moved;

impl Stream<'_> {
    async fn verify(&self, chain: Chain) -> Result<(StreamReport, Vec<Divergence>), AuditError> {
        let mut chain = Arc::new(chain);
        for _ in 0..ATTEMPTS_MAX {
            match self.attempt(&chain).await? {
                Ok(done) => return Ok(done),
                Err(Moved) => match log::read(self.storage, &chain.stream).await {
                    Ok(newer) => chain = Arc::new(newer),
                    Err(AuditError::Diverges(fault)) => return Ok((StreamReport::default(), vec![fault])),
                    Err(error) => return Err(error),
                },
            }
        }
        Err(AuditError::Unknown(format!(
            "files of {} are put together faster than they are read; raise archive.retention",
            chain.stream
        )))
    }

    async fn attempt(
        &self,
        chain: &Arc<Chain>,
    ) -> Result<Result<(StreamReport, Vec<Divergence>), Moved>, AuditError> {
        let mut check = Check::new(chain, self.sealed);
        let mut keys = [Vec::new(), Vec::new()];
        let digest = |loaded: Loaded| {
            let (chain, meter) = (Arc::clone(chain), Arc::clone(self.meter));
            move || {
                let read = epochs::digest(&chain, &loaded);
                meter.add(&loaded, &read);
                read
            }
        };
        let mut reads = stream::iter(epochs::groups(chain))
            .map(|group| async {
                let loaded = epochs::load(self.storage, group).await?;
                if let Some(file) = loaded.missing()
                    && self.was_replaced(chain, &file.name).await?
                {
                    return Ok(Err(Moved));
                }
                let read = tokio::task::spawn_blocking(digest(loaded)).await;
                read.map(Ok).map_err(|_| AuditError::Died)
            })
            .buffered(self.threads);
        while let Some(read) = reads.try_next().await? {
            let Ok(read) = read else { return Ok(Err(Moved)) };
            for (all, some) in keys.iter_mut().zip(&read.keys) {
                all.extend(some);
            }
            check.take(read);
        }
        drop(reads);
        let Check { mut report, mut faults, .. } = check.end();
        report.files = chain.files.len() as u64;
        report.gaps = chain.commits.iter().flat_map(|c| c.stretches.iter()).map(log::Stretch::gaps).sum();
        faults.extend(self.twice(chain, keys).await?);
        Ok(Ok((report, faults)))
    }

    /// Whether a newer entry of the log put the file into another one.
    async fn was_replaced(&self, chain: &Chain, name: &str) -> Result<bool, AuditError> {
        match log::read(self.storage, &chain.stream).await {
            Ok(newer) => Ok(newer.replaced.contains_key(name) && !chain.replaced.contains_key(name)),
            Err(AuditError::Diverges(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Keys that count twice, and duplicates of keys that do not count at all.
    async fn twice(&self, chain: &Arc<Chain>, keys: [Vec<u64>; 2]) -> Result<Vec<Divergence>, AuditError> {
        let [events, duplicates] = keys;
        let suspects = tokio::task::spawn_blocking(move || suspects(events, &duplicates)).await;
        let [twice, unknown] = suspects.map_err(|_| AuditError::Died)?;
        let mut faults = Vec::new();
        let mut seen: HashMap<Vec<u8>, Place> = HashMap::new();
        for keyed in self.with_keys(chain, EVENT, twice).await? {
            if let Some(first) = seen.get(&keyed.key) {
                faults.push(Divergence::at(keyed.place, format!("its key counts already: {first}")));
            } else {
                seen.insert(keyed.key, keyed.place);
            }
        }
        for keyed in self.with_keys(chain, DUPLICATE, unknown).await? {
            faults.push(Divergence::at(
                keyed.place,
                "it is archived as a duplicate, and no record with its key counts",
            ));
        }
        Ok(faults)
    }

    /// Reads the files again, for there are few such keys, and mostly none.
    async fn with_keys(
        &self,
        chain: &Arc<Chain>,
        kind: usize,
        wanted: HashSet<u64>,
    ) -> Result<Vec<epochs::Keyed>, AuditError> {
        let (mut found, wanted) = (Vec::new(), Arc::new(wanted));
        if wanted.is_empty() {
            return Ok(found);
        }
        for group in epochs::groups(chain) {
            let loaded = epochs::load(self.storage, group).await?;
            let (chain, wanted) = (Arc::clone(chain), Arc::clone(&wanted));
            let keyed =
                tokio::task::spawn_blocking(move || epochs::with_keys(&chain, &loaded, kind, &wanted)).await;
            found.extend(keyed.map_err(|_| AuditError::Died)?);
        }
        Ok(found)
    }
}

/// Hashes of keys that may count twice, and of duplicates of which no record counts.
fn suspects(mut events: Vec<u64>, duplicates: &[u64]) -> [HashSet<u64>; 2] {
    events.sort_unstable();
    let twice = events.windows(2).filter_map(|pair| match pair {
        [a, b] if a == b => Some(*a),
        _ => None,
    });
    let unknown = duplicates.iter().filter(|hash| events.binary_search(hash).is_err()).copied();
    [twice.collect(), unknown.collect()]
}

/// Holds what was read of a stream against its seals.
struct Check<'a> {
    chain: &'a Chain,
    /// By size of the tree.
    seals: BTreeMap<u64, Vec<&'a Statement>>,
    leaves: &'a [EpochLeaf],
    peaks: Peaks,
    report: StreamReport,
    faults: Vec<Divergence>,
    /// An epoch that differs was named; the roots behind it all do.
    differs: bool,
}

impl<'a> Check<'a> {
    fn new(chain: &'a Chain, sealed: &'a Sealed) -> Self {
        let seals = sealed.of(&chain.stream);
        let newest = seals.last_key_value().map_or(0, |(size, _)| *size);
        Self {
            chain,
            seals,
            leaves: sealed.leaves.get(&chain.stream).map(Vec::as_slice).unwrap_or_default(),
            peaks: Peaks::default(),
            report: StreamReport { sealed_epochs: newest, ..StreamReport::default() },
            faults: Vec::new(),
            differs: false,
        }
    }

    fn take(&mut self, read: Read) {
        let sound = read.faults.is_empty();
        self.faults.extend(read.faults);
        for leaf in read.epochs {
            self.report.epochs += 1;
            self.report.records += leaf.records;
            let index = usize::try_from(self.peaks.size()).unwrap_or(usize::MAX);
            if let Some(sealed) = self.leaves.get(index)
                && *sealed != leaf
                && !self.differs
            {
                self.differs = true;
                // A file that cannot be read was named already, and says more.
                if sound {
                    self.faults.push(Divergence::at(self.place(&leaf), difference(sealed, &leaf)));
                }
            }
            self.peaks.push(leaf.hash());
            self.compare_root(&leaf);
        }
    }

    fn place(&self, leaf: &EpochLeaf) -> Place {
        let mut files = self.chain.files.iter().filter(|file| file.first <= leaf.epoch && leaf.epoch <= file.epoch);
        Place {
            version: Some(leaf.version),
            epoch: Some(leaf.epoch),
            file: files.next().map(|file| file.path.to_string()),
            ..Place::stream(&leaf.stream)
        }
    }

    fn compare_root(&mut self, leaf: &EpochLeaf) {
        let size = self.peaks.size();
        let Some(seals) = self.seals.remove(&size) else { return };
        self.report.sealed_records = self.report.records;
        for statement in seals {
            let Some(sealed) = statement.streams.get(&self.chain.stream) else { continue };
            let what = if sealed.root != self.peaks.root() {
                "the epochs up to it are not those that the seal holds"
            } else if sealed.records != self.report.records
                || (sealed.version, sealed.commit) != (leaf.version, leaf.commit)
            {
                "the seal says other things of the stream than the tree that it holds"
            } else {
                continue;
            };
            // The epoch is named already when the leaves are known.
            if !self.differs {
                self.differs = true;
                let place = Place { seal: Some(statement.seal), ..self.place(leaf) };
                self.faults.push(Divergence::at(place, what));
            }
        }
    }

    fn end(mut self) -> Self {
        let size = self.peaks.size();
        let beyond = self.seals.range(size + 1..).next().and_then(|(epochs, seals)| Some((epochs, seals.first()?)));
        if let Some((epochs, statement)) = beyond {
            let version = self.chain.head.version.map(|version| version + 1);
            let place = Place {
                version,
                epoch: Some(size + 1),
                seal: Some(statement.seal),
                ..Place::stream(&self.chain.stream)
            };
            let what =
                format!("the log ends with epoch {size}, and the seal holds {epochs} epochs: its end is missing");
            self.faults.push(Divergence::at(place, what));
        }
        self
    }
}

/// What of an epoch is not what was sealed.
fn difference(sealed: &EpochLeaf, found: &EpochLeaf) -> String {
    let parts = [
        (sealed.commit != found.commit).then(|| format!("its commit has SHA-256 {}", found.commit)),
        (sealed.records != found.records)
            .then(|| format!("it has {} records instead of {}", found.records, sealed.records)),
        (sealed.columns != found.columns).then(|| "its records have other columns".to_owned()),
        (sealed.root != found.root).then(|| "its records are not those that were sealed".to_owned()),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    match parts.is_empty() {
        true => "it is not the epoch that was sealed".to_owned(),
        false => parts.join(", "),
    }
}
