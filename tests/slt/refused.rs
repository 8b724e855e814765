//! What is refused, and in which words: each file of `tests/slt/refused` is a definition, and its first line says
//! what `viewledger check` answers to it.

use viewledger::app;
use viewledger::config::Config;

use crate::{files, folder};

/// The lines that begin `--! ` hold the place and the reason, up to `...` where there is more; the definition begins in
/// the next.
#[test]
fn every_refusal_says_where_why_and_what_to_write() {
    let root = tempfile::tempdir().unwrap();
    let sql = root.path().join("sql");
    for folder in ["streams", "views"] {
        std::fs::create_dir_all(sql.join(folder)).unwrap();
    }
    for name in ["events", "others"] {
        let stream = std::fs::read_to_string(folder().join("sql/streams/events.sql")).unwrap();
        let stream = stream.replace("CREATE STREAM events", &format!("CREATE STREAM {name}"));
        let stream = stream.replace("topic = 'events'", &format!("topic = '{name}'"));
        std::fs::write(sql.join(format!("streams/{name}.sql")), stream).unwrap();
    }
    let mut failures = Vec::new();
    let mut refused = 0;
    for file in files(&folder().join("refused"), "sql") {
        let text = std::fs::read_to_string(&file).unwrap();
        // Each on its own, since over a view with a fault nothing else is planned; a file of several cases is cut.
        for case in text.split("\n\n").filter(|case| !case.trim().is_empty()) {
            let (expected, definition): (Vec<&str>, Vec<&str>) =
                case.trim().lines().partition(|line| line.starts_with("--! "));
            let expected: Vec<String> =
                expected.iter().map(|line| format!("views/case.sql:{}", line.trim_start_matches("--! "))).collect();
            assert!(!expected.is_empty(), "{}: no --! above\n{case}", file.display());
            std::fs::write(sql.join("views/case.sql"), definition.join("\n")).unwrap();
            let found = check(&sql, root.path());
            refused += 1;
            let same = |(found, expected): (&String, &String)| match expected.strip_suffix("...") {
                Some(begins) => found.starts_with(begins),
                None => found == expected,
            };
            if found.len() != expected.len() || !found.iter().zip(&expected).all(same) {
                failures.push(format!("{}\n{case}\nanswered:\n{}", file.display(), found.join("\n")));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {refused} cases\n\n{}", failures.len(), failures.join("\n\n"));
}

/// What `viewledger check` prints of a directory, a line a fault, without the directory.
fn check(sql: &std::path::Path, data: &std::path::Path) -> Vec<String> {
    let settings = [
        ("VIEWLEDGER_SQL_DIR".to_owned(), sql.display().to_string()),
        ("VIEWLEDGER_STORAGE_DATA_DIR".to_owned(), data.join("data").display().to_string()),
    ];
    let config = Config::load(None, settings).unwrap();
    let engine = app::planning_engine(&config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let prefix = format!("{}/", sql.display());
    match runtime.block_on(app::declare(&config, &engine)) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(|fault| fault.to_string().replace(&prefix, "")).collect(),
    }
}
