//! `berth agent`: the inference server beside this process, as it is configured: by our own names or by those of ModelMesh's
//! containers, so that a pod that was made for them needs no other variables.

use std::ffi::OsString;
use std::num::{NonZero, NonZeroU32};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use berth_proxy::MOST_THREADS;
use berth_telemetry::{Clock, Net, Peer};
use berth_upstream::Target;
use clap::Args;

use berth_api::Token;

use crate::attending::Controller;
use crate::config::{Reading, Role, ServeArgs};
use crate::memory::{self, MemoryArgs};
use crate::token::{self, ApiToken};

/// The flags of `berth agent`: those of `berth serve`, and what is to be known of the inference server.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    /// Work without a controller, on a folder of resources of its own
    #[arg(long)]
    pub(crate) standalone: bool,
    /// The controller that it attends: HOST:PORT
    #[arg(long, env = "BERTH_CONTROLLER", value_name = "ENDPOINT")]
    controller: Option<String>,
    /// Where the controller takes calls that register models and set vmodels, which the agent passes on: HOST:PORT [default: the
    /// controller's host, port 8033]
    #[arg(long, env = "BERTH_CONTROLLER_GRPC", value_name = "ENDPOINT")]
    controller_grpc: Option<String>,
    /// File with the token that the controller asks for; the variable BERTH_CONTROLLER_TOKEN may hold the token itself
    #[arg(long, env = "BERTH_CONTROLLER_TOKEN_FILE", value_name = "FILE")]
    controller_token_file: Option<String>,
    /// What this pod is called where failures are told [default: WKUBE_POD_NAME, else this machine's name]
    #[arg(long, env = "BERTH_POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// Which inference server: triton, mlserver, ovms, torchserve, or modelruntime for one that speaks ModelMesh's runtime contract
    #[arg(long, env = "BERTH_RUNTIME", value_name = "SERVER")]
    runtime: Option<String>,
    /// Where it takes orders: HOST:PORT, port:PORT or unix:PATH [default: RUNTIME_PORT on this host, else the server's usual port]
    #[arg(long, env = "BERTH_RUNTIME_ENDPOINT", value_name = "ENDPOINT")]
    runtime_endpoint: Option<String>,
    /// Where it takes requests, if elsewhere [default: RUNTIME_DATA_ENDPOINT, else the server's usual port, else where it takes
    /// orders]
    #[arg(long, env = "BERTH_RUNTIME_DATA_ENDPOINT", value_name = "ENDPOINT")]
    runtime_data_endpoint: Option<String>,
    /// Name of the ServingRuntime that describes it [default: triton-2.x, mlserver-1.x, ovms-1.x or torchserve-0.x]
    #[arg(long, env = "BERTH_SERVING_RUNTIME", value_name = "NAME")]
    serving_runtime: Option<String>,
    /// The folder that it reads models from, emptied at start [default: _triton_models and the like under ROOT_MODEL_DIR, else
    /// under /models]
    #[arg(long, env = "BERTH_REPOSITORY", value_name = "DIR")]
    repository: Option<String>,
    /// Loads at a time [default: LOADING_CONCURRENCY, else what the server says, else 1]
    #[arg(long, env = "BERTH_LOAD_CONCURRENCY", value_name = "N")]
    load_concurrency: Option<String>,
    /// A load that takes longer has failed [default: LOADTIME_TIMEOUT in milliseconds, else what the server says, else 90s]
    #[arg(long, env = "BERTH_LOAD_TIMEOUT", value_name = "DURATION")]
    load_timeout: Option<String>,
    /// How long the server may take at start until it answers [default: 180s]
    #[arg(long, env = "BERTH_START_TIMEOUT", value_name = "DURATION")]
    start_timeout: Option<String>,
    /// What a model takes before it was ever loaded: its bytes on disk times this [default: MODELSIZE_MULTIPLIER, else 1.25,
    /// 2.75 for TorchServe]
    #[arg(long, env = "BERTH_SIZE_FACTOR", value_name = "FACTOR")]
    size_factor: Option<String>,
    /// Requests that one copy of a model serves at a time; 0 is no limit [default: LIMIT_PER_MODEL_CONCURRENCY, else 0]
    #[arg(long, env = "BERTH_MODEL_CONCURRENCY", value_name = "N")]
    model_concurrency: Option<String>,
    /// Threads that pass gRPC requests on, each with connections of its own; 0: those that everything else runs on [default: the
    /// number of cores, at most 8]
    #[arg(long, env = "BERTH_GRPC_THREADS", value_name = "N")]
    grpc_threads: Option<String>,
    /// OpenVINO Model Server: the configuration file that it was started with, written anew at start [default: MODEL_CONFIG_FILE, else
    /// model_config_list.json under ROOT_MODEL_DIR, else under /models]
    #[arg(long, env = "BERTH_MODEL_CONFIG", value_name = "FILE")]
    model_config: Option<String>,
    /// TorchServe: requests that a worker computes together; 0 is the server's own [default: REQUEST_BATCH_SIZE, else 0]
    #[arg(long, env = "BERTH_BATCH_SIZE", value_name = "N")]
    batch_size: Option<String>,
    /// TorchServe: how long a batch waits to be full; 0s is the server's own [default: MAX_BATCH_DELAY_SECS, which counts
    /// milliseconds, else 0s]
    #[arg(long, env = "BERTH_BATCH_DELAY", value_name = "DURATION")]
    batch_delay: Option<String>,
    /// TorchServe: how long a worker may take for an answer; 0s is the server's own [default: 0s]
    #[arg(long, env = "BERTH_RESPONSE_TIMEOUT", value_name = "DURATION")]
    response_timeout: Option<String>,
    #[command(flatten)]
    memory: MemoryArgs,
}

/// The keys, as flags and as keys of the file.
pub(crate) const KEYS: [&str; 19] = [
    "controller",
    "controller-grpc",
    "controller-token-file",
    "pod-name",
    "runtime",
    "runtime-endpoint",
    "runtime-data-endpoint",
    "serving-runtime",
    "repository",
    "load-concurrency",
    "load-timeout",
    "start-timeout",
    "size-factor",
    "model-concurrency",
    "grpc-threads",
    "model-config",
    "batch-size",
    "batch-delay",
    "response-timeout",
];

impl AgentArgs {
    pub(crate) fn get(&self, key: &str) -> Option<&String> {
        match key {
            "controller" => self.controller.as_ref(),
            "controller-grpc" => self.controller_grpc.as_ref(),
            "controller-token-file" => self.controller_token_file.as_ref(),
            "pod-name" => self.pod_name.as_ref(),
            "runtime" => self.runtime.as_ref(),
            "runtime-endpoint" => self.runtime_endpoint.as_ref(),
            "runtime-data-endpoint" => self.runtime_data_endpoint.as_ref(),
            "serving-runtime" => self.serving_runtime.as_ref(),
            "repository" => self.repository.as_ref(),
            "load-concurrency" => self.load_concurrency.as_ref(),
            "load-timeout" => self.load_timeout.as_ref(),
            "start-timeout" => self.start_timeout.as_ref(),
            "size-factor" => self.size_factor.as_ref(),
            "model-concurrency" => self.model_concurrency.as_ref(),
            "grpc-threads" => self.grpc_threads.as_ref(),
            "model-config" => self.model_config.as_ref(),
            "batch-size" => self.batch_size.as_ref(),
            "batch-delay" => self.batch_delay.as_ref(),
            "response-timeout" => self.response_timeout.as_ref(),
            _ => self.memory.get(key),
        }
    }
}

/// ModelMesh's variable for one of our keys, and how its value reads in our words.
struct Upstream {
    key: &'static str,
    variable: &'static str,
    translate: fn(&str) -> String,
}

const fn upstream(key: &'static str, variable: &'static str, translate: fn(&str) -> String) -> Upstream {
    Upstream { key, variable, translate }
}

const UPSTREAM: [Upstream; 18] = [
    upstream("pod-name", "WKUBE_POD_NAME", str::to_owned),
    upstream("runtime-endpoint", "RUNTIME_PORT", |port| format!("port:{port}")),
    upstream("runtime-data-endpoint", "RUNTIME_DATA_ENDPOINT", str::to_owned),
    upstream("load-concurrency", "LOADING_CONCURRENCY", str::to_owned),
    upstream("load-timeout", "LOADTIME_TIMEOUT", |millis| format!("{millis}ms")),
    upstream("size-factor", "MODELSIZE_MULTIPLIER", str::to_owned),
    upstream("model-concurrency", "LIMIT_PER_MODEL_CONCURRENCY", str::to_owned),
    upstream("model-config", "MODEL_CONFIG_FILE", str::to_owned),
    upstream("batch-size", "REQUEST_BATCH_SIZE", str::to_owned),
    // Whatever it is called, its number went to the server as it is, which reads milliseconds.
    upstream("batch-delay", "MAX_BATCH_DELAY_SECS", |number| format!("{number}ms")),
    upstream("storage-config", "STORAGE_CONFIG_DIR", str::to_owned),
    upstream("pvc-mounts", "PVC_MOUNTS_DIR", str::to_owned),
    upstream("grpc", "MM_SVC_GRPC_PORT", |port| format!("0.0.0.0:{port}")),
    upstream("max-message", "MM_SVC_GRPC_MAX_MSG_SIZE", str::to_owned),
    upstream("probes", "MM_PROBE_PORT", |port| format!("0.0.0.0:{port}")),
    upstream("prestop", "MM_PRESTOP_WAIT_PORT", |port| format!("0.0.0.0:{port}")),
    upstream("drain-timeout", "SHUTDOWN_TIMEOUT_MS", |millis| format!("{millis}ms")),
    upstream("data", "ROOT_MODEL_DIR", |root| format!("{root}/_berth")),
];

/// The same for a server that speaks the runtime contract, the first that is set counts.
type Translation = (&'static str, &'static str, fn(&str) -> String);
const CONTRACT: [Translation; 5] = [
    ("runtime-endpoint", "MODEL_SERVER_ENDPOINT", str::to_owned),
    ("runtime-endpoint", "INTERNAL_GRPC_SOCKET_PATH", |path| format!("unix:{path}")),
    ("runtime-endpoint", "INTERNAL_GRPC_PORT", |port| format!("port:{port}")),
    ("runtime-data-endpoint", "INTERNAL_SERVING_GRPC_SOCKET_PATH", |path| format!("unix:{path}")),
    ("runtime-data-endpoint", "INTERNAL_SERVING_GRPC_PORT", |port| format!("port:{port}")),
];

/// The usual ports of probes and of the hook, where nothing else is said. In a pod that ModelMesh's controller made they are asked
/// from outside, by the numbers that its code has.
pub(crate) fn usual_ports(reading: &mut Reading, variable: &dyn Fn(&str) -> Option<OsString>) {
    let says = |name: &str| variable(name).is_some_and(|text| !text.is_empty());
    let in_its_pod = says("MM_SVC_GRPC_PORT") || says("WKUBE_POD_NAME");
    if in_its_pod && !says("MM_PROBE_PORT") {
        reading.give("probes", "0.0.0.0:8089".to_owned(), "ModelMesh's probe port");
    }
    let host = if in_its_pod && !says("MM_PRESTOP_WAIT_PORT") { "0.0.0.0" } else { "127.0.0.1" };
    reading.give("prestop", format!("{host}:8090"), "default of prestop");
}

/// Adds what ModelMesh's variables say where neither a flag nor one of our own variables did.
pub(crate) fn read_upstream(reading: &mut Reading, variable: &dyn Fn(&str) -> Option<OsString>) {
    let text = |name: &str| variable(name).map(|text| text.to_string_lossy().into_owned()).filter(|text| !text.is_empty());
    for Upstream { key, variable, translate } in UPSTREAM {
        // What they turn off, we leave where only this machine reaches it.
        if let Some(said) = text(variable).filter(|said| !(matches!(key, "grpc" | "probes" | "prestop") && matches!(said.as_str(), "NONE" | "0"))) {
            reading.give(key, translate(&said), variable);
        }
    }
    // The container's memory less what the server itself takes.
    if let Some(said) = text("CONTAINER_MEM_REQ_BYTES").filter(|_| reading.text("host-memory").is_none()) {
        let buffer = text("MEM_BUFFER_BYTES");
        let bytes = |text: &str| text.parse::<u64>().ok();
        match (bytes(&said), buffer.as_deref().map_or(Some(DEFAULT_BUFFER), bytes)) {
            (Some(all), Some(buffer)) if all > buffer => reading.give("host-memory", (all - buffer).to_string(), "CONTAINER_MEM_REQ_BYTES"),
            (Some(all), Some(buffer)) => {
                reading.faults.push(format!("CONTAINER_MEM_REQ_BYTES: {all} bytes less MEM_BUFFER_BYTES, {buffer}, leave nothing for models"));
            }
            (None, _) => reading.faults.push(format!("CONTAINER_MEM_REQ_BYTES: {said:?} is not a number of bytes")),
            (_, None) => reading.faults.push(format!("MEM_BUFFER_BYTES: {:?} is not a number of bytes", buffer.unwrap_or_default())),
        }
    }
}

/// `MEM_BUFFER_BYTES` where it is not given.
const DEFAULT_BUFFER: u64 = 256 << 20;

/// Which inference server stands beside this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerKind {
    /// NVIDIA's Triton Inference Server.
    Triton,
    /// Seldon's MLServer.
    MlServer,
    /// OpenVINO Model Server.
    Ovms,
    /// TorchServe.
    TorchServe,
    /// Any server that speaks `mmesh.ModelRuntime`.
    ModelRuntime,
}

/// What is usual for a kind of server.
struct Usual {
    kind: ServerKind,
    /// What `--runtime` calls it.
    word: &'static str,
    /// Name of the ServingRuntime; `None`: only its user can describe it.
    name: Option<&'static str>,
    /// Its folder of models.
    folder: &'static str,
    /// Where it takes orders.
    orders: &'static str,
    /// Where it takes requests, if elsewhere.
    requests: Option<&'static str>,
    /// What a model takes before it was ever loaded: its bytes on disk times this, in percent.
    size_percent: u32,
}

const USUAL: [Usual; 5] = [
    Usual {
        kind: ServerKind::Triton,
        word: "triton",
        name: Some("triton-2.x"),
        folder: "_triton_models",
        orders: "port:8001",
        requests: None,
        size_percent: 125,
    },
    Usual {
        kind: ServerKind::MlServer,
        word: "mlserver",
        name: Some("mlserver-1.x"),
        folder: "_mlserver_models",
        orders: "port:8001",
        requests: None,
        size_percent: 125,
    },
    Usual {
        kind: ServerKind::Ovms,
        word: "ovms",
        name: Some("ovms-1.x"),
        folder: "_ovms_models",
        // Its REST port.
        orders: "port:8888",
        requests: Some("port:8001"),
        size_percent: 125,
    },
    Usual {
        kind: ServerKind::TorchServe,
        word: "torchserve",
        name: Some("torchserve-0.x"),
        folder: "_torchserve_models",
        orders: "port:7071",
        requests: Some("port:7070"),
        // An archive is packed, and each model has a Python of its own.
        size_percent: 275,
    },
    Usual {
        kind: ServerKind::ModelRuntime,
        word: "modelruntime",
        name: None,
        folder: "_modelruntime_models",
        orders: "port:8085",
        requests: None,
        size_percent: 125,
    },
];

impl ServerKind {
    /// What `--runtime` calls it.
    pub(crate) fn word(self) -> &'static str {
        USUAL.iter().find(|usual| usual.kind == self).map_or("", |usual| usual.word)
    }
}

/// The words of all kinds, for messages.
fn words() -> String {
    let words = USUAL.map(|usual| usual.word);
    let (last, others) = words.split_last().map_or(("", &[][..]), |(last, others)| (*last, others));
    format!("{} or {last}", others.join(", "))
}

/// The inference server beside this process.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Beside {
    /// Which one.
    pub(crate) kind: ServerKind,
    /// Where it takes orders.
    pub(crate) orders: Target,
    /// Where else it may take orders, which is looked for first.
    pub(crate) socket: Option<Target>,
    /// Where it takes requests.
    pub(crate) requests: Target,
    /// Name of the ServingRuntime.
    pub(crate) name: Arc<str>,
    /// The folder that it reads models from.
    pub(crate) repository: PathBuf,
    /// Loads at a time, where that was given.
    pub(crate) load_concurrency: Option<NonZeroU32>,
    /// A load that takes longer has failed, where that was given.
    pub(crate) load_timeout: Option<Duration>,
    /// What is really in use of its memory.
    pub(crate) memory: memory::Settings,
    /// How long it may take at start until it answers.
    pub(crate) start_timeout: Duration,
    /// Bytes on disk to bytes in memory, in percent.
    pub(crate) size_percent: u32,
    /// Requests that one copy serves at a time.
    pub(crate) max_concurrency: Option<NonZeroU32>,
    /// Threads that pass gRPC requests on.
    pub(crate) grpc_threads: usize,
    /// The configuration file of an OpenVINO Model Server.
    pub(crate) model_config: PathBuf,
    /// How the workers of a TorchServe compute.
    pub(crate) batches: Batches,
}

/// How the workers of a TorchServe compute; `None` is the server's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Batches {
    /// Requests together.
    pub(crate) size: Option<NonZeroU32>,
    /// How long a batch waits to be full.
    pub(crate) delay: Option<Duration>,
    /// How long an answer may take.
    pub(crate) response_timeout: Option<Duration>,
}

/// The variable that may hold the controller's token: a command line can be seen by everybody on the machine.
const CONTROLLER_TOKEN: &str = "BERTH_CONTROLLER_TOKEN";

/// The usual port of a controller for calls that manage models.
const CALLS: u16 = 8033;

/// Who leads this agent. Faults are told in `reading`; then the answer is of no use.
pub(crate) fn role(reading: &mut Reading, standalone: bool, variable: &dyn Fn(&str) -> Option<OsString>) -> Role {
    let target = reading.parsed("controller", |text| text.parse::<Target>().map_err(|fault| fault.to_string()));
    match (standalone, reading.text("controller").is_some(), target) {
        (true, true, _) => reading.fault("controller", "--standalone is given as well: an agent has a controller, or a folder of its own"),
        (false, false, _) => reading.faults.push(
            "berth agent: who leads it? write --controller HOST:PORT, or --standalone for one that has a folder of resources of its own".to_owned(),
        ),
        (false, true, Some(target)) => {
            let held = variable(CONTROLLER_TOKEN).filter(|text| !text.is_empty());
            let file = reading.text("controller-token-file").map(PathBuf::from);
            let token = match (file, held) {
                (Some(_), Some(_)) => {
                    reading.fault("controller-token-file", format!("{CONTROLLER_TOKEN} is set as well: give the token in one of the two"));
                    None
                }
                (Some(path), None) => {
                    reading.parsed("controller-token-file", |_| token::read(&path)).map(|token| ApiToken { token, file: Some(path) })
                }
                (None, Some(text)) => match Token::new(text.to_str().unwrap_or("\0")) {
                    Ok(token) => Some(ApiToken { token, file: None }),
                    Err(fault) => {
                        reading.faults.push(format!("{CONTROLLER_TOKEN}: {fault}"));
                        None
                    }
                },
                (None, None) => None,
            };
            let given = reading.parsed("controller-grpc", |text| text.parse::<Target>().map_err(|fault| fault.to_string()));
            let usual = match target.peer() {
                Peer::Tcp { host, .. } if host.contains(':') => format!("[{host}]:{CALLS}").parse().ok(),
                Peer::Tcp { host, .. } => format!("{host}:{CALLS}").parse().ok(),
                Peer::Unix(_) => None,
            };
            return Role::Attends(Controller { target, calls: given.or(usual), token });
        }
        (true, false, _) | (false, true, None) => {}
    }
    Role::Alone
}

/// Checks what was given of the inference server. Faults are told in `reading`; then the answer is of no use.
pub(crate) fn check(reading: &mut Reading, variable: &dyn Fn(&str) -> Option<OsString>) -> Option<Beside> {
    let Some(word) = reading.text("runtime") else {
        reading.faults.push(format!("--runtime: which inference server is it? write {}", words()));
        return None;
    };
    let Some(usual) = USUAL.iter().find(|usual| usual.word == word) else {
        let problem = format!("{word:?} is no inference server that is known: write {}", words());
        reading.fault("runtime", problem);
        return None;
    };
    let name = reading.text("serving-runtime").or(usual.name).map(Arc::from);
    if name.is_none() {
        reading.faults.push("--serving-runtime: which ServingRuntime describes the server? write its name".to_owned());
    }
    if usual.kind == ServerKind::ModelRuntime {
        // What ModelMesh's own container is told; elsewhere these lead to an adapter of its.
        for (key, name, translate) in CONTRACT {
            if let Some(said) = variable(name).map(|text| text.to_string_lossy().into_owned()).filter(|text| !text.is_empty()) {
                reading.give(key, translate(&said), name);
            }
        }
    }
    let target = |text: &str| text.parse::<Target>().map_err(|fault| fault.to_string());
    let anywhere = usual.kind == ServerKind::ModelRuntime && reading.text("runtime-endpoint").is_none();
    let orders = reading.parsed("runtime-endpoint", target).or_else(|| usual.orders.parse().ok());
    let requests = reading.parsed("runtime-data-endpoint", target).or_else(|| usual.requests?.parse().ok()).or_else(|| orders.clone());
    let root = variable("ROOT_MODEL_DIR").filter(|root| !root.is_empty()).map_or_else(|| PathBuf::from("/models"), PathBuf::from);
    let repository = reading.text("repository").map_or_else(|| root.join(usual.folder), PathBuf::from);
    let count = |text: &str| text.parse::<u32>().map_err(|_not_a_number| format!("{text:?} is not a whole number"));
    let threads = |text: &str| match count(text)? as usize {
        threads if threads > MOST_THREADS => Err(format!("{threads} is too many: write a number up to {MOST_THREADS}")),
        threads => Ok(threads),
    };
    let above_zero = |text: &str| NonZeroU32::new(count(text)?).ok_or_else(|| "must be more than nothing".to_owned());
    let perhaps = |text: &str| humantime::parse_duration(text).map_err(|fault| format!("{text:?} is not a duration such as 30s or 2m: {fault}"));
    let duration = |text: &str| match perhaps(text)? {
        Duration::ZERO => Err("must be more than nothing".to_owned()),
        duration => Ok(duration),
    };
    let memory = orders.as_ref().map(|orders| memory::check(reading, orders));
    // The server is told these paths, and its working directory is another.
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    Some(Beside {
        kind: usual.kind,
        memory: memory?,
        orders: orders?,
        socket: if anywhere { USUAL_SOCKET.parse().ok() } else { None },
        requests: requests?,
        name: name?,
        repository: absolute(repository),
        load_concurrency: reading.parsed("load-concurrency", above_zero),
        load_timeout: reading.parsed("load-timeout", duration),
        start_timeout: reading.parsed("start-timeout", duration).unwrap_or(Duration::from_secs(180)),
        size_percent: reading.parsed("size-factor", percent).unwrap_or(usual.size_percent),
        max_concurrency: reading.parsed("model-concurrency", count).and_then(NonZeroU32::new),
        grpc_threads: reading.parsed("grpc-threads", threads).unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get).min(8)),
        model_config: absolute(reading.text("model-config").map_or_else(|| root.join("model_config_list.json"), PathBuf::from)),
        batches: Batches {
            size: reading.parsed("batch-size", count).and_then(NonZeroU32::new),
            delay: reading.parsed("batch-delay", perhaps).filter(|delay| !delay.is_zero()),
            response_timeout: reading.parsed("response-timeout", perhaps).filter(|timeout| !timeout.is_zero()),
        },
    })
}

/// A factor such as 1.25, in percent.
fn percent(text: &str) -> Result<u32, String> {
    const MOST: f64 = 1000.0;
    match text.parse::<f64>() {
        Ok(factor) if factor > 0.0 && factor <= MOST => {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 100,000")]
            let percent = (factor * 100.0).ceil() as u32;
            Ok(percent)
        }
        Ok(_) => Err(format!("{text} is no factor: write a number above 0 and up to {MOST}")),
        Err(_fault) => Err(format!("{text:?} is not a number such as 1.25")),
    }
}

/// Where servers of ModelMesh's contract listen that were told nothing, unless they do at their port.
const USUAL_SOCKET: &str = "unix:/tmp/mmesh/grpc.sock";
/// How often both places are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Beside {
    /// With one place for orders: of two the one that somebody listens at first, the socket before the port. Where nobody comes in
    /// time it is the port.
    pub(crate) async fn settled(mut self, net: &dyn Net, clock: &Clock) -> Self {
        let Some(socket) = self.socket.take() else { return self };
        let deadline = clock.deadline_in(self.start_timeout);
        let looking = async {
            loop {
                for place in [&socket, &self.orders] {
                    if net.dial(place.peer()).await.is_ok() {
                        return place.clone();
                    }
                }
                clock.sleep(LOOK_AGAIN).await;
            }
        };
        let orders = clock.until(deadline, looking).await.unwrap_or_else(|| self.orders.clone());
        self.start_timeout = deadline.left(clock.now()).max(LOOK_AGAIN);
        if self.requests == self.orders {
            self.requests = orders.clone();
        }
        self.memory.moved(&self.orders, &orders);
        Beside { orders, ..self }
    }

    /// The first of `folders` that would go when the server's folder is emptied.
    pub(crate) fn would_empty<'f>(&self, folders: impl IntoIterator<Item = &'f Path>) -> Option<&'f Path> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let repository = absolute(&self.repository);
        folders.into_iter().find(|folder| absolute(folder).starts_with(&repository))
    }

    /// For the line that is printed.
    pub(crate) fn line(&self) -> String {
        let socket = self.socket.as_ref().map(|socket| format!("{socket} or ")).unwrap_or_default();
        format!("{} at {socket}{}, models in {}", self.name, self.orders, self.repository.display())
    }
}

#[cfg(test)]
mod tests {
    use berth_telemetry::HostNet;

    use super::*;

    #[test]
    fn every_kind_has_a_word_a_folder_and_ports_of_its_own() {
        for usual in USUAL {
            let same = USUAL.iter().filter(|other| other.word == usual.word || other.kind == usual.kind || other.folder == usual.folder);
            assert_eq!(same.count(), 1, "{}", usual.word);
            for endpoint in [Some(usual.orders), usual.requests].into_iter().flatten() {
                assert!(endpoint.parse::<Target>().is_ok(), "{endpoint}");
            }
        }
        assert_eq!(words(), "triton, mlserver, ovms, torchserve or modelruntime");
    }

    /// A server of the contract that nobody said where to find.
    fn anywhere(variables: &[(&str, &str)]) -> Beside {
        let (kind, name) = ("modelruntime".to_owned(), "mine".to_owned());
        let mut reading = Reading::of_flags([("runtime", Some(&kind)), ("serving-runtime", Some(&name))]);
        check(&mut reading, &|name| variables.iter().find(|(known, _)| *known == name).map(|(_, text)| text.into())).expect("right")
    }

    #[test]
    fn the_usual_socket_is_looked_for_only_where_nobody_said_something_else() {
        let beside = anywhere(&[]);
        assert_eq!(
            (beside.socket.as_ref().map(ToString::to_string), beside.orders.to_string()),
            (Some(USUAL_SOCKET.to_owned()), "localhost:8085".to_owned())
        );
        assert!(beside.line().contains("at unix:/tmp/mmesh/grpc.sock or localhost:8085,"), "{}", beside.line());
        let beside = anywhere(&[("INTERNAL_GRPC_PORT", "8085")]);
        assert_eq!((beside.socket, beside.orders.to_string()), (None, "localhost:8085".to_owned()));
    }

    #[tokio::test]
    async fn of_two_places_the_one_counts_where_somebody_listens_and_the_socket_first() {
        let (clock, place) = (Clock::system(), tempfile::tempdir().expect("a folder"));
        let path = place.path().join("grpc.sock");
        let target = |text: &str| text.parse::<Target>().expect("a place");
        let (socket, here) = (target(&format!("unix:{}", path.display())), std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        let beside = |orders: &Target| {
            let start_timeout = Duration::from_millis(600);
            Beside { orders: orders.clone(), requests: orders.clone(), socket: Some(socket.clone()), start_timeout, ..anywhere(&[]) }
        };
        let nowhere = {
            let port = HostNet.listen(here).await.expect("a port").local_addr().expect("bound");
            target(&port.to_string())
        };
        assert_eq!(beside(&nowhere).settled(&HostNet, &clock).await.orders, nowhere, "nobody came");
        let listener = HostNet.listen(here).await.expect("a port");
        let port = target(&listener.local_addr().expect("bound").to_string());
        assert_eq!(beside(&port).settled(&HostNet, &clock).await.orders, port);
        let _socket = HostNet.listen_unix(&path).expect("a socket");
        let found = beside(&port).settled(&HostNet, &clock).await;
        assert_eq!((found.orders, found.requests, found.socket), (socket.clone(), socket, None), "and requests go there, too");
    }
}
