//! A small call through the gRPC port, against two baselines: the same call handed to the engine in this process, and
//! the same engine behind a bare gRPC server that routes nothing.
//!
//! The first ratio is what a socket, HTTP/2 and protobuf cost; the second is what Berth adds to them: ids, the view, the
//! guard, deadlines, metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_adapters::Infer;
use berth_benches::{Comparison, Cost};
use berth_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use berth_proto::inference::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use berth_proto::inference::model_infer_request::InferInputTensor;
use berth_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStreamInferResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
    ServerReadyResponse,
};
use berth_proxy::{Frontend, Here, ProxyConfig};
use berth_registry::{NameEntry, Views};
use berth_telemetry::{Clock, HostNet, Metrics, Net};
use berth_types::{ByteSize, ModelId, Name};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use crate::stage;

const CALLS: u32 = 200;
const MODEL: &str = "iris";

/// Measures and prints.
pub(crate) async fn run(blocks: usize) -> anyhow::Result<()> {
    let clock = Clock::system();
    let scratch = tempfile::tempdir()?;
    let engine = stage::engine(&clock)?;
    let residency = stage::residency(&engine, ByteSize::mib(64), &scratch, &clock).await?;
    let model = stage::registration(MODEL);
    let views = Views::default();
    let entry = NameEntry { active: Some(Arc::clone(&model)), target: None, failure: None };
    views.update(|view| view.with_name(&Name::new(MODEL).expect("a name"), Some(entry)));
    views.mark_ready();
    let deadline = || clock.deadline_in(Duration::from_secs(60));
    let kept = residency.ensure_loaded(&model, deadline()).await?;

    let shutdown = CancellationToken::new();
    let listener = HostNet.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let through = listener.local_addr()?;
    let frontend = Frontend::new(
        Here::new(views, residency.clone()),
        engine.clone(),
        clock.clone(),
        &Metrics::default(),
        ProxyConfig::default(),
        Arc::new(|| Ok(())),
    );
    tokio::spawn(berth_proxy::serve_grpc(frontend, listener, shutdown.clone()));

    let listener = HostNet.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let bare = listener.local_addr()?;
    let service = Bare { engine: engine.clone(), model: model.id.clone(), clock: clock.clone() };
    let incoming = tonic::transport::server::TcpIncoming::from(listener.into_tokio()).with_nodelay(Some(true));
    tokio::spawn(Server::builder().add_service(GrpcInferenceServiceServer::new(service)).serve_with_incoming(incoming));

    let mut through = connect(through).await?;
    let mut bare = connect(bare).await?;
    let (mut in_process, mut against_bare) = (Vec::new(), Vec::new());
    for block in 0..=blocks {
        let meter = stage::Meter::start(&clock);
        for _ in 0..CALLS {
            engine.infer(&model.id, request(), deadline()).await?;
        }
        let direct = meter.stop(&clock);
        let (first, second) = if block % 2 == 0 { (&mut bare, &mut through) } else { (&mut through, &mut bare) };
        let (first, second) = (calls(first, &clock).await?, calls(second, &clock).await?);
        let (bare, through) = if block % 2 == 0 { (first, second) } else { (second, first) };
        if block > 0 {
            in_process.push((direct, through));
            against_bare.push((bare, through));
        }
    }
    println!("{}", Comparison::of("small gRPC call against the in-process engine", CALLS, &in_process));
    println!("{}\n  promise: at most 1.3", Comparison::of("small gRPC call against a bare gRPC server with the same engine", CALLS, &against_bare));
    drop(kept);
    shutdown.cancel();
    residency.drain(deadline()).await;
    Ok(())
}

async fn connect(addr: SocketAddr) -> anyhow::Result<GrpcInferenceServiceClient<Channel>> {
    let channel = Channel::from_shared(format!("http://{addr}"))?.tcp_nodelay(true).connect().await?;
    Ok(GrpcInferenceServiceClient::new(channel))
}

async fn calls(client: &mut GrpcInferenceServiceClient<Channel>, clock: &Clock) -> anyhow::Result<Cost> {
    let meter = stage::Meter::start(clock);
    for _ in 0..CALLS {
        client.model_infer(request()).await?;
    }
    Ok(meter.stop(clock))
}

/// One flower: [1, 4] f32, row-major.
fn request() -> ModelInferRequest {
    let flower: Vec<u8> = [5.1f32, 3.5, 1.4, 0.2].iter().flat_map(|number| number.to_le_bytes()).collect();
    ModelInferRequest {
        model_name: MODEL.to_owned(),
        inputs: vec![InferInputTensor { name: "X".to_owned(), datatype: "FP32".to_owned(), shape: vec![1, 4], ..InferInputTensor::default() }],
        raw_input_contents: vec![flower.into()],
        ..ModelInferRequest::default()
    }
}

/// The engine behind gRPC and nothing else.
struct Bare {
    engine: Arc<berth_adapters::OnnxRuntime>,
    model: ModelId,
    clock: Clock,
}

#[tonic::async_trait]
impl GrpcInferenceService for Bare {
    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let deadline = self.clock.deadline_in(Duration::from_secs(60));
        let answer = self.engine.infer(&self.model, request.into_inner(), deadline).await;
        answer.map(Response::new).map_err(|fault| Status::internal(fault.to_string()))
    }

    type ModelStreamInferStream = futures::stream::Empty<Result<ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(&self, _: Request<tonic::Streaming<ModelInferRequest>>) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        Err(Status::unimplemented("streams are not measured here"))
    }

    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_ready(&self, _: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        Ok(Response::new(ModelReadyResponse { ready: true }))
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse::default()))
    }

    async fn model_metadata(&self, _: Request<ModelMetadataRequest>) -> Result<Response<ModelMetadataResponse>, Status> {
        self.engine.metadata(&self.model).await.map(Response::new).map_err(|fault| Status::internal(fault.to_string()))
    }
}
