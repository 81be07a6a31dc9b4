//! How long a failure is the answer without another try, and what ends that.

use berth_adapters::LoadFault;
use berth_adapters::fake::Script;
use berth_puller::PullError;
use berth_puller::fake::Scripted;
use berth_residency::MayEvict;
use berth_telemetry::Counter;
use berth_types::{CopyReport, CopyState, Retry, Step};

use crate::rig::{Parts, Pod, START, id, kib, millis, model, secs};

fn away() -> Scripted {
    Scripted::fails(PullError::Unavailable("the store is away".to_owned()))
}

fn denied() -> Scripted {
    Scripted::fails(PullError::Denied("HTTP 403".to_owned()))
}

#[tokio::test(start_paused = true)]
async fn what_passes_by_itself_is_tried_again_after_a_short_while_that_doubles() {
    let pod = Pod::with_memory(kib(8));
    pod.fetch.always("m", away());
    let failure = pod.failure("m").await;
    assert_eq!((failure.step, failure.retry, failure.message.as_str()), (Step::Fetch, Retry::Later, "the store is away"));
    for (tries, seconds) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (7, 30), (8, 30)] {
        // Give or take a tenth.
        pod.pass(millis(seconds * 890)).await;
        assert_eq!(pod.failure("m").await.message, "the store is away");
        assert_eq!(pod.fetch.fetches().len(), tries, "answered at once within {seconds} s");
        pod.pass(millis(seconds * 220)).await;
        pod.failure("m").await;
        assert_eq!(pod.fetch.fetches().len(), tries + 1, "tried again after {seconds} s");
    }
    // Success ends it: the next failure begins anew.
    pod.fetch.always("m", Scripted::arrives(kib(4)));
    pod.pass(secs(34)).await;
    pod.use_once("m").await;
    pod.residency.retire(model("m")).await;
    pod.absent("m").await;
    pod.fetch.always("m", away());
    pod.failure("m").await;
    pod.fetch.always("m", Scripted::arrives(kib(4)));
    pod.pass(millis(1_110)).await;
    assert!(pod.ensure("m", secs(5)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_success_ends_the_growth_without_the_version_being_retired() {
    let pod = Pod::with_memory(kib(4));
    pod.runtime.script("m", Script::default().failing(3, LoadFault::TimedOut));
    for seconds in [2, 3, 5] {
        pod.failure("m").await;
        pod.pass(secs(seconds)).await;
    }
    pod.use_once("m").await;
    pod.use_once("other").await;
    assert_eq!(pod.held(), ["other"], "there is room for one");
    pod.runtime.script("m", Script::default().failing(1, LoadFault::TimedOut));
    pod.failure("m").await;
    pod.pass(millis(1_110)).await;
    assert!(pod.ensure("m", secs(60)).await.is_ok(), "one second, as the first time");
}

#[tokio::test(start_paused = true)]
async fn constant_requests_for_a_model_without_storage_cause_few_tries_and_no_flapping() {
    let pod = Pod::with_memory(kib(8));
    pod.fetch.always("m", away());
    let mut reports = pod.residency.reports();
    let mut turns = 0;
    for _ in 0..6_000 {
        pod.failure("m").await;
        pod.pass(millis(10)).await;
        let loading = |report: &CopyReport| matches!(report.state, CopyState::Loading { .. });
        turns += reports.so_far().iter().filter(|report| loading(report)).count();
    }
    let tries = pod.fetch.fetches().len();
    assert!((5..=8).contains(&tries) && turns <= tries, "{tries} tries in a minute, {turns} times on its way");
    assert_eq!(pod.metrics.count(Counter::Refused, &[("reason", "failed")]), 6_000 - tries as u64);
}

#[tokio::test(start_paused = true)]
async fn models_that_fail_together_are_not_tried_again_together() {
    let pod = Pod::with_memory(kib(800));
    let names: Vec<String> = (0..40).map(|n| format!("m{n}")).collect();
    for name in &names {
        pod.fetch.then(name, away());
        pod.failure(name).await;
    }
    assert_eq!(pod.clock.wall(), START);
    let mut served = Vec::new();
    for at in [880, 960, 1_040, 1_110] {
        pod.pass(millis(at) - pod.clock.wall().since(START)).await;
        let mut count = 0;
        for name in &names {
            count += usize::from(pod.ensure(name, secs(5)).await.is_ok());
        }
        served.push(count);
    }
    assert_eq!((served[0], served[3]), (0, 40), "{served:?}");
    assert!(served[1] > 2 && served[1] < served[2] && served[2] < 38, "{served:?}");
}

#[tokio::test(start_paused = true)]
async fn what_passes_and_what_does_not_have_quiet_times_of_their_own() {
    let pod = Pod::with_memory(kib(8));
    let tries = |n| assert_eq!(pod.fetch.fetches().len(), n);
    pod.fetch.then("m", away()).then("m", denied()).then("m", away());
    pod.failure("m").await;
    pod.pass(secs(2)).await;
    assert_eq!(pod.failure("m").await.retry, Retry::AfterChange);
    pod.pass(secs(9)).await;
    pod.failure("m").await;
    tries(2);
    pod.pass(secs(2)).await;
    assert_eq!(pod.failure("m").await.retry, Retry::Later);
    tries(3);
    pod.pass(secs(2)).await;
    assert!(pod.ensure("m", secs(5)).await.is_ok(), "not as long as for want of a change");
}

#[tokio::test(start_paused = true)]
async fn a_load_for_the_leader_waits_out_no_quiet_time_and_callers_join_it() {
    let pod = Pod::with_memory(kib(8));
    pod.fetch.then("m", away()).then("m", Scripted::arrives_in(kib(4), secs(5)));
    pod.failure("m").await;
    pod.residency.load(model("m"), MayEvict::Nothing).await;
    assert!(pod.ensure("m", secs(60)).await.is_ok());
    assert_eq!(pod.clock.wall().since(START), secs(5));
}

#[tokio::test(start_paused = true)]
async fn another_version_has_no_part_in_the_failures_of_the_one_before() {
    let pod = Pod::with_memory(kib(8));
    pod.fetch.then("m-1", denied());
    pod.failure("m-1").await;
    assert!(pod.ensure("m-2", secs(5)).await.is_ok());
    // The same version registered anew begins anew.
    pod.residency.retire(model("m-1")).await;
    assert!(pod.ensure("m-1", secs(5)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_asked_again_as_soon_as_files_were_let_go_of() {
    let mut parts = Parts::with_memory(kib(4));
    parts.config.quiet_passing = (secs(100), secs(100));
    let pod = parts.start();
    let full = PullError::DiskFull { need: kib(4), free: kib(0), budget: kib(8) };
    pod.use_once("old").await;
    pod.fetch.then("m", Scripted::fails(full.clone())).then("n", Scripted::fails(full));
    for name in ["m", "n"] {
        pod.failure(name).await;
    }
    pod.pass(secs(5)).await;
    for name in ["m", "n", "m"] {
        pod.failure(name).await;
    }
    assert_eq!(pod.fetch.fetches(), ["old", "m", "n"], "a failure of another is no room");
    pod.residency.retire(model("old")).await;
    pod.absent("old").await;
    assert!(pod.ensure("m", secs(5)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_changed_storage_configuration_ends_the_quiet_time_of_what_lacked_its_files_and_says_so() {
    let pod = Pod::with_memory(kib(8));
    pod.runtime.script("bad", Script::default().failing(2, LoadFault::BadModel));
    pod.fetch.then("m", denied()).then("m", denied());
    let (bad, first) = (pod.failure("bad").await, pod.failure("m").await);
    pod.pass(secs(1)).await;
    let mut reports = pod.residency.reports();
    assert!(reports.so_far().iter().all(|report| !report.mended && report.failure.is_some()));
    pod.residency.storage_changed().await;
    let news = reports.next().await.expect("the owner lives");
    assert_eq!(news, [CopyReport { model: id("m"), state: CopyState::Absent, failure: Some(first), mended: true, last_used: None }]);
    assert_eq!(pod.failure("bad").await, bad, "its files were never the trouble");
    assert_eq!(pod.runtime.loads().len(), 1);

    // It was not the trouble, or not mended: the quiet time is as long as the first time, and nothing is mended.
    pod.failure("m").await;
    assert_eq!(pod.fetch.fetches(), ["bad", "m", "m"]);
    let report = pod.absent("m").await;
    assert!(report.failure.is_some() && !report.mended);
    pod.pass(secs(9)).await;
    pod.failure("m").await;
    pod.pass(secs(2)).await;
    assert!(pod.ensure("m", secs(5)).await.is_ok());
    assert!(!pod.loaded("m").await.mended);
}

#[tokio::test(start_paused = true)]
async fn a_download_that_was_under_way_when_the_storage_configuration_changed_is_begun_once_more() {
    let pod = Pod::with_memory(kib(8));
    for (name, faults, fetches) in [("once", 1, 2), ("twice", 2, 2)] {
        pod.fetch.then(name, Scripted::Stalls);
        for _ in 0..faults {
            pod.fetch.then(name, denied());
        }
        let before = pod.fetch.fetches().len();
        let caller = pod.caller(name, secs(60));
        pod.fetch.started(before + 1).await;
        pod.residency.storage_changed().await;
        pod.snapshot().await;
        pod.fetch.release(name);
        assert_eq!(caller.await.expect("no panic").is_ok(), faults == 1, "{name}");
        assert_eq!(pod.fetch.fetches().len() - before, fetches, "{name}");
    }
}
