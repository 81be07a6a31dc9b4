//! Requests of our own making to a runtime: those of the REST port, as the Open Inference Protocol has them.

use async_trait::async_trait;
use berth_adapters::{Infer, InferError};
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse};
use berth_telemetry::Clock;
use berth_types::{Deadline, ModelId};
use berth_upstream::Server;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method as Verb, Request as HttpRequest, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Full};
use prost::Message;
use tonic::{Code, Status};

use super::heads;
use crate::budget::{Budget, Share};
use crate::wire;

/// How long a runtime may take to say what a model's inputs and outputs are.
const METADATA: std::time::Duration = std::time::Duration::from_secs(30);

/// A runtime behind a socket, for those who have messages and want messages.
pub(crate) struct Typed {
    server: Server,
    bodies: Budget,
    clock: Clock,
}

impl Typed {
    pub(crate) fn new(server: Server, bodies: Budget, clock: Clock) -> Self {
        Typed { server, bodies, clock }
    }

    /// One unary call.
    async fn call<A: Message + Default>(
        &self,
        method: &'static str,
        model: &ModelId,
        message: &impl Message,
        deadline: Deadline,
    ) -> Result<A, InferError> {
        let mut share = self.bodies.share();
        let called = async {
            let answer = self.server.call(self.request(method, model, message, deadline)?).await;
            let answer = answer.map_err(|why| InferError::Away(why.to_string()))?;
            let (head, mut body) = answer.into_parts();
            if head.status != StatusCode::OK {
                return Err(InferError::Away(format!("the runtime answered with HTTP status {}", head.status.as_u16())));
            }
            said(model, &head.headers)?;
            let (mut bytes, mut ended) = (BytesMut::new(), heads::code(&head.headers).is_some());
            while let Some(frame) = body.frame().await {
                match frame.map_err(|why| InferError::Away(why.to_string()))?.into_data() {
                    Ok(data) => {
                        hold(&mut share, data.len())?;
                        bytes.extend_from_slice(&data);
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            said(model, &trailers)?;
                            ended |= heads::code(&trailers).is_some();
                        }
                    }
                }
            }
            if !ended {
                return Err(InferError::Away("the runtime's answer ended without a status".to_owned()));
            }
            only_message(bytes.freeze())
        };
        self.clock.until(deadline, called).await.unwrap_or(Err(InferError::DeadlineExceeded))
    }

    fn request(
        &self,
        method: &'static str,
        model: &ModelId,
        message: &impl Message,
        deadline: Deadline,
    ) -> Result<HttpRequest<Full<Bytes>>, InferError> {
        let message = wire::framed(message).map_err(|why| InferError::BadRequest(why.to_string()))?;
        let mut request = HttpRequest::new(Full::new(message));
        (*request.method_mut(), *request.version_mut()) = (Verb::POST, Version::HTTP_2);
        *request.uri_mut() = http::Uri::from_static(method);
        *request.headers_mut() = heads::to_runtime(&HeaderMap::new(), model, deadline.left(self.clock.now()));
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(request)
    }
}

#[async_trait]
impl Infer for Typed {
    async fn infer(&self, model: &ModelId, mut request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, InferError> {
        request.model_name = model.to_string();
        self.call("/inference.GRPCInferenceService/ModelInfer", model, &request, deadline).await
    }

    async fn metadata(&self, model: &ModelId) -> Result<ModelMetadataResponse, InferError> {
        let request = ModelMetadataRequest { name: model.to_string(), version: String::new() };
        self.call("/inference.GRPCInferenceService/ModelMetadata", model, &request, self.clock.deadline_in(METADATA)).await
    }
}

/// The error that headers or trailers state.
fn said(model: &ModelId, headers: &HeaderMap) -> Result<(), InferError> {
    if heads::is_not_here(headers) {
        return Err(InferError::NotLoaded(model.clone()));
    }
    match Status::from_header_map(headers) {
        None => Ok(()),
        Some(status) => match status.code() {
            Code::Ok => Ok(()),
            code => Err(InferError::Refused { code: code as i32, message: status.message().to_owned() }),
        },
    }
}

fn hold(share: &mut Share, bytes: usize) -> Result<(), InferError> {
    share.add(bytes as u64).map_err(|why| InferError::Busy(why.to_string()))
}

/// The one message of a unary answer.
fn only_message<A: Message + Default>(mut bytes: Bytes) -> Result<A, InferError> {
    let wrong = |why: &str| InferError::Failed(format!("the runtime's answer cannot be read: {why}"));
    if bytes.len() < 5 {
        return Err(wrong("it has no message"));
    }
    let prefix = bytes.split_to(5);
    let announced = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
    match (prefix[0], bytes.len() == announced as usize) {
        (0, true) => A::decode(bytes).map_err(|fault| wrong(&fault.to_string())),
        (0, false) => Err(wrong("its length is not the announced one")),
        _ => Err(wrong("it is compressed, which was not asked for")),
    }
}
