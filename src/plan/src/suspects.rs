//! Which model ends the runtime: judged by what was loading and what was computing when it died.
//!
//! Every such model is a suspect as long as it is among those of each death; when it is the only one left, after two deaths, it
//! is the one. One that takes long cannot be told from models that are always busy in this way: after three deaths in a row at
//! each of which it was the only one loading it is the one, too, and of those that computed the one that alone has not answered
//! any request since it was loaded again, at both deaths after the first. So that the second death can tell, suspects are kept apart at
//! first: one that was loading loads alone, and of those that computed one computes at a time. A load that ends well is above
//! suspicion; requests that do are not, since some models end the runtime with some requests only. Deaths more than 15 minutes
//! apart have nothing to do with each other, and as long as that after the last one nobody is a suspect any more.
//!
//! Who ended it twice does not get two more: of such a model the next death is proof enough, until it has shown otherwise.
//!
//! What the other pods are told ([`Suspects::suspicions`]) is counted apart: each death at which a model was the only one being
//! loaded, or the only one that computed while none was; and each at which it was one of several that were being loaded. A
//! death whose culprit is found counts against the culprit alone. These deaths need not be in a row: that there was one without
//! it is no excuse. A load that ends well takes back what its loads did, and the verdict.

use std::collections::BTreeMap;

use berth_types::{ModelId, Suspicion, UnixMillis};

/// What the deaths of the runtime so far say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// Those that were there at each death of this case, and what they did at the last one.
    suspects: BTreeMap<ModelId, Did>,
    /// When it died last.
    last: Option<UnixMillis>,
    /// Models that have ended it as they loaded, and when they last did.
    loaders: BTreeMap<ModelId, UnixMillis>,
    /// Models that have ended it as they computed, and when they last did.
    computers: BTreeMap<ModelId, UnixMillis>,
    /// What the other pods are told.
    evidence: BTreeMap<ModelId, Evidence>,
    /// Models that other pods suspect, and when that was heard last.
    elsewhere: BTreeMap<ModelId, UnixMillis>,
}

/// Deaths of the runtime that speak against a model more than against others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Evidence {
    /// At which only it was being loaded.
    loading: u32,
    /// At which it was one of several being loaded.
    together: u32,
    /// At which only it computed, and none was being loaded.
    computing: u32,
    /// It was found to be the one.
    found: bool,
    /// The last one.
    last: UnixMillis,
}

impl Evidence {
    fn counts(&self, now: UnixMillis) -> bool {
        self.deaths() + self.together > 0 && now.0.saturating_sub(self.last.0) <= CASE
    }

    fn deaths(&self) -> u32 {
        (self.loading + self.computing).max(if self.found { 2 } else { 0 })
    }
}

/// What a model did when the runtime died.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Did {
    load: bool,
    compute: bool,
    /// Deaths in a row, this one included, at which it was loading.
    loads: u32,
    /// Deaths in a row, this one included, at which it was the only one of those that computed that had answered nothing.
    fruitless: u32,
}

/// Deaths further apart than this, in milliseconds, have nothing to do with each other.
const CASE: u64 = crate::caution::CASE.as_secs() * 1000;
/// So long, in milliseconds, a model that has ended the runtime is known for it.
const KNOWN: u64 = 60 * 60 * 1000;
/// A model that was the only one loading at so many deaths in a row is the one, whatever else was there. So is one that was
/// the only one without an answer, which cannot be said of the first of them.
const IN_A_ROW: u32 = 3;

impl Suspects {
    /// The runtime has died: `loading` were being loaded, requests on `computing` were under way. Of these, `unanswered` are
    /// suspects that have answered no request well since they were loaded. Answers which of them ended it, if that is certain;
    /// it is a suspect no longer.
    pub fn died(&mut self, now: UnixMillis, loading: &[ModelId], computing: &[ModelId], unanswered: &[ModelId]) -> Option<ModelId> {
        if self.last.replace(now).is_some_and(|last| now.0.saturating_sub(last.0) > CASE) {
            self.suspects.clear();
        }
        for known in [&mut self.loaders, &mut self.computers] {
            known.retain(|_, ended| now.0.saturating_sub(ended.0) <= KNOWN);
        }
        let mut there = BTreeMap::<ModelId, Did>::new();
        for model in loading {
            let before = self.suspects.get(model).map_or(0, |did| did.loads);
            *there.entry(model.clone()).or_default() = Did { load: true, loads: before + 1, ..Did::default() };
        }
        computing.iter().for_each(|model| there.entry(model.clone()).or_default().compute = true);
        if let [only] = unanswered
            && let Some(did) = there.get_mut(only)
        {
            did.fruitless = self.suspects.get(only).map_or(0, |did| did.fruitless) + 1;
        }
        if there.is_empty() {
            return None;
        }
        let found = self.judge(now, there, loading);
        self.note(now, loading, computing, found.as_ref());
        found
    }

    /// Who of those that were there ended it.
    fn judge(&mut self, now: UnixMillis, mut there: BTreeMap<ModelId, Did>, loading: &[ModelId]) -> Option<ModelId> {
        let has_done_it =
            |(model, did): &(&ModelId, &Did)| did.load && self.loaders.contains_key(*model) || did.compute && self.computers.contains_key(*model);
        let known: Vec<&ModelId> = there.iter().filter(has_done_it).map(|(model, _)| model).collect();
        let again: Vec<&ModelId> = there.keys().filter(|model| self.suspects.contains_key(*model)).collect();
        // Whoever was known before is more likely than who was seen twice.
        let found = [&known, &again].into_iter().find_map(|these| if let [one] = these[..] { Some(one.clone()) } else { None });
        // One that takes long to do it cannot be told from models that are always busy, but for the regularity.
        let regular = || match loading {
            [only] if there.get(only).is_some_and(|did| did.loads >= IN_A_ROW) => Some(only.clone()),
            _ => None,
        };
        let fruitless = || there.iter().find(|(_, did)| did.fruitless + 1 >= IN_A_ROW).map(|(model, _)| model.clone());
        let found = found.or_else(regular).or_else(fruitless);
        if let Some(found) = found {
            self.suspects.clear();
            let ended_as = if there.get(&found).is_some_and(|did| did.load) { &mut self.loaders } else { &mut self.computers };
            ended_as.insert(found.clone(), now);
            return Some(found);
        }
        if !again.is_empty() {
            there.retain(|model, _| self.suspects.contains_key(model));
        }
        self.suspects = there;
        None
    }

    /// Counts what the other pods are told of a death.
    fn note(&mut self, now: UnixMillis, loading: &[ModelId], computing: &[ModelId], found: Option<&ModelId>) {
        self.evidence.retain(|_, evidence| evidence.counts(now));
        let mut against = |model: &ModelId, count: fn(&mut Evidence) -> &mut u32| {
            let evidence = self.evidence.entry(model.clone()).or_default();
            *count(evidence) += 1;
            evidence.last = now;
        };
        match (found, loading, computing) {
            (Some(found), ..) => {
                against(found, if loading.contains(found) { |evidence| &mut evidence.loading } else { |evidence| &mut evidence.computing });
                for (model, evidence) in &mut self.evidence {
                    // Whoever was loaded beside it was loaded beside it.
                    (evidence.together, evidence.found) = (0, evidence.found || model == found);
                }
                self.evidence.retain(|_, evidence| evidence.counts(now));
            }
            (None, [only], _) => against(only, |evidence| &mut evidence.loading),
            (None, [], [only]) => against(only, |evidence| &mut evidence.computing),
            (None, several, _) => several.iter().for_each(|model| against(model, |evidence| &mut evidence.together)),
        }
    }

    /// What the other pods should know now, by model. The verdicts are the caller's to add.
    pub fn suspicions(&self, now: UnixMillis) -> impl Iterator<Item = Suspicion> {
        self.evidence.iter().filter(move |(_, evidence)| evidence.counts(now)).map(|(model, evidence)| Suspicion {
            model: model.clone(),
            deaths: evidence.deaths(),
            together: evidence.together,
            last: evidence.last,
            failure: None,
        })
    }

    /// Whether the runtime has died lately in a way of which the other pods were told for the sake of `model`.
    #[must_use]
    pub fn has_seen_die(&self, model: &ModelId, now: UnixMillis) -> bool {
        self.evidence.get(model).is_some_and(|evidence| evidence.counts(now))
    }

    /// Another pod suspects `model`: its loads are kept apart here, too.
    pub fn is_suspected_elsewhere(&mut self, model: &ModelId, now: UnixMillis) {
        self.elsewhere.retain(|_, heard| now.0.saturating_sub(heard.0) <= CASE);
        self.elsewhere.insert(model.clone(), now);
    }

    /// The deaths of other pods say that `model` is the one: its next one here is proof enough.
    pub fn convict(&mut self, model: &ModelId, now: UnixMillis) {
        for known in [&mut self.loaders, &mut self.computers] {
            known.insert(model.clone(), now);
        }
    }

    /// Whether a load of `model` must have the runtime to itself.
    #[must_use]
    pub fn loads_alone(&self, model: &ModelId, now: UnixMillis) -> bool {
        let loaded = |evidence: &Evidence| evidence.counts(now) && evidence.loading + evidence.together > 0;
        self.did(model, now).is_some_and(|did| did.load)
            || is_known(&self.loaders, model, now)
            || self.evidence.get(model).is_some_and(loaded)
            || self.elsewhere.get(model).is_some_and(|heard| now.0.saturating_sub(heard.0) <= CASE)
    }

    /// Whether `model` should compute while no other suspect does.
    #[must_use]
    pub fn computes_alone(&self, model: &ModelId, now: UnixMillis) -> bool {
        self.did(model, now).is_some_and(|did| did.compute) || is_known(&self.computers, model, now)
    }

    /// What a suspect did, as long as the case lasts.
    fn did(&self, model: &ModelId, now: UnixMillis) -> Option<&Did> {
        let last = self.last.filter(|last| now.0.saturating_sub(last.0) <= CASE);
        last.and_then(|_open| self.suspects.get(model))
    }

    /// `model` has loaded well: its loads are above suspicion.
    pub fn acquit(&mut self, model: &ModelId) {
        self.loaders.remove(model);
        self.elsewhere.remove(model);
        if let Some(evidence) = self.evidence.get_mut(model) {
            *evidence = Evidence { computing: evidence.computing, last: evidence.last, ..Evidence::default() };
            if evidence.computing == 0 {
                self.evidence.remove(model);
            }
        }
        if let Some(did) = self.suspects.get_mut(model) {
            did.load = false;
            if !did.compute {
                self.suspects.remove(model);
            }
        }
    }

    /// `model` has answered requests since it was found to end the runtime.
    pub fn has_computed_well(&mut self, model: &ModelId) {
        self.computers.remove(model);
    }

    /// `model` is gone for good.
    pub fn forget(&mut self, model: &ModelId) {
        self.suspects.remove(model);
        self.loaders.remove(model);
        self.computers.remove(model);
        self.evidence.remove(model);
        self.elsewhere.remove(model);
    }
}

fn is_known(ended: &BTreeMap<ModelId, UnixMillis>, model: &ModelId, now: UnixMillis) -> bool {
    ended.get(model).is_some_and(|ended| now.0.saturating_sub(ended.0) <= KNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(names: &[&str]) -> Vec<ModelId> {
        names.iter().map(|name| ModelId::new(name).expect("tests use valid ids")).collect()
    }

    /// Deaths a millisecond apart: who was loading, who was computing, and who it is found to be.
    fn judge(suspects: &mut Suspects, case: &str, deaths: &[(&[&str], &[&str], Option<&str>)]) {
        for (number, (loading, computing, expected)) in deaths.iter().enumerate() {
            let found = suspects.died(UnixMillis(1), &models(loading), &models(computing), &[]);
            assert_eq!(found.as_ref().map(ModelId::as_str), *expected, "{case}, death {}", number + 1);
        }
    }

    #[test]
    fn the_only_model_that_was_there_at_two_deaths_is_the_one() {
        const K: Option<&str> = Some("killer");
        for (case, deaths) in [
            ("it loaded alone, twice", &[(&["killer"][..], &[][..], None), (&["killer"], &[], K)][..]),
            ("beside others, then alone", &[(&["good", "killer"], &[], None), (&["killer"], &[], K)]),
            ("requests on others are no excuse", &[(&["killer"], &[], None), (&["killer"], &["a", "b"], K)]),
            ("two together, twice", &[(&["a", "killer"], &[], None), (&["a", "killer"], &[], None), (&["killer"], &[], K)]),
            ("it computed, twice", &[(&[], &["killer"], None), (&[], &["killer"], K)]),
            ("others did, too", &[(&[], &["a", "killer", "b"], None), (&[], &["b", "killer"], None), (&[], &["killer", "c"], K)]),
            ("another one loaded at the first death", &[(&["a"], &["killer"], None), (&[], &["killer", "b"], K)]),
            ("others loaded at both deaths", &[(&["a"], &["killer"], None), (&["b"], &["killer"], K)]),
            ("one loaded at both deaths, too", &[(&["a"], &["killer"], None), (&["a"], &["killer"], None), (&[], &["killer"], K)]),
            ("nothing was there between", &[(&[], &["killer"], None), (&[], &[], None), (&[], &["killer"], K)]),
            (
                "it takes long to load, beside one that is always busy",
                &[(&["killer"], &["hot"], None), (&["killer"], &["hot"], None), (&["killer"], &["hot"], K)],
            ),
            ("not each time", &[(&["a"], &["hot"], None), (&["a"], &["hot"], None), (&[], &["hot", "a"], None), (&["a"], &["hot"], None)]),
            ("nobody was there twice in a row", &[(&[], &["a"], None), (&[], &["b"], None), (&[], &["a"], None)]),
        ] {
            judge(&mut Suspects::default(), case, deaths);
        }
    }

    #[test]
    fn of_models_that_always_compute_the_one_that_never_answers_is_the_one_at_the_third_death() {
        const ALL: &[&str] = &["busy", "killer", "slow"];
        let (one, two, none) = (&["killer"][..], &["killer", "slow"][..], &[][..]);
        for (case, unanswered, expected) in [
            ("it never answers", [none, one, one], [None, None, Some("killer")]),
            ("nor does another one, at first", [none, two, one], [None, None, None]),
            ("nor does another one, later", [none, one, two], [None, None, None]),
            ("it answers now and then", [none, one, none], [None, None, None]),
            ("another one in turn", [none, one, &["slow"]], [None, None, None]),
        ] {
            let mut suspects = Suspects::default();
            let found = unanswered.map(|unanswered| suspects.died(UnixMillis(1), &[], &models(ALL), &models(unanswered)));
            assert_eq!(found.each_ref().map(|found| found.as_ref().map(ModelId::as_str)), expected, "{case}");
        }
    }

    #[test]
    fn suspects_are_kept_apart_by_what_they_did_until_their_loads_end_well() {
        let mut suspects = Suspects::default();
        let [loaded, computed, other] = &models(&["loaded", "computed", "other"])[..] else { panic!("three") };
        judge(&mut suspects, "one each", &[(&["loaded"], &["computed"], None)]);
        let apart = |suspects: &Suspects, model| (suspects.loads_alone(model, UnixMillis(2)), suspects.computes_alone(model, UnixMillis(2)));
        assert_eq!([loaded, computed, other].map(|model| apart(&suspects, model)), [(true, false), (false, true), (false, false)]);
        for model in [loaded, computed] {
            suspects.acquit(model);
            suspects.has_computed_well(model);
        }
        assert_eq!([loaded, computed].map(|model| apart(&suspects, model)), [(false, false), (false, true)], "requests prove little");
        judge(&mut suspects, "its load ended well, so it was the other", &[(&["loaded"], &["computed"], Some("computed"))]);
    }

    #[test]
    fn a_model_that_has_ended_the_runtime_is_the_one_at_its_next_death_for_an_hour_or_until_it_has_shown_otherwise() {
        let [killer, good] = &models(&["killer", "good"])[..] else { panic!("two") };
        let (one, both) = (std::slice::from_ref(killer), [killer.clone(), good.clone()]);
        for (case, later, well, expected) in [
            ("soon", 1, false, Some(killer)),
            ("much later", KNOWN, false, Some(killer)),
            ("too late", KNOWN + 1, false, None),
            ("it did well", 1, true, None),
        ] {
            let (mut loading, mut computing) = (Suspects::default(), Suspects::default());
            judge(&mut loading, case, &[(&["killer"], &[], None), (&["killer"], &[], Some("killer"))]);
            judge(&mut computing, case, &[(&[], &["killer"], None), (&[], &["killer"], Some("killer"))]);
            let apart = |at| (loading.loads_alone(killer, at), computing.computes_alone(killer, at), computing.computes_alone(good, at));
            assert_eq!(apart(UnixMillis(1 + KNOWN)), (true, true, false), "{case}");
            assert_eq!(apart(UnixMillis(2 + KNOWN)), (false, false, false), "{case}");
            if well {
                loading.acquit(killer);
                computing.has_computed_well(killer);
            }
            let now = UnixMillis(1 + later);
            assert_eq!(loading.died(now, one, &both[1..], &[]).as_ref(), expected, "{case}");
            assert_eq!(computing.died(now, &[], &both, &[]).as_ref(), expected, "{case}");
        }
    }

    #[test]
    fn deaths_that_lie_far_apart_accuse_nobody() {
        let (mut suspects, mut now) = (Suspects::default(), UnixMillis(1));
        for _ in 0..4 {
            assert_eq!(suspects.died(now, &models(&["loading"]), &[], &[]), None);
            now.0 += CASE + 1;
            assert_eq!(suspects.died(now, &[], &models(&["computing"]), &[]), None);
            now.0 += CASE + 1;
        }
    }

    #[test]
    fn suspects_are_kept_apart_no_longer_than_their_case_lasts() {
        let (mut suspects, model) = (Suspects::default(), &models(&["a"])[0]);
        judge(&mut suspects, "both at once", &[(&["a"], &["a"], None)]);
        for (at, apart) in [(1, true), (1 + CASE, true), (2 + CASE, false)] {
            let at = UnixMillis(at);
            assert_eq!((suspects.loads_alone(model, at), suspects.computes_alone(model, at)), (apart, apart), "{at:?}");
        }
    }

    #[test]
    fn others_are_told_of_who_was_the_only_one_and_of_who_was_one_of_several_that_were_loaded() {
        for (case, deaths, expected) in [
            ("it loaded alone beside busy ones", &[(&["k"][..], &["a", "b"][..], None)][..], "k 1+0"),
            ("it computed alone", &[(&[], &["k"], None)], "k 1+0"),
            ("several computed", &[(&[], &["k", "a"], None)], ""),
            ("several loaded", &[(&["a", "k"], &["b"], None)], "a 0+1, k 0+1"),
            ("several, then alone beside a busy one", &[(&["a", "k"], &["b"], None), (&["k"], &["b"], None)], "a 0+1, k 1+1"),
            ("several, then it was found: nothing is left against the other", &[(&["a", "k"], &[], None), (&["k"], &[], Some("k"))], "k 2+0"),
            ("found as it computed beside one that was loaded", &[(&[], &["k"], None), (&["a"], &["k"], Some("k"))], "k 2+0"),
            ("found among several", &[(&["k", "a"], &["b"], None), (&["k", "c"], &["d"], Some("k"))], "k 2+0"),
            ("one without it between", &[(&["k"], &[], None), (&["a"], &[], None), (&["k"], &[], None)], "a 1+0, k 2+0"),
        ] {
            let mut suspects = Suspects::default();
            judge(&mut suspects, case, deaths);
            let told = |now| -> Vec<String> { suspects.suspicions(now).map(|it| format!("{} {}+{}", it.model, it.deaths, it.together)).collect() };
            assert_eq!(told(UnixMillis(1 + CASE)).join(", "), expected, "{case}");
            assert!(told(UnixMillis(2 + CASE)).is_empty(), "{case}: no longer than the case lasts");
        }
    }

    #[test]
    fn a_load_that_ends_well_takes_back_what_others_were_told_of_loads() {
        let mut suspects = Suspects::default();
        judge(
            &mut suspects,
            "each in its way",
            &[(&["a", "b"], &[], None), (&[], &["b"], Some("b")), (&["c"], &["b"], Some("b")), (&["d"], &[], None)],
        );
        let seen = |suspects: &Suspects| models(&["a", "b", "c", "d"]).into_iter().filter(|it| suspects.has_seen_die(it, UnixMillis(1))).count();
        assert_eq!(seen(&suspects), 2);
        for model in models(&["b", "d"]) {
            suspects.acquit(&model);
        }
        let left: Vec<Suspicion> = suspects.suspicions(UnixMillis(1)).collect();
        let expected = Suspicion { model: models(&["b"]).remove(0), deaths: 2, together: 0, last: UnixMillis(1), failure: None };
        assert_eq!(left, [expected], "what it did as it computed");
        assert_eq!(seen(&suspects), 1);
    }

    #[test]
    fn who_is_convicted_by_deaths_elsewhere_is_the_one_at_its_next_death_here() {
        let [killer, good] = &models(&["killer", "good"])[..] else { panic!("two") };
        for (loading, computing) in [(&["killer", "good"][..], &[][..]), (&[], &["killer", "good"])] {
            let mut suspects = Suspects::default();
            suspects.convict(killer, UnixMillis(1));
            assert!(suspects.loads_alone(killer, UnixMillis(2)) && suspects.computes_alone(killer, UnixMillis(2)));
            assert!(!suspects.loads_alone(good, UnixMillis(2)));
            judge(&mut suspects, "once", &[(loading, computing, Some("killer"))]);
        }
    }

    #[test]
    fn who_is_suspected_elsewhere_loads_alone_here_until_it_has_loaded_well_or_the_case_is_over() {
        let (mut suspects, model) = (Suspects::default(), &models(&["m"])[0]);
        suspects.is_suspected_elsewhere(model, UnixMillis(1));
        for (at, alone) in [(1, true), (1 + CASE, true), (2 + CASE, false)] {
            assert_eq!(suspects.loads_alone(model, UnixMillis(at)), alone, "{at}");
        }
        assert!(!suspects.has_seen_die(model, UnixMillis(1)) && !suspects.computes_alone(model, UnixMillis(1)));
        suspects.acquit(model);
        assert!(!suspects.loads_alone(model, UnixMillis(1)));
    }

    #[test]
    fn of_a_model_that_is_gone_for_good_nothing_is_known() {
        let mut suspects = Suspects::default();
        judge(
            &mut suspects,
            "a suspect, and one that is known",
            &[(&[], &["known"], None), (&[], &["known"], Some("known")), (&["suspect"], &[], None)],
        );
        suspects.is_suspected_elsewhere(&models(&["other"])[0], UnixMillis(1));
        for model in models(&["known", "suspect", "other"]) {
            suspects.forget(&model);
        }
        assert_eq!(suspects, Suspects { last: Some(UnixMillis(1)), ..Suspects::default() });
    }
}
