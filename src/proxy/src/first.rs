//! The first bytes of a connection: which protocol its client speaks, and that it says anything at all.
//!
//! On a port that speaks TLS, [`glimpse`] tells a client that does from one that does not before the handshake; within it,
//! as on a plain port, [`protocol`] tells the versions of HTTP apart, whatever was agreed on: what comes is what counts.
//!
//! The builder in `hyper-util` that tells the protocols apart waits for ever for a client that says nothing, and so does
//! the handshake of HTTP/2. Here the first bytes are read by us, under the caller's deadline, and [`Replay`] hands them on.
//! [`Heads`] then bounds the time that each further head of HTTP/1 takes. It does not bound idleness between requests,
//! and nothing once a request is being served: a body has its request's deadline.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use berth_telemetry::Clock;
use berth_types::Deadline;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What every HTTP/2 client sends first.
const PREFACE: [u8; 24] = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
    /// A handshake of TLS, which has nothing to do where this is asked.
    Tls,
}

/// The first byte of a client that speaks TLS: the kind of record in which a handshake comes. No request begins with it.
const HANDSHAKE: u8 = 22;

/// What a client seems to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glimpse {
    Tls,
    /// HTTP, of either version, without TLS.
    Http,
    Unknown,
}

/// Reads something, and tells what it looks like.
///
/// # Errors
/// What the stream says; `UnexpectedEof` when the client hung up first.
pub(crate) async fn glimpse<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Glimpse, Replay<S>)> {
    let mut first = [0; PREFACE.len()];
    let read = stream.read(&mut first).await?;
    let glimpse = match first[..read] {
        [] => return Err(io::ErrorKind::UnexpectedEof.into()),
        [HANDSHAKE, ..] => Glimpse::Tls,
        // Methods are written in capitals.
        [b'A'..=b'Z', ..] => Glimpse::Http,
        _ => Glimpse::Unknown,
    };
    Ok((glimpse, Replay { first, given: 0, read, stream }))
}

/// Reads until the protocol is clear: the whole preface of HTTP/2, or the first byte that is not of it.
///
/// # Errors
/// What the stream says; `UnexpectedEof` when the client hung up first.
pub(crate) async fn protocol<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Protocol, Replay<S>)> {
    let (mut first, mut read) = ([0; PREFACE.len()], 0);
    let protocol = loop {
        match stream.read(&mut first[read..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => read += more,
        }
        if first[0] == HANDSHAKE {
            break Protocol::Tls;
        }
        if first[..read] != PREFACE[..read] {
            break Protocol::Http1;
        }
        if read == PREFACE.len() {
            break Protocol::Http2;
        }
    };
    Ok((protocol, Replay { first, given: 0, read, stream }))
}

/// A stream whose first bytes were read already.
pub(crate) struct Replay<S> {
    first: [u8; PREFACE.len()],
    given: usize,
    read: usize,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.given == me.read {
            return Pin::new(&mut me.stream).poll_read(cx, buf);
        }
        let end = me.read.min(me.given + buf.remaining());
        buf.put_slice(&me.first[me.given..end]);
        me.given = end;
        Poll::Ready(Ok(()))
    }
}

/// Writing goes straight to the stream inside.
macro_rules! write_through {
    ($wrapper:ident) => {
        impl<S: AsyncWrite + Unpin> AsyncWrite for $wrapper<S> {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
            }
            fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
            }
            fn is_write_vectored(&self) -> bool {
                self.stream.is_write_vectored()
            }
            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().stream).poll_flush(cx)
            }
            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
            }
        }
    };
}
write_through!(Replay);
write_through!(Heads);

/// What an HTTP/1 connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Part of a head has come.
    Head,
    /// A request is being answered.
    Request,
    /// Nothing, since the last answer.
    Rest,
}

/// An HTTP/1 connection whose heads must come in time: reading fails when one does not.
pub(crate) struct Heads<S> {
    stream: S,
    at: Requests,
    clock: Clock,
    limit: Duration,
    /// Runs out when the head that has begun is late. Made when it has to be waited for.
    late: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Says to a [`Heads`] when requests begin and end.
#[derive(Clone)]
pub(crate) struct Requests(Arc<Mutex<At>>);

impl<S> Heads<S> {
    /// The first head has begun with the connection and is late at `first`; later ones may take `limit`.
    pub(crate) fn new(stream: S, first: Deadline, limit: Duration, clock: &Clock) -> (Self, Requests) {
        let (at, timer) = (Requests(Arc::new(Mutex::new(At::Head))), late(clock.clone(), first));
        (Heads { stream, at: at.clone(), clock: clock.clone(), limit, late: Some(timer) }, at)
    }
}

fn late(clock: Clock, at: Deadline) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move { clock.sleep_until(at).await })
}

impl<S: AsyncRead + Unpin> AsyncRead for Heads<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let read = Pin::new(&mut me.stream).poll_read(cx, buf);
        let mut at = me.at.0.lock();
        if *at == At::Rest && read.is_ready() {
            *at = At::Head;
            me.late = None;
        }
        if read.is_ready() || *at != At::Head {
            return read;
        }
        let (clock, limit) = (&me.clock, me.limit);
        let timer = me.late.get_or_insert_with(|| late(clock.clone(), clock.deadline_in(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, format!("the head of a request did not come within {limit:?}"))))
    }
}

impl Requests {
    /// A request has come whole with its head; it ends when what is returned, or the body it goes into, is dropped.
    pub(crate) fn begun(&self) -> Request {
        *self.0.lock() = At::Request;
        Request(self.clone())
    }
}

/// A request that is being answered.
pub(crate) struct Request(Requests);

impl Request {
    /// The body of its answer, with whose end it ends.
    pub(crate) fn answered<B>(self, body: B) -> Answering<B> {
        Answering { body, _request: self }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        *self.0.0.lock() = At::Rest;
    }
}

/// The body of an answer.
pub(crate) struct Answering<B> {
    body: B,
    _request: Request,
}

impl<B: Body + Unpin> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn the_protocol_is_told_by_the_first_bytes_and_none_of_them_is_lost() {
        for (sent, expected) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], Some(Protocol::Http1)),
            (b"P", None),
            (b"PR", None),
            (b"POST / HTTP/1.1\r\n\r\n", Some(Protocol::Http1)),
            (b"PRI * HTTP/1.1\r\n\r\n", Some(Protocol::Http1)),
            (&PREFACE[..23], None),
            (&PREFACE, Some(Protocol::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore", Some(Protocol::Http2)),
            (&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3], Some(Protocol::Tls)),
            (b"", None),
        ] {
            for piece in [1, 7, 100] {
                let (mut client, server) = tokio::io::duplex(4096);
                let told = tokio::spawn(protocol(server));
                for bytes in sent.chunks(piece) {
                    client.write_all(bytes).await.unwrap();
                    tokio::task::yield_now().await;
                }
                drop(client);
                match told.await.unwrap() {
                    Ok((protocol, mut stream)) => {
                        assert_eq!(Some(protocol), expected, "{sent:?}");
                        let mut bytes = Vec::new();
                        stream.read_to_end(&mut bytes).await.unwrap();
                        assert_eq!(bytes, sent);
                    }
                    Err(fault) => assert_eq!((fault.kind(), expected), (io::ErrorKind::UnexpectedEof, None), "{sent:?}"),
                }
            }
        }
    }
    #[tokio::test]
    async fn a_glimpse_tells_tls_from_http_and_loses_no_byte() {
        for (sent, expected) in [
            (&[22, 3, 1, 0][..], Some(Glimpse::Tls)),
            (&[22], Some(Glimpse::Tls)),
            (b"GET / HTTP/1.1\r\n\r\n", Some(Glimpse::Http)),
            (&PREFACE, Some(Glimpse::Http)),
            (b"get", Some(Glimpse::Unknown)),
            (&[0, 0, 0], Some(Glimpse::Unknown)),
            (b"", None),
        ] {
            let (mut client, server) = tokio::io::duplex(4096);
            client.write_all(sent).await.unwrap();
            drop(client);
            match glimpse(server).await {
                Ok((glimpse, mut stream)) => {
                    let mut bytes = Vec::new();
                    stream.read_to_end(&mut bytes).await.unwrap();
                    assert_eq!((Some(glimpse), &bytes[..]), (expected, sent));
                }
                Err(fault) => assert_eq!((fault.kind(), expected), (io::ErrorKind::UnexpectedEof, None)),
            }
        }
    }
}
