//! Who holds how much of which pool.
//!
//! Invariants: a lease is granted only while all that is charged stays within the budget; a measured size may take the
//! sum above it, which shows and is evicted against, never hidden; bytes come back only with the runtime's proof. A
//! lease that is dropped without one keeps its bytes charged as `unconfirmed`, until a later proof for its model.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_adapters::Unloaded;
use berth_plan::Memory;
use berth_types::{Footprint, ModelId};
use parking_lot::Mutex;
use tracing::{error, warn};

#[derive(Debug, Default)]
struct Books {
    /// Everything: held, returning and unconfirmed.
    charged: Footprint,
    returning: Footprint,
    unconfirmed: Footprint,
    /// The part of `unconfirmed` that no lease stands for any more.
    dropped: BTreeMap<ModelId, Footprint>,
}

impl Books {
    /// The sum that bytes in this standing are part of, beside `charged`.
    fn part(&mut self, standing: Standing) -> Option<&mut Footprint> {
        match standing {
            Standing::Held => None,
            Standing::Returning => Some(&mut self.returning),
            Standing::Unconfirmed => Some(&mut self.unconfirmed),
        }
    }

    fn add(&mut self, standing: Standing, bytes: &Footprint) {
        self.charged = self.charged.plus(bytes);
        if let Some(part) = self.part(standing) {
            *part = part.plus(bytes);
        }
    }

    fn subtract(&mut self, standing: Standing, bytes: &Footprint) {
        let mut fits = bytes.fits(&self.charged);
        self.charged = self.charged.minus(bytes);
        if let Some(part) = self.part(standing) {
            fits &= bytes.fits(part);
            *part = part.minus(bytes);
        }
        if !fits {
            error!(size = %bytes, charged = %self.charged, "more memory was given back than was charged: a bug, the ledger stops at zero");
        }
    }
}

/// The memory of a pod: its pools and what is charged to them.
#[derive(Debug)]
pub(crate) struct Ledger {
    budget: Footprint,
    books: Arc<Mutex<Books>>,
}

/// The ledger's sums at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) memory: Memory,
    /// The part of `memory.charged` that was not confirmed after all tries.
    pub(crate) unconfirmed: Footprint,
}

impl Ledger {
    pub(crate) fn new(budget: Footprint) -> Self {
        Ledger { budget, books: Arc::default() }
    }

    pub(crate) fn budget(&self) -> &Footprint {
        &self.budget
    }

    pub(crate) fn sums(&self) -> Sums {
        let books = self.books.lock();
        let memory = Memory { budget: self.budget.clone(), charged: books.charged.clone(), returning: books.returning.clone(), ..Memory::default() };
        Sums { memory, unconfirmed: books.unconfirmed.clone() }
    }

    /// Charges `need` to `model`, or `None` when it does not fit beside what is charged.
    pub(crate) fn lease(&self, model: &ModelId, need: &Footprint) -> Option<Lease> {
        let mut books = self.books.lock();
        // A pool in debt is no obstacle for who needs nothing of it.
        let fits = need.iter().all(|(pool, bytes)| bytes.0 == 0 || bytes + books.charged.get(pool) <= self.budget.get(pool));
        if !fits {
            return None;
        }
        books.add(Standing::Held, need);
        Some(Lease { model: model.clone(), bytes: need.clone(), standing: Standing::Held, books: Arc::clone(&self.books), settled: false })
    }

    /// Models whose bytes are charged although their lease was dropped.
    pub(crate) fn dropped(&self) -> Vec<ModelId> {
        self.books.lock().dropped.keys().cloned().collect()
    }

    /// Gives back what a dropped lease left behind.
    pub(crate) fn confirm_dropped(&self, proof: &Unloaded) {
        let mut books = self.books.lock();
        if let Some(bytes) = books.dropped.remove(proof.model()) {
            books.subtract(Standing::Unconfirmed, &bytes);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// In use.
    Held,
    /// Being unloaded.
    Returning,
    /// Unloaded for all we know, but not confirmed.
    Unconfirmed,
}

/// Memory charged to one copy. Not clonable: the same bytes cannot be given back twice.
#[derive(Debug)]
#[must_use = "a lease dropped without proof keeps its bytes charged"]
pub(crate) struct Lease {
    model: ModelId,
    bytes: Footprint,
    standing: Standing,
    books: Arc<Mutex<Books>>,
    settled: bool,
}

impl Lease {
    /// What is charged.
    pub(crate) fn bytes(&self) -> &Footprint {
        &self.bytes
    }

    /// Charges what was measured instead of what was predicted. May take a pool above its budget: the bytes are in use
    /// whether we like it or not.
    pub(crate) fn correct(&mut self, measured: Footprint) {
        let mut books = self.books.lock();
        books.subtract(self.standing, &self.bytes);
        books.add(self.standing, &measured);
        self.bytes = measured;
    }

    fn stand(&mut self, standing: Standing) {
        let mut books = self.books.lock();
        books.subtract(self.standing, &self.bytes);
        books.add(standing, &self.bytes);
        self.standing = standing;
    }

    /// The unload has begun: count on the bytes.
    pub(crate) fn returning(&mut self) {
        self.stand(Standing::Returning);
    }

    /// The unload was not confirmed: do not count on the bytes.
    pub(crate) fn unconfirmed(&mut self) {
        self.stand(Standing::Unconfirmed);
    }

    /// Gives the bytes back. The proof must be for the model of this lease; with any other it is a drop.
    pub(crate) fn release(mut self, proof: &Unloaded) {
        if *proof.model() == self.model {
            self.books.lock().subtract(self.standing, &self.bytes);
            self.settled = true;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.settled {
            warn!(model = %self.model, size = %self.bytes, "memory was let go without proof that the model is unloaded: it stays charged");
            self.stand(Standing::Unconfirmed);
            let mut books = self.books.lock();
            let sum = books.dropped.remove(&self.model).unwrap_or_default().plus(&self.bytes);
            books.dropped.insert(self.model.clone(), sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_adapters::Index;
    use berth_types::{ByteSize, Pool};
    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> ModelId {
        ModelId::new(name).expect("a test's id is valid")
    }

    fn both(host: u64, gpu: u64) -> Footprint {
        Footprint::of([(Pool::Host, ByteSize(host)), (Pool::Gpu(0), ByteSize(gpu))])
    }

    fn proof(model: &ModelId) -> Unloaded {
        Index::default().unloaded(model).expect("an empty index proves everything")
    }

    #[test]
    fn a_lease_dropped_without_proof_stays_charged_until_one_comes() {
        let ledger = Ledger::new(both(10, 0));
        let lease = ledger.lease(&id("a"), &both(6, 0)).expect("room");
        drop(lease);
        let sums = ledger.sums();
        assert_eq!((sums.memory.charged.total(), sums.unconfirmed.total()), (ByteSize(6), ByteSize(6)));
        assert!(ledger.lease(&id("b"), &both(5, 0)).is_none(), "the bytes are not promised again");
        assert_eq!(ledger.dropped(), [id("a")]);
        ledger.confirm_dropped(&proof(&id("b")));
        assert_eq!(ledger.sums().unconfirmed.total(), ByteSize(6), "a proof for another model proves nothing");
        ledger.confirm_dropped(&proof(&id("a")));
        assert_eq!(ledger.sums().memory.charged.total(), ByteSize::ZERO);
    }

    #[test]
    fn a_proof_for_another_model_gives_nothing_back() {
        let ledger = Ledger::new(both(10, 0));
        let lease = ledger.lease(&id("a"), &both(6, 0)).expect("room");
        lease.release(&proof(&id("b")));
        assert_eq!(ledger.sums().unconfirmed.total(), ByteSize(6));
    }

    #[test]
    fn a_measured_size_shows_even_above_the_budget() {
        let ledger = Ledger::new(both(10, 0));
        let mut lease = ledger.lease(&id("a"), &both(6, 0)).expect("room");
        lease.correct(both(14, 0));
        assert_eq!(ledger.sums().memory.charged, both(14, 0));
        assert!(ledger.lease(&id("b"), &both(1, 0)).is_none());
        lease.release(&proof(&id("a")));
        assert_eq!(ledger.sums().memory.charged.total(), ByteSize::ZERO);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Lease(u64, u64),
        Correct(usize, u64, u64),
        Returning(usize),
        Unconfirmed(usize),
        Release(usize),
        Drop(usize),
        ConfirmDropped(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0u64..8, 0u64..8).prop_map(|(host, gpu)| Op::Lease(host, gpu)),
            1 => (0usize..8, 0u64..12, 0u64..12).prop_map(|(at, host, gpu)| Op::Correct(at, host, gpu)),
            1 => (0usize..8).prop_map(Op::Returning),
            1 => (0usize..8).prop_map(Op::Unconfirmed),
            2 => (0usize..8).prop_map(Op::Release),
            1 => (0usize..8).prop_map(Op::Drop),
            1 => (0usize..8).prop_map(Op::ConfirmDropped),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 1500, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(5), ..ProptestConfig::default()
        })]

        /// The model: what each lease that was granted is charged with, summed by hand.
        #[test]
        fn nothing_is_promised_twice_and_all_comes_back(ops in prop::collection::vec(op(), 0..60)) {
            let budget = both(20, 15);
            let ledger = Ledger::new(budget.clone());
            let mut leases: Vec<(Lease, Footprint)> = Vec::new();
            let mut dropped: Vec<(ModelId, Footprint)> = Vec::new();
            for (count, op) in ops.into_iter().enumerate() {
                let before = ledger.sums().memory.charged;
                let pick = |at: usize| (!leases.is_empty()).then(|| at % leases.len());
                match op {
                    Op::Lease(host, gpu) => {
                        let need = both(host, gpu);
                        let room = need.iter().all(|(pool, bytes)| bytes.0 == 0 || before.get(pool) + bytes <= budget.get(pool));
                        let lease = ledger.lease(&id(&format!("m{count}")), &need);
                        prop_assert_eq!(lease.is_some(), room);
                        leases.extend(lease.map(|lease| (lease, need)));
                    }
                    Op::Correct(at, host, gpu) => if let Some(at) = pick(at) {
                        leases[at].0.correct(both(host, gpu));
                        leases[at].1 = both(host, gpu);
                    },
                    Op::Returning(at) => if let Some(at) = pick(at) { leases[at].0.returning() },
                    Op::Unconfirmed(at) => if let Some(at) = pick(at) { leases[at].0.unconfirmed() },
                    Op::Release(at) => if let Some(at) = pick(at) {
                        let (lease, _) = leases.remove(at);
                        let proof = proof(&lease.model);
                        lease.release(&proof);
                    },
                    Op::Drop(at) => if let Some(at) = pick(at) {
                        let (lease, bytes) = leases.remove(at);
                        dropped.push((lease.model.clone(), bytes));
                    },
                    Op::ConfirmDropped(at) => if !dropped.is_empty() {
                        let (model, _) = dropped.remove(at % dropped.len());
                        ledger.confirm_dropped(&proof(&model));
                    },
                }
                let by_hand = leases.iter().map(|(_, bytes)| bytes).chain(dropped.iter().map(|(_, bytes)| bytes));
                let by_hand = by_hand.fold(Footprint::default(), |sum, bytes| sum.plus(bytes));
                let sums = ledger.sums();
                for pool in [Pool::Host, Pool::Gpu(0)] {
                    prop_assert_eq!(sums.memory.charged.get(pool), by_hand.get(pool));
                    prop_assert!(sums.memory.returning.get(pool) + sums.unconfirmed.get(pool) <= by_hand.get(pool));
                }
            }
            for (lease, _) in leases {
                let proof = proof(&lease.model);
                lease.release(&proof);
            }
            for (model, _) in dropped {
                ledger.confirm_dropped(&proof(&model));
            }
            let sums = ledger.sums();
            prop_assert_eq!(sums.memory.charged.total(), ByteSize::ZERO);
            prop_assert_eq!(sums.memory.returning.total() + sums.unconfirmed.total(), ByteSize::ZERO);
        }
    }
}
