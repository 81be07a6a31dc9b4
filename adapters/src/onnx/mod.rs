//! The embedded ONNX runtime: models run in this process, without another server.
//!
//! Behind one seam are two engines: tract, built in, and ONNX Runtime, used when its shared library is configured or
//! found. This module owns what they share: which file is the model, the life of each copy, turns at computing, and
//! the checks of requests.
//!
//! Invariants:
//! - The index lists exactly what is held: a copy is listed from the start of its load until its session has been
//!   dropped. An unload takes the copy out of service at once; runs that are going on keep it alive, listed as
//!   "unloading", and the last one drops it.
//! - Loads and runs happen off the async threads. A load whose caller has gone away goes on and ends ready; a request
//!   whose caller has gone away before its turn is never computed.
//! - A panic inside an engine ends one load or one request.
//!
//! Not bounded here: memory that a run takes while it computes. The measured size of a copy is what its load kept.

mod compute;
mod engine;
mod files;
mod interface;
mod library;
mod ort;
mod outline;
#[cfg(feature = "onnx-tract")]
mod tract;

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use berth_proto::inference::model_infer_response::InferOutputTensor;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_telemetry::Clock;
use berth_telemetry::field::took;
use berth_telemetry::halt::{self, Point};
use berth_types::{ByteSize, Deadline, Footprint, ModelId, Registration};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};

use crate::changes::Changes;
use crate::{
    Artifacts, Index, IndexEntry, Infer, InferError, LaidOut, LoadError, LoadFault, Loaded, Runtime, RuntimeDown, RuntimeInfo, UnloadError, counting,
    tensor,
};
use compute::{Compute, Line};
use engine::{Engine, Opened, Session, contained};
use interface::Interface;

/// How the embedded runtime is set up.
#[derive(Clone, Debug)]
pub struct OnnxConfig {
    /// ONNX Runtime's shared library. `None`: look for one (`ORT_DYLIB_PATH`, `lib/` beside the executable, the system's
    /// library folders), else use the built-in engine.
    pub library: Option<PathBuf>,
    /// Requests computed at a time, over all models.
    pub concurrency: NonZeroUsize,
    /// Threads that ONNX Runtime may use for one request; the built-in engine uses one.
    pub threads: NonZeroUsize,
    /// Requests that may wait for a turn at computing, over all models; more are turned away. Before that a quarter as
    /// many may wait for one model whose engine runs one request at a time (ONNX Runtime).
    pub queue: usize,
    /// Loads at a time.
    pub load_concurrency: NonZeroU32,
    /// A load that takes longer has failed.
    pub load_timeout: Duration,
    /// Name of the ServingRuntime that describes it.
    pub name: Arc<str>,
}

impl Default for OnnxConfig {
    /// As many requests at a time as there are cores, one load at a time per two cores, five minutes for a load.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let half = u32::try_from(cores.get().div_ceil(2)).ok().and_then(NonZeroU32::new);
        OnnxConfig {
            library: None,
            concurrency: cores,
            threads: cores,
            queue: 1024,
            load_concurrency: half.unwrap_or(NonZeroU32::MIN),
            load_timeout: Duration::from_secs(300),
            name: "berth-onnx".into(),
        }
    }
}

/// Why the embedded runtime cannot start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OnnxStartError {
    /// A library that somebody named cannot be used.
    #[error("ONNX Runtime library {} (from {source_name}) cannot be used: {cause}", path.display())]
    Library {
        /// The path as given.
        path: PathBuf,
        /// Where the path was given.
        source_name: &'static str,
        /// What the dynamic linker or the library said.
        cause: String,
    },
    /// Nothing to compute with.
    #[error("no ONNX engine: this build has no built-in one and no usable libonnxruntime.so was found ({looked}): set --onnx-library")]
    NoEngine {
        /// The places and why each was of no use.
        looked: String,
    },
}

type Outcome = Option<Result<Loaded, LoadError>>;

/// Where one copy is in its life.
enum Phase {
    /// Waiting for its turn to load, or loading.
    Loading(watch::Sender<Outcome>),
    Ready {
        copy: Arc<Copy>,
        loaded: Loaded,
    },
    Unloading,
}

struct Slot {
    /// Tells this copy from an earlier one of the same model.
    number: u64,
    phase: Phase,
}

/// A loaded model. Dropping the last handle drops the session and then, not before, takes the model off the index.
struct Copy {
    session: Option<Box<dyn Session>>,
    interface: Interface,
    /// Lets in one request at a time, where the engine needs that.
    gate: Option<Arc<Line>>,
    shared: Weak<Shared>,
    model: ModelId,
    number: u64,
    /// Whether dropping it frees enough to be worth handing back.
    large: bool,
}

/// From this size on freed memory is handed back to the system after a load or an unload.
const LARGE: ByteSize = ByteSize::mib(1);

impl Drop for Copy {
    fn drop(&mut self) {
        if let Some(session) = self.session.take()
            && let Err(panic) = contained(|| drop(session))
        {
            warn!(model = %self.model, error = panic, "engine panicked while dropping a model");
        }
        if self.large {
            // Before the index confirms the unload: then the memory is truly there for the next model.
            counting::return_freed();
        }
        if let Some(shared) = self.shared.upgrade() {
            shared.forget(&self.model, self.number);
        }
    }
}

#[derive(Default)]
struct State {
    slots: BTreeMap<ModelId, Slot>,
    copies: u64,
}

struct Shared {
    info: RuntimeInfo,
    engine: Box<dyn Engine>,
    clock: Clock,
    loads: Arc<Semaphore>,
    compute: Compute,
    state: Mutex<State>,
    changes: Changes,
}

/// The embedded runtime. Cheap to clone; must be used inside a tokio runtime.
#[derive(Clone)]
pub struct OnnxRuntime(Arc<Shared>);

impl OnnxRuntime {
    /// Starts with ONNX Runtime where its library is named or found, else with the built-in engine.
    ///
    /// # Errors
    /// [`OnnxStartError`]: a library that somebody named cannot be used, or there is no engine at all.
    pub fn start(config: &OnnxConfig, clock: Clock) -> Result<Self, OnnxStartError> {
        let mut looked = Vec::new();
        for candidate in library::candidates(config.library.as_deref()) {
            match ort::OnnxRuntimeEngine::open(&candidate.path, config.threads) {
                Ok(engine) => {
                    info!(engine = engine.version(), path = %candidate.path.display(), "embedded runtime computes with ONNX Runtime");
                    return Ok(Self::over(Box::new(engine), config, clock));
                }
                Err(cause) if candidate.demanded => {
                    return Err(OnnxStartError::Library { path: candidate.path, source_name: candidate.source, cause });
                }
                Err(cause) => {
                    if candidate.source == "found" {
                        warn!(path = %candidate.path.display(), error = cause, "ONNX Runtime library was found but cannot be used");
                    }
                    looked.push(format!("{}: {cause}", candidate.path.display()));
                }
            }
        }
        Self::built_in(config, clock).ok_or_else(|| OnnxStartError::NoEngine { looked: looked.join("; ") })
    }

    /// Starts with the built-in engine, whatever libraries there are; `None` when it was not built in.
    #[must_use]
    #[cfg_attr(not(feature = "onnx-tract"), allow(unused_variables, reason = "nothing to start"))]
    pub fn built_in(config: &OnnxConfig, clock: Clock) -> Option<Self> {
        #[cfg(feature = "onnx-tract")]
        {
            let engine = tract::Tract::new();
            info!(engine = engine.version(), "embedded runtime computes with the built-in engine");
            Some(Self::over(Box::new(engine), config, clock))
        }
        #[cfg(not(feature = "onnx-tract"))]
        None
    }

    fn over(engine: Box<dyn Engine>, config: &OnnxConfig, clock: Clock) -> Self {
        let info = RuntimeInfo {
            name: Arc::clone(&config.name),
            version: engine.version().into(),
            capacity: None,
            load_concurrency: config.load_concurrency,
            load_timeout: config.load_timeout,
            // Both engines read a model into memory. ONNX Runtime may map external data: a removed file stays readable there.
            reads_files_while_loaded: false,
        };
        let loads = usize::try_from(config.load_concurrency.get()).unwrap_or(1).min(Semaphore::MAX_PERMITS);
        OnnxRuntime(Arc::new(Shared {
            info,
            engine,
            clock,
            loads: Arc::new(Semaphore::new(loads)),
            compute: Compute::new(config.concurrency, config.queue),
            state: Mutex::default(),
            changes: Changes::new(),
        }))
    }
}

impl Shared {
    /// The session of copy `number` is gone.
    fn forget(&self, model: &ModelId, number: u64) {
        {
            let mut state = self.state.lock();
            if state.slots.get(model).is_none_or(|slot| slot.number != number) {
                return;
            }
            state.slots.remove(model);
        }
        self.changes.announce();
    }

    /// Begins a load, joins one, or says that the model is there. `None`: an older copy is still being dropped.
    fn begin_load(self: &Arc<Self>, model: &ModelId, path: &Path) -> Option<watch::Receiver<Outcome>> {
        let mut state = self.state.lock();
        match state.slots.get(model).map(|slot| &slot.phase) {
            Some(Phase::Ready { loaded, .. }) => return Some(watch::channel(Some(Ok(loaded.clone()))).1),
            Some(Phase::Loading(outcome)) => return Some(outcome.subscribe()),
            Some(Phase::Unloading) => return None,
            None => {}
        }
        state.copies += 1;
        let number = state.copies;
        let (outcome, receiver) = watch::channel(None);
        state.slots.insert(model.clone(), Slot { number, phase: Phase::Loading(outcome) });
        drop(state);
        self.changes.announce();
        // A task of its own: the engine cannot be stopped, so what it made must be kept or dropped by somebody.
        tokio::spawn(Arc::clone(self).carry_load(model.clone(), number, path.to_owned()));
        Some(receiver)
    }

    async fn carry_load(self: Arc<Self>, model: ModelId, number: u64, path: PathBuf) {
        let turn = Arc::clone(&self.loads).acquire_owned().await;
        let wanted = self.state.lock().slots.get(&model).is_some_and(|slot| matches!(slot.phase, Phase::Loading(_)));
        if !wanted {
            // Unloaded while it waited for its turn.
            return self.forget(&model, number);
        }
        let shared = Arc::clone(&self);
        let id = model.clone();
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            shared.load_now(&id, &path)
        });
        let opened = work.await.unwrap_or_else(|fault| {
            // The work catches panics, so this is a runtime that shuts down.
            Err(LoadError { fault: LoadFault::RuntimeDown, message: format!("the load was stopped: {fault}"), nothing_attempted: false })
        });
        self.finish_load(&model, number, opened);
    }

    /// The load itself, on a thread where waiting is allowed.
    fn load_now(&self, model: &ModelId, path: &Path) -> Result<Opened, LoadError> {
        let panicked = |panic: String| LoadError {
            fault: LoadFault::BadModel,
            message: format!("{} made the engine ({}) panic: {}", files::name_of(path), self.engine.version(), engine::brief(&panic)),
            nothing_attempted: false,
        };
        let started = self.clock.now();
        let opened = contained(|| {
            let file = files::inspect(path)?;
            halt::at(Point::Loading, model.as_str());
            self.engine.load(&file)
        });
        if std::fs::metadata(path).is_ok_and(|about| ByteSize(about.len()) >= LARGE) {
            counting::return_freed();
        }
        let opened = opened.unwrap_or_else(|panic| Err(panicked(panic)))?;
        let measured = opened.measured.map_or_else(|| "unmeasured".to_owned(), |bytes| bytes.to_string());
        tracing::debug!(model = %model, step = "load", size = measured, took = took(self.clock.now() - started), "engine loaded the model");
        Ok(opened)
    }

    fn finish_load(self: &Arc<Self>, model: &ModelId, number: u64, opened: Result<Opened, LoadError>) {
        let mut state = self.state.lock();
        // Nobody but this task and the last handle of a copy takes a slot away, and there is no copy yet.
        let Some(slot) = state.slots.get_mut(model).filter(|slot| slot.number == number) else { return };
        match opened {
            Err(fault) => {
                if let Some(Slot { phase: Phase::Loading(outcome), .. }) = state.slots.remove(model) {
                    outcome.send_replace(Some(Err(fault)));
                }
            }
            Ok(Opened { session, interface, measured }) => {
                let gate = (!session.parallel()).then(|| self.compute.gate());
                let (shared, large) = (Arc::downgrade(self), measured.is_none_or(|bytes| bytes >= LARGE));
                let copy = Copy { session: Some(session), interface, gate, shared, model: model.clone(), number, large };
                match &slot.phase {
                    Phase::Loading(outcome) => {
                        let loaded = Loaded { measured: measured.map(Footprint::host), max_concurrency: None };
                        outcome.send_replace(Some(Ok(loaded.clone())));
                        slot.phase = Phase::Ready { copy: Arc::new(copy), loaded };
                    }
                    // Unloaded while it was loading: dropping it takes the slot away.
                    Phase::Unloading | Phase::Ready { .. } => {
                        drop(state);
                        drop(tokio::task::spawn_blocking(move || drop(copy)));
                        return;
                    }
                }
            }
        }
        drop(state);
        self.changes.announce();
    }

    fn copy(&self, model: &ModelId) -> Result<Arc<Copy>, InferError> {
        match self.state.lock().slots.get(model).map(|slot| &slot.phase) {
            Some(Phase::Ready { copy, .. }) => Ok(Arc::clone(copy)),
            Some(Phase::Loading(_) | Phase::Unloading) | None => Err(InferError::NotLoaded(model.clone())),
        }
    }
}

impl Copy {
    /// One request from wire form to wire form, on a thread where computing is allowed.
    fn answer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, InferError> {
        let unsupported = request.outputs.iter().find_map(|output| {
            ["classification", "shared_memory_region"].into_iter().find(|name| output.parameters.contains_key(*name)).map(|name| (&output.name, name))
        });
        if let Some((output, parameter)) = unsupported {
            return Err(tensor::bad(format!("output {}: the parameter {parameter:?} is not supported", tensor::quoted(output))));
        }
        let known: Vec<&str> = self.interface.outputs.iter().map(|port| port.name.as_str()).collect();
        let wanted = tensor::chosen_outputs(request.outputs.iter().map(|output| output.name.as_str()), &known)?;
        let (version, id) = (request.model_version.clone(), request.id.clone());
        let inputs = self.interface.arrange(tensor::inputs_of(request, |name| self.interface.knows(name))?)?;
        let session = self.session.as_ref().ok_or_else(|| InferError::NotLoaded(self.model.clone()))?;
        let results = session.run(inputs, &wanted)?;
        let mut response =
            ModelInferResponse { model_name: self.model.as_str().to_owned(), model_version: version, id, ..ModelInferResponse::default() };
        for result in results {
            response.outputs.push(InferOutputTensor {
                name: result.name,
                datatype: result.datatype.as_str().to_owned(),
                shape: result.shape.iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect(),
                ..InferOutputTensor::default()
            });
            response.raw_output_contents.push(result.raw);
        }
        Ok(response)
    }
}

#[async_trait]
impl Runtime for OnnxRuntime {
    fn info(&self) -> &RuntimeInfo {
        &self.0.info
    }

    /// Bytes on disk times what the engine makes of them.
    fn estimate(&self, artifacts: &Artifacts) -> Option<Footprint> {
        Some(Footprint::host(self.0.engine.estimate(artifacts.size)))
    }

    /// Finds the model file; nothing is copied.
    async fn lay_out(&self, _model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        let path = artifacts.model.clone();
        let resolved = tokio::task::spawn_blocking(move || files::resolve(&path)).await;
        let resolved = resolved.map_err(|fault| LoadError {
            fault: LoadFault::RuntimeDown,
            message: format!("the layout was stopped: {fault}"),
            nothing_attempted: true,
        })?;
        Ok(LaidOut { path: resolved? })
    }

    async fn load(&self, model: &Registration, laid_out: &LaidOut) -> Result<Loaded, LoadError> {
        let shared = &self.0;
        let attempt = async {
            let mut changes = shared.changes.subscribe();
            let mut outcome = loop {
                changes.mark_unchanged();
                match shared.begin_load(&model.id, &laid_out.path) {
                    Some(outcome) => break outcome,
                    // The sender lives as long as this runtime.
                    None => drop(changes.changed().await),
                }
            };
            let ended = outcome.wait_for(Option::is_some).await.map(|outcome| (*outcome).clone());
            ended.ok().flatten().unwrap_or_else(|| {
                let message = format!("{} was unloaded while it was loading", model.id);
                Err(LoadError { fault: LoadFault::RuntimeDown, message, nothing_attempted: false })
            })
        };
        let deadline = shared.clock.deadline_in(shared.info.load_timeout);
        shared.clock.until(deadline, attempt).await.unwrap_or_else(|| {
            let message = format!("the engine did not load {} within {:?}; it goes on", model.id, shared.info.load_timeout);
            Err(LoadError { fault: LoadFault::TimedOut, message, nothing_attempted: false })
        })
    }

    async fn unload(&self, model: &ModelId) -> Result<(), UnloadError> {
        let copy = {
            let mut state = self.0.state.lock();
            let Some(slot) = state.slots.get_mut(model) else { return Ok(()) };
            match std::mem::replace(&mut slot.phase, Phase::Unloading) {
                Phase::Ready { copy, .. } => Some(copy),
                // Whoever waits for the load sees its sender go; the load itself goes on and is dropped at its end.
                Phase::Loading(_) | Phase::Unloading => None,
            }
        };
        self.0.changes.announce();
        // Giving back the memory of a large model takes a while.
        drop(tokio::task::spawn_blocking(move || drop(copy)));
        Ok(())
    }

    async fn clear_layout(&self, _model: &ModelId) {}

    async fn index(&self) -> Result<Index, RuntimeDown> {
        self.0.changes.look();
        let state = self.0.state.lock();
        Ok(Index::of(state.slots.iter().map(|(model, slot)| {
            let entry = match slot.phase {
                Phase::Loading(_) => IndexEntry::Loading,
                Phase::Ready { .. } => IndexEntry::Ready,
                Phase::Unloading => IndexEntry::Unloading,
            };
            (model.clone(), entry)
        })))
    }

    async fn index_changed(&self) {
        self.0.changes.changed().await;
    }
}

#[async_trait]
impl Infer for OnnxRuntime {
    async fn infer(&self, model: &ModelId, request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, InferError> {
        let shared = &self.0;
        let gate = shared.copy(model)?.gate.clone();
        let turn = shared.compute.turn(gate.as_deref(), &shared.clock, deadline).await?;
        // Looked up again: a caller that waits does not keep a copy from being unloaded.
        let copy = shared.copy(model)?;
        let work = tokio::task::spawn_blocking(move || {
            let answer = contained(|| copy.answer(request))
                .unwrap_or_else(|panic| Err(InferError::Failed(format!("the model made the engine panic: {}", engine::brief(&panic)))));
            // Dropped here, off the async threads, and before the turn is given back.
            drop(copy);
            drop(turn);
            answer
        });
        match shared.clock.until(deadline, work).await {
            Some(Ok(answer)) => answer,
            Some(Err(fault)) => Err(InferError::Failed(format!("the computation was stopped: {fault}"))),
            None => Err(InferError::DeadlineExceeded),
        }
    }

    async fn metadata(&self, model: &ModelId) -> Result<ModelMetadataResponse, InferError> {
        let state = self.0.state.lock();
        match state.slots.get(model).map(|slot| &slot.phase) {
            Some(Phase::Ready { copy, .. }) => Ok(copy.interface.metadata(model, self.0.engine.platform())),
            Some(Phase::Loading(_) | Phase::Unloading) | None => Err(InferError::NotLoaded(model.clone())),
        }
    }
}

#[cfg(test)]
mod tests;
