//! Everything around a leader: a store that can be made to hesitate or fail, and one scripted pod.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use berth_plan::MayEvict;
use berth_plan::resource::{DEPLOYMENT_MODE, MODEL_MESH};
use berth_registry::{
    Alias, Changes, Contents, Desired, Event, Expired, Json, Kind, Managed, ManagedChange, MemoryStore, Object, ObjectKey, Origin, Resolved,
    Snapshot, Store, StoreError, Uid, Views,
};
use berth_telemetry::{Clock, Counter, Metrics};
use berth_types::{
    ByteSize, Content, ContentDigest, CopyReport, CopyState, Failure, Footprint, Location, ManagedModel, ManagedName, ModelId, Name, Namespace,
    PodId, Reason, Registration, Retry, Step, UnixMillis,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Agents, Config, Controller, Deps, Drift, Endpoints, Manager, ManagerDeps, Pod};

pub(super) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn key(kind: Kind, name: &str) -> ObjectKey {
    let namespace = kind.namespaced().then(|| Namespace::new("default").expect("valid"));
    ObjectKey { kind, namespace, name: Name::new(name).expect("valid") }
}

pub(super) fn isvc(name: &str, spec: Value) -> Desired {
    let annotations = json!({ DEPLOYMENT_MODE: MODEL_MESH }).into();
    Desired { annotations, ..Desired::new(key(Kind::InferenceService, name), Origin::Api, &spec) }
}

pub(super) fn with_uri(uri: &str) -> Value {
    json!({ "predictor": { "model": { "modelFormat": { "name": "onnx" }, "storageUri": uri } } })
}

pub(super) fn onnx(version: &str) -> Value {
    with_uri(&format!("s3://models/{version}.onnx"))
}

pub(super) fn predictor(name: &str, version: &str) -> Desired {
    let spec = json!({ "modelType": { "name": "onnx" }, "path": format!("{version}.onnx"), "storage": { "s3": { "secretKey": "k" } } });
    Desired::new(key(Kind::Predictor, name), Origin::Api, &spec)
}

pub(super) fn runtime(name: &str, format: &str) -> Desired {
    let spec = json!({ "multiModel": true, "supportedModelFormats": [{ "name": format, "autoSelect": true }] });
    Desired::new(key(Kind::ClusterServingRuntime, name), Origin::Api, &spec)
}

pub(super) fn loaded() -> CopyState {
    CopyState::Loaded { since: UnixMillis(1), footprint: Footprint::host(ByteSize::mib(10)), content: None }
}

pub(super) fn digest(number: u8) -> ContentDigest {
    ContentDigest([number; 32])
}

/// Loaded from these bytes.
pub(super) fn loaded_from(number: u8) -> CopyState {
    let content = Some(Arc::new(Content { digest: digest(number), checked: "md5".into() }));
    CopyState::Loaded { since: UnixMillis(1), footprint: Footprint::host(ByteSize::mib(10)), content }
}

/// What the pod does when it is asked for a load.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Loads,
    LoadsIn(Duration),
    Fails,
    /// The storage cannot be reached.
    StorageAway,
    NoRoom,
    Silence,
}

/// One pod that does as it is told.
pub(super) struct Script {
    pod: PodId,
    /// Live pods beside that one, and their runtimes.
    others: Mutex<Vec<(PodId, &'static str)>>,
    /// It is not there at present.
    hidden: AtomicBool,
    /// Agents of before have not come back.
    awaits: AtomicBool,
    /// This pod (`None`: every one) is not asked for a load before then.
    held_off: Mutex<Option<(Option<PodId>, UnixMillis)>>,
    clock: Clock,
    controller: OnceLock<Controller>,
    free: Mutex<ByteSize>,
    usual: Mutex<Answer>,
    answers: Mutex<HashMap<String, Answer>>,
    loads: Mutex<Vec<String>>,
    retired: Mutex<Vec<String>>,
    amended: Mutex<Vec<String>>,
}

fn name_of(model: &ModelId) -> String {
    model.as_str().split("__").next().unwrap_or_default().to_owned()
}

impl Script {
    fn failure(&self, model: &ModelId, message: &str, retry: Retry) -> Arc<Failure> {
        Arc::new(Failure {
            reason: Reason::ModelLoadFailed,
            step: Step::Fetch,
            location: Location::of_pod_name("pod-1"),
            model: model.clone(),
            message: message.to_owned(),
            time: self.clock.wall(),
            retry,
        })
    }

    fn bad(&self, model: &ModelId) -> Arc<Failure> {
        self.failure(model, "no such object", Retry::AfterChange)
    }

    fn away(&self, model: &ModelId) -> Arc<Failure> {
        self.failure(model, "connection refused", Retry::Later)
    }
}

#[async_trait]
impl Agents for Script {
    fn pods(&self) -> Vec<Pod> {
        let pod = |id: &PodId, runtime: &str| Pod {
            id: id.clone(),
            runtime: runtime.into(),
            free: Footprint::host(*self.free.lock()),
            budget: Footprint::host(ByteSize::mib(100)),
            loads_at_a_time: NonZeroUsize::new(2).expect("not zero"),
        };
        let others: Vec<Pod> = self.others.lock().iter().map(|(other, runtime)| pod(other, runtime)).collect();
        let there = !self.hidden.load(Ordering::Relaxed);
        there.then(|| pod(&self.pod, "embedded")).into_iter().chain(others).collect()
    }

    fn awaits_others(&self) -> bool {
        self.awaits.load(Ordering::Relaxed)
    }

    fn not_before(&self, pod: &PodId, _model: &ModelId) -> Option<UnixMillis> {
        let held_off = self.held_off.lock();
        let (who, until) = held_off.as_ref()?;
        (who.as_ref().is_none_or(|who| who == pod) && self.clock.wall() < *until).then_some(*until)
    }

    async fn load(&self, pod: &PodId, model: Arc<Registration>, _may_evict: MayEvict) {
        let name = name_of(&model.id);
        let answer = self.answers.lock().get(&name).copied().unwrap_or(*self.usual.lock());
        self.loads.lock().push(name);
        let report = |state, failure| CopyReport { model: model.id.clone(), state, failure, mended: false, last_used: None };
        let (wait, report) = match answer {
            Answer::Loads => (Duration::ZERO, report(loaded(), None)),
            Answer::LoadsIn(wait) => (wait, report(loaded(), None)),
            Answer::Fails => (Duration::ZERO, report(CopyState::Absent, Some(self.bad(&model.id)))),
            Answer::StorageAway => (Duration::ZERO, report(CopyState::Absent, Some(self.away(&model.id)))),
            Answer::NoRoom => (Duration::ZERO, report(CopyState::Absent, None)),
            Answer::Silence => return,
        };
        let (controller, pod, clock) = (self.controller.get().expect("started").clone(), pod.clone(), self.clock.clone());
        tokio::spawn(async move {
            clock.sleep(wait).await;
            controller.report(&pod, vec![report]).await;
        });
    }

    async fn amend(&self, _pod: &PodId, model: Arc<Registration>) {
        self.amended.lock().push(format!("{} {:?}", name_of(&model.id), model.keep));
    }

    async fn retire(&self, _pod: &PodId, model: Arc<Registration>) {
        self.retired.lock().push(model.id.to_string());
    }
}

/// A store in memory whose alias writes can be held back and whose status writes can fail.
pub(super) struct Balky {
    inner: MemoryStore,
    hold_aliases: watch::Sender<bool>,
    break_statuses: watch::Sender<bool>,
    /// Applied right before the next status is written.
    edit: Mutex<Option<Arc<Desired>>>,
    break_contents: watch::Sender<bool>,
    /// While true, what calls change is kept and not answered.
    hold_calls: watch::Sender<bool>,
    gets: AtomicU64,
}

impl Balky {
    /// How often an object was read: once for each look at a resource.
    pub(super) fn gets(&self) -> u64 {
        self.gets.load(Ordering::Relaxed)
    }

    pub(super) fn hold_aliases(&self, hold: bool) {
        self.hold_aliases.send_replace(hold);
    }

    /// Lets somebody's edit land together with the next status: a subscriber sees both as one change.
    pub(super) fn edit_with_the_next_status(&self, edit: Desired) {
        *self.edit.lock() = Some(Arc::new(edit));
    }

    pub(super) fn hold_calls(&self, hold: bool) {
        self.hold_calls.send_replace(hold);
    }

    pub(super) fn break_contents(&self, broken: bool) {
        self.break_contents.send_replace(broken);
    }

    pub(super) fn break_statuses(&self, broken: bool) {
        self.break_statuses.send_replace(broken);
    }
}

#[async_trait]
impl Store for Balky {
    fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        self.inner.get(key)
    }
    fn list(&self) -> Vec<Arc<Object>> {
        self.inner.list()
    }
    fn snapshot(&self) -> Snapshot {
        self.inner.snapshot()
    }
    fn version(&self) -> u64 {
        self.inner.version()
    }
    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }
    async fn apply(&self, object: Arc<Desired>, expected: Option<u64>) -> Result<Arc<Object>, StoreError> {
        self.inner.apply(object, expected).await
    }
    async fn set_status(&self, key: &ObjectKey, uid: Uid, status: Value) -> Result<Arc<Object>, StoreError> {
        if *self.break_statuses.borrow() {
            return Err(StoreError::Broken("disk full".to_owned()));
        }
        let edit = self.edit.lock().take();
        if let Some(edit) = edit {
            self.inner.apply(edit, None).await?;
        }
        self.inner.set_status(key, uid, status).await
    }
    async fn delete(&self, key: &ObjectKey) -> Result<Arc<Object>, StoreError> {
        self.inner.delete(key).await
    }
    async fn delete_version(&self, key: &ObjectKey, version: u64) -> Result<Arc<Object>, StoreError> {
        self.inner.delete_version(key, version).await
    }
    fn alias(&self, key: &ObjectKey) -> Option<Alias> {
        self.inner.alias(key)
    }
    async fn set_alias(&self, key: &ObjectKey, uid: Uid, alias: Option<Alias>) -> Result<(), StoreError> {
        let _ = self.hold_aliases.subscribe().wait_for(|hold| !hold).await;
        self.inner.set_alias(key, uid, alias).await
    }
    async fn contents(&self) -> Result<BTreeMap<ObjectKey, Contents>, StoreError> {
        self.inner.contents().await
    }
    async fn set_contents(&self, key: &ObjectKey, uid: Uid, contents: Contents) -> Result<(), StoreError> {
        if *self.break_contents.borrow() {
            return Err(StoreError::Broken("disk full".to_owned()));
        }
        self.inner.set_contents(key, uid, contents).await
    }
    fn subscribe(&self) -> Changes {
        self.inner.subscribe()
    }
    fn events_after(&self, version: u64) -> Result<Vec<Event>, Expired> {
        self.inner.events_after(version)
    }
    fn versions(&self) -> watch::Receiver<u64> {
        self.inner.versions()
    }
}

pub(super) struct World {
    pub(super) store: Arc<Balky>,
    pub(super) views: Views,
    pub(super) controller: Controller,
    agents: Arc<Script>,
    clock: Clock,
    metrics: Metrics,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

#[async_trait]
impl Managed for Balky {
    fn managed_model(&self, id: &str) -> Option<Arc<ManagedModel>> {
        self.inner.managed_model(id)
    }
    fn managed_name(&self, name: &str) -> Option<Arc<ManagedName>> {
        self.inner.managed_name(name)
    }
    fn managed(&self) -> (Vec<Arc<ManagedModel>>, Vec<Arc<ManagedName>>) {
        self.inner.managed()
    }
    async fn change_managed(&self, change: ManagedChange) -> Result<(), StoreError> {
        let kept = self.inner.change_managed(change).await;
        let _ = self.hold_calls.subscribe().wait_for(|hold| !hold).await;
        kept
    }
}

impl World {
    /// Carries out calls beside this leader, until the leader ends.
    pub(super) async fn manager(&self) -> Manager {
        let manager = Manager::open(self.manager_deps());
        tokio::spawn(manager.clone().run(self.shutdown.clone()));
        self.pass(secs(0)).await;
        manager
    }

    pub(super) fn manager_deps(&self) -> ManagerDeps {
        ManagerDeps {
            controller: self.controller.clone(),
            store: self.store.clone(),
            records: self.store.clone(),
            views: self.views.clone(),
            agents: self.agents.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            default_owner: None,
        }
    }

    /// A leader whose one pod has reported that it holds nothing.
    pub(super) async fn start() -> World {
        let world = World::silent().await;
        world.controller.report(&world.pod(), Vec::new()).await;
        world.pass(secs(0)).await;
        world
    }

    /// A leader whose one pod says nothing yet.
    pub(super) async fn silent() -> World {
        let clock = Clock::starting_at(UnixMillis(1_800_000_000_000));
        let inner = MemoryStore::new(clock.clone());
        inner.apply(Arc::new(runtime("embedded", "onnx")), None).await.expect("stored");
        let store = Arc::new(Balky {
            inner,
            hold_aliases: watch::Sender::new(false),
            break_statuses: watch::Sender::new(false),
            break_contents: watch::Sender::new(false),
            hold_calls: watch::Sender::new(false),
            edit: Mutex::default(),
            gets: AtomicU64::new(0),
        });
        World::over(store, clock, ByteSize::mib(100)).await
    }

    async fn over(store: Arc<Balky>, clock: Clock, free: ByteSize) -> World {
        let agents = Arc::new(Script {
            pod: PodId::new("p1").expect("valid"),
            others: Mutex::default(),
            hidden: AtomicBool::new(false),
            awaits: AtomicBool::new(false),
            held_off: Mutex::default(),
            clock: clock.clone(),
            controller: OnceLock::new(),
            free: Mutex::new(free),
            usual: Mutex::new(Answer::Loads),
            answers: Mutex::default(),
            loads: Mutex::default(),
            retired: Mutex::default(),
            amended: Mutex::default(),
        });
        let (views, metrics, shutdown) = (Views::in_epoch(1), Metrics::default(), CancellationToken::new());
        let endpoints = Endpoints { grpc: Some("grpc://localhost:8033".to_owned()), rest: None };
        let config = Config { endpoints, writes_at_a_time: NonZeroUsize::new(4).expect("not zero"), ..Config::default() };
        let deps =
            Deps { store: store.clone(), views: views.clone(), agents: agents.clone(), clock: clock.clone(), metrics: metrics.clone(), config };
        let (controller, leader) = Controller::new(deps);
        agents.controller.set(controller.clone()).ok().expect("set once");
        let task = tokio::spawn(leader.run(shutdown.clone()));
        let world = World { store, views, controller, agents, clock, metrics, shutdown, task };
        world.pass(secs(0)).await;
        world
    }

    /// Ends this leader and starts another over the same store; nothing is loaded, and the pod has said so.
    pub(super) async fn restart(self) -> World {
        let world = self.restart_silent().await;
        world.controller.report(&world.pod(), Vec::new()).await;
        world
    }

    /// As `restart`, but the pod says nothing yet.
    pub(super) async fn restart_silent(self) -> World {
        self.restart_after(None).await
    }

    /// As `restart_silent`, with an edit made while no leader runs.
    pub(super) async fn restart_after(self, edit: Option<Desired>) -> World {
        let (store, clock, free) = (self.store.clone(), self.clock.clone(), *self.agents.free.lock());
        self.stop().await;
        if let Some(edit) = edit {
            store.apply(Arc::new(edit), None).await.expect("stored");
        }
        World::over(store, clock, free).await
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.expect("the leader ends without a panic");
    }

    /// Lets time pass; paused time only moves when nothing else can, so everything that can happen has happened then.
    pub(super) async fn pass(&self, time: Duration) {
        self.clock.sleep(time + Duration::from_millis(1)).await;
    }

    /// The pod is there, or is not.
    pub(super) fn hide(&self, hidden: bool) {
        self.agents.hidden.store(hidden, Ordering::Relaxed);
    }

    /// Agents of before are still to come, or have.
    pub(super) fn awaits(&self, others: bool) {
        self.agents.awaits.store(others, Ordering::Relaxed);
    }

    /// This pod (`None`: nobody) is not to be asked for a load for so long.
    pub(super) fn hold_off(&self, pod: Option<&PodId>, time: Duration) {
        *self.agents.held_off.lock() = Some((pod.cloned(), self.clock.wall().after(time)));
    }

    pub(super) fn pod(&self) -> PodId {
        self.agents.pod.clone()
    }

    pub(super) fn free(&self, bytes: ByteSize) {
        *self.agents.free.lock() = bytes;
    }

    pub(super) fn answer(&self, name: &str, answer: Answer) {
        self.agents.answers.lock().insert(name.to_owned(), answer);
    }

    pub(super) fn answer_all(&self, answer: Answer) {
        *self.agents.usual.lock() = answer;
    }

    /// The names of the loads that were asked for, in order.
    pub(super) fn loads(&self) -> Vec<String> {
        self.agents.loads.lock().clone()
    }

    /// What agents were told of versions that are kept otherwise, in order.
    pub(super) fn amended(&self) -> Vec<String> {
        self.agents.amended.lock().clone()
    }

    /// The ids that were retired, in order.
    pub(super) fn retired(&self) -> Vec<String> {
        self.agents.retired.lock().clone()
    }

    pub(super) async fn put(&self, object: Desired) {
        self.store.apply(Arc::new(object), None).await.expect("stored");
    }

    pub(super) async fn apply(&self, object: Desired) {
        self.put(object).await;
        self.pass(secs(0)).await;
    }

    pub(super) async fn delete(&self, name: &str) {
        self.store.delete(&self.key(name)).await.expect("there");
        self.pass(secs(0)).await;
    }

    pub(super) async fn report(&self, name: &str, state: CopyState) {
        self.report_of(&self.model(name), state).await;
    }

    pub(super) async fn report_of(&self, model: &ModelId, state: CopyState) {
        self.report_with(model, state, None).await;
    }

    /// Another pod like the first.
    pub(super) fn pod_like_it(&self, name: &str) -> PodId {
        let pod = PodId::new(name).expect("valid");
        self.agents.others.lock().push((pod.clone(), "embedded"));
        pod
    }

    /// Another pod, which holds what it says and loads nothing.
    pub(super) fn other_pod(&self, name: &str) -> PodId {
        let pod = PodId::new(name).expect("valid");
        self.agents.others.lock().push((pod.clone(), "other"));
        pod
    }

    pub(super) async fn pods_are_gone(&self) {
        self.agents.others.lock().clear();
        self.controller.report(&self.pod(), Vec::new()).await;
        self.pass(secs(0)).await;
    }

    pub(super) async fn report_from(&self, pod: &PodId, model: &ModelId, state: CopyState) {
        let report = CopyReport { model: model.clone(), state, failure: None, mended: false, last_used: None };
        self.controller.report(pod, vec![report]).await;
        self.pass(secs(0)).await;
    }

    /// The storage configuration of the pod has changed after this failure.
    pub(super) async fn mend(&self, model: &ModelId, failure: Arc<Failure>) {
        let report = CopyReport { model: model.clone(), state: CopyState::Absent, failure: Some(failure), mended: true, last_used: None };
        self.controller.report(&self.pod(), vec![report]).await;
        self.pass(secs(0)).await;
    }

    /// Pod, first good and present content of each drift of a model, and how many there were ever.
    pub(super) fn drifts(&self, model: &ModelId) -> (Vec<(String, ContentDigest, ContentDigest)>, u64) {
        let drifts = self.controller.drifts();
        let told = |drift: &Drift| (drift.pod.to_string(), drift.first, drift.seen.digest);
        (drifts.borrow().of(model).iter().map(told).collect(), self.metrics.count(Counter::ContentDrift, &[]))
    }

    /// What the store keeps of the contents of a resource's versions.
    pub(super) async fn kept_contents(&self, name: &str) -> Contents {
        self.store.contents().await.expect("it is in memory").remove(&self.key(name)).unwrap_or_default()
    }

    async fn report_with(&self, model: &ModelId, state: CopyState, failure: Option<Arc<Failure>>) {
        let report = CopyReport { model: model.clone(), state, failure, mended: false, last_used: None };
        self.controller.report(&self.pod(), vec![report]).await;
        self.pass(secs(0)).await;
    }

    /// A load that a request waited for failed: the storage cannot be reached.
    pub(super) async fn storage_was_away_for(&self, model: &ModelId) {
        self.report_with(model, CopyState::Absent, Some(self.agents.away(model))).await;
    }

    pub(super) fn failure(&self, name: &str) -> Arc<Failure> {
        self.agents.bad(&self.model(name))
    }

    pub(super) fn resolve(&self, name: &str) -> Resolved {
        self.views.current().resolve(name)
    }

    pub(super) fn model(&self, name: &str) -> ModelId {
        let view = self.views.current();
        view.name(name).and_then(|entry| entry.active.clone()).expect("an active version").id.clone()
    }

    /// The key of the InferenceService, else of the Predictor of this name.
    pub(super) fn key(&self, name: &str) -> ObjectKey {
        let isvc = key(Kind::InferenceService, name);
        if self.store.inner.get(&isvc).is_some() { isvc } else { key(Kind::Predictor, name) }
    }

    pub(super) fn status(&self, name: &str) -> Value {
        self.status_of(&self.key(name))
    }

    pub(super) fn status_of(&self, key: &ObjectKey) -> Value {
        let object = self.store.inner.get(key).expect("there");
        object.status.as_ref().map(Json::value).unwrap_or_default()
    }

    pub(super) fn status_writes(&self) -> u64 {
        self.metrics.count(Counter::StatusWrites, &[])
    }

    /// Every status that was ever published for the name, in order.
    pub(super) fn history(&self, name: &str) -> Vec<String> {
        let key = self.key(name);
        let events = self.store.events_after(0).expect("all are kept");
        let mut shown: Vec<String> = Vec::new();
        for event in events.iter().filter(|event| event.object.key == key) {
            let (Some(status), before) = (&event.object.status, event.before.as_ref().and_then(|before| before.status.as_ref())) else { continue };
            if before != Some(status) {
                shown.push(brief(&status.value()));
            }
        }
        shown
    }

    pub(super) fn last(&self, name: &str) -> String {
        brief(&self.status(name))
    }
}

/// `active/target transition ready`.
fn brief(status: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match status.get("modelStatus") {
        Some(model) => {
            let states = &model["states"];
            let (active, target) = (text(&states["activeModelState"]), text(&states["targetModelState"]));
            format!("{active}/{target} {} {}", text(&model["transitionStatus"]), text(&status["conditions"][0]["status"]))
        }
        None => {
            let ready = if status["available"] == true { "True" } else { "False" };
            format!("{}/{} {} {ready}", text(&status["activeModelState"]), text(&status["targetModelState"]), text(&status["transitionStatus"]))
        }
    }
}
