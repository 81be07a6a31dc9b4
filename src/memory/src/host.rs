//! The source of this machine: the server's processes, their cgroups, the devices.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
    page: Option<Arc<Page>>,
    clock: Clock,
}

/// The server's page of metrics, and what it said.
struct Page {
    at: MetricsPage,
    net: Arc<dyn Net>,
    clock: Clock,
    told: Mutex<Told>,
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
    /// While it is not found.
    missing: Option<Missing>,
}

/// A server whose process cannot be found: all processes are looked through for it, so that is not done for every reading.
struct Missing {
    /// At which sockets it was looked for: somebody new listens where others do.
    sockets: Option<BTreeSet<u64>>,
    next: Instant,
    pause: Duration,
}

/// Between two looks through all processes: at first, and at most (it doubles). A new one is seen by its socket before that, where
/// it is known by one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE_BY_NAME: Duration = Duration::from_secs(5);

/// What the server's page of metrics said last. It is asked in a task of its own: no reading waits for it.
#[derive(Default)]
struct Told {
    gpus: BTreeMap<u16, Usage>,
    /// When that was.
    at: Option<Instant>,
    /// When it was last asked.
    asked: Option<Instant>,
    asking: bool,
    /// Said once for each stretch of time in which it is so.
    failed: bool,
}

/// How often the page is asked for, and how long what it said counts.
const PAGE_EVERY: Duration = Duration::from_secs(2);
const PAGE_COUNTS: Duration = Duration::from_secs(10);

impl Host {
    /// Looks at nothing yet.
    #[must_use]
    pub fn new(config: HostConfig, net: Arc<dyn Net>, clock: Clock) -> Self {
        let HostConfig { root, server, scope, gpus, metrics } = config;
        Host {
            seen: Arc::new(Seen { root, which: server, scope, gpus, found: Mutex::default() }),
            places: Arc::new(Semaphore::new(PLACES)),
            page: metrics.map(|at| Arc::new(Page { at, net, clock: clock.clone(), told: Mutex::default() })),
            clock,
        }
    }
}

/// Of a machine that others use as well only the last memory counts: marks in percent of all of a large one would call it
/// nearly full while there is room for many models. The usual high mark means a GiB so. Where more is free than that last memory,
/// what is free is the limit, and nothing of it is used.
fn last_of(machine: Usage) -> Usage {
    const LAST: ByteSize = ByteSize((25 << 30) / 2);
    let limit = machine.limit.min(LAST.max(machine.free()));
    Usage { used: limit.saturating_sub(machine.free()), limit }
}

impl Page {
    /// What the page said lately. Asks it anew, without waiting for that, when it is time to.
    fn read(self: &Arc<Self>, seen: &Arc<Seen>) -> BTreeMap<u16, Usage> {
        let now = self.clock.now();
        let mut told = self.told.lock();
        if !told.asking && told.asked.is_none_or(|asked| now >= asked + PAGE_EVERY) {
            (told.asking, told.asked) = (true, Some(now));
            let (page, seen) = (Arc::clone(self), Arc::clone(seen));
            tokio::spawn(async move { page.ask(seen).await });
        }
        let counts = told.at.is_some_and(|at| now < at + PAGE_COUNTS);
        if counts { told.gpus.clone() } else { BTreeMap::new() }
    }

    async fn ask(&self, seen: Arc<Seen>) {
        let answer = match metrics::fetch(&self.at, &*self.net, &self.clock).await {
            Ok(text) => {
                // The driver is asked which GPU is which.
                let index = move |uuid: &str| seen.gpus.as_ref().and_then(|gpus| gpus.index_of(uuid));
                let read = tokio::task::spawn_blocking(move || metrics::gpus(&text, index)).await;
                read.map_err(|panic| panic.to_string())
            }
            Err(why) => Err(why),
        };
        let mut told = self.told.lock();
        told.asking = false;
        match answer {
            Ok(gpus) => (told.gpus, told.at, told.failed) = (gpus, Some(self.clock.now()), false),
            Err(why) if !std::mem::replace(&mut told.failed, true) => {
                warn!(error = %why, "the server's page of metrics cannot be read");
            }
            Err(_) => {}
        }
    }
}

impl Seen {
    /// The server, which may be another process than the last time.
    fn server(&self, now: Instant) -> Option<(Process, Option<Groups>)> {
        let which = self.which.as_ref()?;
        let found = &mut *self.found.lock();
        if let Some((process, groups)) = &found.server
            && process.lives(&self.root)
        {
            return Some((*process, groups.clone()));
        }
        found.server = None;
        let sockets = listener::sockets(&self.root, which);
        if found.missing.as_ref().is_some_and(|missing| missing.sockets == sockets && now < missing.next) {
            return None;
        }
        let process = listener::find(&self.root, which, sockets.as_ref().unwrap_or(&BTreeSet::new()));
        let process = process.and_then(|pid| Process::of(&self.root, pid)).filter(|process| process.lives(&self.root));
        found.server = process.map(|process| (process, Groups::of(&self.root, process.pid)));
        match &found.server {
            Some((process, groups)) => {
                found.missing = None;
                info!(pid = process.pid, limited = groups.as_ref().is_some_and(|groups| groups.usage().is_some()), "the server's memory is measured");
            }
            None => {
                if found.missing.is_none() {
                    warn!(looked_for = ?which, "the server's process cannot be seen from here: what its models take is guessed, not measured");
                }
                let before = found.missing.take().filter(|missing| missing.sockets == sockets).map(|missing| missing.pause);
                let longest = if sockets.is_some() { LONGEST_PAUSE } else { LONGEST_PAUSE_BY_NAME };
                let pause = before.map_or(FIRST_PAUSE, |before| (before * 2).min(longest));
                found.missing = Some(Missing { sockets, next: now + pause, pause });
            }
        }
        found.server.clone()
    }

    fn read(&self, now: Instant) -> Reading {
        let server = self.server(now);
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
            pools: [(Pool::Host, Real { held, usage, others: false })].into(),
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
        let (seen, now) = (Arc::clone(&self.seen), self.clock.now());
        let reading = tokio::task::spawn_blocking(move || {
            let _place = place;
            seen.read(now)
        });
        let mut reading = reading.await.unwrap_or_default();
        for (device, usage) in self.page.as_ref().map(|page| page.read(&self.seen)).unwrap_or_default() {
            // The driver's own word is the newer one.
            reading.pools.entry(Pool::Gpu(device)).or_default().usage.get_or_insert(usage);
        }
        reading
    }

    async fn end_server(&self) -> bool {
        let (seen, now) = (Arc::clone(&self.seen), self.clock.now());
        let ended = tokio::task::spawn_blocking(move || {
            let (process, _) = seen.server(now)?;
            // Only what is measured is ended: a process of another machine's number space is not.
            let pid = rustix::process::Pid::from_raw(i32::try_from(process.pid).ok()?)?;
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok()
        });
        ended.await.ok().flatten().is_some()
    }
}

impl Host {
    /// What a first look tells of the size of each GPU: this one waits for the page of metrics.
    pub async fn gpu_totals(&self) -> Vec<(u16, ByteSize)> {
        if let Some(page) = &self.page {
            page.ask(Arc::clone(&self.seen)).await;
        }
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

    #[test]
    fn of_a_machine_what_is_free_counts_less_a_gib_and_however_much_it_is() {
        const GIB: u64 = 1 << 30;
        for (all, used, there) in [(16, 4, 11), (16, 12, 3), (128, 28, 92), (128, 120, 7), (8, 1, 6)] {
            let machine = last_of(Usage { used: ByteSize(used * GIB), limit: ByteSize(all * GIB) });
            assert_eq!(machine.free(), ByteSize((all - used) * GIB), "{all} {used}");
            let room = machine.limit.percent(92).saturating_sub(machine.used);
            assert_eq!(room.0 / GIB, there, "{all} {used}: below the usual high mark");
        }
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

    #[test]
    fn all_processes_are_looked_through_less_and_less_often_until_somebody_else_listens() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        let listens = |inode: u64| {
            let line = format!("0: 0100007F:1F41 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 {inode} 1 0\n");
            std::fs::create_dir_all(root.join("proc/net")).expect("writable");
            std::fs::write(root.join("proc/net/tcp"), format!("sl local_address\n{line}")).expect("writable");
        };
        let holds = |pid: u32, inode: u64| {
            let process = process::folder(root, pid);
            std::fs::create_dir_all(process.join("fd")).expect("writable");
            std::os::unix::fs::symlink(format!("socket:[{inode}]"), process.join("fd").join(inode.to_string())).expect("writable");
            std::fs::write(process.join("stat"), format!("{pid} (s) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 0")).expect("writable");
        };
        let which = Some(Which::Port([127, 0, 0, 1].into(), 0x1F41));
        let seen = Seen { root: root.to_owned(), which, scope: Scope::Server, gpus: None, found: Mutex::default() };
        let (start, secs) = (Clock::system().now(), Duration::from_secs);
        let found = |after: u64| seen.server(start + secs(after)).map(|(process, _)| process.pid);
        listens(41);
        assert_eq!(found(0), None, "nobody has it open, as far as can be seen");
        holds(30, 41);
        assert_eq!(found(0), None, "nothing is looked at again so soon");
        assert_eq!(found(1), Some(30));
        std::fs::remove_dir_all(process::folder(root, 30)).expect("writable");
        for (after, pause) in [(10, 1), (11, 2), (13, 4), (17, 8)] {
            assert_eq!(found(after), None);
            assert_eq!(seen.found.lock().missing.as_ref().map(|missing| missing.pause), Some(secs(pause)));
        }
        holds(31, 42);
        listens(42);
        assert_eq!(found(17), Some(31), "another socket is another server");
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "a server that a test speaks with")]
    async fn no_reading_waits_for_the_page_of_metrics() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            use tokio::io::AsyncWriteExt as _;
            let (mut stream, _) = listener.accept().await.expect("a client");
            released.await.expect("the test goes on");
            let page = "nv_gpu_memory_total_bytes{gpu_uuid=\"a\"} 9\nnv_gpu_memory_used_bytes{gpu_uuid=\"a\"} 5\n";
            stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{page}").as_bytes()).await.expect("the client reads");
        });
        let at =
            MetricsPage { server: Peer::Tcp { host: "127.0.0.1".to_owned(), port }, path: "/metrics".to_owned(), patience: Duration::from_secs(600) };
        let config = HostConfig { root: "/".into(), server: None, scope: Scope::Server, gpus: None, metrics: Some(at) };
        let clock = Clock::system();
        let host = Host::new(config, HostNet::shared(), clock.clone());
        let limit = clock.deadline_in(Duration::from_secs(30));
        let before = clock.until(limit, host.read()).await.expect("it does not wait for an answer that is held back");
        assert_eq!(before.usage(Pool::Gpu(0)), None);
        release.send(()).expect("it listens");
        server.await.expect("no panic");
        let told = async {
            loop {
                if let Some(usage) = host.read().await.usage(Pool::Gpu(0)) {
                    return usage;
                }
            }
        };
        assert_eq!(clock.until(limit, told).await, Some(Usage { used: ByteSize(5), limit: ByteSize(9) }));
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
