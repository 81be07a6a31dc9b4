//! What the headers of a web server's answer state about the file: its version and its checksums. Pure.

use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::gcs::hashes;
use crate::wire::{base64, text};
use crate::{Sums, Version};

/// What tells this version of a file from others: a strong ETag, else its date and length. A date counts only where the
/// file was not written in the very second of the answer: another version could still come with the same date.
pub(super) fn version(headers: &HeaderMap, length: u64) -> Option<Version> {
    if let Some(etag) = text(headers, "etag").map(str::trim).filter(|etag| is_strong(etag)) {
        return Some(Version(etag.to_owned()));
    }
    let written = text(headers, "last-modified").map(str::trim).filter(|date| !date.is_empty())?;
    let answered = text(headers, "date").map(str::trim)?;
    (written != answered).then(|| Version(format!("{written}/{length}")))
}

/// A weak one may be of several forms of a file, whose bytes differ.
fn is_strong(etag: &str) -> bool {
    etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"')
}

/// The header with which a server is asked for this version and no other.
pub(super) fn condition(version: &Version) -> Option<(HeaderName, &str)> {
    if is_strong(&version.0) {
        return Some((header::IF_MATCH, &version.0));
    }
    let (written, _) = version.0.rsplit_once('/')?;
    Some((header::IF_UNMODIFIED_SINCE, written))
}

/// The checksums that an answer states of the whole file. Where only a part comes, most of them may be of that part.
pub(super) fn sums(status: StatusCode, headers: &HeaderMap) -> Sums {
    let whole = status == StatusCode::OK;
    // These are defined to be of the whole file, whatever comes of it.
    let stated = digests(headers, "repr-digest").or(google(headers));
    if !whole {
        return stated;
    }
    let content = Sums { md5: one(headers, "content-md5").and_then(base64), ..Sums::default() };
    stated.or(digests(headers, "content-digest")).or(digests(headers, "digest")).or(content).or(amazon(headers))
}

/// A header that comes once.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.to_str().ok()?;
    values.next().is_none().then(|| first.trim())
}

/// `sha-256=:BASE64:`, or in the older form `SHA-256=BASE64`, among others. What comes twice is not taken.
fn digests(headers: &HeaderMap, name: &str) -> Sums {
    let of = |wanted: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        let pairs = values.filter_map(|pair| pair.trim().split_once('='));
        let mut values = pairs.filter(|(algorithm, _)| algorithm.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim_matches(':'));
        let first = values.next()?;
        values.next().is_none().then_some(first)
    };
    Sums { sha256: of("sha-256").and_then(base64), md5: of("md5").and_then(base64), ..Sums::default() }
}

/// Google's are of what is stored, which is packed where the answer may not be.
fn google(headers: &HeaderMap) -> Sums {
    let stored = text(headers, "x-goog-stored-content-encoding").unwrap_or("identity");
    let came = text(headers, "content-encoding").unwrap_or("identity");
    if stored == came { hashes(headers) } else { Sums::default() }
}

/// Amazon's are of the parts of an object where they say so, or end in the number of parts, which is no base64.
fn amazon(headers: &HeaderMap) -> Sums {
    fn bytes<const N: usize>(headers: &HeaderMap, name: &str) -> Option<[u8; N]> {
        base64(one(headers, name)?)
    }
    if text(headers, "x-amz-checksum-type").is_some_and(|kind| kind != "FULL_OBJECT") {
        return Sums::default();
    }
    Sums {
        crc32c: bytes(headers, "x-amz-checksum-crc32c").map(u32::from_be_bytes),
        crc64nvme: bytes(headers, "x-amz-checksum-crc64nvme").map(u64::from_be_bytes),
        sha256: bytes(headers, "x-amz-checksum-sha256"),
        ..Sums::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|&(name, value)| (HeaderName::from_static(name), value.parse().expect("a value"))).collect()
    }

    const WRITTEN: (&str, &str) = ("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT");
    const LATER: (&str, &str) = ("date", "Wed, 21 Oct 2015 07:28:01 GMT");

    #[test]
    fn a_version_is_a_strong_etag_or_a_date_in_the_past() {
        let dated = Some("Wed, 21 Oct 2015 07:28:00 GMT/7");
        for (pairs, expected) in [
            (&[("etag", "\"a\""), WRITTEN, LATER][..], Some("\"a\"")),
            (&[("etag", " \"a b\" ")], Some("\"a b\"")),
            (&[("etag", "W/\"a\""), WRITTEN, LATER], dated),
            (&[("etag", "\"\""), WRITTEN, LATER], dated),
            (&[("etag", "bare"), WRITTEN, LATER], dated),
            (&[WRITTEN, LATER], dated),
            (&[WRITTEN, ("date", WRITTEN.1)], None),
            (&[WRITTEN], None),
            (&[("last-modified", ""), LATER], None),
            (&[("etag", "W/\"a\"")], None),
            (&[], None),
        ] {
            let version = version(&headers(pairs), 7);
            assert_eq!(version.as_ref().map(|version| version.0.as_str()), expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_version_is_asked_for_by_the_condition_that_fits_it() {
        let of = |version: &str| condition(&Version(version.to_owned())).map(|(name, value)| (name, value.to_owned()));
        assert_eq!(of("\"a/7\""), Some((header::IF_MATCH, "\"a/7\"".to_owned())));
        assert_eq!(of("Wed, 21 Oct 2015 07:28:00 GMT/7"), Some((header::IF_UNMODIFIED_SINCE, WRITTEN.1.to_owned())));
        assert_eq!(of("odd"), None);
    }

    #[test]
    fn a_checksum_is_taken_where_it_can_only_be_the_whole_files() {
        const MD5: &str = "XrY7u+Ae7tCTyyK7j1rNww==";
        const SHA: &str = "uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=";
        for (pairs, whole, part) in [
            (&[("content-md5", MD5)][..], "m", ""),
            (&[("content-md5", MD5), ("content-md5", MD5)], "", ""),
            (&[("content-md5", "no base64")], "", ""),
            (&[("digest", "SHA-256=uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=,unixsum=1")], "s", ""),
            (&[("digest", "md5=XrY7u+Ae7tCTyyK7j1rNww==")], "m", ""),
            (&[("repr-digest", "sha-256=:uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=:, sha-512=:AAAA:")], "s", "s"),
            (&[("content-digest", "sha-256=:uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=:")], "s", ""),
            (&[("repr-digest", "sha-256=:AAAA:")], "", ""),
            (&[("digest", "SHA-256=AAAA,SHA-256=BBBB")], "", ""),
            (&[("x-goog-hash", "crc32c=yZRlqg=="), ("x-goog-hash", "md5=XrY7u+Ae7tCTyyK7j1rNww==")], "cm", "cm"),
            (&[("x-goog-hash", "crc32c=yZRlqg=="), ("x-goog-stored-content-encoding", "gzip")], "", ""),
            (&[("x-goog-hash", "crc32c=yZRlqg=="), ("x-goog-stored-content-encoding", "gzip"), ("content-encoding", "gzip")], "c", "c"),
            (&[("x-amz-checksum-crc32c", "yZRlqg==")], "c", ""),
            (&[("x-amz-checksum-crc32c", "yZRlqg==-3")], "", ""),
            (&[("x-amz-checksum-sha256", SHA), ("x-amz-checksum-type", "COMPOSITE")], "", ""),
            (&[("x-amz-checksum-sha256", SHA), ("x-amz-checksum-type", "FULL_OBJECT")], "s", ""),
            (&[("etag", "\"5eb63bbbe01eeed093cb22bb8f5acdc3\"")], "", ""),
        ] {
            for (status, expected) in [(StatusCode::OK, whole), (StatusCode::PARTIAL_CONTENT, part)] {
                let sums = sums(status, &headers(pairs));
                let letters = [(sums.crc32c.is_some(), "c"), (sums.md5.is_some(), "m"), (sums.sha256.is_some(), "s")];
                let got: String = letters.into_iter().filter_map(|(there, letter)| there.then_some(letter)).collect();
                assert_eq!(got, expected, "{status} {pairs:?}");
            }
        }
    }
}
