//! What went wrong with a model, in the words of the status, and what a single caller ran into.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{ByteSize, ModelId, Pool, UnixMillis};

/// Why a model is not served as its resource asks: the five words that users see in `lastFailureInfo.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The model failed to load within a serving runtime.
    ModelLoadFailed,
    /// The pods of the runtime failed to start or are unhealthy.
    RuntimeUnhealthy,
    /// No runtime supports the format of the model.
    NoSupportingRuntime,
    /// No runtime has the name that the resource asks for.
    RuntimeNotRecognized,
    /// The resource is invalid or asks for something unsupported.
    InvalidPredictorSpec,
}

impl Reason {
    /// The word as it stands in a status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::ModelLoadFailed => "ModelLoadFailed",
            Reason::RuntimeUnhealthy => "RuntimeUnhealthy",
            Reason::NoSupportingRuntime => "NoSupportingRuntime",
            Reason::RuntimeNotRecognized => "RuntimeNotRecognized",
            Reason::InvalidPredictorSpec => "InvalidPredictorSpec",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The step of a cold load in which something happened; the `step` field of logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Deciding whether and where it fits.
    Admit,
    /// Getting the files from storage, checked.
    Fetch,
    /// Laying them out as the runtime wants them.
    Layout,
    /// Loading inside the runtime.
    Load,
    /// Serving.
    Serve,
    /// Unloading.
    Unload,
}

impl Step {
    /// The step as one lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Step::Admit => "admit",
            Step::Fetch => "fetch",
            Step::Layout => "layout",
            Step::Load => "load",
            Step::Serve => "serve",
            Step::Unload => "unload",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The pod in which something happened, as statuses show it: the last 12 characters of its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Location(Arc<str>);

impl Location {
    /// The last 12 characters of a pod's name.
    #[must_use]
    pub fn of_pod_name(name: &str) -> Self {
        let skipped = name.chars().count().saturating_sub(12);
        Location(name.chars().skip(skipped).collect::<String>().into())
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether the same attempt may succeed later without anybody changing anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Retry {
    /// Yes: storage or runtime was away or busy, a resource was short.
    Later,
    /// No: the bytes, the path or the resource itself must change first. It is still tried about every ten minutes,
    /// since the bytes behind a path can change without a word.
    AfterChange,
}

/// What the status report shows: what went wrong, where, and for which model.
///
/// What only one caller ran into (its deadline, a refusal) is another type and never gets here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{reason} at {location} ({step}): {message}")]
pub struct Failure {
    /// Which of the five words the status shows.
    pub reason: Reason,
    /// Where in the cold load it happened.
    pub step: Step,
    /// In which pod.
    pub location: Location,
    /// Which version of the model.
    pub model: ModelId,
    /// What happened, with values and without secrets.
    pub message: String,
    /// When.
    pub time: UnixMillis,
    /// Whether waiting alone may help.
    pub retry: Retry,
}

/// Why memory was refused: the numbers that a user needs to change something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The model is larger than the whole budget: no eviction can help.
    #[error("needs {need} of {pool} memory, the whole budget is {budget}: raise the budget or use a smaller model")]
    NeverFits {
        /// The pool that is too small.
        pool: Pool,
        /// What the model needs there.
        need: ByteSize,
        /// All that the pool has.
        budget: ByteSize,
    },
    /// There is no room now: what could be evicted is in use, pinned, loading or being unloaded.
    #[error("needs {need} of {pool} memory, {free} of {budget} are free and {evictable} more could be evicted now: try again")]
    NoRoomNow {
        /// The pool that is short.
        pool: Pool,
        /// What the model needs there.
        need: ByteSize,
        /// What is free there.
        free: ByteSize,
        /// What an eviction could add at once.
        evictable: ByteSize,
        /// All that the pool has.
        budget: ByteSize,
    },
}
