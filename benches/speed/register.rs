//! Models that are registered by calls, over the wire and into the store on disk: how many a second, what a call costs
//! among ten times the models, and how long the first request for one takes where the loader has nothing to do.
//!
//! The original's figures on two quiet cores, for orientation only: 1,596 registrations a second by 16 callers (p50
//! 9.0 ms), and 3.5 ms for the first request of one caller. How the cost grows is what counts.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use berth_adapters::FakeRuntime;
use berth_benches::{Comparison, Cost};
use berth_controller::{Agents, Config, Controller, Deps, Manager, ManagerDeps, Pod};
use berth_plan::MayEvict;
use berth_proto::inference::ModelInferRequest;
use berth_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use berth_proto::mmesh::model_mesh_client::ModelMeshClient;
use berth_proto::mmesh::{ModelInfo, RegisterModelRequest, UnregisterModelRequest};
use berth_proxy::{Frontend, Here, ProxyConfig, Writes};
use berth_puller::fake::FakeFetch;
use berth_registry::{EMBEDDED_RUNTIME, RedbStore, Store, Views, bundled};
use berth_residency::Residency;
use berth_telemetry::{Clock, HostNet, Metrics, Net};
use berth_types::{ByteSize, Footprint, Location, PodId, Registration};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::stage;

const FEW: usize = 1_000;
const MANY: usize = 10_000;
const CALLERS: usize = 16;
const CONNECTIONS: usize = 4;
/// Registrations measured at a time.
const SOME: usize = 320;
/// First requests that are timed.
const COLD: usize = 400;

/// Measures and prints.
pub(crate) async fn run(blocks: usize) -> anyhow::Result<()> {
    let clock = Clock::system();
    let (few, many) = (World::of(&clock).await?, World::of(&clock).await?);
    few.register("model", 0..FEW).await?;
    let (cost, mut waits) = many.measured("model", 0..MANY).await?;
    waits.sort_unstable();
    println!(
        "register {MANY} models by {CALLERS} callers: {:.0} a second, p50 {:?}, p99 {:?}, CPU of client and server {:?} each; the original: 1,596 a second, p50 9.0 ms",
        MANY as f64 / cost.wall.as_secs_f64(),
        waits[MANY / 2],
        waits[MANY * 99 / 100],
        cost.cpu / u32::try_from(MANY)?,
    );

    let mut costs = Vec::new();
    for block in 0..=blocks {
        let some = async |world: &World| -> anyhow::Result<Cost> {
            let (cost, _) = world.measured("more", 0..SOME).await?;
            world.unregister("more", 0..SOME).await?;
            Ok(cost)
        };
        let pair = if block % 2 == 0 {
            (some(&few).await?, some(&many).await?)
        } else {
            let many = some(&many).await?;
            (some(&few).await?, many)
        };
        if block > 0 {
            costs.push(pair);
        }
    }
    println!("10 x models, {}\n  promise: at most 1.3", Comparison::of("register one by a call", u32::try_from(SOME)?, &costs));

    let mut client = GrpcInferenceServiceClient::new(many.channels[0].clone());
    let mut waits = Vec::with_capacity(COLD);
    for at in 0..COLD {
        let mut request = tonic::Request::new(ModelInferRequest::default());
        request.metadata_mut().insert("mm-model-id", format!("model-{}", at * 7 % MANY).parse()?);
        let since = clock.now();
        client.model_infer(request).await?;
        waits.push(clock.now() - since);
    }
    waits.sort_unstable();
    println!(
        "first request for a registered model, nothing to load, 1 caller: p50 {:?}, p99 {:?}; the original: 3.5 ms, 14 ms",
        waits[COLD / 2],
        waits[COLD * 99 / 100]
    );
    few.shutdown.cancel();
    many.shutdown.cancel();
    Ok(())
}

/// A server with a store of its own.
struct World {
    channels: Vec<Channel>,
    clock: Clock,
    shutdown: CancellationToken,
    _folder: TempDir,
}

/// One pod whose runtime has nothing to do.
struct Idle(Residency);

fn pod() -> PodId {
    PodId::new("local").expect("a constant that is an id")
}

#[async_trait]
impl Agents for Idle {
    fn pods(&self) -> Vec<Pod> {
        let free = self.0.room().borrow().clone();
        vec![Pod { id: pod(), runtime: EMBEDDED_RUNTIME.into(), budget: free.clone(), free, loads_at_a_time: NonZeroUsize::MIN }]
    }

    async fn load(&self, _pod: &PodId, model: Arc<Registration>, may_evict: MayEvict) {
        self.0.load(model, may_evict).await;
    }

    async fn retire(&self, _pod: &PodId, model: Arc<Registration>) {
        self.0.retire(model).await;
    }
}

impl World {
    async fn of(clock: &Clock) -> anyhow::Result<World> {
        let (folder, shutdown, metrics) = (TempDir::new()?, CancellationToken::new(), Metrics::default());
        let store = Arc::new(RedbStore::open(folder.path(), clock.clone())?);
        for object in bundled() {
            store.apply(object, None).await?;
        }
        let runtime = Arc::new(FakeRuntime::new(clock.clone()));
        let (residency, _owner) = Residency::start(berth_residency::Deps {
            runtime: runtime.clone(),
            fetch: FakeFetch::new(clock.clone()),
            clock: clock.clone(),
            metrics: metrics.clone(),
            location: Location::of_pod_name("bench"),
            budget: Footprint::host(ByteSize::mib(1 << 30)),
            memory: None,
            config: berth_residency::Config::default(),
        });
        let (views, agents) = (Views::in_epoch(store.epoch()), Arc::new(Idle(residency.clone())));
        let (controller, leader) = Controller::new(Deps {
            store: store.clone(),
            views: views.clone(),
            agents: agents.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            config: Config::default(),
        });
        let manager = Manager::open(ManagerDeps {
            controller: controller.clone(),
            store: store.clone(),
            records: store,
            views: views.clone(),
            agents,
            clock: clock.clone(),
            metrics: metrics.clone(),
            default_owner: None,
        });
        tokio::spawn(leader.run(shutdown.clone()));
        tokio::spawn(manager.clone().run(shutdown.clone()));
        let mut reports = residency.reports();
        controller.report(&pod(), reports.so_far()).await;
        let told = controller.clone();
        tokio::spawn(async move {
            while let Some(copies) = reports.next().await {
                told.report(&pod(), copies).await;
            }
        });
        let mut caught_up = controller.caught_up();
        clock.until(clock.deadline_in(Duration::from_secs(30)), caught_up.wait_for(|caught_up| *caught_up)).await.context("the leader begins")??;

        let ready = Arc::new(|| Ok(()));
        let frontend = Frontend::new(Here::new(views, residency), runtime, clock.clone(), &metrics, ProxyConfig::default(), ready);
        frontend.manage(Arc::new(manager), Writes::Open);
        let listener = HostNet.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = format!("http://{}", listener.local_addr()?);
        tokio::spawn(berth_proxy::serve_grpc(frontend, listener, shutdown.clone()));
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(Channel::from_shared(address.clone())?.connect().await?);
        }
        Ok(World { channels, clock: clock.clone(), shutdown, _folder: folder })
    }

    async fn register(&self, what: &str, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
        self.measured(what, numbers).await.map(drop)
    }

    /// Registers models by several callers; what all of it took, and how long each call.
    async fn measured(&self, what: &str, numbers: std::ops::Range<usize>) -> anyhow::Result<(Cost, Vec<Duration>)> {
        let meter = stage::Meter::start(&self.clock);
        let callers = (0..CALLERS).map(|caller| {
            let (mut client, clock, what) = (ModelMeshClient::new(self.channels[caller % CONNECTIONS].clone()), self.clock.clone(), what.to_owned());
            let mine: Vec<usize> = numbers.clone().skip(caller).step_by(CALLERS).collect();
            tokio::spawn(async move {
                let mut waits = Vec::with_capacity(mine.len());
                for at in mine {
                    let info = ModelInfo { r#type: "mt:onnx".to_owned(), path: format!("models/{at}"), key: r#"{"storage_key":"k"}"#.to_owned() };
                    let asked = RegisterModelRequest { model_id: format!("{what}-{at}"), model_info: Some(info), ..RegisterModelRequest::default() };
                    let since = clock.now();
                    client.register_model(asked).await?;
                    waits.push(clock.now() - since);
                }
                anyhow::Ok(waits)
            })
        });
        let mut waits = Vec::new();
        for caller in futures::future::try_join_all(callers).await? {
            waits.extend(caller?);
        }
        Ok((meter.stop(&self.clock), waits))
    }

    async fn unregister(&self, what: &str, numbers: std::ops::Range<usize>) -> anyhow::Result<()> {
        let calls = numbers.map(|at| {
            let mut client = ModelMeshClient::new(self.channels[at % CONNECTIONS].clone());
            let asked = UnregisterModelRequest { model_id: format!("{what}-{at}") };
            async move { client.unregister_model(asked).await }
        });
        futures::future::try_join_all(calls).await?;
        Ok(())
    }
}
