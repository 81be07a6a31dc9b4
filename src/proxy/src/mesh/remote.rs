//! Calls that an agent receives and its controller carries out.
//!
//! They are passed on as they came, message, headers and trailers, and not taken apart into values and put together again:
//! what a call means, and how its answer and its errors read, is decided in one place, and what only newer controllers know
//! gets through. Passed on is the whole message, so that a client that breaks off leaves nothing half said, with what is left
//! of the caller's time.
//!
//! A call that surely did not run is sent once more. One of which that is not known is sent again only where it changes
//! nothing; else the caller is told.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use berth_plan::managed::Refused;
use berth_splice::Prefix;
use berth_telemetry::{Clock, Net};
use berth_types::Deadline;
use berth_upstream::{CallError, Code as Reason, Server, Target};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method as Verb, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt as _;

use super::{ASKS, Front, Writes};
use crate::body::{Incoming, Outgoing};
use crate::budget::Share;
use crate::codes::Fault;
use crate::opaque::timeout;

/// How long connecting to the controller may take: callers are told within that that it is away.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long the controller's own word may take that time is over: it says more than ours.
const LAST_WORD: Duration = Duration::from_millis(100);
/// When a call that broke off may be made again.
const SOON: Duration = Duration::from_secs(1);

/// An agent sends it with what it passes on: a controller takes it for nothing, another agent passes no such call on.
const PASSED_ON: HeaderName = HeaderName::from_static("berth-passed-on");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The token that an agent shows its controller, as it is now.
pub type BearerToken = Arc<dyn Fn() -> String + Send + Sync>;

/// The controller that carries out the calls of an agent.
pub struct ControllerServer {
    /// Where it takes them.
    pub target: Target,
    /// What connections are made with.
    pub net: Arc<dyn Net>,
    /// Goes with each call in place of its own `authorization`. `None`: that passes.
    pub token: Option<BearerToken>,
}

/// The way to the controller.
pub(crate) struct Remote {
    server: Server,
    token: Option<BearerToken>,
    writes: Writes,
}

impl Remote {
    /// `writes`: who may change something, asked here before the controller hears of it.
    pub(crate) fn new(controller: ControllerServer, writes: Writes, clock: &Clock) -> Self {
        let ControllerServer { target, net, token } = controller;
        let connections = berth_upstream::Config { connections: 1, connect_timeout: CONNECT_WITHIN, ..berth_upstream::Config::default() };
        Remote { server: Server::new(target, connections, clock.clone(), net), token, writes }
    }

    /// Passes one call on.
    ///
    /// # Errors
    /// What it ran into here, or on its way; what the controller says to it is its answer.
    pub(crate) async fn pass(&self, front: Front<'_>, method: &str, head: &Parts, body: impl Incoming) -> Result<Response<Outgoing>, Fault> {
        // What is not known here may change something.
        let only_asks = ASKS.contains(&method);
        if !only_asks {
            self.writes.check(&head.headers)?;
        }
        if head.headers.contains_key(PASSED_ON) {
            let why = "another agent passed this call on to here, which is an agent itself: give that one the address of the controller";
            return Err(Fault::Controller { why: why.to_owned(), retry_after: SOON });
        }
        let deadline = front.deadline(&head.headers)?;
        let mut share = front.bodies.share();
        let message = front.message(head, body, deadline, &mut share).await?;
        let pieces = framed(message)?;
        let mut tries = 1;
        loop {
            let called = self.call(&front, head, &pieces, deadline, &mut share).await;
            let why = match called {
                Ok(answer) => return Ok(answer),
                Err(Broke::For(fault)) => return Err(fault),
                Err(Broke::Off(why)) => why,
            };
            let may_again = only_asks || why.safe_to_send_again();
            if tries == 0 || !may_again || matches!(why, CallError::Unreachable { .. }) {
                return Err(Fault::Controller { retry_after: why.retry_after().unwrap_or(SOON).max(SOON), why: why.to_string() });
            }
            tries -= 1;
        }
    }

    /// One try. Ends with the deadline, or soon after it with the controller's word on it.
    async fn call(
        &self,
        front: &Front<'_>,
        head: &Parts,
        pieces: &[Bytes],
        deadline: Deadline,
        share: &mut Share,
    ) -> Result<Response<Outgoing>, Broke> {
        let clock = front.clock;
        let (mut parts, ()) = Request::new(()).into_parts();
        (parts.method, parts.version, parts.uri) = (Verb::POST, Version::HTTP_2, head.uri.clone());
        parts.headers = self.headers(&head.headers, deadline.left(clock.now()))?;
        let request = Request::from_parts(parts, Outgoing::of(pieces.iter().cloned()));
        let mut calling = pin!(self.answered(request, share));
        if let Some(outcome) = clock.until(deadline, calling.as_mut()).await {
            return outcome.map_err(|broke| broke.at(deadline, clock));
        }
        let state = self.server.state();
        if state.connections == 0 {
            let why = state.last_error.unwrap_or_else(|| "it has not answered yet".into());
            return Err(Broke::For(Fault::Controller { why: format!("cannot reach {}: {why}", self.server.target()), retry_after: SOON }));
        }
        let word = clock.until(clock.deadline_in(LAST_WORD), calling).await;
        word.unwrap_or(Err(Broke::For(late()))).map_err(|broke| broke.at(deadline, clock))
    }

    /// All of the answer, held by `share`.
    async fn answered(&self, request: Request<Outgoing>, share: &mut Share) -> Result<Response<Outgoing>, Broke> {
        let (head, mut body) = self.server.call(request).await?.into_parts();
        if head.status != StatusCode::OK {
            let why = format!("{} answered with HTTP status {}: is that the controller?", self.server.target(), head.status.as_u16());
            return Err(Broke::For(Fault::Controller { why, retry_after: SOON }));
        }
        let (mut pieces, mut trailers) = (Vec::new(), None);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => {
                    share.add(data.len() as u64)?;
                    pieces.push(data);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        let mut answer = Response::new(Outgoing::Ready { pieces: pieces.into(), trailers });
        *answer.headers_mut() = head.headers;
        Ok(answer)
    }

    /// What goes with the message, which goes as it is and within `left`.
    fn headers(&self, from: &HeaderMap, left: Duration) -> Result<HeaderMap, Fault> {
        let mut headers = from.clone();
        for about_the_message in [HeaderName::from_static("grpc-encoding"), header::CONTENT_LENGTH] {
            headers.remove(about_the_message);
        }
        headers.insert(TIMEOUT, timeout(left));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(PASSED_ON, HeaderValue::from_static("1"));
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {}", token()));
            let mut value = value.map_err(|_| Fault::Internal("the token for the controller cannot be sent in a header".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(headers)
    }
}

/// Why a try has no answer.
enum Broke {
    /// Something that another try does not change.
    For(Fault),
    /// The way to the controller.
    Off(CallError),
}

impl Broke {
    /// A controller that ends the call at its deadline may be heard before our own timer.
    fn at(self, deadline: Deadline, clock: &Clock) -> Self {
        match self {
            Broke::Off(CallError::Reset { code: Reason::CANCEL, .. }) if deadline.left(clock.now()).is_zero() => Broke::For(late()),
            other => other,
        }
    }
}

impl From<Fault> for Broke {
    fn from(fault: Fault) -> Self {
        Broke::For(fault)
    }
}

impl From<CallError> for Broke {
    fn from(why: CallError) -> Self {
        Broke::Off(why)
    }
}

fn late() -> Fault {
    Fault::Managed(Refused::Late)
}

/// A message with its prefix.
fn framed(message: Bytes) -> Result<[Bytes; 2], Fault> {
    let size = message.len();
    let length = u32::try_from(size).map_err(|_| Fault::Internal(format!("a message of {size} bytes was taken, gRPC has at most 4 GiB")))?;
    Ok([Bytes::copy_from_slice(&Prefix { compressed: false, length }.to_bytes()), message])
}
