//! What the answers of an S3 store say: pages of listings, errors, checksums, versions. Pure.

use std::fmt;

use berth_types::ByteSize;
use http::HeaderMap;
use serde::Deserialize;

use crate::remote::{Composite, OfParts};
use crate::wire::{bare, base64, one_line, quoted, text};
use crate::{Object, Page, Sums, Version};

pub(crate) fn version(headers: &HeaderMap) -> Option<Version> {
    quoted(text(headers, "etag")?)
}

/// The MD5 digest that an ETag states; `None` for objects uploaded in parts and for other forms.
pub(crate) fn md5_of_etag(etag: &str) -> Option<[u8; 16]> {
    md5(bare(etag))
}

fn md5(hex: &str) -> Option<[u8; 16]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if hex.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// With keys of a key service or of the client the ETag is no MD5 of the bytes, whatever it looks like.
fn md5_etag_possible(headers: &HeaderMap) -> bool {
    let scheme = text(headers, "x-amz-server-side-encryption").unwrap_or("AES256");
    scheme == "AES256" && !headers.contains_key("x-amz-server-side-encryption-customer-algorithm")
}

/// What an answer's headers state about the object. A checksum header of an answer that is only part of the object is not
/// taken: stores differ in what it is of.
pub(crate) fn sums(headers: &HeaderMap, whole: bool) -> Sums {
    // The checksum of an object uploaded in parts may be one of the parts' checksums; then it ends in `-<parts>`, which is
    // no base64.
    fn bytes<const N: usize>(headers: &HeaderMap, name: &str) -> Option<[u8; N]> {
        base64(text(headers, name)?)
    }
    let etag = text(headers, "etag").and_then(md5_of_etag).filter(|_| md5_etag_possible(headers));
    if !whole || text(headers, "x-amz-checksum-type").is_some_and(|kind| kind != "FULL_OBJECT") {
        return Sums { md5: etag, ..Sums::default() };
    }
    Sums {
        crc32c: bytes(headers, "x-amz-checksum-crc32c").map(u32::from_be_bytes),
        crc32: bytes(headers, "x-amz-checksum-crc32").map(u32::from_be_bytes),
        crc64nvme: bytes(headers, "x-amz-checksum-crc64nvme").map(u64::from_be_bytes),
        sha256: bytes(headers, "x-amz-checksum-sha256"),
        md5: etag,
        composite: None,
    }
}

/// The checksum of the parts' checksums that a HEAD of the whole object states, and of how many parts. The cheapest to
/// compute where there are several.
pub(crate) fn of_parts(headers: &HeaderMap) -> Option<(OfParts, u32)> {
    fn header<const N: usize>(headers: &HeaderMap, name: &str) -> Option<([u8; N], u32)> {
        let (value, parts) = text(headers, name)?.rsplit_once('-')?;
        Some((base64(value)?, parts.parse().ok()?))
    }
    let etag = || {
        let (digest, parts) = bare(text(headers, "etag")?).rsplit_once('-')?;
        // One part has no need of a digest of digests: some stores write anything before a `-1`.
        Some((OfParts::Md5(md5(digest)?), parts.parse().ok()?)).filter(|&(_, parts)| parts > 1 && md5_etag_possible(headers))
    };
    let crc32c = header(headers, "x-amz-checksum-crc32c").map(|(sum, parts)| (OfParts::Crc32c(u32::from_be_bytes(sum)), parts));
    let crc32 = || header(headers, "x-amz-checksum-crc32").map(|(sum, parts)| (OfParts::Crc32(u32::from_be_bytes(sum)), parts));
    let sha256 = || header(headers, "x-amz-checksum-sha256").map(|(digest, parts)| (OfParts::Sha256(digest), parts));
    crc32c.or_else(crc32).or_else(sha256).or_else(etag).filter(|&(_, parts)| parts > 0)
}

/// The lengths that HEADs of the first and of the last part state, held against the object's: parts of unequal length
/// cannot be told apart from here, and their checksum would be computed wrongly.
pub(crate) fn composite(value: OfParts, parts: u32, size: ByteSize, first: &HeaderMap, last: &HeaderMap) -> Option<Composite> {
    let length = |headers: &HeaderMap| {
        let of: u32 = text(headers, "x-amz-mp-parts-count")?.parse().ok()?;
        if of == parts { text(headers, "content-length")?.parse::<u64>().ok() } else { None }
    };
    let (part, rest) = (length(first)?, length(last)?);
    let sum = part.checked_mul(u64::from(parts) - 1)?.checked_add(rest)?;
    (part > 0 && (1..=part).contains(&rest) && sum == size.0).then_some(Composite { value, part: ByteSize(part), parts })
}

/// What an S3 store says in an error's body.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ErrorBody {
    pub(crate) code: String,
    pub(crate) message: String,
    /// The bucket's region, where the one that was asked for is wrong.
    pub(crate) region: String,
    /// The bucket's address, where it is elsewhere.
    pub(crate) endpoint: String,
}

impl ErrorBody {
    /// An answer that is no S3 error gives an empty one.
    pub(crate) fn parse(body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        quick_xml::de::from_str(&text).unwrap_or_default()
    }

    /// True where the credential was good once.
    pub(crate) fn ended(&self) -> bool {
        matches!(self.code.as_str(), "ExpiredToken" | "TokenRefreshRequired" | "InvalidToken" | "ExpiredTokenException")
    }
}

/// Code and message as one short line.
impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.is_empty(), self.message.is_empty()) {
            (true, _) => Ok(()),
            (false, true) => f.write_str(&one_line(&self.code)),
            (false, false) => f.write_str(&one_line(&format!("{}: {}", self.code, self.message))),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListBucketResult {
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_continuation_token: Option<String>,
    #[serde(default)]
    contents: Vec<Contents>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    size: u64,
    #[serde(rename = "ETag", default)]
    etag: Option<String>,
}

/// One page of a listing.
pub(crate) fn page(body: &[u8]) -> Result<Page, String> {
    let text = std::str::from_utf8(body).map_err(|_| "not UTF-8".to_owned())?;
    if !text.contains("<ListBucketResult") {
        return Err("no ListBucketResult".to_owned());
    }
    let result: ListBucketResult = quick_xml::de::from_str(text).map_err(|fault| one_line(&fault.to_string()))?;
    let next = result.next_continuation_token.filter(|token| !token.is_empty());
    if result.is_truncated && next.is_none() {
        return Err("it is cut off and does not say where it goes on".to_owned());
    }
    let objects = result.contents.into_iter().map(|object| Object {
        key: object.key,
        size: ByteSize(object.size),
        // An ETag in a listing does not say how the object is encrypted: whether it is a digest the answer to a GET tells.
        sums: Sums::default(),
        version: object.etag.as_deref().and_then(quoted),
    });
    Ok(Page { objects: objects.collect(), next: next.filter(|_| result.is_truncated) })
}
