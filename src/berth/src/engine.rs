//! What computes: the engine inside this process, or an inference server beside it.

use std::sync::Arc;
use std::time::Duration;

use berth_adapters::{OnnxConfig, OnnxRuntime, OnnxStartError, RepositoryConfig, RepositoryServer, RepositoryStartError, Runtime, RuntimeInfo};
use berth_proxy::methods::Methods;
use berth_proxy::{Frontend, Here, ProxyConfig, Ready, RuntimeServer};
use berth_registry::EMBEDDED_RUNTIME;
use berth_telemetry::{Clock, HostNet, Metrics};
use berth_types::Footprint;
use berth_upstream::Server;

use crate::beside::Beside;
use crate::config::Config;

/// A runtime, and how requests get to it.
pub(crate) enum Engine {
    /// In this process.
    Embedded(Arc<OnnxRuntime>),
    /// Beside it.
    Beside(Arc<RepositoryServer>, Box<Beside>),
}

impl Engine {
    /// The embedded engine.
    ///
    /// # Errors
    /// ONNX Runtime's library was named and cannot be used.
    pub(crate) fn embedded(config: &Config, clock: &Clock) -> Result<Self, OnnxStartError> {
        let mut onnx = OnnxConfig { library: config.onnx_library.clone(), name: EMBEDDED_RUNTIME.into(), ..OnnxConfig::default() };
        if let Some(threads) = config.inference_threads {
            onnx.concurrency = threads;
        }
        OnnxRuntime::start(&onnx, clock.clone()).map(|engine| Engine::Embedded(Arc::new(engine)))
    }

    /// The server beside this process, once it answers and holds nothing.
    ///
    /// # Errors
    /// It does not come, or cannot be used.
    pub(crate) async fn beside(beside: &Beside, capacity: Footprint, clock: &Clock) -> Result<Self, RepositoryStartError> {
        let connections = berth_upstream::Config {
            // Orders are few, and a server that computes may be slow to answer them.
            connections: 1,
            ping_timeout: ORDERS_PING,
            ..berth_upstream::Config::default()
        };
        let server = Server::new(beside.orders.clone(), connections, clock.clone(), HostNet::shared());
        let config = RepositoryConfig {
            dialect: beside.dialect,
            name: Arc::clone(&beside.name),
            repository: beside.repository.clone(),
            capacity: Some(capacity),
            load_concurrency: beside.load_concurrency,
            load_timeout: beside.load_timeout,
            start_timeout: beside.start_timeout,
            size_percent: beside.size_percent,
            max_concurrency: beside.max_concurrency,
        };
        let runtime = RepositoryServer::start(config, server, clock.clone()).await?;
        Ok(Engine::Beside(Arc::new(runtime), Box::new(beside.clone())))
    }

    /// What loads and unloads.
    pub(crate) fn runtime(&self) -> Arc<dyn Runtime> {
        match self {
            Engine::Embedded(engine) => Arc::clone(engine) as _,
            Engine::Beside(server, _) => Arc::clone(server) as _,
        }
    }

    /// What it is.
    pub(crate) fn info(&self) -> &RuntimeInfo {
        match self {
            Engine::Embedded(engine) => engine.info(),
            Engine::Beside(server, _) => server.info(),
        }
    }

    /// The methods that clients may call.
    pub(crate) fn methods(&self) -> Methods {
        match self {
            Engine::Embedded(_) => Methods::default(),
            // Not the server's own orders: who may send requests may not load and unload.
            Engine::Beside(..) => Methods::inference(),
        }
    }

    /// What answers requests with it.
    pub(crate) fn frontend(&self, models: Here, clock: Clock, metrics: &Metrics, config: ProxyConfig, ready: Ready) -> Arc<Frontend> {
        match self {
            Engine::Embedded(engine) => Frontend::new(models, Arc::clone(engine) as _, clock, metrics, config, ready),
            Engine::Beside(_, beside) => {
                let runtime = RuntimeServer {
                    target: beside.requests.clone(),
                    connections: berth_upstream::Config::default(),
                    net: HostNet::shared(),
                    methods: self.methods(),
                };
                Frontend::before(models, runtime, clock, metrics, config, ready)
            }
        }
    }
}

/// How long a server may be deaf to a question whether it lives while it takes an order.
const ORDERS_PING: Duration = Duration::from_secs(120);
