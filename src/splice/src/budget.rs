//! Memory is asked for before it is taken, and given back when the last slice of it is gone.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Who says whether memory may grow. What it lends comes back in pieces, from whichever thread drops them.
pub trait Budget: Send + Sync {
    /// Lends `bytes` more, or says no with `false`.
    fn lend(&self, bytes: usize) -> bool;
    /// Takes back what was lent.
    fn take_back(&self, bytes: usize);
}

/// The plain budget: so many bytes in all, first come, first served.
#[derive(Debug)]
pub struct Pool {
    limit: usize,
    lent: AtomicUsize,
}

impl Pool {
    /// A pool of `limit` bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Pool {
        Pool { limit, lent: AtomicUsize::new(0) }
    }

    /// How many bytes are lent now.
    #[must_use]
    pub fn lent(&self) -> usize {
        self.lent.load(Ordering::Relaxed)
    }
}

impl Budget for Pool {
    fn lend(&self, bytes: usize) -> bool {
        // Relaxed: a count that guards no other memory.
        let more = |lent: usize| lent.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.lent.try_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn take_back(&self, bytes: usize) {
        self.lent.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// So many bytes of a budget, given back on drop.
pub(crate) struct Loan {
    budget: Arc<dyn Budget>,
    bytes: usize,
}

impl Loan {
    /// A loan of `bytes`; `None` where the budget refuses.
    pub(crate) fn take(budget: &Arc<dyn Budget>, bytes: usize) -> Option<Loan> {
        budget.lend(bytes).then(|| Loan { budget: Arc::clone(budget), bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.budget.take_back(self.bytes);
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loan({})", self.bytes)
    }
}

/// A buffer on loan: as [`Bytes`] it gives the loan back when the last slice of it is dropped, wherever that is.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) bytes: Vec<u8>,
    loan: Loan,
}

impl Lent {
    /// `size` zero bytes; `None` where the budget refuses.
    pub(crate) fn zeroed(budget: &Arc<dyn Budget>, size: usize) -> Option<Lent> {
        let loan = Loan::take(budget, size)?;
        Some(Lent { bytes: vec![0; size], loan })
    }

    /// How many bytes it is charged with.
    pub(crate) fn charged(&self) -> usize {
        self.loan.bytes()
    }

    /// Its first `length` bytes; the loan is kept in full until they are dropped, as the memory is.
    pub(crate) fn freeze(self, length: usize) -> Bytes {
        Bytes::from_owner(self).slice(..length)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_lends_no_more_than_it_has_and_gets_back_what_it_lent() {
        let pool = Arc::new(Pool::new(100));
        let budget: Arc<dyn Budget> = pool.clone();
        let first = Loan::take(&budget, 60).unwrap();
        assert!(Loan::take(&budget, 41).is_none());
        assert!(Loan::take(&budget, usize::MAX).is_none());
        let second = Loan::take(&budget, 40).unwrap();
        assert_eq!(pool.lent(), 100);
        drop(first);
        assert_eq!(pool.lent(), 40);
        drop(second);
        assert_eq!(pool.lent(), 0);
    }

    #[test]
    fn a_frozen_buffer_stays_charged_until_its_last_slice_is_gone() {
        let pool = Arc::new(Pool::new(1000));
        let budget: Arc<dyn Budget> = pool.clone();
        let bytes = Lent::zeroed(&budget, 600).unwrap().freeze(100);
        assert_eq!((bytes.len(), pool.lent()), (100, 600));
        let slice = bytes.slice(90..);
        drop(bytes);
        assert_eq!(pool.lent(), 600);
        drop(slice);
        assert_eq!(pool.lent(), 0);
    }
}
