#![allow(clippy::unwrap_used)]

use super::*;
use crate::serve::session::write::WriteKind;
use crate::tables::change::OnConflict;

fn parse(sql: &str) -> Result<Vec<Statement>, QueryError> {
    StatementParser::new(&Limits::default()).parse(sql)
}

fn state(sql: &str) -> &'static str {
    parse(sql).unwrap_err().state.0
}

#[test]
fn statements_are_cut_at_semicolons_outside_strings() {
    assert_eq!(parse(" ; ;").unwrap().len(), 0);
    assert_eq!(parse("SELECT ';' ; -- ;\n SELECT 2;").unwrap().len(), 2);
}

#[test]
fn session_statements_are_recognised() {
    assert!(matches!(&parse("refresh materialized view concurrently public.Sales with data").unwrap()[0],
        Statement::Refresh(view, RefreshScope::New) if view == "sales"));
    assert!(matches!(&parse("REFRESH MATERIALIZED VIEW sales WITH FULL DATA").unwrap()[0],
        Statement::Refresh(view, RefreshScope::Full) if view == "sales"));
    assert!(parse("REFRESH MATERIALIZED VIEW sales WITH EMPTY DATA").is_err());
    let change = |sql: &str| match parse(sql).unwrap().pop() {
        Some(Statement::Define(change)) => change,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        change("alter materialized view public.Sales set (version = 2);"),
        ViewChange::Promote { view: "sales".into(), version: 2 }
    );
    assert_eq!(change("DROP MATERIALIZED VIEW \"sales@2\""), ViewChange::Drop { view: "sales@2".into() });
    assert_eq!(
        change("SELECT 1; create or replace materialized view v AS SELECT 'ä;' ; "),
        ViewChange::Create {
            statement: "create or replace materialized view v AS SELECT 'ä;'".into(),
            replace: true
        }
    );
    for wrong in ["ALTER MATERIALIZED VIEW v SET (version = x)", "DROP MATERIALIZED VIEW a, b"] {
        assert_eq!(state(wrong), "42601");
    }
    assert!(matches!(&parse("SET LOCAL statement_timeout = 500").unwrap()[0],
        Statement::Set { name, value: Some(value), scope: SetScope::Local }
            if name == "statement_timeout" && value == "500"));
    assert!(matches!(&parse("set search_path to speed, public").unwrap()[0],
        Statement::Set { value: Some(value), .. } if value == "speed, public"));
    assert!(matches!(&parse("SHOW TIME ZONE").unwrap()[0], Statement::Show(Some(name)) if name == "timezone"));
    assert!(matches!(&parse("BEGIN READ ONLY").unwrap()[0], Statement::Begin { read_only: true }));
    assert!(matches!(&parse("START TRANSACTION").unwrap()[0], Statement::Begin { read_only: false }));
    assert!(matches!(&parse("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY").unwrap()[0],
        Statement::Set { name, value: Some(value), scope: SetScope::Session }
            if name == "default_transaction_read_only" && value == "on"));
    assert!(matches!(&parse("end").unwrap()[0], Statement::Commit));
    assert!(matches!(&parse("DEALLOCATE ALL").unwrap()[0], Statement::Deallocate(None)));
    assert!(matches!(&parse("DISCARD ALL").unwrap()[0], Statement::Discard { all: true }));
}

#[test]
fn everything_that_writes_elsewhere_than_to_reference_tables_is_refused() {
    for sql in [
        "COPY (SELECT 1) TO '/tmp/x'",
        "COPY t FROM '/etc/passwd'",
        "CREATE TABLE t AS SELECT 1",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "DROP TABLE t",
        "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE",
        "SELECT 1 INTO t",
        "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
        "ALTER TABLE t ADD c int",
        "DO $$ x $$",
        "SELECT a FROM t FOR UPDATE",
        "INSERT INTO t SELECT a FROM t FOR UPDATE",
    ] {
        assert_eq!(state(sql), "42501", "{sql}");
    }
    assert!(parse("EXPLAIN ANALYZE COPY (SELECT 1) TO '/tmp/x'").is_err());
}

#[test]
fn changes_of_tables_are_recognised() {
    let write = |sql: &str| match parse(sql).unwrap().pop() {
        Some(Statement::Write(write)) => write,
        other => panic!("{other:?}"),
    };
    let conflict = |sql: &str| match write(sql).kind {
        WriteKind::Insert(conflict) => conflict,
        other => panic!("{other:?}"),
    };
    for (sql, tag, kind) in [
        ("INSERT INTO public.T SELECT 1", "INSERT", WriteKind::Insert(OnConflict::Fail)),
        ("UPDATE t SET a = 1 WHERE b = 2", "UPDATE", WriteKind::Update),
        ("DELETE FROM viewledger.public.t", "DELETE", WriteKind::Delete),
        ("TRUNCATE t", "TRUNCATE TABLE", WriteKind::Truncate),
    ] {
        let write = write(sql);
        assert_eq!((write.query.tag, write.table("public").unwrap()), (tag, "t".to_owned()));
        assert_eq!(write.kind, kind);
    }
    let insert = "INSERT INTO t VALUES (1) ON CONFLICT";
    assert_eq!(conflict(&format!("{insert} DO NOTHING")), OnConflict::Skip(None));
    assert_eq!(conflict(&format!("{insert} (A) DO NOTHING")), OnConflict::Skip(Some(vec!["a".into()])));
    assert_eq!(
        conflict(&format!("{insert} (a) DO UPDATE SET b = EXCLUDED.b, c = excluded.c")),
        OnConflict::Update { key: vec!["a".into()], columns: vec!["b".into(), "c".into()] }
    );
    assert_eq!(write("DELETE FROM speed.t").table("public").unwrap_err().state.0, "42501");
    assert_eq!(write("DELETE FROM t").table("raw").unwrap_err().state.0, "42501");
    for refused in [
        "INSERT INTO t VALUES (1) RETURNING a",
        "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 1",
        "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = EXCLUDED.b WHERE t.b > 1",
        "TRUNCATE a, b",
    ] {
        assert_eq!(state(refused), "0A000", "{refused}");
    }
    assert_eq!(state("UPDATE t SET _row = 1"), "42703");
}

#[test]
fn syntax_errors_know_their_place_in_the_whole_text() {
    let error = parse("SELECT 1;\nSELEC 2").unwrap_err();
    assert_eq!((error.state.0, error.position), ("42601", Some(11)));
    assert_eq!(parse("SELECT 'abc").unwrap_err().state.0, "42601");
    assert_eq!(parse("SELECT 1 FROM").unwrap_err().position, Some(14));
}

#[test]
fn deep_statements_are_refused_and_wide_ones_are_not() {
    let chain = |terms: usize| format!("SELECT {}", vec!["1"; terms].join(" + "));
    assert!(parse(&chain(400)).is_ok());
    assert_eq!(state(&chain(20_000)), "54001");
    assert_eq!(state(&format!("SELECT {}", "(".repeat(5_000))), "54001");
    assert_eq!(state(&format!("SELECT {} 1", "NOT ".repeat(20_000))), "54001");
    assert_eq!(state(&vec!["SELECT 1"; 2_000].join(" UNION ALL ")), "54001");
    for (open, close) in [
        ("abs(", ")"),
        ("(", ")"),
        ("ARRAY[", "]"),
        ("CAST(", " AS int)"),
        ("(SELECT ", ")"),
        ("CASE WHEN true THEN ", " END"),
        ("coalesce(1, ", ")"),
        ("NOT (", ")"),
    ] {
        let started = std::time::Instant::now();
        let sql = format!("SELECT {}1{}", open.repeat(40), close.repeat(40));
        assert!(parse(&sql).is_ok(), "{open}: {:?}", parse(&sql).err());
        assert!(started.elapsed().as_secs() < 2, "{open} takes {:?}", started.elapsed());
    }
    for (open, close) in [("(", ")"), ("(SELECT * FROM ", ")"), ("LATERAL (SELECT * FROM ", ") x")] {
        let started = std::time::Instant::now();
        let _ = parse(&format!("SELECT * FROM {}t{}", open.repeat(40), close.repeat(40)));
        assert!(started.elapsed().as_secs() < 2, "FROM {open} takes {:?}", started.elapsed());
    }
    let list = (0..20_000).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    assert!(parse(&format!("SELECT 1 IN ({list})")).is_ok());
    assert_eq!(state(&format!("SELECT '{}'", "x".repeat(2 << 20))), "54000");
}
