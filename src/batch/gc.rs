//! Which files of batch views nobody needs any more. Everything is classified first; only then anything is deleted.
//!
//! | class | what | deleted |
//! |---|---|---|
//! | kept | named by a generation that can be read | no |
//! | read | named by an older generation that a query still holds | no |
//! | ahead | of a generation that is not published: a refresh is writing it, perhaps that of another process | no |
//! | foreign | not a name that this program gives | no |
//! | garbage | all others: of collected generations, of attempts that failed or crashed | yes |

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use object_store::path::Path;

use super::Generation;
use crate::position::GenerationId;
use crate::storage::paths;

/// What is to become of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Kept,
    Read,
    Ahead,
    Foreign,
    Garbage,
}

/// What is known when files are classified.
#[derive(Debug, Default)]
pub struct Needed {
    /// The newest generation.
    pub current: GenerationId,
    /// Files of all generations that can be read, the newest among them.
    pub kept: BTreeSet<String>,
    /// Files of older ones that are still read.
    pub read: BTreeSet<String>,
}

impl Needed {
    pub fn class(&self, file: &str) -> Class {
        if self.kept.contains(file) {
            return Class::Kept;
        }
        if self.read.contains(file) {
            return Class::Read;
        }
        match paths::view_file_generation(&Path::from(file)) {
            None => Class::Foreign,
            Some(generation) if generation > self.current => Class::Ahead,
            Some(_) => Class::Garbage,
        }
    }

    /// Those of `files` that may be deleted.
    pub fn garbage(&self, files: impl IntoIterator<Item = String>) -> Vec<String> {
        let files: BTreeSet<String> = files.into_iter().collect();
        files.into_iter().filter(|file| self.class(file) == Class::Garbage).collect()
    }
}

/// Remembers generations that can no longer be chosen until no reader holds them.
#[derive(Debug, Default)]
pub struct Retired {
    generations: Vec<(Weak<Generation>, BTreeSet<String>)>,
}

impl Retired {
    /// Takes note of a generation that makes room.
    pub fn retire(&mut self, old: &Arc<Generation>) {
        self.generations.push((Arc::downgrade(old), files([old])));
    }

    /// Files of retired generations: of those that are read still, and of those that have no reader any more. The
    /// latter are forgotten here.
    pub fn sorted(&mut self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (dead, alive): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.generations).into_iter().partition(|(reader, _)| reader.strong_count() == 0);
        let names = |generations: &[(Weak<Generation>, BTreeSet<String>)]| {
            generations.iter().flat_map(|(_, files)| files.iter().cloned()).collect()
        };
        let sorted = (names(&alive), names(&dead));
        self.generations = alive;
        sorted
    }
}

/// The files that these generations name.
pub fn files<'a>(generations: impl IntoIterator<Item = &'a Arc<Generation>>) -> BTreeSet<String> {
    let views = generations.into_iter().flat_map(|generation| generation.views.values());
    views.flat_map(|view| view.runs.iter().map(|run| run.path.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{RunFile, ViewStates};

    fn name(generation: u64, nonce: &str) -> String {
        format!("views/v/{}-0-{nonce}.parquet", paths::padded(generation))
    }

    fn generation(files: &[String]) -> Arc<Generation> {
        let run =
            |path: &String| RunFile { path: path.clone(), rows: 1, bytes: 1, sha256: String::new(), blocks: None };
        let view = ViewStates::of(files.iter().map(run).collect());
        Arc::new(Generation { views: [("v".to_owned(), view)].into(), ..Generation::empty() })
    }

    #[test]
    fn each_class_is_told_apart() {
        let needed = Needed {
            current: GenerationId(7),
            kept: [name(3, "kept"), name(7, "kept")].into(),
            read: [name(2, "read")].into(),
        };
        for (file, class) in [
            (name(3, "kept"), Class::Kept),
            (name(7, "kept"), Class::Kept),
            (name(2, "read"), Class::Read),
            (name(3, "other"), Class::Garbage),
            (name(7, "lost"), Class::Garbage),
            (name(8, "new"), Class::Ahead),
            ("views/v/readme.txt".to_owned(), Class::Foreign),
            ("views/v/7-0-short.parquet".to_owned(), Class::Foreign),
            ("views/00000000000000000001-0-x.parquet".to_owned(), Class::Foreign),
            ("archive/v/00000000000000000001-0-x.parquet".to_owned(), Class::Foreign),
        ] {
            assert_eq!(needed.class(&file), class, "{file}");
        }
        let all = [name(3, "kept"), name(3, "other"), name(8, "new"), "views/v/readme.txt".into()];
        assert_eq!(needed.garbage(all), [name(3, "other")]);
    }

    #[test]
    fn a_file_is_garbage_once_no_reader_and_no_kept_generation_names_it() {
        let [a, b, c] = ["a", "b", "c"].map(|nonce| name(1, nonce));
        let (first, second) = (generation(&[a.clone(), b.clone()]), generation(&[b.clone(), c.clone()]));
        let mut retired = Retired::default();
        retired.retire(&first);
        retired.retire(&second);
        let (read, dead) = retired.sorted();
        assert_eq!((read.len(), dead.len()), (3, 0), "both are still read");
        drop(first);
        let (read, dead) = retired.sorted();
        let needed = Needed { current: GenerationId(2), kept: [c].into(), read };
        assert_eq!(needed.garbage(dead), [a], "b belongs to the second, which is read");
        drop(second);
        let (read, dead) = retired.sorted();
        assert_eq!(Needed { read, ..needed }.garbage(dead), [b], "c is kept");
    }
}
