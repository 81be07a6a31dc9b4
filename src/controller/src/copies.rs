//! What pods hold of every model, whoever registered it: for the leader's decisions, for answers that need none, and for
//! names that are on their way. The leader writes it, one report after the other; whoever reads sees what the leader knows.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use berth_plan::background::{self, PodCopy};
use berth_plan::managed::{CopyStanding, Doing, Held, ModelStanding};
use berth_plan::runtime::NoRuntime;
use berth_types::{CopyReport, CopyState, Failure, Location, ModelId, Name, PodId, UnixMillis};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::Pod;
use crate::bells::Bells;

/// A copy used within this time counts as used when a name decides how many copies its target needs.
const RECENTLY: Duration = Duration::from_secs(10 * 60);

/// What one pod said last of one model, where that is more than "nothing".
pub(crate) struct CopyAt {
    pod: PodId,
    pub(crate) state: CopyState,
    pub(crate) failure: Option<Arc<Failure>>,
    /// When the first of the failures in a row happened that end with this one and were all for want of storage.
    away_since: Option<UnixMillis>,
    /// The pod says that what the failure was due to may have been mended.
    mended: bool,
    last_used: Option<UnixMillis>,
}

impl CopyAt {
    fn held(&self) -> bool {
        matches!(self.state, CopyState::Loading { .. } | CopyState::Loaded { .. })
    }

    /// It is loaded, or was and is being unloaded.
    fn was_loaded(&self) -> bool {
        matches!(self.state, CopyState::Loaded { .. } | CopyState::Unloading)
    }

    /// Its failure, while that counts.
    pub(crate) fn failing(&self, now: UnixMillis) -> Option<&Arc<Failure>> {
        self.failure.as_ref().filter(|failure| background::counts_until(failure) > now)
    }
}

/// Models that names on their way are interested in, and what happened to them.
#[derive(Default)]
struct Watched {
    by: HashMap<ModelId, BTreeSet<Name>>,
    touched: BTreeSet<Name>,
    /// Models of which a pod said that it holds nothing and has nothing against them: no room.
    refused: HashSet<ModelId>,
}

/// The newest report of every pod about every model.
#[derive(Default)]
pub(crate) struct Copies {
    known: RwLock<HashMap<ModelId, Vec<CopyAt>>>,
    watched: Mutex<Watched>,
    wake: Notify,
    pub(crate) bells: Bells,
}

impl Copies {
    /// Takes in what `pod` says of one model: its state and nothing of the bytes that it was loaded from. True when its
    /// last copy has gone with this.
    pub(crate) fn take(&self, pod: &PodId, report: &CopyReport) -> bool {
        let went = self.take_in(pod, report);
        let mut watched = self.watched.lock();
        if let Some(names) = watched.by.get(&report.model).cloned() {
            watched.touched.extend(names);
            if report.state == CopyState::Absent && report.failure.is_none() {
                watched.refused.insert(report.model.clone());
            }
            self.wake.notify_one();
        }
        drop(watched);
        self.bells.ring(report.model.as_str());
        went
    }

    fn take_in(&self, pod: &PodId, report: &CopyReport) -> bool {
        let mut known = self.known.write();
        let keep = report.state != CopyState::Absent || report.failure.is_some();
        if !keep && !known.contains_key(&report.model) {
            return false;
        }
        let copies = known.entry(report.model.clone()).or_default();
        let at = copies.iter().position(|copy| copy.pod == *pod);
        let before = at.map(|at| &copies[at]);
        let was_loaded = before.is_some_and(CopyAt::was_loaded);
        // What was mended begins anew.
        let was_away = before.and_then(|before| before.away_since.filter(|_| !before.mended || report.mended));
        let away = report.failure.as_ref().filter(|failure| background::storage_was_away(failure));
        let copy = CopyAt {
            pod: pod.clone(),
            state: report.state.clone(),
            failure: report.failure.clone(),
            away_since: away.map(|failure| was_away.unwrap_or(failure.time)),
            mended: report.mended,
            last_used: report.last_used,
        };
        match (at, keep) {
            (Some(at), true) => copies[at] = copy,
            (Some(at), false) => drop(copies.swap_remove(at)),
            (None, true) => {
                copies.reserve_exact(1);
                copies.push(copy);
            }
            (None, false) => {}
        }
        let went = was_loaded && copies.iter().all(|copy| copy.state == CopyState::Absent);
        if copies.is_empty() {
            known.remove(&report.model);
        }
        went
    }

    /// Nobody asks for the model any more: what was said of it does not count for what may get its id later.
    pub(crate) fn forget(&self, model: &ModelId) {
        self.known.write().remove(model);
    }

    /// Something of these models is news for `name` from now on.
    pub(crate) fn watch<'m>(&self, name: &Name, models: impl Iterator<Item = &'m ModelId>) {
        let mut watched = self.watched.lock();
        watched.touched.insert(name.clone());
        for model in models {
            watched.by.entry(model.clone()).or_default().insert(name.clone());
        }
        self.wake.notify_one();
    }

    /// No longer.
    pub(crate) fn unwatch<'m>(&self, name: &Name, models: impl Iterator<Item = &'m ModelId>) {
        let mut watched = self.watched.lock();
        for model in models {
            if let Some(names) = watched.by.get_mut(model) {
                names.remove(name);
                if names.is_empty() {
                    watched.by.remove(model);
                    watched.refused.remove(model);
                }
            }
        }
        // Whoever looks after it should forget it.
        watched.touched.insert(name.clone());
        self.wake.notify_one();
    }

    /// The names that there is news for; waits until there are any.
    pub(crate) async fn touched(&self) -> BTreeSet<Name> {
        loop {
            let touched = std::mem::take(&mut self.watched.lock().touched);
            if !touched.is_empty() {
                return touched;
            }
            self.wake.notified().await;
        }
    }

    /// True when a pod has said "no room" since the last call.
    pub(crate) fn take_refusal(&self, model: &ModelId) -> bool {
        self.watched.lock().refused.remove(model)
    }

    /// What live pods hold of a model, in numbers.
    pub(crate) fn held(&self, model: &ModelId, pods: &[Pod], now: UnixMillis) -> Held {
        let known = self.known.read();
        let mut held = Held::default();
        let (mut on_the_way, mut failing) = (false, false);
        for copy in live(known.get(model), pods) {
            match copy.state {
                CopyState::Loaded { since, .. } => {
                    held.loaded += 1;
                    held.used += u32::from(copy.last_used.is_some_and(|used| now.since(used) < RECENTLY));
                    held.since = held.since.into_iter().chain([since]).min();
                }
                CopyState::Loading { .. } => on_the_way = true,
                CopyState::Unloading | CopyState::Absent => failing |= copy.failing(now).is_some(),
            }
        }
        held.failed = held.loaded == 0 && !on_the_way && failing;
        held
    }

    /// When a model was last used, as far as live pods that hold it say.
    pub(crate) fn last_used(&self, model: &ModelId) -> Option<UnixMillis> {
        self.known.read().get(model)?.iter().filter_map(|copy| copy.last_used).max()
    }

    /// True when this pod has it, or is at it.
    pub(crate) fn has(&self, model: &ModelId, pod: &PodId) -> bool {
        self.known.read().get(model).is_some_and(|copies| copies.iter().any(|copy| copy.pod == *pod && copy.held()))
    }

    /// True when a live pod has it, or is at it.
    pub(crate) fn is_held(&self, model: &ModelId, pods: &[Pod]) -> bool {
        live(self.known.read().get(model), pods).any(CopyAt::held)
    }

    /// Looks at what live pods hold of a model.
    pub(crate) fn look<T>(&self, model: &ModelId, pods: &[Pod], look: impl FnOnce(&[&CopyAt]) -> T) -> T {
        look(&live(self.known.read().get(model), pods).collect::<Vec<_>>())
    }

    /// The same, as decisions about loads take it.
    pub(crate) fn of<T>(&self, model: &ModelId, pods: &[Pod], look: impl FnOnce(&[PodCopy<'_>]) -> T) -> T {
        let known = self.known.read();
        let copies: Vec<PodCopy<'_>> = live(known.get(model), pods)
            .map(|copy| PodCopy {
                pod: &copy.pod,
                held: copy.held(),
                leaving: copy.state == CopyState::Unloading,
                failure: copy.failure.as_deref(),
                away_since: copy.away_since,
                mended: copy.mended,
            })
            .collect();
        look(&copies)
    }

    /// How a model that is registered stands. `none` says that no runtime takes it.
    pub(crate) fn standing(
        &self,
        model: &ModelId,
        pods: &[Pod],
        none: Option<&NoRuntime>,
        locate: impl Fn(&PodId) -> Location,
        now: UnixMillis,
    ) -> ModelStanding {
        let known = self.known.read();
        let (mut copies, mut failures) = (Vec::new(), Vec::new());
        for copy in live(known.get(model), pods) {
            let failing = copy.failing(now);
            failures.extend(failing.map(|failure| (Reverse(failure.time), failure.message.clone())));
            let held = match copy.state {
                CopyState::Loading { since } => Some((Doing::Loading, since)),
                CopyState::Loaded { since, .. } => Some((Doing::Loaded, since)),
                CopyState::Unloading | CopyState::Absent => None,
            };
            match (held, failing) {
                (Some((doing, time)), _) => copies.push(CopyStanding { location: locate(&copy.pod), doing, time }),
                (None, Some(failure)) => {
                    copies.push(CopyStanding { location: failure.location.clone(), doing: Doing::LoadingFailed, time: failure.time });
                }
                (None, None) => {}
            }
        }
        copies.sort_by_key(|copy| Reverse(copy.time));
        failures.sort();
        let mut errors: Vec<String> = failures.into_iter().map(|(_, message)| message).collect();
        let any = |doing: Doing| copies.iter().any(|copy| copy.doing == doing);
        let doing = if any(Doing::Loaded) {
            Doing::Loaded
        } else if any(Doing::Loading) {
            Doing::Loading
        } else if let Some(none) = none {
            errors.insert(0, none.message.clone());
            Doing::LoadingFailed
        } else if any(Doing::LoadingFailed) {
            Doing::LoadingFailed
        } else {
            Doing::NotLoaded
        };
        ModelStanding { doing, errors, copies }
    }
}

fn live<'c>(copies: Option<&'c Vec<CopyAt>>, pods: &'c [Pod]) -> impl Iterator<Item = &'c CopyAt> {
    copies.into_iter().flatten().filter(move |copy| pods.iter().any(|pod| pod.id == copy.pod))
}
