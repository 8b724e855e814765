//! Commits that change which files hold the archive's records, and none of the records.
//!
//! Only the writer of the table makes them, between two epochs: an entry of the log that removes files and adds the
//! one that took them in. Epoch, frontier and ledger stay what they were.

use std::collections::HashSet;
use std::sync::Arc;

use super::keep::ListedFile;
use super::log::Change;
use super::{Archive, ArchiveError, ArchiveFile, ArchiveSnapshot, STEPS_MAX, Step, load};
use crate::storage::paths::ArchivePaths;
use crate::storage::{Created, Storage};

/// A file that holds exactly the records of others. It is written and proven; nothing names it yet.
#[derive(Debug)]
pub struct Rewrite {
    pub(super) nonce: String,
    pub(super) replaced: Vec<Arc<ArchiveFile>>,
    pub(super) file: ArchiveFile,
}

impl Rewrite {
    /// How many files became one.
    pub fn files(&self) -> usize {
        self.replaced.len()
    }

    pub fn rows(&self) -> u64 {
        self.file.rows
    }

    pub fn bytes(&self) -> u64 {
        self.file.bytes
    }

    /// Why it must not be committed on top of these files; None when it may.
    fn refusal(&self, files: &[Arc<ArchiveFile>]) -> Option<String> {
        let file = &self.file;
        let live: HashSet<&str> = files.iter().map(|file| file.name.as_str()).collect();
        if let Some(gone) = self.replaced.iter().find(|old| !live.contains(old.name.as_str())) {
            return Some(format!("{} is not in the table any more", gone.name));
        }
        if let Some(other) = self.replaced.iter().find(|old| old.kind != file.kind) {
            return Some(format!("{} holds other records than {}", other.name, file.kind));
        }
        let rows: u64 = self.replaced.iter().map(|old| old.rows).sum();
        if rows != file.rows {
            return Some(format!("{rows} records became {}", file.rows));
        }
        let first = self.replaced.iter().map(|old| old.first).min();
        let last = self.replaced.iter().map(|old| old.epoch).max();
        if (first, last) != (Some(file.first), Some(file.epoch)) {
            return Some(format!("it says that it holds epochs {} to {}", file.first, file.epoch));
        }
        let ours: HashSet<&str> = self.replaced.iter().map(|old| old.name.as_str()).collect();
        let within = |live: &&Arc<ArchiveFile>| {
            live.kind == file.kind && live.epoch >= file.first && live.first <= file.epoch
        };
        let between = files.iter().filter(within).find(|live| !ours.contains(live.name.as_str()));
        between.map(|live| format!("{} lies between the files that it replaces", live.name))
    }
}

impl Archive {
    /// Puts the file of `rewrite` in the place of those it was made from.
    ///
    /// After an error for which [`ArchiveError::is_retryable`] holds, and after [`ArchiveError::Rewrite`], the table
    /// is as it was or has the new file: the next commit finds out. After any other error the process must end.
    pub async fn rewrite(&mut self, rewrite: &Rewrite) -> Result<Arc<ArchiveSnapshot>, ArchiveError> {
        if let Some(reason) = rewrite.refusal(&self.state.files) {
            return Err(ArchiveError::Rewrite { stream: self.stream.clone(), reason });
        }
        let replaced = rewrite.replaced.iter().map(|file| (file.name.clone(), file.bytes)).collect();
        let change = Change { files: vec![rewrite.file.clone()], replaced, metadata: None };
        let standing = self.state.standing.clone();
        self.unanswered = Some(rewrite.nonce.clone());
        for _ in 0..STEPS_MAX {
            if self.step_over(&rewrite.nonce).await? == Step::Committed
                || self.create_entry(&standing, &rewrite.nonce, &change).await? != Created::Taken
            {
                self.unanswered = None;
                return Ok(self.adopt());
            }
        }
        Err(ArchiveError::Crowded { stream: self.stream.clone() })
    }

    /// The table's newest state, after the log was asked whether another writer has taken it over.
    pub async fn catch_up(&mut self) -> Result<Arc<ArchiveSnapshot>, ArchiveError> {
        let known = self.state.version;
        self.step_over("").await?;
        Ok(if self.state.version == known { self.snapshot() } else { self.adopt() })
    }
}

/// The data files in the folder of a stream's table. See [`super::keep`].
pub async fn list(storage: &Storage, stream: &str) -> Result<Vec<ListedFile>, ArchiveError> {
    load::list_files(storage, &ArchivePaths::new(stream)).await
}
