//! The table of rooms in `docs/architecture.md`, enforced: which room may import which, read from the source.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const BASE: [&str; 4] = ["config", "runtime", "position", "metrics"];

/// Rooms and what each may import beside itself and the base.
const ROOMS: [(&str, &[&str]); 14] = [
    ("storage", &[]),
    ("audit", &["storage"]),
    ("catalog", &[]),
    ("engine", &["catalog"]),
    ("tables", &["storage", "engine", "catalog"]),
    ("kafka", &["catalog"]),
    ("archive", &["storage", "kafka", "engine", "catalog"]),
    ("delta", &["engine", "kafka", "catalog"]),
    ("batch", &["archive", "engine", "storage", "catalog", "kafka"]),
    ("merge", &["batch", "delta", "archive", "tables", "engine", "catalog", "kafka", "storage", "audit"]),
    ("ingest", &["kafka", "archive", "delta", "batch", "merge", "engine", "catalog", "storage"]),
    ("serve", &["merge", "engine", "batch", "delta", "archive", "tables", "catalog", "kafka", "storage"]),
    ("demo", &[]),
    (
        "cli",
        &[
            "app", "demo", "catalog", "engine", "serve", "merge", "batch", "archive", "storage", "kafka", "delta",
            "audit",
        ],
    ),
];

/// Every import of `crate::x` in the text of a room: the first names of its paths. Comments do not count.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .fold(String::new(), |all, line| all + line + "\n");
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group_names(group)),
            None => names.extend(name(rest)),
        }
    }
    names
}

/// The names at the top level of `a::b, c::{d, e}}`.
fn group_names(group: &str) -> Vec<String> {
    let mut depth = 0;
    let mut names = Vec::new();
    let mut item = String::new();
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.extend(name(&item));
                item.clear();
                continue;
            }
            _ => {}
        }
        item.push(c);
    }
    names.extend(name(&item));
    names
}

fn name(path: &str) -> Option<String> {
    let name: String = path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// What is wrong with the imports of these files, given as path below `src/` and text.
fn faults(files: &[(String, String)]) -> Vec<String> {
    let rooms: BTreeMap<&str, &[&str]> = ROOMS.into_iter().collect();
    let known: BTreeSet<&str> = rooms.keys().copied().chain(BASE).chain(["app"]).collect();
    let mut faults = Vec::new();
    for (path, text) in files {
        let room = path.split(['/', '.']).next().unwrap_or_default();
        if matches!(room, "lib" | "main" | "app") {
            continue;
        }
        if !known.contains(room) {
            faults.push(format!("src/{path}: the room {room} is not in the table"));
            continue;
        }
        let allowed = rooms.get(room).copied().unwrap_or_default();
        for import in imports(text) {
            let fine = import == room || BASE.contains(&import.as_str()) || allowed.contains(&import.as_str());
            if known.contains(import.as_str()) && !fine {
                faults.push(format!("src/{path}: {room} may not import {import}"));
            }
        }
    }
    faults
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    sources(&root, &mut paths);
    assert!(paths.len() > 20, "the sources were not found");
    let files: Vec<(String, String)> = paths
        .iter()
        .map(|path| {
            let below = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            (below, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    let faults = faults(&files);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_forbidden_import_is_found() {
    let check = |path: &str, text: &str| faults(&[(path.to_owned(), text.to_owned())]);
    assert_eq!(
        check("storage/paths.rs", "use crate::catalog::Catalog;"),
        ["src/storage/paths.rs: storage may not import catalog"]
    );
    assert_eq!(check("kafka.rs", "use crate::{\n    catalog::x,\n    archive::{a, b},\n};").len(), 1);
    assert_eq!(check("config.rs", "fn f() { crate::serve::run() }").len(), 1);
    assert_eq!(check("demo/load.rs", "//! See [`crate::serve`].\nuse crate::runtime::Micros;"), [""; 0]);
    assert_eq!(check("helpers.rs", ""), ["src/helpers.rs: the room helpers is not in the table"]);
}
