//! What the owner tells others: reports, gauges, the books, and the file that survives a restart.

use std::time::Duration;

use berth_plan::Phase;
use berth_telemetry::Gauge;
use berth_types::{CopyReport, CopyState, ModelId};

use crate::ledger::Sums;
use crate::owner::{Owner, last_used_of};
use crate::snapshot::{CopyUse, PoolUse, Snapshot};

/// What was last written to the gauges.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    sums: Sums,
    counts: [u64; Phase::ALL.len()],
    waiting: usize,
}

impl Owner {
    /// Tells subscribers how it is with `model`, at once or when the disk knows as much.
    pub(crate) fn report(&mut self, model: &ModelId) {
        let entry = self.entries.get(model);
        if entry.is_some_and(|entry| entry.registration.is_none()) {
            return;
        }
        let state = match entry {
            None => CopyState::Absent,
            Some(entry) => match entry.phase {
                Phase::Pulling | Phase::Fitting | Phase::Loading => CopyState::Loading { since: entry.since },
                Phase::Ready => {
                    let footprint = entry.lease.as_ref().map(|lease| lease.bytes().clone()).unwrap_or_default();
                    CopyState::Loaded { since: entry.since, footprint, content: entry.content.clone() }
                }
                Phase::Draining | Phase::Unloading | Phase::Stuck => CopyState::Unloading,
                Phase::Gone => CopyState::Absent,
            },
        };
        let stuck = entry.and_then(|entry| entry.stuck.clone());
        let mended = stuck.is_none() && self.failures.was_mended(model);
        let failure = stuck.or_else(|| self.failures.of(model));
        let report = CopyReport { model: model.clone(), state, failure, mended, last_used: self.shared.last_used(model.as_str()) };
        if let Some(report) = self.keeping.hold_back(report) {
            self.shared.board.publish(report);
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let sums = self.ledger.sums();
        let memory = &self.memory();
        let pools = memory.budget.plus(&memory.charged);
        let pools = pools.iter().map(|(pool, _)| {
            let real = self.truth.reading().and_then(|reading| reading.pools.get(&pool).copied()).unwrap_or_default();
            PoolUse {
                pool,
                budget: memory.budget.get(pool),
                charged: memory.charged.get(pool),
                returning: memory.returning.get(pool),
                unconfirmed: sums.unconfirmed.get(pool),
                withheld: memory.withheld.get(pool),
                base: self.truth.base().filter(|_| real.held.is_some()).map(|base| base.get(pool)),
                retained: self.truth.retained().get(pool),
                real,
                strained: self.truth.is_strained(pool),
            }
        });
        let mut copies: Vec<_> = self
            .entries
            .iter()
            .map(|(model, entry)| CopyUse {
                model: model.clone(),
                phase: entry.phase,
                since: entry.since,
                charged: entry.lease.as_ref().map(|lease| lease.bytes().clone()),
                from: entry.origin,
                in_flight: entry.slot.as_ref().map_or(0, |slot| slot.in_flight()),
                waiting: entry.waiters.len(),
                last_used: self.shared.last_used(model.as_str()),
            })
            .collect();
        copies.sort_by(|a, b| a.model.cmp(&b.model));
        Snapshot { pools: pools.collect(), copies, waiting: self.waiting }
    }

    /// Brings gauges and the watched room up to date, if anything in them changed.
    pub(crate) fn show(&mut self) {
        let shown = Shown { sums: Sums { memory: self.memory(), ..self.ledger.sums() }, counts: self.counts, waiting: self.waiting };
        if self.shown.as_ref() == Some(&shown) {
            return;
        }
        let memory = &shown.sums.memory;
        for (pool, _) in memory.budget.plus(&memory.charged).iter() {
            let labels = [("pool", &*pool.to_string())];
            self.metrics.set(Gauge::MemoryLeasedBytes, &labels, memory.charged.get(pool).0);
            self.metrics.set(Gauge::MemoryUnconfirmedBytes, &labels, shown.sums.unconfirmed.get(pool).0);
        }
        let count = |phases: &[Phase]| phases.iter().map(|phase| self.counts[*phase as usize]).sum();
        for (state, phases) in [
            ("Loading", &[Phase::Pulling, Phase::Fitting, Phase::Loading][..]),
            ("Loaded", &[Phase::Ready]),
            ("Unloading", &[Phase::Draining, Phase::Unloading]),
            ("Stuck", &[Phase::Stuck]),
        ] {
            self.metrics.set(Gauge::Models, &[("state", state)], count(phases));
        }
        self.metrics.set(Gauge::Waiting, &[], self.waiting as u64);
        let free = memory.free();
        self.shared.room.send_if_modified(|room| std::mem::replace(room, free.clone()) != free);
        self.shown = Some(shown);
    }

    pub(crate) fn show_lru_age(&mut self) {
        let entries = &self.entries;
        let oldest = self.lru.walk(|model| last_used_of(entries, model)).next();
        let age = oldest.map_or(Duration::ZERO, |model| self.clock.wall().since(last_used_of(&self.entries, &model)));
        self.metrics.set(Gauge::LruAgeSeconds, &[], age.as_secs());
    }

    pub(crate) fn bring_history_up_to_date(&self) -> Option<Vec<u8>> {
        let mut history = self.shared.history.lock();
        for copy in &self.shared.copies {
            if let Some(time) = copy.last_used() {
                history.note_use(copy.key(), time);
            }
        }
        history.keep_within(self.config.remembered);
        self.config.state.is_some().then(|| history.take_unsaved()).flatten()
    }

    pub(crate) fn save_if_due(&mut self) {
        let now = self.clock.now();
        if now >= self.saved + self.config.save_every {
            self.save();
        }
    }

    /// Writes last uses and sizes; once more when that is done, if it is being done: it may not have what is new.
    pub(crate) fn save(&mut self) {
        if self.saving {
            self.save_again = true;
            return;
        }
        self.saved = self.clock.now();
        if let (Some(bytes), Some(folder)) = (self.bring_history_up_to_date(), self.config.state.clone()) {
            self.saving = true;
            self.work.save(folder, bytes);
        }
    }
}
