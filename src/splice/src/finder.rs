//! The id in one message, found as early as it comes.

use crate::error::WireError;
use crate::path::FieldPath;
use crate::walk::{Limits, Walk};

/// How far a search is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Not found yet.
    More,
    /// The first value at the path that is not empty.
    Found(String),
    /// The message is over and does not have it.
    Absent,
}

/// Finds the first value at a path in one message, as its bytes arrive.
///
/// Empty values count as absent, as they do in proto3: a later one that is not empty is found. Where a message on the path
/// is there several times, the first that holds the field counts. Once something is found the rest is not looked at.
#[derive(Clone, Debug)]
pub struct Finder {
    walk: Walk,
    found: Option<String>,
}

impl Finder {
    /// For one message.
    #[must_use]
    pub fn new(path: FieldPath, limits: Limits) -> Finder {
        Finder { walk: Walk::until(path, limits), found: None }
    }

    /// Takes the next bytes of the message: `More` or `Found`.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Progress, WireError> {
        if self.found.is_none() {
            self.found = self.walk.push(bytes)?;
        }
        Ok(self.found.clone().map_or(Progress::More, Progress::Found))
    }

    /// The message is over: `Absent` or `Found`.
    pub fn end(&self) -> Result<Progress, WireError> {
        match &self.found {
            Some(value) => Ok(Progress::Found(value.clone())),
            None => self.walk.end().map(|()| Progress::Absent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a finder says of `message` when it comes in pieces of `size` bytes.
    fn find(path: &[u32], message: &[u8], size: usize) -> Result<Progress, WireError> {
        let limits = Limits { max_value: 5, max_groups: 2 };
        let mut finder = Finder::new(FieldPath::new(path).unwrap(), limits);
        for piece in message.chunks(size) {
            if let found @ Progress::Found(_) = finder.push(piece)? {
                assert_eq!(finder.push(b"\x07"), Ok(found.clone()), "what follows is not looked at");
                return Ok(found);
            }
        }
        finder.end()
    }

    fn found(value: &str) -> Result<Progress, WireError> {
        Ok(Progress::Found(value.to_owned()))
    }

    #[test]
    fn the_first_value_that_is_not_empty_is_found() {
        // A ModelInferRequest by hand: model_name 1, model_version 2, id 3, one input in 5, raw contents in 7.
        let infer = b"\x12\x01\x31\x1a\x02\x71\x38\x2a\x0b\x0a\x01\x78\x12\x04\x46\x50\x33\x32\x1a\x00\x3a\x04\xff\xff\xff\xff\x0a\x01\x6d";
        for (case, path, message, expected) in [
            ("the model's name, last", &[1][..], &infer[..], found("m")),
            ("the id of the request", &[3], infer, found("q8")),
            ("the name of its input", &[5, 1], infer, found("x")),
            ("an absent field", &[4], infer, Ok(Progress::Absent)),
            ("an empty message", &[1], b"", Ok(Progress::Absent)),
            ("the first of two", &[1], b"\x0a\x01a\x0a\x01b", found("a")),
            ("an empty one alone", &[1], b"\x0a\x00", Ok(Progress::Absent)),
            ("an empty one, then another", &[1], b"\x0a\x00\x0a\x01b", found("b")),
            ("nested", &[3, 1], b"\x1a\x03\x0a\x01a", found("a")),
            ("nested, in the second of two messages", &[3, 1], b"\x1a\x02\x10\x07\x1a\x00\x1a\x05\x10\x07\x0a\x01a", found("a")),
            ("not the same number one level up", &[3, 1], b"\x0a\x01z\x1a\x03\x0a\x01a", found("a")),
            ("not the same number one level down", &[1], b"\x1a\x03\x0a\x01z\x0a\x01a", found("a")),
            ("not in a group", &[1], b"\x1b\x0a\x01z\x1c\x0a\x01a", found("a")),
            ("not in a group within a group", &[1], b"\x1b\x23\x0a\x01z\x24\x1c\x0a\x01a", found("a")),
            ("behind all wire types", &[1], b"\x10\x96\x01\x11\x01\x02\x03\x04\x05\x06\x07\x08\x15\x01\x02\x03\x04\x12\x01\x0a\x0a\x01a", found("a")),
            ("a tag and a length of more bytes than they need", &[1], b"\x8a\x80\x00\x81\x80\x80\x80\x00a", found("a")),
            ("a varint of ten bytes with bits beyond the 64th", &[1], b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x0a\x01a", found("a")),
            ("the highest field number", &[536_870_911], b"\xfa\xff\xff\xff\x0f\x01a", found("a")),
            ("the longest value that is taken", &[1], b"\x0a\x05abcde", found("abcde")),
            ("a value of several bytes a character", &[1], "\x0a\x04üß".as_bytes(), found("üß")),
            ("faults behind it are not looked at", &[3, 1], b"\x1a\x04\x0a\x01a\x07\x07", found("a")),
        ] {
            for size in 1..=message.len().max(1) {
                assert_eq!(find(path, message, size), expected, "{case}, {size} at a time");
            }
        }
    }

    #[test]
    fn what_is_no_message_is_told_with_its_place() {
        for (case, path, message, expected) in [
            ("a field number of 0", &[9][..], &b"\x02"[..], WireError::Field { at: 1 }),
            ("a field number above all", &[9], b"\x82\x80\x80\x80\x10", WireError::Field { at: 5 }),
            ("wire type 6", &[9], b"\x0e", WireError::WireType { at: 1, field: 1, wire: 6 }),
            ("wire type 7", &[9], b"\x0f", WireError::WireType { at: 1, field: 1, wire: 7 }),
            ("a tag of eleven bytes", &[9], b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", WireError::Varint { at: 10 }),
            ("a length of 65 bits", &[9], b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", WireError::Varint { at: 11 }),
            ("a varint of eleven bytes", &[9], b"\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", WireError::Varint { at: 11 }),
            ("a cut tag", &[9], b"\x80", WireError::Ended { at: 1 }),
            ("a cut varint", &[9], b"\x08\x80", WireError::Ended { at: 2 }),
            ("a cut length", &[9], b"\x0a", WireError::Ended { at: 1 }),
            ("a cut field", &[9], b"\x0a\x03ab", WireError::Ended { at: 4 }),
            ("a cut fixed", &[9], b"\x0d\x01\x02\x03", WireError::Ended { at: 4 }),
            ("a cut value", &[1], b"\x0a\x03ab", WireError::Ended { at: 4 }),
            ("a cut message around it", &[3, 1], b"\x1a\x05\x10\x01", WireError::Ended { at: 4 }),
            ("a length of 64 bits", &[9], b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", WireError::Beyond { at: 11 }),
            ("a value beyond its message", &[3, 1], b"\x1a\x03\x0a\x02ab", WireError::Beyond { at: 4 }),
            ("a message beyond its message", &[3, 3, 1], b"\x1a\x02\x1a\x01\x0a", WireError::Beyond { at: 4 }),
            ("another field beyond its message", &[3, 1], b"\x1a\x02\x12\x01ab", WireError::Beyond { at: 4 }),
            ("a fixed beyond its message", &[3, 1], b"\x1a\x03\x15\x01\x02\x03\x04", WireError::Beyond { at: 3 }),
            ("a tag beyond its message", &[3, 1], b"\x1a\x01\x80\x01", WireError::Beyond { at: 3 }),
            ("a varint beyond its message", &[3, 1], b"\x1a\x01\x10\x01", WireError::Beyond { at: 3 }),
            ("a length beyond its message", &[3, 1], b"\x1a\x01\x12\x01", WireError::Beyond { at: 3 }),
            ("an end of no group", &[9], b"\x0c", WireError::StrayEnd { at: 1, field: 1 }),
            ("an end of another group", &[9], b"\x0b\x14", WireError::StrayEnd { at: 2, field: 2 }),
            ("a group without an end", &[9], b"\x0b", WireError::Unclosed { at: 1, field: 1 }),
            ("a group beyond its message", &[3, 1], b"\x1a\x01\x13\x14", WireError::Unclosed { at: 3, field: 2 }),
            ("groups too deep", &[9], b"\x0b\x0b\x0b", WireError::TooDeep { at: 3, limit: 2 }),
            ("a number at the path", &[1], b"\x08\x01", WireError::WrongType { at: 1, field: 1, wire: 0 }),
            ("a group at the path", &[1], b"\x0b\x0c", WireError::WrongType { at: 1, field: 1, wire: 3 }),
            ("a fixed on the way", &[3, 1], b"\x1d\x01\x02\x03\x04", WireError::WrongType { at: 1, field: 3, wire: 5 }),
            ("a value that is too long", &[1], b"\x0a\x06abcdef", WireError::TooLong { at: 2, length: 6, limit: 5 }),
            ("a value that is no text", &[1], b"\x0a\x02\xc3\x28", WireError::NotUtf8 { at: 4 }),
        ] {
            for size in 1..=message.len() {
                assert_eq!(find(path, message, size), Err(expected.clone()), "{case}, {size} at a time");
            }
        }
    }

    #[test]
    fn a_fault_stays_a_fault_whatever_follows() {
        let mut finder = Finder::new(FieldPath::new(&[1]).unwrap(), Limits::default());
        let fault = Err(WireError::Field { at: 5 });
        for bytes in [&b"\x82\x80\x80\x80\x10"[..], b"\x0a\x01a", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80"] {
            assert_eq!(finder.push(bytes), fault);
        }
        assert_eq!(finder.end(), fault);
    }
}
