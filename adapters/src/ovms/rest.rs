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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use berth_telemetry::HostNet;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    /// A server that writes `answer` to whoever has asked; `None`: nothing.
    async fn server(answer: Option<&'static str>) -> (Rest, AbortOnDropHandle<Vec<String>>) {
        let listener = HostNet.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port");
        let target = listener.local_addr().expect("it is bound").to_string().parse().expect("a target");
        let task = tokio::spawn(async move {
            let mut asked = Vec::new();
            while asked.len() < 2 {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.expect("a whole head"));
                }
                asked.push(String::from_utf8_lossy(&head).to_ascii_lowercase());
                match answer {
                    Some(answer) => stream.write_all(answer.as_bytes()).await.expect("it reads"),
                    None => std::future::pending().await,
                }
            }
            asked
        });
        (Rest { target, net: HostNet::shared(), clock: Clock::system() }, AbortOnDropHandle::new(task))
    }

    #[tokio::test]
    async fn answers_are_read_whole_however_they_are_sent() {
        for (case, answer, expected) in [
            ("with its length", "HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n{}", Ok((201, "{}"))),
            ("in pieces", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", Ok((200, "{}"))),
            ("until the connection ends", "HTTP/1.0 400 Bad Request\r\n\r\n{\"error\": \"x\"}", Ok((400, "{\"error\": \"x\"}"))),
            ("broken off in the body", "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{", Err(())),
            ("broken off in the head", "HTTP/1.1 200", Err(())),
        ] {
            let (rest, asked) = server(Some(answer)).await;
            let soon = rest.clock.deadline_in(Duration::from_secs(30));
            for answer in [rest.config(soon).await, rest.reload(soon).await] {
                match (answer, expected) {
                    (Ok(answer), Ok((status, body))) => assert_eq!((answer.status, &answer.body[..]), (status, body.as_bytes()), "{case}"),
                    (Err(RpcError::Away(_)), Err(())) => {}
                    (other, _) => panic!("{case}: {other:?}"),
                }
            }
            let asked = asked.await.expect("no panic");
            assert!(asked[0].starts_with("get /v1/config http/1.1\r\n") && asked[0].contains("\r\nhost: 127.0.0.1:"), "{}", asked[0]);
            assert!(asked[1].starts_with("post /v1/config/reload http/1.1\r\n") && asked[1].contains("content-length: 0"), "{}", asked[1]);
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_and_one_that_is_silent_are_told_apart() {
        let (rest, _silent) = server(None).await;
        let soon = rest.clock.deadline_in(Duration::from_millis(50));
        assert_eq!(rest.config(soon).await, Err(RpcError::Late));
        let rest = Rest { target: "unix:/nowhere".parse().expect("a target"), ..rest };
        let soon = rest.clock.deadline_in(Duration::from_secs(30));
        assert!(matches!(rest.reload(soon).await, Err(RpcError::Away(_))));
    }
}
