//! A tiny web server in the process of the test, for what stands beside a store: whoever hands out tokens.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::identity::Identity;

/// A request that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `GET`, `POST` and so on.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The whole body.
    pub body: String,
}

/// A server on a free port of the loopback address. Ends when dropped.
pub struct Endpoint {
    scheme: &'static str,
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: JoinHandle<()>,
}

type Answer = dyn Fn(&Asked) -> (u16, String) + Send + Sync;

impl Endpoint {
    /// Starts one that answers each request with the status and the JSON body that `answer` gives.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(answer: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static) -> Result<Self> {
        Self::begin(None, Arc::new(answer)).await
    }

    /// The same over TLS, as `identity`.
    ///
    /// # Errors
    /// When no port can be had, or the identity is none.
    pub async fn secured(identity: &Identity, answer: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let config = config.with_no_client_auth().with_single_cert(chain, key)?;
        Self::begin(Some(TlsAcceptor::from(Arc::new(config))), Arc::new(answer)).await
    }

    #[allow(clippy::disallowed_methods, reason = "real clients need a real port")]
    async fn begin(tls: Option<TlsAcceptor>, answer: Arc<Answer>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port for a server")?;
        let address = listener.local_addr()?;
        let asked = Arc::default();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let accepting = tokio::spawn(accept(listener, tls, Arc::clone(&asked), answer));
        Ok(Endpoint { scheme, address, asked, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL of it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// What was asked so far.
    ///
    /// # Panics
    /// Never: nothing panics while it holds the list.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("nothing panics while it holds the list").clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, asked: Arc<Mutex<Vec<Asked>>>, answer: Arc<Answer>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                let service = service_fn(move |request| one(request, Arc::clone(&asked), Arc::clone(&answer)));
                let http = hyper::server::conn::http1::Builder::new();
                // A connection that breaks is its client's business.
                match tls.clone() {
                    None => connections.spawn(async move { drop(http.serve_connection(TokioIo::new(client), service).await) }),
                    Some(tls) => connections.spawn(async move {
                        if let Ok(client) = tls.accept(client).await {
                            drop(http.serve_connection(TokioIo::new(client), service).await);
                        }
                    }),
                };
            }
            Some(_) = connections.join_next() => {}
            else => return,
        }
    }
}

async fn one(request: Request<Incoming>, asked: Arc<Mutex<Vec<Asked>>>, answer: Arc<Answer>) -> Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned();
    let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let request = Asked { method: head.method.to_string(), target, body };
    let (status, text) = answer(&request);
    asked.lock().expect("nothing panics while it holds the list").push(request);
    Ok(Response::builder().status(status).header("content-type", "application/json").body(Full::new(Bytes::from(text)))?)
}
