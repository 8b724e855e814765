//! Which files of old generations nobody needs any more.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use super::Generation;

/// Remembers the generations of this process until no reader holds them.
#[derive(Debug, Default)]
pub struct Retired {
    generations: Vec<(Weak<Generation>, BTreeSet<String>)>,
}

impl Retired {
    /// Takes note of a generation that `next` has replaced.
    pub fn replaced(&mut self, old: &Arc<Generation>) {
        self.generations.push((Arc::downgrade(old), files(old)));
    }

    /// Files that only generations without readers name. They are forgotten here: delete them.
    pub fn collect(&mut self, current: &Generation) -> Vec<String> {
        let mut needed = files(current);
        let (dead, alive): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.generations).into_iter().partition(|(reader, _)| reader.strong_count() == 0);
        needed.extend(alive.iter().flat_map(|(_, files)| files.iter().cloned()));
        self.generations = alive;
        let garbage: BTreeSet<String> =
            dead.into_iter().flat_map(|(_, files)| files).filter(|file| !needed.contains(file)).collect();
        garbage.into_iter().collect()
    }
}

fn files(generation: &Generation) -> BTreeSet<String> {
    generation.views.values().flat_map(|view| view.runs.iter().map(|run| run.path.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{RunFile, ViewStates};

    fn generation(files: &[&str]) -> Arc<Generation> {
        let run =
            |path: &&str| RunFile { path: (*path).into(), rows: 1, bytes: 1, sha256: String::new(), blocks: None };
        let view = ViewStates { fingerprint: String::new(), runs: files.iter().map(run).collect() };
        Arc::new(Generation { views: [("v".to_owned(), view)].into(), ..Generation::empty() })
    }

    #[test]
    fn a_file_is_garbage_once_no_reader_and_no_current_generation_names_it() {
        let (first, second, third) = (generation(&["a", "b"]), generation(&["b", "c"]), generation(&["c", "d"]));
        let mut retired = Retired::default();
        retired.replaced(&first);
        retired.replaced(&second);
        assert!(retired.collect(&third).is_empty(), "both are still read");
        drop(first);
        assert_eq!(retired.collect(&third), ["a"], "b belongs to the second, which is read");
        drop(second);
        assert_eq!(retired.collect(&third), ["b"]);
    }
}
