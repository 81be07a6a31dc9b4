//! Which pods serve other bytes under a model id than the first ones that were good: for operators to read. Whether it
//! is so decides `berth_plan::drift`.

use std::collections::BTreeMap;
use std::fmt;

use berth_types::{Content, ContentDigest, ModelId, PodId, UnixMillis};

/// A pod serves other bytes than the first good ones of their model id. Prints as one line for operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Where.
    pub pod: PodId,
    /// What was good first, there or elsewhere.
    pub first: ContentDigest,
    /// What the pod has loaded instead.
    pub seen: Content,
    /// When it was noticed.
    pub since: UnixMillis,
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Drift { pod, first, seen, .. } = self;
        write!(
            f,
            "pod {pod} serves {seen}, the first good content was {first}: the bytes behind the path have changed, \
             give each version a path of its own, or make the resource anew to have all pods take the new bytes"
        )
    }
}

/// All drifts that are known, by model: the newest of each pod, until the pod serves the first good content again, is
/// gone, or no name refers to the model any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drifts(BTreeMap<ModelId, Vec<Drift>>);

impl Drifts {
    /// Those of one model, one per pod.
    #[must_use]
    pub fn of(&self, model: &ModelId) -> &[Drift] {
        self.0.get(model).map_or(&[], Vec::as_slice)
    }

    /// Every model that drifts.
    pub fn iter(&self) -> impl Iterator<Item = (&ModelId, &[Drift])> {
        self.0.iter().map(|(model, drifts)| (model, drifts.as_slice()))
    }

    pub(crate) fn note(&mut self, model: &ModelId, drift: Drift) {
        let drifts = self.0.entry(model.clone()).or_default();
        drifts.retain(|other| other.pod != drift.pod);
        drifts.push(drift);
    }

    /// `pod` serves the first good content of `model`.
    pub(crate) fn settle(&mut self, model: &ModelId, pod: &PodId) {
        if let Some(drifts) = self.0.get_mut(model) {
            drifts.retain(|drift| drift.pod != *pod);
            if drifts.is_empty() {
                self.0.remove(model);
            }
        }
    }

    /// True when there was something to forget.
    pub(crate) fn forget(&mut self, model: &ModelId) -> bool {
        self.0.remove(model).is_some()
    }

    /// Forgets what pods had that are gone. True when there was something to forget.
    pub(crate) fn keep_pods(&mut self, lives: impl Fn(&PodId) -> bool) -> bool {
        let before = self.0.values().map(Vec::len).sum::<usize>();
        self.0.retain(|_, drifts| {
            drifts.retain(|drift| lives(&drift.pod));
            !drifts.is_empty()
        });
        before != self.0.values().map(Vec::len).sum::<usize>()
    }
}
