//! Whose name it is: on one machine names are shared across namespaces and kinds.

use std::collections::{BTreeSet, HashMap};

use berth_registry::ObjectKey;
use berth_types::{Name, UnixMillis};

/// Who holds a name and who waits for it, in the order in which they were made.
#[derive(Debug)]
struct Holders {
    holder: ObjectKey,
    waiting: BTreeSet<(UnixMillis, ObjectKey)>,
}

/// All names.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<Name, Holders>);

impl Names {
    /// Asks for the name of `key`, whose resource was made at `created`. The first to ask holds it.
    pub(crate) fn claim(&mut self, key: &ObjectKey, created: UnixMillis) {
        match self.0.get_mut(&key.name) {
            None => {
                self.0.insert(key.name.clone(), Holders { holder: key.clone(), waiting: BTreeSet::new() });
            }
            Some(holders) if holders.holder != *key => {
                holders.waiting.insert((created, key.clone()));
            }
            Some(_) => {}
        }
    }

    /// Gives up the claim of `key`. Answers who holds the name from now on, if that changed.
    pub(crate) fn release(&mut self, key: &ObjectKey) -> Option<ObjectKey> {
        let holders = self.0.get_mut(&key.name)?;
        if holders.holder != *key {
            holders.waiting.retain(|(_, other)| other != key);
            return None;
        }
        match holders.waiting.pop_first() {
            Some((_, next)) => {
                holders.holder = next.clone();
                Some(next)
            }
            None => {
                self.0.remove(&key.name);
                None
            }
        }
    }

    /// Who holds the name of `key`, if that is another resource.
    pub(crate) fn other_holder(&self, key: &ObjectKey) -> Option<&ObjectKey> {
        self.0.get(&key.name).map(|holders| &holders.holder).filter(|holder| *holder != key)
    }
}
