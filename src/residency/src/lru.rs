//! The loaded copies in order of last use, without a message per request.
//!
//! Requests write their time into the copy alone. The order here is therefore old, but only in one direction: a copy
//! is never less recently used than it stands here. A walk from the old end corrects each copy that it meets, so it
//! yields the true order and touches no more copies than were asked for, plus those whose use it had not heard of.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use berth_types::{ModelId, UnixMillis};

#[derive(Debug, Default)]
pub(crate) struct ByLastUse {
    order: BTreeSet<(UnixMillis, ModelId)>,
    stands_at: HashMap<ModelId, UnixMillis>,
}

impl ByLastUse {
    pub(crate) fn insert(&mut self, model: &ModelId, last_used: UnixMillis) {
        self.remove(model);
        self.order.insert((last_used, model.clone()));
        self.stands_at.insert(model.clone(), last_used);
    }

    pub(crate) fn remove(&mut self, model: &ModelId) {
        if let Some(time) = self.stands_at.remove(model) {
            self.order.remove(&(time, model.clone()));
        }
    }

    /// Every copy, least recently used first. `last_used` says what a copy itself says.
    pub(crate) fn walk<F: Fn(&ModelId) -> UnixMillis>(&mut self, last_used: F) -> Walk<'_, F> {
        Walk { index: self, last_used, at: None }
    }
}

pub(crate) struct Walk<'a, F> {
    index: &'a mut ByLastUse,
    last_used: F,
    at: Option<(UnixMillis, ModelId)>,
}

impl<F: Fn(&ModelId) -> UnixMillis> Iterator for Walk<'_, F> {
    type Item = ModelId;

    fn next(&mut self) -> Option<ModelId> {
        loop {
            let next = match &self.at {
                None => self.index.order.first(),
                Some(at) => self.index.order.range((Excluded(at), Unbounded)).next(),
            };
            let next = next?.clone();
            let actual = (self.last_used)(&next.1);
            if actual > next.0 {
                self.index.insert(&next.1, actual);
            } else {
                self.at = Some(next.clone());
                return Some(next.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    fn id(at: usize) -> ModelId {
        ModelId::new(format!("m{at:05}")).expect("a test's id is valid")
    }

    fn at(model: &ModelId) -> usize {
        model.as_str()[1..].parse().expect("made by id()")
    }

    #[test]
    fn the_oldest_is_found_without_looking_at_the_rest() {
        let mut index = ByLastUse::default();
        for n in 0..10_000 {
            index.insert(&id(n), UnixMillis(n as u64));
        }
        let asked = Cell::new(0);
        let actual = |model: &ModelId| {
            asked.set(asked.get() + 1);
            // The two oldest were used meanwhile.
            UnixMillis(if at(model) < 2 { 50_000 } else { at(model) as u64 })
        };
        assert_eq!(index.walk(actual).take(2).map(|model| at(&model)).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(asked.get(), 4);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default()
        })]

        #[test]
        fn a_walk_yields_every_copy_once_in_the_order_of_real_use(
            stood in prop::collection::vec(0u64..50, 1..30), used in prop::collection::vec((0usize..30, 0u64..60), 0..40),
        ) {
            let mut index = ByLastUse::default();
            let mut real = stood.clone();
            for (n, time) in stood.iter().enumerate() {
                index.insert(&id(n), UnixMillis(*time));
            }
            for (n, time) in used {
                let n = n % real.len();
                real[n] = real[n].max(time);
            }
            for _ in 0..2 {
                let walked: Vec<usize> = index.walk(|model| UnixMillis(real[at(model)])).map(|model| at(&model)).collect();
                let mut expected: Vec<usize> = (0..real.len()).collect();
                expected.sort_by_key(|n| (real[*n], id(*n)));
                prop_assert_eq!(walked, expected);
            }
        }
    }
}
