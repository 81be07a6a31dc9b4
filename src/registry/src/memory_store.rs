//! A store that forgets: for tests, and for trying something without a data folder.

use std::collections::BTreeMap;

use berth_telemetry::Clock;
use parking_lot::Mutex;

use crate::managed::ManagedState;
use crate::shelved::Shelved;
use crate::state::{Beginning, Draft, Outcome, Shelf, Write};
use crate::{Contents, ObjectKey, StoreError};

/// Desired state in memory only. Its epoch is 1.
pub struct MemoryStore {
    shelf: Shelf,
    clock: Clock,
    /// Held while a write is decided and shown: one writer at a time.
    contents: Mutex<BTreeMap<ObjectKey, Contents>>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let identity = clock.wall().0;
        let shelf = Shelf::new(Beginning {
            objects: Default::default(),
            aliases: Default::default(),
            managed: ManagedState::default(),
            version: 0,
            epoch: 1,
            identity,
        });
        MemoryStore { shelf, clock, contents: Mutex::default() }
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.shelf.close();
    }
}

impl Shelved for MemoryStore {
    fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    async fn write(&self, write: Write) -> Outcome {
        let mut kept = self.contents.lock();
        let mut draft = Draft::default();
        let outcome = self.shelf.decide(&mut draft, write, self.clock.wall());
        for (key, contents) in std::mem::take(&mut draft.contents) {
            if contents.is_empty() { drop(kept.remove(&key)) } else { drop(kept.insert(key, contents)) }
        }
        self.shelf.publish(draft);
        outcome
    }

    async fn kept_contents(&self) -> Result<BTreeMap<ObjectKey, Contents>, StoreError> {
        Ok(self.contents.lock().clone())
    }
}
