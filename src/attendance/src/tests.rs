//! Whole agents, with a scripted runtime and a scripted store of models, and a whole controller, over lines that can be cut.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_adapters::fake::Script;
use berth_adapters::{FakeRuntime, RuntimeInfo};
use berth_controller::{Agents as _, Controller};
use berth_proto::attendance::{FromAgent, FromController};
use berth_puller::fake::{FakeFetch, Scripted};
use berth_registry::{Desired, Followers as _, Kind, MemoryStore, ObjectKey, Origin, Resolved, Store, Views, bundled_for_agents};
use berth_residency::Residency;
use berth_telemetry::{Clock, HostNet, Metrics, Net, Peer};
use berth_types::{ByteSize, Footprint, Location, ModelFormat, ModelId, Name, Namespace, Placement, PodId, Registration, StorageRef, UnixMillis};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status};

use crate::{Admits, Attendant, Hub, Line, Settings, Shows, Who, Wire, service};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const SOON: Duration = Duration::from_secs(30);

/// One life of a controller.
struct Leads {
    store: Arc<MemoryStore>,
    views: Views,
    hub: Hub,
    clock: Clock,
    leader: AbortOnDropHandle<()>,
}

impl Leads {
    fn start(store: &Arc<MemoryStore>, clock: &Clock, remembered: Option<PathBuf>) -> Leads {
        let views = Views::in_epoch(store.epoch());
        let hub = Hub::open(views.clone(), Settings { remembered, ..Settings::default() }, clock.clone(), Metrics::default());
        let (controller, leader) = Controller::new(berth_controller::Deps {
            store: store.clone(),
            views: views.clone(),
            agents: Arc::new(hub.clone()),
            clock: clock.clone(),
            metrics: Metrics::default(),
            config: berth_controller::Config::default(),
        });
        hub.report_to(controller);
        let leader = AbortOnDropHandle::new(tokio::spawn(leader.run(CancellationToken::new())));
        Leads { store: Arc::clone(store), views, hub, clock: clock.clone(), leader }
    }

    async fn fresh() -> (Leads, Arc<MemoryStore>, Clock) {
        let clock = Clock::starting_at(UnixMillis(1_700_000_000_000));
        let store = Arc::new(MemoryStore::new(clock.clone()));
        for object in bundled_for_agents() {
            store.apply(object, None).await.expect("sound");
        }
        (Leads::start(&store, &clock, None), store, clock)
    }

    async fn end(self) {
        self.hub.end();
        drop(self.leader);
    }

    fn status(&self, name: &str) -> Value {
        self.store.get(&key(name)).and_then(|object| object.status.as_ref().map(|status| status.value())).unwrap_or_default()
    }

    /// Waits until the status of `name` is so; tells every status on the way.
    async fn status_is(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let (mut versions, mut seen) = (self.store.versions(), Vec::<Value>::new());
        let waiting = async {
            loop {
                versions.mark_unchanged();
                let status = self.status(name);
                if seen.last() != Some(&status) {
                    seen.push(status.clone());
                }
                if wanted(&status) {
                    return;
                }
                versions.changed().await.expect("the store lives");
            }
        };
        let came = self.clock.until(self.clock.deadline_in(secs(3600)), waiting).await;
        assert!(came.is_some(), "{name}: {seen:#?}");
        seen
    }

    async fn loaded(&self, name: &str, copies: u64) {
        self.status_is(name, |status| status["activeModelState"] == "Loaded" && status["totalCopies"] == copies).await;
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey { kind: Kind::Predictor, namespace: Namespace::new("default").ok(), name: Name::new(name).expect("valid") }
}

async fn apply(store: &Arc<MemoryStore>, name: &str) {
    let spec = json!({ "modelType": { "name": "onnx" }, "path": format!("{name}.onnx"), "storage": { "s3": { "secretKey": "k" } } });
    store.apply(Arc::new(Desired::new(key(name), Origin::Api, &spec)), None).await.expect("sound");
}

/// A line to whichever controller there is; it can be cut.
struct Rope {
    to: watch::Sender<Option<Hub>>,
}

impl Rope {
    fn to(hub: &Hub) -> Arc<Self> {
        Arc::new(Rope { to: watch::Sender::new(Some(hub.clone())) })
    }

    fn cut(&self) {
        self.to.send_replace(None);
    }

    fn tie(&self, hub: &Hub) {
        self.to.send_replace(Some(hub.clone()));
    }
}

impl fmt::Display for Rope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rope")
    }
}

#[async_trait]
impl Line for Rope {
    async fn open(&self, said: mpsc::Receiver<FromAgent>) -> Result<BoxStream<'static, Result<FromController, Status>>, Status> {
        let mut to = self.to.subscribe();
        let hub = to.borrow_and_update().clone().ok_or_else(|| Status::unavailable("cut"))?;
        let told = hub.open(said).await?;
        let cut = async move {
            let _ = to.changed().await;
        };
        Ok(told.take_until(cut).boxed())
    }
}

/// One agent.
struct Agent {
    runtime: FakeRuntime,
    residency: Residency,
    views: Views,
    clock: Clock,
    stop: CancellationToken,
    attending: Option<JoinHandle<()>>,
    _owner: AbortOnDropHandle<()>,
}

impl Agent {
    fn start(number: u32, line: Arc<dyn Line>, clock: &Clock, file: Option<PathBuf>) -> Agent {
        let info = RuntimeInfo {
            name: "triton-2.x".into(),
            version: "1".into(),
            capacity: None,
            load_concurrency: NonZeroU32::MIN.saturating_add(3),
            load_timeout: secs(60),
            reads_files_while_loaded: true,
        };
        let budget = Footprint::host(ByteSize::mib(64));
        let location = Location::of_pod_name(&format!("pod-{number}"));
        let runtime = FakeRuntime::beside(clock.clone(), info.clone());
        let (residency, owner) = Residency::start(berth_residency::Deps {
            runtime: Arc::new(runtime.clone()),
            fetch: FakeFetch::with_default(clock.clone(), Scripted::arrives(ByteSize::kib(4))),
            clock: clock.clone(),
            metrics: Metrics::default(),
            location: location.clone(),
            budget: budget.clone(),
            memory: None,
            config: berth_residency::Config::default(),
        });
        let who = Who {
            pod: PodId::new(format!("uid-{number}")).expect("valid"),
            location,
            runtime: Arc::clone(&info.name),
            budget,
            loads_at_a_time: info.load_concurrency.get(),
        };
        let views = Views::default();
        let attendant = Attendant::new(line, who, residency.clone(), views.clone(), clock.clone(), Metrics::default(), file);
        let stop = CancellationToken::new();
        let attending = Some(tokio::spawn(attendant.run(stop.clone())));
        Agent { runtime, residency, views, clock: clock.clone(), stop, attending, _owner: AbortOnDropHandle::new(owner) }
    }

    /// Waits until this agent's view says so of `name`.
    async fn knows(&self, name: &str, wanted: impl Fn(&Resolved) -> bool) -> Resolved {
        let mut numbers = self.views.numbers();
        let waiting = async {
            loop {
                numbers.mark_unchanged();
                let resolved = self.views.current().resolve(name);
                if wanted(&resolved) {
                    return resolved;
                }
                numbers.changed().await.expect("the views live");
            }
        };
        let known = self.clock.until(self.clock.deadline_in(SOON), waiting).await;
        known.unwrap_or_else(|| panic!("{name}: {:?}", self.views.current().resolve(name)))
    }

    async fn registration(&self, name: &str) -> Arc<Registration> {
        match self.knows(name, |resolved| matches!(resolved, Resolved::Model(_))).await {
            Resolved::Model(registration) => registration,
            _ => unreachable!("asked for"),
        }
    }

    /// What a request on `name` comes to.
    async fn ask(&self, name: &str) -> Result<(), String> {
        let registration = self.registration(name).await;
        let guard = self.residency.ensure_loaded(&registration, self.clock.deadline_in(secs(60))).await;
        guard.map(drop).map_err(|fault| fault.to_string())
    }

    /// Waits until the models that its runtime holds are these.
    async fn holds(&self, names: &[&str]) {
        let mut reports = self.residency.reports();
        let held = || {
            let held = self.runtime.held().into_iter().map(|(id, _)| id.split("__").next().unwrap_or_default().to_owned());
            let mut held: Vec<String> = held.collect();
            held.sort();
            held
        };
        let waiting = async {
            while held() != names {
                reports.next().await.expect("residency lives");
            }
        };
        assert!(self.clock.until(self.clock.deadline_in(SOON), waiting).await.is_some(), "{:?}", held());
    }

    async fn leave(&mut self) {
        self.stop.cancel();
        if let Some(attending) = self.attending.take() {
            attending.await.expect("no panic");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_registered_is_loaded_by_one_agent_and_known_to_all_and_goes_from_all() {
    let (leads, store, clock) = Leads::fresh().await;
    let agents: Vec<Agent> = (0..3).map(|number| Agent::start(number, Rope::to(&leads.hub), &clock, None)).collect();
    apply(&store, "digits").await;
    leads.loaded("digits", 1).await;
    for agent in &agents {
        agent.registration("digits").await;
    }
    let loads: usize = agents.iter().map(|agent| agent.runtime.loads().len()).sum();
    assert_eq!(loads, 1, "the first load is one pod's");
    for agent in &agents {
        agent.ask("digits").await.expect("whoever is asked has it loaded");
    }
    leads.loaded("digits", 3).await;
    store.delete(&key("digits")).await.expect("it is there");
    for agent in &agents {
        agent.knows("digits", |resolved| matches!(resolved, Resolved::Unknown)).await;
        agent.holds(&[]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_comes_later_knows_everything_and_one_that_leaves_is_missed_at_once() {
    let (leads, store, clock) = Leads::fresh().await;
    for number in 0..700 {
        apply(&store, &format!("model-{number}")).await;
    }
    let mut first = Agent::start(1, Rope::to(&leads.hub), &clock, None);
    for number in 0..700 {
        leads.loaded(&format!("model-{number}"), 1).await;
    }
    let second = Agent::start(2, Rope::to(&leads.hub), &clock, None);
    second.registration("model-0").await;
    assert_eq!(second.views.current().model_count(), 700);
    second.ask("model-0").await.expect("it loads");
    leads.loaded("model-0", 2).await;
    let before = clock.now();
    first.leave().await;
    leads.loaded("model-0", 1).await;
    assert!(clock.now() - before < secs(1), "nobody waits for one that said so: {:?}", clock.now() - before);
    assert_eq!((leads.hub.attending(), leads.hub.pods().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_moves_no_status_when_it_is_back_in_time_and_does_when_it_is_not() {
    let (leads, store, clock) = Leads::fresh().await;
    let rope = Rope::to(&leads.hub);
    let agent = Agent::start(1, rope.clone(), &clock, None);
    apply(&store, "digits").await;
    leads.loaded("digits", 1).await;
    let version = store.version();
    rope.cut();
    // What is known is served, what is not may be there by now.
    apply(&store, "news").await;
    let waiting = async {
        while !matches!(agent.views.current().resolve("news"), Resolved::NotReady) {
            clock.sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(clock.until(clock.deadline_in(secs(5)), waiting).await.is_some());
    agent.ask("digits").await.expect("it serves on");
    rope.tie(&leads.hub);
    agent.registration("news").await;
    leads.loaded("news", 1).await;
    let digits = leads.status("digits");
    assert_eq!((&digits["activeModelState"], &digits["totalCopies"]), (&json!("Loaded"), &json!(1)));
    assert!(store.get(&key("digits")).is_some_and(|object| object.resource_version <= version), "nothing was written of it");

    rope.cut();
    let begun = clock.now();
    let steps = leads.status_is("digits", |status| status["totalCopies"] == 0).await;
    let took = clock.now() - begun;
    assert!((secs(10)..secs(20)).contains(&took), "after the grace: {took:?}, {steps:#?}");
    rope.tie(&leads.hub);
    leads.loaded("digits", 1).await;
    assert_eq!(agent.runtime.loads().len(), 2, "nothing was loaded again");
}

#[tokio::test(start_paused = true)]
async fn what_went_or_came_while_nobody_was_there_to_tell_it_is_made_good() {
    let (leads, store, clock) = Leads::fresh().await;
    let rope = Rope::to(&leads.hub);
    let agent = Agent::start(1, rope.clone(), &clock, None);
    for name in ["goes", "stays"] {
        apply(&store, name).await;
        leads.loaded(name, 1).await;
    }
    rope.cut();
    leads.end().await;
    store.delete(&key("goes")).await.expect("it is there");
    agent.holds(&["goes", "stays"]).await;
    // Another controller, which knows nothing of what the one before had not said.
    let leads = Leads::start(&store, &clock, None);
    rope.tie(&leads.hub);
    agent.holds(&["stays"]).await;
    leads.loaded("stays", 1).await;
    assert_eq!(agent.runtime.loads().len(), 2, "nothing was loaded again");
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_begins_anew_waits_for_the_agents_of_before_and_takes_nothing_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let remembered = Some(folder.path().join("agents.json"));
    let clock = Clock::starting_at(UnixMillis(1_700_000_000_000));
    let store = Arc::new(MemoryStore::new(clock.clone()));
    for object in bundled_for_agents() {
        store.apply(object, None).await.expect("sound");
    }
    let leads = Leads::start(&store, &clock, remembered.clone());
    let rope = Rope::to(&leads.hub);
    let agent = Agent::start(1, rope.clone(), &clock, None);
    apply(&store, "digits").await;
    leads.loaded("digits", 1).await;
    rope.cut();
    leads.end().await;

    let version = store.version();
    let leads = Leads::start(&store, &clock, remembered.clone());
    assert!(leads.hub.awaits_others());
    clock.sleep(secs(4)).await;
    assert_eq!(store.version(), version, "there is nothing to conclude yet");
    let loads = agent.runtime.loads().len();
    // At no moment it is told that nobody serves it.
    let watched = tokio::spawn({
        let (views, mut numbers) = (agent.views.clone(), agent.views.numbers());
        async move {
            loop {
                assert!(matches!(views.current().resolve("digits"), Resolved::Model(_)), "{:?}", views.current().resolve("digits"));
                if numbers.changed().await.is_err() {
                    return;
                }
            }
        }
    });
    rope.tie(&leads.hub);
    agent.ask("digits").await.expect("it was served all along");
    clock.sleep(secs(60)).await;
    assert_eq!(store.version(), version, "no status has moved, not even for a moment");
    apply(&store, "next").await;
    leads.loaded("next", 1).await;
    assert_eq!((leads.status("digits")["activeModelState"].clone(), agent.runtime.loads().len()), (json!("Loaded"), loads + 1));
    assert!(!watched.is_finished());
    watched.abort();
    rope.cut();
    leads.end().await;

    // One that does not come back is not waited for for ever.
    let leads = Leads::start(&store, &clock, remembered);
    let begun = clock.now();
    leads.status_is("digits", |status| status["totalCopies"] == 0).await;
    let took = clock.now() - begun;
    assert!((secs(9)..secs(15)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_held_is_gone_with_it_also_when_it_comes_back_with_nothing() {
    let (leads, store, clock) = Leads::fresh().await;
    let mut agent = Agent::start(1, Rope::to(&leads.hub), &clock, None);
    apply(&store, "digits").await;
    leads.loaded("digits", 1).await;
    agent.leave().await;
    leads.status_is("digits", |status| status["totalCopies"] == 0).await;
    drop(agent);
    clock.sleep(secs(60)).await;
    // The same agent, begun anew: it has loaded nothing yet.
    let agent = Agent::start(1, Rope::to(&leads.hub), &clock, None);
    let steps = leads.status_is("digits", |status| status["activeModelState"] == "Loaded").await;
    assert_eq!(agent.runtime.loads().len(), 1, "it says so when it has it: {steps:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_load_that_its_agent_took_with_it_is_asked_of_another() {
    let (leads, store, clock) = Leads::fresh().await;
    let rope = Rope::to(&leads.hub);
    let first = Agent::start(1, rope.clone(), &clock, None);
    first.runtime.script_all(Script::default().hanging());
    apply(&store, "digits").await;
    leads.status_is("digits", |status| status["activeModelState"] == "Loading").await;
    while first.runtime.loads().is_empty() {
        clock.sleep(Duration::from_millis(10)).await;
    }
    let second = Agent::start(2, Rope::to(&leads.hub), &clock, None);
    second.registration("digits").await;
    rope.cut();
    let begun = clock.now();
    leads.loaded("digits", 1).await;
    assert!(clock.now() - begun < secs(12), "as soon as the first one counts as gone: {:?}", clock.now() - begun);
    assert_eq!(second.runtime.loads().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn another_model_under_the_same_id_is_not_served_from_the_files_of_before() {
    let (leads, store, clock) = Leads::fresh().await;
    let rope = Rope::to(&leads.hub);
    let agent = Agent::start(1, rope.clone(), &clock, None);
    agent.knows("nobody", |resolved| matches!(resolved, Resolved::Unknown)).await;
    let called = |path: &str| {
        let storage = StorageRef { key: Some("k".into()), parameters: Arc::default(), path: path.into(), schema_path: None };
        let format = ModelFormat { name: "onnx".into(), version: None };
        Arc::new(Registration::new(ModelId::new("m").expect("valid"), format, Placement::Format { protocol: None }, storage, None))
    };
    leads.views.update(|view| view.with_managed([(ModelId::new("m").expect("valid"), Some(called("old")))], []));
    agent.ask("m").await.expect("it loads");
    rope.cut();
    clock.sleep(secs(30)).await;
    leads.views.update(|view| view.with_managed([(ModelId::new("m").expect("valid"), Some(called("new")))], []));
    rope.tie(&leads.hub);
    agent.knows("m", |resolved| matches!(resolved, Resolved::Model(model) if &*model.path == "new")).await;
    agent.holds(&[]).await;
    agent.ask("m").await.expect("it loads");
    assert_eq!((agent.runtime.loads().len(), store.list().is_empty()), (2, false));
}

#[tokio::test(start_paused = true)]
async fn an_agent_begins_with_its_last_view_and_follows_no_controller_of_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = Some(folder.path().join("view"));
    let (leads, store, clock) = Leads::fresh().await;
    apply(&store, "digits").await;
    let mut agent = Agent::start(1, Rope::to(&leads.hub), &clock, file.clone());
    agent.registration("digits").await;
    agent.leave().await;

    let nowhere = Rope::to(&leads.hub);
    nowhere.cut();
    let agent = Agent::start(1, nowhere.clone(), &clock, file.clone());
    assert!(agent.views.current().is_ready(), "it can serve");
    agent.ask("digits").await.expect("it serves without a controller");
    assert!(matches!(agent.views.current().resolve("nobody"), Resolved::NotReady));

    // The same resources, led by somebody of an earlier epoch.
    let old = Hub::open(Views::in_epoch(store.epoch() - 1), Settings::default(), clock.clone(), Metrics::default());
    let (controller, _leader) = Controller::new(berth_controller::Deps {
        store: store.clone(),
        views: Views::in_epoch(store.epoch() - 1),
        agents: Arc::new(old.clone()),
        clock: clock.clone(),
        metrics: Metrics::default(),
        config: berth_controller::Config::default(),
    });
    old.report_to(controller);
    nowhere.tie(&old);
    clock.sleep(secs(20)).await;
    assert_eq!((old.attending(), agent.views.current().number().0), (0, store.epoch()));
    nowhere.tie(&leads.hub);
    agent.knows("nobody", |resolved| matches!(resolved, Resolved::Unknown)).await;
}

/// Says nothing any more, and leaves open.
struct Mute(Hub);

impl fmt::Display for Mute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mute")
    }
}

#[async_trait]
impl Line for Mute {
    async fn open(&self, said: mpsc::Receiver<FromAgent>) -> Result<BoxStream<'static, Result<FromController, Status>>, Status> {
        // The greeting, what to beware of and the view, then nothing.
        let told = self.0.open(said).await?.enumerate();
        Ok(told.filter_map(|(number, word)| std::future::ready((number < 3).then_some(word))).boxed())
    }
}

#[tokio::test(start_paused = true)]
async fn who_writes_waits_until_agents_know_it_and_not_for_one_that_is_late() {
    let (leads, store, clock) = Leads::fresh().await;
    let quick = Agent::start(1, Rope::to(&leads.hub), &clock, None);
    apply(&store, "first").await;
    quick.registration("first").await;
    let began = clock.now();
    for number in 0..20 {
        apply(&store, &format!("model-{number}")).await;
        leads.views.covered(store.version()).await;
        assert!(matches!(quick.views.current().resolve(&format!("model-{number}")), Resolved::Model(_)), "it can be used at once");
    }
    assert!(clock.now() - began < secs(1));

    let slow = Agent::start(2, Arc::new(Mute(leads.hub.clone())), &clock, None);
    slow.registration("first").await;
    let began = clock.now();
    apply(&store, "late").await;
    leads.views.covered(store.version()).await;
    let waited = clock.now() - began;
    assert!((secs(2)..secs(3)).contains(&waited), "once: {waited:?}");
    let began = clock.now();
    apply(&store, "later").await;
    leads.views.covered(store.version()).await;
    assert!(clock.now() - began < secs(1), "and not again");
    // It notices that it hears nothing, and begins anew.
    let mute = clock.now();
    while leads.hub.attending() == 2 {
        clock.sleep(Duration::from_millis(100)).await;
    }
    assert!(clock.now() - mute < secs(16), "{:?}", clock.now() - mute);
    leads.hub.have(leads.views.current().number()).await;
}

#[tokio::test(start_paused = true)]
async fn a_model_that_ends_servers_ends_two_of_three_at_most_and_fifty_others_serve_on() {
    let (leads, store, clock) = Leads::fresh().await;
    // What its id will be.
    apply(&store, "killer").await;
    let killer = {
        let mut numbers = leads.views.numbers();
        loop {
            numbers.mark_unchanged();
            if let Some(active) = leads.views.current().name("killer").and_then(|entry| entry.active.clone()) {
                break active;
            }
            numbers.changed().await.expect("the views live");
        }
    };
    store.delete(&key("killer")).await.expect("it is there");
    let agents: Vec<Agent> = (0..3).map(|number| Agent::start(number, Rope::to(&leads.hub), &clock, None)).collect();
    for agent in &agents {
        agent.runtime.script(killer.id.as_str(), Script::default().loading_for(Duration::from_millis(50)).ending_the_runtime(secs(1)));
    }
    let names: Vec<String> = (0..50).map(|number| format!("good-{number}")).collect();
    for name in &names {
        apply(&store, name).await;
        leads.loaded(name, 1).await;
    }
    for agent in &agents {
        for name in &names {
            agent.ask(name).await.expect("it loads");
        }
    }
    apply(&store, "killer").await;
    let deaths = || agents.iter().map(|agent| agent.runtime.deaths()).sum::<u32>();
    leads.status_is("killer", |status| status["activeModelState"] == "FailedToLoad").await;
    assert_eq!(deaths(), 2);
    for _ in 0..3 {
        for agent in &agents {
            let refused = agent.ask("killer").await.expect_err("nobody loads it");
            assert!(refused.contains("runtime"), "{refused}");
            for name in &names {
                agent.ask(name).await.expect("it serves on");
            }
        }
        clock.sleep(secs(60)).await;
    }
    assert_eq!(deaths(), 2, "{:?}", agents.iter().map(|agent| agent.runtime.deaths()).collect::<Vec<_>>());
    for name in &names {
        let status = leads.status(name);
        assert_eq!(status["activeModelState"], "Loaded", "{name}: {status}");
    }
}

#[tokio::test]
async fn over_a_real_socket_an_agent_attends_with_the_token_and_nobody_does_without() {
    let (leads, store, clock) = Leads::fresh().await;
    apply(&store, "digits").await;
    let listener = HostNet.listen(([127, 0, 0, 1], 0).into()).await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let admits: Admits = Arc::new(|given| given == Some(b"s3cret"));
    let (stop, listener) = (CancellationToken::new(), listener.into_tokio());
    let accept = futures::stream::poll_fn(move |cx| listener.poll_accept(cx).map(|accepted| Some(accepted.map(|(stream, _)| stream))));
    let port = tonic::transport::Server::builder().add_service(service(leads.hub.clone(), admits));
    let port = tokio::spawn(port.serve_with_incoming_shutdown(accept, stop.clone().cancelled_owned()));
    let peer = || Peer::Tcp { host: addr.ip().to_string(), port: addr.port() };
    let wire = |token: Option<&'static str>| {
        let shows = token.map(|token| Arc::new(move || token.to_owned()) as Shows);
        Wire::new(addr.to_string(), peer(), shows, HostNet::shared())
    };
    for (token, why) in [(None, "asks for a token"), (Some("wr0ng"), "is not the controller's"), (Some("two\nlines"), "that no header takes")] {
        let (_tell, said) = mpsc::channel(1);
        let refused = wire(token).open(said).await.err().expect("refused");
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains(why) && !refused.message().contains("s3cret"), "{refused:?}");
    }
    let mut agent = Agent::start(1, Arc::new(wire(Some("s3cret"))), &clock, None);
    agent.registration("digits").await;
    agent.ask("digits").await.expect("it loads");
    leads.loaded("digits", 1).await;
    agent.leave().await;
    let left = clock.now();
    leads.status_is("digits", |status| status["totalCopies"] == 0).await;
    assert!(clock.now() - left < secs(5), "its last word was heard: {:?}", clock.now() - left);
    stop.cancel();
    port.await.expect("no panic").expect("it ends");
}
