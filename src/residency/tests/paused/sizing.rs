//! Sizes that are told only while a copy serves.

use std::sync::Arc;

use async_trait::async_trait;
use berth_adapters::fake::Script;
use berth_adapters::{Artifacts, FakeRuntime, Index, LaidOut, LoadError, Loaded, Runtime, RuntimeDown, RuntimeInfo, UnloadError};
use berth_residency::{Deps, Residency, WaitError};
use berth_telemetry::Metrics;
use berth_types::{ByteSize, CopyState, Footprint, Location, ModelId, Registration};
use parking_lot::Mutex;

use crate::rig::{Parts, kib, model, secs};

#[tokio::test(start_paused = true)]
async fn a_size_that_comes_late_is_charged_when_it_comes() {
    let parts = Parts::with_memory(kib(40));
    parts.runtime.script("m", Script::default().measuring(kib(30)).measured_after(secs(10)));
    let pod = parts.start();
    pod.use_once("m").await;
    pod.pass(secs(9)).await;
    assert_eq!(pod.charged().await, kib(4), "until then the prediction counts");
    pod.pass(secs(2)).await;
    assert_eq!(pod.charged().await, kib(30));
    pod.loaded("m").await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_turns_out_larger_than_all_memory_goes_and_is_not_loaded_again() {
    let parts = Parts::with_memory(kib(40));
    parts.runtime.script("m", Script::default().measuring(kib(50)).measured_after(secs(1)));
    let pod = parts.start();
    pod.use_once("m").await;
    pod.pass(secs(10)).await;
    assert_eq!((pod.charged().await, pod.held()), (kib(0), vec![]));
    assert!(matches!(pod.ensure("m", secs(60)).await, Err(WaitError::Refused(_))));
    assert_eq!(pod.runtime.loads(), ["m"]);
}

#[tokio::test(start_paused = true)]
async fn a_size_that_comes_when_the_copy_has_gone_is_nobodys() {
    let parts = Parts::with_memory(kib(40));
    parts.runtime.script("m", Script::default().measuring(kib(30)).measured_after(secs(20)));
    let pod = parts.start();
    pod.use_once("m").await;
    pod.residency.retire(model("m")).await;
    pod.pass(secs(30)).await;
    assert_eq!((pod.charged().await, pod.held()), (kib(0), vec![]));
}

/// A runtime that predicts, and whose index is its own books: a model stays in it until somebody doubts.
struct Bookkeeper {
    fake: FakeRuntime,
    books: Mutex<Vec<ModelId>>,
    predicted: ByteSize,
}

#[async_trait]
impl Runtime for Bookkeeper {
    fn info(&self) -> &RuntimeInfo {
        self.fake.info()
    }
    fn estimate(&self, artifacts: &Artifacts) -> Option<Footprint> {
        self.fake.estimate(artifacts)
    }
    async fn predict(&self, _model: &Registration, _artifacts: &Artifacts) -> Option<Footprint> {
        Some(Footprint::host(self.predicted))
    }
    async fn lay_out(&self, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        self.fake.lay_out(model, artifacts).await
    }
    async fn load(&self, model: &Registration, laid_out: &LaidOut) -> Result<Loaded, LoadError> {
        let loaded = self.fake.load(model, laid_out).await;
        self.books.lock().push(model.id.clone());
        loaded
    }
    async fn doubt(&self, model: &ModelId) {
        self.books.lock().retain(|held| held != model);
    }
    async fn unload(&self, model: &ModelId) -> Result<(), UnloadError> {
        self.books.lock().retain(|held| held != model);
        self.fake.unload(model).await
    }
    async fn clear_layout(&self, model: &ModelId) {
        self.fake.clear_layout(model).await;
    }
    async fn index(&self) -> Result<Index, RuntimeDown> {
        Ok(Index::of(self.books.lock().iter().map(|model| (model.clone(), berth_adapters::IndexEntry::Ready))))
    }
    async fn index_changed(&self) {
        self.fake.index_changed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_server_was_heard_not_to_hold_is_doubted_before_the_index_is_looked_at_and_predictions_are_charged() {
    let parts = Parts::with_memory(kib(40));
    let (clock, fake) = (parts.clock.clone(), parts.runtime.clone());
    fake.script_all(Script::default().unmeasured());
    let (residency, _owner) = Residency::start(Deps {
        runtime: Arc::new(Bookkeeper { fake: fake.clone(), books: Mutex::default(), predicted: kib(7) }),
        fetch: parts.fetch.clone(),
        clock: clock.clone(),
        metrics: Metrics::default(),
        location: Location::of_pod_name("p"),
        budget: parts.budget.clone(),
        memory: None,
        config: parts.config.clone(),
    });
    drop(residency.ensure_loaded(&model("m"), clock.deadline_in(secs(5))).await.expect("it loads"));
    let charged = residency.snapshot().await.expect("the owner lives").pools[0].charged;
    assert_eq!(charged, kib(7), "as predicted");
    residency.suspect(&model("m").id).await;
    clock.sleep(secs(1)).await;
    let mut reports = residency.reports();
    let report = reports.so_far().into_iter().find(|report| report.model == model("m").id);
    assert!(report.is_some_and(|report| !matches!(report.state, CopyState::Loaded { .. })), "it is loaded when it is asked for again");
    drop(residency.ensure_loaded(&model("m"), clock.deadline_in(secs(5))).await.expect("it loads again"));
    assert_eq!(fake.loads(), ["m", "m"]);
}
