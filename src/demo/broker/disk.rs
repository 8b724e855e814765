//! Small files that are replaced whole, so that a killed process leaves the old or the new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A failure of the broker's data directory.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot {action} {path}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is not what this broker wrote; remove the broker's data directory", path = path.display())]
    Format { path: PathBuf, source: serde_json::Error },
}

impl DiskError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// Reads a file written by [`write`]; `None` when there is none.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DiskError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| DiskError::Format { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DiskError::io("read", path)(error)),
    }
}

/// Replaces the file at `path`. Not synced: the broker promises to survive a kill, not a power cut.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), DiskError> {
    let bytes = serde_json::to_vec(value).map_err(|source| DiskError::Format { path: path.to_owned(), source })?;
    let staged = path.with_extension("tmp");
    fs::write(&staged, bytes).map_err(DiskError::io("write", &staged))?;
    fs::rename(&staged, path).map_err(DiskError::io("replace", path))
}
