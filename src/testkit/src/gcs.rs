//! A real server that speaks Google Cloud Storage. It checks no credential.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::http;
use crate::parts::part;
use crate::ports::until_it_listens;
use crate::uploads::upload;
use crate::{Parts, Process, free_port};

/// The server, with an empty bucket. Ends and forgets everything when dropped.
pub struct Gcs {
    _process: Process,
    address: SocketAddr,
}

impl Gcs {
    /// The one bucket.
    pub const BUCKET: &'static str = "models";

    /// Starts it on a free port.
    ///
    /// # Errors
    /// When it cannot be started, does not listen or makes no bucket.
    pub async fn start() -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let mut command = Command::new(part("BERTH_FAKE_GCS")?);
        command.args(["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", &address.port().to_string()]);
        // Requests are taken for its own by their host; what stands before it, such as a relay, has another port.
        command.args(["-public-host", "127.0.0.1"]);
        let process = Process::start("fake-gcs-server", command)?;
        until_it_listens("the GCS server", address).await?;
        let gcs = Gcs { _process: process, address };
        let made = http::post(&format!("{}/storage/v1/b?project=berth", gcs.endpoint()), json!({"name": Self::BUCKET}).to_string()).await?;
        ensure!(made.status == 200, "no bucket was made: status {}, {}", made.status, made.text());
        Ok(gcs)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, without a path.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// An entry of a storage configuration for its bucket, without a credential.
    #[must_use]
    pub fn storage_entry(&self) -> Value {
        json!({"type": "gcs", "bucket": Self::BUCKET, "endpoint_url": self.endpoint()})
    }

    /// The private key of a new service account, PEM.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn private_key(parts: &Parts) -> Result<String> {
        let key = upload(parts, &json!({"store": "gcs"})).await?;
        key.as_str().map(str::to_owned).context("a key is text")
    }

    /// Uploads `body` under a key.
    ///
    /// # Errors
    /// What the server says.
    pub async fn put(&self, key: &str, body: Vec<u8>) -> Result<()> {
        let url = format!("{}/upload/storage/v1/b/{}/o?uploadType=media&name={}", self.endpoint(), Self::BUCKET, escaped(key));
        let reply = http::post(&url, body).await?;
        ensure!(reply.status == 200, "cannot upload {key}: status {}, {}", reply.status, reply.text());
        Ok(())
    }

    /// Uploads every file below `folder`, named by its path from there.
    ///
    /// # Errors
    /// What the server or the file system says.
    pub async fn put_folder(&self, folder: &Path) -> Result<()> {
        for path in files_below(folder)? {
            let key = path.strip_prefix(folder)?.to_string_lossy().into_owned();
            self.put(&key, fs::read(&path).with_context(|| path.display().to_string())?).await?;
        }
        Ok(())
    }
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}

/// As it may stand in a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_escaped_byte_by_byte() {
        assert_eq!(escaped("a b/ü+%.bin"), "a%20b%2F%C3%BC%2B%25.bin");
    }
}
