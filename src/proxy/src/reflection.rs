//! Server reflection, v1 and v1alpha: what the gRPC port serves, for clients that bring no `.proto` file.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::codegen::Service as _;
use tonic::{Code, Status};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_reflection::server::Builder;

use crate::body::Outgoing;
use crate::grpc::SMALL_MESSAGE;

/// The services of every port.
const SERVICES: [&str; 3] = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

const INFERENCE: &str = "inference.GRPCInferenceService";
const MANAGEMENT: &str = "mmesh.ModelMesh";

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serves {
    /// Inference.
    Inference,
    /// Inference, and calls that manage models.
    Both,
    /// Calls that manage models.
    Management,
}

/// The services of a port, as they are listed.
pub(crate) fn services(serves: Serves) -> impl Iterator<Item = &'static str> {
    let own: &[&'static str] = match serves {
        Serves::Inference => &[INFERENCE],
        Serves::Both => &[INFERENCE, MANAGEMENT],
        Serves::Management => &[MANAGEMENT],
    };
    SERVICES.into_iter().chain(own.iter().copied())
}

const V1: &str = "/grpc.reflection.v1.ServerReflection/";
const V1_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/";

type Calls = Arc<dyn Fn(Request<UntilStop>) -> BoxFuture<'static, Response<tonic::body::Body>> + Send + Sync>;

/// Both versions of the service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Reflection {
    v1: Calls,
    v1_alpha: Calls,
    shutdown: CancellationToken,
}

impl Reflection {
    /// Its streams end with `shutdown`, so that no client that keeps one holds the server.
    pub(crate) fn new(shutdown: CancellationToken, serves: Serves) -> Self {
        let limit = usize::try_from(SMALL_MESSAGE.0).unwrap_or(usize::MAX);
        let v1: Calls = match builder(serves).build_v1() {
            Ok(service) => {
                let service = service.max_decoding_message_size(limit);
                Arc::new(move |request| service.clone().call(request).map(|Ok(answer)| answer).boxed())
            }
            Err(fault) => absent(&fault),
        };
        let v1_alpha: Calls = match builder(serves).build_v1alpha() {
            Ok(service) => {
                let service = service.max_decoding_message_size(limit);
                Arc::new(move |request| service.clone().call(request).map(|Ok(answer)| answer).boxed())
            }
            Err(fault) => absent(&fault),
        };
        Reflection { v1, v1_alpha, shutdown }
    }

    /// What answers calls of that path, if it is one of reflection.
    pub(crate) fn at(&self, path: &str) -> Option<Version> {
        let calls = match path {
            v1 if v1.starts_with(V1) => &self.v1,
            alpha if alpha.starts_with(V1_ALPHA) => &self.v1_alpha,
            _ => return None,
        };
        Some(Version { calls: Arc::clone(calls), shutdown: self.shutdown.clone() })
    }
}

fn builder(serves: Serves) -> Builder<'static> {
    let sets = [berth_proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET];
    let builder = Builder::configure().include_reflection_service(false);
    let builder = sets.into_iter().fold(builder, Builder::register_encoded_file_descriptor_set);
    services(serves).fold(builder, Builder::with_service_name)
}

/// Descriptors that are compiled in can be read: a test says so. Were it otherwise, the port would serve without.
fn absent(fault: &tonic_reflection::server::Error) -> Calls {
    tracing::error!(error = %fault, "no server reflection: the descriptors cannot be read");
    Arc::new(|_request| futures::future::ready(Status::new(Code::Unimplemented, "no descriptors").into_http()).boxed())
}

/// One version of the service.
pub(crate) struct Version {
    calls: Calls,
    shutdown: CancellationToken,
}

impl Version {
    pub(crate) async fn answer(self, request: Request<Incoming>) -> Response<Outgoing> {
        let stop = Box::pin(self.shutdown.cancelled_owned());
        (self.calls)(request.map(|body| UntilStop { body, stop })).await.map(Outgoing::Tonic)
    }
}

/// A stream of questions that ends with the server, and its answers with it.
struct UntilStop {
    body: Incoming,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Body for UntilStop {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let me = self.get_mut();
        // What was asked already is answered first.
        if let asked @ Poll::Ready(_) = Pin::new(&mut me.body).poll_frame(cx) {
            return asked;
        }
        me.stop.as_mut().poll(cx).map(|()| None)
    }
}

#[cfg(test)]
mod tests {
    use berth_telemetry::{Clock, HostNet, Net};
    use futures::stream;
    use prost::Message as _;
    use prost_types::FileDescriptorProto;
    use tonic::transport::{Channel, Endpoint};

    use super::*;
    use crate::scripted::{Nobody, rig};
    use crate::{ManagementPort, ProxyConfig, Writes, serve_grpc, serve_management};

    async fn serve(shutdown: &CancellationToken, serves: Serves) -> (Channel, tokio::task::JoinHandle<()>) {
        let listener = HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (addr, rig) = (listener.local_addr().unwrap(), rig());
        if serves == Serves::Both {
            rig.frontend.manage(Arc::new(Nobody), Writes::Off);
        }
        let ended = match serves {
            Serves::Inference | Serves::Both => tokio::spawn(serve_grpc(Arc::clone(&rig.frontend), listener, shutdown.clone())),
            Serves::Management => {
                let (by, config) = (Arc::new(Nobody), ProxyConfig::default());
                let port = ManagementPort {
                    by,
                    writes: Writes::Off,
                    ready: rig.frontend.ready.clone(),
                    clock: Clock::system(),
                    metrics: rig.metrics,
                    config,
                };
                tokio::spawn(serve_management(listener, port, shutdown.clone()))
            }
        };
        (Endpoint::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap(), ended)
    }

    /// Both versions have the same messages in two packages.
    macro_rules! tells_all {
        ($version:ident, $channel:expr, $serves:expr) => {{
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest::*;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
            use tonic_reflection::pb::$version::*;

            let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
            let symbols = services($serves).map(|service| FileContainingSymbol(service.to_owned()));
            let questions = [ListServices(String::new())].into_iter().chain(symbols).map(ask);
            let asked = stream::iter(questions.collect::<Vec<_>>());
            let mut answers = ServerReflectionClient::new($channel.clone()).server_reflection_info(asked).await.unwrap().into_inner();
            let mut answer = async || answers.message().await.unwrap().unwrap().message_response.unwrap();
            let MessageResponse::ListServicesResponse(list) = answer().await else { panic!("no list") };
            let mut listed: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
            listed.sort();
            let mut expected: Vec<_> = services($serves).map(str::to_owned).collect();
            expected.sort();
            assert_eq!(listed, expected);
            for service in services($serves) {
                let MessageResponse::FileDescriptorResponse(files) = answer().await else { panic!("{service}") };
                let file = FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).unwrap();
                let (package, name) = service.rsplit_once('.').unwrap();
                assert!(file.package() == package && file.service.iter().any(|one| one.name() == name), "{service}");
            }
            let unknown = stream::iter([ask(FileContainingSymbol("no.Such".to_owned()))]);
            let outcome = ServerReflectionClient::new($channel.clone()).server_reflection_info(unknown).await;
            let code = match outcome {
                Err(status) => status.code(),
                Ok(answers) => match answers.into_inner().message().await {
                    Err(status) => status.code(),
                    Ok(answer) => match answer.unwrap().message_response.unwrap() {
                        MessageResponse::ErrorResponse(fault) => fault.error_code.into(),
                        other => panic!("{other:?}"),
                    },
                },
            };
            assert_eq!(code, Code::NotFound);
        }};
    }

    #[tokio::test]
    async fn both_versions_tell_the_services_of_the_port_and_their_files() {
        for serves in [Serves::Inference, Serves::Both, Serves::Management] {
            let shutdown = CancellationToken::new();
            let (channel, ended) = serve(&shutdown, serves).await;
            tells_all!(v1, channel, serves);
            tells_all!(v1alpha, channel, serves);
            shutdown.cancel();
            ended.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_client_that_keeps_its_stream_does_not_hold_the_server() {
        use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
        let shutdown = CancellationToken::new();
        let (channel, ended) = serve(&shutdown, Serves::Inference).await;
        let never = stream::pending::<v1::ServerReflectionRequest>();
        let mut answers = ServerReflectionClient::new(channel).server_reflection_info(never).await.unwrap().into_inner();
        shutdown.cancel();
        assert!(answers.message().await.unwrap().is_none());
        ended.await.unwrap();
    }
}
