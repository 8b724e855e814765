//! Files that were damaged or lost: the query that needs one fails and names it, and everything else goes on.

use std::path::{Path, PathBuf};

use crate::server::Server;
use crate::world::{World, clicks};

/// The newest file below a folder of the data directory.
fn a_file(world: &World, folder: &str) -> PathBuf {
    let entries = std::fs::read_dir(world.path("data").join(folder)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.pop().expect("no file")
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    std::fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 20]).unwrap();
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

async fn with_data(world: &World) -> Server {
    let server = world.serve().await;
    world.kafka.write(clicks("c", 0, 30));
    server.until_passed(30).await;
    server.until_archived().await;
    server.refresh().await;
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_needs_a_damaged_file_names_it() {
    let world = World::new(1).await;
    let server = with_data(&world).await;
    for (folder, needs, spared) in [
        ("archive/clicks/events", "SELECT count(ms), max(id) FROM raw.clicks", "SELECT sum(total) FROM pages"),
        ("views/pages", "SELECT sum(total), sum(spent) FROM pages", "SELECT count(ms) FROM raw.clicks"),
    ] {
        let right = server.one(needs).await;
        for damage in [flip as fn(&Path), truncate, remove] {
            let path = a_file(&world, folder);
            let good = std::fs::read(&path).unwrap();
            damage(&path);
            let error = server.try_rows(needs).await.unwrap_err();
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(error.contains(name), "{needs}: {error}");
            assert_eq!(server.one(spared).await, "30");
            assert_eq!(server.get("/healthz").await.unwrap().0, 200);
            std::fs::write(&path, good).unwrap();
            assert_eq!(server.one(needs).await, right);
        }
    }
    // New records are counted whatever happened.
    world.kafka.write(clicks("d", 0, 3));
    server.until("SELECT sum(total) FROM pages", &["33"]).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_that_needs_a_damaged_file_fails_and_the_old_generation_answers() {
    let world = World::new(1).await;
    let server = with_data(&world).await;
    let path = a_file(&world, "archive/clicks/events");
    let good = std::fs::read(&path).unwrap();
    flip(&path);
    let error = server.try_rows("REFRESH MATERIALIZED VIEW pages WITH FULL DATA").await.unwrap_err();
    assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    assert_eq!(server.one("SELECT sum(total) FROM pages").await, "30");
    assert_eq!(server.get("/healthz").await.unwrap().0, 200);
    std::fs::write(&path, good).unwrap();
    server.rows("REFRESH MATERIALIZED VIEW pages WITH FULL DATA").await;
    server.assert_equivalent().await;
    server.stop().await;

    // A start that must read a damaged file ends and names it.
    flip(&path);
    let error = format!("{:#}", world.try_serve().await.err().unwrap());
    assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
    flip(&path);
    world.serve().await.stop().await;
}
