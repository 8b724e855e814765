#![allow(clippy::unwrap_used)]
use super::*;
use crate::storage::paths::data_file_name;

fn file(epoch: u64) -> ArchiveFile {
    let name = data_file_name("events", Epoch(epoch), "n");
    ArchiveFile {
        path: ArchivePaths::new("s").data_file(&name),
        name,
        kind: Kind::Event,
        rows: 3,
        bytes: 99,
        first: Epoch(epoch),
        epoch: Epoch(epoch),
        columns: None,
        sha256: "ab".into(),
        blocks: Some(BlockDigests::of(b"the file")),
    }
}

fn standing(epoch: u64) -> Standing {
    Standing { epoch: Epoch(epoch), ..Standing::default() }
}

fn decoded(bytes: &[u8]) -> Entry {
    decode(bytes, &ArchivePaths::new("s")).unwrap()
}

fn started() -> (TableState, Bytes) {
    let change = Change { metadata: Some(json!({"id": "x"})), ..Change::default() };
    let bytes = encode(None, &standing(0), "a", &change, 5).unwrap();
    (TableState::first(decoded(&bytes)).unwrap(), bytes)
}

fn next(state: &TableState, nonce: &str) -> Bytes {
    let epoch = state.standing.epoch.0 + 1;
    let change = Change { files: vec![file(epoch)], ..Change::default() };
    encode(Some(state), &standing(epoch), nonce, &change, 5).unwrap()
}

#[test]
fn entries_add_up() {
    let (mut state, _) = started();
    for n in 1..=3 {
        let bytes = next(&state, "b");
        state.apply(decoded(&bytes)).unwrap();
        assert_eq!((state.version, state.standing.epoch), (n, Epoch(n)));
    }
    assert_eq!(state.files.iter().map(|file| file.epoch.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(*state.files[2], file(3));
}

#[test]
fn every_flipped_bit_of_what_matters_is_found() {
    let (state, _) = started();
    let good = next(&state, "b");
    let covered = std::str::from_utf8(&good).unwrap().find("\"sha256\"").unwrap();
    for position in covered..good.len() {
        let mut bad = good.to_vec();
        bad[position] ^= 0x01;
        let outcome = decode(&bad, &ArchivePaths::new("s")).and_then(|entry| state.clone().apply(entry));
        assert!(outcome.is_err(), "a flip at byte {position} of {} went unnoticed", good.len());
    }
}

#[test]
fn an_exchanged_entry_breaks_the_chain() {
    let (state, _) = started();
    let (first, other) = (next(&state, "b"), next(&state, "c"));
    let mut one = state.clone();
    one.apply(decoded(&first)).unwrap();
    let second = next(&one, "d");
    let mut exchanged = state;
    exchanged.apply(decoded(&other)).unwrap();
    assert!(exchanged.apply(decoded(&second)).unwrap_err().contains("exchanged"));
}

#[test]
fn the_winner_is_known_by_its_nonce() {
    let (mut state, _) = started();
    let entry = decoded(&next(&state, "b"));
    assert_eq!(entry.winner("b"), Winner::Us);
    assert_eq!(entry.winner("z"), Winner::Writer(Epoch(1)));
    let vacuum = decoded(b"{\"commitInfo\":{\"operation\":\"VACUUM END\"}}\n");
    assert_eq!(vacuum.winner("b"), Winner::Harmless);
    state.apply(vacuum).unwrap();
    let optimize = b"{\"commitInfo\":{}}\n{\"remove\":{\"path\":\"x\"}}\n{\"add\":{\"path\":\"y\",\"size\":1}}\n";
    assert!(matches!(decoded(optimize).winner("b"), Winner::Foreign(_)));
    assert!(state.apply(decoded(optimize)).unwrap_err().contains("one writer"));
}

#[test]
fn a_checkpoint_that_lost_a_file_is_found() {
    let (mut state, _) = started();
    let bytes = next(&state, "b");
    state.apply(decoded(&bytes)).unwrap();
    let entry = decoded(&bytes);
    let record = entry.record.clone().unwrap();
    let at = |files| {
        let table = CheckpointTable { files, ..CheckpointTable::default() };
        TableState::at_checkpoint(1, &entry, &record, table)
    };
    assert!(at(vec![file(1)]).is_ok());
    assert!(at(vec![]).is_err());
    assert!(at(vec![ArchiveFile { rows: 4, ..file(1) }]).is_err());
    assert!(at(vec![ArchiveFile { first: Epoch(0), ..file(1) }]).is_err());
    assert!(at(vec![ArchiveFile { blocks: Some(BlockDigests::of(b"another")), ..file(1) }]).is_err());
    assert!(at(vec![ArchiveFile { columns: Some("c".into()), ..file(1) }]).is_err());
}

/// Three epochs, of which the first two are put into one file of `rows` records.
fn rewritten(rows: u64, replaced: &[u64]) -> Result<TableState, String> {
    let (mut state, _) = started();
    for _ in 0..3 {
        let bytes = next(&state, "b");
        state.apply(decoded(&bytes)).unwrap();
    }
    let name = data_file_name("events", Epoch(2), "together");
    let path = ArchivePaths::new("s").data_file(&name);
    let together = ArchiveFile { path, name, rows, first: Epoch(1), ..file(2) };
    let replaced = replaced.iter().map(|epoch| (file(*epoch).name, 99)).collect();
    let change = Change { files: vec![together], replaced, ..Change::default() };
    let bytes = encode(Some(&state), &standing(3), "r", &change, 7_000).unwrap();
    state.apply(decoded(&bytes)).map(|()| state)
}

#[test]
fn a_rewrite_takes_the_place_of_what_it_replaced() {
    let state = rewritten(6, &[1, 2]).unwrap();
    assert_eq!((state.version, state.standing.epoch), (4, Epoch(3)), "the epoch stays");
    let spans: Vec<_> = state.files.iter().map(|file| (file.first.0, file.epoch.0)).collect();
    assert_eq!(spans, [(1, 2), (3, 3)]);
    let retired: Vec<_> = state.retired.iter().map(|file| (file.name.clone(), file.at_millis)).collect();
    assert_eq!(retired, [(file(1).name, 7_000), (file(2).name, 7_000)]);
}

#[test]
fn a_rewrite_that_loses_doubles_or_invents_records_is_refused() {
    assert!(rewritten(5, &[1, 2]).unwrap_err().contains("more or fewer"));
    assert!(rewritten(7, &[1, 2]).unwrap_err().contains("more or fewer"));
    assert!(rewritten(6, &[1, 9]).unwrap_err().contains("does not have"));
}
