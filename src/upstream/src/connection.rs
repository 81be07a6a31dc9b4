//! One HTTP/2 connection: how it comes up, what is known about it, how it ends.

use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use berth_telemetry::{Clock, Dialed, Net};
use berth_types::ByteSize;
use h2::client::{Connection as Driven, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::Config;
use crate::gather::Gather;
use crate::piece::Piece;
use crate::target::Target;

/// Questions that a silent server gets one `ping_interval` after the other.
const QUICK_PINGS: u32 = 2;

/// The time between further ones. gRPC servers take five minutes by default, and close the connection on the third that
/// comes sooner.
const SLOW_PINGS: Duration = Duration::from_secs(310);

/// What is known about a connection. Shared by the task that drives it, the pool and its calls.
#[derive(Debug, Default)]
pub(crate) struct Vital {
    /// Bytes that the system has taken.
    written: AtomicU64,
    /// Heads, pieces and trailers that calls have given.
    added: AtomicU64,
    /// Heads, pieces and trailers that calls have got.
    heard: AtomicU64,
    /// Calls that are open.
    open: AtomicUsize,
    /// Calls that the server allows at a time.
    limit: AtomicUsize,
    /// Why this side knows that it is over.
    ended: OnceLock<Arc<str>>,
}

impl Vital {
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    pub(crate) fn hear(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// A call has something to be written.
    pub(crate) fn add(&self) {
        self.added.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self, more: bool) {
        match more {
            true => self.open.fetch_add(1, Ordering::Relaxed),
            false => self.open.fetch_sub(1, Ordering::Relaxed),
        };
    }

    pub(crate) fn ended(&self) -> Option<&Arc<str>> {
        self.ended.get()
    }
}

/// The handle of a connection that calls are sent by. The connection closes once all of them are gone and its calls ended.
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) vital: Arc<Vital>,
    send: SendRequest<Piece>,
}

impl Connection {
    pub(crate) fn new(id: u64, opened: &Opened) -> Self {
        Connection { id, vital: opened.vital.clone(), send: opened.send.clone() }
    }

    /// A sender for one more call.
    ///
    /// # Errors
    /// The connection takes no further ones: it broke, the server is closing it, or its numbers have run out.
    pub(crate) fn sender(&self) -> Result<Sender, h2::Error> {
        let mut send = self.send.clone();
        // A fresh sender waits for nothing: this only looks.
        match send.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(error)) => Err(error),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(Sender(send)),
        }
    }
}

/// Sends one call.
pub(crate) struct Sender(SendRequest<Piece>);

impl Sender {
    pub(crate) fn send(mut self, head: Request<()>, is_all: bool) -> Result<(ResponseFuture, SendStream<Piece>), h2::Error> {
        self.0.send_request(head, is_all)
    }
}

/// A connection that has just come up; nobody drives it yet.
pub(crate) struct Opened {
    driven: Driven<Counted, Piece>,
    send: SendRequest<Piece>,
    pings: PingPong,
    vital: Arc<Vital>,
}

/// Connects and waits until the server has spoken HTTP/2: it has answered a ping, so its settings are known too.
pub(crate) async fn open(target: &Target, net: &dyn Net, config: &Config) -> Result<Opened, String> {
    let io = net.dial(target.peer()).await.map_err(|fault| fault.to_string())?;
    let vital = Arc::new(Vital::default());
    let other = |why: String| format!("what answers there does not speak HTTP/2 in plain text: {why}");
    let counted = Counted { io, vital: vital.clone() };
    let (send, mut driven) = builder(config).handshake(counted).await.map_err(|fault| other(fault.to_string()))?;
    let Some(mut pings) = driven.ping_pong() else { return Err("the connection cannot ping".to_owned()) };
    tokio::select! {
        biased;
        pong = pings.ping(Ping::opaque()) => pong.map_err(|fault| other(fault.to_string()))?,
        ended = &mut driven => return Err(other(ending(ended))),
    };
    vital.limit.store(driven.max_concurrent_send_streams(), Ordering::Relaxed);
    Ok(Opened { driven, send, pings, vital })
}

fn builder(config: &Config) -> h2::client::Builder {
    let within = |size: ByteSize, least: u32, most: u32| u32::try_from(size.0).unwrap_or(most).clamp(least, most);
    let window = |size| within(size, 65_535, i32::MAX.unsigned_abs());
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(window(config.stream_window))
        .initial_connection_window_size(window(config.connection_window))
        .max_frame_size(within(config.max_frame, 1 << 14, (1 << 24) - 1))
        .max_header_list_size(within(config.max_headers, 1024, 1 << 24))
        .max_send_buffer_size(usize::try_from(config.send_buffer.0).unwrap_or(usize::MAX))
        // What a server sends in pieces of a few bytes (tokens) and a slow client leaves unread costs more than its length.
        // The library closes the connection, with all calls, beyond half a window of that: too soon for many such clients.
        .data_frame_budget(usize::try_from(config.connection_window.0.saturating_mul(4)).unwrap_or(usize::MAX))
        // Calls that are cancelled while their answer is on its way are no attack of the server's.
        .max_local_error_reset_streams(None);
    builder
}

fn ending(ended: Result<(), h2::Error>) -> String {
    match ended {
        Ok(()) => "it closed the connection".to_owned(),
        Err(fault) => fault.to_string(),
    }
}

/// Drives a connection to its end. `roomier` is called when the server allows more calls than before.
pub(crate) async fn drive(opened: Opened, clock: Clock, config: Config, mut roomier: impl FnMut()) {
    // Without a sender of its own, so that the connection ends when the pool and the calls have let go of it.
    let Opened { driven, send, mut pings, vital } = opened;
    drop(send);
    let mut driven = Box::pin(driven);
    let mut asked = pin!(keep_alive(&mut pings, &vital, &clock, &config));
    let mut gather = Gather::default();
    let why = std::future::poll_fn(|cx| {
        ready!(gather.poll(vital.added.load(Ordering::Relaxed), cx));
        let polled = driven.as_mut().poll(cx);
        let limit = driven.max_concurrent_send_streams();
        if vital.limit.swap(limit, Ordering::Relaxed) < limit {
            roomier();
        }
        if let Poll::Ready(ended) = polled {
            return Poll::Ready(ending(ended));
        }
        asked.as_mut().poll(cx)
    });
    let why = why.await;
    tracing::debug!(reason = %why, "a connection to the inference server is over");
    let _ = vital.ended.set(why.into()); // before the calls learn of it, as far as this side ends it
    drop(driven);
}

/// Completes, with the reason, when the server has calls and does not reply to a ping.
async fn keep_alive(pings: &mut PingPong, vital: &Vital, clock: &Clock, config: &Config) -> String {
    let mut silence = Silence { heard: 0, pings: 0, last: clock.now() };
    loop {
        clock.sleep(config.ping_interval).await;
        let (heard, open) = (vital.heard.load(Ordering::Relaxed), vital.open.load(Ordering::Relaxed));
        if !silence.asks(clock.now(), heard, open) {
            continue;
        }
        match clock.until(clock.deadline_in(config.ping_timeout), pings.ping(Ping::opaque())).await {
            Some(Ok(_)) => {}
            Some(Err(fault)) => return fault.to_string(),
            None => return format!("it did not reply to a ping within {:?}", config.ping_timeout),
        }
    }
}

/// When a silent server is asked whether it lives.
struct Silence {
    /// What had been heard when last looked.
    heard: u64,
    /// Pings since something was heard.
    pings: u32,
    /// The last ping.
    last: Instant,
}

impl Silence {
    /// Whether to ask now, one interval after the last look.
    fn asks(&mut self, now: Instant, heard: u64, open: usize) -> bool {
        if std::mem::replace(&mut self.heard, heard) != heard {
            self.pings = 0;
            return false;
        }
        let due = self.pings < QUICK_PINGS || now.saturating_duration_since(self.last) >= SLOW_PINGS;
        if !due || open == 0 {
            return false;
        }
        self.pings += 1;
        self.last = now;
        true
    }
}

/// A socket that counts what it has taken.
struct Counted {
    io: Dialed,
    vital: Arc<Vital>,
}

impl Counted {
    fn count(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(taken)) = &polled {
            self.vital.written.fetch_add(*taken as u64, Ordering::Release);
        }
        polled
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, from);
        self.count(polled)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, from);
        self.count(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The looks, every 30 s and counted from 0, at which the server is asked.
    fn asked(looks: usize, heard: impl Fn(usize) -> u64, open: impl Fn(usize) -> usize) -> Vec<usize> {
        let start = Clock::system().now();
        let mut silence = Silence { heard: 0, pings: 0, last: start };
        let at = |look: usize| start + Duration::from_secs(30) * u32::try_from(look + 1).unwrap();
        (0..looks).filter(|look| silence.asks(at(*look), heard(*look), open(*look))).collect()
    }

    #[test]
    fn a_silent_server_with_calls_is_asked_twice_and_then_every_five_minutes() {
        assert_eq!(asked(25, |_| 0, |_| 1), [0, 1, 12, 23]);
        assert_eq!(asked(25, |_| 0, |_| 0), [0; 0], "not without calls");
        assert_eq!(asked(25, |look| look as u64 + 1, |_| 1), [0; 0], "not while it talks");
        assert_eq!(asked(8, |look| u64::from(look >= 4), |_| 1), [0, 1, 5, 6], "what it says makes the next question quick again");
        assert_eq!(asked(5, |_| 0, |look| usize::from(look >= 3)), [3, 4], "the first call after a long rest");
    }
}
