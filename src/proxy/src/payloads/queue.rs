//! What waits for one processor: so many payloads and so many bytes, and what does not fit is dropped and counted.
//!
//! Each processor has a queue and a budget of its own: one that hangs takes nothing from the others.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use berth_telemetry::{Clock, Counter, CounterHandle, Gauge, Metrics};
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tracing::warn;

use super::Settings;
use super::payload::Payload;
use super::processor::{Filter, Processor, Target};
use crate::budget::{Budget, Share};

/// How often drops are said, for each processor.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Why a payload did not reach its processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// As many as may wait were waiting.
    Capacity,
    /// What waits had as many bytes as it may have.
    Budget,
    /// It has more bytes than a payload may have.
    Size,
    /// It is compressed in a way that is not known here, or wrongly.
    Unreadable,
    /// Its message did not come to its end.
    Unfinished,
    /// No connection was made.
    Unreachable,
    /// There was no answer in time.
    Timeout,
    /// It was answered with another status than one of success.
    Refused,
    /// The connection broke.
    Broken,
    /// It still waited when its time at the end was over.
    Shutdown,
}

impl Lost {
    const COUNT: usize = Lost::Shutdown as usize + 1;

    pub(super) const fn label(self) -> &'static str {
        match self {
            Lost::Capacity => "capacity",
            Lost::Budget => "budget",
            Lost::Size => "size",
            Lost::Unreadable => "unreadable",
            Lost::Unfinished => "unfinished",
            Lost::Unreachable => "unreachable",
            Lost::Timeout => "timeout",
            Lost::Refused => "refused",
            Lost::Broken => "broken",
            Lost::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A payload on its way, and the bytes that it counts for.
pub(super) struct Waiting {
    pub(super) payload: Arc<Payload>,
    pub(super) share: Share,
}

/// Where the senders of a processor take payloads from.
pub(super) type Line = Arc<tokio::sync::Mutex<Receiver<Waiting>>>;

/// The queue of one processor.
pub(super) struct Queue {
    pub(super) label: String,
    filter: Filter,
    /// Whether messages themselves are wanted.
    pub(super) wants_data: bool,
    pub(super) limit: u64,
    budget: Budget,
    waiting: Sender<Waiting>,
    clock: Clock,
    metrics: Metrics,
    sent: CounterHandle,
    /// By reason; made when a reason first occurs.
    lost: [OnceLock<CounterHandle>; Lost::COUNT],
    said: Mutex<Said>,
}

/// What was said of drops.
#[derive(Default)]
struct Said {
    last: Option<Instant>,
    /// Since then.
    unsaid: u64,
}

impl Queue {
    /// `among`: how many processors share the budget.
    pub(super) fn new(processor: &Processor, settings: &Settings, among: usize, clock: &Clock, metrics: &Metrics) -> (Arc<Self>, Receiver<Waiting>) {
        let (waiting, receiver) = mpsc::channel(settings.capacity.get());
        let label = processor.label.clone();
        let shown = metrics.gauge(Gauge::PayloadBytes, &[("processor", &label)]);
        let budget = berth_types::ByteSize(settings.budget.0 / among.max(1) as u64);
        let queue = Queue {
            filter: processor.filter.clone(),
            wants_data: processor.target != Target::Logger,
            limit: settings.limit.0,
            budget: Budget::new(budget, shown),
            waiting,
            clock: clock.clone(),
            metrics: metrics.clone(),
            sent: metrics.counter(Counter::PayloadsSent, &[("processor", &label)]),
            lost: [const { OnceLock::new() }; Lost::COUNT],
            said: Mutex::default(),
            label,
        };
        (Arc::new(queue), receiver)
    }

    pub(super) fn takes(&self, method: &str, model: &str, name: Option<&str>) -> bool {
        self.filter.takes(method, model, name)
    }

    /// Room for a message of `size` bytes with `overhead`. `None`: there is none, and that was counted.
    pub(super) fn room(&self, size: u64, overhead: u64) -> Option<Share> {
        if self.wants_data && size > self.limit {
            self.drops(Lost::Size);
            return None;
        }
        let mut share = self.budget.share();
        match share.hold(if self.wants_data { size.saturating_add(overhead) } else { overhead }) {
            Ok(()) => Some(share),
            Err(_full) => {
                self.drops(Lost::Budget);
                None
            }
        }
    }

    /// Puts a payload at the end, unless there are too many before it.
    pub(super) fn put(&self, payload: Arc<Payload>, share: Share) {
        if self.waiting.try_send(Waiting { payload, share }).is_err() {
            self.drops(Lost::Capacity);
        }
    }

    /// Counts one that arrived.
    pub(super) fn sent(&self) {
        self.sent.add(1);
    }

    /// Counts one that will not arrive; once a minute at most it is said how many.
    pub(super) fn drops(&self, why: Lost) {
        let labels = [("processor", &*self.label), ("reason", why.label())];
        self.lost[why as usize].get_or_init(|| self.metrics.counter(Counter::PayloadsDropped, &labels)).add(1);
        let now = self.clock.now();
        let mut said = self.said.lock();
        said.unsaid += 1;
        if said.last.is_none_or(|last| now.saturating_duration_since(last) >= WARN_EVERY) {
            let dropped = std::mem::take(&mut said.unsaid);
            said.last = Some(now);
            drop(said);
            // About the processor, not about whatever request met it.
            warn!(parent: None, processor = %self.label, reason = %why, dropped, "payloads were dropped: see berth_payloads_dropped_total for all reasons");
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.budget.taken()
    }
}
