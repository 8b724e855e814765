//! Several versions of a view side by side: built, compared, promoted, gone back to and dropped while records come in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::server::{Ask, rows};
use crate::world::{VIEWS, World, clicks, difference, view_sql};

const HALVES: &str = "SELECT (SELECT sum(total) FROM batch.\"pages@2\") AS batch, \
                      (SELECT sum(total) FROM speed.\"pages@2\") AS speed, \
                      (SELECT sum(total) FROM \"pages@2\") AS merged";

/// Counts only what took long, and shows another column.
const SECOND: &str = "SELECT page, count(*) FILTER (WHERE ms >= 10) AS total, max(id) AS last_id FROM raw.clicks \
                      WHERE page <> 'b' GROUP BY page";

fn create(query: &str) -> String {
    format!("CREATE OR REPLACE MATERIALIZED VIEW pages WITH (refresh_every = '1 hour') AS {query}")
}

/// Both versions are what their queries say, in one snapshot each.
async fn assert_both(server: &Ask, first: &str, second: &str) {
    assert_eq!(server.rows(&difference(first, VIEWS[0].1)).await, Vec::<String>::new());
    assert_eq!(server.rows(&difference(second, SECOND)).await, Vec::<String>::new());
}

async fn versions(server: &Ask) -> Vec<String> {
    server
        .rows("SELECT version, state, readable, in_file FROM system.view_versions WHERE view = 'pages' ORDER BY 1")
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_built_compared_promoted_and_gone_back_to() {
    let world = World::new(2).await;
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 30));
    server.until_passed(30).await;
    server.until_archived().await;
    server.refresh().await;
    // In the delta, archived or not.
    world.kafka.write(clicks("b", 1, 9));
    server.until_passed(39).await;

    // Records go on coming while it is built, and the first version answers in full all the time.
    let done = Arc::new(AtomicBool::new(false));
    let ask = *server;
    let reader = tokio::spawn({
        let done = Arc::clone(&done);
        async move {
            let client = ask.connect().await.unwrap();
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let now: i64 = rows(&client, "SELECT sum(total) FROM pages").await.unwrap()[0].parse().unwrap();
                assert!(now >= last && now >= 39, "{now} after {last}");
                last = now;
            }
        }
    });
    let mut passed = 39;
    for round in 0..5 {
        world.kafka.write(clicks(&format!("c{round}"), round % 2, 6));
        passed += 6;
        if round == 2 {
            assert_eq!(server.rows(&create(SECOND)).await, Vec::<String>::new());
            assert_both(&server, "pages", "\"pages@2\"").await;
        }
    }
    server.until_passed(passed).await;
    done.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    assert_both(&server, "\"pages@1\"", "\"pages@2\"").await;
    assert_eq!(versions(&server).await, ["1|current|t|t", "2|standby|t|f"]);
    let halves = server.one(HALVES).await;
    let halves: Vec<i64> = halves.split('|').map(|half| half.parse().unwrap()).collect();
    assert_eq!(halves[0] + halves[1], halves[2]);

    let differing =
        "SELECT page, total_1, total_2 IS NULL AS gone FROM system.view_diff('pages', 1, 2) ORDER BY page";
    assert_eq!(server.rows(differing).await, ["b|23|t"], "the same total for a and c: {SECOND}");
    world.kafka.write([(0, crate::world::click("short", "a", 5))]);
    passed += 1;
    server.until_passed(passed).await;
    assert_eq!(server.rows(differing).await, ["a|24|f", "b|23|t"]);
    for (wrong, told) in [
        ("SELECT * FROM view_diff('pages', 1, 3)", "version 3 of view pages is not kept"),
        ("SELECT * FROM view_diff('pages', 1, 1)", "two versions"),
        ("SELECT * FROM view_diff('pages')", "view_diff takes a view"),
    ] {
        let refused = server.try_rows(wrong).await.unwrap_err();
        assert!(refused.contains(told), "{refused}");
    }

    server.rows("ALTER MATERIALIZED VIEW pages SET (version = 2)").await;
    assert_both(&server, "\"pages@1\"", "pages").await;
    assert_eq!(versions(&server).await, ["1|standby|t|t", "2|current|t|f"]);
    // What was current then is what the name stood for then.
    let client = server.connect().await.unwrap();
    rows(&client, "SET viewledger.as_of = 1").await.unwrap();
    assert_eq!(rows(&client, "SELECT sum(total) FROM pages").await.unwrap(), ["30"]);
    server.stop().await;

    // The choice outlives the process, though the file says otherwise; and each half goes on.
    let server = world.serve().await;
    assert_eq!(versions(&server).await, ["1|standby|t|t", "2|current|t|f"]);
    world.kafka.write(clicks("d", 0, 12));
    passed += 12;
    server.until_passed(passed).await;
    server.refresh().await;
    assert_both(&server, "\"pages@1\"", "pages").await;
    let differing = "SELECT sum(differing) FROM system.reconciliation";
    assert_eq!(server.one(differing).await, "0");

    server.rows("ALTER MATERIALIZED VIEW pages SET (version = 1)").await;
    assert_both(&server, "pages", "\"pages@2\"").await;
    server.rows("DROP MATERIALIZED VIEW \"pages@2\"").await;
    assert_eq!(versions(&server).await, ["1|current|t|t", "2|retired|f|f"]);
    assert!(server.try_rows("SELECT * FROM \"pages@2\"").await.is_err());
    // Promoting it builds it again.
    server.rows("ALTER MATERIALIZED VIEW pages SET (version = 2)").await;
    assert_both(&server, "\"pages@1\"", "pages").await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_of_a_session_comes_stays_and_goes() {
    let world = World::new(1).await;
    world.write_sql("views/top.sql", "CREATE VIEW top AS SELECT page, slow FROM pages;\n");
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 9));
    server.until_passed(9).await;
    let by_who = "-- One row is one id.\nCREATE MATERIALIZED VIEW ids AS SELECT id, count(*) AS n FROM raw.clicks GROUP BY id";
    server.rows(by_who).await;
    assert_eq!(server.one("SELECT count(*), sum(n) FROM ids").await, "9|9");
    world.kafka.write(clicks("b", 0, 9));
    server.until("SELECT count(*), sum(n) FROM ids", &["18|18"]).await;
    for (wrong, told) in [
        (by_who, "already exists"),
        (
            "CREATE MATERIALIZED VIEW top AS SELECT page, count(*) AS n FROM raw.clicks GROUP BY page",
            "already exists",
        ),
        ("CREATE MATERIALIZED VIEW x AS SELECT page, count(*) AS n FROM raw.nothing GROUP BY page", "nothing"),
        ("CREATE MATERIALIZED VIEW x AS SELECT page FROM raw.clicks", "has no aggregate"),
        ("ALTER MATERIALIZED VIEW ids SET (version = 7)", "no version 7; there are 1"),
        ("ALTER MATERIALIZED VIEW x SET (version = 1)", "does not exist"),
        ("DROP MATERIALIZED VIEW pages", "views/pages.sql:1"),
        ("DROP MATERIALIZED VIEW \"ids@1\"", "promote another first"),
        ("BEGIN; DROP MATERIALIZED VIEW ids", "transaction block"),
    ] {
        let refused = server.try_rows(wrong).await.unwrap_err();
        assert!(refused.contains(told), "{wrong}: {refused}");
    }
    // An ordinary view reads a column that the new version has not.
    server.rows(&create(SECOND)).await;
    let refused = server.try_rows("ALTER MATERIALIZED VIEW pages SET (version = 2)").await.unwrap_err();
    assert!(refused.contains("views/top.sql") && refused.contains("slow"), "{refused}");
    assert_eq!(server.one("SELECT count(*) FROM top").await, "3");
    server.stop().await;

    let server = world.serve().await;
    assert_eq!(server.one("SELECT count(*), sum(n) FROM ids").await, "18|18");
    assert_eq!(server.one("SELECT obj_description('ids'::regclass)").await, "One row is one id.");
    server.rows("DROP MATERIALIZED VIEW ids").await;
    assert!(server.try_rows("SELECT * FROM ids").await.is_err());
    let evidence = "SELECT state, created_by, statement FROM system.view_versions WHERE view = 'ids'";
    assert_eq!(server.one(evidence).await, format!("retired|analyst|{by_who}"));
    server.stop().await;
}

/// What is tried out must not decide about records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_on_standby_that_cannot_take_a_record_is_given_up() {
    let world = World::new(1).await;
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 9));
    server.until_passed(9).await;
    server.rows(&create("SELECT page, sum(100 / (ms - 7)) AS total FROM raw.clicks GROUP BY page")).await;
    assert_eq!(server.one("SELECT sum(total) FROM \"pages@2\"").await, "297");
    world.kafka.write([(0, crate::world::click("bad", "a", 7))]);
    server.until_passed(10).await;
    assert_eq!(server.one("SELECT sum(total) FROM pages").await, "10");
    assert_eq!(server.one("SELECT count(*) FROM quarantine.clicks").await, "0");
    assert!(server.try_rows("SELECT * FROM \"pages@2\"").await.is_err());
    server.refresh().await;
    assert_eq!(versions(&server).await, ["1|current|t|t", "2|retired|f|f"]);
    // Nor can it come back.
    let refused = server.try_rows("ALTER MATERIALIZED VIEW pages SET (version = 2)").await.unwrap_err();
    assert!(refused.contains("nothing was changed") && refused.contains("zero"), "{refused}");
    server.assert_equivalent().await;
    server.stop().await;
    let server = world.serve().await;
    server.assert_equivalent().await;
    server.stop().await;
}

/// Changing a file is asking for what it says, from the next start on; what it said before can be gone back to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_is_a_new_version() {
    let world = World::new(1).await;
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 9));
    server.until_passed(9).await;
    server.refresh().await;
    server.stop().await;
    world.write_sql("views/pages.sql", &view_sql("pages", SECOND));
    let server = world.serve().await;
    assert_eq!(versions(&server).await, ["1|standby|t|f", "2|current|t|t"]);
    assert_both(&server, "\"pages@1\"", "pages").await;
    server.rows("ALTER MATERIALIZED VIEW pages SET (version = 1)").await;
    assert_both(&server, "pages", "\"pages@2\"").await;
    server.stop().await;
    let server = world.serve().await;
    assert_eq!(versions(&server).await, ["1|current|t|f", "2|standby|t|t"]);
    server.stop().await;
}
