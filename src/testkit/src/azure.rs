//! A real server that speaks Azure Blob Storage, plain or with TLS from an authority of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::identity::Authority;
use crate::parts::part;
use crate::ports::until_it_listens;
use crate::uploads::upload;
use crate::{Parts, Process, Transport, free_port};

/// The server with its one, well-known account. Ends and forgets everything when dropped.
pub struct Azure {
    // Ended before its folder is removed.
    process: Process,
    folder: TempDir,
    address: SocketAddr,
    transport: Transport,
    authority: Option<String>,
}

/// Who may read a container without a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nobody.
    Private,
    /// Everybody, listings included.
    Public,
}

const AUTHORITY: &str = "authority.pem";

impl Azure {
    /// The account that every such server has.
    pub const ACCOUNT: &'static str = "devstoreaccount1";
    /// Its key, which is known to everybody.
    pub const KEY: &'static str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
    /// The port that `UseDevelopmentStorage=true` stands for.
    pub const EMULATOR_PORT: u16 = 10_000;

    /// Starts it on a free port.
    ///
    /// # Errors
    /// When it cannot be started or does not listen.
    pub async fn start(transport: Transport) -> Result<Self> {
        Azure::start_at(free_port(), transport).await
    }

    /// Starts it on a port. With TLS it also takes bearer tokens, of which it reads audience and times but no signature.
    ///
    /// # Errors
    /// When it cannot be started or does not listen.
    pub async fn start_at(port: u16, transport: Transport) -> Result<Self> {
        let folder = TempDir::new()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = Command::new("node");
        command.arg(part("BERTH_AZURITE")?).args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]);
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
        let mut authority = None;
        if transport == Transport::Tls {
            let signer = Authority::make()?;
            let (certificate, key) = signer.server(&[])?.write(folder.path())?;
            fs::write(folder.path().join(AUTHORITY), signer.pem())?;
            command.arg("--cert").arg(certificate).arg("--key").arg(key).args(["--oauth", "basic"]);
            authority = Some(signer.pem().to_owned());
        }
        let process = Process::start("azurite", command)?;
        until_it_listens("the Azure server", address).await?;
        Ok(Azure { process, folder, address, transport, authority })
    }

    /// What it has written, for a message.
    #[must_use]
    pub fn written(&self) -> String {
        self.process.written()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The account's URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.endpoint_at(self.address)
    }

    /// The account's URL at whatever stands before the server at `address`, such as a relay.
    #[must_use]
    pub fn endpoint_at(&self, address: SocketAddr) -> String {
        format!("{}://{address}/{}", self.transport.scheme(), Self::ACCOUNT)
    }

    /// A connection string with account key and endpoint.
    #[must_use]
    pub fn connection_string(&self) -> String {
        let (scheme, account, key, endpoint) = (self.transport.scheme(), Self::ACCOUNT, Self::KEY, self.endpoint());
        format!("DefaultEndpointsProtocol={scheme};AccountName={account};AccountKey={key};BlobEndpoint={endpoint};")
    }

    /// A bearer token as the server reads it: who it is for and how long it counts, signed by nobody.
    #[must_use]
    pub fn token(tenant: &str) -> String {
        let claims = json!({
            "aud": "https://storage.azure.com",
            "iss": format!("https://sts.windows.net/{tenant}/"),
            "iat": 1_600_000_000,
            "nbf": 1_600_000_000,
            "exp": 4_100_000_000_u64,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.{}", part(&json!({"alg": "none", "typ": "JWT"})), part(&claims), URL_SAFE_NO_PAD.encode("nobody"))
    }

    /// An entry of a storage configuration for `container` that names the account and its URL, but no credential.
    #[must_use]
    pub fn storage_entry(&self, container: &str) -> Value {
        let mut entry = json!({"type": "azure", "account_name": Self::ACCOUNT, "container": container, "endpoint_url": self.endpoint()});
        if let Some(authority) = &self.authority {
            entry["certificate"] = json!(authority);
        }
        entry
    }

    /// Makes `container` with every file below `folder` and returns a signature that may list and read it for an hour.
    ///
    /// # Errors
    /// What the server or the client says.
    pub async fn container(&self, parts: &Parts, container: &str, access: Access, folder: &Path) -> Result<String> {
        let mut order = self.order(container);
        order["make"] = json!(true);
        order["folder"] = json!(folder);
        if access == Access::Public {
            order["public"] = json!("container");
        }
        signature(&upload(parts, &order).await?)
    }

    /// Puts `file` into a container that is there.
    ///
    /// # Errors
    /// What the server or the client says.
    pub async fn put(&self, parts: &Parts, container: &str, key: &str, file: &Path) -> Result<()> {
        let mut order = self.order(container);
        order["puts"] = json!([{"key": key, "file": file}]);
        upload(parts, &order).await.map(drop)
    }

    /// A signature for `container` with these rights, such as `r`, for an hour.
    ///
    /// # Errors
    /// What the client says.
    pub async fn signature(&self, parts: &Parts, container: &str, rights: &str) -> Result<String> {
        let mut order = self.order(container);
        order["rights"] = json!(rights);
        signature(&upload(parts, &order).await?)
    }

    fn order(&self, container: &str) -> Value {
        let mut order = json!({
            "store": "azure",
            "endpoint": self.endpoint(),
            "account": Self::ACCOUNT,
            "key": Self::KEY,
            "container": container,
        });
        if self.authority.is_some() {
            order["authority"] = json!(self.folder.path().join(AUTHORITY));
        }
        order
    }
}

fn signature(answer: &Value) -> Result<String> {
    answer.as_str().map(str::to_owned).context("the client makes a signature")
}
