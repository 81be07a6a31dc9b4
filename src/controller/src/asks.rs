//! Loads that nobody waits for: which are queued for which pod, and how many each pod has been asked for.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use berth_plan::MayEvict;
use berth_plan::background::{Ask, Purpose};
use berth_types::{ModelId, PodId, UnixMillis};

/// How far a version is with the load that was decided for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing was decided.
    #[default]
    No,
    /// In the queue of its pod.
    Queued(Box<Queued>),
    /// The pod was asked and has not said how it went.
    Pending(Box<Pending>),
}

/// What is to be asked for. Boxed: of many versions few are queued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    /// What to ask for.
    pub(crate) ask: Ask,
    /// Its place.
    pub(crate) place: Place,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Whom.
    pub(crate) pod: PodId,
    /// Why.
    pub(crate) purpose: Purpose,
    /// When.
    pub(crate) at: UnixMillis,
}

/// A place in a queue: updates before new resources before retries, each in the order in which they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    waits_behind_a_target: bool,
    purpose: Purpose,
    number: u64,
}

#[derive(Debug, Default)]
struct PodQueue {
    waiting: BTreeSet<(Place, ModelId)>,
    pending: usize,
}

/// The queues of all pods. Each version is in at most one, once.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pods: HashMap<PodId, PodQueue>,
    next_number: u64,
}

impl Queues {
    /// Puts a load into the queue of its pod.
    pub(crate) fn push(&mut self, model: &ModelId, ask: Ask, is_target: bool) -> Asked {
        self.next_number += 1;
        let place = Place { waits_behind_a_target: !is_target, purpose: ask.purpose, number: self.next_number };
        self.pods.entry(ask.pod.clone()).or_default().waiting.insert((place, model.clone()));
        Asked::Queued(Box::new(Queued { ask, place }))
    }

    /// Forgets what was decided for `model`, wherever it is by now.
    pub(crate) fn forget(&mut self, model: &ModelId, asked: &mut Asked) {
        match std::mem::take(asked) {
            Asked::No => {}
            Asked::Queued(queued) => {
                if let Some(pod) = self.pods.get_mut(&queued.ask.pod) {
                    pod.waiting.remove(&(queued.place, model.clone()));
                }
            }
            Asked::Pending(pending) => {
                if let Some(pod) = self.pods.get_mut(&pending.pod) {
                    pod.pending = pod.pending.saturating_sub(1);
                }
            }
        }
    }

    /// The next version to ask `pod` for, if fewer than `limit` are pending there.
    pub(crate) fn pop(&mut self, pod: &PodId, limit: usize) -> Option<ModelId> {
        let queue = self.pods.get_mut(pod).filter(|queue| queue.pending < limit)?;
        let (_, model) = queue.waiting.pop_first()?;
        Some(model)
    }

    /// Counts a load that `pod` is asked for now.
    pub(crate) fn pending(&mut self, pod: &PodId, purpose: Purpose, at: UnixMillis) -> Asked {
        self.pods.entry(pod.clone()).or_default().pending += 1;
        Asked::Pending(Box::new(Pending { pod: pod.clone(), purpose, at }))
    }

    /// True when `pod` has nothing queued and nothing pending: only then is anything warmed.
    pub(crate) fn idle(&self, pod: &PodId) -> bool {
        self.pods.get(pod).is_none_or(|queue| queue.pending == 0 && queue.waiting.is_empty())
    }
}

/// A load on its way to an agent.
pub(crate) struct LoadCommand {
    pub(crate) pod: PodId,
    pub(crate) model: ModelId,
    pub(crate) may_evict: MayEvict,
}

/// The order in which versions on standby are warmed: last used first.
pub(crate) type Warmth = Reverse<Option<UnixMillis>>;

/// Versions on standby that may be warmed now, hottest first.
#[derive(Debug, Default)]
pub(crate) struct Warmable(BTreeSet<(Warmth, ModelId)>);

impl Warmable {
    /// Moves `model` from the place `from` (`None`: not in) to `to` (`None`: out).
    pub(crate) fn set(&mut self, model: &ModelId, from: Option<Warmth>, to: Option<Warmth>) {
        if from == to {
            return;
        }
        if let Some(from) = from {
            self.0.remove(&(from, model.clone()));
        }
        if let Some(to) = to {
            self.0.insert((to, model.clone()));
        }
    }

    /// The hottest ones.
    pub(crate) fn hottest(&self, count: usize) -> impl Iterator<Item = &ModelId> {
        self.0.iter().take(count).map(|(_, model)| model)
    }
}
