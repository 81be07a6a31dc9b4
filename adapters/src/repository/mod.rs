//! Inference servers with a model repository: Triton and MLServer.
//!
//! They read models from a folder that Berth lays out for them, load and unload them by call, and list what they hold. In
//! what they differ is a [`Dialect`]. What neither does: say when an unload has really ended, stop a load that nobody waits
//! for any more, or answer every load at all. So each load runs in a task of its own, which goes on when its caller leaves;
//! until that task has ended the index says "loading", whatever the server lists.

mod dialect;
pub(crate) mod words;

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_proto::repository::{IndexRequest, IndexResponse, LoadRequest, LoadResponse, UnloadRequest, UnloadResponse};
use berth_telemetry::Clock;
use berth_types::{Deadline, Footprint, ModelId, Registration};
use berth_upstream::Server;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use tracing::{info, warn};

use crate::layout;
use crate::layout::name::{Named, named};
use crate::loads::{LOOK_AGAIN, Loads, load_error};
use crate::open_inference;
use crate::rpc::{Rpc, RpcError};
use crate::unknown::is_unknown_model;
use crate::{
    Artifacts, Health, Index, IndexEntry, Infer, InferError, LaidOut, LoadError, LoadFault, Loaded, Runtime, RuntimeDown, RuntimeInfo, Seat,
    StartError, UnloadError, beat,
};
pub use dialect::Dialect;
use dialect::Made;

/// How such a server is used.
#[derive(Clone, Debug)]
pub struct RepositoryConfig {
    /// Which server it is.
    pub dialect: Dialect,
    /// Name of the ServingRuntime that describes it.
    pub name: Arc<str>,
    /// The folder that it reads models from. All of it is Berth's: what lies there at start is removed.
    pub repository: PathBuf,
    /// What it can hold, where that is known.
    pub capacity: Option<Footprint>,
    /// Loads at a time.
    pub load_concurrency: NonZeroU32,
    /// A load that takes longer has failed.
    pub load_timeout: Duration,
    /// How long it may take at start until it answers.
    pub start_timeout: Duration,
    /// What a model takes before it was ever loaded: its bytes on disk times this, in percent.
    pub size_percent: u32,
    /// Requests that one copy serves at a time; `None` is no limit.
    pub max_concurrency: Option<NonZeroU32>,
}

/// A Triton or MLServer beside this process. Cheap to clone.
#[derive(Clone)]
pub struct RepositoryServer {
    inner: Arc<Inner>,
}

/// In the place of a number of connections: the server has not said that it has no GPU.
const GPUS: u64 = u64::MAX;

struct Inner {
    info: RuntimeInfo,
    config: RepositoryConfig,
    rpc: Rpc,
    clock: Clock,
    loads: Arc<Loads>,
    /// What layouts are to be loaded with, where there is anything.
    made: Mutex<HashMap<ModelId, Made>>,
    /// It has said that it has no GPU, whatever there is in this machine, when it had been connected to so often. Another process may
    /// have one: no process outlives its connections.
    without_gpus: AtomicU64,
    health: watch::Receiver<Health>,
    ask_now: Arc<Notify>,
    _beating: AbortOnDropHandle<()>,
}

/// How often a server that is not there yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How long any call but a load or an inference may take.
const USUAL: Duration = Duration::from_secs(10);

impl RepositoryServer {
    /// Waits for the server, unloads what it holds and empties its folder of models.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: RepositoryConfig, server: Server, clock: Clock) -> Result<Self, StartError> {
        let rpc = Rpc::new(server, clock.clone());
        let version = answers(&rpc, &config, &clock).await?;
        let info = RuntimeInfo {
            name: Arc::clone(&config.name),
            version: version.into(),
            capacity: config.capacity.clone(),
            load_concurrency: config.load_concurrency,
            load_timeout: config.load_timeout,
            reads_files_while_loaded: true,
        };
        let (told, health) = watch::channel(Health::Up);
        let loads = Loads::new(clock.clone());
        let it_loads = {
            // Only MLServer loads with the thread that answers.
            let (loads, limit, deaf) = (Arc::clone(&loads), config.load_timeout, config.dialect == Dialect::MlServer);
            move || deaf && loads.any_within(limit)
        };
        let ask = {
            let rpc = rpc.clone();
            move |deadline| {
                let rpc = rpc.clone();
                async move { open_inference::live(&rpc, deadline).await }
            }
        };
        let ask_now = Arc::<Notify>::default();
        let beating = AbortOnDropHandle::new(tokio::spawn(beat::listen(ask, clock.clone(), it_loads, Arc::clone(&ask_now), told)));
        let without_gpus = AtomicU64::new(GPUS);
        let inner = Inner { info, config, rpc, clock, loads, made: Mutex::default(), without_gpus, health, ask_now, _beating: beating };
        let server = RepositoryServer { inner: Arc::new(inner) };
        server.purge().await?;
        Ok(server)
    }

    /// Unloads whatever the server holds from before, and empties its folder.
    async fn purge(&self) -> Result<(), StartError> {
        let Inner { config, rpc, clock, .. } = &*self.inner;
        let unfit = |why: String| StartError::Unfit { kind: config.dialect.name(), target: rpc.target(), why };
        // A server that takes no orders says so to an order about nothing.
        if let Err(RpcError::Said { code, message }) = self.inner.tell_to_unload(PROBE).await
            && !is_unknown_model(code, &message)
        {
            return Err(unfit(format!("takes no orders to load and unload ({code:?}: {message}): {}", config.dialect.how_to_control())));
        }
        let (deadline, mut told) = (clock.deadline_in(config.start_timeout), HashSet::new());
        loop {
            let models = self.inner.models().await.map_err(|why| unfit(format!("does not say what it holds: {why}")))?;
            let held: Vec<_> = models.into_iter().filter(|(_, state)| *state != State::Absent).collect();
            let Some((last, _)) = held.last().cloned() else { break };
            for (name, _) in held.into_iter().filter(|(_, state)| *state == State::Is(IndexEntry::Ready)) {
                // Servers list a model once for each version.
                if told.insert(name.clone()) {
                    info!(model = %name, "a model from before is unloaded");
                    self.inner.unload(&name).await.map_err(|why| unfit(format!("does not unload {name}: {why}")))?;
                }
            }
            if clock.until(deadline, clock.sleep(LOOK_AGAIN)).await.is_none() {
                return Err(unfit(format!("still holds {last} after {:?}", config.start_timeout)));
            }
        }
        layout::claimed(&config.repository).await
    }
}

/// A name that no model has.
const PROBE: &str = "berth-asks-whether-orders-are-taken";

/// The server's version text, as soon as it answers.
async fn answers(rpc: &Rpc, config: &RepositoryConfig, clock: &Clock) -> Result<String, StartError> {
    let deadline = clock.deadline_in(config.start_timeout);
    let (mut last, mut said) = ("it was not asked".to_owned(), false);
    let asking = async {
        loop {
            match open_inference::server(rpc, clock.deadline_in(USUAL)).await {
                Ok(server) => return Ok(server.version),
                Err(RpcError::Away(why)) => (last, said) = (why, false),
                Err(RpcError::Said { code: Code::Unavailable, message }) => (last, said) = (message, true),
                Err(RpcError::Late) => (last, said) = (RpcError::Late.to_string(), false),
                Err(other) => return Err(other),
            }
            clock.sleep(ASK_AGAIN).await;
        }
    };
    let (kind, target, waited) = (config.dialect.name(), rpc.target(), config.start_timeout);
    match clock.until(deadline, asking).await {
        Some(Ok(version)) => Ok(version),
        Some(Err(other)) => Err(StartError::Unfit { kind, target, why: format!("is no such server: {other}") }),
        None => Err(StartError::waited(kind, target, waited, last, said)),
    }
}

/// How the server sees a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It takes no memory there.
    Absent,
    Is(IndexEntry),
}

impl Inner {
    /// Everything that the server lists.
    async fn models(&self) -> Result<Vec<(String, State)>, RpcError> {
        let index: IndexResponse = self.rpc.call(self.config.dialect.index(), &IndexRequest::default(), self.clock.deadline_in(USUAL)).await?;
        Ok(index.models.into_iter().map(|model| (model.name, words::state(&model.state))).collect())
    }

    async fn tell_to_unload(&self, name: &str) -> Result<(), RpcError> {
        let request = UnloadRequest { model_name: name.to_owned(), parameters: self.config.dialect.unload_parameters(), ..UnloadRequest::default() };
        self.rpc.call::<UnloadResponse>(self.config.dialect.unload(), &request, self.clock.deadline_in(USUAL)).await.map(drop)
    }

    async fn unload(&self, name: &str) -> Result<(), UnloadError> {
        match self.tell_to_unload(name).await {
            Ok(()) => Ok(()),
            Err(RpcError::Said { code, message }) if is_unknown_model(code, &message) => Ok(()),
            Err(other) => Err(UnloadError(other.to_string())),
        }
    }

    /// Tells the server to unload the model and the parts that it was laid out with: those of an ensemble that did not load are
    /// nobody's dependents.
    async fn unload_all_of(self: Arc<Self>, model: ModelId) -> Result<(), UnloadError> {
        let told = self.unload(model.as_str()).await;
        let made = self.made.lock().get(&model).cloned().unwrap_or_default();
        for part in made.parts {
            self.unload(&part).await?;
        }
        told
    }

    async fn lay_out(&self, model: &Registration, artifacts: &Artifacts, gpu: Option<u16>) -> Result<LaidOut, LoadError> {
        let (dialect, root) = (self.config.dialect, self.config.repository.clone());
        let (model, artifacts) = (model.clone(), artifacts.clone());
        let id = model.id.clone();
        let made = tokio::task::spawn_blocking(move || dialect.lay_out(&root, &model, &artifacts, gpu)).await;
        let (laid_out, made) = made.unwrap_or_else(|panic| Err(LoadError::bad_model(format!("the layout panicked: {panic}"))))?;
        if made == Made::default() {
            self.made.lock().remove(&id);
        } else {
            self.made.lock().insert(id, made);
        }
        Ok(laid_out)
    }

    async fn load(self: Arc<Self>, model: ModelId) -> Result<Loaded, LoadError> {
        let made = self.made.lock().get(&model).cloned().unwrap_or_default();
        let request = LoadRequest { model_name: model.to_string(), parameters: self.config.dialect.load_parameters(&made), ..LoadRequest::default() };
        // Longer than anybody waits: an answer that comes late is still one. What has none by then is the index's to tell.
        let deadline = self.clock.deadline_in(self.config.load_timeout.saturating_mul(2));
        let answer = self.rpc.call::<LoadResponse>(self.config.dialect.load(), &request, deadline).await;
        match answer {
            Ok(LoadResponse {}) => Ok(Loaded { measured: self.measure(&model).await, max_concurrency: self.config.max_concurrency }),
            Err(RpcError::Said { message, .. }) if made.config.is_some() && words::has_no_gpu(&message) => {
                let connections = self.rpc.connections();
                if self.without_gpus.swap(connections, Ordering::Relaxed) != connections {
                    warn!(error = %message, "the server has no GPU: from now on models go where their configurations put them");
                }
                Err(LoadError { fault: LoadFault::NotNow, message: format!("Triton has no GPU for it: {message}"), nothing_attempted: false })
            }
            Err(why) => {
                let kind = self.config.dialect.name();
                Err(load_error(kind, why, format!("{kind} did not answer the load of {model}"), str::to_owned))
            }
        }
    }

    /// What the server says that the copy takes.
    async fn measure(&self, model: &ModelId) -> Option<Footprint> {
        self.config.dialect.measure(&self.rpc, model, self.clock.deadline_in(USUAL)).await
    }
}

#[async_trait]
impl Runtime for RepositoryServer {
    fn info(&self) -> &RuntimeInfo {
        &self.inner.info
    }

    fn estimate(&self, artifacts: &Artifacts) -> Option<Footprint> {
        Some(Footprint::host(artifacts.size.percent(self.inner.config.size_percent)))
    }

    async fn seat(&self, model: &Registration, artifacts: &Artifacts) -> Seat {
        if self.inner.without_gpus.load(Ordering::Relaxed) == self.inner.rpc.connections() {
            return Seat::Given;
        }
        let (dialect, model, artifacts) = (self.inner.config.dialect, model.clone(), artifacts.clone());
        tokio::task::spawn_blocking(move || dialect.seat(&model, &artifacts)).await.unwrap_or_default()
    }

    async fn lay_out(&self, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        self.inner.lay_out(model, artifacts, None).await
    }

    async fn lay_out_on(&self, gpu: u16, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        self.inner.lay_out(model, artifacts, Some(gpu)).await
    }

    async fn load(&self, model: &Registration, _laid_out: &LaidOut) -> Result<Loaded, LoadError> {
        let (inner, id) = (&self.inner, &model.id);
        if let Some(loaded) = inner.loads.loaded(id)
            && self.index().await.is_ok_and(|index| index.get(id) == Some(IndexEntry::Ready))
        {
            return Ok(loaded);
        }
        let (load, unload) = (Arc::clone(inner).load(id.clone()), Arc::clone(inner).unload_all_of(id.clone()));
        inner.loads.join(id, load, unload).await
    }

    async fn unload(&self, model: &ModelId) -> Result<(), UnloadError> {
        // Servers answer an unload during a load as they please; it is told when the load has ended.
        if self.inner.loads.give_up(model) {
            return Ok(());
        }
        let told = Arc::clone(&self.inner).unload_all_of(model.clone()).await;
        if told.is_ok() {
            self.inner.loads.forget(model);
        }
        told
    }

    async fn clear_layout(&self, model: &ModelId) {
        self.inner.made.lock().remove(model);
        layout::cleared(&self.inner.config.repository, layout::name::server_name(model)).await;
    }

    async fn index(&self) -> Result<Index, RuntimeDown> {
        self.inner.loads.changes.look();
        // What was sent may still be on its way there, and what has just ended may be missing in an answer made before.
        let mut loading = self.inner.loads.under_way();
        let models = self.inner.models().await.map_err(|why| RuntimeDown(why.to_string()))?;
        loading.extend(self.inner.loads.under_way());
        let (mut entries, mut parts) = (HashMap::new(), Vec::new());
        for (name, state) in models {
            let State::Is(entry) = state else { continue };
            match named(&name) {
                Named::Model(model) => drop(entries.insert(model, entry)),
                Named::Part { of } => parts.extend(of),
                // What is nobody's is not counted.
                Named::Long | Named::Foreign => {}
            }
        }
        for owner in parts {
            // The ensemble has gone and this part of it has not: its memory is in use.
            entries.entry(owner).or_insert(IndexEntry::Unloading);
        }
        entries.extend(loading.into_iter().map(|model| (model, IndexEntry::Loading)));
        Ok(Index::of(entries))
    }

    async fn index_changed(&self) {
        self.inner.loads.changed_or_later().await;
    }

    fn health(&self) -> Option<watch::Receiver<Health>> {
        Some(self.inner.health.clone())
    }

    fn ask_whether_it_lives(&self) {
        self.inner.ask_now.notify_one();
    }
}

#[async_trait]
impl Infer for RepositoryServer {
    async fn infer(&self, model: &ModelId, request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, InferError> {
        open_inference::infer(&self.inner.rpc, model, request, deadline).await
    }

    async fn metadata(&self, model: &ModelId) -> Result<ModelMetadataResponse, InferError> {
        open_inference::metadata(&self.inner.rpc, model, self.inner.clock.deadline_in(USUAL)).await
    }
}
