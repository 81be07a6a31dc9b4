//! Which model ends the runtime: judged by what was loading and what was computing when it died.
//!
//! A model that was loading is a suspect and from then on loads alone; when the runtime dies a second time while nothing but
//! that model is loading, it is the one. A model that was computing is a suspect as long as it is among those that computed
//! at each death; when it is the only one left, after two deaths, it is the one.

use std::collections::{BTreeMap, BTreeSet};

use berth_types::{ModelId, UnixMillis};

/// What the deaths of the runtime so far say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspects {
    /// Deaths that each model was loading at, since it last loaded well.
    loading: BTreeMap<ModelId, u32>,
    /// Models that computed at each of the deaths, and how many those were.
    computing: (BTreeSet<ModelId>, u32),
    /// When it died last.
    last: Option<UnixMillis>,
}

/// Deaths further apart than this, in milliseconds, have nothing to do with each other.
const CASE: u64 = 15 * 60 * 1000;

impl Suspects {
    /// The runtime has died: `loading` were being loaded, requests on `computing` were under way. Answers which of them
    /// ended it, as far as that is certain; those are suspects no longer.
    pub fn died(&mut self, now: UnixMillis, loading: &[ModelId], computing: &[ModelId]) -> Vec<ModelId> {
        if self.last.replace(now).is_some_and(|last| now.0.saturating_sub(last.0) > CASE) {
            (self.loading, self.computing) = Default::default();
        }
        for model in loading {
            *self.loading.entry(model.clone()).or_default() += 1;
        }
        if let [alone] = loading
            && self.loading.get(alone).is_some_and(|deaths| *deaths >= 2)
        {
            self.loading.remove(alone);
            return vec![alone.clone()];
        }
        if !loading.is_empty() || computing.is_empty() {
            return Vec::new();
        }
        let computing: BTreeSet<ModelId> = computing.iter().cloned().collect();
        let (before, deaths) = std::mem::take(&mut self.computing);
        let both: BTreeSet<ModelId> = before.intersection(&computing).cloned().collect();
        self.computing = if both.is_empty() { (computing, 1) } else { (both, deaths + 1) };
        match (self.computing.0.len(), self.computing.1) {
            (1, 2..) => std::mem::take(&mut self.computing).0.into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// Whether a load of `model` must have the runtime to itself.
    #[must_use]
    pub fn loads_alone(&self, model: &ModelId) -> bool {
        self.loading.contains_key(model)
    }

    /// `model` has loaded well, or is gone: its loads are above suspicion.
    pub fn acquit(&mut self, model: &ModelId) {
        self.loading.remove(model);
    }

    /// `model` is gone for good.
    pub fn forget(&mut self, model: &ModelId) {
        self.loading.remove(model);
        self.computing.0.remove(model);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(names: &[&str]) -> Vec<ModelId> {
        names.iter().map(|name| ModelId::new(name).expect("tests use valid ids")).collect()
    }

    #[test]
    fn a_model_that_loads_alone_when_the_runtime_dies_again_is_the_one() {
        let (mut suspects, now) = (Suspects::default(), UnixMillis(1));
        let [good, killer, other] = &models(&["good", "killer", "other"])[..] else { panic!("three") };
        assert_eq!(suspects.died(now, &[good.clone(), killer.clone()], &[]), []);
        assert!(suspects.loads_alone(good) && suspects.loads_alone(killer) && !suspects.loads_alone(other));
        suspects.acquit(good);
        assert!(!suspects.loads_alone(good));
        // Requests that were under way as well are no excuse.
        assert_eq!(suspects.died(now, std::slice::from_ref(killer), std::slice::from_ref(other)), std::slice::from_ref(killer));
        assert!(!suspects.loads_alone(killer), "judged, and tried again later as any other model that failed");
    }

    #[test]
    fn two_models_that_load_together_twice_are_suspects_still() {
        let (mut suspects, now) = (Suspects::default(), UnixMillis(1));
        let both = models(&["a", "b"]);
        assert_eq!(suspects.died(now, &both, &[]), []);
        assert_eq!(suspects.died(now, &both, &[]), []);
        assert_eq!(suspects.died(now, &both[..1], &[]), both[..1]);
    }

    #[test]
    fn a_model_that_computed_at_each_death_is_the_one_when_no_other_did() {
        let (mut suspects, now) = (Suspects::default(), UnixMillis(1));
        assert_eq!(suspects.died(now, &[], &models(&["a", "killer", "b"])), []);
        assert_eq!(suspects.died(now, &[], &models(&["b", "killer"])), []);
        assert_eq!(suspects.died(now, &[], &models(&["killer", "c"])), models(&["killer"]));
        // A new case begins with the next death.
        assert_eq!(suspects.died(now, &[], &models(&["killer"])), []);
        assert_eq!(suspects.died(now, &[], &models(&["killer"])), models(&["killer"]));
    }

    #[test]
    fn deaths_that_lie_far_apart_accuse_nobody() {
        let (mut suspects, mut now) = (Suspects::default(), UnixMillis(1));
        for _ in 0..4 {
            assert_eq!(suspects.died(now, &models(&["loading"]), &[]), []);
            now.0 += CASE + 1;
            assert_eq!(suspects.died(now, &[], &models(&["computing"])), []);
            now.0 += CASE + 1;
        }
    }

    #[test]
    fn a_death_at_which_nothing_computed_ends_no_case() {
        let (mut suspects, now) = (Suspects::default(), UnixMillis(1));
        assert_eq!(suspects.died(now, &[], &models(&["killer"])), []);
        assert_eq!(suspects.died(now, &[], &[]), []);
        assert_eq!(suspects.died(now, &[], &models(&["killer"])), models(&["killer"]));
    }

    #[test]
    fn deaths_that_have_no_model_in_common_accuse_nobody() {
        let (mut suspects, now) = (Suspects::default(), UnixMillis(1));
        for computing in [&["a"][..], &["b"], &[], &["a"]] {
            assert_eq!(suspects.died(now, &[], &models(computing)), [], "{computing:?}");
        }
    }
}
