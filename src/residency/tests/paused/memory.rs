//! What is really in use: sizes that are measured, memory that is fuller than the ledger thinks, a server that keeps it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_adapters::fake::{Confirm, Script};
use berth_adapters::{FakeRuntime, LoadFault};
use berth_puller::fake::Scripted;
use berth_residency::{Recycle, WaitError};
use berth_telemetry::Counter;
use berth_types::{ByteSize, ContentDigest, Keep, Pool, Reading, Real, Usage};

use crate::rig::{Parts, Pod, Unanswering, kept, kib, millis, secs};

/// What the server holds without a model.
const BASE: u64 = 100 << 10;

/// Knobs of the world that is measured.
#[derive(Clone, Default)]
struct World {
    /// Bytes that the server keeps of models that have gone.
    kept: Arc<AtomicU64>,
    /// Bytes that others use.
    others: Arc<AtomicU64>,
    /// What there is in all, in KiB; nothing is known of it while this is zero.
    limit: Arc<AtomicU64>,
    kills: Arc<AtomicU64>,
    life: Arc<AtomicU64>,
}

impl World {
    fn limited_to(limit: ByteSize) -> World {
        let world = World::default();
        world.limit.store(limit.0, Ordering::Relaxed);
        world
    }

    fn tell(&self, runtime: &FakeRuntime) -> Reading {
        let [kept, others, limit, kills, life] =
            [&self.kept, &self.others, &self.limit, &self.kills, &self.life].map(|knob| knob.load(Ordering::Relaxed));
        let held = ByteSize(BASE + runtime.takes().get(Pool::Host).0 + kept);
        let usage = (limit > 0).then_some(Usage { used: held + ByteSize(others), limit: ByteSize(limit) });
        Reading {
            pools: [(Pool::Host, Real { held: Some(held), usage, others: false })].into(),
            oom_kills: Some(kills),
            stalled: None,
            life: Some(life),
        }
    }

    fn pod(&self, budget: ByteSize, change: impl FnOnce(&mut Parts)) -> Pod {
        let world = self.clone();
        let mut parts = Parts::with_memory(budget).beside().measured_by(move |runtime| world.tell(runtime));
        change(&mut parts);
        parts.start()
    }

    fn set(knob: &AtomicU64, bytes: ByteSize) {
        knob.store(bytes.0, Ordering::Relaxed);
    }

    /// Loads a model that takes `takes` KiB, and has it go. What it is charged with while it loads and once it has, in KiB;
    /// `meanwhile` happens in between, and then the server grows by `others` KiB for something else.
    async fn charges(&self, pod: &Pod, name: &str, takes: u64, others: u64, meanwhile: impl AsyncFnOnce()) -> (Option<u64>, Option<u64>) {
        pod.runtime.script(name, Script::default().taking(kib(takes)).loading_for(secs(5)));
        let caller = pod.caller(name, secs(60));
        pod.pass(secs(3)).await;
        let predicted = charge_of(pod, name).await;
        meanwhile().await;
        World::set(&self.kept, kib(others));
        drop(caller.await.expect("no panic").expect("it loads"));
        let measured = charge_of(pod, name).await;
        pod.residency.retire(crate::rig::model(name)).await;
        pod.absent(name).await;
        World::set(&self.kept, ByteSize::ZERO);
        pod.pass(secs(3)).await;
        (predicted.map(|size| size.0 >> 10), measured.map(|size| size.0 >> 10))
    }
}

async fn charge_of(pod: &Pod, name: &str) -> Option<ByteSize> {
    let copies = pod.snapshot().await.copies;
    copies.into_iter().find(|copy| copy.model.as_str() == name)?.charged.map(|charged| charged.total())
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_charged_with_what_the_server_has_grown_by() {
    let world = World::default();
    let pod = world.pod(kib(1000), |_| {});
    for (name, takes) in [("half", 2), ("twenty", 80)] {
        pod.runtime.script(name, Script::default().taking(kib(takes)));
        pod.use_once(name).await;
        assert_eq!(charge_of(&pod, name).await, Some(kib(takes)), "its files have 4 KiB");
    }
    pod.pass(secs(2)).await;
    let pool = pod.snapshot().await.pools[0].clone();
    assert_eq!((pool.charged, pool.retained, pool.real.held), (kib(82), ByteSize::ZERO, Some(ByteSize(BASE) + kib(82))));
}

#[tokio::test(start_paused = true)]
async fn what_files_take_is_known_under_any_name_and_after_a_restart() {
    let (state, files) = (tempfile::tempdir().expect("a temporary folder"), ContentDigest([7; 32]));
    let begin = || {
        let pod = World::default().pod(kib(1000), |parts| parts.config.state = Some(state.path().to_owned()));
        pod.fetch.content("one", files).content("other", files);
        pod.runtime.script_all(Script::default().taking(kib(300)).loading_for(secs(5)));
        pod
    };
    let pod = begin();
    pod.use_once("one").await;
    pod.residency.drain(pod.clock.deadline_in(secs(1))).await;
    let pod = begin();
    let caller = pod.caller("other", secs(60));
    pod.pass(secs(2)).await;
    assert_eq!(charge_of(&pod, "other").await, Some(kib(300)), "before it is loaded");
    assert!(caller.await.expect("no panic").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_first_load_that_takes_twenty_times_its_files_does_not_take_more_than_there_is() {
    let world = World::limited_to(kib(1000));
    let pod = world.pod(kib(800), |_| {});
    for (name, takes) in [("a", 300), ("b", 300), ("hungry", 240)] {
        pod.fetch.always(name, Scripted::arrives(kib(15)));
        pod.runtime.script(name, Script::default().taking(kib(takes)).loading_for(secs(1)));
        pod.use_once(name).await;
    }
    // 100 for the server itself: with both others there would have been 940 of 1000, which is above the mark.
    assert_eq!(pod.held(), ["b", "hungry"]);
    assert!(pod.runtime.peak_held().total() <= kib(600), "{}", pod.runtime.peak_held());
    assert_eq!(pod.charged().await, kib(540), "what was not needed of the room is given back");
}

#[tokio::test(start_paused = true)]
async fn a_large_unknown_model_loads_alone_and_small_ones_together() {
    let world = World::default();
    let pod = world.pod(kib(1000), |_| {});
    pod.runtime.script_all(Script::default().loading_for(secs(10)).taking(kib(4)));
    let together: Vec<_> = ["a", "b"].map(|name| pod.caller(name, secs(60))).into();
    for caller in together {
        assert!(caller.await.expect("no panic").is_ok());
    }
    assert_eq!(pod.runtime.peak_concurrent_loads(), 2, "each is thought to take far less than a twentieth");
    let pod = world.pod(kib(1000), |_| {});
    pod.fetch.always("large", Scripted::arrives(kib(60)));
    pod.runtime.script_all(Script::default().loading_for(secs(10)).taking(kib(70)));
    let (large, small) = (pod.caller("large", secs(60)), pod.caller("small", secs(60)));
    assert!(large.await.expect("no panic").is_ok() && small.await.expect("no panic").is_ok());
    assert_eq!(pod.runtime.peak_concurrent_loads(), 1);
    assert_eq!(charge_of(&pod, "large").await, Some(kib(70)));
}

#[tokio::test(start_paused = true)]
async fn memory_that_was_kept_never_makes_a_copy_look_smaller() {
    let world = World::default();
    let pod = world.pod(kib(1000), |_| {});
    pod.runtime.script("first", Script::default().taking(kib(80)));
    pod.use_once("first").await;
    pod.residency.retire(crate::rig::model("first")).await;
    pod.absent("first").await;
    // The server keeps what the copy had, and makes the next one of it: it does not grow.
    World::set(&world.kept, kib(80));
    pod.pass(secs(3)).await;
    assert_eq!(pod.snapshot().await.pools[0].retained, kib(80));
    pod.fetch.always("second", Scripted::arrives(kib(60)));
    let (before, kept) = (pod.runtime.clone(), world.kept.clone());
    before.script("second", Script::default().loading_for(secs(5)).taking(kib(70)));
    let caller = pod.caller("second", secs(60));
    while pod.runtime.loads().len() < 2 {
        pod.pass(millis(1)).await;
    }
    pod.pass(millis(50)).await;
    World::set(&kept, kib(10));
    assert!(caller.await.expect("no panic").is_ok());
    assert_eq!(charge_of(&pod, "second").await, Some(kib(60)), "what was thought of it stands");
}

#[tokio::test(start_paused = true)]
async fn copies_go_before_the_kernel_kills_although_the_ledger_has_room() {
    let world = World::limited_to(kib(1000));
    let pod = world.pod(kib(800), |_| {});
    pod.runtime.script_all(Script::default().taking(kib(100)).confirming(Confirm::After(millis(300))));
    for name in ["a", "b", "c", "d"] {
        pod.use_once(name).await;
    }
    assert_eq!(pod.held(), ["a", "b", "c", "d"]);
    // 100 + 400 are the server's: 430 more are 930 of 1000.
    World::set(&world.others, kib(430));
    pod.pass(secs(2)).await;
    assert_eq!(pod.held(), ["b", "c", "d"], "the one unused for longest, which is enough");
    assert_eq!(pod.metrics.count(Counter::PressureEvictions, &[]), 1);
    assert!(!pod.snapshot().await.pools[0].strained);
    let busy = pod.ensure("c", secs(5)).await.expect("it is loaded");
    World::set(&world.others, kib(900));
    pod.pass(secs(3)).await;
    assert_eq!(pod.held(), ["c"], "never one that is in use");
    assert!(pod.snapshot().await.pools[0].strained);
    drop(busy);
    pod.pass(secs(3)).await;
    assert_eq!(pod.held(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn memory_that_others_use_is_not_given_out() {
    let world = World::limited_to(kib(1000));
    let pod = world.pod(kib(800), |_| {});
    pod.runtime.script_all(Script::default().taking(kib(200)));
    pod.fetch.always("a", Scripted::arrives(kib(200)));
    pod.fetch.always("b", Scripted::arrives(kib(200)));
    pod.use_once("a").await;
    World::set(&world.others, kib(500));
    pod.pass(secs(2)).await;
    // 920 may be used, 800 are: the ledger would have room for three of them.
    pod.use_once("b").await;
    assert_eq!(pod.held(), ["b"]);
    World::set(&world.others, kib(0));
    pod.use_once("a").await;
    assert_eq!(pod.held(), ["a", "b"], "what is free is seen again before it is asked for");
    World::set(&world.others, kib(700));
    let waits = pod.ensure("c", secs(5)).await;
    assert!(waits.is_ok(), "a small one is made room for: both others go");
    World::set(&world.others, kib(2000));
    pod.pass(secs(3)).await;
    let waits = pod.ensure("b", secs(5)).await;
    assert!(matches!(waits, Err(WaitError::Deadline)), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_killed_load_ran_out_of_memory_whatever_the_server_says_and_the_failure_has_the_numbers() {
    let world = World::limited_to(kib(1000));
    let pod = world.pod(kib(800), |_| {});
    pod.use_once("a").await;
    pod.runtime.script("b", Script::default().failing(2, LoadFault::BadModel).loading_for(secs(2)));
    let caller = pod.caller("b", secs(60));
    for loads in [2, 3] {
        while pod.runtime.loads().len() < loads {
            pod.pass(millis(1)).await;
        }
        world.kills.fetch_add(1, Ordering::Relaxed);
        pod.pass(secs(1)).await;
    }
    let failure = match caller.await.expect("no panic") {
        Err(WaitError::Failed(failure)) => failure,
        other => panic!("{other:?}"),
    };
    assert_eq!(pod.runtime.loads(), ["a", "b", "b"], "one copy was evicted, and it was tried once more");
    assert!(failure.message.contains("4 KiB host") && failure.message.contains("of 800 KiB") && failure.message.contains("of 1000 KiB"), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_keeps_memory_is_drained_and_told_of_and_used_again_when_it_is_another() {
    for recycle in [Recycle::Off, Recycle::Drain] {
        let world = World::limited_to(kib(10_000));
        let pod = world.pod(kib(800), |parts| parts.config.recycle = recycle);
        let told = pod.residency.must_restart_runtime();
        pod.use_once("a").await;
        World::set(&world.kept, kib(500));
        pod.pass(secs(5)).await;
        if recycle == Recycle::Off {
            assert_eq!((pod.held(), told.borrow().is_some()), (vec!["a".to_owned()], false));
            continue;
        }
        assert_eq!(pod.held(), Vec::<String>::new());
        let why = told.borrow().clone().expect("it is told");
        assert!(why.contains("500 KiB"), "{why}");
        // The server is started anew by whoever heard it.
        pod.runtime.leave();
        World::set(&world.kept, ByteSize::ZERO);
        world.life.fetch_add(1, Ordering::Relaxed);
        pod.pass(secs(2)).await;
        pod.runtime.come_back();
        pod.loaded("a").await;
        assert!(told.borrow().is_none());
        pod.use_once("b").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_tells_nothing_or_never_answers_keeps_no_model_from_loading() {
    let pod = Parts::with_memory(kib(8)).measured_by(|_| Reading::default()).start();
    pod.use_once("a").await;
    struct Silent;
    #[async_trait::async_trait]
    impl berth_memory::Source for Silent {
        async fn read(&self) -> Reading {
            std::future::pending().await
        }
    }
    let mut parts = Parts::with_memory(kib(8));
    parts.memory = Some(Arc::new(Silent));
    parts.start().use_once("a").await;
}

#[tokio::test(start_paused = true)]
async fn a_pinned_model_never_makes_room_and_does_when_it_is_pinned_no_longer() {
    for keep in [Keep { pinned: true, ..Keep::default() }, Keep { min_copies: 1, ..Keep::default() }] {
        let pod = Pod::with_memory(kib(8));
        drop(pod.residency.ensure_loaded(&kept("pinned", keep), pod.clock.deadline_in(secs(5))).await.expect("room"));
        pod.pass(millis(2)).await;
        for name in ["a", "b"] {
            pod.use_once(name).await;
        }
        assert_eq!(pod.held(), ["b", "pinned"], "though it was used before the others");
        pod.fetch.always("large", Scripted::arrives(kib(8)));
        let waits = pod.ensure("large", secs(5)).await;
        assert!(matches!(waits, Err(WaitError::Deadline)), "{waits:?}");
        pod.residency.amend(crate::rig::model("pinned")).await;
        pod.use_once("large").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pinned_model_stays_when_memory_is_nearly_full_and_when_a_load_ran_out_of_it() {
    let world = World::limited_to(kib(1000));
    let pod = world.pod(kib(800), |_| {});
    let keep = Keep { pinned: true, ..Keep::default() };
    drop(pod.residency.ensure_loaded(&kept("pinned", keep), pod.clock.deadline_in(secs(5))).await.expect("room"));
    pod.runtime.script("b", Script::default().failing(2, LoadFault::OutOfMemory));
    pod.failure("b").await;
    assert_eq!(pod.runtime.unloads(), ["b"], "nothing else could go");
    World::set(&world.others, kib(890));
    pod.pass(secs(5)).await;
    assert_eq!(pod.held(), ["pinned"]);
}

#[tokio::test(start_paused = true)]
async fn a_model_goes_when_nobody_used_it_for_as_long_as_it_is_to_be_kept() {
    let pod = Pod::with_memory(kib(80));
    let keep = Keep { idle_ttl: std::num::NonZeroU32::new(600), ..Keep::default() };
    let short = kept("short", keep);
    let busy = pod.residency.ensure_loaded(&short, pod.clock.deadline_in(secs(5))).await.expect("room");
    pod.use_once("usual").await;
    pod.pass(secs(1000)).await;
    assert_eq!(pod.held(), ["short", "usual"], "a request takes longer than that");
    drop(busy);
    pod.pass(secs(590)).await;
    assert_eq!(pod.held(), ["short", "usual"]);
    pod.pass(secs(20)).await;
    assert_eq!(pod.held(), ["usual"]);
    drop(pod.residency.ensure_loaded(&short, pod.clock.deadline_in(secs(5))).await.expect("it is loaded by use"));
}

#[tokio::test(start_paused = true)]
async fn a_load_by_which_the_server_grew_next_to_nothing_tells_nothing_of_its_size() {
    let pod = World::default().pod(kib(1000), |_| {});
    pod.runtime.script("mapped", Script::default().taking(ByteSize::ZERO));
    pod.use_once("mapped").await;
    let charged = charge_of(&pod, "mapped").await;
    assert!(charged >= Some(kib(4)), "its files have 4 KiB, and are read at the first request maybe: {charged:?}");
}

#[tokio::test(start_paused = true)]
async fn copies_stay_when_their_going_does_not_help_until_more_is_used() {
    let used = Arc::new(AtomicU64::new(0));
    let pod = {
        let used = Arc::clone(&used);
        let mut parts = Parts::with_memory(kib(900)).beside().measured_by(move |runtime| {
            let held = ByteSize(BASE + runtime.takes().get(Pool::Host).0);
            let used = ByteSize(used.load(Ordering::Relaxed)).max(held);
            let usage = Some(Usage { used, limit: kib(1000) });
            Reading { pools: [(Pool::Host, Real { held: Some(held), usage, others: false })].into(), ..Reading::default() }
        });
        parts.config.marks = berth_plan::pressure::Marks { high_percent: 92, low_percent: 85 };
        parts.start()
    };
    pod.runtime.script_all(Script::default().taking(kib(100)));
    for name in ["a", "b", "c"] {
        pod.use_once(name).await;
    }
    // Whatever goes, others take it at once.
    World::set(&used, kib(940));
    pod.pass(secs(60)).await;
    assert_eq!(pod.held(), ["b", "c"]);
    World::set(&used, kib(970));
    pod.pass(secs(60)).await;
    assert!(pod.held().is_empty(), "noticeably more is used, so it is tried once more");
}

#[tokio::test(start_paused = true)]
async fn what_the_server_kept_before_this_process_began_is_not_its_own() {
    let (world, state) = (World::default(), tempfile::tempdir().expect("a temporary folder"));
    let begin = || world.pod(kib(1000), |parts| parts.config.state = Some(state.path().to_owned()));
    let pod = begin();
    pod.runtime.script("first", Script::default().taking(kib(80)));
    pod.use_once("first").await;
    pod.residency.drain(pod.clock.deadline_in(secs(1))).await;
    // The server has not ended, and keeps what the model had.
    World::set(&world.kept, kib(80));
    let pod = begin();
    pod.pass(secs(2)).await;
    assert_eq!(pod.snapshot().await.pools[0].retained, kib(80));
    pod.fetch.always("second", Scripted::arrives(kib(60)));
    pod.runtime.script("second", Script::default().loading_for(secs(5)).taking(kib(70)));
    let caller = pod.caller("second", secs(60));
    while pod.runtime.loads().is_empty() {
        pod.pass(millis(1)).await;
    }
    pod.pass(millis(50)).await;
    // Of its 70 only 20 are new.
    World::set(&world.kept, kib(30));
    assert!(caller.await.expect("no panic").is_ok());
    assert_eq!(charge_of(&pod, "second").await, Some(kib(60)), "what was thought of it stands");
    // Another one begins with what it holds.
    world.life.fetch_add(1, Ordering::Relaxed);
    pod.pass(secs(2)).await;
    pod.residency.drain(pod.clock.deadline_in(secs(1))).await;
    let pod = begin();
    pod.pass(secs(2)).await;
    assert_eq!(pod.snapshot().await.pools[0].retained, ByteSize::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_measurement_is_corrected_by_the_next_load_that_can_be_told_apart() {
    let (world, files) = (World::default(), ContentDigest([7; 32]));
    let pod = world.pod(kib(1000), |_| {});
    let load = async |name: &str, takes: u64, others: u64| {
        pod.fetch.content(name, files);
        world.charges(&pod, name, takes, others, async || ()).await
    };
    // The server grew by something else as well, and nobody could tell.
    assert_eq!(load("first", 10, 200).await.1, Some(210));
    assert_eq!(load("second", 10, 0).await, (Some(210), Some(10)), "down, by far");
    assert_eq!(load("third", 50, 0).await, (Some(10), Some(50)), "up");
    assert_eq!(load("fourth", 50, 0).await, (Some(50), Some(50)));
}

#[tokio::test(start_paused = true)]
async fn requests_during_a_load_make_no_copy_look_smaller_and_nothing_that_is_known_larger() {
    let (world, files) = (World::default(), ContentDigest([7; 32]));
    let pod = world.pod(kib(1000), |_| {});
    pod.use_once("busy").await;
    let load = async |name: &str, request: bool, others: u64| {
        pod.fetch.content(name, files);
        pod.fetch.always(name, Scripted::arrives(kib(40)));
        let meanwhile = async || {
            if request {
                pod.use_once("busy").await;
            }
        };
        world.charges(&pod, name, 30, others, meanwhile).await.1
    };
    assert_eq!(load("first", true, 0).await, Some(40), "what was thought of it, not the 30 by which the server grew");
    assert_eq!(load("second", true, 100).await, Some(130), "what it may have taken");
    assert_eq!(load("third", false, 0).await, Some(30), "nothing of that was learned, and now it can be told apart");
    let long = pod.ensure("busy", secs(5)).await.expect("it is loaded");
    assert_eq!(load("fourth", false, 100).await, Some(130), "a request that began before");
    drop(long);
    assert_eq!(load("fifth", false, 0).await, Some(30));
}

#[tokio::test(start_paused = true)]
async fn what_a_load_has_taken_already_is_not_expected_once_more() {
    let (world, files) = (World::limited_to(kib(1000)), ContentDigest([7; 32]));
    let pod = world.pod(kib(800), |_| {});
    pod.fetch.content("known", files).content("one", files).content("other", files);
    pod.runtime.script_all(Script::default().taking(kib(300)));
    pod.use_once("known").await;
    pod.residency.retire(crate::rig::model("known")).await;
    pod.absent("known").await;
    pod.runtime.script_all(Script::default().taking(kib(300)).loading_for(secs(30)));
    let one = pod.caller("one", secs(60));
    pod.pass(secs(5)).await;
    // It holds its 300 while it loads: with 100 of the server's own there are 520 left below the mark.
    let other = pod.caller("other", secs(60));
    pod.pass(secs(5)).await;
    assert_eq!(pod.runtime.peak_concurrent_loads(), 2);
    for caller in [one, other] {
        assert!(caller.await.expect("no panic").is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn what_loaded_models_may_have_grown_by_is_no_reason_to_drain_the_server() {
    let world = World::limited_to(kib(10_000));
    let pod = world.pod(kib(800), |parts| parts.config.recycle = Recycle::Drain);
    pod.runtime.script("a", Script::default().taking(kib(300)));
    pod.use_once("a").await;
    World::set(&world.kept, kib(450));
    pod.pass(secs(60)).await;
    assert_eq!(pod.held(), ["a"], "it has computed");
    World::set(&world.kept, kib(750));
    pod.pass(secs(60)).await;
    assert_eq!(pod.held(), Vec::<String>::new(), "that is more than it can have");
    assert!(pod.residency.must_restart_runtime().borrow().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_drain_takes_loads_with_it_that_were_under_way_and_ends() {
    let world = World::limited_to(kib(10_000));
    let pod = world.pod(kib(800), |parts| parts.config.recycle = Recycle::Drain);
    pod.runtime.script("stuck", Script::default().taking(kib(500)).refusing_unloads(1000));
    pod.use_once("stuck").await;
    pod.runtime.script_all(Script::default().loading_for(secs(80)));
    pod.runtime.script("stuck", Script::default().refusing_unloads(1000));
    let callers = ["a", "b", "c", "d"].map(|name| pod.caller(name, secs(1000)));
    pod.pass(secs(2)).await;
    // It cannot be had back, and that is known while two load and a third one has its memory.
    pod.residency.retire(crate::rig::model("stuck")).await;
    pod.pass(secs(60)).await;
    assert!(pod.residency.must_restart_runtime().borrow().is_none(), "two still load");
    pod.pass(secs(120)).await;
    assert!(pod.residency.must_restart_runtime().borrow().is_some());
    assert_eq!(pod.held().len(), 1, "{:?}", pod.held());
    pod.runtime.leave();
    world.life.fetch_add(1, Ordering::Relaxed);
    pod.runtime.come_back();
    for caller in callers {
        assert!(caller.await.expect("no panic").is_ok(), "what was wanted is loaded by its successor");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_server_began_with_is_written_also_when_something_is_being_written() {
    let (world, state) = (World::default(), tempfile::tempdir().expect("a temporary folder"));
    let pod = world.pod(kib(1000), |parts| parts.config.state = Some(state.path().to_owned()));
    let on_disk = || std::fs::read_to_string(state.path().join("residency.json")).unwrap_or_default();
    let says = async |life: u64| {
        for _ in 0..200_000 {
            pod.snapshot().await;
            if on_disk().contains(&format!("\"life\":{life},")) {
                return true;
            }
        }
        false
    };
    let another_life = async || {
        world.life.fetch_add(1, Ordering::Relaxed);
        // Time does not pass by itself while a thread waits for the disk.
        tokio::time::advance(secs(2)).await;
        while pod.snapshot().await.pools[0].real.held.is_none() {}
    };
    world.life.store(1, Ordering::Relaxed);
    pod.use_once("a").await;
    assert!(says(1).await);
    let fifo = Unanswering::at(state.path().join("residency.json.tmp"));
    another_life().await;
    drop(pod.ensure("b", secs(60)).await.expect("it is loaded"));
    another_life().await;
    drop(pod.ensure("c", secs(60)).await.expect("it is loaded"));
    assert!(!on_disk().contains("\"life\":2,"), "the disk does not answer yet");
    drop(fifo);
    assert!(says(3).await, "{}", on_disk());
}
