//! What one pod tells of a model that may end runtimes, and what all pods are told of it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Failure, ModelId, UnixMillis};

/// What the deaths of one pod's runtime say against a model, where that is more than that it was busy among others: such
/// models are not told of, since the other pods must go on serving them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// Which model.
    pub model: ModelId,
    /// Deaths, of those that still count there, at which it was the only model being loaded, or the only one at all that
    /// loaded or computed. At least two where it was found to be the one.
    pub deaths: u32,
    /// Deaths at which it was one of several that were being loaded.
    pub together: u32,
    /// When the last of them was.
    pub last: UnixMillis,
    /// The pod's verdict, as its reports show it, where it has found that this is the one.
    pub failure: Option<Arc<Failure>>,
}

/// What a pod is told to beware of: a model that others' runtimes, or its own, may not survive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caution {
    /// Which model.
    pub model: ModelId,
    /// Deaths of all pods together that are held against it.
    pub deaths: u32,
    /// Until then; afterwards it is as if nothing had been told.
    pub until: UnixMillis,
    /// True: it ends runtimes, no pod loads it, and no copy of it serves. False: another pod tries it first, copies of it
    /// serve on.
    pub verdict: bool,
    /// What callers are told, with the pods where it happened.
    pub message: Arc<str>,
}
