//! Whose name it is: on one machine names are shared across namespaces and kinds.

use std::collections::{BTreeSet, HashMap};

use berth_registry::{Kind, ObjectKey};
use berth_types::{Name, Namespace, UnixMillis};

/// All names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Who holds each name: the rest of its key.
    holders: HashMap<Name, (Kind, Option<Namespace>)>,
    /// Who waits for a name, in the order in which they were made. Names that nobody waits for are not listed.
    waiting: HashMap<Name, BTreeSet<(UnixMillis, ObjectKey)>>,
}

fn is(holder: &(Kind, Option<Namespace>), key: &ObjectKey) -> bool {
    (&holder.0, &holder.1) == (&key.kind, &key.namespace)
}

impl Names {
    /// Asks for the name of `key`, whose resource was made at `created`. The first to ask holds it.
    pub(crate) fn claim(&mut self, key: &ObjectKey, created: UnixMillis) {
        match self.holders.get(&key.name) {
            None => {
                self.holders.insert(key.name.clone(), (key.kind, key.namespace.clone()));
            }
            Some(holder) if is(holder, key) => {}
            Some(_) => {
                self.waiting.entry(key.name.clone()).or_default().insert((created, key.clone()));
            }
        }
    }

    /// Gives up the claim of `key`. Answers who holds the name from now on, if that changed.
    pub(crate) fn release(&mut self, key: &ObjectKey) -> Option<ObjectKey> {
        let holder = self.holders.get_mut(&key.name)?;
        let waiting = self.waiting.get_mut(&key.name);
        let next = if is(holder, key) {
            waiting.and_then(BTreeSet::pop_first).map(|(_, next)| next)
        } else {
            waiting.into_iter().for_each(|waiting| waiting.retain(|(_, other)| other != key));
            self.forget_empty(&key.name);
            return None;
        };
        match &next {
            Some(next) => *holder = (next.kind, next.namespace.clone()),
            None => drop(self.holders.remove(&key.name)),
        }
        self.forget_empty(&key.name);
        next
    }

    fn forget_empty(&mut self, name: &Name) {
        if self.waiting.get(name).is_some_and(BTreeSet::is_empty) {
            self.waiting.remove(name);
        }
    }

    /// The resource that was the first to ask for a name.
    pub(crate) fn holder(&self, name: &Name) -> Option<ObjectKey> {
        let (name, (kind, namespace)) = self.holders.get_key_value(name)?;
        Some(ObjectKey { kind: *kind, namespace: namespace.clone(), name: name.clone() })
    }

    /// Who holds the name of `key`, if that is another resource.
    pub(crate) fn other_holder(&self, key: &ObjectKey) -> Option<ObjectKey> {
        let (name, (kind, namespace)) = self.holders.get_key_value(&key.name).filter(|(_, holder)| !is(holder, key))?;
        Some(ObjectKey { kind: *kind, namespace: namespace.clone(), name: name.clone() })
    }
}
