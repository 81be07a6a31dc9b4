//! What goes wrong between a store and whoever asks it.

use std::fmt;
use std::time::Duration;

use berth_types::Retry;

/// What a fault means for whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The store did not answer, or the connection broke: the same request may succeed soon.
    Away,
    /// The store says that it is asked too much: the same request may succeed later, fewer at once will.
    Busy {
        /// How long the store wants to be left alone, where it says so.
        pause: Option<Duration>,
    },
    /// What was asked for is there no more in that version: only a new look helps.
    Changed,
    /// Nothing is there under that name: the object, the bucket.
    Missing,
    /// The store refuses the credential, or there is none.
    Denied,
    /// The storage configuration cannot work, or the store cannot do what is needed.
    Config,
    /// What came contradicts itself.
    Corrupt,
}

impl FaultKind {
    /// Whether waiting alone may help.
    #[must_use]
    pub const fn retry(self) -> Retry {
        match self {
            FaultKind::Away | FaultKind::Busy { .. } | FaultKind::Changed | FaultKind::Corrupt => Retry::Later,
            FaultKind::Missing | FaultKind::Denied | FaultKind::Config => Retry::AfterChange,
        }
    }
}

/// A request that failed. Prints as one line that names store, bucket, key and status where there are any, never a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it means.
    pub kind: FaultKind,
    /// What was asked for: `object "m/1" of bucket b at https://s3.example`.
    pub what: String,
    /// The HTTP status, where one came.
    pub status: Option<u16>,
    /// Why, and what to do about it.
    pub why: String,
}

impl Fault {
    /// A fault without an HTTP status.
    pub fn new(kind: FaultKind, what: impl Into<String>, why: impl Into<String>) -> Self {
        Fault { kind, what: what.into(), status: None, why: why.into() }
    }

    /// The same, of an answer with this status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Fault { status: Some(status), ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match (self.status, self.why.is_empty()) {
            (Some(status), false) => write!(f, ": HTTP {status} {}", self.why),
            (Some(status), true) => write!(f, ": HTTP {status}"),
            (None, _) => write!(f, ": {}", self.why),
        }
    }
}

impl std::error::Error for Fault {}

/// A storage configuration that names no usable store. Prints as what is wrong, where, and what there is instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigFault(pub String);
