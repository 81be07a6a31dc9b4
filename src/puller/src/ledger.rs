//! Who holds how many bytes of the disk tier. Pure: the caller moves the files.
//!
//! A download claims its bytes before its first one is written, together with the victims that must go for it; two
//! claims never promise the same byte. Bytes of removed content count until their files are gone ([`Ledger::gone`]), so
//! what is on disk never exceeds the budget. Pinned content is never a victim.

use std::collections::HashMap;

use berth_types::{ByteSize, ModelId, UnixMillis};

/// One model's content on disk.
#[derive(Debug)]
pub(crate) struct Entry<C> {
    pub(crate) content: C,
    pub(crate) size: ByteSize,
    pub(crate) last_use: UnixMillis,
    /// Tells this content from an earlier one of the same model.
    pub(crate) generation: u64,
    pub(crate) pins: u32,
    /// Goes with its last pin.
    pub(crate) doomed: bool,
}

/// Why a claim is refused: nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    /// What could be had by removing all that may be removed.
    pub(crate) free: ByteSize,
    /// What the tier may hold in all at present.
    pub(crate) limit: ByteSize,
    /// True when it is the file system, not the budget, that is short.
    pub(crate) file_system: bool,
}

#[derive(Debug)]
pub(crate) struct Ledger<C> {
    budget: u64,
    entries: HashMap<ModelId, Entry<C>>,
    /// Bytes of `entries`.
    held: u64,
    /// Bytes of removed content whose files are not gone yet.
    leaving: u64,
    /// Bytes claimed by downloads.
    claimed: u64,
    generation: u64,
}

impl<C> Ledger<C> {
    pub(crate) fn new(budget: ByteSize) -> Self {
        Ledger { budget: budget.0, entries: HashMap::new(), held: 0, leaving: 0, claimed: 0, generation: 0 }
    }

    /// Bytes on disk or about to be: contents, claims and what is being removed.
    pub(crate) fn used(&self) -> ByteSize {
        ByteSize(self.held.saturating_add(self.leaving).saturating_add(self.claimed))
    }

    pub(crate) fn get(&self, model: &ModelId) -> Option<&Entry<C>> {
        self.entries.get(model)
    }

    /// Claims `need` bytes. Returns the least recently used contents that must go first; they are off the ledger but for
    /// their bytes, which count until [`Ledger::gone`]. `free_on_disk`: what the file system has left.
    pub(crate) fn claim(&mut self, need: ByteSize, free_on_disk: ByteSize) -> Result<Vec<(ModelId, Entry<C>)>, Short> {
        // Claimed bytes may or may not be allocated already, so they are counted as still to come: strict, never wrong.
        let by_disk = self.held.saturating_add(self.leaving).saturating_add(free_on_disk.0);
        let limit = self.budget.min(by_disk);
        let taken = self.held.saturating_add(self.claimed);
        let evictable: u64 = self.entries.values().filter(|entry| entry.pins == 0).map(|entry| entry.size.0).sum();
        if need.0 > limit.saturating_sub(taken.saturating_sub(evictable)) {
            let free = ByteSize(limit.saturating_sub(taken.saturating_sub(evictable)));
            return Err(Short { free, limit: ByteSize(limit), file_system: by_disk < self.budget });
        }
        let mut idle: Vec<(UnixMillis, ModelId)> =
            self.entries.iter().filter(|(_, entry)| entry.pins == 0).map(|(model, entry)| (entry.last_use, model.clone())).collect();
        idle.sort_unstable();
        let mut victims = Vec::new();
        for (_, model) in idle {
            if need.0 <= limit.saturating_sub(self.held.saturating_add(self.claimed)) {
                break;
            }
            victims.extend(self.take(&model).map(|entry| (model, entry)));
        }
        self.claimed = self.claimed.saturating_add(need.0);
        Ok(victims)
    }

    /// True once what is being removed has made room for every claim: from then on a claim may be written.
    pub(crate) fn settled(&self) -> bool {
        self.used().0 <= self.budget || self.leaving == 0
    }

    /// A claim ends: its files are gone or have become content.
    pub(crate) fn unclaim(&mut self, size: ByteSize) {
        self.claimed = self.claimed.saturating_sub(size.0);
    }

    /// Adds content; its generation. What was there under the same model must have been taken before.
    pub(crate) fn add(&mut self, model: ModelId, content: C, size: ByteSize, last_use: UnixMillis) -> u64 {
        self.generation += 1;
        self.held = self.held.saturating_add(size.0);
        let entry = Entry { content, size, last_use, generation: self.generation, pins: 0, doomed: false };
        let before = self.entries.insert(model, entry);
        debug_assert!(before.is_none(), "two contents of one model");
        self.generation
    }

    /// Takes content off; its bytes count as leaving.
    pub(crate) fn take(&mut self, model: &ModelId) -> Option<Entry<C>> {
        let entry = self.entries.remove(model)?;
        self.held = self.held.saturating_sub(entry.size.0);
        self.leaving = self.leaving.saturating_add(entry.size.0);
        Some(entry)
    }

    /// The files of removed content are gone.
    pub(crate) fn gone(&mut self, size: ByteSize) {
        self.leaving = self.leaving.saturating_sub(size.0);
    }

    /// Pins the content of `model`; its generation.
    pub(crate) fn pin(&mut self, model: &ModelId, now: UnixMillis) -> Option<u64> {
        let entry = self.entries.get_mut(model)?;
        entry.pins += 1;
        entry.last_use = now;
        entry.doomed = false; // somebody wants it again
        Some(entry.generation)
    }

    /// Ends a pin. Returns content that was only waiting for this.
    pub(crate) fn unpin(&mut self, model: &ModelId, generation: u64, now: UnixMillis) -> Option<Entry<C>> {
        let entry = self.entries.get_mut(model).filter(|entry| entry.generation == generation)?;
        entry.pins = entry.pins.saturating_sub(1);
        entry.last_use = now;
        if entry.doomed && entry.pins == 0 { self.take(model) } else { None }
    }

    /// Removes the content of `model`, now (then it is returned) or with its last pin.
    pub(crate) fn doom(&mut self, model: &ModelId) -> Option<Entry<C>> {
        let entry = self.entries.get_mut(model)?;
        if entry.pins == 0 {
            return self.take(model);
        }
        entry.doomed = true;
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> ModelId {
        ModelId::new(name).expect("sound")
    }

    fn names(victims: Result<Vec<(ModelId, Entry<()>)>, Short>) -> Result<Vec<String>, Short> {
        victims.map(|victims| victims.into_iter().map(|(model, _)| model.as_str().to_owned()).collect())
    }

    const PLENTY: ByteSize = ByteSize(u64::MAX);

    fn ledger(budget: u64, contents: &[(&str, u64, u64)]) -> Ledger<()> {
        let mut ledger = Ledger::new(ByteSize(budget));
        for (name, size, last_use) in contents {
            ledger.add(id(name), (), ByteSize(*size), UnixMillis(*last_use));
        }
        ledger
    }

    #[test]
    fn the_least_recently_used_go_first_and_no_more_than_needed() {
        let contents = [("old", 4, 1), ("new", 3, 9), ("mid", 2, 5)];
        for (need, expected) in [(1, vec![]), (2, vec!["old"]), (5, vec!["old"]), (6, vec!["old", "mid"]), (10, vec!["old", "mid", "new"])] {
            assert_eq!(names(ledger(10, &contents).claim(ByteSize(need), PLENTY)), Ok(expected.into_iter().map(str::to_owned).collect()), "{need}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers_and_changes_nothing() {
        let mut full = ledger(10, &[("pinned", 4, 1), ("idle", 3, 2)]);
        full.pin(&id("pinned"), UnixMillis(3));
        assert_eq!(names(full.claim(ByteSize(7), PLENTY)), Err(Short { free: ByteSize(6), limit: ByteSize(10), file_system: false }));
        assert!(full.get(&id("idle")).is_some());
        assert_eq!(full.used(), ByteSize(7));
        // The file system has one byte left: with the idle content gone, four.
        assert_eq!(names(full.claim(ByteSize(5), ByteSize(1))), Err(Short { free: ByteSize(4), limit: ByteSize(8), file_system: true }));
        assert_eq!(names(full.claim(ByteSize(4), ByteSize(1))), Ok(vec!["idle".to_owned()]));
    }

    #[test]
    fn a_claim_may_be_written_once_its_victims_are_gone() {
        let mut full = ledger(10, &[("a", 10, 1)]);
        assert_eq!(names(full.claim(ByteSize(1), PLENTY)), Ok(vec!["a".to_owned()]));
        assert!(!full.settled());
        // A second claim fits the budget, yet may not be written while the first one's victim is on disk.
        assert_eq!(names(full.claim(ByteSize(9), PLENTY)), Ok(vec![]));
        assert_eq!(names(full.claim(ByteSize(1), PLENTY)), Err(Short { free: ByteSize(0), limit: ByteSize(10), file_system: false }));
        full.gone(ByteSize(10));
        assert!(full.settled());
    }

    #[test]
    fn doomed_content_goes_with_its_last_pin_unless_it_is_wanted_again() {
        let mut ledger = ledger(10, &[("a", 1, 1)]);
        let a = id("a");
        let first = ledger.pin(&a, UnixMillis(2)).expect("there");
        ledger.pin(&a, UnixMillis(2));
        assert!(ledger.doom(&a).is_none());
        assert!(ledger.unpin(&a, first, UnixMillis(3)).is_none());
        assert!(ledger.unpin(&a, first, UnixMillis(4)).is_some());
        assert!(ledger.get(&a).is_none());
        // A pin of content that was replaced does not touch its successor.
        let second = ledger.add(a.clone(), (), ByteSize(1), UnixMillis(5));
        assert_eq!(ledger.pin(&a, UnixMillis(6)), Some(second));
        assert!(ledger.unpin(&a, first, UnixMillis(7)).is_none());
        assert_eq!(ledger.get(&a).map(|entry| entry.pins), Some(1));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Claim(u64, u64),
        Land(usize),
        Fail(usize),
        Clear,
        Pin(u8),
        Unpin(usize),
        Doom(u8),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (0u64..60, 0u64..120).prop_map(|(need, free)| Act::Claim(need, free)),
            (0usize..4).prop_map(Act::Land),
            (0usize..4).prop_map(Act::Fail),
            Just(Act::Clear),
            (0u8..8).prop_map(Act::Pin),
            (0usize..4).prop_map(Act::Unpin),
            (0u8..8).prop_map(Act::Doom),
        ];
        proptest::collection::vec(act, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..Default::default() })]
        #[test]
        fn what_is_on_disk_never_exceeds_the_budget_and_pinned_content_stays(acts in acts()) {
            const BUDGET: u64 = 100;
            let mut ledger: Ledger<()> = Ledger::new(ByteSize(BUDGET));
            let mut claims: Vec<(u64, bool)> = Vec::new();
            let mut pins: Vec<(ModelId, u64)> = Vec::new();
            let mut leaving: Vec<u64> = Vec::new();
            let (mut now, mut next) = (0u64, 0u8);
            for act in acts {
                now += 1;
                match act {
                    Act::Claim(need, free) => {
                        if let Ok(victims) = ledger.claim(ByteSize(need), ByteSize(free)) {
                            for (model, victim) in victims {
                                prop_assert_eq!(victim.pins, 0);
                                prop_assert!(pins.iter().all(|(pinned, _)| *pinned != model));
                                leaving.push(victim.size.0);
                            }
                            claims.push((need, false));
                        }
                    }
                    Act::Land(at) if at < claims.len() && claims[at].1 => {
                        let (size, _) = claims.remove(at);
                        let model = id(&format!("m{}", next % 8));
                        next += 1;
                        if ledger.get(&model).is_none() {
                            ledger.add(model, (), ByteSize(size), UnixMillis(now));
                        }
                        ledger.unclaim(ByteSize(size));
                    }
                    Act::Fail(at) if at < claims.len() => ledger.unclaim(ByteSize(claims.remove(at).0)),
                    Act::Clear => leaving.drain(..).for_each(|size| ledger.gone(ByteSize(size))),
                    Act::Pin(n) => {
                        let model = id(&format!("m{n}"));
                        if let Some(generation) = ledger.pin(&model, UnixMillis(now)) {
                            pins.push((model, generation));
                        }
                    }
                    Act::Unpin(at) if at < pins.len() => {
                        let (model, generation) = pins.remove(at);
                        if let Some(gone) = ledger.unpin(&model, generation, UnixMillis(now)) {
                            leaving.push(gone.size.0);
                        }
                    }
                    Act::Doom(n) => {
                        if let Some(gone) = ledger.doom(&id(&format!("m{n}"))) {
                            leaving.push(gone.size.0);
                        }
                    }
                    Act::Land(_) | Act::Fail(_) | Act::Unpin(_) => {}
                }
                if ledger.settled() {
                    claims.iter_mut().for_each(|claim| claim.1 = true);
                }
                for (model, _) in &pins {
                    prop_assert!(ledger.get(model).is_some(), "{} was pinned and is gone", model);
                }
                let written: u64 = claims.iter().filter(|claim| claim.1).map(|claim| claim.0).sum();
                prop_assert!(ledger.held + leaving.iter().sum::<u64>() + written <= BUDGET);
                prop_assert_eq!(ledger.leaving, leaving.iter().sum::<u64>());
            }
        }
    }
}
