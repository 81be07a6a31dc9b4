//! Requests and answers of one message, here as a whole.

use berth_adapters::InferError;
use berth_residency::Ended;
use berth_types::{Deadline, ModelId};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use tonic::{Code, Status};

use super::sending::{Begun, Sending};
use super::{call_fault, infer_fault, is_late};
use crate::body::Outgoing;
use crate::budget::Share;
use crate::codes::{Fault, Quoted};
use crate::frontend::Frontend;
use crate::route::Models;

/// A request of one message, which `pieces` writes for a model.
pub(super) struct Whole<F> {
    pub(super) pieces: F,
    /// Bytes that it holds while it waits.
    pub(super) held: u64,
}

impl<F: FnMut(&ModelId) -> Result<Vec<Bytes>, Fault>> Sending for Whole<F> {
    type Body = Outgoing;

    fn body(&mut self, model: &ModelId) -> Result<Outgoing, Fault> {
        (self.pieces)(model).map(Outgoing::of)
    }

    fn held(&self) -> u64 {
        self.held
    }

    fn is_whole(&self) -> bool {
        true
    }

    fn is_sent(&self) -> bool {
        true
    }

    fn is_one(&self) -> bool {
        true
    }

    fn fault(&self) -> Option<Fault> {
        None
    }
}

/// All of an answer.
pub(super) struct Collected {
    pub(super) model: ModelId,
    pub(super) headers: HeaderMap,
    pub(super) trailers: Option<HeaderMap>,
    body: Bytes,
}

impl Collected {
    /// What the runtime said of the call; `None`: nothing.
    pub(super) fn status(&self) -> Option<Status> {
        Status::from_header_map(self.trailers.as_ref().unwrap_or(&self.headers))
    }

    /// Its one message.
    ///
    /// # Errors
    /// It has none or several, or a compressed one, which was not asked for.
    pub(super) fn message(&self) -> Result<Bytes, Fault> {
        const PREFIX: usize = 5;
        let lost = |why: &str| Err(Fault::RuntimeLost { model: Quoted::new(self.model.as_str()), why: why.to_owned() });
        let mut message = self.body.clone();
        if message.len() < PREFIX {
            return lost("it answered without a message");
        }
        match (message.get_u8(), message.get_u32() as usize == message.len()) {
            (0, true) => Ok(message),
            (0, false) => lost("it answered with several messages, or with a part of one: one was asked for"),
            _ => lost("it answered with a compressed message, which was not asked for"),
        }
    }
}

impl<M: Models> Frontend<M> {
    /// Reads an answer to its end; `share` holds its bytes.
    pub(super) async fn collect(&self, begun: Begun<M::Guard>, deadline: Deadline, share: &mut Share) -> Result<Collected, Fault> {
        let Begun { answer, guard, model, computes, .. } = begun;
        let (head, mut body) = answer.into_parts();
        if head.status != StatusCode::OK {
            let why = format!("it answered with HTTP status {}", head.status.as_u16());
            return Err(Fault::RuntimeLost { model: Quoted::new(model.as_str()), why });
        }
        let reading = async {
            let (mut first, mut more, mut trailers) = (Bytes::new(), BytesMut::new(), None);
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|why| {
                    if why.is_lost() {
                        M::witness(&guard)(Ended::Lost);
                    }
                    match is_late(&why, deadline, &self.clock) {
                        true => infer_fault(&model, InferError::DeadlineExceeded),
                        false => call_fault(&model, &why),
                    }
                })?;
                match frame.into_data() {
                    Ok(data) => {
                        share.add(data.len() as u64)?;
                        match (first.is_empty(), more.is_empty()) {
                            (true, _) => first = data,
                            (false, true) => more.extend([first.clone(), data]),
                            (false, false) => more.extend_from_slice(&data),
                        }
                    }
                    Err(frame) => trailers = frame.into_trailers().ok(),
                }
            }
            Ok((if more.is_empty() { first } else { more.freeze() }, trailers))
        };
        let read = tokio::select! {
            biased;
            read = self.clock.until(deadline, reading) => read,
            () = M::revoked(&guard) => return Err(Fault::Revoked(Quoted::new(model.as_str()))),
        };
        let (body, trailers) = read.unwrap_or_else(|| Err(infer_fault(&model, InferError::DeadlineExceeded)))?;
        let collected = Collected { model, headers: head.headers, trailers, body };
        if computes && M::is_on_probation(&guard) && collected.status().is_some_and(|status| status.code() == Code::Ok) {
            M::witness(&guard)(Ended::Well);
        }
        Ok(collected)
    }
}
