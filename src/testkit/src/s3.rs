//! A real S3 server, plain or with TLS from an authority of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::identity::Authority;
use crate::ports::until_it_listens;
use crate::uploads::upload;
use crate::{Parts, Process, curl, free_port};

/// How the server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// HTTP.
    Plain,
    /// HTTPS with a certificate from an authority that only this server's users know.
    Tls,
}

impl Transport {
    /// As URLs begin.
    pub(crate) const fn scheme(self) -> &'static str {
        match self {
            Transport::Plain => "http",
            Transport::Tls => "https",
        }
    }
}

/// What an object is stored with, for readers to check its content by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// In one piece, without a checksum.
    Whole,
    /// In one piece, with a checksum of this algorithm, such as `CRC64NVME`.
    WholeWith(&'static str),
    /// In parts of this size, without a checksum.
    Parts(usize),
    /// In parts of this size, with a checksum of the whole: `CRC32C` or `CRC64NVME`.
    PartsWith(usize, &'static str),
    /// In parts of this size, with a checksum of the parts' checksums: `CRC32C` or `SHA256`.
    PartsComposed(usize, &'static str),
}

impl Stored {
    fn order(self) -> Value {
        match self {
            Stored::Whole => json!({}),
            Stored::WholeWith(checksum) => json!({"checksum": checksum}),
            Stored::Parts(size) => json!({"part_size": size}),
            Stored::PartsWith(size, checksum) => json!({"part_size": size, "checksum": checksum, "checksum_type": "FULL_OBJECT"}),
            Stored::PartsComposed(size, checksum) => json!({"part_size": size, "checksum": checksum, "checksum_type": "COMPOSITE"}),
        }
    }
}

/// The server, with an empty bucket. Ends and forgets everything when dropped.
pub struct Gateway {
    // Ended before its folder is removed.
    _process: Process,
    folder: TempDir,
    address: SocketAddr,
    transport: Transport,
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
    /// What no message may hold.
    pub const SECRET: &'static str = SECRET_KEY;
    /// The domain under which a bucket's own name is a host: `models.s3.berth.test`. No name server knows it.
    pub const DOMAIN: &'static str = "s3.berth.test";

    /// Starts it on a free port.
    ///
    /// # Errors
    /// When it cannot be started or does not listen within ten seconds.
    pub async fn start(parts: &Parts, transport: Transport) -> Result<Self> {
        let folder = TempDir::new()?;
        let (data, meta) = (folder.path().join("data"), folder.path().join("sidecar"));
        fs::create_dir_all(data.join(Self::BUCKET))?;
        fs::create_dir_all(&meta)?;
        let address = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, free_port()));
        let mut command = Command::new(&parts.versitygw);
        command.env_clear().env("ROOT_ACCESS_KEY", ACCESS_KEY).env("ROOT_SECRET_KEY", SECRET_KEY);
        command.args(["--port", &address.to_string(), "--keep-alive", "--virtual-domain", &format!("{}:{}", Self::DOMAIN, address.port())]);
        let mut authority = None;
        if transport == Transport::Tls {
            let signer = Authority::make()?;
            let (certificate, key) = signer.server(&[Self::DOMAIN, &format!("*.{}", Self::DOMAIN)])?.write(folder.path())?;
            fs::write(folder.path().join(AUTHORITY), signer.pem())?;
            command.arg("--cert").arg(certificate).arg("--key").arg(key);
            authority = Some(signer.pem().to_owned());
        }
        command.args(["posix", "--sidecar"]).arg(&meta).arg(&data);
        let mut process = Process::start("versitygw", command)?;
        // Its own word for "listening" is the last line of its banner.
        process.line("its banner", Duration::from_secs(10), |line| line.starts_with('└')).await?;
        until_it_listens("the S3 server", address).await?;
        Ok(Gateway { _process: process, folder, address, transport, authority })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without a path.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.endpoint_at(self.address)
    }

    /// The URL of whatever stands before it at `address`, such as a relay.
    #[must_use]
    pub fn endpoint_at(&self, address: SocketAddr) -> String {
        format!("{}://{address}", self.transport.scheme())
    }

    /// An entry of a storage configuration for its bucket.
    #[must_use]
    pub fn storage_entry(&self) -> Value {
        let mut entry = json!({
            "type": "s3",
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "endpoint_url": self.endpoint(),
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
        let url = format!("{}/{}/{key}", self.endpoint(), Self::BUCKET);
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

    /// Uploads every file below `folder` under `prefix`, many at once, with the AWS client: for thousands, and for names
    /// that a URL would have to escape.
    ///
    /// # Errors
    /// What the server or the client says.
    pub async fn put_many(&self, parts: &Parts, folder: &Path, prefix: &str) -> Result<()> {
        self.order(parts, &json!({"folder": folder, "prefix": prefix})).await.map(drop)
    }

    /// Uploads `file` with the AWS client in the given way. The answer is what the server said when the object was whole,
    /// checksums included.
    ///
    /// # Errors
    /// What the server or the client says.
    pub async fn put_as(&self, parts: &Parts, key: &str, file: &Path, stored: Stored) -> Result<Value> {
        let mut put = stored.order();
        put["key"] = json!(key);
        put["file"] = json!(file);
        let answers = self.order(parts, &json!({"puts": [put]})).await?;
        Ok(answers[0].clone())
    }

    /// Lets everybody read and list the bucket.
    ///
    /// # Errors
    /// What the server or the client says.
    pub async fn open_to_everybody(&self, parts: &Parts) -> Result<()> {
        let allow = |action: &str, resource: String| json!({"Effect": "Allow", "Principal": "*", "Action": action, "Resource": resource});
        let bucket = format!("arn:aws:s3:::{}", Self::BUCKET);
        let policy = json!({"Version": "2012-10-17", "Statement": [
            allow("s3:GetObject", format!("{bucket}/*")),
            allow("s3:ListBucket", bucket),
        ]});
        self.order(parts, &json!({"policy": policy})).await.map(drop)
    }

    async fn order(&self, parts: &Parts, order: &Value) -> Result<Value> {
        let mut order = order.clone();
        for (name, value) in [("store", "s3"), ("endpoint", &self.endpoint()), ("access_key", ACCESS_KEY), ("secret_key", SECRET_KEY)] {
            order[name] = json!(value);
        }
        order["bucket"] = json!(Self::BUCKET);
        if self.authority.is_some() {
            order["authority"] = json!(self.folder.path().join(AUTHORITY));
        }
        upload(parts, &order).await
    }

    /// The plain file behind an object, to damage it.
    #[must_use]
    pub fn file(&self, key: &str) -> PathBuf {
        self.folder.path().join("data").join(Self::BUCKET).join(key)
    }
}
