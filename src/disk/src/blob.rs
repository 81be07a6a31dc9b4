//! One object version's bytes, and what is known of them.

use std::fmt;
use std::ops::Range;

use berth_types::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Names the bytes of one version of one object. Equal ids are equal bytes, which whoever makes the ids sees to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub [u8; 16]);

impl BlobId {
    /// Reads what `Display` writes, and nothing else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 16] = unhex(text)?.try_into().ok()?;
        Some(BlobId(bytes))
    }

    /// The id of bytes that belong to one owner alone: the same each time for the same `owner` and `attempt`.
    pub(crate) fn private(self, owner: &str, attempt: u64) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("berth disk tier, a blob with one owner");
        hasher.update(&self.0).update(&attempt.to_le_bytes()).update(owner.as_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        BlobId(id)
    }
}

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for BlobId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BlobId::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not the id of a blob")))
    }
}

/// What a writer wants to know again when it goes on with a range: the state of a hash, for one. Not interpreted here; at
/// most [`Note::LONGEST`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note(pub Box<[u8]>);

impl Note {
    /// Bytes that a note may have.
    pub const LONGEST: usize = 64;
}

/// The word of [`Record::checked`] for bytes that nothing but their number was held against.
pub const UNVERIFIED: &str = "unverified";

/// What is known of a whole blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// How many bytes it has.
    pub bytes: ByteSize,
    /// Their [`crate::digest()`]; `None` where nobody computed it. Then a file that may have been changed is fetched again.
    pub digest: Option<[u8; 32]>,
    /// What they were held against, in a word that users read, such as `crc32c`; [`UNVERIFIED`] when against nothing.
    pub checked: String,
}

/// How much of a blob is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing.
    Absent,
    /// A file of the full length, of which some ranges are done.
    Partial(Partial),
    /// All of it.
    Whole(Whole),
}

impl State {
    /// True when a later download has use for it.
    pub(crate) fn is_of_use(&self) -> bool {
        match self {
            State::Absent => false,
            State::Partial(partial) => !partial.done.is_empty(),
            State::Whole(_) => true,
        }
    }

    /// Bytes that need not be fetched again, of a blob of `size`.
    pub(crate) fn here(&self, size: u64) -> u64 {
        match self {
            State::Absent => 0,
            State::Partial(partial) => partial.done.iter().map(|(range, _)| range.end - range.start).sum(),
            State::Whole(_) => size,
        }
    }
}

/// A blob that is being written, or was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Partial {
    /// Tells this file from an earlier one of the same id.
    pub(crate) turn: u64,
    /// In order of offset, not empty, not overlapping.
    pub(crate) done: Vec<(Range<u64>, Note)>,
}

impl Partial {
    /// Adds a range of a blob of `size` bytes, in the place of those that it overlaps. Returns how many bytes more are done;
    /// `None` for a range that is empty or outside of the blob, which changes nothing.
    pub(crate) fn add(&mut self, range: Range<u64>, note: Note, size: u64) -> Option<u64> {
        if range.start >= range.end || range.end > size {
            return None;
        }
        let first = self.done.partition_point(|(before, _)| before.end <= range.start);
        let last = self.done.partition_point(|(before, _)| before.start < range.end);
        let again: u64 = self.done[first..last].iter().map(|(before, _)| before.end.min(range.end) - before.start.max(range.start)).sum();
        let more = range.end - range.start - again;
        self.done.splice(first..last, [(range, note)]);
        Some(more)
    }
}

/// A blob with all its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) digest: Option<[u8; 32]>,
    pub(crate) checked: Box<str>,
    /// When its file was last written, in nanoseconds since the epoch: another time means that another hand wrote it.
    pub(crate) written: i64,
    /// Grows with each blob that becomes whole.
    pub(crate) turn: u64,
    pub(crate) trust: Trust,
}

impl Whole {
    pub(crate) fn record(&self, size: u64) -> Record {
        Record { bytes: ByteSize(size), digest: self.digest, checked: self.checked.to_string() }
    }
}

/// Whether the file of a whole blob is what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// On stable storage: a power cut changes nothing.
    Synced,
    /// Written since the machine started: the end of this process changes nothing.
    Fresh,
    /// The machine may have lost bytes of it, or another hand wrote it: to be hashed before it is used.
    Doubtful,
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Reads what [`hex`] writes, and nothing else.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_nothing_else_is_one() {
        let id = BlobId(*b"\x00\x01\x7f\x80\xff\xfe0123456789");
        assert_eq!(id.to_string(), "00017f80fffe30313233343536373839");
        assert_eq!(BlobId::parse(&id.to_string()), Some(id));
        for other in ["", "00", "00017F80fffe30313233343536373839", "0017f80fffe30313233343536373839", "00017f80fffe3031323334353637383é"] {
            assert_eq!(BlobId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn private_ids_differ_by_owner_and_attempt_and_are_the_same_each_time() {
        let (a, b) = (BlobId([1; 16]), BlobId([2; 16]));
        let all = [a, b, a.private("m", 0), a.private("m", 1), a.private("n", 0), b.private("m", 0)];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), all.len());
        assert_eq!(a.private("m", 0), a.private("m", 0));
    }

    #[test]
    fn ranges_are_kept_in_order_and_the_last_word_on_a_byte_counts() {
        let mut partial = Partial::default();
        let said =
            [(4..6, Some(2)), (0..2, Some(2)), (2..4, Some(2)), (5..7, Some(1)), (6..6, None), (8..11, None), (9..10, Some(1)), (1..3, Some(0))];
        for (range, more) in said {
            assert_eq!(partial.add(range.clone(), Note::default(), 10), more, "{range:?}");
        }
        let ranges: Vec<_> = partial.done.iter().map(|(range, _)| range.clone()).collect();
        assert_eq!(ranges, [1..3, 5..7, 9..10]);
        assert_eq!(partial.add(0..10, Note::default(), 10), Some(5));
        assert_eq!(State::Partial(partial).here(10), 10);
    }
}
