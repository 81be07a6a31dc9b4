//! Identities of objects.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};

/// The identity of one object, unique over all time: written as a UUID. An object that was deleted and made again has
/// another one; what no store has taken has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uid([u8; 16]);

impl Uid {
    /// No store has a version twice, and no two stores have one identity. Version 8 of the UUID: made by the application.
    pub(crate) fn of(store: u64, version: u64) -> Self {
        let half = |which: u8| {
            let mut hasher = DefaultHasher::new();
            (which, store, version).hash(&mut hasher);
            hasher.finish().to_be_bytes()
        };
        let [high, low] = [half(0), half(1)];
        let mut bytes: [u8; 16] = std::array::from_fn(|at| if at < 8 { high[at] } else { low[at - 8] });
        bytes[6] = 0x80 | (bytes[6] & 0x0f);
        bytes[8] = 0x80 | (bytes[8] & 0x3f);
        Uid(bytes)
    }

    /// True for what no store has taken.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0 == [0; 16]
    }
}

/// Nothing for none.
impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_none() {
            return Ok(());
        }
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl From<Uid> for String {
    fn from(uid: Uid) -> Self {
        uid.to_string()
    }
}

/// A text that is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a UUID")]
pub struct InvalidUid(String);

impl TryFrom<String> for Uid {
    type Error = InvalidUid;

    fn try_from(text: String) -> Result<Self, InvalidUid> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        let byte = |at: usize| {
            let pair = std::str::from_utf8(digits.get(2 * at..2 * at + 2)?).ok()?;
            u8::from_str_radix(pair, 16).ok()
        };
        let bytes: Vec<u8> = (0..16).map_while(byte).collect();
        let uid = <[u8; 16]>::try_from(bytes).map(Uid).unwrap_or_default();
        if uid.to_string() == text { Ok(uid) } else { Err(InvalidUid(text)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_a_uuid_that_is_read_as_it_is_written() {
        let (one, other) = (Uid::of(7, 1), Uid::of(7, 2));
        assert_ne!(one, other);
        assert_ne!(one, Uid::of(8, 1));
        for uid in [one, other, Uid::default()] {
            assert_eq!(Uid::try_from(uid.to_string()), Ok(uid));
        }
        let text = one.to_string();
        assert_eq!((text.len(), text.as_bytes()[14], text.matches('-').count()), (36, b'8', 4), "{text}");
        let changed =
            [text.to_uppercase(), text.replace('-', ""), format!("{text}0"), "00000000-0000-0000-0000-000000000000".to_owned(), "x".to_owned()];
        for wrong in changed {
            assert_eq!(Uid::try_from(wrong.clone()), Err(InvalidUid(wrong)));
        }
    }
}
