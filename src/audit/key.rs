//! The key that signs seals: Ed25519 (RFC 8032), in a file as OpenSSL writes and reads it (PKCS #8 in PEM).

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use super::merkle::{from_hex, to_hex};

/// Keeps these signatures apart from any other use of the key.
const DOMAIN: &[u8] = b"viewledger seal 1\n";
/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410).
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot {action} the key file {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{} holds no Ed25519 key in PEM; make one with: openssl genpkey -algorithm ed25519 -out {}",
        path.display(), path.display()
    )]
    Format { path: PathBuf },
    #[error("the system gives no random numbers")]
    Random,
    #[error("\"{0}\" is not a public key of 64 hexadecimal digits")]
    Public(String),
}

/// What signatures are checked with, written as 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(String);

impl PublicKey {
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.trim().to_ascii_lowercase();
        match from_hex(&text) {
            Some(bytes) if bytes.len() == 32 => Ok(Self(text)),
            _ => Err(KeyError::Public(text)),
        }
    }

    /// Whether `signature`, in hexadecimal digits, is this key's under `statement`.
    pub fn has_signed(&self, statement: &str, signature: &str) -> bool {
        let (Some(key), Some(signature)) = (from_hex(&self.0), from_hex(signature)) else { return false };
        UnparsedPublicKey::new(&ED25519, key).verify(&signed(statement), &signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn signed(statement: &str) -> Vec<u8> {
    [DOMAIN, statement.as_bytes()].concat()
}

/// Signs seals.
#[derive(Debug)]
pub struct SigningKey {
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// Reads the key, or makes one, readable by its owner alone, where there is no file.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::open(path) {
            Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                match Self::create(path) {
                    // Another process was first.
                    Err(KeyError::File { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
                        Self::open(path)
                    }
                    made => made,
                }
            }
            read => read,
        }
    }

    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(path).map_err(|source| file_error("read", path, source))?;
        let format = || KeyError::Format { path: path.to_owned() };
        let body = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).ok_or_else(format)?.0;
        let body: String = body.split_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|_| format())?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|_| format())?;
        Ok(Self { pair })
    }

    fn create(path: &Path) -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::Random)?;
        let der = [PKCS8.as_slice(), &seed].concat();
        let text = format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(&der));
        let failed = |source| file_error("write", path, source);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        // Under its name it is there whole or not at all: whoever else starts would read half of it.
        let mut staging = path.as_os_str().to_owned();
        staging.push(format!(".{}", to_hex(&rand::random::<[u8; 8]>())));
        let staging = PathBuf::from(staging);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staging).map_err(failed)?;
        let named = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::hard_link(&staging, path));
        // What stays behind is unreadable for others.
        drop(std::fs::remove_file(&staging));
        named.map_err(failed)?;
        Self::open(path)
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(to_hex(self.pair.public_key().as_ref()))
    }

    /// In hexadecimal digits.
    pub fn sign(&self, statement: &str) -> String {
        to_hex(self.pair.sign(&signed(statement)).as_ref())
    }
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> KeyError {
    KeyError::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/seal.pem");
        let made = SigningKey::open_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(SigningKey::open_or_create(&path).unwrap().public(), made.public());
        let other = SigningKey::open_or_create(&dir.path().join("other.pem")).unwrap();
        let signature = made.sign("text");
        assert!(made.public().has_signed("text", &signature));
        assert!(!made.public().has_signed("texT", &signature));
        assert!(!other.public().has_signed("text", &signature));
        assert!(!made.public().has_signed("text", "00"));
        assert!(!made.public().has_signed("text", "no digits"));
    }

    /// The first key of RFC 8032, 7.1, in the form of RFC 8410.
    #[test]
    fn a_key_of_openssl_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.pem");
        let seed = from_hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let body = STANDARD.encode([PKCS8.as_slice(), &seed].concat());
        std::fs::write(&path, format!("{BEGIN}\r\n{body}\r\n{END}\r\n")).unwrap();
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(SigningKey::open(&path).unwrap().public().to_string(), public);
        assert_eq!(PublicKey::parse(&public.to_uppercase()).unwrap().to_string(), public);
    }

    #[test]
    fn what_is_no_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.pem");
        for bad in ["", "secret", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            std::fs::write(&path, bad).unwrap();
            let error = SigningKey::open_or_create(&path).unwrap_err().to_string();
            assert!(error.contains("openssl genpkey") && error.contains("seal.pem"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bad);
        }
        assert!(PublicKey::parse("d75a98").is_err());
    }
}
