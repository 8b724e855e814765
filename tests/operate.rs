//! Running it: what docker/ names is there, the console shows the present, doctor and health tell the truth, a backup can be
//! restored, and all of it stands in a store of S3's protocol too.
//!
//! Each scenario runs `viewledger demo` as a process of its own. What needs Python packages or a browser is skipped, with the
//! reason printed, only where they cannot be had.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "operate/commands.rs"]
mod commands;
#[path = "operate/demo.rs"]
mod demo;
#[path = "operate/documents.rs"]
mod documents;
#[path = "operate/python.rs"]
mod python;
#[path = "operate/store.rs"]
mod store;

use std::path::Path;
use std::process::Command;

use demo::Demo;

#[test]
fn what_docker_names_is_there() {
    let Some(python) = python::installed() else { return };
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path(), &[]);
    demo.until_refreshed();
    let ports = [demo.http_port.to_string(), demo.pg_port.to_string()];
    let scratch = dir.path().display().to_string();
    python::run(python, "check_docker.py", &[demo::BINARY, &ports[0], &ports[1], &scratch]);
}

#[test]
fn the_console_shows_the_present() {
    let Some(python) = python::installed() else { return };
    let Some(browser) = browser() else {
        println!("skipped: there is no Chromium (apt-get install chromium, or CHROMIUM=path)");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path(), &[]);
    demo.until_refreshed();
    let shots = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/console");
    std::fs::create_dir_all(&shots).unwrap();
    let port = demo.http_port.to_string();
    python::run(python, "check_console.py", &[&browser, &port, &shots.display().to_string()]);
}

/// A browser of the Chromium family.
fn browser() -> Option<String> {
    let named = std::env::var("CHROMIUM").ok();
    let names = ["chromium", "chromium-browser", "google-chrome"].map(str::to_owned);
    named.into_iter().chain(names).find(|name| Command::new(name).arg("--version").output().is_ok())
}
