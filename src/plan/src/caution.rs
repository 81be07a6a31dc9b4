//! What the pods tell each other of models that end runtimes: one killer must not end the runtime of every pod in turn.
//!
//! After the first death one pod tries the model again, alone: the one where it died first. The others hold off meanwhile,
//! for as long as a server may take to come back and load ([`TRIAL`]); if the pod has not come to it by then, any other
//! may, alone on its own server: what takes longer than that to end one may end more than two. What it loads well there it tells no longer, and that is the end of it. At the second death, wherever it is, the
//! model is the one: no pod loads it and no copy serves until the case is over ([`CASE`]), nor where a pod has found that it
//! is by its own deaths.
//!
//! Deaths at which several models were being loaded are held against each of them as long as nothing says more: one more,
//! of that model alone, is a verdict; any number of them alone is none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_types::{Caution, Location, ModelId, PodId, Suspicion, UnixMillis};

/// Deaths count for so long.
pub const CASE: Duration = Duration::from_secs(15 * 60);
/// So long after a death the others leave it to the pod where it happened to try the model again.
pub const TRIAL: Duration = Duration::from_secs(3 * 60);

/// What one pod tells of its models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The pod, as messages name it.
    pub location: Location,
    /// What it suspects, each model once.
    pub suspicions: Arc<[Suspicion]>,
}

/// What is held against one model.
enum Case {
    /// Nothing that counts.
    None,
    /// One pod tries it.
    Trial {
        on: PodId,
        until: UnixMillis,
    },
    Verdict {
        until: UnixMillis,
    },
}

/// What `to` must beware of by what each pod has told, by model.
#[must_use]
pub fn cautions(told: &BTreeMap<PodId, Told>, to: &PodId, now: UnixMillis) -> Vec<Caution> {
    let mut by_model = BTreeMap::<&ModelId, Vec<(&PodId, &Told, &Suspicion)>>::new();
    for (pod, told) in told {
        for suspicion in told.suspicions.iter().filter(|suspicion| counts(suspicion, now)) {
            by_model.entry(&suspicion.model).or_default().push((pod, told, suspicion));
        }
    }
    let caution = |(model, against): (&ModelId, Vec<(&PodId, &Told, &Suspicion)>)| {
        let (until, verdict, message) = match judge(against.iter().map(|(pod, _, suspicion)| (*pod, *suspicion)), now) {
            Case::Verdict { until } => (until, true, format!("the runtime has ended with it: {}", places(&against))),
            Case::Trial { on, until } if on != *to => {
                let place = told.get(&on).map_or("", |told| told.location.as_str());
                (until, false, format!("the runtime has ended with it: {}; it is tried on {place} first", places(&against)))
            }
            Case::Trial { .. } | Case::None => return None,
        };
        let deaths = against.iter().map(|(_, _, suspicion)| deaths(suspicion)).sum();
        Some(Caution { model: model.clone(), deaths, until, verdict, message: message.into() })
    };
    by_model.into_iter().filter_map(caution).collect()
}

/// Whether `pod` may load `model` by what each pod has told.
#[must_use]
pub fn may_load(told: &BTreeMap<PodId, Told>, model: &ModelId, pod: &PodId, now: UnixMillis) -> bool {
    let against = told.iter().flat_map(|(pod, told)| told.suspicions.iter().filter(|suspicion| suspicion.model == *model).map(move |it| (pod, it)));
    match judge(against.filter(|(_, suspicion)| counts(suspicion, now)), now) {
        Case::None => true,
        Case::Trial { on, .. } => on == *pod,
        Case::Verdict { .. } => false,
    }
}

/// What the suspicions of one model, each of which counts, come to.
fn judge<'a>(against: impl Iterator<Item = (&'a PodId, &'a Suspicion)> + Clone, now: UnixMillis) -> Case {
    let found = against.clone().any(|(_, suspicion)| suspicion.failure.is_some());
    let alone: u32 = against.clone().map(|(_, suspicion)| suspicion.deaths).sum();
    let all: u32 = against.clone().map(|(_, suspicion)| deaths(suspicion)).sum();
    // The clock of another pod may be ahead.
    let last = against.clone().map(|(_, suspicion)| suspicion.last).max().unwrap_or_default().min(now);
    if found || (alone > 0 && all > 1) {
        return Case::Verdict { until: last.after(CASE) };
    }
    let until = last.after(TRIAL);
    // Who is first stays first when others follow.
    match against.min_by_key(|(pod, suspicion)| (suspicion.last, *pod)) {
        Some((pod, _)) if now < until => Case::Trial { on: pod.clone(), until },
        _ => Case::None,
    }
}

fn counts(suspicion: &Suspicion, now: UnixMillis) -> bool {
    now < suspicion.last.after(CASE) && (deaths(suspicion) > 0 || suspicion.failure.is_some())
}

fn deaths(suspicion: &Suspicion) -> u32 {
    suspicion.deaths.saturating_add(suspicion.together)
}

/// `once on pod-a, 2 times on pod-b`.
fn places(against: &[(&PodId, &Told, &Suspicion)]) -> String {
    let place = |(_, told, suspicion): &(&PodId, &Told, &Suspicion)| {
        let times = match deaths(suspicion) {
            1 => "once".to_owned(),
            times => format!("{times} times"),
        };
        format!("{times} on {}", told.location)
    };
    against.iter().map(place).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
