//! What one change of a resource costs the controller among ten times the resources: from the write of a new spec to the
//! status that says that it is loaded, through the store on disk, with an agent that loads at once. How the cost grows is
//! what counts; absolute times are those of this disk.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use berth_benches::{Comparison, Cost};
use berth_controller::{Agents, Config, Controller, Deps, Endpoints, Pod};
use berth_plan::MayEvict;
use berth_plan::resource::{DEPLOYMENT_MODE, MODEL_MESH};
use berth_registry::{Desired, Kind, ObjectKey, Origin, RedbStore, Store, Views, bundled, namespace_name};
use berth_telemetry::{Clock, Metrics};
use berth_types::{ByteSize, CopyReport, CopyState, Footprint, Name, PodId, Registration};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::stage;

const FEW: usize = 1_000;
const MANY: usize = 10_000;
/// Changes measured at a time.
const CHANGES: usize = 20;
/// Writes handed to the store at a time while the resources are made.
const TOGETHER: usize = 256;
/// Longer than a change ever takes.
const TOO_LONG: Duration = Duration::from_secs(60);

/// Measures and prints.
pub(crate) async fn run(blocks: usize) -> anyhow::Result<()> {
    let clock = Clock::system();
    let (mut few, mut many) = (World::of(FEW, &clock).await?, World::of(MANY, &clock).await?);
    let mut costs = Vec::new();
    for block in 0..=blocks {
        let pair = if block % 2 == 0 {
            (few.change(&clock).await?, many.change(&clock).await?)
        } else {
            let many = many.change(&clock).await?;
            (few.change(&clock).await?, many)
        };
        if block > 0 {
            costs.push(pair);
        }
    }
    let changes = u32::try_from(CHANGES)?;
    println!("10 x resources, {}\n  promise: CPU at most 1.3", Comparison::of("update a resource until its status says Loaded", changes, &costs));
    few.shutdown.cancel();
    many.shutdown.cancel();
    Ok(())
}

/// A controller over a store of its own.
struct World {
    store: Arc<RedbStore>,
    count: usize,
    /// How many changes there were.
    round: usize,
    shutdown: CancellationToken,
    _folder: TempDir,
}

fn pod() -> PodId {
    PodId::new("local").expect("a constant that is an id")
}

/// A pod with room for everything.
struct Roomy {
    loads: mpsc::UnboundedSender<Arc<Registration>>,
}

#[async_trait]
impl Agents for Roomy {
    fn pods(&self) -> Vec<Pod> {
        let room = Footprint::host(ByteSize::mib(1 << 30));
        vec![Pod { id: pod(), runtime: "berth-onnx".into(), free: room.clone(), budget: room, loads_at_a_time: NonZeroUsize::MIN.saturating_add(63) }]
    }

    async fn load(&self, _pod: &PodId, model: Arc<Registration>, _may_evict: MayEvict) {
        // At the end of a world nobody listens any more.
        let _ = self.loads.send(model);
    }

    async fn retire(&self, _pod: &PodId, _model: Arc<Registration>) {}
}

fn key(at: usize) -> ObjectKey {
    let name = Name::new(format!("model-{at:06}")).expect("a name");
    ObjectKey { kind: Kind::InferenceService, namespace: namespace_name("default").ok(), name }
}

fn wanted(at: usize, round: usize) -> Arc<Desired> {
    let spec =
        json!({ "predictor": { "model": { "modelFormat": { "name": "onnx" }, "storage": { "key": "k", "path": format!("models/{at}/{round}") } } } });
    let annotations = json!({ DEPLOYMENT_MODE: MODEL_MESH }).into();
    Arc::new(Desired { annotations, ..Desired::new(key(at), Origin::Api, &spec) })
}

impl World {
    async fn of(count: usize, clock: &Clock) -> anyhow::Result<World> {
        let folder = TempDir::new()?;
        let store = Arc::new(RedbStore::open(folder.path(), clock.clone())?);
        for object in bundled() {
            store.apply(object, None).await?;
        }
        let (loads, mut asked) = mpsc::unbounded_channel::<Arc<Registration>>();
        let endpoints = Endpoints { grpc: Some("grpc://127.0.0.1:8033".to_owned()), rest: Some("http://127.0.0.1:8008".to_owned()) };
        let (controller, leader) = Controller::new(Deps {
            store: Arc::clone(&store) as Arc<dyn Store>,
            views: Views::in_epoch(store.epoch()),
            agents: Arc::new(Roomy { loads }),
            clock: clock.clone(),
            metrics: Metrics::default(),
            config: Config { endpoints, ..Config::default() },
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(leader.run(shutdown.clone()));
        controller.report(&pod(), Vec::new()).await;
        let wall = clock.clone();
        tokio::spawn(async move {
            while let Some(model) = asked.recv().await {
                let state = CopyState::Loaded { since: wall.wall(), footprint: Footprint::host(ByteSize::mib(1)), content: None };
                controller.report(&pod(), vec![CopyReport { model: model.id.clone(), state, failure: None, mended: false, last_used: None }]).await;
            }
        });
        let world = World { store, count, round: 0, shutdown, _folder: folder };
        for some in (0..count).collect::<Vec<_>>().chunks(TOGETHER) {
            let writes = some.iter().map(|at| world.store.apply(wanted(*at, 0), None));
            futures::future::try_join_all(writes).await?;
        }
        for at in 0..count {
            world.loaded(at, clock).await?;
        }
        Ok(world)
    }

    /// Gives some resources a new spec, one after the other, and waits each time until it is loaded.
    async fn change(&mut self, clock: &Clock) -> anyhow::Result<Cost> {
        let meter = stage::Meter::start(clock);
        for _ in 0..CHANGES {
            self.round += 1;
            let at = self.round * 7919 % self.count;
            self.store.apply(wanted(at, self.round), None).await?;
            self.loaded(at, clock).await?;
        }
        Ok(meter.stop(clock))
    }

    /// Waits until the status says that the present spec is loaded.
    async fn loaded(&self, at: usize, clock: &Clock) -> anyhow::Result<()> {
        let key = key(at);
        let mut versions = self.store.versions();
        let waiting = async {
            loop {
                versions.mark_unchanged();
                let object = self.store.get(&key).context("it is there")?;
                let status = object.status.as_ref().map(|status| status.value()).unwrap_or_default();
                let model = &status["modelStatus"];
                let done = model["states"]["activeModelState"] == "Loaded" && model["transitionStatus"] == "UpToDate";
                if done && status["observedGeneration"] == object.generation {
                    return anyhow::Ok(());
                }
                versions.changed().await?;
            }
        };
        clock.until(clock.deadline_in(TOO_LONG), waiting).await.with_context(|| format!("{key} was not loaded in time"))?
    }
}
