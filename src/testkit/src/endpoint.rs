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
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

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
    #[allow(clippy::disallowed_methods, reason = "real clients need a real port")]
    pub async fn start(answer: impl Fn(&Asked) -> (u16, String) + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port for a server")?;
        let address = listener.local_addr()?;
        let asked = Arc::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&asked), Arc::new(answer)));
        Ok(Endpoint { address, asked, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL of it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
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

async fn accept(listener: TcpListener, asked: Arc<Mutex<Vec<Asked>>>, answer: Arc<Answer>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let (asked, answer) = (Arc::clone(&asked), Arc::clone(&answer));
                let service = service_fn(move |request| one(request, Arc::clone(&asked), Arc::clone(&answer)));
                // A connection that breaks is its client's business.
                connections.spawn(async move { drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), service).await) });
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
