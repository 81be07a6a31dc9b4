//! The recent past of a store, change by change.
//!
//! Whoever must see each state of an object (a watch) reads from here; whoever only needs the newest state subscribes
//! ([`Changes`](crate::Changes)). What is kept is bounded in number and in bytes; a reader that asks for more is told so.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::{Json, Object};

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was made.
    Added,
    /// It was changed, its status included.
    Modified,
    /// It was removed.
    Deleted,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The object after it; for a removal as it last was, with the version of the removal.
    pub object: Arc<Object>,
    /// The object before it; `None` when it was made.
    pub before: Option<Arc<Object>>,
}

impl Event {
    /// The store's version of this change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.object.resource_version
    }
}

/// Events that were asked for are not kept any more (or never happened here): read everything once and go on from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes after version {asked} are not kept, only those after {oldest} up to {newest}: list again and watch from there")]
pub struct Expired {
    /// The version that was asked for.
    pub asked: u64,
    /// The oldest version after which every change is kept.
    pub oldest: u64,
    /// The present version.
    pub newest: u64,
}

/// Events kept at most.
const MOST_EVENTS: usize = 4_096;
/// Bytes kept at most, estimated.
const MOST_BYTES: usize = 8 << 20;

/// The ring of recent events.
pub(crate) struct Recent {
    events: VecDeque<(Event, usize)>,
    bytes: usize,
    /// Every change after this version is in the ring.
    oldest: u64,
}

impl Recent {
    /// Begins with nothing kept of what happened up to `version`.
    pub(crate) fn after(version: u64) -> Self {
        Recent { events: VecDeque::new(), bytes: 0, oldest: version }
    }

    pub(crate) fn push(&mut self, event: Event) {
        let object = &event.object;
        let parts = [&object.labels, &object.annotations, &object.spec].into_iter().chain(&object.status);
        // The desired part is counted with each event although events of one object mostly share it: an estimate that is
        // too high only keeps fewer events.
        let bytes = 512 + parts.map(Json::weight).sum::<usize>();
        self.bytes += bytes;
        self.events.push_back((event, bytes));
        while self.events.len() > MOST_EVENTS || (self.bytes > MOST_BYTES && self.events.len() > 1) {
            let Some((dropped, bytes)) = self.events.pop_front() else { break };
            self.bytes -= bytes;
            self.oldest = dropped.version();
        }
    }

    pub(crate) fn after_version(&self, asked: u64, newest: u64) -> Result<Vec<Event>, Expired> {
        if asked < self.oldest || asked > newest {
            return Err(Expired { asked, oldest: self.oldest, newest });
        }
        let from = self.events.partition_point(|(event, _)| event.version() <= asked);
        Ok(self.events.range(from..).map(|(event, _)| event.clone()).collect())
    }
}
