//! A controller and an agent, each with a port of its own, and a client that keeps all that it is told.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::OnceLock;

use async_trait::async_trait;
use berth_controller::{Agents, Controller, Deps, Manager, ManagerDeps, Pod};
use berth_plan::MayEvict;
use berth_registry::{MemoryStore, Store as _, Views, bundled};
use berth_telemetry::{HostNet, Metrics, Net};
use berth_types::{ByteSize, CopyReport, CopyState, Failure, Footprint, Location, PodId, Reason, Retry, Step};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};

use crate::mesh::*;
use crate::scripted::{Rig, rig};
use crate::serve_grpc;

/// When the world of a test begins, and its failures happen.
const BEGAN: UnixMillis = UnixMillis(1_800_000_000_000);

/// One pod that has a model at once, unless `bad` is in its id.
struct OnePod(OnceLock<Controller>);

#[async_trait]
impl Agents for OnePod {
    fn pods(&self) -> Vec<Pod> {
        let bytes = Footprint::host(ByteSize::mib(100));
        let id = PodId::new("pod-1").unwrap();
        vec![Pod { id, runtime: "berth-onnx".into(), free: bytes.clone(), budget: bytes, loads_at_a_time: NonZeroUsize::MIN }]
    }

    async fn load(&self, pod: &PodId, model: Arc<Registration>, _may_evict: MayEvict) {
        let failure = model.id.as_str().contains("bad").then(|| {
            Arc::new(Failure {
                reason: Reason::ModelLoadFailed,
                step: Step::Fetch,
                location: Location::of_pod_name("pod-1"),
                model: model.id.clone(),
                message: "no such object".to_owned(),
                time: BEGAN,
                retry: Retry::AfterChange,
            })
        });
        let loaded = CopyState::Loaded { since: UnixMillis(1), footprint: Footprint::host(ByteSize::mib(1)), content: None };
        let state = if failure.is_some() { CopyState::Absent } else { loaded };
        let report = CopyReport { model: model.id.clone(), state, failure, mended: false, last_used: None };
        let (controller, pod) = (self.0.get().expect("it has begun").clone(), pod.clone());
        tokio::spawn(async move { controller.report(&pod, vec![report]).await });
    }

    async fn retire(&self, _pod: &PodId, _model: Arc<Registration>) {}
}

/// What a controller has in truth, over a store in memory and one pod.
pub(super) async fn manager(stop: &CancellationToken) -> Manager {
    let clock = Clock::starting_at(BEGAN);
    let store = Arc::new(MemoryStore::new(clock.clone()));
    for object in bundled() {
        store.apply(object, None).await.unwrap();
    }
    let (views, metrics, agents) = (Views::in_epoch(1), Metrics::default(), Arc::new(OnePod(OnceLock::new())));
    let deps = Deps {
        store: store.clone(),
        views: views.clone(),
        agents: agents.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
        config: berth_controller::Config::default(),
    };
    let (controller, leader) = Controller::new(deps);
    let _ = agents.0.set(controller.clone());
    let mut caught_up = controller.caught_up();
    let told = controller.clone();
    let deps = ManagerDeps { controller, store: store.clone(), records: store, views, agents, clock, metrics, default_owner: None };
    let manager = Manager::open(deps);
    tokio::spawn(leader.run(stop.clone()));
    tokio::spawn(manager.clone().run(stop.clone()));
    told.report(&PodId::new("pod-1").unwrap(), Vec::new()).await;
    caught_up.wait_for(|caught_up| *caught_up).await.unwrap();
    manager
}

/// A port that ends when this is dropped.
pub(super) struct Served {
    pub(super) addr: SocketAddr,
    _stop: DropGuard,
}

pub(super) fn port(by: Arc<dyn Management>, writes: Writes) -> ManagementPort {
    let (clock, metrics, config) = (Clock::system(), Metrics::default(), ProxyConfig::default());
    ManagementPort { by, writes, ready: Arc::new(|| Ok(())), clock, metrics, config }
}

pub(super) async fn controller(by: Arc<dyn Management>, writes: Writes) -> Served {
    let (listener, stop) = (HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap(), CancellationToken::new());
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve_management(listener, port(by, writes), stop.clone()));
    Served { addr, _stop: stop.drop_guard() }
}

/// An agent's front that passes calls on to `controller`.
pub(super) fn agent_of(controller: SocketAddr, net: Arc<dyn Net>, token: Option<&'static str>, writes: Writes) -> Rig {
    let rig = rig();
    let token = token.map(|token| Arc::new(move || token.to_owned()) as BearerToken);
    rig.frontend.forward_management(ControllerServer { target: controller.to_string().parse().unwrap(), net, token }, writes);
    rig
}

pub(super) async fn agent(controller: SocketAddr, token: Option<&'static str>, writes: Writes) -> Served {
    let (listener, stop) = (HostNet.listen("127.0.0.1:0".parse().unwrap()).await.unwrap(), CancellationToken::new());
    let addr = listener.local_addr().unwrap();
    let rig = agent_of(controller, HostNet::shared(), token, writes);
    tokio::spawn(serve_grpc(rig.frontend, listener, stop.clone()));
    Served { addr, _stop: stop.drop_guard() }
}

/// All that a client is told, but for when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) code: Code,
    pub(super) text: String,
    /// `RetryInfo` and what else comes with a refusal.
    pub(super) details: Vec<u8>,
    pub(super) body: Bytes,
    pub(super) headers: HeaderMap,
    pub(super) trailers: HeaderMap,
}

impl Said {
    /// Its message.
    pub(super) fn message<M: Message + Default>(&self) -> M {
        assert_eq!(self.code, Code::Ok, "{}", self.text);
        M::decode(self.body.slice(5..)).unwrap()
    }
}

pub(super) type Client = SendRequest<Full<Bytes>>;

impl Served {
    pub(super) async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        let (client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    pub(super) async fn ask(&self, method: &str, message: &impl Message, headers: &[(&'static str, &str)]) -> Said {
        self.send(&format!("/mmesh.ModelMesh/{method}"), framed(&message.encode_to_vec()), headers).await
    }

    pub(super) async fn send(&self, path: &str, body: Bytes, headers: &[(&'static str, &str)]) -> Said {
        let mut request = Request::post(format!("http://{}{path}", self.addr)).body(Full::new(body)).unwrap();
        for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")].iter().chain(headers) {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        said(self.client().await.send_request(request).await.unwrap()).await
    }
}

/// All of an answer.
pub(super) async fn said<B>(answer: Response<B>) -> Said
where
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = Status::from_header_map(&trailers).or_else(|| Status::from_header_map(&head.headers)).expect("a status");
    let mut headers = head.headers;
    headers.remove("date");
    let (code, text, details) = (status.code(), status.message().to_owned(), status.details().to_vec());
    Said { code, text, details, body: body.to_bytes(), headers, trailers }
}

pub(super) fn framed(message: &[u8]) -> Bytes {
    Bytes::from([&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat())
}
