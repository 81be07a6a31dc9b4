//! What `berth serve` was told: defaults, then a file, then the environment, then flags. Every fault is found before
//! anything starts, and all of them are reported together.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_api::Token;
use berth_controller::Endpoints;
use berth_proxy::methods::DataPlane;
use berth_proxy::payloads::{Settings, processors};
use berth_proxy::{LogHeaders, TlsSettings};
use berth_types::ByteSize;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};

use crate::beside::{self, AgentArgs, Beside};
use crate::token::{self, ApiToken};
use crate::{attending, data_plane, memory, payloads, tls};

/// The flags of `berth serve`. Each is also an environment variable (`BERTH_...`) and a key of the configuration file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ServeArgs {
    /// Configuration file (TOML) [default: MANIFESTS/berth.toml if it exists]
    #[arg(long, env = "BERTH_CONFIG", value_name = "FILE")]
    config: Option<String>,
    /// Folder of resources (YAML or JSON), watched [default: examples/quickstart]
    #[arg(long, env = "BERTH_MANIFESTS", value_name = "DIR")]
    manifests: Option<String>,
    /// Folder for state and fetched models [default: ./berth-data]
    #[arg(long, env = "BERTH_DATA", value_name = "DIR")]
    data: Option<String>,
    /// Folder of storage keys, one JSON file each [default: MANIFESTS/storage-config if it exists, else /storage-config]
    #[arg(long, env = "BERTH_STORAGE_CONFIG", value_name = "DIR")]
    storage_config: Option<String>,
    /// Folder under which `pvc://NAME/...` finds NAME [default: /pvc_mounts]
    #[arg(long, env = "BERTH_PVC_MOUNTS", value_name = "DIR")]
    pvc_mounts: Option<String>,
    /// gRPC inference [default: 127.0.0.1:8033]
    #[arg(long, env = "BERTH_GRPC", value_name = "ADDR")]
    grpc: Option<String>,
    /// REST inference, or `off` [default: 127.0.0.1:8008]
    #[arg(long, env = "BERTH_REST", value_name = "ADDR|off")]
    rest: Option<String>,
    /// Certificate of the inference ports, PEM, with those that lead to its authority; it is followed as it changes. ModelMesh's
    /// MM_TLS_... variables count as well [default: plain text]
    #[arg(long, env = "BERTH_TLS_CERT", value_name = "FILE")]
    tls_cert: Option<String>,
    /// Private key to it, PEM; the passphrase of an encrypted one is in the variable BERTH_TLS_KEY_PASSPHRASE
    #[arg(long, env = "BERTH_TLS_KEY", value_name = "FILE")]
    tls_key: Option<String>,
    /// Certificates of clients: NONE, OPTIONAL or REQUIRE [default: NONE]
    #[arg(long, env = "BERTH_TLS_CLIENT_AUTH", value_name = "MODE")]
    tls_client_auth: Option<String>,
    /// Files of the certificates that clients are trusted by, PEM, separated by commas
    #[arg(long, env = "BERTH_TLS_CLIENT_CA", value_name = "FILES")]
    tls_client_ca: Option<String>,
    /// Resource API; other than loopback addresses need a token [default: 127.0.0.1:8088]
    #[arg(long, env = "BERTH_API", value_name = "ADDR")]
    api: Option<String>,
    /// File with the token that the resource API asks for; the variable BERTH_API_TOKEN may hold the token itself
    /// [default: no token, and a loopback address only]
    #[arg(long, env = "BERTH_API_TOKEN_FILE", value_name = "FILE")]
    api_token_file: Option<String>,
    /// Who may register models and set vmodels by calls of mmesh.ModelMesh: everybody (`open`), who has the API token
    /// (`token`), or nobody (`off`) [default: open where --grpc is a loopback address, else token if there is one, else off]
    #[arg(long, env = "BERTH_MANAGEMENT", value_name = "open|token|off")]
    management: Option<String>,
    /// Owner of vmodels whose call names none [default: MM_DEFAULT_VMODEL_OWNER, else none]
    #[arg(long, env = "BERTH_VMODEL_OWNER", value_name = "OWNER")]
    vmodel_owner: Option<String>,
    /// Prometheus metrics [default: 127.0.0.1:2112]
    #[arg(long, env = "BERTH_METRICS", value_name = "ADDR")]
    metrics: Option<String>,
    /// Liveness and readiness probes [default: 127.0.0.1:8089]
    #[arg(long, env = "BERTH_PROBES", value_name = "ADDR")]
    probes: Option<String>,
    /// Hook before the end, or `off`: GET /prestop drains, and is answered when that is done [default: off; berth agent
    /// 127.0.0.1:8090]
    #[arg(long, env = "BERTH_PRESTOP", value_name = "ADDR|off")]
    prestop: Option<String>,
    /// Main memory for models, such as 2Gi [default: half of the machine's or the cgroup's]
    #[arg(long, env = "BERTH_HOST_MEMORY", value_name = "SIZE")]
    host_memory: Option<String>,
    /// Disk for fetched models, such as 50Gi [default: half of what is free under DATA]
    #[arg(long, env = "BERTH_DISK", value_name = "SIZE")]
    disk: Option<String>,
    /// Bytes per second that all downloads may take together, such as 200Mi [default: no limit]
    #[arg(long, env = "BERTH_DOWNLOAD_RATE", value_name = "SIZE")]
    download_rate: Option<String>,
    /// Requests to model stores at once, over all downloads [default: 128]
    #[arg(long, env = "BERTH_DOWNLOAD_REQUESTS", value_name = "COUNT")]
    download_requests: Option<String>,
    /// ONNX Runtime's shared library; without it one is looked for, else the built-in engine serves
    #[arg(long, env = "BERTH_ONNX_LIBRARY", value_name = "FILE")]
    onnx_library: Option<String>,
    /// Largest request, over gRPC or REST [default: 16Mi]
    #[arg(long, env = "BERTH_MAX_MESSAGE", value_name = "SIZE")]
    max_message: Option<String>,
    /// Inferences at a time inside the embedded engine [default: the number of cores]
    #[arg(long, env = "BERTH_INFERENCE_THREADS", value_name = "N")]
    inference_threads: Option<String>,
    /// How long Ctrl-C waits for requests in flight, such as 30s [default: 30s]
    #[arg(long, env = "BERTH_DRAIN_TIMEOUT", value_name = "DURATION")]
    drain_timeout: Option<String>,
    /// Where copies of requests and answers go: http, https or logger URIs with blanks between them, each with ?MODEL and
    /// #package.Service/Method where not all are meant; MM_PAYLOAD_PROCESSORS counts as well [default: nowhere]
    #[arg(long, env = "BERTH_PAYLOAD_PROCESSORS", value_name = "URIS")]
    payload_processors: Option<String>,
    /// Payloads that are sent to a processor at a time [default: 2]
    #[arg(long, env = "BERTH_PAYLOAD_THREADS", value_name = "N")]
    payload_threads: Option<String>,
    /// Payloads that may wait for a processor; more are dropped [default: 64]
    #[arg(long, env = "BERTH_PAYLOAD_CAPACITY", value_name = "N")]
    payload_capacity: Option<String>,
    /// Bytes of all payloads that wait or are being sent; more are dropped [default: 64Mi]
    #[arg(long, env = "BERTH_PAYLOAD_BUDGET", value_name = "SIZE")]
    payload_budget: Option<String>,
    /// Largest message that becomes a payload [default: 16Mi]
    #[arg(long, env = "BERTH_PAYLOAD_LIMIT", value_name = "SIZE")]
    payload_limit: Option<String>,
    /// Files of the authorities that https processors are trusted by besides those of this machine, PEM, separated by commas
    #[arg(long, env = "BERTH_PAYLOAD_CA", value_name = "FILES")]
    payload_ca: Option<String>,
    /// Headers of requests that become fields of their log lines: {"HEADER": "KEY"}; MM_LOG_REQUEST_HEADERS counts as well
    #[arg(long, env = "BERTH_LOG_REQUEST_HEADERS", value_name = "JSON")]
    log_request_headers: Option<String>,
    /// Which methods clients may call, and where their messages name a model; MM_DATAPLANE_CONFIG counts as well [default: all]
    #[arg(long, env = "BERTH_DATAPLANE_CONFIG", value_name = "JSON")]
    dataplane_config: Option<String>,
    /// The same in a file, which is followed as it changes; MM_DATAPLANE_CONFIG_PATH counts as well
    #[arg(long, env = "BERTH_DATAPLANE_CONFIG_PATH", value_name = "FILE")]
    dataplane_config_path: Option<String>,
    /// Log filter, such as info or warn,berth_residency=debug [default: info; on a terminal warn]
    #[arg(long, env = "BERTH_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Log format: text or json [default: text]
    #[arg(long, env = "BERTH_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<String>,
}

/// The flags of `berth controller`. Each is also an environment variable (`BERTH_...`) and a key of the configuration file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ControllerArgs {
    /// Configuration file (TOML) [default: MANIFESTS/berth.toml if it exists]
    #[arg(long, env = "BERTH_CONFIG", value_name = "FILE")]
    config: Option<String>,
    /// Folder of resources (YAML or JSON), watched [default: examples/quickstart]
    #[arg(long, env = "BERTH_MANIFESTS", value_name = "DIR")]
    manifests: Option<String>,
    /// Folder for state [default: ./berth-data]
    #[arg(long, env = "BERTH_DATA", value_name = "DIR")]
    data: Option<String>,
    /// Where agents attend; other than loopback addresses need a token [default: 127.0.0.1:8034]
    #[arg(long, env = "BERTH_AGENTS", value_name = "ADDR")]
    agents: Option<String>,
    /// Calls that register models and set vmodels (mmesh.ModelMesh); inference goes to the agents [default: 127.0.0.1:8033]
    #[arg(long, env = "BERTH_GRPC", value_name = "ADDR")]
    grpc: Option<String>,
    /// Who may change something there: everybody (`open`), who has the API token (`token`), or nobody (`off`) [default: open where
    /// --grpc is a loopback address, else token if there is one, else off]
    #[arg(long, env = "BERTH_MANAGEMENT", value_name = "open|token|off")]
    management: Option<String>,
    /// Resource API; other than loopback addresses need a token [default: 127.0.0.1:8088]
    #[arg(long, env = "BERTH_API", value_name = "ADDR")]
    api: Option<String>,
    /// File with the token that the resource API and the port of the agents ask for; the variable BERTH_API_TOKEN may hold the
    /// token itself [default: no token, and loopback addresses only]
    #[arg(long, env = "BERTH_API_TOKEN_FILE", value_name = "FILE")]
    api_token_file: Option<String>,
    /// Where clients reach gRPC inference, for statuses, such as grpc://models.example:8033 [default: nothing is said]
    #[arg(long, env = "BERTH_GRPC_URL", value_name = "URL")]
    grpc_url: Option<String>,
    /// Where clients reach REST inference, for statuses, such as http://models.example:8008 [default: nothing is said]
    #[arg(long, env = "BERTH_REST_URL", value_name = "URL")]
    rest_url: Option<String>,
    /// Owner of vmodels whose call names none [default: MM_DEFAULT_VMODEL_OWNER, else none]
    #[arg(long, env = "BERTH_VMODEL_OWNER", value_name = "OWNER")]
    vmodel_owner: Option<String>,
    /// Prometheus metrics [default: 127.0.0.1:2112]
    #[arg(long, env = "BERTH_METRICS", value_name = "ADDR")]
    metrics: Option<String>,
    /// Liveness and readiness probes [default: 127.0.0.1:8089]
    #[arg(long, env = "BERTH_PROBES", value_name = "ADDR")]
    probes: Option<String>,
    /// Log filter, such as info or warn,berth_controller=debug [default: info; on a terminal warn]
    #[arg(long, env = "BERTH_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// Log format: text or json [default: text]
    #[arg(long, env = "BERTH_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<String>,
}

/// The keys of `berth controller`.
const LEADING_KEYS: [&str; 14] = [
    "manifests",
    "data",
    "agents",
    "grpc",
    "management",
    "api",
    "api-token-file",
    "grpc-url",
    "rest-url",
    "vmodel-owner",
    "metrics",
    "probes",
    "log",
    "log-format",
];

impl ControllerArgs {
    fn get(&self, key: &str) -> Option<&String> {
        match key {
            "manifests" => self.manifests.as_ref(),
            "data" => self.data.as_ref(),
            "agents" => self.agents.as_ref(),
            "grpc" => self.grpc.as_ref(),
            "management" => self.management.as_ref(),
            "api" => self.api.as_ref(),
            "api-token-file" => self.api_token_file.as_ref(),
            "grpc-url" => self.grpc_url.as_ref(),
            "rest-url" => self.rest_url.as_ref(),
            "vmodel-owner" => self.vmodel_owner.as_ref(),
            "metrics" => self.metrics.as_ref(),
            "probes" => self.probes.as_ref(),
            "log" => self.log.as_ref(),
            "log-format" => self.log_format.as_ref(),
            _ => None,
        }
    }
}

/// Which command is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `berth serve`.
    Serve,
    /// `berth agent`.
    Agent,
    /// `berth controller`.
    Controller,
}

/// Whether this process leads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Role {
    /// Itself, and nobody else.
    Alone,
    /// A controller elsewhere does.
    Attends(attending::Controller),
    /// Agents that attend at this address.
    Leads(SocketAddr),
}

/// Everything that `berth serve` needs to know, checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Config {
    /// The file that was read, if any.
    pub(crate) file: Option<PathBuf>,
    /// Watched folder of resources.
    pub(crate) manifests: PathBuf,
    /// State and fetched models.
    pub(crate) data: PathBuf,
    /// Storage keys; `None` when there is no such folder (models in `pvc` folders need none).
    pub(crate) storage_config: Option<PathBuf>,
    /// Root of `pvc` volumes.
    pub(crate) pvc_mounts: PathBuf,
    /// gRPC inference.
    pub(crate) grpc: SocketAddr,
    /// REST inference; `None` is off.
    pub(crate) rest: Option<SocketAddr>,
    /// TLS of gRPC and REST; `None` is plain text.
    pub(crate) tls: Option<TlsSettings>,
    /// Resource API.
    pub(crate) api: SocketAddr,
    /// What the resource API asks for; `None` lets in everybody on this machine.
    pub(crate) api_token: Option<ApiToken>,
    /// Who may change what calls manage.
    pub(crate) management: ManagementMode,
    /// Owner of vmodels whose call names none.
    pub(crate) vmodel_owner: Option<Arc<str>>,
    /// Metrics.
    pub(crate) metrics: SocketAddr,
    /// Probes.
    pub(crate) probes: SocketAddr,
    /// Hook before the end; `None` is off.
    pub(crate) prestop: Option<SocketAddr>,
    /// Main memory for models; `None` asks the machine.
    pub(crate) host_memory: Option<ByteSize>,
    /// Disk for fetched models; `None` asks the machine.
    pub(crate) disk: Option<ByteSize>,
    /// Bytes per second that all downloads may take together; `None` sets no limit.
    pub(crate) download_rate: Option<ByteSize>,
    /// Requests to model stores at once; `None` leaves it at the default.
    pub(crate) download_requests: Option<NonZeroUsize>,
    /// ONNX Runtime's library.
    pub(crate) onnx_library: Option<PathBuf>,
    /// Largest request.
    pub(crate) max_message: ByteSize,
    /// Inferences at a time; `None` is one per core.
    pub(crate) inference_threads: Option<NonZeroUsize>,
    /// Patience of a drain.
    pub(crate) drain_timeout: Duration,
    /// Who looks at requests and answers.
    pub(crate) payloads: payloads::Configured,
    /// Headers that become fields of the log.
    pub(crate) log_headers: LogHeaders,
    /// Which methods clients may call; `None` is all.
    pub(crate) data_plane: Option<data_plane::Configured>,
    /// Log filter; `None` chooses by terminal.
    pub(crate) log: Option<String>,
    /// JSON logs.
    pub(crate) log_json: bool,
    /// The inference server beside this process; `None` is the embedded engine.
    pub(crate) beside: Option<Beside>,
    /// Whether this process leads.
    pub(crate) role: Role,
    /// What statuses of a controller say about where clients connect.
    pub(crate) endpoints: Endpoints,
    /// What this pod is called; `None` asks the machine.
    pub(crate) pod_name: Option<String>,
}

/// Who may change what calls of `mmesh.ModelMesh` manage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ManagementMode {
    /// Everybody who reaches the gRPC port.
    Open,
    /// Who has the token of the resource API.
    Token,
    /// Nobody.
    Off,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConfigFaults(pub(crate) Vec<String>);

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "{one}"),
            many => {
                write!(f, "{} faults in the configuration:", many.len())?;
                many.iter().try_for_each(|fault| write!(f, "\n  - {fault}"))
            }
        }
    }
}

impl std::error::Error for ConfigFaults {}

/// One setting as it was given, and by what.
pub(crate) struct Given {
    text: String,
    origin: String,
}

/// The settings as given, and the faults found so far.
pub(crate) struct Reading {
    given: BTreeMap<&'static str, Given>,
    pub(crate) faults: Vec<String>,
}

/// The keys, as flags and as keys of the file.
const KEYS: [&str; 36] = [
    "manifests",
    "data",
    "storage-config",
    "pvc-mounts",
    "grpc",
    "rest",
    "tls-cert",
    "tls-key",
    "tls-client-auth",
    "tls-client-ca",
    "api",
    "api-token-file",
    "management",
    "vmodel-owner",
    "metrics",
    "probes",
    "prestop",
    "host-memory",
    "disk",
    "download-rate",
    "download-requests",
    "onnx-library",
    "max-message",
    "inference-threads",
    "drain-timeout",
    "payload-processors",
    "payload-threads",
    "payload-capacity",
    "payload-budget",
    "payload-limit",
    "payload-ca",
    "log-request-headers",
    "dataplane-config",
    "dataplane-config-path",
    "log",
    "log-format",
];

impl ServeArgs {
    fn get(&self, key: &str) -> Option<&String> {
        match key {
            "manifests" => self.manifests.as_ref(),
            "data" => self.data.as_ref(),
            "storage-config" => self.storage_config.as_ref(),
            "pvc-mounts" => self.pvc_mounts.as_ref(),
            "grpc" => self.grpc.as_ref(),
            "rest" => self.rest.as_ref(),
            "tls-cert" => self.tls_cert.as_ref(),
            "tls-key" => self.tls_key.as_ref(),
            "tls-client-auth" => self.tls_client_auth.as_ref(),
            "tls-client-ca" => self.tls_client_ca.as_ref(),
            "api" => self.api.as_ref(),
            "api-token-file" => self.api_token_file.as_ref(),
            "management" => self.management.as_ref(),
            "vmodel-owner" => self.vmodel_owner.as_ref(),
            "metrics" => self.metrics.as_ref(),
            "probes" => self.probes.as_ref(),
            "prestop" => self.prestop.as_ref(),
            "host-memory" => self.host_memory.as_ref(),
            "disk" => self.disk.as_ref(),
            "download-rate" => self.download_rate.as_ref(),
            "download-requests" => self.download_requests.as_ref(),
            "onnx-library" => self.onnx_library.as_ref(),
            "max-message" => self.max_message.as_ref(),
            "inference-threads" => self.inference_threads.as_ref(),
            "drain-timeout" => self.drain_timeout.as_ref(),
            "payload-processors" => self.payload_processors.as_ref(),
            "payload-threads" => self.payload_threads.as_ref(),
            "payload-capacity" => self.payload_capacity.as_ref(),
            "payload-budget" => self.payload_budget.as_ref(),
            "payload-limit" => self.payload_limit.as_ref(),
            "payload-ca" => self.payload_ca.as_ref(),
            "log-request-headers" => self.log_request_headers.as_ref(),
            "dataplane-config" => self.dataplane_config.as_ref(),
            "dataplane-config-path" => self.dataplane_config_path.as_ref(),
            "log" => self.log.as_ref(),
            "log-format" => self.log_format.as_ref(),
            _ => None,
        }
    }
}

impl Reading {
    /// Of these flags, by their keys, and nothing else.
    pub(crate) fn of_flags<'t>(flags: impl IntoIterator<Item = (&'static str, Option<&'t String>)>) -> Self {
        let mut reading = Reading { given: BTreeMap::new(), faults: Vec::new() };
        for (key, text) in flags {
            if let Some(text) = text {
                reading.give(key, text.clone(), &format!("--{key}"));
            }
        }
        reading
    }

    /// Adds a setting, unless it was given already.
    pub(crate) fn give(&mut self, key: &'static str, text: String, origin: &str) {
        self.given.entry(key).or_insert_with(|| Given { text, origin: origin.to_owned() });
    }

    pub(crate) fn fault(&mut self, key: &str, problem: impl fmt::Display) {
        let origin = self.given.get(key).map_or_else(|| format!("default of {key}"), |given| given.origin.clone());
        self.faults.push(format!("{origin}: {problem}"));
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.given.get(key).map(|given| given.text.as_str())
    }

    pub(crate) fn parsed<T>(&mut self, key: &str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match read(self.text(key)?) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.fault(key, problem);
                None
            }
        }
    }

    fn address(&mut self, key: &str, port: u16) -> SocketAddr {
        let usual = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        self.parsed(key, |text| {
            text.parse::<SocketAddr>().map_err(|_| format!("{text:?} is not an address: write IP:PORT, such as 127.0.0.1:{port} or 0.0.0.0:{port}"))
        })
        .unwrap_or(usual)
    }
}

/// Reads flags, environment and file into one [`Config`].
///
/// # Errors
/// [`ConfigFaults`]: every fault, each with the flag, variable or file key that it came from.
pub(crate) fn read(matches: &ArgMatches, command: Command) -> Result<Config, ConfigFaults> {
    let mut config = read_with(matches, command, &|name| std::env::var_os(name))?;
    config.vmodel_owner = config.vmodel_owner.or_else(|| std::env::var(DEFAULT_OWNER).ok().filter(|owner| !owner.is_empty()).map(Arc::from));
    Ok(config)
}

/// The one setting that is a variable only: a command line can be seen by everybody on the machine, and a file of settings
/// is no place for secrets.
const TOKEN: &str = "BERTH_API_TOKEN";

/// Where ModelMesh takes the owner of vmodels from.
const DEFAULT_OWNER: &str = "MM_DEFAULT_VMODEL_OWNER";

/// `variable` is the content of an environment variable.
fn read_with(matches: &ArgMatches, command: Command, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Config, ConfigFaults> {
    let unreadable = |fault: clap::Error| ConfigFaults(vec![fault.to_string()]);
    let (args, agent, leader) = match command {
        Command::Serve => (ServeArgs::from_arg_matches(matches).map_err(unreadable)?, None, None),
        Command::Agent => {
            let args = AgentArgs::from_arg_matches(matches).map_err(unreadable)?;
            (args.serve.clone(), Some(args), None)
        }
        Command::Controller => {
            let args = ControllerArgs::from_arg_matches(matches).map_err(unreadable)?;
            (ServeArgs { config: args.config.clone(), ..ServeArgs::default() }, None, Some(args))
        }
    };
    let mut reading = Reading { given: BTreeMap::new(), faults: Vec::new() };
    let keys: Vec<&'static str> = match command {
        Command::Serve => KEYS.to_vec(),
        Command::Agent => KEYS.into_iter().chain(beside::KEYS).chain(memory::KEYS).collect(),
        Command::Controller => LEADING_KEYS.to_vec(),
    };
    for &key in &keys {
        if let Some(text) = args.get(key).or_else(|| agent.as_ref()?.get(key)).or_else(|| leader.as_ref()?.get(key)) {
            let origin = match matches.value_source(&key.replace('-', "_")) {
                Some(ValueSource::EnvVariable) => format!("BERTH_{}", key.replace('-', "_").to_uppercase()),
                _ => format!("--{key}"),
            };
            reading.given.insert(key, Given { text: text.clone(), origin });
        }
    }
    // After our own names, before the file.
    let requests = tls::UPSTREAM.into_iter().chain(payloads::UPSTREAM).chain(data_plane::UPSTREAM);
    for (key, names) in requests.filter(|_| leader.is_none()) {
        let given = names.iter().find_map(|name| Some((name, variable(name).filter(|text| !text.is_empty())?)));
        if let Some((name, text)) = given {
            reading.given.entry(key).or_insert(Given { text: text.to_string_lossy().into_owned(), origin: (*name).to_owned() });
        }
    }
    if agent.is_some() {
        beside::read_upstream(&mut reading, variable);
    }
    let named = args.config.as_ref().map(PathBuf::from);
    let has_folder = reading.text("controller").is_none();
    let file = named.clone().or_else(|| {
        let beside = Path::new(reading.text("manifests").unwrap_or(DEFAULT_MANIFESTS)).join("berth.toml");
        (has_folder && beside.is_file()).then_some(beside)
    });
    if let Some(path) = &file {
        // What a folder of resources says to `berth serve` says nothing to who leads.
        let of_others: &[&str] = if leader.is_some() { &KEYS } else { &[] };
        read_file(path, &mut reading, &keys, of_others);
    }
    if agent.is_some() {
        beside::usual_ports(&mut reading, variable);
    }
    let role = match (&agent, command) {
        (Some(args), _) => beside::role(&mut reading, args.standalone, variable),
        (None, Command::Controller) => leads(&mut reading, variable),
        (None, _) => Role::Alone,
    };
    let mut config = check(&mut reading, file, role, variable);
    config.beside = agent.and_then(|_| beside::check(&mut reading, variable));
    let model_config = config.beside.as_ref().filter(|beside| beside.kind == beside::ServerKind::Ovms).map(|beside| &beside.model_config);
    let folders = [Some(&config.manifests), Some(&config.data), Some(&config.pvc_mounts), config.storage_config.as_ref(), model_config];
    if let Some(lost) = config.beside.as_ref().and_then(|beside| beside.would_empty(folders.into_iter().flatten().map(PathBuf::as_path))) {
        reading.fault("repository", format!("it is emptied at start, and {} lies in it: name another folder", lost.display()));
    }
    if reading.faults.is_empty() { Ok(config) } else { Err(ConfigFaults(reading.faults)) }
}

const DEFAULT_MANIFESTS: &str = "examples/quickstart";

/// Adds what the file says where neither a flag nor a variable did. Relative paths in it start at its own folder. `of_others` are
/// keys that are passed over.
fn read_file(path: &Path, reading: &mut Reading, keys: &[&'static str], of_others: &[&str]) {
    let shown = path.display();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(fault) => return reading.faults.push(format!("configuration file {shown}: {fault}")),
    };
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(fault) => return reading.faults.push(format!("configuration file {shown}: {}", fault.to_string().trim_end().replace('\n', "\n    "))),
    };
    for (key, value) in table {
        let Some(known) = keys.iter().find(|known| **known == key) else {
            if of_others.contains(&key.as_str()) {
                continue;
            }
            reading.faults.push(format!("configuration file {shown}: unknown key {key:?}: the keys are {}", keys.join(", ")));
            continue;
        };
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            other => {
                reading.faults.push(format!("configuration file {shown}: {key} must be a text or a whole number, not {}", other.type_str()));
                continue;
            }
        };
        let beside = |text: &str| path.parent().unwrap_or(Path::new(".")).join(text).to_string_lossy().into_owned();
        let text = match *known {
            "manifests"
            | "data"
            | "storage-config"
            | "pvc-mounts"
            | "onnx-library"
            | "api-token-file"
            | "controller-token-file"
            | "tls-cert"
            | "tls-key"
            | "dataplane-config-path"
            | "repository"
            | "model-config" => beside(&text),
            "tls-client-ca" | "payload-ca" => text.split(',').map(|file| beside(file.trim())).collect::<Vec<_>>().join(","),
            _ => text,
        };
        reading.given.entry(known).or_insert(Given { text, origin: format!("{shown}: {key}") });
    }
}

/// The token of the resource API. A fault is told here; what is given and faulty is `None`.
fn api_token(reading: &mut Reading, variable: Option<OsString>) -> Option<ApiToken> {
    match (reading.text("api-token-file").map(PathBuf::from), variable) {
        (None, None) => None,
        (Some(_), Some(_)) => {
            reading.fault("api-token-file", format!("{TOKEN} is set as well: give the token in one of the two"));
            None
        }
        (Some(path), None) => {
            let token = reading.parsed("api-token-file", |_| token::read(&path))?;
            Some(ApiToken { token, file: Some(path) })
        }
        (None, Some(text)) => match Token::new(text.to_str().unwrap_or("\0")) {
            Ok(token) => Some(ApiToken { token, file: None }),
            Err(fault) => {
                reading.faults.push(format!("{TOKEN}: {fault}"));
                None
            }
        },
    }
}

/// TLS of the inference ports. Faults are told here.
fn tls_settings(reading: &mut Reading, variable: &dyn Fn(&str) -> Option<OsString>) -> Option<TlsSettings> {
    let setting = |key: &str| reading.given.get(key).filter(|given| !given.text.is_empty()).map(|given| (given.text.clone(), given.origin.clone()));
    let (certificate, key) = (setting("tls-cert"), setting("tls-key"));
    let given = tls::Given { certificate, key, client_auth: setting("tls-client-auth"), client_ca: setting("tls-client-ca") };
    match tls::settings(given, tls::passphrase(variable)) {
        Ok(settings) => settings,
        Err(faults) => {
            reading.faults.extend(faults);
            None
        }
    }
}

/// Payload processors. Faults are told here.
fn payload_processors(reading: &mut Reading, max_message: ByteSize) -> payloads::Configured {
    let usual = Settings::default();
    let size = |text: &str| text.parse::<ByteSize>().map_err(|fault| fault.to_string()).and_then(nonzero);
    let settings = Settings {
        senders: reading.parsed("payload-threads", payloads::count).unwrap_or(usual.senders),
        capacity: reading.parsed("payload-capacity", payloads::count).unwrap_or(usual.capacity),
        budget: reading.parsed("payload-budget", size).unwrap_or(usual.budget),
        limit: reading.parsed("payload-limit", size).unwrap_or(usual.limit.max(max_message)),
    };
    let processors = reading.parsed("payload-processors", |list| processors(list).map_err(|faults| faults.join("; "))).unwrap_or_default();
    let ca = reading.parsed("payload-ca", payloads::authorities).unwrap_or_default();
    payloads::Configured { processors, settings, ca }
}

fn nonzero(size: ByteSize) -> Result<ByteSize, String> {
    if size == ByteSize::ZERO { Err("must be more than nothing".to_owned()) } else { Ok(size) }
}

/// The data plane's configuration. Faults are told here.
fn data_plane(reading: &mut Reading) -> Option<data_plane::Configured> {
    let given = |key: &str| reading.text(key).is_some_and(|text| !text.is_empty());
    match (given("dataplane-config"), given("dataplane-config-path")) {
        (false, false) => None,
        (true, true) => {
            let other = &reading.given["dataplane-config-path"].origin;
            reading.fault("dataplane-config", format!("{other} is set as well: give the configuration in one of the two"));
            None
        }
        (true, false) => reading.parsed("dataplane-config", |text| Ok(data_plane::Configured { plane: DataPlane::parse(text)?, file: None })),
        (false, true) => reading.parsed("dataplane-config-path", |text| {
            let path = PathBuf::from(text);
            Ok(data_plane::Configured { plane: data_plane::read(&path)?, file: Some(path) })
        }),
    }
}

/// Where agents attend. Faults are told here.
fn leads(reading: &mut Reading, variable: &dyn Fn(&str) -> Option<OsString>) -> Role {
    let agents = reading.address("agents", 8034);
    let token_given = variable(TOKEN).is_some() || reading.text("api-token-file").is_some();
    if !agents.ip().is_loopback() && !token_given {
        let problem =
            format!("{agents} can be reached from elsewhere: give the agents a token with --api-token-file FILE, or use a loopback address");
        reading.fault("agents", problem);
    }
    Role::Leads(agents)
}

fn check(reading: &mut Reading, file: Option<PathBuf>, role: Role, variable: &dyn Fn(&str) -> Option<OsString>) -> Config {
    let attends = matches!(role, Role::Attends(_));
    if attends && reading.text("manifests").is_some() {
        reading.fault("manifests", "the controller has the resources: give it the folder");
    }
    let manifests = PathBuf::from(reading.text("manifests").unwrap_or(DEFAULT_MANIFESTS));
    if !attends && !manifests.is_dir() {
        let what = if manifests.exists() { "is not a folder" } else { "there is no such folder" };
        reading
            .fault("manifests", format!("{}: {what}: name the folder that holds your InferenceService files with --manifests", manifests.display()));
    }
    let data = PathBuf::from(reading.text("data").unwrap_or("berth-data"));
    if data.exists() && !data.is_dir() {
        reading.fault("data", format!("{} is not a folder", data.display()));
    }
    let storage_config = match reading.text("storage-config").map(PathBuf::from) {
        Some(named) => {
            if !named.is_dir() {
                reading
                    .fault("storage-config", format!("{}: there is no such folder: it should hold one JSON file per storage key", named.display()));
            }
            Some(named)
        }
        None => [manifests.join("storage-config"), PathBuf::from("/storage-config")].into_iter().find(|usual| usual.is_dir()),
    };
    let pvc_mounts = PathBuf::from(reading.text("pvc-mounts").unwrap_or("/pvc_mounts"));
    let onnx_library = reading.text("onnx-library").filter(|text| !text.is_empty()).map(PathBuf::from);
    if let Some(missing) = onnx_library.as_ref().filter(|path| !path.is_file()) {
        reading.fault("onnx-library", format!("{}: there is no such file", missing.display()));
    }
    let grpc = reading.address("grpc", 8033);
    let rest = if reading.text("rest") == Some("off") { None } else { Some(reading.address("rest", 8008)) };
    let tls = tls_settings(reading, variable);
    let api = reading.address("api", 8088);
    let token = variable(TOKEN);
    let token_given = token.is_some() || reading.text("api-token-file").is_some();
    let api_token = api_token(reading, token);
    if !api.ip().is_loopback() && !token_given {
        reading.fault(
            "api",
            format!("{api} can be reached from elsewhere: give the resource API a token with --api-token-file FILE, or use a loopback address"),
        );
    }
    // A port that others reach is open to changes only where somebody said so.
    let usual = match (grpc.ip().is_loopback(), token_given) {
        (true, _) => ManagementMode::Open,
        (false, true) => ManagementMode::Token,
        (false, false) => ManagementMode::Off,
    };
    let asked = reading.parsed("management", |text| match text {
        "open" => Ok(ManagementMode::Open),
        "token" if !token_given => Err("there is no token: give one with --api-token-file FILE".to_owned()),
        "token" => Ok(ManagementMode::Token),
        "off" => Ok(ManagementMode::Off),
        other => Err(format!("{other:?} is no mode: write open, token or off")),
    });
    let management = asked.unwrap_or(usual);
    let vmodel_owner = reading.text("vmodel-owner").filter(|owner| !owner.is_empty()).map(Arc::from);
    let metrics = reading.address("metrics", 2112);
    let probes = reading.address("probes", 8089);
    let prestop = if matches!(reading.text("prestop"), None | Some("off")) { None } else { Some(reading.address("prestop", 8090)) };
    let mut seen: BTreeMap<SocketAddr, &str> = BTreeMap::new();
    let agents = if let Role::Leads(agents) = &role { Some(*agents) } else { None };
    let always = [("grpc", grpc), ("api", api), ("metrics", metrics), ("probes", probes)].map(|(key, addr)| (key, Some(addr)));
    let requests = [("rest", rest), ("prestop", prestop)].into_iter().filter(|_| agents.is_none());
    for (key, addr) in requests.chain([("agents", agents)]).chain(always) {
        let Some(addr) = addr.filter(|addr| addr.port() != 0) else { continue };
        if let Some(other) = seen.insert(addr, key) {
            reading.fault(key, format!("{addr} is taken by {other} already: give each its own port"));
        }
    }
    let size = |text: &str| text.parse::<ByteSize>().map_err(|fault| fault.to_string());
    let nonzero = |text: &str| size(text).and_then(nonzero);
    let host_memory = reading.parsed("host-memory", nonzero);
    let disk = reading.parsed("disk", nonzero);
    let download_rate = reading.parsed("download-rate", nonzero);
    let download_requests = reading.parsed("download-requests", |text| {
        text.parse::<NonZeroUsize>().map_err(|_| format!("{text:?} is not a number of requests: write a whole number above 0"))
    });
    let max_message = reading
        .parsed("max-message", |text| {
            nonzero(text)
                .and_then(|size| if size > ByteSize::mib(2047) { Err(format!("{size} is more than gRPC allows (2047Mi)")) } else { Ok(size) })
        })
        .unwrap_or(ByteSize::mib(16));
    let inference_threads = reading.parsed("inference-threads", |text| {
        text.parse::<NonZeroUsize>().map_err(|_| format!("{text:?} is not a number of threads: write a whole number above 0"))
    });
    let drain_timeout = reading
        .parsed("drain-timeout", |text| {
            humantime::parse_duration(text).map_err(|fault| format!("{text:?} is not a duration such as 30s or 2m: {fault}"))
        })
        .unwrap_or(Duration::from_secs(30));
    let payloads = payload_processors(reading, max_message);
    let log_headers = reading.parsed("log-request-headers", |text| if text.is_empty() { Ok(LogHeaders::default()) } else { LogHeaders::parse(text) });
    let data_plane = data_plane(reading);
    let log_json = reading
        .parsed("log-format", |text| match text {
            "text" => Ok(false),
            "json" => Ok(true),
            other => Err(format!("{other:?} is no log format: write text or json")),
        })
        .unwrap_or(false);
    let log = reading.parsed("log", |text| {
        berth_telemetry::log::check(text)?;
        Ok(text.to_owned())
    });
    Config {
        file,
        manifests,
        data,
        storage_config,
        pvc_mounts,
        grpc,
        rest,
        tls,
        api,
        api_token,
        management,
        vmodel_owner,
        metrics,
        probes,
        prestop,
        host_memory,
        disk,
        download_rate,
        download_requests,
        onnx_library,
        max_message,
        inference_threads,
        drain_timeout,
        payloads,
        log_headers: log_headers.unwrap_or_default(),
        data_plane,
        log,
        log_json,
        beside: None,
        role,
        endpoints: Endpoints { grpc: reading.text("grpc-url").map(str::to_owned), rest: reading.text("rest-url").map(str::to_owned) },
        pod_name: reading.text("pod-name").map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use clap::Command as Line;

    use super::*;

    fn read_flags(flags: &[&str]) -> Result<Config, ConfigFaults> {
        let command = ServeArgs::augment_args(Line::new("serve"));
        read_with(&command.get_matches_from(std::iter::once(&"serve").chain(flags)), Command::Serve, &|_name| None)
    }

    fn read_with_token(flags: &[&str], token: &str) -> Result<Config, ConfigFaults> {
        read_in(flags, &[(TOKEN, token)])
    }

    /// In an environment with those variables.
    fn read_in(flags: &[&str], variables: &[(&str, &str)]) -> Result<Config, ConfigFaults> {
        let command = ServeArgs::augment_args(Line::new("serve"));
        let matches = command.get_matches_from(std::iter::once(&"serve").chain(flags));
        read_with(&matches, Command::Serve, &|name| variables.iter().find(|(known, _)| *known == name).map(|(_, text)| text.into()))
    }

    fn folder_with(file: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("berth.toml"), file).expect("written");
        folder
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let folder = folder_with("host-memory = \"3Mi\"\ndisk = 1048576\ngrpc = \"127.0.0.1:1\"\nonnx-library = \"berth.toml\"\n");
        let config = read_flags(&["--manifests", folder.path().to_str().expect("text"), "--grpc", "127.0.0.1:2"]).expect("right");
        assert_eq!(config.grpc.port(), 2);
        assert_eq!(config.host_memory, Some(ByteSize::mib(3)));
        assert_eq!(config.disk, Some(ByteSize::mib(1)));
        assert_eq!(config.rest, Some(SocketAddr::from(([127, 0, 0, 1], 8008))));
        assert_eq!(config.onnx_library, Some(folder.path().join("berth.toml")), "a path in the file starts at the file's folder");
    }

    #[test]
    fn all_faults_are_reported_together_each_with_where_it_came_from() {
        let folder = folder_with("disk = \"lots\"\nfoo = 1\nprobes = true\n");
        let manifests = folder.path().to_str().expect("text");
        let faults = read_flags(&[
            "--manifests",
            manifests,
            "--grpc",
            "nowhere",
            "--api",
            "0.0.0.0:1",
            "--host-memory",
            "0",
            "--rest",
            "127.0.0.1:2112",
            "--drain-timeout",
            "soon",
        ])
        .expect_err("nine faults");
        let text = faults.to_string();
        for part in [
            "--grpc: \"nowhere\" is not an address",
            "--api: 0.0.0.0:1 can be reached from elsewhere: give the resource API a token with --api-token-file FILE",
            "--host-memory: must be more than nothing",
            "berth.toml: disk: \"lots\" is not a size",
            "unknown key \"foo\": the keys are manifests,",
            "probes must be a text or a whole number, not boolean",
            "127.0.0.1:2112 is taken by rest already",
            "--drain-timeout: \"soon\" is not a duration",
        ] {
            assert!(text.contains(part), "missing {part:?} in:\n{text}");
        }
        assert_eq!(faults.0.len(), 8, "{text}");
    }

    #[test]
    fn with_a_token_the_api_may_listen_anywhere_and_a_faulty_one_is_never_shown() {
        let folder = folder_with("api = \"0.0.0.0:1\"\napi-token-file = \"token\"\n");
        let manifests = ["--manifests", folder.path().to_str().expect("text")];
        let file = folder.path().join("token");
        std::fs::write(&file, "s3cret\n").expect("written");
        let config = read_flags(&manifests).expect("right");
        let token = Token::new("s3cret").expect("a token");
        assert_eq!((config.api.ip().is_loopback(), config.api_token.as_ref()), (false, Some(&ApiToken { token, file: Some(file.clone()) })));
        assert!(!format!("{config:?}").contains("s3cret"));

        let both = read_with_token(&manifests, "s3cret").expect_err("two tokens").to_string();
        assert!(both.ends_with("berth.toml: api-token-file: BERTH_API_TOKEN is set as well: give the token in one of the two"), "{both}");
        std::fs::write(&file, "s3 cret").expect("written");
        let faulty = read_flags(&manifests).expect_err("no token").to_string();
        assert!(faulty.contains("berth.toml: api-token-file: ") && faulty.contains("token: the token must be visible"), "{faulty}");
        assert!(!faulty.contains("cret") && !faulty.contains("elsewhere"), "{faulty}");

        let open = ["--manifests", "/", "--api", "0.0.0.0:1"];
        assert_eq!(read_with_token(&open, "s3cret").expect("right").api_token.expect("a token").file, None);
        for wrong in ["", "s3 cret"] {
            let faults = read_with_token(&open, wrong).expect_err("no token").0;
            assert_eq!(faults, ["BERTH_API_TOKEN: the token must be visible ASCII characters without blanks, at least one"]);
        }
    }

    #[test]
    fn our_names_for_tls_count_before_those_of_modelmesh_and_its_old_ones_last() {
        let folder = folder_with("tls-key = \"from-file.key\"\ntls-client-ca = \"a.crt, b.crt\"\n");
        let manifests = ["--manifests", folder.path().to_str().expect("text")];
        let faults = |flags: &[&str], variables: &[(&str, &str)]| {
            let flags: Vec<&str> = manifests.iter().chain(flags).copied().collect();
            read_in(&flags, variables).expect_err("there are no such files").0
        };
        let mut variables = vec![("MM_SVC_GRPC_CA_CERT_PATH", "/old.crt"), ("MM_TLS_CLIENT_AUTH", "Require"), ("MM_TLS_KEY_CERT_PATH", "")];
        let key = format!("{0}/berth.toml: tls-key: {0}/from-file.key: No such file", folder.path().display());
        let of_file = |faults: &[String]| faults[1].starts_with(&key) && faults.len() == 4 && faults[3].contains("/b.crt: No such");
        let told = faults(&[], &variables);
        assert!(told[0].starts_with("MM_SVC_GRPC_CA_CERT_PATH: /old.crt: No such file") && of_file(&told), "{told:?}");
        variables[2].1 = "/new.crt";
        let told = faults(&[], &variables);
        assert!(told[0].starts_with("MM_TLS_KEY_CERT_PATH: /new.crt: ") && of_file(&told), "{told:?}");
        let told = faults(&["--tls-cert", "/ours.crt", "--tls-client-auth", "NONE"], &variables);
        assert!(told[0].starts_with("--tls-cert: /ours.crt: ") && told.len() == 2, "{told:?}");
    }

    #[test]
    fn a_missing_manifests_folder_says_which_and_what_to_do() {
        let faults = read_flags(&["--manifests", "/no/such/folder"]).expect_err("a fault");
        assert_eq!(
            faults.0,
            ["--manifests: /no/such/folder: there is no such folder: name the folder that holds your InferenceService files with --manifests"]
        );
    }

    #[test]
    fn every_key_is_a_flag_and_every_flag_a_key() {
        let command = ServeArgs::augment_args(Line::new("serve"));
        let flags: Vec<String> =
            command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).filter(|flag| flag != "config").collect();
        assert_eq!(flags, KEYS);
        for arg in command.get_arguments().filter(|arg| arg.get_long().is_some_and(|flag| flag != "help")) {
            let flag = arg.get_long().expect("filtered");
            let variable = format!("BERTH_{}", flag.replace('-', "_").to_uppercase());
            assert_eq!(arg.get_env().and_then(|name| name.to_str()), Some(variable.as_str()));
        }
    }

    #[test]
    fn who_leads_says_where_agents_attend_and_what_is_said_to_serve_is_passed_over() {
        let command = ControllerArgs::augment_args(Line::new("controller"));
        let flags: Vec<String> =
            command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).filter(|flag| flag != "config").collect();
        assert_eq!(flags, LEADING_KEYS);
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("berth.toml"), "host-memory = \"2 MiB\"\nagents = \"127.0.0.1:9034\"\n").expect("written");
        let place = folder.path().to_str().expect("text").to_owned();
        let read = |more: &[&str], token: Option<&'static str>| {
            let line = ["controller", "--manifests", &place].into_iter().chain(more.iter().copied());
            let matches = command.clone().get_matches_from(line);
            read_with(&matches, Command::Controller, &|name| token.filter(|_| name == TOKEN).map(OsString::from))
        };
        let config = read(&["--grpc-url", "grpc://m:1"], None).expect("right");
        assert_eq!((config.role, config.endpoints.grpc.as_deref()), (Role::Leads(SocketAddr::from(([127, 0, 0, 1], 9034))), Some("grpc://m:1")));
        for (flags, token, says) in [
            (&["--agents", "0.0.0.0:1"][..], None, "--agents: 0.0.0.0:1 can be reached from elsewhere: give the agents a token"),
            (&["--agents", "0.0.0.0:1"], Some("t"), ""),
            (&["--agents", "127.0.0.1:8088"], None, "127.0.0.1:8088 is taken by"),
            (&["--agents", "127.0.0.1:8008"], None, ""),
            (&["--agents", "here"], None, "--agents: \"here\" is not an address"),
        ] {
            let told = read(flags, token).map(|_| String::new()).unwrap_or_else(|faults| faults.to_string());
            assert!(told.contains(says) && told.is_empty() == says.is_empty(), "{flags:?}: {told}");
        }
    }

    #[test]
    fn an_agent_has_a_controller_or_a_folder_of_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let (place, file) = (folder.path().to_str().expect("text"), folder.path().join("token"));
        std::fs::write(&file, "t0k3n\n").expect("written");
        let file = file.to_str().expect("text");
        let read = |more: &[&str], variables: &[(&'static str, &'static str)]| {
            let command = AgentArgs::augment_args(Line::new("agent"));
            let matches = command.get_matches_from(["agent", "--runtime", "triton"].into_iter().chain(more.iter().copied()));
            read_with(&matches, Command::Agent, &|name| variables.iter().find(|(known, _)| *known == name).map(|(_, text)| text.into()))
        };
        let config = read(&["--controller", "leader:8034", "--controller-token-file", file], &[("WKUBE_POD_NAME", "pod-x")]).expect("right");
        let Role::Attends(controller) = config.role else { panic!("it attends") };
        assert_eq!((controller.target.to_string().as_str(), config.pod_name.as_deref()), ("leader:8034", Some("pod-x")));
        assert_eq!(controller.token.map(|given| given.token.secret().to_owned()).as_deref(), Some("t0k3n"));
        for (flags, variables, says) in [
            (&["--controller", "leader:8034", "--standalone", "--manifests", place][..], &[][..], "--standalone is given as well"),
            (&["--controller", "leader:8034", "--manifests", place], &[], "--manifests: the controller has the resources"),
            (&["--controller", "leader"], &[], "--controller: "),
            (&["--controller", "leader:8034", "--controller-token-file", file], &[("BERTH_CONTROLLER_TOKEN", "x")], "is set as well"),
            (&["--controller", "leader:8034"], &[("BERTH_CONTROLLER_TOKEN", "two words")], "BERTH_CONTROLLER_TOKEN: the token must be"),
            (&["--controller", "leader:8034", "--controller-token-file", "/no/such"], &[], "--controller-token-file: "),
        ] {
            let told = read(flags, variables).map(|_| String::new()).unwrap_or_else(|faults| faults.to_string());
            assert!(told.contains(says), "{flags:?}: {told}");
        }
    }

    #[test]
    fn a_pod_that_was_made_for_modelmesh_says_all_but_what_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let command = AgentArgs::augment_args(Line::new("agent"));
        let flags = ["agent", "--standalone", "--runtime", "triton", "--manifests", folder.path().to_str().expect("text")];
        let matches = command.get_matches_from(flags);
        let given = |variables: &'static [(&'static str, &'static str)]| {
            read_with(&matches, Command::Agent, &|name| variables.iter().find(|(known, _)| *known == name).map(|(_, text)| text.into()))
        };
        let config = given(&[
            ("RUNTIME_PORT", "9001"),
            ("ROOT_MODEL_DIR", "/m"),
            ("LOADTIME_TIMEOUT", "1500"),
            ("LOADING_CONCURRENCY", "2"),
            ("LIMIT_PER_MODEL_CONCURRENCY", "0"),
            ("MODELSIZE_MULTIPLIER", "1.35"),
            ("CONTAINER_MEM_REQ_BYTES", "1073741824"),
            ("MEM_BUFFER_BYTES", "134217728"),
            ("MM_SVC_GRPC_PORT", "8033"),
            ("MM_PROBE_PORT", "NONE"),
            ("MM_PRESTOP_WAIT_PORT", "8090"),
        ])
        .expect("right");
        let beside = config.beside.expect("it is an agent");
        assert_eq!((beside.orders.to_string(), beside.requests.to_string()), ("localhost:9001".to_owned(), "localhost:9001".to_owned()));
        assert_eq!((beside.repository, config.data), (PathBuf::from("/m/_triton_models"), PathBuf::from("/m/_berth")));
        assert_eq!(
            (beside.load_timeout, beside.load_concurrency.map(std::num::NonZeroU32::get), beside.max_concurrency),
            (Some(Duration::from_millis(1500)), Some(2), None)
        );
        assert_eq!((beside.size_percent, config.host_memory), (135, Some(ByteSize(1_073_741_824 - 134_217_728))));
        assert_eq!((config.grpc.to_string().as_str(), config.probes.to_string().as_str()), ("0.0.0.0:8033", "127.0.0.1:8089"));
        let prestop = |variables| given(variables).expect("right").prestop.map(|addr| addr.to_string());
        assert_eq!((config.prestop.map(|addr| addr.to_string()), prestop(&[])), (Some("0.0.0.0:8090".to_owned()), Some("127.0.0.1:8090".to_owned())));
        // What the controller's pods are told: their probes and hooks come from outside, at the usual ports.
        let in_a_pod = given(&[("MM_SERVICE_NAME", "s"), ("MM_SVC_GRPC_PORT", "8033"), ("WKUBE_POD_NAME", "p")]).expect("right");
        assert_eq!(
            (in_a_pod.probes.to_string(), in_a_pod.prestop.map(|addr| addr.to_string())),
            ("0.0.0.0:8089".to_owned(), Some("0.0.0.0:8090".to_owned()))
        );
        assert_eq!(read_flags(&["--manifests", "/"]).expect("right").prestop, None, "nobody's pod");
        for (variables, says) in [
            (&[("CONTAINER_MEM_REQ_BYTES", "100"), ("MEM_BUFFER_BYTES", "200")][..], "leave nothing for models"),
            (&[("CONTAINER_MEM_REQ_BYTES", "1Gi")], "CONTAINER_MEM_REQ_BYTES: \"1Gi\" is not a number of bytes"),
            (&[("MODELSIZE_MULTIPLIER", "0")], "MODELSIZE_MULTIPLIER: 0 is no factor"),
            (&[("RUNTIME_PORT", "x")], "RUNTIME_PORT: "),
            (&[("BERTH_X", ""), ("ROOT_MODEL_DIR", "/")], ""),
        ] {
            let told = given(variables).map(|_| String::new()).unwrap_or_else(|faults| faults.to_string());
            assert!(told.contains(says), "{variables:?}: {told}");
        }
    }

    #[test]
    fn each_kind_of_server_is_found_where_its_container_has_it() {
        let folder = tempfile::tempdir().expect("a folder");
        for (kind, orders, requests, repository, percent) in [
            ("triton", "localhost:8001", "localhost:8001", "/models/_triton_models", 125),
            ("mlserver", "localhost:8001", "localhost:8001", "/models/_mlserver_models", 125),
            ("ovms", "localhost:8888", "localhost:8001", "/models/_ovms_models", 125),
            ("torchserve", "localhost:7071", "localhost:7070", "/models/_torchserve_models", 275),
        ] {
            let command = AgentArgs::augment_args(Line::new("agent"));
            let flags = ["agent", "--standalone", "--runtime", kind, "--manifests", folder.path().to_str().expect("text")];
            let matches = command.get_matches_from(flags);
            let variables = [("MODEL_CONFIG_FILE", "/m/c.json"), ("REQUEST_BATCH_SIZE", "0"), ("MAX_BATCH_DELAY_SECS", "50")];
            let read = |given: &[(&str, &str)]| {
                let config = read_with(&matches, Command::Agent, &|name| given.iter().find(|(known, _)| *known == name).map(|(_, text)| text.into()));
                config.expect("right").beside.expect("it is an agent")
            };
            let beside = read(&[]);
            assert_eq!((beside.orders.to_string().as_str(), beside.requests.to_string().as_str()), (orders, requests), "{kind}");
            assert_eq!((beside.repository, beside.size_percent), (PathBuf::from(repository), percent), "{kind}");
            assert_eq!(
                (beside.model_config, beside.batches),
                (PathBuf::from("/models/model_config_list.json"), beside::Batches::default()),
                "{kind}"
            );
            let beside = read(&variables);
            assert_eq!((beside.model_config, beside.batches.size), (PathBuf::from("/m/c.json"), None), "{kind}");
            assert_eq!(beside.batches.delay, Some(Duration::from_millis(50)), "{kind}");
        }
    }

    #[test]
    fn an_agent_is_told_what_is_missing_and_what_would_be_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().to_str().expect("text");
        for (flags, says) in [
            (
                &["--manifests", place][..],
                &["who leads it? write --controller HOST:PORT, or --standalone", "--runtime: which inference server is it?"][..],
            ),
            (&["--manifests", place, "--standalone", "--runtime", "tfserving"], &["--runtime: \"tfserving\" is no inference server that is known"]),
            (
                &["--manifests", place, "--standalone", "--runtime", "mlserver", "--repository", place],
                &["--repository: it is emptied at start, and "],
            ),
        ] {
            let command = AgentArgs::augment_args(Line::new("agent"));
            let matches = command.get_matches_from(std::iter::once(&"agent").chain(flags));
            let told = read_with(&matches, Command::Agent, &|_name| None).expect_err("there is a fault").to_string();
            for part in says {
                assert!(told.contains(part), "{part} in {told}");
            }
        }
    }
}
