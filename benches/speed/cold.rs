//! A hot model while others wait for a cold one: its throughput with and without 200 callers of a model whose load never
//! ends, on the same connections.

use crate::hop::{self, Plan, World};

const CALLERS: usize = 16;
const CONNECTIONS: usize = 4;
const BLOCKED: usize = 200;
/// How long one block takes.
const MILLIS: u64 = 200;

/// Measures and prints.
pub(crate) async fn run(blocks: usize) -> anyhow::Result<()> {
    let world = World::of(CALLERS, false).await?;
    let berth = world.berth().await?;
    let plan = Plan {
        seats: vec![berth.seat(0), berth.seat(BLOCKED)],
        bytes: 100,
        callers: CALLERS,
        connections: CONNECTIONS,
        streaming: false,
        in_message: false,
        blocks,
        millis: MILLIS,
        wait_millis: 0,
    };
    let samples = hop::load(&plan).await?;
    let rate = |sample: &hop::Sample| sample.requests as f64 / sample.wall;
    let (alone, beside) = (hop::median(hop::of(&samples, 0), rate), hop::median(hop::of(&samples, 1), rate));
    println!("{CALLERS} callers of a hot model: {alone:.0} requests/s; beside {BLOCKED} callers that wait for a cold one {beside:.0} requests/s");
    let ratio = hop::paired(&samples, 1, 0, |beside, alone| rate(beside) / rate(alone));
    println!("  throughput with over without: {ratio}, {blocks} blocks\n    promise: at least 0.9");
    Ok(())
}
