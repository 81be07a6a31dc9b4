//! The body of an answer on its way to the client: frames and trailers as the runtime sends them.
//!
//! The copy that answers stays guarded until the last of it; when the copy must go first, the connection to the runtime
//! breaks or the deadline passes, what the client gets ends with trailers that say so.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use berth_adapters::InferError;
use berth_telemetry::Clock;
use berth_types::{Deadline, ModelId};
use berth_upstream::Answer;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tonic::{Code, Status};

use super::passing::Request;
use super::{Called, infer_fault, is_late};

use crate::codes::{Fault, Quoted};
use crate::meters::Measured;
use crate::route::Models;
use crate::wire;

/// The body of an answer that the runtime gives, whoever guards its copy.
pub(crate) trait Flows: Send {
    /// The next frame, as [`http_body::Body`] has it.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>>;

    /// Whether nothing more comes.
    fn is_end_stream(&self) -> bool;
}

/// An answer that the runtime gives.
pub(crate) struct Passed<M: Models> {
    /// `None` once it has ended, in whatever way.
    open: Option<Open<M>>,
}

struct Open<M: Models> {
    answer: Answer,
    kept: Kept<M::Guard>,
    measured: Measured,
    /// Which model, for faults.
    model: ModelId,
    /// May still be on its way; then it knows why it broke off.
    request: Request<hyper::body::Incoming>,
    clock: Clock,
    /// When the answer must have ended.
    end: Deadline,
}

/// What keeps the copy that answers.
enum Kept<G> {
    /// The whole answer may be there already: nobody waits yet.
    Guard(G),
    /// Completes with what must end the answer before its time. It holds the guard.
    Watched(Pin<Box<dyn Future<Output = Fault> + Send>>),
    Gone,
}

impl<M: Models> Passed<M> {
    /// `code`: the answer's, where its head says it already.
    pub(crate) fn new(called: Called<M>, mut measured: Measured, request: Request<hyper::body::Incoming>, clock: Clock) -> Self {
        let Called { body: answer, guard, model, end, code } = called;
        if let Some(code) = code {
            measured.is(code);
        }
        let ended = answer.is_end_stream();
        let open = Open { answer, kept: Kept::Guard(guard), measured, model, request, clock, end };
        Passed { open: (!ended).then_some(open) }
    }

    /// Ends the answer with trailers of ours.
    fn end(&mut self, fault: &Fault) -> Frame<Bytes> {
        if let Some(mut open) = self.open.take() {
            open.measured.is(fault.verdict().code);
        }
        Frame::trailers(wire::badly(fault))
    }
}

impl<M: Models> Open<M> {
    /// What must end the answer before its time.
    fn poll_ending(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        if matches!(self.kept, Kept::Guard(_))
            && let Kept::Guard(guard) = std::mem::replace(&mut self.kept, Kept::Gone)
        {
            let (clock, end, model) = (self.clock.clone(), self.end, self.model.clone());
            self.kept = Kept::Watched(Box::pin(async move {
                tokio::select! {
                    () = M::revoked(&guard) => Fault::Revoked(Quoted::new(model.as_str())),
                    () = clock.sleep_until(end) => infer_fault(&model, InferError::DeadlineExceeded),
                }
            }));
        }
        match &mut self.kept {
            Kept::Watched(ending) => ending.as_mut().poll(cx),
            Kept::Guard(_) | Kept::Gone => Poll::Pending,
        }
    }
}

impl<M: Models> Flows for Passed<M> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(open) = &mut self.open else { return Poll::Ready(None) };
        match Pin::new(&mut open.answer).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(code_of) {
                    open.measured.is(code);
                }
                if frame.is_trailers() || open.answer.is_end_stream() {
                    self.open = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(why))) => {
                let lost = || Fault::RuntimeLost { model: Quoted::new(open.model.as_str()), why: why.to_string() };
                let fault = match open.request.fault() {
                    Some(fault) => fault,
                    None if is_late(&why, open.end, &open.clock) => infer_fault(&open.model, InferError::DeadlineExceeded),
                    None => lost(),
                };
                Poll::Ready(Some(Ok(self.end(&fault))))
            }
            Poll::Ready(None) => {
                self.open = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let fault = ready!(open.poll_ending(cx));
                Poll::Ready(Some(Ok(self.end(&fault))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.open.is_none()
    }
}

/// The code that headers or trailers state.
pub(crate) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}
