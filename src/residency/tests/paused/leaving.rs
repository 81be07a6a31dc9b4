//! Models that are removed, copies that were lost, and the end of the pod.

use std::sync::Arc;

use berth_adapters::fake::{Confirm, Script};
use berth_adapters::{Artifacts, FakeRuntime, Index, LaidOut, LoadError, Loaded, Runtime, RuntimeDown, RuntimeInfo, UnloadError};
use berth_puller::Fetch;
use berth_puller::fake::Scripted;
use berth_residency::{Deps, MayEvict, Residency, WaitError};
use berth_telemetry::{Clock, Metrics};
use berth_types::{CopyState, Footprint, Location, ModelId, Registration};

use crate::rig::{Parts, Pod, START, id, kib, millis, model, secs};

#[tokio::test(start_paused = true)]
async fn a_retired_model_is_drained_unloaded_and_forgotten() {
    let pod = Pod::with_memory(kib(8));
    let guard = pod.ensure("m", secs(5)).await.expect("room");
    pod.residency.retire(model("m")).await;
    pod.report("m", |report| report.state == CopyState::Unloading).await;
    pod.pass(secs(5)).await;
    assert_eq!(pod.held(), ["m"], "a request is in flight");
    assert!(pod.residency.try_acquire("m").is_none());
    drop(guard);
    pod.absent("m").await;
    assert_eq!(pod.held(), Vec::<String>::new());
    assert_eq!(pod.runtime.laid_out(), Vec::<String>::new());
    assert!(!pod.fetch.on_disk(&model("m")));
    assert_eq!(pod.residency.last_used("m"), None);
    assert_eq!(pod.charged().await, kib(0));
}

#[tokio::test(start_paused = true)]
async fn files_of_a_model_that_is_not_loaded_are_forgotten_too() {
    let pod = Pod::with_memory(kib(4));
    pod.use_once("a").await;
    pod.use_once("b").await;
    assert!(pod.fetch.on_disk(&model("a")));
    pod.residency.retire(model("a")).await;
    pod.snapshot().await;
    assert!(!pod.fetch.on_disk(&model("a")));
}

#[tokio::test(start_paused = true)]
async fn retiring_a_model_cancels_its_load_at_every_stage() {
    let pod = Pod::with_memory(kib(4));
    pod.fetch.then("fetching", Scripted::Stalls);
    pod.runtime.script("loading", Script::default().hanging());
    let fetching = pod.caller("fetching", secs(60));
    let loading = pod.caller("loading", secs(60));
    pod.pass(secs(1)).await;
    let fitting = pod.caller("fitting", secs(60));
    pod.pass(secs(1)).await;
    assert_eq!(pod.runtime.loads(), ["loading"]);
    for (name, caller) in [("fetching", fetching), ("fitting", fitting), ("loading", loading)] {
        pod.residency.retire(model(name)).await;
        assert_eq!(caller.await.expect("no panic").map(drop), Err(WaitError::Retired), "{name}");
        pod.absent(name).await;
    }
    assert_eq!(pod.held(), Vec::<String>::new());
    assert_eq!(pod.charged().await, kib(0));
    assert!(!pod.fetch.on_disk(&model("loading")) && !pod.fetch.on_disk(&model("fitting")));
    assert_eq!(pod.runtime.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_model_that_comes_back_while_it_leaves_begins_from_nothing() {
    let pod = Pod::with_memory(kib(4));
    pod.runtime.script_all(Script::default().confirming(Confirm::After(secs(2))));
    pod.use_once("m").await;
    pod.residency.retire(model("m")).await;
    pod.report("m", |report| report.state == CopyState::Unloading).await;
    assert!(pod.ensure("m", secs(60)).await.is_ok());
    assert_eq!(pod.fetch.fetches(), ["m", "m"]);
    assert_eq!(pod.runtime.loads(), ["m", "m"]);
    assert_eq!(pod.runtime.peak_held(), Footprint::host(kib(4)));
}

#[tokio::test(start_paused = true)]
async fn an_evicted_model_that_is_wanted_again_comes_back_after_its_unload() {
    let pod = Pod::with_memory(kib(4));
    pod.runtime.script("a", Script::default().confirming(Confirm::After(secs(2))));
    pod.use_once("a").await;
    let b = pod.caller("b", secs(60));
    pod.report("a", |report| report.state == CopyState::Unloading).await;
    let a = pod.caller("a", secs(60));
    assert!(b.await.expect("no panic").is_ok());
    assert!(a.await.expect("no panic").is_ok());
    assert_eq!(pod.runtime.loads(), ["a", "b", "a"]);
    assert_eq!(pod.runtime.peak_held(), Footprint::host(kib(4)));
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_requests_end_and_turns_everybody_else_away() {
    let Pod { clock, runtime, residency, owner, fetch, .. } = {
        let pod = Pod::with_memory(kib(12));
        pod.runtime.script("loading", Script::default().hanging());
        pod.runtime.script_all(Script::default().confirming(Confirm::After(secs(1))));
        pod.use_once("idle").await;
        pod
    };
    let wait = |name: &str| {
        let (residency, deadline, model) = (residency.clone(), clock.deadline_in(secs(60)), model(name));
        tokio::spawn(async move { residency.ensure_loaded(&model, deadline).await })
    };
    let guard = wait("used").await.expect("no panic").expect("room");
    runtime.script("loading", Script::default().hanging());
    let (loading, waiting) = (wait("loading"), wait("waiting"));
    clock.sleep(secs(1)).await;
    let mut reports = residency.reports();
    let draining = {
        let (residency, until) = (residency.clone(), clock.deadline_in(secs(30)));
        tokio::spawn(async move { residency.drain(until).await })
    };
    assert_eq!(loading.await.expect("no panic").map(drop), Err(WaitError::ShuttingDown));
    assert!(waiting.await.is_ok());
    clock.sleep(secs(10)).await;
    assert_eq!(runtime.held().into_iter().map(|(name, _)| name).collect::<Vec<_>>(), ["used"], "what was idle is gone already");
    assert!(residency.try_acquire("used").is_none());
    assert!(!draining.is_finished());
    assert_eq!(residency.ensure_loaded(&model("new"), clock.deadline_in(secs(5))).await.map(drop), Err(WaitError::ShuttingDown));
    let before = clock.now();
    drop(guard);
    draining.await.expect("no panic");
    owner.await.expect("the owner does not panic");
    assert!(clock.now() - before < secs(3));
    assert_eq!(runtime.held(), []);
    assert_eq!(residency.ensure_loaded(&model("new"), clock.deadline_in(secs(5))).await.map(drop), Err(WaitError::ShuttingDown));
    assert!(residency.snapshot().await.is_none());
    let mut last = Vec::new();
    while let Some(news) = reports.next().await {
        last = news;
    }
    assert!(last.iter().all(|report| report.state == CopyState::Absent), "{last:?}");
    assert_eq!(fetch.pins(&id("used")), 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_past_its_deadline_revokes_and_ends() {
    let pod = Pod::with_memory(kib(12));
    let guard = pod.ensure("m", secs(5)).await.expect("room");
    let began = pod.clock.now();
    let drain = pod.residency.drain(pod.clock.deadline_in(secs(10)));
    tokio::join!(drain, async {
        guard.revoked().await;
        assert!(pod.clock.now() - began >= secs(10));
    });
    assert!(pod.clock.now() - began < secs(13));
    pod.owner.await.expect("the owner does not panic");
    assert_eq!(pod.runtime.held(), []);
    drop(guard);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_pod_cuts_a_drain_short_that_was_under_way() {
    for earlier in [None, Some(20)] {
        let pod = Pod::with_memory(kib(12));
        let guard = pod.ensure("m", secs(5)).await.expect("room");
        pod.residency.retire(model("m")).await;
        pod.pass(secs(1)).await;
        let began = pod.clock.now();
        if let Some(earlier) = earlier {
            let (residency, until) = (pod.residency.clone(), pod.clock.deadline_in(secs(earlier)));
            tokio::spawn(async move { residency.drain(until).await });
            pod.pass(millis(10)).await;
        }
        let drain = pod.residency.drain(pod.clock.deadline_in(secs(5)));
        tokio::join!(drain, async {
            guard.revoked().await;
            let revoked_after = pod.clock.now() - began;
            assert!(revoked_after >= secs(5) && revoked_after < secs(6), "{revoked_after:?}, first told {earlier:?}");
            drop(guard);
        });
        assert!(pod.clock.now() - began < secs(7));
        pod.owner.await.expect("the owner does not panic");
        assert_eq!(pod.runtime.held(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_even_when_the_runtime_confirms_nothing() {
    let pod = Pod::with_memory(kib(12));
    pod.runtime.script_all(Script::default().confirming(Confirm::WhenReleased));
    pod.use_once("m").await;
    let began = pod.clock.now();
    pod.residency.drain(pod.clock.deadline_in(secs(10))).await;
    assert!(pod.clock.now() - began < secs(25));
}

#[tokio::test(start_paused = true)]
async fn the_owner_ends_when_every_handle_is_gone() {
    let Pod { residency, owner, runtime, .. } = {
        let pod = Pod::with_memory(kib(12));
        pod.use_once("m").await;
        pod
    };
    drop(residency);
    owner.await.expect("the owner does not panic");
    assert_eq!(runtime.held(), []);
}

async fn load_behind_our_back(parts: &Parts, name: &str) {
    let artifacts = Artifacts { model: "/fake".into(), schema: None, size: kib(4) };
    let laid_out = parts.runtime.lay_out(&model(name), &artifacts).await.expect("the fake lays out");
    parts.runtime.load(&model(name), &laid_out).await.expect("the fake loads");
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_held_before_is_unloaded_before_anything_is_loaded() {
    let parts = Parts::with_memory(kib(4));
    load_behind_our_back(&parts, "old").await;
    parts.runtime.script("old", Script::default().confirming(Confirm::After(secs(5))));
    let pod = parts.start();
    let began = pod.clock.now();
    assert!(pod.ensure("new", secs(60)).await.is_ok());
    assert!(pod.clock.now() - began >= secs(5));
    assert_eq!(pod.held(), ["new"]);
    assert_eq!(pod.runtime.peak_held(), Footprint::host(kib(4)));
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_held_before_and_is_wanted_is_loaded_anew() {
    let parts = Parts::with_memory(kib(4));
    load_behind_our_back(&parts, "m").await;
    let pod = parts.start();
    assert!(pod.ensure("m", secs(60)).await.is_ok());
    assert_eq!(pod.runtime.loads(), ["m", "m"]);
    assert_eq!(pod.charged().await, kib(4));
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_held_before_is_unloaded_even_when_its_load_is_waiting_already() {
    let parts = Parts::with_memory(kib(4));
    load_behind_our_back(&parts, "m").await;
    parts.runtime.set_index_outage(true);
    let pod = parts.start();
    let (m, other) = (pod.caller("m", secs(60)), pod.caller("other", secs(60)));
    pod.pass(secs(2)).await;
    assert_eq!(pod.fetch.fetches(), ["m", "other"]);
    pod.runtime.set_index_outage(false);
    assert!(m.await.expect("no panic").is_ok() && other.await.expect("no panic").is_ok());
    assert_eq!(pod.runtime.unloads()[0], "m");
    assert_eq!(pod.runtime.loads().len(), 3);
    assert_eq!(pod.runtime.peak_held(), Footprint::host(kib(4)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_loaded_while_the_runtime_cannot_say_what_it_holds() {
    let parts = Parts::with_memory(kib(4));
    parts.runtime.set_index_outage(true);
    let pod = parts.start();
    let caller = pod.caller("m", secs(60));
    pod.pass(secs(20)).await;
    assert_eq!(pod.runtime.loads(), Vec::<String>::new());
    assert_eq!(pod.fetch.fetches(), ["m"], "fetching does not need the runtime");
    pod.runtime.set_index_outage(false);
    assert!(caller.await.expect("no panic").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_the_runtime_lost_is_withdrawn_and_loaded_again() {
    let pod = Pod::with_memory(kib(8));
    let guard = pod.ensure("m", secs(5)).await.expect("room");
    pod.pass(millis(10)).await;
    pod.runtime.crash();
    pod.residency.suspect(&id("m")).await;
    guard.revoked().await;
    let before = pod.clock.now();
    assert!(pod.ensure("m", secs(60)).await.is_ok());
    assert!(pod.clock.now() - before < secs(1));
    assert_eq!(pod.runtime.loads(), ["m", "m"]);

    // Also without a hint, a little later.
    pod.runtime.crash();
    pod.absent("m").await;
    assert_eq!(pod.charged().await, kib(0));
}

#[tokio::test(start_paused = true)]
async fn a_model_that_nobody_asked_for_is_found_and_unloaded() {
    let parts = Parts::with_memory(kib(8));
    let runtime = parts.runtime.clone();
    let pod = parts.start();
    pod.use_once("m").await;
    let artifacts = Artifacts { model: "/fake".into(), schema: None, size: kib(4) };
    let laid_out = runtime.lay_out(&model("stray"), &artifacts).await.expect("the fake lays out");
    runtime.load(&model("stray"), &laid_out).await.expect("the fake loads");
    pod.pass(secs(10)).await;
    assert_eq!(pod.held(), ["m"]);
}

/// A runtime whose index takes two seconds to arrive and is that old by then.
struct OldNews(FakeRuntime, Clock);

#[async_trait::async_trait]
impl Runtime for OldNews {
    fn info(&self) -> &RuntimeInfo {
        self.0.info()
    }
    fn estimate(&self, artifacts: &Artifacts) -> Option<Footprint> {
        self.0.estimate(artifacts)
    }
    async fn lay_out(&self, model: &Registration, artifacts: &Artifacts) -> Result<LaidOut, LoadError> {
        self.0.lay_out(model, artifacts).await
    }
    async fn load(&self, model: &Registration, laid_out: &LaidOut) -> Result<Loaded, LoadError> {
        self.0.load(model, laid_out).await
    }
    async fn unload(&self, model: &ModelId) -> Result<(), UnloadError> {
        self.0.unload(model).await
    }
    async fn clear_layout(&self, model: &ModelId) {
        self.0.clear_layout(model).await;
    }
    async fn index(&self) -> Result<Index, RuntimeDown> {
        let index = self.0.index().await;
        self.1.sleep(secs(2)).await;
        index
    }
    async fn index_changed(&self) {
        self.0.index_changed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_index_that_is_older_than_the_unload_call_confirms_nothing() {
    let parts = Parts::with_memory(kib(8));
    let (clock, fake) = (parts.clock.clone(), parts.runtime.clone());
    fake.script_all(Script::default().confirming(Confirm::WhenReleased));
    let (residency, _owner) = Residency::start(Deps {
        runtime: Arc::new(OldNews(fake.clone(), clock.clone())),
        fetch: parts.fetch.clone(),
        clock: clock.clone(),
        metrics: Metrics::default(),
        location: Location::of_pod_name("p"),
        budget: parts.budget.clone(),
        memory: None,
        config: parts.config.clone(),
    });
    // The owner asks for the index every five seconds: this load and its end fall into the time of one answer.
    clock.sleep(millis(5_500)).await;
    let loading = residency.ensure_loaded(&model("m"), clock.deadline_in(secs(5))).await;
    assert!(loading.is_ok());
    drop(loading);
    residency.retire(model("m")).await;
    for _ in 0..5 {
        clock.sleep(secs(1)).await;
        let snapshot = residency.snapshot().await.expect("the owner lives");
        assert_eq!(snapshot.pools[0].charged, kib(4), "at {:?}", clock.wall().since(START));
    }
    assert!(fake.confirm_unload("m"));
    clock.sleep(secs(5)).await;
    assert_eq!(residency.snapshot().await.expect("the owner lives").pools[0].charged, kib(0));
    assert_eq!(fake.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn last_uses_and_sizes_survive_a_restart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let start = || {
        let mut parts = Parts::with_memory(kib(40));
        parts.config.state = Some(folder.path().to_owned());
        parts.runtime.script("fat", Script::default().measuring(kib(30)));
        parts.start()
    };
    let first = start();
    for name in ["a", "b", "fat", "c", "a"] {
        first.use_once(name).await;
    }
    let used = first.residency.last_used("b");
    assert!(used > Some(START));
    first.residency.drain(first.clock.deadline_in(secs(10))).await;
    first.owner.await.expect("the owner does not panic");

    let second = start();
    assert_eq!(second.residency.last_used("b"), used);
    let known = second.residency.reports().next().await.expect("last uses");
    assert_eq!(known.iter().map(|report| report.model.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "fat"]);
    assert!(known.iter().all(|report| report.state == CopyState::Absent && report.last_used.is_some()));
    // Loaded in another order, but last used in this one: b, c, a.
    for name in ["a", "c", "b"] {
        second.residency.load(model(name), MayEvict::Nothing).await;
        second.loaded(name).await;
    }
    second.residency.load(model("fat"), MayEvict::Nothing).await;
    second.absent("fat").await;
    assert_eq!(second.runtime.loads(), ["a", "c", "b"], "its real size was known: it was not even tried");
    second.use_once("fat").await;
    assert_eq!(second.held(), ["a", "c", "fat"]);
}

#[tokio::test(start_paused = true)]
async fn files_of_a_loaded_model_are_kept_only_for_a_runtime_that_reads_them() {
    for (parts, kept) in [(Parts::with_memory(kib(12)), 1), (Parts::with_memory(kib(12)).done_with_files(), 0)] {
        let pod = parts.start();
        let guard = pod.ensure("m", secs(5)).await.expect("loads");
        assert_eq!(pod.fetch.pins(&id("m")), kept);
        drop(guard);
    }
}
