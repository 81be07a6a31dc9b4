//! A store that forgets: for tests, and for trying something without a data folder.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use berth_telemetry::Clock;
use berth_types::{ManagedModel, ManagedName};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

use crate::managed::ManagedState;
use crate::state::{Beginning, Draft, Outcome, Shelf, Write};
use crate::{Alias, Changes, Contents, Desired, Event, Expired, Managed, ManagedChange, Object, ObjectKey, Snapshot, Store, StoreError, Uid};

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

    fn write(&self, write: Write) -> Outcome {
        let mut kept = self.contents.lock();
        let mut draft = Draft::default();
        let outcome = self.shelf.decide(&mut draft, write, self.clock.wall());
        for (key, contents) in std::mem::take(&mut draft.contents) {
            if contents.is_empty() { drop(kept.remove(&key)) } else { drop(kept.insert(key, contents)) }
        }
        self.shelf.publish(draft);
        outcome
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.shelf.close();
    }
}

/// The object that a write of an object gives back.
pub(crate) fn object(outcome: Outcome) -> Result<Arc<Object>, StoreError> {
    outcome?.ok_or_else(|| StoreError::Broken("a write of an object gave none back".to_owned()))
}

#[async_trait]
impl Store for MemoryStore {
    fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.shelf.get(key)
    }

    fn list(&self) -> Vec<Arc<Object>> {
        self.shelf.snapshot().objects
    }

    fn snapshot(&self) -> Snapshot {
        self.shelf.snapshot()
    }

    fn version(&self) -> u64 {
        self.shelf.version()
    }

    fn epoch(&self) -> u64 {
        self.shelf.epoch()
    }

    async fn apply(&self, wanted: Arc<Desired>, expected: Option<u64>) -> Result<Arc<Object>, StoreError> {
        object(self.write(Write::Apply { wanted, expected }))
    }

    async fn set_status(&self, key: &ObjectKey, uid: Uid, status: Value) -> Result<Arc<Object>, StoreError> {
        object(self.write(Write::Status { key: key.clone(), uid, status: status.into() }))
    }

    async fn delete(&self, key: &ObjectKey) -> Result<Arc<Object>, StoreError> {
        object(self.write(Write::Delete { key: key.clone(), expected: None }))
    }

    async fn delete_version(&self, key: &ObjectKey, version: u64) -> Result<Arc<Object>, StoreError> {
        object(self.write(Write::Delete { key: key.clone(), expected: Some(version) }))
    }

    fn alias(&self, key: &ObjectKey) -> Option<Alias> {
        self.shelf.alias(key)
    }

    async fn set_alias(&self, key: &ObjectKey, uid: Uid, alias: Option<Alias>) -> Result<(), StoreError> {
        self.write(Write::Alias { key: key.clone(), uid, alias }).map(drop)
    }

    async fn contents(&self) -> Result<BTreeMap<ObjectKey, Contents>, StoreError> {
        Ok(self.contents.lock().clone())
    }

    async fn set_contents(&self, key: &ObjectKey, uid: Uid, contents: Contents) -> Result<(), StoreError> {
        self.write(Write::Contents { key: key.clone(), uid, contents }).map(drop)
    }

    fn subscribe(&self) -> Changes {
        self.shelf.subscribe()
    }

    fn events_after(&self, version: u64) -> Result<Vec<Event>, Expired> {
        self.shelf.events_after(version)
    }

    fn versions(&self) -> watch::Receiver<u64> {
        self.shelf.versions()
    }
}

#[async_trait]
impl Managed for MemoryStore {
    fn managed_model(&self, id: &str) -> Option<Arc<ManagedModel>> {
        self.shelf.managed(|managed| managed.models.get(id).cloned())
    }

    fn managed_name(&self, name: &str) -> Option<Arc<ManagedName>> {
        self.shelf.managed(|managed| managed.names.get(name).cloned())
    }

    fn managed(&self) -> (Vec<Arc<ManagedModel>>, Vec<Arc<ManagedName>>) {
        self.shelf.managed(ManagedState::all)
    }

    async fn change_managed(&self, change: ManagedChange) -> Result<(), StoreError> {
        self.write(Write::Managed { change }).map(drop)
    }
}
