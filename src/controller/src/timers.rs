//! When to look at which resource again: at most one time per resource.

use std::collections::BTreeSet;

use berth_registry::ObjectKey;
use berth_types::UnixMillis;

/// The times, soonest first. Who asked remembers its own time, so that no second index is needed.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(UnixMillis, ObjectKey)>);

impl Timers {
    /// Moves the time of `key` from `from` to `to`.
    pub(crate) fn set(&mut self, key: &ObjectKey, from: Option<UnixMillis>, to: Option<UnixMillis>) {
        if from == to {
            return;
        }
        if let Some(from) = from {
            self.0.remove(&(from, key.clone()));
        }
        if let Some(to) = to {
            self.0.insert((to, key.clone()));
        }
    }

    /// The soonest time.
    pub(crate) fn next(&self) -> Option<UnixMillis> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes out the first resource whose time has come.
    pub(crate) fn pop_due(&mut self, now: UnixMillis) -> Option<ObjectKey> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, key)| key)
    }
}
