//! What upkeep last found in the archive's folders beside what commits say of them.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::archive::compact::Damaged;
use crate::archive::keep::Unneeded;

/// By stream. Written by upkeep, read by `system.files`.
#[derive(Debug, Default)]
pub struct Census {
    unneeded: Mutex<BTreeMap<String, Vec<Unneeded>>>,
    damaged: Mutex<BTreeMap<String, Damaged>>,
}

impl Census {
    pub fn set_unneeded(&self, stream: &str, files: Vec<Unneeded>) {
        self.unneeded.lock().insert(stream.to_owned(), files);
    }

    pub fn set_damaged(&self, stream: &str, files: Damaged) {
        self.damaged.lock().insert(stream.to_owned(), files);
    }

    /// Files that no commit names, or none any more.
    pub fn unneeded(&self) -> Vec<(String, Unneeded)> {
        let found = self.unneeded.lock();
        found.iter().flat_map(|(stream, files)| files.iter().map(|file| (stream.clone(), file.clone()))).collect()
    }

    /// Files of a stream that could not be read.
    pub fn damaged(&self, stream: &str) -> Damaged {
        self.damaged.lock().get(stream).cloned().unwrap_or_default()
    }
}
