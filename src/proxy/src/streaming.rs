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
        if !self.messages.begun().await? {
            return Ok(None);
        }
        // Each request has the time of a call from its first byte on: a stream may be open for hours, and one that stops
        // within a message must not hold room for it as long.
        let deadline = frontend.deadline(&self.headers)?;
        let received = frontend.clock.until(deadline, self.messages.next(&mut share)).await;
        let Some(message) = received.unwrap_or(Err(Fault::SlowRequest))? else { return Ok(None) };
        share.add(weight::of_infer_request(&message).map_err(Fault::BadRequest)?)?;
        let request: ModelInferRequest = wire::decode(message)?;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use berth_types::ByteSize;
    use futures::channel::mpsc;
    use http::Request;
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;
    use crate::ProxyConfig;
    use crate::scripted::rig_with;

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stops_short_is_given_up_at_the_deadline_and_a_stream_may_be_silent_for_hours() {
        let rig = rig_with(ProxyConfig { default_deadline: Duration::from_secs(7), ..ProxyConfig::default() });
        let clock = &rig.frontend.clock;
        let (frames, body) = mpsc::unbounded::<Result<Frame<Bytes>, std::io::Error>>();
        let (head, ()) = Request::new(()).into_parts();
        let mut answers = infer(Arc::clone(&rig.frontend), &head, StreamBody::new(body)).into_body();
        assert!(clock.until(clock.deadline_in(Duration::from_secs(7200)), answers.frame()).await.is_none(), "nothing was sent");

        // 16 MiB are announced, and 1,000 bytes of them come.
        let begun = [&[0u8, 1, 0, 0, 0][..], &[0; 1000]].concat();
        frames.unbounded_send(Ok(Frame::data(begun.into()))).unwrap();
        let since = clock.now();
        let mut answer = Box::pin(answers.frame());
        assert!(futures::poll!(&mut answer).is_pending());
        assert_eq!(rig.frontend.bodies.taken(), 1005);
        let trailers = answer.await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!((trailers["grpc-status"].as_bytes(), clock.now() - since), (&b"4"[..], Duration::from_secs(7)));
        assert_eq!((rig.frontend.bodies.taken(), rig.frontend.config.max_message), (0, ByteSize::mib(16)));
        assert!(answers.frame().await.is_none());
    }
}
