//! A real S3 server, plain or with TLS from an authority of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::real_time::{Found, eventually};
use crate::{Parts, Process, curl, free_port};

/// How the server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP.
    Plain,
    /// HTTPS with a certificate from an authority that only this server's users know.
    Tls,
}

/// The server, with an empty bucket. Ends and forgets everything when dropped.
pub struct Gateway {
    // Ended before its folder is removed.
    _process: Process,
    folder: TempDir,
    endpoint: String,
    authority: Option<String>,
}

/// The one account.
const ACCESS_KEY: &str = "berth-tests";
/// File of the authority's certificate.
const AUTHORITY: &str = "authority.pem";
const SECRET_KEY: &str = "not-a-secret-of-anybody";

impl Gateway {
    /// The one bucket.
    pub const BUCKET: &'static str = "models";

    /// Starts it on a free port.
    ///
    /// # Errors
    /// When it cannot be started or does not listen within ten seconds.
    pub async fn start(parts: &Parts, transport: Transport) -> Result<Self> {
        let folder = TempDir::new()?;
        let (data, meta) = (folder.path().join("data"), folder.path().join("sidecar"));
        fs::create_dir_all(data.join(Self::BUCKET))?;
        fs::create_dir_all(&meta)?;
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(&parts.versitygw);
        command.env_clear().env("ROOT_ACCESS_KEY", ACCESS_KEY).env("ROOT_SECRET_KEY", SECRET_KEY);
        command.args(["--port", &address]);
        let mut authority = None;
        if transport == Transport::Tls {
            let tls = Identity::make()?;
            let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
            fs::write(&cert, &tls.certificate)?;
            fs::write(&key, &tls.key)?;
            fs::write(folder.path().join(AUTHORITY), &tls.authority)?;
            command.arg("--cert").arg(cert).arg("--key").arg(key);
            authority = Some(tls.authority);
        }
        command.args(["posix", "--sidecar"]).arg(&meta).arg(&data);
        let mut process = Process::start("versitygw", command)?;
        let scheme = if transport == Transport::Tls { "https" } else { "http" };
        let endpoint = format!("{scheme}://{address}");
        // Its own word for "listening" is the last line of its banner.
        process.line("its banner", Duration::from_secs(10), |line| line.starts_with('└')).await?;
        let gateway = Gateway { _process: process, folder, endpoint, authority };
        gateway.until_it_answers(&address).await?;
        Ok(gateway)
    }

    async fn until_it_answers(&self, address: &str) -> Result<()> {
        eventually("the S3 server to listen", Duration::from_secs(10), || async {
            Ok(match tokio::net::TcpStream::connect(address).await {
                Ok(_) => Found::Yes(()),
                Err(fault) => Found::NotYet(fault.to_string()),
            })
        })
        .await
    }

    /// An entry of a storage configuration for its bucket.
    #[must_use]
    pub fn storage_entry(&self) -> Value {
        let mut entry = json!({
            "type": "s3",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "endpoint_url": self.endpoint,
            "region": "us-east-1",
            "default_bucket": Self::BUCKET,
        });
        if let Some(authority) = &self.authority {
            entry["certificate"] = json!(authority);
        }
        entry
    }

    /// Uploads `file` through the server, so that it has an ETag. `curl` signs: a client that owes Berth nothing.
    ///
    /// # Errors
    /// What the server says.
    pub async fn put(&self, key: &str, file: &Path) -> Result<()> {
        let account = format!("{ACCESS_KEY}:{SECRET_KEY}");
        let url = format!("{}/{}/{key}", self.endpoint, Self::BUCKET);
        let (file, authority) = (file.to_string_lossy(), self.folder.path().join(AUTHORITY));
        let authority = authority.to_string_lossy();
        let mut args = vec!["--fail-with-body", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &account];
        args.extend(["--header", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "--upload-file", &file, &url]);
        if self.authority.is_some() {
            args.extend(["--cacert", &authority]);
        }
        curl(&args).await.with_context(|| format!("cannot upload {key}"))?;
        Ok(())
    }

    /// Uploads every file below `folder`, named by its path from there.
    ///
    /// # Errors
    /// What the server or the file system says.
    pub async fn put_folder(&self, folder: &Path) -> Result<()> {
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let key = path.strip_prefix(folder)?.to_string_lossy().into_owned();
                    self.put(&key, &path).await?;
                }
            }
        }
        Ok(())
    }

    /// The plain file behind an object, to damage it.
    #[must_use]
    pub fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join("data").join(Self::BUCKET).join(key)
    }
}

/// A certificate for the loopback address and the authority that signed it, all PEM.
struct Identity {
    authority: String,
    certificate: String,
    key: String,
}

impl Identity {
    fn make() -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority.distinguished_name.push(rcgen::DnType::CommonName, "an authority for tests");
        let authority_key = KeyPair::generate()?;
        let authority_pem = authority.self_signed(&authority_key)?.pem();
        let issuer = Issuer::new(authority, authority_key);

        let mut server = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        server.distinguished_name.push(rcgen::DnType::CommonName, "a server for tests");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &issuer)?.pem();
        Ok(Identity { authority: authority_pem, certificate, key: key.serialize_pem() })
    }
}
