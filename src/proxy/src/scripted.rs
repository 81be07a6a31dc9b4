//! Stand-ins for residency and runtime that do what a test says, and a frontend over both.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_adapters::{Infer, InferError};
use berth_plan::managed::{Doing, ModelStanding, NameStanding, NewModel, Refused, SetName};
use berth_proto::inference::model_infer_response::InferOutputTensor;
use berth_proto::inference::model_metadata_response::TensorMetadata;
use berth_proto::inference::{ModelInferRequest, ModelInferResponse, ModelMetadataResponse};
use berth_registry::{Management, Resolved};
use berth_residency::{Ended, WaitError};
use berth_telemetry::{Clock, Metrics};
use berth_types::{Deadline, Failure, Location, ModelFormat, ModelId, Name, Placement, Reason, Registration, Retry, Step, StorageRef, UnixMillis};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::route::Models;
use crate::{Frontend, ProxyConfig};

pub(crate) fn registration(id: &str) -> Arc<Registration> {
    Arc::new(Registration::new(
        ModelId::new(id).unwrap(),
        ModelFormat { name: "onnx".into(), version: None },
        Placement::Format { protocol: None },
        StorageRef { key: None, parameters: Arc::default(), path: "m".into(), schema_path: None },
        None,
    ))
}

pub(crate) fn failure(reason: Reason, retry: Retry) -> Arc<Failure> {
    Arc::new(Failure {
        reason,
        step: Step::Load,
        location: Location::of_pod_name("pod-1"),
        model: ModelId::new("bad__isvc-0000000000").unwrap(),
        message: "not a model".to_owned(),
        time: UnixMillis(0),
        retry,
    })
}

/// What `ensure_loaded` does.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    After(Duration),
    Fails(WaitError),
    Never,
}

/// Models as a test wants them. "digits" stands for `digits__isvc-1111111111`; others can be added.
#[derive(Clone)]
pub(crate) struct FakeModels {
    pub(crate) names: Arc<Mutex<BTreeMap<String, Resolved>>>,
    pub(crate) load: Arc<Mutex<VecDeque<Load>>>,
    pub(crate) failures: Arc<Mutex<HashMap<ModelId, Arc<Failure>>>>,
    pub(crate) suspects: Arc<Mutex<Vec<String>>>,
    /// Those that never load.
    pub(crate) cold: Arc<Mutex<BTreeSet<ModelId>>>,
    /// Callers inside `ensure_loaded`.
    pub(crate) waiting: Arc<watch::Sender<usize>>,
    /// Guards that live.
    pub(crate) guards: Arc<watch::Sender<usize>>,
    pub(crate) revoked: Arc<watch::Sender<bool>>,
    /// Whoever looks for a suspect finds it where it should be.
    pub(crate) keeps: Arc<Mutex<bool>>,
    /// How many requests are served at a time, where there is such a limit.
    pub(crate) turns: Arc<Mutex<Option<Arc<Semaphore>>>>,
    /// How calls ended, as far as that was told.
    pub(crate) ended: Arc<Mutex<Vec<Ended>>>,
}

/// Counts down when dropped.
pub(crate) struct Counted(Arc<watch::Sender<usize>>, Arc<watch::Sender<bool>>, Turn);

/// What a guard has of the turns.
#[derive(Default)]
struct Turn {
    of: Option<Arc<Semaphore>>,
    has: Option<OwnedSemaphorePermit>,
    ended: Arc<Mutex<Vec<Ended>>>,
}

impl Counted {
    fn up(count: &Arc<watch::Sender<usize>>, revoked: &Arc<watch::Sender<bool>>) -> Self {
        count.send_modify(|count| *count += 1);
        Counted(Arc::clone(count), Arc::clone(revoked), Turn::default())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl FakeModels {
    /// One more that has a name, and never loads.
    pub(crate) fn never_loads(&self, name: &str) {
        let registration = registration(&format!("{name}__isvc-3333333333"));
        self.cold.lock().insert(registration.id.clone());
        self.names.lock().insert(name.to_owned(), Resolved::Model(registration));
    }

    pub(crate) fn new() -> Self {
        let digits = Resolved::Model(registration("digits__isvc-1111111111"));
        FakeModels {
            names: Arc::new(Mutex::new(BTreeMap::from([("digits".to_owned(), digits)]))),
            load: Arc::default(),
            failures: Arc::default(),
            suspects: Arc::default(),
            cold: Arc::default(),
            waiting: Arc::new(watch::Sender::new(0)),
            guards: Arc::new(watch::Sender::new(0)),
            revoked: Arc::new(watch::Sender::new(false)),
            keeps: Arc::default(),
            turns: Arc::default(),
            ended: Arc::default(),
        }
    }

    fn guard(&self) -> Counted {
        let mut guard = Counted::up(&self.guards, &self.revoked);
        guard.2.of.clone_from(&self.turns.lock());
        guard.2.ended.clone_from(&self.ended);
        guard
    }
}

impl Models for FakeModels {
    type Guard = Counted;

    fn resolve(&self, id: &str) -> Resolved {
        let named = self.names.lock().get(id).cloned();
        named.unwrap_or_else(|| self.version(id).map_or(Resolved::Unknown, Resolved::Model))
    }

    fn version(&self, id: &str) -> Option<Arc<Registration>> {
        self.names.lock().values().find_map(|resolved| match resolved {
            Resolved::Model(registration) if registration.id.as_str() == id => Some(Arc::clone(registration)),
            _ => None,
        })
    }

    fn try_acquire(&self, model: &ModelId) -> Option<Counted> {
        if self.cold.lock().contains(model) {
            return None;
        }
        self.revoked.send_replace(false);
        self.load.lock().is_empty().then(|| self.guard())
    }

    async fn ensure_loaded(&self, model: &Arc<Registration>, _deadline: Deadline) -> Result<Counted, WaitError> {
        let _waiting = Counted::up(&self.waiting, &self.revoked);
        if self.cold.lock().contains(&model.id) {
            std::future::pending::<()>().await;
        }
        let load = self.load.lock().pop_front();
        match load {
            None => {}
            Some(Load::After(delay)) => Clock::system().sleep(delay).await,
            Some(Load::Fails(error)) => return Err(error),
            Some(Load::Never) => std::future::pending().await,
        }
        Ok(self.guard())
    }

    async fn turn(guard: &mut Counted) -> Result<(), WaitError> {
        if let Some(turns) = &guard.2.of {
            guard.2.has = turns.clone().acquire_owned().await.ok();
        }
        Ok(())
    }

    fn end_turn(guard: &mut Counted) {
        guard.2.has = None;
    }

    async fn revoked(guard: &Counted) {
        let _ = guard.1.subscribe().wait_for(|revoked| *revoked).await;
    }

    fn witness(guard: &Counted) -> Box<dyn FnOnce(Ended) + Send + Sync> {
        let told = Arc::clone(&guard.2.ended);
        Box::new(move |ended| told.lock().push(ended))
    }

    fn is_on_probation(_guard: &Counted) -> bool {
        true
    }

    async fn suspect(&self, model: &ModelId) {
        self.suspects.lock().push(model.to_string());
        // Whoever looks finds it true, unless told otherwise.
        self.revoked.send_replace(!*self.keeps.lock());
    }

    fn failure(&self, model: &ModelId) -> Option<Arc<Failure>> {
        self.failures.lock().get(model).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.names.lock().keys().cloned().collect()
    }
}

/// Echoes raw inputs as outputs, or answers what it was told to.
#[derive(Clone, Default)]
pub(crate) struct FakeInfer {
    pub(crate) answers: Arc<Mutex<VecDeque<Result<ModelInferResponse, InferError>>>>,
    pub(crate) takes: Arc<Mutex<Duration>>,
    pub(crate) requests: Arc<Mutex<Vec<ModelInferRequest>>>,
    pub(crate) running: Arc<watch::Sender<usize>>,
    /// While true, no inference ends.
    pub(crate) held: Arc<watch::Sender<bool>>,
}

#[async_trait]
impl Infer for FakeInfer {
    async fn infer(&self, model: &ModelId, request: ModelInferRequest, _deadline: Deadline) -> Result<ModelInferResponse, InferError> {
        self.requests.lock().push(request.clone());
        let _running = Counted::up(&self.running, &Arc::default());
        let takes = *self.takes.lock();
        if !takes.is_zero() {
            Clock::system().sleep(takes).await;
        }
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        if let Some(answer) = self.answers.lock().pop_front() {
            return answer;
        }
        let outputs = request.inputs.into_iter().map(|input| InferOutputTensor {
            name: input.name,
            datatype: input.datatype,
            shape: input.shape,
            ..InferOutputTensor::default()
        });
        Ok(ModelInferResponse {
            model_name: model.to_string(),
            outputs: outputs.collect(),
            raw_output_contents: request.raw_input_contents,
            ..ModelInferResponse::default()
        })
    }

    async fn metadata(&self, model: &ModelId) -> Result<ModelMetadataResponse, InferError> {
        let tensor = |name: &str, datatype: &str| TensorMetadata { name: name.to_owned(), datatype: datatype.to_owned(), shape: vec![-1, 64] };
        Ok(ModelMetadataResponse {
            name: model.to_string(),
            versions: vec!["1".to_owned()],
            platform: "fake".to_owned(),
            inputs: vec![tensor("x", "FP32")],
            outputs: vec![tensor("y", "INT64")],
        })
    }
}

/// A frontend over fakes.
pub(crate) struct Rig {
    pub(crate) models: FakeModels,
    pub(crate) infer: FakeInfer,
    pub(crate) metrics: Metrics,
    pub(crate) down: Arc<Mutex<Option<String>>>,
    pub(crate) frontend: Arc<Frontend<FakeModels>>,
}

pub(crate) fn rig() -> Rig {
    rig_with(ProxyConfig::default())
}

pub(crate) fn rig_with(config: ProxyConfig) -> Rig {
    let (models, infer, metrics, down) = (FakeModels::new(), FakeInfer::default(), Metrics::default(), Arc::new(Mutex::new(None::<String>)));
    let ready = Arc::new({
        let down = Arc::clone(&down);
        move || down.lock().clone().map_or(Ok(()), Err)
    });
    let frontend = Frontend::new(models.clone(), Arc::new(infer.clone()), Clock::system(), &metrics, config, ready);
    Rig { models, infer, metrics, down, frontend }
}

/// Carries nothing out that it is called for.
pub(crate) struct Nobody;

#[async_trait]
impl Management for Nobody {
    async fn register(&self, _model: NewModel) -> Result<(), Refused> {
        Err(Refused::Late)
    }
    async fn unregister(&self, _id: ModelId) -> Result<(), Refused> {
        Err(Refused::Late)
    }
    fn model(&self, _id: &str) -> Result<ModelStanding, Refused> {
        Err(Refused::Late)
    }
    async fn model_is(&self, _id: &str, _wanted: &[Doing]) -> ModelStanding {
        std::future::pending().await
    }
    async fn load(&self, _id: &str, _used: Option<UnixMillis>) {}
    async fn set_name(&self, _ask: SetName) -> Result<(), Refused> {
        Err(Refused::Late)
    }
    async fn delete_name(&self, _name: Name, _owner: Option<Arc<str>>) -> Result<(), Refused> {
        Err(Refused::Late)
    }
    fn name(&self, _name: &str, _owner: Option<&str>) -> Result<Option<NameStanding>, Refused> {
        Err(Refused::Late)
    }
    async fn name_settles(&self, _name: &str, _target: &ModelId) {}
}
