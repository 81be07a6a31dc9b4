//! The words and flags of every command that talks to a running server.

use std::io::Read as _;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::fault::Fault;
use super::tls::TlsArgs;
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
    /// Show who has which memory: each pool, and every model that is loaded or on its way
    Top(Top),
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
    /// File that holds the token
    #[arg(long, env = "BERTH_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<String>,
}

impl ServerArgs {
    /// The URL; an empty one is none.
    pub(crate) fn server(&self) -> &str {
        if self.server.trim().is_empty() { USUAL_SERVER } else { self.server.trim() }
    }

    /// The token, from wherever it was given; an empty word is none.
    ///
    /// # Errors
    /// It was given twice, or its file holds none. It is not part of the message.
    pub(crate) fn token(&self) -> Result<Option<String>, Fault> {
        let given = |word: &Option<String>| word.as_ref().map(|word| word.trim().to_owned()).filter(|word| !word.is_empty());
        match (given(&self.token), given(&self.token_file)) {
            (None, None) => Ok(None),
            (Some(token), None) => Ok(Some(token)),
            (None, Some(file)) => read_token(&file).map(Some),
            (Some(_), Some(_)) => Err(Fault::local(
                "a token and a file with a token are given: keep one of --token or BERTH_TOKEN and --token-file or BERTH_TOKEN_FILE",
            )),
        }
    }
}

/// No token is longer.
const LONGEST_TOKEN: u64 = 4096;

fn read_token(file: &str) -> Result<String, Fault> {
    let wrong = |why: &dyn std::fmt::Display| Fault::local(format!("--token-file: {file}: {why}"));
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|open| open.take(LONGEST_TOKEN + 1).read_to_end(&mut bytes));
    read.map_err(|fault| wrong(&fault))?;
    if bytes.len() as u64 > LONGEST_TOKEN {
        return Err(wrong(&format!("has more than {LONGEST_TOKEN} bytes: is it the file with the token?")));
    }
    match std::str::from_utf8(&bytes).map(str::trim) {
        Ok("") => Err(wrong(&"is empty")),
        Ok(token) => Ok(token.to_owned()),
        Err(_fault) => Err(wrong(&"is no text")),
    }
}

/// How much of a change is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum DryRun {
    /// All of it
    #[default]
    None,
    /// The server checks it and answers as if; nothing changes
    Server,
    /// Nothing is sent that could change anything
    Client,
}

impl DryRun {
    /// What is added to lines about changes that were not made.
    pub(crate) const fn remark(self) -> &'static str {
        match self {
            DryRun::None => "",
            DryRun::Server => " (server dry run)",
            DryRun::Client => " (dry run)",
        }
    }
}

/// What the server does about members that no resource has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Validate {
    /// Refuse the resource
    #[value(alias = "true")]
    Strict,
    /// Say so
    #[default]
    Warn,
    /// Nothing
    #[value(alias = "false")]
    Ignore,
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
    /// Only try it
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client")]
    pub(crate) dry_run: DryRun,
    /// What to do about members that no resource has
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_value = "warn", default_missing_value = "strict")]
    pub(crate) validate: Validate,
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
    /// What is not there is no fault
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
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

/// `berth top`.
#[derive(Args)]
pub(crate) struct Top {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// A selector that chooses: an empty one, as an unset variable of a shell leaves it, would choose everything.
fn says_something(selector: &str) -> Result<String, String> {
    if selector.trim_matches([' ', ',', '\t']).is_empty() {
        return Err("an empty selector would choose everything: write --all if that is meant".to_owned());
    }
    Ok(selector.to_owned())
}

/// `berth delete`.
#[derive(Args)]
pub(crate) struct Delete {
    /// KIND NAME..., KIND/NAME..., or KIND[,KIND...] with --all or -l
    #[arg(value_name = "KIND|NAME", required_unless_present = "file", conflicts_with = "file")]
    pub(crate) words: Vec<String>,
    /// Every resource of these kinds in the namespace
    #[arg(long, conflicts_with = "file")]
    pub(crate) all: bool,
    /// Those with these labels, such as tier=gold,zone!=a
    #[arg(short = 'l', long, value_name = "SELECTOR", conflicts_with_all = ["file", "all"], value_parser = says_something)]
    pub(crate) selector: Option<String>,
    /// The resources of these manifests
    #[arg(short, long = "filename", value_name = "FILE|DIR|-")]
    pub(crate) file: Vec<String>,
    /// Namespace [default: that of the manifests, else default]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// What is not there is no fault
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
    /// Only try it
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client")]
    pub(crate) dry_run: DryRun,
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
    pub(crate) tls: TlsArgs,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_that_chooses_everything_deletes_nothing() {
        for empty in ["", " ", ",", " , "] {
            assert!(says_something(empty).is_err_and(|fault| fault.contains("--all")), "{empty:?}");
        }
        assert_eq!(says_something("tier=gold"), Ok("tier=gold".to_owned()));
    }

    #[test]
    fn a_token_is_given_once_and_never_shown() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, content: &str| {
            std::fs::write(folder.path().join(name), content).expect("written");
            folder.path().join(name).display().to_string()
        };
        let (good, empty, large) = (file("good", "s3cret\n"), file("empty", " \n"), file("large", &"s3cret ".repeat(1000)));
        for (token, token_file, expected) in [
            (None, None, Ok(None)),
            (Some(""), Some(""), Ok(None)),
            (Some("s3cret"), None, Ok(Some("s3cret"))),
            (Some(""), Some(good.as_str()), Ok(Some("s3cret"))),
            (Some("s3cret"), Some(&good), Err("a token and a file with a token are given")),
            (None, Some(&empty), Err("empty: is empty")),
            (None, Some(&large), Err("large: has more than 4096 bytes")),
            (None, Some("/no/such/file"), Err("--token-file: /no/such/file: No such file")),
        ] {
            let args = ServerArgs { server: String::new(), token: token.map(str::to_owned), token_file: token_file.map(str::to_owned) };
            match (args.token(), expected) {
                (Ok(token), Ok(expected)) => assert_eq!(token.as_deref(), expected),
                (Err(fault), Err(part)) => assert!(fault.to_string().contains(part) && !fault.to_string().contains("s3cret"), "{fault}"),
                (got, expected) => panic!("{token:?} and {token_file:?}: {got:?}, not {expected:?}"),
            }
        }
    }
}
