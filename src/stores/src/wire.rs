//! HTTP as all stores share it: trust, one request with a limit on silence, small bodies within a limit.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_telemetry::Clock;
use berth_types::ByteSize;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, header};
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse};
use reqwest::{Certificate, Identity, Url};

use crate::{ConfigFault, Fault, FaultKind, Patience};

/// What of an error's body is looked at.
const LARGEST_ERROR: usize = 64 << 10;

/// Whom a connection trusts, and as whom it comes.
#[derive(Clone, Copy)]
pub(crate) struct Trust<'a> {
    /// Nothing is encrypted.
    pub(crate) plain: bool,
    /// PEM certificates of the authorities to trust, and no others.
    pub(crate) certificate: Option<&'a str>,
    /// The system's authorities are trusted besides those of `certificate`.
    pub(crate) public: bool,
    /// PEM certificate and key of the client.
    pub(crate) identity: Option<(&'a str, &'a str)>,
    /// No proxy of the environment is on the way: it could not reach what is on this machine or next to it.
    pub(crate) direct: bool,
    /// How errors name the entry that these came from.
    pub(crate) named: &'a str,
}

/// Connections to one store. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wire {
    http: HttpClient,
    clock: Clock,
    patience: Patience,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

/// Lets the credential providers of `object_store` use our connections.
#[derive(Debug)]
pub(crate) struct Given(HttpClient);

impl HttpConnector for Given {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

impl Wire {
    pub(crate) fn new(trust: Trust<'_>, patience: Patience, clock: Clock) -> Result<Self, ConfigFault> {
        // Without a process-wide provider the TLS library panics at first use; a provider that is there already is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let named = trust.named;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(patience.connect) // a whole download has no limit, a stall has: no other time-out is set
            .tcp_nodelay(true)
            .http1_only() // ranges in parallel want connections of their own
            .redirect(reqwest::redirect::Policy::none()) // a redirect must not carry secrets elsewhere
            .pool_max_idle_per_host(128);
        if let Some(pem) = trust.certificate {
            let unusable = |why: String| ConfigFault(format!("{named}: certificate is not a PEM bundle of certificates: {why}"));
            let bundle = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|fault| unusable(root_cause(&fault)))?;
            if bundle.is_empty() {
                return Err(unusable("it holds none".to_owned()));
            }
            builder = if trust.public { builder.tls_certs_merge(bundle) } else { builder.tls_certs_only(bundle) };
        } else if trust.plain {
            // An empty system store would fail even a plain endpoint.
            builder = builder.tls_certs_only([]);
        }
        if let Some((certificate, key)) = trust.identity {
            let pem = format!("{certificate}\n{key}\n");
            let identity = Identity::from_pem(pem.as_bytes());
            builder = builder.identity(identity.map_err(|_| {
                // The library's own text may quote what it could not read.
                ConfigFault(format!("{named}: client_certificate and client_key are not a PEM certificate and its PEM key"))
            })?);
        }
        if trust.direct {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|fault| ConfigFault(format!("{named}: no connection can be set up: {}", root_cause(&fault))))?;
        Ok(Wire { http: HttpClient::new(client), clock, patience })
    }

    /// For builders of credential providers.
    pub(crate) fn connector(&self) -> Given {
        Given(self.http.clone())
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn patience(&self) -> Patience {
        self.patience
    }

    /// A GET of `url`, which is a URL whose every part is percent-encoded already.
    pub(crate) fn request(url: &str, headers: HeaderMap, what: &str) -> Result<HttpRequest, Fault> {
        let request = http::Request::get(url).body(HttpRequestBody::empty());
        let mut request = request.map_err(|fault| Fault::new(FaultKind::Config, what, fault.to_string()))?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Sends `request` and waits for the head of its answer.
    pub(crate) async fn send(&self, request: HttpRequest, what: &str) -> Result<HttpResponse, Fault> {
        let silence = self.patience.silence;
        match self.clock.until(self.clock.deadline_in(silence), self.http.execute(request)).await {
            Some(Ok(response)) => Ok(response),
            Some(Err(fault)) => Err(not_sent(&fault, what)),
            None => Err(Fault::new(FaultKind::Away, what, format!("no answer within {silence:?}"))),
        }
    }

    /// A small body as a whole.
    pub(crate) async fn read(&self, response: HttpResponse, limit: usize, what: &str) -> Result<Vec<u8>, Fault> {
        let mut frames = frames(response);
        let silence = self.patience.silence;
        let mut bytes = Vec::new();
        loop {
            match self.clock.until(self.clock.deadline_in(silence), frames.next()).await {
                Some(None) => return Ok(bytes),
                Some(Some(Ok(more))) if bytes.len() + more.len() > limit => {
                    let why = format!("the answer is larger than {}", ByteSize(limit as u64));
                    return Err(Fault::new(FaultKind::Corrupt, what, why));
                }
                Some(Some(Ok(more))) => bytes.extend_from_slice(&more),
                Some(Some(Err(why))) => return Err(Fault::new(FaultKind::Away, what, why)),
                None => return Err(Fault::new(FaultKind::Away, what, format!("no byte came for {silence:?}"))),
            }
        }
    }

    /// What an error's answer says; nothing where it cannot be read.
    pub(crate) async fn error_text(&self, response: HttpResponse, what: &str) -> Vec<u8> {
        self.read(response, LARGEST_ERROR, what).await.unwrap_or_default()
    }
}

/// The body of an answer as it arrives.
pub(crate) fn frames(response: HttpResponse) -> BoxStream<'static, Result<Bytes, String>> {
    let frames = response.into_body().bytes_stream();
    frames.map(|frame| frame.map_err(|fault| format!("the connection broke: {}", root_cause(&fault)))).boxed()
}

/// Whether `url` names this very machine.
pub(crate) fn is_here(url: &Url) -> bool {
    match url.host_str().map(|host| host.trim_matches(['[', ']'])) {
        Some("localhost") => true,
        Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    }
}

/// Whether others on the way may read what is sent to `url`: on this machine nobody is on the way.
pub(crate) fn in_the_open(url: &Url) -> bool {
    url.scheme() != "https" && !is_here(url)
}

/// Whether `url` names what is next to a machine of a cloud and hands out its identity: nobody's models lie there, and
/// whoever may name an address must not be given those answers.
pub(crate) fn is_metadata(url: &Url) -> bool {
    let Some(host) = url.host_str().map(|host| host.trim_matches(['[', ']']).trim_end_matches('.')) else { return false };
    let link_local = |ip: IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip == AMAZONS,
    };
    host.eq_ignore_ascii_case("metadata.google.internal") || host.parse().is_ok_and(link_local)
}

/// The metadata service of Amazon's machines, which is not at a link-local address.
const AMAZONS: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Sets a header; a value that is none is left out, which its callers allow for.
pub(crate) fn set(headers: &mut HeaderMap, name: impl header::IntoHeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// The text of a header.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// How long the store wants to be left alone (`Retry-After` in seconds, of which at most a minute is granted).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<std::time::Duration> {
    let seconds: u64 = text(headers, "retry-after")?.trim().parse().ok()?;
    Some(std::time::Duration::from_secs(seconds.min(60)))
}

/// Exactly `N` bytes in base64.
pub(crate) fn base64<const N: usize>(written: &str) -> Option<[u8; N]> {
    BASE64_STANDARD.decode(written.trim()).ok()?.try_into().ok()
}

/// Percent-encodes all but unreserved characters (and slashes, where asked), as signatures want it.
pub(crate) fn encode(text: &str, keep_slash: bool) -> String {
    use fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            b'/' if keep_slash => encoded.push('/'),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// The innermost cause: "Connection refused (os error 111)" rather than "error sending request".
pub(crate) fn root_cause(fault: &dyn std::error::Error) -> String {
    let mut cause = fault;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// A text of somebody else's as one short line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

fn not_sent(fault: &HttpError, what: &str) -> Fault {
    let cause = root_cause(fault);
    match fault.kind() {
        HttpErrorKind::Connect if cause.contains("certificate") => {
            // Waiting will not make it trusted; a file may.
            Fault::new(FaultKind::Config, what, format!("{cause}: give the certificate of the store's authority in the storage config"))
        }
        HttpErrorKind::Connect => Fault::new(FaultKind::Away, what, format!("cannot connect: {cause}")),
        HttpErrorKind::Timeout => Fault::new(FaultKind::Away, what, format!("timed out: {cause}")),
        _ => Fault::new(FaultKind::Away, what, cause),
    }
}

/// Which bytes an answer holds, and of how many: from its status, `Content-Range` and `Content-Length`.
pub(crate) fn answered(status: http::StatusCode, headers: &HeaderMap) -> Result<(std::ops::Range<u64>, u64), String> {
    if status != http::StatusCode::PARTIAL_CONTENT {
        let length = text(headers, "content-length").and_then(|value| value.trim().parse().ok());
        return length.map(|length| (0..length, length)).ok_or_else(|| "the answer does not say how long it is".to_owned());
    }
    let value = text(headers, "content-range").unwrap_or_default();
    let parse = || {
        let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last, total) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total.parse::<u64>().ok()?);
        (first <= last && last < total).then(|| (first..last + 1, total))
    };
    parse().ok_or_else(|| format!("the store answered with the range {value:?}"))
}

/// The total that a refused range names: `bytes */0`.
pub(crate) fn refused_total(headers: &HeaderMap) -> Option<u64> {
    text(headers, "content-range")?.trim().strip_prefix("bytes */")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_by_where_they_are() {
        for (url, here, metadata) in [
            ("http://localhost:1/x", true, false),
            ("http://127.0.0.1", true, false),
            ("http://127.8.0.1", true, false),
            ("http://[::1]:9", true, false),
            ("https://localhost.example", false, false),
            ("http://10.0.0.1", false, false),
            ("http://169.254.169.254/latest/meta-data", false, true),
            ("http://0xa9fea9fe/", false, true),
            ("http://169.254.170.2", false, true),
            ("http://[::ffff:169.254.169.254]/", false, true),
            ("http://[fe80::1]/", false, true),
            ("http://[fd00:ec2::254]/", false, true),
            ("http://[fd00:ec2::255]/", false, false),
            ("http://metadata.google.internal/x", false, true),
            ("http://Metadata.Google.Internal./x", false, true),
            ("https://models.example", false, false),
        ] {
            let url: Url = url.parse().expect("a URL");
            assert_eq!((is_here(&url), is_metadata(&url)), (here, metadata), "{url}");
            assert_eq!(in_the_open(&url), url.scheme() == "http" && !here, "{url}");
        }
    }
}
