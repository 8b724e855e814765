//! Reads the directory `sql/`: `streams/*.sql`, `views/*.sql` and, where there are any, `tables/*.sql`, `quality/*.sql`,
//! `functions/*.sql`, `api/*.sql`, `console/*.sql` and `roles/*.sql`. What is in `quality` are views too: those that should
//! have no rows.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ddl::{self, Definition};
use super::endpoint::{self, Endpoint};
use super::role::{self, Roles};
use super::table::Table;
use super::view::{OrdinaryView, View};
use super::{Catalog, Fault};

/// The folder of what the console shows, and the first word of its routes.
const CONSOLE: &str = "console";

/// Reads every file and returns the catalog, or all faults found in all files.
pub fn load(dir: &Path) -> Result<Catalog, Vec<Fault>> {
    let mut catalog = Catalog::default();
    let mut faults = Vec::new();
    for folder in ["streams", "tables", "views", "quality", "functions", "api", CONSOLE] {
        if !matches!(folder, "streams" | "views") && !dir.join(folder).exists() {
            continue;
        }
        let load = match folder {
            "api" => load_endpoint,
            CONSOLE => load_panel,
            _ => load_file,
        };
        match sql_files(&dir.join(folder)) {
            Ok(files) => files.iter().for_each(|file| {
                if let Err(fault) = load(file, &mut catalog) {
                    faults.push(fault);
                }
            }),
            Err(fault) => faults.push(fault),
        }
    }
    match roles(&dir.join("roles")) {
        Ok(roles) => catalog.roles = Arc::new(roles),
        Err(found) => faults.extend(found),
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

/// A fault of no file.
pub fn whole_catalog(reason: &dyn std::fmt::Display) -> Fault {
    Fault { file: "definitions".to_owned(), line: 0, column: 0, reason: reason.to_string() }
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

fn read(path: &Path) -> Result<String, Fault> {
    std::fs::read_to_string(path).map_err(|error| whole_file(path, format!("cannot read: {error}")))
}

fn load_endpoint(path: &Path, catalog: &mut Catalog) -> Result<(), Fault> {
    let endpoint = endpoint::parse(&path.display().to_string(), &read(path)?)?;
    add_endpoint(endpoint, catalog)
}

/// An endpoint that the console finds by its route, and asks without parameters.
fn load_panel(path: &Path, catalog: &mut Catalog) -> Result<(), Fault> {
    let endpoint = endpoint::parse(&path.display().to_string(), &read(path)?)?;
    let given = endpoint.parameters.iter().any(|parameter| parameter.default.is_none());
    if !endpoint.route.is_below(CONSOLE) || given {
        let reason = format!(
            "the console asks for routes below /{CONSOLE}/, and gives no parameters: write GET /{CONSOLE}/..., and DEFAULT \
             for each parameter"
        );
        return Err(Fault { file: endpoint.file, line: 1, column: 1, reason });
    }
    add_endpoint(endpoint, catalog)
}

fn add_endpoint(endpoint: Endpoint, catalog: &mut Catalog) -> Result<(), Fault> {
    if let Some(other) = catalog.endpoints.values().find(|other| other.route.overlaps(&endpoint.route)) {
        let reason = format!(
            "route {} and route {} of {} could be meant by one path: give one of them another word",
            endpoint.route, other.route, other.file
        );
        return Err(Fault { file: endpoint.file, line: 1, column: 1, reason });
    }
    catalog.endpoints.insert(endpoint.route.to_string(), Arc::new(endpoint));
    Ok(())
}

/// What all files of the folder say together: a grant may name a role of another file.
fn roles(folder: &Path) -> Result<Roles, Vec<Fault>> {
    if !folder.exists() {
        return Ok(Roles::default());
    }
    let (mut statements, mut faults) = (Vec::new(), Vec::new());
    for path in sql_files(folder).map_err(|fault| vec![fault])? {
        match read(&path).and_then(|text| role::read::statements(&path.display().to_string(), &text)) {
            Ok(told) => statements.extend(told),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Roles::of(statements) } else { Err(faults) }
}

fn load_file(path: &Path, catalog: &mut Catalog) -> Result<(), Fault> {
    let text = read(path)?;
    for definition in ddl::parse(&path.display().to_string(), &text)? {
        if let Some(reason) = taken(&definition, catalog) {
            let line = definition.line();
            return Err(Fault { file: path.display().to_string(), line, column: 1, reason });
        }
        match definition {
            Definition::Stream(stream) => drop(catalog.streams.insert(stream.name.clone(), Arc::new(stream))),
            Definition::Table(table) => drop(catalog.tables.insert(table.name.clone(), Arc::new(table))),
            Definition::View(view) => drop(catalog.views.insert(view.name.clone(), Arc::new(view))),
            Definition::Ordinary(view) => drop(catalog.ordinary.insert(view.name.clone(), Arc::new(view))),
            Definition::Function(function) => {
                drop(catalog.functions.insert(function.name.clone(), Arc::new(function)));
            }
        }
    }
    Ok(())
}

/// Why a definition cannot stand beside those that were read before.
fn taken(definition: &Definition, catalog: &Catalog) -> Option<String> {
    match definition {
        Definition::Function(function) => {
            let other = catalog.functions.get(&function.name)?;
            Some(format!("function {} is declared already, at {}:{}", function.name, other.file, other.line))
        }
        Definition::Stream(stream) => {
            if let Some(other) = catalog.streams.get(&stream.name) {
                return Some(format!("stream {} is declared already, at {}", stream.name, other.declared_at));
            }
            let other = catalog.streams.values().find(|other| other.topic == stream.topic)?;
            Some(format!(
                "stream {} reads topic {:?}, which stream {} at {} reads already",
                stream.name, stream.topic, other.name, other.declared_at
            ))
        }
        Definition::Table(Table { name, .. })
        | Definition::View(View { name, .. })
        | Definition::Ordinary(OrdinaryView { name, .. }) => {
            let table = || catalog.tables.get(name).map(|table| ("table", &table.file, table.line));
            let kept = || catalog.views.get(name).map(|view| ("view", &view.file, view.line));
            let ordinary = || catalog.ordinary.get(name).map(|view| ("view", &view.file, view.line));
            let (kind, file, line) = table().or_else(kept).or_else(ordinary)?;
            Some(format!("{kind} {name} is declared already, at {file}:{line}"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const STREAM: &str = "CREATE STREAM s (id TEXT PRIMARY KEY) WITH (topic = 't', format = 'json');";

    #[test]
    fn a_panel_is_found_by_its_route_and_asked_without_parameters() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["streams", "views", CONSOLE] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("streams/s.sql"), STREAM).unwrap();
        let load = |head: &str| {
            let text = format!("-- GET {head}\n-- returns: rows\nSELECT $n AS n ORDER BY n\n");
            std::fs::write(dir.path().join(CONSOLE).join("p.sql"), text).unwrap();
            load(dir.path())
        };
        let good = load("/console/p\n-- about: x\n-- query n BIGINT DEFAULT 1: n").unwrap();
        assert_eq!(good.endpoints.keys().collect::<Vec<_>>(), ["/console/p"]);
        for bad in [
            "/p\n-- about: x\n-- query n BIGINT DEFAULT 1: n",
            "/console/p\n-- about: x\n-- query n BIGINT: n",
            "/console/{n}\n-- about: x\n-- path n BIGINT: n",
        ] {
            let faults = load(bad).unwrap_err();
            assert_eq!(faults.len(), 1);
            assert!(faults[0].to_string().contains("routes below /console/"), "{bad}: {}", faults[0]);
        }
    }
}
