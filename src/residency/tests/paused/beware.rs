//! Models that end runtimes, across pods: what a pod tells of the deaths of its own, and what it does with what it is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_adapters::fake::Script;
use berth_plan::caution::{Told, cautions};
use berth_puller::fake::Scripted;
use berth_residency::{Config, MayEvict, WaitError};
use berth_telemetry::Counter;
use berth_types::{Caution, CopyState, Failure, Location, PodId, Reason, Retry, Suspicion};
use futures::FutureExt as _;
use futures::future::{join_all, select_all};
use tokio::sync::watch;

use crate::rig::{Parts, Pod, id, kib, millis, model, secs};

fn beside() -> Parts {
    Parts::with_memory(kib(64)).beside()
}

impl Pod {
    fn told(&self) -> Arc<[Suspicion]> {
        self.residency.suspicions().borrow().clone()
    }

    async fn beware(&self, name: &str, verdict: bool, seconds: u64) {
        let until = self.clock.wall().after(secs(seconds));
        let caution = Caution { model: id(name), deaths: 1, until, verdict, message: "it ended pod-b".into() };
        self.residency.beware(vec![caution]).await;
        self.snapshot().await;
    }

    async fn beware_of_nothing(&self) {
        self.residency.beware(Vec::new()).await;
        self.snapshot().await;
    }

    /// What a caller is told at once.
    async fn refused_at_once(&self, name: &str) -> Arc<Failure> {
        let began = self.clock.now();
        let failure = self.failure(name).await;
        assert_eq!(self.clock.now(), began, "{name}: at once");
        failure
    }

    /// The runtime dies and is back at once.
    async fn dies(&self) {
        self.runtime.leave();
        self.pass(millis(10)).await;
        self.runtime.come_back();
    }
}

fn words(failure: &Failure) -> (Reason, Retry, &str) {
    (failure.reason, failure.retry, failure.message.as_str())
}

const TRIED: (Reason, Retry, &str) = (Reason::RuntimeUnhealthy, Retry::Later, "it ended pod-b");
const VERDICT: (Reason, Retry, &str) = (Reason::ModelLoadFailed, Retry::AfterChange, "it ended pod-b");

#[tokio::test(start_paused = true)]
async fn a_death_is_told_before_anything_is_loaded_again_and_taken_back_when_the_load_ends_well() {
    let pod = beside().start();
    pod.use_once("busy").await;
    let mut suspicions = pod.residency.suspicions();
    assert!(suspicions.borrow_and_update().is_empty());
    pod.runtime.script("m", Script::default().loading_for(secs(5)));
    pod.residency.load(model("m"), MayEvict::Nothing).await;
    pod.pass(secs(1)).await;
    let _request = pod.enter("busy");
    let loads = pod.runtime.loads().len();
    pod.runtime.leave();
    suspicions.changed().await.expect("the owner lives");
    assert_eq!(pod.runtime.loads().len(), loads);
    let expected = Suspicion { model: id("m"), deaths: 1, together: 0, last: pod.clock.wall(), failure: None };
    assert_eq!(suspicions.borrow_and_update()[..], [expected], "the busy one is not told of");
    pod.runtime.come_back();
    pod.loaded("m").await;
    assert!(pod.told().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_verdict_is_told_with_its_failure_until_the_case_is_over_or_the_model_is_retired() {
    for retired in [false, true] {
        let pod = beside().start();
        pod.runtime.script("killer", Script::default().ending_the_runtime(millis(100)));
        let failure = pod.failure("killer").await;
        let [told] = &pod.told()[..] else { panic!("{:?}", pod.told()) };
        assert_eq!((told.deaths, told.together, told.failure.as_ref()), (2, 0, Some(&failure)));
        if retired {
            pod.residency.retire(model("killer")).await;
            pod.absent("killer").await;
        } else {
            pod.pass(secs(14 * 60)).await;
            assert_eq!(pod.told().len(), 1);
            pod.pass(secs(70)).await;
        }
        assert!(pod.told().is_empty(), "{:?}", pod.told());
    }
}

#[tokio::test(start_paused = true)]
async fn a_verdict_of_before_a_restart_is_told_from_the_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = Config { state: Some(folder.path().to_owned()), ..Config::default() };
    let pod = Parts { config: config.clone(), ..beside() }.start();
    pod.runtime.script("killer", Script::default().ending_the_runtime(millis(100)));
    let failure = pod.failure("killer").await;
    pod.report("killer", |report| report.failure.is_some()).await;
    pod.residency.drain(pod.clock.deadline_in(secs(1))).await;
    let again = Parts { config, ..beside() }.start();
    let told = again.told();
    let [Suspicion { deaths: 2, failure: Some(told), .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(told.message, failure.message);
}

#[tokio::test(start_paused = true)]
async fn while_a_model_is_tried_elsewhere_nothing_of_it_begins_here_and_afterwards_all_is_as_ever() {
    let pod = beside().start();
    pod.beware("m", false, 60).await;
    assert_eq!(words(&*pod.refused_at_once("m").await), TRIED);
    let mut reports = pod.residency.reports();
    let _ = reports.so_far();
    pod.residency.load(model("m"), MayEvict::Nothing).await;
    let report = reports.next().await.expect("the owner lives").remove(0);
    assert_eq!((report.model.as_str(), report.state, report.failure), ("m", CopyState::Absent, None));
    assert!(pod.ensure("other", secs(5)).await.is_ok());
    assert_eq!(pod.fetch.fetches(), ["other"]);
    pod.pass(secs(60)).await;
    assert!(pod.ensure("m", secs(5)).await.is_ok(), "its time is over");
    assert_eq!(pod.metrics.count(Counter::Refused, &[("reason", "suspect")]), 1);

    pod.beware("n", true, 60).await;
    assert_eq!(words(&*pod.refused_at_once("n").await), VERDICT);
    pod.beware("o", false, 60).await;
    assert!(pod.ensure("n", secs(5)).await.is_ok(), "what is told replaces what was told");
    pod.refused_at_once("o").await;
    pod.beware_of_nothing().await;
    assert!(pod.ensure("o", secs(5)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_load_that_waits_here_does_not_begin_and_who_waits_for_it_is_told() {
    for (verdict, expected) in [(false, TRIED), (true, VERDICT)] {
        for at in ["fetching", "for memory", "for the runtime"] {
            let pod = Parts::with_memory(kib(8)).beside().start();
            let mut held = Vec::new();
            match at {
                "fetching" => {
                    pod.fetch.then("m", Scripted::Stalls);
                }
                "for memory" => {
                    for name in ["a", "b"] {
                        held.push(pod.ensure(name, secs(5)).await.expect("it loads"));
                    }
                }
                // One of two loads has it to itself.
                _ => {
                    for name in ["alone", "m"] {
                        pod.runtime.script(name, Script::default().loading_for(secs(30)));
                    }
                    pod.residency.load(model("alone"), MayEvict::Nothing).await;
                    pod.pass(secs(1)).await;
                    pod.dies().await;
                    pod.pass(secs(1)).await;
                }
            }
            let waits = pod.caller("m", secs(60));
            pod.residency.load(model("m"), MayEvict::AnyIdle).await;
            pod.pass(millis(10)).await;
            assert_eq!(pod.snapshot().await.copies.iter().filter(|copy| copy.model == id("m")).count(), 1, "{at}");
            pod.beware("m", verdict, 60).await;
            let Err(WaitError::Failed(failure)) = waits.await.expect("no panic") else { panic!("{at}: it is refused") };
            assert_eq!(words(&failure), expected, "{at}");
            drop(held);
            assert_eq!(pod.absent("m").await.failure, None, "{at}: it has done nothing here");
            pod.pass(secs(50)).await;
            assert!(!pod.runtime.loads().contains(&"m".to_owned()), "{at}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_runtime_is_loading_already_goes_on_and_leaves_again_after_a_verdict() {
    for verdict in [false, true] {
        let pod = beside().start();
        pod.runtime.script("m", Script::default().loading_for(secs(5)));
        let first = pod.caller("m", secs(60));
        pod.pass(secs(1)).await;
        pod.beware("m", verdict, 60).await;
        if verdict {
            assert_eq!(words(&*pod.refused_at_once("m").await), VERDICT);
            assert!(matches!(first.await.expect("no panic"), Err(WaitError::Failed(_))));
            pod.absent("m").await;
            assert!(pod.held().is_empty());
        } else {
            let second = pod.caller("m", secs(60));
            assert!(first.await.expect("no panic").is_ok() && second.await.expect("no panic").is_ok());
            assert!(pod.ensure("m", secs(1)).await.is_ok());
        }
        assert_eq!(pod.runtime.loads(), ["m"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_serves_on_while_its_model_is_tried_elsewhere_and_leaves_after_a_verdict() {
    let pod = beside().start();
    let guard = pod.ensure("m", secs(5)).await.expect("it loads");
    pod.beware("m", false, 60).await;
    drop(pod.enter("m"));
    pod.beware("m", true, 60).await;
    assert!(pod.residency.try_acquire("m").is_none(), "no new requests");
    assert_eq!(words(&*pod.refused_at_once("m").await), VERDICT);
    assert!(guard.revoked().now_or_never().is_none(), "one that is under way ends as it does");
    assert_eq!(pod.held(), ["m"]);
    drop(guard);
    assert_eq!(pod.absent("m").await.failure, None, "it never failed here");
    assert!(pod.held().is_empty());
    pod.beware_of_nothing().await;
    assert!(pod.ensure("m", secs(5)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_withdrawn_as_the_runtime_dies_does_not_come_back_while_its_model_is_tried_elsewhere() {
    let pod = beside().start();
    for name in ["m", "other"] {
        pod.use_once(name).await;
    }
    pod.beware("m", false, 60).await;
    pod.dies().await;
    pod.loaded("other").await;
    pod.absent("m").await;
    assert_eq!(pod.held(), ["other"]);
}

#[tokio::test(start_paused = true)]
async fn where_it_died_once_the_verdict_is_the_failure_of_the_model_and_it_is_not_tried_again() {
    let pod = beside().start();
    pod.runtime.script("m", Script::default().loading_for(secs(5)));
    let waits = pod.caller("m", secs(60));
    pod.pass(secs(1)).await;
    pod.runtime.leave();
    pod.pass(secs(1)).await;
    // The death of another pod comes before this one has tried again.
    pod.beware("m", true, 600).await;
    let Err(WaitError::Failed(failure)) = waits.await.expect("no panic") else { panic!("it is refused") };
    assert_eq!(words(&failure), VERDICT);
    pod.runtime.come_back();
    assert_eq!(pod.absent("m").await.failure.as_ref(), Some(&failure));
    assert_eq!(pod.refused_at_once("m").await, failure);
    let [told] = &pod.told()[..] else { panic!("{:?}", pod.told()) };
    assert_eq!((told.deaths, told.failure.as_ref()), (1, Some(&failure)));
    // Hearing it again is no other failure.
    pod.pass(secs(5)).await;
    pod.beware("m", true, 600).await;
    assert_eq!(pod.refused_at_once("m").await, failure);
    assert_eq!(pod.runtime.loads(), ["m"]);
}

/// Pods that tell each other at once.
async fn mesh(pods: &[Pod]) {
    let mut told: Vec<_> = pods.iter().map(|pod| pod.residency.suspicions()).collect();
    loop {
        let said = |(number, told): (usize, &mut watch::Receiver<Arc<[Suspicion]>>)| {
            let (name, suspicions) = (format!("pod-{number}"), told.borrow_and_update().clone());
            (PodId::new(&name).expect("valid"), Told { location: Location::of_pod_name(&name), suspicions })
        };
        let said: BTreeMap<PodId, Told> = told.iter_mut().enumerate().map(said).collect();
        for (pod, name) in pods.iter().zip(said.keys()) {
            pod.residency.beware(cautions(&said, name, pod.clock.wall())).await;
        }
        select_all(told.iter_mut().map(|told| Box::pin(told.changed()))).await.0.expect("the owner lives");
    }
}

#[tokio::test(start_paused = true)]
async fn a_killer_that_is_asked_for_everywhere_ends_two_runtimes_in_all_and_fifty_others_serve_on() {
    let pods: [Pod; 3] = std::array::from_fn(|_| Parts::with_memory(kib(1024)).beside().start());
    let names: Vec<String> = (0..50).map(|number| format!("good-{number}")).collect();
    let asking = async {
        for (number, name) in names.iter().enumerate() {
            pods[number % 3].use_once(name).await;
        }
        for pod in &pods {
            pod.runtime.script("killer", Script::default().loading_for(millis(50)).ending_the_runtime(secs(1)));
        }
        for second in 0..600 {
            let pod = &pods[second % 3];
            pod.residency.load(model("killer"), MayEvict::AnyIdle).await;
            assert!(pod.ensure("killer", secs(1)).await.is_err());
            pod.pass(millis(100)).await;
        }
        for (number, name) in names.iter().enumerate() {
            assert!(pods[number % 3].loaded(name).await.failure.is_none(), "{name}");
        }
        let failed = join_all(pods.iter().map(|pod| pod.absent("killer"))).await;
        assert_eq!(failed.iter().filter(|report| report.failure.is_some()).count(), 1, "where it died: {failed:?}");
    };
    tokio::select! {
        () = asking => {}
        () = mesh(&pods) => {}
    }
    assert_eq!(pods.iter().map(|pod| pod.runtime.deaths()).sum::<u32>(), 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_verdict_of_others_one_death_here_is_proof_enough() {
    let pod = beside().start();
    pod.beware("m", true, 60).await;
    pod.pass(secs(61)).await;
    pod.runtime.script("m", Script::default().ending_the_runtime(millis(100)));
    let failure = pod.failure("m").await;
    assert_eq!((failure.reason, pod.runtime.deaths()), (Reason::ModelLoadFailed, 1));
    assert!(failure.message.contains("runtime exited while loading it"), "{}", failure.message);
}
