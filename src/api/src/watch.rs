//! A watch: every change of the chosen objects as a line of JSON, no intermediate state left out.
//!
//! A watch may be quiet for as long as nothing changes. Clients that take bookmarks get one a minute then: they go on from
//! there later, and a connection whose other end has gone is noticed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use berth_registry::{Event, EventKind, Kind, Object, Store};
use berth_telemetry::Clock;
use berth_types::{Deadline, Namespace};
use bytes::Bytes;
use futures::Stream;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
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

/// A watch under way.
struct Watch {
    store: Arc<dyn Store>,
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
    Quiet,
    Ended,
}

/// The lines of a watch.
///
/// # Errors
/// The changes since the version that the client has seen are no longer kept.
pub(crate) fn watch(
    store: Arc<dyn Store>,
    scope: Scope,
    printer: Printer,
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
    let until = clock.deadline_in(scope.query.timeout.unwrap_or(USUAL).min(24 * USUAL));
    let mark_at = scope.query.bookmarks.then(|| clock.deadline_in(BOOKMARK_EVERY));
    let watch = Watch { store, scope, first, seen, versions, printer, silent: true, mark_at, clock, until, shutdown, ended: false, _place: place };
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
            match self.wait().await {
                Woken::Changed => {}
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
        tokio::select! {
            changed = self.versions.changed() => if changed.is_err() { Woken::Ended } else { Woken::Changed },
            () = self.clock.sleep_until(self.until) => Woken::Ended,
            () = self.shutdown.cancelled() => Woken::Ended,
            () = quiet => Woken::Quiet,
        }
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
