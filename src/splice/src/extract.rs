//! The id in the first message of a body, compressed or not.

use std::sync::Arc;

use bytes::Bytes;

use crate::budget::Budget;
use crate::error::SpliceError;
use crate::finder::Progress;
use crate::inflate::{Encoding, Means, Packed};
use crate::messages::{Messages, Part};
use crate::path::FieldPath;
use crate::walk::{Limits, Walk};

/// Finds the first value at a path in the first message of a body, as its frames arrive. It keeps none of them: whoever
/// passes the body on later keeps them until this has an answer, within bounds of their own.
pub struct Extract {
    messages: Messages,
    max_message: u64,
    walk: Walk,
    means: Means,
    packed: Option<Box<Packed>>,
    answer: Option<Result<Progress, SpliceError>>,
}

impl Extract {
    /// For one body. `max_message`: the largest first message, in bytes as it comes and inflated. `encoding`: how its
    /// compressed messages are compressed, `None` if by a name not known here. What inflating needs, about 52 KiB whatever
    /// the message's size, is asked from `budget`.
    #[must_use]
    pub fn new(path: FieldPath, limits: Limits, max_message: u64, encoding: Option<Encoding>, budget: Arc<dyn Budget>) -> Extract {
        let walk = Walk::new(Some(path), limits);
        Extract { messages: Messages::new(max_message), max_message, walk, means: Means { encoding, budget }, packed: None, answer: None }
    }

    /// Looks at the next frame. Once the answer is not `More` it stays, and further frames are not looked at.
    pub fn push(&mut self, frame: &Bytes) -> Result<Progress, SpliceError> {
        let mut rest = frame.clone();
        while self.answer.is_none() {
            match self.messages.next(&mut rest) {
                Ok(Some(part)) => self.answer = self.part(part).transpose(),
                Ok(None) => return Ok(Progress::More),
                Err(fault) => self.answer = Some(Err(fault)),
            }
        }
        self.packed = None;
        self.answer.clone().unwrap_or(Ok(Progress::More))
    }

    /// The body is over: `Found` or `Absent`, and `Absent` too if there was no message at all.
    pub fn end(&self) -> Result<Progress, SpliceError> {
        self.answer.clone().unwrap_or_else(|| self.messages.end().map(|()| Progress::Absent))
    }

    fn part(&mut self, part: Part) -> Result<Option<Progress>, SpliceError> {
        let message = self.messages.begun();
        let wire = |fault| SpliceError::Wire { message, fault };
        let found = match (part, &mut self.packed) {
            (Part::Start(prefix), _) => {
                if prefix.compressed {
                    self.packed = Some(self.means.packed(message, self.walk.clone(), false, self.max_message)?);
                } else {
                    self.walk.restart(Some(prefix.length.into()));
                }
                return Ok(None);
            }
            (Part::Data(data), None) => self.walk.push(&data).map_err(wire)?,
            (Part::Data(data), Some(packed)) => packed.push(&data)?,
            (Part::End, packed) => {
                match packed.take() {
                    None => self.walk.end().map_err(wire)?,
                    Some(packed) => drop(packed.end()?),
                }
                return Ok(Some(Progress::Absent));
            }
        };
        Ok(found.map(Progress::Found))
    }
}
