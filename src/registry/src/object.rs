//! Desired state as it is kept.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use berth_types::{Name, Namespace, Registration, UnixMillis};
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    Folder(PathBuf),
    /// The resource API.
    Api,
    /// Comes with the program.
    Bundled,
}

/// One resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Which.
    pub key: ObjectKey,
    /// Unique over all time; a resource deleted and made again has another one.
    pub uid: String,
    /// Grows with every change of this object, its status included; unique in the store.
    pub resource_version: u64,
    /// Grows with every change of `spec`.
    pub generation: u64,
    /// When it was made.
    pub created: UnixMillis,
    /// Who it belongs to.
    pub origin: Origin,
    /// `metadata.labels` as written.
    pub labels: serde_json::Map<String, Value>,
    /// `metadata.annotations` as written.
    pub annotations: serde_json::Map<String, Value>,
    /// `spec` as written, unknown fields included.
    pub spec: Arc<Value>,
    /// `status` as last written by us; `None` before the first one.
    pub status: Option<Arc<Value>>,
}

impl Object {
    /// The desired part of a resource, as [`Store::apply`](crate::Store::apply) wants it: no labels, no annotations, and
    /// what is the store's business left empty.
    #[must_use]
    pub fn desired(key: ObjectKey, origin: Origin, spec: Value) -> Self {
        Object {
            key,
            uid: String::new(),
            resource_version: 0,
            generation: 0,
            created: UnixMillis::default(),
            origin,
            labels: serde_json::Map::new(),
            annotations: serde_json::Map::new(),
            spec: Arc::new(spec),
            status: None,
        }
    }

    /// True when applying `wanted` would change nothing.
    #[must_use]
    pub fn is_as_desired(&self, wanted: &Object) -> bool {
        let Object { key, origin, labels, annotations, spec, .. } = wanted;
        (&self.key, &self.origin, &self.labels, &self.annotations, &self.spec) == (key, origin, labels, annotations, spec)
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
