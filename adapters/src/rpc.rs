//! Calls of our own to an inference server: one message there, one back.

use std::fmt;

use berth_telemetry::Clock;
use berth_types::Deadline;
use berth_upstream::Server;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Full};
use prost::Message;
use tonic::{Code, Status};

/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// The largest answer that is read: an index of some hundred thousand models.
const LARGEST: usize = 64 << 20;

/// An inference server, for calls with messages.
#[derive(Clone, Debug)]
pub(crate) struct Rpc {
    server: Server,
    clock: Clock,
}

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RpcError {
    /// The server cannot be reached, or broke off.
    Away(String),
    /// It did not answer in time; whether it did what it was asked is not known.
    Late,
    /// It answered with an error.
    Said {
        /// The code.
        code: Code,
        /// Its words.
        message: String,
    },
    /// It answered what is no answer to this call.
    Unreadable(String),
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RpcError::Away(why) => f.write_str(why),
            RpcError::Late => f.write_str("it did not answer in time"),
            RpcError::Said { code, message } if message.is_empty() => write!(f, "it answered {code:?}"),
            RpcError::Said { code, message } => write!(f, "it answered {code:?}: {message}"),
            RpcError::Unreadable(why) => write!(f, "its answer cannot be read: {why}"),
        }
    }
}

impl Rpc {
    pub(crate) fn new(server: Server, clock: Clock) -> Self {
        Rpc { server, clock }
    }

    /// How often the server was connected to, or tried to be.
    pub(crate) fn connections(&self) -> u64 {
        self.server.begun()
    }

    /// Where the server listens, as people write it.
    pub(crate) fn target(&self) -> String {
        self.server.target().to_string()
    }

    /// Calls `method`, a path such as `/package.Service/Method`. The server is not told of the deadline: what it does
    /// with a call that nobody waits for is its own affair.
    pub(crate) async fn call<A: Message + Default>(&self, method: &'static str, message: &impl Message, deadline: Deadline) -> Result<A, RpcError> {
        self.call_with(method, HeaderMap::new(), message, deadline).await
    }

    /// The same with further headers.
    pub(crate) async fn call_with<A: Message + Default>(
        &self,
        method: &'static str,
        headers: HeaderMap,
        message: &impl Message,
        deadline: Deadline,
    ) -> Result<A, RpcError> {
        let called = async {
            let mut request = request(method, message)?;
            request.headers_mut().extend(headers);
            let answer = self.server.call(request).await.map_err(|why| RpcError::Away(why.to_string()))?;
            let (head, mut body) = answer.into_parts();
            if head.status != StatusCode::OK {
                return Err(RpcError::Unreadable(format!("HTTP status {}: is this the gRPC port?", head.status.as_u16())));
            }
            let mut said = said(&head.headers)?;
            let mut bytes = BytesMut::new();
            while let Some(frame) = body.frame().await {
                match frame.map_err(|why| RpcError::Away(why.to_string()))?.into_data() {
                    Ok(data) if bytes.len() + data.len() > LARGEST => {
                        return Err(RpcError::Unreadable(format!("it is larger than {} MiB", LARGEST >> 20)));
                    }
                    Ok(data) => bytes.extend_from_slice(&data),
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            said |= self::said(&trailers)?;
                        }
                    }
                }
            }
            if !said {
                return Err(RpcError::Away("its answer ended without a status".to_owned()));
            }
            only_message(bytes.freeze())
        };
        // A timer may be a moment late, and some servers answer within one.
        if deadline.left(self.clock.now()).is_zero() {
            return Err(RpcError::Late);
        }
        self.clock.until(deadline, called).await.unwrap_or(Err(RpcError::Late))
    }
}

fn request(method: &'static str, message: &impl Message) -> Result<Request<Full<Bytes>>, RpcError> {
    let length = message.encoded_len();
    let announced = u32::try_from(length).map_err(|_too_large| RpcError::Unreadable(format!("a message of {length} bytes cannot be sent")))?;
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(announced);
    message.encode_raw(&mut bytes);
    let mut request = Request::new(Full::new(bytes.freeze()));
    (*request.method_mut(), *request.version_mut()) = (Method::POST, Version::HTTP_2);
    *request.uri_mut() = http::Uri::from_static(method);
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    Ok(request)
}

/// Whether headers or trailers state how the call ended.
fn said(headers: &HeaderMap) -> Result<bool, RpcError> {
    match Status::from_header_map(headers) {
        None => Ok(false),
        Some(status) if status.code() == Code::Ok => Ok(true),
        Some(status) => Err(RpcError::Said { code: status.code(), message: status.message().to_owned() }),
    }
}

fn only_message<A: Message + Default>(mut bytes: Bytes) -> Result<A, RpcError> {
    let wrong = |why: &str| RpcError::Unreadable(why.to_owned());
    if bytes.len() < PREFIX {
        return Err(wrong("it has no message"));
    }
    let prefix = bytes.split_to(PREFIX);
    let announced = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    match (prefix[0], bytes.len() == announced as usize) {
        (0, true) => A::decode(bytes).map_err(|fault| wrong(&fault.to_string())),
        (0, false) => Err(wrong("its length is not the announced one")),
        _ => Err(wrong("it is compressed, which was not asked for")),
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::repository::{IndexRequest, UnloadResponse};

    use super::*;

    #[test]
    fn a_message_goes_out_with_its_length() {
        let request = request("/a.B/C", &IndexRequest { repository_name: "ab".to_owned(), ready: false }).expect("it is small");
        let body = futures::executor::block_on(request.into_body().collect()).expect("it is all there").to_bytes();
        assert_eq!(&body[..], b"\0\0\0\0\x04\x0a\x02ab");
    }

    #[test]
    fn what_is_no_message_is_told_apart() {
        assert_eq!(only_message(Bytes::from_static(b"\0\0\0\0\0")), Ok(UnloadResponse {}));
        for (bytes, says) in [
            (&b""[..], "no message"),
            (b"\0\0\0\0\x01", "length"),
            (b"\x01\0\0\0\0", "compressed"),
            (b"\0\0\0\0\x01\x08", "invalid"),
            (b"\0\0\0\0\x00\0\0\0\0\0", "length"),
        ] {
            match only_message::<UnloadResponse>(Bytes::from_static(bytes)) {
                Err(RpcError::Unreadable(why)) => assert!(why.contains(says), "{bytes:?}: {why}"),
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn headers_say_how_a_call_ended_in_the_servers_words() {
        let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
        };
        assert_eq!(said(&headers(&[])), Ok(false));
        assert_eq!(said(&headers(&[("grpc-status", "0")])), Ok(true));
        let error = said(&headers(&[("grpc-status", "3"), ("grpc-message", "failed%20to%20load")])).expect_err("3 is an error");
        assert_eq!(error.to_string(), "it answered InvalidArgument: failed to load");
    }
}
