//! From what the files hold to what a handshake needs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::Clock;
use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::SecretDocument;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use x509_cert::der::Decode as _;
use x509_cert::spki::SubjectPublicKeyInfoRef;

use super::files::{ClientAuth, Content, TlsFile, TlsSettings};
use super::identity::Parsed;
use super::{Speaks, wall};

/// Certificate, key, and who is trusted: all of them checked.
pub(super) struct Credentials {
    certified: CertifiedKey,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    /// When the certificate ends, since the epoch.
    pub(super) expires: Duration,
    /// The names and addresses that it is for.
    pub(super) names: Vec<String>,
}

impl Credentials {
    /// Makes them of what the files hold.
    ///
    /// # Errors
    /// A line for each fault.
    pub(super) fn of(settings: &TlsSettings, content: &Content) -> Result<Self, Vec<String>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut faults = Vec::new();
        let chain = chain(&settings.certificate, &content.certificate).map_err(|fault| faults.push(fault)).ok();
        let key = private_key(settings, &content.key).map_err(|fault| faults.push(fault)).ok();
        let key = key.and_then(|key| {
            let signing = provider.key_provider.load_private_key(key);
            let advice = "use RSA of 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519";
            signing.map_err(|fault| faults.push(settings.key.fault(format!("the private key cannot be used: {fault}: {advice}")))).ok()
        });
        let clients = match settings.client_auth {
            ClientAuth::None => None,
            ClientAuth::Optional | ClientAuth::Require => clients(settings, content, &provider).map_err(|more| faults.extend(more)).ok(),
        };
        let Some(((chain, own), key)) = chain.zip(key) else { return Err(faults) };
        let public = key.public_key();
        let public = public.as_ref().and_then(|public| SubjectPublicKeyInfoRef::from_der(public).ok());
        if public.is_some_and(|public| public.subject_public_key.raw_bytes() != own.public_key()) {
            let first = format!("the key does not fit the first certificate in {}", settings.certificate.path.display());
            faults
                .push(settings.key.fault(format!("{first}: give the key that the certificate was made for, and the server's own certificate first")));
        }
        let (expires, names) = (own.validity().1, own.names());
        if faults.is_empty() { Ok(Credentials { certified: CertifiedKey::new(chain, key), clients, expires, names }) } else { Err(faults) }
    }

    pub(super) fn configs(&self, clock: &Clock) -> Result<ServerConfigs, rustls::Error> {
        let grpc: &[&[u8]] = &[b"h2"];
        Ok(ServerConfigs { grpc: Arc::new(self.config(grpc, clock)?), rest: Arc::new(self.config(&[b"h2", b"http/1.1"], clock)?) })
    }

    fn config(&self, protocols: &[&[u8]], clock: &Clock) -> Result<ServerConfig, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_details(provider, Arc::new(WallTime(clock.clone()))).with_safe_default_protocol_versions()?;
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients)),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        if self.clients.is_some() {
            // A session that is taken up again is not checked again: who was trusted would be for as long as it lasts.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }
}

/// One for each port: they differ in the protocols that they agree to.
pub(super) struct ServerConfigs {
    grpc: Arc<ServerConfig>,
    rest: Arc<ServerConfig>,
}

impl ServerConfigs {
    pub(super) fn of(&self, speaks: Speaks) -> Arc<ServerConfig> {
        Arc::clone(match speaks {
            Speaks::Grpc => &self.grpc,
            Speaks::Rest => &self.rest,
        })
    }
}

fn certificates(file: &TlsFile, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match found {
        Ok(none) if none.is_empty() => Err(file.fault("holds no certificate: it must be PEM, with -----BEGIN CERTIFICATE-----")),
        Ok(some) => Ok(some),
        Err(fault) => Err(file.fault(format!("is no PEM: {}", told(&fault)))),
    }
}

/// What is wrong with a file, and nothing of its content.
fn told(fault: &pem::Error) -> String {
    match fault {
        pem::Error::MissingSectionEnd { .. } => "a section has no end: is the file whole?".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a section has no right begin".to_owned(),
        pem::Error::Base64Decode(_) => "a section is no base64".to_owned(),
        pem::Error::SectionTooLarge => "a section is too long".to_owned(),
        pem::Error::NoItemsFound => "nothing is in it".to_owned(),
        _ => "it cannot be read".to_owned(),
    }
}

/// The chain, and the first of it.
fn chain(file: &TlsFile, bytes: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Parsed), String> {
    let chain = certificates(file, bytes)?;
    let own = chain.first().map(Parsed::of).unwrap_or_else(|| Err("nothing is in it".to_owned()));
    let own = own.map_err(|fault| file.fault(format!("the first certificate cannot be read: {fault}")))?;
    Ok((chain, own))
}

fn private_key(settings: &TlsSettings, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let file = &settings.key;
    let text = String::from_utf8_lossy(bytes);
    if let Some(encrypted) = section(&text, "ENCRYPTED PRIVATE KEY") {
        return decrypted(settings, encrypted);
    }
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(file.fault(format!("the private key is encrypted in OpenSSL's old way, which is not read: {CONVERT}")));
    }
    PrivateKeyDer::from_pem_slice(bytes).map_err(|fault| match fault {
        pem::Error::NoItemsFound => file.fault(
            "holds no private key: it must be PEM, with -----BEGIN PRIVATE KEY-----, ENCRYPTED PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY",
        ),
        other => file.fault(format!("is no PEM: {}", told(&other))),
    })
}

/// How a key becomes one that is read.
const CONVERT: &str = "convert it with openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW";

/// The section of that label, from its first line to its last one.
fn section<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let text = &text[text.find(&begin)?..];
    Some(text.find(&end).map_or(text, |at| &text[..at + end.len()]))
}

fn decrypted(settings: &TlsSettings, section: &str) -> Result<PrivateKeyDer<'static>, String> {
    let file = &settings.key;
    let Some(passphrase) = &settings.passphrase else {
        return Err(file.fault("the private key is encrypted: give its passphrase with BERTH_TLS_KEY_PASSPHRASE or MM_TLS_PRIVATE_KEY_PASSPHRASE"));
    };
    let (_label, document) = SecretDocument::from_pem(section).map_err(|_fault| file.fault("the encrypted private key is no right PEM"))?;
    let unknown = |what: String| file.fault(format!("the private key is encrypted in a way that is not read ({what}): {CONVERT}"));
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|fault| unknown(fault.to_string()))?;
    let decrypted = encrypted.decrypt(passphrase.text()).map_err(|fault| match fault {
        pkcs8::Error::EncryptedPrivateKey(
            fault @ (pkcs8::pkcs5::Error::NoPbes1CryptSupport
            | pkcs8::pkcs5::Error::UnsupportedAlgorithm { .. }
            | pkcs8::pkcs5::Error::AlgorithmParametersInvalid { .. }),
        ) => unknown(fault.to_string()),
        // What a wrong passphrase makes of a key is not shown.
        _ => file.fault(format!("the private key cannot be decrypted: is the passphrase of {} the right one?", passphrase.setting())),
    })?;
    Ok(PrivatePkcs8KeyDer::from(decrypted.as_bytes().to_vec()).into())
}

fn clients(settings: &TlsSettings, content: &Content, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, Vec<String>> {
    let (mut roots, mut themselves, mut faults) = (RootCertStore::empty(), Vec::new(), Vec::new());
    for (file, bytes) in settings.trust.iter().zip(&content.trust) {
        match certificates(file, bytes) {
            Err(fault) => faults.push(fault),
            Ok(trusted) => {
                for certificate in trusted {
                    if let Err(fault) = roots.add(certificate.clone()) {
                        faults.push(file.fault(format!("a certificate in it cannot be trusted: {fault}")));
                    }
                    themselves.push(certificate);
                }
            }
        }
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = if settings.client_auth == ClientAuth::Optional { builder.allow_unauthenticated() } else { builder };
    match builder.build() {
        Ok(chains) => Ok(Arc::new(Trusting { chains, themselves })),
        Err(fault) => Err(vec![format!("the certificates that clients are checked with cannot be used: {fault}")]),
    }
}

/// Trusts clients whose certificate an authority has signed, and those whose own certificate is listed: upstream's
/// clients, and every OpenSSL or Go server, take a pair that was made with one `openssl req -x509`, which `webpki`
/// alone refuses as it is marked an authority.
#[derive(Debug)]
struct Trusting {
    chains: Arc<dyn ClientCertVerifier>,
    themselves: Vec<CertificateDer<'static>>,
}

impl ClientCertVerifier for Trusting {
    fn offer_client_auth(&self) -> bool {
        self.chains.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chains.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if !self.themselves.contains(own) {
            return self.chains.verify_client_cert(own, intermediates, now);
        }
        let (from, to) = Parsed::of(own).map_err(|_fault| CertificateError::BadEncoding)?.validity();
        match Duration::from_secs(now.as_secs()) {
            now if now < from => Err(CertificateError::NotValidYet.into()),
            now if now > to => Err(CertificateError::Expired.into()),
            _ => Ok(ClientCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chains.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Wall time as TLS wants it.
struct WallTime(Clock);

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(wall(&self.0)))
    }
}
