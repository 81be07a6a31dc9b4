//! The gRPC port: `inference.GRPCInferenceService`, `grpc.health.v1.Health` and server reflection.

use std::sync::Arc;

use berth_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerReadyRequest, ServerReadyResponse,
};
use berth_telemetry::Clock;
use berth_types::ByteSize;
use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::codegen::Service as _;
use tonic_health::pb::health_server::HealthServer;
use tracing::Instrument as _;

use crate::body::{Answer, Incoming, Outgoing};
use crate::codes::{Fault, Quoted};
use crate::connections::{self, Door, Handler};
use crate::cores::{Place, Way};
use crate::frontend::{Call, Frontend, MODEL_INFER};
use crate::health::{HealthService, Ready};
use crate::id::asked;
use crate::mesh;
use crate::reflection::{Reflection, Serves, Version};
use crate::route::Models;
use crate::wire::Messages;
use crate::{streaming, weight, wire};

const SERVICE: &str = "/inference.GRPCInferenceService/";
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Messages other than inferences are a name and a version.
pub(crate) const SMALL_MESSAGE: ByteSize = ByteSize::kib(64);

/// Serves gRPC on `listener` until `shutdown`, then until the last request has been answered.
pub async fn serve_grpc<M: Models>(frontend: Arc<Frontend<M>>, door: impl Into<Door>, shutdown: CancellationToken) {
    let serves = if frontend.managing.get().is_some() { Serves::Both } else { Serves::Inference };
    let asides = Asides::new(Arc::clone(&frontend.ready), frontend.clock.clone(), shutdown.clone(), serves);
    let (config, clock) = (frontend.config.clone(), frontend.clock.clone());
    connections::serve(door.into().for_grpc(), GrpcPort { frontend, asides, way: None }, &config, &clock, shutdown).await;
}

/// What every gRPC port answers beside what it is for: health and reflection.
#[derive(Clone)]
pub(crate) struct Asides {
    health: HealthServer<HealthService>,
    reflection: Reflection,
}

impl Asides {
    pub(crate) fn new(ready: Ready, clock: Clock, shutdown: CancellationToken, serves: Serves) -> Self {
        let health = HealthServer::new(HealthService::new(ready, clock, shutdown.clone(), serves));
        let health = health.max_decoding_message_size(usize::try_from(SMALL_MESSAGE.0).unwrap_or(usize::MAX));
        Asides { health, reflection: Reflection::new(shutdown, serves) }
    }

    /// The answer to a request that is for one of them.
    pub(crate) fn at(&self, path: &str) -> Option<Aside<'_>> {
        if path.starts_with(HEALTH) { Some(Aside::Health(&self.health)) } else { self.reflection.at(path).map(Aside::Reflection) }
    }
}

/// One of them.
pub(crate) enum Aside<'a> {
    Health(&'a HealthServer<HealthService>),
    Reflection(Version),
}

impl Aside<'_> {
    pub(crate) async fn answer(self, request: Request<hyper::body::Incoming>) -> Answer {
        match self {
            Aside::Health(health) => health.clone().call(request).await.map(|response| response.map(Outgoing::Tonic)),
            Aside::Reflection(reflection) => Ok(reflection.answer(request).await),
        }
    }
}

struct GrpcPort<M> {
    frontend: Arc<Frontend<M>>,
    asides: Asides,
    /// The way to the runtime of a connection that has its own.
    way: Option<Arc<Way>>,
}

impl<M> Clone for GrpcPort<M> {
    fn clone(&self) -> Self {
        let (frontend, way) = (Arc::clone(&self.frontend), self.way.clone());
        GrpcPort { frontend, asides: self.asides.clone(), way }
    }
}

impl<M: Models> Handler for GrpcPort<M> {
    type Body = Outgoing;

    fn place(&self) -> Option<Place> {
        self.frontend.place()
    }

    fn at(&self, place: &Place) -> Self {
        GrpcPort { way: Some(Arc::clone(&place.way)), ..self.clone() }
    }

    async fn answer(&self, request: Request<hyper::body::Incoming>) -> Answer {
        let Some(context) = self.frontend.context(request.headers()) else { return self.answered(request).await };
        let answer = Box::pin(self.answered(request).instrument(context.clone())).await;
        answer.map(|answer| answer.map(|body| body.within(context)))
    }
}

impl<M: Models> GrpcPort<M> {
    async fn answered(&self, request: Request<hyper::body::Incoming>) -> Answer {
        if let Some(refusal) = not_grpc(&request) {
            return Ok(refusal);
        }
        if let Some(aside) = self.asides.at(request.uri().path()) {
            return Box::pin(aside.answer(request)).await;
        }
        // What is asked less often is in a box, so that the state of each call has no room for it.
        let (head, body) = request.into_parts();
        if let Some(method) = mesh::method(head.uri.path()) {
            return Ok(Box::pin(self.frontend.mesh(method, &head, body)).await);
        }
        let method = head.uri.path().strip_prefix(SERVICE);
        // About this server, not about a model: answered here.
        let here = matches!(method, Some("ModelReady" | "ServerLive" | "ServerReady" | "ServerMetadata"));
        if let (Some(way), false) = (self.way.as_ref().or(self.frontend.way()), here) {
            return Ok(self.frontend.pass(way, &head, body).await);
        }
        if let (Err(fault), false) = (self.frontend.methods().of(head.uri.path()), here) {
            return Ok(wire::fault(&fault));
        }
        Ok(match method {
            Some("ModelInfer") => Box::pin(self.frontend.grpc_infer(&head, body)).await,
            Some("ModelStreamInfer") => streaming::infer(Arc::clone(&self.frontend), &head, body),
            Some("ModelMetadata") => answered(Box::pin(self.frontend.grpc_metadata(&head, body)).await),
            Some("ModelReady") => answered(Box::pin(self.frontend.grpc_ready(&head, body)).await),
            Some("ServerLive") => {
                answered(Box::pin(self.frontend.read(&head, body)).await.map(|ServerLiveRequest {}| ServerLiveResponse { live: true }))
            }
            Some("ServerReady") => {
                let read = Box::pin(self.frontend.read(&head, body)).await;
                answered(read.map(|ServerReadyRequest {}| ServerReadyResponse { ready: (self.frontend.ready)().is_ok() }))
            }
            Some("ServerMetadata") => {
                answered(Box::pin(self.frontend.read(&head, body)).await.map(|ServerMetadataRequest {}| self.frontend.server_metadata()))
            }
            _ => wire::fault(&Fault::Unimplemented(format!("method {} is not implemented", Quoted::new(head.uri.path())))),
        })
    }
}

fn answered(outcome: Result<impl Message, Fault>) -> Response<Outgoing> {
    match outcome {
        Ok(message) => wire::answer(&message),
        Err(fault) => wire::fault(&fault),
    }
}

/// What a client hears that speaks something else: it could not read a gRPC status.
pub(crate) fn not_grpc<B>(request: &Request<B>) -> Option<Response<Outgoing>> {
    let kind = request.headers().get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let is_grpc = kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')));
    if is_grpc && request.version() == http::Version::HTTP_2 {
        return None;
    }
    let mut refusal = Response::new(Outgoing::text("this port speaks gRPC over HTTP/2; REST requests go to the REST port\n"));
    *refusal.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    Some(refusal)
}

impl<M: Models> Frontend<M> {
    /// The message of a small call, within its deadline.
    async fn read<T: Message + Default>(&self, head: &Parts, body: impl Incoming) -> Result<T, Fault> {
        let (deadline, mut share) = (self.deadline(&head.headers)?, self.bodies.share());
        let received =
            self.clock.until(deadline, Messages::new(&head.headers, body, SMALL_MESSAGE.min(self.config.max_message)).only(&mut share)).await;
        wire::decode(received.unwrap_or(Err(Fault::SlowRequest))?)
    }

    async fn grpc_infer(&self, head: &Parts, body: impl Incoming) -> Response<Outgoing> {
        let measured = self.meters.grpc.started(&self.clock);
        match self.grpc_inferred(head, body).await {
            Ok(response) => {
                measured.ended(Code::Ok);
                wire::answer(&response)
            }
            Err(fault) => {
                measured.ended(fault.verdict().code);
                wire::fault(&fault)
            }
        }
    }

    async fn grpc_inferred(&self, head: &Parts, body: impl Incoming) -> Result<ModelInferResponse, Fault> {
        // One deadline for all of it, counted from the head of the request.
        let deadline = self.deadline(&head.headers)?;
        // Held until the inference has been answered, or its caller has gone.
        let mut share = self.bodies.share();
        let received = self.clock.until(deadline, Messages::new(&head.headers, body, self.config.max_message).only(&mut share)).await;
        let message = received.unwrap_or(Err(Fault::SlowRequest))?;
        share.add(weight::of_infer_request(&message).map_err(Fault::BadRequest)?)?;
        let request: ModelInferRequest = wire::decode(message)?;
        let in_message = request.model_name.clone();
        let call = Call { path: MODEL_INFER, metadata: &head.headers };
        self.infer_with(&asked(&head.headers, &in_message)?, request, call, deadline).await
    }

    async fn grpc_metadata(&self, head: &Parts, body: impl Incoming) -> Result<ModelMetadataResponse, Fault> {
        let deadline = self.deadline(&head.headers)?;
        let request: ModelMetadataRequest = self.read(head, body).await?;
        self.metadata(&asked(&head.headers, &request.name)?, &request.version, deadline).await
    }

    /// "Not ready" is an answer; only an unknown model or version is a fault.
    async fn grpc_ready(&self, head: &Parts, body: impl Incoming) -> Result<ModelReadyResponse, Fault> {
        let request: ModelReadyRequest = self.read(head, body).await?;
        match self.model_ready(&asked(&head.headers, &request.name)?, &request.version) {
            Ok(()) => Ok(ModelReadyResponse { ready: true }),
            Err(Fault::Unservable(_) | Fault::NotReady(_)) => Ok(ModelReadyResponse { ready: false }),
            Err(fault) => Err(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use berth_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
    use berth_proto::inference::model_infer_request::InferInputTensor;
    use berth_proto::rpc;
    use berth_registry::Resolved;
    use berth_residency::WaitError;
    use berth_telemetry::{Counter, HostNet, Net};
    use berth_types::{Reason, Refusal, Retry};
    use bytes::Bytes;
    use http_body_util::{Full, StreamBody};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;
    use tonic::client::Grpc;
    use tonic::transport::{Channel, Endpoint};
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;
    use crate::ProxyConfig;
    use crate::scripted::{Load, Rig, failure, registration, rig, rig_with};

    struct Server {
        addr: SocketAddr,
        shutdown: CancellationToken,
        ended: JoinHandle<()>,
        channel: Channel,
    }

    impl Server {
        fn client(&self) -> GrpcInferenceServiceClient<Channel> {
            GrpcInferenceServiceClient::new(self.channel.clone())
        }
    }

    async fn serve(rig: &Rig) -> Server {
        let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let ended = tokio::spawn(serve_grpc(Arc::clone(&rig.frontend), listener, shutdown.clone()));
        let channel = Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
        Server { addr, shutdown, ended, channel }
    }

    fn digits() -> ModelInferRequest {
        let input = InferInputTensor { name: "x".to_owned(), datatype: "UINT8".to_owned(), shape: vec![3], ..InferInputTensor::default() };
        ModelInferRequest {
            model_name: "digits".to_owned(),
            id: "r1".to_owned(),
            inputs: vec![input],
            raw_input_contents: vec![Bytes::from_static(&[1, 2, 3])],
            ..ModelInferRequest::default()
        }
    }

    fn with(mut request: tonic::Request<ModelInferRequest>, name: &'static str, value: &str) -> tonic::Request<ModelInferRequest> {
        request.metadata_mut().append(name, value.parse().unwrap());
        request
    }

    #[tokio::test]
    async fn the_six_methods_answer() {
        let rig = rig();
        let server = serve(&rig).await;
        let mut client = server.client();
        assert!(client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
        assert!(client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
        let about = client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
        assert_eq!((about.name.as_str(), about.version.as_str()), ("berth", env!("CARGO_PKG_VERSION")));
        let named = |name: &str| ModelReadyRequest { name: name.to_owned(), version: String::new() };
        assert!(client.model_ready(named("digits")).await.unwrap().into_inner().ready);
        assert_eq!(client.model_ready(named("other")).await.unwrap_err().code(), Code::NotFound);
        let version = |version: &str| ModelReadyRequest { name: "digits".to_owned(), version: version.to_owned() };
        assert!(client.model_ready(version("1")).await.unwrap().into_inner().ready);
        let status = client.model_ready(version("99")).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "model \"digits\" has no version \"99\", it has 1"));
        let metadata = ModelMetadataRequest { name: "digits".to_owned(), version: String::new() };
        let metadata = client.model_metadata(metadata).await.unwrap().into_inner();
        assert_eq!((metadata.name.as_str(), metadata.inputs[0].name.as_str()), ("digits__isvc-1111111111", "x"));
        let answer = client.model_infer(digits()).await.unwrap().into_inner();
        assert_eq!((answer.model_name.as_str(), answer.id.as_str()), ("digits__isvc-1111111111", "r1"));
        assert_eq!(answer.raw_output_contents, [&[1u8, 2, 3][..]]);
        assert_eq!(rig.metrics.count(Counter::Requests, &[("protocol", "grpc"), ("code", "OK")]), 1, "only inference counts");

        *rig.down.lock() = Some("starting".to_owned());
        assert!(!client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
        rig.models.failures.lock().insert(registration("digits__isvc-1111111111").id.clone(), failure(Reason::ModelLoadFailed, Retry::Later));
        assert!(!client.model_ready(named("digits")).await.unwrap().into_inner().ready);
    }

    #[tokio::test]
    async fn a_stream_answers_each_request_in_its_turn_and_goes_on_after_one_that_failed() {
        let rig = rig();
        let server = serve(&rig).await;
        let (send, requests) = futures::channel::mpsc::unbounded();
        send.unbounded_send(digits()).unwrap();
        let mut answers = server.client().model_stream_infer(requests).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.error_message.as_str(), answer.infer_response.unwrap().raw_output_contents), ("", vec![Bytes::from_static(&[1, 2, 3])]));
        send.unbounded_send(ModelInferRequest { model_name: "other".to_owned(), id: "r2".to_owned(), ..digits() }).unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.error_message.as_str(), answer.infer_response.unwrap().id.as_str()), ("model \"other\" is not registered", "r2"));
        send.unbounded_send(digits()).unwrap();
        assert_eq!(answers.message().await.unwrap().unwrap().error_message, "");
        drop(send);
        assert!(answers.message().await.unwrap().is_none());
        rig.models.guards.subscribe().wait_for(|guards| *guards == 0).await.unwrap();
        assert_eq!(rig.metrics.count(Counter::Requests, &[("protocol", "grpc"), ("code", "OK")]), 1, "a stream is one request");
    }

    #[tokio::test]
    async fn the_model_comes_from_the_metadata_before_the_message() {
        let rig = rig();
        rig.models.names.lock().insert("mü".to_owned(), Resolved::Model(registration("mu__isvc-2222222222")));
        let server = serve(&rig).await;
        let mut client = server.client();
        let mut request = tonic::Request::new(digits());
        request.metadata_mut().insert_bin("mm-vmodel-id-bin", tonic::metadata::MetadataValue::from_bytes("mü".as_bytes()));
        assert_eq!(client.model_infer(request).await.unwrap().into_inner().model_name, "mu__isvc-2222222222");
        let request = with(tonic::Request::new(digits()), "mm-model-id", "mu__isvc-2222222222");
        assert_eq!(client.model_infer(request).await.unwrap().into_inner().model_name, "mu__isvc-2222222222");
        for (request, text) in [
            (with(with(tonic::Request::new(digits()), "mm-model-id", "a"), "mm-vmodel-id", "b"), "both"),
            (with(with(tonic::Request::new(digits()), "mm-model-id", "a"), "mm-model-id", "b"), "with several ids: this takes one"),
            (tonic::Request::new(ModelInferRequest::default()), "must include"),
        ] {
            let status = client.model_infer(request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().contains(text), "{status}");
        }
    }

    #[tokio::test]
    async fn refusals_carry_their_code_their_text_and_retry_info() {
        let rig = rig();
        let server = serve(&rig).await;
        let (size, pool) = (ByteSize::mib(1), berth_types::Pool::Host);
        let refusal = Refusal::NoRoomNow { pool, need: size, free: size, evictable: size, budget: size };
        rig.models.load.lock().push_back(Load::Fails(WaitError::Refused(refusal)));
        let status = server.client().model_infer(digits()).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("try again"), "{status}");
        let details = rpc::Status::decode(status.details()).unwrap();
        assert_eq!(details.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
        let status = server.client().model_infer(ModelInferRequest { model_name: "ü".to_owned(), ..digits() }).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "model \"ü\" is not registered"));
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_refused_by_its_announced_size_and_the_connection_lives() {
        let rig = rig_with(ProxyConfig { max_message: ByteSize::kib(64), ..ProxyConfig::default() });
        let server = serve(&rig).await;
        let mut large = digits();
        large.raw_input_contents = vec![Bytes::from(vec![0; 1 << 20])];
        let size = large.encoded_len();
        let status = server.client().model_infer(large).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), format!("the request has {size} bytes, the limit is 65536 (64 KiB)"));
        assert!(status.details().is_empty(), "trying again does not help");
        assert!(server.client().model_infer(digits()).await.is_ok());
        assert_eq!(rig.metrics.count(Counter::Requests, &[("protocol", "grpc"), ("code", "RESOURCE_EXHAUSTED")]), 1);
    }

    fn framed(message: &[u8]) -> Full<Bytes> {
        Full::new(Bytes::from([&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()))
    }

    async fn infer(rig: &Rig, message: &[u8]) -> tonic::Status {
        let (head, ()) = Request::new(()).into_parts();
        let response = rig.frontend.grpc_infer(&head, framed(message)).await;
        tonic::Status::from_header_map(response.headers()).unwrap_or_else(|| tonic::Status::ok(""))
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_count_until_they_are_answered_and_those_without_room_are_refused_with_numbers() {
        let rig = rig_with(ProxyConfig { max_message: ByteSize::kib(64), body_budget: ByteSize::kib(64), ..ProxyConfig::default() });
        let shown = || rig.metrics.render().lines().find(|line| line.starts_with("berth_buffer_bytes")).map(str::to_owned);
        let nothing = Some("berth_buffer_bytes{class=\"requests\"} 0".to_owned());
        assert_eq!(shown(), nothing);
        let message = ModelInferRequest { raw_input_contents: vec![Bytes::from(vec![0; 40_000])], ..digits() }.encode_to_vec();
        rig.models.load.lock().push_back(Load::Never);
        let mut waiting = Box::pin(infer(&rig, &message));
        assert!(futures::poll!(&mut waiting).is_pending());
        let held = message.len() as u64 + 5 + weight::of_infer_request(&message).unwrap();
        assert_eq!(shown(), Some(format!("berth_buffer_bytes{{class=\"requests\"}} {held}")));

        let status = infer(&rig, &message).await;
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().starts_with("requests hold 39") && status.message().ends_with(" more: try again"), "{status}");
        assert!(status.message().contains(" of 64 KiB, and this one needs 39"), "{status}");
        let details = rpc::Status::decode(status.details()).unwrap();
        assert_eq!(details.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
        assert_eq!(rig.metrics.count(Counter::Requests, &[("protocol", "grpc"), ("code", "RESOURCE_EXHAUSTED")]), 1);
        assert_eq!(infer(&rig, &digits().encode_to_vec()).await.code(), Code::Ok, "a small one still fits");

        drop(waiting); // its client went away
        assert_eq!(shown(), nothing);
        assert_eq!(infer(&rig, &message).await.code(), Code::Ok);
        assert_eq!(infer(&rig, &message[..100]).await.code(), Code::InvalidArgument);
        assert_eq!(shown(), nothing);
    }

    #[tokio::test]
    async fn what_decoding_makes_of_a_message_counts_before_it_is_made() {
        let rig = rig_with(ProxyConfig { max_message: ByteSize::kib(64), body_budget: ByteSize::kib(64), ..ProxyConfig::default() });
        let parameters = [0x22, 0].repeat(2000);
        let status = infer(&rig, &parameters).await;
        assert_eq!((status.code(), status.details()), (Code::ResourceExhausted, &[][..]), "there will never be room");
        assert!(status.message().ends_with("of memory when it is decoded, all requests together have 64 KiB"), "{status}");
        let status = infer(&rig, &[0x2a, 0].repeat(1025)).await;
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "the request has more than 1024 inputs, that is the most"));
        assert!(rig.infer.requests.lock().is_empty());
    }

    #[tokio::test]
    async fn a_megabyte_goes_both_ways() {
        let rig = rig();
        let server = serve(&rig).await;
        let mut large = digits();
        large.raw_input_contents = vec![Bytes::from((0..1u32 << 20).map(|at| at.to_le_bytes()[0]).collect::<Vec<u8>>())];
        let answer = server.client().model_infer(large.clone()).await.unwrap().into_inner();
        assert_eq!(answer.raw_output_contents, large.raw_input_contents);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_of_the_client_ends_its_wait_for_a_cold_model() {
        let rig = rig();
        rig.models.load.lock().push_back(Load::Never);
        let (head, ()) = Request::builder().header("grpc-timeout", "7S").body(()).unwrap().into_parts();
        let start = rig.frontend.clock.now();
        let message = digits().encode_to_vec();
        let prefix = [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes()].concat();
        let response = rig.frontend.grpc_infer(&head, Full::new(Bytes::from([prefix, message].concat()))).await;
        assert_eq!(rig.frontend.clock.now() - start, Duration::from_secs(7));
        let status = tonic::Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("while the model was loading"), "{status}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_covers_the_arrival_of_the_request() {
        let rig = rig();
        let (head, ()) = Request::builder().header("grpc-timeout", "7S").body(()).unwrap().into_parts();
        let never = StreamBody::new(futures::stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>());
        let response = rig.frontend.grpc_infer(&head, never).await;
        assert_eq!(tonic::Status::from_header_map(response.headers()).unwrap().code(), Code::DeadlineExceeded);
        assert_eq!(rig.metrics.count(Counter::Requests, &[("protocol", "grpc"), ("code", "DEADLINE_EXCEEDED")]), 1);
    }

    #[tokio::test]
    async fn a_client_that_cancels_frees_its_place_in_the_queue() {
        let rig = rig();
        let server = serve(&rig).await;
        rig.models.load.lock().extend([Load::Never, Load::Never]);
        let mut client = server.client();
        let call = tokio::spawn(async move { client.model_infer(digits()).await });
        rig.models.waiting.subscribe().wait_for(|waiting| *waiting == 1).await.unwrap();
        call.abort();
        rig.models.waiting.subscribe().wait_for(|waiting| *waiting == 0).await.unwrap();
    }

    #[tokio::test]
    async fn unknown_methods_and_other_protocols_are_told_what_is_here() {
        let rig = rig();
        let server = serve(&rig).await;
        let mut grpc = Grpc::new(server.channel.clone());
        grpc.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/inference.GRPCInferenceService/ModelNothing");
        let codec = tonic_codec();
        let outcome: Result<tonic::Response<ServerLiveResponse>, _> = grpc.unary(tonic::Request::new(ServerLiveRequest {}), path, codec).await;
        let status = outcome.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
        assert_eq!(status.message(), "method \"/inference.GRPCInferenceService/ModelNothing\" is not implemented");

        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(b"GET /v2 HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 415 ") && answer.contains("this port speaks gRPC"), "{answer}");
    }

    fn tonic_codec() -> tonic_prost::ProstCodec<ServerLiveRequest, ServerLiveResponse> {
        tonic_prost::ProstCodec::default()
    }

    #[tokio::test]
    async fn health_follows_readiness_and_a_shutdown_lets_the_last_request_end() {
        let rig = rig();
        let server = serve(&rig).await;
        let mut health = HealthClient::new(server.channel.clone());
        let asking = |service: &str| HealthCheckRequest { service: service.to_owned() };
        assert_eq!(health.check(asking("inference.GRPCInferenceService")).await.unwrap().into_inner().status, 1);
        let mut watch = health.watch(asking("")).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status, 1);
        *rig.down.lock() = Some("draining".to_owned());
        assert_eq!(health.check(asking("")).await.unwrap().into_inner().status, 2);

        rig.infer.held.send_replace(true);
        let mut client = server.client();
        let call = tokio::spawn(async move { client.model_infer(digits()).await });
        rig.infer.running.subscribe().wait_for(|running| *running == 1).await.unwrap();
        server.shutdown.cancel();
        assert_eq!(watch.message().await.unwrap().unwrap().status, 2);
        assert!(watch.message().await.unwrap().is_none());
        rig.infer.held.send_replace(false);
        assert!(call.await.unwrap().is_ok());
        server.ended.await.unwrap();
    }
}
