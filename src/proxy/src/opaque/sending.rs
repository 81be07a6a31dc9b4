//! A call to a copy of a model: found, guarded, asked, and asked once more where that is safe.

use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use berth_adapters::InferError;
use berth_residency::{Ended, WaitError};
use berth_types::{Deadline, ModelId};
use berth_upstream::{Answer, CallError, Piece, Server};
use http::request::Parts;
use http::{HeaderMap, Method as Verb, Request as HttpRequest, Response, Uri, Version};
use http_body::{Body, Frame, SizeHint};

use super::{begun, call_fault, heads, infer_fault, is_late, unknown};
use crate::codes::{Fault, Quoted};
use crate::frontend::Frontend;
use crate::id::Asked;
use crate::methods;
use crate::route::{self, Models};

/// How often a call is sent once more: after the runtime did not hold the model, or the connection broke.
const TRIES: u32 = 1;
/// How often it is routed again, before it was sent, after its model went away between being found and being asked.
const REROUTES: u32 = 2;
/// How long it may take until a copy is withdrawn whose runtime has just died under a call.
const NOTICED: Duration = Duration::from_secs(2);

/// When a call must have an answer, and when that answer must have ended.
#[derive(Clone, Copy)]
pub(super) struct Deadlines {
    pub(super) answer: Deadline,
    pub(super) end: Deadline,
}

/// Where a call goes, and the headers that its client sent.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
}

/// A request that can be sent to one model and, as long as it is whole, once more to the same or to another one.
pub(super) trait Sending {
    type Body: Body<Data: Into<Piece>, Error: Into<Box<dyn Error + Send + Sync>>> + Send + Unpin + 'static;

    /// The body of the next try, for `model`.
    ///
    /// # Errors
    /// It cannot be sent (any more).
    fn body(&mut self, model: &ModelId) -> Result<Self::Body, Fault>;

    /// Bytes that are in memory while it waits for its model.
    fn held(&self) -> u64;

    /// Whether all of it that was sent can be sent again.
    fn is_whole(&self) -> bool;

    /// Whether it has been sent to its end.
    fn is_sent(&self) -> bool;

    /// Whether it is one message and nothing more will come: it may run twice where it is not known whether it ran.
    fn is_one(&self) -> bool;

    /// What its client's sending ran into, where that is why a call failed.
    fn fault(&self) -> Option<Fault>;
}

/// The body of one try, which tells when the first of it is sent.
struct Telling<B> {
    body: B,
    /// `None` where nobody wants to know.
    sent: Option<Arc<AtomicBool>>,
}

impl<B> Telling<B> {
    fn tell(&self) {
        self.sent.iter().for_each(|sent| sent.store(true, Ordering::Relaxed));
    }
}

impl<B: Body + Unpin> Body for Telling<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let me = self.get_mut();
        me.tell();
        Pin::new(&mut me.body).poll_frame(cx)
    }

    /// An empty one goes out with its head.
    fn is_end_stream(&self) -> bool {
        let ended = self.body.is_end_stream();
        if ended {
            self.tell();
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer that has begun, and the copy that gives it.
pub(super) struct Begun<G> {
    pub(super) answer: Response<Answer>,
    pub(super) guard: G,
    pub(super) model: ModelId,
    /// When it was asked for.
    pub(super) since: Instant,
    /// Whether the model computes for it.
    pub(super) computes: bool,
}

impl<M: Models> Frontend<M> {
    /// Sends `request` to a copy of what `asked` stands for, which is loaded first where it must be.
    ///
    /// A runtime that does not hold the model is looked at: if that is so the request goes once more, to a fresh copy. If not,
    /// the runtime meant something else, and what it said is the answer. What broke off goes once more if it did not run, or
    /// is one message.
    ///
    /// # Errors
    /// [`Fault`]; none that the runtime stated itself: those are answers.
    pub(super) async fn send<S: Sending>(
        &self,
        server: &Server,
        head: Head<'_>,
        asked: &Asked<'_>,
        deadlines: Deadlines,
        request: &mut S,
    ) -> Result<Begun<M::Guard>, Fault> {
        let (mut tries, mut reroutes, mut died) = (TRIES, REROUTES, false);
        loop {
            let registration = route::registration(&self.models, asked)?;
            let model = &registration.id;
            let acquired = route::acquire(&self.models, &registration, &self.waiting, || request.held(), &self.clock, deadlines.answer).await;
            let mut guard = match acquired {
                Err(Fault::Wait { error: WaitError::Retired, .. }) if reroutes > 0 => {
                    reroutes -= 1;
                    continue;
                }
                other => other?,
            };
            let since = self.clock.now();
            let sent_again = died.then(Arc::<AtomicBool>::default);
            let body = Telling { body: request.body(model)?, sent: sent_again.clone() };
            let sent = HttpRequest::from_parts(self.head_for(head, model, deadlines), body);
            let called = {
                // Pinned where it is: it is not moved once more.
                let calling = pin!(async {
                    let answer = unknown::call(server, sent).await?;
                    if request.is_sent() && !answer.body().is_end_stream() { begun::wait(answer, &self.clock).await } else { Ok(answer) }
                });
                tokio::select! {
                    biased;
                    called = self.clock.until(deadlines.answer, calling) => Some(called),
                    () = M::revoked(&guard) => None,
                }
            };
            let Some(called) = called else {
                // Withdrawn because its runtime died under this request: as where there is no connection any more.
                if reroutes > 0 && request.is_whole() && sent_again.is_some_and(|sent| !sent.load(Ordering::Relaxed)) {
                    reroutes -= 1;
                    continue;
                }
                return Err(Fault::Revoked(Quoted::new(model.as_str())));
            };
            match called {
                None => return Err(request.fault().unwrap_or_else(|| infer_fault(model, InferError::DeadlineExceeded))),
                Some(Ok(answer)) => {
                    let not_here = heads::is_not_here(answer.headers()) || unknown::is_said(&answer);
                    // After another try the runtime means something else that it did not find.
                    if !not_here || tries == 0 || !self.lost(model, &mut guard, deadlines.answer).await {
                        return Ok(Begun { answer, guard, model: model.clone(), since, computes: methods::computes(head.uri.path()) });
                    }
                    if !request.is_whole() {
                        return Err(infer_fault(model, InferError::NotLoaded(model.clone())));
                    }
                }
                Some(Err(why)) => {
                    if why.is_lost() {
                        M::witness(&guard)(Ended::Lost);
                        died = true;
                    }
                    if let Some(fault) = request.fault() {
                        return Err(fault);
                    }
                    if is_late(&why, deadlines.end, &self.clock) {
                        return Err(infer_fault(model, InferError::DeadlineExceeded));
                    }
                    if died && reroutes > 0 && request.is_whole() && matches!(why, CallError::Unreachable { .. }) {
                        // It died under this request, which has not been sent again yet: the next copy is there when it is back.
                        reroutes -= 1;
                        let _ = self.clock.until(self.clock.deadline_in(NOTICED).min(deadlines.answer), M::revoked(&guard)).await;
                        continue;
                    }
                    let again = tries > 0 && request.is_whole() && (why.safe_to_send_again() || request.is_one());
                    if !again || matches!(why, CallError::Unreachable { .. }) {
                        return Err(call_fault(model, &why));
                    }
                    tracing::debug!(model = %model, error = %why, "a request is sent once more");
                }
            }
            tries -= 1;
        }
    }

    fn head_for(&self, head: Head<'_>, model: &ModelId, deadlines: Deadlines) -> Parts {
        let (mut parts, ()) = HttpRequest::new(()).into_parts();
        (parts.method, parts.version) = (Verb::POST, Version::HTTP_2);
        parts.uri = head.uri.clone();
        parts.headers = heads::to_runtime(head.headers, model, deadlines.end.left(self.clock.now()));
        parts
    }
}
