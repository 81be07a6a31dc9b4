//! A server of hyper's on a free port or a Unix socket.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use berth_telemetry::{HostNet, Listener, Net as _};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use crate::Target;

/// A bound socket.
pub(super) enum Door {
    Tcp(Listener),
    Unix(UnixListener, Target),
}

impl Door {
    pub(super) async fn tcp() -> Door {
        Door::at("127.0.0.1:0").await
    }

    pub(super) async fn at(addr: &str) -> Door {
        Door::Tcp(HostNet.listen(addr.parse().unwrap()).await.unwrap())
    }

    pub(super) fn unix(path: &Path) -> Door {
        Door::Unix(UnixListener::bind(path).unwrap(), path.to_str().unwrap().parse().unwrap())
    }

    pub(super) fn target(&self) -> Target {
        match self {
            Door::Tcp(listener) => listener.local_addr().unwrap().to_string().parse().unwrap(),
            Door::Unix(_, target) => target.clone(),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<berth_telemetry::Dialed> {
        Ok(match self {
            Door::Tcp(listener) => Either::Left(listener.accept().await?.0),
            Door::Unix(listener, _) => Either::Right(listener.accept().await?.0),
        })
    }
}

pub(super) type Reply = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Answers a request; the number tells its connection.
pub(super) type Handler = Arc<dyn Fn(usize, Request<Incoming>) -> BoxFuture<'static, Reply> + Send + Sync>;

/// A running server. Dropped, it breaks all its connections.
pub(super) struct Host {
    pub(super) target: Target,
    pub(super) connections: Arc<AtomicUsize>,
    stop: CancellationToken,
    open: watch::Receiver<()>,
}

impl Host {
    pub(super) fn start(door: Door, streams: u32, handler: Handler) -> Host {
        let (target, stop, connections) = (door.target(), CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let (running, open) = watch::channel(());
        let (stopped, counted) = (stop.clone(), connections.clone());
        tokio::spawn(async move {
            let running = Arc::new(running);
            loop {
                let socket = tokio::select! {
                    () = stopped.cancelled() => return,
                    socket = door.accept() => socket.unwrap(),
                };
                let (handler, stopped, running) = (handler.clone(), stopped.clone(), running.clone());
                let number = counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _running = running;
                    let service = service_fn(move |request| {
                        let reply = handler(number, request);
                        async move { Ok::<_, hyper::Error>(reply.await) }
                    });
                    let mut builder = http2::Builder::new(TokioExecutor::new());
                    // Its guard against clients that open and cancel at a great rate would meet the tests that cancel on purpose.
                    builder.max_concurrent_streams(streams).max_pending_accept_reset_streams(10_000);
                    let connection = builder.serve_connection(TokioIo::new(socket), service);
                    tokio::select! {
                        () = stopped.cancelled() => {}
                        _ = connection => {}
                    }
                });
            }
        });
        Host { target, connections, stop, open }
    }

    /// Breaks all connections and closes the port.
    pub(super) async fn kill(mut self) {
        self.stop.cancel();
        while self.open.changed().await.is_ok() {}
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
