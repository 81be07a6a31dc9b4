//! Which headers of a REST request a runtime gets as metadata.
//!
//! Passed on are who asks (`authorization`), what the request belongs to (`traceparent`, `tracestate`, `baggage`,
//! `x-request-id`, `x-b3-*`), what is meant for a mesh of models (`mm-*`), and what a client says is metadata: `Grpc-Metadata-X`
//! is `x`, as gateways of gRPC have it. Left out are the ids of models, because the path says which one is asked, and what
//! belongs to the protocol of the hop before.

use http::{HeaderMap, HeaderName};

/// These, and what begins with one of [`PREFIXES`].
const NAMES: [&str; 6] = ["authorization", "traceparent", "tracestate", "baggage", "b3", "x-request-id"];
const PREFIXES: [&str; 2] = ["mm-", "x-b3-"];
const METADATA: &str = "grpc-metadata-";
/// The path stands for these.
const IDS: [&str; 4] = ["mm-model-id", "mm-model-id-bin", "mm-vmodel-id", "mm-vmodel-id-bin"];
/// What a hop says about itself, whoever asks for it.
const OF_THE_HOP: [&str; 10] =
    ["connection", "content-type", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "user-agent"];

/// The metadata that goes on with a request. Several values of one name stay several, in order.
pub(super) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        let passed = match text.strip_prefix(METADATA) {
            Some(inner) if OF_THE_HOP.contains(&inner) || inner.starts_with("grpc-") => None,
            Some(inner) => HeaderName::from_bytes(inner.as_bytes()).ok(),
            None if NAMES.contains(&text) || PREFIXES.iter().any(|prefix| text.starts_with(prefix)) => Some(name.clone()),
            None => None,
        };
        if let Some(name) = passed.filter(|name| !IDS.contains(&name.as_str())) {
            metadata.append(name, value.clone());
        }
    }
    metadata
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    fn passed(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        let pair =
            |(name, value): &(&str, &str)| (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        let map = passed_on(&headers.iter().map(pair).collect());
        map.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn what_belongs_to_the_request_goes_on_and_what_belongs_to_the_hop_does_not() {
        for (name, goes_on_as) in [
            ("Authorization", Some("authorization")),
            ("traceparent", Some("traceparent")),
            ("tracestate", Some("tracestate")),
            ("X-Request-Id", Some("x-request-id")),
            ("x-b3-traceid", Some("x-b3-traceid")),
            ("mm-balanced", Some("mm-balanced")),
            ("Grpc-Metadata-Tenant", Some("tenant")),
            ("Grpc-Metadata-mm-balanced", Some("mm-balanced")),
            ("mm-model-id", None),
            ("mm-vmodel-id", None),
            ("mm-vmodel-id-bin", None),
            ("grpc-metadata-mm-model-id", None),
            ("grpc-metadata-content-type", None),
            ("grpc-metadata-grpc-timeout", None),
            ("grpc-metadata-", None),
            ("grpc-timeout", None),
            ("host", None),
            ("content-type", None),
            ("accept-encoding", None),
            ("cookie", None),
            ("x-forwarded-for", None),
        ] {
            let wanted: Vec<_> = goes_on_as.map(|name| (name.to_owned(), "v".to_owned())).into_iter().collect();
            assert_eq!(passed(&[(name, "v")]), wanted, "{name}");
        }
        let several = passed(&[("tracestate", "a=1"), ("tracestate", "b=2")]);
        assert_eq!(several.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>(), ["a=1", "b=2"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, rng_seed: RngSeed::Fixed(29), ..ProptestConfig::default() })]
        #[test]
        fn no_header_brings_an_id_or_a_panic(
            name in "(grpc-metadata-|mm-|)[a-z-]{1,12}(model-id|-bin|)",
            value in prop::collection::vec(prop_oneof![32u8..127, 128u8..=255], 0..20),
        ) {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(&value).unwrap());
            let metadata = passed_on(&headers);
            prop_assert!(IDS.iter().all(|id| !metadata.contains_key(*id)));
            prop_assert!(metadata.values().all(|kept| kept.as_bytes() == value));
        }
    }
}
