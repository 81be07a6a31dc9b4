//! What the answers of Google Cloud Storage say: pages of listings, errors, checksums. Pure.

use std::fmt;

use berth_types::ByteSize;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use crate::wire::{base64, one_line};
use crate::{Object, Page, Sums, Version};

/// The checksums in `x-goog-hash`, which may come once or several times. One that is stated in two ways is not taken.
pub(crate) fn hashes(headers: &HeaderMap) -> Sums {
    let stated = headers.get_all("x-goog-hash").iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let (mut crc32c, mut md5) = (Vec::new(), Vec::new());
    for (name, value) in stated.filter_map(|hash| hash.trim().split_once('=')) {
        match name {
            "crc32c" => crc32c.push(value),
            "md5" => md5.push(value),
            _ => {}
        }
    }
    sums(only(&crc32c), only(&md5))
}

fn only<'a>(values: &[&'a str]) -> Option<&'a str> {
    let first = values.first()?;
    values.iter().all(|value| value == first).then_some(*first)
}

fn sums(crc32c: Option<&str>, md5: Option<&str>) -> Sums {
    Sums { crc32c: crc32c.and_then(base64).map(u32::from_be_bytes), md5: md5.and_then(base64), ..Sums::default() }
}

/// What the store says in an error's body: JSON, or one line of text where bytes were asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    /// A word for programs.
    pub(super) reason: String,
    /// Words for people.
    pub(super) message: String,
    /// The words may be anybody's on the way: they are not repeated.
    stranger: bool,
}

/// Whether an answer is by what speaks the API, as far as that can be told.
pub(super) fn is_googles(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("x-goog-") || name == "x-guploader-uploadid")
}

impl ErrorBody {
    /// An answer that is none of the store's gives an empty one. Plain text does where nothing else tells whose it is.
    pub(super) fn parse(body: &[u8], known: bool) -> Self {
        let text = String::from_utf8_lossy(body);
        let Ok(Value::Object(body)) = serde_json::from_str(&text) else {
            let line = text.trim();
            // A page of somebody else's on the way would say nothing here.
            let message = if line.starts_with('<') || line.lines().count() > 1 { String::new() } else { line.to_owned() };
            return ErrorBody { reason: String::new(), message, stranger: !known };
        };
        let error = body.get("error").unwrap_or(&Value::Null);
        let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let first = error.get("errors").and_then(|errors| errors.get(0)).unwrap_or(&Value::Null);
        ErrorBody { reason: text(first, "reason"), message: text(error, "message"), stranger: false }
    }

    /// The store tells a bucket that is not there from an object that is not there in its words only.
    pub(super) fn is_about_the_bucket(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        message.contains("bucket does not exist") && !message.starts_with("no such object")
    }

    pub(super) fn wants_a_payer(&self) -> bool {
        self.reason == "userProjectMissing" || self.message.to_ascii_lowercase().contains("requester pays")
    }
}

/// The message as one short line.
impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stranger {
            return Ok(());
        }
        let text = if self.message.is_empty() { &self.reason } else { &self.message };
        f.write_str(one_line(text).trim_end_matches('.'))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listing {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    next_page_token: Option<String>,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    name: String,
    /// Numbers of 64 bits are written as text.
    size: String,
    #[serde(default)]
    generation: Option<String>,
    #[serde(default)]
    crc32c: Option<String>,
    #[serde(default)]
    md5_hash: Option<String>,
}

impl Item {
    fn object(self) -> Result<Object, String> {
        let size = self.size.parse().map_err(|_| format!("object {:?} has the size {:?}", self.name, one_line(&self.size)))?;
        let sums = sums(self.crc32c.as_deref(), self.md5_hash.as_deref());
        Ok(Object { key: self.name, size: ByteSize(size), version: self.generation.map(Version), sums })
    }
}

pub(super) fn page(body: &[u8]) -> Result<Page, String> {
    // The parser's own text may quote a whole page of somebody else's.
    let listing: Listing = serde_json::from_slice(body).map_err(|fault| format!("line {}, column {}", fault.line(), fault.column()))?;
    if listing.kind != "storage#objects" {
        return Err(format!("it is of kind {:?}", one_line(&listing.kind)));
    }
    let objects = listing.items.into_iter().map(Item::object).collect::<Result<_, _>>()?;
    Ok(Page { objects, next: listing.next_page_token.filter(|token| !token.is_empty()) })
}

/// The checksums in what is said about one object.
pub(super) fn metadata(body: &[u8]) -> Result<Sums, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        #[serde(default)]
        crc32c: Option<String>,
        #[serde(default)]
        md5_hash: Option<String>,
    }
    let metadata: Metadata = serde_json::from_slice(body).map_err(|fault| format!("line {}, column {}", fault.line(), fault.column()))?;
    Ok(sums(metadata.crc32c.as_deref(), metadata.md5_hash.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_as_it_is_written() {
        let body = r#"{"kind":"storage#objects","nextPageToken":"CgZ0Lw==","items":[
            {"name":"m/a b+%20.bin","size":"11","generation":"1795359540106875","crc32c":"yZRlqg==","md5Hash":"XrY7u+Ae7tCTyyK7j1rNww==","acl":[{}]},
            {"name":"m/composed","size":"5000000000","generation":"2","crc32c":"AAAAAA=="},
            {"name":"m/","size":"0","md5Hash":"odd"}]}"#;
        let page = super::page(body.as_bytes()).expect("a listing");
        let objects: Vec<_> = page
            .objects
            .iter()
            .map(|object| (object.key.as_str(), object.size.0, object.version.as_ref().map(|version| version.0.as_str())))
            .collect();
        assert_eq!(objects, [("m/a b+%20.bin", 11, Some("1795359540106875")), ("m/composed", 5_000_000_000, Some("2")), ("m/", 0, None)]);
        let sums: Vec<_> = page.objects.iter().map(|object| (object.sums.crc32c, object.sums.md5.is_some())).collect();
        assert_eq!(sums, [(Some(0xc994_65aa), true), (Some(0), false), (None, false)]);
        assert_eq!(page.next.as_deref(), Some("CgZ0Lw=="));
        assert_eq!(super::page(br#"{"kind":"storage#objects","nextPageToken":""}"#), Ok(Page::default()));
        for other in
            [&b"<html></html>"[..], b"{}", b"", b"[]", br#"{"kind":"storage#bucket"}"#, br#"{"kind":"storage#objects","items":[{"name":"a"}]}"#]
        {
            assert!(super::page(other).is_err(), "{}", String::from_utf8_lossy(other));
        }
        let fault = super::page(br#"{"kind":"storage#objects","items":[{"name":"a","size":"-1"}]}"#).expect_err("no size");
        assert_eq!(fault, "object \"a\" has the size \"-1\"");
    }

    #[test]
    fn a_checksum_that_is_stated_in_two_ways_is_not_taken() {
        for (values, crc32c, md5) in [
            (&["crc32c=yZRlqg==,md5=XrY7u+Ae7tCTyyK7j1rNww=="][..], true, true),
            (&["crc32c=yZRlqg==", "md5=XrY7u+Ae7tCTyyK7j1rNww=="], true, true),
            (&["crc32c=yZRlqg==", "crc32c=yZRlqg=="], true, false),
            (&["crc32c=yZRlqg==", "crc32c=AAAAAA=="], false, false),
            (&["md5=yZRlqg==, crc32c=no base64"], false, false),
            (&["sha1=yZRlqg=="], false, false),
            (&[], false, false),
        ] {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-goog-hash", value.parse().expect("a value"));
            }
            let sums = hashes(&headers);
            assert_eq!((sums.crc32c.is_some(), sums.md5.is_some()), (crc32c, md5), "{values:?}");
        }
    }

    #[test]
    fn an_error_is_read_from_json_and_from_one_line() {
        let full =
            r#"{"error":{"code":403,"message":"x does not have access.\nY","errors":[{"domain":"global","reason":"forbidden","message":"z"}]}}"#;
        for (body, text, reason) in [
            (full, "x does not have access. Y", "forbidden"),
            (r#"{"error":{"errors":[{"reason":"notFound"}]}}"#, "notFound", "notFound"),
            (r#"{"error":"invalid_request"}"#, "", ""),
            ("No such object: b/m\n", "No such object: b/m", ""),
            ("<!DOCTYPE html><html><title>Error 404</title></html>", "", ""),
            ("a\nb", "", ""),
            ("", "", ""),
        ] {
            let error = ErrorBody::parse(body.as_bytes(), true);
            assert_eq!((error.to_string().as_str(), error.reason.as_str()), (text, reason), "{body}");
            let text = if body.starts_with('{') { text } else { "" };
            assert_eq!(ErrorBody::parse(body.as_bytes(), false).to_string(), text, "a stranger's line is not repeated");
        }
        for (message, bucket) in
            [("The specified bucket does not exist.", true), ("No such object: b/The specified bucket does not exist.", false), ("Not Found", false)]
        {
            assert_eq!(ErrorBody::parse(message.as_bytes(), false).is_about_the_bucket(), bucket, "{message}");
        }
    }
}
