//! The bytes of requests that may be in memory at a time, on both inference ports together.
//!
//! A body counts from its first bytes until its inference has been answered; what it becomes when it is decoded counts
//! too. Nobody waits for room: who finds none is refused, and says so with numbers. What one request holds is a [`Share`],
//! and dropping that gives it back, so that every way out does. Answers do not count: one is held until its client has read
//! it or is gone.

use std::sync::Arc;

use berth_telemetry::GaugeHandle;
use berth_types::ByteSize;
use parking_lot::Mutex;

use crate::codes::Fault;

/// What all requests share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Budget(Arc<Inner>);

struct Inner {
    total: ByteSize,
    /// The sum of all shares. The gauge is set under this lock: it cannot be left with an older value.
    taken: Mutex<u64>,
    shown: GaugeHandle,
}

impl Budget {
    pub(crate) fn new(total: ByteSize, shown: GaugeHandle) -> Self {
        shown.set(0);
        Budget(Arc::new(Inner { total, taken: Mutex::new(0), shown }))
    }

    /// The share of one more request: nothing yet.
    pub(crate) fn share(&self) -> Share {
        Share { budget: self.clone(), held: 0 }
    }
}

impl Budget {
    /// The same for memory that is lent piece by piece.
    pub(crate) fn lender(&self) -> Arc<dyn berth_splice::Budget> {
        Arc::clone(&self.0) as Arc<dyn berth_splice::Budget>
    }

    /// Why `bytes` more were not to be had.
    pub(crate) fn shortage(&self, bytes: u64) -> Fault {
        Fault::NoBuffer { more: ByteSize(bytes), taken: ByteSize(*self.0.taken.lock()), budget: self.0.total }
    }
}

impl berth_splice::Budget for Inner {
    fn lend(&self, bytes: usize) -> bool {
        let mut taken = self.taken.lock();
        let after = taken.saturating_add(bytes as u64);
        let fits = after <= self.total.0;
        if fits {
            *taken = after;
            self.shown.set(after);
        }
        fits
    }

    fn take_back(&self, bytes: usize) {
        let mut taken = self.taken.lock();
        *taken = taken.saturating_sub(bytes as u64);
        self.shown.set(*taken);
    }
}

/// What one request holds. Given back when dropped.
pub(crate) struct Share {
    budget: Budget,
    held: u64,
}

impl Share {
    /// Holds `bytes` more.
    ///
    /// # Errors
    /// There is no room; what was held stays held.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<(), Fault> {
        self.hold(self.held.saturating_add(bytes))
    }

    /// Holds `bytes` from here on. Fewer than before are always had.
    ///
    /// # Errors
    /// There is no room; what was held stays held.
    pub(crate) fn hold(&mut self, bytes: u64) -> Result<(), Fault> {
        let Inner { total, taken, shown } = &*self.budget.0;
        let mut taken = taken.lock();
        let after = (*taken - self.held).saturating_add(bytes);
        if bytes > total.0 {
            return Err(Fault::TooHeavy { need: ByteSize(bytes), budget: *total });
        }
        if bytes > self.held && after > total.0 {
            return Err(Fault::NoBuffer { more: ByteSize(bytes - self.held), taken: ByteSize(*taken), budget: *total });
        }
        *taken = after;
        self.held = bytes;
        shown.set(after);
        Ok(())
    }

    /// The share of something else that the same request does: nothing yet.
    pub(crate) fn another(&self) -> Share {
        self.budget.share()
    }

    /// Gives everything back before its time.
    pub(crate) fn give_back(&mut self) {
        let Inner { taken, shown, .. } = &*self.budget.0;
        let mut taken = taken.lock();
        *taken -= self.held;
        self.held = 0;
        shown.set(*taken);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
impl Budget {
    /// One with its gauge on a page of its own.
    pub(crate) fn of(total: ByteSize) -> Self {
        Budget::new(total, berth_telemetry::Metrics::default().gauge(berth_telemetry::Gauge::BufferBytes, &[("class", "requests")]))
    }

    /// Takes all of it.
    pub(crate) fn fill(&self) -> Share {
        let mut share = self.share();
        share.hold(self.0.total.0).expect("nobody else holds anything");
        share
    }

    pub(crate) fn taken(&self) -> u64 {
        *self.0.taken.lock()
    }
}

#[cfg(test)]
mod tests {
    use berth_telemetry::{Gauge, Metrics};
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    #[test]
    fn what_is_lent_counts_with_the_shares_and_comes_back() {
        let budget = Budget::of(ByteSize(100));
        let mut share = budget.share();
        share.hold(60).unwrap();
        let lender = budget.lender();
        assert!(!lender.lend(41) && lender.lend(40));
        assert_eq!(budget.taken(), 100);
        assert_eq!(budget.shortage(1).to_string(), "requests hold 100 B of 100 B, and this one needs 1 B more: try again");
        assert!(share.hold(61).is_err());
        lender.take_back(40);
        assert_eq!(budget.taken(), 60);
    }

    #[test]
    fn shares_never_exceed_the_budget_and_a_refusal_says_the_numbers() {
        let metrics = Metrics::default();
        let budget = Budget::new(ByteSize::kib(4), metrics.gauge(Gauge::BufferBytes, &[("class", "requests")]));
        let shown = |bytes: u64| metrics.render().contains(&format!("berth_buffer_bytes{{class=\"requests\"}} {bytes}\n"));
        let (mut first, mut second) = (budget.share(), budget.share());
        first.add(1024).unwrap();
        second.add(2048).unwrap();
        assert!(shown(3072));
        let fault = second.add(1025).unwrap_err();
        assert_eq!(fault.to_string(), "requests hold 3 KiB of 4 KiB, and this one needs 1 KiB more: try again");
        assert!(shown(3072), "a refusal takes nothing and gives nothing back");
        second.add(1024).unwrap();
        drop(first);
        assert!(shown(3072));
        second.hold(1).unwrap();
        assert!(shown(1));
        let fault = second.hold(4097).unwrap_err();
        assert_eq!(fault, Fault::TooHeavy { need: ByteSize(4097), budget: ByteSize::kib(4) });
        second.give_back();
        assert!(shown(0));
        drop(second);
        assert!(shown(0), "nothing is given back twice");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]
        #[test]
        fn what_is_taken_is_the_sum_of_the_shares(steps in proptest::collection::vec((0..4usize, 0..80u64), 0..40)) {
            let budget = Budget::of(ByteSize(100));
            let mut shares: Vec<Share> = (0..4).map(|_| budget.share()).collect();
            for (at, bytes) in steps {
                let before = shares[at].held;
                if shares[at].hold(bytes).is_err() {
                    prop_assert_eq!(shares[at].held, before);
                }
                let sum: u64 = shares.iter().map(|share| share.held).sum();
                prop_assert!(sum <= 100);
                prop_assert_eq!(budget.taken(), sum);
            }
            drop(shares);
            prop_assert_eq!(budget.taken(), 0);
        }
    }
}
