//! The body of a write: read up to a limit and within a time, then JSON or YAML.

use axum::body::Body;
use berth_registry::yaml_document;
use berth_telemetry::Clock;
use berth_types::Deadline;
use futures::StreamExt;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::Value;

use crate::failure::Failure;

/// Bytes of a body, and of a resource as JSON.
pub(crate) const LARGEST: usize = 3 << 20;
/// Values nested deeper than this are refused, as in manifests: what is stored must be readable again.
pub(crate) const DEEPEST: usize = 64;

/// The whole body.
///
/// # Errors
/// It is too large, compressed, broken off, or slower than `deadline`.
pub(crate) async fn read(headers: &HeaderMap, body: Body, clock: &Clock, deadline: Deadline) -> Result<Vec<u8>, Failure> {
    let too_large = || Failure::too_large(format!("request entity too large: limit is {LARGEST} bytes"));
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(Failure::unsupported_media_type("a compressed body is not understood here: send it as it is".to_owned()));
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > LARGEST as u64) {
        return Err(too_large());
    }
    let mut pieces = body.into_data_stream();
    let mut whole = Vec::new();
    loop {
        let piece = clock.until(deadline, pieces.next()).await.ok_or_else(|| Failure::timeout("the body of the request did not arrive in time"))?;
        let Some(piece) = piece else { return Ok(whole) };
        let piece = piece.map_err(|fault| Failure::bad_request(format!("cannot read the body of the request: {fault}")))?;
        if whole.len() + piece.len() > LARGEST {
            return Err(too_large());
        }
        whole.extend_from_slice(&piece);
    }
}

/// The media type of the body, without its parameters; `None` when the client does not say.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = String::from_utf8_lossy(headers.get(CONTENT_TYPE)?.as_bytes()).to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim().to_owned();
    (!essence.is_empty()).then_some(essence)
}

/// A refusal of a media type, with what would do.
pub(crate) fn unknown_type(given: Option<&str>, accepted: &str) -> Failure {
    let given: String = given.unwrap_or("no media type").chars().take(80).collect();
    Failure::unsupported_media_type(format!("the body of the request has {given:?}: accepted are {accepted}"))
}

/// Reads a resource or options: JSON, also when no type is given, or YAML.
pub(crate) fn document(headers: &HeaderMap, body: &[u8]) -> Result<Value, Failure> {
    match media_type(headers).as_deref() {
        None | Some("application/json") => json(body),
        Some("application/yaml" | "application/x-yaml" | "text/yaml") => yaml(body),
        given => Err(unknown_type(given, "application/json, application/yaml")),
    }
}

pub(crate) fn json(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body).map_err(|fault| Failure::bad_request(format!("cannot read the body as JSON: {fault}")))
}

pub(crate) fn yaml(body: &[u8]) -> Result<Value, Failure> {
    let text = std::str::from_utf8(body)
        .map_err(|fault| Failure::bad_request(format!("cannot read the body as YAML: it is not UTF-8 text at byte {}", fault.valid_up_to())))?;
    yaml_document(text).map_err(|fault| Failure::bad_request(format!("cannot read the body as YAML: {fault}")))
}

/// True when `value` has at most `levels` levels.
pub(crate) fn is_at_most(value: &Value, levels: usize) -> bool {
    match (value, levels.checked_sub(1)) {
        (_, None) => false,
        (Value::Array(items), Some(rest)) => items.iter().all(|item| is_at_most(item, rest)),
        (Value::Object(fields), Some(rest)) => fields.values().all(|field| is_at_most(field, rest)),
        (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_), Some(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    #[test]
    fn levels_are_counted_with_the_leaves() {
        for (value, levels) in [(json!(1), 1), (json!([]), 1), (json!([1]), 2), (json!({"a": [{"b": 1}]}), 4)] {
            assert!(is_at_most(&value, levels) && !is_at_most(&value, levels - 1), "{value}");
        }
    }

    async fn read_all(body: Body) -> Result<usize, u16> {
        let clock = Clock::system();
        let deadline = clock.deadline_in(std::time::Duration::from_secs(30));
        read(&HeaderMap::new(), body, &clock, deadline).await.map(|whole| whole.len()).map_err(|failure| failure.code.as_u16())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_cut_off_at_the_limit_and_at_its_time() {
        let pieces = |count: usize| futures::stream::iter((0..count).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1 << 20])));
        assert_eq!(read_all(Body::from_stream(pieces(3))).await, Ok(LARGEST));
        assert_eq!(read_all(Body::from_stream(pieces(4))).await, Err(413));
        assert_eq!(read_all(Body::from_stream(pieces(1).chain(futures::stream::pending()))).await, Err(408));
        let broken = futures::stream::iter([Err::<Vec<u8>, _>(std::io::Error::other("gone"))]);
        assert_eq!(read_all(Body::from_stream(pieces(1).chain(broken))).await, Err(400));
    }

    #[test]
    fn the_media_type_decides_how_a_body_is_read() {
        let read = |media_type: Option<&'static str>, body: &str| {
            let headers = HeaderMap::from_iter(media_type.map(|text| (CONTENT_TYPE, HeaderValue::from_static(text))));
            document(&headers, body.as_bytes()).map_err(|failure| failure.code.as_u16())
        };
        for (media_type, body, expected) in [
            (None, "{\"a\": 1}", Ok(json!({"a": 1}))),
            (Some("application/json; charset=utf-8"), "{\"a\": 1}", Ok(json!({"a": 1}))),
            (Some("Application/YAML"), "a: yes", Ok(json!({"a": true}))),
            (Some("application/json"), "a: yes", Err(400)),
            (Some("application/yaml"), "a: [", Err(400)),
            (Some("application/yaml"), "a: 1\n---\nb: 1\n", Err(400)),
            (Some("application/x-www-form-urlencoded"), "{}", Err(415)),
            (Some("text/plain"), "{}", Err(415)),
        ] {
            assert_eq!(read(media_type, body), expected, "{media_type:?} {body}");
        }
    }
}
