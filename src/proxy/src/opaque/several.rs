//! One message for several models: each is asked, and their answers follow one another as one message.
//!
//! Protobuf merges messages that stand one behind the other, so a method whose answers are lists answers with all of them.
//! Models that are not registered are left out, unless all are required. What they answer is here as a whole before the client
//! gets any of it, so it counts with the requests until the client has read it.

use berth_splice::{Injector, Prefix, suffix};
use berth_types::{Deadline, ModelId};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response};

use super::passing::fault_of;
use super::sending::{Deadlines, Head};
use super::whole::{Collected, Whole};
use crate::body::{Incoming, Outgoing};
use crate::budget::Share;
use crate::codes::{Fault, Quoted};
use crate::frontend::Frontend;
use crate::id::Asked;
use crate::methods::Method;
use crate::route::Models;
use crate::wire::{self, Messages};

/// Models that are asked at once.
const AT_ONCE: usize = 4;
/// Bytes of a message that are looked at before others have their turn.
const STEP: usize = 256 << 10;

/// What one model answered.
struct One {
    headers: HeaderMap,
    message: Bytes,
    /// The same without what holds it: what payload processors keep counts with them.
    shown: Bytes,
    trailers: HeaderMap,
}

/// What one model answered, or the runtime's own word against it.
enum Answered {
    Well(One),
    Badly(Response<Outgoing>),
}

/// Bytes and the share that holds them, given back with the last slice of them.
struct Held {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
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
        self.takes_more(method, &message).await?;
        let all = head.headers.get("mm-required").is_some_and(|value| value == "all");
        let mut headers = head.headers.clone();
        headers.remove("grpc-encoding");
        headers.insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
        let to = Head { uri: &head.uri, headers: &headers };
        let (message, shares) = (&message, &share);
        let mut calls = Vec::with_capacity(asked.len());
        for asked in asked {
            let call = async move {
                match self.ask_one(server, to, method, asked, message, deadline, shares.another()).await {
                    Err(Fault::UnknownModel(_) | Fault::NameAsModelId(_)) if !all => Ok(None),
                    answered => answered.map(Some),
                }
            };
            calls.push(call.boxed());
        }
        let mut answers = stream::iter(calls).buffered(AT_ONCE);
        let (mut headers, mut trailers, mut size, mut messages) = (HeaderMap::new(), HeaderMap::new(), 0, Vec::new());
        let mut found = false;
        while let Some(answer) = answers.try_next().await? {
            match answer {
                None => {}
                Some(Answered::Badly(answer)) => return Ok(answer),
                Some(Answered::Well(one)) => {
                    found = true;
                    merge(&mut headers, one.headers);
                    merge(&mut trailers, one.trailers);
                    size += one.message.len();
                    messages.push(one.message);
                }
            }
        }
        if !found {
            return Err(Fault::UnknownModel(Quoted::new(&asked.iter().map(Asked::as_str).collect::<Vec<_>>().join(", "))));
        }
        let length = u32::try_from(size).map_err(|_| Fault::Internal(format!("the answers have {size} bytes, gRPC takes at most 4 GiB")))?;
        let prefix = Bytes::copy_from_slice(&Prefix { compressed: false, length }.to_bytes());
        let pieces = std::iter::once(prefix).chain(messages).filter(|piece| !piece.is_empty());
        let mut response = wire::begun(Outgoing::Ready { pieces: pieces.collect(), trailers: Some(trailers) });
        merge(&mut headers, std::mem::take(response.headers_mut()));
        headers.remove("grpc-encoding");
        *response.headers_mut() = headers;
        Ok(response)
    }

    #[allow(clippy::too_many_arguments, reason = "all of them are one call's")]
    async fn ask_one(
        &self,
        server: &berth_upstream::Server,
        head: Head<'_>,
        method: &Method,
        asked: &Asked<'_>,
        message: &Bytes,
        deadline: Deadline,
        mut share: Share,
    ) -> Result<Answered, Fault> {
        let deadlines = Deadlines { answer: deadline, end: deadline };
        let mut observed = None;
        let pieces = |model: &ModelId| {
            if observed.is_none() {
                observed = self.observe(head.uri.path(), asked, model, head.headers);
                observed.iter().for_each(|observed| observed.request(message.len(), || message.clone()));
            }
            self.with_id(method, message, model)
        };
        let mut request = Whole { pieces, held: message.len() as u64 };
        let answered = async {
            let begun = self.send(server, head, asked, deadlines, &mut request).await?;
            let answer = self.collect(begun, deadline, &mut share).await?;
            answered(answer, share)
        };
        let answered = answered.await;
        if let Some(observed) = observed {
            match &answered {
                Ok(Answered::Well(one)) => observed.response(&one.headers, one.shown.len(), || one.shown.clone()),
                Ok(Answered::Badly(answer)) => observed.failed(super::passed::code_of(answer.headers()).unwrap_or(tonic::Code::Unknown)),
                Err(fault) => observed.failed(fault.verdict().code),
            }
        }
        answered
    }

    /// `message` as it goes to the runtime: with its prefix, and with the id of `model`.
    fn with_id(&self, method: &Method, message: &Bytes, model: &ModelId) -> Result<Vec<Bytes>, Fault> {
        let id = method.inject.as_ref().map_or_else(Bytes::new, |path| suffix(path, model.as_str()));
        let size = (message.len() + id.len()) as u64;
        let length = u32::try_from(size).map_err(|_| Fault::TooLarge { size: Some(size), limit: self.config.max_message })?;
        let prefix = Bytes::copy_from_slice(&Prefix { compressed: false, length }.to_bytes());
        Ok([prefix, message.clone(), id].into_iter().filter(|piece| !piece.is_empty()).collect())
    }

    /// Whether an id can stand behind `message`: looked at once for all models, and a large one in steps, with others in between.
    async fn takes_more(&self, method: &Method, message: &Bytes) -> Result<(), Fault> {
        let Some(path) = &method.inject else { return Ok(()) };
        let size = message.len() as u64;
        let length = u32::try_from(size).map_err(|_| Fault::TooLarge { size: Some(size), limit: self.config.max_message })?;
        let (mut injector, mut seen) = (Injector::new(suffix(path, "any"), self.config.max_message.0, None), Vec::new());
        let prefix = Bytes::copy_from_slice(&Prefix { compressed: false, length }.to_bytes());
        let mut look = |piece| {
            seen.clear();
            injector.push(piece, &mut seen).map_err(|fault| fault_of(fault, &self.bodies))
        };
        look(prefix)?;
        for at in (0..message.len()).step_by(STEP) {
            if at > 0 {
                tokio::task::yield_now().await;
            }
            look(message.slice(at..message.len().min(at + STEP)))?;
        }
        injector.end().map_err(|fault| fault_of(fault, &self.bodies))
    }
}

/// What the runtime said, its message held by `share`.
fn answered(answer: Collected, mut share: Share) -> Result<Answered, Fault> {
    if answer.status().is_none_or(|status| status.code() != tonic::Code::Ok) {
        let mut badly = wire::begun(Outgoing::Ready { pieces: [].into(), trailers: None });
        *badly.headers_mut() = answer.headers;
        merge(badly.headers_mut(), answer.trailers.unwrap_or_default());
        return Ok(Answered::Badly(badly));
    }
    let message = answer.message()?;
    share.hold(message.len() as u64)?;
    let shown = message.clone();
    let message = Bytes::from_owner(Held { bytes: message, _share: share });
    Ok(Answered::Well(One { headers: answer.headers, message, shown, trailers: answer.trailers.unwrap_or_default() }))
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

#[cfg(test)]
mod tests {
    use berth_proto::inference::ModelInferRequest;
    use prost::Message as _;

    use super::*;
    use crate::frontend::MODEL_INFER;
    use crate::methods::Methods;
    use crate::scripted::rig;

    #[tokio::test]
    async fn only_a_large_message_is_looked_at_in_several_turns() {
        let (rig, method) = (rig(), Methods::default().of(MODEL_INFER).unwrap());
        // Before the content stand its field's number and length: four bytes.
        for (content, turns) in [(0, 1), (100, 1), (STEP - 4, 1), (STEP - 3, 2), (3 * STEP - 4, 3)] {
            let message = ModelInferRequest { raw_input_contents: vec![vec![7; content].into()], ..ModelInferRequest::default() };
            let message = Bytes::from(message.encode_to_vec());
            let mut looking = std::pin::pin!(rig.frontend.takes_more(&method, &message));
            let mut taken = 1;
            let looked = loop {
                match futures::poll!(&mut looking) {
                    std::task::Poll::Pending => taken += 1,
                    std::task::Poll::Ready(looked) => break looked,
                }
            };
            assert_eq!(looked, Ok(()));
            assert_eq!(taken, turns, "{} bytes", message.len());
        }
    }
}
