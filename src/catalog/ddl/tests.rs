#![allow(clippy::unwrap_used)]
use super::*;

fn stream_of(sql: &str) -> Stream {
    match parse("s.sql", sql).unwrap().remove(0) {
        Definition::Stream(stream) => stream,
        other => panic!("not a stream: {other:?}"),
    }
}

#[test]
fn a_stream_with_everything() {
    let stream = stream_of(
        "-- One row per click.\n-- Second line.\nCREATE STREAM clicks (\n  id UUID PRIMARY KEY,\n  page TEXT NOT NULL,\n  \
         at TIMESTAMPTZ NOT NULL,\n  ms INTEGER CHECK (ms BETWEEN 0 AND 10),\n  price DECIMAL(18, 9),\n  \
         tags TEXT[],\n  items ARRAY<STRUCT<sku TEXT, n BIGINT>>,\n  CONSTRAINT sane CHECK (at <= _produced_at)\n) \
         WITH (topic = 'clicks-v1', format = 'json', event_time = 'at');",
    );
    assert_eq!((stream.name.as_str(), stream.topic.as_str()), ("clicks", "clicks-v1"));
    assert_eq!((stream.key, stream.event_time), (Some(0), Some(2)));
    assert_eq!(stream.comment.as_deref(), Some("One row per click. Second line."));
    let checks: Vec<_> = stream.checks.iter().map(|c| (c.name.as_str(), c.sql.as_str())).collect();
    assert_eq!(checks, [("clicks_ms_check", "ms BETWEEN 0 AND 10"), ("sane", "at <= _produced_at")]);
    assert_eq!(
        stream.columns[6].kind,
        ColumnType::List(Box::new(ColumnType::Struct(vec![
            Column { name: "sku".into(), kind: ColumnType::Text, required: false },
            Column { name: "n".into(), kind: ColumnType::Int64, required: false },
        ])))
    );
    let required: Vec<_> = stream.columns.iter().filter(|c| c.required).map(|c| c.name.as_str()).collect();
    assert_eq!(required, ["id", "page", "at"]);
}

#[test]
fn a_view() {
    let sql = "CREATE MATERIALIZED VIEW v WITH (refresh_every = '1 hour') AS SELECT page, count(*) FROM raw.clicks GROUP BY page";
    let Definition::View(view) = parse("v.sql", sql).unwrap().remove(0) else { panic!("not a view") };
    let hour = RefreshEvery::Interval(std::time::Duration::from_secs(3600));
    assert_eq!((view.name.as_str(), view.refresh_every, view.billable), ("v", hour, false));
    let nightly = sql.replace("1 hour", "30 2 * * *");
    let Definition::View(view) = parse("v.sql", &nightly).unwrap().remove(0) else { panic!("not a view") };
    assert!(matches!(view.refresh_every, RefreshEvery::Cron(_)));
    let sql = sql.replace("'1 hour'", "'5s', billable = 'true'");
    let Definition::View(view) = parse("v.sql", &sql).unwrap().remove(0) else { panic!("not a view") };
    let often = RefreshEvery::Interval(std::time::Duration::from_secs(5));
    assert_eq!((view.refresh_every, view.billable), (often, true));
}

#[test]
fn an_ordinary_view() {
    let sql = "-- One row is one page.\nCREATE OR REPLACE VIEW Tops AS SELECT * FROM pages ORDER BY total LIMIT 3;";
    let Definition::Ordinary(view) = parse("v.sql", sql).unwrap().remove(0) else { panic!("not ordinary") };
    assert_eq!((view.name.as_str(), view.line), ("tops", 2));
    assert_eq!(view.comment.as_deref(), Some("One row is one page."));
}

#[test]
fn mistakes_are_placed() {
    let cases = [
        (
            "CREATE STREAM s (\n  a TEXT,\n  b MONEY\n) WITH (topic = 't')",
            "f.sql:3:3: column b: type MONEY is not understood; use TEXT, UUID",
        ),
        ("CREATE STREAM s (a TEXT)", "f.sql:1:1: stream s needs WITH (topic = '...')"),
        ("CREATE STREAM s (a TEXT, a TEXT) WITH (topic='t')", "f.sql:1:26: column a is declared twice"),
        (
            "CREATE STREAM s (_a TEXT) WITH (topic='t')",
            "f.sql:1:18: column _a: names that begin with _ belong to the engine",
        ),
        ("CREATE STREAM s (a TIMESTAMP) WITH (topic='t')", "f.sql:1:18: column a: write TIMESTAMPTZ"),
        ("CREATE STREAM s (a TEXT) WITH (topic='t', event_time='b')", "f.sql:1:43: no column b"),
        (
            "CREATE STREAM s (a TEXT) WITH (topic='t', event_time='a')",
            "f.sql:1:1: event_time column a must be TIMESTAMPTZ",
        ),
        (
            "CREATE STREAM s (a TEXT) WITH (topic='t', format='avro')",
            "f.sql:1:43: format \"avro\" is not understood; use 'json'",
        ),
        (
            "\n\nCREATE MATERIALIZED VIEW v AS SELEC 1",
            "f.sql:3:31: Expected: SELECT, VALUES, or a subquery in the query body, found: SELEC",
        ),
        (
            "CREATE MATERIALIZED VIEW v WITH (refresh_every='often') AS SELECT 1",
            "f.sql:1:34: \"often\" is not a duration",
        ),
        (
            "CREATE MATERIALIZED VIEW v WITH (refresh_every='* 25 * * *') AS SELECT 1",
            "f.sql:1:34: the hour of cron is 0 to 23",
        ),
        (
            "CREATE MATERIALIZED VIEW v WITH (billable='perhaps') AS SELECT 1",
            "f.sql:1:34: billable is 'true' or 'false', not \"perhaps\"",
        ),
        (
            "CREATE MATERIALIZED VIEW v WITH (often='1s') AS SELECT 1",
            "f.sql:1:34: unknown option often; a view takes refresh_every and billable",
        ),
        (
            "CREATE VIEW v WITH (refresh_every='1s') AS SELECT 1",
            "f.sql:1:21: unknown option refresh_every; an ordinary view",
        ),
        ("CREATE VIEW v (a) AS SELECT 1", "f.sql:1:1: write the names of a view's columns in its SELECT"),
        ("CREATE TEMPORARY VIEW v AS SELECT 1", "f.sql:1:1: write CREATE VIEW or CREATE MATERIALIZED VIEW"),
        (
            "CREATE VIEW raw.v AS SELECT 1",
            "f.sql:1:1: raw.v: what is in schema raw is made by the engine; choose another schema",
        ),
        (
            "DROP TABLE x",
            "f.sql:1:1: only CREATE STREAM, CREATE TABLE, CREATE MATERIALIZED VIEW, CREATE VIEW and CREATE FUNCTION are understood here",
        ),
        ("CREATE STREAM s (a 'x", "f.sql:1:20: Unterminated string literal"),
    ];
    for (sql, expected) in cases {
        let fault = parse("f.sql", sql).unwrap_err().to_string();
        assert!(fault.starts_with(expected), "{sql:?} gave {fault:?}");
    }
}

#[test]
fn a_table() {
    let sql = "-- One row is one rate.\nCREATE TABLE rates (\n  country TEXT,\n  valid_from TIMESTAMPTZ,\n  rate DECIMAL(18, 9) \
               NOT NULL CHECK (rate >= 0),\n  PRIMARY KEY (country, valid_from)\n)";
    let Definition::Table(table) = parse("t.sql", sql).unwrap().remove(0) else { panic!("not a table") };
    assert_eq!((table.name.as_str(), table.key.as_slice(), table.line), ("rates", [0, 1].as_slice(), 2));
    assert_eq!(table.comment.as_deref(), Some("One row is one rate."));
    assert_eq!(table.key_names(), ["country", "valid_from"]);
    assert!(table.columns.iter().all(|column| column.required), "the key is NOT NULL");
    assert_eq!(table.checks[0].name, "rates_rate_check");
    assert!(!table.schema().field(0).is_nullable());
    for (sql, expected) in [
        ("CREATE TABLE t (a TEXT,\n  b TEXT[])", "f.sql:2:3: column b: a table has no arrays and structs"),
        ("CREATE TABLE t AS SELECT 1", "f.sql:1:1: table t: write its columns, and fill it with INSERT"),
        ("CREATE TABLE IF NOT EXISTS t (a TEXT)", "f.sql:1:1: write CREATE TABLE without"),
        (
            "CREATE TABLE t (a TEXT) WITH (topic = 't')",
            "f.sql:1:31: unknown option topic; a table takes append_only",
        ),
        ("CREATE TABLE t (a TEXT, PRIMARY KEY (b))", "f.sql:1:38: no column b"),
        ("CREATE TABLE t (a TEXT PRIMARY KEY, PRIMARY KEY (a))", "f.sql:1:50: a table has one PRIMARY KEY"),
        ("CREATE TABLE t (a TEXT DEFAULT 'x')", "f.sql:1:17: column a: DEFAULT 'x' is not understood in a table"),
        ("CREATE TABLE \"t@1\" (a TEXT)", "f.sql:1:1: table t@1: a name has no @"),
        (
            "CREATE STREAM s (a TEXT, b TEXT, PRIMARY KEY (a, b)) WITH (topic='t')",
            "f.sql:1:47: PRIMARY KEY of a stream",
        ),
    ] {
        let fault = parse("f.sql", sql).unwrap_err().to_string();
        assert!(fault.starts_with(expected), "{sql:?} gave {fault:?}");
    }
}
