//! What a query reads: one snapshot a transaction, older generations on request, and the certificate of either.

use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::Int64Type;
use serde_json::Value;
use viewledger::app::Core;
use viewledger::app::database::Merged;
use viewledger::runtime::Shutdown;
use viewledger::serve::{DATABASE, Database};

use crate::server::{Ask, rows};
use crate::world::{World, click, clicks};

const COUNTS: &str = "SELECT (SELECT sum(total) FROM pages) AS pages, (SELECT count(*) FROM raw.clicks) AS raw, \
                      (SELECT count(*) FROM raw.clicks_duplicates) AS duplicates, \
                      (SELECT count(*) FROM quarantine.clicks) AS quarantined";

async fn write(world: &World, server: &Ask, prefix: &str, passed: &mut usize) {
    let mut records = clicks(prefix, 0, 10);
    // A duplicate, a record that breaks a rule, and one in the other partition.
    records.extend([
        (0, click(&format!("{prefix}-0"), "a", 10)),
        (0, None),
        (1, click(&format!("{prefix}-x"), "c", 1)),
    ]);
    *passed += records.len();
    world.kafka.write(records);
    server.until_passed(*passed).await;
    server.until_archived().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_reads_one_snapshot_with_its_certificate() {
    let mut world = World::new(2).await;
    world.set("VIEWLEDGER_REFRESH_GENERATIONS_KEEP", "1");
    let server = world.serve().await;
    let mut passed = 0;
    write(&world, &server, "a", &mut passed).await;
    server.refresh().await;
    let client = server.connect().await.unwrap();
    let ask = async |sql: &str| rows(&client, sql).await.unwrap().remove(0);
    server.until("SELECT bool_and(complete) FROM system.snapshot", &["t"]).await;

    rows(&client, "BEGIN").await.unwrap();
    let certificate = ask("SHOW viewledger.snapshot").await;
    assert_eq!(ask(COUNTS).await, "11|11|1|1");
    for prefix in ["b", "c", "d"] {
        write(&world, &server, prefix, &mut passed).await;
        server.refresh().await;
        assert_eq!(ask(COUNTS).await, "11|11|1|1");
        assert_eq!(ask("SELECT DISTINCT generation FROM system.snapshot").await, "1");
    }
    let refused = rows(&client, "SET viewledger.as_of = '4'; SELECT count(*) FROM pages").await.unwrap_err();
    assert!(refused.contains("25001") && refused.contains("COMMIT"), "{refused}");
    rows(&client, "ROLLBACK").await.unwrap();
    rows(&client, "RESET viewledger.as_of").await.unwrap();
    assert_eq!(ask(COUNTS).await, "44|44|4|4");

    let held: Value = serde_json::from_str(&certificate).unwrap();
    assert_eq!((held["generation"].clone(), held["complete"].clone()), (1.into(), true.into()), "{certificate}");
    assert_eq!(held["streams"]["clicks"]["frontier"]["0"], 12, "{certificate}");
    assert_eq!(held["streams"]["clicks"]["end"]["1"], 1, "{certificate}");
    assert_eq!(held["streams"]["clicks"]["lag"]["0"], 0, "{certificate}");
    assert!(held["streams"]["clicks"]["archive_version"].as_u64().unwrap() > 0, "{certificate}");

    let (code, head, body) = server.get_whole("/snapshot").await.unwrap();
    let now: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, now["generation"].clone(), now["as_of"].clone()), (200, 4.into(), false.into()), "{body}");
    assert!(head.contains("viewledger-generation: 4") && head.contains("viewledger-complete: true"), "{head}");
    let (_, head, _) = server.get_whole("/readyz").await.unwrap();
    assert!(head.contains("viewledger-generation: 4"), "{head}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_generations_are_read_as_they_were_until_they_are_collected() {
    let mut world = World::new(2).await;
    world.set("VIEWLEDGER_REFRESH_GENERATIONS_KEEP", "3");
    let server = world.serve().await;
    let mut passed = 0;
    for prefix in ["a", "b", "c", "d"] {
        write(&world, &server, prefix, &mut passed).await;
        server.refresh().await;
    }
    write(&world, &server, "e", &mut passed).await;
    check_as_of(&server).await;
    server.stop().await;

    // An attempt that crashed has left a file of the newest generation; the next start collects it.
    let orphan = world.path("data/views/pages/00000000000000000004-0-crashed.parquet");
    std::fs::write(&orphan, "half a file").unwrap();
    let server = world.serve().await;
    assert!(!orphan.exists());
    check_as_of(&server).await;
    // Only files that can be read are left: those of three generations.
    let named: usize = server.one("SELECT count(*) FROM system.views").await.parse().unwrap();
    assert!(world.batch_files() >= named);
    server.stop().await;

    world.set("VIEWLEDGER_REFRESH_GENERATIONS_KEEP", "1");
    let server = world.serve().await;
    assert_eq!(server.one("SELECT min(generation), max(generation) FROM system.generations").await, "4|4");
    let runs = server.one("SELECT sum(batch_runs) FROM system.views").await;
    assert_eq!(world.batch_files().to_string(), runs, "files that no generation names are left");
    server.stop().await;
}

/// What a start can answer before it has computed what came since the generation, and what not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_views_are_read_before_the_delta_is_there() {
    let world = World::new(2).await;
    let server = world.serve().await;
    let mut passed = 0;
    write(&world, &server, "a", &mut passed).await;
    server.refresh().await;
    write(&world, &server, "b", &mut passed).await;
    server.stop().await;

    let core = Core::begin(world.config(), Shutdown::default()).await.unwrap();
    let database = Merged::new(&core);
    let ask = async |sql: &str| {
        let session = database.session();
        session.register_catalog(DATABASE, database.pin().unwrap());
        let batches = session.sql(sql).await.map_err(|error| error.to_string())?.collect().await;
        let batches = batches.map_err(|error| error.to_string())?;
        Ok::<i64, String>(batches[0].column(0).as_primitive::<Int64Type>().value(0))
    };
    assert_eq!(ask("SELECT sum(total) FROM batch.pages").await, Ok(11));
    assert_eq!(ask("SELECT count(*) FROM raw.clicks").await, Ok(22));
    for view in ["pages", "speed.pages"] {
        let refused = ask(&format!("SELECT sum(total) FROM {view}")).await.unwrap_err();
        assert!(refused.contains("view pages is not whole yet"), "{refused}");
    }
    let ready = database.readiness();
    assert!(!ready.ready && ready.reasons.iter().any(|reason| reason.contains("being computed")), "{ready:?}");
    let json = database.certificate(database.pin().unwrap().as_ref()).unwrap().json;
    assert!(json.contains("what came since the generation is being computed"), "{json}");
    core.restore().await.unwrap();
    assert_eq!(ask("SELECT sum(total) FROM pages").await, Ok(22));
}

/// Generations 2 to 4 can be read, and so can the present.
async fn check_as_of(server: &Ask) {
    let client = server.connect().await.unwrap();
    let ask = async |sql: &str| rows(&client, sql).await.unwrap().remove(0);
    assert_eq!(
        server.rows("SELECT generation, current FROM system.generations ORDER BY 1").await,
        ["2|f", "3|f", "4|t"]
    );
    for generation in [2, 3, 4] {
        rows(&client, &format!("SET viewledger.as_of = '{generation}'")).await.unwrap();
        let (counted, others) = (generation * 11, generation);
        assert_eq!(ask(COUNTS).await, format!("{counted}|{counted}|{others}|{others}"));
        assert_eq!(
            ask("SELECT count(*), (SELECT sum(total) FROM batch.pages) FROM speed.pages").await,
            format!("0|{counted}")
        );
        let pages = "SELECT count(*) FROM (SELECT page, total, spent, visitors FROM pages EXCEPT SELECT page, count(*), \
                     sum(ms), approx_distinct(who) FROM raw.clicks GROUP BY page) d";
        assert_eq!(ask(pages).await, "0");
        let certificate: Value = serde_json::from_str(&ask("SHOW viewledger.snapshot").await).unwrap();
        assert_eq!(
            (certificate["generation"].clone(), certificate["as_of"].clone()),
            (generation.into(), true.into())
        );
        assert_eq!(certificate["complete"], false, "what came later is not read: {certificate}");
    }
    let third = server.one("SELECT max(created_at) FROM system.generations WHERE generation = 3").await;
    rows(&client, &format!("SET viewledger.as_of = '{third}'")).await.unwrap();
    assert_eq!(ask("SELECT sum(total) FROM pages").await, "33");
    for (wrong, told) in
        [("1", "generations 2 (of "), ("2001-02-03", "as old as 2001-02-03"), ("soon", "neither a generation")]
    {
        let refused = rows(&client, &format!("SET viewledger.as_of = '{wrong}'")).await.unwrap_err();
        assert!(refused.contains(told) && refused.contains("22023"), "{wrong}: {refused}");
    }
    assert_eq!(ask("SHOW viewledger.as_of").await, third, "a refused value changes nothing");
    rows(&client, "RESET viewledger.as_of").await.unwrap();
    assert_eq!(ask(COUNTS).await, "55|55|5|5");
}

/// A view that is new has no past, and one that was changed answers by the definition that it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_is_read_by_the_definitions_that_it_was_made_with() {
    let world = World::new(2).await;
    let server = world.serve().await;
    let mut passed = 0;
    write(&world, &server, "a", &mut passed).await;
    server.refresh().await;
    server.stop().await;
    let pages = "SELECT page, count(*) AS total FROM raw.clicks WHERE page <> 'a' GROUP BY page";
    world.write_sql("views/pages.sql", &crate::world::view_sql("pages", pages));
    world.write_sql("views/later.sql", &crate::world::view_sql("later", &pages.replace("page <> 'a'", "ms > 1")));
    let server = world.serve().await;
    let client = server.connect().await.unwrap();
    rows(&client, "SET viewledger.as_of = 1").await.unwrap();
    assert_eq!(rows(&client, "SELECT sum(total) FROM pages").await.unwrap(), ["11"]);
    let new = rows(&client, "SELECT * FROM later").await.unwrap_err();
    assert!(new.contains("generation 1 was made before there was a view later"), "{new}");
    assert_eq!(rows(&client, "SELECT sum(total) FROM page_hours").await.unwrap(), ["11"]);
    rows(&client, "SET viewledger.as_of = 2").await.unwrap();
    assert_eq!(rows(&client, "SELECT sum(total) FROM pages").await.unwrap(), ["7"]);
    // Whose definition is not kept up to date any more.
    server.rows("DROP MATERIALIZED VIEW \"pages@1\"").await;
    rows(&client, "SET viewledger.as_of = 1").await.unwrap();
    let retired = rows(&client, "SELECT * FROM pages").await.unwrap_err();
    assert!(retired.contains("generation 1 holds view pages by a definition that is not kept"), "{retired}");
    server.stop().await;
}
