//! Where a field is in a message, and the bytes that set it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The wire type of strings, bytes and messages: a length, then that many bytes.
pub(crate) const LEN: u8 = 2;

/// Field numbers from a request's top message down to a string field: 1 to 16 of them, each one that protobuf allows. All
/// but the last are fields that hold one message. A repeated message is no place for an id: what is appended to it is a
/// further element, where parsers differ.
///
/// Printed as `3.1`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldPath(Arc<[u32]>);

/// Why some numbers are no path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No number at all.
    #[error("a field path needs at least one field number")]
    Empty,
    /// More than [`FieldPath::LONGEST`].
    #[error("a field path has {0} field numbers; at most 16 are taken")]
    TooLong(usize),
    /// A number that no field can have.
    #[error("{0} is not a field number: 1 to 536870911 are, without 19000 to 19999")]
    Number(u32),
}

impl FieldPath {
    /// How many numbers a path may have.
    pub const LONGEST: usize = 16;

    /// The path through `numbers`, outermost first.
    pub fn new(numbers: &[u32]) -> Result<FieldPath, PathError> {
        if numbers.is_empty() {
            return Err(PathError::Empty);
        }
        if numbers.len() > Self::LONGEST {
            return Err(PathError::TooLong(numbers.len()));
        }
        match numbers.iter().find(|number| !matches!(**number, 1..=18_999 | 20_000..=536_870_911)) {
            Some(number) => Err(PathError::Number(*number)),
            None => Ok(FieldPath(numbers.into())),
        }
    }

    /// The numbers, outermost first.
    #[must_use]
    pub fn numbers(&self) -> &[u32] {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, number) in self.0.iter().enumerate() {
            let dot = if place == 0 { "" } else { "." };
            write!(f, "{dot}{number}")?;
        }
        Ok(())
    }
}

/// What is appended to a serialized message so that every protobuf parser reads `value` at `path`: the field itself,
/// within one occurrence of each message around it that holds nothing else.
#[must_use]
pub fn suffix(path: &FieldPath, value: &str) -> Bytes {
    let tag = |number: u32| u64::from(number) << 3 | u64::from(LEN);
    // What each field holds, from the outermost on.
    let mut lengths = [0; FieldPath::LONGEST];
    let mut length = value.len();
    for (number, holds) in path.numbers().iter().zip(&mut lengths).rev() {
        *holds = length as u64;
        length += varint_len(tag(*number)) + varint_len(*holds);
    }
    let mut out = Vec::with_capacity(length);
    for (number, holds) in path.numbers().iter().zip(lengths) {
        put_varint(&mut out, tag(*number));
        put_varint(&mut out, holds);
    }
    out.extend_from_slice(value.as_bytes());
    out.into()
}

/// Bytes of `value` as a varint.
fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends `value` as a varint: seven bits a byte, the lowest first.
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_1_to_16_numbers_that_fields_can_have() {
        for (numbers, expected) in [
            (vec![1], Ok("1")),
            (vec![3, 1], Ok("3.1")),
            (vec![536_870_911, 18_999, 20_000], Ok("536870911.18999.20000")),
            (vec![1; 16], Ok("1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1")),
            (vec![], Err(PathError::Empty)),
            (vec![1; 17], Err(PathError::TooLong(17))),
            (vec![1, 0], Err(PathError::Number(0))),
            (vec![19_000], Err(PathError::Number(19_000))),
            (vec![19_999, 1], Err(PathError::Number(19_999))),
            (vec![536_870_912], Err(PathError::Number(536_870_912))),
            (vec![u32::MAX], Err(PathError::Number(u32::MAX))),
        ] {
            assert_eq!(FieldPath::new(&numbers).map(|path| path.to_string()), expected.map(str::to_owned), "{numbers:?}");
        }
    }

    #[test]
    fn a_suffix_is_the_field_within_nothing_but_its_messages() {
        let long = "m".repeat(300);
        let mut nested_long = vec![0x1a, 0xaf, 0x02, 0x0a, 0xac, 0x02];
        nested_long.extend(long.bytes());
        for (numbers, value, expected) in [
            (vec![1], "m", vec![0x0a, 1, b'm']),
            (vec![1], "", vec![0x0a, 0]),
            (vec![16], "ab", vec![0x82, 0x01, 2, b'a', b'b']),
            (vec![3, 1], "ab", vec![0x1a, 4, 0x0a, 2, b'a', b'b']),
            (vec![3, 1], long.as_str(), nested_long),
            (vec![2, 536_870_911], "x", vec![0x12, 7, 0xfa, 0xff, 0xff, 0xff, 0x0f, 1, b'x']),
        ] {
            let path = FieldPath::new(&numbers).unwrap();
            assert_eq!(suffix(&path, value), expected, "{path} {value}");
        }
    }
}
