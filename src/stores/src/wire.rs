//! HTTP as all stores share it: trust, one request with a limit on silence, small bodies within a limit.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use berth_telemetry::Clock;
use berth_types::ByteSize;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, header};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpService};
use object_store::{ClientOptions, CredentialProvider};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Identity, Url};
use rustls::CertificateError;

use crate::{ConfigFault, Fault, FaultKind, Patience, Version};

/// What of an error's body is looked at.
const LARGEST_ERROR: usize = 64 << 10;

/// Answers of those who lend credentials are short.
const LARGEST_LENT: usize = 64 << 10;

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
    /// A metadata service may be at the other end: it is one that lends credentials, and its address is none of a model's.
    pub(crate) metadata: bool,
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

/// Lets the credential providers of `object_store` use our connections. They take any answer as a whole, and make room for
/// as much as it says that it holds: only short ones reach them.
#[derive(Debug)]
pub(crate) struct Given(Wire);

impl HttpConnector for Given {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Short(self.0.clone())))
    }
}

/// Requests whose answers are short.
#[derive(Debug)]
struct Short(Wire);

/// Why there is no short answer.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("the address is no URL")]
    Address,
    #[error("the answer is larger than {}", ByteSize(LARGEST_LENT as u64))]
    Large,
    #[error("the answer did not end within {0:?}")]
    Slow(Duration),
}

#[async_trait]
impl HttpService for Short {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if Url::parse(&request.uri().to_string()).is_err() {
            return Err(HttpError::new(HttpErrorKind::Decode, Unread::Address));
        }
        let Wire { http, clock, patience } = &self.0;
        let (head, body) = http.execute(request).await?.into_parts();
        let deadline = clock.deadline_in(patience.silence);
        let (mut frames, mut bytes) = (body.bytes_stream(), Vec::new());
        loop {
            match clock.until(deadline, frames.next()).await {
                // Its length is the bytes' that came, whatever the answer says about itself.
                Some(None) => return Ok(HttpResponse::from_parts(head, bytes.into())),
                Some(Some(Ok(more))) if bytes.len() + more.len() > LARGEST_LENT => {
                    return Err(HttpError::new(HttpErrorKind::Decode, Unread::Large));
                }
                Some(Some(Ok(more))) => bytes.extend_from_slice(&more),
                // A connection that breaks on the way is called a fault of decoding, too.
                Some(Some(Err(fault))) => return Err(HttpError::new(HttpErrorKind::Interrupted, fault)),
                None => return Err(HttpError::new(HttpErrorKind::Timeout, Unread::Slow(patience.silence))),
            }
        }
    }
}

/// Why a provider of `object_store` gave no credential.
pub(crate) enum NotLent {
    Refused(object_store::Error),
    /// The answer was of a form that the provider does not survive.
    Odd,
    Silent,
}

/// Why an answer that came cannot be used: asked again it would be the same. The parser's own text may quote it.
pub(crate) fn unusable(fault: &object_store::Error) -> Option<String> {
    let decode = |fault: &HttpError| fault.kind() == HttpErrorKind::Decode;
    if !causes(fault).any(|cause| cause.downcast_ref().is_some_and(decode)) {
        return None;
    }
    let known = causes(fault).find_map(|cause| cause.downcast_ref::<Unread>().map(ToString::to_string));
    Some(known.unwrap_or_else(|| "the answer is none that such a service gives".to_owned()))
}

/// Looks names up, and forgets addresses where metadata services are: names of anybody's may lead there.
struct Elsewhere;

/// A name that leads to nothing but metadata services.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its address is a metadata service's, which is no store")]
struct Metadata;

impl Resolve for Elsewhere {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            Ok(Box::new(elsewhere(found)?.into_iter()) as Addrs)
        })
    }
}

fn elsewhere(found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Metadata> {
    let (spoken, left): (Vec<_>, Vec<_>) = found.partition(|address| serves_metadata(address.ip()));
    if left.is_empty() && !spoken.is_empty() { Err(Metadata) } else { Ok(left) }
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
        if !trust.metadata {
            builder = builder.dns_resolver(Arc::new(Elsewhere));
        }
        if trust.direct {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|fault| ConfigFault(format!("{named}: no connection can be set up: {}", root_cause(&fault))))?;
        Ok(Wire { http: HttpClient::new(client), clock, patience })
    }

    /// For builders of credential providers.
    pub(crate) fn connector(&self) -> Given {
        Given(self.clone())
    }

    /// What `provider` gives. Some answers make providers panic, which ends this question and nothing else.
    pub(crate) async fn lent<T: Send + Sync>(&self, provider: &dyn CredentialProvider<Credential = T>, within: Duration) -> Result<Arc<T>, NotLent> {
        let asking = AssertUnwindSafe(provider.get_credential()).catch_unwind();
        match self.clock.until(self.clock.deadline_in(within), asking).await {
            Some(Ok(lent)) => lent.map_err(NotLent::Refused),
            Some(Err(_)) => Err(NotLent::Odd),
            None => Err(NotLent::Silent),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn patience(&self) -> Patience {
        self.patience
    }

    /// A GET of `url`, which is a URL whose every part is percent-encoded already.
    pub(crate) fn request(url: &str, headers: HeaderMap, what: &str) -> Result<HttpRequest, Fault> {
        // Whoever signs or sends it takes this for certain.
        if let Err(fault) = Url::parse(url) {
            return Err(Fault::new(FaultKind::Config, what, format!("its address is no URL: {fault}")));
        }
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

    /// What an error's answer says; nothing where it cannot be read, all of it in the time that a silence may take.
    pub(crate) async fn error_text(&self, response: HttpResponse, what: &str) -> Vec<u8> {
        let reading = self.read(response, LARGEST_ERROR, what);
        let read = self.clock.until(self.clock.deadline_in(self.patience.silence), reading).await;
        read.and_then(Result::ok).unwrap_or_default()
    }
}

/// The body of an answer as it arrives.
pub(crate) fn frames(response: HttpResponse) -> BoxStream<'static, Result<Bytes, String>> {
    let frames = response.into_body().bytes_stream();
    frames.map(|frame| frame.map_err(|fault| format!("the connection broke: {}", root_cause(&fault)))).boxed()
}

/// Whether `url` names this very machine.
pub(crate) fn is_here(url: &Url) -> bool {
    match host(url) {
        Some("localhost") => true,
        // Whoever connects to no address at all gets to this machine.
        Some(host) => host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback() || ip.to_canonical().is_unspecified()),
        None => false,
    }
}

/// A host without what may stand around it.
fn host(url: &Url) -> Option<&str> {
    url.host_str().map(|host| host.trim_matches(['[', ']']).trim_end_matches('.'))
}

/// Whether others on the way may read what is sent to `url`: on this machine nobody is on the way.
pub(crate) fn in_the_open(url: &Url) -> bool {
    url.scheme() != "https" && !is_here(url)
}

/// Whether `url` names what is next to a machine of a cloud and hands out its identity: nobody's models lie there, and
/// whoever may name an address must not be given those answers.
pub(crate) fn is_metadata(url: &Url) -> bool {
    host(url).is_some_and(|host| matches!(host, "metadata" | "metadata.google.internal") || host.parse().is_ok_and(serves_metadata))
}

/// Whether metadata services are at such an address: link-local ones, and those of clouds that use others.
fn serves_metadata(ip: IpAddr) -> bool {
    const ALIBABAS: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
    const AZURES: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local() || ip == ALIBABAS || ip == AZURES,
        // Amazon's.
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.segments()[..2] == [0xfd00, 0xec2],
    }
}

/// An ETag without quotes and without the mark of weakness.
pub(crate) fn bare(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// The version that an ETag names: in quotes, and without the mark of weakness, with which no condition would hold.
pub(crate) fn quoted(etag: &str) -> Option<Version> {
    let bare = bare(etag);
    (!bare.is_empty()).then(|| Version(format!("\"{bare}\"")))
}

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
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = text(headers, "retry-after")?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(60)))
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

fn causes<'a>(fault: &'a (dyn std::error::Error + 'static)) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(fault), |cause| cause.source())
}

/// What is wrong with the other end's certificate. An I/O error hides what it is made of from the chain of causes.
fn distrust<'a>(fault: &'a (dyn std::error::Error + 'static)) -> Option<&'a CertificateError> {
    fn tls<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
        cause.downcast_ref().or_else(|| tls(cause.downcast_ref::<io::Error>()?.get_ref()?))
    }
    causes(fault).find_map(|cause| match tls(cause)? {
        rustls::Error::InvalidCertificate(why) => Some(why),
        _ => None,
    })
}

/// A text of somebody else's as one short line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

fn not_sent(fault: &HttpError, what: &str) -> Fault {
    let cause = one_line(&root_cause(fault));
    if let Some(why) = distrust(fault) {
        let (kind, hint) = untrusted(why);
        return Fault::new(kind, what, format!("{cause}{hint}"));
    }
    match fault.kind() {
        _ if causes(fault).any(|cause| cause.is::<Metadata>()) => Fault::new(FaultKind::Config, what, cause),
        HttpErrorKind::Connect => Fault::new(FaultKind::Away, what, format!("cannot connect: {cause}")),
        HttpErrorKind::Timeout => Fault::new(FaultKind::Away, what, format!("timed out: {cause}")),
        _ => Fault::new(FaultKind::Away, what, cause),
    }
}

/// What helps where a certificate is not taken. It may be another one, or the clock may be right, when it is looked at again;
/// waiting will not make an authority known, a file may.
fn untrusted(why: &CertificateError) -> (FaultKind, &'static str) {
    match why {
        CertificateError::UnknownIssuer => (FaultKind::Config, ": give the certificate of the store's authority in the storage config"),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            (FaultKind::Away, ": the store's certificate ended, or this machine's clock is wrong: renew the one or set the other")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            (FaultKind::Away, ": the store's certificate does not count yet, or this machine's clock is wrong: set the clock")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            (FaultKind::Away, ": the store's certificate is for another name: ask the store by a name that is in it")
        }
        _ => (FaultKind::Config, ""),
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
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use object_store::client::HttpResponseBody;

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
            ("http://[fd00:ec2::255]/", false, true),
            ("http://[fd00:ec3::254]/", false, false),
            ("http://100.100.100.200/latest", false, true),
            ("http://168.63.129.16/x", false, true),
            ("http://[::ffff:168.63.129.16]/x", false, true),
            ("http://metadata/x", false, true),
            ("http://metadata./x", false, true),
            ("http://metadata.example/x", false, false),
            ("http://localhost./x", true, false),
            ("http://0.0.0.0:9/x", true, false),
            ("http://[::ffff:127.0.0.1]/x", true, false),
            ("http://metadata.google.internal/x", false, true),
            ("http://Metadata.Google.Internal./x", false, true),
            ("https://models.example", false, false),
        ] {
            let url: Url = url.parse().expect("a URL");
            assert_eq!((is_here(&url), is_metadata(&url)), (here, metadata), "{url}");
            assert_eq!(in_the_open(&url), url.scheme() == "http" && !here, "{url}");
        }
    }

    /// Sends a byte a second, for ever.
    #[derive(Debug)]
    struct Dripping;

    #[async_trait]
    impl HttpService for Dripping {
        async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
            let drops = futures::stream::unfold((), |()| async {
                Clock::system().sleep(Duration::from_secs(1)).await;
                Some((Ok(Frame::data(Bytes::from_static(b"x"))), ()))
            });
            Ok(http::Response::new(HttpResponseBody::new(StreamBody::new(drops))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_not_waited_for_longer_than_a_silence() {
        let (clock, silence) = (Clock::system(), Duration::from_secs(10));
        let wire = Wire { http: HttpClient::new(Dripping), clock: clock.clone(), patience: Patience { connect: silence, silence } };
        let request = || Wire::request("http://h.example/", HeaderMap::new(), "x").expect("sound");
        let begun = clock.now();
        let response = wire.send(request(), "x").await.expect("a head");
        assert!(wire.error_text(response, "x").await.is_empty());
        assert_eq!(clock.now() - begun, silence);
        let fault = Short(wire).call(request()).await.map(|_| ()).expect_err("no end");
        assert_eq!((fault.kind(), clock.now() - begun), (HttpErrorKind::Timeout, 2 * silence));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_metadata_service_leads_nowhere() {
        let addresses = |list: &[&str]| list.iter().map(|ip| SocketAddr::new(ip.parse().expect("an address"), 0)).collect::<Vec<_>>();
        for (found, left) in [
            (&["10.0.0.1", "2001:db8::1"][..], Ok(addresses(&["10.0.0.1", "2001:db8::1"]))),
            (&["169.254.169.254", "10.0.0.1", "fe80::1", "fd00:ec2::23"], Ok(addresses(&["10.0.0.1"]))),
            (&["169.254.169.254", "::ffff:169.254.169.254"], Err(Metadata)),
            (&["100.100.100.200"], Err(Metadata)),
            (&["168.63.129.16"], Err(Metadata)),
            (&[], Ok(vec![])),
        ] {
            assert_eq!(elsewhere(addresses(found).into_iter()), left, "{found:?}");
        }
        let resolved = |name: &str| Elsewhere.resolve(name.parse().expect("a name"));
        assert!(resolved("localhost").await.is_ok_and(|mut found| found.next().is_some()));
        assert!(resolved("169.254.169.254").await.map(|_| ()).expect_err("metadata").is::<Metadata>());
    }

    #[test]
    fn a_certificate_that_is_not_taken_says_what_helps_and_may_be_another_one_later() {
        use CertificateError::{BadSignature, Expired, NotValidForName, NotValidYet, UnknownIssuer};
        for (why, kind, hint) in [
            (UnknownIssuer, FaultKind::Config, "give the certificate of the store's authority"),
            (Expired, FaultKind::Away, "the store's certificate ended"),
            (NotValidYet, FaultKind::Away, "set the clock"),
            (NotValidForName, FaultKind::Away, "is for another name"),
            (BadSignature, FaultKind::Config, "BadSignature"),
        ] {
            // As the layers below wrap it.
            let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::InvalidCertificate(why)));
            let fault = not_sent(&HttpError::new(HttpErrorKind::Connect, wrapped), "x");
            assert!(fault.kind == kind && fault.why.contains("invalid peer certificate") && fault.why.contains(hint), "{fault}");
            assert_eq!(fault.why.contains("authority"), hint.contains("authority"), "{fault}");
        }
        let fault = not_sent(&HttpError::new(HttpErrorKind::Connect, Metadata), "x");
        assert!(fault.kind == FaultKind::Config && fault.why.contains("metadata service"), "{fault}");
    }
}
