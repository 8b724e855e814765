//! One process per data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use super::StorageError;
use super::paths;

/// Holds `<dir>/LOCK` exclusively for as long as it lives. The kernel releases it when the process ends, so
/// a lock file that is left behind after a crash locks nobody out.
#[derive(Debug)]
pub struct ProcessLock {
    _file: File,
}

impl ProcessLock {
    /// Makes `dir` if it is not there yet.
    pub fn acquire(dir: &Path) -> Result<Self, StorageError> {
        let refused = |source| StorageError::Directory { dir: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(refused)?;
        let path = dir.join(paths::LOCK_FILE);
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(refused)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The number is a courtesy to the reader of the message; the lock is the truth.
                let _ = file.read_to_string(&mut pid);
                let pid = if pid.trim().is_empty() { "unknown".to_owned() } else { pid.trim().to_owned() };
                return Err(StorageError::Locked { dir: dir.to_owned(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(refused(source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(refused)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_is_made() {
        let dir = tempfile::tempdir().unwrap();
        ProcessLock::acquire(&dir.path().join("a/b")).unwrap();
    }

    #[test]
    fn the_second_process_is_told_who_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = ProcessLock::acquire(dir.path()).unwrap();
        let error = ProcessLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(error.contains(&dir.path().display().to_string()), "{error}");
        drop(first);
        ProcessLock::acquire(dir.path()).unwrap();
    }
}
