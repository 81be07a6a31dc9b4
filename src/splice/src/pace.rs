//! How much is inflated at a time: a few bytes may become megabytes, and whoever waits for a thread should not wait for them.

use bytes::Bytes;

use crate::error::SpliceError;
use crate::messages::{Messages, Part};

/// Compressed bytes that are inflated without a look at what they became: half a megabyte at worst.
const STEP: usize = 512;

/// The frame that is being looked at, compressed messages in steps.
pub(crate) struct Pace {
    at_a_time: u64,
    /// What is left of that.
    room: u64,
    frame: Bytes,
    /// What follows behind a step; else empty.
    rest: Bytes,
}

impl Pace {
    /// Without a limit.
    pub(crate) fn any() -> Pace {
        Pace::of(u64::MAX)
    }

    /// About so many inflated bytes for each [`Pace::take`].
    pub(crate) fn of(at_a_time: u64) -> Pace {
        Pace { at_a_time, room: at_a_time, frame: Bytes::new(), rest: Bytes::new() }
    }

    /// Whether something of what was taken has not been looked at.
    pub(crate) fn is_behind(&self) -> bool {
        !self.frame.is_empty() || !self.rest.is_empty()
    }

    /// Takes a frame, behind what is left.
    pub(crate) fn take(&mut self, frame: Bytes) {
        self.room = self.at_a_time;
        match self.is_behind() {
            false => self.frame = frame,
            true if frame.is_empty() => {}
            true => {
                self.frame = [&self.frame[..], &self.rest, &frame].concat().into();
                self.rest = Bytes::new();
            }
        }
    }

    /// The next part. `None`: all is looked at, or it is enough for now.
    pub(crate) fn next(&mut self, messages: &mut Messages, inflating: bool) -> Result<Option<Part>, SpliceError> {
        loop {
            if inflating {
                if self.room == 0 && self.is_behind() {
                    return Ok(None);
                }
                if self.rest.is_empty() && self.frame.len() > STEP {
                    self.rest = self.frame.split_off(STEP);
                }
            }
            if let Some(part) = messages.next(&mut self.frame)? {
                return Ok(Some(part));
            }
            if self.rest.is_empty() {
                return Ok(None);
            }
            self.frame = std::mem::take(&mut self.rest);
        }
    }

    /// So many bytes were inflated.
    pub(crate) fn inflated(&mut self, bytes: u64) {
        self.room = self.room.saturating_sub(bytes);
    }

    /// Forgets what is left.
    pub(crate) fn clear(&mut self) {
        (self.frame, self.rest) = (Bytes::new(), Bytes::new());
    }
}
