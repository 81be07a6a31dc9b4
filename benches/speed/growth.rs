//! What a decision costs with ten times the models: resolving a request, changing one name of the view, planning an
//! eviction. Absolute times do not matter here, only how they grow.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use berth_benches::{Comparison, Cost};
use berth_plan::{MayEvict, Memory, Resident, admit};
use berth_registry::{NameEntry, Resolved, View};
use berth_telemetry::Clock;
use berth_types::{ByteSize, Footprint, Name, UnixMillis};

use crate::stage;

const FEW: usize = 10_000;
const MANY: usize = 100_000;

/// Measures and prints.
pub(crate) fn run(blocks: usize) {
    let clock = Clock::system();
    let (few, many) = (view(FEW), view(MANY));
    // Different names in each round, so that one line of the cache does not answer all.
    let names = |count: usize| (0..2_000).map(|at| format!("model-{}", at * 7919 % count)).collect::<Vec<_>>();
    let (few_names, many_names) = (names(FEW), names(MANY));
    let resolve = |view: &View, names: &[String]| {
        let meter = stage::Meter::start(&clock);
        for name in names {
            assert!(matches!(black_box(view.resolve(name)), Resolved::Model(_)));
        }
        meter.stop(&clock)
    };
    print("resolve a name", 2_000, blocks, || resolve(&few, &few_names), || resolve(&many, &many_names));

    let change = |view: &View, count: usize| {
        let meter = stage::Meter::start(&clock);
        for at in 0..200 {
            let (name, entry) = entry(at * 31 % count);
            black_box(view.with_name(&name, Some(entry)));
        }
        meter.stop(&clock)
    };
    print("change one name of the view", 200, blocks, || change(&few, FEW), || change(&many, MANY));

    let (few, many) = (residents(1_000), residents(10_000));
    let evict = |residents: &[Resident]| {
        let charged = Footprint::host(residents.iter().map(|copy| copy.footprint.total()).sum());
        let memory = Memory { budget: charged.clone(), charged, ..Memory::default() };
        let need = Footprint::host(ByteSize::mib(40));
        let meter = stage::Meter::start(&clock);
        for _ in 0..500 {
            black_box(admit(&need, &memory, residents.iter().cloned(), MayEvict::AnyIdle, UnixMillis(1 << 40)));
        }
        meter.stop(&clock)
    };
    print("plan an eviction", 500, blocks, || evict(&few), || evict(&many));
}

fn print(name: &'static str, operations: u32, blocks: usize, mut few: impl FnMut() -> Cost, mut many: impl FnMut() -> Cost) {
    let mut costs = Vec::new();
    for block in 0..=blocks {
        let pair = if block % 2 == 0 {
            (few(), many())
        } else {
            let many = many();
            (few(), many)
        };
        if block > 0 {
            costs.push(pair);
        }
    }
    println!("10 x models, {}\n  promise: at most 1.3", Comparison::of(name, operations, &costs));
}

fn entry(at: usize) -> (Name, NameEntry) {
    let name = format!("model-{at}");
    let entry = NameEntry { active: Some(stage::registration(&name)), target: None, failure: None };
    (Name::new(name).expect("a name"), entry)
}

fn view(count: usize) -> View {
    (0..count).map(entry).fold(View::default(), |view, (name, entry)| view.with_name(&name, Some(entry)))
}

fn residents(count: usize) -> Vec<Resident> {
    (0..count)
        .map(|at| Resident {
            model: Arc::unwrap_or_clone(stage::registration(&format!("model-{at}"))).id,
            footprint: Footprint::host(ByteSize::mib(1 + at as u64 % 16)),
            last_used: UnixMillis(at as u64),
            held_for: Duration::ZERO,
            used_since_load: true,
            in_flight: 0,
            pinned: false,
        })
        .collect()
}
