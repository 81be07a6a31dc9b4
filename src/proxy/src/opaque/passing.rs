//! The body of a request on its way to the runtime: as it comes, with the model's id in each message.
//!
//! Frames are passed on one by one; what is not asked for yet stays in the client's HTTP/2 window. What was read before the
//! call (to find the model's name) and small requests are kept, within the budget of all requests, until the runtime has
//! answered: then the same request can be sent once more, with another id if need be.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use berth_splice::{Encoding, Extract, FieldPath, Injector, Limits, Progress, SpliceError, Watch};
use berth_types::ByteSize;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;

use crate::body::Incoming;
use crate::budget::{Budget, Share};
use crate::codes::Fault;

/// Requests up to this size are kept for another try.
const KEPT: u64 = 256 * 1024;

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
    injector: Injector,
    /// What goes out next.
    out: VecDeque<Bytes>,
    /// Empty between frames; kept for its room.
    pieces: Vec<Bytes>,
    /// What the client's sending ran into. The runtime hears only that its request was cut off.
    fault: Option<Fault>,
    max_message: ByteSize,
    /// How compressed messages are compressed; `None`: in a way that is not known here.
    encoding: Option<Encoding>,
    budget: Budget,
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
            injector: Injector::new(Bytes::new(), max_message.0, None),
            out: VecDeque::new(),
            pieces: Vec::new(),
            fault: None,
            max_message,
            encoding,
            budget: budget.clone(),
        }
    }

    fn extract(&self, path: &FieldPath) -> Extract {
        Extract::new(path.clone(), Limits::default(), self.max_message.0, self.encoding, self.budget.lender())
    }

    fn poll_find(&mut self, extract: &mut Extract, cx: &mut Context<'_>) -> Poll<Result<Option<String>, Fault>> {
        loop {
            let progress = match ready!(self.poll_read(cx))? {
                None => match extract.end().map_err(|fault| self.fault_of(fault))? {
                    Progress::More => Progress::Absent,
                    ended => ended,
                },
                Some(frame) => {
                    self.held += frame.len() as u64;
                    self.share.hold(self.held)?;
                    let progress = extract.push(&frame).map_err(|fault| self.fault_of(fault))?;
                    self.kept.push_back(frame);
                    progress
                }
            };
            match progress {
                Progress::Found(id) => return Poll::Ready(Ok(Some(id))),
                Progress::Absent => return Poll::Ready(Ok(None)),
                Progress::More => {}
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
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            if let Some(bytes) = self.out.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            let frame = match self.kept.get(self.passed).cloned() {
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
                        return Poll::Ready(self.injector.end().err().map(|fault| Err(self.fault_of(fault))));
                    }
                },
            };
            let outcome = self.injector.push(frame, &mut self.pieces);
            if let Err(fault) = outcome.map_err(|fault| self.fault_of(fault)).and_then(|()| self.share.hold(self.held)) {
                self.out.extend(self.pieces.drain(..));
                return Poll::Ready(Some(Err(fault)));
            }
            if self.pieces.len() > 1 {
                self.out.extend(self.pieces.drain(..));
            } else if let Some(only) = self.pieces.pop() {
                return Poll::Ready(Some(Ok(only)));
            }
        }
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

    /// What is wrong with the client's messages.
    fn fault_of(&self, fault: SpliceError) -> Fault {
        match fault {
            SpliceError::TooLarge { length, limit, .. } => Fault::TooLarge { size: Some(length), limit: ByteSize(limit) },
            SpliceError::TooLargeInflated { limit, .. } => Fault::TooLarge { size: None, limit: ByteSize(limit) },
            SpliceError::Ended { .. } => Fault::Broken(fault.to_string()),
            SpliceError::NoRoom { bytes, .. } => self.budget.shortage(bytes as u64),
            SpliceError::Unreadable { .. } => Fault::Unimplemented(fault.to_string()),
            other => Fault::BadRequest(other.to_string()),
        }
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
    pub(crate) fn body(&self, suffix: Bytes, watched: Option<(FieldPath, String)>) -> Option<Passing<B>> {
        let mut source = self.0.lock();
        if source.turn > 0 && !source.keeps {
            return None;
        }
        source.turn += 1;
        source.passed = 0;
        source.out.clear();
        let watch = watched.map(|(path, id)| Watch { path, ids: vec![id], limits: Limits::default() });
        source.injector = Injector::new(suffix, source.max_message.0, watch).compressed(source.encoding, source.budget.lender());
        // More than this was read to find the model: it is sent once.
        if source.held > KEPT {
            source.let_go();
        }
        Some(Passing { source: Arc::clone(&self.0), turn: source.turn })
    }

    /// Whether all that was sent is still here, for another try.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.lock().keeps
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
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let mut source = self.source.lock();
        if source.turn != self.turn {
            return Poll::Ready(Some(Err(CutOff)));
        }
        match ready!(source.poll_out(cx)) {
            None => Poll::Ready(None),
            Some(Ok(bytes)) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            Some(Err(fault)) => {
                source.fault = Some(fault);
                Poll::Ready(Some(Err(CutOff)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.lock();
        source.body.as_ref().is_none_or(Body::is_end_stream)
            && source.out.is_empty()
            && source.passed == source.kept.len()
            && source.injector.end().is_ok()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
