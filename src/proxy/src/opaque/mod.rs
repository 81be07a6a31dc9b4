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

use crate::body::{Incoming, Outgoing};
use crate::codes::{Fault, Quoted};
use crate::frontend::Frontend;
use crate::id::{self, Asked};
use crate::meters::Measured;
use crate::methods::{Method, Names};
use crate::payloads::Observed;
use crate::route::{self, Models};
use crate::wire;
pub(crate) use passed::Passed;
use passing::{Request, Source};
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
        match id::several(&head.headers) {
            Ok(None) => {}
            Ok(Some(asked)) => return self.passed_several(server, head, &asked, body, measured).await,
            Err(fault) => {
                measured.is(fault.verdict().code);
                return wire::fault(&fault);
            }
        }
        let mut observed = None;
        match self.try_pass(server, head, body, &mut observed).await {
            Ok((called, request)) => called.answered(measured, request, observed),
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
        body: hyper::body::Incoming,
        observed: &mut Option<Observed>,
    ) -> Result<(Called, Request<hyper::body::Incoming>), Fault> {
        let method = self.methods().of(head.uri.path())?;
        let deadlines = self.deadlines(&head.headers)?;
        let mut source = Source::new(body, &self.bodies, self.config.max_message, encoding(&head.headers));
        let found = self.clock.until(deadlines.answer, asked(&method, &head.headers, &mut source)).await;
        let (asked, in_message) = found.unwrap_or(Err(Fault::SlowRequest))?;
        let request = Request::new(source);
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
            if observed.is_none() {
                *observed = self.observe(head.uri.path(), &asked, model, &head.headers);
                observed.iter().for_each(|observed| request.show(observed.requests(&head.headers)));
            }
            let id = method.inject.as_ref().map_or_else(Bytes::new, |path| suffix(path, model.as_str()));
            // Whoever names the model in messages names it in all of them, or in none but the first.
            let watched = method.extract.as_ref().filter(|_| in_message).map(|extract| (extract.path.clone(), asked.as_str().to_owned()));
            let Some(body) = request.body(id, watched) else {
                let why = "the model went away when a part of the request had been sent".to_owned();
                return Err(Fault::RuntimeLost { model: Quoted::new(model.as_str()), why });
            };
            let sent = HttpRequest::from_parts(self.head_for(head, model, deadlines), body);
            let called = tokio::select! {
                biased;
                called = self.clock.until(deadlines.answer, server.call(sent)) => called,
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
                    let called = self.called(answer, model, guard, deadlines.end)?;
                    return Ok((called, request));
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

    fn called(&self, answer: Response<Answer>, model: &ModelId, guard: M::Guard, end: Deadline) -> Result<Called, Fault> {
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            let why = format!("it answered with HTTP status {}", head.status.as_u16());
            return Err(Fault::RuntimeLost { model: Quoted::new(model.as_str()), why });
        }
        let (clock, named, until) = (self.clock.clone(), model.clone(), (self.clock.clone(), end));
        let ending = Box::pin(async move {
            tokio::select! {
                () = M::revoked(&guard) => Fault::Revoked(Quoted::new(named.as_str())),
                () = clock.sleep_until(end) => infer_fault(&named, InferError::DeadlineExceeded),
            }
        });
        Ok(Called { headers: head.headers, body, ending, model: model.clone(), until })
    }
}

/// An answer that has begun.
struct Called {
    headers: HeaderMap,
    body: Answer,
    ending: passed::Ending,
    model: ModelId,
    until: (Clock, Deadline),
}

impl Called {
    fn answered(self, measured: Measured, request: Request<hyper::body::Incoming>, observed: Option<Observed>) -> Response<Outgoing> {
        let code = passed::code_of(&self.headers);
        let mut tap = observed.map(|observed| observed.responses(&self.headers));
        code.into_iter().for_each(|code| tap.iter_mut().for_each(|tap| tap.ended(code)));
        let passed = Passed::new(self.body, self.ending, measured, code, self.model, request, self.until).shown(tap);
        let mut response = Response::new(Outgoing::Passed(Box::new(passed)));
        *response.headers_mut() = self.headers;
        response
    }
}

/// Which model a call asks for, by its headers or by its first message; true for the message.
async fn asked<B: Incoming>(method: &Method, headers: &HeaderMap, source: &mut Source<B>) -> Result<(Asked<'static>, bool), Fault> {
    let in_headers = id::in_headers(headers)?.map(Asked::into_owned);
    let Some(extract) = &method.extract else { return in_headers.ok_or_else(id::none).map(|asked| (asked, false)) };
    if let (Some(asked), false) = (&in_headers, extract.first) {
        return Ok((asked.clone(), false));
    }
    match (source.find(&extract.path).await?, in_headers) {
        (Some(id), _) => {
            let asked = if extract.names == Names::Name { Asked::Name(id.into()) } else { Asked::Version(id.into()) };
            Ok((asked, true))
        }
        (None, Some(asked)) => Ok((asked, false)),
        (None, None) => Err(id::none()),
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
