//! What is kept of a password, in PostgreSQL's format: `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const PREFIX: &str = "SCRAM-SHA-256$";
/// More would let one attempt to connect take seconds.
const ITERATIONS_MAX: u32 = 1_000_000;
/// Bytes of a salt.
const SALT_MAX: usize = 256;

/// Checks a password without holding it (RFC 5802). Never printed by the way: only where it was asked for.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub iterations: NonZeroU32,
    pub salt: Vec<u8>,
    pub stored_key: [u8; 32],
    pub server_key: [u8; 32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a verifier: it has the form SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey")]
pub struct NotAVerifier;

impl Verifier {
    /// Whether a text is meant to be a verifier, and no password.
    pub fn looks_like_one(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    /// In PostgreSQL's format.
    pub fn reveal(&self) -> String {
        let [salt, stored, server] =
            [self.salt.as_slice(), &self.stored_key, &self.server_key].map(|bytes| STANDARD.encode(bytes));
        format!("{PREFIX}{}:{salt}${stored}:{server}", self.iterations)
    }
}

impl FromStr for Verifier {
    type Err = NotAVerifier;

    fn from_str(text: &str) -> Result<Self, NotAVerifier> {
        let read = || {
            let (secret, keys) = text.strip_prefix(PREFIX)?.split_once('$')?;
            let (iterations, salt) = secret.split_once(':')?;
            let (stored, server) = keys.split_once(':')?;
            let key = |text: &str| STANDARD.decode(text).ok()?.try_into().ok();
            let iterations: NonZeroU32 = iterations.parse().ok()?;
            let salt = STANDARD.decode(salt).ok()?;
            let fits = iterations.get() <= ITERATIONS_MAX && (1..=SALT_MAX).contains(&salt.len());
            fits.then_some(())?;
            Some(Self { iterations, salt, stored_key: key(stored)?, server_key: key(server)? })
        };
        read().ok_or(NotAVerifier)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(...)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KEY: &str = "FOoTCMbJzxbNAMpVEjOlHPwOhTAsOkkVKaRwPPqUuIk=";

    #[test]
    fn the_format_is_postgresqls_and_debug_tells_nothing() {
        let text = format!("SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==${KEY}:{KEY}");
        let verifier: Verifier = text.parse().unwrap();
        assert_eq!((verifier.iterations.get(), verifier.salt.as_slice()), (4096, b"saltsaltsaltsalt".as_slice()));
        assert_eq!(verifier.reveal(), text);
        assert_eq!(format!("{verifier:?}"), "Verifier(...)");
    }

    #[test]
    fn anything_else_is_refused() {
        for wrong in [
            "secret".to_owned(),
            String::new(),
            format!("SCRAM-SHA-256$0:c2FsdA==${KEY}:{KEY}"),
            format!("SCRAM-SHA-256$2000000:c2FsdA==${KEY}:{KEY}"),
            format!("SCRAM-SHA-256$4096:${KEY}:{KEY}"),
            format!("SCRAM-SHA-256$4096:c2FsdA==${KEY}"),
            format!("SCRAM-SHA-256$4096:c2FsdA==$c2hvcnQ=:{KEY}"),
            "md5d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        ] {
            assert_eq!(wrong.parse::<Verifier>(), Err(NotAVerifier), "{wrong}");
        }
    }
}
