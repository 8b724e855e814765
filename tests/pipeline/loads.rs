//! `COPY ... FROM STDIN`: what clients send into reference tables, and what they are told of what is wrong in it.

use bytes::Bytes;
use futures::{SinkExt, TryStreamExt};
use tokio_postgres::Client;

use crate::world::World;

const KINDS: &str = "\
-- One row has a value of each type.
CREATE TABLE kinds (
    id     TEXT PRIMARY KEY,
    small  INT,
    big    BIGINT,
    price  DECIMAL(18, 4),
    ratio  DOUBLE PRECISION,
    flag   BOOLEAN,
    since  TIMESTAMPTZ,
    day    DATE,
    CONSTRAINT not_negative CHECK (price >= 0)
);
";

const ALL: &str = "SELECT * FROM kinds ORDER BY id";

async fn world() -> World {
    let world = World::new(1).await;
    world.write_sql("tables/kinds.sql", KINDS);
    world
}

async fn load(client: &Client, sql: &str, data: impl Into<Bytes>) -> Result<u64, tokio_postgres::Error> {
    let sink = client.copy_in(sql).await?;
    let mut sink = Box::pin(sink);
    // In pieces that end anywhere.
    for piece in data.into().chunks(7) {
        sink.send(Bytes::copy_from_slice(piece)).await?;
    }
    sink.as_mut().finish().await
}

async fn copied(client: &Client, sql: &str) -> Bytes {
    let pieces: Vec<Bytes> = client.copy_out(sql).await.unwrap().try_collect().await.unwrap();
    pieces.concat().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_copy_wrote_another_reads_in_every_format() {
    let world = world().await;
    let server = world.serve().await;
    let client = server.connect().await.unwrap();
    let text = "a\t-7\t9000000000\t1.5\t0.1\tt\t2026-01-02 03:04:05.000006+00\t2026-01-02\n\
                b\\tc\\\\ d\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\n";
    assert_eq!(load(&client, "COPY kinds FROM STDIN", text).await.unwrap(), 2);
    let rows = server.rows(ALL).await;
    assert_eq!(rows[0], "a|-7|9000000000|1.5000|0.1|t|2026-01-02 03:04:05.000006+00|2026-01-02");
    assert_eq!(rows[1], "b\tc\\ d|-|-|-|-|-|-|-");
    for options in ["", "(FORMAT csv)", "(FORMAT csv, HEADER, DELIMITER ';', NULL '-')", "(FORMAT binary)"] {
        let written = copied(&client, &format!("COPY kinds TO STDOUT {options}")).await;
        server.rows("TRUNCATE kinds").await;
        let read = load(&client, &format!("COPY kinds FROM STDIN {options}"), written).await;
        assert_eq!(read.unwrap_or_else(|error| panic!("{options}: {error:?}")), 2, "{options}");
        assert_eq!(server.rows(ALL).await, rows, "{options}");
    }
    server.rows("TRUNCATE kinds").await;
    let csv = "id,flag\n\"two\nlines, \"\"quoted\"\"\",off\n\"\",\nlast,YES";
    assert_eq!(load(&client, "COPY kinds (id, flag) FROM STDIN WITH CSV HEADER", csv).await.unwrap(), 3);
    let told = server.rows("SELECT id, flag, big FROM kinds ORDER BY id").await;
    assert_eq!(told, ["|-|-", "last|t|-", "two\nlines, \"quoted\"|f|-"]);
    let history =
        "SELECT change, changed_rows, changed_by FROM system.table_versions ORDER BY version DESC LIMIT 1";
    assert_eq!(server.rows(history).await, ["COPY FROM|3|analyst"]);
    // More than one batch, and nothing at all.
    let many: String = (0..5_000).map(|n| format!("row {n}\t{n}\n")).collect();
    assert_eq!(
        load(&client, "COPY public.kinds (id, small) FROM STDIN", many + "\\.\nnever read").await.unwrap(),
        5_000
    );
    assert_eq!(load(&client, "COPY kinds FROM STDIN", "").await.unwrap(), 0);
    assert_eq!(server.one("SELECT sum(small) FROM kinds").await, "12497500");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_with_its_line_and_changes_nothing() {
    let world = world().await;
    let server = world.serve().await;
    let client = server.connect().await.unwrap();
    assert_eq!(load(&client, "COPY kinds (id) FROM STDIN", "there\n").await.unwrap(), 1);
    let wrong_binary = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\x01\xff\xff\xff".as_slice();
    for (columns, data, state, message, place) in [
        (
            "(id, small)",
            "a\t1\nb\tmany\n",
            "22P02",
            "type integer: \"many\"",
            "COPY kinds, line 2, column small: \"many\"",
        ),
        ("(id, small)", "a\t1\nb\tx\nc\n", "22P02", "type integer", "COPY kinds, line 2, column small: \"x\""),
        (
            "(id, small)",
            "a\t3000000000\n",
            "22003",
            "out of range for type integer",
            "COPY kinds, line 1, column small",
        ),
        (
            "(id, since)",
            "a\tsoon\n",
            "22007",
            "timestamp with time zone: \"soon\"",
            "COPY kinds, line 1, column since",
        ),
        ("(id, price)", "a\t123456789012345678\n", "22003", "numeric field overflow", "line 1, column price"),
        ("(id, flag)", "a\tmaybe\n", "22P02", "type boolean: \"maybe\"", "line 1, column flag"),
        ("(id, small)", "a\t1\nb\n", "22P04", "missing data for column \"small\"", "COPY kinds, line 2: \"b\""),
        ("(id, small)", "a\t1\t2\n", "22P04", "extra data after last expected column", "line 1: \"a\t1\t2\""),
        ("(id, small)", "a\t1\n\\N\t2\n", "23502", "null value in column \"id\"", "line 2, column id: null input"),
        ("(small)", "1\n", "23502", "null value in column \"id\"", "COPY kinds, line 1"),
        ("(id, price)", "a\t1\nb\t-1\n", "23514", "\"not_negative\"", ""),
        ("(id)", "a\nthere\n", "23505", "kinds_pkey", ""),
    ] {
        let sql = format!("COPY kinds {columns} FROM STDIN");
        refused(load(&client, &sql, data).await.unwrap_err(), (state, message, place), &sql);
    }
    for (sql, data, state, message, place) in [
        (
            "COPY kinds (id) FROM STDIN CSV",
            "a\n\"b\nc\n".as_bytes(),
            "22P04",
            "unterminated CSV quoted field",
            "line 3",
        ),
        ("COPY kinds (id) FROM STDIN", b"a\n\xff\n", "22021", "encoding \"UTF8\": 0xff", "COPY kinds, line 2"),
        ("COPY kinds (id) FROM STDIN (FORMAT binary)", b"nothing of the kind", "22P04", "signature", "line 1"),
        ("COPY kinds (id) FROM STDIN (FORMAT binary)", wrong_binary, "22P03", "column \"id\"", "line 1"),
        ("COPY kinds (id) FROM STDIN (FORMAT binary)", &wrong_binary[..22], "22P04", "unexpected EOF", "line 1"),
    ] {
        refused(load(&client, sql, data).await.unwrap_err(), (state, message, place), sql);
    }
    for (sql, state, message) in [
        ("COPY nothing FROM STDIN", "42P01", "nothing"),
        ("COPY pages FROM STDIN", "42809", "\"pages\" is not a reference table"),
        ("COPY raw.clicks FROM STDIN", "42501", "raw.clicks"),
        ("COPY kinds (id, id) FROM STDIN", "42701", "more than once"),
        ("COPY kinds (cost) FROM STDIN", "42703", "cost"),
        ("COPY kinds FROM '/etc/passwd'", "42501", "COPY from anything but STDIN"),
        ("COPY kinds FROM PROGRAM 'id'", "42501", "COPY from anything but STDIN"),
        ("COPY kinds FROM STDIN (FORMAT csv, FORCE_QUOTE (id))", "0A000", "force quote"),
    ] {
        let error = client.copy_in::<_, Bytes>(sql).await.err().unwrap_or_else(|| panic!("{sql} succeeded"));
        refused(error, (state, message, ""), sql);
    }
    client.batch_execute("SET default_transaction_read_only = on").await.unwrap();
    let error = load(&client, "COPY kinds FROM STDIN", "").await.unwrap_err();
    refused(error, ("25006", "COPY FROM in a read-only transaction", ""), "read only");
    client.batch_execute("RESET default_transaction_read_only").await.unwrap();
    // A client that gives up.
    let sink = client.copy_in::<_, Bytes>("COPY kinds (id) FROM STDIN").await.unwrap();
    let mut sink = Box::pin(sink);
    sink.send(Bytes::from_static(b"half\n")).await.unwrap();
    drop(sink);
    assert_eq!(server.rows("SELECT id FROM kinds").await, ["there"]);
    assert_eq!(client.query("SELECT 1 FROM kinds", &[]).await.unwrap().len(), 1, "the session goes on");
    assert_eq!(server.one("SELECT max(version) FROM system.table_versions").await, "1");
    server.stop().await;
}

fn refused(error: tokio_postgres::Error, (state, message, place): (&str, &str, &str), what: &str) {
    let told = error.as_db_error().unwrap_or_else(|| panic!("{what}: {error:?}"));
    assert_eq!(told.code().code(), state, "{what}: {told:?}");
    assert!(told.message().contains(message), "{what}: {told:?}");
    assert!(told.where_().unwrap_or_default().contains(place), "{what}: {told:?}");
}
