//! Accepting connections and ending them: the same for every port.
//!
//! A connection is worth its descriptor while it asks for something: one that does not bring its handshake and a whole head
//! (or the preface of HTTP/2) in time is cut off, an HTTP/1 connection may rest between requests for a while, and an HTTP/2 connection
//! stays while it answers pings. A port has so many connections and no more; further ones are closed as they come, so that
//! their clients turn elsewhere at once instead of waiting in the system's queue. A client that speaks TLS where there is
//! none, or none where there is, is cut off as soon as its first bytes are there; the log says so now and then.
//!
//! A port stops in order: it accepts no more, tells each connection, and ends when the last answer is out. Dropping the
//! future of [`serve`] cuts what is left.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use berth_telemetry::{Clock, Listener};
use berth_types::ByteSize;
use berth_upstream::Gather;
use bytes::Bytes;
use futures::FutureExt as _;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::ProxyConfig;
use crate::cores::Place;
use crate::first::{self, Glimpse, Heads, Protocol, Replay};
use crate::tls::{ClientIdentity, Refusal, Speaks, Tls};

/// Where connections come in: a socket, and the TLS that its clients speak.
pub struct Door {
    listener: Listener,
    tls: Option<Tls>,
    speaks: Speaks,
}

impl Door {
    /// A port; `None` speaks no TLS.
    #[must_use]
    pub fn new(listener: Listener, tls: Option<Tls>) -> Self {
        Door { listener, tls, speaks: Speaks::Rest }
    }

    /// The same for gRPC only.
    pub(crate) fn for_grpc(self) -> Self {
        Door { speaks: Speaks::Grpc, ..self }
    }
}

impl From<Listener> for Door {
    fn from(listener: Listener) -> Self {
        Door::new(listener, None)
    }
}

/// A body that goes out.
pub(crate) trait Outbound: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static {}
impl<B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static> Outbound for B {}

/// Something that answers the requests of a port.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    type Body: Outbound;

    /// A place where the next connection is driven; `None`: here.
    fn place(&self) -> Option<Place> {
        None
    }

    /// The same for a connection at `place`.
    fn at(&self, _place: &Place) -> Self {
        self.clone()
    }

    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Result<Response<Self::Body>, Infallible>> + Send;
}

/// The body of an answer, whose pieces count as something new to write.
struct Adding<B> {
    body: B,
    added: Arc<AtomicU64>,
}

impl<B: Body + Unpin> Body for Adding<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let me = self.get_mut();
        let frame = ready!(Pin::new(&mut me.body).poll_frame(cx));
        me.added.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that is silent for so long is asked for a sign of life, so that dead clients free what they wait for.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// When the port stops, how long an HTTP/1 connection that rests may go on to do so: its next request may be on its way.
const LAST_HEAD: Duration = Duration::from_millis(500);
/// How often it is said at most that connections are being turned away.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Serves HTTP/1 and HTTP/2 with `answer`, under the connection limits of `config`, until `shutdown`, then until the last
/// request has been answered. For ports beside those of this crate.
pub async fn serve_http<F, R, B>(door: impl Into<Door>, answer: F, config: &ProxyConfig, clock: &Clock, shutdown: CancellationToken)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    serve(door, Answers(answer), config, clock, shutdown).await;
}

#[derive(Clone)]
struct Answers<F>(F);

impl<F, R, B> Handler for Answers<F>
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Response<B>, Infallible>> + Send + 'static,
    B: Outbound,
{
    type Body = B;
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Result<Response<B>, Infallible>> + Send {
        (self.0)(request)
    }
}

/// Serves until `shutdown`, then until the last request has been answered.
pub(crate) async fn serve(door: impl Into<Door>, handler: impl Handler, config: &ProxyConfig, clock: &Clock, shutdown: CancellationToken) {
    let Door { listener, tls, speaks } = door.into();
    let terms = Arc::new(Terms::new(config, clock, tls.map(|tls| (tls, speaks))));
    let port = Port { handler, terms, shutdown: shutdown.clone() };
    let (mut turned_away, mut tide) = (TurnedAway::default(), Tide::default());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next() => if tide.is_out(connections.len()) {
                // For milliseconds it holds other threads' allocations up in turns; nobody waits for it.
                tokio::task::spawn_blocking(berth_adapters::counting::return_freed);
            },
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) if connections.len() < config.max_connections => {
                    port.begin(stream, peer, &mut connections);
                    tide.is_in(connections.len());
                }
                Ok(_closed) => {
                    if let Some(count) = turned_away.one_more(clock.now()) {
                        tracing::warn!(limit = config.max_connections, count, "connections closed: the port has as many as it may have");
                    }
                }
                Err(fault) => {
                    // Out of descriptors, or a client that was gone before it was accepted. The former lasts: do not spin.
                    tracing::warn!(error = %fault, "connection not accepted");
                    clock.sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    // Clients whose connections the system has made for us already count as served: they are not reset.
    while let Some(Ok((stream, peer))) = listener.accept().now_or_never() {
        port.begin(stream, peer, &mut connections);
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// What the connections of a port have in common.
struct Port<H> {
    handler: H,
    terms: Arc<Terms>,
    shutdown: CancellationToken,
}

impl<H: Handler> Port<H> {
    fn begin(&self, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
        let (terms, shutdown) = (Arc::clone(&self.terms), self.shutdown.clone());
        let Some(place) = self.handler.place() else {
            connections.spawn(connection(stream, Some(peer), self.handler.clone(), terms, shutdown));
            return;
        };
        let (handler, driver) = (self.handler.at(&place), place.handle.clone());
        let moved = stream.into_std(); // the system tells another thread of it from now on
        let driven = async move {
            match moved.and_then(TcpStream::from_std) {
                Ok(stream) => connection(stream, Some(peer), handler, terms, shutdown).await,
                Err(fault) => tracing::warn!(error = %fault, "connection not accepted"),
            }
            drop(place);
        };
        connections.spawn_on(driven, &driver);
    }
}

/// How many connections there were at most, since their memory was last handed back to the system. The C library would keep
/// it for as many to come.
#[derive(Default)]
struct Tide(usize);

impl Tide {
    /// Fewer gone are not worth the effort.
    const MANY: usize = 256;

    fn is_in(&mut self, open: usize) {
        self.0 = self.0.max(open);
    }

    /// Whether most of them, and many, have gone.
    fn is_out(&mut self, open: usize) -> bool {
        let out = self.0 >= 2 * open + Self::MANY;
        if out {
            self.0 = open;
        }
        out
    }
}

/// Connections of one kind that were closed, since that was last said.
#[derive(Default)]
struct TurnedAway {
    count: u64,
    said: Option<Instant>,
}

impl TurnedAway {
    /// How many there were when it is time to say so.
    fn one_more(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < SAY_EVERY) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.count))
    }
}

/// What holds for every connection of a port.
struct Terms {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    head_timeout: Duration,
    clock: Clock,
    tls: Option<(Tls, Speaks)>,
    /// Clients that spoke something else, by what it was.
    strangers: Mutex<BTreeMap<&'static str, TurnedAway>>,
}

impl Terms {
    fn new(config: &ProxyConfig, clock: &Clock, tls: Option<(Tls, Speaks)>) -> Self {
        let window = |size: ByteSize| u32::try_from(size.0).unwrap_or(u32::MAX >> 1);
        let mut http1 = http1::Builder::new();
        // Counted from the last answer to the end of the next head: how long a connection may rest. `Heads` cuts off sooner
        // who has begun a head.
        http1.timer(TokioTimer::new()).header_read_timeout(config.idle_timeout.saturating_add(config.head_timeout));
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(window(config.stream_window))
            .initial_connection_window_size(window(config.connection_window))
            .max_concurrent_streams(config.max_streams)
            .max_frame_size(64 * 1024);
        Terms { http1, http2, head_timeout: config.head_timeout, clock: clock.clone(), tls, strangers: Mutex::default() }
    }

    /// Finds out what the client speaks, who it is, and that it is one for this port.
    async fn open<S>(&self, stream: S) -> Result<Opened<S>, Refusal>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let gone = |_fault: io::Error| Refusal::Gone;
        let (transport, client) = match &self.tls {
            None => (Transport::Plain(stream), None),
            Some((tls, speaks)) => {
                let (glimpse, mut stream) = first::glimpse(stream).await.map_err(gone)?;
                match glimpse {
                    Glimpse::Tls => {}
                    Glimpse::Http => {
                        tell(&mut stream).await;
                        return Err(Refusal::PlainText);
                    }
                    Glimpse::Unknown => return Err(Refusal::Garbage("its first byte is of another protocol".to_owned())),
                }
                let (stream, client) = tls.accept(stream, *speaks).await?;
                (Transport::Tls(Box::new(stream)), client)
            }
        };
        let (protocol, stream) = first::protocol(transport).await.map_err(gone)?;
        Ok(Opened { protocol, stream, client })
    }

    /// Says that a client was cut off before it could ask anything, unless that was said not long ago.
    fn cut_off(&self, peer: Option<SocketAddr>, refusal: &Refusal) {
        if let Some((tls, _)) = &self.tls {
            tls.refused(refusal);
        }
        match refusal.why() {
            Some(why) if self.tls.is_some() => self.say(refusal.label(), peer, &why),
            told => tracing::debug!(error = told, "connection ended before it said what it speaks"),
        }
    }

    fn say(&self, kind: &'static str, peer: Option<SocketAddr>, why: &str) {
        let peer = peer.map(tracing::field::display);
        match self.strangers.lock().entry(kind).or_default().one_more(self.clock.now()) {
            Some(count) => tracing::warn!(peer, error = %why, count, "client cut off"),
            None => tracing::debug!(peer, error = %why, "client cut off"),
        }
    }
}

/// A client that has begun to speak.
struct Opened<S> {
    protocol: Protocol,
    stream: Replay<Transport<S>>,
    client: Option<ClientIdentity>,
}

/// What a client hears that speaks HTTP/1 without TLS where TLS is spoken; one of HTTP/2 understands as little of it as of
/// nothing.
const USE_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 37\r\nconnection: close\r\n\r\nthis port speaks TLS only: use https\n";
/// As much of what it sends is read before the connection ends: ended with bytes unread, it would lose the answer.
const READ_ON: u64 = 64 * 1024;

async fn tell<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    if stream.write_all(USE_TLS).await.is_ok() && stream.shutdown().await.is_ok() {
        let _ = tokio::io::copy(&mut stream.take(READ_ON), &mut tokio::io::sink()).await;
    }
}

/// A connection with or without TLS.
enum Transport<S> {
    Plain(S),
    Tls(Box<TlsStream<Replay<S>>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

async fn connection<S>(stream: S, peer: Option<SocketAddr>, handler: impl Handler, terms: Arc<Terms>, shutdown: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // One deadline for the handshake and the first head.
    let first_head = terms.clock.deadline_in(terms.head_timeout);
    let opened = tokio::select! {
        opened = terms.clock.until(first_head, terms.open(stream)) => opened.unwrap_or(Err(Refusal::Slow)),
        () = async { shutdown.cancelled().await; terms.clock.sleep(LAST_HEAD).await } => return, // it asks for nothing
    };
    let Opened { protocol, stream, client } = match opened {
        Ok(opened) => opened,
        Err(refusal) => return terms.cut_off(peer, &refusal),
    };
    let known = move |mut request: Request<Incoming>| {
        if let Some(client) = &client {
            request.extensions_mut().insert(client.clone());
        }
        request
    };
    let ended = match protocol {
        Protocol::Tls => return terms.say("tls", peer, "it spoke TLS to a port that speaks none: use http, or give the server a certificate"),
        Protocol::Http1 => {
            let (stream, requests) = Heads::new(stream, first_head, terms.head_timeout, &terms.clock);
            let stopping = shutdown.clone();
            let service = service_fn(move |request| {
                let (handler, begun, stopping, request) = (handler.clone(), requests.begun(), stopping.clone(), known(request));
                async move {
                    let mut response = handler.answer(request).await?.map(|body| begun.answered(body));
                    if stopping.is_cancelled() {
                        // The client is told with its answer, so that it does not send the next request into a closing door.
                        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(response)
                }
            });
            let mut connection = pin!(terms.http1.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = async { shutdown.cancelled().await; terms.clock.sleep(LAST_HEAD).await } => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
        Protocol::Http2 => {
            let answered = Arc::new(AtomicU64::new(0));
            let answers = Arc::clone(&answered);
            let service = service_fn(move |request| {
                let (handler, request, answers) = (handler.clone(), known(request), Arc::clone(&answers));
                // In a box: what holds it is moved about several times, and lives as long as the answer.
                Box::pin(async move {
                    let answer = handler.answer(request).await;
                    answers.fetch_add(1, Ordering::Relaxed);
                    answer.map(|answer| answer.map(|body| Adding { body, added: answers }))
                })
            });
            let mut connection = pin!(terms.http2.serve_connection(TokioIo::new(stream), service));
            let mut gather = Gather::default();
            let gathering = poll_fn(|cx| {
                ready!(gather.poll(answered.load(Ordering::Relaxed), cx));
                connection.as_mut().poll(cx)
            });
            tokio::select! {
                biased;
                ended = gathering => ended,
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(fault) = ended {
        // Clients that go away or come late: their business.
        match fault.is_parse() && !fault.is_parse_too_large() {
            true => terms.say("garbage", peer, &format!("what it sent is no HTTP: {fault}")),
            false => tracing::debug!(error = %fault, "connection ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_telemetry::{HostNet, Net};
    use http_body_util::{BodyExt as _, Empty, Full};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::tls::ClientAuth;
    use crate::tls::testing::{Authority, Secret};

    const SECOND: Duration = Duration::from_secs(1);
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    /// Answers with the body that was sent.
    async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let body = request.into_body().collect().await.map_or_else(|_| Bytes::from("broken"), http_body_util::Collected::to_bytes);
        Ok(Response::new(Full::new(body)))
    }

    struct Connected {
        client: DuplexStream,
        clock: Clock,
        since: Instant,
        shutdown: CancellationToken,
    }

    fn connect() -> Connected {
        connect_to(None)
    }

    fn connect_to(tls: Option<(Tls, Speaks)>) -> Connected {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let (clock, shutdown) = (Clock::system(), CancellationToken::new());
        let terms = Arc::new(Terms::new(&ProxyConfig::default(), &clock, tls));
        tokio::spawn(connection(server, None, Answers(echo), terms, shutdown.clone()));
        Connected { client, since: clock.now(), clock, shutdown }
    }

    impl Connected {
        async fn send(&mut self, bytes: &[u8]) {
            self.client.write_all(bytes).await.unwrap();
        }

        /// What comes until the connection ends, and when that is, in seconds from the start.
        async fn rest(mut self) -> (Vec<u8>, u64) {
            let mut bytes = Vec::new();
            let (clock, within) = (self.clock.clone(), self.clock.deadline_in(24 * 3600 * SECOND));
            clock.until(within, self.client.read_to_end(&mut bytes)).await.expect("the connection ends").unwrap();
            (bytes, (self.clock.now() - self.since).as_secs())
        }

        async fn asks(&mut self, body: &str) {
            self.send(format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
            self.is_answered(body).await;
        }

        async fn is_answered(&mut self, body: &str) {
            let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
            while !answer.ends_with(format!("\r\n\r\n{body}").as_bytes()) {
                let read = self.client.read(&mut piece).await.unwrap();
                assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&piece[..read]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{:?}", String::from_utf8_lossy(&answer));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_brings_no_whole_head_or_preface_in_time_is_cut_off() {
        for sent in ["", "P", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r", "G", "GET / HTTP/1.1", "POST / HTTP/1.1\r\nhost: h\r\n"] {
            let mut connected = connect();
            connected.send(sent.as_bytes()).await;
            assert_eq!(connected.rest().await, (vec![], 10), "{sent:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_has_the_time_of_a_head_and_shares_it_with_the_first_one() {
        let ours = Authority::new("ours");
        let (tls, metrics) = Secret::new(&ours.server(), "").open(ClientAuth::None);
        for sent in [&[][..], &[22], &[22, 3, 1], &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]] {
            let mut connected = connect_to(Some((tls.clone(), Speaks::Rest)));
            connected.send(sent).await;
            assert_eq!(connected.rest().await, (vec![], 10), "{sent:?}");
        }
        assert_eq!(metrics.count(berth_telemetry::Counter::TlsRefused, &[("reason", "slow")]), 4);
        // A byte a second gains nothing.
        let mut connected = connect_to(Some((tls.clone(), Speaks::Rest)));
        for byte in [22, 3, 1, 2, 0].into_iter().chain([1; 100]) {
            if connected.client.write_all(&[byte]).await.is_err() {
                break;
            }
            connected.clock.sleep(SECOND).await;
        }
        let (_, seconds) = connected.rest().await;
        assert!((10..=12).contains(&seconds), "{seconds}");
        // Nor does a handshake that comes about late.
        let Connected { client, clock, since, .. } = connect_to(Some((tls, Speaks::Rest)));
        clock.sleep(6 * SECOND).await;
        let mut secured = crate::tls::testing::connect(client, &ours.pem, None, &["http/1.1"]).await.unwrap();
        secured.write_all(b"GET / HT").await.unwrap();
        let _ = secured.read_to_end(&mut Vec::new()).await;
        assert_eq!((clock.now() - since).as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn tls_on_a_port_without_it_is_cut_off_at_once() {
        let mut connected = connect();
        connected.send(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await;
        assert_eq!(connected.rest().await, (vec![], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn sending_a_head_byte_by_byte_gains_no_time() {
        for head in [&b"GET / HTTP/1.1\r\nx: yyyyyyyyyyyyyyyyyyyyyyyyyyy"[..], PREFACE] {
            let mut connected = connect();
            for byte in head {
                if connected.client.write_all(&[*byte]).await.is_err() {
                    break;
                }
                connected.clock.sleep(SECOND).await;
            }
            let (_, seconds) = connected.rest().await;
            assert!((10..=12).contains(&seconds), "{seconds}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_http1_connection_may_rest_between_requests_for_the_idle_time() {
        let mut connected = connect();
        for _ in 0..3 {
            connected.asks("one").await;
            connected.clock.sleep(290 * SECOND).await;
        }
        connected.asks("").await;
        let (rest, seconds) = connected.rest().await;
        assert_eq!((rest, seconds), (vec![], 3 * 290 + 310), "idle_timeout and head_timeout after the last answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_head_has_its_time_from_its_first_byte_on() {
        let mut connected = connect();
        connected.asks("one").await;
        connected.clock.sleep(100 * SECOND).await;
        connected.send(b"POST / HTTP/1.1\r\n").await;
        connected.clock.sleep(9 * SECOND).await;
        connected.send(b"content-length: 3\r\n\r\ntwo").await;
        connected.is_answered("two").await;
        connected.send(b"P").await;
        assert_eq!(connected.rest().await, (vec![], 119));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_take_longer_than_a_head() {
        let mut connected = connect();
        connected.send(b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n").await;
        for byte in b"slow" {
            connected.clock.sleep(20 * SECOND).await;
            connected.send(&[*byte]).await;
        }
        connected.is_answered("slow").await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_http2_connection_stays_while_it_answers_pings() {
        let Connected { client, clock, .. } = connect();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        clock.sleep(3600 * SECOND).await;
        let answer = sender.send_request(Request::new(Empty::<Bytes>::new())).await.unwrap();
        assert_eq!(answer.status(), 200);

        let mut silent = connect();
        silent.send(PREFACE).await;
        silent.send(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await; // no settings
        let (_, seconds) = silent.rest().await;
        assert_eq!(seconds, 50, "a ping after 30 s, no answer for 20 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_waits_for_no_client_that_has_asked_for_nothing() {
        for (sent, seconds) in [("", 1), ("PRI", 1), ("POST / HT", 10)] {
            let mut connected = connect();
            connected.send(sent.as_bytes()).await;
            connected.clock.sleep(SECOND).await;
            connected.shutdown.cancel();
            assert_eq!(connected.rest().await, (vec![], seconds), "{sent:?}");
        }
        let mut resting = connect();
        resting.asks("one").await;
        resting.shutdown.cancel();
        assert_eq!(resting.rest().await, (vec![], 0));
    }

    #[tokio::test]
    async fn a_port_closes_connections_beyond_its_limit_and_serves_again_when_one_has_ended() {
        let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (addr, shutdown) = (listener.local_addr().unwrap(), CancellationToken::new());
        let config = ProxyConfig { max_connections: 1, ..ProxyConfig::default() };
        let stop = shutdown.clone();
        let server = tokio::spawn(async move { serve_http(listener, echo, &config, &Clock::system(), stop).await });
        let ask = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi";
        let mut answer = vec![0; 1024];

        let mut first = TcpStream::connect(addr).await.unwrap();
        first.write_all(ask).await.unwrap();
        assert!(first.read(&mut answer).await.unwrap() > 0);
        let mut second = TcpStream::connect(addr).await.unwrap();
        assert!(matches!(second.read(&mut answer).await, Ok(0) | Err(_)), "closed at once");
        first.write_all(ask).await.unwrap();
        assert!(first.read(&mut answer).await.unwrap() > 0, "the first is not touched");
        drop(first);
        // The port notices the end of the first when it notices it: until then a client meets what the second one met.
        loop {
            let mut third = TcpStream::connect(addr).await.unwrap();
            if third.write_all(ask).await.is_ok() && matches!(third.read(&mut answer).await, Ok(1..)) {
                break;
            }
        }
        shutdown.cancel();
        server.await.unwrap();
    }

    #[test]
    fn memory_is_handed_back_when_most_of_many_connections_have_gone_and_not_as_they_come_and_go() {
        let mut tide = Tide::default();
        let mut falls = |from: usize, to: usize| {
            tide.is_in(from);
            (to..from).rev().filter(|open| tide.is_out(*open)).collect::<Vec<_>>()
        };
        assert_eq!(falls(10_000, 0), [4872, 2308, 1026, 385, 64]);
        assert!(falls(255, 0).is_empty());
        for _ in 0..1000 {
            assert!(falls(1000, 400).is_empty());
        }
        assert_eq!(falls(1000, 372), [372]);
    }

    #[test]
    fn that_connections_are_turned_away_is_said_once_a_minute_with_their_number() {
        let (clock, mut turned_away) = (Clock::system(), TurnedAway::default());
        let start = clock.now();
        let said: Vec<_> = [0, 1, 59, 60, 61, 200].into_iter().map(|at| turned_away.one_more(start + at * SECOND)).collect();
        assert_eq!(said, [Some(1), None, None, Some(3), None, Some(2)]);
    }
}
