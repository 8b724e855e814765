//! What upkeep last found in the archive's folders beside the files that commits name.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::archive::keep::Unneeded;

/// By stream. Written by upkeep, read by `system.files`.
#[derive(Debug, Default)]
pub struct Census(Mutex<BTreeMap<String, Vec<Unneeded>>>);

impl Census {
    pub fn set(&self, stream: &str, files: Vec<Unneeded>) {
        self.0.lock().insert(stream.to_owned(), files);
    }

    pub fn files(&self) -> Vec<(String, Unneeded)> {
        let found = self.0.lock();
        found.iter().flat_map(|(stream, files)| files.iter().map(|file| (stream.clone(), file.clone()))).collect()
    }
}
