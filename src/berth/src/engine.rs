//! What computes: the engine inside this process, or an inference server beside it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use berth_adapters::conformance::Examined;
use berth_adapters::{
    Dialect, ModelRuntimeConfig, ModelRuntimeServer, OnnxConfig, OnnxRuntime, OnnxStartError, OvmsConfig, OvmsServer, RepositoryConfig,
    RepositoryServer, Runtime, RuntimeInfo, StartError, TorchServe, TorchServeConfig,
};
use berth_proxy::methods::Methods;
use berth_proxy::{Frontend, Here, ProxyConfig, Ready, RuntimeServer};
use berth_registry::EMBEDDED_RUNTIME;
use berth_telemetry::{Clock, HostNet, Metrics};
use berth_types::{ByteSize, Footprint};
use berth_upstream::{Server, Target};

use crate::beside::{Beside, ServerKind};
use crate::config::Config;

/// A runtime, and how requests get to it.
pub(crate) enum Engine {
    /// In this process.
    Embedded(Arc<OnnxRuntime>),
    /// Beside it.
    Beside(Arc<dyn Runtime>, Box<Requests>),
}

/// How requests get to a server beside this process.
pub(crate) struct Requests {
    /// Where it takes them.
    target: Target,
    /// The methods that clients may call.
    methods: Methods,
}

/// What models may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// Bytes of main memory.
    pub(crate) bytes: ByteSize,
    /// Somebody said so; else a server that knows its own limit is believed.
    pub(crate) given: bool,
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
    pub(crate) async fn beside(beside: &Beside, memory: Memory, clock: &Clock) -> Result<Self, StartError> {
        let (runtime, methods) = Self::server(beside, memory, clock).await?;
        Ok(Engine::Beside(runtime, Box::new(Requests { target: beside.requests.clone(), methods })))
    }

    /// The server beside this process, once it answers and holds nothing, and the methods that clients may call.
    ///
    /// # Errors
    /// It does not come, or cannot be used.
    pub(crate) async fn server(beside: &Beside, memory: Memory, clock: &Clock) -> Result<(Arc<dyn Examined>, Methods), StartError> {
        let connections = berth_upstream::Config {
            // Orders are few, and a server that computes may be slow to answer them.
            connections: 1,
            ping_timeout: ORDERS_PING,
            ..berth_upstream::Config::default()
        };
        let server_at = |target: &Target| Server::new(target.clone(), connections.clone(), clock.clone(), HostNet::shared());
        let server = server_at(&beside.orders);
        // Not the server's own orders: who may send requests may not load and unload.
        let mut methods = methods(beside.kind);
        let repository = |dialect| RepositoryConfig {
            dialect,
            name: Arc::clone(&beside.name),
            repository: beside.repository.clone(),
            capacity: Some(Footprint::host(memory.bytes)),
            load_concurrency: beside.load_concurrency.unwrap_or(NonZeroU32::MIN),
            load_timeout: beside.load_timeout.unwrap_or(LOAD_TIMEOUT),
            start_timeout: beside.start_timeout,
            size_percent: beside.size_percent,
            max_concurrency: beside.max_concurrency,
        };
        let runtime: Arc<dyn Examined> = match beside.kind {
            ServerKind::Triton => Arc::new(RepositoryServer::start(repository(Dialect::Triton), server, clock.clone()).await?),
            ServerKind::MlServer => Arc::new(RepositoryServer::start(repository(Dialect::MlServer), server, clock.clone()).await?),
            ServerKind::Ovms => {
                let config = OvmsConfig {
                    name: Arc::clone(&beside.name),
                    repository: beside.repository.clone(),
                    config_file: beside.model_config.clone(),
                    capacity: Some(Footprint::host(memory.bytes)),
                    load_concurrency: beside.load_concurrency.unwrap_or(TOGETHER),
                    load_timeout: beside.load_timeout.unwrap_or(LOAD_TIMEOUT),
                    start_timeout: beside.start_timeout,
                    size_percent: beside.size_percent,
                    max_concurrency: beside.max_concurrency,
                };
                let requests = server_at(&beside.requests);
                Arc::new(OvmsServer::start(config, beside.orders.clone(), requests, clock.clone(), HostNet::shared()).await?)
            }
            ServerKind::TorchServe => {
                let config = TorchServeConfig {
                    name: Arc::clone(&beside.name),
                    store: beside.repository.clone(),
                    capacity: Some(Footprint::host(memory.bytes)),
                    load_concurrency: beside.load_concurrency.unwrap_or(NonZeroU32::MIN),
                    load_timeout: beside.load_timeout.unwrap_or(LOAD_TIMEOUT),
                    start_timeout: beside.start_timeout,
                    size_percent: beside.size_percent,
                    max_concurrency: beside.max_concurrency,
                    batch_size: beside.batches.size,
                    max_batch_delay: beside.batches.delay,
                    response_timeout: beside.batches.response_timeout,
                };
                Arc::new(TorchServe::start(config, server, server_at(&beside.requests), clock.clone()).await?)
            }
            ServerKind::ModelRuntime => {
                let config = ModelRuntimeConfig {
                    name: Arc::clone(&beside.name),
                    folder: beside.repository.clone(),
                    capacity: memory.given.then_some(memory.bytes),
                    load_concurrency: beside.load_concurrency,
                    load_timeout: beside.load_timeout,
                    start_timeout: beside.start_timeout,
                    size_percent: beside.size_percent,
                    max_concurrency: beside.max_concurrency,
                };
                let server = ModelRuntimeServer::start(config, server, clock.clone()).await?;
                methods = Methods::of_runtime(server.methods(), server.any_method()).map_err(|why| StartError::Unfit {
                    kind: "the model runtime",
                    target: beside.orders.to_string(),
                    why: format!("says of its methods what cannot be: {why}"),
                })?;
                Arc::new(server)
            }
        };
        Ok((runtime, methods))
    }

    /// What loads and unloads.
    pub(crate) fn runtime(&self) -> Arc<dyn Runtime> {
        match self {
            Engine::Embedded(engine) => Arc::clone(engine) as _,
            Engine::Beside(server, _) => Arc::clone(server),
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
            Engine::Beside(_, requests) => requests.methods.clone(),
        }
    }

    /// What answers requests with it.
    pub(crate) fn frontend(&self, models: Here, clock: Clock, metrics: &Metrics, config: ProxyConfig, ready: Ready) -> Arc<Frontend> {
        match self {
            Engine::Embedded(engine) => Frontend::new(models, Arc::clone(engine) as _, clock, metrics, config, ready),
            Engine::Beside(_, requests) => {
                let runtime = RuntimeServer {
                    target: requests.target.clone(),
                    connections: berth_upstream::Config::default(),
                    net: HostNet::shared(),
                    methods: self.methods(),
                };
                Frontend::before(models, runtime, clock, metrics, config, ready)
            }
        }
    }
}

/// The methods that clients may call.
fn methods(kind: ServerKind) -> Methods {
    let named = |infos: &[(&str, &[u32])]| {
        let infos = infos.iter().map(|(method, path)| ((*method).to_owned(), path.to_vec())).collect();
        // Every path is a constant that is one.
        Methods::of_runtime(&infos, false).unwrap_or_else(|_| Methods::inference())
    };
    match kind {
        ServerKind::Triton | ServerKind::MlServer | ServerKind::ModelRuntime => Methods::inference(),
        ServerKind::Ovms => named(&[
            ("inference.GRPCInferenceService/ModelInfer", &[1]),
            ("inference.GRPCInferenceService/ModelStreamInfer", &[1]),
            ("inference.GRPCInferenceService/ModelMetadata", &[1]),
            ("inference.GRPCInferenceService/ModelReady", &[1]),
            ("tensorflow.serving.PredictionService/Predict", &[1, 1]),
            ("tensorflow.serving.PredictionService/GetModelMetadata", &[1, 1]),
        ]),
        ServerKind::TorchServe => named(&[
            ("org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions", &[1]),
            ("org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions", &[1]),
            // By the names that it gives to the Open Inference Protocol, and by those that clients know.
            ("org.pytorch.serve.grpc.openinference.GRPCInferenceService/ModelInfer", &[1]),
            ("org.pytorch.serve.grpc.openinference.GRPCInferenceService/ModelMetadata", &[1]),
            ("org.pytorch.serve.grpc.openinference.GRPCInferenceService/ModelReady", &[1]),
            ("inference.GRPCInferenceService/ModelInfer", &[1]),
            ("inference.GRPCInferenceService/ModelMetadata", &[1]),
        ]),
    }
}

/// Loads at a time where one order may be for several models.
const TOGETHER: NonZeroU32 = NonZeroU32::MIN.saturating_add(3);

/// How long a load may take where nobody says.
const LOAD_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a server may be deaf to a question whether it lives while it takes an order.
const ORDERS_PING: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_to_a_server_and_its_orders_do_not() {
        for (kind, passes, does_not) in [
            (ServerKind::Triton, "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/RepositoryModelLoad"),
            (ServerKind::Ovms, "/inference.GRPCInferenceService/ModelInfer", "/tensorflow.serving.ModelService/HandleReloadConfigRequest"),
            (ServerKind::Ovms, "/tensorflow.serving.PredictionService/Predict", "/tensorflow.serving.ModelService/GetModelStatus"),
            (
                ServerKind::TorchServe,
                "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
                "/org.pytorch.serve.grpc.management.ManagementAPIsService/RegisterModel",
            ),
        ] {
            let methods = methods(kind);
            assert!(methods.of(passes).is_ok_and(|method| method.inject.is_some()), "{kind:?}: {passes}");
            assert!(methods.of(does_not).is_err(), "{kind:?}: {does_not}");
        }
    }
}
