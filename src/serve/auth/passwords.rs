//! Passwords that stand in no definition: in the environment, and in a file that secrets are mounted as.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arc_swap::ArcSwap;

use super::scram;
use crate::catalog::verifier::Verifier;
use crate::config::Secret;

/// Verifiers by role. The environment wins over the file, and both over what a role's declaration says.
#[derive(Debug, Default)]
pub struct Passwords {
    /// By the name of the role in capital letters, as variables have it.
    of_environment: BTreeMap<String, Verifier>,
    file: Option<PathBuf>,
    of_file: ArcSwap<BTreeMap<String, Verifier>>,
}

#[derive(Debug, thiserror::Error)]
pub enum PasswordsError {
    #[error("cannot read the passwords in {} (`auth.passwords_file`)", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// Says nothing of what stands there.
    #[error("{}:{line}: expected role:password or role:verifier", path.display())]
    Line { path: PathBuf, line: usize },
}

impl Passwords {
    /// `environment` has the names of roles in capital letters.
    pub fn load(environment: &BTreeMap<String, Secret>, file: Option<&Path>) -> Result<Self, PasswordsError> {
        let of_environment =
            environment.iter().map(|(name, secret)| (name.clone(), kept(secret.reveal()))).collect();
        let loaded = Self { of_environment, file: file.map(Path::to_owned), of_file: ArcSwap::default() };
        loaded.reload()?;
        Ok(loaded)
    }

    pub fn reload(&self) -> Result<(), PasswordsError> {
        let Some(path) = &self.file else { return Ok(()) };
        let text =
            std::fs::read_to_string(path).map_err(|source| PasswordsError::Read { path: path.clone(), source })?;
        let mut read = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (role, secret) = line
                .split_once(':')
                .filter(|(role, secret)| !role.is_empty() && !secret.is_empty())
                .ok_or_else(|| PasswordsError::Line { path: path.clone(), line: index + 1 })?;
            read.insert(role.to_owned(), kept(secret));
        }
        self.of_file.store(read.into());
        Ok(())
    }

    pub fn of(&self, role: &str) -> Option<Verifier> {
        let variable = role.to_uppercase().replace('-', "_");
        self.of_environment.get(&variable).cloned().or_else(|| self.of_file.load().get(role).cloned())
    }
}

/// A verifier as it is, or one of a password.
fn kept(secret: &str) -> Verifier {
    secret.parse().unwrap_or_else(|_| new_verifier(secret))
}

/// With a salt of its own.
pub fn new_verifier(password: &str) -> Verifier {
    scram::verifier(password, &rand::random::<[u8; scram::SALT_BYTES]>(), scram::ITERATIONS)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_environment_wins_over_the_file_and_bad_lines_are_named_without_their_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwords");
        let made = new_verifier("from:file");
        std::fs::write(&path, format!("# roles\nanalyst:from:file\n\nbilling:{}\n", made.reveal())).unwrap();
        let environment = BTreeMap::from([("BILL_ING".to_owned(), Secret::new("from env"))]);
        let passwords = Passwords::load(&environment, Some(&path)).unwrap();
        assert!(scram::matches("from:file", &passwords.of("analyst").unwrap()));
        assert_eq!(passwords.of("billing"), Some(made));
        assert!(scram::matches("from env", &passwords.of("bill-ing").unwrap()));
        assert_eq!(passwords.of("nobody"), None);
        std::fs::write(&path, "analyst:new\nsecret-without-role").unwrap();
        let error = passwords.reload().unwrap_err().to_string();
        assert!(error.ends_with("passwords:2: expected role:password or role:verifier"), "{error}");
        assert!(scram::matches("from:file", &passwords.of("analyst").unwrap()));
        assert!(!format!("{passwords:?}").contains("from"), "{passwords:?}");
    }
}
