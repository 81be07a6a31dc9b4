//! A real web server over a folder of files: plain, with TLS, and with TLS that wants to know its clients.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::identity::{Authority, Identity};
use crate::parts::part;
use crate::ports::until_it_listens;
use crate::{Process, free_port};

/// The server. Every listener has the same places, `FILE` being a path below the folder:
///
/// | path | what it does |
/// | --- | --- |
/// | `/FILE` | answers with ranges, `ETag` and `Last-Modified` |
/// | `/moved/FILE` | sends on to `/FILE` at the same host |
/// | `/away/FILE` | sends on to `/FILE` at another name of the plain listener, `localhost` |
/// | `/round/FILE` | sends on to itself |
/// | `/guarded/FILE` | is refused with 403 without the header `x-model-key: open sesame` |
/// | `/simple/FILE` | answers without ranges, `ETag` and `Last-Modified` |
/// | `/down/FILE` | is refused with 503 |
pub struct Web {
    process: Process,
    folder: TempDir,
    plain: SocketAddr,
    tls: SocketAddr,
    mutual: SocketAddr,
    authority: String,
    client: Identity,
}

/// A request that the server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The status that it was answered with.
    pub status: u16,
    /// Host and port that the client asked for.
    pub host: String,
    /// Path and query.
    pub target: String,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// The header `range`, empty without one.
    pub range: String,
    /// The header `x-model-key`, empty without one.
    pub key: String,
    /// The header `authorization`, empty without one.
    pub authorization: String,
}

impl Web {
    /// Value of the header that opens `/guarded/`.
    pub const KEY: &'static str = "open sesame";

    /// Starts it over `files` on free ports.
    ///
    /// # Errors
    /// When it cannot be started or does not listen.
    pub async fn start(files: &Path) -> Result<Self> {
        let folder = TempDir::new()?;
        let [plain, tls, mutual] = [(); 3].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        let signer = Authority::make()?;
        signer.server(&[])?.write(folder.path())?;
        fs::write(folder.path().join("authority.pem"), signer.pem())?;
        let config = folder.path().join("nginx.conf");
        fs::write(&config, configuration(folder.path(), files, plain, tls, mutual))?;
        let mut command = Command::new(part("BERTH_NGINX")?);
        command.arg("-p").arg(folder.path()).arg("-c").arg(&config);
        let process = Process::start("nginx", command)?;
        for address in [plain, tls, mutual] {
            until_it_listens("the web server", address).await.with_context(|| process.written())?;
        }
        Ok(Web { process, plain, tls, mutual, authority: signer.pem().to_owned(), client: signer.client()?, folder })
    }

    /// Where it speaks HTTP.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.plain
    }

    /// URL of the plain listener, without a path.
    #[must_use]
    pub fn plain(&self) -> String {
        format!("http://{}", self.plain)
    }

    /// URL of the listener with TLS, without a path.
    #[must_use]
    pub fn tls(&self) -> String {
        format!("https://{}", self.tls)
    }

    /// URL of the listener with TLS that wants a certificate of its clients, without a path.
    #[must_use]
    pub fn mutual(&self) -> String {
        format!("https://{}", self.mutual)
    }

    /// The authority that signed for the server, PEM.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What a client shows that may use [`mutual`](Self::mutual).
    #[must_use]
    pub fn client(&self) -> &Identity {
        &self.client
    }

    /// What it has written, for a message.
    #[must_use]
    pub fn written(&self) -> String {
        self.process.written()
    }

    /// The requests that it has answered so far.
    ///
    /// # Errors
    /// When its log cannot be read.
    pub fn seen(&self) -> Result<Vec<Seen>> {
        fs::read_to_string(self.folder.path().join("access.log"))?.lines().map(seen).collect()
    }
}

fn seen(line: &str) -> Result<Seen> {
    let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    Ok(Seen {
        status: text("status").parse()?,
        host: text("host"),
        target: text("target"),
        bytes: text("bytes").parse()?,
        range: text("range"),
        key: text("key"),
        authorization: text("authorization"),
    })
}

fn configuration(folder: &Path, files: &Path, plain: SocketAddr, tls: SocketAddr, mutual: SocketAddr) -> String {
    let (folder, files, key) = (folder.display(), files.display(), Web::KEY);
    let plain_port = plain.port();
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].iter().map(|kind| format!("  {kind}_temp_path {folder}/{kind};\n")).collect();
    let places = format!(
        "    root {files};
    location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
    location /away/ {{ rewrite ^/away/(.*)$ http://localhost:{plain_port}/$1 redirect; }}
    location /round/ {{ return 302 $request_uri; }}
    location /guarded/ {{
      if ($http_x_model_key != \"{key}\") {{ return 403; }}
      rewrite ^/guarded/(.*)$ /$1 break;
    }}
    location /simple/ {{
      max_ranges 0;
      etag off;
      add_header Last-Modified \"\";
      rewrite ^/simple/(.*)$ /$1 break;
    }}
    location /down/ {{ return 503; }}
"
    );
    let certificate = format!("ssl_certificate {folder}/certificate.pem; ssl_certificate_key {folder}/key.pem;");
    format!(
        "daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
{temporary}  log_format seen escape=json '{{\"status\":\"$status\",\"host\":\"$http_host\",\"target\":\"$request_uri\",\"bytes\":\"$body_bytes_sent\",'
    '\"range\":\"$http_range\",\"key\":\"$http_x_model_key\",\"authorization\":\"$http_authorization\"}}';
  access_log {folder}/access.log seen;
  default_type application/octet-stream;
  keepalive_requests 100000;
  server {{
    listen {plain};
{places}  }}
  server {{
    listen {tls} ssl;
    {certificate}
{places}  }}
  server {{
    listen {mutual} ssl;
    {certificate}
    ssl_client_certificate {folder}/authority.pem;
    ssl_verify_client on;
{places}  }}
}}
"
    )
}
