//! OpenVINO Model Server.
//!
//! It has no call to load a model: it reads one configuration file that lists all of them, when it is told to over REST, and
//! answers when everything is loaded and unloaded. [`desk`] owns that file and gives the orders; requests go over gRPC, by the
//! Open Inference Protocol. Its states are its index: `END`, or a model that is not listed, takes no memory.

mod desk;
mod file;
mod rest;
mod states;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_telemetry::{Clock, Net};
use berth_types::{Deadline, Footprint, ModelId, Registration};
use berth_upstream::{Server, Target};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use self::desk::Desk;
use self::rest::{Answer, Api, Rest};
use self::states::{State, States, error, states};
use crate::layout::{self, Source};
use crate::loads::{LOOK_AGAIN, Loads};
use crate::open_inference;
use crate::rpc::{Rpc, RpcError};
use crate::{
    Artifacts, Health, Index, IndexEntry, Infer, InferError, LaidOut, LoadError, Loaded, Runtime, RuntimeDown, RuntimeInfo, StartError, UnloadError,
    beat,
};

/// How the server is used.
#[derive(Clone, Debug)]
pub struct OvmsConfig {
    /// Name of the ServingRuntime that describes it.
    pub name: Arc<str>,
    /// The folder that models are laid out in. All of it is Berth's: what lies there at start is removed.
    pub repository: PathBuf,
    /// The configuration file that the server was started with. All of it is Berth's.
    pub config_file: PathBuf,
    /// What it can hold, where that is known.
    pub capacity: Option<Footprint>,
    /// Loads at a time: as many as may go out with one reload.
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

/// An OpenVINO Model Server beside this process. Cheap to clone.
#[derive(Clone)]
pub struct OvmsServer {
    inner: Arc<Inner>,
}

struct Inner {
    info: RuntimeInfo,
    config: OvmsConfig,
    api: Arc<dyn Api>,
    rpc: Rpc,
    clock: Clock,
    desk: Desk,
    loads: Arc<Loads>,
    health: watch::Receiver<Health>,
    ask_now: Arc<Notify>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

const KIND: &str = "OpenVINO Model Server";
/// How often a server that is not there yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// How long any call but a reload or an inference may take.
const USUAL: Duration = Duration::from_secs(10);

impl OvmsServer {
    /// Waits for the server at the REST port `orders`, has it unload what it holds and empties its folder of models. It takes
    /// inference at `requests`.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: OvmsConfig, orders: Target, requests: Server, clock: Clock, net: Arc<dyn Net>) -> Result<Self, StartError> {
        let api = Arc::new(Rest { target: orders.clone(), net, clock: clock.clone() });
        Self::start_with(config, api, orders.to_string(), Rpc::new(requests, clock.clone()), clock).await
    }

    async fn start_with(config: OvmsConfig, api: Arc<dyn Api>, target: String, rpc: Rpc, clock: Clock) -> Result<Self, StartError> {
        // First of all, so that a server that starts meanwhile loads nothing.
        let claimed = file::claim(&config.config_file, &config.repository).await;
        claimed.map_err(|why| StartError::Repository { path: config.config_file.display().to_string(), why })?;
        let start = Start { api: &*api, clock: &clock, target, deadline: clock.deadline_in(config.start_timeout) };
        start.answers(config.start_timeout).await?;
        start.holds_nothing().await?;
        layout::claimed(&config.repository).await?;
        // Older servers do not say it; then it is left open.
        let version = open_inference::server(&rpc, clock.deadline_in(USUAL)).await.map_or_else(|_| "unknown".to_owned(), |server| server.version);

        let (told, health) = watch::channel(Health::Up);
        let loads = Loads::new(clock.clone());
        let patience = config.load_timeout.saturating_mul(2);
        let deps = desk::Deps { api: Arc::clone(&api), clock: clock.clone(), file: config.config_file.clone(), patience, health: health.clone() };
        let (desk, at_work) = desk::open(deps);
        let ask_now = Arc::<Notify>::default();
        let asking = {
            let (api, loads, limit, now) = (Arc::clone(&api), Arc::clone(&loads), config.load_timeout, Arc::clone(&ask_now));
            let ask = move |deadline| {
                let api = Arc::clone(&api);
                async move { api.config(deadline).await.map(drop) }
            };
            beat::listen(ask, clock.clone(), move || loads.any_within(limit), now, told)
        };
        let info = RuntimeInfo {
            name: Arc::clone(&config.name),
            version: version.into(),
            capacity: config.capacity.clone(),
            load_concurrency: config.load_concurrency,
            // What is ordered while the server reloads waits for that first. The desk says when the load itself is late.
            load_timeout: patience.saturating_mul(2),
            reads_files_while_loaded: true,
        };
        let tasks = [AbortOnDropHandle::new(tokio::spawn(at_work)), AbortOnDropHandle::new(tokio::spawn(asking))];
        Ok(OvmsServer { inner: Arc::new(Inner { info, config, api, rpc, clock, desk, loads, health, ask_now, _tasks: tasks }) })
    }
}

/// What is asked of the server before it is used.
struct Start<'a> {
    api: &'a dyn Api,
    clock: &'a Clock,
    target: String,
    deadline: Deadline,
}

impl Start<'_> {
    fn unfit(&self, why: String) -> StartError {
        StartError::Unfit { kind: KIND, target: self.target.clone(), why }
    }

    async fn answers(&self, waited: Duration) -> Result<(), StartError> {
        let mut last = "it was not asked".to_owned();
        let asking = async {
            loop {
                match self.api.config(self.clock.deadline_in(USUAL)).await {
                    Ok(answer) if read(&answer).is_ok() => return Ok(()),
                    Ok(Answer { status: 404, .. }) => return Err(self.unfit("has no /v1/config: is this its REST port?".to_owned())),
                    Ok(answer) => last = format!("{} {}", answer.status, error(&answer.body)),
                    Err(RpcError::Unreadable(why)) => return Err(self.unfit(format!("is no such server: {why}"))),
                    Err(why) => last = why.to_string(),
                }
                self.clock.sleep(ASK_AGAIN).await;
            }
        };
        let answered = self.clock.until(self.deadline, asking).await;
        answered.unwrap_or_else(|| Err(StartError::Away { kind: KIND, target: self.target.clone(), waited, why: last }))
    }

    /// Has it read the file, which lists nothing, until it holds nothing.
    async fn holds_nothing(&self) -> Result<(), StartError> {
        let does_not = |why: &dyn std::fmt::Display| self.unfit(format!("does not read its configuration anew: {why}"));
        match self.api.reload(self.deadline).await {
            Ok(answer) if answer.is_good() => {}
            Ok(answer) => return Err(does_not(&format!("{} {}", answer.status, error(&answer.body)))),
            Err(why) => return Err(does_not(&why)),
        }
        loop {
            let answer = self.api.config(self.clock.deadline_in(USUAL)).await.map_err(|why| does_not(&why))?;
            let seen = read(&answer).map_err(|why| does_not(&why))?;
            let Some((held, _)) = seen.into_iter().find(|(_, state)| matches!(state, State::Is(_))) else { return Ok(()) };
            if self.clock.until(self.deadline, self.clock.sleep(LOOK_AGAIN)).await.is_none() {
                return Err(self.unfit(format!("still holds {held}: was it started with another configuration file?")));
            }
        }
    }
}

/// The states in an answer.
fn read(answer: &Answer) -> Result<States, String> {
    if answer.is_good() { states(&answer.body) } else { Err(format!("{} {}", answer.status, error(&answer.body))) }
}

impl Inner {
    async fn unload(self: Arc<Self>, model: ModelId) -> Result<(), UnloadError> {
        self.desk.unload(model.to_string()).await
    }

    async fn load(self: Arc<Self>, model: ModelId, folder: PathBuf) -> Result<Loaded, LoadError> {
        self.desk.load(model.to_string(), folder).await?;
        Ok(Loaded { measured: None, max_concurrency: self.config.max_concurrency })
    }
}

#[async_trait]
impl Runtime for OvmsServer {
    fn info(&self) -> &RuntimeInfo {
        &self.inner.info
    }

    fn estimate(&self, artifacts: &Artifacts) -> Option<Footprint> {
        Some(Footprint::host(artifacts.size.percent(self.inner.config.size_percent)))
    }

    async fn lay_out(&self, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        let (root, model, artifacts) = (self.inner.config.repository.clone(), model.clone(), artifacts.clone());
        let (laid_out, _plan) = layout::made(move || Source::lay_out(&model, &artifacts, &root, layout::ovms::plan)).await?;
        Ok(laid_out)
    }

    async fn load(&self, model: &Registration, laid_out: &LaidOut) -> Result<Loaded, LoadError> {
        let (inner, id) = (&self.inner, &model.id);
        if let Some(loaded) = inner.loads.loaded(id)
            && self.index().await.is_ok_and(|index| index.get(id) == Some(IndexEntry::Ready))
        {
            return Ok(loaded);
        }
        let load = Arc::clone(inner).load(id.clone(), laid_out.path.clone());
        let unload = Arc::clone(inner).unload(id.clone());
        inner.loads.join(id, load, unload).await
    }

    async fn unload(&self, model: &ModelId) -> Result<(), UnloadError> {
        if self.inner.loads.give_up(model) {
            self.inner.desk.withdraw(model.to_string()).await;
            return Ok(());
        }
        let told = Arc::clone(&self.inner).unload(model.clone()).await;
        if told.is_ok() {
            self.inner.loads.forget(model);
        }
        told
    }

    /// What is ordered while the server reloads waits for that first.
    fn unloads_within(&self) -> Option<Duration> {
        Some(self.inner.config.load_timeout.saturating_mul(2))
    }

    async fn clear_layout(&self, model: &ModelId) {
        layout::cleared(&self.inner.config.repository, layout::name::server_name(model)).await;
    }

    async fn index(&self) -> Result<Index, RuntimeDown> {
        let Inner { api, loads, clock, desk, .. } = &*self.inner;
        loads.changes.look();
        // What was ordered may not have reached it yet, and what has just ended may be missing in an answer made before.
        let mut loading = loads.under_way();
        let answer = api.config(clock.deadline_in(USUAL)).await.map_err(|why| RuntimeDown(why.to_string()))?;
        let seen = read(&answer).map_err(RuntimeDown)?;
        loading.extend(loads.under_way());
        let held = seen.into_iter().filter_map(|(name, state)| match state {
            // It will be told: until then a request is not for it any more.
            State::Is(_) if desk.is_leaving(&name) => Some((ModelId::new(&name).ok()?, IndexEntry::Unloading)),
            State::Is(entry) => Some((ModelId::new(&name).ok()?, entry)),
            State::Absent | State::Failed(_) => None,
        });
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

#[async_trait]
impl Infer for OvmsServer {
    async fn infer(&self, model: &ModelId, request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, InferError> {
        open_inference::infer(&self.inner.rpc, model, request, deadline).await
    }

    async fn metadata(&self, model: &ModelId) -> Result<ModelMetadataResponse, InferError> {
        open_inference::metadata(&self.inner.rpc, model, self.inner.clock.deadline_in(USUAL)).await
    }
}

#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
