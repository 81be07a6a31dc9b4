//! One message for several models: each is asked, and their answers follow one another as one message.
//!
//! Protobuf merges messages that stand one behind the other, so a method whose answers are lists answers with all of them.
//! Models that are not registered are left out, unless all are required.

use berth_splice::suffix;
use berth_types::Deadline;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method as Verb, Request as HttpRequest, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use tonic::Status;

use super::{call_fault, heads, infer_fault};
use crate::body::{Incoming, Outgoing};
use crate::budget::Share;
use crate::codes::{Fault, Quoted};
use crate::frontend::Frontend;
use crate::id::Asked;
use crate::methods::Method;
use crate::route::{self, Models};
use crate::wire::{self, Messages};

/// Models that are asked at once.
const AT_ONCE: usize = 4;

/// What one model answered.
struct One {
    headers: HeaderMap,
    message: Bytes,
    trailers: HeaderMap,
}

/// What one model answered, or the runtime's own word against it.
enum Answered {
    Well(One),
    Badly(Response<Outgoing>),
}

impl<M: Models> Frontend<M> {
    /// Passes the one message of `body` on to each of `asked`.
    pub(super) async fn pass_several<B: Incoming>(
        &self,
        server: &berth_upstream::Server,
        head: &Parts,
        method: &Method,
        asked: &[Asked<'_>],
        body: B,
        deadline: Deadline,
    ) -> Result<Response<Outgoing>, Fault> {
        let mut share = self.bodies.share();
        let received = self.clock.until(deadline, Messages::new(&head.headers, body, self.config.max_message).only(&mut share));
        let message = received.await.unwrap_or(Err(Fault::SlowRequest))?;
        let all = head.headers.get("mm-required").is_some_and(|value| value == "all");
        let (message, shares) = (&message, &share);
        let mut calls = Vec::with_capacity(asked.len());
        for asked in asked {
            let call = async move {
                match self.ask_one(server, head, method, asked, message, deadline, shares.another()).await {
                    Err(Fault::UnknownModel(_) | Fault::NameAsModelId(_)) if !all => Ok(None),
                    answered => answered.map(Some),
                }
            };
            calls.push(call.boxed());
        }
        let mut answers = stream::iter(calls).buffered(AT_ONCE);
        let (mut headers, mut trailers, mut whole, mut held) = (HeaderMap::new(), HeaderMap::new(), BytesMut::new(), Vec::new());
        let mut found = false;
        while let Some(answer) = answers.try_next().await? {
            match answer {
                None => {}
                Some((Answered::Badly(answer), _)) => return Ok(answer),
                Some((Answered::Well(one), share)) => {
                    found = true;
                    held.push(share);
                    merge(&mut headers, one.headers);
                    merge(&mut trailers, one.trailers);
                    whole.extend_from_slice(&one.message);
                }
            }
        }
        if !found {
            return Err(Fault::UnknownModel(Quoted::new(&asked.iter().map(Asked::as_str).collect::<Vec<_>>().join(", "))));
        }
        let size =
            u32::try_from(whole.len()).map_err(|_| Fault::Internal(format!("the answers have {} bytes, gRPC takes at most 4 GiB", whole.len())))?;
        let mut prefix = BytesMut::with_capacity(5);
        prefix.put_u8(0);
        prefix.put_u32(size);
        let mut response = wire::begun(Outgoing::Ready { pieces: [prefix.freeze(), whole.freeze()].into(), trailers: Some(trailers) });
        merge(&mut headers, std::mem::take(response.headers_mut()));
        headers.remove("grpc-encoding");
        *response.headers_mut() = headers;
        Ok(response)
    }

    #[allow(clippy::too_many_arguments, reason = "all of them are one call's")]
    async fn ask_one(
        &self,
        server: &berth_upstream::Server,
        head: &Parts,
        method: &Method,
        asked: &Asked<'_>,
        message: &Bytes,
        deadline: Deadline,
        mut share: Share,
    ) -> Result<(Answered, Share), Fault> {
        let registration = route::registration(&self.models, asked)?;
        let model = &registration.id;
        let guard = route::acquire(&self.models, &registration, &self.clock, deadline).await?;
        let observed = self.observe(head.uri.path(), asked, model, &head.headers);
        observed.iter().for_each(|observed| observed.request(message.len(), || message.clone()));
        let id = method.inject.as_ref().map_or_else(Bytes::new, |path| suffix(path, model.as_str()));
        let mut sent = BytesMut::with_capacity(5 + message.len() + id.len());
        share.add(sent.capacity() as u64)?;
        sent.put_u8(0);
        let size = message.len() + id.len();
        sent.put_u32(u32::try_from(size).map_err(|_| Fault::TooLarge { size: Some(size as u64), limit: self.config.max_message })?);
        sent.extend_from_slice(message);
        sent.extend_from_slice(&id);
        let (mut parts, ()) = HttpRequest::new(()).into_parts();
        (parts.method, parts.version) = (Verb::POST, Version::HTTP_2);
        parts.uri = head.uri.clone();
        parts.headers = heads::to_runtime(&head.headers, model, deadline.left(self.clock.now()));
        parts.headers.remove("grpc-encoding");
        parts.headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
        let called = async {
            let answer = server.call(HttpRequest::from_parts(parts, Full::new(sent.freeze()))).await.map_err(|why| call_fault(model, &why))?;
            let (head, mut body) = answer.into_parts();
            let lost = |why: String| Fault::RuntimeLost { model: Quoted::new(model.as_str()), why };
            if head.status != StatusCode::OK {
                return Err(lost(format!("it answered with HTTP status {}", head.status.as_u16())));
            }
            let (mut bytes, mut trailers) = (BytesMut::new(), None);
            while let Some(frame) = body.frame().await {
                match frame.map_err(|why| lost(why.to_string()))?.into_data() {
                    Ok(data) => {
                        share.add(data.len() as u64)?;
                        bytes.extend_from_slice(&data);
                    }
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
            }
            let said = trailers.as_ref().unwrap_or(&head.headers);
            let well = Status::from_header_map(said).is_some_and(|status| status.code() == tonic::Code::Ok);
            if !well {
                let mut answer = wire::begun(Outgoing::Ready { pieces: [].into(), trailers: None });
                *answer.headers_mut() = head.headers;
                merge(answer.headers_mut(), trailers.unwrap_or_default());
                return Ok(Answered::Badly(answer));
            }
            let message = only(bytes.freeze()).map_err(lost)?;
            Ok(Answered::Well(One { headers: head.headers, message, trailers: trailers.unwrap_or_default() }))
        };
        let answered = tokio::select! {
            answered = self.clock.until(deadline, called) => answered,
            () = M::revoked(&guard) => Some(Err(Fault::Revoked(Quoted::new(model.as_str())))),
        };
        let answered = answered.unwrap_or_else(|| Err(infer_fault(model, berth_adapters::InferError::DeadlineExceeded)));
        if let Some(observed) = observed {
            match &answered {
                Ok(Answered::Well(one)) => observed.response(&one.headers, one.message.len(), || one.message.clone()),
                Ok(Answered::Badly(answer)) => observed.failed(heads::code(answer.headers()).unwrap_or(tonic::Code::Unknown)),
                Err(fault) => observed.failed(fault.verdict().code),
            }
        }
        answered.map(|answered| (answered, share))
    }
}

/// Adds `more` to `headers`: of what can be there only once the last counts.
fn merge(headers: &mut HeaderMap, more: HeaderMap) {
    let mut last = None;
    for (name, value) in more {
        last = name.or(last);
        let Some(name) = &last else { continue };
        if ["content-type", "date", "grpc-status", "grpc-message", "grpc-accept-encoding"].contains(&name.as_str()) {
            headers.insert(name, value);
        } else {
            headers.append(name, value);
        }
    }
}

/// The bytes of the one message of a body.
fn only(mut bytes: Bytes) -> Result<Bytes, String> {
    if bytes.len() < 5 {
        return Err("it answered without a message".to_owned());
    }
    let prefix = bytes.split_to(5);
    let announced = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    match (prefix[0], bytes.len() == announced as usize) {
        (0, true) => Ok(bytes),
        (0, false) => Err("it answered with several messages: one message cannot go to several models then".to_owned()),
        _ => Err("it answered with a compressed message, which was not asked for".to_owned()),
    }
}
