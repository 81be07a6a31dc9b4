//! Who holds how many bytes of the disk tier. Pure: the caller moves the files.
//!
//! A download claims its bytes before its first one is written, together with the victims that must go for it; two
//! claims never promise the same byte. Bytes of removed content and of given-up downloads count until their files are
//! gone ([`Ledger::gone`]); those of files that cannot be removed count as stuck, and nobody waits for them. So what is on
//! disk never exceeds the budget. Pinned content is never a victim.

use std::collections::{HashMap, HashSet};

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

/// Bytes as the budget counts them, and how many of them surely lie on the file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    size: u64,
    /// At most `size`.
    written: u64,
}

impl Extent {
    fn plus(self, other: Extent) -> Extent {
        Extent { size: self.size.saturating_add(other.size), written: self.written.saturating_add(other.written) }
    }

    fn minus(self, other: Extent) -> Extent {
        Extent { size: self.size.saturating_sub(other.size), written: self.written.saturating_sub(other.written) }
    }
}

impl<C> Entry<C> {
    /// Content is on disk with all its bytes.
    pub(crate) fn extent(&self) -> Extent {
        Extent { size: self.size.0, written: self.size.0 }
    }
}

/// Names an open claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ClaimId(u64);

/// A claim, and the contents that must go for it.
pub(crate) type Claimed<C> = (ClaimId, Vec<(ModelId, Entry<C>)>);

/// Whether claims may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// Once what is being removed is gone.
    NotYet,
    /// What was to make room cannot be removed.
    No,
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
    /// Bytes off the entries and claims whose files are being removed.
    leaving: Extent,
    /// Bytes whose files cannot be removed.
    stuck: Extent,
    /// What downloads claimed, and what of it they have put on disk.
    claims: HashMap<ClaimId, Extent>,
    /// Contents off the ledger whose folder is still where the next content of that model belongs.
    in_place: HashSet<ModelId>,
    generation: u64,
    claims_ever: u64,
}

impl<C> Ledger<C> {
    pub(crate) fn new(budget: ByteSize) -> Self {
        Ledger {
            budget: budget.0,
            entries: HashMap::new(),
            held: 0,
            leaving: Extent::default(),
            stuck: Extent::default(),
            claims: HashMap::new(),
            in_place: HashSet::new(),
            generation: 0,
            claims_ever: 0,
        }
    }

    /// Bytes on disk or about to be: contents, claims, what is being removed and what cannot be.
    pub(crate) fn used(&self) -> ByteSize {
        ByteSize(self.lasting().saturating_add(self.leaving.size))
    }

    /// Bytes that surely lie on the file system.
    pub(crate) fn on_disk(&self) -> ByteSize {
        let all = self.claims.values().copied().fold(self.leaving.plus(self.stuck), Extent::plus);
        ByteSize(self.held.saturating_add(all.written))
    }

    /// Bytes that no removal under way gives back.
    fn lasting(&self) -> u64 {
        let claimed = self.claims.values().fold(0, |sum: u64, claim| sum.saturating_add(claim.size));
        self.held.saturating_add(self.stuck.size).saturating_add(claimed)
    }

    pub(crate) fn get(&self, model: &ModelId) -> Option<&Entry<C>> {
        self.entries.get(model)
    }

    /// Claims `need` bytes. Returns the least recently used contents that must go first; they are off the ledger but for
    /// their bytes, which count until [`Ledger::gone`]. `by_disk`: what the file system lets the tier hold in all, which
    /// is what lay on it ([`Ledger::on_disk`]) and, looked at after that, what is free.
    pub(crate) fn claim(&mut self, need: ByteSize, by_disk: ByteSize) -> Result<Claimed<C>, Short> {
        let limit = self.budget.min(by_disk.0);
        let evictable: u64 = self.entries.values().filter(|entry| entry.pins == 0).map(|entry| entry.size.0).sum();
        let free = limit.saturating_sub(self.lasting().saturating_sub(evictable));
        if need.0 > free {
            return Err(Short { free: ByteSize(free), limit: ByteSize(limit), file_system: by_disk.0 < self.budget });
        }
        let mut idle: Vec<(UnixMillis, ModelId)> =
            self.entries.iter().filter(|(_, entry)| entry.pins == 0).map(|(model, entry)| (entry.last_use, model.clone())).collect();
        idle.sort_unstable();
        let mut victims = Vec::new();
        for (_, model) in idle {
            if need.0 <= limit.saturating_sub(self.lasting()) {
                break;
            }
            victims.extend(self.take(&model).map(|entry| (model, entry)));
        }
        self.claims_ever += 1;
        let claim = ClaimId(self.claims_ever);
        self.claims.insert(claim, Extent { size: need.0, written: 0 });
        Ok((claim, victims))
    }

    /// Whether what was removed has made room for every claim: from then on a claim may be written.
    pub(crate) fn room(&self) -> Room {
        match (self.used().0 <= self.budget, self.leaving.size) {
            (true, _) => Room::Yes,
            (false, 0) => Room::No,
            (false, _) => Room::NotYet,
        }
    }

    /// The download of `claim` has put `bytes` more on disk. Without effect once the claim has ended.
    pub(crate) fn wrote(&mut self, claim: ClaimId, bytes: u64) {
        if let Some(claim) = self.claims.get_mut(&claim) {
            claim.written = claim.written.saturating_add(bytes).min(claim.size);
        }
    }

    /// A claim ends: nothing was written for it, or its files have become content.
    pub(crate) fn unclaim(&mut self, claim: ClaimId) {
        self.claims.remove(&claim);
    }

    /// A claim ends, its files are still to be removed: its bytes leave. `None` when it had ended already.
    pub(crate) fn abandon(&mut self, claim: ClaimId) -> Option<Extent> {
        let left = self.claims.remove(&claim)?;
        self.leaving = self.leaving.plus(left);
        Some(left)
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

    /// Takes content off; its bytes count as leaving, and its folder is in place until [`Ledger::cleared`].
    pub(crate) fn take(&mut self, model: &ModelId) -> Option<Entry<C>> {
        let entry = self.entries.remove(model)?;
        self.held = self.held.saturating_sub(entry.size.0);
        self.leaving = self.leaving.plus(entry.extent());
        self.in_place.insert(model.clone());
        Some(entry)
    }

    /// Whoever removes the content that was taken has no more to do with the folder's place.
    pub(crate) fn cleared(&mut self, model: &ModelId) {
        self.in_place.remove(model);
    }

    /// True while content that was taken is still being moved out of its place.
    pub(crate) fn in_place(&self, model: &ModelId) -> bool {
        self.in_place.contains(model)
    }

    /// The files of what was leaving are gone.
    pub(crate) fn gone(&mut self, bytes: Extent) {
        self.leaving = self.leaving.minus(bytes);
    }

    /// What was leaving cannot be removed.
    pub(crate) fn stick(&mut self, bytes: Extent) {
        self.leaving = self.leaving.minus(bytes);
        self.stuck = self.stuck.plus(bytes);
    }

    /// What was stuck is gone after all.
    pub(crate) fn unstick(&mut self, bytes: Extent) {
        self.stuck = self.stuck.minus(bytes);
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

    fn names(claim: Result<Claimed<()>, Short>) -> Result<Vec<String>, Short> {
        claim.map(|(_, victims)| victims.into_iter().map(|(model, _)| model.as_str().to_owned()).collect())
    }

    fn all(size: u64) -> Extent {
        Extent { size, written: size }
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
        let by_disk = ByteSize(full.on_disk().0 + 1);
        assert_eq!(names(full.claim(ByteSize(5), by_disk)), Err(Short { free: ByteSize(4), limit: ByteSize(8), file_system: true }));
        assert_eq!(names(full.claim(ByteSize(4), by_disk)), Ok(vec!["idle".to_owned()]));
    }

    #[test]
    fn a_claim_may_be_written_once_its_victims_are_gone() {
        let mut full = ledger(10, &[("a", 10, 1)]);
        assert_eq!(names(full.claim(ByteSize(1), PLENTY)), Ok(vec!["a".to_owned()]));
        assert_eq!(full.room(), Room::NotYet);
        // A second claim fits the budget, yet may not be written while the first one's victim is on disk.
        assert_eq!(names(full.claim(ByteSize(9), PLENTY)), Ok(vec![]));
        assert_eq!(names(full.claim(ByteSize(1), PLENTY)), Err(Short { free: ByteSize(0), limit: ByteSize(10), file_system: false }));
        full.gone(all(10));
        assert_eq!(full.room(), Room::Yes);
    }

    #[test]
    fn bytes_that_a_download_has_written_are_not_missed_twice() {
        let mut ledger = ledger(100, &[]);
        let (first, _) = ledger.claim(ByteSize(40), ByteSize(50)).expect("50 are free");
        ledger.wrote(first, 30);
        let by_disk = ByteSize(ledger.on_disk().0 + 20); // 30 of the 50 are its own
        assert_eq!(ledger.claim(ByteSize(11), by_disk).map(|_| ()), Err(Short { free: ByteSize(10), limit: ByteSize(50), file_system: true }));
        assert_eq!(names(ledger.claim(ByteSize(10), by_disk)), Ok(vec![]));
        ledger.wrote(first, 30);
        assert_eq!(ledger.on_disk(), ByteSize(40), "no more than it claimed");
        ledger.unclaim(first);
        ledger.wrote(first, 30);
        assert_eq!((ledger.on_disk(), ledger.used()), (ByteSize(0), ByteSize(10)), "a claim that ended writes no more");
    }

    #[test]
    fn an_abandoned_claim_makes_room_once_its_files_are_gone() {
        let mut ledger = ledger(100, &[("idle", 40, 1)]);
        let (first, _) = ledger.claim(ByteSize(60), PLENTY).expect("fits");
        let left = ledger.abandon(first).expect("open");
        assert_eq!((ledger.abandon(first), ledger.used()), (None, ByteSize(100)));
        assert_eq!(names(ledger.claim(ByteSize(60), PLENTY)), Ok(vec![]), "nothing must go for it");
        assert_eq!(ledger.room(), Room::NotYet);
        ledger.gone(left);
        assert_eq!(ledger.room(), Room::Yes);
    }

    #[test]
    fn what_cannot_be_removed_counts_and_is_not_waited_for() {
        let mut ledger = ledger(10, &[("a", 6, 1)]);
        let (claim, victims) = ledger.claim(ByteSize(6), PLENTY).expect("fits once it is gone");
        ledger.stick(victims[0].1.extent());
        assert_eq!((ledger.room(), ledger.used(), ledger.on_disk()), (Room::No, ByteSize(12), ByteSize(6)));
        ledger.unclaim(claim);
        assert_eq!(names(ledger.claim(ByteSize(6), PLENTY)), Err(Short { free: ByteSize(4), limit: ByteSize(10), file_system: false }));
        ledger.unstick(all(6));
        assert_eq!(names(ledger.claim(ByteSize(6), PLENTY)), Ok(vec![]));
    }

    #[test]
    fn the_place_of_taken_content_is_not_free_until_it_is_cleared() {
        let mut ledger = ledger(10, &[("a", 6, 1)]);
        assert!(!ledger.in_place(&id("a")));
        ledger.take(&id("a"));
        assert!(ledger.in_place(&id("a")));
        ledger.cleared(&id("a"));
        assert!(!ledger.in_place(&id("a")));
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
        Wrote(usize, u64),
        Land(usize),
        Drop(usize),
        Fail(usize),
        Clear,
        Stick,
        Unstick,
        Pin(u8),
        Unpin(usize),
        Doom(u8),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (0u64..60, 0u64..120).prop_map(|(need, free)| Act::Claim(need, free)),
            (0usize..4).prop_map(Act::Land),
            (0usize..4, 0u64..60).prop_map(|(at, bytes)| Act::Wrote(at, bytes)),
            (0usize..4).prop_map(Act::Drop),
            (0usize..4).prop_map(Act::Fail),
            Just(Act::Clear),
            Just(Act::Stick),
            Just(Act::Unstick),
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
            let mut claims: Vec<(ClaimId, u64, bool)> = Vec::new();
            let mut pins: Vec<(ModelId, u64)> = Vec::new();
            let (mut leaving, mut stuck): (Vec<Extent>, Vec<Extent>) = (Vec::new(), Vec::new());
            let (mut now, mut next) = (0u64, 0u8);
            for act in acts {
                now += 1;
                match act {
                    Act::Claim(need, free) => {
                        let by_disk = ByteSize(ledger.on_disk().0 + free);
                        if let Ok((claim, victims)) = ledger.claim(ByteSize(need), by_disk) {
                            for (model, victim) in victims {
                                prop_assert_eq!(victim.pins, 0);
                                prop_assert!(pins.iter().all(|(pinned, _)| *pinned != model));
                                leaving.push(victim.extent());
                            }
                            claims.push((claim, need, false));
                        }
                    }
                    Act::Wrote(at, bytes) if at < claims.len() && claims[at].2 => ledger.wrote(claims[at].0, bytes),
                    Act::Land(at) if at < claims.len() && claims[at].2 => {
                        let (claim, size, _) = claims.remove(at);
                        let model = id(&format!("m{}", next % 8));
                        next += 1;
                        if ledger.get(&model).is_none() {
                            ledger.add(model, (), ByteSize(size), UnixMillis(now));
                        }
                        ledger.unclaim(claim);
                    }
                    Act::Drop(at) if at < claims.len() && !claims[at].2 => ledger.unclaim(claims.remove(at).0),
                    Act::Fail(at) if at < claims.len() && claims[at].2 => leaving.extend(ledger.abandon(claims.remove(at).0)),
                    Act::Clear => leaving.drain(..).for_each(|bytes| ledger.gone(bytes)),
                    Act::Stick => {
                        if let Some(bytes) = leaving.pop() {
                            ledger.stick(bytes);
                            stuck.push(bytes);
                        }
                    }
                    Act::Unstick => stuck.drain(..).for_each(|bytes| ledger.unstick(bytes)),
                    Act::Pin(n) => {
                        let model = id(&format!("m{n}"));
                        if let Some(generation) = ledger.pin(&model, UnixMillis(now)) {
                            pins.push((model, generation));
                        }
                    }
                    Act::Unpin(at) if at < pins.len() => {
                        let (model, generation) = pins.remove(at);
                        if let Some(gone) = ledger.unpin(&model, generation, UnixMillis(now)) {
                            leaving.push(gone.extent());
                        }
                    }
                    Act::Doom(n) => {
                        if let Some(gone) = ledger.doom(&id(&format!("m{n}"))) {
                            leaving.push(gone.extent());
                        }
                    }
                    Act::Wrote(..) | Act::Land(_) | Act::Drop(_) | Act::Fail(_) | Act::Unpin(_) => {}
                }
                if ledger.room() == Room::Yes {
                    claims.iter_mut().for_each(|claim| claim.2 = true);
                }
                for (model, _) in &pins {
                    prop_assert!(ledger.get(model).is_some(), "{} was pinned and is gone", model);
                }
                let written: u64 = claims.iter().filter(|claim| claim.2).map(|claim| claim.1).sum();
                let sum = |all: &[Extent]| all.iter().copied().fold(Extent::default(), Extent::plus);
                prop_assert!(ledger.held + sum(&leaving).size + sum(&stuck).size + written <= BUDGET);
                prop_assert!(ledger.on_disk().0 <= BUDGET);
                prop_assert_eq!((ledger.leaving, ledger.stuck), (sum(&leaving), sum(&stuck)));
            }
        }
    }
}
