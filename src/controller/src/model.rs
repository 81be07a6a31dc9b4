//! What the leader knows about one version beside what pods hold of it: what was asked of them, and what came of it.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use berth_plan::background::{self, LoadFacts, Refused};
use berth_plan::runtime::NoRuntime;
use berth_plan::status::{Hosting, VersionFacts};
use berth_registry::{Desired, ObjectKey};
use berth_types::{ContentDigest, CopyReport, CopyState, Footprint, ModelId, PodId, Registration, UnixMillis};

use crate::Pod;
use crate::asks::{Asked, Warmth};
use crate::copies::Copies;
use crate::keyed::Keyed;

/// A pod that was asked and says nothing at all for this long counts as having refused.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// One registered version.
pub(crate) struct Model {
    /// The resource that it belongs to, as it was when this version was registered.
    of: Arc<Desired>,
    pub(crate) registration: Arc<Registration>,
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
    /// How many of them may be asked now: the others are to hold off.
    pub(crate) open: usize,
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
        Model { of, registration, loaded_once, asked: Asked::No, refused: None, size, first: None, lost: None, last_used: None, warmth: None }
    }

    /// The resource that it belongs to.
    pub(crate) fn of(&self) -> &ObjectKey {
        &self.of.key
    }

    /// Takes in what `pod` says now. `went`: its last copy has gone. True when this answers what the pod was asked.
    pub(crate) fn take(&mut self, pod: &PodId, report: CopyReport, went: bool, now: UnixMillis) -> bool {
        self.last_used = self.last_used.max(report.last_used);
        if went {
            self.lost = Some(now);
        }
        let asked_at = match &self.asked {
            Asked::Pending(asked) if asked.pod == *pod => Some(asked.at),
            Asked::Pending(_) | Asked::Queued(_) | Asked::No => None,
        };
        match report.state {
            CopyState::Loaded { footprint, .. } => {
                self.loaded_once = true;
                self.refused = None;
                self.size = Some(footprint);
                asked_at.is_some()
            }
            CopyState::Loading { .. } | CopyState::Unloading => false,
            CopyState::Absent => {
                if let Some(asked_at) = asked_at {
                    let failed = report.failure.as_ref().is_some_and(|failure| failure.time >= asked_at);
                    self.refused = if failed { None } else { Some(Box::new(self.refused_again(now))) };
                }
                asked_at.is_some()
            }
        }
    }

    /// The pod that was asked has not said a word: as good as a refusal. True when that is so.
    pub(crate) fn is_unanswered(&self, copies: &Copies, now: UnixMillis) -> bool {
        self.answer_due(copies).is_some_and(|due| due <= now)
    }

    /// By when the pod that was asked should have said something.
    pub(crate) fn answer_due(&self, copies: &Copies) -> Option<UnixMillis> {
        match &self.asked {
            Asked::Pending(asked) if !copies.has(&self.registration.id, &asked.pod) => Some(asked.at.after(ANSWER_WITHIN)),
            Asked::Pending(_) | Asked::Queued(_) | Asked::No => None,
        }
    }

    /// One more refusal in a row.
    pub(crate) fn refused_again(&self, now: UnixMillis) -> Refused {
        Refused { at: now, times: self.refused.as_ref().map_or(0, |refused| refused.times).saturating_add(1) }
    }

    /// Nothing of it is loaded, loading or being unloaded, and no failure counts.
    fn at_rest(&self, copies: &Copies, pods: &[Pod], now: UnixMillis) -> bool {
        copies.look(&self.registration.id, pods, |live| live.iter().all(|copy| copy.state == CopyState::Absent && copy.failing(now).is_none()))
    }

    /// What is due for it.
    pub(crate) fn due(&self, copies: &Copies, pods: &[Pod], hosts: &Hosts<'_>, now: UnixMillis) -> background::Due {
        copies.of(&self.registration.id, pods, |copies| {
            let facts = LoadFacts {
                model: &self.registration.id,
                loaded_once: self.loaded_once,
                refused: self.refused.as_deref().copied(),
                copies,
                pods: &hosts.pods,
            };
            background::due(&facts, now)
        })
    }

    /// From when it may be warmed, and its place then; `None` while it is not on standby.
    pub(crate) fn warm_from(&self, copies: &Copies, pods: &[Pod], hosts: &Hosts<'_>, now: UnixMillis) -> Option<(UnixMillis, Warmth)> {
        // What was unloaded because nobody used it waits for somebody who does.
        let forgotten = self.registration.keep.idle_for().is_some_and(|ttl| self.last_used.is_none_or(|used| now.since(used) >= ttl));
        let standby = self.loaded_once && !forgotten && !hosts.pods.is_empty() && self.asked == Asked::No && self.at_rest(copies, pods, now);
        let from = background::warm_from(self.lost, self.refused.as_deref().copied()).unwrap_or(now);
        standby.then_some((from, Reverse(self.last_used)))
    }

    /// As the status sees it.
    pub(crate) fn facts(&self, copies: &Copies, pods: &[Pod], hosts: &Hosts<'_>, now: UnixMillis) -> VersionFacts {
        use berth_plan::background::Purpose::{First, Retry};
        let (mut loaded, mut loading, mut failures) = (0, false, Vec::new());
        copies.look(&self.registration.id, pods, |live| {
            for copy in live {
                match copy.state {
                    // It is being tried again: the failure before is settled by how that goes.
                    CopyState::Loading { .. } => loading = true,
                    CopyState::Loaded { .. } | CopyState::Unloading | CopyState::Absent => failures.extend(copy.failing(now).cloned()),
                }
                loaded += u32::from(matches!(copy.state, CopyState::Loaded { .. }));
            }
        });
        failures.sort_by_key(|failure| Reverse(failure.time));
        let decided = match &self.asked {
            // A first load that was refused for want of room before is not on its way until the pod says that it is. One that
            // has failed is over, though the pod's answer may come after its report.
            Asked::Pending(asked) => asked.purpose == Retry || (asked.purpose == First && self.refused.is_none() && failures.is_empty()),
            Asked::Queued(queued) => queued.ask.purpose == First && self.refused.is_none() && failures.is_empty(),
            Asked::No => false,
        };
        let tried_at_once = background::PODS_TRIED_AT_ONCE.min(hosts.open.max(1));
        VersionFacts {
            id: self.registration.id.clone(),
            loaded_once: self.loaded_once,
            loaded,
            on_the_way: loading || (decided && !hosts.pods.is_empty()),
            exhausted: failures.len() >= tried_at_once,
            failures,
            hosting: hosts.hosting(),
        }
    }
}
