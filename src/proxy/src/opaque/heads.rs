//! What goes to the runtime beside the body, and what its answer's head means.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use berth_adapters::is_unknown_model;
use berth_types::ModelId;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tonic::{Code, Status};

pub(crate) use super::passed::code_of as code;

const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const MODEL: HeaderName = HeaderName::from_static("mm-model-id");
const MODEL_BINARY: HeaderName = HeaderName::from_static("mm-model-id-bin");

/// Headers that are not the runtime's business: they are about the connection, the length of a body that grows, or said anew.
fn is_ours(name: &HeaderName) -> bool {
    match name.as_str() {
        "tas-model-id" | "grpc-timeout" | "host" => true,
        "connection" | "keep-alive" | "proxy-connection" | "transfer-encoding" | "upgrade" | "content-length" => true,
        name => name.starts_with("mm-"),
    }
}

/// The headers of a request to the runtime for `model`, which has `left` to be answered.
pub(crate) fn to_runtime(from: &HeaderMap, model: &ModelId, left: Duration) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(from.len() + 3);
    for (name, value) in from {
        if !is_ours(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    headers.insert(TIMEOUT, timeout(left));
    let binary = STANDARD_NO_PAD.encode(model.as_str());
    if let Ok(mut value) = HeaderValue::try_from(binary) {
        value.set_sensitive(true);
        headers.insert(MODEL_BINARY, value);
    }
    if model.as_str().bytes().all(|byte| (0x20..0x7f).contains(&byte))
        && let Ok(mut value) = HeaderValue::from_str(model.as_str())
    {
        value.set_sensitive(true);
        headers.insert(MODEL, value);
    }
    headers
}

/// `left` as `grpc-timeout` has it: at most eight digits and a unit. Never longer than `left`.
pub(crate) fn timeout(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let units = [(left.as_nanos(), 'n'), (left.as_micros(), 'u'), (left.as_millis(), 'm'), (u128::from(left.as_secs()), 'S')];
    let (count, unit) = units.into_iter().find(|(count, _)| *count <= MOST).unwrap_or((MOST, 'S'));
    // Digits and a letter are a value.
    let mut text = [unit as u8; 9];
    let (mut at, mut left) = (8, count as u32);
    loop {
        at -= 1;
        text[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    let mut value = HeaderValue::from_bytes(&text[at..]).unwrap_or(HeaderValue::from_static("0n"));
    value.set_sensitive(true);
    value
}

/// Whether an answer without messages says that the runtime does not hold the model.
pub(crate) fn is_not_here(head: &HeaderMap) -> bool {
    match code(head) {
        None | Some(Code::Ok) => false,
        Some(code) => Status::from_header_map(head).is_some_and(|status| is_unknown_model(code, status.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn what_is_passed_on_is_what_the_client_sent_but_for_ids_deadline_and_connection() {
        let sent = headers(&[
            ("content-type", "application/grpc+proto"),
            ("authorization", "Bearer x"),
            ("traceparent", "00-1-2-01"),
            ("grpc-encoding", "gzip"),
            ("mm-vmodel-id", "m"),
            ("mm-balanced", "true"),
            ("tas-model-id", "m"),
            ("grpc-timeout", "1H"),
            ("content-length", "12"),
            ("x-bin", "AAE"),
        ]);
        let model = ModelId::new("m__isvc-1111111111").unwrap();
        let passed = to_runtime(&sent, &model, Duration::from_millis(1500));
        let expected = headers(&[
            ("content-type", "application/grpc+proto"),
            ("authorization", "Bearer x"),
            ("traceparent", "00-1-2-01"),
            ("grpc-encoding", "gzip"),
            ("x-bin", "AAE"),
            ("te", "trailers"),
            ("grpc-timeout", "1500000u"),
            ("mm-model-id-bin", "bV9faXN2Yy0xMTExMTExMTEx"),
            ("mm-model-id", "m__isvc-1111111111"),
        ]);
        assert_eq!(passed, expected);
        let model = ModelId::new("mü").unwrap();
        let passed = to_runtime(&HeaderMap::new(), &model, Duration::ZERO);
        assert_eq!(passed, headers(&[("te", "trailers"), ("grpc-timeout", "0n"), ("mm-model-id-bin", "bcO8")]));
    }

    #[test]
    fn values_of_one_name_stay_in_their_order() {
        let mut sent = HeaderMap::new();
        for value in ["1", "2", "3"] {
            sent.append("x-many", HeaderValue::from_static(value));
        }
        let passed = to_runtime(&sent, &ModelId::new("m").unwrap(), Duration::ZERO);
        assert_eq!(passed.get_all("x-many").iter().collect::<Vec<_>>(), ["1", "2", "3"]);
    }

    #[test]
    fn a_timeout_has_at_most_eight_digits_and_is_never_longer() {
        for (left, text) in [
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(99), "99000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "99999999S"),
        ] {
            assert_eq!(timeout(left), text, "{left:?}");
        }
    }

    #[test]
    fn answers_that_mean_not_here_are_known_by_code_and_by_two_servers_words() {
        for (code, message, not_here) in [
            ("5", "", true),
            ("5", "whatever", true),
            ("14", "Request for unknown model: 'm' is not found", true),
            ("14", "Request for unknown model: 'm' has no available versions", true),
            ("14", "the model is warming up, what was asked for is not found", false),
            ("3", "Model m with version  not found", true),
            ("3", "Model m takes no input x", false),
            ("2", "Unexpected <class 'mlserver.errors.ModelNotFound'>: Model m with version  not found", true),
            ("2", "Unexpected <class 'ValueError'>: Model m with version  not found", false),
            ("0", "", false),
            ("13", "Request for unknown model: 'm' is not found", false),
        ] {
            let message = message.replace(' ', "%20");
            assert_eq!(is_not_here(&headers(&[("grpc-status", code), ("grpc-message", &message)])), not_here, "{code} {message}");
        }
        assert!(!is_not_here(&HeaderMap::new()));
    }

    /// What the tests of the whole system record of real servers, as `SERVER MODEL METHOD: CODE "WORDS" ANSWERS`.
    #[test]
    fn every_status_by_which_real_servers_say_that_they_do_not_hold_a_model_is_understood() {
        let mut statuses = 0;
        for line in include_str!("../../../../tests/system/unknown_models.txt").lines() {
            let (_, told) = line.split_once(": ").unwrap();
            let (code, words) = told.split_once(" \"").unwrap();
            let words = words.split_once("\" [").unwrap().0.replace(' ', "%20");
            if code != "0" {
                assert!(is_not_here(&headers(&[("grpc-status", code), ("grpc-message", &words)])), "{line}");
                statuses += 1;
            }
        }
        assert_eq!(statuses, 12);
    }
}
