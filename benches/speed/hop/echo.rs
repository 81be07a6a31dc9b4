//! The runtime at the end of the hop: answers with what it got, and does nothing else.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use berth_telemetry::{Clock, HostNet, Net};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;

use super::wire::{self, Ends, PREFIX, Pieces, WAIT};

/// Listens on a free port, which it says in a line `address: ...`, and on the Unix socket at `path`. Ends with its process.
pub(super) async fn serve(path: &str) -> anyhow::Result<()> {
    let echo = Echo { answers: Arc::default(), clock: Clock::system() };
    let tcp = HostNet.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let unix = UnixListener::bind(path)?;
    println!("address: {}", tcp.local_addr()?);
    loop {
        tokio::select! {
            accepted = tcp.accept() => echo.spawn(accepted?.0),
            accepted = unix.accept() => echo.spawn(accepted?.0),
        }
    }
}

#[derive(Clone)]
struct Echo {
    /// Answers of each length, made once.
    answers: Arc<Mutex<HashMap<usize, Bytes>>>,
    clock: Clock,
}

impl Echo {
    fn spawn(&self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let echo = self.clone();
        let service = service_fn(move |request| {
            let echo = echo.clone();
            async move { Ok::<_, Infallible>(echo.answer(request).await) }
        });
        tokio::spawn(wire::server().serve_connection(TokioIo::new(stream), service));
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        if let Some(millis) = request.headers().get(WAIT).and_then(|value| value.to_str().ok()?.parse().ok()) {
            self.clock.sleep(Duration::from_millis(millis)).await;
        }
        let body = if request.uri().path().contains("Stream") {
            Answer::Stream { from: request.into_body(), ends: Ends::default(), held: VecDeque::new(), whole: VecDeque::new(), ended: false }
        } else {
            let (mut body, mut got) = (request.into_body(), 0);
            while let Some(Ok(frame)) = body.frame().await {
                got += frame.data_ref().map_or(0, Bytes::len);
            }
            Answer::Unary(Pieces { data: VecDeque::from([self.message(got)]), trailers: Some(wire::ok()) })
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }

    /// A message that is `size` bytes long with its prefix.
    fn message(&self, size: usize) -> Bytes {
        let make = || {
            let mut message = BytesMut::with_capacity(size);
            message.put_u8(0);
            message.put_u32(u32::try_from(size.saturating_sub(PREFIX)).unwrap_or(u32::MAX));
            message.resize(size.max(PREFIX), 0);
            message.freeze()
        };
        self.answers.lock().entry(size).or_insert_with(make).clone()
    }
}

enum Answer {
    Unary(Pieces),
    /// Each message goes back once all of it has come.
    Stream {
        from: Incoming,
        ends: Ends,
        held: VecDeque<Bytes>,
        whole: VecDeque<Bytes>,
        ended: bool,
    },
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let (from, ends, held, whole, ended) = match self.get_mut() {
            Answer::Unary(pieces) => return Pin::new(pieces).poll_frame(cx).map_err(|never| match never {}),
            Answer::Stream { from, ends, held, whole, ended } => (from, ends, held, whole, ended),
        };
        loop {
            if let Some(data) = whole.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if *ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut *from).poll_frame(cx)) {
                None => {
                    *ended = true;
                    return Poll::Ready(Some(Ok(Frame::trailers(wire::ok()))));
                }
                Some(Err(fault)) => return Poll::Ready(Some(Err(fault))),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let whole_now = ends.push(&data) > 0;
                    held.push_back(data);
                    if whole_now {
                        // The client sends a message only after it has read the one before: nothing of a next one is here.
                        std::mem::swap(held, whole);
                    }
                }
            }
        }
    }
}
