//! `viewledger health` and `viewledger doctor`, and a backup that is restored.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::demo::{Demo, PATIENCE, command, said, until};

#[test]
fn health_tells_whether_a_server_answers() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path(), &[]);
    let (code, text) = said(&demo.run(&["health"]));
    assert_eq!((code, text.contains(r#""status":"healthy""#)), (0, true), "{text}");
    let (code, text) = said(&demo.run(&["health", "--ready"]));
    assert_eq!((code, text.contains(r#""status":"ready""#)), (0, true), "{text}");
    let port = demo.http_port.to_string();
    demo.kill();
    let (code, text) = said(&command(&[]).args(["health", "--http-port", &port]).output().unwrap());
    assert_eq!((code, text.contains("no server answers at 127.0.0.1")), (1, true), "{text}");
}

#[test]
fn health_asks_by_tls_where_the_settings_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let tls = |name| format!("{}/tests/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let [certificate, key, other] = ["first.pem", "first.key", "second.pem"].map(tls);
    let settings = [("VIEWLEDGER_TLS_CERTIFICATE", certificate.as_str()), ("VIEWLEDGER_TLS_KEY", key.as_str())];
    let demo = Demo::start(dir.path(), &settings);
    let (code, text) = said(&demo.run(&["health"]));
    assert_eq!(code, 0, "{text}");
    let foreign = [("VIEWLEDGER_TLS_CERTIFICATE", other.as_str()), ("VIEWLEDGER_TLS_KEY", key.as_str())];
    let port = demo.http_port.to_string();
    let (code, text) = said(&command(&foreign).args(["health", "--http-port", &port]).output().unwrap());
    assert_eq!((code, text.contains("cannot agree on TLS")), (1, true), "{text}");
}

#[test]
fn the_pulse_beats_and_ends_with_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path(), &[]);
    let mut stream = TcpStream::connect(("127.0.0.1", demo.http_port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /pulse HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(stream).lines().map(|line| line.unwrap());
    let pulses: Vec<serde_json::Value> = lines
        .by_ref()
        .filter_map(|line| line.strip_prefix("data: ").map(|json| serde_json::from_str(json).unwrap()))
        .take(3)
        .collect();
    let passed = |pulse: &serde_json::Value| pulse["streams"]["video_views"]["passed"].as_u64().unwrap();
    assert!(passed(&pulses[2]) > passed(&pulses[0]), "{pulses:?}");
    for pulse in &pulses {
        let stream = &pulse["streams"]["video_views"];
        let parts = ["events", "duplicates", "quarantined", "gaps"].map(|part| stream[part].as_u64().unwrap());
        assert_eq!((parts.iter().sum::<u64>(), &stream["balances"]), (passed(pulse), &serde_json::json!(true)));
        assert_eq!(stream["lag"].as_object().unwrap().len(), 12, "{stream}");
    }
    let began = Instant::now();
    demo.stop();
    assert!(began.elapsed() < Duration::from_secs(20), "it ends while somebody watches");
    assert_eq!(lines.filter(|line| line.starts_with("event: error")).count(), 0);
}

#[test]
fn doctor_finds_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path(), &[("VIEWLEDGER_SERVER_CONNECTIONS_MAX", "50")]);
    let (code, text) = said(&demo.run(&["doctor"]));
    assert_eq!(code, 0, "{text}");
    for line in
        ["is used by the server with pid", "creates an object once", "topic video-views: 12 partitions can be read"]
    {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    assert!(!dir.path().join("data/probe").join("x").exists());

    let elsewhere = dir.path().join("elsewhere").display().to_string();
    let broker = format!("127.0.0.1:{}", demo.broker_port);
    let free = [
        ("VIEWLEDGER_SERVER_PG_PORT", "0"),
        ("VIEWLEDGER_SERVER_FLIGHT_PORT", "0"),
        ("VIEWLEDGER_SERVER_HTTP_PORT", "0"),
    ];
    let doctor = |settings: &[(&str, &str)]| {
        let own =
            [("VIEWLEDGER_STORAGE_DATA_DIR", elsewhere.as_str()), ("VIEWLEDGER_KAFKA_BROKERS", broker.as_str())];
        let all: Vec<_> = own.iter().chain(&free).chain(settings).copied().collect();
        said(&command(&all).arg("doctor").output().unwrap())
    };
    let (code, text) = doctor(&[]);
    assert_eq!((code, text.contains("fit to run")), (0, true), "{text}");
    let taken = demo.pg_port.to_string();
    for (setting, words) in [
        (("VIEWLEDGER_KAFKA_BROKERS", "127.0.0.1:1"), "look at kafka.brokers (127.0.0.1:1)"),
        (("VIEWLEDGER_SERVER_PG_PORT", taken.as_str()), "server.pg_port"),
        (("VIEWLEDGER_SERVER_BIND", "0.0.0.0"), "auth.method"),
        (("VIEWLEDGER_DELTA_BYTES_MAX", "900000GiB"), "lower delta.bytes_max first"),
        (("VIEWLEDGER_SQL_DIR", "/no/such/folder"), "/no/such/folder"),
        (("VIEWLEDGER_QUERY_THREAD", "2"), "did you mean VIEWLEDGER_QUERY_THREADS?"),
        (("VIEWLEDGER_STORAGE_LOCATION", "/proc/nowhere"), "/proc/nowhere"),
    ] {
        let (code, text) = doctor(&[setting]);
        let told = text.lines().any(|line| line.starts_with("FAULT") && line.contains(words));
        assert!(code == 3 && told, "{setting:?}: {code}, {text}");
    }
}

/// As docs/operate.md says it: stop, copy, lose everything, copy back, verify, start.
#[test]
fn a_backup_can_be_restored() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path(), &[]);
    demo.until_refreshed();
    demo.stop();
    let run = |program: &str, arguments: &[&str]| {
        let status = Command::new(program).args(arguments).current_dir(dir.path()).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    };
    let verify = || {
        let data = dir.path().join("data");
        said(&command(&[]).arg("verify").arg("--data-dir").arg(data).output().unwrap())
    };
    let (code, before) = verify();
    assert_eq!(code, 0, "{before}");
    run("cp", &["--archive", "data", "backup"]);
    run("rm", &["--recursive", "data"]);
    assert_ne!(verify().0, 0, "there is nothing to verify");
    run("cp", &["--archive", "backup", "data"]);
    let (code, after) = verify();
    assert_eq!(code, 0, "{after}");
    let records = |text: &str| {
        text.lines().filter(|line| line.contains(" records in ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(records(&after), records(&before));
    assert_eq!(records(&after).len(), 3, "{after}");

    // It goes on where it was, and the books balance.
    let demo = Demo::start(dir.path(), &[]);
    let balance = "SELECT count(*) = 36 AND bool_and(balances) AND sum(counted) > 0 AS b FROM system.conservation";
    until("the books balance", || demo.sql(balance).contains("true"));
    demo.stop();

    // One file less is found.
    let archive = dir.path().join("data/archive/video_views/events");
    let file = std::fs::read_dir(archive).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&file).unwrap();
    let (code, text) = verify();
    assert_eq!(code, 3, "{text}");
}
