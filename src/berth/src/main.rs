//! `berth`: one binary for everything. `berth serve` is agent, controller and embedded ONNX runtime on one machine.

mod config;
mod local_agent;
mod machine;
mod narrator;
mod ports;
mod serve;
mod ui;

use std::process::ExitCode;

use berth_adapters::counting::CountingAllocator;
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::ServeArgs;

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
    Serve(ServeArgs),
}

/// Exit status when the program was used wrongly: a flag, a file, a port.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    match matches.subcommand() {
        Some(("serve", matches)) => run_serve(matches),
        _ => ExitCode::from(USAGE),
    }
}

fn run_serve(matches: &clap::ArgMatches) -> ExitCode {
    let config = match config::read(matches) {
        Ok(config) => config,
        Err(faults) => return complain(&faults, USAGE),
    };
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return complain(&"another TLS provider is installed already", 1);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(fault) => return complain(&format!("cannot start threads: {fault}"), 1),
    };
    match runtime.block_on(serve::serve(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(serve::ServeError::Usage(fault)) => complain(&fault, USAGE),
        Err(serve::ServeError::Failed(fault)) => complain(&format!("{fault:#}"), 1),
    }
}

#[allow(clippy::print_stderr, reason = "logging may not be set up yet, and a person reads this")]
fn complain(fault: &dyn std::fmt::Display, status: u8) -> ExitCode {
    eprintln!("berth: {fault}");
    ExitCode::from(status)
}
