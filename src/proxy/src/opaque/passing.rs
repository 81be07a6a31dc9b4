//! The body of a request on its way to the runtime: as it comes, with the model's id in each message.
//!
//! Frames are passed on one by one; what is not asked for yet stays in the client's HTTP/2 window. What was read before the
//! call (to find the model's name) and small requests are kept, within the budget of all requests, until the runtime has
//! answered: then the same request can be sent once more, with another id if need be.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use berth_splice::{Encoding, Extract, FieldPath, Injector, Limits, Progress, SpliceError, Watch};
use berth_types::ByteSize;
use berth_upstream::Piece;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::body::Incoming;
use crate::budget::{Budget, Share};
use crate::codes::Fault;
use crate::payloads::Tap;

/// Requests up to this size are kept for another try.
const KEPT: u64 = 256 * 1024;
/// About so much is inflated before others get their turn.
const INFLATED: u64 = 256 * 1024;

/// What a client sends, and what of it is held here.
struct Source<B> {
    body: Option<B>,
    /// Counts what is kept and what waits to be passed on.
    share: Share,
    /// Frames that were read and are kept, for this try or another one.
    kept: VecDeque<Bytes>,
    /// Their bytes.
    held: u64,
    /// How many of them this try has passed on.
    passed: usize,
    /// Whether what this try passes on is kept for another one.
    keeps: bool,
    /// Which try this is: an earlier one's body gives no more.
    turn: u64,
    /// Of this try.
    injector: Option<Injector>,
    /// Others have had their turn since the last bytes were inflated.
    rested: bool,
    /// What goes out next.
    out: VecDeque<Piece>,
    /// Empty between frames; kept for its room.
    pieces: Vec<Bytes>,
    /// What the client's sending ran into. The runtime hears only that its request was cut off.
    fault: Option<Fault>,
    max_message: ByteSize,
    /// How compressed messages are compressed; `None`: in a way that is not known here.
    encoding: Option<Encoding>,
    budget: Budget,
    /// Sees what is passed on.
    tap: Option<Box<Tap>>,
}

impl<B: Incoming> Source<B> {
    fn new(body: B, budget: &Budget, max_message: ByteSize, encoding: Option<Encoding>) -> Self {
        Source {
            body: Some(body),
            share: budget.share(),
            kept: VecDeque::new(),
            held: 0,
            passed: 0,
            keeps: true,
            turn: 0,
            injector: None,
            rested: false,
            out: VecDeque::new(),
            pieces: Vec::new(),
            fault: None,
            max_message,
            encoding,
            budget: budget.clone(),
            tap: None,
        }
    }

    fn extract(&self, path: &FieldPath) -> Extract {
        let extract = Extract::new(path.clone(), Limits::default(), self.max_message.0, self.encoding, self.budget.lender());
        extract.at_a_time(INFLATED)
    }

    fn poll_find(&mut self, extract: &mut Extract, cx: &mut Context<'_>) -> Poll<Result<Option<String>, Fault>> {
        loop {
            let progress = if extract.is_behind() {
                extract.push(&Bytes::new())
            } else {
                match ready!(self.poll_read(cx))? {
                    None => extract.end().map(|ended| if ended == Progress::More { Progress::Absent } else { ended }),
                    Some(frame) => {
                        self.held += frame.len() as u64;
                        self.share.hold(self.held)?;
                        let progress = extract.push(&frame);
                        self.kept.push_back(frame);
                        progress
                    }
                }
            };
            match progress.map_err(|fault| self.fault_of(fault))? {
                Progress::Found(id) => return Poll::Ready(Ok(Some(id))),
                Progress::Absent => return Poll::Ready(Ok(None)),
                Progress::More => {}
            }
            if extract.is_behind() {
                return rest(cx);
            }
        }
    }

    /// The next bytes of the client's body, none at its end.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Fault>> {
        while let Some(body) = &mut self.body {
            match ready!(Pin::new(body).poll_frame(cx)) {
                None => self.body = None,
                Some(Err(why)) => return Poll::Ready(Err(Fault::Broken(why.into().to_string()))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Poll::Ready(Ok(Some(data))),
                    _ => {}
                },
            }
        }
        Poll::Ready(Ok(None))
    }

    /// What goes out next.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Fault>>> {
        loop {
            if let Some(bytes) = self.out.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            // Without one nothing has been asked for.
            let Some(injector) = &mut self.injector else { return Poll::Ready(None) };
            let behind = injector.is_behind();
            if behind && !std::mem::replace(&mut self.rested, true) {
                return rest(cx);
            }
            self.rested = false;
            let frame = match self.kept.get(self.passed).cloned() {
                // It goes on with what it has.
                _ if behind => Bytes::new(),
                Some(frame) if self.keeps => {
                    self.passed += 1;
                    frame
                }
                Some(frame) => {
                    self.kept.pop_front();
                    self.held -= frame.len() as u64;
                    frame
                }
                None => match ready!(self.poll_read(cx)) {
                    Err(fault) => return Poll::Ready(Some(Err(fault))),
                    Ok(Some(frame)) => {
                        self.keep(&frame);
                        frame
                    }
                    Ok(None) => {
                        let ended = self.injector.as_ref().map_or(Ok(()), Injector::end);
                        return Poll::Ready(ended.err().map(|fault| Err(self.fault_of(fault))));
                    }
                },
            };
            if let Some(tap) = &mut self.tap {
                tap.push(&frame);
            }
            let outcome = self.injector.as_mut().map_or(Ok(()), |injector| injector.push(frame, &mut self.pieces));
            if let Err(fault) = outcome.map_err(|fault| self.fault_of(fault)).and_then(|()| self.share.hold(self.held)) {
                self.pieces.clear();
                return Poll::Ready(Some(Err(fault)));
            }
            if let Some(first) = self.hand_out() {
                return Poll::Ready(Some(Ok(first)));
            }
        }
    }

    /// What a frame has become goes out, from the first piece on.
    fn hand_out(&mut self) -> Option<Piece> {
        let mut parts = self.pieces.drain(..);
        let first = Piece::of(&mut parts);
        self.out.extend(std::iter::from_fn(|| Piece::of(&mut parts)));
        first
    }

    /// Keeps a frame that is passed on, as long as the request is small.
    fn keep(&mut self, frame: &Bytes) {
        let held = self.held + frame.len() as u64;
        if self.keeps && held <= KEPT && self.share.hold(held).is_ok() {
            self.kept.push_back(frame.clone());
            self.held = held;
            self.passed += 1;
        } else {
            self.let_go();
        }
    }

    /// No further try: what was passed on is not needed any more.
    fn let_go(&mut self) {
        self.keeps = false;
        let passed = self.kept.drain(..std::mem::take(&mut self.passed));
        self.held -= passed.map(|frame| frame.len() as u64).sum::<u64>();
    }

    fn fault_of(&self, fault: SpliceError) -> Fault {
        fault_of(fault, &self.budget)
    }

    /// Whether all of it has been passed on.
    fn is_over(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
            && self.out.is_empty()
            && self.passed == self.kept.len()
            && self.injector.as_ref().is_none_or(|injector| !injector.is_behind() && injector.end().is_ok())
    }
}

/// What is wrong with a client's messages.
pub(crate) fn fault_of(fault: SpliceError, budget: &Budget) -> Fault {
    match fault {
        SpliceError::TooLarge { length, limit, .. } => Fault::TooLarge { size: Some(length), limit: ByteSize(limit) },
        SpliceError::TooLargeInflated { limit, .. } => Fault::TooLarge { size: None, limit: ByteSize(limit) },
        SpliceError::Ended { .. } => Fault::Broken(fault.to_string()),
        SpliceError::NoRoom { bytes, .. } => budget.shortage(bytes as u64),
        SpliceError::Unreadable { .. } => Fault::Unimplemented(fault.to_string()),
        other => Fault::BadRequest(other.to_string()),
    }
}

/// A request whose beginning was looked at, and that can be sent on.
pub(crate) struct Request<B>(Arc<Mutex<Source<B>>>);

impl<B: Incoming> Request<B> {
    pub(crate) fn new(body: B, budget: &Budget, max_message: ByteSize, encoding: Option<Encoding>) -> Self {
        Request(Arc::new(Mutex::new(Source::new(body, budget, max_message, encoding))))
    }

    /// Reads until the first message has named its model at `path`; what was read is kept.
    ///
    /// # Errors
    /// The client's: what is no message, too large, without room, or ends early.
    pub(crate) async fn find(&self, path: &FieldPath) -> Result<Option<String>, Fault> {
        let mut extract = self.0.lock().extract(path);
        std::future::poll_fn(|cx| self.0.lock().poll_find(&mut extract, cx)).await
    }

    /// The body for one more try, with `suffix` after each message. `None`: what was sent before is not here any more.
    pub(crate) fn body(&self, suffix: Bytes, watched: Option<(FieldPath, String, bool)>) -> Option<Passing<B>> {
        let mut source = self.0.lock();
        if source.turn > 0 && !source.keeps {
            return None;
        }
        source.turn += 1;
        source.tap.iter_mut().for_each(|tap| tap.begins_again());
        source.passed = 0;
        source.out.clear();
        let watch = watched.map(|(path, id, knows_first)| Watch { path, ids: vec![id], knows_first, limits: Limits::default() });
        let injector = Injector::new(suffix, source.max_message.0, watch).compressed(source.encoding, source.budget.lender());
        (source.injector, source.rested) = (Some(injector.at_a_time(INFLATED)), false);
        // More than this was read to find the model: it is sent once.
        if source.held > KEPT {
            source.let_go();
        }
        Some(Passing { source: Arc::clone(&self.0), turn: source.turn })
    }

    /// Shows what is passed on from its beginning; before the first [`Request::body`].
    pub(crate) fn show(&self, tap: Box<Tap>) {
        self.0.lock().tap = Some(tap);
    }

    /// Bytes that are in memory while nothing of it is sent: what was read of it and, unless that is all, what its client
    /// puts into the `window` of its stream meanwhile.
    pub(crate) fn held(&self, window: ByteSize) -> u64 {
        let source = self.0.lock();
        let unread = source.body.as_ref().is_some_and(|body| !body.is_end_stream());
        source.held + if unread { window.0 } else { 0 }
    }

    /// Whether all that was sent is still here, for another try.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.lock().keeps
    }

    /// Whether all of it has been sent.
    pub(crate) fn is_sent(&self) -> bool {
        self.0.lock().is_over()
    }

    /// Whether it is one message, and all of that was sent.
    pub(crate) fn is_one(&self) -> bool {
        let source = self.0.lock();
        source.injector.as_ref().is_some_and(|injector| injector.begun() == 1) && source.is_over()
    }

    /// What the client's sending ran into, where that is why a call failed.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.0.lock().fault.clone()
    }

    /// The runtime has answered: there will be no further try.
    pub(crate) fn is_answered(&self) {
        let mut source = self.0.lock();
        source.let_go();
        let held = source.held;
        // It held no less before.
        let _ = source.share.hold(held);
    }
}

/// The body of one try.
pub(crate) struct Passing<B> {
    source: Arc<Mutex<Source<B>>>,
    turn: u64,
}

/// Why a request was cut off; the fault itself stays with its [`Request`].
#[derive(Debug, thiserror::Error)]
#[error("the request was cut off")]
pub(crate) struct CutOff;

impl<B: Incoming> Body for Passing<B> {
    type Data = Piece;
    type Error = CutOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, CutOff>>> {
        let mut source = self.source.lock();
        if source.turn != self.turn {
            return Poll::Ready(Some(Err(CutOff)));
        }
        match ready!(source.poll_out(cx)) {
            None => Poll::Ready(None),
            Some(Ok(piece)) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            Some(Err(fault)) => {
                source.fault = Some(fault);
                Poll::Ready(Some(Err(CutOff)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.lock().is_over()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Pending until others have had their turn: tasks, sockets and timers. A waker alone would call it again before the sockets.
fn rest<T>(cx: &mut Context<'_>) -> Poll<T> {
    let _pending = pin!(tokio::task::yield_now()).poll(cx);
    Poll::Pending
}
