//! Downloads from an S3 server on this machine, next to it and 20 ms away, against the clients that are known to be fast.
//!
//! Each client fetches the same sets of objects into an empty folder of the same file system, in turns, each time as a
//! process of its own: what it costs is then the kernel's word and not ours. A plain loopback hides what waiting costs,
//! hence the relay. Where objects are fetched without verification on all sides, what is left is moving bytes; the
//! difference to the same client with verification is its price. rclone can hold nothing against an object that was
//! uploaded in parts, as the large one here was.

mod contender;
mod ours;
mod relay;
mod set;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use berth_benches::Median;
use berth_telemetry::Clock;
use berth_testkit::{Found, Process, eventually, free_port};
use tempfile::TempDir;

use contender::{ACCESS_KEY, BUCKET, CRT_GBPS, CRT_GBPS_SINGLE, Client, Contender, Job, RCLONE_TUNED, SECRET_KEY, Sample, Tools};
use set::Set;

/// The first word on the command line of this program when it is started by itself, as one side of a comparison or the
/// way between them.
const AS_PULLER: &str = "as-puller";
const AS_RELAY: &str = "as-relay";

/// Added each way.
const DELAY: Duration = Duration::from_millis(10);
/// Blocks of a comparison: at least so many, which an interval needs,
const LEAST_BLOCKS: usize = 6;
/// at most so many,
const MOST_BLOCKS: usize = 20;
/// and as many between them as fit into this time, where nobody has said how many.
const TIME: Duration = Duration::from_secs(90);
/// A folder in memory is measured in where it has this much room: disks have moods. BERTH_BENCH_FOLDER names another.
const ROOM: u64 = 10 << 30;
const MEMORY: &str = "/dev/shm";
/// What a server or relay of this machine gets to start.
const START: Duration = Duration::from_secs(10);

/// A set, and where its server stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    set: Set,
    far: bool,
}

impl Case {
    /// All of them, in the order of a run.
    pub(crate) fn all() -> impl Iterator<Item = Case> {
        Set::ALL.into_iter().flat_map(|set| [false, true].map(|far| Case { set, far }))
    }

    /// What it is called on the command line: `small`, `small-far`.
    pub(crate) fn name(self) -> String {
        format!("{}{}", self.set.prefix(), if self.far { "-far" } else { "" })
    }

    fn contenders(self) -> Vec<Contender> {
        let clients = Client::ALL.into_iter().flat_map(|client| [true, false].map(|verifies| Contender { client, verifies }));
        // What rclone does by default is known to be slow where many small files are far away, and measured nowhere else.
        let as_it_comes = |contender: &Contender| self == Case { set: Set::Small, far: true } && contender.verifies;
        clients.filter(|contender| contender.client != Client::RcloneAsItComes || as_it_comes(contender)).collect()
    }
}

/// Does what this program is started for by itself; `None` where the words on its command line are a user's.
pub(crate) async fn play(words: &[String]) -> Option<anyhow::Result<()>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [AS_PULLER, storage, cache, path] => Some(ours::fetch(storage.into(), cache.into(), path).await),
        // What starting costs.
        [AS_PULLER] => Some(Ok(())),
        [AS_RELAY, server, delay] => Some(match (server.parse(), delay.parse()) {
            (Ok(server), Ok(millis)) => relay::serve(server, Duration::from_millis(millis)).await,
            _ => Err(anyhow::anyhow!("{AS_RELAY} needs an address and milliseconds")),
        }),
        _ => None,
    }
}

/// Measures `cases` and prints; with `blocks` each in so many blocks.
pub(crate) async fn run(cases: &[Case], blocks: Option<usize>) -> anyhow::Result<()> {
    let tools = Tools::from_env()?;
    let clock = Clock::system();
    let world = World::of(&tools, cases).await?;
    print_machine(world.scratch.path());
    println!("  rclone, tuned: {}", RCLONE_TUNED.join(" "));
    println!("  AWS CRT: aims at {CRT_GBPS} Gbit/s, with a single object at {CRT_GBPS_SINGLE}");
    let mut starts = Vec::new();
    for client in Client::ALL {
        starts.push(client.start(&tools).await?);
    }
    for case in cases {
        let mut all = measure(&tools, &world, *case, blocks, &clock).await?;
        for runs in &mut all {
            if let Some(start) = Client::ALL.iter().position(|client| *client == runs.contender.client).and_then(|at| starts.get(at)) {
                runs.samples.iter_mut().for_each(|sample| sample.less(start));
            }
        }
        report(*case, &all);
    }
    let told = Client::ALL.iter().zip(&starts).map(|(client, start)| format!("{client} {:.3} s and {:.3} CPU s", start.wall, start.cpu));
    println!("taken off each run is what the program costs that does nothing: {}", told.collect::<Vec<_>>().join("; "));
    Ok(())
}

/// What the downloads happen in.
struct World {
    scratch: TempDir,
    near: String,
    far: String,
    _server: Process,
    _relay: Process,
}

impl World {
    /// A server with the sets of `cases`, and the relay before it.
    async fn of(tools: &Tools, cases: &[Case]) -> anyhow::Result<World> {
        let scratch = tempfile::Builder::new().prefix("berth-bench-").tempdir_in(folder()?)?;
        let (data, meta) = (scratch.path().join("data"), scratch.path().join("sidecar"));
        fs::create_dir_all(data.join(BUCKET))?;
        fs::create_dir_all(&meta)?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = std::process::Command::new(&tools.versitygw);
        command.env_clear().env("ROOT_ACCESS_KEY", ACCESS_KEY).env("ROOT_SECRET_KEY", SECRET_KEY);
        // Stores keep connections open; this server does so on demand only. A line for each request would cost its time.
        command.args(["--port", &address.to_string(), "--keep-alive", "--quiet", "posix", "--sidecar"]).arg(&meta).arg(&data);
        let server = Process::start("versitygw", command)?;
        eventually("the S3 server to listen", START, || async {
            Ok(match tokio::net::TcpStream::connect(address).await {
                Ok(_) => Found::Yes(()),
                Err(fault) => Found::NotYet(format!("{fault}\n{}", server.written())),
            })
        })
        .await?;
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args([AS_RELAY, &address.to_string(), &DELAY.as_millis().to_string()]);
        let mut relay = Process::start("the relay", command)?;
        let line = relay.line("its address", START, |line| line.starts_with("address: ")).await?;
        let far = format!("http://{}", line.strip_prefix("address: ").unwrap_or_default());
        let world = World { scratch, near: format!("http://{address}"), far, _server: server, _relay: relay };
        for set in Set::ALL.into_iter().filter(|set| cases.iter().any(|case| case.set == *set)) {
            let source = world.scratch.path().join("source");
            set.write(&source)?;
            tools.upload(&world.near, set, &source).await?;
            fs::remove_dir_all(&source)?;
        }
        Ok(world)
    }

    /// The plain files behind the objects of `set`.
    fn original(&self, set: Set) -> PathBuf {
        self.scratch.path().join("data").join(BUCKET).join(set.prefix())
    }
}

/// Where everything is written: server's and clients' files.
fn folder() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("BERTH_BENCH_FOLDER") {
        return Ok(named.into());
    }
    let room = rustix::fs::statvfs(MEMORY).map_or(0, |memory| memory.f_bavail.saturating_mul(memory.f_frsize));
    Ok(if room >= ROOM { MEMORY.into() } else { std::env::temp_dir() })
}

fn print_machine(scratch: &Path) {
    let told = |file: &str, field: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(field)).and_then(|line| line.split(':').nth(1)).map(str::trim);
        line.unwrap_or("unknown").to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let (model, memory) = (told("/proc/cpuinfo", "model name"), told("/proc/meminfo", "MemTotal"));
    println!("downloads on {cores} cores ({model}) with {memory}, files in {}", scratch.display());
}

/// What a contender's downloads cost, block by block.
struct Runs {
    contender: Contender,
    samples: Vec<Sample>,
}

/// Runs all contenders in turns, another one first in each block.
async fn measure(tools: &Tools, world: &World, case: Case, blocks: Option<usize>, clock: &Clock) -> anyhow::Result<Vec<Runs>> {
    let mut all: Vec<Runs> = case.contenders().into_iter().map(|contender| Runs { contender, samples: Vec::new() }).collect();
    let endpoint = if case.far { &world.far } else { &world.near };
    let original = world.original(case.set);
    let count = all.len();
    let begin = clock.now();
    for block in 0.. {
        let enough = match blocks {
            Some(wanted) => block > wanted,
            None => block > MOST_BLOCKS || (block > LEAST_BLOCKS && clock.now() - begin > TIME),
        };
        if enough {
            break;
        }
        for turn in 0..count {
            let Runs { contender, samples } = &mut all[(block + turn) % count];
            let folder = tempfile::tempdir_in(world.scratch.path())?;
            settle(folder.path())?;
            let fetched = contender.fetch(tools, &Job { set: case.set, endpoint, folder: folder.path() }).await?;
            // The first block warms caches, has its bytes looked at and is thrown away.
            case.set.check(&fetched.files, &original, block == 0).with_context(|| format!("{contender} said {:?}", fetched.said))?;
            if block > 0 {
                samples.push(fetched.sample);
            }
        }
    }
    Ok(all)
}

/// Waits until the file system has nothing left to do for those who came before.
fn settle(folder: &Path) -> anyhow::Result<()> {
    let folder = fs::File::open(folder)?;
    Ok(rustix::fs::syncfs(&folder)?)
}

fn report(case: Case, runs: &[Runs]) {
    let set = case.set;
    let blocks = runs.first().map_or(0, |runs| runs.samples.len());
    println!("download of {set}, {}: medians of {blocks} blocks", if case.far { "20 ms away" } else { "next to the server" });
    for runs in runs {
        let (wall, cpu) = (runs.median(|sample| sample.wall), runs.median(|sample| sample.cpu));
        let name = runs.contender.to_string();
        println!("  {name:<24} {wall:>7.3} s  {:>6.2} CPU s/GiB  peak {:>5.1} MiB", cpu / set.gib(), runs.peak() / f64::from(1 << 20));
    }
    let of = |client, verifies| runs.iter().find(|runs| runs.contender == Contender { client, verifies });
    let (Some(ours), Some(plain)) = (of(Client::Berth, true), of(Client::Berth, false)) else { return };
    let others = |verifies| [Client::Rclone, Client::Crt].into_iter().filter_map(move |client| of(client, verifies));
    let least = |verifies, pick: fn(&Sample) -> f64| others(verifies).min_by(|one, other| one.median(pick).total_cmp(&other.median(pick)));
    for (ours, verifies) in [(ours, true), (plain, false)] {
        if let Some(best) = least(verifies, |sample| sample.wall) {
            let ratio = ours.against(best, |sample| sample.wall);
            println!("  wall of {} against {}, the faster: {ratio}\n    promise: at most 1.05", ours.contender, best.contender);
        }
    }
    if let Some(best) = least(false, |sample| sample.cpu) {
        let ratio = plain.against(best, |sample| sample.cpu);
        println!("  CPU of {} against {}, the thriftier: {ratio}\n    promise: at most 1.10", plain.contender, best.contender);
    }
    if let Some(slow) = of(Client::RcloneAsItComes, true) {
        println!("  {} takes so many times longer: {}\n    promise: at least 4", slow.contender, slow.against(ours, |sample| sample.wall));
    }
    let cost = |client| {
        let (on, off) = (of(client, true)?, of(client, false)?);
        let more = on.median(|sample| sample.cpu) - off.median(|sample| sample.cpu);
        Some(format!("{} wall x {}, {:+.2} CPU s/GiB", on.contender, on.against(off, |sample| sample.wall), more / set.gib()))
    };
    let costs: Vec<String> = [Client::Berth, Client::Rclone, Client::Crt].into_iter().filter_map(cost).collect();
    println!("  cost of verification: {}", costs.join("; "));
    println!("  peak memory: {:.1} MiB\n    promise: less than 64 MiB", ours.peak().max(plain.peak()) / f64::from(1 << 20));
}

impl Runs {
    fn median(&self, pick: fn(&Sample) -> f64) -> f64 {
        Median::of(self.samples.iter().map(pick).collect()).value
    }

    /// The worst of all blocks, bytes.
    fn peak(&self) -> f64 {
        self.samples.iter().map(|sample| sample.peak).fold(0.0, f64::max)
    }

    /// Of this over of `other`, block by block.
    fn against(&self, other: &Runs, pick: fn(&Sample) -> f64) -> Median {
        Median::of(self.samples.iter().zip(&other.samples).map(|(this, other)| pick(this) / pick(other).max(1e-9)).collect())
    }
}
