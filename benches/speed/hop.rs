//! What a request pays for coming through the agent: direct to the runtime, through a bare hyper pass-through, through ours.
//!
//! Each contender is a process of its own, and so is the client, so that what a hop costs is the kernel's word: all of them
//! share the cores, the windows, the settings of the runtime and the number of connections to the server. The server
//! answers with what it got. Callers wait for one answer before they send the next request; contenders take turns, block
//! by block, each with an answer before the block begins.
//!
//! Ours has a thousand models, a real residency and real routing: it finds the model, holds its copy until the answer has
//! ended, counts, keeps deadlines. Where messages name the model their id is found and another one written behind it.

mod bare;
mod echo;
pub(crate) mod load;
mod ours;
mod wire;

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use berth_benches::Median;
use berth_testkit::{Exit, Process};
use berth_types::ByteSize;

pub(crate) use load::{Plan, Sample, Seat};

/// The first word on the command line of this program when it is started by itself, as one of those that take part.
const AS_ECHO: &str = "as-echo";
const AS_BARE: &str = "as-bare";
const AS_BERTH: &str = "as-berth";
const AS_LOAD: &str = "as-load";

/// What each of them gets to start.
const START: Duration = Duration::from_secs(20);
/// What a case gets for everything.
const WHOLE: Duration = Duration::from_secs(180);
/// Blocks of a case where nobody has said how many.
const BLOCKS: usize = 30;
/// Calls of one connection to the server before another one is opened; the connections of clients.
const STREAMS: usize = 32;
const CONNECTIONS: usize = 8;
/// A message that is called 16 MiB: that with its prefix and the id of its model it still is not larger.
const LARGE: usize = (16 << 20) - 1024;
/// How long bodies are left unread where memory is looked at, in milliseconds.
const UNREAD: u64 = 400;

/// Does what this program is started for by itself; `None` where the words on its command line are a user's.
pub(crate) async fn play(words: &[String]) -> Option<anyhow::Result<()>> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Some(match words.as_slice() {
        [AS_ECHO, path] => echo::serve(path).await,
        [AS_BARE, target, connections] => match connections.parse() {
            Ok(connections) => bare::serve(target, connections).await,
            Err(fault) => Err(anyhow::anyhow!("{connections:?}: {fault}")),
        },
        [AS_BERTH, target, connections] => match connections.parse() {
            Ok(connections) => ours::serve(target, connections).await,
            Err(fault) => Err(anyhow::anyhow!("{connections:?}: {fault}")),
        },
        [AS_LOAD, plan] => load::run(plan).await,
        _ => return None,
    })
}

/// What is sent how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    bytes: usize,
    callers: usize,
    streaming: bool,
    in_message: bool,
    /// Between the proxy and the server, in place of TCP.
    unix: bool,
    /// How long one block takes.
    millis: u64,
}

impl Case {
    /// All of them, in the order of a run.
    pub(crate) fn all() -> impl Iterator<Item = Case> {
        let tcp = |bytes, callers, streaming, in_message, millis| Case { bytes, callers, streaming, in_message, unix: false, millis };
        let first = tcp(100, 1, false, false, 80);
        let many = tcp(100, 64, false, false, 100);
        let image = tcp(100_000, 1, false, false, 100);
        [
            first,
            many,
            Case { in_message: true, ..many },
            Case { unix: true, ..many },
            tcp(100, 1, true, true, 80),
            tcp(100, 64, true, true, 100),
            image,
            Case { in_message: true, unix: true, ..image },
            tcp(100_000, 64, false, true, 200),
            tcp(100_000, 64, true, true, 200),
            tcp(LARGE, 1, false, true, 300),
            tcp(LARGE, 1, true, false, 300),
        ]
        .into_iter()
    }

    /// What it is called on the command line: `100B-64-stream-message`.
    pub(crate) fn name(self) -> String {
        let (kind, id) = (if self.streaming { "stream" } else { "unary" }, if self.in_message { "message" } else { "header" });
        format!("{}-{}-{kind}-{id}{}", size(self.bytes).replace(' ', ""), self.callers, if self.unix { "-unix" } else { "" })
    }

    fn told(self) -> String {
        let kind = if self.streaming { "messages of streams" } else { "unary" };
        let id = if self.in_message { "named in the message, id injected" } else { "named in a header" };
        let callers = if self.callers == 1 { "1 caller".to_owned() } else { format!("{} callers", self.callers) };
        format!("{} {kind}, {callers}, {id}, server by {}", size(self.bytes), if self.unix { "Unix socket" } else { "TCP" })
    }
}

fn size(bytes: usize) -> String {
    match bytes {
        LARGE => "16 MiB".to_owned(),
        1_000.. => format!("{} KB", bytes / 1000),
        _ => format!("{bytes} B"),
    }
}

/// Measures `cases` and prints; with `blocks` each in so many blocks.
pub(crate) async fn run(cases: &[Case], blocks: Option<usize>) -> anyhow::Result<()> {
    for case in cases {
        measure(*case, blocks.unwrap_or(BLOCKS)).await.with_context(|| case.name())?;
    }
    Ok(())
}

/// The processes of a case.
pub(crate) struct World {
    _scratch: tempfile::TempDir,
    /// The server.
    pub(crate) echo: Seated,
    /// The target that proxies are given.
    target: String,
    /// Connections of each proxy to the server.
    connections: usize,
}

/// A process that can be called.
pub(crate) struct Seated {
    process: Process,
    pub(crate) address: String,
}

impl Seated {
    /// This program again as somebody else, with an address that it says.
    async fn start(words: &[&str]) -> anyhow::Result<Self> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(words);
        let mut process = Process::start(words.first().copied().unwrap_or_default(), command)?;
        let line = process.line("its address", START, |line| line.starts_with("address: ")).await?;
        Ok(Seated { process, address: line.trim_start_matches("address: ").to_owned() })
    }

    /// It, as the load calls it, with `blocked` callers of the cold model.
    pub(crate) fn seat(&self, blocked: usize) -> Seat {
        Seat { address: self.address.clone(), process: self.process.id(), blocked }
    }

    /// The most memory that it has had resident, bytes.
    fn peak(&self) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the most memory")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
    }
}

impl World {
    /// A server, for proxies that `callers` call.
    pub(crate) async fn of(callers: usize, unix: bool) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let socket = scratch.path().join("echo.sock");
        let socket = socket.to_str().context("a path of text")?;
        let echo = Seated::start(&[AS_ECHO, socket]).await?;
        let target = if unix { format!("unix:{socket}") } else { echo.address.clone() };
        Ok(World { _scratch: scratch, echo, target, connections: callers.div_ceil(STREAMS) })
    }

    async fn bare(&self) -> anyhow::Result<Seated> {
        Seated::start(&[AS_BARE, &self.target, &self.connections.to_string()]).await
    }

    pub(crate) async fn berth(&self) -> anyhow::Result<Seated> {
        Seated::start(&[AS_BERTH, &self.target, &self.connections.to_string()]).await
    }
}

/// Has `plan` carried out.
pub(crate) async fn load(plan: &Plan) -> anyhow::Result<Vec<Sample>> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.args([AS_LOAD, &serde_json::to_string(plan)?]);
    let mut process = Process::start(AS_LOAD, command)?;
    let exit = process.exit(WHOLE).await?;
    anyhow::ensure!(exit == Exit::Code(0), "{exit:?}: {}", process.written());
    process.out().lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The samples of one seat, block by block.
pub(crate) fn of(samples: &[Sample], seat: usize) -> impl Iterator<Item = &Sample> {
    samples.iter().filter(move |sample| sample.seat == seat)
}

pub(crate) fn median<'a>(samples: impl Iterator<Item = &'a Sample>, pick: impl Fn(&Sample) -> f64) -> f64 {
    Median::of(samples.map(pick).collect()).value
}

/// One figure of two seats, put together block by block.
pub(crate) fn paired(samples: &[Sample], one: usize, other: usize, figure: impl Fn(&Sample, &Sample) -> f64) -> Median {
    Median::of(of(samples, one).zip(of(samples, other)).map(|(one, other)| figure(one, other)).collect())
}

const NAMES: [&str; 3] = ["direct", "bare", "berth"];
const DIRECT: usize = 0;
const BARE: usize = 1;
const BERTH: usize = 2;

async fn measure(case: Case, blocks: usize) -> anyhow::Result<()> {
    let world = World::of(case.callers, case.unix).await?;
    let (bare, berth) = (world.bare().await?, world.berth().await?);
    let seats = [&world.echo, &bare, &berth];
    let Case { bytes, callers, streaming, in_message, millis, .. } = case;
    let connections = CONNECTIONS.min(callers);
    let seated = seats.iter().map(|seated| seated.seat(0)).collect();
    let plan = Plan { seats: seated, bytes, callers, connections, streaming, in_message, blocks, millis, wait_millis: 0 };
    let samples = load(&plan).await?;

    println!("hop, {} ({}): medians of {blocks} blocks", case.told(), case.name());
    for (seat, name) in NAMES.iter().enumerate() {
        let (p50, p99) = (median(of(&samples, seat), |sample| sample.p50), median(of(&samples, seat), |sample| sample.p99));
        let rate = median(of(&samples, seat), |sample| sample.requests as f64 / sample.wall);
        let cpu = median(of(&samples, seat), cpu_of);
        let peak = seats[seat].peak()? as f64 / f64::from(1 << 20);
        println!("  {name:<6} p50 {p50:>8.0} us  p99 {p99:>8.0} us  {rate:>8.0} requests/s  {cpu:>8.1} us CPU per request  peak {peak:>5.1} MiB");
    }
    for seat in [BARE, BERTH] {
        println!("  p50 added to direct by {}: {} us", NAMES[seat], paired(&samples, seat, DIRECT, |proxy, direct| proxy.p50 - direct.p50));
    }
    let direct: Vec<f64> = of(&samples, DIRECT).map(|sample| sample.p50).collect();
    let added =
        of(&samples, BERTH).zip(of(&samples, BARE)).zip(direct).map(|((berth, bare), direct)| (berth.p50 - direct) / (bare.p50 - direct).max(1.0));
    println!("  p50 added, berth over bare: {}\n    promise: at most 1.3", Median::of(added.collect()));
    println!("  p50, berth over bare: {}", paired(&samples, BERTH, BARE, |berth, bare| berth.p50 / bare.p50));
    let cpu = paired(&samples, BERTH, BARE, |berth, bare| cpu_of(berth) / cpu_of(bare).max(1e-3));
    println!("  CPU per request, berth over bare: {cpu}\n    promise: at most 1.3");
    Ok(())
}

/// Microseconds of the process for one request.
fn cpu_of(sample: &Sample) -> f64 {
    sample.cpu * 1e6 / (sample.requests as f64).max(1.0)
}

/// What proxies hold of bodies that the server and then the client leave unread for a while: peak memory over callers and
/// sizes of bodies, each in fresh processes.
pub(crate) async fn memory() -> anyhow::Result<()> {
    println!("hop, memory: bodies both ways, left unread for {UNREAD} ms by the server and then by the client; peaks of fresh processes");
    let mut most = Vec::new();
    for (bytes, callers) in [(100, 1), (100, 64), (4 << 20, 64), (LARGE, 1), (LARGE, 64)] {
        let world = World::of(callers, false).await?;
        let connections = CONNECTIONS.min(callers);
        let mut peaks = Vec::new();
        for proxy in [world.bare().await?, world.berth().await?] {
            let before = proxy.peak()?;
            let plan = Plan {
                seats: vec![proxy.seat(0)],
                bytes,
                callers,
                connections,
                streaming: false,
                in_message: true,
                blocks: 0,
                millis: 0,
                wait_millis: UNREAD,
            };
            load(&plan).await?;
            peaks.push((before, proxy.peak()?));
        }
        let bare = peaks.first().map_or(0, |(before, peak)| peak - before);
        let (before, peak) = peaks.last().copied().unwrap_or_default();
        let each = ByteSize((peak - before) / callers as u64);
        println!(
            "  {:>6} x {callers:>2}: berth {} over the {} before, {each} per caller; bare {} over its own",
            if bytes == 4 << 20 { "4 MiB".to_owned() } else { size(bytes) },
            ByteSize(peak - before),
            ByteSize(before),
            ByteSize(bare)
        );
        let windows = (connections + world.connections) as u64 * u64::from(wire::CONNECTION_WINDOW);
        let buffers = callers as u64 * 2 * wire::SEND_BUFFER as u64;
        most.push((peak - before, windows + buffers));
    }
    let of = |at: usize| most.get(at).copied().unwrap_or_default();
    let ((smaller, _), (larger, allowed)) = (of(2), of(4));
    println!("  64 callers, bodies of 16 MiB over bodies of 4 MiB: {:.2}\n    promise: far from 4", larger as f64 / smaller as f64);
    println!(
        "  64 callers, bodies of 16 MiB (1 GiB each way): {}\n    promise: at most what the windows and send buffers allow, {}",
        ByteSize(larger),
        ByteSize(allowed)
    );
    Ok(())
}
