//! Where one gRPC message ends and the next begins: each has a prefix of five bytes, a flag and a length.

use bytes::Bytes;

use crate::error::SpliceError;

/// The bytes of a prefix.
const PREFIX: usize = 5;

/// What stands before a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Whether the message is compressed as `grpc-encoding` says.
    pub compressed: bool,
    /// The message's length on the wire, in bytes, without the prefix.
    pub length: u32,
}

impl Prefix {
    /// As it goes on the wire: the flag, then the length, highest byte first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 5] {
        let [a, b, c, d] = self.length.to_be_bytes();
        [u8::from(self.compressed), a, b, c, d]
    }
}

/// What [`Messages::next`] came upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// A message begins.
    Start(Prefix),
    /// Some bytes of it: never none.
    Data(Bytes),
    /// It is whole.
    End,
}

/// Splits a body into messages across frames: a prefix is checked once its five bytes are there, payload is never copied.
#[derive(Clone, Debug)]
pub struct Messages {
    limit: u64,
    /// Messages whose first byte has come.
    begun: u64,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// In a prefix, of which the first `got` bytes are there.
    Prefix { got: usize, bytes: [u8; PREFIX] },
    /// In a message, of which `left` bytes are missing.
    Inside { left: u32, length: u32 },
}

/// [`Part`] without its bytes.
enum Step {
    Start(Prefix),
    Data,
    End,
}

impl Messages {
    /// For a body whose messages have at most `limit` bytes each, as they are on the wire.
    #[must_use]
    pub fn new(limit: u64) -> Messages {
        Messages { limit, begun: 0, state: BETWEEN }
    }

    /// How many messages have begun.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Whether the body may end here.
    #[must_use]
    pub fn between(&self) -> bool {
        matches!(self.state, State::Prefix { got: 0, .. })
    }

    /// Takes the next part from the front of `frame`. `None`: the frame is used up, ask again with the next one.
    pub fn next(&mut self, frame: &mut Bytes) -> Result<Option<Part>, SpliceError> {
        let (used, step) = self.step(frame)?;
        Ok(match step {
            None => {
                frame.clear();
                None
            }
            Some(Step::Start(prefix)) => {
                let _prefix = frame.split_to(used);
                Some(Part::Start(prefix))
            }
            Some(Step::Data) => Some(Part::Data(frame.split_to(used))),
            Some(Step::End) => Some(Part::End),
        })
    }

    /// The body has ended: wrong in the middle of a message, where it says how much had come.
    pub fn end(&self) -> Result<(), SpliceError> {
        let (got, length) = match self.state {
            State::Prefix { got: 0, .. } => return Ok(()),
            State::Prefix { got, .. } => (got as u64, PREFIX as u64),
            State::Inside { left, length } => (u64::from(length - left), u64::from(length)),
        };
        Err(SpliceError::Ended { message: self.begun, got, length })
    }

    /// The prefix of `frame`, if that is all of one message, of a length that is allowed, and nothing before it is open.
    pub(crate) fn is_one(&self, frame: &[u8]) -> Option<Prefix> {
        let (&[flag, a, b, c, d], payload) = frame.split_first_chunk::<PREFIX>()?;
        let prefix = Prefix { compressed: flag == 1, length: u32::from_be_bytes([a, b, c, d]) };
        let fits = flag <= 1 && prefix.length as usize == payload.len() && u64::from(prefix.length) <= self.limit;
        (fits && self.between()).then_some(prefix)
    }

    /// Takes a frame [that is one](Self::is_one), and gives its payload.
    pub(crate) fn take_one<'f>(&mut self, frame: &'f [u8]) -> Result<&'f [u8], SpliceError> {
        self.count(frame)?;
        Ok(&frame[PREFIX..])
    }

    /// Takes a whole frame, for its lengths only.
    pub(crate) fn count(&mut self, mut frame: &[u8]) -> Result<(), SpliceError> {
        loop {
            let (used, step) = self.step(frame)?;
            frame = &frame[used..];
            if step.is_none() {
                return Ok(());
            }
        }
    }

    /// How many bytes of `frame` the next step takes, and what it is; `None` when all are used without one.
    fn step(&mut self, frame: &[u8]) -> Result<(usize, Option<Step>), SpliceError> {
        match &mut self.state {
            State::Inside { left: 0, .. } => {
                self.state = BETWEEN;
                Ok((0, Some(Step::End)))
            }
            State::Inside { left, .. } => {
                let here = u32::try_from(frame.len()).unwrap_or(u32::MAX).min(*left);
                *left -= here;
                Ok((here as usize, (here > 0).then_some(Step::Data)))
            }
            State::Prefix { got, bytes } => {
                let here = frame.len().min(PREFIX - *got);
                if *got == 0 && here > 0 {
                    self.begun += 1;
                }
                bytes[*got..*got + here].copy_from_slice(&frame[..here]);
                *got += here;
                if *got > 0 && bytes[0] > 1 {
                    return Err(SpliceError::Flag { message: self.begun, flag: bytes[0] });
                }
                if *got < PREFIX {
                    return Ok((here, None));
                }
                let [flag, a, b, c, d] = *bytes;
                let prefix = Prefix { compressed: flag == 1, length: u32::from_be_bytes([a, b, c, d]) };
                if u64::from(prefix.length) > self.limit {
                    return Err(SpliceError::TooLarge { message: self.begun, length: prefix.length.into(), limit: self.limit });
                }
                self.state = State::Inside { left: prefix.length, length: prefix.length };
                Ok((here, Some(Step::Start(prefix))))
            }
        }
    }
}

/// Nothing of the next prefix is there.
const BETWEEN: State = State::Prefix { got: 0, bytes: [0; PREFIX] };

/// Looks at the lengths of messages only, for a body that passes as it is.
#[derive(Clone, Debug)]
pub struct Meter(Messages);

impl Meter {
    /// For a body whose messages have at most `limit` bytes each, as they are on the wire.
    #[must_use]
    pub fn new(limit: u64) -> Meter {
        Meter(Messages::new(limit))
    }

    /// Counts a frame that passes.
    pub fn push(&mut self, frame: &[u8]) -> Result<(), SpliceError> {
        self.0.count(frame)
    }

    /// How many messages have begun.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.0.begun()
    }

    /// The body has ended: wrong in the middle of a message.
    pub fn end(&self) -> Result<(), SpliceError> {
        self.0.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of messages with the given flag and payload.
    fn body(messages: &[(u8, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (flag, payload) in messages {
            body.push(*flag);
            body.extend((payload.len() as u32).to_be_bytes());
            body.extend(*payload);
        }
        body
    }

    /// The messages that come out of `body` when it is cut into frames of `size` bytes.
    fn split(body: &[u8], size: usize, limit: u64) -> Result<Vec<(bool, Vec<u8>)>, SpliceError> {
        let (mut messages, mut meter, mut whole) = (Messages::new(limit), Meter::new(limit), Vec::new());
        let mut open = None;
        for frame in body.chunks(size) {
            let metered = meter.push(frame);
            let mut frame = Bytes::copy_from_slice(frame);
            while let Some(part) = messages.next(&mut frame).inspect_err(|fault| assert_eq!(metered, Err(fault.clone())))? {
                match (part, &mut open) {
                    (Part::Start(prefix), None) => open = Some((prefix, Vec::new())),
                    (Part::Data(data), Some((_, bytes))) => {
                        assert!(!data.is_empty());
                        bytes.extend(data);
                    }
                    (Part::End, open @ Some(_)) => {
                        let (prefix, bytes) = open.take().unwrap();
                        assert_eq!(bytes.len(), prefix.length as usize);
                        whole.push((prefix.compressed, bytes));
                    }
                    other => panic!("out of turn: {other:?}"),
                }
            }
            assert_eq!(metered, Ok(()));
        }
        assert_eq!(messages.end(), meter.end());
        assert_eq!(messages.begun(), meter.begun());
        assert_eq!(messages.end().is_ok(), messages.between());
        messages.end()?;
        Ok(whole)
    }

    #[test]
    fn messages_come_out_whole_however_the_body_is_cut() {
        let long = [7; 300];
        let body = body(&[(0, b"a"), (1, b""), (0, &long), (0, b""), (1, b"xyz")]);
        let whole = vec![(false, b"a".to_vec()), (true, vec![]), (false, long.to_vec()), (false, vec![]), (true, b"xyz".to_vec())];
        for size in 1..=body.len() {
            assert_eq!(split(&body, size, 300).as_ref(), Ok(&whole), "{size}");
        }
        assert_eq!(split(&[], 1, 300), Ok(vec![]));
    }

    #[test]
    fn a_body_that_is_no_grpc_or_too_large_or_cut_is_told_so() {
        let two = body(&[(0, b"abc"), (0, b"defgh")]);
        for (case, bytes, limit, expected) in [
            ("a flag of 2", vec![2], 9, SpliceError::Flag { message: 1, flag: 2 }),
            ("too large, before its payload", two[..8 + 5].to_vec(), 4, SpliceError::TooLarge { message: 2, length: 5, limit: 4 }),
            ("cut in a prefix", two[..3].to_vec(), 9, SpliceError::Ended { message: 1, got: 3, length: 5 }),
            ("cut after a prefix", two[..5].to_vec(), 9, SpliceError::Ended { message: 1, got: 0, length: 3 }),
            ("cut in the second message", two[..8 + 5 + 4].to_vec(), 9, SpliceError::Ended { message: 2, got: 4, length: 5 }),
        ] {
            for size in [1, 2, 3, 100] {
                assert_eq!(split(&bytes, size, limit), Err(expected.clone()), "{case} {size}");
            }
        }
    }

    #[test]
    fn payload_is_passed_on_and_not_copied() {
        let frame = Bytes::from(body(&[(0, &[1; 100])]));
        let (mut messages, mut rest) = (Messages::new(100), frame.clone());
        assert!(matches!(messages.next(&mut rest), Ok(Some(Part::Start(_)))));
        let Ok(Some(Part::Data(data))) = messages.next(&mut rest) else { panic!("no data") };
        assert_eq!(data.as_ptr(), frame[5..].as_ptr());
    }
}
