//! What a model id stands for.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

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

/// How a model is kept in memory, as its user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Keep {
    /// Never evicted (annotation `berth/pin`).
    #[serde(default)]
    pub pinned: bool,
    /// So many copies are never evicted (annotation `berth/min-copies`).
    #[serde(default)]
    pub min_copies: u32,
    /// Unloaded when it was not used for so many seconds, and then not loaded until it is (annotation `berth/idle-ttl`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ttl: Option<NonZeroU32>,
}

impl Keep {
    /// Whether the one copy of a pod may go to make room.
    #[must_use]
    pub fn is_fixed(self) -> bool {
        self.pinned || self.min_copies > 0
    }

    /// How long it stays without being used.
    #[must_use]
    pub fn idle_for(self) -> Option<Duration> {
        self.idle_ttl.map(|seconds| Duration::from_secs(seconds.get().into()))
    }

    fn is_usual(&self) -> bool {
        *self == Keep::default()
    }
}

/// What many models have in common: ten thousand of them have a handful of these between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    /// The format that the resource names.
    pub format: ModelFormat,
    /// Which runtimes may load it.
    pub placement: Placement,
    /// The storage key: an entry of the storage configuration. `None` chooses `default_<type>` or `default`.
    pub key: Option<Arc<str>>,
    /// Parameters that override the entry's.
    pub parameters: Parameters,
    /// How they are kept in memory.
    pub keep: Keep,
}

/// What a model id stands for. Immutable: a changed resource gets a new id. The fields of its [`Class`] can be read as if
/// they were its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Registration {
    /// The id.
    pub id: ModelId,
    /// What it has in common with others, shared with them where somebody sees to that.
    pub class: Arc<Class>,
    /// Path of the model in its store, as written. May be empty: everything in the bucket or folder.
    pub path: Arc<str>,
    /// Path of the schema file in the same store.
    pub schema_path: Option<Arc<str>>,
    /// Bytes in memory as declared by the user (annotation `berth/model-size`); beats every estimate.
    pub declared_size: Option<ByteSize>,
}

impl Deref for Registration {
    type Target = Class;

    fn deref(&self) -> &Class {
        &self.class
    }
}

impl Registration {
    /// A registration of its own class.
    #[must_use]
    pub fn new(id: ModelId, format: ModelFormat, placement: Placement, storage: StorageRef, declared_size: Option<ByteSize>) -> Self {
        let StorageRef { key, parameters, path, schema_path } = storage;
        Registration { id, class: Arc::new(Class { format, placement, key, parameters, keep: Keep::default() }), path, schema_path, declared_size }
    }

    /// The type string that runtimes and custom adapters read: `rt:<runtime>` or `mt:<format>[:<version>][|pv:<protocol>]`.
    #[must_use]
    pub fn type_string(&self) -> String {
        match &self.placement {
            Placement::Runtime(runtime) => format!("rt:{runtime}"),
            Placement::Format { protocol: None } => format!("mt:{}", self.format),
            Placement::Format { protocol: Some(protocol) } => format!("mt:{}|pv:{protocol}", self.format),
        }
    }

    /// The same, kept in memory like this.
    #[must_use]
    pub fn kept(mut self, keep: Keep) -> Self {
        if self.keep != keep {
            self.class = Arc::new(Class { keep, ..Class::clone(&self.class) });
        }
        self
    }

    /// Where its bytes are.
    #[must_use]
    pub fn storage(&self) -> StorageRef {
        let Class { key, parameters, .. } = &*self.class;
        StorageRef { key: key.clone(), parameters: Arc::clone(parameters), path: Arc::clone(&self.path), schema_path: self.schema_path.clone() }
    }
}

/// A registration as it is written to disk and sent.
#[derive(Serialize, Deserialize)]
struct Written {
    id: ModelId,
    format: ModelFormat,
    placement: Placement,
    storage: StorageRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    declared_size: Option<ByteSize>,
    #[serde(default, skip_serializing_if = "Keep::is_usual")]
    keep: Keep,
}

impl From<Written> for Registration {
    fn from(Written { id, format, placement, storage, declared_size, keep }: Written) -> Self {
        Registration::new(id, format, placement, storage, declared_size).kept(keep)
    }
}

impl From<Registration> for Written {
    fn from(registration: Registration) -> Self {
        let (storage, Class { format, placement, .. }) = (registration.storage(), &*registration.class);
        Written {
            format: format.clone(),
            placement: placement.clone(),
            storage,
            id: registration.id,
            declared_size: registration.declared_size,
            keep: registration.class.keep,
        }
    }
}
