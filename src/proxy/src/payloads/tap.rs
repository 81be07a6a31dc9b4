//! Sees the messages of one direction of a call as they pass, and copies those that there is room for.
//!
//! Before the first byte of a message its announced length decides who gets it: room for all of it, or none of it.

use std::sync::Arc;

use berth_splice::Encoding;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tonic::Code;

use super::payload::{Call, Kind, Metadata, Packing, Payload, metadata};
use super::queue::{Lost, Queue};
use crate::budget::Share;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Smaller frames are copied together: each would keep the whole buffer that it was read into.
const SMALL: usize = 4096;

/// One direction of a call.
pub(crate) struct Tap {
    direction: Direction,
    encoding: Option<Encoding>,
    /// Bytes seen so far, and how many of those that come are the same again.
    seen: u64,
    again: u64,
    at: At,
    /// Messages that ended.
    messages: u64,
    /// The end of the direction was seen.
    ended: bool,
}

/// What all payloads of one direction have in common.
struct Direction {
    call: Arc<Call>,
    queues: Vec<Arc<Queue>>,
    kind: Kind,
    metadata: Arc<Metadata>,
}

enum At {
    Prefix { bytes: [u8; PREFIX], got: usize },
    Message { left: u64, copy: Option<Copying> },
}

const BETWEEN: At = At::Prefix { bytes: [0; PREFIX], got: 0 };

/// A message that is being copied.
struct Copying {
    takers: Vec<(Arc<Queue>, Share)>,
    pieces: Option<Pieces>,
    size: u64,
    packing: Packing,
}

#[derive(Default)]
struct Pieces {
    whole: Vec<Bytes>,
    small: BytesMut,
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        if piece.len() < SMALL {
            self.small.extend_from_slice(&piece);
        } else {
            self.flush();
            self.whole.push(piece);
        }
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.whole.push(self.small.split().freeze());
        }
    }

    fn end(mut self) -> Vec<Bytes> {
        self.flush();
        self.whole
    }
}

impl Direction {
    /// Who has room for a message of `size` bytes.
    fn takers(&self, size: u64) -> Vec<(Arc<Queue>, Share)> {
        let overhead = Payload::overhead(&self.call, &self.metadata);
        self.queues.iter().filter_map(|queue| Some((Arc::clone(queue), queue.room(size, overhead)?))).collect()
    }

    fn put(&self, takers: Vec<(Arc<Queue>, Share)>, data: Vec<Bytes>, size: u64, packing: Packing, status: Option<Code>) {
        let payload = |data| {
            let (call, metadata) = (Arc::clone(&self.call), Arc::clone(&self.metadata));
            Arc::new(Payload { call, kind: self.kind, status, metadata, data, size, packing })
        };
        let with_data = payload(data);
        for (queue, share) in takers {
            // Whoever does not count the data must not keep it.
            queue.put(if queue.wants_data { Arc::clone(&with_data) } else { payload(Vec::new()) }, share);
        }
    }

    /// A response is well until the call has ended otherwise.
    fn status(&self) -> Option<Code> {
        (self.kind == Kind::Response).then_some(Code::Ok)
    }

    /// One message that is all there; it is made only where somebody has room for it.
    fn message(&self, size: u64, bytes: impl FnOnce() -> Bytes) {
        let takers = self.takers(size);
        if takers.is_empty() {
            return;
        }
        let wanted = takers.iter().any(|(queue, _)| queue.wants_data);
        self.put(takers, if wanted { vec![bytes()] } else { Vec::new() }, size, Packing::Plain, self.status());
    }

    /// The end of a call without a message.
    fn without_message(&self, status: Code) {
        self.put(self.takers(0), Vec::new(), 0, Packing::Plain, Some(status));
    }
}

impl Tap {
    fn new(direction: Direction, headers: &HeaderMap) -> Self {
        let encoding = headers.get("grpc-encoding").map_or(Some(Encoding::Identity), |value| Encoding::parse(value.to_str().ok()?));
        Tap { direction, encoding, seen: 0, again: 0, at: BETWEEN, messages: 0, ended: false }
    }

    /// The direction begins again with the bytes that were seen.
    pub(crate) fn begins_again(&mut self) {
        self.again = self.seen;
    }

    /// The next bytes.
    pub(crate) fn push(&mut self, frame: &Bytes) {
        let mut frame = frame.clone();
        let known = self.again.min(frame.len() as u64);
        self.again -= known;
        drop(frame.split_to(known as usize));
        self.seen += frame.len() as u64;
        loop {
            match &mut self.at {
                At::Prefix { bytes, got } => {
                    let taken = frame.split_to((PREFIX - *got).min(frame.len()));
                    bytes[*got..*got + taken.len()].copy_from_slice(&taken);
                    *got += taken.len();
                    if *got < PREFIX {
                        return;
                    }
                    let [packed, length @ ..] = *bytes;
                    let size = u64::from(u32::from_be_bytes(length));
                    let packing = match (packed, self.encoding) {
                        (0, _) => Packing::Plain,
                        (1, Some(encoding)) if encoding != Encoding::Identity => Packing::Packed(encoding),
                        _ => Packing::Unknown,
                    };
                    let takers = self.direction.takers(size);
                    let pieces = takers.iter().any(|(queue, _)| queue.wants_data).then(Pieces::default);
                    let copy = (!takers.is_empty()).then_some(Copying { takers, pieces, size, packing });
                    self.at = At::Message { left: size, copy };
                }
                At::Message { left, copy } => {
                    let piece = frame.split_to(usize::try_from(*left).unwrap_or(usize::MAX).min(frame.len()));
                    *left -= piece.len() as u64;
                    if let Some(pieces) = copy.as_mut().and_then(|copy| copy.pieces.as_mut()) {
                        pieces.push(piece);
                    }
                    if *left > 0 {
                        return;
                    }
                    if let Some(Copying { takers, pieces, size, packing }) = copy.take() {
                        let data = pieces.map(Pieces::end).unwrap_or_default();
                        self.direction.put(takers, data, size, packing, self.direction.status());
                    }
                    self.messages += 1;
                    self.at = BETWEEN;
                }
            }
        }
    }

    /// The call has ended with `code`: that is said where no message has said it.
    pub(crate) fn ended(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.unfinished();
        if self.messages == 0 || code != Code::Ok {
            self.direction.without_message(code);
        }
    }

    fn unfinished(&mut self) {
        if let At::Message { copy: Some(copy), .. } = std::mem::replace(&mut self.at, BETWEEN) {
            for (queue, _share) in copy.takers {
                queue.drops(Lost::Unfinished);
            }
        }
    }
}

impl Drop for Tap {
    /// Whoever asked went away.
    fn drop(&mut self) {
        match self.direction.kind {
            Kind::Request => self.unfinished(),
            Kind::Response => self.ended(Code::Cancelled),
        }
    }
}

/// A call that some processor looks at. Its end is told, in whatever way it comes.
pub(crate) struct Observed {
    call: Arc<Call>,
    queues: Vec<Arc<Queue>>,
    /// The client's headers.
    metadata: Arc<Metadata>,
    ended: bool,
}

impl Observed {
    pub(super) fn new(call: Call, queues: Vec<Arc<Queue>>, headers: &HeaderMap) -> Self {
        Observed { call: Arc::new(call), queues, metadata: metadata(headers), ended: false }
    }

    fn direction(&self, kind: Kind, metadata: Arc<Metadata>) -> Direction {
        Direction { call: Arc::clone(&self.call), queues: self.queues.clone(), kind, metadata }
    }

    /// Sees the client's messages.
    pub(crate) fn requests(&self, headers: &HeaderMap) -> Box<Tap> {
        Box::new(Tap::new(self.direction(Kind::Request, Arc::clone(&self.metadata)), headers))
    }

    /// Sees the runtime's messages, whose head these headers are.
    pub(crate) fn responses(mut self, headers: &HeaderMap) -> Box<Tap> {
        self.ended = true;
        Box::new(Tap::new(self.direction(Kind::Response, metadata(headers)), headers))
    }

    /// The client's message, `size` bytes once it is made.
    pub(crate) fn request(&self, size: usize, bytes: impl FnOnce() -> Bytes) {
        self.direction(Kind::Request, Arc::clone(&self.metadata)).message(size as u64, bytes);
    }

    /// The runtime's message, `size` bytes once it is made.
    pub(crate) fn response(mut self, headers: &HeaderMap, size: usize, bytes: impl FnOnce() -> Bytes) {
        self.ended = true;
        self.direction(Kind::Response, metadata(headers)).message(size as u64, bytes);
    }

    /// There will be no message.
    pub(crate) fn failed(mut self, code: Code) {
        self.end(code);
    }

    fn end(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true) {
            self.direction(Kind::Response, Arc::default()).without_message(code);
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}
