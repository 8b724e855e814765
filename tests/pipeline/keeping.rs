//! Small files of the archive are put together while it serves; what nobody needs any more goes, and nothing else.

use std::path::PathBuf;

use crate::server::Server;
use crate::world::{World, clicks, eventually};

const EPOCHS: usize = 12;

async fn keeping(retention: &str) -> World {
    let mut world = World::new(2).await;
    world.set("VIEWLEDGER_ARCHIVE_UPKEEP_INTERVAL", "100ms");
    world.set("VIEWLEDGER_ARCHIVE_RETENTION", retention);
    world
}

/// Writes records that are committed in epochs of their own, with a duplicate and a broken one in each.
async fn write_epochs(world: &World, server: &Server, prefix: &str, before: usize) -> usize {
    for n in 0..EPOCHS {
        let id = format!("{prefix}-{n}");
        let broken = [(0, Some(b"no json".to_vec()))];
        world.kafka.write(clicks(&id, 0, 5).into_iter().chain(clicks(&id, 1, 1)).chain(broken));
        server.until_passed(before + (n + 1) * 7).await;
        server.until_archived().await;
    }
    before + EPOCHS * 7
}

fn data_files(world: &World) -> Vec<PathBuf> {
    let root = world.path("data/archive/clicks");
    let folders = ["events", "duplicates", "quarantine"].map(|kind| root.join(kind));
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

async fn until_files(server: &Server, state: &str, count: usize) {
    let sql = format!("SELECT count(*) FROM system.files WHERE stream = 'clicks' AND state = '{state}'");
    server.until(&sql, &[count.to_string()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_put_together_while_records_come_in() {
    let world = keeping("300ms").await;
    let server = world.serve().await;
    let written = write_epochs(&world, &server, "a", 0).await;
    assert!(data_files(&world).len() >= 3 * EPOCHS, "nothing is put together before a generation holds it");
    let before = server.answers().await;
    server.refresh().await;
    until_files(&server, "live", 3).await;
    assert_eq!(server.answers().await, before);
    // What was replaced goes once nobody reads it.
    eventually("replaced files are deleted", async || match data_files(&world).len() {
        3 => Ok(()),
        files => Err(format!("{files} files")),
    })
    .await;
    assert_eq!(server.answers().await, before);

    let written = write_epochs(&world, &server, "b", written).await;
    server.assert_equivalent().await;
    server.refresh().await;
    server.assert_equivalent().await;
    let before = server.answers().await;
    eventually("files are put together again", async || match data_files(&world).len() {
        files if files <= 6 => Ok(()),
        files => Err(format!("{files} files")),
    })
    .await;
    server.stop().await;

    let server = world.serve().await;
    assert_eq!(server.answers().await, before);
    let passed = "SELECT sum(passed) FROM system.conservation WHERE stream = 'clicks'";
    assert_eq!(server.one(passed).await, written.to_string());
    // All views anew, from the files that were put together.
    server.rows("REFRESH MATERIALIZED VIEW pages WITH FULL DATA").await;
    assert_eq!(server.answers().await, before);
    server.assert_equivalent().await;
    // A key that was counted in a file that is gone is still known.
    world.kafka.write(clicks("a-0", 0, 5));
    server.until_passed(written + 5).await;
    assert_eq!(server.answers().await.iter().filter(|row| row.starts_with("a-0-")).count(), 5 + 5 + 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_files_and_orphans_are_shown_and_stay_for_a_while() {
    let world = keeping("1h").await;
    let server = world.serve().await;
    write_epochs(&world, &server, "a", 0).await;
    let small = data_files(&world).len();
    // What a crash leaves between the data file and its commit.
    let folder = world.path("data/archive/clicks/events");
    std::fs::write(folder.join("00000000000000000001-crashed.parquet"), b"half").unwrap();
    // A file of somebody else's.
    std::fs::write(folder.join("notes.txt"), b"mine").unwrap();
    server.refresh().await;
    until_files(&server, "live", 3).await;
    until_files(&server, "retired", small).await;
    let orphan = "SELECT path, bytes, kind, rows FROM system.files WHERE state = 'orphan'";
    assert_eq!(server.rows(orphan).await, ["archive/clicks/events/00000000000000000001-crashed.parquet|4|-|-"]);
    let spans = "SELECT kind, rows, epoch > first_epoch FROM system.files WHERE state = 'live' ORDER BY kind";
    assert_eq!(server.rows(spans).await, ["duplicate|12|t", "event|60|t", "quarantined|12|t"]);
    server.stop().await;
    // The log tells what was replaced, and when: a restart forgets nothing and hastens nothing.
    let server = world.serve().await;
    until_files(&server, "retired", small).await;
    until_files(&server, "orphan", 1).await;
    assert_eq!(data_files(&world).len(), 3 + small + 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_shown_and_the_others_are_put_together() {
    let world = keeping("300ms").await;
    let server = world.serve().await;
    write_epochs(&world, &server, "a", 0).await;
    // Nobody but compaction reads all of the duplicates.
    let mut files = data_files(&world);
    files.retain(|path| path.parent().unwrap().ends_with("duplicates"));
    files.sort();
    let good = std::fs::read(&files[0]).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 4;
    std::fs::write(&files[0], bad).unwrap();
    server.refresh().await;
    let shown = "SELECT count(*), min(fault), min(first_epoch) FROM system.files WHERE fault IS NOT NULL";
    server.until(shown, &["1|its content does not match its SHA-256|1"]).await;
    until_files(&server, "live", 4).await;
    assert_eq!(server.get("/healthz").await.unwrap().0, 200);
    // It stays known, round after round, until it was restored.
    server.until(shown, &["1|its content does not match its SHA-256|1"]).await;
    std::fs::write(&files[0], good).unwrap();
    server.until(shown, &["0|-|-"]).await;
    server.assert_equivalent().await;
    server.stop().await;
}
