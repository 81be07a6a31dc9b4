//! What the leader knows about one version: what pods report of it, and what was asked of them.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use berth_plan::background::{self, LoadFacts, PodCopy, Refused};
use berth_plan::runtime::NoRuntime;
use berth_plan::status::{Hosting, VersionFacts};
use berth_registry::{Desired, ObjectKey};
use berth_types::{ContentDigest, CopyReport, CopyState, Failure, Footprint, ModelId, PodId, Registration, UnixMillis};

use crate::Pod;
use crate::asks::{Asked, Warmth};
use crate::keyed::Keyed;

/// A pod that was asked and says nothing at all for this long counts as having refused.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// A copy used within this time counts as used when an update decides how many copies it needs.
const RECENTLY: Duration = Duration::from_secs(10 * 60);

/// A copy as its pod last reported it.
struct CopyAt {
    pod: PodId,
    state: CopyState,
    failure: Option<Arc<Failure>>,
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

    fn loaded_since(&self) -> Option<UnixMillis> {
        match self.state {
            CopyState::Loaded { since, .. } => Some(since),
            CopyState::Loading { .. } | CopyState::Unloading | CopyState::Absent => None,
        }
    }
}

/// One registered version.
pub(crate) struct Model {
    /// The resource that it belongs to, as it was when this version was registered.
    of: Arc<Desired>,
    pub(crate) registration: Arc<Registration>,
    /// Pods that have nothing of it and nothing against it are not listed; `None` when that is all of them, as for most of
    /// many versions.
    #[allow(clippy::box_collection, reason = "a vector in place takes three words of each version, most have none")]
    copies: Option<Box<Vec<CopyAt>>>,
    /// It reached Loaded since it was registered.
    pub(crate) loaded_once: bool,
    pub(crate) asked: Asked,
    pub(crate) refused: Option<Box<Refused>>,
    /// What it took when it was last loaded, or what it is declared to take.
    pub(crate) size: Option<Footprint>,
    /// The first good content of it. Boxed: files that are used in place have none.
    pub(crate) first: Option<Box<ContentDigest>>,
    /// When its last copy went.
    lost: Option<UnixMillis>,
    last_used: Option<UnixMillis>,
    /// Its place among the versions that may be warmed.
    pub(crate) warmth: Option<Warmth>,
}

/// Which live pods may load a version.
pub(crate) struct Hosts<'a> {
    pub(crate) pods: Vec<&'a PodId>,
    /// Set when no runtime fits at all.
    pub(crate) none: Option<NoRuntime>,
}

impl Hosts<'_> {
    fn hosting(&self) -> Hosting {
        match &self.none {
            Some(none) => Hosting::NoRuntime(none.clone()),
            None if self.pods.is_empty() => Hosting::NoPod,
            None => Hosting::Pods,
        }
    }
}

impl Keyed for Model {
    type Key = ModelId;

    fn key(&self) -> &ModelId {
        &self.registration.id
    }
}

impl Model {
    pub(crate) fn new(of: Arc<Desired>, registration: Arc<Registration>, loaded_once: bool) -> Self {
        let size = registration.declared_size.map(Footprint::host);
        Model {
            of,
            registration,
            copies: None,
            loaded_once,
            asked: Asked::No,
            refused: None,
            size,
            first: None,
            lost: None,
            last_used: None,
            warmth: None,
        }
    }

    /// The resource that it belongs to.
    pub(crate) fn of(&self) -> &ObjectKey {
        &self.of.key
    }

    /// Takes in what `pod` says now. True when this answers what the pod was asked.
    pub(crate) fn take(&mut self, pod: &PodId, report: CopyReport, now: UnixMillis) -> bool {
        self.last_used = self.last_used.max(report.last_used);
        let mut copies = self.copies.take().unwrap_or_default();
        let at = copies.iter().position(|copy| copy.pod == *pod);
        let was_there = at.is_some_and(|at| !matches!(copies[at].state, CopyState::Absent | CopyState::Loading { .. }));
        let asked_at = match &self.asked {
            Asked::Pending(asked) if asked.pod == *pod => Some(asked.at),
            Asked::Pending(_) | Asked::Queued(_) | Asked::No => None,
        };
        let mut answers = false;
        match &report.state {
            CopyState::Loaded { footprint, .. } => {
                self.loaded_once = true;
                self.refused = None;
                self.size = Some(footprint.clone());
                answers = asked_at.is_some();
            }
            CopyState::Loading { .. } | CopyState::Unloading => {}
            CopyState::Absent => {
                if let Some(asked_at) = asked_at {
                    answers = true;
                    let failed = report.failure.as_ref().is_some_and(|failure| failure.time >= asked_at);
                    self.refused = if failed { None } else { Some(Box::new(self.refused_again(now))) };
                }
            }
        }
        // What was mended begins anew.
        let was_away_since = at.and_then(|at| copies[at].away_since.filter(|_| !copies[at].mended || report.mended));
        let away = report.failure.as_ref().filter(|failure| background::storage_was_away(failure));
        let away_since = away.map(|failure| was_away_since.unwrap_or(failure.time));
        let keep = report.state != CopyState::Absent || report.failure.is_some();
        let copy =
            CopyAt { pod: pod.clone(), state: report.state, failure: report.failure, away_since, mended: report.mended, last_used: report.last_used };
        match (at, keep) {
            (Some(at), true) => copies[at] = copy,
            (Some(at), false) => drop(copies.swap_remove(at)),
            (None, true) => {
                copies.reserve_exact(1);
                copies.push(copy);
            }
            (None, false) => {}
        }
        let there = copies.iter().any(|copy| !matches!(copy.state, CopyState::Absent));
        self.copies = Some(copies).filter(|copies| !copies.is_empty());
        if was_there && !there {
            self.lost = Some(now);
        }
        answers
    }

    /// The pod that was asked has not said a word: as good as a refusal. True when that is so.
    pub(crate) fn is_unanswered(&self, now: UnixMillis) -> bool {
        self.answer_due().is_some_and(|due| due <= now)
    }

    /// By when the pod that was asked should have said something.
    pub(crate) fn answer_due(&self) -> Option<UnixMillis> {
        match &self.asked {
            Asked::Pending(asked) if !self.copies().any(|copy| copy.pod == asked.pod && copy.held()) => Some(asked.at.after(ANSWER_WITHIN)),
            Asked::Pending(_) | Asked::Queued(_) | Asked::No => None,
        }
    }

    /// One more refusal in a row.
    pub(crate) fn refused_again(&self, now: UnixMillis) -> Refused {
        Refused { at: now, times: self.refused.as_ref().map_or(0, |refused| refused.times).saturating_add(1) }
    }

    fn copies(&self) -> impl Iterator<Item = &CopyAt> {
        self.copies.iter().flat_map(|copies| copies.iter())
    }

    /// Copies on pods that live.
    fn live<'a>(&'a self, pods: &'a [Pod]) -> impl Iterator<Item = &'a CopyAt> {
        self.copies().filter(move |copy| pods.iter().any(|pod| pod.id == copy.pod))
    }

    /// Loaded copies.
    pub(crate) fn loaded(&self, pods: &[Pod]) -> u32 {
        count(self.live(pods).filter(|copy| copy.loaded_since().is_some()))
    }

    /// Loaded copies that were used recently.
    pub(crate) fn used(&self, pods: &[Pod], now: UnixMillis) -> u32 {
        let used = |copy: &CopyAt| copy.last_used.is_some_and(|used| now.since(used) < RECENTLY);
        count(self.live(pods).filter(|copy| copy.loaded_since().is_some() && used(copy)))
    }

    /// When the first of the loaded copies was loaded.
    pub(crate) fn loaded_since(&self, pods: &[Pod]) -> Option<UnixMillis> {
        self.live(pods).filter_map(CopyAt::loaded_since).min()
    }

    /// Nothing of it is loaded, loading or being unloaded, and no failure counts.
    fn at_rest(&self, pods: &[Pod], now: UnixMillis) -> bool {
        self.live(pods)
            .all(|copy| copy.state == CopyState::Absent && copy.failure.as_ref().is_none_or(|failure| background::counts_until(failure) <= now))
    }

    /// What is due for it.
    pub(crate) fn due(&self, pods: &[Pod], hosts: &Hosts<'_>, now: UnixMillis) -> background::Due {
        let copies: Vec<PodCopy<'_>> = self
            .live(pods)
            .map(|copy| PodCopy {
                pod: &copy.pod,
                held: copy.held(),
                leaving: copy.state == CopyState::Unloading,
                failure: copy.failure.as_deref(),
                away_since: copy.away_since,
                mended: copy.mended,
            })
            .collect();
        let facts = LoadFacts {
            model: &self.registration.id,
            loaded_once: self.loaded_once,
            refused: self.refused.as_deref().copied(),
            copies: &copies,
            pods: &hosts.pods,
        };
        background::due(&facts, now)
    }

    /// From when it may be warmed, and its place then; `None` while it is not on standby.
    pub(crate) fn warm_from(&self, pods: &[Pod], hosts: &Hosts<'_>, now: UnixMillis) -> Option<(UnixMillis, Warmth)> {
        let standby = self.loaded_once && !hosts.pods.is_empty() && self.asked == Asked::No && self.at_rest(pods, now);
        let from = background::warm_from(self.lost, self.refused.as_deref().copied()).unwrap_or(now);
        standby.then_some((from, Reverse(self.last_used)))
    }

    /// As the status sees it.
    pub(crate) fn facts(&self, pods: &[Pod], hosts: &Hosts<'_>, now: UnixMillis) -> VersionFacts {
        use berth_plan::background::Purpose::{First, Retry};
        let is_loading = |copy: &CopyAt| matches!(copy.state, CopyState::Loading { .. });
        // Where it is being tried again, the failure before is settled by how that goes.
        let failures = self.live(pods).filter(|copy| !is_loading(copy)).filter_map(|copy| copy.failure.clone());
        let mut failures: Vec<Arc<Failure>> = failures.filter(|failure| background::counts_until(failure) > now).collect();
        failures.sort_by_key(|failure| Reverse(failure.time));
        let loading = self.live(pods).any(is_loading);
        let decided = match &self.asked {
            // A first load that was refused for want of room before is not on its way until the pod says that it is. One that
            // has failed is over, though the pod's answer may come after its report.
            Asked::Pending(asked) => asked.purpose == Retry || (asked.purpose == First && self.refused.is_none() && failures.is_empty()),
            Asked::Queued(queued) => queued.ask.purpose == First && self.refused.is_none() && failures.is_empty(),
            Asked::No => false,
        };
        let tried_at_once = background::PODS_TRIED_AT_ONCE.min(hosts.pods.len().max(1));
        VersionFacts {
            id: self.registration.id.clone(),
            loaded_once: self.loaded_once,
            loaded: self.loaded(pods),
            on_the_way: loading || (decided && !hosts.pods.is_empty()),
            exhausted: failures.len() >= tried_at_once,
            failures,
            hosting: hosts.hosting(),
        }
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
