//! TLS by rustls: one certificate for all protocols, which is read again when the files are.
//!
//! Only this file and `tls/` name rustls.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::digest;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

use super::auth::Protocol;

pub mod pinned;
pub mod sockets;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {} (`{key}`)", path.display())]
    Read { path: PathBuf, key: &'static str, source: std::io::Error },
    #[error("{} (`tls.certificate`) holds no certificate in PEM", path.display())]
    NoCertificate { path: PathBuf },
    /// Says nothing of what stands there.
    #[error("{} (`tls.key`) holds no private key in PEM", path.display())]
    NoKey { path: PathBuf },
    #[error("the certificate {} and the key {} cannot be used", certificate.display(), key.display())]
    Unusable { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// Which connections may be without TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    Never,
    FromLoopback,
    Always,
}

/// The certificate of the server, as it is now.
#[derive(Debug)]
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    plain: Plain,
    current: ArcSwap<Loaded>,
}

/// What one connection is offered, from its first byte to its last.
#[derive(Debug)]
pub struct Loaded {
    postgres: Arc<ServerConfig>,
    flight: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
    binding: Option<Vec<u8>>,
}

impl Tls {
    pub fn load(certificate: &Path, key: &Path, plain: Plain) -> Result<Self, TlsError> {
        let current = ArcSwap::from_pointee(Loaded::read(certificate, key)?);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), plain, current })
    }

    /// Connections that come from now on are offered what the files hold now. With a fault it stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        self.current.store(Arc::new(Loaded::read(&self.certificate, &self.key)?));
        Ok(())
    }

    pub fn current(&self) -> Arc<Loaded> {
        self.current.load_full()
    }

    /// Whether a client at this address may come without TLS.
    pub fn admits_plain(&self, address: IpAddr) -> bool {
        match self.plain {
            Plain::Never => false,
            Plain::FromLoopback => address.is_loopback(),
            Plain::Always => true,
        }
    }
}

impl Loaded {
    fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let read = |path: &Path, key| {
            std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), key, source })
        };
        let none = || TlsError::NoCertificate { path: certificate.to_owned() };
        let chain = read(certificate, "tls.certificate")?;
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(&chain).collect::<Result<_, _>>().map_err(|_| none())?;
        let binding = end_point(chain.first().ok_or_else(none)?);
        let secret = PrivateKeyDer::from_pem_slice(&read(key, "tls.key")?)
            .map_err(|_| TlsError::NoKey { path: key.to_owned() })?;
        let config = |protocol: &[u8]| -> Result<Arc<ServerConfig>, TlsError> {
            let unusable =
                |source| TlsError::Unusable { certificate: certificate.to_owned(), key: key.to_owned(), source };
            let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(unusable)?
                .with_no_client_auth()
                .with_single_cert(chain.clone(), secret.clone_key())
                .map_err(unusable)?;
            config.alpn_protocols = vec![protocol.to_vec()];
            Ok(Arc::new(config))
        };
        Ok(Self { postgres: config(b"postgresql")?, flight: config(b"h2")?, http: config(b"http/1.1")?, binding })
    }

    pub fn acceptor(&self, protocol: Protocol) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(match protocol {
            Protocol::Postgres => &self.postgres,
            Protocol::Flight => &self.flight,
            Protocol::Http => &self.http,
        }))
    }

    /// By what a client knows the certificate, `tls-server-end-point` of RFC 5929; None where it has no such name.
    pub fn binding(&self) -> Option<&[u8]> {
        self.binding.as_deref()
    }
}

/// The digest of a certificate, by the algorithm that it is signed with.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (fields, _) = element(certificate, SEQUENCE)?;
    let (_, behind) = element(fields, SEQUENCE)?;
    let (signed_by, _) = element(behind, SEQUENCE)?;
    let (signed_by, _) = element(signed_by, OBJECT_IDENTIFIER)?;
    // With RSA (PKCS #1) and with ECDSA; older digests are replaced by SHA-256.
    let algorithm = match signed_by {
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04 | 0x05 | 0x0b]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02] => &digest::SHA256,
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03] => &digest::SHA384,
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d]
        | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x04] => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// The content of the first element of DER, which has this tag, and what is behind it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match *first {
        short @ 0..0x80 => (usize::from(short), rest),
        long => {
            let (bytes, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
            let length = bytes.iter().try_fold(0_usize, |length, byte| {
                length.checked_mul(256).map(|length| length + usize::from(*byte))
            })?;
            (length, rest)
        }
    };
    (*found == tag).then(|| rest.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn stored(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
    }

    #[test]
    fn a_certificate_is_loaded_and_a_bad_one_later_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
        let lay = |c: &str, k: &str| {
            std::fs::copy(stored(c), &certificate).unwrap();
            std::fs::copy(stored(k), &key).unwrap();
        };
        lay("first.pem", "first.key");
        let tls = Tls::load(&certificate, &key, Plain::FromLoopback).unwrap();
        let first = tls.current().binding().unwrap().to_vec();
        assert_eq!(first.len(), 32);
        lay("second.pem", "second.key");
        tls.reload().unwrap();
        let second = tls.current().binding().unwrap().to_vec();
        assert_ne!(first, second);
        lay("first.pem", "second.key");
        assert!(tls.reload().unwrap_err().to_string().contains("cannot be used"));
        std::fs::write(&key, "no key").unwrap();
        assert!(tls.reload().unwrap_err().to_string().ends_with("k.pem (`tls.key`) holds no private key in PEM"));
        std::fs::write(&certificate, "").unwrap();
        assert!(tls.reload().unwrap_err().to_string().contains("holds no certificate"));
        std::fs::remove_file(&certificate).unwrap();
        assert!(tls.reload().unwrap_err().to_string().contains("cannot read"));
        assert_eq!(tls.current().binding().unwrap(), second);
    }

    #[test]
    fn what_is_no_certificate_has_no_end_point() {
        for bytes in
            [&[][..], &[0x30], &[0x30, 0x84], &[0x30, 0x82, 0xff], &[0x30, 0x02, 0x30, 0x00], &[0x30, 0xff, 1]]
        {
            assert_eq!(end_point(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn who_may_come_without_tls() {
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([10, 0, 0, 1]));
        let admits = |plain| {
            let tls = Tls::load(&stored("first.pem"), &stored("first.key"), plain).unwrap();
            (tls.admits_plain(here), tls.admits_plain(there))
        };
        assert_eq!(admits(Plain::Never), (false, false));
        assert_eq!(admits(Plain::FromLoopback), (true, false));
        assert_eq!(admits(Plain::Always), (true, true));
    }
}
