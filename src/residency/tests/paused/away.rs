//! What happens when the runtime, a server of its own, goes away and comes back.

use berth_adapters::LoadFault;
use berth_adapters::fake::Script;
use berth_residency::{Config, Ended, MayEvict, WaitError};
use berth_types::{ByteSize, CopyState, Footprint, Pool, Reason, Retry, Step};
use futures::FutureExt as _;

use crate::rig::{Parts, kib, millis, model, secs};

#[tokio::test(start_paused = true)]
async fn copies_of_a_runtime_that_died_are_withdrawn_and_loaded_again_hottest_first() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    for name in ["cold", "warm", "hot"] {
        pod.use_once(name).await;
    }
    pod.runtime.leave();
    pod.pass(millis(1)).await;
    assert!(pod.residency.try_acquire("hot").is_none(), "a copy that is gone takes no request");
    let before = pod.runtime.loads().len();
    pod.pass(secs(120)).await;
    assert_eq!(pod.runtime.loads().len(), before, "nobody loads into a server that is away");
    pod.runtime.come_back();
    for name in ["hot", "warm", "cold"] {
        let report = pod.loaded(name).await;
        assert!(report.failure.is_none(), "{name} is not to blame: {report:?}");
    }
    assert_eq!(pod.runtime.loads()[before..], ["hot", "warm", "cold"]);
}

#[tokio::test(start_paused = true)]
async fn requests_in_flight_are_told_when_the_runtime_dies() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    let guard = pod.ensure("m", secs(5)).await.expect("it loads");
    pod.runtime.leave();
    guard.revoked().await;
}

#[tokio::test(start_paused = true)]
async fn callers_wait_for_a_runtime_that_is_soon_back_and_are_refused_by_one_that_is_not() {
    let config = Config { runtime_grace: secs(10), ..Config::default() };
    let pod = Parts { config, ..Parts::with_memory(kib(64)).beside() }.start();
    pod.use_once("m").await;
    pod.runtime.leave();
    let soon = pod.caller("m", secs(60));
    pod.pass(secs(5)).await;
    pod.runtime.come_back();
    assert!(soon.await.expect("no panic").is_ok(), "five seconds are waited");

    pod.runtime.leave();
    let (began, late) = (pod.clock.now(), pod.caller("m", secs(60)));
    let Err(WaitError::Failed(failure)) = late.await.expect("no panic") else { panic!("it is away") };
    assert_eq!(pod.clock.now() - began, secs(10), "the grace");
    assert_eq!((failure.reason, failure.retry), (Reason::RuntimeUnhealthy, Retry::Later));
    let began = pod.clock.now();
    for name in ["other", "m", "other"] {
        assert!(matches!(pod.ensure(name, secs(60)).await, Err(WaitError::Failed(_))), "{name}");
    }
    assert_eq!(pod.clock.now(), began, "from then on at once");
    pod.runtime.come_back();
    assert!(pod.ensure("other", secs(60)).await.is_ok());
    pod.loaded("m").await;
}

#[tokio::test(start_paused = true)]
async fn a_layout_that_cannot_be_made_is_no_death_of_the_runtime_and_accuses_nobody() {
    let pod = Parts::with_memory(kib(1024)).beside().start();
    pod.use_once("other").await;
    pod.runtime.script("m", Script::default().failing_to_lay_out(LoadFault::RuntimeDown));
    for _ in 0..3 {
        pod.residency.load(model("m"), MayEvict::Nothing).await;
        let failure = pod.failure("m").await;
        assert_eq!((failure.reason, failure.step), (Reason::RuntimeUnhealthy, Step::Layout), "{failure}");
        pod.pass(secs(120)).await;
    }
    assert_eq!((pod.held(), pod.runtime.deaths()), (vec!["other".to_owned()], 0));
    assert!(pod.residency.suspicions().borrow().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_model_that_ends_the_runtime_does_so_twice_and_the_others_serve_on() {
    let pod = Parts::with_memory(kib(1024)).beside().start();
    pod.runtime.script("killer", Script::default().loading_for(millis(50)).ending_the_runtime(secs(1)));
    let names: Vec<String> = (0..50).map(|number| format!("good-{number}")).collect();
    for name in &names {
        pod.use_once(name).await;
    }
    pod.residency.load(model("killer"), MayEvict::Nothing).await;
    let waiting = pod.caller("killer", secs(300));
    let failed = pod.report("killer", |report| report.failure.is_some()).await;
    let failure = failed.failure.expect("asked for");
    assert_eq!((failure.reason, failure.step), (Reason::ModelLoadFailed, Step::Load));
    assert!(failure.message.contains("runtime exited while loading it"), "{}", failure.message);
    assert!(matches!(waiting.await.expect("no panic"), Err(WaitError::Failed(_))));
    assert_eq!(pod.runtime.deaths(), 2);
    for name in &names {
        let report = pod.loaded(name).await;
        assert!(report.failure.is_none() && matches!(report.state, CopyState::Loaded { .. }), "{report:?}");
    }
    // Callers get its failure as long as that counts. The leader tries again; then one death is proof enough.
    for _minute in 0..10 {
        pod.pass(secs(60)).await;
        assert!(matches!(pod.ensure("killer", secs(5)).await, Err(WaitError::Failed(_))));
    }
    assert_eq!(pod.runtime.deaths(), 2);
    pod.residency.load(model("killer"), MayEvict::Nothing).await;
    pod.pass(secs(30)).await;
    assert_eq!(pod.runtime.deaths(), 3);
    assert!(matches!(pod.ensure("killer", secs(5)).await, Err(WaitError::Failed(_))));
    pod.loaded("good-0").await;
}

#[tokio::test(start_paused = true)]
async fn of_models_that_always_compute_the_one_that_ends_the_runtime_is_found_at_its_second_death() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    for name in ["killer", "good"] {
        pod.use_once(name).await;
    }
    let (mut killer, mut good) = (pod.enter("killer"), pod.enter("good"));
    for guard in [&mut killer, &mut good] {
        guard.turn().await.expect("nobody else asks");
        guard.witness()(Ended::Lost);
    }
    pod.runtime.leave();
    pod.pass(secs(1)).await;
    drop((killer, good));
    pod.runtime.come_back();
    for name in ["killer", "good"] {
        assert!(pod.loaded(name).await.failure.is_none());
    }
    // Both have requests all the time, and take turns now.
    let mut good = pod.enter("good");
    good.turn().await.expect("it is the first");
    let mut killer = pod.enter("killer");
    assert!(killer.turn().now_or_never().is_none(), "the other one computes");
    drop(good);
    killer.turn().await.expect("now it does not");
    let mut good = pod.enter("good");
    assert!(good.turn().now_or_never().is_none());
    pod.runtime.leave();
    pod.pass(secs(1)).await;
    pod.runtime.come_back();
    let failure = pod.report("killer", |report| report.failure.is_some()).await.failure.expect("asked for");
    assert!(failure.message.contains("runtime exited while computing"), "{}", failure.message);
    assert!(pod.loaded("good").await.failure.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_suspect_that_computes_long_keeps_no_other_waiting_for_long_and_one_that_computes_well_none_at_all() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    for name in ["long", "short"] {
        pod.use_once(name).await;
        pod.enter(name).witness()(Ended::Lost);
    }
    pod.runtime.leave();
    pod.pass(secs(1)).await;
    pod.runtime.come_back();
    for name in ["long", "short"] {
        pod.loaded(name).await;
    }
    let mut long = pod.enter("long");
    long.turn().await.expect("it is the first");
    for waits in [2, 0, 0, 0, 0] {
        let (began, mut short) = (pod.clock.now(), pod.enter("short"));
        short.turn().await.expect("it does not wait for ever");
        assert_eq!(pod.clock.now() - began, secs(waits));
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspect_is_on_probation_until_it_has_answered_three_requests_well() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    for name in ["m", "other"] {
        pod.use_once(name).await;
        pod.enter(name).witness()(Ended::Lost);
    }
    pod.runtime.leave();
    pod.pass(secs(1)).await;
    pod.runtime.come_back();
    pod.loaded("m").await;
    // Questions about it, errors, and clients that left.
    for _request in 0..10 {
        pod.enter("m").turn().await.expect("nobody else asks");
    }
    for well in 0..3 {
        let mut guard = pod.enter("m");
        guard.turn().await.expect("nobody else asks");
        assert!(guard.is_on_probation(), "{well} answered well");
        guard.witness()(Ended::Well);
    }
    assert!(!pod.enter("m").is_on_probation());
}

#[tokio::test(start_paused = true)]
async fn a_model_that_computes_long_before_it_ends_the_runtime_beside_busy_ones_is_found_at_the_third_death() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    for name in ["busy", "killer", "slow"] {
        pod.use_once(name).await;
    }
    for death in 1..=3 {
        for name in ["busy", "killer", "slow"] {
            assert!(pod.loaded(name).await.failure.is_none(), "{name}, before death {death}");
        }
        let mut killer = pod.enter("killer");
        killer.turn().await.expect("nobody else asks");
        for name in ["busy", "slow"] {
            let mut guard = pod.enter(name);
            guard.turn().await.expect("it waits for two seconds at most");
            guard.witness()(Ended::Well);
        }
        let _others = (pod.enter("busy"), pod.enter("slow"));
        for name in ["busy", "killer", "slow"] {
            pod.enter(name).witness()(Ended::Lost);
        }
        pod.runtime.leave();
        pod.pass(secs(1)).await;
        pod.runtime.come_back();
    }
    let failure = pod.report("killer", |report| report.failure.is_some()).await.failure.expect("asked for");
    assert!(failure.message.contains("runtime exited while computing"), "{}", failure.message);
    for name in ["busy", "slow"] {
        assert!(pod.loaded(name).await.failure.is_none(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_models_that_load_together_when_the_runtime_dies_only_the_one_is_blamed() {
    let pod = Parts::with_memory(kib(1024)).beside().start();
    pod.runtime.script("killer", Script::default().loading_for(millis(50)).ending_the_runtime(secs(1)));
    pod.runtime.script("slow", Script::default().loading_for(secs(5)));
    let (slow, killer) = (pod.caller("slow", secs(300)), pod.caller("killer", secs(300)));
    assert!(slow.await.expect("no panic").is_ok(), "it is loaded again");
    assert!(matches!(killer.await.expect("no panic"), Err(WaitError::Failed(_))));
    // Once beside the other, once alone.
    assert_eq!(pod.runtime.deaths(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_death_that_nobody_saw_is_known_by_the_load_that_it_ended() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    pod.use_once("other").await;
    pod.runtime.script("m", Script::default().hanging());
    let waiting = pod.caller("m", secs(60));
    pod.pass(secs(1)).await;
    pod.runtime.script("m", Script::default());
    // Dead and back before anybody asked whether it lives.
    pod.runtime.crash();
    assert!(waiting.await.expect("no panic").is_ok(), "the load is begun again");
    pod.loaded("other").await;
}

#[tokio::test(start_paused = true)]
async fn a_model_that_was_on_its_way_is_refused_at_once_after_the_grace_too() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    pod.runtime.script("m", Script::default().loading_for(secs(30)));
    let first = pod.caller("m", secs(300));
    pod.pass(secs(1)).await;
    pod.runtime.leave();
    assert!(matches!(first.await.expect("no panic"), Err(WaitError::Failed(_))));
    let began = pod.clock.now();
    assert!(matches!(pod.ensure("m", secs(300)).await, Err(WaitError::Failed(_))));
    assert_eq!(pod.clock.now(), began);
    pod.runtime.come_back();
    pod.loaded("m").await;
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_runtime_that_says_it_lives_and_does_nothing_get_their_answer() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    pod.runtime.script("m", Script::default().hanging());
    let waiting = pod.caller("m", secs(60));
    pod.pass(secs(1)).await;
    pod.runtime.set_index_outage(true);
    pod.runtime.crash();
    let began = pod.clock.now();
    match waiting.await.expect("no panic") {
        Err(WaitError::Failed(failure)) => assert_eq!(failure.reason, Reason::RuntimeUnhealthy),
        other => panic!("{other:?}"),
    }
    assert_eq!(pod.clock.now() - began, secs(10));
    pod.runtime.script("m", Script::default());
    pod.runtime.set_index_outage(false);
    assert!(pod.ensure("m", secs(60)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_load_that_the_runtime_does_not_take_now_costs_no_other_copy() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    let guard = pod.ensure("other", secs(5)).await.expect("it loads");
    pod.runtime.script("m", Script::default().failing(1, LoadFault::NotNow));
    match pod.ensure("m", secs(5)).await {
        Err(WaitError::Failed(failure)) => assert_eq!((failure.reason, failure.retry), (Reason::RuntimeUnhealthy, Retry::Later)),
        other => panic!("{other:?}"),
    }
    assert!(pod.clock.until(pod.clock.deadline_in(secs(20)), guard.revoked()).await.is_none(), "the other copy serves on");
    assert!(pod.residency.try_acquire("other").is_some());
    assert!(pod.ensure("m", secs(5)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn memory_of_which_there_is_no_budget_is_held_against_no_copy() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    let on_gpu = Footprint::of([(Pool::Gpu(0), ByteSize::mib(900))]);
    pod.runtime.script("m", Script::default().measuring_all(on_gpu));
    pod.use_once("m").await;
    let report = pod.loaded("m").await;
    assert!(report.failure.is_none(), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_model_whose_calls_broke_off_when_the_runtime_died_twice_is_the_one_though_no_call_was_left_when_that_was_seen() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    for model in ["killer", "good"] {
        pod.use_once(model).await;
    }
    for _death in 0..2 {
        let report = pod.loaded("killer").await;
        assert!(report.failure.is_none(), "{report:?}");
        let guard = pod.residency.try_acquire("killer").expect("it serves");
        let witness = guard.witness();
        drop(guard);
        pod.pass(secs(3)).await;
        witness(Ended::Lost);
        pod.pass(secs(1)).await;
        pod.runtime.leave();
        pod.pass(secs(1)).await;
        pod.runtime.come_back();
        pod.pass(secs(5)).await;
    }
    let failure = pod.report("killer", |report| report.failure.is_some()).await.failure.expect("asked for");
    assert!(failure.message.contains("runtime exited while computing"), "{}", failure.message);
    assert!(pod.residency.try_acquire("good").is_some(), "the other one serves on");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_broke_off_long_before_the_runtime_died_is_no_evidence() {
    let pod = Parts::with_memory(kib(64)).beside().start();
    pod.use_once("m").await;
    for _death in 0..3 {
        pod.loaded("m").await;
        pod.residency.try_acquire("m").expect("it serves").witness()(Ended::Lost);
        pod.pass(secs(30)).await;
        pod.runtime.leave();
        pod.pass(secs(1)).await;
        pod.runtime.come_back();
        assert!(pod.ensure("m", secs(30)).await.is_ok());
    }
}
