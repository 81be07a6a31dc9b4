//! A connection to a processor over HTTP/1.1, plain or with TLS, kept between payloads.
//!
//! What came back is read only as far as it must be. No redirect is followed: it could take payloads elsewhere.

use std::sync::Arc;
use std::time::Duration;

use berth_telemetry::{Clock, Dialed, Net, Peer};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::BodyExt as _;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tracing::debug;

use super::courier::Courier;
use super::payload::{Json, Payload};
use super::processor::Receiver;
use super::queue::Lost;

/// How long a connection may take, handshake of TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a payload may take in all.
const WHOLE: Duration = Duration::from_secs(10);
/// More of an answer is not read: the connection is given up.
const LARGEST_ANSWER: usize = 64 << 10;

/// Posts payloads to one receiver, on one connection.
pub(super) struct Post {
    receiver: Receiver,
    label: String,
    net: Arc<dyn Net>,
    tls: Option<Arc<ClientConfig>>,
    clock: Clock,
    open: Option<Connection>,
}

struct Connection {
    sender: SendRequest<Json>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Post {
    pub(super) fn new(receiver: Receiver, label: String, net: Arc<dyn Net>, tls: Option<Arc<ClientConfig>>, clock: Clock) -> Self {
        Post { receiver, label, net, tls, clock, open: None }
    }

    /// The connection that is open, else a new one.
    async fn connection(&mut self) -> Result<Connection, Lost> {
        if let Some(mut open) = self.open.take()
            && open.sender.ready().await.is_ok()
        {
            return Ok(open);
        }
        let connecting = self.clock.until(self.clock.deadline_in(CONNECT), self.connect()).await;
        connecting.unwrap_or_else(|| Err("no connection in time".to_owned())).map_err(|why| {
            debug!(processor = %self.label, error = %why, "a payload processor is not reached");
            Lost::Unreachable
        })
    }

    async fn connect(&self) -> Result<Connection, String> {
        let Receiver { tls, host, port, .. } = &self.receiver;
        let stream = self.net.dial(&Peer::Tcp { host: host.clone(), port: *port }).await.map_err(|fault| fault.to_string())?;
        if !tls {
            return open(stream).await;
        }
        let config = self.tls.clone().ok_or("TLS is not set up")?;
        let name = ServerName::try_from(host.clone()).map_err(|fault| fault.to_string())?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|fault| fault.to_string())?;
        open::<tokio_rustls::client::TlsStream<Dialed>>(stream).await
    }

    fn request(&self, body: Json) -> Request<Json> {
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut()) = (Method::POST, self.receiver.path.clone());
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.receiver.authority.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("berth/", env!("CARGO_PKG_VERSION"))));
        headers.extend(self.receiver.credentials.clone().map(|credentials| (header::AUTHORIZATION, credentials)));
        request
    }

    async fn posted(&mut self, payload: &Payload, message: Option<Bytes>) -> Result<(), Lost> {
        let mut connection = self.connection().await?;
        let sent = connection.sender.try_send_request(self.request(payload.json(message.clone()))).await;
        let answer = match sent {
            Ok(answer) => answer,
            // Nothing of it was sent: the connection had been closed meanwhile.
            Err(unsent) if unsent.message().is_some() => {
                connection = self.connection().await?;
                connection.sender.send_request(self.request(payload.json(message))).await.map_err(|fault| self.broken(&fault))?
            }
            Err(sent) => return Err(self.broken(sent.error())),
        };
        let (status, mut body, mut read) = (answer.status(), answer.into_body(), 0);
        let whole = loop {
            match body.frame().await {
                None => break true,
                Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) => break false,
            }
            if read > LARGEST_ANSWER {
                break false;
            }
        };
        if whole {
            self.open = Some(connection);
        }
        if status.is_success() {
            return Ok(());
        }
        debug!(processor = %self.label, status = status.as_u16(), "a payload processor refuses a payload");
        Err(Lost::Refused)
    }

    fn broken(&self, why: &hyper::Error) -> Lost {
        debug!(processor = %self.label, error = %why, "the connection to a payload processor broke");
        Lost::Broken
    }
}

async fn open<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S) -> Result<Connection, String> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|fault| fault.to_string())?;
    let driver = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Connection { sender, driver })
}

impl Courier for Post {
    async fn deliver(&mut self, payload: &Payload, message: Option<Bytes>) -> Result<(), Lost> {
        let clock = self.clock.clone();
        // Given up in the middle, the connection goes too: it was taken out.
        clock.until(clock.deadline_in(WHOLE), Box::pin(self.posted(payload, message))).await.unwrap_or(Err(Lost::Timeout))
    }
}
