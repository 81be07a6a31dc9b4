//! `berth runtime`: the embedded engine alone, driven by ModelMesh's runtime contract.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use berth_adapters::{Entrance, OnnxConfig, OnnxRuntime, Runtime as _, ServedConfig, serve_contract};
use berth_registry::EMBEDDED_RUNTIME;
use berth_telemetry::{Clock, HostNet, Listener, Net, Peer, log};
use berth_types::ByteSize;
use berth_upstream::Target;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::config::ConfigFaults;
use crate::machine;
use crate::serve::{ServeError, shown};

/// The flags of `berth runtime`. Each is also an environment variable.
#[derive(Args, Clone, Debug)]
pub(crate) struct RuntimeArgs {
    /// Where orders and requests come in: HOST:PORT, port:PORT or unix:PATH
    #[arg(long, env = "BERTH_RUNTIME_LISTEN", value_name = "ENDPOINT", default_value = "127.0.0.1:8085")]
    listen: Target,
    /// The folder below which models are loaded from
    #[arg(long, env = "BERTH_RUNTIME_MODELS", value_name = "DIR", default_value = "/models")]
    models: PathBuf,
    /// Main memory for models, such as 2Gi [default: half of the machine's or the cgroup's]
    #[arg(long, env = "BERTH_HOST_MEMORY", value_name = "SIZE")]
    host_memory: Option<ByteSize>,
    /// Largest request
    #[arg(long, env = "BERTH_MAX_MESSAGE", value_name = "SIZE", default_value = "16Mi")]
    max_message: ByteSize,
    /// ONNX Runtime's shared library; without it one is looked for, else the built-in engine serves
    #[arg(long, env = "BERTH_ONNX_LIBRARY", value_name = "FILE")]
    onnx_library: Option<PathBuf>,
    /// Log filter, such as info or warn,berth_adapters=debug
    #[arg(long, env = "BERTH_LOG", value_name = "FILTER", default_value = "info")]
    log: String,
}

/// Listens at every address of a name: those who look it up may try any of them first.
///
/// # Errors
/// One is taken, or there is none.
async fn listen(mut addresses: Vec<SocketAddr>, net: &dyn Net) -> Result<Vec<Listener>, String> {
    addresses.sort_unstable();
    addresses.dedup();
    let (mut listeners, mut absent) = (Vec::new(), "the name has no address".to_owned());
    for address in addresses {
        match net.listen(address).await {
            Ok(listener) => listeners.push(listener),
            Err(fault) if matches!(fault.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => return Err(fault.to_string()),
            // A machine may have a name for an address of a kind that it does not have.
            Err(fault) => absent = fault.to_string(),
        }
    }
    if listeners.is_empty() { Err(absent) } else { Ok(listeners) }
}

/// Serves until SIGINT or SIGTERM, then until the last call has been answered.
///
/// # Errors
/// [`ServeError`].
pub(crate) async fn run(args: RuntimeArgs) -> Result<(), ServeError> {
    let usage = |why: String| ServeError::Usage(ConfigFaults(vec![why]));
    log::start(log::Format::Text, &args.log, false).map_err(|fault| usage(format!("--log: {fault}")))?;
    let clock = Clock::system();
    // Where it is not there yet it may come.
    let models = std::fs::canonicalize(&args.models).or_else(|_absent| std::path::absolute(&args.models));
    let models = models.map_err(|fault| usage(format!("--models: {fault}")))?;
    let capacity = match args.host_memory {
        Some(bytes) => bytes,
        None => machine::host_memory().map_err(anyhow::Error::msg)?.bytes,
    };
    let max_message = usize::try_from(args.max_message.0).map_err(|_too_large| usage("--max-message: it is more than there can be".to_owned()))?;
    let onnx = OnnxConfig { library: args.onnx_library, name: EMBEDDED_RUNTIME.into(), ..OnnxConfig::default() };
    let engine = OnnxRuntime::start(&onnx, clock.clone()).map_err(|fault| usage(format!("--onnx-library: {fault}")))?;
    let entrance = match args.listen.peer() {
        Peer::Unix(path) => Entrance::Unix(HostNet.listen_unix(path).map_err(|fault| usage(format!("--listen: {fault}")))?),
        Peer::Tcp { host, port } => {
            let found = tokio::net::lookup_host((host.as_str(), *port)).await.map(|found| found.collect::<Vec<_>>());
            let found = found.map_err(|fault| usage(format!("--listen: {host} is no address of this machine: {fault}")))?;
            Entrance::Tcp(listen(found, &HostNet).await.map_err(|why| usage(format!("--listen: {why}")))?)
        }
    };
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt()).context("cannot listen for signals")?,
        signal(SignalKind::terminate()).context("cannot listen for signals")?,
    );
    let asked_to_end = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    info!(endpoint = %args.listen, models = %shown(&models), engine = %engine.info().version, memory = %capacity, "takes orders of mmesh.ModelRuntime");
    let config = ServedConfig { models, capacity, max_message };
    let served = serve_contract(Arc::new(engine), config, entrance, clock, asked_to_end).await;
    if let Peer::Unix(path) = args.listen.peer() {
        let _ = std::fs::remove_file(path);
    }
    served.map_err(|fault| ServeError::Failed(anyhow!(fault)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_of_a_name_is_listened_at_but_those_that_the_machine_does_not_have() {
        let port = HostNet.listen(([127, 0, 0, 1], 0).into()).await.expect("a port").local_addr().expect("bound").port();
        let at = |last: u8| SocketAddr::from(([127, 0, 0, last], port));
        let not_here = SocketAddr::from(([203, 0, 113, 7], port));
        let bound = |listeners: &[Listener]| listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect::<Vec<_>>();
        let both = listen(vec![at(2), at(1), not_here, at(1)], &HostNet).await.expect("two of them are here");
        assert_eq!(bound(&both), [at(1), at(2)]);
        let taken = listen(vec![at(3), at(2)], &HostNet).await.err().expect("one is taken");
        assert!(taken.contains(&at(2).to_string()), "{taken}");
        for none in [vec![not_here], vec![]] {
            assert!(listen(none, &HostNet).await.is_err());
        }
    }
}
