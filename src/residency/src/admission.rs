//! What starts next, and what must go for it.
//!
//! Three queues in a row, each with its own concurrency: fetch, fit (memory), load. In each of them loads that somebody
//! waits for come before those that nobody does, each class first come, first served. What is being fetched for nobody
//! keeps its place but takes none from a download that is waited for. Memory is given out
//! strictly in that order: nobody overtakes a load that waits for memory which is coming, so it cannot starve. Only a
//! load that even the end of all requests could not help is passed over.
//!
//! Files that are on disk already do not stand in the line of the downloads. What waits for memory pins its files, so
//! no more is fetched ahead than can keep the loads going, and a load that finds the disk full of such files waits.
//!
//! Copies in use are never evicted. When all idle ones together do not suffice, copies in use that had their turn
//! ([`Config::turn`](crate::Config::turn)) take no new requests and are drained: so two models on room for one take
//! turns under any load, instead of one starving.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_adapters::Seat;
use berth_plan::device::{self, Offer};
use berth_plan::{Admission, Event, Memory, Phase, Resident, admit, drain_for, pressure, relieve};
use berth_telemetry::Counter;
use berth_types::{Footprint, ModelId, Pool, Refusal, Step};
use tracing::{debug, error, info};

use crate::entry::{Class, Entry, Ticket};
use crate::lru::ByLastUse;
use crate::owner::{Owner, last_used_of};
use crate::work::{Apart, Terms, artifacts_of};

/// How it went for one load that wants memory.
enum Turn {
    /// It has memory, or it is out of the queue: next.
    Settled,
    /// It waits for memory that is coming: so does everybody behind it.
    Blocks,
    /// Nothing can help it now: others may go.
    PassedOver,
}

/// The loaded copies as eviction sees them, least recently used first.
pub(crate) fn residents<'a>(lru: &'a mut ByLastUse, entries: &'a HashMap<ModelId, Entry>, now: Instant) -> impl Iterator<Item = Resident> + 'a {
    lru.walk(move |model| last_used_of(entries, model)).filter_map(move |model| {
        let entry = entries.get(&model)?;
        let (slot, lease) = (entry.slot.as_ref()?, entry.lease.as_ref()?);
        Some(Resident {
            footprint: lease.bytes().clone(),
            last_used: slot.last_used().unwrap_or(slot.loaded),
            held_for: now.saturating_duration_since(slot.loaded_at),
            used_since_load: slot.used_since_load(),
            in_flight: slot.in_flight(),
            pinned: entry.registration.as_ref().is_some_and(|registration| registration.keep.is_fixed()),
            model,
        })
    })
}

impl Owner {
    pub(crate) fn start_what_can_start(&mut self) {
        if std::mem::take(&mut self.reconsider) {
            self.give_out_memory();
        }
        self.start_reuses();
        self.start_fetches();
        self.start_loads();
    }

    /// Whether enough wait for memory with their files on disk before a load of this class: fetching more would only fill
    /// the disk. Those that nothing can help at present do not count.
    fn enough_ahead(&self, class: Class) -> bool {
        let enough = self.config.fetches.max(1) + self.work.runtime.info().load_concurrency.get() as usize + self.passed_over;
        self.to_fit.iter().take_while(|ticket| ticket.class <= class).take(enough).count() == enough
    }

    /// Whether one more of this class may begin beside `running`.
    fn may_begin(&self, running: &HashSet<ModelId>, class: Class) -> bool {
        let most = self.config.fetches.max(1);
        match class {
            Class::Waited => {
                let waited = |model: &&ModelId| self.entries.get(*model).is_some_and(|entry| entry.ticket.class == Class::Waited);
                running.iter().filter(waited).count() < most
            }
            Class::Background => running.len() < (most - 1).max(1),
        }
    }

    fn start_reuses(&mut self) {
        while let Some(next) = self.to_reuse.first().cloned() {
            if self.enough_ahead(next.class) || !self.may_begin(&self.reusing, next.class) {
                break;
            }
            self.to_reuse.remove(&next);
            let Some(entry) = self.entries.get_mut(&next.model) else { continue };
            let Some(registration) = entry.registration.clone() else { continue };
            entry.task = Some(self.work.reuse(registration, entry.life));
            self.reusing.insert(next.model);
        }
    }

    fn start_fetches(&mut self) {
        // One try for each chance: the first one decides whether the next has one too.
        if self.let_go_seen != self.let_go {
            self.let_go_seen = self.let_go;
            self.to_fetch.extend(self.awaiting_disk.pop_first());
        }
        while let Some(next) = self.to_fetch.first().cloned() {
            if self.enough_ahead(next.class) || !self.may_begin(&self.fetching, next.class) {
                break;
            }
            self.to_fetch.remove(&next);
            let Some(entry) = self.entries.get_mut(&next.model) else { continue };
            let Some(registration) = entry.registration.clone() else { continue };
            entry.let_go_before = self.let_go;
            entry.storage_changed = false;
            entry.task = Some(self.work.fetch(registration, next.class.urgency(), entry.life));
            self.fetching.insert(next.model);
        }
    }

    fn start_loads(&mut self) {
        let (limit, wall) = (self.work.runtime.info().load_concurrency.get() as usize, self.clock.wall());
        self.turns_of_loads.retain(|model, _| self.loading.contains(model));
        while self.loading.len() < limit && !self.is_away() {
            let Some(Ticket { model, .. }) = self.to_load.first().cloned() else { break };
            // A model that may have ended the runtime shares it with no other load.
            let suspect_loads = self.loading.iter().any(|loading| self.suspects.loads_alone(loading, wall) || self.truth.loads_alone(loading));
            let must_wait = self.must_wait_to_learn(&model) || self.truth.is_recycling();
            if suspect_loads || must_wait || (self.suspects.loads_alone(&model, wall) && !self.loading.is_empty()) {
                break;
            }
            self.to_load.pop_first();
            let Some(entry) = self.entries.get_mut(&model) else { continue };
            let (Some(registration), Some(files)) = (entry.registration.clone(), entry.files.as_ref()) else { continue };
            let (artifacts, gpu, life) = (artifacts_of(files), entry.gpu, entry.life);
            let watched = self.begin_learning(&model);
            let alone = self.suspects.loads_alone(&model, wall).then(|| {
                let apart = Apart { alone: Arc::clone(&self.suspects_at_work), begun: Arc::default() };
                self.turns_of_loads.insert(model.clone(), Arc::clone(&apart.begun));
                apart
            });
            let terms = Terms { gpu, alone };
            let task = self.work.load(registration, artifacts, terms, watched, life);
            if let Some(entry) = self.entries.get_mut(&model) {
                entry.task = Some(task);
            }
            self.loading.insert(model);
        }
    }

    fn give_out_memory(&mut self) {
        self.turn_ends = None;
        self.passed_over = 0;
        self.relieve_pools_in_debt();
        // What the runtime held before us takes memory that the ledger does not know.
        let mut starving = false;
        if self.left_over.as_ref().is_some_and(HashSet::is_empty) && !self.is_away() {
            let mut passed: Option<Ticket> = None;
            loop {
                let next = match &passed {
                    None => self.to_fit.first(),
                    Some(passed) => self.to_fit.range((std::ops::Bound::Excluded(passed), std::ops::Bound::Unbounded)).next(),
                };
                let Some(next) = next.cloned() else { break };
                match self.fit(&next.model, &mut starving) {
                    Turn::Settled => {}
                    Turn::Blocks => break,
                    Turn::PassedOver => {
                        self.passed_over += 1;
                        passed = Some(next);
                    }
                }
            }
        }
        if !starving {
            self.shared.bell.starving.end();
        }
    }

    /// Tries to give `model` memory.
    fn fit(&mut self, model: &ModelId, starving: &mut bool) -> Turn {
        // One load beyond those that run is prepared, so that the runtime has no gap; evicting for more would take
        // copies from their users long before the memory is needed.
        let ahead = self.loading.len() + self.to_load.len();
        if ahead > self.work.runtime.info().load_concurrency.get() as usize {
            return Turn::Blocks;
        }
        // What is learned while one loads alone must not be disturbed by copies that go.
        if self.truth.is_recycling() || self.must_not_be_disturbed() || !self.sees_clearly() {
            return Turn::Blocks;
        }
        let Some(entry) = self.entries.get(model) else { return Turn::PassedOver };
        if let Some(victim) = &entry.after_out_of_memory
            && matches!(self.phase(victim), Some(Phase::Draining | Phase::Unloading))
        {
            return Turn::Blocks;
        }
        let (may, need, waited_for) = (entry.may_evict(), entry.need.clone().unwrap_or_default(), !entry.waiters.is_empty());
        // The room for a guess that is far off is wanted where idle copies give it, and no reason to wait or to drain.
        let wall = self.clock.wall();
        let decide =
            move |need: &Footprint, memory: &Memory, residents: &mut dyn Iterator<Item = Resident>| admit(need, memory, residents, may, wall);
        let has_room = |offer: Offer| !matches!(offer.admission, Admission::Refuse(_));
        let roomy = self.is_guess(model) && self.offer(model, &need, true, decide).is_some_and(has_room);
        loop {
            let Some(Offer { gpu, need: placed, admission, .. }) = self.offer(model, &need, roomy, decide) else { return Turn::PassedOver };
            match admission {
                Admission::Fits => {
                    // The ledger asks the same question again; both must say yes.
                    let Some(lease) = self.ledger.lease(model, &placed) else {
                        error!(model = %model, size = %placed, "the ledger has no room for what fits: a bug, the load waits");
                        return Turn::PassedOver;
                    };
                    if let Some(entry) = self.entries.get_mut(model) {
                        entry.lease = Some(lease);
                        entry.need = Some(gpu.map_or(need.clone(), |gpu| need.on_gpu(gpu)));
                        entry.gpu = gpu;
                    }
                    self.step(model, Event::Leased);
                    return Turn::Settled;
                }
                Admission::AwaitReturning => return Turn::Blocks,
                Admission::Evict(victims) => {
                    if self.evict(&victims, model) {
                        return Turn::Blocks;
                    }
                    // A request came in between: the plan was for another moment.
                }
                Admission::Refuse(refusal @ Refusal::NeverFits { .. }) => {
                    self.refuse_for_good(model, refusal);
                    self.step(model, Event::Evict);
                    return Turn::Settled;
                }
                Admission::Refuse(refusal @ Refusal::NoRoomNow { .. }) => {
                    if !waited_for {
                        debug!(model = %model, error = %refusal, "no room for a load that nobody waits for");
                        self.metrics.add(Counter::Loads, &[("step", Step::Admit.as_str()), ("outcome", "no-room")], 1);
                        if let Some(entry) = self.entries.get_mut(model) {
                            entry.background = None;
                        }
                        self.step(model, Event::Evict);
                        return Turn::Settled;
                    }
                    if !*starving {
                        // From here on copies that become idle ring the bell; one may have done so just before.
                        *starving = true;
                        self.shared.bell.starving.announce();
                        continue;
                    }
                    return self.take_turns(model, &need, roomy);
                }
            }
        }
    }

    /// The best that there is for `model`, which is thought to take `need`: on the GPU that is chosen for it, or where it takes
    /// memory anyway. `roomy`: with the room for a guess that is far off.
    fn offer(
        &mut self,
        model: &ModelId,
        need: &Footprint,
        roomy: bool,
        decide: impl Fn(&Footprint, &Memory, &mut dyn Iterator<Item = Resident>) -> Admission,
    ) -> Option<Offer> {
        let (memory, now) = (self.memory(), self.clock.now());
        let chosen = self.entries.get(model).is_some_and(|entry| entry.seat == Seat::OneGpu);
        let gpus = if chosen { device::choices(&memory.budget, self.truth.reading()) } else { Vec::new() };
        let seats = if gpus.is_empty() { vec![None] } else { gpus.into_iter().map(Some).collect() };
        let each = seats.into_iter().map(|gpu| {
            let need = gpu.map_or_else(|| need.clone(), |gpu| need.on_gpu(gpu));
            let need = if roomy { pressure::cautious(&need, &memory.budget) } else { need };
            device::offer(gpu, need, &memory, residents(&mut self.lru, &self.entries, now), &decide)
        });
        device::best(each)
    }

    /// Idle copies do not suffice for a load that somebody waits for.
    fn take_turns(&mut self, model: &ModelId, need: &Footprint, roomy: bool) -> Turn {
        let (now, turn) = (self.clock.now(), self.config.turn);
        let mut drained = |turn| {
            let offer = self.offer(model, need, roomy, |need, memory, residents| drain_for(need, memory, residents, turn));
            offer.map_or(Admission::AwaitReturning, |offer| offer.admission)
        };
        match drained(turn) {
            Admission::Evict(victims) => {
                for victim in victims {
                    self.log_eviction(&victim, model, "its turn is over");
                    self.drain_within(&victim, self.config.drain_cap);
                    self.step(&victim, Event::Evict);
                }
                Turn::Blocks
            }
            Admission::Fits | Admission::AwaitReturning => Turn::Blocks,
            Admission::Refuse(_) => {
                if matches!(drained(Duration::ZERO), Admission::Refuse(_)) {
                    return Turn::PassedOver;
                }
                let left = residents(&mut self.lru, &self.entries, now).map(|copy| turn.saturating_sub(copy.held_for));
                let left = left.filter(|left| !left.is_zero()).min().unwrap_or(turn);
                self.turn_ends = Some(now + left.max(Duration::from_millis(1)));
                Turn::Blocks
            }
        }
    }

    /// Evicts all of `victims` or, when one of them came into use, none.
    fn evict(&mut self, victims: &[ModelId], for_model: &ModelId) -> bool {
        let slots: Vec<_> = victims.iter().filter_map(|victim| self.entries.get(victim)?.slot.clone()).collect();
        let closed = slots.iter().take_while(|slot| slot.gate.close_if_idle()).count();
        if closed < victims.len() {
            for slot in &slots[..closed] {
                slot.gate.reopen();
            }
            return false;
        }
        for victim in victims {
            self.log_eviction(victim, for_model, "least recently used");
            self.step(victim, Event::Evict);
        }
        true
    }

    /// Evicts one copy, unless it came into use. True when it goes.
    pub(crate) fn evict_idle(&mut self, victim: &ModelId, reason: &str) -> bool {
        let closed = self.entries.get(victim).and_then(|entry| entry.slot.as_ref()).is_some_and(|slot| slot.gate.close_if_idle());
        if closed {
            self.log_eviction(victim, victim, reason);
            self.step(victim, Event::Evict);
        }
        closed
    }

    fn log_eviction(&self, victim: &ModelId, for_model: &ModelId, reason: &str) {
        let size = self.entries.get(victim).and_then(|entry| entry.lease.as_ref()).map(|lease| lease.bytes().clone()).unwrap_or_default();
        self.metrics.add(Counter::Evictions, &[], 1);
        info!(model = %victim, size = %size, reason, for_model = %for_model, "model evicted");
    }

    /// Copies took more than was predicted: brings the pools back within their budgets as far as idle copies go.
    fn relieve_pools_in_debt(&mut self) {
        loop {
            let memory = self.ledger.sums().memory;
            if memory.charged.fits(&memory.budget) {
                return;
            }
            let victims = relieve(&memory, residents(&mut self.lru, &self.entries, self.clock.now()));
            let Some(first) = victims.first().cloned() else { return };
            if self.evict(&victims, &first) {
                return;
            }
        }
    }

    /// Evicts the least recently used idle copy that takes some of one of these memories, so that `model` can be tried once more.
    /// False when there is none.
    pub(crate) fn evict_one_for(&mut self, model: &ModelId, pools: &[Pool]) -> bool {
        while let Some(victim) = device::makes_way(pools, residents(&mut self.lru, &self.entries, self.clock.now())) {
            if self.evict(std::slice::from_ref(&victim), model) {
                if let Some(entry) = self.entries.get_mut(model) {
                    entry.after_out_of_memory = Some(victim);
                }
                return true;
            }
        }
        false
    }
}
