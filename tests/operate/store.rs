//! The same in a store of S3's protocol: moto, a server of it in Python.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::demo::{Demo, said, until};
use crate::python;

struct Store {
    child: Child,
    port: u16,
}

impl Store {
    /// With one bucket.
    fn start(python: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operate/store.py");
        let mut command = Command::new(python);
        command.arg("-B").arg(script).arg(port.to_string()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready");
        Self { child, port }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `storage.options` are of a file, for they may hold anything.
fn settings(dir: &Path, port: u16) -> String {
    let path = dir.join("s3.toml");
    let text = format!(
        "[storage]\nlocation = \"s3://bucket/prefix\"\n\n[storage.options]\naws_endpoint = \"http://127.0.0.1:{port}\"\n\
         aws_allow_http = \"true\"\naws_region = \"us-east-1\"\naws_access_key_id = \"a\"\naws_secret_access_key = \"b\"\n"
    );
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn everything_stands_in_a_store_of_s3s_protocol() {
    let Some(python) = python::installed() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::start(python);
    let file = settings(dir.path(), store.port);
    let demo = Demo::start_with(dir.path(), &[], &["--config", &file]);
    demo.until_refreshed();
    let (code, text) = said(&demo.run(&["doctor", "--config", &file]));
    assert!(
        code == 0 && text.contains("s3://bucket/prefix can be written to, and creates an object once"),
        "{text}"
    );
    assert!(!dir.path().join("data/archive").exists(), "nothing of the archive is on this machine");

    // Killed, it goes on where the last commit ends; batch and speed agree, and every offset is accounted for.
    demo.kill();
    let demo = Demo::start_with(dir.path(), &[], &["--config", &file]);
    demo.until_refreshed();
    demo.sql("REFRESH MATERIALIZED VIEW video_views");
    until("batch and speed are compared", || {
        demo.sql("SELECT count(*) > 0 AND sum(differing) = 0 AS c FROM system.reconciliation").contains("true")
    });
    assert!(demo.sql("SELECT bool_and(balances) AS b FROM system.conservation").contains("true"));
    demo.stop();
    let (code, text) = said(
        &crate::demo::command(&[])
            .args(["verify", "--config", &file])
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .output()
            .unwrap(),
    );
    assert!(code == 0 && text.contains("verified: nothing was changed, lost or added"), "{text}");
}
