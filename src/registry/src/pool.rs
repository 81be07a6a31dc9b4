//! Shares equal parts of registrations.
//!
//! Ten thousand models have a handful of formats, runtimes, storage keys and parameter sets between them. The view keeps
//! one copy of each; what is left per model is its id and its path.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use berth_types::{ModelFormat, Parameters, Placement, Registration, StorageRef};
use parking_lot::Mutex;

/// The shared parts. Parts that nobody else holds any more are dropped when a table has doubled since the last time.
#[derive(Default)]
pub(crate) struct Pool {
    parts: Mutex<Parts>,
}

#[derive(Default)]
struct Parts {
    texts: Table<str>,
    parameters: Table<std::collections::BTreeMap<String, String>>,
}

struct Table<T: ?Sized> {
    known: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Table<T> {
    fn default() -> Self {
        Table { known: HashSet::new(), sweep_at: 64 }
    }
}

impl<T: ?Sized + Eq + Hash> Table<T> {
    fn share(&mut self, part: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(&**part) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|part| Arc::strong_count(part) > 1);
            self.sweep_at = (self.known.len() * 2).max(64);
        }
        self.known.insert(Arc::clone(part));
        Arc::clone(part)
    }
}

impl Pool {
    /// The same registration made of shared parts; the very same one where it already is.
    pub(crate) fn share(&self, registration: &Arc<Registration>) -> Arc<Registration> {
        let Registration { id, format, placement, storage, declared_size } = &**registration;
        let mut parts = self.parts.lock();
        let Parts { texts, parameters } = &mut *parts;
        let maybe = |text: &Option<Arc<str>>, texts: &mut Table<str>| text.as_ref().map(|text| texts.share(text));
        let shared = Registration {
            id: id.clone(),
            format: ModelFormat { name: texts.share(&format.name), version: maybe(&format.version, texts) },
            placement: match placement {
                Placement::Runtime(name) => Placement::Runtime(texts.share(name)),
                Placement::Format { protocol } => Placement::Format { protocol: maybe(protocol, texts) },
            },
            storage: StorageRef {
                key: maybe(&storage.key, texts),
                parameters: share_parameters(parameters, &storage.parameters),
                path: Arc::clone(&storage.path),
                schema_path: storage.schema_path.clone(),
            },
            declared_size: *declared_size,
        };
        if same_parts(registration, &shared) { Arc::clone(registration) } else { Arc::new(shared) }
    }
}

fn share_parameters(table: &mut Table<std::collections::BTreeMap<String, String>>, parameters: &Parameters) -> Parameters {
    table.share(parameters)
}

fn same_parts(a: &Registration, b: &Registration) -> bool {
    let same = |a: &Option<Arc<str>>, b: &Option<Arc<str>>| match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    let placed = match (&a.placement, &b.placement) {
        (Placement::Runtime(a), Placement::Runtime(b)) => Arc::ptr_eq(a, b),
        (Placement::Format { protocol: a }, Placement::Format { protocol: b }) => same(a, b),
        (Placement::Runtime(_), Placement::Format { .. }) | (Placement::Format { .. }, Placement::Runtime(_)) => false,
    };
    placed
        && Arc::ptr_eq(&a.format.name, &b.format.name)
        && same(&a.format.version, &b.format.version)
        && same(&a.storage.key, &b.storage.key)
        && Arc::ptr_eq(&a.storage.parameters, &b.storage.parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::registration;

    #[test]
    fn equal_parts_are_kept_once_and_a_shared_registration_is_not_copied_again() {
        let pool = Pool::default();
        let (a, b) = (pool.share(&registration("a", 1)), pool.share(&registration("b", 1)));
        assert!(Arc::ptr_eq(&a.format.name, &b.format.name));
        assert!(Arc::ptr_eq(&a.storage.parameters, &b.storage.parameters));
        assert!(Arc::ptr_eq(&a, &pool.share(&a)));
        assert_eq!(a, registration("a", 1));
    }

    #[test]
    fn parts_that_nobody_holds_are_dropped_in_time() {
        let pool = Pool::default();
        for n in 0..10_000 {
            let mut registration = Registration::clone(&registration("a", 1));
            registration.storage.key = Some(format!("key-{n}").into());
            drop(pool.share(&Arc::new(registration)));
        }
        assert!(pool.parts.lock().texts.known.len() < 200);
    }
}
