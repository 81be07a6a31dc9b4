//! Who goes for whom, and when the memory is really there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use berth_adapters::LoadFault;
use berth_adapters::fake::{Confirm, Script};
use berth_puller::fake::Scripted;
use berth_residency::{MayEvict, Phase, WaitError};
use berth_telemetry::Counter;
use berth_types::{ByteSize, CopyState, Footprint, Pool, Reason, Refusal};

use crate::rig::{Parts, Pod, kib, millis, model, secs};

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_copy_goes_and_only_as_many_as_needed() {
    let pod = Pod::with_memory(kib(12));
    for name in ["a", "b", "c", "a"] {
        pod.use_once(name).await;
    }
    pod.use_once("d").await;
    assert_eq!(pod.held(), ["a", "c", "d"]);
    pod.fetch.always("big", Scripted::arrives(kib(8)));
    pod.use_once("big").await;
    assert_eq!(pod.held(), ["big", "d"], "c, then a");
    assert_eq!(pod.metrics.count(Counter::Evictions, &[]), 3);
    assert_eq!(pod.absent("b").await.failure, None);
    assert!(pod.fetch.fetches().len() == 5, "files stay on disk");
    pod.use_once("b").await;
    assert!(pod.fetch.fetches().len() == 5, "one load away, not one download away");
}

#[tokio::test(start_paused = true)]
async fn the_next_load_begins_only_when_the_unload_is_confirmed() {
    let pod = Pod::with_memory(kib(4));
    pod.runtime.script_all(Script::default().confirming(Confirm::WhenReleased));
    pod.use_once("a").await;
    let caller = pod.caller("b", secs(60));
    pod.report("a", |report| report.state == CopyState::Unloading).await;
    // The runtime took the order and says so; its memory is not free yet.
    pod.pass(secs(5)).await;
    assert_eq!(pod.runtime.unloads(), ["a"]);
    assert_eq!(pod.runtime.loads(), ["a"]);
    let pool = &pod.snapshot().await.pools[0];
    assert_eq!((pool.charged, pool.returning), (kib(4), kib(4)));
    assert!(pod.runtime.confirm_unload("a"));
    assert!(caller.await.expect("no panic").is_ok());
    assert_eq!(pod.runtime.loads(), ["a", "b"]);
    assert_eq!(pod.runtime.peak_held(), Footprint::host(kib(4)));
}

#[tokio::test(start_paused = true)]
async fn memory_on_its_way_back_is_awaited_and_nothing_more_is_evicted() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script_all(Script::default().confirming(Confirm::After(millis(1200))));
    pod.use_once("a").await;
    pod.use_once("b").await;
    let (c, again) = (pod.caller("c", secs(60)), pod.caller("c", secs(60)));
    assert!(c.await.expect("no panic").is_ok() && again.await.expect("no panic").is_ok());
    assert_eq!(pod.held(), ["b", "c"]);
    assert_eq!(pod.runtime.unloads(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_guard_keeps_its_copy_from_eviction() {
    let mut parts = Parts::with_memory(kib(4));
    parts.config.turn = secs(1_000);
    let pod = parts.start();
    let guard = pod.ensure("a", secs(5)).await.expect("room");
    let caller = pod.caller("b", secs(500));
    // Not a multiple of the owner's own rounds.
    pod.pass(secs(102)).await;
    assert_eq!(pod.held(), ["a"]);
    assert!(!caller.is_finished(), "it waits: its deadline decides");
    let before = pod.clock.now();
    drop(guard);
    assert!(caller.await.expect("no panic").is_ok());
    assert!(pod.clock.now() - before < millis(100), "the end of the last request is an event, not found by polling");
}

#[tokio::test(start_paused = true)]
async fn two_models_on_room_for_one_with_fifty_callers_each_are_all_answered() {
    let pod = Pod::with_memory(kib(4));
    pod.runtime.script_all(Script::default().loading_for(secs(1)).confirming(Confirm::After(millis(300))));
    let done = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..100)
        .map(|n| {
            let (residency, clock, done) = (pod.residency.clone(), pod.clock.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                for round in 0..3 {
                    let name = if (n + round) % 2 == 0 { "a" } else { "b" };
                    let guard = residency.ensure_loaded(&model(name), clock.deadline_in(secs(60))).await.expect("answered in time");
                    clock.sleep(millis(20 + n)).await;
                    drop(guard);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.expect("no panic");
    }
    assert_eq!(done.load(Ordering::Relaxed), 300);
    assert_eq!(pod.runtime.peak_held(), Footprint::host(kib(4)));
    assert!(pod.runtime.loads().len() <= 8, "callers of one model share a turn: {:?}", pod.runtime.loads());
}

#[tokio::test(start_paused = true)]
async fn a_copy_in_constant_use_gives_way_after_its_turn() {
    let pod = Pod::with_memory(kib(4));
    let stop = Arc::new(AtomicBool::new(false));
    // Requests that overlap without a gap: the copy is never idle.
    let users: Vec<_> = (0..2)
        .map(|n| {
            let (residency, clock, stop) = (pod.residency.clone(), pod.clock.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                clock.sleep(millis(50 * n)).await;
                while !stop.load(Ordering::Relaxed) {
                    let guard = residency.ensure_loaded(&model("hot"), clock.deadline_in(secs(60))).await.expect("its turn comes again");
                    clock.sleep(millis(100)).await;
                    drop(guard);
                }
            })
        })
        .collect();
    pod.loaded("hot").await;
    pod.pass(millis(200)).await;
    let began = pod.clock.now();
    let guard = pod.ensure("cold", secs(60)).await;
    let waited = pod.clock.now() - began;
    assert!(guard.is_ok(), "{guard:?}");
    assert!(waited >= millis(700) && waited < secs(2), "what was left of the turn, then the requests in flight: {waited:?}");
    drop(guard);
    pod.loaded("hot").await;
    stop.store(true, Ordering::Relaxed);
    for user in users {
        user.await.expect("no panic");
    }
    assert_eq!(pod.runtime.peak_held(), Footprint::host(kib(4)));
}

#[tokio::test(start_paused = true)]
async fn no_more_copies_in_use_are_drained_than_needed() {
    let pod = Pod::with_memory(kib(8));
    let (a, b) = (pod.ensure("a", secs(5)).await.expect("room"), pod.ensure("b", secs(5)).await.expect("room"));
    let caller = pod.caller("c", secs(60));
    pod.pass(secs(12)).await;
    assert!(pod.residency.try_acquire("a").is_none(), "the one used less recently takes no more requests");
    assert!(pod.residency.try_acquire("b").is_some());
    drop(a);
    assert!(caller.await.expect("no panic").is_ok());
    assert_eq!(pod.held(), ["b", "c"]);
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn a_drain_past_its_cap_revokes_the_requests_that_are_left() {
    let pod = Pod::with_memory(kib(4));
    let guard = pod.ensure("a", secs(5)).await.expect("room");
    let began = pod.clock.now();
    let caller = pod.caller("b", secs(120));
    guard.revoked().await;
    let revoked_after = pod.clock.now() - began;
    assert!(revoked_after >= secs(31) && revoked_after < secs(32), "one second of turn, thirty of drain: {revoked_after:?}");
    assert!(pod.residency.try_acquire("a").is_none());
    drop(guard);
    assert!(caller.await.expect("no panic").is_ok());
    assert_eq!(pod.held(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn an_unload_that_is_never_confirmed_stays_charged_and_is_shown_until_it_is() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script("a", Script::default().confirming(Confirm::WhenReleased));
    pod.use_once("a").await;
    pod.use_once("b").await;
    let caller = pod.caller("c", secs(300));
    let report = pod.report("a", |report| report.failure.is_some()).await;
    let failure = report.failure.expect("stuck");
    assert_eq!(failure.reason, Reason::RuntimeUnhealthy);
    assert!(failure.message.contains("4 KiB"), "{}", failure.message);
    assert_eq!(report.state, CopyState::Unloading);
    assert!(caller.await.expect("no panic").is_ok(), "another copy went instead");
    let snapshot = pod.snapshot().await;
    assert_eq!((snapshot.pools[0].charged, snapshot.pools[0].unconfirmed), (kib(8), kib(4)));
    assert_eq!(snapshot.copies[0].phase, Phase::Stuck);
    assert!(matches!(pod.ensure("a", secs(60)).await, Err(WaitError::Failed(_))), "not served, not loaded twice");
    assert!(pod.metrics.render().contains("berth_memory_unconfirmed_bytes{pool=\"host\"} 4096\n"));

    assert!(pod.runtime.confirm_unload("a"));
    assert_eq!(pod.absent("a").await.failure, None);
    assert_eq!(pod.charged().await, kib(4));
    assert!(pod.ensure("a", secs(60)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_unload_that_the_runtime_is_at_has_the_time_that_it_asks_for() {
    for (asks_for, once) in [(None, false), (Some(secs(100)), true)] {
        let pod = Pod::with_memory(kib(4));
        if let Some(asked) = asks_for {
            pod.runtime.says_that_unloads_take(asked);
        }
        pod.runtime.script("a", Script::default().confirming(Confirm::After(secs(90))));
        pod.use_once("a").await;
        assert!(pod.ensure("b", secs(120)).await.is_ok(), "{asks_for:?}");
        let unloads = pod.runtime.unloads();
        assert_eq!(unloads.len() == 1, once, "{asks_for:?}: {unloads:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unload_that_is_refused_is_asked_for_again() {
    let pod = Pod::with_memory(kib(4));
    pod.runtime.script("a", Script::default().refusing_unloads(2));
    pod.use_once("a").await;
    assert!(pod.ensure("b", secs(60)).await.is_ok());
    assert_eq!(pod.runtime.unloads(), ["a", "a", "a"]);
}

#[tokio::test(start_paused = true)]
async fn a_background_load_takes_only_what_it_may() {
    let pod = Pod::with_memory(kib(8));
    pod.use_once("used").await;
    pod.residency.load(model("unused"), MayEvict::Nothing).await;
    pod.loaded("unused").await;

    pod.residency.load(model("x"), MayEvict::Nothing).await;
    assert_eq!(pod.absent("x").await.failure, None, "no room is no failure");
    assert_eq!(pod.held(), ["unused", "used"]);

    pod.residency.load(model("x"), MayEvict::UnusedFor(secs(3600))).await;
    pod.loaded("x").await;
    assert_eq!(pod.held(), ["used", "x"], "the one unused since its load went, though the other is older");

    pod.use_once("x").await;
    pod.residency.load(model("y"), MayEvict::UnusedFor(secs(3600))).await;
    pod.absent("y").await;
    assert_eq!(pod.held(), ["used", "x"]);
    pod.pass(secs(3600)).await;
    pod.residency.load(model("y"), MayEvict::UnusedFor(secs(3600))).await;
    pod.loaded("y").await;
    assert_eq!(pod.held(), ["x", "y"]);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_nobody_waits_for_never_drains_a_copy_in_use() {
    let pod = Pod::with_memory(kib(4));
    let guard = pod.ensure("a", secs(5)).await.expect("room");
    pod.pass(secs(60)).await;
    pod.residency.load(model("b"), MayEvict::AnyIdle).await;
    assert_eq!(pod.absent("b").await.failure, None);
    pod.pass(secs(60)).await;
    assert_eq!(pod.held(), ["a"]);
    drop(guard);
    pod.residency.load(model("b"), MayEvict::AnyIdle).await;
    pod.loaded("b").await;
}

#[tokio::test(start_paused = true)]
async fn room_that_appears_is_announced() {
    let pod = Pod::with_memory(kib(8));
    pod.use_once("a").await;
    let mut room = pod.residency.room();
    assert_eq!(*room.borrow_and_update(), Footprint::host(kib(4)));
    pod.residency.retire(model("a")).await;
    room.changed().await.expect("the owner lives");
    assert_eq!(*room.borrow(), Footprint::host(kib(8)));
}

#[tokio::test(start_paused = true)]
async fn a_copy_larger_than_predicted_shows_and_costs_idle_copies() {
    let pod = Pod::with_memory(kib(12));
    pod.use_once("a").await;
    let in_use = pod.ensure("b", secs(5)).await.expect("room");
    pod.runtime.script("fat", Script::default().measuring(kib(9)));
    let guard = pod.ensure("fat", secs(5)).await.expect("predicted to fit");
    pod.absent("a").await;
    assert_eq!(pod.charged().await, kib(13), "still above: what is in use is not taken");
    drop((guard, in_use));
    pod.absent("b").await;
    assert_eq!(pod.charged().await, kib(9));
}

#[tokio::test(start_paused = true)]
async fn a_copy_larger_than_everything_is_unloaded_and_refused() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script("fat", Script::default().measuring(kib(9)));
    let never = WaitError::Refused(Refusal::NeverFits { pool: Pool::Host, need: kib(9), budget: kib(8) });
    assert_eq!(pod.ensure("fat", secs(5)).await.map(drop), Err(never.clone()));
    pod.absent("fat").await;
    assert_eq!(pod.charged().await, ByteSize::ZERO);
    assert_eq!(pod.ensure("fat", secs(5)).await.map(drop), Err(never));
    assert_eq!(pod.runtime.loads(), ["fat"], "once is enough");
}

#[tokio::test(start_paused = true)]
async fn a_load_that_timed_out_pays_back_only_when_the_index_says_so() {
    let pod = Pod::with_memory(kib(4));
    pod.runtime.script("slow", Script::default().loading_for(secs(5)).failing(1, LoadFault::TimedOut).confirming(Confirm::After(secs(3))));
    let slow = pod.caller("slow", secs(60));
    let other = pod.caller("other", secs(60));
    assert!(matches!(slow.await.expect("no panic"), Err(WaitError::Failed(_))));
    assert!(other.await.expect("no panic").is_ok());
    assert_eq!(pod.runtime.peak_held(), Footprint::host(kib(4)));
    assert_eq!(pod.held(), ["other"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_helped_does_not_stand_in_the_way_of_others() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script("stuck", Script::default().confirming(Confirm::WhenReleased));
    pod.use_once("stuck").await;
    pod.fetch.always("large", Scripted::arrives(kib(8)));
    let large = pod.caller("large", secs(400));
    pod.report("stuck", |report| report.failure.is_some()).await;
    assert!(pod.ensure("small", secs(5)).await.is_ok());
    assert!(!large.is_finished());
    assert!(pod.runtime.confirm_unload("stuck"));
    assert!(large.await.expect("no panic").is_ok());
}
