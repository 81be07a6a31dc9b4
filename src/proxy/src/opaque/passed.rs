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
use super::{infer_fault, is_late};

use crate::codes::{Fault, Quoted};
use crate::meters::Measured;
use crate::payloads::Tap;
use crate::wire;

/// Completes with what must end the answer before its time. It holds the copy's guard: dropped, the copy may go.
pub(crate) type Ending = Pin<Box<dyn Future<Output = Fault> + Send>>;

/// An answer that the runtime gives.
pub(crate) struct Passed {
    /// `None` once it has ended, in whatever way.
    open: Option<Open>,
}

struct Open {
    answer: Answer,
    ending: Ending,
    measured: Measured,
    /// Which model, for faults.
    model: ModelId,
    /// May still be on its way; then it knows why it broke off.
    request: Request<hyper::body::Incoming>,
    /// When the answer must have ended.
    until: (Clock, Deadline),
    /// Sees what is passed on.
    tap: Option<Box<Tap>>,
}

impl Passed {
    /// `code`: the answer's, where its head says it already.
    pub(crate) fn new(
        answer: Answer,
        ending: Ending,
        mut measured: Measured,
        code: Option<Code>,
        model: ModelId,
        request: Request<hyper::body::Incoming>,
        until: (Clock, Deadline),
    ) -> Self {
        if let Some(code) = code {
            measured.is(code);
        }
        let ended = answer.is_end_stream();
        let open = Open { answer, ending, measured, model, request, until, tap: None };
        Passed { open: (!ended).then_some(open) }
    }

    /// The same, and `tap` sees what is passed on.
    pub(crate) fn shown(mut self, tap: Option<Box<Tap>>) -> Self {
        if let Some(open) = &mut self.open {
            open.tap = tap;
        }
        self
    }

    /// Ends the answer with trailers of ours.
    fn end(&mut self, fault: &Fault) -> Frame<Bytes> {
        if let Some(mut open) = self.open.take() {
            open.measured.is(fault.verdict().code);
            open.tap.iter_mut().for_each(|tap| tap.ended(fault.verdict().code));
        }
        Frame::trailers(wire::badly(fault))
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(open) = &mut self.open else { return Poll::Ready(None) };
        match Pin::new(&mut open.answer).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(code_of) {
                    open.measured.is(code);
                    open.tap.iter_mut().for_each(|tap| tap.ended(code));
                }
                if let (Some(tap), Some(data)) = (&mut open.tap, frame.data_ref()) {
                    tap.push(data);
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
                    None if is_late(&why, open.until.1, &open.until.0) => infer_fault(&open.model, InferError::DeadlineExceeded),
                    None => lost(),
                };
                Poll::Ready(Some(Ok(self.end(&fault))))
            }
            Poll::Ready(None) => {
                self.open = None;
                Poll::Ready(None)
            }
            Poll::Pending => {
                let fault = ready!(open.ending.as_mut().poll(cx));
                Poll::Ready(Some(Ok(self.end(&fault))))
            }
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.open.is_none()
    }
}

/// The code that headers or trailers state.
pub(crate) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}
