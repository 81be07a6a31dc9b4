//! TorchServe.
//!
//! It takes one archive per model out of its store, over its management API by gRPC: registering one starts its workers, each a
//! process with the model in it. What is registered is its index. Requests go over its own inference API, at another port.

mod answers;

use std::collections::HashSet;
use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_proto::inference::model_infer_response::InferOutputTensor;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_proto::torchserve::{
    DescribeRequest, ListRequest, ManagementResponse, PingRequest, PingResponse, PredictionRequest, PredictionResponse, RegisterRequest,
    UnregisterRequest,
};
use berth_telemetry::Clock;
use berth_types::{Deadline, Footprint, ModelId, Registration};
use berth_upstream::Server;
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use tracing::info;

use self::answers::Page;
use crate::layout::torchserve::ENDING;
use crate::layout::{self, Source};
use crate::loads::{self, LOOK_AGAIN, Loads};
use crate::rpc::{Rpc, RpcError};
use crate::tensor::inputs_of;
use crate::unknown::is_unknown_model;
use crate::{
    Artifacts, Health, Index, IndexEntry, Infer, InferError, LaidOut, LoadError, Loaded, Runtime, RuntimeDown, RuntimeInfo, StartError, UnloadError,
    beat, open_inference,
};

/// How the server is used.
#[derive(Clone, Debug)]
pub struct TorchServeConfig {
    /// Name of the ServingRuntime that describes it.
    pub name: Arc<str>,
    /// Its model store. All of it is Berth's: what lies there at start is removed.
    pub store: PathBuf,
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
    /// Requests that one copy serves at a time, and workers that each model has; `None` is one worker and no limit.
    pub max_concurrency: Option<NonZeroU32>,
    /// Requests that a worker computes together; `None` is the server's own.
    pub batch_size: Option<NonZeroU32>,
    /// How long a batch waits to be full; `None` is the server's own.
    pub max_batch_delay: Option<Duration>,
    /// How long a worker may take for an answer; `None` is the server's own.
    pub response_timeout: Option<Duration>,
}

/// A TorchServe beside this process. Cheap to clone.
#[derive(Clone)]
pub struct TorchServe {
    inner: Arc<Inner>,
}

struct Inner {
    info: RuntimeInfo,
    config: TorchServeConfig,
    orders: Rpc,
    requests: Rpc,
    clock: Clock,
    loads: Arc<Loads>,
    health: watch::Receiver<Health>,
    ask_now: Arc<Notify>,
    _beating: AbortOnDropHandle<()>,
}

const KIND: &str = "TorchServe";
const REGISTER: &str = "/org.pytorch.serve.grpc.management.ManagementAPIsService/RegisterModel";
const UNREGISTER: &str = "/org.pytorch.serve.grpc.management.ManagementAPIsService/UnregisterModel";
const DESCRIBE: &str = "/org.pytorch.serve.grpc.management.ManagementAPIsService/DescribeModel";
const LIST: &str = "/org.pytorch.serve.grpc.management.ManagementAPIsService/ListModels";
const PING: &str = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping";
const PREDICTIONS: &str = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions";

/// How often a server that is not there yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How long any call but a load or an inference may take.
const USUAL: Duration = Duration::from_secs(10);
/// How often it is looked whether it has measured a model's workers, and by when it should have: by itself it does so every minute.
const MEASURE_AGAIN: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(75);
/// Models on one page of the list.
const PAGE: i32 = 500;
/// What its container waits for in the store.
const SETTINGS: &str = "mmconfig.properties";

/// The server's settings, for a container that waits for them. Its REST port moves away from 8080, newer servers are told to
/// take orders, and to count what workers take more often than once a minute.
fn settings(store: &Path) -> String {
    format!(
        "enable_envvars_config=true
model_store={}
metric_time_interval=10
inference_address=http://127.0.0.1:8083
number_of_netty_threads=8
job_queue_size=512
enable_model_api=true
disable_token_authorization=true
",
        store.display()
    )
}

/// Makes the store ours: emptied, with the server's settings in it.
fn claim(store: &Path) -> Result<(), String> {
    layout::claim(store)?;
    let beside = store.join(".mmconfig.new");
    fs::write(&beside, settings(store)).and_then(|()| fs::rename(&beside, store.join(SETTINGS))).map_err(|fault| fault.to_string())
}

impl TorchServe {
    /// Prepares the model store, waits for the server, and unregisters what it holds. It takes orders at `orders` and requests at
    /// `requests`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: TorchServeConfig, orders: Server, requests: Server, clock: Clock) -> Result<Self, StartError> {
        let store = config.store.clone();
        let claimed = tokio::task::spawn_blocking(move || claim(&store)).await.unwrap_or_else(|panic| Err(panic.to_string()));
        claimed.map_err(|why| StartError::Repository { path: config.store.display().to_string(), why })?;
        let (orders, requests) = (Rpc::new(orders, clock.clone()), Rpc::new(requests, clock.clone()));
        answers(&orders, &requests, config.start_timeout, &clock).await?;
        let info = RuntimeInfo {
            name: Arc::clone(&config.name),
            // It does not say.
            version: "unknown".into(),
            capacity: config.capacity.clone(),
            load_concurrency: config.load_concurrency,
            load_timeout: config.load_timeout,
            // A worker that dies is started again from what the server has unpacked.
            reads_files_while_loaded: false,
        };
        let (told, health) = watch::channel(Health::Up);
        let ask = {
            let requests = requests.clone();
            move |deadline| {
                let requests = requests.clone();
                async move { requests.call::<PingResponse>(PING, &PingRequest {}, deadline).await.map(drop) }
            }
        };
        let ask_now = Arc::<Notify>::default();
        let beating = AbortOnDropHandle::new(tokio::spawn(beat::listen(ask, clock.clone(), || false, Arc::clone(&ask_now), told)));
        let loads = Loads::new(clock.clone());
        let inner = Inner { info, config, orders, requests, clock, loads, health, ask_now, _beating: beating };
        let server = TorchServe { inner: Arc::new(inner) };
        server.purge().await?;
        Ok(server)
    }

    async fn purge(&self) -> Result<(), StartError> {
        let Inner { config, orders, clock, .. } = &*self.inner;
        let unfit = |why: String| StartError::Unfit { kind: KIND, target: orders.target(), why };
        let (deadline, mut told) = (clock.deadline_in(config.start_timeout), HashSet::new());
        loop {
            let held = self.inner.models().await.map_err(|why| unfit(format!("does not say what it holds: {why}")))?;
            let Some(last) = held.last().cloned() else { return Ok(()) };
            for name in held.into_iter().filter(|name| told.insert(name.clone())) {
                info!(model = %name, "a model from before is unloaded");
                self.inner.unregister(name.clone()).await.map_err(|why| unfit(format!("does not unload {name}: {why}")))?;
            }
            if clock.until(deadline, clock.sleep(LOOK_AGAIN)).await.is_none() {
                return Err(unfit(format!("still holds {last} after {:?}", config.start_timeout)));
            }
        }
    }
}

/// Waits until the server answers at both ports.
async fn answers(orders: &Rpc, requests: &Rpc, waited: Duration, clock: &Clock) -> Result<(), StartError> {
    let mut last = "it was not asked".to_owned();
    let asking = async {
        loop {
            let said = match requests.call::<PingResponse>(PING, &PingRequest {}, clock.deadline_in(USUAL)).await {
                Ok(_alive) => {
                    let list = ListRequest { limit: 1, next_page_token: 0 };
                    orders.call::<ManagementResponse>(LIST, &list, clock.deadline_in(USUAL)).await.map(drop).map_err(|why| (orders, why))
                }
                Err(why) => Err((requests, why)),
            };
            match said {
                Ok(()) => return Ok(()),
                Err((_, why @ (RpcError::Away(_) | RpcError::Late | RpcError::Said { code: Code::Unavailable, .. }))) => last = why.to_string(),
                Err((port, other)) => return Err((port, other)),
            }
            clock.sleep(ASK_AGAIN).await;
        }
    };
    match clock.until(clock.deadline_in(waited), asking).await {
        Some(Ok(())) => Ok(()),
        Some(Err((port, other))) => Err(StartError::Unfit { kind: KIND, target: port.target(), why: format!("is no such port: {other}") }),
        None => Err(StartError::Away { kind: KIND, target: requests.target(), waited, why: last }),
    }
}

/// The archive's file in the store.
fn archive(model: &ModelId) -> String {
    format!("{}{ENDING}", layout::name::server_name(model))
}

/// For a field where 0 is the server's own.
fn number(value: u128) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

impl Inner {
    /// Everything that is registered, by its name there, which is the id.
    async fn models(&self) -> Result<Vec<String>, RpcError> {
        let (mut models, mut from) = (Vec::new(), 0);
        loop {
            let request = ListRequest { limit: PAGE, next_page_token: from };
            let answer: ManagementResponse = self.orders.call(LIST, &request, self.clock.deadline_in(USUAL)).await?;
            let page = Page::read(&answer.msg).map_err(RpcError::Unreadable)?;
            let next = page.next.filter(|next| *next > from);
            models.extend(page.names());
            match next {
                Some(next) => from = next,
                None => return Ok(models),
            }
        }
    }

    async fn unregister(&self, name: String) -> Result<(), UnloadError> {
        let request = UnregisterRequest { model_name: name };
        match self.orders.call::<ManagementResponse>(UNREGISTER, &request, self.clock.deadline_in(USUAL)).await {
            Ok(_told) => Ok(()),
            Err(RpcError::Said { code, message }) if is_unknown_model(code, &message) => Ok(()),
            Err(other) => Err(UnloadError(other.to_string())),
        }
    }

    async fn unload(self: Arc<Self>, model: ModelId) -> Result<(), UnloadError> {
        self.unregister(model.to_string()).await
    }

    async fn describe(&self, model: &ModelId) -> Result<String, RpcError> {
        let request = DescribeRequest { model_name: model.to_string(), model_version: "all".to_owned() };
        self.orders.call::<ManagementResponse>(DESCRIBE, &request, self.clock.deadline_in(USUAL)).await.map(|answer| answer.msg)
    }

    /// What the server says that the copy takes: nothing in the first seconds, until it has measured it.
    async fn measure(&self, model: &ModelId) -> Option<Footprint> {
        answers::taken(&self.describe(model).await.ok()?).map(Footprint::host)
    }

    fn registration(&self, model: &ModelId) -> RegisterRequest {
        let TorchServeConfig { max_concurrency, batch_size, max_batch_delay, response_timeout, .. } = &self.config;
        RegisterRequest {
            model_name: model.to_string(),
            url: archive(model),
            initial_workers: number(max_concurrency.map_or(1, NonZeroU32::get).into()),
            synchronous: true,
            batch_size: number(batch_size.map_or(0, NonZeroU32::get).into()),
            max_batch_delay: number(max_batch_delay.map_or(0, |delay| delay.as_millis())),
            response_timeout: number(response_timeout.map_or(0, |timeout| timeout.as_millis().div_ceil(1000))),
        }
    }

    async fn load(self: Arc<Self>, model: ModelId) -> Result<Loaded, LoadError> {
        // Longer than anybody waits: an answer that comes late is still one. What has none by then is the index's to tell.
        let deadline = self.clock.deadline_in(self.config.load_timeout.saturating_mul(2));
        let answer = self.orders.call::<ManagementResponse>(REGISTER, &self.registration(&model), deadline).await;
        let registered = match answer {
            // One that is registered already is no error but without a word; nor is it new.
            Err(RpcError::Said { code: Code::Unknown, message }) if message.is_empty() && self.describe(&model).await.is_ok() => Ok(()),
            other => other.map(drop),
        };
        registered.map_err(|why| load_error(&model, why))?;
        Ok(Loaded { measured: self.measure(&model).await, max_concurrency: self.config.max_concurrency })
    }
}

fn load_error(model: &ModelId, why: RpcError) -> LoadError {
    // The second line of its words is the name of a class.
    let first_line = |words: &str| words.lines().next().unwrap_or_default().to_owned();
    loads::load_error(KIND, why, format!("{KIND} did not answer the load of {model}"), first_line)
}

#[async_trait]
impl Runtime for TorchServe {
    fn info(&self) -> &RuntimeInfo {
        &self.inner.info
    }

    fn estimate(&self, artifacts: &Artifacts) -> Option<Footprint> {
        Some(Footprint::host(artifacts.size.percent(self.inner.config.size_percent)))
    }

    async fn lay_out(&self, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        let (store, model, artifacts) = (self.inner.config.store.clone(), model.clone(), artifacts.clone());
        let (laid_out, _plan) = layout::made(move || Source::lay_out(&model, &artifacts, &store, layout::torchserve::plan)).await?;
        Ok(laid_out)
    }

    async fn load(&self, model: &Registration, _laid_out: &LaidOut) -> Result<Loaded, LoadError> {
        let (inner, id) = (&self.inner, &model.id);
        if let Some(loaded) = inner.loads.loaded(id)
            && self.index().await.is_ok_and(|index| index.get(id) == Some(IndexEntry::Ready))
        {
            return Ok(loaded);
        }
        let (load, unload) = (Arc::clone(inner).load(id.clone()), Arc::clone(inner).unload(id.clone()));
        inner.loads.join(id, load, unload).await
    }

    async fn size(&self, model: &ModelId) -> Option<Footprint> {
        let Inner { clock, .. } = &*self.inner;
        let measured = async {
            loop {
                clock.sleep(MEASURE_AGAIN).await;
                if let Some(measured) = self.inner.measure(model).await {
                    return measured;
                }
            }
        };
        clock.until(clock.deadline_in(MEASURED), measured).await
    }

    async fn unload(&self, model: &ModelId) -> Result<(), UnloadError> {
        if self.inner.loads.give_up(model) {
            return Ok(());
        }
        let told = Arc::clone(&self.inner).unload(model.clone()).await;
        if told.is_ok() {
            self.inner.loads.forget(model);
        }
        told
    }

    async fn clear_layout(&self, model: &ModelId) {
        layout::cleared(&self.inner.config.store, archive(model)).await;
    }

    async fn index(&self) -> Result<Index, RuntimeDown> {
        let loads = &self.inner.loads;
        loads.changes.look();
        // What was sent may still be on its way there, and what has just ended may be missing in an answer made before.
        let mut loading = loads.under_way();
        let models = self.inner.models().await.map_err(|why| RuntimeDown(why.to_string()))?;
        loading.extend(loads.under_way());
        let held = models.iter().filter_map(|name| Some((ModelId::new(name).ok()?, IndexEntry::Ready)));
        Ok(Index::of(held.chain(loading.into_iter().map(|model| (model, IndexEntry::Loading)))))
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

/// By TorchServe's own API: each input is an entry of a prediction's inputs, its raw bytes (of a text, the text), and what the
/// handler answers is one output `prediction` of BYTES.
#[async_trait]
impl Infer for TorchServe {
    async fn infer(&self, model: &ModelId, request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, InferError> {
        let id = request.id.clone();
        let input = inputs_of(request, |_any| Ok(()))?.into_iter().map(|tensor| {
            let alone = tensor.datatype == crate::tensor::Datatype::Bytes && tensor.shape.iter().product::<usize>() == 1;
            (tensor.name, if alone { tensor.raw.slice(LENGTH..).to_vec() } else { tensor.raw.to_vec() })
        });
        let request = PredictionRequest { model_name: model.to_string(), model_version: String::new(), input: input.collect() };
        let answer = self.inner.requests.call::<PredictionResponse>(PREDICTIONS, &request, deadline).await;
        let prediction = answer.map_err(|why| open_inference::error(model, why))?.prediction;
        Ok(ModelInferResponse {
            model_name: model.to_string(),
            id,
            outputs: vec![InferOutputTensor {
                name: "prediction".to_owned(),
                datatype: "BYTES".to_owned(),
                shape: vec![1],
                ..InferOutputTensor::default()
            }],
            raw_output_contents: vec![element(&prediction)],
            ..ModelInferResponse::default()
        })
    }

    async fn metadata(&self, model: &ModelId) -> Result<ModelMetadataResponse, InferError> {
        // It knows neither inputs nor outputs: those are the handler's affair.
        self.inner.describe(model).await.map_err(|why| open_inference::error(model, why))?;
        Ok(ModelMetadataResponse { name: model.to_string(), platform: "pytorch_mar".to_owned(), ..ModelMetadataResponse::default() })
    }
}

/// Of the length before an element of BYTES.
const LENGTH: usize = 4;

/// An element of BYTES as raw contents have it.
fn element(bytes: &[u8]) -> Bytes {
    let mut element = BytesMut::with_capacity(LENGTH + bytes.len());
    element.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    element.put_slice(bytes);
    element.freeze()
}

#[cfg(test)]
mod tests;
