//! One model on its way up, here, or on its way down.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use berth_adapters::{Seat, Unloaded};
use berth_plan::{MayEvict, Phase};
use berth_puller::{Pinned, Urgency};
use berth_types::{Content, Failure, Footprint, ModelId, Registration, UnixMillis};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::ledger::Lease;
use crate::slot::{Guard, Slot};
use crate::{Origin, WaitError};

/// A caller's end of [`crate::Residency::ensure_loaded`].
pub(crate) type Waiter = oneshot::Sender<Result<Guard, WaitError>>;

/// Who goes first: loads that somebody waits for, then those that nobody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Waited,
    Background,
}

impl Class {
    /// The same for whoever fetches.
    pub(crate) const fn urgency(self) -> Urgency {
        match self {
            Class::Waited => Urgency::Waited,
            Class::Background => Urgency::Background,
        }
    }
}

/// A place in a queue: by class, then first come, first served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    pub(crate) class: Class,
    pub(crate) number: u64,
    pub(crate) model: ModelId,
}

/// What an unload in progress is at.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    /// When the unload began.
    pub(crate) began: Option<Instant>,
    /// Unload calls made.
    pub(crate) tries: u32,
    /// The moment (in the owner's sequence) at which the last call had been answered. Only an index that was asked for
    /// later confirms. `None` while a call is running, and once the confirmation is there.
    pub(crate) told: Option<u64>,
    /// When the runtime should have dropped the copy from its index.
    pub(crate) until: Option<Instant>,
    /// The runtime's words, where it refused.
    pub(crate) refused: Option<String>,
    /// The runtime was never told to load: there is nothing to unload, only something to confirm.
    pub(crate) nothing_attempted: bool,
}

/// What the owner knows of a model that is not simply absent.
#[derive(Debug)]
pub(crate) struct Entry {
    /// `None` for what the runtime holds and nobody asked for: it is unloaded.
    pub(crate) registration: Option<Arc<Registration>>,
    pub(crate) phase: Phase,
    /// Tells results of this entry's tasks from those of an earlier life of the same model.
    pub(crate) life: u64,
    pub(crate) ticket: Ticket,
    /// When it was asked for; reported while it loads.
    pub(crate) since: UnixMillis,
    /// The same on the monotonic clock.
    pub(crate) asked: Instant,
    pub(crate) waiters: Vec<Waiter>,
    /// What a load that nobody waits for may evict; `None` when it was only asked for by callers.
    pub(crate) background: Option<MayEvict>,
    /// The task of this phase, if one runs.
    pub(crate) task: Option<AbortHandle>,
    /// Its files, from the fetch until the runtime has let go of them: a layout may refer to them. Only until it is loaded
    /// for a runtime that does not read them afterwards.
    pub(crate) files: Option<Pinned>,
    /// What they are; kept beside them, since it is told as long as the copy is loaded.
    pub(crate) content: Option<Arc<Content>>,
    /// The storage configuration has changed since its fetch began.
    pub(crate) storage_changed: bool,
    /// The prediction: in Fitting for any GPU, from then on for the one that was chosen.
    pub(crate) need: Option<Footprint>,
    /// Where what it is charged with is from.
    pub(crate) origin: Origin,
    /// Whether a GPU is chosen for it.
    pub(crate) seat: Seat,
    /// The one that was.
    pub(crate) gpu: Option<u16>,
    pub(crate) lease: Option<Lease>,
    pub(crate) slot: Option<Arc<Slot>>,
    /// Requests that the copy serves at a time, as the runtime said when it had loaded it.
    pub(crate) at_a_time: Option<NonZeroU32>,
    /// The moment (in the owner's sequence) at which it was announced.
    pub(crate) announced: u64,
    pub(crate) leaving: Leaving,
    pub(crate) proof: Option<Unloaded>,
    /// Set while stuck.
    pub(crate) stuck: Option<Arc<Failure>>,
    /// How often files had been let go of when its fetch began ([`crate::owner::Owner::let_go`]).
    pub(crate) let_go_before: u64,
    /// Its registration went away: forget the files when it is gone.
    pub(crate) retired: bool,
    /// The runtime ran out of memory for it once, and this copy goes first.
    pub(crate) after_out_of_memory: Option<ModelId>,
    /// When its drain is cut short.
    pub(crate) drain_until: Option<Instant>,
}

impl Entry {
    pub(crate) fn new(ticket: Ticket, registration: Option<Arc<Registration>>, phase: Phase, life: u64, since: UnixMillis, asked: Instant) -> Self {
        Entry {
            registration,
            phase,
            life,
            ticket,
            since,
            asked,
            waiters: Vec::new(),
            background: None,
            task: None,
            files: None,
            content: None,
            storage_changed: false,
            need: None,
            origin: Origin::Estimated,
            seat: Seat::Given,
            gpu: None,
            lease: None,
            slot: None,
            at_a_time: None,
            announced: 0,
            leaving: Leaving::default(),
            proof: None,
            stuck: None,
            let_go_before: 0,
            retired: false,
            after_out_of_memory: None,
            drain_until: None,
        }
    }

    /// True when somebody wants the model loaded (again).
    pub(crate) fn wanted(&self) -> bool {
        !self.waiters.is_empty() || self.background.is_some()
    }

    /// What it may evict now. A load that everybody gave up on may finish in free memory only.
    pub(crate) fn may_evict(&self) -> MayEvict {
        if self.waiters.is_empty() { self.background.unwrap_or(MayEvict::Nothing) } else { MayEvict::AnyIdle }
    }

    /// Lets go of callers that gave up; says how many.
    pub(crate) fn drop_waiters_that_left(&mut self) -> usize {
        let before = self.waiters.len();
        self.waiters.retain(|waiter| !waiter.is_closed());
        before - self.waiters.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_as_small_as_the_crate_says() {
        let slot = std::mem::size_of::<Slot>();
        let entry = std::mem::size_of::<(ModelId, Entry)>();
        assert!(entry + slot <= 1024, "{entry} + {slot}");
    }
}
