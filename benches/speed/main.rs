//! `cargo bench -p berth-benches`: the promises that one machine can show, each beside its baseline in the same run.
//!
//! Ratios are what counts; absolute times are printed for orientation. `BERTH_BENCH_BLOCKS` sets the number of
//! interleaved blocks (default 40). Names after `--` choose among `reload`, `small_call`, `growth` and `scale`.

mod growth;
mod reload;
mod scale;
mod small_call;
mod stage;

use anyhow::{Context, bail};

// What the binary has, so that loads are measured and cost the same here.
#[global_allocator]
static ALLOCATOR: berth_adapters::counting::CountingAllocator = berth_adapters::counting::CountingAllocator;

fn main() -> anyhow::Result<()> {
    let blocks = match std::env::var("BERTH_BENCH_BLOCKS") {
        Ok(text) => text.parse().with_context(|| format!("BERTH_BENCH_BLOCKS is {text:?}, not a number"))?,
        Err(_unset) => 40,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Cargo adds flags of its own.
    let chosen: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let known = ["reload", "small_call", "growth", "scale"];
    if let Some(unknown) = chosen.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no bench {unknown:?}, there are {}", known.join(", "));
    }
    runtime.block_on(async {
        for name in known.into_iter().filter(|name| chosen.is_empty() || chosen.iter().any(|one| one == name)) {
            match name {
                "reload" => reload::run(blocks).await?,
                "small_call" => small_call::run(blocks).await?,
                "growth" => growth::run(blocks),
                _ => scale::run(blocks).await?,
            }
        }
        anyhow::Ok(())
    })
}
