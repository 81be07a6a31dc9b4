//! What a pod says about the models it holds.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Content, Failure, Footprint, ModelId, UnixMillis};

/// How far from serving a model is on a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Its bytes are only in the store.
    Remote,
    /// Its files are on the pod's disk, checked.
    Disk,
    /// It is loaded in the runtime.
    Serving,
}

/// One copy as its pod sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyState {
    /// On its way: waiting for memory, fetching, laying out or loading.
    Loading {
        /// When the load was asked for.
        since: UnixMillis,
    },
    /// Answers requests.
    Loaded {
        /// When it became so.
        since: UnixMillis,
        /// What it takes; measured where the runtime can say.
        footprint: Footprint,
        /// What it was loaded from; `None` for files that are used in place, of which nobody made a digest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Arc<Content>>,
    },
    /// Announced no longer, memory not yet given back.
    Unloading,
    /// Not in the runtime. Files may be on disk.
    Absent,
}

/// Everything a pod reports about one model; the newest report replaces the older one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Which model.
    pub model: ModelId,
    /// What the pod holds of it.
    pub state: CopyState,
    /// The most recent failure on this pod, while it counts (15 minutes, or until success or a new version).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Arc<Failure>>,
    /// What the failure was due to may have been mended since: the storage configuration has changed.
    #[serde(default)]
    pub mended: bool,
    /// Last use by a request; `None` until the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<UnixMillis>,
}
