//! A watch: every change of the chosen objects as a line of JSON, no intermediate state left out.
//!
//! A watch may be quiet for as long as nothing changes. Clients that take bookmarks get one a minute then: they go on from
//! there later, and a connection whose other end has gone is noticed.
//!
//! A watch of tables tells a resource once more when its download got further, in the version that it has. That is a look at
//! the present, at most once a second: a slow client is told less often, and nothing waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use berth_registry::{Event, EventKind, Kind, Object, ObjectKey, Store};
use berth_telemetry::Clock;
use berth_types::{Deadline, Name, Namespace};
use bytes::Bytes;
use futures::Stream;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::accept::Form;
use crate::failure::Failure;
use crate::fetching::{Downloads, Picture, TELL_EVERY};
use crate::print::{Printer, line};
use crate::query::Query;

/// How long a watch lasts when the client does not say: it is expected to begin again where it was.
const USUAL: Duration = Duration::from_secs(30 * 60);
/// How long a watch is quiet before a client that takes bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Events written into one piece of the answer.
const EVENTS_PER_PIECE: usize = 128;

/// Which objects a read is about.
pub(crate) struct Scope {
    pub(crate) kind: Kind,
    pub(crate) namespace: Option<Namespace>,
    pub(crate) query: Query,
}

impl Scope {
    pub(crate) fn covers(&self, object: &Object) -> bool {
        object.key.kind == self.kind
            && self.namespace.as_ref().is_none_or(|namespace| object.key.namespace.as_ref() == Some(namespace))
            && self.query.chooses(object)
    }
}

/// What a change is to somebody who sees only the objects of `scope`: an object whose labels change may come into sight or
/// leave it.
fn seen_as(scope: &Scope, event: &Event) -> Option<&'static str> {
    let before = event.before.as_ref().is_some_and(|object| scope.covers(object));
    let after = event.kind != EventKind::Deleted && scope.covers(&event.object);
    match (before, after) {
        (false, false) => None,
        (false, true) => Some("ADDED"),
        (true, true) => Some("MODIFIED"),
        (true, false) => Some("DELETED"),
    }
}

/// How long the watch that `query` asks for lasts.
pub(crate) fn lasts(query: &Query) -> Duration {
    query.timeout.unwrap_or(USUAL).min(24 * USUAL)
}

/// The downloads, to somebody who watches resources.
struct Fetching {
    downloads: Arc<dyn Downloads>,
    changes: Receiver<u64>,
    /// The number of the change that was looked at last.
    seen: u64,
    /// When the next look may be.
    look_at: Deadline,
    /// Which resources have the names of models that are being fetched, where every namespace is watched.
    keys: BTreeMap<String, Vec<ObjectKey>>,
}

impl Fetching {
    /// What is being fetched now, if there is something new and it is time to look.
    fn look(&mut self, clock: &Clock) -> Option<Picture> {
        let number = *self.changes.borrow();
        if number == self.seen || clock.now() < self.look_at.instant() {
            return None;
        }
        self.seen = number;
        self.look_at = clock.deadline_in(TELL_EVERY);
        Some(Picture::of(&*self.downloads))
    }

    /// Completes when there is something new and it is time to look.
    async fn due(&self, clock: &Clock) {
        let seen = self.seen;
        let mut changes = self.changes.clone();
        let nobody_fetches_any_more = changes.wait_for(|number| *number != seen).await.is_err();
        if nobody_fetches_any_more {
            std::future::pending::<()>().await;
        }
        clock.sleep_until(self.look_at).await;
    }

    /// The objects of `scope` with one of `names`. A name that was not there before is looked for among all objects once.
    fn objects(&mut self, names: &[String], store: &dyn Store, scope: &Scope) -> Vec<Arc<Object>> {
        let kind = scope.kind;
        let keys: Vec<ObjectKey> = match &scope.namespace {
            Some(namespace) => {
                let key = |name: &String| Some(ObjectKey { kind, namespace: Some(namespace.clone()), name: Name::new(name).ok()? });
                names.iter().filter_map(key).collect()
            }
            None => {
                let mut new: BTreeMap<&str, Vec<ObjectKey>> =
                    names.iter().filter(|name| !self.keys.contains_key(*name)).map(|name| (name.as_str(), Vec::new())).collect();
                if !new.is_empty() {
                    for object in store.snapshot().objects.iter().filter(|object| object.key.kind == kind) {
                        if let Some(keys) = new.get_mut(object.key.name.as_str()) {
                            keys.push(object.key.clone());
                        }
                    }
                }
                self.keys.extend(new.into_iter().map(|(name, keys)| (name.to_owned(), keys)));
                names.iter().filter_map(|name| self.keys.get(name)).flatten().cloned().collect()
            }
        };
        keys.iter().filter_map(|key| store.get(key)).filter(|object| scope.covers(object)).collect()
    }
}

/// A watch under way.
struct Watch {
    store: Arc<dyn Store>,
    /// For tables of what may be fetched.
    fetching: Option<Fetching>,
    scope: Scope,
    /// Objects that are there when a watch begins without a version; told as added.
    first: VecDeque<Arc<Object>>,
    seen: u64,
    versions: Receiver<u64>,
    printer: Printer,
    /// Nothing has been told yet.
    silent: bool,
    /// When the next bookmark is due, for clients that take them.
    mark_at: Option<Deadline>,
    clock: Clock,
    until: Deadline,
    shutdown: CancellationToken,
    ended: bool,
    /// Its place among those that may be open at a time.
    _place: OwnedSemaphorePermit,
}

/// Why the next line is not awaited any more.
enum Woken {
    Changed,
    Fetched,
    Quiet,
    Ended,
}

/// The lines of a watch.
///
/// # Errors
/// The changes since the version that the client has seen are no longer kept.
pub(crate) fn watch(
    store: Arc<dyn Store>,
    downloads: Option<Arc<dyn Downloads>>,
    scope: Scope,
    mut printer: Printer,
    place: OwnedSemaphorePermit,
    shutdown: CancellationToken,
) -> Result<impl Stream<Item = Result<Bytes, std::convert::Infallible>>, Failure> {
    let versions = store.versions();
    let (first, seen) = match scope.query.resource_version {
        Some(seen) => {
            store.events_after(seen).map_err(|expired| Failure::expired(expired.to_string()))?;
            (VecDeque::new(), seen)
        }
        None => {
            let snapshot = store.snapshot();
            (snapshot.objects.into_iter().filter(|object| scope.covers(object)).collect(), snapshot.version)
        }
    };
    let clock = printer.clock.clone();
    let until = clock.deadline_in(lasts(&scope.query));
    let fetched = printer.form == Form::Table && matches!(scope.kind, Kind::InferenceService | Kind::Predictor);
    let fetching = downloads.filter(|_| fetched).map(|downloads| {
        let changes = downloads.changes();
        let seen = *changes.borrow();
        printer.fetching = Picture::of(&*downloads);
        Fetching { downloads, changes, seen, look_at: clock.deadline_in(TELL_EVERY), keys: BTreeMap::new() }
    });
    let mark_at = scope.query.bookmarks.then(|| clock.deadline_in(BOOKMARK_EVERY));
    let watch =
        Watch { store, fetching, scope, first, seen, versions, printer, silent: true, mark_at, clock, until, shutdown, ended: false, _place: place };
    Ok(futures::stream::unfold(watch, |mut watch| async move {
        let piece = watch.next().await?;
        watch.mark_at = watch.mark_at.map(|_past| watch.clock.deadline_in(BOOKMARK_EVERY));
        Some((Ok(piece), watch))
    }))
}

impl Watch {
    /// The next lines; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            if !self.first.is_empty() {
                let some = self.first.len().min(EVENTS_PER_PIECE);
                let told: Vec<Arc<Object>> = self.first.drain(..some).collect();
                return Some(told.iter().flat_map(|object| self.tell("ADDED", object)).collect());
            }
            self.versions.mark_unchanged();
            let lines = self.changes();
            if !lines.is_empty() {
                return Some(lines.into());
            }
            let lines = self.progress();
            if !lines.is_empty() {
                return Some(lines.into());
            }
            match self.wait().await {
                Woken::Changed | Woken::Fetched => {}
                Woken::Ended => self.ended = true,
                Woken::Quiet => return Some(self.printer.bookmark(self.scope.kind, self.seen).into()),
            }
        }
    }

    async fn wait(&mut self) -> Woken {
        let quiet = async {
            match self.mark_at {
                Some(due) => self.clock.sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let fetched = async {
            match &self.fetching {
                Some(fetching) => fetching.due(&self.clock).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = fetched => Woken::Fetched,
            changed = self.versions.changed() => if changed.is_err() { Woken::Ended } else { Woken::Changed },
            () = self.clock.sleep_until(self.until) => Woken::Ended,
            () = self.shutdown.cancelled() => Woken::Ended,
            () = quiet => Woken::Quiet,
        }
    }

    /// The resources whose downloads got further since the last look, as far as the client knows them.
    fn progress(&mut self) -> Vec<u8> {
        let Some(picture) = self.fetching.as_mut().and_then(|fetching| fetching.look(&self.clock)) else { return Vec::new() };
        let names = self.printer.fetching.differences(&picture, self.scope.kind);
        self.printer.fetching = picture;
        let mut found = Vec::new();
        if let Some(fetching) = &mut self.fetching {
            found = fetching.objects(&names, &*self.store, &self.scope);
            fetching.keys.retain(|name, _| self.printer.fetching.has(self.scope.kind, name));
        }
        // What changed just now is told by its own event.
        let known = found.iter().filter(|object| object.resource_version <= self.seen);
        known
            .flat_map(|object| {
                let first = std::mem::take(&mut self.silent);
                self.printer.event("MODIFIED", object, first)
            })
            .collect()
    }

    fn tell(&mut self, kind: &'static str, object: &Object) -> Vec<u8> {
        let first = std::mem::take(&mut self.silent);
        self.printer.event(kind, object, first)
    }

    /// What happened since the last call, until it is something that the client sees or the present is reached.
    fn changes(&mut self) -> Vec<u8> {
        let events = match self.store.events_after(self.seen) {
            Ok(events) => events,
            Err(expired) => {
                // The client reads more slowly than things change. It is told to list again.
                self.ended = true;
                return line::<Value>("ERROR", &Failure::expired(expired.to_string()).document());
            }
        };
        for some in events.chunks(EVENTS_PER_PIECE) {
            let mut lines = Vec::new();
            for event in some {
                if let Some(kind) = seen_as(&self.scope, event) {
                    lines.extend(self.tell(kind, &event.object));
                }
            }
            self.seen = some.last().map_or(self.seen, Event::version);
            if !lines.is_empty() {
                return lines;
            }
        }
        Vec::new()
    }
}
