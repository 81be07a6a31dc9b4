//! What an entry of type `http` says: an address, and what is shown there. Pure.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_telemetry::Clock;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use reqwest::Url;
use serde_json::{Map, Value};

use super::{Link, Way};
use crate::config::{Secret, allowed_hosts, filled, fingerprint, is_among, verify};
use crate::wire::{is_here, is_metadata};
use crate::{ConfigFault, Patience, Verify};

/// A client's certificate and its key, PEM.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: Secret,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

/// An address that paths are joined to, and how to speak with its server.
#[derive(Clone, Debug)]
pub struct WebSettings {
    /// Without user, password, query and fragment.
    pub(super) url: Url,
    /// What is sent after the path of each object: a signature, as a rule.
    pub(super) query: Option<Secret>,
    /// Sent to the entry's own hosts. All values are marked as sensitive.
    pub(super) headers: HeaderMap,
    /// Hosts that headers and client certificate may go to besides that of `url`.
    allowed: Vec<String>,
    /// PEM certificates of the authorities to trust, and no others.
    certificate: Option<String>,
    identity: Option<Identity>,
    pub(crate) verify: Verify,
    /// How errors name the entry that these came from.
    pub(super) named: String,
}

/// Headers that say what is asked for and how: those are not an entry's.
const OURS: [HeaderName; 14] = [
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::RANGE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

impl WebSettings {
    /// The settings of an entry, whose errors name it `named`.
    pub(crate) fn parse(config: &Map<String, Value>, named: &str) -> Result<Self, ConfigFault> {
        let mut faults = Vec::new();
        let url = address(config).map_err(|fault| faults.push(fault)).ok();
        let mut headers = headers(config, &mut faults);
        let identity = match (filled(config, "client_certificate"), filled(config, "client_key")) {
            (Some(certificate), Some(key)) => Some(Identity { certificate: certificate.to_owned(), key: Secret(key.to_owned()) }),
            (None, None) => None,
            _ => {
                faults.push("client_certificate and client_key must be given together".to_owned());
                None
            }
        };
        let verify = verify(config, &mut faults);
        let Some(mut url) = url.filter(|_| faults.is_empty()) else {
            return Err(ConfigFault(format!("{named}: {}", faults.join("; "))));
        };
        if let Some(value) = basic(&url) {
            headers.entry(header::AUTHORIZATION).or_insert(value);
        }
        let query = url.query().map(|query| Secret(query.to_owned()));
        // These can be set on what has a host.
        let _ = (url.set_username(""), url.set_password(None));
        url.set_query(None);
        url.set_fragment(None);
        let certificate = filled(config, "certificate").map(str::to_owned);
        Ok(WebSettings { url, query, headers, allowed: allowed_hosts(config), certificate, identity, verify, named: named.to_owned() })
    }

    /// The address as messages show it.
    pub(super) fn address(&self) -> &str {
        self.url.as_str().trim_end_matches('/')
    }

    /// Whether what the entry holds may be shown at `url`.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        let own = &self.url;
        let host = |url: &Url| url.host_str().map(str::to_owned);
        // From http to https of one host, where both are at their usual ports.
        let upgraded = own.scheme() == "http" && url.scheme() == "https" && host(own) == host(url) && own.port().is_none() && url.port().is_none();
        own.origin() == url.origin() || upgraded || is_among(&self.allowed, url)
    }

    /// Whether there is anything that not everybody may see.
    pub(super) fn holds_secrets(&self) -> bool {
        !self.headers.is_empty() || self.identity.is_some()
    }

    pub(crate) fn identity(&self) -> String {
        match &self.query {
            None => format!("http {}", self.address()),
            // It may choose what is answered, and it may be a secret.
            Some(query) => format!("http {} query {}", self.address(), blake3::hash(query.0.as_bytes()).to_hex()),
        }
    }

    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let origin = self.url.origin().ascii_serialization();
        let mut fields = vec!["http", &origin, self.certificate.as_deref().unwrap_or_default()];
        match &self.identity {
            None => fields.extend(["", ""]),
            Some(identity) => fields.extend([identity.certificate.as_str(), &identity.key.0]),
        }
        let held: Vec<String> = self.headers.iter().map(|(name, value)| format!("{name}:{}", String::from_utf8_lossy(value.as_bytes()))).collect();
        fields.extend(held.iter().map(String::as_str));
        fingerprint(&fields)
    }

    pub(crate) fn link(&self, patience: Patience, clock: Clock) -> Result<Link, ConfigFault> {
        let link = Link {
            certificate: self.certificate.clone(),
            identity: self.identity.clone(),
            named: self.named.clone(),
            patience,
            clock,
            wires: Mutex::default(),
        };
        let direct = is_here(&self.url);
        // What is wrong with them is said now, also where only a redirect would need them.
        if self.url.scheme() == "https" || self.certificate.is_some() || self.identity.is_some() {
            link.wire(Way { own: true, tls: true, direct })?;
        }
        Ok(link)
    }
}

/// An address as messages show it: queries hold signatures.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = (url.set_username(""), url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

fn address(config: &Map<String, Value>) -> Result<Url, String> {
    let Some(written) = filled(config, "url") else { return Err("url is missing".to_owned()) };
    // The text is not repeated: it may hold a password or a signature.
    let url = Url::parse(written).map_err(|fault| format!("url is not a URL: {fault}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err("url is not an http or https URL".to_owned());
    }
    if is_metadata(&url) {
        return Err("url is the address of a metadata service, which is no store".to_owned());
    }
    Ok(url)
}

/// User and password of a URL as the header that shows them.
fn basic(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut text = percent_decoded(url.username());
    text.push(b':');
    text.extend(percent_decoded(url.password().unwrap_or_default()));
    let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(text))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The bytes that a part of a URL stands for. What is not encoded stands for itself.
fn percent_decoded(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (mut rest, mut bytes) = (text.as_bytes(), Vec::with_capacity(text.len()));
    while let [byte, more @ ..] = rest {
        let encoded = match more {
            [high, low, ..] if *byte == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        let (byte, used) = encoded.map_or((*byte, 1), |(high, low)| (high << 4 | low, 3));
        bytes.push(byte);
        rest = &rest[used..];
    }
    bytes
}

/// A map from names to a text or a list of texts.
fn headers(config: &Map<String, Value>, faults: &mut Vec<String>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let held = match config.get("headers") {
        None | Some(Value::Null) => return headers,
        Some(Value::String(text)) if text.is_empty() => return headers,
        Some(Value::Object(held)) => held,
        Some(_) => {
            faults.push("headers is not a JSON object from names to values".to_owned());
            return headers;
        }
    };
    for (written, value) in held {
        let Ok(name) = HeaderName::from_bytes(written.as_bytes()) else {
            faults.push(format!("headers has {written:?}, which is not the name of a header"));
            continue;
        };
        if OURS.contains(&name) {
            faults.push(format!("headers has {name}, which is not for an entry to set"));
            continue;
        }
        let values: Option<Vec<&str>> = match value {
            Value::String(value) => Some(vec![value]),
            Value::Array(values) => values.iter().map(Value::as_str).collect(),
            _ => None,
        };
        let Some(values) = values else {
            faults.push(format!("header {name} is neither a text nor a list of texts"));
            continue;
        };
        for value in values {
            match HeaderValue::from_str(value) {
                Ok(mut value) => {
                    value.set_sensitive(true);
                    headers.append(&name, value);
                }
                Err(_) => faults.push(format!("header {name} has a character that cannot be sent (a line end?)")),
            }
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(entry: &str) -> Result<WebSettings, String> {
        let Ok(Value::Object(entry)) = serde_json::from_str(entry) else { panic!("{entry}") };
        WebSettings::parse(&entry, "storage config k").map_err(|fault| fault.to_string())
    }

    fn values(settings: &WebSettings, name: &str) -> Vec<String> {
        settings.headers.get_all(name).iter().map(|value| value.to_str().expect("text").to_owned()).collect()
    }

    #[test]
    fn what_is_secret_in_an_address_is_taken_out_of_it() {
        for (url, address, query, authorization) in [
            ("https://h.example/models/", "https://h.example/models", None, ""),
            ("https://h.example", "https://h.example", None, ""),
            ("http://h.example:81/a%20b?sig=x%2Fy&z#frag", "http://h.example:81/a%20b", Some("sig=x%2Fy&z"), ""),
            ("https://user:p%40ss@h.example/", "https://h.example", None, "Basic dXNlcjpwQHNz"),
            ("https://token@h.example/", "https://h.example", None, "Basic dG9rZW46"),
            ("https://u:100%@h.example/", "https://h.example", None, "Basic dToxMDAl"),
        ] {
            let settings = parsed(&format!(r#"{{"url":"{url}"}}"#)).unwrap_or_else(|why| panic!("{url}: {why}"));
            assert_eq!(settings.address(), address, "{url}");
            assert_eq!(settings.query.as_ref().map(|query| query.0.as_str()), query, "{url}");
            assert_eq!(values(&settings, "authorization").concat(), authorization, "{url}");
        }
        let settings = parsed(r#"{"url":"https://u:p@h.example","headers":{"authorization":"Bearer t"}}"#).expect("sound");
        assert_eq!(values(&settings, "authorization"), ["Bearer t"], "a header that is written out wins");
    }

    #[test]
    fn headers_are_texts_or_lists_of_texts() {
        let settings = parsed(r#"{"url":"https://h","headers":{"X-One":"a","X-Two":["b","c"],"X-None":[],"Host":"v.example"}}"#).expect("sound");
        assert_eq!((values(&settings, "x-one"), values(&settings, "x-two")), (vec!["a".to_owned()], vec!["b".to_owned(), "c".to_owned()]));
        assert!(settings.headers.values().all(HeaderValue::is_sensitive));
        assert_eq!(settings.headers.len(), 4);
        for (entry, expected) in [
            (r#"{"headers":{"a":"b"}}"#, "storage config k: url is missing"),
            (r#"{"url":"sEcReT"}"#, "url is not a URL"),
            (r#"{"url":"ftp://u:sEcReT@h"}"#, "url is not an http or https URL"),
            (r#"{"url":"http://169.254.169.254/sEcReT"}"#, "url is the address of a metadata service"),
            (r#"{"url":"https://h","headers":"sEcReT"}"#, "headers is not a JSON object"),
            (r#"{"url":"https://h","headers":["sEcReT"]}"#, "headers is not a JSON object"),
            (r#"{"url":"https://h","headers":{"a b":"sEcReT"}}"#, "headers has \"a b\", which is not the name of a header"),
            (r#"{"url":"https://h","headers":{"a":{"sEcReT":1}}}"#, "header a is neither a text nor a list of texts"),
            (r#"{"url":"https://h","headers":{"a":["sEcReT",1]}}"#, "header a is neither a text nor a list of texts"),
            (r#"{"url":"https://h","headers":{"a":"sEcReT\n"}}"#, "header a has a character that cannot be sent"),
            (r#"{"url":"https://h","headers":{"Range":"sEcReT"}}"#, "headers has range, which is not for an entry to set"),
            (r#"{"url":"https://h","client_key":"sEcReT"}"#, "client_certificate and client_key must be given together"),
            (r#"{"url":"https://h","client_certificate":"pem","verify":"no"}"#, "together; verify is \"no\""),
        ] {
            let fault = parsed(entry).map(|_| ()).expect_err(entry);
            assert!(fault.starts_with("storage config k: ") && fault.contains(expected), "{entry}: {fault}");
            assert!(!fault.contains("sEcReT"), "{fault}");
        }
    }

    #[test]
    fn what_an_entry_holds_goes_to_its_own_hosts_only() {
        for (url, allowed, to, own) in [
            ("https://h.example/m", "", "https://h.example/x", true),
            ("https://h.example/m", "", "https://H.EXAMPLE:443/x", true),
            ("https://h.example/m", "", "https://h.example:8443/x", false),
            ("https://h.example/m", "", "https://h.example.evil/x", false),
            ("https://h.example/m", "", "http://h.example/x", false),
            ("http://h.example/m", "", "https://h.example/x", true),
            ("http://h.example/m", "", "https://h.example:444/x", false),
            ("http://h.example:80/m", "", "https://h.example/x", true),
            ("http://h.example:8080/m", "", "https://h.example/x", false),
            ("https://h.example/m", "m.example, n.example:8443", "https://m.example/x", true),
            ("https://h.example/m", "m.example, n.example:8443", "https://n.example/x", false),
            ("https://h.example/m", "m.example, n.example:8443", "https://n.example:8443/x", true),
            ("https://h.example/m", "http://m.example", "https://m.example/x", false),
        ] {
            let settings = parsed(&format!(r#"{{"url":"{url}","allowed_hosts":"{allowed}"}}"#)).expect("sound");
            assert_eq!(settings.is_own(&to.parse().expect("a URL")), own, "{url} [{allowed}] {to}");
        }
    }

    #[test]
    fn settings_print_without_secrets_and_differ_by_them() {
        let all = [
            r#"{"url":"https://h.example/m"}"#,
            r#"{"url":"https://u:sEcReT@h.example/m"}"#,
            r#"{"url":"https://h.example/m","headers":{"a":"sEcReT"}}"#,
            r#"{"url":"https://h.example/m","headers":{"b":"sEcReT"}}"#,
            r#"{"url":"https://h.example/m","client_certificate":"c","client_key":"sEcReT"}"#,
            r#"{"url":"https://h.example/m","certificate":"c"}"#,
            r#"{"url":"https://h.example:444/m"}"#,
        ]
        .map(|entry| parsed(entry).expect("sound"));
        for (i, settings) in all.iter().enumerate() {
            let text = format!("{settings:?} {}", settings.identity());
            assert!(!text.contains("sEcReT") && !text.contains("c0VjUmVU"), "{text}");
            for other in &all[..i] {
                assert_ne!(settings.fingerprint(), other.fingerprint(), "{settings:?} and {other:?}");
            }
        }
        let signed = parsed(r#"{"url":"https://h.example/m?sig=sEcReT"}"#).expect("sound");
        assert!(!format!("{signed:?} {}", signed.identity()).contains("sEcReT"));
        assert_eq!(signed.fingerprint(), all[0].fingerprint(), "signatures come and go, connections stay");
        assert_ne!(signed.identity(), all[0].identity(), "a query may choose another file");
    }
}
