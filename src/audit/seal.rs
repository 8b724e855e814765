//! A seal: what the archive was at a time, signed.
//!
//! | object | what |
//! |---|---|
//! | `audit/seals/<20 digits>.json` | the statement as text, who signed it, and what the next seal goes on from |
//! | `audit/epochs/<20 digits>-<nonce>.jsonl` | the leaves that the seal added to the trees of streams, a line each |
//!
//! The signature is over the statement's text as it stands; each statement names the SHA-256 of the one before. What is
//! not signed can be computed from the archive, and is compared with what is signed before it is used.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use object_store::path::Path;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::epochs::EpochLeaf;
use super::key::{PublicKey, SigningKey};
use super::merkle::{NodeHash, Peaks, TreeHead};
use super::{AuditError, Divergence, Place};
use crate::position::StreamFrontier;
use crate::runtime::Micros;
use crate::storage::{Storage, object_error, paths};

/// Of [`Statement`]; another one is refused, never guessed.
const FORMAT: u32 = 1;

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    pub format: u32,
    /// 1, 2, 3, ...
    pub seal: u64,
    /// The SHA-256 of the statement before; None in the first.
    pub previous: Option<NodeHash>,
    pub sealed_at: Micros,
    pub streams: BTreeMap<String, SealedStream>,
    /// By object name, the SHA-256 of manifests that are new since the seal before: of the newest generation, and of all
    /// commits of reference tables.
    pub manifests: BTreeMap<String, NodeHash>,
    /// The newest generation, and the newest commit of reference tables; 0 where there is none.
    pub generation: u64,
    pub tables: u64,
}

/// A stream in a seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedStream {
    /// Leaves of its tree.
    pub epochs: u64,
    pub root: NodeHash,
    /// Records in these epochs, of all kinds.
    pub records: u64,
    /// The newest entry of its log, and its SHA-256.
    pub version: u64,
    pub commit: NodeHash,
    pub frontier: StreamFrontier,
}

impl SealedStream {
    pub fn head(&self) -> TreeHead {
        TreeHead { size: self.epochs, root: self.root }
    }
}

impl Statement {
    /// Nothing sealed.
    pub fn before_the_first() -> Self {
        Self {
            format: FORMAT,
            seal: 0,
            previous: None,
            sealed_at: 0,
            streams: BTreeMap::new(),
            manifests: BTreeMap::new(),
            generation: 0,
            tables: 0,
        }
    }
}

/// A seal as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealDocument {
    /// The text of a [`Statement`].
    pub statement: String,
    pub public_key: PublicKey,
    pub signature: String,
    /// Object name of the leaves that it added; None when it added none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<String>,
    /// By stream, the complete subtrees of its tree.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peaks: BTreeMap<String, Vec<NodeHash>>,
    /// By stream, that its tree begins with the tree of the seal before; in copies for others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub consistency: BTreeMap<String, Vec<NodeHash>>,
}

/// A seal whose signature is good.
#[derive(Debug, Clone)]
pub struct Seal {
    pub statement: Statement,
    pub document: SealDocument,
}

impl SealDocument {
    pub fn sign(statement: &Statement, key: &SigningKey) -> Result<Self, AuditError> {
        let statement = serde_json::to_string(statement)?;
        Ok(Self {
            public_key: key.public(),
            signature: key.sign(&statement),
            statement,
            epochs: None,
            peaks: BTreeMap::new(),
            consistency: BTreeMap::new(),
        })
    }

    /// What the next statement calls the one before.
    pub fn sha256(&self) -> NodeHash {
        NodeHash::of(self.statement.as_bytes())
    }
}

impl Seal {
    /// Reads a seal and checks its signature with the key that it names itself; whether that is the right key is for the
    /// caller to say.
    pub fn read(bytes: &[u8], number: u64) -> Result<Self, Divergence> {
        let diverges = |what: String| Divergence::at(Place::seal(number), what);
        let document: SealDocument =
            serde_json::from_slice(bytes).map_err(|error| diverges(format!("it is not readable: {error}")))?;
        if !document.public_key.has_signed(&document.statement, &document.signature) {
            return Err(diverges(
                "its signature is not good: the statement was changed after it was signed".to_owned(),
            ));
        }
        let statement: Statement = serde_json::from_str(&document.statement)
            .map_err(|error| diverges(format!("its statement is not readable: {error}")))?;
        if statement.format != FORMAT {
            return Err(diverges(format!("it has format {}, this program knows {FORMAT}", statement.format)));
        }
        if statement.seal != number {
            return Err(diverges(format!("it is seal {}, under another number", statement.seal)));
        }
        Ok(Self { statement, document })
    }

    /// The complete subtrees of the tree of a stream, which add up to the root that is signed.
    pub fn peaks(&self, stream: &str) -> Result<Peaks, Divergence> {
        let Some(sealed) = self.statement.streams.get(stream) else { return Ok(Peaks::default()) };
        let hashes = self.document.peaks.get(stream).cloned().unwrap_or_default();
        let peaks = Peaks::new(sealed.epochs, hashes).filter(|peaks| peaks.root() == sealed.root);
        peaks.ok_or_else(|| {
            let place = Place { stream: Some(stream.to_owned()), ..Place::seal(self.statement.seal) };
            Divergence::at(place, "its subtrees do not add up to the root that is signed")
        })
    }
}

/// Numbers of the seals that a listing shows, ascending.
pub async fn numbers(storage: &Storage) -> Result<Vec<u64>, AuditError> {
    let dir = paths::seals();
    let mut numbers: Vec<u64> = storage
        .store()
        .list(Some(&dir))
        .try_filter_map(|meta| async move { Ok(meta.location.filename().and_then(paths::numbered_json)) })
        .try_collect()
        .await
        .map_err(|source| object_error("list", &dir, source))?;
    numbers.sort_unstable();
    Ok(numbers)
}

/// A stored seal; None when there is none of this number.
pub async fn stored(storage: &Storage, number: u64) -> Result<Option<Seal>, AuditError> {
    let bytes = storage.read(&paths::seal(number)).await?;
    Ok(bytes.map(|bytes| Seal::read(&bytes, number)).transpose()?)
}

/// The newest seal; listings only say where to begin looking.
pub async fn newest(storage: &Storage) -> Result<Option<Seal>, AuditError> {
    let mut number = numbers(storage).await?.last().copied().unwrap_or(0);
    let mut newest = if number == 0 { None } else { stored(storage, number).await? };
    while let Some(next) = stored(storage, number + 1).await? {
        newest = Some(next);
        number += 1;
    }
    Ok(newest)
}

/// The leaves that a seal added to the trees of streams, in their order.
pub async fn leaves_of(storage: &Storage, seal: &Seal) -> Result<Vec<EpochLeaf>, AuditError> {
    let Some(name) = &seal.document.epochs else { return Ok(Vec::new()) };
    let path = Path::from(name.as_str());
    let place = || Place { file: Some(path.to_string()), ..Place::seal(seal.statement.seal) };
    let bytes = storage.read(&path).await?;
    let bytes = bytes.ok_or_else(|| Divergence::at(place(), "the leaves of the seal are missing"))?;
    let mut leaves = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let unreadable = |error| Divergence::at(place(), format!("the leaves are not readable: {error}"));
        leaves.push(serde_json::from_slice(line).map_err(unreadable)?);
    }
    Ok(leaves)
}

/// The leaves of all streams that seals up to `last` added, by stream.
pub async fn leaves(storage: &Storage, last: u64) -> Result<BTreeMap<String, Vec<EpochLeaf>>, AuditError> {
    let mut all: BTreeMap<String, Vec<EpochLeaf>> = BTreeMap::new();
    for number in 1..=last {
        let missing = || Divergence::at(Place::seal(number), "it is missing");
        let seal = stored(storage, number).await?.ok_or_else(missing)?;
        for leaf in leaves_of(storage, &seal).await? {
            all.entry(leaf.stream.clone()).or_default().push(leaf);
        }
    }
    Ok(all)
}

/// A manifest, its number, and the SHA-256 of the object.
#[derive(Debug)]
pub struct Manifest {
    pub number: u64,
    pub path: Path,
    pub sha256: NodeHash,
    pub body: Value,
}

/// Reads a manifest and checks the SHA-256 that it holds over itself; None when there is none.
pub async fn manifest(storage: &Storage, dir: &Path, number: u64) -> Result<Option<Manifest>, AuditError> {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        sha256: String,
        #[serde(borrow)]
        body: &'a serde_json::value::RawValue,
    }
    let path = dir.clone().join(format!("{}.json", paths::padded(number)));
    let Some(bytes) = storage.read(&path).await? else { return Ok(None) };
    let damaged = |what: String| Divergence::at(Place::file(&path), what);
    let unreadable = |error: serde_json::Error| damaged(format!("the manifest is not readable: {error}"));
    let envelope: Envelope<'_> = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if NodeHash::of(envelope.body.get().as_bytes()).to_string() != envelope.sha256 {
        return Err(damaged("the manifest does not match its own SHA-256".to_owned()).into());
    }
    let body = serde_json::from_str(envelope.body.get()).map_err(unreadable)?;
    Ok(Some(Manifest { number, sha256: NodeHash::of(&bytes), body, path }))
}

/// Numbers of the manifests in a directory, ascending.
pub async fn manifest_numbers(storage: &Storage, dir: &Path) -> Result<Vec<u64>, AuditError> {
    let listed = storage.store().list_with_delimiter(Some(dir)).await;
    let listed = listed.map_err(|source| object_error("list", dir, source))?;
    let mut numbers: Vec<u64> =
        listed.objects.iter().filter_map(|meta| paths::numbered_json(meta.location.filename()?)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}
