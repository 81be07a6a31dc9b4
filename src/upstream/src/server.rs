//! Calls to one server.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use berth_telemetry::{Clock, Net};
use http::header::{CONNECTION, HOST, HeaderName, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use http_body::Body;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::answer::{Answer, Rest};
use crate::config::Config;
use crate::connection::Sender;
use crate::error::{CallError, Stage, classify};
use crate::piece::Piece;
use crate::pool::{Lease, Pool};
use crate::pump::Pump;
use crate::target::Target;

/// A server that is called over a few shared connections. Cheap to clone; clones share the connections.
///
/// Calls must run within a tokio runtime. When the last clone is dropped, connections close as their calls end.
#[derive(Clone)]
pub struct Server {
    pool: Arc<Pool>,
}

/// What can be seen of a [`Server`] from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Connections that take calls.
    pub connections: usize,
    /// Connections that are being opened.
    pub connecting: usize,
    /// Calls whose answer has not ended.
    pub streams: usize,
    /// Calls that wait for a connection, or for room on one.
    pub waiting: usize,
    /// Why the last attempt to connect failed; `None` when it did not, and before the first.
    pub last_error: Option<Arc<str>>,
}

impl Server {
    /// The server at `target`. Nothing is opened before the first call.
    #[must_use]
    pub fn new(target: Target, config: Config, clock: Clock, net: Arc<dyn Net>) -> Self {
        Server { pool: Pool::new(target, config, clock, net, None) }
    }

    /// The same; its connections are driven by the runtime of `driver`, whichever calls come from.
    #[must_use]
    pub fn driven_by(driver: Handle, target: Target, config: Config, clock: Clock, net: Arc<dyn Net>) -> Self {
        Server { pool: Pool::new(target, config, clock, net, Some(driver)) }
    }

    /// Where it listens.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.pool.target
    }

    /// How often it was connected to, or tried to be. While it stays the same, no connection was lost and replaced.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.pool.begun()
    }

    /// How its connections stand now.
    #[must_use]
    pub fn state(&self) -> State {
        self.pool.state()
    }

    /// Sends `request` and completes with the head of the answer; its body follows as it comes. Path, headers, body and
    /// trailers go as they are, but for headers that HTTP/2 forbids and `host`; scheme and authority become the server's.
    ///
    /// It waits for a connection while none has room, without a limit of its own: the caller has a deadline. Dropped, the
    /// call is cancelled at the server.
    ///
    /// # Errors
    /// What is known about a call that has no answer: [`CallError`].
    pub async fn call<B>(&self, request: Request<B>) -> Result<Response<Answer>, CallError>
    where
        B: Body<Data: Into<Piece>> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (lease, sender) = self.ready().await?;
        let (parts, body) = request.into_parts();
        let is_all = body.is_end_stream();
        let vital = lease.connection.vital.clone();
        let before = vital.written();
        let fault = |error: &h2::Error| {
            let stage = if vital.written() == before { Stage::Unwritten } else { Stage::Sent };
            classify(self.target(), error, stage, vital.ended())
        };
        // Said first: the connection may be about to write it before this has gone on.
        vital.add();
        let (mut response, stream) = sender.send(self.head(parts), is_all).map_err(|error| match fault(&error) {
            CallError::Lost { target, why } => CallError::NotProcessed { target, why }, // it was not even queued
            other => other,
        })?;
        let mut pump = (!is_all).then(|| Pump::new(body, stream, vital.clone()));
        // The body is sent from here while there is no answer, which is all the time for most calls: no task for them.
        let response = poll_fn(|cx| {
            if let Some(sending) = &mut pump
                && let Poll::Ready(sent) = sending.poll(cx)
            {
                pump = None;
                sent.map_err(CallError::Body)?; // and with the call its stream is dropped, which resets it
            }
            Pin::new(&mut response).poll(cx).map_err(|error| fault(&error))
        });
        let response = response.await?;
        lease.connection.vital.hear();
        let (parts, stream) = response.into_parts();
        let ended = stream.is_end_stream();
        let rest = pump.filter(|_| !ended).map(send_rest);
        Ok(Response::from_parts(parts, Answer::new(self.target().clone(), stream, rest, lease)))
    }

    /// Room on a connection that takes calls.
    async fn ready(&self) -> Result<(Lease, Sender), CallError> {
        let mut tries = TRIES;
        loop {
            let lease = self.pool.lease().await?;
            match lease.connection.sender() {
                Ok(sender) => return Ok((lease, sender)),
                Err(error) => {
                    self.pool.retire(lease.connection.id);
                    tries -= 1;
                    if tries == 0 {
                        return Err(classify(self.target(), &error, Stage::Unwritten, lease.connection.vital.ended()));
                    }
                }
            }
        }
    }

    fn head(&self, mut parts: Parts) -> Request<()> {
        strip(&mut parts.headers);
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.target().authority().clone());
        uri.path_and_query = Some(parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
        let mut head = Request::new(());
        *head.method_mut() = parts.method;
        *head.uri_mut() = Uri::from_parts(uri).unwrap_or_default(); // it has all its parts
        *head.version_mut() = Version::HTTP_2;
        *head.headers_mut() = parts.headers;
        head
    }
}

/// How many connections that turn out to be closing a call looks at.
const TRIES: u32 = 8;

/// Takes what belongs to another connection out of the headers (RFC 9113, 8.2.2).
fn strip(headers: &mut HeaderMap) {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
    // Seldom anything but `te: trailers`: one look for all of them.
    let goes = |name: &HeaderName, value: &HeaderValue| match name.as_str() {
        "connection" | "host" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" => true,
        "te" => value != "trailers",
        _ => false,
    };
    if !headers.iter().any(|(name, value)| goes(name, value)) {
        return;
    }
    if let Some(named) = headers.remove(CONNECTION) {
        for name in named.to_str().unwrap_or_default().split(',') {
            headers.remove(name.trim());
        }
    }
    for name in [HOST, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
}

fn send_rest<B>(mut pump: Pump<B>) -> Rest
where
    B: Body<Data: Into<Piece>> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let failed = Arc::new(OnceLock::new());
    let told = failed.clone();
    let task = tokio::spawn(async move {
        // Told before the stream is reset, so that the answer, which then fails, knows why.
        if let Err(error) = poll_fn(|cx| pump.poll(cx)).await {
            let _ = told.set(error);
            pump.reset();
        }
    });
    Rest { failed, _task: AbortOnDropHandle::new(task) }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("target", self.target()).field("state", &self.state()).finish()
    }
}
