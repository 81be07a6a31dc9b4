//! Callers, their deadlines, their order, and what they are told.

use std::num::NonZeroU32;
use std::sync::Arc;

use berth_adapters::LoadFault;
use berth_adapters::fake::Script;
use berth_puller::fake::Scripted;
use berth_puller::{PullError, Urgency};
use berth_residency::{MayEvict, WaitError};
use berth_telemetry::Counter;
use berth_types::{ContentDigest, CopyReport, CopyState, Footprint, Pool, Reason, Refusal, Step};
use futures::future::join_all;
use futures::{FutureExt as _, poll};
use tokio::join;

use crate::rig::{Parts, Pod, START, declaring, id, kib, millis, model, secs};

#[tokio::test(start_paused = true)]
async fn two_callers_of_a_cold_model_share_one_load() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script_all(Script::default().loading_for(secs(30)));
    let (a, b) = join!(pod.ensure("m", secs(60)), pod.ensure("m", secs(60)));
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(pod.runtime.loads(), ["m"]);
    assert_eq!(pod.fetch.fetches(), ["m"]);
    assert_eq!(pod.snapshot().await.copies[0].in_flight, 2);
}

#[tokio::test(start_paused = true)]
async fn each_caller_waits_under_its_own_deadline_and_the_load_goes_on() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script_all(Script::default().loading_for(secs(30)));
    let began = pod.clock.now();
    let short = async {
        let answer = pod.ensure("m", secs(10)).await;
        (answer.map(drop), pod.clock.now() - began)
    };
    let long = async {
        let answer = pod.ensure("m", secs(60)).await;
        (answer.map(drop), pod.clock.now() - began)
    };
    let (short, long) = join!(short, long);
    assert_eq!(short.0, Err(WaitError::Deadline));
    assert!(short.1 >= secs(10) && short.1 < secs(11), "{:?}", short.1);
    assert_eq!(long.0, Ok(()));
    assert!(long.1 >= secs(30) && long.1 < secs(31), "{:?}", long.1);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_has_begun_ends_even_when_its_only_caller_gave_up() {
    let pod = Pod::with_memory(kib(8));
    pod.fetch.always("m", Scripted::arrives_in(kib(4), secs(20)));
    assert!(matches!(pod.ensure("m", secs(5)).await, Err(WaitError::Deadline)));
    pod.loaded("m").await;
    assert_eq!(pod.runtime.loads(), ["m"]);
    assert!(pod.residency.try_acquire("m").is_some());
    assert_eq!(pod.snapshot().await.waiting, 0);
}

#[tokio::test(start_paused = true)]
async fn a_load_that_has_not_begun_does_not_begin_when_nobody_waits_any_more() {
    let mut parts = Parts::with_memory(kib(8));
    parts.config.fetches = 1;
    let pod = parts.start();
    pod.fetch.then("first", Scripted::Stalls);
    let first = pod.caller("first", secs(60));
    pod.fetch.started(1).await;
    assert!(matches!(pod.ensure("second", secs(5)).await, Err(WaitError::Deadline)));
    pod.absent("second").await;
    pod.fetch.release("first");
    assert!(first.await.expect("no panic").is_ok());
    pod.pass(secs(10)).await;
    assert_eq!(pod.fetch.fetches(), ["first"]);
}

#[tokio::test(start_paused = true)]
async fn a_loaded_model_is_acquired_without_the_owner_and_remembers_its_use() {
    let pod = Pod::with_memory(kib(8));
    assert!(pod.residency.try_acquire("m").is_none());
    assert_eq!(pod.residency.last_used("m"), None);
    pod.use_once("m").await;
    pod.pass(secs(7)).await;
    let guard = pod.residency.try_acquire("m").expect("loaded");
    assert_eq!(guard.model(), &id("m"));
    assert!(pod.residency.last_used("m") >= Some(START.after(secs(7))));
    pod.pass(secs(3)).await;
    drop(guard);
    assert!(pod.residency.last_used("m") >= Some(START.after(secs(10))), "a long request uses the copy until its end");
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_serves_one_request_at_a_time_takes_them_in_their_order_and_turns_the_seventeenth_away() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script_all(Script::default().serving_at_most(NonZeroU32::MIN));
    let mut first = pod.ensure("m", secs(5)).await.expect("loaded");
    assert_eq!(first.turn().await, Ok(()));
    let mut waiting = Vec::new();
    for _ in 1..16 {
        let mut guard = pod.residency.try_acquire("m").expect("loaded");
        let mut turn = Box::pin(async move { guard.turn().await.map(|()| guard) });
        assert!(poll!(&mut turn).is_pending());
        waiting.push(turn);
    }
    let mut late = pod.residency.try_acquire("m").expect("loaded");
    assert_eq!(late.turn().await, Err(WaitError::TooManyWaiting { waiting: 16 }));
    assert!(poll!(&mut waiting[0]).is_pending());
    drop(first);
    assert!(poll!(&mut waiting[1]).is_pending(), "the one before it comes first");
    let second = waiting.remove(0).await.expect("its turn");
    // Who gives up leaves its place to the next one.
    drop(waiting.remove(0));
    assert!(poll!(&mut waiting[0]).is_pending());
    drop(second);
    assert!(waiting.remove(0).await.is_ok());
    drop(waiting);
    assert_eq!(late.turn().await, Ok(()), "there is room again");
}

#[tokio::test(start_paused = true)]
async fn all_who_waited_for_a_load_get_their_turn_however_few_the_copy_serves_at_a_time() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script_all(Script::default().serving_at_most(NonZeroU32::MIN).loading_for(secs(5)));
    let callers: Vec<_> = (0..40).map(|_| pod.caller("m", secs(60))).collect();
    let mut guards = Vec::new();
    for caller in callers {
        guards.push(caller.await.expect("no panic").expect("loaded"));
    }
    let mut late = pod.residency.try_acquire("m").expect("loaded");
    assert_eq!(late.turn().await, Err(WaitError::TooManyWaiting { waiting: 40 }), "who comes now finds them before it");
    let turns = guards.into_iter().map(|mut guard| async move { guard.turn().await.map(|()| drop(guard)) });
    assert_eq!(join_all(turns).await, vec![Ok(()); 40]);
    assert_eq!(late.turn().await, Ok(()), "all have gone");
}

#[tokio::test(start_paused = true)]
async fn a_copy_without_a_limit_takes_every_request_at_once() {
    let pod = Pod::with_memory(kib(8));
    let mut guards = vec![pod.ensure("m", secs(5)).await.expect("loaded")];
    for _ in 0..100 {
        guards.push(pod.residency.try_acquire("m").expect("loaded"));
    }
    for guard in &mut guards {
        assert_eq!(guard.turn().now_or_never(), Some(Ok(())));
    }
}

#[tokio::test(start_paused = true)]
async fn callers_beyond_the_limit_are_turned_away_and_those_who_left_do_not_count() {
    let mut parts = Parts::with_memory(kib(8));
    parts.config.waiters_per_model = 2;
    parts.config.waiters = 3;
    let pod = parts.start();
    pod.runtime.script_all(Script::default().hanging());
    let (one, _two) = (pod.caller("m", secs(50)), pod.caller("m", secs(50)));
    pod.pass(secs(1)).await;
    assert_eq!(pod.ensure("m", secs(5)).await.map(drop), Err(WaitError::TooManyWaiting { waiting: 2 }));
    let _three = pod.caller("n", secs(50));
    pod.pass(secs(1)).await;
    assert_eq!(pod.ensure("o", secs(5)).await.map(drop), Err(WaitError::TooManyWaiting { waiting: 3 }));
    assert_eq!(pod.metrics.count(Counter::Refused, &[("reason", "too-many-waiting")]), 2);
    one.abort();
    pod.pass(millis(1)).await;
    assert_eq!(pod.ensure("m", secs(5)).await.map(drop), Err(WaitError::Deadline), "there is a place again");
}

#[tokio::test(start_paused = true)]
async fn loads_that_somebody_waits_for_go_first_and_a_caller_promotes_a_background_load() {
    let mut parts = Parts::with_memory(kib(400));
    parts.config.fetches = 1;
    let pod = parts.start();
    pod.fetch.then("first", Scripted::Stalls);
    let first = pod.caller("first", secs(60));
    pod.fetch.started(1).await;
    for name in ["b1", "b2", "b3"] {
        pod.residency.load(model(name), MayEvict::Nothing).await;
    }
    let waited = pod.caller("w", secs(60));
    pod.pass(millis(5)).await;
    let promoted = pod.caller("b3", secs(60));
    pod.pass(millis(5)).await;
    pod.fetch.release("first");
    for caller in [first, waited, promoted] {
        assert!(caller.await.expect("no panic").is_ok());
    }
    pod.loaded("b2").await;
    let [waited, background] = [Urgency::Waited, Urgency::Background];
    let order = [("first", waited), ("w", waited), ("b3", waited), ("b1", background), ("b2", background)];
    assert_eq!(pod.fetch.urgencies(), order.map(|(name, urgency)| (name.to_owned(), urgency)));
    assert_eq!(pod.fetch.hurried(), Vec::<String>::new(), "none of them was under way when somebody came");
}

#[tokio::test(start_paused = true)]
async fn background_loads_leave_one_download_free_for_callers() {
    let mut parts = Parts::with_memory(kib(400));
    parts.config.fetches = 3;
    let pod = parts.start();
    for name in ["b1", "b2", "b3"] {
        pod.fetch.always(name, Scripted::arrives_in(kib(4), secs(50)));
        pod.residency.load(model(name), MayEvict::Nothing).await;
    }
    assert!(pod.ensure("w", secs(5)).await.is_ok());
    assert_eq!(pod.fetch.fetches(), ["b1", "b2", "w"]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_hurries_a_download_that_was_begun_for_nobody() {
    let pod = Pod::with_memory(kib(400));
    pod.fetch.always("m", Scripted::arrives_in(kib(4), secs(50)));
    pod.residency.load(model("m"), MayEvict::Nothing).await;
    pod.fetch.started(1).await;
    assert_eq!(pod.fetch.urgencies(), [("m".to_owned(), Urgency::Background)]);
    let callers = [pod.caller("m", secs(100)), pod.caller("m", secs(100))];
    pod.pass(millis(5)).await;
    assert_eq!(pod.fetch.hurried(), ["m"], "once is enough");
    for caller in callers {
        assert!(caller.await.expect("no panic").is_ok());
    }
    assert_eq!(pod.fetch.fetches(), ["m"]);
}

#[tokio::test(start_paused = true)]
async fn downloads_for_nobody_take_no_place_from_those_that_are_waited_for() {
    for fetches in 1..=4 {
        let mut parts = Parts::with_memory(kib(400));
        parts.config.fetches = fetches;
        let pod = parts.start();
        for name in ["b1", "b2", "b3", "b4"] {
            pod.fetch.always(name, Scripted::arrives_in(kib(4), secs(500)));
            pod.residency.load(model(name), MayEvict::Nothing).await;
        }
        pod.pass(secs(1)).await;
        let background = pod.fetch.fetches().len();
        assert_eq!(background, (fetches - 1).max(1), "{fetches} places");
        let names: Vec<String> = (0..=fetches).map(|n| format!("w{n}")).collect();
        for name in &names {
            pod.fetch.always(name, Scripted::arrives_in(kib(4), secs(50)));
        }
        let callers: Vec<_> = names.iter().map(|name| pod.caller(name, secs(300))).collect();
        pod.pass(secs(1)).await;
        assert_eq!(pod.fetch.fetches()[background..], names[..fetches], "as many as may be waited for at a time");
        for caller in callers {
            assert!(caller.await.expect("no panic").is_ok());
        }
        assert_eq!(pod.fetch.fetches().len(), background + names.len(), "no other began for nobody meanwhile");
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_somebody_waits_for_overtakes_those_that_wait_for_memory_and_for_the_runtime() {
    let pod = Pod::with_memory(kib(400));
    pod.runtime.script_all(Script::default().loading_for(secs(10)));
    for name in ["b1", "b2", "b3", "b4", "b5", "b6"] {
        pod.fetch.put_on_disk(&id(name), kib(4));
        pod.residency.load(model(name), MayEvict::Nothing).await;
        pod.pass(millis(5)).await;
    }
    // Two are loading, one more has its memory so that the runtime has no gap, and the others have none.
    assert!(pod.caller("b6", secs(60)).await.expect("no panic").is_ok());
    pod.loaded("b5").await;
    assert_eq!(pod.runtime.loads(), ["b1", "b2", "b6", "b3", "b4", "b5"]);
}

#[tokio::test(start_paused = true)]
async fn a_loaded_copy_says_which_bytes_it_was_loaded_from() {
    let content = |report: CopyReport| match report.state {
        CopyState::Loaded { content, .. } => content,
        other => panic!("{other:?}"),
    };
    for parts in [Parts::with_memory(kib(8)), Parts::with_memory(kib(8)).done_with_files()] {
        let pod = parts.start();
        let [first, second] = [1, 2].map(|n| ContentDigest([n; 32]));
        pod.fetch.content("m", first);
        pod.use_once("m").await;
        let told = content(pod.loaded("m").await).expect("somebody read the files");
        assert_eq!((told.digest, &*told.checked), (first, "md5"));
        // Evicted and loaded from the disk: the same, whatever the store has by now.
        pod.fetch.content("m", second);
        for name in ["n", "o", "m"] {
            pod.use_once(name).await;
        }
        assert_eq!(pod.fetch.fetches(), ["m", "n", "o"]);
        assert_eq!(content(pod.loaded("m").await).map(|told| told.digest), Some(first));
        // Fetched anew.
        pod.residency.retire(model("m")).await;
        pod.absent("m").await;
        pod.use_once("m").await;
        assert_eq!(content(pod.loaded("m").await).map(|told| told.digest), Some(second));
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_loads_run_at_a_time_than_the_runtime_takes() {
    let pod = Pod::with_memory(kib(400));
    pod.runtime.script_all(Script::default().loading_for(secs(10)));
    let callers: Vec<_> = (0..7).map(|n| pod.caller(&format!("m{n}"), secs(300))).collect();
    for caller in callers {
        assert!(caller.await.expect("no panic").is_ok());
    }
    assert_eq!(pod.runtime.peak_concurrent_loads(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_is_told_to_everybody_shown_and_cleared_by_success() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script("m", Script::default().loading_for(secs(3)).failing(2, LoadFault::BadModel));
    let (a, b) = join!(pod.ensure("m", secs(60)), pod.ensure("m", secs(60)));
    for answer in [a, b] {
        let Err(WaitError::Failed(failure)) = answer else { panic!("{answer:?}") };
        assert_eq!((failure.reason, failure.step, failure.model.as_str()), (Reason::ModelLoadFailed, Step::Load, "m"));
    }
    let report = pod.absent("m").await;
    assert_eq!(report.failure.expect("shown").step, Step::Load);
    assert_eq!(pod.charged().await, kib(0));

    // Only a change cures it: for ten seconds the failure is the answer, without another try.
    pod.pass(secs(9)).await;
    assert!(matches!(pod.ensure("m", secs(60)).await, Err(WaitError::Failed(_))));
    assert_eq!(pod.runtime.loads().len(), 1);
    pod.pass(secs(2)).await;
    assert!(matches!(pod.ensure("m", secs(60)).await, Err(WaitError::Failed(_))));
    assert_eq!(pod.runtime.loads().len(), 2, "then it is tried again");
    pod.pass(secs(19)).await;
    assert!(matches!(pod.ensure("m", secs(60)).await, Err(WaitError::Failed(_))));
    assert_eq!(pod.runtime.loads().len(), 2, "and the quiet time has doubled");
    pod.pass(secs(2)).await;
    assert!(pod.ensure("m", secs(60)).await.is_ok());
    assert_eq!(pod.loaded("m").await.failure, None);
}

#[tokio::test(start_paused = true)]
async fn a_failure_counts_for_fifteen_minutes() {
    let pod = Pod::with_memory(kib(8));
    pod.fetch.then("m", Scripted::fails(PullError::NotFound("nothing there".to_owned())));
    pod.residency.load(model("m"), MayEvict::Nothing).await;
    pod.report("m", |report| report.failure.is_some()).await;
    pod.pass(secs(14 * 60)).await;
    assert!(pod.absent("m").await.failure.is_some());
    let mut reports = pod.residency.reports();
    assert!(reports.next().await.expect("the failure").iter().any(|report| report.failure.is_some()));
    let cleared = reports.next().await.expect("the end of it");
    assert_eq!(cleared[0].failure, None);
    let waited = pod.clock.wall().since(START);
    assert!(waited >= secs(15 * 60) && waited < secs(15 * 60 + 10), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_down_does_not_mark_the_model() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script("m", Script::default().failing(1, LoadFault::RuntimeDown));
    let answer = pod.ensure("m", secs(60)).await;
    let Err(WaitError::Failed(failure)) = answer else { panic!("{answer:?}") };
    assert_eq!(failure.reason, Reason::RuntimeUnhealthy);
    let mut reports = pod.residency.reports();
    let failures: Vec<_> = tokio::select! {
        news = reports.next() => news.into_iter().flatten().filter_map(|report| report.failure).collect(),
        () = pod.pass(secs(30)) => Vec::new(),
    };
    assert_eq!(failures, []);
    assert!(pod.ensure("m", secs(60)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn out_of_memory_in_the_runtime_costs_one_other_copy_and_one_more_try() {
    let pod = Pod::with_memory(kib(100));
    pod.use_once("old").await;
    pod.use_once("young").await;
    pod.runtime.script("m", Script::default().failing(1, LoadFault::OutOfMemory));
    assert!(pod.ensure("m", secs(60)).await.is_ok());
    assert_eq!(pod.runtime.loads(), ["old", "young", "m", "m"]);
    assert_eq!(pod.held(), ["m", "young"]);

    pod.runtime.script("n", Script::default().failing(2, LoadFault::OutOfMemory));
    let answer = pod.ensure("n", secs(60)).await;
    assert!(matches!(answer, Err(WaitError::Failed(_))), "one more try, not two: {answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_always_runs_out_of_memory_costs_the_others_one_copy_and_not_one_per_request() {
    let pod = Pod::with_memory(kib(100));
    for name in ["a", "b", "c"] {
        pod.use_once(name).await;
    }
    pod.runtime.script("m", Script::default().failing(100, LoadFault::OutOfMemory));
    let tries = || pod.runtime.loads().iter().filter(|name| *name == "m").count();
    assert!(matches!(pod.ensure("m", secs(60)).await, Err(WaitError::Failed(_))));
    assert_eq!((pod.held(), tries()), (vec!["b".to_owned(), "c".to_owned()], 2), "one goes, and one more try");
    assert!(matches!(pod.ensure("m", secs(60)).await, Err(WaitError::Failed(_))));
    assert_eq!(tries(), 2, "answered without a try so soon");
    for more in 1..=3 {
        pod.pass(secs(61)).await;
        assert!(matches!(pod.ensure("m", secs(60)).await, Err(WaitError::Failed(_))));
        assert_eq!((pod.held().len(), tries()), (2, 2 + more), "tried again, at nobody's cost");
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_goes_for_a_model_out_of_memory_that_no_copy_could_go_for_before() {
    let pod = Pod::with_memory(kib(100));
    let guard = pod.ensure("a", secs(5)).await.expect("room");
    pod.runtime.script("m", Script::default().failing(2, LoadFault::OutOfMemory));
    assert!(matches!(pod.ensure("m", secs(60)).await, Err(WaitError::Failed(_))), "the only copy is in use");
    drop(guard);
    pod.pass(secs(11)).await;
    assert!(pod.ensure("m", secs(60)).await.is_ok());
    assert_eq!(pod.held(), ["m"]);
}

#[tokio::test(start_paused = true)]
async fn a_declaration_smaller_than_what_was_measured_is_not_believed_twice() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script("fat", Script::default().measuring(kib(9)));
    let never = Err(WaitError::Refused(Refusal::NeverFits { pool: Pool::Host, need: kib(9), budget: kib(8) }));
    for _ in 0..3 {
        let answer = pod.residency.ensure_loaded(&declaring("fat", kib(4)), pod.clock.deadline_in(secs(5))).await;
        assert_eq!(answer.map(drop), never);
        pod.absent("fat").await;
    }
    assert_eq!(pod.runtime.loads(), ["fat"], "once is enough");

    // The larger of the two counts, whichever it is.
    pod.runtime.script("thin", Script::default().measuring(kib(2)));
    pod.use_once("other").await;
    for _ in 0..2 {
        let guard = pod.residency.ensure_loaded(&declaring("thin", kib(8)), pod.clock.deadline_in(secs(5))).await;
        assert_eq!(guard.map(drop), Ok(()));
        assert_eq!(pod.held(), ["thin"], "8 + 4 > 8");
        pod.pass(millis(2)).await;
        pod.residency.retire(model("other")).await;
        pod.fetch.always("large", Scripted::arrives(kib(8)));
        pod.use_once("large").await;
        pod.pass(millis(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn files_on_disk_do_not_wait_for_the_downloads_of_others() {
    let mut parts = Parts::with_memory(kib(100));
    parts.config.fetches = 1;
    let pod = parts.start();
    pod.fetch.then("slow", Scripted::Stalls);
    pod.fetch.put_on_disk(&id("m"), kib(4));
    let slow = pod.caller("slow", secs(60));
    pod.fetch.started(1).await;
    let began = pod.clock.now();
    assert!(pod.ensure("m", secs(30)).await.is_ok());
    assert!(pod.clock.now() - began < secs(1));
    assert_eq!(pod.fetch.fetches(), ["slow"]);
    pod.fetch.release("slow");
    assert!(slow.await.expect("no panic").is_ok());
}

#[tokio::test(start_paused = true)]
async fn no_more_is_fetched_ahead_of_memory_than_keeps_the_loads_going() {
    let mut parts = Parts::with_memory(kib(4));
    parts.config.fetches = 2;
    parts.config.turn = secs(1_000);
    let pod = parts.start();
    for n in 10..20 {
        pod.fetch.put_on_disk(&id(&format!("m{n}")), kib(4));
    }
    let guard = pod.ensure("first", secs(5)).await.expect("room");
    let callers: Vec<_> = (0..20).map(|n| pod.caller(&format!("m{n}"), secs(200))).collect();
    pod.pass(secs(10)).await;
    // Two loads at a time, two downloads and two looks at the disk at a time.
    let pinned = (0..20).filter(|n| pod.fetch.pins(&id(&format!("m{n}"))) > 0).count();
    assert!((2..=8).contains(&pinned), "{pinned} models wait for memory with their files pinned");
    drop(guard);
    for (n, caller) in callers.into_iter().enumerate() {
        assert!(caller.await.expect("no panic").is_ok(), "m{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_full_of_files_that_wait_for_memory_is_waited_for() {
    let mut parts = Parts::with_memory(kib(4));
    parts.config.turn = secs(1_000);
    let pod = parts.start();
    let full = |need| PullError::DiskFull { need: kib(need), free: kib(0), budget: kib(8) };
    pod.fetch.always("third", Scripted::fails(full(4)));
    pod.fetch.always("huge", Scripted::fails(full(9)));
    let first = pod.ensure("first", secs(5)).await.expect("room");
    let answer = pod.ensure("third", secs(60)).await;
    assert!(matches!(answer, Err(WaitError::Failed(_))), "what is loaded keeps its files, waiting would not help: {answer:?}");

    let second = pod.caller("second", secs(200));
    pod.pass(millis(100)).await;
    let answer = pod.ensure("huge", secs(60)).await;
    assert!(matches!(answer, Err(WaitError::Failed(_))), "it never fits: {answer:?}");
    let third = pod.caller("third", secs(200));
    pod.pass(secs(12)).await;
    assert!(!third.is_finished());
    let tries = pod.fetch.fetches().iter().filter(|name| *name == "third").count();
    assert!(tries <= 5, "{tries} tries in twelve seconds");

    pod.fetch.always("third", Scripted::arrives(kib(4)));
    let began = pod.clock.now();
    drop(first);
    drop(second.await.expect("no panic").expect("its turn"));
    assert!(third.await.expect("no panic").is_ok());
    assert!(pod.clock.now() - began < secs(1), "the end of a copy is an event");
}

#[tokio::test(start_paused = true)]
async fn what_can_never_fit_is_refused_before_anything_is_touched() {
    let pod = Pod::with_memory(kib(8));
    pod.use_once("small").await;
    let never = |need| Refusal::NeverFits { pool: Pool::Host, need, budget: kib(8) };

    let declared = pod.residency.ensure_loaded(&declaring("declared", kib(9)), pod.clock.deadline_in(secs(5))).await;
    assert_eq!(declared.map(drop), Err(WaitError::Refused(never(kib(9)))));
    assert_eq!(pod.fetch.fetches(), ["small"], "not even fetched");

    pod.fetch.always("large", Scripted::arrives(kib(12)));
    assert_eq!(pod.ensure("large", secs(5)).await.map(drop), Err(WaitError::Refused(never(kib(12)))));
    pod.residency.load(model("large"), MayEvict::AnyIdle).await;
    let failure = pod.report("large", |report| report.failure.is_some()).await.failure.expect("asked for");
    assert_eq!((failure.reason, failure.step), (Reason::ModelLoadFailed, Step::Admit));
    assert!(failure.message.contains("12 KiB") && failure.message.contains("8 KiB"), "{}", failure.message);
    assert_eq!(pod.ensure("large", secs(5)).await.map(drop), Err(WaitError::Refused(never(kib(12)))), "a caller still gets the numbers");
    assert_eq!(pod.runtime.unloads(), Vec::<String>::new());
    assert_eq!(pod.runtime.loads(), ["small"]);
}

#[tokio::test(start_paused = true)]
async fn a_size_that_was_measured_counts_for_the_next_load() {
    let pod = Pod::with_memory(kib(10));
    pod.runtime.script("m", Script::default().measuring(kib(9)));
    pod.use_once("m").await;
    let CopyState::Loaded { since, footprint, .. } = pod.loaded("m").await.state else { panic!("it is loaded") };
    assert_eq!((since, footprint), (START, Footprint::host(kib(9))));
    pod.use_once("other").await;
    assert_eq!(pod.held(), ["other"], "9 + 4 > 10");
    pod.use_once("m").await;
    assert_eq!(pod.held(), ["m"]);
    assert_eq!(pod.runtime.peak_held(), Footprint::host(kib(9)), "no second surprise");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_store_ends_one_load_and_not_the_pod() {
    #[derive(Debug)]
    struct Panics;
    #[async_trait::async_trait]
    impl berth_puller::Fetch for Panics {
        async fn fetch(&self, _: &berth_types::Registration, _: berth_puller::Urgency) -> Result<berth_puller::Pinned, PullError> {
            panic!("scripted panic")
        }
        fn on_disk(&self, _: &berth_types::Registration) -> bool {
            false
        }
        fn forget(&self, _: &berth_types::Registration) {}
    }
    let parts = Parts::with_memory(kib(8));
    let (residency, _owner) = berth_residency::Residency::start(berth_residency::Deps {
        runtime: Arc::new(parts.runtime.clone()),
        fetch: Arc::new(Panics),
        clock: parts.clock.clone(),
        metrics: berth_telemetry::Metrics::default(),
        location: berth_types::Location::of_pod_name("p"),
        budget: parts.budget.clone(),
        memory: None,
        config: parts.config.clone(),
    });
    for _ in 0..2 {
        let answer = residency.ensure_loaded(&model("m"), parts.clock.deadline_in(secs(5))).await;
        let Err(WaitError::Failed(failure)) = answer else { panic!("{answer:?}") };
        assert!(failure.message.contains("scripted panic"), "{failure}");
        // A panic passes by itself, as far as anybody knows: it is tried again a little later.
        parts.clock.sleep(secs(3)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_model_that_never_loads_share_nothing_with_those_of_others() {
    let pod = Pod::with_memory(kib(400));
    pod.use_once("hot").await;
    pod.fetch.always("cold", Scripted::Stalls);
    let most = berth_residency::Config::default().waiters_per_model;
    let callers: Vec<_> = (0..most).map(|_| pod.caller("cold", secs(3600))).collect();
    pod.pass(millis(1)).await;
    let since = pod.clock.now();
    let refused = pod.ensure("cold", secs(3600)).await.map(drop);
    assert_eq!(refused, Err(WaitError::TooManyWaiting { waiting: most }), "all of them wait, and no more may");
    for _ in 0..1000 {
        let mut guard = pod.residency.try_acquire("hot").expect("loaded");
        assert_eq!(guard.turn().now_or_never(), Some(Ok(())));
        tokio::task::yield_now().await;
    }
    assert!(pod.ensure("hot", secs(1)).await.is_ok(), "nor do they stand in the owner's queue");
    assert!(pod.ensure("other", secs(1)).await.is_ok(), "nor before another model's load");
    assert_eq!(pod.clock.now(), since);
    assert!(callers.iter().all(|caller| !caller.is_finished()));
}
