//! Manifests of generations and of reference tables, and the files that they name.

use std::collections::{BTreeMap, BTreeSet};

use object_store::path::Path;
use serde_json::Value;

use super::Report;
use crate::audit::merkle::NodeHash;
use crate::audit::seal::{self, Manifest, Statement};
use crate::audit::{AuditError, Divergence, Place};
use crate::storage::{Storage, paths};

pub(super) async fn verify(
    storage: &Storage,
    statements: &[Statement],
    report: &mut Report,
) -> Result<(), AuditError> {
    let mut sealed: BTreeMap<&str, (u64, NodeHash)> = BTreeMap::new();
    for statement in statements {
        sealed.extend(statement.manifests.iter().map(|(path, hash)| (path.as_str(), (statement.seal, *hash))));
    }
    let (generation, tables) = statements.last().map_or((0, 0), |last| (last.generation, last.tables));
    let mut check = Check { storage, sealed, read: BTreeSet::new(), report };
    check.generations(generation).await?;
    check.commits(tables).await
}

struct Check<'a> {
    storage: &'a Storage,
    /// By object name, the seal and the SHA-256 that it says.
    sealed: BTreeMap<&'a str, (u64, NodeHash)>,
    /// Files that were read, and the SHA-256 that they must have.
    read: BTreeSet<(String, String, Absent)>,
    report: &'a mut Report,
}

/// What it means that a file is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Absent {
    IsLost,
    /// Nobody needs it any more.
    WasCollected,
}

impl Check<'_> {
    /// Older generations are deleted in time; those that are there must be what was sealed, and the newest must be there.
    async fn generations(&mut self, sealed: u64) -> Result<(), AuditError> {
        let dir = paths::generations();
        let numbers = seal::manifest_numbers(self.storage, &dir).await?;
        let newest = numbers.last().copied().unwrap_or_default();
        if newest < sealed {
            let path = dir.clone().join(format!("{}.json", paths::padded(sealed)));
            self.fault(&path, "the generation was sealed and is missing, and so are all after it");
        }
        for number in numbers {
            let Some(manifest) = self.manifest(&dir, number).await? else { continue };
            let views = manifest.body.get("views").and_then(Value::as_object);
            let runs = views.into_iter().flat_map(|views| views.values());
            let absent = if number == newest { Absent::IsLost } else { Absent::WasCollected };
            for run in runs.filter_map(|view| view.get("runs")?.as_array()).flatten() {
                self.file(run, absent).await?;
            }
        }
        Ok(())
    }

    /// All commits of tables stay, and the rows of all versions.
    async fn commits(&mut self, sealed: u64) -> Result<(), AuditError> {
        let dir = paths::table_commits();
        let newest = seal::manifest_numbers(self.storage, &dir).await?.last().copied().unwrap_or_default();
        for number in 1..=newest.max(sealed) {
            match self.manifest(&dir, number).await? {
                Some(manifest) => {
                    let tables = manifest.body.get("tables").and_then(Value::as_object);
                    for version in tables.into_iter().flat_map(|tables| tables.values()) {
                        self.file(version, Absent::IsLost).await?;
                    }
                }
                None if self.report.divergences.last().is_some_and(|fault| names(fault, &dir, number)) => {}
                None => self.fault(&dir.clone().join(format!("{}.json", paths::padded(number))), "it is missing"),
            }
        }
        Ok(())
    }

    /// A manifest that is sound in itself and is what was sealed.
    async fn manifest(&mut self, dir: &Path, number: u64) -> Result<Option<Manifest>, AuditError> {
        match seal::manifest(self.storage, dir, number).await {
            Ok(Some(manifest)) => {
                self.report.manifests += 1;
                match self.sealed.get(manifest.path.as_ref()) {
                    Some((seal, sha256)) if *sha256 != manifest.sha256 => {
                        let what = format!("the manifest is not the one that seal {seal} holds");
                        self.fault(&manifest.path, what);
                    }
                    _ => {}
                }
                Ok(Some(manifest))
            }
            Ok(None) => Ok(None),
            Err(AuditError::Diverges(fault)) => {
                self.report.divergences.push(fault);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A file that a manifest names, with its SHA-256. Several manifests may name it.
    async fn file(&mut self, named: &Value, absent: Absent) -> Result<(), AuditError> {
        let text = |field: &str| named.get(field).and_then(Value::as_str).unwrap_or_default();
        let path = Path::from(text("path"));
        if !self.read.insert((path.to_string(), text("sha256").to_owned(), absent)) {
            return Ok(());
        }
        match self.storage.read(&path).await? {
            None if absent == Absent::WasCollected => {}
            None => self.fault(&path, "the file is missing"),
            Some(bytes) => {
                self.report.bytes += bytes.len() as u64;
                if NodeHash::of(&bytes).to_string() != text("sha256") {
                    self.fault(&path, "the file does not match the SHA-256 in its manifest");
                }
            }
        }
        Ok(())
    }

    fn fault(&mut self, path: &Path, what: impl Into<String>) {
        self.report.divergences.push(Divergence::at(Place::file(path), what));
    }
}

fn names(fault: &Divergence, dir: &Path, number: u64) -> bool {
    fault.place.file.as_deref() == Some(dir.clone().join(format!("{}.json", paths::padded(number))).as_ref())
}
