//! Writes: from what a client asks for to what the store does.
//!
//! - A write is based on the object as it was read; when somebody else was faster in between, a client that named the
//!   version it had seen gets a conflict, for others the write is worked out again.
//! - Only objects made through the API are touched. Those of a folder's file are changed there, and those that come with
//!   the program never.
//! - A dry run goes the same way up to the store.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use berth_registry::{Desired, Kind, Object, ObjectKey, Origin, Store, StoreError};
use berth_types::{Namespace, UnixMillis};
use futures::StreamExt;
use serde_json::Value;

use crate::document::Resource;
use crate::failure::{Cause, Failure};
use crate::options::{DeleteOptions, Unknown};
use crate::patch::Changes;
use crate::wanted::{Wanted, check_new_namespace};

/// How often a write is worked out again when statuses or other clients are faster.
const ATTEMPTS: usize = 16;
/// Generated names tried until one is free.
const NAMES: u64 = 8;
/// Removals of one request under way at a time; those share a disk write.
const REMOVALS_AT_ONCE: usize = 256;

/// The writes of one request.
pub(crate) struct Writer<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) now: UnixMillis,
    /// Nothing is stored.
    pub(crate) dry_run: bool,
    /// What to do about members that no resource has.
    pub(crate) unknown: Unknown,
    /// Differs from request to request; generated names come from it.
    pub(crate) number: u64,
}

/// What a write did.
pub(crate) struct Done {
    /// The object as it is now.
    pub(crate) object: Arc<Object>,
    /// It was not there before.
    pub(crate) made: bool,
    /// What of the request was not kept.
    pub(crate) remarks: Vec<String>,
}

impl Writer<'_> {
    /// `POST`.
    pub(crate) async fn create(&self, kind: Kind, namespace: Option<Namespace>, document: Value) -> Result<Done, Failure> {
        let (wanted, remarks) = self.read(kind, document)?;
        wanted.check_namespace(namespace.as_ref())?;
        if wanted.resource_version.is_some() {
            return Err(Failure::bad_request("metadata.resourceVersion must not be set on an object that is to be created"));
        }
        let key = |nth: u64| Ok::<_, Failure>(ObjectKey { kind, namespace: namespace.clone(), name: wanted.new_name(|| self.suffix(nth))? });
        let mut chosen = key(0)?;
        for nth in (1..NAMES).filter(|_| wanted.name.is_none()) {
            if self.store.get(&chosen).is_none() {
                break;
            }
            chosen = key(nth)?;
        }
        Ok(Done { object: self.make(chosen, wanted).await?, made: true, remarks })
    }

    /// `PUT`.
    pub(crate) async fn replace(&self, key: &ObjectKey, document: Value) -> Result<Done, Failure> {
        let (wanted, remarks) = self.read(key.kind, document)?;
        wanted.check_names(key)?;
        let present = self.present(key)?;
        check_may(&present, "change")?;
        let Some(seen) = wanted.resource_version.clone() else {
            let cause = Cause::required("metadata.resourceVersion", "the version that was read must be named when an object is replaced");
            return Err(Failure::invalid(key.kind, key.name.as_str(), vec![cause]));
        };
        match self.swap(&present, wanted).await? {
            Some(object) => Ok(Done { object, made: false, remarks }),
            None => Err(Failure::modified(key, &seen, self.present(key)?.resource_version)),
        }
    }

    /// `PATCH` with changes.
    pub(crate) async fn patch(&self, key: &ObjectKey, changes: &Changes) -> Result<Done, Failure> {
        for _ in 0..ATTEMPTS {
            let present = self.present(key)?;
            check_may(&present, "change")?;
            let document = serde_json::to_value(Resource::of(&present)).expect("a resource always has a JSON form");
            let (wanted, remarks) = self.read(key.kind, changes.apply(key, document)?)?;
            wanted.check_names(key)?;
            if let Some(object) = self.swap(&present, wanted).await? {
                return Ok(Done { object, made: false, remarks });
            }
        }
        Err(restless(key))
    }

    /// `PATCH` with the resource as its manifest has it.
    pub(crate) async fn apply(&self, key: &ObjectKey, document: Value) -> Result<Done, Failure> {
        let (mut wanted, remarks) = self.read(key.kind, document)?;
        wanted.name.get_or_insert_with(|| key.name.to_string());
        wanted.check_names(key)?;
        for _ in 0..ATTEMPTS {
            let Some(present) = self.store.get(key) else {
                if wanted.uid.is_some() || wanted.resource_version.is_some() {
                    return Err(Failure::not_found(key));
                }
                wanted.new_name(String::new)?;
                return Ok(Done { object: self.make(key.clone(), wanted).await?, made: true, remarks });
            };
            check_may(&present, "change")?;
            if let Some(object) = self.swap(&present, wanted.clone().over(&present)).await? {
                return Ok(Done { object, made: false, remarks });
            }
        }
        Err(restless(key))
    }

    /// `DELETE` of one object; gives it back as it was.
    pub(crate) async fn delete(&self, key: &ObjectKey, options: &DeleteOptions) -> Result<Arc<Object>, Failure> {
        for _ in 0..ATTEMPTS {
            let present = self.present(key)?;
            check_may(&present, "remove")?;
            options.check(&present)?;
            if self.dry_run || options.dry_run {
                return Ok(present);
            }
            match self.store.delete_version(key, present.resource_version).await {
                Err(StoreError::Conflict(_)) => {}
                gone => return gone.map_err(Failure::of_store),
            }
        }
        Err(restless(key))
    }

    /// `DELETE` of many: none, if one of them may not be removed. Gives back those that were removed.
    pub(crate) async fn delete_all(&self, objects: Vec<Arc<Object>>, options: &DeleteOptions) -> Result<Vec<Arc<Object>>, Failure> {
        for object in &objects {
            check_may(object, "remove")?;
            options.check(object)?;
        }
        let removals = futures::stream::iter(objects).map(|object| async move { self.delete(&object.key, options).await });
        let outcomes: Vec<_> = removals.buffered(REMOVALS_AT_ONCE).collect().await;
        // What somebody else removed meanwhile is gone, as asked.
        outcomes.into_iter().filter(|outcome| !matches!(outcome, Err(failure) if failure.code == http::StatusCode::NOT_FOUND)).collect()
    }

    /// The document as a resource, and what the client is told about it.
    fn read(&self, kind: Kind, document: Value) -> Result<(Wanted, Vec<String>), Failure> {
        let mut wanted = Wanted::read(kind, document)?;
        let mut remarks = std::mem::take(&mut wanted.remarks);
        let unknown = std::mem::take(&mut wanted.unknown).into_iter().map(|member| format!("unknown field {member:?}"));
        match self.unknown {
            Unknown::Ignored => {}
            Unknown::Told => remarks.extend(unknown),
            Unknown::Refused => {
                let unknown: Vec<String> = unknown.collect();
                if !unknown.is_empty() {
                    return Err(Failure::bad_request(format!("strict decoding error: {}", unknown.join(", "))));
                }
            }
        }
        Ok((wanted, remarks))
    }

    fn present(&self, key: &ObjectKey) -> Result<Arc<Object>, Failure> {
        self.store.get(key).ok_or_else(|| Failure::not_found(key))
    }

    async fn make(&self, key: ObjectKey, wanted: Wanted) -> Result<Arc<Object>, Failure> {
        check_new_namespace(key.kind, key.name.as_str(), key.namespace.as_ref())?;
        let object = wanted.object(key.clone())?;
        if let Some(present) = self.store.get(&key) {
            return Err(taken(&present));
        }
        if self.dry_run {
            return Ok(Arc::new(Object { generation: 1, created: self.now, ..object }));
        }
        match self.store.apply(object.desired, Some(0)).await {
            Err(StoreError::Conflict(text)) => {
                Err(self.store.get(&key).map_or_else(|| Failure::of_store(StoreError::Conflict(text)), |present| taken(&present)))
            }
            made => made.map_err(Failure::of_store),
        }
    }

    /// Puts `wanted` in the place of `present`; `None` when somebody else was faster.
    async fn swap(&self, present: &Object, wanted: Wanted) -> Result<Option<Arc<Object>>, Failure> {
        let key = &present.key;
        if let Some(sent) = wanted.resource_version.as_ref().filter(|sent| **sent != present.resource_version.to_string()) {
            return Err(Failure::modified(key, sent, present.resource_version));
        }
        if let Some(sent) = wanted.uid.as_ref().filter(|sent| **sent != present.uid.to_string()) {
            let sent: String = sent.chars().take(80).collect();
            return Err(Failure::conflict(key, &format!("metadata.uid is {sent}, the object has {}", present.uid)));
        }
        let object = wanted.object(key.clone())?;
        if self.dry_run {
            let generation = present.generation + u64::from(object.spec != present.spec);
            let desired = Arc::new(Desired { origin: present.origin.clone(), ..Desired::clone(&object) });
            return Ok(Some(Arc::new(Object { generation, desired, ..present.clone() })));
        }
        match self.store.apply(object.desired, Some(present.resource_version)).await {
            Ok(object) => Ok(Some(object)),
            Err(StoreError::Conflict(_)) => Ok(None),
            Err(fault) => Err(Failure::of_store(fault)),
        }
    }

    /// Five characters that make a name unlike those of other requests.
    fn suffix(&self, nth: u64) -> String {
        // No vowels, and nothing that looks like something else: no words come out of it.
        const CHARACTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
        let mut hasher = DefaultHasher::new();
        (self.store.epoch(), self.store.version(), self.number, nth).hash(&mut hasher);
        let mut rest = hasher.finish();
        let mut suffix = String::new();
        for _ in 0..5 {
            suffix.push(char::from(CHARACTERS[(rest % 27) as usize]));
            rest /= 27;
        }
        suffix
    }
}

/// Whether clients may `verb` this object.
fn check_may(object: &Object, verb: &str) -> Result<(), Failure> {
    match &object.origin {
        Origin::Api => Ok(()),
        Origin::Folder(file) => Err(Failure::conflict(&object.key, &format!("it comes from {}: {verb} it there", file.display()))),
        Origin::Bundled => Err(Failure::untouchable(&object.key, "it comes with the program")),
    }
}

/// The name of a new object belongs to `present`.
fn taken(present: &Object) -> Failure {
    let whence = match &present.origin {
        Origin::Api => String::new(),
        Origin::Folder(file) => format!(": it comes from {}", file.display()),
        Origin::Bundled => ": it comes with the program".to_owned(),
    };
    Failure::already_exists(&present.key, &whence)
}

fn restless(key: &ObjectKey) -> Failure {
    Failure::conflict(key, "the object has been modified again and again: try again")
}
