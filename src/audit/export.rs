//! Copies of the seals for others to keep: a chain that lies in one place cannot stop its keeper.
//!
//! A copy holds the statement, its signature, and for each stream the proof that its tree begins with the tree of the
//! seal before. So whoever has the copies can tell without the archive that it only grew.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::merkle::{self, NodeHash, Peaks};
use super::seal::{self, SealDocument};
use super::{AuditError, Divergence, Place};
use crate::storage::{Storage, paths};

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    pub written: u64,
    /// Copies that were there already, and are the same.
    pub kept: u64,
}

/// Writes every seal that is not there yet into `dir`, and changes no copy. A copy that is there and says something else
/// is a divergence.
pub async fn export(storage: &Storage, dir: &Path) -> Result<Exported, AuditError> {
    let failed = |source| AuditError::File { action: "write to", path: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(failed)?;
    let last = seal::newest(storage).await?.map_or(0, |seal| seal.statement.seal);
    let mut exported = Exported::default();
    let mut peaks: BTreeMap<String, Peaks> = BTreeMap::new();
    for number in 1..=last {
        let diverges = |what: &str| AuditError::from(Divergence::at(Place::seal(number), what));
        let seal = seal::stored(storage, number).await?.ok_or_else(|| diverges("it is missing"))?;
        let mut added: BTreeMap<String, Vec<NodeHash>> = BTreeMap::new();
        for leaf in seal::leaves_of(storage, &seal).await? {
            added.entry(leaf.stream.clone()).or_default().push(leaf.hash());
        }
        let mut consistency = BTreeMap::new();
        for (stream, sealed) in &seal.statement.streams {
            let grown = peaks.entry(stream.clone()).or_default();
            let added = added.remove(stream).unwrap_or_default();
            if grown.size() > 0 {
                consistency.insert(stream.clone(), merkle::consistency(grown, &added));
            }
            added.into_iter().for_each(|leaf| grown.push(leaf));
            if (grown.size(), grown.root()) != (sealed.epochs, sealed.root) {
                return Err(diverges(
                    "its leaves do not add up to the root that is signed; run: viewledger verify",
                ));
            }
        }
        let copy = SealDocument { epochs: None, peaks: BTreeMap::new(), consistency, ..seal.document };
        let path = dir.join(format!("{}.json", paths::padded(number)));
        match fs::read(&path) {
            Ok(there) => match serde_json::from_slice::<SealDocument>(&there) {
                Ok(there) if (&there.statement, &there.signature) == (&copy.statement, &copy.signature) => {
                    exported.kept += 1;
                }
                _ => {
                    let place = Place { file: Some(path.display().to_string()), ..Place::seal(number) };
                    let what = "another seal was exported under this number before, and the copy was left as it is";
                    return Err(Divergence::at(place, what).into());
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write(&path, &serde_json::to_vec(&copy)?).map_err(failed)?;
                exported.written += 1;
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(exported)
}

/// Under its name the copy is there whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staging = path.with_extension("new");
    let mut file = File::create(&staging)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&staging, path)
}
