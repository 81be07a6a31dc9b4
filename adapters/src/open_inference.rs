//! The Open Inference Protocol as a client speaks it over gRPC.

use berth_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse,
};
use berth_types::{Deadline, ModelId};
use http::HeaderMap;

use crate::InferError;
use crate::rpc::{Rpc, RpcError};
use crate::unknown::is_unknown_model;

const SERVER_LIVE: &str = "/inference.GRPCInferenceService/ServerLive";
const SERVER_METADATA: &str = "/inference.GRPCInferenceService/ServerMetadata";
const MODEL_METADATA: &str = "/inference.GRPCInferenceService/ModelMetadata";
const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// What the server says of itself.
pub(crate) async fn server(rpc: &Rpc, deadline: Deadline) -> Result<ServerMetadataResponse, RpcError> {
    rpc.call(SERVER_METADATA, &ServerMetadataRequest {}, deadline).await
}

/// Whether the server lives.
pub(crate) async fn live(rpc: &Rpc, deadline: Deadline) -> Result<(), RpcError> {
    rpc.call::<ServerLiveResponse>(SERVER_LIVE, &ServerLiveRequest {}, deadline).await.map(drop)
}

/// Runs `model`.
pub(crate) async fn infer(rpc: &Rpc, model: &ModelId, request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, InferError> {
    infer_with(rpc, HeaderMap::new(), model, request, deadline).await
}

/// The same with further headers.
pub(crate) async fn infer_with(
    rpc: &Rpc,
    headers: HeaderMap,
    model: &ModelId,
    mut request: ModelInferRequest,
    deadline: Deadline,
) -> Result<ModelInferResponse, InferError> {
    request.model_name = model.to_string();
    request.model_version = String::new();
    rpc.call_with(MODEL_INFER, headers, &request, deadline).await.map_err(|why| error(model, why))
}

/// Inputs and outputs of `model`.
pub(crate) async fn metadata(rpc: &Rpc, model: &ModelId, deadline: Deadline) -> Result<ModelMetadataResponse, InferError> {
    metadata_with(rpc, HeaderMap::new(), model, deadline).await
}

/// The same with further headers.
pub(crate) async fn metadata_with(rpc: &Rpc, headers: HeaderMap, model: &ModelId, deadline: Deadline) -> Result<ModelMetadataResponse, InferError> {
    let request = ModelMetadataRequest { name: model.to_string(), version: String::new() };
    rpc.call_with(MODEL_METADATA, headers, &request, deadline).await.map_err(|why| error(model, why))
}

/// What a call about `model` that failed means to whoever asked.
pub(crate) fn error(model: &ModelId, why: RpcError) -> InferError {
    match why {
        RpcError::Late => InferError::DeadlineExceeded,
        RpcError::Said { code, message } if is_unknown_model(code, &message) => InferError::NotLoaded(model.clone()),
        RpcError::Said { code, message } => InferError::Refused { code: code as i32, message },
        RpcError::Away(why) => InferError::Away(why),
        RpcError::Unreadable(why) => InferError::Failed(why),
    }
}
