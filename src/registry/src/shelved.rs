//! What every store is that has its state on a [`Shelf`]: they differ in where a write goes, and where contents are.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use berth_types::{ManagedModel, ManagedName};
use serde_json::Value;
use tokio::sync::watch;

use crate::managed::ManagedState;
use crate::state::{Outcome, Shelf, Write};
use crate::{Alias, Changes, Contents, Desired, Event, Expired, Managed, ManagedChange, Object, ObjectKey, Snapshot, Store, StoreError, Uid};

/// A store with a shelf. What it has kept is on the shelf by then.
pub(crate) trait Shelved: Send + Sync + 'static {
    fn shelf(&self) -> &Shelf;

    /// Decides, keeps and shows a write.
    fn write(&self, write: Write) -> impl Future<Output = Outcome> + Send;

    /// [`Store::contents`].
    fn kept_contents(&self) -> impl Future<Output = Result<BTreeMap<ObjectKey, Contents>, StoreError>> + Send;
}

/// The object that a write of an object gives back.
fn object(outcome: Outcome) -> Result<Arc<Object>, StoreError> {
    outcome?.ok_or_else(|| StoreError::Broken("a write of an object gave none back".to_owned()))
}

#[async_trait]
impl<S: Shelved> Store for S {
    fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.shelf().get(key)
    }

    fn list(&self) -> Vec<Arc<Object>> {
        self.shelf().snapshot().objects
    }

    fn snapshot(&self) -> Snapshot {
        self.shelf().snapshot()
    }

    fn version(&self) -> u64 {
        self.shelf().version()
    }

    fn epoch(&self) -> u64 {
        self.shelf().epoch()
    }

    async fn apply(&self, wanted: Arc<Desired>, expected: Option<u64>) -> Result<Arc<Object>, StoreError> {
        object(self.write(Write::Apply { wanted, expected }).await)
    }

    async fn set_status(&self, key: &ObjectKey, uid: Uid, status: Value) -> Result<Arc<Object>, StoreError> {
        object(self.write(Write::Status { key: key.clone(), uid, status: status.into() }).await)
    }

    async fn delete(&self, key: &ObjectKey) -> Result<Arc<Object>, StoreError> {
        object(self.write(Write::Delete { key: key.clone(), expected: None }).await)
    }

    async fn delete_version(&self, key: &ObjectKey, version: u64) -> Result<Arc<Object>, StoreError> {
        object(self.write(Write::Delete { key: key.clone(), expected: Some(version) }).await)
    }

    fn alias(&self, key: &ObjectKey) -> Option<Alias> {
        self.shelf().alias(key)
    }

    async fn set_alias(&self, key: &ObjectKey, uid: Uid, alias: Option<Alias>) -> Result<(), StoreError> {
        self.write(Write::Alias { key: key.clone(), uid, alias }).await.map(drop)
    }

    async fn contents(&self) -> Result<BTreeMap<ObjectKey, Contents>, StoreError> {
        self.kept_contents().await
    }

    async fn set_contents(&self, key: &ObjectKey, uid: Uid, contents: Contents) -> Result<(), StoreError> {
        self.write(Write::Contents { key: key.clone(), uid, contents }).await.map(drop)
    }

    fn subscribe(&self) -> Changes {
        self.shelf().subscribe()
    }

    fn events_after(&self, version: u64) -> Result<Vec<Event>, Expired> {
        self.shelf().events_after(version)
    }

    fn versions(&self) -> watch::Receiver<u64> {
        self.shelf().versions()
    }
}

#[async_trait]
impl<S: Shelved> Managed for S {
    fn managed_model(&self, id: &str) -> Option<Arc<ManagedModel>> {
        self.shelf().managed(|managed| managed.models.get(id).cloned())
    }

    fn managed_name(&self, name: &str) -> Option<Arc<ManagedName>> {
        self.shelf().managed(|managed| managed.names.get(name).cloned())
    }

    fn managed(&self) -> (Vec<Arc<ManagedModel>>, Vec<Arc<ManagedName>>) {
        self.shelf().managed(ManagedState::all)
    }

    async fn change_managed(&self, change: ManagedChange) -> Result<(), StoreError> {
        self.write(Write::Managed { change }).await.map(drop)
    }
}
