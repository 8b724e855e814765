//! What becomes of the files in a table's folder: which live, which were replaced, which nobody ever named.
//!
//! Everything is classified before anything is deleted, from a listing that is older than the snapshot it is held
//! against. So a file that is about to be committed is never taken for litter:
//!
//! | file | state | deleted |
//! |---|---|---|
//! | the snapshot names it | live | never |
//! | a rewrite replaced it | retired | after the grace period, when no snapshot of this process holds it |
//! | neither, its epoch is committed | orphan: left by a crash between data file and commit | after the grace period |
//! | neither, its epoch is not committed yet | orphan, until it is committed | no |

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use object_store::path::Path;

use super::{ArchiveFile, ArchiveSnapshot, Kind, log};
use crate::position::Epoch;
use crate::runtime::Micros;
use crate::storage::paths;

/// A file whose records are in another one now. It stays for readers that began before.
#[derive(Debug, Clone)]
pub struct RetiredFile {
    /// Within the table.
    pub name: String,
    pub bytes: u64,
    /// When the log took it out.
    pub at_millis: i64,
    /// Alive while a snapshot of this process names the file.
    pin: Weak<ArchiveFile>,
}

impl RetiredFile {
    pub(super) fn of(file: &Arc<ArchiveFile>, at_millis: i64) -> Self {
        Self { name: file.name.clone(), bytes: file.bytes, at_millis, pin: Arc::downgrade(file) }
    }

    /// As a checkpoint tells of it: an earlier process replaced it, so nobody here holds it.
    pub(super) fn remembered(name: String, bytes: u64, at_millis: i64) -> Self {
        Self { name, bytes, at_millis, pin: Weak::new() }
    }

    fn is_pinned(&self) -> bool {
        self.pin.strong_count() > 0
    }
}

/// Replaced files, oldest first.
#[derive(Debug, Clone, Default)]
pub struct RetiredFiles(Arc<[RetiredFile]>);

impl RetiredFiles {
    pub(super) fn new(mut files: Vec<RetiredFile>) -> Self {
        files.sort_by(|a, b| (a.at_millis, &a.name).cmp(&(b.at_millis, &b.name)));
        Self(files.into())
    }

    /// With the newest ones; those too old to be remembered are left out.
    pub(super) fn with(&self, newest: Vec<RetiredFile>) -> Self {
        let now = newest.iter().map(|file| file.at_millis).max().unwrap_or_default();
        let remembered = i64::try_from(log::REMEMBERED.as_millis()).unwrap_or(i64::MAX);
        let kept = self.iter().filter(|file| file.at_millis >= now - remembered || file.is_pinned()).cloned();
        Self::new(kept.chain(newest).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &RetiredFile> {
        self.0.iter()
    }
}

impl PartialEq for RetiredFiles {
    fn eq(&self, other: &Self) -> bool {
        self.iter().map(|file| &file.name).eq(other.iter().map(|file| &file.name))
    }
}

impl Eq for RetiredFiles {}

/// A data file that a listing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Object name, relative to the storage root.
    pub path: Path,
    /// Within the table.
    pub name: String,
    pub bytes: u64,
    pub modified_at: Micros,
}

/// What a file is to the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileState {
    Live,
    Retired,
    Orphan,
}

impl FileState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Retired => "retired",
            Self::Orphan => "orphan",
        }
    }
}

/// Whether a file may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Stay,
    Delete,
}

/// A listed file that the table does not need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unneeded {
    pub file: ListedFile,
    pub state: FileState,
    pub fate: Fate,
}

/// Classifies the files of a listing. `snapshot` must be the table's newest, read after the listing was made.
pub fn classify(
    listed: Vec<ListedFile>,
    snapshot: &ArchiveSnapshot,
    now: Micros,
    grace: Duration,
) -> Vec<Unneeded> {
    let live: std::collections::HashSet<&str> = snapshot.files.iter().map(|file| file.name.as_str()).collect();
    let retired: HashMap<&str, &RetiredFile> =
        snapshot.retired.iter().map(|file| (file.name.as_str(), file)).collect();
    let oldest_kept = now.saturating_sub(i64::try_from(grace.as_micros()).unwrap_or(i64::MAX));
    let fate = |since: Micros, pinned: bool| match since < oldest_kept && !pinned {
        true => Fate::Delete,
        false => Fate::Stay,
    };
    let verdict = |file: ListedFile| {
        if live.contains(file.name.as_str()) {
            return None;
        }
        if let Some(known) = retired.get(file.name.as_str()) {
            let fate = fate(known.at_millis.saturating_mul(1000), known.is_pinned());
            return Some(Unneeded { file, state: FileState::Retired, fate });
        }
        // A name that is not ours is not ours to judge.
        let epoch = epoch_of(&file.name)?;
        let fate = fate(file.modified_at, epoch > snapshot.epoch);
        Some(Unneeded { file, state: FileState::Orphan, fate })
    };
    listed.into_iter().filter_map(verdict).collect()
}

fn epoch_of(name: &str) -> Option<Epoch> {
    let (folder, file) = name.split_once('/')?;
    Kind::ALL.iter().find(|kind| kind.folder() == folder)?;
    paths::data_file_epoch(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::archive::{RowCounts, ledger::Ledger};
    use crate::position::StreamFrontier;
    use crate::storage::paths::{ArchivePaths, data_file_name};

    const HOUR: Duration = Duration::from_secs(3600);
    const NOW: Micros = 100 * 3_600_000_000;

    fn hours_ago(hours: i64) -> Micros {
        NOW - hours * 3_600_000_000
    }

    fn listed(name: &str, modified_at: Micros) -> ListedFile {
        let path = ArchivePaths::new("s").data_file(name);
        ListedFile { path, name: name.to_owned(), bytes: 9, modified_at }
    }

    fn live(epoch: u64, nonce: &str) -> Arc<ArchiveFile> {
        let name = data_file_name("events", Epoch(epoch), nonce);
        Arc::new(ArchiveFile {
            path: ArchivePaths::new("s").data_file(&name),
            name,
            kind: Kind::Event,
            rows: 1,
            bytes: 9,
            first: Epoch(epoch),
            epoch: Epoch(epoch),
            columns: None,
            sha256: String::new(),
            blocks: None,
        })
    }

    fn snapshot(files: Vec<Arc<ArchiveFile>>, retired: Vec<RetiredFile>) -> ArchiveSnapshot {
        ArchiveSnapshot {
            table: "t".to_owned(),
            epoch: Epoch(5),
            version: 9,
            frontier: StreamFrontier::default(),
            ledger: Ledger::new(),
            files: files.into(),
            retired: RetiredFiles::new(retired),
            rows: RowCounts::default(),
        }
    }

    /// What becomes of a file of this name and age.
    fn judge(name: &str, modified_at: Micros, snapshot: &ArchiveSnapshot) -> Option<(FileState, Fate)> {
        let verdicts = classify(vec![listed(name, modified_at)], snapshot, NOW, HOUR);
        verdicts.first().map(|verdict| (verdict.state, verdict.fate))
    }

    #[test]
    fn a_file_that_is_named_lives_however_old_it_is() {
        let file = live(3, "a");
        let snapshot = snapshot(vec![Arc::clone(&file)], vec![]);
        assert_eq!(judge(&file.name, hours_ago(99), &snapshot), None);
    }

    #[test]
    fn an_orphan_goes_after_the_grace_period() {
        let snapshot = snapshot(vec![live(3, "a")], vec![]);
        let name = data_file_name("events", Epoch(3), "crashed");
        assert_eq!(judge(&name, hours_ago(2), &snapshot), Some((FileState::Orphan, Fate::Delete)));
        assert_eq!(judge(&name, hours_ago(0), &snapshot), Some((FileState::Orphan, Fate::Stay)));
    }

    /// A commit that is tried again for hours, because the disk is full, keeps the names of its files.
    #[test]
    fn a_file_of_an_epoch_that_may_still_be_committed_stays() {
        let snapshot = snapshot(vec![], vec![]);
        let name = data_file_name("events", Epoch(6), "tried-again");
        assert_eq!(judge(&name, hours_ago(50), &snapshot), Some((FileState::Orphan, Fate::Stay)));
        let name = data_file_name("events", Epoch(5), "tried-again");
        assert_eq!(judge(&name, hours_ago(50), &snapshot), Some((FileState::Orphan, Fate::Delete)));
    }

    #[test]
    fn a_retired_file_goes_by_when_it_was_retired_and_never_while_it_is_pinned() {
        let file = live(2, "a");
        let at = |hours| hours_ago(hours) / 1000;
        let lately = snapshot(vec![], vec![RetiredFile::remembered(file.name.clone(), 9, at(0))]);
        assert_eq!(judge(&file.name, hours_ago(50), &lately), Some((FileState::Retired, Fate::Stay)));
        let long_ago = snapshot(vec![], vec![RetiredFile::remembered(file.name.clone(), 9, at(2))]);
        assert_eq!(judge(&file.name, hours_ago(50), &long_ago), Some((FileState::Retired, Fate::Delete)));
        let pinned = snapshot(vec![], vec![RetiredFile::of(&file, at(2))]);
        assert_eq!(judge(&file.name, hours_ago(50), &pinned), Some((FileState::Retired, Fate::Stay)));
        let name = file.name.clone();
        drop(file);
        assert_eq!(judge(&name, hours_ago(50), &pinned), Some((FileState::Retired, Fate::Delete)));
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let snapshot = snapshot(vec![], vec![]);
        for name in
            ["events/part-0.parquet", "other/00000000000000000001-a.parquet", "README", "events/1-a.parquet"]
        {
            assert_eq!(judge(name, hours_ago(99), &snapshot), None, "{name}");
        }
    }

    #[test]
    fn replaced_files_are_forgotten_after_a_day() {
        let day = 24 * 3_600_000;
        let files = RetiredFiles::new(vec![RetiredFile::remembered("a".into(), 1, 0)]);
        let names = |files: &RetiredFiles| files.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
        let next = files.with(vec![RetiredFile::remembered("b".into(), 1, day)]);
        assert_eq!(names(&next), ["a", "b"]);
        assert_eq!(names(&next.with(vec![RetiredFile::remembered("c".into(), 1, day + 1)])), ["b", "c"]);
    }
}
