//! Proof of the archive: that nothing in it was changed, lost or added since it was sealed.
//!
//! | what | how |
//! |---|---|
//! | a record | bytes that anybody can compute ([`record`]), a leaf in the tree of its epoch |
//! | an epoch | the root of this tree and the SHA-256 of its commit, a leaf in the tree of its stream ([`epochs`]) |
//! | a stream | a tree that only grows ([`merkle`]) |
//! | a seal | the roots of all streams, signed ([`seal`]); each names the one before |
//!
//! Records are hashed when they are sealed, not when they come: intake pays nothing. Everything here reads storage by a
//! code path of its own, which shares nothing with what wrote it but the names of objects.

use std::fmt;

use serde::Serialize;

use crate::storage::StorageError;

pub mod epochs;
pub mod export;
pub mod key;
pub mod log;
pub mod merkle;
pub mod prove;
pub mod record;
pub mod seal;
pub mod sealer;
pub mod verify;

/// Where something is, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Place {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seal: Option<u64>,
    /// Of the log: the commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Object name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
}

impl Place {
    pub fn stream(name: &str) -> Self {
        Self { stream: Some(name.to_owned()), ..Self::default() }
    }

    pub fn seal(number: u64) -> Self {
        Self { seal: Some(number), ..Self::default() }
    }

    pub fn file(path: impl fmt::Display) -> Self {
        Self { file: Some(path.to_string()), ..Self::default() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.seal.map(|seal| format!("seal {seal}")),
            self.stream.as_ref().map(|stream| format!("stream {stream}")),
            self.version.map(|version| format!("commit {version}")),
            self.epoch.map(|epoch| format!("epoch {epoch}")),
            self.file.clone(),
            self.row.map(|row| format!("row {row}")),
            self.partition.map(|partition| format!("partition {partition}")),
            self.offset.map(|offset| format!("offset {offset}")),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

/// What is stored is not what was committed or sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Divergence {
    #[serde(flatten)]
    pub place: Box<Place>,
    pub what: String,
}

impl Divergence {
    pub fn at(place: Place, what: impl Into<String>) -> Self {
        Self { place: Box::new(place), what: what.into() }
    }
}

/// Why something was not sealed, proven or verified.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    Diverges(#[from] Divergence),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Key(#[from] key::KeyError),
    #[error("cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("others keep making seals; let one process make them")]
    Crowded,
    /// It is not there, or not yet.
    #[error("{0}")]
    Unknown(String),
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("a thread that hashes records has died")]
    Died,
}
