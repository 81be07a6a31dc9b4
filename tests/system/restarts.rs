//! Whatever a restart finds, it takes nothing back that users have read: statuses, failures, versions.
//!
//! Every process here is killed, none is asked to end, and what follows is read as a script would read it: through
//! `?watch=true` from the last version that was seen before.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_testkit::{Berth, Found, Gateway, Process, Relay, Serve, Standing, Transport, eventually, free_port, http};
use serde_json::{Value, json};

use crate::fixture::{Fixture, ROOMY, SOON};

/// The storage key of the S3 server behind the relay.
const STORE: &str = "far";

/// The kinds that ask for a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Service,
    Predictor,
}

impl Kind {
    const BOTH: [Kind; 2] = [Kind::Service, Kind::Predictor];

    const fn list(self) -> &'static str {
        match self {
            Kind::Service => "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices",
            Kind::Predictor => "/apis/serving.kserve.io/v1alpha1/namespaces/default/predictors",
        }
    }

    /// What the tests call the one of this kind.
    const fn name(self) -> &'static str {
        match self {
            Kind::Service => "by-service",
            Kind::Predictor => "by-predictor",
        }
    }

    /// A manifest for the model at `path` in the store.
    fn manifest(self, name: &str, path: &str) -> Value {
        let storage = json!({ "key": STORE, "path": path });
        match self {
            Kind::Service => json!({
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": { "name": name, "annotations": { "serving.kserve.io/deploymentMode": "ModelMesh" } },
                "spec": { "predictor": { "model": { "modelFormat": { "name": "onnx" }, "storage": storage } } },
            }),
            Kind::Predictor => json!({
                "apiVersion": "serving.kserve.io/v1alpha1",
                "kind": "Predictor",
                "metadata": { "name": name },
                "spec": { "modelType": { "name": "onnx" }, "storage": storage },
            }),
        }
    }

    /// A manifest whose spec contradicts itself or asks for what nobody does.
    fn invalid(self, name: &str) -> Value {
        let mut manifest = self.manifest(name, "iris");
        match self {
            Kind::Service => manifest["spec"]["predictor"]["model"]["storageUri"] = json!("s3://models/iris"),
            Kind::Predictor => manifest["spec"]["storage"]["persistentVolumeClaim"] = json!({ "claimName": "disk" }),
        }
        manifest
    }
}

/// `lastFailureInfo` of a resource of either kind, null where there is none.
fn failure(resource: &Value) -> &Value {
    match resource["kind"].as_str() {
        Some("Predictor") => &resource["status"]["lastFailureInfo"],
        _ => &resource["status"]["modelStatus"]["lastFailureInfo"],
    }
}

/// Folders, and a store that is reached through a relay.
struct World {
    fixture: Fixture,
    gateway: Gateway,
    relay: Relay,
    /// Where requests go to, before and after a restart: statuses tell it.
    inference: [(&'static str, String); 2],
}

impl World {
    /// With the files of `models`, of the examples, in the store.
    async fn with(models: &[&str]) -> Result<Self> {
        let fixture = Fixture::empty()?;
        let gateway = Gateway::start(&fixture.parts, Transport::Plain).await?;
        for model in models {
            gateway.put(&format!("{model}/model.onnx"), &fixture.quickstart.models().join(model).join("model.onnx")).await?;
        }
        let mut entry = gateway.storage_entry();
        let server = entry["endpoint_url"].as_str().and_then(|url| url.strip_prefix("http://")).context("a plain endpoint")?.parse()?;
        let relay = Relay::start(server).await?;
        // What is signed is the name of the relay.
        entry["endpoint_url"] = json!(format!("http://{}", relay.address()));
        fixture.storage(STORE, &entry)?;
        let inference = ["--grpc", "--rest"].map(|port| (port, format!("127.0.0.1:{}", free_port())));
        Ok(World { fixture, gateway, relay, inference })
    }

    fn serve(&self, memory: &str) -> Serve {
        self.inference.iter().fold(self.fixture.serve(memory), |serve, (port, address)| serve.flag(port, address))
    }

    /// Writes a file of manifests.
    fn write(&self, file: &str, manifests: &[Value]) -> Result<()> {
        let documents: Vec<String> = manifests.iter().map(Value::to_string).collect();
        self.fixture.manifest(&format!("{file}.yaml"), &documents.join("\n---\n"))
    }

    /// One resource of each kind for the model at `path`.
    fn write_both(&self, path: &str) -> Result<()> {
        Kind::BOTH.iter().try_for_each(|kind| self.write(kind.name(), &[kind.manifest(kind.name(), path)]))
    }

    /// Forgets everything that was fetched: from now on a load needs the store.
    fn delete_fetched(&self) -> Result<()> {
        Ok(fs::remove_dir_all(self.fixture.data().join("models"))?)
    }

    /// Asks `name` what `model` was recorded to be asked, checks the answer, and returns the version that gave it.
    fn ask(&self, berth: &Berth, name: &str, model: &str) -> impl Future<Output = Result<String>> + Send + use<> {
        let (url, quickstart) = (format!("http://{}/v2/models/{name}/infer", berth.rest()), self.fixture.quickstart.clone());
        let (name, model) = (name.to_owned(), model.to_owned());
        async move {
            let answer = http::post(&url, quickstart.request(&model)?).await?.good().context(name)?;
            quickstart.check(&model, &answer)?;
            Ok(answer["model_name"].as_str().context("an answer names the version")?.to_owned())
        }
    }

    /// Starts it over what a killed process left, and watches from what was read last.
    async fn restart(&self, memory: &str, since: u64) -> Result<(Berth, Watches)> {
        let berth = self.serve(memory).spawn()?;
        Picture::when(&berth, "the resource API", SOON, |_any| true).await?;
        let watches = Watches::start(&berth, since)?;
        Ok((berth, watches))
    }
}

/// Every resource at one moment, by name.
struct Picture {
    version: u64,
    resources: BTreeMap<String, Value>,
}

impl Picture {
    async fn of(berth: &Berth) -> Result<Self> {
        Picture::when(berth, "a moment at which nothing changes", SOON, |_any| true).await
    }

    /// `None` when something changed between the two lists: half of the picture would be older than its version.
    async fn look(berth: &Berth) -> Result<Option<Self>> {
        let mut resources = BTreeMap::new();
        let mut versions = Vec::new();
        for kind in Kind::BOTH {
            let mut list = http::get(&berth.api(kind.list())).await?.good()?;
            versions.push(version(&list)?);
            let type_of = list["kind"].as_str().and_then(|kind| kind.strip_suffix("List")).context("a list has a kind")?.to_owned();
            let items = list["items"].as_array_mut().context("a list has items")?;
            for mut item in std::mem::take(items) {
                item["kind"] = json!(type_of);
                resources.insert(item["metadata"]["name"].as_str().context("a resource has a name")?.to_owned(), item);
            }
        }
        let same = versions.windows(2).all(|two| two[0] == two[1]);
        Ok(versions.pop().filter(|_| same).map(|version| Picture { version, resources }))
    }

    fn get(&self, name: &str) -> Result<&Value> {
        self.resources.get(name).with_context(|| format!("{name} is not there"))
    }

    /// How many resources are in each state.
    fn states(&self) -> Result<States> {
        let mut states = States::default();
        for resource in self.resources.values() {
            *states.0.entry(Standing::of(resource)?.active).or_default() += 1;
        }
        Ok(states)
    }

    /// Waits until `wanted` holds of how many resources are in each state.
    async fn when(berth: &Berth, what: &str, within: Duration, wanted: impl Fn(&States) -> bool) -> Result<Self> {
        eventually(what, within, || async {
            Ok(match Picture::look(berth).await {
                Ok(Some(picture)) => {
                    let states = picture.states()?;
                    if wanted(&states) { Found::Yes(picture) } else { Found::NotYet(format!("{states:?}")) }
                }
                Ok(None) => Found::NotYet("changes".to_owned()),
                // Nobody answers before it has started.
                Err(fault) => Found::NotYet(format!("{fault:#}")),
            })
        })
        .await
    }
}

/// How many resources are in each state of their active version.
#[derive(Debug, Default)]
struct States(BTreeMap<String, usize>);

impl States {
    fn of(&self, state: &str) -> usize {
        self.0.get(state).copied().unwrap_or(0)
    }
}

/// Everything that happens to either kind, as `curl` reads it.
struct Watches {
    since: u64,
    processes: [Process; 2],
}

impl Watches {
    fn start(berth: &Berth, since: u64) -> Result<Self> {
        let [services, predictors] = Kind::BOTH.map(|kind| {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--no-buffer"]);
            curl.arg(berth.api(&format!("{}?watch=true&resourceVersion={since}", kind.list())));
            Process::start(format!("a watch of {kind:?}"), curl)
        });
        Ok(Watches { since, processes: [services?, predictors?] })
    }

    /// What was seen so far: those of one kind in order, then those of the other.
    fn seen(&self) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for watch in &self.processes {
            for line in watch.out().lines() {
                let mut event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
                ensure!(event["type"] != "ERROR", "the watch was refused: {}", event["object"]);
                objects.push(event["object"].take());
            }
        }
        Ok(objects)
    }

    /// Waits until everything has been seen that led to `last`.
    async fn up_to(&self, last: &Picture) -> Result<Vec<Value>> {
        eventually("the watches to tell everything", SOON, || async {
            let seen = self.seen()?;
            let mut newest = BTreeMap::new();
            for object in &seen {
                newest.insert(object["metadata"]["name"].as_str().context("a resource has a name")?, version(object)?);
            }
            for (name, resource) in &last.resources {
                let (told, written) = (newest.get(name.as_str()).copied().unwrap_or(self.since), version(resource)?);
                if told < written {
                    return Ok(Found::NotYet(format!("{name} at {told}, not at {written}")));
                }
            }
            Ok(Found::Yes(seen))
        })
        .await
    }
}

fn version(resource: &Value) -> Result<u64> {
    let text = resource["metadata"]["resourceVersion"].as_str().with_context(|| format!("no version in {resource}"))?;
    Ok(text.parse()?)
}

/// Whose resource this is and what it asks for: what no restart changes.
fn identity(resource: &Value) -> [&Value; 3] {
    ["uid", "generation", "creationTimestamp"].map(|field| &resource["metadata"][field])
}

/// Waits until memory is full, every status says what is in it, and `wanted` holds of their states.
async fn at_rest(berth: &Berth, wanted: impl Fn(&States) -> bool) -> Result<Picture> {
    eventually("everything to be at rest", Duration::from_secs(120), || async {
        // There is no such page before it has started.
        let metric = async |name: &str| berth.metric(name).await.unwrap_or(-1.0);
        let (loaded, leased) = (metric("berth_models{state=\"Loaded\"}").await, metric("berth_memory_leased_bytes").await);
        let moving = metric("berth_models{state=\"Loading\"}").await + metric("berth_models{state=\"Unloading\"}").await;
        let picture = Picture::look(berth).await.ok().flatten();
        let states = picture.as_ref().map(Picture::states).transpose()?.unwrap_or_default();
        let full = leased > 0.9 * f64::from(ROOM) && moving == 0.0;
        Ok(match picture {
            Some(picture) if full && loaded == states.of("Loaded") as f64 && wanted(&states) => Found::Yes(picture),
            _ => Found::NotYet(format!("{states:?}, {loaded} in memory take {leased} bytes, {moving} are on their way")),
        })
    })
    .await
}

const MODELS: usize = 1_000;
/// Memory, in bytes: for a third of them, about.
const ROOM: u32 = 8 << 20;
/// One of this many resources cannot be loaded.
const ONE_FAILS_OF: usize = 20;
/// The models that the others ask for.
const TINY: [&str; 3] = ["iris", "diabetes", "breast-cancer"];

fn name_of(number: usize) -> String {
    format!("model-{number:04}")
}

fn fails(number: usize) -> bool {
    number % ONE_FAILS_OF == 7
}

/// Each kind asks for each of the models.
fn kind_of(number: usize) -> Kind {
    if (number / TINY.len()).is_multiple_of(2) { Kind::Service } else { Kind::Predictor }
}

fn path_of(number: usize) -> &'static str {
    match (fails(number), (number / ONE_FAILS_OF).is_multiple_of(2)) {
        (true, true) => "nowhere",
        (true, false) => "not-a-model",
        (false, _) => TINY[number % TINY.len()],
    }
}

/// What may follow what of a model that had been loaded once, when memory is empty after a crash.
fn is_a_step(before: &str, after: &str) -> bool {
    before == after || matches!((before, after), ("Loaded", "Standby") | ("Standby", "Loading") | ("Loading", "Loaded"))
}

#[tokio::test]
async fn nothing_that_a_thousand_resources_said_is_taken_back_by_a_crash_and_slow_loading() -> Result<()> {
    let world = World::with(&TINY).await?;
    let garbage = world.fixture.path("garbage");
    fs::write(&garbage, "this is not a model")?;
    world.gateway.put("not-a-model/model.onnx", &garbage).await?;
    let all: Vec<Value> = (0..MODELS).map(|number| kind_of(number).manifest(&name_of(number), path_of(number))).collect();
    for (number, some) in all.chunks(100).enumerate() {
        world.write(&format!("models-{number}"), some)?;
    }

    // Each is loaded once; what then finds no place beside the others is on standby.
    let memory = ROOM.to_string();
    let mut berth = world.serve(&memory).spawn()?;
    let before = at_rest(&berth, |states| states.of("Loaded") + states.of("Standby") + states.of("FailedToLoad") == MODELS).await?;
    let states = before.states()?;
    let as_planned = states.of("FailedToLoad") == MODELS / ONE_FAILS_OF && states.of("Loaded") > 200 && states.of("Standby") > 500;
    ensure!(as_planned, "{states:?}");
    for number in 0..MODELS {
        let name = name_of(number);
        let standing = Standing::of(before.get(&name)?)?;
        let well = if fails(number) {
            standing.active == "FailedToLoad" && !standing.available && standing.reason == "ModelLoadFailed"
        } else {
            standing.active != "FailedToLoad" && standing.available && standing.reason.is_empty()
        };
        ensure!(well && standing.transition == "UpToDate", "{name}: {standing:?}");
    }

    berth.process().kill().await?;
    drop(berth);
    world.delete_fetched()?;
    world.relay.hold();
    let (berth, watches) = world.restart(&memory, before.version).await?;

    // Memory is empty and nothing can be fetched: when nobody is called Loaded any more, the leader has caught up.
    let caught_up = Picture::when(&berth, "the leader to catch up", SOON, |states| states.of("Loaded") == 0).await?;
    ensure!(http::get(&berth.probes("/ready")).await?.status == 200, "it is not ready though it knows everything");
    world.relay.until("a load that waits for the store", SOON, |traffic| traffic.held > 0).await?;
    for (name, resource) in &caught_up.resources {
        let was = before.get(name)?;
        let (stood, stands) = (Standing::of(was)?, Standing::of(resource)?);
        let as_before = stood.active == "FailedToLoad" && resource["status"] == was["status"];
        let out_of_memory = is_a_step(&stood.active, "Standby") && ["Standby", "Loading"].contains(&stands.active.as_str());
        ensure!(as_before || out_of_memory, "{name} had said {}: {resource}", was["status"]);
    }

    // Requests wait as long as the store does.
    let wanted: Vec<usize> = (0..MODELS).rev().filter(|number| !fails(*number)).take(6).collect();
    let passed = world.relay.traffic().to_clients;
    let asked: Vec<_> = wanted.iter().map(|number| tokio::spawn(world.ask(&berth, &name_of(*number), path_of(*number)))).collect();
    eventually("the models that were asked for to load", SOON, || async {
        let picture = Picture::of(&berth).await?;
        let standings = wanted.iter().map(|number| Standing::of(picture.get(&name_of(*number))?)).collect::<Result<Vec<_>>>()?;
        Ok(if standings.iter().all(|standing| standing.active == "Loading") { Found::Yes(()) } else { Found::NotYet(format!("{standings:?}")) })
    })
    .await?;
    ensure!(asked.iter().all(|asked| !asked.is_finished()), "a request was answered without its model");
    ensure!(world.relay.traffic().to_clients == passed, "something came through a relay that holds");
    world.relay.release();
    for asked in asked {
        asked.await??;
    }

    // All room is filled again, but for the tenth that stays free while nobody asks.
    let after = at_rest(&berth, |states| states.of("Loading") == 0).await?;
    let seen = watches.up_to(&after).await?;
    let fell = no_event_takes_anything_back(&before, &seen)?;
    assert_eq!(fell, states.of("Loaded"), "not every model that was in memory was said to have left it");
    for (name, resource) in &after.resources {
        let was = before.get(name)?;
        ensure!(identity(was) == identity(resource) && without_movement(was) == without_movement(resource), "{name} had said {was}: {resource}");
    }
    Ok(())
}

/// The status without what changes when a model leaves memory and comes back: its state and its loaded copies.
fn without_movement(resource: &Value) -> Value {
    let mut status = resource["status"].clone();
    let moving = match resource["kind"].as_str() {
        Some("Predictor") => ["/activeModelState", "/totalCopies"].as_slice(),
        _ => &["/modelStatus/states/activeModelState", "/modelStatus/copies/totalCopies", "/modelStatus/modelCopies/totalCopies"],
    };
    for field in moving {
        let (parent, name) = field.rsplit_once('/').unwrap_or_default();
        if let Some(fields) = status.pointer_mut(parent).and_then(Value::as_object_mut) {
            fields.remove(name);
        }
    }
    status
}

/// Checks each event, in order, against what was said before the crash. Answers how many of the resources were Loaded
/// then and stepped to Standby.
fn no_event_takes_anything_back(before: &Picture, seen: &[Value]) -> Result<usize> {
    let mut states: BTreeMap<&str, String> = BTreeMap::new();
    let mut fell = 0;
    for event in seen {
        let name = event["metadata"]["name"].as_str().context("a resource has a name")?;
        let was = before.get(name)?;
        ensure!(identity(was) == identity(event), "{name} is another one now: {event}");
        // Those that failed are tried again after ten minutes; until then nothing about them changes.
        ensure!(without_movement(was) == without_movement(event), "{name} had said {}: {event}", was["status"]);
        let now = Standing::of(event)?.active;
        let last = match states.insert(name, now.clone()) {
            Some(last) => last,
            None => {
                let last = Standing::of(was)?.active;
                fell += usize::from((last.as_str(), now.as_str()) == ("Loaded", "Standby"));
                last
            }
        };
        ensure!(is_a_step(&last, &now), "{name} was {last}: {event}");
    }
    Ok(fell)
}

/// Why an update does not take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    /// There is nothing at its path.
    CannotLoad,
    /// Its spec is not one.
    Invalid,
}

impl Bad {
    const fn transition(self) -> &'static str {
        match self {
            Bad::CannotLoad => "BlockedByFailedLoad",
            Bad::Invalid => "InvalidSpec",
        }
    }

    fn manifest(self, kind: Kind) -> Value {
        match self {
            Bad::CannotLoad => kind.manifest(kind.name(), "nowhere"),
            Bad::Invalid => kind.invalid(kind.name()),
        }
    }
}

/// Memory, and what a model is said to take for which everything else has to go: all of it.
const ALL: &str = "2MiB";

/// An update that does not take over, the old version pushed out of memory, a crash: the old version serves again, what
/// was said of the update stays said, and a repaired spec takes over as ever.
async fn the_old_version_outlives(bad: Bad, fetched_are_kept: bool) -> Result<()> {
    let world = World::with(&TINY).await?;
    world.write_both("iris")?;
    let mut berth = world.serve(ALL).start().await?;
    let mut old = Vec::new();
    for kind in Kind::BOTH {
        old.push(world.ask(&berth, kind.name(), "iris").await?);
    }
    for kind in Kind::BOTH {
        world.write(kind.name(), &[bad.manifest(kind)])?;
    }
    for kind in Kind::BOTH {
        berth.stands(kind.name(), SOON, |standing| standing.transition == bad.transition()).await?;
    }
    let mut large = Kind::Service.manifest("large", "diabetes");
    large["metadata"]["annotations"]["berth/model-size"] = json!(ALL);
    world.write("large", &[large])?;
    berth.stands("large", SOON, |standing| standing.active != "Pending").await?;
    world.ask(&berth, "large", "diabetes").await?;
    berth.stands("large", SOON, |standing| standing.active == "Loaded").await?;
    for kind in Kind::BOTH {
        let standing = berth.stands(kind.name(), SOON, |standing| standing.active == "Standby" && standing.copies == 0).await?;
        ensure!(standing.transition == bad.transition() && standing.available, "{standing:?}");
    }
    let before = Picture::when(&berth, "everything to be at rest", SOON, |states| states.of("Loading") == 0).await?;
    berth.process().kill().await?;
    drop(berth);
    if !fetched_are_kept {
        world.delete_fetched()?;
    }

    let (mut berth, watches) = world.restart(ALL, before.version).await?;
    berth.ready().await?;
    for (kind, old) in Kind::BOTH.iter().zip(&old) {
        assert_eq!(&world.ask(&berth, kind.name(), "iris").await?, old, "{kind:?} is served by another version");
        let standing = berth.stands(kind.name(), SOON, |standing| standing.active == "Loaded" && standing.copies == 1).await?;
        ensure!(standing.transition == bad.transition(), "{standing:?}");
    }
    let until_now = Picture::of(&berth).await?;
    let seen = watches.up_to(&until_now).await?;
    for now in seen.iter().chain(until_now.resources.values()) {
        let was = before.get(now["metadata"]["name"].as_str().context("a resource has a name")?)?;
        ensure!(identity(was) == identity(now), "it is another one now: {now}");
        ensure!(failure(was) == failure(now), "the failure was {}: {now}", failure(was));
        let (was, now) = (Standing::of(was)?, Standing::of(now)?);
        ensure!((&was.transition, &was.target) == (&now.transition, &now.target), "{was:?} became {now:?}");
        ensure!(now.available && now.active != "FailedToLoad" && now.active != "Pending", "{was:?} became {now:?}");
    }

    world.write_both("breast-cancer")?;
    for (kind, old) in Kind::BOTH.iter().zip(&old) {
        let standing = berth.stands(kind.name(), SOON, |standing| standing.transition == "UpToDate" && standing.active == "Loaded").await?;
        ensure!(standing.target.is_empty() && standing.reason.is_empty() && standing.copies == 1, "{standing:?}");
        assert_ne!(&world.ask(&berth, kind.name(), "breast-cancer").await?, old);
    }
    let seen = watches.up_to(&Picture::of(&berth).await?).await?;
    for kind in Kind::BOTH {
        let said = transitions(&seen, kind.name())?;
        assert_eq!(said, [bad.transition(), "InProgress", "UpToDate"], "{kind:?}");
    }
    Ok(())
}

/// What was said of the update of `name`, in order, each word once. It is available all the while.
fn transitions(seen: &[Value], name: &str) -> Result<Vec<String>> {
    let mut said = Vec::new();
    for event in seen.iter().filter(|event| event["metadata"]["name"] == name) {
        let standing = Standing::of(event)?;
        ensure!(standing.available, "{event}");
        said.push(standing.transition);
    }
    said.dedup();
    Ok(said)
}

#[tokio::test]
async fn a_blocked_update_stays_blocked_and_its_old_version_is_loaded_again_after_eviction_and_a_crash() -> Result<()> {
    the_old_version_outlives(Bad::CannotLoad, true).await
}

#[tokio::test]
async fn the_old_version_of_a_blocked_update_is_fetched_again_where_its_files_are_gone() -> Result<()> {
    the_old_version_outlives(Bad::CannotLoad, false).await
}

#[tokio::test]
async fn an_invalid_update_stays_invalid_and_its_old_version_is_loaded_again_after_eviction_and_a_crash() -> Result<()> {
    the_old_version_outlives(Bad::Invalid, true).await
}

#[tokio::test]
async fn the_old_version_of_an_invalid_update_is_fetched_again_where_its_files_are_gone() -> Result<()> {
    the_old_version_outlives(Bad::Invalid, false).await
}

#[tokio::test]
async fn an_update_that_a_crash_interrupts_goes_on_afterwards() -> Result<()> {
    let world = World::with(&TINY).await?;
    world.write_both("iris")?;
    let mut berth = world.serve(ROOMY).start().await?;
    let mut old = Vec::new();
    for kind in Kind::BOTH {
        old.push(world.ask(&berth, kind.name(), "iris").await?);
    }
    world.relay.hold();
    world.write_both("diabetes")?;
    let under_way = |standing: &Standing| standing.transition == "InProgress" && standing.target == "Loading" && standing.active == "Loaded";
    for kind in Kind::BOTH {
        berth.stands(kind.name(), SOON, under_way).await?;
    }
    world.relay.until("the new versions to be fetched", SOON, |traffic| traffic.held >= 2).await?;
    let before = Picture::of(&berth).await?;
    berth.process().kill().await?;
    drop(berth);

    // What is held is of the process that is gone; what comes now is of the next one.
    world.relay.cut();
    world.relay.until("the end of the old connections", SOON, |traffic| traffic.open == 0).await?;
    let (berth, watches) = world.restart(ROOMY, before.version).await?;
    world.relay.until("the new versions to be fetched again", SOON, |traffic| traffic.held >= 2).await?;
    for (kind, old) in Kind::BOTH.iter().zip(&old) {
        assert_eq!(&world.ask(&berth, kind.name(), "iris").await?, old, "{kind:?} is served by another version");
        berth.stands(kind.name(), SOON, under_way).await?;
    }
    let seen = watches.up_to(&Picture::of(&berth).await?).await?;
    for event in &seen {
        let standing = Standing::of(event)?;
        ensure!((standing.transition.as_str(), standing.target.as_str()) == ("InProgress", "Loading") && standing.reason.is_empty(), "{event}");
    }
    world.relay.release();
    for (kind, old) in Kind::BOTH.iter().zip(&old) {
        berth.stands(kind.name(), SOON, |standing| standing.transition == "UpToDate" && standing.active == "Loaded").await?;
        assert_ne!(&world.ask(&berth, kind.name(), "diabetes").await?, old);
    }
    let after = Picture::of(&berth).await?;
    let seen = watches.up_to(&after).await?;
    for kind in Kind::BOTH {
        assert_eq!(transitions(&seen, kind.name())?, ["InProgress", "UpToDate"], "{kind:?}");
        assert_eq!(identity(after.get(kind.name())?), identity(before.get(kind.name())?), "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_was_removed_while_it_was_down_is_gone_with_the_old_version_that_its_name_still_had() -> Result<()> {
    let world = World::with(&TINY).await?;
    world.write_both("iris")?;
    let mut berth = world.serve(ROOMY).start().await?;
    for kind in Kind::BOTH {
        world.ask(&berth, kind.name(), "iris").await?;
    }
    world.write_both("nowhere")?;
    for kind in Kind::BOTH {
        berth.stands(kind.name(), SOON, |standing| standing.transition == "BlockedByFailedLoad").await?;
    }
    let before = Picture::of(&berth).await?;
    berth.process().kill().await?;
    drop(berth);
    for kind in Kind::BOTH {
        fs::remove_file(world.fixture.manifests().join(format!("{}.yaml", kind.name())))?;
    }
    world.write("another", &[Kind::Service.manifest("another", "diabetes")])?;

    let mut berth = world.serve(ROOMY).spawn()?;
    berth.ready().await?;
    let after = Picture::of(&berth).await?;
    assert_eq!(after.resources.keys().collect::<Vec<_>>(), ["another"]);
    for kind in Kind::BOTH {
        let reply = berth.infer(kind.name(), world.fixture.quickstart.request("iris")?).await?;
        assert_eq!(reply.status, 404, "{kind:?}: {}", reply.text());
    }

    // Made again, it is a new one: nothing of the one before comes back.
    world.write_both("diabetes")?;
    for kind in Kind::BOTH {
        berth.stands(kind.name(), SOON, |standing| standing.active == "Loaded" && standing.transition == "UpToDate").await?;
        world.ask(&berth, kind.name(), "diabetes").await?;
        let resource = berth.resource(kind.name()).await?;
        assert_eq!(resource["metadata"]["generation"], 1, "{kind:?}");
        assert_ne!(resource["metadata"]["uid"], before.get(kind.name())?["metadata"]["uid"], "{kind:?}");
    }
    Ok(())
}

/// A bad update, a crash, and a good spec in its place before the restart: the old version serves until the new one can.
async fn mended_while_down(bad: Bad) -> Result<()> {
    let world = World::with(&TINY).await?;
    world.write_both("iris")?;
    let mut berth = world.serve(ROOMY).start().await?;
    let mut old = Vec::new();
    for kind in Kind::BOTH {
        old.push(world.ask(&berth, kind.name(), "iris").await?);
    }
    for kind in Kind::BOTH {
        world.write(kind.name(), &[bad.manifest(kind)])?;
    }
    for kind in Kind::BOTH {
        berth.stands(kind.name(), SOON, |standing| standing.transition == bad.transition()).await?;
    }
    let before = Picture::of(&berth).await?;
    berth.process().kill().await?;
    drop(berth);
    world.write_both("diabetes")?;
    world.relay.hold();

    let (berth, watches) = world.restart(ROOMY, before.version).await?;
    for (kind, old) in Kind::BOTH.iter().zip(&old) {
        let resource = berth.resource(kind.name()).await?;
        assert_eq!(resource["metadata"]["generation"], 3, "{kind:?}");
        assert_eq!(resource["metadata"]["uid"], before.get(kind.name())?["metadata"]["uid"], "{kind:?}");
        let standing = berth.stands(kind.name(), SOON, |standing| standing.transition == "InProgress").await?;
        ensure!(standing.target == "Loading" && standing.reason.is_empty() && standing.available, "{standing:?}");
        assert_eq!(&world.ask(&berth, kind.name(), "iris").await?, old, "{kind:?} is served by another version");
    }
    world.relay.release();
    for (kind, old) in Kind::BOTH.iter().zip(&old) {
        berth.stands(kind.name(), SOON, |standing| standing.transition == "UpToDate" && standing.active == "Loaded").await?;
        assert_ne!(&world.ask(&berth, kind.name(), "diabetes").await?, old);
    }
    let seen = watches.up_to(&Picture::of(&berth).await?).await?;
    for kind in Kind::BOTH {
        assert_eq!(transitions(&seen, kind.name())?, [bad.transition(), "InProgress", "UpToDate"], "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_was_edited_while_it_was_down_is_updated_from_the_version_that_its_name_had_kept() -> Result<()> {
    mended_while_down(Bad::CannotLoad).await
}

#[tokio::test]
async fn what_was_mended_while_it_was_down_is_updated_from_the_version_that_an_invalid_spec_had_left() -> Result<()> {
    mended_while_down(Bad::Invalid).await
}

/// No alias is kept while the active version is what the resource asks for, so nobody knows the old version any more once
/// the spec has changed: requests wait for the new one, which is loaded as that of a new resource is.
#[tokio::test]
async fn what_was_up_to_date_and_edited_while_it_was_down_loads_its_new_version_only() -> Result<()> {
    let world = World::with(&TINY).await?;
    world.write_both("iris")?;
    let mut berth = world.serve(ROOMY).start().await?;
    let mut old = Vec::new();
    for kind in Kind::BOTH {
        old.push(world.ask(&berth, kind.name(), "iris").await?);
    }
    let before = Picture::when(&berth, "everything to be loaded", SOON, |states| states.of("Loaded") == 2).await?;
    berth.process().kill().await?;
    drop(berth);
    world.write_both("diabetes")?;
    world.relay.hold();

    let (berth, watches) = world.restart(ROOMY, before.version).await?;
    let asked = Kind::BOTH.map(|kind| tokio::spawn(world.ask(&berth, kind.name(), "diabetes")));
    for kind in Kind::BOTH {
        let standing = berth.stands(kind.name(), SOON, |standing| standing.active == "Loading").await?;
        ensure!(standing.transition == "UpToDate" && standing.target.is_empty() && standing.available, "{standing:?}");
    }
    ensure!(asked.iter().all(|asked| !asked.is_finished()), "a request was answered without its model");
    world.relay.release();
    for (asked, old) in asked.into_iter().zip(&old) {
        assert_ne!(&asked.await??, old);
    }
    for kind in Kind::BOTH {
        berth.stands(kind.name(), SOON, |standing| standing.active == "Loaded").await?;
    }
    let after = Picture::of(&berth).await?;
    let seen = watches.up_to(&after).await?;
    for (kind, old) in Kind::BOTH.iter().zip(&old) {
        let resource = after.get(kind.name())?;
        assert_eq!(resource["metadata"]["generation"], 2, "{kind:?}");
        assert_eq!(resource["metadata"]["uid"], before.get(kind.name())?["metadata"]["uid"], "{kind:?}");
        assert_eq!(transitions(&seen, kind.name())?, ["UpToDate"], "{kind:?}");
        // The old version is unknown, not a second way in.
        let by_id = berth.infer(old, world.fixture.quickstart.request("iris")?).await?;
        assert_eq!(by_id.status, 404, "{kind:?}: {}", by_id.text());
    }
    Ok(())
}
