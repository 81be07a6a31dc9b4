//! Accepting connections and ending them: the same for every port.
//!
//! A port stops in order: it accepts no more, tells each connection, and ends when the last answer is out. Dropping the
//! future of [`serve`] cuts what is left.

use std::pin::pin;
use std::time::Duration;

use berth_telemetry::{Clock, Listener};
use http::Request;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ProxyConfig;
use crate::body::Answer;

/// Something that answers the requests of a port.
pub(crate) trait Handler: Clone + Send + Sync + 'static {
    fn answer(&self, request: Request<hyper::body::Incoming>) -> impl Future<Output = Answer> + Send;
}

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that is silent for so long is asked for a sign of life, so that dead clients free what they wait for.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves until `shutdown`, then until the last request has been answered.
pub(crate) async fn serve(listener: Listener, handler: impl Handler, config: &ProxyConfig, clock: &Clock, shutdown: CancellationToken) {
    let builder = builder(config);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_ended) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _peer)) => {
                    connections.spawn(connection(builder.clone(), stream, handler.clone(), shutdown.clone()));
                }
                Err(fault) => {
                    // Out of descriptors, or a client that was gone before it was accepted. The former lasts: do not spin.
                    tracing::warn!(error = %fault, "connection not accepted");
                    clock.sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn builder(config: &ProxyConfig) -> Builder<TokioExecutor> {
    let window = |size: berth_types::ByteSize| u32::try_from(size.0).unwrap_or(u32::MAX >> 1);
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(window(config.stream_window))
        .initial_connection_window_size(window(config.connection_window))
        .max_concurrent_streams(config.max_streams)
        .max_frame_size(64 * 1024);
    builder
}

async fn connection(builder: Builder<TokioExecutor>, stream: TcpStream, handler: impl Handler, shutdown: CancellationToken) {
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { handler.answer(request).await }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(fault) = ended {
        // Clients that go away, or speak something else: their business.
        tracing::debug!(error = %fault, "connection ended");
    }
}
