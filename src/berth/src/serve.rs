//! `berth serve`, `berth agent` and `berth controller`: agent, controller and a runtime, embedded or beside, in one process, or the
//! one or the other of them. Wiring only; each part decides for itself.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use berth_api::{Access, Downloads};
use berth_controller::Endpoints;
use berth_proxy::{Door, ManagementPort, ProxyConfig, Ready, Tls};
use berth_puller::{Puller, PullerConfig};
use berth_registry::{DataLock, RedbStore, Store as _, Views, bundled, bundled_beside, bundled_for_agents};
use berth_residency::Residency;
use berth_telemetry::{Clock, HostNet, Metrics, log};
use berth_types::{Footprint, Location, PodId, Pool};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attending;
use crate::books::Kept;
use crate::config::{Config, ConfigFaults, Role};
use crate::engine::{Engine, Memory};
use crate::fetching::Fetching;
use crate::leading::{self, Leading};
use crate::local_agent::{LocalAgent, relay_reports};
use crate::machine::{self, Budget};
use crate::narrator::{self, Narrator, Sources};
use crate::ports::{LeadingPorts, Port, Ports};
use crate::prestop::PreStop;
use crate::tls::Reached;
use crate::token::{self, ApiToken};
use crate::ui::Ui;
use crate::{data_plane, management, memory as real_memory, payloads};

/// Why `serve` ended otherwise than by a signal.
#[derive(Debug)]
pub(crate) enum ServeError {
    /// Something that the user named cannot be had: every such fault, together.
    Usage(ConfigFaults),
    /// Something failed.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for ServeError {
    fn from(fault: anyhow::Error) -> Self {
        ServeError::Failed(fault)
    }
}

/// Exit status of a process that its user interrupted twice, or before it had started.
const INTERRUPTED: i32 = 130;

/// How long the signal to end is waited for at least, once all has drained because somebody asked for that.
const LEAST_WAIT: Duration = Duration::from_secs(30);

/// How long the last writes of the leader, and the last words to agents, may take.
const LAST_DECISIONS: Duration = Duration::from_secs(10);

/// How long the last answers may take to leave once their requests were told to end.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Serves until SIGINT or SIGTERM, then drains. A second signal ends the process at once.
///
/// # Errors
/// [`ServeError`].
pub(crate) async fn serve(config: Config) -> Result<(), ServeError> {
    let clock = Clock::system();
    let ui = Ui::new();
    start_logging(&config, &ui)?;
    machine::raise_open_files();
    let mut signals = Signals::new()?;
    let prestop = PreStop::new();
    let mut running = tokio::select! {
        running = start(&config, clock.clone(), ui, &prestop) => running?,
        () = signals.first() => std::process::exit(INTERRUPTED),
    };
    prestop.serving();
    let (mut told, mut died) = (true, None);
    tokio::select! {
        () = signals.first() => {}
        part = running.any_end() => died = Some(part),
        // The signal follows, maybe while it drains.
        () = prestop.asked() => told = false,
    }
    {
        let mut draining = std::pin::pin!(running.drain(&config, &clock));
        loop {
            tokio::select! {
                () = &mut draining => break,
                () = signals.first() => match told {
                    true => std::process::exit(INTERRUPTED),
                    false => told = true,
                },
            }
        }
    }
    prestop.drained();
    if !told {
        info!("drained, and waiting for the signal to end");
        // One that does not come: only the server beside was to end, and a new process is to begin with its successor.
        let _ = clock.until(clock.deadline_in(config.drain_timeout.max(LEAST_WAIT)), signals.first()).await;
    }
    tokio::select! {
        () = running.end(&clock) => {}
        () = signals.first() => std::process::exit(INTERRUPTED),
    }
    info!("ended");
    died.map_or(Ok(()), |part| Err(ServeError::Failed(anyhow::anyhow!("{part} ended by itself: this is a bug, its log lines say more"))))
}

fn start_logging(config: &Config, ui: &Ui) -> Result<(), ServeError> {
    let filter = config.log.clone().unwrap_or_else(|| if ui.on_terminal() { "warn" } else { "info" }.to_owned());
    let format = if config.log_json { log::Format::Json } else { log::Format::Text };
    log::start(format, &filter, ui.on_terminal()).map_err(|fault| ServeError::Usage(ConfigFaults(vec![format!("--log: {fault}")])))
}

/// Everything that runs.
struct Running {
    /// The leader and what feeds it. They end before residency does, so that no status tells of the drain.
    leading: JoinSet<&'static str>,
    stop_leading: CancellationToken,
    /// The inference ports: they end when their last request has been answered.
    inference: JoinSet<&'static str>,
    stop_inference: CancellationToken,
    /// Resource API, metrics and probes: they answer until the very end.
    operations: JoinSet<&'static str>,
    stop_operations: CancellationToken,
    /// What delivers payloads: it ends when what waits after the last request is delivered.
    payloads: JoinSet<&'static str>,
    stop_payloads: CancellationToken,
    /// The models of this process; a controller has none.
    here: Option<Models>,
    narrator: JoinHandle<()>,
}

/// The models of this process.
struct Models {
    residency: Residency,
    owner: JoinHandle<()>,
    /// Of the data folder that they are in.
    _lock: Option<DataLock>,
}

async fn start(config: &Config, clock: Clock, ui: Ui, prestop: &PreStop) -> Result<Running, ServeError> {
    if let Role::Leads(_) = config.role {
        return lead(config, clock, ui).await;
    }
    let metrics = Metrics::default();
    let shown_payloads =
        payloads::start(&config.payloads, &host_name(), &clock, &metrics).map_err(|fault| ServeError::Usage(ConfigFaults(vec![fault])))?;
    let Held { ports, store, lock, engine, tls } = hold(config, &clock, &metrics).await?;
    let (mut operations, stop_operations, stop_inference) = (JoinSet::new(), CancellationToken::new(), CancellationToken::new());
    let addresses = ports.addresses();
    // Asked from the first moment on: whoever waits for this process must be able to tell that it waits itself.
    let served: Arc<OnceLock<Views>> = Arc::default();
    let ready = readiness("the inference server does not answer yet", &served, &stop_inference);
    let bloat: Arc<OnceLock<watch::Receiver<Option<Arc<str>>>>> = Arc::default();
    let runtime: Ready = {
        let bloat = Arc::clone(&bloat);
        Arc::new(move || bloat.get().and_then(|bloat| bloat.borrow().clone()).map_or(Ok(()), |why| Err(why.to_string())))
    };
    let stop = stop_operations.clone();
    let asked = berth_proxy::serve_metrics(ports.metrics.listener, metrics.clone(), || {}, clock.clone(), stop.clone());
    spawn(&mut operations, "the metrics port", asked);
    spawn(&mut operations, "the probe port", berth_proxy::serve_probes(ports.probes.listener, Arc::clone(&ready), runtime, clock.clone(), stop));
    if let Some(port) = ports.prestop {
        let hook = prestop.hook(config.drain_timeout.saturating_mul(2).max(LEAST_WAIT), clock.clone());
        let asked = berth_proxy::serve_prestop(port.listener, hook, clock.clone(), stop_operations.clone());
        spawn(&mut operations, "the pre-stop port", asked);
    }
    let memory = match config.host_memory {
        Some(bytes) => Budget { bytes, origin: "configured" },
        None => machine::host_memory().map_err(anyhow::Error::msg)?,
    };
    let cache = config.data.join("models");
    let disk = match config.disk {
        Some(bytes) => Budget { bytes, origin: "configured" },
        None => {
            let (data, cache) = (config.data.clone(), cache.clone());
            let asked = tokio::task::spawn_blocking(move || machine::disk(&data, berth_puller::held_under(&cache))).await;
            asked.context("cannot look at the data folder")?.map_err(anyhow::Error::msg)?
        }
    };

    let mut puller_config = PullerConfig::new(&cache, disk.bytes);
    puller_config.storage_config.clone_from(&config.storage_config);
    puller_config.pvc_mounts.clone_from(&config.pvc_mounts);
    puller_config.bytes_per_second = config.download_rate;
    puller_config.requests = config.download_requests.map_or(puller_config.requests, NonZeroUsize::get);
    let puller = Puller::open(puller_config, clock.clone(), metrics.clone()).await.context("cannot open the disk tier")?;

    let mut settled = config.clone();
    if let Some(beside) = settled.beside.take() {
        info!(runtime = %beside.line(), "waiting for the inference server");
        settled.beside = Some(beside.settled(&HostNet, &clock).await);
    }
    let config = &settled;
    let engine = match (engine, &config.beside) {
        (Some(engine), _) => engine,
        (None, Some(beside)) => {
            let started = Engine::beside(beside, Memory { bytes: memory.bytes, given: config.host_memory.is_some() }, &clock).await;
            started.map_err(|fault| ServeError::Failed(fault.into()))?
        }
        (None, None) => return Err(ServeError::Failed(anyhow::anyhow!("there is no engine: this is a bug"))),
    };
    let info = engine.info().clone();
    let location = Location::of_pod_name(&config.pod_name.clone().unwrap_or_else(host_name));
    let memory = match info.capacity.as_ref().map(|capacity| capacity.get(Pool::Host)) {
        Some(bytes) if bytes != memory.bytes => Budget { bytes, origin: "as the inference server says" },
        _ => memory,
    };
    let (source, devices) = real_memory::source(config, &clock).await;
    let budget = Footprint::host(memory.bytes).plus(&devices);
    let (residency, owner) = Residency::start(berth_residency::Deps {
        runtime: engine.runtime(),
        fetch: puller.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
        location: location.clone(),
        budget: budget.clone(),
        memory: source,
        config: berth_residency::Config {
            state: Some(config.data.join("agent")),
            marks: config.beside.as_ref().map(|beside| beside.memory.marks).unwrap_or_default(),
            recycle: config.beside.as_ref().map(|beside| beside.memory.recycle).unwrap_or_default(),
            ..berth_residency::Config::default()
        },
    });
    let _ = bloat.set(residency.must_restart_runtime());

    let stop_leading = CancellationToken::new();
    let mut tasks = JoinSet::new();
    if let Some(changes) = puller.storage_changes() {
        spawn(&mut tasks, "the watch of the storage configuration", pass_on(changes, residency.clone(), stop_leading.clone()));
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let rest = ports.rest.as_ref().map(|port| format!("{scheme}://{}", port.addr));
    let leader_token = match &config.role {
        Role::Attends(controller) => followed_token(controller.token.as_ref(), &clock, &mut operations, &stop_operations),
        Role::Alone | Role::Leads(_) => None,
    };
    let (views, leading) = match store {
        Some(store) => {
            let views = Views::in_epoch(store.epoch());
            let pod = PodId::new("local").expect("a constant that is an id");
            let agent = LocalAgent::new(residency.clone(), pod.clone(), Arc::clone(&info.name), budget, at_a_time(info.load_concurrency));
            let parts = leading::Parts {
                config,
                store,
                views: views.clone(),
                agents: Arc::new(agent.at(location)),
                runtimes: config.beside.as_ref().map_or_else(bundled, |beside| bundled_beside(&beside.name).into_iter().collect()),
                settle_within: berth_controller::Config::default().settle_within,
                endpoints: Endpoints { grpc: Some(format!("grpc://{}", ports.grpc.addr)), rest },
                clock: clock.clone(),
                metrics: metrics.clone(),
            };
            let leading = Leading::start(parts, &mut tasks, &stop_leading).await?;
            let reports = relay_reports(residency.clone(), leading.controller.clone(), pod, stop_leading.clone());
            spawn(&mut tasks, "the relay of reports", reports);
            (views, Some(leading))
        }
        None => {
            let views = Views::default();
            let who = attending::Who { location, runtime: Arc::clone(&info.name), budget, loads_at_a_time: info.load_concurrency.get() };
            let attendant = attending::attendant(config, leader_token.clone(), who, &residency, &views, &clock, &metrics)?;
            spawn(&mut tasks, "the stream to the controller", attendant.run(stop_leading.clone()));
            (views, None)
        }
    };

    let narrator = Narrator::new(ui, clock.clone(), views.clone(), residency.clone());
    narrator.starting(config, &memory, &disk, &info);
    narrator.listening(&addresses, tls.as_ref(), config.api_token.as_ref());
    let narrator = match &leading {
        Some(leading) => {
            let sources = Sources {
                changes: leading.store.subscribe(),
                downloads: puller.progress(),
                caught_up: leading.caught_up(),
                manifests: config.manifests.clone(),
                rest: ports.rest.as_ref().map(|port| Reached::at(port.addr, tls.as_ref())),
            };
            tokio::spawn(narrator.run(sources, stop_inference.clone()))
        }
        None => tokio::spawn(narrator.attend(stop_inference.clone())),
    };

    let usual = ProxyConfig::default();
    // Several of the largest requests at a time, whatever their limit is.
    let body_budget = usual.body_budget.max(config.max_message.percent(400));
    let threads = config.beside.as_ref().map_or(0, |beside| beside.grpc_threads);
    let proxy_config = ProxyConfig { max_message: config.max_message, body_budget, threads, ..usual };
    let frontend = engine.frontend(berth_proxy::Here::new(views.clone(), residency.clone()), clock.clone(), &metrics, proxy_config, ready);
    let (mut payloads, stop_payloads) = (JoinSet::new(), CancellationToken::new());
    frontend.log_headers(config.log_headers.clone());
    if let Some((shown, senders)) = shown_payloads {
        frontend.show_payloads(shown);
        spawn(&mut payloads, "the payload processors", senders.run(stop_payloads.clone()));
    }
    if let Some(data_plane::Configured { plane, file }) = config.data_plane.clone() {
        let methods = engine.methods();
        data_plane::apply(&frontend, &methods, &plane);
        if let Some(file) = file {
            let following =
                data_plane::follow(file, (methods, plane), Arc::clone(&frontend), clock.clone(), metrics.clone(), stop_operations.clone());
            spawn(&mut operations, "the watch of the data plane's configuration", following);
        }
    }
    if let Some(tls) = tls.clone() {
        spawn(&mut operations, "the watch of the TLS files", tls.follow(stop_operations.clone()));
    }
    let token = followed_token(config.api_token.as_ref(), &clock, &mut operations, &stop_operations);
    // Before the port takes its first call.
    let writes = management::writes(config.management, token.clone());
    match (&leading, attending::management(config, leader_token)) {
        (Some(leading), _) => frontend.manage(Arc::new(leading.manager.clone()), writes),
        (None, Some(controller)) => frontend.forward_management(controller, writes),
        (None, None) => {}
    }
    let mut inference = JoinSet::new();
    let grpc = Door::new(ports.grpc.listener, tls.clone());
    spawn(&mut inference, "the gRPC port", berth_proxy::serve_grpc(Arc::clone(&frontend), grpc, stop_inference.clone()));
    if let Some(Port { listener, .. }) = ports.rest {
        spawn(&mut inference, "the REST port", berth_proxy::serve_rest(frontend, Door::new(listener, tls), stop_inference.clone()));
    }
    let access = token.map_or(Access::Loopback, Access::Token);
    let here = leading::Here {
        downloads: Some(Arc::new(Fetching(puller.downloads())) as Arc<dyn Downloads>),
        memory: Some(Arc::new(Kept(residency.clone()))),
    };
    let api = (ports.api.listener, ports.api.addr);
    match &leading {
        Some(leading) => leading.serve_api(api, access, here, &mut operations, &stop_operations)?,
        None => leading::serve_api(attending::api(config, &views, here, access, &clock), api, &mut operations, &stop_operations)?,
    }
    // From here on it is the resources that are waited for.
    let _ = served.set(views);
    let here = Some(Models { residency, owner, _lock: lock });
    Ok(Running { leading: tasks, stop_leading, inference, stop_inference, operations, stop_operations, payloads, stop_payloads, here, narrator })
}

/// `berth controller`: leads agents that attend from elsewhere, and has no models itself.
async fn lead(config: &Config, clock: Clock, ui: Ui) -> Result<Running, ServeError> {
    let metrics = Metrics::default();
    let mut faults = Vec::new();
    let ports = LeadingPorts::bind(config, &HostNet).await.map_err(|taken| faults.extend(taken));
    let store = RedbStore::open(&config.data, clock.clone()).map_err(|fault| faults.push(format!("--data: {fault}")));
    let (Ok(ports), Ok(store)) = (ports, store) else { return Err(ServeError::Usage(ConfigFaults(faults))) };
    let (mut operations, stop_operations, stop_inference) = (JoinSet::new(), CancellationToken::new(), CancellationToken::new());
    let served: Arc<OnceLock<Views>> = Arc::default();
    let ready = readiness("resources are still being read", &served, &stop_inference);
    let stop = stop_operations.clone();
    let asked = berth_proxy::serve_metrics(ports.metrics.listener, metrics.clone(), || {}, clock.clone(), stop.clone());
    spawn(&mut operations, "the metrics port", asked);
    let always: Ready = Arc::new(|| Ok(()));
    spawn(&mut operations, "the probe port", berth_proxy::serve_probes(ports.probes.listener, Arc::clone(&ready), always, clock.clone(), stop));
    let token = followed_token(config.api_token.as_ref(), &clock, &mut operations, &stop_operations);
    let store = Arc::new(store);
    let views = Views::in_epoch(store.epoch());
    let hub = attending::hub(config, &views, &clock, &metrics);
    let (mut tasks, stop_leading) = (JoinSet::new(), CancellationToken::new());
    let parts = leading::Parts {
        config,
        store,
        views: views.clone(),
        agents: Arc::new(hub.clone()),
        runtimes: bundled_for_agents(),
        settle_within: attending::BACK_WITHIN,
        endpoints: config.endpoints.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
    };
    let leading = Leading::start(parts, &mut tasks, &stop_leading).await?;
    hub.report_to(leading.controller.clone());
    let access = token.clone().map_or(Access::Loopback, Access::Token);
    leading.serve_api((ports.api.listener, ports.api.addr), access, leading::Here::default(), &mut operations, &stop_operations)?;
    let attendance = attending::serve(hub, ports.agents.listener, token.clone(), clock.clone(), stop_leading.clone());
    spawn(&mut tasks, "the port of the agents", attendance);
    let port = ManagementPort {
        by: Arc::new(leading.manager.clone()),
        writes: management::writes(config.management, token),
        ready: Arc::clone(&ready),
        clock: clock.clone(),
        metrics,
        config: ProxyConfig::default(),
    };
    let mut inference = JoinSet::new();
    spawn(&mut inference, "the gRPC port", berth_proxy::serve_management(ports.grpc.listener, port, stop_inference.clone()));
    let at = narrator::Leads {
        agents: ports.agents.addr,
        grpc: ports.grpc.addr,
        api: ports.api.addr,
        metrics: ports.metrics.addr,
        probes: ports.probes.addr,
    };
    let narrator = tokio::spawn(narrator::lead(ui, clock, config.clone(), at, leading.caught_up(), stop_inference.clone()));
    let _ = served.set(views);
    Ok(Running {
        leading: tasks,
        stop_leading,
        inference,
        stop_inference,
        operations,
        stop_operations,
        payloads: JoinSet::new(),
        stop_payloads: CancellationToken::new(),
        here: None,
        narrator,
    })
}

/// Whether requests can be answered.
fn readiness(at_first: &'static str, served: &Arc<OnceLock<Views>>, stopping: &CancellationToken) -> Ready {
    let (served, stopping) = (Arc::clone(served), stopping.clone());
    Arc::new(move || match (stopping.is_cancelled(), served.get()) {
        (true, _) => Err("shutting down".to_owned()),
        (false, None) => Err(at_first.to_owned()),
        (false, Some(views)) if !views.current().is_ready() => Err("resources are still being read".to_owned()),
        (false, Some(_)) => Ok(()),
    })
}

/// A token as it is now, where there is one.
fn followed_token(
    given: Option<&ApiToken>,
    clock: &Clock,
    tasks: &mut JoinSet<&'static str>,
    stop: &CancellationToken,
) -> Option<watch::Receiver<berth_api::Token>> {
    let given = given?;
    let (sender, receiver) = watch::channel(given.token.clone());
    if let Some(file) = &given.file {
        token::warn_if_open(file);
        spawn(tasks, "the watch of the token's file", token::follow(file.clone(), sender, clock.clone(), stop.clone()));
    }
    Some(receiver)
}

/// Tells residency of each change of the storage configuration, so that what failed for want of it is tried again.
async fn pass_on(mut changes: watch::Receiver<u64>, residency: Residency, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => match changed {
                Ok(()) => residency.storage_changed().await,
                Err(_no_watch) => return stop.cancelled().await,
            },
        }
    }
}

/// Runs `part`; the set tells its name when it ends.
pub(crate) fn spawn(set: &mut JoinSet<&'static str>, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
    let part = tokio::spawn(part);
    set.spawn(async move {
        // A panic is an end like another one; its message is on standard error already.
        let _ = AbortOnDrop(part).await;
        name
    });
}

/// A task that ends with whoever waits for it.
struct AbortOnDrop(JoinHandle<()>);

impl Future for AbortOnDrop {
    type Output = Result<(), tokio::task::JoinError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Running {
    /// Completes when a part ends that never should, with its name.
    async fn any_end(&mut self) -> &'static str {
        let ended = |part: Option<Result<&'static str, tokio::task::JoinError>>| part.and_then(Result::ok).unwrap_or("a part");
        let owner = async {
            match &mut self.here {
                Some(here) => drop((&mut here.owner).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            part = self.leading.join_next() => ended(part),
            part = self.inference.join_next() => ended(part),
            part = self.operations.join_next() => ended(part),
            Some(part) = self.payloads.join_next() => ended(Some(part)),
            () = owner => "the owner of the models",
        }
    }

    /// Drains within the patience that the configuration asks for, and a few seconds at most after it: no new requests;
    /// those in flight and those that wait for a model are answered; what is left then is told to try elsewhere.
    async fn drain(&mut self, config: &Config, clock: &Clock) {
        let deadline = clock.deadline_in(config.drain_timeout);
        info!(patience = ?config.drain_timeout, "draining");
        self.stop_inference.cancel();
        let answered = async { while self.inference.join_next().await.is_some() {} };
        let in_time = clock.until(deadline, answered).await.is_some();
        self.stop_leading.cancel();
        let last = async { while self.leading.join_next().await.is_some() {} };
        if clock.until(clock.deadline_in(LAST_DECISIONS), last).await.is_none() {
            warn!("what leads, or attends, had not ended: it is cut off");
            self.leading.shutdown().await;
        }
        if !in_time {
            warn!(patience = ?config.drain_timeout, "requests were still in flight: they are told to try again");
        }
        if let Some(Models { residency, .. }) = &self.here {
            // Whoever still waits or computes gets UNAVAILABLE from residency while its connection is still there.
            residency.drain(deadline).await;
        }
        let last = async { while self.inference.join_next().await.is_some() {} };
        if clock.until(clock.deadline_in(LAST_ANSWERS), last).await.is_none() {
            self.inference.shutdown().await;
        }
        self.stop_payloads.cancel();
        while self.payloads.join_next().await.is_some() {}
        let Some(Models { owner, .. }) = &mut self.here else { return };
        if !owner.is_finished() && clock.until(clock.deadline_in(LAST_ANSWERS), owner).await.is_none() {
            warn!("models were still loaded when the drain ended");
        }
    }

    /// Ends what answers until the very end.
    async fn end(&mut self, clock: &Clock) {
        // Watches end as if their time were over, not as if the connection had broken.
        self.stop_operations.cancel();
        let last = async { while self.operations.join_next().await.is_some() {} };
        let _ = clock.until(clock.deadline_in(LAST_ANSWERS), last).await;
        self.operations.shutdown().await;
        self.narrator.abort();
    }
}

fn at_a_time(loads: NonZeroU32) -> NonZeroUsize {
    NonZeroUsize::try_from(loads).unwrap_or(NonZeroUsize::MIN)
}

fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_else(|_unknown| "localhost".to_owned())
}

/// What only one process can hold: had first, and refused together.
struct Held {
    ports: Ports,
    /// `None`: a controller elsewhere has it.
    store: Option<Arc<RedbStore>>,
    /// Of the data folder, where there is no store that has one.
    lock: Option<DataLock>,
    /// `None`: it is beside this process, and may still be starting.
    engine: Option<Engine>,
    tls: Option<Tls>,
}

async fn hold(config: &Config, clock: &Clock, metrics: &Metrics) -> Result<Held, ServeError> {
    let mut faults = Vec::new();
    let ports = Ports::bind(config, &HostNet).await.map_err(|taken| faults.extend(taken));
    let (store, lock) = match config.role {
        Role::Alone => (RedbStore::open(&config.data, clock.clone()).map(Some), Ok(None)),
        Role::Attends(_) | Role::Leads(_) => (Ok(None), DataLock::of(&config.data).map(Some)),
    };
    let store = store.map_err(|fault| faults.push(format!("--data: {fault}")));
    let lock = lock.map_err(|fault| faults.push(format!("--data: {fault}")));
    let engine = config.beside.is_none().then(|| Engine::embedded(config, clock)).transpose();
    let engine = engine.map_err(|fault| faults.push(format!("--onnx-library: {fault}")));
    // Its files were checked with the configuration; they may have changed since.
    let tls = config.tls.clone().map(|settings| Tls::open(settings, clock, metrics)).transpose().map_err(|more| faults.extend(more));
    match (ports, store, lock, engine, tls) {
        (Ok(ports), Ok(store), Ok(lock), Ok(engine), Ok(tls)) => Ok(Held { ports, store: store.map(Arc::new), lock, engine, tls }),
        _ => Err(ServeError::Usage(ConfigFaults(faults))),
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, ServeError> {
        let on = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    /// Completes with the next one.
    async fn first(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The path so that it can be pasted into a shell.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_can_be_pasted_into_a_shell() {
        for (path, text) in [
            ("examples/quickstart/m.json", "examples/quickstart/m.json"),
            ("/with space/a", "'/with space/a'"),
            ("/a;b", "'/a;b'"),
            ("/it's", "'/it'\\''s'"),
        ] {
            assert_eq!(shown(Path::new(path)), text);
        }
    }
}
