//! The words and flags of every command that talks to a running server.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::wait::Awaited;

/// Where `berth serve` listens unless it is told otherwise.
const USUAL_SERVER: &str = "http://127.0.0.1:8088";

/// The commands of people and scripts, against the resource API of a running server.
#[derive(Subcommand)]
pub(crate) enum ClientCommand {
    /// Create or update the resources of files
    Apply(Apply),
    /// List resources, once or as they change
    Get(Get),
    /// Show resources in full: what they ask for, how they stand and why
    Describe(Describe),
    /// Delete resources by name or by the files that describe them
    Delete(Delete),
    /// Send an inference request to a model
    Infer(Infer),
    /// Wait until resources have come to a state
    Wait(Wait),
    /// Print the completions of a shell, such as `source <(berth completion bash)`
    Completion(Completion),
}

/// The server.
#[derive(Args)]
pub(crate) struct ServerArgs {
    /// Resource API of the server
    #[arg(long, env = "BERTH_SERVER", value_name = "URL", default_value = USUAL_SERVER)]
    server: String,
    /// Token for a server that asks for one; better in the environment than on a command line that others can see
    #[arg(long, env = "BERTH_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
}

impl ServerArgs {
    /// The URL; an empty one is none.
    pub(crate) fn server(&self) -> &str {
        if self.server.trim().is_empty() { USUAL_SERVER } else { self.server.trim() }
    }

    /// The token.
    pub(crate) fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }
}

/// The namespace.
#[derive(Args)]
pub(crate) struct NamespaceArgs {
    /// Namespace
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    pub(crate) namespace: String,
}

/// `berth apply`.
#[derive(Args)]
pub(crate) struct Apply {
    /// Manifests: a file of YAML or JSON with any number of documents, a folder of such files, or - for standard input
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    pub(crate) file: Vec<String>,
    /// Namespace of resources that name none [default: default]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// How `berth get` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
    /// KIND/NAME, a line each
    Name,
}

/// `berth get`.
#[derive(Args)]
pub(crate) struct Get {
    /// KIND[,KIND...] [NAME...] or KIND/NAME...; kinds: isvc, predictor, servingruntime, clusterservingruntime, runtime
    /// (both of the last two) [default: isvc,predictor]
    #[arg(value_name = "KIND|NAME")]
    pub(crate) words: Vec<String>,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    /// The resources of all namespaces
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// How to print
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
    /// Go on and print a line for every change
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// Only resources with these labels, such as tier=gold,zone!=a
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
    /// Print no heads of columns
    #[arg(long)]
    pub(crate) no_headers: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `berth describe`.
#[derive(Args)]
pub(crate) struct Describe {
    /// KIND [NAME...] or KIND/NAME...; without names every resource of the kind
    #[arg(value_name = "KIND|NAME", required = true)]
    pub(crate) words: Vec<String>,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `berth delete`.
#[derive(Args)]
pub(crate) struct Delete {
    /// KIND NAME... or KIND/NAME...
    #[arg(value_name = "KIND|NAME", required_unless_present = "file", conflicts_with = "file")]
    pub(crate) words: Vec<String>,
    /// The resources of these manifests
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    pub(crate) file: Vec<String>,
    /// Namespace [default: that of the manifests, else default]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// What is not there is no fault
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `berth infer`.
#[derive(Args)]
pub(crate) struct Infer {
    /// Name of an InferenceService or Predictor
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// The request, JSON of the V2 protocol; - for standard input
    #[arg(short, long, value_name = "FILE.json|-")]
    pub(crate) input: String,
    /// Where to send it [default: the REST endpoint in the resource's status]
    #[arg(long, value_name = "URL")]
    pub(crate) rest: Option<String>,
    /// How long to wait for the answer, a cold load included
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `berth wait`.
#[derive(Args)]
pub(crate) struct Wait {
    /// KIND/NAME... or KIND NAME...
    #[arg(value_name = "KIND|NAME", required = true)]
    pub(crate) words: Vec<String>,
    /// What to wait for: loaded, standby, delete, condition=NAME or condition=NAME=VALUE
    #[arg(long = "for", value_name = "WHAT")]
    pub(crate) awaited: Awaited,
    /// How long; 0s looks once
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) namespace: NamespaceArgs,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `berth completion`.
#[derive(Args)]
pub(crate) struct Completion {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|fault| format!("expected a duration such as 30s or 2m: {fault}"))
}
