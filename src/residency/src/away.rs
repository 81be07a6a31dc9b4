//! The runtime goes away and comes back.
//!
//! Its end is no fault of the models that it held: their copies are withdrawn, requests on them end as "not now", and as
//! soon as it answers again they are loaded again, the hottest first. Callers wait for that for a while, then they are told
//! at once to try again later. Memory stays charged until the runtime's index says that it is free, as ever. Which model may
//! have ended it is [`berth_plan::Suspects`]' to judge: a suspect loads alone. What other pods are told of it is in `beware`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use berth_adapters::Health;
use berth_plan::{Event, MayEvict, Phase};
use berth_telemetry::{Gauge, field};
use berth_types::{ModelId, Reason, Retry, Step};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::WaitError;
use crate::entry::{Class, Ticket};
use crate::failures::Kind;
use crate::owner::{Owner, last_used_of};

/// A call that broke off so many milliseconds before the runtime was found not to answer was broken off by its end.
const JUST_NOW: u64 = 10_000;

/// A runtime that does not answer.
#[derive(Debug)]
pub(crate) struct Away {
    since: Instant,
    /// The moment in the owner's sequence: what was asked of the runtime before it says nothing of it now.
    at: u64,
    why: Arc<str>,
    /// From then on callers do not wait for it.
    pub(crate) refuse_at: Instant,
    /// Those who waited have been told.
    refused: bool,
}

/// The runtime's health, and what follows from it.
#[derive(Debug)]
pub(crate) struct Watch {
    /// `None`: the runtime lives and dies with this process.
    health: Option<watch::Receiver<Health>>,
    pub(crate) away: Option<Away>,
}

impl Watch {
    pub(crate) fn new(health: Option<watch::Receiver<Health>>) -> Self {
        Watch { health, away: None }
    }

    /// Completes when the health has changed.
    pub(crate) async fn changed(&mut self) -> Health {
        if let Some(health) = &mut self.health
            && health.changed().await.is_ok()
        {
            return health.borrow_and_update().clone();
        }
        std::future::pending().await
    }

    fn says_up(&self) -> bool {
        self.health.as_ref().is_some_and(|health| *health.borrow() == Health::Up)
    }
}

impl Owner {
    pub(crate) fn on_health(&mut self, health: Health) {
        match health {
            Health::Down { why } => self.runtime_gone(why),
            Health::Up => self.runtime_back(),
        }
    }

    /// True while nothing can be asked of the runtime.
    pub(crate) fn is_away(&self) -> bool {
        self.watch.away.is_some()
    }

    /// A load broke off because the runtime is away. False: that is not known here, and the load has failed.
    pub(crate) fn load_found_it_away(&mut self, why: &str) -> bool {
        if self.watch.health.is_none() {
            return false;
        }
        self.runtime_gone(Arc::from(why));
        true
    }

    /// It has answered what it holds. After a death so short that nobody saw it, that is how it is known to be back.
    pub(crate) fn index_came(&mut self, began: u64) {
        if self.watch.says_up() && self.watch.away.as_ref().is_some_and(|away| began > away.at) {
            self.runtime_back();
        }
    }

    fn runtime_gone(&mut self, why: Arc<str>) {
        let now = self.clock.now();
        if self.watch.away.is_some() || self.ending.is_some() {
            return;
        }
        let mut held: Vec<ModelId> = self.entries.iter().filter(|(_, entry)| entry.phase == Phase::Ready).map(|(model, _)| model.clone()).collect();
        held.sort_by_cached_key(|model| std::cmp::Reverse(last_used_of(&self.entries, model)));
        let slot_of = |model: &ModelId| self.entries.get(model).and_then(|entry| entry.slot.as_ref());
        let in_use = |model: &&ModelId| slot_of(model).is_some_and(|slot| slot.computes() || slot.broke_within(JUST_NOW));
        let computing: Vec<ModelId> = held.iter().filter(in_use).cloned().collect();
        let nothing = |model: &&ModelId| slot_of(model).is_some_and(|slot| slot.has_answered_nothing());
        let unanswered: Vec<ModelId> = computing.iter().filter(nothing).cloned().collect();
        // What it has answered well was before this death.
        let well = |model: &&ModelId| slot_of(model).is_some_and(|slot| slot.has_passed_probation());
        for model in held.iter().filter(well).cloned().collect::<Vec<_>>() {
            self.suspects.has_computed_well(&model);
        }
        // One that waited for its turn had not begun.
        let begun = |model: &&ModelId| self.turns_of_loads.get(*model).is_none_or(|begun| begun.load(Ordering::Acquire));
        let loading: Vec<ModelId> = self.loading.iter().filter(begun).cloned().collect();
        warn!(error = %why, models = held.len(), loading = loading.len(), computing = computing.len(), "the runtime has gone away");
        self.metrics.set(Gauge::RuntimeUp, &[], 0);
        self.another_server(false);
        let grace = self.config.runtime_grace;
        self.watch.away = Some(Away { since: now, at: self.work.sequence.next(), why: Arc::clone(&why), refuse_at: now + grace, refused: false });
        for model in held {
            // The order of these numbers is the order in which they come back.
            let number = self.work.sequence.next();
            let Some(entry) = self.entries.get_mut(&model) else { continue };
            if !entry.retired {
                entry.background = Some(MayEvict::Nothing);
                (entry.asked, entry.since) = (now, self.clock.wall());
                entry.ticket = Ticket { class: Class::Background, number, model: model.clone() };
            }
            self.step(&model, Event::Broke);
        }
        self.suspicions_due = true;
        if let Some(model) = self.suspects.died(self.clock.wall(), &loading, &computing, &unanswered) {
            let how = if loading.contains(&model) { "loading it, again" } else { "computing with it, again, and with no other suspect like it" };
            let message = format!("runtime exited while {how} ({why})");
            let failure = self.failure(&model, Reason::ModelLoadFailed, Step::Load, message, Retry::AfterChange);
            self.fail(&model, failure, Some(Kind::EndedTheRuntime));
            self.report(&model);
        }
    }

    fn runtime_back(&mut self) {
        let Some(away) = self.watch.away.take() else { return };
        let took = self.clock.now().saturating_duration_since(away.since);
        info!(after = field::took(took), "the runtime is back");
        self.metrics.set(Gauge::RuntimeUp, &[], 1);
        for model in self.leaving.clone() {
            if let Some(entry) = self.entries.get_mut(&model) {
                // What it could not be told while it was away does not count.
                entry.leaving.tries = entry.leaving.tries.min(1);
            }
        }
        self.audit_due = true;
        self.reconsider = true;
        self.work.look_now.notify_one();
    }

    /// What callers are told who will not be waited with.
    pub(crate) fn refusal_while_away(&self, model: &ModelId) -> Option<WaitError> {
        let away = self.watch.away.as_ref().filter(|away| away.refuse_at <= self.clock.now() && !self.watch.says_up())?;
        Some(self.refusal(model, away))
    }

    fn refusal(&self, model: &ModelId, away: &Away) -> WaitError {
        let message = format!("the runtime does not answer: {}; the model is loaded as soon as it does", away.why);
        WaitError::Failed(self.failure(model, Reason::RuntimeUnhealthy, Step::Load, message, Retry::Later))
    }

    /// Nobody waits longer than the grace.
    pub(crate) fn look_at_grace(&mut self, now: Instant) {
        let Some(away) = self.watch.away.as_mut().filter(|away| !away.refused && away.refuse_at <= now) else { return };
        away.refused = true;
        let waited_for: Vec<ModelId> = self.entries.iter().filter(|(_, entry)| !entry.waiters.is_empty()).map(|(model, _)| model.clone()).collect();
        for model in waited_for {
            let waiters = self.take_waiters(&model);
            let Some(refusal) = self.watch.away.as_ref().map(|away| self.refusal(&model, away)) else { return };
            for waiter in waiters {
                self.refuse(waiter, refusal.clone(), "runtime-away");
            }
            // Somebody wanted it: it is loaded for whoever asks again.
            if let Some(entry) = self.entries.get_mut(&model).filter(|entry| !entry.retired) {
                entry.background.get_or_insert(MayEvict::Nothing);
            }
        }
        // Who asks from now on is answered at once as long as it is known to be away, and else waits as long again.
        if self.watch.says_up()
            && let Some(away) = self.watch.away.as_mut()
        {
            (away.refused, away.refuse_at) = (false, now + self.config.runtime_grace);
        }
    }

    /// When the grace ends, while it has not.
    pub(crate) fn grace_ends(&self) -> Option<Instant> {
        self.watch.away.as_ref().filter(|away| !away.refused).map(|away| away.refuse_at)
    }
}
