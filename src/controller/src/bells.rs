//! Waiting for news of one thing among many: nobody is woken for another one's.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Keys that nobody waits for are swept when there are this many of them, or twice as many as the last time.
const FEW: usize = 64;

#[derive(Debug)]
struct Hung {
    bells: HashMap<String, Weak<Notify>>,
    sweep_at: usize,
}

/// One bell for each key that somebody waits for.
#[derive(Debug)]
pub(crate) struct Bells(Mutex<Hung>);

impl Default for Bells {
    fn default() -> Self {
        Bells(Mutex::new(Hung { bells: HashMap::new(), sweep_at: FEW }))
    }
}

impl Bells {
    /// Wakes who waits for news of `key`.
    pub(crate) fn ring(&self, key: &str) {
        if let Some(bell) = self.0.lock().bells.get(key).and_then(Weak::upgrade) {
            bell.notify_waiters();
        }
    }

    fn bell(&self, key: &str) -> Arc<Notify> {
        let mut hung = self.0.lock();
        if let Some(bell) = hung.bells.get(key).and_then(Weak::upgrade) {
            return bell;
        }
        if hung.bells.len() >= hung.sweep_at {
            hung.bells.retain(|_, bell| bell.strong_count() > 0);
            hung.sweep_at = (hung.bells.len() * 2).max(FEW);
        }
        let bell = Arc::new(Notify::new());
        hung.bells.insert(key.to_owned(), Arc::downgrade(&bell));
        bell
    }

    /// What `look` finds, looked for now and whenever the bell of `key` rings. Without a deadline of its own.
    pub(crate) async fn found<T>(&self, key: &str, look: impl Fn() -> Option<T>) -> T {
        let bell = self.bell(key);
        loop {
            let mut rung = pin!(bell.notified());
            // Before the look: what changes after it rings.
            rung.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            rung.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_who_waits_for_it_looks_again() {
        let (bells, looks, value) = (Bells::default(), AtomicU32::new(0), AtomicU32::new(0));
        let look = || {
            looks.fetch_add(1, Ordering::Relaxed);
            Some(value.load(Ordering::Relaxed)).filter(|value| *value > 0)
        };
        let waits = bells.found("a", look);
        let rings = async {
            bells.ring("b");
            tokio::task::yield_now().await;
            assert_eq!(looks.load(Ordering::Relaxed), 1, "another one's news");
            value.store(7, Ordering::Relaxed);
            bells.ring("a");
        };
        assert_eq!(tokio::join!(waits, rings).0, 7);
        assert_eq!(looks.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten() {
        let bells = Bells::default();
        let kept = bells.bell("kept");
        for number in 0..1_000 {
            drop(bells.bell(&number.to_string()));
        }
        assert!(bells.0.lock().bells.len() <= FEW + 1);
        assert!(Arc::ptr_eq(&kept, &bells.bell("kept")));
    }
}
