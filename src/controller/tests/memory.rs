//! What a registered model costs in the controller, store and view included, alone in its process so that nothing else
//! moves the numbers.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_controller::{Agents, Config, Controller, Deps, Endpoints, Pod};
use berth_plan::MayEvict;
use berth_plan::resource::{DEPLOYMENT_MODE, MODEL_MESH};
use berth_registry::{Desired, Kind, MemoryStore, ObjectKey, Origin, Store, Views, bundled, namespace_name};
use berth_telemetry::{Clock, Metrics};
use berth_types::{ByteSize, CopyReport, CopyState, Footprint, Name, PodId, Registration, UnixMillis};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Bytes per registered model that the controller may take.
const PROMISE: u64 = 1_536;

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("this is Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("every process has one");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// A pod that loads what it is asked to load and evicts it at once.
struct Forgetful {
    loads: mpsc::UnboundedSender<Arc<Registration>>,
}

fn pod() -> PodId {
    PodId::new("local").expect("valid")
}

#[async_trait]
impl Agents for Forgetful {
    fn pods(&self) -> Vec<Pod> {
        let none = Footprint::host(ByteSize::ZERO);
        vec![Pod { id: pod(), runtime: "berth-onnx".into(), free: none.clone(), budget: none, loads_at_a_time: NonZeroUsize::MIN.saturating_add(63) }]
    }

    async fn load(&self, _pod: &PodId, model: Arc<Registration>, _may_evict: MayEvict) {
        let _ = self.loads.send(model);
    }

    async fn retire(&self, _pod: &PodId, _model: Arc<Registration>) {}
}

fn resource(number: u32) -> Arc<Desired> {
    let name = Name::new(format!("sentiment-{number:06}")).expect("valid");
    let key = ObjectKey { kind: Kind::InferenceService, namespace: namespace_name("default").ok(), name };
    let spec = json!({ "predictor": { "model": {
        "modelFormat": { "name": "onnx", "version": "1" },
        "storage": { "key": "localMinIO", "path": format!("tenants/sentiment-{number:06}/model.onnx"), "parameters": { "bucket": "models" } }
    } } });
    let annotations = json!({ DEPLOYMENT_MODE: MODEL_MESH }).into();
    Arc::new(Desired { annotations, ..Desired::new(key, Origin::Api, &spec) })
}

/// Statuses differ in their times, as they do where models were made over months: a second passes between two batches.
async fn register(store: &MemoryStore, clock: &Clock, numbers: std::ops::Range<u32>) {
    for number in numbers {
        store.apply(resource(number), None).await.expect("new");
        if number % 10 == 9 {
            clock.sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_registered_model_takes_no_more_than_promised_between_10_000_and_100_000() {
    let clock = Clock::starting_at(UnixMillis(1_800_000_000_000));
    let store = Arc::new(MemoryStore::new(clock.clone()));
    for object in bundled() {
        store.apply(object, None).await.expect("new");
    }
    let views = Views::in_epoch(1);
    let (loads, mut asked) = mpsc::unbounded_channel::<Arc<Registration>>();
    let endpoints = Endpoints { grpc: Some("grpc://127.0.0.1:8033".to_owned()), rest: Some("http://127.0.0.1:8008".to_owned()) };
    let (controller, leader) = Controller::new(Deps {
        store: Arc::clone(&store) as Arc<dyn Store>,
        views: views.clone(),
        agents: Arc::new(Forgetful { loads }),
        clock: clock.clone(),
        metrics: Metrics::default(),
        config: Config { endpoints, ..Config::default() },
    });
    tokio::spawn(leader.run(CancellationToken::new()));
    controller.report(&pod(), Vec::new()).await;
    tokio::spawn(async move {
        while let Some(model) = asked.recv().await {
            let loaded = CopyState::Loaded { since: UnixMillis(1), footprint: Footprint::host(ByteSize::mib(1)), content: None };
            for state in [loaded, CopyState::Absent] {
                controller.report(&pod(), vec![CopyReport { model: model.id.clone(), state, failure: None, mended: false, last_used: None }]).await;
            }
        }
    });
    register(&store, &clock, 0..10_000).await;
    let before = resident_bytes();
    register(&store, &clock, 10_000..100_000).await;
    let each = resident_bytes().saturating_sub(before) / 90_000;
    let standby = store.list().iter().filter(|object| object.status.as_ref().is_some_and(|status| status.text().contains("Standby"))).count();
    assert_eq!((standby, views.current().model_count()), (100_000, 100_000));
    println!("{each} bytes per registered model");
    assert!((1..PROMISE).contains(&each), "{each} bytes per registered model, {PROMISE} were promised");
}
