//! Certificates, files and clients for tests.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_telemetry::{Clock, Metrics};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{ClientAuth, Tls, TlsFile, TlsSettings};

/// A certificate and its key, PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Signs certificates.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sign(&self, params: CertificateParams) -> Pair {
        self.sign_for(params, KeyPair::generate().unwrap())
    }

    pub(crate) fn sign_for(&self, params: CertificateParams, key: KeyPair) -> Pair {
        Pair { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    pub(crate) fn server(&self) -> Pair {
        self.sign(server())
    }

    pub(crate) fn client(&self, name: &str) -> Pair {
        self.sign(client(name))
    }
}

fn params(name: &str, names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// For a server that is reached over the loopback address.
pub(crate) fn server() -> CertificateParams {
    let mut params = params("a server", &["localhost", "127.0.0.1"]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

pub(crate) fn client(name: &str) -> CertificateParams {
    let mut params = params(name, &["client.example"]);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// One that ended years ago.
pub(crate) fn expired(mut params: CertificateParams) -> CertificateParams {
    (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    params
}

/// What `openssl req -x509` makes: signed by itself, and marked an authority.
pub(crate) fn by_itself() -> Pair {
    let mut params = params("itself", &["localhost", "127.0.0.1"]);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    Pair { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

/// A folder as a kubelet mounts a secret: files behind a link that is flipped.
pub(crate) struct Secret {
    folder: TempDir,
    versions: usize,
}

impl Secret {
    pub(crate) fn new(pair: &Pair, trust: &str) -> Self {
        let mut secret = Secret { folder: tempfile::tempdir().unwrap(), versions: 0 };
        secret.flip(pair, trust);
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(format!("..data/{name}"), secret.path(name)).unwrap();
        }
        secret
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All files at once.
    pub(crate) fn flip(&mut self, pair: &Pair, trust: &str) {
        self.versions += 1;
        let version = format!("..v{}", self.versions);
        let data = self.path(&version);
        fs::create_dir(&data).unwrap();
        for (name, text) in [("tls.crt", &*pair.certificate), ("tls.key", &pair.key), ("ca.crt", trust)] {
            fs::write(data.join(name), text).unwrap();
        }
        symlink(version, self.path("..data_tmp")).unwrap();
        fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
    }

    pub(crate) fn settings(&self, client_auth: ClientAuth) -> TlsSettings {
        TlsSettings {
            certificate: file("MM_TLS_KEY_CERT_PATH", &self.path("tls.crt")),
            key: file("MM_TLS_PRIVATE_KEY_PATH", &self.path("tls.key")),
            passphrase: None,
            client_auth,
            trust: vec![file("MM_TLS_TRUST_CERT_PATH", &self.path("ca.crt"))],
        }
    }

    pub(crate) fn open(&self, client_auth: ClientAuth) -> (Tls, Metrics) {
        let metrics = Metrics::default();
        (Tls::open(self.settings(client_auth), &Clock::system(), &metrics).unwrap(), metrics)
    }
}

pub(crate) fn file(setting: &str, path: &Path) -> TlsFile {
    TlsFile { setting: setting.to_owned(), path: path.to_owned() }
}

/// A handshake as `localhost`'s client.
pub(crate) async fn connect<S>(stream: S, trust: &str, own: Option<&Pair>, protocols: &[&str]) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trust.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// Sends `GET path` over HTTP/1.1 and reads one answer with a short body.
pub(crate) async fn get<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, path: &str) -> io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.to_lowercase().split_once("content-length: ").map_or(0, |(_, rest)| rest.lines().next().unwrap().parse().unwrap());
            if body.len() >= length {
                return Ok(text.into_owned());
            }
        }
        let mut piece = [0; 1024];
        match stream.read(&mut piece).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&piece[..read]),
        }
    }
}
