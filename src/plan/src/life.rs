//! The life of a model in one pod: which step follows which event.

use std::fmt;

/// Where a model is in its life on this pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Its files are on their way to the disk, or wait for their turn.
    Pulling,
    /// Its files are here, it waits for memory.
    Fitting,
    /// It has a lease; laid out and loaded next, or being so.
    Loading,
    /// It answers requests.
    Ready,
    /// It takes no new requests; those in flight go on.
    Draining,
    /// The runtime was told to unload it, or lost it; only the runtime's index ends this.
    Unloading,
    /// The runtime did not confirm. Bytes stay charged.
    Stuck,
    /// Not in the runtime, nothing charged.
    Gone,
}

impl Phase {
    /// Every phase, in the order of a life.
    pub const ALL: [Phase; 8] =
        [Phase::Pulling, Phase::Fitting, Phase::Loading, Phase::Ready, Phase::Draining, Phase::Unloading, Phase::Stuck, Phase::Gone];

    /// The phase as one lower-case word, for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Pulling => "pulling",
            Phase::Fitting => "fitting",
            Phase::Loading => "loading",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
            Phase::Unloading => "unloading",
            Phase::Stuck => "stuck",
            Phase::Gone => "gone",
        }
    }

    /// True while memory may be in use: from the lease until the confirmation.
    #[must_use]
    pub const fn holds_memory(self) -> bool {
        match self {
            Phase::Loading | Phase::Ready | Phase::Draining | Phase::Unloading | Phase::Stuck => true,
            Phase::Pulling | Phase::Fitting | Phase::Gone => false,
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happens to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// Its files are on disk, checked.
    Pulled,
    /// It was given memory.
    Leased,
    /// The runtime has loaded it.
    Loaded,
    /// It must go: for another model, because nobody wants it, or because its registration went away.
    Evict,
    /// No request is in flight any more, or those that were have been told to end.
    Idle,
    /// The runtime's index does not list it.
    Confirmed,
    /// The step at hand failed; for a loaded copy: the runtime lost it; for an unload: never confirmed.
    Broke,
}

impl Event {
    /// Every event.
    pub const ALL: [Event; 7] = [Event::Pulled, Event::Leased, Event::Loaded, Event::Evict, Event::Idle, Event::Confirmed, Event::Broke];
}

/// What the owner of the model does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Ask for memory.
    Fit,
    /// Lay out and load.
    LoadInRuntime,
    /// Hand it to its waiters, then to everybody.
    Announce,
    /// Take no new requests for it and say so.
    Withdraw,
    /// Tell the runtime to unload it and wait for its index.
    Unload,
    /// Let go of the files on disk.
    DropFiles,
    /// Give its memory back, with the runtime's proof.
    ReleaseLease,
    /// Tell that its memory is not coming back for now.
    Report,
}

/// An event that cannot happen in that phase: a bug in the caller, never an outside condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a model that is {phase}")]
pub struct Unexpected {
    /// Where the model was.
    pub phase: Phase,
    /// What was said to have happened.
    pub event: Event,
}

impl Phase {
    /// The life of a model in one pod. The caller carries out the effect; nothing happens in here.
    ///
    /// # Errors
    /// [`Unexpected`] when `event` cannot happen in this phase.
    pub fn on(self, event: Event) -> Result<(Phase, Effect), Unexpected> {
        use {Effect::*, Event::*, Phase::*};
        match (self, event) {
            (Pulling, Pulled) => Ok((Fitting, Fit)),
            (Fitting, Leased) => Ok((Loading, LoadInRuntime)),
            (Pulling | Fitting, Evict | Broke) => Ok((Gone, DropFiles)),
            (Loading, Loaded) => Ok((Ready, Announce)),
            (Loading, Evict | Broke) => Ok((Unloading, Unload)), // the runtime may still finish: only its word ends this
            (Ready, Evict) => Ok((Draining, Withdraw)),
            (Draining, Idle) => Ok((Unloading, Unload)),
            (Ready | Draining, Broke) => Ok((Unloading, Withdraw)), // the server lost it; its (successor's) index confirms
            (Unloading, Broke) => Ok((Stuck, Report)),              // bytes stay charged
            (Unloading | Stuck, Confirmed) => Ok((Gone, ReleaseLease)),
            // Spelled out, not `_`: a new phase or event stops the build here until somebody decides.
            (Pulling, Leased | Loaded | Idle | Confirmed)
            | (Fitting, Pulled | Loaded | Idle | Confirmed)
            | (Loading, Pulled | Leased | Idle | Confirmed)
            | (Ready, Pulled | Leased | Loaded | Idle | Confirmed)
            | (Draining, Pulled | Leased | Loaded | Evict | Confirmed)
            | (Unloading | Stuck, Pulled | Leased | Loaded | Evict | Idle)
            | (Stuck, Broke)
            | (Gone, Pulled | Leased | Loaded | Evict | Idle | Confirmed | Broke) => Err(Unexpected { phase: self, event }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn next_of(phase: Phase) -> impl Iterator<Item = (Phase, Effect)> {
        Event::ALL.into_iter().filter_map(move |event| phase.on(event).ok())
    }

    #[test]
    fn every_phase_is_reached_and_leads_to_gone() {
        let mut reached = BTreeSet::from([Phase::Pulling]);
        while let Some(new) = reached.iter().flat_map(|phase| next_of(*phase)).map(|(next, _)| next).find(|next| !reached.contains(next)) {
            reached.insert(new);
        }
        assert_eq!(reached, Phase::ALL.into_iter().collect());

        for phase in Phase::ALL {
            let mut ahead = BTreeSet::from([phase]);
            while let Some(new) = ahead.iter().flat_map(|phase| next_of(*phase)).map(|(next, _)| next).find(|next| !ahead.contains(next)) {
                ahead.insert(new);
            }
            assert!(ahead.contains(&Phase::Gone), "{phase} never ends");
        }
    }

    #[test]
    fn memory_is_given_back_by_a_confirmation_only() {
        for phase in Phase::ALL {
            for event in Event::ALL {
                let Ok((next, effect)) = phase.on(event) else { continue };
                if phase.holds_memory() && !next.holds_memory() {
                    assert_eq!((event, effect), (Event::Confirmed, Effect::ReleaseLease), "{phase} on {event:?}");
                }
                assert_eq!(effect == Effect::ReleaseLease, event == Event::Confirmed, "{phase} on {event:?}");
                assert_eq!(!phase.holds_memory() && next.holds_memory(), event == Event::Leased, "{phase} on {event:?}");
            }
        }
    }

    #[test]
    fn a_model_that_is_gone_has_no_future_and_says_which_event_was_wrong() {
        assert_eq!(next_of(Phase::Gone).count(), 0);
        let unexpected = Phase::Gone.on(Event::Loaded).expect_err("gone");
        assert_eq!(unexpected.to_string(), "Loaded cannot happen to a model that is gone");
    }
}
