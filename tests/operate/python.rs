//! Python with requirements.txt installed, and its scripts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What `python.sh` exits with where pip cannot install.
const NOT_POSSIBLE_HERE: i32 = 77;

/// None, with the reason printed, where pip cannot install.
pub fn installed() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON.get_or_init(install).as_deref()
}

fn install() -> Option<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let requirements = tests.join("operate/requirements.txt");
    let output = Command::new(tests.join("clients/python.sh")).arg(requirements).output().unwrap();
    let reason = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Some(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())),
        Some(NOT_POSSIBLE_HERE) => {
            println!("skipped: pip cannot install: {}", reason.trim());
            None
        }
        _ => panic!("python.sh failed: {reason}"),
    }
}

/// Runs a script of this folder, which must succeed.
pub fn run(python: &Path, script: &str, arguments: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operate").join(script);
    let output = Command::new(python).arg("-B").arg(&script).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{said}{complained}", script.display());
    println!("{}{}", said.trim(), complained.trim());
}
