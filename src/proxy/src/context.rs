//! The log context of a request: which trace it belongs to, and those of its headers that somebody wants to see.
//!
//! It is a span named `request` around all that is done for the request and its answer; lines of the log that are about it
//! carry its fields. A request that brings neither a trace nor such a header has none and pays for looking.

use std::sync::OnceLock;

use http::{HeaderMap, HeaderName};
use serde_json::{Map, Value as Json};
use tracing::callsite::{Callsite, Identifier};
use tracing::field::{FieldSet, Value};
use tracing::level_filters::LevelFilter;
use tracing::metadata::Kind;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Span};

/// The field of the trace.
const TRACE: &str = "trace_id";
/// Names that lines of the log have already.
const TAKEN: [&str; 6] = [TRACE, "message", "level", "timestamp", "target", "name"];
/// More headers are not taken.
const MOST: usize = 16;
/// Of a longer value the beginning is shown.
const LONGEST: usize = 256;

/// Headers that say who somebody is: never part of a log line.
pub(crate) fn is_secret(name: &HeaderName) -> bool {
    const PARTS: [&str; 7] = ["authorization", "cookie", "password", "secret", "api-key", "apikey", "credential"];
    let name = name.as_str();
    name.ends_with("token") || PARTS.iter().any(|part| name.contains(part))
}

/// Which headers become fields of the log, and under which names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogHeaders(Vec<(HeaderName, String)>);

impl LogHeaders {
    /// Reads a JSON object, `{"HEADER": "KEY"}`.
    ///
    /// # Errors
    /// It is none, or what is wrong with its members, all of it.
    pub fn parse(json: &str) -> Result<Self, String> {
        let members: Map<String, Json> = serde_json::from_str(json)
            .map_err(|fault| format!("is no JSON object of headers and log keys, such as {{\"x-request-id\": \"request_id\"}}: {fault}"))?;
        let (mut headers, mut faults) = (Vec::<(HeaderName, String)>::new(), Vec::new());
        if members.len() > MOST {
            faults.push(format!("names {} headers, at most {MOST} are taken", members.len()));
        }
        for (header, key) in members {
            let Ok(name) = HeaderName::from_bytes(header.as_bytes()) else {
                faults.push(format!("{header:?} is no name of a header"));
                continue;
            };
            let key = match key {
                Json::String(key) if is_key(&key) => key,
                Json::String(key) => {
                    faults.push(format!("{header}: {key:?} is no log key: use letters, digits, \".\", \"-\" and \"_\""));
                    continue;
                }
                _ => {
                    faults.push(format!("{header}: its log key must be a text"));
                    continue;
                }
            };
            if is_secret(&name) {
                faults.push(format!("{header} may hold a secret and is never logged: leave it out"));
            } else if TAKEN.contains(&key.as_str()) || headers.iter().any(|(_, other)| *other == key) {
                faults.push(format!("{header}: the log key {key:?} is taken: choose another one"));
            } else {
                headers.push((name, key));
            }
        }
        if faults.is_empty() { Ok(LogHeaders(headers)) } else { Err(faults.join("; ")) }
    }
}

fn is_key(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Makes the contexts of requests.
pub(crate) struct Contexts {
    headers: Vec<HeaderName>,
    site: &'static Site,
}

/// Where spans with these fields come from, as `tracing` wants it: it lives as long as the process.
struct Site(OnceLock<Metadata<'static>>);

impl Callsite for Site {
    fn set_interest(&self, _interest: Interest) {}

    fn metadata(&self) -> &Metadata<'_> {
        // Set before anybody has the site.
        self.0.get().unwrap_or_else(|| unreachable!("the site is made with its metadata"))
    }
}

impl Contexts {
    /// Once per process: the names of the fields stay in memory.
    pub(crate) fn new(headers: LogHeaders) -> Self {
        let (headers, keys): (Vec<_>, Vec<_>) = headers.0.into_iter().unzip();
        let keys = std::iter::once(TRACE.to_owned()).chain(keys).map(|key| &*String::leak(key)).collect::<Vec<&'static str>>();
        let site: &'static Site = Box::leak(Box::new(Site(OnceLock::new())));
        let fields = FieldSet::new(Vec::leak(keys), Identifier(site));
        // Of the gravest level: whatever lines a filter lets through, their context shall be there.
        site.0.get_or_init(|| Metadata::new("request", module_path!(), Level::ERROR, None, None, Some(module_path!()), fields, Kind::SPAN));
        tracing::callsite::register(site);
        Contexts { headers, site }
    }

    /// The context of a request with these headers, where it has one and somebody would see it.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Option<Span> {
        let trace = headers.get("traceparent").and_then(|value| trace_id(value.as_bytes()));
        let given: Vec<Option<String>> = self.headers.iter().map(|name| shown(headers, name)).collect();
        if trace.is_none() && given.iter().all(Option::is_none) {
            return None;
        }
        let metadata = self.site.0.get()?;
        if Level::ERROR > LevelFilter::current() || !tracing::dispatcher::get_default(|current| current.enabled(metadata)) {
            return None;
        }
        let given: Vec<Option<&str>> = std::iter::once(trace).chain(given.iter().map(Option::as_deref)).collect();
        let values: Vec<Option<&dyn Value>> = given.iter().map(|value| value.as_ref().map(|value| value as &dyn Value)).collect();
        Some(Span::new(metadata, &metadata.fields().value_set_all(&values)))
    }
}

/// What is shown of the header `name`; several values are joined.
fn shown(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut values = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let first = values.next()?;
    let all = values.fold(first.into_owned(), |all, value| format!("{all}, {value}"));
    Some(if all.len() > LONGEST { all.chars().take(LONGEST).collect() } else { all })
}

/// The trace that a `traceparent` of the W3C names; `None` where it is none.
fn trace_id(value: &[u8]) -> Option<&str> {
    let hex = |part: &[u8], length: usize| {
        part.len() == length && part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) && part.iter().any(|byte| *byte != b'0')
    };
    let mut parts = value.split(|byte| *byte == b'-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let version_is_known = version.len() == 2 && version != b"ff" && version.iter().all(u8::is_ascii_hexdigit);
    // Later versions may say more behind the flags.
    let ends = version != b"00" || parts.next().is_none();
    (version_is_known && hex(trace, 32) && hex(span, 16) && flags.len() == 2 && ends).then_some(())?;
    std::str::from_utf8(trace).ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::payloads::tests::Lines;

    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn headers_and_their_keys_are_checked_and_secrets_refused() {
        let read = LogHeaders::parse(r#"{"X-Request-Id": "request_id", "x-tenant": "tenant.name"}"#).unwrap();
        let pair = |name, key: &str| (HeaderName::from_static(name), key.to_owned());
        assert_eq!(read.0, [pair("x-request-id", "request_id"), pair("x-tenant", "tenant.name")]);
        assert_eq!(LogHeaders::parse("{}"), Ok(LogHeaders::default()));
        for (json, text) in [
            ("", "is no JSON object of headers and log keys, such as {\"x-request-id\": \"request_id\"}: EOF"),
            (r#"["x"]"#, "is no JSON object"),
            (r#"{"a b": "k"}"#, "\"a b\" is no name of a header"),
            (r#"{"a": 1}"#, "a: its log key must be a text"),
            (r#"{"a": "k k"}"#, "a: \"k k\" is no log key"),
            (r#"{"a": ""}"#, "a: \"\" is no log key"),
            (r#"{"a": "trace_id"}"#, "a: the log key \"trace_id\" is taken"),
            (r#"{"a": "k", "b": "k"}"#, "b: the log key \"k\" is taken"),
            (r#"{"Authorization": "k"}"#, "Authorization may hold a secret and is never logged"),
            (r#"{"cookie": "k", "x-api-key": "l"}"#, "cookie may hold a secret and is never logged: leave it out; x-api-key may"),
            (r#"{"x-auth-token": "k"}"#, "x-auth-token may hold a secret"),
        ] {
            let fault = LogHeaders::parse(json).unwrap_err();
            assert!(fault.starts_with(text), "{json}: {fault}");
        }
        let many: Map<String, Json> = (0..17).map(|at| (format!("h{at}"), format!("k{at}").into())).collect();
        assert_eq!(LogHeaders::parse(&Json::from(many).to_string()).unwrap_err(), "names 17 headers, at most 16 are taken");
    }

    #[test]
    fn a_trace_is_known_by_the_form_of_the_w3c_only() {
        const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
        for (value, expected) in [
            (TRACEPARENT.to_owned(), true),
            (format!("cc-{TRACE}-b7ad6b7169203331-01-more"), true),
            (format!("00-{TRACE}-b7ad6b7169203331-01-more"), false),
            (format!("ff-{TRACE}-b7ad6b7169203331-01"), false),
            (format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()), false),
            (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), false),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), false),
            (format!("00-{TRACE}"), false),
            (String::new(), false),
        ] {
            assert_eq!(trace_id(value.as_bytes()), expected.then_some(TRACE), "{value}");
        }
    }

    #[test]
    fn lines_within_a_context_carry_its_fields_under_the_configured_keys() {
        let contexts = Contexts::new(LogHeaders::parse(r#"{"x-tenant": "tenant", "x-other": "other"}"#).unwrap());
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().json().with_max_level(Level::WARN).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            assert!(contexts.of(&headers(&[("x-third", "1"), ("traceparent", "none")])).is_none());
            for pairs in [&[("x-tenant", "a\"b"), ("x-tenant", "c"), ("traceparent", TRACEPARENT)][..], &[("x-other", "ü")]] {
                contexts.of(&headers(pairs)).unwrap().in_scope(|| tracing::warn!("met"));
            }
            let long = "x".repeat(1000);
            contexts.of(&headers(&[("x-other", &long)])).unwrap().in_scope(|| tracing::warn!("met"));
        });
        let text = lines.text();
        let spans: Vec<Json> = text.lines().map(|line| serde_json::from_str::<Json>(line).unwrap()["span"].clone()).collect();
        let expected = [
            serde_json::json!({"name": "request", "trace_id": "0af7651916cd43dd8448eb211c80319c", "tenant": "a\"b, c"}),
            serde_json::json!({"name": "request", "other": "ü"}),
            serde_json::json!({"name": "request", "other": "x".repeat(256)}),
        ];
        assert_eq!(spans, expected);
    }
}
