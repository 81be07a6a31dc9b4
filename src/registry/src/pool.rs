//! Shares what registrations have in common.
//!
//! Ten thousand models have a handful of formats, runtimes, storage keys and parameter sets between them. The view keeps
//! one copy of each combination; what is left per model is its id and its path.

use std::collections::HashSet;
use std::sync::Arc;

use berth_types::{Class, Registration};
use parking_lot::Mutex;

/// The classes. Those that nobody else holds any more are dropped when there are twice as many as the last time.
#[derive(Default)]
pub(crate) struct Pool {
    classes: Mutex<Classes>,
}

struct Classes {
    known: HashSet<Arc<Class>>,
    sweep_at: usize,
}

/// Fewer are not looked through.
const FEW: usize = 64;

impl Default for Classes {
    fn default() -> Self {
        Classes { known: HashSet::new(), sweep_at: FEW }
    }
}

impl Classes {
    fn share(&mut self, class: &Arc<Class>) -> Arc<Class> {
        if let Some(known) = self.known.get(&**class) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|class| Arc::strong_count(class) > 1);
            self.sweep_at = (self.known.len() * 2).max(FEW);
        }
        self.known.insert(Arc::clone(class));
        Arc::clone(class)
    }
}

impl Pool {
    /// The same registration of a shared class; the very same one where it already is.
    pub(crate) fn share(&self, registration: &Arc<Registration>) -> Arc<Registration> {
        let class = self.classes.lock().share(&registration.class);
        if Arc::ptr_eq(&class, &registration.class) {
            return Arc::clone(registration);
        }
        Arc::new(Registration { class, ..Registration::clone(registration) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::registration;

    #[test]
    fn equal_classes_are_kept_once_and_a_shared_registration_is_not_copied_again() {
        let pool = Pool::default();
        let (a, b) = (pool.share(&registration("a", 1)), pool.share(&registration("b", 1)));
        assert!(Arc::ptr_eq(&a.class, &b.class));
        assert!(Arc::ptr_eq(&a, &pool.share(&a)));
        assert_eq!(a, registration("a", 1));
    }

    #[test]
    fn classes_that_nobody_holds_are_dropped_in_time() {
        let pool = Pool::default();
        for n in 0..10_000 {
            let mut registration = Registration::clone(&registration("a", 1));
            registration.class = Arc::new(Class { key: Some(format!("key-{n}").into()), ..Class::clone(&registration.class) });
            drop(pool.share(&Arc::new(registration)));
        }
        assert!(pool.classes.lock().known.len() < 200);
    }
}
