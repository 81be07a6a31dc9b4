//! What both protocols do with a request once they have read it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use berth_adapters::{Infer, InferError};
use berth_proto::inference::{
    ModelInferRequest, ModelInferResponse, ModelMetadataResponse, ModelStreamInferResponse, ServerMetadataResponse,
    model_infer_request::InferInputTensor,
};
use berth_residency::WaitError;
use berth_telemetry::{Clock, Gauge, Metrics, Net};
use berth_types::{Deadline, ModelId};
use berth_upstream::{Server, Target};
use http::HeaderMap;
use parking_lot::RwLock;
use prost::Message as _;
use tonic::Code;

use crate::budget::Budget;
use crate::codes::{Fault, Quoted};
use crate::context::{Contexts, LogHeaders};
use crate::cores::{Cores, Place, Way};
use crate::health::Ready;
use crate::id::Asked;
use crate::mesh::Managing;
use crate::meters::Meters;
use crate::methods::Methods;
use crate::payloads::{Observed, Payloads};
use crate::route::{self, Here, Models};
use crate::waiting::Waiting;
use crate::{ProxyConfig, codes};

/// How often a request is routed again after its model went away between being found and being asked.
const REROUTES: u32 = 2;
/// How long a try waits at most for the look at what the runtime holds.
const LOOK: Duration = Duration::from_secs(1);
/// Larger typed contents are not kept for a second try. (Raw contents are shared, not copied, and do not count.)
const KEPT: usize = 256 * 1024;
/// What a runtime that counts no versions calls the one it has.
const FIRST_VERSION: &str = "1";

/// The method of one inference, and of several.
pub(crate) const MODEL_INFER: &str = "/inference.GRPCInferenceService/ModelInfer";
pub(crate) const MODEL_STREAM_INFER: &str = "/inference.GRPCInferenceService/ModelStreamInfer";

/// How an inference was asked for.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    /// The method: [`MODEL_INFER`] or [`MODEL_STREAM_INFER`].
    pub(crate) path: &'static str,
    /// What goes with it to a runtime that is no part of this process.
    pub(crate) metadata: &'a HeaderMap,
}

impl Call<'_> {
    /// Tells what came of it, as the answer of its method.
    fn ended(&self, observed: Observed, outcome: &Result<ModelInferResponse, Fault>) {
        match outcome {
            Err(fault) => observed.failed(fault.verdict().code),
            Ok(answer) if self.path == MODEL_STREAM_INFER => {
                let answer = ModelStreamInferResponse { error_message: String::new(), infer_response: Some(answer.clone()) };
                observed.response(&HeaderMap::new(), answer.encoded_len(), || answer.encode_to_vec().into());
            }
            Ok(answer) => observed.response(&HeaderMap::new(), answer.encoded_len(), || answer.encode_to_vec().into()),
        }
    }
}

/// Where a runtime that is no part of this process is reached.
pub struct RuntimeServer {
    /// Its address.
    pub target: Target,
    /// How it is connected to.
    pub connections: berth_upstream::Config,
    /// What connections are made with.
    pub net: Arc<dyn Net>,
    /// The methods that clients may call.
    pub methods: Methods,
}

/// What requests are answered by.
enum Runtime {
    /// A part of this process.
    Here(Arc<dyn Infer>),
    /// No part of this process: calls are passed on to it as they come.
    There {
        way: Arc<Way>,
        /// What drives the connections of the gRPC port.
        cores: Cores,
    },
}

/// The inference service of this process, whatever the protocol.
pub struct Frontend<M = Here> {
    pub(crate) models: M,
    runtime: Runtime,
    methods: RwLock<Arc<Methods>>,
    pub(crate) clock: Clock,
    pub(crate) config: ProxyConfig,
    pub(crate) meters: Meters,
    pub(crate) ready: Ready,
    /// What the requests of both ports may hold.
    pub(crate) bodies: Budget,
    /// What those of them may hold that wait for a model.
    pub(crate) waiting: Waiting,
    /// Who looks at requests and answers; mostly nobody.
    payloads: OnceLock<Payloads>,
    contexts: OnceLock<Contexts>,
    /// Who carries out calls of `mmesh.ModelMesh`.
    pub(crate) managing: OnceLock<Managing>,
}

impl<M: Models> Frontend<M> {
    /// Puts a service together; nothing starts yet.
    pub fn new(models: M, infer: Arc<dyn Infer>, clock: Clock, metrics: &Metrics, config: ProxyConfig, ready: Ready) -> Arc<Self> {
        Self::over(models, Runtime::Here(infer), Methods::default(), clock, metrics, config, ready)
    }

    /// The same before a runtime that is no part of this process: calls are passed on to it as they come, and requests of
    /// the REST port as the Open Inference Protocol has them. Starts as many threads as `config` says.
    pub fn before(models: M, runtime: RuntimeServer, clock: Clock, metrics: &Metrics, config: ProxyConfig, ready: Ready) -> Arc<Self> {
        let RuntimeServer { target, connections, net, methods } = runtime;
        // Two at least, lest answers that nobody reads fill the window of the only one.
        let each = connections.connections.div_ceil(config.threads.max(1)).max(2);
        let of_each = berth_upstream::Config { connections: each, ..connections.clone() };
        let of_thread = |driver| Server::driven_by(driver, target.clone(), of_each.clone(), clock.clone(), Arc::clone(&net));
        let cores = Cores::start(config.threads, of_thread);
        let way = Way::to(Server::new(target, connections, clock.clone(), net));
        Self::over(models, Runtime::There { way, cores }, methods, clock, metrics, config, ready)
    }

    fn over(models: M, runtime: Runtime, methods: Methods, clock: Clock, metrics: &Metrics, config: ProxyConfig, ready: Ready) -> Arc<Self> {
        let (bodies, waiting) = budgets(&config, metrics);
        Arc::new(Frontend {
            models,
            runtime,
            methods: RwLock::new(Arc::new(methods)),
            clock,
            config,
            meters: Meters::new(metrics),
            ready,
            bodies,
            waiting,
            payloads: OnceLock::new(),
            contexts: OnceLock::new(),
            managing: OnceLock::new(),
        })
    }

    /// The way to a runtime that is no part of this process, for calls that have none of their own.
    pub(crate) fn way(&self) -> Option<&Arc<Way>> {
        match &self.runtime {
            Runtime::Here(_) => None,
            Runtime::There { way, .. } => Some(way),
        }
    }

    /// Where the next connection of the gRPC port is driven; `None`: where it was accepted.
    pub(crate) fn place(&self) -> Option<Place> {
        match &self.runtime {
            Runtime::Here(_) => None,
            Runtime::There { cores, .. } => cores.place(),
        }
    }

    /// The methods that clients may call.
    pub(crate) fn methods(&self) -> Arc<Methods> {
        Arc::clone(&self.methods.read())
    }

    /// Other methods from here on: the runtime has restarted, or the data plane's configuration has changed.
    pub fn set_methods(&self, methods: Methods) {
        *self.methods.write() = Arc::new(methods);
    }

    /// Shows requests and answers to payload processors from here on. Only the first call counts.
    pub fn show_payloads(&self, payloads: Payloads) {
        let _ = self.payloads.set(payloads);
    }

    /// Which headers become fields of the log; before the first request. Only the first call counts.
    pub fn log_headers(&self, headers: LogHeaders) {
        let _ = self.contexts.set(Contexts::new(headers));
    }

    /// The log context of a request with these headers.
    pub(crate) fn context(&self, headers: &HeaderMap) -> Option<tracing::Span> {
        self.contexts.get_or_init(|| Contexts::new(LogHeaders::default())).of(headers)
    }

    /// Looks at a call, when some payload processor wants it.
    pub(crate) fn observe(&self, path: &str, asked: &Asked<'_>, model: &ModelId, headers: &HeaderMap) -> Option<Observed> {
        self.payloads.get()?.observe(path, asked, model, headers)
    }

    /// The deadline of a request with these headers: what `grpc-timeout` asks for, at most the longest there is, and the
    /// default when it asks for nothing.
    ///
    /// # Errors
    /// The header cannot be read.
    pub(crate) fn deadline(&self, headers: &HeaderMap) -> Result<Deadline, Fault> {
        deadline(headers, &self.config, &self.clock)
    }

    /// A call without metadata.
    #[cfg(test)]
    pub(crate) async fn infer(&self, asked: &Asked<'_>, request: ModelInferRequest, deadline: Deadline) -> Result<ModelInferResponse, Fault> {
        self.infer_with(asked, request, Call { path: MODEL_INFER, metadata: &HeaderMap::new() }, deadline).await
    }

    /// Runs the model on a copy that is here, loaded first where it must be.
    ///
    /// # Errors
    /// [`Fault`].
    pub(crate) async fn infer_with(
        &self,
        asked: &Asked<'_>,
        request: ModelInferRequest,
        call: Call<'_>,
        deadline: Deadline,
    ) -> Result<ModelInferResponse, Fault> {
        let mut observed = None;
        let outcome = match &self.runtime {
            Runtime::Here(infer) => self.infer_here(&**infer, asked, request, call, deadline, &mut observed).await,
            Runtime::There { way, .. } => self.infer_behind(&way.server, asked, request, call, deadline, &mut observed).await,
        };
        if let Some(observed) = observed {
            call.ended(observed, &outcome);
        }
        outcome
    }

    async fn infer_behind(
        &self,
        server: &Server,
        asked: &Asked<'_>,
        request: ModelInferRequest,
        call: Call<'_>,
        deadline: Deadline,
        observed: &mut Option<Observed>,
    ) -> Result<ModelInferResponse, Fault> {
        if !request.model_version.is_empty() {
            let about = self.metadata_there(server, asked, call.metadata, deadline).await?;
            known_version(asked, &request.model_version, &about)?;
        }
        self.infer_there(server, asked, request, call, deadline, observed).await
    }

    /// Shows a request to whoever looks at it, once, when its model is known.
    pub(crate) fn observe_once(
        &self,
        observed: &mut Option<Observed>,
        call: Call<'_>,
        asked: &Asked<'_>,
        model: &ModelId,
        request: &ModelInferRequest,
    ) {
        if observed.is_none() {
            *observed = self.observe(call.path, asked, model, call.metadata);
            if let Some(observed) = observed {
                observed.request(request.encoded_len(), || request.encode_to_vec().into());
            }
        }
    }

    async fn infer_here(
        &self,
        infer: &dyn Infer,
        asked: &Asked<'_>,
        request: ModelInferRequest,
        call: Call<'_>,
        deadline: Deadline,
        observed: &mut Option<Observed>,
    ) -> Result<ModelInferResponse, Fault> {
        let (id, mut request) = (request.id.clone(), request);
        let mut reroutes = REROUTES;
        loop {
            let registration = route::registration(&self.models, asked)?;
            let model = &registration.id;
            let mut guard = match route::acquire(&self.models, &registration, &self.waiting, || weight_of(&request), &self.clock, deadline).await {
                Err(Fault::Wait { error: WaitError::Retired, .. }) if reroutes > 0 => {
                    reroutes -= 1;
                    continue;
                }
                other => other?,
            };
            self.check_version(infer, asked, model, &request.model_version, deadline).await?;
            let kept = (reroutes > 0 && typed_bytes(&request.inputs) <= KEPT).then(|| request.clone());
            self.observe_once(observed, call, asked, model, &request);
            let since = self.clock.now();
            let answer = tokio::select! {
                biased;
                answer = self.clock.until(deadline, infer.infer(model, request, deadline)) => answer,
                () = M::revoked(&guard) => return Err(Fault::Revoked(Quoted::new(model.as_str()))),
            };
            match answer.unwrap_or(Err(InferError::DeadlineExceeded)) {
                Ok(mut response) => {
                    self.meters.runtime.observe(self.clock.now().saturating_duration_since(since));
                    response.id = id;
                    return Ok(response);
                }
                Err(error @ InferError::NotLoaded(_)) => {
                    self.lost(model, &mut guard, deadline).await;
                    let Some(again) = kept else { return Err(infer_fault(model, error)) };
                    reroutes -= 1;
                    request = again;
                }
                Err(error) => return Err(infer_fault(model, error)),
            }
        }
    }

    /// Inputs and outputs of a model, which is loaded first where it must be.
    ///
    /// # Errors
    /// [`Fault`].
    pub(crate) async fn metadata(&self, asked: &Asked<'_>, version: &str, deadline: Deadline) -> Result<ModelMetadataResponse, Fault> {
        self.metadata_with(asked, version, &HeaderMap::new(), deadline).await
    }

    /// The same; `metadata` goes to a runtime that is no part of this process.
    ///
    /// # Errors
    /// [`Fault`].
    pub(crate) async fn metadata_with(
        &self,
        asked: &Asked<'_>,
        version: &str,
        metadata: &HeaderMap,
        deadline: Deadline,
    ) -> Result<ModelMetadataResponse, Fault> {
        let about = match &self.runtime {
            Runtime::Here(infer) => self.metadata_here(&**infer, asked, deadline).await?,
            Runtime::There { way, .. } => self.metadata_there(&way.server, asked, metadata, deadline).await?,
        };
        known_version(asked, version, &about).map(|()| about)
    }

    async fn metadata_here(&self, infer: &dyn Infer, asked: &Asked<'_>, deadline: Deadline) -> Result<ModelMetadataResponse, Fault> {
        let mut reroutes = REROUTES;
        loop {
            let registration = route::registration(&self.models, asked)?;
            let mut guard = match route::acquire(&self.models, &registration, &self.waiting, || 0, &self.clock, deadline).await {
                Err(Fault::Wait { error: WaitError::Retired, .. }) if reroutes > 0 => {
                    reroutes -= 1;
                    continue;
                }
                other => other?,
            };
            match self.runtime_metadata(infer, &registration.id, deadline).await {
                Ok(metadata) => return Ok(metadata),
                Err(InferError::NotLoaded(_)) if reroutes > 0 => {
                    self.lost(&registration.id, &mut guard, deadline).await;
                    reroutes -= 1;
                }
                Err(error) => return Err(infer_fault(&registration.id, error)),
            }
        }
    }

    /// The runtime does not hold what is thought to be loaded. Whoever owns the copies is told, and looks; when it is true
    /// the guard is revoked, and the next try finds a fresh load instead of the same lost copy. Nobody waits meanwhile for a
    /// turn that this request has.
    ///
    /// Whether it is true, as far as that was seen in time.
    pub(crate) async fn lost(&self, model: &ModelId, guard: &mut M::Guard, deadline: Deadline) -> bool {
        M::end_turn(guard);
        let told_and_looked = async {
            self.models.suspect(model).await;
            M::revoked(guard).await;
        };
        self.clock.until(deadline.min(self.clock.deadline_in(LOOK)), told_and_looked).await.is_some()
    }

    async fn runtime_metadata(&self, infer: &dyn Infer, model: &ModelId, deadline: Deadline) -> Result<ModelMetadataResponse, InferError> {
        self.clock.until(deadline, infer.metadata(model)).await.unwrap_or(Err(InferError::DeadlineExceeded))
    }

    /// Only requests that name a version pay for the look at what there is.
    async fn check_version(&self, infer: &dyn Infer, asked: &Asked<'_>, model: &ModelId, version: &str, deadline: Deadline) -> Result<(), Fault> {
        if version.is_empty() {
            return Ok(());
        }
        match self.runtime_metadata(infer, model, deadline).await {
            Ok(metadata) => known_version(asked, version, &metadata),
            // Gone in between: the inference that follows meets it too and is routed again.
            Err(InferError::NotLoaded(_)) => Ok(()),
            Err(error) => Err(infer_fault(model, error)),
        }
    }

    /// Whether the model can serve: it is registered, some runtime takes it, and its last load did not fail. A model that
    /// is not loaded now is ready: its first request loads it.
    ///
    /// Only a runtime knows which versions a model has, and nothing is loaded to answer this: known are the first, and the
    /// id of the model, which is a version of its name.
    ///
    /// # Errors
    /// Unknown models and versions, and what keeps the others from serving.
    pub(crate) fn model_ready(&self, asked: &Asked<'_>, version: &str) -> Result<(), Fault> {
        let registration = route::registration(&self.models, asked)?;
        if !["", FIRST_VERSION, registration.id.as_str()].contains(&version) {
            return Err(unknown_version(asked, version, FIRST_VERSION.to_owned()));
        }
        match self.models.failure(&registration.id) {
            Some(failure) => Err(Fault::Unservable(failure)),
            None => Ok(()),
        }
    }

    pub(crate) fn server_metadata(&self) -> ServerMetadataResponse {
        ServerMetadataResponse {
            name: self.config.server_name.clone(),
            version: self.config.server_version.clone(),
            extensions: ["binary_tensor_data", "model_repository(index)"].map(str::to_owned).into(),
        }
    }
}

/// As [`Frontend::deadline`].
pub(crate) fn deadline(headers: &HeaderMap, config: &ProxyConfig, clock: &Clock) -> Result<Deadline, Fault> {
    let asked = match headers.get("grpc-timeout") {
        None => config.default_deadline,
        Some(value) => timeout(value.as_bytes()).ok_or_else(|| {
            let shown = Quoted::new(&String::from_utf8_lossy(value.as_bytes()));
            Fault::BadRequest(format!("grpc-timeout is {shown}, it must be up to 8 digits and one of H, M, S, m, u, n"))
        })?,
    };
    Ok(clock.deadline_in(asked.min(config.max_deadline)))
}

/// What requests may hold, and what those of them may that wait for a model.
fn budgets(config: &ProxyConfig, metrics: &Metrics) -> (Budget, Waiting) {
    let shown = |class| metrics.gauge(Gauge::BufferBytes, &[("class", class)]);
    (Budget::new(config.body_budget, shown("requests")), Waiting::of(config.body_budget, shown("requests-waiting")))
}

fn infer_fault(model: &ModelId, error: InferError) -> Fault {
    let fault = Fault::Infer { model: Quoted::new(model.as_str()), error };
    if matches!(fault.verdict().code, Code::Internal | Code::Unknown) {
        tracing::warn!(model = %model, code = codes::name(fault.verdict().code), error = %fault, "inference failed");
    }
    fault
}

fn known_version(asked: &Asked<'_>, version: &str, metadata: &ModelMetadataResponse) -> Result<(), Fault> {
    // The id of the version itself always names it, and a runtime that counts no versions has the first.
    let named = version == metadata.name || metadata.versions.iter().any(|known| known == version);
    if version.is_empty() || named || (metadata.versions.is_empty() && version == FIRST_VERSION) {
        return Ok(());
    }
    Err(unknown_version(asked, version, metadata.versions.join(", ")))
}

fn unknown_version(asked: &Asked<'_>, version: &str, known: String) -> Fault {
    Fault::UnknownVersion { model: Quoted::new(asked.as_str()), version: Quoted::new(version), known }
}

/// Bytes of all contents: what a request holds while it waits.
pub(crate) fn weight_of(request: &ModelInferRequest) -> u64 {
    let raw = request.raw_input_contents.iter().map(bytes::Bytes::len).sum::<usize>();
    (raw + typed_bytes(&request.inputs)) as u64
}

/// Bytes of typed contents, roughly: what a copy of the request would cost.
fn typed_bytes(inputs: &[InferInputTensor]) -> usize {
    let contents = inputs.iter().filter_map(|input| input.contents.as_ref());
    contents
        .map(|typed| {
            typed.bool_contents.len()
                + 4 * (typed.int_contents.len() + typed.uint_contents.len() + typed.fp32_contents.len())
                + 8 * (typed.int64_contents.len() + typed.uint64_contents.len() + typed.fp64_contents.len())
                + typed.bytes_contents.len() * size_of::<bytes::Bytes>()
        })
        .sum()
}

/// Reads `grpc-timeout`: up to eight digits and a unit.
fn timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use berth_adapters::InferError;
    use berth_registry::Resolved;
    use berth_telemetry::Counter;
    use berth_types::{ByteSize, Pool, Reason, Refusal, Retry};
    use bytes::Bytes;
    use futures::poll;

    use super::*;
    use crate::scripted::{Load, failure, registration, rig, rig_with};

    const SECOND: Duration = Duration::from_secs(1);

    const DIGITS: Asked<'static> = Asked::Name(std::borrow::Cow::Borrowed("digits"));

    fn request() -> ModelInferRequest {
        ModelInferRequest { id: "r1".to_owned(), raw_input_contents: vec![Bytes::from_static(b"x")], ..ModelInferRequest::default() }
    }

    fn headers(timeout: &str) -> HeaderMap {
        [(http::HeaderName::from_static("grpc-timeout"), http::HeaderValue::from_str(timeout).unwrap())].into_iter().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_warm_request_is_answered_under_the_concrete_id_and_leaves_no_guard() {
        let rig = rig();
        let answer = rig.frontend.infer(&DIGITS, request(), rig.frontend.clock.deadline_in(SECOND)).await.unwrap();
        assert_eq!((answer.model_name.as_str(), answer.id.as_str()), ("digits__isvc-1111111111", "r1"));
        assert_eq!(*rig.models.guards.borrow(), 0);
        let page = rig.metrics.render();
        assert!(page.contains("berth_runtime_infer_seconds_count 1\n"), "{page}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_cold_request_waits_for_the_load_and_holds_its_guard_until_the_answer() {
        let rig = rig();
        rig.models.load.lock().push_back(Load::After(30 * SECOND));
        *rig.infer.takes.lock() = 5 * SECOND;
        let mut call = Box::pin(rig.frontend.infer(&DIGITS, request(), rig.frontend.clock.deadline_in(60 * SECOND)));
        assert!(poll!(&mut call).is_pending());
        assert_eq!((*rig.models.waiting.borrow(), *rig.models.guards.borrow()), (1, 0));
        rig.frontend.clock.sleep(32 * SECOND).await;
        assert!(poll!(&mut call).is_pending());
        rig.frontend.clock.sleep(SECOND).await;
        assert!(poll!(&mut call).is_pending());
        assert_eq!((*rig.models.waiting.borrow(), *rig.models.guards.borrow()), (0, 1));
        call.await.unwrap();
        assert_eq!(*rig.models.guards.borrow(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_the_wait_for_a_load_and_frees_the_waiter() {
        let rig = rig();
        rig.models.load.lock().push_back(Load::Never);
        let start = rig.frontend.clock.now();
        let fault = rig.frontend.infer(&DIGITS, request(), rig.frontend.clock.deadline_in(7 * SECOND)).await.unwrap_err();
        assert_eq!(rig.frontend.clock.now() - start, 7 * SECOND);
        assert_eq!(fault.verdict().code, Code::DeadlineExceeded);
        assert_eq!(fault.to_string(), "model \"digits__isvc-1111111111\": the deadline passed while the model was loading");
        assert_eq!(*rig.models.waiting.borrow(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_covers_load_and_inference_together() {
        let rig = rig();
        rig.models.load.lock().push_back(Load::After(5 * SECOND));
        *rig.infer.takes.lock() = 5 * SECOND;
        let start = rig.frontend.clock.now();
        let fault = rig.frontend.infer(&DIGITS, request(), rig.frontend.clock.deadline_in(7 * SECOND)).await.unwrap_err();
        assert_eq!(rig.frontend.clock.now() - start, 7 * SECOND);
        assert_eq!(fault.to_string(), "model \"digits__isvc-1111111111\": the deadline passed during inference");
        assert_eq!(*rig.models.guards.borrow(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_away_takes_its_wait_with_it() {
        let rig = rig();
        rig.models.load.lock().push_back(Load::Never);
        let mut call = Box::pin(rig.frontend.infer(&DIGITS, request(), rig.frontend.clock.deadline_in(SECOND)));
        assert!(matches!(poll!(&mut call), Poll::Pending));
        assert_eq!(*rig.models.waiting.borrow(), 1);
        drop(call);
        assert_eq!(*rig.models.waiting.borrow(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_the_runtime_lost_is_routed_again_twice_and_then_called_unavailable() {
        for (lost, answered) in [(1, true), (2, true), (3, false)] {
            let rig = rig();
            let model = registration("digits__isvc-1111111111").id.clone();
            rig.infer.answers.lock().extend((0..lost).map(|_| Err(InferError::NotLoaded(model.clone()))));
            let outcome = rig.frontend.infer(&DIGITS, request(), rig.frontend.clock.deadline_in(60 * SECOND)).await;
            match outcome {
                Ok(_) => assert!(answered, "lost {lost} times"),
                Err(fault) => assert!(!answered && fault.verdict().code == Code::Unavailable, "lost {lost} times: {fault}"),
            }
            assert_eq!(rig.models.suspects.lock().len(), lost, "each loss is reported");
            assert!(rig.infer.requests.lock().iter().all(|tried| *tried == request()), "each try gets the whole request");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn large_typed_contents_are_not_kept_for_a_second_try() {
        let rig = rig();
        rig.infer.answers.lock().push_back(Err(InferError::NotLoaded(registration("m").id.clone())));
        let contents = berth_proto::inference::InferTensorContents { fp32_contents: vec![0.0; KEPT / 4 + 1], ..Default::default() };
        let mut large = request();
        large.inputs.push(InferInputTensor { contents: Some(contents), ..InferInputTensor::default() });
        let fault = rig.frontend.infer(&DIGITS, large, rig.frontend.clock.deadline_in(60 * SECOND)).await.unwrap_err();
        assert_eq!(fault.verdict().code, Code::Unavailable);
        assert_eq!(rig.infer.requests.lock().len(), 1);
        assert_eq!(*rig.models.suspects.lock(), ["digits__isvc-1111111111"], "the next request shall find a fresh load");
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_copy_ends_its_requests_with_unavailable() {
        let rig = rig();
        *rig.infer.takes.lock() = 60 * SECOND;
        let mut call = Box::pin(rig.frontend.infer(&DIGITS, request(), rig.frontend.clock.deadline_in(90 * SECOND)));
        assert!(poll!(&mut call).is_pending());
        rig.models.revoked.send_replace(true);
        let fault = call.await.unwrap_err();
        assert_eq!((fault.verdict().code, fault.verdict().retry_after), (Code::Unavailable, Some(SECOND)));
        assert_eq!((*rig.models.guards.borrow(), *rig.infer.running.borrow()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_keeps_a_model_from_loading_reaches_the_caller_with_its_code() {
        let never = Refusal::NeverFits { pool: Pool::Host, need: ByteSize::mib(9), budget: ByteSize::mib(8) };
        for (error, code, text) in [
            (WaitError::Refused(never), Code::FailedPrecondition, "the whole budget is 8 MiB"),
            (WaitError::Failed(failure(Reason::ModelLoadFailed, Retry::AfterChange)), Code::FailedPrecondition, "not a model"),
            (WaitError::Failed(failure(Reason::ModelLoadFailed, Retry::Later)), Code::Unavailable, "not a model"),
            (WaitError::ShuttingDown, Code::Unavailable, "shutting down"),
        ] {
            let rig = rig();
            rig.models.load.lock().push_back(Load::Fails(error));
            let fault = rig.frontend.infer(&DIGITS, request(), rig.frontend.clock.deadline_in(SECOND)).await.unwrap_err();
            assert_eq!(fault.verdict().code, code);
            assert!(fault.to_string().contains(text), "{fault}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_replaced_while_its_caller_waited_is_resolved_again() {
        let rig = rig();
        rig.models.load.lock().push_back(Load::Fails(WaitError::Retired));
        assert!(rig.frontend.infer(&DIGITS, request(), rig.frontend.clock.deadline_in(SECOND)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn ids_are_resolved_as_names_or_as_exact_versions() {
        let rig = rig();
        rig.models.names.lock().insert("broken".to_owned(), Resolved::Unservable(failure(Reason::InvalidPredictorSpec, Retry::AfterChange)));
        rig.models.names.lock().insert("early".to_owned(), Resolved::NotReady);
        let version = |id: &'static str| Asked::Version(id.into());
        let name = |id: &'static str| Asked::Name(id.into());
        for (asked, expected) in [
            (name("digits"), None),
            (name("digits__isvc-1111111111"), None),
            (version("digits__isvc-1111111111"), None),
            (version("digits"), Some((Code::NotFound, "\"digits\" is not registered, it is the name of a model"))),
            (version("other"), Some((Code::NotFound, "model \"other\" is not registered"))),
            (name("other"), Some((Code::NotFound, "model \"other\" is not registered"))),
            (name("broken"), Some((Code::FailedPrecondition, "InvalidPredictorSpec"))),
            (name("early"), Some((Code::Unavailable, "still being read"))),
            (version("early"), Some((Code::Unavailable, "still being read"))),
        ] {
            let outcome = rig.frontend.infer(&asked, request(), rig.frontend.clock.deadline_in(SECOND)).await;
            match (outcome, expected) {
                (Ok(_), None) => {}
                (Err(fault), Some((code, text))) => {
                    assert_eq!(fault.verdict().code, code, "{asked:?}");
                    assert!(fault.to_string().contains(text), "{asked:?}: {fault}");
                }
                (outcome, _) => panic!("{asked:?}: {outcome:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_that_the_model_has_not_is_not_found() {
        let rig = rig();
        for (version, known) in [("", true), ("1", true), ("digits__isvc-1111111111", true), ("2", false)] {
            let request = ModelInferRequest { model_version: version.to_owned(), ..request() };
            let outcome = rig.frontend.infer(&DIGITS, request, rig.frontend.clock.deadline_in(SECOND)).await;
            assert_eq!(outcome.is_ok(), known, "{version}");
            if let Err(fault) = outcome {
                assert_eq!(fault.to_string(), "model \"digits\" has no version \"2\", it has 1");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_is_ready_unless_its_last_load_failed() {
        let rig = rig();
        rig.models.load.lock().push_back(Load::Never);
        assert_eq!(rig.frontend.model_ready(&DIGITS, ""), Ok(()), "not loaded, and one request away");
        for (version, known) in [("1", true), ("digits__isvc-1111111111", true), ("99", false), ("digits", false)] {
            let outcome = rig.frontend.model_ready(&DIGITS, version);
            assert_eq!(outcome.is_ok(), known, "{version}");
            if let Err(fault) = outcome {
                assert_eq!(fault.to_string(), format!("model \"digits\" has no version \"{version}\", it has 1"));
            }
        }
        let bad = failure(Reason::ModelLoadFailed, Retry::Later);
        rig.models.failures.lock().insert(registration("digits__isvc-1111111111").id.clone(), bad);
        assert!(matches!(rig.frontend.model_ready(&DIGITS, "1"), Err(Fault::Unservable(_))));
        assert!(matches!(rig.frontend.model_ready(&Asked::Name("x".into()), "99"), Err(Fault::UnknownModel(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_come_from_the_client_within_the_longest_and_else_from_the_default() {
        let config = ProxyConfig { default_deadline: 10 * SECOND, max_deadline: 100 * SECOND, ..ProxyConfig::default() };
        let frontend = rig_with(config).frontend;
        let left = |headers: &HeaderMap| frontend.deadline(headers).map(|deadline| deadline.left(frontend.clock.now()));
        assert_eq!(left(&HeaderMap::new()), Ok(10 * SECOND));
        for (text, expected) in [
            ("5S", Some(5 * SECOND)),
            ("1M", Some(60 * SECOND)),
            ("99999999H", Some(100 * SECOND)),
            ("250m", Some(SECOND / 4)),
            ("3u", Some(Duration::from_micros(3))),
            ("7n", Some(Duration::from_nanos(7))),
            ("0S", Some(Duration::ZERO)),
            ("123456789S", None),
            ("S", None),
            ("5", None),
            ("", None),
            ("-5S", None),
            ("+5S", None),
            ("5s", None),
        ] {
            match (left(&headers(text)), expected) {
                (Ok(left), Some(expected)) => assert_eq!(left, expected, "{text}"),
                (Err(Fault::BadRequest(message)), None) => assert!(message.contains(&format!("{text:?}")), "{message}"),
                (left, _) => panic!("{text}: {left:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_counted_by_code_also_when_the_client_went_away() {
        let rig = rig();
        let started = rig.frontend.meters.grpc.started(&rig.frontend.clock);
        assert!(rig.metrics.render().contains("berth_requests_in_flight 1\n"));
        started.ended(Code::NotFound);
        drop(rig.frontend.meters.grpc.started(&rig.frontend.clock));
        for code in ["NOT_FOUND", "CANCELLED"] {
            assert_eq!(rig.metrics.count(Counter::Requests, &[("protocol", "grpc"), ("code", code)]), 1, "{code}");
        }
        let page = rig.metrics.render();
        assert!(page.contains("berth_requests_in_flight 0\n") && page.contains("berth_request_seconds_count{protocol=\"grpc\"} 2\n"), "{page}");
    }
}
