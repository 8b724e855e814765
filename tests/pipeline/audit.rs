//! Whatever is changed, lost or added in a sealed archive is found, and named.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use viewledger::audit::AuditError;
use viewledger::audit::export::{Exported, export};
use viewledger::audit::key::{PublicKey, SigningKey};
use viewledger::audit::prove::{Proof, prove};
use viewledger::audit::seal::Seal;
use viewledger::audit::sealer::{Sealer, Sealing};
use viewledger::audit::verify::{Meter, Report, Scope, exported, verify};
use viewledger::runtime::SystemClock;
use viewledger::storage::Storage;

use crate::processes::{Process, command};
use crate::server::Server;
use crate::world::{World, click, clicks, eventually};

mod forge;

use forge::{Entry, append_row, drop_row, flip, numbered, rename_row};

fn storage(dir: &Path) -> Storage {
    Storage::open_existing(dir.to_str().unwrap(), std::iter::empty()).unwrap()
}

fn key(dir: &Path) -> SigningKey {
    SigningKey::open_or_create(&dir.join("seal-key.pem")).unwrap()
}

async fn try_seal(dir: &Path) -> Result<Sealing, AuditError> {
    Sealer { storage: storage(dir), key: key(dir), clock: Arc::new(SystemClock) }.seal().await
}

async fn seal(dir: &Path) -> Seal {
    match try_seal(dir).await.unwrap() {
        Sealing::Made(seal) => *seal,
        nothing => panic!("{nothing:?}"),
    }
}

async fn report(dir: &Path, scope: Scope) -> Report {
    let scope = Scope { threads: 2, ..scope };
    verify(&storage(dir), scope, &Arc::new(Meter::default())).await.unwrap()
}

fn texts(report: &Report) -> Vec<String> {
    report.divergences.iter().map(ToString::to_string).collect()
}

async fn sound(dir: &Path, scope: Scope) -> Report {
    let report = report(dir, scope).await;
    assert_eq!(texts(&report), Vec::<String>::new());
    report
}

fn given(key: &PublicKey) -> Scope {
    Scope { keys: vec![key.clone()], ..Scope::default() }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

const PRICES: &str =
    "-- One row is the price of one page.\nCREATE TABLE prices (page TEXT PRIMARY KEY, price DECIMAL(18, 4));\n";

/// Writes records of every kind in an epoch of their own.
async fn write_epoch(world: &World, server: &Server, prefix: &str, before: usize) -> usize {
    let twice = clicks(prefix, 0, 2);
    let broken = [(1, click(&format!("{prefix}-broken"), "a", 5000))];
    world.kafka.write(clicks(prefix, 0, 9).into_iter().chain(clicks(&format!("{prefix}-x"), 1, 4)));
    world.kafka.write(twice.into_iter().chain(broken));
    server.until_passed(before + 16).await;
    server.until_archived().await;
    before + 16
}

/// A data directory with two seals, and epochs, a generation and a version of a table behind each.
async fn sealed_world() -> (World, PathBuf) {
    let world = World::new(2).await;
    world.write_sql("tables/prices.sql", PRICES);
    let data = world.path("data");
    let server = world.serve().await;
    let mut written = 0;
    for part in ["a", "b", "c"] {
        for epoch in 0..2 {
            written = write_epoch(&world, &server, &format!("{part}{epoch}"), written).await;
        }
        server.refresh().await;
        server.rows(&format!("INSERT INTO prices VALUES ('{part}', 1)")).await;
        if part != "c" {
            seal(&data).await;
        }
    }
    server.stop().await;
    (world, data)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_archive_is_verified_and_its_seals_are_shown() {
    let (world, data) = sealed_world().await;
    let public = key(&data).public();
    let found = sound(&data, given(&public)).await;
    let stream = &found.streams["clicks"];
    assert_eq!((stream.records, stream.gaps, found.seals), (6 * 16, 0, 2));
    assert_eq!(stream.sealed_records, 4 * 16);
    assert!(stream.sealed_epochs < stream.epochs);
    // A key that nobody named is said to be the seals' own.
    assert!(!sound(&data, Scope::default()).await.keys_given);

    // A server that runs seals what is left, and shows it.
    let server = world.serve().await;
    server.until("SELECT max(seal) FROM audit.seals WHERE stream = 'clicks'", &["2"]).await;
    seal(&data).await;
    let rows = server.rows("SELECT seal, epochs, records, root, public_key FROM audit.seals ORDER BY seal").await;
    assert!(rows[0].ends_with(&format!("|{public}")), "{rows:?}");
    let report = sound(&data, given(&public)).await;
    assert_eq!(report.streams["clicks"].sealed_records, 6 * 16);
    assert!(matches!(try_seal(&data).await.unwrap(), Sealing::NothingNew(Some(_))));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_seals_by_itself() {
    let mut world = World::new(1).await;
    world.set("VIEWLEDGER_AUDIT_SEAL_INTERVAL", "100ms");
    let server = world.serve().await;
    world.kafka.write(clicks("a", 0, 5));
    server.until("SELECT max(records) FROM audit.seals WHERE stream = 'clicks'", &["5"]).await;
    world.kafka.write(clicks("b", 0, 5));
    server.until("SELECT max(records) FROM audit.seals WHERE stream = 'clicks'", &["10"]).await;
    // While it goes on.
    sound(&world.path("data"), given(&key(&world.path("data")).public())).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_changes_neither_roots_nor_proofs() {
    let mut world = World::new(2).await;
    world.set("VIEWLEDGER_ARCHIVE_UPKEEP_INTERVAL", "100ms");
    world.set("VIEWLEDGER_ARCHIVE_RETENTION", "100ms");
    let data = world.path("data");
    let server = world.serve().await;
    let mut written = 0;
    for epoch in 0..10 {
        written = write_epoch(&world, &server, &format!("a{epoch}"), written).await;
        if epoch == 5 {
            seal(&data).await;
        }
    }
    let proofs = async || {
        let mut proofs = Vec::new();
        for (partition, offset) in [(0, 0), (0, 30), (1, 4), (0, 9)] {
            proofs.push(prove(&storage(&data), "clicks", partition, offset).await.unwrap());
        }
        proofs
    };
    let before = proofs().await;
    server.refresh().await;
    let live = "SELECT count(*) FROM system.files WHERE stream = 'clicks' AND state = 'live'";
    server.until(live, &["3"]).await;
    assert_eq!(proofs().await, before);
    // Half of it was put together before it was sealed, in files that hold sealed epochs too.
    seal(&data).await;
    let report = sound(&data, Scope::default()).await;
    assert_eq!((report.streams["clicks"].sealed_records, report.streams["clicks"].files), (160, 3));
    server.stop().await;
}

/// What is done to a copy of the data directory, and what the first divergence must name.
type Tampering = (&'static str, fn(&Path), &'static [&'static str]);

const TAMPERINGS: &[Tampering] = &[
    ("a bit of a data file", |dir| flip(&numbered(dir, "archive/clicks/events", 0)), &["events/", "SHA-256"]),
    (
        "a bit of a duplicate",
        |dir| flip(&numbered(dir, "archive/clicks/duplicates", 1)),
        &["duplicates/", "SHA-256"],
    ),
    (
        "a bit of a rejected record",
        |dir| flip(&numbered(dir, "archive/clicks/quarantine", 2)),
        &["quarantine/", "SHA-256"],
    ),
    (
        "a file deleted",
        |dir| std::fs::remove_file(numbered(dir, "archive/clicks/events", 1)).unwrap(),
        &["events/", "missing"],
    ),
    ("a row removed", |dir| drop(drop_row(&numbered(dir, "archive/clicks/events", 0), 3)), &["events/", "SHA-256"]),
    ("a row added", |dir| drop(append_row(&numbered(dir, "archive/clicks/events", 0))), &["events/", "SHA-256"]),
    (
        "a row changed, and all commits after it",
        |dir| {
            let path = numbered(dir, "archive/clicks/events", 0);
            forge::with_commit(dir, &path, |path| rename_row(path, 0, "forged"));
        },
        &["stream clicks", "its commit has SHA-256", "its records are not those that were sealed"],
    ),
    (
        "a row removed, with its ledger and all commits after it",
        forge::drop_event,
        &["stream clicks", "its commit has SHA-256", "instead of"],
    ),
    ("a commit removed", |dir| std::fs::remove_file(Entry::path(dir, 2)).unwrap(), &["commit 2", "missing"]),
    (
        "the end of the log cut off, with its witness",
        |dir| {
            Entry::cut(dir, 3);
            std::fs::remove_file(dir.join("archive/clicks/_newest_epoch")).unwrap();
        },
        &["stream clicks", "its end is missing"],
    ),
    (
        "the unsealed end of the log cut off",
        |dir| Entry::cut(dir, Entry::count(dir) - 1),
        &["the log ends with epoch"],
    ),
    ("a commit edited", |dir| flip(&Entry::path(dir, 2)), &["commit 2"]),
    (
        "a commit edited, with its own SHA-256",
        |dir| Entry::edit(dir, 2, |record| record["nonce"] = "forged".into()),
        &["commit 3", "does not follow the one before it"],
    ),
    (
        "a commit edited, and all after it",
        |dir| {
            Entry::edit(dir, 2, |record| record["nonce"] = "forged".into());
            Entry::rechain(dir);
        },
        &["commit 2", "its commit has SHA-256"],
    ),
    (
        "a seal edited",
        |dir| forge::replace(&numbered(dir, "audit/seals", 1), "records", "recordz"),
        &["seal 2", "signature"],
    ),
    (
        "a seal removed",
        |dir| std::fs::remove_file(numbered(dir, "audit/seals", 0)).unwrap(),
        &["seal 1", "missing"],
    ),
    ("all seals signed with another key", forge::resign, &["seal 1", "another key"]),
    (
        "the leaves of a seal",
        |dir| forge::replace(&numbered(dir, "audit/epochs", 0), "\"epoch\":1,", "\"epoch\":7,"),
        &["seal 1", "leaves"],
    ),
    (
        "the leaves of a seal removed",
        |dir| std::fs::remove_file(numbered(dir, "audit/epochs", 0)).unwrap(),
        &["seal 1", "leaves"],
    ),
    ("a manifest", |dir| flip(&numbered(dir, "generations", 0)), &["generations/", "manifest"]),
    (
        "a manifest, with its own SHA-256",
        |dir| forge::manifest(&forge::sealed_generation(dir), "/engine_version"),
        &["generations/", "that seal"],
    ),
    ("a file of a view", |dir| flip(&numbered(dir, "views/pages", 0)), &["views/pages", "manifest"]),
    (
        "a version of a table",
        |dir| forge::manifest(&numbered(dir, "tables/commits", 0), "/tables/prices/changed_by"),
        &["tables/commits", "that seal"],
    ),
    (
        "a version of a table removed",
        |dir| std::fs::remove_file(numbered(dir, "tables/commits", 0)).unwrap(),
        &["tables/commits", "missing"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_file_that_is_changed_once_is_found_and_named() {
    let (world, data) = sealed_world().await;
    let public = key(&data).public();
    for (index, (what, tamper, names)) in TAMPERINGS.iter().enumerate() {
        let dir = world.path(&format!("tampered-{index}"));
        copy(&data, &dir);
        sound(&dir, given(&public)).await;
        tamper(&dir);
        let found = texts(&report(&dir, given(&public)).await);
        let first = found.first().unwrap_or_else(|| panic!("{what}: not found"));
        for name in *names {
            assert!(first.contains(name), "{what}: {name:?} is not in {found:#?}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_was_removed_or_added_is_named() {
    let (world, data) = sealed_world().await;
    let dir = world.path("tampered");
    copy(&data, &dir);
    let path = numbered(&dir, "archive/clicks/events", 0);
    let rows = forge::coordinates(&path);
    let (partition, offset) = rows[0];
    drop_row(&path, 0);
    let found = texts(&report(&dir, Scope::default()).await);
    let named = format!("partition {partition}, offset {offset}: offsets ");
    assert!(found.iter().any(|text| text.contains(&named)), "{named}: {found:#?}");
    std::fs::remove_dir_all(&dir).unwrap();
    copy(&data, &dir);
    append_row(&path);
    let found = texts(&report(&dir, Scope::default()).await);
    let doubled = found.iter().find(|text| text.contains("the offset is archived twice")).unwrap();
    let named = format!("partition {partition}, offset {offset}:");
    assert!(doubled.contains(&named) && doubled.contains(&format!("row {}", rows.len())), "{doubled}");
}

/// What no commit contradicts is found by the seals alone: that they are what finds it is shown by leaving them out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forger_who_rewrites_every_commit_is_found_by_the_seals_alone() {
    let (world, data) = sealed_world().await;
    let copies = world.path("auditor");
    let written = export(&storage(&data), &copies).await.unwrap();
    assert_eq!(written, Exported { written: 2, kept: 0 });
    let (seals, faults) = exported(&copies).unwrap();
    assert_eq!((seals.len(), faults.len()), (2, 0));
    let auditor = || Scope { exported: exported(&copies).unwrap().0, ..Scope::default() };
    assert_eq!(sound(&data, auditor()).await.exported_seals, 2);

    forge::drop_event(&data);
    std::fs::remove_dir_all(data.join("audit")).unwrap();
    std::fs::remove_file(data.join("seal-key.pem")).unwrap();
    // There is nothing that could contradict it.
    assert_eq!(sound(&data, Scope::default()).await.streams["clicks"].gaps, 1);
    let found = texts(&report(&data, auditor()).await);
    assert!(found[0].starts_with("seal 1: it was exported and is missing now"), "{found:#?}");
    assert!(
        found.iter().any(|text| text.contains("stream clicks") && text.contains("not those that the seal holds"))
    );

    // Nor does it help to seal the forgery, with a key of his own.
    seal(&data).await;
    let found = texts(&report(&data, auditor()).await);
    assert!(found[0].starts_with("seal 1: it was signed with another key"), "{found:#?}");
    let error = export(&storage(&data), &copies).await.unwrap_err().to_string();
    assert!(error.contains("another seal was exported under this number"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_diverges_is_not_sealed() {
    let (_world, data) = sealed_world().await;
    let unsealed = forge::last(&data, "archive/clicks/events");
    flip(&unsealed);
    let error = try_seal(&data).await.unwrap_err();
    assert!(matches!(error, AuditError::Diverges(_)), "{error}");
    assert!(error.to_string().contains(unsealed.file_name().unwrap().to_str().unwrap()), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_counts_twice_is_found() {
    let mut world = World::new(1).await;
    world.set("VIEWLEDGER_UNSAFE_TEST", "no-dedup");
    let server = Process::start(&world).await;
    world.kafka.write(clicks("a", 0, 5));
    server.until_passed(5).await;
    world.kafka.write(clicks("a", 0, 2));
    server.until_passed(7).await;
    server.until_archived().await;
    server.signal(libc::SIGTERM);
    server.end();
    let found = texts(&report(&world.path("data"), Scope::default()).await);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("partition 0, offset 5: its key counts already") && found[0].contains("offset 0"));
}

/// The program itself: exit codes, words, and the verifier in Python.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_seal_verify_and_prove() {
    let world = World::new(2).await;
    let data = world.path("data");
    let server = Process::start(&world).await;
    let written = 16;
    world.kafka.write(clicks("a", 0, 10).into_iter().chain(clicks("b", 1, 6)));
    server.until_passed(written).await;
    server.until_archived().await;
    let run = |name: &str, arguments: &[&str]| {
        let output = command(&world, name).args(arguments).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), said)
    };
    let (code, said) = run("verify", &[]);
    assert!(code == 0 && said.contains("no seals: nothing proves"), "{said}");
    let (code, said) = run("prove", &["--stream", "clicks", "--partition", "0", "--offset", "0"]);
    assert!(code == 1 && said.contains("there is no seal yet"), "{said}");
    let copies = world.path("copies");
    let copies = copies.to_str().unwrap();
    let (code, said) = run("seal", &["--export", copies]);
    assert!(code == 0 && said.contains("clicks: 16 records") && said.contains("1 seals copied"), "{said}");
    assert!(run("seal", &[]).1.contains("nothing new since seal 1"));
    world.kafka.write(clicks("c", 1, 7));
    server.until_passed(written + 7).await;
    server.until_archived().await;
    assert_eq!(run("seal", &[]).0, 0);
    assert_eq!(run("seal", &["--export-only", copies]).0, 0);
    let report = world.path("report.json");
    let key = key(&data).public().to_string();
    let arguments = ["--seals", copies, "--public-key", &key, "--json", report.to_str().unwrap()];
    let (code, said) = run("verify", &arguments);
    assert!(code == 0 && said.contains("verified: nothing was changed, lost or added"), "{said}");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!((&json["streams"]["clicks"]["records"], &json["exported_seals"]), (&23.into(), &2.into()));

    let (code, said) = run("prove", &["--stream", "clicks", "--partition", "0", "--offset", "10"]);
    assert!(code == 1 && said.contains("the offsets below 10"), "{said}");
    let (code, said) = run("prove", &["--stream", "clocks", "--partition", "0", "--offset", "10"]);
    assert!(code == 1 && said.contains("there are clicks"), "{said}");
    let (code, text) = run("prove", &["--stream", "clicks", "--partition", "1", "--offset", "3"]);
    assert_eq!(code, 0, "{text}");
    let proof: Proof = serde_json::from_str(&text).unwrap();
    check_in_python(&world, &key, &proof);
    let seals: Vec<PathBuf> = [1, 2].map(|n| Path::new(copies).join(format!("{n:020}.json"))).to_vec();
    let (good, said) = python(&key, &seals);
    assert!(good && said.contains("2 seals are signed, up to seal 2"), "{said}");
    forge::replace(&seals[1], "consistency\":{\"clicks\":[\"", "consistency\":{\"clicks\":[\"00");
    let (good, said) = python(&key, &seals);
    assert!(!good && said.contains("NOT PROVEN"), "{said}");

    flip(&numbered(&data, "archive/clicks/events", 0));
    eventually("the change is found in the archive of a running server", async || {
        let (code, said) = run("verify", &["--stream", "clicks"]);
        let first = said.lines().next().unwrap_or_default();
        (code == 3 && first.contains("archive/clicks/events/")).then_some(()).ok_or(said)
    })
    .await;
    assert_eq!(run("verify", &["--stream", "clocks"]).0, 1);
}

fn python(key: &str, files: &[PathBuf]) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/verify_proof.py");
    let output = Command::new("python3").arg(script).args(["--key", key]).args(files).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.success(), said)
}

/// The proof is good, and no field of it can be another one.
fn check_in_python(world: &World, key: &str, proof: &Proof) {
    let path = world.path("proof.json");
    let check = |proof: &serde_json::Value, key: &str| {
        std::fs::write(&path, proof.to_string()).unwrap();
        python(key, std::slice::from_ref(&path))
    };
    let good = serde_json::to_value(proof).unwrap();
    let (fine, said) = check(&good, key);
    assert!(fine && said.contains("PROVEN: in clicks, partition 1, offset 3"), "{said}");
    assert!(said.contains("\"id\": \"b-3\""), "{said}");
    let other_key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    assert!(!check(&good, other_key).0);
    let mut bent: Vec<(String, serde_json::Value)> = Vec::new();
    for field in ["partition", "offset", "record_index"] {
        let mut other = good.clone();
        other[field] = (good[field].as_i64().unwrap() + 1).into();
        bent.push((field.to_owned(), other));
    }
    for pointer in
        ["/record", "/columns", "/epoch", "/record_path/0", "/epoch_path/0", "/seal/statement", "/seal/signature"]
    {
        let Some(text) = good.pointer(pointer).and_then(serde_json::Value::as_str) else { continue };
        let mut other = good.clone();
        // Another digit, wherever there is one.
        let at = text.rfind(|c: char| c.is_ascii_digit()).unwrap();
        let digit = if &text[at..=at] == "0" { "1" } else { "0" };
        *other.pointer_mut(pointer).unwrap() = format!("{}{digit}{}", &text[..at], &text[at + 1..]).into();
        bent.push((pointer.to_owned(), other));
    }
    assert!(bent.len() >= 8);
    for (field, other) in bent {
        let (fine, said) = check(&other, key);
        assert!(!fine && said.contains("NOT PROVEN"), "{field}: {said}");
    }
}
