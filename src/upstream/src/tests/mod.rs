//! Calls over real sockets: to servers of hyper's, and to a peer that sends what a test tells it to, frame by frame.

mod faults;
mod flow;
mod host;
mod peer;
mod sharing;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_trait::async_trait;
use berth_telemetry::{Clock, Dialed, HostNet, Listener, Net, Peer as Place};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Empty};
use tokio::sync::mpsc;

use crate::{Answer, CallError, Config, Server, Target};

fn server(target: &Target, config: Config) -> Server {
    Server::new(target.clone(), config, Clock::system(), HostNet::shared())
}

fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::post(path).body(Empty::new()).unwrap()
}

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(value))])
}

/// All of an answer: its data and trailers.
async fn whole(answer: Response<Answer>) -> Result<(Bytes, Option<HeaderMap>), CallError> {
    let collected = answer.into_body().collect().await?;
    let trailers = collected.trailers().cloned();
    Ok((collected.to_bytes(), trailers))
}

/// A body whose frames a test sends, and the sender.
fn told() -> (mpsc::UnboundedSender<Result<Frame<Bytes>, std::io::Error>>, Told) {
    let (sender, frames) = mpsc::unbounded_channel();
    (sender, Told(frames))
}

struct Told(mpsc::UnboundedReceiver<Result<Frame<Bytes>, std::io::Error>>);

impl Body for Told {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(cx)
    }
}

/// A body without an end, in pieces of 16 KiB, that counts the bytes that were asked of it.
struct Endless(Arc<AtomicUsize>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        static PIECE: [u8; 16 * 1024] = [7; 16 * 1024];
        self.0.fetch_add(PIECE.len(), Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PIECE)))))
    }
}

/// The sockets of this machine, with the attempts to connect counted.
#[derive(Default)]
struct Counting(AtomicUsize);

#[async_trait]
impl Net for Counting {
    async fn listen(&self, addr: std::net::SocketAddr) -> std::io::Result<Listener> {
        HostNet.listen(addr).await
    }

    async fn dial(&self, peer: &Place) -> std::io::Result<Dialed> {
        self.0.fetch_add(1, Ordering::SeqCst);
        HostNet.dial(peer).await
    }
}
