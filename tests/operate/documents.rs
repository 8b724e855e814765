//! Documents that must agree with what they are about.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `DOCS_UPDATE=1` writes the document: read the difference.
#[test]
fn configuration_is_what_the_example_says() {
    let expected = configuration(&read("viewledger.example.toml"));
    let path = "docs/configuration.md";
    if std::env::var_os("DOCS_UPDATE").is_some() {
        std::fs::write(root().join(path), &expected).unwrap();
    }
    assert!(read(path) == expected, "{path} is not what viewledger.example.toml says: run with DOCS_UPDATE=1");
    let settings: Table = read("viewledger.example.toml").parse().unwrap();
    let mut keys = 0;
    for (section, values) in &settings {
        for (key, value) in values.as_table().unwrap() {
            if matches!(value, Value::Table(_)) {
                continue;
            }
            keys += 1;
            assert!(expected.contains(&format!("| `{section}.{key}` |")), "{section}.{key} is not in {path}");
        }
    }
    assert!(keys > 50, "{keys} settings were found");
    assert_eq!(expected.lines().filter(|line| line.starts_with("| `")).count(), keys, "each is told once");
}

/// Sections, and for each key its default and the comment above it.
fn configuration(example: &str) -> String {
    let mut out = String::from(
        "# Settings\nMade from [`viewledger.example.toml`](../viewledger.example.toml): change that, and run `DOCS_UPDATE=1 cargo test \
         --test operate documents`.\n",
    );
    let mut section = String::new();
    let mut comment: Vec<&str> = Vec::new();
    let mut begun = false;
    for line in example.lines() {
        if let Some(text) = line.strip_prefix('#') {
            comment.push(text.trim());
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if name.contains('.') {
                out.push_str(&format!("\n`[{name}]`: {}\n", comment.join(" ")));
            } else {
                out.push_str(&format!(
                    "\n## {name}\n| setting | default | environment | what it does |\n|---|---|---|---|\n"
                ));
            }
            section = name.to_owned();
            begun = true;
            comment.clear();
        } else if let Some((key, value)) = line.split_once(" = ") {
            let variable = format!("VIEWLEDGER_{}_{}", section, key).to_uppercase();
            let about = comment.join(" ").replace('|', "\\|");
            out.push_str(&format!("| `{section}.{key}` | `{value}` | `{variable}` | {about} |\n"));
            comment.clear();
        } else if !begun {
            out.push_str(&format!("\n{}\n", comment.join("\n")));
            comment.clear();
        }
    }
    out
}

/// Every test that a row names is there, and a row without one says so.
#[test]
fn faults_name_tests_that_exist() {
    let text = read("docs/faults.md");
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| #")).collect();
    assert_eq!(rows.len(), 43, "one row for each fault");
    let mut named = 0;
    for row in rows {
        let mut any = row.contains("no test yet");
        for place in row.split('`').filter(|part| part.contains("::")) {
            let (file, test) = place.split_once("::").unwrap();
            assert!(read(file).contains(&format!("fn {test}(")), "{file} has no {test}");
            named += 1;
            any = true;
        }
        assert!(any, "{row}");
    }
    assert!(named > 40, "{named}");
}

/// Nobody looks for what is gone, and nobody is woken by what is not explained.
#[test]
fn each_alert_has_its_page_and_each_page_its_alert() {
    let alerts = read("docker/prometheus/alerts.yml");
    let mut named: Vec<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .filter(|name| *name != "DiskFillsUp")
        .collect();
    let runbook = read("docs/operate.md");
    let mut told: Vec<&str> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    named.sort_unstable();
    told.sort_unstable();
    assert_eq!(named, told);
}
