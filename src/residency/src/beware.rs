//! Models that end runtimes, across pods: what is told of the deaths here, and what follows from those elsewhere.
//!
//! What is told is a value that changes at the death itself, before anything is loaded again. What must be bewared of is held
//! as it was told last, each model until its own time; whether it holds is asked at each decision, so nothing happens when it
//! ends. While a model is only tried elsewhere nothing of it begins here, and what is loaded or being loaded goes on. After a
//! verdict nothing of it serves: a copy leaves as for an eviction, and a load that the runtime is at leaves once it has ended.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use berth_plan::{Event, Phase};
use berth_types::{Caution, Failure, ModelId, Reason, Retry, Step, Suspicion};
use tracing::info;

use crate::WaitError;
use crate::failures::Kind;
use crate::owner::Owner;

/// A verdict that was read from disk says no more of how often it was.
const AT_LEAST: u32 = 2;

/// What was told, by model.
pub(crate) type Cautions = HashMap<ModelId, Caution>;

impl Owner {
    /// Tells what the deaths of the runtime here say, if that may have changed.
    pub(crate) fn tell_suspicions(&mut self) {
        if !std::mem::take(&mut self.suspicions_due) {
            return;
        }
        let suspicions = self.suspects.suspicions(self.clock.wall());
        let mut told: BTreeMap<ModelId, Suspicion> = suspicions.map(|suspicion| (suspicion.model.clone(), suspicion)).collect();
        for failure in self.failures.records().filter(|record| record.has_ended_the_runtime()).map(|record| &record.failure) {
            let of_before = || Suspicion { model: failure.model.clone(), deaths: AT_LEAST, together: 0, last: failure.time, failure: None };
            told.entry(failure.model.clone()).or_insert_with(of_before).failure = Some(Arc::clone(failure));
        }
        let told: Arc<[Suspicion]> = told.into_values().collect();
        self.shared.suspicions.send_if_modified(|before| {
            let changed = *before != told;
            *before = told;
            changed
        });
    }

    /// From now on these are all that hold.
    pub(crate) fn beware(&mut self, cautions: Vec<Caution>) {
        let now = self.clock.wall();
        self.cautions = cautions.into_iter().filter(|caution| now < caution.until).map(|caution| (caution.model.clone(), caution)).collect();
        let mut models: Vec<ModelId> = self.cautions.keys().cloned().collect();
        models.sort_unstable();
        for model in models {
            match self.caution(&model) {
                Some(caution) if caution.verdict => self.suspects.convict(&model, now),
                Some(_) => self.suspects.is_suspected_elsewhere(&model, now),
                None => {}
            }
            self.obey(&model);
        }
        self.suspicions_due = true;
        self.reconsider = true;
    }

    /// What holds of `model` now.
    fn caution(&self, model: &ModelId) -> Option<&Caution> {
        self.cautions.get(model).filter(|caution| self.clock.wall() < caution.until)
    }

    /// Whether no load of `model` may begin.
    pub(crate) fn is_held_off(&self, model: &ModelId) -> bool {
        self.caution(model).is_some()
    }

    /// What callers are told who ask for a model of which nothing may begin. None: they may wait, for a load that goes on.
    pub(crate) fn refusal_by_caution(&self, model: &ModelId) -> Option<WaitError> {
        let caution = self.caution(model).filter(|caution| caution.verdict || !self.loads_in_runtime(model))?;
        let own = self.own_verdict(model).filter(|_| caution.verdict).map(Arc::clone);
        Some(WaitError::Failed(own.unwrap_or_else(|| self.failure_by_caution(caution))))
    }

    fn failure_by_caution(&self, caution: &Caution) -> Arc<Failure> {
        let (reason, retry) = if caution.verdict { (Reason::ModelLoadFailed, Retry::AfterChange) } else { (Reason::RuntimeUnhealthy, Retry::Later) };
        self.failure(&caution.model, reason, Step::Load, caution.message.to_string(), retry)
    }

    /// The failure that says that `model` has ended the runtime of this pod.
    fn own_verdict(&self, model: &ModelId) -> Option<&Arc<Failure>> {
        self.failures.record(model).filter(|record| record.has_ended_the_runtime()).map(|record| &record.failure)
    }

    /// Whether the runtime may have heard of a load of `model` that has not ended.
    fn loads_in_runtime(&self, model: &ModelId) -> bool {
        self.loading.contains(model) && self.turns_of_loads.get(model).is_none_or(|begun| begun.load(Ordering::Acquire))
    }

    /// Does with what is here of `model` as its caution says.
    pub(crate) fn obey(&mut self, model: &ModelId) {
        let Some((verdict, failure)) = self.caution(model).map(|caution| (caution.verdict, self.failure_by_caution(caution))) else { return };
        let retired = self.entries.get(model).is_some_and(|entry| entry.retired);
        if verdict && !retired && self.suspects.has_seen_die(model, self.clock.wall()) && self.own_verdict(model).is_none() {
            self.fail(model, failure, Some(Kind::EndedTheRuntime));
            self.report(model);
        }
        let Some(phase) = self.phase(model) else { return };
        let goes_on = phase == Phase::Ready || self.loads_in_runtime(model);
        if goes_on && !verdict {
            return;
        }
        if let Some(refusal) = self.refusal_by_caution(model) {
            for waiter in self.take_waiters(model) {
                self.refuse(waiter, refusal.clone(), "suspect");
            }
        }
        let queued = self.entries.get(model).is_some_and(|entry| self.to_load.contains(&entry.ticket));
        if let Some(entry) = self.entries.get_mut(model) {
            entry.background = None;
            entry.leaving.nothing_attempted |= queued;
        }
        match phase {
            Phase::Pulling | Phase::Fitting => self.step(model, Event::Evict),
            Phase::Loading if !goes_on => self.step(model, Event::Evict),
            Phase::Ready => {
                info!(model = %model, "the copy of a model that ends runtimes leaves");
                self.drain_within(model, self.config.drain_cap);
                self.step(model, Event::Evict);
            }
            Phase::Loading | Phase::Draining | Phase::Unloading | Phase::Stuck | Phase::Gone => {}
        }
    }
}
