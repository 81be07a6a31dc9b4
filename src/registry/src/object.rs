//! Desired state as it is kept.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use berth_types::{ContentDigest, ModelId, Name, Namespace, Registration, UnixMillis};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::naming::shared;
use crate::{Json, Uid};

/// The kinds of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `serving.kserve.io/v1beta1`.
    InferenceService,
    /// `serving.kserve.io/v1alpha1`.
    Predictor,
    /// `serving.kserve.io/v1alpha1`.
    ServingRuntime,
    /// `serving.kserve.io/v1alpha1`, cluster-wide.
    ClusterServingRuntime,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 4] = [Kind::InferenceService, Kind::Predictor, Kind::ServingRuntime, Kind::ClusterServingRuntime];

    /// The API group of all kinds.
    pub const GROUP: &'static str = "serving.kserve.io";

    /// `apiVersion` as a manifest writes it.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        match self {
            Kind::InferenceService => "serving.kserve.io/v1beta1",
            Kind::Predictor | Kind::ServingRuntime | Kind::ClusterServingRuntime => "serving.kserve.io/v1alpha1",
        }
    }

    /// The version under `serving.kserve.io`.
    #[must_use]
    pub const fn version(self) -> &'static str {
        match self {
            Kind::InferenceService => "v1beta1",
            Kind::Predictor | Kind::ServingRuntime | Kind::ClusterServingRuntime => "v1alpha1",
        }
    }

    /// The lower-case plural of Kubernetes paths.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        match self {
            Kind::InferenceService => "inferenceservices",
            Kind::Predictor => "predictors",
            Kind::ServingRuntime => "servingruntimes",
            Kind::ClusterServingRuntime => "clusterservingruntimes",
        }
    }

    /// The status that an object of this kind has from the start, because the schema of its kind says so.
    pub(crate) fn first_status(self) -> Option<Value> {
        let predictor = || {
            json!({
                "transitionStatus": "UpToDate", "activeModelState": "Pending", "targetModelState": "",
                "available": false, "failedCopies": 0, "totalCopies": 0
            })
        };
        (self == Kind::Predictor).then(predictor)
    }

    /// The kind as a manifest writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::InferenceService => "InferenceService",
            Kind::Predictor => "Predictor",
            Kind::ServingRuntime => "ServingRuntime",
            Kind::ClusterServingRuntime => "ClusterServingRuntime",
        }
    }

    /// False for cluster-wide kinds.
    #[must_use]
    pub const fn namespaced(self) -> bool {
        !matches!(self, Kind::ClusterServingRuntime)
    }
}

/// Identifies a resource. Cluster-wide kinds have no namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; `None` for cluster-wide kinds.
    pub namespace: Option<Namespace>,
    /// Name.
    pub name: Name,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind.as_str(), self.name),
            None => write!(f, "{} {}", self.kind.as_str(), self.name),
        }
    }
}

/// Who a resource belongs to. Objects of a folder refuse writes through the API with a conflict that names the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// This file of the watched folder.
    Folder(Arc<Path>),
    /// The resource API.
    Api,
    /// Comes with the program.
    Bundled,
}

/// What somebody wants of a resource: all of it but what is the store's business. Shared between the store, whoever feeds
/// it and the recent events.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// Which.
    pub key: ObjectKey,
    /// Who it belongs to.
    pub origin: Origin,
    /// `metadata.labels` as written: an object of texts.
    pub labels: Json,
    /// `metadata.annotations` as written: an object of texts.
    pub annotations: Json,
    /// `spec` as written, unknown fields included.
    pub spec: Json,
}

impl Desired {
    /// A resource without labels and annotations.
    #[must_use]
    pub fn new(key: ObjectKey, origin: Origin, spec: &Value) -> Self {
        Desired { key, origin, labels: Json::EMPTY, annotations: Json::EMPTY, spec: spec.into() }
    }
}

impl Origin {
    /// This file of the watched folder.
    #[must_use]
    pub fn file(path: impl AsRef<Path>) -> Self {
        Origin::Folder(path.as_ref().into())
    }
}

/// One resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// What is wanted of it. Its fields can be read as if they were the object's own.
    pub desired: Arc<Desired>,
    /// Its identity.
    pub uid: Uid,
    /// Grows with every change of this object, its status included; unique in the store.
    pub resource_version: u64,
    /// Grows with every change of `spec`.
    pub generation: u64,
    /// When it was made.
    pub created: UnixMillis,
    /// `status` as last written by us; before that `None`, or what the schema of the kind gives it.
    pub status: Option<Json>,
}

impl Deref for Object {
    type Target = Desired;

    fn deref(&self) -> &Desired {
        &self.desired
    }
}

impl Object {
    /// A resource that no store has taken.
    #[must_use]
    pub fn unsaved(desired: Desired) -> Self {
        Object { desired: Arc::new(desired), uid: Uid::default(), resource_version: 0, generation: 0, created: UnixMillis::default(), status: None }
    }

    /// True when applying `wanted` would change nothing.
    #[must_use]
    pub fn is_as_desired(&self, wanted: &Arc<Desired>) -> bool {
        Arc::ptr_eq(&self.desired, wanted) || self.desired == *wanted
    }
}

/// An [`Object`] as it is written to disk.
#[derive(Serialize, Deserialize)]
struct Row<'o> {
    key: Cow<'o, ObjectKey>,
    uid: Uid,
    resource_version: u64,
    generation: u64,
    created: UnixMillis,
    origin: Cow<'o, Origin>,
    labels: Json,
    annotations: Json,
    spec: Json,
    status: Option<Json>,
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Object { desired, uid, resource_version, generation, created, status } = self.clone();
        let Desired { key, origin, labels, annotations, spec } = &*desired;
        let (key, origin) = (Cow::Borrowed(key), Cow::Borrowed(origin));
        let (labels, annotations, spec) = (labels.clone(), annotations.clone(), spec.clone());
        Row { key, uid, resource_version, generation, created, origin, labels, annotations, spec, status }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Row { key, uid, resource_version, generation, created, origin, labels, annotations, spec, status } = Row::deserialize(deserializer)?;
        let ObjectKey { kind, namespace, name } = key.into_owned();
        let key = ObjectKey { kind, namespace: namespace.map(shared), name };
        let desired = Arc::new(Desired { key, origin: origin.into_owned(), labels, annotations, spec });
        Ok(Object { desired, uid, resource_version, generation, created, status })
    }
}

/// Which version of a name serves and which should: desired state that the resource alone cannot tell, kept until both
/// are the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The version that serves, in full: the resource holds only the newer spec.
    pub active: Arc<Registration>,
    /// The version that should serve; `None` when the present spec is invalid or the same as active.
    pub target: Option<Arc<Registration>>,
}

/// The first good content of versions of one resource: what later copies of them are held against. A version that was
/// never loaded from bytes that somebody made a digest of is not in it.
pub type Contents = BTreeMap<ModelId, ContentDigest>;
