//! The least that a hop can be: requests and answers passed on by hyper, the authority rewritten, nothing looked at.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use berth_telemetry::{HostNet, Net};
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::wire::{self, Pieces};

/// Listens on a free port, which it says in a line `address: ...`, and passes calls on to `target` over this many
/// connections in turns. Ends with its process.
pub(super) async fn serve(target: &str, connections: usize) -> anyhow::Result<()> {
    let mut senders = Vec::new();
    for _ in 0..connections {
        senders.push(wire::connect(target).await?);
    }
    let authority = if target.starts_with("unix:") { "localhost" } else { target };
    let bare = Arc::new(Bare { senders, next: AtomicUsize::new(0), authority: authority.parse()? });
    let listener = HostNet.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("address: {}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let bare = Arc::clone(&bare);
        let service = service_fn(move |request| {
            let bare = Arc::clone(&bare);
            async move { Ok::<_, Infallible>(bare.pass(request).await.unwrap_or_else(|fault| away(&fault))) }
        });
        tokio::spawn(wire::server().serve_connection(TokioIo::new(stream), service));
    }
}

struct Bare {
    senders: Vec<SendRequest<Incoming>>,
    next: AtomicUsize,
    authority: Authority,
}

impl Bare {
    async fn pass(&self, mut request: Request<Incoming>) -> anyhow::Result<Response<Either<Incoming, Pieces>>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.senders.len();
        let mut sender = self.senders.get(turn).context("a connection")?.clone();
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.authority = Some(self.authority.clone());
        uri.scheme = Some(Scheme::HTTP);
        *request.uri_mut() = Uri::from_parts(uri)?;
        sender.ready().await?;
        Ok(sender.send_request(request).await?.map(Either::Left))
    }
}

fn away(fault: &anyhow::Error) -> Response<Either<Incoming, Pieces>> {
    eprintln!("{fault:#}");
    let mut response = Response::new(Either::Right(Pieces { data: Default::default(), trailers: None }));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
