//! A body passed on with an id appended to each message.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::budget::Budget;
use crate::error::SpliceError;
use crate::inflate::{Encoding, Means, Packed};
use crate::messages::{Messages, Part, Prefix};
use crate::path::FieldPath;
use crate::walk::{Limits, Walk};

/// What every message of a body may name: the ids that the call began with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Where messages name an id.
    pub path: FieldPath,
    /// The ids that are right. A message that names none is right, too.
    pub ids: Vec<String>,
    /// How much is followed and kept.
    pub limits: Limits,
}

/// Passes one body on, frame by frame, with a suffix appended to each of its messages.
///
/// Bytes of uncompressed messages go out as they come: large ones as slices, small ones joined with what stands before and
/// after them, so that a small request stays one frame. A compressed message that has to grow is inflated first, which
/// gathers it, and goes out uncompressed, which `grpc-encoding` allows for any message.
///
/// A message must end where its last field ends, else the receiver would never see it whole: what is appended could be
/// swallowed by a field that was cut on purpose. With an empty suffix and no watch, nothing but lengths is looked at.
///
/// After a fault nothing more passes: the same fault is told again. What went out before it is a body cut in the middle of
/// a message, so the call on the other side is to be reset.
pub struct Injector {
    suffix: Bytes,
    max_message: u64,
    watched: Option<Vec<String>>,
    messages: Messages,
    walk: Walk,
    /// `None`: no message may be compressed if it has to be read.
    means: Option<Means>,
    current: Current,
    /// What goes out next but is not large enough to go alone; empty between calls.
    joint: BytesMut,
    failed: Option<SpliceError>,
}

/// The message that is being passed on.
enum Current {
    /// As it comes.
    Plain,
    /// Inflated, to be sent when it is whole.
    Gathered(Box<Packed>),
    /// As it comes, and inflated on the side to see what it names.
    Aside(Box<Packed>),
}

/// Up to this many bytes are copied rather than sent as a slice of their own: a frame costs more than the copy.
const SMALL: usize = 4 << 10;

/// Joined pieces go out together up to this many bytes.
const JOINT: usize = 16 << 10;

impl Injector {
    /// For one body whose messages have at most `max_message` bytes each, before `suffix` is appended and after inflating.
    #[must_use]
    pub fn new(suffix: Bytes, max_message: u64, watch: Option<Watch>) -> Injector {
        let (path, limits, watched) = match watch {
            Some(watch) => (Some(watch.path), watch.limits, Some(watch.ids)),
            None => (None, Limits::default(), None),
        };
        Injector {
            suffix,
            max_message,
            watched,
            messages: Messages::new(max_message),
            walk: Walk::new(path, limits),
            means: None,
            current: Current::Plain,
            joint: BytesMut::new(),
            failed: None,
        }
    }

    /// Compressed messages that have to be read are inflated by `encoding` (`None`: its name is not known here), with memory
    /// that `budget` lends until the last slice of it is dropped. Without this they are refused.
    #[must_use]
    pub fn compressed(mut self, encoding: Option<Encoding>, budget: Arc<dyn Budget>) -> Injector {
        self.means = Some(Means { encoding, budget });
        self
    }

    /// How many messages have begun.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.messages.begun()
    }

    /// Bytes lent for the message that is being inflated.
    #[must_use]
    pub fn held(&self) -> usize {
        match &self.current {
            Current::Plain => 0,
            Current::Gathered(packed) | Current::Aside(packed) => packed.held(),
        }
    }

    /// Takes the next frame of the body and appends to `out` what is to be sent on, in order.
    pub fn push(&mut self, frame: Bytes, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let passed = self.pass(frame, out);
        match &passed {
            Ok(()) => self.flush(out),
            Err(fault) => {
                self.failed = Some(fault.clone());
                self.current = Current::Plain;
                self.joint.clear();
            }
        }
        passed
    }

    /// The body has ended: wrong in the middle of a message.
    pub fn end(&self) -> Result<(), SpliceError> {
        self.failed.clone().map_or_else(|| self.messages.end(), Err)
    }

    fn pass(&mut self, mut frame: Bytes, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        if self.suffix.is_empty() && self.watched.is_none() {
            return self.meter(frame, out);
        }
        while let Some(part) = self.messages.next(&mut frame)? {
            match part {
                Part::Start(prefix) => self.start(prefix, out)?,
                Part::Data(data) => self.data(data, out)?,
                Part::End => self.finish(out)?,
            }
        }
        Ok(())
    }

    /// A frame that passes as it is: only lengths are looked at.
    fn meter(&mut self, frame: Bytes, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        self.messages.count(&frame)?;
        if !frame.is_empty() {
            out.push(frame);
        }
        Ok(())
    }

    fn start(&mut self, prefix: Prefix, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        let message = self.messages.begun();
        if !prefix.compressed {
            self.walk.restart(Some(prefix.length.into()));
            return self.begin(prefix.length.into(), out);
        }
        let keep = !self.suffix.is_empty();
        let means = self.means.as_ref().ok_or(SpliceError::Unreadable { message })?;
        let packed = means.packed(message, self.walk.clone(), keep, self.max_message)?;
        if keep {
            self.current = Current::Gathered(packed);
        } else {
            self.current = Current::Aside(packed);
            self.send_small(&prefix.to_bytes(), out);
        }
        Ok(())
    }

    fn data(&mut self, data: Bytes, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        let message = self.messages.begun();
        let (found, passes) = match &mut self.current {
            Current::Plain => (self.walk.push(&data).map_err(|fault| SpliceError::Wire { message, fault })?, true),
            Current::Gathered(packed) => (packed.push(&data)?, false),
            Current::Aside(packed) => (packed.push(&data)?, true),
        };
        if let (Some(id), Some(right)) = (found, &self.watched)
            && !right.contains(&id)
        {
            return Err(SpliceError::AnotherId { message, id });
        }
        if passes {
            self.send(data, out);
        }
        Ok(())
    }

    /// A message has come to its end.
    fn finish(&mut self, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        let message = self.messages.begun();
        match std::mem::replace(&mut self.current, Current::Plain) {
            Current::Plain => self.walk.end().map_err(|fault| SpliceError::Wire { message, fault })?,
            Current::Aside(packed) => drop(packed.end()?),
            Current::Gathered(packed) => {
                let (pieces, length) = packed.end()?;
                self.begin(length, out)?;
                pieces.into_iter().for_each(|piece| self.send(piece, out));
            }
        }
        let suffix = self.suffix.clone();
        self.send(suffix, out);
        Ok(())
    }

    /// Sends the prefix of an uncompressed message that has `length` bytes before it grows.
    fn begin(&mut self, length: u64, out: &mut Vec<Bytes>) -> Result<(), SpliceError> {
        let by = self.suffix.len() as u64;
        let Ok(grown) = u32::try_from(length + by) else {
            return Err(SpliceError::CannotGrow { message: self.messages.begun(), length, by });
        };
        // One allocation for what a small message goes out as, or for what stands around a large one.
        let joined = if length <= SMALL as u64 { grown as usize } else { self.suffix.len() };
        self.joint.reserve(joined + 5);
        self.send_small(&Prefix { compressed: false, length: grown }.to_bytes(), out);
        Ok(())
    }

    /// Sends `piece`, in the order of calls.
    fn send(&mut self, piece: Bytes, out: &mut Vec<Bytes>) {
        if piece.len() <= SMALL {
            self.send_small(&piece, out);
        } else {
            self.flush(out);
            out.push(piece);
        }
    }

    fn send_small(&mut self, piece: &[u8], out: &mut Vec<Bytes>) {
        if self.joint.len() + piece.len() > JOINT {
            self.flush(out);
        }
        self.joint.extend_from_slice(piece);
    }

    fn flush(&mut self, out: &mut Vec<Bytes>) {
        if !self.joint.is_empty() {
            out.push(self.joint.split().freeze());
        }
    }
}
