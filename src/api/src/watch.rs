//! A watch: every change of the chosen objects as a line of JSON, no intermediate state left out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use berth_registry::{Event, EventKind, Kind, Object, Store};
use berth_telemetry::Clock;
use berth_types::{Deadline, Namespace};
use bytes::Bytes;
use futures::Stream;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::document::{Resource, text};
use crate::failure::Failure;
use crate::query::Query;

/// How long a watch lasts when the client does not say: it is expected to begin again where it was.
const USUAL: Duration = Duration::from_secs(30 * 60);
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

#[derive(Serialize)]
struct Line<'o, T> {
    r#type: &'static str,
    object: &'o T,
}

fn line<T: Serialize>(kind: &'static str, object: &T) -> Vec<u8> {
    let mut line = text(&Line { r#type: kind, object });
    line.push(b'\n');
    line
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
    clock: Clock,
    until: Deadline,
    shutdown: CancellationToken,
    ended: bool,
}

/// The lines of a watch.
///
/// # Errors
/// The changes since the version that the client has seen are no longer kept.
pub(crate) fn watch(
    store: Arc<dyn Store>,
    scope: Scope,
    clock: Clock,
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
    let until = clock.deadline_in(scope.query.timeout.unwrap_or(USUAL).min(24 * USUAL));
    let watch = Watch { store, scope, first, seen, versions, clock, until, shutdown, ended: false };
    Ok(futures::stream::unfold(watch, |mut watch| async move {
        let piece = watch.next().await?;
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
                let lines: Vec<u8> = self.first.drain(..some).flat_map(|object| line("ADDED", &Resource::of(&object))).collect();
                return Some(lines.into());
            }
            self.versions.mark_unchanged();
            let lines = self.changes();
            if !lines.is_empty() {
                return Some(lines.into());
            }
            tokio::select! {
                changed = self.versions.changed() => self.ended = changed.is_err(),
                () = self.clock.sleep_until(self.until) => self.ended = true,
                () = self.shutdown.cancelled() => self.ended = true,
            }
        }
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
            let lines: Vec<u8> =
                some.iter().filter_map(|event| Some(line(seen_as(&self.scope, event)?, &Resource::of(&event.object)))).flatten().collect();
            self.seen = some.last().map_or(self.seen, Event::version);
            if !lines.is_empty() {
                return lines;
            }
        }
        Vec::new()
    }
}
