//! Random schedules over virtual time: whatever callers, the leader, the store and the runtime do, the invariants hold.

use std::collections::HashMap;
use std::sync::Arc;

use berth_adapters::LoadFault;
use berth_adapters::fake::{Confirm, Script};
use berth_puller::PullError;
use berth_puller::fake::Scripted;
use berth_residency::{MayEvict, WaitError};
use berth_types::ByteSize;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use crate::rig::{Parts, kib, millis, model, secs};

const MODELS: usize = 6;

#[derive(Clone, Debug)]
enum Op {
    /// A caller that waits so long, then uses the copy so long.
    Ensure {
        model: usize,
        within: u64,
        uses: u64,
    },
    /// A caller that goes away without waiting for its deadline.
    Leave {
        model: usize,
        after: u64,
    },
    Load {
        model: usize,
        may: MayEvict,
    },
    Retire {
        model: usize,
    },
    FailFetch {
        model: usize,
    },
    /// The next download finds the disk full, for now.
    FullDisk {
        model: usize,
    },
    FailLoad {
        model: usize,
        fault: LoadFault,
    },
    Crash,
    IndexOutage {
        lasts: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let model = || 0..MODELS;
    prop_oneof![
        12 => (model(), 1u64..20_000, 0u64..3_000).prop_map(|(model, within, uses)| Op::Ensure { model, within, uses }),
        2 => (model(), 0u64..500).prop_map(|(model, after)| Op::Leave { model, after }),
        3 => (model(), prop_oneof![
            Just(MayEvict::Nothing), Just(MayEvict::AnyIdle), (0u64..5).prop_map(|s| MayEvict::UnusedFor(secs(s)))
        ]).prop_map(|(model, may)| Op::Load { model, may }),
        1 => model().prop_map(|model| Op::Retire { model }),
        1 => model().prop_map(|model| Op::FailFetch { model }),
        2 => model().prop_map(|model| Op::FullDisk { model }),
        1 => (model(), prop_oneof![
            Just(LoadFault::BadModel), Just(LoadFault::OutOfMemory), Just(LoadFault::TimedOut), Just(LoadFault::RuntimeDown)
        ]).prop_map(|(model, fault)| Op::FailLoad { model, fault }),
        1 => Just(Op::Crash),
        1 => (100u64..4_000).prop_map(|lasts| Op::IndexOutage { lasts }),
    ]
}

/// How one model behaves: KiB, milliseconds to fetch, to load, to confirm an unload.
type Nature = (u64, u64, u64, u64);

fn natures() -> impl Strategy<Value = Vec<Nature>> {
    prop::collection::vec((1u64..9, 0u64..800, 0u64..1_500, prop_oneof![Just(0u64), 1u64..2_500]), MODELS)
}

fn script((_, _, load, confirm): Nature) -> Script {
    let confirm = if confirm == 0 { Confirm::AtOnce } else { Confirm::After(millis(confirm)) };
    Script::default().loading_for(millis(load)).confirming(confirm)
}

fn name(at: usize) -> String {
    format!("m{at}")
}

#[derive(Debug, Default)]
struct Seen {
    answers: HashMap<&'static str, usize>,
    loads: usize,
}

async fn run(ops: Vec<(u64, Op)>, natures: Vec<Nature>, memory: u64) -> Result<Seen, TestCaseError> {
    let mut parts = Parts::with_memory(kib(memory));
    parts.config.fetches = 2;
    parts.config.turn = millis(400);
    parts.config.drain_cap = secs(2);
    for (at, nature) in natures.iter().enumerate() {
        parts.fetch.always(&name(at), Scripted::arrives_in(kib(nature.0), millis(nature.1)));
        parts.runtime.script(name(at), script(*nature));
    }
    let budget = parts.budget.clone();
    let pod = Arc::new(parts.start());
    let mut callers = Vec::new();
    // A server that died takes its copies along, and that is noticed a little later.
    let reliable = !ops.iter().any(|(_, op)| matches!(op, Op::Crash));
    for (pause, op) in ops {
        pod.pass(millis(pause)).await;
        match op {
            Op::Ensure { model: at, within, uses } => {
                let caller = Arc::clone(&pod);
                callers.push(tokio::spawn(async move {
                    let began = caller.clock.now();
                    let answer = caller.ensure(&name(at), millis(within)).await;
                    let late = (caller.clock.now() - began).saturating_sub(millis(within));
                    let mut kept = true;
                    if let Ok(guard) = &answer {
                        tokio::select! {
                            () = caller.pass(millis(uses)) => kept = reliable && caller.held().contains(&name(at)),
                            () = guard.revoked() => {}
                        }
                    }
                    (answer.map(drop), late, kept || !reliable)
                }));
            }
            Op::Leave { model: at, after } => {
                let caller = pod.caller(&name(at), secs(60));
                pod.pass(millis(after)).await;
                caller.abort();
            }
            Op::Load { model: at, may } => pod.residency.load(model(&name(at)), may).await,
            Op::Retire { model: at } => pod.residency.retire(model(&name(at))).await,
            Op::FailFetch { model: at } => {
                pod.fetch.then(&name(at), Scripted::fails(PullError::Unavailable("scripted".to_owned())));
            }
            Op::FullDisk { model: at } => {
                pod.fetch.then(&name(at), Scripted::fails(PullError::DiskFull { need: kib(1), free: kib(0), budget: kib(9) }));
            }
            Op::FailLoad { model: at, fault } => pod.runtime.script(name(at), script(natures[at]).failing(1, fault)),
            Op::Crash => pod.runtime.crash(),
            Op::IndexOutage { lasts } => {
                pod.runtime.set_index_outage(true);
                let ends = Arc::clone(&pod);
                tokio::spawn(async move {
                    ends.pass(millis(lasts)).await;
                    ends.runtime.set_index_outage(false);
                });
            }
        }
        let snapshot = pod.snapshot().await;
        prop_assert!(snapshot.pools[0].charged <= kib(memory), "{snapshot:?}");
        let leased: ByteSize = snapshot.copies.iter().filter_map(|copy| copy.charged.as_ref()).map(|bytes| bytes.total()).sum();
        prop_assert_eq!(leased, snapshot.pools[0].charged, "{:?}", snapshot);
        prop_assert!(pod.runtime.peak_held().fits(&budget), "held {} of {budget}", pod.runtime.peak_held());
    }
    let mut seen = Seen::default();
    for caller in callers {
        // A waiter that is never answered hangs here until its deadline, and then is late.
        let (answer, late, kept) = caller.await.map_err(|fault| TestCaseError::fail(fault.to_string()))?;
        prop_assert!(late < millis(5), "answered {late:?} after its deadline: {answer:?}");
        prop_assert!(kept, "a copy was unloaded under a guard that was not revoked");
        let kind = match answer {
            Ok(()) => "served",
            Err(WaitError::Deadline) => "deadline",
            Err(WaitError::Retired) => "retired",
            Err(WaitError::Refused(_)) => "refused",
            Err(WaitError::Failed(_)) => "failed",
            Err(WaitError::ShuttingDown | WaitError::TooManyWaiting { .. }) => return Err(TestCaseError::fail("not in this schedule")),
        };
        *seen.answers.entry(kind).or_default() += 1;
    }
    pod.pass(secs(30)).await;
    let snapshot = pod.snapshot().await;
    prop_assert_eq!(snapshot.waiting, 0);
    for copy in &snapshot.copies {
        prop_assert_eq!(copy.in_flight, 0, "{:?}", copy);
    }
    pod.residency.drain(pod.clock.deadline_in(secs(10))).await;
    prop_assert_eq!(pod.runtime.held(), vec![]);
    prop_assert_eq!(pod.runtime.violations(), Vec::<String>::new());
    prop_assert!(pod.runtime.peak_held().fits(&budget));
    seen.loads = pod.runtime.loads().len();
    Ok(seen)
}

fn in_virtual_time<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime starts");
    runtime.block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(11), ..ProptestConfig::default()
    })]

    #[test]
    fn memory_is_never_exceeded_and_every_caller_is_answered(
        ops in prop::collection::vec((0u64..400, op()), 1..60), natures in natures(), memory in 8u64..20,
    ) {
        in_virtual_time(run(ops, natures, memory))?;
    }
}

/// Guards the property above against testing nothing: the schedules serve, fail, refuse and time out.
#[test]
fn the_random_schedules_reach_the_interesting_answers() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut total: HashMap<&'static str, usize> = HashMap::new();
    let mut loads = 0;
    for _ in 0..10 {
        let strategy = (prop::collection::vec((0u64..400, op()), 40..60), natures());
        let (ops, natures) = strategy.new_tree(&mut runner).expect("values").current();
        let seen = in_virtual_time(run(ops, natures, 12)).expect("the invariants hold");
        loads += seen.loads;
        for (kind, count) in seen.answers {
            *total.entry(kind).or_default() += count;
        }
    }
    for kind in ["served", "deadline", "retired", "failed"] {
        assert!(total.get(kind).is_some_and(|count| *count > 0), "no schedule ended {kind}: {total:?}");
    }
    assert!(loads > 50, "{loads}");
}
