//! A disk without space left: commits are tried again, intake waits, reads go on, and it ends by itself.

use std::path::{Path, PathBuf};

use crate::world::{World, clicks, eventually};

/// A small file system of its own.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(at)?;
        let run =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(at).output()?;
        match run.status.success() {
            true => Ok(Self(at.to_owned())),
            false => Err(std::io::Error::other(String::from_utf8_lossy(&run.stderr).into_owned())),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_intake_and_nothing_else() {
    let mut world = World::new(2).await;
    let disk = match SmallDisk::mount(&world.path("small")) {
        Ok(disk) => disk,
        Err(error) => return eprintln!("skipped: a tmpfs cannot be mounted: {error}"),
    };
    world.use_data_dir(&disk.0);
    world.set("VIEWLEDGER_INGEST_MICRO_BATCH_ROWS_MAX", "500");
    let server = world.serve().await;
    world.kafka.write(clicks("before", 0, 100));
    server.until_passed(100).await;
    server.until_archived().await;
    server.refresh().await;

    fill(&disk.0.join("ballast"));
    let failed = r#"archive_commits_total{stream="clicks",outcome="failed"}"#;
    world.kafka.write(clicks("during", 0, 20_000).into_iter().chain(clicks("during-too", 1, 20_000)));
    eventually("a commit fails", async || match server.get("/metrics").await? {
        (_, metrics) if metrics.contains(failed) => Ok(()),
        (_, metrics) => Err(metrics.lines().filter(|line| line.contains("commits")).collect()),
    })
    .await;
    // Reads go on, each from one snapshot; the process is well; a refresh says why it can not.
    for _ in 0..50 {
        let row = server.one("SELECT (SELECT sum(total) FROM pages) = (SELECT count(*) FROM raw.clicks)").await;
        assert_eq!(row, "t");
    }
    assert_eq!(server.get("/healthz").await.unwrap().0, 200);
    let archived: i64 =
        server.one("SELECT count(*) FROM raw.clicks WHERE _file IS NOT NULL").await.parse().unwrap();
    assert!(archived < 40_100, "the disk is not full");

    std::fs::remove_file(disk.0.join("ballast")).unwrap();
    server.until_passed(40_100).await;
    server.until_archived().await;
    assert_eq!(
        server.one("SELECT (SELECT sum(total) FROM pages), (SELECT count(*) FROM raw.clicks)").await,
        "40100|40100"
    );
    server.assert_equivalent().await;
    server.refresh().await;
    server.stop().await;

    let server = world.serve().await;
    assert_eq!(
        server.one("SELECT (SELECT sum(total) FROM pages), (SELECT count(*) FROM raw.clicks)").await,
        "40100|40100"
    );
    server.stop().await;
}

/// It ends in order too, while a commit waits for space and the queue behind it is full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_ends_while_the_disk_is_full() {
    let mut world = World::new(1).await;
    let disk = match SmallDisk::mount(&world.path("small")) {
        Ok(disk) => disk,
        Err(error) => return eprintln!("skipped: a tmpfs cannot be mounted: {error}"),
    };
    world.use_data_dir(&disk.0);
    world.set("VIEWLEDGER_INGEST_MICRO_BATCH_ROWS_MAX", "100");
    let server = world.serve().await;
    world.kafka.write(clicks("before", 0, 10));
    server.until_passed(10).await;
    server.until_archived().await;
    fill(&disk.0.join("ballast"));
    world.kafka.write(clicks("during", 0, 20_000));
    let failed = r#"archive_commits_total{stream="clicks",outcome="failed"}"#;
    eventually("a commit fails", async || match server.get("/metrics").await? {
        (_, metrics) if metrics.contains(failed) => Ok(()),
        _ => Err("none".into()),
    })
    .await;
    let waiting = server.one("SELECT count(*) < 20010 FROM raw.clicks").await;
    assert_eq!(waiting, "t", "intake does not wait for the commit");
    server.stop().await;
    std::fs::remove_file(disk.0.join("ballast")).unwrap();
    let server = world.serve().await;
    server.until_passed(20_010).await;
    assert_eq!(server.one("SELECT count(*) FROM raw.clicks").await, "20010");
    server.stop().await;
}

/// Writes until no space is left.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        let piece = vec![0_u8; size];
        while file.write_all(&piece).is_ok() {}
    }
}
