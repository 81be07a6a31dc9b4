//! The (count, closed) word over all interleavings of a few threads. The file under test is compiled here against
//! loom's atomics.

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
}

#[allow(dead_code, reason = "each test uses a part of it")]
#[path = "../src/gate.rs"]
mod gate;

use gate::{Gate, Left, Starving};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;

/// A gate and the memory behind it: `unloaded` is what a request must never see while it is inside.
struct Copy {
    gate: Gate,
    unloaded: AtomicBool,
    drained: AtomicUsize,
}

impl Copy {
    fn shared() -> Arc<Copy> {
        Arc::new(Copy { gate: Gate::open(), unloaded: AtomicBool::new(false), drained: AtomicUsize::new(0) })
    }

    fn unload(&self) {
        assert_eq!(self.gate.count(), 0, "unloaded in use");
        self.unloaded.store(true, Ordering::Relaxed);
    }

    /// A request, if it gets in. Returns whether it did.
    fn request(&self) -> bool {
        if !self.gate.enter() {
            return false;
        }
        assert!(!self.unloaded.load(Ordering::Relaxed), "inside an unloaded copy");
        thread::yield_now();
        assert!(!self.unloaded.load(Ordering::Relaxed), "unloaded under a request");
        if self.gate.leave() == Left::Drained {
            self.drained.fetch_add(1, Ordering::Relaxed);
            self.unload();
        }
        true
    }
}

#[test]
fn a_close_of_an_idle_copy_and_two_requests_never_overlap() {
    loom::model(|| {
        let copy = Copy::shared();
        let requests: Vec<_> = (0..2)
            .map(|_| {
                let copy = Arc::clone(&copy);
                thread::spawn(move || copy.request())
            })
            .collect();
        let closed = copy.gate.close_if_idle();
        if closed {
            copy.unload();
        }
        let served = requests.into_iter().map(|request| request.join().expect("no request panics")).filter(|served| *served).count();
        assert!(closed || served > 0, "refused without a reason");
        assert_eq!(copy.gate.count(), 0);
        assert_eq!(copy.gate.enter(), !closed);
    });
}

#[test]
fn of_a_drain_exactly_one_side_unloads() {
    loom::model(|| {
        let copy = Copy::shared();
        assert!(copy.gate.enter(), "a request in flight from the start");
        let newcomer = {
            let copy = Arc::clone(&copy);
            thread::spawn(move || copy.request())
        };
        let first = {
            let copy = Arc::clone(&copy);
            thread::spawn(move || {
                if copy.gate.leave() == Left::Drained {
                    copy.drained.fetch_add(1, Ordering::Relaxed);
                    copy.unload();
                }
            })
        };
        if copy.gate.begin_drain() {
            copy.drained.fetch_add(1, Ordering::Relaxed);
            copy.unload();
        }
        newcomer.join().expect("no request panics");
        first.join().expect("no request panics");
        assert_eq!(copy.drained.load(Ordering::Relaxed), 1, "exactly one side learns that it is idle");
        assert!(!copy.gate.enter(), "closed for good");
    });
}

#[test]
fn a_plan_that_is_given_up_leaves_the_gate_as_it_was() {
    loom::model(|| {
        let copy = Copy::shared();
        let request = {
            let copy = Arc::clone(&copy);
            thread::spawn(move || copy.request())
        };
        if copy.gate.close_if_idle() {
            copy.gate.reopen();
        }
        request.join().expect("no request panics");
        assert_eq!(copy.drained.load(Ordering::Relaxed), 0, "nobody drains");
        assert!(copy.gate.enter());
        assert_eq!(copy.gate.leave(), Left::Idle);
    });
}

#[test]
fn who_starves_sees_an_idle_copy_or_is_told() {
    loom::model(|| {
        let shared = Arc::new((Gate::open(), Starving::not(), AtomicBool::new(false)));
        assert!(shared.0.enter());
        let leaver = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (gate, starving, told) = &*shared;
                if gate.leave() == Left::Idle && starving.heard() {
                    told.store(true, Ordering::Relaxed);
                }
            })
        };
        let (gate, starving, told) = &*shared;
        starving.announce();
        let seen_idle = gate.count() == 0;
        leaver.join().expect("leaving does not panic");
        assert!(seen_idle || told.load(Ordering::Relaxed), "neither saw the other");
    });
}
