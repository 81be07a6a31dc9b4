//! What a model id stands for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ByteSize, ModelId};

/// A model format as a resource names it: `onnx`, `sklearn` with version `1`, ...
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelFormat {
    /// Name as written in the resource.
    pub name: Arc<str>,
    /// Version, where the resource gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Arc<str>>,
}

impl fmt::Display for ModelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}:{version}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Which runtimes may load the model: upstream's "model type" string, as a value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Placement {
    /// The runtime with this name (`rt:<name>`).
    Runtime(Arc<str>),
    /// Any runtime that selects the format by itself (`mt:<format>[:<version>][|pv:<protocol>]`).
    Format {
        /// The protocol that the resource insists on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        protocol: Option<Arc<str>>,
    },
}

/// Flat storage parameters (`bucket`, `type`, dot paths such as `headers.Authorization`), sorted. Shared between the
/// many registrations that have the same ones.
pub type Parameters = Arc<BTreeMap<String, String>>;

/// Where the bytes of a model are: upstream's model path and model key, as a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StorageRef {
    /// The storage key: an entry of the storage configuration. `None` chooses `default_<type>` or `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Arc<str>>,
    /// Parameters that override the entry's.
    #[serde(default)]
    pub parameters: Parameters,
    /// Path of the model in its store, as written. May be empty: everything in the bucket or folder.
    pub path: Arc<str>,
    /// Path of the schema file in the same store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_path: Option<Arc<str>>,
}

/// What a model id stands for. Immutable: a changed resource gets a new id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The id.
    pub id: ModelId,
    /// The format that the resource names.
    pub format: ModelFormat,
    /// Which runtimes may load it.
    pub placement: Placement,
    /// Where its bytes are.
    pub storage: StorageRef,
    /// Bytes in memory as declared by the user (annotation `berth/model-size`); beats every estimate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared_size: Option<ByteSize>,
}
