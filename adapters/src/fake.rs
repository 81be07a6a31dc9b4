//! A runtime in memory that does what a script says: the stand-in for a real server in tests.
//!
//! It passes the same conformance suite as the real ones. Beyond that it is slow, fails, hangs, confirms late and loses
//! its index on demand, and it remembers what it was told, so that a test can say what must (not) have happened. All
//! its waiting goes through the [`Clock`], so paused time governs it.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_proto::inference::model_infer_response::InferOutputTensor;
use berth_proto::inference::model_metadata_response::TensorMetadata;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_telemetry::Clock;
use berth_telemetry::halt::{self, Point};
use berth_types::{ByteSize, Deadline, Footprint, ModelId, Pool, Registration};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::changes::Changes;
use crate::tensor;
use crate::{
    Artifacts, Health, Index, IndexEntry, Infer, InferError, LaidOut, LoadError, LoadFault, Loaded, ParkError, Runtime, RuntimeDown, RuntimeInfo,
    Seat, UnloadError,
};

/// When an unload that was taken is confirmed by the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirm {
    /// Before [`Runtime::unload`] returns.
    AtOnce,
    /// This long after it returned, as Triton does; the index says "unloading" until then.
    After(Duration),
    /// When the test calls [`FakeRuntime::confirm_unload`].
    WhenReleased,
}

/// How one model behaves. The default loads at once, takes as many bytes as its files have and unloads at once.
#[derive(Clone, Debug)]
pub struct Script {
    load_takes: Duration,
    hangs: bool,
    measured: Option<Option<Footprint>>,
    /// What it takes where it does not say so.
    takes: Option<Footprint>,
    seat: Seat,
    measured_after: Option<Duration>,
    load_failures: Vec<LoadFault>,
    max_concurrency: Option<NonZeroU32>,
    unload_refusals: u32,
    confirm: Confirm,
    infer_takes: Duration,
    infer_failures: Vec<InferError>,
    ends_the_runtime: Option<Duration>,
    layout_fault: Option<LoadFault>,
    parks: Option<Parks>,
}

/// How a copy is parked.
#[derive(Clone, Debug)]
struct Parks {
    /// Each way.
    takes: Duration,
    /// What it takes while it is parked.
    footprint: Footprint,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            load_takes: Duration::ZERO,
            hangs: false,
            measured: None,
            takes: None,
            seat: Seat::Given,
            measured_after: None,
            load_failures: Vec::new(),
            max_concurrency: None,
            unload_refusals: 0,
            confirm: Confirm::AtOnce,
            infer_takes: Duration::ZERO,
            infer_failures: Vec::new(),
            ends_the_runtime: None,
            layout_fault: None,
            parks: None,
        }
    }
}

impl Script {
    /// Each load takes this long (a failing one too).
    #[must_use]
    pub fn loading_for(mut self, takes: Duration) -> Self {
        self.load_takes = takes;
        self
    }

    /// Each load ends the runtime, which is back after `away`; for a runtime [beside](FakeRuntime::beside) this process.
    #[must_use]
    pub fn ending_the_runtime(mut self, away: Duration) -> Self {
        self.ends_the_runtime = Some(away);
        self
    }

    /// It cannot be laid out.
    #[must_use]
    pub fn failing_to_lay_out(mut self, fault: LoadFault) -> Self {
        self.layout_fault = Some(fault);
        self
    }

    /// Loads do not end until [`FakeRuntime::release_load`].
    #[must_use]
    pub fn hanging(mut self) -> Self {
        self.hangs = true;
        self
    }

    /// A copy takes these bytes of host memory, whatever its files have.
    #[must_use]
    pub fn measuring(self, bytes: ByteSize) -> Self {
        self.measuring_all(Footprint::host(bytes))
    }

    /// Loads measure this much of each pool.
    #[must_use]
    pub fn measuring_all(mut self, footprint: Footprint) -> Self {
        self.measured = Some(Some(footprint));
        self
    }

    /// The runtime cannot measure the copy. It is held to take the size of its files.
    #[must_use]
    pub fn unmeasured(mut self) -> Self {
        self.measured = Some(None);
        self
    }

    /// A copy takes these bytes of host memory, and the runtime cannot measure it.
    #[must_use]
    pub fn taking(mut self, bytes: ByteSize) -> Self {
        self.takes = Some(Footprint::host(bytes));
        self.unmeasured()
    }

    /// A copy goes on a GPU that is chosen for it and takes these bytes there, and the runtime cannot measure it.
    #[must_use]
    pub fn taking_of_a_gpu(mut self, bytes: ByteSize) -> Self {
        self.takes = Some(Footprint::of([(Pool::Gpu(0), bytes)]));
        self.seat = Seat::OneGpu;
        self.unmeasured()
    }

    /// What a copy takes is told this long after somebody asks for it, and not by its load.
    #[must_use]
    pub fn measured_after(mut self, takes: Duration) -> Self {
        self.measured_after = Some(takes);
        self
    }

    /// The next `times` loads fail. After [`LoadFault::TimedOut`] the server goes on and ends ready, `loading_for`
    /// later; after every other fault it holds nothing. A bad model counts as "nothing attempted".
    #[must_use]
    pub fn failing(mut self, times: usize, fault: LoadFault) -> Self {
        self.load_failures.extend(std::iter::repeat_n(fault, times));
        self
    }

    /// The runtime parks it, which takes this long each way; parked, it takes this much.
    #[must_use]
    pub fn parking(mut self, takes: Duration, footprint: Footprint) -> Self {
        self.parks = Some(Parks { takes, footprint });
        self
    }

    /// A copy serves this many requests at a time.
    #[must_use]
    pub fn serving_at_most(mut self, requests: NonZeroU32) -> Self {
        self.max_concurrency = Some(requests);
        self
    }

    /// The next `times` unloads are refused; the model stays ready.
    #[must_use]
    pub fn refusing_unloads(mut self, times: u32) -> Self {
        self.unload_refusals = times;
        self
    }

    /// When unloads are confirmed.
    #[must_use]
    pub fn confirming(mut self, confirm: Confirm) -> Self {
        self.confirm = confirm;
        self
    }

    /// Each inference takes this long.
    #[must_use]
    pub fn inferring_for(mut self, takes: Duration) -> Self {
        self.infer_takes = takes;
        self
    }

    /// The next inference fails so. May be given several times.
    #[must_use]
    pub fn failing_inference(mut self, error: InferError) -> Self {
        self.infer_failures.push(error);
        self
    }
}

type Outcome = Option<Result<Loaded, LoadError>>;

/// One model that the fake holds.
struct Held {
    at: IndexEntry,
    /// Tells this copy from an earlier one of the same model, for timers that come late.
    copy: u64,
    takes: Footprint,
    /// What it takes when it serves, while it is parked.
    awake: Option<Footprint>,
    outcome: watch::Sender<Outcome>,
    released: Arc<Notify>,
    in_flight: usize,
}

impl Held {
    /// Serves again if it was parked.
    fn wake(&mut self) {
        if let Some(awake) = self.awake.take() {
            (self.at, self.takes) = (IndexEntry::Ready, awake);
        }
    }
}

#[derive(Default)]
struct State {
    default: Script,
    scripts: HashMap<String, Script>,
    held: BTreeMap<ModelId, Held>,
    laid_out: BTreeMap<ModelId, ByteSize>,
    /// Where each model was told to go last.
    gpus: BTreeMap<ModelId, u16>,
    copies: u64,
    peak_loading: usize,
    peak_held: Footprint,
    loads: Vec<String>,
    unloads: Vec<String>,
    inferences: Vec<String>,
    unloaded_in_use: Vec<String>,
    violations: Vec<String>,
    index_outage: bool,
    deaths: u32,
    unloads_within: Option<Duration>,
}

impl State {
    fn script(&mut self, model: &ModelId) -> &mut Script {
        let State { scripts, default, .. } = self;
        scripts.entry(model.as_str().to_owned()).or_insert_with(|| default.clone())
    }

    fn note_peaks(&mut self) {
        let loading = self.held.values().filter(|held| held.at == IndexEntry::Loading).count();
        self.peak_loading = self.peak_loading.max(loading);
        let sum = self.held.values().fold(Footprint::default(), |sum, held| sum.plus(&held.takes));
        self.peak_held = self.peak_held.max(&sum);
    }
}

struct Shared {
    info: RuntimeInfo,
    clock: Clock,
    state: Mutex<State>,
    changes: Changes,
    /// Whether it is there; `None` for one that lives and dies with this process.
    health: Option<watch::Sender<Health>>,
}

/// The scripted runtime. Clones are handles to one runtime, so a test keeps one and hands the other away.
#[derive(Clone)]
pub struct FakeRuntime(Arc<Shared>);

impl FakeRuntime {
    /// A runtime named `fake` for the format `onnx` in which every model follows `Script::default()`: four loads at a
    /// time, a minute for each.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let info = RuntimeInfo {
            name: "fake".into(),
            version: "1".into(),
            capacity: None,
            load_concurrency: NonZeroU32::MIN.saturating_add(3),
            load_timeout: Duration::from_secs(60),
            reads_files_while_loaded: true,
        };
        Self::with_info(clock, info)
    }

    /// A runtime that describes itself so.
    #[must_use]
    pub fn with_info(clock: Clock, info: RuntimeInfo) -> Self {
        FakeRuntime(Arc::new(Shared { info, clock, state: Mutex::default(), changes: Changes::new(), health: None }))
    }

    /// The same as a server of its own, which can go [away](Self::leave) and come [back](Self::come_back).
    #[must_use]
    pub fn beside(clock: Clock, info: RuntimeInfo) -> Self {
        let health = Some(watch::Sender::new(Health::Up));
        FakeRuntime(Arc::new(Shared { info, clock, state: Mutex::default(), changes: Changes::new(), health }))
    }

    /// A runtime whose models all follow `script` until told otherwise.
    #[must_use]
    pub fn following(clock: Clock, script: Script) -> Self {
        let fake = Self::new(clock);
        fake.script_all(script);
        fake
    }

    /// How `model` behaves from now on.
    pub fn script(&self, model: impl AsRef<str>, script: Script) {
        self.0.state.lock().scripts.insert(model.as_ref().to_owned(), script);
    }

    /// How every model behaves from now on; earlier scripts are forgotten.
    pub fn script_all(&self, script: Script) {
        let mut state = self.0.state.lock();
        state.scripts.clear();
        state.default = script;
    }

    /// Every load that it was told, in order.
    #[must_use]
    pub fn loads(&self) -> Vec<String> {
        self.0.state.lock().loads.clone()
    }

    /// Every unload that it was told (refused ones too), in order.
    #[must_use]
    pub fn unloads(&self) -> Vec<String> {
        self.0.state.lock().unloads.clone()
    }

    /// Every inference that reached a loaded model, in order of arrival.
    #[must_use]
    pub fn inferences(&self) -> Vec<String> {
        self.0.state.lock().inferences.clone()
    }

    /// The models that were told to unload while inferences ran on them.
    #[must_use]
    pub fn unloaded_in_use(&self) -> Vec<String> {
        self.0.state.lock().unloaded_in_use.clone()
    }

    /// What callers did against the trait's contract (a load without a layout, a layout removed under a held model).
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.0.state.lock().violations.clone()
    }

    /// The most loads that ran at one time.
    #[must_use]
    pub fn peak_concurrent_loads(&self) -> usize {
        self.0.state.lock().peak_loading
    }

    /// The most memory that was held at one time, counted from the start of a load to the confirmation of its unload.
    #[must_use]
    pub fn peak_held(&self) -> Footprint {
        self.0.state.lock().peak_held.clone()
    }

    /// What all that it holds takes now.
    #[must_use]
    pub fn takes(&self) -> Footprint {
        self.0.state.lock().held.values().fold(Footprint::default(), |sum, held| sum.plus(&held.takes))
    }

    /// The GPU that each model was last told to go on, by name.
    #[must_use]
    pub fn gpus(&self) -> Vec<(String, u16)> {
        self.0.state.lock().gpus.iter().map(|(model, gpu)| (model.as_str().to_owned(), *gpu)).collect()
    }

    /// What it holds now, also while its index is out.
    #[must_use]
    pub fn held(&self) -> Vec<(String, IndexEntry)> {
        self.0.state.lock().held.iter().map(|(model, held)| (model.as_str().to_owned(), held.at)).collect()
    }

    /// The models whose layout is in place.
    #[must_use]
    pub fn laid_out(&self) -> Vec<String> {
        self.0.state.lock().laid_out.keys().map(|model| model.as_str().to_owned()).collect()
    }

    /// Lets a hanging load go on.
    pub fn release_load(&self, model: impl AsRef<str>) {
        if let Some(held) = self.0.state.lock().held.get(model.as_ref()) {
            held.released.notify_one();
        }
    }

    /// Confirms an unload that waits for it. False when no such unload waits.
    pub fn confirm_unload(&self, model: impl AsRef<str>) -> bool {
        let gone = {
            let mut state = self.0.state.lock();
            let unloading = state.held.get(model.as_ref()).is_some_and(|held| held.at == IndexEntry::Unloading);
            unloading && state.held.remove(model.as_ref()).is_some()
        };
        if gone {
            self.0.changes.announce();
        }
        gone
    }

    /// While `out`, the index cannot be asked.
    pub fn set_index_outage(&self, out: bool) {
        self.0.state.lock().index_outage = out;
        self.0.changes.announce();
    }

    /// It says that unloads may take this long.
    pub fn says_that_unloads_take(&self, within: Duration) {
        self.0.state.lock().unloads_within = Some(within);
    }

    /// How often it has gone away.
    #[must_use]
    pub fn deaths(&self) -> u32 {
        self.0.state.lock().deaths
    }

    /// The server process dies, and there is none until [`Self::come_back`].
    pub fn leave(&self) {
        self.0.leave();
    }

    /// There is a server process again; it holds nothing.
    pub fn come_back(&self) {
        self.0.come_back();
    }

    /// The server process dies and its successor holds nothing; loads in progress fail.
    pub fn crash(&self) {
        self.0.lose_all();
    }
}

impl Shared {
    fn is_away(&self) -> bool {
        self.health.as_ref().is_some_and(|health| *health.borrow() != Health::Up)
    }

    fn leave(&self) {
        {
            let mut state = self.state.lock();
            state.index_outage = true;
            state.deaths += 1;
        }
        self.lose_all();
        if let Some(health) = &self.health {
            health.send_replace(Health::Down { why: "the scripted server is away".into() });
        }
    }

    fn come_back(&self) {
        self.state.lock().index_outage = false;
        if let Some(health) = &self.health {
            health.send_replace(Health::Up);
        }
        self.changes.announce();
    }

    fn lose_all(&self) {
        let held = std::mem::take(&mut self.state.lock().held);
        for (model, held) in held {
            held.outcome.send_replace(Some(Err(LoadError {
                fault: LoadFault::RuntimeDown,
                message: format!("the runtime died while loading {model}"),
                nothing_attempted: false,
            })));
        }
        self.changes.announce();
    }

    /// The load of copy `copy` has taken its time. `tolerant`: it failed before by timing out, now it succeeds.
    fn finish_load(self: &Arc<Self>, model: &ModelId, copy: u64, tolerant: bool) {
        {
            let mut state = self.state.lock();
            if state.held.get(model).is_none_or(|held| held.copy != copy || held.at != IndexEntry::Loading) {
                return;
            }
            let script = state.script(model);
            if let Some(away) = script.ends_the_runtime {
                drop(state);
                self.leave();
                let shared = Arc::clone(self);
                tokio::spawn(async move {
                    shared.clock.sleep(away).await;
                    shared.come_back();
                });
                return;
            }
            let fault = (!tolerant && !script.load_failures.is_empty()).then(|| script.load_failures.remove(0));
            let script = script.clone();
            let Some(held) = state.held.get_mut(model) else { return };
            let Some(fault) = fault else {
                held.at = IndexEntry::Ready;
                let measured = script.measured.unwrap_or_else(|| Some(held.takes.clone())).filter(|_| script.measured_after.is_none());
                held.outcome.send_replace(Some(Ok(Loaded { measured, max_concurrency: script.max_concurrency })));
                drop(state);
                return self.changes.announce();
            };
            let message = format!("{model}: scripted failure {fault:?}");
            held.outcome.send_replace(Some(Err(LoadError { fault, message, nothing_attempted: fault == LoadFault::BadModel })));
            if fault == LoadFault::TimedOut {
                self.spawn_load(model.clone(), copy, script.load_takes, None, true);
            } else {
                state.held.remove(model);
            }
        }
        self.changes.announce();
    }

    fn spawn_load(self: &Arc<Self>, model: ModelId, copy: u64, takes: Duration, hangs: Option<Arc<Notify>>, tolerant: bool) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            // A timer takes a millisecond, also for nothing.
            if !takes.is_zero() {
                shared.clock.sleep(takes).await;
            }
            if let Some(released) = hangs {
                released.notified().await;
            }
            shared.finish_load(&model, copy, tolerant);
        });
    }

    /// Ends copy `copy`, whose unload takes `after`.
    fn spawn_unload(self: &Arc<Self>, model: ModelId, copy: u64, after: Duration) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            shared.clock.sleep(after).await;
            {
                let mut state = shared.state.lock();
                if state.held.get(&model).is_none_or(|held| held.copy != copy) {
                    return;
                }
                state.held.remove(&model);
            }
            shared.changes.announce();
        });
    }

    /// Begins a load, joins one, or says that the model is there. `Err(())`: an older copy is still being unloaded.
    fn begin_load(self: &Arc<Self>, model: &ModelId) -> Result<watch::Receiver<Outcome>, ()> {
        let mut state = self.state.lock();
        if let Some(held) = state.held.get_mut(model) {
            held.wake();
            return if held.at == IndexEntry::Unloading { Err(()) } else { Ok(held.outcome.subscribe()) };
        }
        let files = state.laid_out.get(model).copied().unwrap_or_default();
        let script = state.script(model).clone();
        let takes = script.measured.clone().flatten().or(script.takes.clone()).unwrap_or_else(|| Footprint::host(files));
        let takes = state.gpus.get(model).map_or(takes.clone(), |gpu| takes.on_gpu(*gpu));
        state.copies += 1;
        let copy = state.copies;
        let (outcome, receiver) = watch::channel(None);
        let released = Arc::new(Notify::new());
        let hangs = script.hangs.then(|| Arc::clone(&released));
        state.held.insert(model.clone(), Held { at: IndexEntry::Loading, copy, takes, awake: None, outcome, released, in_flight: 0 });
        state.note_peaks();
        self.spawn_load(model.clone(), copy, script.load_takes, hangs, false);
        Ok(receiver)
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn info(&self) -> &RuntimeInfo {
        &self.0.info
    }

    fn estimate(&self, artifacts: &Artifacts) -> Option<Footprint> {
        Some(Footprint::host(artifacts.size))
    }

    async fn size(&self, model: &ModelId) -> Option<Footprint> {
        let after = self.0.state.lock().script(model).measured_after?;
        self.0.clock.sleep(after).await;
        self.0.state.lock().held.get(model).map(|held| held.takes.clone())
    }

    async fn seat(&self, model: &Registration, _artifacts: &Artifacts) -> Seat {
        self.0.state.lock().script(&model.id).seat
    }

    async fn lay_out(&self, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        let mut state = self.0.state.lock();
        state.gpus.remove(&model.id);
        if let Some(fault) = state.script(&model.id).layout_fault {
            return Err(LoadError { fault, message: "no space left on device".to_owned(), nothing_attempted: true });
        }
        state.laid_out.insert(model.id.clone(), artifacts.size);
        Ok(LaidOut { path: artifacts.model.clone() })
    }

    async fn lay_out_on(&self, gpu: u16, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        let laid_out = self.lay_out(model, artifacts).await;
        self.0.state.lock().gpus.insert(model.id.clone(), gpu);
        laid_out
    }

    async fn load(&self, model: &Registration, _laid_out: &LaidOut) -> Result<Loaded, LoadError> {
        let id = &model.id;
        {
            let mut state = self.0.state.lock();
            state.loads.push(id.as_str().to_owned());
            if self.0.is_away() {
                let message = "the scripted server is away".to_owned();
                return Err(LoadError { fault: LoadFault::RuntimeDown, message, nothing_attempted: false });
            }
            if !state.laid_out.contains_key(id) {
                state.violations.push(format!("load of {id} without a layout"));
                return Err(LoadError::bad_model(format!("{id} is not laid out")));
            }
        }
        let deadline = self.0.clock.deadline_in(self.0.info.load_timeout);
        let attempt = async {
            let mut changes = self.0.changes.subscribe();
            let mut outcome = loop {
                changes.mark_unchanged();
                match self.0.begin_load(id) {
                    Ok(outcome) => break outcome,
                    // The sender lives as long as this runtime.
                    Err(()) => drop(changes.changed().await),
                }
            };
            self.0.changes.announce();
            halt::at(Point::Loading, id.as_str());
            let ended = outcome.wait_for(Option::is_some).await.map(|outcome| (*outcome).clone());
            ended.ok().flatten().unwrap_or_else(|| {
                let message = format!("{id} was unloaded while it was loading");
                Err(LoadError { fault: LoadFault::RuntimeDown, message, nothing_attempted: false })
            })
        };
        self.0.clock.until(deadline, attempt).await.unwrap_or_else(|| {
            let message = format!("{id} was not loaded within {:?}", self.0.info.load_timeout);
            Err(LoadError { fault: LoadFault::TimedOut, message, nothing_attempted: false })
        })
    }

    async fn unload(&self, model: &ModelId) -> Result<(), UnloadError> {
        {
            let mut state = self.0.state.lock();
            state.unloads.push(model.as_str().to_owned());
            if self.0.is_away() {
                return Err(UnloadError("the scripted server is away".to_owned()));
            }
            let Some(held) = state.held.get(model) else { return Ok(()) };
            if held.at == IndexEntry::Unloading {
                return Ok(());
            }
            let (copy, in_flight) = (held.copy, held.in_flight);
            let script = state.script(model);
            if script.unload_refusals > 0 {
                script.unload_refusals -= 1;
                return Err(UnloadError(format!("{model}: scripted refusal to unload")));
            }
            let confirm = script.confirm;
            if in_flight > 0 {
                state.unloaded_in_use.push(model.as_str().to_owned());
            }
            if let Some(held) = state.held.get_mut(model) {
                held.at = IndexEntry::Unloading;
                // A load in progress ends here: dropping the sender tells its callers.
                held.outcome = watch::Sender::new(None);
            }
            match confirm {
                Confirm::AtOnce => {
                    state.held.remove(model);
                }
                Confirm::After(delay) => self.0.spawn_unload(model.clone(), copy, delay),
                Confirm::WhenReleased => {}
            }
        }
        self.0.changes.announce();
        Ok(())
    }

    fn unloads_within(&self) -> Option<Duration> {
        self.0.state.lock().unloads_within
    }

    async fn park(&self, model: &ModelId) -> Result<Footprint, ParkError> {
        let Parks { takes, footprint } = self.0.state.lock().script(model).parks.clone().ok_or(ParkError::NotSupported)?;
        self.0.clock.sleep(takes).await;
        {
            let mut state = self.0.state.lock();
            let held = state.held.get_mut(model).filter(|held| matches!(held.at, IndexEntry::Ready | IndexEntry::Parked));
            let held = held.ok_or_else(|| ParkError::Refused(format!("{model} is not loaded")))?;
            if held.in_flight > 0 {
                return Err(ParkError::Refused(format!("{model} computes")));
            }
            if held.at == IndexEntry::Ready {
                held.awake = Some(std::mem::replace(&mut held.takes, footprint.clone()));
                held.at = IndexEntry::Parked;
            }
        }
        self.0.changes.announce();
        Ok(footprint)
    }

    async fn wake(&self, model: &ModelId) -> Result<Loaded, ParkError> {
        let Parks { takes, .. } = self.0.state.lock().script(model).parks.clone().ok_or(ParkError::NotSupported)?;
        self.0.clock.sleep(takes).await;
        let loaded = {
            let mut state = self.0.state.lock();
            let held = state.held.get_mut(model).filter(|held| matches!(held.at, IndexEntry::Ready | IndexEntry::Parked));
            let held = held.ok_or_else(|| ParkError::Refused(format!("{model} is not loaded")))?;
            held.wake();
            let loaded = held.outcome.borrow().clone().and_then(Result::ok);
            state.note_peaks();
            loaded.ok_or_else(|| ParkError::Refused(format!("{model} was not loaded")))?
        };
        self.0.changes.announce();
        Ok(loaded)
    }

    async fn clear_layout(&self, model: &ModelId) {
        let mut state = self.0.state.lock();
        state.laid_out.remove(model);
        if state.held.contains_key(model) {
            state.violations.push(format!("layout of {model} removed while the runtime holds it"));
        }
    }

    async fn index(&self) -> Result<Index, RuntimeDown> {
        self.0.changes.look();
        let state = self.0.state.lock();
        if state.index_outage {
            return Err(RuntimeDown("scripted outage".to_owned()));
        }
        Ok(Index::of(state.held.iter().map(|(model, held)| (model.clone(), held.at))))
    }

    async fn index_changed(&self) {
        self.0.changes.changed().await;
    }

    fn health(&self) -> Option<watch::Receiver<Health>> {
        self.0.health.as_ref().map(watch::Sender::subscribe)
    }
}

/// Counts an inference in flight for as long as it lives, also when its caller goes away.
struct InFlight<'a> {
    shared: &'a Shared,
    model: &'a ModelId,
    copy: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(held) = self.shared.state.lock().held.get_mut(self.model).filter(|held| held.copy == self.copy) {
            held.in_flight -= 1;
        }
    }
}

#[async_trait]
impl Infer for FakeRuntime {
    /// Echoes the inputs: each output has the name, datatype, shape and bytes of an input.
    async fn infer(&self, model: &ModelId, request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, InferError> {
        if deadline.left(self.0.clock.now()).is_zero() {
            return Err(InferError::DeadlineExceeded);
        }
        let (takes, failure, _in_flight) = {
            let mut state = self.0.state.lock();
            let held = state.held.get_mut(model).filter(|held| held.at == IndexEntry::Ready);
            let held = held.ok_or_else(|| InferError::NotLoaded(model.clone()))?;
            held.in_flight += 1;
            let copy = held.copy;
            state.inferences.push(model.as_str().to_owned());
            let script = state.script(model);
            let failure = (!script.infer_failures.is_empty()).then(|| script.infer_failures.remove(0));
            (script.infer_takes, failure, InFlight { shared: &self.0, model, copy })
        };
        if !takes.is_zero() && self.0.clock.until(deadline, self.0.clock.sleep(takes)).await.is_none() {
            return Err(InferError::DeadlineExceeded);
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let wanted: Vec<String> = request.outputs.iter().map(|output| output.name.clone()).collect();
        let wanted = wanted.iter().map(String::as_str);
        let (version, id) = (request.model_version.clone(), request.id.clone());
        let inputs = tensor::inputs_of(request, |_| Ok(()))?;
        let chosen = tensor::chosen_outputs(wanted, &inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>())?;
        let mut response = ModelInferResponse { model_name: model.as_str().to_owned(), model_version: version, id, ..ModelInferResponse::default() };
        for at in chosen {
            let input = &inputs[at];
            response.outputs.push(InferOutputTensor {
                name: input.name.clone(),
                datatype: input.datatype.as_str().to_owned(),
                shape: input.shape.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
                ..InferOutputTensor::default()
            });
            response.raw_output_contents.push(input.raw.clone());
        }
        Ok(response)
    }

    async fn metadata(&self, model: &ModelId) -> Result<ModelMetadataResponse, InferError> {
        let state = self.0.state.lock();
        if state.held.get(model).is_none_or(|held| held.at != IndexEntry::Ready) {
            return Err(InferError::NotLoaded(model.clone()));
        }
        let tensor = |name: &str| TensorMetadata { name: name.to_owned(), datatype: "FP32".to_owned(), shape: vec![-1] };
        Ok(ModelMetadataResponse {
            name: model.as_str().to_owned(),
            versions: Vec::new(),
            platform: "fake".to_owned(),
            inputs: vec![tensor("x")],
            outputs: vec![tensor("x")],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use bytes::Bytes;

    use super::*;
    use crate::conformance::{BROKEN, Outcome, Subject, raw_request, registration, runtime_suite, verdicts_on};

    fn files(bytes: u64) -> Artifacts {
        Artifacts { model: PathBuf::from("/disk/m"), schema: None, size: ByteSize(bytes) }
    }

    async fn load(fake: &FakeRuntime, model: &Registration, bytes: u64) -> Result<Loaded, LoadError> {
        let laid_out = fake.lay_out(model, &files(bytes)).await?;
        fake.load(model, &laid_out).await
    }

    async fn entry(fake: &FakeRuntime, model: &Registration) -> Option<IndexEntry> {
        fake.index().await.expect("no outage").get(&model.id)
    }

    fn subject<R>(runtime: R, clock: Clock) -> Subject<R> {
        let raw = Bytes::from_static(&[1, 0, 0, 0]);
        Subject {
            runtime,
            clock,
            format: "onnx",
            good: files(10),
            bad: files(10),
            request: raw_request(&[("x", "INT32", &[1], &raw)]),
            answer: vec![("x".to_owned(), "INT32".to_owned(), vec![1], raw)],
        }
    }

    async fn conforms(script: Script) {
        let clock = Clock::system();
        let runtime = FakeRuntime::following(clock.clone(), script);
        runtime.script(BROKEN, Script::default().failing(100, LoadFault::BadModel));
        runtime_suite(&subject(runtime.clone(), clock)).await;
        assert_eq!(runtime.violations(), Vec::<String>::new());
        assert_eq!(runtime.laid_out(), Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn the_fake_conforms() {
        conforms(Script::default()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_fake_that_confirms_late_conforms() {
        conforms(Script::default().loading_for(Duration::from_secs(3)).confirming(Confirm::After(Duration::from_millis(1200)))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_fake_that_parks_conforms_and_one_that_does_not_says_so() {
        let parking = Script::default().parking(Duration::from_secs(1), Footprint::host(ByteSize(1)));
        for (script, outcome) in [(parking, Outcome::Kept), (Script::default(), Outcome::Unchecked("the runtime does not park models".to_owned()))] {
            let clock = Clock::system();
            let fake = FakeRuntime::following(clock.clone(), script);
            fake.script(BROKEN, Script::default().failing(100, LoadFault::BadModel));
            let report = verdicts_on(&subject(fake, clock)).await;
            let told: Vec<_> = report.verdicts.iter().filter(|verdict| verdict.outcome != Outcome::Kept).map(|verdict| verdict.rule.name).collect();
            assert_eq!(report.verdicts.last().map(|last| (last.rule.name, &last.outcome)), Some(("parking", &outcome)));
            assert!(told.iter().all(|name| *name == "parking"), "{told:?}");
        }
    }

    /// A fault of each kind is found by the rule that is about it.
    #[tokio::test(start_paused = true)]
    async fn what_a_runtime_does_wrong_breaks_the_rule_about_it() {
        let broken = || Script::default().failing(100, LoadFault::BadModel);
        let cases: [(&str, Script, Script, &[&str]); 4] = [
            ("it loads anything", Script::default(), Script::default(), &["bad-model"]),
            ("bad files are its memory's fault", Script::default(), Script::default().failing(100, LoadFault::OutOfMemory), &["bad-model"]),
            (
                "a model fails at its first request",
                Script::default().failing_inference(InferError::Failed("broken".to_owned())),
                broken(),
                &["load-is-ready", "copies-apart", "parking"],
            ),
            ("it does not unload", Script::default().confirming(Confirm::WhenReleased), broken(), &["unload-is-gone"]),
        ];
        for (case, all, bad, rules) in cases {
            let clock = Clock::system();
            let fake = FakeRuntime::following(clock.clone(), all);
            fake.script(BROKEN, bad);
            let report = verdicts_on(&subject(fake, clock)).await;
            let found: Vec<_> = report.broken().map(|verdict| verdict.rule.name).collect();
            assert!(rules.iter().all(|rule| found.contains(rule)), "{case}: {found:?}");
            assert!(rules.len() == found.len() || case == "it does not unload", "{case}: {found:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_takes_its_time_and_its_bytes() {
        let clock = Clock::system();
        let fake = FakeRuntime::following(clock.clone(), Script::default().loading_for(Duration::from_secs(30)));
        fake.script("b__isvc-1", Script::default().loading_for(Duration::from_secs(10)).measuring(ByteSize(7)));
        let (a, b, started) = (registration("a__isvc-1"), registration("b__isvc-1"), clock.now());
        let (one, other) = tokio::join!(load(&fake, &a, 100), load(&fake, &b, 50));
        assert_eq!(clock.now() - started, Duration::from_secs(30));
        assert_eq!(one.expect("it loads").measured, Some(Footprint::host(ByteSize(100))));
        assert_eq!(other.expect("it loads").measured, Some(Footprint::host(ByteSize(7))));
        assert_eq!((fake.loads(), fake.peak_concurrent_loads()), (vec!["a__isvc-1".to_owned(), "b__isvc-1".to_owned()], 2));
        assert_eq!(fake.peak_held(), Footprint::host(ByteSize(107)));
        fake.unload(&a.id).await.expect("taken");
        assert_eq!(load(&fake, &registration("c__isvc-1"), 50).await.expect("it loads").measured, Some(Footprint::host(ByteSize(50))));
        assert_eq!(fake.peak_held(), Footprint::host(ByteSize(107)), "what was given back does not count");
    }

    #[tokio::test(start_paused = true)]
    async fn scripted_failures_come_in_order_and_end() {
        let fake = FakeRuntime::new(Clock::system());
        let model = registration("m__isvc-1");
        fake.script(model.id.as_str(), Script::default().failing(1, LoadFault::OutOfMemory).failing(1, LoadFault::RuntimeDown));
        for fault in [LoadFault::OutOfMemory, LoadFault::RuntimeDown] {
            assert_eq!(load(&fake, &model, 1).await.expect_err("scripted").fault, fault);
            assert_eq!(entry(&fake, &model).await, None);
        }
        assert!(load(&fake, &model, 1).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_that_timed_out_ends_ready_behind_the_callers_back() {
        let fake = FakeRuntime::following(Clock::system(), Script::default().loading_for(Duration::from_secs(5)).failing(2, LoadFault::TimedOut));
        let model = registration("m__isvc-1");
        assert_eq!(load(&fake, &model, 1).await.expect_err("scripted").fault, LoadFault::TimedOut);
        assert_eq!(entry(&fake, &model).await, Some(IndexEntry::Loading));
        fake.index_changed().await;
        assert_eq!(entry(&fake, &model).await, Some(IndexEntry::Ready));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hanging_load_times_out_and_can_be_released() {
        let clock = Clock::system();
        let fake = FakeRuntime::following(clock.clone(), Script::default().hanging());
        let (model, started) = (registration("m__isvc-1"), clock.now());
        assert_eq!(load(&fake, &model, 1).await.expect_err("it hangs").fault, LoadFault::TimedOut);
        assert_eq!(clock.now() - started, fake.info().load_timeout);
        fake.release_load(model.id.as_str());
        while entry(&fake, &model).await != Some(IndexEntry::Ready) {
            fake.index_changed().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unload_is_confirmed_only_when_the_script_says() {
        let clock = Clock::system();
        let fake = FakeRuntime::new(clock.clone());
        let (held, slow) = (registration("held__isvc-1"), registration("slow__isvc-1"));
        fake.script(held.id.as_str(), Script::default().confirming(Confirm::WhenReleased).refusing_unloads(1));
        fake.script(slow.id.as_str(), Script::default().confirming(Confirm::After(Duration::from_millis(1200))));
        for model in [&held, &slow] {
            load(&fake, model, 1).await.expect("it loads");
        }
        assert!(fake.unload(&held.id).await.is_err(), "the first is refused");
        assert_eq!(entry(&fake, &held).await, Some(IndexEntry::Ready));
        fake.unload(&held.id).await.expect("taken");
        fake.unload(&slow.id).await.expect("taken");
        let started = clock.now();
        while entry(&fake, &slow).await.is_some() {
            fake.index_changed().await;
        }
        assert_eq!(clock.now() - started, Duration::from_millis(1200));
        assert_eq!(entry(&fake, &held).await, Some(IndexEntry::Unloading));
        assert!(fake.confirm_unload(held.id.as_str()));
        assert_eq!(entry(&fake, &held).await, None);
        assert!(!fake.confirm_unload(held.id.as_str()), "once");
        assert_eq!(fake.unloads(), ["held__isvc-1", "held__isvc-1", "slow__isvc-1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_hides_the_index_and_a_crash_empties_it() {
        let fake = FakeRuntime::following(Clock::system(), Script::default().loading_for(Duration::from_secs(5)));
        let model = registration("m__isvc-1");
        load(&fake, &model, 1).await.expect("it loads");
        fake.set_index_outage(true);
        assert!(fake.index().await.is_err());
        fake.set_index_outage(false);
        assert_eq!(entry(&fake, &model).await, Some(IndexEntry::Ready));
        let (other, dying) = (registration("o__isvc-1"), fake.clone());
        let (loading, ()) = tokio::join!(load(&fake, &other, 1), async move {
            while dying.held().len() < 2 {
                tokio::task::yield_now().await;
            }
            dying.crash();
        });
        assert_eq!(loading.expect_err("it died").fault, LoadFault::RuntimeDown);
        assert_eq!(fake.held(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn misuse_is_remembered() {
        let clock = Clock::system();
        let fake = FakeRuntime::following(clock.clone(), Script::default().inferring_for(Duration::from_secs(9)));
        let model = registration("m__isvc-1");
        assert!(fake.load(&model, &LaidOut { path: PathBuf::new() }).await.is_err());
        load(&fake, &model, 1).await.expect("it loads");
        fake.clear_layout(&model.id).await;
        assert_eq!(fake.violations(), ["load of m__isvc-1 without a layout", "layout of m__isvc-1 removed while the runtime holds it"]);
        let inference = fake.infer(&model.id, raw_request(&[]), clock.deadline_in(Duration::from_secs(60)));
        let (answer, ()) = tokio::join!(inference, async {
            while fake.inferences().is_empty() {
                tokio::task::yield_now().await;
            }
            fake.unload(&model.id).await.expect("taken");
        });
        assert!(answer.is_ok());
        assert_eq!(fake.unloaded_in_use(), ["m__isvc-1"]);
    }
}
