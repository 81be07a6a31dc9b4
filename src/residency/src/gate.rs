//! The (count, closed) word of a copy: how many use it, and whether anybody else may begin to.
//!
//! Invariants, checked by `tests/gate_loom.rs` over all interleavings: nobody gets in once the gate is closed; an idle
//! close succeeds only while nobody is inside; of a drain exactly one side learns that the copy is idle, either the
//! one who began it or the last one who left.

use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};

const CLOSED: u64 = 1 << 63;

/// Admission to one copy. Starts open and empty.
#[derive(Debug)]
pub(crate) struct Gate(AtomicU64);

/// What leaving meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Others are still inside.
    InUse,
    /// That was the last one, the gate is open.
    Idle,
    /// That was the last one of a drain: whoever drains must be told.
    Drained,
}

impl Gate {
    pub(crate) fn open() -> Self {
        Gate(AtomicU64::new(0))
    }

    /// One more inside, unless the gate is closed.
    pub(crate) fn enter(&self) -> bool {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word & CLOSED != 0 {
                return false;
            }
            match self.0.compare_exchange_weak(word, word + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
    }

    /// One less inside.
    pub(crate) fn leave(&self) -> Left {
        match self.0.fetch_sub(1, Ordering::AcqRel) - 1 {
            0 => Left::Idle,
            CLOSED => Left::Drained,
            _ => Left::InUse,
        }
    }

    /// How many are inside.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire) & !CLOSED
    }

    /// Closes the gate if nobody is inside; says whether it did.
    pub(crate) fn close_if_idle(&self) -> bool {
        self.0.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Closes the gate for newcomers. True when nobody is inside: otherwise the last one to leave gets
    /// [`Left::Drained`].
    pub(crate) fn begin_drain(&self) -> bool {
        self.0.fetch_or(CLOSED, Ordering::AcqRel) & !CLOSED == 0
    }

    /// Opens a closed gate again: the plan that closed it was given up.
    pub(crate) fn reopen(&self) {
        self.0.fetch_and(!CLOSED, Ordering::AcqRel);
    }
}

/// "Somebody waits for a copy to become idle". Without it idle copies tell nobody, which is the usual case.
///
/// One side raises the flag and then reads gates, the other leaves a gate and then reads the flag; the fences make
/// sure that at least one of them sees the other.
#[derive(Debug)]
pub(crate) struct Starving(AtomicBool);

impl Starving {
    pub(crate) fn not() -> Self {
        Starving(AtomicBool::new(false))
    }

    /// From now on whoever leaves a copy idle says so. Gates must be read (again) after this.
    pub(crate) fn announce(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// For whoever has just left a gate idle: is somebody waiting for that?
    pub(crate) fn heard(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }
}
