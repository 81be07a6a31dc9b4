//! A reload from the disk tier against the engine's own unload and load of the same models.
//!
//! Both sides swap two models in turns: residency because its budget has room for one, the engine because it is told
//! to. What residency adds is admission, eviction with confirmation, layout, the ledger and the hand-over to the caller.

use std::time::Duration;

use anyhow::Context;
use berth_adapters::Runtime;
use berth_benches::{Comparison, Cost};
use berth_telemetry::Clock;
use berth_types::{ByteSize, Registration};

use crate::stage;

const SWAPS: u32 = 8;
const PAIR: [&str; 2] = ["digits-wide", "digits-deep"];

/// Measures and prints.
pub(crate) async fn run(blocks: usize) -> anyhow::Result<()> {
    let clock = Clock::system();
    let scratch = tempfile::tempdir()?;
    let (own, resident) = (stage::engine(&clock)?, stage::engine(&clock)?);
    let models = PAIR.map(stage::registration);
    let mut laid_out = Vec::new();
    let mut largest = ByteSize::ZERO;
    let mut predicted = ByteSize::ZERO;
    for (model, name) in models.iter().zip(PAIR) {
        let artifacts = stage::artifacts(name)?;
        predicted = predicted.max(own.estimate(&artifacts).context("the engine predicts its loads")?.total());
        let files = own.lay_out(model, &artifacts).await?;
        let loaded = own.load(model, &files).await?;
        largest = largest.max(loaded.measured.context("the engine measures its loads")?.total());
        unload(&*own, model).await?;
        laid_out.push(files);
    }
    // Room for either, not for both.
    let residency = stage::residency(&resident, largest.percent(150).max(predicted), &scratch, &clock).await?;
    let deadline = || clock.deadline_in(Duration::from_secs(60));

    let mut costs: Vec<(Cost, Cost)> = Vec::new();
    for block in 0..blocks + 1 {
        let direct = async {
            let meter = stage::Meter::start(&clock);
            for swap in 0..SWAPS as usize {
                own.load(&models[swap % 2], &laid_out[swap % 2]).await?;
                unload(&*own, &models[swap % 2]).await?;
            }
            anyhow::Ok(meter.stop(&clock))
        };
        let through = async {
            let meter = stage::Meter::start(&clock);
            for swap in 0..SWAPS as usize {
                drop(residency.ensure_loaded(&models[swap % 2], deadline()).await?);
            }
            anyhow::Ok(meter.stop(&clock))
        };
        let (base, thing) = if block % 2 == 0 {
            (direct.await?, through.await?)
        } else {
            let thing = through.await?;
            (direct.await?, thing)
        };
        // The first block warms caches and is thrown away.
        if block > 0 {
            costs.push((base, thing));
        }
    }
    let result = Comparison::of("reload from disk against the engine's own load and unload", SWAPS, &costs);
    println!("{result}\n  promise: less than 10 % or 5 ms more");
    residency.drain(deadline()).await;
    Ok(())
}

async fn unload(engine: &dyn Runtime, model: &Registration) -> anyhow::Result<()> {
    engine.unload(&model.id).await?;
    while engine.index().await?.unloaded(&model.id).is_none() {
        engine.index_changed().await;
    }
    Ok(())
}
