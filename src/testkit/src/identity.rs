//! Certificates for tests: an authority that nobody else knows, and what it signs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// An authority with a key of its own.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, signed by the authority.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// The names under which a server is reached in tests.
const SERVERS: [&str; 2] = ["127.0.0.1", "localhost"];

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn make() -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority.distinguished_name.push(DnType::CommonName, "an authority for tests");
        let key = KeyPair::generate()?;
        let pem = authority.self_signed(&key)?.pem();
        Ok(Authority { pem, issuer: Issuer::new(authority, key) })
    }

    /// Its own certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// For a server on the loopback address that is also reached by `names`.
    ///
    /// # Errors
    /// When a name is none.
    pub fn server(&self, names: &[&str]) -> Result<Identity> {
        let names: Vec<String> = SERVERS.iter().chain(names).map(|name| (*name).to_owned()).collect();
        self.sign(CertificateParams::new(names)?, "a server for tests", ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a client.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn client(&self) -> Result<Identity> {
        self.sign(CertificateParams::new(Vec::new())?, "a client for tests", ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, mut params: CertificateParams, name: &str, usage: ExtendedKeyUsagePurpose) -> Result<Identity> {
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        Ok(Identity { certificate: params.signed_by(&key, &self.issuer)?.pem(), key: key.serialize_pem() })
    }
}

impl Identity {
    /// Writes certificate and key into `folder` and returns both paths.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(PathBuf, PathBuf)> {
        let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
        fs::write(&certificate, &self.certificate)?;
        fs::write(&key, &self.key)?;
        Ok((certificate, key))
    }
}
