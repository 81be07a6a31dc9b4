//! The seam between whoever fetches and the stores: one trait, a value per question and per answer.
//!
//! A [`Remote`] speaks with one bucket (or container, or web address) with one credential. It asks once and says what
//! came of it: retries, parallelism, checks of content and files on disk are the business of whoever asks.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use berth_types::ByteSize;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::Fault;

/// What a store calls a version of an object's bytes, in its own form: an ETag, a generation, a date. Two equal versions
/// of one key are the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub String);

/// Checksums of a whole object, as its store states them. None of them: the store says nothing about the content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// CRC-32C (Castagnoli).
    pub crc32c: Option<u32>,
    /// CRC-32 (as in gzip).
    pub crc32: Option<u32>,
    /// CRC-64/NVME.
    pub crc64nvme: Option<u64>,
    /// SHA-256.
    pub sha256: Option<[u8; 32]>,
    /// MD5.
    pub md5: Option<[u8; 16]>,
    /// Of an object uploaded in parts: a checksum of the parts' checksums.
    pub composite: Option<Composite>,
}

/// A checksum of the checksums of an object's parts, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Composite {
    /// What it is of, and its value.
    pub value: OfParts,
    /// The length of each part but the last, which has what is left. Never zero.
    pub part: ByteSize,
    /// How many there are. Never zero.
    pub parts: u32,
}

/// A checksum over the parts' checksums of the same kind, each as its bytes (big-endian), one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfParts {
    /// CRC-32 (as in gzip).
    Crc32(u32),
    /// CRC-32C (Castagnoli).
    Crc32c(u32),
    /// SHA-256.
    Sha256([u8; 32]),
    /// MD5.
    Md5([u8; 16]),
}

impl Sums {
    /// True when the store states nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Sums::default()
    }

    /// These, and `other`'s where these say nothing.
    #[must_use]
    pub fn or(self, other: Sums) -> Sums {
        Sums {
            crc32c: self.crc32c.or(other.crc32c),
            crc32: self.crc32.or(other.crc32),
            crc64nvme: self.crc64nvme.or(other.crc64nvme),
            sha256: self.sha256.or(other.sha256),
            md5: self.md5.or(other.md5),
            composite: self.composite.or(other.composite),
        }
    }
}

/// One version of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its key, as the store has it.
    pub key: String,
    /// Its length.
    pub size: ByteSize,
    /// `None` where the store tells versions not apart: then its ranges cannot be fetched apart from each other.
    pub version: Option<Version>,
    /// What the store states about the content so far; [`Remote::sums`] may know more.
    pub sums: Sums,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// In any order. Marks of folders (keys that end in a slash) included.
    pub objects: Vec<Object>,
    /// Where the next page begins; `None` after the last.
    pub next: Option<String>,
}

/// A GET.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The object's key.
    pub key: &'a str,
    /// The bytes that are wanted; `None` is all. Never empty. The end may lie beyond the object's.
    pub range: Option<&'a Range<u64>>,
    /// The version that must answer; `None` takes what there is.
    pub version: Option<&'a Version>,
}

/// An answered GET whose body is still to come.
pub struct Answer {
    /// What answered. Its size is that of the whole object.
    pub object: Object,
    /// Which bytes come: what was asked for, cut at the object's end. A store that knows no ranges answers with all
    /// bytes, whatever was asked for.
    pub range: Range<u64>,
    /// The bytes as they arrive. An error is a connection that broke, in words without secrets; after it nothing comes.
    /// Waiting for the next one has no limit of its own.
    pub frames: BoxStream<'static, Result<Bytes, String>>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").field("object", &self.object).field("range", &self.range).finish_non_exhaustive()
    }
}

/// How long one request may keep its caller waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the first byte of an answer, and for the next byte of a page or an error text.
    pub silence: Duration,
}

/// One bucket, spoken with by one credential. Keeps its connections; share it.
#[async_trait]
pub trait Remote: Send + Sync + fmt::Debug + 'static {
    /// How messages name it, without secrets: `bucket b at https://s3.example:9000`.
    fn place(&self) -> &str;

    /// Whether [`list`](Remote::list) can be asked. Where it cannot (plain web servers), a path is one object.
    fn lists(&self) -> bool {
        true
    }

    /// One page of the objects whose keys start with `prefix`; `after` is the last page's `next`.
    ///
    /// # Errors
    /// [`Fault`] says what it means for the caller.
    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<Page, Fault>;

    /// Asks for the bytes of an object. A `version` that is there no more is [`FaultKind::Changed`](crate::FaultKind), as
    /// is a versioned object that is gone; without a version an object that is not there is `Missing`. An empty object
    /// asked for with a range is answered with an empty range.
    ///
    /// # Errors
    /// [`Fault`] says what it means for the caller.
    async fn get(&self, ask: Ask<'_>) -> Result<Answer, Fault>;

    /// Checksums of the whole object that neither listing nor ranged answers carry. Costs a request where there are any
    /// to be had.
    ///
    /// # Errors
    /// [`Fault`]; whoever asks may go on without.
    async fn sums(&self, object: &Object) -> Result<Sums, Fault> {
        Ok(object.sums)
    }
}
