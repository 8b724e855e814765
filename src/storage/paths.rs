//! The one owner of object names, relative to the storage root.
//!
//! | name | what |
//! |---|---|
//! | `archive/<stream>/` | a Delta Lake table: every record of one stream |
//! | `archive/<stream>/_delta_log/<20 digits>.json` | its commits |
//! | `archive/<stream>/{events,duplicates,quarantine}/<epoch>-<nonce>.parquet` | its data |
//! | `generations/<20 digits>.json` | manifests of published generations |
//! | `views/<view>/<generation>-<run>-<nonce>.parquet` | partial states that generations name |
//! | `tables/commits/<20 digits>.json` | which version every reference table has |
//! | `tables/rows/<table>/<version>-<nonce>.parquet` | the rows of a version |
//! | `audit/seals/<20 digits>.json` | seals on all of this |
//! | `audit/epochs/<20 digits>-<nonce>.jsonl` | the leaves that a seal added to the trees of streams |
//! | `probe/<uuid>` | made and deleted again by `viewledger doctor` |
//! | `LOCK` | held by the one process that uses a local directory |

use object_store::path::Path;
use uuid::Uuid;

use crate::position::{Epoch, GenerationId};

/// Name of the lock file within a local data directory.
pub const LOCK_FILE: &str = "LOCK";

/// Numbers are padded to 20 digits, so that names sort as numbers do.
pub fn padded(number: u64) -> String {
    format!("{number:020}")
}

/// An object of no meaning, by which storage is tried.
pub fn probe() -> Path {
    Path::from_iter(["probe", &Uuid::new_v4().to_string()])
}

/// The manifest log of generations.
pub fn generations() -> Path {
    Path::from("generations")
}

/// A new name for a file of partial states; the nonce makes it unique among attempts.
pub fn view_file(view: &str, generation: GenerationId, run: usize) -> Path {
    let name = format!("{}-{run}-{}.parquet", padded(generation.0), Uuid::new_v4().simple());
    Path::from_iter(["views", view, &name])
}

/// The generation that a file of partial states was written for; None when it is not such a file.
pub fn view_file_generation(path: &Path) -> Option<GenerationId> {
    let parts: Vec<_> = path.parts().collect();
    let [folder, _view, name] = parts.as_slice() else { return None };
    let (digits, rest) = name.as_ref().split_at_checked(20)?;
    let ours = folder.as_ref() == "views" && rest.starts_with('-') && rest.ends_with(".parquet");
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()?;
    ours.then_some(GenerationId(number))
}

/// All files of all views.
pub fn views() -> Path {
    Path::from("views")
}

/// All files of a view.
pub fn view(view: &str) -> Path {
    Path::from_iter(["views", view])
}

/// The manifest log of all reference tables.
pub fn table_commits() -> Path {
    Path::from("tables/commits")
}

/// A new name for the rows of a version; the nonce makes it unique among attempts.
pub fn table_file(table: &str, version: u64) -> Path {
    let name = format!("{}-{}.parquet", padded(version), Uuid::new_v4().simple());
    Path::from_iter(["tables", "rows", table, &name])
}

/// All seals.
pub fn seals() -> Path {
    Path::from("audit/seals")
}

pub fn seal(number: u64) -> Path {
    seals().join(format!("{}.json", padded(number)))
}

/// A new name for the leaves that a seal adds; the nonce makes it unique among attempts.
pub fn seal_epochs(number: u64) -> Path {
    Path::from_iter(["audit", "epochs", &format!("{}-{}.jsonl", padded(number), Uuid::new_v4().simple())])
}

/// The archives of all streams, a folder each.
pub fn archives() -> Path {
    Path::from("archive")
}

/// The names within one stream's table.
#[derive(Debug, Clone)]
pub struct ArchivePaths {
    root: Path,
}

impl ArchivePaths {
    pub fn new(stream: &str) -> Self {
        Self { root: Path::from_iter(["archive", stream]) }
    }

    /// The table's root, relative to the storage root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn log(&self) -> Path {
        self.root.clone().join("_delta_log")
    }

    /// The commit that makes `version`.
    pub fn log_entry(&self, version: u64) -> Path {
        self.log().join(format!("{}.json", padded(version)))
    }

    /// Where Delta writers note the newest checkpoint; a hint.
    pub fn last_checkpoint(&self) -> Path {
        self.log().join("_last_checkpoint")
    }

    /// Where the newest committed epoch is noted, so that a lost last commit is noticed.
    pub fn witness(&self) -> Path {
        self.root.clone().join("_newest_epoch")
    }

    /// A data file's object name from its name within the table, as commits hold it.
    pub fn data_file(&self, name: &str) -> Path {
        let mut path = self.root.clone();
        path.extend(name.split('/'));
        path
    }
}

/// A data file's name within its table: its epoch, and a nonce that makes attempts unique.
pub fn data_file_name(folder: &str, epoch: Epoch, nonce: &str) -> String {
    format!("{folder}/{}-{nonce}.parquet", padded(epoch.0))
}

/// The epoch in the last part of a data file's name, such as `00000000000000000012-ab.parquet`.
pub fn data_file_epoch(file: &str) -> Option<Epoch> {
    let (digits, nonce) = file.strip_suffix(".parquet")?.split_once('-')?;
    (digits.len() == 20 && !nonce.is_empty()).then(|| digits.parse().ok()).flatten().map(Epoch)
}

/// The version in the name of a numbered document, such as `00000000000000000007.json`.
pub fn numbered_json(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json")?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable() {
        let paths = ArchivePaths::new("clicks");
        assert_eq!(paths.log_entry(7).as_ref(), "archive/clicks/_delta_log/00000000000000000007.json");
        let name = data_file_name("events", Epoch(12), "ab");
        assert_eq!(paths.data_file(&name).as_ref(), "archive/clicks/events/00000000000000000012-ab.parquet");
        assert_eq!(data_file_epoch(name.rsplit('/').next().unwrap_or_default()), Some(Epoch(12)));
        assert_eq!(data_file_epoch("12-ab.parquet"), None);
        assert_eq!(numbered_json("00000000000000000007.json"), Some(7));
        assert_eq!(numbered_json("00000000000000000007.checkpoint.parquet"), None);
        assert_eq!(numbered_json("7.json"), None);
        assert_eq!(view_file_generation(&view_file("v", GenerationId(12), 1)), Some(GenerationId(12)));
        assert_ne!(view_file("v", GenerationId(1), 0), view_file("v", GenerationId(1), 0));
    }
}
