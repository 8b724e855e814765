//! The proof that one record was in the archive when it was sealed. Who has it and the public key needs nothing else.

use serde::{Deserialize, Serialize};

use super::epochs::{self, EpochLeaf};
use super::key::PublicKey;
use super::merkle::{self, NodeHash, TreeHead, from_hex, to_hex};
use super::seal::{self, Seal, SealedStream, Statement};
use super::{AuditError, Divergence, Place, log};
use crate::position::PartitionId;
use crate::storage::Storage;

const FORMAT: u32 = 1;

/// From the bytes of a record to a signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub format: u32,
    pub stream: String,
    pub partition: i32,
    pub offset: i64,
    /// Names and types of the columns, as text.
    pub columns: String,
    /// The bytes of the record, in hexadecimal digits.
    pub record: String,
    /// Its number among the records of its epoch, and the path to the root of these.
    pub record_index: u64,
    pub record_path: Vec<NodeHash>,
    /// The leaf of the epoch, as text.
    pub epoch: String,
    /// From there to the root of the stream in the seal.
    pub epoch_path: Vec<NodeHash>,
    pub seal: ProofSeal,
}

/// What of a seal a proof needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProofSeal {
    pub statement: String,
    pub public_key: PublicKey,
    pub signature: String,
}

impl Proof {
    /// What does not hold; None when the proof is good under `key`.
    pub fn fault(&self, key: &PublicKey) -> Option<&'static str> {
        let seal = &self.seal;
        if seal.public_key != *key || !key.has_signed(&seal.statement, &seal.signature) {
            return Some("the seal was not signed with this key");
        }
        let Ok(statement) = serde_json::from_str::<Statement>(&seal.statement) else {
            return Some("the statement of the seal is not readable");
        };
        let Some(TreeHead { size, root }) = statement.streams.get(&self.stream).map(SealedStream::head) else {
            return Some("the seal does not hold the stream");
        };
        let Ok(epoch) = serde_json::from_str::<EpochLeaf>(&self.epoch) else {
            return Some("the leaf of the epoch is not readable");
        };
        let leaf = merkle::leaf(self.epoch.as_bytes());
        let index = epoch.epoch.checked_sub(1);
        if epoch.stream != self.stream
            || !index.is_some_and(|index| merkle::is_included(leaf, index, size, &self.epoch_path, root))
        {
            return Some("the epoch is not in the seal");
        }
        if NodeHash::of(self.columns.as_bytes()) != epoch.columns {
            return Some("the columns are not those of the epoch");
        }
        let Some(record) = from_hex(&self.record) else { return Some("the record is not in hexadecimal digits") };
        let leaf = merkle::leaf(&record);
        let included = merkle::is_included(leaf, self.record_index, epoch.records, &self.record_path, epoch.root);
        (!included).then_some("the record is not in the epoch")
    }
}

/// Proves the record at `offset` of `partition`, under the newest seal.
pub async fn prove(storage: &Storage, stream: &str, partition: i32, offset: i64) -> Result<Proof, AuditError> {
    let unknown = |what: String| AuditError::Unknown(what);
    let names = log::streams(storage).await?;
    if !names.iter().any(|name| name == stream) {
        return Err(unknown(format!("no archive of stream {stream}; there are {}", names.join(", "))));
    }
    // The seal first: what it holds is in the log.
    let seal = seal::newest(storage).await?;
    let seal = seal.ok_or_else(|| unknown("there is no seal yet; make one with: viewledger seal".to_owned()))?;
    let chain = log::read(storage, stream).await?;
    let holds = |commit: &log::Commit| {
        let mut stretches = commit.stretches.iter();
        stretches.any(|s| s.partition == partition && s.from <= offset && offset < s.to)
    };
    let Some(commit) = chain.commits.iter().position(holds) else {
        let end = chain.head.frontier.position(PartitionId(partition));
        return Err(unknown(format!(
            "offset {offset} of partition {partition} is not in the archive of {stream}, which has the offsets below {end}"
        )));
    };
    let groups = epochs::groups(&chain);
    let group = groups.into_iter().find(|group| group.commits.contains(&commit));
    let Some(group) = group else { return Err(unknown("no files hold the epoch of the record".to_owned())) };
    let loaded = epochs::load(storage, group).await?;
    let opened = tokio::task::spawn_blocking(move || epochs::open(&chain, &loaded, partition, offset)).await;
    let opened = opened.map_err(|_| AuditError::Died)??.ok_or_else(|| {
        unknown(format!(
            "offset {offset} of partition {partition} held no record: it is one of the gaps in the ledger"
        ))
    })?;
    under(storage, &seal, stream, (partition, offset), opened).await
}

async fn under(
    storage: &Storage,
    seal: &Seal,
    stream: &str,
    (partition, offset): (i32, i64),
    opened: epochs::Opened,
) -> Result<Proof, AuditError> {
    let number = seal.statement.seal;
    let size = seal.statement.streams.get(stream).map_or(0, |sealed| sealed.epochs);
    let epoch = opened.epoch.epoch;
    if epoch > size {
        return Err(AuditError::Unknown(format!(
            "the record is in epoch {epoch} of {stream}, and seal {number} ends with epoch {size}; make one with: \
             viewledger seal"
        )));
    }
    let diverges = |what: &str| {
        let place = Place { epoch: Some(epoch), stream: Some(stream.to_owned()), ..Place::seal(number) };
        AuditError::from(Divergence::at(place, what))
    };
    let leaves = seal::leaves(storage, number).await?.remove(stream).unwrap_or_default();
    let index = usize::try_from(epoch - 1).unwrap_or(usize::MAX);
    if leaves.get(index) != Some(&opened.epoch) {
        return Err(diverges("the records of the epoch are not those that were sealed; run: viewledger verify"));
    }
    let hashes: Vec<NodeHash> = leaves.iter().map(EpochLeaf::hash).collect();
    let path = |leaves: &[NodeHash], index| {
        merkle::inclusion(leaves, index).ok_or_else(|| diverges("the tree is smaller than its seal says"))
    };
    let proof = Proof {
        format: FORMAT,
        stream: stream.to_owned(),
        partition,
        offset,
        columns: opened.columns,
        record: to_hex(&opened.record),
        record_index: opened.index as u64,
        record_path: path(&opened.leaves, opened.index)?,
        epoch: opened.epoch.text(),
        epoch_path: path(&hashes, index)?,
        seal: ProofSeal {
            statement: seal.document.statement.clone(),
            public_key: seal.document.public_key.clone(),
            signature: seal.document.signature.clone(),
        },
    };
    // No proof leaves that does not hold.
    match proof.fault(&seal.document.public_key) {
        None => Ok(proof),
        Some(fault) => Err(diverges(fault)),
    }
}
