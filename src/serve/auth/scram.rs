//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's side, over a verifier: the password itself is never here.
//!
//! pgwire's own exchange wants the salted password, which PostgreSQL's verifiers do not hold.

use std::borrow::Cow;
use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};

use crate::catalog::verifier::Verifier;

/// As PostgreSQL does.
pub const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("it is not zero");
/// Bytes of a new salt.
pub const SALT_BYTES: usize = 16;
/// What binds an exchange to the server's certificate (RFC 5929).
const BINDING: &str = "tls-server-end-point";

/// The two ways of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    /// Bound to the certificate of the connection.
    Plus,
}

impl Mechanism {
    pub fn named(name: &str) -> Option<Self> {
        [Self::Plain, Self::Plus].into_iter().find(|mechanism| mechanism.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "SCRAM-SHA-256",
            Self::Plus => "SCRAM-SHA-256-PLUS",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// Not the password, or not the connection that the client sees.
    #[error("the password does not match")]
    Wrong,
}

/// An exchange after its first half.
pub struct Exchange {
    verifier: Verifier,
    /// What `c=` must say.
    bound: String,
    nonce: String,
    /// Both first messages, as they are signed.
    said: String,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

impl Exchange {
    /// Answers the client's first message. `binding` is what the connection's certificate is known by; `nonce` the server's
    /// part of the nonce.
    pub fn begin(
        verifier: Verifier,
        mechanism: Mechanism,
        binding: Option<&[u8]>,
        first: &[u8],
        nonce: &str,
    ) -> Result<(Self, String), ScramError> {
        let first = std::str::from_utf8(first).map_err(|_| ScramError::Malformed("it is not UTF-8"))?;
        let (header, bare) = gs2(first)?;
        let flag = header.split(',').next().unwrap_or_default();
        let mut bound = header.as_bytes().to_vec();
        match (mechanism, flag, binding) {
            (Mechanism::Plus, flag, Some(binding)) if flag.strip_prefix("p=") == Some(BINDING) => {
                bound.extend_from_slice(binding);
            }
            (Mechanism::Plain, "n", _) | (Mechanism::Plain, "y", None) => {}
            // The client was not shown that there is one: somebody stands between.
            (Mechanism::Plain, "y", Some(_)) => return Err(ScramError::Wrong),
            _ => return Err(ScramError::Malformed("the channel binding is not that of the mechanism")),
        }
        let mut parts = bare.split(',');
        let (user, theirs) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        // The name was told in the start-up message; what is repeated here does not count.
        let theirs = theirs.strip_prefix("r=").filter(|nonce| !nonce.is_empty() && user.starts_with("n="));
        let theirs = theirs.ok_or(ScramError::Malformed("expected n=...,r=..."))?;
        let nonce = format!("{theirs}{nonce}");
        let answer = format!("r={nonce},s={},i={}", STANDARD.encode(&verifier.salt), verifier.iterations);
        let said = format!("{bare},{answer}");
        Ok((Self { verifier, bound: STANDARD.encode(bound), nonce, said }, answer))
    }

    /// Checks the client's proof; what proves to the client that the server knew the verifier.
    pub fn finish(self, last: &[u8]) -> Result<String, ScramError> {
        let last = std::str::from_utf8(last).map_err(|_| ScramError::Malformed("it is not UTF-8"))?;
        let (without_proof, proof) = last.rsplit_once(",p=").ok_or(ScramError::Malformed("expected a proof"))?;
        let mut parts = without_proof.split(',');
        let (bound, nonce) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if bound.strip_prefix("c=") != Some(&self.bound) {
            return Err(ScramError::Wrong);
        }
        if nonce.strip_prefix("r=") != Some(&self.nonce) {
            return Err(ScramError::Malformed("the nonce is another"));
        }
        let proof = STANDARD.decode(proof).ok().and_then(|proof| <[u8; 32]>::try_from(proof).ok());
        let proof = proof.ok_or(ScramError::Malformed("the proof is no signature"))?;
        let said = format!("{},{without_proof}", self.said);
        let signature = sign(&self.verifier.stored_key, said.as_bytes());
        let mut client_key = proof;
        client_key.iter_mut().zip(signature).for_each(|(byte, signed)| *byte ^= signed);
        if !same(&hash(&client_key), &self.verifier.stored_key) {
            return Err(ScramError::Wrong);
        }
        Ok(format!("v={}", STANDARD.encode(sign(&self.verifier.server_key, said.as_bytes()))))
    }
}

/// `n,,`, `y,,` or `p=name,,` with the commas, and what follows.
fn gs2(first: &str) -> Result<(&str, &str), ScramError> {
    let malformed = ScramError::Malformed("expected a GS2 header");
    let flag = first.find(',').ok_or(malformed)?;
    let rest = first.get(flag + 1..).unwrap_or_default();
    let authorization = rest.find(',').ok_or(malformed)?;
    if authorization != 0 {
        return Err(ScramError::Malformed("one role cannot act as another"));
    }
    Ok((first.get(..flag + 2).unwrap_or_default(), rest.get(1..).unwrap_or_default()))
}

/// What is to be kept of a password.
pub fn verifier(password: &str, salt: &[u8], iterations: NonZeroU32) -> Verifier {
    // What cannot be normalized is taken as it is, as in PostgreSQL.
    let normal = stringprep::saslprep(password).unwrap_or(Cow::Borrowed(password));
    let mut salted = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, normal.as_bytes(), &mut salted);
    let stored_key = hash(&sign(&salted, b"Client Key"));
    Verifier { iterations, salt: salt.to_vec(), stored_key, server_key: sign(&salted, b"Server Key") }
}

/// Whether a password is the one of which `kept` was made. Takes a millisecond or more.
pub fn matches(password: &str, kept: &Verifier) -> bool {
    same(&verifier(password, &kept.salt, kept.iterations).stored_key, &kept.stored_key)
}

pub fn sign(key: &[u8], text: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    bytes(tag.as_ref())
}

fn hash(text: &[u8]) -> [u8; 32] {
    bytes(digest::digest(&digest::SHA256, text).as_ref())
}

fn bytes(of: &[u8]) -> [u8; 32] {
    of.try_into().expect("SHA-256 has 32 bytes")
}

/// In a time that does not tell where they differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The exchange of RFC 7677, section 3.
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn pencil() -> Verifier {
        verifier("pencil", &STANDARD.decode(SALT).unwrap(), ITERATIONS)
    }

    #[test]
    fn the_example_of_the_rfc_is_understood() {
        let (exchange, answer) = Exchange::begin(pencil(), Mechanism::Plain, None, FIRST, NONCE).unwrap();
        assert_eq!(answer, format!("r=rOprNGfwEbeRWgbNEkqO{NONCE},s={SALT},i=4096"));
        assert_eq!(exchange.finish(LAST.as_bytes()).unwrap(), "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
    }

    #[test]
    fn another_password_nonce_or_binding_does_not_pass() {
        let begin = |verifier| Exchange::begin(verifier, Mechanism::Plain, None, FIRST, NONCE).unwrap().0;
        let other = verifier("Pencil", &STANDARD.decode(SALT).unwrap(), ITERATIONS);
        assert_eq!(begin(other).finish(LAST.as_bytes()), Err(ScramError::Wrong));
        assert_eq!(begin(pencil()).finish(LAST.replace("biws", "eSws").as_bytes()), Err(ScramError::Wrong));
        for wrong in ["", "c=biws", "c=biws,r=x,p=", "\u{fffd}", &LAST.replace("rOpr", "xxxx")] {
            let refused = begin(pencil()).finish(wrong.as_bytes());
            assert!(matches!(refused, Err(ScramError::Malformed(_) | ScramError::Wrong)), "{wrong}");
        }
    }

    #[test]
    fn a_client_that_could_bind_and_was_not_let_is_refused() {
        let begin = |mechanism, binding, first: &[u8]| {
            Exchange::begin(pencil(), mechanism, binding, first, NONCE).map(|_| ())
        };
        let cert: Option<&[u8]> = Some(b"hash");
        assert_eq!(begin(Mechanism::Plain, None, b"y,,n=,r=a"), Ok(()));
        assert_eq!(begin(Mechanism::Plain, cert, b"y,,n=,r=a"), Err(ScramError::Wrong));
        assert_eq!(begin(Mechanism::Plus, cert, b"p=tls-server-end-point,,n=,r=a"), Ok(()));
        for (mechanism, first) in [
            (Mechanism::Plus, "n,,n=,r=a"),
            (Mechanism::Plus, "p=tls-unique,,n=,r=a"),
            (Mechanism::Plain, "p=tls-server-end-point,,n=,r=a"),
            (Mechanism::Plain, "n,a=other,n=,r=a"),
            (Mechanism::Plain, "n,,n="),
            (Mechanism::Plain, "n,,n=,r="),
            (Mechanism::Plain, "n,"),
            (Mechanism::Plain, ""),
        ] {
            assert!(matches!(begin(mechanism, cert, first.as_bytes()), Err(ScramError::Malformed(_))), "{first}");
        }
    }

    #[test]
    fn passwords_match_their_verifier_alone() {
        assert!(matches("pencil", &pencil()) && !matches("pencil ", &pencil()));
        // One letter, written in two ways.
        let accent = verifier("\u{e9}", b"0123456789abcdef", ITERATIONS);
        assert!(matches("e\u{301}", &accent));
    }
}
