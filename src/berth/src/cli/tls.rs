//! TLS of the client: which servers are trusted, and what it shows of itself.

use std::fs;
use std::sync::Arc;

use clap::Args;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::fault::Fault;

/// How a server is reached over https.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TlsArgs {
    /// Certificates that an https server is trusted by, PEM [default: those of this machine]
    #[arg(long, value_name = "FILE")]
    cacert: Option<String>,
    /// Certificate to show to an https server that asks for one, PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<String>,
    /// Private key to it, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<String>,
    /// Name that the certificate of an https server must be for [default: the host in its URL]
    #[arg(long, value_name = "NAME")]
    tls_server_name: Option<String>,
}

impl TlsArgs {
    /// Connects with TLS where the URL says so.
    ///
    /// # Errors
    /// What is wrong with the files.
    pub(crate) fn connector(&self, http: HttpConnector) -> Result<HttpsConnector<HttpConnector>, Fault> {
        let mut roots = RootCertStore::empty();
        let themselves: Vec<CertificateDer<'static>> = match &self.cacert {
            Some(file) => all(file, "--cacert")?,
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                Vec::new()
            }
        };
        for certificate in &themselves {
            roots.add(certificate.clone()).map_err(|fault| Fault::local(format!("--cacert: {:?}: {fault}", self.cacert.as_deref().unwrap_or(""))))?;
        }
        let own = match (&self.cert, &self.key) {
            (Some(certificate), Some(file)) => {
                let key = PrivateKeyDer::from_pem_slice(&read(file, "--key")?);
                let key = key.map_err(|_fault| Fault::local(format!("--key: {file:?} holds no private key that is not encrypted, in PEM")))?;
                Some((all(certificate, "--cert")?, key))
            }
            _ => None,
        };
        let config = config(roots, &themselves, own).map_err(|fault| Fault::local(format!("--cert, --key: {fault}")))?;
        let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http();
        let builder = match &self.tls_server_name {
            None => builder,
            Some(name) => {
                let name =
                    ServerName::try_from(name.clone()).map_err(|_fault| Fault::local(format!("--tls-server-name: {name:?} is no name of a host")))?;
                builder.with_server_name_resolver(FixedServerNameResolver::new(name))
            }
        };
        Ok(builder.enable_http1().wrap_connector(http))
    }
}

fn read(file: &str, option: &str) -> Result<Vec<u8>, Fault> {
    fs::read(file).map_err(|fault| Fault::local(format!("{option}: cannot read {file:?}: {fault}")))
}

fn all(file: &str, option: &str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file, option)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Fault::local(format!("{option}: {file:?} holds no certificate in PEM"))),
    }
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn config(roots: RootCertStore, themselves: &[CertificateDer<'static>], own: Option<Own>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = if themselves.is_empty() {
        builder.with_root_certificates(roots)
    } else {
        let trusting = Trusting::new(roots, themselves.to_vec(), provider)?;
        builder.dangerous().with_custom_certificate_verifier(Arc::new(trusting))
    };
    match own {
        None => Ok(builder.with_no_client_auth()),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key),
    }
}

/// Trusts servers whose certificate a listed one has signed, and those whose own certificate is listed, as curl does: a
/// certificate that signed itself is marked an authority as a rule, which `webpki` takes from no server.
#[derive(Debug)]
struct Trusting {
    chains: Arc<WebPkiServerVerifier>,
    themselves: Vec<CertificateDer<'static>>,
}

impl Trusting {
    fn new(roots: RootCertStore, themselves: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<Self, rustls::Error> {
        let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        Ok(Trusting { chains: chains.map_err(|fault| rustls::Error::General(fault.to_string()))?, themselves })
    }
}

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.chains.verify_server_cert(own, intermediates, name, ocsp, now) {
            // Its time was checked before its issuer and its marks: only these are left to be wrong.
            Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_))) if self.themselves.contains(own) => {
                verify_server_name(&ParsedCertificate::try_from(own)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            told => told,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_used_are_told_with_their_option() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("x.pem");
        fs::write(&file, "nothing").expect("written");
        let (here, none) = (file.display().to_string(), folder.path().join("none").display().to_string());
        let (here, none) = (Some(here), Some(none));
        for (args, why) in [
            (TlsArgs { cacert: none.clone(), ..TlsArgs::default() }, "error: --cacert: cannot read"),
            (TlsArgs { cacert: here.clone(), ..TlsArgs::default() }, "error: --cacert: "),
            (TlsArgs { cert: here.clone(), key: none, ..TlsArgs::default() }, "error: --key: cannot read"),
            (TlsArgs { cert: here.clone(), key: here, ..TlsArgs::default() }, "error: --key: "),
            (TlsArgs { tls_server_name: Some("a b".to_owned()), ..TlsArgs::default() }, "error: --tls-server-name: \"a b\" is no name of a host"),
        ] {
            let Err(fault) = args.connector(HttpConnector::new()) else { panic!("taken: {why}") };
            let fault = fault.to_string();
            assert!(fault.starts_with(why), "{fault}");
        }
        assert!(TlsArgs::default().connector(HttpConnector::new()).is_ok());
    }
}
