//! Our side: the gRPC port before a runtime that is no part of this process, with a real residency under it.

use std::net::SocketAddr;
use std::num::{NonZero, NonZeroU32};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use berth_adapters::fake::Script;
use berth_adapters::{FakeRuntime, RuntimeInfo};
use berth_proxy::methods::Methods;
use berth_proxy::{Frontend, Here, ProxyConfig, RuntimeServer};
use berth_puller::fake::{FakeFetch, Scripted};
use berth_registry::{NameEntry, Views};
use berth_residency::{Config, Deps, Residency};
use berth_telemetry::{Clock, HostNet, Metrics, Net};
use berth_types::{ByteSize, Footprint, Location, ModelFormat, ModelId, Name, Placement, Registration, StorageRef};
use tokio_util::sync::CancellationToken;

use super::wire::{self, COLD, MODELS};

/// Longer than any bench: the load of the cold model never ends.
const LOAD_TIMEOUT: Duration = Duration::from_secs(3600);

/// Loads the models, listens on a free port, which it says in a line `address: ...`, and passes calls on to `target` over
/// at most this many connections. Ends with its process.
pub(super) async fn serve(target: &str, connections: usize) -> anyhow::Result<()> {
    let (clock, metrics) = (Clock::system(), Metrics::default());
    let residency = residency(&clock, &metrics);
    let models = (0..MODELS).map(wire::model).chain([COLD.to_owned()]).map(|id| registration(&id)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut names = Vec::new();
    for model in &models {
        let name = model.id.as_str().split("__").next().unwrap_or_default();
        names.push((Name::new(name)?, Some(NameEntry { active: Some(Arc::clone(model)), target: None, failure: None })));
    }
    let views = Views::default();
    views.update(|view| view.with_names(names));
    views.mark_ready();
    for model in models.iter().filter(|model| model.id.as_str() != COLD) {
        drop(residency.ensure_loaded(model, clock.deadline_in(LOAD_TIMEOUT)).await?);
    }
    let runtime = RuntimeServer {
        target: target.parse()?,
        connections: berth_upstream::Config { connections, ..berth_upstream::Config::default() },
        net: HostNet::shared(),
        methods: Methods::default(),
    };
    // As the agent has it.
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let config = ProxyConfig { threads, ..ProxyConfig::default() };
    let frontend = Frontend::before(Here::new(views, residency), runtime, clock, &metrics, config, Arc::new(|| Ok(())));
    let listener = HostNet.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("address: {}", listener.local_addr()?);
    berth_proxy::serve_grpc(frontend, listener, CancellationToken::new()).await;
    Ok(())
}

fn residency(clock: &Clock, metrics: &Metrics) -> Residency {
    let runtime = FakeRuntime::with_info(
        clock.clone(),
        RuntimeInfo {
            name: "echo".into(),
            version: "1".into(),
            capacity: None,
            load_concurrency: NonZeroU32::MIN.saturating_add(3),
            load_timeout: LOAD_TIMEOUT,
            reads_files_while_loaded: true,
        },
    );
    runtime.script(COLD, Script::default().hanging());
    let (residency, _task) = Residency::start(Deps {
        runtime: Arc::new(runtime),
        fetch: FakeFetch::with_default(clock.clone(), Scripted::arrives(ByteSize::kib(4))),
        clock: clock.clone(),
        metrics: metrics.clone(),
        location: Location::of_pod_name("bench"),
        budget: Footprint::host(ByteSize::mib(1024)),
        memory: None,
        config: Config::default(),
    });
    residency
}

fn registration(id: &str) -> anyhow::Result<Arc<Registration>> {
    Ok(Arc::new(Registration::new(
        ModelId::new(id).context("an id")?,
        ModelFormat { name: "any".into(), version: None },
        Placement::Format { protocol: None },
        StorageRef { key: None, parameters: Arc::default(), path: id.into(), schema_path: None },
        None,
    )))
}
