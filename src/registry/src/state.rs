//! What both stores share: the state in memory and the one place that decides what a write does.
//!
//! A write goes through three steps: [`Shelf::decide`] works it out into a [`Draft`], the store makes the draft durable,
//! and [`Shelf::publish`] shows it. Readers see nothing of a draft before. There is one writer at a time; it may put many
//! writes into one draft, later ones seeing earlier ones.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_types::UnixMillis;
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::event::Recent;
use crate::managed::{ManagedDraft, ManagedState, Seen};
use crate::store::Subscribers;
use crate::{
    Alias, Change, Changes, Contents, Desired, Event, EventKind, Expired, Json, ManagedChange, Object, ObjectKey, Origin, Snapshot, StoreError, Uid,
};

/// A change that somebody asks for.
pub(crate) enum Write {
    Apply { wanted: Arc<Desired>, expected: Option<u64> },
    Status { key: ObjectKey, uid: Uid, status: Json },
    Delete { key: ObjectKey, expected: Option<u64> },
    Alias { key: ObjectKey, uid: Uid, alias: Option<Alias> },
    Contents { key: ObjectKey, uid: Uid, contents: Contents },
    Managed { change: ManagedChange },
}

/// The object as a write left it; `None` for writes of something else.
pub(crate) type Outcome = Result<Option<Arc<Object>>, StoreError>;

/// Writes that were decided and not shown yet.
#[derive(Default)]
pub(crate) struct Draft {
    /// The store's version after them; 0 while nothing changed.
    pub(crate) version: u64,
    /// Objects as they will be; `None` for removed ones.
    pub(crate) objects: BTreeMap<ObjectKey, Option<Arc<Object>>>,
    /// Aliases as they will be; `None` for forgotten ones.
    pub(crate) aliases: BTreeMap<ObjectKey, Option<Alias>>,
    /// Contents as they will be; empty for forgotten ones. The shelf holds none: the store keeps them.
    pub(crate) contents: BTreeMap<ObjectKey, Contents>,
    /// What calls have made.
    pub(crate) managed: ManagedDraft,
    events: Vec<Event>,
}

impl Draft {
    pub(crate) fn is_empty(&self) -> bool {
        self.version == 0
    }
}

/// What a store starts with.
pub(crate) struct Beginning {
    pub(crate) objects: Vec<Arc<Object>>,
    pub(crate) aliases: BTreeMap<ObjectKey, Alias>,
    pub(crate) managed: ManagedState,
    pub(crate) version: u64,
    pub(crate) epoch: u64,
    /// Tells this store's uids from those of every other store.
    pub(crate) identity: u64,
}

/// An object in its place among the others: it carries its own key.
struct Held(Arc<Object>);

impl Borrow<ObjectKey> for Held {
    fn borrow(&self) -> &ObjectKey {
        &self.0.key
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

struct State {
    objects: BTreeSet<Held>,
    aliases: BTreeMap<ObjectKey, Alias>,
    managed: ManagedState,
    version: u64,
    recent: Recent,
    subscribers: Subscribers,
}

impl State {
    fn object(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.objects.get(key).map(|held| Arc::clone(&held.0))
    }
}

/// The state of a store in memory.
pub(crate) struct Shelf {
    state: RwLock<State>,
    version: watch::Sender<u64>,
    epoch: u64,
    identity: u64,
}

impl Shelf {
    pub(crate) fn new(beginning: Beginning) -> Self {
        let Beginning { objects, aliases, managed, version, epoch, identity } = beginning;
        let objects = objects.into_iter().map(Held).collect();
        let state = State { objects, aliases, managed, version, recent: Recent::after(version), subscribers: Subscribers::default() };
        Shelf { state: RwLock::new(state), version: watch::Sender::new(version), epoch, identity }
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.state.read().object(key)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.state.read();
        Snapshot { version: state.version, objects: state.objects.iter().map(|held| Arc::clone(&held.0)).collect() }
    }

    pub(crate) fn alias(&self, key: &ObjectKey) -> Option<Alias> {
        self.state.read().aliases.get(key).cloned()
    }

    /// Looks at what calls have made.
    pub(crate) fn managed<T>(&self, look: impl FnOnce(&ManagedState) -> T) -> T {
        look(&self.state.read().managed)
    }

    pub(crate) fn version(&self) -> u64 {
        self.state.read().version
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn subscribe(&self) -> Changes {
        let State { objects, subscribers, .. } = &mut *self.state.write();
        subscribers.add(objects.iter().map(|held| &held.0))
    }

    pub(crate) fn events_after(&self, version: u64) -> Result<Vec<Event>, Expired> {
        let state = self.state.read();
        state.recent.after_version(version, state.version)
    }

    pub(crate) fn versions(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Ends all subscriptions.
    pub(crate) fn close(&self) {
        self.state.read().subscribers.close();
    }

    /// Works `write` out on top of the state and of what `draft` already holds.
    pub(crate) fn decide(&self, draft: &mut Draft, write: Write, now: UnixMillis) -> Outcome {
        let state = self.state.read();
        let object = |draft: &Draft, key: &ObjectKey| match draft.objects.get(key) {
            Some(drafted) => drafted.clone(),
            None => state.object(key),
        };
        let next = draft.version.max(state.version) + 1;
        match write {
            Write::Apply { wanted, expected } => {
                let present = object(draft, &wanted.key);
                check_expected(&wanted.key, present.as_deref(), expected)?;
                let Some(present) = present else {
                    let uid = Uid::of(self.identity, next);
                    let status = wanted.key.kind.first_status().map(Json::from);
                    let fresh = Object { desired: wanted, uid, resource_version: next, generation: 1, created: now, status };
                    return Ok(Some(draft.put(EventKind::Added, fresh, None)));
                };
                if let Some(conflict) = belongs_to_another(&present, &wanted.origin) {
                    return Err(StoreError::Conflict(conflict));
                }
                match replaced(&present, wanted, next) {
                    None => Ok(Some(present)),
                    Some(written) => Ok(Some(draft.put(EventKind::Modified, written, Some(present)))),
                }
            }
            Write::Status { key, uid, status } => {
                let present = object(draft, &key).filter(|present| present.uid == uid).ok_or(StoreError::NotFound(key))?;
                if present.status.as_ref() == Some(&status) {
                    return Ok(Some(present));
                }
                let written = Object { status: Some(status), resource_version: next, ..Object::clone(&present) };
                Ok(Some(draft.put(EventKind::Modified, written, Some(present))))
            }
            Write::Delete { key, expected } => {
                let present = object(draft, &key).ok_or_else(|| StoreError::NotFound(key.clone()))?;
                check_expected(&key, Some(&present), expected)?;
                let gone = Object { resource_version: next, ..Object::clone(&present) };
                // An alias left behind would bring an old version back when a resource of that name is made again.
                if state.aliases.contains_key(&key) || draft.aliases.contains_key(&key) {
                    draft.aliases.insert(key.clone(), None);
                }
                draft.contents.insert(key, Contents::new());
                Ok(Some(draft.put(EventKind::Deleted, gone, Some(present))))
            }
            Write::Alias { key, uid, alias } => {
                if object(draft, &key).is_none_or(|present| present.uid != uid) {
                    return Err(StoreError::NotFound(key));
                }
                let present = draft.aliases.get(&key).map_or_else(|| state.aliases.get(&key), Option::as_ref);
                if present != alias.as_ref() {
                    draft.version = next;
                    draft.aliases.insert(key, alias);
                }
                Ok(None)
            }
            Write::Contents { key, uid, contents } => {
                if object(draft, &key).is_none_or(|present| present.uid != uid) {
                    return Err(StoreError::NotFound(key));
                }
                draft.version = next;
                draft.contents.insert(key, contents);
                Ok(None)
            }
            Write::Managed { mut change } => {
                let puts = change(&Seen { state: &state.managed, draft: &draft.managed });
                if !puts.is_empty() {
                    draft.version = next;
                    puts.into_iter().for_each(|put| draft.managed.put(put, &state.managed));
                }
                Ok(None)
            }
        }
    }

    /// Shows a draft that is durable now.
    pub(crate) fn publish(&self, draft: Draft) {
        if draft.is_empty() {
            return;
        }
        let Draft { version, objects, aliases, contents: _, managed, events } = draft;
        let mut state = self.state.write();
        state.version = version;
        state.managed.take(managed);
        for (key, object) in objects {
            match object {
                Some(object) => drop(state.objects.replace(Held(object))),
                None => drop(state.objects.remove(&key)),
            }
        }
        for (key, alias) in aliases {
            match alias {
                Some(alias) => drop(state.aliases.insert(key, alias)),
                None => drop(state.aliases.remove(&key)),
            }
        }
        let changes: Vec<Change> = events.iter().map(change).collect();
        state.subscribers.tell(&changes);
        for event in events {
            state.recent.push(event);
        }
        // Under the lock, so that whoever is woken finds at least this version.
        self.version.send_replace(version);
    }
}

impl Draft {
    fn put(&mut self, kind: EventKind, object: Object, before: Option<Arc<Object>>) -> Arc<Object> {
        let object = Arc::new(object);
        self.version = object.resource_version;
        self.objects.insert(object.key.clone(), (kind != EventKind::Deleted).then(|| Arc::clone(&object)));
        self.events.push(Event { kind, object: Arc::clone(&object), before });
        object
    }
}

fn change(event: &Event) -> Change {
    Change {
        key: event.object.key.clone(),
        object: (event.kind != EventKind::Deleted).then(|| Arc::clone(&event.object)),
        resource_version: event.version(),
    }
}

/// `present` with `wanted` as its desired part; `None` when that is what it has.
fn replaced(present: &Object, wanted: Arc<Desired>, version: u64) -> Option<Object> {
    if present.is_as_desired(&wanted) {
        return None;
    }
    let generation = present.generation + u64::from(wanted.spec != present.spec);
    Some(Object { desired: wanted, resource_version: version, generation, ..present.clone() })
}

fn check_expected(key: &ObjectKey, present: Option<&Object>, expected: Option<u64>) -> Result<(), StoreError> {
    let now = present.map_or(0, |object| object.resource_version);
    match expected {
        None => Ok(()),
        Some(expected) if expected == now => Ok(()),
        Some(0) => Err(StoreError::Conflict(format!("{key} exists already"))),
        Some(expected) if now == 0 => Err(StoreError::Conflict(format!("{key} was removed after version {expected}: read it again"))),
        Some(expected) => Err(StoreError::Conflict(format!("{key} has changed from version {expected} to {now}: read it again and apply to that"))),
    }
}

/// Why `origin` may not write to `present`, which belongs to somebody else.
fn belongs_to_another(present: &Object, origin: &Origin) -> Option<String> {
    let key = &present.key;
    match (&present.origin, origin) {
        (Origin::Folder(_), Origin::Folder(_)) | (Origin::Api, Origin::Api) | (Origin::Bundled, Origin::Bundled) => None,
        (Origin::Folder(file), Origin::Api) => Some(format!("{key} comes from {}: change it there", file.display())),
        (Origin::Api, Origin::Folder(file)) => Some(format!("{key} was made through the API: delete it there, or remove it from {}", file.display())),
        (Origin::Bundled, Origin::Folder(file)) => Some(format!("{key} comes with the program: choose another name in {}", file.display())),
        (Origin::Bundled, Origin::Api) => Some(format!("{key} comes with the program: choose another name")),
        (Origin::Folder(file), Origin::Bundled) => {
            Some(format!("the name of {key} belongs to the program: choose another one in {}", file.display()))
        }
        (Origin::Api, Origin::Bundled) => Some(format!("the name of {key} belongs to the program: delete the one made through the API")),
    }
}
