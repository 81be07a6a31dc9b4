//! A small S3 store in this process, for tests: it pages, ranges, holds versions apart, and misbehaves on demand.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use berth_telemetry::{HostNet, Net as _};
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

pub(crate) const BUCKET: &str = "bucket";
pub(crate) const KEY_ID: &str = "AKIDTEST";
pub(crate) const SECRET: &str = "verySecretIndeed";

type Body = BoxBody<Bytes, io::Error>;

/// What happens to a request instead of its answer.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// Another status, with an S3 error code.
    Status(u16, &'static str),
    /// The body breaks off after this many bytes.
    Truncate(usize),
    /// One bit of the body is flipped.
    Garble,
    /// The object is replaced before it is answered for.
    Replace(Vec<u8>),
    /// The answer waits for [`Store::let_go`].
    Hold,
    /// The answer begins, and then nothing comes: half the bytes of a whole object, none of a range.
    Stall,
    /// Something that is not S3.
    Page(&'static str),
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Bytes>,
    troubles: Vec<(String, Trouble, usize)>,
    requests: Vec<String>,
}

/// The store. It serves until the test's runtime ends.
pub(crate) struct Store {
    addr: SocketAddr,
    state: Mutex<State>,
    gate: Semaphore,
    page: usize,
    public: bool,
    scheme: &'static str,
}

impl Store {
    pub(crate) async fn start() -> Arc<Self> {
        Self::serve(1000, false, None).await
    }

    pub(crate) async fn public() -> Arc<Self> {
        Self::serve(1000, true, None).await
    }

    pub(crate) async fn over_tls(acceptor: TlsAcceptor) -> Arc<Self> {
        Self::serve(1000, false, Some(acceptor)).await
    }

    async fn serve(page: usize, public: bool, tls: Option<TlsAcceptor>) -> Arc<Self> {
        let listener = HostNet.listen("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let store = Arc::new(Store { addr, state: Mutex::default(), gate: Semaphore::new(0), page, public, scheme });
        let serving = Arc::clone(&store);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (store, tls) = (Arc::clone(&serving), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => store.connection(stream).await,
                        // A client that does not trust us hangs up here.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                store.connection(stream).await;
                            }
                        }
                    }
                });
            }
        });
        store
    }

    async fn connection(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = service_fn(|request| {
            let store = Arc::clone(&self);
            async move { Ok::<_, Infallible>(store.answer(request).await) }
        });
        // A body that breaks off on purpose ends the connection with an error.
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    pub(crate) fn put(&self, key: &str, bytes: impl Into<Bytes>) {
        self.state.lock().objects.insert(key.to_owned(), bytes.into());
    }

    /// The next `times` requests whose path and query contain `part` run into `trouble`.
    pub(crate) fn trouble(&self, part: &str, trouble: Trouble, times: usize) {
        self.state.lock().troubles.push((part.to_owned(), trouble, times));
    }

    pub(crate) fn let_go(&self, requests: usize) {
        self.gate.add_permits(requests);
    }

    /// Requests so far: `GET <path>?<query> <range>`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().requests.clone()
    }

    /// How many requests had `part` in them.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.state.lock().requests.iter().filter(|line| line.contains(part)).count()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let target = request.uri().to_string();
        let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let range = header("range");
        let trouble = {
            let mut state = self.state.lock();
            state.requests.push(format!("{} {target} {range}", request.method()));
            let due = state.troubles.iter_mut().find(|(part, _, times)| *times > 0 && target.contains(part.as_str()));
            due.map(|(_, trouble, times)| {
                *times -= 1;
                trouble.clone()
            })
        };
        let authorization = header("authorization");
        if !self.public && !authorization.contains(&format!("Credential={KEY_ID}/")) {
            return error(StatusCode::FORBIDDEN, "InvalidAccessKeyId");
        }
        if self.public && !authorization.is_empty() {
            return error(StatusCode::BAD_REQUEST, "InvalidRequest");
        }
        let path = request.uri().path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return error(StatusCode::NOT_FOUND, "NoSuchBucket");
        }
        let key = decode(key);
        match &trouble {
            Some(Trouble::Status(status, code)) => return error(StatusCode::from_u16(*status).expect("a status"), code),
            Some(Trouble::Page(text)) => return Response::new(full(text.as_bytes().to_vec())),
            Some(Trouble::Hold) => self.gate.acquire().await.expect("never closed").forget(),
            Some(Trouble::Replace(bytes)) => self.put(&key, bytes.clone()),
            _ => {}
        }
        if key.is_empty() {
            return Response::new(full(self.list(request.uri().query().unwrap_or_default()).into_bytes()));
        }
        let Some(object) = self.state.lock().objects.get(&key).cloned() else { return error(StatusCode::NOT_FOUND, "NoSuchKey") };
        let etag = etag(&object);
        let if_match = header("if-match");
        if !if_match.is_empty() && if_match != etag {
            return error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        let total = object.len();
        if total == 0 && !range.is_empty() {
            let answer = Response::builder().status(StatusCode::RANGE_NOT_SATISFIABLE).header("content-range", "bytes */0");
            return answer.body(full("")).expect("sound");
        }
        let (part, status) = match range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) {
            None => (object, StatusCode::OK),
            Some((first, last)) => {
                let (first, last): (usize, usize) = (first.parse().expect("a number"), last.parse().expect("a number"));
                (object.slice(first..(last + 1).min(total)), StatusCode::PARTIAL_CONTENT)
            }
        };
        let mut answer = Response::builder().status(status).header("etag", etag).header("content-length", part.len());
        if let Some((first, _)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) {
            let last = first.parse::<usize>().expect("a number") + part.len() - 1;
            answer = answer.header("content-range", format!("bytes {first}-{last}/{total}"));
        }
        answer.body(body(part, status, trouble)).expect("sound")
    }

    fn list(&self, query: &str) -> String {
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(&format!("{name}="))).map(decode).unwrap_or_default();
        let (prefix, after) = (value("prefix"), value("continuation-token"));
        let state = self.state.lock();
        let matching: Vec<(&String, &Bytes)> =
            state.objects.iter().filter(|(key, _)| key.starts_with(&prefix) && key.as_str() > after.as_str()).collect();
        let contents: String = matching
            .iter()
            .take(self.page)
            .map(|(key, bytes)| {
                let key = key.replace('&', "&amp;").replace('<', "&lt;").replace('\u{7}', "&#x7;");
                let etag = etag(bytes).replace('"', "&quot;");
                format!("<Contents><Key>{key}</Key><ETag>{etag}</ETag><Size>{}</Size></Contents>", bytes.len())
            })
            .collect();
        let truncated = matching.len() > self.page;
        let next = if truncated { format!("<NextContinuationToken>{}</NextContinuationToken>", matching[self.page - 1].0) } else { String::new() };
        format!("<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>{truncated}</IsTruncated>{next}{contents}</ListBucketResult>")
    }
}

pub(crate) fn etag(bytes: &[u8]) -> String {
    let hex = Md5::digest(bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    format!("\"{hex}\"")
}

fn body(bytes: Bytes, status: StatusCode, trouble: Option<Trouble>) -> Body {
    let frame = |bytes: Bytes| Ok::<_, io::Error>(Frame::data(bytes));
    match trouble {
        Some(Trouble::Truncate(after)) => {
            let broken = async {
                tokio::task::yield_now().await; // what came before is sent in the meantime
                Err(io::Error::other("broken on purpose"))
            };
            let first = futures::stream::iter([frame(bytes.slice(..after.min(bytes.len())))]);
            BodyExt::boxed(StreamBody::new(first.chain(futures::stream::once(broken))))
        }
        Some(Trouble::Garble) => {
            let mut garbled = bytes.to_vec();
            if let Some(byte) = garbled.last_mut() {
                *byte ^= 1;
            }
            full(garbled)
        }
        Some(Trouble::Stall) => {
            let half = if status == StatusCode::OK { bytes.len() / 2 } else { 0 };
            BodyExt::boxed(StreamBody::new(futures::stream::iter([frame(bytes.slice(..half))]).chain(futures::stream::pending())))
        }
        _ => full(bytes),
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

fn error(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>");
    Response::builder().status(status).body(full(text)).expect("sound")
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let hex = [rest.next().expect("a digit"), rest.next().expect("a digit")];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&hex).expect("ASCII"), 16).expect("hex"));
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}
