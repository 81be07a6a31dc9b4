//! Calls whose messages nobody here understands: from a client to the runtime and back, as they come.
//!
//! The model comes from the headers or is found in the first message; its id is written into every message, the copy is
//! guarded until the last of the answer has come, and what comes back is passed on whole: headers, messages, trailers. Only an
//! answer that says "that model is not here" is looked at: if that is so, the model is loaded again and the request sent once
//! more, as long as all of it is still here.

mod begun;
mod heads;
mod passed;
mod passing;
mod sending;
mod several;
mod typed;
mod unknown;
mod whole;

#[cfg(test)]
mod tests;

use std::time::Duration;

use berth_adapters::InferError;
use berth_splice::{Encoding, suffix};
use berth_telemetry::Clock;
use berth_types::{ByteSize, Deadline, ModelId};
use berth_upstream::{Answer, CallError, Code, Server};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};

use crate::body::{Incoming, Outgoing};
use crate::codes::{Fault, Quoted};
use crate::cores::Way;
use crate::frontend::Frontend;
use crate::id::{self, Asked};
use crate::meters::Measured;
use crate::methods::{Method, Names};
use crate::payloads::Observed;
use crate::route::Models;
use crate::wire;
pub(crate) use heads::timeout;
pub(crate) use passed::{Passed, Young};
use passing::{Passing, Request};
use sending::{Begun, Deadlines, Head, Sending};

impl<M: Models> Frontend<M> {
    /// Passes a call on by `way`.
    pub(crate) async fn pass(&self, way: &Way, head: &Parts, body: hyper::body::Incoming) -> Response<Outgoing> {
        let (server, mut measured) = (&way.server, self.meters.grpc.started(&self.clock));
        let in_headers = match id::plain(&head.headers) {
            Some(asked) => Ok(asked),
            None => match id::several(&head.headers) {
                Ok(None) => id::in_headers(&head.headers),
                Ok(Some(asked)) => return Box::pin(self.passed_several(server, head, &asked, body, measured)).await,
                Err(fault) => Err(fault),
            },
        };
        let mut observed = None;
        match self.try_pass(server, head, in_headers, body, &mut observed).await {
            Ok((called, request)) => called.answered::<M>(measured, request, observed, &way.young),
            Err(fault) => {
                observed.into_iter().for_each(|observed| observed.failed(fault.verdict().code));
                measured.is(fault.verdict().code);
                wire::fault(&fault)
            }
        }
    }

    async fn passed_several(
        &self,
        server: &Server,
        head: &Parts,
        asked: &[Asked<'_>],
        body: hyper::body::Incoming,
        measured: Measured,
    ) -> Response<Outgoing> {
        let passed = async {
            let (method, deadline) = (self.method(head)?, self.deadline(&head.headers)?);
            self.pass_several(server, head, &method, asked, body, deadline).await
        };
        match passed.await {
            Ok(answer) => {
                measured.ended(passed::code_of(answer.headers()).unwrap_or(tonic::Code::Ok));
                answer
            }
            Err(fault) => {
                measured.ended(fault.verdict().code);
                wire::fault(&fault)
            }
        }
    }

    async fn try_pass(
        &self,
        server: &Server,
        head: &Parts,
        in_headers: Result<Option<Asked<'_>>, Fault>,
        body: hyper::body::Incoming,
        observed: &mut Option<Observed>,
    ) -> Result<(Called<M::Guard>, Request<hyper::body::Incoming>), Fault> {
        let method = self.method(head)?;
        let deadlines = self.deadlines(&head.headers)?;
        let request = Request::new(body, &self.bodies, self.config.max_message, encoding(&head.headers));
        let (asked, in_message) = match (in_headers?, &method.extract) {
            (None, None) => return Err(id::none()),
            (Some(asked), None) => (asked, false),
            (Some(asked), Some(extract)) if !extract.first => (asked, false),
            (in_headers, Some(extract)) => {
                let found = self.clock.until(deadlines.answer, request.find(&extract.path)).await;
                match (found.unwrap_or(Err(Fault::SlowRequest))?, in_headers) {
                    (Some(id), _) if extract.names == Names::Name => (Asked::Name(id.into()), true),
                    (Some(id), _) => (Asked::Version(id.into()), true),
                    (None, Some(asked)) => (asked, false),
                    (None, None) => return Err(id::none()),
                }
            }
        };
        let show = |model: &ModelId| {
            if observed.is_none() {
                *observed = self.observe(head.uri.path(), &asked, model, &head.headers);
                observed.iter().for_each(|observed| request.show(observed.requests(&head.headers)));
            }
        };
        let (asked_as, window) = (asked.as_str(), self.config.stream_window);
        let mut passes = Passes { request: &request, method: &method, asked: asked_as, in_message, window, show };
        let to = Head { uri: &head.uri, headers: &head.headers };
        let begun = self.send(server, to, &asked, deadlines, &mut passes).await?;
        request.is_answered();
        Ok((self.called(begun, deadlines.end)?, request))
    }

    /// The method that is called. A query is no part of any method's name.
    fn method(&self, head: &Parts) -> Result<Method, Fault> {
        self.methods().of(head.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str))
    }

    /// When a call must be answered and end: what the client asked for, at most the longest there is. A client that asked
    /// for nothing gets the default until its answer begins; a stream may then go on.
    fn deadlines(&self, headers: &HeaderMap) -> Result<Deadlines, Fault> {
        let answer = self.deadline(headers)?;
        let end = if headers.contains_key("grpc-timeout") { answer } else { self.clock.deadline_in(self.config.max_deadline) };
        Ok(Deadlines { answer, end })
    }

    fn called(&self, begun: Begun<M::Guard>, end: Deadline) -> Result<Called<M::Guard>, Fault> {
        let Begun { answer, guard, model, computes, .. } = begun;
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            let why = format!("it answered with HTTP status {}", head.status.as_u16());
            return Err(Fault::RuntimeLost { model: Quoted::new(model.as_str()), why });
        }
        let until = (self.clock.clone(), end);
        Ok(Called { headers: head.headers, body, guard, model, computes, until, unread_timeout: self.config.unread_timeout })
    }
}

/// A request that is passed on as it comes.
struct Passes<'a, B, F> {
    request: &'a Request<B>,
    method: &'a Method,
    asked: &'a str,
    /// The first message says which model is meant.
    in_message: bool,
    window: ByteSize,
    /// Shows it to whoever looks at the calls of a model.
    show: F,
}

impl<B: Incoming, F: FnMut(&ModelId)> Sending for Passes<'_, B, F> {
    type Body = Passing<B>;

    fn body(&mut self, model: &ModelId) -> Result<Passing<B>, Fault> {
        (self.show)(model);
        let id = self.method.inject.as_ref().map_or_else(Bytes::new, |path| suffix(path, model.as_str()));
        // Whoever names the model in messages names it in all of them, or in none but the first. And what the runtime reads,
        // because nothing is written over it, must be the model that is guarded.
        let watches = self.in_message || self.method.inject.is_none();
        let watched = self.method.extract.as_ref().filter(|_| watches).map(|extract| (extract.path.clone(), self.asked.to_owned(), self.in_message));
        self.request.body(id, watched).ok_or_else(|| {
            let why = "the model went away when a part of the request had been sent".to_owned();
            Fault::RuntimeLost { model: Quoted::new(model.as_str()), why }
        })
    }

    fn held(&self) -> u64 {
        self.request.held(self.window)
    }

    fn is_whole(&self) -> bool {
        self.request.is_whole()
    }

    fn is_sent(&self) -> bool {
        self.request.is_sent()
    }

    fn is_one(&self) -> bool {
        self.request.is_one()
    }

    fn fault(&self) -> Option<Fault> {
        self.request.fault()
    }
}

/// An answer that has begun.
struct Called<G> {
    headers: HeaderMap,
    body: Answer,
    guard: G,
    model: ModelId,
    computes: bool,
    until: (Clock, Deadline),
    unread_timeout: Duration,
}

impl<G: Send + Sync + 'static> Called<G> {
    fn answered<M: Models<Guard = G>>(
        self,
        measured: Measured,
        request: Request<hyper::body::Incoming>,
        observed: Option<Observed>,
        young: &Young,
    ) -> Response<Outgoing> {
        let Called { headers, body, guard, model, computes, until, unread_timeout } = self;
        let (code, has_come) = (passed::code_of(&headers), body.has_come());
        let mut tap = observed.map(|observed| observed.responses(&headers));
        code.into_iter().for_each(|code| tap.iter_mut().for_each(|tap| tap.ended(code)));
        let mut passed = Passed::new(body, measured, code, model.clone(), request, until.clone()).shown(tap);
        // A box less for the many answers of which nobody wants to know more.
        if !has_come || (computes && M::is_on_probation(&guard)) {
            passed = passed.witnessed(M::witness(&guard), computes);
        }
        if !has_come {
            let clock = until.0.clone();
            passed = passed.watched(young, &clock, move |answer| async move {
                let (clock, end) = until;
                let fault = tokio::select! {
                    () = M::revoked(&guard) => Fault::Revoked(Quoted::new(model.as_str())),
                    () = clock.sleep_until(end) => infer_fault(&model, InferError::DeadlineExceeded),
                    () = answer.unread(&clock, unread_timeout) => Fault::Unread(Quoted::new(model.as_str())),
                };
                answer.end(fault);
                // The call has ended before the copy may go.
                drop(guard);
            });
        }
        let mut response = Response::new(Outgoing::Passed(passed));
        *response.headers_mut() = headers;
        response
    }
}

/// How messages are compressed; `None`: in a way that is not known here.
fn encoding(headers: &HeaderMap) -> Option<Encoding> {
    headers.get("grpc-encoding").map_or(Some(Encoding::Identity), |value| Encoding::parse(value.to_str().ok()?))
}

/// Timers are no finer than this.
const TICK: Duration = Duration::from_millis(5);

/// A runtime that cancels a call at its deadline, which it was told, may be heard before our own timer.
fn is_late(why: &CallError, end: Deadline, clock: &Clock) -> bool {
    matches!(why, CallError::Reset { code, .. } if *code == Code::CANCEL) && end.left(clock.now()) <= TICK
}

fn infer_fault(model: &ModelId, error: InferError) -> Fault {
    Fault::Infer { model: Quoted::new(model.as_str()), error }
}

fn call_fault(model: &ModelId, why: &CallError) -> Fault {
    let model = Quoted::new(model.as_str());
    match why {
        CallError::Unreachable { retry_after, .. } => {
            Fault::RuntimeAway { model, why: why.to_string(), retry_after: (*retry_after).max(Duration::from_secs(1)) }
        }
        _ => Fault::RuntimeLost { model, why: why.to_string() },
    }
}
