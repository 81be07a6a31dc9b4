//! Servers that speak ModelMesh's runtime contract, `mmesh.ModelRuntime`: ModelMesh's own adapters, and servers that people
//! wrote for it.
//!
//! The contract has no list of what a server holds. Its words on that are two: `unloadModel` succeeds when the model takes no
//! memory any more, and a server drops every model before it answers `runtimeStatus` with READY. So the index is kept here: a
//! model is listed from the order to load it until one of the two was said, whatever became of the order.
//!
//! Because of the second word `runtimeStatus` is no heartbeat: ModelMesh's adapters unload everything each time they are asked.
//! What is asked once a second is `grpc.health.v1.Health`, which servers answer or do not know; that they do is enough. A server
//! that did not answer, or broke off a call, may be another process by now: `runtimeStatus` is asked again, until READY, and
//! then nothing is loaded any more.
//!
//! A load that nobody waits for is cancelled, and the model unloaded, again and again until the server says so: the contract has
//! servers expect that.

mod held;
mod key;
mod served;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_proto::mmesh::{
    LoadModelRequest, LoadModelResponse, ModelSizeRequest, ModelSizeResponse, PredictModelSizeRequest, PredictModelSizeResponse,
    RuntimeStatusRequest, RuntimeStatusResponse, UnloadModelRequest, UnloadModelResponse,
};
use berth_telemetry::Clock;
use berth_types::{ByteSize, Deadline, Footprint, ModelId, Registration};
use berth_upstream::Server;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use tracing::{info, warn};

use crate::layout::{self, Plan, name};
use crate::loads::load_error;
use crate::open_inference;
use crate::rpc::{Rpc, RpcError};
use crate::unknown::is_unknown_model;
use crate::{
    Artifacts, Health, Index, Infer, InferError, LaidOut, LoadError, Loaded, Runtime, RuntimeDown, RuntimeInfo, StartError, UnloadError, beat,
};
pub use served::{Entrance, ServedConfig, serve_contract};

use held::{Asked, Held, NotUnloaded, Order};
use status::{Parameters, Standing};

/// How such a server is used. What is `None` the server says itself.
#[derive(Clone, Debug)]
pub struct ModelRuntimeConfig {
    /// Name of the ServingRuntime that describes it.
    pub name: Arc<str>,
    /// The folder in which models are laid out for it, which it sees at the same path. All of it is Berth's: what lies there at
    /// start is removed.
    pub folder: PathBuf,
    /// What all its models may take, where that is less than it says.
    pub capacity: Option<ByteSize>,
    /// Loads at a time.
    pub load_concurrency: Option<NonZeroU32>,
    /// A load that takes longer has failed.
    pub load_timeout: Option<Duration>,
    /// How long it may take at start until it is ready.
    pub start_timeout: Duration,
    /// What a model takes of which the server can say nothing: its bytes on disk times this, in percent.
    pub size_percent: u32,
    /// Requests that one copy serves at a time, where that is less than the server says.
    pub max_concurrency: Option<NonZeroU32>,
}

/// A server beside this process that speaks the contract. Cheap to clone.
#[derive(Clone)]
pub struct ModelRuntimeServer {
    shared: Arc<Shared>,
    health: watch::Receiver<Health>,
    ask_now: Arc<Notify>,
    _beating: Arc<AbortOnDropHandle<()>>,
}

/// What the server, its loads and its heartbeat share.
struct Shared {
    info: RuntimeInfo,
    config: ModelRuntimeConfig,
    parameters: Parameters,
    rpc: Rpc,
    clock: Clock,
    held: Held,
    /// What to say to load a model that is laid out.
    orders: Mutex<HashMap<ModelId, Order>>,
    /// Times that the server broke off a call, or was asked how it stands: it may be another process since.
    doubts: AtomicU64,
    /// Those of them that are settled: it is known which process it is.
    settled: AtomicU64,
    /// Held while the server is asked how it stands: who waits for it may find that it was done.
    greeting: tokio::sync::Mutex<()>,
    /// How often it was asked and was ready.
    greeted: AtomicU64,
    /// Attempts to connect, when last looked at.
    connections: AtomicU64,
    /// Whether the server has `predictModelSize`, as far as is known.
    predicts: AtomicBool,
    /// The same of `modelSize`.
    sizes: AtomicBool,
}

const LOAD: &str = "/mmesh.ModelRuntime/loadModel";
const UNLOAD: &str = "/mmesh.ModelRuntime/unloadModel";
const PREDICT: &str = "/mmesh.ModelRuntime/predictModelSize";
const SIZE: &str = "/mmesh.ModelRuntime/modelSize";
const STATUS: &str = "/mmesh.ModelRuntime/runtimeStatus";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// How often a server that is not ready is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long a prediction may take: the load waits for it.
const PREDICTION: Duration = Duration::from_millis(500);
/// How long a measure may take: the copy serves meanwhile.
const MEASURE: Duration = Duration::from_secs(30);
/// How long a question about a model may take.
const USUAL: Duration = Duration::from_secs(10);
/// As people call such a server.
const KIND: &str = "the model runtime";

impl ModelRuntimeServer {
    /// Waits until the server is ready, which means that it holds nothing, and empties the folder.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: ModelRuntimeConfig, server: Server, clock: Clock) -> Result<Self, StartError> {
        let rpc = Rpc::new(server, clock.clone());
        let parameters = ready(&rpc, config.start_timeout, &clock).await?;
        layout::claimed(&config.folder).await?;
        let capacity = config.capacity.map_or(parameters.capacity, |given| given.min(parameters.capacity));
        let info = RuntimeInfo {
            name: Arc::clone(&config.name),
            version: if parameters.version.is_empty() { "unknown" } else { &parameters.version }.into(),
            capacity: Some(Footprint::host(capacity)),
            load_concurrency: config.load_concurrency.unwrap_or(parameters.load_concurrency),
            load_timeout: config.load_timeout.unwrap_or(parameters.load_timeout),
            // Links lead to them, and nothing is said of whether it keeps them open.
            reads_files_while_loaded: true,
        };
        let limit = info.load_timeout;
        let shared = Arc::new(Shared {
            connections: AtomicU64::new(rpc.connections()),
            held: Held::new(clock.clone()),
            info,
            config,
            parameters,
            rpc,
            clock: clock.clone(),
            orders: Mutex::default(),
            doubts: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            greeting: tokio::sync::Mutex::default(),
            greeted: AtomicU64::new(0),
            predicts: AtomicBool::new(true),
            sizes: AtomicBool::new(true),
        });
        let (told, health) = watch::channel(Health::Up);
        let (asked, known, loading) = (Arc::clone(&shared), health.clone(), Arc::clone(&shared));
        let ask = move |deadline| {
            let (shared, down) = (Arc::clone(&asked), *known.borrow() != Health::Up);
            async move { shared.lives(down, deadline).await }
        };
        // Some servers load with the thread that answers.
        let it_loads = move || loading.held.loads_within(limit);
        let ask_now = Arc::<Notify>::default();
        let beating = AbortOnDropHandle::new(tokio::spawn(beat::listen(ask, clock, it_loads, Arc::clone(&ask_now), told)));
        Ok(ModelRuntimeServer { shared, health, ask_now, _beating: Arc::new(beating) })
    }

    /// The methods that clients may call, by full name, each with the field numbers that lead to the model's id. Empty: any.
    #[must_use]
    pub fn methods(&self) -> &BTreeMap<String, Vec<u32>> {
        &self.shared.parameters.methods
    }

    /// Whether methods that are not among [`ModelRuntimeServer::methods`] may be called, too.
    #[must_use]
    pub fn any_method(&self) -> bool {
        self.shared.parameters.any_method
    }
}

/// What the server asks for, as soon as it is ready.
async fn ready(rpc: &Rpc, within: Duration, clock: &Clock) -> Result<Parameters, StartError> {
    let deadline = clock.deadline_in(within);
    let (mut last, mut said) = ("it was not asked".to_owned(), false);
    let asking = async {
        loop {
            match rpc.call::<RuntimeStatusResponse>(STATUS, &RuntimeStatusRequest {}, deadline).await.map(status::standing) {
                Ok(Ok(Standing::Ready(parameters))) => return Ok(parameters),
                Ok(Ok(Standing::Failing)) => return Err("says that it has failed to start".to_owned()),
                Ok(Err(faults)) => return Err(format!("says of itself what cannot be: {faults}")),
                Ok(Ok(Standing::Starting)) => (last, said) = ("it is starting".to_owned(), true),
                Err(RpcError::Said { code: Code::Unimplemented, .. }) => {
                    return Err("does not know mmesh.ModelRuntime: is it the server's management endpoint?".to_owned());
                }
                Err(why @ RpcError::Unreadable(_)) => return Err(format!("is no such server: {why}")),
                Err(other) => {
                    let why = other.to_string();
                    if matches!(other, RpcError::Said { .. }) && why != last {
                        warn!(error = %why, "the model runtime does not say how it stands, and is asked again");
                    }
                    (last, said) = (why, matches!(other, RpcError::Said { .. }));
                }
            }
            clock.sleep(ASK_AGAIN).await;
        }
    };
    let target = rpc.target();
    match clock.until(deadline, asking).await {
        Some(Ok(parameters)) => Ok(parameters),
        Some(Err(why)) => Err(StartError::Unfit { kind: KIND, target, why }),
        None => Err(StartError::waited(KIND, target, within, last, said)),
    }
}

impl Shared {
    /// Whether the server lives, and is ready again if it was away.
    async fn lives(&self, was_down: bool, deadline: Deadline) -> Result<(), RpcError> {
        let (doubts, greeted) = (self.doubts.load(Ordering::Acquire), self.greeted.load(Ordering::Acquire));
        match self.rpc.call::<()>(HEALTH, &(), deadline).await {
            // Not knowing the question is an answer.
            Ok(()) | Err(RpcError::Said { .. } | RpcError::Unreadable(_)) => {}
            Err(why) => return Err(why),
        }
        if !was_down && !self.is_reconnected() {
            // No process outlives its connections: it broke off a call, and is the same.
            self.settled.fetch_max(doubts, Ordering::AcqRel);
            return Ok(());
        }
        let connections = self.rpc.connections();
        if was_down || self.is_doubtful() || self.has_lost_one().await {
            let _alone = self.greeting.lock().await;
            // Asking costs a server all its models.
            if self.greeted.load(Ordering::Acquire) != greeted && !self.is_doubtful() && !self.is_reconnected() {
                return Ok(());
            }
            return self.greet().await;
        }
        self.connections.store(connections, Ordering::Release);
        Ok(())
    }

    /// Whether it is connected to anew since it was last known which process it is.
    fn is_reconnected(&self) -> bool {
        self.rpc.connections() != self.connections.load(Ordering::Acquire)
    }

    fn is_doubtful(&self) -> bool {
        self.doubts.load(Ordering::Acquire) > self.settled.load(Ordering::Acquire)
    }

    /// Whether the server says that it does not know a model that it had loaded. One that does not tell is the same as before: what
    /// it lost it says when it is asked for it.
    async fn has_lost_one(&self) -> bool {
        match self.held.any_loaded() {
            Some(model) => self.measure(&model, USUAL).await == Err(Code::NotFound),
            None => false,
        }
    }

    /// The server may be another process: it is asked until it is ready, and holds nothing then. Until that has been written
    /// down the books are in doubt, also where nobody waits for it any more.
    async fn greet(&self) -> Result<(), RpcError> {
        let doubts = self.doubts.fetch_add(1, Ordering::AcqRel) + 1;
        let answer =
            self.rpc.call::<RuntimeStatusResponse>(STATUS, &RuntimeStatusRequest {}, self.clock.deadline_in(self.config.start_timeout)).await;
        let why = match answer.map(status::standing) {
            Ok(Ok(Standing::Ready(parameters))) => {
                if parameters != self.parameters {
                    warn!("the model runtime asks for something else than when this process began: that counts from its next start on");
                }
                self.connections.store(self.rpc.connections(), Ordering::Release);
                let lost = self.held.purged();
                self.settled.fetch_max(doubts, Ordering::AcqRel);
                self.greeted.fetch_add(1, Ordering::AcqRel);
                info!(models = lost, "the model runtime is ready and holds nothing");
                return Ok(());
            }
            Ok(Ok(Standing::Starting)) => "it is starting".to_owned(),
            Ok(Ok(Standing::Failing)) => "it says that it has failed to start".to_owned(),
            Ok(Err(faults)) => faults,
            Err(why) => why.to_string(),
        };
        Err(RpcError::Away(why))
    }

    /// A call had no answer.
    fn note(&self, why: &RpcError) {
        if matches!(why, RpcError::Away(_)) {
            self.doubts.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Loads a model, as `order` says it.
    async fn load(&self, model: &ModelId, order: Order) -> Result<Loaded, LoadError> {
        let Order { model_type, path, key } = order;
        let request = LoadModelRequest { model_id: model.to_string(), model_type, model_path: path, model_key: key };
        let answer = self.rpc.call::<LoadModelResponse>(LOAD, &request, self.clock.deadline_in(self.info.load_timeout)).await;
        match answer {
            Ok(answer) => Ok(self.loaded(model, answer)),
            Err(why) => {
                self.note(&why);
                Err(load_error(KIND, why, format!("{KIND} did not load it within {:?}", self.info.load_timeout), str::to_owned))
            }
        }
    }

    fn loaded(&self, model: &ModelId, answer: LoadModelResponse) -> Loaded {
        let said = self.parameters.limits_concurrency.then(|| {
            NonZeroU32::new(answer.max_concurrency).unwrap_or_else(|| {
                warn!(model = %model, "the model runtime limits what its models serve at a time and did not say to what: one at a time");
                NonZeroU32::MIN
            })
        });
        let max_concurrency = [said, self.config.max_concurrency].into_iter().flatten().min();
        let measured = (answer.size_in_bytes > 0).then(|| Footprint::host(ByteSize(answer.size_in_bytes)));
        Loaded { measured, max_concurrency }
    }

    /// Tells the server to unload `model`. Success is its word that the model takes no memory.
    async fn unload(&self, model: &ModelId) -> Result<(), NotUnloaded> {
        // The contract has no limit; without one an answer that got lost would never be asked for again.
        let deadline = self.clock.deadline_in(self.info.load_timeout.max(LEAST_UNLOAD));
        match self.rpc.call::<UnloadModelResponse>(UNLOAD, &UnloadModelRequest { model_id: model.to_string() }, deadline).await {
            Ok(UnloadModelResponse {}) => Ok(()),
            Err(RpcError::Said { code, message }) if is_unknown_model(code, &message) => Ok(()),
            Err(why @ RpcError::Said { .. }) => Err(NotUnloaded::Refused(why.to_string())),
            Err(why) => {
                self.note(&why);
                Err(NotUnloaded::Unanswered(why.to_string()))
            }
        }
    }

    /// What the server says that a loaded copy takes; 0 where it has no answer but knows the model.
    async fn measure(&self, model: &ModelId, within: Duration) -> Result<u64, Code> {
        if !self.sizes.load(Ordering::Relaxed) {
            return Err(Code::Unimplemented);
        }
        let request = ModelSizeRequest { model_id: model.to_string() };
        match self.rpc.call::<ModelSizeResponse>(SIZE, &request, self.clock.deadline_in(within)).await {
            Ok(answer) => Ok(answer.size_in_bytes),
            Err(RpcError::Said { code, message }) => {
                if code == Code::Unimplemented {
                    self.sizes.store(false, Ordering::Relaxed);
                } else {
                    info!(model = %model, error = %message, "the model runtime does not say what a model takes");
                }
                Err(code)
            }
            Err(_no_answer) => Err(Code::Unavailable),
        }
    }

    fn order(&self, model: &Registration, path: String, schema: Option<&std::path::Path>, size: ByteSize) -> Result<Order, LoadError> {
        let key = key::key(model, schema, size).map_err(LoadError::bad_model)?;
        Ok(Order { model_type: model.type_string(), path, key })
    }
}

/// The least time for an unload.
const LEAST_UNLOAD: Duration = Duration::from_secs(60);

impl Asked for Shared {
    fn held(&self) -> &Held {
        &self.held
    }

    async fn load(&self, model: &ModelId, order: Order) -> Result<Loaded, LoadError> {
        Shared::load(self, model, order).await
    }

    async fn unload(&self, model: &ModelId) -> Result<(), NotUnloaded> {
        Shared::unload(self, model).await
    }
}

#[async_trait]
impl Runtime for ModelRuntimeServer {
    fn info(&self) -> &RuntimeInfo {
        &self.shared.info
    }

    /// The default size at least: the server knows what its models take beside their files.
    fn estimate(&self, artifacts: &Artifacts) -> Option<Footprint> {
        Some(Footprint::host(artifacts.size.percent(self.shared.config.size_percent).max(self.shared.parameters.default_size)))
    }

    async fn predict(&self, model: &Registration, artifacts: &Artifacts) -> Option<Footprint> {
        let shared = &self.shared;
        if !shared.predicts.load(Ordering::Relaxed) {
            return self.estimate(artifacts);
        }
        let path = artifacts.model.display().to_string();
        let Order { model_type, path, key } = shared.order(model, path, artifacts.schema.as_deref(), artifacts.size).ok()?;
        let request = PredictModelSizeRequest { model_id: model.id.to_string(), model_type, model_path: path, model_key: key };
        match shared.rpc.call::<PredictModelSizeResponse>(PREDICT, &request, shared.clock.deadline_in(PREDICTION)).await {
            Ok(answer) if answer.size_in_bytes > 0 => return Some(Footprint::host(ByteSize(answer.size_in_bytes))),
            Ok(_) => {}
            Err(RpcError::Said { code: Code::Unimplemented, .. }) => shared.predicts.store(false, Ordering::Relaxed),
            Err(why) => info!(model = %model.id, error = %why, "the model runtime does not say what a model will take"),
        }
        self.estimate(artifacts)
    }

    async fn lay_out(&self, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        let folder = name::server_name(&model.id);
        let (file, schema) = key::names(model);
        let schema = schema.zip(artifacts.schema.clone());
        let mut plan = Plan::named(folder);
        plan.entries.insert(file.clone(), layout::plan::Entry::Link(artifacts.model.clone()));
        if let Some((name, path)) = schema.clone() {
            plan.entries.insert(name, layout::plan::Entry::Link(path));
        }
        let root = self.shared.config.folder.clone();
        let source = artifacts.model.clone();
        let made = layout::made(move || {
            // Nothing in it may lead out of the model's folder: the server follows links.
            layout::listing::read(&source, KIND)?;
            plan.carry_out(&root)
        });
        let made = made.await?;
        let (path, schema) = (made.path.join(file), schema.map(|(name, _)| made.path.join(name)));
        let order = self.shared.order(model, path.display().to_string(), schema.as_deref(), artifacts.size)?;
        self.shared.orders.lock().insert(model.id.clone(), order);
        Ok(LaidOut { path })
    }

    async fn load(&self, model: &Registration, _laid_out: &LaidOut) -> Result<Loaded, LoadError> {
        let order = self.shared.orders.lock().get(&model.id).cloned();
        let Some(order) = order else { return Err(LoadError::bad_model(format!("{} is not laid out", model.id))) };
        held::load(&self.shared, &model.id, &order).await
    }

    async fn size(&self, model: &ModelId) -> Option<Footprint> {
        let size = self.shared.measure(model, MEASURE).await.ok().filter(|size| *size > 0)?;
        Some(Footprint::host(ByteSize(size)))
    }

    async fn doubt(&self, model: &ModelId) {
        let shared = &self.shared;
        // Asked on the connection that there is now: another one than before, and a model lost, is another process.
        let _ = shared.rpc.call::<()>(HEALTH, &(), shared.clock.deadline_in(USUAL)).await;
        if !shared.held.is_loaded(model) || shared.measure(model, USUAL).await.is_ok() {
            return;
        }
        {
            let _alone = shared.greeting.lock().await;
            if shared.is_reconnected() && shared.held.is_loaded(model) && shared.greet().await.is_ok() {
                return;
            }
        }
        // By the contract it does not hold it then. What is left of it goes.
        warn!(model = %model, "the model runtime has lost a model");
        let (server, model) = (Arc::clone(shared), model.clone());
        // Also when nobody waits for it any more.
        let going = tokio::spawn(async move {
            if held::unload(&server, &model).await.is_err() {
                held::see_off(server, model).await;
            }
        });
        let _ = going.await;
    }

    async fn unload(&self, model: &ModelId) -> Result<(), UnloadError> {
        held::unload(&self.shared, model).await
    }

    async fn clear_layout(&self, model: &ModelId) {
        self.shared.orders.lock().remove(model);
        layout::cleared(&self.shared.config.folder, name::server_name(model)).await;
    }

    async fn index(&self) -> Result<Index, RuntimeDown> {
        // What an earlier process held says nothing of the one that may be there now.
        if let Health::Down { why } = &*self.health.borrow() {
            return Err(RuntimeDown(why.to_string()));
        }
        if self.shared.is_doubtful() {
            return Err(RuntimeDown("it broke off a call, and is asked whether it is the same as before".to_owned()));
        }
        Ok(self.shared.held.index())
    }

    async fn index_changed(&self) {
        self.shared.held.changes.changed().await;
    }

    fn health(&self) -> Option<watch::Receiver<Health>> {
        Some(self.health.clone())
    }

    fn ask_whether_it_lives(&self) {
        self.ask_now.notify_one();
    }
}

/// Inference over the Open Inference Protocol, where the server has it on the endpoint of its orders.
#[async_trait]
impl Infer for ModelRuntimeServer {
    async fn infer(&self, model: &ModelId, request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, InferError> {
        open_inference::infer_with(&self.shared.rpc, headers(model), model, request, deadline).await
    }

    async fn metadata(&self, model: &ModelId) -> Result<ModelMetadataResponse, InferError> {
        open_inference::metadata_with(&self.shared.rpc, headers(model), model, self.shared.clock.deadline_in(USUAL)).await
    }
}

/// By which the contract's servers know the model.
fn headers(model: &ModelId) -> HeaderMap {
    HeaderValue::from_str(model.as_str()).map(|id| [(MODEL_ID, id)].into_iter().collect()).unwrap_or_default()
}

const MODEL_ID: http::HeaderName = http::HeaderName::from_static("mm-model-id");
