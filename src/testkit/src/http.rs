//! Plain HTTP/1.1 calls.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::time::timeout;

use crate::real_time::{Found, eventually};

/// No call of the tests takes longer; a cold load is part of a call.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Value of `retry-after`, where it was sent.
    pub retry_after: Option<String>,
    /// The whole body.
    pub body: Bytes,
}

impl Reply {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// With status and body when it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("status {}, body {:?}", self.status, self.text()))
    }

    /// The body as JSON of an answer with status 200.
    ///
    /// # Errors
    /// With status and body otherwise.
    pub fn good(&self) -> Result<Value> {
        ensure!(self.status == 200, "status {}, body {:?}", self.status, self.text());
        self.json()
    }
}

/// Waits until the server at `addr` says in the words of the Open Inference Protocol that it is ready.
///
/// # Errors
/// When it does not within `within`, with what it said last.
pub async fn ready(server: &str, addr: SocketAddr, within: Duration) -> Result<()> {
    eventually(&format!("{server} to be ready"), within, || async {
        Ok(match get(&format!("http://{addr}/v2/health/ready")).await {
            Ok(reply) if reply.status == 200 => Found::Yes(()),
            Ok(reply) => Found::NotYet(reply.status.to_string()),
            Err(fault) => Found::NotYet(format!("{fault:#}")),
        })
    })
    .await
}

/// True when there was nobody to send to: no connection was made, so that nothing that was taken got lost.
#[must_use]
pub fn is_refused(fault: &anyhow::Error) -> bool {
    let connecting = fault.chain().any(|cause| cause.downcast_ref().is_some_and(hyper_util::client::legacy::Error::is_connect));
    let refused = fault.chain().any(|cause| cause.downcast_ref().is_some_and(|fault: &io::Error| fault.kind() == io::ErrorKind::ConnectionRefused));
    connecting && refused
}

/// Reads `url`.
///
/// # Errors
/// When there is no answer.
pub async fn get(url: &str) -> Result<Reply> {
    call("GET", url, Bytes::new()).await
}

/// Sends `body` to `url`.
///
/// # Errors
/// When there is no answer.
pub async fn post(url: &str, body: impl Into<Bytes>) -> Result<Reply> {
    call("POST", url, body.into()).await
}

/// One call on a connection of its own.
///
/// # Errors
/// When there is no answer.
pub async fn call(method: &str, url: &str, body: Bytes) -> Result<Reply> {
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let request = Request::builder().method(method).uri(url).header("content-type", "application/json").body(Full::new(body))?;
    let exchange = async {
        let response = client.request(request).await?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let body = response.into_body().collect().await?.to_bytes();
        Ok::<_, anyhow::Error>(Reply { status, retry_after, body })
    };
    timeout(PATIENCE, exchange)
        .await
        .with_context(|| format!("{method} {url}: no answer in {PATIENCE:?}"))?
        .with_context(|| format!("{method} {url}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::free_port;

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "a real socket is what is tested")]
    async fn a_request_that_was_taken_and_cut_is_not_one_that_was_refused() {
        let fault = get(&format!("http://127.0.0.1:{}/", free_port())).await.expect_err("nobody listens");
        assert!(is_refused(&fault), "{fault:#}");

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("bound"));
        let cut = async {
            let (mut socket, _) = listener.accept().await.expect("a caller");
            socket.read_u8().await.expect("the begin of a request");
        };
        let (fault, ()) = tokio::join!(get(&url), cut);
        let fault = fault.expect_err("there was no answer");
        assert!(!is_refused(&fault), "{fault:#}");
    }
}
