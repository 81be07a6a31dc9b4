//! What every side of the hop agrees on: HTTP/2 settings, how sockets are reached, what a message looks like.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Context as _;
use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use hyper::client::conn::http2::{Connection, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// HTTP/2 windows, frames and send buffers: those of `berth_proxy::ProxyConfig` and `berth_upstream::Config`.
pub(super) const STREAM_WINDOW: u32 = 256 << 10;
pub(super) const CONNECTION_WINDOW: u32 = 64 << 20;
pub(super) const MAX_FRAME: u32 = 64 << 10;
pub(super) const SEND_BUFFER: usize = 1 << 20;
pub(super) const MAX_STREAMS: u32 = 4096;

/// Bytes before each message of gRPC: whether it is compressed, and its length.
pub(super) const PREFIX: usize = 5;
/// The method whose messages name no model, and its streaming form.
pub(super) const PLAIN: [&str; 2] = ["/bench.Echo/Unary", "/bench.Echo/Stream"];
/// Methods whose messages name their model in field 1: the id of the model is written into each of them.
pub(super) const NAMING: [&str; 2] = ["/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ModelStreamInfer"];
/// How long whoever gets a body leaves it unread, in milliseconds.
pub(super) const WAIT: &str = "bench-wait";

/// Models that the proxy knows, all of them loaded.
pub(super) const MODELS: usize = 1000;
/// One whose load never ends.
pub(super) const COLD: &str = "cold__isvc-0000000000";

/// The id of the model with this number. All are equally long.
pub(super) fn model(number: usize) -> String {
    format!("m-{:04}__isvc-0000000000", number % MODELS)
}

/// The trailers of a call that went well.
pub(super) fn ok() -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0"))])
}

/// One message of `bytes` bytes behind its prefix, with `id` in field 1 and the rest in field 2. Small ones are one piece.
pub(super) fn message(id: Option<&str>, bytes: usize, filler: &Bytes) -> VecDeque<Bytes> {
    const BYTES_OF: u8 = 2;
    let mut head = BytesMut::new();
    head.put_u8(0);
    head.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
    if let Some(id) = id {
        head.put_u8(1 << 3 | BYTES_OF);
        varint(&mut head, id.len());
        head.extend_from_slice(id.as_bytes());
    }
    head.put_u8(2 << 3 | BYTES_OF);
    // What is left for the filler depends on the length of its length, and that on what is left.
    let left = bytes.saturating_sub(head.len() - PREFIX);
    let digits = (1..=5).find(|digits| left < 1 << (7 * digits)).unwrap_or(5);
    let length = left.saturating_sub(digits);
    for digit in 0..digits {
        let more = if digit + 1 < digits { 0x80 } else { 0 };
        head.put_u8((length >> (7 * digit) & 0x7f) as u8 | more);
    }
    const ONE_PIECE: usize = 4096;
    let filler = filler.slice(..length);
    if bytes <= ONE_PIECE {
        head.extend_from_slice(&filler);
        return VecDeque::from([head.freeze()]);
    }
    VecDeque::from([head.freeze(), filler])
}

fn varint(to: &mut BytesMut, mut number: usize) {
    while number > 0x7f {
        to.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    to.put_u8(number as u8);
}

/// Follows the messages of a body by their prefixes.
#[derive(Debug, Default)]
pub(super) struct Ends {
    prefix: Vec<u8>,
    left: usize,
}

impl Ends {
    /// How many messages end within `data`, which comes next.
    pub(super) fn push(&mut self, mut data: &[u8]) -> usize {
        let mut ended = 0;
        while !data.is_empty() {
            if self.prefix.len() < PREFIX {
                let (start, rest) = data.split_at(data.len().min(PREFIX - self.prefix.len()));
                self.prefix.extend_from_slice(start);
                data = rest;
                if let [_, length @ ..] = self.prefix.as_slice()
                    && let Ok(length) = <[u8; 4]>::try_from(length)
                {
                    self.left = u32::from_be_bytes(length) as usize;
                } else {
                    continue;
                }
            }
            let (part, rest) = data.split_at(data.len().min(self.left));
            (self.left, data) = (self.left - part.len(), rest);
            if self.left == 0 {
                self.prefix.clear();
                ended += 1;
            }
        }
        ended
    }
}

/// A body that is all there, with trailers or without.
pub(super) struct Pieces {
    pub(super) data: VecDeque<Bytes>,
    pub(super) trailers: Option<HeaderMap>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let frame = this.data.pop_front().map(Frame::data).or_else(|| this.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }
}

/// A server's settings.
pub(super) fn server() -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_frame_size(MAX_FRAME);
    builder
}

/// A connection to `target`, `host:port` or `unix:/path`.
pub(super) async fn connect<B>(target: &str) -> anyhow::Result<SendRequest<B>>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    match target.strip_prefix("unix:") {
        Some(path) => over(UnixStream::connect(path).await.with_context(|| path.to_owned())?).await,
        None => {
            let stream = TcpStream::connect(target).await.with_context(|| target.to_owned())?;
            stream.set_nodelay(true)?;
            over(stream).await
        }
    }
}

async fn over<S, B>(stream: S) -> anyhow::Result<SendRequest<B>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let (sender, connection): (_, Connection<_, B, _>) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(connection);
    Ok(sender)
}
