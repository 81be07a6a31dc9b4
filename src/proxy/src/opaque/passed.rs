//! The body of an answer on its way to the client: frames and trailers as the runtime sends them.
//!
//! The copy that answers stays guarded until the last of it has come. When the copy must go first, the connection to the
//! runtime breaks, the deadline passes or the client does not read, what the client gets ends with trailers that say so. A
//! client that reads nothing is never asked for more, so whoever ends an answer does not wait for that: a task of its own
//! watches each answer of which something is still to come after a [moment](Young).

use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use berth_adapters::InferError;
use berth_residency::Ended;
use berth_telemetry::Clock;
use berth_types::{Deadline, ModelId};
use berth_upstream::{Answer, CallError};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as _, Frame};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use super::passing::Request;
use super::{begun, infer_fault, is_late};

use crate::codes::{Fault, Quoted};
use crate::meters::Measured;
use crate::payloads::Tap;
use crate::wire;

/// An answer that the runtime gives.
pub(crate) struct Passed(Arc<Mutex<Shared>>);

struct Shared {
    /// `None` once it has ended, in whatever way.
    open: Option<Open>,
    /// Watches what is still to come, and guards the copy until then. Goes after `open`: the call has ended before the copy
    /// may go.
    watcher: Watcher,
    /// What ended it before its time, until the client is told.
    cut: Option<Fault>,
    /// Who waits for the next piece.
    waits: Option<Waker>,
    /// Pieces that were taken.
    taken: u64,
}

/// What watches an answer.
enum Watcher {
    None,
    /// What will, if the answer lasts.
    Later(Box<dyn FnOnce(Watch) -> BoxFuture<'static, ()> + Send>),
    Now {
        _task: AbortOnDropHandle<()>,
    },
}

struct Open {
    answer: Answer,
    measured: Measured,
    /// Which model, for faults.
    model: ModelId,
    /// May still be on its way; then it knows why it broke off.
    request: Request<hyper::body::Incoming>,
    /// When the answer must have ended.
    until: (Clock, Deadline),
    /// Sees what is passed on.
    tap: Option<Box<Tap>>,
    /// Is told how it has ended.
    witness: Option<Box<dyn FnOnce(Ended) + Send + Sync>>,
    /// Whether the model computes for it.
    computes: bool,
}

impl Open {
    /// It ends so.
    fn is(&mut self, code: Code) {
        self.measured.is(code);
        self.tap.iter_mut().for_each(|tap| tap.ended(code));
    }

    /// What a failure of the call means.
    fn fault(&self, why: &CallError) -> Fault {
        match self.request.fault() {
            Some(fault) => fault,
            None if is_late(why, self.until.1, &self.until.0) => infer_fault(&self.model, InferError::DeadlineExceeded),
            None => Fault::RuntimeLost { model: Quoted::new(self.model.as_str()), why: why.to_string() },
        }
    }
}

impl Passed {
    /// `code`: the answer's, where its head says it already.
    pub(crate) fn new(
        answer: Answer,
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
        let open = Open { answer, measured, model, request, until, tap: None, witness: None, computes: false };
        let shared = Shared { open: (!ended).then_some(open), watcher: Watcher::None, cut: None, waits: None, taken: 0 };
        Passed(Arc::new(Mutex::new(shared)))
    }

    /// The same, and `tap` sees what is passed on.
    pub(crate) fn shown(self, tap: Option<Box<Tap>>) -> Self {
        if let Some(open) = &mut self.0.lock().open {
            open.tap = tap;
        }
        self
    }

    /// The same, and `witness` is told when the runtime breaks it off, and when it ends well if the model `computes` for it.
    pub(crate) fn witnessed(self, witness: Box<dyn FnOnce(Ended) + Send + Sync>, computes: bool) -> Self {
        if let Some(open) = &mut self.0.lock().open {
            (open.witness, open.computes) = (Some(witness), computes);
        }
        self
    }

    /// Runs `task` until the answer has ended, if that is not within a moment. It can end the answer itself.
    pub(crate) fn watched<F>(self, young: &Young, clock: &Clock, task: impl FnOnce(Watch) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut shared = self.0.lock();
        if let Some(open) = &shared.open {
            let late = open.until.1.left(clock.now()) <= MOMENT;
            shared.watcher = Watcher::Later(Box::new(|answer| Box::pin(task(answer))));
            drop(shared);
            if late { watch(&self.0) } else { young.add(&self.0, clock) }
        } else {
            drop(shared);
        }
        self
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut shared = self.0.lock();
        let Some(open) = &mut shared.open else {
            return Poll::Ready(shared.cut.take().map(|fault| Ok(Frame::trailers(wire::badly(&fault)))));
        };
        let (frame, ended) = match Pin::new(&mut open.answer).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(code) = frame.trailers_ref().and_then(code_of) {
                    open.is(code);
                    let well = open.computes && code == Code::Ok;
                    open.witness.take().filter(|_| well).into_iter().for_each(|witness| witness(Ended::Well));
                }
                if let (Some(tap), Some(data)) = (&mut open.tap, frame.data_ref()) {
                    tap.push(data);
                }
                let ended = frame.is_trailers() || open.answer.is_end_stream();
                (Some(frame), ended)
            }
            Poll::Ready(Some(Err(why))) => {
                open.witness.take().filter(|_| why.is_lost()).into_iter().for_each(|witness| witness(Ended::Lost));
                let fault = open.fault(&why);
                open.is(fault.verdict().code);
                (Some(Frame::trailers(wire::badly(&fault))), true)
            }
            Poll::Ready(None) => (None, true),
            Poll::Pending => {
                shared.waits = Some(cx.waker().clone());
                return Poll::Pending;
            }
        };
        shared.waits = None;
        shared.taken += 1;
        if ended {
            let over = shared.end();
            drop(shared);
            drop(over);
        }
        Poll::Ready(frame.map(Ok))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let shared = self.0.lock();
        shared.open.is_none() && shared.cut.is_none()
    }
}

impl Drop for Passed {
    /// The call ends with it, and not only when its watcher has been stopped.
    fn drop(&mut self) {
        let over = self.0.lock().end();
        drop(over);
    }
}

impl Shared {
    /// It has ended; what is handed out goes in that order.
    fn end(&mut self) -> (Option<Open>, Watcher) {
        (self.open.take(), std::mem::replace(&mut self.watcher, Watcher::None))
    }
}

/// Has an answer watched from now on, unless all of it has come: then its copy is free, whenever the client may read it.
fn watch(answer: &Arc<Mutex<Shared>>) {
    let mut shared = answer.lock();
    if shared.waits.is_none()
        && let Some(open) = &mut shared.open
    {
        begun::take_along(&mut open.answer);
        if open.answer.has_come() {
            let free = std::mem::replace(&mut shared.watcher, Watcher::None);
            drop(shared);
            drop(free);
            return;
        }
    }
    match std::mem::replace(&mut shared.watcher, Watcher::None) {
        Watcher::Later(task) => {
            let task = task(Watch(Arc::clone(answer)));
            shared.watcher = Watcher::Now { _task: AbortOnDropHandle::new(tokio::spawn(task)) };
        }
        other => shared.watcher = other,
    }
}

/// Answers that last no longer than this need not be watched.
const MOMENT: Duration = Duration::from_millis(50);

/// Answers that have begun within the last moment or two. Most end before that is over: a task for each would cost more than
/// all the rest of passing it on. Those that last are watched from then on.
#[derive(Clone, Default)]
pub(crate) struct Young(Arc<Mutex<Begun>>);

#[derive(Default)]
struct Begun {
    answers: Vec<Weak<Mutex<Shared>>>,
    /// A task looks at them in a moment.
    is_looked_after: bool,
}

impl Young {
    fn add(&self, answer: &Arc<Mutex<Shared>>, clock: &Clock) {
        let mut begun = self.0.lock();
        begun.answers.push(Arc::downgrade(answer));
        if !std::mem::replace(&mut begun.is_looked_after, true) {
            tokio::spawn(self.clone().look_after(clock.clone()));
        }
    }

    /// Ends when none has begun for a moment.
    async fn look_after(self, clock: Clock) {
        let mut answers = Vec::new();
        loop {
            clock.sleep(MOMENT).await;
            {
                let mut begun = self.0.lock();
                begun.is_looked_after = !begun.answers.is_empty();
                if !begun.is_looked_after {
                    begun.answers = Vec::new();
                    return;
                }
                std::mem::swap(&mut answers, &mut begun.answers);
            }
            answers.drain(..).filter_map(|answer| answer.upgrade()).for_each(|answer| watch(&answer));
        }
    }
}

/// An answer under way, for what may end it before its time.
pub(crate) struct Watch(Arc<Mutex<Shared>>);

impl Watch {
    /// Completes when the client has not taken what is there for it, for at most `limit` and at least half of that.
    pub(crate) async fn unread(&self, clock: &Clock, limit: Duration) {
        let mut before = None;
        loop {
            clock.sleep(limit / 2).await;
            let taken = {
                let shared = self.0.lock();
                shared.waits.is_none().then_some(shared.taken)
            };
            if taken.is_some() && taken == before {
                return;
            }
            before = taken;
        }
    }

    /// Ends the answer, and the call with it.
    pub(crate) fn end(&self, fault: Fault) {
        let (over, waits) = {
            let mut shared = self.0.lock();
            let over = shared.open.take();
            shared.cut = over.is_some().then(|| fault.clone());
            (over, shared.waits.take())
        };
        if let Some(mut over) = over {
            over.is(fault.verdict().code);
        }
        if let Some(waker) = waits {
            waker.wake();
        }
    }
}

/// The code that headers or trailers state.
pub(crate) fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}
