//! `cargo bench -p berth-benches`: the promises that one machine can show, each beside its baseline in the same run.
//!
//! Ratios are what counts; absolute times are printed for orientation. `BERTH_BENCH_BLOCKS` sets the number of
//! interleaved blocks (default 40; downloads: 6 to 20, as many as a minute and a half allows). Names after `--` choose
//! among `reload`, `small_call`, `rest`, `growth`, `scale`, `register`, `cold`, `load`, `hop` and `download`, or of the last two
//! one case: `memory`, `100B-64-unary-header` and the like; `big`, `middle`, `small`, `big-far`, `middle-far`, `small-far`.
//! Downloads need an S3 server and other clients, loads a Triton: `cargo xtask bench` installs them.

mod cold;
mod download;
mod growth;
mod hop;
mod load;
mod register;
mod reload;
mod rest;
mod scale;
mod small_call;
mod stage;

use anyhow::{Context, bail};

// What the binary has, so that loads are measured and cost the same here.
#[global_allocator]
static ALLOCATOR: berth_adapters::counting::CountingAllocator = berth_adapters::counting::CountingAllocator;

const DOWNLOAD: &str = "download";
const HOP: &str = "hop";
const HOP_MEMORY: &str = "memory";

fn main() -> anyhow::Result<()> {
    berth_adapters::counting::keep_buffers();
    let blocks = match std::env::var("BERTH_BENCH_BLOCKS") {
        Ok(text) => Some(text.parse().with_context(|| format!("BERTH_BENCH_BLOCKS is {text:?}, not a number"))?),
        Err(_unset) => None,
    };
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let played = runtime.block_on(async {
        match hop::play(&words).await {
            None => download::play(&words).await,
            played => played,
        }
    });
    if let Some(played) = played {
        // Work that nobody waits for ends with the process.
        runtime.shutdown_background();
        return played;
    }
    // Cargo adds flags of its own.
    let chosen: Vec<String> = words.into_iter().filter(|argument| !argument.starts_with('-')).collect();
    let known = ["reload", "small_call", "rest", "growth", "scale", "register", "cold", "load", HOP, HOP_MEMORY, DOWNLOAD];
    let cases: Vec<String> = hop::Case::all().map(hop::Case::name).chain(download::Case::all().map(download::Case::name)).collect();
    if let Some(unknown) = chosen.iter().find(|name| !known.contains(&name.as_str()) && !cases.contains(name)) {
        bail!("there is no bench {unknown:?}, there are {}, {}", known.join(", "), cases.join(", "));
    }
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|one| one == name);
    let downloads: Vec<download::Case> = download::Case::all().filter(|case| wanted(DOWNLOAD) || wanted(&case.name())).collect();
    let hops: Vec<hop::Case> = hop::Case::all().filter(|case| wanted(HOP) || wanted(&case.name())).collect();
    runtime.block_on(async {
        let usual = blocks.unwrap_or(40);
        for name in known.into_iter().filter(|name| wanted(name)) {
            match name {
                "reload" => reload::run(usual).await?,
                "small_call" => small_call::run(usual).await?,
                "rest" => rest::run(usual).await?,
                "growth" => growth::run(usual),
                "scale" => scale::run(usual).await?,
                "register" => register::run(usual).await?,
                "cold" => cold::run(usual).await?,
                "load" => load::run(usual).await?,
                _ => {}
            }
        }
        hop::run(&hops, blocks).await?;
        if wanted(HOP) || wanted(HOP_MEMORY) {
            hop::memory().await?;
        }
        if !downloads.is_empty() {
            download::run(&downloads, blocks).await?;
        }
        anyhow::Ok(())
    })
}
