//! What both stores share: the state in memory and the one place that decides what a write does.
//!
//! A write goes through three steps: [`Shelf::decide`] works it out into a [`Draft`], the store makes the draft durable,
//! and [`Shelf::publish`] shows it. Readers see nothing of a draft before. There is one writer at a time; it may put many
//! writes into one draft, later ones seeing earlier ones.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use berth_types::UnixMillis;
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::watch;

use crate::event::Recent;
use crate::store::Subscribers;
use crate::{Alias, Change, Changes, Event, EventKind, Expired, Object, ObjectKey, Origin, Snapshot, StoreError};

/// A change that somebody asks for.
pub(crate) enum Write {
    Apply { object: Box<Object>, expected: Option<u64> },
    Status { key: ObjectKey, uid: String, status: Value },
    Delete { key: ObjectKey, expected: Option<u64> },
    Alias { key: ObjectKey, uid: String, alias: Option<Alias> },
}

/// The object as a write left it; `None` for writes of aliases.
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
    events: Vec<Event>,
}

impl Draft {
    pub(crate) fn is_empty(&self) -> bool {
        self.version == 0
    }
}

/// What a store starts with.
pub(crate) struct Beginning {
    pub(crate) objects: BTreeMap<ObjectKey, Arc<Object>>,
    pub(crate) aliases: BTreeMap<ObjectKey, Alias>,
    pub(crate) version: u64,
    pub(crate) epoch: u64,
    /// Tells this store's uids from those of every other store.
    pub(crate) identity: u64,
}

struct State {
    objects: BTreeMap<ObjectKey, Arc<Object>>,
    aliases: BTreeMap<ObjectKey, Alias>,
    version: u64,
    recent: Recent,
    subscribers: Subscribers,
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
        let Beginning { objects, aliases, version, epoch, identity } = beginning;
        let state = State { objects, aliases, version, recent: Recent::after(version), subscribers: Subscribers::default() };
        Shelf { state: RwLock::new(state), version: watch::Sender::new(version), epoch, identity }
    }

    pub(crate) fn get(&self, key: &ObjectKey) -> Option<Arc<Object>> {
        self.state.read().objects.get(key).cloned()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.state.read();
        Snapshot { version: state.version, objects: state.objects.values().cloned().collect() }
    }

    pub(crate) fn alias(&self, key: &ObjectKey) -> Option<Alias> {
        self.state.read().aliases.get(key).cloned()
    }

    pub(crate) fn version(&self) -> u64 {
        self.state.read().version
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn subscribe(&self) -> Changes {
        let State { objects, subscribers, .. } = &mut *self.state.write();
        subscribers.add(objects.values())
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
            None => state.objects.get(key).cloned(),
        };
        let next = draft.version.max(state.version) + 1;
        match write {
            Write::Apply { object: wanted, expected } => {
                let present = object(draft, &wanted.key);
                check_expected(&wanted.key, present.as_deref(), expected)?;
                let Some(present) = present else {
                    let fresh =
                        Object { uid: uid(self.identity, next), resource_version: next, generation: 1, created: now, status: None, ..*wanted };
                    return Ok(Some(draft.put(EventKind::Added, fresh, None)));
                };
                if let Some(conflict) = belongs_to_another(&present, &wanted.origin) {
                    return Err(StoreError::Conflict(conflict));
                }
                match replaced(&present, *wanted, next) {
                    None => Ok(Some(present)),
                    Some(written) => Ok(Some(draft.put(EventKind::Modified, written, Some(present)))),
                }
            }
            Write::Status { key, uid, status } => {
                let present = object(draft, &key).filter(|present| present.uid == uid).ok_or(StoreError::NotFound(key))?;
                if present.status.as_deref() == Some(&status) {
                    return Ok(Some(present));
                }
                let written = Object { status: Some(Arc::new(status)), resource_version: next, ..Object::clone(&present) };
                Ok(Some(draft.put(EventKind::Modified, written, Some(present))))
            }
            Write::Delete { key, expected } => {
                let present = object(draft, &key).ok_or_else(|| StoreError::NotFound(key.clone()))?;
                check_expected(&key, Some(&present), expected)?;
                let gone = Object { resource_version: next, ..Object::clone(&present) };
                // An alias left behind would bring an old version back when a resource of that name is made again.
                if state.aliases.contains_key(&key) || draft.aliases.contains_key(&key) {
                    draft.aliases.insert(key, None);
                }
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
        }
    }

    /// Shows a draft that is durable now.
    pub(crate) fn publish(&self, draft: Draft) {
        if draft.is_empty() {
            return;
        }
        let Draft { version, objects, aliases, events } = draft;
        let mut state = self.state.write();
        state.version = version;
        for (key, object) in objects {
            match object {
                Some(object) => drop(state.objects.insert(key, object)),
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

/// `present` with the desired part of `wanted`; `None` when that is what it has.
fn replaced(present: &Object, wanted: Object, version: u64) -> Option<Object> {
    if present.is_as_desired(&wanted) {
        return None;
    }
    let Object { key, origin, labels, annotations, spec, .. } = wanted;
    let same_spec = spec == present.spec;
    Some(Object {
        key,
        uid: present.uid.clone(),
        resource_version: version,
        generation: present.generation + u64::from(!same_spec),
        created: present.created,
        origin,
        labels,
        annotations,
        spec: if same_spec { Arc::clone(&present.spec) } else { spec },
        status: present.status.clone(),
    })
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

/// Unique over all time: no store has a version twice, and no two stores have one identity. In the form of a UUID
/// (version 8: made by the application).
fn uid(identity: u64, version: u64) -> String {
    let half = |which: u8| {
        let mut hasher = DefaultHasher::new();
        (which, identity, version).hash(&mut hasher);
        hasher.finish()
    };
    let (high, low) = (half(0), half(1));
    format!(
        "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | ((low >> 48) & 0x3fff),
        low & 0xffff_ffff_ffff
    )
}
