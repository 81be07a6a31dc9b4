//! `storageUri`: from one text to storage parameters and a path.
//!
//! What upstream users rely on is a table (scheme, parameters, path), written out in [`locate`]. Faults never repeat the
//! text, since a URI may hold a password.

use std::collections::BTreeMap;

/// What a `storageUri` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) path: String,
}

/// Reads a `storageUri`.
///
/// | URI | parameters | path |
/// |---|---|---|
/// | `s3://B/p` | type s3, bucket B | p |
/// | `gs://B/p` | type gcs, bucket B | p |
/// | `pvc://N/p` | type pvc, name N | p |
/// | `http(s)://ACC.blob.core.windows.net/C/p` | type azure, account_name ACC, container C | p |
/// | other `http(s)://H/p?q#f` | type http, url = the URI without its path | p |
pub(crate) fn locate(text: &str) -> Result<Located, String> {
    if text.is_empty() {
        return Err("is empty: write s3://BUCKET/PATH, gs://, pvc:// or https://".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character".to_owned());
    }
    let (scheme, rest) = text.split_once("://").ok_or("has no scheme: write s3://BUCKET/PATH, gs://, pvc:// or https://")?;
    let scheme = scheme.to_ascii_lowercase();
    let (rest, fragment) = split_at(rest, '#');
    let (rest, query) = split_at(rest, '?');
    let (authority, raw_path) = split_at(rest, '/');
    let path = percent_decoded(raw_path.strip_prefix('/').unwrap_or(raw_path))?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let of = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let named = |what: &str| if host.is_empty() { Err(format!("names no {what} after {scheme}://")) } else { percent_decoded(host) };
    match scheme.as_str() {
        "s3" => Ok(Located { parameters: of(&[("type", "s3"), ("bucket", &named("bucket")?)]), path }),
        "gs" => Ok(Located { parameters: of(&[("type", "gcs"), ("bucket", &named("bucket")?)]), path }),
        "pvc" => Ok(Located { parameters: of(&[("type", "pvc"), ("name", &named("volume")?)]), path }),
        "http" | "https" if host.ends_with(".blob.core.windows.net") => {
            let account = host.split('.').next().unwrap_or_default();
            let (container, path) = path.split_once('/').unwrap_or((&path, ""));
            if container.is_empty() {
                return Err("names no container after the account's host".to_owned());
            }
            let parameters = of(&[("type", "azure"), ("account_name", account), ("container", container)]);
            Ok(Located { parameters, path: path.to_owned() })
        }
        "http" | "https" => {
            named("host")?;
            Ok(Located { parameters: of(&[("type", "http"), ("url", &format!("{scheme}://{authority}{query}{fragment}"))]), path })
        }
        other => Err(format!("scheme {} is not supported: write s3, gs, pvc, http or https", other.chars().take(40).collect::<String>())),
    }
}

/// What stands before the first `mark`, and the rest with the mark.
fn split_at(text: &str, mark: char) -> (&str, &str) {
    text.split_at(text.find(mark).unwrap_or(text.len()))
}

fn percent_decoded(text: &str) -> Result<String, String> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let fault = "holds a % that is not followed by two hexadecimal digits: write %25 for a percent sign";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        bytes.push(u8::from_str_radix(digits.ok_or(fault)?, 16).map_err(|_| fault)?);
        rest = &rest[2..];
    }
    let decoded = String::from_utf8(bytes).map_err(|_| "is not UTF-8 once its % escapes are decoded".to_owned())?;
    if decoded.chars().any(char::is_control) { Err("holds an escaped control character".to_owned()) } else { Ok(decoded) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_read_by_the_table() {
        for (text, parameters, path) in [
            ("s3://B/a/b", "bucket=B type=s3", "a/b"),
            ("S3://B/a%20b/%2F", "bucket=B type=s3", "a b//"),
            ("s3://B//a", "bucket=B type=s3", "/a"),
            ("s3://B", "bucket=B type=s3", ""),
            ("gs://B/p/", "bucket=B type=gcs", "p/"),
            ("pvc://claim/m.onnx", "name=claim type=pvc", "m.onnx"),
            ("https://acc.blob.core.windows.net/c/d/e", "account_name=acc container=c type=azure", "d/e"),
            ("https://acc.blob.core.windows.net/c", "account_name=acc container=c type=azure", ""),
            ("http://h:81/a/b?q=1#f", "type=http url=http://h:81?q=1#f", "a/b"),
            ("HTTPS://u:p@h/a", "type=http url=https://u:p@h", "a"),
        ] {
            let located = locate(text).expect(text);
            let shown: Vec<String> = located.parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!((shown.join(" ").as_str(), located.path.as_str()), (parameters, path), "{text}");
        }
    }

    #[test]
    fn a_fault_says_what_to_write_and_never_shows_a_password() {
        for text in [
            "",
            "models/a",
            "s3:/b/p",
            "ftp://u:hunter2@h/p",
            "s3:///p",
            "pvc://",
            "http:///p",
            "s3://b/%",
            "s3://b/%g1",
            "s3://b/%ff",
            "s3://b/%00",
            "s3://b/\n",
            "https://a.blob.core.windows.net/",
        ] {
            let fault = locate(text).expect_err(text);
            assert!(!fault.is_empty() && !fault.contains("hunter2"), "{text:?}: {fault}");
        }
    }
}
