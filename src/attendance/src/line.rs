//! How an agent reaches its controller, and the controller's port.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use berth_proto::attendance::attendance_client::AttendanceClient;
use berth_proto::attendance::attendance_server::{Attendance, AttendanceServer};
use berth_proto::attendance::{FromAgent, FromController};
use berth_telemetry::{Net, Peer};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
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
    /// What it asks for, as it is now.
    token: Option<Shows>,
    net: Arc<dyn Net>,
}

impl Wire {
    /// The controller at `peer`, which people call `name` and which asks for this token.
    #[must_use]
    pub fn new(name: String, peer: Peer, token: Option<Shows>, net: Arc<dyn Net>) -> Self {
        Wire { name, peer, token, net }
    }
}

/// The token that an agent shows, as it is now.
pub type Shows = Arc<dyn Fn() -> String + Send + Sync>;

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
            let bearer = format!("Bearer {}", token()).parse::<MetadataValue<_>>();
            let mut bearer = bearer.map_err(|_| Status::unauthenticated("the token for the controller has characters that no header takes"))?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
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

/// Takes agents in.
pub struct Desk {
    hub: Hub,
    admits: Admits,
}

#[tonic::async_trait]
impl Attendance for Desk {
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

/// What answers agents at a port of the controller, for whoever serves the port: a gRPC service as `tonic` has them.
#[must_use]
pub fn service(hub: Hub, admits: Admits) -> AttendanceServer<Desk> {
    AttendanceServer::new(Desk { hub, admits }).max_decoding_message_size(LARGEST)
}
