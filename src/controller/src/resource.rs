//! What the leader remembers of one InferenceService or Predictor.

use std::sync::Arc;

use crate::keyed::Keyed;
use berth_plan::alias::{Next, Versions};
use berth_plan::registration::registration;
use berth_plan::resource::{self, InvalidSpec};
use berth_plan::status::Status;
use berth_plan::status::document;
use berth_registry::{Alias, Kind, Object, ObjectKey};
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
        /// The target that it tells users about.
        told_target: Option<Box<ModelId>>,
    },
    /// The first good contents.
    Contents,
}

/// What a view says about the name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) versions: Versions,
    pub(crate) failure: Option<Arc<Failure>>,
}

/// One resource that is ours. What few of many have at a time is boxed.
pub(crate) struct Resource {
    pub(crate) owner: Owner,
    /// As last read.
    pub(crate) object: Arc<Object>,
    /// What its spec asks for.
    pub(crate) wanted: Result<Arc<Registration>, Box<InvalidSpec>>,
    /// What serves and what should.
    pub(crate) versions: Versions,
    /// The alias in the store.
    pub(crate) kept: Option<Box<Alias>>,
    /// The target that a published status told users about.
    pub(crate) told_target: Option<Box<ModelId>>,
    /// A status of an earlier run says that the active version had been loaded.
    pub(crate) was_loaded: bool,
    /// The active version is one of an earlier run that was not known to have failed. That nothing is loaded after a
    /// restart is no reason to switch: whichever target there is must load before it takes over.
    pub(crate) of_earlier_run: bool,
    /// A target that failed once: it must load before it takes over from a version that can be loaded, also while it is
    /// being tried again and after its failure no longer counts.
    pub(crate) failed_target: Option<Box<ModelId>>,
    /// The first good contents of its versions are not what the store keeps.
    pub(crate) contents_due: bool,
    /// What the view says; `None` while the name is not ours.
    pub(crate) shown: Option<Shown>,
    pub(crate) writing: Option<Box<Writing>>,
    /// Its entry among the timers.
    pub(crate) look_again: Option<UnixMillis>,
}

impl Keyed for Resource {
    type Key = ObjectKey;

    fn key(&self) -> &ObjectKey {
        &self.object.key
    }
}

impl Resource {
    /// What an object asks for.
    pub(crate) fn wanted(owner: Owner, object: &Object) -> Result<Arc<Registration>, InvalidSpec> {
        let spec = resource::parse(owner, &object.annotations.members(), &object.spec.value())?;
        Ok(Arc::new(registration(&object.key.name, owner, &spec)))
    }

    /// The status as last published. Read anew each time: it is looked at when something changes, and kept for long.
    pub(crate) fn published(owner: Owner, object: &Object) -> Status {
        object.status.as_ref().map_or_else(Status::default, |status| document::from_json(owner, &status.value()))
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
