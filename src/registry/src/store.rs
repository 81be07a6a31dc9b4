//! Where desired state is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{Alias, Contents, Desired, Event, Expired, Object, ObjectKey, Uid};

/// What changed: the key, and the object as it is now (`None` when it is gone). Consumers that fall behind get the
/// newest state per key, never a growing queue.
#[derive(Clone, Debug)]
pub struct Change {
    /// Which object.
    pub key: ObjectKey,
    /// As it is now.
    pub object: Option<Arc<Object>>,
    /// The store's version of this change.
    pub resource_version: u64,
}

/// Why the store did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{0} not found")]
    NotFound(ObjectKey),
    /// Somebody else changed it first, or it belongs to somebody else.
    #[error("{0}")]
    Conflict(String),
    /// The store itself failed.
    #[error("{0}")]
    Broken(String),
}

/// Every object at one version of the store.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The version that the objects are of; events after it tell how they go on.
    pub version: u64,
    /// Ordered by key.
    pub objects: Vec<Arc<Object>>,
}

/// Desired state: resources, aliases and what else must outlive a leader. All writes are durable when they return, and nobody sees a write before it is
/// durable, so a crash takes back nothing that anybody saw.
///
/// Writers that have many changes at hand should send them together (`join_all`, a `JoinSet`): what waits at the same
/// time shares one disk write.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// One object.
    fn get(&self, key: &ObjectKey) -> Option<Arc<Object>>;

    /// Every object, ordered by key.
    fn list(&self) -> Vec<Arc<Object>>;

    /// Every object together with the version they are of.
    fn snapshot(&self) -> Snapshot;

    /// The store's present version; grows with every write and never repeats, restarts included.
    fn version(&self) -> u64;

    /// The epoch of this writer: larger than that of every writer before it.
    fn epoch(&self) -> u64;

    /// Makes an object, or replaces its desired part: labels, annotations, spec, origin. Unchanged input changes nothing. `expected` is the resource version that the
    /// caller has seen (0: none, the object must be new); `None` writes regardless.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `expected` is stale, or when the object belongs to another origin (a folder's file,
    /// the API, the program): the text names it.
    async fn apply(&self, wanted: Arc<Desired>, expected: Option<u64>) -> Result<Arc<Object>, StoreError>;

    /// Replaces the status, if the object still has this uid. The same status again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it is gone.
    async fn set_status(&self, key: &ObjectKey, uid: Uid, status: serde_json::Value) -> Result<Arc<Object>, StoreError>;

    /// Removes an object, its alias and its contents. Gives it back as it was, with the version of its removal.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    async fn delete(&self, key: &ObjectKey) -> Result<Arc<Object>, StoreError>;

    /// As [`Store::delete`], but only if the object still has this resource version.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Conflict`] when it has another version by now.
    async fn delete_version(&self, key: &ObjectKey, version: u64) -> Result<Arc<Object>, StoreError>;

    /// The alias of a resource's name.
    fn alias(&self, key: &ObjectKey) -> Option<Alias>;

    /// Keeps or (with `None`) forgets the alias of a resource's name, if the object still has this uid.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it is gone.
    async fn set_alias(&self, key: &ObjectKey, uid: Uid, alias: Option<Alias>) -> Result<(), StoreError>;

    /// What was kept with [`Store::set_contents`], for the start of a leader. Nothing of it is held in memory. A store that
    /// keeps none has none.
    ///
    /// # Errors
    /// [`StoreError::Broken`] when it cannot be read.
    async fn contents(&self) -> Result<BTreeMap<ObjectKey, Contents>, StoreError> {
        Ok(BTreeMap::new())
    }

    /// Keeps the first good contents of a resource's versions instead of those kept before, if the object still has this
    /// uid. The same again is written again.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when it is gone.
    async fn set_contents(&self, key: &ObjectKey, uid: Uid, _contents: Contents) -> Result<(), StoreError> {
        let kept = self.get(key).is_some_and(|object| object.uid == uid);
        if kept { Ok(()) } else { Err(StoreError::NotFound(key.clone())) }
    }

    /// Completes with the keys that changed since the last call of this subscription (at first: every key).
    fn subscribe(&self) -> Changes;

    /// Every single change after `version`, oldest first, no intermediate state left out.
    ///
    /// # Errors
    /// [`Expired`] when some of them are no longer kept.
    fn events_after(&self, version: u64) -> Result<Vec<Event>, Expired>;

    /// The present version as something to wait on; closed together with the store.
    fn versions(&self) -> watch::Receiver<u64>;
}

/// A subscription to a [`Store`].
pub struct Changes {
    pending: Arc<Pending>,
}

impl Changes {
    /// What changed since the last call, newest state per key; waits until there is something. The first call gives every
    /// object at once, even when there is none. `None` when the store is closed.
    ///
    /// Nothing is lost when the future is dropped before it completes.
    pub async fn next(&mut self) -> Option<Vec<Change>> {
        loop {
            {
                let mut waiting = self.pending.waiting.lock();
                if waiting.first || !waiting.changes.is_empty() {
                    waiting.first = false;
                    return Some(std::mem::take(&mut waiting.changes).into_values().collect());
                }
                if waiting.closed {
                    return None;
                }
            }
            self.pending.wake.notified().await;
        }
    }
}

/// What one subscriber has not seen yet.
struct Pending {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

struct Waiting {
    changes: BTreeMap<ObjectKey, Change>,
    /// The first call was not answered yet.
    first: bool,
    closed: bool,
}

/// The subscribers of one store.
#[derive(Default)]
pub(crate) struct Subscribers(Vec<Weak<Pending>>);

impl Subscribers {
    /// A new subscriber, to whom `objects` are news.
    pub(crate) fn add<'o>(&mut self, objects: impl Iterator<Item = &'o Arc<Object>>) -> Changes {
        let change =
            |object: &Arc<Object>| Change { key: object.key.clone(), object: Some(Arc::clone(object)), resource_version: object.resource_version };
        let changes = objects.map(|object| (object.key.clone(), change(object))).collect();
        let pending = Arc::new(Pending { waiting: Mutex::new(Waiting { changes, first: true, closed: false }), wake: Notify::new() });
        self.0.retain(|subscriber| subscriber.strong_count() > 0);
        self.0.push(Arc::downgrade(&pending));
        Changes { pending }
    }

    pub(crate) fn tell(&self, changes: &[Change]) {
        for pending in self.0.iter().filter_map(Weak::upgrade) {
            pending.waiting.lock().changes.extend(changes.iter().map(|change| (change.key.clone(), change.clone())));
            pending.wake.notify_one();
        }
    }

    pub(crate) fn close(&self) {
        for pending in self.0.iter().filter_map(Weak::upgrade) {
            pending.waiting.lock().closed = true;
            pending.wake.notify_one();
        }
    }
}
