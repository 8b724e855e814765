//! Reads the directory `sql/`: `streams/*.sql` and `views/*.sql`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ddl::{self, Definition};
use super::{Catalog, Fault};

/// Reads every file and returns the catalog, or all faults found in all files.
pub fn load(dir: &Path) -> Result<Catalog, Vec<Fault>> {
    let mut catalog = Catalog::default();
    let mut faults = Vec::new();
    for folder in ["streams", "views"] {
        match sql_files(&dir.join(folder)) {
            Ok(files) => files.iter().for_each(|file| {
                if let Err(fault) = load_file(file, &mut catalog) {
                    faults.push(fault);
                }
            }),
            Err(fault) => faults.push(fault),
        }
    }
    if catalog.streams.is_empty() && faults.is_empty() {
        faults.push(whole_file(&dir.join("streams"), "no stream is declared; add a .sql file with CREATE STREAM"));
    }
    if faults.is_empty() { Ok(catalog) } else { Err(faults) }
}

/// A fault that has no line: the file itself is the matter.
pub fn whole_file(path: &Path, reason: impl std::fmt::Display) -> Fault {
    Fault { file: path.display().to_string(), line: 0, column: 0, reason: reason.to_string() }
}

fn sql_files(folder: &Path) -> Result<Vec<PathBuf>, Fault> {
    let entries = std::fs::read_dir(folder).map_err(|error| whole_file(folder, format!("cannot list: {error}")))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "sql"))
        .collect();
    files.sort();
    Ok(files)
}

fn load_file(path: &Path, catalog: &mut Catalog) -> Result<(), Fault> {
    let text = std::fs::read_to_string(path).map_err(|error| whole_file(path, format!("cannot read: {error}")))?;
    for definition in ddl::parse(&path.display().to_string(), &text)? {
        let (name, place, taken) = match &definition {
            Definition::Stream(stream) => {
                let same_topic = catalog.streams.values().any(|other| other.topic == stream.topic);
                let taken = catalog.streams.contains_key(&stream.name) || same_topic;
                (stream.name.clone(), stream.declared_at.clone(), taken)
            }
            Definition::View(view) => {
                let taken = catalog.views.contains_key(&view.name);
                (view.name.clone(), format!("{}:{}", view.file, view.line), taken)
            }
        };
        if taken {
            return Err(whole_file(path, format!("{name} at {place} is declared twice, or its topic is")));
        }
        match definition {
            Definition::Stream(stream) => drop(catalog.streams.insert(name, Arc::new(stream))),
            Definition::View(view) => drop(catalog.views.insert(name, Arc::new(view))),
        }
    }
    Ok(())
}
