//! The server's REST port: its configuration, asked for and read anew.

use std::sync::Arc;

use async_trait::async_trait;
use berth_telemetry::{Clock, Net};
use berth_types::Deadline;
use berth_upstream::Target;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use crate::rpc::RpcError;

/// The largest answer that is read: the states of some hundred thousand models.
const LARGEST: usize = 64 << 20;

/// What the server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: u16,
    pub(super) body: Bytes,
}

impl Answer {
    /// Whether it did what it was asked.
    pub(super) const fn is_good(&self) -> bool {
        self.status / 100 == 2
    }
}

/// The two calls, so that tests can stand in.
#[async_trait]
pub(super) trait Api: Send + Sync + 'static {
    /// How every model stands.
    ///
    /// # Errors
    /// [`RpcError::Away`], [`RpcError::Late`] and [`RpcError::Unreadable`].
    async fn config(&self, deadline: Deadline) -> Result<Answer, RpcError>;

    /// Has the server read its configuration file; answers when it has loaded and unloaded what that asks for.
    ///
    /// # Errors
    /// As [`Api::config`].
    async fn reload(&self, deadline: Deadline) -> Result<Answer, RpcError>;
}

/// Each call on a connection of its own: they are few, and a reload takes as long as its models do.
pub(super) struct Rest {
    pub(super) target: Target,
    pub(super) net: Arc<dyn Net>,
    pub(super) clock: Clock,
}

impl Rest {
    async fn call(&self, method: Method, path: &'static str, deadline: Deadline) -> Result<Answer, RpcError> {
        self.clock.until(deadline, self.called(method, path)).await.unwrap_or(Err(RpcError::Late))
    }

    async fn called(&self, method: Method, path: &'static str) -> Result<Answer, RpcError> {
        let away = |why: &dyn std::fmt::Display| RpcError::Away(why.to_string());
        let stream = self.net.dial(self.target.peer()).await.map_err(|fault| away(&fault))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|fault| away(&fault))?;
        let asked = async {
            let answer = sender.send_request(self.request(method, path)?).await.map_err(|fault| away(&fault))?;
            let (head, mut body) = answer.into_parts();
            let mut bytes = BytesMut::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame.map_err(|fault| away(&fault))?.into_data() {
                    if bytes.len() + data.len() > LARGEST {
                        return Err(RpcError::Unreadable(format!("it is larger than {} MiB", LARGEST >> 20)));
                    }
                    bytes.extend_from_slice(&data);
                }
            }
            Ok(Answer { status: head.status.as_u16(), body: bytes.freeze() })
        };
        // The connection is driven here and ends with the answer, or with whoever waits for it.
        let (mut asked, mut connection) = (std::pin::pin!(asked), std::pin::pin!(connection));
        tokio::select! {
            answer = &mut asked => answer,
            // What it ended with, the answer says.
            _ended = &mut connection => asked.await,
        }
    }

    fn request(&self, method: Method, path: &'static str) -> Result<Request<Empty<Bytes>>, RpcError> {
        let mut request = Request::new(Empty::new());
        // Some servers refuse a POST without a length.
        if method == Method::POST {
            request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        (*request.method_mut(), *request.uri_mut()) = (method, Uri::from_static(path));
        let host = self.target.to_string();
        let host = if host.starts_with("unix:") { HeaderValue::from_static("localhost") } else { header_value(&host)? };
        request.headers_mut().insert(header::HOST, host);
        Ok(request)
    }
}

fn header_value(host: &str) -> Result<HeaderValue, RpcError> {
    HeaderValue::from_str(host).map_err(|fault| RpcError::Unreadable(format!("{host:?} is no name of a host: {fault}")))
}

#[async_trait]
impl Api for Rest {
    async fn config(&self, deadline: Deadline) -> Result<Answer, RpcError> {
        self.call(Method::GET, "/v1/config", deadline).await
    }

    async fn reload(&self, deadline: Deadline) -> Result<Answer, RpcError> {
        self.call(Method::POST, "/v1/config/reload", deadline).await
    }
}
