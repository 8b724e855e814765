#![allow(clippy::unwrap_used)]
use super::*;

fn load(toml: &str, env: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.toml");
    std::fs::write(&path, toml).unwrap();
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::load(Some(&path), env).map_err(|e| e.to_string().replace(path.to_str().unwrap(), "FILE"))
}

#[test]
fn defaults_are_those_of_the_documented_example() {
    let config = Config::defaults();
    assert_eq!((config.server.pg_port, config.server.http_port), (5433, 8080));
    assert_eq!(config.server.flight_port, 50051);
    assert_eq!(config.storage.location(), "./data");
    assert_eq!(config.archive.commit_bytes_max, 128 << 20);
}

#[test]
fn environment_wins_over_file_wins_over_defaults() {
    let config = load("[server]\npg_port = 1\nhttp_port = 2", &[("VIEWLEDGER_SERVER_PG_PORT", "3")]).unwrap();
    assert_eq!((config.server.pg_port, config.server.http_port), (3, 2));
}

#[test]
fn free_tables_take_any_text() {
    let config = load("[kafka.options]\n\"security.protocol\" = \"SASL_SSL\"", &[]).unwrap();
    assert_eq!(config.kafka.options["security.protocol"], "SASL_SSL");
}

#[test]
fn mistakes_are_named() {
    type Env<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&str, Env<'_>, &str)] = &[
        ("[server]\npgport = 1", &[], "FILE: unknown key server.pgport; did you mean server.pg_port?"),
        (
            "[archive]\ncommit_intervall = '1s'",
            &[],
            "FILE: unknown key archive.commit_intervall; did you mean archive.commit_interval?",
        ),
        ("zzz = 1", &[], "FILE: unknown key zzz"),
        ("[server]\npg_port = '5433'", &[], "FILE: server.pg_port must be a whole number, not string \"5433\""),
        (
            "[archive]\ncommit_interval = 'soon'",
            &[],
            "invalid settings: \"soon\" is not a duration; write it like \"250ms\", \"30s\" or \"1 hour\"",
        ),
        (
            "",
            &[("VIEWLEDGER_SERVER_PGPORT", "1")],
            "environment: unknown key VIEWLEDGER_SERVER_PGPORT; did you mean VIEWLEDGER_SERVER_PG_PORT?",
        ),
        (
            "",
            &[("VIEWLEDGER_SERVER_PG_PORT", "x")],
            "environment: VIEWLEDGER_SERVER_PG_PORT must be a whole number, not string \"x\"",
        ),
        (
            "[kafka.options]\n'isolation.level' = 'read_uncommitted'",
            &[],
            "invalid settings: kafka.options may not set isolation.level: exactness depends on it",
        ),
        (
            "[archive]\nretention = '25h'",
            &[],
            "invalid settings: archive.retention must be at most 24h: the archive's log remembers replaced files no longer",
        ),
        ("[refresh]\nthreads = 0", &[], "invalid settings: refresh.threads must be at least 1"),
    ];
    for (toml, env, expected) in cases {
        assert_eq!(load(toml, env).unwrap_err(), *expected, "for {toml:?} {env:?}");
    }
}

#[test]
fn durations_and_sizes() {
    assert_eq!(parse_duration("1 hour"), Some(Duration::from_secs(3600)));
    assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
    assert_eq!(parse_duration("0s"), None);
    assert_eq!(parse_duration("99999999999999999999s"), None);
    assert_eq!(parse_size("2GiB"), Some(2 << 30));
    assert_eq!(parse_size("17"), Some(17));
    assert_eq!(parse_size("2GB"), None);
}
