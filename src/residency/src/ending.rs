//! The end of the pod: requests end, copies are unloaded, everybody else is turned away.

use std::time::{Duration, Instant};

use berth_plan::{Event, Phase};
use tokio::sync::oneshot;
use tracing::warn;

use crate::WaitError;
use crate::owner::{Msg, Owner};
use crate::work::Done;

/// How long the end waits for the disk.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Shutting down.
#[derive(Debug)]
pub(crate) struct Ending {
    /// When requests in flight are told to end.
    until: Instant,
    done: Vec<oneshot::Sender<()>>,
}

impl Owner {
    pub(crate) fn begin_ending(&mut self, until: Instant, done: Option<oneshot::Sender<()>>) {
        if let Some(ending) = &mut self.ending {
            ending.until = ending.until.min(until);
            ending.done.extend(done);
            return self.end_drains_by(until);
        }
        self.end_drains_by(until);
        self.ending = Some(Ending { until, done: done.into_iter().collect() });
        let left = until.saturating_duration_since(self.clock.now());
        for model in self.entries.keys().cloned().collect::<Vec<_>>() {
            if let Some(entry) = self.entries.get_mut(&model) {
                entry.background = None;
            }
            for waiter in self.take_waiters(&model) {
                self.refuse(waiter, WaitError::ShuttingDown, "shutting-down");
            }
            if matches!(self.phase(&model), Some(Phase::Pulling | Phase::Fitting | Phase::Loading | Phase::Ready)) {
                self.drain_within(&model, left);
                self.step(&model, Event::Evict);
            }
        }
    }

    /// Cuts drains short that would go on past `until`: nobody would be left to revoke their requests.
    fn end_drains_by(&mut self, until: Instant) {
        let now = self.clock.now();
        for entry in self.entries.values_mut().filter(|entry| entry.phase == Phase::Draining) {
            let (Some(slot), Some(task)) = (entry.slot.clone(), entry.task.take_if(|_| entry.drain_until.is_none_or(|at| at > until))) else {
                continue;
            };
            task.abort();
            entry.drain_until = Some(until);
            entry.task = Some(self.work.drain(slot, until.saturating_duration_since(now), self.config.revoke_grace, entry.life));
        }
    }

    /// Past this moment nothing is waited for any more: requests were told to end, unloads had their time.
    pub(crate) fn last_moment(&self, ending: &Ending) -> Instant {
        ending.until + self.config.revoke_grace + self.config.unload_timeout
    }

    pub(crate) fn ended(&self) -> bool {
        let Some(ending) = &self.ending else { return false };
        let over = self.clock.now() >= self.last_moment(ending);
        over || self.entries.values().all(|entry| entry.phase == Phase::Stuck)
    }

    pub(crate) async fn end(mut self) {
        self.inbox.close();
        while let Ok(message) = self.inbox.try_recv() {
            match message {
                Msg::Ensure { reply, .. } => self.refuse(reply, WaitError::ShuttingDown, "shutting-down"),
                Msg::Drain { done, .. } => {
                    if let Some(ending) = &mut self.ending {
                        ending.done.push(done);
                    }
                }
                Msg::Load { .. }
                | Msg::Retire { .. }
                | Msg::Amend { .. }
                | Msg::Suspect { .. }
                | Msg::StorageChanged
                | Msg::Beware { .. }
                | Msg::Snapshot { .. }
                | Msg::Held { .. } => {}
            }
        }
        let bytes = self.bring_history_up_to_date();
        self.shared.copies.clear();
        // The tasks that would revoke them end with this one.
        for slot in self.entries.values().filter_map(|entry| entry.slot.as_ref()) {
            slot.revoke();
        }
        let (clock, deadline) = (self.clock.clone(), self.clock.deadline_in(LAST_WRITES));
        if clock.until(deadline, self.write_what_is_not_written(bytes)).await.is_none() {
            warn!(waited = ?LAST_WRITES, "the disk does not answer: the last uses, sizes and failures of models may be lost");
            self.say_what_is_held_back();
        }
        self.shared.board.end();
        for done in self.ending.take().map(|ending| ending.done).unwrap_or_default() {
            let _ = done.send(());
        }
    }

    /// Writes under way, then whatever they do not hold: a write that ended later would rename the older state over it.
    async fn write_what_is_not_written(&mut self, mut history: Option<Vec<u8>>) {
        self.keeping.hurry(self.clock.now());
        loop {
            self.keep_failures();
            if !self.saving
                && let (Some(bytes), Some(folder)) = (history.take(), self.config.state.clone())
            {
                self.saving = true;
                self.work.save(folder, bytes);
            }
            if !self.saving && !self.keeping.is_writing() {
                return;
            }
            match self.work.tasks.join_next().await {
                Some(Ok(Done::Saved { result })) => {
                    self.saving = false;
                    if let Err(fault) = result {
                        warn!(error = %fault, "last uses and sizes of models cannot be written");
                    }
                }
                Some(Ok(Done::FailuresKept { result })) => self.on_failures_kept(result),
                Some(_) => {}
                None => return,
            }
        }
    }
}
