//! Calls whose messages nobody here understands: from a client to the runtime and back, as they come.
//!
//! The model comes from the headers or is found in the first message; its id is written into every message, the copy is
//! guarded until the last of the answer, and what comes back is passed on whole: headers, messages, trailers. Only an answer
//! that says "that model is not here" is looked at: then the model is loaded again and the request sent once more, as long
//! as all of it is still here.

mod heads;
mod passed;
mod passing;
mod several;
mod typed;

#[cfg(test)]
mod tests;

use std::pin::pin;
use std::time::Duration;

use berth_adapters::InferError;
use berth_residency::WaitError;
use berth_splice::{Encoding, suffix};
use berth_telemetry::Clock;
use berth_types::{Deadline, ModelId};
use berth_upstream::{Answer, CallError, Code, Server};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method as Verb, Request as HttpRequest, Response, StatusCode, Version};

use crate::body::Outgoing;
use crate::codes::{Fault, Quoted};
use crate::frontend::Frontend;
use crate::id::{self, Asked};
use crate::meters::Measured;
use crate::methods::Names;
use crate::route::{self, Models};
use crate::wire;
pub(crate) use passed::Flows;
use passed::Passed;
use passing::Request;
pub(crate) use typed::Typed;

/// How often a call is sent once more: after the runtime did not hold the model, or the connection broke.
const TRIES: u32 = 2;

/// When a call must have an answer, and when that answer must have ended.
#[derive(Clone, Copy)]
struct Deadlines {
    answer: Deadline,
    end: Deadline,
}

impl<M: Models> Frontend<M> {
    /// Passes a call on to `server`.
    pub(crate) async fn pass(&self, server: &Server, head: &Parts, body: hyper::body::Incoming) -> Response<Outgoing> {
        let mut measured = self.meters.grpc.started(&self.clock);
        let in_headers = match id::plain(&head.headers) {
            Some(asked) => Ok(asked),
            None => match id::several(&head.headers) {
                Ok(None) => id::in_headers(&head.headers),
                Ok(Some(asked)) => return Box::pin(self.passed_several(server, head, &asked, body, measured)).await,
                Err(fault) => Err(fault),
            },
        };
        match self.try_pass(server, head, in_headers, body).await {
            Ok((headers, called, request)) => {
                let mut response = Response::new(Outgoing::Passed(Box::new(Passed::new(called, measured, request, self.clock.clone()))));
                *response.headers_mut() = headers;
                response
            }
            Err(fault) => {
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
            let (method, deadline) = (self.methods().of(head.uri.path())?, self.deadline(&head.headers)?);
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
    ) -> Result<(HeaderMap, Called<M>, Request<hyper::body::Incoming>), Fault> {
        let method = self.methods().of(head.uri.path())?;
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
        let mut tries = TRIES;
        loop {
            let registration = route::registration(&self.models, &asked)?;
            let model = &registration.id;
            let guard = match route::acquire(&self.models, &registration, &self.clock, deadlines.answer).await {
                Err(Fault::Wait { error: WaitError::Retired, .. }) if tries > 0 => {
                    tries -= 1;
                    continue;
                }
                other => other?,
            };
            let id = method.inject.as_ref().map_or_else(Bytes::new, |path| suffix(path, model.as_str()));
            // Whoever names the model in messages names it in all of them, or in none but the first.
            let watched = method.extract.as_ref().filter(|_| in_message).map(|extract| (extract.path.clone(), asked.as_str().to_owned()));
            let Some(body) = request.body(id, watched) else {
                let why = "the model went away when a part of the request had been sent".to_owned();
                return Err(Fault::RuntimeLost { model: Quoted::new(model.as_str()), why });
            };
            let sent = HttpRequest::from_parts(self.head_for(head, model, deadlines), body);
            // Pinned where it is: it is not moved once more.
            let call = pin!(server.call(sent));
            let called = tokio::select! {
                biased;
                called = self.clock.until(deadlines.answer, call) => called,
                () = M::revoked(&guard) => return Err(Fault::Revoked(Quoted::new(model.as_str()))),
            };
            let last = tries == 0;
            tries = tries.saturating_sub(1);
            match called {
                None => return Err(request.fault().unwrap_or_else(|| infer_fault(model, InferError::DeadlineExceeded))),
                // Not told a second time: then the runtime means something else that it did not find.
                Some(Ok(answer)) if heads::is_not_here(answer.headers()) && !last => {
                    drop(answer);
                    self.lost(model, guard, deadlines.answer).await;
                    if !request.is_whole() {
                        return Err(infer_fault(model, InferError::NotLoaded(model.clone())));
                    }
                }
                Some(Ok(answer)) => {
                    request.is_answered();
                    let (headers, called) = begun(answer, model, guard, deadlines.end)?;
                    return Ok((headers, called, request));
                }
                Some(Err(why)) => {
                    if let Some(fault) = request.fault() {
                        return Err(fault);
                    }
                    if is_late(&why, deadlines.end, &self.clock) {
                        return Err(infer_fault(model, InferError::DeadlineExceeded));
                    }
                    if last || !request.is_whole() || matches!(why, CallError::Unreachable { .. }) {
                        return Err(call_fault(model, &why));
                    }
                    tracing::debug!(model = %model, error = %why, "a request is sent once more");
                }
            }
        }
    }

    fn head_for(&self, head: &Parts, model: &ModelId, deadlines: Deadlines) -> Parts {
        let (mut parts, ()) = HttpRequest::new(()).into_parts();
        (parts.method, parts.version) = (Verb::POST, Version::HTTP_2);
        parts.uri = head.uri.clone();
        parts.headers = heads::to_runtime(&head.headers, model, deadlines.end.left(self.clock.now()));
        parts
    }

    /// When a call must be answered and end: what the client asked for, at most the longest there is. A client that asked
    /// for nothing gets the default until its answer begins; a stream may then go on.
    fn deadlines(&self, headers: &HeaderMap) -> Result<Deadlines, Fault> {
        let answer = self.deadline(headers)?;
        let end = if headers.contains_key("grpc-timeout") { answer } else { self.clock.deadline_in(self.config.max_deadline) };
        Ok(Deadlines { answer, end })
    }
}

/// An answer that has begun, without its headers.
struct Called<M: Models> {
    body: Answer,
    guard: M::Guard,
    model: ModelId,
    end: Deadline,
    /// The answer's, where its head says it already.
    code: Option<tonic::Code>,
}

fn begun<M: Models>(answer: Response<Answer>, model: &ModelId, guard: M::Guard, end: Deadline) -> Result<(HeaderMap, Called<M>), Fault> {
    let (head, body) = answer.into_parts();
    if head.status != StatusCode::OK {
        let why = format!("it answered with HTTP status {}", head.status.as_u16());
        return Err(Fault::RuntimeLost { model: Quoted::new(model.as_str()), why });
    }
    let code = passed::code_of(&head.headers);
    Ok((head.headers, Called { body, guard, model: model.clone(), end, code }))
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
