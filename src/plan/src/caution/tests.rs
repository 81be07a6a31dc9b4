use std::collections::BTreeSet;

use berth_types::{Failure, Reason, Retry, Step};
use proptest::prelude::*;

use super::*;
use crate::Suspects;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

fn model(name: &str) -> ModelId {
    ModelId::new(name).expect("a test's id is valid")
}

fn pod(name: &str) -> PodId {
    PodId::new(name).expect("a test's id is valid")
}

fn ago(seconds: u64) -> UnixMillis {
    UnixMillis(NOW.0 - seconds * 1000)
}

/// Deaths alone and together, the last one so many seconds ago.
fn died(deaths: u32, together: u32, seconds: u64) -> Suspicion {
    Suspicion { model: model("m"), deaths, together, last: ago(seconds), failure: None }
}

fn found(seconds: u64) -> Suspicion {
    let failure = Failure {
        reason: Reason::ModelLoadFailed,
        step: Step::Load,
        location: Location::of_pod_name("pod"),
        model: model("m"),
        message: "the runtime exited".to_owned(),
        time: ago(seconds),
        retry: Retry::AfterChange,
    };
    Suspicion { failure: Some(Arc::new(failure)), ..died(2, 0, seconds) }
}

fn told(suspicions: &[(&str, Suspicion)]) -> BTreeMap<PodId, Told> {
    let mut told = BTreeMap::new();
    for (name, suspicion) in suspicions {
        let location = Location::of_pod_name(&format!("at-{name}"));
        told.insert(pod(name), Told { location, suspicions: [suspicion.clone()].into() });
    }
    told
}

#[test]
fn after_one_death_one_pod_tries_it_and_after_two_nobody_does() {
    // What each of three pods is told: nothing, to hold off, or that it is the one.
    const NOTHING: [&str; 3] = ["", "", ""];
    const VERDICT: [&str; 3] = ["is it", "is it", "is it"];
    for (case, suspicions, expected) in [
        ("one death on a", vec![("a", died(1, 0, 1))], ["", "off", "off"]),
        ("one of several that loaded", vec![("b", died(0, 1, 1))], ["off", "", "off"]),
        ("twice one of several on one pod", vec![("b", died(0, 2, 1))], ["off", "", "off"]),
        ("one of several on two pods: where it was first", vec![("a", died(0, 1, 1)), ("c", died(0, 1, 2))], ["off", "off", ""]),
        ("one of several on two pods at once", vec![("b", died(0, 1, 1)), ("c", died(0, 1, 1))], ["off", "", "off"]),
        ("of several, then alone", vec![("b", died(1, 1, 1))], VERDICT),
        ("of several, then alone elsewhere", vec![("a", died(1, 0, 1)), ("b", died(0, 1, 9))], VERDICT),
        ("two deaths on a", vec![("a", died(2, 0, 1))], VERDICT),
        ("one each on two pods", vec![("a", died(1, 0, 1)), ("b", died(1, 0, 1))], VERDICT),
        ("a pod has found it", vec![("c", found(1))], VERDICT),
        ("the trial is over and nobody has tried", vec![("a", died(1, 0, 180))], NOTHING),
        ("the trial is not over", vec![("a", died(1, 0, 179))], ["", "off", "off"]),
        ("the case is nearly over", vec![("a", died(2, 0, 899))], VERDICT),
        ("the case is over", vec![("a", died(2, 0, 900))], NOTHING),
        ("a verdict of long ago", vec![("a", found(900))], NOTHING),
        ("a second death long after the first", vec![("a", died(1, 0, 900)), ("b", died(1, 0, 1))], ["off", "", "off"]),
        ("a second death a while after the first", vec![("a", died(1, 0, 899)), ("b", died(1, 0, 1))], VERDICT),
        ("no death at all", vec![("a", died(0, 0, 1))], NOTHING),
    ] {
        let told = told(&suspicions);
        let said = ["a", "b", "c"].map(|to| match &cautions(&told, &pod(to), NOW)[..] {
            [] => "",
            [one] if one.verdict => "is it",
            [_] => "off",
            more => panic!("{case}: {more:?}"),
        });
        assert_eq!(said, expected, "{case}");
        let may = ["a", "b", "c"].map(|to| may_load(&told, &model("m"), &pod(to), NOW));
        assert_eq!(may, expected.map(str::is_empty), "{case}");
        assert!(may_load(&told, &model("other"), &pod("a"), NOW), "{case}");
    }
}

#[test]
fn a_caution_says_where_it_was_how_often_and_until_when_it_holds() {
    let say = |suspicions: &[(&str, Suspicion)]| cautions(&told(suspicions), &pod("z"), NOW).remove(0);
    let one = say(&[("a", died(1, 0, 60))]);
    assert_eq!((&*one.message, one.deaths), ("the runtime has ended with it: once on at-a; it is tried on at-a first", 1));
    assert_eq!(one.until, NOW.after(TRIAL - Duration::from_secs(60)));
    let more = say(&[("a", died(1, 1, 60)), ("b", died(1, 0, 90))]);
    assert_eq!((&*more.message, more.deaths), ("the runtime has ended with it: 2 times on at-a, once on at-b", 3));
    assert_eq!(more.until, NOW.after(CASE - Duration::from_secs(60)));
    // A pod whose clock is ahead keeps nobody waiting longer than others do.
    let mut ahead = died(2, 0, 0);
    ahead.last = NOW.after(Duration::from_secs(3600));
    assert_eq!(say(&[("a", ahead)]).until, NOW.after(CASE));
}

/// Three pods that obey what they are told, and a model among good ones that ends the runtime whenever it is loaded.
struct Mesh {
    pods: Vec<(PodId, Suspects, BTreeSet<ModelId>)>,
    told: BTreeMap<PodId, Told>,
    verdicts: BTreeMap<ModelId, Arc<Failure>>,
    now: UnixMillis,
    deaths: usize,
}

const KILLER: &str = "m0";

impl Mesh {
    fn new() -> Self {
        let pods = ["a", "b", "c"].map(|name| (pod(name), Suspects::default(), BTreeSet::new())).into();
        Mesh { pods, told: BTreeMap::new(), verdicts: BTreeMap::new(), now: NOW, deaths: 0 }
    }

    /// A pod loads these at once, as far as it may, while it computes for those that it has loaded before.
    fn load(&mut self, which: usize, models: &BTreeSet<u8>, busy: &BTreeSet<u8>) {
        let (name, suspects, loaded) = &mut self.pods[which];
        let models = models.iter().map(|number| model(&format!("m{number}")));
        let mut loading: Vec<ModelId> = models.filter(|model| may_load(&self.told, model, name, self.now) && !loaded.contains(model)).collect();
        if let Some(alone) = loading.iter().position(|model| suspects.loads_alone(model, self.now)) {
            loading = vec![loading.swap_remove(alone)];
        }
        if loading.contains(&model(KILLER)) {
            self.deaths += 1;
            let computing: Vec<ModelId> = busy.iter().map(|number| model(&format!("m{number}"))).filter(|model| loaded.contains(model)).collect();
            loaded.clear();
            if let Some(found) = suspects.died(self.now, &loading, &computing, &[]) {
                self.verdicts.extend(self::found(0).failure.map(|failure| (found, failure)));
            }
        } else {
            for model in loading {
                suspects.acquit(&model);
                loaded.insert(model);
            }
        }
        let failure = |suspicion: Suspicion| Suspicion { failure: self.verdicts.get(&suspicion.model).cloned(), ..suspicion };
        let suspicions = suspects.suspicions(self.now).map(failure).collect();
        self.told.insert(name.clone(), Told { location: Location::of_pod_name(name.as_str()), suspicions });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
    #[test]
    fn a_model_that_ends_the_runtime_at_each_load_does_so_twice_in_all_and_no_good_model_is_given_up(
        steps in prop::collection::vec((0..3_usize, prop::collection::btree_set(0..6_u8, 1..4), prop::collection::btree_set(1..6_u8, 0..5), 0..20_u64), 1..45),
    ) {
        let mut mesh = Mesh::new();
        for (which, models, busy, seconds) in steps {
            mesh.now = mesh.now.after(Duration::from_secs(seconds));
            mesh.load(which, &models, &busy);
            for (to, suspects, loaded) in &mut mesh.pods {
                let cautions = cautions(&mesh.told, to, mesh.now);
                for caution in &cautions {
                    suspects.is_suspected_elsewhere(&caution.model, mesh.now);
                }
                let blamed: Vec<_> = cautions.into_iter().filter(|caution| caution.verdict).collect();
                loaded.retain(|model| blamed.iter().all(|caution| caution.model != *model));
                prop_assert!(blamed.iter().all(|caution| caution.model.as_str() == KILLER), "{blamed:?}");
                prop_assert_eq!(blamed.is_empty(), mesh.deaths < 2, "{} deaths", mesh.deaths);
            }
            prop_assert!(mesh.deaths <= 2, "{} deaths", mesh.deaths);
        }
    }
}
