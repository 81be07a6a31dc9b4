//! What the leader remembers of one InferenceService or Predictor.

use std::sync::Arc;

use berth_plan::alias::{Next, Versions};
use berth_plan::registration::registration;
use berth_plan::resource::{self, InvalidSpec};
use berth_plan::status::Status;
use berth_registry::{Alias, Kind, Object};
use berth_types::{Failure, ModelId, Owner, Registration, UnixMillis};

/// A store write under way, and what becomes true when it is done.
pub(crate) enum Writing {
    /// The alias; the versions move when it is kept.
    Alias {
        /// What is being kept.
        alias: Option<Alias>,
        /// What follows.
        next: Next,
    },
    /// The status.
    Status {
        /// What is being published.
        status: Status,
        /// The target that it is about.
        target: Option<ModelId>,
    },
}

/// What a view says about the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) versions: Versions,
    pub(crate) failure: Option<Arc<Failure>>,
}

/// One resource that is ours.
pub(crate) struct Resource {
    pub(crate) owner: Owner,
    /// As last read.
    pub(crate) object: Arc<Object>,
    /// What its spec asks for.
    pub(crate) wanted: Result<Arc<Registration>, InvalidSpec>,
    /// What serves and what should.
    pub(crate) versions: Versions,
    /// The alias in the store.
    pub(crate) kept: Option<Alias>,
    /// The status as last published.
    pub(crate) published: Status,
    /// The target that a published status told users about.
    pub(crate) told_target: Option<ModelId>,
    /// A status of an earlier run says that the active version had been loaded.
    pub(crate) was_loaded: bool,
    /// The target of an earlier run that had not taken over from an active version that worked. That nothing is loaded
    /// after a restart is no reason to switch to it: it must load first.
    pub(crate) unproven: Option<ModelId>,
    /// What the view says; `None` while the name is not ours.
    pub(crate) shown: Option<Shown>,
    pub(crate) writing: Option<Writing>,
    /// After the store failed: no write before this.
    pub(crate) paused_until: Option<UnixMillis>,
    /// Its entry among the timers.
    pub(crate) look_again: Option<UnixMillis>,
}

impl Resource {
    /// What an object asks for.
    pub(crate) fn wanted(owner: Owner, object: &Object) -> Result<Arc<Registration>, InvalidSpec> {
        let spec = resource::parse(owner, &object.annotations, &object.spec)?;
        Ok(Arc::new(registration(&object.key.name, owner, &spec)))
    }

    /// The alias that must be in the store when these are the versions.
    pub(crate) fn alias_for(&self, versions: &Versions) -> Option<Alias> {
        let active = versions.active.clone()?;
        (versions.target.is_some() || self.wanted.is_err()).then(|| Alias { active, target: versions.target.clone() })
    }
}

/// The kinds that ask for a model.
pub(crate) fn owner(kind: Kind) -> Option<Owner> {
    match kind {
        Kind::InferenceService => Some(Owner::Isvc),
        Kind::Predictor => Some(Owner::Ksp),
        Kind::ServingRuntime | Kind::ClusterServingRuntime => None,
    }
}
