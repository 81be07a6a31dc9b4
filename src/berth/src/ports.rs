//! Every port is bound before anything starts, so that all that are taken are reported together.

use std::net::SocketAddr;

use berth_telemetry::{Listener, Net};

use crate::config::{Config, Role};

/// The bound ports.
pub(crate) struct Ports {
    /// gRPC inference.
    pub(crate) grpc: Port,
    /// REST inference, unless it is off.
    pub(crate) rest: Option<Port>,
    /// Resource API.
    pub(crate) api: Port,
    /// Metrics.
    pub(crate) metrics: Port,
    /// Probes.
    pub(crate) probes: Port,
    /// The hook before the end, unless it is off.
    pub(crate) prestop: Option<Port>,
}

/// Where it listens: the addresses of [`Ports`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// gRPC inference.
    pub(crate) grpc: SocketAddr,
    /// REST inference, unless it is off.
    pub(crate) rest: Option<SocketAddr>,
    /// Resource API.
    pub(crate) api: SocketAddr,
    /// Metrics.
    pub(crate) metrics: SocketAddr,
    /// Probes.
    pub(crate) probes: SocketAddr,
}

/// One bound port.
pub(crate) struct Port {
    /// Accepts connections.
    pub(crate) listener: Listener,
    /// The address, with the port that the system chose where 0 was asked for.
    pub(crate) addr: SocketAddr,
}

impl Ports {
    /// Where it listens.
    pub(crate) fn addresses(&self) -> Addresses {
        let rest = self.rest.as_ref().map(|port| port.addr);
        Addresses { grpc: self.grpc.addr, rest, api: self.api.addr, metrics: self.metrics.addr, probes: self.probes.addr }
    }

    /// Binds all ports that `config` names.
    ///
    /// # Errors
    /// One line per port that cannot be had: its flag, its address and what to do.
    pub(crate) async fn bind(config: &Config, net: &dyn Net) -> Result<Ports, Vec<String>> {
        let mut faults = Vec::new();
        let grpc = bind(net, "grpc", config.grpc, &mut faults).await;
        let rest = match config.rest {
            Some(addr) => bind(net, "rest", addr, &mut faults).await,
            None => None,
        };
        let api = bind(net, "api", config.api, &mut faults).await;
        let metrics = bind(net, "metrics", config.metrics, &mut faults).await;
        let probes = bind(net, "probes", config.probes, &mut faults).await;
        let prestop = match config.prestop {
            Some(addr) => bind(net, "prestop", addr, &mut faults).await,
            None => None,
        };
        match (grpc, api, metrics, probes) {
            (Some(grpc), Some(api), Some(metrics), Some(probes)) if faults.is_empty() => Ok(Ports { grpc, rest, api, metrics, probes, prestop }),
            _ => Err(faults),
        }
    }
}

/// The bound ports of a controller.
pub(crate) struct LeadingPorts {
    /// Agents.
    pub(crate) agents: Port,
    /// Calls that manage models.
    pub(crate) grpc: Port,
    /// Resource API.
    pub(crate) api: Port,
    /// Metrics.
    pub(crate) metrics: Port,
    /// Probes.
    pub(crate) probes: Port,
}

impl LeadingPorts {
    /// The same as [`Ports::bind`] for `berth controller`.
    ///
    /// # Errors
    /// One line per port that cannot be had.
    pub(crate) async fn bind(config: &Config, net: &dyn Net) -> Result<LeadingPorts, Vec<String>> {
        let mut faults = Vec::new();
        let agents = match config.role {
            Role::Leads(addr) => bind(net, "agents", addr, &mut faults).await,
            Role::Alone | Role::Attends(_) => None,
        };
        let grpc = bind(net, "grpc", config.grpc, &mut faults).await;
        let api = bind(net, "api", config.api, &mut faults).await;
        let metrics = bind(net, "metrics", config.metrics, &mut faults).await;
        let probes = bind(net, "probes", config.probes, &mut faults).await;
        match (agents, grpc, api, metrics, probes) {
            (Some(agents), Some(grpc), Some(api), Some(metrics), Some(probes)) => Ok(LeadingPorts { agents, grpc, api, metrics, probes }),
            _ => Err(faults),
        }
    }
}

async fn bind(net: &dyn Net, key: &str, addr: SocketAddr, faults: &mut Vec<String>) -> Option<Port> {
    let bound = match net.listen(addr).await {
        Ok(listener) => listener.local_addr().map(|addr| Port { listener, addr }),
        Err(fault) => Err(fault),
    };
    match bound {
        Ok(port) => Some(port),
        Err(fault) => {
            let advice =
                if fault.kind() == std::io::ErrorKind::AddrInUse { ": another program has it, or another berth: choose another port" } else { "" };
            faults.push(format!("--{key}: {fault}{advice} with --{key}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_telemetry::HostNet;
    use clap::{Args, Command};

    use super::*;
    use crate::config::{self, ServeArgs};

    #[tokio::test]
    async fn every_port_that_is_taken_is_named_with_its_flag() {
        let taken = HostNet.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a free port").local_addr().expect("an address");
        let holder = HostNet.listen(taken).await.expect("held");
        let text = taken.to_string();
        let folder = tempfile::tempdir().expect("a folder");
        let matches = ServeArgs::augment_args(Command::new("serve")).get_matches_from([
            "serve",
            "--manifests",
            folder.path().to_str().expect("text"),
            "--grpc",
            &text,
            "--rest",
            "127.0.0.1:0",
            "--api",
            "127.0.0.1:0",
            "--metrics",
            "127.0.0.1:0",
            "--probes",
            "127.0.0.1:0",
        ]);
        let config = config::read(&matches, config::Command::Serve).expect("right");
        let faults = Ports::bind(&config, &HostNet).await.err().expect("one port is taken");
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with(&format!("--grpc: cannot listen on {taken}: ")), "{faults:?}");
        assert!(faults[0].ends_with("choose another port with --grpc"), "{faults:?}");
        drop(holder);
    }
}
