//! Against a small web server in this process: one that knows versions and ranges or does not, and sends its clients about.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use berth_telemetry::{HostNet, Net as _};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::suite::{Shelf, conforms};
use crate::{Open as _, Settings, Stores, Verify, Version};

const PATIENCE: Patience = Patience { connect: Duration::from_secs(20), silence: Duration::from_secs(20) };
const KEY: (&str, &str) = ("x-key", "sEcReT");

/// What the server tells about its files, and minds.
#[derive(Clone, Copy, Debug)]
struct Manner {
    etag: bool,
    dated: bool,
    ranges: bool,
    conditions: bool,
}

const BEST: Manner = Manner { etag: true, dated: true, ranges: true, conditions: true };

/// Status, headers and text of a scripted answer. Without a length the text comes as long as it comes.
#[derive(Clone, Default)]
struct Scripted {
    status: u16,
    headers: Vec<(&'static str, String)>,
    text: &'static str,
    unmeasured: bool,
}

fn moved(to: impl Into<String>) -> Scripted {
    Scripted { status: 302, headers: vec![("location", to.into())], text: "look there", ..Scripted::default() }
}

/// One request, as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// Path and query as they came.
    target: String,
    /// Host name without port.
    host: String,
    key: String,
    authorization: String,
    /// Whether the client showed a certificate.
    known: bool,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, (Bytes, u32)>,
    puts: u32,
    scripts: BTreeMap<String, Scripted>,
    seen: Vec<Seen>,
}

struct Site {
    addr: SocketAddr,
    scheme: &'static str,
    manner: Manner,
    state: Mutex<State>,
}

impl Site {
    async fn start(manner: Manner) -> Arc<Self> {
        Self::serve(manner, None).await
    }

    async fn serve(manner: Manner, tls: Option<TlsAcceptor>) -> Arc<Self> {
        let listener = HostNet.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let site = Arc::new(Site { addr: listener.local_addr().expect("bound"), scheme, manner, state: Mutex::default() });
        let serving = Arc::clone(&site);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (site, tls) = (Arc::clone(&serving), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => site.connection(stream, false).await,
                        // A client that does not trust us hangs up here.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                let known = stream.get_ref().1.peer_certificates().is_some();
                                site.connection(stream, known).await;
                            }
                        }
                    }
                });
            }
        });
        site
    }

    async fn connection(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin, known: bool) {
        let service = service_fn(|request: Request<Incoming>| {
            let answer = self.answer(&request, known);
            async move { Ok::<_, Infallible>(answer) }
        });
        // A client that hangs up is none of our business.
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    /// The address of `path` under another of this machine's names.
    fn url(&self, host: &str, path: &str) -> String {
        format!("{}://{host}:{}{path}", self.scheme, self.addr.port())
    }

    fn put(&self, path: &str, bytes: impl Into<Bytes>) {
        let mut state = self.state.lock();
        state.puts += 1;
        let put = state.puts;
        state.files.insert(path.to_owned(), (bytes.into(), put));
    }

    fn script(&self, target: &str, scripted: Scripted) {
        self.state.lock().scripts.insert(target.to_owned(), scripted);
    }

    /// What was asked for since the last time.
    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().seen)
    }

    fn answer(&self, request: &Request<Incoming>, known: bool) -> Response<BoxBody<Bytes, io::Error>> {
        let header = |name: &str| text(request.headers(), name).unwrap_or_default().to_owned();
        let target = request.uri().to_string();
        let mut state = self.state.lock();
        let host = header("host").split(':').next().unwrap_or_default().to_owned();
        state.seen.push(Seen { target: target.clone(), host, key: header(KEY.0), authorization: header("authorization"), known });
        if let Some(scripted) = state.scripts.get(&target).cloned() {
            let mut answer = Response::builder().status(scripted.status);
            for (name, value) in &scripted.headers {
                answer = answer.header(*name, value);
            }
            return answer.body(if scripted.unmeasured { unmeasured(scripted.text) } else { full(scripted.text) }).expect("sound");
        }
        let path = decoded(request.uri().path());
        let Some((bytes, put)) = path.strip_prefix("/files/").and_then(|path| state.files.get(path)) else {
            return Response::builder().status(404).body(full("<html>sEcReT page</html>")).expect("sound");
        };
        if path.contains("guarded") && header(KEY.0) != KEY.1 {
            return Response::builder().status(403).body(full("")).expect("sound");
        }
        let Manner { etag, dated, ranges, conditions } = self.manner;
        let (tag, date) = (format!("\"put-{put}\""), format!("Wed, 21 Oct 2015 07:28:{put:02} GMT"));
        let failed = |name: &str, current: &str| !header(name).is_empty() && header(name) != current;
        if conditions && (failed("if-match", &tag) || failed("if-unmodified-since", &date)) {
            return Response::builder().status(412).body(full("")).expect("sound");
        }
        let mut answer = Response::builder();
        if etag {
            answer = answer.header("etag", tag);
        }
        if dated {
            answer = answer.header("last-modified", date);
        }
        let range = header("range");
        let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')).filter(|_| ranges) else {
            return answer.body(full(bytes.clone())).expect("sound");
        };
        let (first, last): (usize, usize) = (first.parse().expect("a number"), last.parse().expect("a number"));
        if first >= bytes.len() {
            return answer.status(416).header("content-range", format!("bytes */{}", bytes.len())).body(full("")).expect("sound");
        }
        let end = bytes.len().min(last.saturating_add(1));
        let answer = answer.status(206).header("content-range", format!("bytes {first}-{}/{}", end - 1, bytes.len()));
        answer.body(full(bytes.slice(first..end))).expect("sound")
    }
}

fn full(bytes: impl Into<Bytes>) -> BoxBody<Bytes, io::Error> {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn unmeasured(text: &'static str) -> BoxBody<Bytes, io::Error> {
    BodyExt::boxed(StreamBody::new(futures::stream::iter([Ok::<_, io::Error>(Frame::data(Bytes::from_static(text.as_bytes())))])))
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().expect("a digit"), rest.next().expect("a digit")];
                u8::from_str_radix(std::str::from_utf8(&digits).expect("ASCII"), 16).expect("hexadecimal")
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes).expect("UTF-8")
}

fn settings(url: &str, more: Value) -> WebSettings {
    let Value::Object(mut entry) = more else { panic!("{more}") };
    entry.insert("url".to_owned(), json!(url));
    WebSettings::parse(&entry, "storage config k").unwrap_or_else(|fault| panic!("{fault}"))
}

fn remote(url: &str, more: Value) -> Arc<dyn Remote> {
    Stores::new(PATIENCE, Clock::system()).open(&Settings::Web(settings(url, more))).expect("sound")
}

fn whole(key: &str) -> Ask<'_> {
    Ask { key, range: None, version: None }
}

async fn body(answer: Answer) -> Vec<u8> {
    let mut frames = answer.frames;
    let mut bytes = Vec::new();
    while let Some(frame) = frames.next().await {
        bytes.extend_from_slice(&frame.expect("a sound connection"));
    }
    bytes
}

async fn fault(remote: &Arc<dyn Remote>, key: &str) -> Fault {
    remote.get(whole(key)).await.map(|_| ()).expect_err("refused")
}

struct Files {
    site: Arc<Site>,
}

#[async_trait]
impl Shelf for Files {
    fn remote(&self) -> Arc<dyn Remote> {
        remote(&self.site.url("127.0.0.1", "/files"), json!({}))
    }
    async fn put(&self, key: &str, bytes: Bytes) {
        self.site.put(key, bytes);
    }
    async fn remove(&self, key: &str) {
        self.site.state.lock().files.remove(key);
    }
}

#[tokio::test]
async fn every_manner_of_web_server_conforms() {
    for manner in [
        BEST,
        Manner { etag: false, ..BEST },
        Manner { conditions: false, ..BEST },
        Manner { etag: false, conditions: false, ..BEST },
        Manner { ranges: false, ..BEST },
        Manner { etag: false, dated: false, ..BEST },
        Manner { etag: false, dated: false, ranges: false, conditions: false },
    ] {
        let files = Files { site: Site::start(manner).await };
        conforms(&files).await;
        let object = files.remote().get(whole("suite/ranges")).await.expect("answered").object;
        assert_eq!(object.version.is_some(), manner.etag || manner.dated, "{manner:?}");
    }
}

#[tokio::test]
async fn a_path_goes_to_the_end_of_the_urls_path_and_the_query_stays() {
    let site = Site::start(BEST).await;
    for (url, key, target) in [
        ("/files", "m/a.bin", "/files/m/a.bin"),
        ("/files/", "m/a.bin", "/files/m/a.bin"),
        ("", "a.bin", "/a.bin"),
        ("/", "/a.bin", "/a.bin"),
        ("/files", "a b+c%20ü?#.bin", "/files/a%20b%2Bc%2520%C3%BC%3F%23.bin"),
        ("/a%20b/%2F/c", "x", "/a%20b/%2F/c/x"),
        ("/files?sig=a%2Fb&x", "m", "/files/m?sig=a%2Fb&x"),
        ("/files/m.bin?sig=a%2Fb", "", "/files/m.bin?sig=a%2Fb"),
        ("?sig=1", "m", "/m?sig=1"),
        ("/files#fragment", "m", "/files/m"),
    ] {
        let remote = remote(&site.url("127.0.0.1", url), json!({}));
        let fault = fault(&remote, key).await;
        assert_eq!(fault.kind, FaultKind::Missing);
        let seen: Vec<String> = site.seen().into_iter().map(|seen| seen.target).collect();
        assert_eq!(seen, [target], "{url} {key}");
    }
    for key in ["..", "m/../../x", "./m"] {
        let fault = fault(&remote(&site.url("127.0.0.1", "/files"), json!({})), key).await;
        assert_eq!(fault.kind, FaultKind::Config, "{key}");
    }
    assert_eq!(site.seen(), []);
}

#[tokio::test]
async fn redirects_are_followed_and_show_what_the_entry_holds_to_its_own_hosts_only() {
    let site = Site::start(BEST).await;
    site.put("m", "model");
    site.script("/same", moved("files/m"));
    site.script("/away", moved(site.url("localhost", "/files/m?token=sEcReT")));
    site.script("/back", moved(site.url("localhost", "/round")));
    site.script("/round", moved(site.url("127.0.0.1", "/files/m")));
    site.script("/login", moved(site.url("user:pass@localhost", "/files/m")));
    let held = json!({"headers": {KEY.0: KEY.1}});
    let lent = json!({"headers": {KEY.0: KEY.1}, "allowed_hosts": ["localhost"]});
    let (own, other) = ("127.0.0.1", "localhost");
    for (path, entry, expected) in [
        ("same", &held, &[(own, true), (own, true)][..]),
        ("away", &held, &[(own, true), (other, false)]),
        ("away", &lent, &[(own, true), (other, true)]),
        ("back", &held, &[(own, true), (other, false), (own, false)]),
        ("back", &lent, &[(own, true), (other, true), (own, true)]),
        ("login", &held, &[(own, true), (other, false)]),
    ] {
        let remote = remote(&site.url(own, ""), entry.clone());
        let answer = remote.get(whole(path)).await.unwrap_or_else(|fault| panic!("{path}: {fault}"));
        assert_eq!(answer.object.key, path);
        assert_eq!(body(answer).await, b"model", "{path}");
        let seen = site.seen();
        assert!(seen.iter().all(|seen| seen.authorization.is_empty()), "{seen:?}");
        let seen: Vec<(&str, bool)> = seen.iter().map(|seen| (seen.host.as_str(), !seen.key.is_empty())).collect();
        assert_eq!(seen, expected, "{path} {entry}");
    }
}

#[tokio::test]
async fn a_redirect_that_leads_nowhere_is_the_configurations_fault() {
    let site = Site::start(BEST).await;
    site.put("m", "model");
    site.script("/round", moved("/round"));
    for i in 0..10 {
        site.script(&format!("/ten/{i}"), moved(if i == 9 { "/files/m".to_owned() } else { format!("/ten/{}", i + 1) }));
    }
    site.script("/eleven", moved("/ten/0"));
    site.script("/none", Scripted { status: 301, ..Scripted::default() });
    site.script("/ftp", moved("ftp://h.example/m"));
    site.script("/odd", moved("http://["));
    site.script("/inside", moved("http://169.254.169.254/latest/meta-data/"));
    site.script("/cached", Scripted { status: 304, ..Scripted::default() });
    site.script("/gone", moved("/files/none?token=sEcReT"));
    let remote = remote(&site.url("127.0.0.1", ""), json!({}));
    assert_eq!(body(remote.get(whole("ten/0")).await.expect("ten are fine")).await, b"model");
    for (path, kind, text) in [
        ("round", FaultKind::Config, "redirected more than 10 times"),
        ("eleven", FaultKind::Config, "redirected more than 10 times"),
        ("none", FaultKind::Config, "HTTP 301 redirect without a place to go to"),
        ("ftp", FaultKind::Config, "redirect to ftp://, which is not http or https"),
        ("odd", FaultKind::Config, "redirect to something that is no URL"),
        ("inside", FaultKind::Config, "HTTP 302 redirect to the address of a metadata service, which is no store"),
        ("cached", FaultKind::Config, "HTTP 304 Not Modified"),
        ("gone", FaultKind::Missing, "/files/none: HTTP 404 Not Found"),
    ] {
        let fault = fault(&remote, path).await;
        assert_eq!(fault.kind, kind, "{fault}");
        let start = format!("object {path:?} of http://127.0.0.1:{}", site.addr.port());
        assert!(fault.to_string().starts_with(&start) && fault.to_string().contains(text), "{fault}");
        assert!(!fault.to_string().contains("sEcReT"), "{fault}");
    }
    assert_eq!(site.seen().iter().filter(|seen| seen.target == "/round").count(), 11);
}

#[test]
fn only_this_machine_sends_on_to_this_machine() {
    for (at, to, followed) in [
        ("https://models.example/m", "http://127.0.0.1:9/admin", false),
        ("https://models.example/m", "http://localhost/admin", false),
        ("https://models.example/m", "//[::1]/admin", false),
        ("https://models.example/m", "http://0.0.0.0:9/admin", false),
        ("https://models.example/m", "http://metadata/x", false),
        ("https://models.example/m", "http://10.0.0.1/m", true),
        ("https://models.example/m", "/other", true),
        ("http://127.0.0.1:9/m", "http://localhost/m", true),
    ] {
        let headers = std::iter::once((header::LOCATION, to.parse().expect("a value"))).collect();
        let next = next(&at.parse().expect("a URL"), &headers);
        assert_eq!(next.is_ok(), followed, "{at} {to}: {next:?}");
    }
}

/// A server whose certificate is for other names is known by its authority: it may get another one.
#[tokio::test]
async fn a_certificate_for_another_name_is_told_from_an_unknown_authority() {
    let (site, entry) = over_tls_as(&["other.example"]).await;
    let trusting = json!({"certificate": entry["certificate"]});
    let fault_of = async |entry| fault(&remote(&site.url("127.0.0.1", ""), entry), "m").await;
    let fault = fault_of(trusting).await;
    assert!(fault.kind == FaultKind::Away && fault.why.contains("is for another name"), "{fault}");
    let fault = fault_of(json!({})).await;
    assert!(fault.kind == FaultKind::Config && fault.why.contains("give the certificate of the store's authority"), "{fault}");
}

#[tokio::test]
async fn an_answer_is_judged_by_what_the_caller_can_do_about_it() {
    use FaultKind::{Away, Changed, Config, Corrupt, Denied, Missing};
    let site = Site::start(BEST).await;
    let remote = remote(&site.url("127.0.0.1", ""), json!({"headers": {KEY.0: KEY.1}}));
    let busy = FaultKind::Busy { pause: Some(Duration::from_secs(3)) };
    for (status, expected, text) in [
        (404, Missing, "HTTP 404 Not Found"),
        (410, Missing, "HTTP 410 Gone"),
        (401, Denied, "check headers, user and client certificate of storage config k"),
        (403, Denied, "check headers, user and client certificate of storage config k"),
        (407, Denied, "the proxy on the way wants a credential"),
        (412, Changed, "it changed since it was first asked for"),
        (429, busy, "HTTP 429"),
        (503, busy, "HTTP 503"),
        (500, Away, "HTTP 500"),
        (502, Away, "HTTP 502"),
        (504, Away, "HTTP 504"),
        (408, Away, "HTTP 408"),
        (501, Config, "the server cannot do that"),
        (400, Config, "check url, headers and client certificate of storage config k"),
        (405, Config, "HTTP 405"),
        (204, Config, "the answer has no content"),
        (299, Config, "HTTP 299 the answer has no content"),
    ] {
        let text_of = "<html>sEcReT</html>";
        let headers = vec![("retry-after", "3".to_owned())];
        site.script("/m", Scripted { status, headers, text: if status == 204 { "" } else { text_of }, ..Scripted::default() });
        let fault = fault(&remote, "m").await;
        assert_eq!((fault.kind, fault.status), (expected, Some(status)), "{status}: {fault}");
        assert!(fault.to_string().contains(text) && !fault.to_string().contains("sEcReT"), "{fault}");
    }
    for (scripted, kind, text) in [
        (Scripted { status: 200, text: "model", unmeasured: true, ..Scripted::default() }, Config, "the answer has no Content-Length"),
        (Scripted { status: 206, text: "model", ..Scripted::default() }, Corrupt, "the store answered with the range \"\""),
        (
            Scripted { status: 206, headers: vec![("content-range", "bytes 0-4/*".to_owned())], text: "model", ..Scripted::default() },
            Corrupt,
            "bytes 0-4/*",
        ),
    ] {
        site.script("/m", scripted);
        let fault = fault(&remote, "m").await;
        assert!(fault.kind == kind && fault.to_string().contains(text), "{fault}");
    }
    let fault = remote.list("m", None).await.expect_err("no listing");
    assert!(!remote.lists() && fault.kind == Config, "{fault}");
}

#[tokio::test]
async fn a_range_that_is_refused_makes_no_empty_file() {
    let site = Site::start(BEST).await;
    let remote = remote(&site.url("127.0.0.1", ""), json!({}));
    let refused = |total: Option<&str>| Scripted {
        status: 416,
        headers: total.map(|total| ("content-range", format!("bytes */{total}"))).into_iter().collect(),
        ..Scripted::default()
    };
    let ask = |range| Ask { key: "m", range: Some(range), version: None };
    let (start, later) = (0..10, 5..10);
    site.script("/m", refused(Some("0")));
    for range in [&start, &later] {
        let answer = remote.get(ask(range)).await.expect("it is empty");
        assert_eq!((answer.range, answer.object.size), (0..0, ByteSize::ZERO));
    }
    for total in [None, Some("7")] {
        site.script("/m", refused(total));
        site.seen();
        assert_eq!(remote.get(ask(&later)).await.map(|_| ()).expect_err("shorter").kind, FaultKind::Changed);
        assert_eq!(site.seen().len(), 1);
        let fault = remote.get(ask(&start)).await.map(|_| ()).expect_err("refused");
        assert_eq!((fault.kind, fault.status, site.seen().len()), (FaultKind::Config, Some(416), 2), "asked again without a range: {fault}");
    }
}

#[tokio::test]
async fn a_server_that_minds_no_condition_is_seen_through() {
    let site = Site::start(Manner { conditions: false, ..BEST }).await;
    site.put("m", "one");
    let remote = remote(&site.url("127.0.0.1", "/files"), json!({}));
    let version = remote.get(whole("m")).await.expect("answered").object.version.expect("an ETag");
    site.put("m", "two");
    for seen in [version, Version("Wed, 21 Oct 2015 07:28:01 GMT/3".to_owned()), Version("odd".to_owned())] {
        let outcome = remote.get(Ask { key: "m", range: None, version: Some(&seen) }).await.map(|_| ());
        assert_eq!(outcome.expect_err("another version").kind, FaultKind::Changed);
    }
}

#[tokio::test]
async fn what_is_secret_is_in_no_text() {
    let site = Site::start(BEST).await;
    site.put("guarded", "model");
    let listener = HostNet.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let nobody = listener.local_addr().expect("bound").port();
    drop(listener);
    let mut texts = Vec::new();
    for port in [site.addr.port(), nobody] {
        let url = format!("http://user:sEcReT@127.0.0.1:{port}/files?sig=sEcReT");
        let settings = settings(&url, json!({"headers": {"x-other": "sEcReT"}}));
        texts.push(format!("{settings:?} {}", settings.identity()));
        let remote = Stores::new(PATIENCE, Clock::system()).open(&Settings::Web(settings)).expect("sound");
        texts.push(format!("{remote:?} {}", remote.place()));
        for key in ["guarded", "none", ""] {
            let fault = fault(&remote, key).await;
            texts.push(format!("{fault} {fault:?}"));
        }
    }
    for text in texts {
        assert!(!text.contains("sEcReT") && !text.contains("c0VjUmVU") && !text.contains("sig="), "{text}");
    }
    let seen = site.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.authorization == "Basic dXNlcjpzRWNSZVQ="), "{seen:?}");
    let settings = settings(&site.url("127.0.0.1", "/files"), json!({"headers": {KEY.0: [KEY.1]}, "verify": "length"}));
    assert_eq!(settings.verify, Verify::Length);
    let remote = Stores::new(PATIENCE, Clock::system()).open(&Settings::Web(settings)).expect("sound");
    assert_eq!(body(remote.get(whole("guarded")).await.expect("it opens")).await, b"model");
}

/// A server under both of this machine's names.
async fn over_tls() -> (Arc<Site>, Value) {
    over_tls_as(&["127.0.0.1", "localhost"]).await
}

/// A server that an authority signed for under these names, and the entry of a client that the authority signed for, too.
async fn over_tls_as(names: &[&str]) -> (Arc<Site>, Value) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("signed");
    let signed = |names: &[&str]| {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).expect("names");
        (params.signed_by(&key, &authority).expect("signed"), key)
    };
    let (server, client) = (signed(names), signed(&["client"]));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority.der().to_vec())).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.allow_unauthenticated().build().expect("sound");
    let key = PrivateKeyDer::try_from(server.1.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![CertificateDer::from(server.0.der().to_vec())], key)
        .expect("sound");
    let site = Site::serve(BEST, Some(TlsAcceptor::from(Arc::new(config)))).await;
    let entry = json!({"certificate": authority.pem(), "client_certificate": client.0.pem(), "client_key": client.1.serialize_pem()});
    (site, entry)
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_entrys_own_hosts_only() {
    let (site, entry) = over_tls().await;
    site.put("m", "model");
    site.script("/away", moved(site.url("localhost", "/files/m")));
    let mut lent = entry.clone();
    lent["allowed_hosts"] = json!("localhost");
    let trusting = json!({"certificate": entry["certificate"]});
    for (path, entry, expected) in
        [("files/m", &entry, &[true][..]), ("files/m", &trusting, &[false]), ("away", &entry, &[true, false]), ("away", &lent, &[true, true])]
    {
        let remote = remote(&site.url("127.0.0.1", ""), entry.clone());
        let answer = remote.get(whole(path)).await.unwrap_or_else(|fault| panic!("{path}: {fault}"));
        assert_eq!(body(answer).await, b"model");
        let known: Vec<bool> = site.seen().iter().map(|seen| seen.known).collect();
        assert_eq!(known, expected, "{path}");
    }
    let fault = fault(&remote(&site.url("127.0.0.1", ""), json!({})), "files/m").await;
    assert_eq!(fault.kind, FaultKind::Config, "{fault}");
    assert!(fault.to_string().contains("certificate"), "{fault}");
}

#[tokio::test]
async fn nothing_that_an_entry_holds_goes_from_https_to_http() {
    let (site, entry) = over_tls().await;
    let plain = Site::start(BEST).await;
    plain.put("m", "model");
    site.script("/down", moved(plain.url("127.0.0.1", "/files/m?token=sEcReT")));
    let trusting = json!({"certificate": entry["certificate"]});
    let mut with_header = trusting.clone();
    with_header["headers"] = json!({KEY.0: KEY.1});
    let upwards = with_header.clone();
    with_header["allowed_hosts"] = json!(["127.0.0.1", plain.url("127.0.0.1", "")]);
    for held in [entry, with_header] {
        let fault = fault(&remote(&site.url("127.0.0.1", ""), held), "down").await;
        assert!(fault.kind == FaultKind::Config && fault.to_string().contains("no redirect from https to http is followed"), "{fault}");
        assert!(!fault.to_string().contains("sEcReT"), "{fault}");
    }
    assert_eq!(plain.seen(), []);
    // Without either there is nothing to lose.
    let answer = remote(&site.url("127.0.0.1", ""), trusting).get(whole("down")).await.expect("followed");
    assert_eq!(body(answer).await, b"model");
    // The other way is open, and what the entry holds goes along where the host is allowed.
    site.put("m", "model");
    plain.script("/up", moved(site.url("127.0.0.1", "/files/m")));
    let mut allowed = upwards;
    allowed["allowed_hosts"] = json!([site.url("127.0.0.1", "")]);
    let answer = remote(&plain.url("127.0.0.1", ""), allowed).get(whole("up")).await.expect("followed");
    assert_eq!(body(answer).await, b"model");
    assert_eq!(site.seen().last().map(|seen| seen.key.clone()), Some(KEY.1.to_owned()));
}
