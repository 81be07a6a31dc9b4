//! The status of a resource: what users and their scripts read.
//!
//! [`status`] folds what pods report into the few words of the seed documents. It moves one documented step per call:
//! a load that takes a millisecond still shows `Pending`, `Loading`, `Loaded`, and an update still shows `InProgress`,
//! provided that the caller publishes each answer before it asks for the next. The same observation twice gives the same
//! status twice; no time in it changes unless the fact that it belongs to does. Writing it as JSON is [`document`]'s.
//!
//! Bad model, runtime down and storage away are told apart. A version that was loaded once does not become
//! `FailedToLoad` because the storage cannot be reached or the disk is full: it stays `Standby` and available,
//! `lastFailureInfo` and `failedCopies` tell of the failed load, and it is tried again soon. One that never was loaded
//! has shown nothing yet that says it ever can be: its creation ends in `FailedToLoad`, as every first load that fails.

pub mod document;

use std::sync::Arc;

use berth_types::{Failure, Location, ModelId, Reason, UnixMillis};

use crate::background;
use crate::runtime::{NoRuntime, WAITING_FOR_POD};

/// The message when another resource holds the name; who holds it follows.
pub const NAME_TAKEN: &str = "Predictor already exists with the same name from a different source";

/// What a version is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModelState {
    /// Not registered yet.
    #[default]
    Pending,
    /// Loaded nowhere; the next request loads it.
    Standby,
    /// On its way.
    Loading,
    /// Loaded in at least one pod.
    Loaded,
    /// It could not be loaded.
    FailedToLoad,
}

impl ModelState {
    /// Only what was loaded is, or is on standby.
    #[must_use]
    pub const fn was_loaded(self) -> bool {
        match self {
            ModelState::Loaded | ModelState::Standby => true,
            ModelState::Pending | ModelState::Loading | ModelState::FailedToLoad => false,
        }
    }
}

/// How the version that serves relates to the resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transition {
    /// It is what the resource asks for.
    #[default]
    UpToDate,
    /// The one that the resource asks for is loading.
    InProgress,
    /// The one that the resource asks for failed to load.
    BlockedByFailedLoad,
    /// The resource is invalid.
    InvalidSpec,
}

/// `lastFailureInfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureInfo {
    /// Which of the five words.
    pub reason: Reason,
    /// The pod, when it happened in one.
    pub location: Option<Location>,
    /// What happened.
    pub message: String,
    /// The version in question.
    pub model: Option<ModelId>,
    /// When, in whole seconds; `None` for what holds as long as the resource stays as it is.
    pub time: Option<UnixMillis>,
}

/// The status of an InferenceService or a Predictor, both alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The generation of the resource that all of this is about; `None` before the first write.
    pub observed_generation: Option<u64>,
    /// The version that serves.
    pub active: ModelState,
    /// The version that should serve, while it is another one.
    pub target: Option<ModelState>,
    /// How both relate.
    pub transition: Transition,
    /// Requests are answered, perhaps after a load.
    pub available: bool,
    /// Pods on which the active or the target version recently failed to load.
    pub failed_copies: u32,
    /// Loaded copies of both versions.
    pub total_copies: u32,
    /// The newest trouble.
    pub failure: Option<FailureInfo>,
}

impl Status {
    /// True when this, the last word of an earlier run, says that what generation `generation` asks for was loaded: it
    /// is about that generation, and the version in question, the target where there was one, had come that far.
    #[must_use]
    pub fn shows_loaded(&self, generation: u64) -> bool {
        self.observed_generation == Some(generation) && self.target.unwrap_or(self.active).was_loaded()
    }
}

/// Whether there is anything that could load a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosting {
    /// A pod of a fitting runtime lives.
    Pods,
    /// A runtime fits, none of its pods lives.
    NoPod,
    /// No runtime fits.
    NoRuntime(NoRuntime),
}

/// One version as its pods report it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionFacts {
    /// Which.
    pub id: ModelId,
    /// It reached Loaded since it was registered.
    pub loaded_once: bool,
    /// Loaded copies.
    pub loaded: u32,
    /// A copy is loading, or its first load is queued.
    pub on_the_way: bool,
    /// The failures that count, newest first, at most one per pod.
    pub failures: Vec<Arc<Failure>>,
    /// Every pod that may be tried at once has failed.
    pub exhausted: bool,
    /// What could load it.
    pub hosting: Hosting,
}

/// The present spec of the resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpecState {
    /// It can be served.
    Valid,
    /// It cannot, for this reason.
    Invalid(String),
    /// Another resource holds the name: this one.
    NameTaken(String),
}

/// All that a status is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The generation of the resource whose spec this is.
    pub generation: u64,
    /// The present spec.
    pub spec: SpecState,
    /// The version that serves; `None` while none was registered.
    pub active: Option<VersionFacts>,
    /// The version that should serve, when it is another one.
    pub target: Option<VersionFacts>,
    /// Every pod has reported since this process started. Until then a status moves on positive evidence only.
    pub settled: bool,
}

/// The answer of [`status`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// To be published.
    pub status: Status,
    /// It is an intermediate one: once it is published, ask again with it as `before`.
    pub more: bool,
}

/// The next status of a resource.
#[must_use]
pub fn status(before: &Status, observed: &Observed, now: UnixMillis) -> Moved {
    let goal = folded(before, observed, now);
    if !observed.settled && !is_positive(&goal, observed) {
        return Moved { status: before.clone(), more: false };
    }
    let mut seen = observed.clone();
    // A blocked status names the target that failed; another one, which is as hopeless, is still shown as on its way first.
    let told_of = before.failure.as_ref().and_then(|info| info.model.as_ref());
    let is_another = |target: &VersionFacts| told_of.is_some_and(|told| *told != target.id) && before.target == Some(ModelState::FailedToLoad);
    let target_appears = goal.target.is_some() && (before.target.is_none() || observed.target.as_ref().is_some_and(is_another));
    // What was the target becomes the active version as it is; every other way to Loaded leads through Loading.
    let was_target = matches!(before.target, Some(ModelState::Loading | ModelState::Loaded)) && goal.target.is_none();
    let skips_loading = match goal.active {
        ModelState::Loaded => !matches!(before.active, ModelState::Loading | ModelState::Loaded) && !was_target,
        ModelState::FailedToLoad => {
            matches!(before.active, ModelState::Pending | ModelState::Standby) && has_failed_in_a_pod(observed) && !was_target
        }
        ModelState::Pending | ModelState::Standby | ModelState::Loading => false,
    };
    if let Some(target) = seen.target.as_mut().filter(|_| target_appears) {
        target.pretend_loading();
    }
    if let Some(active) = seen.active.as_mut().filter(|_| skips_loading) {
        active.pretend_loading();
    }
    if seen == *observed {
        return Moved { status: goal, more: false };
    }
    let step = folded(before, &seen, now);
    let more = step != goal;
    Moved { status: step, more }
}

fn has_failed_in_a_pod(observed: &Observed) -> bool {
    observed.active.as_ref().is_some_and(|active| !active.failures.is_empty())
}

/// Evidence that does not depend on pods that have not reported yet: copies that serve, or a resource that is wrong.
fn is_positive(goal: &Status, observed: &Observed) -> bool {
    let trouble = observed.spec != SpecState::Valid && observed.active.is_none();
    trouble || (goal.active == ModelState::Loaded && matches!(goal.target, None | Some(ModelState::Loaded)))
}

impl VersionFacts {
    fn pretend_loading(&mut self) {
        self.loaded = 0;
        self.on_the_way = true;
        self.failures.clear();
    }

    /// It cannot be loaded as things stand, and no wait for the storage will change that.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        let spared = self.loaded_once && self.failures.iter().all(|failure| background::storage_was_away(failure));
        self.exhausted && !spared
    }

    /// What it is doing, and what is wrong with it.
    fn decoded(&self) -> (ModelState, Option<Wrong<'_>>) {
        let in_pod = self.failures.first().map(|failure| Wrong::InPod(failure));
        if self.loaded > 0 {
            return (ModelState::Loaded, None);
        }
        if self.on_the_way {
            return (ModelState::Loading, in_pod);
        }
        match (&self.hosting, &in_pod) {
            (Hosting::NoRuntime(none), _) => (ModelState::FailedToLoad, Some(Wrong::NoRuntime(none))),
            (Hosting::NoPod, _) => (ModelState::Loading, Some(Wrong::NoPod)),
            // The runtime is down, not the model: it goes on when the runtime is back.
            (Hosting::Pods, Some(Wrong::InPod(failure))) if failure.reason == Reason::RuntimeUnhealthy => (ModelState::Loading, in_pod),
            (Hosting::Pods, Some(_)) if self.is_given_up() => (ModelState::FailedToLoad, in_pod),
            (Hosting::Pods, _) => (ModelState::Standby, in_pod),
        }
    }
}

/// What keeps a version from being loaded.
enum Wrong<'a> {
    InPod(&'a Failure),
    NoPod,
    NoRuntime(&'a NoRuntime),
}

impl Wrong<'_> {
    fn reason(&self) -> Reason {
        match self {
            Wrong::InPod(failure) => failure.reason,
            Wrong::NoPod => Reason::RuntimeUnhealthy,
            Wrong::NoRuntime(none) => none.reason,
        }
    }

    fn message(&self) -> &str {
        match self {
            Wrong::InPod(failure) => &failure.message,
            Wrong::NoPod => WAITING_FOR_POD,
            Wrong::NoRuntime(none) => &none.message,
        }
    }
}

fn whole_seconds(time: UnixMillis) -> UnixMillis {
    UnixMillis(time.0 / 1000 * 1000)
}

/// The status that the facts amount to, whatever steps lie between.
fn folded(before: &Status, observed: &Observed, now: UnixMillis) -> Status {
    let active = observed.active.as_ref().map(|facts| (facts, facts.decoded()));
    let target = observed.target.as_ref().map(|facts| (facts, facts.decoded()));
    let active_state = active.as_ref().map_or(ModelState::Pending, |(_, (state, _))| *state);
    let target_state = target.as_ref().map(|(_, (state, _))| *state);
    let transition = match (&observed.spec, &target) {
        (SpecState::Invalid(_), _) => Transition::InvalidSpec,
        (SpecState::NameTaken(_), _) | (SpecState::Valid, None) => Transition::UpToDate,
        (SpecState::Valid, Some((_, (ModelState::FailedToLoad, _)))) => Transition::BlockedByFailedLoad,
        (SpecState::Valid, Some((_, (_, Some(wrong))))) if wrong.reason() == Reason::RuntimeUnhealthy => Transition::BlockedByFailedLoad,
        (SpecState::Valid, Some(_)) => Transition::InProgress,
    };
    let (mut failed_copies, mut total_copies) = (0, 0);
    for (facts, (_, wrong)) in active.iter().chain(&target) {
        // What a version without a runtime did in the past says nothing about now.
        if wrong.as_ref().is_none_or(|wrong| wrong.reason() == Reason::ModelLoadFailed) {
            let failures = facts.failures.iter().filter(|failure| failure.reason == Reason::ModelLoadFailed);
            failed_copies += u32::try_from(failures.count()).unwrap_or(u32::MAX);
            total_copies += facts.loaded;
        }
    }
    let failure = match &observed.spec {
        SpecState::Invalid(message) => {
            let model = observed.active.as_ref().map(|facts| facts.id.clone());
            Some(FailureInfo { reason: Reason::InvalidPredictorSpec, location: None, message: message.clone(), model, time: None })
        }
        SpecState::NameTaken(by) => {
            let message = format!("{NAME_TAKEN}: {by}");
            Some(FailureInfo { reason: Reason::InvalidPredictorSpec, location: None, message, model: None, time: None })
        }
        SpecState::Valid => {
            target.as_ref().or(active.as_ref()).and_then(|(facts, (state, wrong))| last_failure(before, facts, *state, wrong.as_ref(), now))
        }
    };
    let waits_for_runtime = |wrong: &Option<Wrong<'_>>| wrong.as_ref().is_some_and(|wrong| wrong.reason() == Reason::RuntimeUnhealthy);
    let runtime_away = active.as_ref().is_some_and(|(_, (_, wrong))| waits_for_runtime(wrong))
        || (target.is_none() && failure.as_ref().is_some_and(|info| info.reason == Reason::RuntimeUnhealthy));
    let available = !matches!(active_state, ModelState::Pending | ModelState::FailedToLoad) && !runtime_away;
    Status {
        observed_generation: Some(observed.generation),
        active: active_state,
        target: target_state,
        transition,
        available,
        failed_copies,
        total_copies,
        failure,
    }
}

fn last_failure(before: &Status, facts: &VersionFacts, state: ModelState, wrong: Option<&Wrong<'_>>, now: UnixMillis) -> Option<FailureInfo> {
    let kept = before.failure.as_ref().filter(|info| info.model.as_ref() == Some(&facts.id));
    let Some(wrong) = wrong else {
        // While it loads for the first time in a runtime that just came up, the wait is still what users ask about.
        return kept.filter(|info| state == ModelState::Loading && info.reason == Reason::RuntimeUnhealthy).cloned();
    };
    let (reason, message) = (wrong.reason(), wrong.message());
    let (location, time) = match wrong {
        Wrong::InPod(failure) => (Some(failure.location.clone()), whole_seconds(failure.time)),
        Wrong::NoPod | Wrong::NoRuntime(_) => {
            let since = kept.filter(|info| info.reason == reason && info.message == message).and_then(|info| info.time);
            (None, since.unwrap_or_else(|| whole_seconds(now)))
        }
    };
    Some(FailureInfo { reason, location, message: message.to_owned(), model: Some(facts.id.clone()), time: Some(time) })
}

#[cfg(test)]
mod tests;
