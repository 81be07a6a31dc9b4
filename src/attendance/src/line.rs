//! How an agent reaches its controller, and the controller's port.

use std::fmt;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use berth_proto::attendance::attendance_client::AttendanceClient;
use berth_proto::attendance::attendance_server::{Attendance, AttendanceServer};
use berth_proto::attendance::{FromAgent, FromController};
use berth_telemetry::{Listener, Net, Peer};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

use crate::hub::Hub;
use crate::session::ToAgent;
use crate::{GREETED_WITHIN, LARGEST};

/// The way to a controller. Its text names it for people.
#[async_trait]
pub trait Line: fmt::Display + Send + Sync + 'static {
    /// Opens a stream that brings the controller what comes out of `said`.
    ///
    /// # Errors
    /// It cannot be reached, or will not have this agent: the status says whether to come again.
    async fn open(&self, said: mpsc::Receiver<FromAgent>) -> Result<BoxStream<'static, Result<FromController, Status>>, Status>;
}

/// A controller elsewhere.
pub struct Wire {
    /// As people wrote it.
    name: String,
    peer: Peer,
    /// What it asks for.
    token: Option<MetadataValue<tonic::metadata::Ascii>>,
    net: Arc<dyn Net>,
}

impl Wire {
    /// The controller at `peer`, which people call `name` and which asks for this token.
    ///
    /// # Errors
    /// The token cannot be sent.
    pub fn new(name: String, peer: Peer, token: Option<&str>, net: Arc<dyn Net>) -> Result<Self, String> {
        let bearer = |token: &str| {
            format!("Bearer {token}").parse::<MetadataValue<_>>().map_err(|_| "the token has characters that no header takes".to_owned())
        };
        let mut token = token.map(bearer).transpose()?;
        token.iter_mut().for_each(|token| token.set_sensitive(true));
        Ok(Wire { name, peer, token, net })
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[async_trait]
impl Line for Wire {
    async fn open(&self, said: mpsc::Receiver<FromAgent>) -> Result<BoxStream<'static, Result<FromController, Status>>, Status> {
        let (net, peer) = (Arc::clone(&self.net), self.peer.clone());
        let dial = tower::service_fn(move |_there: http::Uri| {
            let (net, peer) = (Arc::clone(&net), peer.clone());
            async move { net.dial(&peer).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://controller").connect_timeout(GREETED_WITHIN);
        let channel = endpoint.connect_with_connector(dial).await.map_err(|fault| Status::unavailable(reason(&fault)))?;
        let mut request = Request::new(ReceiverStream::new(said));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        let answer = AttendanceClient::new(channel).max_decoding_message_size(LARGEST).attend(request).await?;
        Ok(answer.into_inner().boxed())
    }
}

/// The innermost cause: what the system said.
fn reason(fault: &dyn std::error::Error) -> String {
    let mut cause = fault;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Without a wire, for one process.
#[async_trait]
impl Line for Hub {
    async fn open(&self, said: mpsc::Receiver<FromAgent>) -> Result<BoxStream<'static, Result<FromController, Status>>, Status> {
        self.attend(ReceiverStream::new(said).map(Ok)).await
    }
}

impl fmt::Display for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the controller of this process")
    }
}

/// Whether who brings this token (`None`: none) may attend.
pub type Admits = Arc<dyn Fn(Option<&[u8]>) -> bool + Send + Sync>;

struct Port {
    hub: Hub,
    admits: Admits,
}

#[tonic::async_trait]
impl Attendance for Port {
    type AttendStream = ToAgent;

    async fn attend(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<ToAgent>, Status> {
        let given = request.metadata().get("authorization").and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        if !(self.admits)(given) {
            let why = if given.is_some() { "the agent's token is not the controller's" } else { "the controller asks for a token" };
            return Err(Status::unauthenticated(why));
        }
        Ok(Response::new(self.hub.attend(request.into_inner()).await?))
    }
}

/// Serves the port of the controller at which agents attend, until `shutdown`; then every stream ends.
///
/// # Errors
/// What the system says of the port.
pub async fn serve(hub: Hub, listener: Listener, admits: Admits, shutdown: CancellationToken) -> io::Result<()> {
    let ends = hub.clone();
    let service = AttendanceServer::new(Port { hub, admits }).max_decoding_message_size(LARGEST);
    let listener = listener.into_tokio();
    let accept = stream::poll_fn(move |cx| {
        listener.poll_accept(cx).map(|accepted| Some(accepted.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream))))
    });
    let stopped = async move {
        shutdown.cancelled().await;
        ends.end();
    };
    Server::builder().add_service(service).serve_with_incoming_shutdown(accept, stopped).await.map_err(io::Error::other)
}
