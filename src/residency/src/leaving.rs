//! How copies leave: withdrawn, drained, unloaded, confirmed by the runtime's index, and only then paid back.
//!
//! An unload call is an order, not a fact. A copy's memory counts as used until an index that was asked for after the
//! call no longer lists the model. One look at the index at a time serves all copies that are leaving, and also finds
//! what nobody expected: copies that the runtime lost, and models that it holds although nobody asked for them (left
//! over from before a restart, or finished after their load had timed out).

use std::time::Duration;

use berth_adapters::{Index, IndexEntry, RuntimeDown, UnloadError};
use berth_plan::{Event, Phase};
use berth_telemetry::Histogram;
use berth_types::{ModelId, Reason, Retry, Step};
use tracing::{info, warn};

use crate::WaitError;
use crate::entry::{Class, Entry, Ticket};
use crate::owner::Owner;

impl Owner {
    /// Sets how long requests on `model` may go on once its drain begins.
    pub(crate) fn drain_within(&mut self, model: &ModelId, cap: Duration) {
        let until = self.clock.now() + cap;
        if let Some(entry) = self.entries.get_mut(model) {
            entry.drain_until = Some(until);
        }
    }

    /// Takes the copy out of sight, and drains it unless the runtime has lost it anyway.
    pub(crate) fn withdraw(&mut self, model: &ModelId, next: Phase) {
        self.shared.copies.remove(model);
        self.lru.remove(model);
        let Some(entry) = self.entries.get_mut(model) else { return };
        if let Some(lease) = &mut entry.lease {
            lease.returning();
        }
        let Some(slot) = entry.slot.clone() else { return };
        if let Some(time) = slot.last_used() {
            self.shared.history.lock().note_use(model, time);
        }
        let idle = slot.gate.begin_drain();
        if next == Phase::Unloading {
            slot.revoke();
            self.report(model);
            return self.begin_unload(model);
        }
        self.report(model);
        if idle {
            return self.step(model, Event::Idle);
        }
        let now = self.clock.now();
        if let Some(entry) = self.entries.get_mut(model) {
            let cap = entry.drain_until.map_or(self.config.drain_cap, |until| until.saturating_duration_since(now));
            entry.task = Some(self.work.drain(slot, cap, self.config.revoke_grace, entry.life));
        }
    }

    pub(crate) fn begin_unload(&mut self, model: &ModelId) {
        self.leaving.insert(model.clone());
        self.stir();
        let Some(entry) = self.entries.get_mut(model) else { return };
        entry.slot = None;
        if let Some(lease) = &mut entry.lease {
            lease.returning();
        }
        entry.leaving.began = Some(self.clock.now());
        self.report(model);
        self.tell_to_unload(model);
    }

    fn tell_to_unload(&mut self, model: &ModelId) {
        let Some(entry) = self.entries.get_mut(model) else { return };
        entry.leaving.tries += 1;
        entry.leaving.told = None;
        if entry.leaving.nothing_attempted && entry.leaving.tries == 1 {
            return self.on_unload_told(model, Ok(()));
        }
        self.work.unload(model.clone(), entry.life, self.config.unload_timeout);
    }

    pub(crate) fn on_unload_told(&mut self, model: &ModelId, result: Result<(), UnloadError>) {
        let told = self.work.sequence.next();
        let now = self.clock.now();
        let Some(entry) = self.entries.get_mut(model) else { return };
        entry.leaving.told = Some(told);
        // A runtime that refuses is asked again soon, one that took the order is given its time.
        let window = if result.is_ok() { self.config.unload_timeout } else { self.config.unload_timeout / 10 };
        entry.leaving.until = Some(now + window);
        entry.leaving.refused = result.err().map(|error| error.0);
        self.work.look_now.notify_one();
    }

    pub(crate) fn look_if_needed(&mut self) {
        if self.looking {
            return;
        }
        // Stuck copies are looked for by audits only.
        let unloading = |entry: &&Entry| entry.phase == Phase::Unloading && entry.leaving.told.is_some();
        let awaiting = self.leaving.iter().filter_map(|model| self.entries.get(model)).any(|entry| unloading(&entry));
        let wait = if self.audit_due {
            None
        } else if awaiting || self.left_over.is_none() {
            // The first look after an order is at once: telling rings `look_now`.
            Some(self.config.poll)
        } else {
            return;
        };
        self.looking = true;
        self.work.look(wait, self.config.unload_timeout);
    }

    pub(crate) fn on_looked(&mut self, began: u64, result: Result<Index, RuntimeDown>) {
        self.looking = false;
        let audit = std::mem::take(&mut self.audit_due);
        match &result {
            Ok(_) => self.runtime_down = false,
            Err(fault) if !self.runtime_down => {
                self.runtime_down = true;
                warn!(error = %fault, "the runtime cannot be asked what it holds");
            }
            Err(_) => {}
        }
        if result.is_ok() {
            self.index_came(began);
        }
        if let Ok(index) = &result
            && (audit || self.left_over.is_none())
        {
            self.compare_books(began, index);
        }
        if self.is_away() {
            // Orders that it does not hear are not repeated.
            return;
        }
        // In the order in which they are wanted back.
        let mut leaving: Vec<_> = self.leaving.iter().cloned().collect();
        leaving.sort_by_cached_key(|model| self.entries.get(model).map(|entry| entry.ticket.clone()));
        for model in leaving {
            self.look_for(&model, began, result.as_ref().ok(), audit);
        }
    }

    /// Is `model`, which should leave, still there?
    fn look_for(&mut self, model: &ModelId, began: u64, index: Option<&Index>, audit: bool) {
        let now = self.clock.now();
        let Some(entry) = self.entries.get_mut(model) else { return };
        if entry.leaving.told.is_none_or(|told| told > began) {
            return;
        }
        if let Some(proof) = index.and_then(|index| index.unloaded(model)) {
            // Not looked for any more; the memory is given back when the layout is gone too.
            entry.leaving.told = None;
            return self.work.clear_layout(proof, entry.life, self.config.unload_timeout);
        }
        // A runtime that has taken the order may have much to do before.
        let taken = entry.leaving.refused.is_none() && index.and_then(|index| index.get(model)) == Some(IndexEntry::Unloading);
        let grace = self.work.runtime.unloads_within().filter(|_| taken).unwrap_or_default();
        let overdue = entry.leaving.until.is_none_or(|until| now >= until + grace);
        match entry.phase {
            Phase::Unloading if overdue && entry.leaving.tries < self.config.unload_tries => self.tell_to_unload(model),
            Phase::Unloading if overdue => self.step(model, Event::Broke),
            // It may still come to its senses: it is asked once per audit.
            Phase::Stuck if audit && index.is_some() => self.tell_to_unload(model),
            _ => {}
        }
    }

    /// Finds copies that the runtime lost and models that it holds for nobody.
    fn compare_books(&mut self, began: u64, index: &Index) {
        let lost: Vec<_> = self
            .entries
            .iter()
            .filter(|(model, entry)| entry.phase == Phase::Ready && entry.announced < began && index.get(model).is_none())
            .map(|(model, _)| model.clone())
            .collect();
        for model in lost {
            warn!(model = %model, "the runtime does not hold a model that it had loaded: it is loaded again when it is asked for");
            self.step(&model, Event::Broke);
        }
        for model in self.ledger.dropped() {
            if !self.entries.contains_key(&model)
                && let Some(proof) = index.unloaded(&model)
            {
                self.ledger.confirm_dropped(&proof);
                self.reconsider = true;
            }
        }
        let first = self.left_over.is_none();
        // A load that has no memory yet cannot be why the runtime holds the model, unless the index is older than it.
        let not_ours = |entry: &Entry| matches!(entry.phase, Phase::Pulling | Phase::Fitting) && (first || entry.life < began);
        let held = index.iter().map(|(model, _)| model);
        let strays: Vec<_> = held.filter(|model| self.entries.get(*model).is_none_or(not_ours)).cloned().collect();
        for model in strays {
            info!(model = %model, "the runtime holds a model that was not loaded from here: it is unloaded");
            self.unload_stray(&model);
            if first {
                self.left_over.get_or_insert_default().insert(model);
            }
        }
        if first {
            // Nothing is loaded before these are gone.
            self.left_over.get_or_insert_default();
            self.reconsider = true;
        }
    }

    /// Unloads what the runtime holds although nothing is charged for it. A load of the same model begins after that.
    fn unload_stray(&mut self, model: &ModelId) {
        let life = self.work.sequence.next();
        let ticket = Ticket { class: Class::Background, number: life, model: model.clone() };
        // It is where a load that broke off would be.
        let mut stray = Entry::new(ticket, None, Phase::Loading, life, self.clock.wall(), self.clock.now());
        if let Some(entry) = self.entries.get_mut(model) {
            stray.registration = entry.registration.clone();
            stray.ticket = entry.ticket.clone();
            stray.background = entry.background.take();
            stray.waiters = std::mem::take(&mut entry.waiters);
            self.step(model, Event::Evict);
        }
        self.insert(stray);
        self.step(model, Event::Evict);
    }

    /// The runtime confirmed.
    pub(crate) fn release(&mut self, model: &ModelId) {
        self.stir();
        if let Some(entry) = self.entries.get_mut(model) {
            if let Some(began) = entry.leaving.began {
                self.metrics.observe(Histogram::StepSeconds, &[("step", Step::Unload.as_str())], self.clock.now() - began);
            }
            if let (Some(lease), Some(proof)) = (entry.lease.take(), entry.proof.take()) {
                lease.release(&proof);
            }
        }
        self.gone(model);
    }

    /// All tries are used up.
    pub(crate) fn stuck(&mut self, model: &ModelId) {
        let Some(entry) = self.entries.get_mut(model) else { return };
        let size = entry.lease.as_mut().map(|lease| {
            lease.unconfirmed();
            lease.bytes().clone()
        });
        let refused = entry.leaving.refused.take().map(|words| format!(": {words}")).unwrap_or_default();
        let tries = entry.leaving.tries;
        entry.background = None;
        let message = format!(
            "the runtime still holds the model after {tries} unload calls{refused}; {} stay charged until it lets go or is restarted",
            size.unwrap_or_default()
        );
        let failure = self.failure(model, Reason::RuntimeUnhealthy, Step::Unload, message, Retry::Later);
        warn!(model = %model, step = failure.step.as_str(), reason = %failure.reason, error = %failure.message, "model is stuck");
        for waiter in self.take_waiters(model) {
            let _ = waiter.send(Err(WaitError::Failed(failure.clone())));
        }
        if let Some(entry) = self.entries.get_mut(model) {
            entry.stuck = Some(failure);
        }
        if let Some(left_over) = &mut self.left_over {
            // Waiting longer for it would keep everything else from loading.
            left_over.remove(model);
        }
        self.reconsider = true;
        self.report(model);
    }
}
