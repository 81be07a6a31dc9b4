//! The one agent of `berth serve`, as the leader sees it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use async_trait::async_trait;
use berth_controller::{Agents, Controller, Pod};
use berth_plan::MayEvict;
use berth_residency::Residency;
use berth_types::{Footprint, Location, ModelId, PodId, Registration, UnixMillis};
use tokio_util::sync::CancellationToken;

/// The residency of this process.
pub(crate) struct LocalAgent {
    residency: Residency,
    pod: PodId,
    location: Location,
    runtime: Arc<str>,
    budget: Footprint,
    loads_at_a_time: NonZeroUsize,
}

impl LocalAgent {
    /// `runtime` is the name of the ServingRuntime that describes the engine.
    pub(crate) fn new(residency: Residency, pod: PodId, runtime: Arc<str>, budget: Footprint, loads_at_a_time: NonZeroUsize) -> Self {
        let location = Location::of_pod_name(pod.as_str());
        LocalAgent { residency, pod, location, runtime, budget, loads_at_a_time }
    }

    /// The place that failures name as well.
    pub(crate) fn at(mut self, location: Location) -> Self {
        self.location = location;
        self
    }
}

#[async_trait]
impl Agents for LocalAgent {
    fn pods(&self) -> Vec<Pod> {
        let free = self.residency.room().borrow().clone();
        vec![Pod {
            id: self.pod.clone(),
            runtime: Arc::clone(&self.runtime),
            free,
            budget: self.budget.clone(),
            loads_at_a_time: self.loads_at_a_time,
        }]
    }

    async fn load(&self, _pod: &PodId, model: Arc<Registration>, may_evict: MayEvict) {
        self.residency.load(model, may_evict).await;
    }

    async fn retire(&self, _pod: &PodId, model: Arc<Registration>) {
        self.residency.retire(model).await;
    }

    async fn amend(&self, _pod: &PodId, model: Arc<Registration>) {
        self.residency.amend(model).await;
    }

    async fn touch(&self, _pod: &PodId, model: &ModelId, at: UnixMillis) {
        self.residency.touch(model, at);
    }

    fn location(&self, _pod: &PodId) -> Location {
        self.location.clone()
    }
}

/// Hands the leader what residency reports, until `shutdown` or the end of residency. The first report says all there is
/// to say: the leader settles on it.
pub(crate) async fn relay_reports(residency: Residency, controller: Controller, pod: PodId, shutdown: CancellationToken) {
    let (mut reports, mut room) = (residency.reports(), residency.room());
    // A process that has just started holds nothing, but it knows of last uses and failures of before.
    controller.report(&pod, reports.so_far()).await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            copies = reports.next() => match copies {
                Some(copies) => controller.report(&pod, copies).await,
                None => return,
            },
            changed = room.changed() => match changed {
                Ok(()) => controller.report(&pod, Vec::new()).await,
                Err(_ended) => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use berth_adapters::FakeRuntime;
    use berth_controller::Controller;
    use berth_puller::PullError;
    use berth_puller::fake::{FakeFetch, Scripted};
    use berth_registry::{Desired, EMBEDDED_RUNTIME, Kind, MemoryStore, ObjectKey, Origin, Store, Views, bundled};
    use berth_telemetry::{Clock, Metrics};
    use berth_types::{ByteSize, Name, Namespace};
    use serde_json::{Value, json};
    use tokio::task::JoinSet;

    use super::*;

    /// One life of the process: an agent whose store has no model, the leader, and the relay between them.
    struct Life {
        controller: Controller,
        fetch: Arc<FakeFetch>,
        parts: JoinSet<()>,
    }

    impl Life {
        fn begin(store: Arc<dyn Store>, state: &Path) -> Life {
            let (clock, budget) = (Clock::system(), Footprint::host(ByteSize::mib(1)));
            let missing = PullError::NotFound("no such object".to_owned());
            let fetch = FakeFetch::with_default(clock.clone(), Scripted::fails(missing));
            let (residency, owner) = Residency::start(berth_residency::Deps {
                runtime: Arc::new(FakeRuntime::new(clock.clone())),
                fetch: Arc::clone(&fetch) as _,
                clock: clock.clone(),
                metrics: Metrics::default(),
                location: Location::of_pod_name("local"),
                budget: budget.clone(),
                memory: None,
                config: berth_residency::Config { state: Some(state.to_owned()), ..berth_residency::Config::default() },
            });
            let pod = PodId::new("local").expect("valid");
            let agent = LocalAgent::new(residency.clone(), pod.clone(), EMBEDDED_RUNTIME.into(), budget, NonZeroUsize::MIN);
            let (controller, leader) = Controller::new(berth_controller::Deps {
                views: Views::in_epoch(store.epoch()),
                store,
                agents: Arc::new(agent),
                clock,
                metrics: Metrics::default(),
                config: berth_controller::Config::default(),
            });
            let mut parts = JoinSet::new();
            let never = CancellationToken::new();
            parts.spawn(leader.run(never.clone()));
            parts.spawn(relay_reports(residency, controller.clone(), pod, never));
            // Aborted with the others: a crash drains nothing.
            let owner = tokio_util::task::AbortOnDropHandle::new(owner);
            parts.spawn(async move { owner.await.expect("the owner does not panic") });
            Life { controller, fetch, parts }
        }

        async fn crash(mut self) {
            self.parts.shutdown().await;
        }
    }

    fn model_key() -> ObjectKey {
        ObjectKey { kind: Kind::Predictor, namespace: Namespace::new("default").ok(), name: Name::new("digits").expect("valid") }
    }

    fn status(store: &dyn Store) -> Value {
        store.get(&model_key()).and_then(|object| object.status.as_ref().map(|status| status.value())).unwrap_or_default()
    }

    #[tokio::test]
    async fn a_model_that_failed_before_a_crash_has_failed_after_it_without_a_word_and_without_another_try() {
        let clock = Clock::system();
        let state = tempfile::tempdir().expect("a temporary folder");
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(clock.clone()));
        let spec = json!({ "modelType": { "name": "onnx" }, "path": "digits.onnx", "storage": { "s3": { "secretKey": "k" } } });
        for object in bundled().into_iter().chain([Arc::new(Desired::new(model_key(), Origin::Api, &spec))]) {
            store.apply(object, None).await.expect("a sound object");
        }
        let life = Life::begin(store.clone(), state.path());
        let mut versions = store.versions();
        let has_failed = async {
            while status(&*store)["activeModelState"] != "FailedToLoad" {
                versions.changed().await.expect("the store is open");
            }
        };
        clock.until(clock.deadline_in(Duration::from_secs(30)), has_failed).await.expect("it fails at once");
        assert_eq!(life.fetch.fetches().len(), 1);
        let (before, version) = (status(&*store), store.version());
        assert_eq!(before["lastFailureInfo"]["message"], "no such object");
        life.crash().await;

        let life = Life::begin(store.clone(), state.path());
        let mut caught_up = life.controller.caught_up();
        let settled = clock.until(clock.deadline_in(Duration::from_secs(30)), caught_up.wait_for(|caught_up| *caught_up)).await;
        settled.expect("the agent reports at once").expect("the leader lives");
        assert_eq!((status(&*store), store.version()), (before, version), "nothing was written");
        assert_eq!(life.fetch.fetches(), Vec::<String>::new());
        life.crash().await;
    }
}
