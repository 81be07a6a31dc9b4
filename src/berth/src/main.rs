//! `berth`: one binary for everything. `berth serve` is agent, controller and embedded ONNX runtime on one machine, `berth
//! agent` the same before an inference server of its own process, `berth controller` leads several agents, `berth runtime` the engine alone for somebody else's mesh, `berth check-runtime` tries a server
//! out; the other commands talk to a running server.

mod attending;
mod beside;
mod books;
mod check;
mod cli;
mod config;
mod contract;
mod data_plane;
mod drifting;
mod engine;
mod fetching;
mod following;
mod leading;
mod local_agent;
mod machine;
mod management;
mod memory;
mod narrator;
mod payloads;
mod ports;
mod prestop;
mod serve;
mod tls;
mod token;
mod ui;

use std::process::ExitCode;
use std::time::Duration;

use berth_adapters::counting::{self, CountingAllocator};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use futures::TryFutureExt as _;

use crate::beside::AgentArgs;
use crate::check::CheckArgs;
use crate::cli::ClientCommand;
use crate::config::{ControllerArgs, ServeArgs};
use crate::contract::RuntimeArgs;

/// Every allocation is counted per thread, so that the embedded engine can say what a model takes.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Many models on few servers: fetches, places, loads, serves and evicts models by use.
#[derive(Parser)]
#[command(name = "berth", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the models of a folder of resources on this machine, with an embedded ONNX runtime
    Serve(Box<ServeArgs>),
    /// Serve models with an inference server that runs beside this process
    Agent(Box<AgentArgs>),
    /// Lead agents: keep resources and statuses, and tell agents which models there are
    Controller(Box<ControllerArgs>),
    /// Serve ONNX models to a ModelMesh, or to `berth agent`, by its runtime contract
    Runtime(Box<RuntimeArgs>),
    /// Find out whether an inference server does what Berth counts on: for whoever writes one, or an adapter to one
    CheckRuntime(Box<CheckArgs>),
    #[command(flatten)]
    Client(Box<ClientCommand>),
}

/// How long a computation under way may take to end once everything else has.
const ENGINE_GRACE: Duration = Duration::from_millis(500);

/// Exit status when the program was used wrongly: a flag, a file, a port.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    counting::keep_buffers();
    let matches = Cli::command().get_matches();
    let command = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli.command,
        Err(fault) => fault.exit(),
    };
    match (command, matches.subcommand()) {
        (Command::Client(command), _) => cli::run(&command, Cli::command()),
        // Not only the values: where each came from matters to the configuration.
        (Command::Serve(_), Some((_, matches))) => run_serve(matches, config::Command::Serve),
        (Command::Agent(_), Some((_, matches))) => run_serve(matches, config::Command::Agent),
        (Command::Controller(_), Some((_, matches))) => run_serve(matches, config::Command::Controller),
        (Command::Runtime(args), _) => run_to_end(contract::run(*args).map_ok(|()| ExitCode::SUCCESS)),
        (Command::CheckRuntime(args), _) => run_to_end(check::run(*args)),
        (Command::Serve(_) | Command::Agent(_) | Command::Controller(_), None) => ExitCode::from(USAGE),
    }
}

fn run_serve(matches: &clap::ArgMatches, command: config::Command) -> ExitCode {
    let config = match config::read(matches, command) {
        Ok(config) => config,
        Err(faults) => return complain(&faults, USAGE),
    };
    run_to_end(serve::serve(config).map_ok(|()| ExitCode::SUCCESS))
}

fn run_to_end(serving: impl Future<Output = Result<ExitCode, serve::ServeError>>) -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return complain(&"another TLS provider is installed already", 1);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(fault) => return complain(&format!("cannot start threads: {fault}"), 1),
    };
    let ended = runtime.block_on(serving);
    // The embedded engine cannot be interrupted; whatever it still computes dies with the process.
    runtime.shutdown_timeout(ENGINE_GRACE);
    match ended {
        Ok(status) => status,
        Err(serve::ServeError::Usage(fault)) => complain(&fault, USAGE),
        Err(serve::ServeError::Failed(fault)) => complain(&format!("{fault:#}"), 1),
    }
}

#[allow(clippy::print_stderr, reason = "logging may not be set up yet, and a person reads this")]
fn complain(fault: &dyn std::fmt::Display, status: u8) -> ExitCode {
    eprintln!("berth: {fault}");
    ExitCode::from(status)
}
