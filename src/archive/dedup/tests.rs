#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use datafusion::arrow::array::{Int64Array, StringArray};
use proptest::prelude::*;

use super::*;

fn insert(index: &mut KeyIndex, column: impl Array + 'static) -> Vec<bool> {
    let column: ArrayRef = Arc::new(column);
    index.insert(&column, None).unwrap().iter().map(|v| v.unwrap()).collect()
}

fn files(dir: &Path, keys_max: usize) -> Files {
    Files {
        dir: dir.to_owned(),
        table: "t".to_owned(),
        keys_max,
        health: Health::default(),
        shutdown: Shutdown::default(),
    }
}

#[test]
fn the_first_of_equal_keys_is_new_within_and_across_batches() {
    let mut index = KeyIndex::default();
    let a = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let b = "6ba7b811-9dad-11d1-80b4-00c04fd430c8";
    assert_eq!(insert(&mut index, StringArray::from(vec![a, b, a])), [true, true, false]);
    assert_eq!(insert(&mut index, StringArray::from(vec![b, "other", "other"])), [false, true, false]);
    assert_eq!(insert(&mut index, StringArray::from(vec![None::<&str>, None])), [true, true]);
    assert_eq!(index.len(), 3);
    let mut index = KeyIndex::default();
    assert_eq!(insert(&mut index, Int64Array::from(vec![1, 2, 1])), [true, true, false]);
}

#[test]
fn the_key_of_an_unsound_row_is_not_taken() {
    let mut index = KeyIndex::default();
    let column: ArrayRef = Arc::new(StringArray::from(vec!["a", "a", "b"]));
    let sound = BooleanArray::from(vec![false, true, true]);
    assert_eq!(index.insert(&column, Some(&sound)).unwrap(), BooleanArray::from(vec![false, true, true]));
    assert_eq!(insert(&mut index, StringArray::from(vec!["a", "b"])), [false, false]);
}

#[test]
fn a_key_that_is_taken_back_is_new_again() {
    let mut index = KeyIndex::default();
    assert_eq!(insert(&mut index, StringArray::from(vec!["a", "b"])), [true, true]);
    let taken: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some("never seen"), None]));
    index.remove(&taken).unwrap();
    assert_eq!(insert(&mut index, StringArray::from(vec!["a", "b"])), [true, false]);
}

#[test]
fn a_million_keys_in_sequence_stay_apart() {
    let mut index = KeyIndex::default();
    for n in 0..1_000_000_u128 {
        assert!(index.insert_one(n << 64).unwrap());
        assert!(index.insert_one(n + 1).unwrap());
    }
    assert_eq!(index.len(), 2_000_000);
}

/// What happens to an index, with small numbers as keys.
#[derive(Debug, Clone)]
enum Step {
    Insert(Vec<u8>),
    Seal,
    /// All sealed epochs are in the archive.
    Commit,
    Tend,
    /// The process is killed and starts again: what was not committed is read anew. The archive has a file for each
    /// epoch, or one for all.
    Kill {
        compacted: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 1..30).prop_map(Step::Insert),
        3 => Just(Step::Seal),
        2 => Just(Step::Commit),
        2 => Just(Step::Tend),
        1 => any::<bool>().prop_map(|compacted| Step::Kill { compacted }),
    ]
}

/// An index beside a plain list of what the archive holds.
struct Beside {
    files: Files,
    index: KeyIndex,
    /// By epoch, from the first, the keys that count.
    archive: Vec<Vec<u8>>,
    /// Those of sealed epochs that are not committed.
    sealed: Vec<Vec<u8>>,
    open: Vec<u8>,
}

impl Beside {
    fn committed(&self) -> Epoch {
        Epoch(self.archive.len() as u64)
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Insert(keys) => {
                let names = keys.iter().map(|key| Some(format!("k{key}"))).collect::<StringArray>();
                for (key, is_new) in keys.into_iter().zip(insert(&mut self.index, names)) {
                    let known = self.archive.iter().chain(&self.sealed).flatten().chain(&self.open);
                    assert_eq!(is_new, !known.copied().any(|other| other == key), "key {key}");
                    self.open.extend(is_new.then_some(key));
                }
            }
            Step::Seal => {
                self.sealed.push(std::mem::take(&mut self.open));
                self.index.sealed(Epoch((self.archive.len() + self.sealed.len()) as u64));
            }
            Step::Commit => self.archive.append(&mut self.sealed),
            Step::Tend => self.index.settle(self.committed()).unwrap(),
            Step::Kill { compacted } => {
                self.index = KeyIndex::open(self.files.clone(), self.committed()).unwrap();
                assert!(self.index.covered() <= self.committed());
                let covered = usize::try_from(self.index.covered().0).unwrap();
                let (from, files) = match compacted {
                    true => (0, self.archive.len().max(1)),
                    false => (covered, 1),
                };
                let mut through = from;
                for file in self.archive.get(from..).unwrap_or_default().chunks(files) {
                    let overlap = through < covered;
                    through += file.len();
                    let mut keys = ArchivedKeys::new(file.iter().map(|keys| keys.len() as u64).sum(), overlap);
                    let names = file.iter().flatten().map(|key| Some(format!("k{key}"))).collect::<StringArray>();
                    keys.add(&(Arc::new(names) as ArrayRef)).unwrap();
                    if through > covered {
                        self.index.restore(keys).unwrap();
                        self.index.sealed(Epoch(through as u64));
                    }
                }
                self.sealed.clear();
                self.open.clear();
            }
        }
        let held = self.archive.iter().chain(&self.sealed).flatten().count() + self.open.len();
        assert_eq!(self.index.len(), held as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn it_tells_new_keys_whatever_is_in_files_and_whenever_the_process_dies(
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let files = files(&dir.path().join("keys"), 10);
        let index = KeyIndex::open(files.clone(), Epoch(0)).unwrap();
        let mut beside = Beside { files, index, archive: Vec::new(), sealed: Vec::new(), open: Vec::new() };
        steps.into_iter().for_each(|step| beside.take(step));
    }
}

#[test]
fn files_of_epochs_that_were_not_committed_or_of_another_table_are_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path(), 1);
    let fill = || {
        let mut index = KeyIndex::open(files.clone(), Epoch(0)).unwrap();
        for epoch in 1..=3 {
            insert(&mut index, Int64Array::from(vec![epoch, epoch + 100]));
            index.sealed(Epoch(u64::try_from(epoch).unwrap()));
        }
        index.settle(Epoch(3)).unwrap();
        assert_eq!((index.len(), index.recent.len(), index.frozen.len()), (6, 0, 0));
    };
    fill();
    let index = KeyIndex::open(files.clone(), Epoch(3)).unwrap();
    assert_eq!((index.covered(), index.len()), (Epoch(3), 6));
    // The files were merged into one, which holds the third epoch too.
    let index = KeyIndex::open(files.clone(), Epoch(2)).unwrap();
    assert_eq!((index.covered(), index.len()), (Epoch(0), 0));
    fill();
    let index = KeyIndex::open(Files { table: "u".to_owned(), ..files.clone() }, Epoch(3)).unwrap();
    assert_eq!((index.covered(), index.len()), (Epoch(0), 0));
    assert_eq!(std::fs::read_dir(&files.dir).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_written_stays_and_is_waited_for_until_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(&dir.path().join("keys"), 1);
    let shutdown = files.shutdown.clone();
    let mut index = KeyIndex::open(files.clone(), Epoch(0)).unwrap();
    std::fs::remove_dir(&files.dir).unwrap();
    for epoch in 1..=4 {
        insert(&mut index, Int64Array::from(vec![epoch]));
        index.sealed(Epoch(u64::try_from(epoch).unwrap()));
    }
    let ended = std::thread::spawn(move || {
        index.tend(Epoch(4)).unwrap();
        index
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(!ended.is_finished(), "more tables wait for their file than may");
    shutdown.trigger();
    let mut index = ended.join().unwrap();
    assert_eq!(insert(&mut index, Int64Array::from(vec![1, 4, 5])), [false, false, true], "nothing was forgotten");
}
