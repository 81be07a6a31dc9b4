//! The body of an answer as the server sends it.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame, SizeHint};
use tokio_util::task::AbortOnDropHandle;

use crate::error::{CallError, Stage, classify};
use crate::pool::Lease;
use crate::pump::BodyError;
use crate::target::Target;

/// The body of an answer: frames and trailers as they come, no faster than they are asked for. Empty frames are left out.
///
/// The call counts as open until this has ended or is dropped. Dropped before its end, the call is cancelled at the server,
/// and so is what is left of the request's body.
pub struct Answer {
    target: Target,
    /// Frames that were read and put back: they come before what is still to come.
    back: VecDeque<Result<Frame<Bytes>, CallError>>,
    /// `None` once it has ended, in whatever way.
    open: Option<Open>,
}

struct Open {
    stream: RecvStream,
    /// All data has come; only trailers are missing.
    is_all_data: bool,
    /// What is left of the request's body is sent by a task, since answers may be read later than requests are written.
    rest: Option<Rest>,
    lease: Lease,
}

/// The task that sends the rest of a request's body, and what it left behind if the body failed.
pub(crate) struct Rest {
    pub(crate) failed: Arc<OnceLock<BodyError>>,
    pub(crate) _task: AbortOnDropHandle<()>,
}

impl Answer {
    pub(crate) fn new(target: Target, stream: RecvStream, rest: Option<Rest>, lease: Lease) -> Self {
        let ended = stream.is_end_stream();
        let open = Open { stream, is_all_data: false, rest, lease };
        Answer { target, back: VecDeque::new(), open: (!ended).then_some(open) }
    }

    /// Puts back what was read of it, in the order in which it came: it comes again.
    pub fn put_back(&mut self, mut frames: VecDeque<Result<Frame<Bytes>, CallError>>) {
        frames.append(&mut self.back);
        self.back = frames;
    }

    /// Whether all of it has come: what is left of it was put back, and the call is over.
    #[must_use]
    pub fn has_come(&self) -> bool {
        self.open.is_none()
    }

    fn fail(&mut self, error: &h2::Error) -> CallError {
        let Some(open) = self.open.take() else { return classify(&self.target, error, Stage::Answering, None) };
        if let Some(failed) = open.rest.as_ref().and_then(|rest| rest.failed.get()) {
            return CallError::Body(failed.clone());
        }
        classify(&self.target, error, Stage::Answering, open.lease.connection.vital.ended())
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = CallError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CallError>>> {
        let this = self.get_mut();
        if let Some(frame) = this.back.pop_front() {
            return Poll::Ready(Some(frame));
        }
        let Some(open) = &mut this.open else { return Poll::Ready(None) };
        while !open.is_all_data {
            match ready!(open.stream.poll_data(cx)) {
                // Passed on, it would cost the receiver a frame for nothing; some close connections that send many of them.
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    open.lease.connection.vital.hear();
                    let _ = open.stream.flow_control().release_capacity(data.len());
                    if open.stream.is_end_stream() {
                        this.open = None;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(this.fail(&error)))),
                None => open.is_all_data = true,
            }
        }
        let frame = match ready!(open.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(this.fail(&error))),
        };
        this.open = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.open.is_none() && self.back.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("target", &self.target).field("ended", &self.open.is_none()).finish()
    }
}
