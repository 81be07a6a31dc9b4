//! The keys of an entry that all types of storage share, and how any key is read.

use std::fmt;

use reqwest::Url;
use serde_json::{Map, Value};

use crate::Verify;
use crate::wire::is_metadata;

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Names settings without showing what is secret in them. Lengths keep neighbouring fields apart.
pub(crate) fn fingerprint(fields: &[&str]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for field in fields {
        hasher.update(&(field.len() as u64).to_le_bytes());
        hasher.update(field.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The text of a key, which may be empty; `None` where it is absent or no text.
pub(crate) fn text<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Value::as_str)
}

/// The text of a key; `None` also where it is empty.
pub(crate) fn filled<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    text(config, key).filter(|text| !text.is_empty())
}

/// A value as messages show it that can be one of a few words: whoever wrote something else there may have written a secret.
pub(crate) fn word(written: &str) -> String {
    let plain = written.len() <= 32 && written.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if plain { format!("{written:?}") } else { "something else".to_owned() }
}

/// What `verify` says.
pub(crate) fn verify(config: &Map<String, Value>, faults: &mut Vec<String>) -> Verify {
    match text(config, "verify") {
        None | Some("" | "content" | "etag") => Verify::Content,
        Some("length") => Verify::Length,
        Some(other) => {
            faults.push(format!("verify is {}, it can be content or length", word(other)));
            Verify::Content
        }
    }
}

/// The address that `key` gives a store: http or https, without user, query and fragment.
pub(crate) fn endpoint(key: &str, written: &str) -> Result<Url, String> {
    // The text is never repeated: without a scheme in front even a password is taken for something else.
    let url = Url::parse(written).map_err(|fault| format!("{key} is not a URL: {fault}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{key} holds a user or password: credentials have keys of their own"));
    }
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(format!("{key} is not an http or https URL"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{key} has a query or fragment"));
    }
    if is_metadata(&url) {
        return Err(format!("{key} is the address of a metadata service, which is no store"));
    }
    Ok(url)
}
