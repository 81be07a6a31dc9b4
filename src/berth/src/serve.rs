//! `berth serve`: agent, controller and embedded runtime in one process. Wiring only; each part decides for itself.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use berth_adapters::{OnnxConfig, OnnxRuntime, OnnxStartError, Runtime};
use berth_controller::{Controller, Endpoints};
use berth_proxy::{Frontend, Here, ProxyConfig, Ready};
use berth_puller::{Puller, PullerConfig};
use berth_registry::{EMBEDDED_RUNTIME, Faults, Folder, RedbStore, Store, Views, bundled};
use berth_residency::Residency;
use berth_telemetry::{Clock, HostNet, Metrics, log};
use berth_types::{Footprint, Location, PodId};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Config, ConfigFaults};
use crate::local_agent::{LocalAgent, relay_reports};
use crate::machine::{self, Budget};
use crate::narrator::Narrator;
use crate::ports::{Port, Ports};
use crate::ui::Ui;

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

/// Exit status of a process that its user interrupted twice.
const INTERRUPTED: i32 = 130;

/// Serves until SIGINT or SIGTERM, then drains. A second signal ends the process at once.
///
/// # Errors
/// [`ServeError`].
pub(crate) async fn serve(config: Config) -> Result<(), ServeError> {
    let clock = Clock::system();
    let ui = Ui::new();
    let filter = config.log.clone().unwrap_or_else(|| if ui.on_terminal() { "warn" } else { "info" }.to_owned());
    let format = if config.log_json { log::Format::Json } else { log::Format::Text };
    log::start(format, &filter, ui.on_terminal()).map_err(|fault| ServeError::Usage(ConfigFaults(vec![format!("--log: {fault}")])))?;
    let mut signals = Signals::new()?;

    let Held { ports, store, engine } = hold(&config, &clock).await?;
    let memory = match config.host_memory {
        Some(bytes) => Budget { bytes, origin: "configured" },
        None => machine::host_memory().map_err(anyhow::Error::msg)?,
    };
    let cache = config.data.join("models");
    let disk = match config.disk {
        Some(bytes) => Budget { bytes, origin: "configured" },
        None => machine::disk(&config.data, machine::held_under(&cache)).map_err(anyhow::Error::msg)?,
    };

    let metrics = Metrics::default();
    let mut puller_config = PullerConfig::new(&cache, disk.bytes);
    puller_config.storage_config.clone_from(&config.storage_config);
    puller_config.pvc_mounts.clone_from(&config.pvc_mounts);
    let puller = Puller::open(puller_config, clock.clone(), metrics.clone()).await.context("cannot open the disk tier")?;

    let info = engine.info().clone();
    let budget = Footprint::host(memory.bytes);
    let (residency, owner) = Residency::start(berth_residency::Deps {
        runtime: engine.clone(),
        fetch: puller.clone(),
        clock: clock.clone(),
        metrics: metrics.clone(),
        location: Location::of_pod_name(&host_name()),
        budget: budget.clone(),
        config: berth_residency::Config { state: Some(config.data.join("agent")), ..berth_residency::Config::default() },
    });

    let mut folder = Folder::open(&config.manifests, store.clone(), clock.clone()).context("cannot watch the manifests")?;
    let faults = folder.faults();
    for object in bundled() {
        store.apply(object, None).await.context("cannot keep the bundled runtimes")?;
    }
    folder.rescan().await;

    let views = Views::in_epoch(store.epoch());
    let pod = PodId::new("local").expect("a constant that is an id");
    let agent = LocalAgent::new(residency.clone(), pod.clone(), Arc::clone(&info.name), budget, at_a_time(info.load_concurrency));
    let endpoints =
        Endpoints { grpc: Some(format!("grpc://{}", ports.grpc.addr)), rest: ports.rest.as_ref().map(|port| format!("http://{}", port.addr)) };
    let (controller, leader) = Controller::new(berth_controller::Deps {
        store: store.clone(),
        views: views.clone(),
        agents: Arc::new(agent),
        clock: clock.clone(),
        metrics: metrics.clone(),
        config: berth_controller::Config { endpoints, ..berth_controller::Config::default() },
    });

    let (leading, serving) = (CancellationToken::new(), CancellationToken::new());
    let mut background = JoinSet::new();
    background.spawn(leader.run(leading.clone()));
    background.spawn(relay_reports(residency.clone(), controller, pod, leading.clone()));
    background.spawn(folder.run(leading.clone()));

    let narrator = Narrator::new(ui, clock.clone(), views.clone(), residency.clone());
    narrator.starting(&config, &memory, &disk, &info);
    narrator.listening(&ports);
    let narrator_done =
        tokio::spawn(narrator.run(store.subscribe(), puller.progress(), config.manifests.clone(), rest_addr(&ports), leading.clone()));

    let ready: Ready = {
        let views = views.clone();
        Arc::new(move || if views.current().is_ready() { Ok(()) } else { Err("resources are still being read".to_owned()) })
    };
    let proxy_config = ProxyConfig { max_message: config.max_message, ..ProxyConfig::default() };
    let frontend = Frontend::new(Here::new(views.clone(), residency.clone()), engine, clock.clone(), &metrics, proxy_config, ready.clone());
    let parts = Servers { ports, frontend, store: store.clone(), views, faults, metrics, clock: clock.clone(), ready };
    let (inference, mut operations) = parts.start(&serving);

    signals.first().await;
    let draining = async {
        drain(&config, &clock, serving, inference).await;
        leading.cancel();
        while background.join_next().await.is_some() {}
        let _ = narrator_done.await;
        end_residency(&config, &clock, &residency, owner).await;
        operations.shutdown().await;
    };
    tokio::select! {
        () = draining => {}
        () = signals.first() => std::process::exit(INTERRUPTED),
    }
    // The last handle closes the database.
    drop(store);
    info!("ended");
    Ok(())
}

fn at_a_time(loads: NonZeroU32) -> NonZeroUsize {
    NonZeroUsize::try_from(loads).unwrap_or(NonZeroUsize::MIN)
}

fn rest_addr(ports: &Ports) -> Option<SocketAddr> {
    ports.rest.as_ref().map(|port| port.addr)
}

fn host_name() -> String {
    sysinfo::System::host_name().unwrap_or_else(|_unknown| "localhost".to_owned())
}

/// What only one process can hold: had first, and refused together.
struct Held {
    ports: Ports,
    store: Arc<RedbStore>,
    engine: Arc<OnnxRuntime>,
}

async fn hold(config: &Config, clock: &Clock) -> Result<Held, ServeError> {
    let mut faults = Vec::new();
    let ports = Ports::bind(config, &HostNet).await.map_err(|taken| faults.extend(taken));
    let store = RedbStore::open(&config.data, clock.clone()).map_err(|fault| faults.push(format!("--data: {fault}")));
    let engine = start_engine(config, clock).map_err(|fault| faults.push(format!("--onnx-library: {fault}")));
    match (ports, store, engine) {
        (Ok(ports), Ok(store), Ok(engine)) => Ok(Held { ports, store: Arc::new(store), engine: Arc::new(engine) }),
        _ => Err(ServeError::Usage(ConfigFaults(faults))),
    }
}

fn start_engine(config: &Config, clock: &Clock) -> Result<OnnxRuntime, OnnxStartError> {
    let mut onnx = OnnxConfig { library: config.onnx_library.clone(), name: EMBEDDED_RUNTIME.into(), ..OnnxConfig::default() };
    if let Some(threads) = config.inference_threads {
        onnx.concurrency = threads;
    }
    OnnxRuntime::start(&onnx, clock.clone())
}

/// The servers of all ports.
struct Servers {
    ports: Ports,
    frontend: Arc<Frontend>,
    store: Arc<RedbStore>,
    views: Views,
    faults: Faults,
    metrics: Metrics,
    clock: Clock,
    ready: Ready,
}

impl Servers {
    /// Starts them: those of inference, which end when their last request has been answered, and the others, which
    /// answer until the very end.
    fn start(self, serving: &CancellationToken) -> (JoinSet<()>, JoinSet<()>) {
        let Servers { ports, frontend, store, views, faults, metrics, clock, ready } = self;
        let mut inference = JoinSet::new();
        inference.spawn(berth_proxy::serve_grpc(Arc::clone(&frontend), ports.grpc.listener, serving.clone()));
        if let Some(Port { listener, .. }) = ports.rest {
            inference.spawn(berth_proxy::serve_rest(frontend, listener, serving.clone()));
        }
        let mut operations = JoinSet::new();
        let never = CancellationToken::new();
        let api = berth_api::Deps { store, views, clock: clock.clone(), faults: Some(faults) };
        let api = berth_api::serve(ports.api.listener, api, never.clone());
        operations.spawn(async move {
            if let Err(fault) = api.await {
                warn!(error = %fault, "the resource API ended");
            }
        });
        operations.spawn(berth_proxy::serve_metrics(ports.metrics.listener, metrics, || {}, clock.clone(), never.clone()));
        let stopping = serving.clone();
        let ready: Ready = Arc::new(move || if stopping.is_cancelled() { Err("shutting down".to_owned()) } else { ready() });
        operations.spawn(berth_proxy::serve_probes(ports.probes.listener, ready, clock, never));
        (inference, operations)
    }
}

/// Stops accepting inference and waits, as long as the configuration says, for the requests in flight.
async fn drain(config: &Config, clock: &Clock, serving: CancellationToken, mut inference: JoinSet<()>) {
    info!(patience = ?config.drain_timeout, "draining");
    serving.cancel();
    let ended = async { while inference.join_next().await.is_some() {} };
    if clock.until(clock.deadline_in(config.drain_timeout), ended).await.is_none() {
        warn!(patience = ?config.drain_timeout, "requests were still in flight when the drain ended");
    }
}

async fn end_residency(config: &Config, clock: &Clock, residency: &Residency, owner: JoinHandle<()>) {
    let deadline = clock.deadline_in(config.drain_timeout);
    residency.drain(deadline).await;
    if clock.until(deadline, owner).await.is_none() {
        warn!("models were still loaded when the drain ended");
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

/// The path as people would type it: relative where it lies below the current folder.
pub(crate) fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    if text.contains([' ', '\'', '"']) { format!("'{}'", text.replace('\'', "'\\''")) } else { text }
}
