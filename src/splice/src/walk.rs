//! One message, field by field, as its bytes arrive. Payload is skipped by counting: a tensor costs a subtraction.

use crate::error::WireError;
use crate::path::{FieldPath, LEN};

/// How much of a message is followed and kept while a field is sought in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest value that is taken, in bytes.
    pub max_value: usize,
    /// How deep groups may be nested.
    pub max_groups: usize,
}

impl Default for Limits {
    /// 4 KiB, and the 100 levels that protobuf's own parsers allow.
    fn default() -> Limits {
        Limits { max_value: 4 << 10, max_groups: 100 }
    }
}

/// Follows the fields of one message, and down the messages of a path if one is sought.
///
/// At any byte: `ends[..depth]` are the ends of the open messages along the path, outermost first, none beyond the one
/// before; `groups` are the open groups of the innermost of them; `at <= limit()`.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    /// `None`: only the top message's fields are followed.
    path: Option<FieldPath>,
    limits: Limits,
    /// Whether nothing is looked at behind the value that was found.
    stops: bool,
    /// Whether every further value must be the one that was found; else they are not looked at.
    agrees: bool,
    /// The value that was found, where others must be the same.
    first: Option<String>,
    /// Bytes taken.
    at: u64,
    /// The message's length, `u64::MAX` where it is not known.
    end: u64,
    ends: [u64; FieldPath::LONGEST],
    depth: usize,
    groups: Vec<u32>,
    state: State,
    /// What is there of the value, where it comes in pieces.
    gathered: Vec<u8>,
    /// Nothing is sought any more.
    found: bool,
    /// The fault that was told: it is told again.
    failed: Option<WireError>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// In a tag, or between fields where none of its bytes is there.
    Tag(Varint),
    /// In the varint of a field that is skipped, of which so many bytes are there.
    Scalar(u8),
    /// In a length; `sought`: of a field on the path.
    Length { sought: bool, varint: Varint },
    /// So many bytes are of no interest: at least one.
    Skip(u64),
    /// In the value that is sought, which has so many bytes.
    Value(usize),
}

#[derive(Clone, Copy, Debug, Default)]
struct Varint {
    value: u64,
    bytes: u8,
}

impl Varint {
    /// Takes one byte; `Ok(Some)` is the number, once it is whole.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, ()> {
        // The tenth byte holds the 64th bit alone.
        if self.bytes == 9 && byte > 1 {
            return Err(());
        }
        self.value |= u64::from(byte & 0x7f) << (7 * self.bytes);
        self.bytes += 1;
        Ok((byte < 0x80).then_some(self.value))
    }
}

impl Walk {
    /// For one message, followed to its end; `path` is what is sought in it.
    pub(crate) fn whole(path: Option<FieldPath>, limits: Limits) -> Walk {
        Walk {
            path,
            limits,
            stops: false,
            agrees: false,
            first: None,
            at: 0,
            end: u64::MAX,
            ends: [0; FieldPath::LONGEST],
            depth: 0,
            groups: Vec::new(),
            state: State::Tag(Varint::default()),
            gathered: Vec::new(),
            found: false,
            failed: None,
        }
    }

    /// For one message, followed until the value at `path` is found.
    pub(crate) fn until(path: FieldPath, limits: Limits) -> Walk {
        Walk { stops: true, ..Walk::whole(Some(path), limits) }
    }

    /// The same, for messages whose values are all read by somebody: one that differs from the first is a fault.
    pub(crate) fn agreeing(self) -> Walk {
        Walk { agrees: true, ..self }
    }

    /// Begins a message, of `length` bytes if that is known: the first, or one after another that ended well and so left
    /// nothing open.
    pub(crate) fn restart(&mut self, length: Option<u64>) {
        self.at = 0;
        self.end = length.unwrap_or(u64::MAX);
        self.found = false;
        self.first = None;
    }

    /// Of the message that has just begun only its structure counts.
    pub(crate) fn seeks_nothing(&mut self) {
        self.found = true;
    }

    /// Takes the next bytes of the message. `Some` once: the first value at the path that is not empty. A fault behind that
    /// value is told afterwards, so that it makes no difference how the bytes are cut.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Option<String>, WireError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let mut found = None;
        if let Err(fault) = self.follow(bytes, &mut found) {
            self.failed = Some(fault.clone());
            return if found.is_some() { Ok(found) } else { Err(fault) };
        }
        Ok(found)
    }

    fn follow(&mut self, mut bytes: &[u8], found: &mut Option<String>) -> Result<(), WireError> {
        while let Some(&first) = bytes.first()
            && !(self.found && self.stops)
        {
            match &mut self.state {
                State::Skip(left) => {
                    let step = (*left).min(bytes.len() as u64);
                    *left -= step;
                    let over = *left == 0;
                    self.at += step;
                    bytes = &bytes[step as usize..];
                    if over {
                        self.between()?;
                    }
                }
                State::Value(length) => {
                    let length = *length;
                    let (piece, rest) = bytes.split_at((length - self.gathered.len()).min(bytes.len()));
                    self.at += piece.len() as u64;
                    bytes = rest;
                    if piece.len() == length {
                        *found = self.value(piece)?.or(found.take());
                    } else {
                        self.gathered.extend_from_slice(piece);
                        if self.gathered.len() == length {
                            let whole = std::mem::take(&mut self.gathered);
                            *found = self.value(&whole)?.or(found.take());
                        }
                    }
                }
                State::Tag(_) | State::Scalar(_) | State::Length { .. } => {
                    if self.at == self.limit() {
                        return Err(WireError::Beyond { at: self.at });
                    }
                    self.at += 1;
                    bytes = &bytes[1..];
                    self.byte(first)?;
                }
            }
        }
        Ok(())
    }

    /// The message has ended: wrong within a field or a group.
    pub(crate) fn end(&self) -> Result<(), WireError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        match self.state {
            State::Tag(Varint { bytes: 0, .. }) if self.depth == 0 => self.closed(),
            _ => Err(WireError::Ended { at: self.at }),
        }
    }

    /// Where the innermost open message ends.
    fn limit(&self) -> u64 {
        if self.depth == 0 { self.end } else { self.ends[self.depth - 1] }
    }

    /// One byte of a tag, a length or a varint.
    fn byte(&mut self, byte: u8) -> Result<(), WireError> {
        let at = self.at;
        match &mut self.state {
            State::Tag(varint) => {
                if let Some(tag) = varint.push(byte).map_err(|()| WireError::Varint { at })? {
                    return self.tag(tag);
                }
            }
            State::Length { sought, varint } => {
                let sought = *sought;
                if let Some(length) = varint.push(byte).map_err(|()| WireError::Varint { at })? {
                    return self.length(sought, length);
                }
            }
            State::Scalar(bytes) => {
                *bytes += 1;
                if byte < 0x80 {
                    return self.between();
                }
                // Bits beyond the 64th are nobody's business here: parsers that take them drop them.
                if *bytes == 10 {
                    return Err(WireError::Varint { at });
                }
            }
            State::Skip(_) | State::Value(_) => {}
        }
        Ok(())
    }

    fn tag(&mut self, tag: u64) -> Result<(), WireError> {
        let (at, wire) = (self.at, (tag & 7) as u8);
        let field = match u32::try_from(tag >> 3) {
            Ok(field @ 1..=536_870_911) => field,
            _ => return Err(WireError::Field { at }),
        };
        let sought = self.seeks(field);
        match wire {
            4 => match self.groups.pop() {
                Some(open) if open == field => self.between(),
                _ => Err(WireError::StrayEnd { at, field }),
            },
            6 | 7 => Err(WireError::WireType { at, field, wire }),
            _ if sought && wire != LEN => Err(WireError::WrongType { at, field, wire }),
            LEN => {
                self.state = State::Length { sought, varint: Varint::default() };
                Ok(())
            }
            0 => {
                self.state = State::Scalar(0);
                Ok(())
            }
            1 => self.skip(8),
            5 => self.skip(4),
            _ => {
                if self.groups.len() == self.limits.max_groups {
                    return Err(WireError::TooDeep { at, limit: self.limits.max_groups });
                }
                self.groups.push(field);
                self.between()
            }
        }
    }

    /// A field of `length` bytes begins.
    fn length(&mut self, sought: bool, length: u64) -> Result<(), WireError> {
        if !sought {
            return self.skip(length);
        }
        if length > self.limit() - self.at {
            return Err(WireError::Beyond { at: self.at });
        }
        let last = self.path.as_ref().is_some_and(|path| path.numbers().len() == self.depth + 1);
        if !last {
            self.ends[self.depth] = self.at + length;
            self.depth += 1;
            return self.between();
        }
        match usize::try_from(length) {
            // Behind another it takes that one's place.
            Ok(0) if self.first.is_some() => Err(WireError::Another { at: self.at }),
            // An empty string is what an absent one reads as: a later one may still say something.
            Ok(0) => self.between(),
            Ok(bytes) if bytes <= self.limits.max_value => {
                self.state = State::Value(bytes);
                Ok(())
            }
            _ => Err(WireError::TooLong { at: self.at, length, limit: self.limits.max_value }),
        }
    }

    /// The value is whole. `None`: it is the same again. What is left of the messages around it is of no interest, unless
    /// they may name another one.
    fn value(&mut self, bytes: &[u8]) -> Result<Option<String>, WireError> {
        let value = str::from_utf8(bytes).map_err(|_not| WireError::NotUtf8 { at: self.at })?;
        if self.agrees {
            self.between()?;
            return match &self.first {
                None => Ok(Some(self.first.insert(value.to_owned()).clone())),
                Some(first) if first == value => Ok(None),
                Some(_) => Err(WireError::Another { at: self.at }),
            };
        }
        let value = value.to_owned();
        self.found = true;
        let rest = if self.depth == 0 { 0 } else { self.ends[0] - self.at };
        self.depth = 0;
        self.skip(rest)?;
        Ok(Some(value))
    }

    /// `length` bytes are of no interest.
    fn skip(&mut self, length: u64) -> Result<(), WireError> {
        if length > self.limit() - self.at {
            return Err(WireError::Beyond { at: self.at });
        }
        if length == 0 {
            return self.between();
        }
        self.state = State::Skip(length);
        Ok(())
    }

    /// A field is over: so may be messages around it.
    fn between(&mut self) -> Result<(), WireError> {
        self.state = State::Tag(Varint::default());
        while self.depth > 0 && self.at == self.ends[self.depth - 1] {
            self.closed()?;
            self.depth -= 1;
        }
        Ok(())
    }

    /// Wrong if a group is open.
    fn closed(&self) -> Result<(), WireError> {
        self.groups.last().map_or(Ok(()), |field| Err(WireError::Unclosed { at: self.at, field: *field }))
    }

    /// Whether `field` is the next one on the path, here.
    fn seeks(&self, field: u32) -> bool {
        let next = self.path.as_ref().and_then(|path| path.numbers().get(self.depth));
        !self.found && self.groups.is_empty() && next == Some(&field)
    }
}
