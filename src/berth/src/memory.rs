//! What is really in use of the memory that models live in: who is asked, and what follows, as it is configured.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_memory::{Gpus, Host, HostConfig, MetricsPage, Scope, Source, Which};
use berth_plan::pressure::Marks;
use berth_residency::Recycle;
use berth_telemetry::{Clock, HostNet, Peer};
use berth_types::{ByteSize, Footprint, Pool};
use berth_upstream::Target;
use clap::Args;

use crate::config::{Config, Reading};

/// The flags of `berth agent` about memory.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct MemoryArgs {
    /// The server's process, to be measured with those that it starts: `auto` (who listens at the endpoint), `pid:N`, the name of
    /// its program, or `off`; a container of its own must share its process namespace [default: auto]
    #[arg(long, env = "BERTH_RUNTIME_PROCESS", value_name = "WHICH")]
    runtime_process: Option<String>,
    /// The server's page of metrics, such as 127.0.0.1:8002/metrics, for the memory of GPUs [default: none]
    #[arg(long, env = "BERTH_RUNTIME_METRICS", value_name = "HOST:PORT/PATH")]
    runtime_metrics: Option<String>,
    /// Memory of GPUs for models, such as 0=20GiB,1=20GiB [default: nine tenths of each GPU that can be seen]
    #[arg(long, env = "BERTH_GPU_MEMORY", value_name = "GPU=SIZE,...")]
    gpu_memory: Option<String>,
    /// From how many percent of its limit on a memory counts as nearly full, so that idle models go [default: 92]
    #[arg(long, env = "BERTH_MEMORY_HIGH", value_name = "PERCENT")]
    memory_high: Option<String>,
    /// What is done about a server that keeps memory that no model has: `off`, `drain` it and have the probe /runtime fail, or
    /// `end` its process after that [default: off]
    #[arg(long, env = "BERTH_RECYCLE_RUNTIME", value_name = "off|drain|end")]
    recycle_runtime: Option<String>,
}

/// The keys, as flags and as keys of the file.
pub(crate) const KEYS: [&str; 5] = ["runtime-process", "runtime-metrics", "gpu-memory", "memory-high", "recycle-runtime"];

impl MemoryArgs {
    pub(crate) fn get(&self, key: &str) -> Option<&String> {
        match key {
            "runtime-process" => self.runtime_process.as_ref(),
            "runtime-metrics" => self.runtime_metrics.as_ref(),
            "gpu-memory" => self.gpu_memory.as_ref(),
            "memory-high" => self.memory_high.as_ref(),
            "recycle-runtime" => self.recycle_runtime.as_ref(),
            _ => None,
        }
    }
}

/// What was configured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// The server's process; `None` is not looked at.
    server: Option<Which>,
    metrics: Option<MetricsPage>,
    gpus: Option<Footprint>,
    pub(crate) marks: Marks,
    pub(crate) recycle: Recycle,
}

/// Checks what was given; the server takes orders at `orders`.
pub(crate) fn check(reading: &mut Reading, orders: &Target) -> Settings {
    let auto = || which_listens(orders.peer());
    let marks = reading.parsed("memory-high", high).unwrap_or_default();
    Settings {
        server: match reading.parsed("runtime-process", |text| which(text, orders.peer())) {
            Some(said) => said,
            None => auto(),
        },
        metrics: reading.parsed("runtime-metrics", page),
        gpus: reading.parsed("gpu-memory", gpus),
        marks,
        recycle: reading.parsed("recycle-runtime", recycle).unwrap_or_default(),
    }
}

impl Settings {
    /// The server takes orders at `to` and not at `from`: so the process that listens is another one, if that is looked for.
    pub(crate) fn moved(&mut self, from: &Target, to: &Target) {
        if self.server == which_listens(from.peer()) {
            self.server = which_listens(to.peer());
        }
    }
}

fn which(text: &str, orders: &Peer) -> Result<Option<Which>, String> {
    match (text, text.strip_prefix("pid:")) {
        ("auto", _) => Ok(which_listens(orders)),
        ("off", _) => Ok(None),
        (_, Some(pid)) => pid.parse().map(|pid| Some(Which::Pid(pid))).map_err(|_not_a_number| format!("{pid:?} is not the number of a process")),
        (name, None) if name.is_empty() || name.contains('/') => {
            Err(format!("{name:?} is no name of a program: write auto, off, pid:N or a name such as tritonserver"))
        }
        (name, None) => Ok(Some(Which::Named(name.to_owned()))),
    }
}

/// A server elsewhere has no process here.
fn which_listens(orders: &Peer) -> Option<Which> {
    match orders {
        Peer::Unix(path) => Some(Which::Socket(path.clone())),
        Peer::Tcp { host, port } => {
            let address = if host == "localhost" { Some(Ipv4Addr::UNSPECIFIED.into()) } else { host.parse::<IpAddr>().ok() };
            let here = address.filter(|address| address.is_loopback() || address.is_unspecified());
            here.map(|address| Which::Port(address, *port))
        }
    }
}

fn page(text: &str) -> Result<MetricsPage, String> {
    let rest = text.strip_prefix("http://").unwrap_or(text);
    let (place, path) = rest.split_once('/').map_or((rest, "metrics"), |(place, path)| (place, path));
    let target: Target = place.parse().map_err(|fault: berth_upstream::TargetError| fault.to_string())?;
    Ok(MetricsPage { server: target.peer().clone(), path: format!("/{path}"), patience: Duration::from_secs(1) })
}

fn gpus(text: &str) -> Result<Footprint, String> {
    let fault = |part: &str, why: &str| format!("{part:?} {why}: write GPU=SIZE such as 0=20GiB, several with commas between them");
    let mut sizes = BTreeMap::new();
    for part in text.split(',').map(str::trim) {
        let (index, size) = part.split_once('=').ok_or_else(|| fault(part, "has no ="))?;
        let index: u16 = index.trim().parse().map_err(|_not_a_number| fault(part, "names no GPU by its number"))?;
        let size: ByteSize = size.parse().map_err(|_no_size| fault(part, "has no size"))?;
        if sizes.insert(index, size).is_some() {
            return Err(fault(part, "says twice what one GPU has"));
        }
    }
    Ok(Footprint::of(sizes.into_iter().map(|(index, size)| (Pool::Gpu(index), size))))
}

fn high(text: &str) -> Result<Marks, String> {
    match text.parse::<u32>() {
        Ok(high) if (10..=100).contains(&high) => Ok(Marks { high_percent: high, low_percent: high - 7 }),
        _ => Err(format!("{text:?} is no share: write percent from 10 to 100")),
    }
}

fn recycle(text: &str) -> Result<Recycle, String> {
    match text {
        "off" => Ok(Recycle::Off),
        "drain" => Ok(Recycle::Drain),
        "end" => Ok(Recycle::End),
        other => Err(format!("{other:?} is nothing that can be done: write off, drain or end")),
    }
}

/// Who is asked, and how much of the GPUs is there for models.
pub(crate) async fn source(config: &Config, clock: &Clock) -> (Option<Arc<dyn Source>>, Footprint) {
    let root = PathBuf::from("/");
    let Some(settings) = config.beside.as_ref().map(|beside| &beside.memory) else {
        let host = HostConfig { root, server: Some(Which::Pid(std::process::id())), scope: Scope::Cgroup, gpus: None, metrics: None };
        return (Some(Arc::new(Host::new(host, HostNet::shared(), clock.clone()))), Footprint::default());
    };
    let gpus = tokio::task::spawn_blocking(|| Gpus::open(None)).await.ok().flatten();
    let Settings { server, metrics, .. } = settings.clone();
    let host = Host::new(HostConfig { root, server, scope: Scope::Server, gpus, metrics }, HostNet::shared(), clock.clone());
    let devices = match &settings.gpus {
        Some(given) => given.clone(),
        None => Footprint::of(host.gpu_totals().await.into_iter().map(|(index, bytes)| (Pool::Gpu(index), bytes.percent(90)))),
    };
    (Some(Arc::new(host)), devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_of_a_server_is_found_where_it_listens_unless_something_else_is_said() {
        let here = |text: &str| text.parse::<Target>().expect("a place");
        let at = |first, last| IpAddr::from([first, 0, 0, last]);
        for (text, orders, expected) in [
            ("auto", "port:8001", Ok(Some(Which::Port(at(0, 0), 8001)))),
            ("auto", "127.0.0.1:8001", Ok(Some(Which::Port(at(127, 1), 8001)))),
            ("auto", "127.0.0.2:8001", Ok(Some(Which::Port(at(127, 2), 8001)))),
            ("auto", "localhost:8001", Ok(Some(Which::Port(at(0, 0), 8001)))),
            ("auto", "unix:/tmp/s", Ok(Some(Which::Socket("/tmp/s".into())))),
            ("auto", "triton.other:8001", Ok(None)),
            ("off", "port:8001", Ok(None)),
            ("pid:7", "port:8001", Ok(Some(Which::Pid(7)))),
            ("tritonserver", "port:8001", Ok(Some(Which::Named("tritonserver".to_owned())))),
            ("pid:x", "port:8001", Err(())),
            ("/bin/x", "port:8001", Err(())),
            ("", "port:8001", Err(())),
        ] {
            assert_eq!(which(text, here(orders).peer()).map_err(drop), expected, "{text} {orders}");
        }
    }

    #[test]
    fn memory_of_gpus_is_given_gpu_by_gpu() {
        let two = Footprint::of([(Pool::Gpu(0), ByteSize(20 << 30)), (Pool::Gpu(3), ByteSize(512 << 20))]);
        assert_eq!(gpus("0=20GiB, 3=512Mi"), Ok(two));
        for (text, says) in [("20GiB", "no ="), ("a=1Gi", "by its number"), ("0=x", "no size"), ("0=1Gi,0=2Gi", "twice"), ("", "no =")] {
            assert!(gpus(text).is_err_and(|why| why.contains(says)), "{text}");
        }
        assert_eq!(page("http://127.0.0.1:8002/metrics").map(|page| page.path), Ok("/metrics".to_owned()));
        assert!(page("port:8002").is_ok_and(|page| page.path == "/metrics") && page("https://a:1/x").is_err());
        assert!(high("100").is_ok() && high("9").is_err() && high("x").is_err() && recycle("end").is_ok() && recycle("kill").is_err());
    }
}
