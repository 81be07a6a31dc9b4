//! `ModelStreamInfer` of the embedded runtime: requests one after the other, each answered in its turn.
//!
//! What one request runs into is the message of its answer, and the stream goes on; what is wrong with the stream itself ends
//! it with a status.

use std::sync::Arc;

use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelStreamInferResponse};
use bytes::Bytes;
use futures::stream;
use http::request::Parts;
use http::{HeaderMap, Response};
use http_body::Frame;
use tonic::Code;

use crate::body::{Incoming, Outgoing};
use crate::codes::Fault;
use crate::frontend::{Call, Frontend, MODEL_STREAM_INFER};
use crate::id::asked;
use crate::meters::Measured;
use crate::route::Models;
use crate::weight;
use crate::wire::{self, Messages};

/// A stream between two of its requests.
struct Stream<M, B> {
    frontend: Arc<Frontend<M>>,
    headers: HeaderMap,
    messages: Messages<B>,
    measured: Measured,
}

/// Answers the requests of `body`.
pub(crate) fn infer<M: Models, B: Incoming>(frontend: Arc<Frontend<M>>, head: &Parts, body: B) -> Response<Outgoing> {
    let measured = frontend.meters.grpc.started(&frontend.clock);
    let messages = Messages::new(&head.headers, body, frontend.config.max_message);
    let stream = Stream { frontend, headers: head.headers.clone(), messages, measured };
    let frames = stream::unfold(Some(stream), |stream| async move {
        let mut stream = stream?;
        match stream.next().await {
            Ok(Some(answer)) => Some((Frame::data(answer), Some(stream))),
            Ok(None) => {
                stream.measured.ended(Code::Ok);
                Some((Frame::trailers(wire::well()), None))
            }
            Err(fault) => {
                stream.measured.ended(fault.verdict().code);
                Some((Frame::trailers(wire::badly(&fault)), None))
            }
        }
    });
    wire::begun(Outgoing::Made(Box::pin(frames)))
}

impl<M: Models, B: Incoming> Stream<M, B> {
    /// The answer to the next request, as it goes out; `None` when the client has ended the stream.
    ///
    /// # Errors
    /// What is wrong with the stream.
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let frontend = &self.frontend;
        let mut share = frontend.bodies.share();
        let Some(message) = self.messages.next(&mut share).await? else { return Ok(None) };
        share.add(weight::of_infer_request(&message).map_err(Fault::BadRequest)?)?;
        let request: ModelInferRequest = wire::decode(message)?;
        // Each request has the time of a call: a stream may be open for hours.
        let deadline = frontend.deadline(&self.headers)?;
        let (id, in_message) = (request.id.clone(), request.model_name.clone());
        let call = Call { path: MODEL_STREAM_INFER, metadata: &self.headers };
        let answer = match frontend.infer_with(&asked(&self.headers, &in_message)?, request, call, deadline).await {
            Ok(answer) => ModelStreamInferResponse { error_message: String::new(), infer_response: Some(answer) },
            // With the request's id, so that its sender knows which one it was.
            Err(fault) => {
                let infer_response = Some(ModelInferResponse { id, model_name: in_message, ..ModelInferResponse::default() });
                ModelStreamInferResponse { error_message: fault.to_string(), infer_response }
            }
        };
        wire::framed(&answer).map(Some)
    }
}
