//! The id in the first message of a body, compressed or not.

use std::sync::Arc;

use bytes::Bytes;

use crate::budget::Budget;
use crate::error::SpliceError;
use crate::finder::Progress;
use crate::inflate::{Encoding, Means, Packed};
use crate::messages::{Messages, Part};
use crate::pace::Pace;
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
    pace: Pace,
    answer: Option<Result<Progress, SpliceError>>,
}

impl Extract {
    /// For one body. `max_message`: the largest first message, in bytes as it comes and inflated. `encoding`: how its
    /// compressed messages are compressed, `None` if by a name not known here. What inflating needs, about 52 KiB whatever
    /// the message's size, is asked from `budget`.
    #[must_use]
    pub fn new(path: FieldPath, limits: Limits, max_message: u64, encoding: Option<Encoding>, budget: Arc<dyn Budget>) -> Extract {
        let walk = Walk::until(path, limits);
        let (messages, means) = (Messages::new(max_message), Means { encoding, budget });
        Extract { messages, max_message, walk, means, packed: None, pace: Pace::any(), answer: None }
    }

    /// Inflates about so many bytes at a time, half a megabyte more at worst: see [`Extract::is_behind`].
    #[must_use]
    pub fn at_a_time(self, bytes: u64) -> Extract {
        Extract { pace: Pace::of(bytes), ..self }
    }

    /// Whether the frames so far inflate to more than is inflated at a time. [`Extract::push`] goes on with them, so an
    /// empty frame will do; until it has, the body is not over.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.pace.is_behind()
    }

    /// Looks at the next frame. Once the answer is not `More` it stays, and further frames are not looked at.
    pub fn push(&mut self, frame: &Bytes) -> Result<Progress, SpliceError> {
        if self.answer.is_none() {
            self.pace.take(frame.clone());
        }
        while self.answer.is_none() {
            match self.pace.next(&mut self.messages, self.packed.is_some()) {
                Ok(Some(part)) => self.answer = self.part(part).transpose(),
                Ok(None) => return Ok(Progress::More),
                Err(fault) => self.answer = Some(Err(fault)),
            }
        }
        self.packed = None;
        self.pace.clear();
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
            (Part::Data(data), Some(packed)) => {
                let (before, found) = (packed.length(), packed.push(&data)?);
                self.pace.inflated(packed.length() - before);
                found
            }
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;
    use crate::budget::Pool;
    use crate::error::WireError;

    fn zlib(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A message with its prefix.
    fn framed(flag: u8, payload: &[u8]) -> Vec<u8> {
        let [a, b, c, d] = (payload.len() as u32).to_be_bytes();
        [&[flag, a, b, c, d], payload].concat()
    }

    #[test]
    fn the_first_message_says_which_id() {
        let found = |id: &str| Ok(Progress::Found(id.to_owned()));
        let tensor = [&b"\x3a\xc0\x84\x3d"[..], &[9; 1_000_000], b"\x0a\x01m"].concat();
        let other = framed(0, b"\x0a\x01z");
        for (case, body, expected) in [
            ("in it", framed(0, b"\x0a\x01m"), found("m")),
            ("behind a tensor", framed(0, &tensor), found("m")),
            ("compressed", framed(1, &zlib(b"\x0a\x01m")), found("m")),
            ("compressed, behind a tensor", framed(1, &zlib(&tensor)), found("m")),
            ("before the body ends", framed(0, b"\x0a\x01m")[..8].to_vec(), found("m")),
            ("not in it, but in the second", [framed(0, b""), other.clone()].concat(), Ok(Progress::Absent)),
            ("not in it, compressed", [framed(1, &zlib(b"")), other].concat(), Ok(Progress::Absent)),
            ("no message", vec![], Ok(Progress::Absent)),
            ("a body that is cut", framed(0, b"\x0a\x01m")[..7].to_vec(), Err(SpliceError::Ended { message: 1, got: 2, length: 3 })),
            ("too large", framed(0, &[0; 2 << 20]), Err(SpliceError::TooLarge { message: 1, length: 2 << 20, limit: 1 << 20 })),
            (
                "too large inflated",
                framed(1, &zlib(&[&b"\x3a\x80\x80\x80\x01"[..], &[0; 2 << 20]].concat())),
                Err(SpliceError::TooLargeInflated { message: 1, limit: 1 << 20 }),
            ),
            ("a field beyond it", framed(0, b"\x3a\x06"), Err(SpliceError::Wire { message: 1, fault: WireError::Beyond { at: 2 } })),
            ("a cut tag", framed(0, b"\x80"), Err(SpliceError::Wire { message: 1, fault: WireError::Ended { at: 1 } })),
            ("no message by its fields", framed(0, b"\x07"), Err(SpliceError::Wire { message: 1, fault: WireError::Field { at: 1 } })),
            ("the same, compressed", framed(1, &zlib(b"\x07")), Err(SpliceError::Wire { message: 1, fault: WireError::Field { at: 1 } })),
        ] {
            for size in [1, 7, 16_384] {
                // Enough for a decoder and one buffer: nothing is gathered.
                let pool = Arc::new(Pool::new(52 << 10));
                let path = FieldPath::new(&[1]).unwrap();
                let mut extract = Extract::new(path, Limits::default(), 1 << 20, Some(Encoding::Deflate), pool.clone());
                let mut told = Ok(Progress::More);
                for frame in body.chunks(size) {
                    let before = told.clone();
                    told = extract.push(&Bytes::copy_from_slice(frame));
                    assert!(before == Ok(Progress::More) || before == told, "{case}: an answer stays");
                }
                assert_eq!(extract.end(), expected, "{case}, {size} at a time");
                assert!(told == expected || told == Ok(Progress::More), "{case}: {told:?}");
                assert!(pool.lent() == 0 || told == Ok(Progress::More), "{case}: nothing is held once there is an answer");
            }
        }
    }

    #[test]
    fn an_id_behind_much_that_inflates_is_found_in_steps() {
        let tensor = [&b"\x3a\x80\x80\x80\x02"[..], &[0; 4 << 20], b"\x0a\x01m"].concat();
        let body = Bytes::from(framed(1, &zlib(&tensor)));
        let path = FieldPath::new(&[1]).unwrap();
        let extract = Extract::new(path, Limits::default(), 8 << 20, Some(Encoding::Deflate), Arc::new(Pool::new(52 << 10)));
        let (mut extract, mut steps) = (extract.at_a_time(256 << 10), 0);
        let mut told = extract.push(&body).unwrap();
        while extract.is_behind() {
            assert_eq!(told, Progress::More);
            told = extract.push(&Bytes::new()).unwrap();
            steps += 1;
        }
        assert_eq!(told, Progress::Found("m".to_owned()));
        assert!((4..64).contains(&steps), "{steps} steps");
    }
}
