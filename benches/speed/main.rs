//! `cargo bench -p berth-benches`: the promises that one machine can show, each beside its baseline in the same run.
//!
//! Ratios are what counts; absolute times are printed for orientation. `BERTH_BENCH_BLOCKS` sets the number of
//! interleaved blocks (default 40).

mod growth;
mod reload;
mod small_call;
mod stage;

use anyhow::Context;

// What the binary has, so that loads are measured and cost the same here.
#[global_allocator]
static ALLOCATOR: berth_adapters::counting::CountingAllocator = berth_adapters::counting::CountingAllocator;

fn main() -> anyhow::Result<()> {
    let blocks = match std::env::var("BERTH_BENCH_BLOCKS") {
        Ok(text) => text.parse().with_context(|| format!("BERTH_BENCH_BLOCKS is {text:?}, not a number"))?,
        Err(_unset) => 40,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        reload::run(blocks).await?;
        small_call::run(blocks).await?;
        growth::run(blocks);
        anyhow::Ok(())
    })
}
