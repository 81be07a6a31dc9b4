//! REST beside gRPC: an image of 150,528 FP32 numbers, `[1, 3, 224, 224]`, to a model that answers at once with 1,000
//! scores, or with the image. What is left is what the protocols cost.
//!
//! The JSON is what Python makes of a float32 array: nested, each number with the digits of a double. Clients are in this
//! process and their CPU time counts; the REST client sends bytes that are ready and reads no JSON, the gRPC client encodes.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, ensure};
use async_trait::async_trait;
use berth_adapters::{Infer, InferError};
use berth_benches::{Comparison, Cost, Median};
use berth_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use berth_proto::inference::model_infer_request::InferInputTensor;
use berth_proto::inference::model_infer_response::InferOutputTensor;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_proxy::{Frontend, Models, ProxyConfig};
use berth_registry::Resolved;
use berth_residency::WaitError;
use berth_telemetry::{Clock, HostNet, Metrics, Net};
use berth_types::{Deadline, ModelId, Registration};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::stage;

const CALLS: u32 = 10;
const SIDE: usize = 224;
const NUMBERS: usize = 3 * SIDE * SIDE;
const SCORES: usize = 1000;
/// Answers with scores.
const CLASSIFIER: &str = "classifier";
/// Answers with what it got.
const ECHO: &str = "echo";

/// Measures and prints.
pub(crate) async fn run(blocks: usize) -> anyhow::Result<()> {
    let clock = Clock::system();
    let shutdown = CancellationToken::new();
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let (grpc, rest) = (HostNet.listen(local).await?, HostNet.listen(local).await?);
    let (grpc_at, rest_at) = (grpc.local_addr()?, rest.local_addr()?);
    let ready = Arc::new(|| Ok(()));
    let frontend = Frontend::new(Always, Arc::new(Instant), clock.clone(), &Metrics::default(), ProxyConfig::default(), ready);
    tokio::spawn(berth_proxy::serve_grpc(Arc::clone(&frontend), grpc, shutdown.clone()));
    tokio::spawn(berth_proxy::serve_rest(frontend, rest, shutdown.clone()));

    let channel = Channel::from_shared(format!("http://{grpc_at}"))?.tcp_nodelay(true).connect().await?;
    let mut grpc = GrpcInferenceServiceClient::new(channel).max_decoding_message_size(16 << 20);
    let mut rest = TcpStream::connect(rest_at).await?;
    rest.set_nodelay(true)?;

    for (name, model, binary, promise) in [
        ("an image as JSON against gRPC", CLASSIFIER, false, Some(10_000.0)),
        ("an image as a binary tensor by REST against gRPC", CLASSIFIER, true, Some(1000.0)),
        ("an image as JSON, there and back, against gRPC", ECHO, false, None),
        ("an image as a binary tensor by REST, there and back, against gRPC", ECHO, true, None),
    ] {
        let request = http(model, binary);
        let mut costs = Vec::new();
        for block in 0..=blocks {
            let (base, thing);
            if block % 2 == 0 {
                base = grpc_calls(&mut grpc, model, &clock).await?;
                thing = rest_calls(&mut rest, &request, &clock).await?;
            } else {
                thing = rest_calls(&mut rest, &request, &clock).await?;
                base = grpc_calls(&mut grpc, model, &clock).await?;
            }
            if block > 0 {
                costs.push((base, thing));
            }
        }
        println!("{}", Comparison::of(name, CALLS, &costs));
        let added = |(base, thing): &(Cost, Cost)| (thing.cpu.as_secs_f64() - base.cpu.as_secs_f64()) * 1e6 / f64::from(CALLS);
        let added = Median::of(costs.iter().map(added).collect());
        let promised = promise.map_or(String::new(), |most| format!("; promise: at most {most}"));
        println!("  {} bytes sent; added CPU {added} us per request{promised}", request.len());
    }
    shutdown.cancel();
    Ok(())
}

async fn grpc_calls(client: &mut GrpcInferenceServiceClient<Channel>, model: &str, clock: &Clock) -> anyhow::Result<Cost> {
    let raw: Vec<u8> = image().flat_map(f32::to_le_bytes).collect();
    let image = ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![InferInputTensor {
            name: "image".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 3, SIDE as i64, SIDE as i64],
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![raw.into()],
        ..ModelInferRequest::default()
    };
    let meter = stage::Meter::start(clock);
    for _ in 0..CALLS {
        client.model_infer(image.clone()).await?;
    }
    Ok(meter.stop(clock))
}

async fn rest_calls(stream: &mut TcpStream, request: &[u8], clock: &Clock) -> anyhow::Result<Cost> {
    let mut answer = Vec::with_capacity(8 << 20);
    let meter = stage::Meter::start(clock);
    for _ in 0..CALLS {
        stream.write_all(request).await?;
        answer.clear();
        loop {
            ensure!(stream.read_buf(&mut answer).await? > 0, "the connection was closed");
            if let Some(length) = whole(&answer)?
                && answer.len() >= length
            {
                break;
            }
        }
    }
    let cost = meter.stop(clock);
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..answer.len().min(500)]));
    Ok(cost)
}

/// The length of the answer that begins like this, once its head is there.
fn whole(answer: &[u8]) -> anyhow::Result<Option<usize>> {
    let head = &answer[..answer.len().min(1024)];
    let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&head[..end])?.to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")).context("the answer has no length")?;
    Ok(Some(end + 4 + length.trim().parse::<usize>()?))
}

/// Numbers from 0 to 1 without a pattern, the same ones each time.
fn image() -> impl Iterator<Item = f32> {
    (0..NUMBERS as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / (1 << 24) as f32)
}

/// A whole request.
fn http(model: &str, binary: bool) -> Vec<u8> {
    let head = r#""name":"image","datatype":"FP32","shape":[1,3,224,224]"#;
    let (json, raw): (String, Vec<u8>) = if binary {
        let parameters = format!(r#""parameters":{{"binary_data_size":{}}}"#, 4 * NUMBERS);
        let json = format!(r#"{{"inputs":[{{{head},{parameters}}}],"parameters":{{"binary_data_output":true}}}}"#);
        (json, image().flat_map(f32::to_le_bytes).collect())
    } else {
        let numbers: Vec<String> = image().map(|number| f64::from(number).to_string()).collect();
        let rows: Vec<String> = numbers.chunks(SIDE).map(|row| format!("[{}]", row.join(", "))).collect();
        let planes: Vec<String> = rows.chunks(SIDE).map(|rows| format!("[{}]", rows.join(", "))).collect();
        (format!(r#"{{"inputs":[{{{head},"data":[[{}]]}}]}}"#, planes.join(", ")), Vec::new())
    };
    let length = if binary { format!("inference-header-content-length: {}\r\n", json.len()) } else { String::new() };
    let head = format!("POST /v2/models/{model}/infer HTTP/1.1\r\nhost: h\r\n{length}content-length: {}\r\n\r\n", json.len() + raw.len());
    [head.as_bytes(), json.as_bytes(), &raw].concat()
}

/// Every name is a model, and it is loaded.
struct Always;

impl Models for Always {
    type Guard = ();

    fn resolve(&self, id: &str) -> Resolved {
        Resolved::Model(stage::registration(id))
    }

    fn version(&self, id: &str) -> Option<Arc<Registration>> {
        Some(stage::registration(id))
    }

    fn try_acquire(&self, _model: &ModelId) -> Option<()> {
        Some(())
    }

    async fn ensure_loaded(&self, _model: &Arc<Registration>, _deadline: Deadline) -> Result<(), WaitError> {
        Ok(())
    }
}

/// Takes no time.
struct Instant;

#[async_trait]
impl Infer for Instant {
    async fn infer(&self, model: &ModelId, request: ModelInferRequest, _deadline: Deadline) -> Result<ModelInferResponse, InferError> {
        let image = request.raw_input_contents.into_iter().next().unwrap_or_default();
        let (raw, shape) = if model.as_str().starts_with(ECHO) {
            (image, vec![1, 3, SIDE as i64, SIDE as i64])
        } else {
            (image.slice(..4 * SCORES), vec![1, SCORES as i64])
        };
        let output = InferOutputTensor { name: "y".to_owned(), datatype: "FP32".to_owned(), shape, ..InferOutputTensor::default() };
        Ok(ModelInferResponse {
            model_name: model.to_string(),
            outputs: vec![output],
            raw_output_contents: vec![raw],
            ..ModelInferResponse::default()
        })
    }

    async fn metadata(&self, _model: &ModelId) -> Result<ModelMetadataResponse, InferError> {
        Ok(ModelMetadataResponse::default())
    }
}
