//! The source of this machine: the server's processes, their cgroups, the devices.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_telemetry::{Clock, Net, Peer};
use berth_types::{ByteSize, Pool, Reading, Real, Usage};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::cgroup::{self, Groups};
use crate::process::{self, Process};
use crate::{Gpus, Source, Which, listener, metrics};

/// A server's page of metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsPage {
    /// Where it listens.
    pub server: Peer,
    /// The path, with its leading slash.
    pub path: String,
    /// How long it may take to answer.
    pub patience: Duration,
}

/// How much counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What the process and its children hold, their cgroup, and the machine's memory where that leaves less.
    Server,
    /// Only the cgroup of the process, where it has a limit: it is not there for models alone.
    Cgroup,
}

/// What is looked at.
pub struct HostConfig {
    /// `/`, but for tests: where `proc` and the file systems of cgroups are.
    pub root: PathBuf,
    /// How the server's process is found; `None` looks at no process.
    pub server: Option<Which>,
    /// How much of what there is to see counts.
    pub scope: Scope,
    /// The devices, where there are any.
    pub gpus: Option<Gpus>,
    /// The server's page of metrics, where it has one.
    pub metrics: Option<MetricsPage>,
}

/// This machine.
pub struct Host {
    seen: Arc<Seen>,
    /// Threads that may look at a time.
    places: Arc<Semaphore>,
    metrics: Option<MetricsPage>,
    net: Arc<dyn Net>,
    clock: Clock,
}

/// A reading takes a millisecond: more at a time means that something hangs.
const PLACES: usize = 4;

/// What takes blocking calls.
struct Seen {
    root: PathBuf,
    which: Option<Which>,
    scope: Scope,
    gpus: Option<Gpus>,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    server: Option<(Process, Option<Groups>)>,
    /// Said once for each stretch of time in which it is so.
    missing_told: bool,
    metrics_told: bool,
}

impl Host {
    /// Looks at nothing yet.
    #[must_use]
    pub fn new(config: HostConfig, net: Arc<dyn Net>, clock: Clock) -> Self {
        let HostConfig { root, server, scope, gpus, metrics } = config;
        Host {
            seen: Arc::new(Seen { root, which: server, scope, gpus, found: Mutex::default() }),
            places: Arc::new(Semaphore::new(PLACES)),
            metrics,
            net,
            clock,
        }
    }
}

/// Of a machine that others use as well only the last memory counts: marks in percent of all of a large one would call it
/// nearly full while there is room for many models. The usual high mark means a GiB at most so.
fn last_of(machine: Usage) -> Usage {
    const LAST: ByteSize = ByteSize((25 << 30) / 2);
    let limit = machine.limit.min(LAST);
    Usage { used: limit.saturating_sub(machine.free()), limit }
}

impl Seen {
    /// The server, which may be another process than the last time.
    fn server(&self) -> Option<(Process, Option<Groups>)> {
        let which = self.which.as_ref()?;
        let found = &mut *self.found.lock();
        if let Some((process, groups)) = &found.server
            && process.lives(&self.root)
        {
            return Some((*process, groups.clone()));
        }
        let process = listener::find(&self.root, which).and_then(|pid| Process::of(&self.root, pid)).filter(|process| process.lives(&self.root));
        found.server = process.map(|process| (process, Groups::of(&self.root, process.pid)));
        match &found.server {
            Some((process, groups)) => {
                found.missing_told = false;
                info!(pid = process.pid, limited = groups.as_ref().is_some_and(|groups| groups.usage().is_some()), "the server's memory is measured");
            }
            None if !std::mem::replace(&mut found.missing_told, true) => {
                warn!(looked_for = ?which, "the server's process cannot be seen from here: what its models take is guessed, not measured");
            }
            None => {}
        }
        found.server.clone()
    }

    fn read(&self) -> Reading {
        let server = self.server();
        let whole = self.scope == Scope::Server;
        let tree: HashSet<u32> = server.as_ref().filter(|_| whole).map(|(process, _)| process::tree(&self.root, process.pid)).unwrap_or_default();
        let groups = server.as_ref().and_then(|(_, groups)| groups.as_ref());
        let held = (!tree.is_empty()).then(|| process::held(&self.root, tree.iter().copied())).flatten();
        let usage = groups
            .and_then(Groups::usage)
            .into_iter()
            .chain(whole.then(|| cgroup::machine(&self.root)).flatten().map(last_of))
            .min_by_key(|usage| usage.free());
        let mut reading = Reading {
            pools: [(Pool::Host, Real { held, usage })].into(),
            oom_kills: groups.and_then(Groups::oom_kills),
            stalled: groups.and_then(|groups| groups.stalled(&self.root)),
            life: server.map(|(process, _)| process.started.wrapping_mul(1 << 22).wrapping_add(u64::from(process.pid))),
        };
        let devices = self.gpus.as_ref().map(|gpus| gpus.read(&tree)).unwrap_or_default();
        reading.pools.extend(devices.into_iter().map(|(index, real)| (Pool::Gpu(index), real)));
        reading
    }
}

#[async_trait]
impl Source for Host {
    async fn read(&self) -> Reading {
        // A driver that hangs takes these few threads, and not all that there are.
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return Reading::default() };
        let seen = Arc::clone(&self.seen);
        let reading = tokio::task::spawn_blocking(move || {
            let _place = place;
            seen.read()
        });
        let mut reading = reading.await.unwrap_or_default();
        let Some(page) = &self.metrics else { return reading };
        match metrics::fetch(page, &*self.net, &self.clock).await {
            Ok(text) => {
                self.seen.found.lock().metrics_told = false;
                let index = |uuid: &str| self.seen.gpus.as_ref().and_then(|gpus| gpus.index_of(uuid));
                for (device, usage) in metrics::gpus(&text, index) {
                    // The driver's own word is the newer one.
                    reading.pools.entry(Pool::Gpu(device)).or_default().usage.get_or_insert(usage);
                }
            }
            Err(why) if !std::mem::replace(&mut self.seen.found.lock().metrics_told, true) => {
                warn!(error = %why, "the server's page of metrics cannot be read");
            }
            Err(_) => {}
        }
        reading
    }

    async fn end_server(&self) -> bool {
        let seen = Arc::clone(&self.seen);
        let ended = tokio::task::spawn_blocking(move || {
            let (process, _) = seen.server()?;
            // Only what is measured is ended: a process of another machine's number space is not.
            let pid = rustix::process::Pid::from_raw(i32::try_from(process.pid).ok()?)?;
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok()
        });
        ended.await.ok().flatten().is_some()
    }
}

impl Host {
    /// What a first look tells of the size of each GPU.
    pub async fn gpu_totals(&self) -> Vec<(u16, ByteSize)> {
        let reading = self.read().await;
        let total = |(pool, real): (Pool, Real)| match pool {
            Pool::Gpu(index) => Some((index, real.usage?.limit)),
            Pool::Host => None,
        };
        reading.pools.into_iter().filter_map(total).collect()
    }
}

#[cfg(test)]
mod tests {
    use berth_telemetry::HostNet;

    use super::*;

    fn host(which: Which) -> Host {
        let config = HostConfig { root: "/".into(), server: Some(which), scope: Scope::Server, gpus: None, metrics: None };
        Host::new(config, HostNet::shared(), Clock::system())
    }

    #[tokio::test]
    async fn this_process_is_measured_as_a_server_would_be() {
        let host = host(Which::Pid(std::process::id()));
        let before = host.read().await;
        let block = std::hint::black_box(vec![1_u8; 48 << 20]);
        let after = host.read().await;
        let held = |reading: &Reading| reading.held().expect("it can be seen").get(Pool::Host).0;
        assert!(held(&after) > held(&before) + (40 << 20), "{} more of {}", held(&after) - held(&before), block.len());
        assert!(before.life.is_some() && before.life == after.life);
        assert!(after.usage(Pool::Host).is_some_and(|usage| usage.used < usage.limit));
    }

    #[tokio::test]
    async fn a_server_that_cannot_be_seen_leaves_what_it_holds_unknown() {
        let host = host(Which::Named("no program has this name".to_owned()));
        let reading = host.read().await;
        assert_eq!((reading.held(), reading.life, reading.oom_kills), (None, None, None));
        assert!(!host.end_server().await);
    }

    #[tokio::test]
    async fn a_server_that_is_started_anew_is_another_life() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let link = root.path().join("berth-sleeps");
        let sleep =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).map(|folder| folder.join("sleep")).find(|file| file.is_file());
        std::os::unix::fs::symlink(sleep.expect("there is a sleep"), &link).expect("writable");

        let host = host(Which::Named("berth-sleeps".to_owned()));
        let mut lives = Vec::new();
        for _ in 0..2 {
            let mut server = tokio::process::Command::new(&link).arg("600").kill_on_drop(true).spawn().expect("it can be started");
            // Its name can be read a moment after it was started.
            let seen = async {
                loop {
                    if let Some(life) = host.read().await.life {
                        return life;
                    }
                }
            };
            let clock = Clock::system();
            lives.push(clock.until(clock.deadline_in(Duration::from_secs(10)), seen).await.expect("it can be seen"));
            assert!(host.end_server().await);
            let status = server.wait().await.expect("it ends");
            assert!(!status.success(), "it was told to end");
        }
        assert_ne!(lives[0], lives[1]);
        assert_eq!(host.read().await.life, None);
    }
}
