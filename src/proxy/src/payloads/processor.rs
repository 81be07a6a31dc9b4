//! A payload processor as its URI describes it: where payloads go, and which ones.
//!
//! `http://host/path?MODEL#package.Service/Method`, `https` alike, and `logger:///*?MODEL#...`. What stands in a URI beside
//! scheme, host and port may be a secret: neither faults nor `Debug` show it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};

/// Where payloads go, and which ones.
#[derive(Clone, PartialEq, Eq)]
pub struct Processor {
    pub(super) target: Target,
    pub(super) filter: Filter,
    /// For metrics and the log; no two processors of a list have the same.
    pub(super) label: String,
}

impl fmt::Debug for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processor").field("label", &self.label).field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl Processor {
    /// Scheme, host and port.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Whether it is reached over TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        matches!(&self.target, Target::Http(receiver) if receiver.tls)
    }
}

/// What becomes of a payload.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A line in the log, without data.
    Logger,
    /// A POST.
    Http(Receiver),
}

/// Who takes payloads over HTTP.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Receiver {
    pub(super) tls: bool,
    /// A name or an address; of IPv6 without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The header `host`.
    pub(super) authority: HeaderValue,
    /// Path and query, as they are asked for.
    pub(super) path: Uri,
    /// The header `authorization`, where the URI has a user.
    pub(super) credentials: Option<HeaderValue>,
}

/// Which payloads: `None` is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// The id of a version, or a name.
    model: Option<String>,
    /// `package.Service/Method`.
    method: Option<String>,
}

impl Filter {
    /// Whether a call of `method` for `model` is meant, which was asked for by `name` if by one.
    pub(super) fn takes(&self, method: &str, model: &str, name: Option<&str>) -> bool {
        let of_model = self.model.as_deref().is_none_or(|wanted| wanted == model || name == Some(wanted));
        of_model && self.method.as_deref().is_none_or(|wanted| wanted == method)
    }
}

/// Reads the processors of `list`, URIs with blanks between them.
///
/// # Errors
/// What is wrong, a line for each URI, by its place in the list.
pub fn processors(list: &str) -> Result<Vec<Processor>, Vec<String>> {
    let (mut read, mut faults) = (Vec::<Processor>::new(), Vec::new());
    for (at, uri) in list.split_whitespace().enumerate() {
        match processor(uri) {
            Ok(mut processor) => {
                let same = read.iter().filter(|other| other.label.split('#').next() == Some(&processor.label)).count();
                if same > 0 {
                    processor.label = format!("{}#{}", processor.label, same + 1);
                }
                read.push(processor);
            }
            // The URI itself may hold secrets.
            Err(why) => faults.push(format!("payload processor {}: {why}", at + 1)),
        }
    }
    if faults.is_empty() { Ok(read) } else { Err(faults) }
}

fn processor(uri: &str) -> Result<Processor, String> {
    const FORM: &str = "write http://HOST:PORT/PATH, https://HOST:PORT/PATH or logger:///*, each with ?MODEL and #package.Service/Method where not all payloads are meant";
    let (scheme, rest) = uri.split_once("://").ok_or_else(|| format!("it has no scheme: {FORM}"))?;
    let (rest, fragment) = rest.split_once('#').map_or((rest, ""), |(rest, fragment)| (rest, fragment));
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    let filter = Filter { model: wanted(query, "the model after ?")?, method: wanted(fragment, "the method after #")?.map(full_name).transpose()? };
    let (target, label) = match scheme.to_ascii_lowercase().as_str() {
        "logger" => (Target::Logger, "logger".to_owned()),
        scheme @ ("http" | "https") => {
            let receiver = receiver(scheme, rest)?;
            let host = if receiver.host.contains(':') { format!("[{}]", receiver.host) } else { receiver.host.clone() };
            let label = format!("{scheme}://{host}:{}", receiver.port);
            (Target::Http(receiver), label)
        }
        other if other.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) => {
            return Err(format!("scheme {other:?} is not known: {FORM}"));
        }
        _ => return Err(format!("it has no scheme: {FORM}")),
    };
    Ok(Processor { target, filter, label })
}

/// `rest`: what follows the scheme, without the fragment.
fn receiver(scheme: &str, rest: &str) -> Result<Receiver, String> {
    let (place, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
    let (user, place) = place.rsplit_once('@').map_or((None, place), |(user, place)| (Some(user), place));
    let broken = |what: &str| format!("{what} of its {scheme} URI cannot be read");
    let whole: Uri = format!("{scheme}://{place}/").parse().map_err(|_| broken("host or port"))?;
    let host = whole.host().filter(|host| !host.is_empty()).ok_or_else(|| format!("its {scheme} URI names no host"))?;
    let tls = scheme == "https";
    // What the parser makes of a port that is none is a URI without one.
    let port = match place.strip_prefix(host).and_then(|port| port.strip_prefix(':')) {
        None => {
            if tls {
                443
            } else {
                80
            }
        }
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or_else(|| broken("the port"))?,
    };
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let path = path.parse().map_err(|_| broken("the path"))?;
    let credentials = user.map(basic).transpose().map_err(|()| broken("user or password"))?;
    let authority = HeaderValue::from_str(place).map_err(|_| broken("host or port"))?;
    Ok(Receiver { tls, host: host.trim_matches(['[', ']']).to_owned(), port, authority, path, credentials })
}

/// The header that `USER:PASSWORD` is sent as.
fn basic(user: &str) -> Result<HeaderValue, ()> {
    let decoded = decoded(user).ok_or(())?;
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(decoded))).map_err(|_| ())?;
    value.set_sensitive(true);
    Ok(value)
}

/// What a filter asks for; nothing and `*` are everything.
fn wanted(text: &str, what: &str) -> Result<Option<String>, String> {
    match decoded(text).and_then(|bytes| String::from_utf8(bytes).ok()) {
        None => Err(format!("{what} is no text in percent-encoding")),
        Some(text) if text.is_empty() || text == "*" => Ok(None),
        Some(text) => Ok(Some(text)),
    }
}

fn full_name(method: String) -> Result<String, String> {
    let name = method.strip_prefix('/').unwrap_or(&method);
    match name.split_once('/') {
        Some((service, own)) if !service.is_empty() && !own.is_empty() => Ok(name.to_owned()),
        _ => Err("the method after # is no full name such as inference.GRPCInferenceService/ModelInfer".to_owned()),
    }
}

/// The bytes that percent-encoding stands for.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = after.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(uri: &str) -> Processor {
        processors(uri).unwrap().remove(0)
    }

    fn receiver_of(uri: &str) -> Receiver {
        match one(uri).target {
            Target::Http(receiver) => receiver,
            Target::Logger => panic!("{uri}"),
        }
    }

    #[test]
    fn a_uri_says_where_payloads_go() {
        for (uri, tls, host, port, authority, path) in [
            ("http://receiver", false, "receiver", 80, "receiver", "/"),
            ("http://receiver:8080/a/b?model#s/m", false, "receiver", 8080, "receiver:8080", "/a/b?model"),
            ("https://receiver/a", true, "receiver", 443, "receiver", "/a"),
            ("HTTPS://user:pass@[::1]:1?*", true, "::1", 1, "[::1]:1", "/?*"),
        ] {
            let read = receiver_of(uri);
            let got = (read.tls, read.host.as_str(), read.port, read.authority.to_str().unwrap(), read.path.to_string());
            assert_eq!(got, (tls, host, port, authority, path.to_owned()), "{uri}");
        }
        assert_eq!(receiver_of("http://a").credentials, None);
        assert_eq!(receiver_of("http://us%65r:p%40ss@a").credentials.unwrap(), "Basic dXNlcjpwQHNz");
        assert!(one("logger:///*?m#a.S/M").target == Target::Logger);
        assert_eq!(processors(" \t\n").unwrap(), []);
    }

    #[test]
    fn processors_at_one_place_are_told_apart_and_their_secrets_never_shown() {
        let read = processors("http://u:s3cret@a/s3cret?m http://a/b\n logger:///* https://a logger:///*").unwrap();
        assert_eq!(read.iter().map(Processor::label).collect::<Vec<_>>(), ["http://a:80", "http://a:80#2", "logger", "https://a:443", "logger#2"]);
        assert_eq!(read.iter().map(Processor::is_https).collect::<Vec<_>>(), [false, false, false, true, false]);
        assert!(!format!("{read:?}").contains("s3cret"));
    }

    #[test]
    fn the_query_is_a_model_and_the_fragment_a_method_and_neither_is_all() {
        const METHOD: &str = "a.S/M";
        for (uri, expected) in [
            ("http://h", [true; 4]),
            ("http://h?*#*", [true; 4]),
            ("http://h?#", [true; 4]),
            ("http://h?m__isvc-1", [true, true, false, false]),
            ("http://h?m", [true, true, false, false]),
            ("http://h?n", [false, false, true, false]),
            ("http://h?m%C3%BC", [false, false, false, true]),
            ("http://h#a.S/M", [true, false, true, true]),
            ("http://h#/a.S/M", [true, false, true, true]),
            ("http://h?m#a.S/M", [true, false, false, false]),
            ("logger:///*?m#a.S/M", [true, false, false, false]),
        ] {
            let filter = one(uri).filter;
            let takes = [(METHOD, "m__isvc-1", Some("m")), ("a.S/N", "m__isvc-1", Some("m")), (METHOD, "n", None), (METHOD, "x", Some("mü"))];
            assert_eq!(takes.map(|(method, model, name)| filter.takes(method, model, name)), expected, "{uri}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_place_and_without_the_uri() {
        let faults = processors(
            "ftp://s3cret http://ok s3cret http:///s3cret http://h:s3cret/ http://h?%zz http://h#s3cret http://u:%s3cret@h s-€://s3cret http://h:0",
        )
        .unwrap_err();
        let expected = [
            "payload processor 1: scheme \"ftp\" is not known: write http://HOST:PORT/PATH,",
            "payload processor 3: it has no scheme: write",
            "payload processor 4: ",
            "payload processor 5: ",
            "payload processor 6: the model after ? is no text in percent-encoding",
            "payload processor 7: the method after # is no full name such as",
            "payload processor 8: user or password of its http URI cannot be read",
            "payload processor 9: it has no scheme",
            "payload processor 10: the port of its http URI cannot be read",
        ];
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, start) in faults.iter().zip(expected) {
            assert!(fault.starts_with(start) && !fault.contains("s3cret"), "{fault}");
        }
    }
}
