//! Who a certificate is for.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Who a client is, by the certificate that it has shown and that is trusted: an extension of its requests. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClientIdentity(Arc<Names>);

#[derive(Debug, PartialEq, Eq, Hash)]
struct Names {
    common_name: Option<String>,
    names: Vec<String>,
}

impl ClientIdentity {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let parsed = Parsed::of(certificate).ok();
        let (common_name, names) = parsed.map_or((None, Vec::new()), |parsed| (parsed.common_name(), parsed.names()));
        ClientIdentity(Arc::new(Names { common_name, names }))
    }

    /// The common name (CN) of the subject.
    #[must_use]
    pub fn common_name(&self) -> Option<&str> {
        self.0.common_name.as_deref()
    }

    /// The alternative names of the subject, as the certificate lists them: host names, URIs such as SPIFFE ids, addresses
    /// of mail and of machines.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names.iter().map(String::as_str)
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A certificate, for what our TLS library does not tell. Only its form is checked.
pub(super) struct Parsed(CertificateInner<Raw>);

impl Parsed {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        CertificateInner::<Raw>::from_der(certificate).map(Parsed).map_err(|fault| fault.to_string())
    }

    /// From when to when it counts, since the epoch.
    pub(super) fn validity(&self) -> (Duration, Duration) {
        let validity = self.0.tbs_certificate().validity();
        (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration())
    }

    /// The bits of its public key.
    pub(super) fn public_key(&self) -> &[u8] {
        self.0.tbs_certificate().subject_public_key_info().subject_public_key.raw_bytes()
    }

    fn common_name(&self) -> Option<String> {
        let name = self.0.tbs_certificate().subject().common_name().ok()??;
        Some(name.value().into_owned())
    }

    pub(super) fn names(&self) -> Vec<String> {
        let Ok(Some((_critical, names))) = self.0.tbs_certificate().get_extension::<SubjectAltName>() else { return Vec::new() };
        names.0.iter().filter_map(name).collect()
    }
}

fn name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(text) | GeneralName::UniformResourceIdentifier(text) | GeneralName::Rfc822Name(text) => Some(text.to_string()),
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|addr| addr.to_string())
        }
        GeneralName::OtherName(_) | GeneralName::DirectoryName(_) | GeneralName::EdiPartyName(_) | GeneralName::RegisteredId(_) => None,
    }
}
