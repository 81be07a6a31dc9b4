//! What keeps a model from reaching the disk.

use berth_disk::DiskError;
use berth_stores::{ConfigFault, Fault, FaultKind};
use berth_types::{ByteSize, Retry};

/// Why a model could not be fetched. Messages name store, bucket, path and status, never a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// The storage configuration has no such key, or cannot be used.
    #[error("{0}")]
    Config(String),
    /// Nothing is there under that path.
    #[error("{0}")]
    NotFound(String),
    /// The store refused the credentials.
    #[error("{0}")]
    Denied(String),
    /// The store is away, slow or busy.
    #[error("{0}")]
    Unavailable(String),
    /// What came is not what was listed.
    #[error("{0}")]
    Corrupt(String),
    /// The disk tier has no room, with the numbers.
    #[error("needs {need} on disk, {free} of {budget} can be freed: raise the disk budget or use a smaller model")]
    DiskFull {
        /// Bytes of the model.
        need: ByteSize,
        /// Bytes that are free or could be freed.
        free: ByteSize,
        /// The whole budget.
        budget: ByteSize,
    },
    /// The local disk failed.
    #[error("{0}")]
    Disk(String),
}

impl PullError {
    /// Whether waiting alone may help.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            PullError::Config(_) | PullError::NotFound(_) | PullError::Denied(_) => Retry::AfterChange,
            // Larger than the whole budget: no removal helps.
            PullError::DiskFull { need, budget, .. } if need.0 > budget.0 => Retry::AfterChange,
            PullError::Unavailable(_) | PullError::Corrupt(_) | PullError::DiskFull { .. } | PullError::Disk(_) => Retry::Later,
        }
    }
}

impl From<ConfigFault> for PullError {
    fn from(fault: ConfigFault) -> Self {
        PullError::Config(fault.to_string())
    }
}

impl From<Fault> for PullError {
    fn from(fault: Fault) -> Self {
        let text = fault.to_string();
        match fault.kind {
            FaultKind::Away | FaultKind::Busy { .. } => PullError::Unavailable(text),
            FaultKind::Changed | FaultKind::Corrupt => PullError::Corrupt(text),
            FaultKind::Missing => PullError::NotFound(text),
            FaultKind::Denied => PullError::Denied(text),
            FaultKind::Config => PullError::Config(text),
        }
    }
}

impl From<DiskError> for PullError {
    fn from(fault: DiskError) -> Self {
        match fault {
            DiskError::Full { need, free, budget } => PullError::DiskFull { need, free, budget },
            DiskError::Failed(text) => PullError::Disk(text),
        }
    }
}
