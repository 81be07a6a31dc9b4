use berth_types::{Retry, Step};
use proptest::prelude::*;

use super::*;
use crate::runtime::{NOT_RECOGNIZED, NOT_SUPPORTED};

const NOW: UnixMillis = UnixMillis(1_800_000_000_500);
const EARLIER: UnixMillis = UnixMillis(1_799_999_990_000);

fn failure_of(id: &str, pod: &str, reason: Reason) -> Arc<Failure> {
    Arc::new(Failure {
        reason,
        step: Step::Load,
        location: Location::of_pod_name(pod),
        model: ModelId::new(id).expect("valid"),
        message: format!("{id} broke on {pod}"),
        time: UnixMillis(EARLIER.0 + 999),
        retry: Retry::Later,
    })
}

fn version(id: &str) -> VersionFacts {
    VersionFacts {
        id: ModelId::new(id).expect("valid"),
        loaded_once: false,
        loaded: 0,
        on_the_way: false,
        failures: Vec::new(),
        exhausted: false,
        hosting: Hosting::Pods,
    }
}

impl VersionFacts {
    fn loaded(self, loaded: u32) -> Self {
        VersionFacts { loaded, ..self }
    }
    fn loading(self) -> Self {
        VersionFacts { on_the_way: true, ..self }
    }
    fn failed_on(mut self, pods: &[&str]) -> Self {
        self.failures = pods.iter().map(|pod| failure_of(self.id.as_str(), pod, Reason::ModelLoadFailed)).collect();
        self
    }
    fn loaded_before(self) -> Self {
        VersionFacts { loaded_once: true, ..self }
    }
    /// The storage could not be reached from there.
    fn cut_off_on(self, pods: &[&str]) -> Self {
        let failures = self.failures.iter().cloned().chain(
            pods.iter()
                .map(|pod| Arc::new(Failure { step: Step::Fetch, ..Failure::clone(&failure_of(self.id.as_str(), pod, Reason::ModelLoadFailed)) })),
        );
        VersionFacts { failures: failures.collect(), ..self }
    }
    fn exhausted(self) -> Self {
        VersionFacts { exhausted: true, ..self }
    }
    fn hosted(self, hosting: Hosting) -> Self {
        VersionFacts { hosting, ..self }
    }
}

fn no_runtime(reason: Reason) -> Hosting {
    let message = if reason == Reason::RuntimeNotRecognized { NOT_RECOGNIZED } else { NOT_SUPPORTED };
    Hosting::NoRuntime(NoRuntime { reason, message: message.to_owned() })
}

fn seen(active: VersionFacts, target: Option<VersionFacts>) -> Observed {
    Observed { generation: 1, spec: SpecState::Valid, active: Some(active), target, settled: true }
}

/// `active/target transition available failed/total reason(model)@location`, as the table of the contract has its columns.
fn row(status: &Status) -> String {
    let failure = status.failure.as_ref().map_or("-".to_owned(), |info| {
        let model = info.model.as_ref().map_or("", ModelId::as_str);
        let location = info.location.as_ref().map_or("", Location::as_str);
        let time = info.time.map_or("", |time| if time == UnixMillis(NOW.0 - 500) { "now" } else { "then" });
        format!("{}({model})@{location}:{time}", info.reason)
    });
    format!(
        "{}/{} {} {} {}/{} {failure}",
        status.active.as_str(),
        status.target.map_or("", ModelState::as_str),
        status.transition.as_str(),
        status.available,
        status.failed_copies,
        status.total_copies
    )
}

/// Publishes step after step until there is no more, as the controller does.
fn settled_rows(before: &Status, observed: &Observed) -> Vec<Status> {
    let mut steps = Vec::new();
    let mut before = before.clone();
    loop {
        let moved = status(&before, observed, NOW);
        before = moved.status.clone();
        steps.push(moved.status);
        assert!(steps.len() < 5, "never at rest: {steps:?}");
        if !moved.more {
            return steps;
        }
    }
}

fn words(steps: &[Status]) -> Vec<String> {
    steps.iter().map(row).collect()
}

#[test]
fn the_decision_table_row_by_row() {
    let none = Status::default();
    let waiting = status(&none, &seen(version("A").hosted(Hosting::NoPod), None), EARLIER).status;
    let up = Status { active: ModelState::Loaded, available: true, ..Status::default() };
    // Rows of the contract, in its order. Counts are copies loaded now; rows that upstream got wrong are mended.
    for (case, before, observed, expected) in [
        ("loading", &none, seen(version("A").loading(), None), "Loading/ UpToDate true 0/0 -"),
        ("evicted", &up, seen(version("A"), None), "Standby/ UpToDate true 0/0 -"),
        ("two live copies", &none, seen(version("A").loaded(2), None), "Loaded/ UpToDate true 0/2 -"),
        ("one live, one failed", &none, seen(version("A").loaded(1).failed_on(&["p"]), None), "Loaded/ UpToDate true 1/1 -"),
        (
            "loading after a failed attempt elsewhere",
            &none,
            seen(version("A").loading().failed_on(&["p"]), None),
            "Loading/ UpToDate true 1/0 ModelLoadFailed(A)@p:then",
        ),
        ("standby with an old failure", &up, seen(version("A").failed_on(&["p"]), None), "Standby/ UpToDate true 1/0 ModelLoadFailed(A)@p:then"),
        (
            "two failed copies",
            &none,
            seen(version("A").failed_on(&["p", "q"]).exhausted(), None),
            "FailedToLoad/ UpToDate false 2/0 ModelLoadFailed(A)@p:then",
        ),
        ("runtime without a pod", &none, seen(version("A").hosted(Hosting::NoPod), None), "Loading/ UpToDate false 0/0 RuntimeUnhealthy(A)@:now"),
        ("... then loading", &waiting, seen(version("A").loading(), None), "Loading/ UpToDate false 0/0 RuntimeUnhealthy(A)@:then"),
        ("... then loaded", &waiting, seen(version("A").loaded(1), None), "Loaded/ UpToDate true 0/1 -"),
        ("... then standby: the runtime is back", &waiting, seen(version("A"), None), "Standby/ UpToDate true 0/0 -"),
        (
            "no runtime supports it",
            &none,
            seen(version("A").hosted(no_runtime(Reason::NoSupportingRuntime)), None),
            "FailedToLoad/ UpToDate false 0/0 NoSupportingRuntime(A)@:now",
        ),
        (
            "no runtime of that name",
            &none,
            seen(version("A").hosted(no_runtime(Reason::RuntimeNotRecognized)), None),
            "FailedToLoad/ UpToDate false 0/0 RuntimeNotRecognized(A)@:now",
        ),
        ("update, target loading", &up, seen(version("A").loaded(1), Some(version("T").loading())), "Loaded/Loading InProgress true 0/1 -"),
        (
            "update, target failed",
            &up,
            seen(version("A").loaded(1), Some(version("T").failed_on(&["p"]).exhausted())),
            "Loaded/FailedToLoad BlockedByFailedLoad true 1/1 ModelLoadFailed(T)@p:then",
        ),
        (
            "update, target retrying",
            &up,
            seen(version("A").loaded(1), Some(version("T").loading().failed_on(&["p"]))),
            "Loaded/Loading InProgress true 1/1 ModelLoadFailed(T)@p:then",
        ),
        (
            "update, target's runtime without a pod: the old one serves",
            &up,
            seen(version("A").loaded(1), Some(version("T").hosted(Hosting::NoPod))),
            "Loaded/Loading BlockedByFailedLoad true 0/1 RuntimeUnhealthy(T)@:now",
        ),
        (
            "update, no runtime for the target",
            &up,
            seen(version("A").loaded(1), Some(version("T").hosted(no_runtime(Reason::NoSupportingRuntime)))),
            "Loaded/FailedToLoad BlockedByFailedLoad true 0/1 NoSupportingRuntime(T)@:now",
        ),
        (
            "update of a failed one, target loading",
            &none,
            seen(version("A").failed_on(&["p"]).exhausted(), Some(version("T").loading())),
            "FailedToLoad/Loading InProgress false 1/0 -",
        ),
        (
            "both failed",
            &none,
            seen(version("A").failed_on(&["p"]).exhausted(), Some(version("T").failed_on(&["q"]).exhausted())),
            "FailedToLoad/FailedToLoad BlockedByFailedLoad false 2/0 ModelLoadFailed(T)@q:then",
        ),
        (
            "invalid, never registered",
            &none,
            Observed { generation: 1, spec: SpecState::Invalid("spec is missing".into()), active: None, target: None, settled: true },
            "Pending/ InvalidSpec false 0/0 InvalidPredictorSpec()@:",
        ),
        (
            "invalid, registered before",
            &up,
            Observed { spec: SpecState::Invalid("spec is missing".into()), ..seen(version("A").loaded(1), None) },
            "Loaded/ InvalidSpec true 0/1 InvalidPredictorSpec(A)@:",
        ),
        (
            "the name is taken",
            &none,
            Observed { generation: 1, spec: SpecState::NameTaken("Predictor a/m holds it".into()), active: None, target: None, settled: true },
            "Pending/ UpToDate false 0/0 InvalidPredictorSpec()@:",
        ),
        (
            "the runtime died: it is not the model's fault",
            &up,
            seen(VersionFacts { failures: vec![failure_of("A", "p", Reason::RuntimeUnhealthy)], ..version("A").exhausted() }, None),
            "Loading/ UpToDate false 0/0 RuntimeUnhealthy(A)@p:then",
        ),
        (
            "the storage is away: what was loaded before is available as ever",
            &up,
            seen(version("A").loaded_before().cut_off_on(&["p"]).exhausted(), None),
            "Standby/ UpToDate true 1/0 ModelLoadFailed(A)@p:then",
        ),
        (
            "the storage is away: what never was loaded has failed",
            &none,
            seen(version("A").cut_off_on(&["p"]).exhausted(), None),
            "FailedToLoad/ UpToDate false 1/0 ModelLoadFailed(A)@p:then",
        ),
        (
            "one pod cannot reach the storage, another one found a bad model",
            &up,
            seen(version("A").loaded_before().failed_on(&["q"]).cut_off_on(&["p"]).exhausted(), None),
            "FailedToLoad/ UpToDate false 2/0 ModelLoadFailed(A)@q:then",
        ),
        (
            "loaded, although its runtime was deleted since",
            &up,
            seen(version("A").loaded(1).hosted(no_runtime(Reason::RuntimeNotRecognized)), None),
            "Loaded/ UpToDate true 0/1 -",
        ),
    ] {
        let steps = settled_rows(before, &observed);
        assert_eq!(row(steps.last().expect("one at least")), expected, "{case}");
    }
}

#[test]
fn a_load_of_a_millisecond_still_shows_each_documented_step() {
    let standby = Status { active: ModelState::Standby, available: true, ..Status::default() };
    let failed = Status { active: ModelState::FailedToLoad, ..Status::default() };
    for before in [Status::default(), standby, failed] {
        let steps = settled_rows(&before, &seen(version("A").loaded(1), None));
        assert_eq!(words(&steps), ["Loading/ UpToDate true 0/0 -", "Loaded/ UpToDate true 0/1 -"]);
    }
    let steps = settled_rows(&Status::default(), &seen(version("A").failed_on(&["p"]).exhausted(), None));
    assert_eq!(words(&steps), ["Loading/ UpToDate true 0/0 -", "FailedToLoad/ UpToDate false 1/0 ModelLoadFailed(A)@p:then"]);
    // An update whose target loads or fails at once.
    let up = Status { active: ModelState::Loaded, available: true, ..Status::default() };
    let steps = settled_rows(&up, &seen(version("A").loaded(1), Some(version("T").failed_on(&["p"]).exhausted())));
    assert_eq!(words(&steps), ["Loaded/Loading InProgress true 0/1 -", "Loaded/FailedToLoad BlockedByFailedLoad true 1/1 ModelLoadFailed(T)@p:then"]);
    // The target becomes the active version in one step.
    let steps = settled_rows(steps.first().expect("a step"), &seen(version("T").loaded(1), None));
    assert_eq!(words(&steps), ["Loaded/ UpToDate true 0/1 -"]);
}

#[test]
fn a_blocked_target_that_gives_way_to_another_is_shown_on_its_way_first() {
    let nowhere = |id| version(id).hosted(no_runtime(Reason::NoSupportingRuntime));
    let up = Status { active: ModelState::Loaded, available: true, total_copies: 1, ..Status::default() };
    let first = settled_rows(&up, &seen(version("A").loaded(1), Some(nowhere("B"))));
    let blocked = first.last().expect("a step");
    let again = settled_rows(blocked, &seen(version("A").loaded(1), Some(nowhere("B"))));
    assert_eq!(words(&again), ["Loaded/FailedToLoad BlockedByFailedLoad true 0/1 NoSupportingRuntime(B)@:now"]);
    let another = settled_rows(blocked, &seen(version("A").loaded(1), Some(nowhere("C"))));
    let expected = ["Loaded/Loading InProgress true 0/1 -", "Loaded/FailedToLoad BlockedByFailedLoad true 0/1 NoSupportingRuntime(C)@:now"];
    assert_eq!(words(&another), expected);
}

#[test]
fn what_no_pod_ever_tried_has_failed_without_having_been_on_its_way() {
    let nowhere = seen(version("A").hosted(no_runtime(Reason::NoSupportingRuntime)), None);
    let steps = settled_rows(&Status::default(), &nowhere);
    assert_eq!(words(&steps), ["FailedToLoad/ UpToDate false 0/0 NoSupportingRuntime(A)@:now"]);
}

#[test]
fn a_failure_is_told_in_the_words_of_its_cause_and_another_cause_has_its_own_time() {
    let message = |observed: &Observed| settled_rows(&Status::default(), observed).pop().and_then(|status| status.failure).map(|info| info.message);
    let in_pod = version("A").failed_on(&["p"]).exhausted();
    let words_of_pod = in_pod.failures[0].message.clone();
    assert!(!words_of_pod.is_empty());
    assert_eq!(message(&seen(in_pod, None)), Some(words_of_pod));
    assert_eq!(message(&seen(version("A").hosted(Hosting::NoPod), None)), Some(WAITING_FOR_POD.to_owned()));
    let nowhere = |message: &str| {
        let none = NoRuntime { reason: Reason::NoSupportingRuntime, message: message.to_owned() };
        seen(version("A").hosted(Hosting::NoRuntime(none)), None)
    };
    assert_eq!(message(&nowhere("none lists it")), Some("none lists it".to_owned()));
    let first = status(&Status::default(), &nowhere("none lists it"), EARLIER).status;
    let time = |moved: Moved| moved.status.failure.and_then(|info| info.time);
    assert_eq!(time(status(&first, &nowhere("none lists it"), NOW)), first.failure.as_ref().and_then(|info| info.time));
    assert_eq!(time(status(&first, &nowhere("another message"), NOW)), Some(UnixMillis(NOW.0 - 500)));
}

#[test]
fn before_every_pod_has_reported_only_what_is_wrong_with_a_new_resource_is_told() {
    let invalid = |active: Option<VersionFacts>| Observed {
        generation: 1,
        spec: SpecState::Invalid("spec is missing".into()),
        active,
        target: None,
        settled: false,
    };
    assert_eq!(status(&Status::default(), &invalid(None), NOW).status.transition, Transition::InvalidSpec);
    let up = Status { active: ModelState::Loaded, available: true, total_copies: 1, ..Status::default() };
    assert_eq!(status(&up, &invalid(Some(version("A"))), NOW).status, up);
    let unregistered = Observed { spec: SpecState::Valid, ..invalid(None) };
    assert_eq!(status(&up, &unregistered, NOW).status, up);
}

#[test]
fn before_every_pod_has_reported_a_status_is_only_raised() {
    let up = Status { active: ModelState::Loaded, available: true, total_copies: 1, ..Status::default() };
    let unsettled = |observed: Observed| Observed { settled: false, ..observed };
    for observed in
        [seen(version("A"), None), seen(version("A").hosted(Hosting::NoPod), None), seen(version("A").failed_on(&["p"]).exhausted(), None)]
    {
        assert_eq!(status(&up, &unsettled(observed), NOW), Moved { status: up.clone(), more: false });
    }
    let standby = Status { active: ModelState::Standby, available: true, ..Status::default() };
    let raised = settled_rows(&standby, &unsettled(seen(version("A").loaded(1), None)));
    assert_eq!(raised.last().map(|status| status.active), Some(ModelState::Loaded));
}

#[test]
fn a_status_is_evidence_of_a_load_only_for_the_generation_that_it_is_about() {
    use ModelState::{FailedToLoad, Loaded, Loading, Pending, Standby};
    for (about, active, target, expected) in [
        (Some(2), Loaded, None, true),
        (Some(2), Standby, None, true),
        (Some(2), Loading, None, false),
        (Some(2), Pending, None, false),
        (Some(2), FailedToLoad, None, false),
        // An edit that nobody has looked at yet, and a status of a release that did not say.
        (Some(1), Loaded, None, false),
        (None, Loaded, None, false),
        // The target took over, and nobody could say so any more.
        (Some(2), Standby, Some(Loading), false),
        (Some(2), Loaded, Some(Loaded), true),
    ] {
        let status = Status { observed_generation: about, active, target, ..Status::default() };
        assert_eq!(status.shows_loaded(2), expected, "{status:?}");
    }
    let moved = status(&Status::default(), &Observed { generation: 7, ..seen(version("A").loading(), None) }, NOW);
    assert_eq!(moved.status.observed_generation, Some(7));
    let unsettled = Observed { generation: 8, settled: false, ..seen(version("A"), None) };
    assert_eq!(status(&moved.status, &unsettled, NOW).status.observed_generation, Some(7), "what it says is not about the new spec yet");
}

fn any_version(id: &'static str) -> impl Strategy<Value = VersionFacts> {
    let hosting = prop_oneof![4 => Just(Hosting::Pods), 1 => Just(Hosting::NoPod), 1 => Just(no_runtime(Reason::NoSupportingRuntime))];
    let reasons = prop_oneof![4 => Just(Reason::ModelLoadFailed), 1 => Just(Reason::RuntimeUnhealthy)];
    (0u32..3, any::<[bool; 3]>(), 0usize..3, any::<bool>(), hosting, reasons).prop_map(
        move |(loaded, [on_the_way, loaded_once, away], failures, exhausted, hosting, reason)| {
            let pods = &["p", "q"][..failures.min(2)];
            let version = VersionFacts { loaded_once, loaded, on_the_way, exhausted, hosting, ..version(id) };
            match reason {
                Reason::ModelLoadFailed if away => version.cut_off_on(pods),
                reason => VersionFacts { failures: pods.iter().map(|pod| failure_of(id, pod, reason)).collect(), ..version },
            }
        },
    )
}

fn any_observed() -> impl Strategy<Value = Observed> {
    let spec = prop_oneof![6 => Just(SpecState::Valid), 1 => Just(SpecState::Invalid("x".into())), 1 => Just(SpecState::NameTaken("y".into()))];
    (spec, prop::option::weighted(0.9, any_version("A")), prop::option::of(any_version("T")), prop::bool::weighted(0.9)).prop_map(
        |(spec, active, target, settled)| {
            let target = target.filter(|_| active.is_some() && spec == SpecState::Valid);
            let active = active.filter(|_| !matches!(spec, SpecState::NameTaken(_)));
            Observed { generation: 1, spec, target: target.filter(|_| active.is_some()), active, settled }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn statuses_come_to_rest_move_in_documented_order_and_never_change_by_themselves(observations in prop::collection::vec(any_observed(), 1..5)) {
        let mut before = Status::default();
        for observed in observations {
            let steps = settled_rows(&before, &observed);
            for step in &steps {
                use ModelState::{FailedToLoad, Loaded, Loading, Pending, Standby};
                let switched = matches!(before.target, Some(Loading | Loaded)) && step.target.is_none();
                prop_assert!(!(step.active == Loaded && matches!(before.active, Pending | Standby | FailedToLoad)) || switched, "{} after {}", row(step), row(&before));
                prop_assert!(step.target.is_none() || before.target.is_some() || step.target == Some(Loading), "{} after {}", row(step), row(&before));
                // Only a valid spec with nothing to replace is up to date, and only a replacement has a target.
                if observed.settled && observed.spec == SpecState::Valid {
                    prop_assert_eq!(step.target.is_some(), step.transition != Transition::UpToDate);
                }
                if observed.settled {
                    prop_assert!(!step.available || !matches!(step.active, Pending | FailedToLoad));
                    prop_assert!(!(step.transition == Transition::BlockedByFailedLoad && step.failure.is_none()));
                }
                before = step.clone();
            }
            let later = status(&before, &observed, NOW.after(std::time::Duration::from_secs(3600)));
            prop_assert_eq!(&later.status, &before, "the same facts an hour later");
            if observed.settled && observed.active.as_ref().is_some_and(|active| active.loaded > 0) {
                prop_assert!(before.available, "what serves is available");
            }
        }
    }
}
